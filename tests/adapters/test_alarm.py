"""An alarm: one who waits is woken by whatever comes first, and no ring is lost while he is busy."""

from __future__ import annotations

import asyncio
import time

import anyio
import pytest

from solvisor.pile import Alarm

LOOPS = "both"
LONG = 60.0


async def seconds_until_woken(alarm: Alarm, most: float | None = None) -> float:
    began = time.monotonic()
    with anyio.fail_after(20):
        await alarm.wait(most)
    return time.monotonic() - began


async def test_a_ring_while_nobody_waits_spares_the_next_wait_and_only_that() -> None:
    alarm = Alarm()
    alarm.ring()
    alarm.ring()
    assert await seconds_until_woken(alarm, LONG) < 10
    assert await seconds_until_woken(alarm, 0.05) >= 0.04


@pytest.mark.parametrize("own", [None, LONG])
async def test_a_ring_within_a_time_wakes_by_then_and_a_ring_sooner(own: float | None) -> None:
    alarm = Alarm()
    alarm.ring_within(0.05)
    alarm.ring_within(LONG)
    assert 0.04 <= await seconds_until_woken(alarm, own) < 10
    alarm.ring_within(LONG)
    asyncio.get_running_loop().call_soon(alarm.ring)
    assert await seconds_until_woken(alarm, own) < 10


async def test_one_that_comes_while_he_waits_is_as_good() -> None:
    alarm = Alarm()
    asyncio.get_running_loop().call_soon(alarm.ring_within, 0.05)
    assert 0.04 <= await seconds_until_woken(alarm, LONG) < 10


async def test_an_instant_that_is_all_but_there_may_be_followed_by_another() -> None:
    alarm = Alarm()
    alarm.ring_within(0.0001)
    alarm.ring_within(0.05)
    assert await seconds_until_woken(alarm, LONG) < 10


async def test_his_own_time_ends_a_wait_that_nothing_rings() -> None:
    alarm = Alarm()
    alarm.ring_within(LONG)
    assert 0.04 <= await seconds_until_woken(alarm, 0.05) < 10


async def test_a_wait_that_is_cancelled_loses_no_ring() -> None:
    alarm = Alarm()
    with anyio.move_on_after(0.01):
        await alarm.wait()
    alarm.ring()
    assert await seconds_until_woken(alarm) < 10
    with anyio.move_on_after(0.01):
        await alarm.wait()
    alarm.ring_within(0.05)
    assert await seconds_until_woken(alarm) < 10
