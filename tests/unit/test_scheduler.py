"""Who starts next, why the others wait, and that both answers come from the same rules."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders import BAD, GIB, SECOND_US, Story, make_demand, make_facts, make_limits, make_pool, make_settings
from solvisor import machine
from solvisor.events import BackoffOver, DeadlinePassed
from solvisor.model import Batch, Cause, Demand, Limits, Pause, Reason, Retry, State
from solvisor.recovery import restore
from solvisor.scheduler import admit, due, explain, plan
from solvisor.views import Holder
from solvisor.world import Place, Queue, Used, World

RESTS = make_settings(Retry(max=5, on=(Cause.EXIT,), delay_seconds=30.0))

NARROW = make_demand(cpus=1)
HALF = make_demand(cpus=4)
WIDE = make_demand(cpus=8)
TOO_WIDE = make_demand(cpus=9)
BIG = make_demand(memory_bytes=12 * GIB)
LICENSED = make_demand("orcaflex", licenses=(("orcaflex", 1),))
LICENSED_WIDE = make_demand("orcaflex", cpus=4, licenses=(("orcaflex", 1),))
BOTH_LICENSES = make_demand("orcaflex", licenses=(("orcaflex", 2),))
BOTH_WIDE = make_demand("orcaflex", cpus=4, licenses=(("orcaflex", 2),))
UNLICENSED_WIDE = make_demand(cpus=4, licenses=(("mapdl", 1),))
ONE_AT_A_TIME = make_demand("omc")
UNKNOWN = make_demand("abaqus")

LIMITS = make_limits(
    max_jobs=4,
    cpus=8,
    memory_bytes=16 * GIB,
    licenses={"orcaflex": 2},
    solver_jobs={"ccx": None, "orcaflex": None, "omc": 1},
)


# --- who starts -----------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """``running`` and ``queued`` are demands in order of arrival; the queued are named a, b, c, ..."""

    running: list[Demand]
    queued: list[Demand]
    starts: str
    blocker: str | None = None
    limits: Limits = LIMITS


CASES = {
    "nothing waits": Case([], [], ""),
    "first come, first served": Case([], [NARROW, HALF, NARROW], "abc"),
    "as many as there is room for": Case([], [NARROW] * 6, "abcd"),
    "no room for one more job": Case([NARROW] * 4, [NARROW, BIG], ""),
    "a wide job is overtaken by nobody": Case([NARROW], [WIDE, NARROW], "", blocker="a"),
    "those before the wide job start": Case([NARROW], [NARROW, WIDE, NARROW], "a", blocker="b"),
    "a job that waits for memory is overtaken by nobody": Case([BIG], [BIG, NARROW], "", blocker="a"),
    "a job that waits for a license lets others pass": Case([LICENSED] * 2, [LICENSED, NARROW], "b"),
    "also where it waits for cores as well": Case([LICENSED, LICENSED, HALF], [LICENSED_WIDE, NARROW], "b"),
    "with its license free it waits for cores alone": Case([LICENSED, HALF], [LICENSED_WIDE, NARROW], "", blocker="a"),
    "the last free license goes to the first": Case([LICENSED], [LICENSED, LICENSED], "a"),
    "a free license is kept for the job that needs two": Case([LICENSED], [BOTH_LICENSES, LICENSED, NARROW], "c"),
    "but not for one that waits for cores as well": Case([LICENSED, HALF], [BOTH_WIDE, LICENSED], "b"),
    "a solver's own limit lets others pass": Case([ONE_AT_A_TIME], [ONE_AT_A_TIME, NARROW], "b"),
    "more than there is blocks nobody": Case([], [TOO_WIDE, NARROW], "b"),
    "nor does a license nobody has, while cores are taken": Case([HALF, NARROW], [UNLICENSED_WIDE, NARROW], "b"),
    "an unknown solver blocks nobody": Case([], [UNKNOWN, NARROW], "b"),
    "a job that asks for nothing starts on a full machine": Case([WIDE], [make_demand(cpus=0)], "a"),
    "lowered limits stop nothing and start nothing": Case([NARROW] * 3, [NARROW], "", limits=make_limits(max_jobs=2)),
    "no jobs at all": Case([], [NARROW], "", limits=make_limits(max_jobs=0)),
}


def build(case: Case) -> Story:
    story = Story()
    for n, demand in enumerate(case.running):
        story.accept(f"running-{n}", demand)
        story.start(f"running-{n}")
    for job_id, demand in zip("abcdef", case.queued, strict=False):
        story.accept(job_id, demand)
    return story


@pytest.mark.parametrize("name", CASES)
def test_who_starts(name: str) -> None:
    case = CASES[name]
    decided = plan(build(case).world, case.limits, 0.0)
    assert decided.starts == tuple(case.starts)
    assert decided.blocker == case.blocker


def test_priority_comes_before_first_come() -> None:
    story = Story()
    for job_id, priority in [("low", -1), ("first", 0), ("second", 0), ("urgent", 10)]:
        story.accept(job_id, priority=priority)
    assert plan(story.world, LIMITS, story.now).starts == ("urgent", "first", "second", "low")


def test_order_is_kept_between_jobs_of_different_demand() -> None:
    story = Story()
    demands = [NARROW, ONE_AT_A_TIME, LICENSED, NARROW]
    for job_id, demand in zip("abcd", demands, strict=True):
        story.accept(job_id, demand)
    assert plan(story.world, LIMITS, story.now).starts == ("a", "b", "c", "d")


def test_a_job_that_comes_back_to_the_queue_keeps_its_place() -> None:
    story = Story()
    story.accept("first")
    story.accept("second")
    story.start("first")
    story.lost("first")
    assert plan(story.world, make_limits(max_jobs=1), story.now).starts == ("first",)


def test_a_wide_job_starts_although_narrow_ones_never_stop_coming() -> None:
    story = Story()
    for n in range(4):
        story.accept(f"early-{n}", NARROW)
        story.start(f"early-{n}")
    story.accept("wide", WIDE)
    for n in range(4):
        story.accept(f"late-{n}", NARROW)
        assert plan(story.world, LIMITS, story.now).starts == ()
        story.exited(f"early-{n}")
    assert plan(story.world, LIMITS, story.now).starts == ("wide",)


def test_what_waits_for_more_than_room_does_not_start() -> None:
    story = Story()
    story.accept("a", UNKNOWN)
    story.accept("waits", after=["a"])
    story.accept("rests")
    story.run("rests", BAD, RESTS)
    assert plan(story.world, LIMITS, story.now).starts == ()


def test_a_draining_daemon_starts_nothing_and_still_wakes_for_its_deadlines() -> None:
    story = Story()
    story.accept("up")
    story.start("up", make_settings(timeout_seconds=60.0))
    story.accept("a")
    story.world.draining = True
    decided = plan(story.world, LIMITS, story.now)
    assert decided.starts == ()
    assert decided.wake_at == story.now + 60.0


def test_planning_changes_nothing() -> None:
    story = build(CASES["first come, first served"])
    assert plan(story.world, LIMITS, story.now) == plan(story.world, LIMITS, story.now)
    assert story.world.used == Used()


# --- time -----------------------------------------------------------------------------------------------------------


def test_it_wakes_for_the_first_thing_that_time_brings() -> None:
    story = Story()
    assert plan(story.world, LIMITS, story.now).wake_at is None
    story.accept("up")
    story.start("up", make_settings(timeout_seconds=60.0))
    assert plan(story.world, LIMITS, story.now).wake_at == story.now + 60.0
    story.accept("rests")
    story.run("rests", BAD, RESTS)
    assert plan(story.world, LIMITS, story.now).wake_at == story.now + 30.0


def test_time_brings_timeouts_and_ends_of_rests_not_a_moment_early() -> None:
    story = Story()
    story.accept("up")
    story.start("up", make_settings(timeout_seconds=60.0))
    story.accept("rests")
    story.run("rests", BAD, RESTS)
    assert due(story.world, story.now + 29.9) == []
    assert due(story.world, story.now + 30.0) == [BackoffOver("rests")]
    assert due(story.world, story.now + 60.0) == [DeadlinePassed("up", "up#1")]
    assert due(story.world, story.now + 1e9) == []


def test_what_time_brings_too_late_is_skipped() -> None:
    timed = make_settings(timeout_seconds=60.0)
    story = Story()
    for job_id in ("exited", "requeued", "restarted", "published"):
        story.accept(job_id)
        story.start(job_id, timed)
    story.exited("exited")
    story.lost("requeued")
    story.lost("restarted")
    story.now += 10.0
    story.start("restarted", timed)
    story.exited("published")
    story.judged("published")
    story.published("published")
    story.accept("cancelled")
    story.run("cancelled", BAD, RESTS)
    story.cancel("cancelled")
    assert due(story.world, story.now + 50.0) == []
    assert due(story.world, story.now + 60.0) == [DeadlinePassed("restarted", "restarted#2")]
    assert plan(story.world, LIMITS, story.now).wake_at is None, "stale entries vanish on the way"


def test_a_timeout_comes_once() -> None:
    story = Story()
    story.accept("up")
    story.start("up", make_settings(timeout_seconds=60.0))
    for event in due(story.world, story.now + 60.0):
        machine.apply(story.world, event)
    assert due(story.world, story.now + 120.0) == []


def test_a_superseded_rest_does_not_end_the_next_one() -> None:
    story = Story()
    story.accept("job")
    story.run("job", BAD, RESTS)
    story.now += 30.0
    for event in due(story.world, story.now):
        machine.apply(story.world, event)
    story.start("job", RESTS)
    story.exited("job", make_facts(1))
    story.judged("job", BAD)
    assert due(story.world, story.now + 59.9) == []
    assert due(story.world, story.now + 60.0) == [BackoffOver("job")]


# --- cost -----------------------------------------------------------------------------------------------------------


class CountingQueue(Queue):
    """Counts how many places are looked at."""

    looks = 0

    def __getitem__(self, index: int) -> Place:
        self.looks += 1
        return super().__getitem__(index)

    def __iter__(self) -> object:  # type: ignore[override]
        raise AssertionError("nobody may walk a whole queue")


def test_a_plan_looks_at_one_place_per_demand_and_one_per_start() -> None:
    world = World()
    demands = [make_demand(cpus=cpus) for cpus in (1, 2, 3, 4)] + [LICENSED]
    queues = {demand: CountingQueue() for demand in demands}
    for seq in range(100_000):
        queues[demands[seq % len(demands)]].add((0, seq, f"job-{seq}"))
    world.ready = dict(queues)
    story = Story()
    story.accept("any")
    world.jobs = defaultdict(lambda: story.job("any"))
    limits = make_limits(max_jobs=20, cpus=50, licenses={"orcaflex": 3}, solver_jobs={"ccx": None, "orcaflex": None})
    starts = plan(world, limits, 0.0).starts
    assert len(starts) == 20
    assert sum(queue.looks for queue in queues.values()) <= len(starts) + len(demands)


# --- why the others wait --------------------------------------------------------------------------------------------


def reasons(story: Story, job_id: str, limits: Limits = LIMITS) -> list[tuple[Reason, str]]:
    """What holds the job back."""
    findings = explain(story.world, limits, job_id, story.now, story.now_us)
    assert findings == sorted(findings, key=lambda f: not f.holds), "what holds it back comes first"
    return [(finding.reason, finding.text) for finding in findings if finding.holds]


NEVER = "; it can never start so: raise the limit, or cancel it and ask for less"

SENTENCES: dict[str, tuple[list[Demand], Demand, list[tuple[Reason, str]]]] = {
    "it would start now": ([], NARROW, []),
    "all jobs run": ([NARROW] * 4, NARROW, [(Reason.JOBS, "4 of at most 4 jobs are running")]),
    "cores": ([NARROW, HALF], HALF, [(Reason.CPUS, "needs 4, 3 of 8 free")]),
    "memory": ([BIG], BIG, [(Reason.MEMORY, "needs 12 GiB, 4 GiB of 16 GiB free")]),
    "a license": (
        [LICENSED, LICENSED],
        LICENSED,
        [(Reason.LICENSE, "orcaflex: needs 1, 2 of 2 in use")],
    ),
    "the solver's own limit": (
        [ONE_AT_A_TIME],
        ONE_AT_A_TIME,
        [(Reason.SOLVER, "1 of at most 1 jobs of omc are running")],
    ),
    "no such solver": (
        [],
        UNKNOWN,
        [(Reason.SOLVER, "abaqus is not in the configuration: add [solver.abaqus], or cancel the job")],
    ),
    "more than there is": ([], TOO_WIDE, [(Reason.CPUS, "needs 9, 8 of 8 free" + NEVER)]),
    "several things at once": (
        [HALF, NARROW],
        UNLICENSED_WIDE,
        [
            (Reason.LICENSE, "mapdl: needs 1, 0 of 0 in use" + NEVER),
            (Reason.CPUS, "needs 4, 3 of 8 free"),
        ],
    ),
}


@pytest.mark.parametrize("name", SENTENCES)
def test_what_explain_says(name: str) -> None:
    running, queued, sentences = SENTENCES[name]
    assert reasons(build(Case(running, [queued], "")), "a") == sentences


def test_where_room_is_not_the_matter_nobody_is_said_to_hold_it() -> None:
    """The advice to cancel a job must not be followed by the name of another one."""
    story = build(Case([NARROW, LICENSED], [NARROW, TOO_WIDE, LICENSED], ""))
    unknown = make_limits(solver_jobs={"other": None})
    none_left = make_limits(licenses={"orcaflex": 0}, solver_jobs={"ccx": None, "orcaflex": None})
    for job, limits, label in [("a", unknown, "solver"), ("b", LIMITS, "cores"), ("c", none_left, "license")]:
        found = explain(story.world, limits, job, story.now, story.now_us)
        assert {finding.label: finding.holders for finding in found if finding.holds}[label] == ()


def test_a_limit_of_zero_is_not_an_unknown_solver() -> None:
    story = build(Case([], [NARROW], ""))
    limits = make_limits(solver_jobs={"ccx": 0})
    assert reasons(story, "a", limits) == [(Reason.SOLVER, "0 of at most 0 jobs of ccx are running" + NEVER)]


def test_a_job_behind_a_wide_one_is_told_which() -> None:
    story = build(Case([NARROW], [WIDE, NARROW, HALF], ""))
    text = "2nd of 3; a is the next to get cores or memory, and nobody overtakes it"
    assert reasons(story, "b") == [(Reason.ORDER, text)]
    assert reasons(story, "a") == [(Reason.CPUS, "needs 8, 7 of 8 free")]


def test_a_job_whose_room_goes_to_those_before_it_is_told_its_rank() -> None:
    story = build(Case([], [NARROW] * 3, ""))
    assert reasons(story, "c", make_limits(max_jobs=2)) == [(Reason.ORDER, "3rd of 3; first is a")]


def test_dependency_rest_and_drain_are_reasons() -> None:
    story = Story()
    story.accept("a", UNKNOWN)
    story.accept("b", UNKNOWN)
    story.accept("waits", after=["b", "a"])
    assert reasons(story, "waits") == [(Reason.DEPENDENCY, "waits for a, b")]
    story.accept("rests")
    story.run("rests", BAD, RESTS)
    story.now += 10.0
    assert reasons(story, "rests") == [(Reason.BACKOFF, "rests 20.0 s more before the next try")]
    story.accept("c")
    story.world.draining = True
    assert reasons(story, "c") == [(Reason.PAUSED, "the daemon is stopping; it starts nothing new")]


def test_only_a_queued_job_can_be_explained() -> None:
    story = build(Case([NARROW], [], ""))
    with pytest.raises(ValueError, match="running-0 is running, not queued"):
        explain(story.world, LIMITS, "running-0", story.now, story.now_us)
    with pytest.raises(KeyError):
        explain(story.world, LIMITS, "nobody", story.now, story.now_us)


def test_pauses_of_everything_and_of_one_solver() -> None:
    story = build(Case([], [NARROW, ONE_AT_A_TIME], ""))
    story.world.set_pause(Pause("ccx", "user1", story.now_us, "new version"))
    assert plan(story.world, LIMITS, story.now).starts == ("b",)
    text = "ccx was paused by user1: new version; solvisor resume ccx lets it go on"
    assert reasons(story, "a") == [(Reason.PAUSED, text)]
    story.world.set_pause(Pause(None, None, story.now_us, None))
    assert plan(story.world, LIMITS, story.now).starts == ()
    assert reasons(story, "b") == [(Reason.PAUSED, "everything was paused; solvisor resume lets it go on")]
    story.world.end_pause(None)
    story.world.end_pause("ccx")
    assert plan(story.world, LIMITS, story.now).starts == ("a", "b")


def test_a_life_for_new_jobs_parks_those_of_earlier_lives() -> None:
    earlier = Story()
    earlier.accept("old", NARROW)
    earlier.accept("rests", NARROW)
    earlier.run("rests", BAD, RESTS)
    own = Batch("sweep", "sweep", None, "skip", None, earlier.now_us)
    earlier.accept("own", NARROW, batch="sweep")
    story = Story(World(next_seq=4, parks=True, parks_not="sweep"))
    for job in earlier.world.jobs.values():
        restore(story.world, job, NARROW, frozenset(), story.now, batch=own if job.spec.batch else None)
    story.accept("new", NARROW)
    story.accept("after old", NARROW, after=["old"])
    story.world.sanity_check()
    assert plan(story.world, LIMITS, story.now).starts == ("own", "new")
    text = "the daemon was started for a batch and starts only what is sent to it; solvisor serve takes up the rest"
    assert reasons(story, "old") == [(Reason.PAUSED, text)]
    story.now += 60.0
    for event in due(story.world, story.now):
        machine.apply(story.world, event)
    assert story.world.parked == {"old", "rests"}
    story.cancel("old")
    story.world.sanity_check()
    assert (story.job("old").state, story.job("after old").state) == (State.CANCELLED, State.SKIPPED)


def test_a_batch_has_its_own_bound_and_lets_others_pass() -> None:
    of_batch = make_demand(batch="sweep", batch_jobs=2)
    story = build(Case([of_batch], [of_batch, of_batch, NARROW], ""))
    assert plan(story.world, LIMITS, story.now).starts == ("a", "c")
    story.start("a")
    assert reasons(story, "b") == [(Reason.JOBS, "2 of at most 2 jobs of its batch are running")]


def test_who_holds_what_a_job_waits_for_is_named_the_longest_first() -> None:
    story = Story()
    for name in ("riser-1", "riser-2", "riser-3"):
        story.accept(name, LICENSED, user="user1")
    story.start("riser-1")
    story.now_us += 60 * SECOND_US
    story.start("riser-2")
    story.now_us += 60 * SECOND_US
    finding, *_ = explain(story.world, LIMITS, "riser-3", story.now, story.now_us)
    assert finding.holders == (Holder("riser-1", "user1", 120.0), Holder("riser-2", "user1", 60.0))
    assert (finding.need, finding.used, finding.total) == (1, 2, 2)


def test_places_are_counted_as_people_do() -> None:
    story = Story()
    for n in range(1, 113):
        story.accept(f"job-{n}", NARROW)
    places = {1: "1st", 2: "2nd", 3: "3rd", 4: "4th", 11: "11th", 12: "12th", 13: "13th", 21: "21st", 112: "112th"}
    for n, place in places.items():
        findings = explain(story.world, LIMITS, f"job-{n}", story.now, story.now_us)
        (order,) = (finding for finding in findings if finding.label == "order")
        assert order.text.split("; ")[0] == f"{place} of 112"


# --- for any world --------------------------------------------------------------------------------------------------

demands = st.builds(
    make_demand,
    solver=st.sampled_from(["ccx", "ccx", "ccx", "omc", "abaqus"]),
    cpus=st.integers(0, 5),
    memory_bytes=st.sampled_from([0, 1, 3]),
    licenses=st.sampled_from([(), (), (("orcaflex", 1),), (("orcaflex", 2), ("mapdl", 1))]),
)

some_limits = st.builds(
    make_limits,
    max_jobs=st.integers(0, 6),
    cpus=st.integers(0, 6),
    memory_bytes=st.integers(0, 6),
    licenses=st.fixed_dictionaries({"orcaflex": st.integers(0, 2)}, optional={"mapdl": st.integers(0, 1)}),
    solver_jobs=st.fixed_dictionaries({"ccx": st.sampled_from([None, 0, 2]), "omc": st.just(1)}),
)


fates = st.sampled_from(["queued"] * 4 + ["up", "rests", "waits"])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Jobs that wait for room, rest, wait for others, or run: more than the limits allow, as after lowering them."""
    story = Story()
    for n in range(draw(st.integers(0, 12))):
        job_id, fate = f"job-{n}", draw(fates)
        queued = [job.id for job in story.world.jobs.values() if job.state is State.QUEUED]
        after = queued[:1] if fate == "waits" else []
        story.accept(job_id, draw(demands), priority=draw(st.integers(-1, 1)), after=after)
        if fate == "up":
            story.start(job_id)
        elif fate == "rests":
            story.run(job_id, BAD, RESTS)
    story.world.draining = draw(st.sampled_from([False] * 5 + [True]))
    return story.world


