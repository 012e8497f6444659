"""fsync of many open files at once.

Linux takes the whole list by one system call (``io_submit`` with ``IOCB_CMD_FSYNC``, since 4.18) and syncs them side by
side in threads of its own, so that they share a commit of the journal and a flush of the disk. One after the other each
of them pays for a flush, even if nothing was left to write; threads of ours would pay for the hand-overs.

Rules: every descriptor is tried, whatever becomes of the others, and what the kernel does not take is synced the plain
way. This module must not know what the descriptors are. See io_submit(2), io_getevents(2) and ``linux/aio_abi.h``.
"""

from __future__ import annotations

import concurrent.futures
import ctypes
import errno
import os
import platform
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

AT_ONCE = 64
"""Descriptors handed to the kernel at once."""

_CALLS = {"x86_64": (206, 209, 208), "aarch64": (0, 2, 4), "riscv64": (0, 2, 4)}
"""The numbers of io_setup, io_submit and io_getevents, which the C library does not know."""

_CMD_FSYNC = 2
_THREADS = 8

_threads = concurrent.futures.ThreadPoolExecutor(_THREADS, thread_name_prefix="fsync")


def flush(fds: Sequence[int]) -> list[BaseException | None]:
    """Sync all of them, and return when it is done: for each the error it met, if any."""
    if len(fds) == 1:
        return [_error(fds[0])]
    errors: list[BaseException | None] = []
    for start in range(0, len(fds), AT_ONCE):
        errors += begin(fds[start : start + AT_ONCE])()
    return errors


def begin(fds: Sequence[int]) -> Callable[[], list[BaseException | None]]:
    """Have them, ``AT_ONCE`` at most, on their way. To be called is what returned, once: it waits, as ``flush``."""
    ring, taken = None, 0
    with suppress(OSError):  # an older kernel, another system, a sandbox, or too many of them in use
        ring = _idle_one() or _Ring()
        taken = ring.submit(fds)
    rest = [_threads.submit(_error, fd) for fd in fds[taken:]]
    return partial(_end, ring, taken, rest)


def _end(
    ring: _Ring | None, taken: int, rest: Sequence[concurrent.futures.Future[BaseException | None]]
) -> list[BaseException | None]:
    errors = ring.wait(taken) if ring is not None else []
    if ring is not None:
        _idle.append(ring)
    return [*errors, *(future.result() for future in rest)]


def _idle_one() -> _Ring | None:
    try:
        return _idle.pop()
    except IndexError:  # not asked for before: another thread may take the last one meanwhile
        return None


def _error(fd: int) -> BaseException | None:
    try:
        os.fsync(fd)
    except BaseException as error:  # noqa: BLE001  it is the caller's
        return error
    return None


class _Request(ctypes.Structure):
    """``struct iocb``; the two halves of its second word are the other way round on big-endian machines, and zero."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key_and_flags", ctypes.c_uint64),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("fd", ctypes.c_uint32),
        ("unused", ctypes.c_uint64 * 5),
    )


class _Event(ctypes.Structure):
    """``struct io_event``: ``data`` of the request, and what became of it."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("request", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class _Ring:
    """A queue to the kernel, for one list at a time. Raises ``OSError`` where there is none to be had."""

    def __init__(self) -> None:
        numbers = _CALLS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 1 << 32 else None
        if numbers is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        setup, self._submit, self._getevents = map(ctypes.c_long, numbers)
        self._syscall = ctypes.CDLL(None, use_errno=True).syscall
        self._syscall.restype = ctypes.c_long
        self._context = ctypes.c_ulong(0)
        self._requests = (_Request * AT_ONCE)(*(_Request(data=n, opcode=_CMD_FSYNC) for n in range(AT_ONCE)))
        self._pointers = (ctypes.c_void_p * AT_ONCE)(*(ctypes.addressof(request) for request in self._requests))
        self._events = (_Event * AT_ONCE)()
        self._call(setup, ctypes.c_long(AT_ONCE), ctypes.byref(self._context))

    def submit(self, fds: Sequence[int]) -> int:
        """Have the kernel sync as many of the first of them as it takes, which may be none: so many."""
        for request, fd in zip(self._requests, fds, strict=False):
            request.fd = fd
        try:
            return self._call(self._submit, self._context, ctypes.c_long(len(fds)), self._pointers)
        except OSError:
            return 0

    def wait(self, taken: int) -> list[BaseException | None]:
        """Until all that it took are done."""
        errors: list[BaseException | None] = [None] * taken
        left = taken
        while left:
            try:
                done = self._call(
                    self._getevents, self._context, ctypes.c_long(left), ctypes.c_long(left), self._events, None
                )
            except InterruptedError:  # by a signal that is nothing to us: a lease that is broken, say
                continue
            for event in self._events[:done]:
                if event.result < 0:
                    errors[event.data] = OSError(-event.result, os.strerror(-event.result))
            left -= done
        return errors

    def _call(self, *arguments: object) -> int:
        result: int = self._syscall(*arguments)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result


_idle: list[_Ring] = []
"""One for each thread that ever waited at the same time."""
