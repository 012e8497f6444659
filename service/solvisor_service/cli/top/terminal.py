"""A whole terminal for a while: its keys one by one, a screen of lines, and everything as it was afterwards.

Rules: however it ends, the terminal is given back: by its end, an exception or a signal. Only lines that changed are
written. What lines say is not looked at here: whoever makes them has made them harmless.
"""

from __future__ import annotations

import codecs
import os
import re
import select
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Final

from solvisor_service.cli.top.lines import Line

if sys.platform == "win32":
    raise ImportError("solvisor_service.cli.top.terminal needs a POSIX terminal, which Windows has not")

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J"
"""The other screen, without a cursor, and without lines that go on in the next."""
_LEAVE: Final = "\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_STYLES: Final = {"bold": 1, "dim": 2, "reverse": 7, "red": 31, "green": 32, "yellow": 33, "cyan": 36}

ESCAPE_SECONDS: Final = 0.05
"""After so long an escape was the key, and not the beginning of another one."""

_NAMES: Final = {
    "[A": "up", "OA": "up", "[B": "down", "OB": "down", "[5~": "pageup", "[6~": "pagedown",
    "[H": "home", "OH": "home", "[1~": "home", "[F": "end", "OF": "end", "[4~": "end",
}  # fmt: skip
_PLAIN: Final = {
    "\r": "enter", "\n": "enter", "\x7f": "backspace", "\x08": "backspace", "\x0c": "redraw", "\x03": "interrupt",
}  # fmt: skip
_SEQUENCE: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|O[A-Za-z])")
_UNFINISHED: Final = re.compile(r"\x1b(\[[0-?]*[ -/]*|O)?\Z")
_LONGEST_SEQUENCE: Final = 32


class Hangup(Exception):
    """The terminal is gone."""


class Ended(BaseException):
    """A signal says to end; ``number`` is which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Keys:
    """Bytes of a terminal as names of keys: ``up``, ``enter``, ``esc``, or the character that was typed."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._held = ""

    @property
    def waits(self) -> bool:
        """Whether there is the beginning of a key."""
        return bool(self._held)

    def fed(self, data: bytes) -> Iterator[str]:
        """The keys that are whole; without ``data`` nothing more follows for now."""
        text, self._held = self._held + self._decode(data), ""
        while text:
            if found := _SEQUENCE.match(text):
                text = text[found.end() :]
                if name := _NAMES.get(found[1]):
                    yield name
                continue
            if data and len(text) < _LONGEST_SEQUENCE and _UNFINISHED.match(text):
                self._held = text
                return
            char, text = text[0], text[1:]
            if char == "\x1b":
                yield "esc"
            elif char in _PLAIN:
                yield _PLAIN[char]
            elif char.isprintable():
                yield char


class Terminal:
    """The terminal of this process, from ``with`` on.

    ``wake`` may be called by any thread: ``wait`` returns.
    """

    def __init__(self, *, styled: bool, encoding: str) -> None:
        self._styled = styled
        self._encoding = encoding
        self._in, self._out = sys.stdin.fileno(), sys.stdout.fileno()
        self._keys = Keys()
        self._painted: list[str] = []
        self._stop = False
        self._anew = True

    def __enter__(self) -> Terminal:
        self._before = termios.tcgetattr(self._in)
        self._woken, self._waker = os.pipe()
        for end in (self._woken, self._waker):
            os.set_blocking(end, False)
        self._handlers = {
            signal.SIGWINCH: self._note,
            signal.SIGTSTP: self._note,
            signal.SIGINT: self._end,
            signal.SIGTERM: self._end,
            signal.SIGHUP: self._end,
        }
        self._earlier = {number: signal.getsignal(number) for number in self._handlers}
        self._earlier_wakeup = signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)
        try:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._handlers:
            signal.signal(number, signal.SIG_IGN)  # nothing may come between now
        self._give_back()
        signal.set_wakeup_fd(self._earlier_wakeup)
        for number, earlier in self._earlier.items():
            signal.signal(number, earlier)
        woken, waker = self._woken, self._waker
        self._woken = self._waker = -1  # a thread that wakes nobody any more must not write elsewhere
        os.close(woken)
        os.close(waker)

    def _take(self) -> None:
        mine = termios.tcgetattr(self._in)
        mine[3] &= ~(termios.ECHO | termios.ICANON)
        mine[6][termios.VMIN], mine[6][termios.VTIME] = 1, 0
        termios.tcsetattr(self._in, termios.TCSADRAIN, mine)
        self._write(_ENTER)
        self._painted = []
        self._anew = True

    def _give_back(self) -> None:
        with suppress(OSError, termios.error, Hangup):
            termios.tcflow(self._out, termios.TCOON)  # somebody may have stopped it with Ctrl-S
            self._write(_LEAVE)
        with suppress(OSError, termios.error):
            termios.tcsetattr(self._in, termios.TCSANOW, self._before)

    def _suspend(self) -> None:
        """Ctrl-Z: stop as any program would, and come back."""
        self._stop = False
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGTSTP:
            self._stop = True
        else:
            self._anew = True

    def _end(self, number: int, _: FrameType | None) -> None:
        raise Ended(number)

    def wake(self) -> None:
        """Let ``wait`` return."""
        with suppress(OSError):  # it is full, or closed at the end: nobody has to be told any more
            os.write(self._waker, b"\0")

    def redraw(self) -> None:
        """Draw every line at the next ``paint``."""
        self._anew = True

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        try:
            columns, lines = os.get_terminal_size(self._out)
        except OSError:
            raise Hangup from None
        return columns or 80, lines or 24

    def wait(self, seconds: float) -> list[str]:
        """Until keys come, somebody wakes, or the time is over; the keys. Raises ``Hangup``, ``Ended``."""
        if self._keys.waits:
            seconds = min(seconds, ESCAPE_SECONDS)
        ready, _, _ = select.select([self._in, self._woken], [], [], max(0.0, seconds))
        if self._woken in ready:
            with suppress(BlockingIOError):
                while os.read(self._woken, 4096):
                    pass
        if self._stop:
            self._suspend()
        if self._in not in ready:
            return list(self._keys.fed(b"")) if self._keys.waits else []
        try:
            data = os.read(self._in, 4096)
        except OSError:
            raise Hangup from None
        if not data:
            raise Hangup
        return list(self._keys.fed(data))

    def paint(self, lines: Sequence[Line]) -> None:
        """Show these lines; those that were shown before are not written again."""
        if self._anew:
            self._anew, self._painted = False, []
        rows = [self._drawn(line) for line in lines]
        out = [] if self._painted else ["\x1b[2J"]
        self._painted += [""] * (len(rows) - len(self._painted))
        for number, (before, row) in enumerate(zip(self._painted, rows, strict=False), 1):
            if before != row:
                out.append(f"\x1b[{number};1H\x1b[0m\x1b[K{row}")
        if out:
            self._write("".join(out))
        self._painted = rows

    def _drawn(self, line: Line) -> str:
        if not self._styled:
            return "".join(text for text, _ in line)
        return "".join(_in_style(text, style) for text, style in line)

    def _write(self, text: str) -> None:
        data = text.encode(self._encoding, "replace")
        try:
            while data:
                data = data[os.write(self._out, data) :]
        except OSError:
            raise Hangup from None


def _in_style(text: str, style: str) -> str:
    if not style or not text:
        return text
    return f"\x1b[{';'.join(str(_STYLES[word]) for word in style.split())}m{text}\x1b[0m"
