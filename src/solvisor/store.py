"""The rows of one home, in SQLite: the truth about every job.

Two strengths. ``record`` commits: that survives the death of the daemon (WAL, ``synchronous=NORMAL``). ``harden`` has
everything recorded before it survive a power cut. What was accepted is never overwritten: a new job is inserted or, if
its row exists, left alone; later only the columns that can change are updated, and a published row never.

Rules: this is the only connection that writes. All methods block; any thread may call, callers serialise them. Only
``harden`` and ``fold``, which wait for the disk, may run beside others, one of them at a time. This module must not
know folders, processes or what a transition means. One file, if a long one: it is all that is written.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from . import __version__, failpoint, schema, usagerows
from .backup import back_up, open_still
from .errors import StoreError, StoreUnavailable
from .model import Attempt, Batch, Job, Original, Override, Pause, State
from .names import AGE_CHARACTERS
from .rows import (
    ATTEMPT_COLUMNS,
    BATCH_COLUMNS,
    JOB_COLUMNS,
    OVERRIDE_COLUMNS,
    PAUSE_COLUMNS,
    Tables,
    batch_columns,
    begun_columns,
    damaged,
    decode_spec,
    fixed_columns,
    is_damage,
    mutable_columns,
    outcome_columns,
    override_columns,
    pause_columns,
    read_job,
    to_batch,
    to_override,
    to_pause,
    translated,
)
from .usage import Life, Row
from .wal import CARRY_OVER, Wal

_INSERT_JOB = """
INSERT INTO jobs (state, tries, interruptions, backoff_seconds, cancel, cause, code, message, started_us, finished_us,
                  priority, published, seq, id, key, name, solver, user, project, batch, spec, submitted_us)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO NOTHING"""
_UPDATE_JOB = """
UPDATE jobs SET state = ?, tries = ?, interruptions = ?, backoff_seconds = ?, cancel = ?, cause = ?, code = ?,
                message = ?, started_us = ?, finished_us = ?, priority = ?
WHERE seq = ? AND id = ? AND published = 0"""
_PUT_MANIFEST = """
INSERT OR REPLACE INTO manifests (seq, body) SELECT seq, ? FROM jobs WHERE seq = ? AND id = ? AND published = 0"""
_PUBLISH_JOB = "UPDATE jobs SET published = 1 WHERE id = ?"
_WEIGH_JOB = "UPDATE jobs SET size_bytes = ? WHERE id = ? AND published = 1"
_REMOVE_JOB = "UPDATE jobs SET removed_us = ? WHERE id = ? AND published = 1 AND removed_us IS NULL"
_INSERT_ATTEMPT = """
INSERT INTO attempts (argv, pid, pid_start, boot_id, facts, cause, code, message, n, token, host, started_us,
                      settings, solver_table, server, port, job)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, seq FROM jobs WHERE seq = ? AND id = ?
