"""One drop on its way from the inbox into ``work/<id>/input``, and back if it cannot go through.

Rules: every step may be the last one before a crash. Nothing is replaced; the only copy of a file is never removed; a
copy gets its name only when it is whole. This module decides nothing about rounds and rows.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator

import msgspec
from msgspec import Struct

from solvisor.model import FileFact, Original, Request
from solvisor.names import escape_name, unescape_name

from . import files
from .drops import (
    FILES_MAX,
    Found,
    Held,
    Problem,
    Rules,
    Take,
    check_settled,
    look_at_file,
    look_at_folder,
    name_problem,
    open_settled,
    parts,
    release_lease,
    unchanged,
)

PLAN = "claim.json"
INTERRUPTED: Problem = (
    "claim_interrupted",
    "the daemon was stopped while it took this drop, and its files changed meanwhile; drop all of them again",
)
_COPY = "copy.tmp"
_INPUT = "input"


class Plan(Struct, frozen=True):
    """``claim.json``: what the drop consists of, so that half a claim can be told from a whole one. Names are escaped.

    ``originals`` are the sources as they were when looked at; of a folder everything in it, and only if it is copied.
    With a ``request`` the drop was whole before it got its id, and nothing of it ever lay in the inbox.
    """

    sources: tuple[str, ...]
    route: str | None
    folder: bool
    originals: tuple[Original, ...]
    request: Request | None = None


class Move:
    """The claim of one ``Take``.

    ``begin``, ``move_in``, ``hash``, in this order; ``undo`` after one failed. What must be durable before ``move_in``
    and at the end, the caller makes so. ``source_fd`` is the folder the drop lies in, and stays the caller's.
    """

    def __init__(self, take: Take, source_fd: int, work_fd: int, rules: Rules) -> None:
        self.take = take
        self.source_fd = source_fd
        self.files: tuple[FileFact, ...] = ()
        self.originals: tuple[Original, ...] = ()
        self.problem: Problem | None = None
        self.uid = 0
        self.planned = False
        self._work_fd = work_fd
        self._rules = rules._replace(quiet=take.quiet, force=take.force)
        self._found: list[Found] = []
        self._seen: dict[str, Original] = {}
        self._copied: set[str] = set()
        self._fds = contextlib.ExitStack()
        self._job_fd = -1
        self._input_fd = -1

    def close(self) -> None:
        """Close its folders."""
        self._fds.close()

    def begin(self) -> None:
        """Look at the sources and make the folders of the job. Raises ``Held``."""
        look = look_at_folder if self.take.folder else look_at_file
        self._found = [look(os.path.basename(source), self.source_fd, self._rules) for source in self.take.sources]
        self._seen = {found.name: self._original(found.name, found.stat) for found in self._found}
        self._judge()
        os.mkdir(self.take.id, 0o750, dir_fd=self._work_fd)
        self._job_fd = self._open(self.take.id, self._work_fd)
        if not self.take.folder:
            os.mkdir(_INPUT, 0o750, dir_fd=self._job_fd)
            self._input_fd = self._open(_INPUT, self._job_fd)
        several = len(self.take.sources) > 1 or "/" in self.take.sources[0]
        if self.take.folder or several or self._found[0].copy:
            self._write_plan()

    def plan_spots(self) -> Iterator[files.Spot]:
        """What must be durable before anything is moved, lest half a claim look whole after a crash."""
        if self.planned:
            yield PLAN, self._job_fd
            yield ".", self._job_fd

    def move_in(self) -> None:
        """Bring the drop into ``input/``. Raises ``Held``."""
        if self.take.folder:
            self._move_folder(self._found[0])
            self._input_fd = self._open(_INPUT, self._job_fd)
        else:
            for found in self._found:
                self._move_file(found)

    def hash(self) -> None:
        """Read all files, note what they are, and start them on their way to the disk."""
        entries = itertools.islice(files.walk(self._input_fd), FILES_MAX)
        self.files = tuple(files.describe(entry, "input/") for entry in entries if not entry.is_folder)

    def spots(self) -> Iterator[files.Spot]:
        """What must be durable before the drop may have a row; of a drop too large to be a job, what ``hash`` read."""
        yield from itertools.islice(files.spots_in(self._input_fd), FILES_MAX)
        yield ".", self._input_fd
        yield ".", self._job_fd

    def undo(self) -> bool:
        """Give everything back and leave no trace. ``False`` if that cannot be: then all that is here stays here."""
        if self._job_fd < 0:
            return True
        try:
            files.discard(_COPY, self._job_fd)
            given_back = self._give_back_folder() if self.take.folder else self._give_back_files()
            if given_back:
                files.discard(PLAN, self._job_fd)
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(_INPUT, dir_fd=self._job_fd)
                os.rmdir(self.take.id, dir_fd=self._work_fd)
        except OSError:
            given_back = False
        if not given_back:
            self.problem = INTERRUPTED
            if self._input_fd < 0:
                with contextlib.suppress(OSError):  # whoever reads it next gets the error, and can name the job
                    self._input_fd = self._open(_INPUT, self._job_fd)
        return given_back

    def resume(self, plan: Plan | None) -> bool:
        """Go on with a claim left by an earlier life; ``False`` if the drop is back in the inbox and no trace remains.

        ``plan`` is ``None`` for what needs none: one file, brought in by one rename.
        """
        self._job_fd = self._open(self.take.id, self._work_fd)
        files.discard(_COPY, self._job_fd)
        if not self.take.folder:
            with contextlib.suppress(FileExistsError):  # as it should
                os.mkdir(_INPUT, 0o750, dir_fd=self._job_fd)
        if files.lstat(_INPUT, self._job_fd) is not None:
            self._input_fd = self._open(_INPUT, self._job_fd)
        if plan is not None and plan.request is None and not self._is_whole(plan) and self.undo():
            return False
        self._rules = self._rules._replace(leases=False, quiet=True, force=True)
        if self.take.folder:
            self._found = [look_at_folder(_INPUT, self._job_fd, self._rules)]
        else:
            self._found = [look_at_file(name, self._input_fd, self._rules) for name in os.listdir(self._input_fd)]
        self._judge()
        return True

    def _is_whole(self, plan: Plan) -> bool:
        """Whether the plan was carried out, by renaming alone: a copy may not have been durable."""
        if plan.folder:
            self.originals = plan.originals
            return self._input_fd >= 0 and not plan.originals
        self._seen = {os.path.basename(unescape_name(seen.path)): seen for seen in plan.originals}
        here = {name: files.lstat(name, self._input_fd) for name in self._seen}
        self._copied = {name for name, found in here.items() if found and found.st_ino != self._seen[name].ino}
        return all(found is not None and is_original(self._seen[name], found) for name, found in here.items())

    def _judge(self) -> None:
        problems = [self.problem, *(name_problem(source) for source in self.take.sources)]
        problems += [found.problem for found in self._found]
        self.problem = next(filter(None, problems), None)
        if self._found:
            self.uid = self._found[0].stat.st_uid

    def _write_plan(self) -> None:
        take = self.take
        originals = tuple(self._seen.values())
        if take.folder:
            originals = self._tree_originals() if self._found[0].copy else ()
        plan = Plan(tuple(map(escape_name, take.sources)), take.route, take.folder, originals)
        files.write_file(PLAN, self._job_fd, msgspec.json.encode(plan))
        self.planned = True

    def _move_file(self, found: Found) -> None:
        name = found.name
        if found.copy:
            self._copy_file(found)
            return
        regular = stat.S_ISREG(found.stat.st_mode)
        fd = open_settled(name, self.source_fd, found.stat, self._rules) if regular else None
        try:
            os.rename(name, name, src_dir_fd=self.source_fd, dst_dir_fd=self._input_fd)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_file(found)
        else:
            there = files.lstat(name, self._input_fd)
            if there is None or not files.same_file(found.stat, there):
                raise Held(name, "writer", f"{escape_name(name)} was replaced at this moment")
        finally:
            if fd is not None:
                os.close(fd)

    def _copy_file(self, found: Found) -> None:
        name = found.name
        if not self.planned:
            self._write_plan()
            files.durable([*self.plan_spots(), (".", self._work_fd)])
        if stat.S_ISREG(found.stat.st_mode):
            fd = open_settled(name, self.source_fd, found.stat, self._rules)
            try:
                release_lease(fd)  # a long copy must not make a writer wait for us; the check afterwards sees it
                files.copy_file(fd, found.stat, _COPY, self._job_fd)
            finally:
                os.close(fd)
            check_settled(name, self.source_fd, found.stat, self._rules)
            os.rename(_COPY, name, src_dir_fd=self._job_fd, dst_dir_fd=self._input_fd)
        elif stat.S_ISLNK(found.stat.st_mode):
            os.symlink(os.readlink(name, dir_fd=self.source_fd), name, dir_fd=self._input_fd)
        self._copied.add(name)
        self.originals += (self._seen[name],)

    def _move_folder(self, found: Found) -> None:
        if found.copy:
            self._copy_folder(found)
            return
        files.move_folder(found.name, self.source_fd, _INPUT, self._job_fd)
        # From here on only a program that already worked inside the folder can reach it; this second look sees it.
        if not unchanged(found, look_at_folder(_INPUT, self._job_fd, self._rules)):
            raise Held(found.name, "writer", f"{escape_name(found.name)} changed at this moment")

    def _copy_folder(self, found: Found) -> None:
        os.mkdir(_COPY, 0o750, dir_fd=self._job_fd)
        with contextlib.ExitStack() as fds:
            source_fd = files.open_folder(found.name, self.source_fd)
            fds.callback(os.close, source_fd)
            target_fd = files.open_folder(_COPY, self._job_fd)
            fds.callback(os.close, target_fd)
            files.copy_tree(source_fd, target_fd)
        if not unchanged(found, look_at_folder(found.name, self.source_fd, self._rules)):
            raise Held(found.name, "writer", f"{escape_name(found.name)} changed while it was copied")
        os.rename(_COPY, _INPUT, src_dir_fd=self._job_fd, dst_dir_fd=self._job_fd)
        self.originals = self._tree_originals()

    def _give_back_files(self) -> bool:
        here = {name: found for name in self._seen if (found := files.lstat(name, self._input_fd)) is not None}
        there = {name: files.lstat(name, self.source_fd) for name in here}
        for name, ours in here.items():
            other = there[name]
            if other is None and name in self._copied:
                return False
            if other is not None and not (_same_inode(ours, other) or is_original(self._seen[name], other)):
                return False
        for name in here:
            if there[name] is None:
                files.move_without_replacing(name, self._input_fd, name, self.source_fd)
            else:
                os.unlink(name, dir_fd=self._input_fd)
        return True

    def _give_back_folder(self) -> bool:
        if files.lstat(_INPUT, self._job_fd) is None:
            return True
        name = os.path.basename(self.take.sources[0])
        there = files.lstat(name, self.source_fd)
        if self.originals:
            if there is None or not is_original(self.originals[-1], there):
                return False
            files.discard(_INPUT, self._job_fd)
        elif there is not None:
            return False
        else:
            files.move_folder(_INPUT, self._job_fd, name, self.source_fd)
        return True

    def _tree_originals(self) -> tuple[Original, ...]:
        return tuple(self._original(path, seen) for path, seen in parts(self._found[0]))

    def _original(self, path: str, seen: os.stat_result) -> Original:
        prefix = os.path.dirname(self.take.sources[0])
        shown = escape_name(os.path.join(prefix, path))
        return Original(shown, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)

    def _open(self, name: str, folder_fd: int) -> int:
        fd = files.open_folder(name, folder_fd)
        self._fds.callback(os.close, fd)
        return fd


def _same_inode(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def is_original(original: Original, there: os.stat_result) -> bool:
    """Whether what lies there is the very file that was looked at, unchanged.

    The device number is not compared: it may change when the machine starts again, and the answer must not.
    """
    if stat.S_ISDIR(there.st_mode):
        return there.st_ino == original.ino
    return (there.st_ino, there.st_size, there.st_mtime_ns) == (original.ino, original.size, original.mtime_ns)


def resume(job_id: str, work_fd: int, source_folder: Callable[[str], int], rules: Rules) -> Move | None:
    """The claim that an earlier life left in ``work/<id>``, adopted; ``None`` if nothing of it is to be kept there.

    ``source_folder`` opens the folder of the inbox with that name ("" is the inbox itself).
    """
    try:
        job_fd = files.open_folder(job_id, work_fd)
    except NotADirectoryError:
        return None
    try:
        data = files.read_file(PLAN, job_fd)
        plan = _decode(data)
        names = _names_in(_INPUT, job_fd)
        if plan is None and not names:  # nothing was moved before the plan was durable
            files.discard(_COPY, job_fd)
            files.discard(PLAN, job_fd)
            files.discard(_INPUT, job_fd)
            os.rmdir(job_id, dir_fd=work_fd)
            return None
    finally:
        os.close(job_fd)
    if plan is None:
        take = Take(job_id, tuple(names))
    else:
        sources = tuple(map(unescape_name, plan.sources))
        take = Take(job_id, sources, plan.route, plan.folder, request=plan.request)
    folder = "" if take.request is not None else os.path.dirname(take.sources[0])
    move = Move(take, source_folder(folder), work_fd, rules)
    if plan is None and (data is not None or len(names) > 1):
        move.problem = INTERRUPTED
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(move.close)
        if not move.resume(plan):
            return None
        on_failure.pop_all()
    return move


def _decode(data: bytes | None) -> Plan | None:
    try:
        return None if data is None else msgspec.json.decode(data, type=Plan)
    except msgspec.DecodeError:
        return None


def _names_in(name: str, folder_fd: int) -> list[str]:
    try:
        fd = files.open_folder(name, folder_fd)
    except FileNotFoundError:
        return []
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)
