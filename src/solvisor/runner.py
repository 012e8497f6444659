"""One attempt, from staging to the end of its processes, or of its talk with a warm server.

Rules: it does what the engine decided and reports back by events; it changes no state and knows no other job.
Nothing that touches a disk runs on the loop: small inputs are staged by the thread that starts programs, or by that of
the warm server, large ones in a pool. Everything that waits is cancellable without harm: cancelling an attempt leaves
its processes to whoever looks next. A stop that comes before the process exists is kept and obeyed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import assert_never

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec.structs import replace

from . import failpoint
from .clock import now_us
from .errand import Errand
from .errors import ServerBroken, SpawnError, Unreached
from .events import Event, Exited, Gone, Launched, Lost, ServerLost, Spawned, SpawnFailed
from .home import Home
from .interfaces import AttemptSpec, Backend, Handle, Program
from .kinds import AnySolver, CommandSolver, WarmSolver
from .model import ExitFacts, Job
from .names import printable, speaks_to_solvisor
from .pool import Pool
from .processors import spread
from .solvers import command
from .solvers.command import Command
from .spool import NotDurable, Results
from .trouble import RETRY_SECONDS, is_passing

if sys.platform != "win32":
    from .process.logcap import CappedLog

STAGING_THREADS = 2
"""Attempts with large inputs being staged at once."""

SMALL_BYTES = 1 << 20
SMALL_FILES = 32
"""What is copied in no time, so that nobody's start waits for it."""

log = structlog.get_logger()


class _Stopped(SpawnError):
    """A stop came before the process existed."""


