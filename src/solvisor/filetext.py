"""The text of files that solvers wrote, of any size and content: search it, take its end, make a line of it.

Rules: a file is read in windows, so that memory is bounded and other threads get their turn between them; a symbolic
link, a pipe or a device is not read; whatever the bytes are, what is shown of them is printable. This module must not
know what the files mean.
"""

from __future__ import annotations

import codecs
import errno
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple, TypeAlias

StrPath: TypeAlias = str | os.PathLike[str]

WINDOW: Final = 1 << 20
OVERLAP: Final = 64 << 10
"""A match longer than this may be cut short."""
TAIL_BYTES: Final = 4096
TAIL_LINES: Final = 20


def cut_line(count: int) -> bytes:
    """What stands in a log instead of ``count`` bytes of its middle."""
    return f"\n[solvisor: {count} bytes cut here, the log was longer than its cap]\n".encode()


class Found(NamedTuple):
    """A match: its text (group 1 if the pattern has one), the number of its line, and the line it begins in."""

    text: str
    line: int
    whole_line: str


class _Window(NamedTuple):
    """A piece of text and the range in which a match may begin; ``line`` is the number of its first line."""

    text: str
    start: int
    stop: int
    line: int


def open_regular(path: StrPath) -> BinaryIO:
    """Open a regular file for reading. Raises ``OSError``, also if the name is a link or anything else."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    return file


def search(path: StrPath, patterns: Sequence[re.Pattern[str]]) -> list[Found | None]:
    """The first match of each pattern. Lines end at ``\\n``; for ``^`` and ``$`` also where a progress display rewinds.

    Raises ``OSError``.
    """
    with open_regular(path) as file:
        return _search(_windows(_data(file)), patterns)


def search_nothing(patterns: Sequence[re.Pattern[str]]) -> list[Found | None]:
    """As ``search`` in an empty file."""
    return _search(_windows(iter(())), patterns)


def _search(windows: Iterable[_Window], patterns: Sequence[re.Pattern[str]]) -> list[Found | None]:
    found: list[Found | None] = [None] * len(patterns)
    for window in windows:
        # The same length, so that places in one are places in the other.
        text = window.text.replace("\r", "\n")
        for index, pattern in enumerate(patterns):
            match = pattern.search(text, window.start) if found[index] is None else None
            if match and match.start() < window.stop:
                found[index] = _found(match, window)
        if None not in found:
            break
    return found


def tail(path: StrPath) -> str:
    """The end of a text file, at most 20 lines and 4 KiB, what is not printable escaped. Raises ``OSError``."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - TAIL_BYTES))
        data = file.read(TAIL_BYTES)
    lines = data.decode(errors="replace").replace("\0", "").rstrip().split("\n")
    if size > TAIL_BYTES and len(lines) > 1:
        del lines[0]
    return "\n".join(_as_displayed(line) for line in lines[-TAIL_LINES:])


_TERMINAL_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[@-Z\\^_])")
"""CSI and OSC sequences, and the shorter escapes (ECMA-48)."""


def one_line(text: str, most: int) -> str:
    """``text`` on one line of at most ``most`` characters: blanks collapsed, what is not printable left out.

    So are whole sequences that a terminal would obey (colours, titles), not only the character that begins them.
    """
    plain = _TERMINAL_SEQUENCE.sub("", text)
    line = " ".join("".join(char for char in plain if char.isprintable() or char.isspace()).split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _as_displayed(line: str) -> str:
    """What a terminal would have left of the line: a progress display overwrites itself."""
    parts = [part for part in line.split("\r") if part.strip()] or [""]
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in parts[-1])


def _found(match: re.Match[str], window: _Window) -> Found:
    text = match[1] if match.re.groups and match[1] is not None else match[0]
    begin = match.string.rfind("\n", 0, match.start()) + 1
    end = match.string.find("\n", match.start())
    whole_line = match.string[begin : end if end >= 0 else None]
    return Found(text, window.line + window.text.count("\n", 0, match.start()), whole_line)


def _windows(data: Iterator[bytes]) -> Iterator[_Window]:
    """The text in overlapping windows: a match that begins in the overlap is left to the next one."""
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    text, start, line = "", 0, 1
    last = False
    while not last:
        chunk = next(data, b"")
        last = not chunk
        # What the last window left over comes first, so a line end cut in two is whole again.
        text = (text + decode(chunk, last)).replace("\r\n", "\n")
        stop = len(text) + 1 if last else len(text) - OVERLAP
        if stop > start:
            yield _Window(text, start, stop, line)
            # One character before the start stays, for ^ and \b to look at.
            line += text.count("\n", 0, stop - 1)
            text, start = text[stop - 1 :], 1


def _data(file: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file without its holes, which may be as large as a log that was never stopped."""
    at = 0
    while True:
        end = at + WINDOW
        if sys.platform == "linux":
            try:
                at = file.seek(at, os.SEEK_DATA)
            except OSError:  # nothing but a hole up to the end
                return
            end = min(at + WINDOW, file.seek(at, os.SEEK_HOLE))
            file.seek(at)
        chunk = file.read(end - at)
        if not chunk:
            return
        yield chunk
        at += len(chunk)
