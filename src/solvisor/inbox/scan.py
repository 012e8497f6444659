"""One look at the whole inbox: what lies there, what of it is complete, what belongs together.

Rules: by descriptor and never through a symbolic link; nothing but job files is read. Blocks: for one thread, one scan
at a time. What is claimed is judged again by its bytes, so a scan may be out of date and no harm is done. This module
must not know how claims are made or when scans are due.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import os
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from types import EllipsisType
from typing import NamedTuple

import structlog
from msgspec import Struct

from solvisor.config import Config
from solvisor.errors import Refused
from solvisor.home import Home
from solvisor.intake import candidates, folder_inputs
from solvisor.jobfile import LARGEST_FILE, named_inputs, parse_job_file
from solvisor.names import FOLDER_JOB_FILE, READY_SUFFIX, is_temporary, printable
from solvisor.spool import files
from solvisor.spool.drops import FILES_MAX

from .hints import Hints
from .settle import Memory, Seen, Sight, settled
from .sorting import Earlier, Kind, Pick, Rules, Thing, Wait, kind_of, settle_seconds, sort_folder

log = structlog.get_logger(__name__)

SURE_SECONDS = 30.0
"""How long at most a scan is spared because the folders did not change."""

_GRAIN_SECONDS = 3.0
"""Times of folders are as coarse as 2 s: two changes within may leave one time, and be told apart by none."""

_STILL = ("job_file", "companion", "held")
"""Waits for a name. What goes on inside a folder, or to a second name of a file, shows in no time of the inbox."""


class Drop(NamedTuple):
    """Something to claim: the route it lies in (empty for the inbox itself), what it is, its ``.ready`` markers."""

    folder: str
    pick: Pick
    markers: tuple[str, ...] = ()


@dataclass(slots=True)
class Survey:
    """What one scan found: drops to claim, the first comers first; what waits, by folder; when to look again.

    ``still``: nothing but time, or a change of the names in a folder, makes another scan find more. ``told``: events
    told of every drop.
    """

    drops: list[Drop] = field(default_factory=list)
    waits: list[tuple[str, Wait]] = field(default_factory=list)
    due: float = math.inf
    still: bool = True
    told: bool = True


class _Tree(NamedTuple):
    """A dropped folder: a hash of all it holds, no file has a second name, temporary names in it, files at its top."""

    mark: bytes
    single: bool
    unfinished: bool
    top: frozenset[str]


class _Met(Struct, frozen=True, gc=False):
    """A name of the inbox as the scan met it; a folder with its tree."""

    kind: Kind
    sight: Sight
    tree: _Tree | None


class _Listed(NamedTuple):
    """A folder as it was when it was last listed, ``at`` that time.

    ``facts`` are which one it is and its own times, which change with the names in it; ``since`` when it is so.
    ``empty``: nothing of ours lay in it.
    """

    facts: tuple[int, ...]
    since: float
    at: float
    empty: bool = False

    @property
    def tells(self) -> bool:
        """Whether every change since it was listed shows in its times."""
        return self.since + _GRAIN_SECONDS <= self.at

    def is_still_empty(self, facts: tuple[int, ...], now: float) -> bool:
        """Whether it need not be listed again to know that nothing lies in it."""
        return self.empty and self.tells and facts == self.facts and now < self.at + SURE_SECONDS


class Scanner:
    """Looks at one inbox again and again, and remembers what it saw."""

    def __init__(self, home: Home, hints: Hints) -> None:
        self.memory = Memory()
        self._home = home
        self._hints = hints
        self._config: Config | None = None
        self._rules: Rules
        self._ident: tuple[int, int] | None = None
        self._listed: dict[str, _Listed] = {}
        self._routes: set[str] = set()  # whose folders were opened, and may be ours
        self._sure_until = -math.inf

    def is_same(self, config: Config, now: float) -> bool:
        """Whether a scan would find what the last one found, but for what becomes due.

        A few system calls, however much lies there. What no folder's own time tells (a file that waits is written to,
        unseen) is missed, so that a whole scan follows after ``SURE_SECONDS`` all the same.
        """
        if config is not self._config or now >= self._sure_until or self._hints.drain():
            return False
        try:
            inbox_fd = files.open_folder(str(self._home.inbox))
            try:
                return all(
                    _facts(os.stat(folder or ".", dir_fd=inbox_fd, follow_symlinks=False)) == listed.facts
                    for folder, listed in self._listed.items()
                )
            finally:
                os.close(inbox_fd)
        except OSError:
            return False

    def scan(
        self,
        config: Config,
        taken: Callable[[str, str], Earlier | None],
        left: Callable[[str, str, os.stat_result], bool],
        now: float,
    ) -> Survey:
        """Look at everything. Makes the inbox and its routes where they are missing.

        ``taken`` tells of the last claim of a name (folder, name); ``left`` whether a file is one that was claimed by
        copy and could not be removed yet. Raises ``OSError`` if the inbox cannot be read.
        """
        survey = Survey()
        self._sure_until = -math.inf
        before, self._listed = self._listed, {}
        with contextlib.ExitStack() as stack:
            inbox_fd = self._open_inbox()
            stack.callback(os.close, inbox_fd)
            folders = {"": inbox_fd}
            for gone in self._routes.difference(config.solver):
                self._routes.discard(gone)
                with contextlib.suppress(OSError):  # something lies in it
                    os.rmdir(gone, dir_fd=inbox_fd)
            for solver in config.solver:
                with contextlib.suppress(OSError):  # what lies there is no folder: then there is no route
                    fd = self._open_route(solver, inbox_fd, before.get(solver), now)
                    if fd is not None:
                        folders[solver] = fd
                        stack.callback(os.close, fd)
            self._listed[""] = _listed(self._inbox_facts(inbox_fd), before.get(""), now)
            for folder, fd in folders.items():
                self._hints.follow(folder, fd)
            self._hints.drain()
            if config is not self._config:
                self.memory.forget_fits()
                self._config = config
                self._rules = _rules(config)
            for where, name in self._hints.closed:
                self.memory.closed(where, name)
            self.memory.keep(folders)
            for folder, fd in folders.items():
                met = _meet(fd, self._listed if folder == "" else (), partial(left, folder))
                self._listed[folder] = self._listed[folder]._replace(empty=not met)
                self._sort(config, folder, fd, met, taken, now, survey)
        self._hints.forget()
        survey.drops.sort(key=lambda drop: drop.pick.appeared)
        if survey.still and all(listed.tells for listed in self._listed.values()):
            self._sure_until = now + SURE_SECONDS
        return survey

    def _open_inbox(self) -> int:
        """The folder that has the inbox's name now; it may be another one than at the last scan."""
        path = str(self._home.inbox)
        try:
            return files.open_folder(path)
        except FileNotFoundError:
            if not self._home.inbox.is_relative_to(self._home.root):
                raise  # a share that is not mounted: a folder in its place would hide that
            self._home.inbox.mkdir(exist_ok=True)
            log.warning("inbox.made", path=path, text="the folder was gone and was made anew")
            return files.open_folder(path)

    def _inbox_facts(self, inbox_fd: int) -> tuple[int, ...]:
        found = os.fstat(inbox_fd)
        if self._ident not in (None, (found.st_dev, found.st_ino)):
            log.info("inbox.replaced", path=str(self._home.inbox))
        self._ident = (found.st_dev, found.st_ino)
        return _facts(found)

    def _open_route(self, solver: str, inbox_fd: int, before: _Listed | None, now: float) -> int | None:
        """Open the folder of a route, unless it is known to be empty; where nothing has its name, make it."""
        found = files.lstat(solver, inbox_fd)
        if found is None:
            os.mkdir(solver, dir_fd=inbox_fd)
            os.chmod(solver, stat.S_IMODE(os.fstat(inbox_fd).st_mode), dir_fd=inbox_fd)  # as the inbox is
            found = os.stat(solver, dir_fd=inbox_fd, follow_symlinks=False)
        self._routes.add(solver)
        facts = _facts(found)
        if before is not None and before.is_still_empty(facts, now):
            self._listed[solver] = before
            return None
        fd = files.open_folder(solver, inbox_fd)
        self._listed[solver] = _listed(facts, before, now)
        return fd

    def _sort(
        self,
        config: Config,
        folder: str,
        fd: int,
        met: dict[str, _Met],
        taken: Callable[[str, str], Earlier | None],
        now: float,
        survey: Survey,
    ) -> None:
        whole = {name for where, name in self._hints.renamed if where == folder}
        whole.update(name.removesuffix(READY_SUFFIX) for name, m in met.items() if m.kind is Kind.MARKER)
        known = self.memory.look(folder, (m.sight for m in met.values()), whole, now)
        reader = _Reader(config, self._rules, folder, fd, now)
        plan = sort_folder(
            [reader.thing(name, m, known[name]) for name, m in met.items()],
            self._rules,
            lambda name: taken(folder, name),
            now,
        )
        told = self._hints.renamed | self._hints.closed if plan.picks else set()
        for pick in plan.picks:
            markers = tuple([name + READY_SUFFIX for name in pick.names if name + READY_SUFFIX in met])
            survey.drops.append(Drop(folder, pick, markers))
            survey.told = survey.told and told.issuperset([(folder, name) for name in pick.names])
        survey.waits += [(folder, wait) for wait in plan.waits]
        survey.due = min(survey.due, plan.due)
        survey.still = (
            survey.still
            and not plan.picks
            and all(wait.why in _STILL for wait in plan.waits)
            and all(seen.single for seen in known.values())
        )


