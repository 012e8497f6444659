"""Any sequence of events: what must hold after each, and that every accepted job comes to its end.

The rules below play users, the engine, the processes and the clock, in any order Hypothesis can think of. The engine's
duties are played honestly: an effect is carried out once, after its change was recorded. At the end everything goes
well, and what is left over must be what can never start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec.structs import replace

from builders import GIB, NOON_US, SECOND_US, make_facts, make_intake, make_limits, snapshot
from solvisor import machine, overrides, scheduler
from solvisor.events import (
    Accept,
    Cancel,
    Collect,
    Discarded,
    Dispatch,
    Effect,
    Event,
    Exited,
    Gone,
    Judged,
    Lost,
    Prioritize,
    Publish,
    Published,
    Resumed,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
)
from solvisor.model import (
    LICENSE_DENIED,
    TERMINAL,
    Batch,
    Cause,
    Demand,
    Job,
    Limits,
    Override,
    Pause,
    Retry,
    Settings,
    State,
    Verdict,
)
from solvisor.recovery import restore
from solvisor.world import Used, World

LIMITS = make_limits(
    max_jobs=3,
    cpus=4,
    memory_bytes=8 * GIB,
    licenses={"orcaflex": 2},
    solver_jobs={"ccx": None, "orcaflex": 2, "omc": 1},
    interruptions_max=3,
)

STARTABLE = [
    Demand("ccx", 1, GIB),
    Demand("ccx", 4, GIB),
    Demand("omc", 1, 6 * GIB),
    Demand("orcaflex", 1, 0, (("orcaflex", 1),)),
    Demand("orcaflex", 2, GIB, (("orcaflex", 2),)),
]
HOPELESS = [
    Demand("abaqus", 1, GIB),
    Demand("ccx", 5, GIB),
    Demand("ccx", 1, 9 * GIB),
    Demand("ccx", 2, GIB, (("mapdl", 1),)),
]

SETTINGS = [
    Settings("command", {}),
    Settings("command", {}, timeout_seconds=20.0),
    Settings("command", {}, timeout_seconds=20.0, retry=Retry(2, (Cause.EXIT, Cause.TIMEOUT), 8.0)),
    Settings("command", {}, retry=Retry(1, (Cause.EXIT, Cause.SPAWN), 0.0)),
]
VERDICTS = [Verdict(None), Verdict(Cause.EXIT, "exit_1"), Verdict(Cause.TIMEOUT), Verdict(Cause.CHECK, "no_files")]
DENIED = Verdict(Cause.EXIT, LICENSE_DENIED, "no seat is free")

BATCHES = [
    Batch("skips", "skips", "user1", "skip", None, NOON_US),
    Batch("stops", "stops", "user1", "fail", None, NOON_US),
    Batch("narrow", "narrow", "user1", "skip", 1, NOON_US),
]

indices = st.integers(0, 1_000)


class Sequences(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.now = 100.0
        self.accepted: list[str] = []
        self.published: list[str] = []
        self.manifests: dict[str, bytes] = {}
        self.ends: dict[str, State] = {}
        self.batches: dict[str, str | None] = {}
        self.recorded = {batch.id: batch for batch in BATCHES}
        self.recorded_overrides: list[Override] = []
        self.taken = Used()
        self.superseded: list[tuple[str, str]] = []
        self.effects: list[Effect] = []
        self.publishable: list[str] = []

    # --- the engine's part ------------------------------------------------------------------------------------------

    @property
    def now_us(self) -> int:
        return NOON_US + int(self.now * SECOND_US)

    def happen(self, *events: Event) -> None:
        """One pass: apply, note what the effects oblige the engine to do, record. None of these events is illegal."""
        for event in events:
            before = self.world.jobs[event.id].attempt if event.id in self.world.jobs else None
            effects = machine.apply(self.world, event)
            assert not any(isinstance(effect, Discarded) for effect in effects)
            self.effects += effects
            if isinstance(event, Dispatch) and before is not None:
                self.superseded.append((event.id, before.token))
        self.record()

    def record(self) -> None:
        changed, published, batches, _, set_by_people = self.world.take_changes()
        self.recorded |= {batch.id: batch for batch in batches}
        if set_by_people is not None:
            self.recorded_overrides = set_by_people
        for job in changed:
            if job.manifest is not None:
                assert job.id not in self.manifests, "a terminal job was recorded twice"
                self.manifests[job.id] = job.manifest
                self.ends[job.id] = job.state
        self.published += published
        for effect in self.effects:
            job = self.world.jobs[effect.id]
            match effect:
                case Start() | Stop():
                    assert (job.state, job.current.token) == (State.RUNNING, effect.token)
                case Collect():
                    assert (job.state, job.current.token) == (State.COLLECTING, effect.token)
                case Publish():
                    assert job.id not in self.publishable, "published twice"
                    self.publishable.append(job.id)
                case _:
                    raise AssertionError(f"nobody carries out {effect}")
        self.effects = []

    def jobs(self, fits: Callable[[Job], bool]) -> list[Job]:
        return [job for job in self.world.jobs.values() if fits(job)]

    @property
    def limits(self) -> Limits:
        return overrides.in_force(LIMITS, self.world.overrides.values())

    # --- users ------------------------------------------------------------------------------------------------------

    @rule(
        demand=st.sampled_from(STARTABLE * 3 + HOPELESS),
        priority=st.sampled_from([0, 0, 0, 5, -5]),
        waits_for=st.lists(indices, max_size=3),
        fate=st.sampled_from(["accepted"] * 8 + ["refused", "broken"]),
        batch=st.sampled_from([None] * 3 + BATCHES),
    )
    def accept(self, demand: Demand, priority: int, waits_for: list[int], fate: str, batch: Batch | None) -> None:
        job_id = f"job-{len(self.accepted)}"
        open_ids = [job.id for job in self.jobs(is_open)]
        after = tuple(sorted({open_ids[i % len(open_ids)] for i in waits_for})) if open_ids else ()
        refusal = ("solver", "fits nothing") if fate == "refused" else None
        failed_dependency = "job-of-yesterday" if fate == "broken" else None
        batch_id = batch.id if batch else None
        if batch is not None:
            batch = self.world.batches.get(batch.id) or self.recorded[batch.id]
            if batch.max_jobs is not None:
                demand = replace(demand, batch=batch.id, batch_jobs=batch.max_jobs)
        intake = make_intake(job_id, refusal, solver=demand.solver, priority=priority, after=after, batch=batch_id)
        self.accepted.append(job_id)
        self.batches[job_id] = batch_id
        self.happen(Accept(job_id, intake, demand, frozenset(after), failed_dependency, self.now_us, batch))

    @rule(solver=st.sampled_from([None, "ccx"]), paused=st.booleans())
    def pause_or_not(self, solver: str | None, paused: bool) -> None:
        if paused:
            self.world.set_pause(Pause(solver, "user1", self.now_us, None))
        else:
            self.world.end_pause(solver)

    @rule(
        name=st.sampled_from(
            ["max_jobs", "cpus", "memory", "license.orcaflex", "solver.ccx", "solver.omc", "license.x"]
        ),
        value=st.sampled_from([None, None, 1, 2, 5]),
    )
    def limit(self, name: str, value: int | None) -> None:
        """Also below what is in use, and above what the configuration says."""
        if value is None:
            self.world.end_override(name)
        else:
            value *= GIB if name == "memory" else 1
            self.world.set_override(Override(name, value, "user1", self.now_us, None))
        self.taken = self.world.used.copy()
        self.record()

    @precondition(lambda self: self.jobs(is_queued))
    @rule(which=indices, priority=st.sampled_from([-5, 0, 5, 7]))
    def prioritize(self, which: int, priority: int) -> None:
        job = pick(self.jobs(is_queued), which)
        self.happen(Prioritize(job.id, priority))
        assert self.world.jobs[job.id].priority == priority

    @precondition(lambda self: self.jobs(is_open))
    @rule(which=indices)
    def cancel(self, which: int) -> None:
        self.happen(Cancel(pick(self.jobs(is_open), which).id, self.now_us))

    # --- the scheduler and the clock --------------------------------------------------------------------------------

    @rule(setting=st.sampled_from(SETTINGS))
    def dispatch(self, setting: Settings) -> None:
        starts = scheduler.plan(self.world, self.limits, self.now).starts
        tokens = [f"{i}#{len(self.world.jobs[i].attempts) + 1}" for i in starts]
        pairs = zip(starts, tokens, strict=True)
        self.happen(*[Dispatch(i, t, "ws1", setting, self.now_us, now=self.now) for i, t in pairs])
        assert scheduler.plan(self.world, self.limits, self.now).starts == (), "a plan leaves nothing that could start"

    @rule(seconds=st.sampled_from([0.5, 5.0, 30.0, 400.0]))
    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.happen(*scheduler.due(self.world, self.now))
        wake_at = scheduler.plan(self.world, self.limits, self.now).wake_at
        assert wake_at is None or wake_at > self.now, "what is due was left lying"

    @rule(draining=st.booleans())
    def drain_or_not(self, draining: bool) -> None:
        self.world.draining = draining

    # --- processes --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.jobs(is_staging))
    @rule(which=indices)
    def spawned(self, which: int) -> None:
        job = pick(self.jobs(is_staging), which)
        self.happen(Spawned(job.id, job.current.token, ("ccx",), 7, 1, "boot", self.now))

    @precondition(lambda self: self.jobs(is_staging))
    @rule(which=indices)
    def spawn_failed(self, which: int) -> None:
        job = pick(self.jobs(is_staging), which)
        self.happen(SpawnFailed(job.id, job.current.token, "no_program", "it is not there", self.now, self.now_us))

    @precondition(lambda self: self.jobs(is_up))
    @rule(which=indices, how=st.sampled_from(["by itself", "by itself", "stopped", "unkillable"]))
    def exited(self, which: int, how: str) -> None:
        job = pick(self.jobs(is_up), which)
        facts = make_facts(stopped=how == "stopped", unkillable=how == "unkillable", at_us=self.now_us)
        self.happen(Exited(job.id, job.current.token, facts, self.now_us))

    @precondition(lambda self: self.jobs(is_collecting))
    @rule(which=indices, verdict=st.sampled_from([*VERDICTS, DENIED]))
    def judged(self, which: int, verdict: Verdict) -> None:
        job = pick(self.jobs(is_collecting), which)
        self.happen(Judged(job.id, job.current.token, verdict, self.now, self.now_us))

    @precondition(lambda self: self.jobs(is_running))
    @rule(which=indices)
    def lost(self, which: int) -> None:
        job = pick(self.jobs(is_running), which)
        self.happen(Lost(job.id, job.current.token, LIMITS.interruptions_max, self.now_us))

    @precondition(lambda self: self.jobs(self.is_stuck))
    @rule(which=indices)
    def gone(self, which: int) -> None:
        job = pick(self.jobs(self.is_stuck), which)
        self.happen(Gone(job.id, job.current.token))

    @precondition(lambda self: self.publishable)
    @rule(which=indices)
    def publish(self, which: int) -> None:
        job_id = self.publishable.pop(which % len(self.publishable))
        self.happen(Published(job_id))

    # --- what must not disturb --------------------------------------------------------------------------------------

    @precondition(lambda self: self.superseded)
    @rule(which=indices, kind=st.integers(0, 3))
    def late_news(self, which: int, kind: int) -> None:
        job_id, token = pick(self.superseded, which)
        late: list[Event] = [
            Exited(job_id, token, make_facts(), self.now_us),
            Judged(job_id, token, Verdict(None), self.now, self.now_us),
            Lost(job_id, token, 3, self.now_us),
            Gone(job_id, token),
        ]
        before = snapshot(self.world)
        assert machine.apply(self.world, late[kind]) == [Discarded(job_id, type(late[kind]).__name__, token)]
        assert snapshot(self.world) == before

    @rule(still_alive=st.booleans())
    def the_daemon_dies_and_comes_back(self, still_alive: bool) -> None:
        """Everything recorded comes back; the clock starts somewhere else; what ran was lost."""
        jobs = sorted(self.world.jobs.values(), key=lambda job: job.seq)
        demands, next_seq = self.world.demands, self.world.next_seq
        stuck = {job.id for job in jobs if self.is_stuck(job)} if still_alive else set()
        open_ids = {job.id for job in jobs if is_open(job)}
        self.world, self.now, self.publishable = World(next_seq), self.now + 1000.0, []
        self.world.overrides = {override.name: override for override in self.recorded_overrides}
        for job in jobs:
            unmet = frozenset(job.spec.after) & open_ids if job.state is State.QUEUED else frozenset()
            alive = job.id in stuck
            batch = self.recorded.get(job.spec.batch or "")
            self.effects += restore(self.world, job, demands[job.id], unmet, self.now, alive=alive, batch=batch)
        self.world.sanity_check()
        running = self.jobs(is_running)
        self.happen(*[Lost(job.id, job.current.token, LIMITS.interruptions_max, self.now_us) for job in running])
        taken_up = [job for job in self.world.jobs.values() if job.state is State.COLLECTING]
        self.happen(*[Resumed(job.id, job.current.token, 0, self.now_us) for job in taken_up])

    # --- what always holds ------------------------------------------------------------------------------------------

    @invariant()
    def the_indexes_follow_from_the_jobs(self) -> None:
        self.world.sanity_check()

    @invariant()
    def no_more_is_used_than_there_is(self) -> None:
        """Or than was in use when the limit was lowered."""
        used, limits, taken = self.world.used, self.limits, self.taken
        assert used.jobs <= max(limits.max_jobs, taken.jobs)
        assert used.cpus <= max(limits.cpus, taken.cpus)
        assert used.memory_bytes <= max(limits.memory_bytes, taken.memory_bytes)
        for name, count in used.licenses.items():
            assert 0 <= count <= max(limits.licenses.get(name, 0), taken.licenses[name])
        for solver, jobs in used.solvers.items():
            own = limits.solver_jobs[solver]
            assert own is None or jobs <= max(own, taken.solvers[solver])

    @invariant()
    def what_was_ordered_is_recorded(self) -> None:
        assert sorted(self.world.overrides) == sorted(override.name for override in self.recorded_overrides)

    @invariant()
    def a_manifest_never_changes(self) -> None:
        for job in self.jobs(is_terminal):
            assert job.manifest == self.manifests[job.id]

    @invariant()
    def tries_are_bounded(self) -> None:
        for job in self.world.jobs.values():
            charged = [a for a in job.attempts if a.cause is not Cause.LOST and a.code != LICENSE_DENIED]
            assert len(charged) <= 1 + max((a.settings.retry.max for a in job.attempts), default=0)
            assert job.interruptions <= LIMITS.interruptions_max

    @invariant()
    def what_ran_had_all_that_it_waited_for(self) -> None:
        for job in self.world.jobs.values():
            if job.attempts:
                assert {self.ends.get(other) for other in job.spec.after} <= {State.SUCCEEDED}

    @invariant()
    def every_end_is_on_its_way_to_the_user(self) -> None:
        for job in self.jobs(is_terminal):
            assert (job.id in self.publishable) != self.is_stuck(job)

    @invariant()
    def what_explain_says_is_what_plan_does(self) -> None:
        starts = scheduler.plan(self.world, self.limits, self.now).starts
        for job in self.jobs(lambda job: job.state is State.QUEUED):
            findings = scheduler.explain(self.world, self.limits, job.id, self.now, self.now_us)
            assert (job.id in starts) == (not any(finding.holds for finding in findings))

    @invariant()
    def a_batch_keeps_its_rule(self) -> None:
        for batch in self.world.batches.values():
            queued = machine.queued_members(self.world, batch.id)
            assert not (batch.stopped and queued), f"{batch.id} is stopped and {queued} still wait"
            ends = {self.ends.get(i) for i in self.accepted if self.batches.get(i) == batch.id}
            if batch.on_error == "fail":
                assert bool(batch.stopped) == bool(ends & {State.FAILED, State.REJECTED})
            if batch.max_jobs is not None:
                assert self.world.used.batches[batch.id] <= batch.max_jobs

    # --- the end: everything goes well from here on -----------------------------------------------------------------

    def teardown(self) -> None:
        self.world.draining = False
        for solver in list(self.world.pauses):
            self.world.end_pause(solver)
        for name in list(self.world.overrides):
            self.world.end_override(name)
        attempts = sum(len(job.attempts) for job in self.world.jobs.values())
        for _ in range(10 * (len(self.accepted) + attempts + 1)):
            self.advance(400.0)
            self.dispatch(SETTINGS[0])
            for job in self.jobs(is_staging):
                self.happen(Spawned(job.id, job.current.token, ("ccx",), 7, 1, "boot", self.now))
            for job in self.jobs(is_up):
                facts = make_facts(at_us=self.now_us)
                self.happen(Exited(job.id, job.current.token, facts, self.now_us))
            for job in self.jobs(is_collecting):
                self.happen(Judged(job.id, job.current.token, Verdict(None), self.now, self.now_us))
            for job in self.jobs(self.is_stuck):
                self.happen(Gone(job.id, job.current.token))
            while self.publishable:
                self.publish(0)
        self.the_indexes_follow_from_the_jobs()
        assert self.world.used.jobs == 0
        for job in self.world.jobs.values():
            others = self.world.unmet.get(job.id, ())
            demand = replace(self.world.demands[job.id], batch=None, batch_jobs=0)
            assert others or demand in HOPELESS, f"{job.id} could have ended"
        assert len(set(self.published)) == len(self.published), "published twice"
        assert {*self.published, *self.world.jobs} == set(self.accepted), "a job was lost"
        assert self.manifests.keys() == set(self.published)

    def is_stuck(self, job: Job) -> bool:
        return is_terminal(job) and job.id in self.world.holding


def is_open(job: Job) -> bool:
    return job.state not in TERMINAL


def is_queued(job: Job) -> bool:
    return job.state is State.QUEUED


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


TestSequences = Sequences.TestCase
TestSequences.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
