"""A log that is read while it is written, and while its middle is taken out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from solvisor.filetext import cut_line
from solvisor.process.logcap import CappedLog
from solvisor.spool import logs
from solvisor.spool.logs import OpenLog

BLOCK = 4096
CAP = 16 * BLOCK
"""A quarter of it is the head."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "stdout.log"
    path.touch()
    return path


@pytest.fixture
def open_log(path: Path) -> Iterator[Callable[..., OpenLog]]:
    opened: list[OpenLog] = []

    def open_it(offset: int | None = None, tail: int | None = None) -> OpenLog:
        opened.append(OpenLog(path.open("rb"), offset, tail))
        return opened[-1]

    yield open_it
    for log in opened:
        log.close()


def write(path: Path, count: int, first: int = 0) -> bytes:
    """So many blocks, each of which says which it is."""
    data = b"".join(f"{number:>{BLOCK - 1}}\n".encode() for number in range(first, first + count))
    with path.open("ab") as file:
        file.write(data)
    return data


def all_of(log: OpenLog, most: int = 1 << 20) -> bytes:
    data = b""
    while piece := log.read(most):
        data += piece
    return data


def test_what_grows_is_read_on_byte_by_byte(path: Path, open_log: Callable[..., OpenLog]) -> None:
    log = open_log()
    assert log.read(10) == b""
    text = "käse\x00\xff".encode("latin-1")
    for end in range(1, len(text) + 1):
        with path.open("ab") as file:
            file.write(text[end - 1 : end])
        assert log.read(10) == text[end - 1 : end]
    assert log.offset == len(text)
    assert all_of(open_log(), 2) == text
    assert open_log(3).read(2) == text[3:5]
    assert open_log(tail=2).read(99) == text[-2:]
    assert open_log(99).offset == len(text)


def test_a_middle_that_was_taken_out_is_one_line_and_no_zeros(path: Path, open_log: Callable[..., OpenLog]) -> None:
    data = write(path, 100)
    cap = CappedLog(str(path), CAP)
    assert cap.trim()
    cut = cap.cut_bytes
    assert cut > 50 * BLOCK
    shown = all_of(open_log())
    head = CAP // 4
    assert shown == data[:head] + cut_line(cut) + data[head + cut :]
    assert all_of(open_log(head + 100)) == cut_line(cut - 100) + data[head + cut :]


def test_a_follower_at_the_end_notices_nothing_of_what_is_cut(path: Path, open_log: Callable[..., OpenLog]) -> None:
    cap = CappedLog(str(path), CAP)
    log, seen, written = open_log(), b"", b""
    for number in range(60):
        written += write(path, 1, number)
        seen += all_of(log)
        cap.trim()
    assert cap.finish() > 0  # written anew, under its name
    assert seen + all_of(log) == written


def test_a_follower_that_lags_is_told_what_it_missed(path: Path, open_log: Callable[..., OpenLog]) -> None:
    log = open_log()
    cap = CappedLog(str(path), CAP)
    written = write(path, 30)
    assert log.read(2 * BLOCK) == written[: 2 * BLOCK]
    cap.trim()
    written += write(path, 60, 30)
    cap.trim()
    cut = cap.cut_bytes
    cap.finish()
    head = CAP // 4
    assert all_of(log) == written[2 * BLOCK : head] + cut_line(cut) + written[head + cut :]


def test_a_middle_that_is_taken_out_while_it_is_read_is_not_read(
    path: Path, open_log: Callable[..., OpenLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write(path, 100)
    cap = CappedLog(str(path), CAP)
    look = logs._next_data

    def then_cut(fd: int, offset: int, size: int) -> int:
        found = look(fd, offset, size)
        cap.trim()
        return found

    monkeypatch.setattr(logs, "_next_data", then_cut)
    shown = all_of(open_log(3 * BLOCK), 8 * BLOCK)
    assert b"\x00" not in shown
    cut = cap.cut_bytes
    assert shown == data[3 * BLOCK : CAP // 4] + cut_line(cut) + data[CAP // 4 + cut :]


def test_a_log_that_its_solver_empties_is_read_from_its_new_beginning(
    path: Path, open_log: Callable[..., OpenLog]
) -> None:
    log = open_log()
    write(path, 2)
    all_of(log)
    os.truncate(path, 0)
    assert log.read(10) == b""
    with path.open("ab") as file:
        file.write(b"anew\n")
    assert log.read(10) == b"anew\n"


def test_a_log_without_holes_to_find_is_read_as_it_is(
    path: Path, open_log: Callable[..., OpenLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, offset: int, how: int) -> int:
        raise OSError(22, "Invalid argument")

    data = write(path, 3)
    log = open_log()
    monkeypatch.setattr("solvisor.spool.logs.os.lseek", refuse)
    assert all_of(log) == data
