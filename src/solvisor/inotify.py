"""The calls and numbers of inotify(7), which the standard library does not have. On Linux alone.

Rules: nothing is decided here. This module must not know what is watched, or why.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Final

if sys.platform != "linux":
    raise ImportError("inotify is of Linux")

# linux/inotify.h
MODIFY: Final = 0x2
CLOSE_WRITE: Final = 0x8
MOVED_FROM: Final = 0x40
MOVED_TO: Final = 0x80
CREATE: Final = 0x100
DELETE: Final = 0x200
DELETE_SELF: Final = 0x400
MOVE_SELF: Final = 0x800
OVERFLOW: Final = 0x4000
IGNORED: Final = 0x8000
ONLYDIR: Final = 0x1000000

EVENT: Final = struct.Struct("iIII")
"""The head of an event: watch, mask, cookie, and the length of the name that follows."""

_READ_BYTES: Final = 1 << 16

_libc = ctypes.CDLL(None, use_errno=True)


def init() -> int:
    """A descriptor that does not block, on which events are read. Raises ``OSError``."""
    return _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def add_watch(fd: int, path: bytes, mask: int) -> int:
    """Have events of a path told; the number of the watch. Raises ``OSError``."""
    return _checked(_libc.inotify_add_watch(fd, path, mask))


def remove_watch(fd: int, watch: int) -> None:
    """Have no more of them told. Raises ``OSError`` if the path is gone, and its watch with it."""
    _checked(_libc.inotify_rm_watch(fd, watch))


def read(fd: int) -> bytes:
    """Some of the events that wait, or none if none do."""
    try:
        return os.read(fd, _READ_BYTES)
    except BlockingIOError:
        return b""


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
