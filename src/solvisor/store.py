"""The rows of one home, in SQLite: the truth about every job.

Two strengths of commit. ``record`` survives the death of the daemon (WAL, ``synchronous=NORMAL``); ``harden`` makes
everything recorded before it survive a power cut. What was accepted is never overwritten: a new job is inserted or, if
its row exists, left alone; later only the columns that can change are updated, and a published row never. The schema
refuses impossible rows, so a defect elsewhere stops here instead of reaching a user.

Rules: all methods block; callers serialise them, any thread may call. SQLite's exceptions are translated here. This
module must not know folders, processes or what a transition means.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .errors import StoreError
from .model import Attempt, Cause, ExitFacts, Job, JobSpec, Original, Settings, State

_SCHEMA_VERSION = 1


# Lists of values are spelled out: a schema version is frozen once released, the enumerations are not.
_SCHEMA = """
CREATE TABLE meta (
  name   TEXT PRIMARY KEY,
  value  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO meta VALUES ('hardened', 0);

CREATE TABLE jobs (
  seq              INTEGER PRIMARY KEY,
  id               TEXT NOT NULL UNIQUE,
  state            TEXT NOT NULL CHECK (state IN ('queued', 'running', 'collecting', 'succeeded', 'failed', 'cancelled',
                                                  'rejected', 'skipped')),
  key              TEXT UNIQUE,
  spec             BLOB NOT NULL,
  submitted_us     INTEGER NOT NULL,
  interruptions    INTEGER NOT NULL,
  backoff_seconds  REAL NOT NULL,
  cancel           INTEGER NOT NULL CHECK (cancel IN (0, 1)),
  cause            TEXT CHECK (cause IN ('spawn', 'exit', 'signal', 'timeout', 'stalled', 'oom', 'check', 'server',
                                          'lost', 'unkillable', 'poison')),
  code             TEXT,
  message          TEXT,
  started_us       INTEGER,
  finished_us      INTEGER,
  manifest         BLOB,
  published        INTEGER NOT NULL CHECK (published IN (0, 1)),
  CHECK ((finished_us IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled', 'rejected', 'skipped'))),
  CHECK ((cause IS NOT NULL) = (state = 'failed')),
  CHECK ((manifest IS NOT NULL) = (finished_us IS NOT NULL AND NOT published)),
  CHECK (finished_us IS NOT NULL OR NOT published)
);
CREATE INDEX jobs_live ON jobs (id) WHERE published = 0;

CREATE TABLE attempts (
  job_id      TEXT NOT NULL REFERENCES jobs (id),
  n           INTEGER NOT NULL CHECK (n > 0),
  token       TEXT NOT NULL UNIQUE,
  host        TEXT NOT NULL,
  started_us  INTEGER NOT NULL,
  settings    BLOB NOT NULL,
  argv        BLOB NOT NULL,
  pid         INTEGER,
  pid_start   INTEGER,
  boot_id     TEXT,
  facts       BLOB,
  cause       TEXT CHECK (cause IN ('spawn', 'exit', 'signal', 'timeout', 'stalled', 'oom', 'check', 'server',
                                     'lost', 'unkillable', 'poison')),
  code        TEXT,
  message     TEXT,
  PRIMARY KEY (job_id, n)
) WITHOUT ROWID;
"""

_INSERT_JOB = """
INSERT INTO jobs (state, interruptions, backoff_seconds, cancel, cause, code, message, started_us, finished_us,
                  manifest, published, seq, id, key, spec, submitted_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING"""
_UPDATE_JOB = """
UPDATE jobs SET state = ?, interruptions = ?, backoff_seconds = ?, cancel = ?, cause = ?, code = ?, message = ?,
                started_us = ?, finished_us = ?, manifest = ?
WHERE seq = ? AND id = ? AND published = 0"""
_PUBLISH_JOB = "UPDATE jobs SET published = 1, manifest = NULL WHERE id = ?"
_INSERT_ATTEMPT = """
INSERT INTO attempts (argv, pid, pid_start, boot_id, facts, cause, code, message, job_id, n, token, host, started_us,
                      settings)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (job_id, n) DO NOTHING"""
_UPDATE_ATTEMPT = """
UPDATE attempts SET argv = ?, pid = ?, pid_start = ?, boot_id = ?, facts = ?, cause = ?, code = ?, message = ?
WHERE job_id = ? AND n = ?"""

_LIVE_JOBS = """
SELECT id, seq, state, spec, submitted_us, interruptions, backoff_seconds, cancel, cause, code, message, started_us,
       finished_us, manifest
FROM jobs WHERE published = 0 ORDER BY seq"""
_LIVE_ATTEMPTS = """
SELECT job_id, n, token, attempts.host, attempts.started_us, settings, argv, pid, pid_start, boot_id, facts,
       attempts.cause, attempts.code, attempts.message
FROM attempts JOIN jobs ON jobs.id = job_id WHERE published = 0 ORDER BY n"""

_RECENT_SPECS = "SELECT spec FROM jobs WHERE published = 1 ORDER BY seq DESC LIMIT ?"

_STATES_AT_ONCE = 500
_RECENT = 2000  # more than were ever claimed in one round

# An I/O error is not here: after a failed fsync a second one that succeeds proves nothing.
_TRY_AGAIN = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_BUSY: "another program holds the database: close it",
    sqlite3.SQLITE_LOCKED: "another program holds the database: close it",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make its folder writable",
}

_encode = msgspec.json.Encoder().encode
_decode_spec = msgspec.json.Decoder(JobSpec).decode
_decode_facts = msgspec.json.Decoder(ExitFacts).decode
_decode_settings = msgspec.json.Decoder(Settings).decode
_decode_argv = msgspec.json.Decoder(tuple[str, ...]).decode


class StoreUnavailable(StoreError):
    """The transaction was rolled back and can be tried again: disk full, read-only, or locked by another program."""

    code = "store_unavailable"
    retryable = True
    exit_status = 75


class StoreFailed(StoreError):
    """The disk failed under the database: what was written last may be gone. Restart and recover from what is there."""

    code = "store_failed"
    exit_status = 75


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
        with _translated(path):
            connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        store = cls(path, connection)
        try:
            with _translated(path):
                store._prepare()
        except BaseException:
            connection.close()
            raise
        return store

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def record(self, jobs: Iterable[Job], published: Iterable[str] = ()) -> None:
        """Commit, in one transaction, these jobs as they are now, and that the jobs ``published`` (ids) are published.

        It survives the death of the daemon; ``harden`` makes it survive a power cut. A job not known yet is inserted;
        an id that has a row with another ``seq`` is left alone. Publishing drops the bytes of the manifest. Raises
        ``StoreUnavailable`` (nothing changed, try again) or ``StoreError``.
        """
        changed = {job.id: job for job in jobs}
        done = list(published)
        new = [job for job in changed.values() if job.id not in self._stored]
        old = [job for job in changed.values() if job.id in self._stored]
        tried, ended = self._changed_attempts(changed.values())
        with self._transaction() as execute_many:
            execute_many(_INSERT_JOB, [(*_mutable(job), *_fixed(job)) for job in new])
            execute_many(_UPDATE_JOB, [(*_mutable(job), job.seq, job.id) for job in old])
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
        with _translated(self._path):
            self._connection.execute("PRAGMA synchronous = FULL")
            try:
                self._connection.execute("UPDATE meta SET value = value + 1 WHERE name = 'hardened'")
            finally:
                self._connection.execute("PRAGMA synchronous = NORMAL")

    def live_jobs(self) -> list[Job]:
        """All jobs not yet published, with their attempts, in the order of ``seq``."""
        with _translated(self._path):
            attempts: dict[str, list[Attempt]] = {}
            for job_id, *columns in self._connection.execute(_LIVE_ATTEMPTS):
                attempts.setdefault(job_id, []).append(_attempt(columns))
            jobs = [_job(row, tuple(attempts.get(row[0], ()))) for row in self._connection.execute(_LIVE_JOBS)]
        self._stored = {job.id: job.attempts for job in jobs}
        return jobs

    def recent_originals(self) -> list[Original]:
        """What the newest jobs claimed by copy: a daemon that died in that moment may not have removed it yet."""
        with _translated(self._path):
            rows = self._connection.execute(_RECENT_SPECS, (_RECENT,))
            return [original for (spec,) in rows for original in _decode_spec(spec).originals]

    def last_seq(self) -> int:
        """The highest ``seq`` ever given, 0 if none."""
        with _translated(self._path):
            row = self._connection.execute("SELECT max(seq) FROM jobs").fetchone()
        return row[0] or 0

    def last_id(self) -> str | None:
        """The id of the newest job, the floor of new ids; ``None`` if there is none."""
        with _translated(self._path):
            row = self._connection.execute("SELECT id FROM jobs ORDER BY seq DESC LIMIT 1").fetchone()
        return row[0] if row else None

    def states(self, ids: Iterable[str]) -> dict[str, State]:
        """The state of each of these jobs that exists, published or not."""
        wanted = list(ids)
        found: dict[str, State] = {}
        with _translated(self._path):
            for start in range(0, len(wanted), _STATES_AT_ONCE):
                part = wanted[start : start + _STATES_AT_ONCE]
                marks = ", ".join("?" * len(part))
                query = f"SELECT id, state FROM jobs WHERE id IN ({marks})"  # noqa: S608  marks are question marks
                rows = self._connection.execute(query, part)
                found |= {job_id: State(state) for job_id, state in rows}
        return found

    def id_of_key(self, key: str) -> str | None:
        """The job that already has this idempotency key."""
        with _translated(self._path):
            row = self._connection.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _prepare(self) -> None:
        execute = self._connection.execute
        problem = execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise _damaged(self._path, problem)
        version = execute("PRAGMA user_version").fetchone()[0]
        tables = execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
        if version > _SCHEMA_VERSION or (tables and not version):
            raise StoreError(
                f"{self._path} has schema version {version}, this Solvisor knows {_SCHEMA_VERSION}; the file is kept "
                "as it is: start the Solvisor that wrote it, or restore the backup made before the upgrade"
            )
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = NORMAL")
        execute("PRAGMA foreign_keys = ON")
        if not version:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT")
        self._stored = {row[0]: () for row in execute("SELECT id FROM jobs WHERE published = 0")}

    def _changed_attempts(self, jobs: Iterable[Job]) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """The rows to insert, and the rows to update; an attempt that is the same object was stored before."""
        new: list[tuple[Any, ...]] = []
        old: list[tuple[Any, ...]] = []
        for job in jobs:
            stored = self._stored.get(job.id, ())
            for index, attempt in enumerate(job.attempts):
                if index >= len(stored):
                    fixed = (attempt.token, attempt.host, attempt.started_us, _encode(attempt.settings))
                    new.append((*_outcome(attempt), job.id, attempt.n, *fixed))
                elif attempt is not stored[index]:
                    old.append((*_outcome(attempt), job.id, attempt.n))
        return new, old

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Callable[[str, list[tuple[Any, ...]]], object]]:
        with _translated(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection.executemany
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise


def _mutable(job: Job) -> tuple[Any, ...]:
    cause = job.cause.value if job.cause else None
    return (
        job.state.value,
        job.interruptions,
        job.backoff_seconds,
        job.cancel,
        cause,
        job.code,
        job.message,
        job.started_us,
        job.finished_us,
        job.manifest,
    )


def _fixed(job: Job) -> tuple[Any, ...]:
    return job.seq, job.id, job.spec.key, _encode(job.spec), job.submitted_us


def _outcome(attempt: Attempt) -> tuple[Any, ...]:
    facts = _encode(attempt.facts) if attempt.facts else None
    cause = attempt.cause.value if attempt.cause else None
    argv = _encode(attempt.argv)
    return argv, attempt.pid, attempt.pid_start, attempt.boot_id, facts, cause, attempt.code, attempt.message


def _attempt(columns: Sequence[Any]) -> Attempt:
    n, token, host, started_us, settings, argv, pid, pid_start, boot_id, facts, cause, code, message = columns
    return Attempt(
        n=n,
        token=token,
        host=host,
        started_us=started_us,
        settings=_decode_settings(settings),
        argv=_decode_argv(argv),
        pid=pid,
        pid_start=pid_start,
        boot_id=boot_id,
        facts=_decode_facts(facts) if facts else None,
        cause=Cause(cause) if cause else None,
        code=code,
        message=message,
    )


def _job(row: Sequence[Any], attempts: tuple[Attempt, ...]) -> Job:
    (job_id, seq, state, spec, submitted_us, interruptions, backoff_seconds, cancel, cause, *rest) = row
    code, message, started_us, finished_us, manifest = rest
    return Job(
        id=job_id,
        seq=seq,
        state=State(state),
        spec=_decode_spec(spec),
        submitted_us=submitted_us,
        attempts=attempts,
        interruptions=interruptions,
        backoff_seconds=backoff_seconds,
        cancel=bool(cancel),
        cause=Cause(cause) if cause else None,
        code=code,
        message=message,
        started_us=started_us,
        finished_us=finished_us,
        manifest=manifest,
    )


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise StoreError(f"{path} refused an impossible row, nothing was changed: {error}; please report it") from error
    except sqlite3.Error as error:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise _damaged(path, str(error)) from error
        if primary in _TRY_AGAIN:
            raise StoreUnavailable(f"{path}: {error}; nothing was changed; {_TRY_AGAIN[primary]}") from error
        raise StoreFailed(f"{path}: {error}; check the disk and start the daemon again") from error


def _damaged(path: Path, problem: str) -> StoreError:
    return StoreError(
        f"{path} is damaged ({problem}). It is kept as it is, and finished results are not affected. Copy it and the "
        f"files {path.name}-wal and -shm beside it to a safe place; then put back a backup, or rescue the rows with: "
        f"sqlite3 {path} .recover | sqlite3 rescued.db"
    )
