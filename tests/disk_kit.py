"""Disks that go wrong, for tests: small ones that are filled, ones that turn read-only, system calls that fail."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from waiting import wait_until


class Tmpfs:
    """A small file system at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"
        self._names = itertools.count()

    def fill(self, leave: int = 0) -> None:
        """Take all its bytes but ``leave``."""
        free = os.statvfs(self.path)
        left = free.f_bavail * free.f_frsize - leave
        with contextlib.suppress(OSError), open(self._filler, "ab", buffering=0) as file:
            while left > 0:
                left -= file.write(b"\0" * min(left, 1 << 12))

    def fill_files(self, leave: int = 0) -> None:
        """Take all its inodes but ``leave``."""
        self._filler.mkdir(exist_ok=True)
        for _ in range(os.statvfs(self.path).f_favail - leave):
            (self._filler / f"{next(self._names)}").touch()

    def empty(self) -> None:
        """Give back what was taken."""
        if self._filler.is_dir():
            shutil.rmtree(self._filler)
        else:
            self._filler.unlink()


def mount(*words: str) -> None:
    """``mount`` with these words; the test is skipped where it is not allowed."""
    mounted = subprocess.run(["mount", *words], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")


def umount(path: Path) -> None:
    subprocess.run(["umount", "-l", str(path)], check=True)


@contextlib.contextmanager
def tmpfs(path: Path, options: str) -> Iterator[Tmpfs]:
    """A tmpfs at ``path``, mounted with ``options``."""
    path.mkdir(exist_ok=True)
    mount("-t", "tmpfs", "-o", options, "tmpfs", str(path))
    try:
        yield Tmpfs(path)
    finally:
        umount(path)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Whoever reaches ``folder`` by its path now finds it read-only, until the end of the block.

    A mount of its own laid over it: the kernel refuses to remount what somebody has open for writing, as the daemon has
    its database.
    """
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,bind,ro", str(folder))
        yield
    finally:
        umount(folder)


def strace(*options: str) -> list[str]:
    """The words before a command, or before ``-p``, that have its system calls tampered with."""
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    return ["strace", "-f", "-qq", "-o", "/dev/null", *options]


@contextlib.contextmanager
def tampered(pid: int, options: Sequence[str]) -> Iterator[None]:
    """The threads of a running process meet what strace injects, until it ends or the block does."""
    tracer = subprocess.Popen([*strace(*options), "-p", str(pid)], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: tracer.poll() is not None or _is_traced(pid), "strace has every thread")
        if tracer.poll() is not None:
            assert tracer.stderr is not None
            pytest.skip(f"strace may not: {tracer.stderr.read().decode().strip()}")
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


def _is_traced(pid: int) -> bool:
    tasks = Path(f"/proc/{pid}/task")
    return all("TracerPid:\t0\n" not in (task / "status").read_text() for task in tasks.iterdir())
