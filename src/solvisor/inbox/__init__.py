"""The inbox: from a folder that anyone writes to, to claimed drops in the hands of the engine.

The folder is looked at again and again (``scan``), early when an event says so (``hints``), else by the rescan; what
is complete (``settle``) and belongs together (``sorting``) is claimed, judged and handed over, a round at a time.

Rules: the next round begins when the engine has made the last one durable, so a burst makes rounds bigger and never
floods the engine; a clean stop leaves nothing claimed without a row; all file work is in one thread at a time. This
package must not know rows or states.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import structlog

from solvisor.clock import now_us
from solvisor.config import Config
from solvisor.home import Home, IdMaker
from solvisor.intake import decide
from solvisor.model import Intake, Limits, Original
from solvisor.names import JOB_FILE_SUFFIX
from solvisor.spool import Claims, NotDurable, NotYet, Take, Taken, escape_name, files
from solvisor.spool.move import is_original

from .hints import Hints, open_hints
from .scan import Drop, Scanner, Survey
from .settle import QUIET_SECONDS
from .sorting import Earlier, Kind, Wait

__all__ = ["Inbox", "Wait"]

log = structlog.get_logger(__name__)

T = TypeVar("T")

ROUND_MAX = 512
"""Drops handed to the engine at once."""
DROPS_MAX = 4096
"""Drops taken from one scan: the rest is looked at again, in case it changed meanwhile."""

_CLAIMED_AT_ONCE = 64
_NAMES_REMEMBERED = 10_000
_RETRY_SECONDS = 0.25
_BLOCKED_SECONDS = 10.0
_PAUSE_SECONDS = 0.05
_PAUSE_MAX_SECONDS = 2.0


class Inbox:
    """Feeds the engine from one inbox.

    ``config`` and ``limits`` give what is in force now. ``pending_originals`` are files that live jobs claimed by copy
    and that were not removed yet.
    """

    def __init__(
        self,
        home: Home,
        config: Callable[[], Config],
        limits: Callable[[], Limits],
        claims: Claims,
        ids: IdMaker,
        pending_originals: Iterable[Original] = (),
    ) -> None:
        self._home = home
        self._config = config
        self._limits = limits
        self._claims = claims
        self._ids = ids
        self._thread = anyio.CapacityLimiter(1)
        self._left = {original.path: original for original in pending_originals}
        self._taken: OrderedDict[tuple[str, str], Earlier] = OrderedDict()
        self._waits: tuple[tuple[str, Wait], ...] = ()
        self._told: set[tuple[str, str, str]] = set()
        self._trouble = ""

    @property
    def waiting(self) -> tuple[tuple[str, Wait], ...]:
        """What lies in the inbox and waits, as of the last scan, each with its route (empty for the inbox itself)."""
        return self._waits

    @property
    def trouble(self) -> str | None:
        """What keeps the inbox from being read now, if anything."""
        return (
            f"the inbox cannot be read, and nothing is taken until it can: {self._trouble}" if self._trouble else None
        )

    async def run(self, accept: Callable[[Sequence[Intake]], Awaitable[None]]) -> None:
        """Claim what is dropped and give it to ``accept``, until cancelled.

        ``accept`` returns when its intakes are durable. A round that is under way when the cancellation comes is still
        handed over. Raises ``NotDurable``, and whatever ``accept`` raises.
        """
        async with open_hints(self._home.inbox) as hints:
            scanner = Scanner(self._home, hints)
            while True:
                began = time.monotonic()
                survey = await self._in_thread(partial(self._look, scanner))
                drops = survey.drops[:DROPS_MAX]
                for start in range(0, len(drops), ROUND_MAX):
                    with anyio.CancelScope(shield=True):
                        await self._round(scanner, drops[start : start + ROUND_MAX], accept)
                    await anyio.lowlevel.checkpoint()
                if not drops:
                    await self._wait(hints, began, survey.due)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._thread)

    async def _wait(self, hints: Hints, began: float, due: float) -> None:
        """Until an event is worth a scan, something may have settled, or the rescan is due."""
        now = time.monotonic()
        rescan = began + self._config().inbox.rescan
        # In a storm of events, scanning gets half of a core at most.
        pause = min(now - began, _PAUSE_MAX_SECONDS)
        with anyio.move_on_after(max(min(rescan, due) - now, pause)):
            await anyio.sleep(pause)
            while True:
                await hints.wait()
                if await self._in_thread(hints.drain):
                    return
                await anyio.sleep(_PAUSE_SECONDS)

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _look(self, scanner: Scanner) -> Survey:
        self._remove_left()
        now = time.monotonic()
        try:
            survey = scanner.scan(
                self._config(), lambda folder, name: self._taken.get((folder, name)), self._is_left, now
            )
        except OSError as error:
            self._tell_trouble(error)
            return Survey()
        self._trouble = ""
        self._waits = tuple(survey.waits)
        self._tell_waits(survey)
        return survey

    def _claim(self, takes: Sequence[Take]) -> list[Taken | NotYet]:
        answers: list[Taken | NotYet] = []
        try:
            for start in range(0, len(takes), _CLAIMED_AT_ONCE):
                answers += self._claims.claim_round(takes[start : start + _CLAIMED_AT_ONCE])
        except NotDurable:
            raise
        except OSError as error:  # the inbox itself went away; the next scan will see
            self._tell_trouble(error)
            answers += [NotYet(take.id, take.sources[0], "error", str(error)) for take in takes[len(answers) :]]
        return answers

    def _judge(self, taken: Sequence[tuple[Drop, Taken]]) -> list[Intake]:
        config, limits = self._config(), self._limits()
        return [decide(config, limits, self._home, answer, dict(drop.pick.lost)) for drop, answer in taken]

    def _clear(self, taken: Sequence[tuple[Drop, Taken]]) -> None:
        """Remove what accepted drops left in the inbox: markers, and originals of copies."""
        for drop, answer in taken:
            if drop.markers:
                self._remove_markers(drop)
            self._left.update((original.path, original) for original in answer.originals)
        self._remove_left()

    def _remove_markers(self, drop: Drop) -> None:
        # One that is gone, or is not ours to remove, is left to become an orphan.
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            fd = files.open_folder(str(self._home.inbox))
            stack.callback(os.close, fd)
            if drop.folder:
                fd = files.open_folder(drop.folder, fd)
                stack.callback(os.close, fd)
            for marker in drop.markers:
                os.unlink(marker, dir_fd=fd)

    def _remove_left(self) -> None:
        """Try to remove what was claimed by copy; a folder goes after what lies in it."""
        for path, original in sorted(self._left.items(), key=lambda item: item[0], reverse=True):
            if any(other.startswith(path + "/") for other in self._left):
                continue
            try:
                self._claims.remove_original(original)
            except OSError as error:
                if ("", "left", path) not in self._told:
                    self._told.add(("", "left", path))
                    log.warning(
                        "inbox.not_removed", path=path, error=str(error), text="it was taken, and will not be again"
                    )
                continue
            del self._left[path]

    def _is_left(self, folder: str, name: str, found: os.stat_result) -> bool:
        path = escape_name(f"{folder}/{name}" if folder else name)
        original = self._left.get(path)
        return original is not None and is_original(original, found)

    # --- one round --------------------------------------------------------------------------------------------------

    async def _round(
        self, scanner: Scanner, drops: Sequence[Drop], accept: Callable[[Sequence[Intake]], Awaitable[None]]
    ) -> None:
        claimed_us = now_us()
        takes = [self._take(drop, claimed_us) for drop in drops]
        answers = await self._in_thread(partial(self._claim, takes))
        taken: list[tuple[Drop, Taken]] = []
        for drop, answer in zip(drops, answers, strict=True):
            if isinstance(answer, Taken):
                taken.append((drop, answer))
                self._remember(drop, answer.take.id)
                log.info(
                    "inbox.claimed",
                    id=answer.take.id,
                    source=escape_name(answer.take.sources[0]),
                    files=len(answer.files),
                )
            else:
                self._put_off(scanner, drop, answer)
        if taken:
            await accept(await self._in_thread(partial(self._judge, taken)))
            await self._in_thread(partial(self._clear, taken))

    def _take(self, drop: Drop, now_us: int) -> Take:
        pick = drop.pick
        prefix = f"{drop.folder}/" if drop.folder else ""
        called = pick.names[0]
        if pick.kind is Kind.JOB_FILE:
            called = called[: -len(JOB_FILE_SUFFIX)]
        return Take(
            id=self._ids.new_id(called, now_us),
            sources=tuple(prefix + name for name in pick.names),
            route=drop.folder or None,
            folder=pick.kind is Kind.FOLDER,
            quiet=pick.quiet,
            force=pick.force,
        )

    def _remember(self, drop: Drop, job: str) -> None:
        """Keep in mind who took a name, for a job file that asks for it too late."""
        if drop.pick.kind is Kind.FOLDER:
            return
        for name in drop.pick.names:
            earlier = Earlier(job, time.monotonic(), bare=drop.pick.kind is Kind.INPUT)
            self._taken[drop.folder, name] = earlier
            self._taken.move_to_end((drop.folder, name))
        while len(self._taken) > _NAMES_REMEMBERED:
            self._taken.popitem(last=False)

    def _put_off(self, scanner: Scanner, drop: Drop, answer: NotYet) -> None:
        now = time.monotonic()
        settle = max(self._config().inbox.settle, _RETRY_SECONDS)
        waits = {"no_lease": QUIET_SECONDS, "error": _BLOCKED_SECONDS, "disk": _BLOCKED_SECONDS}
        scanner.memory.put_off(drop.folder, drop.pick.names, now + waits.get(answer.reason, settle), answer.text)

    # --- telling ----------------------------------------------------------------------------------------------------

    def _tell_waits(self, survey: Survey) -> None:
        """Log each reason for waiting once, when it begins; a claim that fails again and again is one reason."""
        fresh: dict[tuple[str, str, str], list[str]] = {}
        keys = {(drop.folder, "claim", drop.pick.held) for drop in survey.drops}
        for folder, wait in survey.waits:
            key = (folder, "claim" if wait.why == "settling" else wait.why, wait.on or wait.name)
            keys.add(key)
            if wait.why != "settling" and key not in self._told:
                fresh.setdefault((folder, wait.why, wait.on), []).append(wait.name)
        self._told = keys | {key for key in self._told if key[1] == "left" and key[2] in self._left}
        for (folder, why, on), names in fresh.items():
            shown = [escape_name(name) for name in names[:5]]
            log.info(
                "inbox.waiting",
                route=folder or None,
                why=why,
                on=escape_name(on) or None,
                names=shown,
                count=len(names),
            )

    def _tell_trouble(self, error: OSError) -> None:
        text = str(error)
        if text != self._trouble:
            self._trouble = text
            log.error(
                "inbox.unreadable",
                path=str(self._home.inbox),
                error=text,
                text="nothing is claimed until it can be read",
            )
