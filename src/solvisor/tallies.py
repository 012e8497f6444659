"""What was, in sums: how busy it was, and what became of the jobs of a period.

Rules: a connection for each question, in the thread that asks, so that one that takes long holds up nobody; it cannot
write, and waits for no writer. Everything is counted by SQLite, which lets other threads run meanwhile: only what is
told comes out of it. Percentiles are exact (nearest rank). A row that cannot be read counts as far as it can. All of it
blocks. What is read is *recorded*.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from heapq import merge
from itertools import groupby, pairwise
from pathlib import Path
from typing import Final
from urllib.parse import quote

from .figures import RUN_EDGES, FailureFigure, PersonFigures, Spread
from .model import State
from .report import Common, Ended, Tries
from .rows import to_usage, translated
from .usage import HOUR, MINUTE, Life, Present, Row, merged

FAILURES_TOLD: Final = 5
"""Ways to fail, of each solver."""
PEOPLE_TOLD: Final = 20
MESSAGE_TOLD: Final = 300
"""Characters of a message; what is alike that far is alike."""

STEADY_SECONDS: Final = 10.0
"""Tries that ran for less say nothing about the cores that a solver keeps busy: it starts, reads, writes."""

ROWS_IN_STEP: Final = 4
"""So many rows for each step of a time line are enough; each is held in memory."""
_GRAINS: Final = (HOUR, 900, 300, MINUTE)

_STEPS_BETWEEN: Final = 100_000
"""Steps of SQLite's machine between two looks whether anybody still waits for the answer."""

_LIVES = "SELECT began_us, seen_us FROM lives WHERE seen_us > ? AND began_us < ? ORDER BY began_us"
_USAGE = """
SELECT start_us, span_seconds, sums FROM usage
WHERE span_seconds = ? AND start_us > ? AND start_us < ? ORDER BY start_us"""

_TAKE_JOBS = """
CREATE TEMP TABLE ended AS
SELECT seq, solver, coalesce(user, '') AS user, coalesce(project, '') AS project, state, cause, code,
       substr(message, 1, :message) AS message, tries,
       CASE WHEN started_us IS NOT NULL THEN max(0, started_us - submitted_us) / 1e6 END AS queued
FROM jobs INDEXED BY jobs_finished WHERE finished_us >= :since AND finished_us < :until"""
_TAKE_TRIES = """
CREATE TEMP TABLE tried AS
SELECT solver, user, project, state, last, cause, source, cpus, memory, coalesce(rss, 0) AS rss,
       max(0, coalesce(seconds, (finished_us - started_us) / 1e6)) AS ran,
       coalesce(user_seconds, 0) + coalesce(system_seconds, 0) AS busy,
       coalesce(user_seconds, system_seconds) IS NOT NULL AS measured
FROM (
  SELECT solver, user, project, state, n = tries AS last, attempts.cause, started_us,
         CAST(iif(had IS NULL, NULL, coalesce(json_extract(had, '$.cpus'), 1)) AS INTEGER) AS cpus,
         CAST(iif(had IS NULL, NULL, coalesce(json_extract(had, '$.memory_bytes'), 0)) AS INTEGER) AS memory,
         CAST(json_extract(told, '$.seconds') AS REAL) AS seconds,
         CAST(json_extract(told, '$.finished_us') AS INTEGER) AS finished_us,
         CAST(json_extract(told, '$.usage.cpu_user_seconds') AS REAL) AS user_seconds,
         CAST(json_extract(told, '$.usage.cpu_system_seconds') AS REAL) AS system_seconds,
         CAST(json_extract(told, '$.usage.max_rss_bytes') AS INTEGER) AS rss,
         json_extract(told, '$.usage.max_rss_source') AS source
  FROM (
    SELECT ended.solver, ended.user, ended.project, ended.state, ended.tries, n, attempts.cause, started_us,
           iif(json_valid(CAST(facts AS TEXT)), CAST(facts AS TEXT), '{}') AS told,
           iif(json_valid(CAST(settings AS TEXT)), CAST(settings AS TEXT), NULL) AS had
    FROM ended CROSS JOIN attempts ON job = seq
  ) AS attempts
)"""

