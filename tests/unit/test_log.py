"""Logs: one JSON object per line, forged by nobody, and never in the way."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import pytest
import structlog

from process_kit import ENVIRONMENT
from solvisor import log as logs
from waiting import wait_until


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def configure() -> Iterator[Callable[..., logs.Log]]:
    made: list[logs.Log] = []

    def make(*given: Any, **how: Any) -> logs.Log:
        made.append(logs.configure(*given, **how))
        return made[-1]

    yield make
    structlog.reset_defaults()
    for log in made:
        log.close()


@pytest.fixture
def unread() -> Iterator[TextIO]:
    """A pipe that is full and that nobody reads."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(4096))
    os.set_blocking(write_end, True)
    with open(write_end, "w") as stream:
        yield stream
        os.close(read_end)


Configure = Callable[..., logs.Log]
HOSTILE = "beam\n\x1b[31mFAILED\udc80 <script>"


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_one_json_object_on_the_stream_and_in_the_file(tmp_path: Path, configure: Configure) -> None:
    stream = io.StringIO()
    log = configure(stream, file=tmp_path / "log.jsonl")
    structlog.get_logger().info("job.accepted", id="a-1", name=HOSTILE)
    log.close()
    for text in (stream.getvalue(), (tmp_path / "log.jsonl").read_text()):
        (line,) = text.splitlines()
        entry = json.loads(line)
        assert list(entry) == ["id", "name", "event", "level", "timestamp"]
        assert (entry["event"], entry["level"], entry["id"], entry["name"]) == ("job.accepted", "info", "a-1", HOSTILE)
        assert datetime.fromisoformat(entry["timestamp"]).tzinfo == UTC


@pytest.mark.parametrize(
    "name", ["beam.inp", "größer", "\u202egnp", "\x9b31m", "\x1b[31m", "\x7f", HOSTILE, '"\\', "\U0001f600"]
)
def test_a_line_is_ascii_and_says_what_it_was_given(configure: Configure, name: str) -> None:
    stream = io.StringIO()
    log = configure(stream)
    structlog.get_logger().info("job.accepted", name=name, count=2**70, seconds=0.1, names=[name], path=Path("/a"))
    log.close()
    (line,) = stream.getvalue().splitlines()
    assert line.isascii()
    assert line.isprintable()
    entry = json.loads(line)
    told = {"name": name, "count": 2**70, "seconds": 0.1, "names": [name], "path": "/a"}
    assert {key: entry[key] for key in told} == told


def test_a_logger_writes_to_the_log_that_was_configured_last(configure: Configure) -> None:
    """A daemon that waits for room on its disk opens its home, and its log, more than once."""
    logger = structlog.get_logger()
    streams = [io.StringIO(), io.StringIO()]
    for n, stream in enumerate(streams):
        log = configure(stream)
        logger.info("daemon.starting", n=n)
        log.close()
    assert [json.loads(stream.getvalue())["n"] for stream in streams] == [0, 1]


def test_on_a_terminal_lines_are_pretty_and_values_cannot_forge_one(configure: Configure) -> None:
    stream = Terminal()
    log = configure(stream)
    structlog.get_logger().info("job.accepted", name=HOSTILE)
    log.close()
    (line,) = stream.getvalue().splitlines()
    assert "job.accepted" in line
    assert "\x1b[31mFAILED" not in line


def test_the_file_rotates_and_keeps_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_MAX_BYTES", 1000)
    monkeypatch.setattr(logs, "FILES_KEPT", 3)
    sink = logs.Sink(tmp_path / "log.jsonl")
    for n in range(200):
        assert sink.write([b"line %03d " % n + b"x" * 90 + b"\n"]) == 0
    sink.close()
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["log.jsonl", "log.jsonl.1", "log.jsonl.2", "log.jsonl.3"]
    assert all(f.stat().st_size <= 1000 for f in files)
    assert "line 199" in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("fails", ["open", "replace"])
def test_a_rotation_that_fails_goes_on_with_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    monkeypatch.setattr(logs, "FILE_MAX_BYTES", 1000)
    path = tmp_path / "log.jsonl"
    sink = logs.Sink(path)
    before = len(os.listdir("/proc/self/fd"))

    def refuse(*_: object) -> int:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as context:
        context.setattr(os, fails, refuse)
        for n in range(30):
            assert sink.write([b"line %03d " % n + b"x" * 90 + b"\n"]) == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert path.read_text().count("line") == 30
    sink.write([b"x" * 90 + b"\n"])
    assert path.read_text().count("line") == 0, "and tries again later"
    sink.close()


