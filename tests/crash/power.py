"""A disk whose power can be cut: ext4 on a loop device, shut down so that nothing unwritten is ever written.

Needs root and loop devices; ``why_not`` says what is missing.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
import tempfile
from pathlib import Path
from typing import Self

_EXT4_IOC_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
_NO_LOG_FLUSH = 2


class Disk:
    """A fresh file system mounted at ``root`` until ``close``."""

    def __init__(self, folder: Path, megabytes: int = 64) -> None:
        self.root = folder / "disk"
        self._image = folder / "disk.img"
        self.root.mkdir()
        with self._image.open("wb") as image:
            image.truncate(megabytes << 20)
        _run("mkfs.ext4", "-q", str(self._image))
        self._mount()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _run("umount", str(self.root))
        self._image.unlink()

    def cut_power(self) -> None:
        """From now on nothing reaches the disk; what was not durable is lost."""
        fd = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _EXT4_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def start_again(self) -> None:
        """Mount it anew, after all who had it open are gone; the file system replays its journal."""
        _run("umount", str(self.root))
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.root))


def why_not() -> str | None:
    """Why no power can be cut here, or ``None``."""
    if os.geteuid() != 0:
        return "needs root: a loop-mounted ext4 whose power is cut"
    with tempfile.TemporaryDirectory() as folder:
        try:
            with Disk(Path(folder), 8) as disk:
                disk.cut_power()
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no ext4 can be loop-mounted and shut down: {error} {getattr(error, 'stderr', '')}"
    return None


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, text=True)
