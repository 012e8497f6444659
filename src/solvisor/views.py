"""What is told of jobs, warm servers and the daemon: the shapes of every answer on the status socket, documented here.

Rules: these records are the public JSON; a field's name, unit and meaning stay. Times are RFC 3339 UTC, durations
``_seconds``, sizes ``_bytes``. A job is shown as finished once its manifest lies in its final place; until then a job
that ended is shown as ``collecting``. No I/O, no clock.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from .manifest import AttemptFacts
from .model import Cause, Check, Reason, ServerState, State

Health = Literal["healthy", "degraded", "stopping"]
PoolState = Literal["ok", "backoff", "failed"]


class JobRow(Struct, frozen=True, kw_only=True):
    """One job in one line.

    ``reason`` is what a queued job waits for. ``folder`` is relative to the home.
    ``queue_seconds`` is how long it waited for its first try, or has waited; ``run_seconds`` how long its last try ran,
    or has been running.
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
    cause: Cause | None = None
    code: str | None = None
    message: str | None = None
    tries: int = 0
    submitted: str
    started: str | None = None
    finished: str | None = None
    queue_seconds: float | None = None
    run_seconds: float | None = None
    folder: str


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
    """Jobs, newest first; ``next`` is the cursor of the page after this one, if there is one."""

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


class Today(Struct, frozen=True):
    """Jobs that finished since midnight, local time of the daemon."""

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

    ``min`` and ``max`` are those of the configuration; ``scale`` is how many a person wants instead, until the daemon
    ends. ``rests_seconds``: the next one is started so much later. ``licenses`` are those that its servers hold.
    """

    min: int
    max: int
    scale: int | None
    rests_seconds: float | None
    licenses: dict[str, int]
    servers: tuple[ServerRow, ...]


class Pools(Struct, frozen=True, kw_only=True):
    """The solvers that have warm servers; ``note`` says why there are none where no daemon runs."""

    pools: tuple[PoolView, ...]
    note: str | None = None


class Status(Struct, frozen=True, kw_only=True):
    """The daemon at one moment, all from memory.

    ``problems`` are sentences about what is wrong and what to do. ``servers`` are the solvers that have warm ones.
    ``running_jobs`` are those that run (the first 100), ``last_failed`` the newest failures of today (at most 5).
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
    today: Today
    jobs: Level
    cpus: Level
    memory_bytes: Level
    licenses: dict[str, Level]
    disk_free_bytes: int | None
    waiting_for: tuple[Waiting, ...]
    inbox: tuple[InboxWait, ...]
    inbox_total: int
    paused: tuple[Pause, ...]
    servers: tuple[PoolRow, ...]
    running_jobs: tuple[JobRow, ...]
    last_failed: tuple[JobRow, ...]
    solvers: tuple[str, ...]


class Holder(Struct, frozen=True):
    """A job that holds what another waits for, and since how long."""

    id: str
    user: str | None
    seconds: float


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
