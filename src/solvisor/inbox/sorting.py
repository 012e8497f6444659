"""What belongs together: one folder of the inbox, as last seen, sorted into drops to claim and things to wait for.

Rules: pure, and ``now`` is monotonic seconds passed in. A job file takes what it names; a bare input goes alone and
waits while something in the same folder may still name it; nothing is held back by others for longer than
``orphan_after``. Here is decided *when* something is taken; whether it becomes a job or is rejected, and in which
words, is for ``intake``, which judges the bytes that were claimed. This module must not know the file system or the
configuration.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Literal, NamedTuple

from msgspec import Struct

from solvisor.names import (
    FOLDER_JOB_FILE,
    JOB_FILE_SUFFIX,
    READY_SUFFIX,
    escape_name,
    is_hidden,
    is_temporary,
)

from .settle import Seen, due, quiet, settled

LATE_SECONDS = 60.0
"""A job file that comes at most so long after its input was taken alone is late; later, it may await a new copy."""

_NOTHING: Mapping[str, str] = MappingProxyType({})

Why = Literal["settling", "second_name", "claim", "companion", "held", "job_file", "folder", "disk"]


class Kind(Enum):
    """What a name in the inbox is to us."""

    INPUT = "input"
    JOB_FILE = "job file"
    FOLDER = "folder"
    TEMPORARY = "temporary name"
    IGNORED = "ignored"
    MARKER = "ready marker"
    OTHER = "link or device"


_NEVER_AN_INPUT = (Kind.FOLDER, Kind.JOB_FILE, Kind.OTHER)


class Thing(Struct, frozen=True, gc=False):
    """One name of a folder of the inbox.

    ``wants`` of a settled job file are the names it takes (also of a faulty one, which is rejected together with them),
    ``None`` if none can be made out.
    ``fits`` of an input are the solvers that accept it. For a folder: ``unfinished``, it holds temporary names;
    ``complete``, it holds all that makes it a job.
    """

    name: str
    kind: Kind
    seen: Seen
    wants: tuple[str, ...] | None = ()
    fits: tuple[str, ...] = ()
    unfinished: bool = False
    complete: bool = True


class Earlier(NamedTuple):
    """An earlier claim of a name: by which job, when, and whether the file went ``bare``, without a job file."""

    job: str
    at: float
    bare: bool


class Pick(NamedTuple):
    """One drop to claim. ``names[0]`` is the job file, the input, or the folder; ``appeared`` is when the last came.

    ``quiet``: it may be taken without a lease. ``force``: it has a second name, and is claimed to be rejected. ``lost``
    are inputs that its job file names and that are not to be had, each with the reason in words. ``held`` says why an
    earlier claim of it failed.
    """

    names: tuple[str, ...]
    kind: Kind
    appeared: float
    quiet: bool = False
    force: bool = False
    lost: tuple[tuple[str, str], ...] = ()
    held: str = ""


class Wait(Struct, frozen=True, gc=False):
    """Something that stays for now: ``why``, what it waits ``on`` (a name, or words), ``until`` when at most."""

    name: str
    why: Why
    on: str
    until: float

    @property
    def text(self) -> str:
        """In words, for people."""
        on = escape_name(self.on)
        match self.why:
            case "settling":
                return "still growing or changing"
            case "second_name":
                return "has a second name (a hard link), so it could change while it is used; replace it by a copy"
            case "claim":
                return on or "could not be taken a moment ago; is tried again"
            case "disk":
                return f"is not taken for want of room: {on}"
            case "companion":
                return f"waits for {on}, which it names"
            case "held":
                return f"waits for {on}, which may name it"
            case "job_file":
                return "waits for a job file that names it"
            case "folder":
                return f"holds no {FOLDER_JOB_FILE} and not exactly one input; waits for it to be completed"


@dataclass(slots=True)
class Plan:
    """What to claim now, what waits, and when at the latest to look again."""

    picks: list[Pick] = field(default_factory=list)
    waits: list[Wait] = field(default_factory=list)

    @property
    def due(self) -> float:
        """The first instant at which one of the waits may end by itself."""
        return min((wait.until for wait in self.waits), default=math.inf)


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator set: ``settle`` and ``orphan_after`` in seconds, and the solvers that demand a job file."""

    settle: float
    orphan_after: float
    with_job_file: frozenset[str] = frozenset()


