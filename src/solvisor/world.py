"""The state of the world: every live job, and the indexes that keep a pass cheap.

Rules: only ``machine`` changes jobs and indexes (``scheduler.due`` takes what is due out of the heaps; ``draining`` is
the engine's to set), and only the engine task holds it. ``jobs`` is the truth; everything else is an index that follows
from it, and ``sanity_check`` compares the two. A job leaves when its manifest is published.
Instants are monotonic seconds. It must not know the store, the configuration, or any clock.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from .model import TERMINAL, Batch, Cause, Demand, Job, Pause, Server, ServerState, State
from .refusals import Refusals

Place = tuple[int, int, str]
"""Where a job stands in the order: (-priority, seq, id). The smallest goes first."""


class Queue:
    """Jobs of one demand, in order. Add, remove and rank by binary search."""

    __slots__ = ("_places",)

    def __init__(self) -> None:
        self._places: list[Place] = []

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def __getitem__(self, index: int) -> Place:
        return self._places[index]

    def add(self, place: Place) -> None:
        """Insert ``place`` in order."""
        insort(self._places, place)

    def remove(self, place: Place) -> None:
        """Take ``place`` out; it must be there."""
        index = self.rank(place)
        if self._places[index : index + 1] != [place]:
            raise KeyError(place)
        del self._places[index]

    def rank(self, place: Place) -> int:
        """How many stand before ``place``."""
        return bisect_left(self._places, place)


@dataclass(slots=True)
class Used:
    """What running jobs and warm servers occupy at this moment.

    ``servers`` counts, by solver, those that are there to take jobs or soon will be, ``present`` also those that end;
    ``idle`` those that could take one now, ``coming`` those that start. ``resting`` are licenses that were refused too
    often to be tried now. ``caps`` says how many servers a solver may have where that is not as configured.
    """

    jobs: int = 0
    cpus: int = 0
    memory_bytes: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    solvers: Counter[str] = field(default_factory=Counter)
    batches: Counter[str] = field(default_factory=Counter)
    servers: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    idle: Counter[str] = field(default_factory=Counter)
    coming: Counter[str] = field(default_factory=Counter)
    resting: set[str] = field(default_factory=set)
    caps: dict[str, int] = field(default_factory=dict)

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
            Counter(self.licenses),
            Counter(self.solvers),
            Counter(self.batches),
            Counter(self.servers),
            Counter(self.present),
            Counter(self.idle),
            Counter(self.coming),
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


class Changes(NamedTuple):
    """What the next commit records, in the order of its happening. ``pauses`` are all there are, if any changed."""

    jobs: list[Job]
    published: list[str]
    batches: list[Batch]
    pauses: list[Pause] | None

    def __bool__(self) -> bool:
        return bool(self.jobs or self.published or self.batches) or self.pauses is not None


class World:
    """All live jobs with their indexes.

    ``states`` counts the jobs by state.
    ``ready`` holds, by demand, the jobs that only wait for room; ``backoff`` is a heap of ``(due, seq, id)`` and
    ``deadlines`` one of ``(due, token, id)``, both with stale entries that are skipped when they surface; ``unmet``
    names the jobs a queued job still waits for and ``dependents`` is its inverse; ``holding`` are the jobs whose demand
    is occupied; ``changed`` and ``published`` collect the ids that the next commit must record, in order.
    ``parked`` are queued jobs of earlier lives where this one ``parks`` them, but those of the batch ``parks_not``: it
    starts new ones only.
    ``refusals`` are of licenses that somebody did not get although we had given him a seat.
    ``servers`` are all warm servers and ``pools`` what is known of those of one solver together.
    ``batches`` are those with live jobs or still open, ``members`` the rolls of their live jobs. ``pauses`` are in
    force, by solver (``None``: all).
    """

    def __init__(self, next_seq: int = 1, *, parks: bool = False, parks_not: str | None = None) -> None:
        self.jobs: dict[str, Job] = {}
        self.states: Counter[State] = Counter()
        self.demands: dict[str, Demand] = {}
        self.ready: dict[Demand, Queue] = {}
        self.backoff: list[tuple[float, int, str]] = []
        self.deadlines: list[tuple[float, str, str]] = []
        self.unmet: dict[str, set[str]] = {}
        self.dependents: dict[str, set[str]] = {}
        self.holding: set[str] = set()
        self.used = Used()
        self.changed: dict[str, None] = {}
        self.published: list[str] = []
        self.next_seq = next_seq
        self.draining = False
        self.parked: set[str] = set()
        self._parked_below = next_seq if parks else 0
        self._parks_not = parks_not
        self.batches: dict[str, Batch] = {}
        self.members: dict[str, Roll] = {}
        self.pauses: dict[str | None, Pause] = {}
        self._changed_batches: dict[str, Batch] = {}
        self._changed_pauses = False
        self._over: list[Batch] = []
        self.servers: dict[str, Server] = {}
        self.pools: dict[str, PoolFacts] = {}
        self.refusals = Refusals(self.used.resting)

    def place(self, job: Job) -> Place:
        """Where ``job`` stands in the order."""
        return (-job.spec.priority, job.seq, job.id)

    def put(self, job: Job) -> None:
        """Make ``job`` the current record of its id, to be recorded by the next commit."""
        self.adopt(job)
        self.changed[job.id] = None

    def adopt(self, job: Job) -> None:
        """Make ``job`` the current record of its id; it is recorded already."""
        before = self.jobs.get(job.id)
        roll = self.members.get(job.spec.batch or "")
        tallies = [self.states, roll.states] if roll is not None and job.id in roll.ids else [self.states]
        for tally in tallies:
            if before is not None:
                tally[before.state] -= 1
            tally[job.state] += 1
        self.jobs[job.id] = job
        had, has = before is not None and self._in_batch_room(before), self._in_batch_room(job)
        if had != has:
            self.used.add_to_batch(self.demands[job.id], 1 if has else -1)

    def _in_batch_room(self, job: Job) -> bool:
        """Whether a job holds a place of its batch: one that stops at a failure waits for the verdict, too."""
        batch = self.batches.get(job.spec.batch or "")
        judged = batch is not None and batch.on_error == "fail"
        return job.state is State.RUNNING or (judged and job.state is State.COLLECTING)

    def enqueue(self, job: Job) -> None:
        """Let a queued job wait for room; one of an earlier life is parked, if this one is for new jobs only."""
        if job.seq < self._parked_below and (job.spec.batch is None or job.spec.batch != self._parks_not):
            self.parked.add(job.id)
            return
        self.ready.setdefault(self.demands[job.id], Queue()).add(self.place(job))

    def dequeue(self, job: Job) -> None:
        """Take a job out of whatever it waits in: room, backoff (lazily), other jobs, or a later life."""
        self.parked.discard(job.id)
        for other in self.unmet.pop(job.id, ()):
            self._forget_dependent(other, job.id)
        queue = self.ready.get(self.demands[job.id])
        if queue is not None and self.is_ready(job):
            queue.remove(self.place(job))
            if not queue:
                del self.ready[self.demands[job.id]]

    def is_ready(self, job: Job) -> bool:
        """Whether only room is missing."""
        queue = self.ready.get(self.demands[job.id])
        if queue is None:
            return False
        rank = queue.rank(place := self.place(job))
        return rank < len(queue) and queue[rank] == place

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
        self.holding.add(job_id)
        self.used.add(self.demands[job_id])

    def release(self, job_id: str) -> None:
        """Free what the job occupied."""
        self.holding.remove(job_id)
        self.used.add(self.demands[job_id], -1)

    def drop(self, job_id: str) -> None:
        """Forget a published job; what is left is to record that it is."""
        job = self.jobs[job_id]
        batch = job.spec.batch
        self.states[job.state] -= 1
        del self.jobs[job_id], self.demands[job_id]
        self.published.append(job_id)
        if batch in self.members:
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
        self._forget_batch(batch.id)

    def join(self, job: Job, batch: Batch) -> None:
        """Count a live job among its batch."""
        self.batches.setdefault(batch.id, batch)
        roll = self.members.setdefault(batch.id, Roll())
        roll.ids.add(job.id)
        if job.id in self.jobs:
            roll.states[job.state] += 1

    def _forget_batch(self, batch_id: str) -> None:
        """A batch that is over is kept by the store alone."""
        if self.batches[batch_id].closed and not self.members[batch_id].ids:
            self._over.append(self.batches.pop(batch_id))
            del self.members[batch_id]

    def take_over(self) -> list[Batch]:
        """The batches that came to their end since this was last asked."""
        over, self._over = self._over, []
        return over

    def pool(self, solver: str) -> PoolFacts:
        """What is known of a solver's warm servers together; of a new one nothing."""
        return self.pools.setdefault(solver, PoolFacts())

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
        return sorted(idle, key=lambda server: server.since)

    def set_pause(self, pause: Pause) -> None:
        """Put a pause in force."""
        self.pauses[pause.solver] = pause
        self._changed_pauses = True

    def end_pause(self, solver: str | None) -> None:
        """Take the pause of ``solver`` (``None``: the one of all) back, if there is one."""
        if self.pauses.pop(solver, None) is not None:
            self._changed_pauses = True

    def is_changed(self) -> bool:
        """Whether there is something to record."""
        return bool(self.changed or self.published or self._changed_batches or self._changed_pauses)

    def take_changes(self) -> Changes:
        """What to record now; jobs in the order in which they first changed."""
        changes = Changes(
            [self.jobs[i] for i in self.changed],
            self.published,
            list(self._changed_batches.values()),
            list(self.pauses.values()) if self._changed_pauses else None,
        )
        self.changed, self.published, self._changed_batches, self._changed_pauses = {}, [], {}, False
        return changes

    def sanity_check(self) -> None:
        """Walk every invariant; ``AssertionError`` names the first that is broken. For tests."""
        assert self.demands.keys() == self.jobs.keys(), "a job without a demand, or a demand without a job"
        named = {"holding": self.holding, "unmet": self.unmet, "changed": self.changed, "parked": self.parked}
        for name, ids in named.items():
            assert self.jobs.keys() >= set(ids), f"{name} knows unknown jobs: {set(ids) - self.jobs.keys()}"
        states = Counter(job.state for job in self.jobs.values())
        assert states == +self.states, f"the counts of states drifted: {self.states} is not {states}"
        used = Used()
        for job_id in self.holding:
            used.add(self.demands[job_id])
        for job in filter(self._in_batch_room, self.jobs.values()):
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
        queued = sum(map(len, self.ready.values()))
        assert queued == sum(map(self.is_ready, self.jobs.values())), "a job stands in the queue of another demand"
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
