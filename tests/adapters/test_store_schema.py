"""Yesterday's databases and manifests: the oldest that counts is brought up to date, whole or not at all."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import pytest

from disk_kit import tmpfs
from solvisor import __version__, schema
from solvisor.errors import StoreError, StoreUnavailable
from solvisor.history import Filters, History
from solvisor.manifest import Manifest
from solvisor.model import TERMINAL, Cause, State
from solvisor.store import Store

DATA = Path(__file__).parents[1] / "data"
LIVE = 10
PUBLISHED = (
    4 + len(["spawn", "exit", "signal", "timeout", "stalled", "oom", "check", "server", "lost", "unkillable"]) + 1
)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A database of schema version 3, with a job in every state."""
    return made_old(tmp_path / "solvisor.db")


def made_old(path: Path) -> Path:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript((DATA / "db" / "schema-3.sql").read_text())
    return path


def rows_of(path: Path) -> dict[str, Any]:
    """All rows by table, as far as both versions have the columns; wherever tables of solvers and manifests stand."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        new = {"size_bytes", "removed_us", "priority", "solver_table"}
        apart = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'manifests'").fetchone() is not None
        bodies = dict(connection.execute("SELECT id, body FROM solver_tables").fetchall() if apart else [])
        manifests = dict(connection.execute("SELECT seq, body FROM manifests").fetchall() if apart else [])
        ids = dict(connection.execute("SELECT seq, id FROM jobs").fetchall())

        def seen(row: dict[str, Any]) -> dict[str, Any]:
            if "settings" in row:
                settings = row["settings"] = msgspec.json.decode(row["settings"])
                if apart:
                    assert settings["table"] == {}
                    settings["table"] = msgspec.json.decode(bodies[row["solver_table"]])
                    row["job_id"] = ids[row.pop("job")]
            elif apart and "seq" in row:
                row["manifest"] = manifests.get(row["seq"])
            return {k: v for k, v in row.items() if k not in new}

        rows = {
            table: [seen(dict(row)) for row in connection.execute(f"SELECT * FROM {table}")]
            for table in ("batches", "pauses", "jobs", "attempts")
        }
        rows["attempts"].sort(key=itemgetter("job_id", "n"))
        return rows


def version_of(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        return version


def looks(path: Path) -> dict[str, Any]:
    """Tables, columns and indexes."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_schema ORDER BY name")]
        return {
            name: connection.execute(f"PRAGMA table_xinfo({name})").fetchall()
            + connection.execute(f"PRAGMA index_xinfo({name})").fetchall()
            for name in names
        }


def test_fault_67_an_older_database_is_brought_up_to_date_with_every_row(old: Path) -> None:
    before = rows_of(old)
    assert len(before["jobs"]) == LIVE + PUBLISHED
    with contextlib.closing(Store.open(old)) as store:
        assert store.migrated is not None
        assert store.migrated.version == 3
        live = store.live_jobs()
        assert len(live) == LIVE
        assert len(store.pauses()) == 2
        assert len(store.live_batches()) == 2
        store.record([], [job.id for job in live if job.state in TERMINAL])
        with contextlib.closing(History.open(old)) as history:
            page = history.page(Filters(), None, 1000).jobs
            assert {job.state for job in page} == set(State)
            assert {job.cause for job in page} == {None, *Cause}
            assert len(history.kept(TERMINAL, None, 1000)) == PUBLISHED + 5
            assert history.depended_on()[0] == {live[0].id}
    after = rows_of(old)
    assert [row["id"] for row in after["jobs"]] == [row["id"] for row in before["jobs"]]
    assert after["attempts"] == before["attempts"]
    with contextlib.closing(sqlite3.connect(old)) as connection:
        counts = "SELECT count(*), count(DISTINCT solver_table), (SELECT count(*) FROM solver_tables) FROM attempts"
        attempts, used, tables = connection.execute(counts).fetchone()
    assert used == tables < attempts, "each stands once"
    assert version_of(old) == schema.VERSION
    with contextlib.closing(Store.open(old)) as store:
        assert store.migrated is None, "once is enough"


