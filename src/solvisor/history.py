"""What was: the rows of one home, read beside the daemon that writes them.

Rules: a connection of its own that cannot write and waits for no writer, so questions are answered while a commit hangs
on a slow disk. All methods block; callers serialise them, any thread may call. What is read is *recorded*; the engine
knows what of it is still on its way. This module must not know folders or processes.
"""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from msgspec import Struct

from . import __version__, schema
from .errors import StoreError
from .lately import MINUTE_US, Ends
from .model import TARGETS, TERMINAL, Batch, Cause, Job, Override, Pause, State, Target
from .rows import (
    ATTEMPT_COLUMNS,
    BATCH_COLUMNS,
    JOB_COLUMNS,
    OVERRIDE_COLUMNS,
    PAUSE_COLUMNS,
    read_job,
    to_batch,
    to_override,
    to_pause,
    translated,
)
from .usual import Ran

_JOB = f"SELECT {JOB_COLUMNS} FROM jobs WHERE id = ?"
_PAUSES = f"SELECT {PAUSE_COLUMNS} FROM pauses"
_OVERRIDES = f"SELECT {OVERRIDE_COLUMNS} FROM limits"
_LIVE = f"SELECT {JOB_COLUMNS} FROM jobs WHERE published = 0 ORDER BY seq"
_ATTEMPTS = f"SELECT {ATTEMPT_COLUMNS} FROM attempts WHERE job = ? ORDER BY n"
_BATCH = f"SELECT {BATCH_COLUMNS} FROM batches WHERE id = ?"
_LIKE = """
SELECT id FROM (SELECT id, seq FROM jobs WHERE id >= ? AND id < ? ORDER BY id DESC LIMIT ?) ORDER BY seq DESC"""
_NEWEST = "SELECT id FROM jobs ORDER BY seq DESC LIMIT 1"
_NEWEST_OF_USER = "SELECT id FROM jobs WHERE user = ? ORDER BY seq DESC LIMIT 1"
_FINISHED_SINCE = f"""
SELECT finished_us / {MINUTE_US} AS minute, state, count(*) FROM jobs
WHERE finished_us >= ? AND published = 1 GROUP BY minute, state"""
_OF_BATCH = """
SELECT state, count(*), iif(published, NULL, id) AS unpublished FROM jobs
WHERE batch = ? AND finished_us IS NOT NULL GROUP BY state, unpublished"""
_FAILED_SINCE = f"""
SELECT {JOB_COLUMNS} FROM jobs
WHERE finished_us >= ? AND published = 1 AND state = 'failed' ORDER BY finished_us DESC LIMIT ?"""
_RAN_LATELY = """
SELECT solver, name, max(0.0, coalesce(seconds, (finished_us - started_us) / 1e6)) AS ran FROM (
  SELECT solver, name, at, started_us,
         CAST(json_extract(told, '$.seconds') AS REAL) AS seconds,
         CAST(json_extract(told, '$.finished_us') AS INTEGER) AS finished_us
  FROM (
    SELECT solver, name, at, started_us, iif(json_valid(CAST(facts AS TEXT)), CAST(facts AS TEXT), '{}') AS told
    FROM (
      SELECT seq, solver, name, state, published, tries, finished_us AS at FROM jobs INDEXED BY jobs_finished
      WHERE finished_us IS NOT NULL ORDER BY finished_us DESC LIMIT ?
    ) AS lately
    CROSS JOIN attempts ON job = seq AND n = tries WHERE state = 'succeeded' AND published = 1
  )
) WHERE ran IS NOT NULL ORDER BY at"""
_BY_KEY = f"SELECT {JOB_COLUMNS} FROM jobs WHERE key = ?"


_KEPT = """
SELECT id, state, finished_us, size_bytes FROM jobs
WHERE published = 1 AND removed_us IS NULL AND finished_us < ? AND state IN ({})
ORDER BY finished_us, seq LIMIT ? OFFSET ?"""
_KEPT_BYTES = "SELECT sum(size_bytes) FROM jobs WHERE published = 1 AND removed_us IS NULL"
_NOT_WEIGHED = """
SELECT id, state, finished_us, size_bytes FROM jobs
WHERE published = 1 AND removed_us IS NULL AND size_bytes IS NULL ORDER BY finished_us LIMIT ?"""
_DEPENDED_ON = """
SELECT DISTINCT CAST(other.value AS BLOB) FROM jobs INDEXED BY jobs_live,
json_each(iif(json_valid(CAST(spec AS TEXT)), CAST(spec AS TEXT), '{}'), '$.after') AS other
WHERE published = 0 AND seq > ? AND seq <= ? AND other.type = 'text'"""
_LAST_SEQ = "SELECT max(seq) FROM jobs"
_OLDER = "SELECT max(seq) FROM jobs WHERE seq < ?"

