"""``solvisor top`` on a terminal of a test: what its screen shows, and nothing that a terminal would do besides."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

from rich.cells import cell_len

from waiting import wait_until

_SEQUENCE = re.compile(r"\x1b\[(?:(?P<row>\d+);1H|(?P<style>[\d;]*)m|(?P<erase>K|2J)|\?(?P<mode>\d+)(?P<set>[hl]))")
MODES = {"1049": True, "25": False, "7": False}
"""What is switched while it runs: the other screen is on, the cursor and long lines are off."""


class Screen:
    """A terminal that knows what a live view needs, and refuses everything else."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}
        self.modes: dict[str, bool] = {}
        self.styles: dict[int, list[tuple[str, str]]] = {}
        self.forbidden: list[str] = []
        self._row, self._style, self._held = 0, "", ""

    def feed(self, text: str) -> None:
        text, self._held = self._held + text, ""
        while text:
            if found := _SEQUENCE.match(text):
                text = text[found.end() :]
                self._do(found)
                continue
            if text[0] == "\x1b" and len(text) < 12:
                self._held = text
                return
            end = text.find("\x1b", 1)
            plain, text = (text, "") if end < 0 else (text[:end], text[end:])
            if not plain.isprintable() and not self._ended(plain):
                self.forbidden.append(plain)
            self.rows[self._row] = self.rows.get(self._row, "") + plain
            self.styles.setdefault(self._row, []).append((self._style, plain))

    def _ended(self, plain: str) -> bool:
        """What is said after the end may have lines."""
        return self.modes.get("1049") is not True and plain.replace("\r", "").replace("\n", "").isprintable()

    def _do(self, found: re.Match[str]) -> None:
        if found["row"]:
            self._row = int(found["row"])
        elif found["erase"] == "K":
            self.rows[self._row], self.styles[self._row] = "", []
        elif found["erase"]:
            self.rows, self.styles = {}, {}
        elif found["mode"]:
            self.modes[found["mode"]] = found["set"] == "h"
        else:
            self._style = found["style"]


class Top:
    """A running ``solvisor top``."""

    def __init__(
        self, home: Path, columns: int = 80, lines: int = 24, env: dict[str, str] | None = None, *words: str
    ) -> None:
        self.master, self.slave = pty.openpty()
        self.before = termios.tcgetattr(self.slave)
        self.resize(columns, lines)
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
        command = [sys.executable, "-m", "solvisor_service.cli", "top", *words, "--home", str(home)]

        def own_terminal() -> None:
            os.setsid()
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            preexec_fn=own_terminal,
            env={**inherited, "TERM": "xterm-256color", "PYTHONUTF8": "1", **(env or {})},
        )
        self.screen = Screen()
        self._lock = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        held = b""
        while True:
            try:
                held += os.read(self.master, 1 << 16)
            except OSError:
                return
            text = held.decode(errors="ignore")  # a character may be only half there
            held = held[len(text.encode()) :]
            with self._lock:
                self.screen.feed(text)

    @property
    def rows(self) -> list[str]:
        """The lines that are shown now."""
        with self._lock:
            return [self.screen.rows[row].rstrip() for row in sorted(self.screen.rows)]

    @property
    def last(self) -> int:
        """The number of the last line that is shown."""
        with self._lock:
            return max(self.screen.rows, default=0)

    @property
    def text(self) -> str:
        return "\n".join(self.rows)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def shows(self, *words: str) -> str:
        """Until all ``words`` are there; the screen."""

        def there() -> bool:
            return all(word in self.text for word in words) or self.process.poll() is not None

        try:
            wait_until(there, f"it shows {words}", 30)
            assert all(word in self.text for word in words)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.text}") from None
        return self.text

    def row_with(self, word: str) -> str:
        self.shows(word)
        return next(row for row in self.rows if word in row)

    def choose(self, word: str) -> None:
        """Press the arrow until the job called so is chosen."""
        for _ in range(50):
            if any("▸" in row and word in row for row in self.rows):
                return
            before = self.text
            self.press("\x1b[B")
            wait_until(lambda before=before: self.text != before, "the choice goes on", 10)  # type: ignore[misc]
        raise AssertionError(self.text)

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(20)

    def is_given_back(self) -> bool:
        """Whether the terminal is as it was."""
        modes = {mode: not value for mode, value in MODES.items()}
        now = termios.tcgetattr(self.slave)
        return self.screen.modes == modes and now[:4] == self.before[:4]

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait()
        for end in (self.slave, self.master):
            if end >= 0:
                os.close(end)
        self._reader.join(5)


def widest(rows: list[str]) -> int:
    return max(map(cell_len, rows), default=0)
