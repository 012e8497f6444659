"""Warm servers from start to end: ports that others take, programs that will not serve, manners at the end."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import anyio.to_thread
import pytest

from daemon import processes_of
from pool_kit import CLIENT, SERVER, lab, solver, spare_range
from probe_kit import HOST
from process_kit import is_alive, is_gone
from solvisor.errors import SpawnError
from solvisor.events import ServerFree, ServerReady, ServerUp
from solvisor.interfaces import Program, Site
from solvisor.kinds import LineReady, ReportedPort
from solvisor.life import PORT_TRIES
from solvisor.solvers.server import ServerKind
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

LOOPS = "uvloop"

taken: list[socket.socket] = []


@pytest.fixture(autouse=True)
def strangers() -> Iterator[None]:
    """Sockets that a test's thief bound are closed after it."""
    taken.clear()
    yield
    for thief in taken:
        thief.close()


def steal(port: int, *, listens: bool = True) -> None:
    """Bind a port in this process, a stranger to every server."""
    thief = socket.socket()
    thief.bind((HOST, port))
    if listens:
        thief.listen()
    taken.append(thief)


# --- lives ------------------------------------------------------------------------------------------------------------


async def test_a_life_is_told_in_order(tmp_path: Path) -> None:
    async with lab(tmp_path, solver()) as pool:
        name = await pool.ready()
        server = pool.server(name)
        assert (server.state, server.port) == ("ready", pool.leases.taken_ports[0])
        assert is_alive(server.pid or 0)
        errand = pool.lend(name)
        facts = await pool.pool.carry_out(name, errand)
        assert (facts.exit_code, facts.stopped) == (0, False)
        assert (errand.folder / "stdout.log").read_text() == "pong\n"
        assert errand.pids == [server.pid], "the job was begun by its server"
        assert len(errand.programs) == 1
        await pool.pool.give_back(name, served=True)
        assert pool.server(name).jobs == 1
        pool.retire(name)
        assert (await pool.ended(name)).error is None
        assert pool.of(name) == [
            "ServerWanted",
            "ServerUp",
            "ServerReady",
            "ServerLent",
            "ServerFree",
            "Retire",
            "ServerEnded",
        ]
        assert is_gone(server.pid or 0)
        assert pool.leases.alive_at_return == [[]], "its port was given back before its processes were gone"
        assert pool.leases.resting == 1


async def test_64_starts_at_the_same_instant(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(), ports=spare_range(64)) as pool:
        names = [pool.start() for _ in range(64)]
        for name in names:
            await pool.news(ServerReady, name)
        ports = {pool.server(name).port for name in names}
        assert len(ports) == 64, "two servers have one port"
        assert len({pool.server(name).pid for name in names}) == 64


async def test_a_server_that_picks_its_own_port_needs_no_lease(tmp_path: Path) -> None:
    told = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print('on', s.getsockname()[1], flush=True); "
    )
    told += "c, _ = s.accept(); sys.stdin.read()"
    start = (sys.executable, "-c", told)
    own = solver(start=start, port=ReportedPort(line=r"^on (\d+)"), ready=LineReady(match="^on "))
    async with lab(tmp_path, own) as pool:
        name = pool.start()
        ready = await pool.news(ServerReady, name)
        assert ready.port is not None
        assert pool.leases.taken_ports == []
        assert pool.server(name).port == ready.port


# --- ports ------------------------------------------------------------------------------------------------------------


class StolenFirst(ServerKind):
    """Loses the first port between the lease and the start: somebody listens there."""

    def program(self, place: Site) -> Program:
        if not taken:
            steal(place.port or 0)
        return super().program(place)


async def test_fault_18_a_port_stolen_after_the_lease_costs_nothing_but_another_port(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(), kind=StolenFirst) as pool:
        name = await pool.ready()
        first, second = pool.leases.taken_ports
        assert taken[0].getsockname()[1] == first
        assert pool.server(name).port == second
        assert [up.port for up in pool.all(ServerUp)] == [first, second]
        assert pool.of(name).count("ServerEnded") == 0
        assert pool.world.pool("s").ends == []


LOST_RACE = ("Address already in use", "listens on port")
"""What the server says of a port that was stolen, or the probe if it was first to see the thief."""


class AlwaysStolen(ServerKind):
    def program(self, place: Site) -> Program:
        steal(place.port or 0)
        return super().program(place)


async def test_fault_18_a_start_is_tried_on_five_ports_and_lost_races_are_nobodys_fault(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(), kind=AlwaysStolen) as pool:
        name = pool.start()
        end = await pool.ended(name)
        assert len(set(pool.leases.taken_ports)) == PORT_TRIES == len(pool.leases.taken_ports)
        assert end.blameless
        assert any(words in (end.error or "") for words in LOST_RACE)
        assert pool.world.pool("s").ends == []


