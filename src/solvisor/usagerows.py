"""The rows of how busy it was, and of the times within which a daemon was there.

Rules: whoever writes does it within a transaction of ``store``, of which this is a part. It must not know jobs, nor
what is summed.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from .rows import encode, to_usage
from .usage import HOUR, MINUTE, Life, Row, merged

_PUT_USAGE = "INSERT OR REPLACE INTO usage (span_seconds, start_us, sums) VALUES (?, ?, ?)"
_USAGE = "SELECT start_us, span_seconds, sums FROM usage WHERE span_seconds = ? AND start_us >= ? AND start_us < ?"
_FIRST_USAGE = "SELECT min(start_us) FROM usage WHERE span_seconds = ?"
_DROP_USAGE = "DELETE FROM usage WHERE span_seconds = ? AND start_us >= ? AND start_us < ?"
_PUT_LIFE = """
INSERT INTO lives (began_us, seen_us) VALUES (?, ?)
ON CONFLICT (began_us) DO UPDATE SET seen_us = max(seen_us, excluded.seen_us)"""
_LAST_LIFE = "SELECT began_us, seen_us FROM lives ORDER BY seen_us DESC LIMIT 1"
_DROP_LIVES = """
DELETE FROM lives WHERE began_us IN (SELECT began_us FROM lives WHERE seen_us < ? ORDER BY began_us LIMIT 100)"""

_HOUR_US = HOUR * 1_000_000


def last_life(connection: sqlite3.Connection) -> Life | None:
    """The latest time within which a daemon was there, as far as it was noted."""
    row = connection.execute(_LAST_LIFE).fetchone()
    return Life(*row) if row else None


def note(connection: sqlite3.Connection, rows: Iterable[Row], lives: Iterable[Life]) -> None:
    """Add to how busy it was, and to when a daemon was there."""
    for row in rows:
        _add(connection, row)
    connection.executemany(_PUT_LIFE, lives)


def thin(connection: sqlite3.Connection, minutes_before_us: int, hours_before_us: int) -> None:
    """One small step of forgetting: the oldest minutes before then become an hour, the oldest hours go."""
    first = connection.execute(_FIRST_USAGE, (MINUTE,)).fetchone()[0]
    if first is not None and first < minutes_before_us:
        start = first - first % _HOUR_US
        minutes = _within(connection, MINUTE, start, start + _HOUR_US)
        _add(connection, Row(start, HOUR, merged(row.sums for row in minutes)))
        connection.execute(_DROP_USAGE, (MINUTE, start, start + _HOUR_US))
    first = connection.execute(_FIRST_USAGE, (HOUR,)).fetchone()[0]
    if first is not None and first < hours_before_us:
        connection.execute(_DROP_USAGE, (HOUR, first, min(first + 24 * _HOUR_US, hours_before_us)))
    connection.execute(_DROP_LIVES, (hours_before_us,))


def _add(connection: sqlite3.Connection, row: Row) -> None:
    """Minutes that a clock called the same, as it was set back, share a row."""
    there = _within(connection, row.span_seconds, row.start_us, row.start_us + 1)
    whole = merged([*(old.sums for old in there), row.sums]) if there else row.sums
    connection.execute(_PUT_USAGE, (row.span_seconds, row.start_us, encode(whole)))


def _within(connection: sqlite3.Connection, span_seconds: int, since_us: int, until_us: int) -> list[Row]:
    return [to_usage(row) for row in connection.execute(_USAGE, (span_seconds, since_us, until_us))]
