"""Who reads the feed: each of them at his own pace, and what else they want to know.

What happens to jobs the engine puts into the feed. What changes beside them is found by comparing, once a second and
only while somebody reads, so that nobody who changes something needs to think of it, and with no reader it costs
nothing.

Rules: a reader is a task that waits, with no queue of its own. Nothing is changed here. It must not know HTTP.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from typing import Final

import anyio
import structlog

from .feed import Feed, Filter, Hello, Reset, TooLate, What, sse
from .pile import Bell

LOOK_SECONDS: Final = 1.0
"""How often it is looked at what changed beside the jobs."""

REST_SECONDS: Final = 0.05
"""How long a reader rests after each piece, so that load makes pieces larger and not more."""

KEEP_ALIVE_SECONDS: Final = 15.0
"""After so long without news a stream says that it is still there."""

STILL_HERE: Final = b": still here\n\n"

log = structlog.get_logger()


class Readers:
    """The readers of ``feed``. ``bell`` rings when something may have come into it, ``over`` says that nothing will.

    ``facts`` gives what is compared, by the name under which its change is told.
    """

    def __init__(
        self,
        feed: Feed,
        bell: Callable[[], Bell],
        over: Callable[[], bool],
        facts: Callable[[], Mapping[What, object]],
    ) -> None:
        self._feed = feed
        self._bell = bell
        self._over = over
        self._facts = facts
        self._count = 0
        self._came = Bell()
        self._is_blind = False

    async def run(self) -> None:
        """Tell what changed beside the jobs, until cancelled.

        Nobody looked while nobody read, and what was asked for meanwhile may have been otherwise and back: whoever is
        the first to read is told of everything.
        """
        while True:
            seen: Mapping[What, object] = {}
            while not self._count:
                await self._came.wait()
            while self._count:
                seen = self._look(seen)
                await anyio.sleep(LOOK_SECONDS)

    def _look(self, seen: Mapping[What, object]) -> Mapping[What, object]:
        """Tell what is otherwise than it was ``seen``; returns what it is now."""
        try:
            now = self._facts()
            what = tuple(name for name, fact in now.items() if name not in seen or _differ(fact, seen[name]))
        except Exception:  # a courtesy must not end what runs jobs
            if not self._is_blind:
                log.exception("events.defect", text="what changes beside jobs is not told until this is over")
            self._is_blind = True
            return seen
        self._is_blind = False
        if what:
            self._feed.add_changed(what)
            self._bell().ring()
        return now

    async def stream(self, since: str | None, wanted: Filter, host: str, version: str) -> AsyncGenerator[bytes, None]:
        """What happens from the cursor ``since`` on, or from now on; ends with the engine."""
        number = self._feed.last if since is None else self._feed.number(since)
        lost = None if number is not None else "this cursor is of another life of the daemon"
        if number is None:
            number = self._feed.last
        cursor = self._feed.cursor(number)
        yield sse("hello", Hello(cursor, host, version), cursor)
        with self._reading():
            while True:
                over = self._over()
                try:
                    piece, after = self._feed.read(number, wanted)
                except TooLate:
                    lost, piece, after = "more happened meanwhile than is kept", b"", self._feed.last
                if lost is not None:
                    yield sse("reset", Reset(lost), self._feed.cursor(after)) + piece
                    lost = None
                elif piece:
                    yield piece
                if after != number:
                    number = after
                    await anyio.sleep(REST_SECONDS if after == self._feed.last else 0)
                elif over:
                    return
                elif not await self._news(number):
                    yield STILL_HERE

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        self._count += 1
        self._came.ring()
        try:
            yield
        finally:
            self._count -= 1

    async def _news(self, number: int) -> bool:
        """Whether something came, or the engine ended, within a while."""
        with anyio.move_on_after(KEEP_ALIVE_SECONDS):
            while self._feed.last == number and not self._over():
                await self._bell().wait()
            return True
        return False


def _differ(one: object, other: object) -> bool:
    """Whether two facts differ; of what is the very same nothing is compared, however large it is."""
    return one is not other and one != other
