"""Results on their way to where users find them, as many at a time as piled up.

Rules: what is added here is durable already; what cannot be written or moved is tried again for ever, and until then
``trouble`` says so. It changes no state: what lies in its place is told to ``published``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import anyio
import structlog

from .hand import Batches, Failure, Hand, tell
from .pile import Pile
from .spool import NotDurable, Publication, Results
from .trouble import RETRY_SECONDS

PUBLISH_MAX = 256
"""Results moved before any of them is told: a batch of 100,000 that was cancelled appears bit by bit."""

log = structlog.get_logger()


class Publisher:
    """Writes manifests and moves folders, by ``hand``. ``published`` hears of each job whose result is in its place."""

    def __init__(self, results: Results, hand: Hand, trouble: dict[str, str], published: Callable[[str], None]) -> None:
        self._hand = hand
        self._results = results
        self._trouble = trouble
        self._published = published
        self._batches = Batches(hand, self._work, PUBLISH_MAX)
        self._refused: Pile[Publication] = Pile()
        self._over = False  # nothing more is begun
        self._loop = asyncio.get_running_loop()
        self._failure = Failure()

    def add(self, *publications: Publication) -> None:
        """Have finished jobs published. Any thread may call."""
        self._batches.add(*publications)

    async def run(self) -> None:
        """Until cancelled, see to those that were refused. Raises what ends the daemon."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._try_again)
            await self._failure.wait()

    async def settle(self) -> None:
        """Return when nothing is under way any more, and begin nothing. Raises what ``run`` would have."""
        self._over = True
        await self._hand.do(lambda: None)
        self._failure.check()

    async def _try_again(self) -> None:
        while True:
            again = await self._refused.take()
            await anyio.sleep(RETRY_SECONDS)
            self.add(*again)

    # --- on the thread of the hand ----------------------------------------------------------------------------------

    def _work(self, batch: Sequence[Publication]) -> None:
        if self._over:
            return
        try:
            done, refused = self._publish(batch)
        except BaseException as error:  # noqa: BLE001  it is raised by ``run``
            self._over = True  # after a sync that failed, one that succeeds proves nothing
            self._failure.tell(error)
        else:
            tell(self._loop, self._told, batch, done, refused)

    def _publish(self, batch: Sequence[Publication]) -> tuple[list[str], dict[str, Exception]]:
        """As many as can be; a defect that one of them meets holds up that one alone."""
        try:
            done, refused = self._results.publish(batch)
            return done, dict(refused)
        except (NotDurable, OSError, MemoryError):
            raise
        except Exception as error:
            if len(batch) == 1:
                log.exception("job.publish_defect", id=batch[0].id)
                return [], {batch[0].id: error}
            apart = [self._publish([one]) for one in batch]
            return [job_id for done, _ in apart for job_id in done], {i: e for _, bad in apart for i, e in bad.items()}

    # --- on the loop ------------------------------------------------------------------------------------------------

    def _told(self, batch: Sequence[Publication], done: Sequence[str], refused: dict[str, Exception]) -> None:
        try:
            for job_id in done:
                self._trouble.pop(job_id, None)
                self._published(job_id)
        except Exception as defect:  # noqa: BLE001  the loop would only log it
            self._failure.tell(defect)
        for job_id, error in refused.items():
            log.error("job.not_published", id=job_id, error=str(error), retry_seconds=RETRY_SECONDS)
            self._trouble[job_id] = f"{job_id} is finished but cannot be put in its place: {error}"
        if refused:
            self._refused.add(*(publication for publication in batch if publication.id in refused))
