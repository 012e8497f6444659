"""How late the event loop is: a timer that notes how long after its time it was called.

What blocks the loop (a file touched outside a thread, a long computation) delays every timer, so the lag of one tells
of all. A stall shorter than the rest between two beats is seen with the chance that a beat falls into it, a longer one
always. Of an idle daemon, the beats are most of the work: while the loop does next to nothing there are fewer.

Rules: it measures and tells, and changes nothing. This module must not know what the loop does.
"""

from __future__ import annotations

import time
from collections import deque

import anyio
import structlog

from .views import LATE_SECONDS

BEAT_SECONDS = 0.25
IDLE_BEAT_SECONDS = 1.0
"""The rest while the loop has next to nothing to do: there is little that could stall it."""

_IDLE_SHARE = 0.01
"""Of a core: with less the loop counts as idle."""

_SLOT_SECONDS = 10.0
_SLOTS = 6
"""The worst of the last minute is that of so many slots; what is too late is logged once in each."""

log = structlog.get_logger()


def rest_after(worked: float, rest: float) -> float:
    """The rest before the next beat, after one in which the loop's thread computed for so many seconds."""
    return IDLE_BEAT_SECONDS if worked < _IDLE_SHARE * rest else BEAT_SECONDS


class Heartbeat:
    """The lag of the loop that runs ``run``, in seconds."""

    def __init__(self) -> None:
        self._slots: deque[float] = deque([0.0], _SLOTS)
        self._ends = 0.0
        self._worst = 0.0
        self._told = False

    @property
    def recent(self) -> float:
        """The longest lag of the last minute."""
        return max(self._slots)

    @property
    def worst(self) -> float:
        """The longest lag so far."""
        return self._worst

    async def run(self) -> None:
        """Beat until cancelled."""
        rest = BEAT_SECONDS
        while True:
            due, worked = time.monotonic() + rest, time.thread_time()
            await anyio.sleep(rest)
            now = time.monotonic()
            self.note(max(0.0, now - due), now)
            rest = rest_after(time.thread_time() - worked, rest)

    def note(self, lag: float, now: float) -> None:
        """A beat came so late; ``now`` is monotonic."""
        if now >= self._ends:
            self._slots.append(0.0)
            self._ends, self._told = now + _SLOT_SECONDS, False
        self._slots[-1] = max(self._slots[-1], lag)
        self._worst = max(self._worst, lag)
        if lag > LATE_SECONDS and not self._told:
            self._told = True
            log.warning("loop.late", seconds=round(lag, 3), worst_seconds=round(self._worst, 3))
