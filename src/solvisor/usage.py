"""How busy it is: what is taken and who waits for what, summed over time and laid on a time line.

Sums are kept, not means: they add up, over a minute, an hour, or a step of a chart. Rules: pure; instants and durations
come in as numbers. What a sum is called in a row stays, as rows are kept for more than a year. A look costs what there
are of distinct demands, and not of jobs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec import Struct

from .figures import Series, Usage
from .manifest import rfc3339
from .model import Limits, Reason, State
from .waits import waits
from .world import World

MINUTE: Final = 60
HOUR: Final = 3600
"""What a row spans, in seconds."""

LICENSE: Final = "license."
"""What a series of a license begins with; its name follows."""

UNITS: Final = {"jobs": "jobs", "cpus": "cores", "memory": "bytes"}

DEMANDS_MAX: Final = 1000
"""With more distinct demands than these it is not asked, one by one, what each waits for."""

Key = tuple[str | None, str, str | None]
"""What is waited for: the solver of the jobs (``None``: of all of them), the reason, the license or solver it names."""

_NAMED: Final = frozenset({Reason.LICENSE, Reason.SERVER, Reason.SOLVER})
"""Reasons that name one of few; a batch is one of many, and rows are to stay small."""


class Look(NamedTuple):
    """One moment. ``levels``: how much is taken, and of how much; ``waits``: how many jobs wait for what.

    ``starts`` counts the warm servers that were started in this life, by solver.
    """

    levels: Mapping[str, tuple[float, float]]
    waits: Mapping[Key, int]
    starts: Mapping[str, int]

    @property
    def is_idle(self) -> bool:
        """Nothing is taken and nobody waits."""
        return not self.waits and not any(used for used, _ in self.levels.values())


class Level(Struct, array_like=True):
    """``used`` is the sum of what was taken, in unit-seconds; ``full`` the seconds in which nothing was left."""

    used: float = 0.0
    peak: float = 0.0
    total: float = 0.0
    full: float = 0.0


class Wait(Struct, array_like=True):
    """``jobs`` is in job-seconds; ``seconds`` those in which any job waited so, ``idle`` the core-seconds nobody used
    meanwhile.
    """

    solver: str | None
    reason: str
    what: str | None
    jobs: float = 0.0
    seconds: float = 0.0
    idle: float = 0.0

    @property
    def key(self) -> Key:
        """What it is of."""
        return self.solver, self.reason, self.what


class Sums(Struct, array_like=True):
    """What is kept of a span of time: ``seconds`` were looked at, by a clock that nobody sets."""

    seconds: float
    levels: dict[str, Level]
    waits: list[Wait]
    starts: dict[str, int] = {}


class Row(NamedTuple):
    """A span of time, from ``start_us`` (UTC microseconds) on."""

    start_us: int
    span_seconds: int
    sums: Sums


class Life(NamedTuple):
    """A time within which a daemon was there, in UTC microseconds."""

    began_us: int
    seen_us: int


class Present(NamedTuple):
    """What is not in the database yet: minutes, the last of them not over, and the life that goes on."""

    rows: Sequence[Row]
    life: Life


def totals(limits: Limits) -> dict[str, float]:
    """How much there is of everything that is taken, by the name of its series."""
    licenses = {LICENSE + name: float(count) for name, count in sorted(limits.licenses.items())}
    return {"jobs": limits.max_jobs, "cpus": limits.cpus, "memory": limits.memory_bytes, **licenses}


def look(world: World, limits: Limits) -> Look:
    """How it is now."""
    used = world.used
    taken: dict[str, float] = {"jobs": used.jobs, "cpus": used.cpus, "memory": used.memory_bytes}
    taken |= {LICENSE + name: count for name, count in used.licenses.items() if count}
    there = totals(limits)
    levels = {name: (taken.get(name, 0), there.get(name, 0.0)) for name in there | taken}
    starts = {solver: facts.last for solver, facts in world.pools.items() if facts.last}
    return Look(levels, _waits(world, limits), starts)


def _waits(world: World, limits: Limits) -> Counter[Key]:
    found: Counter[Key] = Counter()
    if len(world.ready) > DEMANDS_MAX:
        found[None, Reason.ORDER.value, None] = world.states[State.QUEUED]
        return found
    for solver, reason, what, jobs in waits(world, limits):
        named = what if reason in _NAMED else None
        found[None, reason.value, named] += jobs
        if solver is not None:
            found[solver, reason.value, named] += jobs
    return found


class Tally:
    """Sums in the making."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._levels: dict[str, Level] = {}
        self._waits: dict[Key, Wait] = {}
        self._starts: Counter[str] = Counter()
        self._started: Mapping[str, int] = {}

    def add(self, seen: Look, seconds: float) -> None:
        """It was so for so long."""
        for solver, count in seen.starts.items():
            new = count - self._started.get(solver, 0)
            if new > 0:
                self._starts[solver] += new
        self._started = seen.starts
        self._seconds += seconds
        for name, (used, total) in seen.levels.items():
            level = self._levels.setdefault(name, Level())
            level.used += used * seconds
            level.peak = max(level.peak, used)
            level.total = total
            level.full += seconds if total and used >= total else 0.0
        cores, of = seen.levels["cpus"]
        for key, jobs in seen.waits.items():
            wait = self._waits.setdefault(key, Wait(*key))
            wait.jobs += jobs * seconds
            wait.seconds += seconds
            wait.idle += max(0.0, of - cores) * seconds

    def take(self) -> Sums | None:
        """What was summed since it was last taken; ``None`` if nothing was taken and nobody waited all the time."""
        sums = self._sums()
        self._seconds, self._levels, self._waits, self._starts = 0.0, {}, {}, Counter()
        if _is_nothing(sums):
            return None
        sums.seconds = round(sums.seconds, 3)
        for level in sums.levels.values():  # to the millisecond: a row is to stay small
            level.used, level.full = round(level.used, 3), round(level.full, 3)
        for wait in sums.waits:
            wait.jobs, wait.seconds, wait.idle = round(wait.jobs, 3), round(wait.seconds, 3), round(wait.idle, 3)
        return sums

    def so_far(self, seen: Look, seconds: float) -> Sums | None:
        """What ``take`` would say if it had been so for so long besides; nothing is added or taken."""
        more = Tally()
        more._started = self._started
        more.add(seen, seconds)
        whole = merged([self._sums(), more._sums()])
        return None if _is_nothing(whole) else whole

    def _sums(self) -> Sums:
        return Sums(self._seconds, self._levels, list(self._waits.values()), dict(self._starts))


