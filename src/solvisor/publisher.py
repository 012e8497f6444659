"""Results on their way to where users find them, as many at a time as piled up.

Rules: what is added here is durable already; what cannot be written or moved is tried again for ever, and until then
``trouble`` says so. It changes no state: what lies in its place is told to ``published``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import anyio
import structlog

from .pile import Pile
from .spool import Publication, Results
from .trouble import RETRY_SECONDS

log = structlog.get_logger()


class Publisher:
    """Writes manifests and moves folders. ``published`` hears of each job whose result lies in its place."""

    def __init__(self, results: Results, trouble: dict[str, str], published: Callable[[str], None]) -> None:
        self._results = results
        self._trouble = trouble
        self._published = published
        self._pile: Pile[Publication] = Pile()

    def add(self, publication: Publication) -> None:
        """Have a finished job published."""
        self._pile.add(publication)

    async def run(self) -> None:
        """Publish until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                batch = await self._pile.take()
                done, refused = await anyio.to_thread.run_sync(self._results.publish, batch)
                for job_id in done:
                    self._trouble.pop(job_id, None)
                    self._published(job_id)
                for job_id, error in refused.items():
                    log.error("job.not_published", id=job_id, error=str(error), retry_seconds=RETRY_SECONDS)
                    self._trouble[job_id] = f"{job_id} is finished but cannot be put in its place: {error}"
                if refused:
                    tasks.start_soon(self._later, [publication for publication in batch if publication.id in refused])

    async def _later(self, publications: Sequence[Publication]) -> None:
        await anyio.sleep(RETRY_SECONDS)
        self._pile.add(*publications)
