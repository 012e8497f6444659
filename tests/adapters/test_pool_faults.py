"""Warm servers that are killed, stopped, mute or broken: idle, with a job, and between the two."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from pool_kit import CLIENT, PYTHON, Lab, LabErrand, lab, solver
from process_kit import is_alive, is_gone
from solvisor.backends.local import LocalBackend
from solvisor.errors import ServerBroken, Unreached
from solvisor.events import Condemn, ServerFree, ServerReady, ServerSeen, ServerStuck, ServerUp
from solvisor.interfaces import Channel, Up
from solvisor.kinds import LineReady
from solvisor.model import ExitFacts, ServerState
from solvisor.process import proc
from solvisor.solvers.server import ServerKind
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

LOOPS = "uvloop"

HANGS = ("/bin/sh", "-c", "exec sleep 1000", "{host}")


class Outcome:
    """What came of a job: one of the two."""

    facts: ExitFacts | None = None
    error: Exception | None = None


@asynccontextmanager
async def under_way(pool: Lab, name: str) -> AsyncIterator[tuple[LabErrand, Outcome]]:
    """A job that a server has; after the body it is waited for."""
    errand, outcome = pool.lend(name), Outcome()

    async def run() -> None:
        try:
            outcome.facts = await pool.pool.carry_out(name, errand)
        except (Unreached, ServerBroken) as error:
            outcome.error = error

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await eventually(lambda: errand.programs, "its client runs", 60)
        yield errand, outcome


# --- killed -----------------------------------------------------------------------------------------------------------


async def test_killed_while_idle(tmp_path: Path) -> None:
    async with lab(tmp_path, solver()) as pool:
        name = await pool.ready()
        os.kill(pool.pid(name), signal.SIGKILL)
        end = await pool.ended(name)
        assert end.error == f"{name} was ended by SIGKILL"
        assert not end.blameless
        assert pool.leases.alive_at_return == [[]]
        await pool.pool.give_back(name, served=True)
        assert not pool.all(ServerFree)


async def test_killed_with_a_job(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(command=HANGS)) as pool:
        name = await pool.ready()
        async with under_way(pool, name) as (errand, outcome):
            os.kill(pool.pid(name), signal.SIGKILL)
        assert isinstance(outcome.error, ServerBroken)
        assert "was ended by SIGKILL" in str(outcome.error)
        assert is_gone(errand.programs[0]), "its client was left"
        assert (await pool.ended(name)).error == f"{name} was ended by SIGKILL"


async def test_a_client_that_fails_because_its_server_died_is_not_the_jobs_failure(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(command=(*CLIENT, "die", "9"))) as pool:
        name = await pool.ready()
        with pytest.raises(ServerBroken, match=f"{name} ended with exit code 9"):
            await pool.pool.carry_out(name, pool.lend(name))
        assert not (await pool.ended(name)).blameless


async def test_fault_13_gone_between_the_loan_and_the_job(tmp_path: Path) -> None:
    async with lab(tmp_path, solver()) as pool:
        name = await pool.ready()
        errand = pool.lend(name)
        os.kill(pool.pid(name), signal.SIGKILL)
        await eventually(lambda: pool.all(Condemn, name), "its end is known", 60)
        with pytest.raises(Unreached):
            await pool.pool.carry_out(name, errand)
        assert errand.pids == [], "the job was never begun"
        await pool.ended(name)
        with pytest.raises(Unreached):
            await pool.pool.carry_out(name, errand)
        await pool.pool.give_back(name, served=True)
        assert not pool.all(ServerFree)


async def test_killed_while_it_starts(tmp_path: Path) -> None:
    async with lab(tmp_path, solver("--after", "never")) as pool:
        name = pool.start()
        await pool.news(ServerUp, name)
        os.kill(pool.pid(name), signal.SIGKILL)
        end = await pool.ended(name)
        assert end.error == f"{name} was ended by SIGKILL; it was not ready yet"


# --- stopped jobs -----------------------------------------------------------------------------------------------------


async def test_a_job_that_is_stopped_takes_its_server_along(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(command=HANGS)) as pool:
        name = await pool.ready()
        async with under_way(pool, name) as (errand, outcome):
            errand.stop()
        assert outcome.facts is not None
        assert outcome.facts.stopped
        assert is_gone(errand.programs[0])
        assert is_gone(pool.pid(name))
        end = await pool.ended(name)
        assert end.error is None, "nobody's failure"


async def test_a_job_stopped_before_its_server_heard_of_it_leaves_that_alone(tmp_path: Path) -> None:
    async with lab(tmp_path, solver()) as pool:
        name = await pool.ready()
        errand = pool.lend(name)
        errand.stop()
        assert (await pool.pool.carry_out(name, errand)).stopped
        await pool.pool.give_back(name, served=True)
        assert pool.server(name).state is ServerState.READY
        assert is_alive(pool.pid(name))


# --- mute -------------------------------------------------------------------------------------------------------------


async def test_fault_14_an_idle_server_that_does_not_answer_is_found_and_ended(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(servers={"heartbeat": 0.1, "heartbeat_timeout": 3.0})) as pool:
        name = await pool.ready()
        await pool.news(ServerSeen, name)
        pid = pool.pid(name)
        os.kill(pid, signal.SIGSTOP)
        end = await pool.ended(name)
        assert end.error == f"{name} did not answer within 3 s"
        assert not end.blameless
        assert is_gone(pid)


async def test_a_server_is_asked_after_a_job_if_its_last_answer_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solvisor.pool.FRESH_SECONDS", 0.0)
    async with lab(tmp_path, solver(servers={"heartbeat_timeout": 2.0})) as pool:
        name = await pool.ready()
        assert (await pool.pool.carry_out(name, pool.lend(name))).exit_code == 0
        os.kill(pool.pid(name), signal.SIGSTOP)
        await pool.pool.give_back(name, served=True)
        assert not pool.all(ServerFree, name), "a mute server was given the next job"
        end = await pool.ended(name)
        assert end.error == f"{name} did not answer within 2 s"
        assert len(pool.world.pool("s").ends) == 1, "it counts, or this could go on for ever"


async def test_a_server_is_not_asked_if_it_just_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("solvisor.pool.FRESH_SECONDS", 3600.0)
    async with lab(tmp_path, solver()) as pool:
        name = await pool.ready()
        assert (await pool.pool.carry_out(name, pool.lend(name))).exit_code == 0
        os.kill(pool.pid(name), signal.SIGSTOP)
        await pool.pool.give_back(name, served=True)
        assert pool.all(ServerFree, name)
        pool.retire(name)
        os.kill(pool.pid(name), signal.SIGCONT)
        assert (await pool.ended(name)).error is None


# --- broken -----------------------------------------------------------------------------------------------------------


async def test_a_server_that_hangs_up_on_every_talk_is_a_failure_each_time(tmp_path: Path) -> None:
    """It answers the probe and lives, and no job ever reaches it: without a count that would go on for ever."""
    hangs_up = solver("--close-after", "hang-up", command=(), talk="json")
    async with lab(tmp_path, hangs_up) as pool:
        name = await pool.ready()
        (pool.folder(name) / "hang-up").touch()
        error: Exception | None = None
        try:
            await pool.pool.carry_out(name, pool.lend(name))
        except (Unreached, ServerBroken) as caught:
            error = caught
        assert error is not None
        end = await pool.ended(name)
        assert end.error == f"{name}: {error}"
        known = pool.world.pool("s")
        assert len(known.ends) + len(known.killers) == 1, "it counts"


class GoneAfterTheProbe(ServerKind):
    """Whose server is killed between its first answer and the connection for the talk."""

    async def connect(self, up: Up, note: Callable[[str], None]) -> Channel:
        tcp = "solvisor.solvers.server.Talk.tcp"
        real = ServerKind.connect
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tcp, _refused)
            return await real(self, up, note)


async def _refused(host: str, port: int) -> None:
    raise Unreached(f"nobody answers on port {port} of {host}: Connection refused")


async def test_a_server_that_cannot_be_reached_after_the_probe_is_not_ready(tmp_path: Path) -> None:
    json = solver(command=(), talk="json", servers={"start_timeout": 2.0})
    async with lab(tmp_path, json, kind=GoneAfterTheProbe) as pool:
        end = await pool.ended(pool.start())
        assert "Connection refused" in (end.error or "")
        assert not end.blameless


async def test_a_line_is_no_answer_to_a_talk(tmp_path: Path) -> None:
    listens = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print('up', flush=True)"
    program = f"{listens}; c, _ = s.accept(); c.recv(1); c.sendall(b'[]\\n'); s.accept()"
    start = (*PYTHON, "-c", program, "{port}")
    async with lab(tmp_path, solver(start=start, command=(), talk="json", ready=LineReady(match="^up$"))) as pool:
        name = await pool.ready()
        with pytest.raises(ServerBroken, match="is not an object of JSON"):
            await pool.pool.carry_out(name, pool.lend(name))
        end = await pool.ended(name)
        assert "is not an object of JSON" in (end.error or "")


# --- what will not die ------------------------------------------------------------------------------------------------


class Signals:
    """Signals that work, until ``lost`` is set."""

    def __init__(self) -> None:
        self.lost = False

    def __call__(self, target: int, signum: int, *, group: bool) -> None:
        if not self.lost:
            proc.send_signal(target, signum, group=group)


@asynccontextmanager
async def undying(folder: Path, **servers: float) -> AsyncIterator[tuple[Lab, Signals]]:
    """A pool whose processes cannot be killed while ``lost`` is set."""
    backend, signals = LocalBackend(kill_wait_seconds=0.3), Signals()
    async with lab(folder, solver("--after", "go", "--ignore-term", servers=servers), backend=backend) as pool:
        assert backend._processes is not None
        backend._processes._send_signal = signals
        yield pool, signals


@pytest.mark.parametrize("state", [ServerState.STARTING, ServerState.READY])
async def test_a_server_that_would_not_die_keeps_its_port_and_holds_up_nobody(
    tmp_path: Path, state: ServerState
) -> None:
    async with undying(tmp_path, stop_grace=0.1) as (pool, signals):
        name = pool.start()
        await pool.news(ServerUp, name)
        if state is ServerState.READY:
            (pool.folder(name) / "go").touch()
            await pool.news(ServerReady, name)
        signals.lost = True
        pool.retire(name)
        await pool.news(ServerStuck, name)
        assert not pool.pool.busy, "it holds up the end of the daemon"
        assert pool.server(name).stuck
        assert pool.leases.taken == 1
        os.kill(pool.pid(name), signal.SIGKILL)
        await pool.ended(name)
        assert pool.leases.alive_at_return == [[]]
        signals.lost = False


async def test_a_server_that_never_gets_ready_and_would_not_die(tmp_path: Path) -> None:
    async with undying(tmp_path, start_timeout=1.0, stop_grace=0.1) as (pool, signals):
        name = pool.start()
        await pool.news(ServerUp, name)
        signals.lost = True
        await pool.news(ServerStuck, name)
        assert pool.server(name).state is ServerState.STOPPING, "it must not count as one that comes"
        assert not pool.pool.busy, "it holds up the end of the daemon"
        os.kill(pool.pid(name), signal.SIGKILL)
        end = await pool.ended(name)
        assert "was not ready in 1 s" in (end.error or "")
        signals.lost = False
