"""What was: the rows of one home, read beside the daemon that writes them.

Rules: a connection of its own that cannot write and waits for no writer, so questions are answered while a commit hangs
on a slow disk. All methods block; callers serialise them, any thread may call. What is read is *recorded*; the engine
knows what of it is still on its way. This module must not know folders or processes.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from msgspec import Struct

from .model import Batch, Job, Pause, State
from .rows import (
    ATTEMPT_COLUMNS,
    BATCH_COLUMNS,
    JOB_COLUMNS,
    PAUSE_COLUMNS,
    to_attempt,
    to_batch,
    to_job,
    to_pause,
    translated,
)

_JOB = f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?"
_PAUSES = f"SELECT {PAUSE_COLUMNS} FROM pauses"
_LIVE = f"SELECT {JOB_COLUMNS} FROM jobs WHERE published = 0 ORDER BY seq"
_ATTEMPTS = f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE job_id = ? ORDER BY n"
_BATCH = f"SELECT {BATCH_COLUMNS} FROM batches WHERE id = ?"
_LIKE = "SELECT id FROM jobs WHERE id >= ? AND id < ? ORDER BY seq DESC LIMIT ?"
_NEWEST = "SELECT id FROM jobs ORDER BY seq DESC LIMIT 1"
_NEWEST_OF_USER = "SELECT id FROM jobs WHERE user = ? ORDER BY seq DESC LIMIT 1"
_FINISHED_SINCE = "SELECT state, count(*) FROM jobs WHERE finished_us >= ? AND published = 1 GROUP BY state"
_OF_BATCH = """
SELECT state, count(*), iif(published, NULL, id) AS unpublished FROM jobs
WHERE batch = ? AND finished_us IS NOT NULL GROUP BY state, unpublished"""
_FAILED_SINCE = f"""
SELECT {JOB_COLUMNS} FROM jobs
WHERE finished_us >= ? AND published = 1 AND state = 'failed' ORDER BY finished_us DESC LIMIT ?"""
_BY_KEY = f"SELECT {JOB_COLUMNS} FROM jobs WHERE key = ?"


class Filters(Struct, frozen=True, kw_only=True):
    """Which jobs are meant; what is ``None`` or empty does not matter. ``since_us``: submitted then or later.

    A job that ended and is not published is still being collected: it has both its own state and that one.
    """

    states: tuple[State, ...] = ()
    solver: str | None = None
    user: str | None = None
    project: str | None = None
    batch: str | None = None
    since_us: int | None = None


class History:
    """Reads the database at ``path``; make it with ``History.open`` once the ``Store`` has opened it."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> History:
        """Open the database for reading. Raises ``StoreError``."""
        with translated(path):
            uri = f"file:{quote(os.fsencode(path))}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
        return cls(path, connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def page(self, filters: Filters, before_seq: int | None, limit: int) -> list[Job]:
        """Jobs that fit the filters, newest first, older than ``before_seq``."""
        tests: list[str] = []
        values: list[object] = []
        if before_seq is not None:
            tests.append("seq < ?")
            values.append(before_seq)
        if filters.states:
            test = f"state IN ({', '.join('?' * len(filters.states))})"
            if State.COLLECTING in filters.states:
                test = f"({test} OR published = 0 AND finished_us IS NOT NULL)"
            tests.append(test)
            values += [state.value for state in filters.states]
        if filters.since_us is not None:
            tests.append("submitted_us >= ?")
            values.append(filters.since_us)
        for column in ("solver", "user", "project", "batch"):
            wanted = getattr(filters, column)
            if wanted is not None:
                tests.append(f"{column} = ?")
                values.append(wanted)
        where = f"WHERE {' AND '.join(tests)} " if tests else ""
        query = f"SELECT {JOB_COLUMNS} FROM jobs {where}ORDER BY seq DESC LIMIT ?"
        with translated(self._path):
            rows = self._connection.execute(query, [*values, limit]).fetchall()
            return [self._whole(row) for row in rows]

    def job(self, job_id: str) -> Job | None:
        """The job with this id, with its attempts."""
        with translated(self._path):
            row = self._connection.execute(_JOB, (job_id,)).fetchone()
            return self._whole(row) if row else None

    def live_jobs(self) -> list[Job]:
        """All jobs not yet published, in the order of ``seq``."""
        with translated(self._path):
            return [self._whole(row) for row in self._connection.execute(_LIVE).fetchall()]

    def pauses(self) -> list[Pause]:
        """The pauses in force."""
        with translated(self._path):
            return [to_pause(row) for row in self._connection.execute(_PAUSES).fetchall()]

    def job_of_key(self, key: str) -> Job | None:
        """The job that has this idempotency key."""
        with translated(self._path):
            row = self._connection.execute(_BY_KEY, (key,)).fetchone()
            return self._whole(row) if row else None

    def ids_like(self, prefix: str, limit: int) -> list[str]:
        """Ids that begin with ``prefix`` (not empty), newest first."""
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with translated(self._path):
            return [row[0] for row in self._connection.execute(_LIKE, (prefix, after, limit))]

    def newest(self, user: str | None) -> str | None:
        """The newest job of ``user``; if there is none, the newest of all."""
        with translated(self._path):
            row = self._connection.execute(_NEWEST_OF_USER, (user,)).fetchone()
            row = row or self._connection.execute(_NEWEST).fetchone()
        return row[0] if row else None

    def finished_since(self, since_us: int) -> Counter[State]:
        """How many published jobs became terminal since then (UTC microseconds), by state."""
        with translated(self._path):
            rows = self._connection.execute(_FINISHED_SINCE, (since_us,)).fetchall()
        return Counter({State(state): count for state, count in rows})

    def failed_since(self, since_us: int, limit: int) -> list[Job]:
        """The published jobs that failed since then (UTC microseconds), the last to end first."""
        with translated(self._path):
            rows = self._connection.execute(_FAILED_SINCE, (since_us, limit)).fetchall()
            return [self._whole(row) for row in rows]

    def batch(self, batch_id: str) -> Batch | None:
        """The batch with this id."""
        with translated(self._path):
            row = self._connection.execute(_BATCH, (batch_id,)).fetchone()
        return to_batch(row) if row else None

    def finished_of_batch(self, batch_id: str) -> tuple[Counter[State], dict[str, State]]:
        """How many jobs of a batch are published, by state, and which are terminal but not marked so yet."""
        with translated(self._path):
            rows = self._connection.execute(_OF_BATCH, (batch_id,)).fetchall()
        published = Counter({State(state): count for state, count, job_id in rows if job_id is None})
        return published, {job_id: State(state) for state, _, job_id in rows if job_id is not None}

    def _whole(self, row: Sequence[Any]) -> Job:
        attempts = self._connection.execute(_ATTEMPTS, (row[0],)).fetchall()
        return to_job(row, tuple(to_attempt(columns) for columns in attempts))
