"""``solvisor status``: how the daemon is, and what it does."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final

from solvisor_service.cli.shared import Verbs, add_verb, client_of, homed, print_json

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from solvisor.views import InboxWait, JobRow, PoolRow, Status
    from solvisor_service.cli.text import Cell

HEALTH = {"healthy": "bold green", "degraded": "bold red", "stopping": "bold yellow"}
_SEPARATOR = "   "
_NAME_WIDTH: Final = 24
"""Columns of a terminal that the name of a job may take."""

DROPS: Final[Mapping[str, tuple[str, str]]] = {
    "settling": ("settling", "settling"),
    "second_name": ("file with a second name", "files with a second name"),
    "claim": ("drop that could not be taken yet", "drops that could not be taken yet"),
    "companion": ("job file whose inputs are not all there", "job files whose inputs are not all there"),
    "held": ("input beside an upload that may name it", "inputs beside an upload that may name them"),
    "job_file": ("waits for a job file that names it", "wait for a job file that names them"),
    "disk": ("drop that waits for room on the disk", "drops that wait for room on the disk"),
    "folder": ("folder without a job.toml", "folders without a job.toml"),
}
"""What a drop is or waits for, by ``InboxWait.why``: of one, and of several."""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    add_verb(
        verbs,
        "status",
        _status,
        help="show how the daemon is, what runs, and what the rest waits for",
        examples="  solvisor status\n  solvisor status --json | jq .health",
        with_json=True,
    )


def _status(arguments: argparse.Namespace) -> int:
    status = client_of(arguments).status()
    if arguments.json:
        print_json(status)
    else:
        _show(status, arguments)
    return 0


def _show(status: Status, arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.cli.jobtext import STYLES

    out = text.console()
    health = Text.assemble(
        (text.clean(status.host), "bold"), ": ", (status.health, HEALTH[status.health]),
        f", up {text.duration(status.up_seconds)}    ",
    )  # fmt: skip
    _flow(out, health, _counts(status))
    _flow(out, Text(), _levels(status))
    block: list[tuple[Cell, Cell]] = []
    for sentence in status.problems:
        first, *further = homed(sentence, arguments).split("\n")
        block.append((Text("PROBLEM", "bold red"), first))
        block += [("", Text(f"  {text.clean(line)}")) for line in further]
    block += [(Text("PAUSED ", "bold yellow"), words) for words in pauses(status)]
    block += [(Text("LIMITED", "bold yellow"), words) for words in limits(status)]
    text.table(out, block)
    text.table(out, _servers(status), cut=True)
    if what := list(waits(status)):
        _flow(out, Text("WAITING", "bold"), what)
    _jobs(out, Text("RUNNING", "bold"), status.running_jobs, status.running)
    _jobs(out, Text("FAILED ", STYLES["failed"]), status.last_failed, status.last_day.failed)
    if not (status.running_jobs or status.waiting or status.inbox_total):
        begin = homed("solvisor submit FILE", arguments)
        text.table(out, [[f"Nothing to do. Drop an input in {status.inbox_path}, or: {begin}"]])


def _counts(status: Status) -> Iterator[str]:
    yield f"running {status.running}"
    if status.collecting:
        yield f"collecting {status.collecting}"
    yield f"waiting {status.waiting}"
    if status.escaped:
        yield f"escaped processes killed: {status.escaped}"
    ended = status.last_day
    others = {"cancelled": ended.cancelled, "rejected": ended.rejected, "skipped": ended.skipped}
    ends = [f"{ended.succeeded} ok", f"{ended.failed} failed"]
    yield "24 h: " + ", ".join(ends + [f"{count} {word}" for word, count in others.items() if count])


def _levels(status: Status) -> Iterator[str]:
    from solvisor.views import LATE_SECONDS
    from solvisor_service.cli.text import share, size

    yield f"jobs {status.jobs.used}/{status.jobs.total}"
    yield f"cores {status.cpus.used}/{status.cpus.total}"
    yield f"memory {share(status.memory_bytes.used, status.memory_bytes.total)}"
    if status.disk_free_bytes is not None:
        yield f"disk {size(status.disk_free_bytes)} free"
    if status.log_lines_lost:
        yield f"{status.log_lines_lost:,} lines of the log lost"
    if status.loop_lag_seconds > LATE_SECONDS:
        yield f"answers late by up to {status.loop_lag_seconds:.2f} s"
    for name, level in status.licenses.items():
        yield f"license {name} {level.used}/{level.total}"


def pauses(status: Status) -> Iterator[str]:
    """Each pause in words: of what, since when, by whom, why."""
    for pause in status.paused:
        yield f"{pause.solver or 'everything'}, {_order(pause.since, pause.by, pause.note)}"


def limits(status: Status) -> Iterator[str]:
    """Each limit that a person set in words."""
    for limit in status.limits_set:
        from solvisor_service.cli.verbs.limit import limit_value

        if limit.known and limit.since is not None:  # else a sentence says so
            value, configured = limit_value(limit, limit.value), limit_value(limit, limit.configured)
            told = _order(limit.since, limit.by, limit.note)
            yield f"{limit.name} to {value} (configured: {configured}), {told}"


def _order(since: str, by: str | None, note: str | None) -> str:
    """When something was ordered, by whom, and why."""
    from solvisor_service.cli.jobtext import clock

    return f"since {clock(since)}{f' by {by}' if by else ''}{f': {note}' if note else ''}"


def _servers(status: Status) -> list[tuple[Cell, ...]]:
    from rich.text import Text

    used = [pool for pool in status.servers if is_used(pool)]
    rows = [(pool.solver, servers_words(pool)) for pool in used]
    if unused := len(status.servers) - len(used):
        rows.append(("", f"none now, none wanted: {unused} {'other ' * bool(used)}solver{'s' * (unused > 1)}"))
    return [(Text("SERVERS" if n == 0 else "", "bold"), *row) for n, row in enumerate(rows)]


def is_used(pool: PoolRow) -> bool:
    """Whether there is something to be told of a solver's warm servers: there are some, or there shall be."""
    return bool(pool.starting or pool.up or pool.ready or pool.wanted or pool.waiting or pool.state != "ok")


