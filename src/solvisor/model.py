"""The records that every other module speaks in.

Rules: records are frozen and hold plain values (no handles, no open files, no clocks); a change makes a new record
with ``msgspec.structs.replace``. Units: ``_us`` are UTC microseconds since 1970 for display only, ``_seconds`` and
``_bytes`` say what they are; instants that drive anything are monotonic seconds passed in by the engine and never
stored. The one mutable thing, ``World``, lives in ``world.py``. No I/O here, and nothing of Solvisor is imported. One
file, if a long one: whoever reads any other module looks here for its nouns.
"""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from typing import Any, Literal

from msgspec import Struct, json
from msgspec.structs import replace


class State(StrEnum):
    """Where a job is. The last five have no exit."""

    QUEUED = "queued"
    RUNNING = "running"
    COLLECTING = "collecting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REJECTED = "rejected"
    SKIPPED = "skipped"


TERMINAL = frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLED, State.REJECTED, State.SKIPPED})

Target = Literal["done", "failed", "rejected"]
"""A folder of the home for finished jobs."""

TARGETS: dict[State, Target] = {
    State.SUCCEEDED: "done",
    State.FAILED: "failed",
    State.CANCELLED: "failed",
    State.SKIPPED: "failed",
    State.REJECTED: "rejected",
}
"""Where a finished job's folder goes."""


class Cause(StrEnum):
    """Why a job failed: a closed list. The open ``code`` beside it says more."""

    SPAWN = "spawn"
    EXIT = "exit"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    STALLED = "stalled"
    OOM = "oom"
    CHECK = "check"
    SERVER = "server"
    LOST = "lost"
    UNKILLABLE = "unkillable"
    POISON = "poison"


LICENSE_DENIED = "license_denied"
"""The code of an attempt that got no license although we had given it a seat."""


class Reason(StrEnum):
    """Why a job is still queued. Never stored: the scheduler computes it."""

    ORDER = "order"
    JOBS = "jobs"
    CPUS = "cpus"
    MEMORY = "memory"
    LICENSE = "license"
    SERVER = "server"
    DEPENDENCY = "dependency"
    PAUSED = "paused"
    BACKOFF = "backoff"
    HOURS = "hours"
    DISK = "disk"
    SOLVER = "solver"


class FileFact(Struct, frozen=True, gc=False):
    """One file of a job. ``path`` is relative to the job's folder, with ``/``; bytes not UTF-8 appear as ``\\xNN``.

    A symbolic link is listed with ``link`` (its target, never followed), size 0 and an empty ``sha256``.
    """

    path: str
    size: int
    sha256: str
    link: str | None = None


class Retry(Struct, frozen=True, forbid_unknown_fields=True):
    """How often a failed attempt is tried again, and after which causes. ``delay_seconds`` doubles with each try."""

    max: int = 0
    on: tuple[Cause, ...] = ()
    delay_seconds: float = 1.0


class Source(Struct, frozen=True, gc=False):
    """How the job came in: ``via`` is ``inbox``, ``socket`` or ``retry``, ``path`` the name dropped or sent."""

    via: str
    path: str


class Original(Struct, frozen=True, gc=False):
    """A file claimed by copy, to be removed from the inbox once the job is durable, if it is still this very file."""

    path: str
    dev: int
    ino: int
    size: int
    mtime_ns: int


class Request(Struct, frozen=True):
    """What is known of a job beside its files, where it did not simply lie in the inbox.

    ``user`` is who sent it (the peer of the socket), ``retry_of`` the finished job whose inputs it takes again.
    """

    via: Literal["socket", "retry"]
    user: str | None = None
    batch: str | None = None
    key: str | None = None
    retry_of: str | None = None


class JobSpec(Struct, frozen=True, tag_field="schema", tag=1, omit_defaults=True):
    """What the user asked for, as stored in the row. Solver settings are *not* here: they are resolved at each attempt.

    What nobody asked for is left out of the row: of 100,000 jobs that wait, it would be a quarter of the memory.

    ``primary`` is the name of ``{input}`` relative to the job's ``input/`` folder. ``None`` in ``timeout_seconds``,
    ``cpus``, ``memory_bytes``, ``licenses`` and ``retry`` means: as the solver says. ``route`` is the folder of the
    inbox it was dropped in, and ``folder`` says that it came as one: with them the same files are judged again.
    ``options`` are the tables of the job file that only its solver's kind knows.
    """

    name: str
    solver: str
    primary: str
    inputs: tuple[FileFact, ...]
    source: Source
    user: str | None = None
    project: str | None = None
    priority: int = 0
    params: dict[str, Any] = {}
    after: tuple[str, ...] = ()
    key: str | None = None
    timeout_seconds: float | None = None
    cpus: int | None = None
    memory_bytes: int | None = None
    licenses: dict[str, int] | None = None
    retry: Retry | None = None
    batch: str | None = None
    retry_of: str | None = None
    route: str | None = None
    folder: bool = False
    options: dict[str, Any] = {}
    originals: tuple[Original, ...] = ()


