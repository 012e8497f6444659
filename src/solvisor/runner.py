"""One attempt, from staging to verdict.

Rules: it does what the engine decided and reports back by events; it changes no state and knows no other job.
Everything that touches a disk runs in the file threads, everything that waits is cancellable without harm: cancelling
an attempt leaves its processes to whoever looks next. A stop that comes before the process exists is kept and obeyed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup
from msgspec.structs import replace

from .config import SolverConfig
from .errors import SpawnError
from .events import Event, Exited, Gone, Judged, Lost, Spawned, SpawnFailed
from .home import Home
from .interfaces import AttemptSpec, Backend, Handle
from .judge import judge
from .model import Cause, ExitFacts, FileFact, Job, Verdict
from .solvers import command
from .spool import NotDurable, Results

T = TypeVar("T")

OUTPUTS_INLINE = 1000
"""More outputs than this go to ``outputs.jsonl``, whose hash the manifest holds."""

log = structlog.get_logger()


class Runner:
    """Carries attempts out.

    ``post`` hands an event to the engine; ``files`` bounds the threads that touch the disk; ``environ`` is the daemon's
    environment and ``script_environ`` what each solver's ``env_script`` made of it, by the solver's name.
    """

    def __init__(
        self,
        *,
        home: Home,
        home_id: str,
        boot_id: str,
        results: Results,
        backend: Backend,
        files: anyio.CapacityLimiter,
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
        self._files = files
        self._environ = environ
        self._script_environ = script_environ
        self._config_dir = config_dir
        self._post = post
        self._handles: dict[str, Handle | None] = {}  # by token, from start until over; None before the process exists
        self._stops: dict[str, bool] = {}  # what was asked to end, and whether at once
        self._stops_all: bool | None = None

    def start(self, tasks: TaskGroup, job: Job, solver: SolverConfig, interruptions_max: int) -> None:
        """Stage, start and watch the current attempt of ``job`` in a task of its own; what becomes of it is posted."""
        self._handles[job.current.token] = None
        tasks.start_soon(self._attempt, job, solver, interruptions_max)
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

    async def _attempt(self, job: Job, solver: SolverConfig, interruptions_max: int) -> None:
        token = job.current.token
        try:
            spec = await self._in_thread(partial(self._prepare, job, solver))
            if token in self._stops:
                self._post(Lost(job.id, token, interruptions_max, now_us()))
                return
            handle = await self._backend.launch(spec)
            self._handles[token] = handle
            if token in self._stops:
                handle.stop(now=self._stops[token])
            argv = tuple(map(_printable, spec.argv))
            self._post(Spawned(job.id, token, argv, handle.pid, handle.pid_start, self._boot_id, time.monotonic()))
            facts = await handle.wait()
            self._post(Exited(job.id, token, facts, interruptions_max, now_us()))
            if facts.unkillable:
                await handle.wait_gone()
                self._post(Gone(job.id, token))
        except SpawnError as error:
            self._post(SpawnFailed(job.id, token, error.reason, _printable(str(error)), time.monotonic(), now_us()))
        finally:
            del self._handles[token]
            self._stops.pop(token, None)

    async def collect(self, batch: Sequence[Job]) -> None:
        """Judge what the last attempts of these jobs left, make it durable, and post the verdicts."""
        verdicts = await self._in_thread(partial(self._collect, batch))
        for job, verdict in zip(batch, verdicts, strict=True):
            self._post(Judged(job.id, job.current.token, verdict, time.monotonic(), now_us()))

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(function, limiter=self._files)

    def _prepare(self, job: Job, solver: SolverConfig) -> AttemptSpec:
        attempt = job.current
        folder = self._home.work / job.id
        try:
            self._results.stage(job.id, attempt.n, skip=_job_files(job))
        except NotDurable:
            raise
        except OSError as error:
            raise SpawnError("staging", f"its files could not be staged in {folder}: {error}") from error
        name = job.spec.solver
        script_environ = self._script_environ.get(name, {})
        prepared = command.prepare(solver, name, job.spec, folder, self._environ, self._config_dir, script_environ)
        return AttemptSpec(
            token=f"{self._home_id}/{attempt.token}",
            argv=prepared.argv,
            cwd=str(folder / "output"),
            env=prepared.env,
            stdout=str(folder / "stdout.log"),
            stderr=str(folder / "stderr.log"),
            grace_seconds=solver.stop_grace,
            log_max_bytes=solver.log_max,
        )

    def _collect(self, batch: Sequence[Job]) -> list[Verdict]:
        verdicts = [self._judge(job) for job in batch]
        collected = self._results.collect([(job.id, job.spec.inputs) for job in batch])
        return [
            self._with_outputs(job, verdict, outputs)
            for job, verdict, outputs in zip(batch, verdicts, collected, strict=True)
        ]

    def _judge(self, job: Job) -> Verdict:
        attempt = job.current
        solver = msgspec.convert(attempt.settings.table, SolverConfig)
        facts = attempt.facts or ExitFacts(None, None, now_us())
        timed_out = attempt.cause is Cause.TIMEOUT
        return judge(solver, job.spec, self._home.work / job.id, facts, timed_out=timed_out)

    def _with_outputs(self, job: Job, verdict: Verdict, outputs: tuple[FileFact, ...] | OSError) -> Verdict:
        try:
            if isinstance(outputs, OSError):
                raise outputs
            if len(outputs) > OUTPUTS_INLINE:
                more = self._list_elsewhere(self._home.work / job.id, outputs)
                return replace(verdict, outputs=outputs[:OUTPUTS_INLINE], more_outputs=more)
        except NotDurable:
            raise
        except OSError as error:
            return replace(
                verdict, cause=Cause.CHECK, code="collect", message=f"its outputs could not be read: {error}"
            )
        return replace(verdict, outputs=outputs)

    def _list_elsewhere(self, folder: Path, outputs: tuple[FileFact, ...]) -> FileFact:
        lines = b"".join(msgspec.json.encode(fact) + b"\n" for fact in outputs)
        self._results.write_durably(folder / "outputs.jsonl", lines)
        return FileFact("outputs.jsonl", len(lines), hashlib.sha256(lines).hexdigest())


def _job_files(job: Job) -> list[str]:
    """Inputs that speak to Solvisor and not to the solver."""
    names = [fact.path.removeprefix("input/") for fact in job.spec.inputs]
    return [name for name in names if name == "job.toml" or (name.endswith(".job.toml") and "/" not in name)]


def _printable(text: str) -> str:
    """A text as rows and manifests can hold it: bytes that are not UTF-8 as ``\\udcNN``."""
    return text.encode(errors="backslashreplace").decode()


def now_us() -> int:
    """UTC microseconds, for display."""
    return time.time_ns() // 1000
