"""The compiled starter (``starter.c``): a program born in its cgroup, by one call without the interpreter's lock.

It is there where a C compiler was at hand when Solvisor was installed, on a kernel (Linux 5.9) and under a seccomp
profile that have its system calls. Where it is not, ``start`` says so by ``None``, and ``spawn.py`` does it by
``Popen`` then. Rules: what is given must be what ``Popen`` would take; refusals are its, too. This module must not know
attempts.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Final, NamedTuple

from solvisor.processors import granted_cpus

if sys.platform == "win32":
    raise ImportError("solvisor.process.native needs Linux")

LIBRARY: Final = os.path.join(os.path.dirname(__file__), "_starter.so")
_VERSION: Final = 3
"""Of the interface; another one is a library left by another version of Solvisor."""

_WANT: Final = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Refusals of ``clone3`` for want of something, which ``Popen`` would want as well."""

_LACKING: Final = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG)
"""Those of a kernel without it, or without a part of it, or of a seccomp profile. All others are of one cgroup."""


class Step(IntEnum):
    """Where a start can fail, as in ``starter.c``."""

    NONE = 0
    STDOUT = 1
    STDERR = 2
    CGROUP = 3
    PREPARE = 4
    CLONE = 5
    FOLDER = 6
    EXEC = 7


class Failed(OSError):
    """A start failed at this step."""

    def __init__(self, step: Step, number: int, path: str) -> None:
        super().__init__(number, os.strerror(number), path)
        self.step = step


class Born(NamedTuple):
    """A program that runs; ``start`` is when it was started, in clock ticks since boot, where that is known."""

    pid: int
    pidfd: int
    start: int | None


class _Answer(ctypes.Structure):
    _fields_ = (
        ("step", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("pid", ctypes.c_int32),
        ("pidfd", ctypes.c_int32),
        ("start", ctypes.c_int64),
    )


class Starter:
    """The library, if it is there and works here."""

    def __init__(self) -> None:
        self._start = None
        try:
            loaded = ctypes.CDLL(LIBRARY)
            if loaded.solvisor_starter_version() != _VERSION:
                return
        except (OSError, AttributeError):
            return
        self._start = loaded.solvisor_start
        text, count = ctypes.c_char_p, ctypes.c_int
        self._start.argtypes = [text, *[count] * 4, text, count, ctypes.c_void_p]
        self._start.restype = None

    @property
    def works(self) -> bool:
        """As far as is known: whether the next start is by it."""
        return self._start is not None

    def start(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: str,
        stdout: str,
        stderr: str,
        cgroup: str | None,
    ) -> Born | None:
        """Start a program in a session of its own; ``None`` where that cannot be done this way.

        ``cgroup`` is a folder of version 2. Blocks until the program was loaded. Raises ``Failed``, and ``ValueError``
        for what has no place in a command line or an environment.
        """
        if self._start is None:
            return None
        if "=" in "".join(env):
            raise ValueError("illegal environment variable name")
        program = argv[0]
        # As execvp and Popen look for it: from the program's own folder, along its own PATH.
        places = [] if "/" in program else env.get("PATH", os.defpath).split(os.pathsep)
        programs = [f"{place}/{program}" if place else program for place in places] or [program]
        variables = [f"{name}={value}" for name, value in env.items()]
        texts = [*programs, *argv, *variables, cwd, stdout, stderr]
        if cgroup is not None:
            texts.append(cgroup)
        joined = os.fsencode("\0".join(texts))
        if joined.count(b"\0") >= len(texts):
            raise ValueError("embedded null byte")
        cpus = _mask(granted_cpus())
        answer = _Answer()
        counts = len(programs), len(argv), len(variables), cgroup is not None
        self._start(joined, *counts, cpus, len(cpus), ctypes.addressof(answer))
        step: int = answer.step
        if step == Step.NONE:
            return Born(answer.pid, answer.pidfd, answer.start if answer.start >= 0 else None)
        if step == Step.CLONE and answer.error not in _WANT:
            if answer.error in _LACKING:
                self._start = None
            return None
        path = {Step.STDOUT: stdout, Step.STDERR: stderr, Step.CGROUP: cgroup, Step.FOLDER: cwd}.get(Step(step))
        raise Failed(Step(step), answer.error, path or program)


@lru_cache(maxsize=1)
def _mask(cpus: frozenset[int]) -> bytes:
    """A set of processors as the kernel takes it."""
    bits = sum(1 << cpu for cpu in cpus)
    return bits.to_bytes(8 * (max(cpus) // 64 + 1), "little")
