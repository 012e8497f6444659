"""Where things lie: the home, the inbox, the disk beneath, the database.

Rules: only what is ours is tried out (files that can be moved, a disk that is measured), and what that takes is
removed at once; another user's home is looked at and no more. This module must not know solvers or what they leave.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import sqlite3
import stat
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from solvisor import schema
from solvisor.backup import open_still
from solvisor.diskwatch import look
from solvisor.errors import HomeError
from solvisor.home import Home, filesystem_type
from solvisor.model import TARGETS
from solvisor.names import is_job_id
from solvisor.spool import removal
from solvisor_service.cli.text import size
from solvisor_service.doctor.finding import Finding, Subject, fault, from_error, note, ok, warning

if sys.platform == "win32":
    raise ImportError("solvisor_service.doctor.places reads what only Linux has and cannot be used on Windows")

FREE_NOTHING: Final = 100 << 20
INODES_LITTLE: Final = 10_000
FSYNC_SLOW_SECONDS: Final = 0.1
DATABASE_SECONDS: Final = 20.0
DEEP_SECONDS: Final = 600.0
REBUILD: Final = "solvisor rebuild; with a backup: solvisor rebuild --backup FILE"

_FSYNCS: Final = 5
_KEPT: Final = "SELECT id FROM jobs WHERE finished_us IS NOT NULL AND removed_us IS NULL"
_COUNT: Final = "SELECT count(*), count(*) FILTER (WHERE published = 0) FROM jobs"
_PRIVATE: Final = {"work": 0o750, "run": 0o750, "state": 0o700}
"""The folders that are not everybody's, and what may be granted on each."""


def home(subject: Subject) -> Iterator[Finding]:
    """Is it there, whose is it, does it lie on a disk of this machine, can files be moved between its folders."""
    layout = subject.layout
    try:
        found = layout.root.stat()
    except (FileNotFoundError, NotADirectoryError):
        yield fault(f"there is no {layout.root}", f"run: solvisor init {subject.option}")
        return
    owner = user_name(found.st_uid)
    if not os.access(layout.root, os.R_OK | os.X_OK):
        yield _closed(layout.root, owner)
        return
    kind = filesystem_type(layout.root, subject.mounts)
    troubles = [*_network(layout, kind, subject.mounts), *_folders(layout, found.st_uid)]
    yield from troubles
    if troubles:
        return
    text = f"{layout.root}, of {owner}, on {kind or 'an unknown file system'}"
    missing = [folder.name for folder in _own_folders(layout) if not folder.is_dir()]
    if missing:
        yield ok(f"{text}; its folders come with the first start")
        return
    tried = "files move between its folders"
    if found.st_uid == os.geteuid():
        try:
            layout.prepare(subject.mounts)
        except HomeError as error:
            yield from_error(error)
            return
    else:
        tried = f"moving files was not tried, for it is {owner}'s"
    yield ok(f"{text}; {tried}")


def _closed(path: Path, owner: str) -> Finding:
    return note(f"{path} is closed to {user_name(os.geteuid())}", f"look as its user: sudo -u {owner} solvisor doctor")


def _network(layout: Home, kind: str | None, mounts: Path) -> Iterator[Finding]:
    # Some of what is in user space is a local disk: those that are none show when the folders are tried out.
    if kind is None or kind.startswith("fuse") or Home(layout.root, layout.root).inbox_sees_all_writers(mounts):
        return
    yield fault(
        f"{layout.root} lies on a network file system ({kind}), where neither locks nor the database are safe",
        "choose a home on a local disk; only the inbox may lie on a share ([inbox] path)",
    )


def _folders(layout: Home, owner: int) -> Iterator[Finding]:
    """Folders of somebody else, as a start by the wrong user leaves them, and folders that are open to too many."""
    for folder in _own_folders(layout):
        with contextlib.suppress(FileNotFoundError):
            found = folder.stat()
            if found.st_uid != owner:
                yield fault(
                    f"{folder} belongs to {user_name(found.st_uid)}, the home to {user_name(owner)}",
                    f"chown -R {user_name(owner)} {folder}",
                )
            granted = _PRIVATE.get(folder.name, 0o777)
            if found.st_mode & 0o777 & ~granted:
                mode = stat.S_IMODE(found.st_mode)
                yield warning(f"{folder} has mode {mode:04o}, open to more than need it", f"chmod {granted:o} {folder}")


def _own_folders(layout: Home) -> list[Path]:
    return [layout.work, layout.done, layout.failed, layout.rejected, layout.run, layout.state]


def inbox(subject: Subject) -> Iterator[Finding]:
    """Where users drop files: is it there, who may write, does the daemon see who still writes."""
    layout = subject.layout
    try:
        found = layout.inbox.stat()
    except (FileNotFoundError, NotADirectoryError):
        if layout.inbox.is_relative_to(layout.root):
            yield note(f"{layout.inbox} is not there yet; it comes with the first start")
        else:
            yield fault(
                f"there is no {layout.inbox}, which [inbox] path names", "mount it, make it, or correct the path"
            )
        return
    kind = filesystem_type(layout.inbox, subject.mounts)
    whose, mode = user_name(found.st_uid), found.st_mode
    if mode & stat.S_IWOTH:
        writers = "everybody may drop files"
        if not mode & stat.S_ISVTX:
            yield warning(
                f"{layout.inbox}: everybody may also rename and remove what others dropped", f"chmod +t {layout.inbox}"
            )
    elif mode & stat.S_IWGRP:
        writers = f"{whose} and the group {_group_name(found.st_gid)} may drop files"
    else:
        writers = f"only {whose} may drop files"
    text = f"{layout.inbox}: {writers}"
    if kind is not None and not layout.inbox_sees_all_writers(subject.mounts):
        yield note(f"{text}; on {kind}, where a file counts as complete only after 5 s without a change")
    elif not os.access(layout.inbox, os.W_OK | os.X_OK):
        yield note(text, "to drop files as this user: let the daemon's user add you to that group")
    else:
        yield ok(text)


