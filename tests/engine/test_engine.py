"""The order of things: recorded before started, durable before announced, and nothing lost between two lives."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from scripted import Bench, launched, published
from solvisor import engine as module
from solvisor import store as stores
from solvisor.errors import SpawnError, StoreUnavailable
from solvisor.events import Event, Published
from solvisor.interfaces import AttemptSpec
from solvisor.model import Cause, FileFact, Retry
from waiting import eventually, wait_until


async def test_no_process_before_its_attempt_is_recorded(bench: Bench) -> None:
    seen: list[str] = []

    def look(spec: AttemptSpec) -> None:
        with closing(sqlite3.connect(f"file:{bench.home.db}?mode=ro", uri=True)) as other:
            seen.extend(row[0] for row in other.execute("SELECT token FROM attempts"))
        assert spec.token.split("/")[1] in seen, "the process would exist before its row"

    async with bench.running() as engine:
        bench.backend.on_launch = look
        intake = bench.intake()
        await engine.accept([intake])
        await launched(bench, 1)
        bench.backend.handles[0].end()
        assert (await published(bench, intake.id))["state"] == "succeeded"
    assert len(seen) == 1


async def test_the_log_of_the_database_is_carried_over_once_it_is_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "FOLD_ROWS", 1)
    folded = threading.Event()
    monkeypatch.setattr(bench.store, "fold", folded.set)
    async with bench.running() as engine:
        await engine.accept([bench.intake()])
        await eventually(folded.is_set, "it is carried over")


async def test_nothing_is_announced_before_it_is_durable(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    harden: Callable[[], None] = bench.store.harden

    def late() -> None:
        assert gate.wait(20)
        harden()

    async with bench.running() as engine:
        first = bench.intake("first.x")
        await engine.accept([first])
        await launched(bench, 1)
        monkeypatch.setattr(bench.store, "harden", late)
        second = bench.intake("second.x")
        acknowledged = anyio.Event()

        async def drop() -> None:
            await engine.accept([second])
            acknowledged.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drop)
            bench.backend.handles[0].end()
            with anyio.move_on_after(0.3):
                await acknowledged.wait()
            assert not acknowledged.is_set()
            assert not list(bench.home.done.iterdir())
            gate.set()
        assert (await published(bench, first.id))["state"] == "succeeded"


async def test_room_is_free_as_soon_as_the_tree_is_gone_not_when_the_result_is_durable(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running() as engine:
        intakes = [bench.intake(f"{n}.x") for n in range(3)]
        await engine.accept(intakes)
        await launched(bench, 2)
        gate = threading.Event()
        remains = bench.results.remains
        monkeypatch.setattr(bench.results, "remains", lambda *a: (gate.wait(20), remains(*a))[1])
        bench.backend.handles[0].end()
        await launched(bench, 3)
        gate.set()


async def test_a_failed_attempt_is_retried_within_its_limit(bench: Bench) -> None:
    async with bench.running() as engine:
        intake = bench.intake(retry=Retry(max=1, on=(Cause.SIGNAL,), delay_seconds=0.01))
        await engine.accept([intake])
        for n in range(2):
            await launched(bench, n + 1)
            bench.backend.handles[n].end(None, signal=11)
        result = await published(bench, intake.id)
    assert (result["state"], result["cause"], result["code"]) == ("failed", "signal", "SIGSEGV")
    assert len(result["attempts"]) == 2
    assert len(bench.backend.handles) == 2


async def test_a_spawn_failure_ends_in_a_manifest(bench: Bench) -> None:
    async with bench.running() as engine:
        bench.backend.refuse = SpawnError("not_executable", "x is not executable")
        intake = bench.intake()
        await engine.accept([intake])
        result = await published(bench, intake.id)
    assert (result["cause"], result["code"], result["message"]) == ("spawn", "not_executable", "x is not executable")


async def test_a_life_that_ends_by_force_gives_its_jobs_to_the_next(bench: Bench) -> None:
    async with bench.running() as engine:
        intakes = [bench.intake(f"{n}.x") for n in range(3)]
        await engine.accept(intakes)
        await launched(bench, 2)
    async with bench.running():
        await launched(bench, 2)
        for handle in list(bench.backend.handles):
            handle.end()
        await launched(bench, 3)
        bench.backend.handles[2].end()
        results = [await published(bench, intake.id) for intake in intakes]
    assert [r["state"] for r in results] == ["succeeded"] * 3
    assert sorted(len(r["attempts"]) for r in results) == [1, 2, 2]


async def test_a_finished_solve_is_never_run_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon dies while it collects: the next life goes on collecting."""
    async with bench.running() as engine:
        intake = bench.intake()
        await engine.accept([intake])
        await launched(bench, 1)
        started = anyio.Event()

        async def never(batch: object) -> None:
            started.set()
            await anyio.sleep_forever()

        monkeypatch.setattr(engine._collecting.collector, "collect", never)
        bench.backend.handles[0].end()
        with anyio.fail_after(20):
            await started.wait()
    async with bench.running():
        result = await published(bench, intake.id)
        assert bench.backend.handles == []
    assert (result["state"], len(result["attempts"])) == ("succeeded", 1)


