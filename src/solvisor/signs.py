"""Rests that end when a file changes: for whoever waits for one, or for what is printed into it.

Rules: a change is a hint, the file is the truth, so it is looked at again in any case. Where the kernel tells of
changes a rest costs nothing until there is one; elsewhere there are glances: short calls that read nothing and follow
no link, so they need no thread. This module must not know what is waited for.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

import anyio

if sys.platform == "linux":
    from . import inotify

GLANCE_SECONDS: Final = 0.008
"""Between two glances; what writes without end is looked at no more often."""

SPACING_SECONDS: Final = 0.001
"""Between two changes that the kernel tells, at first; twice as much each time, as long as they come so fast."""

KEPT_MOST: Final = 8
"""So many may be told by the kernel at once; the others glance. A user has few inotifies for all his programs."""


class Signs:
    """Whether any of some files came to be, grew or was written since the last rest ended.

    Within ``with`` the kernel tells, if all of them lie in one folder, which is there already; else there are glances.
    """

    def __init__(self, paths: Iterable[Path | str]) -> None:
        self._paths = [os.fspath(path) for path in paths]
        self._seen = self._now()
        self._folder: _Folder | None = None

    def __enter__(self) -> Self:
        folders = {os.path.dirname(path) for path in self._paths}
        self._folder = _watched(folders.pop()) if len(folders) == 1 else None
        return self

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    @property
    def are_told(self) -> bool:
        """Whether the kernel tells."""
        return self._folder is not None

    async def rest(self, seconds: float) -> None:
        """Rest for so many seconds, or until one of the files is another than before the last look at them."""
        end = time.monotonic() + seconds
        before, self._seen = self._seen, self._now()
        while self._seen == before and (left := end - time.monotonic()) > 0:
            if self._folder is not None:
                await self._folder.wait(left)
            else:
                await anyio.sleep(min(left, GLANCE_SECONDS))
            self._seen = self._now()

    def _now(self) -> list[tuple[int, int] | None]:
        return [_sign(path) for path in self._paths]


def _sign(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


class _Folder:
    """What happens in a folder, as the kernel tells it by ``fd``: that something does."""

    def __init__(self, fd: int, watch: int) -> None:
        self._fd = fd
        self._watch = watch
        self._woken_at = 0.0
        self._spacing = SPACING_SECONDS

    async def wait(self, seconds: float) -> None:
        """Until something happens, or so long; not at once where much has happened just now."""
        end = time.monotonic() + seconds
        await anyio.sleep(min(seconds, max(0.0, self._woken_at + self._spacing - time.monotonic())))
        with anyio.move_on_after(end - time.monotonic()):
            await anyio.wait_readable(self._fd)
        self._drain()
        now = time.monotonic()
        often = now - self._woken_at <= 2 * GLANCE_SECONDS
        self._spacing = min(2 * self._spacing, GLANCE_SECONDS) if often else SPACING_SECONDS
        self._woken_at = now

    def close(self) -> None:
        """Hear no more of it."""
        if sys.platform == "linux":
            with suppress(OSError):  # the folder is gone
                inotify.remove_watch(self._fd, self._watch)
        while self._drain():
            pass
        _idle.append(self._fd)

    def _drain(self) -> bool:
        """Take the events that wait, if many not all; whether there were any."""
        return sys.platform == "linux" and bool(inotify.read(self._fd))


_idle: Final[list[int]] = []
"""Inotifies that nobody uses now. To give one back would take 10 ms, to have it hear of another folder takes none."""

_kept: Final[list[int]] = []
"""All that there are."""


def _watched(folder: str) -> _Folder | None:
    """A folder of which the kernel tells; ``None`` if it cannot."""
    if sys.platform == "linux" and (_idle or len(_kept) < KEPT_MOST):
        with suppress(OSError):
            if not _idle:
                _kept.append(inotify.init())
                _idle.append(_kept[-1])
            mask = inotify.CREATE | inotify.MODIFY | inotify.MOVED_FROM | inotify.MOVED_TO | inotify.DELETE
            watch = inotify.add_watch(_idle[-1], os.fsencode(folder), mask | inotify.ONLYDIR)
            return _Folder(_idle.pop(), watch)
    return None
