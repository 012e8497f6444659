"""Which warm servers a plan starts and which it ends, and when time alone will change that."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from builders import WARM, Story, make_demand, make_limits, make_pool
from provision_kit import POST, SEAT, SEATED, SEATED_POOL, decide, lend, limits_of, queue, retires, serve, starts
from solvisor import fleet
from solvisor.events import ServerSeen
from solvisor.model import Demand, Limits, Pause
from solvisor.scheduler import Plan

# --- started for jobs -----------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """``there``: s is a server that starts, r one that is ready, b one with a job, d one to end after its job."""

    there: str
    queued: list[Demand]
    servers: str
    starts: str = ""
    limits: Limits = limits_of(omc=make_pool(max=3))


CASES = {
    "nobody asks": Case("", [], ""),
    "one for a job": Case("", [WARM], "o"),
    "one for each of several": Case("", [WARM] * 3, "ooo"),
    "never above max": Case("", [WARM] * 6, "ooo"),
    "those there count": Case("bs", [WARM] * 6, "o"),
    "so does one that has to end after its job": Case("bd", [WARM] * 6, "o"),
    "one that starts covers one job": Case("s", [WARM, WARM], "o"),
    "two that start cover two jobs": Case("ss", [WARM, WARM], ""),
    "an idle one takes the first job": Case("r", [WARM, WARM], "o", "a"),
    "idle ones take all": Case("rr", [WARM, WARM], "", "ab"),
    "a busy one takes none": Case("b", [WARM], "o"),
    "no more than can work at once": Case("", [WARM] * 6, "oo", limits=limits_of(max_jobs=2, omc=make_pool(max=3))),
    "those at work count": Case("b", [WARM] * 6, "o", limits=limits_of(max_jobs=2, omc=make_pool(max=3))),
    "those that start count": Case("s", [WARM] * 6, "o", limits=limits_of(max_jobs=2, omc=make_pool(max=3))),
    "jobs that start now count": Case(
        "", [make_demand(), WARM, WARM], "o", "a", limits=limits_of(max_jobs=2, omc=make_pool(max=3))
    ),
    "no room, no server": Case("b", [WARM], "", limits=limits_of(max_jobs=1, omc=make_pool(max=3))),
    "other jobs pass those that wait for one": Case("", [WARM, make_demand()], "o", "b"),
    "each solver its own": Case("", [WARM, POST, WARM], "opo", limits=limits_of(omc=make_pool(), post=make_pool())),
    "not for a solver at its own limit": Case(
        "b", [WARM], "", limits=make_limits(solver_jobs={"ccx": None, "omc": 1}, pools={"omc": make_pool()})
    ),
    "not for a job that asks for more than there is": Case("", [make_demand("omc", cpus=9, warm=True)], ""),
    "not for one whose own license nobody has": Case("", [make_demand("omc", licenses=(("mapdl", 1),), warm=True)], ""),
    "with its license": Case("", [WARM, WARM], "oo", limits=limits_of(2, omc=SEATED_POOL)),
    "as far as its license goes": Case("", [WARM, WARM], "o", limits=limits_of(1, omc=SEATED_POOL)),
    "a license goes to the first": Case("", [SEATED, WARM], "", "a", limits=limits_of(1, omc=SEATED_POOL)),
    "also where that is the server": Case("", [WARM, SEATED], "o", limits=limits_of(1, omc=SEATED_POOL)),
    "a job with an idle server needs no license": Case(
        "r", [WARM, SEATED], "", "a", limits=limits_of(1, omc=SEATED_POOL)
    ),
}


def set_up(there: str, limits: Limits, queued: list[Demand]) -> Story:
    story = Story()
    licenses = limits.pools["omc"].licenses
    for n, letter in enumerate(there):
        if letter == "s":
            story.want_server("omc", licenses)
            continue
        name = story.start_server("omc", licenses)
        if letter in "bd":
            assert serve(story, f"served-{n}") == name
        if letter == "d":
            story.retire(name)
    queue(story, queued)
    story.world.sanity_check()
    return story


@pytest.mark.parametrize("name", CASES)
def test_which_servers_start(name: str) -> None:
    case = CASES[name]
    decided = decide(set_up(case.there, case.limits, case.queued), case.limits)
    assert decided.servers == tuple({"o": "omc", "p": "post"}[letter] for letter in case.servers)
    assert decided.starts == tuple(case.starts)
    assert decided.retire == ()


# --- min and scale --------------------------------------------------------------------------------------------------


def test_min_is_kept_up_though_nobody_asks() -> None:
    story, limits = Story(), limits_of(omc=make_pool(min=2, max=3), post=make_pool(min=1))
    assert starts(story, limits) == "oop"
    story.want_server()
    story.start_server("post")
    assert starts(story, limits) == "o"
    queue(story, [WARM, WARM])
    assert starts(story, limits) == "o", "the same server counts for the job and for min"


def test_min_is_kept_up_beside_jobs_that_fill_the_machine() -> None:
    story, limits = Story(), limits_of(max_jobs=1, omc=make_pool(min=2))
    story.accept("running")
    story.start("running")
    assert starts(story, limits) == "oo"


@pytest.mark.parametrize("solver", [None, "omc"])
def test_nothing_starts_while_paused(solver: str | None) -> None:
    story, limits = Story(), limits_of(omc=make_pool(min=1))
    queue(story, [WARM, WARM])
    story.world.set_pause(Pause(solver, None, story.now_us, None))
    assert starts(story, limits) == ""
    story.world.end_pause(solver)
    assert starts(story, limits) == "oo"


def test_a_scale_stands_above_min_and_max() -> None:
    story, limits = Story(), limits_of(omc=make_pool(min=1, max=2, idle_seconds=10.0))
    story.world.set_scale("omc", 3)
    assert starts(story, limits) == "ooo"
    queue(story, [WARM] * 5)
    assert starts(story, limits) == "ooo"
    names = [story.start_server() for _ in range(3)]
    for job_id in "abcde":
        story.cancel(job_id)
    story.now += 100.0
    assert retires(story, limits) == {}, "these are wanted, though idle"
    story.world.set_scale("omc", None)
    assert retires(story, limits) == dict.fromkeys(names[:2], "no job for it")


def test_scaled_to_none_there_is_none() -> None:
    story, limits = set_up("srb", limits_of(omc=make_pool(min=1)), [WARM]), limits_of(omc=make_pool(min=1))
    story.world.set_scale("omc", 0)
    decided = decide(story, limits)
    assert decided.servers == ()
    assert dict(decided.retire) == {"omc-1": "scaled to 0"}, "the job takes the idle one, and the busy one goes on"
    assert decided.starts == ("a",)
    queue(waiting := Story(), [WARM])
    waiting.world.set_scale("omc", 0)
    assert decide(waiting, limits) == Plan((), None)


def test_scaled_down_those_that_start_go_first_then_the_longest_idle() -> None:
    story, limits = Story(), limits_of(omc=make_pool(max=4))
    for _ in range(3):
        story.start_server()
        story.now += 1.0
    story.want_server()
    story.world.set_scale("omc", 2)
    assert list(retires(story, limits)) == ["omc-4", "omc-1"]


# --- idle -----------------------------------------------------------------------------------------------------------


def test_an_idle_server_above_min_ends_after_its_time_and_a_wake_is_set_for_it() -> None:
    story, limits = Story(), limits_of(omc=make_pool(min=1, max=3, idle_seconds=10.0))
    story.start_server()
    story.now += 4.0
    story.start_server()
    assert decide(story, limits).wake_at == 1010.0
    story.now = 1009.9
    assert decide(story, limits) == Plan((), 1010.0)
    story.now = 1010.0
    assert retires(story, limits) == {"omc-1": "no job for it"}
    story.retire("omc-1")
    assert decide(story, limits) == Plan((), None), "the last one stays"


def test_all_above_min_end_and_idleness_counts_from_the_last_job() -> None:
    story, limits = Story(), limits_of(omc=make_pool(max=3, idle_seconds=10.0))
    for _ in range(3):
        story.start_server()
    serve(story, "job")
    story.now += 9.0
    story.free("omc-3")
    assert decide(story, limits).wake_at == 1010.0
    story.now = 1010.0
    decided = decide(story, limits)
    assert dict(decided.retire) == {"omc-1": "no job for it", "omc-2": "no job for it"}
    assert decided.wake_at == 1019.0


def test_a_server_that_takes_a_job_now_is_not_idle() -> None:
    story, limits = Story(), limits_of(omc=make_pool(idle_seconds=10.0))
    story.start_server()
    story.now += 1.0
    story.start_server()
    story.now += 100.0
    queue(story, [WARM])
    decided = decide(story, limits)
    assert decided.starts == ("a",)
    assert dict(decided.retire) == {"omc-1": "no job for it"}
    story.start("a")
    assert story.job("a").current.server == "omc-2"


def test_a_server_that_is_only_looked_at_grows_idle_all_the_same() -> None:
    """One job at a time on two servers: the heartbeats of the other must not make it the next one."""
    story, limits = Story(), limits_of(omc=make_pool(idle_seconds=10.0))
    story.start_server()
    story.now += 1.0
    story.start_server()
    for n in range(5):
        fleet.apply(story.world, {}, ServerSeen("omc-1", 1))
        story.now += 1.0
        assert serve(story, f"job-{n}") == "omc-2"
        story.now += 1.0
        story.free("omc-2")
    assert retires(story, limits) == {"omc-1": "no job for it"}


def test_without_an_idle_time_servers_stay() -> None:
    story, limits = Story(), limits_of(omc=make_pool(idle_seconds=None))
    story.start_server()
    story.now += 1e9
    assert decide(story, limits) == Plan((), None)


# --- recycling ------------------------------------------------------------------------------------------------------


def test_recycled_by_jobs() -> None:
    story, limits = Story(), limits_of(omc=make_pool(recycle_jobs=2))
    story.start_server()
    for job_id, due in [("x", {}), ("y", {"omc-1": "recycled after 2 jobs"})]:
        serve(story, job_id)
        assert retires(story, limits) == {}, "never in the middle of a job"
        story.free("omc-1")
        assert retires(story, limits) == due


def test_recycled_by_age_and_a_wake_is_set_for_it() -> None:
    story, limits = Story(), limits_of(omc=make_pool(min=1, recycle_age_seconds=60.0))
    story.want_server()
    assert decide(story, limits).wake_at is None
    story = Story()
    story.start_server()
    assert decide(story, limits) == Plan((), 1060.0)
    story.now = 1059.9
    assert decide(story, limits) == Plan((), 1060.0)
    story.now = 1060.0
    assert decide(story, limits) == Plan((), None, None, ("omc",), (("omc-1", "recycled for its age"),))


@pytest.mark.parametrize(("rss_bytes", "due"), [(None, {}), (100, {}), (101, {"omc-1": "recycled for its memory"})])
def test_recycled_by_memory(rss_bytes: int | None, due: dict[str, str]) -> None:
    story, limits = Story(), limits_of(omc=make_pool(recycle_rss_bytes=100))
    story.start_server()
    fleet.apply(story.world, {}, ServerSeen("omc-1", rss_bytes))
    assert retires(story, limits) == due


def test_recycled_only_once_it_has_no_job() -> None:
    story, limits = Story(), limits_of(omc=make_pool(recycle_age_seconds=60.0, recycle_rss_bytes=100))
    story.start_server()
    serve(story, "job")
    fleet.apply(story.world, {}, ServerSeen("omc-1", 101))
    story.now += 100.0
    assert decide(story, limits) == Plan((), None)
    story.free("omc-1")
    assert list(retires(story, limits)) == ["omc-1"]


@pytest.mark.parametrize(("most", "now"), [(1, ()), (2, ("omc",))])
def test_a_job_gets_no_server_that_is_recycled_now_but_a_new_one(most: int, now: tuple[str, ...]) -> None:
    story, limits = Story(), limits_of(omc=make_pool(max=most, recycle_jobs=1))
    story.start_server()
    serve(story, "job")
    story.free("omc-1")
    queue(story, [WARM])
    decided = decide(story, limits)
    assert (decided.starts, decided.servers) == ((), now), "never more than max, those that end included"
    assert list(dict(decided.retire)) == ["omc-1"]
    story.retire("omc-1")
    assert decide(story, limits).servers == now
    story.server_ended("omc-1", None)
    assert decide(story, limits).servers == ("omc",)


def test_no_more_servers_start_than_jobs_that_could_run() -> None:
    story = Story()
    queue(story, [make_demand("omc", cpus=5, warm=True)] * 4)
    assert starts(story, limits_of(omc=make_pool(max=4))) == "o", "cores for one"


def test_the_server_of_a_job_that_waits_for_room_comes_up_and_stays() -> None:
    story, limits = Story(), limits_of(omc=make_pool(max=1, idle_seconds=10.0))
    story.accept("running", make_demand(cpus=5))
    story.start("running")
    queue(story, [make_demand("omc", cpus=5, warm=True), make_demand(cpus=1)])
    decided = decide(story, limits)
    assert (decided.servers, decided.blocker, decided.starts) == (("omc",), "a", ()), "nobody overtakes it meanwhile"
    story.start_server()
    story.now += 100.0
    decided = decide(story, limits)
    assert (decided.servers, decided.blocker, decided.starts, decided.retire) == ((), "a", (), ())


# --- draining and failures ------------------------------------------------------------------------------------------


def test_a_daemon_that_stops_ends_all_that_is_idle_or_starts() -> None:
    limits = limits_of(omc=make_pool(min=2, max=5))
    story = set_up("srbd", limits, [WARM])
    story.retire("omc-2")
    story.start_server()
    story.world.draining = True
    decided = decide(story, limits)
    assert (decided.starts, decided.servers) == ((), ())
    assert dict(decided.retire) == {"omc-1": "the daemon stops", "omc-5": "the daemon stops"}


def test_a_pool_that_rests_starts_nothing_until_its_rest_is_over() -> None:
    story, limits = Story(), limits_of(omc=make_pool(min=1), post=make_pool())
    story.server_ended(story.start_server(), "it ended with exit code 3")
    queue(story, [WARM, POST])
    decided = decide(story, limits)
    assert (decided.servers, decided.wake_at) == (("post",), 1000.1)
    story.now = 1000.1
    assert decide(story, limits).servers == ("omc", "post")


def test_a_pool_that_failed_starts_nothing_until_it_is_restarted() -> None:
    rule = make_pool(min=1, restarts=1)
    story, limits = Story(), limits_of(omc=rule)
    for _ in range(2):
        story.server_ended(story.start_server(), "it ended with exit code 3", rule=rule)
        story.now += 1.0
    queue(story, [WARM])
    story.now += 1e6
    assert decide(story, limits) == Plan((), None)
    fleet.restart(story.world, make_pool(), "omc")
    assert starts(story, limits) == "o"


def test_a_pool_that_rests_or_failed_keeps_no_license_from_others() -> None:
    story, limits = Story(), limits_of(1, omc=make_pool(min=1, licenses=SEAT))
    story.server_ended(story.start_server("omc", SEAT), "it ended with exit code 3")
    queue(story, [WARM, SEATED])
    assert decide(story, limits).starts == ("b",)


def test_servers_of_a_failed_pool_that_are_left_take_jobs() -> None:
    rule = make_pool(restarts=1)
    story, limits = Story(), limits_of(omc=rule)
    left = story.start_server()
    for _ in range(2):
        story.server_ended(story.start_server(), "it ended with exit code 3", rule=rule)
    queue(story, [WARM, WARM])
    assert decide(story, limits).starts == ("a",)
    assert lend(story, "a") == left
