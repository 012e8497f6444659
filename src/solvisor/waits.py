"""How many queued jobs wait for what: the one tally behind the status, the numbers for monitoring and the meter.

While nothing at all is started, all wait for that. Jobs of a paused solver that also rest or wait for others count as
doing that. Rules: pure; every queued job counts once. Cost is that of the distinct demands, and not of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .model import Limits, Reason, State
from .scheduler import reason_of_demand
from .world import World


class Waits(NamedTuple):
    """So many jobs of ``solver`` wait for the same; ``None``: of whatever solver, as without a walk that is not known.

    ``what`` is the license, solver or batch that the reason names.
    """

    solver: str | None
    reason: Reason
    what: str | None
    jobs: int


def waits(world: World, limits: Limits) -> Iterator[Waits]:
    """Who waits for what; none of them are no jobs."""
    queued = world.states[State.QUEUED]
    stands = world.draining or world.wary or None in world.pauses
    ready = 0
    for demand, queue in world.ready.items():
        if not queue:
            continue
        ready += len(queue)
        if stands:
            reason, what = Reason.PAUSED, None
        elif demand.solver in world.pauses:
            reason, what = Reason.PAUSED, demand.solver
        else:
            reason, what = reason_of_demand(world, limits, demand)
        yield Waits(demand.solver, reason, what, len(queue))
    parked, unmet = len(world.parked), len(world.unmet)
    # Every queued job waits in exactly one place.
    others = {Reason.PAUSED: parked, Reason.DEPENDENCY: unmet, Reason.BACKOFF: queued - ready - parked - unmet}
    if stands:
        others = {Reason.PAUSED: queued - ready}
    yield from (Waits(None, reason, None, jobs) for reason, jobs in others.items() if jobs > 0)
