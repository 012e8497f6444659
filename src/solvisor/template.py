"""Placeholders in a command, an environment value or an output name: ``{stem}``, ``{params.load}``.

Rules: a closed list of placeholders; ``{{`` and ``}}`` are literal braces; a template is cut into pieces once and the
values are put between them, so a value is never looked at for placeholders, blanks or quotes. This module does not know
where the values come from.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, NamedTuple

PLACEHOLDERS: Final = ("input", "stem", "output", "job_dir", "cpus")
PARAM: Final = "params."

_PIECE: Final = re.compile(r"[^{}]+|\{\{|\}\}|\{[^{}]*\}|[{}]")


class Field(NamedTuple):
    """A placeholder: its name without the braces."""

    name: str


@lru_cache(maxsize=1024)
def split(template: str) -> tuple[str | Field, ...]:
    """Cut a template into literal text and placeholders. Raises ``ValueError`` for a lone brace."""
    pieces: list[str | Field] = []
    for piece in _PIECE.findall(template):
        if piece in ("{", "}"):
            raise ValueError(f"a single {piece}; write {{{{ or }}}} for a literal brace")
        if piece in ("{{", "}}"):
            pieces.append(piece[0])
        elif piece[0] == "{":
            pieces.append(Field(piece[1:-1]))
        else:
            pieces.append(piece)
    return tuple(pieces)


def names(template: str) -> tuple[str, ...]:
    """The placeholders a template uses, in order. Raises ``ValueError`` for a lone brace."""
    return tuple(piece.name for piece in split(template) if isinstance(piece, Field))


def expand(template: str, values: Mapping[str, str]) -> str:
    """The template with each placeholder replaced by its value, once. Raises ``KeyError`` for one without a value."""
    return "".join(values[piece.name] if isinstance(piece, Field) else piece for piece in split(template))
