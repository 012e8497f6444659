"""What people order: submissions, retries, cancels, pauses. Answered when durable, and true in the next life."""

from __future__ import annotations

import errno
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from scripted import CONFIG, Bench, launched, manifest, published, run_to_end
from solvisor import config as configuration
from solvisor import desk
from solvisor.clock import now_us
from solvisor.errors import Refused
from solvisor.hand import Hand
from solvisor.history import Filters
from solvisor.model import Request
from solvisor.orders import Stopping
from solvisor.questions import Conflict, NoSuchJob
from solvisor.spool import NotDurable, Take, Upload
from solvisor.submission import SHORT_BYTES, SHORT_STEPS
from solvisor.views import BatchRule, Submitted
from waiting import eventually


def in_work(bench: Bench) -> list[str]:
    return sorted(path.name for path in bench.home.work.iterdir())


@asynccontextmanager
async def later(act: Any) -> AsyncIterator[dict[str, Any]]:
    """``act`` under way; its answer stands in the dictionary once it is given."""
    answer: dict[str, Any] = {}

    async def run() -> None:
        answer["is"] = await act

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield answer


# --- submissions ----------------------------------------------------------------------------------------------------


async def test_a_submission_is_answered_when_it_is_durable(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    harden: Callable[[], None] = bench.store.harden

    def late() -> None:
        assert gate.wait(20)
        harden()

    async with bench.running():
        monkeypatch.setattr(bench.store, "harden", late)
        async with later(bench.send()) as answer:
            await launched(bench, 1)  # recorded is enough to start it
            assert answer == {}
            gate.set()
        assert isinstance(answer["is"], Submitted)
        assert (await bench.desk.find(answer["is"].id, None)).spec.user == "ann"


async def test_what_is_sent_beside_the_files_is_kept_as_a_job_file(bench: Bench) -> None:
    async with bench.running():
        sent = await bench.send(job={"name": "beam, fine", "priority": 7, "project": None, "timeout": "5m"})
        job = await bench.desk.find(sent.id, None)
        assert (job.spec.name, job.spec.priority, job.spec.primary, job.spec.timeout_seconds) == (
            *("beam, fine", 7),
            *("a.x", 300),
        )
        assert [fact.path for fact in job.spec.inputs] == ["input/a.x", "input/job.toml"]
        sent = await bench.send(job=b'inputs = ["a.x"]\nproject = "riser"\n')
        assert (await bench.desk.find(sent.id, None)).spec.project == "riser"


@pytest.mark.parametrize(
    ("name", "job", "batch", "code"),
    [
        ("a.unknown", None, None, "no_solver"),
        ("a.x", {"solver": "y"}, None, "solver"),
        ("a.x", {"inputs": ["b.x"]}, None, "missing_input"),
        ("a.x", {"prioritiy": 1}, None, "job_file_key"),
        ("a.x", {"priority": {"a": object}}, None, "usage"),
        ("a.x", {"name": "\ud800"}, None, "usage"),
        ("a.x", {"after": ["nobody-000000000000000"]}, None, "after"),
        ("a.x", b"\xff", None, "job_file_syntax"),
        ("a.x", b"x" * 70_000, None, "job_file_too_large"),
        ("job.toml", {"priority": 1}, None, "usage"),
        ("a.x", None, "nobody-1", "no_such_batch"),
    ],
)
async def test_what_is_refused_leaves_nothing_behind(
    bench: Bench, name: str, job: Any, batch: str | None, code: str
) -> None:
    async with bench.running():
        with pytest.raises((Refused, NoSuchJob)) as refused:
            await bench.send(name, job=job, batch=batch)
        assert getattr(refused.value, "refusal", refused.value.code) == code
        assert "drop" not in str(refused.value)
        assert in_work(bench) == []
        assert (await bench.desk.page(Filters(), None, 10)).jobs == ()
    assert bench.adopt() == []


@pytest.mark.parametrize("size", [1, SHORT_BYTES + 1], ids=["short", "long"])
@pytest.mark.parametrize("step", ["write", "finish"])
async def test_fault_26_a_full_disk_leaves_nothing_and_harms_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, step: str, size: int
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "no space")

    async with bench.running():
        with monkeypatch.context() as patched:
            patched.setattr(Upload, step, full)
            submission = bench.desk.begin("a.x")
            await submission.begin("a.x")
            with pytest.raises(OSError, match="no space"):  # noqa: PT012  whichever of the two it is
                try:
                    await submission.write(bytes(size))
                    await submission.end()
                except OSError:
                    assert (step, size > 1) == ("write", True)
                    await submission.discard()
                    raise
                await bench.desk.submit(submission, None, Request("socket"))
        assert in_work(bench) == []
        assert (await bench.send()).existing is False


