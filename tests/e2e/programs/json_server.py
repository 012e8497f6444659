"""A server on HOST PORT that takes jobs as lines of JSON, and the plain line ``ping``.

The words in the input of a job say what it is to do: ``die`` (end at once), ``fork`` (leave a child in another session
first), ``hold`` (wait until the file of the same name with ``.go`` lies beside the input's folder), else nothing. The
port is bound without SO_REUSEADDR; if it is taken, the folder MARKS gets a file ``taken-PORT``.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time

host, port, marks = sys.argv[1], int(sys.argv[2]), sys.argv[3]


def do(job: "dict[str, str]") -> "dict[str, object]":
    with open(job["input"]) as file:
        words = file.read().split()
    if "fork" in words:
        subprocess.Popen(["setsid", "sleep", "1000"])
    if "die" in words:
        os._exit(9)
    while "hold" in words and not os.path.exists(os.path.join(marks, job["name"] + ".go")):
        time.sleep(0.005)  # noqa: TID251  a server, not a test
    return {"ok": True, "result": {"pid": os.getpid(), "port": port}}


def serve(connection: socket.socket) -> None:
    with contextlib.suppress(OSError), connection, connection.makefile("r") as lines:
        for line in lines:
            if line == "ping\n":
                connection.sendall(b"pong\n")
                continue
            question = json.loads(line)
            answer = do(question) if "input" in question else {"ok": True}
            connection.sendall(json.dumps(answer).encode() + b"\n")


listener = socket.socket()
try:
    listener.bind((host, port))
except OSError:
    open(os.path.join(marks, f"taken-{port}"), "w").close()
    raise
listener.listen(64)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
