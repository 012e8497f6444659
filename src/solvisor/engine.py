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
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Generic, Literal, TypeVar

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec.structs import replace

from . import events, machine, scheduler
from .clock import now_us
from .collector import COLLECTING_THREADS, Collector
from .config import Config
from .events import (
    Accept,
    Collect,
    Discarded,
    Dispatch,
    Effect,
    Event,
    Exited,
    Gone,
    Judged,
    Lost,
    Publish,
    Published,
    Resumed,
    Start,
    Stop,
)
from .model import TERMINAL, Demand, ExitFacts, Intake, Job, JobSpec, Limits, State
from .runner import Runner
from .spool import Publication, Results
from .store import Store, StoreUnavailable
from .trouble import RETRY_SECONDS
from .world import World

T = TypeVar("T")

SURVIVORS_SECONDS = 5.0
"""The rest between two looks for processes of an earlier life that would not die."""

LAZY_SECONDS = 0.2
"""How long a change on which nothing depends (a process id, a publication) may wait for a commit to share."""

COLLECT_MAX = 64
"""Attempts collected under one set of fsyncs."""

TARGETS: dict[State, Literal["done", "rejected"]] = {State.SUCCEEDED: "done", State.REJECTED: "rejected"}
"""Where a finished job's folder goes; all others go to ``failed``."""

log = structlog.get_logger()


class Pile(Generic[T]):
    """Things that pile up while whoever takes them is busy; they are taken many at a time."""

    def __init__(self) -> None:
        self._things: list[T] = []
        self._added = anyio.Event()

    def __len__(self) -> int:
        return len(self._things)

    def add(self, *things: T) -> None:
        """Put things on the pile."""
        self._things += things
        added, self._added = self._added, anyio.Event()
        added.set()

    async def take(self, most: int | None = None) -> list[T]:
        """Wait until something is there, and take it all, or the first ``most``."""
        while not self._things:
            await self._added.wait()
        taken, self._things = self._things[:most], self._things[most:] if most is not None else []
        return taken


