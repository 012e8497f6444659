"""What do warm servers cost, and what do they save? Four parts, in interleaved rounds beside peers of the same run.

``trips``   round trips per second through one warm Python worker and one ZeroMQ server, beside bare client loops
``ready``   how much later than a server is ready that is seen, beside bare polling
``jobs``    jobs through a real daemon, from rename into the inbox to visible manifest, warm beside cold: a function
            called in a warm worker, the same function in a new interpreter, and the no-op command
``idle``    memory and processor time of a daemon with many idle workers, beside one with none

Prints a table for each and a JSON line.

    python benchmarks/servers.py [PART ...] [--rounds 5] [--trips 2000] [--starts 20] [--jobs 500] [--cold 100]
                                 [--idle 64] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import structlog
import uvloop
import zmq
import zmq.asyncio
from anyio.abc import TaskGroup

from solvisor.backends.local import LocalBackend
from solvisor.events import ServerEnded, ServerEvent, ServerReady
from solvisor.home import Home
from solvisor.interfaces import Backend, Handle, Program, WarmKind
from solvisor.kinds import LineReady, PythonSolver, ReportedPort, ServerSolver, TcpReady, WarmSolver
from solvisor.leases import Leases
from solvisor.model import Attempt, FileFact, Job, JobSpec, PortRange, Server, ServerState, Settings, Source, State
from solvisor.pool import Pool
from solvisor.process.host import boot_id
from solvisor.solvers.omcwire import Wire
from solvisor.solvers.python import SOCKET, WORKER, PythonKind
from solvisor.solvers.server import ServerKind
from solvisor.talk import Talk, TalkChannel

PROGRAMS = Path(__file__).parent / "programs"
TRUE = shutil.which("true") or "/bin/true"
REDIS = shutil.which("redis-server")
PYTHON = sys.executable
HOST = "127.0.0.1"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE_SECONDS = 600

Report = dict[str, Any]
Series = dict[str, list[float]]


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def ratios(series: Series, name: str, to: str) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(series[name], series[to], strict=True)]


def print_rates(title: str, series: Series, peers: Mapping[str, str]) -> Report:
    """A table of rates, each with its ratio to its peer; the same for the JSON line."""
    print(f"\n{title:<44} {'per second':>10} {'(min to max)':>18}   ratio")
    report: Report = {}
    for name, values in series.items():
        report[name] = {"per_second": spread(values)}
        line = f"{name:<44} {statistics.median(values):10.0f} {f'{min(values):.0f} to {max(values):.0f}':>18}"
        if name in peers:
            shares = spread(ratios(series, name, peers[name]))
            report[name] |= {"ratio": shares, "to": peers[name]}
            line += f"   {shares['median']:.2f} ({shares['min']:.2f} to {shares['max']:.2f}) of {peers[name]}"
        print(line)
    return report


# --- round trips ------------------------------------------------------------------------------------------------------


class Lines(asyncio.Protocol):
    """The least that a client of lines can be: nothing is bounded, and nothing can go wrong."""

    transport: asyncio.Transport
    waiter: asyncio.Future[bytes]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # of a stream, so a whole Transport

    def data_received(self, data: bytes) -> None:
        self.waiter.set_result(data)

    async def ask(self) -> None:
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


async def reached(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        if time.monotonic() > end:
            sys.exit(f"{path} did not appear")
        await anyio.sleep(0.01)


async def trips(base: Path, rounds: int, count: int) -> Report:
    """``count`` round trips over each channel, in each round."""
    base.mkdir()
    call = ("--call", "work.py:nothing", "--folder", str(PROGRAMS), "--socket", SOCKET)
    commands = {
        "lines": (PYTHON, str(PROGRAMS / "echo_lines.py"), "echo.sock"),
        "worker": (PYTHON, str(WORKER), *call),
        "zmq": (PYTHON, str(PROGRAMS / "echo_zmq.py")),
    }
    servers = {name: subprocess.Popen(argv, cwd=base, stdout=subprocess.PIPE) for name, argv in commands.items()}
    try:
        told = servers["zmq"].stdout
        assert told is not None
        port = int(told.readline())
        await reached(base / "echo.sock")
        await reached(base / SOCKET)
        return await _trips(base, port, rounds, count)
    finally:
        for process in servers.values():
            with process:
                process.kill()


async def _trips(base: Path, port: int, rounds: int, count: int) -> Report:
    _, bare = await asyncio.get_running_loop().create_unix_connection(Lines, str(base / "echo.sock"))
    talk = await Talk.unix(str(base), SOCKET)
    channel, visit = TalkChannel(talk, PythonSolver(call="work.py:nothing")), Visit(base / "job")
    wire = Wire(port)
    blocking = zmq.Context().socket(zmq.REQ)
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
        "bare uvloop client and server, JSON lines": bare.ask,
        "talk to a Python worker: ping": channel.check,
        "talk to a Python worker: trivial function": call,
        "bare pyzmq REQ, blocking": ask_blocking,
        "bare pyzmq REQ on uvloop": ask_waiting,
        "omc's wire": ask_wire,
    }
    lines, bare_zmq = "bare uvloop client and server, JSON lines", "bare pyzmq REQ on uvloop"
    peers = {name: lines for name in channels if name.startswith("talk")} | {"omc's wire": bare_zmq}
    series: Series = {name: [] for name in channels}
    for number in range(rounds + 1):
        for name, ask in channels.items():
            many = count if number else count // 10  # the first round only warms up
            start = time.perf_counter()
            for _ in range(many):
                await ask()
            if number:
                series[name].append(many / (time.perf_counter() - start))
    channel.close()
    wire.close()
    blocking.close(linger=0)
    waiting.close(linger=0)
    return print_rates("round trips, one client, one server", series, peers)


# --- readiness --------------------------------------------------------------------------------------------------------


LATE = (PYTHON, "-S", "-E", str(PROGRAMS / "late_server.py"), "{host}", "{port}")
PING = TcpReady(send="ping\n", expect="^pong$")
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
    return datetime.strptime(told[1], "%d %b %Y %H:%M:%S.%f").timestamp() - time.time() + time.monotonic()


class Starts:
    """A real pool, whose servers are started one at a time."""

    def __init__(self, base: Path, backend: Backend, tasks: TaskGroup) -> None:
        home = Home.at(base / "home")
        home.run.mkdir(parents=True)
        self._servers = home.run / "servers"
        self._tasks = tasks
        self._number = 0
        self._news: dict[type[ServerEvent], tuple[float, ServerEvent]] = {}
        self._arrived = anyio.Event()
        environ = {"PATH": os.environ["PATH"]}
        own_port = (*LATE[:-1], "0")
        solvers: dict[str, WarmSolver] = {
            "tcp": ServerSolver(start=LATE, ready=PING),
            "line": ServerSolver(
                start=own_port, ready=LineReady(match="^port"), port=ReportedPort(line=r"^port (\d+) ready")
            ),
            "python": PythonSolver(call="late_import.py:process", python=PYTHON),
        }
        if REDIS is not None:
            options = ("--port", "{port}", "--bind", "{host}", "--save", "", "--dir", "{server_dir}")
            ready = TcpReady(send="PING\r\n", expect=r"^\+PONG")
            solvers["redis"] = ServerSolver(start=(REDIS, *options), ready=ready)
        kinds: dict[str, WarmKind] = {
            name: PythonKind(solver, name, PROGRAMS, environ, {})
            if isinstance(solver, PythonSolver)
            else ServerKind(solver, name, backend, PROGRAMS, environ, {})
            for name, solver in solvers.items()
            if isinstance(solver, PythonSolver | ServerSolver)
        }
        self.names = list(solvers)
        self._pool = Pool(
            home=home,
            home_id=secrets.token_hex(8),
            boot_id=boot_id(),
            backend=backend,
            leases=Leases(PortRange(21000, 22999)),
            solvers=solvers,
            kinds=kinds,
            post=self._post,
        )

    def _post(self, event: ServerEvent) -> None:
        self._news[type(event)] = time.monotonic(), event
        self._arrived.set()

    async def _until(self, kind: type[ServerEvent]) -> tuple[float, ServerEvent]:
        while kind not in self._news:
            if ServerEnded in self._news:
                sys.exit(f"a server ended: {self._news[ServerEnded][1]}")
            self._arrived = anyio.Event()
            await self._arrived.wait()
        return self._news[kind]

    async def one(self, solver: str) -> tuple[float, float]:
        """Seconds from the wish to have a server until it was ready, and from there until that was seen."""
        self._number += 1
        self._news.clear()
        name = f"{solver}-{self._number}"
        began = time.monotonic()
        self._pool.start(self._tasks, Server(name, solver, ServerState.STARTING, (), began, began, 0))
        seen, _ = await self._until(ServerReady)
        ready = printed_instant((self._servers / name / "stdout.log").read_text())
        self._pool.stop(name)
        await self._until(ServerEnded)
        return ready - began, seen - ready


async def polled(folder: Path, pause: float, port: int) -> tuple[float, float]:
    """The same for a bare loop that connects and asks until it is answered."""
    began = time.monotonic()
    argv = [text.format(host=HOST, port=port) for text in LATE]
    with subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE) as process:
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


@asynccontextmanager
async def started(base: Path) -> AsyncIterator[Starts]:
    async with LocalBackend() as backend, anyio.create_task_group() as tasks:
        yield Starts(base, backend, tasks)


async def readiness(base: Path, rounds: int, count: int) -> Report:
    """``count`` starts of each kind of server, in each round."""
    base.mkdir()
    structlog.configure(
        processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.ReturnLoggerFactory()
    )
    ways: dict[str, Callable[[], Awaitable[tuple[float, float]]]] = {}
    async with started(base) as starts:
        about = {
            "tcp": "pool, kind server, asked over TCP",
            "line": "pool, kind server, tells its port in a line",
            "python": "pool, kind python",
            "redis": "pool, redis-server (it tells whole ms)",
        }
        for name in starts.names:
            ways[about[name]] = lambda name=name: starts.one(name)  # type: ignore[misc]
        ports = iter(range(23000, 30000))
        for pause in (0.001, 0.01, 0.1):
            ways[f"bare connecting every {1000 * pause:.0f} ms"] = lambda pause=pause: polled(base, pause, next(ports))  # type: ignore[misc]
        late: Series = {name: [] for name in ways}
        took: Series = {name: [] for name in ways}
        for number in range(rounds):
            for name, way in ways.items():
                for _ in range(count + (number == 0)):
                    until_ready, until_seen = await way()
                    took[name].append(1000 * until_ready)
                    late[name].append(1000 * until_seen)
    return print_lateness(took, late)


def print_lateness(took: Series, late: Series) -> Report:
    head = f"{'ready after':>12} {'seen later: p50':>16} {'p95':>7} {'max':>7}"
    print(f"\n{'readiness, ms':<44} {head}")
    report: Report = {}
    for name, values in late.items():
        told = {"p50": percentile(values, 0.5), "p95": percentile(values, 0.95), "max": max(values)}
        report[name] = {"ready_after_ms": spread(took[name]), "seen_later_ms": told, "starts": len(values)}
        shown = f"{told['p50']:16.2f} {told['p95']:7.2f} {told['max']:7.2f}"
        print(f"{name:<44} {statistics.median(took[name]):12.1f} {shown}")
    return report


# --- jobs through a daemon --------------------------------------------------------------------------------------------


HEAD = """
[daemon]
max_jobs = 2
"""
JOBS = f"""{HEAD}
[solver.noop]
accept = ["*.noop"]
command = ["{TRUE}"]
[solver.nothing]
kind = "python"
accept = ["*.nothing"]
call = "work.py:nothing"
python = "{PYTHON}"
[solver.cold]
accept = ["*.cold"]
command = ["{PYTHON}", "{PROGRAMS / "work.py"}", "{{input}}"]
[solver.warm]
kind = "python"
accept = ["*.warm"]
call = "work.py:process"
python = "{PYTHON}"
"""


class Daemon:
    """A daemon on a fresh home at ``home``, in which the function of ``work.py`` lies."""

    def __init__(self, home: Path, config: str) -> None:
        self.home = home
        self.home.mkdir(parents=True)
        (home / "solvisor.toml").write_text(config)
        shutil.copy(PROGRAMS / "work.py", home)
        command = [PYTHON, "-m", "solvisor_service.cli", "serve", "--home", str(home)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._log = home / "state" / "log" / "solvisor.jsonl"
        self._scratch = home.with_name(f"{home.name}-scratch")
        self._scratch.mkdir()
        self._number = 0
        self.wait_log("daemon.ready", 1)

    def wait_log(self, event: str, count: int) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not (self._log.exists() and self._log.read_text().count(f'"{event}"') >= count):
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"the daemon did not log {event}")
            time.sleep(0.05)

    def drop(self, solver: str, count: int) -> float:
        """Seconds from the first rename into the inbox until ``count`` manifests are visible."""
        pairs = []
        rows = "".join(f"{n},{n * n % 97}.5,{n % 7}\n" for n in range(50))
        for _ in range(count):
            self._number += 1
            name = f"job{self._number:06}.{solver}"
            (self._scratch / name).write_text(rows)
            pairs.append((self._scratch / name, self.home / "inbox" / name))
        pause = 0.01 if count > 1 else 0.0002
        end = time.monotonic() + PATIENCE_SECONDS
        start = time.perf_counter()
        for source, target in pairs:
            source.rename(target)
        while len(os.listdir(self.home / "done")) < count:
            if time.monotonic() > end or os.listdir(self.home / "failed"):
                sys.exit(f"a job of {solver} did not succeed")
            time.sleep(pause)
        seconds = time.perf_counter() - start
        for folder in (self.home / "done").iterdir():  # a long folder would take long to look at
            shutil.rmtree(folder)
        return seconds

    def cpu_seconds(self) -> tuple[float, float]:
        """Processor time of the daemon itself, and of its children, alive and ended."""
        own, ended = cpu_times(self.process.pid)
        return own, ended + sum(sum(cpu_times(pid)) for pid in children(self.process.pid))

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(60) != 0:
            sys.exit(f"the daemon ended with {self.process.returncode}")


def cpu_times(pid: int) -> tuple[float, float]:
    """Processor seconds of a process, and of those of its children that it reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    times = [int(field) / TICK for field in fields[11:15]]
    return times[0] + times[1], times[2] + times[3]


