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
from .model import Cause, Demand, Job, Limits, Reason, State
from .units import describe_size
from .views import Finding, Holder
from .world import Place, Used, World

HOLDERS_MAX = 5
"""Jobs named as those that hold what another waits for."""


class Want(Struct, frozen=True):
    """One thing a demand asks for: ``need`` of ``total``, of which ``used`` are taken (counts, cores or bytes)."""

    reason: Reason
    what: str
    need: int
    used: int
    total: int

    @property
    def fits(self) -> bool:
        """It can be had now."""
        return not self.need or self.used + self.need <= self.total

    @property
    def hopeless(self) -> bool:
        """It would not fit an idle machine either."""
        return self.need > self.total

    @property
    def shared_by_all(self) -> bool:
        """Nobody else could start either: the bound on jobs at once."""
        return self.reason is Reason.JOBS and self.what == JOBS


JOBS = "jobs"
"""What the bound on all jobs at once is called, beside those of single batches."""


class Plan(Struct, frozen=True):
    """What to do now.

    ``starts`` are the ids to start, in order. ``wake_at`` is when (monotonic seconds) time alone may change something.
    ``blocker`` is the job that waits only for cores or memory and that therefore nobody may overtake.
    """

    starts: tuple[str, ...]
    wake_at: float | None
    blocker: str | None = None


def wants(demand: Demand, used: Used, limits: Limits) -> list[Want]:
    """Everything that ``demand`` asks for, beside what is ``used``."""
    if demand.solver not in limits.solver_jobs:
        return [Want(Reason.SOLVER, demand.solver, 1, 0, 0)]
    asked = [
        Want(Reason.LICENSE, name, count, used.licenses[name], limits.licenses.get(name, 0))
        for name, count in demand.licenses
    ]
    own = limits.solver_jobs[demand.solver]
    if own is not None:
        asked.append(Want(Reason.SOLVER, demand.solver, 1, used.solvers[demand.solver], own))
    if demand.batch is not None:
        asked.append(Want(Reason.JOBS, demand.batch, 1, used.batches[demand.batch], demand.batch_jobs))
    return [
        *asked,
        Want(Reason.MEMORY, "memory", demand.memory_bytes, used.memory_bytes, limits.memory_bytes),
        Want(Reason.CPUS, "cores", demand.cpus, used.cpus, limits.cpus),
        Want(Reason.JOBS, JOBS, 1, used.jobs, limits.max_jobs),
    ]


def admit(demand: Demand, used: Used, limits: Limits) -> list[Want]:
    """Everything that keeps ``demand`` from starting beside what is ``used``; empty if it fits."""
    return [want for want in wants(demand, used, limits) if not want.fits]


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
    if not world.draining and None not in world.pauses:
        heads = sorted(
            (queue[0], 0, demand) for demand, queue in world.ready.items() if demand.solver not in world.pauses
        )
    while heads:
        place, index, demand = heapq.heappop(heads)
        if any(name in promised for name, _ in demand.licenses):
            continue
        refusals = admit(demand, used, limits)
        reasons = {r.reason for r in refusals}
        if not refusals:
            starts.append(place[2])
            used.add(demand)
            used.add_to_batch(demand)
            queue = world.ready[demand]
            if index + 1 < len(queue):
                heapq.heappush(heads, (queue[index + 1], index + 1, demand))
        elif any(r.shared_by_all for r in refusals):
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


def reason(world: World, limits: Limits, job: Job) -> tuple[Reason, str | None]:
    """What a queued job waits for in the first place, and of which license, solver or batch."""
    if None in world.pauses or world.draining:
        return Reason.PAUSED, None
    demand = world.demands[job.id]
    if demand.solver in world.pauses:
        return Reason.PAUSED, demand.solver
    if job.id in world.parked:
        return Reason.PAUSED, None
    if job.id in world.unmet:
        return Reason.DEPENDENCY, None
    if job.backoff_seconds > 0:
        return Reason.BACKOFF, None
    return reason_of_demand(world, limits, demand)


def reason_of_demand(world: World, limits: Limits, demand: Demand) -> tuple[Reason, str | None]:
    """What jobs of this demand wait for, of those that only wait for room."""
    refusals = admit(demand, world.used, limits)
    if not refusals:
        return Reason.ORDER, None
    first = next((refusal for refusal in refusals if refusal.hopeless), refusals[0])
    named = first.reason in {Reason.LICENSE, Reason.SOLVER} or (first.reason is Reason.JOBS and first.what != JOBS)
    return first.reason, first.what if named else None


