"""The log beside a database, into which SQLite writes each commit before it returns: made durable, and kept short.

Syncing it is what a commit with ``synchronous=FULL`` does after its own write, so it is as strong. SQLite itself syncs
all else, also with NORMAL: the folder with the first header of a log, each header that begins it anew, and at a
checkpoint the log before the database and the database before the log may begin anew. So when a sync begins, each frame
written before it is in the log or durable in the database.

Rules: nothing here holds up whoever commits, nor waits for him. A connection that writes is open all the time: so
SQLite neither removes nor replaces the file. This module must not know what the rows mean.
"""

from __future__ import annotations

import io
import os
import sqlite3
import sys
from pathlib import Path

from .errors import StoreFailed, StoreUnavailable
from .rows import translated

CARRY_OVER = "PRAGMA wal_checkpoint(PASSIVE)"
"""Has SQLite carry its log over, as far as it stands when that begins; says how many pages it has."""

PASSES = 4
"""How often in a row what was written meanwhile is carried over, too; each time that is less."""

if sys.platform == "linux":
    _sync = os.fdatasync
else:
    _sync = os.fsync


class Wal:
    """The log of the database ``db``, once SQLite made it. Any thread may call, one at a time.

    Raises ``StoreUnavailable``.
    """

    def __init__(self, db: Path) -> None:
        self._db = db
        self._path = db.with_name(f"{db.name}-wal")
        self._failed: StoreFailed | None = None
        with translated(db):
            self._connection = sqlite3.connect(db, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            # Kept open because the kernel tells a failed write to each descriptor once: to a later one perhaps never.
            self._file = io.FileIO(self._path, "r+")
        except OSError as error:
            self._connection.close()
            raise StoreUnavailable(f"{self._path} cannot be opened: {error}; nothing was changed") from error

    def close(self) -> None:
        """Before the connection that writes, which removes the log."""
        self._connection.close()
        self._file.close()

    def sync(self) -> None:
        """Make every commit so far durable. Raises ``StoreFailed``: after one that failed, a success proves nothing."""
        if self._failed is not None:
            raise self._failed
        try:
            _sync(self._file.fileno())
        except OSError as error:
            self._failed = StoreFailed(f"{self._path}: {error}; check the disk and start the daemon again")
            raise self._failed from error

    def fold(self) -> int:
        """Carry the log over into the database, which takes a while; how many pages stand in it. Raises ``StoreError``.

        It begins anew with the first commit that finds all of it carried over and nobody who reads from it. If commits
        come too fast for that, what is left to be carried over is little.
        """
        before = -1
        with translated(self._db):
            for _ in range(PASSES):
                _busy, pages, _carried = self._connection.execute(CARRY_OVER).fetchone()
                if pages == before:
                    return 0
                before = pages
        return before
