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
from types import EllipsisType
from typing import NamedTuple

import structlog

from solvisor.config import Config
from solvisor.errors import Refused
from solvisor.home import Home
from solvisor.intake import candidates, folder_inputs
from solvisor.jobfile import LARGEST_FILE, named_inputs, parse_job_file
from solvisor.names import FOLDER_JOB_FILE, is_temporary
from solvisor.spool import files
from solvisor.spool.drops import FILES_MAX

from .hints import Hints
from .settle import Memory, Seen, Sight, settled
from .sorting import READY_SUFFIX, Earlier, Kind, Pick, Rules, Thing, Wait, kind_of, settle_seconds, sort_folder

log = structlog.get_logger(__name__)


class Drop(NamedTuple):
    """Something to claim: the route it lies in (empty for the inbox itself), what it is, its ``.ready`` markers."""

    folder: str
    pick: Pick
    markers: tuple[str, ...] = ()


@dataclass(slots=True)
class Survey:
    """What one scan found: drops to claim, the first comers first; what waits, by folder; when to look again."""

    drops: list[Drop] = field(default_factory=list)
    waits: list[tuple[str, Wait]] = field(default_factory=list)
    due: float = math.inf


class _Tree(NamedTuple):
    """A dropped folder: a hash of all it holds, no file has a second name, temporary names in it, files at its top."""

    mark: bytes
    single: bool
    unfinished: bool
    top: frozenset[str]


class _Met(NamedTuple):
    """A name of the inbox as the scan met it; a folder with its tree."""

    kind: Kind
    stat: os.stat_result
    tree: _Tree | None


class Scanner:
    """Looks at one inbox again and again, and remembers what it saw."""

    def __init__(self, home: Home, hints: Hints) -> None:
        self.memory = Memory()
        self._home = home
        self._hints = hints
        self._ident: tuple[int, int] | None = None

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
        with contextlib.ExitStack() as stack:
            folders = {"": self._open_inbox(stack)}
            for solver in config.solver:
                with contextlib.suppress(OSError):  # what lies there is no folder: then there is no route
                    folders[solver] = _open_route(solver, folders[""])
                    stack.callback(os.close, folders[solver])
            self.memory.keep(folders)
            for folder, fd in folders.items():
                self._hints.follow(folder, fd)
            self._hints.drain()
            for folder, fd in folders.items():
                met = _meet(fd, folders if folder == "" else ())
                met = {name: m for name, m in met.items() if not left(folder, name, m.stat)}
                self._sort(config, folder, fd, met, taken, now, survey)
        self._hints.forget()
        survey.drops.sort(key=lambda drop: drop.pick.appeared)
        return survey

    def _open_inbox(self, stack: contextlib.ExitStack) -> int:
        """The folder that has the inbox's name now; it may be another one than at the last scan."""
        path = str(self._home.inbox)
        try:
            fd = files.open_folder(path)
        except FileNotFoundError:
            if not self._home.inbox.is_relative_to(self._home.root):
                raise  # a share that is not mounted: a folder in its place would hide that
            self._home.inbox.mkdir(exist_ok=True)
            log.warning("inbox.made", path=path, text="the folder was gone and was made anew")
            fd = files.open_folder(path)
        stack.callback(os.close, fd)
        found = os.fstat(fd)
        if self._ident not in (None, (found.st_dev, found.st_ino)):
            log.info("inbox.replaced", path=path)
        self._ident = (found.st_dev, found.st_ino)
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
        for where, name in self._hints.closed:
            self.memory.closed(where, name)
        known = self.memory.look(folder, [_sight(name, m) for name, m in met.items()], whole, now)
        reader = _Reader(config, folder, fd, now)
        plan = sort_folder(
            [reader.thing(name, m, known[name]) for name, m in met.items()],
            reader.rules,
            lambda name: taken(folder, name),
            now,
        )
        for pick in plan.picks:
            markers = tuple(name + READY_SUFFIX for name in pick.names if name + READY_SUFFIX in met)
            survey.drops.append(Drop(folder, pick, markers))
        survey.waits += [(folder, wait) for wait in plan.waits]
        survey.due = min(survey.due, plan.due)


class _Reader:
    """Learns what the sorting needs to know of each name in one folder: which solvers fit, what job files name."""

    def __init__(self, config: Config, folder: str, fd: int, now: float) -> None:
        self.rules = Rules(
            config.inbox.settle,
            config.inbox.orphan_after,
            frozenset(name for name, solver in config.solver.items() if not solver.alone),
        )
        self._config = config
        self._route = folder or None
        self._fd = fd
        self._now = now

    def thing(self, name: str, met: _Met, seen: Seen) -> Thing:
        if met.kind is Kind.INPUT:
            return Thing(name, met.kind, seen, fits=candidates(self._config, name, self._route))
        if met.kind is Kind.JOB_FILE and settled(seen, self.rules.settle, self._now):
            return Thing(name, met.kind, seen, wants=self._wants(self._fd, name, seen))
        if met.tree is not None:
            is_settled = settled(seen, settle_seconds(self.rules, unfinished=met.tree.unfinished), self._now)
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
            data = file.read(LARGEST_FILE + 1)
    except OSError:
        return None
    try:
        return parse_job_file(data, name).inputs
    except Refused:
        return named_inputs(data) or None


def _open_route(solver: str, inbox_fd: int) -> int:
    """Open the folder of a route; where nothing has its name, make it as the inbox is."""
    if files.lstat(solver, inbox_fd) is None:
        os.mkdir(solver, dir_fd=inbox_fd)
        os.chmod(solver, stat.S_IMODE(os.fstat(inbox_fd).st_mode), dir_fd=inbox_fd)
    return files.open_folder(solver, inbox_fd)


def _meet(fd: int, routes: Collection[str]) -> dict[str, _Met]:
    """Everything in an open folder of the inbox, but routes."""
    with os.scandir(fd) as listing:
        names = {entry.name for entry in listing}.difference(routes)
    met = {}
    for name in names:
        found = files.lstat(name, fd)
        if found is None:
            continue
        directory = stat.S_ISDIR(found.st_mode)
        kind = kind_of(name, regular=stat.S_ISREG(found.st_mode), directory=directory, names=names)
        met[name] = _Met(kind, found, _look_at_tree(name, fd) if kind is Kind.FOLDER else None)
    return met


def _sight(name: str, met: _Met) -> Sight:
    found = met.stat
    mark: tuple[object, ...] = (found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if met.tree is not None:
        return Sight(name, (found.st_dev, found.st_ino), (*mark, met.tree.mark), met.tree.single)
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
