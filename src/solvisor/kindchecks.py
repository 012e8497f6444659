"""What makes a solver's table wrong although each of its values is allowed: keys that contradict each other,
placeholders that mean nothing where they stand, licenses that are not there.

Rules: pure; a fault names the key and what to write instead; what hangs on a value that is faulty itself is not looked
at, so that one mistake is told once. ``written`` is the solver's table as it stands in the file: a key that is there
but faulty is not missing. This module must not know files, and how any kind is driven.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final, assert_never

import msgspec

from . import template
from .kinds import (
    AnySolver,
    CommandSolver,
    HttpReady,
    PythonSolver,
    ReportedPort,
    RetryTable,
    Servers,
    ServerSolver,
    SolverConfig,
    TcpReady,
    WarmSolver,
    ZmqReady,
)
from .model import PortRange
from .params import Param
from .tables import Faults, show, suggestion
from .tomltext import Path as KeyPath
from .units import format_size

SERVER_PLACEHOLDERS: Final[tuple[str, ...]] = ("host", "port", "server_dir", "cpus")
"""What a warm server of kind ``server`` may be told when it starts, and when it is to end."""
CLIENT_PLACEHOLDERS: Final = (*template.PLACEHOLDERS, "host", "port", "server_dir")
"""What the client of a job may be told, besides its parameters."""
OWN_SERVER_PLACEHOLDERS: Final = ("server_dir", "cpus")
"""What the environment of the other kinds' servers may name: what they listen on is their kind's own matter."""

_SHELLS: Final = ("sh", "bash", "dash", "zsh", "ksh", "cmd", "powershell", "pwsh")
_IN_OUTPUTS: Final = ("stem",)
_BY_USERS: Final = ("input", "stem", "name", "message", "project")
_NOWHERE: Final[Mapping[str, str]] = MappingProxyType({})
_OF_JOBS: Final = dict.fromkeys(
    (*template.PLACEHOLDERS, template.PARAM), "a warm server outlives jobs, so it is told nothing of one"
)


def check_solver(
    at: KeyPath, solver: AnySolver, written: Mapping[str, Any], licenses: Mapping[str, int | None], faults: Faults
) -> None:
    """Note what is wrong with the solver at ``at``. ``licenses`` are how many there are; ``None``: a faulty number."""
    params = [template.PARAM + param for param in _names(written, "params")]
    match solver:
        case CommandSolver():
            check_command((*at, "command"), solver.command, '["ccx", "-i", "{stem}"]', faults)
            _check_templates((*at, "command"), enumerate(solver.command), [*template.PLACEHOLDERS, *params], faults)
            _check_templates((*at, "env"), solver.env.items(), [*template.PLACEHOLDERS, *params], faults)
        case ServerSolver():
            _check_server(at, solver, params, faults)
        case WarmSolver():
            _check_templates((*at, "env"), solver.env.items(), OWN_SERVER_PLACEHOLDERS, faults, _OF_JOBS)
        case _:
            assert_never(solver)
    if isinstance(solver, WarmSolver):
        _check_servers((*at, "servers"), solver, faults)
    _check_success(at, solver, params, faults)
    _check_licenses(at, solver, licenses, faults)
    for param_name, param in solver.params.items():
        _check_param((*at, "params", param_name), param, faults)
    if not faults.below((*at, "retry")):
        check_retry((*at, "retry"), solver.retry_table, faults)


def check_room(at: KeyPath, solver: SolverConfig, cpus: int | None, memory: int | None, faults: Faults) -> None:
    """Note what makes a job of the solver larger than all that jobs may use together; ``None``: not known yet."""
    if cpus is not None and solver.cpus > cpus:
        faults.add((*at, "cpus"), f"{solver.cpus} is more than the {cpus} that jobs may use together")
    if solver.memory_limit is not None and solver.memory > solver.memory_limit:
        kept = f"more than memory_limit, {format_size(solver.memory_limit)}, lets it have"
        faults.add((*at, "memory"), f"{format_size(solver.memory)} is {kept}")
    elif memory is not None and solver.memory > memory:
        text = f"{format_size(solver.memory)} is more than the {format_size(memory)} that jobs may use together"
        faults.add((*at, "memory"), text)


def check_kept_licenses(solvers: Mapping[str, AnySolver], licenses: Mapping[str, int | None], faults: Faults) -> None:
    """Note servers that are to be kept up but hold more licenses together than there are."""
    kept: dict[str, int] = {}
    for name, solver in solvers.items():
        if not isinstance(solver, WarmSolver) or not solver.servers.min:
            continue
        for license_name, count in solver.licenses.items():
            there_are = licenses.get(license_name)
            before = kept.get(license_name, 0)
            kept[license_name] = before + solver.servers.min * count
            if there_are is not None and count <= there_are < kept[license_name]:
                others = f", and the solvers above keep {before}" if before else ""
                one = solver.servers.min == 1
                servers = "1 server always holds" if one else f"{solver.servers.min} servers always hold"
                text = f"{servers} {solver.servers.min * count} {license_name}{others}"
                faults.add(("solver", name, "servers", "min"), f"{text}; there are {there_are} in [licenses]")


def check_fixed_ports(solvers: Mapping[str, AnySolver], leased: PortRange, faults: Faults) -> None:
    """Note ports that one solver's server always has and others may get: another solver's, or those of ``leased``."""
    owners: dict[int, str] = {}
    for name, solver in solvers.items():
        if not isinstance(solver, ServerSolver) or not isinstance(solver.port, int):
            continue
        at = ("solver", name, "port")
        owner = owners.setdefault(solver.port, name)
        if owner != name:
            faults.add(at, f"{solver.port} is the port of solver {owner} as well; two servers cannot share one")
        elif leased.first <= solver.port <= leased.last:
            text = f"{solver.port} lies in [daemon] ports, so another server may be given it"
            faults.add(at, f"{text}; choose a range without it: they are {leased.first}-{leased.last}")


def check_retry(at: KeyPath, table: RetryTable, faults: Faults) -> None:
    """Note what makes a retry table pointless."""
    if table.max and not table.on:
        text = f'{table.max} without on has no effect; name the causes, for example on = ["signal"]'
        faults.add((*at, "max"), text)


def check_command(at: KeyPath, command: tuple[str, ...], example: str, faults: Faults) -> None:
    """Note a command without a program, a program chosen by a job, and a user's text that a shell would run."""
    if not command or not command[0]:
        faults.add(at, f"is empty; name the program and its arguments, for example {example}")
        return
    if _placeholders(command[0]):
        faults.add((*at, 0), f"{show(command[0])}: which program runs is not for a job to say; no placeholders here")
    shell = PurePath(command[0]).stem.lower()
    if shell not in _SHELLS:
        return
    for index, (option, script) in enumerate(pairwise(command), start=1):
        user_text = [name for name in _placeholders(script) if name in _BY_USERS or name.startswith(template.PARAM)]
        if user_text and re.fullmatch(r"-\w*c|/c|-command", option.lower()):
            name = f"{{{user_text[0]}}}"
            text = f'{name} would be run as shell text; write "$1" here, and add "{shell}", "{name}" to the list'
            faults.add((*at, index), text)


