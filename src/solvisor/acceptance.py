"""Drops and submissions become jobs: what they have to do with others, their key, what they wait for, their batch.

Rules: what the world does not know the store is asked, within the engine's own pass. Whether a drop by itself can be a
job was decided before; what changes is applied by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog
from msgspec.structs import replace

from .clock import now_us
from .config import Config
from .errors import Refused
from .events import Accept, Event
from .model import TERMINAL, Batch, Demand, Intake, Job, JobSpec, State
from .spool import NotDurable, Results
from .store import InStore
from .world import World

STEPS_AT_ONCE = 200
"""So many steps of one piece of work are taken before others may look at the world."""

DEMANDS_SHARED = 1024
"""Of so many different demands, those that are equal are one record."""

log = structlog.get_logger()


class Acceptance:
    """Makes intakes events of the engine, by ``config``, the configuration in force; ``apply`` takes the events."""

    def __init__(self, config: Config, world: World, results: Results, in_store: InStore) -> None:
        self.config = config
        self._world = world
        self._results = results
        self._in_store = in_store

    async def accept(self, intakes: Sequence[Intake], apply: Callable[[Event], None]) -> None:
        """Make drops jobs, or refused ones."""
        for intake in intakes:
            apply(await self.event(intake))

    async def submit(self, intake: Intake, apply: Callable[[Event], None]) -> None:
        """Make a submission a job. Raises ``Refused``: there is no job."""
        acceptance = await self.event(intake)
        if acceptance.intake.refusal is not None:
            raise Refused(*acceptance.intake.refusal)
        batch = acceptance.batch
        if batch is not None and batch.closed:
            raise Refused("batch_closed", f"the batch {batch.id} is closed; open another one")
        apply(acceptance)

    async def adopt(self, intakes: Sequence[Intake], apply: Callable[[Event], None]) -> None:
        """Accept claims without a row. A submission is refused as it would have been: nothing of it is left."""
        for number, intake in enumerate(intakes, 1):
            await self._adopt(intake, apply)
            if number % STEPS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()

    async def _adopt(self, intake: Intake, apply: Callable[[Event], None]) -> None:
        if intake.spec.source.via == "inbox":
            await self.accept([intake], apply)
            return
        try:
            await self.submit(intake, apply)
        except Refused as refused:
            log.info("submission.withdrawn", id=intake.id, error=str(refused))
            await self._withdraw(intake.id)

    async def _withdraw(self, job_id: str) -> None:
        try:
            await anyio.to_thread.run_sync(self._results.withdraw, job_id)
        except NotDurable:
            raise
        except OSError as error:
            log.error("submission.not_withdrawn", id=job_id, error=str(error), text="the next start tries again")

    async def event(self, intake: Intake) -> Accept:
        """The event that makes ``intake`` a job, or a refused one."""
        spec, refusal = intake.spec, intake.refusal
        again = "drop" if spec.source.via == "inbox" else "submit"
        if spec.key is not None and refusal is None:
            other = await self._job_of_key(spec.key)
            if other is not None:
                refusal = ("key", f"the key {spec.key!r} belongs to {other} already; {again} it with another key")
        unmet: set[str] = set()
        failed_dependency = None
        if refusal is None and spec.after:
            states = await self._states(spec.after)
            for other in spec.after:
                state = states.get(other)
                if state is None:
                    text = f"after names {other!r}, and no job has that id; correct it and {again} it again"
                    refusal = ("after", text)
                elif state not in TERMINAL:
                    unmet.add(other)
                elif state is not State.SUCCEEDED:
                    failed_dependency = other
        if refusal is not None:
            spec = replace(spec, key=None)
        batch = None if spec.batch is None else await self.batch(spec.batch)
        if batch is None and spec.batch is not None:  # an adopted claim: the power went before the batch was durable
            spec = replace(spec, batch=None)
        if spec is not intake.spec or refusal is not intake.refusal:
            intake = replace(intake, spec=spec, refusal=refusal)
        demand = self.demand(spec, batch)
        return Accept(intake.id, intake, demand, frozenset(unmet), failed_dependency, now_us(), batch)

    async def batch(self, batch_id: str) -> Batch | None:
        """A batch as it is now."""
        known = self._world.batches.get(batch_id)
        return known or await self._in_store(lambda store: store.batch(batch_id))

    def demand(self, spec: JobSpec, batch: Batch | None) -> Demand:
        """What ``spec`` occupies; of a solver that is not configured (any more), a demand that admission refuses."""
        return self._demand(self.config, spec, batch)

    def demands(self, config: Config, jobs: Sequence[Job]) -> dict[str, Demand]:
        """What live jobs would occupy by another configuration, by their ids."""
        batches = self._world.batches
        return {job.id: self._demand(config, job.spec, batches.get(job.spec.batch or "")) for job in jobs}

    def _demand(self, config: Config, spec: JobSpec, batch: Batch | None) -> Demand:
        demand = config.demand(spec) or Demand(spec.solver, 1, 0)
        if batch is not None and batch.max_jobs is not None:
            demand = replace(demand, batch=batch.id, batch_jobs=batch.max_jobs)
        return _shared(demand)

    async def _job_of_key(self, key: str) -> str | None:
        return self._world.keys.get(key) or await self._in_store(lambda store: store.id_of_key(key))

    async def _states(self, ids: Sequence[str]) -> dict[str, State]:
        recorded = await self._in_store(lambda store: store.states(ids))
        return recorded | {i: self._world.jobs[i].state for i in ids if i in self._world.jobs}


@lru_cache(maxsize=DEMANDS_SHARED)
def _shared(demand: Demand) -> Demand:
    return demand