def test_lines_are_written_together_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_MAX_BYTES", 256 * 10)  # so many bytes at once
    sink = logs.Sink(tmp_path / "log.jsonl")
    written: list[bytes] = []

    def write(_: int, data: bytes) -> int:
        written.append(data)
        return len(data)

    with monkeypatch.context() as context:
        context.setattr(os, "write", write)
        assert sink.write([b"1234\n", b"123\n", b"\n", b"\n", b"1234567890123\n", b"12345678\n", b"1\n"]) == 0
    sink.close()
    assert written == [b"1234\n123\n\n", b"\n", b"1234567890123\n", b"12345678\n", b"1\n"]


def test_a_torn_line_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = logs.Sink(tmp_path / "log.jsonl")
    real = os.write
    with monkeypatch.context() as context:
        context.setattr(os, "write", lambda fd, data: real(fd, data[:3]))
        assert sink.write([b"first line\n"]) == 1
    assert sink.write([b"second line\n"]) == 0
    sink.close()
    assert (tmp_path / "log.jsonl").read_text() == "fir\nsecond line\n"


def test_of_several_lines_those_that_fitted_are_not_counted_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = logs.Sink(tmp_path / "log.jsonl")
    real = os.write
    told = ""
    for room, lost, in_the_file in (
        (0, 3, ""),
        (5, 2, "a\nbcd"),
        (6, 2, "\na\nbcd"),
        (7, 1, "\na\nbcd\n"),
        (8, 1, "a\nbcd\nef"),
        (9, 1, "\na\nbcd\nef"),
        (10, 0, "\na\nbcd\nef\n"),
        (9, 0, "a\nbcd\nef\n"),
    ):
        with monkeypatch.context() as context:
            context.setattr(os, "write", lambda fd, data, room=room: real(fd, data[:room]))
            assert sink.write([b"a\n", b"bcd\n", b"ef\n"]) == lost, room
        told += in_the_file
        assert sink.path.read_text() == told
    sink.close()


def test_lines_are_written_together_a_moment_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "WAIT_SECONDS", 30.0)
    written: list[list[bytes]] = []

    def write(lines: Sequence[bytes]) -> int:
        written.append(list(lines))
        return 0

    writer = logs.Writer("test", write, bytes)
    many = [b"%d" % n for n in range(1000)]
    for line in many:
        writer.put(line)
    assert writer.close(20), "its end waits for nothing"
    assert written == [many]


def test_each_line_is_written_soon_and_not_only_at_the_end() -> None:
    written: list[bytes] = []

    def write(lines: Sequence[bytes]) -> int:
        written.extend(lines)
        return 0

    writer = logs.Writer("test", write, bytes)
    told: list[bytes] = []
    for n in range(5):
        told.append(b"%d" % n)
        writer.put(told[-1])
        wait_until(lambda: written == told, "it is written")
    assert writer.close(20)
    assert written == told


def test_a_writer_may_be_closed_before_anything_was_written_and_twice() -> None:
    writer = logs.Writer("test", len, bytes)
    assert writer.close(20)
    assert writer.close(20)
    writer.put(b"too late")
    assert writer.lost == 1


def test_what_a_full_pipe_does_not_take_is_counted(configure: Configure) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with open(write_end, "w") as stream:
        log = configure(stream)
        for n in range(5000):
            structlog.get_logger().info("job.accepted", n=n)
        log.close()
    with open(read_end) as reader:
        told = [json.loads(line)["n"] for line in reader]
    assert 0 < len(told) < 5000
    assert len(told) + log.lost() == 5000