class Batch(Struct, frozen=True):
    """Jobs submitted together. ``closed``: no more come. ``stopped``: nothing more of it is started, and why."""

    id: str
    name: str
    user: str | None
    on_error: Literal["skip", "fail"]
    max_jobs: int | None
    created_us: int
    closed: bool = False
    stopped: str | None = None


class Pause(Struct, frozen=True):
    """Nothing of ``solver`` is started (of any, where it is ``None``), since when, by whom, and what they noted."""

    solver: str | None
    by: str | None
    since_us: int
    note: str | None


class Override(Struct, frozen=True):
    """A limit that a person set in place of the configuration's: since when, who, and what they noted.

    ``name`` is as people say it (``max_jobs``, ``license.orcaflex``); ``value`` counts jobs, cores, bytes or licenses.
    """

    name: str
    value: int
    by: str | None
    since_us: int
    note: str | None


class Demand(Struct, frozen=True):
    """What a job occupies while it runs; jobs with equal demand are interchangeable for admission. Hashable.

    ``batch`` is its batch, if that has a limit of its own: ``batch_jobs`` at once. ``warm``: it needs one of its
    solver's warm servers; ``licenses`` are then those beyond what the server holds.
    """

    solver: str
    cpus: int
    memory_bytes: int
    licenses: tuple[tuple[str, int], ...] = ()
    batch: str | None = None
    batch_jobs: int = 0
    warm: bool = False


class Usage(Struct, frozen=True, gc=False, omit_defaults=True):
    """What one attempt used. CPU times are of the whole reaped tree.

    ``max_rss_source`` is ``cgroup`` (the whole tree at its largest, with its share of the file cache), ``wait4`` or
    ``sampled`` (its largest process), or ``server`` (what a warm server says of a job).
    """

    cpu_user_seconds: float | None = None
    cpu_system_seconds: float | None = None
    max_rss_bytes: int | None = None
    max_rss_source: str | None = None


class Check(Struct, frozen=True, gc=False):
    """One success check: what was looked at, what was wanted, what was found, whether it holds."""

    check: str
    want: str
    got: str
    ok: bool


class Report(Struct, frozen=True):
    """What a warm server said of a job, or its kind of what the job left.

    ``result`` is any JSON value, for the manifest. ``code`` and ``message`` are set if it failed. ``checks`` are those
    that the kind itself made of the results. ``version`` is of what carried it out, where that is known.
    """

    result: Any = None
    code: str | None = None
    message: str | None = None
    checks: tuple[Check, ...] = ()
    version: str | None = None


class ExitFacts(Struct, frozen=True, omit_defaults=True):
    """How a process tree ended. Exactly one of ``exit_code`` and ``signal`` is set, unless ``unkillable``.

    ``stopped`` is true if Solvisor ended it. ``oom_kills`` are its processes that the kernel killed for want of memory,
    ``refused_forks`` those it did not get because of ``processes_limit``. ``log_cut_bytes`` counts what was dropped
    from the middle of oversized logs. ``seconds`` is how long it ran, by a clock that nobody sets, where one life saw
    both ends. Of a job that a warm server carried out, ``exit_code`` is 0 if it said that all went well, else 1, and
    ``report`` is what it said.
    """

    exit_code: int | None
    signal: int | None
    finished_us: int
    usage: Usage = Usage()
    stopped: bool = False
    unkillable: bool = False
    log_cut_bytes: int = 0
    oom_kills: int = 0
    refused_forks: int = 0
    report: Report | None = None
    seconds: float | None = None


class Settings(Struct, frozen=True, omit_defaults=True):
    """What one attempt was resolved with: the solver's table as it stood then, with the job's own wishes laid over it.

    ``table`` is that table as JSON values: a collection resumed after a restart judges by what held at the start. What
    its command became is ``Attempt.argv``. What is as it is here by default is left out of the row.
    """

    kind: str
    table: dict[str, Any] = {}
    version: str | None = None
    timeout_seconds: float | None = None
    cpus: int = 1
    memory_bytes: int = 0
    licenses: dict[str, int] = {}
    retry: Retry = Retry()


class Attempt(Struct, frozen=True):
    """One try of a job. ``token`` is what fences its result.

    ``cause`` is set once it ended badly (``lost``: interrupted through no fault of the job, so not charged to it).
    ``server`` is the warm server that carried it out, ``port`` where that listened.
    """

    n: int
    token: str
    host: str
    started_us: int
    settings: Settings
    server: str | None = None
    port: int | None = None
    argv: tuple[str, ...] = ()
    pid: int | None = None
    pid_start: int | None = None
    boot_id: str | None = None
    facts: ExitFacts | None = None
    cause: Cause | None = None
    code: str | None = None
    message: str | None = None


class Verdict(Struct, frozen=True):
    """The judgement on a finished attempt. ``cause`` is ``None`` exactly when it succeeded.

    ``message`` is the solver's own sentence where one was found. ``outputs`` are all files of ``output/`` but unchanged
    staged inputs, plus the two logs; of more than 1,000 the first stand here and all in the file ``more_outputs``.
    """

    cause: Cause | None
    code: str | None = None
    message: str | None = None
    checks: tuple[Check, ...] = ()
    outputs: tuple[FileFact, ...] = ()
    more_outputs: FileFact | None = None
    log_tail: str = ""
    log_truncated: bool = False


