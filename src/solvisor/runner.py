"""One attempt, from staging to the end of its processes, or of its talk with a warm server.

Rules: it does what the engine decided and reports back by events; it changes no state and knows no other job.
Everything that touches a disk runs in the file threads, everything that waits is cancellable without harm: cancelling
an attempt leaves its processes to whoever looks next. A stop that comes before the process exists is kept and obeyed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec.structs import replace

from .clock import now_us
from .errand import Errand
from .errors import ServerBroken, SpawnError, Unreached
from .events import Event, Exited, Gone, Launched, Lost, ServerLost, Spawned, SpawnFailed
from .home import Home
from .interfaces import AttemptSpec, Backend, Handle, Program
from .kinds import AnySolver, CommandSolver
from .model import ExitFacts, Job
from .names import printable, speaks_to_solvisor
from .pool import Pool
from .solvers import command
from .spool import NotDurable, Results
from .trouble import RETRY_SECONDS, is_passing

if sys.platform != "win32":
    from .process.logcap import CappedLog

T = TypeVar("T")

STAGING_THREADS = 2
"""Attempts being staged at once. Threads of their own: a free place does not wait for somebody else's hashing."""

log = structlog.get_logger()


class Runner:
    """Carries attempts out.

    ``post`` hands an event to the engine; ``pool`` has the warm servers; ``environ`` is the daemon's environment and
    ``script_environ`` what each solver's ``env_script`` made of it, by the solver's name.
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
        self._home_id = home_id
        self._boot_id = boot_id
        self._results = results
        self._backend = backend
        self._pool = pool
        self._staging = anyio.CapacityLimiter(STAGING_THREADS)
        self._environ = environ
        self._script_environ = script_environ
        self._config_dir = config_dir
        self._post = post
        # By token, from start until over; None before there is something to stop.
        self._handles: dict[str, Handle | Errand | None] = {}
        self._stops: dict[str, bool] = {}  # what was asked to end, and whether at once
        self._stops_all: bool | None = None

    @property
    def busy(self) -> bool:
        """Whether an attempt is under way."""
        return bool(self._handles)

    def start(self, tasks: TaskGroup, job: Job, solver: AnySolver) -> None:
        """Stage, start and watch the current attempt of ``job`` in a task of its own; what becomes of it is posted."""
        self._handles[job.current.token] = None
        if isinstance(solver, CommandSolver):
            tasks.start_soon(self._attempt, job, solver)
        else:
            tasks.start_soon(self._visit, job, solver)
        if self._stops_all is not None:
            self.stop(job.current.token, now=self._stops_all)

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

    async def _attempt(self, job: Job, solver: CommandSolver) -> None:
        token = job.current.token
        try:
            started = await self._started(job, solver)
            if started is None:
                self._post(Lost(job.id, token, None, now_us()))
                return
            argv, handle = started
            self._handles[token] = handle
            if token in self._stops:
                handle.stop(now=self._stops[token])
            self._post(Spawned(job.id, token, argv, handle.pid, handle.pid_start, self._boot_id, time.monotonic()))
            facts = await handle.wait()
            self._post(Exited(job.id, token, facts, now_us()))
            if facts.unkillable:
                await handle.wait_gone()
                self._post(Gone(job.id, token))
        except SpawnError as error:
            self._post(SpawnFailed(job.id, token, error.reason, printable(str(error)), time.monotonic(), now_us()))
        finally:
            del self._handles[token]
            self._stops.pop(token, None)

    async def _visit(self, job: Job, solver: AnySolver) -> None:
        """An attempt that a warm server carries out; then the server is free again."""
        token, server = job.current.token, job.current.server or ""
        served = False
        left: Errand | None = None  # what would not die
        try:
            staged = await self._staged(job)
            if not staged or token in self._stops:
                self._post(Lost(job.id, token, None, now_us()))
            else:
                self._handles[token] = errand = self._errand(job, solver)
                facts = await self._served(job, solver, errand)
                served = not facts.stopped
                left = errand if facts.unkillable else None
        except (Unreached, ServerBroken) as error:
            reached = isinstance(error, ServerBroken)
            self._post(ServerLost(job.id, token, reached, printable(str(error)), time.monotonic(), now_us()))
        except SpawnError as error:
            self._post(SpawnFailed(job.id, token, error.reason, printable(str(error)), time.monotonic(), now_us()))
        finally:
            del self._handles[token]
            self._stops.pop(token, None)
        await self._pool.give_back(server, served=served)
        if left is not None:
            await left.wait_gone()
            self._post(Gone(job.id, token))

    async def _served(self, job: Job, solver: AnySolver, errand: Errand) -> ExitFacts:
        """How it ended, posted as well. Raises as ``Pool.carry_out``."""
        facts = await self._pool.carry_out(job.current.server or "", errand)
        if facts.stopped:  # its server was writing the logs until it was killed
            cut = await anyio.to_thread.run_sync(self._cut_logs, job, solver)
            facts = replace(facts, log_cut_bytes=facts.log_cut_bytes + cut)
        self._post(Exited(job.id, job.current.token, facts, now_us()))
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
            self._post(Spawned(job.id, token, (), pid, None, self._boot_id, time.monotonic()))

        def on_launch(program: Program, handle: Handle) -> None:
            argv = tuple(map(printable, program.argv))
            self._post(Launched(job.id, token, argv, handle.pid, handle.pid_start))

        return Errand(job, self._home.work / job.id, self._backend, make_spec, on_begin, on_launch)

    async def _started(self, job: Job, solver: CommandSolver) -> tuple[tuple[str, ...], Handle] | None:
        """The running process, or ``None`` if a stop came first."""

        async def start() -> tuple[tuple[str, ...], Handle] | None:
            spec = await anyio.to_thread.run_sync(self._prepare, job, solver, limiter=self._staging)
            if job.current.token in self._stops:
                return None
            return tuple(map(printable, spec.argv)), await self._backend.launch(spec)

        return await self._patiently(job, start)

    async def _staged(self, job: Job) -> bool:
        """Whether its files are staged; not if a stop came first."""

        async def stage() -> bool:
            await anyio.to_thread.run_sync(self._stage, job, limiter=self._staging)
            return True

        return bool(await self._patiently(job, stage))

    async def _patiently(self, job: Job, work: Callable[[], Awaitable[T | None]]) -> T | None:
        """Trouble of the machine is waited out, not charged; ``None`` if a stop came first."""
        while job.current.token not in self._stops:
            try:
                done = await work()
                if done is not None:
                    return done
            except NotDurable:
                raise
            except (OSError, SpawnError) as error:
                trouble = error if isinstance(error, OSError) else error.__cause__
                if not is_passing(trouble):
                    if isinstance(error, SpawnError):
                        raise
                    raise SpawnError("staging", f"its files could not be staged: {error}") from error
                log.error("attempt.delayed", id=job.id, error=printable(str(error)), retry_seconds=RETRY_SECONDS)
                await anyio.sleep(RETRY_SECONDS)
        return None

    def _stage(self, job: Job) -> None:
        self._results.stage(job.id, job.current.n, skip=_job_files(job))

    def _prepare(self, job: Job, solver: CommandSolver) -> AttemptSpec:
        folder = self._home.work / job.id
        self._stage(job)
        name = job.spec.solver
        script_environ = self._script_environ.get(name, {})
        program = command.prepare(solver, name, job.spec, folder, self._environ, self._config_dir, script_environ)
        return self._spec(job, solver, program, None)

    def _spec(self, job: Job, solver: AnySolver, program: Program, cwd: Path | None) -> AttemptSpec:
        folder = self._home.work / job.id
        return AttemptSpec(
            token=f"{self._home_id}/{job.current.token}",
            argv=program.argv,
            cwd=str(cwd or folder / "output"),
            env=program.env,
            stdout=str(folder / "stdout.log"),
            stderr=str(folder / "stderr.log"),
            grace_seconds=solver.stop_grace,
            log_max_bytes=solver.log_max,
        )


def _job_files(job: Job) -> list[str]:
    """Inputs that speak to Solvisor and not to the solver."""
    names = (fact.path.removeprefix("input/") for fact in job.spec.inputs)
    return [name for name in names if speaks_to_solvisor(name)]
