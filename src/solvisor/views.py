"""What is told of jobs, warm servers and the daemon: the shapes of every answer on the status socket, documented here.

Rules: these records are the public JSON; a field's name, unit and meaning stay. Times are RFC 3339 UTC, durations
``_seconds``, sizes ``_bytes``. A job is shown as finished once its manifest lies in its final place; until then a job
that ended is shown as ``collecting``. No I/O, no clock. One file, if a long one: it is the reference of the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from msgspec import Struct

from .manifest import AttemptFacts
from .model import Cause, Check, Reason, ServerState, State

Health = Literal["healthy", "degraded", "stopping"]
PoolState = Literal["ok", "backoff", "failed"]
LimitUnit = Literal["jobs", "cores", "bytes", "licenses"]


WAITED_FOR: Final[Mapping[str, str]] = {
    Reason.ORDER: "a turn",
    Reason.JOBS: "a free place",
    Reason.CPUS: "cores",
    Reason.MEMORY: "memory",
    Reason.LICENSE: "license",
    Reason.SERVER: "a warm server",
    Reason.DEPENDENCY: "another job",
    Reason.PAUSED: "paused",
    Reason.BACKOFF: "the next try",
    Reason.HOURS: "the hours",
    Reason.DISK: "room on the disk",
    Reason.SOLVER: "a place at the solver",
}
"""What jobs wait for in words; the page has the same in ``words.js``."""

WAITED_AT: Final[Mapping[str, str]] = {
    Reason.JOBS: "a place in",
    Reason.SERVER: "a warm server of",
    Reason.SOLVER: "a place at",
}
"""The same before the name of what is meant, where that makes another word of it."""


def waited_for(reason: str, what: str | None) -> str:
    """``license orcaflex``, ``cores``, ``a place at post``; a reason of a later version is its own word."""
    words = WAITED_FOR.get(reason, reason)
    return words if what is None else f"{WAITED_AT.get(reason, words)} {what}"


LATE_SECONDS: Final = 0.1
"""An event loop that lags by more is told: it should not, however slow the disk is."""


class JobRow(Struct, frozen=True, kw_only=True):
    """One job in one line.

    ``reason`` is what a queued job waits for, and ``waits_for`` the license, solver or batch that is meant, where it is
    one. ``folder`` is relative to the home; ``removed`` is when its files were removed, as ``[retention]`` says.
    ``queue_seconds`` is how long it waited for its first try, or has waited; ``run_seconds`` how long its last try ran,
    or has been running. ``usual_seconds`` is how long such a try runs as a rule, of a job that runs and where earlier
    ones of its name or solver are evidence of it.
    """

    id: str
    name: str
    state: State
    solver: str
    user: str | None = None
    project: str | None = None
    batch: str | None = None
    retry_of: str | None = None
    reason: Reason | None = None
    waits_for: str | None = None
    cause: Cause | None = None
    code: str | None = None
    message: str | None = None
    tries: int = 0
    submitted: str
    started: str | None = None
    finished: str | None = None
    queue_seconds: float | None = None
    run_seconds: float | None = None
    usual_seconds: float | None = None
    folder: str
    removed: str | None = None


class JobView(JobRow, frozen=True, kw_only=True):
    """One job with all that is known of it; a finished one has its manifest besides.

    ``timeout_seconds``, ``cpus``, ``memory_bytes``, ``licenses`` and ``tries_max`` are those in force;
    ``tries_charged`` are those of ``tries`` that count towards ``tries_max``. ``result`` and ``log_truncated`` are
    those of the manifest.
    """

    kind: str
    primary: str
    source: str
    priority: int
    key: str | None
    after: tuple[str, ...]
    params: dict[str, Any]
    timeout_seconds: float | None
    cpus: int
    memory_bytes: int
    licenses: dict[str, int]
    tries_max: int
    cancel: bool
    command: tuple[str, ...]
    attempts: tuple[AttemptFacts, ...]
    tries_charged: int = 0
    checks: tuple[Check, ...] = ()
    result: Any = None
    log_truncated: bool = False


class JobPage(Struct, frozen=True):
    """Jobs, newest first; ``next`` is the cursor of the page after this one, if there is one.

    One question looks at a bounded number of jobs, so a page may hold few or none and still have a ``next``. Jobs that
    come in meanwhile are on none of the pages to come: no job is left out and none comes twice.
    """

    jobs: tuple[JobRow, ...]
    next: str | None


class Level(Struct, frozen=True):
    """How much of something is taken: counts, cores or bytes."""

    used: int
    total: int


class Waiting(Struct, frozen=True):
    """How many queued jobs wait for the same thing; ``what`` names the license or solver, where there is one."""

    reason: Reason
    what: str | None
    jobs: int


class InboxWait(Struct, frozen=True):
    """A drop that is not taken yet, and why: ``settling``, ``orphan``, ... with the words to show."""

    name: str
    why: str
    text: str


class Pause(Struct, frozen=True):
    """Nothing of ``solver`` (of any, where it is ``None``) is started until somebody resumes it."""

    solver: str | None
    by: str | None
    since: str
    note: str | None


class Limit(Struct, frozen=True, kw_only=True):
    """How much of something jobs may take together: ``max_jobs``, ``cpus``, ``memory``, ``license.NAME``, or how many
    jobs of a solver may run at once, ``solver.NAME``.

    ``value`` is in force, ``configured`` what the configuration says; ``null``: a solver without a limit of its own.
    ``used`` is what is taken now, which may be more than a limit that was lowered. ``by``, ``since`` and ``note`` are
    of who set it. One that is not ``known`` has no effect: its license or solver is not configured (any more).
    """

    name: str
    unit: LimitUnit
    value: int | None
    configured: int | None
    used: int
    by: str | None = None
    since: str | None = None
    note: str | None = None
    known: bool = True


class Limits(Struct, frozen=True):
    """All limits."""

    limits: tuple[Limit, ...]


class LastDay(Struct, frozen=True):
    """Jobs that ended within the last 24 hours, to the minute."""

    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    rejected: int = 0
    skipped: int = 0


class ServerRow(Struct, frozen=True, kw_only=True):
    """One warm server; ``backoff`` and ``failed`` are states of a ``PoolView`` only.

    ``jobs`` counts those it served, ``job`` is the one it has. ``ready_seconds`` is how long it took from the start of
    its process to its first good answer; ``age_seconds`` counts from when it was wanted, ``in_state_seconds`` from when
    it came into its state (``draining``: when it got its job). ``why`` says why it ends.
    """

    name: str
    solver: str
    state: ServerState
    port: int | None
    pid: int | None
    jobs: int
    job: str | None
    rss_bytes: int | None
    started: str
    ready_seconds: float | None
    age_seconds: float
    in_state_seconds: float
    why: str | None


class PoolRow(Struct, frozen=True, kw_only=True):
    """The warm servers of one solver in one line.

    ``state``: ``backoff`` and ``failed`` say that none is started now, for a while or until somebody says so; those
    that are there go on. ``wanted`` is how many there shall be now; ``starting`` are not ready yet, ``up`` have a
    process, ``ready`` answered and stay, and ``busy`` are those of them that have a job. ``most`` is how many there may
    be. ``waiting`` counts jobs that wait for a server, ``failures`` the servers that failed with no job served since,
    and ``error`` is what went wrong last.
    """

    solver: str
    state: PoolState
    wanted: int
    starting: int
    up: int
    ready: int
    busy: int
    most: int
    waiting: int
    failures: int
    error: str | None


class PoolView(PoolRow, frozen=True, kw_only=True):
    """The warm servers of one solver with all that is known of them.

    ``min`` and ``max`` are those in force; ``scale`` is how many a person wants instead, until the daemon
    ends. ``rests_seconds``: the next one is started so much later. ``licenses`` are those that its servers hold.
    """

    min: int
    max: int
    scale: int | None
    rests_seconds: float | None
    licenses: dict[str, int]
    servers: tuple[ServerRow, ...]


class ParamView(Struct, frozen=True, kw_only=True):
    """A parameter that a job may set, and what it may be set to; without a ``default`` every job must set it."""

    type: Literal["float", "int", "str", "bool"]
    default: bool | int | float | str | None
    min: int | float | None
    max: int | float | None
    choices: tuple[bool | int | float | str, ...]
    help: str | None


class SolverView(Struct, frozen=True, kw_only=True):
    """One solver: what it takes, what a job of it occupies, and how it is now.

    ``accept`` are patterns of file names; with ``alone`` such a file is a job by itself, else a job file must name it.
    ``command`` is what is started, for each job or as its warm server. ``licenses`` are held by a job, or by a warm
    server for its whole life. ``max_jobs`` is its own limit; ``running`` jobs have a place, ``waiting`` ones are queued
    for whatever reason. ``paused`` is the pause that holds it, its own or that of everything; ``pool`` tells of its
    warm servers, if it may have any.
    """

    name: str
    kind: str
    accept: tuple[str, ...]
    alone: bool
    command: tuple[str, ...]
    params: dict[str, ParamView]
    cpus: int
    memory_bytes: int
    licenses: dict[str, int]
    timeout_seconds: float | None
    max_jobs: int | None
    running: int
    waiting: int
    paused: Pause | None
    pool: PoolRow | None


class Solvers(Struct, frozen=True):
    """The solvers of the configuration in force, by their names."""

    solvers: tuple[SolverView, ...]


class Pools(Struct, frozen=True, kw_only=True):
    """The solvers that have warm servers; ``note`` says why there are none where no daemon runs."""

    pools: tuple[PoolView, ...]
    note: str | None = None


class Status(Struct, frozen=True, kw_only=True):
    """The daemon at one moment, all from memory.

    ``problems`` are sentences about what is wrong and what to do; those about a configuration have a line
    more for each fault. ``loop_lag_seconds`` is how late the event loop was at worst within the last minute,
    ``loop_lag_worst_seconds`` since the start. No job starts with less than ``disk_reserve_bytes`` free. ``servers``
    are the solvers that have warm ones, ``limits_set`` the limits that people set.
    ``inbox_settling`` counts what lies in the inbox and becomes jobs with no further help. ``inbox_looked`` is when the
    last look at it began. ``cursor`` is the place in the events up to which this status knows all.
    ``escaped`` counts the processes that outlived their job's attempt or their server and were found and killed.
    ``running_jobs`` are those that run (the first 100), ``waiting_jobs`` the first that are queued (at most 20), in the
    order in which they are looked at; ``last_failed`` the newest failures of the last 24 hours (at most 5).
    """

    host: str
    version: str
    home: str
    inbox_path: str
    pid: int
    health: Health
    problems: tuple[str, ...]
    up_seconds: float
    now: str
    running: int
    collecting: int
    waiting: int
    escaped: int = 0
    last_day: LastDay
    jobs: Level
    cpus: Level
    memory_bytes: Level
    licenses: dict[str, Level]
    loop_lag_seconds: float
    loop_lag_worst_seconds: float
    log_lines_lost: int
    disk_free_bytes: int | None
    disk_reserve_bytes: int | None
    waiting_for: tuple[Waiting, ...]
    inbox: tuple[InboxWait, ...]
    inbox_total: int
    inbox_settling: int = 0
    inbox_looked: str | None = None
    cursor: str = ""
    paused: tuple[Pause, ...]
    limits_set: tuple[Limit, ...] = ()
    servers: tuple[PoolRow, ...]
    running_jobs: tuple[JobRow, ...]
    waiting_jobs: tuple[JobRow, ...] = ()
    last_failed: tuple[JobRow, ...]
    solvers: tuple[str, ...]
    page: str | None = None


class Holder(Struct, frozen=True):
    """A job that holds what another waits for, and since how long."""

    id: str
    user: str | None
    seconds: float


class LicenseView(Struct, frozen=True, kw_only=True):
    """One license: how many are taken of how many, by which jobs (the first to start first) and warm servers.

    ``waiting`` jobs want it first of all. ``error`` is what was said when somebody with a seat of ours was refused;
    ``rests_seconds``: for so long nobody tries again.
    """

    name: str
    used: int
    total: int
    waiting: int
    holders: tuple[Holder, ...]
    servers: tuple[str, ...]
    rests_seconds: float | None
    error: str | None


class Licenses(Struct, frozen=True):
    """The licenses of the configuration in force and those still held, by their names."""

    licenses: tuple[LicenseView, ...]


class Finding(Struct, frozen=True, kw_only=True):
    """One line of an explanation: whether it holds the job back, the numbers behind it, and the words to show.

    ``label`` is the first column (``license``, ``memory``, ...); ``need``, ``used`` and ``total`` are counts, cores or
    bytes, where there are numbers.
    """

    reason: Reason
    label: str
    holds: bool
    text: str
    what: str | None = None
    need: int | None = None
    used: int | None = None
    total: int | None = None
    holders: tuple[Holder, ...] = ()


class Explanation(Struct, frozen=True, kw_only=True):
    """Why a job is where it is, as a colleague would say it.

    ``headline`` follows the name (``waits for a license. Nothing is wrong.``). ``findings`` are of a queued job, those
    that hold it back first; ``checks`` of a finished one. ``next`` says what to do, where something is to be done.
    """

    job: JobRow
    headline: str
    findings: tuple[Finding, ...] = ()
    checks: tuple[Check, ...] = ()
    next: str | None = None


class Submitted(Struct, frozen=True):
    """The answer to a submission. ``existing``: a job with this key was there already, and nothing new was made."""

    id: str
    name: str
    solver: str
    existing: bool = False


class BatchRule(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is asked of a batch: ``on_error`` ``fail`` starts nothing more once a job failed."""

    name: str = ""
    on_error: Literal["skip", "fail"] = "skip"
    max_jobs: int | None = None


