"""The ring of what happened: cursors, filters, what is too late, and how it stands in a stream."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from builders import NOON_US, make_spec
from solvisor.feed import MESSAGE_MAX, PIECE_BYTES, PIECE_RECORDS, Feed, Filter, Hello, TooLate, is_cursor, sse
from solvisor.model import Job, State


def make_job(job_id: str) -> Job:
    return Job(job_id, 1, State.QUEUED, make_spec(job_id), NOON_US)


AT = "2026-01-31T12:00:00.000000Z"


def tell(feed: Feed, *ids: str, state: State = State.QUEUED, batch: str | None = None, **changes: Any) -> None:
    for job_id in ids:
        job = make_job(job_id)
        job = replace(job, asked=replace(job.spec, batch=batch), **changes)
        feed.add_job(job, state, AT)


def ids_in(piece: bytes) -> list[str]:
    """The jobs that a piece of a stream tells of."""
    return [event["data"]["id"] for event in events_in(piece)]


def events_in(piece: bytes) -> list[dict[str, Any]]:
    found = []
    for block in piece.decode().split("\n\n")[:-1]:
        event: dict[str, Any] = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append(event | {"data": json.loads(event["data"])})
    return found


def test_what_happened_is_read_in_its_order_and_once() -> None:
    feed = Feed("a1")
    tell(feed, "one", "two")
    piece, after = feed.read(0)
    assert [(e["id"], e["event"], e["data"]["id"]) for e in events_in(piece)] == [
        ("a1-1", "job", "one"),
        ("a1-2", "job", "two"),
    ]
    assert (after, feed.read(after)) == (2, (b"", 2))
    tell(feed, "three")
    assert ids_in(feed.read(after)[0]) == ["three"]
    assert ids_in(feed.read(1)[0]) == ["two", "three"]


def test_all_that_is_told_of_a_job() -> None:
    feed = Feed("a1")
    job = replace(make_job("beam"), cause="exit", code="exit_3", message="singular\nmatrix\r\nand \u2028 more")
    feed.add_job(job, State.FAILED, AT)
    (event,) = events_in(feed.read(0)[0])
    spec = job.spec
    assert event["data"] == {
        "id": "beam",
        "name": spec.name,
        "state": "failed",
        "solver": spec.solver,
        "user": spec.user,
        "project": spec.project,
        "batch": spec.batch,
        "cause": "exit",
        "code": "exit_3",
        "message": "singular\nmatrix\r\nand \u2028 more",
        "at": AT,
    }


def test_a_job_whose_spec_is_held_as_bytes_is_told_alike() -> None:
    feed = Feed("a1")
    job = make_job("beam")
    feed.add_job(job, State.QUEUED, AT)
    feed.add_job(job.packed(), State.QUEUED, AT)
    first, second = events_in(feed.read(0)[0])
    assert first["data"] == second["data"]


def test_a_reader_behind_the_ring_is_told_so_and_no_sooner() -> None:
    feed = Feed("a1", size=4)
    tell(feed, "1", "2", "3", "4")
    assert ids_in(feed.read(0)[0]) == ["1", "2", "3", "4"]
    tell(feed, "5")
    with pytest.raises(TooLate):
        feed.read(0)
    assert ids_in(feed.read(1)[0]) == ["2", "3", "4", "5"]


def test_what_is_written_over_is_said_anew() -> None:
    feed = Feed("a1", size=2)
    tell(feed, "1", "2")
    feed.read(0)
    tell(feed, "3", "4")
    assert ids_in(feed.read(2)[0]) == ["3", "4"]


def test_pieces_are_bounded_and_nothing_falls_between_them() -> None:
    feed = Feed("a1")
    many = [f"j{number}" for number in range(2 * PIECE_RECORDS)]
    tell(feed, *many, message="x" * 2 * MESSAGE_MAX)
    got: list[str] = []
    after, pieces = 0, 0
    while after < feed.last:
        piece, after = feed.read(after)
        assert len(piece) < PIECE_BYTES + 2 * MESSAGE_MAX + 1000
        assert all(len(event["data"]["message"]) == MESSAGE_MAX for event in events_in(piece))
        got += ids_in(piece)
        pieces += 1
    assert got == many
    assert pieces > 2


def test_filters_tell_of_one_job_or_of_those_of_a_batch_and_of_nothing_else() -> None:
    feed = Feed("a1")
    tell(feed, "one", batch="b")
    tell(feed, "two")
    feed.add_changed(("health",))
    tell(feed, "three", batch="b")
    assert ids_in(feed.read(0, Filter(job="two"))[0]) == ["two"]
    assert ids_in(feed.read(0, Filter(batch="b"))[0]) == ["one", "three"]
    assert ids_in(feed.read(0, Filter("one", "b"))[0]) == ["one"]
    piece, after = feed.read(0, Filter("two", "b"))
    assert (piece, after) == (b"", 4)
    assert [event["event"] for event in events_in(feed.read(0)[0])] == ["job", "job", "changed", "job"]


def test_a_filtered_reader_looks_at_so_many_records_at_once() -> None:
    feed = Feed("a1")
    tell(feed, *("other" for _ in range(PIECE_RECORDS + 1)), "mine")
    assert feed.read(0, Filter("mine")) == (b"", PIECE_RECORDS)
    assert ids_in(feed.read(PIECE_RECORDS, Filter("mine"))[0]) == ["mine"]


@pytest.mark.parametrize(
    ("cursor", "number"),
    [("a1-0", 0), ("a1-2", 2), ("a1-3", None), ("b2-1", None), ("a1-9" + "9" * 30, None)],
)
def test_a_cursor_is_of_this_life_and_not_of_the_future(cursor: str, number: int | None) -> None:
    feed = Feed("a1")
    tell(feed, "one", "two")
    assert is_cursor(cursor)
    assert feed.number(cursor) == number
    if number is not None:
        assert feed.cursor(number) == cursor


@pytest.mark.parametrize("text", ["", "-", "a1", "a1-", "-1", "a1-x", "a1-1\n", "a1-\u0661", "a b-1", "a1-" + "1" * 60])
def test_what_is_no_cursor(text: str) -> None:
    assert not is_cursor(text)
    assert Feed("a1").number(text) is None


def test_one_event_is_one_block_whatever_it_says() -> None:
    block = sse("hello", Hello("a1-0", "ws\n\n04\r", "0"), "a1-0").decode()
    assert block.endswith("\n\n")
    assert block.count("\n") == 4
    assert "\r" not in block
    assert msgspec.json.decode(block.split("data: ")[1], type=Hello).host == "ws\n\n04\r"


def test_the_ring_holds_no_job() -> None:
    class Watched(dict):  # type: ignore[type-arg]  # a job can hold it, and it can be watched
        pass

    feed = Feed("a1")
    params = Watched()
    job = make_job("beam")
    job = replace(job, asked=replace(job.spec, params=params))
    watch = weakref.ref(params)
    feed.add_job(job, State.QUEUED, AT)
    del job, params
    gc.collect()
    assert watch() is None
