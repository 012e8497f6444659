"""Whether a simulation left what it should: its result file has rows, only finite numbers, and reaches the stop time.

Rules: a result can be gigabytes, so it is read in pieces and never held; each thing looked at is a check with what was
found, also when it is good. Of the format ``plt`` only the size is looked at. For a thread. This module must not know
how a simulation is started.
"""

from __future__ import annotations

import csv
import math
import os
import re
import struct
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Final

from msgspec import Struct

from solvisor.filetext import open_regular
from solvisor.model import Check
from solvisor.names import printable

SHOWN_FINALS: Final = 50
"""Variables whose last value is told."""

_PIECE: Final = 1 << 20
_CLOSE: Final = 1e-6
"""The last time may be short of the stop time by such a part of the whole."""
_NOT_FINITE: Final = re.compile(rb"(?:^|,)[-+]?(?:nan|inf)", re.IGNORECASE | re.MULTILINE)
_LONGEST_NAME: Final = 100
_MAT_HEADER: Final = struct.Struct("<5I")
_MAT_SIZES: Final = {0: 8, 10: 4, 20: 4, 51: 1}
"""Bytes of an element, by the type of a little-endian matrix: double, single, 32-bit integer, character."""


class Findings(Struct, frozen=True):
    """What a result file was found to be; good if all ``checks`` hold.

    ``rows`` are points in time, ``columns`` variables with the time; ``final`` are last values by name.
    """

    checks: tuple[Check, ...]
    rows: int | None = None
    columns: int | None = None
    final: dict[str, float] = {}


class _Content(Struct):
    """What was read of a result."""

    rows: int = 0
    columns: int = 0
    end: float | None = None
    odd: str | None = None
    """Where the first number stands that is not finite."""
    torn: str | None = None
    """What is wrong with its form."""
    final: dict[str, float] = {}


def examine(path: Path, form: str, start: float, stop: float) -> Findings:
    """Look at a result of format ``form``; ``start`` and ``stop`` are those of the run, in seconds."""
    name = f"result {path.name}"
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return Findings((Check(name, "not empty", "empty", ok=False),))
            if form == "plt":
                text = f"{size} bytes; of this format nothing else is looked at"
                return Findings((Check(name, "not empty", text, ok=True),))
            content = _read_mat(file, size) if form == "mat" else _read_csv(file)
    except FileNotFoundError:
        return Findings((Check(name, "exists", "missing", ok=False),))
    except OSError as error:
        return Findings((Check(name, "can be read", str(error.strerror), ok=False),))
    except (ValueError, csv.Error) as error:
        return Findings((Check(name, "whole", printable(str(error)), ok=False),))
    return Findings(tuple(_checks(name, content, start, stop)), content.rows, content.columns, content.final)


def _checks(name: str, content: _Content, start: float, stop: float) -> Iterator[Check]:
    if content.torn is not None:
        yield Check(name, "whole", content.torn, ok=False)
        return
    yield Check(name, "rows", f"{content.rows} rows", ok=content.rows > 0)
    if content.end is None:
        return
    yield Check(name, "only finite numbers", content.odd or "all finite", ok=content.odd is None)
    reaches = content.end >= stop - _CLOSE * (stop - start)
    yield Check(name, f"reaches time {stop:g}", f"ends at time {content.end:g}", ok=reaches)


# --- CSV --------------------------------------------------------------------------------------------------------------


