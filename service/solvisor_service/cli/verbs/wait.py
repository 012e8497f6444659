"""``solvisor wait``: until jobs are finished."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import (
    EXIT_JOB_FAILED,
    EXIT_TIMEOUT,
    Verbs,
    add_verb,
    for_each,
    homed,
    print_json,
    reader_of,
    seconds,
    text_given,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from solvisor.views import JobView
    from solvisor_service.client import Client

_ROUND_SECONDS = 1.0
"""How long one job is waited for before the others are looked at."""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "wait",
        _wait,
        help="wait until jobs are finished; exit 1 if one did not succeed, 124 if it takes too long",
        examples="  solvisor wait last\n  solvisor wait --timeout 10m beam-1 beam-2 && echo all good",
        with_json=True,
    )
    verb.add_argument("jobs", nargs="+", metavar="JOB", type=text_given, help="an id, the beginning of one, or last")
    verb.add_argument("--timeout", metavar="TIME", type=seconds, help="how long at most, such as 10m")


def _wait(arguments: argparse.Namespace) -> int:
    client = reader_of(arguments)
    ids: list[str] = []  # "last" must not become another job meanwhile
    status = for_each(arguments, lambda name: ids.append(client.job(name).id))
    return wait_for(client, ids, arguments, timeout=arguments.timeout) or status


def wait_for(client: Client, ids: Iterable[str], arguments: argparse.Namespace, *, timeout: float | None = None) -> int:
    """Print each job as it ends. Returns 0 if all succeeded, 1 if one did not, 124 after ``timeout`` seconds."""
    from solvisor_service.cli.jobtext import is_over

    end = None if timeout is None else time.monotonic() + timeout
    pending = dict.fromkeys(ids)
    status = 0
    while pending:
        left = _ROUND_SECONDS if end is None else min(_ROUND_SECONDS, end - time.monotonic())
        patience = left if left > 0 else None
        for job_id in list(pending):
            job = client.job(job_id, wait=patience)
            patience = None  # one is waited for, the others are only looked at
            if is_over(job):
                del pending[job_id]
                _show(job, as_json=arguments.json)
                if job.state != "succeeded":
                    status = EXIT_JOB_FAILED
        if pending and left <= 0:
            rest = ", ".join(pending)
            first = next(iter(pending))
            hint = homed(f"solvisor explain {first}", arguments)
            print(f"solvisor: not finished in time: {rest}; see: {hint}", file=sys.stderr)
            return EXIT_TIMEOUT
        if pending:
            client.must_run()  # nothing else will ever end them
    return status


def _show(job: JobView, *, as_json: bool) -> None:
    from solvisor_service.cli.jobtext import outcome
    from solvisor_service.cli.text import clean

    if as_json:
        print_json(job, line=True)
    else:
        print(f"{job.id}  {clean(outcome(job))}", flush=True)
