"""What is recorded is made durable by a sync of SQLite's log, and carried over into the database, beside commits."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from solvisor import store as stores
from solvisor import wal
from solvisor.model import Attempt, ExitFacts, Job, JobSpec, Settings, Source, State, Usage
from solvisor.store import Store

Traced = Callable[..., tuple[int, str, list[str]]]

SPEC = JobSpec("a", "ccx", "a.inp", (), Source("inbox", "ccx/a.inp"), None, None)
JOBS = [Job(f"a-{n:015d}", n, State.QUEUED, SPEC, n) for n in range(1, 1000)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solvisor.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store.open(path)) as store:
        yield store


def pages(store: Store) -> int:
    """In the log; what can be is carried over."""
    found: int = store._wal._connection.execute(wal.CARRY_OVER).fetchone()[1]
    return found


def in_a_thread(work: Callable[[], None]) -> None:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive(), "it waits for something"


@pytest.mark.parametrize("work", [Store.harden, Store.fold])
def test_nobody_waits_for_it_and_it_waits_for_nobody(store: Store, work: Callable[[Store], None]) -> None:
    store.record(JOBS[:1])
    with store._transaction():
        in_a_thread(lambda: work(store))


def test_the_log_begins_anew_once_it_is_carried_over(store: Store) -> None:
    for job in JOBS[:200]:
        store.record([job])
    assert pages(store) > 400
    store.fold()
    store.record(JOBS[200:201])
    assert pages(store) < 20


def test_it_is_time_for_it_when_much_was_recorded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "FOLD_ROWS", 10)
    store.fold()
    for n in range(30):
        assert store.to_fold == (n in (10, 20)), n
        if store.to_fold:
            store.fold()
        store.record(JOBS[n : n + 1])


def test_what_the_life_of_a_job_takes_of_the_log(store: Store) -> None:
    """As commits come two jobs at a time; pages of 4 KiB, and rows. Of either there are as many with a million jobs."""
    settings = Settings("command", {"command": ["true"]}, cpus=1)
    accepted = [replace(job, asked=replace(SPEC, user="anna"), id=f"a-{job.seq:015d}") for job in JOBS[:300]]
    store.record(accepted)
    store.fold()
    rows, lives = store._connection.total_changes, {job.seq: job for job in accepted}
    store.record([])
    before = pages(store)

    def next_of(job: Job) -> Job:
        if job.state is State.QUEUED:
            attempt = Attempt(1, secrets.token_hex(16), "host", job.seq, settings)
            return replace(job, state=State.RUNNING, attempts=(attempt,), started_us=job.seq)
        if job.state is State.RUNNING:
            facts = ExitFacts(0, None, job.seq, Usage(0.0007, 0.0001, 1 << 20, "cgroup"), seconds=0.0021)
            process = {"argv": ("/usr/bin/true",), "pid": job.seq, "pid_start": job.seq, "boot_id": "b" * 36}
            return replace(job, state=State.COLLECTING, attempts=(replace(job.current, **process, facts=facts),))
        end = {"state": State.SUCCEEDED, "finished_us": job.seq + 1, "manifest": b"m" * 2000}
        return replace(job, attempts=(replace(job.current),), **end)

    for last in range(1, 304):
        changed = [lives[seq] for seq in range(max(last - 2, 1), min(last, 300) + 1)]
        lives |= {job.seq: next_of(job) for job in changed}
        store.record([lives[job.seq] for job in changed], [lives[last - 3].id] if last > 3 else [])
    assert store.live_jobs() == []
    assert pages(store) - before < 7.2 * 300
    # Three changes of a job and its publication; its try, begun and ended; its manifest, there and gone.
    assert store._connection.total_changes - rows <= 8 * 300 + 1


def test_where_something_was_left_in_a_long_log_the_next_commit_carries_it_over(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where commits come so fast that there is always one more; here a reader sees to it."""
    monkeypatch.setattr(stores, "LONG_LOG", 100)
    monkeypatch.setattr(wal, "PASSES", 1)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reading:
        store.record(JOBS[:1])
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM jobs").fetchone()
        for job in JOBS[1:200]:
            store.record([job])
        store.fold()
    store.record(JOBS[200:201])
    assert pages(store) < 20


def test_a_reader_keeps_the_log_and_no_more(store: Store, path: Path) -> None:
    reading = sqlite3.connect(path, isolation_level=None)
    store.record(JOBS[:1])
    reading.execute("BEGIN")
    assert reading.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
    for job in JOBS[1:100]:
        store.record([job])
    store.fold()
    before = pages(store)
    store.record(JOBS[100:101])
    assert pages(store) > before, "what is read stays there"
    assert reading.execute("SELECT count(*) FROM jobs").fetchone() == (1,)
    reading.close()
    store.fold()
    store.record(JOBS[101:102])
    assert pages(store) < before
    assert store.last_seq() == 102


