"""Looking at a drop while it still lies in the inbox: is it whole, is it ours, can it become a job at all.

Rules: looking changes nothing. A drop that must wait raises ``Held``; one that can only be rejected carries a
``Problem``. A read lease is held for microseconds and only to learn that nobody has the file open for writing.
This module must not know where claimed files go.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from typing import Literal, NamedTuple

from msgspec import Struct

from solvisor.model import Request
from solvisor.names import escape_name, is_plain_name

from . import files

if sys.platform != "win32":
    import fcntl

FILES_MAX = 10_000
"""Files and folders in one dropped folder."""

_FOLDER = re.compile(r"([^/]+/)?")
_NO_NAMES = frozenset({"", ".", ".."})

Waiting = Literal["gone", "writer", "no_lease", "hard_link", "folder", "disk", "error"]
Problem = tuple[str, str]


def our_uid() -> int:
    """The user this process acts as."""
    if sys.platform == "win32":
        return 0
    return os.geteuid()


class Take(Struct, frozen=True):
    """The wish to claim one drop as job ``id``.

    ``sources`` are names relative to the inbox (``beam.inp``, or ``ccx/beam.inp`` when dropped in the folder of the
    route ``ccx``), all in one folder; with ``folder`` exactly one name, a directory. Names are as the file system has
    them (``os.fsdecode``). ``quiet``: size and time did not change for long, so a file on which no lease can be had
    may be taken. ``force``: take a file although it has a second name (hard link), only to reject it. ``request``:
    it did not lie in the inbox but was sent, or is taken again; then ``sources`` only say what it was called.
    """

    id: str
    sources: tuple[str, ...]
    route: str | None = None
    folder: bool = False
    quiet: bool = False
    force: bool = False
    request: Request | None = None

    def __post_init__(self) -> None:
        parts = [source.rpartition("/") for source in self.sources]
        folders = {folder + slash for folder, slash, _ in parts}
        names = [name for _, _, name in parts]
        if len(folders) != 1 or not _FOLDER.fullmatch(folders.pop()) or not _NO_NAMES.isdisjoint(names):
            raise ValueError(f"sources must be plain names in one folder of the inbox: {self.sources}")
        if self.folder and len(names) != 1:
            raise ValueError(f"a dropped folder is claimed alone: {self.sources}")


class Held(Exception):
    """The drop stays in the inbox for now: which source holds it back, why, and why in words."""

    def __init__(self, source: str, reason: Waiting, text: str) -> None:
        self.source = source
        self.reason: Waiting = reason
        super().__init__(text)


class Found(NamedTuple):
    """One dropped file or folder as it was when it was looked at.

    ``copy``: it cannot simply be renamed in, because somebody else owns it or could still reach it, or it lies on
    another file system. ``tree`` lists what a folder holds, parents first.
    """

    name: str
    stat: os.stat_result
    copy: bool
    problem: Problem | None
    tree: tuple[tuple[str, os.stat_result], ...] = ()
    bounded: bool = True

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.stat.st_mode)


class Rules(NamedTuple):
    """What decides how a drop is taken, beside the drop itself.

    ``work_dev`` is the device of ``work/``; ``leases`` says that a lease in the inbox sees every writer; ``quiet`` and
    ``force`` are those of the ``Take``.
    """

    work_dev: int
    leases: bool
    quiet: bool = False
    force: bool = False


def look_at_file(name: str, folder_fd: int, rules: Rules) -> Found:
    """Look at a drop that is to be one file; whether it is settled is for ``open_settled``. Raises ``Held``."""
    seen = files.lstat(name, folder_fd)
    if seen is None:
        raise Held(name, "gone", f"{escape_name(name)} is no longer there")
    if stat.S_ISDIR(seen.st_mode):
        raise Held(name, "folder", f"{escape_name(name)} is a folder where a file is expected")
    problem = name_problem(name)
    if not stat.S_ISREG(seen.st_mode):
        text = f"{escape_name(name)} is {kind_of(seen)}; drop the file itself"
        return Found(name, seen, False, ("not_a_file", text))
    foreign = _foreign(seen, rules)
    if seen.st_nlink > 1:
        shown = escape_name(name)
        text = f"{shown} has {seen.st_nlink} names (hard links), so it could change while it is used; drop a copy"
        if not rules.force:
            raise Held(name, "hard_link", text)
        problem = ("hard_link", text)
        foreign = True
    if foreign:
        _must_be_removable(name, folder_fd, seen)
    return Found(name, seen, foreign, problem)


def look_at_folder(name: str, folder_fd: int, rules: Rules) -> Found:
    """Look at a dropped folder and at everything in it. Raises ``Held``."""
    shown = escape_name(name)
    seen = files.lstat(name, folder_fd)
    if seen is None:
        raise Held(name, "gone", f"{shown} is no longer there")
    if not stat.S_ISDIR(seen.st_mode):
        raise Held(name, "gone", f"{shown} is no longer a folder")
    root_fd = files.open_folder(name, folder_fd)
    try:
        return _look_at_tree(name, folder_fd, seen, root_fd, rules)
    finally:
        os.close(root_fd)


def _look_at_tree(name: str, folder_fd: int, seen: os.stat_result, root_fd: int, rules: Rules) -> Found:
    problem = name_problem(name)
    copy = _foreign(seen, rules)
    tree: list[tuple[str, os.stat_result]] = []
    locked = None if os.access(".", os.W_OK | os.X_OK, dir_fd=root_fd) else name
    for entry in files.walk(root_fd):
        beyond = _bound_problem(entry, len(tree), name)
        if beyond is not None:
            return Found(name, seen, False, beyond, tuple(tree), bounded=False)
        tree.append((entry.path, entry.stat))
        copy = copy or _foreign(entry.stat, rules)
        problem = problem or _entry_problem(entry)
        if entry.is_folder and not os.access(entry.name, os.W_OK | os.X_OK, dir_fd=entry.folder_fd):
            locked = locked or f"{name}/{entry.path}"
        if entry.is_file:
            check_settled(entry.name, entry.folder_fd, entry.stat, rules, f"{name}/{entry.path}")
    if copy:
        if locked is not None:
            raise Held(name, "error", _not_removable(locked))
        _must_be_removable(name, folder_fd, seen)
    return Found(name, seen, copy, problem, tuple(tree))


def check_settled(name: str, folder_fd: int, seen: os.stat_result, rules: Rules, source: str | None = None) -> None:
    """Raise ``Held`` if somebody has the file open for writing, or may have and it was not quiet for long."""
    fd = open_settled(name, folder_fd, seen, rules, source)
    os.close(fd)


def open_settled(name: str, folder_fd: int, seen: os.stat_result, rules: Rules, source: str | None = None) -> int:
    """Open a file that is still as it was ``seen``, with a read lease on it where one can be had. Raises ``Held``.

    While the lease lasts, until the descriptor is closed, no writer can come in unnoticed.
    """
    source = source or name
    try:
        fd = files.open_file(name, folder_fd)
    except FileNotFoundError:
        raise Held(source, "gone", f"{escape_name(source)} is no longer there") from None
    try:
        if not files.same_file(seen, os.fstat(fd)):
            raise Held(source, "writer", f"{escape_name(source)} is still changing")
        lease = _take_lease(fd) if rules.leases else "none"
        if lease == "writer":
            raise Held(source, "writer", f"a program still has {escape_name(source)} open for writing")
        if lease == "none" and not rules.quiet:
            shown = escape_name(source)
            raise Held(
                source, "no_lease", f"whether {shown} is complete shows only when it has not changed for a while"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def check_hashed(entry: files.Entry, fd: int, rules: Rules) -> None:
    """Raise ``Held`` unless what was read is the whole of a claimed file: unchanged, and nobody can still write to it.

    A program may have opened it in the moment of its renaming, and gone on after that. What others might write to by
    their group is ours alone from now on.
    """
    if not files.same_file(entry.stat, os.fstat(fd)):
        raise Held(entry.path, "writer", f"{escape_name(entry.path)} changed while it was read")
    if sys.platform != "win32" and entry.stat.st_mode & 0o022 and entry.stat.st_nlink == 1:
        os.fchmod(fd, stat.S_IMODE(entry.stat.st_mode) & ~0o022)
    if rules.leases and _take_lease(fd) == "writer":
        raise Held(entry.path, "writer", f"a program still has {escape_name(entry.path)} open for writing")


def _take_lease(fd: int) -> Literal["held", "writer", "none"]:
    if sys.platform == "linux":
        try:
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            return "writer" if error.errno == errno.EAGAIN else "none"
        return "held"
    return "none"


def release_lease(fd: int) -> None:
    """Give a lease up early; closing the file does it too."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # there was none
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _foreign(seen: os.stat_result, rules: Rules) -> bool:
    return seen.st_uid != our_uid() or seen.st_dev != rules.work_dev