_STATES = "SELECT solver, state, count(*) FROM ended GROUP BY solver, state"
_TRIES = """
SELECT solver, count(*), sum(cause IS 'lost'), sum(cause IS 'timeout'), sum(cause IS 'server'), sum(last),
       sum(iif(measured, ran * cpus, 0)), sum(iif(measured, busy, 0)), sum(measured), sum(ran * cpus)
FROM tried GROUP BY solver"""
_FAILURES = """
SELECT solver, cause, code, message, jobs FROM (
  SELECT solver, cause, code, message, count(*) AS jobs,
         row_number() OVER (PARTITION BY solver ORDER BY count(*) DESC, message) AS place
  FROM ended WHERE state = 'failed' GROUP BY solver, cause, code, message
) WHERE place <= ? ORDER BY solver, place"""
_PEOPLE = """
SELECT user, project, sum(jobs), sum(failed), sum(core_seconds) FROM (
  SELECT user, project, count(*) AS jobs, sum(state = 'failed') AS failed, 0.0 AS core_seconds
  FROM ended GROUP BY user, project
  UNION ALL
  SELECT user, project, 0, 0, sum(ran * cpus) FROM tried GROUP BY user, project
) GROUP BY user, project ORDER BY sum(core_seconds) DESC, sum(jobs) DESC, user, project LIMIT ?"""
_PEOPLE_COUNT = "SELECT count(*) FROM (SELECT 1 FROM ended GROUP BY user, project)"
_SPREAD = """
SELECT which, count(*), max(iif(place = (n * 50 + 99) / 100, value, NULL)),
       max(iif(place = (n * 95 + 99) / 100, value, NULL)), max(value), sum(value)
FROM (
  SELECT which, value, row_number() OVER (PARTITION BY which ORDER BY value) AS place,
         count(*) OVER (PARTITION BY which) AS n
  FROM ({})
) GROUP BY which"""
_MOST_COMMON = """
SELECT solver, {0} AS most FROM (
  SELECT solver, {0}, row_number() OVER (PARTITION BY solver ORDER BY count(*) DESC, {0}) AS place
  FROM tried WHERE {1} GROUP BY solver, {0}
) WHERE place = 1"""

_RAN = "last AND ran IS NOT NULL"
_STEADY = f"measured AND ran >= {STEADY_SECONDS} AND cpus > 0"
_WHOLE = "source = 'cgroup' AND rss > 0"
_LARGEST = "source IN ('wait4', 'sampled') AND rss > 0"


def usage(
    db: Path, since_us: int, until_us: int, steps: int, present: Present | None = None
) -> tuple[list[Row], list[Life]]:
    """How busy it was between two instants (UTC microseconds), and when a daemon was there.

    ``present`` is what a daemon that is there has not written yet; of a minute that was written meanwhile, or begun by
    the daemon before, the one that saw more of it counts. The rows are no longer than is good for so many ``steps``, or
    than they are kept. Raises ``StoreError``.
    """
    wanted = (until_us - since_us) / 1e6 / steps / ROWS_IN_STEP
    grain = next((grain for grain in _GRAINS if grain <= wanted), MINUTE)
    rows: list[Row] = []
    with _reading(db) as connection:
        connection.execute("BEGIN")  # one moment for all: hours are made of minutes meanwhile
        for span in (HOUR, MINUTE):
            found: Iterator[Row] = map(
                to_usage, connection.execute(_USAGE, (span, since_us - span * 1_000_000, until_us))
            )
            if present is not None and span == MINUTE:
                found = _fuller(merge(found, _within(present.rows, since_us, until_us), key=_start))
            rows += _joined(found, max(span, grain))
        lives = [Life(*row) for row in connection.execute(_LIVES, (since_us, until_us))]
    if present is not None and present.life.seen_us > since_us and present.life.began_us < until_us:
        lives.append(present.life)
    return sorted(rows, key=_start), lives


def _start(row: Row) -> int:
    return row.start_us


def _within(rows: Iterable[Row], since_us: int, until_us: int) -> list[Row]:
    found = (row for row in rows if since_us - row.span_seconds * 1_000_000 < row.start_us < until_us)
    return sorted(found, key=_start)


