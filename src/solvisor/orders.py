"""Orders on their way: what people and the inbox want changed, carried out in the engine's own task.

Rules: an order is done when what it changed is durable, or refused before it changed anything. Whoever waits for one
hears of it in any case, also when the engine ends in its middle. This module must not know what is ordered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from .errors import SolvisorError, StoreError
from .events import Event

Act = Callable[[Callable[[Event], None]], Awaitable[None]]
"""What an order does, in the engine's own task: it applies events by the function it is given, and may put batches and
pauses. It raises a ``SolvisorError`` before it changed anything, or not at all."""


class Stopping(SolvisorError):
    """Nothing is taken in any more: the daemon is about to end, and nothing was done."""

    code = "unavailable"
    retryable = True
    exit_status = 75

    def __init__(self) -> None:
        super().__init__("the daemon is stopping; try again when it is back")


class Unsure(SolvisorError):
    """The daemon ended in the middle of an order: what it changed may be durable, or not."""

    code = "unavailable"
    retryable = True
    exit_status = 75

    def __init__(self) -> None:
        super().__init__("the daemon ended before this was safe on the disk; look when it is back whether it was done")


class _Order:
    """``done`` is set when what it changed is durable, or when it was refused (``error``)."""

    def __init__(self, act: Act) -> None:
        self.act = act
        self.begun = False
        self.done = anyio.Event()
        self.error: SolvisorError | None = None


class Orders:
    """The orders of one engine; ``wake`` is called when there is one to carry out."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._new: list[_Order] = []
        self._awaited: set[_Order] = set()
        self._over = False

    def __len__(self) -> int:
        """How many wait to be carried out."""
        return len(self._new)

    @property
    def over(self) -> bool:
        """Whether none will be carried out any more."""
        return self._over

    def add(self, act: Act) -> None:
        """Have something done for which nobody waits."""
        self._new.append(_Order(act))
        self._wake()

    async def carry_out(self, act: Act) -> None:
        """Have something done; returns when what it changed is durable.

        Raises what ``act`` raises, ``Stopping`` if the engine ends before it, and ``Unsure`` if in its middle.
        """
        if self._over:
            raise Stopping
        order = _Order(act)
        self._new.append(order)
        self._awaited.add(order)
        self._wake()
        try:
            await order.done.wait()
        finally:
            self._awaited.remove(order)
        if order.error is not None:
            raise order.error

    async def do(self, apply: Callable[[Event], None]) -> list[Callable[[], None]]:
        """Carry out what waits, for the engine alone; returns what to call once the changes are durable."""
        orders, self._new = self._new, []
        announcements: list[Callable[[], None]] = []
        for order in orders:
            order.begun = True
            try:
                await order.act(apply)
            except StoreError:  # no refusal: the engine cannot go on
                raise
            except SolvisorError as error:
                order.error = error
                order.done.set()
            else:
                announcements.append(order.done.set)
        return announcements

    def end(self) -> None:
        """Let nobody wait for what will not happen."""
        self._over = True
        for order in self._awaited:
            if not order.done.is_set():
                order.error = Unsure() if order.begun else Stopping()
                order.done.set()
