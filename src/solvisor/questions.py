"""Questions about jobs, batches and servers: what is live is answered from memory, what was from the database.

Rules: nothing is changed here. What is live is read between two awaits, so that it is one moment; the past is read over
a connection of its own, which waits for no writer. It must not know HTTP, or what is printed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Protocol, TypeVar

import anyio
import msgspec
from msgspec.structs import replace

from . import answers
from .clock import now_us
from .config import Config
from .errors import Refused, SolvisorError
from .history import Filters, History
from .home import Home
from .manifest import Manifest
from .model import TARGETS, TERMINAL, Job, Limits, State
from .pile import Bell
from .views import BatchView, Explanation, JobPage, JobRow, JobView, Pools
from .world import World

T = TypeVar("T")

CANDIDATES_SHOWN = 6
PAGE_MAX = 1000
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
    """What questions need to know: the engine of a daemon, or what a home says where there is none."""

    config: Config
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
        self._reading = anyio.CapacityLimiter(1)
        self._looking = anyio.CapacityLimiter(2)

    async def page(self, filters: Filters, cursor: str | None, limit: int) -> JobPage:
        """Jobs, newest first. Raises ``Refused`` for a cursor that is not one of ours."""
        before = None
        if cursor is not None:
            if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 16):
                raise Refused("usage", f"{cursor!r} is no cursor; pass on what next was in the page before")
            before = int(cursor)
        limit = max(1, min(limit, PAGE_MAX))
        found = await self._read(partial(self._history.page, filters, before, limit))
        rows = []
        for job in found:
            row = self._row(await self._current(job))
            if not filters.states or row.state in filters.states:
                rows.append(row)
        return JobPage(tuple(rows), str(found[-1].seq) if len(found) == limit else None)

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
        else:
            plain = name.isascii() and bool(name)
            ids = await self._read(partial(self._history.ids_like, name, CANDIDATES_SHOWN)) if plain else []
        if name in ids:
            ids = [name]
        if not ids:
            raise NoSuchJob(f"no job's id begins with {name!r}; solvisor list shows them")
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

    def must_be_published(self, job: Job) -> None:
        """Raises ``Conflict`` while the result of a job is not in its place."""
        if job.id in self._known.world.jobs:
            state = answers.shown_state(job, live=True)
            raise Conflict("not_finished", f"{job.id} is {state.value}; it has no result yet")

    async def view(self, job: Job) -> JobView:
        """All that is known of a job."""
        job = await self._current(job)
        manifest: Manifest | None = None
        if job.id not in self._known.world.jobs:
            manifest = await anyio.to_thread.run_sync(self._manifest, job, limiter=self._looking)
        config = self._known.config
        settings = config.settings(job.spec) if job.spec.solver in config.solver else None
        return answers.view(self._known.world, self._known.limits, job, settings, manifest, now_us())

    async def explain(self, job: Job) -> Explanation:
        """Why a job is where it is."""
        view = await self.view(job)
        found = answers.explanation(self._known.world, self._known.limits, view, time.monotonic(), now_us())
        if self._known.over and view.state is State.QUEUED:
            return replace(found, headline="waits for a daemon: solvisor serve starts one.")
        return found

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
        return Pools(pools=answers.servers(self._known.world, self._known.limits, time.monotonic()))

    def _row(self, job: Job) -> JobRow:
        return answers.row(self._known.world, self._known.limits, job, now_us())

    def _manifest(self, job: Job) -> Manifest | None:
        path = self._home.root / TARGETS[job.state] / job.id / "manifest.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=Manifest)
        except (OSError, msgspec.DecodeError):  # removed by the operator, or by a later version
            return None

    async def _read(self, question: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(question, limiter=self._reading)


def has_members(world: World, batch_id: str) -> bool:
    """Whether the world holds jobs of this batch."""
    roll = world.members.get(batch_id)
    return roll is not None and bool(roll.ids)


def no_batch(batch_id: str) -> NoSuchBatch:
    """The error for a batch that nobody knows."""
    return NoSuchBatch(f"there is no batch {batch_id!r}")
