"""Waiting for everything: until nothing is queued, running or collected, nor settles in the inbox.

What needs a person is not waited for: a job file whose input did not come, an input that wants a job file, a folder
that is no job yet, a disk without room. It is told. What is being written, or may be named by what is, is waited for.

Rules: each job that ends meanwhile is shown once, whatever is lost on the way, a life of the daemon too. Nothing counts
as missing that the daemon has not looked for since.
"""

from __future__ import annotations

import argparse
import functools
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from solvisor.feed import JobChange, Reset
from solvisor.model import TERMINAL, State
from solvisor_service.cli.away import Patience, StillAway
from solvisor_service.cli.shared import EXIT_JOB_FAILED, EXIT_TIMEOUT, homed, tell
from solvisor_service.cli.text import clean
from solvisor_service.client import RequestRefused

if TYPE_CHECKING:
    from solvisor.views import JobView, Status
    from solvisor_service.client import Client
    from solvisor_service.told import Events

LOOK_SECONDS: Final = 0.25
"""How often it is asked whether all is done while no job is left."""

DEAF_SECONDS: Final = 1.0
"""How often it is asked where it cannot be heard."""

LOOKED_SECONDS: Final = 5.0
"""How long a look of the daemon at its inbox is waited for; without events it looks as often as ``rescan`` says."""

SHOWN: Final = 5
PAGE: Final = 1000
_LIVE: Final = (State.QUEUED.value, State.RUNNING.value, State.COLLECTING.value)


def wait_for_all(client: Client, arguments: argparse.Namespace, show: Callable[[JobView], None]) -> int:
    """Show each job that ends. Returns 0 if all succeeded, 1 if one did not, 124 after ``--timeout``."""
    end = math.inf if arguments.timeout is None else time.monotonic() + arguments.timeout
    client.must_run()
    waiting = _Waiting(client, Patience(client, tell, end), show)
    try:
        return _wait(client, waiting, arguments, end)
    except StillAway as error:
        hint = homed("solvisor status", arguments)
        print(f"solvisor: not finished in time: {error}; see: {hint}", file=sys.stderr)
        return EXIT_TIMEOUT


def _wait(client: Client, waiting: _Waiting, arguments: argparse.Namespace, end: float) -> int:
    with client.events() as events:
        waiting.hear_next(events, end)  # its hello: from now on nothing is missed
        waiting.look()
        began, looked_until = waiting.status.now, time.monotonic() + LOOKED_SECONDS
        while True:
            if not waiting.live:
                waiting.look()
                is_known = (waiting.status.inbox_looked or "") > began or time.monotonic() >= looked_until
                has_heard = waiting.is_deaf or events.cursor == waiting.status.cursor
                if is_known and waiting.is_over() and has_heard:
                    _tell_left(waiting.status, arguments)
                    return waiting.exit_status
            if time.monotonic() >= end:
                _tell_late(waiting, arguments)
                return EXIT_TIMEOUT
            rest = DEAF_SECONDS if waiting.is_deaf else math.inf if waiting.live else LOOK_SECONDS
            waiting.hear_next(events, min(end, time.monotonic() + rest))


class _Waiting:
    """What is waited for. ``live`` are the jobs that are known not to be over.

    ``is_deaf``: the daemon has too many readers to tell what happens, so it is asked again and again instead.
    """

    def __init__(self, client: Client, patience: Patience, show: Callable[[JobView], None]) -> None:
        self.patience = patience
        self.live: dict[str, None] = {}
        self.status: Status
        self.exit_status = 0
        self.is_deaf = False
        self._client = client
        self._show = show
        self._shown: set[str] = set()

    def look(self) -> None:
        """Ask how things stand, and which jobs there are if there are any."""
        self.status = self.patience.ask(self._client.status)
        if self.status.waiting or self.status.running or self.status.collecting:
            self.find()

    def is_over(self) -> bool:
        """Whether nothing is left, as of the last look."""
        status = self.status
        return not (status.waiting or status.running or status.collecting or status.inbox_settling)

    def find(self) -> None:
        """Ask which jobs are live, and show those that were and are not any more."""
        before, self.live = self.live, {}
        cursor = None
        while True:
            ask = functools.partial(self._client.jobs, state=_LIVE, limit=PAGE, cursor=cursor)
            page = self.patience.ask(ask)
            self.live.update((row.id, None) for row in page.jobs)
            cursor = page.next
            if cursor is None:
                break
        for job_id in before:
            if job_id not in self.live:
                self._ended(job_id)

    def hear_next(self, events: Events, until: float) -> None:
        """Take the next event, if one comes until then."""
        try:
            told = self.patience.ask(functools.partial(events.next, until))
        except RequestRefused as refused:
            if refused.problem.code != "unavailable":
                raise
            self.is_deaf = True
            time.sleep(max(0.0, min(DEAF_SECONDS, until - time.monotonic())))
            self.find()
            return
        if isinstance(told, Reset) or (self.is_deaf and told is not None):
            self.find()
            self.is_deaf = False
        if isinstance(told, JobChange):
            self._hear(told)

    def _hear(self, told: JobChange) -> None:
        """A job changed."""
        if told.state in TERMINAL:
            self._ended(told.id)
        else:
            self.live[told.id] = None

    def _ended(self, job_id: str) -> None:
        self.live.pop(job_id, None)
        if job_id in self._shown:  # told twice, for its processes would not die
            return
        self._shown.add(job_id)
        job = self.patience.ask(functools.partial(self._client.job, job_id))
        if job.state != State.SUCCEEDED:
            self.exit_status = EXIT_JOB_FAILED
        self._show(job)


def _tell_left(status: Status, arguments: argparse.Namespace) -> None:
    """Say what lies in the inbox and was not waited for."""
    count = status.inbox_total
    if not count:
        return
    for wait in status.inbox[:SHOWN]:
        print(f"solvisor: not waited for: {clean(wait.name)}: {clean(wait.text)}", file=sys.stderr)
    if count > SHOWN:
        more = homed("solvisor status --json", arguments)
        print(f"solvisor: and {count - SHOWN} more in the inbox; see: {more}", file=sys.stderr)


def _tell_late(waiting: _Waiting, arguments: argparse.Namespace) -> None:
    hint = homed("solvisor status", arguments)
    jobs = len(waiting.live)
    left = [f"{jobs} job{'s' * (jobs != 1)}"] if jobs else []
    if waiting.status.inbox_settling:
        left.append(f"{waiting.status.inbox_settling} in the inbox")
    what = " and ".join(left) or "the last look at the inbox"
    print(f"solvisor: not finished in time: {what}; see: {hint}", file=sys.stderr)
