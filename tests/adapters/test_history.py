"""The past as it is read beside a daemon that writes: filters, pages, counts; never in a writer's way."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from builders import NOON_US, SECOND_US, make_facts, make_settings, make_spec
from solvisor.errors import StoreError, StoreUnavailable
from solvisor.history import Filters, History
from solvisor.lately import MINUTE_US, Ends
from solvisor.model import TERMINAL, Attempt, Batch, Cause, Job, State
from solvisor.store import Store
from solvisor.usual import Ran

Q, R, C, S, F = State.QUEUED, State.RUNNING, State.COLLECTING, State.SUCCEEDED, State.FAILED


class Past:
    """A store to write the past with, and a history to read it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store.open(path)
        self.history = History.open(path)
        self.jobs: list[Job] = []

    def add(self, state: State = S, *, job_id: str | None = None, published: bool = True, **wishes: Any) -> Job:
        """One more job, a minute after the one before; it took five seconds."""
        seq = len(self.jobs) + 1
        at_us = NOON_US + 60 * seq * SECOND_US
        over = state in TERMINAL
        job_id = job_id or f"beam-{seq:03}"
        tries: tuple[Attempt, ...] = ()
        if state is not Q:
            tries = (
                Attempt(
                    1,
                    f"t-{job_id}",
                    "ws1",
                    at_us,
                    make_settings(),
                    facts=make_facts(at_us=at_us + 5 * SECOND_US) if over else None,
                ),
            )
        job = Job(job_id, seq, state, make_spec(job_id, **wishes), at_us, tries)
        if over:
            cause = Cause.EXIT if state is F else None
            job = replace(job, finished_us=at_us + 5 * SECOND_US, manifest=b"{}", cause=cause)
        self.jobs.append(job)
        self.store.record([job])
        if over and published:
            self.store.record([], [job_id])
        return job

    def ids(self, before: int | None = None, limit: int = 100, **filters: Any) -> list[str]:
        return [job.id for job in self.history.page(Filters(**filters), before, limit).jobs]


@pytest.fixture
def past(tmp_path: Path) -> Iterator[Past]:
    past = Past(tmp_path / "solvisor.db")
    yield past
    past.history.close()
    past.store.close()


# --- pages ----------------------------------------------------------------------------------------------------------


def test_a_page_is_newest_first_and_the_next_one_goes_on_behind_it(past: Past) -> None:
    for _ in range(7):
        past.add()
    first = past.history.page(Filters(), None, 3)
    assert ([job.seq for job in first.jobs], first.next_seq) == ([7, 6, 5], 5)
    past.add()  # what comes meanwhile shifts nothing
    second = past.history.page(Filters(), 5, 3)
    assert ([job.seq for job in second.jobs], second.next_seq) == ([4, 3, 2], 2)
    last = past.history.page(Filters(), 2, 3)
    assert ([job.seq for job in last.jobs], last.next_seq) == ([1], None)
    assert past.history.page(Filters(), 1, 3) == ([], None)
    assert past.history.page(Filters(), 4, 3).next_seq is None, "the first job ever ends the last page"


def test_a_job_comes_back_whole(past: Past) -> None:
    job = past.add(F, user="ann", project="riser")
    expected = replace(job, manifest=None)
    assert past.history.page(Filters(), None, 1).jobs == [expected]
    assert past.history.job(job.id) == expected
    assert past.history.job("beam-999") is None


def test_filters_hold_alone_and_together(past: Past) -> None:
    batch = Batch("sweep-1", "sweep", "ann", "skip", None, NOON_US)
    past.store.record([], batches=[batch])
    past.add(S, user="ann", project="riser", batch="sweep-1")
    past.add(F, user="ann", solver="orcaflex")
    past.add(Q, user="bob", project="riser")
    past.add(R, user="ann", project="riser")
    assert past.ids(user="ann") == ["beam-004", "beam-002", "beam-001"]
    assert past.ids(project="riser") == ["beam-004", "beam-003", "beam-001"]
    assert past.ids(solver="orcaflex") == ["beam-002"]
    assert past.ids(batch="sweep-1") == ["beam-001"]
    assert past.ids(states=(Q, F)) == ["beam-003", "beam-002"]
    assert past.ids(since_us=past.jobs[2].submitted_us) == ["beam-004", "beam-003"]
    assert past.ids(states=(S, R), user="ann", project="riser") == ["beam-004", "beam-001"]
    assert past.ids(states=(S, R), user="ann", project="riser", before=4) == ["beam-001"]
    assert past.ids(user="nobody") == past.ids(project="'; DROP TABLE jobs; --") == []


