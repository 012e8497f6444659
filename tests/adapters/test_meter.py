"""The meter over a real database: what it keeps of a world that changes, that is idle, whose clock is set."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
import pytest

from builders import SECOND_US, Story, make_limits
from solvisor import meter as metering
from solvisor import tallies, usage
from solvisor.clock import now_us
from solvisor.errors import StoreUnavailable
from solvisor.meter import Meter
from solvisor.pile import Bell
from solvisor.store import Store
from solvisor.usage import Life, Row
from waiting import eventually

T = TypeVar("T")

TICK = 0.02


class House:
    """A world, its clock, a database and the meter between them."""

    def __init__(self, store: Store, db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.story = Story()
        self.bell = Bell()
        self.limits = make_limits(cpus=4)
        self.writes = 0
        self.refuses = False
        self.looks = 0
        self.ahead_us = 0
        self._store = store
        self._db = db
        monkeypatch.setattr(metering, "LOOK_SECONDS", TICK)
        monkeypatch.setattr(metering, "now_us", lambda: now_us() + self.ahead_us)
        real = usage.look

        def look(*given: object) -> object:
            self.looks += 1
            return real(*given)  # type: ignore[arg-type]

        monkeypatch.setattr(metering, "look", look)
        self.meter = Meter(self.story.world, lambda: self.limits, self.bell, self.in_store)

    async def in_store(self, work: Callable[[Store], T]) -> T:
        if self.refuses:
            raise StoreUnavailable("the disk is full")
        self.writes += 1
        return await anyio.to_thread.run_sync(work, self._store)

    @asynccontextmanager
    async def metered(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.meter.run)
            await eventually(lambda: self.writes >= 2, "the life is noted")
            yield
            await self.meter.finish()

    async def passes(self) -> None:
        """The engine changed something."""
        before = self.looks
        self.bell.ring()
        await eventually(lambda: self.looks > before, "it is looked at")

    def rows(self) -> list[Row]:
        return tallies.usage(self._db, 0, 1 << 60, 1 << 60)[0]

    def lives(self) -> list[Life]:
        return tallies.usage(self._db, 0, 1 << 60, 1 << 60)[1]

    def used(self, name: str = "cpus") -> float:
        return sum(row.sums.levels[name].used for row in self.rows())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path / "solvisor.db")) as store:
        yield store


@pytest.fixture
async def house(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> House:
    return House(store, tmp_path / "solvisor.db", monkeypatch)


async def test_what_ran_is_kept_for_as_long_as_it_ran(house: House) -> None:
    began = time.monotonic()
    async with house.metered():
        house.story.accept("a")
        house.story.start("a")
        await house.passes()
        started = time.monotonic()
        await eventually(lambda: time.monotonic() - started > 0.3, "it runs for a while")
        house.story.exited("a")
        await house.passes()
        over = time.monotonic()
        await eventually(lambda: time.monotonic() - over > 0.1, "and nothing does")
    assert 0.3 - 2 * TICK <= house.used() <= over - began
    assert house.used("jobs") == house.used()
    (life,) = house.lives()
    assert 0.4 * SECOND_US < life.seen_us - life.began_us <= (time.monotonic() - began + 0.1) * SECOND_US


async def test_what_runs_to_the_end_is_kept_to_the_end(house: House) -> None:
    async with house.metered():
        house.story.accept("a")
        house.story.start("a")
        await house.passes()
        started = time.monotonic()
        await eventually(lambda: time.monotonic() - started > 0.3, "it runs on, and nobody looks")
        lasted = time.monotonic() - started
    assert house.used() >= lasted


async def test_what_is_not_written_yet_is_known_and_asking_changes_nothing(house: House) -> None:
    async with house.metered():
        assert house.meter.present.rows == [], "while it is idle"
        house.story.accept("a")
        house.story.start("a")
        await house.passes()
        started = time.monotonic()
        await eventually(lambda: time.monotonic() - started > 0.3, "it runs on, and nobody looks")
        lasted = time.monotonic() - started
        for _ in range(9):
            used = sum(row.sums.levels["cpus"].used for row in house.meter.present.rows) + house.used()
            assert lasted <= used <= time.monotonic() - started + 1
            assert house.meter.present.life.seen_us <= now_us() + SECOND_US
    assert lasted <= house.used() <= time.monotonic() - started + 1, "nothing was counted twice"


async def test_while_nothing_changes_nothing_is_looked_at(house: House) -> None:
    async with house.metered():
        house.story.accept("a")
        house.story.start("a")
        await house.passes()
        before, began = house.looks, time.monotonic()
        await eventually(lambda: time.monotonic() - began > 10 * TICK, "ten looks' time")
        assert house.looks - before <= 1, "a minute of the day may have ended"


async def test_an_idle_life_leaves_no_row_but_that_it_was_there(house: House) -> None:
    async with house.metered():
        await house.passes()
    assert house.rows() == []
    assert len(house.lives()) == 1


async def test_a_life_that_follows_at_once_is_the_same_and_a_later_one_is_not(
    house: House, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with house.metered():
        pass
    again = House(store, tmp_path / "solvisor.db", monkeypatch)
    async with again.metered():
        pass
    assert len(again.lives()) == 1
    later = House(store, tmp_path / "solvisor.db", monkeypatch)
    later.ahead_us = 120 * SECOND_US
    later.meter = Meter(later.story.world, lambda: later.limits, later.bell, later.in_store)
    async with later.metered():
        pass
    assert len(later.lives()) == 2


@pytest.mark.parametrize("hours", [2, -2])
async def test_fault_48_where_the_clock_is_set_another_life_begins_and_nothing_counts_for_longer(
    house: House, hours: int
) -> None:
    began = time.monotonic()
    async with house.metered():
        house.story.accept("a")
        house.story.start("a")
        await house.passes()
        house.ahead_us = hours * 3600 * SECOND_US
        await house.passes()
    first, second = sorted(house.lives(), key=lambda life: life.began_us)
    assert abs(second.began_us - first.began_us - 2 * 3600 * SECOND_US) < 60 * SECOND_US
    assert all(life.seen_us - life.began_us < 60 * SECOND_US for life in (first, second))
    assert 0 < house.used() <= time.monotonic() - began


async def test_what_waits_for_the_store_at_the_end_is_written_once(house: House) -> None:
    in_store = house.in_store
    waits = anyio.Event()

    async def crowded(work: Callable[[Store], T]) -> T:
        """Whoever comes first waits for his turn until he is told to go."""
        if not waits.is_set():
            waits.set()
            await anyio.sleep_forever()
        return await in_store(work)

    began = time.monotonic()
    async with house.metered():
        house.story.accept("a")
        house.story.start("a")
        await house.passes()
        started = time.monotonic()
        await eventually(lambda: time.monotonic() - started > 0.1, "it runs for a while")
        house.meter._in_store = crowded
        house.ahead_us = 3600 * SECOND_US
        await house.passes()
        lasted = time.monotonic() - started
        await waits.wait()
    assert lasted - 2 * TICK <= house.used() <= time.monotonic() - began
    assert len(house.lives()) == 2


async def test_a_database_that_takes_nothing_ends_nobody(house: House) -> None:
    async with house.metered():
        house.story.accept("a")
        house.story.start("a")
        await house.passes()
        house.refuses = True
    assert house.rows() == []


async def test_a_defect_of_a_look_ends_nobody(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async with house.metered():
        house.story.accept("a")
        house.story.start("a")
        await house.passes()

        def broken(*_: object) -> None:
            house.looks += 1
            raise KeyError("a defect")

        monkeypatch.setattr(metering, "look", broken)
        await house.passes()
        await house.passes()
    assert house.used() > 0
