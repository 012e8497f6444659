"""A submission as it streams in: parts to files, without ever holding more than a chunk.

Rules: what is not a file is bounded before it is kept. This module does not know what becomes of the files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from solvisor.errors import Refused
from solvisor.jobfile import LARGEST_FILE

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

Begin = Callable[[str], Awaitable[None]]
Write = Callable[[bytes], Awaitable[None]]
End = Callable[[], Awaitable[None]]

_HEADER_MAX = 8 << 10
"""Bytes in the headers of one part."""


async def receive(
    chunks: AsyncIterator[bytes], content_type: str, begin: Begin, write: Write, end: End
) -> bytes | None:
    """Read a ``multipart/form-data`` body: each part with a file name goes to ``begin``, ``write``, ``end``.

    Returns the bytes of the part ``job``, if there is one, whether it has a file name or not. Raises ``Refused``.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise Refused("usage", "send the files as multipart/form-data, as curl -F file=@beam.inp does")
    parts = _Parts()
    try:
        parser = MultipartParser(options[b"boundary"], parts.callbacks)
    except FormParserError as error:
        raise _no_good(error) from None
    job: bytearray | None = None
    is_file = False
    async for chunk in chunks:
        try:
            parser.write(chunk)
        except FormParserError as error:
            raise _no_good(error) from None
        for event, data in parts.take():
            match event:
                case "begin":
                    name, filename = _names(data)
                    is_file = name != "job" and filename is not None
                    if name == "job" and job is None:
                        job = bytearray()
                    elif is_file and filename is not None:
                        await begin(filename)
                    else:
                        raise Refused("usage", f"there is no part {name!r}; the parts are one job, and files")
                case "data" if is_file:
                    await write(data)
                case "data" if job is not None:
                    job += data
                    if len(job) > LARGEST_FILE:
                        raise Refused("job_file_too_large", f"the job is larger than {LARGEST_FILE >> 10} KiB")
                case "end" if is_file:
                    await end()
    if not parts.complete:
        raise Refused("usage", "the body ended before its last part did; send it again")
    return None if job is None else bytes(job)


class _Parts:
    """Turns the callbacks of the parser into a list of events: begin (the header), data, end."""

    def __init__(self) -> None:
        self.complete = False
        self._events: list[tuple[str, bytes]] = []
        self._field = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._size = 0
        self.callbacks: MultipartCallbacks = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": lambda: self._events.append(("begin", self._disposition)),
            "on_part_data": lambda data, start, end: self._events.append(("data", bytes(data[start:end]))),
            "on_part_end": lambda: self._events.append(("end", b"")),
            "on_end": self._end,
        }

    def take(self) -> list[tuple[str, bytes]]:
        """What happened since the last time."""
        events, self._events = self._events, []
        return events

    def _part_begin(self) -> None:
        self._disposition = b""
        self._size = 0

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._field, data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._grow(self._value, data[start:end])

    def _grow(self, target: bytearray, data: bytes) -> None:
        self._size += len(data)
        if self._size > _HEADER_MAX:
            raise Refused("usage", f"a part has more than {_HEADER_MAX} bytes of headers")
        target += data

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._field.clear()
        self._value.clear()

    def _end(self) -> None:
        self.complete = True


def _no_good(error: FormParserError) -> Refused:
    return Refused("usage", f"the body is not good multipart/form-data: {error}")


def _names(disposition: bytes) -> tuple[str, str | None]:
    """The name of a part, and of its file if it is one."""
    _, options = parse_options_header(disposition)
    filename = options.get(b"filename")
    try:
        name = options.get(b"name", b"").decode()
        return name, None if filename is None else filename.decode()
    except UnicodeDecodeError:
        raise Refused("name", "the name of a file is not UTF-8; rename it") from None
