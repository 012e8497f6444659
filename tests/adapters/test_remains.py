"""What a try left: what is read of it and what is not, what is synced and what need not be."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fsync_kit import fsync_by
from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.spool import Results, Survey, Syncs, TooMuch, files, remains
from waiting import wait_until

JOB = "beam-0123456789abcde"
EMPTY = hashlib.sha256(b"").hexdigest()


def fact(path: str, data: bytes) -> FileFact:
    return FileFact(path, len(data), hashlib.sha256(data).hexdigest())


class Try:
    """One job of one home, and what is done with it; ``since_us`` is when its input was known."""

    def __init__(self, root: Path) -> None:
        self.home = Home.at(root / "home")
        self.home.prepare()
        self.folder = self.home.work / JOB
        self.input = self.folder / "input" / "beam.inp"
        self.copy = self.folder / "output" / "beam.inp"
        self.input.parent.mkdir(parents=True)
        self.input.write_bytes(b"12345678")
        self.inputs: Sequence[FileFact] = (fact("input/beam.inp", b"12345678"),)
        self.results = Results(self.home)
        self.read: list[str] = []

    def know(self) -> None:
        """Let so much time pass that every change from here on shows."""
        wait_until(lambda: self.age(self.input) > 3 * remains.CLOCK_GRAIN_NS, "its times lie behind")
        self.since_us = time.time_ns() // 1000

    def age(self, path: Path) -> int:
        return time.time_ns() - path.stat().st_ctime_ns

    def stage(self) -> None:
        self.results.stage(JOB, 1)

    def survey(self, most: float = float("inf")) -> Survey:
        self.read.clear()
        with self.results.remains(JOB, self.inputs, self.since_us, most) as left:
            survey = left.survey()
            self.altered = left.altered()
        return survey

    def keep(self) -> Survey:
        with Syncs() as syncs, self.results.remains(JOB, self.inputs, self.since_us) as left:
            survey = left.survey()
            left.keep(survey, syncs)
        return survey


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Try:
    left = Try(tmp_path)
    hash_file = files.hash_file

    def noted(name: str, *more: Any, **named: Any) -> tuple[int, str]:
        left.read.append(name)
        return hash_file(name, *more, **named)

    monkeypatch.setattr(files, "hash_file", noted)
    return left


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> set[int]:
    inodes: set[int] = set()
    fsync_by(monkeypatch, lambda fd: inodes.add(os.fstat(fd).st_ino))
    return inodes


# --- what is read ---------------------------------------------------------------------------------------------------


def test_what_nobody_touched_is_not_read_again(left: Try) -> None:
    left.know()
    left.stage()
    assert left.survey().unchanged == {"beam.inp"}
    assert left.altered == []
    assert left.read == []


def rewrite(path: Path, data: bytes) -> None:
    """Other bytes under the times of before, as a careful copy leaves them."""
    before = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_copy_that_looks_as_before_but_was_touched_is_read(left: Try) -> None:
    left.know()
    left.stage()
    wait_until(lambda: left.age(left.copy) > 3 * remains.CLOCK_GRAIN_NS, "a change shows")
    rewrite(left.copy, b"87654321")
    assert left.survey() == Survey((fact("output/beam.inp", b"87654321"),), frozenset())
    assert left.read == ["beam.inp"]


def test_a_change_at_once_shows_by_the_time_that_the_copy_was_given(left: Try) -> None:
    left.know()
    for _ in range(50):
        left.stage()
        staged = left.copy.stat().st_ctime_ns
        left.copy.write_bytes(b"87654321")
        if left.copy.stat().st_ctime_ns == staged:  # hardly ever not, where clocks are coarse
            break
    assert left.survey().outputs == (fact("output/beam.inp", b"87654321"),)


def test_another_file_in_the_place_of_the_copy_is_read(left: Try) -> None:
    left.know()
    left.stage()
    shutil.copy2(left.copy, left.folder / "other")
    (left.folder / "other").replace(left.copy)
    assert left.survey().unchanged == {"beam.inp"}
    assert left.read == ["beam.inp"]


@pytest.mark.parametrize("field", ["st_ino", "st_size", "st_ctime_ns", "st_mtime_ns"])
def test_whatever_of_it_differs_it_is_not_the_same_file(field: str) -> None:
    seen = {"st_ino": 1, "st_size": 2, "st_ctime_ns": 3, "st_mtime_ns": 4}
    one, other = SimpleNamespace(**seen), SimpleNamespace(**seen | {field: 5})
    assert remains.sight(cast(os.stat_result, one)) != remains.sight(cast(os.stat_result, other))


def test_a_copy_whose_time_would_hide_a_change_is_read(left: Try) -> None:
    os.utime(left.input, (2**32, 2**32))
    left.know()
    left.stage()
    assert left.survey().unchanged == {"beam.inp"}
    assert left.read == ["beam.inp"]
    assert left.altered == []


def test_the_copy_of_an_input_that_was_changed_before_it_was_staged_is_none(left: Try) -> None:
    left.know()
    rewrite(left.input, b"87654321")
    wait_until(lambda: left.age(left.input) > 3 * remains.CLOCK_GRAIN_NS, "its times lie behind")
    left.stage()
    assert left.survey() == Survey((fact("output/beam.inp", b"87654321"),), frozenset())
    assert left.altered == ["input/beam.inp"]


def test_an_input_that_came_lately_is_read(left: Try) -> None:
    left.since_us = time.time_ns() // 1000
    left.stage()
    assert left.survey().unchanged == {"beam.inp"}
    assert left.altered == []
    assert left.read == ["beam.inp", "beam.inp"]


def test_what_was_staged_in_an_earlier_life_is_read(left: Try) -> None:
    left.know()
    left.stage()
    left.results = Results(left.home)
    assert left.survey().unchanged == {"beam.inp"}
    assert left.read == ["beam.inp", "beam.inp"]


def test_where_times_are_whole_seconds_everything_is_read(left: Try, monkeypatch: pytest.MonkeyPatch) -> None:
    left.know()
    monkeypatch.setattr(remains, "_is_exact", lambda found: found.st_ctime_ns < 0)
    left.stage()
    (left.folder / "stdout.log").touch()
    assert left.survey().outputs == (fact("stdout.log", b""),)
    assert left.read == ["beam.inp", "beam.inp"], "the copy and the input; an empty log holds nothing to be read"


@pytest.mark.parametrize("what", ["an output", "outputs", "a log", "a folder", "an input"])
def test_more_than_was_asked_for_is_not_read(left: Try, what: str) -> None:
    left.know()
    left.stage()
    left.survey(most=50_000)
    if what == "an output":
        (left.folder / "output" / "beam.frd").write_bytes(bytes(60_000))
    elif what == "outputs":
        for n in range(20):
            (left.folder / "output" / f"{n}.dat").touch()
    elif what == "a log":
        (left.folder / "stdout.log").write_bytes(bytes(60_000))
    elif what == "a folder":
        for n in range(20):
            (left.folder / "output" / f"{n}").mkdir()
    else:
        left.input.write_bytes(bytes(60_000))
        left.inputs = (fact("input/beam.inp", bytes(60_000)),)
    with pytest.raises(TooMuch):
        left.survey(most=50_000)
    assert left.read in ([], [f"{n}.dat" for n in sorted(map(str, range(20)))][: len(left.read)], ["beam.inp"])
    left.survey()


# --- what is synced -------------------------------------------------------------------------------------------------


def test_a_log_that_is_empty_is_synced_and_not_read(left: Try, synced: set[int]) -> None:
    left.know()
    left.stage()
    for log in remains.LOGS:
        (left.folder / log).touch()
    survey = left.keep()
    assert survey.outputs == (FileFact("stdout.log", 0, EMPTY), FileFact("stderr.log", 0, EMPTY))
    assert survey.silent == {"stdout.log", "stderr.log"}
    assert left.read == []
    assert synced == {(left.folder / name).stat().st_ino for name in (*remains.LOGS, "output", ".")}
    assert os.listdir(left.folder / "output") == []


def test_a_log_that_was_emptied_is_synced(left: Try, synced: set[int]) -> None:
    left.know()
    left.stage()
    log = left.folder / "stdout.log"
    log.write_bytes(b"said and taken back")
    wait_until(lambda: left.age(left.folder) > 3 * remains.CLOCK_GRAIN_NS, "a change shows")
    os.truncate(log, 0)
    survey = left.keep()
    assert survey.outputs == (FileFact("stdout.log", 0, EMPTY),)
    assert survey.silent == {"stdout.log"}
    assert log.stat().st_ino in synced


def test_a_log_that_holds_something_is_synced_and_not_silent(left: Try, synced: set[int]) -> None:
    left.know()
    left.stage()
    (left.folder / "stdout.log").write_bytes(b"hello")
    (left.folder / "stderr.log").symlink_to("stdout.log")
    assert left.keep().silent == frozenset()
    assert synced == {(left.folder / name).stat().st_ino for name in ("stdout.log", "output", ".")}


@pytest.mark.parametrize("what", ["file", "empty", "folder", "fifo", "link"])
def test_what_lies_in_the_output_folder_is_synced_with_it(left: Try, synced: set[int], what: str) -> None:
    left.know()
    left.stage()
    path = left.folder / "output" / "x"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "link":
        path.symlink_to("nothing")
    else:
        path.write_bytes(b"1" if what == "file" else b"")
    left.keep()
    own = set() if what in ("fifo", "link") else {path.stat().st_ino}
    assert synced == own | {path.parent.stat().st_ino, left.folder.stat().st_ino}


def test_a_folder_left_empty_by_its_unchanged_inputs_goes_durably(tmp_path: Path, synced: set[int]) -> None:
    left = Try(tmp_path)
    (left.input.parent / "mesh").mkdir()
    (left.input.parent / "mesh" / "a.inc").write_bytes(b"2")
    left.inputs = (*left.inputs, fact("input/mesh/a.inc", b"2"))
    left.know()
    left.stage()
    left.keep()
    assert os.listdir(left.folder / "output") == []
    assert (left.folder / "output").stat().st_ino in synced


@pytest.mark.parametrize("how", ["kept", "surveyed", "refused", "without output"])
def test_nothing_stays_open(left: Try, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    left.know()
    left.stage()
    (left.folder / "output" / "mesh").mkdir()
    (left.folder / "output" / "mesh" / "a.frd").write_bytes(b"1")
    left.keep()  # what the kernel answers through is opened once
    if how == "without output":
        shutil.rmtree(left.folder / "output")
        monkeypatch.setattr(remains, "_open_output", lambda job_fd: os.open("output", os.O_RDONLY, dir_fd=job_fd))
    before = len(os.listdir("/proc/self/fd"))
    if how == "kept":
        left.keep()
    elif how == "surveyed":
        left.survey()
    elif how == "refused":
        with pytest.raises(TooMuch):
            left.survey(most=1)
    else:
        with pytest.raises(FileNotFoundError):
            left.survey()
    assert len(os.listdir("/proc/self/fd")) == before
