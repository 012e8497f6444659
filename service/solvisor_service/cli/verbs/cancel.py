"""``solvisor cancel`` and ``solvisor retry``: end jobs, or run them again."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import Verbs, add_verb, client_of, for_each, print_json, text_given

if TYPE_CHECKING:
    from solvisor.views import JobView


def add(verbs: Verbs) -> None:
    """Declare the verbs."""
    cancel = add_verb(
        verbs,
        "cancel",
        _cancel,
        help="end jobs, queued or running",
        examples="  solvisor cancel last\n  solvisor cancel beam-1 beam-2",
        with_json=True,
    )
    retry = add_verb(
        verbs,
        "retry",
        _retry,
        help="run finished jobs again, each as a new job with the same inputs",
        examples="  solvisor retry last\n  solvisor retry $(solvisor list --state failed --json | jq -r '.jobs[].id')",
        with_json=True,
    )
    for verb in (cancel, retry):
        verb.add_argument(
            "jobs", nargs="+", metavar="JOB", type=text_given, help="an id, the beginning of one, or last"
        )


def _cancel(arguments: argparse.Namespace) -> int:
    client = client_of(arguments)

    def cancel(name: str) -> None:
        job = client.cancel(name)
        if arguments.json:
            print_json(job, line=True)
        else:
            print(f"{job.id}  {_ended(job)}")

    return for_each(arguments, cancel)


def _ended(job: JobView) -> str:
    if job.state == "cancelled":
        return "cancelled"
    return "is being stopped" if job.state == "running" else f"will be cancelled; now {job.state.value}"


def _retry(arguments: argparse.Namespace) -> int:
    from solvisor_service.cli.verbs.submit import show_submitted

    client = client_of(arguments)
    return for_each(arguments, lambda name: show_submitted(client.retry(name), as_json=arguments.json))
