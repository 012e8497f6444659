"""Structured logs: one JSON object per line in a file that rotates, and the same lines (or pretty ones) on a stream.

Rules: event names are constants of the code (``job.accepted``), never a user's bytes; those are values, and values are
escaped; so is what libraries log. Whoever logs never waits: the file and the stream each have one thread that writes,
and a bounded queue. Lines are written ``WAIT_SECONDS`` after the first that waits, together: what is going on is not
held up by their being written, and who logs a lot wakes nobody by it. What cannot be written (full disk, closed or
unread pipe) is dropped, counted, and the count is logged as ``log.dropped`` once writing works again. It must not know
jobs, states or the store.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import os
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Final, TextIO

import msgspec
import structlog
from structlog.typing import EventDict, WrappedLogger

from .clock import now_us
from .processors import stand_back

FILE_MAX_BYTES = 16 * 1024 * 1024
FILES_KEPT = 5
QUEUE_LINES = 10_000  # what may wait for one writer before it drops
WAIT_SECONDS = 0.05  # how long a line waits for others to be written with
ATOMIC_BYTES = 4096  # what others write into the same pipe does not come between (PIPE_BUF)
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

    def write(self, lines: Sequence[bytes]) -> int:
        """Append these lines; how many could not be."""
        return sum(map(self._append, _portions(lines, FILE_MAX_BYTES // 256)))

    def _append(self, portion: Sequence[bytes]) -> int:
        if self._size + self._torn + sum(map(len, portion)) > self._rotate_at:
            self._rotate()
        data = b"".join((b"\n" * self._torn, *portion))
        try:
            written = os.write(self._fd, data)
        except OSError:
            return len(portion)
        lost = len(portion) - _whole(portion, written - self._torn)
        if written:
            self._size += written
            self._torn = not data[:written].endswith(b"\n")
        return lost

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
    """A thread that writes lines in their order, so that whoever has a line need not wait.

    A line ends with its line break. ``write`` is given those that wait; it may block, and returns how many it could not
    write. ``render_dropped`` makes the line that tells how many were dropped. ``lost`` is how many were dropped so far,
    told or not.
    """

    def __init__(
        self, name: str, write: Callable[[Sequence[bytes]], int], render_dropped: Callable[[int], bytes]
    ) -> None:
        self._write = write
        self._render_dropped = render_dropped
        self._lock = threading.Lock()  # guards the four below
        self.lost = 0
        self._lines: list[bytes] = []
        self._dropped = 0
        self._closing = False
        self._first = _Signal()
        self._end = _Signal()
        # A daemon thread: one that is stuck in a write must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, line: bytes) -> None:
        """Have ``line`` written soon; never blocks. It is dropped when too many wait already."""
        with self._lock:
            if self._closing or len(self._lines) >= QUEUE_LINES:
                self._drop(1)
                return
            if not self._lines:
                self._first.give()
            self._lines.append(line)

    def close(self, seconds: float) -> bool:
        """Write what waits, for at most ``seconds``; whether all was tried and the thread has ended."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._end.give()
                if not self._lines:
                    self._first.give()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        stand_back()
        while not self._closing or self._lines:
            self._first.wait()
            self._end.wait(WAIT_SECONDS)
            with self._lock:
                lines, self._lines = self._lines, []
            lost = self._write(lines) if lines else 0
            with self._lock:
                self._drop(lost)
                dropped = 0 if lost or self._lines else self._dropped
            if dropped and not self._write([self._render_dropped(dropped)]):
                with self._lock:
                    self._dropped -= dropped

    def _drop(self, count: int) -> None:
        self._dropped += count
        self.lost += count


