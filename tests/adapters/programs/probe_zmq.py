"""Bind a REP socket on ADDRESS PORT once the file ``go`` exists; answer with ``ready`` and count in ``requests``.

With a third argument the answer is given once that file exists.
"""

import os
import signal
import sys
import time

import zmq


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.001)  # noqa: TID251  a server, not a test


signal.alarm(300)  # whatever becomes of the test
wait_for("go")
socket = zmq.Context().socket(zmq.REP)
socket.setsockopt(zmq.IPV6, 1)
socket.bind(f"tcp://{sys.argv[1]}:{sys.argv[2]}")
with open("requests", "a", buffering=1) as requests:
    while True:
        print(socket.recv_string(), file=requests)
        wait_for(sys.argv[3] if len(sys.argv) > 3 else "go")
        socket.send_string("ready")
