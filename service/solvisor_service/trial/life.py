"""The life of one job, with as much of an engine as that takes: events in, effects carried out, nothing recorded.

Rules: what may happen is the machine's to say, what happens is told by the runner and the collector; time and signals
are events like any other. The first signal cancels the job, so the solver has its grace; the next one ends it at once.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus
from msgspec.structs import replace

from solvisor import fleet, interfaces, machine, scheduler
from solvisor import home as homes
from solvisor.backends.local import LocalBackend
from solvisor.clock import now_us
from solvisor.collector import Collector
from solvisor.config import Config
from solvisor.errors import HomeError, NotReady
from solvisor.events import (
    Accept,
    Cancel,
    Collect,
    Dispatch,
    Effect,
    Event,
    Exited,
    Judged,
    ServerEnded,
    ServerEvent,
    ServerLost,
    ServerReady,
    ServerWanted,
    Start,
    StartServer,
    Stop,
)
from solvisor.hand import Hand
from solvisor.home import Home
from solvisor.interfaces import AttemptSpec, Backend, Handle
from solvisor.leases import Leases
from solvisor.model import TERMINAL, Demand, ExitFacts, Intake, Job, Limits, Report, Retry, State
from solvisor.pool import Pool
from solvisor.process import host
from solvisor.runner import Runner
from solvisor.solvers.warm import omc_caches, warm_kinds, warm_solvers
from solvisor.spool import Results
from solvisor.world import World
from solvisor_service.trial.environment import EnvironmentDifference, differ

if sys.platform == "win32":
    raise ImportError("solvisor_service.trial.life does what only Linux can and cannot be used on Windows")

TICK_SECONDS: Final = 0.2
"""How often a watcher hears that the solver still runs."""


class Watcher(Protocol):
    """Whoever wants to hear how it goes, on the event loop: it must not block."""

    def starting(self, spec: AttemptSpec, difference: EnvironmentDifference) -> None:
        """This is about to be executed."""
        ...

    def running(self, spec: AttemptSpec, seconds: float) -> None:
        """It has been running for so long."""
        ...

    def stopping(self) -> None:
        """A stop was asked for; the solver has its grace."""
        ...


class _Witness:
    """A backend, and what it was asked to start."""

    def __init__(self, backend: Backend, starting: Callable[[AttemptSpec], None]) -> None:
        self._backend = backend
        self._starting = starting

    async def launch(self, prepare: Callable[[], AttemptSpec]) -> Handle:
        """Start the process tree. Raises ``SpawnError``."""
        return await self._backend.launch(self._witnessed(prepare))

    def start(self, prepare: Callable[[], AttemptSpec], watcher: interfaces.Watcher) -> None:
        """Start the process tree; ``watcher`` hears of it."""
        self._backend.start(self._witnessed(prepare), watcher)

    def _witnessed(self, prepare: Callable[[], AttemptSpec]) -> Callable[[], AttemptSpec]:
        loop = asyncio.get_running_loop()

        def witnessed() -> AttemptSpec:
            spec = prepare()
            loop.call_soon_threadsafe(self._starting, spec)
            return spec

        return witnessed


class Life:
    """One job from acceptance to its end.

    ``environ`` and ``scripts`` are those of the service, ``launched`` what was executed, if it came to that.
    """

    def __init__(
        self,
        config: Config,
        limits: Limits,
        home: Home,
        intake: Intake,
        environ: Mapping[str, str],
        scripts: Mapping[str, Mapping[str, str]],
        watcher: Watcher,
    ) -> None:
        self._config = config
        self._limits = limits
        self._home = home
        self._intake = intake
        self._environ = environ
        self._scripts = scripts
        self._watcher = watcher
        self._world = World()
        self._events, self._next = anyio.create_memory_object_stream[Event | ServerEvent](math.inf)
        self.launched: AttemptSpec | None = None
        self.interrupted = False
        self._began = 0.0
        self._runner: Runner
        self._pool: Pool
        self._collector: Collector
        self._tasks: TaskGroup

    @property
    def _job(self) -> Job:
        return self._world.jobs[self._intake.id]

    async def run(self) -> Job:
        """From acceptance to the end; what it returns is terminal."""
        results = Results(self._home)
        self._collector = Collector(self._home, results, Hand("files"))
        with self._events, self._next:
            return await self._run(results)

    async def _run(self, results: Results) -> Job:
        home_id = homes.home_id(self._home)
        async with LocalBackend(home_id) as local, anyio.create_task_group() as self._tasks:
            backend = _Witness(local, self._starting)
            self._pool = Pool(
                home=self._home,
                home_id=home_id,
                boot_id=host.boot_id(),
                backend=backend,
                leases=Leases(self._config.daemon.ports),
                solvers=warm_solvers(self._config),
                kinds=warm_kinds(self._config, backend, self._environ, self._scripts, omc_caches(self._home.cache)),
                post=self._events.send_nowait,
            )
            self._runner = Runner(
                home=self._home,
                home_id=home_id,
                boot_id=host.boot_id(),
                results=results,
                backend=backend,
                pool=self._pool,
                environ=self._environ,
                script_environ=self._scripts,
                config_dir=self._config.path.parent,
                post=self._events.send_nowait,
            )
            await self._tasks.start(self._obey_signals)  # before there is anything that a signal would leave behind
            spec = self._intake.spec
            demand = self._config.demand(spec) or Demand(spec.solver, 1, 0)  # refused before a solver was found
            self._apply(Accept(self._intake.id, self._intake, demand, frozenset(), None, now_us()))
            if self._job.state is State.QUEUED and demand.warm:
                now = time.monotonic()
                self._tell(ServerWanted(f"{spec.solver}-1", spec.solver, (), now, now_us()))
            elif self._job.state is State.QUEUED:
                self._dispatch(None)
            while self._job.state not in TERMINAL:
                await self._pass()
            job = self._job
            self._pool.stop_all()
            while self._pool.busy:
                await self._next.receive()
            self._tasks.cancel_scope.cancel()
        return job

    def _dispatch(self, server: str | None) -> None:
        settings = replace(self._config.settings(self._intake.spec), retry=Retry())
        token, name = secrets.token_hex(16), socket.gethostname()
        self._apply(Dispatch(self._job.id, token, name, settings, now_us(), server, time.monotonic()))

    def _tell(self, event: ServerEvent) -> None:
        """News of the one warm server there is, if its solver has such: ready, it has the job; gone, there is none."""
        for effect in fleet.apply(self._world, self._limits.pools, event):
            if isinstance(effect, StartServer):
                self._pool.start(self._tasks, self._world.servers[effect.name])
            else:
                self._pool.stop(effect.name)
        if self._job.state is State.QUEUED and isinstance(event, ServerReady):
            self._dispatch(event.name)
        elif self._job.state is State.QUEUED and isinstance(event, ServerEnded):
            raise NotReady(event.error or "its server ended before the job had begun")

    async def _pass(self) -> None:
        """Until an event comes in, time brings one, or the watcher is to be told."""
        with anyio.move_on_after(TICK_SECONDS):
            told = await self._next.receive()
            if isinstance(told, ServerEvent):
                self._tell(told)
            else:
                self._apply(told)
        for event in scheduler.due(self._world, time.monotonic()):
            self._apply(event)
        if self.launched is not None and self._job.state is State.RUNNING:
            self._watcher.running(self.launched, time.monotonic() - self._began)

    def _apply(self, event: Event) -> None:
        if isinstance(event, ServerLost):  # no other server for this one: it is judged by what there is
            facts = ExitFacts(1, None, now_us(), report=Report(code="server_died", message=event.message))
            event = Exited(event.id, event.token, facts, now_us())
        for effect in machine.apply(self._world, event):
            self._act(effect)

    def _act(self, effect: Effect) -> None:
        match effect:
            case Start():
                solver = self._config.solver[self._job.spec.solver]
                self._runner.start(self._tasks, self._job, solver)
            case Stop():
                self._runner.stop(effect.token)
            case Collect():
                self._tasks.start_soon(self._collect, self._job)
            case _:
                pass  # nobody is told, and nothing is published

    async def _collect(self, job: Job) -> None:
        (verdict,) = await self._collector.collect([job])
        if verdict is None:
            raise HomeError("the disk or the memory of this machine is used up; free some and try again")
        self._events.send_nowait(Judged(job.id, job.current.token, verdict, time.monotonic(), now_us()))

    def _starting(self, spec: AttemptSpec) -> None:
        self._began = time.monotonic()
        # Trouble of the machine is waited out, and then it starts anew; a warm server comes before its client.
        if self.launched is None or self.launched.argv != spec.argv:
            self._watcher.starting(spec, differ(spec.env, os.environ))
        if self._job.state in {State.QUEUED, State.RUNNING}:  # after that only its server is asked to quit
            self.launched = spec

    async def _obey_signals(self, *, task_status: TaskStatus[None]) -> None:
        """The first signal stops the solver with its grace, the next at once."""
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
            task_status.started()
            async for _ in received:
                if self.interrupted:
                    self._runner.stop_all(now=True)
                    self._pool.stop_all(now=True)
                else:
                    self.interrupted = True
                    self._watcher.stopping()
                    self._events.send_nowait(Cancel(self._intake.id, now_us()))
