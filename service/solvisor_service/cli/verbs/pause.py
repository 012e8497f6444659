"""``solvisor pause`` and ``solvisor resume``: start nothing new for a while."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import Verbs, add_verb, client_of, complain, homed, print_json, text_given

if TYPE_CHECKING:
    from solvisor.views import Status


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    pause = add_verb(
        verbs,
        "pause",
        _pause,
        help="start nothing new, of one solver or of all; what runs goes on",
        examples='  solvisor pause\n  solvisor pause orcaflex --note "license server is down until Monday"',
        with_json=True,
    )
    resume = add_verb(
        verbs,
        "resume",
        _resume,
        help="take a pause back",
        examples="  solvisor resume\n  solvisor resume orcaflex",
        with_json=True,
    )
    for verb in (pause, resume):
        solver = "the solver (default: the pause of everything)"
        verb.add_argument("solver", nargs="?", metavar="SOLVER", type=text_given, help=solver)
    pause.add_argument("--note", metavar="TEXT", type=text_given, help="why, for whoever asks")


def _pause(arguments: argparse.Namespace) -> int:
    from solvisor_service.cli.text import clean

    status = client_of(arguments).pause(arguments.solver, arguments.note)
    if arguments.json:
        print_json(status)
        return 0
    what, command = "nothing", "solvisor resume"
    if arguments.solver:
        what, command = f"nothing of {arguments.solver}", f"solvisor resume {arguments.solver}"
    print(clean(f"paused: {what} is started until: {homed(command, arguments)}"))
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    from solvisor_service.cli.text import clean
    from solvisor_service.client import RequestRefused

    client = client_of(arguments)
    try:
        status = client.resume(arguments.solver)
    except RequestRefused as refused:
        if refused.problem.code != "not_paused":
            raise
        complain(_not_paused(arguments.solver, client.status()), arguments)
        return refused.exit_status
    if arguments.json:
        print_json(status)
        return 0
    print(clean(f"resumed: {arguments.solver or 'everything'}"))
    for pause in status.paused:
        print(clean(f"still paused: {pause.solver or 'everything'}{f': {pause.note}' if pause.note else ''}"))
    return 0


def _not_paused(solver: str | None, status: Status) -> str:
    """What is paused instead, and how that is resumed."""
    others = sorted(pause.solver or "" for pause in status.paused)
    if not others:
        return f"{solver} is not paused, nor is anything else" if solver else "nothing is paused"
    names = ", ".join(name or "everything" for name in others)
    told = f"{solver} is not paused by itself" if solver else "no pause of everything is in force"
    return f"{told}; paused: {names}; see: solvisor resume {others[0]}".rstrip()
