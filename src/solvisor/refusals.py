"""Licenses that were refused although we had a seat to give: a circuit breaker for each.

Theory: a license server outside knows of seats taken elsewhere, we do not. One refusal says little; after several in a
row the license rests, longer each time. Then one job or server tries it alone: refused, it rests again; running for a
while, it has its seat, and everybody may try. Any success in between forgets it all.

Rules: pure; instants are monotonic seconds that come in. This module must not know jobs, servers or how many there are.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

REFUSALS_MAX = 3
"""So many in a row, and the license rests."""

FIRST_REST_SECONDS = 5.0
LONGEST_REST_SECONDS = 600.0

TRIAL_SECONDS = 60.0
"""Who runs for so long has its seat: refusals come at the start."""

Licenses = Collection[tuple[str, int]]


@dataclass(slots=True)
class Standing:
    """How it stands with one license: ``count`` refusals in a row, ``rounds`` of rest so far.

    It rests ``until`` an instant, or ``trial`` tries it alone until then. ``message`` is what was said last.
    """

    count: int = 0
    rounds: int = 0
    until: float | None = None
    trial: str | None = None
    message: str = ""


class Refusals:
    """All licenses that were refused lately; ``resting`` names those that nobody else may try now."""

    def __init__(self, resting: set[str]) -> None:
        self.resting = resting
        self._refused: dict[str, Standing] = {}

    def __getitem__(self, name: str) -> Standing:
        return self._refused[name]

    def get(self, name: str) -> Standing | None:
        """How it stands with a license; ``None`` if it was not refused lately."""
        return self._refused.get(name)

    def wants_trial(self, name: str) -> bool:
        """Whether a license has rested, so that the next one to take it tries it alone."""
        refused = self._refused.get(name)
        return refused is not None and refused.rounds > 0 and refused.until is None

    def begin(self, licenses: Licenses, who: str, now: float) -> None:
        """``who`` is about to take these: of one that has rested it is the only one to try it."""
        for name, _ in licenses:
            if self.wants_trial(name):
                refused = self._refused[name]
                refused.trial, refused.until = who, now + TRIAL_SECONDS
                self.resting.add(name)

    def grant(self, licenses: Licenses) -> None:
        """Somebody got a seat of each of these."""
        for name, _ in licenses:
            if self._refused.pop(name, None) is not None:
                self.resting.discard(name)

    def refuse(self, licenses: Licenses, message: str, now: float) -> None:
        """Somebody to whom we had given these got no seat."""
        for name, _ in licenses:
            refused = self._refused.setdefault(name, Standing())
            refused.count += 1
            refused.message = message
            if refused.count >= REFUSALS_MAX:
                rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2 ** min(refused.rounds, 20))
                refused.rounds += 1
                refused.trial, refused.until = None, now + rest
                self.resting.add(name)

    def end_trial(self, who: str) -> None:
        """``who`` ended, and nobody knows whether it had a seat: the next one may try."""
        for name, refused in self._refused.items():
            if refused.trial == who:
                refused.trial = refused.until = None
                self.resting.discard(name)

    def pass_time(self, now: float) -> None:
        """What rested long enough may be tried; a trial that still runs has its seat."""
        for name, refused in list(self._refused.items()):
            if refused.until is not None and refused.until <= now:
                self.resting.discard(name)
                if refused.trial is not None:
                    del self._refused[name]
                refused.until = None

    def wakes(self) -> list[float]:
        """The instants at which time alone changes something."""
        return [refused.until for refused in self._refused.values() if refused.until is not None]

    def held_back(self) -> set[str]:
        """What ``resting`` must be, worked out anew. For tests."""
        return {name for name, refused in self._refused.items() if refused.until is not None}
