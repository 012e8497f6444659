"""Attempts that ended, on their way to their verdicts: as many at a time as piled up share one set of fsyncs.

Rules: what is added here has its exit recorded. What the machine has no room to judge is tried again. No state is
changed here: verdicts are told to ``post``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

import anyio
from anyio.abc import TaskGroup

from . import failpoint
from .clock import now_us
from .collector import COLLECTING_THREADS, Collector
from .events import Event, Judged
from .model import Job
from .pile import Pile
from .trouble import RETRY_SECONDS

COLLECT_MAX = 64
"""Attempts collected under one set of fsyncs."""


class Collecting:
    """Has ``collector`` judge what attempts left."""

    def __init__(self, collector: Collector, post: Callable[[Event], None]) -> None:
        self.collector = collector
        self._post = post
        self._pile: Pile[Job] = Pile()
        self._tasks: TaskGroup

    def add(self, job: Job) -> None:
        """Have the last attempt of a job judged."""
        self._pile.add(job)

    def doubt(self, job_ids: Iterable[str]) -> None:
        """What an earlier life left of these may never reach the disk as it is."""
        self.collector.doubt(job_ids)

    async def run(self) -> None:
        """Judge until cancelled; it runs before anything else here is called."""
        async with anyio.create_task_group() as self._tasks:
            for _ in range(COLLECTING_THREADS):
                self._tasks.start_soon(self._work)
        raise AssertionError("collecting ended by itself")  # a task was cancelled by nobody

    async def _work(self) -> None:
        while True:
            await self.judge(await self._pile.take(COLLECT_MAX))

    async def judge(self, batch: Sequence[Job]) -> None:
        """Judge these now; those that the machine has no room for later, beside what else comes."""
        again: list[Job] = []
        for job, verdict in zip(batch, await self.collector.collect(batch), strict=True):
            if verdict is None:
                again.append(job)
                continue
            failpoint.reach("collect.judged")
            self._post(Judged(job.id, job.current.token, verdict, time.monotonic(), now_us()))
        if again:
            self._tasks.start_soon(self._later, again)

    async def _later(self, jobs: Sequence[Job]) -> None:
        await anyio.sleep(RETRY_SECONDS)
        self._pile.add(*jobs)
