"""Small builders for tests of the pure core: records with sensible values, and a job walked into any situation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from solvisor import fleet, machine
from solvisor.events import (
    Accept,
    BackoffOver,
    Cancel,
    DeadlinePassed,
    Dispatch,
    Effect,
    Exited,
    Gone,
    Judged,
    Launched,
    Lost,
    Published,
    Retire,
    ServerEnded,
    ServerFree,
    ServerLost,
    ServerReady,
    ServerUp,
    ServerWanted,
    Spawned,
    SpawnFailed,
)
from solvisor.fleet import ServerEffect
from solvisor.model import (
    Cause,
    Demand,
    ExitFacts,
    FileFact,
    Intake,
    Job,
    JobSpec,
    Limits,
    PoolRule,
    Retry,
    Server,
    Settings,
    Source,
    Usage,
    Verdict,
)
from solvisor.world import World

NOON_US = 1_769_860_800_000_000
"""2026-01-31T12:00:00Z."""

SECOND_US = 1_000_000
GIB = 1 << 30

OK = Verdict(None)
BAD = Verdict(Cause.EXIT, "exit_3", "the matrix is singular")


def make_demand(
    solver: str = "ccx",
    cpus: int = 1,
    memory_bytes: int = 0,
    licenses: tuple[tuple[str, int], ...] = (),
    batch: str | None = None,
    batch_jobs: int = 0,
    *,
    warm: bool = False,
) -> Demand:
    return Demand(solver, cpus, memory_bytes, licenses, batch, batch_jobs, warm)


WARM = make_demand("omc", warm=True)


def make_pool(**changes: Any) -> PoolRule:
    """Up to two servers that live for ever and hold nothing, unless told otherwise."""
    given: dict[str, Any] = {
        "min": 0,
        "max": 2,
        "idle_seconds": None,
        "recycle_jobs": None,
        "recycle_age_seconds": None,
        "recycle_rss_bytes": None,
        "licenses": (),
        "restarts": 5,
        "restarts_within_seconds": 300.0,
    }
    return PoolRule(**(given | changes))


def make_limits(
    max_jobs: int = 4,
    cpus: int = 8,
    memory_bytes: int = 16 * GIB,
    licenses: dict[str, int] | None = None,
    solver_jobs: dict[str, int | None] | None = None,
    interruptions_max: int = 3,
    pools: dict[str, PoolRule] | None = None,
) -> Limits:
    pools = pools or {}
    solvers: dict[str, int | None] = solver_jobs or {"ccx": None, **dict.fromkeys(pools)}
    return Limits(max_jobs, cpus, memory_bytes, interruptions_max, licenses or {}, solvers, pools)


def make_spec(job_id: str, **changes: Any) -> JobSpec:
    given: dict[str, Any] = {
        "name": job_id,
        "solver": "ccx",
        "primary": "beam.inp",
        "inputs": (FileFact("input/beam.inp", 120, "ab" * 32),),
        "source": Source("inbox", "beam.inp"),
    }
    return JobSpec(**(given | changes))


def make_intake(job_id: str, refusal: tuple[str, str] | None = None, **changes: Any) -> Intake:
    return Intake(job_id, make_spec(job_id, **changes), refusal)


def make_settings(retry: Retry | None = None, timeout_seconds: float | None = None) -> Settings:
    table = {"command": ["ccx", "-i", "{stem}"]}
    return Settings("command", table, "2.20", timeout_seconds, 1, 2 * GIB, {}, retry or Retry())


def make_facts(
    exit_code: int | None = 0, *, stopped: bool = False, unkillable: bool = False, at_us: int = NOON_US + 5 * SECOND_US
) -> ExitFacts:
    if unkillable:
        return ExitFacts(None, None, at_us, stopped=True, unkillable=True)
    if stopped:
        return ExitFacts(None, 15, at_us, stopped=True)
    return ExitFacts(exit_code, None, at_us, Usage(1.5, 0.25, 64 << 20, "sampled"))


def snapshot(world: World) -> dict[str, Any]:
    """Everything a world holds, to compare before and after."""
    ready = {demand: list(queue) for demand, queue in world.ready.items()}
    refusals = vars(world.refusals)
    return copy.deepcopy({**vars(world), "ready": ready, "changed": list(world.changed), "refusals": refusals})


class Story:
    """A world and short words for what happens in it. Each returns the effects. Tokens are ``<id>#<n>``."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or World()
        self.now = 1000.0
        self.now_us = NOON_US

    def job(self, job_id: str) -> Job:
        return self.world.jobs[job_id]

    def token(self, job_id: str) -> str:
        return f"{job_id}#{len(self.job(job_id).attempts)}"

    def accept(
        self,
        job_id: str,
        demand: Demand | None = None,
        *,
        after: Sequence[str] = (),
        failed_dependency: str | None = None,
        **changes: Any,
    ) -> list[Effect]:
        intake = make_intake(job_id, after=tuple(after), **changes)
        event = Accept(job_id, intake, demand or make_demand(), frozenset(after), failed_dependency, self.now_us)
        return machine.apply(self.world, event)

    def dispatch(self, job_id: str, settings: Settings | None = None) -> list[Effect]:
        """As the engine does it: a job that needs a warm server gets the idle one that served last."""
        token = f"{job_id}#{len(self.job(job_id).attempts) + 1}"
        demand = self.world.demands[job_id]
        server = self.world.idle_servers(demand.solver)[-1].name if demand.warm else None
        settings = settings or make_settings()
        settings = replace(settings, licenses=settings.licenses or dict(demand.licenses))
        event = Dispatch(job_id, token, "ws1", settings, self.now_us, server, self.now)
        return machine.apply(self.world, event)

    def spawned(self, job_id: str) -> list[Effect]:
        argv = ("ccx", "-i", "beam")
        return machine.apply(self.world, Spawned(job_id, self.token(job_id), argv, 4242, 99, "boot", self.now))

    def launched(self, job_id: str) -> list[Effect]:
        return machine.apply(self.world, Launched(job_id, self.token(job_id), ("client", "beam"), 4343, 100))

    def server_lost(self, job_id: str, *, reached: bool = True) -> list[Effect]:
        event = ServerLost(job_id, self.token(job_id), reached, "omc-1 was ended by SIGSEGV", self.now, self.now_us)
        return machine.apply(self.world, event)

    def lose_server(self, job_id: str) -> None:
        """Its server dies of it, and its rest is over."""
        self.server_lost(job_id)
        self.backoff_over(job_id)

    def spawn_failed(self, job_id: str) -> list[Effect]:
        text = "ccx is not installed"
        event = SpawnFailed(job_id, self.token(job_id), "no_program", text, self.now, self.now_us)
        return machine.apply(self.world, event)

    def deadline_passed(self, job_id: str) -> list[Effect]:
        return machine.apply(self.world, DeadlinePassed(job_id, self.token(job_id)))

    def exited(self, job_id: str, facts: ExitFacts | None = None) -> list[Effect]:
        return machine.apply(self.world, Exited(job_id, self.token(job_id), facts or make_facts(), self.now_us))

    def judged(self, job_id: str, verdict: Verdict = OK) -> list[Effect]:
        return machine.apply(self.world, Judged(job_id, self.token(job_id), verdict, self.now, self.now_us))

    def lost(self, job_id: str, interruptions_max: int = 3) -> list[Effect]:
        return machine.apply(self.world, Lost(job_id, self.token(job_id), interruptions_max, self.now_us))

    def gone(self, job_id: str) -> list[Effect]:
        return machine.apply(self.world, Gone(job_id, self.token(job_id)))

    def backoff_over(self, job_id: str) -> list[Effect]:
        return machine.apply(self.world, BackoffOver(job_id))

    def cancel(self, job_id: str) -> list[Effect]:
        return machine.apply(self.world, Cancel(job_id, self.now_us))

    def published(self, job_id: str) -> list[Effect]:
        self.world.take_changes()
        return machine.apply(self.world, Published(job_id))

    def start(self, job_id: str, settings: Settings | None = None) -> None:
        """Dispatched, and its process exists."""
        self.dispatch(job_id, settings)
        self.spawned(job_id)

    def run(self, job_id: str, verdict: Verdict = OK, settings: Settings | None = None) -> list[Effect]:
        """From the queue to the verdict; the effects are those of the verdict."""
        self.start(job_id, settings)
        self.exited(job_id)
        return self.judged(job_id, verdict)

    # --- warm servers -----------------------------------------------------------------------------------------------

    def server(self, name: str) -> Server:
        return self.world.servers[name]

    def want_server(self, solver: str = "omc", licenses: tuple[tuple[str, int], ...] = ()) -> str:
        """One more server of ``solver``, which starts; its name."""
        pool = self.world.pool(solver)
        pool.last += 1
        name = f"{solver}-{pool.last}"
        fleet.apply(self.world, {}, ServerWanted(name, solver, licenses, self.now, self.now_us))
        return name

    def start_server(self, solver: str = "omc", licenses: tuple[tuple[str, int], ...] = ()) -> str:
        """One more server of ``solver``, which is ready; its name."""
        name = self.want_server(solver, licenses)
        fleet.apply(self.world, {}, ServerUp(name, 5151, 27501))
        fleet.apply(self.world, {}, ServerReady(name, 27501, 0.5, self.now))
        return name

    def free(self, name: str, spent: str | None = None) -> list[ServerEffect]:
        """Its job is over for the server, whatever became of it."""
        return fleet.apply(self.world, {}, ServerFree(name, True, spent, self.now))

    def retire(self, name: str, why: str = "no job for it") -> list[ServerEffect]:
        return fleet.apply(self.world, {}, Retire(name, why, self.now))

    def server_ended(
        self,
        name: str,
        error: str | None = None,
        *,
        blameless: bool = False,
        denied: bool = False,
        over_job: bool = False,
        rule: PoolRule | None = None,
    ) -> None:
        rules = {self.server(name).solver: rule or make_pool()}
        fleet.apply(self.world, rules, ServerEnded(name, error, blameless, self.now, denied, over_job))
