"""Trouble of the machine is waited out and charged to nobody; a defect ends in a manifest, not in the daemon's end."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from scripted import CONFIG, Bench, launched, published
from solvisor import collector, engine, runner
from solvisor import judge as module_judge
from solvisor.acceptance import STEPS_AT_ONCE
from solvisor.errors import SpawnError, StoreUnavailable
from solvisor.events import Event
from solvisor.orders import Stopping
from solvisor.spool import NotDurable
from solvisor.spool.files import DEPTH_MAX
from waiting import eventually


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(runner, "RETRY_SECONDS", 0.01)


def failing(times: int, error: Exception, then: Callable[..., Any]) -> Callable[..., Any]:
    """``then``, but the first calls raise."""
    left = iter([error] * times)

    def call(*args: Any, **more: Any) -> Any:
        trouble = next(left, None)
        if trouble is not None:
            raise trouble
        return then(*args, **more)

    return call


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_fault_26_a_full_disk_while_staging_is_waited_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running() as running:
        results = bench.results
        monkeypatch.setattr(results, "stage", failing(3, full_disk(), results.stage))
        intake = bench.intake()
        await running.accept([intake])
        await launched(bench, 1)
        bench.backend.handles[0].end()
        result = await published(bench, intake.id)
    assert (result["state"], len(result["attempts"])) == ("succeeded", 1)


async def test_no_process_to_be_had_is_waited_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running() as running:
        refusal = SpawnError("spawn", "cannot fork")
        refusal.__cause__ = OSError(errno.EAGAIN, "no more processes")
        monkeypatch.setattr(bench.backend, "launch", failing(3, refusal, bench.backend.launch))
        intake = bench.intake()
        await running.accept([intake])
        await launched(bench, 1)
        bench.backend.handles[0].end()
        assert (await published(bench, intake.id))["state"] == "succeeded"


async def test_a_stop_is_obeyed_while_staging_waits(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running() as running:
        asked = threading.Event()

        def no_room(*args: Any, **more: Any) -> None:
            asked.set()
            raise full_disk()

        monkeypatch.setattr(bench.results, "stage", no_room)
        await running.accept([bench.intake()])
        await eventually(asked.is_set, "staging tried")
        running.stop_now()
        with anyio.fail_after(20):
            await bench.stopped.wait()
    (job,) = bench.store.live_jobs()
    assert (job.state, job.interruptions) == ("queued", 0), "an orderly stop is not counted"


@pytest.mark.parametrize("size", [6, runner.SMALL_BYTES + 1])
async def test_fault_29_a_disk_that_fails_over_staging_is_charged_to_no_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    def no_disk(*args: Any, **more: Any) -> None:
        raise NotDurable(errno.EIO, "the disk is broken")

    monkeypatch.setattr(bench.results, "stage", no_disk)
    intake = bench.intake()
    (fact,) = intake.spec.inputs
    intake = replace(intake, spec=replace(intake.spec, inputs=(replace(fact, size=size),)))

    async def live() -> None:
        async with bench.running() as running:
            await running.accept([intake])
            with anyio.fail_after(20):
                await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as ended:
        await live()
    assert ended.group_contains(NotDurable)
    (job,) = bench.store.live_jobs()
    assert (job.state, len(job.attempts)) == ("running", 1)


async def test_a_folder_that_cannot_be_staged_fails_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running() as running:
        monkeypatch.setattr(bench.results, "stage", failing(9, PermissionError(errno.EACCES, "no"), print))
        intake = bench.intake()
        await running.accept([intake])
        result = await published(bench, intake.id)
    assert (result["state"], result["cause"], result["code"]) == ("failed", "spawn", "staging")


async def test_a_collection_without_descriptors_is_tried_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running() as running:
        results = bench.results
        trouble = OSError(errno.EMFILE, "too many open files")
        monkeypatch.setattr(results, "remains", failing(3, trouble, results.remains))
        intake = bench.intake()
        await running.accept([intake])
        await launched(bench, 1)
        bench.backend.handles[0].end()
        result = await published(bench, intake.id)
    assert (result["state"], [f["path"] for f in result["outputs"]]) == ("succeeded", ["stdout.log", "stderr.log"])


async def test_a_defect_in_judging_one_job_is_that_jobs_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = module_judge.judge

    def defective(solver: Any, spec: Any, *args: Any, **more: Any) -> Any:
        if spec.name == "bad.x":
            raise ZeroDivisionError("oops")
        return judge(solver, spec, *args, **more)

    monkeypatch.setattr(collector, "judge", defective)
    async with bench.running() as running:
        bad, good = bench.intake("bad.x"), bench.intake("good.x")
        await running.accept([bad, good])
        await launched(bench, 2)
        for handle in bench.backend.handles:
            handle.end()
        failed, succeeded = await published(bench, bad.id), await published(bench, good.id)
    assert (failed["cause"], failed["code"]) == ("check", "defect")
    assert "ZeroDivisionError: oops" in failed["message"]
    assert succeeded["state"] == "succeeded"


async def test_others_look_at_the_world_while_many_claims_are_adopted(bench: Bench) -> None:
    async with bench.running() as running:
        model = bench.intake()
        intakes = [replace(model, id=bench.ids.new_id("a.x", 0)) for _ in range(5 * STEPS_AT_ONCE)]
        adopted: list[Event] = []
        seen: list[int] = []

        async def look() -> None:
            while True:
                seen.append(len(adopted))
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(look)
            await running._acceptance.adopt(intakes, adopted.append)
            tasks.cancel_scope.cancel()
    assert len(adopted) == len(intakes)
    assert len(set(seen)) >= 5


async def test_fault_29_a_disk_that_fails_over_a_collection_is_charged_to_no_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A life ends in the middle of collecting; the disk ends the next ones."""
    asked = threading.Event()

    async def never(*_: Any) -> None:
        asked.set()
        await anyio.sleep_forever()

    async def failed(*_: Any) -> None:
        raise NotDurable(errno.EIO, "fsync failed")

    with monkeypatch.context() as patch:
        patch.setattr(collector.Collector, "collect", never)
        async with bench.running() as running:
            intake = bench.intake()
            await running.accept([intake])
            await launched(bench, 1)
            bench.backend.handles[0].end()
            await eventually(asked.is_set, "it is collected")
    with monkeypatch.context() as patch:
        patch.setattr(collector.Collector, "collect", failed)
        for _ in range(4):
            with pytest.raises(ExceptionGroup), anyio.fail_after(20):
                async with bench.running():
                    await anyio.sleep_forever()
    async with bench.running():
        assert (await published(bench, intake.id))["state"] == "succeeded"


