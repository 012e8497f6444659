"""Structured logs: one JSON object per line in a file that rotates, and the same lines (or pretty ones) on a stream.

Rules: event names are constants of the code (``job.accepted``), never a user's bytes; those are values, and values are
escaped; so is what libraries log. Whoever logs never waits: the file and the stream each have one thread that writes,
and a bounded queue. What cannot be written (full disk, closed or unread pipe) is dropped, counted, and the count is
logged as ``log.dropped`` once writing works again. It must not know jobs, states or the store.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, WrappedLogger

FILE_MAX_BYTES = 16 * 1024 * 1024
FILES_KEPT = 5
QUEUE_LINES = 10_000  # what one writer may be behind before it drops
FILE_CLOSE_SECONDS = 5.0  # how long closing waits for the lines that are still to be written
STREAM_CLOSE_SECONDS = 1.0


class Sink:
    """A log file that is renamed to ``.1``, ``.2`` ... when it grows beyond ``FILE_MAX_BYTES``. For one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = self._open(path)
        self._size = os.fstat(self._fd).st_size
        self._rotate_at = FILE_MAX_BYTES
        self._torn = False  # the last line is there in part only

    def write(self, line: str) -> None:
        """Append ``line`` and a newline. Raises ``OSError``."""
        data = ("\n" if self._torn else "").encode() + line.encode(errors="backslashreplace") + b"\n"
        if self._size + len(data) > self._rotate_at:
            self._rotate()
        written = os.write(self._fd, data)
        self._size += written
        self._torn = written < len(data)
        if self._torn:
            raise OSError(f"only a part of a line fitted into {self.path}")

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _rotate(self) -> None:
        """Begin a new file; where that fails go on with the old one and try again later."""
        fresh = self.path.with_name(f"{self.path.name}.new")
        newest = self.path.with_name(f"{self.path.name}.1")
        fd = -1
        try:
            fd = self._open(fresh, os.O_TRUNC)
            for n in range(FILES_KEPT - 1, 0, -1):
                older = self.path.with_name(f"{self.path.name}.{n}")
                with contextlib.suppress(FileNotFoundError):
                    os.replace(older, self.path.with_name(f"{self.path.name}.{n + 1}"))
            with contextlib.suppress(FileNotFoundError):  # somebody tidied up
                os.replace(self.path, newest)
            os.replace(fresh, self.path)
        except OSError:
            if fd >= 0:
                os.close(fd)
            self._rotate_at = self._size + FILE_MAX_BYTES // 16
            return
        old, self._fd = self._fd, fd
        self._size, self._rotate_at, self._torn = 0, FILE_MAX_BYTES, False
        os.close(old)

    @staticmethod
    def _open(path: Path, how: int = 0) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | how, 0o640)


