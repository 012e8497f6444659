"""The processes that a benchmark starts: what they use, all together, and the end of every one of them.

Rules: whoever is orphaned below us becomes our child (``PR_SET_CHILD_SUBREAPER``), so a peer that makes itself a daemon
is counted and ended as well. One runner lives at a time, so what all use is what that runner uses. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PR_SET_CHILD_SUBREAPER = 36
PATIENCE_SECONDS = 10.0


def adopt_orphans() -> None:
    """From now on; and who asks us to end (Ctrl-C, SIGTERM) has everything put away first."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, _end)


def _end(number: int, _frame: object) -> None:
    """Once: who asks again while all is put away, as people do, must not keep it from being done."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


def descendants() -> list[int]:
    """All processes below this one, also those that ended and were not waited for."""
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(name)] = int(_fields(int(name))[1])
    below: list[int] = []
    level = {os.getpid()}
    while level:
        level = {pid for pid, parent in parents.items() if parent in level}
        below += level
    return below


def cpu_seconds() -> float:
    """Processor time of everything below this process so far, alive, ended and waited for."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime + sum(map(_used, descendants()))


def pss_mib() -> float:
    """Memory of everything that lives below this process; what they share is counted once."""
    return sum(map(pss_mib_of, descendants()))


def pss_mib_of(pid: int) -> float:
    """Its proportional share of memory; 0 if it ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    return 0.0


def own_cpu_seconds(pid: int) -> float:
    """Processor time of a process itself, to the nanosecond (its ``/proc/PID/stat`` tells ticks of 10 ms)."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock of a process, as clock_getcpuclockid(3) makes it


def reaped_cpu_seconds(pid: int) -> float:
    """Processor time of all children that it waited for."""
    return sum(int(ticks) for ticks in _fields(pid)[13:15]) / TICK


def end_all() -> None:
    """Kill everything that is left below this process, and wait for it."""
    end = time.monotonic() + PATIENCE_SECONDS
    while below := descendants():
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if time.monotonic() > end:
            raise TimeoutError(f"processes that do not end: {below}")
        time.sleep(0.01)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Nothing that was started in here is left after."""
    try:
        yield
    finally:
        end_all()


def _fields(pid: int) -> list[str]:
    """Of ``/proc/PID/stat``, from the state on."""
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def _used(pid: int) -> float:
    with contextlib.suppress(OSError):
        return own_cpu_seconds(pid) + reaped_cpu_seconds(pid)
    with contextlib.suppress(OSError):  # it ended: its clock is gone, its line is not
        return sum(int(ticks) for ticks in _fields(pid)[11:15]) / TICK
    return 0.0