def children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def bare_scripts(base: Path, count: int) -> float:
    """Seconds for as many interpreters as jobs, two at a time, without a daemon."""
    rows = base / "rows.csv"
    rows.write_text("1,2,3\n")
    start = time.perf_counter()
    command = ["xargs", "-P2", "-n1", PYTHON, str(PROGRAMS / "work.py")]
    subprocess.run(command, input=f"{rows}\n".encode() * count, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def jobs(base: Path, rounds: int, count: int, cold: int) -> Report:
    """``count`` trivial jobs each way, and ``cold`` jobs that compute something, in each round."""
    base.mkdir()
    daemon = Daemon(base / "home", JOBS)
    sizes = {"noop": count, "nothing": count, "cold": cold, "warm": cold}
    names = {
        "noop": f"{count} no-op commands",
        "nothing": f"{count} calls of a trivial function, warm",
        "cold": f"{cold} scripts, a new interpreter each",
        "warm": f"{cold} calls of the same function, warm",
    }
    bare = f"{cold} bare scripts, xargs -P2"
    rates: Series = {name: [] for name in (*names.values(), bare)}
    costs: dict[str, list[tuple[float, float]]] = {solver: [] for solver in names}
    for solver in names:
        daemon.drop(solver, 20)
    for _ in range(rounds):
        for solver, size in sizes.items():
            before = daemon.cpu_seconds()
            rates[names[solver]].append(size / daemon.drop(solver, size))
            after = daemon.cpu_seconds()
            own, others = (1000 * (late - early) / size for early, late in zip(before, after, strict=True))
            costs[solver].append((own, others))
        rates[bare].append(cold / bare_scripts(base, cold))
    latency = {solver: spread(_one_by_one(daemon, solver, 20)) for solver in names}
    daemon.stop()
    peers = {names["nothing"]: names["noop"], names["warm"]: names["cold"], names["cold"]: bare}
    report = print_rates("jobs through the daemon, two at a time", rates, peers)
    print(f"\n{'processor time per job, ms':<44} {'daemon':>10} {'its children':>13}   one job on an idle system, ms")
    for solver, name in names.items():
        own, others = (spread(column) for column in zip(*costs[solver], strict=True))
        one = latency[solver]
        alone = f"{one['median']:.1f} ({one['min']:.1f} to {one['max']:.1f})"
        print(f"{name:<44} {own['median']:10.2f} {others['median']:13.2f}   {alone}")
        report[name] |= {"daemon_cpu_ms": own, "children_cpu_ms": others, "one_job_ms": one}
    return report


def _one_by_one(daemon: Daemon, solver: str, count: int) -> list[float]:
    values = []
    for _ in range(count):
        time.sleep(0.1)
        values.append(1000 * daemon.drop(solver, 1))
    return values


# --- idle workers -----------------------------------------------------------------------------------------------------


IDLE_SECONDS = 30.0
"""As long as the default heartbeat: each worker is asked once."""


def idle(base: Path, count: int) -> Report:
    """Two daemons side by side, one of which keeps ``count`` workers."""
    base.mkdir()
    config = f'{HEAD}[solver.idle]\nkind = "python"\naccept = ["*.x"]\ncall = "work.py:nothing"\npython = "{PYTHON}"\n'
    daemons = {
        "no workers": Daemon(base / "none", config),
        f"{count} idle workers": Daemon(base / "many", f"{config}servers = {{ min = {count}, max = {count} }}\n"),
    }
    daemons[f"{count} idle workers"].wait_log("server.ready", count)
    before = {name: daemon.cpu_seconds()[0] for name, daemon in daemons.items()}
    time.sleep(IDLE_SECONDS)
    report: Report = {}
    print(f"\n{'idle daemon':<44} {'MiB':>10} {'% of a core':>13}")
    for name, daemon in daemons.items():
        share = 100 * (daemon.cpu_seconds()[0] - before[name]) / IDLE_SECONDS
        report[name] = {"rss_mib": daemon.rss_bytes() / (1 << 20), "cpu_percent": share}
        print(f"{name:<44} {report[name]['rss_mib']:10.1f} {share:13.2f}")
    for daemon in daemons.values():
        daemon.stop()
    return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("trips", "ready", "jobs", "idle")
    options.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all)")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--trips", type=int, default=2000, help="round trips per channel and round")
    options.add_argument("--starts", type=int, default=20, help="starts per kind of server and round")
    options.add_argument("--jobs", type=int, default=500, help="trivial jobs per round")
    options.add_argument("--cold", type=int, default=100, help="jobs per round that compute something")
    options.add_argument("--idle", type=int, default=64, help="idle workers")
    options.add_argument("--dir", type=Path, help="where throw-away homes lie (default: the temporary folder)")
    arguments = options.parse_args()
    chosen = arguments.parts or parts
    if not set(chosen) <= set(parts):
        options.error(f"the parts are {', '.join(parts)}")
    report: Report = {"rounds": arguments.rounds, "load_before": os.getloadavg()}
    print("load of the machine before: {:.2f} {:.2f} {:.2f}".format(*os.getloadavg()))
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="solvisor-bench-") as folder:
        base, rounds = Path(folder), arguments.rounds
        if "trips" in chosen:
            report["trips"] = uvloop.run(trips(base / "trips", rounds, arguments.trips))
        if "ready" in chosen:
            report["ready"] = uvloop.run(readiness(base / "ready", rounds, arguments.starts))
        if "jobs" in chosen:
            report["jobs"] = jobs(base / "jobs", rounds, arguments.jobs, arguments.cold)
        if "idle" in chosen:
            report["idle"] = idle(base / "idle", arguments.idle)
    print("\nload of the machine after: {:.2f} {:.2f} {:.2f}".format(*os.getloadavg()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
