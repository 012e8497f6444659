"""What a solver's table in the configuration may hold: one record per kind, and the tables inside them.

Rules: a field is a key of the file, its type says what is allowed, ``kind`` chooses the record. Durations are held in
seconds, sizes in bytes. What no single type can say stands in ``kindchecks``. This module knows nothing but the format.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, assert_never

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from .fieldtypes import (
    Argument,
    Count,
    Duration,
    EnvGlob,
    EnvName,
    FileGlob,
    Function,
    LicenseName,
    OwnFileName,
    ParamName,
    Port,
    Program,
    Regex,
    Size,
    Timeout,
    doc,
)
from .model import Cause, Retry
from .params import Param
from .tables import DISTINCT, advice
from .template import names

ExitCode = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
RetryCause = Literal["spawn", "exit", "signal", "timeout", "stalled", "oom", "check"]

COMMAND_WORDS: Final = "Program and arguments, never a shell line"


class Output(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file that a good run leaves in its output folder: it exists, is not empty, and more where asked."""

    path: Annotated[Argument, doc("Name or pattern (* ? [ ]) below the output folder; {stem} and {params.NAME}.")]
    min_bytes: Annotated[Size, doc("The smallest size of a good one.")] = 1
    match: Annotated[Regex | None, doc("Found in a good one; ^ and $ match at lines.")] = None


