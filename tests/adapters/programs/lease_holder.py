"""A daemon that leases every port from FIRST to LAST that it can get, prints them, and waits to be killed."""

import sys

from solvisor.leases import Leases
from solvisor.model import PortRange

leases = Leases(PortRange(int(sys.argv[1]), int(sys.argv[2])))
ports = []
while lease := leases.take("127.0.0.1"):
    ports.append(lease.port)
print(*ports, flush=True)
sys.stdin.read()
