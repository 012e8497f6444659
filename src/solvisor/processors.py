"""On which processors our own threads run: all on one, but those that work long by themselves.

The interpreter lets one thread run at a time. On several processors each short system call gives its lock to a thread
elsewhere, and has to win it back; that costs more than all the work of a small job (decision 12). On one processor the
lock changes hands only where a thread has to wait. There those stand back for whom nothing waits that could start.

Rules: what we start does not inherit it: whoever starts programs gives them what was granted to us. On systems where a
thread cannot be told where to run nothing of this does anything.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")

_granted: frozenset[int] = frozenset()  # what we had before our threads were gathered

STANDS_BACK = 10
"""So much nicer is a thread that stands back: it has a tenth of the processor for sure, and all that is left over."""


def gather_threads() -> None:
    """Keep all threads of this process, and those they start, on one processor from now on.

    It is the last one we may use: who binds processes of his own begins with the first.
    """
    global _granted
    if sys.platform == "linux" and not _granted:
        _granted = granted_cpus()
        for thread in os.listdir("/proc/self/task"):
            with suppress(OSError):  # it has ended; or where we run is not ours to say
                os.sched_setaffinity(int(thread), {max(_granted)})


def stand_back() -> None:
    """Let our other threads go before the calling one, and before those that it starts."""
    if sys.platform == "linux":
        nice = os.getpriority(os.PRIO_PROCESS, os.getpid()) + STANDS_BACK  # of the first thread: ours may be nicer
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, min(nice, 19))


def spread_thread() -> None:
    """Let the calling thread, and the programs it starts, use all processors again."""
    if sys.platform == "linux" and _granted:
        with suppress(OSError):  # some of them were taken from us meanwhile
            os.sched_setaffinity(0, _granted)


def spread(work: Callable[[], T]) -> Callable[[], T]:
    """``work``, for a thread of a pool: it may take long by itself."""

    def spread_out() -> T:
        spread_thread()
        return work()

    return spread_out


def granted_cpus() -> frozenset[int]:
    """The numbers of the processors that we and what we start may use; none where they have no numbers."""
    if sys.platform == "linux":
        return _granted or frozenset(os.sched_getaffinity(0))
    return frozenset()