def plan_by_walking(world: World, limits: Limits) -> list[str]:
    """The rule itself, at the cost of a walk over every job: what ``plan`` must find by looking at the heads only."""
    used = world.used.copy()
    starts: list[str] = []
    everyone = sorted((place, demand) for demand, queue in world.ready.items() for place in queue)
    for place, demand in everyone if not world.draining else []:
        refusals = admit(demand, used, limits)
        if not refusals:
            starts.append(place[2])
            used.add(demand)
            used.add_to_batch(demand)
        elif all(r.reason in {Reason.CPUS, Reason.MEMORY} and not r.hopeless for r in refusals):
            break
    return starts


@settings(max_examples=300, deadline=None)
@given(worlds(), some_limits)
def test_looking_at_heads_finds_what_walking_finds(world: World, limits: Limits) -> None:
    assert list(plan(world, limits, 0.0).starts) == plan_by_walking(world, limits)


@settings(max_examples=300, deadline=None)
@given(worlds(), some_limits)
def test_nothing_holds_back_exactly_what_starts(world: World, limits: Limits) -> None:
    starts = plan(world, limits, 0.0).starts
    for job in world.jobs.values():
        if job.state is State.QUEUED:
            findings = explain(world, limits, job.id, 0.0, 0)
            assert any(finding.holds for finding in findings) == (job.id not in starts)


