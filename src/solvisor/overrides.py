"""Limits that people set while a daemon runs, and what is in force with them.

An override holds over the configuration until it is taken back, also where that is read again. One of a license or a
solver that is not configured (any more) is kept, and has no effect until it is. Rules: pure; only the names of limits,
their ranges and their effect are known here, not what is in use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from msgspec.structs import replace

from .errors import Refused
from .model import Limits, Override
from .tables import suggestion

MAX_JOBS: Final = "max_jobs"
CPUS: Final = "cpus"
MEMORY: Final = "memory"
LICENSE: Final = "license."
SOLVER: Final = "solver."
"""Names of limits; the last two are followed by that of the license, or of the solver."""

COUNT_MAX: Final = 1_000_000
BYTES_MAX: Final = (1 << 63) - 1
"""The largest values, as in the configuration."""


def values(limits: Limits) -> dict[str, int | None]:
    """Every limit by its name, in the order in which they are told; a solver without one of its own has ``None``."""
    return {
        MAX_JOBS: limits.max_jobs,
        CPUS: limits.cpus,
        MEMORY: limits.memory_bytes,
        **{LICENSE + name: count for name, count in sorted(limits.licenses.items())},
        **{SOLVER + name: jobs for name, jobs in sorted(limits.solver_jobs.items())},
    }


def in_force(configured: Limits, overrides: Iterable[Override]) -> Limits:
    """The limits of the configuration with what people set instead."""
    given = {override.name: override.value for override in overrides}
    max_jobs = given.get(MAX_JOBS, configured.max_jobs)
    own = {name: given.get(SOLVER + name, jobs) for name, jobs in configured.solver_jobs.items()}
    return replace(
        configured,
        max_jobs=max_jobs,
        cpus=given.get(CPUS, configured.cpus),
        memory_bytes=given.get(MEMORY, configured.memory_bytes),
        licenses={name: given.get(LICENSE + name, count) for name, count in configured.licenses.items()},
        solver_jobs=own,
        pools={name: rule.within(max_jobs, own.get(name)) for name, rule in configured.pools.items()},
    )


def widest(configured: Limits, limits: Limits) -> Limits:
    """The larger of each: a job that would fit either can start some day, so it is taken in."""
    return replace(
        limits,
        cpus=max(configured.cpus, limits.cpus),
        memory_bytes=max(configured.memory_bytes, limits.memory_bytes),
        licenses={name: max(count, limits.licenses[name]) for name, count in configured.licenses.items()},
    )


def check(name: str, value: int, known: Mapping[str, object]) -> None:
    """Raises ``Refused`` for a limit that is not among those ``known``, or a value that it cannot have.

    A license may be limited to 0: all seats are wanted elsewhere.
    """
    check_name(name, known)
    least, most, words = 1, COUNT_MAX, f"from 1 to {COUNT_MAX:,}"
    if name == MEMORY:
        least, most, words = 0, BYTES_MAX, "a number of bytes, less than 8 EiB"
    elif name.startswith(LICENSE):
        least, words = 0, f"from 0 to {COUNT_MAX:,}"
    if not least <= value <= most:
        hint = {MAX_JOBS: "; solvisor pause starts nothing more"}.get(name, "")
        if name.startswith(SOLVER):
            hint = f"; solvisor pause {name.removeprefix(SOLVER)} starts nothing more of it"
        raise Refused("usage", f"{name}={value} is not {words}{hint if value == 0 else ''}")


def check_name(name: str, known: Iterable[str]) -> None:
    """Raises ``Refused`` for a limit that is not among those ``known``."""
    names = list(known)
    if name not in names:
        raise Refused("usage", f"there is no limit {name!r}{suggestion(name, names)}")
