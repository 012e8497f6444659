"""``solvisor backup``: beside a daemon that writes, without one, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from builders import NOON_US, make_spec
from cli_kit import Run, command_line
from solvisor.backup import BackupError, back_up
from solvisor.home import Home
from solvisor.model import Job, State
from solvisor.store import Store


def jobs(first: int, last: int) -> list[Job]:
    return [Job(f"beam-{n:015d}", n, State.QUEUED, make_spec(f"beam-{n}"), NOON_US + n) for n in range(first, last)]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.prepare()
    return home


@pytest.fixture
def store(home: Home) -> Iterator[Store]:
    with contextlib.closing(Store.open(home.db)) as store:
        store.record(jobs(1, 101))
        yield store


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    return command_line(tmp_path, capfdbinary, monkeypatch)


def count(path: Path) -> int:
    """Jobs in a copy, which must be one whole and plain file."""
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        jobs: int = connection.execute("SELECT count(*) FROM jobs").fetchone()[0]
        return jobs


def test_what_is_recorded_is_in_the_copy_although_it_is_in_the_log_only(store: Store, home: Home, run: Run) -> None:
    result = run("backup", "saved.db")
    assert (result.status, result.err) == (0, "")
    saved = Path("saved.db").absolute()
    assert result.out == f"{saved}  100 jobs, {result.out.split(', ')[1]}, whole\n"
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
    assert sorted(os.listdir()) == ["home", "saved.db"]
    assert count(saved) == 100


def test_a_home_without_a_daemon_is_left_as_it_was(home: Home, run: Run) -> None:
    with contextlib.closing(Store.open(home.db)) as store:
        store.record(jobs(1, 4))
    before = sorted(os.listdir(home.state))
    result = run("backup", "saved.db", "--json")
    assert '"jobs": 3' in result.out
    assert sorted(os.listdir(home.state)) == before, "another user's file beside it would be in the daemon's way"


def test_a_file_that_is_there_is_replaced_only_if_asked_for(store: Store, run: Run) -> None:
    Path("saved.db").write_text("precious")
    result = run("backup", "saved.db")
    assert result.status == 1
    assert "is there already" in result.err
    assert Path("saved.db").read_text() == "precious"
    assert run("backup", "--force", "saved.db").status == 0
    assert count(Path("saved.db").absolute()) == 100


def test_a_place_that_cannot_be_written_is_told(store: Store, run: Run) -> None:
    result = run("backup", "nowhere/saved.db")
    assert result.status == 1
    assert "nowhere" in result.err
    assert "No such file or directory" in result.err


def test_a_home_without_a_database_has_no_backup(home: Home, run: Run) -> None:
    result = run("backup", "saved.db")
    assert result.status == 2
    assert "has no database" in result.err
    assert not Path("saved.db").exists()


def test_two_at_once_make_one(store: Store, home: Home, tmp_path: Path) -> None:
    target = tmp_path / "saved.db"
    errors: list[BaseException] = []

    def make() -> None:
        try:
            back_up(home.db, target)
        except BackupError as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert count(target) == 100
    assert sorted(os.listdir(tmp_path)) == ["home", "saved.db"]


def test_a_copy_beside_a_writer_is_of_one_moment(store: Store, home: Home, tmp_path: Path) -> None:
    """Every transaction inserts ten jobs; what is copied meanwhile has all ten of each or none."""
    over = threading.Event()

    def write() -> None:
        for n in range(101, 3000, 10):
            store.record(jobs(n, n + 10))
            if over.is_set():
                return

    writer = threading.Thread(target=write)
    writer.start()
    try:
        counts = [back_up(home.db, tmp_path / "saved.db", replace=True).jobs for _ in range(5)]
    finally:
        over.set()
        writer.join()
    assert all(number % 10 == 0 for number in counts)
    assert counts == sorted(counts)
    assert count(tmp_path / "saved.db") == counts[-1]


def test_a_full_disk_leaves_nothing_of_it(store: Store, home: Home, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20k", "tmpfs", small], check=True)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "solvisor_service.cli", "backup", "--home", home.root, small / "saved.db"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 75
        assert "no backup of" in done.stderr
        assert "full" in done.stderr
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)