def _fuller(rows: Iterable[Row]) -> Iterator[Row]:
    """Of rows that begin together the one that saw most."""
    for _, few in groupby(rows, _start):
        yield max(few, key=lambda row: row.sums.seconds)


def _joined(rows: Iterable[Row], span: int) -> Iterator[Row]:
    """Rows in their order as ones of that span, but for what is not there of the last; one at a time is held."""
    long = span * 1_000_000
    for at, few in groupby(rows, lambda row: row.start_us // long):
        start_us, parts, ends_us = at * long, [], 0
        for row in few:
            parts.append(row.sums)
            ends_us = row.start_us + row.span_seconds * 1_000_000
        yield Row(start_us, (ends_us - start_us) // 1_000_000, merged(parts))


def ended(db: Path, since_us: int, until_us: int, is_over: Callable[[], bool] = lambda: False) -> Ended:
    """What became of the jobs that ended between two instants (UTC microseconds).

    Given up once ``is_over``. Raises ``StoreError``.
    """
    with _reading(db) as connection:
        connection.set_progress_handler(is_over, _STEPS_BETWEEN)
        execute = connection.execute
        execute(_TAKE_JOBS, {"since": since_us, "until": until_us, "message": MESSAGE_TOLD})
        execute(_TAKE_TRIES)
        states: dict[str, dict[State, int]] = {}
        for solver, state, count in execute(_STATES):
            states.setdefault(solver, {})[State(state)] = count
        failures: dict[str, list[FailureFigure]] = {}
        for solver, *told in execute(_FAILURES, (FAILURES_TOLD,)):
            failures.setdefault(solver, []).append(FailureFigure(*told))
        return Ended(
            states=states,
            tries={solver: Tries(*(number or 0 for number in told)) for solver, *told in execute(_TRIES)},
            run=_spread(connection, f"SELECT solver AS which, ran AS value FROM tried WHERE {_RAN}"),
            run_succeeded=_spread(
                connection, f"SELECT solver AS which, ran AS value FROM tried WHERE {_RAN} AND state = 'succeeded'"
            ),
            run_counts=_run_counts(connection),
            queue=_spread(connection, "SELECT solver AS which, queued AS value FROM ended WHERE queued IS NOT NULL"),
            cores=_common(connection, "cpus", "busy / ran", _STEADY),
            memory=_common(connection, "memory", "rss", _WHOLE),
            memory_largest=_common(connection, "memory", "rss", _LARGEST),
            failures=failures,
            people=[
                PersonFigures(user or None, project or None, jobs, failed, core_seconds or 0.0)
                for user, project, jobs, failed, core_seconds in execute(_PEOPLE, (PEOPLE_TOLD,))
            ],
            people_count=execute(_PEOPLE_COUNT).fetchone()[0],
        )


def _spread(connection: sqlite3.Connection, values: str) -> dict[str, Spread]:
    """By ``which``, how ``value`` is spread."""
    return {which: Spread(*numbers) for which, *numbers in connection.execute(_SPREAD.format(values))}


def _run_counts(connection: sqlite3.Connection) -> dict[str, tuple[int, ...]]:
    edges = [0.0, *RUN_EDGES, 1e300]
    counts = ", ".join(f"sum(ran >= {low!r} AND ran < {high!r})" for low, high in pairwise(edges))
    query = f"SELECT solver, {counts} FROM tried WHERE {_RAN} GROUP BY solver"
    return {solver: tuple(numbers) for solver, *numbers in connection.execute(query)}


def _common(connection: sqlite3.Connection, column: str, value: str, test: str) -> dict[str, Common]:
    """By solver, what most tries reserved of ``column``, and how the ``value`` of those is spread."""
    most = _MOST_COMMON.format(column, test)
    values = f"""
SELECT tried.solver AS which, {value} AS value
FROM tried JOIN ({most}) AS usual ON usual.solver = tried.solver AND usual.most IS tried.{column} WHERE {test}"""
    reserved = dict(connection.execute(most).fetchall())
    return {solver: Common(reserved[solver] or 0, spread) for solver, spread in _spread(connection, values).items()}


@contextmanager
def _reading(db: Path) -> Iterator[sqlite3.Connection]:
    with translated(db):
        uri = f"file:{quote(os.fsencode(db))}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None)) as connection:
            yield connection
