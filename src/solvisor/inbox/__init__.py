"""The inbox: from a folder that anyone writes to, to claimed drops in the hands of the engine.

The folder is looked at again and again (``scan``), early when an event says so (``hints``), else by the rescan; what
is complete (``settle``) and belongs together (``sorting``) is claimed, judged and handed over, a round at a time.

Rules: the next round begins when the engine has made the last one durable, so a burst makes rounds bigger and never
floods the engine; a clean stop leaves nothing claimed without a row; all file work is in one thread, and of a round all
of it in one piece: looking, claiming, judging. This package must not know rows or states.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

import anyio
import anyio.lowlevel
import structlog

from solvisor import failpoint
from solvisor.clock import now_us
from solvisor.config import Config
from solvisor.hand import Hand
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

ROUND_MAX = 512
"""Drops handed to the engine at once."""
DROPS_MAX = 4096
"""Drops taken from one scan: the rest is looked at again, in case it changed meanwhile."""

_CLAIMED_AT_ONCE = 64
_NAMES_REMEMBERED = 10_000
_RETRY_SECONDS = 0.25
_BLOCKED_SECONDS = 10.0
_DISK_SECONDS = 2.0
_PAUSE_SECONDS = 0.05
_PAUSE_SHARE = 4
_PAUSE_MAX_SECONDS = 10.0
_BY_ITSELF = frozenset({"settling", "claim", "held"})
"""Why drops wait that nobody has to do anything for."""


class _Round(NamedTuple):
    """Drops that were claimed and judged; ``originals`` are what they leave in the inbox."""

    intakes: Sequence[Intake] = ()
    originals: tuple[Original, ...] = ()


class Inbox:
    """Feeds the engine from one inbox.

    ``config`` and ``limits`` give what is in force now. ``pending_originals`` are files that live jobs claimed by copy
    and that were not removed yet. ``no_room`` says why nothing is taken now, if so: everything stays where it is.
    """

    def __init__(
        self,
        home: Home,
        config: Callable[[], Config],
        limits: Callable[[], Limits],
        claims: Claims,
        ids: IdMaker,
        pending_originals: Iterable[Original] = (),
        no_room: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._home = home
        self._config = config
        self._limits = limits
        self._claims = claims
        self._ids = ids
        self._no_room = no_room
        self._hand = Hand("inbox", stands_back=True)
        self._left = {original.path: original for original in pending_originals}
        self._taken: OrderedDict[tuple[str, str], Earlier] = OrderedDict()
        self._waits: tuple[tuple[str, Wait], ...] = ()
        self._found: Sequence[Drop] = ()
        self._taking = 0
        self._due = -math.inf
        self._pause_until = -math.inf
        self._looked_us: int | None = None
        self._told: set[tuple[str, str, str]] = set()
        self._trouble = ""
        self._hints: Hints | None = None

    @property
    def waiting(self) -> tuple[tuple[str, Wait], ...]:
        """What lies in the inbox and waits, as of the last scan, each with its route (empty for the inbox itself)."""
        return self._waits

    @property
    def settling(self) -> int:
        """How many drops are being taken, or will be once nobody writes them, or what may name them, any more."""
        return self._taking + sum(wait.why in _BY_ITSELF for _, wait in self._waits)

    @property
    def looked_us(self) -> int | None:
        """When the last look at the inbox began: what was dropped before is known."""
        return self._looked_us

    @property
    def trouble(self) -> str | None:
        """What keeps the inbox from being read now, or from being read at once, if anything."""
        if self._trouble:
            return f"the inbox cannot be read, and nothing is taken until it can: {self._trouble}"
        return None if self._hints is None else self._hints.trouble

    async def run(self, accept: Callable[[Sequence[Intake]], Awaitable[None]]) -> None:
        """Claim what is dropped and give it to ``accept``, until cancelled.

        ``accept`` returns when its intakes are durable. A round that is under way when the cancellation comes is still
        handed over. Raises ``NotDurable``, and whatever ``accept`` raises.
        """
        async with open_hints(self._home.inbox) as hints:
            self._hints = hints
            scanner = Scanner(self._home, hints)
            while True:
                with anyio.CancelScope(shield=True):
                    taken = await self._hand.do(partial(self._take_round, scanner))
                    if taken.intakes:
                        failpoint.reach("inbox.judged")
                        await accept(taken.intakes)
                        failpoint.reach("inbox.accepted")
                        if taken.originals:
                            await self._hand.do(partial(self._clear, taken.originals))
                        failpoint.reach("inbox.cleared")
                self._taking -= len(taken.intakes)
                await anyio.lowlevel.checkpoint()
                if not self._found and time.monotonic() < self._due:
                    await self._wait(scanner, hints)

    async def _wait(self, scanner: Scanner, hints: Hints) -> None:
        """Until an event is worth a scan, something may have settled, or the rescan may find something."""
        rescan = time.monotonic()
        # In a storm of events, or with very many files that wait, scanning gets a fifth of a core at most.
        await anyio.sleep(max(0.0, self._pause_until - rescan))
        while True:
            rescan = max(rescan + self._config().inbox.rescan, time.monotonic())
            with anyio.move_on_after(min(rescan, self._due) - time.monotonic()):
                await self._news(hints)
                return
            looked_us = now_us()
            if time.monotonic() >= self._due or not await self._hand.do(partial(self._is_same, scanner)):
                return
            self._looked_us = looked_us

    async def _news(self, hints: Hints) -> None:
        while True:
            await hints.wait()
            if hints.drain(reads=1):
                return
            await anyio.sleep(_PAUSE_SECONDS)

    # --- in the thread ----------------------------------------------------------------------------------------------

    def _is_same(self, scanner: Scanner) -> bool:
        return not self._left and scanner.is_same(self._config(), time.monotonic())

    def _take_round(self, scanner: Scanner) -> _Round:
        """Look, unless the last look found more than was taken since; claim a round of what there is, and judge it."""
        if not self._found:
            self._found = self._look(scanner).drops[:DROPS_MAX]
        if self._no_room() is not None:
            self._found, self._due = (), math.inf
        drops, self._found = self._found[:ROUND_MAX], self._found[ROUND_MAX:]
        if not drops:
            return _Round()
        claimed_us = now_us()
        takes = [self._take(drop, claimed_us) for drop in drops]
        taken: list[tuple[Drop, Taken]] = []
        for drop, answer in zip(drops, self._claim(drops, takes), strict=True):
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
        originals = tuple(original for _, answer in taken for original in answer.originals)
        return _Round(self._judge(taken), originals)

    def _look(self, scanner: Scanner) -> Survey:
        self._remove_left()
        now, looked_us = time.monotonic(), now_us()
        try:
            survey = scanner.scan(
                self._config(), lambda folder, name: self._taken.get((folder, name)), self._is_left, now
            )
        except OSError as error:
            self._tell_trouble(error)
            survey, self._due = Survey(), math.inf
        else:
            self._trouble = ""
            self._note(survey, now)
        self._looked_us = looked_us
        over = time.monotonic()
        self._pause_until = over + min(_PAUSE_SHARE * (over - now), _PAUSE_MAX_SECONDS)
        return survey

    def _note(self, survey: Survey, now: float) -> None:
        """Keep what a look found, for whoever asks and for what comes next."""
        no_room = self._no_room()
        held = (
            [] if no_room is None else [(d.folder, Wait(d.pick.names[0], "disk", no_room, now)) for d in survey.drops]
        )
        self._taking = 0 if held else len(survey.drops)
        self._waits = (*survey.waits, *held)
        # Where no event told of a drop none may tell of the next one, which came meanwhile.
        self._due = survey.due if survey.told and len(survey.drops) <= DROPS_MAX else -math.inf
        self._tell_waits(survey)

    def _claim(self, drops: Sequence[Drop], takes: Sequence[Take]) -> list[Taken | NotYet]:
        # Before the claim: a crash afterwards must not leave a marker that speaks of nothing.
        for drop in drops:
            if drop.markers:
                self._remove_markers(drop)
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

    def _clear(self, originals: Iterable[Original]) -> None:
        """Remove what accepted drops left in the inbox, having been copied."""
        self._left.update((original.path, original) for original in originals)
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
        kept: set[str] = set()  # folders that hold what could not be removed
        for path, original in sorted(self._left.items(), key=lambda item: item[0], reverse=True):
            if path in kept:
                kept.add(os.path.dirname(path))
                continue
            try:
                self._claims.remove_original(original)
            except OSError as error:
                kept.add(os.path.dirname(path))
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
        waits = {"no_lease": QUIET_SECONDS, "error": _BLOCKED_SECONDS, "disk": _DISK_SECONDS}
        scanner.memory.put_off(drop.folder, drop.pick.names, now + waits.get(answer.reason, settle), answer.text)
        self._due = -math.inf  # when it is to be tried again tells the next look

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
