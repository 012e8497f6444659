"""The configuration: TOML text in, one frozen ``Config`` out, or every fault at once.

Rules: the records below are the format: a field is a key of the file, its type says what is allowed; durations are held
in seconds, sizes in bytes. A ``Config`` is the file and nothing else: facts of the machine (cores, memory) come in as
arguments. This module does not know how a solver is started, how a result is judged, or who asked.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Annotated, Any, Final, Literal

import msgspec
import tomli_w
from msgspec import Meta, Struct, field

from . import template, tomltext
from .errors import ConfigError
from .fieldtypes import (
    Argument,
    Count,
    Duration,
    EnvGlob,
    EnvName,
    FileGlob,
    LicenseName,
    ParamName,
    Regex,
    Size,
    SolverName,
    Timeout,
    doc,
)
from .model import Cause, Demand, JobSpec, Limits, Retry, Settings
from .params import Param
from .tables import DISTINCT, Faults, editor_schema, plain, read, show, suggestion
from .tomltext import Path as KeyPath
from .units import format_size

LARGEST_FILE: Final = 1 << 20
LATER_KINDS: Final = ("server", "omc", "python")
ExitCode = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
NotifyEvent = Literal["succeeded", "failed", "cancelled", "rejected", "skipped", "batch"]
RetryCause = Literal["spawn", "exit", "signal", "timeout", "stalled", "oom", "check", "server"]

_SHELLS: Final = ("sh", "bash", "dash", "zsh", "ksh", "cmd", "powershell", "pwsh")
_IN_OUTPUTS: Final = ("stem",)
_BY_USERS: Final = ("input", "stem", "name", "message", "project")


class Daemon(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the daemon may use of the machine, and how it stops."""

    max_jobs: Annotated[Count | Literal["auto"], doc("Jobs at once; auto: usable cores - 1, at least 1.")] = "auto"
    cpus: Annotated[Count | Literal["auto"], doc("Cores for jobs; auto: those the daemon may use.")] = "auto"
    memory: Annotated[Size | Literal["auto"], doc("Memory for jobs; auto: all but memory_reserve.")] = "auto"
    memory_reserve: Annotated[Size, doc("Where memory is auto: never given to jobs.")] = 2 << 30
    stop_timeout: Annotated[Duration, doc("How long SIGTERM lets running jobs finish.")] = 60.0
    interruptions_max: Annotated[Count, doc("Interruptions of a job in a row before it is failed: lost.")] = 3


