"""Who starts next, and why everybody else waits.

Rules: pure functions over the world, the limits and ``now`` (``due`` alone takes something out of the world: the heap
entries whose time has come). Order is priority, then first come. A job that waits for nothing but cores or memory is
overtaken by nobody, and one that waits for nothing but licenses by nobody who needs one of them: wide jobs never
starve. A job that waits for several kinds of things or for its solver's own limit, or that asks for more than there is,
lets others pass, for what they leave would not help it. ``plan`` looks only at the head of each queue (one queue per
distinct demand), so a pass costs what changed and not how many wait. ``explain`` uses the same admission function: what
it says is what holds. Whether a transition is legal is the machine's business, not ours.
"""

from __future__ import annotations

import heapq

from msgspec import Struct

from .events import BackoffOver, DeadlinePassed, Event
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
    """What to do now.

    ``starts`` are the ids to start, in order. ``wake_at`` is when (monotonic seconds) time alone may change something.
    ``blocker`` is the job that waits only for cores or memory and that therefore nobody may overtake.
    """

    starts: tuple[str, ...]
    wake_at: float | None
    blocker: str | None = None


class Finding(Struct, frozen=True):
    """One line of an explanation: the reason, whether it holds the job back, and the numbers behind it."""

    reason: Reason
    holds: bool
    text: str


def admit(demand: Demand, used: Used, limits: Limits) -> list[Refusal]:
    """Everything that keeps ``demand`` from starting beside what is ``used``; empty if it fits."""
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


def overdue(world: World, now: float) -> list[str]:
    """The tokens of attempts that have run out of time, without taking anything out of the world."""
    return [token for deadline, token, _ in world.deadlines if deadline <= now]


def plan(world: World, limits: Limits) -> Plan:
    """Decide who starts now. Only the heads of the queues are looked at, plus one place for each start."""
    starts: list[str] = []
    blocker = None
    promised: set[str] = set()  # licenses that are kept for a job further ahead
    used = world.used.copy()
    heads: list[tuple[Place, int, Demand]] = []
    if not world.draining:
        heads = sorted((queue[0], 0, demand) for demand, queue in world.ready.items())
    while heads:
        place, index, demand = heapq.heappop(heads)
        if any(name in promised for name, _ in demand.licenses):
            continue
        refusals = admit(demand, used, limits)
        reasons = {r.reason for r in refusals}
        if not refusals:
            starts.append(place[2])
            used.add(demand)
            queue = world.ready[demand]
            if index + 1 < len(queue):
                heapq.heappush(heads, (queue[index + 1], index + 1, demand))
        elif Reason.JOBS in reasons:
            break  # nobody else would fit either
        elif any(r.hopeless for r in refusals):
            continue
        elif reasons <= {Reason.CPUS, Reason.MEMORY}:
            blocker = place[2]
            break
        elif reasons == {Reason.LICENSE}:
            promised |= {r.what for r in refusals}
    waits = [heap[0][0] for heap in (world.deadlines, world.backoff) if heap]
    return Plan(tuple(starts), min(waits, default=None), blocker)


def explain(world: World, limits: Limits, job_id: str, now: float) -> list[Finding]:
    """Why a queued job is not running: every reason with its numbers, those that hold it back first.

    Where nothing holds it back, ``plan`` starts it. Raises ``KeyError`` for a job that is not live and ``ValueError``
    for one that is not queued.
    """
    job = world.jobs[job_id]
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
    refusals = admit(world.demands[job_id], world.used, limits)
    findings += [Finding(r.reason, True, _in_words(r, limits)) for r in refusals]
    place = world.place(job)
    ahead = sum(queue.rank(place) for queue in world.ready.values())
    total = sum(len(queue) for queue in world.ready.values())
    text = f"{ahead} of {total} jobs that wait for room come first"
    decided = plan(world, limits)
    blocked = decided.blocker is not None and world.place(world.jobs[decided.blocker]) < place
    if blocked:
        text += f"; {decided.blocker} is the next to get cores or memory, and nobody overtakes it"
    crowded_out = not findings and job_id not in decided.starts
    findings.append(Finding(Reason.ORDER, blocked or crowded_out, text))
    return sorted(findings, key=lambda finding: not finding.holds)


def _in_words(refusal: Refusal, limits: Limits) -> str:
    what, need, used, total = refusal.what, refusal.need, refusal.used, refusal.total
    match refusal.reason:
        case Reason.JOBS:
            text = f"{used} of at most {total} jobs are running"
        case Reason.MEMORY:
            text = f"needs {_gib(need)} of memory; {_gib(used)} of {_gib(total)} are taken"
        case Reason.LICENSE:
            text = f"needs {need} of license {what}; {used} of {total} are taken"
        case Reason.SOLVER if what not in limits.solver_jobs:
            return f"solver {what} is not in the configuration: add [solver.{what}], or cancel the job"
        case Reason.SOLVER:
            text = f"{used} of at most {total} jobs of {what} are running"
        case _:
            text = f"needs {need} {what}; {used} of {total} are taken"
    return (
        f"{text}; it can never start so: raise the limit, or cancel it and ask for less" if refusal.hopeless else text
    )


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"
