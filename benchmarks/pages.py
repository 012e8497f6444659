"""How long does a page take in a home with a million jobs? A real daemon, asked over its socket, filter by filter.

Rows are written by the program's own functions without fsyncs, all published, so that there is a history and nothing
to do: nine in ten of two users, succeeded; a few failed; one project and one batch among them. Each question is asked
many times, and its pages are followed to the end once, which says how many requests and seconds a whole search costs.
The other load of the machine is shown as how late a sleep of 1 ms ends meanwhile.

    python benchmarks/pages.py [--jobs 1000000] [--asks 200] [--quick]
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

from bench_kit import Connection, Daemon, late_ms
from figures import percentile, table
from record import Options, keep, scratch

from solvisor import rows, schema
from solvisor.home import Home, IdMaker
from solvisor.model import Attempt, Batch, Cause, ExitFacts, FileFact, Job, JobSpec, Settings, Source, State, Usage
from solvisor.store import Store

BEGAN_US = 1_700_000_000_000_000
STEP_US = 7_000_000
AT_ONCE = 10_000
RARE = 1000
"""One job in so many failed."""

ENOUGH = 2000
"""Jobs after which a search is not followed any further."""

_INSERT = """
INSERT INTO jobs (state, tries, interruptions, backoff_seconds, cancel, cause, code, message, started_us, finished_us,
                  priority, published, seq, id, key, name, solver, user, project, batch, spec, submitted_us,
                  size_bytes)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 4096)"""
_INSERT_ATTEMPT = """
INSERT INTO attempts (argv, pid, pid_start, boot_id, facts, cause, code, message, job, n, token, host, started_us,
                      settings, server, port)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?, 'ws04', ?, ?, NULL, NULL)"""


class Asked(NamedTuple):
    """Milliseconds of the single answers, and what a whole search took."""

    p50: float
    p99: float
    worst: float
    pages: int
    jobs: int
    seconds: float


def fill(root: Path, count: int) -> tuple[str, int]:
    """A home with ``count`` published jobs; an id in its middle, and the time of that."""
    home = Home.at(root)
    home.prepare()
    batch = Batch("sweep-000000000000000", "sweep", "ann", "skip", None, BEGAN_US, closed=True)
    store = Store.open(home.db)
    store.record([], batches=[batch])
    store.close()
    ids = IdMaker()
    settings = rows.encode(Settings("command", {"accept": ["*.noop"], "command": ["/bin/true"]}, cpus=1))
    middle = ("", 0)
    with contextlib.closing(sqlite3.connect(home.db, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == schema.VERSION
        connection.execute("PRAGMA synchronous = OFF")
        for start in range(0, count, AT_ONCE):
            jobs = [made(number, ids, batch) for number in range(start, min(start + AT_ONCE, count))]
            if start <= count // 2 < start + AT_ONCE:
                middle = jobs[0].id, jobs[0].submitted_us
            connection.execute("BEGIN")
            connection.executemany(
                _INSERT,
                [(*rows.mutable_columns(job), *rows.fixed_columns(job)) for job in jobs],
            )
            connection.executemany(
                _INSERT_ATTEMPT,
                [
                    (*rows.outcome_columns(job.current), job.seq, job.current.token, job.submitted_us, settings)
                    for job in jobs
                ],
            )
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return middle


def made(number: int, ids: IdMaker, batch: Batch) -> Job:
    """One job of the past."""
    at_us = BEGAN_US + number * STEP_US
    name = f"riser-{number:07}.noop"
    failed = number % RARE == 0
    fact = FileFact(f"input/{name}", 4096, "0" * 64)
    spec = JobSpec(
        name,
        "rare" if number % 100_003 == 0 else "noop",
        name,
        (fact,),
        Source("inbox", name),
        ("ann", "bob", "eve")[(number % 10) // 4],
        "riser" if number % 50 == 0 else None,
        params={"load": float(number)},
        batch=batch.id if number % 500 == 0 else None,
    )
    facts = ExitFacts(int(failed), None, at_us + 5_000_000, Usage(1.0, 0.1, 50 << 20, "cgroup"), seconds=4.9)
    cause = (Cause.TIMEOUT if number % 7 == 0 else Cause.EXIT) if failed else None
    attempt = Attempt(
        1,
        f"{number:032x}",
        "ws04",
        at_us,
        Settings("command", {}),
        argv=("/bin/true", name),
        pid=4242,
        pid_start=99,
        boot_id="boot",
        facts=facts,
        cause=cause,
    )
    return Job(
        ids.new_id(name, at_us),
        number + 1,
        State.FAILED if failed else State.SUCCEEDED,
        spec,
        at_us,
        (attempt,),
        cause=cause,
        message="it diverged" if failed else None,
        started_us=at_us + 1_000_000,
        finished_us=at_us + 6_000_000,
    )


def ask(connection: Connection, target: str) -> tuple[Any, float]:
    """The answer, and milliseconds."""
    begin = time.perf_counter()
    data = connection.ask(target, fine=(200, 409))
    return json.loads(data), 1000 * (time.perf_counter() - begin)


def measure(connection: Connection, target: str, asks: int) -> Asked:
    """One question: its first page many times, then all its pages one after the other."""
    once = [ask(connection, target)[1] for _ in range(asks)]
    if not target.startswith("/v1/jobs?"):
        return Asked(statistics.median(once), percentile(once, 0.99), max(once), 1, 1, min(once) / 1000)
    took: list[float] = []
    jobs, cursor = 0, ""
    while True:
        page, milliseconds = ask(connection, target + cursor)
        took.append(milliseconds)
        jobs += len(page["jobs"])
        if page["next"] is None or jobs >= ENOUGH:
            break
        cursor = f"&cursor={page['next']}"
    every = once + took
    p99 = percentile(every, 0.99)
    return Asked(statistics.median(every), p99, max(every), len(took), jobs, sum(took) / 1000)


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 1_000_000, 20_000)
    parser.count("asks", 200, 20, "of each question")
    arguments = parser.asked()
    jobs, asks = arguments.jobs, arguments.asks
    with scratch(arguments) as base:
        root = base / "home"
        root.mkdir()
        begin = time.perf_counter()
        job_id, at_us = fill(root, jobs)
        seeded = time.perf_counter() - begin
        told = report(root, job_id, at_us, jobs, asks, seeded)
    keep("pages", told, arguments)


def report(root: Path, job_id: str, at_us: int, jobs: int, asks: int, seeded: float) -> dict[str, Any]:
    """Ask a daemon on the home everything, and print; the same for the JSON line."""
    questions = {
        "first page of 100": "/v1/jobs?",
        "first page of 1000": "/v1/jobs?limit=1000",
        "failed": "/v1/jobs?state=failed",
        "cancelled, there are none": "/v1/jobs?state=cancelled",
        "running, there are none": "/v1/jobs?state=running",
        "cause=timeout": "/v1/jobs?cause=timeout",
        "user=nobody": "/v1/jobs?user=nobody",
        "user=eve and failed": "/v1/jobs?user=eve&state=failed",
        "project": "/v1/jobs?project=riser",
        "batch and q": "/v1/jobs?batch=sweep-000000000000000&q=zzz",
        "solver=rare": "/v1/jobs?solver=rare",
        "q=zzz": "/v1/jobs?q=zzz",
        "q not ASCII": "/v1/jobs?q=%C3%A4%C3%B6",
        "since half of it": f"/v1/jobs?since={at_us}",
        "until half of it": f"/v1/jobs?until={at_us}",
        "last": "/v1/jobs/last",
        "by id": f"/v1/jobs/{job_id}",
        "by a prefix of all": "/v1/jobs/riser",
        "by a prefix of one": f"/v1/jobs/{job_id[:-2]}",
    }
    with Daemon(root) as daemon:
        connection = Connection(root)
        told = {name: measure(connection, target, asks) for name, target in questions.items()}
    late = percentile([late_ms() for _ in range(asks)], 0.99)
    size = (root / "state" / "solvisor.db").stat().st_size
    ready = daemon.start_seconds
    print(f"{jobs:,} jobs, {size >> 20} MiB, made in {seeded:.0f} s; the daemon was ready after {ready:.1f} s")
    print(f"a sleep of 1 ms ends {late:.1f} ms late (99 %)\n")
    rows = [
        (name, *(f"{ms:.1f}" for ms in asked[:3]), str(asked.pages), str(asked.jobs), f"{asked.seconds:.2f}")
        for name, asked in told.items()
    ]
    print(table(("question", "p50 ms", "p99 ms", "max ms", "pages", "jobs", "all s"), rows))
    return {"jobs": jobs, "bytes": size, "late_ms": {"p99": late}, "asked": {n: a._asdict() for n, a in told.items()}}


if __name__ == "__main__":
    main()
