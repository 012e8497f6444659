"""Logs: one JSON object per line, forged by nobody, and never in the way."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from solvisor import log as logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    structlog.reset_defaults()


HOSTILE = "beam\n\x1b[31mFAILED\udc80 <script>"


def test_a_line_is_one_json_object_on_the_stream_and_in_the_file(tmp_path: Path) -> None:
    stream = io.StringIO()
    sink = logs.configure(stream, file=tmp_path / "log.jsonl")
    assert sink is not None
    structlog.get_logger().info("job.accepted", id="a-1", name=HOSTILE)
    sink.close()
    for text in (stream.getvalue(), (tmp_path / "log.jsonl").read_text()):
        (line,) = text.splitlines()
        entry = json.loads(line)
        assert (entry["event"], entry["level"], entry["id"], entry["name"]) == ("job.accepted", "info", "a-1", HOSTILE)
        assert entry["timestamp"].endswith("Z")


def test_on_a_terminal_lines_are_pretty_and_values_cannot_forge_one() -> None:
    stream = Terminal()
    logs.configure(stream)
    structlog.get_logger().info("job.accepted", name=HOSTILE)
    (line,) = stream.getvalue().splitlines()
    assert "job.accepted" in line
    assert "\x1b[31mFAILED" not in line


def test_the_file_rotates_and_keeps_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_MAX_BYTES", 1000)
    monkeypatch.setattr(logs, "FILES_KEPT", 3)
    sink = logs.Sink(tmp_path / "log.jsonl")
    for n in range(200):
        sink.write(f"line {n:03} " + "x" * 90)
    sink.close()
    files = sorted(tmp_path.iterdir())
    assert [f.name for f in files] == ["log.jsonl", "log.jsonl.1", "log.jsonl.2", "log.jsonl.3"]
    assert all(f.stat().st_size <= 1000 for f in files)
    assert "line 199" in (tmp_path / "log.jsonl").read_text()
    assert sink.dropped == 0


def test_a_full_disk_drops_lines_and_counts_them() -> None:
    sink = logs.Sink(Path("/dev/full"))
    sink.write("lost")
    sink.write("lost too")
    sink.close()
    assert sink.dropped == 2


def test_a_closed_stream_is_no_error() -> None:
    stream = io.StringIO()
    logs.configure(stream)
    stream.close()
    structlog.get_logger().error("daemon.failed")


def test_levels_below_the_configured_one_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure(stream, level="warning")
    structlog.get_logger().info("job.accepted")
    assert stream.getvalue() == ""
