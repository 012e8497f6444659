"""Waiting in tests: a condition and a deadline, never a bare sleep."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, deadline: float = 20.0) -> T:
    """Poll ``condition`` until it is true and return its value; fail with ``what`` after ``deadline`` seconds."""
    end = time.monotonic() + deadline
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        time.sleep(pause)  # noqa: TID251  the one place that polls
        pause = min(pause * 1.5, 0.1)


async def eventually(condition: Callable[[], T], what: str, deadline: float = 20.0) -> T:
    """``wait_until`` for async tests: the event loop goes on while it waits."""
    end = time.monotonic() + deadline
    pause = 0.002
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {deadline:g} s: {what}")
        await anyio.sleep(pause)  # noqa: TID251  the one place that polls
        pause = min(pause * 1.5, 0.1)