def test_fault_57_a_full_disk_disturbs_nobody_and_is_told_later(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    log = configure(io.StringIO(), file=path)
    with monkeypatch.context() as context:
        context.setattr(os, "write", full)
        for _ in range(2):
            structlog.get_logger().info("lost")
        wait_until(lambda: log.lost() == 2, "they are given up")
    assert os.write is real
    structlog.get_logger().info("kept")
    log.close()
    told = events(path)
    assert [entry["event"] for entry in told] == ["kept", "log.dropped"]
    assert told[1]["count"] == 2


def test_fault_57_an_unread_pipe_blocks_neither_who_logs_nor_the_file_nor_the_end(
    tmp_path: Path, configure: Configure, unread: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "STREAM_CLOSE_SECONDS", 0.1)
    path = tmp_path / "log.jsonl"
    log = configure(unread, file=path)
    for n in range(100):
        structlog.get_logger().info("job.accepted", n=n)
    wait_until(lambda: len(events(path)) == 100, "all lines in the file while the pipe is full")
    structlog.get_logger().critical("daemon.crashed")
    log.close()
    assert [entry["event"] for entry in events(path)] == ["job.accepted"] * 100 + ["daemon.crashed"]


def test_what_does_not_fit_into_the_queue_is_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "QUEUE_LINES", 10)
    written: list[bytes] = []
    busy, go = threading.Event(), threading.Event()

    def write(lines: Sequence[bytes]) -> int:
        busy.set()
        go.wait()
        written.extend(lines)
        return 0

    writer = logs.Writer("test", write, lambda count: b"dropped %d" % count)
    writer.put(b"first")
    assert busy.wait(20)
    for n in range(25):
        writer.put(b"%d" % n)
    go.set()
    assert writer.close(20)
    assert written == [b"first", *(b"%d" % n for n in range(10)), b"dropped 15"]


def test_an_interpreter_ends_with_an_unread_pipe_and_unclosed_logs(tmp_path: Path, unread: TextIO) -> None:
    program = """
import sys, pathlib, structlog
from solvisor import log
log.configure(sys.stderr, file=pathlib.Path(sys.argv[1]))
for n in range(5):
    structlog.get_logger().critical("daemon.crashed", n=n)
"""
    path = tmp_path / "log.jsonl"
    done = subprocess.run([sys.executable, "-c", program, str(path)], stderr=unread, env=ENVIRONMENT, timeout=60)
    assert done.returncode == 0
    assert [entry["n"] for entry in events(path)] == list(range(5))


def test_lines_of_many_threads_stay_whole(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "FILE_MAX_BYTES", 20_000)
    monkeypatch.setattr(logs, "FILES_KEPT", 100)
    log = configure(io.StringIO(), file=tmp_path / "log.jsonl")

    def write(name: int) -> None:
        for n in range(300):
            structlog.get_logger().info("job.accepted", by=name, n=n)

    writers = [threading.Thread(target=write, args=(name,)) for name in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    log.close()
    assert len(list(tmp_path.iterdir())) > 5
    told = sorted((entry["by"], entry["n"]) for path in tmp_path.iterdir() for entry in events(path))
    assert told == [(by, n) for by in range(4) for n in range(300)]


def test_a_closed_stream_is_no_error(tmp_path: Path, configure: Configure) -> None:
    stream = io.StringIO()
    log = configure(stream, file=tmp_path / "log.jsonl")
    stream.close()
    structlog.get_logger().error("daemon.failed")
    log.close()
    log.close()
    structlog.get_logger().error("after the end")
    assert [entry["event"] for entry in events(tmp_path / "log.jsonl")] == ["daemon.failed"]


def test_a_pipe_whose_reader_is_gone_is_no_error(tmp_path: Path, configure: Configure) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with open(write_end, "w") as stream:
        log = configure(stream, file=tmp_path / "log.jsonl")
        structlog.get_logger().error("daemon.failed")
        log.close()
    assert [entry["event"] for entry in events(tmp_path / "log.jsonl")] == ["daemon.failed"]


def test_levels_below_the_configured_one_are_left_out(configure: Configure) -> None:
    stream = io.StringIO()
    log = configure(stream, level="warning")
    structlog.get_logger().info("job.accepted")
    log.close()
    assert stream.getvalue() == ""


def test_what_libraries_log_becomes_a_line_like_ours(configure: Configure) -> None:
    stream = io.StringIO()
    log = configure(stream)
    try:
        raise ValueError("lost\nforged")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("bad %s", "request\nforged")
    logging.getLogger("uvicorn.error").info("not worth a line")
    logging.getLogger("uvicorn.error").error("too few %s %s", "values")
    log.close()
    (line,) = map(json.loads, stream.getvalue().splitlines())
    assert (line["event"], line["level"], line["library"]) == ("library.log", "error", "uvicorn.error")
    assert line["text"] == "bad request\nforged"
    assert "ValueError: lost" in line["exception"]
