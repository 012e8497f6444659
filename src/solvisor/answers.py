"""What the world looks like from outside: records turned into the public shapes of ``views``.

Rules: pure functions; ``now_us`` is UTC microseconds, ``now`` monotonic seconds. A live job that ended is shown as
collecting, because its result is not in its place yet; one whose processes would not die is the exception, for that
place it will not reach soon. Cost is that of what is shown: nothing here walks all queued jobs.
"""

from __future__ import annotations

import shlex
from collections import Counter
from typing import Any

from .machine import UNCHARGED
from .manifest import Manifest, attempt_facts, rfc3339
from .model import (
    LICENSE_DENIED,
    TARGETS,
    TERMINAL,
    Attempt,
    Batch,
    Cause,
    Job,
    Limits,
    Pause,
    Reason,
    Server,
    ServerState,
    Settings,
    State,
)
from .scheduler import admit, explain, reason, reason_of_demand, rests_in_words
from .views import BatchView, Explanation, JobRow, JobView, Level, PoolRow, PoolState, PoolView, ServerRow, Waiting
from .views import Pause as PauseView
from .world import PoolFacts, World

REASONS = {
    Reason.ORDER: "waits for its turn. Nothing is wrong.",
    Reason.JOBS: "waits for a free place. Nothing is wrong.",
    Reason.CPUS: "waits for cores. Nothing is wrong.",
    Reason.MEMORY: "waits for memory. Nothing is wrong.",
    Reason.LICENSE: "waits for a license. Nothing is wrong.",
    Reason.SERVER: "waits for a warm server. Nothing is wrong.",
    Reason.DEPENDENCY: "waits for another job. Nothing is wrong.",
    Reason.PAUSED: "waits because it was paused.",
    Reason.BACKOFF: "rests before its next try.",
    Reason.HOURS: "waits for its hours. Nothing is wrong.",
    Reason.DISK: "waits for free disk space.",
    Reason.SOLVER: "waits for a place at its solver. Nothing is wrong.",
}

HEADLINES = {
    "stopping": "waits for the next start of the daemon, which is stopping.",
    "parked": "waits for a daemon that stays.",
}

REFUSED = "waits for a license that its license server refuses; it is tried again by itself."

_BROKE_DOWN = (
    "warm servers broke down over it: solvisor logs {id} shows what it said; solvisor try {solver} {input} shows "
    "whether the input or the solver is at fault"
)

NEXT = {
    Cause.SPAWN: "mend the solver's table or its installation (solvisor doctor), then: solvisor retry {id}",
    Cause.TIMEOUT: 'give it more time (timeout = "..." in a job file or in the solver\'s table) and submit it again',
    Cause.LOST: "nothing is wrong with the job itself; run it again: solvisor retry {id}",
    Cause.SERVER: _BROKE_DOWN,
    Cause.POISON: _BROKE_DOWN,
    Cause.UNKILLABLE: "look at its processes; its room stays taken until they are gone",
}
NEXT_ELSE = "correct the input and submit it again; run it unchanged: solvisor retry {id}"


def shown_state(job: Job, *, live: bool) -> State:
    """The state that is told; ``live``: the job is in the world, so its result is not in its place yet."""
    if live and job.state in TERMINAL and job.cause is not Cause.UNKILLABLE:
        return State.COLLECTING
    return job.state


def folder_of(job: Job, *, live: bool) -> str:
    """Where its folder lies, relative to the home."""
    return f"work/{job.id}" if live else f"{TARGETS[job.state]}/{job.id}"


def row(world: World, limits: Limits, job: Job, now_us: int) -> JobRow:
    """One job in one line; ``job`` is the world's own record where it is live."""
    return JobRow(**_row(world, limits, job, now_us))


def _row(world: World, limits: Limits, job: Job, now_us: int) -> dict[str, Any]:
    live = job.id in world.jobs
    state = shown_state(job, live=live)
    spec = job.spec
    over = state in TERMINAL
    began, ended = job.started_us, job.finished_us if over else None
    ran = _run_us(job, state, now_us)
    return {
        "id": job.id,
        "name": spec.name,
        "state": state,
        "solver": spec.solver,
        "user": spec.user,
        "project": spec.project,
        "batch": spec.batch,
        "retry_of": spec.retry_of,
        "reason": reason(world, limits, job)[0] if state is State.QUEUED else None,
        "cause": job.cause if over else None,
        "code": job.code if over else None,
        "message": job.message if over else None,
        "tries": len(job.attempts),
        "submitted": rfc3339(job.submitted_us),
        "started": None if began is None else rfc3339(began),
        "finished": None if ended is None else rfc3339(ended),
        "queue_seconds": max(0, (began or ended or now_us) - job.submitted_us) / 1e6,
        "run_seconds": None if ran is None else max(0, ran) / 1e6,
        "folder": folder_of(job, live=live),
    }


