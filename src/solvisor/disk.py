"""The file system of the home: how much room there is, how much is kept free, and what that forbids.

Theory: running solvers, the database and manifests go on writing whatever we decide, so what is free is needed for what
has begun. Below the reserve no job starts; below a quarter of it nothing new is taken in either, for that takes room
that is needed to finish.

Rules: pure. This module must not know jobs, or how a disk is looked at.
"""

from __future__ import annotations

from functools import cached_property
from typing import Final, Literal

from msgspec import Struct

from .units import describe_size

AUTO_SHARE: Final = 20
AUTO_MOST_BYTES: Final = 1 << 30
"""Without a number of the operator's, a twentieth of the file system is kept free, and at most 1 GiB: enough for the
database, the logs and the manifests of what runs, and small enough to be missed by nobody."""

FILES_SHARE: Final = 100
FILES_MOST: Final = 1000
"""A hundredth of the files that the file system can hold, and at most so many."""

LOW_SHARE: Final = 10
LOW_MOST_BYTES: Final = 5 << 30
"""With less than a tenth of the file system free, and less than so much, it is said that room may soon be short."""

_TAKEN_IN: Final = 4
"""Below this part of what is kept free, nothing is taken in."""


class Disk(Struct, frozen=True, dict=True):
    """A file system as it was last looked at. ``free`` is what this process may still use.

    ``files`` are those (and folders) that can be made; 0 in all: it sets no such limit.
    """

    total_bytes: int
    free_bytes: int
    reserve_bytes: int
    total_files: int = 0
    free_files: int = 0
    read_only: bool = False

    @property
    def reserve_files(self) -> int:
        """Files that are kept free; none where no bytes are, for then the operator wants none of this."""
        return min(FILES_MOST, self.total_files // FILES_SHARE) if self.reserve_bytes else 0

    @cached_property
    def no_start(self) -> str | None:
        """Why no job may start, if so, and what to do."""
        return self._short(1)

    @cached_property
    def no_intake(self) -> str | None:
        """Why nothing may be taken in, if so, and what to do."""
        return self._short(_TAKEN_IN)

    @property
    def is_low(self) -> bool:
        """Whether little room is left."""
        return self.free_bytes < min(LOW_MOST_BYTES, self.total_bytes // LOW_SHARE)

    def _short(self, part: int) -> str | None:
        if self.read_only:
            return "the file system of the home is read-only: mend what made it so and mount it writable"
        if self.free_bytes * part < self.reserve_bytes:
            free, reserve = describe_size(self.free_bytes), describe_size(self.reserve_bytes)
            return f"{free} free on the disk, {reserve} is kept free: remove old results, or set [daemon] disk_reserve"
        if self.free_files * part < self.reserve_files:
            return (
                f"{self.free_files:,} more files fit on the disk, room for {self.reserve_files:,} is kept: "
                "remove old results"
            )
        return None


def reserve(setting: int | Literal["auto"], total_bytes: int) -> int:
    """How many bytes of a file system of ``total_bytes`` are kept free."""
    return min(AUTO_MOST_BYTES, total_bytes // AUTO_SHARE) if setting == "auto" else setting