def kind_of(name: str, *, regular: bool, directory: bool, names: Container[str] = ()) -> Kind:
    """Sort a name; ``names`` are all names of its folder."""
    if is_temporary(name):
        return Kind.TEMPORARY
    if is_hidden(name):
        return Kind.IGNORED
    if directory:
        return Kind.FOLDER
    if not regular:
        return Kind.OTHER
    if name.lower().endswith(JOB_FILE_SUFFIX):
        return Kind.JOB_FILE
    if name.endswith(READY_SUFFIX) and name.removesuffix(READY_SUFFIX) in names:
        return Kind.MARKER
    return Kind.INPUT


def settle_seconds(rules: Rules, *, unfinished: bool) -> float:
    """How long a thing must not have changed; ``unfinished``: a folder with temporary names in it."""
    return rules.orphan_after if unfinished else rules.settle


def sort_folder(things: Iterable[Thing], rules: Rules, taken: Callable[[str], Earlier | None], now: float) -> Plan:
    """Decide what of one folder is claimed at ``now``; ``taken`` tells of the last claim of a name in this folder."""
    return _Sorter(things, rules, taken, now).sort()


def stem(name: str) -> str:
    """What names that belong together begin with: all up to the first dot, less the marks of temporary names."""
    return name.lstrip(".~$").partition(".")[0]


class _Holders:
    """What may still name an input: a job file that is being written, or a temporary name of one or of its stem."""

    def __init__(self, job_files: Iterable[Thing], there: Iterable[Thing]) -> None:
        self._of_all: Thing | None = None
        self._of_stem: dict[str, Thing] = {}
        for thing in job_files:
            self._of_all = _latest(self._of_all, thing)
        for thing in there:
            if thing.kind is Kind.TEMPORARY and JOB_FILE_SUFFIX in thing.name:
                self._of_all = _latest(self._of_all, thing)
            elif thing.kind is Kind.TEMPORARY:
                called = stem(thing.name)
                self._of_stem[called] = _latest(self._of_stem.get(called), thing)

    def of(self, thing: Thing) -> Thing | None:
        """The holder of this input that changed last."""
        own = self._of_stem.get(stem(thing.name))
        return self._of_all if own is None else _latest(self._of_all, own)


def _latest(one: Thing | None, other: Thing) -> Thing:
    return other if one is None or other.seen.since >= one.seen.since else one


