"""The text of a configuration, made of profiles and of what was found.

Rules: pure; a table is taken over letter by letter, comments included, and only two of its lines may change: that of
the program, where the daemon would not find it by its name, and ``accept``, where an earlier solver takes the same
files.
This module must not know files, and what the user is told.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Final

from solvisor.kinds import AnySolver, SolverConfig, programs
from solvisor_service.profiles import Profile, read
from solvisor_service.profiles.search import Found

_ACCEPT: Final = re.compile(r"^accept *= \[.+\]$", re.MULTILINE)
_WORD: Final = re.compile(r"[\w.+-]+")
_WILD: Final = re.compile(r"[*?\[\]]")

Takers = dict[str, str]
"""Which solver takes files of a pattern."""


def takers(solvers: Mapping[str, SolverConfig]) -> Takers:
    """Who takes what in a configuration."""
    taken: Takers = {}
    for name, solver in solvers.items():
        for pattern in solver.accept:
            taken.setdefault(pattern, name)
    return taken


def declared(profile: Profile, solvers: Mapping[str, AnySolver]) -> str | None:
    """The solver of a configuration that is this profile: by its name, or by a program it calls."""
    if profile.name in solvers:
        return profile.name
    return next((name for name, solver in solvers.items() if _is_like(solver, profile)), None)


def _is_like(solver: AnySolver, profile: Profile) -> bool:
    """Whether a solver is driven as the profile is, and calls one of its programs."""
    first, *_ = programs(solver).values()
    return solver.kind == profile.kind and _calls(first, profile.about.programs)


def _calls(command: Sequence[str], known: Sequence[str]) -> bool:
    """Whether the program is one of these, or a script that stands among the arguments names one."""
    words = {PurePath(command[0]).name}
    for argument in command[1:]:
        if any(map(str.isspace, argument)):
            words.update(_WORD.findall(argument))
    return not words.isdisjoint(known)


def overlap(pattern: str, taken: Takers) -> tuple[str, str] | None:
    """The solver that takes files ``pattern`` takes too, with its own pattern.

    ``pattern`` is ``*`` and an ending, as those of all profiles. Cautious: of two patterns that may fit one file it is
    enough that their endings agree.
    """
    ending = pattern.lower().removeprefix("*")
    for other, name in taken.items():
        *wild, tail = _WILD.split(other.lower())
        if tail.endswith(ending) or (wild and ending.endswith(tail)):
            return name, other
    return None


def conflict(profile: Profile, taken: Takers) -> tuple[str, str] | None:
    """The solver that takes files of this profile already, with the pattern of it that does."""
    return next(filter(None, (overlap(pattern, taken) for pattern in profile.accept)), None)


def section(found: Found, taken: Takers) -> str:
    """The table of a found solver as it is written; ``taken`` are the patterns of the tables before it."""
    profile = found.profile
    about = profile.about
    heading = f"# Found: {found.program}, version {found.version or 'unknown'}."
    if about.tested is None:
        heading += (
            " UNTESTED: this table was written from documentation alone.\n"
            "# Give it a good and a bad input, and see both verdicts, before you trust it."
        )
    else:
        heading += f" Seen to judge good and bad inputs rightly with version {about.tested}."
    text = _with_program(found)
    taker = conflict(profile, taken)
    if taker is not None:
        text = _ACCEPT.sub(lambda line: _without_accept(line[0], profile.name, taker), text, count=1)
    return f"{heading}\n{text}"


def _with_program(found: Found) -> str:
    table, usual = found.profile.table, json.dumps(found.profile.about.programs[0])
    start = re.compile(rf"^(command *= (\[)\s*|omc *= ){re.escape(usual)}", re.MULTILINE)

    def with_program(line: re.Match[str]) -> str:
        place = PurePath(found.program).name if found.by_name else found.program
        literal = place.replace("{", "{{").replace("}", "}}") if line[2] else place  # a command line has placeholders
        return line[1] + json.dumps(literal, ensure_ascii=False)

    return start.sub(with_program, table, count=1)


def _without_accept(line: str, name: str, taker: tuple[str, str]) -> str:
    other, pattern = taker
    return (
        f"# {line}\n"
        f'# {other} takes "{pattern}" already, and a file that fits two solvers is refused. So this one takes\n'
        f"# nothing by its name: drop files in inbox/{name}/, or name {name} in a job file.\n"
        "accept  = []"
    )


def configuration(found: Sequence[Found]) -> str:
    """A whole new configuration."""
    tables = sections(found, {})
    if not found:
        tables.append(read("sample.toml"))
    return "\n".join([read("head.toml"), *tables])


def sections(found: Sequence[Found], taken: Takers) -> list[str]:
    """The tables of several found solvers, in their order."""
    taken = dict(taken)
    texts = []
    for one in found:
        texts.append(section(one, taken))
        if conflict(one.profile, taken) is None:
            taken.update((pattern, one.profile.name) for pattern in one.profile.accept)
    return texts