class _Reader:
    """Learns what the sorting needs to know of each name in one folder: which solvers fit, what job files name."""

    def __init__(self, config: Config, rules: Rules, folder: str, fd: int, now: float) -> None:
        self._rules = rules
        self._config = config
        self._route = folder or None
        self._fd = fd
        self._now = now

    def thing(self, name: str, met: _Met, seen: Seen) -> Thing:
        if met.kind is Kind.INPUT:
            if isinstance(seen.fits, EllipsisType):
                seen.fits = candidates(self._config, name, self._route)
            return Thing(name, met.kind, seen, fits=seen.fits)
        if met.kind is Kind.JOB_FILE and settled(seen, self._rules.settle, self._now):
            return Thing(name, met.kind, seen, wants=self._wants(self._fd, name, seen))
        if met.tree is not None:
            is_settled = settled(seen, settle_seconds(self._rules, unfinished=met.tree.unfinished), self._now)
            complete = is_settled and self._is_complete(name, met.tree, seen)
            return Thing(name, met.kind, seen, unfinished=met.tree.unfinished, complete=complete)
        return Thing(name, met.kind, seen)

    def _is_complete(self, name: str, tree: _Tree, seen: Seen) -> bool:
        """Whether a folder has all that makes it one job, or a job file that can only be refused."""
        if FOLDER_JOB_FILE not in tree.top:
            return len(folder_inputs(self._config, tree.top, self._route)) == 1
        try:
            below = files.open_folder(name, self._fd)
        except OSError:
            return True
        try:
            wants = self._wants(below, FOLDER_JOB_FILE, seen)
        finally:
            os.close(below)
        return wants is None or tree.top.issuperset(wants)

    def _wants(self, folder_fd: int, name: str, seen: Seen) -> tuple[str, ...] | None:
        """The names that a job file takes; read once as long as it does not change."""
        if isinstance(seen.wants, EllipsisType):
            seen.wants = _read_wants(folder_fd, name)
        return seen.wants


