"""What the tests of the pool share: a real pool over real processes, whose news make a real world of servers."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import anyio
from anyio.abc import TaskGroup

from builders import make_pool, make_settings, make_spec
from daemon import processes_of
from probe_kit import HOST, PING, free_port
from process_kit import PROGRAMS, orphans
from solvisor import fleet
from solvisor.backends.local import LocalBackend
from solvisor.errand import Errand
from solvisor.events import (
    Condemn,
    Retire,
    ServerEnded,
    ServerEvent,
    ServerLent,
    ServerReady,
    ServerSeen,
    ServerUp,
    ServerWanted,
    StartServer,
)
from solvisor.home import Home
from solvisor.interfaces import AttemptSpec, Backend, Handle, Program
from solvisor.kinds import Servers, ServerSolver
from solvisor.leases import Lease, Leases
from solvisor.model import Attempt, Job, PortRange, Server, State
from solvisor.pool import Pool
from solvisor.process.host import boot_id
from solvisor.solvers.server import ServerKind
from solvisor.world import World
from waiting import eventually

E = TypeVar("E", bound=ServerEvent)
PYTHON = (sys.executable, "-S", "-E")
SERVER = (*PYTHON, str(PROGRAMS / "pool_server.py"), "{host}", "{port}")
CLIENT = (*PYTHON, str(PROGRAMS / "pool_client.py"), "{host}", "{port}")


def solver(
    *options: str, start: Sequence[str] = (), servers: dict[str, Any] | None = None, **more: Any
) -> ServerSolver:
    """``pool_server.py`` with ``options``, or ``start`` instead; patient, unless ``servers`` says otherwise."""
    table = {"start_timeout": 60.0, "stop_grace": 20.0, "heartbeat": 600.0, "heartbeat_timeout": 20.0}
    given: dict[str, Any] = {
        "start": tuple(start) or (*SERVER, *options),
        "ready": PING,
        "command": (*CLIENT, "ping"),
        "servers": Servers(**(table | (servers or {}))),
    }
    return ServerSolver(**(given | more))


def spare_range(count: int) -> PortRange:
    """Ports that nobody uses."""
    while True:
        first = free_port()
        last = first + count - 1
        if all(_is_spare(port) for port in range(first, last + 1)):
            return PortRange(first, last)


def _is_spare(port: int) -> bool:
    leases = Leases(PortRange(port, port))
    lease = leases.take(HOST)
    leases.close()
    return lease is not None


class WatchedLeases(Leases):
    """Leases that note which processes of the home were alive when a port was given back."""

    def __init__(self, ports: PortRange, home_id: str) -> None:
        super().__init__(ports)
        self.taken_ports: list[int] = []
        self.alive_at_return: list[list[int]] = []
        self._home_id = home_id

    def take(self, host: str) -> Lease | None:
        lease = super().take(host)
        if lease is not None:
            self.taken_ports.append(lease.port)
        return lease

    def give_back(self, lease: Lease, *, rests: bool = True) -> None:
        self.alive_at_return.append(list(processes_of(self._home_id)))
        super().give_back(lease, rests=rests)


class Lab:
    """A pool of the solver ``s``. ``events`` is what it posted; each was legal in the ``world`` that they make."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        tasks: TaskGroup,
        solver: ServerSolver,
        kind: type[ServerKind],
        ports: PortRange,
    ) -> None:
        self.events: list[ServerEvent] = []
        self.home = Home.at(folder / "home")
        self.home.run.mkdir(parents=True)
        self.home_id = secrets.token_hex(8)
        self.leases = WatchedLeases(ports, self.home_id)
        self.world = World()
        self.kind = kind(solver, "s", backend, folder, {"PATH": os.environ["PATH"]}, {})
        self.pool = Pool(
            home=self.home,
            home_id=self.home_id,
            boot_id=boot_id(),
            backend=backend,
            leases=self.leases,
            solvers={"s": solver},
            kinds={"s": self.kind},
            post=self.post,
        )
        self._rules = {"s": make_pool(max=1000, restarts=1000)}
        self._backend = backend
        self._tasks = tasks
        self._folder = folder
        self._jobs = 0

    def post(self, event: ServerEvent) -> None:
        """As the engine does it."""
        self.events.append(event)
        for effect in fleet.apply(self.world, self._rules, event):
            if isinstance(effect, StartServer):
                self.pool.start(self._tasks, self.world.servers[effect.name])
            else:
                self.pool.stop(effect.name)

    def start(self) -> str:
        """Want another server; its name."""
        facts = self.world.pool("s")
        facts.last += 1
        name = f"s-{facts.last}"
        self.post(ServerWanted(name, "s", (), anyio.current_time(), 0))
        return name

    def retire(self, name: str) -> None:
        """Have a server end that has no job."""
        self.post(Retire(name, "the test says so", anyio.current_time()))

    def of(self, name: str) -> list[str]:
        """What happened to a server: the names of the events, but what may come at any time."""
        return [type(e).__name__ for e in self.events if e.name == name and not isinstance(e, ServerSeen | Condemn)]

    def all(self, kind: type[E], name: str | None = None) -> list[E]:
        return [event for event in self.events if isinstance(event, kind) and name in (None, event.name)]

    async def news(self, kind: type[E], name: str) -> E:
        """The first event of a kind about a server, once it comes."""
        (first, *_) = await eventually(lambda: self.all(kind, name), f"{kind.__name__} of {name}", 60)
        return first

    async def ready(self) -> str:
        """A new server that is ready."""
        name = self.start()
        await self.news(ServerReady, name)
        return name

    async def ended(self, name: str) -> ServerEnded:
        """The end of a server: its error, after which nothing of it may be left."""
        end = await self.news(ServerEnded, name)
        assert self.all(ServerEnded, name) == [end], "a server ends once"
        assert not self.folder(name).exists(), "its folder is left"
        return end

    def folder(self, name: str) -> Path:
        return self.home.run / "servers" / name

    def server(self, name: str) -> Server:
        return self.world.servers[name]

    def pid(self, name: str) -> int:
        return self.all(ServerUp, name)[-1].pid

    def lend(self, name: str) -> LabErrand:
        """A job for a server that is ready."""
        self._jobs += 1
        folder = self._folder / f"job-{self._jobs}"
        (folder / "output").mkdir(parents=True)
        attempt = Attempt(1, "token", "host", 0, make_settings())
        job = Job(folder.name, 1, State.RUNNING, make_spec(folder.name, solver="s"), 0, (attempt,))

        def make_spec_of(program: Program, cwd: Path | None) -> AttemptSpec:
            return AttemptSpec(
                token=f"{self.home_id}/{folder.name}",
                argv=program.argv,
                cwd=str(cwd or folder / "output"),
                env=program.env,
                stdout=str(folder / "stdout.log"),
                stderr=str(folder / "stderr.log"),
                grace_seconds=20.0,
                log_max_bytes=1 << 20,
            )

        self.post(ServerLent(name, job.id, anyio.current_time()))
        return LabErrand(job, folder, self._backend, make_spec_of)


