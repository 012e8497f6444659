"""Take ports from FIRST to LAST at random and listen there for some milliseconds, HOLD at a time, until stdin ends.

The file BOUND is rewritten with the ports that were taken so far.
"""

import random
import select
import socket
import sys
from collections import deque

first, last, hold = (int(word) for word in sys.argv[1:4])
held: "deque[socket.socket]" = deque()
count = 0
while not select.select([0], [], [], 0.004)[0]:
    stranger = socket.socket()
    try:
        stranger.bind(("127.0.0.1", random.randint(first, last)))
        stranger.listen()
    except OSError:
        stranger.close()
        if held:
            held.popleft().close()
        continue
    held.append(stranger)
    count += 1
    if len(held) > hold:
        held.popleft().close()
print(count, flush=True)
