"""A daemon that takes and gives ports from FIRST to LAST as fast as it can, at most HOLD at a time.

Whatever it leases it marks with a new file in the folder MARKS; if the file is there already, somebody else has the
port at this moment: an overlap. First it takes HOLD ports, or what there is, prints them and waits for a line. Then it
goes on; after TURNS it prints their number, and once stdin ended, or after a minute, it gives all back and prints how
many turns and overlaps there were. With ``blind`` its names exclude nobody.
"""

import os
import select
import socket
import sys
import time
from collections import deque

from solvisor import leases as module
from solvisor.leases import Lease, Leases
from solvisor.model import PortRange

first, last, hold, turns = (int(word) for word in sys.argv[1:5])
marks = sys.argv[5]
if sys.argv[6:] == ["blind"]:
    module._hold = lambda port: socket.socket()

leases = Leases(PortRange(first, last))
held: deque[tuple[Lease, bool]] = deque()
overlaps = 0


def take() -> bool:
    global overlaps
    lease = leases.take("127.0.0.1")
    if lease is None:
        return False
    try:
        os.close(os.open(os.path.join(marks, str(lease.port)), os.O_CREAT | os.O_EXCL))
        marked = True
    except FileExistsError:
        overlaps += 1
        marked = False
    held.append((lease, marked))
    return True


def give() -> None:
    lease, marked = held.popleft()
    if marked:
        os.unlink(os.path.join(marks, str(lease.port)))
    leases.give_back(lease, rests=False)


while len(held) < hold and take():
    pass
print(*(lease.port for lease, _ in held), flush=True)
os.read(0, 1)
done = 0
end = time.monotonic() + 60
while not select.select([0], [], [], 0)[0] and time.monotonic() < end:
    if len(held) < hold and take():
        done += 1
        if done == turns:
            print(done, flush=True)
    elif held:
        give()
while held:
    give()
print(done, overlaps, flush=True)
