"""Who starts next, and why everybody else waits.

Rules: pure functions over the world, the limits and ``now``. Order is priority, then first come. A job that waits for
cores or memory is overtaken by nobody in that: wide jobs never starve. A job that waits for a license or for its
solver's own limit lets others pass. ``plan`` looks only at the head of each queue (one queue per distinct demand), so a
pass costs what changed and not how many wait. ``explain`` uses the same admission function: what it says is what holds.
Whether a transition is legal is the machine's business, not ours.
"""

from __future__ import annotations

import heapq

from msgspec import Struct

from .machine import BackoffOver, DeadlinePassed, Event
from .model import Cause, Demand, Limits, Reason, State
from .world import Place, Used, World


class Refusal(Struct, frozen=True):
    """Why a demand does not fit now: ``need`` of ``total``, of which ``used`` are taken (counts, cores or bytes)."""

    reason: Reason
    what: str
    need: int
    used: int
    total: int

    @property
    def hopeless(self) -> bool:
        """It would not fit an idle machine either."""
        return self.need > self.total


class Plan(Struct, frozen=True):
    """The ids to start now, in order, and when (monotonic seconds) time alone will change something."""

    starts: tuple[str, ...]
    wake_at: float | None


class Finding(Struct, frozen=True):
    """One line of an explanation: the reason, whether it holds the job back, and the numbers behind it."""

    reason: Reason
    holds: bool
    text: str


def admit(demand: Demand, used: Used, limits: Limits) -> Refusal | None:
    """The first thing that keeps ``demand`` from starting beside what is ``used``, or ``None`` if it fits."""
    refusals = _refusals(demand, used, limits)
    return refusals[0] if refusals else None


def _refusals(demand: Demand, used: Used, limits: Limits) -> list[Refusal]:
    if demand.solver not in limits.solver_jobs:
        return [Refusal(Reason.SOLVER, demand.solver, 1, 0, 0)]
    wants = [
        Refusal(Reason.JOBS, "jobs", 1, used.jobs, limits.max_jobs),
        Refusal(Reason.CPUS, "cores", demand.cpus, used.cpus, limits.cpus),
        Refusal(Reason.MEMORY, "memory", demand.memory_bytes, used.memory_bytes, limits.memory_bytes),
    ]
    wants += [
        Refusal(Reason.LICENSE, name, count, used.licenses[name], limits.licenses.get(name, 0))
        for name, count in demand.licenses
    ]
    own = limits.solver_jobs[demand.solver]
    if own is not None:
        wants.append(Refusal(Reason.SOLVER, demand.solver, 1, used.solvers[demand.solver], own))
    return [w for w in wants if w.need and w.used + w.need > w.total]


def due(world: World, now: float) -> list[Event]:
    """Take out of the heaps what time has brought: timeouts and ends of backoff. Stale entries vanish on the way."""
    events: list[Event] = []
    while world.deadlines and world.deadlines[0][0] <= now:
        _, token, job_id = heapq.heappop(world.deadlines)
        job = world.jobs.get(job_id)
        attempt = job.attempt if job and job.state is State.RUNNING else None
        if attempt and attempt.token == token and attempt.cause is not Cause.TIMEOUT:
            events.append(DeadlinePassed(job_id, token))
    while world.backoff and world.backoff[0][0] <= now:
        _, _, job_id = heapq.heappop(world.backoff)
        job = world.jobs.get(job_id)
        if job and job.state is State.QUEUED and job.backoff_seconds > 0:
            events.append(BackoffOver(job_id))
    return events


def plan(world: World, limits: Limits) -> Plan:
    """Decide who starts now. Only the heads of the queues are looked at, plus one place for each start."""
    starts: list[str] = []
    if not world.draining:
        used = world.used.copy()
        heads: list[tuple[Place, int, Demand]] = [(queue[0], 0, demand) for demand, queue in world.ready.items()]
        heads.sort()
        while heads:
            place, index, demand = heapq.heappop(heads)
            refusal = admit(demand, used, limits)
            if refusal is None:
                starts.append(place[2])
                used.add(demand)
                queue = world.ready[demand]
                if index + 1 < len(queue):
                    heapq.heappush(heads, (queue[index + 1], index + 1, demand))
            elif refusal.reason is Reason.JOBS or _blocks_others(refusal):
                break
    waits = [heap[0][0] for heap in (world.deadlines, world.backoff) if heap]
    return Plan(tuple(starts), min(waits, default=None))


def _blocks_others(refusal: Refusal) -> bool:
    return refusal.reason in {Reason.CPUS, Reason.MEMORY} and not refusal.hopeless


def explain(world: World, limits: Limits, job_id: str, now: float) -> list[Finding]:
    """Why a queued job is not running: every reason with its numbers, those that hold it back first."""
    job = world.jobs[job_id]
    demand = world.demands[job_id]
    if job.state is not State.QUEUED:
        raise ValueError(f"{job_id} is {job.state}, not queued")
    findings: list[Finding] = []
    if world.draining:
        findings.append(Finding(Reason.PAUSED, True, "the daemon is stopping; it starts nothing new"))
    if job_id in world.unmet:
        findings.append(Finding(Reason.DEPENDENCY, True, "waits for " + ", ".join(sorted(world.unmet[job_id]))))
    if job.backoff_seconds > 0:
        rest = min((at - now for at, _, other in world.backoff if other == job_id), default=job.backoff_seconds)
        findings.append(Finding(Reason.BACKOFF, True, f"rests {max(0.0, rest):.1f} s more before the next try"))
    refusals = {(r.reason, r.what): r for r in _refusals(demand, world.used, limits)}
    findings += [Finding(r.reason, True, _in_words(r)) for r in refusals.values()]
    ahead = sum(queue.rank(world.place(job)) for queue in world.ready.values())
    total = sum(len(queue) for queue in world.ready.values())
    if ahead and not findings:
        findings.append(Finding(Reason.ORDER, True, f"{ahead} of {total} waiting jobs come first"))
    else:
        findings.append(Finding(Reason.ORDER, False, f"{ahead} of {total} waiting jobs come first"))
    return findings


def _in_words(refusal: Refusal) -> str:
    if refusal.reason is Reason.SOLVER and refusal.total == 0:
        return f"solver {refusal.what} is not in the configuration"
    return f"{refusal.what}: needs {refusal.need}, {refusal.used} of {refusal.total} in use"
