"""The store on real SQLite: what is recorded comes back, what is impossible is refused, what is damaged is kept."""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from solvisor.errors import StoreError, StoreUnavailable
from solvisor.model import (
    TERMINAL,
    Attempt,
    Cause,
    ExitFacts,
    FileFact,
    Job,
    JobSpec,
    Original,
    Retry,
    Settings,
    Source,
    State,
    Usage,
)
from solvisor.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "solvisor.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store.open(path)
    yield store
    store.close()


SPEC = JobSpec(
    name="beam, fine mesh",
    solver="ccx",
    primary="beam.inp",
    inputs=(FileFact("input/beam.inp", 3, "ab" * 32), FileFact("input/b\\xe4r", 0, "", link="x")),
    source=Source("inbox", "ccx/beam.inp"),
    user="1000",
    params={"load": 3.5, "steps": [1, 2]},
    after=("a-000000000000000",),
    key=None,
    licenses={"orcaflex": 1},
    retry=Retry(2, (Cause.SIGNAL,), 0.5),
    originals=(Original("beam.inp", 1, 2, 3, 4),),
)
SETTINGS = Settings("command", {"command": ["ccx", "-i", "{stem}"]}, timeout_seconds=5.0, licenses={"a": 1})


def job(seq: int, **changes: Any) -> Job:
    return replace(Job(f"beam-{seq:015d}", seq, State.QUEUED, SPEC, 1_700_000_000_000_000 + seq), **changes)


def tried(before: Job, **changes: Any) -> Job:
    n = len(before.attempts) + 1
    attempt = replace(Attempt(n, f"token-{before.id}-{n}", "host", 5, SETTINGS), **changes)
    return replace(before, state=State.RUNNING, attempts=(*before.attempts, attempt))


def ended(before: Job, state: State = State.SUCCEEDED) -> Job:
    cause = Cause.EXIT if state is State.FAILED else None
    return replace(before, state=state, finished_us=9, manifest=b'{"exact": "bytes\xff"}', cause=cause)


def reopened(path: Path) -> list[Job]:
    store = Store.open(path)
    try:
        return store.live_jobs()
    finally:
        store.close()


# --- what is recorded comes back -----------------------------------------------------------------------------------


def test_a_job_that_comes_once_more_under_another_number_changes_nothing(store: Store, path: Path) -> None:
    """As one does whose folder somebody copied back into work/."""
    first = ended(tried(job(1)))
    store.record([first], [first.id])
    again = replace(job(1), seq=2)
    store.record([again])
    store.record([tried(again)])
    store.record([ended(tried(again))])
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT seq, state, published FROM jobs").fetchall() == [(1, "succeeded", 1)]
        assert connection.execute("SELECT job, n FROM attempts").fetchall() == [(1, 1)]
        assert connection.execute("SELECT count(*) FROM manifests").fetchall() == [(0,)]


def test_the_whole_life_of_a_job_comes_back_at_every_step(store: Store, path: Path) -> None:
    life = [job(1)]
    life.append(tried(life[-1]))
    running = life[-1].current
    life.append(
        replace(life[-1], attempts=(replace(running, argv=("ccx", "-i", "beam"), pid=7, pid_start=8, boot_id="b"),))
    )
    facts = ExitFacts(None, 11, 12, Usage(1.5, 0.25, 4096, "wait4"), stopped=True, log_cut_bytes=3)
    over = replace(life[-1].current, facts=facts, cause=Cause.SIGNAL, code="segfault")
    life.append(replace(life[-1], state=State.QUEUED, attempts=(over,), interruptions=2, backoff_seconds=1.5))
    life.append(replace(tried(life[-1]), started_us=3, cancel=True))
    life.append(replace(life[-1], state=State.COLLECTING))
    life.append(replace(ended(life[-1], State.FAILED), code="no_files", message="no elastic constants ä\n"))
    for step in life:
        store.record([step])
        assert reopened(path) == [step]
    store.record([], [life[-1].id])
    assert reopened(path) == []
    assert store.states([life[-1].id, "unknown"]) == {life[-1].id: State.FAILED}


def test_many_jobs_come_back_in_their_order_each_with_its_own_attempts(store: Store, path: Path) -> None:
    jobs = [job(seq) for seq in range(1, 201)]
    for before in range(3):
        jobs = [tried(j) if j.seq % (before + 2) else j for j in jobs]
    store.record(reversed(jobs))
    assert reopened(path) == jobs


