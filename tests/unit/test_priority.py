"""A job that is moved in the order: who starts next, what is said of it, what is recorded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builders import BAD, Story, make_demand, make_limits, make_settings
from solvisor import answers, machine
from solvisor.errors import IllegalEvent
from solvisor.events import Prioritize
from solvisor.model import Cause, Retry, State
from solvisor.scheduler import explain, plan
from solvisor.usual import Usual

ONE = make_limits(max_jobs=1)
WIDE = make_demand(cpus=2)


def prioritize(story: Story, job_id: str, priority: int) -> None:
    assert machine.apply(story.world, Prioritize(job_id, priority)) == []
    story.world.sanity_check()


def order_line(story: Story, job_id: str) -> str:
    findings = explain(story.world, ONE, job_id, story.now, story.now_us)
    return next(finding.text for finding in findings if finding.label == "order")


def test_the_order_follows_at_once_and_is_told_so() -> None:
    story = Story()
    story.accept("running")
    story.start("running")
    for job_id, demand in (("a", None), ("b", WIDE), ("c", None)):
        story.accept(job_id, demand, user="ann")
    assert order_line(story, "c") == "3rd of 3; first is a (ann)"
    prioritize(story, "c", 5)
    assert order_line(story, "c") == "1st of 3"
    assert order_line(story, "a") == "2nd of 3; first is c (ann, priority 5)"
    prioritize(story, "b", 9)
    assert order_line(story, "c") == "2nd of 3; first is b (ann, priority 9)"
    prioritize(story, "b", -1)
    assert order_line(story, "b") == "3rd of 3; first is c (ann, priority 5)"
    story.exited("running")
    assert plan(story.world, ONE, story.now).starts == ("c",)
    prioritize(story, "c", 0)
    assert plan(story.world, ONE, story.now).starts == ("a",), "of one priority who came first goes first"


def test_it_is_recorded_beside_what_was_asked_and_shown() -> None:
    story = Story()
    story.accept("job", priority=3)
    story.world.take_changes()
    prioritize(story, "job", -7)
    (job,) = story.world.take_changes().jobs
    assert (job.priority, job.given_priority, job.spec.priority) == (-7, -7, 3)
    assert isinstance(job.asked, bytes), "of jobs that wait only the bytes are kept"
    view = answers.view(story.world, ONE, Usual(), job, make_settings(), None, story.now_us)
    assert view.priority == -7


def test_what_rests_or_waits_for_another_has_its_place_once_it_is_ready() -> None:
    story = Story()
    story.accept("resting", WIDE)
    story.run("resting", BAD, make_settings(Retry(1, (Cause.EXIT,), 30.0)))
    story.accept("other")
    story.accept("after", after=["other"])
    story.accept("ahead", priority=2)
    prioritize(story, "resting", 4)
    prioritize(story, "after", 3)
    assert plan(story.world, ONE, story.now).starts == ("ahead",)
    story.run("other")
    story.backoff_over("resting")
    story.world.sanity_check()
    assert plan(story.world, make_limits(), story.now).starts == ("resting", "after", "ahead")
    assert story.job("resting").state is State.QUEUED


def test_it_is_kept_over_a_try_that_was_lost() -> None:
    story = Story()
    story.accept("a")
    story.accept("b")
    prioritize(story, "b", 1)
    story.start("b")
    story.lost("b")
    assert plan(story.world, ONE, story.now).starts == ("b",)


def test_what_has_started_has_no_place_in_the_order() -> None:
    story = Story()
    story.accept("job")
    story.start("job")
    with pytest.raises(IllegalEvent, match="Prioritize cannot happen to job, which is running"):
        machine.apply(story.world, Prioritize("job", 1))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-2, 2)), max_size=12))
def test_any_moves_leave_the_order_of_priority_then_first_come(moves: list[tuple[int, int]]) -> None:
    story = Story()
    priorities = dict.fromkeys([f"job-{n}" for n in range(6)], 0)
    for n, job_id in enumerate(priorities):
        story.accept(job_id, WIDE if n % 2 else None)
    for which, priority in moves:
        prioritize(story, f"job-{which}", priority)
        priorities[f"job-{which}"] = priority
    everybody = make_limits(max_jobs=6, cpus=100)
    expected = sorted(priorities, key=lambda job_id: (-priorities[job_id], job_id))
    assert list(plan(story.world, everybody, story.now).starts) == expected
