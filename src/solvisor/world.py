"""The state of the world: every live job, and the indexes that keep a pass cheap.

Rules: only ``machine`` changes it, and only the engine task holds it. ``jobs`` is the truth; everything else is an
index that could be rebuilt from it, and ``sanity_check`` does so. A job leaves when its manifest is published.
Instants are monotonic seconds. It must not know the store, the configuration, or any clock.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from .model import TERMINAL, Demand, Job, State

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
    """What running jobs occupy at this moment."""

    jobs: int = 0
    cpus: int = 0
    memory_bytes: int = 0
    licenses: Counter[str] = field(default_factory=Counter)
    solvers: Counter[str] = field(default_factory=Counter)

    def add(self, demand: Demand, sign: int = 1) -> None:
        """Occupy (``sign`` 1) or free (-1) what ``demand`` asks for."""
        self.jobs += sign
        self.cpus += sign * demand.cpus
        self.memory_bytes += sign * demand.memory_bytes
        self.solvers[demand.solver] += sign
        for name, count in demand.licenses:
            self.licenses[name] += sign * count

    def copy(self) -> Used:
        """An independent copy, for planning."""
        return Used(self.jobs, self.cpus, self.memory_bytes, Counter(self.licenses), Counter(self.solvers))


class World:
    """All live jobs with their indexes.

    ``ready`` holds, by demand, the jobs that only wait for room; ``backoff`` and ``deadlines`` are heaps of
    ``(due, token or id, id)`` whose stale entries are skipped when they surface; ``unmet`` names the jobs a queued job
    still waits for and ``dependents`` is its inverse; ``holding`` are the jobs whose demand is occupied; ``changed``
    and ``published`` collect the ids that the next commit must record, in order.
    """

    def __init__(self, next_seq: int = 1) -> None:
        self.jobs: dict[str, Job] = {}
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

    def place(self, job: Job) -> Place:
        """Where ``job`` stands in the order."""
        return (-job.spec.priority, job.seq, job.id)

    def put(self, job: Job) -> None:
        """Make ``job`` the current record of its id, to be recorded by the next commit."""
        self.jobs[job.id] = job
        self.changed[job.id] = None

    def enqueue(self, job: Job) -> None:
        """Let a queued job wait for room."""
        self.ready.setdefault(self.demands[job.id], Queue()).add(self.place(job))

    def dequeue(self, job: Job) -> None:
        """Take a job out of whatever it waits in: room, backoff (lazily), or other jobs."""
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

    def wait_until(self, job: Job, due: float) -> None:
        """Let a queued job rest until ``due``."""
        heapq.heappush(self.backoff, (due, job.seq, job.id))

    def wait_for(self, job: Job, others: set[str]) -> None:
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
        del self.jobs[job_id], self.demands[job_id]
        self.changed.pop(job_id, None)
        self.published.append(job_id)

    def take_changed(self) -> tuple[list[Job], list[str]]:
        """The jobs to record now, in the order in which they first changed, and the ids of those published."""
        jobs = [self.jobs[i] for i in self.changed]
        published = self.published
        self.changed, self.published = {}, []
        return jobs, published

    def sanity_check(self) -> None:
        """Walk every invariant; ``AssertionError`` names the first that is broken. For tests."""
        used = Used()
        for job_id in self.holding:
            used.add(self.demands[job_id])
        assert used == self.used, f"usage drifted: {self.used} is not {used}"
        resting = {entry[2] for entry in self.backoff}
        places = {place for queue in self.ready.values() for place in queue}
        for queue in self.ready.values():
            assert list(queue) == sorted(queue), "a queue is out of order"
            assert len(queue), "an empty queue was kept"
        for job in self.jobs.values():
            waits = [self.is_ready(job), job.id in self.unmet, job.id in resting and job.backoff_seconds > 0]
            if job.state is State.QUEUED:
                assert waits.count(True) == 1, f"{job.id} waits in {waits.count(True)} places"
            else:
                assert not waits[0], f"{job.id} is {job.state} and still in the queue"
                assert not waits[1], f"{job.id} is {job.state} and still waits for jobs"
            places.discard(self.place(job))
            running = job.state is State.RUNNING or (job.state is State.FAILED and job.id in self.holding)
            assert running == (job.id in self.holding), f"{job.id} is {job.state}, holding is wrong"
            assert (job.state in TERMINAL) == (job.finished_us is not None), f"{job.id}: finished?"
            assert (job.manifest is not None) == (job.state in TERMINAL), f"{job.id}: manifest?"
            tokens = [a.token for a in job.attempts]
            assert len(set(tokens)) == len(tokens), f"{job.id}: a token came twice"
            assert [a.n for a in job.attempts] == list(range(1, len(tokens) + 1)), f"{job.id}: n"
        assert not places, f"the queue holds unknown jobs: {places}"
        for other, waiting in self.dependents.items():
            for job_id in waiting:
                assert other in self.unmet[job_id], f"{job_id} does not wait for {other}"
