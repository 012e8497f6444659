"""Structured logs: one JSON object per line in a file that rotates, and the same lines (or pretty ones) on a stream.

Rules: event names are constants of the code (``job.accepted``), never a user's bytes; those are values, and values are
escaped. A sink that fails (full disk, closed pipe) never disturbs a job: the line is dropped and counted. It must not
know jobs, states or the store.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

FILE_MAX_BYTES = 16 * 1024 * 1024
FILES_KEPT = 5


class Sink:
    """A log file that is renamed to ``.1``, ``.2`` ... when it grows beyond ``FILE_MAX_BYTES``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dropped = 0
        self._fd = -1
        self._size = 0
        self._open()

    def write(self, line: str) -> None:
        """Append ``line`` and a newline; on failure count it as dropped."""
        data = line.encode() + b"\n"
        try:
            if self._size + len(data) > FILE_MAX_BYTES:
                self._rotate()
            self._size += os.write(self._fd, data)
        except OSError:
            self.dropped += 1

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        self._size = os.fstat(self._fd).st_size

    def _rotate(self) -> None:
        for n in range(FILES_KEPT - 1, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{n}")
            with contextlib.suppress(FileNotFoundError):
                os.replace(older, self.path.with_name(f"{self.path.name}.{n + 1}"))
        os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))
        os.close(self._fd)
        self._open()


class _Fan:
    """The last processor: every line as JSON to the sink, and rendered for people or programs to the stream."""

    def __init__(self, sink: Sink | None, pretty: bool) -> None:
        self._sink = sink
        self._json = structlog.processors.JSONRenderer(serializer=json.dumps, default=str)
        self._people = structlog.dev.ConsoleRenderer(pad_event_to=18) if pretty else None

    def __call__(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        line = self._json(logger, name, dict(event))
        text = line if isinstance(line, str) else line.decode()
        if self._sink is not None:
            self._sink.write(text)
        return text if self._people is None else self._people(logger, name, event)


class _Stream:
    """Writes to a text stream; a broken stream drops lines instead of raising."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, message: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(message + "\n")
            self._stream.flush()

    log = debug = info = warning = error = critical = exception = msg


def configure(stream: TextIO, *, file: Path | None = None, level: str = "info") -> Sink | None:
    """Send all log lines to ``stream`` (pretty on a terminal, JSON elsewhere) and as JSON to ``file``, if given."""
    sink = Sink(file) if file is not None else None
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _Fan(sink, stream.isatty()),
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=lambda *_: _Stream(stream),
        cache_logger_on_first_use=False,
    )
    return sink
