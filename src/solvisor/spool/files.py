"""Files by descriptor: opening without surprises, hashing, copying, and making durable.

Rules: a name given by a user is opened relative to the open folder it lies in, never through a symbolic link and never
by a path, which can be longer than the kernel takes. ``Syncs`` is the only place that calls fsync. This module must not
know homes, claims or jobs.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import errno
import hashlib
import os
import shutil
import signal
import stat
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

from solvisor.model import FileFact
from solvisor.names import escape_name

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

_BLOCK = 1 << 18


class NotDurable(OSError):
    """A file or folder could not be synced.

    The kernel may have dropped the unwritten pages, so a second fsync that succeeds proves nothing: the daemon must end
    and recover from what is on the disk.
    """


class Entry(NamedTuple):
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


def open_folder_of_ours(name: str, folder_fd: int | None = None) -> int:
    """Open a folder that our solver may have made unreadable; it is given its permissions back."""
    try:
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode) and found.st_mode & 0o700 != 0o700:
            os.chmod(name, 0o700, dir_fd=folder_fd)
    except PermissionError:  # of somebody else: it may be readable as it is
        pass
    return open_folder(name, folder_fd)


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
    """Some fsyncs side by side, under way until the end of its block, which raises ``NotDurable`` if one failed.

    Each fsync ends in a flush of the whole disk, and flushes that wait together are done as one. On a disk whose flush
    takes 3 ms that makes 200 of them thirty times faster.
    """

    def __init__(self) -> None:
        self._under_way: deque[concurrent.futures.Future[None]] = deque()
        self._error: BaseException | None = None

    def __enter__(self) -> Syncs:
        return self

    def __exit__(self, *_: object) -> None:
        while self._under_way:
            self._finish_first()
        if self._error is not None:
            raise self._error

    def add(self, spots: Iterable[Spot]) -> None:
        """Sync these files and folders, in no order; what is gone is left out.

        Each is opened here, when it is taken from ``spots``. Raises ``OSError`` if one cannot be opened: nothing was
        lost by that, and only its own job is concerned.
        """
        for name, folder_fd in spots:
            if len(self._under_way) == _SYNCS_MAX:
                self._finish_first()
            try:
                fd = os.dup(folder_fd) if name == "." else open_file(name, folder_fd)
            except FileNotFoundError:
                continue  # somebody removed it meanwhile: there is nothing to keep
            self._under_way.append(_syncers.submit(_sync, fd, name))

    def _finish_first(self) -> None:
        self._error = self._under_way.popleft().exception() or self._error


def durable(spots: Iterable[Spot]) -> None:
    """fsync all these files and folders; return when every one is done. Raises ``NotDurable``, and as ``Syncs.add``."""
    with Syncs() as syncs:
        syncs.add(spots)


_SYNCS_MAX = 64
"""Descriptors open at once to be synced."""

_syncers = concurrent.futures.ThreadPoolExecutor(8, thread_name_prefix="fsync")


def _sync(fd: int, name: str) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise NotDurable(error.errno, f"fsync failed: {error.strerror}", name) from error
    finally:
        os.close(fd)


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


def hash_fd(fd: int) -> tuple[int, str]:
    """Read an open file from where it stands to its end: bytes read and their SHA-256 in hex."""
    digest = hashlib.sha256()
    size = 0
    while block := os.read(fd, _BLOCK):
        size += len(block)
        digest.update(block)
    return size, digest.hexdigest()


def hash_file(name: str, folder_fd: int) -> tuple[int, str]:
    """Size and SHA-256 of a file, on its way to the disk when this returns. Made readable if its owner, us, may not."""
    try:
        fd = open_file(name, folder_fd)
    except PermissionError:
        os.chmod(name, 0o600, dir_fd=folder_fd)
        fd = open_file(name, folder_fd)
    try:
        start_writeback(fd)
        return hash_fd(fd)
    finally:
        os.close(fd)


def copy_file(source_fd: int, source: os.stat_result, name: str, folder_fd: int) -> None:
    """Copy an open file to a new one of our own, with its time and mode, sharing blocks where the disk can."""
    fd = new_file(name, folder_fd, 0o600 | (source.st_mode & 0o777))
    try:
        _copy_bytes(source_fd, fd)
        os.utime(fd, ns=(source.st_atime_ns, source.st_mtime_ns))
    finally:
        os.close(fd)


def _copy_bytes(source_fd: int, target_fd: int) -> None:
    if sys.platform == "linux":
        try:
            # Reflinks on Btrfs and XFS, copies within the kernel elsewhere.
            while os.copy_file_range(source_fd, target_fd, 1 << 30):
                pass
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        else:
            return
    while block := os.read(source_fd, _BLOCK):
        _write_all(target_fd, block)


def walk(folder_fd: int, *, ours: bool = False) -> Iterator[Entry]:
    """Everything beneath an open folder, by name, a folder before its contents; links are not followed.

    A folder at ``DEPTH_MAX`` is met but not entered. ``ours``: a folder that may not be read is made readable.
    """
    yield from _walk(folder_fd, "", 1, ours)


def _walk(folder_fd: int, prefix: str, depth: int, ours: bool) -> Iterator[Entry]:
    for name in sorted(os.listdir(folder_fd)):
        found = lstat(name, folder_fd)
        if found is None:
            continue
        entry = Entry(prefix + name, name, folder_fd, found, depth)
        yield entry
        if entry.is_folder and depth < DEPTH_MAX:
            below = (open_folder_of_ours if ours else open_folder)(name, folder_fd)
            try:
                yield from _walk(below, f"{prefix}{name}/", depth + 1, ours)
            finally:
                os.close(below)


def write_file(name: str, folder_fd: int, data: bytes) -> None:
    """Create a file with these bytes. Not durable yet."""
    fd = new_file(name, folder_fd)
    try:
        _write_all(fd, data)
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


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def copy_tree(source_fd: int, target_fd: int, skip: Collection[str] = ()) -> None:
    """Copy what an open folder holds, but the files in ``skip``, into an empty folder of our own.

    ``skip`` are paths from the folder. Links are copied as links; what is neither file, folder nor link is left out.
    """
    targets = {"": target_fd}  # the copies of the folders that the walk is in, by the prefix of what lies in them
    try:
        for entry in walk(source_fd):
            prefix = entry.path.removesuffix(entry.name)
            for left in [other for other in targets if not prefix.startswith(other)]:
                os.close(targets.pop(left))
            if entry.is_folder:
                os.mkdir(entry.name, 0o750, dir_fd=targets[prefix])
                targets[f"{entry.path}/"] = open_folder(entry.name, targets[prefix])
            elif entry.path not in skip:
                _copy_entry(entry, targets[prefix])
    finally:
        del targets[""]
        for fd in targets.values():
            os.close(fd)


def _copy_entry(entry: Entry, target_fd: int) -> None:
    if entry.is_file:
        fd = open_file(entry.name, entry.folder_fd)
        try:
            copy_file(fd, entry.stat, entry.name, target_fd)
        finally:
            os.close(fd)
    elif stat.S_ISLNK(entry.stat.st_mode):
        os.symlink(os.readlink(entry.name, dir_fd=entry.folder_fd), entry.name, dir_fd=target_fd)


def describe(entry: Entry, prefix: str) -> FileFact:
    """The record of a file or link met by ``walk``; its bytes are read. Anything else has size 0 and no hash."""
    path = prefix + escape_name(entry.path)
    if entry.is_file:
        return FileFact(path, *hash_file(entry.name, entry.folder_fd))
    if stat.S_ISLNK(entry.stat.st_mode):
        return FileFact(path, 0, "", link=escape_name(os.readlink(entry.name, dir_fd=entry.folder_fd)))
    return FileFact(path, 0, "")


def discard(name: str, folder_fd: int) -> None:
    """Remove something of our own making, file or folder, if it is there."""
    there = lstat(name, folder_fd)
    if there is None:
        return
    if not stat.S_ISDIR(there.st_mode):
        os.unlink(name, dir_fd=folder_fd)
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
