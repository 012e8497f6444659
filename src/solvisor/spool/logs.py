"""Reading the log of one try, while its solver writes it and its middle may be taken out.

Rules: what was cut is one line, never zeros; the open file goes on being that try's log, wherever its folder moves and
whatever is written anew in its place. This module must not know which try is whose.
"""

from __future__ import annotations

import errno
import os
import sys
from io import BufferedReader

from solvisor.filetext import cut_line


class OpenLog:
    """A log from ``offset`` on; ``offset`` moves with what is read of it. Its methods block."""

    def __init__(self, file: BufferedReader, offset: int | None = None, tail: int | None = None) -> None:
        """Begin at ``offset``, or before the last ``tail`` bytes, or at the beginning; at the end at the latest."""
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        begin = max(0, self._size - tail) if offset is None and tail is not None else offset or 0
        self.offset = min(begin, self._size)

    def read(self, most: int) -> bytes:
        """What comes next, at most about ``most`` bytes; nothing at its end, for now."""
        size = os.fstat(self._file.fileno()).st_size
        if size < self._size and self.offset > size:  # its solver emptied it and began anew
            self.offset = 0
        self._size = size
        while True:
            begin = _next_data(self._file.fileno(), self.offset, size)
            if begin > self.offset:
                cut, self.offset = begin - self.offset, begin
                return cut_line(cut)
            self._file.seek(self.offset)
            data = self._file.read(min(most, size - self.offset))
            # The middle may have been taken out while it was read: what is data still is what was written.
            kept = _end_of_data(self._file.fileno(), self.offset, self.offset + len(data)) - self.offset
            if kept > 0 or not data:
                self.offset += kept
                return data[:kept]

    def read_over(self, most: int) -> bytes:
        """As ``read``, but on over what was cut, until that many bytes or the end."""
        data = b""
        while len(data) < most and (more := self.read(most - len(data))):
            data += more
        return data

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def _next_data(fd: int, offset: int, size: int) -> int:
    """Where data is next from ``offset`` on; ``size`` where there is none."""
    if sys.platform != "linux":  # nothing is cut there before the end
        return offset
    try:
        return min(size, os.lseek(fd, offset, os.SEEK_DATA))
    except OSError as error:
        return size if error.errno == errno.ENXIO else offset


def _end_of_data(fd: int, offset: int, end: int) -> int:
    """Where the data that begins at ``offset`` ends, at ``end`` at the latest."""
    if sys.platform != "linux":
        return end
    try:
        return min(end, os.lseek(fd, offset, os.SEEK_HOLE))
    except OSError as error:
        return offset if error.errno == errno.ENXIO else end
