"""Two parts of ``servers.py`` without a daemon: round trips to one warm server, and how late readiness is seen."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path

import anyio
import structlog
import uvloop
import zmq
import zmq.asyncio
from anyio.abc import TaskGroup

from solvisor.backends.local import LocalBackend
from solvisor.errors import Unreached
from solvisor.events import ServerEnded, ServerEvent, ServerReady
from solvisor.home import Home
from solvisor.interfaces import Backend, Handle, Program, WarmKind
from solvisor.kinds import LineReady, PythonSolver, ReportedPort, ServerSolver, TcpReady
from solvisor.leases import Leases
from solvisor.model import Attempt, FileFact, Job, JobSpec, PortRange, Server, ServerState, Settings, Source, State
from solvisor.pool import Pool
from solvisor.process.host import boot_id
from solvisor.solvers.omcwire import Wire
from solvisor.solvers.python import SOCKET, WORKER, PythonKind
from solvisor.solvers.server import ServerKind
from solvisor.talk import Talk, TalkChannel

PROGRAMS = Path(__file__).parent / "programs"
PYTHON = sys.executable
REDIS = shutil.which("redis-server")
HOST = "127.0.0.1"

Series = dict[str, list[float]]
"""Measured values, round by round, by the name of what was measured."""


# --- round trips ------------------------------------------------------------------------------------------------------


RAW = "bare uvloop echo"
JSON = "bare uvloop client and server, JSON"
BARE_ZMQ = "bare pyzmq REQ on uvloop"
PEERS = {
    "talk to a Python worker: ping": JSON,
    "talk to a Python worker: trivial function": JSON,
    "omc's wire": BARE_ZMQ,
}
"""Beside which bare loop a channel stands."""


class Lines(asyncio.Protocol):
    """The least that a client can be: answers fit into one piece, nothing is bounded, nothing can go wrong."""

    transport: asyncio.Transport
    waiter: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # of a stream, so a whole Transport

    def data_received(self, data: bytes) -> None:
        self.waiter.set_result(data)

    async def ask_raw(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(b'{"ping":1}\n')
        await self.waiter

    async def ask_json(self) -> None:
        self.waiter = asyncio.get_running_loop().create_future()
        self.transport.write(json.dumps({"ping": 1}).encode() + b"\n")
        json.loads(await self.waiter)


class Visit:
    """A job as a server's kind sees it; a ``Work``."""

    def __init__(self, folder: Path) -> None:
        (folder / "output").mkdir(parents=True)
        (folder / "output" / "rows.csv").write_text("1,2,3\n")
        inputs = (FileFact("input/rows.csv", 6, "ab" * 32),)
        spec = JobSpec("rows", "s", "rows.csv", inputs, Source("inbox", "rows.csv"))
        attempt = Attempt(1, "token", "host", 0, Settings("python", {}))
        self.job = Job(folder.name, 1, State.RUNNING, spec, 0, (attempt,))
        self.folder = folder

    async def launch(self, program: Program, cwd: Path | None = None) -> Handle:
        raise NotImplementedError


def trips(base: Path, rounds: int, count: int) -> dict[str, Series]:
    """Round trips per second: ``count`` over each channel, in each round, by where client and server run.

    That decides more than all else: left to itself the scheduler moves them from one way to the other in mid-run.
    """
    base.mkdir()
    call = ("--call", "work.py:nothing", "--folder", str(PROGRAMS), "--socket", SOCKET)
    commands = (
        (PYTHON, str(WORKER), *call),
        (PYTHON, str(PROGRAMS / "echo_lines.py")),
        (PYTHON, str(PROGRAMS / "echo_zmq.py")),
    )
    servers = [subprocess.Popen(argv, cwd=base, stdout=subprocess.PIPE) for argv in commands]
    try:
        _, lines, echo = (server.stdout for server in servers)
        assert lines is not None
        assert echo is not None
        lines.readline()
        pids = [server.pid for server in servers]
        return uvloop.run(_trips(base, int(echo.readline()), pids, rounds, count))
    finally:
        for server in servers:
            with server:
                server.kill()


