"""What the tests around ``omc`` share: the double as a program, servers of it, and jobs for them."""

from __future__ import annotations

import hashlib
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from solvisor.clock import now_us
from solvisor.interfaces import Channel, Program, Site, Up
from solvisor.kinds import OmcSolver
from solvisor.model import ExitFacts, FileFact, Job, JobSpec, Report, Source, State
from solvisor.solvers.modelcache import ModelCaches
from solvisor.solvers.omc import OmcKind
from waiting import wait_until

if TYPE_CHECKING:
    import zmq

DECAY = """model Decay
  parameter Real k=2.0; Real x(start=1, fixed=true);
  final parameter Real half=0.5*k;
  parameter Integer n=3; parameter Boolean on=true;
equation
  der(x)=-k*x;
end Decay;
"""
BALL = """model Ball
  parameter Real e=0.7; parameter Real g=9.81;
  Real h(start=1, fixed=true); Real v(start=0, fixed=true);
equation
  der(h)=v; der(v)=-g;
  when h<=0 then reinit(v,-e*pre(v)); end when;
end Ball;
"""
BOOM = 'model Boom Real x(start=1,fixed=true); equation der(x)=x^2; assert(x<10,"x too large"); end Boom;'

DOUBLE = Path(__file__).with_name("omc.py")
PATH = "/usr/local/bin:/usr/bin:/bin"


def install(folder: Path) -> Path:
    """Put the double as ``omc`` into ``folder``, to be found on a PATH."""
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "omc"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {shlex.quote(str(DOUBLE))} "$@"\n')
    program.chmod(0o755)
    return program


def environment(folder: Path, **knobs: object) -> dict[str, str]:
    """The environment of a daemon that finds the double in ``folder``; knobs without their ``OMC_DOUBLE_``."""
    base = {"PATH": f"{folder}:{PATH}", "HOME": str(Path.home()), "USER": "tester", "LANG": "C.UTF-8"}
    set_knobs = {f"OMC_DOUBLE_{name}": str(value) for name, value in {"ROOT_OK": 1, **knobs}.items()}
    return base | {name: value for name, value in set_knobs.items() if value != "None"}


class Server:
    """A started program in a session of its own, its output in files."""

    def __init__(self, argv: list[str], folder: Path, env: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._port_file: Path | None = None
        self.stdout, self.stderr = folder / "stdout.log", folder / "stderr.log"
        with self.stdout.open("ab") as out, self.stderr.open("ab") as err:
            self.process = subprocess.Popen(
                argv,
                cwd=folder,
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def printed(self) -> str:
        return self.stdout.read_text(errors="replace")

    def port_file(self) -> Path:
        """Where its port file is. The line that says so has no end: what it prints later follows at once."""
        if self._port_file is None:
            said = wait_until(lambda: self.printed().partition("Dumped server port in file: ")[2], "the printed line")
            self._port_file = Path(said)
        return self._port_file

    def endpoint(self) -> str:
        return self.port_file().read_text()

    def kill(self) -> None:
        """End the whole session."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@contextmanager
def client(endpoint: str, patience: float = 20.0) -> Iterator[zmq.Socket[bytes]]:
    """A fresh REQ socket; a reply that does not come within ``patience`` seconds is an error."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(patience * 1000))
        socket.connect(endpoint)
        yield socket


def ask(socket: zmq.Socket[bytes], request: str) -> str:
    socket.send_string(request)
    return socket.recv_string()


# --- the kind ---------------------------------------------------------------------------------------------------------


class Launched:
    """A process of a job; the ``Handle`` of a backend in small."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self.pid_start: int | None = None
        self.stopped = False

    async def wait(self) -> ExitFacts:
        code = await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)
        exit_code, signum = (code, None) if code >= 0 else (None, -code)
        return ExitFacts(exit_code, signum, now_us(), stopped=self.stopped)

    def stop(self, *, now: bool = False) -> None:
        self.stopped = True
        os.killpg(self.pid, signal.SIGKILL if now else signal.SIGTERM)

    async def wait_gone(self) -> None:
        return None


class Task:
    """A job in a folder of its own; a ``Work`` that starts real processes."""

    def __init__(self, folder: Path, files: Mapping[str, str], options: Mapping[str, Any] | None = None) -> None:
        self.folder = folder
        facts = []
        for name, text in files.items():
            place = folder / "output" / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
            facts.append(FileFact(f"input/{name}", len(text), hashlib.sha256(text.encode()).hexdigest()))
        primary = next(iter(files))
        spec = JobSpec(folder.name, "omc", primary, tuple(facts), Source("inbox", primary), options=dict(options or {}))
        self.job = Job(folder.name, 1, State.RUNNING, spec, 0)
        self.launched: list[Program] = []
        self.handle: Launched | None = None

    async def launch(self, program: Program, cwd: Path | None = None) -> Launched:
        self.launched.append(program)
        with (self.folder / "stdout.log").open("ab") as out, (self.folder / "stderr.log").open("ab") as err:
            process = subprocess.Popen(  # noqa: ASYNC220  it returns at once
                program.argv,
                cwd=cwd or self.folder / "output",
                env=program.env,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.handle = Launched(process)
        return self.handle

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(errors="replace") if path.exists() else ""


class Lab:
    """Servers of one solver, and jobs for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.servers: list[Server] = []
        self.channels: list[Channel] = []
        self.tasks: list[Task] = []
        install(folder / "bin")

    def kind(self, solver: OmcSolver | None = None, **knobs: object) -> OmcKind:
        usual: dict[str, object] = {"JOURNAL": self.folder / "journal", "COMPILE_SECONDS": 0.02}
        environ = environment(self.folder / "bin", **(usual | knobs))
        solver = solver or OmcSolver(pass_env=("OMC_DOUBLE_*",))
        caches = ModelCaches(self.folder / "cache")
        return OmcKind(solver, "omc", self.folder, environ, {}, caches.of("omc", solver.cache))

    def start(self, kind: OmcKind) -> Up:
        name = f"omc.{len(self.servers) + 1}"
        folder = self.folder / "servers" / name
        (folder / "tmp").mkdir(parents=True)
        place = Site(name, str(folder), str(folder / "tmp"), None)
        program = kind.program(place)
        token = f"home/{name}"
        server = Server(list(program.argv), folder, program.env | {"SOLVISOR_ATTEMPT": token})
        self.servers.append(server)
        return Up(place, token, server.process.pid, str(server.stdout), str(server.stderr))

    async def connect(self, kind: OmcKind) -> Channel:
        with anyio.fail_after(30):
            channel = await kind.connect(self.start(kind), lambda _: None)
        self.channels.append(channel)
        return channel

    def task(self, files: Mapping[str, str], options: Mapping[str, Any] | None = None) -> Task:
        self.tasks.append(Task(self.folder / f"job-{len(self.tasks) + 1}", files, options))
        return self.tasks[-1]

    async def run(
        self, channel: Channel, files: Mapping[str, str], options: Mapping[str, Any] | None = None
    ) -> tuple[ExitFacts, Report]:
        with anyio.fail_after(60):
            facts = await channel.run(self.task(files, options))
        assert facts.report is not None
        return facts, facts.report

    @property
    def last(self) -> Task:
        return self.tasks[-1]

    def compiled(self) -> list[str]:
        journal = self.folder / "journal"
        return journal.read_text().split() if journal.exists() else []

    def close(self) -> None:
        for channel in self.channels:
            channel.close()
        for server in self.servers:
            server.kill()
        for task in self.tasks:
            if task.handle is not None and task.handle.process.poll() is None:
                task.handle.stop(now=True)
                task.handle.process.wait()
