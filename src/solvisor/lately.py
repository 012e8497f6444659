"""What ended within the last 24 hours, counted as it happens: who looks in the morning sees the whole night.

Rules: pure and bounded: a count for each minute and state, and the last ``FAILURES_KEPT`` that failed. A job counts by
the time it ended, so the last day ends at a minute, whatever the clock does in between.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from .model import Job, State

MINUTE_US: Final = 60_000_000
DAY_US: Final = 24 * 60 * MINUTE_US

FAILURES_KEPT: Final = 5


class Ends(Struct, frozen=True, gc=False):
    """How many jobs came into a terminal state within one minute (UTC, counted from 1970)."""

    minute: int
    state: State
    count: int


class Lately:
    """What is known of published jobs; ask with the time of asking (UTC microseconds)."""

    def __init__(self) -> None:
        self._minutes: dict[int, Counter[State]] = {}
        self._totals: Counter[State] = Counter()
        self._first = 0
        self._failures: deque[Job] = deque(maxlen=FAILURES_KEPT)

    def add(self, ends: Iterable[Ends], failures: Iterable[Job]) -> None:
        """What ended before, and the failures among it that ended last, in the order of their ends."""
        for end in ends:
            self._add(end.minute, end.state, end.count)
        self._failures.extend(failures)

    def count(self, job: Job) -> None:
        """One more job that ended."""
        self._add(_minute(job), job.state, 1)
        if job.state is State.FAILED:
            self._failures.append(replace(job, manifest=None))

    @staticmethod
    def since(now_us: int) -> int:
        """The first minute of the day that ends now."""
        return (now_us - DAY_US) // MINUTE_US

    def totals(self, now_us: int) -> Counter[State]:
        """How many ended in each state since a day ago."""
        first = self.since(now_us)
        if first != self._first:
            self._first = first
            for minute in [minute for minute in self._minutes if minute < first]:
                self._totals -= self._minutes.pop(minute)
        return self._totals

    def failures(self, now_us: int) -> list[Job]:
        """Those that failed since a day ago, the last first; of many the last ``FAILURES_KEPT``."""
        first = self.since(now_us)
        return [job for job in reversed(self._failures) if _minute(job) >= first]

    def _add(self, minute: int, state: State, count: int) -> None:
        if minute >= self._first:
            self._minutes.setdefault(minute, Counter())[state] += count
            self._totals[state] += count


def _minute(ended: Job) -> int:
    return (ended.finished_us or 0) // MINUTE_US
