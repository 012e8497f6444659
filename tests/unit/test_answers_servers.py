"""What is told of warm servers: each one, those of a solver together, what is wrong with them, and why jobs wait."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOON_US, WARM, Story, make_demand, make_limits, make_pool, make_settings
from solvisor import answers, fleetview
from solvisor.model import Pause, Server, ServerState
from solvisor.usual import Usual
from solvisor.views import Explanation, PoolView
from solvisor.world import World

NOW = 1000.0
LIMITS = make_limits(
    licenses={"lic": 9}, pools={"omc": make_pool(min=1, max=4, licenses=(("lic", 2),)), "rserve": make_pool()}
)


def put(world: World, name: str, state: str, **more: Any) -> None:
    given = {"born": NOW - 60, "since": NOW - 10, "pid": 77}
    held = LIMITS.pools["omc"].licenses
    world.put_server(Server(name, "omc", ServerState(state), held, started_us=NOON_US, **(given | more)))


def pool(world: World, now: float = NOW) -> PoolView:
    return fleetview.pool(world, LIMITS, "omc", now)


def explained(story: Story, job_id: str) -> Explanation:
    view = answers.view(story.world, LIMITS, Usual(), story.job(job_id), make_settings(), None, NOON_US)
    return answers.explanation(story.world, LIMITS, view, NOW, NOON_US)


# --- servers --------------------------------------------------------------------------------------------------------


def test_a_server_is_told_with_its_times() -> None:
    world = World()
    put(world, "omc-2", "busy", port=23600, rss_bytes=1 << 20, jobs=3, job="a", ready_seconds=0.5)
    put(world, "omc-1", "stopping", born=NOW - 90, why="no job for it")
    put(world, "omc-3", "stopping", born=NOW + 1, since=NOW + 1, why="no job for it", stuck=True)
    first, second, third = pool(world).servers
    assert (second.name, second.solver, second.state, second.pid, second.port) == ("omc-2", "omc", "busy", 77, 23600)
    assert (second.jobs, second.job, second.rss_bytes, second.why) == (3, "a", 1 << 20, None)
    assert (second.started, second.ready_seconds) == ("2026-01-31T12:00:00.000000Z", 0.5)
    assert (second.age_seconds, second.in_state_seconds) == (60, 10)
    assert (first.name, first.age_seconds, first.why) == ("omc-1", 90, "no job for it")
    assert third.why == "no job for it; its processes would not die"
    assert (third.age_seconds, third.in_state_seconds) == (0, 0)


def test_wanted_up_and_ready_are_facts_of_their_own() -> None:
    world = World()
    put(world, "omc-1", "starting", pid=None)
    put(world, "omc-2", "starting")
    put(world, "omc-3", "ready")
    put(world, "omc-4", "busy", job="a")
    put(world, "omc-5", "draining", job="b")
    put(world, "omc-6", "stopping")
    found = pool(world)
    assert (found.wanted, found.starting, found.up, found.ready, found.busy, found.most) == (4, 2, 5, 2, 1, 4)
    assert found.licenses == {"lic": 12}
    (line, other) = fleetview.pool_rows(world, LIMITS, NOW)
    assert (line.solver, line.wanted, line.starting, line.up, line.ready, line.busy) == ("omc", 4, 2, 5, 2, 1)
    assert (other.solver, other.state, other.wanted, other.up, other.most) == ("rserve", "ok", 0, 0, 2)
    assert [found.solver for found in fleetview.servers(world, LIMITS, NOW)] == ["omc", "rserve"]


@pytest.mark.parametrize(("scale", "wanted", "most"), [(None, 1, 4), (0, 0, 0), (3, 3, 3), (6, 4, 4)])
def test_as_many_are_wanted_as_the_configuration_or_a_person_says(scale: int | None, wanted: int, most: int) -> None:
    """And no more than there are licenses for: of 8, 2 each."""
    world = World()
    world.set_scale("omc", scale)
    found = pool(world)
    assert (found.wanted, found.most, found.scale, found.min, found.max) == (wanted, most, scale, 1, 4)
    world.draining = True
    assert pool(world).wanted == 0


def test_to_ask_changes_nothing() -> None:
    world = World()
    fleetview.servers(world, LIMITS, NOW)
    assert world.pools == {}


# --- what is wrong --------------------------------------------------------------------------------------------------


def test_a_rest_is_told_until_it_is_over() -> None:
    world = World()
    facts = world.pool("omc")
    facts.rests_until, facts.ends, facts.error = NOW + 4, [NOW - 1], "omc-1 ended with exit code 1"
    found = pool(world)
    assert (found.state, found.rests_seconds, found.failures, found.error) == ("backoff", 4, 1, facts.error)
    assert fleetview.server_problems(world, LIMITS) == []
    found = pool(world, NOW + 4)
    assert (found.state, found.rests_seconds, found.error) == ("ok", None, facts.error)


def test_what_failed_for_good_is_a_problem_with_the_way_out() -> None:
    world = World()
    facts = world.pool("omc")
    facts.rests_until, facts.ends, facts.failed, facts.error = NOW + 4, [NOW] * 6, True, "no such file"
    assert (pool(world).state, pool(world).rests_seconds) == ("failed", None)
    assert fleetview.server_problems(world, LIMITS) == [
        "the servers of omc failed 6 times in a row: no such file; correct it, then solvisor servers restart omc"
    ]


def test_fault_22_servers_that_come_to_nothing_while_jobs_wait_are_a_problem() -> None:
    story = Story()
    facts = story.world.pool("omc")
    facts.misses, facts.error = 3, "no port of 4711 is free on 127.0.0.1"
    assert fleetview.server_problems(story.world, LIMITS) == []
    story.accept("a", WARM, solver="omc")
    assert fleetview.server_problems(story.world, LIMITS) == [
        "1 job waits for a server of omc, and 3 in a row came to nothing: no port of 4711 is free on 127.0.0.1; "
        "it is tried again and again"
    ]
    facts.misses = 2
    assert fleetview.server_problems(story.world, LIMITS) == []


def test_a_server_that_would_not_die_is_a_problem() -> None:
    world = World()
    put(world, "omc-1", "stopping", stuck=True)
    put(world, "omc-2", "stopping")
    (problem,) = fleetview.server_problems(world, LIMITS)
    assert problem.startswith("the processes of omc-1 (pid 77) would not die")


# --- jobs that wait -------------------------------------------------------------------------------------------------


def test_jobs_that_wait_for_a_server_are_counted() -> None:
    story = Story()
    for n in range(3):
        story.accept(f"warm-{n}", WARM, solver="omc")
    story.accept("cold", make_demand("ccx"))
    assert (pool(story.world).waiting, fleetview.pool_rows(story.world, LIMITS, NOW)[1].waiting) == (3, 0)
    story.world.set_pause(Pause("omc", None, NOON_US, None))
    assert pool(story.world).waiting == 0
    story.world.end_pause("omc")
    story.world.set_pause(Pause(None, None, NOON_US, None))
    assert pool(story.world).waiting == 0
    story.world.end_pause(None)
    put(story.world, "omc-1", "ready")
    assert pool(story.world).waiting == 0, "one is there to be taken"
    story.world.drop_server("omc-1")
    story.world.draining = True
    assert pool(story.world).waiting == 0


def test_a_job_that_waits_for_a_server_says_whether_something_is_wrong() -> None:
    story = Story()
    story.accept("a", WARM, solver="omc")
    assert explained(story, "a").headline == "waits for a warm server. Nothing is wrong."
    story.world.set_scale("omc", 0)
    assert explained(story, "a").headline == "waits for a warm server, and somebody scaled them to 0."
    story.world.set_scale("omc", 1)
    facts = story.world.pool("omc")
    facts.rests_until, facts.error = NOW + 1, "it ended"
    assert explained(story, "a").headline.startswith("waits for a warm server; the last one failed")
    facts.failed = True
    assert explained(story, "a").headline == "waits for a warm server, and none is started any more."
    story.accept("b", make_demand("ccx", cpus=99))
    assert explained(story, "b").headline == "can never start as things are."