_encode_spec = json.Encoder().encode
_decode_spec = lru_cache(maxsize=16)(json.Decoder(JobSpec).decode)  # who is about to start is looked at several times


class Job(Struct, frozen=True, gc=False):
    """One unit of work as the engine holds it: one row, one folder, one manifest.

    ``asked`` is its spec, or the bytes of it in the row: of 100,000 jobs that wait, few are looked at, and bytes take a
    third of the memory.
    ``interruptions`` counts attempts in a row that ended through no fault of the job; they are not charged to
    ``retry.max``. ``backoff_seconds`` is the wait still owed before the next try. ``manifest`` holds the exact bytes
    once the job is terminal. ``removed_us`` is when the files of a published one were removed. ``given_priority`` is
    what a person gave it in place of what it asked for.
    """

    id: str
    seq: int
    state: State
    asked: JobSpec | bytes
    submitted_us: int
    attempts: tuple[Attempt, ...] = ()
    interruptions: int = 0
    backoff_seconds: float = 0.0
    cancel: bool = False
    cause: Cause | None = None
    code: str | None = None
    message: str | None = None
    started_us: int | None = None
    finished_us: int | None = None
    manifest: bytes | None = None
    removed_us: int | None = None
    given_priority: int | None = None

    @property
    def priority(self) -> int:
        """Higher starts first."""
        given = self.given_priority
        return self.spec.priority if given is None else given

    @property
    def spec(self) -> JobSpec:
        """What the user asked for."""
        asked = self.asked
        return _decode_spec(asked) if isinstance(asked, bytes) else asked

    @property
    def spec_bytes(self) -> bytes:
        """The spec as its row holds it."""
        return self.asked if isinstance(self.asked, bytes) else _encode_spec(self.asked)

    def packed(self) -> Job:
        """The same job with its spec as bytes."""
        if isinstance(self.asked, bytes):
            return self
        return replace(self, asked=bytes(memoryview(_encode_spec(self.asked))))  # the encoder's own has room to spare

    @property
    def attempt(self) -> Attempt | None:
        """The current or last attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def current(self) -> Attempt:
        """The current or last attempt of a job that has one; ``IndexError`` is a defect."""
        return self.attempts[-1]


class PortRange(Struct, frozen=True):
    """TCP ports, both ends included."""

    first: int
    last: int


class Address(Struct, frozen=True):
    """Where a TCP socket listens: an IP address in its usual form, and a port."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class PoolRule(Struct, frozen=True):
    """How many warm servers of a solver there may be, what each holds, and how long it lives.

    ``auto``: ``max`` follows how many jobs may run at once.
    More than ``restarts`` ends within ``restarts_within_seconds``, with no job served between: the pool has failed.
    """

    min: int
    max: int
    idle_seconds: float | None
    recycle_jobs: int | None
    recycle_age_seconds: float | None
    recycle_rss_bytes: int | None
    licenses: tuple[tuple[str, int], ...]
    restarts: int
    restarts_within_seconds: float
    auto: bool = False

    def within(self, max_jobs: int, own: int | None) -> PoolRule:
        """The rule where so many jobs run at once, of all solvers and of its ``own``: more servers had no work."""
        if not self.auto:
            return self
        return replace(self, max=max(self.min, max_jobs if own is None else min(max_jobs, own)))


class ServerState(StrEnum):
    """Where a warm server is. ``backoff`` and ``failed`` are of a solver none of whose servers may start now."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DRAINING = "draining"
    STOPPING = "stopping"
    BACKOFF = "backoff"
    FAILED = "failed"


class Server(Struct, frozen=True):
    """One warm server. It is *wanted* from ``born`` on, *up* once it has a ``pid``, *ready* after ``ready_seconds``.

    ``name`` is its solver and its instance number. ``born`` and ``since`` (it is in its state) are monotonic seconds,
    which is no harm: a server is never stored. ``why`` says why it stops; ``stuck``: it would not die. ``jobs`` counts
    those it served, ``job`` is the one it has.
    """

    name: str
    solver: str
    state: ServerState
    licenses: tuple[tuple[str, int], ...]
    born: float
    since: float
    started_us: int
    ready_seconds: float | None = None
    pid: int | None = None
    port: int | None = None
    rss_bytes: int | None = None
    jobs: int = 0
    job: str | None = None
    why: str | None = None
    stuck: bool = False


class Limits(Struct, frozen=True):
    """What may run at once. ``solver_jobs`` names every configured solver; ``None`` means no limit of its own.

    ``pools`` names those with warm servers.
    """

    max_jobs: int
    cpus: int
    memory_bytes: int
    interruptions_max: int
    licenses: dict[str, int]
    solver_jobs: dict[str, int | None]
    pools: dict[str, PoolRule] = {}


class Intake(Struct, frozen=True):
    """A claimed drop on its way to becoming a row: accepted, or refused with a code and a message for its user."""

    id: str
    spec: JobSpec
    refusal: tuple[str, str] | None = None
