"""How long a job usually runs, from how long the last ones that succeeded ran; nothing where there is no evidence.

The rule: the jobs of the same solver and name are asked, and if there are none, all of the solver, of which there must
be ``EVIDENCE``. They must be alike: with a tenth of them left out at each end (one, of ``EVIDENCE`` or more), the
longest ran at most ``SPREAD_MAX`` times as long as the shortest. Then it is the median of all, unless that is less than
``SHORTEST``. A guess that is not worth its words is not made.

Rules: pure and bounded: the last ``KEPT`` jobs of each solver are known. Asking costs the sorting of as many numbers.
"""

from __future__ import annotations

from collections import defaultdict, deque
from typing import Final

from msgspec import Struct

from .manifest import run_seconds
from .model import Job, State

KEPT: Final = 50
"""Jobs of each solver; older ones may have been of another model."""

EVIDENCE: Final = 5
"""So many jobs of other names say how long one takes; of the same name one is enough."""

SPREAD_MAX: Final = 3.0
"""With a wider spread a number would promise what nobody knows."""

SHORTEST: Final = 10.0
"""Seconds; what takes less has ended before anybody could want to know when."""


class Ran(Struct, frozen=True, gc=False):
    """A job that succeeded, and how many seconds its last try ran."""

    solver: str
    name: str
    seconds: float


class Usual:
    """What is known of jobs that succeeded. Solvers are those of configurations, so there are few."""

    def __init__(self) -> None:
        self._ran: defaultdict[str, deque[Ran]] = defaultdict(lambda: deque(maxlen=KEPT))

    def add(self, ran: Ran) -> None:
        """One more, which ended after all the others."""
        self._ran[ran.solver].append(ran)

    def count(self, job: Job) -> None:
        """A job that ended; it counts if it succeeded."""
        if job.state is not State.SUCCEEDED:
            return
        seconds = run_seconds(job.current)
        if seconds is not None:
            spec = job.spec
            self.add(Ran(spec.solver, spec.name, seconds))

    def seconds(self, job: Job) -> float | None:
        """How long such a job runs."""
        spec = job.spec
        ran = self._ran.get(spec.solver, ())
        same = [each.seconds for each in ran if each.name == spec.name]
        if same:
            return typical(same)
        return typical([each.seconds for each in ran]) if len(ran) >= EVIDENCE else None


def typical(seconds: list[float]) -> float | None:
    """The median (the lower one of two) of what is alike; at least one number is given."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    out = max(1, len(ordered) // 10) if len(ordered) >= EVIDENCE else 0
    short, middle, long = ordered[out], ordered[last // 2], ordered[last - out]
    return middle if middle >= SHORTEST and long <= SPREAD_MAX * short else None