def test_collecting_is_also_what_ended_and_is_not_published(past: Past) -> None:
    """A page of those must not begin with a thousand jobs that were published long ago."""
    past.add(C)
    past.add(S, published=False)
    past.add(F, published=False)
    for _ in range(20):
        past.add(S)
    assert past.ids(states=(C,), limit=3) == ["beam-003", "beam-002", "beam-001"]
    assert past.ids(states=(C, Q), user="nobody") == []
    assert past.ids(states=(F,)) == ["beam-003"]


# --- single ones ----------------------------------------------------------------------------------------------------


def test_ids_by_prefix_are_the_newest_ones(past: Past) -> None:
    for job_id in ("beam-1aa", "beam-1ab", "beam-2aa", "beam", "bean-1", "beal-zz", "-odd", "zz"):
        past.add(job_id=job_id)
    like = past.history.ids_like
    assert like("beam-1", 9) == ["beam-1ab", "beam-1aa"]
    assert like("beam", 9) == ["beam", "beam-2aa", "beam-1ab", "beam-1aa"]
    assert like("beam", 2) == ["beam-2aa", "beam-1ab"]
    assert like("z", 9) == ["zz"]
    assert like("beam-1ab", 9) == ["beam-1ab"]
    assert [like(odd, 9) for odd in ("beam%", "_eam", "%", "*", "BEAM", "\x7f", "beam-1abc", "'")] == [[]] * 8


def test_the_newest_is_that_of_the_user_who_asks(past: Past) -> None:
    assert past.history.newest("ann") is None
    past.add(user="ann")
    past.add(user="bob")
    past.add(user=None)
    assert [past.history.newest(user) for user in ("ann", "bob", "eve", None)] == [
        *("beam-001", "beam-002"),
        *("beam-003", "beam-003"),
    ]


def test_a_key_leads_to_its_job(past: Past) -> None:
    job = past.add(Q, key="riser 18")
    assert past.history.job_of_key("riser 18") == job
    assert past.history.job_of_key("riser") is None


def ended(ends: list[Ends]) -> Counter[State]:
    return sum((Counter({end.state: end.count}) for end in ends), Counter[State]())


# --- counts ---------------------------------------------------------------------------------------------------------


def test_what_finished_since_counts_only_what_is_published(past: Past) -> None:
    for state, published in ((S, True), (S, True), (F, True), (State.REJECTED, True), (S, False), (Q, False)):
        past.add(state, published=published)
    since = past.jobs[1].finished_us
    assert since is not None
    assert ended(past.history.finished_since(since)) == Counter({S: 1, F: 1, State.REJECTED: 1})
    assert ended(past.history.finished_since(0))[S] == 2
    assert past.history.finished_since(since + 3600 * SECOND_US) == []


def test_what_finished_is_told_by_the_minute(past: Past) -> None:
    noon = NOON_US // MINUTE_US
    for late in (0, 59, 60, 61):
        running = past.add(R)
        over = replace(running, state=S, manifest=b"{}", finished_us=NOON_US + late * SECOND_US)
        past.store.record([over])
        past.store.record([], [over.id])
    assert past.history.finished_since(0) == [Ends(noon, S, 2), Ends(noon + 1, S, 2)]


def test_the_failures_of_a_day_are_those_that_ended_in_it_the_last_first(past: Past) -> None:
    long_one = replace(past.add(R), state=F, cause=Cause.EXIT, manifest=b"{}", finished_us=NOON_US + 9999 * SECOND_US)
    past.add(F)
    past.add(S)
    past.add(F)
    past.add(F, published=False)
    past.store.record([long_one])
    past.store.record([], [long_one.id])
    assert [job.id for job in past.history.failed_since(0, 9)] == [long_one.id, "beam-004", "beam-002"]
    assert [job.id for job in past.history.failed_since(0, 1)] == [long_one.id]
    assert [job.id for job in past.history.failed_since(NOON_US + 9000 * SECOND_US, 9)] == [long_one.id]