# --- syncs that fail, and kills ------------------------------------------------------------------------------------

PREFACE = """
import os, sys, threading
from pathlib import Path
from solvisor.errors import StoreError, StoreUnavailable
from solvisor.model import Job, JobSpec, Source, State
from solvisor.store import Store
path = Path(sys.argv[1])
spec = JobSpec("a", "ccx", "a.inp", (), Source("inbox", "ccx/a.inp"), None, None)
jobs = [Job(f"a-{n:015d}", n, State.QUEUED, spec, n) for n in range(1, 1000)]
store = Store.open(path)
"""


@pytest.fixture
def traced(path: Path) -> Traced:
    """Runs a program that has a ``store`` under strace: how it ended, what it said, what files it synced, in order."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")

    def run(program: str, *options: str, calls: str = "fsync,fdatasync") -> tuple[int, str, list[str]]:
        trace = path.with_name("trace")
        through = [strace, "-f", "-qq", "-y", "-e", f"trace={calls}", "-o", str(trace), *options]
        done = subprocess.run(
            [*through, sys.executable, "-c", PREFACE + program, str(path)], capture_output=True, text=True
        )
        if done.stderr.startswith((strace, "strace:")):
            pytest.skip(f"strace cannot trace here: {done.stderr.strip()}")
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, re.findall(r"sync\(\d+<(?:.*/)?([^/>]+)>\)", trace.read_text())

    return run


def test_fault_29_an_io_error_is_not_tried_again(path: Path, traced: Traced) -> None:
    """After a failed fsync a second one that succeeds proves nothing, so none is made."""
    Store.open(path).close()
    program = """
for _ in range(2):
    try:
        store.harden()
    except StoreUnavailable:
        print("again")
    except StoreError:
        print("ended")
"""
    _, told, synced = traced(program, "-e", "inject=fsync,fdatasync:error=EIO:when=1")
    assert (told, synced) == ("ended\nended\n", [f"{path.name}-wal"])


@pytest.mark.parametrize("there", [False, True], ids=["new", "there"])
def test_what_makes_a_commit_durable_are_its_log_and_the_names_of_new_files(
    path: Path, traced: Traced, there: bool
) -> None:
    """SQLite syncs the folder when it makes the log; ``harden`` relies on that."""
    if there:
        Store.open(path).close()
    wal = f"{path.name}-wal"
    _, _, synced = traced("store.record(jobs[:1]); store.harden(); os._exit(0)")
    assert synced[-1] == wal, "each promise is kept by the log"
    assert path.parent.name in synced[synced.index(wal) :], "and the log by its folder"


def test_fault_29_a_sync_that_fails_while_the_log_is_carried_over_is_told(path: Path, traced: Traced) -> None:
    """SQLite itself would keep it to itself, within the commit that happens to do it."""
    Store.open(path).close()
    program = """
store.record(jobs)
try:
    store.fold()
except StoreUnavailable:
    print("again")
except StoreError:
    print("ended")
"""
    _, told, synced = traced(program, "-e", "inject=fsync,fdatasync:error=EIO:when=3+")
    assert synced[:2] == [f"{path.name}-wal", path.parent.name], "the log begins"
    assert told == "ended\n"


@pytest.mark.parametrize("calls", ["fdatasync", "pwrite64"])
def test_a_kill_while_the_log_is_carried_over_loses_nothing(path: Path, traced: Traced, calls: str) -> None:
    """Within one system call after the other; what was recorded is all there."""
    program = """
folding = threading.Thread(target=lambda: [store.fold() for _ in range(50)])
folding.start()
for n in range(0, 400, 2):
    store.record(jobs[n : n + 2])
    print(n + 2, flush=True)
folding.join()
"""
    killed = 0
    for when in (3, 5, 8, 13, 40, 120, 400):
        inject = f"inject={calls}:signal=KILL:when={when}"
        status, told, _ = traced(program, "-e", inject, calls=calls)
        killed += status == -signal.SIGKILL
        with contextlib.closing(Store.open(path)) as store:
            recorded = store.last_seq()
            assert len(store.live_jobs()) == recorded
            assert recorded >= int(["0", *told.split()][-1])
        for left in path.parent.glob("solvisor.db*"):
            left.unlink()
    assert killed > 1
