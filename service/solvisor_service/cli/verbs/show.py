"""``solvisor show``: all that is known of one job."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import Verbs, add_verb, print_json, reader_of, text_given

if TYPE_CHECKING:
    from solvisor.manifest import AttemptFacts, Manifest
    from solvisor.views import JobView
    from solvisor_service.client import Client

_FILES_SHOWN = 20
_RESULT_SHOWN = 300
"""Characters of the result, which may be any JSON."""
_ENDS = {
    "server": "server died",
    "lost": "interrupted",
    "spawn": "did not start",
    "unkillable": "would not die",
}
"""How a try ended, by its cause, where that says more than an exit status."""

_LABEL_WIDTH = 9


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "show",
        _show,
        help="show all that is known of a job: wishes, times, tries, checks, files",
        examples="  solvisor show last\n  solvisor show beam-1 --json | jq .attempts",
        with_json=True,
    )
    verb.add_argument("job", metavar="JOB", type=text_given, help="an id, the beginning of one, or last")


def _show(arguments: argparse.Namespace) -> int:
    client = reader_of(arguments)
    job = client.job(arguments.job)
    if arguments.json:
        print_json(job)
    else:
        _print(job, _manifest(client, job))
    return 0


def _manifest(client: Client, job: JobView) -> Manifest | None:
    import msgspec

    from solvisor.manifest import Manifest
    from solvisor_service.cli.jobtext import is_over
    from solvisor_service.client import RequestRefused

    if not is_over(job):
        return None
    try:
        return msgspec.json.decode(client.manifest(job.id), type=Manifest)
    except RequestRefused:  # its folder was cleared away; the rest is still worth showing
        return None


def _print(job: JobView, manifest: Manifest | None) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.cli.jobtext import STYLES, checks_rows, is_over, labelled, place_of, standing, whose

    out = text.console()
    state = (text.clean(standing(job)), STYLES.get(job.state, ""))
    text.table(out, [[Text.assemble((job.id, "bold"), f" {text.clean(whose(job))} ", state)]])
    if job.message:
        text.table(out, [[job.message]], indent=2)
    facts = [(labelled(label, _LABEL_WIDTH), value) for label, value in _facts(job) if value]
    text.table(out, facts, indent=2)
    tries: list[list[text.Cell]] = []
    for attempt in job.attempts:
        runs = job.state == "running" and attempt is job.attempts[-1]
        label = labelled("" if tries else "tries", _LABEL_WIDTH)
        tries.append([label, str(attempt.n), _end(attempt, runs=runs), *_attempt(attempt, job.message)])
    text.table(out, tries, indent=2)
    text.table(out, checks_rows(job.checks, _LABEL_WIDTH), indent=2, wrap=1)
    more = [(labelled(label, _LABEL_WIDTH), value) for label, value in _told(job) if value]
    text.table(out, more, indent=2)
    files = list(_files(manifest)) if manifest else []
    rows = [(labelled("" if n else "files", _LABEL_WIDTH), path, size) for n, (path, size) in enumerate(files)]
    text.table(out, rows, indent=2, right={2}, wrap=1)
    place = place_of(job)
    if is_over(job) and manifest is None and job.removed is None:
        place += "  is gone: somebody removed it"
    text.table(out, [(labelled("folder", _LABEL_WIDTH), place)], indent=2)


def _facts(job: JobView) -> Iterator[tuple[str, str]]:
    from solvisor_service.cli.jobtext import time_of, waits_words
    from solvisor_service.cli.text import duration, size

    yield "name", job.name
    yield "project", job.project or ""
    yield "batch", job.batch or ""
    yield "again", f"run again from {job.retry_of}" if job.retry_of else ""
    yield "waits for", waits_words(job)
    yield "cause", ", ".join(part for part in (job.cause and job.cause.value, job.code) if part)
    yield "input", job.primary
    yield "source", job.source
    yield "command", shlex.join(job.command)
    yield "params", ", ".join(f"{name} = {value}" for name, value in job.params.items())
    cores = "1 core" if job.cpus == 1 else f"{job.cpus} cores"
    timeout = f"timeout {duration(job.timeout_seconds)}" if job.timeout_seconds is not None else "no timeout"
    memory = [f"memory {size(job.memory_bytes)}"] if job.memory_bytes else []
    licenses = [f"license {name} {count}" for name, count in job.licenses.items()]
    yield "limits", ", ".join([cores, *memory, timeout, *licenses])
    yield "priority", str(job.priority) if job.priority else ""
    yield "after", ", ".join(job.after)
    yield "key", job.key or ""
    waited = "" if job.queue_seconds is None else f", waited {duration(job.queue_seconds)}"
    yield "submitted", f"{time_of(job.submitted):%Y-%m-%d %H:%M:%S}{waited}"
    ran = "" if job.run_seconds is None else f", ran {duration(job.run_seconds)}"
    yield "started", f"{time_of(job.started):%Y-%m-%d %H:%M:%S}" if job.started else ""
    yield "finished", f"{time_of(job.finished):%Y-%m-%d %H:%M:%S}{ran}" if job.finished else ""
    tried = f"{job.tries} of at most {job.tries_max}"
    if job.tries != job.tries_charged:
        tried = f"{job.tries}, charged {job.tries_charged} of at most {job.tries_max}"
    yield "tried", tried if job.tries_max > 1 else ""


def _told(job: JobView) -> Iterator[tuple[str, str]]:
    """What the solver told of its result, and whether all that it printed is there."""
    import msgspec

    told = "" if job.result is None else msgspec.json.encode(job.result).decode()
    if len(told) > _RESULT_SHOWN:
        told = f"{told[:_RESULT_SHOWN]} ... (the rest is in manifest.json)"
    yield "result", told
    yield "log", "longer than its limit: the middle of it was cut out" if job.log_truncated else ""


def _end(attempt: AttemptFacts, *, runs: bool) -> str:
    """How a try ended; ``runs``: it is the one that runs."""
    if attempt.code == "server_gone":
        return "server gone before it began"
    if attempt.cause in _ENDS:
        return _ENDS[attempt.cause]
    if attempt.signal is not None:
        return f"signal {attempt.signal}"
    if attempt.exit_code is not None:
        return f"exit {attempt.exit_code}"
    return "running" if runs else "interrupted"


def _attempt(attempt: AttemptFacts, said: str | None) -> tuple[str, ...]:
    """Columns that tell what a try used; ``said`` is the message that stands above already."""
    from solvisor_service.cli.jobtext import time_of
    from solvisor_service.cli.text import duration, size

    seconds = (time_of(attempt.finished) - time_of(attempt.started)).total_seconds() if attempt.finished else None
    port = f" port {attempt.port}" if attempt.port is not None else ""
    user, system = attempt.cpu_user_seconds, attempt.cpu_system_seconds
    return (
        "" if seconds is None else duration(seconds),
        "" if attempt.server is None else f"server {attempt.server}{port}",
        "" if user is None or system is None else f"cpu {duration(user + system)}",
        "" if attempt.max_rss_bytes is None else f"memory {size(attempt.max_rss_bytes)}",
        attempt.message if attempt.message and attempt.message != said else "",
    )


def _files(manifest: Manifest) -> Iterator[tuple[str, str]]:
    from solvisor_service.cli.text import size

    for fact in manifest.outputs[:_FILES_SHOWN]:
        yield fact.path, f"link to {fact.link}" if fact.link is not None else size(fact.size)
    if manifest.more_outputs is not None:
        yield f"... and more, listed in {manifest.more_outputs.path}", ""
    elif len(manifest.outputs) > _FILES_SHOWN:
        yield f"... and {len(manifest.outputs) - _FILES_SHOWN} more, listed in manifest.json", ""
