"""The desk: where people's questions and orders reach the engine.

Questions about live jobs and the daemon are answered from memory, so they are answered while a disk hangs; those about
the past are read over a connection of their own. Orders are carried out in the engine's own task and answered when they
are durable. Rules: nothing here changes state but through ``Engine.carry_out``. It must not know HTTP, or what is
printed. One file, if a long one: it is all that can be asked of a daemon, and what may be asked without one is in
``questions`` already.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import structlog
import tomli_w
from msgspec.structs import replace

from . import __version__, answers, failpoint, fleet, fleetview, overrides
from .acceptance import STEPS_AT_ONCE
from .clock import now_us
from .counters import Counters
from .engine import Engine
from .errors import NoRoom, Refused, StoreDamaged
from .events import Cancel, Event, Prioritize, Retire
from .feed import Filter, What
from .figures import Report
from .heartbeat import Heartbeat
from .history import History
from .home import Home, IdMaker
from .inbox import Inbox, Wait
from .intake import decide
from .kinds import ServerSolver
from .lately import FAILURES_KEPT, MINUTE_US, Lately
from .machine import queued_members
from .manifest import rfc3339
from .model import (
    TARGETS,
    TERMINAL,
    Batch,
    FileFact,
    Intake,
    Job,
    JobSpec,
    Override,
    Pause,
    Request,
    Server,
    State,
)
from .names import FOLDER_JOB_FILE, escape_name, is_job_file, unescape_name
from .orders import Stopping, Unsure
from .pile import unless
from .questions import Conflict, NoSuchServer, Questions, has_members, no_batch
from .readers import Readers
from .reload import NOTES
from .spool import NotDurable, Take, Upload
from .submission import Submission, Threads
from .usage import Present
from .views import (
    BatchRule,
    BatchView,
    Health,
    InboxWait,
    JobView,
    LastDay,
    Limits,
    PoolView,
    Status,
    Submitted,
)

T = TypeVar("T")

RUNNING_SHOWN = 100
WAITING_SHOWN = 20
WAITS_SHOWN = 20
BATCH_JOBS_MAX = 1_000_000
NAME_MAX = 500
"""Characters in the name of a batch."""
SERVERS_MAX = 1000
"""As many as the configuration allows."""

log = structlog.get_logger()


class Desk(Questions):
    """Answers for one daemon. Call ``prepare`` before anything is asked, and ``published`` for every result.

    ``heartbeat`` knows the lag of the loop, ``lost_lines`` how many lines of the log could not be written so far,
    ``escaped`` how many processes escaped and were found, ``page`` where browsers find the daemon, if they do,
    ``present`` how busy it is as far as that is not written yet.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        inbox: Inbox,
        home: Home,
        history: History,
        ids: IdMaker,
        host: str,
        heartbeat: Heartbeat,
        escaped: Callable[[], int] = lambda: 0,
        lost_lines: Callable[[], int] = lambda: 0,
        page: Callable[[], str | None] = lambda: None,
        present: Callable[[], Present | None] = lambda: None,
    ) -> None:
        super().__init__(known=engine, home=home, history=history)
        self.readers = Readers(engine.feed, lambda: engine.bell, lambda: engine.over, self._facts)
        self._heartbeat = heartbeat
        self._lost_lines = lost_lines
        self._page = page
        self._unwritten = present
        self._engine = engine
        self._escaped = escaped
        self._host = host
        self._inbox = inbox
        self._waits: tuple[tuple[tuple[str, Wait], ...], list[tuple[str, str, str]]] = (), []
        self._ids = ids
        self._began = time.monotonic()
        self._threads = Threads()
        self._lately = Lately()
        self.counters = Counters()

    async def prepare(self) -> None:
        """Read what the last day brought before this life, and how long the last jobs ran."""
        since_us = Lately.since(now_us()) * MINUTE_US
        ends = await self._read(partial(self._history.finished_since, since_us))
        failed = await self._read(partial(self._history.failed_since, since_us, FAILURES_KEPT))
        self._lately.add(ends, reversed(failed))
        for ran in await self._read(self._history.ran_lately):
            self._usual.add(ran)

    def published(self, job: Job) -> None:
        """Count a job whose result lies in its place."""
        self._lately.count(job)
        self.counters.count(job, self._engine.config.solver)
        self._usual.count(job)

    def _present(self) -> Present | None:
        return None if self._engine.over else self._unwritten()

    def events(self, since: str | None, wanted: Filter) -> AsyncGenerator[bytes, None]:
        """What happens from now on, or from the cursor ``since`` on, as server-sent events."""
        return self.readers.stream(since, wanted, self._host, __version__)

    def _facts(self) -> dict[What, object]:
        """What is told to have changed, once it is not the same any more."""
        world = self._engine.world
        pools = [(p.failed, p.rests_until, p.error, p.scale, len(p.ends)) for p in world.pools.values()]
        return {
            "servers": (list(world.servers.values()), pools),
            "limits": (self._engine.limits, list(world.overrides.values())),
            "pauses": list(world.pauses.values()),
            "batches": world.batch_changes,
            "config": self._engine.config,
            "health": self._health(),
            "inbox": self._waits_told(),
            "order": world.reordered,
        }

    async def report(self, since_us: int, until_us: int) -> Report:
        """As ``Questions.report``; the end of the daemon does not wait for it. Raises ``Stopping``."""

        async def ends() -> None:
            while not self._engine.over:
                await self._engine.bell.wait()

        found = await unless(ends, partial(super().report, since_us, until_us))
        if found is None:
            raise Stopping
        return found

    def _waits_told(self) -> list[tuple[str, str, str]]:
        """What waits in the inbox, and why; made once for each look at it."""
        waiting = self._inbox.waiting
        if waiting is not self._waits[0]:
            self._waits = waiting, [(route, wait.name, wait.why) for route, wait in waiting]
        return self._waits[1]

    def _health(self) -> tuple[Health, tuple[str, ...]]:
        """How the daemon is, and what is wrong."""
        world, limits = self._engine.world, self._engine.limits
        problems = [*self._engine.trouble.values(), *filter(None, [self._inbox.trouble])]
        soon = answers.room_notes(world, self._engine.config.retention.removes)
        soon += answers.limit_notes(world, self._engine.configured)
        problems += soon
        problems += answers.homeless_problems(world, limits)
        problems += answers.disk_problems(world)
        problems += fleetview.server_problems(world, limits)
        problems += answers.unkillable_problems(world)
        problems += answers.license_problems(world, time.monotonic())
        wrong = len(problems) > len(NOTES & self._engine.trouble.keys()) + len(soon)
        return "stopping" if world.draining else "degraded" if wrong else "healthy", tuple(problems)

    def not_ready(self) -> str | None:
        """Why the daemon takes no work now, if so; nothing of it is about jobs."""
        world = self._engine.world
        if world.draining:
            return "the daemon is stopping"
        if world.no_intake is not None:
            return f"nothing is taken in now: {world.no_intake}"
        return "what may have ended earlier daemons is looked at first" if world.wary else None

    def database_bytes(self) -> int:
        """What the database takes of the disk, with its log. Blocks."""
        db = self._home.db
        return sum(path.stat().st_size for path in (db, db.with_name(f"{db.name}-wal")) if path.exists())

    def status(self) -> Status:
        """The daemon at this moment."""
        world, limits, now = self._engine.world, self._engine.limits, now_us()
        health, problems = self._health()
        held = [world.jobs[job_id] for job_id in world.holding]
        running = sorted((job for job in held if job.state is State.RUNNING), key=lambda job: job.seq)
        unkillable = sum(job.state in TERMINAL for job in held)
        waiting = world.states[State.QUEUED]
        waits = self._inbox.waiting
        ended = self._lately.totals(now)
        return Status(
            host=self._host,
            version=__version__,
            home=str(self._home.root),
            inbox_path=str(self._home.inbox),
            pid=os.getpid(),
            health=health,
            problems=problems,
            up_seconds=time.monotonic() - self._began,
            now=rfc3339(now),
            running=len(running),
            escaped=self._escaped(),
            collecting=len(world.jobs) - waiting - len(running) - unkillable,
            waiting=waiting,
            last_day=LastDay(**{state.value: ended[state] for state in TERMINAL}),
            loop_lag_seconds=self._heartbeat.recent,
            loop_lag_worst_seconds=self._heartbeat.worst,
            log_lines_lost=self._lost_lines(),
            disk_free_bytes=world.disk.free_bytes if world.disk else None,
            disk_reserve_bytes=world.disk.reserve_bytes if world.disk else None,
            waiting_for=answers.waiting_for(world, limits),
            inbox=tuple(_inbox_wait(*wait) for wait in waits[:WAITS_SHOWN]),
            inbox_total=len(waits),
            inbox_settling=self._inbox.settling,
            inbox_looked=None if self._inbox.looked_us is None else rfc3339(self._inbox.looked_us),
            cursor=self._engine.feed.cursor(self._engine.feed.last),
            paused=answers.pauses(world),
            limits_set=answers.limits_set(world, self._engine.configured, limits),
            servers=fleetview.pool_rows(world, limits, time.monotonic()),
            running_jobs=tuple(self._row(job) for job in running[:RUNNING_SHOWN]),
            waiting_jobs=tuple(self._row(world.jobs[job_id]) for job_id in answers.first_waiting(world, WAITING_SHOWN)),
            last_failed=tuple(self._row(job) for job in self._lately.failures(now) if job.id not in world.jobs),
            solvers=tuple(sorted(self._engine.config.solver)),
            page=self._page(),
            **answers.levels(world, limits),
        )

    # --- orders -----------------------------------------------------------------------------------------------------

    def begin(self, name: str, *, is_long: bool = False) -> Submission:
        """Begin a submission whose first file is called ``name``. Raises ``NoRoom``."""
        self.must_have_room()
        return Submission(self._home, self._ids.new_id(name, now_us()), self._threads, is_long=is_long)

    def must_have_room(self) -> None:
        """Raise ``NoRoom`` if the disk has no room for anything new."""
        why = self._engine.world.no_intake
        if why is not None:
            raise NoRoom(f"nothing is taken in now: {why}; then try again")

    async def submit(
        self, submission: Submission, job: Mapping[str, Any] | bytes | None, request: Request
    ) -> Submitted:
        """Make all that was sent a job, and answer when it is durable.

        ``job`` are wishes, as the keys of a job file or as the bytes of one. A submission whose key a job has already,
        with the same files and wishes, is that job. Raises ``Refused``.
        """
        async with self._or_nothing(submission):
            self._must_not_stop()
            if request.batch is not None:
                await self._must_take_jobs(request.batch)
            names = submission.names
            take = Take(submission.job_id, (os.path.basename(names[0]),), folder=True, request=request)
            return await self._accept(submission, take, partial(_add_job_file, names, job))

    async def retry(self, job: Job, user: str | None) -> Submitted:
        """Make a new job of a finished one, with its inputs and wishes, judged by today's configuration.

        Raises ``Conflict``, ``Refused``.
        """
        self._must_not_stop()
        await self.soon_published(job)
        if job.id in self._engine.world.jobs:
            state = answers.shown_state(job, live=True)
            raise Conflict("not_finished", f"{job.id} is {state}; only a finished job can be run again")
        spec = job.spec
        submission = self.begin(spec.name, is_long=True)
        async with self._or_nothing(submission):
            request = Request("retry", user, retry_of=job.id)
            sources = (unescape_name(spec.source.path),)
            take = Take(submission.job_id, sources, spec.route, spec.folder, request=request)
            copy = partial(Upload.copy_inputs, home=self._home, target=TARGETS[job.state], job_id=job.id)
            return await self._accept(submission, take, copy, spec.inputs)

    @asynccontextmanager
    async def _or_nothing(self, submission: Submission) -> AsyncIterator[None]:
        """Whoever goes away meanwhile: a submission becomes a job, or nothing of it is left."""
        with anyio.CancelScope(shield=True):
            try:
                yield
            except Unsure:
                raise  # it may be a job: the next life knows
            except Exception as error:
                if isinstance(error, NotDurable):
                    self._engine.fail(error)
                await submission.discard()
                raise

    async def _accept(
        self,
        submission: Submission,
        take: Take,
        complete: Callable[[Upload], None],
        expected: Sequence[FileFact] | None = None,
    ) -> Submitted:
        """Make a submission a job, unless a job with its key is that very job. Raises ``Refused``, ``Stopping``.

        ``complete`` adds what is still missing; ``expected`` is what its files must be, where that is known.
        """
        config, limits = self._engine.config, self._engine.reach

        def claim(upload: Upload) -> Intake:
            complete(upload)
            return decide(config, limits, self._home, upload.finish(take, expected))

        intake = await submission.do(claim)
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
            await submission.discard()
            return Submitted(other.id, other.spec.name, other.spec.solver, existing=True)
        failpoint.reach("submit.accepted")
        return Submitted(intake.id, spec.name, spec.solver)

    async def _job_of_key(self, key: str) -> Job:
        """The job that has this key, once it is durable."""
        await self._engine.settle()
        found = await self._read(partial(self._history.job_of_key, key))
        if found is None:
            raise AssertionError(f"the key {key!r} belongs to nobody")
        return found

    async def cancel(self, job: Job, user: str | None) -> JobView:
        """End a job. Raises ``Conflict`` if it is finished."""

        async def act(apply: Callable[[Event], None]) -> None:
            self._unfinished(job)
            log.info("job.cancel_asked", id=job.id, by=user)
            apply(Cancel(job.id, now_us()))

        await self._engine.carry_out(act)
        return await self.view(await self.find(job.id, None))

    def _unfinished(self, job: Job) -> Job:
        """The job as it is now. Raises ``Conflict`` if it is finished."""
        live = self._engine.world.jobs.get(job.id)
        if live is None or live.state in TERMINAL:
            raise Conflict("finished", f"{job.id} is finished already ({(live or job).state.value})")
        return live

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

    async def limit(self, name: str, value: int | None, note: str | None, user: str | None) -> Limits:
        """Have a limit be ``value``, whatever the configuration says, until somebody takes that back (``None``).

        Raises ``Refused`` for a limit that does not exist, or a value that it cannot have.
        """

        async def act(_: Callable[[Event], None]) -> None:
            engine = self._engine
            known = overrides.values(engine.configured)
            before = overrides.values(engine.limits).get(name)
            if value is None:
                overrides.check_name(name, known | engine.world.overrides)
                engine.end_limit(name)
            else:
                overrides.check(name, value, known)
                engine.set_limit(Override(name, value, user, now_us(), note))
            log.info("limit.set", limit=name, before=before, value=value, by=user, note=note)

        await self._engine.carry_out(act)
        return self.limits()

    async def prioritize(self, job: Job, priority: int, user: str | None) -> JobView:
        """Move a queued job in the order. Raises ``Conflict`` if it has started."""

        async def act(apply: Callable[[Event], None]) -> None:
            live = self._unfinished(job)
            if live.state is not State.QUEUED:
                raise Conflict(
                    "started", f"{job.id} is {live.state.value}; only a job that waits has a place in the order"
                )
            apply(Prioritize(job.id, priority))
            log.info("job.priority", id=job.id, before=live.priority, priority=priority, by=user)

        await self._engine.carry_out(act)
        return await self.view(await self.find(job.id, None))

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
                rule = self._engine.limits.pools.get(solver)
                if rule is not None:
                    fleet.restart(self._engine.world, rule, solver)
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
        return fleetview.pool(self._engine.world, self._engine.limits, solver, time.monotonic())

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
            for number, member in enumerate(members, 1):
                if world.jobs[member].state not in TERMINAL:  # one may have been skipped with another
                    apply(Cancel(member, now_us()))
                if number % STEPS_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()

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

    async def _read(self, question: Callable[[], T]) -> T:
        try:
            return await super()._read(question)
        except StoreDamaged as error:  # what cannot be read must not be written to either
            self._engine.fail(error)
            raise


def _inbox_wait(route: str, wait: Wait) -> InboxWait:
    return InboxWait(escape_name(f"{route}/{wait.name}" if route else wait.name), wait.why, wait.text)


def _add_job_file(names: list[str], job: Mapping[str, Any] | bytes | None, upload: Upload) -> None:
    """Put what was asked for beside the files, where a crash leaves it and anybody can read it."""
    if FOLDER_JOB_FILE in names:
        if job is None:
            return
        raise Refused("usage", "the job came twice, as a job file and beside the files; send one of them")
    if not isinstance(job, bytes):
        wishes = {key: value for key, value in (job or {}).items() if value is not None}
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
