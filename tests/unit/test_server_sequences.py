"""Any sequence of events among warm servers that share a license: what must hold, and that every job comes to its end.

Two solvers with warm servers and one of plain commands share one license. The rules play users, servers that start,
break, hang and die, and a clock; the engine's duties are played as it does them. At the end all servers obey, nobody
asks for anything, and the engine is woken by nothing but news and the instants its plans name: whatever is left over
then would have waited for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from builders import BAD, NOON_US, OK, SECOND_US, make_demand, make_facts, make_intake, make_limits, make_pool
from solvisor import fleet, machine, overrides, scheduler
from solvisor.changeover import change_over, surplus
from solvisor.events import (
    Accept,
    Cancel,
    Condemn,
    Dispatch,
    Event,
    Exited,
    Judged,
    Published,
    Retire,
    ServerEnded,
    ServerEvent,
    ServerFree,
    ServerLost,
    ServerReady,
    ServerSeen,
    ServerStuck,
    ServerUp,
    ServerWanted,
    Spawned,
    SpawnFailed,
    StartServer,
    StopServer,
)
from solvisor.model import (
    TERMINAL,
    Cause,
    Demand,
    Job,
    Override,
    Pause,
    PoolRule,
    Reason,
    Retry,
    Server,
    ServerState,
    Settings,
    State,
)
from solvisor.world import World

SEAT = (("seat", 1),)
SHORT_LIVES = {
    "omc": make_pool(max=2, idle_seconds=60.0, recycle_jobs=3, licenses=SEAT, restarts=3),
    "post": make_pool(min=1, max=2, recycle_age_seconds=300.0, recycle_rss_bytes=100, licenses=SEAT, restarts=2),
}
LONG_LIVES = {
    "omc": make_pool(max=2, licenses=SEAT, restarts=3),
    "post": make_pool(min=1, max=2, licenses=SEAT, restarts=2),
}
"""Nothing but another's need ends these."""

DEMANDS = [
    make_demand("omc", warm=True),
    make_demand("omc", cpus=2, warm=True),
    make_demand("post", warm=True),
    make_demand("ccx", licenses=SEAT),
    make_demand("ccx"),
    make_demand("ccx", cpus=4),
]
HOPELESS = [make_demand("ccx", licenses=(("seat", 9),)), make_demand("omc", cpus=5, warm=True)]

SETTINGS = Settings("server", {}, retry=Retry(1, (Cause.EXIT,), 2.0))

indices = st.integers(0, 1_000)
ERRORS = st.sampled_from([None, "it ended with exit code 3", "nothing was to be had"])

IN_SERVICE = {ServerState.STARTING, ServerState.READY, ServerState.BUSY}


