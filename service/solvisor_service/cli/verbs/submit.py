"""``solvisor submit``: send files to the daemon, each target as one job."""

from __future__ import annotations

import argparse
import contextlib
import functools
from typing import TYPE_CHECKING, Any, Final

from solvisor_service.cli.shared import (
    FILES,
    Verbs,
    add_verb,
    client_of,
    complain,
    completed,
    path_given,
    print_json,
    seconds,
    text_given,
    whole_number,
)

if TYPE_CHECKING:
    from solvisor.views import Submitted
    from solvisor_service.client import Client, RequestRefused

_EXAMPLES = """\
  solvisor submit beam.inp
  solvisor submit --solver ccx --with mesh.inc --cpus 4 beam.inp
  solvisor submit *.job.toml --project riser-2026
  solvisor submit beam.inp --param load=3.5 --wait && solvisor get last"""

_BY_CONFIGURATION: Final = frozenset({"solver", "no_solver", "ambiguous", "param", "resources"})
"""Refusals that another configuration would not make."""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "submit",
        _submit,
        help="send inputs to the daemon, each target as one job",
        examples=_EXAMPLES,
        with_json=True,
    )
    option = verb.add_argument
    several = functools.partial(option, action="append", default=[])
    target = option(
        "targets", nargs="+", metavar="TARGET", type=path_given, help="a file, a NAME.job.toml, or a folder"
    )
    companion = several("--with", dest="companions", metavar="FILE", type=path_given, help="a file that goes along")
    for argument in (target, companion):
        completed(argument, FILES)
    several("--param", dest="params", metavar="NAME=VALUE", help="a parameter of the solver")
    several("--after", metavar="JOB", type=text_given, help="a job that must succeed first")
    several("--license", dest="licenses", metavar="NAME=N", type=_license, help="a license it holds, and how many")
    several("--retry-on", metavar="CAUSE", help="a cause after which it is tried again, such as timeout")
    option("--solver", metavar="NAME", type=text_given, help="the solver; needed where several accept the input")
    option("--name", type=text_given, help="what people call the job")
    option("--project", type=text_given, help="a label that related jobs share")
    option("--priority", type=int, metavar="N", help="higher starts first (default: 0)")
    option("--key", type=text_given, help="what is sent again with the same key is the same job")
    option("--timeout", metavar="TIME", type=_duration, help="the longest run, such as 30m")
    option("--cpus", type=whole_number(1), metavar="N", help="cores reserved for it")
    option("--memory", metavar="SIZE", type=_size, help="memory reserved for it, such as 4GiB")
    option("--retry", type=whole_number(0), metavar="N", help="how often it is tried again")
    option("--wait", action="store_true", help="wait until all are finished; exit 1 if one did not succeed")


def _duration(text: str) -> str:
    seconds(text)
    return text


def _size(text: str) -> str | int:
    from solvisor.units import parse_size

    value = int(text) if text.isdecimal() else text
    try:
        parse_size(value)
    except ValueError as error:
        reason = str(error) or "it is no size"
        raise argparse.ArgumentTypeError(f"{text!r}: {reason}; write it like 512MiB or 4GiB") from None
    return value


def _license(text: str) -> tuple[str, int]:
    name, _, count = text.partition("=")
    if not name or not (count or "1").isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: write it as NAME=N, for example orcaflex=1")
    return name, int(count or "1")


def _submit(arguments: argparse.Namespace) -> int:
    from solvisor.errors import Refused
    from solvisor.names import escape_name
    from solvisor_service.cli.verbs.wait import wait_for
    from solvisor_service.client import RequestRefused
    from solvisor_service.targets import UsageError, prepare

    if arguments.key is not None and len(arguments.targets) > 1:
        raise UsageError(f"--key names one job, and there are {len(arguments.targets)} targets; submit them one by one")
    client = client_of(arguments)
    wishes = _wishes(arguments, client)
    status = 0
    accepted: list[str] = []
    for target in arguments.targets:
        try:
            prepared = prepare(target, arguments.companions, wishes)
            answer = client.submit(prepared.uploads, prepared.job)
        except (Refused, UsageError, RequestRefused) as error:
            more = _hint(error, client, arguments.solver) if isinstance(error, RequestRefused) else ""
            complain(error, arguments, about=escape_name(str(target)), more=more)
            status = status or error.exit_status
            continue
        accepted.append(answer.id)
        if not (arguments.json and arguments.wait):
            show_submitted(answer, as_json=arguments.json)
    return (wait_for(client, accepted, arguments) or status) if arguments.wait else status


def _hint(refused: RequestRefused, client: Client, solver: str | None) -> str:
    """What the daemon does not say of a refusal: the option, and whether it knows the configuration as it is now."""
    from solvisor.errors import SolvisorError
    from solvisor_service.client import changed_configuration

    code = refused.problem.code
    hint = ": --solver NAME" if code in ("no_solver", "ambiguous") and solver is None else ""
    if code in _BY_CONFIGURATION:
        with contextlib.suppress(SolvisorError):  # the refusal is what matters
            changed = changed_configuration(client.status())
            hint += f"; {changed}" if changed else ""
    return hint


def _wishes(arguments: argparse.Namespace, client: Client) -> dict[str, Any]:
    """The options that were given, as the keys of a job file."""
    from solvisor_service.targets import param

    retry = {"max": arguments.retry, "on": arguments.retry_on or None}
    wishes = {
        "solver": arguments.solver,
        "name": arguments.name,
        "project": arguments.project,
        "priority": arguments.priority,
        "key": arguments.key,
        "params": dict(map(param, arguments.params)) or None,
        "after": [client.job(job).id for job in arguments.after] or None,
        "timeout": arguments.timeout,
        "cpus": arguments.cpus,
        "memory": arguments.memory,
        "licenses": dict(arguments.licenses) or None,
        "retry": {key: value for key, value in retry.items() if value is not None} or None,
    }
    return {key: value for key, value in wishes.items() if value is not None}


def show_submitted(answer: Submitted, *, as_json: bool) -> None:
    """Print what became of a submission, on one line."""
    from solvisor_service.cli.text import clean

    if as_json:
        print_json(answer, line=True)
        return
    note = "  (was there already: it has this key)" if answer.existing else ""
    print(f"{answer.id}  {clean(answer.solver)}  {clean(answer.name)}{note}")
