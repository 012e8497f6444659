"""The configuration: TOML text in, one frozen ``Config`` out, or every fault at once.

Rules: the records below are the format: a field is a key of the file, its type says what is allowed; durations are held
in seconds, sizes in bytes. Those of solvers stand in ``kinds``. A ``Config`` is the file and nothing else: facts of the
machine (cores, memory) come in as arguments. This module does not know how a solver is started, how a result is judged,
or who asked.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
import tomli_w
from msgspec import Struct

from . import tomltext
from .errors import ConfigError
from .fieldtypes import (
    Argument,
    Count,
    Duration,
    LicenseName,
    Ports,
    Size,
    SolverName,
    Timeout,
    doc,
)
from .kindchecks import (
    check_command,
    check_fixed_ports,
    check_kept_licenses,
    check_room,
    check_solver,
    check_template,
    function_file,
)
from .kinds import AnySolver, PythonSolver, ServerSolver, SolverConfig, WarmSolver
from .model import Demand, JobSpec, Limits, PoolRule, PortRange, Settings
from .tables import DISTINCT, TAG_OPTIONAL, Faults, editor_schema, plain, read

LARGEST_FILE: Final = 1 << 20
NotifyEvent = Literal["succeeded", "failed", "cancelled", "rejected", "skipped", "batch"]


class Daemon(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the daemon may use of the machine, and how it stops."""

    max_jobs: Annotated[Count | Literal["auto"], doc("Jobs at once; auto: usable cores - 1, at least 1.")] = "auto"
    cpus: Annotated[Count | Literal["auto"], doc("Cores for jobs; auto: those the daemon may use.")] = "auto"
    memory: Annotated[Size | Literal["auto"], doc("Memory for jobs; auto: all but memory_reserve.")] = "auto"
    memory_reserve: Annotated[Size, doc("Where memory is auto: never given to jobs.")] = 2 << 30
    stop_timeout: Annotated[Duration, doc("How long SIGTERM lets running jobs finish.")] = 60.0
    interruptions_max: Annotated[Count, doc("Interruptions of a job in a row before it is failed: lost.")] = 3
    ports: Annotated[Ports, doc("Where warm servers that are given a port listen.")] = PortRange(23600, 23999)