async def test_what_is_short_is_one_piece_of_work_and_what_gets_long_goes_to_the_disk_as_it_comes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each hand-over costs a small submission as much as its work; and nothing large is held in memory."""
    pieces: list[str] = []
    do = Hand.do

    async def counted(hand: Hand, work: Callable[[], Any]) -> Any:
        if getattr(getattr(work, "func", None), "__name__", "") == "_carry_out":
            pieces.append(hand._name)
        return await do(hand, work)

    monkeypatch.setattr(Hand, "do", counted)
    async with bench.running():
        sent = await bench.send(job={"priority": 1})
        assert pieces == ["solvisor-uploads"]
        long = bench.desk.begin("b.x")
        await long.begin("b.x")
        for _ in range(9):
            await long.write(bytes(SHORT_BYTES // 4))
        (folder,) = set(in_work(bench)) - {sent.id}
        on_the_disk = (bench.home.work / folder / "input" / "b.x").stat().st_size
        assert 9 * (SHORT_BYTES // 4) - on_the_disk <= SHORT_BYTES
        await long.end()
        other = await bench.desk.submit(long, None, Request("socket"))
        assert (await bench.desk.find(other.id, None)).spec.inputs[0].size == 9 * (SHORT_BYTES // 4)
        many = bench.desk.begin("0.x")
        for n in range(SHORT_STEPS):
            await many.begin(f"{n}.x")
            await many.end()
        assert len(in_work(bench)) == 3
        await many.discard()
        assert sorted(in_work(bench)) == sorted([sent.id, other.id])
        assert pieces == ["solvisor-uploads"]


async def test_fault_29_a_disk_that_loses_what_was_written_ends_the_daemon(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise NotDurable(errno.EIO, "fsync failed")

    monkeypatch.setattr(Upload, "finish", broken)

    async def send_and_stay() -> None:
        async with bench.running():
            with pytest.raises(NotDurable):
                await bench.send()
            await anyio.sleep_forever()

    with pytest.raises(BaseExceptionGroup) as ended, anyio.fail_after(20):
        await send_and_stay()
    assert in_work(bench) == []
    assert ended.group_contains(NotDurable)


# --- keys -----------------------------------------------------------------------------------------------------------


async def test_the_same_key_with_the_same_files_is_the_same_job(bench: Bench) -> None:
    async with bench.running():
        first = await bench.send(key="k")
        again = await bench.send(key="k")
        assert (again.id, again.existing) == (first.id, True)
        assert in_work(bench) == [first.id]
        await run_to_end(bench, first.id)
        after_its_end = await bench.send(key="k")
        assert (after_its_end.id, after_its_end.existing) == (first.id, True)
    async with bench.running():
        assert (await bench.send(key="k")).id == first.id


@pytest.mark.parametrize(
    "other",
    [{"data": b"other"}, {"name": "b.x"}, {"job": {"priority": 1}}, {"batch": "sweep"}],
    ids=["bytes", "name", "wishes", "batch"],
)
async def test_the_same_key_with_anything_else_is_refused(bench: Bench, other: dict[str, Any]) -> None:
    async with bench.running():
        first = await bench.send(key="k")
        if "batch" in other:
            other["batch"] = (await bench.desk.open_batch(BatchRule(), None)).id
        with pytest.raises(Refused, match=f"belongs to {first.id} already; submit it with another key") as refused:
            await bench.send(key="k", **other)
        assert refused.value.refusal == "key"
        assert in_work(bench) == [first.id]


async def test_the_same_key_many_times_at_once_is_one_job(bench: Bench) -> None:
    answers: list[Submitted] = []
    async with bench.running():

        async def send() -> None:
            answers.append(await bench.send(key="k"))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(send)
        assert len({answer.id for answer in answers}) == 1
        assert sorted(answer.existing for answer in answers) == [False] + [True] * 7
        assert in_work(bench) == [answers[0].id]


async def test_a_key_of_a_refused_submission_is_free(bench: Bench) -> None:
    async with bench.running():
        with pytest.raises(Refused):
            await bench.send("a.unknown", key="k")
        assert (await bench.send(key="k")).existing is False


async def test_a_submission_that_lost_its_answer_is_found_again_by_its_key(bench: Bench) -> None:
    """The daemon died after the claim and before the row: the next one adopts it, with its key."""
    async with bench.running():
        upload = Upload(bench.home, bench.ids.new_id("a.x", now_us()))
    upload.begin("a.x")
    upload.write(b"input\n")
    upload.end()
    desk._add_job_file(["a.x"], None, upload)
    upload.finish(Take(upload.job_id, ("a.x",), folder=True, request=Request("socket", "ann", None, "k")))
    async with bench.running(adopted=bench.adopt()):
        again = await bench.send(key="k")
        assert (again.id, again.existing) == (upload.job_id, True)


# --- retries --------------------------------------------------------------------------------------------------------


async def test_a_finished_job_is_run_again_as_a_new_one(bench: Bench) -> None:
    async with bench.running():
        other = await bench.send()
        batch = await bench.desk.open_batch(BatchRule(), "ann")
        wishes = {"key": "k", "after": [other.id], "priority": 5, "project": "riser"}
        first = await bench.send(job=wishes, batch=batch.id)
        await run_to_end(bench, other.id)
        await run_to_end(bench, first.id, 3)
        again = await bench.desk.retry(await bench.desk.find(first.id, None), "bob")
        assert again.id != first.id
        await run_to_end(bench, again.id)
    result = manifest(bench, again.id)
    assert (result["retry_of"], result["user"], result["state"]) == (first.id, "bob", "succeeded")
    assert (result["key"], result["batch"], result["project"]) == (None, None, "riser")
    assert result["source"] == {"via": "retry", "path": "a.x"}
    assert result["inputs"] == manifest(bench, first.id)["inputs"]
    job = bench.history.job(again.id)
    assert job is not None
    assert (job.spec.after, job.spec.priority) == ((), 5)


async def test_a_retry_of_a_retry_and_one_in_the_next_life(bench: Bench) -> None:
    async with bench.running():
        first = await bench.send("sub.x")
        await run_to_end(bench, first.id, 3)
        second = await bench.desk.retry(await bench.desk.find(first.id, None), None)
        await run_to_end(bench, second.id, 3)
    async with bench.running():
        await bench.desk.wait_finished(second.id, 20)
        third = await bench.desk.retry(await bench.desk.find(second.id, None), None)
        await run_to_end(bench, third.id)
    result = manifest(bench, third.id)
    assert (result["retry_of"], result["name"], result["state"]) == (second.id, "sub.x", "succeeded")


async def test_a_rejected_drop_is_judged_again_by_todays_configuration(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(CONFIG)
    async with bench.running() as engine:
        intake = bench.intake("a.y", ("no_solver", "no solver accepts a.y"))
        await engine.accept([intake])
        await bench.desk.wait_finished(intake.id, 20)
        rejected = await bench.desk.find(intake.id, None)
        with pytest.raises(Refused) as refused:
            await bench.desk.retry(rejected, None)
        assert (refused.value.refusal, in_work(bench)) == ("no_solver", [])
    bench.config = configuration.parse(CONFIG.replace('"*.x"', '"*.x", "*.y"'), bench.config.path)
    async with bench.running():
        await bench.desk.wait_finished(rejected.id, 20)
        again = await bench.desk.retry(rejected, None)
        await run_to_end(bench, again.id)
        assert manifest(bench, again.id)["state"] == "succeeded"


async def test_what_is_not_finished_or_was_changed_is_not_run_again(bench: Bench) -> None:
    async with bench.running():
        sent = await bench.send()
        await launched(bench, 1)
        job = await bench.desk.find(sent.id, None)
        with pytest.raises(Conflict, match="is running; only a finished job") as conflict:
            await bench.desk.retry(job, None)
        assert conflict.value.reason == "not_finished"
        await run_to_end(bench, sent.id)
        job = await bench.desk.find(sent.id, None)
        (bench.home.done / sent.id / "input" / "a.x").write_text("changed")
        with pytest.raises(Refused, match="were changed since; submit them again") as refused:
            await bench.desk.retry(job, None)
        assert (refused.value.refusal, in_work(bench)) == ("inputs_changed", [])


# --- cancels --------------------------------------------------------------------------------------------------------


async def test_a_queued_job_is_cancelled_at_once_a_running_one_is_stopped(bench: Bench) -> None:
    async with bench.running():
        running, queued = await bench.send(), await bench.send(job={"cpus": 4})
        await launched(bench, 1)
        view = await bench.desk.cancel(await bench.desk.find(queued.id, None), "ann")
        assert view.state in ("collecting", "cancelled")
        assert (await published(bench, queued.id))["state"] == "cancelled"
        view = await bench.desk.cancel(await bench.desk.find(running.id, None), "ann")
        assert (view.id, view.cancel) == (running.id, True)
        result = await published(bench, running.id)
        assert (result["state"], bench.backend.handles[0].stops) == ("cancelled", [False])
        for job_id in (queued.id, running.id):
            await bench.desk.wait_finished(job_id, 20)
            with pytest.raises(Conflict, match=r"is finished already \(cancelled\)") as conflict:
                await bench.desk.cancel(await bench.desk.find(job_id, None), "ann")
            assert conflict.value.reason == "finished"


async def test_a_cancel_is_answered_truly_however_late_the_answer_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job may have left the world before the one who cancelled it gets a turn."""
    async with bench.running() as engine:
        sent = await bench.send(job={"cpus": 4})
        await launched(bench, 1)
        waits = await bench.send(job={"cpus": 4})
        job = await bench.desk.find(waits.id, None)
        carry_out = engine.carry_out

        async def slowly(act: Any) -> None:
            await carry_out(act)
            await eventually(lambda: waits.id not in engine.world.jobs, "out of the world")

        monkeypatch.setattr(engine, "carry_out", slowly)
        view = await bench.desk.cancel(job, None)
        assert (view.state, view.folder) == ("cancelled", f"failed/{waits.id}")
        assert sent.id in engine.world.jobs