def test_the_finished_of_a_batch_are_those_published_and_those_on_their_way(past: Past) -> None:
    batch = Batch("sweep-1", "sweep", "ann", "fail", 3, NOON_US, closed=True, stopped="a failed")
    other = Batch("sweep-2", "", None, "skip", None, NOON_US)
    past.store.record([], batches=[batch, other])
    for state, published in ((S, True), (S, True), (F, True), (F, False), (S, False), (R, False), (Q, False)):
        past.add(state, published=published, batch="sweep-1")
    past.add(S, batch="sweep-2")
    assert past.history.finished_of_batch("sweep-1") == (Counter({S: 2, F: 1}), {"beam-004": F, "beam-005": S})
    assert past.history.finished_of_batch("none") == (Counter(), {})
    assert past.history.batch("sweep-1") == batch
    assert past.history.batch("none") is None


# --- beside a writer ------------------------------------------------------------------------------------------------


def questions(past: Past) -> list[Callable[[], object]]:
    history = past.history
    return [
        lambda: history.page(Filters(user="ann"), None, 2),
        lambda: history.job("beam-001"),
        lambda: history.job_of_key("k"),
        lambda: history.ids_like("beam", 2),
        lambda: history.newest("ann"),
        lambda: history.newest("eve"),
        lambda: history.finished_since(0),
        lambda: history.failed_since(0, 2),
        lambda: history.batch("sweep-1"),
        lambda: history.finished_of_batch("sweep-1"),
    ]


def test_questions_are_answered_while_a_writer_holds_its_transaction(past: Past) -> None:
    for _ in range(3):
        past.add(user="ann")
    before = [ask() for ask in questions(past)]
    writer = past.store._connection
    writer.execute("BEGIN EXCLUSIVE")
    writer.execute("UPDATE jobs SET state = 'failed', cause = 'exit', key = 'k'  || seq")
    assert [ask() for ask in questions(past)] == before
    writer.execute("ROLLBACK")


def test_no_question_keeps_a_snapshot_open(past: Past) -> None:
    """Or the write-ahead log could never begin anew, and would grow with every commit."""
    wal = past.path.with_name(f"{past.path.name}-wal")
    for n, ask in enumerate(questions(past)):
        for _ in range(3):
            past.add(user="ann")
        ask()
        busy, *_ = past.store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        assert busy == 0, f"question {n} still reads"
        assert wal.stat().st_size == 0


def test_the_history_cannot_write(past: Past) -> None:
    past.add()
    connection = past.history._connection
    for statement in ("UPDATE jobs SET name = 'x'", "DROP TABLE jobs", "PRAGMA user_version = 9"):
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute(statement)


@pytest.mark.parametrize("name", ["odd?mode=rwc&x=%41#y", "ä b", os.fsdecode(b"not utf-8 \xff")])
def test_a_home_may_have_any_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    past = Past(folder / "solvisor.db")
    past.add()
    assert past.ids() == ["beam-001"]
    past.history.close()
    past.store.close()
    assert os.listdir(tmp_path) == [name]


def test_errors_name_the_file_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="make its folder writable"):
        History.open(tmp_path / "none.db")
    (tmp_path / "bad.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"bad\.db is damaged"):
        History.open(tmp_path / "bad.db")


def test_how_long_the_last_ones_ran_that_succeeded(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in (S, F, S, R, Q):
        past.add(state)
    past.add(published=False)
    past.add(solver="post")
    assert past.history.ran_lately() == [
        Ran("ccx", "beam-001", 5.0),
        Ran("ccx", "beam-003", 5.0),
        Ran("post", "beam-007", 5.0),
    ]
    with contextlib.closing(sqlite3.connect(past.path)) as connection, connection:
        facts = b'{"finished_us": 0, "seconds": 7.5}'
        connection.execute("UPDATE attempts SET facts = ? WHERE job = 1", [facts])
        connection.execute("UPDATE attempts SET facts = ? WHERE job = 3", [b"\xff{"])
    assert past.history.ran_lately() == [Ran("ccx", "beam-001", 7.5), Ran("post", "beam-007", 5.0)]
    monkeypatch.setattr("solvisor.history.LATELY", 2)
    assert past.history.ran_lately() == [Ran("post", "beam-007", 5.0)], "no more rows are looked at than that"
