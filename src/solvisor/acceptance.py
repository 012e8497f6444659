"""What a claimed drop has to do with other jobs: the key it must not share, the jobs it waits for, its batch.

Rules: what the world does not know the store is asked, within the engine's own pass. Whether a drop by itself can be a
job was decided before; nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol, TypeVar

from msgspec.structs import replace

from .clock import now_us
from .config import Config
from .events import Accept
from .model import TERMINAL, Batch, Demand, Intake, JobSpec, State
from .store import Store
from .world import World

T = TypeVar("T")


class InStore(Protocol):
    """Has the store do something, and waits while it cannot."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """What ``work``, which blocks, returned."""
        ...


class Acceptance:
    """Makes intakes events of the engine."""

    def __init__(self, config: Config, world: World, store: Store, in_store: InStore) -> None:
        self._config = config
        self._world = world
        self._store = store
        self._in_store = in_store

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
        if refusal is None:
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
        intake = replace(intake, spec=spec, refusal=refusal)
        demand = self.demand(spec, batch)
        return Accept(intake.id, intake, demand, frozenset(unmet), failed_dependency, now_us(), batch)

    async def batch(self, batch_id: str) -> Batch | None:
        """A batch as it is now."""
        known = self._world.batches.get(batch_id)
        return known or await self._in_store(partial(self._store.batch, batch_id))

    def demand(self, spec: JobSpec, batch: Batch | None) -> Demand:
        """What ``spec`` occupies; of a solver that is not configured (any more), a demand that admission refuses."""
        demand = self._config.demand(spec) or Demand(spec.solver, 1, 0)
        if batch is not None and batch.max_jobs is not None:
            demand = replace(demand, batch=batch.id, batch_jobs=batch.max_jobs)
        return demand

    async def _job_of_key(self, key: str) -> str | None:
        for job in self._world.changed:
            if self._world.jobs[job].spec.key == key:
                return job
        return await self._in_store(partial(self._store.id_of_key, key))

    async def _states(self, ids: Sequence[str]) -> dict[str, State]:
        if not ids:
            return {}
        recorded = await self._in_store(partial(self._store.states, ids))
        return recorded | {i: self._world.jobs[i].state for i in ids if i in self._world.jobs}
