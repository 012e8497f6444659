"""The schema of the database, and how a record becomes a row and a row a record.

Rules: the schema refuses impossible rows, so a defect elsewhere stops here instead of reaching a user; SQLite's
exceptions are translated here and nowhere else. This module holds no connection.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from .errors import StoreError, StoreFailed, StoreUnavailable
from .model import Attempt, Batch, Cause, ExitFacts, Job, JobSpec, Pause, Settings, State

SCHEMA_VERSION = 3

# Lists of values are spelled out: a schema version is frozen once released, the enumerations are not.
SCHEMA = """
CREATE TABLE meta (
  name   TEXT PRIMARY KEY,
  value  INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO meta VALUES ('hardened', 0);

CREATE TABLE batches (
  id          TEXT PRIMARY KEY,
  name        TEXT NOT NULL,
  user        TEXT,
  on_error    TEXT NOT NULL CHECK (on_error IN ('skip', 'fail')),
  max_jobs    INTEGER CHECK (max_jobs > 0),
  created_us  INTEGER NOT NULL,
  closed      INTEGER NOT NULL CHECK (closed IN (0, 1)),
  stopped     TEXT
) WITHOUT ROWID;

CREATE TABLE pauses (
  solver    TEXT UNIQUE,
  by        TEXT,
  since_us  INTEGER NOT NULL,
  note      TEXT
);

CREATE TABLE jobs (
  seq              INTEGER PRIMARY KEY,
  id               TEXT NOT NULL UNIQUE,
  state            TEXT NOT NULL CHECK (state IN ('queued', 'running', 'collecting', 'succeeded', 'failed', 'cancelled',
                                                  'rejected', 'skipped')),
  key              TEXT UNIQUE,
  name             TEXT NOT NULL,
  solver           TEXT NOT NULL,
  user             TEXT,
  project          TEXT,
  batch            TEXT REFERENCES batches (id),
  spec             BLOB NOT NULL,
  submitted_us     INTEGER NOT NULL,
  tries            INTEGER NOT NULL,
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
CREATE INDEX jobs_of_batch ON jobs (batch, seq) WHERE batch IS NOT NULL;
CREATE INDEX jobs_of_project ON jobs (project, seq) WHERE project IS NOT NULL;
CREATE INDEX jobs_finished ON jobs (finished_us) WHERE finished_us IS NOT NULL;

CREATE TABLE attempts (
  job_id      TEXT NOT NULL REFERENCES jobs (id),
  n           INTEGER NOT NULL CHECK (n > 0),
  token       TEXT NOT NULL UNIQUE,
  host        TEXT NOT NULL,
  started_us  INTEGER NOT NULL,
  settings    BLOB NOT NULL,
  server      TEXT,
  port        INTEGER,
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

JOB_COLUMNS = """
id, seq, state, spec, submitted_us, interruptions, backoff_seconds, cancel, cause, code, message, started_us,
finished_us, manifest"""
"""What ``to_job`` reads."""
ATTEMPT_COLUMNS = """
n, token, attempts.host, attempts.started_us, settings, server, port, argv, pid, pid_start, boot_id, facts,
attempts.cause, attempts.code, attempts.message"""
"""What ``to_attempt`` reads."""
BATCH_COLUMNS = "id, name, user, on_error, max_jobs, created_us, closed, stopped"
PAUSE_COLUMNS = "solver, by, since_us, note"

# An I/O error is not here: after a failed fsync a second one that succeeds proves nothing.
_TRY_AGAIN = {
    sqlite3.SQLITE_FULL: "free some space",
    sqlite3.SQLITE_BUSY: "another program holds the database: close it",
    sqlite3.SQLITE_LOCKED: "another program holds the database: close it",
    sqlite3.SQLITE_READONLY: "make the file and its folder writable",
    sqlite3.SQLITE_CANTOPEN: "make its folder writable",
}

encode = msgspec.json.Encoder().encode
decode_spec = msgspec.json.Decoder(JobSpec).decode
_decode_facts = msgspec.json.Decoder(ExitFacts).decode
_decode_settings = msgspec.json.Decoder(Settings).decode
_decode_argv = msgspec.json.Decoder(tuple[str, ...]).decode


def mutable_columns(job: Job) -> tuple[Any, ...]:
    """The columns that change while a job lives."""
    cause = job.cause.value if job.cause else None
    return (
        job.state.value,
        len(job.attempts),
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


def fixed_columns(job: Job) -> tuple[Any, ...]:
    """The columns that never change."""
    spec = job.spec
    named = spec.name, spec.solver, spec.user, spec.project, spec.batch
    return job.seq, job.id, spec.key, *named, encode(spec), job.submitted_us


def outcome_columns(attempt: Attempt) -> tuple[Any, ...]:
    """The columns of an attempt that change."""
    facts = encode(attempt.facts) if attempt.facts else None
    cause = attempt.cause.value if attempt.cause else None
    argv = encode(attempt.argv)
    return argv, attempt.pid, attempt.pid_start, attempt.boot_id, facts, cause, attempt.code, attempt.message


def to_attempt(columns: Sequence[Any]) -> Attempt:
    """The attempt of a row of ``ATTEMPT_COLUMNS``."""
    n, token, host, started_us, settings, server, port, argv, pid, pid_start, boot_id, facts, *end = columns
    cause, code, message = end
    return Attempt(
        n=n,
        token=token,
        host=host,
        started_us=started_us,
        settings=_decode_settings(settings),
        server=server,
        port=port,
        argv=_decode_argv(argv),
        pid=pid,
        pid_start=pid_start,
        boot_id=boot_id,
        facts=_decode_facts(facts) if facts else None,
        cause=Cause(cause) if cause else None,
        code=code,
        message=message,
    )


def to_job(row: Sequence[Any], attempts: tuple[Attempt, ...]) -> Job:
    """The job of a row of ``JOB_COLUMNS``, with its attempts in order."""
    (job_id, seq, state, spec, submitted_us, interruptions, backoff_seconds, cancel, cause, *rest) = row
    code, message, started_us, finished_us, manifest = rest
    return Job(
        id=job_id,
        seq=seq,
        state=State(state),
        spec=decode_spec(spec),
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


def to_batch(row: Sequence[Any]) -> Batch:
    """The batch of a row of ``BATCH_COLUMNS``."""
    batch_id, name, user, on_error, max_jobs, created_us, closed, stopped = row
    return Batch(batch_id, name, user, on_error, max_jobs, created_us, bool(closed), stopped)


def batch_columns(batch: Batch) -> tuple[Any, ...]:
    """A row of ``BATCH_COLUMNS``."""
    fixed = batch.id, batch.name, batch.user, batch.on_error, batch.max_jobs, batch.created_us
    return *fixed, batch.closed, batch.stopped


def to_pause(row: Sequence[Any]) -> Pause:
    """The pause of a row of ``PAUSE_COLUMNS``."""
    return Pause(*row)


def pause_columns(pause: Pause) -> tuple[Any, ...]:
    """A row of ``PAUSE_COLUMNS``."""
    return pause.solver, pause.by, pause.since_us, pause.note


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what SQLite raises about the database at ``path`` into errors that say what to do."""
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise StoreError(f"{path} refused an impossible row, nothing was changed: {error}; please report it") from error
    except sqlite3.Error as error:
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise damaged(path, str(error)) from error
        if primary in _TRY_AGAIN:
            raise StoreUnavailable(f"{path}: {error}; nothing was changed; {_TRY_AGAIN[primary]}") from error
        raise StoreFailed(f"{path}: {error}; check the disk and start the daemon again") from error


def damaged(path: Path, problem: str) -> StoreError:
    """The error of a database that cannot be trusted."""
    return StoreError(
        f"{path} is damaged ({problem}). It is kept as it is, and finished results are not affected. Copy it and the "
        f"files {path.name}-wal and -shm beside it to a safe place; then put back a backup, or rescue the rows with: "
        f"sqlite3 {path} .recover | sqlite3 rescued.db"
    )
