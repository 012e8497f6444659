"""A thread of its own for short pieces of blocking work, handed over as cheaply as can be.

The event loop hands a piece over by one put into a queue and hears of its end by one call into the loop; a general
pool of threads costs several times as much. Pieces are done one after the other, in the order in which they came, so a
long one delays what follows: what may take long (gigabytes, a share that hangs) belongs into a thread of a pool.

Rules: a hand belongs to one event loop. It knows nothing of the work.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

import anyio

from .processors import stand_back

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def tell(loop: asyncio.AbstractEventLoop, hear: Callable[[*Ts], object], *news: *Ts) -> bool:
    """Have ``hear(*news)`` called on the loop, from any thread; whether anybody is left there to hear it."""
    try:
        loop.call_soon_threadsafe(hear, *news)
    except RuntimeError:  # it is closed
        return False
    return True


class _Piece:
    """A piece of work; ``done`` says when it is."""

    __slots__ = ("_error", "_loop", "_over", "_result", "_work", "done")

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        self._loop = loop
        self._work = work
        self._over = False
        self.done: asyncio.Future[None] = loop.create_future()
        self._result: Any = None
        self._error: BaseException | None = None

    def __call__(self) -> None:
        """On the thread: do it, and tell the loop."""
        try:
            self._result = self._work()
        except BaseException as error:  # noqa: BLE001  it is raised where the result is waited for
            self._error = error
        tell(self._loop, self._tell)

    def _tell(self) -> None:
        self._over = True
        if not self.done.done():
            self.done.set_result(None)

    async def told(self) -> None:
        """Until it is done, although who waited for it was cancelled."""
        if not self._over:
            self.done = self._loop.create_future()
            await self.done

    @property
    def failed(self) -> bool:
        """Whether it raised."""
        return self._error is not None

    def result(self) -> Any:
        """What it returned or raises, once."""
        error, self._error = self._error, None
        if error is None:
            return self._result
        try:
            raise error
        finally:
            del error  # or it would hold this frame, which holds it


class Hand:
    """One thread, called ``name``, from the first piece of work until it is let go, or nobody holds this any more.

    One that ``stands_back`` lets other threads go first: as a rule no program starts sooner by what it does.
    """

    def __init__(self, name: str, *, stands_back: bool = False) -> None:
        self._name: Final = name
        self._stands_back: Final = stands_back
        self._pieces: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        weakref.finalize(self, self._pieces.put, None)

    async def do(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises, once the thread has done it. A cancellation waits until it has."""
        piece = _Piece(asyncio.get_running_loop(), work)
        self._put(piece)
        try:
            await piece.done
        except asyncio.CancelledError:
            with anyio.CancelScope(shield=True):
                await piece.told()
            if not piece.failed:
                raise
        result: T = piece.result()
        return result

    def do_later(self, work: Callable[[], None]) -> None:
        """Have ``work`` done, which raises nothing; nobody waits for it. Any thread may call."""
        self._put(work)

    def _put(self, piece: Callable[[], None]) -> None:
        with self._starting:
            if self._thread is None:
                about = (self._pieces, self._stands_back)
                # A daemon thread: one that is stuck on a dead disk must not keep the process from ending.
                thread = threading.Thread(target=_work_off, args=about, name=self._name, daemon=True)
                thread.start()  # where there are no more threads it raises, and the next piece tries again
                self._thread = thread
        self._pieces.put(piece)

    def let_go(self) -> None:
        """Let the thread end once it has done what waits; further work gets another."""
        if self._thread is not None:
            self._thread = None
            self._pieces.put(None)


class Failure:
    """The error of work that nobody waits for: raised once, by who waits for that, or at the end by who checks."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._met = asyncio.Event()
        self._error: BaseException | None = None

    def tell(self, error: BaseException) -> None:
        """Have it raised. Any thread may call; the first one counts."""
        self._error = self._error or error
        tell(self._loop, self._met.set)

    async def wait(self) -> None:
        """Until there is one; raises it."""
        await self._met.wait()
        self.check()

    def check(self) -> None:
        """Raise it, if there is one that was not raised."""
        error, self._error = self._error, None
        if error is not None:
            raise error


class Batches(Generic[T]):
    """Things for one piece of work by ``hand``: as many at a time, up to ``most``, as piled up meanwhile.

    ``work`` raises nothing. Any thread may add to them.
    """

    def __init__(self, hand: Hand, work: Callable[[list[T]], None], most: int = sys.maxsize) -> None:
        self._hand = hand
        self._work = work
        self._most = most
        self._things: deque[T] = deque()
        self._is_asked = False

    def add(self, *things: T) -> None:
        """Have these worked off."""
        self._things.extend(things)
        if not self._is_asked:  # two threads that ask at once do no harm
            self._is_asked = True
            self._hand.do_later(self._work_off)

    def _work_off(self) -> None:
        self._is_asked = False  # first: what is added from here on may not be seen below
        batch: list[T] = []
        with suppress(IndexError):
            while len(batch) < self._most:
                batch.append(self._things.popleft())
        if self._things:
            self.add()
        if batch:
            self._work(batch)


def _work_off(pieces: queue.SimpleQueue[Callable[[], None] | None], stands_back: bool) -> None:
    if stands_back:
        stand_back()
    while (piece := pieces.get()) is not None:
        piece()
        piece = None  # nothing of it is held while there is nothing to do
