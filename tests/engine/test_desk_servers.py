"""What people see of warm servers, and what they order: how many there shall be, and that they are replaced."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest
from structlog.testing import capture_logs

from scripted import Bench, published
from scripted_servers import CONFIG, ScriptedKind
from solvisor.errors import Refused
from solvisor.orders import Stopping
from solvisor.questions import NO_SERVERS, NoSuchServer
from solvisor.refusals import REFUSALS_MAX
from solvisor.spool.reading import JobFolder
from solvisor.views import Pools, PoolView
from solvisor_service.api.app import make_app
from waiting import eventually


@pytest.fixture
def bench(make_bench: Callable[[str], Bench]) -> Bench:
    return make_bench(CONFIG)


@pytest.fixture
def kind(bench: Bench) -> ScriptedKind:
    scripted = ScriptedKind(bench)
    bench.kinds["warm"] = scripted
    return scripted


def pool(bench: Bench) -> PoolView:
    (found,) = bench.desk.servers().pools
    return found


def states(bench: Bench) -> dict[str, str]:
    return {server.name: server.state.value for server in pool(bench).servers}


async def become(bench: Bench, **wanted: str) -> None:
    """Wait until the servers are these, by their number (``_1="ready"``)."""
    expected = {f"warm{name.replace('_', '-')}": state for name, state in wanted.items()}
    await eventually(lambda: states(bench) == expected, f"the servers are {expected}")


async def vanish(bench: Bench, name: str) -> None:
    await eventually(lambda: name not in states(bench), f"{name} is gone")


async def send(bench: Bench) -> str:
    return (await bench.send("a.w")).id


# --- what is seen ---------------------------------------------------------------------------------------------------


async def test_a_server_is_told_from_its_start_to_its_next_job(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running():
        found = pool(bench)
        assert (found.solver, found.state, found.min, found.max, found.scale, found.servers) == (
            *("warm", "ok", 0, 3, None),
            (),
        )
        kind.gate = anyio.Event()
        job = await send(bench)
        await eventually(lambda: pool(bench).up, "its process exists")
        found = pool(bench)
        assert (found.wanted, found.starting, found.up, found.ready, found.busy, found.waiting) == (1, 1, 1, 0, 0, 1)
        (server,) = found.servers
        assert (server.name, server.state, server.pid, server.job, server.port) == (
            *("warm-1", "starting", kind.process("warm-1").pid, None, None),
        )
        assert (server.ready_seconds, found.licenses) == (None, {"lic": 1})
        status = bench.desk.status()
        assert [(w.reason, w.what, w.jobs) for w in status.waiting_for] == [("server", "warm", 1)]
        explained = await bench.desk.explain(await bench.desk.find(job, None))
        assert explained.headline == "waits for a warm server. Nothing is wrong."
        kind.gate.set()
        channel = await kind.has("warm-1", job)
        await become(bench, _1="busy")
        found = pool(bench)
        assert (found.wanted, found.starting, found.up, found.ready, found.busy, found.waiting) == (1, 0, 1, 1, 1, 0)
        (server,) = found.servers
        assert (server.job, server.jobs, server.port) == (job, 0, 4711)
        assert server.ready_seconds is not None
        channel.finish()
        assert (await published(bench, job))["state"] == "succeeded"
        await become(bench, _1="ready")
        assert [(server.job, server.jobs) for server in pool(bench).servers] == [(None, 1)]
        (line,) = bench.desk.status().servers
        assert (line.solver, line.ready, line.busy, line.most) == ("warm", 1, 0, 3)
        (attempt,) = (await bench.desk.view(await bench.desk.find(job, None))).attempts
        assert (attempt.server, attempt.port) == ("warm-1", 4711)


async def test_servers_that_fail_too_often_are_a_problem_until_they_are_restarted(
    bench: Bench, kind: ScriptedKind
) -> None:
    kind.refusal = "the greeting is missing"
    async with bench.running():
        job = await send(bench)
        await eventually(lambda: pool(bench).state == "failed", "failed")
        await eventually(lambda: not pool(bench).servers, "nothing of them is left")
        found, status = pool(bench), bench.desk.status()
        assert (found.failures, found.waiting, found.wanted, found.up, found.rests_seconds) == (2, 1, 0, 0, None)
        assert found.error is not None
        assert found.error.endswith("the greeting is missing")
        assert (status.health, status.problems) == (
            "degraded",
            (
                f"the servers of warm failed 2 times in a row: {found.error}; "
                "correct it, then solvisor servers restart warm",
            ),
        )
        explained = await bench.desk.explain(await bench.desk.find(job, None))
        assert explained.headline == "waits for a warm server, and none is started any more."
        kind.refusal, kind.gate = None, anyio.Event()
        answer = await bench.desk.restart("warm", "ann")
        assert (answer.state, answer.error, answer.failures, answer.starting) == ("ok", None, 0, 1)
        kind.gate.set()
        await kind.has("warm-3", job)
        assert (bench.desk.status().health, bench.desk.status().problems) == ("healthy", ())


async def test_a_restart_ends_the_rest_after_a_failure(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running() as engine:
        facts = engine.world.pool("warm")
        facts.rests_until, facts.error = time.monotonic() + 3600, "it ended"
        job = await send(bench)
        found = pool(bench)
        assert (found.state, found.servers, bench.desk.status().health) == ("backoff", (), "healthy")
        assert found.rests_seconds is not None
        assert 3500 < found.rests_seconds <= 3600
        explained = await bench.desk.explain(await bench.desk.find(job, None))
        assert explained.headline == "waits for a warm server; the last one failed, and the next one is started soon."
        await bench.desk.restart("warm", None)
        await kind.has("warm-1", job)


# --- how many -------------------------------------------------------------------------------------------------------


async def test_there_are_as_many_as_somebody_says_until_the_daemon_ends(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running():
        kind.gate = anyio.Event()
        with capture_logs() as logs:
            answer = await bench.desk.scale("warm", 4, "ann")
        assert {"event": "servers.scaled", "solver": "warm", "count": 4, "by": "ann", "log_level": "info"} in logs
        assert (answer.scale, answer.max, answer.most, answer.wanted, answer.starting) == (4, 3, 4, 4, 4)
        kind.gate.set()
        await become(bench, _1="ready", _2="ready", _3="ready", _4="ready")
        assert (await bench.desk.scale("warm", 1, None)).wanted == 1
        await eventually(lambda: len(states(bench)) == 1, "one is left")
        assert (await bench.desk.scale("warm", 0, None)).most == 0
        await become(bench)
        job = await send(bench)
        assert pool(bench).waiting == 1
        assert (await bench.desk.explain(await bench.desk.find(job, None))).findings[0].what == "warm"
        answer = await bench.desk.scale("warm", None, "ann")
        assert (answer.scale, answer.most, answer.wanted) == (None, 3, 1)
        await kind.has("warm-5", job)
        await bench.desk.scale("warm", 2, None)
    async with bench.running():
        assert (pool(bench).scale, pool(bench).most) == (None, 3)


@pytest.mark.parametrize(
    ("solver", "count", "code", "told"),
    [
        ("x", 1, "usage", "^x has no warm servers; solvers with warm servers: warm$"),
        ("y", 1, "usage", "^there is no solver and no warm server 'y'; solvers with warm servers: warm$"),
        ("warm", -1, "usage", "count=-1 is not from 0 to 1,000"),
        ("warm", 1001, "usage", "count=1001 is not from 0 to 1,000"),
        ("warm", 5, "license", "5 servers of warm would hold 5 of the license lic, and there are 4; .* at most 4$"),
    ],
)
async def test_a_number_that_cannot_be_had_is_refused(
    bench: Bench, kind: ScriptedKind, solver: str, count: int, code: str, told: str
) -> None:
    async with bench.running():
        with pytest.raises(Refused, match=told) as refused:
            await bench.desk.scale(solver, count, None)
        assert refused.value.refusal == code
        assert (pool(bench).scale, pool(bench).servers) == (None, ())


async def test_one_port_is_one_server(make_bench: Callable[[str], Bench]) -> None:
    fixed = """
