"""What ended since the daemon started, counted for monitoring: how many, how long they waited and ran, by solver.

Rules: pure and bounded: a few numbers for each solver of the configuration, whatever names jobs bring. Counting one job
costs a few additions.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Final

from .manifest import run_seconds
from .model import Job, State

BOUNDS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14_400, 43_200, 86_400, 604_800)
"""Upper bounds of the buckets, in seconds: from jobs that do nothing to a week."""

UNKNOWN: Final = "(unknown)"
"""What the solver of a job is called that named none of the configuration; no solver can have such a name."""


@dataclass(slots=True)
class Histogram:
    """How many values lie in each bucket (the last is above all bounds), and their sum."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    sum: float = 0.0

    def add(self, value: float) -> None:
        """Count one."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.sum += value

    def buckets(self) -> Iterator[tuple[float, int]]:
        """Each upper bound with how many values do not lie above it."""
        so_far = 0
        for bound, count in zip((*BOUNDS, float("inf")), self.counts, strict=True):
            so_far += count
            yield bound, so_far


class Counters:
    """Since the daemon started: ``ended`` by solver and state, ``ran`` the last tries' seconds, ``waited`` those before
    the first, by solver.
    """

    def __init__(self) -> None:
        self.ended: Counter[tuple[str, State]] = Counter()
        self.ran: defaultdict[str, Histogram] = defaultdict(Histogram)
        self.waited: defaultdict[str, Histogram] = defaultdict(Histogram)

    def count(self, job: Job, known: Collection[str]) -> None:
        """Count a job that ended; ``known`` are the solvers of the configuration."""
        named = job.spec.solver
        solver = named if named in known else UNKNOWN
        self.ended[solver, job.state] += 1
        last = job.attempt
        if last is None:
            return
        ran = run_seconds(last)
        if ran is not None:
            self.ran[solver].add(ran)
        if job.started_us is not None:
            self.waited[solver].add(max(0, job.started_us - job.submitted_us) / 1e6)
