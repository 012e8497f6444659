"""What is told of how busy it was: the shapes of ``/v1/usage`` and ``/v1/report``, documented here.

Rules: as in ``views``: these records are the public JSON. Times are RFC 3339 UTC, durations ``_seconds``, sizes
``_bytes``; a ``share`` lies between 0 and 1. No I/O, no clock.
"""

from __future__ import annotations

from msgspec import Struct


class Series(Struct, frozen=True):
    """One thing over time: ``jobs``, ``cpus``, ``memory``, ``license.NAME`` (taken), or ``waiting`` (queued jobs).

    ``values`` are the means of each step, in ``unit`` (jobs, cores, bytes, licenses); ``null`` where no daemon ran.
    ``total`` is how much there is, ``null`` where nothing bounds it.
    """

    name: str
    unit: str
    total: float | None
    values: tuple[float | None, ...]


class Usage(Struct, frozen=True):
    """How busy it was between two instants, in equal steps of ``step_seconds``."""

    since: str
    until: str
    step_seconds: float
    series: tuple[Series, ...]


class Spread(Struct, frozen=True):
    """How something was spread over ``count`` jobs or tries: exact percentiles (nearest rank), in one unit."""

    count: int
    p50: float
    p95: float
    max: float
    total: float


class FailureFigure(Struct, frozen=True):
    """So many jobs of one solver that failed alike."""

    cause: str
    code: str | None
    message: str | None
    jobs: int


class WaitFigure(Struct, frozen=True):
    """What jobs waited for: a reason, and the license or solver it names. ``share`` is that of all waiting.

    ``seconds`` are those in which any job waited so, ``idle_cores`` how many cores were free meanwhile, on average.
    """

    reason: str
    what: str | None
    job_seconds: float
    share: float
    seconds: float
    idle_cores: float


class CoreFigures(Struct, frozen=True):
    """Cores that were reserved and those that were used, over all tries that were measured.

    ``used`` is how the mean use of single tries was spread (in cores), of those that ran for a while and reserved
    ``reserved`` cores: what most tries of the solver did.
    """

    reserved_core_seconds: float
    used_core_seconds: float
    reserved: int
    used: Spread | None


class MemoryFigures(Struct, frozen=True):
    """Peak memory of the tries that reserved ``reserved_bytes``: what most tries of the solver did.

    ``whole_tree``: it was measured of all processes together (with their share of the file cache); else of the largest
    process of each try, which may be less than the try took.
    """

    reserved_bytes: int
    peak: Spread
    whole_tree: bool


class SolverFigures(Struct, frozen=True, kw_only=True):
    """The jobs of one solver that ended in the period.

    ``run`` is how long their last tries ran (``run_succeeded``: where those succeeded), ``queue`` how long they waited
    for their first. ``retries`` followed tries that were charged to their jobs, ``interruptions`` are tries that ended
    through no fault of theirs. ``timeouts`` and ``server_losses`` count tries that were cut at their timeout, or lost
    their warm server; ``servers_started`` is how many warm servers were started. ``run_counts`` says how many last
    tries ran for less than 1 s, from there to 2 s, and so on: ``RUN_EDGES``. ``waits`` are those of which it is known
    that they were of this solver.
    """

    name: str
    jobs: int
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    skipped: int = 0
    tries: int = 0
    retries: int = 0
    interruptions: int = 0
    timeouts: int = 0
    server_losses: int = 0
    servers_started: int = 0
    run: Spread | None = None
    run_succeeded: Spread | None = None
    queue: Spread | None = None
    cores: CoreFigures | None = None
    memory: MemoryFigures | None = None
    waits: tuple[WaitFigure, ...] = ()
    failures: tuple[FailureFigure, ...] = ()
    run_counts: tuple[int, ...] = ()


RUN_EDGES: tuple[float, ...] = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 28800, 86400)
"""The seconds at which one count of ``run_counts`` ends and the next begins."""


class LevelFigures(Struct, frozen=True):
    """How much of something was taken: ``mean`` and ``peak`` of ``total``, in ``unit``.

    ``mean`` is over the time in which a daemon was there. ``used_hours`` are core-hours, license-hours, ...;
    ``full_hours`` those in which nothing was left.
    """

    name: str
    unit: str
    total: float
    mean: float
    peak: float
    used_hours: float
    full_hours: float


class PersonFigures(Struct, frozen=True):
    """The jobs of one user in one project."""

    user: str | None
    project: str | None
    jobs: int
    failed: int
    core_seconds: float


class HourFigures(Struct, frozen=True):
    """An hour of the day, local time of the daemon: the mean of the cores taken and of the jobs that waited.

    Both are ``null`` if no daemon was there in that hour of any day.
    """

    hour: int
    cpus: float | None
    waiting: float | None


class BusyHour(Struct, frozen=True):
    """One hour that was busy."""

    start: str
    cpus: float
    waiting: float


class Advice(Struct, frozen=True, kw_only=True):
    """Something that could be changed, why, and what it would bring.

    ``text`` says it with its numbers; ``section`` and ``line`` are where in the configuration and what to write there.
    """

    code: str
    solver: str | None
    text: str
    section: str | None = None
    line: str | None = None


class Report(Struct, frozen=True, kw_only=True):
    """A period: what became of the jobs that ended in it, and how busy it was.

    ``up_seconds`` is how long a daemon was there; ``kept_since`` from when on it is kept how busy it was (``null``: not
    at all in this period). ``people`` are those who took most, ``people_more`` how many there are beside them.
    ``usage`` also has a series ``waiting.REASON`` for each reason.
    """

    since: str
    until: str
    host: str | None
    up_seconds: float
    kept_since: str | None
    jobs: int
    succeeded: int
    failed: int
    cancelled: int
    rejected: int
    skipped: int
    core_seconds: float
    advice: tuple[Advice, ...]
    levels: tuple[LevelFigures, ...]
    waits: tuple[WaitFigure, ...]
    solvers: tuple[SolverFigures, ...]
    people: tuple[PersonFigures, ...]
    people_more: int
    hours: tuple[HourFigures, ...]
    busiest: tuple[BusyHour, ...]
    usage: Usage