async def collect_once(bench: Bench, monkeypatch: pytest.MonkeyPatch, collect: Callable[..., Any]) -> None:
    """A life in which the first job to end is collected by ``collect``."""
    with anyio.fail_after(60):
        async with bench.running() as running:
            monkeypatch.setattr(running._collecting.collector, "collect", collect)
            await launched(bench, 1)
            bench.backend.handles[0].end()
            await anyio.sleep_forever()


async def test_a_defect_ends_the_engine_although_the_intake_waits_for_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An intake that is in the middle of a round cannot be cancelled; it hears that nobody listens any more."""

    async def drops() -> None:
        with anyio.CancelScope(shield=True):
            while True:
                await bench.engine.accept([bench.intake()])

    async def defect(batch: object) -> None:
        raise RuntimeError("a defect")

    bench.intake_task = drops
    with pytest.raises(BaseExceptionGroup) as ended:
        await collect_once(bench, monkeypatch, defect)
    assert ended.group_contains(RuntimeError, match="a defect")
    assert not ended.group_contains(Stopping)


async def test_a_task_that_is_cancelled_by_nobody_is_a_defect(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def cancelled(batch: object) -> None:
        raise asyncio.CancelledError

    async def drop() -> None:
        await bench.engine.accept([bench.intake()])
        await anyio.sleep_forever()

    bench.intake_task = drop
    with pytest.raises(BaseExceptionGroup) as ended:
        await collect_once(bench, monkeypatch, cancelled)
    assert ended.group_contains(AssertionError, match="collecting ended by itself")


async def test_fault_68_collecting_that_ends_every_start_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(self: object, batch: object) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr(collector.Collector, "collect", never)
    async with bench.running() as running:
        intake = bench.intake()
        await running.accept([intake])
        await launched(bench, 1)
        bench.backend.handles[0].end()
        await eventually(lambda: running._world.jobs[intake.id].state == "collecting", "collecting")
        await eventually(lambda: not running._world.changed, "recorded")
    note = bench.home.suspects("collecting")
    for tries in range(1, 4):
        async with bench.running():
            written = f'{{"{intake.id}":{tries}}}'
            await eventually(lambda: note.exists() and note.read_text() == written, "it is written down")  # noqa: B023
    async with bench.running():
        result = await published(bench, intake.id)
    assert (result["state"], result["cause"], result["code"]) == ("failed", "lost", "collecting")


async def test_a_stale_input_is_not_taken_for_a_result(make_bench: Callable[[str], Bench]) -> None:
    """A case folder that still holds last week's result is dropped, and the solver writes nothing."""
    bench = make_bench(CONFIG + '[solver.x.success]\noutputs = ["a.x"]\n')
    async with bench.running() as running:
        intake = bench.intake("a.x")
        await running.accept([intake])
        await launched(bench, 1)
        bench.backend.handles[0].end()
        result = await published(bench, intake.id)
    assert (result["state"], result["cause"], result["code"]) == ("failed", "check", "output_missing")


