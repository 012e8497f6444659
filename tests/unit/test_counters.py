"""What ended is counted by solver: how many, how long they waited and ran, in buckets that hold what they say."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from builders import BAD, SECOND_US, Story, make_facts
from solvisor.counters import BOUNDS, UNKNOWN, Counters, Histogram


def ended(story: Story, job_id: str, *, waits: float, runs: float) -> None:
    story.accept(job_id)
    story.now_us += round(waits * SECOND_US)
    story.start(job_id)
    story.now_us += round(runs * SECOND_US)
    story.exited(job_id, replace(make_facts(), finished_us=story.now_us, seconds=None))


def test_jobs_are_counted_by_solver_and_state_with_their_seconds() -> None:
    counters, story = Counters(), Story()
    ended(story, "a", waits=2, runs=30)
    story.judged("a")
    ended(story, "b", waits=0, runs=0.25)
    story.judged("b", BAD)
    story.accept("c")
    story.cancel("c")
    for job_id in "abc":
        counters.count(story.job(job_id), {"ccx"})
    assert counters.ended == {("ccx", "succeeded"): 1, ("ccx", "failed"): 1, ("ccx", "cancelled"): 1}
    assert counters.ran["ccx"].sum == pytest.approx(30.25)
    assert counters.waited["ccx"].sum == pytest.approx(2)
    assert dict(counters.ran["ccx"].buckets())[0.5] == 1
    assert list(counters.ran["ccx"].buckets())[-1] == (float("inf"), 2)


def test_names_that_jobs_bring_are_no_names_of_ours() -> None:
    counters, story = Counters(), Story()
    for number in range(100):
        story.accept(f"a{number}", solver=f"own-{number}")
        story.cancel(f"a{number}")
        counters.count(story.job(f"a{number}"), {"ccx"})
    assert counters.ended == {(UNKNOWN, "cancelled"): 100}


def test_a_value_on_a_bound_lies_below_it() -> None:
    histogram = Histogram()
    for value in (0, 0.1, 0.10001, BOUNDS[-1], BOUNDS[-1] + 1):
        histogram.add(value)
    found = dict(histogram.buckets())
    assert (found[0.1], found[0.5], found[BOUNDS[-1]], found[float("inf")]) == (2, 3, 4, 5)