def _must_be_removable(name: str, folder_fd: int, seen: os.stat_result) -> None:
    """A drop that is taken by copy must go away afterwards, or it would be taken again and again."""
    folder = os.fstat(folder_fd)
    sticky = folder.st_mode & stat.S_ISVTX and our_uid() not in (0, folder.st_uid, seen.st_uid)
    if sticky or not os.access(".", os.W_OK | os.X_OK, dir_fd=folder_fd):
        raise Held(name, "error", _not_removable(name))


def _not_removable(source: str) -> str:
    return (
        f"{escape_name(source)} could be copied but not removed by the daemon (uid {our_uid()}); "
        "let the daemon's user own the folder it lies in, or give it write permission there"
    )


def name_problem(name: str) -> Problem | None:
    """What is wrong with a name, if anything."""
    if is_plain_name(name):
        return None
    shown = escape_name(name)
    return "name", f"the name {shown} holds bytes that are not UTF-8, control characters or backslashes; rename it"


def tree_problem(folder_fd: int, name: str) -> Problem | None:
    """The first thing that keeps what an open folder, called ``name``, holds from being copied as inputs of a job.

    A second name of a file (hard link) does a copy no harm.
    """
    for count, entry in enumerate(files.walk(folder_fd)):
        problem = entry_problem(entry, count, name)
        if problem is not None and problem[0] != "hard_link":
            return problem
    return None


