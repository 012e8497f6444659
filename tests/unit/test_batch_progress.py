"""The progress of a batch: one line that fits, redrawn on a terminal, told now and then elsewhere."""

from __future__ import annotations

import io
import os
import pty
import struct
import sys
from collections.abc import Iterator
from typing import TextIO

import pytest

from solvisor_service.batch.progress import EVERY_SECONDS, Meter, Progress, line, redrawn

if sys.platform != "win32":
    import fcntl
    import termios

END = "<end>"
SOME = Progress(total=10, finished=3, active=2, failed=1)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal:
    """A terminal of ``columns``, and what was written to it."""

    def __init__(self, columns: int) -> None:
        self._reading, writing = pty.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream: TextIO = os.fdopen(writing, "w", encoding="utf-8")

    def read(self) -> str:
        """All that was written; a mark behind it says where it ends."""
        self.stream.write(END)
        self.stream.flush()
        data = b""
        while not data.endswith(END.encode()):
            data += os.read(self._reading, 1 << 16)
        return data.decode().removesuffix(END)

    def close(self) -> None:
        os.close(self._reading)
        self.stream.close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm")
    made = Terminal(100)
    yield made
    made.close()


def test_the_line_is_the_promised_one() -> None:
    assert line(SOME) == "Processing: 3/10 [2 active, 1 failed]"
    ends = Progress(total=10, finished=8, failed=1, cancelled=4, skipped=2)
    assert line(ends) == "Processing: 8/10 [0 active, 1 failed, 4 cancelled, 2 skipped]"


@pytest.mark.parametrize("width", [0, 1, 10, 37, 38, 55, 60, 80, 200])
def test_the_line_fits_whatever_the_width(width: int) -> None:
    text = redrawn(SOME, 75.0, width, fancy=True)
    assert len(text) <= width
    assert text.startswith(line(SOME)[:width])


def test_the_bar_grows_with_what_is_finished() -> None:
    def full(finished: int) -> int:
        return redrawn(Progress(total=10, finished=finished), 0.0, 80, fancy=False).count("#")

    lengths = [full(finished) for finished in range(11)]
    assert lengths == sorted(set(lengths))
    assert lengths[0] == 0
    assert "." not in redrawn(Progress(total=10, finished=10), 0.0, 80, fancy=False)


def test_a_terminal_gets_one_line_that_is_redrawn(terminal: Terminal) -> None:
    meter = Meter(terminal.stream, Clock())
    meter.show(SOME)
    meter.show(Progress(total=10, finished=4, active=1, failed=1))
    meter.end()
    written = terminal.read()
    assert "4/10 [1 active, 1 failed] ━" in written
    assert written.count("\r\x1b[K") == 2
    assert written.count("\n") == 1
    assert written.endswith("\n")


def test_nothing_is_written_twice(terminal: Terminal) -> None:
    clock = Clock()
    meter = Meter(terminal.stream, clock)
    for _ in range(5):
        meter.show(SOME)
    clock.now = 1.0
    meter.tick()
    assert terminal.read().count("3/10") == 2, "once, and again for the time"


def test_a_sentence_stands_above_the_line(terminal: Terminal) -> None:
    meter = Meter(terminal.stream, Clock())
    meter.show(SOME)
    meter.say("the daemon\x1b[31m is\naway")
    before, sentence, after = terminal.read().partition("\r\x1b[Ksolvisor: the daemon[31m is away\r\n")
    assert sentence
    assert "3/10" in before
    assert "3/10" in after


def test_elsewhere_a_line_comes_now_and_then_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    meter = Meter(stream, clock)
    for tick in range(int(2.5 * EVERY_SECONDS) * 2):
        clock.now = tick / 2
        meter.show(SOME)
    assert stream.getvalue() == (line(SOME) + "\n") * 2
    done = Progress(total=10, finished=10)
    meter.show(done)
    meter.end()
    meter.end()
    assert stream.getvalue().splitlines()[2:] == [line(done)]


def test_fetching_has_a_line_of_its_own() -> None:
    stream = io.StringIO()
    meter = Meter(stream, Clock())
    for progress in (SOME, Progress(total=8, fetching=True), Progress(total=8, finished=8, fetching=True)):
        meter.show(progress)
    meter.end()
    assert stream.getvalue().splitlines() == [line(SOME), "Fetching: 8/8"]


def test_json_means_no_progress_but_sentences() -> None:
    stream, clock = io.StringIO(), Clock()
    meter = Meter(stream, clock, silent=True)
    meter.show(SOME)
    clock.now = 60.0
    meter.tick()
    meter.say("waiting")
    meter.end()
    assert stream.getvalue() == "solvisor: waiting\n"


def test_a_terminal_that_went_away_ends_nothing(terminal: Terminal) -> None:
    meter = Meter(terminal.stream, Clock())
    meter.show(SOME)
    terminal.stream.close()
    meter.show(Progress(total=10, finished=10))
    meter.say("gone")
    meter.end()


def test_a_dumb_terminal_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    meter = Meter(terminal.stream, Clock())
    meter.show(SOME)
    meter.end()
    assert terminal.read() == line(SOME) + "\r\n"
