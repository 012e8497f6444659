"""What a new life makes of the jobs that the earlier one left.

Rules: pure, as ``machine`` is: every process of the earlier life is dead by now, or set aside as alive. This module
must not know the store, and carries nothing out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from .events import Effect, Event, Exited, Lost, Publish, Resumed
from .model import TERMINAL, Batch, Cause, Demand, ExitFacts, Job, JobSpec, State
from .world import World


def take_up(
    world: World,
    jobs: Sequence[Job],
    batches: Mapping[str, Batch],
    demand_of: Callable[[JobSpec, Batch | None], Demand],
    alive: Collection[str],
    interruptions_max: int,
    now: float,
    now_us: int,
) -> tuple[list[Effect], list[Event]]:
    """Put the jobs back into an empty world; returns what follows, and what is to happen to those interrupted.

    ``jobs`` are in the order of ``seq``, ``batches`` theirs, ``alive`` the tokens of attempts that would not die;
    ``now`` is monotonic seconds, ``now_us`` UTC microseconds.
    """
    open_ids = {job.id for job in jobs if job.state not in TERMINAL}
    effects: list[Effect] = []
    interrupted: list[Event] = []
    for job in jobs:
        batch = batches.get(job.spec.batch or "")
        unmet = frozenset(job.spec.after) & open_ids if job.state is State.QUEUED else frozenset()
        lives = job.attempt is not None and job.attempt.token in alive
        demand = demand_of(job.spec, batch)
        effects += restore(world, job, demand, unmet, now, alive=lives, batch=batch)
        if job.state is State.RUNNING and lives:
            facts = ExitFacts(None, None, now_us, unkillable=True)
            interrupted.append(Exited(job.id, job.current.token, facts, now_us))
        elif job.state is State.RUNNING:
            interrupted.append(Lost(job.id, job.current.token, interruptions_max, now_us))
        elif job.state is State.COLLECTING:
            interrupted.append(Resumed(job.id, job.current.token, interruptions_max, now_us))
    return effects, interrupted


def homeless(jobs: Sequence[Job], configured: Collection[str]) -> dict[str, int]:
    """How many jobs wait for each solver that is not configured any more."""
    counts: dict[str, int] = {}
    for job in jobs:
        if job.state not in TERMINAL and job.spec.solver not in configured:
            counts[job.spec.solver] = counts.get(job.spec.solver, 0) + 1
    return dict(sorted(counts.items()))


def restore(
    world: World,
    job: Job,
    demand: Demand,
    unmet: frozenset[str],
    now: float,
    *,
    alive: bool = False,
    batch: Batch | None = None,
) -> list[Effect]:
    """Put a recorded job back into an empty world at start, in order of ``seq``.

    A running job comes back holding its room, for the engine to send it ``Lost``, a collecting one for ``Resumed``; a
    job that rested starts its rest anew with the seconds it still owes. ``alive``: processes of its last attempt would
    not die, so a finished job keeps its room and its folder until they do.
    """
    world.demands[job.id] = demand
    if batch is not None:
        world.join(job, batch)
    world.adopt(job)
    world.next_seq = max(world.next_seq, job.seq + 1)
    if job.state is State.RUNNING:
        world.hold(job.id)
    elif job.state in TERMINAL:
        if not alive or job.cause is not Cause.UNKILLABLE:
            return [Publish(job.id)]
        world.hold(job.id)
    elif unmet:
        world.wait_for(job, unmet)
    elif job.backoff_seconds > 0:
        world.wait_until(job, now + job.backoff_seconds)
    elif job.state is State.QUEUED:
        world.enqueue(job)
    return []