class Engine:
    """Runs jobs until told to stop.

    ``post`` takes events from the runner, ``accept`` intakes from the inbox. ``drain`` starts nothing new and lets
    running jobs finish for the configured time, then stops them; ``stop_now`` stops them at once. Either way nothing is
    lost: what did not finish is queued again in the next life.
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
        make_runner: Callable[[Callable[[Event], None]], Runner],
    ) -> None:
        self._config = config
        self._limits = limits
        self._host = host
        self._store = store
        self._results = results
        self._collector = collector
        self._runner = make_runner(self.post)
        self._store_turn = anyio.CapacityLimiter(1)
        self._world = World(store.last_seq() + 1)
        self._events: list[Event] = []
        self._intakes: list[tuple[Sequence[Intake], anyio.Event]] = []
        self._wake = anyio.Event()
        self._ended: Pile[Job] = Pile()
        self._undurable: Pile[Callable[[], None]] = Pile()
        self._unpublished: Pile[Publication] = Pile()
        self._wake_at: float | None = None
        self._record_at = math.inf
        self._feeding: anyio.CancelScope | None = None
        self._tasks: TaskGroup

    # --- what others call -------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Hand in an event; it is applied in the next pass."""
        self._events.append(event)
        self._wake.set()

    async def accept(self, intakes: Sequence[Intake]) -> None:
        """Make claimed drops jobs; returns when they are durable."""
        durable = anyio.Event()
        self._intakes.append((intakes, durable))
        self._wake.set()
        await durable.wait()

    def drain(self) -> None:
        """Start nothing new; give running jobs ``stop_timeout`` to finish."""
        if not self._world.draining:
            self._start_draining()
            self._tasks.start_soon(self._stop_after, self._config.daemon.stop_timeout)

    def stop_now(self) -> None:
        """Start nothing new and stop what runs; what is interrupted is queued again in the next life."""
        self._start_draining()
        self._runner.stop_all(now=True)

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
        async with anyio.create_task_group() as self._tasks:
            for _ in range(COLLECTING_THREADS):
                self._tasks.start_soon(self._collect)
            self._tasks.start_soon(self._hardener)
            self._tasks.start_soon(self._publisher)
            await self._recover(jobs, alive)
            if alive:
                self._tasks.start_soon(self._outlive, survivors)
            self._intakes.append((adopted, anyio.Event()))
            await self._pass()
            self._tasks.start_soon(self._feed, intake)
            ready()
            while not self._world.draining or self._feeding or self._busy():
                await self._wait()
                await self._pass()
            await self._record()
            await self._in_store(self._store.harden)
            self._tasks.cancel_scope.cancel()

    async def _feed(self, intake: Callable[[], Awaitable[None]]) -> None:
        """Take drops in until draining. What the intake has claimed by then it still hands over."""
        with anyio.CancelScope() as scope:
            self._feeding = scope
            if self._world.draining:
                scope.cancel()
            await intake()
        self._feeding = None
        self._wake.set()

    def _start_draining(self) -> None:
        self._world.draining = True
        if self._feeding is not None:
            self._feeding.cancel()
        self._wake.set()

    def _busy(self) -> bool:
        if self._events or self._intakes or self._undurable:
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
        intakes, self._intakes = self._intakes, []
        for batch, durable in intakes:
            for intake in batch:
                effects += self._apply(await self._acceptance(intake))
            announcements.append(partial(self._accepted, batch, durable))
        # Time first: an end that was caused by its deadline may come in while a refused commit holds up the passes.
        for event in scheduler.due(self._world, time.monotonic()):
            effects += self._apply(event)
        waiting, self._events = self._events, []
        for event in waiting:
            effects += self._apply(event)
        plan = scheduler.plan(self._world, self._limits)
        for job_id in plan.starts:
            effects += self._apply(self._dispatch(self._world.jobs[job_id]))
        self._wake_at = plan.wake_at
        # Stopping needs no record: a job that fills the disk is stopped although nothing can be written.
        for effect in effects:
            if isinstance(effect, Stop):
                self._runner.stop(effect.token)
        if effects or announcements or time.monotonic() >= self._record_at:
            await self._record()
        elif self._world.changed or self._world.published:
            self._record_at = min(self._record_at, time.monotonic() + LAZY_SECONDS)
            self._wake_at = min(self._record_at, plan.wake_at or math.inf)
        for effect in effects:
            self._act(effect, announcements)
        if announcements:
            self._undurable.add(*announcements)

    def _apply(self, event: Event) -> list[Effect]:
        effects = machine.apply(self._world, event)
        self._log_event(event)
        return effects

    async def _acceptance(self, intake: Intake) -> Accept:
        """The event that makes ``intake`` a job, with what other jobs have to do with it."""
        spec, refusal = intake.spec, intake.refusal
        if spec.key is not None and refusal is None:
            other = await self._job_of_key(spec.key)
            if other is not None:
                refusal = ("key", f"the key {spec.key!r} belongs to {other} already; drop it again with another key")
        unmet: set[str] = set()
        failed_dependency = None
        if refusal is None:
            states = await self._states(spec.after)
            for other in spec.after:
                state = states.get(other)
                if state is None:
                    refusal = ("after", f"after names {other!r}, and no job has that id; correct it and drop it again")
                elif state not in TERMINAL:
                    unmet.add(other)
                elif state is not State.SUCCEEDED:
                    failed_dependency = other
        if refusal is not None:
            spec = replace(spec, key=None)
        intake = replace(intake, spec=spec, refusal=refusal)
        demand = self._demand(spec)
        return Accept(intake.id, intake, demand, frozenset(unmet), failed_dependency, now_us())

    async def _job_of_key(self, key: str) -> str | None:
        for job in self._world.changed:
            if self._world.jobs[job].spec.key == key:
                return job
        return await self._in_store(partial(self._store.id_of_key, key))

    async def _states(self, ids: Sequence[str]) -> dict[str, State]:
        if not ids:
            return {}
        recorded = await self._in_store(partial(self._store.states, ids))
        return recorded | {i: self._world.jobs[i].state for i in ids if i in self._world.jobs}

    def _demand(self, spec: JobSpec) -> Demand:
        """What ``spec`` occupies; of a solver that is not configured (any more), a demand that admission refuses."""
        return self._config.demand(spec) or Demand(spec.solver, 1, 0)

    def _dispatch(self, job: Job) -> Dispatch:
        return Dispatch(job.id, secrets.token_hex(16), self._host, self._config.settings(job.spec), now_us())

    async def _record(self) -> None:
        """Commit what changed since the last time."""
        self._record_at = math.inf
        changed, published = self._world.take_changed()
        if changed or published:
            await self._in_store(partial(self._store.record, changed, published))

    async def _in_store(self, work: Callable[[], T]) -> T:
        """Have the store do something; while it cannot (a full disk), everything waits here and nothing is lost."""
        while True:
            try:
                return await anyio.to_thread.run_sync(work, limiter=self._store_turn)
            except StoreUnavailable as error:
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
                solver = self._config.solver[job.spec.solver]
                self._runner.start(self._tasks, job, solver, self._limits.interruptions_max)
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

    def _accepted(self, batch: Sequence[Intake], durable: anyio.Event) -> None:
        for intake in batch:
            if intake.refusal is None:
                log.info("job.accepted", id=intake.id, solver=intake.spec.solver, source=intake.spec.source.path)
        durable.set()

    def _announce(self, job: Job) -> None:
        manifest = job.manifest
        if manifest is None:
            raise AssertionError(f"{job.id} is {job.state} without a manifest")
        level = log.info if job.state is State.SUCCEEDED else log.warning
        level(f"job.{job.state.value}", id=job.id, solver=job.spec.solver, cause=job.cause, message=job.message)
        self._unpublished.add(Publication(job.id, TARGETS.get(job.state, "failed"), manifest))

    async def _publisher(self) -> None:
        """Write manifests and move folders, as many at a time as piled up; what is refused is tried again for ever."""
        while True:
            batch = await self._unpublished.take()
            done, refused = await anyio.to_thread.run_sync(self._results.publish, batch)
            for job_id in done:
                self.post(Published(job_id))
            if refused:
                for job_id, error in refused.items():
                    log.error("job.not_published", id=job_id, error=str(error), retry_seconds=RETRY_SECONDS)
                self._tasks.start_soon(self._later, self._unpublished, [p for p in batch if p.id in refused])

    async def _later(self, pile: Pile[T], things: Sequence[T]) -> None:
        await anyio.sleep(RETRY_SECONDS)
        pile.add(*things)

    # --- the earlier life -------------------------------------------------------------------------------------------

    async def _recover(self, jobs: Sequence[Job], alive: Collection[str]) -> None:
        """Take up every job that an earlier life left: wait again, run again, judge, or publish."""
        open_ids = {job.id for job in jobs if job.state not in TERMINAL}
        announcements: list[Callable[[], None]] = []
        effects: list[Effect] = []
        interrupted: list[Event] = []
        for job in jobs:
            demand = self._demand(job.spec)
            unmet = frozenset(job.spec.after) & open_ids if job.state is State.QUEUED else frozenset()
            lives = job.attempt is not None and job.attempt.token in alive
            effects += machine.restore(self._world, job, demand, unmet, time.monotonic(), alive=lives)
            if job.state is State.RUNNING and lives:
                facts = ExitFacts(None, None, now_us(), unkillable=True)
                interrupted.append(Exited(job.id, job.current.token, facts, self._limits.interruptions_max, now_us()))
            elif job.state is State.RUNNING:
                interrupted.append(Lost(job.id, job.current.token, self._limits.interruptions_max, now_us()))
            elif job.state is State.COLLECTING:
                interrupted.append(Resumed(job.id, job.current.token, self._limits.interruptions_max, now_us()))
        for event in interrupted:
            effects += self._apply(event)
        await self._record()
        for effect in effects:
            self._act(effect, announcements)
        self._undurable.add(*announcements)
        for name in sorted({job.spec.solver for job in jobs if job.state not in TERMINAL} - set(self._config.solver)):
            count = sum(job.spec.solver == name and job.state not in TERMINAL for job in jobs)
            log.warning("solver.not_configured", solver=name, jobs=count, text="its jobs wait until it is configured")
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

    def _log_event(self, event: Event) -> None:
        match event:
            case events.Spawned():
                log.info("attempt.started", id=event.id, pid=event.pid)
            case events.SpawnFailed():
                log.warning("attempt.not_started", id=event.id, code=event.reason, message=event.message)
            case events.Exited():
                facts = event.facts
                log.info("attempt.exited", id=event.id, exit_code=facts.exit_code, signal=facts.signal)
            case events.DeadlinePassed():
                log.warning("attempt.timeout", id=event.id)
            case events.Lost():
                log.warning("attempt.interrupted", id=event.id)
            case events.BackoffOver():
                log.info("job.retry", id=event.id)
            case _:
                pass
