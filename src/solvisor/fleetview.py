"""The warm servers as people see them: one line for each server and solver, and what is wrong with them.

Rules: pure functions; ``now`` is monotonic seconds. What a server is for, and why a job waits, is told in ``answers``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from .manifest import rfc3339
from .model import Limits, PoolRule, Reason, Server, ServerState
from .provision import servers_most
from .scheduler import admit
from .views import PoolRow, PoolState, PoolView, ServerRow
from .world import PoolFacts, World

MISSES_TOLD: Final = 3
"""So many servers in a row that came to nothing while jobs wait are a problem, whoever is at fault."""

_GONE: Final = PoolRule(0, 0, None, None, None, None, (), 0, 0.0)
"""What holds for the servers of a solver that may have none any more."""


def servers(world: World, limits: Limits, now: float) -> tuple[PoolView, ...]:
    """All warm servers, by their solvers; also those solvers that have none just now."""
    return tuple(pool(world, limits, solver, now) for solver in _with_servers(world, limits))


def pool(world: World, limits: Limits, solver: str, now: float) -> PoolView:
    """The warm servers of ``solver``, which is one that may have some; the oldest first."""
    rule, facts = limits.pools.get(solver, _GONE), facts_of(world, solver)
    own = sorted(_servers_of(world, solver), key=lambda server: server.born)
    licenses: Counter[str] = Counter()
    for server in own:
        licenses.update(dict(server.licenses))
    rests = facts.rests_until if pool_state(facts, now) == "backoff" else None
    return PoolView(
        **_pool_row(world, limits, solver, now),
        min=rule.min,
        max=rule.max,
        scale=facts.scale,
        rests_seconds=None if rests is None else rests - now,
        licenses=dict(licenses),
        servers=tuple(_server(server, now) for server in own),
    )


def pool_rows(world: World, limits: Limits, now: float) -> tuple[PoolRow, ...]:
    """The solvers that have warm servers, a line each."""
    return tuple(PoolRow(**_pool_row(world, limits, solver, now)) for solver in _with_servers(world, limits))


def server_problems(world: World, limits: Limits) -> list[str]:
    """Sentences about what is wrong with warm servers, and what to do."""
    problems = []
    for solver in sorted(limits.pools):
        facts = facts_of(world, solver)
        if facts.failed:
            problems.append(
                f"the servers of {solver} failed {len(facts.ends)} times in a row: {facts.error}; "
                f"correct it, then solvisor servers restart {solver}"
            )
        elif facts.misses >= MISSES_TOLD and (waiting := _waiting_for_server(world, limits, solver)):
            problems.append(
                f"{jobs_wait(waiting)} for a server of {solver}, and {facts.misses} in a row came to nothing: "
                f"{facts.error}; it is tried again and again"
            )
    stuck = (server for server in world.servers.values() if server.stuck)
    text = "the processes of {} (pid {}) would not die; its port and licenses stay taken until they do"
    return [*problems, *(text.format(server.name, server.pid) for server in stuck)]


def _pool_row(world: World, limits: Limits, solver: str, now: float) -> dict[str, Any]:
    rule, facts = limits.pools.get(solver, _GONE), facts_of(world, solver)
    own = _servers_of(world, solver)
    states = Counter(server.state for server in own)
    wanted = max(rule.min, world.used.servers[solver]) if facts.scale is None else facts.scale
    most = servers_most(limits, solver, facts.scale) if solver in limits.pools else 0
    return {
        "solver": solver,
        "state": pool_state(facts, now),
        "wanted": 0 if world.draining else min(wanted, most),
        "starting": states[ServerState.STARTING],
        "up": sum(server.pid is not None for server in own),
        "ready": states[ServerState.READY] + states[ServerState.BUSY],
        "busy": states[ServerState.BUSY],
        "most": most,
        "waiting": _waiting_for_server(world, limits, solver),
        "failures": len(facts.ends),
        "error": facts.error,
    }


def pool_state(facts: PoolFacts, now: float) -> PoolState:
    """Whether more of them are started."""
    if facts.failed:
        return "failed"
    return "backoff" if facts.rests_until is not None and facts.rests_until > now else "ok"


def _waiting_for_server(world: World, limits: Limits, solver: str) -> int:
    if world.draining or None in world.pauses or solver in world.pauses:
        return 0
    return sum(
        len(queue)
        for demand, queue in world.ready.items()
        if demand.solver == solver and any(w.reason is Reason.SERVER for w in admit(demand, world.used, limits))
    )


def _with_servers(world: World, limits: Limits) -> list[str]:
    """The solvers that may have warm servers, and those whose last ones are still ending."""
    return sorted({*limits.pools, *(server.solver for server in world.servers.values())})


def facts_of(world: World, solver: str) -> PoolFacts:
    """What went wrong with its servers, and what people want of them."""
    return world.pools.get(solver) or PoolFacts()


def _servers_of(world: World, solver: str) -> list[Server]:
    return [server for server in world.servers.values() if server.solver == solver]


def _server(server: Server, now: float) -> ServerRow:
    whys = [server.why, "its processes would not die" if server.stuck else None]
    return ServerRow(
        name=server.name,
        solver=server.solver,
        state=server.state,
        port=server.port,
        pid=server.pid,
        jobs=server.jobs,
        job=server.job,
        rss_bytes=server.rss_bytes,
        started=rfc3339(server.started_us),
        ready_seconds=server.ready_seconds,
        age_seconds=max(0.0, now - server.born),
        in_state_seconds=max(0.0, now - server.since),
        why="; ".join(filter(None, whys)) or None,
    )


def jobs_wait(count: int) -> str:
    """How many, with its verb."""
    return "1 job waits" if count == 1 else f"{count} jobs wait"