async def test_a_changed_input_is_a_result(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(CONFIG + '[solver.x.success]\noutputs = ["a.x"]\n')
    async with bench.running() as running:
        intake = bench.intake("a.x")
        await running.accept([intake])
        await launched(bench, 1)
        Path(bench.backend.handles[0].spec.cwd, "a.x").write_text("solved\n")
        bench.backend.handles[0].end()
        result = await published(bench, intake.id)
    assert result["state"] == "succeeded"
    assert "output/a.x" in [f["path"] for f in result["outputs"]]


@pytest.mark.parametrize("change", [lambda file: file.write_text("INPUT\n"), Path.unlink], ids=["edited", "removed"])
async def test_a_solver_that_changes_its_inputs_has_no_result(bench: Bench, change: Callable[[Path], object]) -> None:
    async with bench.running() as running:
        intake = bench.intake("a.x")
        await running.accept([intake])
        await launched(bench, 1)
        change(bench.home.work / intake.id / "input" / "a.x")
        bench.backend.handles[0].end()
        result = await published(bench, intake.id)
    assert (result["state"], result["cause"], result["code"]) == ("failed", "check", "input_changed")
    assert "input/a.x" in result["message"]


async def test_fault_26_a_timeout_is_kept_while_the_store_cannot_write(
    make_bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that fills the disk is the one that has to be stopped."""
    bench = make_bench(CONFIG.replace("command =", 'timeout = "0.2s"\ncommand ='))
    record = bench.store.record
    full = threading.Event()

    def record_unless_full(*args: Any) -> None:
        if full.is_set():
            raise StoreUnavailable("disk full")
        record(*args)

    async with bench.running() as running:
        monkeypatch.setattr(bench.store, "record", record_unless_full)
        intake = bench.intake()
        await running.accept([intake])
        await launched(bench, 1)
        full.set()
        handle = bench.backend.handles[0]
        await eventually(lambda: handle.stops, "the stop of the job that ran out of time")
        full.clear()
        result = await published(bench, intake.id)
    assert (result["state"], result["cause"]) == ("failed", "timeout")


async def test_more_than_a_thousand_outputs_are_listed_in_a_file_of_their_own(bench: Bench) -> None:
    async with bench.running() as running:
        intake = bench.intake()
        await running.accept([intake])
        await launched(bench, 1)
        for n in range(1100):
            Path(bench.backend.handles[0].spec.cwd, f"{n:04}.out").write_text("x")
        bench.backend.handles[0].end()
        result = await published(bench, intake.id)
    assert len(result["outputs"]) == 1000
    more = bench.home.done / intake.id / "outputs.jsonl"
    assert result["more_outputs"]["size"] == more.stat().st_size
    assert len(more.read_text().splitlines()) == 1102


async def test_fault_73_an_input_that_is_changed_while_its_job_waits_has_no_result(
    make_bench: Callable[[str], Bench],
) -> None:
    """What ran is not what was hashed, whoever changed it."""
    bench = make_bench(CONFIG.replace("max_jobs = 2", "max_jobs = 1"))
    async with bench.running() as running:
        first, second = bench.intake("a.x"), bench.intake("b.x")
        await running.accept([first, second])
        await launched(bench, 1)
        (bench.home.work / second.id / "input" / "b.x").write_text("INPUT\n")
        long_ago = time.monotonic() + 0.05  # file times are that coarse
        await eventually(lambda: time.monotonic() > long_ago, "a moment")
        bench.backend.handles[0].end()
        await launched(bench, 2)
        bench.backend.handles[1].end()
        result = await published(bench, second.id)
    assert (result["state"], result["code"]) == ("failed", "input_changed")


async def test_fault_26_a_record_that_waits_is_told_until_it_is_done(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    full.set()
    record = bench.store.record

    def only_with_room(*args: Any) -> None:
        if full.is_set():
            raise StoreUnavailable("the disk is full")
        record(*args)

    monkeypatch.setattr(bench.store, "record", only_with_room)
    async with bench.running() as running, anyio.create_task_group() as tasks:
        tasks.start_soon(running.accept, [bench.intake()])
        await eventually(lambda: "store" in running.trouble, "it is told")
        await running.in_store(lambda store: store.last_id())
        await running.in_store(lambda store: store.harden())
        assert "store" in running.trouble, "what needs no room says nothing about it"
        full.clear()
        await eventually(lambda: "store" not in running.trouble, "it is over")


async def test_what_lies_too_deep_to_be_listed_makes_no_result(bench: Bench) -> None:
    async with bench.running() as running:
        deep, empty = bench.intake("a.x"), bench.intake("b.x")
        await running.accept([deep, empty])
        await launched(bench, 2)
        for handle in bench.backend.handles:
            Path(handle.spec.cwd, "d/" * DEPTH_MAX).mkdir(parents=True)
            if handle.job_id == deep.id:
                Path(handle.spec.cwd, "d/" * DEPTH_MAX, "a.frd").write_text("1")
            handle.end()
        result, other = await published(bench, deep.id), await published(bench, empty.id)
    assert (result["state"], result["cause"], result["code"]) == ("failed", "check", "outputs_deep")
    assert "too deep to be listed" in result["message"]
    assert other["state"] == "succeeded"