async def test_what_will_not_die_keeps_its_room_and_its_folder_until_it_does(bench: Bench) -> None:
    async with bench.running() as engine:
        stuck, other, third = bench.intake("stuck.x"), bench.intake("other.x"), bench.intake("third.x")
        await engine.accept([stuck, other, third])
        await launched(bench, 2)
        handle = next(h for h in bench.backend.handles if h.job_id == stuck.id)
        handle.refuse_to_die()
        next(h for h in bench.backend.handles if h.job_id == other.id).end()
        await published(bench, other.id)
        await launched(bench, 3)
        assert (bench.home.work / stuck.id).exists()
        assert engine._world.used.jobs == 2
        bench.backend.handles[2].end()
        handle.vanish()
        result = await published(bench, stuck.id)
        await eventually(lambda: engine._world.used.jobs == 0, "room free")
    assert (result["state"], result["cause"], result["outputs"]) == ("failed", "unkillable", [])


async def test_processes_of_an_earlier_life_that_live_on_set_their_job_aside(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running() as engine:
        intake = bench.intake()
        await engine.accept([intake])
        await launched(bench, 1)
        token = bench.backend.handles[0].spec.token.split("/")[1]
    monkeypatch.setattr(module, "SURVIVORS_SECONDS", 0.01)
    bench.survivors = {token}
    async with bench.running(alive=[token]) as engine:
        assert engine._world.jobs[intake.id].cause is Cause.UNKILLABLE
        assert engine._world.used.jobs == 1
        assert (bench.home.work / intake.id).exists()
        bench.survivors = set()
        assert (await published(bench, intake.id))["cause"] == "unkillable"
        await eventually(lambda: engine._world.used.jobs == 0, "room free")
        assert bench.backend.handles == []


async def test_drain_lets_running_jobs_finish(bench: Bench) -> None:
    async with bench.running() as engine:
        intakes = [bench.intake(f"{n}.x") for n in range(3)]
        await engine.accept(intakes)
        await launched(bench, 2)
        engine.drain()
        for handle in list(bench.backend.handles):
            handle.end()
        with anyio.fail_after(20):
            await bench.stopped.wait()
    assert len(list(bench.home.done.iterdir())) == 2
    assert len(bench.backend.handles) == 2


async def test_who_is_alone_waits_for_no_pass_to_share(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNHURRIED_SECONDS", 3600.0)
    monkeypatch.setattr(module, "SHARED_SECONDS", 3600.0)
    async with bench.running() as engine:
        intake = bench.intake()
        await engine.accept([intake])
        await launched(bench, 1)
        await eventually(lambda: engine._events, "its start is told, and waits")
        with anyio.fail_after(10):
            await engine.settle()
        bench.backend.handles[0].end()
        assert (await published(bench, intake.id))["state"] == "succeeded"


async def test_a_verdict_waits_a_moment_for_others_and_not_for_their_end(bench: Bench) -> None:
    async with bench.running() as engine:
        intakes = [bench.intake(f"{n}.x") for n in range(2)]
        await engine.accept(intakes)
        await launched(bench, 2)
        bench.backend.handles[0].end()
        await published(bench, bench.backend.handles[0].job_id)
        await eventually(lambda: len(engine.world.jobs) == 1, "it has left the world")


async def test_an_order_in_the_last_pass_is_durable_and_told_and_then_the_engine_ends(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running() as engine:
        post = engine.post

        def quietly(event: Event) -> None:
            if isinstance(event, Published):
                engine._events.append(event)  # so that what ends the drain waits for the order
            else:
                post(event)

        monkeypatch.setattr(engine, "post", quietly)
        intake = bench.intake()
        await engine.accept([intake])
        await launched(bench, 1)
        engine.drain()
        bench.backend.handles[0].end()
        await published(bench, intake.id)
        await eventually(lambda: engine._events, "the last event waits")
        with anyio.fail_after(10):
            await engine.settle()
            await bench.stopped.wait()


async def test_drain_stops_what_takes_longer_than_stop_timeout(bench: Bench) -> None:
    async with bench.running() as engine:
        intake = bench.intake()
        await engine.accept([intake])
        await launched(bench, 1)
        engine.drain()
        with anyio.fail_after(20):
            await bench.stopped.wait()
    assert bench.backend.handles[0].stops == [False]
    (job,) = bench.store.live_jobs()
    assert (job.state, job.interruptions) == ("queued", 0), "an orderly stop is not counted"


@pytest.mark.parametrize("way", ["drain", "stop_now"])
@pytest.mark.parametrize("moment", ["staged", "recorded"])
async def test_a_stop_reaches_what_is_only_just_being_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str, moment: str
) -> None:
    """No process may come of it, and the job is not lost."""
    async with bench.running() as engine:
        loop = asyncio.get_running_loop()
        target, name = (bench.results, "stage") if moment == "staged" else (bench.store, "record")
        original = getattr(target, name)

        def and_stop(*args: Any, **more: Any) -> None:
            original(*args, **more)
            loop.call_soon_threadsafe(getattr(engine, way))
            wait_until(lambda: engine._runner._stops_all is not None, "the order to stop")

        monkeypatch.setattr(target, name, and_stop)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(engine.accept, [bench.intake()])
            with anyio.fail_after(20):
                await bench.stopped.wait()
            tasks.cancel_scope.cancel()
    assert bench.backend.handles == []
    (job,) = bench.store.live_jobs()
    assert (job.state, job.interruptions) == ("queued", 0), "an orderly stop is not counted"


async def test_a_store_that_cannot_write_delays_and_loses_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    record = bench.store.record
    failures = iter([True, True, True])

    def full(*args: Any) -> None:
        if next(failures, False):
            raise StoreUnavailable("disk full")
        record(*args)

    async with bench.running() as engine:
        monkeypatch.setattr(bench.store, "record", full)
        intake = bench.intake()
        await engine.accept([intake])
        await launched(bench, 1)
        bench.backend.handles[0].end()
        assert (await published(bench, intake.id))["state"] == "succeeded"
    assert next(failures, None) is None


async def test_a_refusal_ends_in_rejected_with_its_message(bench: Bench) -> None:
    async with bench.running() as engine:
        intake = bench.intake(refusal=("solver", "no solver takes a.x"))
        await engine.accept([intake])
        result = await published(bench, intake.id)
    assert (result["state"], result["code"], result["message"]) == ("rejected", "solver", "no solver takes a.x")
    assert (bench.home.rejected / intake.id / "input" / "a.x").exists()


@pytest.mark.parametrize("name", ["case.job.toml", "CASE.JOB.TOML", "job.toml"])
async def test_a_job_file_is_for_us_and_not_for_the_solver(bench: Bench, name: str) -> None:
    async with bench.running() as engine:
        intake = bench.intake("a.x")
        text = b'solver = "x"\n'
        (bench.home.work / intake.id / "input" / name).write_bytes(text)
        fact = FileFact(f"input/{name}", len(text), hashlib.sha256(text).hexdigest())
        spec = replace(intake.spec, inputs=(*intake.spec.inputs, fact))
        await engine.accept([replace(intake, spec=spec)])
        await launched(bench, 1)
        staged = [path.name for path in Path(bench.backend.handles[0].spec.cwd).iterdir()]
        bench.backend.handles[0].end()
        result = await published(bench, intake.id)
    assert staged == ["a.x"]
    assert result["state"] == "succeeded"
