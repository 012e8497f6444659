"""Looks at the world again and again and keeps how busy it was, minute by minute.

Looks are a second apart, by a clock of their own: a job is seen with the chance that its length gives it, so short ones
count for no more than they are. While no pass of the engine changes anything there is nothing to look at, so a daemon
that is idle, or has one long job, costs nothing; a minute in which nothing was taken and nobody waited leaves no row,
and that a daemon was there is noted beside them, now and then.

Rules: it changes no state of a job and nothing waits for it; what it could not write is written later, or lost. Time is
measured by the monotonic clock; the time of day is only what a minute is called, and where that is set (or the machine
slept) another life begins. What the sums mean is said in ``usage``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial

import anyio
import structlog

from .clock import now_us
from .errors import StoreDamaged, StoreError, StoreFailed
from .model import Limits
from .pile import Bell, Pile
from .store import InStore, Store
from .usage import MINUTE, Life, Look, Present, Row, Tally, look
from .world import World

LOOK_SECONDS = 1.0
NOTED_SECONDS = 600.0
"""So often an idle daemon notes that it is there: of one that is killed while idle, so much is not known."""

MINUTES_KEPT = 40 * 86400
HOURS_KEPT = 400 * 86400
"""For how many seconds minutes are kept, and then the hours made of them."""

SET_US = 2_000_000
"""A time of day that moved by more, beside the other clock, was set."""

BACK_SOON_US = MINUTE * 1_000_000
"""A daemon that is there again so soon was there all the time, as far as charts show."""

HELD_MAX = 1000
"""Minutes that may wait for a database that takes nothing."""

_MINUTE_US = MINUTE * 1_000_000

log = structlog.get_logger()


class Meter:
    """Keeps how busy ``world`` is while ``run`` runs; ``finish`` writes the rest.

    ``bell`` rings after each pass.
    """

    def __init__(self, world: World, limits: Callable[[], Limits], bell: Bell, in_store: InStore) -> None:
        self._world = world
        self._limits = limits
        self._bell = bell
        self._in_store = in_store
        self._tally = Tally()
        self._rows: Pile[Row | None] = Pile()
        self._writing: list[Row] = []
        self._held = look(world, limits())
        self._since = time.monotonic()
        self._offset = now_us() - self._since * 1e6
        self._first = now_us(), self._since
        self._minute = now_us() // _MINUTE_US
        self._life_began = now_us()
        self._ended: list[Life] = []
        self._noted = self._since
        self._failed = False
        self._running = anyio.CancelScope()
        self._over = anyio.Event()

    @property
    def life(self) -> Life:
        """The time within which this daemon was there, since the clock was last set."""
        return Life(self._life_began, max(self._life_began, int(self._offset + time.monotonic() * 1e6)))

    @property
    def present(self) -> Present:
        """What nobody finds in the database yet."""
        rows = [*self._writing, *(row for row in self._rows if row is not None)]
        sums = self._tally.so_far(self._held, time.monotonic() - self._since)
        if sums is not None:  # it spans no more than has been, so that no share of it lies in the future
            start_us = self._minute * _MINUTE_US
            rows.append(Row(start_us, max(1, math.ceil((now_us() - start_us) / 1e6)), sums))
        return Present(rows, self.life)

    async def _begin(self) -> None:
        """Go on with the life of before, if it ended just now."""
        last = await self._in_store(Store.last_life)
        if last is not None and 0 <= now_us() - last.seen_us < BACK_SOON_US:
            self._life_began = last.began_us
        self._rows.add(None)

    async def run(self) -> None:
        """Look until cancelled, or ``finish`` is called."""
        try:
            with self._running:
                await self._begin()
                async with anyio.create_task_group() as beside:
                    beside.start_soon(self._write)
                    await self._watch()
        finally:
            self._over.set()

    async def _watch(self) -> None:
        while True:
            with anyio.move_on_after(self._rest()):
                await self._bell.wait()
                self._count(self._held)  # nothing changed until now
                await anyio.sleep(LOOK_SECONDS - time.monotonic() % LOOK_SECONDS)
            self._held = self._look()
            self._count(self._held)
            self._close()

    async def finish(self) -> None:
        """End ``run``, which was begun, and write what is left. Raises ``StoreDamaged``, ``StoreFailed``."""
        self._running.cancel()
        await self._over.wait()
        self._count(self._held)
        self._close(ended=True)
        await self._write_once(await self._rows.take())

    def _rest(self) -> float:
        """Seconds until this minute of the day is over."""
        return min(MINUTE, max(0.01, ((self._minute + 1) * _MINUTE_US - now_us()) / 1e6))

    def _look(self) -> Look:
        try:
            return look(self._world, self._limits())
        except Exception:  # a defect here is not worth the jobs that run
            if not self._failed:
                log.exception("meter.failed")
            self._failed = True
            return self._held

    def _count(self, seen: Look) -> None:
        now = time.monotonic()
        self._tally.add(seen, now - self._since)
        self._since = now

    def _close(self, *, ended: bool = False) -> None:
        """Give the minute that is over to be written."""
        now, wall = time.monotonic(), now_us()
        minute = wall // _MINUTE_US
        was_set = abs(wall - now * 1e6 - self._offset) > SET_US
        if minute == self._minute and not (ended or was_set):
            return
        sums = self._tally.take()
        if sums is not None and len(self._rows) < HELD_MAX:
            self._rows.add(Row(self._minute * _MINUTE_US, MINUTE, sums))
        if was_set:
            self._ended.append(self.life)
            self._offset, self._life_began = wall - now * 1e6, wall
        self._minute = minute
        if ended or was_set or now - self._noted > NOTED_SECONDS:
            self._noted = now
            self._rows.add(None)

    async def _write(self) -> None:
        while True:
            await self._write_once(await self._rows.take())

    async def _write_once(self, taken: list[Row | None]) -> None:
        rows = self._writing = [row for row in taken if row is not None]
        ended, self._ended = self._ended, []
        note = partial(Store.note_usage, rows=rows, lives=[*ended, self.life])
        noted = False
        try:
            await self._in_store(note)
            noted = True
            if None in taken:
                await self._in_store(self._thin)
        except anyio.get_cancelled_exc_class():
            if not noted:  # it was never begun: once begun, it is ended
                self._rows.add(*taken)
                self._ended = [*ended, *self._ended]
            raise
        except (StoreDamaged, StoreFailed):  # as for anybody who writes: what is on the disk is in doubt
            raise
        except StoreError as error:  # the daemon ends, and nothing can be written; or a defect, which is worth no job
            log.error("meter.lost", minutes=len(rows), error=str(error))
        finally:
            self._writing = []

    def _thin(self, store: Store) -> None:
        # What both clocks agree on: one that is set forward makes nothing old before the next start.
        today = min(now_us(), self._first[0] + int((time.monotonic() - self._first[1]) * 1e6))
        store.thin_usage(today - MINUTES_KEPT * 1_000_000, today - HOURS_KEPT * 1_000_000)
