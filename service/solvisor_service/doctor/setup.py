"""What is set up: this program, the configuration, the solvers it names.

Rules: a solver's program is looked for as the service looks, with the daemon's environment where it can be had. No
solver is run but to ask a known one for its version. This module must not know the home's files or the daemon.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from solvisor import __version__
from solvisor import config as configurations
from solvisor.config import Config
from solvisor.errors import ConfigError, SpawnError
from solvisor.kinds import programs
from solvisor.process import cgroups, host
from solvisor.solvers import command
from solvisor_service.doctor.finding import Finding, Subject, fault, from_error, note, ok, warning
from solvisor_service.doctor.threads import in_thread
from solvisor_service.profiles import profiles
from solvisor_service.profiles.search import version_of

TRIED_PYTHONS: Final = ((3, 11), (3, 13))
"""The first and the last version of Python that the tests run on."""


def program(_: Subject) -> Iterator[Finding]:
    """Which Solvisor this is, and what runs it."""
    first, last = TRIED_PYTHONS
    text = f"solvisor {__version__}, Python {platform.python_version()} in {sys.prefix}, Linux {platform.release()}"
    if first <= sys.version_info[:2] <= last:
        yield ok(text)
    else:
        wanted = f"Python {first[0]}.{first[1]} to {last[0]}.{last[1]}"
        yield warning(f"{text}; tested is {wanted}", f"install it with {wanted}")


def configuration(subject: Subject) -> Iterator[Finding]:
    """Every fault and warning of the file; whether its solvers fit this machine."""
    path = subject.config_path
    if not path.exists():
        yield fault(f"there is no {path}", f"run: solvisor init {subject.option}")
        return
    if not os.access(path, os.R_OK):
        yield note(f"{path} may not be read by this user", "look as the daemon's user, or as root")
        return
    try:
        config = configurations.load(path)
        config.limits(host.usable_cpus(), host.total_memory_bytes())
    except ConfigError as error:
        for problem in error.problems:
            yield fault(f"{path.name}: {problem}", f"correct {path}")
        return
    for text in config.warnings:
        yield warning(text, "narrow the patterns, if that is not meant")
    if subject.holder is None and config.unenforced(()):  # of a daemon that runs, its socket tells
        for text in config.unenforced(cgroups.limits_here()):
            yield note(f"a daemon started from this shell: {text}")
    if config.solver:
        yield ok(f"{path}: {len(config.solver)} solvers" if len(config.solver) > 1 else f"{path}: 1 solver")
    else:
        yield warning(f"{path} declares no solver", f"run: solvisor init --update {subject.option}")


def notify(subject: Subject) -> Iterator[Finding]:
    """The program that tells people, if there is to be one."""
    config, around = subject.config, subject.surroundings
    if config is None or config.notify is None:
        yield ok("nobody is told of anything")
    else:
        path = around.environ.get("PATH", os.defpath)
        try:
            found = command.find_program(config.notify.command[0], "[notify]", config.path.parent, path)
        except SpawnError as error:
            yield from_error(error)
        else:
            yield ok(f"{', '.join(config.notify.on) or 'nothing'}: told by {found}")


def solvers(subject: Subject) -> Iterator[Finding]:
    """Each solver's program and version, and its ``env_script``. Takes as long as the slowest script."""
    config, around = subject.config, subject.surroundings
    if config is None or not config.solver:
        yield note("none to look for")
        return
    if around.daemon is None or around.unread is not None:
        yield note("looked for with this shell's environment; a daemon may be started with another PATH")
    looks = [in_thread(partial(_solver, config, name, around.environ), f"doctor-{name}") for name in config.solver]
    yield from (look.result() for look in looks)


def _solver(config: Config, name: str, environ: dict[str, str]) -> Finding:
    solver, here = config.solver[name], config.path.parent
    path = environ.get("PATH", os.defpath)
    try:
        if solver.env_script is not None:
            path = command.source_environment(here / solver.env_script, environ).get("PATH", path)
        path = solver.env.get("PATH", path)
        found, *_ = [
            command.find_program(os.path.expanduser(argv[0]), f"solver {name}", here, path, key)
            for key, argv in programs(solver).items()
        ]
    except ConfigError as error:
        return fault(f"{name}: env_script {error.path}: {'; '.join(error.problems)}", "correct the script")
    except SpawnError as error:
        return from_error(error)
    version = _version(found)
    return ok(f"{name}: {found}" + (f", version {version}" if version else ""))


def _version(program: str) -> str | None:
    """What a known program says of itself."""
    known = (profile.about for profile in profiles() if Path(program).name in profile.about.programs)
    about = next(known, None)
    return version_of(program, about.version) if about is not None else None