_FOR_EVER = (1 << 63) - 1

LATELY = 500
"""Jobs of which it is asked how long they ran; of more an old disk would have to look for long."""

EXAMINED_MAX = 10_000
"""Rows that are looked at for one page, however few of them fit: a few milliseconds."""

_LIVE_STATES = frozenset(State) - TERMINAL
_BAD_ENDS = TERMINAL - {State.SUCCEEDED}


class Kept(NamedTuple):
    """A published job whose files are there as far as is known; ``size_bytes`` is ``None`` before they were measured.

    ``finished_us`` is UTC microseconds, ``target`` the folder of the home that holds it.
    """

    id: str
    target: Target
    finished_us: int
    size_bytes: int | None


class Filters(Struct, frozen=True, kw_only=True):
    """Which jobs are meant; what is ``None`` or empty does not matter.

    ``since_us``: submitted then or later, ``until_us``: submitted before then. ``text`` is a part of the name or of the
    id, in whatever case. A job that ended and is not published is still being collected: it has both its own state and
    that one.
    """

    states: tuple[State, ...] = ()
    causes: tuple[Cause, ...] = ()
    solver: str | None = None
    user: str | None = None
    project: str | None = None
    batch: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    text: str | None = None

    def tests(self) -> tuple[list[str], list[object]]:
        """The conditions on a row, and the values in them."""
        tests: list[str] = []
        values: list[object] = []
        if self.states:
            test = f"state IN ({_marks(self.states)})"
            if State.COLLECTING in self.states:
                test = f"({test} OR published = 0 AND finished_us IS NOT NULL)"
            tests.append(test)
            values += [state.value for state in self.states]
        if self.causes:
            tests.append(f"cause IN ({_marks(self.causes)})")
            values += [cause.value for cause in self.causes]
        for test, value in (
            ("submitted_us >= ?", self.since_us),
            ("submitted_us < ?", self.until_us),
            ("solver = ?", self.solver),
            ("user = ?", self.user),
            ("project = ?", self.project),
            ("batch = ?", self.batch),
        ):
            if value is not None:
                tests.append(test)
                values.append(value)
        if self.text:
            pattern = "%{}%".format(re.sub(r"([%_\\])", r"\\\1", self.text.casefold()))
            # LIKE knows the two cases of ASCII alone, and ids have no other letters.
            if self.text.isascii():
                tests.append(r"(name LIKE ? ESCAPE '\' OR id LIKE ? ESCAPE '\')")
                values += [pattern, pattern]
            else:
                tests.append(r"casefold(name) LIKE ? ESCAPE '\'")
                values.append(pattern)
        return tests, values

    def indexes(self) -> Iterator[tuple[str, str, list[object]]]:
        """The indexes that hold every row that fits, by ``seq``: name, condition, and the values in it."""
        if self.batch is not None:
            yield "jobs_of_batch", "batch = ?", [self.batch]
        if self.project is not None:
            yield "jobs_of_project", "project = ?", [self.project]
        if self.user is not None:
            yield "jobs_of_user", "user = ?", [self.user]
        if self.causes or (self.states and _BAD_ENDS.issuperset(self.states)):
            yield "jobs_ended_badly", "finished_us IS NOT NULL AND state <> 'succeeded'", []
        if self.states and _LIVE_STATES.issuperset(self.states):
            yield "jobs_live", "published = 0", []


