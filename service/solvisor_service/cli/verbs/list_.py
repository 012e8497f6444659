"""``solvisor list``: jobs, newest first."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from solvisor.model import Cause, State
from solvisor_service.cli.shared import Verbs, add_verb, homed, moment, print_json, reader_of, text_given, whole_number

if TYPE_CHECKING:
    from solvisor.views import JobPage, JobRow
    from solvisor_service.cli.text import Cell
    from solvisor_service.client import Client

_PAGE = 500
_WIDE = 100
"""Columns of a terminal that has room for who and when."""
_EXAMPLES = """\
  solvisor list
  solvisor list --state failed --since 24h
  solvisor list --project riser-2026 --state queued --state running --all
  solvisor list --cause timeout --search riser --until 2026-11-01
  solvisor list --since 2026-11-01 --json | jq -r '.jobs[].id'"""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(verbs, "list", _list, help="list jobs, newest first", examples=_EXAMPLES, with_json=True)
    option = verb.add_argument
    states = [state.value for state in State]
    option("--state", action="append", choices=states, metavar="STATE", help=f"one of {', '.join(states)}; repeatable")
    causes = [cause.value for cause in Cause]
    option(
        "--cause", action="append", choices=causes, metavar="CAUSE", help=f"failed by {', '.join(causes)}; repeatable"
    )
    for name in ("solver", "user", "project", "batch"):
        option(f"--{name}", metavar="NAME" if name != "batch" else "ID", type=text_given, help=f"of this {name}")
    option("--search", metavar="TEXT", type=text_given, help="with this in its name or id, in whatever case")
    option("--since", metavar="WHEN", type=moment, help="submitted since: 2h ago, or 2026-11-01, or 2026-11-01T08:00")
    option("--until", metavar="WHEN", type=moment, help="submitted before then")
    amount = verb.add_mutually_exclusive_group()
    amount.add_argument("--limit", metavar="N", type=whole_number(1), default=20, help="at most so many (default: 20)")
    amount.add_argument("--all", action="store_true", help="all of them")


def _list(arguments: argparse.Namespace) -> int:
    from solvisor.views import JobPage

    names = ("state", "cause", "solver", "user", "project", "batch", "since", "until")
    filters = {name: getattr(arguments, name) for name in names} | {"q": arguments.search}
    pages = _pages(reader_of(arguments), filters, None if arguments.all else arguments.limit)
    if arguments.json:
        found = list(pages)
        print_json(JobPage(tuple(job for page in found for job in page.jobs), found[-1].next))
        return 0
    jobs: list[JobRow] = []
    more = False
    for page in pages:
        jobs += page.jobs
        more = page.next is not None
    _show(jobs)
    if more:
        print(f"({len(jobs)} shown; more with --limit N or --all)", file=sys.stderr)
    if not jobs:
        none = "no such jobs" if any(filters.values()) else "no jobs yet; begin with: solvisor submit FILE"
        print(homed(none, arguments), file=sys.stderr)
    return 0


def _pages(client: Client, filters: dict[str, str | list[str] | None], limit: int | None) -> Iterator[JobPage]:
    left = limit
    cursor: str | None = None
    while True:
        page = client.jobs(limit=_PAGE if left is None else min(left, _PAGE), cursor=cursor, **filters)
        yield page
        left = None if left is None else left - len(page.jobs)
        cursor = page.next
        if cursor is None or (left is not None and left <= 0):
            return


def _show(jobs: list[JobRow]) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.cli.jobtext import STYLES, clock, short_ids

    out = text.console()
    ids = {job.id: job.id for job in jobs}
    if out.is_terminal and max(map(len, ids), default=0) > out.width // 3:
        ids = short_ids(ids)
    wide = out.width >= _WIDE or not out.is_terminal
    titles = ["ID", "STATE", "SOLVER", *(["USER", "SUBMITTED"] if wide else []), "TOOK", "NAME"]
    rows: list[list[Cell]] = []
    for job in jobs:
        state = Text(job.state.value, STYLES.get(job.state, ""))
        more = [job.user or "", clock(job.submitted)] if wide else []
        took = "" if job.run_seconds is None else text.duration(job.run_seconds)
        rows.append([ids[job.id], state, job.solver, *more, took, _about(job)])
    text.table(out, rows, titles=titles, right={len(titles) - 2})


def _about(job: JobRow) -> str:
    """What it is called, and what keeps or kept it from succeeding."""
    from solvisor_service.cli.jobtext import waits_words

    if waits := waits_words(job):
        return f"{job.name} (waits: {waits})"
    removed = " (files removed)" if job.removed else ""
    return f"{job.name}{removed}: {job.message}" if job.message else f"{job.name}{removed}"