def check_template(
    at: KeyPath, text: str, known: Iterable[str], faults: Faults, *, elsewhere: Mapping[str, str] = _NOWHERE
) -> None:
    """Note braces that are no placeholder, and placeholders that are not known here.

    ``elsewhere`` says of placeholders that other keys may have why this one may not; ``params.`` stands for all of
    theirs.
    """
    known = list(known)
    try:
        used = template.names(text)
    except ValueError as error:
        faults.add(at, f"{show(text)} has {error}")
        return
    for name in used:
        if name in known:
            continue
        is_param = name.startswith(template.PARAM)
        why = elsewhere.get(template.PARAM if is_param else name)
        braced = [f"{{{other}}}" for other in known]
        hint = suggestion(f"{{{name}}}", braced)
        if why is not None:
            hint = f": {why}; known: {', '.join(braced)}"
        elif is_param and "did you mean" not in hint:
            hint = f'; declare it: params = {{ {name.removeprefix(template.PARAM)} = {{ type = "float" }} }}'
        literal = "" if is_param or why is not None else " (literal braces are written {{ and }})"
        faults.add(at, f"{show(text)} has {{{name}}}, which is no placeholder here{hint}{literal}")


def function_file(solver: PythonSolver) -> str | None:
    """The file, seen from the configuration, that holds the function; ``None`` if a module does."""
    place = solver.call.partition(":")[0]
    return place if place.endswith(".py") else None


# --- warm servers -----------------------------------------------------------------------------------------------------


def _check_server(at: KeyPath, solver: ServerSolver, params: list[str], faults: Faults) -> None:
    has_client = bool(solver.command) or faults.below((*at, "command"))
    talks = solver.talk is not None or faults.below((*at, "talk"))
    at_start = SERVER_PLACEHOLDERS
    elsewhere = _OF_JOBS
    if isinstance(solver.port, ReportedPort):
        at_start = tuple(name for name in at_start if name != "port")
        elsewhere = _OF_JOBS | {"port": "with port = ... it picks its own, which nobody knows before it started"}
    check_command((*at, "start"), solver.start, '["redis-server", "--port", "{port}"]', faults)
    _check_templates((*at, "start"), enumerate(solver.start), at_start, faults, elsewhere)
    _check_templates((*at, "env"), solver.env.items(), at_start, faults, elsewhere)
    if solver.quit:
        check_command((*at, "quit"), solver.quit, '["redis-cli", "-p", "{port}", "shutdown"]', faults)
        _check_templates((*at, "quit"), enumerate(solver.quit), SERVER_PLACEHOLDERS, faults, _OF_JOBS)
    if solver.command:
        check_command((*at, "command"), solver.command, '["redis-cli", "-p", "{port}", "ping"]', faults)
        _check_templates((*at, "command"), enumerate(solver.command), [*CLIENT_PLACEHOLDERS, *params], faults)
    if has_client and talks:
        faults.add((*at, "talk"), "a job is either a command or talk; take one of the two out")
    elif not has_client and not talks:
        text = 'is missing: name the client that carries out a job, or talk = "json" for jobs that are a line of JSON'
        faults.add((*at, "command"), text)
    if not faults.below((*at, "port")):
        match solver.port:
            case ReportedPort() as port:
                _check_reported_port((*at, "port"), port, faults)
            case int() as port:
                _check_fixed_port((*at, "servers"), port, solver.servers, faults)
            case None:
                _check_given_port(at, solver, faults)
    if isinstance(solver.ready, HttpReady) and not solver.ready.path.startswith("/"):
        faults.add((*at, "ready", "path"), f'{show(solver.ready.path)} does not begin with "/"')


