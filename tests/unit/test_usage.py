"""How busy it was, with numbers: looks, sums, time lines."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from builders import GIB, NOON_US, SECOND_US, Story, make_demand, make_limits
from solvisor import answers
from solvisor.model import Pause
from solvisor.usage import HOUR, MINUTE, Level, Life, Look, Row, Sums, Tally, Wait, look, merged, steps, totals, usage
from solvisor.usual import Usual

MIN_US = 60 * SECOND_US
LIMITS = make_limits(max_jobs=4, cpus=8, memory_bytes=16 * GIB, licenses={"orca": 2})
IDLE = Look({"jobs": (0, 4), "cpus": (0, 8), "memory": (0, 16 * GIB)}, {}, {})


def busy(cpus: float = 2, waits: dict[Any, int] | None = None, starts: dict[str, int] | None = None) -> Look:
    return Look({"jobs": (1, 4), "cpus": (cpus, 8), "memory": (0, 16 * GIB)}, waits or {}, starts or {})


def row(start_us: int, cpus: float, *, span: int = MINUTE, seconds: float | None = None, **waits: float) -> Row:
    lasts = span if seconds is None else seconds
    told = [Wait(None, reason, None, jobs * lasts, lasts) for reason, jobs in waits.items()]
    return Row(start_us, span, Sums(lasts, {"cpus": Level(cpus * lasts, cpus, 8, 0)}, told))


# --- looks ----------------------------------------------------------------------------------------------------------


def test_a_look_says_what_is_taken_and_who_waits_for_what() -> None:
    story = Story()
    demand = make_demand(cpus=3, memory_bytes=GIB, licenses=(("orca", 2),))
    for name in ("a", "b", "c"):
        story.accept(name, demand=demand)
    story.accept("d", demand=make_demand("post"), after=("a",))
    story.dispatch("a")
    limits = make_limits(cpus=8, memory_bytes=16 * GIB, licenses={"orca": 2}, solver_jobs={"ccx": None, "post": 1})
    seen = look(story.world, limits)
    assert seen.levels == {"jobs": (1, 4), "cpus": (3, 8), "memory": (GIB, 16 * GIB), "license.orca": (2, 2)}
    assert seen.waits == {
        ("ccx", "license", "orca"): 2,
        (None, "license", "orca"): 2,
        (None, "dependency", None): 1,
    }
    assert not seen.is_idle


def test_while_all_stands_still_everybody_waits_for_that() -> None:
    story = Story()
    story.accept("a")
    story.accept("b", demand=make_demand("post"))
    story.world.set_pause(Pause("post", None, 0, None))
    told = look(story.world, make_limits(solver_jobs={"ccx": None, "post": None})).waits
    assert told["post", "paused", None] == 1
    assert told["ccx", "order", None] == 1
    story.world.draining = True
    told = look(story.world, LIMITS).waits
    assert told == {("ccx", "paused", None): 1, ("post", "paused", None): 1, (None, "paused", None): 2}


@pytest.mark.parametrize("stops", ["draining", "wary", "pause", "solver", "nothing"])
def test_the_status_and_the_meter_count_the_same(stops: str) -> None:
    story = Story()
    for name in ("a", "b", "c"):
        story.accept(name, demand=make_demand(licenses=(("orca", 2),)))
    story.accept("d", demand=make_demand("post"), after=("a",))
    story.dispatch("a")
    limits = make_limits(cpus=8, licenses={"orca": 2}, solver_jobs={"ccx": None, "post": 1})
    if stops == "draining":
        story.world.draining = True
    elif stops == "wary":
        story.world.wary = True
    elif stops != "nothing":
        story.world.set_pause(Pause("ccx" if stops == "solver" else None, None, 0, None))
    told: Counter[str] = Counter()
    for line in answers.waiting_for(story.world, limits):
        told[line.reason] += line.jobs
    kept = {reason: jobs for (solver, reason, _), jobs in look(story.world, limits).waits.items() if solver is None}
    assert told == kept
    assert told.total() == 3
    rows = (answers.row(story.world, limits, Usual(), story.job(name), NOON_US) for name in "bcd")
    assert Counter(row.reason for row in rows) == told


def test_an_empty_world_is_idle_and_a_held_license_is_not() -> None:
    assert look(Story().world, LIMITS).is_idle
    assert not Look({"license.orca": (1, 2)}, {}, {}).is_idle


# --- sums -----------------------------------------------------------------------------------------------------------


def test_sums_are_what_was_taken_times_how_long() -> None:
    tally = Tally()
    wait = (None, "license", "orca")
    tally.add(busy(2), 10)
    tally.add(busy(8, {wait: 3}), 5)
    tally.add(IDLE, 45)
    sums = tally.take()
    assert sums is not None
    assert sums.seconds == 60
    assert sums.levels["cpus"] == Level(2 * 10 + 8 * 5, 8, 8, 5)
    assert sums.waits == [Wait(*wait, 15, 5, 0)]
    tally.add(busy(2, {wait: 1}), 10)
    again = tally.take()
    assert again is not None
    assert again.waits == [Wait(*wait, 10, 10, 60)], "while it waited six cores were idle"


def test_an_idle_minute_leaves_nothing() -> None:
    tally = Tally()
    tally.add(IDLE, 60)
    assert tally.take() is None
    assert tally.take() is None


def test_starts_of_servers_are_counted_once() -> None:
    tally = Tally()
    tally.add(busy(starts={"omc": 2}), 1)
    tally.add(busy(starts={"omc": 3}), 1)
    first = tally.take()
    tally.add(busy(starts={"omc": 3}), 1)
    second = tally.take()
    assert first is not None
    assert second is not None
    assert (first.starts, second.starts) == ({"omc": 3}, {})


def test_spans_add_up_in_any_grouping() -> None:
    parts = [row(0, 2, order=1).sums, row(0, 5, license=2).sums, row(0, 8, order=4).sums]
    whole = merged(parts)
    assert whole.seconds == 180
    assert whole.levels["cpus"] == Level(60 * (2 + 5 + 8), 8, 8, 0)
    assert {wait.reason: wait.jobs for wait in whole.waits} == {"order": 60 + 240, "license": 120}
    assert merged([merged(parts[:2]), parts[2]]) == whole
    assert parts[0].levels["cpus"].used == 120, "what went in is as it was"


# --- the time line --------------------------------------------------------------------------------------------------


def line(
    rows: list[Row], lives: list[Life], since: int, until: int, points: int
) -> dict[str, tuple[float | None, ...]]:
    told = usage(rows, lives, since, until, points, totals(LIMITS))
    return {series.name: series.values for series in told.series}


def test_without_a_daemon_there_is_no_value_and_with_an_idle_one_a_zero() -> None:
    lives = [Life(NOON_US + MIN_US, NOON_US + 2 * MIN_US)]
    found = line([], lives, NOON_US, NOON_US + 4 * MIN_US, 4)
    assert found["cpus"] == (None, 0.0, None, None)
    assert found["waiting"] == (None, 0.0, None, None)
    assert found["license.orca"] == (None, 0.0, None, None)


def test_a_mean_is_over_the_time_in_which_a_daemon_was_there() -> None:
    lives = [Life(NOON_US, NOON_US + 2 * MIN_US)]
    rows = [row(NOON_US, 4, order=2), row(NOON_US + MIN_US, 8, license=6)]
    found = line(rows, lives, NOON_US, NOON_US + 4 * MIN_US, 1)
    assert found["cpus"] == (6.0,)
    assert found["waiting"] == (4.0,)


def test_no_step_is_shorter_than_a_minute() -> None:
    told = usage([], [], NOON_US, NOON_US + 10 * MIN_US, 1000, totals(LIMITS))
    assert told.step_seconds == 60
    assert len(told.series[0].values) == 10
    assert usage([], [], NOON_US, NOON_US + SECOND_US, 96, totals(LIMITS)).step_seconds == 1


def test_an_hour_gives_each_step_its_share() -> None:
    lives = [Life(NOON_US, NOON_US + 120 * MIN_US)]
    found = line([row(NOON_US, 4, span=HOUR)], lives, NOON_US, NOON_US + 120 * MIN_US, 8)
    assert found["cpus"] == pytest.approx((4, 4, 4, 4, 0, 0, 0, 0))


def test_what_lies_before_or_after_does_not_count() -> None:
    lives = [Life(0, NOON_US * 2)]
    rows = [row(NOON_US - MIN_US, 8), row(NOON_US, 4), row(NOON_US + 2 * MIN_US, 8)]
    assert line(rows, lives, NOON_US, NOON_US + 2 * MIN_US, 2)["cpus"] == pytest.approx((4, 0))


def test_fault_48_a_clock_that_was_set_back_makes_no_mean_larger_than_what_there_is() -> None:
    lives = [Life(NOON_US, NOON_US + MIN_US), Life(NOON_US, NOON_US + 30 * SECOND_US)]
    twice = merged([row(NOON_US, 8).sums, row(NOON_US, 8).sums])
    assert line([Row(NOON_US, MINUTE, twice)], lives, NOON_US, NOON_US + MIN_US, 1)["cpus"] == (8.0,)
    assert line([row(NOON_US, 8)], lives, NOON_US, NOON_US + MIN_US, 1)["cpus"] == (8.0,), "no time counts twice"


def test_a_license_that_is_gone_is_told_with_how_many_there_were() -> None:
    old = Row(NOON_US, MINUTE, Sums(60, {"license.gone": Level(60, 1, 3, 0)}, []))
    told = usage([old], [], NOON_US, NOON_US + MIN_US, 1, totals(LIMITS))
    assert [(s.name, s.unit, s.total) for s in told.series if s.name.startswith("license")] == [
        ("license.orca", "licenses", 2),
        ("license.gone", "licenses", 3),
    ]


def test_steps_keep_what_was_waited_for_apart() -> None:
    rows = [row(NOON_US, 1, order=2, disk=1)]
    (step,) = steps(rows, [Life(NOON_US, NOON_US + MIN_US)], NOON_US, NOON_US + MIN_US, 1)
    assert step.waits == {"order": 120, "disk": 60}