def test_only_what_is_not_published_is_alive(store: Store, path: Path) -> None:
    jobs = [ended(job(seq)) for seq in range(1, 6)]
    store.record(jobs)
    store.record([], [jobs[1].id, jobs[3].id])
    assert [j.seq for j in reopened(path)] == [1, 3, 5]
    assert store.last_seq() == 5
    assert store.last_id() == jobs[4].id


def test_the_manifest_is_dropped_once_it_is_published(store: Store, path: Path) -> None:
    done = ended(job(1))
    store.record([done])
    store.record([], [done.id])
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT published FROM jobs").fetchall() == [(1,)]
        assert connection.execute("SELECT * FROM manifests").fetchall() == []
    connection.close()


def test_a_job_can_be_ended_and_published_in_one_transaction(store: Store, path: Path) -> None:
    done = ended(tried(job(1)))
    store.record([done], [done.id])
    assert reopened(path) == []


def test_an_empty_store_knows_nothing(store: Store) -> None:
    assert (store.live_jobs(), store.last_seq(), store.last_id()) == ([], 0, None)
    assert store.states([]) == {}
    store.record([])
    store.harden()


def test_states_of_very_many_jobs_can_be_asked(store: Store) -> None:
    jobs = [job(seq) for seq in range(1, 2_001)]
    store.record(jobs)
    assert store.states(j.id for j in jobs) == dict.fromkeys((j.id for j in jobs), State.QUEUED)


def test_any_thread_may_call(store: Store, path: Path) -> None:
    for call in (lambda: store.record([job(1)]), store.harden):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert reopened(path) == [job(1)]


def test_what_many_attempts_share_stands_once(store: Store, path: Path) -> None:
    another = replace(SETTINGS, table={"command": ["abaqus"]}, timeout_seconds=None)
    store.record([tried(job(1)), tried(job(2))])
    with pytest.raises(StoreError, match="nothing was changed"):
        store.record([tried(job(3), settings=another), replace(ended(job(4)), manifest=None)])
    store.record([tried(job(3), settings=another)])
    assert len(reopened(path)) == 3
    with contextlib.closing(Store.open(path)) as later:
        later.record([tried(job(4), settings=another), tried(job(5))])
    assert [j.current.settings for j in reopened(path)] == [SETTINGS, SETTINGS, another, another, SETTINGS]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM solver_tables").fetchone() == (2,)


# --- what was accepted is never overwritten ------------------------------------------------------------------------


def test_accepting_the_same_claim_twice_changes_nothing(store: Store, path: Path) -> None:
    first = tried(job(1))
    store.record([first])
    again = replace(job(2), id=first.id)
    store.record([again])
    assert reopened(path) == [first]


def test_a_published_row_never_changes(store: Store) -> None:
    done = ended(job(1))
    store.record([done])
    store.record([], [done.id])
    store.record([replace(done, state=State.CANCELLED)])
    store.record([tried(job(1))])
    assert store.states([done.id]) == {done.id: State.SUCCEEDED}
    assert store.live_jobs() == []
    assert store._connection.execute("SELECT * FROM manifests").fetchall() == []


def test_later_records_do_not_touch_what_the_user_asked(store: Store, path: Path) -> None:
    store.record([job(1)])
    store.record([replace(job(1), asked=replace(SPEC, name="another"), submitted_us=0, state=State.RUNNING)])
    assert reopened(path) == [job(1, state=State.RUNNING)]


def test_a_reopened_store_goes_on_where_it_was(path: Path) -> None:
    first = Store.open(path)
    before = tried(job(1))
    first.record([before])
    first.close()
    second = Store.open(path)
    (found,) = second.live_jobs()
    after = replace(found, attempts=(replace(found.current, pid=7),))
    second.record([tried(after)])
    second.close()
    assert reopened(path) == [tried(after)]


def test_a_store_that_was_reopened_but_not_read_updates_all_the_same(path: Path) -> None:
    first = Store.open(path)
    first.record([tried(job(1))])
    first.close()
    second = Store.open(path)
    second.record([ended(tried(job(1)))])
    second.close()
    assert reopened(path)[0].state is State.SUCCEEDED


def test_a_key_is_given_to_one_job_only(store: Store, path: Path) -> None:
    keyed = replace(SPEC, key="once")
    store.record([job(1, asked=keyed), job(2), job(3)])
    assert store.id_of_key("once") == job(1).id
    assert store.id_of_key("other") is None
    with pytest.raises(StoreError, match=r"impossible row.*key"):
        store.record([job(4), job(5, asked=keyed)])
    assert [j.seq for j in reopened(path)] == [1, 2, 3], "nothing of the refused transaction stays"
    store.record([job(4)])
    assert [j.seq for j in reopened(path)] == [1, 2, 3, 4]


