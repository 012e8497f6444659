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
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
import tomli_w
from msgspec import Struct
from msgspec.structs import replace

from . import tomltext
from .errors import ConfigError
from .exposed import open_to_all
from .fieldtypes import (
    Argument,
    Count,
    Duration,
    GroupName,
    HostName,
    LicenseName,
    Listen,
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
    disk_reserve: Annotated[
        Size | Literal["auto"],
        doc("With less free on the disk of the home no job starts; auto: 5 % of it, at most 1 GiB; 0: no such floor."),
    ] = "auto"
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


class Retention(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long the files of finished jobs are kept; without it, for ever. The rows of their jobs stay."""

    keep_for: Annotated[Timeout | None, doc("How long after the end of the job; unset: for ever.")] = None
    keep_failed_for: Annotated[Timeout | None, doc("The same for jobs that did not succeed; unset: as keep_for.")] = (
        None
    )
    keep_at_most: Annotated[
        Size | None, doc("What all results together may take of the disk; the oldest go first.")
    ] = None

    @property
    def removes(self) -> bool:
        """Whether there is a rule at all."""
        return (self.keep_for, self.keep_failed_for, self.keep_at_most) != (None, None, None)


class Api(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may ask the daemon beside its own user and root, and where beside its socket."""

    group: Annotated[
        GroupName | None, doc("Its members may submit, cancel and look; without it, the daemon's user and root alone.")
    ] = None
    listen: Annotated[
        Listen | None, doc("Where the page and the API are besides, for those with a token; without it, nowhere.")
    ] = None
    hosts: Annotated[
        tuple[HostName, ...], DISTINCT, doc("Further names browsers may reach that under, as of a reverse proxy.")
    ] = ()


class Sections(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The sections of the configuration file."""

    daemon: Daemon = Daemon()
    inbox: Inbox = Inbox()
    licenses: Annotated[dict[LicenseName, Count], doc("How many there are of each license.")] = {}
    solver: Annotated[
        dict[SolverName, Annotated[AnySolver, TAG_OPTIONAL]], doc("The programs that jobs can ask for.")
    ] = {}
    notify: Annotated[Notify | None, doc("Who is told of finished jobs; without it, nobody.")] = None
    retention: Annotated[Retention, doc("How long results are kept; without it, for ever.")] = Retention()
    api: Annotated[Api, doc("Who may ask the daemon, and where.")] = Api()


class Config(Sections, frozen=True, kw_only=True, dict=True):
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

    def unenforced(self, limited: Collection[str]) -> list[str]:
        """What is configured and cannot be where only these can be limited: ``memory``, ``pids``."""
        keys = {"memory": "memory_limit", "pids": "processes_limit"}
        return [
            f"{' and '.join(names)} of solver {name} {'is' if len(names) == 1 else 'are'} not enforced: the daemon can "
            "make no cgroups with such limits; run it as a service of systemd (Delegate=yes)"
            for name, solver in self.solver.items()
            if (
                names := [key for what, key in keys.items() if what not in limited and getattr(solver, key) is not None]
            )
        ]

    def settings(self, spec: JobSpec) -> Settings:
        """What an attempt of this job is resolved with now. Raises ``KeyError`` if its solver is not configured.

        Jobs of a solver that wish for nothing of their own share one record.
        """
        usual = self._usual[spec.solver]
        if _wishes_nothing(spec):
            return usual.settings
        settings, licenses = usual.settings, spec.licenses
        return replace(
            settings,
            timeout_seconds=settings.timeout_seconds if spec.timeout_seconds is None else spec.timeout_seconds,
            cpus=settings.cpus if spec.cpus is None else spec.cpus,
            memory_bytes=settings.memory_bytes if spec.memory_bytes is None else spec.memory_bytes,
            licenses=settings.licenses if licenses is None else _held_by_job(self.solver[spec.solver], licenses),
            retry=settings.retry if spec.retry is None else spec.retry,
        )

    def demand(self, spec: JobSpec) -> Demand | None:
        """What a job occupies while it runs; ``None`` if its solver is not configured (any more)."""
        usual = self._usual.get(spec.solver)
        if usual is None or _wishes_nothing(spec):
            return usual and usual.demand
        return _demand(spec.solver, self.solver[spec.solver], self.settings(spec))

    @cached_property
    def _usual(self) -> dict[str, _Usual]:
        """What jobs that wish for nothing of their own are resolved with and occupy, by solver."""
        return {name: _Usual.of(name, solver) for name, solver in self.solver.items()}


class _Usual(NamedTuple):
    settings: Settings
    demand: Demand

    @classmethod
    def of(cls, name: str, solver: AnySolver) -> _Usual:
        settings = Settings(
            kind=solver.kind,
            table=msgspec.to_builtins(solver),
            timeout_seconds=solver.timeout,
            cpus=solver.cpus,
            memory_bytes=solver.memory,
            licenses=_held_by_job(solver, solver.licenses),
            retry=solver.retry,
        )
        return cls(settings, _demand(name, solver, settings))


def _demand(name: str, solver: AnySolver, settings: Settings) -> Demand:
    licenses = tuple(sorted((name, count) for name, count in settings.licenses.items() if count))
    return Demand(name, settings.cpus, settings.memory_bytes, licenses, warm=isinstance(solver, WarmSolver))


def _wishes_nothing(spec: JobSpec) -> bool:
    """Whether its solver's table says all about a job."""
    wishes = spec.timeout_seconds, spec.cpus, spec.memory_bytes, spec.licenses, spec.retry
    return wishes == _NO_WISHES


_NO_WISHES: Final = (None,) * 5


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
    parent = open_to_all(path)
    if parent is not None:
        raise ConfigError(
            str(path), [f"everyone may put another in its place; chmod o-w {parent} (or chmod +t {parent})"]
        )
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
        if sections.api.listen is not None:
            _check_listen(sections.api.listen.port, sections, faults)
    if sections is None or faults.found:
        raise ConfigError(str(path), faults.lines(tomltext.locate(text)))
    return Config(
        daemon=sections.daemon,
        inbox=sections.inbox,
        licenses=sections.licenses,
        solver=sections.solver,
        notify=sections.notify,
        retention=sections.retention,
        api=sections.api,
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
        retention=config.retention,
        api=config.api,
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


def _check_listen(port: int, sections: Sections, faults: Faults) -> None:
    at, leased = ("api", "listen"), sections.daemon.ports
    if leased.first <= port <= leased.last:
        text = f"{port} lies in [daemon] ports, so a warm server may be given it"
        faults.add(at, f"{text}; choose one without: they are {leased.first}-{leased.last}")
    for name, solver in sections.solver.items():
        if isinstance(solver, ServerSolver) and solver.port == port:
            faults.add(at, f"{port} is the port of solver {name}; choose another")


def _pool(solver: WarmSolver, max_jobs: int) -> PoolRule:
    """How many servers there may be where ``max_jobs`` jobs run at once, of all solvers."""
    servers = solver.servers
    most = servers.max
    if most == "auto" and isinstance(solver, ServerSolver) and isinstance(solver.port, int):
        most = 1
    rule = PoolRule(
        min=servers.min,
        max=servers.min if most == "auto" else most,
        idle_seconds=servers.idle,
        recycle_jobs=servers.recycle_jobs,
        recycle_age_seconds=servers.recycle_age,
        recycle_rss_bytes=servers.recycle_rss,
        licenses=tuple(sorted(solver.licenses.items())),
        restarts=servers.restarts,
        restarts_within_seconds=servers.restarts_within,
        auto=most == "auto",
    )
    return rule.within(max_jobs, solver.max_jobs)


def _held_by_job(solver: SolverConfig, licenses: dict[str, int]) -> dict[str, int]:
    """What a job that needs these holds itself: where a warm server holds licenses, only what is beyond those."""
    if not isinstance(solver, WarmSolver):
        return licenses
    beyond = {name: count - solver.licenses.get(name, 0) for name, count in licenses.items()}
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
