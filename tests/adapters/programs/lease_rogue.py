"""A program that binds one port after the other from FIRST to LAST, without asking anybody, until stdin ends.

A third of them is bound at any moment. The file BOUND has eight bytes for each port: the instant of its binding in
nanoseconds, or zero. They are written after the binding and cleared before the end of it.
"""

import mmap
import select
import socket
import sys
import time
from collections import deque

first, last = int(sys.argv[1]), int(sys.argv[2])
with open(sys.argv[3], "r+b") as file:
    bound = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
sockets: deque[tuple[int, socket.socket]] = deque()
port = first
while not select.select([0], [], [], 0)[0]:
    rogue = socket.socket()
    try:
        rogue.bind(("127.0.0.1", port))
        bound[port - first] = time.monotonic_ns()
        sockets.append((port, rogue))
    except OSError:
        rogue.close()
    if len(sockets) > (last - first) // 3:
        oldest, rogue = sockets.popleft()
        bound[oldest - first] = 0
        rogue.close()
    port = port + 1 if port < last else first
