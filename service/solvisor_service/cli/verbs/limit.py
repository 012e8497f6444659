"""``solvisor limit``: what jobs may take together, and another limit until that is taken back."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from solvisor_service.cli.shared import Verbs, add_verb, client_of, homed, print_json, reader_of, tell, text_given

if TYPE_CHECKING:
    from solvisor.views import Limit, Limits
    from solvisor_service.cli.text import Cell
    from solvisor_service.targets import UsageError

_AUTO: Final = "auto"
_BYTES_LEAST: Final = 1 << 20
"""A plain number for memory that is smaller was meant with a unit."""
_EXAMPLES: Final = """\
  solvisor limit
  solvisor limit license.orcaflex 1 --note "the other seat is for the workshop"
  solvisor limit memory 64GiB
  solvisor limit max_jobs auto"""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    limit = add_verb(
        verbs,
        "limit",
        _limit,
        help="show the limits on what jobs may take, or set one until it is taken back; what runs goes on",
        examples=_EXAMPLES,
        with_json=True,
    )
    name = "max_jobs, cpus, memory, license.NAME or solver.NAME (how many of its jobs at once); without it, all"
    limit.add_argument("name", nargs="?", metavar="NAME", type=text_given, help=name)
    value = "how many, or how much memory (64GiB); auto: as the configuration says"
    limit.add_argument("value", nargs="?", metavar="VALUE|auto", type=text_given, help=value)
    limit.add_argument("--note", metavar="TEXT", type=text_given, help="why, for whoever asks")


def _limit(arguments: argparse.Namespace) -> int:
    if arguments.value is not None:
        value = None if arguments.value == _AUTO else _number(arguments.name, arguments.value)
        told = client_of(arguments).limit(arguments.name, value, arguments.note)
        status = _set(told, arguments)
        if value is not None and (more := _more_than_there_is(arguments.name, value)):
            tell(f"{arguments.name}: {more}")
        return status
    if arguments.note is not None:
        from solvisor_service.targets import UsageError

        raise UsageError("a note goes with a value: solvisor limit NAME VALUE --note TEXT")
    told = reader_of(arguments).limits()
    shown = [limit for limit in told.limits if arguments.name in (None, limit.name)]
    if not shown:
        raise _no_such(arguments.name, told)
    if arguments.json:
        print_json(told if arguments.name is None else shown[0])
    else:
        _show(shown)
    return 0


def _number(name: str, text: str) -> int:
    """The value of a limit. Raises ``UsageError``."""
    from solvisor_service.targets import UsageError

    if text.isascii() and text.isdecimal():
        value = int(text[:30])
        if name == "memory" and 0 < value < _BYTES_LEAST:
            raise UsageError(f"memory: {text} would be {value} bytes; write it like 64GiB, 500MB, or auto")
        return value
    if name != "memory":
        raise UsageError(f"{name}: {text!r} is no whole number; write one, or auto")
    from solvisor.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        reason = str(error) or "it is no size"
        raise UsageError(f"memory: {text!r}: {reason}; write it like 64GiB, 500MB, or auto") from None


def _more_than_there_is(name: str, value: int) -> str:
    """What this machine has, which the daemon runs on as well, where that is less than a limit."""
    if sys.platform == "win32":
        return ""
    from solvisor.process import host
    from solvisor_service.cli.text import size

    if name == "cpus" and value > (cores := host.usable_cpus()):
        return f"this machine has {cores} core{'s' * (cores > 1)}"
    if name == "memory" and value > (memory := host.total_memory_bytes()):
        return f"this machine has {size(memory)}"
    return ""


def _no_such(name: str, told: Limits) -> UsageError:
    import difflib

    from solvisor_service.targets import UsageError

    names = [limit.name for limit in told.limits]
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(names)}"
    return UsageError(f"there is no limit {name!r}; {hint}")


def _set(told: Limits, arguments: argparse.Namespace) -> int:
    from solvisor_service.cli.text import clean

    if arguments.json:
        print_json(told)
        return 0
    limit = next((each for each in told.limits if each.name == arguments.name), None)
    if limit is None:
        print(clean(f"{arguments.name}: forgotten; it is not configured"))
        return 0
    if limit.since is None:
        print(clean(f"{limit.name}: {limit_value(limit, limit.value)}, as the configuration says"))
        return 0
    command = homed(f"solvisor limit {arguments.name} auto", arguments)
    note = f" ({limit.note})" if limit.note else ""
    print(clean(f"{limit.name}: {limit_value(limit, limit.value)}{note}, until: {command}"))
    if limit.value is not None and limit.used > limit.value:
        print(f"{limit_value(limit, limit.used)} in use now; what runs goes on, and nothing more starts until it fits")
    return 0


def limit_value(limit: Limit, value: int | None) -> str:
    """A value of a limit as people read it."""
    from solvisor_service.cli.text import size

    if value is None:
        return "none"
    return size(value) if limit.unit == "bytes" else f"{value:,}"


def _show(limits: Sequence[Limit]) -> None:
    from solvisor_service.cli import text

    titles = ["NAME", "IN USE", "LIMIT", "CONFIGURED", "SET BY"]
    text.table(text.console(), [_row(limit) for limit in limits], titles=titles, right=range(1, 4))


def _row(limit: Limit) -> list[Cell]:
    from rich.text import Text

    value = limit_value(limit, limit.value)
    return [
        limit.name,
        limit_value(limit, limit.used),
        Text(value, "bold yellow") if limit.since is not None else value,
        limit_value(limit, limit.configured) if limit.known else "not configured",
        _set_by(limit),
    ]


def _set_by(limit: Limit) -> str:
    """Who set a limit, since when, and why: ``ann, since 14:03: for the workshop``; empty if nobody did."""
    from solvisor_service.cli.jobtext import clock

    if limit.since is None:
        return ""
    who = f"{limit.by}, since" if limit.by else "since"
    return f"{who} {clock(limit.since)}{f': {limit.note}' if limit.note else ''}"
