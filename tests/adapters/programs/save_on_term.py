"""Tell by a file ``ready``; at SIGTERM take a while to write ``saved``, as a solver saves its state."""

import signal
import sys
import time


def save(signum: int, frame: object) -> None:
    time.sleep(0.4)  # noqa: TID251  a solver, not a test
    open("saved", "w").close()
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
for _ in range(60):
    time.sleep(1)  # noqa: TID251  a solver, not a test
