"""Every transition of a warm server: what may happen in which state, and what follows.

Theory: like ``machine``, of which this is the smaller sister: ``TABLE`` says which states may come next; what it does
not name raises ``IllegalEvent`` and changes nothing. Servers are told apart by name, and a name is never given twice,
so news of one that is gone is passed over. A server that ends although nobody wanted it to is a failure of its solver's
pool: the next start rests a while, twice as long each time, and too many failures with no job served between end in
``failed``, until somebody restarts the pool. One that dies over a job is held against the job first.

Rules: no I/O, no clock (instants come in with the event). Which servers are *wise* to have is the scheduler's business.
Servers live in memory alone: no server outlives its daemon.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from .errors import IllegalEvent
from .events import (
    Condemn,
    Retire,
    ServerEnded,
    ServerEvent,
    ServerFree,
    ServerLent,
    ServerReady,
    ServerSeen,
    ServerStuck,
    ServerUp,
    ServerWanted,
    StartServer,
    StopServer,
)
from .model import PoolRule, Server, ServerState
from .world import World

FIRST_REST_SECONDS = 0.1
"""The rest after the first failure; it doubles each time."""

LONGEST_REST_SECONDS = 60.0

KILLERS_MAX = 20
"""So many different jobs may end their servers with no job served between; then it is the servers that are broken."""

ServerEffect = StartServer | StopServer

STARTING, READY, BUSY = ServerState.STARTING, ServerState.READY, ServerState.BUSY
DRAINING, STOPPING = ServerState.DRAINING, ServerState.STOPPING

TABLE: dict[tuple[ServerState | None, type[ServerEvent]], frozenset[ServerState | None]] = {
    (None, ServerWanted): frozenset({STARTING}),
    (STARTING, ServerUp): frozenset({STARTING}),
    (STARTING, ServerReady): frozenset({READY}),
    (READY, ServerLent): frozenset({BUSY}),
    (READY, ServerSeen): frozenset({READY}),
    (BUSY, ServerSeen): frozenset({BUSY}),
    (BUSY, ServerFree): frozenset({READY, STOPPING}),
    (BUSY, Retire): frozenset({DRAINING}),
    (DRAINING, ServerSeen): frozenset({DRAINING}),
    (DRAINING, ServerFree): frozenset({STOPPING}),
    (STOPPING, ServerUp): frozenset({STOPPING}),
    (STOPPING, ServerReady): frozenset({STOPPING}),
    (STOPPING, ServerFree): frozenset({STOPPING}),
    (STOPPING, ServerSeen): frozenset({STOPPING}),
    (STOPPING, ServerStuck): frozenset({STOPPING}),
    **{(state, Retire): frozenset({STOPPING}) for state in (STARTING, READY, STOPPING)},
    (DRAINING, Retire): frozenset({DRAINING}),
    **{(state, Condemn): frozenset({STOPPING}) for state in (STARTING, READY, BUSY, DRAINING, STOPPING)},
    **{(state, ServerEnded): frozenset({None}) for state in (STARTING, READY, BUSY, DRAINING, STOPPING)},
}


def apply(world: World, rules: dict[str, PoolRule], event: ServerEvent) -> list[ServerEffect]:
    """Let ``event`` happen and return what follows from it. News of a server that is gone changes nothing.

    Raises ``IllegalEvent`` and changes nothing where the table has no entry.
    """
    server = world.servers.get(event.name)
    if server is None and not isinstance(event, ServerWanted):
        return []
    state = server.state if server else None
    allowed = TABLE.get((state, type(event)))
    if allowed is None:
        raise IllegalEvent(f"{type(event).__name__} cannot happen to {event.name}, which is {state or 'unknown'}")
    effects: list[ServerEffect] = HANDLERS[type(event)](world, server, event, rules)
    after = world.servers.get(event.name)
    if (after.state if after else None) not in allowed:
        raise AssertionError(f"{type(event).__name__} took {event.name} from {state} to {after and after.state}")
    return effects


def restart(world: World, rule: PoolRule, solver: str) -> None:
    """Forget what went wrong with a solver's servers and the licenses they need, so that they may start at once."""
    world.refusals.grant(rule.licenses)
    _forget(world, solver)