class _Signal:
    """What one thread gives once and another waits for: one call into the kernel each, unlike an event's several."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def give(self) -> None:
        """Have the one who waits go on; not again before he did."""
        self._lock.release()

    def wait(self, seconds: float = -1) -> None:
        """Until it is given, or so long."""
        self._lock.acquire(timeout=seconds)


class Log:
    """Where all lines go, until ``close``; made by ``configure``."""

    def __init__(self, stream: TextIO, file: Path | None) -> None:
        self._on_stream = _for_people() if stream.isatty() else None
        self._sink = Sink(file) if file is not None else None
        self._file = Writer("solvisor-log-file", self._sink.write, self._dropped_as_json) if self._sink else None
        self._fd, write = _writing_to(stream)
        self._stream = Writer("solvisor-log-stream", write, self._dropped_on_stream)
        self._logger = _StreamLogger(self._stream)
        self._closed = False
        atexit.register(self.close)

    def process(self, logger: WrappedLogger, name: str, event: EventDict) -> bytes:
        """The only processor of structlog: the line for the stream; its JSON goes to the file."""
        event["level"] = name
        event["timestamp"] = _timestamp()
        if "exc_info" in event:
            event = structlog.processors.format_exc_info(logger, name, event)
        line = _as_json(event)
        if self._file is not None:
            self._file.put(line)
        return line if self._on_stream is None else self._on_stream(event)

    def make_logger(self, *_: object) -> _StreamLogger:
        """What structlog hands the line for the stream to."""
        return self._logger

    def lost(self) -> int:
        """How many lines could not be written so far, to the file or to the stream."""
        return self._stream.lost + (self._file.lost if self._file is not None else 0)

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

    def _dropped_as_json(self, count: int) -> bytes:
        return _as_json(_dropped(count))

    def _dropped_on_stream(self, count: int) -> bytes:
        return (self._on_stream or _as_json)(_dropped(count))


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
    structlog.configure(
        processors=[log.process],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=log.make_logger,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)
    return log


def _writing_to(stream: TextIO) -> tuple[int | None, Callable[[Sequence[bytes]], int]]:
    """How a ``Writer`` writes to ``stream``, and the file descriptor of ours that this uses, if it has one.

    Not through the stream's buffer: a thread stuck in there holds its lock, and the interpreter aborts at its end.
    """
    try:
        stream.flush()
        fd = os.dup(stream.fileno())
    except (OSError, ValueError):

        def write_text(lines: Sequence[bytes]) -> int:
            try:
                stream.write(b"".join(lines).decode())
                stream.flush()
            except (OSError, ValueError):
                return len(lines)
            return 0

        return None, write_text

    def write_portion(portion: Sequence[bytes]) -> int:
        data = b"".join(portion)
        written = 0
        try:
            while written < len(data):
                written += os.write(fd, data[written:])
        except OSError:
            pass
        return len(portion) - _whole(portion, written)

    return fd, lambda lines: sum(map(write_portion, _portions(lines, ATOMIC_BYTES)))


def _portions(lines: Sequence[bytes], most: int) -> Iterator[Sequence[bytes]]:
    """So many lines together as take no more than ``most``; a longer one alone."""
    ends = [0, *accumulate(map(len, lines))]
    begin = 0
    while begin < len(lines):
        end = max(begin + 1, bisect_right(ends, ends[begin] + most) - 1)
        yield lines[begin:end]
        begin = end


def _whole(portion: Sequence[bytes], written: int) -> int:
    """How many lines are within the first bytes."""
    return bisect_right([*accumulate(map(len, portion))], written)


def _for_people() -> Callable[[EventDict], bytes]:
    render = structlog.dev.ConsoleRenderer(pad_event_to=18)
    return lambda event: render(None, "", event).encode(errors="backslashreplace") + b"\n"


_encode: Final = msgspec.json.Encoder(enc_hook=str).encode
_encode_anything: Final = json.JSONEncoder(default=str, separators=(",", ":")).encode


def _as_json(event: EventDict) -> bytes:
    """A line of printable ASCII."""
    try:
        line = _encode(event)
    except UnicodeEncodeError:  # a name that is no text
        return _escaped(event)
    return line + b"\n" if line.isascii() and b"\x7f" not in line else _escaped(event)


def _escaped(event: EventDict) -> bytes:
    return _encode_anything(event).encode() + b"\n"


def _timestamp() -> str:
    seconds, micros = divmod(now_us(), 1_000_000)
    return f"{_to_the_second(seconds)}.{micros:06d}Z"


@functools.lru_cache(maxsize=1)
def _to_the_second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _dropped(count: int) -> EventDict:
    return {"event": "log.dropped", "level": "warning", "count": count, "timestamp": _timestamp()}