[solver.fixed]
kind = "server"
start = ["redis-server", "--port", "{port}"]
port = 6379
ready = { kind = "tcp", expect = "x" }
command = ["redis-cli"]
"""
    bench = make_bench(CONFIG + fixed)
    async with bench.running():
        with pytest.raises(Refused, match="fixed has one port, and so one server; ask for at most 1"):
            await bench.desk.scale("fixed", 2, None)
        assert (await bench.desk.scale("fixed", 0, None)).scale == 0


# --- replaced -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "word"), [("recycle", "recycled"), ("restart", "restarted")])
async def test_a_server_is_replaced_once_it_has_no_job(bench: Bench, kind: ScriptedKind, order: str, word: str) -> None:
    async with bench.running():
        await bench.desk.scale("warm", 2, None)
        await become(bench, _1="ready", _2="ready")
        job = await send(bench)
        await eventually(lambda: pool(bench).busy == 1, "one is busy")
        (busy,) = (server.name for server in pool(bench).servers if server.job)
        channel = await kind.has(busy, job)
        with capture_logs() as logs:
            answer = await getattr(bench.desk, order)("warm", "ann")
        (told,) = (line for line in logs if line["event"] == f"servers.{word}")
        assert (told["solver"], set(told["servers"]), told["by"]) == ("warm", {"warm-1", "warm-2"}, "ann")
        whys = {server.name: server.why for server in answer.servers}
        assert whys[busy] == f"{word} by ann"
        await eventually(lambda: list(states(bench).values()) == ["draining", "ready"], "the idle one is replaced")
        channel.finish()
        assert (await published(bench, job))["state"] == "succeeded"
        await become(bench, _3="ready", _4="ready")


async def test_jobs_that_come_one_after_the_other_are_visits_of_one_task(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running():
        for _ in range(3):
            job = await send(bench)
            (await kind.has("warm-1", job)).finish()
            assert (await published(bench, job))["state"] == "succeeded"
            await become(bench, _1="ready")
            assert len([task for task in asyncio.all_tasks() if "visit" in task.get_name()]) == 1


async def test_one_server_is_replaced_by_its_name(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running():
        await bench.desk.scale("warm", 2, None)
        await become(bench, _1="ready", _2="ready")
        assert (await bench.desk.recycle("warm-2", None)).solver == "warm"
        await become(bench, _1="ready", _3="ready")
        for order in (bench.desk.recycle, bench.desk.restart):
            with pytest.raises(
                NoSuchServer, match=r"no warm server 'warm-2'; solvers with warm servers: warm$"
            ) as gone:
                await order("warm-2", None)
            assert (gone.value.code, gone.value.exit_status) == ("no_such_server", 4)
            with pytest.raises(NoSuchServer, match=r"^x has no warm servers; solvers with warm servers: warm$"):
                await order("x", None)
        assert states(bench) == {"warm-1": "ready", "warm-3": "ready"}


async def test_to_recycle_forgets_no_failure(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running() as engine:
        facts = engine.world.pool("warm")
        facts.failed, facts.error, facts.ends = True, "it ended", [1.0, 2.0]
        assert (await bench.desk.recycle("warm", None)).state == "failed"
        assert (await bench.desk.restart("warm", None)).state == "ok"


# --- over HTTP ------------------------------------------------------------------------------------------------------


async def ask(bench: Bench, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """What the application answers to a request of root's."""
    answered: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        answered.append(message)

    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": [], "client": ("uid", 0)}
    await make_app(bench.desk, JobFolder(bench.home))(scope, receive, send)
    return answered[0]["status"], b"".join(message.get("body", b"") for message in answered[1:])