ON CONFLICT (job, n) DO NOTHING"""
_UPDATE_ATTEMPT = """
UPDATE attempts SET argv = ?, pid = ?, pid_start = ?, boot_id = ?, facts = ?, cause = ?, code = ?, message = ?
WHERE job = ? AND n = ?"""
_INSERT_TABLE = "INSERT INTO solver_tables (id, body) VALUES (?, ?)"
_TABLES = "SELECT body, id FROM solver_tables ORDER BY id DESC LIMIT ?"

_PUT_BATCH = f"""
INSERT INTO batches ({BATCH_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET closed = excluded.closed, stopped = excluded.stopped"""
_PUT_PAUSE = f"INSERT INTO pauses ({PAUSE_COLUMNS}) VALUES (?, ?, ?, ?)"
_PUT_OVERRIDE = f"INSERT INTO limits ({OVERRIDE_COLUMNS}) VALUES (?, ?, ?, ?, ?)"

_LIVE = "SELECT seq, id FROM jobs INDEXED BY jobs_live WHERE published = 0"
_LAST_ID = f"SELECT id FROM jobs ORDER BY substr(id, -{AGE_CHARACTERS}) DESC LIMIT 1"  # a rebuilt row has a late seq
_UNFINISHED = """
SELECT id FROM jobs INDEXED BY jobs_live WHERE published = 0 AND finished_us IS NULL ORDER BY seq"""
_JOBS = f"SELECT {JOB_COLUMNS} FROM jobs WHERE seq IN ({{}}) ORDER BY seq"
_ATTEMPTS = f"SELECT job, {ATTEMPT_COLUMNS} FROM attempts WHERE job IN ({{}}) ORDER BY n"
_NOTED = """
SELECT pid, pid_start, token FROM jobs INDEXED BY jobs_live CROSS JOIN attempts ON job = seq
WHERE published = 0 AND tries > 0 AND boot_id = ? AND pid IS NOT NULL AND pid_start IS NOT NULL"""
_LIVE_BATCHES = f"""
SELECT {BATCH_COLUMNS} FROM batches
WHERE id IN (SELECT batch FROM jobs WHERE published = 0)"""
_BATCH = f"SELECT {BATCH_COLUMNS} FROM batches WHERE id = ?"
_PAUSES = f"SELECT {PAUSE_COLUMNS} FROM pauses"
_OVERRIDES = f"SELECT {OVERRIDE_COLUMNS} FROM limits"

_RECENT_SPECS = "SELECT spec FROM jobs WHERE published = 1 ORDER BY seq DESC LIMIT ?"
_LIVE_SPECS = """
SELECT spec FROM jobs INDEXED BY jobs_live
WHERE published = 0
AND iif(json_valid(CAST(spec AS TEXT)), json_array_length(CAST(spec AS TEXT), '$.originals') > 0, 0)"""

FOLD_ROWS = 1000
"""Changes of rows that SQLite's log may hold before it is carried over into the database: some 4 MiB."""

LONG_LOG = 4000
"""Pages of 4 KiB. If a longer log could not begin anew after ``fold``, the next commit first carries over the rest."""

_LONGEST_LOG = 8000  # where nobody calls ``fold``; then a commit carries all of it over
_AT_ONCE = 500  # values in one question
_RECENT = 2000  # more than were ever claimed in one round
_RECENT_TABLES = 100  # one that is older is written again

T = TypeVar("T")


class Migration(NamedTuple):
    """A database that was brought up to date, and what it was before."""

    version: int
    backup: Path


class Store:
    """The rows of one home. Make it with ``Store.open``. ``migrated`` says so if that brought them up to date."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.migrated: Migration | None = None
        self._path = path
        self._connection = connection
        self._translated = translated(path)
        self._whole = _Transaction(connection)
        self._wal: Wal
        self._folded = 0
        self._is_long = False
        # What is on the disk already, for each job not yet published: decides insert or update, and which attempts.
        self._stored: dict[str, tuple[Attempt, ...]] = {}
        self._tables: dict[bytes, int] = {}  # the newest tables of solvers, and their numbers

    @classmethod
    def open(cls, path: Path, *, expected: bool = False) -> Store:
        """Open or create the database, prove it whole, and bring it up to date.

        ``expected``: there is a history, so a file that is missing or empty is damage too. An older database is copied
        to ``backup/`` beside it first. Raises ``StoreDamaged``, or ``StoreError`` if it is newer than this program (the
        file is left as it is, byte for byte), ``StoreUnavailable`` if it cannot be opened now.
        """
        version = _examine(path, expected)
        with translated(path):
            connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        store = cls(path, connection)
        try:
            with translated(path):
                store._prepare(version)
        except BaseException:
            connection.close()
            raise
        return store

    def close(self) -> None:
        """Close the database; nothing is called any more."""
        self._wal.close()  # before SQLite removes it
        self._connection.close()

    def record(
        self,
        jobs: Iterable[Job],
        published: Iterable[str] = (),
        batches: Iterable[Batch] = (),
        pauses: Iterable[Pause] | None = None,
        overrides: Iterable[Override] | None = None,
    ) -> None:
        """Commit, in one transaction, these jobs as they are now, and that the jobs ``published`` (ids) are published.

        ``batches`` are recorded likewise; ``pauses`` and ``overrides``, if given, are all that are in force. It
        survives the death of the daemon; ``harden`` makes it survive a power cut. A job not known yet is inserted; an
        id that has a row with another ``seq`` is left alone. Publishing drops the bytes of the manifest. Raises
        ``StoreUnavailable`` (nothing changed, try again) or ``StoreError``.
        """
        changed = {job.id: job for job in jobs}
        done = [(job_id,) for job_id in published]
        tables = Tables(self._tables)
        written = self._rows_of(changed.values(), tables)
        with self._translated, self._transaction() as execute_many:
            if batches:
                execute_many(_PUT_BATCH, map(batch_columns, batches))
            if pauses is not None:
                execute_many("DELETE FROM pauses", [()])
                execute_many(_PUT_PAUSE, map(pause_columns, pauses))
            if overrides is not None:
                execute_many("DELETE FROM limits", [()])
                execute_many(_PUT_OVERRIDE, map(override_columns, overrides))
            for statement, rows in written:
                if rows:
                    execute_many(statement, rows)
            if done:
                execute_many(_PUBLISH_JOB, done)
        self._tables |= tables.new
        for job in changed.values():
            self._stored[job.id] = job.attempts
        for (job_id,) in done:
            self._stored.pop(job_id, None)

    def harden(self) -> None:
        """Make everything recorded so far survive a power cut. Raises ``StoreFailed``, from then on always.

        It needs no room on a full disk, and may run while another thread records.
        """
        self._wal.sync()
        failpoint.reach("store.hardened")

    @property
    def to_fold(self) -> bool:
        """Whether so much was recorded since ``fold`` that it is time for it again."""
        return self._connection.total_changes - self._folded >= FOLD_ROWS

    def fold(self) -> None:
        """Carry what SQLite's log holds over into the database; commits go on meanwhile. Raises ``StoreError``."""
        self._folded = self._connection.total_changes
        with contextlib.suppress(StoreUnavailable):  # on a full disk the log stays as it is
            self._is_long = self._wal.fold() > LONG_LOG

    def weigh(self, sizes: Mapping[str, int]) -> None:
        """Note how many bytes the files of these published jobs (ids) take. Raises like ``record``."""
        with self._translated, self._transaction() as execute_many:
            execute_many(_WEIGH_JOB, [(size, job_id) for job_id, size in sizes.items()])

    def remove(self, ids: Iterable[str], now_us: int) -> None:
        """Record that the files of these published jobs are removed; their rows stay. Raises like ``record``."""
        with self._translated, self._transaction() as execute_many:
            execute_many(_REMOVE_JOB, [(now_us, job_id) for job_id in ids])

    def last_life(self) -> Life | None:
        """The latest time within which a daemon was there, as far as it was noted."""
        with self._translated:
            return usagerows.last_life(self._connection)

    def note_usage(self, rows: Iterable[Row], lives: Iterable[Life]) -> None:
        """Add to how busy it was, and to when a daemon was there. Raises like ``record``."""
        with self._translated, self._transaction():
            usagerows.note(self._connection, rows, lives)

    def thin_usage(self, minutes_before_us: int, hours_before_us: int) -> None:
        """One small step of forgetting: the oldest minutes before then become an hour, the oldest hours go.

        Raises like ``record``.
        """
        with self._translated, self._transaction():
            usagerows.thin(self._connection, minutes_before_us, hours_before_us)

    def live(self) -> dict[int, str]:
        """The ids of all jobs not yet published by their ``seq``, in that order."""
        with self._translated:
            return dict(sorted(self._connection.execute(_LIVE)))

    def unfinished(self) -> list[str]:
        """The ids of all jobs that have not come to their end, in the order of ``seq``."""
        with self._translated:
            return [row[0] for row in self._connection.execute(_UNFINISHED)]

    def live_jobs(self) -> list[Job]:
        """All jobs not yet published, with their attempts, in the order of ``seq``."""
        return self.jobs(list(self.live()))[0]

    def jobs(self, seqs: Sequence[int]) -> tuple[list[Job], dict[str, str]]:
        """The unpublished jobs with these ``seq``, with their attempts, in that order.

        Beside them, by id, what of some cannot be read: of those there is as much as can be.
        """
        jobs: list[Job] = []
        unreadable: dict[str, str] = {}
        with self._translated:
            for part in _parts(seqs):
                rows = self._connection.execute(_JOBS.format(_marks(part)), part).fetchall()
                attempts: dict[int, list[Sequence[Any]]] = {}
                for seq, *columns in self._connection.execute(_ATTEMPTS.format(_marks(part)), part):
                    attempts.setdefault(seq, []).append(columns)
                for row in rows:
                    job, problem = read_job(row, attempts.get(row[1], ()))
                    jobs.append(job)
                    if problem is not None:
                        unreadable[job.id] = problem
        for job in jobs:
            self._stored.pop(job.id, None)  # 100,000 ids are kept once, not twice
            self._stored[job.id] = job.attempts
        return jobs, unreadable

    def noted(self, boot_id: str) -> dict[tuple[int, int], str]:
        """The processes of this boot that attempts of unpublished jobs had: (pid, start), with their tokens."""
        with self._translated:
            return {(pid, start): token for pid, start, token in self._connection.execute(_NOTED, (boot_id,))}

    def live_batches(self) -> dict[str, Batch]:
        """The batches of all jobs not yet published."""
        with self._translated:
            batches = [to_batch(row) for row in self._connection.execute(_LIVE_BATCHES)]
        return {batch.id: batch for batch in batches}

    def batch(self, batch_id: str) -> Batch | None:
        """The batch with this id."""
        with self._translated:
            row = self._connection.execute(_BATCH, (batch_id,)).fetchone()
        return to_batch(row) if row else None

    def pauses(self) -> list[Pause]:
        """The pauses in force."""
        with self._translated:
            return [to_pause(row) for row in self._connection.execute(_PAUSES)]

    def overrides(self) -> list[Override]:
        """The limits that people set."""
        with self._translated:
            return [to_override(row) for row in self._connection.execute(_OVERRIDES)]

    def originals(self) -> list[Original]:
        """What live and the newest other jobs claimed by copy: a daemon that died may not have removed it yet."""
        with self._translated:
            rows = self._connection.execute(_RECENT_SPECS, (_RECENT,)).fetchall()
            rows += self._connection.execute(_LIVE_SPECS).fetchall()
        found: list[Original] = []
        for (spec,) in rows:
            with contextlib.suppress(msgspec.MsgspecError):  # its job is set aside
                found += decode_spec(spec).originals
        return found

    def last_seq(self) -> int:
        """The highest ``seq`` ever given, 0 if none."""
        with self._translated:
            row = self._connection.execute("SELECT max(seq) FROM jobs").fetchone()
        return row[0] or 0

    def mark_rebuilt(self) -> None:
        """Note that rows may be missing: what lies in ``work/`` without one may have been acknowledged."""
        with self._translated:
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('rebuilt', 1)")

    def is_rebuilt(self) -> bool:
        """Whether that was noted, and not forgotten since."""
        with self._translated:
            return self._connection.execute("SELECT 1 FROM meta WHERE name = 'rebuilt'").fetchone() is not None

    def forget_rebuilt(self) -> None:
        """What lay in ``work/`` has its rows. Raises like ``record``."""
        with self._translated:
            self._connection.execute("DELETE FROM meta WHERE name = 'rebuilt'")

    def last_id(self) -> str | None:
        """The id that was made last, the floor of new ids; ``None`` if there is none."""
        with self._translated:
            row = self._connection.execute(_LAST_ID).fetchone()
        return row[0] if row else None

    def states(self, ids: Iterable[str]) -> dict[str, State]:
        """The state of each of these jobs that exists, published or not."""
        found: dict[str, State] = {}
        with self._translated:
            for part in _parts(list(ids)):
                rows = self._connection.execute(f"SELECT id, state FROM jobs WHERE id IN ({_marks(part)})", part)
                found |= {job_id: State(state) for job_id, state in rows}
        return found

    def id_of_key(self, key: str) -> str | None:
        """The job that already has this idempotency key."""
        with self._translated:
            row = self._connection.execute("SELECT id FROM jobs WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def _prepare(self, version: int) -> None:
        execute = self._connection.execute
        failpoint.reach("start.checked")
        if 0 < version < schema.VERSION:
            self.migrated = Migration(version, _backed_up(self._path, version))
        execute("PRAGMA journal_mode = WAL")
        execute("PRAGMA synchronous = FULL")
        if version < schema.VERSION:
            failpoint.reach("start.no_schema")
            try:
                with self._translated:
                    self._connection.executescript(schema.script(version))
            except StoreUnavailable:  # nothing was changed, so the next start makes a copy again
                if self.migrated is not None:
                    with contextlib.suppress(OSError):
                        self.migrated.backup.unlink()
                raise
            failpoint.reach("start.schema_made")
        execute("PRAGMA synchronous = NORMAL")
        execute("PRAGMA foreign_keys = ON")
        # What an earlier life wrote last may be in the kernel's memory alone, if that ended by an fsync that failed.
        # Folded into the database it is written again. On a full disk that has to wait.
        with contextlib.suppress(StoreUnavailable), self._translated:
            execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        execute(f"PRAGMA wal_autocheckpoint = {_LONGEST_LOG}")
        self._wal = Wal(self._path)
        self._stored = dict.fromkeys(self.live().values(), ())
        self._tables = dict(reversed(execute(_TABLES, (_RECENT_TABLES,)).fetchall()))

    def _rows_of(self, jobs: Iterable[Job], tables: Tables) -> list[tuple[str, list[tuple[Any, ...]]]]:
        """What is to be written of these jobs: statements in their order, each with its rows."""
        new: list[tuple[Any, ...]] = []
        old: list[tuple[Any, ...]] = []
        ended: list[tuple[Any, ...]] = []
        begun: list[tuple[Any, ...]] = []
        tried: list[tuple[Any, ...]] = []
        for job in jobs:
            stored = self._stored.get(job.id)
            if stored is None:
                stored = ()
                new.append((*mutable_columns(job), *fixed_columns(job)))
            else:
                old.append((*mutable_columns(job), job.seq, job.id))
            if job.finished_us is not None:
                ended.append((job.manifest, job.seq, job.id))
            if job.attempts is not stored:
                for attempt, before in zip(job.attempts, stored, strict=False):
                    if attempt is not before and attempt != before:
                        tried.append((*outcome_columns(attempt), job.seq, attempt.n))
                if len(job.attempts) > len(stored):
                    begun += [begun_columns(job, attempt, tables) for attempt in job.attempts[len(stored) :]]
        return [
            (_INSERT_JOB, new),
            (_UPDATE_JOB, old),
            (_PUT_MANIFEST, ended),
            (_INSERT_TABLE, [(number, body) for body, number in tables.new.items()]),
            (_INSERT_ATTEMPT, begun),
            (_UPDATE_ATTEMPT, tried),
        ]

    def _transaction(self) -> _Transaction:
        if self._is_long:
            self._is_long = False
            with contextlib.suppress(StoreUnavailable), self._translated:
                self._connection.execute(CARRY_OVER).fetchone()
        return self._whole


class _Transaction:
    """What is executed within is committed at its end, or nothing of it if anything was raised."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> Callable[[str, Iterable[tuple[Any, ...]]], object]:
        self._connection.execute("BEGIN IMMEDIATE")
        return self._connection.executemany

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                failpoint.reach("store.written")
                self._connection.execute("COMMIT")
                failpoint.reach("store.recorded")
        finally:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")


class InStore(Protocol):
    """Has the store do something, and waits while it cannot."""

    def __call__(self, work: Callable[[Store], T], /) -> Awaitable[T]:
        """What ``work``, which blocks, returned."""
        ...


def _examine(path: Path, expected: bool) -> int:
    """The version of the schema, 0 if there is nothing yet. What cannot be used is not touched: it may be rescued.

    Not even closed by a connection that can write: that would carry over what stands in the log beside the file.
    """
    if expected and not (path.exists() and path.stat().st_size):
        raise damaged(path, "it is empty" if path.exists() else "it is not there, but there are results")
    if not path.exists():
        return 0
    try:
        with contextlib.closing(open_still(path)[0]) as connection:
            problem = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            version: int = connection.execute("PRAGMA user_version").fetchone()[0]
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    except sqlite3.Error as error:
        if is_damage(error):
            raise damaged(path, str(error)) from error
        with translated(path):
            raise
    if problem != "ok":
        raise damaged(path, problem)
    if 0 < version < schema.FIRST:
        raise StoreError(
            f"{path} was written by an earlier Solvisor (schema version {version}, this one knows {schema.FIRST} to "
            f"{schema.VERSION}); the file is kept as it is: let that one finish its jobs, then choose a new home"
        )
    if version > schema.VERSION or (tables and not version):
        raise StoreError(
            f"{path} has schema version {version}, and Solvisor {__version__} knows {schema.VERSION} at most; the file "
            "is kept as it is: start the Solvisor that wrote it, or go back to the copy that one made when it was "
            f"installed (in {path.parent / 'backup'}): solvisor rebuild --backup FILE"
        )
    return version


def _backed_up(path: Path, version: int) -> Path:
    """Copy a database that is about to be changed; the copy."""
    folder = path.parent / "backup"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        return back_up(path, folder / f"{path.stem}-v{version}-{stamp}.db", replace=True).path
    except OSError as error:
        raise StoreUnavailable(
            f"{path} was written by an earlier Solvisor and is brought up to date only once it is copied, and no copy "
            f"could be made: {error}; nothing was changed; free some space and start again"
        ) from error


def _parts(values: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(values), _AT_ONCE):
        yield values[start : start + _AT_ONCE]


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