def _forget(world: World, solver: str) -> None:
    pool = world.pool(solver)
    pool.ends, pool.misses, pool.rests_until, pool.failed, pool.error = [], 0, None, False, None
    pool.killers.clear()
    world.cap_servers(solver)


def _wanted(world: World, _: None, event: ServerWanted, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    server = Server(event.name, event.solver, STARTING, event.licenses, event.now, event.now, event.now_us)
    world.put_server(server)
    world.refusals.begin(event.licenses, event.name, event.now)
    return [StartServer(event.name)]


def _up(world: World, server: Server, event: ServerUp, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    world.put_server(replace(server, pid=event.pid, port=event.port))
    return []


def _ready(world: World, server: Server, event: ServerReady, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    world.refusals.grant(server.licenses)
    if server.state is STARTING:
        server = replace(server, state=READY, since=event.now)
    world.put_server(replace(server, port=event.port, ready_seconds=event.seconds))
    return []


def _lent(world: World, server: Server, event: ServerLent, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    world.put_server(replace(server, state=BUSY, job=event.job, since=event.now))
    return []


def _free(world: World, server: Server, event: ServerFree, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    served = replace(server, job=None, jobs=server.jobs + event.served, since=event.now)
    if event.served and not world.pool(server.solver).failed:
        _forget(world, server.solver)
    if server.state is BUSY and event.spent is None:
        world.put_server(replace(served, state=READY))
        return []
    world.put_server(replace(served, state=STOPPING, why=server.why or event.spent))
    return [StopServer(server.name)] if server.state is not STOPPING else []


def _seen(world: World, server: Server, event: ServerSeen, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    world.put_server(replace(server, rss_bytes=event.rss_bytes))
    return []


def _retire(world: World, server: Server, event: Retire, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    if server.state in (DRAINING, STOPPING):
        return []
    if server.state is BUSY:
        world.put_server(replace(server, state=DRAINING, why=event.why, since=event.now))
        return []
    world.put_server(replace(server, state=STOPPING, why=event.why, since=event.now))
    return [StopServer(server.name)]


def _condemn(world: World, server: Server, event: Condemn, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    if server.state is not STOPPING:
        world.put_server(replace(server, state=STOPPING, why=event.why, since=event.now))
    return []


def _stuck(world: World, server: Server, event: ServerStuck, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    world.put_server(replace(server, stuck=True))
    return []


def _ended(world: World, server: Server, event: ServerEnded, rules: dict[str, PoolRule]) -> list[ServerEffect]:
    world.drop_server(server.name)
    world.refusals.end_trial(server.name)
    if event.error is None:
        return []
    if event.denied:
        world.refusals.refuse(server.licenses, event.error, event.now)
    rule = rules.get(server.solver)
    if rule is None:  # its solver is not configured any more
        return []
    pool = world.pool(server.solver)
    pool.error = event.error
    if pool.rests_until is not None and event.now < pool.rests_until:
        return []  # others went down with it: that is one failure
    if event.over_job and server.job is not None and not event.blameless:
        # It came up and died over a job: more likely the job's fault than its own, unless no job goes well.
        pool.killers.add(server.job)
        pool.failed = pool.failed or len(pool.killers) > KILLERS_MAX
        pool.rests_until = event.now + FIRST_REST_SECONDS
        world.cap_servers(server.solver)
        return []
    if not event.blameless:
        pool.ends = [at for at in (*pool.ends, event.now) if at > event.now - rule.restarts_within_seconds]
        pool.failed = pool.failed or len(pool.ends) > rule.restarts
        world.cap_servers(server.solver)
    rest = min(LONGEST_REST_SECONDS, FIRST_REST_SECONDS * 2 ** min(pool.misses, 20))
    pool.misses += 1
    pool.rests_until = max(pool.rests_until or 0.0, event.now + rest)
    return []


HANDLERS: dict[type[ServerEvent], Callable[..., list[ServerEffect]]] = {
    ServerWanted: _wanted,
    ServerUp: _up,
    ServerReady: _ready,
    ServerLent: _lent,
    ServerFree: _free,
    ServerSeen: _seen,
    Retire: _retire,
    Condemn: _condemn,
    ServerStuck: _stuck,
    ServerEnded: _ended,
}
