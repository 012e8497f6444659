"""What is wrong with a home, its daemon and its machine, and how to mend it.

A check is a function that looks at one thing and yields findings; ``CHECKS`` is the one place to add one. Rules:
looking changes nothing and disturbs no daemon: no lock is tried, no folder made, and what is written to measure is
removed; each check has its own time, so that a dead mount or a hanging script is one line and not the end. Nothing here
prints.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final, NamedTuple

from solvisor.solvers.command import SCRIPT_SECONDS
from solvisor_service.doctor import machine, places, running, setup
from solvisor_service.doctor.finding import Finding, Level, Subject, note, warning
from solvisor_service.doctor.places import DEEP_SECONDS
from solvisor_service.doctor.threads import in_thread

__all__ = ["CHECKS", "Check", "Finding", "Level", "Subject", "examine"]

USUAL_SECONDS: Final = 10.0


class Check(NamedTuple):
    """One thing to look at, how long that may take, and how much longer a deep look."""

    name: str
    look: Callable[[Subject], Iterator[Finding]]
    seconds: float = USUAL_SECONDS
    deep_seconds: float = 0.0


CHECKS: Final = (
    Check("program", setup.program),
    Check("home", places.home),
    Check("inbox", places.inbox),
    Check("disk", places.disk),
    Check("database", places.database, 3 * USUAL_SECONDS, DEEP_SECONDS),
    Check("configuration", setup.configuration),
    Check("solvers", setup.solvers, SCRIPT_SECONDS + USUAL_SECONDS),
    Check("notify", setup.notify),
    Check("daemon", running.daemon),
    Check("socket", running.status_socket),
    Check("unit", running.unit),
    Check("limits", machine.limits),
    Check("ports", machine.ports),
    Check("clock", machine.clock),
    Check("cgroup", machine.cgroup),
)


def examine(subject: Subject, checks: Sequence[Check] = CHECKS) -> list[tuple[str, Finding]]:
    """The findings of all checks, which look at the same time, in the order of ``checks``.

    Takes as long as the slowest, at most the longest time of a check: one that takes longer is left behind and says so.
    """
    begun = time.monotonic()
    seconds = {check: check.seconds + check.deep_seconds * subject.deep for check in checks}
    looks = [(check, in_thread(partial(_look, check, subject), f"doctor-{check.name}")) for check in checks]
    return [
        (check.name, finding)
        for check, answer in looks
        for finding in _answer(answer, seconds[check], begun + seconds[check] - time.monotonic())
    ]


def _look(check: Check, subject: Subject) -> list[Finding]:
    found: list[Finding] = []
    try:
        found.extend(check.look(subject))
    except PermissionError as error:
        place = error.filename or "it"
        found.append(note(f"{place} is closed to this user", "look as the daemon's user, or as root"))
    except Exception as error:  # noqa: BLE001  what ends one check must not end the others
        found.append(warning(f"it could not be looked at: {type(error).__name__}: {error}", "please report it"))
    return found


def _answer(answer: Future[list[Finding]], seconds: float, left: float) -> list[Finding]:
    try:
        return answer.result(max(0.0, left))
    except TimeoutError:
        mend = "look for a mount that does not answer, or a disk that is overloaded"
        return [warning(f"looking took longer than {seconds:g} s and was given up", mend)]