class Inbox(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where users drop files, and when a file counts as complete."""

    path: Annotated[Argument | None, doc("The folder; without it, inbox/ in the home.")] = None
    settle: Annotated[Duration, doc("How long a file must stay unchanged.")] = 0.5
    rescan: Annotated[Timeout, doc("How often the folder is read even if no event came.")] = 2.0
    orphan_after: Annotated[Timeout, doc("How long a file may wait for its job file.")] = 600.0


NOTIFY_PLACEHOLDERS: Final = (
    *("event", "id", "name", "state", "cause", "message", "solver", "user", "project", "folder", "manifest"),
    *("batch", "total", "succeeded", "failed", "cancelled", "rejected", "skipped"),
)
"""What ``[notify] command`` may name. ``event`` is the word of ``on`` that led to it; a value that makes no sense for
the event is empty."""


class Notify(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A program that tells people what became of a job. It runs once the result is published and never affects it."""

    command: Annotated[
        tuple[Argument, ...],
        doc(f"Program and arguments, never a shell line: {' '.join(f'{{{name}}}' for name in NOTIFY_PLACEHOLDERS)}."),
    ]
    on: Annotated[tuple[NotifyEvent, ...], DISTINCT, doc("What is told: jobs by their state, and batches.")] = (
        "failed",
        "batch",
    )
    timeout: Annotated[Timeout, doc("The longest run of the command.")] = 30.0


class Sections(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sections of the configuration file."""

    daemon: Daemon = Daemon()
    inbox: Inbox = Inbox()
    licenses: Annotated[dict[LicenseName, Count], doc("How many there are of each license.")] = {}
    solver: Annotated[
        dict[SolverName, Annotated[AnySolver, TAG_OPTIONAL]], doc("The programs that jobs can ask for.")
    ] = {}
    notify: Annotated[Notify | None, doc("Who is told of finished jobs; without it, nobody.")] = None


class Config(Sections, frozen=True, kw_only=True):
    """A configuration file without faults. ``warnings`` are one line each."""

    path: Path
    warnings: tuple[str, ...] = ()

    def limits(self, usable_cpus: int, total_memory: int) -> Limits:
        """What may run at once on a machine with so many usable cores and bytes of memory.

        Raises ``ConfigError`` if jobs of a solver could never start there.
        """
        daemon = self.daemon
        cpus = usable_cpus if daemon.cpus == "auto" else daemon.cpus
        max_jobs = max(1, cpus - 1) if daemon.max_jobs == "auto" else daemon.max_jobs
        limits = Limits(
            max_jobs=max_jobs,
            cpus=cpus,
            memory_bytes=max(0, total_memory - daemon.memory_reserve) if daemon.memory == "auto" else daemon.memory,
            interruptions_max=daemon.interruptions_max,
            licenses=dict(self.licenses),
            solver_jobs={name: solver.max_jobs for name, solver in self.solver.items()},
            pools={
                name: _pool(solver, max_jobs) for name, solver in self.solver.items() if isinstance(solver, WarmSolver)
            },
        )
        faults = Faults()
        for name, solver in self.solver.items():
            check_room(("solver", name), solver, limits.cpus, limits.memory_bytes, faults)
        if faults.found:
            raise ConfigError(str(self.path), faults.lines({}))
        return limits

    def settings(self, spec: JobSpec) -> Settings:
        """What an attempt of this job is resolved with now. Raises ``KeyError`` if its solver is not configured."""
        solver = self.solver[spec.solver]
        return Settings(
            kind=solver.kind,
            table=msgspec.to_builtins(solver),
            timeout_seconds=solver.timeout if spec.timeout_seconds is None else spec.timeout_seconds,
            cpus=solver.cpus if spec.cpus is None else spec.cpus,
            memory_bytes=solver.memory if spec.memory_bytes is None else spec.memory_bytes,
            licenses=_licenses_of_job(solver, spec),
            retry=solver.retry if spec.retry is None else spec.retry,
        )

    def demand(self, spec: JobSpec) -> Demand | None:
        """What a job occupies while it runs; ``None`` if its solver is not configured (any more)."""
        solver = self.solver.get(spec.solver)
        if solver is None:
            return None
        licenses = _licenses_of_job(solver, spec)
        return Demand(
            solver=spec.solver,
            cpus=solver.cpus if spec.cpus is None else spec.cpus,
            memory_bytes=solver.memory if spec.memory_bytes is None else spec.memory_bytes,
            licenses=tuple(sorted((name, count) for name, count in licenses.items() if count)),
            warm=isinstance(solver, WarmSolver),
        )


def load(path: Path) -> Config:
    """Read the configuration file. Raises ``ConfigError`` with every fault."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        start = "; solvisor init writes one for the solvers it finds" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError(str(path), [f"it cannot be read: {error.strerror}{start}"]) from None
    if sys.platform != "win32" and mode & stat.S_IWOTH:
        raise ConfigError(str(path), [f"everyone may change it, and so what is run; chmod o-w {path}"])
    if len(data) > LARGEST_FILE:
        raise ConfigError(str(path), [f"it is larger than {LARGEST_FILE >> 20} MiB"])
    try:
        text = data.decode("utf-8-sig")  # editors on Windows put a mark in front
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(path), [f"line {line}: not UTF-8; save the file as UTF-8"]) from None
    return parse(text, path)


def parse(text: str, path: Path) -> Config:
    """The configuration in ``text``; ``path`` names the file, and what is relative to it.

    Raises ``ConfigError`` with every fault.
    """
    try:
        table = tomltext.parse(text)
    except ValueError as error:
        raise ConfigError(str(path), [str(error)]) from None
    faults = Faults()
    sections = read(Sections, table, faults)
    if sections is not None:
        licenses = _counted(table, sections.licenses)
        cpus, memory = sections.daemon.cpus, sections.daemon.memory
        room = (cpus if isinstance(cpus, int) else None, memory if isinstance(memory, int) else None)
        for name, solver in sections.solver.items():
            check_room(("solver", name), solver, *room, faults)
            check_solver(("solver", name), solver, table["solver"][name], licenses, faults)
        check_kept_licenses(sections.solver, licenses, faults)
        check_fixed_ports(sections.solver, sections.daemon.ports, faults)
        if sections.notify is not None:
            _check_notify(sections.notify, faults)
    if sections is None or faults.found:
        raise ConfigError(str(path), faults.lines(tomltext.locate(text)))
    return Config(
        daemon=sections.daemon,
        inbox=sections.inbox,
        licenses=sections.licenses,
        solver=sections.solver,
        notify=sections.notify,
        path=path,
        warnings=(*_overlaps(sections.solver), *_absent_functions(sections.solver, path.parent)),
    )


def to_toml(config: Config) -> str:
    """The configuration in force, defaults included; it reads back to the same."""
    sections = Sections(
        daemon=config.daemon,
        inbox=config.inbox,
        licenses=config.licenses,
        solver=config.solver,
        notify=config.notify,
    )
    return tomli_w.dumps(plain(sections))


def config_schema() -> dict[str, Any]:
    """The JSON Schema of the configuration file, for editors."""
    return editor_schema(Sections, "Solvisor configuration")


def _counted(table: dict[str, Any], licenses: dict[str, int]) -> dict[str, int | None]:
    """How many there are of each license; ``None`` where the number is faulty: a name that is there is not missing."""
    names = table.get("licenses")
    return {name: licenses.get(name) for name in names} if isinstance(names, dict) else {}


def _check_notify(notify: Notify, faults: Faults) -> None:
    check_command(("notify", "command"), notify.command, '["notify-send", "Solvisor", "{name} {state}"]', faults)
    for index, element in enumerate(notify.command):
        check_template(("notify", "command", index), element, NOTIFY_PLACEHOLDERS, faults)
    if not notify.on and not faults.below(("notify", "on")):
        faults.add(("notify", "on"), 'is empty, so nothing would be told; for example ["failed", "batch"]')


def _pool(solver: WarmSolver, max_jobs: int) -> PoolRule:
    """How many servers there may be where ``max_jobs`` jobs run at once, of all solvers."""
    servers = solver.servers
    at_once = max_jobs if solver.max_jobs is None else min(max_jobs, solver.max_jobs)
    if isinstance(solver, ServerSolver) and isinstance(solver.port, int):
        at_once = 1
    return PoolRule(
        min=servers.min,
        max=max(servers.min, at_once) if servers.max == "auto" else servers.max,
        idle_seconds=servers.idle,
        recycle_jobs=servers.recycle_jobs,
        recycle_age_seconds=servers.recycle_age,
        recycle_rss_bytes=servers.recycle_rss,
        licenses=tuple(sorted(solver.licenses.items())),
        restarts=servers.restarts,
        restarts_within_seconds=servers.restarts_within,
    )


def _licenses_of_job(solver: SolverConfig, spec: JobSpec) -> dict[str, int]:
    """What a job itself holds: where a warm server holds licenses, only what the job asks for beyond those."""
    if not isinstance(solver, WarmSolver):
        return solver.licenses if spec.licenses is None else spec.licenses
    beyond = {name: count - solver.licenses.get(name, 0) for name, count in (spec.licenses or {}).items()}
    return {name: count for name, count in beyond.items() if count > 0}


def _absent_functions(solvers: Mapping[str, AnySolver], folder: Path) -> Iterator[str]:
    """A function whose file is not there: it may come before the first job does."""
    for name, solver in solvers.items():
        if not isinstance(solver, PythonSolver):
            continue
        file = function_file(solver)
        place = None if file is None else folder / os.path.expanduser(file)
        if place is not None and not place.is_file():
            yield f"solver {name} calls {solver.call}, but there is no file {place}"


def _overlaps(solvers: Mapping[str, SolverConfig]) -> Iterator[str]:
    """A pattern that two solvers accept: legal, as job files and routes still name one, but rarely meant."""
    takers: dict[str, dict[str, None]] = {}  # names of files are compared without regard to case
    for name, solver in solvers.items():
        for pattern in solver.accept:
            takers.setdefault(pattern.lower(), {})[name] = None
    for pattern, names in takers.items():
        if len(names) > 1:
            routes = " or ".join(f"inbox/{name}" for name in names)
            yield (
                f'solvers {" and ".join(names)} both accept "{pattern}": such a file is refused unless it is dropped '
                f"in {routes} or named by a job file"
            )