async def test_fault_19_a_foreign_listener_is_not_taken_for_the_server(tmp_path: Path) -> None:
    """A decoy that even gives the right answer; the server itself came to life and waits for something else."""

    class Decoyed(ServerKind):
        def program(self, place: Site) -> Program:
            if not taken:
                steal(place.port or 0)
            return super().program(place)

    waits = solver("--after", "go")
    async with lab(tmp_path, waits, kind=Decoyed) as pool:
        name = pool.start()
        await eventually(lambda: len(pool.leases.taken_ports) == 2, "another port is tried", 60)
        await eventually(lambda: pool.of(name).count("ServerUp") == 2, "a second start", 60)
        assert "ServerReady" not in pool.of(name)
        (pool.folder(name) / "go").touch()
        assert (await pool.news(ServerReady, name)).port == pool.leases.taken_ports[1]


async def test_fault_24_a_server_that_accepts_and_says_nothing_is_not_ready(tmp_path: Path) -> None:
    async with lab(tmp_path, solver("--mute", servers={"start_timeout": 2.0})) as pool:
        name = pool.start()
        end = await pool.ended(name)
        assert end.error == f"{name} was not ready in 2 s: it accepted the connection and answered nothing"
        assert not end.blameless
        assert len(pool.leases.taken_ports) == 1, "another port would not help"


async def test_fault_23_a_server_on_the_other_family_is_told_so(tmp_path: Path) -> None:
    async with lab(tmp_path, solver("--listen", "::1", servers={"start_timeout": 2.0})) as pool:
        name = pool.start()
        end = await pool.ended(name)
        port = pool.leases.taken_ports[0]
        assert end.error is not None
        assert f"nothing listens on port {port} of {HOST}, it listens on ::1 instead" in end.error


async def test_fault_22_a_range_of_one(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(), ports=spare_range(1)) as pool:
        first = await pool.ready()
        second = pool.start()
        end = await pool.ended(second)
        assert end.blameless
        assert end.error is not None
        assert end.error.startswith(
            f"no port of {pool.server(first).port} is free on {HOST}: 1 in use by servers of this"
        )
        assert pool.world.pool("s").ends == []


async def test_why_a_start_failed_is_not_forgotten_when_the_ports_run_out(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(), kind=AlwaysStolen, ports=spare_range(2)) as pool:
        end = await pool.ended(pool.start())
        assert any(words in (end.error or "") for words in LOST_RACE)
        assert end.blameless


async def test_a_crash_is_no_lost_race_however_few_ports_there_are(tmp_path: Path) -> None:
    async with lab(tmp_path, solver("--exit", "7", "--err", "no such plugin"), ports=spare_range(1)) as pool:
        end = await pool.ended(pool.start())
        assert "no such plugin" in (end.error or "")
        assert not end.blameless
        assert len(pool.leases.taken_ports) == 1


# --- programs that will not serve -------------------------------------------------------------------------------------


async def test_a_death_before_it_is_ready_is_told_at_once_with_its_last_words(tmp_path: Path) -> None:
    dies = solver("--exit", "3", "--err", "first\\nbad mesh option", servers={"start_timeout": 3600.0})
    async with lab(tmp_path, dies) as pool:
        name = pool.start()
        end = await pool.ended(name)
        assert end.error == f"{name} ended with exit code 3 (it said: first\\nbad mesh option); it was not ready yet"
        assert not end.blameless
        assert not end.denied
        assert len(pool.leases.taken_ports) == 1


async def test_a_program_that_goes_into_the_background_is_told_to_stay(tmp_path: Path) -> None:
    start = ("/bin/sh", "-c", 'setsid "$@" & exit 0', "sh", *SERVER, "--pids", "{server_dir}/pids")
    async with lab(tmp_path, solver(start=start)) as pool:
        end = await pool.ended(pool.start())
        assert "ended with exit code 0 (a server must stay in the foreground)" in (end.error or "")


@pytest.mark.parametrize("log", ["--out", "--err"])
async def test_a_server_that_gets_no_license(tmp_path: Path, log: str) -> None:
    other = "--err" if log == "--out" else "--out"
    denied = solver("--exit", "1", log, "FlexNet: no seat", other, "starting up", license_denied="^FlexNet: no seat$")
    async with lab(tmp_path, denied) as pool:
        end = await pool.ended(pool.start())
        assert end.denied
        assert end.blameless
        assert len(pool.leases.taken_ports) == 1, "another port gives no license"


async def test_a_program_that_is_missing(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(start=("/no/such/server", "{port}"))) as pool:
        end = await pool.ended(pool.start())
        assert "/no/such/server" in (end.error or "")
        assert not end.blameless
        assert pool.leases.resting == 0, "nobody ever listened there"


# --- the end ----------------------------------------------------------------------------------------------------------


