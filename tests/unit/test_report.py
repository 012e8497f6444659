"""The report of a period put together, with numbers: levels, waiting, hours, and what lies at its edges."""

from __future__ import annotations

from typing import Any

import pytest

from builders import NOON_US, SECOND_US, make_limits
from solvisor.advice import Declared
from solvisor.figures import PersonFigures, Report, Spread
from solvisor.model import State
from solvisor.report import Common, Ended, Period, Tries, report
from solvisor.usage import HOUR, MINUTE, Level, Life, Row, Sums, Wait

HOUR_US = 3600 * SECOND_US
LIMITS = make_limits(max_jobs=4, cpus=8, licenses={"orca": 2})
NOTHING = Ended({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, [], 0)
SPREAD = Spread(100, 1, 2, 3, 100)


def made(ended: Ended = NOTHING, rows: tuple[Row, ...] = (), lives: tuple[Life, ...] = (), hours: float = 4) -> Report:
    period = Period(NOON_US, NOON_US + int(hours * HOUR_US), "ws04")
    return report(period, ended, rows, lives, LIMITS, {"ccx": Declared(1, 0, {})}, lambda at: at // HOUR_US % 24)


def row(hour: float, cpus: float, span: int = HOUR, **waits: float) -> Row:
    told = [Wait(who, reason, None, n * span, span, span) for reason, n in waits.items() for who in (None, "ccx")]
    sums = Sums(span, {"cpus": Level(cpus * span, cpus, 8, 0)}, told, {"omc": 2})
    return Row(NOON_US + int(hour * HOUR_US), span, sums)


def level(told: Report, name: str) -> Any:
    return next(each for each in told.levels if each.name == name)


def test_a_period_in_which_nothing_was_is_told_so() -> None:
    told = made()
    assert (told.jobs, told.core_seconds, told.up_seconds, told.kept_since) == (0, 0, 0, None)
    assert (told.solvers, told.people, told.waits, told.advice, told.busiest) == ((), (), (), (), ())
    assert [each.name for each in told.levels] == ["jobs", "cpus", "memory", "license.orca"]
    assert all(each.mean == 0 for each in told.levels)
    assert {hour.cpus for hour in told.hours} == {None}


def test_means_are_over_the_time_in_which_a_daemon_was_there() -> None:
    told = made(rows=(row(0, 8), row(1, 4)), lives=(Life(NOON_US, NOON_US + 3 * HOUR_US),))
    cpus = level(told, "cpus")
    assert (cpus.mean, cpus.peak, cpus.used_hours, told.up_seconds) == (4, 8, 12, 3 * 3600)
    assert [(hour.start[:13], hour.cpus) for hour in told.busiest] == [("2026-01-31T12", 8), ("2026-01-31T13", 4)]
    assert [(hour.hour, hour.cpus) for hour in told.hours if hour.cpus is not None] == [(12, 8), (13, 4), (14, 0)]


def test_at_the_edges_only_what_lies_within_counts() -> None:
    life = Life(NOON_US - HOUR_US, NOON_US + 9 * HOUR_US)
    told = made(rows=(row(-0.5, 4, order=2), row(3.5, 4, order=2)), lives=(life,))
    assert told.up_seconds == 4 * 3600
    assert level(told, "cpus").used_hours == pytest.approx(2 + 2)
    assert made(rows=(row(-0.5, 4),)).up_seconds == 1800
    (wait,) = told.waits
    assert [wait.job_seconds, wait.seconds] == pytest.approx([2 * 3600, 3600])


def test_waiting_is_told_of_all_and_of_each_solver() -> None:
    ended = NOTHING._replace(states={"ccx": {State.SUCCEEDED: 3}})
    told = made(ended, (row(0, 1, license=3, memory=1), row(1, 1, MINUTE)), (Life(NOON_US, NOON_US + 2 * HOUR_US),))
    assert [(wait.reason, wait.share, wait.idle_cores) for wait in told.waits] == [
        ("license", 0.75, 1),
        ("memory", 0.25, 1),
    ]
    (ccx,) = told.solvers
    assert ccx.waits == told.waits
    series = {each.name: each.values[0] for each in told.usage.series}
    assert list(series)[-3:] == ["waiting", "waiting.license", "waiting.memory"]
    assert [series[name] for name in list(series)[-3:]] == pytest.approx([4, 3, 1])


def test_solvers_are_told_by_what_they_took() -> None:
    def tries(core_seconds: float, **counts: int) -> Tries:
        given = {"tries": 10, "interruptions": 0, "timeouts": 0, "server_losses": 0, "jobs": 8} | counts
        return Tries(**given, measured_reserved=1, measured_used=1, measured=1, core_seconds=core_seconds)

    ended = NOTHING._replace(
        states={"a": {State.FAILED: 1}, "b": {State.SUCCEEDED: 2}, "": {State.REJECTED: 4}},
        tries={"a": tries(5), "b": tries(50, interruptions=1, server_losses=1)},
        memory={"a": Common(4, SPREAD)},
        memory_largest={"a": Common(9, SPREAD), "b": Common(7, SPREAD)},
        people=[PersonFigures("ann", None, 7, 1, 55)],
        people_count=3,
    )
    told = made(ended)
    assert [solver.name for solver in told.solvers] == ["b", "a", ""]
    assert (told.jobs, told.failed, told.rejected, told.core_seconds, told.people_more) == (7, 1, 4, 55, 2)
    b, a, nobody = told.solvers
    assert (a.retries, b.retries, nobody.retries) == (2, 0, 0)
    assert a.memory is not None
    assert b.memory is not None
    assert (a.memory.reserved_bytes, a.memory.whole_tree) == (4, True)
    assert (b.memory.reserved_bytes, b.memory.whole_tree) == (7, False)


def test_starts_of_warm_servers_are_those_of_the_period() -> None:
    told = made(NOTHING._replace(states={"omc": {State.SUCCEEDED: 1}}), (row(0, 1), row(1, 1)))
    assert told.solvers[0].servers_started == 4
