"""What the world looks like from outside: records turned into the public shapes of ``views``.

Rules: pure functions; ``now_us`` is UTC microseconds, ``now`` monotonic seconds. A live job that ended is shown as
collecting, because its result is not in its place yet; one whose processes would not die is the exception, for that
place it will not reach soon. Cost is that of what is shown: nothing here walks all queued jobs.
"""

from __future__ import annotations

import heapq
import shlex
from collections import Counter
from itertools import chain, islice
from typing import Any

from msgspec.structs import replace

from . import fleetview, overrides
from .machine import UNCHARGED
from .manifest import Manifest, attempt_facts, rfc3339, run_seconds
from .model import (
    LICENSE_DENIED,
    TARGETS,
    TERMINAL,
    Attempt,
    Batch,
    Cause,
    Job,
    Limits,
    Override,
    Pause,
    Reason,
    Settings,
    State,
)
from .scheduler import explain, reason, rests_in_words
from .units import describe_size
from .usual import Usual
from .views import (
    WAITED_FOR,
    BatchView,
    Explanation,
    JobRow,
    JobView,
    Level,
    LimitUnit,
    Waiting,
)
from .views import Limit as LimitView
from .views import Pause as PauseView
from .waits import waits
from .world import PoolFacts, World

REASONS = {reason: f"waits for {words}. Nothing is wrong." for reason, words in WAITED_FOR.items()} | {
    Reason.LICENSE: "waits for a license. Nothing is wrong.",
    Reason.PAUSED: "waits because it was paused.",
    Reason.BACKOFF: "rests before its next try.",
    Reason.DISK: "waits for free disk space.",
}

HEADLINES = {
    "stopping": "waits for the next start of the daemon, which is stopping.",
    "recovering": "waits until what may have ended earlier daemons has been looked at.",
    "suspect": "waits for another job that ran whenever the daemon ended, to find out whose doing that was.",
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
    Cause.OOM: "let it have more memory (memory_limit in the solver's table) or make it smaller: solvisor retry {id}",
    Cause.LOST: (
        "it ran whenever the daemon or the machine ended, by chance or because of it: see why they ended (the log, "
        "state/log/) before: solvisor retry {id}"
    ),
    Cause.SERVER: _BROKE_DOWN,
    Cause.POISON: _BROKE_DOWN,
    Cause.UNKILLABLE: "look at its processes; its room stays taken until they are gone",
}
NEXT_DEFECT = "this is a defect of Solvisor or of its database: submit the input again, and please report it"
SET_ASIDE = frozenset({"defect", "row"})
"""Codes of jobs that were set aside for no fault of theirs."""

GONE = "its inputs were removed with its results: submit them again"
NEXT_ELSE = "correct the input and submit it again; run it unchanged: solvisor retry {id}"


def shown_state(job: Job, *, live: bool) -> State:
    """The state that is told; ``live``: the job is in the world, so its result is not in its place yet."""
    if live and job.state in TERMINAL and job.cause is not Cause.UNKILLABLE:
        return State.COLLECTING
    return job.state


def folder_of(job: Job, *, live: bool) -> str:
    """Where its folder lies, relative to the home."""
    return f"work/{job.id}" if live else f"{TARGETS[job.state]}/{job.id}"


def row(world: World, limits: Limits, usual: Usual, job: Job, now_us: int) -> JobRow:
    """One job in one line; ``job`` is the world's own record where it is live."""
    return JobRow(**_row(world, limits, usual, job, now_us))


def _row(world: World, limits: Limits, usual: Usual, job: Job, now_us: int) -> dict[str, Any]:
    live = job.id in world.jobs
    state = shown_state(job, live=live)
    spec = job.spec
    over = state in TERMINAL
    began, ended = job.started_us, job.finished_us if over else None
    why, what = reason(world, limits, job) if state is State.QUEUED else (None, None)
    return {
        "id": job.id,
        "name": spec.name,
        "state": state,
        "solver": spec.solver,
        "user": spec.user,
        "project": spec.project,
        "batch": spec.batch,
        "retry_of": spec.retry_of,
        "reason": why,
        "waits_for": what,
        "cause": job.cause if over else None,
        "code": job.code if over else None,
        "message": job.message if over else None,
        "tries": len(job.attempts),
        "submitted": rfc3339(job.submitted_us),
        "started": None if began is None else rfc3339(began),
        "finished": None if ended is None else rfc3339(ended),
        "queue_seconds": max(0, (began or ended or now_us) - job.submitted_us) / 1e6,
        "run_seconds": _run_seconds(job, state, now_us),
        "usual_seconds": usual.seconds(job) if state is State.RUNNING else None,
        "folder": folder_of(job, live=live),
        "removed": None if job.removed_us is None else rfc3339(job.removed_us),
    }


