"""A whole and proven copy of the database in one file, taken beside a daemon that writes or where none runs.

Rules: the original is only read, and nothing is left beside it; the copy gets its name when it is complete, examined
and durable. All of it blocks. This module must not know what the rows mean.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from .errors import SolvisorError, StoreUnavailable
from .rows import damaged, is_damage, translated

_BESIDE = ("", "-wal", "-shm", "-journal")


class BackupError(SolvisorError):
    """There is no backup, and nothing was changed."""

    code = "backup"


class Backup(NamedTuple):
    """A copy that was made: how many jobs it knows, and its size."""

    path: Path
    jobs: int
    size_bytes: int


def back_up(db: Path, target: Path, *, replace: bool = False) -> Backup:
    """Copy the database ``db`` to the file ``target``, readable by its owner alone, as it is at one moment.

    Raises ``BackupError`` if ``target`` is there already (unless ``replace``), ``StoreDamaged`` if what was copied is
    not whole, ``StoreError``, ``OSError``.
    """
    if not replace and os.path.lexists(target):
        raise BackupError(f"{target} is there already, and stays as it is; name another file, or replace it: --force")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        jobs = _copied(db, part)
        make_durable(part)
        size = part.stat().st_size
        if replace:
            os.replace(part, target)
        else:
            os.link(part, target)  # never in the place of another file, however late it came
    except FileExistsError:
        raise BackupError(f"{target} was made by somebody else meanwhile; name another file") from None
    finally:
        for beside in _BESIDE:  # on a full disk SQLite leaves them there
            part.with_name(part.name + beside).unlink(missing_ok=True)
    make_durable(target.parent)
    return Backup(target, jobs, size)


def open_still(db: Path) -> tuple[sqlite3.Connection, bool]:
    """A connection that reads and makes nothing beside the file; whether it takes for granted that nobody writes."""
    still = not db.with_name(f"{db.name}-wal").exists()
    uri = f"file:{quote(os.fsencode(db))}?mode=ro{'&immutable=1' if still else ''}"
    return sqlite3.connect(uri, uri=True, timeout=5.0, isolation_level=None), still


def _copied(db: Path, part: Path) -> int:
    """Copy and examine; the number of jobs."""
    while True:
        before = _stamp(db)
        with translated(db):
            source, still = open_still(db)
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(part, isolation_level=None)) as copy:
            try:
                source.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")  # one plain file, also when it is opened
                problem = copy.execute("PRAGMA integrity_check(1)").fetchone()[0]
                jobs: int = copy.execute("SELECT count(*) FROM jobs").fetchone()[0]
            except sqlite3.Error as error:
                if is_damage(error):
                    raise damaged(db, str(error)) from error
                raise StoreUnavailable(f"no backup of {db} could be written to {part.parent}: {error}") from error
        if still and (_stamp(db) != before or db.with_name(f"{db.name}-wal").exists()):
            continue  # a daemon was started meanwhile: beside that one it is read in another way
        if problem != "ok":
            raise damaged(db, problem)
        return jobs


def _stamp(db: Path) -> tuple[int, int, int]:
    found = db.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def make_durable(path: Path) -> None:
    """Have a file or folder on the disk. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