class BatchView(Struct, frozen=True, kw_only=True):
    """A batch and how far it is; the states count all its jobs so far. ``over``: closed, and every job is finished."""

    id: str
    name: str
    user: str | None
    on_error: Literal["skip", "fail"]
    max_jobs: int | None
    closed: bool
    over: bool
    stopped: str | None
    queued: int
    running: int
    collecting: int
    succeeded: int
    failed: int
    cancelled: int
    rejected: int
    skipped: int


RoleName = Literal["look", "operate", "administer"]


class Me(Struct, frozen=True, kw_only=True):
    """Who asks, as the daemon sees it, and what that lets them do: each role what those before it do, too."""

    user: str | None
    uid: int | None
    role: RoleName
    via: Literal["socket", "tcp"]


class Pass(Struct, frozen=True, kw_only=True):
    """A bearer token for the TCP listener, with the name and the role of whoever asked for it.

    ``url`` leads a browser to the page; behind ``#`` it holds the token, which browsers send to nobody.
    """

    token: str
    role: RoleName
    user: str | None
    expires: str
    url: str


class Problem(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a request was refused (RFC 9457); ``code`` is stable, ``detail`` says what to do.

    ``candidates`` are ids that a shortened one could mean.
    """

    title: str
    status: int
    detail: str
    code: str
    type: str = "about:blank"
    candidates: tuple[str, ...] = ()
