"""The rows of one home, in SQLite: the truth about every job.

Two strengths of commit. ``record`` survives the death of the daemon (WAL, ``synchronous=NORMAL``); ``harden`` makes
everything recorded before it survive a power cut. What was accepted is never overwritten: a new job is inserted or, if
its row exists, left alone; later only the columns that can change are updated, and a published row never.

Rules: this is the only connection that writes. All methods block; callers serialise them, any thread may call. This
module must not know folders, processes or what a transition means.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import StoreError
from .model import Attempt, Batch, Job, Original, Pause, State
from .rows import (
    ATTEMPT_COLUMNS,
    BATCH_COLUMNS,
    JOB_COLUMNS,
    PAUSE_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    batch_columns,
    damaged,
    decode_spec,
    encode,
    fixed_columns,
    mutable_columns,
    outcome_columns,
    pause_columns,
    to_attempt,
    to_batch,
    to_job,
    to_pause,
    translated,
)

_INSERT_JOB = """
INSERT INTO jobs (state, tries, interruptions, backoff_seconds, cancel, cause, code, message, started_us, finished_us,
                  manifest, published, seq, id, key, name, solver, user, project, batch, spec, submitted_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING"""
_UPDATE_JOB = """
UPDATE jobs SET state = ?, tries = ?, interruptions = ?, backoff_seconds = ?, cancel = ?, cause = ?, code = ?,
                message = ?, started_us = ?, finished_us = ?, manifest = ?
WHERE seq = ? AND id = ? AND published = 0"""
_PUBLISH_JOB = "UPDATE jobs SET published = 1, manifest = NULL WHERE id = ?"
_INSERT_ATTEMPT = """
INSERT INTO attempts (argv, pid, pid_start, boot_id, facts, cause, code, message, job_id, n, token, host, started_us,
                      settings, server, port)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (job_id, n) DO NOTHING"""
_UPDATE_ATTEMPT = """
UPDATE attempts SET argv = ?, pid = ?, pid_start = ?, boot_id = ?, facts = ?, cause = ?, code = ?, message = ?
WHERE job_id = ? AND n = ?"""

_PUT_BATCH = f"""
INSERT INTO batches ({BATCH_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET closed = excluded.closed, stopped = excluded.stopped"""
_PUT_PAUSE = f"INSERT INTO pauses ({PAUSE_COLUMNS}) VALUES (?, ?, ?, ?)"

_LIVE_JOBS = f"SELECT {JOB_COLUMNS} FROM jobs WHERE published = 0 ORDER BY seq"
_LIVE_ATTEMPTS = f"""
SELECT job_id, {ATTEMPT_COLUMNS}
FROM attempts JOIN jobs ON jobs.id = job_id WHERE published = 0 ORDER BY n"""
_LIVE_BATCHES = f"""
SELECT {BATCH_COLUMNS} FROM batches
WHERE id IN (SELECT batch FROM jobs WHERE published = 0)"""
_BATCH = f"SELECT {BATCH_COLUMNS} FROM batches WHERE id = ?"
_PAUSES = f"SELECT {PAUSE_COLUMNS} FROM pauses"

_RECENT_SPECS = "SELECT spec FROM jobs WHERE published = 1 ORDER BY seq DESC LIMIT ?"

_STATES_AT_ONCE = 500
_RECENT = 2000  # more than were ever claimed in one round


class Store:
    """The rows of one home. Make it with ``Store.open``."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        # What is on the disk already, for each job not yet published: decides insert or update, and which attempts.
        self._stored: dict[str, tuple[Attempt, ...]] = {}

    @classmethod
    def open(cls, path: Path) -> Store:
        """Open or create the database, and prove it whole.

        Raises ``StoreError`` if it is damaged or newer than this program (the file is left as it is),
        ``StoreUnavailable`` if it cannot be opened now.
        """
        with translated(path):
            connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        store = cls(path, connection)
        try:
            with translated(path):
                store._prepare()
        except BaseException:
            connection.close()
            raise
        return store

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def record(
        self,
        jobs: Iterable[Job],
        published: Iterable[str] = (),
        batches: Iterable[Batch] = (),
        pauses: Iterable[Pause] | None = None,
    ) -> None:
        """Commit, in one transaction, these jobs as they are now, and that the jobs ``published`` (ids) are published.

        ``batches`` are recorded likewise; ``pauses``, if given, are all that are in force. It survives the death of the
        daemon; ``harden`` makes it survive a power cut. A job not known yet is inserted;
        an id that has a row with another ``seq`` is left alone. Publishing drops the bytes of the manifest. Raises
        ``StoreUnavailable`` (nothing changed, try again) or ``StoreError``.
        """
        changed = {job.id: job for job in jobs}
        done = list(published)
        new = [job for job in changed.values() if job.id not in self._stored]
        old = [job for job in changed.values() if job.id in self._stored]
        tried, ended = self._changed_attempts(changed.values())
        with self._transaction() as execute_many:
            execute_many(_PUT_BATCH, [batch_columns(batch) for batch in batches])
            if pauses is not None:
                execute_many("DELETE FROM pauses", [()])
                execute_many(_PUT_PAUSE, [pause_columns(pause) for pause in pauses])
            execute_many(_INSERT_JOB, [(*mutable_columns(job), *fixed_columns(job)) for job in new])
            execute_many(_UPDATE_JOB, [(*mutable_columns(job), job.seq, job.id) for job in old])
            execute_many(_INSERT_ATTEMPT, tried)
            execute_many(_UPDATE_ATTEMPT, ended)
            execute_many(_PUBLISH_JOB, [(job_id,) for job_id in done])
        self._stored |= {job.id: job.attempts for job in changed.values()}
        for job_id in done:
            self._stored.pop(job_id, None)

    def harden(self) -> None:
        """Make everything recorded so far survive a power cut. Raises like ``record``.

        In WAL mode the sync of one FULL commit covers every commit before it.
        """
        with translated(self._path):
            self._connection.execute("PRAGMA synchronous = FULL")
            try:
                self._connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'hardened'")
            finally:
                self._connection.execute("PRAGMA synchronous = NORMAL")

    def live_jobs(self) -> list[Job]:
        """All jobs not yet published, with their attempts, in the order of ``seq``."""
        with translated(self._path):
            attempts: dict[str, list[Attempt]] = {}
            for job_id, *columns in self._connection.execute(_LIVE_ATTEMPTS):
                attempts.setdefault(job_id, []).append(to_attempt(columns))
            jobs = [to_job(row, tuple(attempts.get(row[0], ()))) for row in self._connection.execute(_LIVE_JOBS)]
        self._stored = {job.id: job.attempts for job in jobs}
        return jobs

    def live_batches(self) -> dict[str, Batch]:
        """The batches of all jobs not yet published."""
        with translated(self._path):
            batches = [to_batch(row) for row in self._connection.execute(_LIVE_BATCHES)]
        return {batch.id: batch for batch in batches}

    def batch(self, batch_id: str) -> Batch | None:
        """The batch with this id."""
        with translated(self._path):
            row = self._connection.execute(_BATCH, (batch_id,)).fetchone()
        return to_batch(row) if row else None

    def pauses(self) -> list[Pause]:
        """The pauses in force."""
        with translated(self._path):
            return [to_pause(row) for row in self._connection.execute(_PAUSES)]

    def recent_originals(self) -> list[Original]:
        """What the newest jobs claimed by copy: a daemon that died in that moment may not have removed it yet."""
        with translated(self._path):
            rows = self._connection.execute(_RECENT_SPECS, (_RECENT,))
            return [original for (spec,) in rows for original in decode_spec(spec).originals]

    def last_seq(self) -> int:
        """The highest ``seq`` ever given, 0 if none."""
        with translated(self._path):
            row = self._connection.execute("SELECT max(seq) FROM jobs").fetchone()
        return row[0] or 0

    def last_id(self) -> str | None:
        """The id of the newest job, the floor of new ids; ``None`` if there is none."""
        with translated(self._path):
            row = self._connection.execute("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def states(self, ids: Iterable[str]) -> dict[str, State]:
        """The state of each of these jobs that exists, published or not."""
        wanted = list(ids)
        found: dict[str, State] = {}
        with translated(self._path):
            for start in range(0, len(wanted), _STATES_AT_ONCE):
                part = wanted[start : start + _STATES_AT_ONCE]
                marks = ", ".join("?" * len(part))
                query = f"SELECT id, state FROM jobs WHERE id IN ({marks})"
                rows = self._connection.execute(query, part)
                found |= {job_id: State(state) for job_id, state in rows}
        return found

    def id_of_key(self, key: str) -> str | None:
        """The job that already has this idempotency key."""
        with translated(self._path):
            row = self._connection.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _prepare(self) -> None:
        execute = self._connection.execute
        problem = execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise damaged(self._path, problem)
        version = execute("PRAGMA user_version").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if 0 < version < SCHEMA_VERSION:
            raise StoreError(
                f"{self._path} was written by an earlier Solvisor (schema version {version}, this one knows "
                f"{SCHEMA_VERSION}); the file is kept as it is: let that one finish its jobs, then choose a new home"
            )
        if version > SCHEMA_VERSION or (tables and not version):
            raise StoreError(
                f"{self._path} has schema version {version}, this Solvisor knows {SCHEMA_VERSION}; the file is kept "
                "as it is: start the Solvisor that wrote it, or restore the backup made before the upgrade"
            )
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute("PRAGMA foreign_keys = ON")
        if not version:
            self._connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
        self._stored = {row[0]: () for row in execute("SELECT id FROM jobs WHERE published = 0")}

    def _changed_attempts(self, jobs: Iterable[Job]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """The rows to insert, and the rows to update; an attempt that is the same object was stored before."""
        new: list[tuple[Any, ...]] = []
        old: list[tuple[Any, ...]] = []
        for job in jobs:
            stored = self._stored.get(job.id, ())
            for index, attempt in enumerate(job.attempts):
                if index >= len(stored):
                    fixed = (attempt.token, attempt.host, attempt.started_us, encode(attempt.settings))
                    place = (attempt.server, attempt.port)
                    new.append((*outcome_columns(attempt), job.id, attempt.n, *fixed, *place))
                elif attempt is not stored[index]:
                    old.append((*outcome_columns(attempt), job.id, attempt.n))
        return new, old

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[[str, list[tuple[Any, ...]]], object]]:
        with translated(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.executemany
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
