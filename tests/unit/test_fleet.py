"""The state table of warm servers, pair by pair, and what is remembered of their failures.

``EXAMPLES`` says, for one server in every situation, what each event makes of it. What is not named there must be
refused and leave the world exactly as it was; and of a server that is gone, every news is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict, replace

from builders import GIB, NOON_US, WARM, Story, make_pool, snapshot
from solvisor import fleet
from solvisor.errors import IllegalEvent
from solvisor.events import (
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
from solvisor.fleet import HANDLERS, TABLE, ServerEffect
from solvisor.model import Cause, PoolRule, Server, ServerState
from solvisor.world import PoolFacts, World

RULES = {"omc": make_pool(licenses=(("orcaflex", 1),))}
HELD = (("orcaflex", 1),)


# --- situations: every state, and within `stopping` everything that matters -----------------------------------------


def unknown(story: Story) -> None:
    pass


def starting(story: Story) -> None:
    story.want_server("omc", HELD)


def ready(story: Story) -> None:
    story.start_server("omc", HELD)


def busy(story: Story) -> None:
    ready(story)
    story.accept("job", WARM)
    story.start("job")


def draining(story: Story) -> None:
    busy(story)
    story.retire("omc-1", "scaled to 0")


def stopping(story: Story) -> None:
    ready(story)
    story.retire("omc-1")


def stopping_before_it_was_up(story: Story) -> None:
    starting(story)
    story.retire("omc-1")


def condemned_with_its_job(story: Story) -> None:
    busy(story)
    fleet.apply(story.world, RULES, Condemn("omc-1", "its process ended", story.now))


Situation = Callable[[Story], None]

SITUATIONS: list[Situation] = [
    unknown,
    starting,
    ready,
    busy,
    draining,
    stopping,
    stopping_before_it_was_up,
    condemned_with_its_job,
]

EVENTS: dict[str, ServerEvent] = {
    "wanted": ServerWanted("omc-1", "omc", HELD, 2000.0, NOON_US),
    "up": ServerUp("omc-1", 77, 27501),
    "ready": ServerReady("omc-1", 27502, 1.5, 2000.0),
    "lent": ServerLent("omc-1", "other", 2000.0),
    "free": ServerFree("omc-1", True, None, 2000.0),
    "free, spent": ServerFree("omc-1", True, "its folder is full", 2000.0),
    "seen": ServerSeen("omc-1", 3 * GIB),
    "retire": Retire("omc-1", "too old", 2000.0),
    "condemn": Condemn("omc-1", "it did not answer", 2000.0),
    "stuck": ServerStuck("omc-1"),
    "ended": ServerEnded("omc-1", None, False, 2000.0),
    "ended badly": ServerEnded("omc-1", "it ended with exit code 3", False, 2000.0),
    "ended without a license": ServerEnded("omc-1", "no seat is free", True, 2000.0, True),
}

T, R, B = ServerState.STARTING, ServerState.READY, ServerState.BUSY
D, P, GONE = ServerState.DRAINING, ServerState.STOPPING, None
_ENDS = {"condemn": P, "ended": GONE, "ended badly": GONE, "ended without a license": GONE}
_STOPPING = {"up": P, "ready": P, "free": P, "free, spent": P, "seen": P, "retire": P, "stuck": P, **_ENDS}

EXAMPLES: dict[Situation, dict[str, ServerState | None]] = {
    unknown: {"wanted": T},
    starting: {"up": T, "ready": R, "retire": P, **_ENDS},
    ready: {"lent": B, "seen": R, "retire": P, **_ENDS},
    busy: {"seen": B, "free": R, "free, spent": P, "retire": D, **_ENDS},
    draining: {"seen": D, "free": P, "free, spent": P, "retire": D, **_ENDS},
    stopping: _STOPPING,
    stopping_before_it_was_up: _STOPPING,
    condemned_with_its_job: _STOPPING,
}


def in_situation(situation: Situation) -> Story:
    story = Story()
    situation(story)
    story.world.sanity_check()
    return story


def state_of(world: World) -> ServerState | None:
    return world.servers["omc-1"].state if "omc-1" in world.servers else None


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("event_name", EVENTS)
@pytest.mark.parametrize("situation", SITUATIONS, ids=name_of)
def test_every_event_in_every_situation(situation: Situation, event_name: str) -> None:
    world = in_situation(situation).world
    event = EVENTS[event_name]
    state, before = state_of(world), snapshot(world)
    if event_name in EXAMPLES[situation]:
        fleet.apply(world, RULES, event)
        world.sanity_check()
        assert state_of(world) == EXAMPLES[situation][event_name]
        assert state_of(world) in TABLE[state, type(event)]
    elif situation is unknown:
        assert fleet.apply(world, RULES, event) == []
        assert snapshot(world) == before, "news of a server that is gone"
    else:
        with pytest.raises(IllegalEvent, match=rf"{type(event).__name__} cannot happen to omc-1, which is {state}"):
            fleet.apply(world, RULES, event)
        assert snapshot(world) == before


def test_the_examples_reach_everything_that_the_table_allows() -> None:
    reached: dict[tuple[ServerState | None, type[ServerEvent]], set[ServerState | None]] = {}
    for situation, row in EXAMPLES.items():
        state = state_of(in_situation(situation).world)
        for event_name, after in row.items():
            reached.setdefault((state, type(EVENTS[event_name])), set()).add(after)
    assert reached == {pair: set(states) for pair, states in TABLE.items()}


def test_every_event_has_a_handler_and_a_row() -> None:
    events = set(ServerEvent.__subclasses__())
    assert set(HANDLERS) == {type(event) for event in EVENTS.values()} == {event for _, event in TABLE} == events


def test_every_server_can_end_in_every_state() -> None:
    """A server that could not would hold its licenses for ever."""
    states = {state for state, _ in TABLE if state is not None}
    assert states == {T, R, B, D, P}
    for state in states:
        assert TABLE[state, Condemn] == {P}
        assert TABLE[state, ServerEnded] == {None}


def test_states_of_a_whole_pool_are_no_states_of_a_server() -> None:
    after = {state for states in TABLE.values() for state in states}
    assert not after & {ServerState.BACKOFF, ServerState.FAILED}


# --- what each event writes -----------------------------------------------------------------------------------------


def changed(situation: Situation, event: ServerEvent) -> dict[str, Any]:
    """The fields of ``omc-1`` that ``event`` changes."""
    story = in_situation(situation)
    before = asdict(story.server("omc-1"))
    fleet.apply(story.world, RULES, event)
    after = asdict(story.server("omc-1"))
    return {key: value for key, value in after.items() if value != before[key]}


def test_wanted_up_and_ready_are_three_facts() -> None:
    story = in_situation(starting)
    made = Server("omc-1", "omc", T, HELD, 1000.0, 1000.0, NOON_US)
    assert story.server("omc-1") == made
    story.now += 3.0
    fleet.apply(story.world, RULES, ServerUp("omc-1", 77, 27501))
    assert story.server("omc-1") == replace(made, pid=77, port=27501)
    fleet.apply(story.world, RULES, ServerReady("omc-1", 27502, 2.5, story.now))
    up = replace(made, pid=77, port=27502, state=R, since=1003.0, ready_seconds=2.5)
    assert story.server("omc-1") == up


CHANGES: list[tuple[Situation, str, dict[str, Any]]] = [
    (ready, "lent", {"state": B, "job": "other", "since": 2000.0}),
    (ready, "seen", {"rss_bytes": 3 * GIB}),
    (ready, "retire", {"state": P, "why": "too old", "since": 2000.0}),
    (ready, "condemn", {"state": P, "why": "it did not answer", "since": 2000.0}),
    (busy, "seen", {"rss_bytes": 3 * GIB}),
    (busy, "free", {"state": R, "job": None, "jobs": 1, "since": 2000.0}),
    (busy, "free, spent", {"state": P, "job": None, "jobs": 1, "since": 2000.0, "why": "its folder is full"}),
    (busy, "retire", {"state": D, "why": "too old", "since": 2000.0}),
    (busy, "condemn", {"state": P, "why": "it did not answer", "since": 2000.0}),
    (draining, "retire", {}),
    (draining, "free", {"state": P, "job": None, "jobs": 1, "since": 2000.0}),
    (draining, "free, spent", {"state": P, "job": None, "jobs": 1, "since": 2000.0}),
    (stopping, "retire", {}),
    (stopping, "condemn", {}),
    (stopping, "stuck", {"stuck": True}),
    (stopping_before_it_was_up, "up", {"pid": 77, "port": 27501}),
    (stopping_before_it_was_up, "ready", {"port": 27502, "ready_seconds": 1.5}),
    (condemned_with_its_job, "retire", {}),
    (condemned_with_its_job, "condemn", {}),
]


@pytest.mark.parametrize(("situation", "event_name", "changes"), CHANGES, ids=name_of)
def test_what_an_event_writes(situation: Situation, event_name: str, changes: dict[str, Any]) -> None:
    assert changed(situation, EVENTS[event_name]) == changes


EFFECTS: list[tuple[Situation, str, list[ServerEffect]]] = [
    (unknown, "wanted", [StartServer("omc-1")]),
    (starting, "ready", []),
    (starting, "retire", [StopServer("omc-1")]),
    (ready, "retire", [StopServer("omc-1")]),
    (ready, "condemn", []),
    (busy, "retire", []),
    (busy, "free", []),
    (busy, "free, spent", [StopServer("omc-1")]),
    (draining, "retire", []),
    (draining, "free", [StopServer("omc-1")]),
    (draining, "condemn", []),
    (stopping, "retire", []),
    (condemned_with_its_job, "free", []),
    (ready, "ended badly", []),
]


@pytest.mark.parametrize(("situation", "event_name", "effects"), EFFECTS, ids=name_of)
def test_what_follows_from_an_event(situation: Situation, event_name: str, effects: list[ServerEffect]) -> None:
    assert fleet.apply(in_situation(situation).world, RULES, EVENTS[event_name]) == effects


def test_a_server_holds_its_licenses_from_its_start_until_nothing_of_it_is_left() -> None:
    story = Story()
    taken = []
    for happens in (starting, lambda s: s.retire("omc-1"), lambda s: s.server_ended("omc-1")):
        happens(story)
        taken.append(story.world.used.licenses["orcaflex"])
    assert taken == [1, 1, 0]


def test_only_servers_in_service_count_as_such() -> None:
    story = Story()
    counts = []
    for happens in (
        lambda s: s.want_server(),
        lambda s: fleet.apply(s.world, RULES, ServerReady("omc-1", None, 0.1, s.now)),
        lambda s: (s.accept("job", WARM), s.start("job")),
        lambda s: s.retire("omc-1"),
        lambda s: s.free("omc-1"),
    ):
        happens(story)
        used = story.world.used
        counts.append((used.servers["omc"], used.coming["omc"], used.idle["omc"]))
    assert counts == [(1, 1, 0), (1, 0, 1), (1, 0, 0), (0, 0, 0), (0, 0, 0)]


def test_idle_servers_stand_in_the_order_of_their_last_work_however_often_they_were_looked_at() -> None:
    story = Story()
    for solver in ("omc", "omc", "post"):
        story.start_server(solver)
        story.now += 1.0
    fleet.apply(story.world, RULES, ServerSeen("omc-1", GIB))
    assert [server.name for server in story.world.idle_servers("omc")] == ["omc-1", "omc-2"]
    story.accept("job", WARM)
    story.start("job")
    assert story.job("job").current.server == "omc-2"
    assert [server.name for server in story.world.idle_servers("omc")] == ["omc-1"]
    story.now += 1.0
    story.free("omc-2")
    assert [server.name for server in story.world.idle_servers("omc")] == ["omc-1", "omc-2"]


# --- failures of a pool ---------------------------------------------------------------------------------------------


def fail(story: Story, rule: PoolRule | None = None, *, blameless: bool = False) -> PoolFacts:
    """A server ends although nobody wanted it to, once the rest is over: what goes down with it is the same failure."""
    story.now = max(story.now, story.world.pool("omc").rests_until or 0.0)
    story.server_ended(story.start_server(), "it ended with exit code 3", blameless=blameless, rule=rule)
    return story.world.pool("omc")


def test_servers_that_go_down_together_are_one_failure() -> None:
    story, rule = Story(), make_pool(restarts=1)
    for name in [story.start_server() for _ in range(64)]:
        story.server_ended(name, "it ran out of memory", rule=rule)
    pool = story.world.pool("omc")
    assert (len(pool.ends), pool.misses, pool.failed) == (1, 1, False)
    assert fail(story, rule).failed, "the next one is the second"


def test_two_bad_inputs_do_not_fail_a_pool() -> None:
    story, rule = Story(), make_pool(restarts=2)
    for job_id in ("bad", "worse"):
        story.accept(job_id, WARM)
        for _ in range(3):
            story.now = max(story.now, story.world.pool("omc").rests_until or 0.0)
            name = story.start_server()
            story.start(job_id)
            story.server_lost(job_id)
            story.server_ended(name, "it ended with exit code 9", over_job=True, rule=rule)
            if story.job(job_id).cause is None:
                story.backoff_over(job_id)
        assert story.job(job_id).cause is Cause.POISON
    pool = story.world.pool("omc")
    assert (pool.killers, pool.ends, pool.failed) == ({"bad", "worse"}, [], False)


def test_jobs_without_end_that_none_survives_fail_it_after_all() -> None:
    story, rule = Story(), make_pool(restarts=1)
    for n in range(21):
        assert not story.world.pool("omc").failed
        story.accept(f"job-{n}", WARM)
        story.now = max(story.now, story.world.pool("omc").rests_until or 0.0)
        name = story.start_server()
        story.start(f"job-{n}")
        story.server_lost(f"job-{n}")
        story.server_ended(name, "it ended with exit code 9", over_job=True, rule=rule)
    assert story.world.pool("omc").failed
    assert story.world.pool("omc").rests_until == story.now + 0.1, "and never rests long over it"


def test_the_rest_doubles_from_a_tenth_of_a_second_to_a_minute() -> None:
    story, rests = Story(), []
    for _ in range(40):
        pool = fail(story, make_pool(restarts=100))
        assert pool.rests_until is not None
        rests.append(round(pool.rests_until - story.now, 6))
        story.now = pool.rests_until
    assert rests == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2] + [60.0] * 30


def test_a_failure_within_a_rest_changes_nothing_of_it() -> None:
    story, rule = Story(), make_pool(restarts=100)
    pool = fail(story, rule)
    rests = (pool.ends[:], pool.misses, pool.rests_until)
    story.server_ended(story.start_server(), "it ended as well", rule=rule)
    assert (pool.ends, pool.misses, pool.rests_until) == rests
    assert pool.error == "it ended as well"


def test_fault_15_more_ends_than_allowed_within_the_window_fail_the_pool_until_somebody_restarts_it() -> None:
    story, rule = Story(), make_pool(restarts=2, restarts_within_seconds=10.0)
    assert [fail(story, rule).failed for _ in range(3)] == [False, False, True]
    pool = story.world.pool("omc")
    assert (pool.error, len(pool.ends), pool.misses) == ("it ended with exit code 3", 3, 3)
    fleet.restart(story.world, make_pool(), "omc")
    assert story.world.pool("omc") == PoolFacts(last=3)


def test_ends_longer_ago_are_forgotten() -> None:
    story, rule = Story(), make_pool(restarts=1, restarts_within_seconds=10.0)
    assert not fail(story, rule).failed
    story.now += 10.0
    assert not fail(story, rule).failed
    story.now += 9.9
    assert fail(story, rule).failed


def test_a_failed_pool_stays_failed_when_a_server_that_is_left_ends_much_later() -> None:
    story, rule = Story(), make_pool(restarts=1, restarts_within_seconds=10.0)
    left = story.start_server()
    fail(story, rule)
    assert fail(story, rule).failed
    story.now += 1000.0
    story.server_ended(left, "it ended as well", rule=rule)
    assert story.world.pool("omc").failed


def test_a_served_job_clears_what_went_wrong_and_the_scale_and_the_numbering_stay() -> None:
    story = Story()
    pool = fail(story)
    story.world.set_scale("omc", 1)
    story.start_server()
    story.accept("job", WARM)
    story.start("job")
    story.free("omc-2")
    assert pool == PoolFacts(last=2, scale=1)


def test_an_end_without_fault_rests_and_does_not_count() -> None:
    story, rule = Story(), make_pool(restarts=1)
    for _ in range(5):
        pool = fail(story, rule, blameless=True)
    assert (pool.ends, pool.misses, pool.failed, pool.error) == ([], 5, False, "it ended with exit code 3")
    assert pool.rests_until == story.now + 1.6


def test_a_server_that_was_to_end_leaves_no_trace_but_its_number() -> None:
    story = Story()
    story.server_ended(story.start_server())
    assert (story.world.servers, story.world.pools) == ({}, {"omc": PoolFacts(last=1)})


def test_the_failures_of_one_solver_are_not_those_of_another() -> None:
    story = Story()
    fail(story)
    assert story.world.pool("post") == PoolFacts()


# --- the check ------------------------------------------------------------------------------------------------------

BREAKAGES: dict[str, Callable[[World], object]] = {
    "usage drifted": lambda world: world.used.add_server(world.servers["omc-1"]),
    "busy.* has no job": lambda world: world.put_server(replace(world.servers["omc-1"], job=None)),
    "ready.* has a job": lambda world: world.put_server(replace(world.servers["omc-1"], state=R)),
    "a job has two servers": lambda world: world.put_server(replace(world.servers["omc-1"], name="omc-2")),
}


@pytest.mark.parametrize("complaint", BREAKAGES)
def test_the_sanity_check_notices(complaint: str) -> None:
    world = in_situation(busy).world
    BREAKAGES[complaint](world)
    with pytest.raises(AssertionError, match=complaint):
        world.sanity_check()


# --- the drawing ----------------------------------------------------------------------------------------------------


def test_the_page_in_the_docs_shows_this_table() -> None:
    """That it is drawn from the tables as they are now is tested beside the other one."""
    page = (Path(__file__).parents[2] / "docs" / "states.md").read_text(encoding="utf-8")
    for event in HANDLERS:
        assert f"| `{event.__name__}` |" in page
