"""Who starts next, and why everybody else waits.

Rules: pure functions over the world, the limits and ``now`` (``due`` alone takes something out of the world: the heap
entries whose time has come). Order is priority, then first come. A job that waits for nothing but cores or memory is
overtaken by nobody, and one that waits for nothing but licenses by nobody who needs one of them: wide jobs never
starve. A job that waits for several kinds of things or for its solver's own limit, or that asks for more than there is,
lets others pass, for what they leave would not help it. ``plan`` looks only at the head of each queue (one queue per
distinct demand), so a pass costs what changed and not how many wait. ``explain`` uses the same admission function: what
it says is what holds. Whether a transition is legal is the machine's business, not ours. One file, if a long one: so
that who starts and why not cannot come to differ.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable

from msgspec import Struct

from . import overrides
from .disk import Disk
from .events import BackoffOver, DeadlinePassed, Event
from .manifest import rfc3339
from .model import LICENSE_DENIED, Cause, Demand, Job, Limits, Override, Reason, ServerState, State
from .provision import Provision, servers_most
from .units import describe_size
from .views import Finding, Holder
from .world import Place, Queue, Used, World

HOLDERS_MAX = 5
"""Jobs named as those that hold what another waits for."""


class Want(Struct, frozen=True):
    """One thing a demand asks for: ``need`` of ``total``, of which ``used`` are taken (counts, cores or bytes).

    ``rests``: a license that nobody is to try now.
    """

    reason: Reason
    what: str
    need: int
    used: int
    total: int
    rests: bool = False

    @property
    def fits(self) -> bool:
        """It can be had now."""
        return not self.need or (self.used + self.need <= self.total and not self.rests)

    @property
    def hopeless(self) -> bool:
        """It would not fit an idle machine either. Warm servers come and go: there may be one later."""
        return self.need > self.total and self.reason is not Reason.SERVER

    @property
    def shared_by_all(self) -> bool:
        """Nobody else could start either: the bound on jobs at once."""
        return self.reason is Reason.JOBS and self.what == JOBS


_OF_SERVERS = frozenset({Reason.SERVER, Reason.LICENSE})

_NAMED = frozenset({Reason.LICENSE, Reason.SOLVER, Reason.SERVER})

JOBS = "jobs"
"""What the bound on all jobs at once is called, beside those of single batches."""


class Plan(Struct, frozen=True):
    """What to do now.

    ``starts`` are the ids to start, in order. ``wake_at`` is when (monotonic seconds) time alone may change something.
    ``blocker`` is the job that waits only for cores or memory and that therefore nobody may overtake. ``servers`` are
    the solvers of which one more warm server is to be started, each once per server, and ``retire`` the servers to end
    with the reason.
    """

    starts: tuple[str, ...]
    wake_at: float | None
    blocker: str | None = None
    servers: tuple[str, ...] = ()
    retire: tuple[tuple[str, str], ...] = ()


def wants(demand: Demand, used: Used, limits: Limits) -> list[Want]:
    """Everything that ``demand`` asks for, beside what is ``used``."""
    if demand.solver not in limits.solver_jobs:
        return [Want(Reason.SOLVER, demand.solver, 1, 0, 0)]
    asked = _license_wants(demand.licenses, used, limits) if demand.licenses else []
    if demand.warm:
        asked += _server_wants(demand.solver, used, limits)
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


def _server_wants(solver: str, used: Used, limits: Limits) -> list[Want]:
    """An idle server of its solver; and, where there is none and could be one more, the licenses for that."""
    rule = limits.pools[solver]
    wanted = Want(Reason.SERVER, solver, 1, 0, used.idle[solver])
    if wanted.fits or used.coming[solver] or used.present[solver] >= used.caps.get(solver, rule.max):
        return [wanted]
    licenses = _license_wants(rule.licenses, used, limits)
    return [*(want for want in licenses if not want.fits), wanted]


def _license_wants(licenses: Iterable[tuple[str, int]], used: Used, limits: Limits) -> list[Want]:
    return [
        Want(
            reason=Reason.LICENSE,
            what=name,
            need=count,
            used=used.licenses[name],
            total=limits.licenses.get(name, 0),
            rests=name in used.resting,
        )
        for name, count in licenses
    ]


def admit(demand: Demand, used: Used, limits: Limits) -> list[Want]:
    """Everything that keeps ``demand`` from starting beside what is ``used``; empty if it fits."""
    return [want for want in wants(demand, used, limits) if not want.fits]


def due(world: World, now: float) -> list[Event]:
    """Take out of the heaps what time has brought: timeouts and ends of backoff. Stale entries vanish on the way."""
    events: list[Event] = []
    world.refusals.pass_time(now)
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


def plan(world: World, limits: Limits, now: float) -> Plan:
    """Decide who starts now. Only the heads of the queues are looked at, plus one place for each start."""
    heads = _heads(world, limits)
    if not (heads or world.servers or limits.pools):
        return Plan((), min(_wakes(world), default=None))
    starts: list[str] = []
    blocker = None
    promised: set[str] = set()  # licenses that are kept for a job or a server further ahead
    needed: dict[str, int] = {}  # of these
    used = world.used.copy()
    rooms = [used]  # and, once a job waits for a server that starts, one beside it with those jobs
    provision = Provision(world, limits, used, now)
    on_trial = None
    while heads and used.jobs < limits.max_jobs:  # else nobody would fit
        place, index, demand = heapq.heappop(heads)
        queue, job = world.ready[demand], world.jobs[place[2]]
        if is_suspect(job, limits):
            on_trial = on_trial or _on_trial(world, limits)
            if on_trial is not None:
                _look_further(heads, queue, index, demand)
                continue
        if promised:
            held_by_server = limits.pools[demand.solver].licenses if demand.warm else ()
            if any(name in promised for name, _ in (*demand.licenses, *held_by_server)):
                continue
        refusals = admit(demand, used, limits)
        if not refusals:
            starts.append(job.id)
            if is_suspect(job, limits):
                on_trial = job.id
            for room in rooms:
                room.add(demand)
                room.add_to_batch(demand)
            for name, _ in demand.licenses:
                if world.refusals.wants_trial(name):
                    used.resting.add(name)
            if demand.warm:
                provision.lend(demand.solver)
            _look_further(heads, queue, index, demand)
            continue
        if any(r.hopeless for r in refusals):
            continue
        reasons = {r.reason for r in refusals}
        goes_on = False
        if Reason.SERVER in reasons and reasons <= {Reason.SERVER, Reason.LICENSE}:
            if len(rooms) == 1:
                rooms.append(used.copy())
            ahead = rooms[1]
            fits = all(want.fits or want.reason in _OF_SERVERS for want in wants(demand, ahead, limits))
            goes_on = fits and provision.cover(demand.solver, promised)
            if goes_on:
                ahead.add(demand)
                ahead.add_to_batch(demand)
        elif Reason.SERVER in reasons and reasons <= {Reason.SERVER, Reason.CPUS, Reason.MEMORY}:
            if provision.cover(demand.solver, promised):  # its server comes up while it waits for room
                blocker = job.id
                break
        elif reasons <= {Reason.CPUS, Reason.MEMORY}:
            if demand.warm:
                provision.lend(demand.solver)  # its server stays while it waits for room
            blocker = job.id
            break
        elif reasons == {Reason.LICENSE}:
            promised |= {r.what for r in refusals}
        for refusal in refusals:
            if refusal.reason is Reason.LICENSE and refusal.what in promised:
                needed.setdefault(refusal.what, refusal.used + refusal.need - refusal.total)
        if goes_on:
            _look_further(heads, queue, index, demand)
    provision.finish(needed, promised, draining=world.draining)
    wake_at = min([*_wakes(world), *provision.wakes()], default=None)
    return Plan(tuple(starts), wake_at, blocker, tuple(provision.starts), tuple(provision.retire.items()))


_Head = tuple[Place, int, Demand]
"""A place, how many stand before it in its queue, and whose queue that is."""


def _heads(world: World, limits: Limits) -> list[_Head]:
    """A heap of the first place of each queue that something may start of; empty where nobody may start at all."""
    if world.used.jobs >= limits.max_jobs:
        return []
    if world.draining or world.wary or None in world.pauses or world.no_room is not None:
        return []
    heads = [(queue[0], 0, demand) for demand, queue in world.ready.items() if demand.solver not in world.pauses]
    heapq.heapify(heads)
    return heads


def _look_further(heads: list[_Head], queue: Queue, index: int, demand: Demand) -> None:
    """Behind the one at ``index`` of its queue."""
    if index + 1 < len(queue):
        heapq.heappush(heads, (queue[index + 1], index + 1, demand))


def _wakes(world: World) -> list[float]:
    """The instants at which time alone may change something about jobs."""
    wakes = world.refusals.wakes()
    if world.deadlines:
        wakes.append(world.deadlines[0][0])
    if world.backoff:
        wakes.append(world.backoff[0][0])
    return wakes


def is_suspect(job: Job, limits: Limits) -> bool:
    """Whether one more end of the daemon would be taken for this job's doing.

    Such jobs run one at a time: only the one that runs is charged, so the guilty does not take the others with it.
    """
    return job.interruptions > 0 and job.interruptions >= limits.interruptions_max - 1


def _on_trial(world: World, limits: Limits) -> str | None:
    """The suspect that runs."""
    return next((held for held in world.holding if is_suspect(world.jobs[held], limits)), None)


def reason(world: World, limits: Limits, job: Job) -> tuple[Reason, str | None]:
    """What a queued job waits for in the first place, and of which license, solver or batch."""
    if None in world.pauses or world.draining or world.wary:
        return Reason.PAUSED, None
    demand = world.demands[job.id]
    if demand.solver in world.pauses:
        return Reason.PAUSED, demand.solver
    if job.id in world.parked:
        return Reason.PAUSED, None
    if job.id in world.unmet:
        return Reason.DEPENDENCY, None
    if job.backoff_seconds > 0:
        return _why_it_rests(job), None
    return reason_of_demand(world, limits, demand)


def _why_it_rests(job: Job) -> Reason:
    return Reason.LICENSE if job.attempt is not None and job.attempt.code == LICENSE_DENIED else Reason.BACKOFF


def reason_of_demand(world: World, limits: Limits, demand: Demand) -> tuple[Reason, str | None]:
    """What jobs of this demand wait for, of those that only wait for room."""
    refusals = admit(demand, world.used, limits)
    first = next((refusal for refusal in refusals if refusal.hopeless), None)
    if first is None and world.no_room is not None:
        return Reason.DISK, None
    if not refusals:
        return Reason.ORDER, None
    first = first or refusals[0]
    named = first.reason in _NAMED or (first.reason is Reason.JOBS and first.what != JOBS)
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
        if _why_it_rests(job) is Reason.LICENSE:
            text = f"its last try got no license ({job.current.message}); {text}"
        findings.append(Finding(reason=_why_it_rests(job), label="rest", holds=True, text=text))
    if world.disk is not None and world.no_room is not None:
        findings.append(_disk_finding(world.disk, world.no_room))
    on_trial = _on_trial(world, limits)
    if on_trial is not None and is_suspect(job, limits):
        text = (
            f"the daemon ended {job.interruptions} times in a row while it ran; such jobs run one at a time, and "
            f"{on_trial} does"
        )
        findings.append(Finding(reason=Reason.ORDER, label="suspect", holds=True, text=text))
    for want in wants(world.demands[job_id], world.used, limits):
        if want.need and (not want.fits or not want.shared_by_all):
            findings.append(_finding(world, limits, want, now, now_us))
    findings.append(_order(world, limits, job, now, any(finding.holds for finding in findings)))
    return sorted(findings, key=lambda finding: not finding.holds)


def _stops(world: World, job: Job) -> list[Finding]:
    """Who said that nothing is to be started."""
    findings = []
    if world.draining:
        text = "the daemon is stopping; it starts nothing new"
        findings.append(Finding(reason=Reason.PAUSED, label="stopping", holds=True, text=text))
    if world.wary:
        text = "earlier daemons ended while they collected results; those are looked at first, one by one"
        findings.append(Finding(reason=Reason.PAUSED, label="recovering", holds=True, text=text))
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


def _disk_finding(disk: Disk, text: str) -> Finding:
    """That there is too little room on the disk, in bytes or in files."""
    numbers = (disk.reserve_bytes, disk.total_bytes - disk.free_bytes, disk.total_bytes)
    if disk.free_bytes >= disk.reserve_bytes:
        numbers = (disk.reserve_files, disk.total_files - disk.free_files, disk.total_files)
    need, used, total = numbers if not disk.read_only else (None, None, None)
    return Finding(reason=Reason.DISK, label="disk", holds=True, text=text, need=need, used=used, total=total)


def _finding(world: World, limits: Limits, want: Want, now: float, now_us: int) -> Finding:
    label = "cores" if want.reason is Reason.CPUS else want.reason.value
    if want.reason is Reason.SERVER:
        return _server_finding(world, limits, want, now, now_us)
    holders: list[Holder] = []
    if not want.fits and not want.hopeless and not want.rests:  # where room is not the matter, nobody has taken it
        held = [world.jobs[i] for i, demand in world.holding.items() if _takes(demand, want)]
        holders = [
            Holder(job.id, job.spec.user, max(0, now_us - job.current.started_us) / 1e6)
            for job in sorted(held, key=lambda job: (job.current.started_us, job.seq))
        ]
        if want.reason is Reason.LICENSE:
            servers = [s for s in world.servers.values() if any(name == want.what for name, _ in s.licenses)]
            holders += [Holder(s.name, None, max(0.0, now - s.born)) for s in servers]
    return Finding(
        reason=want.reason,
        label=label,
        holds=not want.fits,
        text=_in_words(world, want, limits) if not want.rests else rests_in_words(world, want.what, now),
        what=want.what,
        need=want.need,
        used=want.used,
        total=want.total,
        holders=tuple(holders[:HOLDERS_MAX]),
    )


def rests_in_words(world: World, license_name: str, now: float) -> str:
    """How it stands with a license that rests because it was refused."""
    refused = world.refusals[license_name]
    if refused.trial is not None:
        return (
            f"{license_name} was refused {refused.count} times in a row; {refused.trial} tries alone whether it is back"
        )
    rest = max(0.0, (refused.until or now) - now)
    text = f"{license_name} was refused {refused.count} times in a row and rests {rest:.0f} s more"
    return f"{text}; the last time: {refused.message}"


def _server_finding(world: World, limits: Limits, want: Want, now: float, now_us: int) -> Finding:
    """Why there is no warm server for it: how many there are, and what keeps another from starting."""
    solver = want.what
    pool = world.pool(solver)
    most = servers_most(limits, solver, pool.scale)
    servers = [server for server in world.servers.values() if server.solver == solver]
    busy = [s for s in servers if s.job is not None]
    starting = [s for s in servers if s.state is ServerState.STARTING]
    stuck = [s for s in servers if s.stuck]
    parts = [f"{len(busy)} of at most {most} servers of {solver} are busy" if busy else f"no server of {solver} is up"]
    if want.fits:
        parts = [f"a server of {solver} is ready"]
    elif pool.failed:
        parts = [
            f"the servers of {solver} failed too often: {pool.error}; solvisor servers restart {solver} tries again"
        ]
    elif pool.rests_until is not None and pool.rests_until > now:
        parts.append(f"the next one starts in {pool.rests_until - now:.1f} s, after: {pool.error}")
    elif starting:
        parts.append(f"{starting[0].name} is starting, {max(0.0, now - starting[0].born):.1f} s so far")
    if stuck:
        parts.append(f"{stuck[0].name} would not die")
    if pool.scale == 0:
        parts.append(f"it was scaled to 0; solvisor servers scale {solver} auto gives it servers again")
    holders = tuple(
        Holder(job.id, job.spec.user, max(0, now_us - job.current.started_us) / 1e6)
        for job in (world.jobs.get(server.job or "") for server in busy[:HOLDERS_MAX])
        if job is not None and job.attempt is not None
    )
    return Finding(
        reason=want.reason,
        label="server",
        holds=not want.fits,
        text="; ".join(parts),
        what=solver,
        need=1,
        used=len(busy),
        total=most,
        holders=() if want.fits or pool.failed or most == 0 else holders,
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


def _order(world: World, limits: Limits, job: Job, now: float, held_back: bool) -> Finding:
    """Where it stands among those that wait for room."""
    place = world.place(job)
    heads = [queue[0] for queue in world.ready.values() if queue[0] < place]
    ahead = sum(queue.rank(place) for queue in world.ready.values())
    total = sum(len(queue) for queue in world.ready.values())
    text = f"{_ordinal(ahead + 1)} of {max(total, ahead + 1)}"
    decided = plan(world, limits, now)
    blocked = decided.blocker is not None and world.place(world.jobs[decided.blocker]) < place
    if blocked:
        text += f"; {decided.blocker} is the next to get cores or memory, and nobody overtakes it"
    elif heads:
        first = world.jobs[min(heads)[2]]
        who = ", ".join(filter(None, [first.spec.user, f"priority {first.priority}" * bool(first.priority)]))
        text += f"; first is {first.id}{f' ({who})' if who else ''}"
    crowded_out = not held_back and job.id not in decided.starts
    return Finding(reason=Reason.ORDER, label="order", holds=blocked or crowded_out, text=text)


def _ordinal(number: int) -> str:
    """``1st``, ``2nd``, ``3rd``, ``4th``, ``11th``."""
    ending = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _in_words(world: World, want: Want, limits: Limits) -> str:
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
    override = None if want.fits else _limited(world, want)
    if override is not None:
        text = f"{text} ({_who_limited(override)})"
    if not want.hopeless:
        return text
    command = f" (solvisor limit {override.name} auto takes it back)" if override is not None else ""
    return f"{text}; it can never start so: raise the limit{command}, or cancel it and ask for less"


def _limited(world: World, want: Want) -> Override | None:
    """What a person set, if that is the limit of what is wanted."""
    match want.reason:
        case Reason.LICENSE:
            name = overrides.LICENSE + want.what
        case Reason.SOLVER:
            name = overrides.SOLVER + want.what
        case Reason.MEMORY:
            name = overrides.MEMORY
        case Reason.CPUS:
            name = overrides.CPUS
        case _:
            name = overrides.MAX_JOBS if want.shared_by_all else ""
    override = world.overrides.get(name)
    return override if override is not None and override.value == want.total else None


def _who_limited(override: Override) -> str:
    """``limited to 1 by ann since 2026-11-23 11:42 UTC, the other seat is for the workshop``."""
    value = describe_size(override.value) if override.name == overrides.MEMORY else str(override.value)
    since = rfc3339(override.since_us)[:16].replace("T", " ")
    who = f" by {override.by}" if override.by else ""
    return f"limited to {value}{who} since {since} UTC{f', {override.note}' if override.note else ''}"
