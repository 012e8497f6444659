"""The kind ``command``: one process per job. From a solver's settings and a job to an argument list and an environment.

Rules: an argument list, never a shell line; a placeholder is one element or part of one and its value is never looked
at again; the environment is made of what is listed here and nothing else, so that a job runs the same whoever started
the daemon. This module starts no solver and does not know states, attempts or results.
"""

from __future__ import annotations

import math
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from solvisor import template
from solvisor.config import Config
from solvisor.errors import ConfigError, SpawnError
from solvisor.interfaces import Program
from solvisor.kinds import SolverConfig
from solvisor.model import JobSpec
from solvisor.names import stem
from solvisor.params import param_text
from solvisor.tables import show

BASE_ENVIRONMENT: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
SCRIPT_SECONDS: Final = 30.0
SEARCH_SECONDS: Final = 1.0
"""A program is searched for anew after this: it may have been installed, or another one before it on the PATH."""

_SAID_BYTES: Final = 4096
_SHELL_OWN: Final = ("PWD", "OLDPWD", "SHLVL", "_")


class Command:
    """One command of a solver, to be run with other values again and again: what depends on none is made once.

    ``key`` names it in the table of the solver ``name``. ``environ`` is the daemon's environment, ``script_env`` what
    ``env_script`` made of it (empty without one).
    """

    def __init__(
        self,
        key: str,
        command: tuple[str, ...],
        solver: SolverConfig,
        name: str,
        environ: Mapping[str, str],
        config_dir: Path,
        script_env: Mapping[str, str],
    ) -> None:
        self.solver: Final = solver
        self.script_env: Final = script_env
        self._key = key
        self._command = command
        self.name: Final = name
        self._config_dir = config_dir
        self._inherited = inherited(solver, environ, script_env)
        self._own = dict(solver.env)
        self._env: dict[str, str] | None = None
        if not any(template.names(text) for text in self._own.values()):
            self._env = self._environment({})
        self._program: tuple[str, str, float] = "", "", -math.inf  # where it is, on which PATH, until when

    def expanded(self, values: Mapping[str, str], *, primary: str = "") -> Program:
        """What is run with ``values`` for the placeholders; its environment may be that of others, and is not changed.

        Raises ``SpawnError``: ``program_missing``, ``name`` (an input that would be taken for an option), ``param``.
        """
        arguments = self._command[1:]
        if values.get("stem", "").startswith("-") and any(element.startswith("{stem}") for element in arguments):
            text = f"{show(values['stem'])} would be taken for an option of {self.name}"
            raise SpawnError("name", f"{text}; rename {primary} and drop it again")
        try:
            argv = tuple(template.expand(element, values) for element in arguments)
            env = self._environment(values) if self._env is None else self._env
        except KeyError as error:
            text = f"solver {self.name} needs a value for {error.args[0]}; give it in a job file"
            raise SpawnError("param", f"{text}, or configure a default") from None
        return Program((self._found(env.get("PATH", os.defpath)), *argv), env)

    def _environment(self, values: Mapping[str, str]) -> dict[str, str]:
        own = {variable: template.expand(text, values) for variable, text in self._own.items()}
        return {**self._inherited, **own}

    def _found(self, path: str) -> str:
        """The program; what was found a moment ago is still there, or whoever starts it says that it is not."""
        program, searched, until = self._program  # at once: servers and clients are prepared by several threads
        now = time.monotonic()
        if path != searched or now >= until:
            command = template.expand(self._command[0], {})
            program = find_program(command, f"solver {self.name}", self._config_dir, path, self._key)
            self._program = program, path, now + SEARCH_SECONDS
        return program


def prepare(command: Command, spec: JobSpec, folder: str) -> Program:
    """What runs the job ``spec`` in ``folder``, an absolute path; the working folder is ``folder/output``.

    Raises ``SpawnError`` as ``Command.expanded``.
    """
    return command.expanded(job_values(command.solver, command.name, spec, folder), primary=spec.primary)


def inherited(solver: SolverConfig, environ: Mapping[str, str], script_env: Mapping[str, str]) -> dict[str, str]:
    """The environment that a process of ``solver`` gets before its own ``env``; later ones win.

    The daemon's ``environ`` as far as all solvers get it, ``script_env``, and what ``pass_env`` names.
    """
    passed = {key: environ[key] for key in environ if any(fnmatchcase(key, glob) for glob in solver.pass_env)}
    return {**_base(environ), **script_env, **passed}