async def talk_with_worker(base: Path) -> Talk:
    while True:
        with suppress(Unreached):
            return await Talk.unix(str(base), SOCKET)
        await anyio.sleep(0.01)


def pin(pid: int, cpus: set[int]) -> None:
    """Have all threads of a process run there."""
    for thread in os.listdir(f"/proc/{pid}/task"):
        os.sched_setaffinity(int(thread), cpus)


async def _trips(base: Path, port: int, pids: list[int], rounds: int, count: int) -> dict[str, Series]:
    loop = asyncio.get_running_loop()
    _, raw = await loop.create_unix_connection(Lines, str(base / "raw.sock"))
    _, objects = await loop.create_unix_connection(Lines, str(base / "json.sock"))
    with anyio.fail_after(30):
        talk = await talk_with_worker(base)
    channel, visit = TalkChannel(talk, PythonSolver(call="work.py:nothing")), Visit(base / "job")
    wire = Wire(port)
    blocking: zmq.Socket[bytes] = zmq.Context().socket(zmq.REQ)
    blocking.connect(f"tcp://{HOST}:{port}")
    waiting = zmq.asyncio.Context().socket(zmq.REQ)
    waiting.connect(f"tcp://{HOST}:{port}")

    async def call() -> None:
        facts = await channel.run(visit)
        assert facts.exit_code == 0

    async def ask_wire() -> None:
        await wire.ask("getVersion()")

    async def ask_blocking() -> None:
        blocking.send(b"getVersion()")
        blocking.recv()

    async def ask_waiting() -> None:
        await waiting.send(b"getVersion()")
        await waiting.recv()

    channels: dict[str, Callable[[], Awaitable[None]]] = {
        RAW: raw.ask_raw,
        JSON: objects.ask_json,
        "talk to a Python worker: ping": channel.check,
        "talk to a Python worker: trivial function": call,
        "bare pyzmq REQ, blocking": ask_blocking,
        BARE_ZMQ: ask_waiting,
        "omc's wire": ask_wire,
    }
    usable = os.sched_getaffinity(0)
    first, last = min(usable), max(usable)
    places = {"on one core": first} if first == last else {"on one core": first, "on two cores": last}
    series: dict[str, Series] = {place: {name: [] for name in channels} for place in places}
    for _ in range(rounds):
        for place in series:
            pin(os.getpid(), {first})
            for pid in pids:
                pin(pid, {places[place]})
            for name, ask in channels.items():
                for _ in range(count // 10):  # to warm up
                    await ask()
                start = time.perf_counter()
                for _ in range(count):
                    await ask()
                series[place][name].append(count / (time.perf_counter() - start))
    pin(os.getpid(), usable)
    channel.close()
    wire.close()
    blocking.close(linger=0)
    waiting.close(linger=0)
    return series


# --- readiness --------------------------------------------------------------------------------------------------------


LATE = (PYTHON, "-S", "-E", str(PROGRAMS / "late_server.py"))
TOLD = re.compile(r"ready at ([0-9.]+)")
TOLD_BY_REDIS = re.compile(r"(\d+ \w+ \d+ [\d:.]+) \* Ready to accept connections")


def printed_instant(text: str) -> float:
    """When a server says that it was ready, in monotonic seconds. Redis tells whole milliseconds, cut off."""
    told = TOLD.search(text)
    if told is not None:
        return float(told[1])
    told = TOLD_BY_REDIS.search(text)
    if told is None:
        sys.exit(f"a server that is ready did not say since when: {text!r}")
    wall = datetime.strptime(told[1], "%d %b %Y %H:%M:%S.%f").astimezone().timestamp()
    return wall - time.time() + time.monotonic()


def solvers() -> dict[str, PythonSolver | ServerSolver]:
    """One of each way to be ready, by what is said of it."""
    ping = TcpReady(send="ping\n", expect="^pong$")
    line, reported = LineReady(match="^port"), ReportedPort(line=r"^port (\d+) ready")
    made: dict[str, PythonSolver | ServerSolver] = {
        "server, asked over TCP": ServerSolver(start=(*LATE, "{host}", "{port}"), ready=ping),
        "server, says so in a line": ServerSolver(start=(*LATE, "{host}", "0"), ready=line, port=reported),
        "python": PythonSolver(call="late_import.py:process", python=PYTHON),
    }
    if REDIS is not None:
        options = ("--port", "{port}", "--bind", "{host}", "--save", "", "--dir", "{server_dir}")
        ready = TcpReady(send="PING\r\n", expect=r"^\+PONG")
        made["server, redis (tells whole ms)"] = ServerSolver(start=(REDIS, *options), ready=ready)
    return made


class Starts:
    """A real pool, whose servers are started one at a time."""

    def __init__(self, base: Path, backend: Backend, tasks: TaskGroup) -> None:
        home = Home.at(base / "home")
        home.run.mkdir(parents=True)
        self._servers = home.run / "servers"
        self._tasks = tasks
        self._number = 0
        self._news: dict[type[ServerEvent], float] = {}
        self._arrived = anyio.Event()
        environ = {"PATH": os.environ["PATH"]}
        made = solvers()
        kinds: dict[str, WarmKind] = {
            name: PythonKind(solver, name, PROGRAMS, environ, {})
            if isinstance(solver, PythonSolver)
            else ServerKind(solver, name, backend, PROGRAMS, environ, {})
            for name, solver in made.items()
        }
        self._pool = Pool(
            home=home,
            home_id=secrets.token_hex(8),
            boot_id=boot_id(),
            backend=backend,
            leases=Leases(PortRange(21000, 22999)),
            solvers=made,
            kinds=kinds,
            post=self._post,
        )

    def _post(self, event: ServerEvent) -> None:
        self._news[type(event)] = time.monotonic()
        if isinstance(event, ServerEnded) and event.error is not None:
            sys.exit(event.error)
        self._arrived.set()

    async def _until(self, kind: type[ServerEvent]) -> float:
        """When such news came."""
        while kind not in self._news:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._news[kind]

    async def one(self, solver: str) -> tuple[float, float]:
        """Seconds from the wish to have a server until it was ready, and from there until that was seen."""
        self._number += 1
        self._news.clear()
        name = f"s-{self._number}"
        began = time.monotonic()
        self._pool.start(self._tasks, Server(name, solver, ServerState.STARTING, (), began, began, 0))
        seen = await self._until(ServerReady)
        ready = printed_instant((self._servers / name / "stdout.log").read_text())
        self._pool.stop(name)
        await self._until(ServerEnded)
        return ready - began, seen - ready


def late_server(folder: Path, port: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen((*LATE, HOST, str(port)), cwd=folder, stdout=subprocess.PIPE)


async def polled(folder: Path, pause: float, ports: Iterator[int]) -> tuple[float, float]:
    """The same for a bare loop that connects and asks until it is answered."""
    port = next(ports)
    began = time.monotonic()
    with late_server(folder, port) as process:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(HOST, port)
                writer.write(b"ping\n")
                await reader.readline()
                break
            await anyio.sleep(pause)
        seen = time.monotonic()
        writer.close()
        assert process.stdout is not None
        ready = printed_instant(process.stdout.readline().decode())
        process.kill()
    return ready - began, seen - ready


async def readiness(base: Path, rounds: int, count: int) -> tuple[Series, Series]:
    """Milliseconds from the wish to have a server until it was ready, and from there until that was seen.

    ``count`` starts of each kind of server, in each round.
    """
    base.mkdir()
    log = structlog.ReturnLoggerFactory()
    structlog.configure(processors=[structlog.processors.JSONRenderer()], logger_factory=log)
    ports = iter(range(23000, 30000))
    async with LocalBackend() as backend, anyio.create_task_group() as tasks:
        starts = Starts(base, backend, tasks)
        ways: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {}
        for name in solvers():
            ways[f"pool: {name}"] = partial(starts.one, name)
        for pause in (0.001, 0.01, 0.1):
            ways[f"bare connecting every {1000 * pause:.0f} ms"] = partial(polled, base, pause, ports)
        took: Series = {name: [] for name in ways}
        late: Series = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                for _ in range(count):
                    until_ready, until_seen = await way()
                    took[name].append(1000 * until_ready)
                    late[name].append(1000 * until_seen)
    return took, late
