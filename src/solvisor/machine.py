"""Every transition of a job: what may happen in which state, and what follows.

Theory: ``TABLE`` says, for each state and event, which states may come next; ``apply`` looks there first, so an event
the table does not name raises ``IllegalEvent`` and changes nothing (so does one that fits the state and yet cannot be,
such as the end of a rest that never began). A handler then decides among the allowed states and names *effects*: things
for the engine to do once the change is recorded. An event of a superseded attempt (its token is not the current one) is
discarded whatever the state: a late result can never overwrite a newer one.

Rules: no I/O, no clock (instants come in with the event), no waiting. What is *wise* (who starts next) is the
scheduler's; here stands only what is *legal*. The diagrams in the docs are drawn from ``TABLE``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from . import fleet, manifest
from .errors import IllegalEvent
from .events import (
    Accept,
    BackoffOver,
    BatchStopped,
    Cancel,
    Collect,
    DeadlinePassed,
    DependencyOver,
    Discarded,
    Dispatch,
    Effect,
    Ended,
    Event,
    Exited,
    Fenced,
    Gone,
    Judged,
    Launched,
    Lost,
    Publish,
    Published,
    Resumed,
    ServerLent,
    ServerLost,
    Skip,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
)
from .model import LICENSE_DENIED, Attempt, Cause, Demand, ExitFacts, Job, State, Verdict
from .world import World

BACKOFF_MAX_SECONDS = 300.0
"""The rest between two tries stops doubling here; a longer ``retry.delay`` stays as it is."""

DOUBLINGS_MAX = 60
"""How often the rest doubles at most: any delay has reached the longest rest by then, and no float overflows."""

POISON_SERVERS = 3
"""A job that so many warm servers did not survive is given no other."""

SUSPECT_SECONDS = 0.5
"""The rest of a job whose server died, so that others go first; four times as long each time."""

FIRST_DENIAL_SECONDS = 5.0
"""The rest of such a job; it doubles each time in a row."""

UNCHARGED = frozenset({Cause.LOST, Cause.SERVER})
"""How attempts end that do not count towards ``retry.max``."""


# --- the table ------------------------------------------------------------------------------------------------------

Q, R, C = State.QUEUED, State.RUNNING, State.COLLECTING
S, F, X, J, K = State.SUCCEEDED, State.FAILED, State.CANCELLED, State.REJECTED, State.SKIPPED

TABLE: dict[tuple[State | None, type[Event]], frozenset[State | None]] = {
    (None, Accept): frozenset({Q, J, K}),
    (Q, Dispatch): frozenset({R}),
    (Q, BackoffOver): frozenset({Q}),
    (Q, DependencyOver): frozenset({Q, K}),
    (Q, Cancel): frozenset({X}),
    (Q, Skip): frozenset({K}),
    (R, Spawned): frozenset({R}),
    (R, Launched): frozenset({R}),
    (R, SpawnFailed): frozenset({Q, F, X}),
    (R, ServerLost): frozenset({Q, F, X}),
    (R, DeadlinePassed): frozenset({R}),
    (R, Cancel): frozenset({R}),
    (R, Lost): frozenset({Q, F, X}),
    (R, Exited): frozenset({C, Q, F}),
    (C, Resumed): frozenset({C, F}),
    (C, Cancel): frozenset({C}),
    (C, Judged): frozenset({S, F, X, Q}),
    (F, Gone): frozenset({F}),
    (S, Published): frozenset({None}),
    (F, Published): frozenset({None}),
    (X, Published): frozenset({None}),
    (J, Published): frozenset({None}),
    (K, Published): frozenset({None}),
}


def apply(world: World, event: Event) -> list[Effect]:
    """Let ``event`` happen and return what follows from it, in order.

    Raises ``IllegalEvent`` and changes nothing where the table has no entry, or where the job cannot have met it.
    """
    effects: list[Effect] = []
    # One after the other, not one inside the other: chains of dependents are as long as users make them.
    outcomes = deque(_step(world, event))
    while outcomes:
        outcome = outcomes.popleft()
        if isinstance(outcome, Ended):
            for waiting in sorted(world.dependents.get(outcome.id, ())):
                outcomes += _step(world, DependencyOver(waiting, outcome.id, outcome.succeeded, outcome.now_us))
        elif isinstance(outcome, BatchStopped):
            for member in queued_members(world, outcome.batch):
                message = world.batches[outcome.batch].stopped or ""
                outcomes += _step(world, Skip(member, message, outcome.now_us))
        else:
            effects.append(outcome)
    return effects


def queued_members(world: World, batch_id: str) -> list[str]:
    """The jobs of a batch that are queued, in the order in which they came."""
    roll = world.members.get(batch_id)
    members = [world.jobs[member] for member in roll.ids] if roll is not None else []
    return [job.id for job in sorted(members, key=lambda job: job.seq) if job.state is State.QUEUED]


def _step(world: World, event: Event) -> list[Effect]:
    """One event, one job."""
    job = world.jobs.get(event.id)
    if isinstance(event, Fenced) and (job is None or job.attempt is None or job.attempt.token != event.token):
        return [Discarded(event.id, type(event).__name__, event.token)]
    state = job.state if job else None
    allowed = TABLE.get((state, type(event)))
    if allowed is None:
        raise IllegalEvent(f"{type(event).__name__} cannot happen to {event.id}, which is {state or 'unknown'}")
    obstacle = _obstacle(world, event)
    if obstacle is not None:
        raise IllegalEvent(f"{type(event).__name__} cannot happen to {event.id}: {obstacle}")
    effects: list[Effect] = HANDLERS[type(event)](world, job, event)
    after = world.jobs.get(event.id)
    if (after.state if after else None) not in allowed:
        raise AssertionError(f"{type(event).__name__} took {event.id} from {state} to {after and after.state}")
    return effects


def _obstacle(world: World, event: Event) -> str | None:
    """What forbids ``event`` although the state allows it, in words."""
    match event:
        case Accept() if not all(world.is_open(other) for other in event.unmet):
            return "a job it is to wait for is over or unknown"
        case Dispatch() if not world.is_ready(world.jobs[event.id]):
            return "it waits for more than room"
        case BackoffOver() if world.jobs[event.id].backoff_seconds == 0:
            return "it does not rest"
        case DependencyOver() if event.other not in world.unmet.get(event.id, ()):
            return f"it does not wait for {event.other}"
        case Dispatch() if world.demands[event.id].warm != (event.server is not None):
            return "it needs a warm server, and none else does"
        case Dispatch() if event.server is not None and not _can_take(world, event.server, world.demands[event.id]):
            return f"{event.server} cannot take it"
        case Launched() | ServerLost() if world.jobs[event.id].current.server is None:
            return "it has no warm server"
        case Launched() if world.jobs[event.id].current.pid is None:
            return "its server has not begun with it"
        case Spawned() if world.jobs[event.id].current.pid is not None:
            return "its process exists already"
        case SpawnFailed() if world.jobs[event.id].current.pid is not None and not world.demands[event.id].warm:
            return "its process exists already"
        case Gone() if event.id not in world.holding:
            return "nothing of it was left running"
        case Published() if event.id in world.holding or event.id in world.changed:
            return "it still runs, or its end is not recorded yet"
    return None


def _can_take(world: World, server: str, demand: Demand) -> bool:
    return any(idle.name == server for idle in world.idle_servers(demand.solver))


# --- handlers -------------------------------------------------------------------------------------------------------


def _accept(world: World, job: None, event: Accept) -> list[Effect]:
    intake = event.intake
    new = Job(event.id, world.next_seq, State.QUEUED, intake.spec, event.now_us)
    world.next_seq += 1
    world.demands[event.id] = event.demand
    if event.batch is not None:
        world.join(new, event.batch)
    if intake.refusal is not None:
        code, message = intake.refusal
        return _finish(world, replace(new, code=code, message=message), State.REJECTED, event.now_us)
    if event.failed_dependency is not None:
        return _skip(world, new, *_unmet(event.failed_dependency), event.now_us)
    stopped = world.batches[event.batch.id].stopped if event.batch is not None else None
    if stopped is not None:
        return _skip(world, new, "batch", stopped, event.now_us)
    world.put(new)
    if event.unmet:
        world.wait_for(new, event.unmet)
    else:
        world.enqueue(new)
    return []


def _dispatch(world: World, job: Job, event: Dispatch) -> list[Effect]:
    world.dequeue(job)
    world.hold(job.id)
    attempt = Attempt(len(job.attempts) + 1, event.token, event.host, event.now_us, event.settings)
    if event.server is not None:
        attempt = replace(attempt, server=event.server, port=world.servers[event.server].port)
        fleet.apply(world, {}, ServerLent(event.server, job.id, event.now))
    world.refusals.begin(world.demands[job.id].licenses, job.id, event.now)
    world.put(
        replace(
            job,
            state=State.RUNNING,
            attempts=(*job.attempts, attempt),
            backoff_seconds=0.0,
            started_us=event.now_us if job.started_us is None else job.started_us,
        )
    )
    return [Start(job.id, event.token)]


def _spawned(world: World, job: Job, event: Spawned) -> list[Effect]:
    attempt = job.current
    limit = attempt.settings.timeout_seconds
    if limit is not None:
        world.arm(event.now + limit, event.token, job.id)
    facts = {"argv": event.argv, "pid": event.pid, "pid_start": event.pid_start, "boot_id": event.boot_id}
    world.put(_with_attempt(job, **facts))
    return []


def _launched(world: World, job: Job, event: Launched) -> list[Effect]:
    world.put(_with_attempt(job, argv=event.argv, pid=event.pid, pid_start=event.pid_start))
    return []


def _server_lost(world: World, job: Job, event: ServerLost) -> list[Effect]:
    """Another server, uncharged, once others had their turn; unless it may be the job that ends them all, or a user
    wanted it ended anyway.
    """
    world.release(job.id)
    world.refusals.end_trial(job.id)
    job = _with_attempt(job, facts=ExitFacts(None, None, event.now_us))
    if job.cancel:
        job = _with_attempt(job, cause=Cause.LOST)
        return _finish(world, replace(job, message="cancelled while it ran"), State.CANCELLED, event.now_us)
    if not event.reached:
        job = _with_attempt(job, cause=Cause.LOST, code="server_gone", message=event.message)
    else:
        job = _with_attempt(
            replace(job, interruptions=0), cause=Cause.SERVER, code="server_died", message=event.message
        )
        ended = sum(attempt.cause is Cause.SERVER for attempt in job.attempts)
        if ended >= POISON_SERVERS or _is_stopped(world, job):
            cause = Cause.POISON if ended >= POISON_SERVERS else Cause.SERVER
            text = f"{ended} warm servers broke down over it; the last: {event.message}" * (ended > 1) or event.message
            job = replace(job, cause=cause, code="server_died", message=text)
            return _finish(world, job, State.FAILED, event.now_us)
        return _rest(world, job, SUSPECT_SECONDS * 4 ** (ended - 1), event.now)
    job = replace(job, state=State.QUEUED)
    world.put(job)
    world.enqueue(job)
    return []


def _spawn_failed(world: World, job: Job, event: SpawnFailed) -> list[Effect]:
    world.release(job.id)
    verdict = Verdict(Cause.SPAWN, event.reason, event.message)
    return _conclude(world, replace(job, interruptions=0), verdict, event.now, event.now_us)


def _deadline_passed(world: World, job: Job, event: DeadlinePassed) -> list[Effect]:
    world.put(_with_attempt(job, cause=Cause.TIMEOUT))
    return [Stop(job.id, event.token)]


def _cancel(world: World, job: Job, event: Cancel) -> list[Effect]:
    if job.state is State.QUEUED:
        world.dequeue(job)
        message = "cancelled before its next try" if job.attempts else "cancelled before it started"
        job = replace(job, backoff_seconds=0.0, message=message)
        return _finish(world, job, State.CANCELLED, event.now_us)
    world.put(replace(job, cancel=True))
    return [Stop(job.id, job.current.token)] if job.state is State.RUNNING else []


def _exited(world: World, job: Job, event: Exited) -> list[Effect]:
    facts = event.facts
    if facts.unkillable:
        cause, message = Cause.UNKILLABLE, "its processes did not end after SIGKILL; its room stays taken until they do"
        job = _with_attempt(job, facts=facts, cause=cause)
        return _finish(world, replace(job, cause=cause, message=message), State.FAILED, event.now_us)
    timed_out = job.current.cause is Cause.TIMEOUT and facts.stopped
    if facts.stopped and not timed_out and not job.cancel:
        return _lose(world, job, facts, None, event.now_us)
    world.release(job.id)
    job = _with_attempt(job, facts=facts, cause=Cause.TIMEOUT if timed_out else None)
    world.put(replace(job, state=State.COLLECTING, interruptions=0))
    return [Collect(job.id, event.token)]


def _lost(world: World, job: Job, event: Lost) -> list[Effect]:
    return _lose(world, job, None, event.interruptions_max, event.now_us)


def _lose(world: World, job: Job, facts: ExitFacts | None, interruptions_max: int | None, now_us: int) -> list[Effect]:
    """Back to the queue, uncharged; unless that happened too often in a row, or a user wanted it ended anyway.

    Without ``interruptions_max`` the stop was an orderly one, and is not counted: only what ends the daemon by itself,
    again and again, may be this job's doing.
    """
    world.release(job.id)
    world.refusals.end_trial(job.id)
    job = _with_attempt(job, facts=facts, cause=Cause.LOST)
    if job.cancel:
        return _finish(world, replace(job, message="cancelled while it ran"), State.CANCELLED, now_us)
    if interruptions_max is not None:
        job = replace(job, interruptions=job.interruptions + 1)
    if interruptions_max is not None and job.interruptions >= interruptions_max:
        message = f"interrupted {job.interruptions} times in a row by the end of the daemon or the machine"
        return _finish(world, replace(job, cause=Cause.LOST, message=message), State.FAILED, now_us)
    job = replace(job, state=State.QUEUED)
    world.put(job)
    world.enqueue(job)
    return []


def _resumed(world: World, job: Job, event: Resumed) -> list[Effect]:
    """Collect on; unless that may be what ends the daemon, again and again."""
    job = replace(job, interruptions=job.interruptions + 1)
    if job.interruptions >= event.interruptions_max:
        message = f"the daemon or the machine ended {job.interruptions} times in a row while its results were collected"
        return _finish(world, replace(job, cause=Cause.LOST, message=message), State.FAILED, event.now_us)
    world.put(job)
    return [Collect(job.id, event.token)]


def _judged(world: World, job: Job, event: Judged) -> list[Effect]:
    return _conclude(world, replace(job, interruptions=0), event.verdict, event.now, event.now_us)


def _conclude(world: World, job: Job, verdict: Verdict, now: float, now_us: int) -> list[Effect]:
    """An attempt ended with a verdict: finish the job, or let it rest and try again."""
    job = _with_attempt(job, cause=verdict.cause, code=verdict.code, message=verdict.message)
    world.refusals.end_trial(job.id)
    denied = verdict.cause is not None and verdict.code == LICENSE_DENIED
    if not denied and verdict.cause is not Cause.SPAWN:
        world.refusals.grant(world.demands[job.id].licenses)
    if job.cancel:
        message = "cancelled while it ran"
        return _finish(world, replace(job, message=message), State.CANCELLED, now_us, verdict)
    job = replace(job, cause=verdict.cause, code=verdict.code, message=verdict.message)
    if verdict.cause is None:
        return _finish(world, job, State.SUCCEEDED, now_us, verdict)
    if denied and not _is_stopped(world, job):
        licenses = world.demands[job.id].licenses or _server_licenses(world, job)
        world.refusals.refuse(licenses, verdict.message or "", now)
        in_a_row = len(job.attempts) - next((a.n for a in reversed(job.attempts) if a.code != LICENSE_DENIED), 0)
        return _rest(world, job, min(BACKOFF_MAX_SECONDS, FIRST_DENIAL_SECONDS * 2 ** min(in_a_row - 1, 20)), now)
    retry = job.current.settings.retry
    charged = sum(attempt.cause not in UNCHARGED and attempt.code != LICENSE_DENIED for attempt in job.attempts)
    if verdict.cause not in retry.on or charged > retry.max or _is_stopped(world, job):
        return _finish(world, job, State.FAILED, now_us, verdict)
    longest = max(BACKOFF_MAX_SECONDS, retry.delay_seconds)
    rest = min(retry.delay_seconds * 2 ** min(charged - 1, DOUBLINGS_MAX), longest)
    return _rest(world, job, rest, now)


def _server_licenses(world: World, job: Job) -> tuple[tuple[str, int], ...]:
    server = world.servers.get(job.current.server or "")
    return server.licenses if server is not None else ()


def _rest(world: World, job: Job, rest: float, now: float) -> list[Effect]:
    """Back to the queue for another try, ``rest`` seconds later. Why this one failed stays with the attempt."""
    job = replace(job, state=State.QUEUED, backoff_seconds=rest, cause=None, code=None, message=None)
    world.put(job)
    if rest > 0:
        world.wait_until(job, now + rest)
    else:
        world.enqueue(job)
    return []


def _gone(world: World, job: Job, event: Gone) -> list[Effect]:
    world.release(job.id)
    return [Publish(job.id)]


def _backoff_over(world: World, job: Job, event: BackoffOver) -> list[Effect]:
    job = replace(job, backoff_seconds=0.0)
    world.put(job)
    world.enqueue(job)
    return []


def _settled(world: World, job: Job, event: DependencyOver) -> list[Effect]:
    if not event.succeeded:
        world.dequeue(job)
        return _skip(world, job, *_unmet(event.other), event.now_us)
    left = world.unmet[job.id] - {event.other}
    world.dequeue(job)
    if left:
        world.wait_for(job, left)
    else:
        world.enqueue(job)
    return []


def _skipped(world: World, job: Job, event: Skip) -> list[Effect]:
    world.dequeue(job)
    return _skip(world, job, "batch", event.message, event.now_us)


def _published(world: World, job: Job, event: Published) -> list[Effect]:
    world.drop(job.id)
    return []


def _unmet(other: str) -> tuple[str, str]:
    return "dependency", f"{other}, which it waited for, did not succeed"


def _skip(world: World, job: Job, code: str, message: str, now_us: int) -> list[Effect]:
    job = replace(job, backoff_seconds=0.0, code=code, message=message)
    return _finish(world, job, State.SKIPPED, now_us)


def _finish(world: World, job: Job, state: State, now_us: int, verdict: Verdict | None = None) -> list[Effect]:
    """Make the job terminal with its manifest, publish it once nothing of it runs, and tell those that wait for it."""
    job = replace(job, state=state, finished_us=now_us)
    job = replace(job, manifest=manifest.build(job, verdict))
    world.put(job)
    after: list[Effect] = [Ended(job.id, state is State.SUCCEEDED, now_us)]
    batch = world.batches.get(job.spec.batch or "")
    if batch is not None and batch.on_error == "fail" and batch.stopped is None and state in _STOPPING:
        world.put_batch(replace(batch, stopped=f"{job.id} was {state.value}, and its batch stops at the first failure"))
        after.append(BatchStopped(job.id, batch.id, now_us))
    return after if job.id in world.holding else [Publish(job.id), *after]


def _is_stopped(world: World, job: Job) -> bool:
    """Whether its batch starts nothing more: another try would be a start."""
    batch = world.batches.get(job.spec.batch or "")
    return batch is not None and batch.stopped is not None


def _with_attempt(job: Job, **changes: Any) -> Job:
    return replace(job, attempts=(*job.attempts[:-1], replace(job.current, **changes)))


_STOPPING = frozenset({State.FAILED, State.REJECTED})
"""Ends of a job at which its batch may stop; who cancels one job does not mean the others."""

HANDLERS: dict[type[Event], Callable[..., list[Effect]]] = {
    Accept: _accept,
    Dispatch: _dispatch,
    Spawned: _spawned,
    Launched: _launched,
    ServerLost: _server_lost,
    SpawnFailed: _spawn_failed,
    DeadlinePassed: _deadline_passed,
    Exited: _exited,
    Judged: _judged,
    Lost: _lost,
    Resumed: _resumed,
    Gone: _gone,
    BackoffOver: _backoff_over,
    Cancel: _cancel,
    DependencyOver: _settled,
    Skip: _skipped,
    Published: _published,
}
