"""Reading what lies in the folder of a job: its logs while it runs, every file once it is published.

Rules: a path never leaves the job's folder and follows no link, whatever a user asked for or a solver left; only
regular files are read. Nothing is changed here. It knows who reads what, so that nothing is removed under a reader.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from io import BufferedReader
from typing import BinaryIO

from solvisor.home import Home
from solvisor.names import unescape_name

from . import files
from .logs import OpenLog

MOMENT_SECONDS = 60.0
"""How long after its last file was read a job counts as being read: its files are fetched one after the other."""

_REMEMBERED = 1000
_PLACES = ("work", "done", "failed", "rejected")
_NOT_THERE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
)
"""Of a path: missing, through a link, a socket, a name that cannot be, nothing for our eyes."""


class JobFolder:
    """The folders of one home's jobs, wherever they are now."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._read_at: dict[str, float] = {}
        self._being_read: Counter[str] = Counter()
        self._shut: set[str] = set()

    @contextlib.contextmanager
    def reading(self, job_id: str) -> Iterator[None]:
        """Within its block, and a moment after, nothing of the job is removed. For the thread of ``shut``."""
        self._being_read[job_id] += 1
        try:
            yield
        finally:
            self._being_read[job_id] -= 1
            if not self._being_read[job_id]:
                del self._being_read[job_id]
            self._read_at[job_id] = time.monotonic()
            if len(self._read_at) > _REMEMBERED:
                self._forget()

    def shut(self, ids: Iterable[str]) -> set[str]:
        """Of these jobs those that nobody reads, nor did a moment ago; nobody can begin to until ``open_again``."""
        self._forget()
        free = {i for i in ids if i not in self._being_read and i not in self._read_at}
        self._shut |= free
        return free

    def open_again(self, ids: Iterable[str]) -> None:
        """What is there still can be read."""
        self._shut.difference_update(ids)

    def _forget(self) -> None:
        since = time.monotonic() - MOMENT_SECONDS
        self._read_at = {i: at for i, at in self._read_at.items() if at > since}

    def open(self, job_id: str, path: str) -> BufferedReader | None:
        """A file by its path as the manifest gives it, or ``None`` if there is no such regular file."""
        if job_id in self._shut:
            return None
        try:
            parts = unescape_name(path).split("/")
        except ValueError:
            return None
        if any(part in ("", ".", "..") or "\0" in part for part in (job_id, *parts)) or "/" in job_id:
            return None
        for place in _PLACES:
            try:
                return _open(str(self._home.root / place), [job_id, *parts])
            except OSError as error:
                if error.errno not in _NOT_THERE:
                    raise
        return None

    def open_log(
        self, job_id: str, which: str, attempt: int, *, newest: bool, offset: int | None = None, tail: int | None = None
    ) -> OpenLog | None:
        """The log ``which`` (``stdout``) of a try, from ``offset`` on or its last ``tail`` bytes, if there is one.

        ``newest``: no later try was begun. What it left is put aside as the next one begins, maybe meanwhile.
        """
        aside, name = f"attempt-{attempt}/{which}.log", f"{which}.log"
        file = self.open(job_id, aside)
        if file is None and newest:
            file = self.open(job_id, name)
            moved = self.open(job_id, aside)
            if moved is not None:
                if file is not None:
                    file.close()
                file = moved
        return None if file is None else OpenLog(file, offset, tail)

    def size(self, file: BinaryIO) -> int:
        """Bytes in an open file."""
        return os.fstat(file.fileno()).st_size


def _open(folder: str, parts: list[str]) -> BufferedReader | None:
    """The regular file there, ``None`` for what is none. Raises ``OSError``."""
    fd = files.open_folder(folder)
    try:
        for part in parts[:-1]:
            below = files.open_folder(part, fd)
            os.close(fd)
            fd = below
        file_fd = files.open_file(parts[-1], fd)
    finally:
        os.close(fd)
    if not stat.S_ISREG(os.fstat(file_fd).st_mode):
        os.close(file_fd)
        return None
    return open(file_fd, "rb")