class Writer:
    """A thread that writes lines one after the other, so that whoever has a line need not wait.

    ``write`` may block or raise; ``render_dropped`` makes the line that tells how many were dropped.
    """

    def __init__(self, name: str, write: Callable[[str], None], render_dropped: Callable[[int], str]) -> None:
        self._write = write
        self._render_dropped = render_dropped
        self._news = threading.Condition()  # guards the three below
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._closing = False
        # A daemon thread: one that is stuck in a write must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: str) -> None:
        """Have ``line`` written soon; never blocks. It is dropped when too many wait already."""
        with self._news:
            if self._closing or len(self._lines) >= QUEUE_LINES:
                self._dropped += 1
            else:
                self._lines.append(line)
                self._news.notify()

    def close(self, seconds: float) -> bool:
        """Write what waits, for at most ``seconds``; whether all was tried and the thread has ended."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (line := self._next()) is not None:
            written = self._try(line)
            with self._news:
                self._dropped += not written
                dropped = self._dropped if written and not self._lines else 0
            if dropped and self._try(self._render_dropped(dropped)):
                with self._news:
                    self._dropped -= dropped

    def _next(self) -> str | None:
        with self._news:
            self._news.wait_for(lambda: self._lines or self._closing)
            return self._lines.popleft() if self._lines else None

    def _try(self, line: str) -> bool:
        try:
            self._write(line)
        except (OSError, ValueError):
            return False
        return True


class Log:
    """Where all lines go, until ``close``; made by ``configure``."""

    def __init__(self, stream: TextIO, file: Path | None) -> None:
        self._json = structlog.processors.JSONRenderer(serializer=json.dumps, default=str)
        self._people = structlog.dev.ConsoleRenderer(pad_event_to=18) if stream.isatty() else None
        self._sink = Sink(file) if file is not None else None
        self._file = Writer("solvisor-log-file", self._sink.write, self._dropped_as_json) if self._sink else None
        self._fd, write = _writing_to(stream)
        self._stream = Writer("solvisor-log-stream", write, self._dropped_on_stream)
        self._closed = False
        atexit.register(self.close)

    def process(self, logger: WrappedLogger, name: str, event: EventDict) -> str:
        """The last processor of structlog: the line for the stream; its JSON goes to the file."""
        line = self._as_json(event)
        if self._file is not None:
            self._file.put(line)
        return line if self._people is None else self._people(logger, name, event)

    def make_logger(self, *_: object) -> _StreamLogger:
        """What structlog hands the line for the stream to."""
        return _StreamLogger(self._stream)

    def close(self) -> None:
        """Write what waits and end the threads; one that is stuck is left behind after a bounded time."""
        if self._closed:
            return
        self._closed = True
        atexit.unregister(self.close)
        # What a stuck thread still uses stays open.
        if self._file is not None and self._file.close(FILE_CLOSE_SECONDS) and self._sink is not None:
            self._sink.close()
        if self._stream.close(STREAM_CLOSE_SECONDS) and self._fd is not None:
            os.close(self._fd)

    def _as_json(self, event: EventDict) -> str:
        line = self._json(None, "", dict(event))
        return line if isinstance(line, str) else line.decode()

    def _dropped_as_json(self, count: int) -> str:
        return self._as_json(_dropped(count))

    def _dropped_on_stream(self, count: int) -> str:
        return self._dropped_as_json(count) if self._people is None else self._people(None, "", _dropped(count))


class _Bridge(logging.Handler):
    """Brings what libraries log by the standard library into the same lines."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log ``record`` as ``library.log``; never raises."""
        try:
            structlog.get_logger().log(
                record.levelno, "library.log", library=record.name, text=record.getMessage(), exc_info=record.exc_info
            )
        except Exception:  # noqa: BLE001  a library's faulty line must not become our trouble
            self.handleError(record)


class _StreamLogger:
    """The shape of a logger that structlog wants."""

    def __init__(self, stream: Writer) -> None:
        self.msg = stream.put
        self.log = self.debug = self.info = self.warning = self.error = self.critical = self.exception = self.msg


def configure(stream: TextIO, *, file: Path | None = None, level: str = "info") -> Log:
    """Send all log lines to ``stream`` (pretty on a terminal, JSON elsewhere) and as JSON to ``file``, if given.

    Close what it returns, or the last lines may be missing. Raises ``OSError`` if ``file`` cannot be opened.
    """
    log = Log(stream, file)
    processors: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        log.process,
    ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=log.make_logger,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    return log


def _writing_to(stream: TextIO) -> tuple[int | None, Callable[[str], None]]:
    """How to write a line to ``stream``, and the file descriptor of ours that this uses, if it has one.

    Not through the stream's buffer: a thread stuck in there holds its lock, and the interpreter aborts at its end.
    """
    try:
        stream.flush()
        fd = os.dup(stream.fileno())
    except (OSError, ValueError):

        def write_text(line: str) -> None:
            stream.write(line + "\n")
            stream.flush()

        return None, write_text

    def write_bytes(line: str) -> None:
        left = memoryview(line.encode(errors="backslashreplace") + b"\n")
        while left:
            left = left[os.write(fd, left) :]

    return fd, write_bytes


def _dropped(count: int) -> EventDict:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return {"event": "log.dropped", "level": "warning", "count": count, "timestamp": now}
