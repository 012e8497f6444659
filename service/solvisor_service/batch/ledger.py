"""What is asked of a batch, and what is known of each input by now.

Rules: at any moment it is enough for a progress line and a summary, whoever asks and however the batch was left. A
field has one thread that writes it (``stopped`` two: whoever finds the reason first), and all may read. No I/O but the
clock.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from solvisor.names import escape_name, printable
from solvisor.views import BatchRule, BatchView, JobRow
from solvisor_service.batch.progress import Progress
from solvisor_service.batch.summary import Row, Summary, row_of_job, summarise
from solvisor_service.targets import Prepared

DRAIN: Final = 1
"""A wish: nothing more is started, what runs may finish."""

STOP: Final = 2
"""A wish: what runs is stopped too."""

LEAVE: Final = 3
"""A wish: nothing is waited for."""


@dataclass(slots=True)
class Item:
    """One input. ``given`` is what the user typed; ``refusal`` says why it did not become a job.

    ``sent`` without an ``id`` or a ``refusal``: the answer is still to come.
    """

    index: int
    given: str
    prepared: Prepared | None
    refusal: str | None = None
    sent: bool = False
    id: str | None = None


@dataclass(slots=True)
class Ledger:
    """``wish`` is how far the user wants it to end; ``stopped`` why nothing more is started, if not by the user.

    ``began`` and ``ended`` are seconds of the monotonic clock; ``brought`` counts jobs whose results were brought,
    ``missing`` those whose results were to be and are not there.
    """

    solver: str
    rule: BatchRule
    items: Sequence[Item]
    batch: str | None = None
    view: BatchView | None = None
    jobs: Mapping[str, JobRow] = field(default_factory=dict)
    wish: int = 0
    stopped: str | None = None
    began: float | None = None
    ended: float | None = None
    missing: int = 0
    brought: int = 0

    def progress(self) -> Progress:
        """Counts for the meter."""
        refused = sum(item.refusal is not None for item in self.items)
        view = self.view
        if view is None:
            return Progress(total=len(self.items), finished=refused, failed=refused)
        failed = view.failed + view.rejected + refused
        return Progress(
            total=len(self.items),
            finished=view.succeeded + failed + view.cancelled + view.skipped,
            active=view.running + view.collecting,
            failed=failed,
            cancelled=view.cancelled,
            skipped=view.skipped,
        )

    def summary(self) -> Summary:
        """One row per input, from what is known now."""
        ended = time.monotonic() if self.ended is None else self.ended
        return summarise(
            [self._row(item) for item in self.items],
            batch=self.batch,
            name=self.rule.name,
            solver=self.solver,
            seconds=0.0 if self.began is None else ended - self.began,
            max_jobs=self.rule.max_jobs,
            on_error=self.rule.on_error,
            stopped_early=self.stopped is not None,
            interrupted=self.wish > 0,
        )

    def _row(self, item: Item) -> Row:
        index, given = item.index, escape_name(item.given)
        if item.id is not None:
            job = self.jobs.get(item.id)
            return row_of_job(index, given, job) if job else Row(index=index, input=given, id=item.id, state="unknown")
        if item.refusal is not None:
            return Row(index=index, input=given, state="rejected", message=printable(item.refusal))
        if item.sent:
            return Row(index=index, input=given, state="unknown", message="it was sent, and no answer came")
        if self.stopped is not None:
            return Row(index=index, input=given, state="skipped", message=f"not sent: {self.stopped}")
        why = "the batch was interrupted" if self.wish else "the daemon did not answer"
        return Row(index=index, input=given, state="cancelled", message=f"not sent: {why}")
