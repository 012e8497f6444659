"""How far a batch is, on standard error: one line that is redrawn on a terminal, a line now and then elsewhere.

Rules: it never ends a batch (a terminal that went away is ignored), never wraps on a narrow one, and what is said
besides stands above the line that is redrawn. It knows counts and texts, no daemon and no clock of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TextIO

from msgspec import Struct

from solvisor_service.cli.text import clean, duration

EVERY_SECONDS = 5.0
"""Between two lines where nothing can be redrawn."""

BAR_MAX = 40
BAR_MIN = 10
_ERASE = "\r\x1b[K"


class Progress(Struct, frozen=True, kw_only=True):
    """Counts of inputs. ``finished`` of ``total`` have their end; ``failed`` of these are failed or rejected.

    While results are ``fetching``, ``finished`` counts the jobs whose results are there.
    """

    total: int
    finished: int = 0
    active: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    fetching: bool = False


def line(progress: Progress) -> str:
    """``Processing: 3/10 [2 active, 1 failed]``, ``Fetching: 3/10``."""
    if progress.fetching:
        return f"Fetching: {progress.finished}/{progress.total}"
    others = [("cancelled", progress.cancelled), ("skipped", progress.skipped)]
    counts = [f"{progress.active} active", f"{progress.failed} failed", *(f"{n} {what}" for what, n in others if n)]
    return f"Processing: {progress.finished}/{progress.total} [{', '.join(counts)}]"


def redrawn(progress: Progress, seconds: float, width: int, *, fancy: bool) -> str:
    """The line with as much of a bar and the time as fits into ``width`` columns; ``fancy``: beyond ASCII."""
    text = line(progress)
    share = progress.finished / progress.total if progress.total else 1.0
    tail = f" {int(share * 100):3d} % {duration(int(seconds))}"
    room = min(BAR_MAX, width - len(text) - len(tail) - 1)
    if room < BAR_MIN:
        return text[: max(0, width)]
    full = int(share * room)
    done, rest = ("━", "─") if fancy else ("#", ".")
    return f"{text} {done * full}{rest * (room - full)}{tail}"


class Meter:
    """Shows progress and says things on ``stream``. ``clock`` gives seconds; call ``tick`` about twice a second.

    ``reword`` makes what is said fit the command line that was typed.
    """

    def __init__(
        self,
        stream: TextIO,
        clock: Callable[[], float],
        *,
        silent: bool = False,
        reword: Callable[[str], str] = str,
    ) -> None:
        self._stream = stream
        self._reword = reword
        self._clock = clock
        self._silent = silent
        self._redraws = stream.isatty() and os.environ.get("TERM") != "dumb"
        self._fancy = (getattr(stream, "encoding", None) or "").lower().replace("-", "") == "utf8"
        self._begun = clock()
        self._progress: Progress | None = None
        self._drawn = ""  # what stands on the line that is redrawn
        self._printed: Progress | None = None
        self._printed_at = self._begun

    def show(self, progress: Progress) -> None:
        """The counts are these now. Fetching gets a line of its own below that of processing."""
        if self._progress is not None and progress.fetching != self._progress.fetching:
            self.end()
        self._progress = progress
        self.tick()

    def tick(self) -> None:
        """Bring what is seen up to date, if it is time."""
        if self._silent or self._progress is None:
            return
        now = self._clock()
        if self._redraws:
            self._draw(redrawn(self._progress, now - self._begun, _width(self._stream) - 1, fancy=self._fancy))
        elif now - self._printed_at >= EVERY_SECONDS:
            self._print(self._progress)

    def say(self, text: str) -> None:
        """A sentence that stays; also where progress is not shown."""
        erase = _ERASE if self._drawn else ""
        self._drawn = ""
        self._write(f"{erase}solvisor: {clean(self._reword(text))}\n")
        self.tick()

    def end(self) -> None:
        """Leave the last counts on a line of their own."""
        if self._silent or self._progress is None:
            return
        self.tick()
        if self._redraws:
            self._write("\n")
        elif self._printed != self._progress:
            self._print(self._progress)
        self._drawn, self._progress = "", None

    def _print(self, progress: Progress) -> None:
        self._printed, self._printed_at = progress, self._clock()
        self._write(line(progress) + "\n")

    def _draw(self, text: str) -> None:
        if text != self._drawn:
            self._drawn = text
            self._write(_ERASE + text)

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # hung up, closed
            self._stream.write(text)
            self._stream.flush()


def _width(stream: TextIO) -> int:
    """Columns of the terminal behind ``stream``, which need not be the one behind standard output."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