def _check_given_port(at: KeyPath, solver: ServerSolver, faults: Faults) -> None:
    """A server that is asked or talked to on its port must get one; one that is not may do without."""
    told = any("port" in _placeholders(text) for text in (*solver.start, *solver.env.values()))
    if told or faults.below((*at, "start")) or faults.below((*at, "env")):
        return
    needed = None
    if isinstance(solver.ready, TcpReady | HttpReady | ZmqReady):
        needed = f"ready of kind {show(solver.ready.__struct_config__.tag)} needs one"
    elif solver.talk is not None:
        needed = "talk needs one"
    elif any("port" in _placeholders(text) for text in (*solver.command, *solver.quit)):
        needed = "{port} stands in command or quit"
    if needed is not None:
        text = f"nothing tells the server its port, and {needed}: write {{port}} where it takes it"
        picks = "say how it tells the one it picked: port = { line = '...' }"
        faults.add((*at, "start"), f"{text}, {picks}, or which one it always has: port = 6379")


def _check_fixed_port(at: KeyPath, port: int, servers: Servers, faults: Faults) -> None:
    for key, count in (("min", servers.min), ("max", 1 if servers.max == "auto" else servers.max)):
        if count > 1:
            faults.add((*at, key), f"{count} servers cannot share the port {port}; write 1")


def _check_reported_port(at: KeyPath, port: ReportedPort, faults: Faults) -> None:
    if (port.line is None) == (port.file is None):
        given = "neither line nor file is" if port.line is None else "both line and file are"
        faults.add(at, f"{given} given: say where it tells its port, in a line that it prints or in a file")
        return
    key, pattern = ("match", port.match) if port.line is None else ("line", port.line)
    if re.compile(pattern).groups < 1:
        faults.add((*at, key), f"{show(pattern)} has no group for the port, such as ([0-9]+)")


def _check_servers(at: KeyPath, solver: WarmSolver, faults: Faults) -> None:
    servers = solver.servers
    if isinstance(servers.max, int) and servers.min > servers.max:
        faults.add((*at, "min"), f"{servers.min} is more than max, {servers.max}")


# --- all kinds --------------------------------------------------------------------------------------------------------


def _check_templates(
    at: KeyPath,
    texts: Iterable[tuple[str | int, str]],
    known: Iterable[str],
    faults: Faults,
    elsewhere: Mapping[str, str] = _NOWHERE,
) -> None:
    for key, text in texts:
        check_template((*at, key), text, known, faults, elsewhere=elsewhere)


def _check_success(at: KeyPath, solver: SolverConfig, params: list[str], faults: Faults) -> None:
    for index, output in enumerate(solver.success.wanted_outputs()):
        path = (*at, "success", "outputs", index)
        check_template(path, output.path, [*_IN_OUTPUTS, *params], faults)
        if PurePath(output.path).is_absolute() or ".." in PurePath(output.path).parts:
            faults.add(path, f"{show(output.path)} lies outside the output folder; name it relative to that folder")
    if not solver.success.exit:
        faults.add((*at, "success", "exit"), "is empty, so no run could succeed; name the exit codes of a good run")


def _check_licenses(at: KeyPath, solver: SolverConfig, licenses: Mapping[str, int | None], faults: Faults) -> None:
    for name, count in solver.licenses.items():
        entry = (*at, "licenses", name)
        if name not in licenses:
            nearest = suggestion(name, licenses) if licenses else ""
            hint = nearest if "did you mean" in nearest else f"; say how many there are: [licenses] {name} = 1"
            faults.add_unknown(entry, licenses, noun="license in [licenses]", hint=hint)
            continue
        there_are = licenses[name]
        if there_are is not None and count > there_are:
            faults.add(entry, f"{count} is more than the {there_are} in [licenses]")
    if solver.license_denied is not None and not solver.licenses and not faults.below((*at, "licenses")):
        faults.add((*at, "license_denied"), "no license could be denied: name those that it takes in licenses")


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


def _names(table: Mapping[str, Any], key: str) -> list[str]:
    names = table.get(key)
    return list(names) if isinstance(names, dict) else []


def _placeholders(text: str) -> tuple[str, ...]:
    try:
        return template.names(text)
    except ValueError:  # reported by check_template
        return ()