async def test_its_own_quit_is_enough(tmp_path: Path) -> None:
    polite = solver("--ignore-term", quit=(*CLIENT, "quit"), servers={"stop_grace": 3600.0})
    async with lab(tmp_path, polite) as pool:
        name = await pool.ready()
        pool.retire(name)
        assert (await pool.ended(name)).error is None


async def test_without_a_quit_it_gets_a_sigterm(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(servers={"stop_grace": 3600.0})) as pool:
        name = await pool.ready()
        pool.retire(name)
        assert (await pool.ended(name)).error is None


@pytest.mark.parametrize(
    "quit_",
    [
        ("/bin/sh", "-c", "exec sleep 1000"),
        ("/bin/sh", "-c", "setsid sleep 1000 & exec sleep 1000"),
        ("/no/such/quit",),
        (*CLIENT, "ping"),
    ],
    ids=["hangs", "hangs with children", "missing", "does nothing"],
)
async def test_a_quit_that_does_not_help_is_followed_by_sigterm_and_sigkill(
    tmp_path: Path, quit_: tuple[str, ...]
) -> None:
    rude = solver("--ignore-term", quit=quit_, servers={"stop_grace": 0.5})
    async with lab(tmp_path, rude) as pool:
        name = await pool.ready()
        pid = pool.pid(name)
        pool.retire(name)
        assert (await pool.ended(name)).error is None
        assert is_gone(pid)
        assert pool.leases.alive_at_return == [[]]


@pytest.mark.parametrize(
    "start",
    [
        ("/bin/sh", "-c", '"$@"; true', "sh", *SERVER, "--ignore-term", "--pids", "{server_dir}/../../pids"),
        (*SERVER, "--children", "--pids", "{server_dir}/../../pids"),
    ],
    ids=["wrapper", "children"],
)
@pytest.mark.parametrize("now", [False, True], ids=["stopped", "at once"])
async def test_whole_trees_are_gone_before_the_port_is_free(tmp_path: Path, start: tuple[str, ...], now: bool) -> None:
    async with lab(tmp_path, solver(start=start, servers={"stop_grace": 0.5})) as pool:
        name = await pool.ready()
        notes = pool.home.run / "pids"
        count = 4 if "--children" in start else 1
        await eventually(lambda: len(notes.read_text().split()) == count, "all its processes")
        pids = [pool.pid(name), *map(int, notes.read_text().split())]
        assert all(is_alive(pid) for pid in pids)
        if now:
            pool.pool.stop_all(now=True)
        else:
            pool.retire(name)
        await pool.ended(name)
        assert all(is_gone(pid) for pid in pids)
        assert pool.leases.alive_at_return == [[]]


async def test_a_stop_while_it_starts(tmp_path: Path) -> None:
    async with lab(tmp_path, solver("--after", "never")) as pool:
        name = pool.start()
        await pool.news(ServerUp, name)
        pool.retire(name)
        end = await pool.ended(name)
        assert end.error is None
        assert len(pool.leases.taken_ports) == 1, "who is to stop tries no other port"


async def test_all_stop_at_once_whatever_they_do(tmp_path: Path) -> None:
    rude = solver("--ignore-term", quit=("/bin/sleep", "1000"), servers={"stop_grace": 3600.0})
    async with lab(tmp_path, rude) as pool:
        idle, stopping, starting = await pool.ready(), await pool.ready(), pool.start()
        pool.retire(stopping)
        await eventually(lambda: len(list(processes_of(pool.home_id))) >= 4, "three servers and a quit", 60)
        pool.pool.stop_all(now=True)
        late = pool.start()
        for name in (idle, stopping, starting, late):
            assert (await pool.ended(name)).error is None


async def test_a_job_that_could_not_be_begun_gives_its_server_back(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(command=("/no/such/client",))) as pool:
        name = await pool.ready()
        with pytest.raises(SpawnError, match="/no/such/client"):
            await pool.pool.carry_out(name, pool.lend(name))
        await pool.pool.give_back(name, served=False)
        assert pool.all(ServerFree, name)
        assert pool.server(name).state == "ready"


async def test_fault_21_a_killed_server_leaves_a_port_that_rests(tmp_path: Path) -> None:
    """With a client still connected the port lingers in TIME_WAIT, where a strict server cannot bind it."""
    async with lab(tmp_path, solver(), ports=spare_range(2)) as pool:
        name = await pool.ready()
        first = pool.server(name).port
        with closing(socket.create_connection((HOST, first or 0))) as client:
            client.sendall(b"ping\n")
            assert await anyio.to_thread.run_sync(client.recv, 5) == b"pong\n"
            os.kill(pool.pid(name), signal.SIGKILL)
            await pool.ended(name)
        following = await pool.ready()
        assert pool.server(following).port != first
        third = pool.start()
        assert "1 resting after use" in ((await pool.ended(third)).error or "")
