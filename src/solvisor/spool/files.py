"""Files by descriptor: opening without surprises, hashing, copying, and making durable.

Rules: a name given by a user is opened relative to the open folder it lies in, never through a symbolic link and never
by a path, which can be longer than the kernel takes. What is to be durable goes through ``Syncs``. This module must not
know homes, claims or jobs. One file, if a long one: whoever opens a name that users or solvers gave finds the way here.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import shutil
import signal
import stat
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from solvisor import failpoint
from solvisor.model import FileFact
from solvisor.names import escape_name

from . import flush

if sys.platform != "win32":
    _FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    _NO_FOLLOW = os.O_NOFOLLOW
    _FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    _NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
else:
    _FOLDER = _FILE = os.O_RDONLY
    _NO_FOLLOW = 0
    _NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL

DEPTH_MAX = 32
"""Folders within folders that are looked into, in a drop and in what a solver leaves."""

BLOCK = 1 << 18


class NotDurable(OSError):
    """A file or folder could not be synced.

    The kernel may have dropped the unwritten pages, so a second fsync that succeeds proves nothing: the daemon must end
    and recover from what is on the disk.
    """


@contextlib.contextmanager
def writing(name: str) -> Iterator[None]:
    """The block only writes: EIO is of the disk, whatever is written. Raises ``NotDurable``, ``OSError``."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise NotDurable(error.errno, f"writing failed: {error.strerror}", name) from error


class Replaced(OSError):
    """A file is not the one that was looked at: somebody put another in its place, or wrote to it."""

    def __init__(self, path: str) -> None:
        super().__init__(errno.ESTALE, "it was replaced or changed while it was read", path)


class Entry(Struct, frozen=True):
    """Something met by ``walk``: its path from where the walk began, how to reach it, and what it is (``lstat``)."""

    path: str
    name: str
    folder_fd: int
    stat: os.stat_result
    depth: int

    @property
    def is_folder(self) -> bool:
        """A real folder, not a link to one."""
        return stat.S_ISDIR(self.stat.st_mode)

    @property
    def is_file(self) -> bool:
        """A regular file."""
        return stat.S_ISREG(self.stat.st_mode)


def ignore_lease_breaks() -> None:
    """Give SIGIO a handler that does nothing (main thread only).

    The kernel sends it when someone opens a file on which we hold a lease; unhandled it kills the daemon. It is not
    set to SIG_IGN, because solvers would inherit that.
    """
    if sys.platform != "win32":
        signal.signal(signal.SIGIO, lambda _signum, _frame: None)


def open_folder(name: str, folder_fd: int | None = None) -> int:
    """Open a folder. Relative to ``folder_fd`` a symbolic link is refused (ENOTDIR or ELOOP)."""
    return os.open(name, _FOLDER if folder_fd is None else _FOLDER | _NO_FOLLOW, dir_fd=folder_fd)


class _Opened(Struct):
    """Closes what is open at the end of its block."""

    fd: int

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def in_folder(name: str | Path, folder_fd: int | None = None) -> _Opened:
    """As ``open_folder``, for the time of the context."""
    return _Opened(open_folder(str(name), folder_fd))


@contextlib.contextmanager
def folder_of(path: str, folder_fd: int) -> Iterator[tuple[str, int]]:
    """The last part of a path beneath an open folder, and the open folder it lies in; no part may be a link.

    Raises ``OSError``.
    """
    *parents, name = path.split("/")
    fd = folder_fd
    try:
        for parent in parents:
            above, fd = fd, open_folder(parent, fd)
            if above != folder_fd:
                os.close(above)
        yield name, fd
    finally:
        if fd != folder_fd:
            os.close(fd)


def open_folder_of_ours(name: str, folder_fd: int | None = None) -> int:
    """Open a folder, and no link to one, that our solver may have made unreadable; it is given its permissions back."""
    try:
        fd = os.open(name, _FOLDER | _NO_FOLLOW, dir_fd=folder_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=folder_fd)
        return os.open(name, _FOLDER | _NO_FOLLOW, dir_fd=folder_fd)
    if os.fstat(fd).st_mode & 0o700 != 0o700:
        with contextlib.suppress(PermissionError):  # of somebody else: it may do as it is
            os.chmod(fd, 0o700)
    return fd


def open_file(name: str, folder_fd: int) -> int:
    """Open for reading, never through a symbolic link, never waiting for the other end of a FIFO."""
    return os.open(name, _FILE, dir_fd=folder_fd)


def new_file(name: str, folder_fd: int, mode: int = 0o640) -> int:
    """Create a file that did not exist, open for writing."""
    return os.open(name, _NEW, mode, dir_fd=folder_fd)


