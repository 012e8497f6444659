"""Defects and survivors that strike more than one job at once: they end those jobs at most, and never the daemon."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable

import pytest

from scripted import CONFIG, Bench, launched, published
from solvisor import engine as module
from solvisor.engine import Engine
from solvisor.events import Dispatch
from solvisor.model import Cause, Job
from solvisor.views import BatchRule
from waiting import eventually


async def test_jobs_that_wait_start_beside_what_would_not_die(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SURVIVORS_SECONDS", 0.01)
    async with bench.running() as engine:
        stuck = bench.intake("stuck.x")
        await engine.accept([stuck])
        await launched(bench, 1)
        token = bench.backend.handles[0].spec.token.split("/")[1]
        others = [bench.intake(f"{n}.x") for n in range(3)]
        await engine.accept(others)
    bench.survivors = {token}
    async with bench.running(alive=[token]) as engine:
        await launched(bench, 1)
        assert engine._world.jobs[stuck.id].cause is Cause.UNKILLABLE
        bench.backend.handles[0].end()
        first = next(other.id for other in others if other.id == bench.backend.handles[0].job_id)
        assert (await published(bench, first))["state"] == "succeeded"
        assert engine._world.jobs[stuck.id].cause is Cause.UNKILLABLE, "its room stays taken"
        bench.survivors = set()
        assert (await published(bench, stuck.id))["cause"] == "unkillable"


async def test_fault_68_rows_of_a_batch_that_stops_at_a_failure_are_set_aside_or_skipped(bench: Bench) -> None:
    async with bench.running():
        batch = (await bench.desk.open_batch(BatchRule(on_error="fail", max_jobs=1), "ann")).id
        running = (await bench.send(batch=batch)).id
        await launched(bench, 1)
        torn = [(await bench.send(batch=batch)).id for _ in range(3)]
    with contextlib.closing(sqlite3.connect(bench.home.db)) as database:
        for job_id in torn:
            database.execute("UPDATE jobs SET spec = ? WHERE id = ?", (b'{"name": 1\xff', job_id))
        database.commit()
    async with bench.running():
        results = [await published(bench, job_id) for job_id in torn]
        assert {(r["state"], r["code"]) for r in results} <= {("failed", "row"), ("skipped", "batch")}
        assert results[0]["code"] == "row"
        assert (await published(bench, running))["state"] == "skipped", "it was interrupted, and its batch has stopped"


async def test_a_defect_at_the_start_of_one_job_may_stop_its_batch(
    make_bench: Callable[[str], Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(CONFIG)
    dispatch = Engine._dispatch
    strikes: list[str] = []

    def struck(self: Engine, job: Job) -> Dispatch:
        if job.spec.batch is not None:
            strikes.append(job.id)
            raise ZeroDivisionError("a defect")
        return dispatch(self, job)

    monkeypatch.setattr(Engine, "_dispatch", struck)
    async with bench.running() as engine:
        await bench.desk.pause(None, None, "ann")
        batch = (await bench.desk.open_batch(BatchRule(on_error="fail"), "ann")).id
        members = [(await bench.send(batch=batch)).id for _ in range(2)]
        alone = bench.intake()
        await engine.accept([alone])
        await bench.desk.resume(None, "ann")
        results = [await published(bench, member) for member in members]
        assert [(r["state"], r["code"]) for r in results] == [("failed", "defect"), ("skipped", "batch")]
        assert strikes == members[:1]
        await eventually(lambda: bench.backend.handles, "the other job starts")
        bench.backend.handles[0].end()
        assert (await published(bench, alone.id))["state"] == "succeeded"