def source_environments(config: Config, environ: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What each solver's ``env_script`` makes of ``environ``, by the solver's name. Raises ``ConfigError``."""
    here = config.path.parent
    named = {name: solver.env_script for name, solver in config.solver.items() if solver.env_script is not None}
    found = {}
    for name, script in named.items():
        try:
            found[name] = source_environment(here / script, environ)
        except ConfigError as error:
            raise ConfigError(error.path, [f"env_script of solver {name}: {text}" for text in error.problems]) from None
    return found


def source_environment(script: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment that a shell has after sourcing ``script`` in the bare one of a solver.

    Takes as long as the script, at most 30 s; what it leaves in the background is killed. Raises ``ConfigError`` with
    the last line the script wrote.
    """
    if sys.platform == "win32":
        raise ConfigError(str(script), ["env_script needs a POSIX shell; set env instead"])
    from solvisor.process import aside

    try:
        if script.stat().st_mode & stat.S_IWOTH:
            raise ConfigError(str(script), [f"everyone may change it, and so what is run; chmod o-w {script}"])
    except OSError as error:
        raise ConfigError(str(script), [f"it cannot be read: {error.strerror}"]) from None
    # Files, not pipes: what the script leaves in the background may hold a pipe open for ever.
    with tempfile.TemporaryFile() as found, tempfile.TemporaryFile() as said:
        argv = ["/bin/sh", "-c", '. "$1" >&2 && env -0', "sh", str(script.absolute())]
        status = aside.run(argv, _base(environ), found, said, SCRIPT_SECONDS)
        if status != 0:
            ended = f"it ended with exit status {status}"
            outcome = ended if status is not None else f"it did not end within {SCRIPT_SECONDS:g} s"
            said.seek(max(0, said.seek(0, os.SEEK_END) - _SAID_BYTES))
            lines = said.read().decode(errors="replace").split("\n")
            last = next((show(line.strip()) for line in reversed(lines) if line.strip()), "nothing")
            raise ConfigError(str(script), [f"{outcome}; the last it said: {last}"])
        found.seek(0)
        pairs = [os.fsdecode(entry).split("=", 1) for entry in found.read().split(b"\0") if b"=" in entry]
    if not pairs:
        raise ConfigError(str(script), ["it left its shell by exit, and so no environment; let it end without exit"])
    return {key: value for key, value in pairs if key not in _SHELL_OWN}


def _base(environ: Mapping[str, str]) -> dict[str, str]:
    return {key: environ[key] for key in BASE_ENVIRONMENT if key in environ}


def job_values(solver: SolverConfig, name: str, spec: JobSpec, folder: str) -> dict[str, str]:
    """What each placeholder stands for; a parameter without any value is left out. ``folder`` is an absolute path."""
    values = {
        "input": f"./{spec.primary}" if spec.primary.startswith("-") else spec.primary,
        "stem": stem(spec.primary),
        "output": os.path.join(folder, "output"),
        "job_dir": folder,
        "cpus": str(solver.cpus if spec.cpus is None else spec.cpus),
    }
    for param, declared in solver.params.items():
        value = spec.params.get(param, declared.default)
        if value is None:
            continue
        try:
            # Checked when the job was accepted; the declaration may have changed since.
            values[template.PARAM + param] = param_text(declared.check(value))
        except ValueError as error:
            raise SpawnError("param", f"solver {name} does not allow params.{param} any more: {error}") from None
    return values


def find_program(program: str, owner: str, config_dir: Path, path: str, key: str = "command") -> str:
    """The absolute path of a program of ``owner`` (``solver ccx``), named by ``key`` of its table.

    Raises ``SpawnError`` if it cannot be executed.
    """
    if "/" not in program and os.sep not in program:
        found = shutil.which(program, path=path)
        if found is None:
            text = f"the program {show(program)} of {owner} is not on the PATH {path}"
            raise SpawnError("program_missing", f"{text}; install it, or set {key} to its full path")
        return str(Path(found).absolute())
    place = (config_dir / program).absolute()
    try:
        executable = stat.S_ISREG(place.stat().st_mode) and os.access(place, os.X_OK)
    except OSError as error:
        text = f"the program {place} of {owner} cannot be found: {error.strerror}; install it, or correct {key}"
        raise SpawnError("program_missing", text) from None
    if place.is_dir():
        raise SpawnError("program_missing", f"the program {place} of {owner} is a folder; name the program in it")
    if not executable:
        raise SpawnError("program_missing", f"the program {place} of {owner} is not executable; chmod +x {place}")
    return str(place)
