"""What a new life makes of the jobs that the earlier one left.

Rules: pure, as ``machine`` is: every process of the earlier life is dead by now, or set aside as alive. This module
must not know the store, and carries nothing out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

from .events import Effect, Event, Exited, Lost, Publish, SetAside
from .model import TERMINAL, Batch, Cause, Demand, ExitFacts, Job, JobSpec, State
from .world import World


def take_up(
    world: World,
    jobs: Sequence[Job],
    unreadable: Mapping[str, str],
    batches: Mapping[str, Batch],
    demand_of: Callable[[JobSpec, Batch | None], Demand],
    alive: Collection[str],
    interruptions_max: int,
    now: float,
    now_us: int,
) -> tuple[list[Effect], list[Event]]:
    """Put jobs back into a new world; returns what follows, and what is to happen to those interrupted.

    ``jobs`` come in the order of ``seq``, one page after the other; ``unreadable`` says what of some of them cannot be
    read; ``batches`` are theirs, ``alive`` the tokens of
    attempts that would not die; ``now`` is monotonic seconds, ``now_us`` UTC microseconds. What is to happen must wait
    until all pages are there. Those that were being collected are for the engine to send ``Resumed``.
    """
    effects: list[Effect] = []
    interrupted: list[Event] = []
    for job in jobs:
        batch = batches.get(job.spec.batch or "")
        queued = job.state is State.QUEUED
        unmet = frozenset(filter(world.is_open, job.spec.after)) if queued else frozenset[str]()
        lives = job.attempt is not None and job.attempt.token in alive
        demand = demand_of(job.spec, batch)
        effects += restore(world, job, demand, unmet, now, alive=lives, batch=batch)
        if job.id in unreadable and job.state not in TERMINAL:
            text = (
                f"its row in the database cannot be read ({unreadable[job.id]}); it was kept, and the job set aside so "
                "that the others go on: submit its input again, and please report it"
            )
            interrupted.append(SetAside(job.id, "row", text, now_us))
        elif job.state is State.RUNNING and lives:
            facts = ExitFacts(None, None, now_us, unkillable=True)
            interrupted.append(Exited(job.id, job.current.token, facts, now_us))
        elif job.state is State.RUNNING:
            interrupted.append(Lost(job.id, job.current.token, interruptions_max, now_us))
    return effects, interrupted


def homeless(world: World, configured: Collection[str]) -> dict[str, int]:
    """How many jobs wait for each solver that is not configured any more."""
    solvers = Counter(world.demands[job.id].solver for job in world.jobs.values() if job.state not in TERMINAL)
    return {solver: count for solver, count in sorted(solvers.items()) if solver not in configured}


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
