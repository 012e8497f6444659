"""How a record becomes a row of the database and a row a record, and what SQLite's errors mean.

Rules: SQLite's exceptions are translated here and nowhere else. This module holds no connection.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from .errors import StoreDamaged, StoreError, StoreFailed, StoreUnavailable
from .model import Attempt, Batch, Cause, ExitFacts, Job, JobSpec, Override, Pause, Settings, Source, State
from .usage import Row, Sums

JOB_COLUMNS = """
id, seq, state, spec, submitted_us, interruptions, backoff_seconds, cancel, cause, code, message, started_us,
finished_us, (SELECT body FROM manifests WHERE manifests.seq = jobs.seq),
removed_us, priority, name, solver, user, project, batch, key"""
"""What ``read_job`` reads."""
ATTEMPT_COLUMNS = """
n, token, attempts.host, attempts.started_us, settings,
(SELECT body FROM solver_tables WHERE solver_tables.id = attempts.solver_table), server, port, argv, pid, pid_start,
boot_id, facts, attempts.cause, attempts.code, attempts.message"""
"""What ``read_job`` reads of its attempts."""
BATCH_COLUMNS = "id, name, user, on_error, max_jobs, created_us, closed, stopped"
PAUSE_COLUMNS = "solver, by, since_us, note"
OVERRIDE_COLUMNS = "name, value, by, since_us, note"

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
_decode_table = msgspec.json.Decoder(dict[str, Any]).decode
_UNREADABLE = (msgspec.MsgspecError, TypeError, ValueError, RecursionError)
_decode_sums = msgspec.json.Decoder(Sums).decode
_decode_argv = msgspec.json.Decoder(tuple[str, ...]).decode


def mutable_columns(job: Job) -> tuple[Any, ...]:
    """The columns that change while a job lives."""
    return (
        job.state._value_,  # ``value`` is a function, written in Python
        len(job.attempts),
        job.interruptions,
        job.backoff_seconds,
        job.cancel,
        job.cause._value_ if job.cause else None,
        job.code,
        job.message,
        job.started_us,
        job.finished_us,
        job.given_priority,
    )


def fixed_columns(job: Job) -> tuple[Any, ...]:
    """The columns that never change."""
    spec = job.spec
    named = spec.name, spec.solver, spec.user, spec.project, spec.batch
    return job.seq, job.id, spec.key, *named, job.spec_bytes, job.submitted_us


class Tables:
    """The numbers of tables of solvers: of ``known`` ones, and those that ``new`` ones get."""

    def __init__(self, known: Mapping[bytes, int]) -> None:
        self.new: dict[bytes, int] = {}
        self._known = known

    def number(self, table: Mapping[str, Any]) -> int:
        """Where it stands, or is to stand."""
        body = encode(table)
        number = self._known.get(body)
        if number is None:
            number = self.new.setdefault(body, max(self._known.values(), default=0) + len(self.new) + 1)
        return number


def begun_columns(job: Job, attempt: Attempt, tables: Tables) -> tuple[Any, ...]:
    """All columns of an attempt, the last two for its job. The table of its solver is told by its number."""
    fixed = attempt.n, attempt.token, attempt.host, attempt.started_us
    settings = encode(replace(attempt.settings, table={})), tables.number(attempt.settings.table)
    return *outcome_columns(attempt), *fixed, *settings, attempt.server, attempt.port, job.seq, job.id


def outcome_columns(attempt: Attempt) -> tuple[Any, ...]:
    """The columns of an attempt that change."""
    facts = encode(attempt.facts) if attempt.facts else None
    cause = attempt.cause.value if attempt.cause else None
    argv = encode(attempt.argv)
    return argv, attempt.pid, attempt.pid_start, attempt.boot_id, facts, cause, attempt.code, attempt.message


def read_job(row: Sequence[Any], attempt_rows: Iterable[Sequence[Any]]) -> tuple[Job, str | None]:
    """The job of a row of ``JOB_COLUMNS`` and those of ``ATTEMPT_COLUMNS``; and what of it cannot be read, in words.

    Of such a job there is as much as can be read, so that it can be told and set aside.
    """
    problem = None
    attempts: list[Attempt] = []
    try:
        attempts += map(_to_attempt, attempt_rows)
    except _UNREADABLE as error:
        problem = f"its try {len(attempts) + 1}: {error}"
    try:
        spec = decode_spec(row[3])
    except _UNREADABLE as error:
        problem = f"what it asks for: {error}"
        name, solver, user, project, batch, key = row[-6:]
        source = Source("inbox", name)
        spec = JobSpec(name, solver, "", (), source, user, project, batch=batch, key=key)
    return _to_job(row, spec, tuple(attempts)), problem


def _to_attempt(columns: Sequence[Any]) -> Attempt:
    n, token, host, started_us, settings, table, server, port, argv, pid, pid_start, boot_id, facts, *end = columns
    cause, code, message = end
    held = _decode_settings(settings)
    return Attempt(
        n=n,
        token=token,
        host=host,
        started_us=started_us,
        settings=held if table is None else replace(held, table=_decode_table(table)),
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


def _to_job(row: Sequence[Any], spec: JobSpec, attempts: tuple[Attempt, ...]) -> Job:
    (job_id, seq, state, _, submitted_us, interruptions, backoff_seconds, cancel, cause, *rest) = row
    code, message, started_us, finished_us, manifest, removed_us, given_priority, *_ = rest
    return Job(
        id=job_id,
        seq=seq,
        state=State(state),
        asked=spec,
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
        removed_us=removed_us,
        given_priority=given_priority,
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


def to_override(row: Sequence[Any]) -> Override:
    """The override of a row of ``OVERRIDE_COLUMNS``."""
    return Override(*row)


def override_columns(override: Override) -> tuple[Any, ...]:
    """A row of ``OVERRIDE_COLUMNS``."""
    return override.name, override.value, override.by, override.since_us, override.note


def to_usage(row: Sequence[Any]) -> Row:
    """The row of usage that ``start_us, span_seconds, sums`` are of."""
    start_us, span_seconds, sums = row
    return Row(start_us, span_seconds, _decode_sums(sums))


def translated(path: Path) -> Translated:
    """Turn what SQLite raises about the database at ``path`` into errors that say what to do."""
    return Translated(path)


class Translated:
    """What ``translated`` gives; it may be used again, within itself as well."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        if isinstance(error, sqlite3.Error):
            raise _translation(self._path, error) from error
        if isinstance(error, msgspec.MsgspecError):  # pages of long values carry no structure that SQLite could check
            raise damaged(self._path, f"a row cannot be read: {error}") from error


def _translation(path: Path, error: sqlite3.Error) -> StoreError:
    if isinstance(error, sqlite3.IntegrityError):
        return StoreError(f"{path} refused an impossible row, nothing was changed: {error}; please report it")
    if is_damage(error):
        return damaged(path, str(error))
    primary = _primary_code(error)
    if primary in _TRY_AGAIN:
        return StoreUnavailable(f"{path}: {error}; nothing was changed; {_TRY_AGAIN[primary]}")
    return StoreFailed(f"{path}: {error}; check the disk and start the daemon again")


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file is not, or no longer, a sound database."""
    text = "Could not decode to UTF-8" in str(error)  # of Python's own, without a code
    return text or _primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _primary_code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def damaged(path: Path, problem: str) -> StoreDamaged:
    """The error of a database that cannot be trusted."""
    return StoreDamaged(
        f"{path} is damaged ({problem}). It is kept as it is, and finished results are not affected. To go on:\n"
        "  with a backup:  solvisor rebuild --backup FILE\n"
        "  without one:    solvisor rebuild\n"
        "Both set the damaged file aside under another name, take the history from the manifests of the results (and "
        "from the backup), and queue again what lies in work/"
    )