def explain(world: World, limits: Limits, job_id: str, now: float, now_us: int) -> list[Finding]:
    """Why a queued job is not running: every reason with its numbers, those that hold it back first.

    Where nothing holds it back, ``plan`` starts it. ``now`` is monotonic seconds, ``now_us`` UTC microseconds. Raises
    ``KeyError`` for a job that is not live and ``ValueError`` for one that is not queued.
    """
    job = world.jobs[job_id]
    if job.state is not State.QUEUED:
        raise ValueError(f"{job_id} is {job.state}, not queued")
    findings = _stops(world, job)
    if job_id in world.unmet:
        text = "waits for " + ", ".join(sorted(world.unmet[job_id]))
        findings.append(Finding(reason=Reason.DEPENDENCY, label="after", holds=True, text=text))
    if job.backoff_seconds > 0:
        rest = min((at - now for at, _, other in world.backoff if other == job_id), default=job.backoff_seconds)
        text = f"rests {max(0.0, rest):.1f} s more before the next try"
        findings.append(Finding(reason=Reason.BACKOFF, label="rest", holds=True, text=text))
    for want in wants(world.demands[job_id], world.used, limits):
        if want.need and (not want.fits or not want.shared_by_all):
            findings.append(_finding(world, limits, want, now_us))
    findings.append(_order(world, limits, job, any(finding.holds for finding in findings)))
    return sorted(findings, key=lambda finding: not finding.holds)


def _stops(world: World, job: Job) -> list[Finding]:
    """Who said that nothing is to be started."""
    findings = []
    if world.draining:
        text = "the daemon is stopping; it starts nothing new"
        findings.append(Finding(reason=Reason.PAUSED, label="stopping", holds=True, text=text))
    if job.id in world.parked:
        text = "the daemon was started for a batch and starts only what is sent to it; solvisor serve takes up the rest"
        findings.append(Finding(reason=Reason.PAUSED, label="parked", holds=True, text=text))
    for solver in (None, world.demands[job.id].solver):
        pause = world.pauses.get(solver)
        if pause is not None:
            text = f"{solver or 'everything'} was paused{f' by {pause.by}' if pause.by else ''}"
            text += f": {pause.note}" if pause.note else ""
            command = f"solvisor resume {solver}" if solver else "solvisor resume"
            text = f"{text}; {command} lets it go on"
            findings.append(Finding(reason=Reason.PAUSED, label="paused", holds=True, text=text))
    return findings


def _finding(world: World, limits: Limits, want: Want, now_us: int) -> Finding:
    label = "cores" if want.reason is Reason.CPUS else want.reason.value
    holders: tuple[Holder, ...] = ()
    if not want.fits:
        held = [world.jobs[i] for i in world.holding if _takes(world.demands[i], want)]
        held.sort(key=lambda job: (job.current.started_us, job.seq))
        holders = tuple(
            Holder(job.id, job.spec.user, max(0, now_us - job.current.started_us) / 1e6) for job in held[:HOLDERS_MAX]
        )
    return Finding(
        reason=want.reason,
        label=label,
        holds=not want.fits,
        text=_in_words(want, limits),
        what=want.what,
        need=want.need,
        used=want.used,
        total=want.total,
        holders=holders,
    )


def _takes(demand: Demand, want: Want) -> bool:
    """Whether a job of this demand has some of what is wanted."""
    match want.reason:
        case Reason.LICENSE:
            return any(name == want.what for name, _ in demand.licenses)
        case Reason.SOLVER:
            return demand.solver == want.what
        case Reason.MEMORY:
            return demand.memory_bytes > 0
        case Reason.JOBS if not want.shared_by_all:
            return demand.batch == want.what
        case _:
            return True


def _order(world: World, limits: Limits, job: Job, held_back: bool) -> Finding:
    """Where it stands among those that wait for room."""
    place = world.place(job)
    heads = [queue[0] for queue in world.ready.values() if queue[0] < place]
    ahead = sum(queue.rank(place) for queue in world.ready.values())
    total = sum(len(queue) for queue in world.ready.values())
    text = f"{_ordinal(ahead + 1)} of {max(total, ahead + 1)}"
    decided = plan(world, limits)
    blocked = decided.blocker is not None and world.place(world.jobs[decided.blocker]) < place
    if blocked:
        text += f"; {decided.blocker} is the next to get cores or memory, and nobody overtakes it"
    elif heads:
        first = world.jobs[min(heads)[2]]
        who = ", ".join(filter(None, [first.spec.user, f"priority {first.spec.priority}" * bool(first.spec.priority)]))
        text += f"; first is {first.id}{f' ({who})' if who else ''}"
    crowded_out = not held_back and job.id not in decided.starts
    return Finding(reason=Reason.ORDER, label="order", holds=blocked or crowded_out, text=text)


def _ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``4th``, ``11th``."""
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _in_words(want: Want, limits: Limits) -> str:
    what, need, used, total = want.what, want.need, want.used, want.total
    match want.reason:
        case Reason.SOLVER if what not in limits.solver_jobs:
            return f"{what} is not in the configuration: add [solver.{what}], or cancel the job"
        case Reason.MEMORY:
            text = f"needs {describe_size(need)}, {describe_size(max(0, total - used))} of {describe_size(total)} free"
        case Reason.LICENSE:
            text = f"{what}: needs {need}, {used} of {total} in use"
        case Reason.SOLVER:
            text = f"{used} of at most {total} jobs of {what} are running"
        case Reason.JOBS if not want.shared_by_all:
            text = f"{used} of at most {total} jobs of its batch are running"
        case Reason.JOBS:
            text = f"{used} of at most {total} jobs are running"
        case _:
            text = f"needs {need}, {max(0, total - used)} of {total} free"
    return f"{text}; it can never start so: raise the limit, or cancel it and ask for less" if want.hopeless else text
