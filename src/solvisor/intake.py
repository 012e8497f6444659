"""A claimed drop becomes a job, or is refused in words that say what to change.

Rules: the bytes that were claimed are the truth: the job file is read again from ``work/<id>/input``, whatever a scan
thought of it, so a claim found at start is judged like any other. Odd names were refused by the claim. Here are also
the rules of names that the inbox sorts by. This module must not know the inbox, rows or states; other jobs that a job
file names (``after``, ``key``) are the engine's to check.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import translate
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import structlog
from msgspec.structs import replace

from .config import Config
from .errors import Refused
from .home import Home
from .jobfile import LARGEST_FILE, JobFile, check_options, check_params, parse_job_file
from .kinds import SolverConfig
from .model import Intake, JobSpec, Limits, Source
from .names import FOLDER_JOB_FILE, JOB_FILE_SUFFIX, is_job_file, may_be_input, printable
from .spool import Taken, escape_name, files
from .tables import suggestion
from .units import describe_size

if sys.platform != "win32":
    import pwd

log = structlog.get_logger()

_NOTHING: Mapping[str, str] = MappingProxyType({})
_LISTED = 5


def candidates(config: Config, name: str, route: str | None) -> tuple[str, ...]:
    """The solvers that accept a file of this name; with a route only that one, and any name if it has no patterns."""
    if not may_be_input(name):
        return ()
    if route is not None:
        solver = config.solver.get(route)
        return (route,) if solver is not None and (not solver.accept or _accepts(solver, name)) else ()
    return tuple(solver for solver, settings in config.solver.items() if _accepts(settings, name))


def folder_inputs(config: Config, names: Iterable[str], route: str | None) -> list[str]:
    """Those of the names at the top of a dropped folder that a solver accepts."""
    return sorted(name for name in names if candidates(config, name, route))


def _accepts(solver: SolverConfig, name: str) -> bool:
    return _pattern(solver.accept).fullmatch(name) is not None


@lru_cache(maxsize=256)
def _pattern(accept: tuple[str, ...]) -> re.Pattern[str]:
    """One expression for all patterns of a solver; with none it matches nothing."""
    return re.compile("|".join(map(translate, accept)) or r"(?!)", re.IGNORECASE)


def decide(config: Config, limits: Limits, home: Home, taken: Taken, lost: Mapping[str, str] = _NOTHING) -> Intake:
    """Judge a claimed drop. Blocks: it reads the job file.

    ``lost`` says of inputs that the job file names why they did not come. A refused drop keeps in its ``spec`` what is
    known of it; ``solver`` and ``primary`` are empty where they are not.
    """
    judge = _Judge(config, limits, home, taken, lost)
    try:
        judge.judge()
    except Refused as refused:
        return Intake(taken.take.id, judge.spec, (refused.refusal, str(refused)))
    except (OSError, MemoryError):
        raise  # the machine's trouble, and not the drop's
    except Exception as error:  # it must not end the daemon, and every one after it
        log.exception("job.not_judged", id=taken.take.id)
        text = f"it could not be judged, by a defect of Solvisor: {type(error).__name__}: {error}; please report it"
        return Intake(taken.take.id, judge.spec, ("defect", printable(text)))
    return Intake(taken.take.id, judge.spec)


class _Judge:
    """Fills in ``spec`` step by step, so that a refusal keeps what was known by then."""

    def __init__(self, config: Config, limits: Limits, home: Home, taken: Taken, lost: Mapping[str, str]) -> None:
        take = taken.take
        request = take.request
        self._via = "inbox" if request is None else request.via
        self._config = config
        self._limits = limits
        self._taken = taken
        self._lost = lost
        self._home = home
        self._route = take.route
        self._dropped = escape_name(take.sources[0].rpartition("/")[2])
        self._top = frozenset(
            path.removeprefix("input/") for path in (fact.path for fact in taken.files) if path.count("/") == 1
        )
        self.spec = JobSpec(
            name=self._dropped,
            solver="",
            primary="",
            inputs=taken.files,
            source=Source(self._via, escape_name(take.sources[0])),
            user=_user(taken.uid) if request is None else request.user,
            originals=taken.originals,
            batch=request.batch if request else None,
            key=request.key if request else None,
            retry_of=request.retry_of if request else None,
            route=take.route,
            folder=take.folder,
        )

    def judge(self) -> None:
        if self._taken.problem is not None:
            raise Refused(*self._taken.problem)
        job_file = self._job_file_name()
        job = None if job_file is None else self._read(job_file)
        if job is not None and job_file is not None:
            self._apply(job)
            primary = job.inputs[0] if job.inputs else self._sole_input(job.solver or self._route)
            self.spec = replace(self.spec, primary=primary, name=job.name or primary)
            self._check_inputs(job_file, job)
        else:
            primary = self._sole_input(self._route) if self._taken.take.folder else self._dropped
            self.spec = replace(self.spec, primary=primary, name=primary)
        name = self._solver(job_file, job)
        self.spec = replace(self.spec, solver=name)
        solver = self._config.solver[name]
        if job is None and not solver.alone:
            wanted = f"{_job_file_for(primary)} and drop both again"
            if self._taken.take.folder:
                wanted = f"a {FOLDER_JOB_FILE} in {self._dropped} and drop the folder again"
            wanted = self._hint(wanted, "one and submit both")
            raise Refused("job_file", f"{name} takes {primary} only with a job file: add {wanted}")
        params, options = self._wishes(name, solver, job)
        self.spec = replace(self.spec, params=params, options=options)
        if job is not None and job_file is not None:
            self._check_room(job_file, job)

    def _job_file_name(self) -> str | None:
        if not self._taken.take.folder:
            return self._dropped if is_job_file(self._dropped) else None
        if FOLDER_JOB_FILE in self._top:
            return FOLDER_JOB_FILE
        misnamed = sorted(name for name in self._top if is_job_file(name))
        if misnamed:
            text = f"{self._dropped} holds {_listed(misnamed)}: in a folder the job file is called {FOLDER_JOB_FILE}"
            raise Refused("job_file", f"{text}; rename it and drop the folder again")
        return None

    def _read(self, job_file: str) -> JobFile:
        folder_fd = files.open_folder(str(self._home.work / self._taken.take.id / "input"))
        try:
            with open(files.open_file(job_file, folder_fd), "rb") as file:
                return parse_job_file(file.read(LARGEST_FILE + 1), self._called(job_file))
        except Refused as refused:
            raise Refused(refused.refusal, f"{refused}; {self._hint('correct it and drop all again')}") from None
        finally:
            os.close(folder_fd)

    def _called(self, job_file: str) -> str:
        """What its user knows it by: what was sent as wishes became a job file only here."""
        return job_file if self._via == "inbox" else "the job"

    def _hint(self, dropping: str, sending: str = "correct it and submit it again") -> str:
        """What to do next, in the words of the way the files came in."""
        return dropping if self._via == "inbox" else sending

    def _apply(self, job: JobFile) -> None:
        """Note what the user asked for, before any of it is judged.

        A job that is run again leaves its key to the first one, and what that waited for is over.
        """
        again = self.spec.retry_of is not None
        if self.spec.key is not None and job.key not in (None, self.spec.key):
            raise Refused("key", f"its key is {job.key!r} in the job file and {self.spec.key!r} beside it; give one")
        self.spec = replace(
            self.spec,
            name=job.name or self.spec.name,
            solver=job.solver or self._route or "",
            project=job.project,
            priority=job.priority,
            after=() if again else job.after,
            key=None if again else self.spec.key or job.key,
            timeout_seconds=job.timeout,
            cpus=job.cpus,
            memory_bytes=job.memory,
            licenses=job.licenses,
            retry=job.retry,
        )

    def _sole_input(self, route: str | None) -> str:
        """The one input of a folder, or of a job file that names none."""
        if not self._taken.take.folder:
            hint = self._hint("drop both again", "submit both again")
            raise Refused("inputs", f'{self._dropped} names no inputs: add inputs = ["FILE"] and {hint}')
        found = folder_inputs(self._config, self._top, route)
        if len(found) == 1:
            return found[0]
        what = (
            f"holds {_listed(found)}, and each could be the input" if found else "holds no input that a solver accepts"
        )
        whole = self._dropped if self._via == "inbox" else "what was sent"
        text = f"{whole} {what} ({self._accepted(route)})"
        hint = self._hint("drop the folder again", "submit the folder again")
        raise Refused("inputs", f'{text}: add a {FOLDER_JOB_FILE} with inputs = ["FILE"] and {hint}')

    def _check_inputs(self, job_file: str, job: JobFile) -> None:
        missing = [name for name in job.inputs if name not in self._top]
        if not missing:
            return
        if self._taken.take.folder:
            text = (
                f"{self._called(job_file)} names {_listed(missing)}, not among the files beside it in {self._dropped}"
            )
            hint = self._hint("add what is missing and drop the folder again", "send what is missing along")
            raise Refused("missing_input", f"{text}; {hint}")
        whys = "; ".join(f"{name}: {self._lost.get(name, 'no such file came')}" for name in missing[:_LISTED])
        text = f"{job_file} names inputs that are not there ({whys}{_more(missing)})"
        raise Refused("missing_input", f"{text}; drop all of them again, the job file first or all in one folder")

    def _solver(self, job_file: str | None, job: JobFile | None) -> str:
        """The one solver that this job is for."""
        route = self._route
        asked = None if job is None else job.solver
        if asked is not None:
            if asked not in self._config.solver:
                text = f'{self._called(job_file or "")} asks for the solver "{asked}", which does not exist'
                hint = self._hint("correct it and drop all again")
                raise Refused("solver", f"{text}{suggestion(asked, self._config.solver)}; {hint}")
            if route not in (None, asked):
                text = f"{job_file} asks for {asked} but was dropped in inbox/{route}"
                raise Refused("solver", f"{text}; drop all again in inbox/{asked}, or take the solver key out")
            return asked
        primary = self.spec.primary
        if job is not None and route is not None and route in self._config.solver:
            return route
        fits = candidates(self._config, primary, route)
        if len(fits) == 1:
            return fits[0]
        if fits:
            places = " or ".join(f"inbox/{solver}" for solver in fits)
            hint = self._hint(f"drop it in {places}", "say which solver it is for")
            raise Refused("ambiguous", f"{primary} fits {_and(fits)}; {hint}")
        text = f"no solver accepts {primary} ({self._accepted(route)})"
        if job is not None:
            hint = self._hint(f'add solver = "NAME" to {job_file} and drop all again', "say which solver it is for")
            raise Refused("no_solver", f"{text}: {hint}")
        if self._via != "inbox":
            raise Refused("no_solver", f"{text}: rename it, or say which solver it is for")
        raise Refused("no_solver", f"{text}: rename it, or drop it again with a job file {_job_file_for(primary)}")

    def _wishes(self, name: str, solver: SolverConfig, job: JobFile | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the job asks of its solver: params, and the options of its kind."""
        try:
            params = check_params(solver, {} if job is None else job.params)
            return dict(params), {} if job is None else check_options(name, solver, job)
        except Refused as refused:
            hint = self._hint("correct it and drop all again")
            raise Refused(refused.refusal, f"{self._dropped}: {refused}; {hint}") from None

    def _check_room(self, job_file: str, job: JobFile) -> None:
        """Refuse what could never start: more than there is."""
        faults = []
        if job.cpus is not None and job.cpus > self._limits.cpus:
            faults.append(f"cpus: {job.cpus} are more than the {self._limits.cpus} there are")
        if job.memory is not None and job.memory > self._limits.memory_bytes:
            asked, there = describe_size(job.memory), describe_size(self._limits.memory_bytes)
            faults.append(f"memory: {asked} is more than the {there} there is")
        for name, count in (job.licenses or {}).items():
            there_are = self._limits.licenses.get(name)
            if there_are is None:
                faults.append(f"licenses.{name}: there is no such license{suggestion(name, self._limits.licenses)}")
            elif count > there_are:
                faults.append(f"licenses.{name}: {count} are more than the {there_are} there are")
        if faults:
            hint = self._hint("correct it and drop all again")
            raise Refused("resources", f"{self._called(job_file)}: {'; '.join(faults)}; {hint}")

    def _accepted(self, route: str | None) -> str:
        """What the solvers accept, for a message."""
        solvers = self._config.solver if route is None else {n: s for n, s in self._config.solver.items() if n == route}
        known = [f"{name} accepts {' '.join(solver.accept)}" for name, solver in solvers.items() if solver.accept]
        if not known:
            return "none has accept patterns" if route is None else f"{route} takes nothing by its name"
        return "; ".join(known[:_LISTED]) + (f"; {len(known) - _LISTED} more solvers" if len(known) > _LISTED else "")


def _user(uid: int) -> str:
    """The name of a user, or the number where there is none; asked for once a minute."""
    return _user_then(uid, int(time.monotonic() // 60))


@lru_cache(maxsize=256)
def _user_then(uid: int, _minute: int) -> str:
    if sys.platform != "win32":
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            pass
    return str(uid)


def _job_file_for(name: str) -> str:
    return f"{name.rpartition('.')[0] or name}{JOB_FILE_SUFFIX}"


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + _more(names)


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