async def test_a_job_whose_results_are_collected_can_be_cancelled(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running() as engine:
        gate = anyio.Event()
        collect = engine._collecting.collector.collect

        async def late(batch: Any) -> Any:
            await gate.wait()
            return await collect(batch)

        monkeypatch.setattr(engine._collecting.collector, "collect", late)
        sent = await bench.send()
        await launched(bench, 1)
        bench.backend.handles[0].end()
        await eventually(lambda: engine.world.jobs[sent.id].state == "collecting", "collecting")
        assert (await bench.desk.cancel(await bench.desk.find(sent.id, None), None)).state == "collecting"
        gate.set()
        assert (await published(bench, sent.id))["state"] == "cancelled"


# --- pauses ---------------------------------------------------------------------------------------------------------


async def test_a_pause_holds_its_solver_back_in_the_next_life_too(bench: Bench) -> None:
    async with bench.running():
        status = await bench.desk.pause("x", "licenses are moved", "ann")
        assert [(p.solver, p.by, p.note) for p in status.paused] == [("x", "ann", "licenses are moved")]
        sent = await bench.send()
        assert [(w.reason, w.what, w.jobs) for w in bench.desk.status().waiting_for] == [("paused", "x", 1)]
        assert (
            await bench.desk.explain(await bench.desk.find(sent.id, None))
        ).headline == "waits because it was paused."
    async with bench.running():
        await bench.desk.pause(None, None, None)
        assert [pause.solver for pause in bench.desk.status().paused] == [None, "x"]
        assert (await bench.desk.resume(None, "ann")).paused[0].solver == "x"
        assert bench.backend.handles == []
        assert (await bench.desk.resume("x", "ann")).paused == ()
        await launched(bench, 1)
    assert bench.store.pauses() == []


async def test_a_pause_that_is_not_there_cannot_be_taken_back(bench: Bench) -> None:
    async with bench.running():
        with pytest.raises(Refused, match="there is no solver 'y'; there are: x"):
            await bench.desk.pause("y", None, None)
        with pytest.raises(Conflict, match="x is not paused; paused: nothing") as conflict:
            await bench.desk.resume("x", None)
        assert conflict.value.reason == "not_paused"
        await bench.desk.pause(None, None, None)
        with pytest.raises(Conflict, match="x is not paused; paused: everything"):
            await bench.desk.resume("x", None)
        assert [pause.solver for pause in bench.desk.status().paused] == [None]


# --- stopping -------------------------------------------------------------------------------------------------------


async def test_a_daemon_that_stops_takes_nothing_in(bench: Bench) -> None:
    async with bench.running() as engine:
        held = await bench.send()
        await launched(bench, 1)
        bench.backend.handles[0].obedient = False
        engine.drain()
        submission = bench.desk.begin("a.x")
        await submission.begin("a.x")
        orders: list[Callable[[], Any]] = [
            bench.send,
            lambda: bench.desk.submit(submission, None, Request("socket")),
            lambda: bench.desk.open_batch(BatchRule(), None),
        ]
        for order in orders:
            with pytest.raises(Stopping) as stopping:
                await order()
            assert (stopping.value.code, stopping.value.exit_status) == ("unavailable", 75)
        assert bench.desk.status().health == "stopping"
        assert in_work(bench) == [held.id]
        bench.backend.handles[0].end()
        with anyio.fail_after(20):
            await bench.stopped.wait()
        assert (await published(bench, held.id))["state"] == "succeeded"


async def test_orders_and_questions_that_wait_when_the_daemon_ends_are_answered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running() as engine:
        sent = await bench.send()
        await launched(bench, 1)
        job = await bench.desk.find(sent.id, None)
        harden, entered, gate = bench.store.harden, threading.Event(), threading.Event()

        def late() -> None:
            entered.set()
            assert gate.wait(20)
            harden()

        with anyio.fail_after(30):
            async with later(bench.desk.wait_finished(sent.id, 999)):
                monkeypatch.setattr(bench.store, "harden", late)
                engine.stop_now()
                await eventually(entered.is_set, "the last commit")
                errors: list[BaseException] = []

                async def order() -> None:
                    try:
                        await bench.desk.cancel(job, None)
                    except Stopping as error:
                        errors.append(error)

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(order)
                    await anyio.wait_all_tasks_blocked()
                    gate.set()
            assert len(errors) == 1
            await bench.stopped.wait()
            with pytest.raises(Stopping):
                await bench.desk.pause("x", None, None)
    assert in_work(bench) == [sent.id]