class Servers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.limits = make_limits()
        self.now = 100.0
        self.accepted = 0
        self.gone: list[str] = []
        self.stopping: set[str] = set()
        self.wake_at: float | None = None
        self.immortal: list[str] = []
        self.taken = 0

    @initialize(
        seats=st.sampled_from([1, 1, 2]),
        post_max_jobs=st.sampled_from([None, 1]),
        pools=st.sampled_from([SHORT_LIVES, LONG_LIVES]),
    )
    def begin(self, seats: int, post_max_jobs: int | None, pools: dict[str, PoolRule]) -> None:
        own = {"ccx": None, "omc": None, "post": post_max_jobs}
        self.limits = self.base = self.configured = make_limits(
            3, 4, licenses={"seat": seats}, solver_jobs=own, pools=pools
        )
        self.asked: dict[str, Demand] = {}

    # --- the engine's part ------------------------------------------------------------------------------------------

    @property
    def now_us(self) -> int:
        return NOON_US + int(self.now * SECOND_US)

    def happen(self, *events: Event | ServerEvent) -> None:
        for event in events:
            if isinstance(event, Event):
                machine.apply(self.world, event)
                continue
            for effect in fleet.apply(self.world, self.limits.pools, event):
                match effect:
                    case StartServer():
                        assert self.world.servers[effect.name].state is ServerState.STARTING
                    case StopServer():
                        assert effect.name not in self.stopping, "asked to end twice"
                        self.stopping.add(effect.name)
        self.world.take_changes()

    @rule()
    def a_pass(self) -> None:
        """As the engine does it; afterwards there is nothing left to do at this instant."""
        self.happen(*scheduler.due(self.world, self.now))
        plan = scheduler.plan(self.world, self.limits, self.now)
        for name, why in plan.retire:
            self.happen(Retire(name, why, self.now))
        for job_id in plan.starts:
            demand = self.world.demands[job_id]
            server = self.world.idle_servers(demand.solver)[-1].name if demand.warm else None
            token = f"{job_id}#{len(self.world.jobs[job_id].attempts) + 1}"
            self.happen(Dispatch(job_id, token, "ws1", SETTINGS, self.now_us, server, self.now))
        for solver in plan.servers:
            pool = self.world.pool(solver)
            pool.last += 1
            name = f"{solver}-{pool.last}"
            self.happen(ServerWanted(name, solver, self.limits.pools[solver].licenses, self.now, self.now_us))
            assert not pool.failed
            assert pool.rests_until is None or pool.rests_until <= self.now
            most = self.limits.pools[solver].max if pool.scale is None else pool.scale
            assert self.world.used.servers[solver] <= most
        again = scheduler.plan(self.world, self.limits, self.now)
        assert (again.starts, again.servers, again.retire) == ((), (), ()), "a plan leaves nothing to do"
        assert again.wake_at is None or again.wake_at > self.now, "what is due was left lying"
        self.wake_at = again.wake_at

    def jobs(self, fits: Callable[[Job], bool]) -> list[Job]:
        return [job for job in self.world.jobs.values() if fits(job)]

    def servers(self, *states: ServerState) -> list[Server]:
        return [server for server in self.world.servers.values() if server.state in states]

    # --- users ------------------------------------------------------------------------------------------------------

    @rule(demand=st.sampled_from(DEMANDS * 3 + HOPELESS), priority=st.sampled_from([0, 0, 0, 5, -5]))
    def accept(self, demand: Demand, priority: int) -> None:
        self.accepted += 1
        job_id = f"job-{self.accepted}"
        intake = make_intake(job_id, solver=demand.solver, priority=priority)
        self.asked[job_id] = demand
        self.happen(Accept(job_id, intake, self.demand(job_id), frozenset(), None, self.now_us))

    def demand(self, job_id: str) -> Demand:
        """What the configuration in force makes of what was asked."""
        asked = self.asked[job_id]
        return asked if asked.solver in self.limits.solver_jobs else Demand(asked.solver, 1, 0)

    @rule(
        gone=st.sets(st.sampled_from(["omc", "post", "ccx"]), max_size=1),
        outdated=st.sets(st.sampled_from(["omc", "post"])),
        most=st.sampled_from([1, 2]),
    )
    def read_again(self, gone: set[str], outdated: set[str], most: int) -> None:
        before, own, pools = self.limits, self.configured.solver_jobs, self.configured.pools
        self.base = replace(
            self.configured,
            solver_jobs={name: jobs for name, jobs in own.items() if name not in gone},
            pools={name: replace(rule, max=most) for name, rule in pools.items() if name not in gone},
        )
        self.limits = overrides.in_force(self.base, self.world.overrides.values())
        outdated |= before.pools.keys() - self.limits.pools.keys()
        demands = {job.id: self.demand(job.id) for job in self.jobs(is_open)}
        retire = change_over(self.world, self.limits, demands, outdated, outdated)
        for name, why in retire.items():
            assert self.world.servers[name].state in IN_SERVICE, "it ends anyway"
            self.happen(Retire(name, why, self.now))
        for server in self.servers(*IN_SERVICE):
            assert server.solver not in outdated
        for solver in self.limits.pools:
            assert self.world.pool(solver).scale or self.world.used.servers[solver] <= most

    @rule(
        name=st.sampled_from(["license.seat", "license.seat", "max_jobs", "cpus", "solver.post", "license.x"]),
        value=st.sampled_from([None, None, 0, 1, 2]),
    )
    def limit(self, name: str, value: int | None) -> None:
        if value is None:
            self.world.end_override(name)
        else:
            value = value if name == "license.seat" else max(1, value)
            self.world.set_override(Override(name, value, "user1", self.now_us, None))
        self.limits = overrides.in_force(self.base, self.world.overrides.values())
        self.taken = self.world.used.licenses["seat"]
        for server, why in surplus(self.world, self.limits).items():
            assert self.world.servers[server].state in IN_SERVICE, "it ends anyway"
            self.happen(Retire(server, why, self.now))
        stays = sum(bool(server.licenses) for server in self.servers(*IN_SERVICE))
        ends = sum(bool(server.licenses) for server in self.world.servers.values()) - stays
        if self.taken - ends > self.limits.licenses["seat"]:
            idle = self.servers(ServerState.READY, ServerState.STARTING)
            assert not any(server.licenses for server in idle), "it holds more than there are"

    @precondition(lambda self: self.jobs(is_open))
    @rule(which=indices)
    def cancel(self, which: int) -> None:
        self.happen(Cancel(pick(self.jobs(is_open), which).id, self.now_us))

    @rule(solver=st.sampled_from([None, "omc"]), paused=st.booleans())
    def pause_or_not(self, solver: str | None, paused: bool) -> None:
        if paused:
            self.world.set_pause(Pause(solver, "user1", self.now_us, None))
        else:
            self.world.end_pause(solver)

    @rule(solver=st.sampled_from(["omc", "post"]), scale=st.sampled_from([None, None, 0, 1, 2]))
    def scale(self, solver: str, scale: int | None) -> None:
        self.world.set_scale(solver, scale)

    @rule(solver=st.sampled_from(["omc", "post"]))
    def restart(self, solver: str) -> None:
        fleet.restart(self.world, make_pool(), solver)
        servers = [server for server in self.world.servers.values() if server.solver == solver]
        self.happen(*[Retire(server.name, "restarted", self.now) for server in servers])

    @rule(draining=st.sampled_from([False, False, True]))
    def drain_or_not(self, draining: bool) -> None:
        self.world.draining = draining

    @rule(seconds=st.sampled_from([0.05, 1.0, 30.0, 400.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds

    # --- servers ----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.servers(ServerState.STARTING))
    @rule(which=indices)
    def up_and_ready(self, which: int) -> None:
        self.comes_up(pick(self.servers(ServerState.STARTING), which))

    @precondition(lambda self: self.servers(ServerState.STARTING))
    @rule(which=indices, why=st.sampled_from(["its own fault", "nobody's fault", "denied"]))
    def start_fails(self, which: int, why: str) -> None:
        server = pick(self.servers(ServerState.STARTING), which)
        self.ends(server, "it was not ready in 60 s", why != "its own fault", denied=why == "denied")

    @precondition(lambda self: self.world.servers)
    @rule(which=indices)
    def breaks(self, which: int) -> None:
        server = pick(list(self.world.servers.values()), which)
        self.happen(Condemn(server.name, "its process ended", self.now))

    @precondition(lambda self: self.servers(ServerState.STOPPING))
    @rule(which=indices, error=ERRORS, blameless=st.booleans())
    def ended(self, which: int, error: str | None, blameless: bool) -> None:
        self.ends(pick(self.servers(ServerState.STOPPING), which), error, blameless)

    @precondition(lambda self: self.servers(ServerState.STOPPING))
    @rule(which=indices)
    def would_not_die(self, which: int) -> None:
        self.happen(ServerStuck(pick(self.servers(ServerState.STOPPING), which).name))

    @precondition(lambda self: self.servers(ServerState.READY, ServerState.BUSY))
    @rule(which=indices, rss_bytes=st.sampled_from([None, 50, 150]))
    def seen(self, which: int, rss_bytes: int | None) -> None:
        server = pick(self.servers(ServerState.READY, ServerState.BUSY), which)
        self.happen(ServerSeen(server.name, rss_bytes))

    @precondition(lambda self: self.done_servers())
    @rule(which=indices, spent=st.sampled_from([None, None, "its folder is full"]))
    def free(self, which: int, spent: str | None) -> None:
        self.happen(ServerFree(pick(self.done_servers(), which).name, True, spent, self.now))

    @precondition(lambda self: self.gone)
    @rule(which=indices)
    def late_news(self, which: int) -> None:
        name = pick(self.gone, which)
        free, condemned = ServerFree(name, True, None, self.now), Condemn(name, "it did not answer", self.now)
        self.happen(free, condemned, ServerStuck(name))

    def comes_up(self, server: Server) -> None:
        self.happen(ServerUp(server.name, 5151, 27501), ServerReady(server.name, 27501, 0.5, self.now))

    def ends(self, server: Server, error: str | None, blameless: bool, *, denied: bool = False) -> None:
        self.happen(ServerEnded(server.name, error, blameless, self.now, denied))
        self.gone.append(server.name)

    def done_servers(self) -> list[Server]:
        """Those whose job is over, with which they have not said that they are done."""
        served = {job.current.server for job in self.jobs(is_running)}
        return [s for s in self.world.servers.values() if s.job is not None and s.name not in served]

    # --- jobs -------------------------------------------------------------------------------------------------------

    def has_lost_its_server(self, job: Job) -> bool:
        if not is_running(job) or job.current.server is None:
            return False
        server = self.world.servers.get(job.current.server)
        return server is None or server.state is ServerState.STOPPING

    @precondition(lambda self: self.jobs(self.has_lost_its_server))
    @rule(which=indices)
    def server_lost(self, which: int) -> None:
        job = pick(self.jobs(self.has_lost_its_server), which)
        self.happen(
            ServerLost(job.id, job.current.token, job.current.pid is not None, "it died", self.now, self.now_us)
        )

    @precondition(lambda self: self.jobs(is_staging))
    @rule(which=indices)
    def spawned(self, which: int) -> None:
        job = pick(self.jobs(is_staging), which)
        self.happen(Spawned(job.id, job.current.token, (), 7, 1, "boot", self.now))

    @precondition(lambda self: self.jobs(is_staging))
    @rule(which=indices)
    def spawn_failed(self, which: int) -> None:
        job = pick(self.jobs(is_staging), which)
        self.happen(SpawnFailed(job.id, job.current.token, "no_program", "it is not there", self.now, self.now_us))

    @precondition(lambda self: self.jobs(is_up))
    @rule(which=indices, stopped=st.booleans())
    def exited(self, which: int, stopped: bool) -> None:
        job = pick(self.jobs(is_up), which)
        self.happen(Exited(job.id, job.current.token, make_facts(stopped=stopped), self.now_us))

    @precondition(lambda self: self.jobs(is_collecting))
    @rule(which=indices, good=st.booleans())
    def judged(self, which: int, good: bool) -> None:
        job = pick(self.jobs(is_collecting), which)
        self.happen(Judged(job.id, job.current.token, OK if good else BAD, self.now, self.now_us))

    @precondition(lambda self: self.jobs(is_terminal))
    @rule(which=indices)
    def publish(self, which: int) -> None:
        self.happen(Published(pick(self.jobs(is_terminal), which).id))

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def the_indexes_follow(self) -> None:
        self.world.sanity_check()

    @invariant()
    def no_license_is_used_twice(self) -> None:
        servers = [name for server in self.world.servers.values() for name, _ in server.licenses]
        jobs = [name for demand in self.world.holding.values() for name, _ in demand.licenses]
        seats = [*servers, *jobs].count("seat")
        assert seats == self.world.used.licenses["seat"] <= max(self.taken, self.limits.licenses.get("seat", 0))
        self.taken = min(self.taken, seats)

    @invariant()
    def counts_are_those_of_the_servers(self) -> None:
        for solver in self.limits.pools:
            states = [server.state for server in self.world.servers.values() if server.solver == solver]
            used = self.world.used
            assert used.servers[solver] == sum(state in IN_SERVICE for state in states)
            assert used.idle[solver] == states.count(ServerState.READY)
            assert used.coming[solver] == states.count(ServerState.STARTING)

    @invariant()
    def a_plan_gives_no_server_twice(self) -> None:
        plan = scheduler.plan(self.world, self.limits, self.now)
        retired = [name for name, _ in plan.retire]
        assert len(set(retired)) == len(retired)
        for name in retired:
            assert self.world.servers[name].state in (ServerState.STARTING, ServerState.READY)
        for solver in self.limits.pools:
            lent = sum(self.world.demands[job_id].solver == solver for job_id in plan.starts)
            idle = [server.name for server in self.world.idle_servers(solver)]
            assert lent + len(set(idle) & set(retired)) <= len(idle)
            assert not self.world.draining or lent == 0

    @invariant()
    def what_explain_says_is_what_plan_does(self) -> None:
        starts = scheduler.plan(self.world, self.limits, self.now).starts
        for job in self.jobs(lambda job: job.state is State.QUEUED):
            first = scheduler.explain(self.world, self.limits, job.id, self.now, self.now_us)[0]
            assert first.holds == (job.id not in starts)
            said = scheduler.reason(self.world, self.limits, job)
            if not first.holds:
                assert said == (Reason.ORDER, None)
            elif first.reason in (Reason.SERVER, Reason.LICENSE):
                assert said[0] is first.reason or said[0] is Reason.CPUS, "what can never be had comes first"
            if first.holds and first.reason is Reason.SERVER:
                assert self.world.idle_servers(self.world.demands[job.id].solver) == []
            if first.holds and first.reason is Reason.LICENSE:
                taken = self.world.used.licenses["seat"] + (first.need or 0) > self.limits.licenses["seat"]
                assert taken or "seat" in self.world.used.resting

    @invariant()
    def no_job_outlives_three_servers(self) -> None:
        for job in self.world.jobs.values():
            ended = sum(attempt.cause is Cause.SERVER for attempt in job.attempts)
            assert ended < machine.POISON_SERVERS or job.cause is Cause.POISON or job.cancel
            charged = sum(attempt.cause not in (None, Cause.LOST, Cause.SERVER) for attempt in job.attempts)
            assert charged <= 1 + SETTINGS.retry.max

    # --- the end: all servers obey but one that would not die, and nobody asks for anything -------------------------

    def teardown(self) -> None:
        for name in list(self.world.overrides):
            self.limit(name, None)
        self.read_again(set(), set(), 2)
        stuck = [server.name for server in self.world.servers.values() if server.stuck]
        self.immortal = stuck[: self.limits.licenses.get("seat", 1) - 1]  # one seat is left for all
        self.world.draining = False
        for solver in list(self.world.pauses):
            self.world.end_pause(solver)
        for pool in self.limits.pools:
            self.world.set_scale(pool, None)
            if self.world.pool(pool).failed:
                fleet.restart(self.world, make_pool(), pool)
        for server in self.servers(ServerState.STARTING):
            self.ends(server, "it was not ready in 60 s", blameless=True)
        for _ in range(30 + 20 * len(self.world.jobs)):
            if not self.jobs(is_alive_and_possible(self.world)):
                break
            self.a_pass()
            if not self.obey():
                assert self.wake_at is not None, f"nothing will ever happen to {list(self.world.jobs)}"
                self.now = self.wake_at
            self.the_indexes_follow()
            self.no_license_is_used_twice()
        left = [job.id for job in self.jobs(is_alive_and_possible(self.world))]
        assert not left, f"{left} could have ended"
        self.settle()

    def settle(self) -> None:
        """With nobody left to serve, servers do not come and go at one instant for ever."""
        for _ in range(20):
            self.a_pass()
            if not self.obey():
                return
        raise AssertionError(f"servers come and go: {list(self.world.servers)}")

    def obey(self) -> bool:
        """Whatever is under way goes well; whether there was anything."""
        starting = self.servers(ServerState.STARTING)
        stopping = [server for server in self.servers(ServerState.STOPPING) if server.name not in self.immortal]
        lost, done = self.jobs(self.has_lost_its_server), self.done_servers()
        busy = [job for job in self.jobs(is_running) if job not in lost]
        collecting = self.jobs(is_collecting)
        for job in lost:
            self.happen(ServerLost(job.id, job.current.token, False, "it is gone", self.now, self.now_us))
        for job in busy:
            if is_staging(job):
                self.happen(Spawned(job.id, job.current.token, (), 7, 1, "boot", self.now))
            else:
                self.happen(Exited(job.id, job.current.token, make_facts(), self.now_us))
        for job in collecting:
            self.happen(Judged(job.id, job.current.token, OK, self.now, self.now_us))
        for server in done:
            self.happen(ServerFree(server.name, True, None, self.now))
        for server in starting:
            self.comes_up(server)
        for server in stopping:
            self.ends(server, None, blameless=False)
        return bool(starting or stopping or lost or done or busy or collecting)


def is_alive_and_possible(world: World) -> Callable[[Job], bool]:
    return lambda job: is_open(job) and world.demands[job.id] not in HOPELESS


def is_open(job: Job) -> bool:
    return job.state not in TERMINAL


def is_terminal(job: Job) -> bool:
    return job.state in TERMINAL


def is_running(job: Job) -> bool:
    return job.state is State.RUNNING


def is_staging(job: Job) -> bool:
    return is_running(job) and job.current.pid is None


def is_up(job: Job) -> bool:
    return is_running(job) and job.current.pid is not None


def is_collecting(job: Job) -> bool:
    return job.state is State.COLLECTING


T = TypeVar("T")


def pick(choices: Sequence[T], which: int) -> T:
    return choices[which % len(choices)]


TestServers = Servers.TestCase
TestServers.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