class Runner:
    """Carries attempts out.

    ``post`` hands an event to the engine; ``pool`` has the warm servers; ``environ`` is the daemon's environment and
    ``script_environ`` what each solver's ``env_script`` made of it, by the solver's name: it may be replaced, for the
    attempts that start after that.
    """

    def __init__(
        self,
        *,
        home: Home,
        home_id: str,
        boot_id: str,
        results: Results,
        backend: Backend,
        pool: Pool,
        environ: Mapping[str, str],
        script_environ: Mapping[str, Mapping[str, str]],
        config_dir: Path,
        post: Callable[[Event], None],
    ) -> None:
        self._home = home
        self._work = str(home.work)
        self._home_id = home_id
        self.boot_id = boot_id
        self._results = results
        self.backend = backend
        self._pool = pool
        self._idle: list[asyncio.Future[tuple[Job, AnySolver]]] = []  # tasks that wait for another visit
        self._staging = anyio.CapacityLimiter(STAGING_THREADS)
        self._environ = environ
        self._commands: dict[str, Command] = {}
        self.script_environ = script_environ
        self._config_dir = config_dir
        self.post = post
        # By token, from start until over; None before there is something to stop.
        self._handles: dict[str, Handle | Errand | None] = {}
        self._stops: dict[str, bool] = {}  # what was asked to end, and whether at once
        self._stops_all: bool | None = None

    @property
    def busy(self) -> bool:
        """Whether an attempt is under way."""
        return bool(self._handles)

    def start(self, tasks: TaskGroup, job: Job, solver: AnySolver) -> None:
        """Stage, start and watch the current attempt of ``job``; what becomes of it is posted."""
        self._handles[job.current.token] = None
        if self._stops_all is not None:
            self.stop(job.current.token, now=self._stops_all)
        match solver:
            case CommandSolver():
                _Attempt(self, tasks, job, solver).begin()
            case WarmSolver():
                if self._idle:
                    self._idle.pop().set_result((job, solver))
                else:
                    tasks.start_soon(self._visit_on, job, solver)
            case _:
                assert_never(solver)

    def stop(self, token: str, *, now: bool = False) -> None:
        """Ask an attempt under way to end, at once or with its grace; unknown ones are over already."""
        if token not in self._handles:
            return
        self._stops[token] = now or self._stops.get(token, False)
        handle = self._handles[token]
        if handle is not None:
            handle.stop(now=now)

    def stop_all(self, *, now: bool = False) -> None:
        """Ask every attempt to end, also those that are still to be started."""
        self._stops_all = now or bool(self._stops_all)
        for token in list(self._handles):
            self.stop(token, now=now)

    # --- for the attempts -------------------------------------------------------------------------------------------

    def runs(self, token: str, handle: Handle) -> None:
        """There is something to stop from now on; and it is stopped, if that was wanted meanwhile."""
        self._handles[token] = handle
        if token in self._stops:
            handle.stop(now=self._stops[token])

    def is_stopped(self, token: str) -> bool:
        """Whether a stop was asked for."""
        return token in self._stops

    def forget(self, token: str) -> None:
        """It is over."""
        del self._handles[token]
        self._stops.pop(token, None)

    async def _visit_on(self, job: Job, solver: AnySolver) -> None:
        """One visit after the other: a start of a task for each would be a good part of what a short one costs."""
        while True:
            await self._visit(job, solver)
            next_one: asyncio.Future[tuple[Job, AnySolver]] = asyncio.get_running_loop().create_future()
            self._idle.append(next_one)
            job, solver = await next_one

    async def _visit(self, job: Job, solver: AnySolver) -> None:
        """An attempt that a warm server carries out; then the server is free again."""
        token, server = job.current.token, job.current.server or ""
        served = False
        left: Errand | None = None  # what would not die
        errand = self._errand(job, solver)
        try:
            staged = await self.staged(job)
            if not staged or token in self._stops:
                self.post(Lost(job.id, token, None, now_us()))
            else:
                self._handles[token] = errand
                facts = await self._served(job, solver, errand)
                served = not facts.stopped
                left = errand if facts.unkillable else None
        except (Unreached, ServerBroken) as error:
            reached = isinstance(error, ServerBroken)
            self.post(ServerLost(job.id, token, reached, printable(str(error)), time.monotonic(), now_us()))
        except SpawnError as error:
            self.post(SpawnFailed(job.id, token, error.reason, printable(str(error)), time.monotonic(), now_us()))
        finally:
            self.forget(token)
        await self._pool.give_back(server, served=served)
        if left is not None:
            await left.wait_gone()
            self.post(Gone(job.id, token))

    async def _served(self, job: Job, solver: AnySolver, errand: Errand) -> ExitFacts:
        """How it ended, posted as well. Raises as ``Pool.carry_out``."""
        began = time.monotonic()
        facts = await self._pool.carry_out(job.current.server or "", errand)
        facts = replace(facts, seconds=time.monotonic() - began)
        if facts.stopped:  # its server was writing the logs until it was killed
            cut = await anyio.to_thread.run_sync(self._cut_logs, job, solver)
            facts = replace(facts, log_cut_bytes=facts.log_cut_bytes + cut)
        self.post(Exited(job.id, job.current.token, facts, now_us()))
        return facts

    def _cut_logs(self, job: Job, solver: AnySolver) -> int:
        """Bring the logs of a job below their cap; how many bytes that cost. Nobody writes them any more."""
        if sys.platform != "win32":
            folder = self._home.work / job.id
            return sum(CappedLog(str(folder / name), solver.log_max).finish() for name in ("stdout.log", "stderr.log"))
        return 0

    def _errand(self, job: Job, solver: AnySolver) -> Errand:
        token = job.current.token

        def make_spec(program: Program, cwd: Path | None) -> AttemptSpec:
            return self._spec(job, solver, program, cwd)

        def on_begin(pid: int) -> None:
            self.post(Spawned(job.id, token, (), pid, None, self.boot_id, time.monotonic()))

        def on_launch(program: Program, handle: Handle) -> None:
            argv = tuple(map(printable, program.argv))
            self.post(Launched(job.id, token, argv, handle.pid, handle.pid_start))

        return Errand(job, self._home.work / job.id, self.backend, make_spec, on_begin, on_launch)

    async def staged(self, job: Job) -> bool:
        """Whether its files are staged; not if a stop came first. Raises ``SpawnError``, ``NotDurable``.

        Trouble of the machine is waited out, not charged. Small ones are staged here for a warm server alone: raises
        ``Unreached``, too, if that is gone.
        """
        while job.current.token not in self._stops:
            try:
                if _is_small(job):
                    await self._pool.prepare(job.current.server or "", partial(self.stage, job))
                else:
                    await anyio.to_thread.run_sync(spread(partial(self.stage, job)), limiter=self._staging)
            except OSError as error:
                if not await self.waited(job, error):
                    raise SpawnError("staging", f"its files could not be staged: {error}") from error
            else:
                return True
        return False

    async def waited(self, job: Job, error: Exception) -> bool:
        """Whether ``error`` was trouble of the machine, which may be over by now. Raises ``NotDurable``."""
        trouble = error if isinstance(error, OSError) else error.__cause__
        if isinstance(trouble, NotDurable):
            raise trouble
        if not is_passing(trouble):
            return False
        log.error("attempt.delayed", id=job.id, error=printable(str(error)), retry_seconds=RETRY_SECONDS)
        await anyio.sleep(RETRY_SECONDS)
        return True

    def stage(self, job: Job) -> None:
        """Give an attempt its files. Blocks; raises ``OSError``."""
        self._results.stage(job.id, job.current.n, skip=_job_files(job))

    def prepared(self, job: Job, solver: CommandSolver, script_env: Mapping[str, str]) -> AttemptSpec:
        """How an attempt is started. Looks for the program; raises ``SpawnError``."""
        spec = job.spec
        program = command.prepare(self._command(spec.solver, solver, script_env), spec, f"{self._work}/{job.id}")
        return self._spec(job, solver, program, None)

    def _command(self, name: str, solver: CommandSolver, script_env: Mapping[str, str]) -> Command:
        """The command of a solver as it is configured now."""
        known = self._commands.get(name)
        if known is None or known.solver is not solver or known.script_env != script_env:
            known = Command("command", solver.command, solver, name, self._environ, self._config_dir, script_env)
            self._commands[name] = known
        return known

    def _spec(self, job: Job, solver: AnySolver, program: Program, cwd: Path | None) -> AttemptSpec:
        folder = f"{self._work}/{job.id}"
        return AttemptSpec(
            token=f"{self._home_id}/{job.current.token}",
            argv=program.argv,
            cwd=f"{folder}/output" if cwd is None else str(cwd),
            env=program.env,
            stdout=f"{folder}/stdout.log",
            stderr=f"{folder}/stderr.log",
            grace_seconds=solver.stop_grace,
            log_max_bytes=solver.log_max,
            memory_limit_bytes=solver.memory_limit,
            processes_limit=solver.processes_limit,
        )