def lstat(name: str, folder_fd: int) -> os.stat_result | None:
    """What lies there, or ``None``; a symbolic link is described, not followed."""
    try:
        return os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def lstat_beneath(path: str, folder_fd: int) -> os.stat_result | None:
    """As ``lstat``, of a path beneath an open folder; no part may be a link. Raises ``OSError``."""
    if "/" not in path:
        return lstat(path, folder_fd)
    with folder_of(path, folder_fd) as (name, parent_fd):
        return lstat(name, parent_fd)


def names_in(folder_fd: int) -> list[str]:
    """What an open folder holds now, sorted.

    It is opened anew for that: Btrfs lists only what was there when the folder was opened.
    """
    return sorted(os.listdir(f"/proc/self/fd/{folder_fd}" if sys.platform == "linux" else folder_fd))


def same_file(a: os.stat_result, b: os.stat_result) -> bool:
    """Whether both describe one file with unchanged contents and no new name."""
    return (a.st_dev, a.st_ino, a.st_size, a.st_mtime_ns, a.st_nlink) == (
        b.st_dev,
        b.st_ino,
        b.st_size,
        b.st_mtime_ns,
        b.st_nlink,
    )


Spot = tuple[str, int]
"""A file or folder by its name in an open folder; "." is that folder itself."""


def spots_in(folder_fd: int) -> Iterator[Spot]:
    """Every file and folder that ``walk`` meets beneath an open folder, but folders that it does not enter.

    Each is good until the next one is asked for.
    """
    for entry in walk(folder_fd):
        if entry.is_file or (entry.is_folder and entry.depth < DEPTH_MAX):
            yield entry.name, entry.folder_fd