class LabErrand(Errand):
    """An errand that notes what it was told."""

    def __init__(
        self,
        job: Job,
        folder: Path,
        backend: Backend,
        make_spec: Callable[[Program, Path | None], AttemptSpec],
    ) -> None:
        self.pids: list[int] = []
        self.programs: list[int] = []
        super().__init__(job, folder, backend, make_spec, self.pids.append, self._launched)

    def _launched(self, program: Program, handle: Handle) -> None:
        self.programs.append(handle.pid)


@asynccontextmanager
async def lab(
    folder: Path,
    solver: ServerSolver,
    *,
    kind: type[ServerKind] = ServerKind,
    ports: PortRange | None = None,
    backend: LocalBackend | None = None,
) -> AsyncIterator[Lab]:
    """A pool; at the end its servers are killed, and nothing may be left of any."""
    with anyio.fail_after(150):
        async with backend or LocalBackend(kill_wait_seconds=20) as local, anyio.create_task_group() as tasks:
            made = Lab(folder, local, tasks, solver, kind, ports or spare_range(20))
            try:
                yield made
            finally:
                made.pool.stop_all(now=True)
    assert not made.world.servers, "a server never ended"
    assert not made.pool.busy
    assert made.leases.taken == 0, "a port is still leased"
    assert list(processes_of(made.home_id)) == []
    assert orphans() == []
    servers = made.home.run / "servers"
    assert not servers.exists() or not list(servers.iterdir()), "a server's folder is left"
