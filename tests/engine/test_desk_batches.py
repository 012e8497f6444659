"""Batches: jobs with one limit, one rule for failures and one end; cancelled as one, told as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from scripted import CONFIG, Bench, finish, launched, manifest, published, run_to_end
from solvisor import engine
from solvisor.errors import Refused
from solvisor.model import State
from solvisor.questions import Conflict, NoSuchJob
from solvisor.spool import Upload
from solvisor.views import BatchRule, BatchView
from waiting import eventually


@asynccontextmanager
async def batch(bench: Bench, **rule: Any) -> AsyncIterator[str]:
    async with bench.running():
        yield (await bench.desk.open_batch(BatchRule(**rule), "ann")).id


def states(view: BatchView) -> dict[str, int]:
    return {state.value: count for state in State if (count := getattr(view, state.value))}


async def test_a_batch_runs_at_most_so_many_and_is_over_with_its_last_job(bench: Bench) -> None:
    async with batch(bench, name="sweep", max_jobs=1) as batch_id:
        assert batch_id.startswith("sweep-")
        ids = [(await bench.send(batch=batch_id)).id for _ in range(3)]
        await launched(bench, 1)
        view = await bench.desk.batch(batch_id)
        assert (view.name, view.user, view.max_jobs, states(view)) == ("sweep", "ann", 1, {"queued": 2, "running": 1})
        found = await bench.desk.explain(await bench.desk.find(ids[1], None))
        assert found.headline == "waits for a free place. Nothing is wrong."
        await run_to_end(bench, ids[0])
        await run_to_end(bench, ids[1], 3)
        view = await bench.desk.close_batch(batch_id)
        assert (view.closed, view.over) == (True, False)
        assert states(view)["succeeded"] == states(view)["failed"] == 1
        await run_to_end(bench, ids[2])
        view = await bench.desk.batch(batch_id)
        assert (view.over, states(view)) == (True, {"succeeded": 2, "failed": 1})
        assert bench.over == [batch_id]
        assert manifest(bench, ids[0])["batch"] == batch_id


async def test_a_batch_that_stops_at_a_failure_skips_the_rest(bench: Bench) -> None:
    async with batch(bench, on_error="fail", max_jobs=2) as batch_id:
        ids = [(await bench.send(batch=batch_id)).id for _ in range(4)]
        await launched(bench, 2)
        await run_to_end(bench, ids[0], 3)
        late = await bench.send(batch=batch_id)
        view = await bench.desk.batch(batch_id)
        assert view.stopped is not None
        assert ids[0] in view.stopped
        await run_to_end(bench, ids[1])
        for job_id in (ids[2], ids[3], late.id):
            result = await published(bench, job_id)
            assert (result["state"], result["code"]) == ("skipped", "batch")
        await bench.desk.wait_finished(late.id, 20)
        assert states(await bench.desk.batch(batch_id)) == {"failed": 1, "succeeded": 1, "skipped": 3}


async def test_a_job_on_its_way_to_its_place_is_counted_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with batch(bench) as batch_id:
        waits: list[Any] = []
        publish = bench.engine._publisher.add
        monkeypatch.setattr(bench.engine._publisher, "add", waits.append)
        job_id = (await bench.send(batch=batch_id)).id
        await launched(bench, 1)
        bench.backend.handles[0].end()
        await eventually(lambda: waits, "the result is durable")
        assert states(await bench.desk.batch(batch_id)) == {"collecting": 1}
        publish(*waits)
        await bench.desk.wait_finished(job_id, 20)
        assert states(await bench.desk.batch(batch_id)) == {"succeeded": 1}


@pytest.mark.parametrize("running", [False, True])
async def test_a_batch_is_cancelled_with_or_without_what_runs(bench: Bench, running: bool) -> None:
    async with batch(bench) as batch_id:
        stranger = await bench.send(job={"priority": -5})
        await launched(bench, 1)
        ids = [(await bench.send(batch=batch_id, job={"cpus": 3})).id for _ in range(3)]
        await launched(bench, 2)
        view = await bench.desk.cancel_batch(batch_id, "ann", running=running)
        assert (view.stopped, view.queued) == ("its batch was cancelled", 0)
        assert (await published(bench, ids[1]))["state"] == "cancelled"
        if not running:
            assert bench.backend.handles[1].stops == []
            bench.backend.handles[1].end()
        assert (await published(bench, ids[0]))["state"] == ("cancelled" if running else "succeeded")
        await bench.desk.close_batch(batch_id)
        await eventually(lambda: bench.over, "the batch is over")
        assert bench.backend.handles[0].stops == []
        assert (await bench.desk.find(stranger.id, None)).state == "running"


async def test_nothing_of_a_cancelled_batch_is_started_again(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(CONFIG + '[solver.x.retry]\nmax = 3\non = ["exit"]\ndelay = "0s"\n')
    async with batch(bench) as batch_id:
        job_id = (await bench.send(batch=batch_id)).id
        await launched(bench, 1)
        await bench.desk.cancel_batch(batch_id, None, running=False)
        bench.backend.handles[0].end(3)
        result = await published(bench, job_id)
        assert (result["state"], len(result["attempts"])) == ("failed", 1)


async def test_orders_to_a_batch_that_is_over_change_nothing(bench: Bench) -> None:
    async with batch(bench) as batch_id:
        await finish(bench, 1, batch=batch_id)
        await bench.desk.close_batch(batch_id)
        orders: list[Callable[[], Awaitable[BatchView]]] = [
            lambda: bench.desk.close_batch(batch_id),
            lambda: bench.desk.cancel_batch(batch_id, None, running=True),
        ]
        for order in orders:
            view = await order()
            assert (view.over, view.stopped, states(view)) == (True, None, {"succeeded": 1})
        assert bench.over == [batch_id]
        with pytest.raises(Conflict, match="is closed; open another one") as conflict:
            await bench.send(batch=batch_id)
        assert conflict.value.reason == "batch_closed"


async def test_a_batch_that_is_closed_while_a_submission_comes_in_takes_it_no_more(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with batch(bench) as batch_id:
        finish_upload, loop = Upload.finish, anyio.lowlevel.current_token()

        def late(*args: Any, **more: Any) -> Any:
            taken = finish_upload(*args, **more)
            anyio.from_thread.run(bench.desk.close_batch, batch_id, token=loop)
            return taken

        monkeypatch.setattr(Upload, "finish", late)
        with pytest.raises(Refused) as refused:
            await bench.send(batch=batch_id)
        assert (refused.value.refusal, list(bench.home.work.iterdir())) == ("batch_closed", [])
        assert bench.over == [batch_id]


@pytest.mark.parametrize("rule", [{"max_jobs": 0}, {"max_jobs": -1}, {"max_jobs": 10**30}, {"name": "n" * 501}])
async def test_a_rule_that_cannot_be_kept_is_refused_and_harms_nobody(bench: Bench, rule: dict[str, Any]) -> None:
    async with bench.running():
        with pytest.raises(Refused) as refused:
            await bench.desk.open_batch(BatchRule(**rule), None)
        assert refused.value.refusal == "usage"
        await bench.send()


async def test_unknown_batches_are_said_to_be_unknown(bench: Bench) -> None:
    async with bench.running():
        orders: list[Callable[[], Awaitable[BatchView]]] = [
            lambda: bench.desk.batch("none"),
            lambda: bench.desk.close_batch("none"),
            lambda: bench.desk.cancel_batch("none", None, running=True),
        ]
        for order in orders:
            with pytest.raises(NoSuchJob, match="there is no batch 'none'"):
                await order()


async def test_a_batch_lives_on_in_the_next_life(bench: Bench) -> None:
    async with batch(bench, on_error="fail", max_jobs=1) as batch_id:
        done, running, queued = [(await bench.send(batch=batch_id)).id for _ in range(3)]
        await run_to_end(bench, done)
        await launched(bench, 2)
    async with bench.running() as engine:
        await launched(bench, 1)
        await eventually(lambda: done not in engine.world.jobs, "its result is marked as published, if it was not")
        view = await bench.desk.batch(batch_id)
        assert states(view) == {"succeeded": 1, "running": 1, "queued": 1}
        await bench.send(batch=batch_id)
        await bench.desk.close_batch(batch_id)
        await run_to_end(bench, running, 3)
        await bench.desk.wait_finished(queued, 20)
        await eventually(lambda: bench.over == [batch_id], "the batch is over")
        assert states(await bench.desk.batch(batch_id)) == {"succeeded": 1, "failed": 1, "skipped": 2}
    async with bench.running() as engine:
        await eventually(lambda: not engine.world.jobs, "what was not marked as published is published again")
        assert (await bench.desk.batch(batch_id)).over
        stored = bench.history.batch(batch_id)
        assert stored is not None
        finished = await bench.desk.finished_of_batch(stored)
        assert finished == Counter({State.SUCCEEDED: 1, State.FAILED: 1, State.SKIPPED: 2})


async def test_an_empty_batch_of_the_last_life_can_be_closed(bench: Bench) -> None:
    async with batch(bench) as batch_id:
        pass
    async with bench.running():
        assert (await bench.desk.batch(batch_id)).over is False
        assert (await bench.desk.close_batch(batch_id)).over is True
    assert bench.over == [batch_id]


async def test_a_question_for_a_batch_waits_for_the_next_end_though_jobs_come_in(bench: Bench) -> None:
    async with batch(bench) as batch_id:
        first, second = [(await bench.send(batch=batch_id)).id for _ in range(2)]
        answers: list[BatchView] = []

        async def ask() -> None:
            answers.append(await bench.desk.batch(batch_id, 99))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await anyio.wait_all_tasks_blocked()
            await bench.send(batch=batch_id)
            assert answers == []
            await run_to_end(bench, first)
        assert states(answers[0])["succeeded"] == 1
        assert states(await bench.desk.batch(batch_id, 0.01))["succeeded"] == 1
        await run_to_end(bench, second)


async def test_a_batch_that_is_over_is_never_told_without_its_last_job(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last job leaves between the two looks, at the rows and at the world."""
    async with batch(bench) as batch_id:
        job_id = (await bench.send(batch=batch_id)).id
        await bench.desk.close_batch(batch_id)
        await launched(bench, 1)
        read = bench.history.finished_of_batch
        looks = 0

        def late(asked: str) -> Any:
            nonlocal looks
            looks += 1
            answer = read(asked)
            if looks == 1:
                anyio.from_thread.run(run_to_end, bench, job_id)
            return answer

        monkeypatch.setattr(bench.history, "finished_of_batch", late)
        view = await bench.desk.batch(batch_id)
        assert (view.over, states(view), looks) == (True, {"succeeded": 1}, 2)


async def test_others_look_at_the_world_while_one_event_ends_many_jobs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of 100,000 that stops takes seconds; no answer waits for that."""
    monkeypatch.setattr(engine, "STEPS_AT_ONCE", 2)
    seen: set[int] = set()
    async with batch(bench, on_error="fail", max_jobs=1) as batch_id, anyio.create_task_group() as looking:
        ids = [(await bench.send(batch=batch_id)).id for _ in range(7)]

        async def look() -> None:
            while True:
                seen.add(bench.engine.world.states[State.SKIPPED])
                await anyio.lowlevel.checkpoint()

        looking.start_soon(look)
        await launched(bench, 1)
        bench.backend.handles[0].end(3)
        for job_id in ids:
            await published(bench, job_id)
        looking.cancel_scope.cancel()
    assert seen & set(range(1, 6)), "nobody could look before all of them were skipped"
