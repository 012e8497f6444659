"""Listen on ADDRESS PORT (0: any) after 50 to 150 ms, print the port, and answer every line with ``pong``.

The monotonic instant at which ``listen()`` returned is written to the file ``ready_at``, after the first answer so that
the writing delays nothing.

    python late_server.py ADDRESS PORT
"""

import os
import random
import socket
import sys
import time

time.sleep(random.uniform(0.05, 0.15))
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
ready_at = time.monotonic()
print(f"listening on {listener.getsockname()[1]}", flush=True)


def tell() -> None:
    with open("ready_at.part", "w") as file:
        file.write(repr(ready_at))
    os.replace("ready_at.part", "ready_at")


if "--tell-first" in sys.argv:  # nobody may ever ask
    tell()
while True:
    client, _ = listener.accept()
    with client:
        while client.recv(1024):
            client.sendall(b"pong\n")
            if not os.path.exists("ready_at"):
                tell()