def _run_us(job: Job, state: State, now_us: int) -> int | None:
    """How long its last try ran, or has been running; ``None`` where there is none that did, and while it waits."""
    last = job.attempt
    if last is None or state is State.QUEUED:
        return None
    if last.facts is not None:
        return last.facts.finished_us - last.started_us
    return now_us - last.started_us if state is State.RUNNING else None


def view(
    world: World, limits: Limits, job: Job, settings: Settings | None, manifest: Manifest | None, now_us: int
) -> JobView:
    """One job with all that is known; ``settings`` are those that an attempt would get now, if its solver is known.

    ``manifest`` is that of a finished one, if it can be read.
    """
    spec = job.spec
    force = job.attempt.settings if job.attempt else settings
    return JobView(
        **_row(world, limits, job, now_us),
        kind=force.kind if force else "",
        primary=spec.primary,
        source=f"{spec.source.via}: {spec.source.path}",
        priority=spec.priority,
        key=spec.key,
        after=spec.after,
        params=spec.params,
        timeout_seconds=force.timeout_seconds if force else spec.timeout_seconds,
        cpus=force.cpus if force else 0,
        memory_bytes=force.memory_bytes if force else 0,
        licenses=force.licenses if force else {},
        tries_max=1 + (force.retry.max if force else 0),
        cancel=job.cancel,
        command=job.attempt.argv if job.attempt else (),
        attempts=tuple(map(attempt_facts, job.attempts)),
        tries_charged=sum(_is_charged(attempt) for attempt in job.attempts),
        checks=manifest.checks if manifest else (),
        result=manifest.result if manifest else None,
        log_truncated=manifest.log_truncated if manifest else False,
    )


def _is_charged(attempt: Attempt) -> bool:
    return attempt.cause not in UNCHARGED and attempt.code != LICENSE_DENIED


def explanation(world: World, limits: Limits, view: JobView, now: float, now_us: int) -> Explanation:
    """Why a job is where it is, as a colleague would say it."""
    match view.state:
        case State.QUEUED:
            findings = tuple(explain(world, limits, view.id, now, now_us))
            first = next((finding for finding in findings if finding.holds), None)
            if first is None:
                headline = "starts now."
            elif first.label in HEADLINES:
                headline = HEADLINES[first.label]
            elif first.reason is Reason.SERVER:
                headline = _server_headline(_facts(world, view.solver), now)
            elif first.label == "rest" and first.reason is Reason.LICENSE:
                headline = REFUSED
            elif first.need is not None and first.total is not None and first.need > first.total:
                headline = "can never start as things are."
            elif first.reason is Reason.LICENSE and first.what in world.used.resting:
                headline = REFUSED
            else:
                headline = REASONS[first.reason]
            return Explanation(job=view, headline=headline, findings=findings)
        case State.RUNNING:
            left = f", at most {view.timeout_seconds:g} s" if view.timeout_seconds is not None else ", without a limit"
            headline = f"runs: {_tries(view)}{left}."
            if view.cancel:
                headline = "is being stopped: it was cancelled."
            return Explanation(job=view, headline=headline)
        case State.COLLECTING:
            return Explanation(job=view, headline="has ended; its results are being judged and made safe.")
        case State.SUCCEEDED:
            seconds = f" in {_in_words(view.run_seconds)}" if view.run_seconds is not None else ""
            return Explanation(job=view, headline=f"SUCCEEDED{seconds}.", checks=view.checks)
        case State.FAILED:
            seconds = f" after {_in_words(view.run_seconds)}" if view.run_seconds is not None else ""
            tries = f", {_tries(view)}" if view.tries else ""
            todo = NEXT.get(view.cause, NEXT_ELSE) if view.cause is not None else NEXT_ELSE
            todo = todo.format(id=view.id, solver=view.solver, input=shlex.quote(view.primary))
            return Explanation(job=view, headline=f"FAILED{seconds}{tries}", checks=view.checks, next=todo)
        case _:
            again = None if view.state is State.REJECTED else f"to run it after all: solvisor retry {view.id}"
            return Explanation(job=view, headline=view.state.value.upper(), checks=view.checks, next=again)


