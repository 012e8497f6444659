"""A past that never was: a database with weeks of plausible jobs and of how busy it was, the same for the same seed."""

from __future__ import annotations

import math
import random
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from solvisor.store import Store
from solvisor.usage import MINUTE, Level, Sums, Wait

GIB = 1 << 30
SECOND_US = 1_000_000
DAY_US = 86400 * SECOND_US

_ALPHABET = "0123456789abcdefghijklmnopqrstuv"

CONFIG = """
[daemon]
max_jobs = 12
cpus = 16
memory = "64GiB"
[licenses]
orcaflex = 2
[solver.ccx]
accept = ["*.inp"]
command = ["ccx", "-i", "{stem}"]
cpus = 4
memory = "8GiB"
timeout = "2h"
[solver.orcaflex]
accept = ["*.dat"]
command = ["orcaflex", "{input}"]
memory = "4GiB"
licenses = { orcaflex = 1 }
[solver.modelica]
kind = "omc"
accept = ["*.mos"]
[solver.ffmpeg]
accept = ["*.mp4"]
command = ["ffmpeg", "-i", "{input}", "out.mkv"]
cpus = 2
memory = "1GiB"
timeout = "10m"
"""


class Kind(NamedTuple):
    """How jobs of one solver are: how many of all, how long (median seconds, spread), what they reserve and use."""

    name: str
    share: float
    median: float
    sigma: float
    cpus: int
    used: float
    memory: int
    peak: float
    license: str | None
    timeout: float | None
    fails: float
    messages: tuple[tuple[str, str | None, str], ...]
    source: str = "cgroup"


KINDS = (
    Kind(
        *("ccx", 0.34, 900, 0.8, 4, 1.1, 8 * GIB, 0.3, None, 7200, 0.08),
        (
            ("check", "log", "*ERROR: no elastic constants were assigned to any material"),
            ("exit", "exit_201", "*ERROR in gentetgen"),
        ),
    ),
    Kind(
        *("orcaflex", 0.26, 1500, 0.6, 1, 0.97, 4 * GIB, 0.6, "orcaflex", None, 0.05),
        (
            ("exit", "exit_1", "Statics calculation did not converge for line 'Riser 4'"),
            ("exit", "license_denied", "no license"),
        ),
    ),
    Kind(
        *("modelica", 0.3, 12, 0.9, 1, 0.8, 0, 0.4, None, None, 0.03),
        (
            ("check", "simulation", "Simulation failed: division by zero at time 3.2"),
            ("server", None, "omc-3 was ended by SIGSEGV"),
        ),
        "server",
    ),
    Kind(
        *("ffmpeg", 0.1, 60, 0.7, 2, 2.0, GIB, 0.5, None, 600, 0.1),
        (("exit", "exit_1", "moov atom not found"),),
    ),
)
USERS = ("anna", "bjorn", "chen", "dora", "emil", None)
PROJECTS = ("riser-2026", "moor-north", "beam-study", "wind-jacket", None)


class Past(NamedTuple):
    """What was made: the jobs, and the period they ended in."""

    jobs: int
    since_us: int
    until_us: int


