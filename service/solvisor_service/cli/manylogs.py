"""The logs of several jobs at once, line by line, each line with the job it is of.

Rules: a line is printed whole, whoever else writes meanwhile; a reader that is slow holds up the streams and no memory.
What is read in threads is printed in one. Piped, the bytes of a line are the solver's own; on a terminal they are
cleaned and the jobs told apart by colours.
"""

from __future__ import annotations

import argparse
import codecs
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from solvisor.errors import SolvisorError
from solvisor_service.cli.away import Patience
from solvisor_service.cli.jobtext import short_ids
from solvisor_service.cli.shared import complain, print_json, tell
from solvisor_service.cli.text import is_styled
from solvisor_service.cli.verbs.logs import Screen, pieces_of, stream_of
from solvisor_service.client import NotRunning

if TYPE_CHECKING:
    from solvisor.views import JobView
    from solvisor_service.client import Client

FOLLOWED_AT_ONCE: Final = 16
"""Logs that are read side by side; the others come as these end."""

LINE_MAX: Final = 64 << 10
"""A line that is longer is printed in pieces of so many bytes."""

WAITING_MAX: Final = 256
"""Pieces that wait to be printed."""

_COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""Of terminals; none is red, which is for what needs a person."""


class _Said(NamedTuple):
    """A piece of a log, or what is to be said of it; ``data`` is ``None`` once it is at its end."""

    job: str
    data: bytes | None = None
    offset: int | None = None
    note: str | None = None
    error: BaseException | None = None


def print_logs(client: Client, jobs: Sequence[JobView], arguments: argparse.Namespace) -> int:
    """Print the logs of ``jobs``; returns the exit status of the first that could not be read, else 0.

    Followed they are read side by side, else one after the other. Raises ``NotRunning``.
    """
    said: queue.Queue[_Said] = queue.Queue(WAITING_MAX)
    waiting: queue.SimpleQueue[JobView] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    patience = Patience(client, tell)
    at_once = min(len(jobs), FOLLOWED_AT_ONCE) if arguments.follow else 1
    for _ in range(at_once):
        # They wait for the daemon or for whoever prints, and end with the process.
        threading.Thread(target=_read_all, args=(client, waiting, arguments, patience, said.put), daemon=True).start()
    show = _shower(jobs, arguments)
    status = 0
    left = len(jobs)
    while left:
        each = said.get()
        if isinstance(each.error, SolvisorError) and not isinstance(each.error, NotRunning):
            complain(each.error, arguments, about=each.job)
            status = status or each.error.exit_status
        elif each.error is not None:
            raise each.error
        elif each.note is not None:
            complain(each.note, arguments, about=each.job)
            continue
        show(each.job, each.data, each.offset)
        left -= each.data is None
    return status


def _read_all(
    client: Client,
    waiting: queue.SimpleQueue[JobView],
    arguments: argparse.Namespace,
    patience: Patience,
    put: Callable[[_Said], None],
) -> None:
    """Read one log after the other; in a thread of its own."""
    while True:
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            note = partial(_note, put, job.id)
            for data, offset in pieces_of(client, job, arguments, patience, note):
                put(_Said(job.id, data, offset))
        except Exception as error:  # noqa: BLE001  it is raised where it can be told
            put(_Said(job.id, error=error))
        else:
            put(_Said(job.id))


def _note(put: Callable[[_Said], None], job: str, text: str) -> None:
    put(_Said(job, note=text))


def _shower(jobs: Sequence[JobView], arguments: argparse.Namespace) -> Callable[[str, bytes | None, int | None], None]:
    """What prints a piece of the log of a job; ``None`` ends that log."""
    if arguments.json:
        decoders = {job.id: codecs.getincrementaldecoder("utf-8")("replace") for job in jobs}

        def show_json(job: str, data: bytes | None, offset: int | None) -> None:
            text = decoders[job].decode(data or b"", data is None)
            if text:
                print_json({"id": job, "stream": stream_of(arguments), "offset": offset, "text": text}, line=True)

        return show_json
    labels = short_ids([job.id for job in jobs])
    width = max(map(len, labels.values()))
    screens = {
        job.id: _Lines(f"{labels[job.id]:{width}}  ", _COLOURS[number % len(_COLOURS)])
        for number, job in enumerate(jobs)
    }

    def show(job: str, data: bytes | None, _: int | None) -> None:
        sys.stdout.buffer.write(screens[job].shown(data))
        sys.stdout.buffer.flush()

    return show


class _Lines:
    """The lines of one log, each with what it begins with."""

    def __init__(self, label: str, colour: int) -> None:
        self._on_terminal = sys.stdout.isatty()
        styled = is_styled(sys.stdout)
        self._label = (f"\x1b[{colour}m{label}\x1b[0m" if styled else label).encode()
        self._rest = b""

    def shown(self, data: bytes | None) -> bytes:
        """The lines that are whole with ``data``; ``None`` ends the last."""
        *lines, self._rest = (self._rest + (data or b"")).split(b"\n")
        while len(self._rest) > LINE_MAX:
            lines.append(self._rest[:LINE_MAX])
            self._rest = self._rest[LINE_MAX:]
        if data is None and self._rest:
            lines.append(self._rest)
            self._rest = b""
        return b"".join(self._label + self._clean(line) + b"\n" for line in lines)

    def _clean(self, line: bytes) -> bytes:
        if not self._on_terminal:
            return line
        text = Screen().shown(line.decode(errors="replace").rstrip("\r").replace("\r", "\n"), last=True)
        return text.replace("\n", "\n" + " " * 4).encode()