# --- what is impossible is refused ---------------------------------------------------------------------------------

IMPOSSIBLE = {
    "a state nobody knows": {"state": "resting"},
    "ended without a time": {"state": "cancelled"},
    "a time without an end": {"finished_us": 5},
    "failed without a cause": {"state": "failed", "finished_us": 5},
    "a cause without a failure": {"state": "succeeded", "finished_us": 5, "cause": "exit"},
    "a cause nobody knows": {"state": "failed", "finished_us": 5, "cause": "bad luck"},
    "published before the end": {"published": 1},
    "removed before it is published": {"state": "succeeded", "finished_us": 5, "removed_us": 6},
    "half a truth": {"published": 2},
    "no spec": {"spec": None},
}


@pytest.mark.parametrize("columns", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_the_database_itself_refuses(store: Store, path: Path, columns: dict[str, Any]) -> None:
    store.record([job(1)])
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(f"UPDATE jobs SET {', '.join(f'{c} = ?' for c in columns)}", list(columns.values()))
    connection.close()


@pytest.mark.parametrize(
    "bad",
    [
        replace(job(1), id="another-00000000000000"),
        tried(job(2), n=0),
        replace(ended(job(2)), manifest=None),
    ],
    ids=["a seq twice", "try 0", "no manifest"],
)
def test_an_impossible_job_is_refused_whole(store: Store, path: Path, bad: Job) -> None:
    store.record([tried(job(1))])
    with pytest.raises(StoreError, match="nothing was changed"):
        store.record([job(3), bad])
    assert [j.seq for j in reopened(path)] == [1]


def test_every_state_and_cause_has_its_place(store: Store, path: Path) -> None:
    """The schema spells them out; this says when a new one needs a new schema."""
    jobs = [ended(job(i), s) if s in TERMINAL else job(i, state=s) for i, s in enumerate(State, 1)]
    jobs += [replace(ended(job(100 + i), State.FAILED), cause=cause) for i, cause in enumerate(Cause)]
    store.record(jobs)
    assert reopened(path) == jobs


# --- trouble -------------------------------------------------------------------------------------------------------


def test_a_database_that_another_program_holds_can_be_tried_again(path: Path) -> None:
    store = Store.open(path)
    store._connection.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="another program holds"):
        store.record([job(1)])
    store.harden()  # which needs nothing of the database
    other.execute("ROLLBACK")
    other.close()
    store.record([job(1)])
    store.close()
    assert reopened(path) == [job(1)]


def test_fault_26_a_full_disk_loses_nothing_and_can_be_tried_again(store: Store, path: Path) -> None:
    store.record([job(1)])
    limit = store._connection.execute("PRAGMA page_count").fetchone()[0] + 2
    store._connection.execute(f"PRAGMA max_page_count = {limit}")
    many = [job(seq) for seq in range(2, 500)]
    with pytest.raises(StoreUnavailable, match="free some space"):
        store.record(many)
    assert reopened(path) == [job(1)]
    store.harden()
    store._connection.execute("PRAGMA max_page_count = 100000")
    store.record(many)
    assert reopened(path) == [job(1), *many]


def test_what_is_recorded_survives_the_death_of_the_process(path: Path) -> None:
    """Killed right after the commit, without closing: WAL and synchronous=NORMAL keep it."""
    script = """
import os, sys, msgspec
from pathlib import Path
from solvisor.model import Job
from solvisor.store import Store
store = Store.open(Path(sys.argv[1]))
store.record(msgspec.json.decode(sys.stdin.buffer.read(), type=list[Job]))
os.kill(os.getpid(), 9)
"""
    jobs = [tried(job(seq)) for seq in range(1, 50)]
    done = subprocess.run([sys.executable, "-c", script, str(path)], input=msgspec.json.encode(jobs), check=False)
    assert done.returncode == -9
    log = path.with_name(f"{path.name}-wal")
    assert log.stat().st_size > 0
    with contextlib.closing(Store.open(path)) as store:
        assert log.stat().st_size == 0, "its log is written anew, into the database: nobody knows whether it was safe"
        assert store.live_jobs() == jobs


def test_a_kill_while_the_database_is_made_leaves_one_that_opens(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    assert reopened(path) == []