def make_past(db: Path, jobs: int, until_us: int, days: float = 7.0, seed: int = 1, cores: int = 16) -> Past:
    """Make the database ``db`` with so many jobs that ended within so many days before ``until_us``."""
    chance = random.Random(seed)
    since_us = until_us - int(days * DAY_US)
    Store.open(db).close()
    loads: defaultdict[int, _Load] = defaultdict(_Load)
    with closing(sqlite3.connect(db, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        many = connection.executemany
        batch: list[tuple[Any, ...]] = []
        tries: list[tuple[Any, ...]] = []
        for seq in range(1, jobs + 1):
            job, own = _job(seq, since_us, until_us, chance, loads)
            batch.append(job)
            tries += own
            if len(batch) >= 5000:
                many(_JOB, batch)
                many(_TRY, tries)
                batch, tries = [], []
        many(_JOB, batch)
        many(_TRY, tries)
        # One night without a daemon.
        gap = since_us + int(days * DAY_US * 0.45)
        back = gap + int(days * DAY_US * 0.04)
        lives = [(since_us, gap), (back, until_us)]
        for minute in range(gap // (MINUTE * SECOND_US), back // (MINUTE * SECOND_US)):
            loads.pop(minute, None)
        many("INSERT INTO usage (span_seconds, start_us, sums) VALUES (60, ?, ?)", _usage(loads, cores))
        many("INSERT INTO lives (began_us, seen_us) VALUES (?, ?)", lives)
        connection.execute("COMMIT")
    return Past(jobs, since_us, until_us)


_JOB = """
INSERT INTO jobs (seq, id, state, key, name, solver, user, project, batch, spec, submitted_us, tries, interruptions,
                  backoff_seconds, cancel, cause, code, message, started_us, finished_us, published)
VALUES (?, ?, ?, NULL, ?, ?, ?, ?, NULL, ?, ?, ?, 0, 0, 0, ?, ?, ?, ?, ?, 1)"""
_TRY = """
INSERT INTO attempts (job, n, token, host, started_us, settings, server, port, argv, pid, pid_start, boot_id, facts,
                      cause, code, message)
VALUES (?, ?, ?, 'ws04', ?, ?, NULL, NULL, X'5B5D', NULL, NULL, NULL, ?, ?, ?, ?)"""


class _Load:
    """One minute."""

    def __init__(self) -> None:
        self.jobs = self.cores = self.memory = self.licenses = 0.0
        self.waits: defaultdict[tuple[str, str, str | None], float] = defaultdict(float)


def _job(
    seq: int, since_us: int, until_us: int, chance: random.Random, loads: defaultdict[int, _Load]
) -> tuple[tuple[Any, ...], list[tuple[Any, ...]]]:
    kind = chance.choices(KINDS, [kind.share for kind in KINDS])[0]
    began = _instant(since_us, until_us, chance)
    waited = chance.expovariate(1 / (1800 if kind.license else 240)) if chance.random() < 0.7 else 0.3
    bad = chance.random() < kind.fails
    tries: list[tuple[Any, ...]] = []
    job_id = f"{kind.name[:8]}-{_stamp(began)}{seq:06x}"[:48]
    at = began
    cause = code = message = None
    count = 2 if chance.random() < 0.04 else 1
    user, project = chance.choice(USERS), chance.choice(PROJECTS)
    for n in range(1, count + 1):
        seconds = kind.median * math.exp(chance.gauss(0, kind.sigma))
        cause = code = message = None
        if n < count:
            cause, message = chance.choice((("lost", None), ("signal", "ended by SIGSEGV")))
        elif kind.timeout is not None and (seconds > kind.timeout or chance.random() < 0.01):
            seconds, cause, message = kind.timeout, "timeout", f"cut after {kind.timeout:.0f} s"
        elif bad:
            cause, code, message = chance.choice(kind.messages)
        seconds = min(seconds, (until_us - at) / 1e6 - 1)
        used = kind.used * chance.uniform(0.9, 1.05)
        facts = {
            "exit_code": 0,
            "signal": None,
            "finished_us": at + int(seconds * 1e6),
            "usage": {
                "cpu_user_seconds": seconds * used,
                "cpu_system_seconds": 0.1,
                "max_rss_bytes": int((kind.memory or GIB) * kind.peak * chance.uniform(0.5, 1.0)),
                "max_rss_source": kind.source,
            },
            "stopped": False,
            "seconds": seconds,
        }
        settings = {
            "kind": "command",
            "table": {"command": [kind.name, "-i", "{stem}"], "accept": ["*.inp"], "pad": "x" * 600},
            "timeout_seconds": kind.timeout,
            "licenses": {kind.license: 1} if kind.license else {},
        }
        if kind.cpus != 1:  # one, and no memory, are left out of the row
            settings["cpus"] = kind.cpus
        if kind.memory:
            settings["memory_bytes"] = kind.memory
        told = None if cause == "lost" else msgspec.json.encode(facts)
        tries.append((seq, n, f"{job_id}#{n}", at, msgspec.json.encode(settings), told, cause, code, message))
        _load(loads, kind, at, at + int(seconds * 1e6), waited if n == 1 else 0.0)
        at += int(seconds * 1e6)
    state = "failed" if cause else "succeeded"
    if not cause and chance.random() < 0.02:
        state = "cancelled"
    if state != "failed":
        cause = None
    spec = msgspec.json.encode({"name": job_id, "solver": kind.name, "primary": "a.inp", "pad": "y" * 300})
    submitted = began - int(waited * 1e6)
    row = (seq, job_id, state, f"{kind.name} case {seq}", kind.name, user, project, spec, submitted, count)
    return (*row, cause, code, message, began, at), tries


def _instant(since_us: int, until_us: int, chance: random.Random) -> int:
    """Working hours are likelier."""
    while True:
        at = since_us + int(chance.random() * (until_us - since_us - 4 * 3600 * SECOND_US))
        hour, day = at // (3600 * SECOND_US) % 24, at // DAY_US % 7
        if chance.random() < (0.25 if day in (2, 3) else 1.0) * (0.25 + 0.75 * math.exp(-(((hour - 13) / 5) ** 2))):
            return at


def _stamp(time_us: int) -> str:
    """Nine characters of milliseconds."""
    number, text = time_us // 1000, ""
    for _ in range(9):
        number, digit = divmod(number, 32)
        text = _ALPHABET[digit] + text
    return text


def _load(loads: defaultdict[int, _Load], kind: Kind, began_us: int, ended_us: int, waited: float) -> None:
    if len(loads) > 1_000_000:
        return
    for minute, seconds in _minutes(began_us, ended_us):
        load = loads[minute]
        load.jobs += seconds
        load.cores += seconds * kind.cpus
        load.memory += seconds * kind.memory
        load.licenses += seconds if kind.license else 0
    reason, what = ("license", kind.license) if kind.license else ("memory" if kind.name == "ccx" else "cpus", None)
    for minute, seconds in _minutes(began_us - int(waited * 1e6), began_us):
        loads[minute].waits[kind.name, reason, what] += seconds


def _minutes(began_us: int, ended_us: int) -> Iterator[tuple[int, float]]:
    minute_us = MINUTE * SECOND_US
    for minute in range(began_us // minute_us, ended_us // minute_us + 1):
        seconds = (min(ended_us, (minute + 1) * minute_us) - max(began_us, minute * minute_us)) / 1e6
        if seconds > 0:
            yield minute, seconds


def _usage(loads: defaultdict[int, _Load], cores: int) -> Iterator[tuple[int, bytes]]:
    for minute, load in sorted(loads.items()):
        used = min(load.cores, 60.0 * cores)
        licenses = min(load.licenses, 120.0)
        levels = {
            "jobs": Level(min(load.jobs, 720.0), min(12, math.ceil(load.jobs / 60)), 12, 0.0),
            "cpus": Level(used, math.ceil(used / 60), cores, 60.0 if used >= 60 * cores else 0.0),
            "memory": Level(min(load.memory, 60 * 64.0 * GIB), 40 * GIB, 64 * GIB, 0.0),
            "license.orcaflex": Level(licenses, math.ceil(licenses / 60), 2, 60.0 if licenses >= 120 else 0.0),
        }
        waits: dict[tuple[str | None, str, str | None], Wait] = {}
        for (solver, reason, what), jobs in load.waits.items():
            for key in ((solver, reason, what), (None, reason, what)):
                wait = waits.setdefault(key, Wait(*key))
                wait.jobs += jobs
                wait.seconds = min(60.0, wait.seconds + jobs)
                wait.idle = wait.seconds * (cores - used / 60)
        starts = {"modelica": 1} if minute % 97 == 0 else {}
        yield minute * MINUTE * SECOND_US, msgspec.json.encode(Sums(60.0, levels, list(waits.values()), starts))
