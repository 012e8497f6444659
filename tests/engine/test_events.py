"""What is told of jobs and of the daemon as it happens, and to whom: in time, whole, and never too early."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, get_args

import anyio
import pytest
from structlog.testing import capture_logs

from scripted import CONFIG, Bench, finish, launched, run_to_end
from solvisor import engine as engine_module
from solvisor import readers
from solvisor.disk import Disk
from solvisor.feed import PIECE_BYTES, Feed, Filter, What
from solvisor.model import State
from solvisor.orders import Stopping
from solvisor.views import BatchRule
from waiting import eventually

ALL = Filter()
EVERYTHING = frozenset(get_args(What))


class Reader:
    """Somebody who reads ``bench``'s events from now on, or from a cursor on."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.comments = 0
        self.ended = False

    async def read(self, bench: Bench, since: str | None = None, wanted: Filter = ALL) -> None:
        async for piece in bench.desk.events(since, wanted):
            for block in piece.decode().split("\n\n")[:-1]:
                if block.startswith(":"):
                    self.comments += 1
                    continue
                event: dict[str, Any] = dict(line.split(": ", 1) for line in block.split("\n"))
                self.events.append(event | {"data": json.loads(event["data"])})
        self.ended = True

    def named(self, name: str) -> list[dict[str, Any]]:
        return [event["data"] for event in self.events if event["event"] == name]

    def way(self, job_id: str) -> list[str]:
        """The states of a job, as they were told."""
        return [job["state"] for job in self.named("job") if job["id"] == job_id]

    def changed(self) -> set[str]:
        return {what for data in self.named("changed") for what in data["what"]}

    @property
    def cursor(self) -> str:
        return str(self.events[-1]["id"])


@asynccontextmanager
async def reading(bench: Bench, since: str | None = None, wanted: Filter = ALL) -> AsyncIterator[Reader]:
    reader = Reader()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reader.read, bench, since, wanted)
        await eventually(lambda: reader.events, "hello")
        yield reader
        tasks.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "REST_SECONDS", 0.001)


async def test_the_way_of_a_job_is_told_from_its_beginning_to_its_end(bench: Bench) -> None:
    async with bench.running(), reading(bench) as reader:
        (good,) = await finish(bench, 1)
        (bad,) = await finish(bench, 1, exit_code=3)
        await eventually(lambda: reader.way(bad)[-1:] == ["failed"], "all is told")
        assert reader.way(good) == ["queued", "running", "collecting", "succeeded"]
        assert reader.way(bad) == ["queued", "running", "collecting", "failed"]
        last = reader.named("job")[-1]
        assert (last["cause"], last["code"], last["message"]) == ("exit", "exit_3", "exited with 3, allowed: 0")
        assert (last["user"], last["solver"], last["name"]) == ("ann", "x", "a.x")