class Inbox(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where users drop files, and when a file counts as complete."""

    path: Annotated[Argument | None, doc("The folder; without it, inbox/ in the home.")] = None
    settle: Annotated[Duration, doc("How long a file must stay unchanged.")] = 0.5
    rescan: Annotated[Timeout, doc("How often the folder is read even if no event came.")] = 2.0
    orphan_after: Annotated[Timeout, doc("How long a file may wait for its job file.")] = 600.0


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

    def check(self, at: KeyPath, faults: Faults) -> None:
        """Note what makes the table at ``at`` pointless."""
        if self.max and not self.on:
            text = f'{self.max} without on has no effect; name the causes, for example on = ["signal"]'
            faults.add((*at, "max"), text)


class SolverConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One solver: how it is called, what it occupies, and what a good run looks like."""

    kind: Annotated[Literal["command"], doc("How it is driven; command: one process per job.")] = "command"
    accept: Annotated[tuple[FileGlob, ...], DISTINCT, doc("Names of files in the inbox that it takes.")] = ()
    command: Annotated[
        tuple[Argument, ...],
        doc("Program and arguments, never a shell line: {input} {stem} {output} {job_dir} {cpus} {params.NAME}."),
    ]
    alone: Annotated[bool, doc("Whether one file is a job by itself; if not, a job file is needed.")] = True
    timeout: Annotated[Timeout | None, doc("The longest run; without it there is no limit.")] = None
    cpus: Annotated[Count, doc("Cores reserved for a job.")] = 1
    memory: Annotated[Size, doc("Memory reserved for a job.")] = 0
    licenses: Annotated[dict[LicenseName, Count], doc("Licenses a job holds, of those in [licenses].")] = {}
    env: Annotated[dict[EnvName, Argument], doc("Environment variables; placeholders as in command.")] = {}
    pass_env: Annotated[tuple[EnvGlob, ...], DISTINCT, doc("Variables of the daemon to pass on.")] = ()
    env_script: Annotated[Argument | None, doc("A shell script that sets the environment.")] = None
    max_jobs: Annotated[Count | None, doc("Jobs of this solver at once.")] = None
    stop_grace: Annotated[Duration, doc("Between SIGTERM and SIGKILL.")] = 10.0
    log_max: Annotated[Size, doc("A log that grows over this loses its middle.")] = 64 << 20
    params: Annotated[dict[ParamName, Param], doc("Parameters that jobs may set.")] = {}
    success: Success = Success()
    retry_table: RetryTable = field(default=RetryTable(), name="retry")

    @property
    def retry(self) -> Retry:
        """The rule for jobs that do not bring their own."""
        return self.retry_table.rule()


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
    solver: Annotated[dict[SolverName, SolverConfig], doc("The programs that jobs can ask for.")] = {}
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
        limits = Limits(
            max_jobs=max(1, cpus - 1) if daemon.max_jobs == "auto" else daemon.max_jobs,
            cpus=cpus,
            memory_bytes=max(0, total_memory - daemon.memory_reserve) if daemon.memory == "auto" else daemon.memory,
            interruptions_max=daemon.interruptions_max,
            licenses=dict(self.licenses),
            solver_jobs={name: solver.max_jobs for name, solver in self.solver.items()},
        )
        faults = Faults()
        for name, solver in self.solver.items():
            _check_room(name, solver, limits.cpus, limits.memory_bytes, faults)
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
            licenses=solver.licenses if spec.licenses is None else spec.licenses,
            retry=solver.retry if spec.retry is None else spec.retry,
        )

    def demand(self, spec: JobSpec) -> Demand | None:
        """What a job occupies while it runs; ``None`` if its solver is not configured (any more)."""
        solver = self.solver.get(spec.solver)
        if solver is None:
            return None
        licenses = solver.licenses if spec.licenses is None else spec.licenses
        return Demand(
            solver=spec.solver,
            cpus=solver.cpus if spec.cpus is None else spec.cpus,
            memory_bytes=solver.memory if spec.memory_bytes is None else spec.memory_bytes,
            licenses=tuple(sorted((name, count) for name, count in licenses.items() if count)),
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
    sections = read(Sections, _without_later_kinds(table, faults), faults)
    if sections is not None:
        for name, solver in sections.solver.items():
            _check_solver(name, solver, sections, table, faults)
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
        warnings=tuple(_overlaps(sections.solver)),
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


def _without_later_kinds(table: dict[str, Any], faults: Faults) -> dict[str, Any]:
    """The table less the solvers whose keys are not known yet: one fault says so, not one for each key."""
    solvers = table.get("solver")
    if not isinstance(solvers, dict):
        return table
    known = {}
    for name, solver in solvers.items():
        kind = solver.get("kind") if isinstance(solver, dict) else None
        if kind in LATER_KINDS:
            faults.add(("solver", name, "kind"), f'"{kind}" comes with a later version of Solvisor; allowed: "command"')
        else:
            known[name] = solver
    return {**table, "solver": known}


def _check_solver(name: str, solver: SolverConfig, sections: Sections, table: dict[str, Any], faults: Faults) -> None:
    """What no single type can say. ``table`` is the file as written: a name that is there but faulty is not missing."""
    at = ("solver", name)
    daemon = sections.daemon
    cpus = daemon.cpus if isinstance(daemon.cpus, int) else None
    memory = daemon.memory if isinstance(daemon.memory, int) else None
    _check_room(name, solver, cpus, memory, faults)
    _check_command((*at, "command"), solver.command, '["ccx", "-i", "{stem}"]', faults)
    params = [template.PARAM + param for param in _names(table["solver"][name], "params")]
    for index, element in enumerate(solver.command):
        _check_template((*at, "command", index), element, [*template.PLACEHOLDERS, *params], faults)
    for variable, value in solver.env.items():
        _check_template((*at, "env", variable), value, [*template.PLACEHOLDERS, *params], faults)
    for index, output in enumerate(solver.success.wanted_outputs()):
        path = (*at, "success", "outputs", index)
        _check_template(path, output.path, [*_IN_OUTPUTS, *params], faults)
        if PurePath(output.path).is_absolute() or ".." in PurePath(output.path).parts:
            faults.add(path, f"{show(output.path)} lies outside the output folder; name it relative to that folder")
    if not solver.success.exit:
        faults.add((*at, "success", "exit"), "is empty, so no run could succeed; name the exit codes of a good run")
    for license_name, count in solver.licenses.items():
        entry = (*at, "licenses", license_name)
        if license_name not in _names(table, "licenses"):
            nearest = suggestion(license_name, sections.licenses) if sections.licenses else ""
            hint = nearest if "did you mean" in nearest else f"; say how many there are: [licenses] {license_name} = 1"
            faults.add_unknown(entry, sections.licenses, noun="license in [licenses]", hint=hint)
        elif count > sections.licenses.get(license_name, count):
            faults.add(entry, f"{count} is more than the {sections.licenses[license_name]} in [licenses]")
    for param_name, param in solver.params.items():
        _check_param((*at, "params", param_name), param, faults)
    if not faults.below((*at, "retry")):
        solver.retry_table.check((*at, "retry"), faults)


def _names(table: dict[str, Any], key: str) -> list[str]:
    names = table.get(key)
    return list(names) if isinstance(names, dict) else []


def _check_room(name: str, solver: SolverConfig, cpus: int | None, memory: int | None, faults: Faults) -> None:
    if cpus is not None and solver.cpus > cpus:
        faults.add(("solver", name, "cpus"), f"{solver.cpus} is more than the {cpus} that jobs may use together")
    if memory is not None and solver.memory > memory:
        text = f"{format_size(solver.memory)} is more than the {format_size(memory)} that jobs may use together"
        faults.add(("solver", name, "memory"), text)


def _check_notify(notify: Notify, faults: Faults) -> None:
    _check_command(("notify", "command"), notify.command, '["notify-send", "Solvisor", "{name} {state}"]', faults)
    for index, element in enumerate(notify.command):
        _check_template(("notify", "command", index), element, list(NOTIFY_PLACEHOLDERS), faults)
    if not notify.on and not faults.below(("notify", "on")):
        faults.add(("notify", "on"), 'is empty, so nothing would be told; for example ["failed", "batch"]')


def _check_command(at: KeyPath, command: tuple[str, ...], example: str, faults: Faults) -> None:
    if not command or not command[0]:
        faults.add(at, f"is empty; name the program and its arguments, for example {example}")
        return
    if _fields(command[0]):
        faults.add((*at, 0), f"{show(command[0])}: which program runs is not for a job to say; no placeholders here")
    shell = PurePath(command[0]).stem.lower()
    if shell not in _SHELLS:
        return
    for index, (option, script) in enumerate(pairwise(command), start=1):
        user_text = [name for name in _fields(script) if name in _BY_USERS or name.startswith(template.PARAM)]
        if user_text and re.fullmatch(r"-\w*c|/c|-command", option.lower()):
            name = f"{{{user_text[0]}}}"
            text = f'{name} would be run as shell text; write "$1" here, and add "{shell}", "{name}" to the list'
            faults.add((*at, index), text)


def _fields(text: str) -> tuple[str, ...]:
    try:
        return template.names(text)
    except ValueError:  # reported by _check_template
        return ()


def _check_template(at: KeyPath, text: str, known: list[str], faults: Faults) -> None:
    try:
        used = template.names(text)
    except ValueError as error:
        faults.add(at, f"{show(text)} has {error}")
        return
    for name in used:
        if name not in known:
            hint = suggestion(f"{{{name}}}", [f"{{{other}}}" for other in known])
            if name.startswith(template.PARAM) and "did you mean" not in hint:
                hint = f'; declare it: params = {{ {name.removeprefix(template.PARAM)} = {{ type = "float" }} }}'
            faults.add(at, f"{show(text)} has {{{name}}}, which is no placeholder here{hint}")


def _check_param(at: KeyPath, param: Param, faults: Faults) -> None:
    numeric = param.type in ("float", "int")
    for key, limit in (("min", param.min), ("max", param.max)):
        if limit is not None and not numeric:
            faults.add((*at, key), f'only numbers have limits, and type is "{param.type}"')
    if param.min is not None and param.max is not None and param.min > param.max:
        faults.add((*at, "min"), f"{show(param.min)} is more than max, {show(param.max)}")
        return
    free = msgspec.structs.replace(param, choices=())
    values: list[tuple[KeyPath, bool | int | float | str, Param]] = [
        (("choices", index), choice, free) for index, choice in enumerate(param.choices)
    ]
    if param.default is not None:
        values.append((("default",), param.default, param))
    for path, value, rule in values:
        try:
            rule.check(value)
        except ValueError as error:
            faults.add((*at, *path), str(error))


def _overlaps(solvers: dict[str, SolverConfig]) -> Iterator[str]:
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
