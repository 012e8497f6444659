"""Which warm servers to start and which to end.

Rules: pure; ``now`` is monotonic seconds. One ``Provision`` lives for one plan. Servers are started for the jobs at the
head of the order and up to ``min``; never more than ``max``, nor more than could work at once, nor while their pool
rests or has failed. A license that the next job or server waits for is kept free by ending servers that have nothing to
do. Who of the jobs comes first is the scheduler's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .model import Limits, PoolRule, Server, ServerState
from .world import Used, World


def servers_most(limits: Limits, solver: str, scale: int | None) -> int:
    """How many servers of a solver there may be: as configured or scaled, and no more than there are licenses for."""
    rule = limits.pools[solver]
    seats = (limits.licenses.get(name, 0) // count for name, count in rule.licenses)
    return min([rule.max if scale is None else scale, *seats])


class Provision:
    """What one plan decides about servers: ``starts`` names solvers, ``retire`` servers with the reason.

    ``used`` is the plan's own copy; what is started here is added to it.
    """

    def __init__(self, world: World, limits: Limits, used: Used, now: float) -> None:
        self.starts: list[str] = []
        self.retire: dict[str, str] = {}
        self._world = world
        self._limits = limits
        self._used = used
        self._now = now
        self._wakes: list[float] = []
        for server in world.servers.values():
            self._age(server)

    def _age(self, server: Server) -> None:
        """Retire what has served its time, and note when the next one will have."""
        rule = self._limits.pools.get(server.solver)
        if rule is None or server.state is not ServerState.READY:
            return
        why = None
        if rule.recycle_jobs is not None and server.jobs >= rule.recycle_jobs:
            why = f"recycled after {server.jobs} jobs"
        if rule.recycle_rss_bytes is not None and (server.rss_bytes or 0) > rule.recycle_rss_bytes:
            why = "recycled for its memory"
        if rule.recycle_age_seconds is not None:
            old_at = server.born + rule.recycle_age_seconds
            if old_at <= self._now:
                why = "recycled for its age"
            else:
                self._wakes.append(old_at)
        if why is not None:
            self._end(server, why)

    def _end(self, server: Server, why: str) -> None:
        if server.name in self.retire:
            return
        self.retire[server.name] = why
        self._used.servers[server.solver] -= 1
        if server.state is ServerState.READY:
            self._used.idle[server.solver] -= 1
        elif self._used.coming[server.solver] > 0:
            self._used.coming[server.solver] -= 1

    # --- for the next job in the order ------------------------------------------------------------------------------

    def lend(self, solver: str) -> None:
        """A job of this plan takes an idle server."""
        self._used.idle[solver] -= 1

    def cover(self, solver: str, promised: set[str]) -> bool:
        """Whether a server for one more job is on its way, or is started now.

        Where a license is missing for that, it is ``promised``: kept for this server.
        """
        if self._used.coming[solver] > 0:
            self._used.coming[solver] -= 1
        elif not self._start(solver, promised):
            return False
        return True

    def _start(self, solver: str, promised: set[str]) -> bool:
        pool = self._world.pool(solver)
        resting = pool.rests_until is not None and pool.rests_until > self._now
        if pool.failed or resting or self._used.present[solver] >= self._maximum(solver):
            return False
        licenses = self._limits.pools[solver].licenses
        if any(count > self._limits.licenses.get(name, 0) for name, count in licenses):
            return False  # nothing is kept for what can never be
        missing = {name for name, count in licenses if self._missing(name, count) > 0}
        if missing or promised & {name for name, _ in licenses}:
            promised |= missing
            return False
        self.starts.append(solver)
        self._used.servers[solver] += 1
        self._used.present[solver] += 1
        for name, count in licenses:
            self._used.licenses[name] += count
        self._used.resting |= {name for name, _ in licenses if self._world.refusals.wants_trial(name)}
        return True

    def _missing(self, name: str, count: int) -> int:
        if name in self._used.resting:
            return count
        return self._used.licenses[name] + count - self._limits.licenses.get(name, 0)

    # --- once all jobs were looked at -------------------------------------------------------------------------------

    def finish(self, needed: dict[str, int], promised: set[str], *, draining: bool) -> None:
        """Make room for what waits, start up to ``min``, end what is idle too long.

        ``needed`` says of each promised license how many more of it somebody waits for.
        """
        if draining:
            for server in self._in_state(ServerState.READY, ServerState.STARTING):
                self._end(server, "the daemon stops")
            return
        for name in sorted(promised):
            self._give_way(name, needed.get(name, 0))
        for solver, rule in self._limits.pools.items():
            while self._used.servers[solver] < self._minimum(solver) and not self._is_paused(solver):
                if not self._start(solver, promised):
                    break
            self._shrink(solver, rule)

    def _is_paused(self, solver: str) -> bool:
        """Whether nothing of a solver is started, whoever wants it."""
        world = self._world
        return None in world.pauses or solver in world.pauses or world.no_room is not None or world.wary

    def _give_way(self, name: str, needed: int) -> None:
        """End idle servers that hold a license somebody waits for, the longest idle first; if that helps him now."""
        ending = [s for s in self._world.servers.values() if s.state is ServerState.STOPPING]
        ending += [self._world.servers[retired] for retired in self.retire]
        coming_free = sum(dict(server.licenses).get(name, 0) for server in ending if not server.stuck)
        holders = [(server, held) for server in self._unused() if (held := dict(server.licenses).get(name, 0))]
        if coming_free + sum(held for _, held in holders) < needed:
            return
        for server, held in holders:
            if coming_free >= needed:
                break
            self._end(server, f"another job waits for the license {name}")
            coming_free += held

    def _shrink(self, solver: str, rule: PoolRule) -> None:
        """End servers above ``min`` that had no job for too long, and those that a person has too many of."""
        scale, least = self._world.pool(solver).scale, self._minimum(solver)
        if scale is not None:
            starting = [s for s in self._in_state(ServerState.STARTING) if s.solver == solver]
            for server in [*starting, *self._unused_of(solver)]:
                if self._used.servers[solver] > scale:
                    self._end(server, f"scaled to {scale}")
            return
        if rule.idle_seconds is None or self._used.servers[solver] <= least:
            return
        for server in self._unused_of(solver):
            if self._used.servers[solver] <= least:
                return
            idle_at = server.since + rule.idle_seconds
            if idle_at <= self._now:
                self._end(server, "no job for it")
            else:
                self._wakes.append(idle_at)

    def _unused(self) -> list[Server]:
        """Idle servers that no job of this plan takes, the longest idle first: the latest ones are taken first."""
        unused = [server for solver in self._limits.pools for server in self._unused_of(solver)]
        return sorted(unused, key=lambda server: server.since)

    def _unused_of(self, solver: str) -> list[Server]:
        idle = [server for server in self._world.idle_servers(solver) if server.name not in self.retire]
        return idle[: self._used.idle[solver]]

    def _in_state(self, *states: ServerState) -> Iterator[Server]:
        for server in list(self._world.servers.values()):
            if server.state in states and server.name not in self.retire:
                yield server

    def _minimum(self, solver: str) -> int:
        scale = self._world.pool(solver).scale
        return self._limits.pools[solver].min if scale is None else scale

    def _maximum(self, solver: str) -> int:
        scale = self._world.pool(solver).scale
        return self._limits.pools[solver].max if scale is None else scale

    def wakes(self) -> Iterable[float]:
        """The instants at which time alone may change something."""
        wakes = self._wakes
        for pool in self._world.pools.values():
            if pool.rests_until is not None and pool.rests_until > self._now:
                wakes.append(pool.rests_until)
        return wakes
