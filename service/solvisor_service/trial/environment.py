"""How the environment of a solver differs from that of whoever tries it: half of "it works in my shell".

Rules: values of variables that the solver does not get are nobody's business here: only their names are kept. No I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import Struct

_TELLING = re.compile(r"LD_.*|.*LICENSE.*|.*_LIC|.*(PATH|HOME|ROOT|DIR)|OMP_.*|MKL_.*|CONDA_.*|VIRTUAL_ENV|DISPLAY")
_OF_THE_SHELL: Final = frozenset({"OLDPWD", "XDG_RUNTIME_DIR", "XDG_CONFIG_DIRS", "XDG_DATA_DIRS", "MANPATH"})
_OFTEN_MISSED = re.compile(r"LD_LIBRARY_PATH|LD_PRELOAD|.*LICENSE.*|.*_LIC")


class EnvironmentDifference(Struct, frozen=True):
    """How a solver's environment differs from the caller's: values it has alone or otherwise, and names it lacks.

    ``changed`` maps a name to the solver's value and the caller's. ``missing`` has what solvers ask for most first.
    """

    added: dict[str, str]
    changed: dict[str, tuple[str, str]]
    missing: tuple[str, ...]


def differ(solver: Mapping[str, str], caller: Mapping[str, str]) -> EnvironmentDifference:
    """How the environment of a solver differs from that of the caller."""
    names = sorted(caller.keys() - solver.keys(), key=lambda name: (_rank(name), name))
    return EnvironmentDifference(
        added={name: solver[name] for name in sorted(solver.keys() - caller.keys())},
        changed={
            name: (solver[name], caller[name])
            for name in sorted(solver.keys() & caller.keys())
            if solver[name] != caller[name]
        },
        missing=tuple(names),
    )


def _rank(name: str) -> int:
    if _OFTEN_MISSED.fullmatch(name):
        return 0
    return 1 if _TELLING.fullmatch(name) and name not in _OF_THE_SHELL else 2


def telling(names: Sequence[str]) -> list[str]:
    """Those variables that solvers often need, of names in the order of ``EnvironmentDifference.missing``."""
    return [name for name in names if _rank(name) < 2]


def often_missed(names: Sequence[str]) -> list[str]:
    """Those variables without which solvers fail oddly: where libraries and licenses are found."""
    return [name for name in names if _rank(name) == 0]
