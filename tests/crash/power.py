"""Disks whose power can be cut: a file system on a loop device, of which only what was written to the device is kept.

``ext4`` and ``xfs`` are shut down by their ioctl at the very moment; they have a journal, and any fsync writes all of
it, with everything done before. ``ext4 without a journal`` and ``btrfs`` are strict: what was not synced itself, each
folder included, may be lost. They have no such ioctl that helps: there it is enough that nobody writes any more. What
is on the device by then is copied, before unmounting could write what was only in memory. Needs root and loop devices;
``why_not`` says what is missing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import NamedTuple, Self

from waiting import wait_until

_IOC_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
"""Of ext4 and of XFS alike."""

_NO_LOG_FLUSH = 2


class _Kind(NamedTuple):
    megabytes: int
    make: tuple[str, ...]
    shuts: bool = True
    repair: tuple[str, ...] = ()


STRICT = "ext4 without a journal"

KINDS = {
    "ext4": _Kind(48, ("mkfs.ext4", "-q", "-F")),
    "xfs": _Kind(300, ("mkfs.xfs", "-q", "-f")),
    "btrfs": _Kind(256, ("mkfs.btrfs", "-q", "-f"), shuts=False),
    STRICT: _Kind(48, ("mkfs.ext4", "-q", "-F", "-O", "^has_journal"), shuts=False, repair=("e2fsck", "-f", "-y")),
}


class Disk:
    """A fresh file system of one of ``KINDS`` mounted at ``root`` until the end of its block."""

    def __init__(self, folder: Path, kind: str = "ext4") -> None:
        self.root = folder / "disk"
        self._kind = KINDS[kind]
        self._image = folder / "disk.img"
        self.root.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._kind.megabytes << 20)
        _run(*self._kind.make, str(self._image))
        self._mount()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._unmount()
        self._image.unlink()

    def start_again(self) -> None:
        """Mount it anew, after all who had it open are gone; the file system replays its journal, or is repaired."""
        # Another file, so another device: a mount namespace that somebody made meanwhile may hold the old one.
        kept = self._image.with_suffix(".kept")
        _run("cp", "--sparse=always", str(self._image), str(kept))
        self._unmount()
        kept.rename(self._image)
        if self._kind.repair:
            found = subprocess.run([*self._kind.repair, str(self._image)], capture_output=True, text=True, check=False)
            if found.returncode > 2:  # 1 and 2: it was repaired
                raise AssertionError(f"the disk cannot be repaired: {found.stdout}")
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.root))

    def _unmount(self) -> None:
        said = ""

        def gone() -> bool:  # a process that was killed lets go of its files only after it cannot be seen any more
            nonlocal said
            done = subprocess.run(["umount", str(self.root)], capture_output=True, text=True, check=False)
            said = done.stderr.strip()
            return done.returncode == 0

        try:
            wait_until(gone, f"{self.root} to be unmounted")
        except AssertionError as error:
            raise AssertionError(f"{error} ({said}; it is held by {holders(self.root) or 'nobody seen'})") from None


def holders(root: Path) -> dict[int, list[str]]:
    """Who works or has something open beneath ``root``, and what; not this process, nor what it is about to start."""
    found: dict[int, list[str]] = {}
    ours = Path("/proc/self/cmdline").read_bytes()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
            links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
            held = sorted({path for path in map(_target, links) if path == str(root) or path.startswith(f"{root}/")})
            if held and (process / "cmdline").read_bytes() != ours:
                found[int(process.name)] = held
    return found


def _target(link: Path) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(link)
    return ""


def shut_down(path: Path) -> None:
    """From now on nothing reaches the disk that holds ``path``; what was not durable is lost."""
    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
    finally:
        os.close(fd)


def shuts(kind: str) -> bool:
    """Whether a disk of this kind is to be ``shut_down`` by whoever wants its power to be cut at that moment."""
    return KINDS[kind].shuts


@cache
def why_not(kind: str = "ext4") -> str | None:
    """Why no power can be cut here, or ``None``."""
    if os.geteuid() != 0:
        return "needs root: a loop-mounted file system whose power is cut"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Disk(Path(folder), kind) as disk:
                if KINDS[kind].shuts:
                    shut_down(disk.root)
                disk.start_again()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no {kind} can be loop-mounted and shut down: {error} {getattr(error, 'stderr', '')}"
    return None


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)
