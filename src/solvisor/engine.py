"""The engine: the one task that owns the state of the world.

A pass takes all waiting events, applies them, plans, and commits everything in one transaction (*recorded*: it
survives the death of the daemon). Only then does it act: it starts processes, stops them, collects. A hardening commit
follows and makes it *durable* (it survives a power cut); only what is durable is announced: acknowledged to the inbox,
published. While a commit is in flight events pile up, so load makes passes bigger and not slower.

Rules: nobody else changes state; everybody else posts events. Nothing here blocks the loop. What is legal stands in
``machine``, what is wise in ``scheduler``, what touches files in ``spool``, and how a process lives in the backend.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup

from . import fleet, machine, recovery, scheduler
from .acceptance import Acceptance
from .chronicle import log_accepted, log_event, log_server_event
from .clock import now_us
from .collector import COLLECTING_THREADS, Collector
from .config import Config
from .errors import IllegalEvent, Refused, StoreUnavailable
from .events import (
    Accept,
    Collect,
    Discarded,
    Dispatch,
    Effect,
    Event,
    Gone,
    Judged,
    Publish,
    Published,
    Retire,
    ServerEvent,
    ServerWanted,
    Start,
    StartServer,
    Stop,
    StopServer,
)
from .model import TARGETS, TERMINAL, Batch, Intake, Job, Limits, State
from .orders import Act, Orders, Stopping, Unsure
from .pile import Bell, Pile
from .pool import Pool
from .publisher import Publisher
from .runner import Runner
from .spool import Publication, Results
from .store import Store
from .trouble import RETRY_SECONDS
from .world import World

T = TypeVar("T")

SURVIVORS_SECONDS = 5.0
"""The rest between two looks for processes of an earlier life that would not die."""

LAZY_SECONDS = 0.2
"""How long a change on which nothing depends (a process id, a publication) may wait for a commit to share."""

COLLECT_MAX = 64
"""Attempts collected under one set of fsyncs."""

log = structlog.get_logger()


class Engine:
    """Runs jobs until told to stop.

    ``post`` takes events from the runner, ``accept`` intakes from the inbox, ``carry_out`` what people order. ``drain``
    starts nothing new and lets running jobs finish for the configured time, then stops them; ``stop_now`` stops them at
    once. Either way nothing is lost: what did not finish is queued again in the next life.

    With ``parks`` it starts new jobs only; what waits from earlier lives goes on waiting, but the batch ``parks_not``.
    ``published`` and ``batch_over`` are called with each job whose result lies in its place, and with each batch whose
    last job does. ``world`` is for reading, between two awaits. ``trouble`` holds sentences about what goes wrong now.
    """

    def __init__(
        self,
        *,
        config: Config,
        limits: Limits,
        host: str,
        store: Store,
        results: Results,
        collector: Collector,
        make_pool: Callable[[Callable[[ServerEvent], None]], Pool],
        make_runner: Callable[[Callable[[Event], None], Pool], Runner],
        trouble: dict[str, str] | None = None,
        parks: bool = False,
        parks_not: str | None = None,
        published: Callable[[Job], None] = lambda _job: None,
        batch_over: Callable[[Batch], None] = lambda _batch: None,
    ) -> None:
        self.config = config
        self.limits = limits
        self.bell = Bell()
        self.trouble: dict[str, str] = {} if trouble is None else trouble
        self._published = published
        self._batch_over = batch_over
        self._host = host
        self._store = store
        self._collector = collector
        self._pool = make_pool(self.post)
        self._runner = make_runner(self.post, self._pool)
        self._store_turn = anyio.CapacityLimiter(1)
        self._world = World(store.last_seq() + 1, parks=parks, parks_not=parks_not)
        self._acceptance = Acceptance(config, self._world, store, self._in_store)
        self._events: list[Event | ServerEvent] = []
        self._orders = Orders(lambda: self._wake.set())
        self._wake = anyio.Event()
        self._ended: Pile[Job] = Pile()
        self._undurable: Pile[Callable[[], None]] = Pile()
        self._publisher = Publisher(results, self.trouble, self._now_published)
        self._wake_at: float | None = None
        self._record_at = math.inf
        self._feeding: anyio.CancelScope | None = None
        self._finished = False
        self._tasks: TaskGroup

    # --- what others call -------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether this engine came to its end: nothing changes any more."""
        return self._orders.over

    def post(self, event: Event | ServerEvent) -> None:
        """Hand in an event; it is applied in the next pass."""
        self._events.append(event)
        self._wake.set()

    @property
    def world(self) -> World:
        """The state of everything, to be read."""
        return self._world

    async def accept(self, intakes: Sequence[Intake]) -> None:
        """Make claimed drops jobs; returns when they are durable."""
        await self.carry_out(partial(self._accept, intakes))

    async def submit(self, intake: Intake) -> None:
        """Make a submission a job; returns when it is durable. Raises ``Refused``, ``Stopping``: there is no job."""
        await self.carry_out(partial(self._submit, intake))

    async def carry_out(self, act: Act) -> None:
        """Do this in the next pass; returns when what it changed is durable. Raises as ``Orders.carry_out``."""
        await self._orders.carry_out(act)

    def fail(self, error: Exception) -> None:
        """End the daemon by ``error``, which says that what is on the disk may not be what it is thought to be."""

        async def act(_: Callable[[Event], None]) -> None:
            raise error

        self._orders.add(act)

    def put_batch(self, batch: Batch) -> None:
        """Change a batch; only within ``carry_out``."""
        self._world.put_batch(batch)

    async def batch(self, batch_id: str) -> Batch | None:
        """A batch as it is now; only within ``carry_out``."""
        return await self._acceptance.batch(batch_id)

    def drain(self) -> None:
        """Start nothing new; give running jobs ``stop_timeout`` to finish."""
        if not self._world.draining:
            self._start_draining()
            self._tasks.start_soon(self._stop_after, self.config.daemon.stop_timeout)

    def stop_now(self) -> None:
        """Start nothing new and stop what runs; what is interrupted is queued again in the next life."""
        self._start_draining()
        self._runner.stop_all(now=True)
        self._pool.stop_all(now=True)

    # --- the life of the engine -------------------------------------------------------------------------------------

    async def run(
        self,
        *,
        jobs: Sequence[Job],
        adopted: Sequence[Intake],
        alive: Collection[str],
        survivors: Callable[[], Collection[str]],
        intake: Callable[[], Awaitable[None]],
        ready: Callable[[], None],
    ) -> None:
        """Recover, then serve until drained.

        ``jobs`` are the rows that an earlier life left unpublished, ``adopted`` its claims without a row; ``alive`` the
        tokens of earlier attempts whose processes would not die, and ``survivors`` (blocking) tells which of them still
        live. ``intake`` feeds ``accept`` until it is cancelled; it starts once recovery is recorded and ``ready`` was
        called.
        """
        try:
            await self._live(jobs, adopted, alive, survivors, intake, ready)
        finally:
            self._orders.end()
            self.bell.ring()

    async def _live(
        self,
        jobs: Sequence[Job],
        adopted: Sequence[Intake],
        alive: Collection[str],
        survivors: Callable[[], Collection[str]],
        intake: Callable[[], Awaitable[None]],
        ready: Callable[[], None],
    ) -> None:
        async with anyio.create_task_group() as self._tasks:
            for _ in range(COLLECTING_THREADS):
                self._tasks.start_soon(self._collect)
            self._tasks.start_soon(self._hardener)
            self._tasks.start_soon(self._publisher.run)
            await self._recover(jobs, alive)
            if alive:
                self._tasks.start_soon(self._outlive, survivors)
            self._orders.add(partial(self._accept, adopted))
            await self._pass()
            self._tasks.start_soon(self._feed, intake)
            ready()
            try:
                while not self._world.draining or self._feeding or self._busy():
                    await self._wait()
                    await self._pass()
                await self._record()
                await self._in_store(self._store.harden)
            except BaseException:
                self._orders.end()  # the intake may be waiting for one that nobody will carry out
                raise
            self._finished = True
            self._tasks.cancel_scope.cancel()
        if not self._finished:  # a task of ours was cancelled by nobody: what runs is not safe in such hands
            raise AssertionError("the tasks of the engine ended before it did")

    async def _feed(self, intake: Callable[[], Awaitable[None]]) -> None:
        """Take drops in until draining. What the intake has claimed by then it still hands over."""
        with anyio.CancelScope() as scope:
            self._feeding = scope
            if self._world.draining:
                scope.cancel()
            with suppress(Stopping, Unsure):  # the engine ends by a defect, which is told by itself
                await intake()
        self._feeding = None
        self._wake.set()

    def _start_draining(self) -> None:
        self._world.draining = True
        if self._feeding is not None:
            self._feeding.cancel()
        self._wake.set()

    def _busy(self) -> bool:
        if self._events or self._orders or self._undurable or self._pool.busy:
            return True
        return any(
            job.state in {State.RUNNING, State.COLLECTING}
            or (job.state in TERMINAL and job.id not in self._world.holding)
            for job in self._world.jobs.values()
        )

    async def _stop_after(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        log.warning("daemon.stop_timeout", seconds=seconds, text="stopping jobs that are still running")
        self._runner.stop_all()
        self._pool.stop_all()

    async def _wait(self) -> None:
        """Until an event comes in or an instant comes due."""
        rest = None if self._wake_at is None else max(0.0, self._wake_at - time.monotonic())
        with anyio.move_on_after(rest):
            await self._wake.wait()
        self._wake = anyio.Event()

    # --- one pass ---------------------------------------------------------------------------------------------------

    async def _pass(self) -> None:
        """Drain, apply, plan, record, act; then have it made durable and announced."""
        effects: list[Effect] = []
        announcements: list[Callable[[], None]] = []

        def apply(event: Event | ServerEvent) -> None:
            if isinstance(event, ServerEvent):
                self._apply_to_server(event)
                return
            effects.extend(self._apply(event))
            if isinstance(event, Accept) and event.intake.refusal is None:
                announcements.append(partial(log_accepted, event))

        announcements += await self._orders.do(apply)
        # Time first: an end that was caused by its deadline may come in while a refused commit holds up the passes.
        for event in scheduler.due(self._world, time.monotonic()):
            apply(event)
        waiting, self._events = self._events, []
        for told in waiting:
            apply(told)
        plan = scheduler.plan(self._world, self.limits, time.monotonic())
        for name, why in plan.retire:
            apply(Retire(name, why, time.monotonic()))
        for job_id in plan.starts:
            apply(self._dispatch(self._world.jobs[job_id]))
        for solver in plan.servers:
            apply(self._wanted(solver))
        self._wake_at = plan.wake_at
        # Stopping needs no record: a job that fills the disk is stopped although nothing can be written.
        for effect in effects:
            if isinstance(effect, Stop):
                self._runner.stop(effect.token)
        if effects or announcements or time.monotonic() >= self._record_at:
            await self._record()
        elif self._world.is_changed():
            self._record_at = min(self._record_at, time.monotonic() + LAZY_SECONDS)
            self._wake_at = min(self._record_at, plan.wake_at or math.inf)
        for effect in effects:
            self._act(effect, announcements)
        if announcements:
            self._undurable.add(*announcements)
        for batch in self._world.take_over():
            self._batch_over(batch)
        self.bell.ring()

    def _apply_to_server(self, event: ServerEvent) -> None:
        """Servers live in memory alone, so nothing about them waits for a record."""
        try:
            effects = fleet.apply(self._world, self.limits.pools, event)
        except IllegalEvent:  # a defect, but no server is worth the jobs of all others
            log.exception("server.illegal_event", server=event.name)
            self._pool.stop(event.name)
            return
        log_server_event(event)
        for effect in effects:
            match effect:
                case StartServer():
                    self._pool.start(self._tasks, self._world.servers[effect.name])
                case StopServer():
                    self._pool.stop(effect.name)

    def _apply(self, event: Event) -> list[Effect]:
        effects = machine.apply(self._world, event)
        log_event(event)
        return effects

    async def _accept(self, intakes: Sequence[Intake], apply: Callable[[Event], None]) -> None:
        for intake in intakes:
            apply(await self._acceptance.event(intake))

    async def _submit(self, intake: Intake, apply: Callable[[Event], None]) -> None:
        acceptance = await self._acceptance.event(intake)
        if acceptance.intake.refusal is not None:
            raise Refused(*acceptance.intake.refusal)
        batch = acceptance.batch
        if batch is not None and batch.closed:
            raise Refused("batch_closed", f"the batch {batch.id} is closed; open another one")
        apply(acceptance)

    def _dispatch(self, job: Job) -> Dispatch:
        demand = self._world.demands[job.id]
        server = self._world.idle_servers(demand.solver)[-1].name if demand.warm else None
        settings = self.config.settings(job.spec)
        token = secrets.token_hex(16)
        return Dispatch(job.id, token, self._host, settings, now_us(), server, time.monotonic())

    def _wanted(self, solver: str) -> ServerWanted:
        pool = self._world.pool(solver)
        pool.last += 1
        licenses = self.limits.pools[solver].licenses
        return ServerWanted(f"{solver}-{pool.last}", solver, licenses, time.monotonic(), now_us())

    async def _record(self) -> None:
        """Commit what changed since the last time."""
        self._record_at = math.inf
        changes = self._world.take_changes()
        if changes:
            await self._in_store(partial(self._store.record, *changes))

    async def _in_store(self, work: Callable[[], T]) -> T:
        """Have the store do something; while it cannot (a full disk), everything waits here and nothing is lost."""
        while True:
            try:
                answer = await anyio.to_thread.run_sync(work, limiter=self._store_turn)
                self.trouble.pop("store", None)
                return answer
            except StoreUnavailable as error:
                self.trouble["store"] = f"nothing can be recorded: {error}"
                log.error("store.unavailable", error=str(error), retry_seconds=RETRY_SECONDS)
                if self._world.draining and not self._runner.busy:
                    raise  # what could not be recorded is redone by the next life
                for token in scheduler.overdue(self._world, time.monotonic()):
                    self._runner.stop(token)
                await anyio.sleep(RETRY_SECONDS)

    def _act(self, effect: Effect, announcements: list[Callable[[], None]]) -> None:
        job = self._world.jobs[effect.id] if not isinstance(effect, Discarded) else None
        match effect:
            case Start() if job:
                solver = self.config.solver[job.spec.solver]
                self._runner.start(self._tasks, job, solver)
            case Stop():
                pass  # done before the commit
            case Collect() if job:
                self._ended.add(job)
            case Publish() if job:
                announcements.append(partial(self._announce, job))
            case Discarded():
                log.warning("attempt.discarded", id=effect.id, token=effect.token, what=effect.event)
            case _:
                raise AssertionError(f"nothing carries out {effect}")

    async def _collect(self) -> None:
        """Have judged what attempts left, as many at a time as piled up: one set of fsyncs serves them all."""
        while True:
            batch = await self._ended.take(COLLECT_MAX)
            verdicts = await self._collector.collect(batch)
            for job, verdict in zip(batch, verdicts, strict=True):
                if verdict is not None:
                    self.post(Judged(job.id, job.current.token, verdict, time.monotonic(), now_us()))
            again = [job for job, verdict in zip(batch, verdicts, strict=True) if verdict is None]
            if again:
                self._tasks.start_soon(self._later, self._ended, again)

    # --- making durable, announcing ---------------------------------------------------------------------------------

    async def _hardener(self) -> None:
        """Make recorded things durable, then announce them; one commit for all that piled up."""
        while True:
            announcements = await self._undurable.take()
            await self._in_store(self._store.harden)
            for announce in announcements:
                announce()

    def _announce(self, job: Job) -> None:
        manifest = job.manifest
        if manifest is None:
            raise AssertionError(f"{job.id} is {job.state} without a manifest")
        level = log.info if job.state is State.SUCCEEDED else log.warning
        level(f"job.{job.state.value}", id=job.id, solver=job.spec.solver, cause=job.cause, message=job.message)
        self._publisher.add(Publication(job.id, TARGETS[job.state], manifest))

    def _now_published(self, job_id: str) -> None:
        self._published(self._world.jobs[job_id])
        self.post(Published(job_id))

    async def _later(self, pile: Pile[T], things: Sequence[T]) -> None:
        await anyio.sleep(RETRY_SECONDS)
        pile.add(*things)

    # --- the earlier life -------------------------------------------------------------------------------------------

    async def _recover(self, jobs: Sequence[Job], alive: Collection[str]) -> None:
        """Take up every job that an earlier life left: wait again, run again, judge, or publish."""
        batches: Mapping[str, Batch] = await self._in_store(self._store.live_batches)
        self._world.pauses = {pause.solver: pause for pause in await self._in_store(self._store.pauses)}
        most = self.limits.interruptions_max
        effects, interrupted = recovery.take_up(
            self._world, jobs, batches, self._acceptance.demand, alive, most, time.monotonic(), now_us()
        )
        for event in interrupted:
            effects += self._apply(event)
        await self._record()
        announcements: list[Callable[[], None]] = []
        for effect in effects:
            self._act(effect, announcements)
        self._undurable.add(*announcements)
        for name, count in recovery.homeless(jobs, self.config.solver).items():
            log.warning("solver.not_configured", solver=name, jobs=count, text="its jobs wait until it is configured")
            self.trouble[f"solver {name}"] = (
                f"{name} is not in the configuration any more, and {count} jobs wait for it: "
                f"add [solver.{name}] and start the daemon again, or cancel them"
            )
        if jobs:
            log.info("daemon.recovered", jobs=len(jobs), interrupted=len(interrupted))

    async def _outlive(self, survivors: Callable[[], Collection[str]]) -> None:
        """Free the room of earlier attempts, one by one, as their last processes end after all."""
        stuck = {job.current.token: job.id for job in self._world.jobs.values() if job.id in self._world.holding}
        while stuck:
            alive = await anyio.to_thread.run_sync(survivors)
            for token in stuck.keys() - set(alive):
                self.post(Gone(stuck.pop(token), token))
            await anyio.sleep(SURVIVORS_SECONDS)
