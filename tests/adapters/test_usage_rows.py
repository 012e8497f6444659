"""How busy it was, in a real database: rows that add up, minutes that become hours, lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from builders import NOON_US, SECOND_US
from solvisor import tallies
from solvisor.backup import back_up
from solvisor.rows import to_usage
from solvisor.store import Store
from solvisor.usage import HOUR, MINUTE, Level, Life, Present, Row, Sums, united, usage

MIN_US, HOUR_US, DAY_US = 60 * SECOND_US, 3600 * SECOND_US, 86400 * SECOND_US
NEVER = -(1 << 62)
FINEST = 1 << 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solvisor.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with closing(Store.open(path)) as store:
        yield store


def minute(start_us: int, used: float = 60.0) -> Row:
    return Row(start_us, MINUTE, Sums(60.0, {"cpus": Level(used, 1, 8, 0)}, []))


def rows(path: Path, since_us: int = 0, until_us: int = 2 * NOON_US) -> list[tuple[int, int, float]]:
    found, _ = tallies.usage(path, since_us, until_us, FINEST)
    return [(row.span_seconds, row.start_us, row.sums.levels["cpus"].used) for row in found]


def lives(path: Path) -> list[Life]:
    return tallies.usage(path, 0, 2 * NOON_US, FINEST)[1]


def test_what_was_noted_comes_back_with_those_that_reach_into_the_period(store: Store, path: Path) -> None:
    store.note_usage([minute(NOON_US + n * MIN_US, n) for n in range(4)], [Life(NOON_US, NOON_US + 4 * MIN_US)])
    half = 30 * SECOND_US
    assert rows(path, NOON_US + MIN_US + half, NOON_US + 3 * MIN_US) == [
        (MINUTE, NOON_US + MIN_US, 1),
        (MINUTE, NOON_US + 2 * MIN_US, 2),
    ]
    assert lives(path) == [Life(NOON_US, NOON_US + 4 * MIN_US)]
    assert tallies.usage(path, NOON_US + 5 * MIN_US, 2 * NOON_US, FINEST) == ([], [])


def test_minutes_of_the_same_name_share_a_row(store: Store, path: Path) -> None:
    store.note_usage([minute(NOON_US, 10)], [])
    store.note_usage([minute(NOON_US, 5), minute(NOON_US, 1)], [])
    assert rows(path) == [(MINUTE, NOON_US, 16)]


def test_a_life_goes_on_and_never_ends_earlier(store: Store, path: Path) -> None:
    assert store.last_life() is None
    store.note_usage([], [Life(NOON_US, NOON_US + MIN_US)])
    store.note_usage([], [Life(NOON_US, NOON_US)])
    assert store.last_life() == Life(NOON_US, NOON_US + MIN_US)
    store.note_usage([], [Life(NOON_US, NOON_US + HOUR_US)])
    assert lives(path) == [Life(NOON_US, NOON_US + HOUR_US)]


def test_old_minutes_become_hours_an_hour_at_a_time_and_lose_nothing(store: Store, path: Path) -> None:
    store.note_usage([minute(NOON_US + n * MIN_US) for n in range(150)], [])
    before = NOON_US + 2 * HOUR_US
    store.thin_usage(before, NEVER)
    assert len(rows(path)) == 1 + 90
    store.thin_usage(before, NEVER)
    store.thin_usage(before, NEVER)
    store.thin_usage(before, NEVER)
    told = rows(path)
    assert told[:2] == [(HOUR, NOON_US, 3600), (HOUR, NOON_US + HOUR_US, 3600)]
    assert [span for span, _, _ in told[2:]] == [MINUTE] * 30
    assert sum(used for _, _, used in told) == 150 * 60


def test_a_minute_that_comes_late_joins_its_hour(store: Store, path: Path) -> None:
    store.note_usage([minute(NOON_US)], [])
    store.thin_usage(NOON_US + HOUR_US, NEVER)
    store.note_usage([minute(NOON_US + MIN_US)], [])
    store.thin_usage(NOON_US + HOUR_US, NEVER)
    assert rows(path) == [(HOUR, NOON_US, 120)]


def test_old_hours_and_lives_go(store: Store, path: Path) -> None:
    old = [Row(NOON_US + n * HOUR_US, HOUR, minute(0).sums) for n in range(60)]
    store.note_usage(old, [Life(NOON_US, NOON_US + HOUR_US), Life(NOON_US + 2 * DAY_US, NOON_US + 3 * DAY_US)])
    before = NOON_US + 50 * HOUR_US
    store.thin_usage(NEVER, before)
    assert len(rows(path)) == 60 - 24, "a day of them in one step"
    for _ in range(3):
        store.thin_usage(NEVER, before)
    assert [start for _, start, _ in rows(path)] == [row.start_us for row in old[50:]]
    assert lives(path) == [Life(NOON_US + 2 * DAY_US, NOON_US + 3 * DAY_US)]


def test_a_backup_has_them(store: Store, path: Path, tmp_path: Path) -> None:
    store.note_usage([minute(NOON_US)], [Life(NOON_US, NOON_US + MIN_US)])
    copy = tmp_path / "copy.db"
    back_up(path, copy)
    assert tallies.usage(copy, 0, 2 * NOON_US, FINEST) == tallies.usage(path, 0, 2 * NOON_US, FINEST)


def test_what_is_not_written_yet_counts_once_and_for_as_long_as_it_has_been(store: Store, path: Path) -> None:
    store.note_usage([minute(NOON_US, 60), minute(NOON_US + MIN_US, 60)], [Life(NOON_US, NOON_US + 2 * MIN_US)])
    part = Row(NOON_US + 2 * MIN_US, 30, Sums(30.0, {"cpus": Level(30.0, 1, 8, 0)}, []))
    stale = Row(NOON_US + MIN_US, 9, Sums(9.0, {"cpus": Level(9.0, 1, 8, 0)}, []))
    now_us = part.start_us + 30 * SECOND_US
    present = Present([part, stale], Life(NOON_US, now_us))
    found, there = tallies.usage(path, NOON_US, now_us, FINEST, present)
    assert [(row.span_seconds, row.sums.seconds) for row in found] == [(60, 60.0), (60, 60.0), (30, 30.0)]
    assert united(there) == [present.life]
    long_ago = NOON_US - 20 * MIN_US
    (joined,), there = tallies.usage(path, long_ago, now_us, 1, present)
    assert (joined.span_seconds, joined.sums.seconds) == (150, 150.0), "none of it lies in the future"
    line = usage([joined], there, long_ago, now_us, 1, {"cpus": 8.0})
    assert line.series[0].values == (1.0,)


def test_a_daemon_that_is_there_was_not_there_before_it_began(store: Store, path: Path) -> None:
    store.note_usage([], [Life(NOON_US, NOON_US + MIN_US)])
    present = Present([minute(NOON_US + 9 * MIN_US)], Life(NOON_US + 9 * MIN_US, NOON_US + 10 * MIN_US))
    between = NOON_US + 2 * MIN_US, NOON_US + 8 * MIN_US
    assert tallies.usage(path, *between, FINEST, present) == ([], [])
    assert tallies.usage(path, NOON_US, NOON_US + 5 * MIN_US, FINEST, present)[1] == [Life(NOON_US, NOON_US + MIN_US)]


def test_minutes_that_become_an_hour_while_they_are_read_are_not_lost(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, young = NOON_US, NOON_US + HOUR_US
    store.note_usage([minute(old + n * MIN_US, 1) for n in range(60)], [])
    store.thin_usage(young, 0)
    store.note_usage([minute(young + n * MIN_US, 1) for n in range(60)], [])
    real = to_usage
    steps: list[None] = []

    def and_thins(row: Any) -> Row:
        if not steps:  # hours are being read
            steps.append(None)
            store.thin_usage(young + HOUR_US, 0)
        return real(row)

    monkeypatch.setattr(tallies, "to_usage", and_thins)
    assert sum(used for _, _, used in rows(path)) == 120
    assert steps, "and they did become one"
    assert [span for span, _, _ in rows(path)] == [HOUR, HOUR]
