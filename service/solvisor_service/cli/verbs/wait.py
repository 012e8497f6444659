"""``solvisor wait``: until jobs are finished."""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import (
    EXIT_JOB_FAILED,
    EXIT_TIMEOUT,
    Verbs,
    add_verb,
    client_of,
    for_each,
    homed,
    print_json,
    reader_of,
    seconds,
    tell,
    text_given,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from solvisor.views import JobView
    from solvisor_service.cli.away import Patience
    from solvisor_service.client import Client

_ROUND_SECONDS = 1.0
"""How long one job is waited for before the others are looked at."""


_EXAMPLES = """\
  solvisor wait last
  solvisor wait --timeout 10m beam-1 beam-2 && echo all good
  solvisor wait --all                  until nothing is left to do"""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "wait",
        _wait,
        help="wait until jobs are finished; exit 1 if one did not succeed, 124 if it takes too long",
        examples=_EXAMPLES,
        with_json=True,
    )
    verb.add_argument("jobs", nargs="*", metavar="JOB", type=text_given, help="an id, the beginning of one, or last")
    verb.add_argument(
        "--all", action="store_true", help="all jobs, and what settles in the inbox, until nothing is left"
    )
    verb.set_defaults(refuse=verb.error)
    verb.add_argument("--timeout", metavar="TIME", type=seconds, help="how long at most, such as 10m")


def _wait(arguments: argparse.Namespace) -> int:
    if arguments.all == bool(arguments.jobs):
        arguments.refuse("either the JOBs to wait for, or --all")
    if arguments.all:
        from solvisor_service.cli.waitall import wait_for_all

        return wait_for_all(client_of(arguments), arguments, lambda job: show(job, as_json=arguments.json))
    client = reader_of(arguments)
    end = math.inf if arguments.timeout is None else time.monotonic() + arguments.timeout
    ids: list[str] = []  # "last" must not become another job meanwhile
    status = for_each(arguments, lambda name: ids.append(client.job(name).id))
    return wait_for(client, ids, arguments, end) or status


def wait_for(client: Client, ids: Iterable[str], arguments: argparse.Namespace, end: float = math.inf) -> int:
    """Print each job as it ends, also over lives of the daemon.

    Returns 0 if all succeeded, 1 if one did not, 124 if they took longer than until ``end`` (``time.monotonic``).
    """
    from solvisor_service.cli.away import Patience, StillAway

    patience = Patience(client, tell, end)
    pending = dict.fromkeys(ids)
    status = 0
    while pending:
        left = min(_ROUND_SECONDS, end - time.monotonic())
        try:
            for job in _ended(client, patience, list(pending), left):
                del pending[job.id]
                show(job, as_json=arguments.json)
                if job.state != "succeeded":
                    status = EXIT_JOB_FAILED
            if pending and left > 0:
                patience.ask(client.must_run)  # nothing else will ever end them
                continue
        except StillAway:
            left = 0.0
        if pending:
            rest = ", ".join(pending)
            first = next(iter(pending))
            hint = homed(f"solvisor explain {first}", arguments)
            print(f"solvisor: not finished in time: {rest}; see: {hint}", file=sys.stderr)
            return EXIT_TIMEOUT
    return status


def _ended(client: Client, patience: Patience, ids: Iterable[str], seconds: float) -> Iterator[JobView]:
    """Those of the jobs that are over; one is waited for so long, the others are only looked at."""
    from solvisor_service.cli.jobtext import is_over

    wait = seconds if seconds > 0 else None
    for job_id in ids:
        job = patience.ask(functools.partial(client.job, job_id, wait=wait))
        wait = None
        if is_over(job):
            yield job


def show(job: JobView, *, as_json: bool) -> None:
    """Print a job that ended."""
    from solvisor_service.cli.jobtext import outcome
    from solvisor_service.cli.text import clean

    if as_json:
        print_json(job, line=True)
    else:
        print(f"{job.id}  {clean(outcome(job))}", flush=True)
