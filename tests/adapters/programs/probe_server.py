"""Listen on ADDRESS PORT and answer each line that comes with ``pong``, or, as options say, do it badly.

``requests`` gets a line for each connection and for each line that came: ``1 connected``, ``1 ping``.
"""

import argparse
import os
import signal
import socket
import sys
import time


def wait_for(path: str) -> None:
    while path and not os.path.exists(path):
        time.sleep(0.001)  # noqa: TID251  a server, not a test


options = argparse.ArgumentParser()
options.add_argument("address")
options.add_argument("port", type=int)
options.add_argument("--after", default="", help="listen once this file exists")
options.add_argument("--late", type=float, default=0.0, help="listen so many seconds after that")
options.add_argument("--fork", choices=("once", "twice"), help="another process listens; twice: a child of nobody's")
options.add_argument("--v6only", action="store_true")
options.add_argument("--answer-after", default="", help="answer nobody until this file exists")
options.add_argument("--drop-until", default="", help="close each connection at once until this file exists")
options.add_argument("--say", default="pong\r\n", help="the answer")
options.add_argument("--then", default="", help="the rest of the answer")
options.add_argument("--then-late", type=float, default=0.0, help="the rest follows after so many seconds")
options.add_argument("--bad-until", default="", help="answer LOADING until this file exists")
options.add_argument("--print", default="", help="print this once it listens, without a line end")
args = options.parse_args()

if args.fork and (child := os.fork()):
    if args.fork == "twice":
        os.waitpid(child, 0)
    while True:
        time.sleep(1000)  # noqa: TID251  a server, not a test
if args.fork == "twice":
    os.setsid()
    if os.fork():
        os._exit(0)

with open("pid", "w") as file:
    print(os.getpid(), file=file)
signal.alarm(300)  # whatever becomes of the test
wait_for(args.after)
time.sleep(args.late)  # noqa: TID251  a server, not a test
listener = socket.socket(socket.AF_INET6 if ":" in args.address else socket.AF_INET)
if ":" in args.address:
    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, args.v6only)
listener.bind((args.address, args.port))
listener.listen()
with open("listening", "w") as file:
    print(time.monotonic(), listener.getsockname()[1], file=file)
if args.print:
    sys.stdout.write(args.print.replace("PORT", str(listener.getsockname()[1])))
    sys.stdout.flush()

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
requests = open("requests", "a", buffering=1)  # noqa: SIM115  until its end
number = 0
while True:
    connection, _ = listener.accept()
    number += 1
    print(number, "connected", file=requests)
    if args.drop_until and not os.path.exists(args.drop_until):
        connection.close()
        continue
    if os.fork():
        connection.close()
        continue
    bad = args.bad_until and not os.path.exists(args.bad_until)
    with connection, connection.makefile("r") as lines:
        for line in lines:
            print(number, line.strip(), file=requests)
            wait_for(args.answer_after)
            connection.sendall(b"LOADING\r\n" if bad else args.say.encode())
            time.sleep(args.then_late)  # noqa: TID251  a server, not a test
            connection.sendall(args.then.encode())
    os._exit(0)
