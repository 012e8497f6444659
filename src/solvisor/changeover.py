"""What another configuration means for the jobs and the warm servers that are there.

Jobs that wait ask for what it says from now on; those that run keep what they hold until they are over. Servers that it
has no place for are to end, each once it has no job.

Rules: pure, as ``machine`` is. This module must not know what a configuration looks like.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from . import fleet
from .model import Demand, Limits, Server, ServerState
from .world import World

_ENDING = frozenset({ServerState.DRAINING, ServerState.STOPPING})


def change_over(
    world: World, limits: Limits, demands: Mapping[str, Demand], changed: Collection[str], outdated: Collection[str]
) -> dict[str, str]:
    """Put ``limits`` in force; returns the servers to be retired with the reason.

    ``demands`` are what live jobs ask for now, by id. ``changed`` are the solvers that are configured otherwise: what
    people and failures said of their servers is over. Servers of those that are ``outdated`` are to be replaced.
    """
    world.set_demands(demands)
    for solver in world.pools.keys() & set(changed):
        world.set_scale(solver, None)
        if solver in limits.pools:
            fleet.restart(world, limits.pools[solver], solver)
    return surplus(world, limits, outdated)


def surplus(world: World, limits: Limits, outdated: Collection[str] = ()) -> dict[str, str]:
    """Servers that other limits have no place for, with the reason; they are to end once they have no job.

    Those of ``outdated`` solvers, and those for which the new limits leave no room: the idle ones first, then those
    that started last.
    """
    taken = Counter(world.used.licenses)
    left = Counter(server.solver for server in world.servers.values())
    retire: dict[str, str] = {}

    def end(server: Server, why: str) -> None:
        retire[server.name] = why
        left[server.solver] -= 1
        taken.subtract(dict(server.licenses))

    for server in world.servers.values():
        if server.state in _ENDING or server.solver in outdated:
            end(server, f"{server.solver} is configured otherwise now")
    order = (ServerState.READY, ServerState.STARTING, ServerState.BUSY)
    here = [server for server in world.servers.values() if server.name not in retire]
    for server in sorted(here, key=lambda server: (order.index(server.state), -server.born)):
        scale = world.pool(server.solver).scale
        most = limits.pools[server.solver].max if scale is None else scale
        scarce = [name for name, _ in server.licenses if taken[name] > limits.licenses[name]]
        if left[server.solver] > most:
            end(server, f"{server.solver} has at most {most} servers now")
        elif scarce:
            end(server, f"there are {limits.licenses[scarce[0]]} of the license {scarce[0]} now")
    return {name: why for name, why in retire.items() if world.servers[name].state not in _ENDING}