class Syncs:
    """Files and folders made durable together, by the end of its block, which raises ``NotDurable`` if one is not."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._names: list[str] = []
        self._owned: list[int] = []
        self._end: Callable[[], BaseException | None] | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Syncs:
        return self

    def __exit__(self, *_: object) -> None:
        if self._end is not None:
            self._error = self._error or self._end()
        self._flush()
        if self._error is not None:
            raise self._error

    def add(self, spots: Iterable[Spot]) -> None:
        """Sync these files and folders, in no order; what is gone is left out.

        Each is opened here, when it is taken from ``spots``. Raises ``OSError`` if one cannot be opened: nothing was
        lost by that, and only its own job is concerned.
        """
        for name, folder_fd in spots:
            try:
                fd = os.dup(folder_fd) if name == "." else open_file(name, folder_fd)
            except FileNotFoundError:
                continue  # somebody removed it meanwhile: there is nothing to keep
            self.take(fd, name)

    def take(self, fd: int, name: str = ".") -> None:
        """Sync what is open, and close it then; an error calls it ``name``."""
        self.add_open(fd, name)
        self._owned.append(fd)

    def add_open(self, fd: int, name: str = ".") -> None:
        """Sync what is open already, and stays open until the end of the block; an error calls it ``name``."""
        if len(self._fds) == flush.AT_ONCE:
            self._flush()
        self._fds.append(fd)
        self._names.append(name)

    def begin(self) -> None:
        """Have what is open already, ``flush.AT_ONCE`` at most, on its way while the block goes on; once only."""
        fds, names = self._fds, self._names
        self._fds, self._names = [], []
        if fds:
            self._end = _begin(fds, names)

    def _flush(self) -> None:
        fds, names, owned = self._fds, self._names, self._owned
        self._fds, self._names, self._owned = [], [], []
        try:
            error = _sync(fds, names)
        finally:
            for fd in owned:
                os.close(fd)
        self._error = self._error or error


def _sync(fds: Sequence[int], names: Sequence[str]) -> BaseException | None:
    """Sync all of what is open; the first error."""
    if not fds:
        return None
    failpoint.reach("sync.begun")
    errors = flush.flush(fds)
    failpoint.reach("sync.done")
    return _first(names, errors)


def _begin(fds: Sequence[int], names: Sequence[str]) -> Callable[[], BaseException | None]:
    """As ``_sync``; to be waited for by calling what this returns."""
    errors = flush.begin(fds)
    failpoint.reach("sync.under_way")
    return lambda: _first(names, errors())


def _first(names: Sequence[str], errors: Sequence[BaseException | None]) -> BaseException | None:
    for name, error in zip(names, errors, strict=True):
        if error is not None:
            return _not_durable(name, error)
    return None


def _not_durable(name: str, error: BaseException) -> BaseException:
    if not isinstance(error, OSError):
        return error
    failed = NotDurable(error.errno, f"fsync failed: {error.strerror}", name)
    failed.__cause__ = error
    return failed


def durable(spots: Iterable[Spot]) -> None:
    """fsync all these files and folders; return when every one is done. A "." stays open until then.

    Raises ``NotDurable``, and as ``Syncs.add``.
    """
    with Syncs() as syncs:
        for name, folder_fd in spots:
            if name == ".":
                syncs.add_open(folder_fd)
            else:
                syncs.add([(name, folder_fd)])


def durable_folders(fds: Sequence[int]) -> None:
    """fsync all these open folders; return when every one is done. Raises ``NotDurable``."""
    error = _sync(fds, ["."] * len(fds))
    if error is not None:
        raise error


def _find_sync_file_range() -> Callable[[int], None]:
    """A function that starts writing a file back without waiting.

    Begun for a whole round before its first fsync it makes the round three times faster: the allocations then share
    one journal commit. It promises nothing, so where it does not exist nothing replaces it.
    """
    if sys.platform == "linux":
        call = getattr(ctypes.CDLL(None), "sync_file_range", None)
        if call is not None:
            call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
            write = 2
            return lambda fd: call(fd, 0, 0, write) and None
    return lambda _fd: None


start_writeback = _find_sync_file_range()


def hash_fd(fd: int, expected: int = BLOCK) -> tuple[int, str]:
    """Read an open file from where it stands to its end: bytes read and their SHA-256 in hex.

    ``expected`` bytes are asked for, and one more, so that most files are read by one call.
    """
    digest = hashlib.sha256()
    size = 0
    asked = min(expected + 1, BLOCK)
    while block := os.read(fd, asked):
        size += len(block)
        digest.update(block)
        if len(block) < asked and size == expected:
            break
    return size, digest.hexdigest()


def hash_file(
    name: str,
    folder_fd: int,
    hashed: Callable[[int], object] = lambda _fd: None,
    expected: int = BLOCK,
    *,
    kept: bool = True,
) -> tuple[int, str]:
    """Size and SHA-256 of a file. Made readable if its owner, us, may not.

    ``hashed`` is called with the very file that was read, before it is closed. It has ``expected`` bytes, as far as is
    known. One that is to be ``kept`` is on its way to the disk when this returns; whoever removes one that is would
    have to wait for the disk.
    """
    fd = open_file_of_ours(name, folder_fd)
    try:
        if kept:
            start_writeback(fd)
        found = hash_fd(fd, expected)
        hashed(fd)
        return found
    finally:
        os.close(fd)


def open_file_of_ours(name: str, folder_fd: int) -> int:
    """As ``open_file``; made readable if its owner, us, may not."""
    try:
        return open_file(name, folder_fd)
    except PermissionError:
        os.chmod(name, 0o600, dir_fd=folder_fd)
        return open_file(name, folder_fd)


def room_of(found: os.stat_result) -> int:
    """Bytes that a file takes on the disk, as du counts them."""
    if sys.platform == "win32":
        return found.st_size
    return found.st_blocks * 512


def copy_file(source_fd: int, source: os.stat_result, name: str, folder_fd: int) -> os.stat_result:
    """Copy an open file to a new one of our own, with its time and mode, sharing blocks where the disk can.

    Returns what the copy is then.
    """
    fd = new_file(name, folder_fd, 0o600 | (source.st_mode & 0o777))
    try:
        _copy_bytes(source_fd, fd, source.st_size)
        os.utime(fd, ns=(source.st_atime_ns, source.st_mtime_ns))
        return os.fstat(fd)
    finally:
        os.close(fd)


def _copy_bytes(source_fd: int, target_fd: int, size: int) -> None:
    if sys.platform == "linux":
        try:
            # Reflinks on Btrfs and XFS, copies within the kernel elsewhere.
            while size > 0 and (count := os.copy_file_range(source_fd, target_fd, min(size, 1 << 30))):
                size -= count
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        else:
            return
    while block := os.read(source_fd, BLOCK):
        write_all(target_fd, block)


def walk(folder_fd: int, *, ours: bool = False, prefix: str = "", depth: int = 1) -> Iterator[Entry]:
    """Everything beneath an open folder, by name, a folder before its contents; links are not followed.

    A folder at ``DEPTH_MAX`` is met but not entered. ``ours``: a folder that may not be read is made readable.
    ``prefix`` and ``depth`` are of what lies in the folder.
    """
    for name in names_in(folder_fd):
        found = lstat(name, folder_fd)
        if found is None:
            continue
        path = prefix + name
        yield Entry(path, name, folder_fd, found, depth)
        if stat.S_ISDIR(found.st_mode) and depth < DEPTH_MAX:
            below = (open_folder_of_ours if ours else open_folder)(name, folder_fd)
            try:
                yield from walk(below, ours=ours, prefix=path + "/", depth=depth + 1)
            finally:
                os.close(below)


def write_file(name: str, folder_fd: int, data: bytes) -> None:
    """Create a file with these bytes. Not durable yet."""
    fd = new_file(name, folder_fd)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def read_file(name: str, folder_fd: int) -> bytes | None:
    """The bytes of a file of our own, or ``None`` if it is not there."""
    try:
        fd = open_file(name, folder_fd)
    except FileNotFoundError:
        return None
    with open(fd, "rb") as file:
        return file.read()


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, however many calls that takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_tree(
    source_fd: int,
    target_fd: int,
    skip: Collection[str] = (),
    looked_at: Mapping[str, os.stat_result] | None = None,
    copied: Callable[[str, os.stat_result, os.stat_result], object] = lambda _path, _seen, _copy: None,
) -> None:
    """Copy what an open folder holds, but the files in ``skip``, into an empty folder of our own.

    ``skip`` are paths from the folder. Links are copied as links; what is neither file, folder nor link is left out.
    ``looked_at`` is what may be there, and as it was. Raises ``Replaced`` if a file is not that one at the moment it is
    read. ``copied`` is called with the path of each file, what it is and what its copy is.
    """

    def copy(source_fd: int, target_fd: int, prefix: str, depth: int) -> None:
        for name in names_in(source_fd):
            found = lstat(name, source_fd)
            if found is None:
                continue
            path, mode = prefix + name, found.st_mode
            if stat.S_ISDIR(mode):
                os.mkdir(name, 0o750, dir_fd=target_fd)
                if depth < DEPTH_MAX:
                    with in_folder(name, source_fd) as below, in_folder(name, target_fd) as beside:
                        copy(below, beside, path + "/", depth + 1)
            elif path in skip:
                continue
            elif stat.S_ISREG(mode):
                seen = found if looked_at is None else looked_at.get(path)
                copied(path, found, _copy_seen(path, name, source_fd, seen, target_fd))
            elif stat.S_ISLNK(mode):
                os.symlink(os.readlink(name, dir_fd=source_fd), name, dir_fd=target_fd)

    copy(source_fd, target_fd, "", 1)


def _copy_seen(path: str, name: str, folder_fd: int, seen: os.stat_result | None, target_fd: int) -> os.stat_result:
    """Copy a file, if it is the one that was ``seen``; what the copy is."""
    fd = open_file(name, folder_fd)
    try:
        if seen is None or not same_file(seen, os.fstat(fd)):
            raise Replaced(path)
        return copy_file(fd, seen, name, target_fd)
    finally:
        os.close(fd)


def describe(
    entry: Entry, prefix: str, hashed: Callable[[int], object] = lambda _fd: None, *, kept: bool = True
) -> FileFact:
    """The record of a file or link met by ``walk``; its bytes are read. Anything else has size 0 and no hash.

    ``hashed`` and ``kept`` are as for ``hash_file``.
    """
    path = prefix + escape_name(entry.path)
    if entry.is_file:
        return FileFact(path, *hash_file(entry.name, entry.folder_fd, hashed, entry.stat.st_size, kept=kept))
    if stat.S_ISLNK(entry.stat.st_mode):
        return FileFact(path, 0, "", link=escape_name(os.readlink(entry.name, dir_fd=entry.folder_fd)))
    return FileFact(path, 0, "")


def discard(name: str, folder_fd: int) -> None:
    """Remove something of our own making, file or folder, if it is there."""
    try:
        os.unlink(name, dir_fd=folder_fd)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        there = lstat(name, folder_fd)
        if there is None or not stat.S_ISDIR(there.st_mode):
            raise
    else:
        return
    try:
        shutil.rmtree(name, dir_fd=folder_fd)
    except PermissionError:
        fd = open_folder_of_ours(name, folder_fd)
        try:
            deque(walk(fd, ours=True), maxlen=0)  # what it holds becomes removable
        finally:
            os.close(fd)
        shutil.rmtree(name, dir_fd=folder_fd)


def move_folder(name: str, folder_fd: int, new_name: str, new_folder_fd: int) -> None:
    """Rename a folder of our own into another one. It must be writable for that, and is made so."""
    try:
        os.rename(name, new_name, src_dir_fd=folder_fd, dst_dir_fd=new_folder_fd)
    except PermissionError:
        os.chmod(name, 0o700, dir_fd=folder_fd)
        os.rename(name, new_name, src_dir_fd=folder_fd, dst_dir_fd=new_folder_fd)


def move_without_replacing(name: str, folder_fd: int, new_name: str, new_folder_fd: int) -> None:
    """Rename, but raise ``FileExistsError`` if the new name is taken. A crash midway leaves both names on one file."""
    os.link(name, new_name, src_dir_fd=folder_fd, dst_dir_fd=new_folder_fd, follow_symlinks=False)
    os.unlink(name, dir_fd=folder_fd)
