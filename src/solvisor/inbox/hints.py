"""Directory events: they wake the scan early and tell a rename from a write. The folder itself is the truth.

Rules: nothing is decided here, and everything works without: events are lost on overflow, on shares, and where the
kernel grants no watch, and the rescan finds the files all the same. On Linux inotify, elsewhere watchfiles, which only
wakes. This module must not know what the names mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import structlog

if sys.platform == "linux":
    from solvisor import inotify

log = structlog.get_logger(__name__)

_READS_AT_ONCE = 64
_RETRY_SECONDS = 2.0
_LIMITS = {errno.EMFILE: "fs.inotify.max_user_instances", errno.ENOSPC: "fs.inotify.max_user_watches"}

Name = tuple[str, str]
"""A folder of the inbox (empty for the inbox itself) and a name in it."""


class Hints:
    """No events at all: the rescan does everything. The other kinds of hints are subclasses.

    ``renamed`` and ``closed`` are what the events since the last ``forget`` told: names moved into place and not
    touched since, and names that a writer has closed. ``news``: some of those events are worth a scan. ``trouble`` says
    why there are no events, where that can be mended.
    """

    def __init__(self) -> None:
        self.renamed: set[Name] = set()
        self.closed: set[Name] = set()
        self.news = False
        self.trouble: str | None = None

    async def wait(self) -> None:
        """Return when something may have changed."""
        await anyio.sleep_forever()

    def follow(self, folder: str, fd: int) -> None:
        """See to it that events of this open folder are told, as of ``folder``. Blocks; for the scan's thread."""

    def drain(self, reads: int = _READS_AT_ONCE) -> bool:  # noqa: ARG002  where there are none
        """Take in all events that wait, or what so many ``reads`` give; say whether there are ``news``."""
        return self.news

    def forget(self) -> None:
        """Drop what was told: a scan has used it."""
        self.renamed.clear()
        self.closed.clear()
        self.news = False

    def no_watch(self, error: OSError) -> None:
        """Say that there will be no events, and what can be done about it."""
        limit = _LIMITS.get(error.errno or 0)
        raise_it = f"raise {limit}, then start the daemon again" if limit else "the kernel or a sandbox forbids inotify"
        self.trouble = (
            f"no events tell of new files ({os.strerror(error.errno or 0)}), so they are found only every few seconds: "
            f"{raise_it}"
        )
        log.warning(
            "inbox.no_inotify",
            error=os.strerror(error.errno or 0),
            raise_limit=limit,
            text="new files are found by the rescan only",
        )


@contextlib.asynccontextmanager
async def open_hints(inbox: Path) -> AsyncIterator[Hints]:
    """The best hints that this machine has for the folder ``inbox``."""
    if sys.platform == "linux":
        try:
            told = _InotifyHints()
        except OSError as error:
            hints = Hints()
            hints.no_watch(error)
            yield hints
            return
        with contextlib.closing(told):
            yield told
    else:
        async with watchfiles_hints(inbox) as hints:
            yield hints


if sys.platform == "linux":
    # A writer makes an event per write, and none of them is news: MODIFY only unmakes a rename.
    _MASK = (
        inotify.CREATE | inotify.CLOSE_WRITE | inotify.MOVED_TO | inotify.DELETE_SELF | inotify.MOVE_SELF
        | inotify.MODIFY | inotify.ONLYDIR
    )  # fmt: skip

    def _settle(readable: asyncio.Future[None]) -> None:
        if not readable.done():
            readable.set_result(None)

    class _InotifyHints(Hints):
        def __init__(self) -> None:
            super().__init__()
            self._fd = inotify.init()
            self._watches: dict[str, tuple[tuple[int, int], int | None]] = {}
            self._folders: dict[int, str] = {}

        def close(self) -> None:
            os.close(self._fd)

        async def wait(self) -> None:
            loop = asyncio.get_running_loop()
            readable: asyncio.Future[None] = loop.create_future()
            loop.add_reader(self._fd, _settle, readable)
            try:
                await readable
            finally:
                loop.remove_reader(self._fd)  # else it would go on telling until somebody drains

        def follow(self, folder: str, fd: int) -> None:
            found = os.fstat(fd)
            ident = (found.st_dev, found.st_ino)
            before, watch = self._watches.get(folder, (None, None))
            if before == ident:
                return
            if watch is not None:
                del self._folders[watch]
                with contextlib.suppress(OSError):  # the folder is gone, and its watch with it
                    inotify.remove_watch(self._fd, watch)
            try:
                # By descriptor: the very folder that is scanned, whatever its path means by now.
                watch = inotify.add_watch(self._fd, f"/proc/self/fd/{fd}".encode(), _MASK)
            except OSError as error:
                self._watches[folder] = ident, None
                self.no_watch(error)
            else:
                self._watches[folder] = ident, watch
                self._folders[watch] = folder

        def drain(self, reads: int = _READS_AT_ONCE) -> bool:
            for _ in range(reads):
                events = inotify.read(self._fd)
                if not events:
                    break
                self._take_in(events)
            return self.news

        def _take_in(self, events: bytes) -> None:
            start = 0
            while start < len(events):
                watch, mask, _, length = inotify.EVENT.unpack_from(events, start)
                start += inotify.EVENT.size + length
                self.news = self.news or not mask & inotify.MODIFY
                if mask & inotify.OVERFLOW:
                    self.renamed.clear()
                folder = self._folders.get(watch)
                if folder is not None and mask & inotify.IGNORED:  # gone; another may come with its inode number
                    del self._folders[watch], self._watches[folder]
                if folder is None or not length:
                    continue
                name = (folder, os.fsdecode(events[start - length : start].rstrip(b"\0")))
                if mask & inotify.MOVED_TO:
                    self.renamed.add(name)
                elif mask & inotify.CLOSE_WRITE:
                    self.closed.add(name)
                else:
                    self.renamed.discard(name)


class _WatchfilesHints(Hints):
    def __init__(self) -> None:
        super().__init__()
        self._changed = anyio.Event()

    async def wait(self) -> None:
        await self._changed.wait()
        self._changed = anyio.Event()
        self.news = True

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
