"""The desk: where people's questions and orders reach the engine.

Questions about live jobs and the daemon are answered from memory, so they are answered while a disk hangs; those about
the past are read over a connection of their own. Orders are carried out in the engine's own task and answered when they
are durable. Rules: nothing here changes state but through ``Engine.carry_out``. It must not know HTTP, or what is
printed.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import date, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import anyio
import structlog
import tomli_w
from msgspec.structs import replace

from . import __version__, answers, fleet
from .clock import now_us
from .engine import Engine
from .errors import Refused
from .events import Cancel, Event, Retire
from .history import History
from .home import Home, IdMaker
from .inbox import Inbox, Wait
from .intake import decide
from .kinds import ServerSolver
from .machine import queued_members
from .manifest import rfc3339
from .model import TARGETS, TERMINAL, Batch, Job, JobSpec, Pause, Request, Server, State
from .names import FOLDER_JOB_FILE, escape_name, is_job_file, unescape_name
from .orders import Stopping, Unsure
from .questions import Conflict, NoSuchServer, Questions, has_members, no_batch
from .spool import NotDurable, Take, Upload
from .views import (
    BatchRule,
    BatchView,
    Health,
    InboxWait,
    JobView,
    PoolView,
    Status,
    Submitted,
    Today,
)

T = TypeVar("T")

RUNNING_SHOWN = 100
FAILED_SHOWN = 5
WAITS_SHOWN = 20
BATCH_JOBS_MAX = 1_000_000
NAME_MAX = 500
"""Characters in the name of a batch."""
SERVERS_MAX = 1000
"""As many as the configuration allows."""
LOOK_SECONDS = 10.0
"""How often the free space and the configuration file are looked at."""

CHANGED = "configuration"
"""What the sentence about a changed configuration is called among the troubles; it is a note, and nothing is wrong."""

log = structlog.get_logger()


class Desk(Questions):
    """Answers for one daemon. Call ``prepare`` before anything is asked, and ``published`` for every result."""

    def __init__(self, *, engine: Engine, inbox: Inbox, home: Home, history: History, ids: IdMaker, host: str) -> None:
        super().__init__(known=engine, home=home, history=history)
        self._engine = engine
        self._host = host
        self._inbox = inbox
        self._ids = ids
        self._began = time.monotonic()
        self._files = anyio.CapacityLimiter(4)
        self._today: tuple[date, Counter[State]] = (date.min, Counter())
        self._failed: deque[Job] = deque(maxlen=FAILED_SHOWN)
        self._disk_free: int | None = None

    async def prepare(self) -> None:
        """Read what this day brought before this life."""
        today = datetime.now().astimezone().date()
        midnight = datetime.combine(today, datetime.min.time()).astimezone()
        since_us = int(midnight.timestamp() * 1e6)
        self._today = today, await self._read(partial(self._history.finished_since, since_us))
        self._failed.extend(reversed(await self._read(partial(self._history.failed_since, since_us, FAILED_SHOWN))))

    async def look_around(self) -> None:
        """Keep the figure of free space fresh, and notice a changed configuration, until cancelled."""
        path = self._engine.config.path
        as_read = await anyio.to_thread.run_sync(_stamp, path, limiter=self._looking)
        while True:
            with suppress(OSError):  # what cannot be told now is told later
                self._disk_free = await anyio.to_thread.run_sync(self._home.free_bytes, limiter=self._looking)
            if await anyio.to_thread.run_sync(_stamp, path, limiter=self._looking) == as_read:
                self._engine.trouble.pop(CHANGED, None)
            else:
                self._engine.trouble[CHANGED] = (
                    f"the configuration {path} was changed after the daemon had read it: "
                    "start the daemon again to have it read"
                )
            await anyio.sleep(LOOK_SECONDS)

    def published(self, job: Job) -> None:
        """Count a job whose result lies in its place."""
        self._tally()[job.state] += 1
        if job.state is State.FAILED:
            self._failed.append(replace(job, manifest=None))

    def _tally(self) -> Counter[State]:
        today = datetime.now().astimezone().date()
        if today != self._today[0]:
            self._today = today, Counter()
            self._failed.clear()
        return self._today[1]

    def status(self) -> Status:
        """The daemon at this moment."""
        world, limits, now = self._engine.world, self._engine.limits, now_us()
        problems = [*self._engine.trouble.values(), *filter(None, [self._inbox.trouble])]
        problems += answers.server_problems(world, limits)
        problems += answers.license_problems(world, time.monotonic())
        wrong = len(problems) > (CHANGED in self._engine.trouble)
        health: Health = "stopping" if world.draining else "degraded" if wrong else "healthy"
        held = [world.jobs[job_id] for job_id in world.holding]
        running = sorted((job for job in held if job.state is State.RUNNING), key=lambda job: job.seq)
        unkillable = sum(job.state in TERMINAL for job in held)
        waiting = world.states[State.QUEUED]
        waits = self._inbox.waiting
        return Status(
            host=self._host,
            version=__version__,
            home=str(self._home.root),
            inbox_path=str(self._home.inbox),
            pid=os.getpid(),
            health=health,
            problems=tuple(problems),
            up_seconds=time.monotonic() - self._began,
            now=rfc3339(now),
            running=len(running),
            collecting=len(world.jobs) - waiting - len(running) - unkillable,
            waiting=waiting,
            today=Today(**{state.value: self._tally()[state] for state in TERMINAL}),
            disk_free_bytes=self._disk_free,
            waiting_for=answers.waiting_for(world, limits),
            inbox=tuple(_inbox_wait(*wait) for wait in waits[:WAITS_SHOWN]),
            inbox_total=len(waits),
            paused=answers.pauses(world),
            servers=answers.pool_rows(world, limits, time.monotonic()),
            running_jobs=tuple(self._row(job) for job in running[:RUNNING_SHOWN]),
            last_failed=tuple(self._row(job) for job in reversed(self._failed) if job.id not in world.jobs),
            solvers=tuple(sorted(self._engine.config.solver)),
            **answers.levels(world, limits),
        )

    # --- orders -----------------------------------------------------------------------------------------------------

    async def open_upload(self, name: str) -> Upload:
        """Begin a submission whose first file is called ``name``. Its methods block: call them in a thread."""
        job_id = self._ids.new_id(name, now_us())
        return await self._in_thread(partial(Upload, self._home, job_id))

    async def submit(
        self, upload: Upload, names: list[str], job: Mapping[str, Any] | bytes | None, request: Request
    ) -> Submitted:
        """Make an upload a job, and answer when it is durable.

        ``names`` are its files as they came; ``job`` are wishes, as the keys of a job file or as the bytes of one. A
        submission whose key a job has already, with the same files and wishes, is that job. Raises ``Refused``.
        """
        async with self._or_nothing(upload):
            self._must_not_stop()
            if request.batch is not None:
                await self._must_take_jobs(request.batch)
            if job is None and FOLDER_JOB_FILE not in names:
                job = {}
            if job is not None:
                await self._in_thread(partial(_write_job_file, upload, names, job))
            take = Take(upload.job_id, (os.path.basename(names[0]),), folder=True, request=request)
            return await self._accept(upload, take)

    async def retry(self, job: Job, user: str | None) -> Submitted:
        """Make a new job of a finished one, with its inputs and wishes, judged by today's configuration.

        Raises ``Conflict``, ``Refused``.
        """
        self._must_not_stop()
        if job.id in self._engine.world.jobs:
            state = answers.shown_state(job, live=True)
            raise Conflict("not_finished", f"{job.id} is {state}; only a finished job can be run again")
        spec = job.spec
        upload = await self.open_upload(spec.name)
        async with self._or_nothing(upload):
            await self._in_thread(partial(upload.copy_inputs, self._home, TARGETS[job.state], job.id))
            request = Request("retry", user, retry_of=job.id)
            take = Take(upload.job_id, (unescape_name(spec.source.path),), spec.route, spec.folder, request=request)
            return await self._accept(upload, take, job)

    @asynccontextmanager
    async def _or_nothing(self, upload: Upload) -> AsyncIterator[None]:
        """Whoever goes away meanwhile: an upload becomes a job, or nothing of it is left."""
        with anyio.CancelScope(shield=True):
            try:
                yield
            except Unsure:
                raise  # it may be a job: the next life knows
            except Exception as error:
                if isinstance(error, NotDurable):
                    self._engine.fail(error)
                await self._discard(upload)
                raise

    async def _accept(self, upload: Upload, take: Take, again: Job | None = None) -> Submitted:
        """Make a whole upload a job, unless a job with its key is that very job. Raises ``Refused``, ``Stopping``."""
        config, limits = self._engine.config, self._engine.limits
        expected = again.spec.inputs if again else None
        taken = await self._in_thread(partial(upload.finish, take, expected))
        intake = await self._in_thread(partial(decide, config, limits, self._home, taken))
        if intake.refusal is not None:
            raise Refused(*intake.refusal)
        spec = intake.spec
        try:
            await self._engine.submit(intake)
        except Refused as refused:
            if refused.refusal != "key" or spec.key is None:
                raise
            other = await self._job_of_key(spec.key)
            if not _is_same(other, spec):
                raise
            await self._discard(upload)
            return Submitted(other.id, other.spec.name, other.spec.solver, existing=True)
        await self._in_thread(upload.close)
        return Submitted(intake.id, spec.name, spec.solver)

    async def abandon(self, upload: Upload) -> None:
        """Leave nothing of a submission that broke off."""
        with anyio.CancelScope(shield=True):
            await self._discard(upload)

    async def _discard(self, upload: Upload) -> None:
        def discard() -> None:
            try:
                upload.discard()
            finally:
                upload.close()

        await self._in_thread(discard)

    async def _job_of_key(self, key: str) -> Job:
        """The job that has this key, once it is durable."""
        await self._engine.carry_out(_nothing)
        found = await self._read(partial(self._history.job_of_key, key))
        if found is None:
            raise AssertionError(f"the key {key!r} belongs to nobody")
        return found

    async def cancel(self, job: Job, user: str | None) -> JobView:
        """End a job. Raises ``Conflict`` if it is finished."""

        async def act(apply: Callable[[Event], None]) -> None:
            live = self._engine.world.jobs.get(job.id)
            if live is None or live.state in TERMINAL:
                raise Conflict("finished", f"{job.id} is finished already ({(live or job).state.value})")
            log.info("job.cancel_asked", id=job.id, by=user)
            apply(Cancel(job.id, now_us()))

        await self._engine.carry_out(act)
        return await self.view(await self.find(job.id, None))

    async def pause(self, solver: str | None, note: str | None, user: str | None) -> Status:
        """Start nothing more of ``solver``, or of any. Raises ``Refused`` for a solver that does not exist."""
        self._must_know(solver)

        async def act(_: Callable[[Event], None]) -> None:
            self._engine.world.set_pause(Pause(solver, user, now_us(), note))
            log.info("solver.paused", solver=solver, by=user, note=note)

        await self._engine.carry_out(act)
        return self.status()

    async def resume(self, solver: str | None, user: str | None) -> Status:
        """Take a pause back. Raises ``Conflict`` if there is none."""

        async def act(_: Callable[[Event], None]) -> None:
            if solver not in self._engine.world.pauses:
                what = f"{solver} is not paused" if solver else "not everything is paused"
                others = ", ".join(sorted(name or "everything" for name in self._engine.world.pauses))
                raise Conflict("not_paused", f"{what}; paused: {others or 'nothing'}")
            self._engine.world.end_pause(solver)
            log.info("solver.resumed", solver=solver, by=user)

        await self._engine.carry_out(act)
        return self.status()

    async def scale(self, solver: str, count: int | None, user: str | None) -> PoolView:
        """Have exactly ``count`` warm servers of ``solver`` until the daemon ends; ``None``: as configured.

        Raises ``Refused`` for a count that cannot be had, or a solver without warm servers.
        """
        self._must_not_stop()
        limits = self._engine.limits
        if solver not in limits.pools:
            raise Refused("usage", self._without_servers(solver))
        if count is not None and not 0 <= count <= SERVERS_MAX:
            raise Refused("usage", f"count={count} is not from 0 to {SERVERS_MAX:,}; null takes the configured numbers")
        configured = self._engine.config.solver[solver]
        if isinstance(configured, ServerSolver) and isinstance(configured.port, int) and (count or 0) > 1:
            raise Refused("usage", f"{solver} has one port, and so one server; ask for at most 1")
        for name, each in limits.pools[solver].licenses:
            total = limits.licenses.get(name, 0)
            if count is not None and count * each > total:
                text = f"{count} servers of {solver} would hold {count * each} of the license {name}"
                raise Refused("license", f"{text}, and there are {total}; ask for at most {total // each}")

        async def act(_: Callable[[Event], None]) -> None:
            self._engine.world.set_scale(solver, count)
            log.info("servers.scaled", solver=solver, count=count, by=user)

        await self._engine.carry_out(act)
        return self._pool(solver)

    async def recycle(self, target: str, user: str | None) -> PoolView:
        """Replace the warm servers of a solver, or the one called ``target``, each once it has no job.

        Raises ``NoSuchServer``.
        """
        return await self._renew(target, user, "recycled", forgets=False)

    async def restart(self, target: str, user: str | None) -> PoolView:
        """As ``recycle``; and what went wrong is forgotten, so that a solver whose servers failed starts them at once.

        Raises ``NoSuchServer``.
        """
        return await self._renew(target, user, "restarted", forgets=True)

    async def _renew(self, target: str, user: str | None, word: str, *, forgets: bool) -> PoolView:
        self._must_not_stop()
        solver = ""

        async def act(_: Callable[[Event], None]) -> None:
            nonlocal solver
            solver, servers = self._meant(target)
            if forgets:
                fleet.restart(self._engine.world, self._engine.limits.pools[solver], solver)
            why = f"{word} by {user}" if user else word
            for server in servers:
                self._engine.post(Retire(server.name, why, time.monotonic()))
            log.info(f"servers.{word}", solver=solver, servers=[server.name for server in servers], by=user)

        await self._engine.carry_out(act)
        return self._pool(solver)

    def _meant(self, target: str) -> tuple[str, list[Server]]:
        """The solver called ``target`` with all its servers, or else the one of that name with its solver."""
        world = self._engine.world
        if target in self._engine.limits.pools:
            return target, [server for server in world.servers.values() if server.solver == target]
        server = world.servers.get(target)
        if server is None:
            raise NoSuchServer(self._without_servers(target))
        return server.solver, [server]

    def _without_servers(self, name: str) -> str:
        """Why ``name`` is nothing that has warm servers, or is one."""
        pools = self._engine.limits.pools
        known = name in self._engine.config.solver
        what = f"{name} has no warm servers" if known else f"there is no solver and no warm server {name!r}"
        return f"{what}; solvers with warm servers: {', '.join(sorted(pools)) or 'none'}"

    def _pool(self, solver: str) -> PoolView:
        return answers.pool(self._engine.world, self._engine.limits, solver, time.monotonic())

    async def open_batch(self, rule: BatchRule, user: str | None) -> BatchView:
        """A new batch, to submit jobs into. Raises ``Refused`` for a rule that cannot be kept."""
        self._must_not_stop()
        if rule.max_jobs is not None and not 1 <= rule.max_jobs <= BATCH_JOBS_MAX:
            raise Refused("usage", f"max_jobs={rule.max_jobs} is not from 1 to {BATCH_JOBS_MAX:,}")
        if len(rule.name) > NAME_MAX:
            raise Refused("usage", f"the name of a batch has at most {NAME_MAX} characters")
        batch_id = self._ids.new_id(rule.name or "batch", now_us())
        batch = Batch(batch_id, rule.name, user, rule.on_error, rule.max_jobs, now_us())

        async def act(_: Callable[[Event], None]) -> None:
            self._engine.put_batch(batch)

        await self._engine.carry_out(act)
        return await self.batch(batch_id)

    async def close_batch(self, batch_id: str) -> BatchView:
        """No more jobs come into this batch."""

        async def act(_: Callable[[Event], None]) -> None:
            batch = await self._known_batch(batch_id)
            if not batch.closed:
                self._engine.put_batch(replace(batch, closed=True))

        await self._engine.carry_out(act)
        return await self.batch(batch_id)

    async def cancel_batch(self, batch_id: str, user: str | None, *, running: bool) -> BatchView:
        """Cancel what of a batch is queued, with ``running`` also what runs; nothing more of it is started."""

        async def act(apply: Callable[[Event], None]) -> None:
            batch = await self._known_batch(batch_id)
            world = self._engine.world
            if batch.closed and not has_members(world, batch_id):
                return  # it is over
            if batch.stopped is None:
                self._engine.put_batch(replace(batch, stopped="its batch was cancelled"))
            members = queued_members(world, batch_id)
            if running:
                started = (member for member in world.holding if world.jobs[member].spec.batch == batch_id)
                members += sorted(started)
            log.info("batch.cancel_asked", batch=batch_id, by=user, jobs=len(members))
            for member in members:
                if world.jobs[member].state not in TERMINAL:  # one may have been skipped with another
                    apply(Cancel(member, now_us()))

        await self._engine.carry_out(act)
        return await self.batch(batch_id)

    # --- helpers ----------------------------------------------------------------------------------------------------

    async def finished_of_batch(self, batch: Batch) -> Counter[State]:
        """How many jobs of a batch ended in which state."""
        finished, ended = await self._read(partial(self._history.finished_of_batch, batch.id))
        finished.update(ended.values())
        return finished

    async def _known_batch(self, batch_id: str) -> Batch:
        batch = await self._engine.batch(batch_id)
        if batch is None:
            raise no_batch(batch_id)
        return batch

    async def _must_take_jobs(self, batch_id: str) -> None:
        batch = self._engine.world.batches.get(batch_id) or await self._read(partial(self._history.batch, batch_id))
        if batch is None:
            raise no_batch(batch_id)
        if batch.closed:
            raise Conflict("batch_closed", f"the batch {batch_id} is closed; open another one")

    def _must_not_stop(self) -> None:
        if self._engine.world.draining:
            raise Stopping

    def _must_know(self, solver: str | None) -> None:
        known = self._engine.config.solver
        if solver is not None and solver not in known:
            raise Refused("usage", f"there is no solver {solver!r}; there are: {', '.join(sorted(known)) or 'none'}")

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(work, limiter=self._files)


async def _nothing(_: Callable[[Event], None]) -> None:
    """An order that changes nothing; it is done when everything before it is durable."""


def _inbox_wait(route: str, wait: Wait) -> InboxWait:
    return InboxWait(escape_name(f"{route}/{wait.name}" if route else wait.name), wait.why, wait.text)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with a file; ``None`` where there is none to be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _write_job_file(upload: Upload, names: list[str], job: Mapping[str, Any] | bytes) -> None:
    """Put what was asked for beside the files, where a crash leaves it and anybody can read it."""
    if FOLDER_JOB_FILE in names:
        raise Refused("usage", "the job came twice, as a job file and beside the files; send one of them")
    if isinstance(job, Mapping):
        wishes = {key: value for key, value in job.items() if value is not None}
        top = [name for name in names if "/" not in name and name != FOLDER_JOB_FILE and not is_job_file(name)]
        if "inputs" not in wishes and top:
            wishes["inputs"] = top
        try:
            job = tomli_w.dumps(wishes).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise Refused("usage", f"the wishes cannot be written as a job file: {error}") from None
    upload.begin(FOLDER_JOB_FILE)
    upload.write(job)
    upload.end()


def _is_same(job: Job, spec: JobSpec) -> bool:
    """Whether a submission asks for the very job that has its key already."""
    return (job.spec.solver, job.spec.inputs, job.spec.batch) == (spec.solver, spec.inputs, spec.batch)
