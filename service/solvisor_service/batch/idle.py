"""What a batch waits for of which nothing runs: a paused solver, a license that is out, other people's jobs.

Rules: a progress line that stands still is explained once per reason, and not before it may have been the daemon that
takes its time. It asks nobody and prints nothing; seconds are passed in.
"""

from __future__ import annotations

from typing import Final

from solvisor.model import State
from solvisor.views import BatchView, Explanation

IDLE_SECONDS: Final = 3.0
"""How long nothing runs before that is explained, and between two looks at why."""


class Idle:
    """Watches one batch."""

    def __init__(self) -> None:
        self._look_at: float | None = None
        self._told: set[tuple[str, str, str | None]] = set()

    def is_due(self, view: BatchView, now: float) -> bool:
        """Whether somebody should ask now why the first queued job waits."""
        if view.running or view.collecting or not view.queued:
            self._look_at = None
            return False
        if self._look_at is None or now >= self._look_at:
            due, self._look_at = self._look_at is not None, now + IDLE_SECONDS
            return due
        return False

    def words(self, answer: Explanation) -> str | None:
        """What to tell of the reason; ``None`` if it was told before, or if the job waits no more."""
        finding = next((finding for finding in answer.findings if finding.holds), None)
        if answer.job.state is not State.QUEUED or finding is None:
            return None
        reason = (answer.headline, finding.label, finding.what)
        if reason in self._told:
            return None
        self._told.add(reason)
        job = answer.job.id
        sentence, _, more = answer.headline.rstrip(".").partition(". ")
        told = ". ".join(filter(None, [f"{sentence} ({finding.text})", more]))
        return f"nothing of the batch runs; {job} {told}; see: solvisor explain {job}"
