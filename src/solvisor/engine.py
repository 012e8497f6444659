"""The engine: the one task that owns the state of the world.

A pass takes all waiting events, applies them, plans, and commits everything in one transaction (*recorded*: it
survives the death of the daemon). Only then does it act: it starts processes, stops them, collects. A sync of the
database's log follows, beside that of the manifests of what ended, and makes it *durable* (it survives a power cut);
only what is durable is announced: acknowledged to the inbox, published. While a commit is in flight events pile up, so
load makes passes bigger and not slower.

Rules: nobody else changes state; everybody else posts events. Nothing here blocks the loop. What is legal stands in
``machine``, what is wise in ``scheduler``, what touches files in ``spool``, and how a process lives in the backend.

One file, if a long one: the order of a pass is the point, and each method here is a step of it or of the start.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

import anyio
import anyio.lowlevel
import structlog
from anyio.abc import TaskGroup

from . import failpoint, fleet, machine, overrides, recovery, scheduler
from .acceptance import STEPS_AT_ONCE, Acceptance
from .answers import shown_state
from .changeover import change_over, surplus
from .chronicle import Chronicle
from .clock import now_us
from .collecting import Collecting
from .collector import Collector
from .config import Config
from .disk import Disk
from .errors import IllegalEvent, StoreUnavailable
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
    Resumed,
    Retire,
    ServerEvent,
    ServerWanted,
    SetAside,
    Spawned,
    Start,
    StartServer,
    Stop,
    StopServer,
)
from .feed import Feed
from .hand import Batches, Failure, Hand, tell
from .interfaces import WarmKind
from .manifest import rfc3339
from .model import TARGETS, TERMINAL, Batch, Intake, Job, Limits, Override, State
from .names import printable
from .orders import Act, Orders, Stopping, Unsure
from .pile import Alarm, Bell, Pile
from .pool import Pool
from .publisher import Publisher
from .runner import Runner
from .solvers.warm import warm_solvers
from .spool import NotDurable, Publication, Results
from .store import Store
from .suspects import TRIES_MAX, Suspects
from .trouble import RETRY_SECONDS
from .world import Changes, World

T = TypeVar("T")

SURVIVORS_SECONDS = 5.0
"""The rest between two looks for processes of an earlier life that would not die."""

LAZY_SECONDS = 0.2
"""How long a change on which nothing depends (a process id, a publication) may wait for a commit to share."""

UNHURRIED_SECONDS = 0.02
"""How long an event waits for a pass to share after which nothing can be done that could not be done before: a process
id, and, while others run, a publication."""

SHARED_SECONDS = 0.002
"""How long a verdict waits, while others run, for a pass to share: their next end, as a rule."""

RECOVERED_AT_ONCE = 500
"""Jobs read at once when an earlier life is taken up: the loop goes on between them."""

log = structlog.get_logger()


class Engine:
    """Runs jobs until told to stop.

    ``post`` takes events from the runner, ``accept`` intakes from the inbox, ``carry_out`` what people order. ``drain``
    starts nothing new and lets running jobs finish for the configured time, then stops them; ``stop_now`` stops them at
    once. Either way nothing is lost: what did not finish is queued again in the next life.

    With ``parks`` it starts new jobs only; what waits from earlier lives goes on waiting, but the batch ``parks_not``.
    ``published`` and ``batch_over`` are called with each job whose result lies in its place, and with each batch whose
    last job does. ``files`` is the hand by which results are published. ``configured`` are the limits of the
    configuration, ``limits`` those in force. ``world`` is for reading, between awaits; ``feed`` says what happened to
    jobs lately; ``bell`` rings after each pass. ``trouble`` holds sentences about what goes wrong now.
    """

    def __init__(
        self,
        *,
        config: Config,
        limits: Limits,
        host: str,
        store: Store,
        results: Results,
        files: Hand,
        collector: Collector,
        make_pool: Callable[[Callable[[ServerEvent], None]], Pool],
        make_runner: Callable[[Callable[[Event], None], Pool], Runner],
        suspects: Suspects,
        trouble: dict[str, str] | None = None,
        parks: bool = False,
        parks_not: str | None = None,
        published: Callable[[Job], None] = lambda _job: None,
        batch_over: Callable[[Batch], None] = lambda _batch: None,
    ) -> None:
        self.config = config
        self.configured = self.limits = limits
        self.bell = Bell()
        self.feed = Feed(secrets.token_hex(4))
        self.trouble: dict[str, str] = {} if trouble is None else trouble
        self._published = published
        self._batch_over = batch_over
        self._host = host
        self._store = store
        self._results = results
        self._suspects = suspects
        self._chronicle = Chronicle()
        self._pool = make_pool(self.post)
        self._runner = make_runner(self.post, self._pool)
        self._recording = Hand("solvisor-store")
        self._hardening = Hand("solvisor-durable", stands_back=True)
        self._refused = 0  # of those who wait for the store, to whom it said that it cannot
        self._world = World(store.last_seq() + 1, parks=parks, parks_not=parks_not)
        self._acceptance = Acceptance(config, self._world, results, self.in_store)
        self._events: list[Event | ServerEvent] = []
        self._wake = Alarm()
        self._orders = Orders(self._wake.ring)
        self._collecting = Collecting(collector, self.post)
        self._undurable: Batches[Callable[[], None] | Publication] = Batches(self._hardening, self._harden)
        self._durable: Pile[Callable[[], None]] = Pile()
        self._failure = Failure()
        self._unannounced = 0
        self._publisher = Publisher(results, files, self.trouble, self._now_published)
        self._wake_at: float | None = None
        self._record_at = math.inf
        self._feeding: anyio.CancelScope | None = None
        self._finished = False
        self._tokens = _tokens()
        self._loop = asyncio.get_running_loop()
        self._tasks: TaskGroup

    # --- what others call -------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether this engine came to its end: nothing changes any more."""
        return self._orders.over

    def post(self, event: Event | ServerEvent) -> None:
        """Hand in an event; it is applied in the next pass."""
        self._events.append(event)
        match event:
            case Spawned():
                self._wake.ring_within(UNHURRIED_SECONDS)
            case Published() if self._world.used.jobs:
                self._wake.ring_within(UNHURRIED_SECONDS)
            case Judged() if self._world.used.jobs:
                self._wake.ring_within(SHARED_SECONDS)
            case _:
                self._wake.ring()

    @property
    def world(self) -> World:
        """The state of everything, to be read."""
        return self._world

    async def accept(self, intakes: Sequence[Intake]) -> None:
        """Make claimed drops jobs; returns when they are durable."""
        await self.carry_out(partial(self._acceptance.accept, intakes))

    async def submit(self, intake: Intake) -> None:
        """Make a submission a job; returns when it is durable. Raises ``Refused``, ``Stopping``: there is no job."""
        await self.carry_out(partial(self._acceptance.submit, intake))

    async def carry_out(self, act: Act) -> None:
        """Do this in the next pass; returns when what it changed is durable. Raises as ``Orders.carry_out``."""
        await self._orders.carry_out(act)

    async def settle(self) -> None:
        """Return when everything that happened before is durable. Raises as ``carry_out``."""
        await self.carry_out(_nothing)

    def fail(self, error: Exception) -> None:
        """End the daemon by ``error``, which says that what is on the disk may not be what it is thought to be."""

        async def act(_: Callable[[Event], None]) -> None:
            raise error

        self._orders.add(act)

    async def in_store(self, work: Callable[[Store], T]) -> T:
        """Have the store do what concerns no live job; waits while it cannot."""
        return await self._in_store(partial(work, self._store))

    def see_disk(self, disk: Disk) -> None:
        """How much room there is on the disk of the home."""
        before, self._world.disk = self._world.disk, disk
        if disk.is_low and not (before is not None and before.is_low):
            log.warning("disk.low", free_bytes=disk.free_bytes, text="room may soon be short on the disk of the home")
        was = (None, None) if before is None else (before.no_start, before.no_intake)
        if [why is None for why in was] == [disk.no_start is None, disk.no_intake is None]:
            return
        self._wake.ring()
        if disk.no_intake is not None:
            log.error("disk.full", text=f"no job starts, and nothing is taken in: {disk.no_intake}")
        elif disk.no_start is not None:
            log.warning("disk.short", text=f"no job starts: {disk.no_start}")
        else:
            log.info("disk.enough", free_bytes=disk.free_bytes, text="jobs start")

    def put_batch(self, batch: Batch) -> None:
        """Change a batch; only within ``carry_out``."""
        self._world.put_batch(batch)

    @property
    def reach(self) -> Limits:
        """What a job may ask for to be taken in: it could start by the configuration, or as things are."""
        return overrides.widest(self.configured, self.limits)

    def set_limit(self, override: Override) -> None:
        """Put a limit that somebody set in force; only within ``carry_out``."""
        self._world.set_override(override)
        self._enforce()

    def end_limit(self, name: str) -> None:
        """Go back to the limit that is configured; only within ``carry_out``."""
        self._world.end_override(name)
        self._enforce()

    def _enforce(self) -> None:
        """What runs goes on, and warm servers that there is no room for end, each once it has no job."""
        self.limits = overrides.in_force(self.configured, self._world.overrides.values())
        for name, why in surplus(self._world, self.limits).items():
            self._apply_to_server(Retire(name, why, time.monotonic()))

    async def batch(self, batch_id: str) -> Batch | None:
        """A batch as it is now; only within ``carry_out``."""
        return await self._acceptance.batch(batch_id)

    async def reconfigure(
        self,
        config: Config,
        limits: Limits,
        kinds: Mapping[str, WarmKind],
        script_environ: Mapping[str, Mapping[str, str]],
        *,
        changed: Collection[str],
        outdated: Collection[str],
        use: Callable[[], None],
    ) -> None:
        """Do everything from now on by another configuration; returns when that is so. Raises as ``carry_out``.

        ``changed`` are the solvers that are configured otherwise: what people and failures said of their servers is
        over. Servers of those that are ``outdated`` are replaced, and those go for which there is no room any more.
        ``use`` is called within the same pass, for whoever else is to know.
        """

        async def act(_: Callable[[Event], None]) -> None:
            live = [job for job in self._world.jobs.values() if job.state not in TERMINAL]
            demands = await anyio.to_thread.run_sync(self._acceptance.demands, config, live)
            self.config, self.configured, self._acceptance.config = config, limits, config
            self.limits = overrides.in_force(limits, self._world.overrides.values())
            self._pool.use(warm_solvers(config), kinds)
            self._runner.script_environ = script_environ
            use()
            for name, why in change_over(self._world, self.limits, demands, changed, outdated).items():
                self._apply_to_server(Retire(name, why, time.monotonic()))

        await self.carry_out(act)

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
        adopted: Sequence[Intake],
        alive: Collection[str],
        survivors: Callable[[], Collection[str]],
        intake: Callable[[], Awaitable[None]],
        ready: Callable[[], None],
    ) -> None:
        """Recover, then serve until drained.

        ``adopted`` are the claims of an earlier life without a row; ``alive`` the tokens of its attempts whose
        processes would not die, and ``survivors`` (blocking) tells which of them still live. ``intake`` feeds
        ``accept`` until it is cancelled; it starts once recovery is recorded and ``ready`` was called.
        """
        try:
            await self._live(adopted, alive, survivors, intake, ready)
        finally:
            self._orders.end()
            self.bell.ring()
            with anyio.CancelScope(shield=True):  # what is under way comes to its end; nothing is begun
                await self._hardening.do(lambda: None)
                await self._publisher.settle()
            self._recording.let_go()
            self._hardening.let_go()
            self._failure.check()

    async def _live(
        self,
        adopted: Sequence[Intake],
        alive: Collection[str],
        survivors: Callable[[], Collection[str]],
        intake: Callable[[], Awaitable[None]],
        ready: Callable[[], None],
    ) -> None:
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._collecting.run)
            self._tasks.start_soon(self._announcer)
            self._tasks.start_soon(self._failure.wait)
            self._tasks.start_soon(self._publisher.run)
            await self._recover(alive)
            failpoint.reach("start.recovered")
            if alive:
                stuck = {self._world.jobs[held].current.token: held for held in self._world.holding}
                self._tasks.start_soon(self._outlive, stuck, survivors)
            rebuilt = await self._in_store(self._store.is_rebuilt)
            # Where rows may be missing, a submission may have been acknowledged: if it is refused now, it is kept.
            self._orders.add(partial(self._acceptance.accept if rebuilt else self._acceptance.adopt, adopted))
            await self._pass()
            if rebuilt:
                await self._in_store(self._store.forget_rebuilt)
            failpoint.reach("start.adopted")
            self._tasks.start_soon(self._feed, intake)
            ready()
            failpoint.reach("start.ready")
            try:
                while not self._world.draining or self._feeding or self._busy():
                    await self._wait()
                    await self._pass()
                await self._record()
                await self._hardening.do(self._store.harden)
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
        self._wake.ring()

    def _start_draining(self) -> None:
        self._world.draining = True
        if self._feeding is not None:
            self._feeding.cancel()
        self._wake.ring()

    def _busy(self) -> bool:
        if self._events or self._orders or self._unannounced or self._pool.busy:
            return True
        unkillable = sum(self._world.jobs[held].state in TERMINAL for held in self._world.holding)
        return len(self._world.jobs) > self._world.states[State.QUEUED] + unkillable

    async def _stop_after(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        log.warning("daemon.stop_timeout", seconds=seconds, text="stopping jobs that are still running")
        self._runner.stop_all()
        self._pool.stop_all()

    async def _wait(self) -> None:
        """Until an event comes in or an instant comes due."""
        rest = None if self._wake_at is None else max(0.0, self._wake_at - time.monotonic())
        await self._wake.wait(rest)

    # --- one pass ---------------------------------------------------------------------------------------------------

    async def _pass(self) -> None:
        """Drain, apply, plan, record, act; then have it made durable and announced."""
        effects: list[Effect] = []
        announcements: list[Callable[[], None] | Publication] = []

        def apply(event: Event | ServerEvent) -> None:
            if isinstance(event, ServerEvent):
                self._apply_to_server(event)
                return
            effects.extend(self._apply(event))
            if isinstance(event, Accept) and event.intake.refusal is None:
                announcements.append(partial(self._chronicle.accepted, event))

        announcements += await self._orders.do(apply)
        # Time first: an end that was caused by its deadline may come in while a refused commit holds up the passes.
        for event in scheduler.due(self._world, time.monotonic()):
            apply(event)
        waiting, self._events = self._events, []
        for told in waiting:
            if isinstance(told, ServerEvent):
                self._apply_to_server(told)
            else:
                effects += await self._apply_slowly(told)
        plan = scheduler.plan(self._world, self.limits, time.monotonic())
        for name, why in plan.retire:
            apply(Retire(name, why, time.monotonic()))
        for job_id in plan.starts:
            if self._world.jobs[job_id].state is State.QUEUED:  # a defect of one before it may have stopped its batch
                apply(self._dispatch_or_not(self._world.jobs[job_id]))
        for solver in plan.servers:
            apply(self._wanted(solver))
        self._wake_at = plan.wake_at
        for number, effect in enumerate(effects, 1):
            if isinstance(effect, Stop):  # needs no record: a job that fills the disk is stopped although none can be
                self._runner.stop(effect.token)
            elif isinstance(effect, Publish):
                announcements.append(_publication(self._world.jobs[effect.id]))
            if number % STEPS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        if effects or announcements or time.monotonic() >= self._record_at:
            await self._record(announcements)
        elif self._world.is_changed():
            self._record_at = min(self._record_at, time.monotonic() + LAZY_SECONDS)
            self._wake_at = min(self._record_at, plan.wake_at or math.inf)
        for number, effect in enumerate(effects, 1):
            self._act(effect)
            if number % STEPS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        for batch in self._world.take_over():
            self._batch_over(batch)
        await self._tell()
        self.bell.ring()

    def _apply_to_server(self, event: ServerEvent) -> None:
        """Servers live in memory alone, so nothing about them waits for a record."""
        try:
            effects = fleet.apply(self._world, self.limits.pools, event)
        except IllegalEvent:  # a defect, but no server is worth the jobs of all others
            log.exception("server.illegal_event", server=event.name)
            self._pool.stop(event.name)
            return
        self._chronicle.tell_server(event)
        for effect in effects:
            match effect:
                case StartServer():
                    self._pool.start(self._tasks, self._world.servers[effect.name])
                case StopServer():
                    self._pool.stop(effect.name)

    def _apply(self, event: Event) -> list[Effect]:
        effects = machine.apply(self._world, event)
        self._chronicle.tell(event)
        return effects

    async def _apply_slowly(self, event: Event) -> list[Effect]:
        """As ``_apply``, but one that ends many jobs lets others look at the world meanwhile."""
        effects: list[Effect] = []
        for number, some in enumerate(machine.steps(self._world, event), 1):
            effects += some
            if number % STEPS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()
        self._chronicle.tell(event)
        return effects

    def _dispatch_or_not(self, job: Job) -> Event:
        try:
            return self._dispatch(job)
        except Exception as error:  # a defect that one job meets must not end every daemon that would start it
            log.exception("job.not_dispatched", id=job.id)
            text = (
                f"it could not be started, by a defect of Solvisor: {type(error).__name__}: {error}; please report it"
            )
            return SetAside(job.id, "defect", printable(text), now_us())

    def _dispatch(self, job: Job) -> Dispatch:
        demand = self._world.demands[job.id]
        server = self._world.idle_servers(demand.solver)[-1].name if demand.warm else None
        settings = self.config.settings(job.spec)
        token = next(self._tokens)
        return Dispatch(job.id, token, self._host, settings, now_us(), server, time.monotonic())

    def _wanted(self, solver: str) -> ServerWanted:
        pool = self._world.pool(solver)
        pool.last += 1
        licenses = self.limits.pools[solver].licenses
        return ServerWanted(f"{solver}-{pool.last}", solver, licenses, time.monotonic(), now_us())

    async def _record(self, announcements: Sequence[Callable[[], None] | Publication] = ()) -> None:
        """Commit what changed since the last time; once that is durable, make these calls and publish these results."""
        self._record_at = math.inf
        changes = self._world.take_changes()
        self._unannounced += sum(not isinstance(each, Publication) for each in announcements)
        if changes or announcements:
            await self._in_store(partial(self._commit, changes, announcements))

    def _commit(self, changes: Changes, announcements: Sequence[Callable[[], None] | Publication]) -> None:
        """On the store's thread, from which what is to be durable goes on without the loop."""
        if changes:
            self._store.record(*changes)
        for each in announcements:
            if isinstance(each, Publication):
                failpoint.reach("end.recorded")
        if announcements:
            self._undurable.add(*announcements)

    async def _in_store(self, work: Callable[[], T]) -> T:
        """Have the store do something; while it cannot (a full disk), everything waits here and nothing is lost."""
        refused = False
        try:
            while True:
                try:
                    return await self._recording.do(work)
                except StoreUnavailable as error:
                    self._refused += not refused
                    refused = True
                    self.trouble["store"] = f"nothing can be recorded: {error}"
                    log.error("store.unavailable", error=str(error), retry_seconds=RETRY_SECONDS)
                    if self._world.draining and not self._runner.busy:
                        raise  # what could not be recorded is redone by the next life
                    for token in scheduler.overdue(self._world, time.monotonic()):
                        self._runner.stop(token)
                    await anyio.sleep(RETRY_SECONDS)
        finally:
            self._refused -= refused
            if refused and not self._refused:  # not sooner: what needs no room is done on a full disk, too
                self.trouble.pop("store", None)

    async def _tell(self) -> None:
        """Put into the feed what people see of the changes of a pass, which are recorded where they have to be."""
        moved = self._world.take_moved()
        at = rfc3339(now_us()) if moved else ""
        for number, move in enumerate(moved, 1):
            state = shown_state(move.job, live=move.live)
            if not move.live or state is not move.before:
                self.feed.add_job(move.job, state, at)
            if number % STEPS_AT_ONCE == 0:
                await anyio.lowlevel.checkpoint()

    def _act(self, effect: Effect) -> None:
        job = self._world.jobs[effect.id] if not isinstance(effect, Discarded) else None
        match effect:
            case Start() if job:
                failpoint.reach("attempt.recorded")
                solver = self.config.solver[job.spec.solver]
                self._runner.start(self._tasks, job, solver)
            case Stop() | Publish():
                pass  # seen to when it was recorded
            case Collect() if job:
                failpoint.reach("exit.recorded")
                self._collecting.add(job)
            case Discarded():
                log.warning("attempt.discarded", id=effect.id, token=effect.token, what=effect.event)
            case _:
                raise AssertionError(f"nothing carries out {effect}")

    async def _collect_on(self, portions: Sequence[Sequence[str]]) -> None:
        """Collect what an earlier life began to; whoever may have ended it alone, while nothing else is at stake."""
        for portion in portions:
            await anyio.to_thread.run_sync(self._suspects.begin, portion)
            self._collecting.doubt(portion)
            try:
                await self._collecting.judge([self._world.jobs[job_id] for job_id in portion])
            except NotDurable:  # the disk ends the daemon, none of them
                await anyio.to_thread.run_sync(self._suspects.forgive, portion)
                raise
            with suppress(Stopping, Unsure):  # the engine ends by a defect, which is told by itself
                await self.settle()  # recorded: it is not done again
            await anyio.to_thread.run_sync(self._suspects.clear, portion)
        self._world.wary = False
        self._wake.ring()

    # --- making durable, announcing ---------------------------------------------------------------------------------

    def _harden(self, batch: Sequence[Callable[[], None] | Publication]) -> None:
        """On its thread: one sync for all that piled up. Results go on from here, without the loop."""
        try:
            results = [each for each in batch if isinstance(each, Publication)]
            with self._results.writing_ahead(results):
                self._store.harden()
            failpoint.reach("announce.durable")
            if results:
                self._publisher.add(*results)
            if calls := [each for each in batch if not isinstance(each, Publication)]:
                tell(self._loop, self._durable.add, *calls)
            if self._store.to_fold:
                self._store.fold()
        except BaseException as error:  # noqa: BLE001  it ends the engine
            self._failure.tell(error)

    async def _announcer(self) -> None:
        while True:
            for number, announce in enumerate(await self._durable.take(), 1):
                self._unannounced -= 1
                announce()
                if number % STEPS_AT_ONCE == 0:
                    await anyio.lowlevel.checkpoint()
            if self._world.draining:
                self._wake.ring()  # it may be all that the end waited for

    def _now_published(self, job_id: str) -> None:
        failpoint.reach("publish.done")
        job = self._world.jobs[job_id]
        self._chronicle.ended(job)
        self._published(job)
        self.post(Published(job_id))

    # --- the earlier life -------------------------------------------------------------------------------------------

    async def _recover(self, alive: Collection[str]) -> None:
        """Take up every job that an earlier life left: wait again, run again, judge, or publish."""
        live = list(await self._in_store(self._store.live))
        batches: Mapping[str, Batch] = await self._in_store(self._store.live_batches)
        self._world.pauses = {pause.solver: pause for pause in await self._in_store(self._store.pauses)}
        self._world.overrides = {each.name: each for each in await self._in_store(self._store.overrides)}
        self._enforce()
        most = self.limits.interruptions_max
        effects: list[Effect] = []
        interrupted: list[Event] = []
        for start in range(0, len(live), RECOVERED_AT_ONCE):
            page = partial(self._store.jobs, live[start : start + RECOVERED_AT_ONCE])
            jobs, unreadable = await self._in_store(page)
            now = time.monotonic(), now_us()
            demand_of = self._acceptance.demand
            then, happened = recovery.take_up(self._world, jobs, unreadable, batches, demand_of, alive, most, *now)
            effects += then
            interrupted += happened
            self._world.take_moved()  # nobody reads yet, so to nobody that is news
        for event in interrupted:
            if self._world.jobs[event.id].state not in TERMINAL:  # the end of one before it may have stopped its batch
                effects += self._apply(event)
        collecting = [job.id for job in self._world.jobs.values() if job.state is State.COLLECTING]
        portions, out = await anyio.to_thread.run_sync(self._suspects.sorted_out, collecting)
        for portion in (*portions, out):
            for job_id in portion:
                token = self._world.jobs[job_id].current.token
                ended = TRIES_MAX if portion is out else 0
                then = self._apply(Resumed(job_id, token, ended, now_us()))
                effects += [effect for effect in then if not isinstance(effect, Collect)]
        failpoint.reach("start.taken_up")
        await self._record()
        failpoint.reach("start.taken_up_recorded")
        if out:
            await anyio.to_thread.run_sync(self._suspects.clear, out)
        for effect in effects:
            self._act(effect)
        await self._record([_publication(self._world.jobs[each.id]) for each in effects if isinstance(each, Publish)])
        self._world.wary = any(map(self._suspects.suspects, portions))
        self._tasks.start_soon(self._collect_on, portions)
        for name, count in recovery.homeless(self._world, self.config.solver).items():
            log.warning("solver.not_configured", solver=name, jobs=count, text="its jobs wait until it is configured")
        if live:
            resumed = sum(map(len, portions))
            log.info("daemon.recovered", jobs=len(live), interrupted=len(interrupted), resumed=resumed)

    async def _outlive(self, stuck: dict[str, str], survivors: Callable[[], Collection[str]]) -> None:
        """Free the room of earlier attempts (tokens, with their jobs) one by one, as their last processes end."""
        while stuck:
            alive = await anyio.to_thread.run_sync(survivors)
            for token in stuck.keys() - set(alive):
                self.post(Gone(stuck.pop(token), token))
            await anyio.sleep(SURVIVORS_SECONDS)


async def _nothing(_: Callable[[Event], None]) -> None:
    """An order that changes nothing."""


def _tokens() -> Iterator[str]:
    """Tokens of attempts; the kernel is asked for many at a time."""
    while True:
        drawn = secrets.token_hex(16 * 32)
        yield from (drawn[at : at + 32] for at in range(0, len(drawn), 32))


def _publication(job: Job) -> Publication:
    if job.manifest is None:
        raise AssertionError(f"{job.id} is {job.state} without a manifest")
    return Publication(job.id, TARGETS[job.state], job.manifest)
