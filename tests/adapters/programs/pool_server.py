"""Listen on ADDRESS PORT and answer ``ping`` with ``pong``; or, as options say, do it badly.

Other lines that it knows: ``quit`` (it ends), ``die N`` (it ends at once with exit code N), ``bye`` (it hangs up).
The port is bound without SO_REUSEADDR: where anything has it, the program ends with a traceback.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.001)  # noqa: TID251  a server, not a test


options = argparse.ArgumentParser()
options.add_argument("address")
options.add_argument("port", type=int)
options.add_argument("--exit", type=int, help="say all that is to be said, and end so")
options.add_argument("--out", default="", help="print this first")
options.add_argument("--err", default="", help="print this first on stderr")
options.add_argument("--after", default="", help="go on once this file exists")
options.add_argument("--mute", action="store_true", help="accept connections and answer nothing")
options.add_argument("--ignore-term", action="store_true")
options.add_argument("--pids", default="", help="append the number of each process of the tree to this file")
options.add_argument("--children", action="store_true", help="have a child, one in another session, one of nobody's")
options.add_argument("--close-after", default="", help="hang up on everybody from the time this file exists")
options.add_argument("--listen", default="", help="listen on this address instead")
args = options.parse_args()

if args.ignore_term:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if args.pids:
    with open(args.pids, "a") as file:
        print(os.getpid(), file=file)
if args.children:
    note = f'echo $$ >> "{args.pids}"; trap "" TERM; exec sleep 1000'
    for script in (note, f"setsid sh -c '{note}'", f"(setsid sh -c '{note}' &) ; exit 0"):
        subprocess.Popen(["/bin/sh", "-c", script])
print(args.out, flush=True)
print(args.err, file=sys.stderr, flush=True)
if args.after:
    wait_for(args.after)
if args.exit is not None:
    sys.exit(args.exit)


def serve(connection: socket.socket) -> None:
    with connection, connection.makefile("r") as lines:
        for line in lines:
            if args.mute:
                continue
            if args.close_after and os.path.exists(args.close_after):
                return
            match line.split():
                case ["die", code]:
                    os._exit(int(code))
                case ["quit"]:
                    os._exit(0)
                case ["bye"]:
                    return
                case ["ping"]:
                    connection.sendall(b"pong\n")
                case _:
                    connection.sendall(b"what?\n")


address = args.listen or args.address
listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
listener.bind((address, args.port))
listener.listen(64)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=(accepted,), daemon=True).start()
