"""``solvisor pause`` and ``solvisor resume``: start nothing new for a while."""

from __future__ import annotations

import argparse

from solvisor_service.cli.shared import Verbs, add_verb, client_of, print_json


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
        verb.add_argument("solver", nargs="?", metavar="SOLVER", help="the solver (default: the pause of everything)")
    pause.add_argument("--note", metavar="TEXT", help="why, for whoever asks")


def _pause(arguments: argparse.Namespace) -> int:
    status = client_of(arguments).pause(arguments.solver, arguments.note)
    if arguments.json:
        print_json(status)
    elif arguments.solver:
        print(f"paused: nothing of {arguments.solver} is started until: solvisor resume {arguments.solver}")
    else:
        print("paused: nothing is started until: solvisor resume")
    return 0


def _resume(arguments: argparse.Namespace) -> int:
    from solvisor_service.cli.text import clean

    status = client_of(arguments).resume(arguments.solver)
    if arguments.json:
        print_json(status)
        return 0
    print(f"resumed: {arguments.solver or 'everything'}")
    for pause in status.paused:
        print(clean(f"still paused: {pause.solver or 'everything'}{f': {pause.note}' if pause.note else ''}"))
    return 0
