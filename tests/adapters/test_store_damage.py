"""A damaged database: refused, kept byte for byte with its log, and the way on is told."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from builders import NOON_US, make_spec
from solvisor.backup import back_up
from solvisor.errors import StoreDamaged
from solvisor.history import Filters, History
from solvisor.model import Job, State
from solvisor.store import Store

PAGE = 4096
Harm = Callable[[bytearray], bytearray]


def jobs(first: int, last: int) -> list[Job]:
    return [Job(f"beam-{n:015d}", n, State.QUEUED, make_spec(f"beam-{n}"), NOON_US + n) for n in range(first, last)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database with some hundred jobs, closed."""
    path = tmp_path / "solvisor.db"
    with contextlib.closing(Store.open(path)) as store:
        store.record(jobs(1, 300))
    return path


def with_log(path: Path) -> Path:
    """The same as a killed daemon leaves it: some commits stand in the log beside it."""
    with contextlib.closing(Store.open(path)) as store:
        store.record(jobs(300, 400))
        store.harden()
        for name in (path.name, f"{path.name}-wal"):
            shutil.copy(path.with_name(name), path.with_name(f"kept-{name}"))
    for name in (path.name, f"{path.name}-wal"):
        path.with_name(f"kept-{name}").rename(path.with_name(name))
    return path


def pages_of(path: Path, name: str) -> list[int]:
    """The numbers of two pages that hold a table or index: its root, and the first one below."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    page = path.read_bytes()[(root - 1) * PAGE :][:PAGE]
    assert page[0] in (2, 5), f"{name} is larger than one page"
    cell = int.from_bytes(page[12:14], "big")
    return [root, int.from_bytes(page[cell : cell + 4], "big")]


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.endswith("-shm")}


def overwritten(at: int, new: bytes) -> Harm:
    def harm(data: bytearray) -> bytearray:
        data[at : at + len(new)] = new
        return data

    return harm


HARMS: dict[str, Harm] = {
    "the magic of the header": overwritten(0, b"SQLITE"),
    "the page size": overwritten(16, b"\x00\x03"),
    "the whole header": overwritten(0, bytes(100)),
    "the page of the schema": overwritten(100, b"\xff" * 400),
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut within a page": lambda data: data[: len(data) - PAGE - 100],
    "cut to its first bytes": lambda data: data[:50],
    "some other file": lambda _: bytearray(b"this is not a database" * 500),
    "all zeroes": lambda data: bytearray(len(data)),
}


def must_be_refused(path: Path) -> str:
    before = snapshot(path.parent)
    with pytest.raises(StoreDamaged) as caught:
        Store.open(path, expected=True)
    assert snapshot(path.parent) == before, "what may be rescued is kept"
    assert not caught.value.retryable
    assert caught.value.exit_status == 2
    text = str(caught.value)
    assert text.startswith(f"{path} is damaged (")
    assert "  with a backup:  solvisor rebuild --backup FILE\n  without one:    solvisor rebuild\n" in text
    return text


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS.keys())
def test_fault_32_a_damaged_file_is_kept_and_the_steps_are_told(path: Path, harm: Harm) -> None:
    path.write_bytes(harm(bytearray(path.read_bytes())))
    must_be_refused(path)


@pytest.mark.parametrize("what", ["jobs", "sqlite_autoindex_jobs_1"])
@pytest.mark.parametrize("place", ["its root", "a leaf"])
def test_fault_32_a_page_of_a_tree_that_was_overwritten_is_found(path: Path, what: str, place: str) -> None:
    page = pages_of(path, what)[0 if place == "its root" else 1]
    path.write_bytes(overwritten((page - 1) * PAGE + 8, b"\xa5" * 600)(bytearray(path.read_bytes())))
    must_be_refused(path)


def test_fault_32_damage_beneath_a_log_leaves_the_log_where_it_is(path: Path) -> None:
    """A connection that could write would, when it is closed, carry the log over and remove it."""
    page = pages_of(path, "jobs")[1]
    with_log(path)
    assert path.with_name(f"{path.name}-wal").stat().st_size > PAGE
    path.write_bytes(overwritten((page - 1) * PAGE, b"\xa5" * 600)(bytearray(path.read_bytes())))
    must_be_refused(path)


@pytest.mark.parametrize("at", [0, 40, 5 * (PAGE + 24) + 500], ids=["its header", "its first frame", "a later frame"])
def test_fault_32_a_log_with_flipped_bytes_gives_what_stands_before_them(path: Path, at: int) -> None:
    """It cannot be told from one that was torn by a power cut: what comes after the first bad frame never was."""
    with_log(path)
    log = path.with_name(f"{path.name}-wal")
    log.write_bytes(overwritten(at, os.urandom(64))(bytearray(log.read_bytes())))
    with contextlib.closing(Store.open(path)) as store:
        assert store.live_jobs() == jobs(1, 300)


@pytest.mark.parametrize("left", ["missing", "empty"])
def test_fault_32_no_database_beside_results_is_damage_too(path: Path, left: str) -> None:
    path.unlink()
    if left == "empty":
        path.touch()
    text = must_be_refused(path)
    assert ("it is not there" if left == "missing" else "it is empty") in text
    with contextlib.closing(Store.open(path)) as store:
        assert store.live_jobs() == [], "a new home has none, and one that was killed before its first commit"


def test_fault_32_what_is_damaged_while_it_is_in_use_is_told_alike(path: Path) -> None:
    root, leaf = pages_of(path, "jobs")
    store, history = Store.open(path), History.open(path)
    with contextlib.closing(store), contextlib.closing(history):
        with path.open("r+b") as file:
            for page in (root, leaf):
                file.seek((page - 1) * PAGE)
                file.write(b"\xa5" * PAGE)
        with pytest.raises(StoreDamaged, match="solvisor rebuild"):
            history.page(Filters(), None, 100)
        with pytest.raises(StoreDamaged, match="solvisor rebuild"):
            store.record([replace(job, cancel=True) for job in jobs(1, 300)])


def test_fault_32_a_damaged_database_is_no_backup(path: Path, tmp_path: Path) -> None:
    page = pages_of(path, "sqlite_autoindex_jobs_1")[1]
    path.write_bytes(overwritten((page - 1) * PAGE + 100, b"\xa5" * 2000)(bytearray(path.read_bytes())))
    target = tmp_path / "backup.db"
    with pytest.raises(StoreDamaged, match=f"^{path} is damaged"):
        back_up(path, target)
    assert [p.name for p in tmp_path.iterdir()] == [path.name], "no half of a backup is left"
