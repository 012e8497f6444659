"""The report of a period, put together: what became of its jobs, how busy it was, and what to change.

Rules: pure; what was counted comes in as numbers, so does the hour of the day of an instant.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from .advice import Declared, advice
from .figures import (
    BusyHour,
    CoreFigures,
    FailureFigure,
    HourFigures,
    LevelFigures,
    MemoryFigures,
    PersonFigures,
    Report,
    SolverFigures,
    Spread,
    WaitFigure,
)
from .manifest import rfc3339
from .model import Limits, State
from .usage import HOUR, UNITS, Life, Row, Sums, Wait, merged, totals, united, usage

SOLVERS_TOLD: Final = 100
HOURS_TOLD: Final = 5
POINTS: Final = 168
"""Steps of the time lines: the hours of a week."""

_HOUR_US: Final = HOUR * 1_000_000


class Tries(NamedTuple):
    """The tries of one solver, counted; ``measured_`` are those of which it is known what they used."""

    tries: int
    interruptions: int
    timeouts: int
    server_losses: int
    jobs: int
    measured_reserved: float
    measured_used: float
    measured: int
    core_seconds: float


class Common(NamedTuple):
    """What most tries of a solver reserved, and how much of it they used."""

    reserved: int
    used: Spread


class Ended(NamedTuple):
    """What is told of the jobs that ended in a period, by solver but for ``people``."""

    states: dict[str, dict[State, int]]
    tries: dict[str, Tries]
    run: dict[str, Spread]
    run_succeeded: dict[str, Spread]
    run_counts: dict[str, tuple[int, ...]]
    queue: dict[str, Spread]
    cores: dict[str, Common]
    memory: dict[str, Common]
    memory_largest: dict[str, Common]
    failures: dict[str, list[FailureFigure]]
    people: list[PersonFigures]
    people_count: int


class Period(NamedTuple):
    """What is reported: from when to when (UTC microseconds), and on which machine."""

    since_us: int
    until_us: int
    host: str | None


def report(
    period: Period,
    ended: Ended,
    rows: Sequence[Row],
    lives: Iterable[Life],
    limits: Limits,
    declared: Mapping[str, Declared],
    hour_of: Callable[[int], int],
) -> Report:
    """The whole of it; ``hour_of`` an instant is the local hour of the day."""
    since_us, until_us, host = period
    within = [_clipped(row, since_us, until_us) for row in rows]
    lives = [Life(max(life.began_us, since_us), min(life.seen_us, until_us)) for life in united(lives)]
    up_seconds = sum(max(0, life.seen_us - life.began_us) for life in lives) / 1e6
    whole = merged(row.sums for row in within)
    up_seconds = max(up_seconds, whole.seconds)
    waits = _waits(wait for wait in whole.waits if wait.solver is None)
    there = totals(limits)
    levels = _levels(whole, there, up_seconds)
    solvers = _solvers(ended, whole)
    states: Counter[State] = Counter()
    for counts in ended.states.values():
        states.update(counts)
    return Report(
        since=rfc3339(since_us),
        until=rfc3339(until_us),
        host=host,
        up_seconds=up_seconds,
        kept_since=_kept_since(within, lives),
        jobs=states.total(),
        succeeded=states[State.SUCCEEDED],
        failed=states[State.FAILED],
        cancelled=states[State.CANCELLED],
        rejected=states[State.REJECTED],
        skipped=states[State.SKIPPED],
        core_seconds=sum(tries.core_seconds for tries in ended.tries.values()),
        advice=tuple(advice(solvers, waits, levels, up_seconds, limits, declared)),
        levels=levels,
        waits=waits,
        solvers=solvers,
        people=tuple(ended.people),
        people_more=ended.people_count - len(ended.people),
        hours=tuple(_hours(within, lives, hour_of)),
        busiest=_busiest(within),
        usage=usage(rows, lives, since_us, until_us, POINTS, there, [wait.reason for wait in waits]),
    )


def _clipped(row: Row, since_us: int, until_us: int) -> Row:
    """The part of a row that lies within the period: of an hour at its edge, its share."""
    ends = row.start_us + row.span_seconds * 1_000_000
    part = (min(ends, until_us) - max(row.start_us, since_us)) / (ends - row.start_us)
    if part >= 1:
        return row
    sums = merged([row.sums])
    sums.seconds *= part
    for level in sums.levels.values():
        level.used, level.full = level.used * part, level.full * part
    for wait in sums.waits:
        wait.jobs, wait.seconds, wait.idle = wait.jobs * part, wait.seconds * part, wait.idle * part
    return Row(row.start_us, row.span_seconds, sums)


def _kept_since(rows: Iterable[Row], lives: Iterable[Life]) -> str | None:
    first = min([*(row.start_us for row in rows), *(life.began_us for life in lives)], default=None)
    return None if first is None else rfc3339(first)


def _waits(waits: Iterable[Wait]) -> tuple[WaitFigure, ...]:
    """What was waited for, the most first."""
    found = sorted(waits, key=lambda wait: -wait.jobs)
    total = sum(wait.jobs for wait in found)
    return tuple(
        WaitFigure(
            wait.reason,
            wait.what,
            wait.jobs,
            wait.jobs / total if total else 0.0,
            wait.seconds,
            wait.idle / wait.seconds if wait.seconds else 0.0,
        )
        for wait in found
    )


def _levels(whole: Sums, there: Mapping[str, float], up_seconds: float) -> tuple[LevelFigures, ...]:
    found = []
    for name in dict.fromkeys([*there, *whole.levels]):
        level = whole.levels.get(name)
        total = there.get(name, level.total if level else 0.0)
        used, peak, full = (level.used, level.peak, level.full) if level else (0.0, 0.0, 0.0)
        mean = used / up_seconds if up_seconds else 0.0
        found.append(LevelFigures(name, UNITS.get(name, "licenses"), total, mean, peak, used / HOUR, full / HOUR))
    return tuple(found)


def _solvers(ended: Ended, whole: Sums) -> tuple[SolverFigures, ...]:
    """Those with most core-hours first; the first so many."""
    of_solver: defaultdict[str, list[Wait]] = defaultdict(list)
    for wait in whole.waits:
        if wait.solver is not None:
            of_solver[wait.solver].append(wait)
    found = []
    for name, states in ended.states.items():
        tries = ended.tries.get(name, Tries(*(0,) * 9))
        charged = tries.tries - tries.interruptions - tries.server_losses
        cores = None
        if tries.measured:
            usual = ended.cores.get(name)
            cores = CoreFigures(
                tries.measured_reserved,
                tries.measured_used,
                usual.reserved if usual else 0,
                usual.used if usual else None,
            )
        found.append(
            SolverFigures(
                name=name,
                jobs=sum(states.values()),
                succeeded=states.get(State.SUCCEEDED, 0),
                failed=states.get(State.FAILED, 0),
                cancelled=states.get(State.CANCELLED, 0),
                rejected=states.get(State.REJECTED, 0),
                skipped=states.get(State.SKIPPED, 0),
                tries=tries.tries,
                retries=max(0, charged - tries.jobs),
                interruptions=tries.interruptions,
                timeouts=tries.timeouts,
                server_losses=tries.server_losses,
                servers_started=whole.starts.get(name, 0),
                run=ended.run.get(name),
                run_succeeded=ended.run_succeeded.get(name),
                queue=ended.queue.get(name),
                cores=cores,
                memory=_memory(ended, name),
                waits=_waits(of_solver[name]),
                failures=tuple(ended.failures.get(name, ())),
                run_counts=ended.run_counts.get(name, ()),
            )
        )
    took = {name: tries.core_seconds for name, tries in ended.tries.items()}
    found.sort(key=lambda solver: (-took.get(solver.name, 0.0), -solver.jobs, solver.name))
    return tuple(found[:SOLVERS_TOLD])


def _memory(ended: Ended, name: str) -> MemoryFigures | None:
    usual = ended.memory.get(name)
    if usual is not None:
        return MemoryFigures(usual.reserved, usual.used, whole_tree=True)
    usual = ended.memory_largest.get(name)
    return None if usual is None else MemoryFigures(usual.reserved, usual.used, whole_tree=False)


def _hours(rows: Iterable[Row], lives: Iterable[Life], hour_of: Callable[[int], int]) -> list[HourFigures]:
    """The hours of the day."""
    up = [0.0] * 24
    cpus = [0.0] * 24
    waiting = [0.0] * 24
    for life in lives:
        at = life.began_us
        while at < life.seen_us:
            next_hour = min(life.seen_us, at - at % _HOUR_US + _HOUR_US)
            up[hour_of(at)] += (next_hour - at) / 1e6
            at = next_hour
    for row in rows:
        hour = hour_of(row.start_us)
        cpus[hour] += row.sums.levels["cpus"].used if "cpus" in row.sums.levels else 0.0
        waiting[hour] += sum(wait.jobs for wait in row.sums.waits if wait.solver is None)
    return [
        HourFigures(hour, cpus[hour] / up[hour], waiting[hour] / up[hour])
        if up[hour]
        else HourFigures(hour, None, None)
        for hour in range(24)
    ]


def _busiest(rows: Iterable[Row]) -> tuple[BusyHour, ...]:
    """The hours with most core-hours, the busiest first."""
    cpus: defaultdict[int, float] = defaultdict(float)
    waiting: defaultdict[int, float] = defaultdict(float)
    for row in rows:
        hour = row.start_us // _HOUR_US
        level = row.sums.levels.get("cpus")
        cpus[hour] += level.used / HOUR if level else 0.0
        waiting[hour] += sum(wait.jobs for wait in row.sums.waits if wait.solver is None) / HOUR
    most = sorted(cpus, key=lambda hour: (-cpus[hour], -waiting[hour], hour))[:HOURS_TOLD]
    return tuple(BusyHour(rfc3339(hour * _HOUR_US), cpus[hour], waiting[hour]) for hour in most if cpus[hour])