async def test_each_route_carries_its_order_out(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running():
        status, body = await ask(bench, "POST", "/v1/servers/warm/scale", b'{"count": 2}')
        assert (status, msgspec.json.decode(body, type=PoolView).scale) == (200, 2)
        await become(bench, _1="ready", _2="ready")
        status, body = await ask(bench, "GET", "/v1/servers")
        assert (status, [s.name for s in msgspec.json.decode(body, type=Pools).pools[0].servers]) == (
            *(200, ["warm-1", "warm-2"]),
        )
        for order, done, left in (("recycle", "recycled", "warm-2"), ("restart", "restarted", "warm-3")):
            name = min(states(bench))
            with capture_logs() as logs:
                status, body = await ask(bench, "POST", f"/v1/servers/{name}/{order}")
            assert (status, msgspec.json.decode(body, type=PoolView).solver) == (200, "warm")
            (told,) = (line for line in logs if line["event"] == f"servers.{done}")
            assert (told["servers"], told["by"]) == ([name], "root")
            await vanish(bench, name)
            assert left in states(bench)
        assert (await ask(bench, "POST", "/v1/servers/warm/scale", b'{"count": 5}'))[0] == 422
        assert (await ask(bench, "POST", "/v1/servers/warm/scale", b'{"count": 1001}'))[0] == 400
        assert (await ask(bench, "POST", "/v1/servers/warm-1/recycle"))[0] == 404
        assert pool(bench).scale == 2
        status, body = await ask(bench, "POST", "/v1/servers/warm/scale", b'{"count": null}')
        assert (status, msgspec.json.decode(body, type=PoolView).scale) == (200, None)


# --- the end --------------------------------------------------------------------------------------------------------


async def test_a_daemon_that_stops_takes_no_orders_about_servers(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running() as engine:
        await bench.desk.scale("warm", 1, None)
        await become(bench, _1="ready")
        job = await send(bench)
        channel = await kind.has("warm-1", job)
        engine.drain()
        assert pool(bench).wanted == 0
        for order in (
            bench.desk.scale("warm", 2, None),
            bench.desk.recycle("warm", None),
            bench.desk.restart("warm", None),
        ):
            with pytest.raises(Stopping):
                await order
        assert states(bench) == {"warm-1": "busy"}
        channel.finish()
        with anyio.fail_after(20):
            await bench.stopped.wait()
        assert bench.desk.servers() == Pools(pools=(), note=NO_SERVERS)


async def test_a_license_that_is_refused_again_and_again_is_a_problem(bench: Bench, kind: ScriptedKind) -> None:
    async with bench.running() as engine:
        assert bench.desk.status().problems == ()
        for _ in range(REFUSALS_MAX):
            engine.world.refusals.refuse([("seat", 1)], "no seat is free", time.monotonic())
        status = bench.desk.status()
        assert status.health == "degraded"
        (problem,) = status.problems
        assert problem.startswith("license seat was refused 3 times in a row and rests ")
