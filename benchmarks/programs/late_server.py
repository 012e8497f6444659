"""Listen on ADDRESS PORT (0: any) after 50 to 150 ms, and answer every line with ``pong``.

The port and the monotonic instant at which ``listen()`` returned are printed.

    python late_server.py ADDRESS PORT
"""

import random
import socket
import sys
import time

time.sleep(random.uniform(0.05, 0.15))
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
ready = time.monotonic()
print(f"port {listener.getsockname()[1]} ready at {ready!r}", flush=True)
while True:
    client, _ = listener.accept()
    with client:
        while client.recv(1024):
            client.sendall(b"pong\n")
