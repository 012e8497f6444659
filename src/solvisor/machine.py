"""Every transition of a job: what may happen in which state, and what follows.

Theory: ``TABLE`` says, for each state and event, which states may come next; ``apply`` looks there first, so an event
the table does not name raises ``IllegalEvent`` and changes nothing (so does one that fits the state and yet cannot be,
such as the end of a rest that never began). A handler then decides among the allowed states and names *effects*: things
for the engine to do once the change is recorded. An event of a superseded attempt (its token is not the current one) is
discarded whatever the state: a late result can never overwrite a newer one.

Rules: no I/O, no clock (instants come in with the event), no waiting. What is *wise* (who starts next) is the
scheduler's; here stands only what is *legal*. The diagrams in the docs are drawn from ``TABLE``. One file owns every
transition, if a long one: who reads what follows from an event need look nowhere else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
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
    Prioritize,
    Publish,
    Published,
    Resumed,
    ServerLent,
    ServerLost,
    SetAside,
    Skip,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
)
from .model import LICENSE_DENIED, Attempt, Cause, ExitFacts, Job, State, Verdict
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

STOPPED_BY_USER = "cancelled while it ran"
"""The message of such a job."""

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
    (Q, Prioritize): frozenset({Q}),
    (Q, Cancel): frozenset({X}),
    (Q, Skip): frozenset({K}),
    (Q, SetAside): frozenset({F}),
    (R, SetAside): frozenset({F}),
    (C, SetAside): frozenset({F}),
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
    for some in steps(world, event):
        effects += some
    return effects


def steps(world: World, event: Event) -> Iterator[list[Effect]]:
    """As ``apply``, job by job: one event may end 100,000 jobs, and others want to look at the world meanwhile.

    Nothing else may be applied until it is exhausted.
    """
    # One after the other, not one inside the other: chains of dependents are as long as users make them.
    outcomes = deque(_step(world, event))
    while outcomes:
        outcome = outcomes.popleft()
        if isinstance(outcome, Ended):
            for waiting in sorted(world.dependents.get(outcome.id, ())):
                outcomes += _step(world, DependencyOver(waiting, outcome.id, outcome.succeeded, outcome.now_us))
                yield []
        elif isinstance(outcome, BatchStopped):
            for member in queued_members(world, outcome.batch):
                message = world.batches[outcome.batch].stopped or ""
                outcomes += _step(world, Skip(member, message, outcome.now_us))
                yield []
        else:
            yield [outcome]


def queued_members(world: World, batch_id: str) -> list[str]:
    """The jobs of a batch that are queued, in the order in which they came."""
    roll = world.members.get(batch_id)
    members = [world.jobs[member] for member in roll.ids] if roll is not None else []
    return [job.id for job in sorted(members, key=lambda job: job.seq) if job.state is State.QUEUED]


def _step(world: World, event: Event) -> list[Effect]:
    """One event, one job."""
    job_id, kind = event.id, type(event)
    job = world.jobs.get(job_id)
    state = job.state if job else None
    if isinstance(event, Fenced) and not (job and job.attempts and job.attempts[-1].token == event.token):
        return [Discarded(job_id, kind.__name__, event.token)]
    allowed = TABLE.get((state, kind))
    if allowed is None:
        raise IllegalEvent(f"{kind.__name__} cannot happen to {job_id}, which is {state or 'unknown'}")
    obstacle = OBSTACLES.get(kind)
    if obstacle and (why := obstacle(world, job, event)):
        raise IllegalEvent(f"{kind.__name__} cannot happen to {job_id}: {why}")
    effects: list[Effect] = HANDLERS[kind](world, job, event)
    after = world.jobs.get(job_id)
    if (after.state if after else None) not in allowed:
        raise AssertionError(f"{kind.__name__} took {job_id} from {state} to {after and after.state}")
    return effects


# --- obstacles: what forbids an event although the state allows it, in words ------------------------------------------


def _against_accept(world: World, job: None, event: Accept) -> str | None:
    for other in event.unmet:
        if not world.is_open(other):
            return "a job it is to wait for is over or unknown"
    return None


def _against_dispatch(world: World, job: Job, event: Dispatch) -> str | None:
    if not world.is_ready(job):
        return "it waits for more than room"
    demand = world.demands[job.id]
    if demand.warm != (event.server is not None):
        return "it needs a warm server, and none else does"
    if demand.warm and event.server not in [idle.name for idle in world.idle_servers(demand.solver)]:
        return f"{event.server} cannot take it"
    return None


def _against_backoff_over(world: World, job: Job, event: BackoffOver) -> str | None:
    return "it does not rest" if job.backoff_seconds == 0 else None


def _against_dependency_over(world: World, job: Job, event: DependencyOver) -> str | None:
    return f"it does not wait for {event.other}" if event.other not in world.unmet.get(job.id, ()) else None


def _against_spawned(world: World, job: Job, event: Spawned) -> str | None:
    return "its process exists already" if job.current.pid is not None else None


def _against_launched(world: World, job: Job, event: Launched) -> str | None:
    if job.current.server is None:
        return "it has no warm server"
    return "its server has not begun with it" if job.current.pid is None else None


def _against_server_lost(world: World, job: Job, event: ServerLost) -> str | None:
    return "it has no warm server" if job.current.server is None else None


def _against_spawn_failed(world: World, job: Job, event: SpawnFailed) -> str | None:
    started = job.current.pid is not None and job.current.server is None
    return "its process exists already" if started else None


def _against_gone(world: World, job: Job, event: Gone) -> str | None:
    return "nothing of it was left running" if job.id not in world.holding else None


def _against_published(world: World, job: Job, event: Published) -> str | None:
    unfinished = job.id in world.holding or job.id in world.changed
    return "it still runs, or its end is not recorded yet" if unfinished else None


OBSTACLES: dict[type[Event], Callable[..., str | None]] = {
    Accept: _against_accept,
    Dispatch: _against_dispatch,
    BackoffOver: _against_backoff_over,
    DependencyOver: _against_dependency_over,
    Spawned: _against_spawned,
    Launched: _against_launched,
    ServerLost: _against_server_lost,
    SpawnFailed: _against_spawn_failed,
    Gone: _against_gone,
    Published: _against_published,
}


# --- handlers -------------------------------------------------------------------------------------------------------


def _accept(world: World, job: None, event: Accept) -> list[Effect]:
    intake = event.intake
    new = Job(event.id, world.next_seq, State.QUEUED, intake.spec, event.now_us)
    world.next_seq += 1
    if intake.spec.key is not None:
        world.keys[intake.spec.key] = event.id
    world.demands[event.id] = event.demand
    if event.batch is not None:
        world.join(new, event.batch)
    if intake.refusal is not None:
        code, message = intake.refusal
        return _finish(world, new, State.REJECTED, event.now_us, code=code, message=message)
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
    now_us = _later(job, event.now_us)
    attempt = Attempt(len(job.attempts) + 1, event.token, event.host, now_us, event.settings)
    if event.server is not None:
        attempt = replace(attempt, server=event.server, port=world.servers[event.server].port)
        fleet.apply(world, {}, ServerLent(event.server, job.id, event.now))
    world.refusals.begin(world.demands[job.id].licenses, job.id, event.now)
    world.put(
        replace(
            job,
            state=State.RUNNING,
            asked=job.spec,
            attempts=(*job.attempts, attempt),
            backoff_seconds=0.0,
            started_us=now_us if job.started_us is None else job.started_us,
        )
    )
    return [Start(job.id, event.token)]


def _spawned(world: World, job: Job, event: Spawned) -> list[Effect]:
    attempt = job.current
    limit = attempt.settings.timeout_seconds
    if limit is not None:
        world.arm(event.now + limit, event.token, job.id)
    facts = {"argv": event.argv, "pid": event.pid, "pid_start": event.pid_start, "boot_id": event.boot_id}
    world.put(replace(job, attempts=_attempts(job, **facts)))
    return []


def _launched(world: World, job: Job, event: Launched) -> list[Effect]:
    world.put(replace(job, attempts=_attempts(job, argv=event.argv, pid=event.pid, pid_start=event.pid_start)))
    return []


def _server_lost(world: World, job: Job, event: ServerLost) -> list[Effect]:
    """Another server, uncharged, once others had their turn; unless it may be the job that ends them all, or a user
    wanted it ended anyway.
    """
    world.release(job.id)
    world.refusals.end_trial(job.id)
    facts = ExitFacts(None, None, _later(job, event.now_us))
    if job.cancel:
        job = replace(job, attempts=_attempts(job, facts=facts, cause=Cause.LOST))
        return _finish(world, job, State.CANCELLED, event.now_us, message=STOPPED_BY_USER)
    if not event.reached:
        said = {"cause": Cause.LOST, "code": "server_gone", "message": event.message}
        return _requeue(world, replace(job, attempts=_attempts(job, facts=facts, **said)))
    said = {"cause": Cause.SERVER, "code": "server_died", "message": event.message}
    job = replace(job, attempts=_attempts(job, facts=facts, **said), interruptions=0)
    ended = sum(attempt.cause is Cause.SERVER for attempt in job.attempts)
    if ended >= POISON_SERVERS or _is_stopped(world, job):
        cause = Cause.POISON if ended >= POISON_SERVERS else Cause.SERVER
        text = f"{ended} warm servers broke down over it; the last: {event.message}" * (ended > 1) or event.message
        return _finish(world, job, State.FAILED, event.now_us, cause=cause, code="server_died", message=text)
    return _rest(world, job, SUSPECT_SECONDS * 4 ** (ended - 1), event.now)


def _spawn_failed(world: World, job: Job, event: SpawnFailed) -> list[Effect]:
    world.release(job.id)
    verdict = Verdict(Cause.SPAWN, event.reason, event.message)
    return _conclude(world, job, verdict, event.now, event.now_us)


def _deadline_passed(world: World, job: Job, event: DeadlinePassed) -> list[Effect]:
    world.put(replace(job, attempts=_attempts(job, cause=Cause.TIMEOUT)))
    return [Stop(job.id, event.token)]


def _cancel(world: World, job: Job, event: Cancel) -> list[Effect]:
    if job.state is State.QUEUED:
        world.dequeue(job)
        message = "cancelled before its next try" if job.attempts else "cancelled before it started"
        return _finish(world, job, State.CANCELLED, event.now_us, backoff_seconds=0.0, message=message)
    world.put(replace(job, cancel=True))
    return [Stop(job.id, job.current.token)] if job.state is State.RUNNING else []


def _exited(world: World, job: Job, event: Exited) -> list[Effect]:
    facts = replace(event.facts, finished_us=_later(job, event.facts.finished_us))
    if facts.unkillable:
        cause, message = Cause.UNKILLABLE, "its processes did not end after SIGKILL; its room stays taken until they do"
        job = replace(job, attempts=_attempts(job, facts=facts, cause=cause))
        return _finish(world, job, State.FAILED, event.now_us, cause=cause, message=message)
    timed_out = job.current.cause is Cause.TIMEOUT and facts.stopped
    if facts.stopped and not timed_out and not job.cancel:
        return _lose(world, job, facts, None, event.now_us)
    world.release(job.id)
    attempts = _attempts(job, facts=facts, cause=Cause.TIMEOUT if timed_out else None)
    world.put(replace(job, state=State.COLLECTING, attempts=attempts, interruptions=0))
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
    job = replace(job, attempts=_attempts(job, facts=facts, cause=Cause.LOST))
    if job.cancel:
        return _finish(world, job, State.CANCELLED, now_us, message=STOPPED_BY_USER)
    if interruptions_max is not None:
        job = replace(job, interruptions=job.interruptions + 1)
    if interruptions_max is not None and job.interruptions >= interruptions_max:
        message = f"interrupted {job.interruptions} times in a row by the end of the daemon or the machine"
        return _finish(world, job, State.FAILED, now_us, cause=Cause.LOST, message=message)
    return _requeue(world, job)


def _resumed(world: World, job: Job, event: Resumed) -> list[Effect]:
    """Collect on; unless that is what ends the daemon, again and again."""
    if event.ended:
        message = f"the daemon or the machine ended {event.ended} times in a row while its results were collected"
        return _finish(world, job, State.FAILED, event.now_us, cause=Cause.LOST, code="collecting", message=message)
    return [Collect(job.id, event.token)]


def _set_aside(world: World, job: Job, event: SetAside) -> list[Effect]:
    if job.state is State.QUEUED:
        world.dequeue(job)
    elif job.state is State.RUNNING:
        world.release(job.id)
    why: dict[str, Any] = {"cause": Cause.POISON, "code": event.code, "message": event.message}
    return _finish(world, job, State.FAILED, event.now_us, backoff_seconds=0.0, **why)


def _judged(world: World, job: Job, event: Judged) -> list[Effect]:
    return _conclude(world, job, event.verdict, event.now, event.now_us)


def _conclude(world: World, job: Job, verdict: Verdict, now: float, now_us: int) -> list[Effect]:
    """An attempt ended with a verdict: finish the job, or let it rest and try again."""
    said = {"cause": verdict.cause, "code": verdict.code, "message": verdict.message}
    job = replace(job, attempts=_attempts(job, **said), interruptions=0)
    world.refusals.end_trial(job.id)
    denied = verdict.cause is not None and verdict.code == LICENSE_DENIED
    if not denied and verdict.cause is not Cause.SPAWN:
        world.refusals.grant(_licenses(job))
    if job.cancel:
        return _finish(world, job, State.CANCELLED, now_us, verdict, message=STOPPED_BY_USER)
    if verdict.cause is None:
        return _finish(world, job, State.SUCCEEDED, now_us, verdict, **said)
    if denied and not _is_stopped(world, job):
        licenses = _licenses(job) or _server_licenses(world, job)
        world.refusals.refuse(licenses, verdict.message or "", now)
        in_a_row = len(job.attempts) - next((a.n for a in reversed(job.attempts) if a.code != LICENSE_DENIED), 0)
        return _rest(world, job, min(BACKOFF_MAX_SECONDS, FIRST_DENIAL_SECONDS * 2 ** min(in_a_row - 1, 20)), now)
    retry = job.current.settings.retry
    charged = sum(attempt.cause not in UNCHARGED and attempt.code != LICENSE_DENIED for attempt in job.attempts)
    if verdict.cause not in retry.on or charged > retry.max or _is_stopped(world, job):
        return _finish(world, job, State.FAILED, now_us, verdict, **said)
    longest = max(BACKOFF_MAX_SECONDS, retry.delay_seconds)
    rest = min(retry.delay_seconds * 2 ** min(charged - 1, DOUBLINGS_MAX), longest)
    return _rest(world, job, rest, now)


def _licenses(job: Job) -> tuple[tuple[str, int], ...]:
    """What its last attempt held: the configuration may say another thing by now."""
    return tuple([(name, count) for name, count in job.current.settings.licenses.items() if count])


def _server_licenses(world: World, job: Job) -> tuple[tuple[str, int], ...]:
    server = world.servers.get(job.current.server or "")
    return server.licenses if server is not None else ()


def _requeue(world: World, job: Job) -> list[Effect]:
    """Back to the queue for another try, as soon as there is room."""
    job = replace(job, state=State.QUEUED)
    world.put(job)
    world.enqueue(job)
    return []


def _rest(world: World, job: Job, rest: float, now: float) -> list[Effect]:
    """Back to the queue for another try, ``rest`` seconds later. Why this one failed stays with the attempt."""
    job = replace(job, state=State.QUEUED, backoff_seconds=rest)
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


def _prioritized(world: World, job: Job, event: Prioritize) -> list[Effect]:
    world.reorder(replace(job, given_priority=event.priority))
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
    return _finish(world, job, State.SKIPPED, now_us, backoff_seconds=0.0, code=code, message=message)


def _finish(
    world: World, job: Job, state: State, now_us: int, verdict: Verdict | None = None, **changes: Any
) -> list[Effect]:
    """Make the job terminal, with ``changes`` and its manifest, publish it once nothing of it runs, and tell those that
    wait for it.
    """
    job = replace(job, state=state, finished_us=_later(job, now_us), **changes)
    job = replace(job, manifest=manifest.build(job, verdict))
    world.put(job)
    effects: list[Effect] = [] if job.id in world.holding else [Publish(job.id)]
    if job.id in world.dependents:
        effects.append(Ended(job.id, state is State.SUCCEEDED, now_us))
    batch = world.batches.get(job.spec.batch or "") if state in _STOPPING else None
    if batch is not None and batch.on_error == "fail" and batch.stopped is None:
        world.put_batch(replace(batch, stopped=f"{job.id} was {state.value}, and its batch stops at the first failure"))
        effects.append(BatchStopped(job.id, batch.id, now_us))
    return effects


def _later(job: Job, now_us: int) -> int:
    """``now_us``, or the latest time that is noted of the job: where the clock was set back, its story is not."""
    if not job.attempts:
        return max(now_us, job.submitted_us)
    last = job.attempts[-1]
    noted = last.started_us if last.facts is None else max(last.started_us, last.facts.finished_us)
    return max(now_us, job.submitted_us, noted)


def _is_stopped(world: World, job: Job) -> bool:
    """Whether its batch starts nothing more: another try would be a start."""
    batch = world.batches.get(job.spec.batch or "")
    return batch is not None and batch.stopped is not None


def _attempts(job: Job, **changes: Any) -> tuple[Attempt, ...]:
    """Those of ``job``, with ``changes`` of the last one. One that is the same object is not recorded again."""
    *earlier, before = job.attempts
    after = replace(before, **changes)
    return job.attempts if after == before else (*earlier, after)


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
    SetAside: _set_aside,
    Gone: _gone,
    BackoffOver: _backoff_over,
    Prioritize: _prioritized,
    Cancel: _cancel,
    DependencyOver: _settled,
    Skip: _skipped,
    Published: _published,
}