def test_fault_67_the_copy_made_before_is_the_old_database(old: Path) -> None:
    before = rows_of(old)
    with contextlib.closing(Store.open(old)) as store:
        assert store.migrated is not None
        backup = store.migrated.backup
    assert re.fullmatch(r"solvisor-v3-\d{8}T\d{6}Z\.db", backup.name)
    assert backup.parent == old.parent / "backup"
    assert stat.S_IMODE(backup.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [p.name for p in backup.parent.iterdir()] == [backup.name]
    assert rows_of(backup) == before
    assert version_of(backup) == 3


def test_a_new_database_and_one_brought_up_to_date_are_alike(old: Path, tmp_path: Path) -> None:
    Store.open(old).close()
    Store.open(tmp_path / "new.db").close()
    assert looks(old) == looks(tmp_path / "new.db")


def test_fault_67_without_a_copy_nothing_is_changed(old: Path, tmp_path: Path) -> None:
    (tmp_path / "backup").write_text("in the way")
    with pytest.raises(StoreUnavailable, match="no copy could be made"):
        Store.open(old)
    assert version_of(old) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_fault_67_without_room_to_bring_it_up_to_date_no_copy_is_left(tmp_path: Path) -> None:
    """With a little more room each time: first for no copy, then for a copy alone, then for all."""
    made_old(tmp_path / "old.db")
    refusals: list[bool] = []
    for pages in itertools.count(0):
        with tmpfs(tmp_path / "disk", "size=2m") as disk:
            old = disk.path / "solvisor.db"
            shutil.copy(tmp_path / "old.db", old)
            disk.fill(leave=old.stat().st_size + 4096 * pages)
            try:
                Store.open(old).close()
            except StoreUnavailable as error:
                refusals.append("no backup of" in str(error))
                assert list((disk.path / "backup").glob("*")) == []
                assert version_of(old) == 3
            else:
                break
    assert set(refusals) == {True, False}


@pytest.mark.parametrize(
    ("calls", "whens"),
    [
        pytest.param("pwrite64", range(2, 60, 3), id="many writes", marks=pytest.mark.slow),
        pytest.param("fsync,fdatasync", range(1, 20), id="all fsyncs"),
    ],
)
def test_fault_67_a_kill_while_it_is_brought_up_to_date_leaves_it_old_or_new(
    tmp_path: Path, calls: str, whens: range
) -> None:
    """``kill -9`` within a system call of SQLite, at one after the other."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    script = "import sys; from pathlib import Path; from solvisor.store import Store; Store.open(Path(sys.argv[1]))"
    seen = set()
    for when in whens:
        folder = tmp_path / str(when)
        folder.mkdir()
        path = made_old(folder / "solvisor.db")
        before = rows_of(path)
        killed = [strace, "-f", "-qq", "-o", "/dev/null", "-e", f"trace={calls}"]
        killed += ["-e", f"inject={calls}:signal=KILL:when={when}"]
        done = subprocess.run([*killed, sys.executable, "-c", script, str(path)], capture_output=True, text=True)
        if "ptrace" in done.stderr:
            pytest.skip(f"strace cannot trace here: {done.stderr.strip()}")
        with contextlib.closing(Store.open(path)) as store:
            seen.add((done.returncode, store.migrated is not None))
        assert rows_of(path) == before, f"killed at {calls} number {when}"
        assert version_of(path) == schema.VERSION
        for backup in (folder / "backup").glob("solvisor-v*.db"):
            assert rows_of(backup) == before
        if done.returncode == 0:
            break
    assert (-signal.SIGKILL, True) in seen, "killed before the commit, and brought up to date in the second life"


@pytest.mark.parametrize("prepare", ["PRAGMA user_version = 99", "CREATE TABLE other (x)"])
def test_fault_67_a_newer_database_is_refused_and_kept(tmp_path: Path, prepare: str) -> None:
    path = tmp_path / "solvisor.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE some (x)")
        connection.execute(prepare)
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="start the Solvisor that wrote it") as caught:
        Store.open(path)
    text = str(caught.value)
    version = 99 if "99" in prepare else 0
    assert f"has schema version {version}, and Solvisor {__version__} knows {schema.VERSION} at most" in text
    assert "solvisor rebuild --backup FILE" in text
    assert caught.value.exit_status == 2
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    with pytest.raises(StoreError, match="let its daemon bring it up to date, or use the Solvisor that wrote it"):
        History.open(path)


def test_fault_67_a_database_that_was_never_released_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "solvisor.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 1")
        connection.execute("CREATE TABLE jobs (id)")
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"written by an earlier Solvisor .* choose a new home"):
        Store.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("sample", sorted((DATA / "manifests" / "2026-11").iterdir()), ids=lambda path: path.stem)
def test_fault_67_a_manifest_of_yesterday_can_be_read(sample: Path) -> None:
    manifest = msgspec.json.decode(sample.read_bytes(), type=Manifest)
    assert manifest.state == sample.stem
    assert manifest.schema == 1
