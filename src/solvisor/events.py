"""What can happen to a job, and what follows from it: the vocabulary of the machine.

Rules: events are facts, told by whoever saw them; effects are orders, carried out by the engine once the change is
recorded. Instants come in with the event: ``now`` is monotonic seconds, ``now_us`` UTC microseconds for display.
"""

from __future__ import annotations

from msgspec import Struct

from .model import Batch, Demand, ExitFacts, Intake, Settings, Verdict

# --- events ---------------------------------------------------------------------------------------------------------


class Event(Struct, frozen=True):
    """Something that happened to the job ``id``."""

    id: str


class Accept(Event, frozen=True):
    """A drop was claimed and hashed.

    ``unmet`` are live jobs it waits for, ``failed_dependency`` one that is over and did not succeed; ``batch`` is the
    batch it belongs to, as recorded.
    """

    intake: Intake
    demand: Demand
    unmet: frozenset[str]
    failed_dependency: str | None
    now_us: int
    batch: Batch | None = None


class Dispatch(Event, frozen=True):
    """The scheduler gives the job its room, and with ``now`` the warm ``server`` if its solver has such."""

    token: str
    host: str
    settings: Settings
    now_us: int
    server: str | None = None
    now: float = 0.0


class Fenced(Event, frozen=True):
    """An event of one attempt, valid only while ``token`` is the current one."""

    token: str


class Spawned(Fenced, frozen=True):
    """The process exists, or a warm server (whose ``pid`` it is) has the job. ``now`` (monotonic) arms the timeout."""

    argv: tuple[str, ...]
    pid: int
    pid_start: int | None
    boot_id: str | None
    now: float


class Launched(Fenced, frozen=True):
    """A job that a warm server has started a process of its own."""

    argv: tuple[str, ...]
    pid: int
    pid_start: int | None


class ServerLost(Fenced, frozen=True):
    """The warm server of the job is gone. ``reached``: it had heard of the job, which may be the reason."""

    reached: bool
    message: str
    now: float
    now_us: int


class SpawnFailed(Fenced, frozen=True):
    """No process came to be; ``reason`` is the open code."""

    reason: str
    message: str
    now: float
    now_us: int


class DeadlinePassed(Fenced, frozen=True):
    """The attempt ran longer than its timeout."""


class Exited(Fenced, frozen=True):
    """The process tree is proven empty (or would not die: ``facts.unkillable``)."""

    facts: ExitFacts
    now_us: int


class Judged(Fenced, frozen=True):
    """The outputs are durable and the verdict is known. ``now`` is monotonic."""

    verdict: Verdict
    now: float
    now_us: int


class Lost(Fenced, frozen=True):
    """The attempt ended through no fault of the job: the daemon died or was stopped before the attempt's own end.

    Without ``interruptions_max`` it was an orderly stop, which says nothing about the job and is not counted.
    """

    interruptions_max: int | None
    now_us: int


class Resumed(Fenced, frozen=True):
    """A new life of the daemon takes up the collecting that an earlier one did not finish.

    ``ended``: so many starts ended while they did so, and none shall try again; else 0.
    """

    ended: int
    now_us: int


class SetAside(Event, frozen=True):
    """It cannot be worked on, and shall not hold up the others: ``code`` and ``message`` say why."""

    code: str
    message: str
    now_us: int


class Gone(Fenced, frozen=True):
    """What would not die is gone after all."""


class BackoffOver(Event, frozen=True):
    """The rest before the next try is over."""


class Cancel(Event, frozen=True):
    """A user wants the job ended."""

    now_us: int


class Prioritize(Event, frozen=True):
    """A user wants the job to wait elsewhere in the order: a higher ``priority`` starts first."""

    priority: int


class DependencyOver(Event, frozen=True):
    """A job this one waits for became terminal."""

    other: str
    succeeded: bool
    now_us: int


class Skip(Event, frozen=True):
    """Its batch starts nothing more."""

    message: str
    now_us: int


class Published(Event, frozen=True):
    """The manifest is on disk and the folder in its final place."""


# --- of warm servers ------------------------------------------------------------------------------------------------


class ServerEvent(Struct, frozen=True):
    """Something that happened to the warm server ``name``. ``now`` is monotonic seconds."""

    name: str


class ServerWanted(ServerEvent, frozen=True):
    """The scheduler wants one more server of ``solver``, holding ``licenses``."""

    solver: str
    licenses: tuple[tuple[str, int], ...]
    now: float
    now_us: int


class ServerUp(ServerEvent, frozen=True):
    """Its process exists; with ``port`` on its try to serve there."""

    pid: int
    port: int | None


class ServerReady(ServerEvent, frozen=True):
    """It answered as it should, so many ``seconds`` after its start."""

    port: int | None
    seconds: float
    now: float


class ServerLent(ServerEvent, frozen=True):
    """It has a job."""

    job: str
    now: float


class ServerFree(ServerEvent, frozen=True):
    """It is done with its job and can take another, unless it is ``spent``. ``served``: it carried the job out."""

    served: bool
    spent: str | None
    now: float


class ServerSeen(ServerEvent, frozen=True):
    """It answered, and holds so much memory."""

    rss_bytes: int | None


class Retire(ServerEvent, frozen=True):
    """It is to end once it has no job; ``why`` in a few words."""

    why: str
    now: float


class Condemn(ServerEvent, frozen=True):
    """It is being ended, job or not; ``why`` in a few words."""

    why: str
    now: float


class ServerStuck(ServerEvent, frozen=True):
    """Its processes would not die."""


class ServerEnded(ServerEvent, frozen=True):
    """Nothing of it is left. ``error`` says what went wrong, if it did; ``blameless``: through no fault of the solver.

    ``denied``: it got no license. ``over_job``: it had heard of its job, which may be the reason.
    """

    error: str | None
    blameless: bool
    now: float
    denied: bool = False
    over_job: bool = False


# --- effects --------------------------------------------------------------------------------------------------------


class Effect(Struct, frozen=True):
    """Something for the engine to do for the job ``id``."""

    id: str


class Start(Effect, frozen=True):
    """Stage and start the attempt ``token`` (once recorded)."""

    token: str


class Stop(Effect, frozen=True):
    """End the processes of the attempt ``token``."""

    token: str


class Collect(Effect, frozen=True):
    """Judge, make durable and hash what the attempt ``token`` left (once recorded)."""

    token: str


class Publish(Effect, frozen=True):
    """Write the manifest and move the folder (once durable)."""


class Ended(Effect, frozen=True):
    """The job became terminal: whoever waits for it must learn so. ``apply`` itself carries this out."""

    succeeded: bool
    now_us: int


class BatchStopped(Effect, frozen=True):
    """A job of ``batch`` failed and its rule is to stop then. ``apply`` itself carries this out."""

    batch: str
    now_us: int


class StartServer(Struct, frozen=True):
    """Start the warm server ``name``."""

    name: str


class StopServer(Struct, frozen=True):
    """End the warm server ``name``."""

    name: str


class Discarded(Effect, frozen=True):
    """An event of a superseded attempt was ignored; worth a log line."""

    event: str
    token: str