class Success(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a good run looks like. An exit code alone proves little: many solvers exit 0 without a result."""

    exit: Annotated[tuple[ExitCode, ...], DISTINCT, doc("Exit codes of a good run.")] = (0,)
    outputs: Annotated[tuple[Argument | Output, ...], DISTINCT, doc("Files that a good run leaves.")] = ()
    log_forbid: Annotated[tuple[Regex, ...], DISTINCT, doc("Never found in stdout or stderr of a good run.")] = ()
    error_pattern: Annotated[Regex | None, doc("Finds the solver's own error sentence; group 1 if it has one.")] = None

    def wanted_outputs(self) -> tuple[Output, ...]:
        """``outputs``, each in its long form."""
        return tuple(Output(path=item) if isinstance(item, str) else item for item in self.outputs)


class RetryTable(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How often a failed attempt is tried again, and after which causes."""

    max: Annotated[int, Meta(ge=0, le=100), doc("Tries after the first.")] = 0
    on: Annotated[tuple[RetryCause, ...], DISTINCT, doc("The causes after which another try makes sense.")] = ()
    delay: Annotated[Duration, doc("The wait before the second try; it doubles each time.")] = 1.0

    def rule(self) -> Retry:
        """As the records of jobs hold it."""
        return Retry(max=self.max, on=tuple(Cause(cause) for cause in self.on), delay_seconds=self.delay)


# --- warm servers -----------------------------------------------------------------------------------------------------


class Servers(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many warm servers of a solver there are, and how long each of them lives."""

    min: Annotated[int, Meta(ge=0, le=1000), doc("Kept up although no job asks for them.")] = 0
    max: Annotated[Count | Literal["auto"], doc("At once; auto: as many as jobs of it may run at once.")] = "auto"
    idle: Annotated[Timeout, doc("One above min that had no job for so long is stopped.")] = 600.0
    recycle_jobs: Annotated[Count | None, doc("It is replaced after so many jobs.")] = None
    recycle_age: Annotated[Timeout | None, doc("It is replaced when it is so old.")] = None
    recycle_rss: Annotated[Size | None, doc("It is replaced when its processes hold more memory.")] = None
    start_timeout: Annotated[Timeout, doc("From its start to its first answer.")] = 60.0
    stop_grace: Annotated[Duration, doc("For its own quit, and again between SIGTERM and SIGKILL.")] = 5.0
    heartbeat: Annotated[Timeout, doc("An idle one is asked so often whether it still answers.")] = 30.0
    heartbeat_timeout: Annotated[Timeout, doc("It has so long to answer, or is replaced.")] = 5.0
    restarts: Annotated[Count, doc("More ends than this, with no job served between, and the solver is failed.")] = 5
    restarts_within: Annotated[Timeout, doc("Ends longer ago are forgotten.")] = 300.0


class TcpReady(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="tcp"):
    """It is ready when a connection brings what is expected: an accepted one alone says nothing."""

    send: Annotated[Argument | None, doc("Sent once per connection; \\r and \\n as TOML writes them.")] = None
    expect: Annotated[Regex, doc("Found in what it says: its greeting, or its answer to send.")]


class HttpReady(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="http"):
    """It is ready when a GET of ``path`` is answered as expected."""

    path: Annotated[Argument, doc("Path and query of the request.")] = "/"
    status: Annotated[tuple[Annotated[int, Meta(ge=100, le=599)], ...], DISTINCT, doc("Good statuses.")] = (200,)
    expect: Annotated[Regex | None, doc("Found in the body of a good answer.")] = None


class LineReady(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="line"):
    """It is ready when it prints such a line."""

    match: Annotated[Regex, doc("Found in its stdout or stderr; ^ and $ match at lines.")]


class FileReady(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="file"):
    """It is ready when it wrote such a file in its folder."""

    path: Annotated[OwnFileName, doc("Name of the file in the server's folder.")]
    match: Annotated[Regex, doc("Found in it: an empty or half-written file says nothing.")]


class ZmqReady(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="zmq"):
    """It is ready when a ZeroMQ request is answered as expected."""

    send: Annotated[Argument, doc("The request, sent once.")]
    expect: Annotated[Regex, doc("Found in the reply.")]


Ready = TcpReady | HttpReady | LineReady | FileReady | ZmqReady


class ReportedPort(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A server that picks its own port tells it: in a printed line, or in a file in its folder."""

    line: Annotated[Regex | None, doc("Finds the port in its stdout or stderr: group 1.")] = None
    file: Annotated[OwnFileName | None, doc("Name of a file in the server's folder that holds the port.")] = None
    match: Annotated[Regex, doc("Finds the port in file: group 1.")] = r"(\d+)\s*$"


# --- kinds ------------------------------------------------------------------------------------------------------------


class SolverConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind"):
    """What the solvers of every kind have: which files they take, what a job of them occupies, what a good run is."""

    accept: Annotated[tuple[FileGlob, ...], DISTINCT, doc("Names of files in the inbox that it takes.")] = ()
    alone: Annotated[bool, doc("Whether one file is a job by itself; if not, a job file is needed.")] = True
    timeout: Annotated[Timeout | None, doc("The longest run; without it there is no limit.")] = None
    cpus: Annotated[Count, doc("Cores reserved for a job.")] = 1
    memory: Annotated[Size, doc("Memory reserved for a job.")] = 0
    memory_limit: Annotated[
        Size | None,
        doc("A tree of processes (a job's, or a warm server's) that holds more memory than this is killed."),
    ] = None
    processes_limit: Annotated[Count | None, doc("Processes and threads that such a tree gets at most.")] = None
    licenses: Annotated[
        dict[LicenseName, Count],
        doc("Licenses, of those in [licenses], that a job holds; with warm servers, each server for its whole life."),
    ] = {}
    license_denied: Annotated[
        Regex | None, doc("Found in the logs of a run that got no license: it is tried again later, and not charged.")
    ] = None
    env: Annotated[
        dict[EnvName, Argument], doc("Environment variables; placeholders as in command, of a warm server as in start.")
    ] = {}
    pass_env: Annotated[tuple[EnvGlob, ...], DISTINCT, doc("Variables of the daemon to pass on.")] = ()
    env_script: Annotated[Argument | None, doc("A shell script that sets the environment.")] = None
    max_jobs: Annotated[Count | None, doc("Jobs of this solver at once.")] = None
    stop_grace: Annotated[Duration, doc("Between SIGTERM and SIGKILL.")] = 10.0
    log_max: Annotated[Size, doc("A log that grows over this loses its middle.")] = 64 << 20
    params: Annotated[dict[ParamName, Param], doc("Parameters that jobs may set.")] = {}
    success: Success = Success()
    retry_table: RetryTable = field(default=RetryTable(), name="retry")

    @property
    def kind(self) -> str:
        """How it is driven."""
        return str(self.__struct_config__.tag)

    @property
    def retry(self) -> Retry:
        """The rule for jobs that do not bring their own."""
        return self.retry_table.rule()


class CommandSolver(SolverConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="command"):
    """One process per job."""

    command: Annotated[
        tuple[Argument, ...],
        doc(f"{COMMAND_WORDS}: {{input}} {{stem}} {{output}} {{job_dir}} {{cpus}} {{params.NAME}}."),
    ]


class WarmSolver(SolverConfig, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="warm"):
    """What all kinds with warm servers have; itself no kind."""

    servers: Servers = Servers()


class ServerSolver(WarmSolver, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="server"):
    """Any program that serves on a port. A job is a client command that talks to it, or one line of JSON."""

    start: Annotated[
        tuple[Argument, ...], doc(f"{COMMAND_WORDS}: starts the server; {{host}} {{port}} {{server_dir}} {{cpus}}.")
    ]
    ready: Annotated[
        Ready, doc("How it is seen that it answers."), advice('for example ready = { kind = "tcp", expect = "^Rsrv" }')
    ]
    command: Annotated[
        tuple[Argument, ...],
        doc(
            f"{COMMAND_WORDS}: the client of a job; {{host}} {{port}} {{server_dir}} {{input}} {{stem}} {{output}} "
            "{job_dir} {cpus} {params.NAME}."
        ),
    ] = ()
    talk: Annotated[Literal["json"] | None, doc("Instead of command: a job is a line of JSON over TCP.")] = None
    host: Annotated[Literal["127.0.0.1", "::1"], doc("The address it listens on.")] = "127.0.0.1"
    port: Annotated[
        ReportedPort | Port | None,
        doc("How it tells the port it picked, or the only one it knows; without this it is given one as {port}."),
        advice("without this key it is given a port as {port}; if it picks its own: port = { line = 'port ([0-9]+)' }"),
    ] = None
    quit: Annotated[
        tuple[Argument, ...], doc("A command that asks it to end, before SIGTERM; {host} {port} {server_dir} {cpus}.")
    ] = ()

    @property
    def is_given_port(self) -> bool:
        """Whether it is told a port to listen on: ``start`` or ``env`` says ``{port}``. It may also have none."""
        return any("port" in names(text) for text in (*self.start, *self.env.values()))


class OmcSolver(WarmSolver, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="omc"):
    """OpenModelica's compiler as a server: models are compiled once and run many times."""

    omc: Annotated[Program, doc("The program.")] = "omc"
    cache: Annotated[Size, doc("Compiled models kept; the longest unused go first.")] = 4 << 30
    options: Annotated[
        tuple[Argument, ...], doc('Command line options of omc for every model, such as "-d=initialization".')
    ] = ()


class PythonSolver(WarmSolver, frozen=True, forbid_unknown_fields=True, kw_only=True, tag="python"):
    """A warm interpreter that imports a function once and calls it for each job."""

    call: Annotated[
        Function, doc('The function: "post.py:process", a file beside the configuration, or "package.module:process".')
    ]
    python: Annotated[Program, doc("The interpreter; it need not contain Solvisor.")] = "python3"


AnySolver = CommandSolver | ServerSolver | OmcSolver | PythonSolver
"""A solver of some kind; one without ``kind`` is a ``command``."""

_OF_JOBS = ("accept", "alone", "timeout", "memory", "max_jobs", "success", "retry_table")
_OF_POOLS = ("min", "max", "idle", "recycle_jobs", "recycle_age", "recycle_rss", "restarts", "restarts_within")


def serves_on(solver: WarmSolver, now: AnySolver | None) -> bool:
    """Whether warm servers of a solver may go on now that it is configured otherwise; ``None``: not at all.

    What is asked before or after a job had its server makes no difference to that, nor does how many there may be.
    """
    if not isinstance(now, WarmSolver):
        return False
    servers = replace(now.servers, **{name: getattr(solver.servers, name) for name in _OF_POOLS})
    return replace(now, servers=servers, **{name: getattr(solver, name) for name in _OF_JOBS}) == solver


def programs(solver: AnySolver) -> dict[str, tuple[str, ...]]:
    """What a solver runs: programs, each with its arguments as they are written, by the key that names it."""
    match solver:
        case CommandSolver():
            return {"command": solver.command}
        case ServerSolver():
            commands = {"start": solver.start, "command": solver.command, "quit": solver.quit}
            return {key: command for key, command in commands.items() if command}
        case OmcSolver():
            return {"omc": (solver.omc, *solver.options)}
        case PythonSolver():
            return {"python": (solver.python,)}
        case _:
            assert_never(solver)
