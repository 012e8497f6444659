"""Parameters: what a solver declares, and whether a value obeys.

Rules: values are typed, never converted from text; a text cannot pass for an option (``-x``) unless the operator says
so, and holds no control characters. This module does not know where values come from or go to.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

from msgspec import Struct

from .fieldtypes import Number, Scalar, doc
from .tables import show

WORDS: Final = {"float": "a number", "int": "a whole number", "str": "a text in quotes", "bool": "true or false"}
_LONGEST_TEXT: Final = 4096


class Param(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A parameter that a job may set. Without ``default`` every job must set it."""

    type: Annotated[Literal["float", "int", "str", "bool"], doc("The type of its values.")]
    default: Annotated[Scalar | None, doc("The value for jobs that do not set it; without one they must.")] = None
    min: Annotated[Number | None, doc("The smallest number allowed.")] = None
    max: Annotated[Number | None, doc("The largest number allowed.")] = None
    choices: Annotated[tuple[Scalar, ...], doc("The only values allowed.")] = ()
    help: Annotated[str | None, doc("What it means, for whoever sets it.")] = None
    dash: Annotated[bool, doc("Allow texts that start with -, which a program may take for an option.")] = False

    def check(self, value: bool | int | float | str) -> bool | int | float | str:
        """``value`` as the solver will get it. Raises ``ValueError`` with what is wrong and what is allowed."""
        if type(value) is int and self.type == "float":
            value = float(value)
        if type(value).__name__ != self.type:
            raise ValueError(f"{show(value)} is not {WORDS[self.type]}")
        if isinstance(value, str):
            self._check_text(value)
        elif self.min is not None and value < self.min:
            raise ValueError(f"{show(value)} is less than {show(self.min)}, the smallest allowed")
        elif self.max is not None and value > self.max:
            raise ValueError(f"{show(value)} is more than {show(self.max)}, the largest allowed")
        if self.choices and value not in self.choices:
            raise ValueError(f"{show(value)} is not one of {', '.join(show(choice) for choice in self.choices)}")
        return value

    def _check_text(self, text: str) -> None:
        if re.search(r"[\x00-\x1f\x7f-\x9f]", text):
            raise ValueError(f"{show(text)} holds control characters")
        if len(text) > _LONGEST_TEXT:
            raise ValueError(f"{show(text)} is longer than {_LONGEST_TEXT} characters")
        if text.startswith("-") and not self.dash:
            raise ValueError(f"{show(text)} starts with -, which a program may take for an option")


def param_text(value: bool | int | float | str) -> str:
    """A value as a program reads it: 3.5 is ``3.5``, 2.0 is ``2.0``, true is ``true``."""
    return str(value).lower() if isinstance(value, bool) else str(value)
