"""What people ask, answered from memory while the disk hangs, and from rows for what is past."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from scripted import Bench, finish, launched, run_to_end
from solvisor import desk as module
from solvisor.clock import now_us
from solvisor.disk import Disk
from solvisor.errors import Refused
from solvisor.history import Filters, History, Page
from solvisor.model import Job, State
from solvisor.questions import AmbiguousJob, Conflict, NoSuchJob
from solvisor.spool import Publication
from waiting import eventually

EVERYTHING = Filters()


@contextmanager
def hanging(bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str) -> Iterator[threading.Event]:
    """A store in which ``method`` hangs until the end; the event says that it does."""
    entered, gate = threading.Event(), threading.Event()
    real: Callable[..., Any] = getattr(bench.store, method)

    def hang(*args: Any) -> Any:
        entered.set()
        assert gate.wait(30)
        return real(*args)

    monkeypatch.setattr(bench.store, method, hang)
    try:
        yield entered
    finally:
        gate.set()


# --- the disk hangs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["record", "harden"])
async def test_fault_33_questions_are_answered_while_the_store_hangs(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    async with bench.running(), anyio.create_task_group() as tasks:
        (done,) = await finish(bench, 1)
        running = (await bench.send(job={"cpus": 4})).id
        await launched(bench, 2)
        queued = (await bench.send(job={"cpus": 4})).id
        with hanging(bench, monkeypatch, method) as entered:
            tasks.start_soon(bench.send)
            await eventually(entered.is_set, "the store hangs")
            with anyio.fail_after(10):
                status = bench.desk.status()
                assert (status.health, status.running) == ("healthy", 1)
                assert [row.id for row in status.running_jobs] == [running]
                assert [(w.reason, w.jobs) for w in status.waiting_for][:1] == [("cpus", status.waiting)]
                assert {row.id for row in (await bench.desk.page(EVERYTHING, None, 9)).jobs} >= {done, running, queued}
                for job_id, state in ((done, "succeeded"), (running, "running"), (queued, "queued")):
                    assert (await bench.desk.view(await bench.desk.find(job_id[:-1], None))).state == state
                found = await bench.desk.explain(await bench.desk.find(queued, None))
                assert found.headline == "waits for cores. Nothing is wrong."


# --- status ---------------------------------------------------------------------------------------------------------


async def test_status_tells_what_the_daemon_is_doing(bench: Bench) -> None:
    async with bench.running() as engine:
        (failed,) = await finish(bench, 1, exit_code=3)
        running = await bench.send()
        await launched(bench, 2)
        await bench.send(job={"cpus": 4})
        assert bench.desk.status().disk_free_bytes is None, "nobody looked yet"
        engine.see_disk(Disk(1 << 40, 1 << 39, 1 << 30))
        status = bench.desk.status()
        assert (status.disk_free_bytes, status.disk_reserve_bytes) == (1 << 39, 1 << 30)
        assert (status.host, status.home, status.health, status.problems) == (
            *("ws04", str(bench.home.root)),
            *("healthy", ()),
        )
        assert (status.running, status.waiting, status.collecting) == (1, 1, 0)
        assert (status.jobs.used, status.jobs.total, status.cpus.used, status.cpus.total) == (1, 2, 1, 4)
        assert [(row.id, row.state) for row in status.running_jobs] == [(running.id, "running")]
        assert [(row.id, row.state, row.code) for row in status.last_failed] == [(failed, "failed", "exit_3")]
        assert status.solvers == ("x",)
        engine.trouble["store"] = "nothing can be recorded: disk full"
        assert (bench.desk.status().health, bench.desk.status().problems) == (
            "degraded",
            ("nothing can be recorded: disk full",),
        )


async def test_a_failure_is_told_once_its_result_lies_in_its_place(bench: Bench) -> None:
    """Between that moment and the next pass the job is both, and shown as one that is still collected."""
    seen = []
    async with bench.running() as engine:

        def look(job: Job) -> None:
            bench.desk.published(job)
            seen.append(bench.desk.status())

        engine._published = look
        (failed,) = await finish(bench, 1, exit_code=3)
        assert [row.id for row in bench.desk.status().last_failed] == [failed]
    (status,) = seen
    assert (status.collecting, status.last_failed) == (1, ())


async def test_counts_and_failures_of_the_last_day_go_on_in_the_next_life(bench: Bench) -> None:
    async with bench.running():
        await finish(bench, 2)
        failed = await finish(bench, 7, exit_code=3)
        ended = bench.desk.status().last_day
        assert (ended.succeeded, ended.failed, ended.rejected) == (2, 7, 0)
    for _ in range(2):  # whatever of it was not marked as published before the kill is not counted twice
        async with bench.running() as engine:
            await eventually(lambda: not engine.world.jobs, "all is published")
            status = bench.desk.status()
            assert (status.last_day.succeeded, status.last_day.failed) == (2, 7)
            assert sorted(row.id for row in status.last_failed) == sorted(failed[-5:])


async def test_how_long_a_job_usually_runs_is_known_in_the_next_life_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solvisor.usual.SHORTEST", 0.0)
    async with bench.running():
        first = await bench.send()
        await launched(bench, 1)
        assert bench.desk.status().running_jobs[0].usual_seconds is None, "there is no evidence"
        await run_to_end(bench, first.id)
        second = await bench.send()
        await launched(bench, 2)
        (row,) = bench.desk.status().running_jobs
        ran = (await bench.desk.view(await bench.desk.find(first.id, None))).run_seconds
        assert row.usual_seconds == ran
        row, old = (await bench.desk.page(Filters(), None, 2)).jobs
        assert (row.id, row.usual_seconds) == (second.id, ran)
        assert old.usual_seconds is None, "of a job that is over it is nothing"
        assert (await bench.desk.view(await bench.desk.find(second.id, None))).usual_seconds == ran
        await run_to_end(bench, second.id, exit_code=3)
    async with bench.running():
        await bench.send()
        await launched(bench, 1)
        assert bench.desk.status().running_jobs[0].usual_seconds == ran


async def test_what_ended_a_day_ago_is_told_no_more(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running():
        (failed,) = await finish(bench, 1, exit_code=3)
        for hours, told in ((23, [failed]), (25, [])):
            later = now_us() + hours * 3600 * 1_000_000
            monkeypatch.setattr(module, "now_us", lambda later=later: later)
            status = bench.desk.status()
            assert status.last_day.failed == len(told)
            assert [row.id for row in status.last_failed] == told


# --- finding --------------------------------------------------------------------------------------------------------


async def test_a_job_is_found_by_its_id_a_prefix_or_last(bench: Bench) -> None:
    async with bench.running():
        with pytest.raises(NoSuchJob, match="there is no job yet"):
            await bench.desk.find("last", "ann")
        beam = (await bench.send("beam.x")).id
        riser = (await bench.send("riser.x", user="bob")).id
        found = {name: (await bench.desk.find(name, "ann")).id for name in (beam, beam[:-1], "be", "r", "last")}
        assert found == {beam: beam, beam[:-1]: beam, "be": beam, "r": riser, "last": beam}
        assert (await bench.desk.find("last", "bob")).id == (await bench.desk.find("last", "eve")).id == riser
        await run_to_end(bench, beam)
        assert (await bench.desk.find("be", None)).state == "succeeded"


async def test_an_id_that_is_the_beginning_of_another_is_no_riddle(bench: Bench) -> None:
    """Ids have one length, but nothing else here depends on it."""
    async with bench.running() as engine:
        intake = bench.intake()
        longer = replace(intake, id=f"{intake.id}x")
        (bench.home.work / intake.id).rename(bench.home.work / longer.id)
        await engine.accept([longer])
        await engine.accept([intake := bench.intake()])
        assert (await bench.desk.find(intake.id, None)).id == intake.id


async def test_what_could_be_several_jobs_names_them_the_newest_first(bench: Bench) -> None:
    async with bench.running():
        ids = [(await bench.send("beam.x")).id for _ in range(7)]
        with pytest.raises(AmbiguousJob) as ambiguous:
            await bench.desk.find("beam-", None)
        assert ambiguous.value.candidates == tuple(reversed(ids[1:]))
        assert str(ambiguous.value).endswith(f"{ids[2]}, ...; give more of the id")


@pytest.mark.parametrize(
    "name", ["nobody", "", "%", "BEAM", "beam-\0", "ä", "../beam", "a" * 5000, "\x7f", "\u202ebeam"]
)
async def test_a_name_that_no_job_has_is_said_to_be_one(bench: Bench, name: str) -> None:
    async with bench.running():
        await bench.send("beam.x")
        with pytest.raises(NoSuchJob) as unknown:
            await bench.desk.find(name, None)
        assert str(unknown.value).isprintable()


async def test_views_of_the_past_hold_its_checks_while_they_can_be_read(bench: Bench) -> None:
    async with bench.running():
        (job_id,) = await finish(bench, 1, exit_code=3)
        job = await bench.desk.find(job_id, None)
        view = await bench.desk.view(job)
        assert [(check.check, check.ok) for check in view.checks] == [("exit", False)]
        assert (view.folder, view.tries_max, view.command[0]) == (f"failed/{job_id}", 1, "/bin/true")
        assert (await bench.desk.explain(job)).checks == view.checks
        (bench.home.failed / job_id / "manifest.json").write_text("{")
        assert (await bench.desk.view(job)).checks == ()
        (bench.home.failed / job_id / "manifest.json").unlink()
        assert (await bench.desk.view(job)).state == "failed"


async def test_a_result_is_waited_for_and_not_longer_than_asked(bench: Bench) -> None:
    async with bench.running():
        job_id = (await bench.send()).id
        job = await bench.desk.find(job_id, None)
        with pytest.raises(Conflict, match="is running; it has no result yet"):
            await bench.desk.must_be_published(job)
        await bench.desk.wait_finished(job_id, 0.01)
        assert (await bench.desk.find(job_id, None)).state == "running"
        await run_to_end(bench, job_id)
        assert (bench.home.done / job_id / "manifest.json").exists()
        await bench.desk.must_be_published(await bench.desk.find(job_id, None))
        with anyio.fail_after(10):
            await bench.desk.wait_finished(job_id, 99)
            await bench.desk.wait_finished("nobody", 99)


async def test_a_result_on_its_way_to_its_place_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    publish, gate = bench.results.publish, threading.Event()

    def held(batch: Sequence[Publication]) -> tuple[list[str], dict[str, OSError]]:
        assert gate.wait(30)
        return publish(batch)

    monkeypatch.setattr(bench.results, "publish", held)
    async with bench.running() as engine:
        job_id = (await bench.send()).id
        await launched(bench, 1)
        bench.backend.handles[0].end(0)
        await eventually(lambda: engine.world.jobs[job_id].state == "succeeded", "it is judged")
        job = await bench.desk.find(job_id, None)
        assert (await bench.desk.view(job)).state == "collecting"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bench.desk.must_be_published, job)
            tasks.start_soon(bench.desk.retry, job, None)
            await anyio.wait_all_tasks_blocked()
            gate.set()
        assert job_id not in engine.world.jobs


async def test_what_would_not_die_is_not_waited_for(bench: Bench) -> None:
    async with bench.running() as engine:
        job_id = (await bench.send()).id
        await launched(bench, 1)
        bench.backend.handles[0].refuse_to_die()
        with anyio.fail_after(20):
            await bench.desk.wait_finished(job_id, 99)
        assert job_id in engine.world.jobs
        assert (await bench.desk.view(await bench.desk.find(job_id, None))).cause == "unkillable"
        status = bench.desk.status()
        assert (status.running, status.collecting, status.waiting) == (0, 0, 0)


# --- pages ----------------------------------------------------------------------------------------------------------


async def test_pages_lose_and_repeat_nothing_while_jobs_come_in(bench: Bench) -> None:
    async with bench.running():
        await bench.desk.pause(None, None, None)
        old = [(await bench.send()).id for _ in range(7)]
        seen: list[str] = []
        cursor: str | None = None
        while True:
            page = await bench.desk.page(EVERYTHING, cursor, 3)
            seen += [row.id for row in page.jobs]
            await bench.send()
            cursor = page.next
            if cursor is None:
                break
        assert seen == old[::-1]
        assert (await bench.desk.page(EVERYTHING, None, 0)).next is not None
        for odd in ("x", "-1", "1.5", "", "1e3", "9" * 16, "\u0663"):
            with pytest.raises(Refused, match="is no cursor") as refused:
                await bench.desk.page(EVERYTHING, odd, 3)
            assert refused.value.refusal == "usage"


async def test_a_page_filters_by_the_states_that_it_shows(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench.running() as engine:
        await finish(bench, 3)
        job_id = (await bench.send()).id
        await launched(bench, 4)

        async def shown(*states: State) -> list[tuple[str, str]]:
            return [(r.id, r.state.value) for r in (await bench.desk.page(Filters(states=states), None, 2)).jobs]

        assert await shown(State.RUNNING) == [(job_id, "running")]
        monkeypatch.setattr(engine._publisher, "add", lambda publication: None)
        bench.backend.handles[-1].end(3)
        await eventually(lambda: engine.world.jobs[job_id].state == "failed", "its end")
        await eventually(lambda: not engine.world.is_changed(), "its end is recorded")
        assert await shown(State.FAILED) == []
        assert await shown(State.COLLECTING, State.QUEUED) == [(job_id, "collecting")]
        assert len(await shown(State.SUCCEEDED)) == 2


async def test_a_job_that_is_published_while_it_is_looked_up_is_shown_as_finished(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, gate = threading.Event(), threading.Event()
    page = History.page

    def slow(*args: Any) -> Page:
        found = page(*args)
        read.set()
        assert gate.wait(30)
        return found

    shown: list[str] = []

    async def ask() -> None:
        found = await bench.desk.page(EVERYTHING, None, 10)
        shown.extend(job.state for job in found.jobs)

    async with bench.running(), anyio.create_task_group() as tasks:
        sent = await bench.send()
        await launched(bench, 1)
        stale = await bench.desk.find(sent.id, None)
        monkeypatch.setattr(History, "page", slow)
        tasks.start_soon(ask)
        await eventually(read.is_set, "the rows were read while it ran")
        await run_to_end(bench, sent.id)
        gate.set()
        assert (await bench.desk.view(stale)).state == "succeeded"
    assert shown == ["succeeded"]
