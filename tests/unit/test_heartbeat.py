"""The lag of the loop: what is kept of it, for how long, and when it is told."""

from __future__ import annotations

import time

import anyio
from structlog.testing import capture_logs

from solvisor.heartbeat import BEAT_SECONDS, IDLE_BEAT_SECONDS, Heartbeat, rest_after
from waiting import eventually


def test_the_worst_of_the_last_minute_and_of_all() -> None:
    heart = Heartbeat()
    assert (heart.recent, heart.worst) == (0.0, 0.0)
    heart.note(0.08, 100.0)
    heart.note(0.02, 101.0)
    assert (heart.recent, heart.worst) == (0.08, 0.08)
    for beat in range(1, 6):
        heart.note(0.01, 100.0 + 10 * beat)
    assert (heart.recent, heart.worst) == (0.08, 0.08), "it is not a minute ago"
    heart.note(0.01, 161.0)
    assert (heart.recent, heart.worst) == (0.01, 0.08)


def test_a_late_loop_is_logged_once_a_slot() -> None:
    heart = Heartbeat()
    with capture_logs() as logs:
        heart.note(0.1, 100.0)
        heart.note(0.3, 101.0)
        heart.note(0.2, 102.0)
        heart.note(0.15, 111.0)
    told = [(line["event"], line["seconds"], line["worst_seconds"]) for line in logs]
    assert told == [("loop.late", 0.3, 0.3), ("loop.late", 0.15, 0.3)]


async def test_a_blocked_loop_is_noticed() -> None:
    heart = Heartbeat()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(heart.run)
        await anyio.lowlevel.checkpoint()
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            pass
        await eventually(lambda: heart.recent > 0.3, "the stall is seen")
        tasks.cancel_scope.cancel()


def test_an_idle_loop_beats_less_often_and_a_busy_one_at_once_as_before() -> None:
    assert rest_after(0.001, BEAT_SECONDS) == IDLE_BEAT_SECONDS
    assert rest_after(0.001, IDLE_BEAT_SECONDS) == IDLE_BEAT_SECONDS
    assert rest_after(0.02, IDLE_BEAT_SECONDS) == BEAT_SECONDS
    assert rest_after(0.02, BEAT_SECONDS) == BEAT_SECONDS
