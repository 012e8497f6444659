"""Reading what lies in the folder of a job: its logs while it runs, every file once it is published.

Rules: a path never leaves the job's folder and follows no link, whatever a user asked for or a solver left; only
regular files are read. Nothing is changed here.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from typing import BinaryIO

from solvisor.home import Home
from solvisor.names import unescape_name

from . import files

_PLACES = ("work", "done", "failed", "rejected")
_NOT_THERE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM}
)
"""Of a path: missing, through a link, a socket, a name that cannot be, nothing for our eyes."""


class JobFolder:
    """The folders of one home's jobs, wherever they are now."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def open(self, job_id: str, path: str) -> BufferedReader | None:
        """A file by its path as the manifest gives it, or ``None`` if there is no such regular file."""
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

    def read(self, job_id: str, path: str, offset: int | None, tail: int | None, most: int) -> tuple[bytes, int]:
        """At most ``most`` bytes from ``offset``, or of the last ``tail``, and the offset after them.

        A file that is not there yet is empty.
        """
        file = self.open(job_id, path)
        if file is None:
            return b"", offset or 0
        with file:
            size = self.size(file)
            begin = offset if offset is not None else max(0, size - min(most if tail is None else tail, most))
            file.seek(min(begin, size))
            data = file.read(most)
            return data, min(begin, size) + len(data)

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