def _read_csv(file: BinaryIO) -> _Content:
    """A line of quoted names, the first of them ``time``, then one line of numbers for each point in time."""
    content = _Content()
    header, _, rest = _first_line(file)
    try:
        names = _fields(header)
    except ValueError:
        names = []
    if names[:1] != ["time"]:
        return _Content(torn="its first line does not begin with the name time")
    content.columns = len(names)
    last = b""
    while True:
        whole, newline, tail = rest.rpartition(b"\n")
        if newline:
            content.rows += whole.count(b"\n") + 1
            if content.odd is None:
                content.odd = _odd_place(whole, names)
            last = whole.rpartition(b"\n")[2]
        piece = file.read(_PIECE)
        if not piece:
            break
        rest = tail + piece
    if tail:
        content.torn = "its last line is cut off"
    elif last:
        try:
            fields = _fields(last)
        except ValueError:
            fields = []
        if len(fields) != len(names) or not isinstance(fields[0], float):
            content.torn = "its last line is cut off"
        else:
            content.end = fields[0]
            content.final = _finals(names, fields)
    return content


def _first_line(file: BinaryIO) -> tuple[bytes, bytes, bytes]:
    data = b""
    while b"\n" not in data and (piece := file.read(_PIECE)):
        data += piece
    return data.partition(b"\n")


def _fields(line: bytes) -> list[Any]:
    """What stands between the commas: texts are in quotes, everything else is a number. Raises ``ValueError``."""
    text = line.decode(errors="replace").rstrip("\r\n")
    return next(csv.reader([text], quoting=csv.QUOTE_NONNUMERIC), [])


def _odd_place(lines: bytes, names: list[str]) -> str | None:
    """Where the first number stands that is not finite. A text of the model may look like one, but has quotes."""
    if b"n" not in lines and b"N" not in lines:  # as nearly always, and quickly seen
        return None
    for match in _NOT_FINITE.finditer(lines):
        start = lines.rfind(b"\n", 0, match.start()) + 1
        end = lines.find(b"\n", match.end())
        fields = _fields(lines[start : end if end >= 0 else len(lines)])
        for name, field in zip(names, fields, strict=False):
            if isinstance(field, float) and not math.isfinite(field):
                return f"{name} is {field} at time {fields[0]}"
    return None


def _finals(names: list[str], fields: list[Any]) -> dict[str, float]:
    pairs = zip(names[1:], fields[1:], strict=True)
    numbers = ((name, field) for name, field in pairs if isinstance(field, float) and math.isfinite(field))
    return dict(islice(numbers, SHOWN_FINALS))


# --- MAT --------------------------------------------------------------------------------------------------------------


def _read_mat(file: BinaryIO, size: int) -> _Content:
    """MATLAB version 4: the matrix ``data_2`` holds one column for each point in time, the time first."""
    at = 0
    while at + _MAT_HEADER.size <= size:
        file.seek(at)
        kind, rows, columns, _, length = _MAT_HEADER.unpack(file.read(_MAT_HEADER.size))
        element = _MAT_SIZES.get(kind)
        if element is None:
            return _Content(torn="it is not a MATLAB file of version 4 as OpenModelica writes it")
        name = file.read(min(length, _LONGEST_NAME)).rstrip(b"\0")
        at += _MAT_HEADER.size + length + rows * columns * element
        if at > size:
            return _Content(torn=f"it ends in the middle of {printable(name.decode(errors='surrogateescape'))}")
        if name == b"data_2" and rows > 0:
            return _read_points(file, rows, columns, element)
    return _Content(torn="it has no data_2")


def _read_points(file: BinaryIO, rows: int, columns: int, element: int) -> _Content:
    content = _Content(rows=columns, columns=rows)
    code = "d" if element == 8 else "f"
    points = max(1, _PIECE // max(1, rows * element))
    for first in range(0, columns, points):
        numbers = array(code)
        numbers.frombytes(_exactly(file, min(points, columns - first) * rows * element))
        # The sum of all is finite if each is, but for an overflow, and much faster to have.
        if content.odd is None and not math.isfinite(sum(numbers)):
            odd = next((at for at, number in enumerate(numbers) if not math.isfinite(number)), None)
            if odd is not None:
                content.odd = f"{numbers[odd]} at time {numbers[odd - odd % rows]:g}"
        content.end = numbers[-rows]
    return content


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := file.read(count - len(data))):
        data += piece
    return data
