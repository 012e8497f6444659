"""The seam between the engine and the place where processes run.

A protocol stands here only because it has several implementations: ``backends/local.py`` and the scripted backend of
the engine tests (later ``dask`` and ``slurm``); the kinds with warm servers in ``solvers/``. Rules: ``AttemptSpec`` is
plain JSON; paths are the same on both sides (one shared file system); nothing here knows states or the store.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from .errors import SpawnError
from .model import ExitFacts, Job


class AttemptSpec(Struct, frozen=True):
    """Everything needed to start one solver process tree: of an attempt, or of a warm server.

    ``token`` is ``<home-id>/<attempt token>`` and becomes ``SOLVISOR_ATTEMPT`` in the environment. ``argv`` is a list,
    never a shell line; ``env`` is the whole environment. ``stdout`` and ``stderr`` are files to append to.
    ``grace_seconds`` lies between SIGTERM and SIGKILL. A log longer than ``log_max_bytes`` loses its middle. The limits
    are of the whole tree; where they cannot be enforced they are not.
    """

    token: str
    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    stdout: str
    stderr: str
    grace_seconds: float
    log_max_bytes: int
    memory_limit_bytes: int | None = None
    processes_limit: int | None = None


class Handle(Protocol):
    """A started process tree."""

    @property
    def pid(self) -> int:
        """Process id of the leader, also the number of its group and session."""
        ...

    @property
    def pid_start(self) -> int | None:
        """Start time of ``pid`` in clock ticks since boot: with the boot id it names the process for ever."""
        ...

    async def wait(self) -> ExitFacts:
        """Return once the leader exited and the tree is proven empty, or with ``unkillable`` once it would not die.

        Cancelling the wait does not touch the processes.
        """
        ...

    def stop(self, *, now: bool = False) -> None:
        """Ask the tree to end: SIGTERM, ``grace_seconds``, SIGKILL; with ``now`` SIGKILL at once. Idempotent."""
        ...

    async def wait_gone(self) -> None:
        """After an ``unkillable`` exit: return when the last process of the tree is gone after all."""
        ...


class Watcher(Protocol):
    """Who hears of a process tree on the event loop, as it happens, instead of waiting for it in a task.

    First ``started`` or ``refused``, then ``exited``, and ``gone`` after an unkillable exit; nothing after ``broken``.
    """

    def started(self, handle: Handle) -> None:
        """The program was loaded and runs, since a moment ago; or it ended already, which is told next."""
        ...

    def refused(self, error: SpawnError) -> None:
        """It could not be started."""
        ...

    def exited(self, facts: ExitFacts) -> None:
        """As ``Handle.wait`` returns."""
        ...

    def gone(self) -> None:
        """As ``Handle.wait_gone`` returns."""
        ...

    def broken(self, error: Exception) -> None:
        """A defect ended the supervision of processes, or the watcher itself raised."""
        ...


class Backend(Protocol):
    """A place where processes run."""

    def start(self, prepare: Callable[[], AttemptSpec], watcher: Watcher) -> None:
        """As ``launch``, but nobody waits: ``watcher`` hears of it. Returns at once."""
        ...

    async def launch(self, prepare: Callable[[], AttemptSpec]) -> Handle:
        """Start the process tree that ``prepare`` describes. Raises ``SpawnError``.

        ``prepare`` is called once, on a thread that starts programs, right before the start: it may stage files, as
        long as that is short. It may raise ``SpawnError``; its ``OSError`` becomes one with the reason ``staging``.
        """
        ...


# --- warm servers -----------------------------------------------------------------------------------------------------


class Site(Struct, frozen=True):
    """Where a warm server is to live.

    ``folder`` is its own, empty, also its working folder; ``tmp`` a folder in it for ``TMPDIR``. ``port`` is leased to
    it, if its kind wants one.
    """

    name: str
    folder: str
    tmp: str
    port: int | None


class Program(Struct, frozen=True):
    """What to execute: the program as an absolute path first, and the whole environment."""

    argv: tuple[str, ...]
    env: dict[str, str]


class Up(Struct, frozen=True):
    """A warm server whose process exists. ``token`` is the whole ``SOLVISOR_ATTEMPT`` of its tree."""

    place: Site
    token: str
    pid: int
    stdout: str
    stderr: str


class Work(Protocol):
    """One attempt of a job, as a warm server's kind sees it."""

    job: Job
    folder: Path
    """``work/<id>``: the job's files lie in ``output/``, its logs are ``stdout.log`` and ``stderr.log``."""

    async def launch(self, program: Program, cwd: Path | None = None) -> Handle:
        """Start a process of this attempt, in ``output/`` or ``cwd``, with the job's logs. Raises ``SpawnError``.

        One at a time. When the attempt is to be stopped, the process is, and its ``wait`` returns.
        """
        ...


class Channel(Protocol):
    """A warm server that is ready, and the way to talk to it; for one caller at a time."""

    port: int | None
    """The TCP port it listens on, if it does."""

    @property
    def spent(self) -> str | None:
        """Why it must not have another job, as far as is known: it is replaced then."""
        ...

    @property
    def look(self) -> Callable[[], object] | None:
        """Makes known whether it is spent, before each job, where that takes a look at files. Blocks."""
        ...

    async def check(self) -> None:
        """Return once it answered. Raises ``NotReady``; the caller bounds the time."""
        ...

    async def run(self, work: Work) -> ExitFacts:
        """Carry out a job. What its server itself says of it goes into ``ExitFacts.report``.

        Raises ``Unreached`` if the server was gone before it could hear of the job, and ``ServerBroken`` if it failed
        in the middle. Cancelled when the server dies, or when the job is stopped while no process of its own runs: then
        the server is killed.
        """
        ...

    async def quit(self) -> bool:
        """Ask it politely to end; whether that could be done. The caller bounds the time and waits for the end."""
        ...

    def close(self) -> None:
        """Let go of connections; idempotent."""
        ...


class WarmKind(Protocol):
    """How the servers of one configured solver are started and talked to: one implementation per kind."""

    wants_port: bool
    """Whether a port is leased to each server before its start."""
    host: str
    """The address on which they listen: a lease is tried on exactly this one."""

    def program(self, place: Site) -> Program:
        """What starts a server. Blocks. Raises ``SpawnError``."""
        ...

    async def connect(self, up: Up, note: Callable[[str], None]) -> Channel:
        """Return once a started server answers as it should; tries until cancelled.

        ``note`` takes what was wrong at the last try, in words that follow ``not ready in 60 s:``. Raises ``PortTaken``
        if somebody else has its port, ``NotReady`` if it can never become ready.
        """
        ...

    def explain(self, said: str, facts: ExitFacts) -> str | None:
        """What it means that a start ended so with these last words; ``None`` if the words speak for themselves."""
        ...