class _Attempt:
    """An attempt that is a process tree: a ``Watcher``, so that it costs a task only where something goes wrong."""

    def __init__(self, runner: Runner, tasks: TaskGroup, job: Job, solver: CommandSolver) -> None:
        self._runner = runner
        self._tasks = tasks
        self._job = job
        self._token = job.current.token
        self._solver = solver
        self._script_env = runner.script_environ.get(job.spec.solver, {})
        self._is_small = _is_small(job)
        self._argv: tuple[str, ...] = ()

    def begin(self) -> None:
        """Stage and start it."""
        if self._is_small:
            self._start()
        else:
            self._tasks.start_soon(self._stage_and_start)

    async def _stage_and_start(self) -> None:
        try:
            staged = await self._runner.staged(self._job)
        except SpawnError as error:
            self._failed(error)
        else:
            if staged:
                self._start()
            else:
                self._lost()

    def _start(self) -> None:
        try:
            self._runner.backend.start(self._prepare, self)
        except SpawnError as error:
            self._failed(error)

    def _prepare(self) -> AttemptSpec:
        """For the thread that starts programs."""
        self._must_not_be_stopped()  # here already, so that nothing lies in output/ of a job that never ran
        if self._is_small:
            self._runner.stage(self._job)
            self._must_not_be_stopped()
        spec = self._runner.prepared(self._job, self._solver, self._script_env)
        self._argv = tuple(map(printable, spec.argv))
        return spec

    def _must_not_be_stopped(self) -> None:
        if self._runner.is_stopped(self._token):
            raise _Stopped("spawn", "it was stopped before it was started")

    # Watcher

    def started(self, handle: Handle) -> None:
        """It runs."""
        self._runner.runs(self._token, handle)
        started = (self._argv, handle.pid, handle.pid_start, self._runner.boot_id)
        self._runner.post(Spawned(self._job.id, self._token, *started, time.monotonic()))
        failpoint.reach("attempt.started")

    def refused(self, error: SpawnError) -> None:
        """It was not started: for good, or trouble of the machine is to be waited out."""
        if isinstance(error, _Stopped):
            self._lost()
        elif isinstance(error.__cause__, NotDurable) or is_passing(error.__cause__):
            self._tasks.start_soon(self._try_again, error)
        else:
            self._failed(error)

    async def _try_again(self, error: SpawnError) -> None:
        await self._runner.waited(self._job, error)
        if self._runner.is_stopped(self._token):
            self._lost()
        else:
            self._start()

    def exited(self, facts: ExitFacts) -> None:
        """Nothing of it is left, or it would not die."""
        failpoint.reach("attempt.exited")
        self._runner.post(Exited(self._job.id, self._token, facts, now_us()))
        if not facts.unkillable:
            self._runner.forget(self._token)

    def gone(self) -> None:
        """What would not die is gone after all."""
        self._runner.post(Gone(self._job.id, self._token))
        self._runner.forget(self._token)

    def broken(self, error: Exception) -> None:
        """Nobody supervises it any more: the daemon must end."""
        self._tasks.start_soon(_raise, error)

    def _failed(self, error: SpawnError) -> None:
        event = SpawnFailed(self._job.id, self._token, error.reason, printable(str(error)), time.monotonic(), now_us())
        self._runner.post(event)
        self._runner.forget(self._token)

    def _lost(self) -> None:
        self._runner.post(Lost(self._job.id, self._token, None, now_us()))
        self._runner.forget(self._token)


async def _raise(error: Exception) -> None:
    raise error


def _is_small(job: Job) -> bool:
    """Whether its inputs are staged in no time."""
    inputs = job.spec.inputs
    return len(inputs) <= SMALL_FILES and sum([fact.size for fact in inputs]) <= SMALL_BYTES


def _job_files(job: Job) -> list[str]:
    """Inputs that speak to Solvisor and not to the solver."""
    return [name for fact in job.spec.inputs if speaks_to_solvisor(name := fact.path.removeprefix("input/"))]
