"""How things look on a terminal: durations, sizes, harmless text, aligned columns.

Rules: what comes from users and solvers passes ``clean`` before it is shown, for it may hold what moves a cursor or
turns the direction of writing. Styles are for terminals alone: piped output is plain, and nothing in it is wrapped or
cut.
This module knows no verb and no daemon.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, TextIO, TypeAlias

if TYPE_CHECKING:  # rich costs a third of what a client verb may take to start
    from rich.console import Console
    from rich.text import Text

Cell: TypeAlias = "str | Text"

WIDTH_WITHOUT_TERMINAL: Final = 100
_NARROWEST: Final = 24
"""Columns that the wrapping column gets at least; with less room there is no table."""
_GAP: Final = 2

_UNITS: Final = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SIZES: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def duration(seconds: float) -> str:
    """At most two units: ``4 ms``, ``0.12 s``, ``34 s``, ``4 m 10 s``, ``22 m``, ``1 h 12 m``, ``6 d``."""
    seconds = max(0.0, seconds)
    if 0 < seconds < 0.0995:
        return f"{max(1, round(seconds * 1000))} ms"
    if seconds < 0.995:
        return f"{seconds:.2f}".rstrip("0").removesuffix(".") + " s"
    if seconds < 9.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole >= 600:
        whole = round(whole / 60) * 60
    if whole >= 86400:
        whole = round(whole / 3600) * 3600
    parts = []
    for unit, length in _UNITS:
        count, whole = divmod(whole, length)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts)


def size(count: int) -> str:
    """Bytes with three figures at most: ``512 B``, ``1.5 MiB``, ``57 GiB``."""
    figures, unit = _scaled(count)
    return f"{figures} {unit}"


def share(used: int, total: int) -> str:
    """Bytes of bytes, in the unit of the whole: ``71/128 GiB``."""
    figures, unit = _scaled(total)
    return f"{_figures(used / 1024 ** _SIZES.index(unit))}/{figures} {unit}"


def _scaled(count: int) -> tuple[str, str]:
    power = 0
    while power < len(_SIZES) - 1 and round(count / 1024**power, 1) >= 1000:
        power += 1
    return _figures(count / 1024**power), _SIZES[power]


def _figures(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 9.95 else f"{number:.0f}"


def clean(text: str) -> str:
    """``text`` on one line, without control characters and whatever else has no shape of its own (bidi marks, ...)."""
    return " ".join("".join(char for char in text if char.isprintable() or char.isspace()).split())


def harmless(text: str) -> str:
    """``text`` of several lines, cleaned likewise but with its line ends and blanks."""
    return "".join(char for char in text if char.isprintable() or char == "\n")


def is_styled(stream: TextIO) -> bool:
    """Whether colours may be shown there."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def console(*, stderr: bool = False) -> Console:
    """Where to print: as wide as the terminal, with styles only on one, and not if ``NO_COLOR`` is set."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    on_terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=on_terminal,
        force_jupyter=False,
        color_system="auto" if is_styled(stream) else None,
        width=None if on_terminal else WIDTH_WITHOUT_TERMINAL,
        markup=False,
        highlight=False,
        emoji=False,
    )


def table(
    out: Console,
    rows: Iterable[Sequence[Cell]],
    *,
    titles: Sequence[str] = (),
    right: Collection[int] = (),
    indent: int = 0,
    wrap: int | None = None,
    cut: bool = False,
) -> None:
    """Print aligned columns; strings are cleaned first. Columns that are empty all the way down are left out.

    The column ``wrap`` (default: the last) takes what room the terminal has left and wraps in it; where that is too
    little, the cells of a row flow over several lines, and a row that begins with an empty cell is indented. ``right``
    are the columns that are aligned to the right. With ``cut`` that column is cut on a terminal instead of wrapped: a
    line for each row.
    """
    from rich.text import Text

    lines = [[Text(clean(cell)) if isinstance(cell, str) else cell for cell in row] for row in rows]
    filled = [at for at in range(max(map(len, lines), default=0)) if any(row[at].cell_len for row in lines)]
    if not filled:
        return
    flexible = wrap if wrap in filled else filled[-1]
    if titles:
        lines.insert(0, [Text(title, style="dim") for title in titles])
    widths = {at: max(row[at].cell_len for row in lines) for at in filled}
    room = out.width - indent - sum(width + _GAP for at, width in widths.items() if at != flexible)
    if out.is_terminal and widths[flexible] > room:
        if room < _NARROWEST:
            for row in lines:
                belongs_above = not row[filled[0]].cell_len
                told = [row[at] for at in filled if row[at].cell_len]
                _put_flowing(out, told, indent + _GAP * belongs_above, indent + 2 * _GAP)
            return
        widths[flexible] = room
    for row in lines:
        cells = {at: row[at] for at in filled}
        if cut and cells[flexible].cell_len > widths[flexible]:
            cells[flexible].truncate(widths[flexible], overflow="ellipsis")
        for piece in _wrapped(out, cells[flexible], widths[flexible]):
            _put(out, cells | {flexible: piece}, widths, right, indent)
            cells = dict.fromkeys(cells, Text())


def _wrapped(out: Console, cell: Text, width: int) -> list[Text]:
    if cell.cell_len <= width:
        return [cell]
    pieces = list(cell.wrap(out, max(2, width)))
    for piece in pieces:
        piece.rstrip()
    return pieces


def _put(
    out: Console, cells: Mapping[int, Text], widths: Mapping[int, int], right: Collection[int], indent: int
) -> None:
    from rich.text import Text

    line = Text(" " * indent)
    for at, cell in cells.items():
        blank = Text(" " * (widths[at] - cell.cell_len))
        line += blank + cell if at in right else cell + blank
        line.append(" " * _GAP)
    line.rstrip()
    out.print(line, soft_wrap=True)


def _put_flowing(out: Console, cells: Sequence[Text], indent: int, further: int) -> None:
    """Print cells one after the other on as many lines as they need; those that follow are indented ``further``."""
    from rich.text import Text

    line, below = Text(" " * indent), Text(" " * further)
    for cell in cells:
        if line.plain.strip() and line.cell_len + cell.cell_len > out.width:
            line.rstrip()
            out.print(line, soft_wrap=True)
            line = below.copy()
        *whole, last = _wrapped(out, cell, out.width - max(line.cell_len, below.cell_len))
        for piece in whole:
            out.print(line + piece, soft_wrap=True)
            line = below.copy()
        line += last
        line.append(" " * _GAP)
    line.rstrip()
    out.print(line, soft_wrap=True)
