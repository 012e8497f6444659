"""What a job file says of a Modelica model: which one, from when to when and how, and with which parameters.

Rules: a field is a key of the file, its type says what is allowed; times are those of the model, plain numbers of
seconds; what a job leaves out is as the model says. A value is one that a compiled model takes unchanged: all of them
are one argument, which its run time takes apart at commas, exclamation marks and brackets. This module knows nothing
but the format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct

from .fieldtypes import Count, Number, doc
from .records import converter
from .tables import Faults, Rule
from .tomltext import Path as KeyPath

DEFAULT_INTERVALS: Final = 500

_NAME: Final = r"[A-Za-z_][A-Za-z0-9_]*"
_CLASS: Final = rf"{_NAME}(\.{_NAME})*"
_ELEMENT: Final = rf"{_NAME}(\[[0-9]+(,[0-9]+)*\])?"
_VARIABLE: Final = rf"{_ELEMENT}(\.{_ELEMENT})*"
_SEPARATORS: Final = re.compile(r"[,!\[\]\x00-\x1f\x7f]")


def _matching(pattern: str, allowed: str) -> Meta:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or len(value) > 1000 or re.fullmatch(pattern, value) is None:
            raise ValueError
        return value

    return Rule(allowed, parse, {"type": "string", "pattern": f"^{pattern}$"}).meta()


def _value(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    override_text(value)
    return value


def override_text(value: bool | int | float | str) -> str:
    """A value as a compiled model reads it. Raises ``ValueError`` if it would be taken for several."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        if _SEPARATORS.search(value):
            raise ValueError("it has a comma, a bracket, an exclamation mark or a line break, which separate values")
        return value
    return repr(value)


ClassName = Annotated[str, _matching(_CLASS, 'the name of a model such as "Ball" or "Lib.Examples.Ball"')]
ParameterName = Annotated[str, _matching(_VARIABLE, 'the name of a parameter such as "k" or "body[2].mass"')]
Method = Annotated[str, _matching(_NAME, 'the name of an integration method such as "dassl"')]
Override = Annotated[
    bool | int | float | str,
    Rule(
        "a number, true or false, or a text in quotes on one line",
        _value,
        {"type": ["boolean", "number", "string"]},
    ).meta(),
]


class Simulate(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How a Modelica model is simulated; what is left out is as the model says."""

    model: Annotated[ClassName | None, doc("The model; may be left out if the input holds only one.")] = None
    start: Annotated[Number | None, doc("Start time in seconds.")] = None
    stop: Annotated[Number | None, doc("Stop time in seconds.")] = None
    intervals: Annotated[Count | None, doc("Intervals of the result; if only the times are given there are 500.")] = (
        None
    )
    tolerance: Annotated[
        Annotated[float, Meta(ge=1e-16, le=1.0)] | None, doc("Tolerance of the integration method.")
    ] = None
    method: Annotated[Method | None, doc("Integration method, such as dassl, cvode, euler.")] = None
    output: Annotated[Literal["csv", "mat", "plt"], doc("Format of the result, which is MODEL_res.FORMAT.")] = "csv"


class ModelJob(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The tables of a job file that only solvers of kind ``omc`` know."""

    simulate: Simulate = Simulate()
    overrides: Annotated[dict[ParameterName, Override], doc("Values for parameters of the model.")] = {}


def check_model_job(at: KeyPath, job: ModelJob, faults: Faults) -> None:
    """Note what is wrong with a job although each of its values is allowed."""
    start, stop = job.simulate.start, job.simulate.stop
    if start is not None and stop is not None and stop <= start:
        faults.add((*at, "simulate", "stop"), f"{stop} is not after start, {start}")


_to_model_job = converter(ModelJob)


def model_job(options: Mapping[str, Any]) -> ModelJob:
    """The record of what ``JobSpec.options`` holds. Raises ``ValueError``: checked once, but by an earlier Solvisor."""
    job: ModelJob = _to_model_job(dict(options))
    for value in job.overrides.values():
        override_text(value)
    return job