def entry_problem(entry: files.Entry, count: int, name: str) -> Problem | None:
    """What keeps one thing, met after ``count`` others in a folder called ``name``, from being among a job's inputs."""
    return _bound_problem(entry, count, name) or _entry_problem(entry)


def _bound_problem(entry: files.Entry, count: int, name: str) -> Problem | None:
    """What is too much of a folder called ``name``, in which ``count`` entries came before this one."""
    if count == FILES_MAX:
        text = f"{escape_name(name)} holds more than {FILES_MAX:,} files; make it one archive that your solver can open"
        return "too_many_files", text
    if entry.is_folder and entry.depth == files.DEPTH_MAX:
        return "too_deep", f"{escape_name(name)} holds folders more than {files.DEPTH_MAX} deep; flatten it"
    return None


def _entry_problem(entry: files.Entry) -> Problem | None:
    """What keeps one thing in a folder from being an input, if anything."""
    if not (entry.is_folder or entry.is_file):
        shown = escape_name(entry.path)
        return (
            "not_a_file",
            f"{shown} is {kind_of(entry.stat)}; only files and folders can be inputs",
        )
    if entry.is_file and entry.stat.st_nlink > 1:
        shown = escape_name(entry.path)
        return "hard_link", f"{shown} has {entry.stat.st_nlink} names (hard links); drop a copy"
    return name_problem(entry.name)


def kind_of(seen: os.stat_result) -> str:
    """What something that is not a regular file is, in words."""
    kinds = {
        stat.S_IFLNK: "a symbolic link",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFBLK: "a device",
        stat.S_IFCHR: "a device",
        stat.S_IFDIR: "a folder",
    }
    return kinds.get(stat.S_IFMT(seen.st_mode), "no regular file")


def unchanged(before: Found, after: Found) -> bool:
    """Whether two looks at a folder saw the same files."""
    return [_essence(path, seen) for path, seen in before.tree] == [_essence(path, seen) for path, seen in after.tree]


def _essence(path: str, seen: os.stat_result) -> tuple[str, int, int, int]:
    if stat.S_ISDIR(seen.st_mode):
        return path, seen.st_ino, 0, 0
    return path, seen.st_ino, seen.st_size, seen.st_mtime_ns


def parts(found: Found) -> Iterator[tuple[str, os.stat_result]]:
    """Everything a drop consists of, deepest first, the drop itself last: the order in which it can be removed."""
    for path, seen in reversed(found.tree):
        yield f"{found.name}/{path}", seen
    yield found.name, found.stat