def disk(subject: Subject) -> Iterator[Finding]:
    """Room for results, and how long the disk takes to make something durable."""
    place = subject.home
    while not place.exists():
        place = place.parent
    found = look(place, subject.config.daemon.disk_reserve if subject.config is not None else "auto")
    free = found.free_bytes
    text = f"{size(free)} free"
    if found.total_files:
        text += f", {found.free_files:,} more files"
    mend = "have old results removed ([retention] in solvisor.toml), or give the home a larger disk"
    if free < FREE_NOTHING:
        yield fault(f"{text}: the disk is full", mend)
    elif found.no_start is not None:
        why, _, todo = found.no_start.partition(": ")
        yield fault(f"no job starts: {why}", todo)
    elif found.is_low:
        yield warning(f"{text}: little room for results", mend)
    elif found.total_files and found.free_files < INODES_LITTLE:
        yield warning(f"{text}: results with many files will not fit", mend)
    else:
        yield ok(text)
    if place == subject.home and os.access(place, os.W_OK | os.X_OK):
        yield _fsync_finding(place)


def _fsync_finding(folder: Path) -> Finding:
    try:
        usual = statistics.median(_fsync_seconds(folder))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        text = "how long it takes to make a file durable cannot be measured while the disk is full"
        return note(text, "make room, then look again")
    text = f"making a small file durable takes {usual * 1000:.1f} ms"
    if usual > FSYNC_SLOW_SECONDS:
        return warning(f"{text}; every job waits for several of these", "put the home on a faster disk")
    return ok(text)


def _fsync_seconds(folder: Path) -> list[float]:
    seconds = []
    with tempfile.TemporaryFile(dir=folder, prefix=".solvisor-doctor-", buffering=0) as file:
        for _ in range(_FSYNCS):
            file.write(b"\0" * 4096)
            begun = time.monotonic()
            os.fsync(file.fileno())
            seconds.append(time.monotonic() - begun)
    return seconds


def database(subject: Subject) -> Iterator[Finding]:
    """Is it whole. Beside a daemon it is only opened: a long read would keep its log from being cut."""
    path = subject.layout.db
    try:
        length = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        if removal.holds_results(subject.layout):
            yield fault(f"there is no {path}, but there are results", f"run: {REBUILD}")
        else:
            yield note("there is none yet; it comes with the first start")
        return
    held = subject.holder is not None
    mend = f"stop the daemon, then run: {REBUILD}" if held else f"run: {REBUILD}"
    examined = not held or subject.deep
    seconds = DEEP_SECONDS if subject.deep else DATABASE_SECONDS
    problem = "ok"
    try:
        with contextlib.closing(open_still(path)[0]) as connection:
            deadline = time.monotonic() + seconds
            connection.set_progress_handler(lambda: time.monotonic() > deadline, 100_000)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            jobs, unfinished = connection.execute(_COUNT).fetchone()
            if examined:
                look = "integrity_check" if subject.deep else "quick_check"
                problem = connection.execute(f"PRAGMA {look}(1)").fetchone()[0]
            kept = {row[0] for row in connection.execute(_KEPT)} if subject.deep and version == schema.VERSION else None
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            yield note(f"{size(length)}; not examined to the end within {seconds:g} s")
            return
        problem = str(error)
    if problem != "ok":
        yield fault(f"{path} is damaged ({problem})", mend)
        return
    if version > schema.VERSION:
        yield fault(
            f"{path} has schema version {version}, this Solvisor knows {schema.VERSION} at most",
            "use the Solvisor that wrote it, or go back to a backup: solvisor rebuild --backup FILE",
        )
        return
    how_well = ("whole, every index too" if subject.deep else "whole") if examined else "opens beside the daemon"
    yield ok(f"{how_well}: {jobs:,} jobs, {unfinished:,} of them not finished, {size(length)}")
    if kept is not None:
        yield from _results(subject.layout, kept)


def _results(layout: Home, kept: set[str]) -> Iterator[Finding]:
    """Whether rows and results are of each other; ``kept`` are the ids of jobs that should have a result."""
    there: set[str] = set()
    for target in dict.fromkeys(TARGETS.values()):
        with contextlib.suppress(FileNotFoundError):
            there.update(filter(is_job_id, os.listdir(layout.root / target)))
    unknown, gone = there - kept, kept - there
    if unknown:
        yield warning(
            f"{len(unknown):,} results have no finished job in the database, such as {min(unknown)}",
            "stop the daemon, then run: solvisor rebuild",
        )
    if gone:
        yield note(f"the folders of {len(gone):,} finished jobs were removed by somebody, such as {min(gone)}")


def user_name(uid: int) -> str:
    """The name of a user, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
