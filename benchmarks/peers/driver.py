"""What every peer written in Python does for the benchmark: it carries out what it reads, and says how long that took.

It runs in the environment of the peers and knows nothing of Solvisor. A line ``spawn 500`` asks for 500 jobs that each
start ``/bin/true`` and wait for it, ``call 500`` for as many calls of a function that does nothing; the answer is the
seconds from handing in the first until the last one's result is known. The end of the input ends it all.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable

TRUE = shutil.which("true") or "/bin/true"


def spawn(_number: int) -> None:
    """The job: one program, started and waited for."""
    subprocess.run([TRUE], check=True)


def call(_number: int) -> None:
    """The least that a function can do."""


def drive(release: str, carry_out: Callable[[str, int], None]) -> None:
    """Answer until the input ends; ``carry_out`` is given what to do and how often, and returns once all are done."""
    print(f"ready {release}", flush=True)
    for line in sys.stdin:
        what, count = line.split()
        begin = time.perf_counter()
        carry_out(what, int(count))
        print(time.perf_counter() - begin, flush=True)
