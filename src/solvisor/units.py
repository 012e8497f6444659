"""Durations and sizes as people write them: ``"30m"``, ``"2GiB"``.

Rules: one spelling per unit, no guessing between 1000 and 1024; what ``format_*`` writes, ``parse_*`` reads back to the
same number. This module knows nothing of configuration files.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

_SECONDS: Final = {"d": Decimal(86400), "h": Decimal(3600), "m": Decimal(60), "s": Decimal(1), "ms": Decimal("0.001")}
_BYTES: Final = {
    "TiB": 1 << 40,
    "TB": 10**12,
    "GiB": 1 << 30,
    "GB": 10**9,
    "MiB": 1 << 20,
    "MB": 10**6,
    "KiB": 1 << 10,
    "kB": 10**3,
    "B": 1,
}
_LONGEST_SECONDS: Final = 1e9
_LARGEST_SIZE: Final = (1 << 63) - 1
_WORDS: Final = {"d": "d", "h": "h", "m": "min", "s": "s", "ms": "ms"}

_NUMBER: Final = r"([0-9]{1,19}(?:\.[0-9]{1,12})?)"
DURATION_PATTERN: Final = rf"^{_NUMBER} ?(ms|s|m|h|d)$"
SIZE_PATTERN: Final = rf"^{_NUMBER} ?({'|'.join(_BYTES)})$"


def parse_duration(text: object) -> float:
    """``"500ms"``, ``"0.5s"``, ``"30m"``, ``"2h"``, ``"1d"`` in seconds, to the microsecond.

    Raises ``ValueError`` with the reason.
    """
    if isinstance(text, int | float) and not isinstance(text, bool):
        raise ValueError(f'it has no unit: "{text}s" is seconds')
    match = re.fullmatch(DURATION_PATTERN, text) if isinstance(text, str) else None
    if match is None:
        raise ValueError
    seconds = float((Decimal(match[1]) * _SECONDS[match[2]]).quantize(Decimal("0.000001")))
    if seconds > _LONGEST_SECONDS:
        raise ValueError("it is longer than 30 years")
    return seconds


def parse_size(text: object) -> int:
    """``"64MiB"``, ``"2GB"``, ``"512kB"`` or a plain number, in bytes. Raises ``ValueError`` with the reason."""
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise ValueError("it is negative")
        size = text
    else:
        match = re.fullmatch(SIZE_PATTERN, text) if isinstance(text, str) else None
        if match is None:
            raise ValueError
        size = round(Decimal(match[1]) * _BYTES[match[2]])
    if size > _LARGEST_SIZE:
        raise ValueError("it is larger than any disk")
    return size


def format_duration(seconds: float) -> str:
    """The shortest exact spelling: 7200.0 is ``"2h"``, 0.5 is ``"500ms"``, 1.25 is ``"1.25s"``."""
    number, unit = _split(seconds)
    return number + unit


def describe_duration(seconds: float) -> str:
    """The same for a sentence: 1800.0 is ``"30 min"``."""
    number, unit = _split(seconds)
    return f"{number} {_WORDS[unit]}"


def format_size(size: int) -> str | int:
    """The shortest exact spelling: 2147483648 is ``"2GiB"``; 1000001 stays a number."""
    if size:
        for unit, factor in _BYTES.items():
            if size % factor == 0 and unit != "B":
                return f"{size // factor}{unit}"
    return size


def describe_size(size: int) -> str:
    """The same for a sentence, to three digits: 23129018368 is ``"21.5 GiB"``."""
    number, unit = float(size), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1000:
            break
        number, unit = number / 1024, larger
    return f"{number:.3g} {unit}"


def _split(seconds: float) -> tuple[str, str]:
    exact = Decimal(repr(seconds))
    whole = (unit for unit, factor in _SECONDS.items() if unit != "ms" and exact >= factor and exact % factor == 0)
    unit = next(whole, "ms" if 0 < exact < 1 else "s")
    return format((exact / _SECONDS[unit]).normalize(), "f"), unit
