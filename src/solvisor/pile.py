"""Two ways to wait inside one event loop: for things that pile up, and for a bell.

Rules: both belong to one loop and are not for threads.
"""

from __future__ import annotations

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
    """Wakes everybody who waits for something to happen."""

    def __init__(self) -> None:
        self._rung = anyio.Event()

    def ring(self) -> None:
        """Wake those who wait now."""
        rung, self._rung = self._rung, anyio.Event()
        rung.set()

    async def wait(self) -> None:
        """Until the next ring."""
        await self._rung.wait()