def _tries(view: JobView) -> str:
    """``try 2 of 3``; where some were not the job's fault ``try 3 (2 charged of 3)``."""
    if view.tries == view.tries_charged:
        return f"try {view.tries} of {max(view.tries, view.tries_max)}"
    charged = f" ({view.tries_charged} charged of {view.tries_max})" if view.tries_charged else ""
    return f"try {view.tries}{charged}"


def _server_headline(facts: PoolFacts, now: float) -> str:
    """What a job waits for that has no warm server, and whether that is as it should be."""
    if facts.failed:
        return "waits for a warm server, and none is started any more."
    if facts.scale == 0:
        return "waits for a warm server, and somebody scaled them to 0."
    if _pool_state(facts, now) == "backoff":
        return "waits for a warm server; the last one failed, and the next one is started soon."
    return REASONS[Reason.SERVER]


def _in_words(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def waiting_for(world: World, limits: Limits) -> tuple[Waiting, ...]:
    """How many queued jobs wait for what, the largest number first.

    Those of a paused solver that also rest or wait for others are counted as doing that.
    """
    waiting = world.states[State.QUEUED]
    if world.draining or None in world.pauses:
        return (Waiting(Reason.PAUSED, None, waiting),) if waiting else ()
    counts: Counter[tuple[Reason, str | None]] = Counter()
    for demand, queue in world.ready.items():
        if demand.solver in world.pauses:
            counts[Reason.PAUSED, demand.solver] += len(queue)
        else:
            counts[reason_of_demand(world, limits, demand)] += len(queue)
    counts[Reason.PAUSED, None] = len(world.parked)
    counts[Reason.DEPENDENCY, None] = len(world.unmet)
    counts[Reason.BACKOFF, None] = waiting - counts.total()  # every queued job waits in exactly one place
    return tuple(Waiting(why, what, jobs) for (why, what), jobs in counts.most_common() if jobs)


def levels(world: World, limits: Limits) -> dict[str, Any]:
    """How much of jobs, cores, memory and licenses is taken, as ``Status`` has it."""
    used = world.used
    names = sorted({*limits.licenses, *(name for name, count in used.licenses.items() if count)})
    return {
        "jobs": Level(used.jobs, limits.max_jobs),
        "cpus": Level(used.cpus, limits.cpus),
        "memory_bytes": Level(used.memory_bytes, limits.memory_bytes),
        "licenses": {name: Level(used.licenses[name], limits.licenses.get(name, 0)) for name in names},
    }


def pauses(world: World) -> tuple[PauseView, ...]:
    """The pauses in force, the one of everything first."""
    found = sorted(world.pauses.values(), key=lambda pause: pause.solver or "")
    return tuple(map(_pause, found))


def _pause(pause: Pause) -> PauseView:
    return PauseView(pause.solver, pause.by, rfc3339(pause.since_us), pause.note)


# --- warm servers ---------------------------------------------------------------------------------------------------


def servers(world: World, limits: Limits, now: float) -> tuple[PoolView, ...]:
    """All warm servers, by their solvers; also those solvers that have none just now."""
    return tuple(pool(world, limits, solver, now) for solver in sorted(limits.pools))


def pool(world: World, limits: Limits, solver: str, now: float) -> PoolView:
    """The warm servers of ``solver``, which is one that may have some; the oldest first."""
    rule, facts = limits.pools[solver], _facts(world, solver)
    own = sorted(_servers_of(world, solver), key=lambda server: server.born)
    licenses: Counter[str] = Counter()
    for server in own:
        licenses.update(dict(server.licenses))
    rests = facts.rests_until if _pool_state(facts, now) == "backoff" else None
    return PoolView(
        **_pool_row(world, limits, solver, now),
        min=rule.min,
        max=rule.max,
        scale=facts.scale,
        rests_seconds=None if rests is None else rests - now,
        licenses=dict(licenses),
        servers=tuple(_server(server, now) for server in own),
    )


def pool_rows(world: World, limits: Limits, now: float) -> tuple[PoolRow, ...]:
    """The solvers that have warm servers, a line each."""
    return tuple(PoolRow(**_pool_row(world, limits, solver, now)) for solver in sorted(limits.pools))


def server_problems(world: World, limits: Limits) -> list[str]:
    """Sentences about what is wrong with warm servers, and what to do."""
    problems = []
    for solver in sorted(limits.pools):
        facts = _facts(world, solver)
        if facts.failed:
            problems.append(
                f"the servers of {solver} failed {len(facts.ends)} times in a row: {facts.error}; "
                f"correct it, then solvisor servers restart {solver}"
            )
    stuck = (server for server in world.servers.values() if server.stuck)
    text = "the processes of {} (pid {}) would not die; its port and licenses stay taken until they do"
    return [*problems, *(text.format(server.name, server.pid) for server in stuck)]


def license_problems(world: World, now: float) -> list[str]:
    """Sentences about licenses that nobody is given, for they were refused."""
    return [f"license {rests_in_words(world, name, now)}" for name in sorted(world.used.resting)]


def _pool_row(world: World, limits: Limits, solver: str, now: float) -> dict[str, Any]:
    rule, facts = limits.pools[solver], _facts(world, solver)
    own = _servers_of(world, solver)
    states = Counter(server.state for server in own)
    wanted = max(rule.min, world.used.servers[solver]) if facts.scale is None else facts.scale
    return {
        "solver": solver,
        "state": _pool_state(facts, now),
        "wanted": 0 if world.draining else wanted,
        "starting": states[ServerState.STARTING],
        "up": sum(server.pid is not None for server in own),
        "ready": states[ServerState.READY] + states[ServerState.BUSY],
        "busy": states[ServerState.BUSY],
        "most": rule.max if facts.scale is None else facts.scale,
        "waiting": _waiting_for_server(world, limits, solver),
        "failures": len(facts.ends),
        "error": facts.error,
    }


def _pool_state(facts: PoolFacts, now: float) -> PoolState:
    if facts.failed:
        return "failed"
    return "backoff" if facts.rests_until is not None and facts.rests_until > now else "ok"


def _waiting_for_server(world: World, limits: Limits, solver: str) -> int:
    if world.draining or None in world.pauses or solver in world.pauses:
        return 0
    return sum(
        len(queue)
        for demand, queue in world.ready.items()
        if demand.solver == solver and any(w.reason is Reason.SERVER for w in admit(demand, world.used, limits))
    )


def _facts(world: World, solver: str) -> PoolFacts:
    return world.pools.get(solver) or PoolFacts()


def _servers_of(world: World, solver: str) -> list[Server]:
    return [server for server in world.servers.values() if server.solver == solver]


def _server(server: Server, now: float) -> ServerRow:
    whys = [server.why, "its processes would not die" if server.stuck else None]
    return ServerRow(
        name=server.name,
        solver=server.solver,
        state=server.state,
        port=server.port,
        pid=server.pid,
        jobs=server.jobs,
        job=server.job,
        rss_bytes=server.rss_bytes,
        started=rfc3339(server.started_us),
        ready_seconds=server.ready_seconds,
        age_seconds=max(0.0, now - server.born),
        in_state_seconds=max(0.0, now - server.since),
        why="; ".join(filter(None, whys)) or None,
    )


# --- batches --------------------------------------------------------------------------------------------------------


def batch_view(world: World, batch: Batch, finished: Counter[State]) -> BatchView:
    """A batch and how far it is; ``finished`` counts its jobs that are not in the world any more."""
    counts = Counter(finished)
    roll = world.members.get(batch.id)
    if roll is not None:
        for state, jobs in roll.states.items():
            counts[State.COLLECTING if state in TERMINAL else state] += jobs
        for held in world.holding & roll.ids:
            if world.jobs[held].state in TERMINAL:  # its processes would not die
                counts[State.COLLECTING] -= 1
                counts[world.jobs[held].state] += 1
    return BatchView(
        id=batch.id,
        name=batch.name,
        user=batch.user,
        on_error=batch.on_error,
        max_jobs=batch.max_jobs,
        closed=batch.closed,
        over=batch.closed and not (roll and roll.ids),
        stopped=batch.stopped,
        **{state.value: counts[state] for state in State},
    )
