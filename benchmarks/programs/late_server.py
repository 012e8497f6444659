"""Listen on ADDRESS PORT (0: any) after LATE seconds, half to one and a half, and answer every line with ``pong``.

The port is printed. The instant at which ``listen()`` returned, in seconds of the time of day, is added to FILE.

    python late_server.py LATE FILE ADDRESS PORT
"""

import random
import socket
import sys
import time

time.sleep(random.uniform(0.5, 1.5) * float(sys.argv[1]))
listener = socket.create_server((sys.argv[3], int(sys.argv[4])))
ready = time.time()
print(f"port {listener.getsockname()[1]}", flush=True)
with open(sys.argv[2], "a") as file:
    file.write(f"{ready!r}\n")
while True:
    client, _ = listener.accept()
    with client:
        while client.recv(1024):
            client.sendall(b"pong\n")