async def test_a_job_that_is_told_finished_is_finished_for_whoever_asks(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before its manifest lies in its place."""
    moved, gate = threading.Event(), threading.Event()
    publish = bench.results.publish

    def slowly(publications: Any) -> Any:
        moved.set()
        assert gate.wait(30)
        return publish(publications)

    monkeypatch.setattr(bench.results, "publish", slowly)
    async with bench.running(), reading(bench) as reader:
        job_id = (await bench.send()).id
        await launched(bench, 1)
        bench.backend.handles[0].end()
        await eventually(moved.is_set, "it is being published")
        await bench.engine.settle()
        await eventually(lambda: reader.way(job_id)[-1:] == ["collecting"], "it is told")
        assert (await bench.desk.view(await bench.desk.find(job_id, None))).state is State.COLLECTING
        at_once: list[State] = []

        async def ask() -> None:
            async for piece in bench.desk.events(reader.cursor, Filter(job_id)):
                if b'"state":"succeeded"' in piece:
                    at_once.append((await bench.desk.view(await bench.desk.find(job_id, None))).state)
                    return

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            gate.set()
        assert at_once == [State.SUCCEEDED]


async def test_nothing_is_told_before_it_is_recorded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, gate = threading.Event(), threading.Event()
    record = bench.store.record

    def hang(*args: Any) -> None:
        entered.set()
        assert gate.wait(30)
        record(*args)

    async with bench.running(), reading(bench) as reader, anyio.create_task_group() as tasks:
        monkeypatch.setattr(bench.store, "record", hang)
        tasks.start_soon(bench.send)
        await eventually(entered.is_set, "it is being recorded")
        assert (bench.engine.feed.last, reader.named("job")) == (0, [])
        gate.set()
        await eventually(lambda: reader.named("job"), "it is told")


async def test_a_job_that_is_tried_again_is_told_queued_again(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(CONFIG + 'retry = { max = 1, on = ["exit"], delay = "0s" }\n')
    async with bench.running(), reading(bench) as reader:
        job_id = (await bench.send()).id
        await launched(bench, 1)
        bench.backend.handles[0].end(1)
        await launched(bench, 2)
        await run_to_end(bench, job_id)
        await eventually(lambda: reader.way(job_id)[-1:] == ["succeeded"], "its end")
        first = ["queued", "running", "collecting"]
        assert reader.way(job_id) == [*first, *first, "succeeded"]


async def test_a_job_whose_processes_would_not_die_is_told_twice(bench: Bench) -> None:
    async with bench.running(), reading(bench) as reader:
        job_id = (await bench.send()).id
        await launched(bench, 1)
        handle = bench.backend.handles[0]
        handle.refuse_to_die()
        await eventually(lambda: reader.way(job_id)[-1:] == ["failed"], "it failed")
        assert (await bench.desk.view(await bench.desk.find(job_id, None))).state is State.FAILED
        handle.vanish()
        await eventually(lambda: reader.way(job_id)[-2:] == ["failed", "failed"], "its result is there")
        assert reader.named("job")[-1]["cause"] == "unkillable"


async def test_what_is_cancelled_rejected_or_skipped_is_told(bench: Bench) -> None:
    async with bench.running(), reading(bench) as reader:
        first = (await bench.send(job={"cpus": 4})).id
        queued = (await bench.send(job={"cpus": 4})).id
        waiting = (await bench.send(job={"after": [queued]})).id
        refused = bench.intake("b.x", ("param", "no such parameter"))
        await bench.engine.accept([refused])
        await bench.desk.cancel(await bench.desk.find(queued, None), "ann")
        ends = {queued: "cancelled", waiting: "skipped", refused.id: "rejected"}
        await eventually(lambda: all(reader.way(i)[-1:] == [end] for i, end in ends.items()), "their ends")
        assert reader.way(refused.id) == ["collecting", "rejected"]
        assert reader.way(first) == ["queued", "running"]


# --- cursors --------------------------------------------------------------------------------------------------------


async def test_whoever_comes_back_misses_nothing_and_gets_nothing_twice(bench: Bench) -> None:
    async with bench.running():
        async with reading(bench) as reader:
            ids = await finish(bench, 2)
            await eventually(lambda: reader.way(ids[1])[-1:] == ["succeeded"], "all is told")
        ids += await finish(bench, 2)
        async with reading(bench, reader.cursor) as again:
            await eventually(lambda: again.way(ids[3])[-1:] == ["succeeded"], "the rest is told")
            assert [again.way(i) for i in ids[:2]] == [[], []]
            assert again.events[0]["id"] == reader.cursor
            assert again.named("reset") == []
            told = reader.named("job") + again.named("job")
        async with reading(bench, f"{bench.engine.feed.life}-0") as whole:
            await eventually(lambda: whole.way(ids[3])[-1:] == ["succeeded"], "everything is told")
            assert whole.named("job") == told


@pytest.mark.parametrize("cursor", ["other-3", "{life}-999"])
async def test_a_cursor_of_another_life_is_told_and_the_stream_goes_on(bench: Bench, cursor: str) -> None:
    async with bench.running():
        async with reading(bench, cursor.format(life=bench.engine.feed.life)) as reader:
            await eventually(lambda: reader.named("reset"), "it is told")
            (job_id,) = await finish(bench, 1)
            await eventually(lambda: reader.way(job_id)[-1:] == ["succeeded"], "it goes on")
        assert [event["event"] for event in reader.events[:3]] == ["hello", "reset", "job"]


async def test_an_order_that_ends_thousands_resets_whoever_is_behind(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And whoever reads them all is told each; nobody is held up for it."""
    monkeypatch.setattr(engine_module, "Feed", partial(Feed, size=1000))
    count = 600
    async with bench.running():
        batch = await bench.desk.open_batch(BatchRule(), "ann")
        await bench.desk.pause(None, None, "ann")
        await bench.engine.accept([bench.intake(f"{n}.x") for n in range(3)])
        async with reading(bench) as ahead:
            pieces = bench.desk.events(ahead.cursor, ALL)
            await anext(pieces)  # its hello; it stays there
            batch_ids = [(await bench.send(batch=batch.id)).id for _ in range(3)]
            many = [bench.intake(f"m{n}.x", after=(batch_ids[0],)) for n in range(count)]
            await bench.engine.accept(many)
            await bench.desk.cancel_batch(batch.id, "ann", running=False)
            await eventually(lambda: len([j for j in ahead.named("job") if j["state"] == "skipped"]) == count, "all")
            assert ahead.named("reset") == []
            async for piece in pieces:
                assert piece.startswith(b"id: ")
                assert b"event: reset" in piece
                break
            await pieces.aclose()


# --- what changes beside jobs ---------------------------------------------------------------------------------------


@asynccontextmanager
async def looking(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reader]:
    """A reader, while it is looked quickly at what changed."""
    monkeypatch.setattr(readers, "LOOK_SECONDS", 0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(bench.desk.readers.run)
        async with reading(bench) as reader:
            await eventually(lambda: reader.changed() == EVERYTHING, "the first to read is told of everything")
            reader.events = [event for event in reader.events if event["event"] != "changed"]
            yield reader
        tasks.cancel_scope.cancel()


async def test_what_changes_beside_jobs_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running() as engine, looking(bench, monkeypatch) as reader:
        await bench.desk.pause("x", None, "ann")
        await eventually(lambda: reader.changed() == {"pauses"}, "a pause")
        batch = await bench.desk.open_batch(BatchRule(), "ann")
        await eventually(lambda: reader.changed() == {"pauses", "batches"}, "a batch")
        engine.see_disk(Disk(1 << 40, 1, 1 << 30))
        await eventually(lambda: "health" in reader.changed(), "the disk is full")
        bench.config.path.write_text(CONFIG.replace("max_jobs = 2", "max_jobs = 3"))
        bench.reload.ask()
        await eventually(lambda: {"config", "limits"} <= reader.changed(), "a reload")
        count = len(reader.named("changed"))
        await bench.desk.limit("cpus", bench.engine.limits.cpus, "as it is, for good", "ann")
        await eventually(lambda: len(reader.named("changed")) > count, "who set a limit is told, if it is no other")
        assert reader.named("changed")[-1] == {"what": ["limits"]}
        count = len(reader.named("changed"))
        await bench.desk.close_batch(batch.id)
        await eventually(lambda: len(reader.named("changed")) > count, "the batch is over")
        assert reader.named("changed")[-1] == {"what": ["batches"]}


async def test_nothing_is_looked_at_while_nobody_reads_and_all_is_told_to_who_comes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "LOOK_SECONDS", 0.01)
    async with bench.running(), anyio.create_task_group() as tasks:
        looks: list[None] = []
        facts = bench.desk.readers._facts

        def look() -> Any:
            looks.append(None)
            return facts()

        monkeypatch.setattr(bench.desk.readers, "_facts", look)
        tasks.start_soon(bench.desk.readers.run)
        async with reading(bench):
            await eventually(lambda: len(looks) > 3, "it is looked while somebody reads")
        await finish(bench, 1)
        seen = len(looks)
        await finish(bench, 3)
        await bench.desk.pause("x", None, "ann")
        cursor = bench.desk.status().cursor
        await bench.desk.resume("x", "ann")
        assert len(looks) <= seen + 1
        async with reading(bench, cursor) as again:
            await eventually(lambda: again.changed() == EVERYTHING, "a status is never the last word")
        tasks.cancel_scope.cancel()


async def test_another_place_in_the_order_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running(), looking(bench, monkeypatch) as reader:
        await bench.desk.pause(None, None, "ann")
        job = await bench.desk.find((await bench.send()).id, None)
        await eventually(lambda: reader.changed() == {"pauses"}, "a pause")
        await bench.desk.prioritize(job, 7, "ann")
        await eventually(lambda: reader.changed() == {"pauses", "order"}, "who shows the order asks anew")


async def test_a_defect_in_looking_ends_nothing_and_is_told_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running(), looking(bench, monkeypatch) as reader:
        tries: list[None] = []

        def broken() -> Any:
            tries.append(None)
            raise ZeroDivisionError

        with monkeypatch.context() as patch, capture_logs() as lines:
            patch.setattr(bench.desk.readers, "_facts", broken)
            await eventually(lambda: len(tries) > 2, "it is tried again")
            await bench.desk.pause("x", None, "ann")
        assert [line["event"] for line in lines if line["log_level"] == "error"] == ["events.defect"]
        await eventually(lambda: reader.changed() == {"pauses"}, "what changed meanwhile, and nothing else")


async def test_changes_are_told_together_and_seldom(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "LOOK_SECONDS", 0.2)
    async with bench.running(), anyio.create_task_group() as tasks:
        tasks.start_soon(bench.desk.readers.run)
        async with reading(bench) as reader:
            began = anyio.current_time()
            while anyio.current_time() < began + 0.9:
                await bench.desk.pause("x", None, "ann")
                await bench.desk.resume("x", "ann")
                await bench.desk.pause(None, None, "ann")
            await eventually(lambda: reader.named("changed"), "it is told")
            assert len(reader.named("changed")) <= (anyio.current_time() - began) / 0.2 + 1
        tasks.cancel_scope.cancel()


async def test_a_stream_without_news_says_that_it_is_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "KEEP_ALIVE_SECONDS", 0.02)
    async with bench.running(), reading(bench) as reader:
        await eventually(lambda: reader.comments > 2, "it is still there")
        assert [event["event"] for event in reader.events] == ["hello"]


async def test_a_stream_ends_with_the_engine_and_tells_all_before(bench: Bench) -> None:
    async with bench.running() as engine, reading(bench) as reader, reading(bench, wanted=Filter("nobody")) as other:
        job_id = (await bench.send()).id
        await launched(bench, 1)
        engine.drain()
        bench.backend.handles[0].end()
        await eventually(lambda: reader.ended and other.ended, "the streams end")
        assert reader.way(job_id) == ["queued", "running", "collecting", "succeeded"]
        with pytest.raises(Stopping):
            await bench.engine.settle()


async def test_a_reader_that_takes_nothing_holds_next_to_nothing(bench: Bench) -> None:
    async with bench.running() as engine:
        stream = bench.desk.events(None, ALL)
        await anext(stream)
        job = await bench.desk.find((await finish(bench, 1))[0], None)
        for _ in range(3000):
            engine.feed.add_job(job, State.RUNNING, "2026")
        piece = await anext(stream)  # as much as it takes at once, and no more is made meanwhile
        assert len(piece) < PIECE_BYTES + 2000
        await stream.aclose()
        assert bench.desk.readers._count == 0
