"""Old results are removed, as the operator's ``[retention]`` says; without it none ever is.

A result goes because it is older than it is to be kept, or because all together take more room than they may; the first
to finish goes first, its folder whole. None goes that somebody reads, that a process holds open or works in, or that an
unfinished job waits for; nor, for the sake of room, one that only just finished. Its row stays and says so.

Rules: out of view durably, then recorded, then destroyed; whatever an earlier life left half done is gone on with. On a
disk so full that nothing can be recorded it is destroyed first: that makes room. Age is what both clocks agree on, so a
clock that is set forward removes nothing before the daemon is started again. This module changes no state of a job.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import TypeVar

import anyio
import anyio.to_thread
import structlog

from .clock import now_us
from .config import Retention as Rules
from .errors import StoreUnavailable
from .history import History, Kept
from .home import Home
from .model import TERMINAL, State
from .processors import spread
from .spool import NotDurable, removal
from .spool.reading import JobFolder
from .store import InStore, Store
from .units import describe_duration, describe_size

T = TypeVar("T")

ROUND_SECONDS = 60.0
"""The longest rest between two looks."""

LULL_SECONDS = 0.5
"""The shortest: what is published together is looked at together."""

AGAIN_SECONDS = 5.0
"""The rest after news: on a slow disk the rows may not have said so yet."""

YOUNGEST_SECONDS = 600.0
"""What finished later is not removed for the sake of room: somebody may be about to fetch it."""

PATIENCE_SECONDS = 5.0
"""How long is waited for a record before room is made all the same."""

AT_ONCE = 16
"""Results taken from view under one set of fsyncs."""

FILES_AT_ONCE = 2000
"""Files destroyed before the disk is left to others for as long as that took."""

OPEN_SECONDS = 5.0
"""How long it holds what was seen of all processes: with many of them a look costs more than a removal."""

WEIGHED_AT_ONCE = 100

_TROUBLE = "retention"
_SUCCEEDED = frozenset({State.SUCCEEDED})

log = structlog.get_logger()


class Retention:
    """Removes results of ``home`` until cancelled.

    ``rules`` tells those in force; ``history`` is for this alone; ``in_use`` (blocking) tells the ids of jobs
    whose folders a process has open.
    """

    def __init__(
        self,
        rules: Callable[[], Rules],
        *,
        home: Home,
        history: History,
        folders: JobFolder,
        in_store: InStore,
        in_use: Callable[[], Collection[str]],
        trouble: dict[str, str],
    ) -> None:
        self._rules = rules
        self._home = home
        self._history = history
        self._folders = folders
        self._in_store = in_store
        self._in_use = in_use
        self._trouble = trouble
        self._news = anyio.Event()
        self._thread = anyio.CapacityLimiter(1)
        self._began = now_us(), time.monotonic()
        self._problem: str | None = None  # of the latest look
        self._unrecorded: list[str] = []  # out of view, and their rows do not say so
        self._doomed: list[str] | None = None  # out of view, to be destroyed; None: it was not looked yet
        self._open: tuple[float, Collection[str]] = -math.inf, ()  # when it was seen what processes have open, and what
        self._named: tuple[int, set[str]] = 0, set()  # by jobs up to which ``seq`` somebody waits for whom

    def published(self) -> None:
        """One more result lies in its place."""
        if self._rules().removes:
            self._news.set()

    def reconsider(self) -> None:
        """Other rules may hold."""
        self._news.set()

    async def run(self) -> None:
        """Go on with what an earlier life began; then remove what is to go, now and later."""
        rest: float | None = 0.0
        while True:
            with anyio.move_on_after(rest):
                await self._news.wait()
            again = AGAIN_SECONDS if self._news.is_set() else ROUND_SECONDS
            self._news = anyio.Event()
            await anyio.sleep(LULL_SECONDS)  # at first, too: a start has more urgent things to do
            rest = min(await self.look(), again)
            if not (self._rules().removes or self._doomed):
                rest = None

    async def look(self) -> float:
        """Remove what is to go by now; returns the seconds until more may be."""
        self._problem = None
        try:
            rest = await self._look()
        except NotDurable:
            raise
        except (OSError, StoreUnavailable) as error:
            log.error("retention.failed", error=str(error), retry_seconds=ROUND_SECONDS)
            self._problem = f"old results cannot be removed: {error}"
            rest = ROUND_SECONDS
        if self._problem is None:
            self._trouble.pop(_TROUBLE, None)
        else:
            self._trouble[_TROUBLE] = self._problem
        return rest

    async def _look(self) -> float:
        self._open, self._named = (-math.inf, ()), (0, set())
        await self._go_on()
        now = self._now_us()
        for states, seconds in self._ages():
            why = f"older than {describe_duration(seconds)}"
            await self._remove(states, now - int(seconds * 1e6), why)
        most = self._rules().keep_at_most
        if most is not None:
            await self._weigh()
            over = await self._blocking(self._history.kept_bytes) - most
            why = f"all results together took more than {describe_size(most)}"
            await self._remove(TERMINAL, now - int(YOUNGEST_SECONDS * 1e6), why, over)
        return await self._rest()

    def _ages(self) -> Iterator[tuple[Collection[State], float]]:
        """For how many seconds results are kept, by the states of their jobs; those kept for ever are left out."""
        rules = self._rules()
        keep_for, keep_failed_for = rules.keep_for, rules.keep_failed_for
        if keep_failed_for is None:
            keep_failed_for = keep_for
        if keep_for is not None:
            yield _SUCCEEDED, keep_for
        if keep_failed_for is not None:
            yield TERMINAL - _SUCCEEDED, keep_failed_for

    async def _rest(self) -> float:
        rests = [ROUND_SECONDS]
        for states, seconds in self._ages():
            oldest = await self._blocking(partial(self._history.kept, states, None, 1))
            rests += [(kept.finished_us - self._now_us()) / 1e6 + seconds for kept in oldest]
        return min(rest for rest in rests if rest > 0)  # what is overdue was barred, and is looked at in its turn

    async def _remove(self, states: Collection[State], before_us: int, why: str, over: int | None = None) -> None:
        """Remove what finished before; with ``over`` only until so many bytes are free."""
        skip = 0
        while over is None or over > 0:
            page = await self._blocking(partial(self._history.kept, states, before_us, AT_ONCE, skip))
            if not page:
                return
            barred = await self._barred()
            free = self._folders.shut(kept.id for kept in page if kept.id not in barred)
            going: list[Kept] = []
            for kept in page:
                if kept.id in free and (over is None or over > 0):
                    going.append(kept)
                    over = None if over is None else over - (kept.size_bytes or 0)
            try:
                removed = await self._take_away(going, why) if going else 0
            finally:
                self._folders.open_again(free)
            skip += len(page) - removed
            await self._destroy()

    async def _barred(self) -> set[str]:
        """What must not go although no client reads it. Of the jobs that wait only new ones are asked again."""
        seen_at, in_use = self._open
        if time.monotonic() - seen_at > OPEN_SECONDS:
            in_use = await self._blocking(self._in_use)
            self._open = time.monotonic(), in_use
        last, named = self._named
        more, last = await self._blocking(partial(self._history.depended_on, last))
        named |= more
        self._named = last, named
        return {*in_use, *named, *self._unrecorded}

    async def _take_away(self, going: Sequence[Kept], why: str) -> int:
        """Take results from view and record that; how many."""
        sizes = {kept.id: await self._size(kept) for kept in going}
        await self._in_store(Store.harden)  # a power cut must not make them unpublished: they would be published again
        done = await self._blocking(partial(removal.doom, self._home, [(kept.target, kept.id) for kept in going]))
        ids = (*done.ids, *done.gone)
        if self._doomed is not None:
            self._doomed += done.ids
        self._unrecorded += ids
        await self._record()
        for job_id in done.ids:
            log.info("result.removed", id=job_id, bytes=sizes[job_id], why=why)
        for job_id in done.gone:
            log.info("result.gone", id=job_id, text="it was to be removed, and somebody had done so already")
        for job_id, error in done.errors.items():
            log.error("result.not_removed", id=job_id, error=str(error))
            self._problem = f"the result of {job_id} is to be removed and cannot be: {error}"
        return len(ids)

    async def _go_on(self) -> None:
        """What an earlier life took from view is recorded as removed, and destroyed."""
        if self._doomed is None:
            self._doomed = await self._blocking(partial(removal.doomed, self._home))
            self._unrecorded += self._doomed
            for job_id in self._doomed:
                log.info("result.removed", id=job_id, why="an earlier life had begun to remove it")
        await self._record()
        await self._destroy()

    async def _record(self) -> None:
        """Record what is out of view; if that cannot be done within a while, the next time."""
        if not self._unrecorded:
            return
        with anyio.move_on_after(PATIENCE_SECONDS):
            await self._in_store(partial(_remove, ids=tuple(self._unrecorded)))
            self._unrecorded.clear()

    async def _destroy(self) -> None:
        """Destroy what is out of view; what cannot be is tried again in the next round."""
        waiting, self._doomed = self._doomed or [], []
        try:
            while waiting:
                began = time.monotonic()
                try:
                    _, over = await self._blocking(partial(removal.destroy, self._home, waiting[0], FILES_AT_ONCE))
                except OSError as error:
                    log.error("result.not_destroyed", id=waiting[0], error=str(error))
                    self._problem = f"what is left of {waiting[0]} in work/ cannot be removed: {error}"
                    self._doomed.append(waiting.pop(0))
                    continue
                if over:
                    waiting.pop(0)
                await anyio.sleep(time.monotonic() - began)
        finally:
            self._doomed += waiting

    async def _weigh(self) -> None:
        """Measure what was not measured yet."""
        while some := await self._blocking(partial(self._history.not_weighed, WEIGHED_AT_ONCE)):
            sizes = {kept.id: await self._size(kept) for kept in some}
            with anyio.move_on_after(PATIENCE_SECONDS) as patience:
                await self._in_store(partial(_weigh, sizes=sizes))
            if patience.cancelled_caught:
                return

    async def _size(self, kept: Kept) -> int:
        if kept.size_bytes is not None:
            return kept.size_bytes
        try:
            return await self._blocking(partial(removal.measure, self._home, kept.target, kept.id))
        except OSError as error:
            log.warning("result.not_measured", id=kept.id, error=str(error), text="it counts as empty")
            return 0

    def _now_us(self) -> int:
        """The time by whichever clock says that less passed: by the wall, or since this began."""
        began_us, began = self._began
        return min(now_us(), began_us + int((time.monotonic() - began) * 1e6))

    async def _blocking(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(spread(work), limiter=self._thread)


def _remove(store: Store, ids: Sequence[str]) -> None:
    store.remove(ids, now_us())
    store.harden()


def _weigh(store: Store, sizes: dict[str, int]) -> None:
    store.weigh(sizes)
