"""Warm servers that do what the test says: ready when it lets them, done with a job when it says so, dead when told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anyio

from scripted import Bench, ScriptedHandle
from solvisor.clock import now_us
from solvisor.errors import NotReady
from solvisor.interfaces import Program, Site, Up, Work
from solvisor.model import ExitFacts
from waiting import eventually

CONFIG = """
[daemon]
max_jobs = 6
cpus = 6
stop_timeout = "0.1s"
[licenses]
lic = 4
[solver.x]
accept = ["*.x"]
command = ["/bin/true"]
[solver.warm]
kind = "server"
accept = ["*.w"]
start = ["/bin/true", "{port}"]
command = ["/bin/true"]
ready = { kind = "tcp", expect = "." }
licenses = { lic = 1 }
servers = { max = 3, restarts = 1, stop_grace = "0.1s" }
"""


class ScriptedChannel:
    """A server that is ready. It has ``job`` until the test calls ``finish``."""

    def __init__(self, name: str, quit_: Callable[[], None]) -> None:
        self.name = name
        self.port: int | None = 4711
        self.spent: str | None = None
        self.look: Callable[[], object] | None = None
        self.job: str | None = None
        self._done = anyio.Event()
        self._quit = quit_

    async def check(self) -> None:
        pass

    async def run(self, work: Work) -> ExitFacts:
        self.job, self._done = work.job.id, anyio.Event()
        for log in ("stdout.log", "stderr.log"):
            (work.folder / log).touch()
        await self._done.wait()
        self.job = None
        return ExitFacts(0, None, now_us())

    def finish(self) -> None:
        """Let the job it has be done."""
        self._done.set()

    async def quit(self) -> bool:
        self._quit()
        return True

    def close(self) -> None:
        pass


class ScriptedKind:
    """Servers of ``bench``; they are ready at once unless ``gate`` holds them, or are never with ``refusal``."""

    wants_port = False
    host = "127.0.0.1"

    def __init__(self, bench: Bench) -> None:
        self.gate = anyio.Event()
        self.gate.set()
        self.refusal: str | None = None
        self.channels: dict[str, ScriptedChannel] = {}
        self._bench = bench

    def process(self, name: str) -> ScriptedHandle:
        """The process of the server ``name``; its ``end`` kills it."""
        return next(h for h in reversed(self._bench.backend.handles) if Path(h.spec.cwd).name == name)

    def program(self, place: Site) -> Program:
        return Program(("/bin/true",), {})

    async def connect(self, up: Up, note: Callable[[str], None]) -> ScriptedChannel:
        await self.gate.wait()
        if self.refusal is not None:
            raise NotReady(self.refusal)
        name = up.place.name
        self.channels[name] = ScriptedChannel(name, lambda: self.process(name).end())
        return self.channels[name]

    def explain(self, said: str, facts: ExitFacts) -> str | None:
        return None

    async def has(self, name: str, job: str) -> ScriptedChannel:
        """The server ``name``, once it has ``job``."""
        await eventually(lambda: name in self.channels and self.channels[name].job == job, f"{name} has {job}")
        return self.channels[name]
