"""The kind ``command``: one process per job. From a solver's settings and a job to an argument list and an environment.

Rules: an argument list, never a shell line; a placeholder is one element or part of one and its value is never looked
at again; the environment is made of what is listed here and nothing else, so that a job runs the same whoever started
the daemon. This module starts no solver and does not know states, attempts or results.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import Final

from solvisor import template
from solvisor.config import Config
from solvisor.errors import ConfigError, SpawnError
from solvisor.interfaces import Program
from solvisor.kinds import CommandSolver, SolverConfig
from solvisor.model import JobSpec
from solvisor.params import param_text
from solvisor.tables import show

BASE_ENVIRONMENT: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
SCRIPT_SECONDS: Final = 30.0

_SAID_BYTES: Final = 4096
_SHELL_OWN: Final = ("PWD", "OLDPWD", "SHLVL", "_")


def prepare(
    solver: CommandSolver,
    name: str,
    spec: JobSpec,
    folder: Path,
    environ: Mapping[str, str],
    config_dir: Path,
    script_env: Mapping[str, str],
) -> Program:
    """What runs the job ``spec`` in ``folder`` on the solver ``name``; the working folder is ``folder/output``.

    ``environ`` is the daemon's environment, ``script_env`` what ``env_script`` made of it (empty without one).
    Raises ``SpawnError``: ``program_missing``, ``name`` (an input that would be taken for an option), ``param``.
    """
    values = job_values(solver, name, spec, folder)
    return expanded(
        "command", solver.command, solver, name, values, environ, config_dir, script_env, primary=spec.primary
    )


def expanded(
    key: str,
    command: tuple[str, ...],
    solver: SolverConfig,
    name: str,
    values: Mapping[str, str],
    environ: Mapping[str, str],
    config_dir: Path,
    script_env: Mapping[str, str],
    *,
    primary: str = "",
) -> Program:
    """The command ``key`` of the solver ``name`` with ``values`` for its placeholders.

    Raises ``SpawnError`` as ``prepare``.
    """
    if values.get("stem", "").startswith("-") and any(element.startswith("{stem}") for element in command[1:]):
        stem = show(values["stem"])
        raise SpawnError("name", f"{stem} would be taken for an option of {name}; rename {primary} and drop it again")
    try:
        arguments = tuple(template.expand(element, values) for element in command[1:])
        own = {variable: template.expand(text, values) for variable, text in solver.env.items()}
    except KeyError as error:
        text = f"solver {name} needs a value for {error.args[0]}; give it in a job file, or configure a default"
        raise SpawnError("param", text) from None
    env = _base(environ)
    env.update(script_env)
    env.update((key, environ[key]) for key in environ if any(fnmatchcase(key, glob) for glob in solver.pass_env))
    env.update(own)
    path = env.get("PATH", os.defpath)
    program = find_program(template.expand(command[0], {}), f"solver {name}", config_dir, path, key)
    return Program((program, *arguments), env)


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

    Takes as long as the script, at most 30 s. Raises ``ConfigError`` with the last line the script wrote.
    """
    if sys.platform == "win32":
        raise ConfigError(str(script), ["env_script needs a POSIX shell; set env instead"])
    try:
        if script.stat().st_mode & stat.S_IWOTH:
            raise ConfigError(str(script), [f"everyone may change it, and so what is run; chmod o-w {script}"])
    except OSError as error:
        raise ConfigError(str(script), [f"it cannot be read: {error.strerror}"]) from None
    # Files, not pipes: what the script leaves in the background may hold a pipe open for ever.
    with tempfile.TemporaryFile() as found, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            ["/bin/sh", "-c", '. "$1" >&2 && env -0', "sh", str(script.absolute())],
            env=_base(environ),
            stdin=subprocess.DEVNULL,
            stdout=found,
            stderr=said,
            start_new_session=True,
        )
        try:
            outcome = f"it ended with exit status {process.wait(SCRIPT_SECONDS)}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            outcome = f"it did not end within {SCRIPT_SECONDS:g} s"
        if process.returncode != 0:
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


def job_values(solver: SolverConfig, name: str, spec: JobSpec, folder: Path) -> dict[str, str]:
    """What each placeholder stands for; a parameter without any value is left out."""
    values = {
        "input": f"./{spec.primary}" if spec.primary.startswith("-") else spec.primary,
        "stem": PurePath(spec.primary).stem,
        "output": str(folder.absolute() / "output"),
        "job_dir": str(folder.absolute()),
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
    if not executable:
        raise SpawnError("program_missing", f"the program {place} of {owner} is not executable; chmod +x {place}")
    return str(place)
