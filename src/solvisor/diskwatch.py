"""Looks at the room on the home's file system again and again.

Rules: a look may hang for ever (a dead disk), so it is taken in a thread that nobody waits for; the next one begins
when the last has ended. The less room there is, the sooner it is looked again. This module must not know what follows
from what it sees.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
import structlog

from .disk import Disk, reserve

FILL_BYTES = 2 << 30
FILL_FILES = 100_000
"""What a fast disk takes in a second: so long before it could be short, it is looked again."""

SOONEST_SECONDS = 0.5
LATEST_SECONDS = 10.0

HANGS_SECONDS = 10.0
"""A look that takes longer is told as trouble."""

TROUBLE = "disk"
"""What a disk that does not answer is called among the troubles."""

log = structlog.get_logger()


def look(folder: Path, setting: int | Literal["auto"]) -> Disk:
    """The file system of ``folder``; ``setting`` says how much of it is kept free. Blocks. Raises ``OSError``."""
    if sys.platform == "win32":
        usage = shutil.disk_usage(folder)
        return Disk(usage.total, usage.free, reserve(setting, usage.total))
    found = os.statvfs(folder)
    total = found.f_blocks * found.f_frsize
    return Disk(
        total_bytes=total,
        free_bytes=found.f_bavail * found.f_frsize,
        reserve_bytes=reserve(setting, total),
        total_files=found.f_files,
        free_files=found.f_favail,
        read_only=bool(found.f_flag & os.ST_RDONLY),
    )


class DiskWatch:
    """Tells ``tell`` of the file system of ``folder`` whenever it was looked at; ``setting`` is that in force."""

    def __init__(
        self,
        folder: Path,
        setting: Callable[[], int | Literal["auto"]],
        tell: Callable[[Disk], None],
        trouble: dict[str, str],
    ) -> None:
        self._folder = folder
        self._setting = setting
        self._tell = tell
        self._trouble = trouble
        self._thread = anyio.CapacityLimiter(1)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            async with anyio.create_task_group() as beside:
                beside.start_soon(self._complain)
                rest = await self._once()
                beside.cancel_scope.cancel()
            await anyio.sleep(rest)

    async def _complain(self) -> None:
        """Tell of a look that takes too long. The look goes on: another one would hang like it, on a thread more."""
        await anyio.sleep(HANGS_SECONDS)
        self._trouble[TROUBLE] = f"the disk of {self._folder} does not answer; look at the machine"
        log.error("disk.hangs", path=str(self._folder), seconds=HANGS_SECONDS)

    async def _once(self) -> float:
        """Look, tell, and return the rest until the next look."""
        now = partial(look, self._folder, self._setting())
        disk: Disk | None = None
        with suppress(OSError):  # the home is gone: whoever needs it will say so
            disk = await anyio.to_thread.run_sync(now, limiter=self._thread, abandon_on_cancel=True)
        self._trouble.pop(TROUBLE, None)  # an error is an answer, too
        if disk is None:
            return SOONEST_SECONDS
        self._tell(disk)
        return _rest(disk)


def _rest(disk: Disk) -> float:
    rests = [(disk.free_bytes - disk.reserve_bytes) / FILL_BYTES]
    if disk.total_files:
        rests.append((disk.free_files - disk.reserve_files) / FILL_FILES)
    return max(SOONEST_SECONDS, min(*rests, LATEST_SECONDS))
