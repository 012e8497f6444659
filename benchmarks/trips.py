"""What does a round trip to one warm server cost? Solvisor's own channels beside bare client loops, without a daemon.

A Python worker and a ZeroMQ server, asked from this process on uvloop; client and server on one core, and on two: that
decides more than all else, and left to itself the scheduler moves them from one way to the other in mid-run.

    python benchmarks/trips.py [--trips 2000] [--rounds 5] [--quick]
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import uvloop
import zmq
import zmq.asyncio
from bench_kit import late_ms
from figures import percentile, ratios, shown, spread, table
from record import Options, keep, scratch

from solvisor.errors import Unreached
from solvisor.interfaces import Handle, Program
from solvisor.kinds import PythonSolver
from solvisor.model import Attempt, FileFact, Job, JobSpec, Settings, Source, State
from solvisor.solvers.omcwire import Wire
from solvisor.solvers.python import SOCKET, WORKER
from solvisor.talk import Talk, TalkChannel

PROGRAMS = Path(__file__).parent / "programs"
PYTHON = sys.executable
HOST = "127.0.0.1"

Series = dict[str, list[float]]
"""Measured values, round by round, by the name of what was measured."""


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
    """Round trips per second: ``count`` over each channel, in each round, by where client and server run."""
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


def told(place: str, series: Series) -> dict[str, Any]:
    """A table for one way to run them, and the same for the JSON line."""
    report: dict[str, Any] = {}
    rows = []
    for name, values in series.items():
        report[name] = {"per_second": spread(values)}
        ratio = ""
        if name in PEERS:
            report[name] |= {"ratio": ratios(series, name, PEERS[name]), "to": PEERS[name]}
            ratio = f"{shown(report[name]['ratio'], 2)} of {PEERS[name]}"
        rows.append((name, shown(report[name]["per_second"]), f"{1e6 / statistics.median(values):.0f}", ratio))
    print(table((f"round trips, client and server {place}", "a second (min to max)", "us each", ""), rows), end="\n\n")
    return report


def main() -> None:
    parser = Options(__doc__)
    parser.count("trips", 2000, 500, "over each channel in a round")
    parser.count("rounds", 5, 2)
    arguments = parser.asked()
    count, rounds = arguments.trips, arguments.rounds
    with scratch(arguments) as base:
        late = [late_ms() for _ in range(50)]
        places = {place: told(place, series) for place, series in trips(base / "trips", rounds, count).items()}
        late += [late_ms() for _ in range(50)]
    print(f"noise: a sleep of 1 ms ended {percentile(late, 0.95):.2f} ms late at the 95th percentile")
    late_told = {"p50": percentile(late, 0.5), "p95": percentile(late, 0.95)}
    keep("trips", {"trips": count, "rounds": rounds, "late_ms": late_told, "places": places}, arguments)


if __name__ == "__main__":
    main()
