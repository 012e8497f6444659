"""Hold MEGABYTES of memory, tell it by a file ``held``, and wait until a file ``go`` appears or the starter is gone."""

import os
import sys
import time

starter = os.getppid()
held = b"x" * (int(sys.argv[1]) << 20)
open("held", "w").close()
while not os.path.exists("go") and os.getppid() == starter:
    time.sleep(0.005)  # noqa: TID251  a solver, not a test
