"""Directory events: they wake the scan early and tell a rename from a write. The folder itself is the truth.

Rules: nothing is decided here, and everything works without: events are lost on overflow, on shares, and where the
kernel grants no watch, and the rescan finds the files all the same. On Linux inotify, elsewhere watchfiles, which only
wakes. This module must not know what the names mean.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import structlog

if sys.platform == "linux":
    from asyncinotify import Inotify, Mask, Watch

log = structlog.get_logger(__name__)

_EVENTS_AT_ONCE = 1 << 16
_RETRY_SECONDS = 2.0

Name = tuple[str, str]
"""A folder of the inbox (empty for the inbox itself) and a name in it."""


class Hints:
    """No events at all: the rescan does everything. The other kinds of hints are subclasses.

    ``renamed`` and ``closed`` are what the events since the last ``forget`` told: names moved into place and not
    touched since, and names that a writer has closed.
    """

    def __init__(self) -> None:
        self.renamed: set[Name] = set()
        self.closed: set[Name] = set()

    async def wait(self) -> None:
        """Return when something may have changed."""
        await anyio.sleep_forever()

    def follow(self, folder: str, fd: int) -> None:
        """See to it that events of this open folder are told, as of ``folder``. Blocks; for the scan's thread."""

    def drain(self) -> bool:
        """Take in all events that wait; say whether they are worth a scan. Blocks; for the scan's thread."""
        return True

    def forget(self) -> None:
        """Drop what was told: a scan has used it."""
        self.renamed.clear()
        self.closed.clear()


@contextlib.asynccontextmanager
async def open_hints(inbox: Path) -> AsyncIterator[Hints]:
    """The best hints that this machine has for the folder ``inbox``."""
    if sys.platform == "linux":
        try:
            inotify = Inotify(cache_size=256, sync_timeout=0)
        except OSError as error:
            _no_watch(error)
            yield Hints()
            return
        with inotify:
            yield _InotifyHints(inotify)
    else:
        async with watchfiles_hints(inbox) as hints:
            yield hints


def _no_watch(error: OSError) -> None:
    key = {errno.EMFILE: "fs.inotify.max_user_instances", errno.ENOSPC: "fs.inotify.max_user_watches"}
    log.warning(
        "inbox.no_inotify",
        error=os.strerror(error.errno or 0),
        raise_limit=key.get(error.errno or 0),
        text="new files are found by the rescan only",
    )


if sys.platform == "linux":
    _TELLS = Mask.CREATE | Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.DELETE_SELF | Mask.MOVE_SELF
    # A writer makes an event per write, and none of them is news: MODIFY only unmakes a rename.
    _MASK = _TELLS | Mask.MODIFY | Mask.ONLYDIR

    class _InotifyHints(Hints):
        def __init__(self, inotify: Inotify) -> None:
            super().__init__()
            self._inotify = inotify
            self._watches: dict[str, tuple[tuple[int, int], Watch | None]] = {}

        async def wait(self) -> None:
            await anyio.wait_readable(self._inotify.fd)

        def follow(self, folder: str, fd: int) -> None:
            found = os.fstat(fd)
            ident = (found.st_dev, found.st_ino)
            before, watch = self._watches.get(folder, (None, None))
            if before == ident:
                return
            if watch is not None:
                with contextlib.suppress(OSError):  # the folder is gone, and its watch with it
                    self._inotify.rm_watch(watch)
            try:
                # By descriptor: the very folder that is scanned, whatever its path means by now.
                self._watches[folder] = ident, self._inotify.add_watch(f"/proc/self/fd/{fd}", _MASK)
            except OSError as error:
                self._watches[folder] = ident, None
                _no_watch(error)

        def drain(self) -> bool:
            folders = {watch.wd: folder for folder, (_, watch) in self._watches.items() if watch is not None}
            worth = False
            for event in itertools.islice(self._inotify, _EVENTS_AT_ONCE):
                worth = worth or Mask.MODIFY not in event.mask
                if Mask.Q_OVERFLOW in event.mask:
                    self.renamed.clear()
                folder = folders.get(event.watch.wd) if event.watch is not None else None
                if folder is None or event.name is None:
                    continue
                name = (folder, str(event.name))
                if Mask.MOVED_TO in event.mask:
                    self.renamed.add(name)
                elif Mask.CLOSE_WRITE in event.mask:
                    self.closed.add(name)
                else:
                    self.renamed.discard(name)
            return worth


class _WatchfilesHints(Hints):
    def __init__(self) -> None:
        super().__init__()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()

    async def run(self, inbox: Path) -> None:
        from watchfiles import awatch

        while True:
            try:
                async for _ in awatch(inbox, debounce=50, step=10, rust_timeout=500, ignore_permission_denied=True):
                    self._changed.set()
            except (OSError, RuntimeError) as error:  # the inbox is gone for now, or cannot be watched
                log.warning("inbox.no_events", error=str(error), text="new files are found by the rescan only")
            await anyio.sleep(_RETRY_SECONDS)


@contextlib.asynccontextmanager
async def watchfiles_hints(inbox: Path) -> AsyncIterator[Hints]:
    """Hints by watchfiles: they wake, and tell nothing else."""
    hints = _WatchfilesHints()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hints.run, inbox)
        yield hints
        tasks.cancel_scope.cancel()
