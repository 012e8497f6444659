"""``solvisor priority``: move jobs that wait in the order."""

from __future__ import annotations

import argparse
import re

from solvisor_service.cli.shared import Verbs, add_verb, client_of, for_each, print_json, text_given


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    priority = add_verb(
        verbs,
        "priority",
        _priority,
        help="move jobs that wait in the order: a higher priority starts first, the default is 0",
        examples="  solvisor priority last 10\n  solvisor priority sweep-1 sweep-2 -5",
        with_json=True,
    )
    priority.add_argument(
        "jobs", nargs="+", metavar="JOB", type=text_given, help="an id, the beginning of one, or last"
    )
    priority.add_argument("priority", metavar="N", type=_number, help="a whole number from -1000 to 1000")


def _number(text: str) -> int:
    if re.fullmatch("[+-]?[0-9]{1,4}", text) is None or abs(int(text)) > 1000:
        raise argparse.ArgumentTypeError(f"{text!r}: the priority comes last, a whole number from -1000 to 1000")
    return int(text)


def _priority(arguments: argparse.Namespace) -> int:
    client = client_of(arguments)

    def prioritize(name: str) -> None:
        job = client.prioritize(name, arguments.priority)
        if arguments.json:
            print_json(job, line=True)
        else:
            print(f"{job.id}  priority {job.priority}")

    return for_each(arguments, prioritize)