class _Sorter:
    def __init__(
        self, things: Iterable[Thing], rules: Rules, taken: Callable[[str], Earlier | None], now: float
    ) -> None:
        self._there = {thing.name: thing for thing in sorted(things, key=lambda thing: thing.name)}
        self._rules = rules
        self._taken = taken
        self._now = now
        self._plan = Plan()
        self._used: set[str] = set()  # by the picks of this plan

    def sort(self) -> Plan:
        there = self._there.values()
        for thing in there:
            if thing.kind is Kind.JOB_FILE:
                self._job_file(thing)
        pending = [thing for thing in there if thing.kind is Kind.JOB_FILE and thing.name not in self._used]
        named = {name for job_file in pending for name in job_file.wants or ()}
        holders = _Holders(
            [thing for thing in pending if not settled(thing.seen, self._rules.settle, self._now)], there
        )
        for thing in there:
            if thing.kind is Kind.INPUT and thing.name not in named and thing.name not in self._used:
                self._input(thing, holders.of(thing))
            elif thing.kind is Kind.FOLDER:
                self._folder(thing)
            elif thing.kind is Kind.OTHER and not self._unsettled(thing):
                self._pick(thing)
        return self._plan

    def _job_file(self, job_file: Thing) -> None:
        """Claim a job file with all it names, or with what there is of that, to be rejected."""
        if self._unsettled(job_file):
            return
        if job_file.wants is None:
            self._pick(job_file, *self._namesakes(job_file))
            return
        present = [self._there[name] for name in job_file.wants if name in self._there]
        orphaned = max(thing.seen.since for thing in (job_file, *present)) + self._rules.orphan_after
        lost: dict[str, str] = {}
        hopeless = False
        waits: list[tuple[str, float]] = []
        for name in job_file.wants:
            thing = self._there.get(name)
            if name in self._used:
                waits.append((name, self._now))
            elif thing is None:
                lost[name], vain = self._missing(name, job_file)
                hopeless |= vain
            elif thing.kind in _NEVER_AN_INPUT:
                lost[name] = f"that is a {thing.kind.value}"
                hopeless = True
            elif not thing.seen.single:
                lost[name] = "that file has a second name (a hard link)"
            elif not settled(thing.seen, self._rules.settle, self._now):
                waits.append((name, due(thing.seen, self._rules.settle)))
        if lost and not hopeless and self._now < orphaned:
            waits.extend((name, orphaned) for name in lost)
        for name, until in waits:
            self._wait(job_file, "companion", until, name)
        if not waits:
            self._pick(job_file, *(thing for thing in present if thing.name not in lost), lost=lost)

    def _namesakes(self, job_file: Thing) -> list[Thing]:
        """The inputs that a job file which cannot be read must have been meant for: those with its stem."""
        called = stem(job_file.name)
        inputs = [t for t in self._there.values() if t.kind is Kind.INPUT and t.name not in self._used]
        return [t for t in inputs if stem(t.name) == called and settled(t.seen, self._rules.settle, self._now)]

    def _missing(self, name: str, job_file: Thing) -> tuple[str, bool]:
        """Why a name is not there, and whether waiting for it is in vain: the job file was meant for what is gone."""
        earlier = self._taken(name)
        if earlier is None:
            return f"no such file came within {self._rules.orphan_after:g} s", False
        late_until = earlier.at + LATE_SECONDS if earlier.bare else earlier.at
        return f"job {earlier.job} took it", job_file.seen.appeared <= late_until

    def _input(self, thing: Thing, holder: Thing | None) -> None:
        """Claim a bare input, unless it must wait: for what may name it, or for the job file it needs."""
        if self._unsettled(thing):
            return
        end = thing.seen.since + self._rules.orphan_after
        held_until = end if holder is None else min(end, holder.seen.since + self._rules.orphan_after)
        if holder is not None and self._now < held_until:
            self._wait(thing, "held", held_until, holder.name)
        elif self._now < end and (not thing.fits or {*thing.fits} <= self._rules.with_job_file):
            self._wait(thing, "job_file", end)
        else:
            self._pick(thing)

    def _folder(self, thing: Thing) -> None:
        """Claim a folder as one job. One that was not renamed into place and is no job yet may still be growing."""
        if self._unsettled(thing):
            return
        end = thing.seen.since + self._rules.orphan_after
        if thing.complete or thing.seen.whole or end <= self._now:
            self._pick(thing)
        else:
            self._wait(thing, "folder", end)

    def _unsettled(self, thing: Thing) -> bool:
        """Whether it is not settled; then it waits, or, with a second name for ``orphan_after``, is to be rejected."""
        if thing.seen.single:
            end = due(thing.seen, settle_seconds(self._rules, unfinished=thing.unfinished))
            if end <= self._now:
                return False
            self._wait(thing, "claim" if thing.seen.not_before == end else "settling", end, thing.seen.held)
            return True
        end = max(thing.seen.not_before, thing.seen.since + self._rules.orphan_after)
        if end <= self._now:
            self._pick(thing, force=True)
        else:
            self._wait(thing, "second_name", end)
        return True

    def _pick(self, *things: Thing, force: bool = False, lost: Mapping[str, str] = _NOTHING) -> None:
        names = tuple([thing.name for thing in things])
        self._used.update(names)
        appeared = max([thing.seen.appeared for thing in things])
        still = not [thing for thing in things if not quiet(thing.seen, self._now)]
        held = things[0].seen.held
        self._plan.picks.append(Pick(names, things[0].kind, appeared, still, force, tuple(lost.items()), held))

    def _wait(self, thing: Thing, why: Why, until: float, on: str = "") -> None:
        self._plan.waits.append(Wait(thing.name, why, on, until))
