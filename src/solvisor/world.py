"""The state of the world: every live job, and the indexes that keep a pass cheap.

Rules: only ``machine`` changes jobs and indexes (``scheduler.due`` takes what is due out of the heaps; ``draining``,
``disk`` and ``wary`` are the engine's to set), and only the engine task holds it. ``jobs`` is the truth; everything
else is an index that follows from it, and ``sanity_check`` compares the two. A job leaves when its manifest is
published. Instants are monotonic seconds. It must not know the store, the configuration, or any clock.

One file, if a long one: ``sanity_check`` states, index by index, what the rest of it keeps true.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from operator import attrgetter
from typing import NamedTuple

import msgspec
from msgspec import Struct

from .disk import Disk
from .model import TERMINAL, Batch, Cause, Demand, Job, Override, Pause, Server, ServerState, State
from .refusals import Refusals

Place = tuple[int, int, str]
"""Where a job stands in the order: (-priority, seq, id). The smallest goes first."""


class Queue:
    """Jobs of one demand, in order, as ``places`` must be. Whatever is looked for is found by binary search."""

    __slots__ = ("_places",)

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._places = list(places)

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def __getitem__(self, index: int) -> Place:
        return self._places[index]

    def __contains__(self, place: Place) -> bool:
        rank = bisect_left(self._places, place)
        return rank < len(self._places) and self._places[rank] == place

    def add(self, place: Place) -> None:
        """Insert ``place`` in order."""
        insort(self._places, place)

    def discard(self, place: Place) -> bool:
        """Take ``place`` out; returns whether it was there."""
        rank = bisect_left(self._places, place)
        if rank == len(self._places) or self._places[rank] != place:
            return False
        del self._places[rank]
        return True

    def rank(self, place: Place) -> int:
        """How many stand before ``place``."""
        return bisect_left(self._places, place)


class Tally(Counter[str]):
    """Counts that are copied by ``Tally(others)`` at once: each plan copies several, and a ``Counter`` walks them."""

    __init__ = dict.__init__


class Used(Struct):
    """What running jobs and warm servers occupy at this moment.

    ``servers`` counts, by solver, those that are there to take jobs or soon will be, ``present`` also those that end;
    ``idle`` those that could take one now, ``coming`` those that start. ``resting`` are licenses that were refused too
    often to be tried now. ``caps`` says how many servers a solver may have where that is not as configured.
    """

    jobs: int = 0
    cpus: int = 0
    memory_bytes: int = 0
    licenses: Tally = msgspec.field(default_factory=Tally)
    solvers: Tally = msgspec.field(default_factory=Tally)
    batches: Tally = msgspec.field(default_factory=Tally)
    servers: Tally = msgspec.field(default_factory=Tally)
    present: Tally = msgspec.field(default_factory=Tally)
    idle: Tally = msgspec.field(default_factory=Tally)
    coming: Tally = msgspec.field(default_factory=Tally)
    resting: set[str] = set()
    caps: dict[str, int] = {}

    def add(self, demand: Demand, sign: int = 1) -> None:
        """Occupy (``sign`` 1) or free (-1) what ``demand`` asks for."""
        self.jobs += sign
        self.cpus += sign * demand.cpus
        self.memory_bytes += sign * demand.memory_bytes
        self.solvers[demand.solver] += sign
        for name, count in demand.licenses:
            self.licenses[name] += sign * count

    def add_server(self, server: Server, sign: int = 1) -> None:
        """Count a warm server in (``sign`` 1) or out (-1)."""
        for name, count in server.licenses:
            self.licenses[name] += sign * count
        self.present[server.solver] += sign
        if server.state in _IN_SERVICE:
            self.servers[server.solver] += sign
        if server.state is ServerState.READY:
            self.idle[server.solver] += sign
        if server.state is ServerState.STARTING:
            self.coming[server.solver] += sign

    def add_to_batch(self, demand: Demand, sign: int = 1) -> None:
        """Occupy (``sign`` 1) or free (-1) a place of its batch, if that has a limit."""
        if demand.batch is not None:
            self.batches[demand.batch] += sign
            if not self.batches[demand.batch]:
                del self.batches[demand.batch]

    def copy(self) -> Used:
        """An independent copy, for planning."""
        return Used(
            self.jobs,
            self.cpus,
            self.memory_bytes,
            Tally(self.licenses),
            Tally(self.solvers),
            Tally(self.batches),
            Tally(self.servers),
            Tally(self.present),
            Tally(self.idle),
            Tally(self.coming),
            set(self.resting),
            dict(self.caps),
        )


_IN_SERVICE = frozenset({ServerState.STARTING, ServerState.READY, ServerState.BUSY})


@dataclass(slots=True)
class PoolFacts:
    """What is known of one solver's warm servers together. Instants are monotonic seconds.

    ``last`` is the last instance number given. ``ends`` are failures with no job served since, ``killers`` the jobs
    those servers had; ``misses`` counts also what was nobody's fault. The next start rests until ``rests_until``, and
    ``failed`` means that only a person lets it go on. ``error`` is the last thing that went wrong. ``scale``: a person
    wants exactly so many.
    """

    last: int = 0
    killers: set[str] = field(default_factory=set)
    ends: list[float] = field(default_factory=list)
    misses: int = 0
    rests_until: float | None = None
    failed: bool = False
    error: str | None = None
    scale: int | None = None


@dataclass(slots=True)
class Roll:
    """The live jobs of a batch, how many of them are in which state, and how many have left since it came here."""

    ids: set[str] = field(default_factory=set)
    states: Counter[State] = field(default_factory=Counter)
    left: int = 0


class Move(Struct, frozen=True, gc=False):
    """A job as it came into another state from ``before``; not ``live``: it left the world, its result is published."""

    job: Job
    before: State | None
    live: bool = True


class Changes(NamedTuple):
    """What the next commit records, in the order of its happening. ``pauses`` are all there are, if any changed; so are
    ``overrides``.
    """

    jobs: list[Job]
    published: list[str]
    batches: list[Batch]
    pauses: list[Pause] | None
    overrides: list[Override] | None = None

    def __bool__(self) -> bool:
        return bool(self.jobs or self.published or self.batches) or (self.pauses, self.overrides) != (None, None)


class World:
    """All live jobs with their indexes.

    ``states`` counts the jobs by state, ``queued`` those that are queued by their solver.
    ``ready`` holds, by demand, the jobs that only wait for room; ``backoff`` is a heap of ``(due, seq, id)`` and
    ``deadlines`` one of ``(due, token, id)``, both with stale entries that are skipped when they surface; ``unmet``
    names the jobs a queued job still waits for and ``dependents`` is its inverse; ``demands`` is what each job asks for
    by the configuration in force, ``holding`` what those that run were given; ``changed`` and ``published`` collect the
    ids that the next commit must record, in order.
    ``moved`` collects the jobs that came into another state, or left, for whoever tells it.
    ``parked`` are queued jobs of earlier lives where this one ``parks`` them, but those of the batch ``parks_not``: it
    starts new ones only.
    ``keys`` are those of jobs that the next commit records, and who has them.
    ``wary``: the engine looks alone at what may have ended earlier daemons, and starts nothing meanwhile.
    ``refusals`` are of licenses that somebody did not get although we had given him a seat.
    ``servers`` are all warm servers and ``pools`` what is known of those of one solver together.
    ``batches`` are those with live jobs or still open, ``members`` the rolls of their live jobs. ``pauses`` are in
    force, by solver (``None``: all), ``overrides`` the limits that people set, by name. ``disk`` is the
    file system of the home, once it was looked at. ``batch_changes`` and ``reordered`` count how often a batch came,
    changed or went, and how often a job was moved in the order.
    """

    def __init__(self, next_seq: int = 1, *, parks: bool = False, parks_not: str | None = None) -> None:
        self.jobs: dict[str, Job] = {}
        self.states: Counter[State] = Counter()
        self.queued: Counter[str] = Counter()
        self.demands: dict[str, Demand] = {}
        self.ready: dict[Demand, Queue] = {}
        self.backoff: list[tuple[float, int, str]] = []
        self.deadlines: list[tuple[float, str, str]] = []
        self.unmet: dict[str, set[str]] = {}
        self.dependents: dict[str, set[str]] = {}
        self.holding: dict[str, Demand] = {}
        self.used = Used()
        self.changed: dict[str, None] = {}
        self.published: list[str] = []
        self.moved: list[Move] = []
        self.keys: dict[str, str] = {}
        self.next_seq = next_seq
        self.draining = False
        self.disk: Disk | None = None
        self.wary = False
        self.parked: set[str] = set()
        self._parked_below = next_seq if parks else 0
        self._parks_not = parks_not
        self.batches: dict[str, Batch] = {}
        self.members: dict[str, Roll] = {}
        self.pauses: dict[str | None, Pause] = {}
        self._changed_batches: dict[str, Batch] = {}
        self.batch_changes = 0
        self.reordered = 0
        self._changed_pauses = False
        self.overrides: dict[str, Override] = {}
        self._changed_overrides = False
        self._over: list[Batch] = []
        self.servers: dict[str, Server] = {}
        self.pools: dict[str, PoolFacts] = {}
        self.refusals = Refusals(self.used.resting)

    @property
    def no_room(self) -> str | None:
        """Why no job may start for want of room on the disk, if so."""
        return None if self.disk is None else self.disk.no_start

    @property
    def no_intake(self) -> str | None:
        """Why the disk has no room for anything new, if so."""
        return None if self.disk is None else self.disk.no_intake

    def place(self, job: Job) -> Place:
        """Where ``job`` stands in the order."""
        return (-job.priority, job.seq, job.id)

    def put(self, job: Job) -> None:
        """Make ``job`` the current record of its id, to be recorded by the next commit."""
        before = self.adopt(job)
        if before is not job.state:
            self.moved.append(Move(job, before))
        self.changed[job.id] = None

    def adopt(self, job: Job) -> State | None:
        """Make ``job`` the current record of its id; it is recorded already. Returns the state that it was in."""
        state, known = job.state, self.jobs.get(job.id)
        before = None if known is None else known.state
        if before is not state:
            self._recount(job, before)
        self.jobs[job.id] = job.packed() if state is State.QUEUED else job
        return before

    def _recount(self, job: Job, before: State | None) -> None:
        """Keep what is counted by state: a job came into another one."""
        state, demand = job.state, self.demands[job.id]
        tallies = [self.states]
        if self.members:
            roll = self.members.get(job.spec.batch or "")
            if roll is not None and job.id in roll.ids:
                tallies.append(roll.states)
        for tally in tallies:
            tally[state] += 1
            if before is not None:
                tally[before] -= 1
        if state is State.QUEUED:
            self.queued[demand.solver] += 1
        elif before is State.QUEUED:
            self.queued[demand.solver] -= 1
        if demand.batch is not None:
            had, has = self._has_place(demand.batch, before), self._has_place(demand.batch, state)
            self.used.add_to_batch(demand, has - had)

    def _has_place(self, batch_id: str, state: State | None) -> bool:
        """Whether a job in ``state`` holds a place of its batch: where that stops at a failure, until the verdict."""
        if state is not State.COLLECTING:
            return state is State.RUNNING
        batch = self.batches.get(batch_id)
        return batch is not None and batch.on_error == "fail"

    def enqueue(self, job: Job) -> None:
        """Let a queued job wait for room; one of an earlier life is parked, if this one is for new jobs only."""
        if job.seq < self._parked_below and (job.spec.batch is None or job.spec.batch != self._parks_not):
            self.parked.add(job.id)
            return
        demand = self.demands[job.id]
        queue = self.ready.get(demand)
        if queue is None:
            queue = self.ready[demand] = Queue()
        queue.add(self.place(job))

    def dequeue(self, job: Job) -> None:
        """Take a job out of whatever it waits in: room, backoff (lazily), other jobs, or a later life."""
        self.parked.discard(job.id)
        for other in self.unmet.pop(job.id, ()):
            self._forget_dependent(other, job.id)
        demand = self.demands[job.id]
        queue = self.ready.get(demand)
        if queue is not None and queue.discard(self.place(job)) and not queue:
            del self.ready[demand]

    def reorder(self, job: Job) -> None:
        """Make ``job`` the current record of a queued one that differs in nothing but its place in the order."""
        queue = self.ready.get(self.demands[job.id])
        if queue is not None and queue.discard(self.place(self.jobs[job.id])):
            queue.add(self.place(job))
        self.put(job)
        self.reordered += 1

    def set_demands(self, demands: Mapping[str, Demand]) -> None:
        """Other limits are in force: what jobs ask for now. What runs keeps what it holds."""
        self.demands.update(demands)
        places: dict[Demand, list[Place]] = {}
        for place in chain.from_iterable(self.ready.values()):
            places.setdefault(self.demands[place[2]], []).append(place)
        self.ready = {demand: Queue(sorted(waiting)) for demand, waiting in places.items()}

    def is_ready(self, job: Job) -> bool:
        """Whether only room is missing."""
        queue = self.ready.get(self.demands[job.id])
        return queue is not None and self.place(job) in queue

    def is_open(self, job_id: str) -> bool:
        """Whether the job is here and not yet terminal: another may wait for it."""
        job = self.jobs.get(job_id)
        return job is not None and job.state not in TERMINAL

    def wait_until(self, job: Job, due: float) -> None:
        """Let a queued job rest until ``due``."""
        heapq.heappush(self.backoff, (due, job.seq, job.id))

    def arm(self, due: float, token: str, job_id: str) -> None:
        """Note when an attempt runs out of time. Those of attempts long over are swept out, so the heap stays small."""
        if len(self.deadlines) > 64 + 4 * len(self.holding):
            live = {self.jobs[held].current.token for held in self.holding}
            self.deadlines = [entry for entry in self.deadlines if entry[1] in live]
            heapq.heapify(self.deadlines)
        heapq.heappush(self.deadlines, (due, token, job_id))

    def wait_for(self, job: Job, others: Collection[str]) -> None:
        """Let a queued job wait for other jobs."""
        self.unmet[job.id] = set(others)
        for other in others:
            self.dependents.setdefault(other, set()).add(job.id)

    def _forget_dependent(self, other: str, job_id: str) -> None:
        waiting = self.dependents.get(other)
        if waiting is not None:
            waiting.discard(job_id)
            if not waiting:
                del self.dependents[other]

    def hold(self, job_id: str) -> None:
        """Occupy what the job demands."""
        if job_id in self.holding:
            raise AssertionError(f"{job_id} occupies its room already")
        demand = self.holding[job_id] = self.demands[job_id]
        self.used.add(demand)

    def release(self, job_id: str) -> None:
        """Free what the job occupied."""
        self.used.add(self.holding.pop(job_id), -1)

    def drop(self, job_id: str) -> None:
        """Forget a published job; what is left is to record that it is."""
        job = self.jobs.pop(job_id)
        del self.demands[job_id]
        self.states[job.state] -= 1
        self.published.append(job_id)
        self.moved.append(Move(job, job.state, live=False))
        batch = job.spec.batch if self.members else None
        if batch is not None and batch in self.members:
            roll = self.members[batch]
            roll.ids.remove(job_id)
            roll.states[job.state] -= 1
            roll.left += 1
            self._forget_batch(batch)

    def put_batch(self, batch: Batch) -> None:
        """Make ``batch`` the current record of its id, to be recorded by the next commit."""
        self.batches[batch.id] = batch
        self.members.setdefault(batch.id, Roll())
        self._changed_batches[batch.id] = batch
        self.batch_changes += 1
        self._forget_batch(batch.id)

    def join(self, job: Job, batch: Batch) -> None:
        """Count a live job among its batch."""
        self.batch_changes += batch.id not in self.batches
        self.batches.setdefault(batch.id, batch)
        roll = self.members.setdefault(batch.id, Roll())
        roll.ids.add(job.id)
        if job.id in self.jobs:
            roll.states[job.state] += 1

    def _forget_batch(self, batch_id: str) -> None:
        """A batch that is over is kept by the store alone."""
        if self.batches[batch_id].closed and not self.members[batch_id].ids:
            self._over.append(self.batches.pop(batch_id))
            self.batch_changes += 1
            del self.members[batch_id]

    def take_over(self) -> list[Batch]:
        """The batches that came to their end since this was last asked."""
        over, self._over = self._over, []
        return over

    def pool(self, solver: str) -> PoolFacts:
        """What is known of a solver's warm servers together; of a new one nothing."""
        facts = self.pools.get(solver)
        if facts is None:
            facts = self.pools[solver] = PoolFacts()
        return facts

    def set_scale(self, solver: str, count: int | None) -> None:
        """A person wants exactly so many servers; ``None``: as configured."""
        self.pool(solver).scale = count
        self.cap_servers(solver)

    def cap_servers(self, solver: str) -> None:
        """What is known of a pool changed: note how many servers it may have."""
        pool = self.pools[solver]
        self.used.caps.pop(solver, None)
        if pool.failed or pool.scale is not None:
            self.used.caps[solver] = 0 if pool.failed else pool.scale or 0

    def put_server(self, server: Server) -> None:
        """Make ``server`` the current record of its name; the one that changed last stands last."""
        self.drop_server(server.name)
        self.servers[server.name] = server
        self.used.add_server(server)

    def drop_server(self, name: str) -> None:
        """Forget a server that is gone."""
        before = self.servers.pop(name, None)
        if before is not None:
            self.used.add_server(before, -1)

    def idle_servers(self, solver: str) -> list[Server]:
        """Those that could take a job now; who had one last stands last."""
        idle = [s for s in self.servers.values() if s.solver == solver and s.state is ServerState.READY]
        return sorted(idle, key=attrgetter("since")) if len(idle) > 1 else idle

    def set_pause(self, pause: Pause) -> None:
        """Put a pause in force."""
        self.pauses[pause.solver] = pause
        self._changed_pauses = True

    def end_pause(self, solver: str | None) -> None:
        """Take the pause of ``solver`` (``None``: the one of all) back, if there is one."""
        if self.pauses.pop(solver, None) is not None:
            self._changed_pauses = True

    def set_override(self, override: Override) -> None:
        """Note a limit that somebody set."""
        self.overrides[override.name] = override
        self._changed_overrides = True

    def end_override(self, name: str) -> None:
        """Forget the limit that somebody set, if there is one."""
        if self.overrides.pop(name, None) is not None:
            self._changed_overrides = True

    def is_changed(self) -> bool:
        """Whether there is something to record."""
        orders = self._changed_batches or self._changed_pauses or self._changed_overrides
        return bool(self.changed or self.published or orders)

    def take_changes(self) -> Changes:
        """What to record now; jobs in the order in which they first changed."""
        changes = Changes(
            [self.jobs[changed] for changed in self.changed],
            self.published,
            list(self._changed_batches.values()),
            list(self.pauses.values()) if self._changed_pauses else None,
            list(self.overrides.values()) if self._changed_overrides else None,
        )
        self.changed, self.published, self._changed_batches = {}, [], {}
        self._changed_pauses = self._changed_overrides = False
        self.keys = {}
        return changes

    def take_moved(self) -> list[Move]:
        """The jobs that came into another state since this was last asked, in the order of its happening."""
        moved, self.moved = self.moved, []
        return moved

    def sanity_check(self) -> None:
        """Walk every invariant; ``AssertionError`` names the first that is broken. For tests."""
        assert self.demands.keys() == self.jobs.keys(), "a job without a demand, or a demand without a job"
        named: dict[str, Iterable[str]] = {
            "holding": self.holding,
            "unmet": self.unmet,
            "changed": self.changed,
            "parked": self.parked,
        }
        for name, ids in named.items():
            assert self.jobs.keys() >= set(ids), f"{name} knows unknown jobs: {set(ids) - self.jobs.keys()}"
        states = Counter(job.state for job in self.jobs.values())
        assert states == +self.states, f"the counts of states drifted: {self.states} is not {states}"
        queued = Counter(self.demands[job.id].solver for job in self.jobs.values() if job.state is State.QUEUED)
        assert queued == +self.queued, f"the counts of solvers drifted: {self.queued} is not {queued}"
        used = Used()
        for demand in self.holding.values():
            used.add(demand)
        for job in self.jobs.values():
            if self._has_place(job.spec.batch or "", job.state):
                used.add_to_batch(self.demands[job.id])
        for server in self.servers.values():
            used.add_server(server)
        used.resting = self.refusals.held_back()
        for solver, pool in self.pools.items():
            if pool.failed or pool.scale is not None:
                used.caps[solver] = 0 if pool.failed else pool.scale or 0
        assert used == self.used, f"usage drifted: {self.used} is not {used}"
        self._check_servers()
        for demand, queue in self.ready.items():
            assert len(queue), f"an empty queue was kept for {demand}"
            assert all(a < b for a, b in pairwise(queue)), f"the queue of {demand} is out of order or holds a job twice"
        ready = sum(map(len, self.ready.values()))
        assert ready == sum(map(self.is_ready, self.jobs.values())), "a job stands in the queue of another demand"
        members = {job.id for job in self.jobs.values() if job.spec.batch in self.members}
        rolls = self.members.values()
        assert members == set().union(*(roll.ids for roll in rolls)), "a batch knows other jobs than its own"
        for batch_id, roll in self.members.items():
            in_it = Counter(self.jobs[job_id].state for job_id in roll.ids)
            assert in_it == +roll.states, f"the counts of {batch_id} drifted: {roll.states} is not {in_it}"
        assert self.members.keys() == self.batches.keys(), "a batch without members, or members without a batch"
        inverse: dict[str, set[str]] = {}
        for job_id, others in self.unmet.items():
            assert others, f"{job_id} waits for nobody"
            for other in others:
                assert self.is_open(other), f"{job_id} waits for {other}, which is over or unknown"
                inverse.setdefault(other, set()).add(job_id)
        assert inverse == self.dependents, f"dependents drifted: {self.dependents} is not {inverse}"
        resting = Counter(entry[2] for entry in self.backoff)
        for job in self.jobs.values():
            self._check_job(job, resting[job.id])

    def _check_servers(self) -> None:
        for server in self.servers.values():
            who = f"{server.name} ({server.state})"
            if server.state in (ServerState.BUSY, ServerState.DRAINING):
                assert server.job is not None, f"{who} has no job"
            if server.state in (ServerState.STARTING, ServerState.READY):
                assert server.job is None, f"{who} has a job"
        busy = [s for s in self.servers.values() if s.state in (ServerState.BUSY, ServerState.DRAINING)]
        assert len({server.job for server in busy}) == len(busy), "a job has two servers"

    def _check_job(self, job: Job, rests: int) -> None:
        who = f"{job.id} ({job.state})"
        terminal = job.state in TERMINAL
        assert job.seq < self.next_seq, f"{who} has a seq not yet given out"
        waits = [self.is_ready(job), job.id in self.unmet, job.backoff_seconds > 0, job.id in self.parked]
        assert sum(waits) == (job.state is State.QUEUED), f"{who} waits in {sum(waits)} places"
        if job.backoff_seconds > 0:
            assert rests == 1, f"{who} rests and has {rests} instants at which that ends"
        unkillable = job.state is State.FAILED and job.cause is Cause.UNKILLABLE
        if job.id in self.holding:
            assert job.state is State.RUNNING or unkillable, f"{who} occupies room"
        else:
            assert job.state is not State.RUNNING, f"{who} occupies no room"
        assert terminal == (job.finished_us is not None), f"{who}: finished?"
        assert terminal == (job.manifest is not None), f"{who}: manifest?"
        assert [a.n for a in job.attempts] == list(range(1, len(job.attempts) + 1)), f"{who}: attempts are misnumbered"
        assert len({a.token for a in job.attempts}) == len(job.attempts), f"{who}: a token came twice"
        for attempt in job.attempts[:-1]:
            assert attempt.cause is not None, f"{who}: attempt {attempt.n} is neither current nor over"
        if job.state is State.RUNNING:
            assert job.current.facts is None, f"{who} has exit facts"
        if job.state is State.COLLECTING:
            assert job.current.facts is not None, f"{who} has no exit facts"
