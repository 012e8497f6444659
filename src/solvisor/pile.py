"""Ways to wait inside one event loop: for things that pile up, for a bell, for work unless it is given up.

Rules: they belong to one loop and are not for threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Pile(Generic[T]):
    """Things that pile up while whoever takes them is busy; they are taken many at a time."""

    def __init__(self) -> None:
        self._things: list[T] = []
        self._bell = Bell()

    def __len__(self) -> int:
        return len(self._things)

    def __iter__(self) -> Iterator[T]:
        return iter(self._things)

    def add(self, *things: T) -> None:
        """Put things on the pile."""
        self._things += things
        self._bell.ring()

    async def take(self, most: int | None = None) -> list[T]:
        """Wait until something is there, and take it all, or the first ``most``."""
        while not self._things:
            await self._bell.wait()
        taken, self._things = self._things[:most], self._things[most:] if most is not None else []
        return taken


class Bell:
    """Wakes everybody who waits for something to happen. A ring that nobody waits for costs nothing."""

    def __init__(self) -> None:
        self._rung: asyncio.Event | None = None

    def ring(self) -> None:
        """Wake those who wait now."""
        if self._rung is not None:
            self._rung.set()
            self._rung = None

    async def wait(self) -> None:
        """Until the next ring."""
        if self._rung is None:
            self._rung = asyncio.Event()
        await self._rung.wait()


class Alarm:
    """Wakes the one who waits for it: at once, within a time, or when his own time comes. It is not lost on others."""

    def __init__(self) -> None:
        self._waiting: asyncio.Future[None] | None = None
        self._rung = False
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when that is; uvloop's own handles do not tell if it is within a millisecond

    def ring(self) -> None:
        """Wake him now; or spare him the next wait."""
        self._rung = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def ring_within(self, seconds: float) -> None:
        """Wake him in so many seconds, if nothing does sooner."""
        if not self._rung:
            self._ring_at(asyncio.get_running_loop().time() + seconds)

    async def wait(self, seconds: float | None = None) -> None:
        """Until it is rung, or so long; then it is silent again."""
        if not self._rung:
            loop = asyncio.get_running_loop()
            if seconds is not None:
                self._ring_at(loop.time() + seconds)
            self._waiting = loop.create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        self._rung = False

    def _ring_at(self, instant: float) -> None:
        if self._timer is not None:
            if self._due <= instant:
                return
            self._timer.cancel()
        self._due = instant
        self._timer = asyncio.get_running_loop().call_at(instant, self.ring)


async def unless(happens: Callable[[], Awaitable[object]], work: Callable[[], Awaitable[T]]) -> T | None:
    """What ``work`` gives, or raises; once ``happens`` returns it is given up, and this is ``None``."""
    found: T | None = None
    failure: Exception | None = None

    async def give_up(scope: anyio.CancelScope) -> None:
        await happens()
        scope.cancel()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(give_up, tasks.cancel_scope)
        try:
            found = await work()
        except Exception as error:  # noqa: BLE001  raised below, as it is and not in a group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return found