def _is_nothing(sums: Sums) -> bool:
    return sums.seconds <= 0 or not (sums.waits or sums.starts or any(level.peak for level in sums.levels.values()))


def merged(parts: Iterable[Sums]) -> Sums:
    """Several spans as one; the totals are those of the last that has them."""
    whole = Sums(0.0, {}, [], {})
    waits: dict[Key, Wait] = {}
    for part in parts:
        whole.seconds += part.seconds
        for name, level in part.levels.items():
            into = whole.levels.setdefault(name, Level())
            into.used += level.used
            into.peak = max(into.peak, level.peak)
            into.total = level.total
            into.full += level.full
        for wait in part.waits:
            into_wait = waits.setdefault(wait.key, Wait(*wait.key))
            into_wait.jobs += wait.jobs
            into_wait.seconds += wait.seconds
            into_wait.idle += wait.idle
        for solver, count in part.starts.items():
            whole.starts[solver] = whole.starts.get(solver, 0) + count
    whole.waits = list(waits.values())
    return whole


class Step(NamedTuple):
    """One step of a time line: how many seconds of it a daemon was there, and the sums over it, by name."""

    up_seconds: float
    used: Mapping[str, float]
    waits: Mapping[str, float]


def steps(rows: Iterable[Row], lives: Iterable[Life], since_us: int, until_us: int, count: int) -> list[Step]:
    """So many equal steps; a row that lies in several gives each its share."""
    width = (until_us - since_us) / count
    up = [0.0] * count
    seen = [0.0] * count
    used: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(count)]
    waits: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(count)]
    for life in united(lives):
        for at, part in _shares(life.began_us, life.seen_us, since_us, width, count):
            up[at] += part * (life.seen_us - life.began_us) / 1e6
    for row in rows:
        for at, part in _shares(row.start_us, row.start_us + row.span_seconds * 1_000_000, since_us, width, count):
            seen[at] += row.sums.seconds * part
            for name, level in row.sums.levels.items():
                used[at][name] += level.used * part
            for wait in row.sums.waits:
                if wait.solver is None:
                    waits[at][wait.reason] += wait.jobs * part
    # A clock that was set may have put more into a step than it is long.
    return [Step(max(up[at], seen[at]), used[at], waits[at]) for at in range(count)]


def united(lives: Iterable[Life]) -> list[Life]:
    """The same times without what they share: a clock that was set back has them overlap."""
    found: list[Life] = []
    for life in sorted(lives):
        if found and life.began_us <= found[-1].seen_us:
            found[-1] = Life(found[-1].began_us, max(found[-1].seen_us, life.seen_us))
        else:
            found.append(life)
    return found


def _shares(began_us: int, ended_us: int, since_us: int, width: float, count: int) -> Iterable[tuple[int, float]]:
    """In which steps a span lies, and which part of it in each."""
    length = ended_us - began_us
    if length <= 0:
        return
    first = max(0, int((began_us - since_us) // width))
    last = min(count - 1, int((ended_us - since_us) // width))
    for at in range(first, last + 1):
        left = max(float(began_us), since_us + at * width)
        right = min(float(ended_us), since_us + (at + 1) * width)
        if right > left:
            yield at, (right - left) / length


def usage(
    rows: Sequence[Row],
    lives: Iterable[Life],
    since_us: int,
    until_us: int,
    points: int,
    totals: Mapping[str, float],
    reasons: Iterable[str] = (),
) -> Usage:
    """How busy it was, as told. No step is shorter than a minute. ``totals`` are those in force.

    How many jobs waited for each of the ``reasons`` is a series of its own.
    """
    count = max(1, min(points, int((until_us - since_us) // (MINUTE * 1_000_000))))
    line = steps(rows, lives, since_us, until_us, count)
    known: dict[str, float] = dict(totals)
    for row in rows:
        for name, level in row.sums.levels.items():
            if name not in totals:  # a license that is not configured any more
                known[name] = level.total
    series = [
        Series(
            name=name,
            unit=UNITS.get(name, "licenses"),
            total=total,
            values=tuple(step.used.get(name, 0.0) / step.up_seconds if step.up_seconds else None for step in line),
        )
        for name, total in known.items()
    ]
    waiting = tuple(sum(step.waits.values()) / step.up_seconds if step.up_seconds else None for step in line)
    series.append(Series(name="waiting", unit="jobs", total=None, values=waiting))
    for reason in dict.fromkeys(reasons):
        so = tuple(step.waits.get(reason, 0.0) / step.up_seconds if step.up_seconds else None for step in line)
        series.append(Series(name=f"waiting.{reason}", unit="jobs", total=None, values=so))
    return Usage(rfc3339(since_us), rfc3339(until_us), (until_us - since_us) / 1e6 / count, tuple(series))