class Page(NamedTuple):
    """Jobs, newest first. What is older than ``next_seq`` was not looked at; ``None``: there is nothing older."""

    jobs: list[Job]
    next_seq: int | None


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
        try:
            with translated(path):
                version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != schema.VERSION:
                raise StoreError(
                    f"{path} has schema version {version}, and Solvisor {__version__} reads {schema.VERSION}: "
                    "let its daemon bring it up to date, or use the Solvisor that wrote it"
                )
            connection.create_function("casefold", 1, str.casefold, deterministic=True)
        except BaseException:
            connection.close()
            raise
        return cls(path, connection)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def page(self, filters: Filters, before_seq: int | None, limit: int) -> Page:
        """At most ``limit`` jobs that fit the filters, newest first, older than ``before_seq``.

        No more than ``EXAMINED_MAX`` rows are looked at, so there may be fewer, or none, and more to come. A job that
        comes in meanwhile is newer than all of them: nothing is left out and nothing comes twice.
        """
        with translated(self._path):
            if before_seq is None:
                before_seq = (self._one(_LAST_SEQ) or 0) + 1
            source, tests, values, floor = "jobs", ["seq < ?"], [before_seq], before_seq - EXAMINED_MAX
            for index, test, wanted in filters.indexes():
                begin = f"FROM jobs INDEXED BY {index} WHERE {test} AND seq < ?"
                last = self._one(
                    f"SELECT seq {begin} ORDER BY seq DESC LIMIT 1 OFFSET ?", *wanted, before_seq, EXAMINED_MAX - 1
                )
                if (last or 0) < floor:  # so many of these lead further back
                    floor = last or 0
                    source, tests, values = f"jobs INDEXED BY {index}", [test, "seq < ?"], [*wanted, before_seq]
            more_tests, more_values = filters.tests()
            where = " AND ".join([*tests, "seq >= ?", *more_tests])
            query = f"SELECT {JOB_COLUMNS} FROM {source} WHERE {where} ORDER BY seq DESC LIMIT ?"
            rows = self._connection.execute(query, [*values, floor, *more_values, limit]).fetchall()
            oldest = rows[-1][1] if len(rows) == limit else floor
            older = self._one(_OLDER, oldest) if oldest > 0 else None
            return Page([self._whole(row) for row in rows], None if older is None else oldest)

    def _one(self, query: str, *values: object) -> Any:
        """The only value of the only row, if there is one."""
        row = self._connection.execute(query, values).fetchone()
        return row[0] if row else None

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

    def overrides(self) -> list[Override]:
        """The limits that people set."""
        with translated(self._path):
            return [to_override(row) for row in self._connection.execute(_OVERRIDES).fetchall()]

    def job_of_key(self, key: str) -> Job | None:
        """The job that has this idempotency key."""
        with translated(self._path):
            row = self._connection.execute(_BY_KEY, (key,)).fetchone()
            return self._whole(row) if row else None

    def ids_like(self, prefix: str, limit: int) -> list[str]:
        """Ids that begin with ``prefix`` (not empty): the last ones of the alphabet, so the newest of one name."""
        after = prefix[:-1] + chr(ord(prefix[-1]) + 1)
        with translated(self._path):
            return [row[0] for row in self._connection.execute(_LIKE, (prefix, after, limit))]

    def newest(self, user: str | None) -> str | None:
        """The newest job of ``user``; if there is none, the newest of all."""
        with translated(self._path):
            row = self._connection.execute(_NEWEST_OF_USER, (user,)).fetchone()
            row = row or self._connection.execute(_NEWEST).fetchone()
        return row[0] if row else None

    def finished_since(self, since_us: int) -> list[Ends]:
        """How many published jobs became terminal since then (UTC microseconds), by minute and state."""
        with translated(self._path):
            rows = self._connection.execute(_FINISHED_SINCE, (since_us,)).fetchall()
        return [Ends(minute, State(state), count) for minute, state, count in rows]

    def failed_since(self, since_us: int, limit: int) -> list[Job]:
        """The published jobs that failed since then (UTC microseconds), the last to end first."""
        with translated(self._path):
            rows = self._connection.execute(_FAILED_SINCE, (since_us, limit)).fetchall()
            return [self._whole(row) for row in rows]

    def ran_lately(self) -> list[Ran]:
        """How long those of the last ``LATELY`` jobs ran that succeeded and are published, the last to end last."""
        with translated(self._path):
            return [Ran(*row) for row in self._connection.execute(_RAN_LATELY, (LATELY,))]

    def kept(self, states: Collection[State], before_us: int | None, limit: int, skip: int = 0) -> list[Kept]:
        """Published jobs in these states whose files are kept, the first to finish first, after the first ``skip``.

        With ``before_us`` only those that finished before then.
        """
        query = _KEPT.format(_marks(states))
        before = _FOR_EVER if before_us is None else before_us
        return self._kept(query, before, *(state.value for state in states), limit, skip)

    def not_weighed(self, limit: int) -> list[Kept]:
        """Those of them whose size is not known yet."""
        return self._kept(_NOT_WEIGHED, limit)

    def kept_bytes(self) -> int:
        """What all of them take, as far as it is known."""
        with translated(self._path):
            return self._connection.execute(_KEPT_BYTES).fetchone()[0] or 0

    def depended_on(self, after_seq: int = 0) -> tuple[set[str], int]:
        """The jobs that one not yet published names in its ``after``; only those newer than ``after_seq`` are asked.

        Beside them the newest ``seq`` that was. A row that cannot be read names nobody: its job is set aside.
        """
        with translated(self._path):
            last = self._connection.execute(_LAST_SEQ).fetchone()[0] or 0
            rows = self._connection.execute(_DEPENDED_ON, (after_seq, last)).fetchall()
        return {name.decode(errors="replace") for (name,) in rows}, last

    def _kept(self, query: str, *values: object) -> list[Kept]:
        with translated(self._path):
            rows = self._connection.execute(query, values).fetchall()
        return [Kept(job_id, TARGETS[State(state)], finished_us, size) for job_id, state, finished_us, size in rows]

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
        attempts = self._connection.execute(_ATTEMPTS, (row[1],)).fetchall()
        return read_job(row, attempts)[0]


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))