def servers_words(pool: PoolRow) -> str:
    """``2 ready, 1 busy, 1 starting of 4``; with the word for those that may not start (PROBLEM tells why for good)."""
    counts = {"ready": pool.ready - pool.busy, "busy": pool.busy, "starting": pool.starting}
    there = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none"
    told = f"{there} of {pool.most}"
    return {"ok": told, "backoff": f"{told}, backoff: {pool.error}", "failed": f"{told}, failed"}[pool.state]


def waits(status: Status) -> Iterator[str]:
    """What jobs and drops wait for: ``31 for license orcaflex``, ``2 settling (a.inp, ...)``."""
    from solvisor.model import Reason
    from solvisor.views import waited_for

    for waiting in status.waiting_for:
        words = waited_for(waiting.reason, waiting.what)
        yield f"{waiting.jobs} {words}" if waiting.reason is Reason.PAUSED else f"{waiting.jobs} for {words}"
    by_why: dict[str, list[InboxWait]] = {}
    for drop in status.inbox:
        by_why.setdefault(drop.why, []).append(drop)
    for why, drops in by_why.items():
        one, several = DROPS.get(why, (why, why))
        first = f"{drops[0].name}, {drops[0].text}" if why == "settling" else drops[0].name
        yield f"1 {one} ({first})" if len(drops) == 1 else f"{len(drops)} {several} ({drops[0].name}, ...)"
    if status.inbox_total > len(status.inbox):
        yield f"{status.inbox_total - len(status.inbox)} more in the inbox"


def _jobs(out: Console, head: Text, jobs: Collection[JobRow], total: int) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.cli.jobtext import own_name, short_ids

    ids = short_ids([job.id for job in jobs])
    rows: list[tuple[Cell, ...]] = []
    for job in jobs:
        took = "" if job.run_seconds is None else text.duration(job.run_seconds)
        note = job.message or ("" if job.state == "running" else job.state.value)
        if job.state == "running" and job.tries > 1:
            note = f"try {job.tries}"
        name = Text(own_name(job))
        if out.is_terminal:
            name.truncate(_NAME_WIDTH, overflow="ellipsis")
        rows.append((Text() if rows else head, ids[job.id], name, job.user or "", job.solver, took, note))
    if rows and total > len(rows):
        rows.append((Text(), f"and {total - len(rows)} more", "", "", "", "", ""))
    text.table(out, rows, right={5})


def _flow(out: Console, head: Text, parts: Collection[str] | Iterator[str]) -> None:
    """Print ``parts`` beside ``head``; a line ends between two parts, never within one that fits."""
    from rich.text import Text

    from solvisor_service.cli import text

    lines: list[Text] = []
    room = out.width - head.cell_len - len(_SEPARATOR)
    for part in map(Text, map(text.clean, parts)):
        if lines and (not out.is_terminal or lines[-1].cell_len + len(_SEPARATOR) + part.cell_len <= room):
            lines[-1] += Text(_SEPARATOR) + part
        else:
            lines.append(part)
    text.table(out, [(Text() if n else head, line) for n, line in enumerate(lines)])
