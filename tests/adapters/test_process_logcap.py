"""Logs over their cap: what is cut, what is kept, and what a solver may have put in the log's place."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from solvisor.process import logcap
from solvisor.process.logcap import CappedLog

if sys.platform == "win32":
    pytest.skip("holes of Linux", allow_module_level=True)

CAP = 64 * 1024


def numbered(count: int) -> bytes:
    return b"".join(b"%09d\n" % number for number in range(count))


def allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_small_logs_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * CAP)
    log = CappedLog(str(path), CAP)
    inode = path.stat().st_ino
    assert (log.trim(), log.needs_finish(), log.finish(), log.cut_bytes) == (False, False, 0, 0)
    assert path.stat().st_ino == inode
    assert path.read_bytes() == b"x" * CAP


def test_fault_12_head_and_tail_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = numbered(100_000)
    path.write_bytes(text)
    path.chmod(0o640)
    cut = CappedLog(str(path), CAP).finish()
    left = path.read_bytes()
    head, tail = left[: CAP // 4], left[-(CAP // 2) :]
    assert len(left) <= CAP
    assert text.startswith(head)
    assert text.endswith(tail)
    marker = f"\n[solvisor: {cut} bytes cut here, the log was longer than its cap]\n".encode()
    assert left.count(marker) == 1
    assert len(left) - len(marker) + cut == len(text)
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["log"]
    assert CappedLog(str(path), CAP).finish() == 0


def test_a_growing_log_stays_small_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CappedLog(str(path), CAP)
    text = numbered(200_000)
    largest = 0
    with path.open("ab", buffering=0) as file:
        for at in range(0, len(text), 10_000):
            file.write(text[at : at + 10_000])
            log.trim()
            largest = max(largest, allocated(path))
    assert path.stat().st_size == len(text)
    assert largest <= CAP * 3 // 2
    cut = log.finish()
    left = path.read_bytes()
    assert b"\0" not in left
    assert text.startswith(left[: CAP // 4])
    assert text.endswith(left[-(CAP // 2) :])
    assert cut > len(text) - CAP


def test_holes_are_made_in_steps(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CappedLog(str(path), CAP)
    path.write_bytes(b"x" * (2 * CAP))
    assert log.trim()
    with path.open("ab") as file:
        file.write(b"x" * 100)
    assert not log.trim()
    assert log.cut_bytes > CAP // 2


def test_a_log_emptied_by_its_program(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CappedLog(str(path), CAP)
    path.write_bytes(b"x" * (10 * CAP))
    assert log.trim()
    path.write_bytes(b"new")
    assert not log.trim()
    assert log.cut_bytes == 0
    path.write_bytes(b"y" * (4 * CAP))
    assert log.trim()
    assert path.read_bytes().startswith(b"y" * (CAP // 4))


def test_without_holes_it_is_cut_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logcap, "_fallocate", lambda *_: -1)
    path = tmp_path / "log"
    path.write_bytes(numbered(100_000))
    log = CappedLog(str(path), CAP)
    assert not log.trim()
    assert log.cut_bytes == 0
    assert log.finish() > 0
    assert path.stat().st_size <= CAP


def test_a_full_disk_leaves_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (4 * CAP))
    log = CappedLog(str(path), CAP)
    log.trim()

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "write", full)
        holes = log.cut_bytes
        assert log.finish() == holes > 0
    assert path.stat().st_size == 4 * CAP
    assert os.listdir(tmp_path) == ["log"]


def test_what_is_no_plain_file_is_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x" * (4 * CAP))
    link = tmp_path / "link"
    link.symlink_to(precious)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (link, pipe, tmp_path, tmp_path / "missing"):
        log = CappedLog(str(path), 1)
        assert (log.trim(), log.finish()) == (False, 0)
    assert precious.read_bytes() == b"x" * (4 * CAP)


def test_nothing_a_solver_put_beside_its_log_is_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(numbered(100_000))
    (tmp_path / "log.part").mkdir()
    assert CappedLog(str(path), CAP).finish() > 0
    assert path.stat().st_size <= CAP
    assert sorted(os.listdir(tmp_path)) == ["log", "log.part"]


def test_a_log_that_cannot_be_replaced_keeps_its_place_and_nothing_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"x" * (4 * CAP))

    def refuse(old: str, new: str) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "rename", refuse)
    log = CappedLog(str(path), CAP)
    assert log.trim()
    holes = log.cut_bytes
    assert log.finish() == holes > 0
    assert os.listdir(tmp_path) == ["log"]


def test_a_log_replaced_at_the_end_has_lost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = CappedLog(str(path), CAP)
    path.write_bytes(b"x" * (4 * CAP))
    assert log.trim()
    path.unlink()
    path.symlink_to("/dev/null")
    assert (log.finish(), log.cut_bytes) == (0, 0)
    assert path.is_symlink()