@settings(max_examples=300, deadline=None)
@given(worlds(), some_limits)
def test_what_starts_fits(world: World, limits: Limits) -> None:
    used = world.used.copy()
    for job_id in plan(world, limits, 0.0).starts:
        assert admit(world.demands[job_id], used, limits) == []
        used.add(world.demands[job_id])


@given(demands, demands, some_limits)
def test_a_demand_fits_exactly_if_the_sums_stay_within_the_limits(new: Demand, old: Demand, limits: Limits) -> None:
    used = Used()
    used.add(old)
    after = used.copy()
    after.add(new)
    own = limits.solver_jobs.get(new.solver, 0)
    fits = (
        new.solver in limits.solver_jobs
        and after.jobs <= limits.max_jobs
        and (not new.cpus or after.cpus <= limits.cpus)
        and (not new.memory_bytes or after.memory_bytes <= limits.memory_bytes)
        and all(after.licenses[name] <= limits.licenses.get(name, 0) for name, _ in new.licenses)
        and (own is None or after.solvers[new.solver] <= own)
    )
    assert (admit(new, used, limits) == []) == fits


def test_fault_68_jobs_interrupted_once_too_often_run_one_at_a_time_beside_all_others() -> None:
    """The next end of the daemon is charged to one of them alone, so the guilty does not take the others with it."""
    story = Story()
    for job_id in ("a", "b", "fresh"):
        story.accept(job_id)
    for _ in range(2):
        for job_id in ("a", "b"):
            story.start(job_id)
            story.lost(job_id)
    assert plan(story.world, LIMITS, story.now).starts == ("a", "fresh")
    story.start("a")
    assert plan(story.world, LIMITS, story.now).starts == ("fresh",)
    (finding, *_) = explain(story.world, LIMITS, "b", story.now, story.now_us)
    assert (finding.label, finding.holds) == ("suspect", True)
    assert finding.text == "the daemon ended 2 times in a row while it ran; such jobs run one at a time, and a does"
    story.exited("a")
    assert plan(story.world, LIMITS, story.now).starts == ("b", "fresh")


def test_fault_68_nothing_starts_while_the_engine_is_wary() -> None:
    story = Story()
    story.accept("a")
    story.world.wary = True
    limits = make_limits(pools={"omc": make_pool(min=1)}, solver_jobs={"ccx": None, "omc": None})
    found = plan(story.world, limits, story.now)
    assert (found.starts, found.servers) == ((), ()), "nor the servers there should be at least"
    (finding, *_) = explain(story.world, LIMITS, "a", story.now, story.now_us)
    assert (finding.label, finding.holds) == ("recovering", True)
