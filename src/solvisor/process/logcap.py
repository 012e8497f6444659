"""Keep a log bounded while its program writes on, by taking out the middle.

Rules: the head (a quarter of the cap) and the tail are kept, for the first error and the last word of a solver. While
the program runs, the middle becomes a hole: the file keeps its length and the writer notices nothing. After the end
the file is written anew: head, one line saying how much was cut, tail. This module must not know processes.
"""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import stat
import sys
from contextlib import suppress

from solvisor.filetext import cut_line

if sys.platform == "win32":
    raise ImportError("solvisor.process.logcap punches holes as Linux does and cannot be used on Windows")

_BLOCK = 4096
_CHUNK = 1 << 20
_MARKER_ROOM = 96  # the marker line counts towards the cap
_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, linux/falloc.h

# How opening fails where a solver removed its log or put something else in its place: then nothing of it was cut.
_NO_LOG = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO)

_libc = ctypes.CDLL(None, use_errno=True)
_fallocate = getattr(_libc, "fallocate64", _libc.fallocate)
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class CappedLog:
    """One log file with a cap in bytes."""

    def __init__(self, path: str, cap: int) -> None:
        self._path = path
        self._cap = cap
        self._head = cap // 4
        self._tail = max(0, cap - self._head - _MARKER_ROOM)
        self._hole_end = 0
        self._holes_work = True
        self.cut_bytes = 0
        """How many bytes of its middle the log has lost so far."""

    def trim(self) -> bool:
        """Punch out the middle if the log has grown over its cap; whether it did.

        Works in steps of an eighth of the cap, so a log that grows slowly costs little.
        """
        try:
            size = os.lstat(self._path).st_size
        except OSError:
            return False
        if size < self._hole_end:  # its program emptied it and began anew
            self._hole_end = self.cut_bytes = 0
        start = max(_align_up(self._head), self._hole_end)
        end = (size - self._tail) // _BLOCK * _BLOCK
        if not self._holes_work or size <= self._cap or end - start < max(_BLOCK, self._cap // 8):
            return False
        try:
            fd = self._open(os.O_WRONLY)
        except OSError:
            return False
        try:
            self._holes_work = _fallocate(fd, _KEEP_SIZE_PUNCH_HOLE, start, end - start) == 0
        finally:
            os.close(fd)
        if self._holes_work:
            self._hole_end = end
            self.cut_bytes = end - _align_up(self._head)
        return self._holes_work

    def needs_finish(self) -> bool:
        """Whether the log is longer than its cap, or was, so that something else may be in its place by now."""
        try:
            return self.cut_bytes > 0 or os.lstat(self._path).st_size > self._cap
        except OSError:
            return False

    def finish(self) -> int:
        """After the last writer is gone: write an oversized log anew without its middle. Return the bytes cut.

        Where that fails (a full disk) the log stays as it is, holes included. What a solver put in its place, a link
        or a pipe or a folder, is left alone.
        """
        try:
            source = self._open(os.O_RDONLY)
        except OSError as error:
            if error.errno in _NO_LOG:
                self.cut_bytes = 0
            return self.cut_bytes
        try:
            info = os.fstat(source)
            self.cut_bytes = self._write_anew(source, info) if info.st_size > self._cap else 0
        except OSError:
            pass
        finally:
            os.close(source)
        return self.cut_bytes

    def _write_anew(self, source: int, info: os.stat_result) -> int:
        cut = info.st_size - self._head - self._tail
        # A name that no solver can have taken already.
        part = f"{self._path}.{secrets.token_hex(8)}.part"
        target = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                _copy(source, target, 0, self._head)
                _write(target, cut_line(cut))
                _copy(source, target, info.st_size - self._tail, self._tail)
                os.fchmod(target, stat.S_IMODE(info.st_mode))
            finally:
                os.close(target)
            os.rename(part, self._path)
        except OSError:
            with suppress(OSError):
                os.unlink(part)
            raise
        return cut

    def _open(self, how: int) -> int:
        """Open the log, if it still is a plain file and not what a solver put in its place."""
        fd = os.open(self._path, how | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            return fd
        os.close(fd)
        raise OSError(errno.ELOOP, "not a plain file", self._path)


def _align_up(offset: int) -> int:
    return -(-offset // _BLOCK) * _BLOCK


def _copy(source: int, target: int, offset: int, count: int) -> None:
    end = offset + count
    while offset < end:
        chunk = os.pread(source, min(_CHUNK, end - offset), offset)
        if not chunk:
            return
        _write(target, chunk)
        offset += len(chunk)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
