"""The floor of free space: when no job starts, when nothing is taken in, and what is told of it."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from builders import GIB, NOON_US, WARM, Story, make_demand, make_limits, make_pool
from solvisor import answers, scheduler
from solvisor.disk import Disk, reserve
from solvisor.model import Reason

ROOMY = Disk(100 * GIB, 50 * GIB, GIB, 10_000_000, 9_000_000)
SHORT = replace(ROOMY, free_bytes=GIB - 1)
LIMITS = make_limits()


@pytest.mark.parametrize(
    ("setting", "total", "kept"),
    [("auto", 1000 * GIB, GIB), ("auto", 10 * GIB, GIB // 2), ("auto", 0, 0), (0, GIB, 0), (5 * GIB, GIB, 5 * GIB)],
)
def test_what_is_kept_free(setting: int, total: int, kept: int) -> None:
    assert reserve(setting, total) == kept


@pytest.mark.parametrize(
    ("disk", "starts", "takes"),
    [
        (ROOMY, True, True),
        (replace(ROOMY, free_bytes=GIB), True, True),
        (SHORT, False, True),
        (replace(ROOMY, free_bytes=GIB // 4), False, True),
        (replace(ROOMY, free_bytes=GIB // 4 - 1), False, False),
        (replace(ROOMY, free_bytes=0, reserve_bytes=0), True, True),
        (replace(ROOMY, free_files=1000), True, True),
        (replace(ROOMY, free_files=999), False, True),
        (replace(ROOMY, free_files=249), False, False),
        (replace(ROOMY, total_files=5000, free_files=50), True, True),
        (replace(ROOMY, total_files=5000, free_files=49), False, True),
        (replace(ROOMY, total_files=0, free_files=0), True, True),
        (replace(ROOMY, free_files=0, reserve_bytes=0), True, True),
        (replace(ROOMY, read_only=True), False, False),
        (replace(ROOMY, read_only=True, reserve_bytes=0), False, False),
    ],
)
def test_what_a_disk_allows(disk: Disk, starts: bool, takes: bool) -> None:
    assert (disk.no_start is None, disk.no_intake is None) == (starts, takes)


def test_the_words_have_the_numbers_and_say_what_to_do() -> None:
    short = replace(ROOMY, free_bytes=412 << 20)
    text = "412 MiB free on the disk, 1 GiB is kept free: remove old results, or set [daemon] disk_reserve"
    assert short.no_start == text
    assert replace(ROOMY, free_files=812).no_start == (
        "812 more files fit on the disk, room for 1,000 is kept: remove old results"
    )


def test_no_job_and_no_server_is_started_on_a_short_disk_and_all_are_once_there_is_room() -> None:
    story = Story()
    for job in "abc":
        story.accept(job)
    story.accept("w", demand=WARM)
    limits = make_limits(max_jobs=8, pools={"omc": make_pool(min=1)}, solver_jobs={"ccx": None, "omc": None})
    story.world.disk = SHORT
    plan = scheduler.plan(story.world, limits, 0.0)
    assert (plan.starts, plan.servers) == ((), ())
    story.world.disk = ROOMY
    plan = scheduler.plan(story.world, limits, 0.0)
    assert (plan.starts, plan.servers) == (("a", "b", "c"), ("omc",))


def test_a_job_that_waits_for_the_disk_is_explained_with_the_numbers() -> None:
    story = Story()
    story.accept("a")
    story.accept("b", demand=make_demand("gone"))
    story.world.disk = SHORT
    assert scheduler.reason(story.world, LIMITS, story.job("a")) == (Reason.DISK, None)
    assert scheduler.reason(story.world, LIMITS, story.job("b")) == (Reason.SOLVER, "gone"), "room would not help it"
    waits = {(wait.reason, wait.jobs) for wait in answers.waiting_for(story.world, LIMITS)}
    assert waits == {(Reason.DISK, 1), (Reason.SOLVER, 1)}
    (first, *others) = scheduler.explain(story.world, LIMITS, "a", 0.0, NOON_US)
    assert (first.reason, first.holds, first.need, first.used, first.total) == (
        *(Reason.DISK, True, GIB),
        *(99 * GIB + 1, 100 * GIB),
    )
    assert first.text == SHORT.no_start
    assert not any(finding.holds for finding in others)
    story.world.disk = replace(ROOMY, free_files=999)
    (first, *_) = scheduler.explain(story.world, LIMITS, "a", 0.0, NOON_US)
    assert (first.need, first.used, first.total) == (1000, 10_000_000 - 999, 10_000_000)
    story.world.disk = replace(ROOMY, read_only=True)
    (first, *_) = scheduler.explain(story.world, LIMITS, "a", 0.0, NOON_US)
    assert (first.reason, first.need) == (Reason.DISK, None)


def test_a_short_disk_is_a_problem_that_says_how_far_it_goes() -> None:
    story = Story()
    assert answers.disk_problems(story.world) == []
    story.world.disk = ROOMY
    assert answers.disk_problems(story.world) == []
    story.world.disk = SHORT
    assert answers.disk_problems(story.world) == [f"no job starts: {SHORT.no_start}"]
    full = replace(ROOMY, free_bytes=0)
    story.world.disk = full
    assert answers.disk_problems(story.world) == [f"no job starts, and nothing is taken in: {full.no_start}"]
