"""Questions about jobs, batches and servers: what is live is answered from memory, what was from the database.

Rules: nothing is changed here. What is live is read between two awaits, so that it is one moment; the past is read over
a connection of its own, which waits for no writer. It must not know HTTP, or what is printed.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol, TypeVar

import anyio
import msgspec
from msgspec.structs import replace

from . import answers, fleetview, offers, tallies, views
from . import usage as usages
from .advice import Declared
from .clock import now_us
from .config import Config
from .errors import Refused, SolvisorError
from .figures import Report, Usage
from .history import Filters, History
from .home import Home
from .kinds import WarmSolver
from .manifest import Manifest, rfc3339
from .model import TARGETS, TERMINAL, Job, Limits, State
from .pile import Bell
from .processors import spread
from .report import POINTS, Period, report
from .usage import Present
from .usual import Usual
from .views import BatchView, Explanation, JobPage, JobRow, JobView, Licenses, Pools, Solvers
from .world import World

T = TypeVar("T")

_decode_manifest = msgspec.json.Decoder(Manifest).decode

CANDIDATES_SHOWN = 6
PAGE_MAX = 1000

PUBLISHING_SECONDS = 5.0
"""How long a result is waited for that is on its way to its place: it takes a moment, but on a disk that is full."""

NO_SERVERS = (
    "a daemon that stops ends its warm servers; those of one that was killed may still run, until the next start ends "
    "them"
)


class NoSuchJob(SolvisorError):
    """No job has such a name."""

    code = "no_such_job"
    exit_status = 4


class NoSuchBatch(NoSuchJob):
    """No batch has such an id."""

    code = "no_such_batch"


class NoSuchServer(SolvisorError):
    """No warm server and no solver with warm servers has such a name."""

    code = "no_such_server"
    exit_status = 4


class AmbiguousJob(SolvisorError):
    """Several jobs could be meant: ``candidates``, the newest first."""

    code = "ambiguous_job"
    exit_status = 2

    def __init__(self, text: str, candidates: tuple[str, ...]) -> None:
        self.candidates = candidates
        super().__init__(text)


class Conflict(SolvisorError):
    """The job is not in a state in which this can be done. ``reason`` is the open code."""

    code = "conflict"

    def __init__(self, reason: str, text: str) -> None:
        self.reason = reason
        super().__init__(text)


class Known(Protocol):
    """What questions need to know: the engine of a daemon, or what a home says where there is none.

    ``limits`` are in force, ``configured`` those of the configuration alone.
    """

    config: Config
    configured: Limits
    limits: Limits
    bell: Bell

    @property
    def world(self) -> World:
        """The state of everything, to be read."""
        ...

    @property
    def over(self) -> bool:
        """Whether nothing will change any more."""
        ...


class Questions:
    """Answers about the jobs of ``home``."""

    def __init__(self, *, known: Known, home: Home, history: History) -> None:
        self._known = known
        self._home = home
        self._history = history
        self._usual = Usual()
        self._reading = anyio.CapacityLimiter(1)
        self._looking = anyio.CapacityLimiter(2)
        self._summing = anyio.CapacityLimiter(1)
        self._reporting = anyio.CapacityLimiter(1)

    async def page(self, filters: Filters, cursor: str | None, limit: int) -> JobPage:
        """Jobs, newest first; there may be few or none on a page that is not the last one.

        Raises ``Refused`` for a cursor that is not one of ours.
        """
        before = None
        if cursor is not None:
            if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):
                raise Refused("usage", f"{cursor!r} is no cursor; pass on what next was in the page before")
            before = int(cursor)
        limit = max(1, min(limit, PAGE_MAX))
        found = await self._read(partial(self._history.page, filters, before, limit))
        rows = []
        for job in found.jobs:
            row = self._row(await self._current(job))
            if filters.states and row.state not in filters.states:
                continue  # it changed since it was read
            if filters.causes and row.cause not in filters.causes:
                continue
            rows.append(row)
        return JobPage(tuple(rows), None if found.next_seq is None else str(found.next_seq))

    async def find(self, name: str, user: str | None) -> Job:
        """The job that is meant by an id, a prefix that only one id has, or ``last`` (the newest, of this user).

        Raises ``NoSuchJob``, ``AmbiguousJob``.
        """
        live = self._known.world.jobs.get(name)
        if live is not None:
            return live
        if name == "last":
            newest = await self._read(partial(self._history.newest, user))
            if newest is None:
                raise NoSuchJob("there is no job yet")
            ids = [newest]
        elif (found := await self._read(partial(self._history.job, name))) is not None:
            return self._known.world.jobs.get(name) or found
        else:
            plain = name.isascii() and bool(name)
            ids = await self._read(partial(self._history.ids_like, name, CANDIDATES_SHOWN)) if plain else []
        if not ids:
            raise NoSuchJob(
                f"no job's id begins with {name!r}; solvisor list shows them, solvisor status what waits in the inbox"
            )
        if len(ids) > 1:
            text = (
                f"{name!r} could be {', '.join(ids[: CANDIDATES_SHOWN - 1])}{', ...' * (len(ids) == CANDIDATES_SHOWN)}"
            )
            raise AmbiguousJob(f"{text}; give more of the id", tuple(ids))
        found = self._known.world.jobs.get(ids[0]) or await self._read(partial(self._history.job, ids[0]))
        if found is None:
            raise NoSuchJob(f"{ids[0]} is gone from the database")
        return found

    async def _current(self, job: Job) -> Job:
        """The job as it is now; one that left the world since it was read has its end in a row."""
        live = self._known.world.jobs.get(job.id)
        if live is not None or job.state in TERMINAL:
            return live or job
        ended = await self._read(partial(self._history.job, job.id))
        return self._known.world.jobs.get(job.id) or ended or job

    async def must_be_published(self, job: Job) -> None:
        """Raises ``Conflict`` while the result of a job is not in its place, and once it was removed."""
        await self.soon_published(job)
        if job.id in self._known.world.jobs:
            state = answers.shown_state(job, live=True)
            raise Conflict("not_finished", f"{job.id} is {state.value}; it has no result yet")
        if job.removed_us is not None:
            when = rfc3339(job.removed_us)[:10]
            raise Conflict("removed", f"the files of {job.id} were removed on {when}, as [retention] says")

    async def view(self, job: Job) -> JobView:
        """All that is known of a job."""
        job = await self._current(job)
        manifest: Manifest | None = None
        if job.id not in self._known.world.jobs:
            manifest = await anyio.to_thread.run_sync(self._manifest, job, limiter=self._looking)
        config = self._known.config
        settings = config.settings(job.spec) if job.spec.solver in config.solver else None
        return answers.view(self._known.world, self._known.limits, self._usual, job, settings, manifest, now_us())

    def stage_of(self, job_id: str, attempt: int) -> Literal["waits", "runs", "over"]:
        """How far a try is that was begun or could be: before its solver runs, while it does, and after it."""
        job = self._known.world.jobs.get(job_id)
        if job is None or self._known.over:
            return "over"
        if attempt == len(job.attempts):
            if job.state is not State.RUNNING:
                return "over"
            return "waits" if job.current.pid is None else "runs"
        return "over" if attempt < len(job.attempts) or job.state in TERMINAL else "waits"

    def is_newest(self, job: Job, attempt: int) -> bool:
        """Whether no solver of a later try of the job was begun."""
        job = self._known.world.jobs.get(job.id) or job
        later = job.attempts[attempt:]
        return not later or (len(later) == 1 and later[0].pid is None and job.state is State.RUNNING)

    async def explain(self, job: Job) -> Explanation:
        """Why a job is where it is."""
        view = await self.view(job)
        found = answers.explanation(self._known.world, self._known.limits, view, time.monotonic(), now_us())
        if self._known.over and view.state is State.QUEUED:
            return replace(found, headline="waits for a daemon: solvisor serve starts one.")
        return found

    async def soon_published(self, job: Job) -> None:
        """Wait for the result of a job that has ended: it may be seen in its place before the world knows of it."""
        if job.state in TERMINAL:
            await self.wait_finished(job.id, PUBLISHING_SECONDS)

    async def wait_finished(self, job_id: str, seconds: float) -> None:
        """Until the job's result lies in its place, or its processes would not die; at most so long."""
        with anyio.move_on_after(seconds):
            while (job := self._known.world.jobs.get(job_id)) is not None and not self._known.over:
                if answers.shown_state(job, live=True) in TERMINAL:
                    break
                await self._known.bell.wait()

    async def batch(self, batch_id: str, wait_seconds: float = 0.0) -> BatchView:
        """A batch; with ``wait_seconds`` once another of its jobs is finished, or so much later."""
        world = self._known.world
        roll = world.members.get(batch_id)
        left = roll.left if roll is not None else 0
        with anyio.move_on_after(wait_seconds):
            while roll is not None and wait_seconds and roll.left == left and not self._known.over:
                await self._known.bell.wait()
                if world.members.get(batch_id) is not roll:
                    break  # it is over
        while True:
            some_lived = has_members(world, batch_id)
            stored = await self._read(partial(self._history.batch, batch_id))
            finished, ended = await self._read(partial(self._history.finished_of_batch, batch_id))
            if not some_lived or has_members(world, batch_id):
                break
            # The last ones left meanwhile: only what is read from now on knows how they ended.
        batch = world.batches.get(batch_id) or stored
        if batch is None:
            raise no_batch(batch_id)
        finished.update(state for job_id, state in ended.items() if job_id not in world.jobs)
        return answers.batch_view(world, batch, finished)

    def servers(self) -> Pools:
        """All warm servers, by their solvers; without a daemon there are none."""
        if self._known.over:
            return Pools(pools=(), note=NO_SERVERS)
        return Pools(pools=fleetview.servers(self._known.world, self._known.limits, time.monotonic()))

    def limits(self) -> views.Limits:
        """All limits: in force, configured, in use, and who set them."""
        return views.Limits(answers.limits_told(self._known.world, self._known.configured, self._known.limits))

    def solvers(self) -> Solvers:
        """The solvers of the configuration, and how they are."""
        known = self._known
        return Solvers(
            offers.solvers(known.world, known.limits, known.config.solver, time.monotonic(), over=known.over)
        )

    def licenses(self) -> Licenses:
        """The licenses, who has them, and who waits."""
        return Licenses(offers.licenses(self._known.world, self._known.limits, time.monotonic(), now_us()))

    async def usage(self, since_us: int, until_us: int, points: int) -> Usage:
        """How busy it was between two instants (UTC microseconds), in at most so many steps."""
        limits = self._known.limits
        present = self._present()

        def work() -> Usage:
            rows, lives = tallies.usage(self._home.db, since_us, until_us, points, present)
            return usages.usage(rows, lives, since_us, until_us, points, usages.totals(limits))

        return await anyio.to_thread.run_sync(spread(work), limiter=self._summing)

    async def report(self, since_us: int, until_us: int) -> Report:
        """What became of the jobs that ended between two instants (UTC microseconds), how busy it was, what to change.

        One at a time is made, in a thread of its own; of one that nobody waits for any more it is given up.
        """
        limits, declared = self._known.limits, _declared(self._known.config)
        present = self._present()
        period = Period(since_us, until_us, socket.gethostname())
        given_up = threading.Event()

        def work() -> Report:
            ended = tallies.ended(self._home.db, since_us, until_us, given_up.is_set)
            rows, lives = tallies.usage(self._home.db, since_us, until_us, POINTS, present)
            return report(period, ended, rows, lives, limits, declared, _local_hour)

        try:
            return await anyio.to_thread.run_sync(spread(work), limiter=self._reporting, abandon_on_cancel=True)
        finally:
            given_up.set()

    def _present(self) -> Present | None:
        """How busy it is as far as that is not in the database; nothing where no daemon runs."""
        return None

    def _row(self, job: Job) -> JobRow:
        return answers.row(self._known.world, self._known.limits, self._usual, job, now_us())

    def _manifest(self, job: Job) -> Manifest | None:
        path = self._home.root / TARGETS[job.state] / job.id / "manifest.json"
        try:
            return _decode_manifest(path.read_bytes())
        except (OSError, msgspec.DecodeError):  # removed by the operator, or by a later version
            return None

    async def _read(self, question: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(spread(question), limiter=self._reading)


def _declared(config: Config) -> dict[str, Declared]:
    """What the configuration says of its solvers, as far as there can be advice on it."""
    return {
        name: Declared(
            cpus=solver.cpus,
            memory_bytes=solver.memory,
            licenses=solver.licenses,
            timeout_seconds=solver.timeout,
            idle_seconds=solver.servers.idle if isinstance(solver, WarmSolver) else None,
        )
        for name, solver in config.solver.items()
    }


def _local_hour(time_us: int) -> int:
    return time.localtime(time_us // 1_000_000).tm_hour


def has_members(world: World, batch_id: str) -> bool:
    """Whether the world holds jobs of this batch."""
    roll = world.members.get(batch_id)
    return roll is not None and bool(roll.ids)


def no_batch(batch_id: str) -> NoSuchBatch:
    """The error for a batch that nobody knows."""
    return NoSuchBatch(f"there is no batch {batch_id!r}")
