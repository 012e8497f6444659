"""Who holds a home, and in which environment: read from the kernel's list of locks, never by trying the lock.

A daemon that starts at this very moment must not find its lock taken by somebody who only looks. Rules: nothing is
opened for writing and nothing is locked. This module must not know jobs, the database or the socket.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

import msgspec

if sys.platform == "win32":
    raise ImportError("solvisor_service.holder reads what only Linux has and cannot be used on Windows")

_LOCK = re.compile(
    r"^\d+: POSIX +ADVISORY +WRITE +(\d+) ([0-9a-f]+):([0-9a-f]+):(\d+) ", re.MULTILINE | re.ASCII | re.IGNORECASE
)


class Holder(NamedTuple):
    """The process that holds a home. ``since`` is when it took it (RFC 3339), if it has signed already."""

    pid: int
    since: str | None


class Surroundings(msgspec.Struct, frozen=True):
    """The environment that a solver's own is made of: the daemon's that holds the home, or this process's.

    ``daemon`` is that daemon's pid; ``unread`` says why its environment could not be had.
    """

    environ: dict[str, str]
    daemon: int | None = None
    unread: str | None = None


class _Signature(msgspec.Struct):
    pid: int
    since: str


def holder_of(home: Path, locks: Path = Path("/proc/locks")) -> Holder | None:
    """The process that holds ``home``, or ``None``.

    ``locks`` is where the kernel lists what is locked. Raises ``OSError`` if this user may not look: without the right
    to look into ``state/`` nothing can be told.
    """
    lock = home / "state" / "lock"
    try:
        found = lock.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        signature = msgspec.json.decode(lock.read_bytes(), type=_Signature)
    except msgspec.DecodeError:  # taken a moment ago, or never
        signature = _Signature(0, "")
    device = (os.major(found.st_dev), os.minor(found.st_dev))
    for pid, major, minor, inode in _LOCK.findall(locks.read_text()):
        signed = int(pid) == signature.pid
        # Overlays and subvolumes show another device to stat than to the kernel's list; the signature decides there.
        if int(inode) == found.st_ino and (signed or (int(major, 16), int(minor, 16)) == device):
            return Holder(int(pid), signature.since if signed else None)
    return None


def environment_of(pid: int) -> dict[str, str]:
    """The environment a process was started with. Raises ``OSError`` if this user may not read it, or it is gone."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(os.fsdecode(entry).split("=", 1) for entry in entries if b"=" in entry)


def surroundings(home: Path) -> Surroundings:
    """The environment in which the service of ``home`` starts its solvers, as far as it can be known."""
    own = dict(os.environ)
    try:
        holder = holder_of(home)
    except OSError:
        return Surroundings(own)
    if holder is None:
        return Surroundings(own)
    try:
        return Surroundings(environment_of(holder.pid), holder.pid)
    except OSError as error:
        return Surroundings(own, holder.pid, error.strerror)
