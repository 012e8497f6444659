"""A license that is refused again and again rests; one trial ends that."""

from __future__ import annotations

from builders import Story, make_demand, make_limits
from solvisor.refusals import (
    FIRST_REST_SECONDS,
    LONGEST_REST_SECONDS,
    REFUSALS_MAX,
    TRIAL_SECONDS,
    Refusals,
)
from solvisor.scheduler import plan

SEAT = [("tok", 1)]


def refused(times: int, refusals: Refusals | None = None, now: float = 0.0) -> Refusals:
    refusals = refusals or Refusals(set())
    for _ in range(times):
        refusals.refuse(SEAT, "no seat", now)
    return refusals


def test_a_few_refusals_say_little() -> None:
    refusals = refused(REFUSALS_MAX - 1)
    assert refusals.resting == set()
    assert list(refusals.wakes()) == []
    refusals.grant(SEAT)
    refused(REFUSALS_MAX - 1, refusals)
    assert refusals.resting == set(), "a seat in between forgets them"


def test_after_several_in_a_row_it_rests_longer_each_time() -> None:
    refusals = refused(REFUSALS_MAX)
    now, rests = 0.0, []
    for _ in range(9):
        assert refusals.resting == refusals.held_back() == {"tok"}
        (until,) = refusals.wakes()
        rests.append(until - now)
        refusals.pass_time(until - 0.001)
        assert refusals.resting == {"tok"}, "not a moment too early"
        now = until
        refusals.pass_time(now)
        assert refusals.resting == set()
        refused(1, refusals, now)
    assert rests == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 600.0, 600.0]
    assert (rests[0], rests[-1]) == (FIRST_REST_SECONDS, LONGEST_REST_SECONDS)
    assert refusals["tok"].message == "no seat"


def rested() -> Refusals:
    refusals = refused(REFUSALS_MAX)
    refusals.pass_time(FIRST_REST_SECONDS)
    return refusals


def test_one_alone_tries_what_has_rested() -> None:
    refusals = rested()
    assert refusals.wants_trial("tok")
    refusals.begin(SEAT, "job-1", 100.0)
    assert refusals.resting == {"tok"}
    assert not refusals.wants_trial("tok"), "the next one waits"
    assert list(refusals.wakes()) == [100.0 + TRIAL_SECONDS]
    refusals.begin(SEAT, "job-2", 101.0)
    assert refusals["tok"].trial == "job-1"


def test_a_trial_that_is_granted_ends_it_all() -> None:
    refusals = rested()
    refusals.begin(SEAT, "job-1", 100.0)
    refusals.grant(SEAT)
    assert (refusals.resting, list(refusals.wakes())) == (set(), [])
    refused(REFUSALS_MAX - 1, refusals)
    assert refusals.resting == set(), "it begins anew"


def test_a_trial_that_still_runs_has_its_seat() -> None:
    refusals = rested()
    refusals.begin(SEAT, "job-1", 100.0)
    refusals.pass_time(100.0 + TRIAL_SECONDS)
    assert (refusals.resting, list(refusals.wakes())) == (set(), [])
    refusals.begin(SEAT, "job-2", 161.0)
    assert refusals.resting == set(), "nobody tries alone any more"


def test_a_trial_that_is_refused_rests_again_and_one_that_ended_otherwise_lets_the_next_try() -> None:
    refusals = rested()
    refusals.begin(SEAT, "job-1", 100.0)
    refused(1, refusals, 100.5)
    assert list(refusals.wakes()) == [100.5 + 2 * FIRST_REST_SECONDS]
    refusals.pass_time(100.5 + 2 * FIRST_REST_SECONDS)
    refusals.begin(SEAT, "job-1", 300.0)
    refusals.end_trial("another")
    assert refusals.resting == {"tok"}
    refusals.end_trial("job-1")
    assert refusals.resting == refusals.held_back() == set()
    assert refusals.wants_trial("tok")


def test_a_license_that_was_never_refused_is_nobodys_trial() -> None:
    refusals = Refusals(set())
    refusals.begin(SEAT, "job-1", 0.0)
    refusals.grant(SEAT)
    refusals.end_trial("job-1")
    refusals.pass_time(1e9)
    assert (refusals.resting, refusals.wants_trial("tok")) == (set(), False)


def test_a_plan_is_no_trial_yet() -> None:
    story = Story()
    story.accept("job", make_demand(licenses=(("orcaflex", 1),)))
    for _ in range(REFUSALS_MAX):
        story.world.refusals.refuse([("orcaflex", 1)], "no seat", story.now)
    story.world.refusals.pass_time(story.now + LONGEST_REST_SECONDS)
    assert plan(story.world, make_limits(licenses={"orcaflex": 1}), story.now).starts == ("job",)
    assert story.world.used.resting == set()
    story.world.sanity_check()
