"""TOML as text: parse it safely, and find the line where a key stands.

``tomllib`` gives values without line numbers, and takes time quadratic in the length of a dotted key. Rules: every text
passes ``_guard``, which is linear on any text, before the parser sees it; ``locate`` is for text the parser accepted.
This module knows nothing of what the keys mean.
"""

from __future__ import annotations

import re
import tomllib
from bisect import bisect_left
from typing import Any, Final

Path = tuple[str | int, ...]

KEY_BYTES: Final = 200
KEY_PARTS: Final = 9
DEPTH: Final = 32

# No pattern can fail once it has begun, so none is tried twice: linear on any text. A string left open runs to the end
# of its line or text. (Possessive quantifiers would say so, but Python 3.11.0 to 3.11.4 match them wrongly.)
_STRING: Final = (
    r'(?:"""(?:[^"\\]|\\.?|"(?!""))*(?:"{3,5}|\Z)'
    r"|'''(?:[^']|'(?!''))*(?:'{3,5}|\Z)"
    r'|"(?:[^"\\\n]|\\[^\n]?)*"?'
    r"|'[^'\n]*'?)"
)
_TOKEN: Final = re.compile(rf"(?P<string>{_STRING})|\#[^\n]*|(?P<other>[^\"'\#]+)", re.DOTALL)
_RUN: Final = re.compile(r"[\n,=\[\]{}]|[^\n,=\[\]{}]+")
_BLANK: Final = re.compile(r"(?:[ \t\n]|\#[^\n]*)*")
_KEY_PART: Final = re.compile(rf"[ \t]*(?P<part>[A-Za-z0-9_-]+|{_STRING})[ \t]*", re.DOTALL)
_SCALAR: Final = re.compile(rf"{_STRING}|[^,\]}}\n\#]+", re.DOTALL)


def parse(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ``ValueError`` with "line 3, column 7: what is wrong"."""
    _guard(text)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: an integer of 5,000 digits
        reason = str(error)
    where = re.search(r" \(at (line \d+, column \d+|end of document)\)$", reason)
    if where is None:
        raise ValueError(reason)
    reason = reason[: where.start()]
    if reason == "Cannot overwrite a value":
        reason = "this key is already set further up"
    raise ValueError(f"{where[1]}: {reason}")


def _guard(text: str) -> None:
    """Raise ``ValueError`` for what would make the parser slow or deep: keys of many parts, brackets in brackets."""
    bare = _TOKEN.sub(_without_strings, text)
    depth, line = 0, 1
    for piece in _RUN.findall(bare):
        if piece == "\n":
            line += 1
        elif piece in "[{":
            depth += 1
            if depth > DEPTH:
                raise ValueError(f"line {line}: brackets nested deeper than {DEPTH}")
        elif piece in "]}":
            depth = max(0, depth - 1)
        elif piece.count(".") >= KEY_PARTS or len(piece.strip().encode()) > KEY_BYTES:
            raise ValueError(f"line {line}: a key of more than {KEY_PARTS} parts or {KEY_BYTES} bytes")


def _without_strings(token: re.Match[str]) -> str:
    if token["other"]:
        return token["other"]
    # Of a string only its place in a dotted key matters, and its line ends for the count of lines.
    return '""' + "\n" * token.group().count("\n") if token["string"] else ""


def locate(text: str) -> dict[Path, int]:
    """The line (from 1) of every table, key and list item of a TOML text that parses."""
    return _Locator(text.replace("\r\n", "\n")).lines


def line_of(path: Path, lines: dict[Path, int]) -> int | None:
    """The line of ``path``, or of the innermost table around it that is written down."""
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path)


class _Locator:
    """Walks valid TOML, noting where each path begins. It checks nothing: the parser has."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._last_item: dict[Path, int] = {}
        table: Path = ()
        self._skip()
        while self._at < len(text):
            if text.startswith("[[", self._at):
                table = self._header(2)
            elif text[self._at] == "[":
                table = self._header(1)
            else:
                self._pair(table)
            self._skip()

    def _skip(self) -> None:
        match = _BLANK.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _note(self, path: Path) -> Path:
        self.lines.setdefault(path, bisect_left(self._ends, self._at) + 1)
        return path

    def _header(self, brackets: int) -> Path:
        """``[a.b]`` or ``[[a.b]]``; a name on the way that is a list of tables means its last one."""
        start, self._at = self._at, self._at + brackets
        parts = self._key()
        end, self._at = self._at + brackets, start
        path: Path = ()
        for part in parts[:-1]:
            path = self._note((*path, part))
            if path in self._last_item:
                path = (*path, self._last_item[path])
        path = self._note((*path, parts[-1]))
        if brackets == 2:
            self._last_item[path] = self._last_item.get(path, -1) + 1
            path = self._note((*path, self._last_item[path]))
        self._at = end
        return path

    def _key(self) -> list[str]:
        parts: list[str] = []
        while match := _KEY_PART.match(self._text, self._at):
            part = match["part"]
            if part[0] in "\"'":
                (part,) = tomllib.loads(f"{part} = 0")
            parts.append(part)
            self._at = match.end()
            if not self._text.startswith(".", self._at):
                break
            self._at += 1
        return parts

    def _pair(self, table: Path) -> None:
        """``key = value``, at the top or inside an inline table."""
        start = self._at
        parts = self._key()
        end, self._at = self._at + 1, start
        path = table
        for part in parts:
            path = self._note((*path, part))
        self._at = end
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip()
        opening = self._text[self._at]
        if opening not in "[{":
            match = _SCALAR.match(self._text, self._at)
            self._at = match.end() if match else self._at + 1
            return
        self._at += 1
        self._skip()
        item = 0
        while self._text[self._at] not in "]}":
            if opening == "[":
                self._value(self._note((*path, item)))
                item += 1
            else:
                self._pair(path)
            self._skip()
            if self._text[self._at] == ",":
                self._at += 1
                self._skip()
        self._at += 1
