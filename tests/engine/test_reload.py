"""Fault 87: the configuration is read again while jobs wait, run and rest, and warm servers live."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from scripted import CONFIG, Bench, finish, launched, published, run_to_end
from scripted_servers import CONFIG as SERVERS
from scripted_servers import ScriptedKind
from solvisor import reload as module
from solvisor.clock import now_us
from solvisor.errors import Refused
from solvisor.model import Reason
from solvisor.reload import CHANGED, REFUSED, RESTART
from solvisor.scheduler import explain, reason
from waiting import eventually

SH = CONFIG.replace("max_jobs = 2", "max_jobs = 1")
LICENSED = SH.replace("[solver.x]", "[licenses]\nlic = 2\n[solver.x]\nlicenses = {{ lic = {} }}")


async def read_again(bench: Bench, text: str, *, refused: bool = False) -> None:
    """Have the daemon read ``text``."""
    engine = bench.engine
    before = engine.config
    engine.trouble.pop(REFUSED, None)
    bench.config.path.write_text(text)
    bench.reload.ask()
    if refused:
        await eventually(lambda: REFUSED in engine.trouble, "it was refused")
        assert engine.config is before
    else:
        await eventually(lambda: engine.config is not before or REFUSED in engine.trouble, "it was read")
        assert REFUSED not in engine.trouble
        await eventually(lambda: bench.reload.setup.config is engine.config, "it is over")
    engine.world.sanity_check()


def why(bench: Bench, job_id: str) -> tuple[Reason, str]:
    """What a job waits for in the first place, and what explain says first."""
    world, limits = bench.engine.world, bench.engine.limits
    first = explain(world, limits, job_id, time.monotonic(), now_us())[0]
    return reason(world, limits, world.jobs[job_id])[0], first.text


# --- jobs -----------------------------------------------------------------------------------------------------------


async def test_fault_87_other_limits_hold_at_once(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(SH)
    async with bench.running():
        for _ in range(3):
            await bench.send()
        await launched(bench, 1)
        assert bench.desk.status().jobs.total == 1
        await read_again(bench, CONFIG)
        await launched(bench, 2)
        assert (bench.desk.status().jobs.used, bench.desk.status().jobs.total) == (2, 2)
        await read_again(bench, SH)
        assert (bench.desk.status().jobs.used, bench.desk.status().jobs.total) == (2, 1)
        assert bench.desk.status().waiting == 1
        bench.backend.handles[0].end()
        await eventually(lambda: bench.desk.status().jobs.used == 1, "one is over")
        assert len(bench.backend.handles) == 2
        bench.backend.handles[1].end()
        await launched(bench, 3)


async def test_fault_87_an_attempt_keeps_what_it_was_started_with(make_bench: Callable[[str], Bench]) -> None:
    retry = '\n[solver.x.retry]\nmax = 1\non = ["exit"]\ndelay = "0s"\n'
    bench = make_bench(SH + retry)
    async with bench.running():
        job = (await bench.send()).id
        await launched(bench, 1)
        changed = (SH + retry).replace(
            "[solver.x]", "[licenses]\nlic = 2\n[solver.x]\ncpus = 3\nlicenses = { lic = 2 }"
        )
        await read_again(bench, changed.replace("/bin/true", "/bin/false"))
        assert bench.engine.world.used.cpus == 1
        bench.backend.handles[0].end(1)
        await launched(bench, 2)
        bench.engine.world.sanity_check()
        assert (bench.engine.world.used.cpus, bench.engine.world.used.licenses["lic"]) == (3, 2)
        assert [Path(handle.spec.argv[0]).name for handle in bench.backend.handles] == ["true", "false"]
        tries = bench.engine.world.jobs[job].attempts
        assert [(t.settings.cpus, t.settings.table["command"]) for t in tries] == [
            (1, ("/bin/true",)),
            (3, ("/bin/false",)),
        ]
        await run_to_end(bench, job)
        bench.engine.world.sanity_check()
        assert bench.engine.world.used.cpus == 0
        await bench.send()
        await launched(bench, 3)
        assert bench.engine.world.used.cpus == 3


async def test_fault_87_jobs_of_a_solver_that_is_gone_wait_for_it(make_bench: Callable[[str], Bench]) -> None:
    bench = make_bench(SH)
    other = SH.replace("[solver.x]", "[solver.y]")
    async with bench.running():
        running, waiting = (await bench.send()).id, (await bench.send()).id
        after = (await bench.send(job={"solver": "x", "after": [waiting]})).id
        await launched(bench, 1)
        with capture_logs() as logs:
            await read_again(bench, other)
        (told,) = [entry for entry in logs if entry["event"] == "config.reloaded"]
        assert (told["solvers"], told["changed"]) == (["y"], ["x", "y"])
        assert why(bench, waiting)[0] is Reason.SOLVER
        assert "x is not in the configuration: add [solver.x], or cancel the job" in why(bench, waiting)[1]
        assert why(bench, after)[0] is Reason.DEPENDENCY
        status = bench.desk.status()
        assert status.health == "degraded"
        assert status.problems[0].startswith("x is not in the configuration any more, and 1 job waits for it")
        assert status.solvers == ("y",)
        with pytest.raises(Refused):
            await bench.send(job={"solver": "x"})
        bench.backend.handles[0].end()
        assert (await published(bench, running))["state"] == "succeeded"  # it keeps what it was started with
        assert len(bench.backend.handles) == 1
        await read_again(bench, SH)
        assert bench.desk.status().problems == ()
        await run_to_end(bench, waiting)
        await run_to_end(bench, after)


async def test_fault_87_what_rests_or_runs_again_asks_for_what_holds_now(make_bench: Callable[[str], Bench]) -> None:
    retry = '\n[solver.x.retry]\nmax = 1\non = ["exit"]\ndelay = "0.3s"\n'
    bench = make_bench(LICENSED.format(1) + retry)
    async with bench.running():
        job = (await bench.send()).id
        await launched(bench, 1)
        bench.backend.handles[0].end(1)
        await eventually(lambda: bench.engine.world.jobs[job].backoff_seconds, "it rests")
        await read_again(bench, LICENSED.format(2) + retry)
        await launched(bench, 2)
        assert bench.engine.world.used.licenses["lic"] == 2
        await read_again(bench, LICENSED.format(1) + retry)
        assert bench.engine.world.used.licenses["lic"] == 2
        await run_to_end(bench, job)
        assert bench.engine.world.used.licenses["lic"] == 0


# --- the file -------------------------------------------------------------------------------------------------------


async def test_fault_87_a_bad_file_changes_nothing_and_all_its_faults_are_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bench.running():
        with capture_logs() as logs:
            bad = CONFIG.replace("max_jobs = 2", 'max_jobz = 2\nstop_timeout = "5 apples"').replace('"0.1s"', '"1s"')
            await read_again(bench, bad.replace('stop_timeout = "1s"', ""), refused=True)
        (told,) = [entry for entry in logs if entry["event"] == "config.refused"]
        assert len(told["faults"]) == 2
        (problem,) = bench.desk.status().problems
        assert "so the configuration of before holds; a restart would fail:\nline 3" in problem
        assert 'did you mean "max_jobs"?' in problem
        assert "5 apples" in problem
        assert bench.desk.status().health == "degraded"
        await finish(bench, 1)
        await read_again(bench, "x" * 10, refused=True)
        await read_again(
            bench,
            CONFIG.replace("cpus = 4", "cpus = 4000\nmemory = 1").replace("[solver.x]", "[solver.x]\nmemory = 2"),
            refused=True,
        )
        bench.config.path.unlink()
        bench.reload.ask()
        await eventually(lambda: "cannot be read" in bench.engine.trouble[REFUSED], "its absence is told")
        await read_again(bench, CONFIG)
        assert bench.desk.status().problems == ()
        await finish(bench, 1)


async def test_fault_87_a_machine_in_trouble_while_it_is_read_ends_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path) -> None:
        raise OSError(28, "No space left on device")

    async with bench.running():
        with monkeypatch.context() as patch:
            patch.setattr("scripted.configuration.load", no_room)
            await read_again(bench, CONFIG, refused=True)
        assert "No space left on device; have it read again later" in bench.engine.trouble[REFUSED]
        await read_again(bench, CONFIG)
        await finish(bench, 1)


async def test_fault_87_more_faults_than_a_screen_holds(bench: Bench) -> None:
    async with bench.running():
        await read_again(bench, "[daemon]\n" + "".join(f"key{n} = 1\n" for n in range(30)), refused=True)
        (problem,) = bench.desk.status().problems
        assert problem.count("no such key") == module.FAULTS_SHOWN
        assert "10 more, which solvisor config check shows" in problem


async def test_fault_87_where_the_inbox_lies_waits_for_a_restart(bench: Bench, tmp_path: Path) -> None:
    moved = f'{CONFIG}[inbox]\npath = "{tmp_path}/elsewhere"\nsettle = "0.2s"\n'
    async with bench.running():
        await read_again(bench, moved)
        (problem,) = bench.desk.status().problems
        assert problem.startswith("[inbox] path in ")
        assert "holds once the daemon is started again; until then users drop files in inbox/" in problem
        assert bench.desk.status().health == "healthy"
        assert (bench.engine.config.inbox.path, bench.engine.config.inbox.settle) == (None, 0.2)
        await read_again(bench, CONFIG)
        assert RESTART not in bench.engine.trouble


async def test_a_changed_configuration_is_told_and_is_no_trouble(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.01)
    bench.config.path.write_text(CONFIG)
    async with bench.running():
        await bench.reload.look()
        assert bench.desk.status().problems == ()
        bench.config.path.write_text("as it is now, and no daemon has read it")
        await eventually(lambda: bench.desk.status().problems, "the change was noticed")
        status = bench.desk.status()
        assert status.problems[0].startswith("the configuration ")
        assert status.problems[0].endswith("reload has it read; until then the one of before holds")
        assert status.health == "healthy"
        await read_again(bench, CONFIG.replace("max_jobs = 2", "max_jobs = 3"))
        await eventually(lambda: CHANGED not in bench.engine.trouble, "it is the one that was read")


async def test_fault_65_a_daemon_that_stops_reads_nothing(bench: Bench) -> None:
    async with bench.running():
        await bench.send()
        await launched(bench, 1)
        bench.backend.handles[0].obedient = False
        bench.engine.drain()
        bench.config.path.write_text(CONFIG.replace("max_jobs = 2", "max_jobs = 3"))
        with capture_logs() as logs:
            bench.reload.ask()
            await eventually(lambda: [e for e in logs if e["event"] == "config.not_read"], "it says so")
        assert bench.engine.limits.max_jobs == 2
        bench.backend.handles[0].end()
        with anyio.fail_after(20):
            await bench.stopped.wait()


# --- warm servers ---------------------------------------------------------------------------------------------------


@pytest.fixture
def warm(make_bench: Callable[[str], Bench]) -> tuple[Bench, ScriptedKind]:
    bench = make_bench(SERVERS)
    kind = bench.kinds["warm"] = ScriptedKind(bench)
    return bench, kind


def states(bench: Bench) -> dict[str, str]:
    return {server.name: server.state.value for server in bench.engine.world.servers.values()}


async def become(bench: Bench, expected: dict[str, str]) -> None:
    await eventually(lambda: states(bench) == expected, f"the servers are {expected}, not {states(bench)}")


async def serve(bench: Bench, kind: ScriptedKind, name: str) -> str:
    """The id of a job that the server ``name`` has."""
    job = (await bench.send("a.w")).id
    await kind.has(name, job)
    return job


async def test_fault_87_servers_of_a_changed_solver_are_replaced_once_they_are_free(
    warm: tuple[Bench, ScriptedKind],
) -> None:
    bench, kind = warm
    async with bench.running():
        first = await serve(bench, kind, "warm-1")
        await serve(bench, kind, "warm-2")
        kind.channels["warm-2"].finish()
        await become(bench, {"warm-1": "busy", "warm-2": "ready"})
        await read_again(bench, SERVERS.replace('"/bin/true", "{port}"', '"/bin/true", "-v", "{port}"'))
        await become(bench, {"warm-1": "draining"})
        await serve(bench, kind, "warm-3")
        kind.channels["warm-1"].finish()
        assert (await published(bench, first))["state"] == "succeeded"
        kind.channels["warm-3"].finish()
        await become(bench, {"warm-3": "ready"})


async def test_fault_87_another_environment_makes_other_servers(warm: tuple[Bench, ScriptedKind]) -> None:
    bench, kind = warm
    bench.scripts = {"warm": {"LICENSE": "1@here"}}
    async with bench.running():
        await serve(bench, kind, "warm-1")
        kind.channels["warm-1"].finish()
        await become(bench, {"warm-1": "ready"})
        await read_again(bench, SERVERS)
        assert states(bench) == {"warm-1": "ready"}
        bench.scripts = {"warm": {"LICENSE": "1@there"}}
        await read_again(bench, SERVERS)
        assert states(bench).get("warm-1", "gone") != "ready"


async def test_fault_87_servers_go_on_where_the_change_is_none_for_them(warm: tuple[Bench, ScriptedKind]) -> None:
    bench, kind = warm
    async with bench.running():
        await serve(bench, kind, "warm-1")
        await serve(bench, kind, "warm-2")
        changed = SERVERS.replace('accept = ["*.w"]', 'accept = ["*.w", "*.v"]\ntimeout = "1h"')
        await read_again(bench, changed.replace("max = 3", "max = 2"))
        assert states(bench) == {"warm-1": "busy", "warm-2": "busy"}
        third = (await bench.send("a.v")).id
        assert why(bench, third)[0] is Reason.SERVER
        assert "2 of at most 2 servers of warm are busy" in why(bench, third)[1]
        kind.channels["warm-1"].finish()
        await kind.has("warm-1", third)


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("max = 3", "max = 1", "warm has at most 1 servers now"),
        ("lic = 4", "lic = 1", "there are 1 of the license lic now"),
    ],
)
async def test_fault_87_servers_for_which_there_is_no_room_go(
    warm: tuple[Bench, ScriptedKind], was: str, becomes: str, said: str
) -> None:
    bench, kind = warm
    async with bench.running():
        for n in (1, 2, 3):
            await serve(bench, kind, f"warm-{n}")
        kind.channels["warm-2"].finish()
        await become(bench, {"warm-1": "busy", "warm-3": "busy", "warm-2": "ready"})
        waiting = (await bench.send("a.x")).id  # takes nothing of theirs
        await read_again(bench, SERVERS.replace(was, becomes))
        await become(bench, {"warm-1": "busy", "warm-3": "draining"})  # the one that started first stays
        assert bench.engine.world.servers["warm-3"].why == said
        assert bench.desk.status().licenses["lic"].used == 2
        kind.channels["warm-3"].finish()
        await become(bench, {"warm-1": "busy"})
        await run_to_end(bench, waiting)


async def test_fault_87_servers_of_a_solver_that_is_gone_end_and_are_shown_until_then(
    warm: tuple[Bench, ScriptedKind],
) -> None:
    bench, kind = warm
    gone = SERVERS[: SERVERS.index("[solver.warm]")]
    async with bench.running():
        job = await serve(bench, kind, "warm-1")
        waiting = (await bench.send("b.w")).id
        await kind.has("warm-2", waiting)
        last = [(await bench.send("c.w")).id for _ in range(2)][-1]
        kind.process("warm-2").end(1)  # a failure of a solver without a rule
        await read_again(bench, gone)
        assert why(bench, last)[0] is Reason.SOLVER
        (pool,) = bench.desk.servers().pools
        assert (pool.solver, pool.max, [s.state.value for s in pool.servers if s.name == "warm-1"]) == (
            "warm",
            0,
            ["draining"],
        )
        kind.channels["warm-1"].finish()
        assert (await published(bench, job))["state"] == "succeeded"
        for name in set(states(bench)) - {"warm-1"}:
            kind.channels[name].finish()
        await become(bench, {})
        assert bench.desk.servers().pools == ()
        assert bench.desk.status().servers == ()
        await read_again(bench, SERVERS)
        await eventually(lambda: bench.engine.world.jobs[last].state == "running", "it has a server after all")


async def test_fault_87_a_solver_that_becomes_warm_and_cold_again(warm: tuple[Bench, ScriptedKind]) -> None:
    bench, kind = warm
    cold = SERVERS[: SERVERS.index("[solver.warm]")] + '[solver.warm]\naccept = ["*.w"]\ncommand = ["/bin/true"]\n'
    async with bench.running():
        kind.gate = anyio.Event()
        job = (await bench.send("a.w")).id
        await become(bench, {"warm-1": "starting"})
        await read_again(bench, cold)
        await eventually(lambda: bench.engine.world.jobs[job].state == "running", "it runs by itself")
        await eventually(lambda: not states(bench), "the server that was starting is gone")
        assert bench.engine.world.jobs[job].current.server is None
        next_one = (await bench.send("b.w", job={"after": [job]})).id
        await read_again(bench, SERVERS)
        await run_to_end(bench, job)
        kind.gate.set()
        await kind.has("warm-2", next_one)


async def test_fault_87_servers_that_failed_are_tried_again_once_their_solver_is_corrected(
    warm: tuple[Bench, ScriptedKind],
) -> None:
    bench, kind = warm
    kind.refusal = "the license file is missing"
    async with bench.running():
        await bench.desk.scale("warm", 1, "ann")
        job = (await bench.send("a.w")).id
        await eventually(lambda: bench.engine.world.pool("warm").failed, "they failed")
        kind.refusal = None
        await read_again(bench, SERVERS.replace("max_jobs = 6", "max_jobs = 5"))
        assert bench.engine.world.pool("warm").failed  # nothing of theirs was corrected
        assert bench.engine.world.pool("warm").scale == 1
        await read_again(bench, SERVERS.replace('"/bin/true", "{port}"', '"/bin/true", "-l", "{port}"'))
        assert bench.engine.world.pool("warm").scale is None
        await eventually(lambda: bench.engine.world.jobs[job].state == "running", "it has a server")
