"""Lines of a screen: pieces of text with styles, cut and aligned by the columns they take.

Rules: what comes from outside goes through ``Glyphs.shown`` before anything else, for it may hold what turns, moves or
hides. A line never takes more columns than it was made for. This module knows no daemon and no terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple, TypeAlias

from rich.cells import cell_len

from solvisor_service.cli.text import clean

Piece: TypeAlias = tuple[str, str]
"""A text and its style: words of ``bold dim reverse red green yellow cyan``."""
Line: TypeAlias = Sequence[Piece]

GAP: Final = 2
_LONGEST: Final = 4
"""Characters looked at for each column there is: what takes no room at all must cost no time either."""


class Glyphs(NamedTuple):
    """What lines are drawn with, by what the terminal can show."""

    encoding: str
    full: str
    empty: str
    mark: str
    more: str
    arrows: str

    def shown(self, text: str) -> str:
        """``text`` on one line, harmless, and in characters that the terminal has."""
        return clean(text).encode(self.encoding, "replace").decode(self.encoding)

    def line(self, text: str) -> str:
        """The same with its blanks: a line of a log."""
        text = "".join(char for char in text.expandtabs() if char.isprintable())
        return text.encode(self.encoding, "replace").decode(self.encoding)


def glyphs(encoding: str) -> Glyphs:
    """Those of a terminal with this encoding."""
    try:
        "━─▸…↑↓".encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Glyphs("ascii", "#", "-", ">", "...", "arrows")
    return Glyphs(encoding, "━", "─", "▸", "…", "↑↓")


def cut(text: str, width: int, more: str = "") -> str:
    """``text`` in at most ``width`` columns; what was cut ends in ``more``."""
    if len(text) <= _LONGEST * width and cell_len(text) <= width:
        return text
    room = width - cell_len(more)
    if room < 0:
        return cut(text, width) if more else ""
    kept, used = [], 0
    for char in text[: _LONGEST * width]:
        used += cell_len(char)
        if used > room:
            break
        kept.append(char)
    return "".join(kept) + more


def fit(text: str, width: int, more: str = "", *, right: bool = False) -> str:
    """``text`` in exactly ``width`` columns."""
    text = cut(text, width, more)
    blank = " " * (width - cell_len(text))
    return blank + text if right else text + blank


def width_of(line: Line) -> int:
    """The columns that a line takes."""
    return sum(cell_len(text) for text, _ in line)


def cropped(line: Line, width: int, more: str = "") -> list[Piece]:
    """A line in at most ``width`` columns."""
    kept: list[Piece] = []
    for text, style in line:
        room = width - width_of(kept)
        if cell_len(text) > room:
            return [*kept, (cut(text, room, more), style)]
        kept.append((text, style))
    return kept


def flow(parts: Iterable[Line], width: int, *, most: int, indent: str = "", more: str = "") -> list[list[Piece]]:
    """Parts beside each other, on at most ``most`` lines that end between two of them; ``indent`` begins each."""
    lines: list[list[Piece]] = []
    for part in parts:
        gap = "   " if lines else indent
        if lines and width_of(lines[-1]) + len(gap) + width_of(part) <= width:
            lines[-1] += [(gap, ""), *part]
        elif len(lines) == most:
            lines[-1] = cropped([*lines[-1], (f" {more}", "")], width)
            break
        else:
            lines.append(cropped([(indent, ""), *part], width, more))
    return lines


def wrapped(text: str, width: int) -> list[str]:
    """``text`` on lines of at most ``width`` columns that end between words, where these are not too long."""
    lines, line = [], ""
    for word in text.split():
        if line and cell_len(line) + 1 + cell_len(word) <= width:
            line += f" {word}"
            continue
        if line:
            lines.append(line)
        while cell_len(word) > width:
            piece = cut(word, width) or word[0]
            lines.append(piece)
            word = word[len(piece) :]
        line = word
    return [*lines, line] if line else lines