def _run_seconds(job: Job, state: State, now_us: int) -> float | None:
    """How long its last try ran, or has been running; ``None`` where there is none that did, and while it waits."""
    last = job.attempt
    if last is None or state is State.QUEUED:
        return None
    if last.facts is not None:
        return run_seconds(last)
    return max(0, now_us - last.started_us) / 1e6 if state is State.RUNNING else None


def view(
    world: World,
    limits: Limits,
    usual: Usual,
    job: Job,
    settings: Settings | None,
    manifest: Manifest | None,
    now_us: int,
) -> JobView:
    """One job with all that is known; ``settings`` are those that an attempt would get now, if its solver is known.

    ``manifest`` is that of a finished one, if it can be read.
    """
    spec = job.spec
    force = job.attempt.settings if job.attempt else settings
    return JobView(
        **_row(world, limits, usual, job, now_us),
        kind=force.kind if force else "",
        primary=spec.primary,
        source=f"{spec.source.via}: {spec.source.path}",
        priority=job.priority,
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
                headline = _server_headline(fleetview.facts_of(world, view.solver), now)
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
            if view.code in SET_ASIDE:
                todo = NEXT_DEFECT
            if view.removed is not None:
                todo = GONE
            todo = todo.format(id=view.id, solver=view.solver, input=shlex.quote(view.primary))
            return Explanation(job=view, headline=f"FAILED{seconds}{tries}", checks=view.checks, next=todo)
        case _:
            again = None if view.state is State.REJECTED else f"to run it after all: solvisor retry {view.id}"
            if view.removed is not None:
                again = GONE
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
    if fleetview.pool_state(facts, now) == "backoff":
        return "waits for a warm server; the last one failed, and the next one is started soon."
    return REASONS[Reason.SERVER]


def _in_words(seconds: float) -> str:
    if 0 < seconds < 0.0995:
        return f"{max(1, round(seconds * 1000))} ms"
    return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"


def waiting_for(world: World, limits: Limits) -> tuple[Waiting, ...]:
    """How many queued jobs wait for what, the largest number first."""
    counts: Counter[tuple[Reason, str | None]] = Counter()
    for _, why, what, jobs in waits(world, limits):
        counts[why, what] += jobs
    return tuple(Waiting(why, what, jobs) for (why, what), jobs in counts.most_common())


def first_waiting(world: World, most: int) -> list[str]:
    """The ids of the first queued jobs in the order; after those that want only room, who rests or waits for others."""
    jobs = world.jobs
    ready = [place[2] for place in islice(heapq.merge(*world.ready.values()), most)]
    later = chain((rest[2] for rest in world.backoff), world.unmet, world.parked)  # of the first, some are not any more
    queued = (job_id for job_id in islice(later, most) if job_id in jobs and jobs[job_id].state is State.QUEUED)
    return list(dict.fromkeys(chain(ready, queued)))[:most]


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


def limits_told(world: World, configured: Limits, limits: Limits) -> tuple[LimitView, ...]:
    """Every limit, those in force first; ``configured`` are those of the configuration alone."""
    own, force = overrides.values(configured), overrides.values(limits)
    unknown = sorted(world.overrides.keys() - own.keys())
    told = []
    for name in (*own, *unknown):
        unit, used = _unit_and_used(world, name)
        told.append(LimitView(name=name, unit=unit, value=force.get(name), configured=own.get(name), used=used))
    return tuple(_as_set(limit, world.overrides.get(limit.name), limit.name in own) for limit in told)


def limits_set(world: World, configured: Limits, limits: Limits) -> tuple[LimitView, ...]:
    """Those that people set."""
    return tuple(limit for limit in limits_told(world, configured, limits) if limit.name in world.overrides)


def _as_set(limit: LimitView, override: Override | None, known: bool) -> LimitView:
    if override is None:
        return limit
    since, value = rfc3339(override.since_us), override.value
    return replace(limit, value=value, by=override.by, since=since, note=override.note, known=known)


def _unit_and_used(world: World, name: str) -> tuple[LimitUnit, int]:
    used = world.used
    match name:
        case overrides.MAX_JOBS:
            return "jobs", used.jobs
        case overrides.CPUS:
            return "cores", used.cpus
        case overrides.MEMORY:
            return "bytes", used.memory_bytes
    if name.startswith(overrides.LICENSE):
        return "licenses", used.licenses[name.removeprefix(overrides.LICENSE)]
    return "jobs", used.solvers[name.removeprefix(overrides.SOLVER)]


def limit_notes(world: World, configured: Limits) -> list[str]:
    """Sentences about limits that people set and that have no effect."""
    known = overrides.values(configured)
    return [
        f"the limit {name}, set to {override.value}{f' by {override.by}' if override.by else ''}, has no effect: "
        f"nothing of that name is configured; solvisor limit {name} auto forgets it"
        for name, override in sorted(world.overrides.items())
        if name not in known
    ]


def pauses(world: World) -> tuple[PauseView, ...]:
    """The pauses in force, the one of everything first."""
    found = sorted(world.pauses.values(), key=lambda pause: pause.solver or "")
    return tuple(map(_pause, found))


def _pause(pause: Pause) -> PauseView:
    return PauseView(pause.solver, pause.by, rfc3339(pause.since_us), pause.note)


def homeless_problems(world: World, limits: Limits) -> list[str]:
    """Sentences about solvers that jobs wait for and that are not configured (any more)."""
    waiting: Counter[str] = Counter()
    for demand, queue in world.ready.items():
        if demand.solver not in limits.solver_jobs:
            waiting[demand.solver] += len(queue)
    return [
        f"{solver} is not in the configuration any more, and {fleetview.jobs_wait(jobs)} for it: add "
        f"[solver.{solver}], and have the configuration read again (SIGHUP), or cancel "
        f"{'that job' if jobs == 1 else 'those jobs'}"
        for solver, jobs in sorted(waiting.items())
    ]


def unkillable_problems(world: World) -> list[str]:
    """Sentences about jobs whose processes would not die."""
    stuck = (world.jobs[job_id] for job_id in sorted(world.holding) if world.jobs[job_id].state in TERMINAL)
    return [
        f"the processes of {job.id} (pid {job.current.pid}) would not die; its room stays taken until they do or the "
        "machine is started again"
        for job in stuck
    ]


def disk_problems(world: World) -> list[str]:
    """Sentences about a disk that is short of room, and what to do."""
    disk = world.disk
    if disk is None or disk.no_start is None:
        return []
    return [f"no job starts{', and nothing is taken in' if disk.no_intake else ''}: {disk.no_start}"]


def room_notes(world: World, removes: bool) -> list[str]:
    """Sentences about a disk that may soon be short of room; ``removes``: old results are removed, as configured."""
    disk = world.disk
    if disk is None or disk.no_start is not None or not disk.is_low:
        return []
    kept = "as [retention] says" if removes else "for ever: [retention] in the configuration has old ones go"
    return [f"only {describe_size(disk.free_bytes)} are free on the disk of the home; results are kept {kept}"]


def license_problems(world: World, now: float) -> list[str]:
    """Sentences about licenses that nobody is given, for they were refused."""
    return [f"license {rests_in_words(world, name, now)}" for name in sorted(world.used.resting)]


# --- batches --------------------------------------------------------------------------------------------------------


def batch_view(world: World, batch: Batch, finished: Counter[State]) -> BatchView:
    """A batch and how far it is; ``finished`` counts its jobs that are not in the world any more."""
    counts = Counter(finished)
    roll = world.members.get(batch.id)
    if roll is not None:
        for state, jobs in roll.states.items():
            counts[State.COLLECTING if state in TERMINAL else state] += jobs
        for held in world.holding.keys() & roll.ids:
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
