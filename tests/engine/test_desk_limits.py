"""Limits that people set and jobs that they move in the order: in force at once, durable, and true in the next life."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from scripted import CONFIG, Bench, launched, run_to_end
from scripted_servers import CONFIG as SERVERS
from scripted_servers import ScriptedKind
from solvisor.clock import now_us
from solvisor.errors import Refused
from solvisor.model import State
from solvisor.questions import Conflict
from solvisor.scheduler import explain
from solvisor.views import Level, Limit
from waiting import eventually

LICENSED = CONFIG.replace("max_jobs = 2", "max_jobs = 4").replace(
    "[solver.x]", "[licenses]\nlic = 2\n[solver.x]\nlicenses = { lic = 1 }"
)


def limit(bench: Bench, name: str) -> Limit:
    return next(limit for limit in bench.desk.limits().limits if limit.name == name)


def queued(bench: Bench) -> list[str]:
    return sorted(job.id for job in bench.engine.world.jobs.values() if job.state is State.QUEUED)


def why(bench: Bench, job_id: str) -> str:
    return explain(bench.engine.world, bench.engine.limits, job_id, time.monotonic(), now_us())[0].text


async def read_again(bench: Bench, text: str) -> None:
    bench.config.path.write_text(text)
    before = bench.engine.config
    bench.reload.ask()
    await eventually(lambda: bench.reload.setup.config is bench.engine.config is not before, "it was read")
    bench.engine.world.sanity_check()


# --- limits ---------------------------------------------------------------------------------------------------------


async def test_a_lower_limit_ends_nothing_and_a_higher_one_starts_at_once(bench: Bench) -> None:
    async with bench.running():
        ids = [(await bench.send()).id for _ in range(4)]
        await launched(bench, 2)
        with capture_logs() as logs:
            told = await bench.desk.limit("max_jobs", 1, "a demo", "ann")
        assert told == bench.desk.limits()
        said = {"event": "limit.set", "limit": "max_jobs", "before": 2, "value": 1, "by": "ann", "note": "a demo"}
        assert logs[0] == said | {"log_level": "info"}
        found = limit(bench, "max_jobs")
        assert (found.used, found.value, found.configured, found.by, found.note) == (2, 1, 2, "ann", "a demo")
        assert bench.desk.status().limits_set == (found,)
        assert bench.desk.status().jobs == Level(2, 1)
        assert why(bench, ids[2]).startswith("2 of at most 1 jobs are running (limited to 1 by ann since 2")
        assert [handle.stops for handle in bench.backend.handles] == [[], []]
        await run_to_end(bench, ids[0])
        assert len(bench.backend.handles) == 2, "one still runs"
        await bench.desk.limit("max_jobs", 3, None, "bob")
        assert queued(bench) == [], "both have started in the pass in which the limit was raised"
        await launched(bench, 4)
        await bench.desk.limit("max_jobs", None, None, "bob")
        assert (limit(bench, "max_jobs").value, bench.desk.status().limits_set) == (2, ())


async def test_it_holds_in_the_next_life_before_anything_starts(bench: Bench) -> None:
    async with bench.running():
        await bench.desk.pause(None, None, None)
        for _ in range(3):
            await bench.send()
        await bench.desk.limit("max_jobs", 1, "for good", "ann")
        await bench.desk.limit("cpus", 3, None, None)
        before = bench.desk.status().limits_set
        assert [(each.name, each.value, each.by, each.note) for each in before] == [
            ("max_jobs", 1, "ann", "for good"),
            ("cpus", 3, None, None),
        ]
        await bench.desk.resume(None, None)
        await launched(bench, 1)
    async with bench.running():
        await launched(bench, 1)
        assert [replace(each, used=0) for each in bench.desk.status().limits_set] == list(before)
        assert (len(queued(bench)), len(bench.backend.handles)) == (2, 1)
        await bench.desk.limit("max_jobs", None, None, "bob")
        await launched(bench, 2)
    async with bench.running():
        assert [each.name for each in bench.desk.status().limits_set] == ["cpus"], "what was taken back stays so"


async def test_an_order_is_answered_when_it_is_durable(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    harden = bench.store.harden

    def late() -> None:
        assert gate.wait(20)
        harden()

    async with bench.running():
        job = (await bench.send()).id
        await bench.desk.pause(None, None, None)
        job = (await bench.send()).id
        answered: list[str] = []
        monkeypatch.setattr(bench.store, "harden", late)

        async def set_limit() -> None:
            await bench.desk.limit("cpus", 2, None, "ann")
            answered.append("limit")

        async def move() -> None:
            await bench.desk.prioritize(bench.engine.world.jobs[job], 7, "ann")
            answered.append("priority")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(set_limit)
            tasks.start_soon(move)
            await eventually(lambda: [o.value for o in bench.history.overrides()] == [2], "recorded")
            await eventually(lambda: [j.priority for j in bench.history.live_jobs() if j.id == job] == [7], "recorded")
            assert answered == []
            gate.set()
        assert sorted(answered) == ["limit", "priority"]


async def test_what_is_refused_changes_nothing(bench: Bench) -> None:
    async with bench.running():
        for name, value in (("max_job", 1), ("max_jobs", 0), ("license.lic", 1), ("solver.y", None)):
            with pytest.raises(Refused) as refused:
                await bench.desk.limit(name, value, None, "ann")
            assert refused.value.refusal == "usage"
        assert bench.desk.status().limits_set == ()
        assert bench.engine.limits == bench.engine.configured
        assert bench.history.overrides() == []


async def test_it_holds_over_a_configuration_that_is_read_again(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(LICENSED)
    async with bench.running():
        await bench.desk.limit("max_jobs", 1, None, "ann")
        await bench.desk.limit("license.lic", 1, None, "ann")
        await read_again(bench, LICENSED.replace("max_jobs = 4", "max_jobs = 3").replace("lic = 2", "lic = 5"))
        assert (limit(bench, "max_jobs").value, limit(bench, "max_jobs").configured) == (1, 3)
        assert (limit(bench, "license.lic").value, limit(bench, "license.lic").configured) == (1, 5)
        await bench.desk.limit("max_jobs", None, None, "ann")
        assert (bench.engine.limits.max_jobs, bench.engine.limits.licenses) == (3, {"lic": 1})

        await read_again(bench, CONFIG)
        gone = limit(bench, "license.lic")
        assert (gone.known, gone.value, gone.configured, gone.by) == (False, 1, None, "ann")
        status = bench.desk.status()
        assert status.problems == (
            "the limit license.lic, set to 1 by ann, has no effect: nothing of that name is configured; solvisor limit "
            "license.lic auto forgets it",
        )
        assert status.health == "healthy", "nothing is wrong"
        with pytest.raises(Refused, match=r"there is no limit 'license\.lic'"):
            await bench.desk.limit("license.lic", 2, None, "ann")
    bench.config = bench.engine.config
    async with bench.running():
        await read_again(bench, LICENSED)
        assert bench.engine.limits.licenses == {"lic": 1}, "it holds again"
        assert bench.desk.status().problems == ()
        await read_again(bench, CONFIG)
        await bench.desk.limit("license.lic", None, None, "ann")
        assert bench.desk.status().problems == ()


async def test_a_job_that_could_never_start_so_is_taken_in_and_waits(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(LICENSED)
    async with bench.running():
        await bench.desk.limit("cpus", 1, None, "ann")
        await bench.desk.limit("license.lic", 0, "workshop", "ann")
        wide = (await bench.send(job={"cpus": 4, "licenses": {"lic": 2}})).id
        assert "limited to 0 by ann" in why(bench, wide)
        assert "it can never start so: raise the limit (solvisor limit license.lic auto takes it back)" in why(
            bench, wide
        )
        await bench.desk.limit("license.lic", None, None, "ann")
        assert queued(bench) == [wide]
        assert "limited to 1 by ann" in why(bench, wide)
        await bench.desk.limit("cpus", None, None, "ann")
        await run_to_end(bench, wide)
        await bench.desk.limit("cpus", 9, None, "ann")
        wider = (await bench.send(job={"cpus": 9})).id
        await run_to_end(bench, wider)
        with pytest.raises(Refused, match="10 are more than the 9 there are"):
            await bench.send(job={"cpus": 10})


# --- warm servers ---------------------------------------------------------------------------------------------------


async def test_servers_that_hold_more_licenses_than_there_may_be_end_once_they_have_no_job(
    make_bench: Callable[[str], Bench],
) -> None:
    bench = make_bench(SERVERS)
    kind = bench.kinds["warm"] = ScriptedKind(bench)

    def states() -> dict[str, str]:
        return {server.name: server.state.value for server in bench.engine.world.servers.values()}

    async with bench.running():
        for n in (1, 2, 3):
            await kind.has(f"warm-{n}", (await bench.send("a.w")).id)
        kind.channels["warm-2"].finish()
        await eventually(lambda: states().get("warm-2") == "ready", "one is idle")
        await bench.desk.limit("license.lic", 1, None, "ann")
        await eventually(
            lambda: states() == {"warm-1": "busy", "warm-3": "draining"}, f"the idle one ended: {states()}"
        )
        (pool,) = bench.desk.servers().pools
        (row,) = bench.desk.status().servers
        assert (pool.most, pool.wanted, row.most, row.wanted, pool.licenses) == (1, 1, 1, 1, {"lic": 2})
        assert [channel.job is not None for name, channel in kind.channels.items() if name != "warm-2"] == [True] * 2
        waiting = (await bench.send("a.w")).id
        kind.channels["warm-3"].finish()
        await eventually(lambda: states() == {"warm-1": "busy"}, f"the busy one ended after its job: {states()}")
        assert queued(bench) == [waiting]
        await bench.desk.limit("license.lic", None, None, "ann")
        await kind.has("warm-4", waiting)
        assert bench.desk.servers().pools[0].most == 3


# --- the order ------------------------------------------------------------------------------------------------------


async def test_a_job_is_moved_in_the_order_and_stays_there_in_the_next_life(bench: Bench) -> None:
    async with bench.running():
        await bench.desk.limit("max_jobs", 1, None, None)
        running, *ids = [(await bench.send(job={"priority": 2})).id for _ in range(4)]
        await launched(bench, 1)
        world = bench.engine.world
        with capture_logs() as logs:
            view = await bench.desk.prioritize(world.jobs[ids[2]], 9, "bob")
        assert view.priority == 9
        (line,) = [entry for entry in logs if entry["event"] == "job.priority"]
        moved = {"event": "job.priority", "id": ids[2], "before": 2, "priority": 9, "by": "bob"}
        assert line == moved | {"log_level": "info"}
        for priority in (5, -1):
            await bench.desk.prioritize(world.jobs[ids[0]], priority, None)
        answer = await bench.desk.explain(world.jobs[ids[0]])
        assert next(f.text for f in answer.findings if f.label == "order").startswith(f"3rd of 3; first is {ids[2]}")
        await run_to_end(bench, running)
        await launched(bench, 2)
        assert bench.backend.handles[-1].job_id == ids[2]
    order = [ids[2], ids[1], ids[0]]
    async with bench.running():
        for n, job_id in enumerate(order, 1):
            await launched(bench, n)
            assert bench.backend.handles[-1].job_id == job_id
            job = bench.engine.world.jobs[job_id]
            assert (job.spec.priority, job.priority) == (2, {ids[2]: 9, ids[1]: 2, ids[0]: -1}[job_id])
            await run_to_end(bench, job_id)


async def test_what_has_started_or_is_over_keeps_its_place(bench: Bench) -> None:
    async with bench.running():
        job_id = (await bench.send()).id
        await launched(bench, 1)
        job = bench.engine.world.jobs[job_id]
        with pytest.raises(Conflict, match=f"{job_id} is running; only a job that waits has a place") as refused:
            await bench.desk.prioritize(job, 1, None)
        assert refused.value.reason == "started"
        await run_to_end(bench, job_id)
        with pytest.raises(Conflict, match=rf"{job_id} is finished already \(succeeded\)") as refused:
            await bench.desk.prioritize(await bench.desk.find(job_id, None), 1, None)
        assert refused.value.reason == "finished"