def _read_wants(folder_fd: int, name: str) -> tuple[str, ...] | None:
    try:
        with open(files.open_file(name, folder_fd), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None  # a pipe, say, put there since it was met
            data = file.read(LARGEST_FILE + 1)
    except OSError:
        return None
    try:
        return parse_job_file(data, name).inputs
    except Refused:
        return named_inputs(data) or None
    except Exception:  # a defect: it is claimed alone, and refused where it is judged
        log.exception("inbox.not_read", name=printable(name))
        return None


def _rules(config: Config) -> Rules:
    with_job_file = frozenset(name for name, solver in config.solver.items() if not solver.alone)
    return Rules(config.inbox.settle, config.inbox.orphan_after, with_job_file)


def _facts(folder: os.stat_result) -> tuple[int, ...]:
    return (folder.st_dev, folder.st_ino, folder.st_mtime_ns, folder.st_ctime_ns)


def _listed(facts: tuple[int, ...], before: _Listed | None, now: float) -> _Listed:
    """What is remembered of a folder that is listed next: what comes from now on changes its facts."""
    return _Listed(facts, now if before is None or before.facts != facts else before.since, now)


def _meet(fd: int, routes: Collection[str], left: Callable[[str, os.stat_result], bool]) -> dict[str, _Met]:
    """Everything in an open folder of the inbox, but routes and what is ``left``."""
    names = set(files.names_in(fd)).difference(routes)
    met = {}
    for name in names:
        found = files.lstat(name, fd)
        if found is None or left(name, found):
            continue
        directory = stat.S_ISDIR(found.st_mode)
        kind = kind_of(name, regular=stat.S_ISREG(found.st_mode), directory=directory, names=names)
        tree = _look_at_tree(name, fd) if kind is Kind.FOLDER else None
        met[name] = _Met(kind, _sight(name, found, tree), tree)
    return met


def _sight(name: str, found: os.stat_result, tree: _Tree | None) -> Sight:
    mark: tuple[object, ...] = (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if tree is not None:
        return Sight(name, (found.st_dev, found.st_ino), (*mark, tree.mark), tree.single)
    single = found.st_nlink == 1 or stat.S_ISDIR(found.st_mode)
    return Sight(name, (found.st_dev, found.st_ino), mark, single)


def _look_at_tree(name: str, inbox_fd: int) -> _Tree:
    """See all of a dropped folder, up to the number of files that a claim allows."""
    digest = hashlib.blake2b(digest_size=16)
    single, unfinished, top = True, False, set()
    try:
        fd = files.open_folder(name, inbox_fd)
        try:
            for entry in itertools.islice(files.walk(fd), FILES_MAX + 1):
                found = entry.stat
                facts = (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
                digest.update(f"{entry.path}\0{facts}\0".encode(errors="surrogateescape"))
                single &= found.st_nlink == 1 or not entry.is_file
                unfinished |= is_temporary(entry.name)
                if entry.is_file and entry.depth == 1:
                    top.add(entry.name)
        finally:
            os.close(fd)
    except OSError as error:  # it vanishes under us, or is not ours to read: the claim will say
        digest.update(f"{error.errno}".encode())
    return _Tree(digest.digest(), single, unfinished, frozenset(top))
