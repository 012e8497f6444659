"""Start one program: the fast way, with exactly the environment and the files it was given, and clear refusals.

Rules: argv is a list and reaches no shell; the child gets a session of its own, stdin from nowhere, its logs opened for
appending, and nothing else that is open here. The compiled starter (``native.py``) does it where it works, else
``subprocess.Popen`` without ``preexec_fn``. Both use vfork and let go of the interpreter's lock while they wait for the
exec, so a program on a hung disk stalls only the calling thread. This module must not know what becomes of the process.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

from solvisor.errors import SpawnError
from solvisor.interfaces import AttemptSpec
from solvisor.processors import spread_thread

from . import proc
from .native import Failed, Starter, Step

if sys.platform == "win32":
    raise ImportError("solvisor.process.spawn starts processes on POSIX systems; Windows needs its own")

if sys.version_info < (3, 11, 4):
    # There Popen keeps the interpreter's lock over vfork, and a hung disk would stall the whole daemon (gh-104372).
    vars(subprocess)["_USE_VFORK"] = False


class Leader(NamedTuple):
    """A program that was started: a child that nobody reaps but its owner, who closes ``pidfd`` as well.

    ``start``: when it was started, in clock ticks since boot; ``None`` if it is gone although nobody reaped it.
    ``inside``: it was born in its cgroup.
    """

    pid: int
    pidfd: int
    start: int | None
    inside: bool


def spawn(spec: AttemptSpec, starter: Starter, cgroup: str | None = None) -> Leader:
    """Start the leader of an attempt, in the folder ``cgroup`` of version 2 where that can be. Blocks until it runs.

    Raises ``SpawnError`` with reason ``program_missing``, ``not_executable``, ``no_folder`` or ``spawn``, and
    ``OSError`` if it cannot be held.
    """
    if not spec.argv:
        raise SpawnError("spawn", "the command line is empty; give the solver a command")
    try:
        env = {**spec.env, proc.TOKEN_VARIABLE: spec.token}
        born = starter.start(spec.argv, env, spec.cwd, spec.stdout, spec.stderr, cgroup)
    except Failed as error:
        if error.step in (Step.STDOUT, Step.STDERR):
            raise _log_refusal(error) from error
        raise _refusal(spec, error) from error
    except ValueError as error:
        raise _refusal(spec, error) from error
    if born is None:
        return _held(_popen(spec))
    return _held(born.pid, born.pidfd, born.start, inside=cgroup is not None)


def _held(pid: int, pidfd: int | None = None, start: int | None = None, *, inside: bool = False) -> Leader:
    """Of one that cannot be held nothing is left. Raises ``OSError``."""
    try:
        if start is None:
            process = proc.read_process(pid)
            start = process.start if process is not None else None
        return Leader(pid, os.pidfd_open(pid) if pidfd is None else pidfd, start, inside)
    except OSError:
        proc.send_signal(pid, signal.SIGKILL, group=True)
        os.waitpid(pid, 0)
        if pidfd is not None:
            os.close(pidfd)
        raise


def _popen(spec: AttemptSpec) -> int:
    logs: list[int] = []
    spread_thread()  # and so the program
    try:
        logs.append(_open_log(spec.stdout))
        logs.append(_open_log(spec.stderr))
        popen = subprocess.Popen(
            spec.argv,
            cwd=spec.cwd,
            env={**spec.env, proc.TOKEN_VARIABLE: spec.token},
            stdin=subprocess.DEVNULL,
            stdout=logs[0],
            stderr=logs[1],
            start_new_session=True,
        )
        popen.returncode = 0  # it is not Popen's any more: the next one that is made must not reap it
        return popen.pid
    except (OSError, ValueError) as error:
        raise _refusal(spec, error) from error
    finally:
        for fd in logs:
            os.close(fd)


def _open_log(path: str) -> int:
    try:
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    except OSError as error:
        raise _log_refusal(error) from error


def _log_refusal(error: OSError) -> SpawnError:
    path = error.filename
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return SpawnError("no_folder", f"the folder of the log {path} does not exist; create it and retry the job")
    return SpawnError("spawn", f"the log {path} cannot be opened: {error.strerror}; correct that and retry the job")


def _refusal(spec: AttemptSpec, error: OSError | ValueError) -> SpawnError:
    program = spec.argv[0]
    if isinstance(error, ValueError):  # a NUL byte, or a text that has no bytes in the file system's encoding
        return SpawnError("spawn", f"{program!r} cannot be started: {error} in its arguments or environment; remove it")
    number = error.errno or 0
    if error.filename == spec.cwd:
        why = f"the working folder {spec.cwd} cannot be entered: {os.strerror(number)}"
        return SpawnError("no_folder", f"{why}; correct that and retry the job")
    if number in (errno.ENOENT, errno.ENOTDIR):
        found = _find(spec)
        if found is None and os.path.dirname(program):
            return SpawnError("program_missing", f"{program} does not exist; correct the solver's command")
        if found is None:
            searched = spec.env.get("PATH", os.defpath)
            return SpawnError(
                "program_missing",
                f"{program} was not found in PATH ({searched}); install it or give its full path in the command",
            )
        return SpawnError(
            "program_missing",
            f"{found} exists, but the interpreter in its first line or its loader does not; install that or correct it",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EISDIR):
        return SpawnError(
            "not_executable",
            f"{program} may not be executed by this user; make it executable (chmod +x) or correct the command",
        )
    if number == errno.ENOEXEC:
        return SpawnError(
            "not_executable",
            f"{program} is no program this machine can run; a script needs a first line like #!/bin/sh",
        )
    if number == errno.E2BIG:
        return SpawnError(
            "spawn", f"{program} cannot be started: its arguments and environment are too long; shorten them"
        )
    return SpawnError("spawn", f"{program} cannot be started: {os.strerror(number)}; correct that and retry the job")


def _find(spec: AttemptSpec) -> str | None:
    """The file that argv[0] means, executable or not, seen from the attempt's folder."""
    program = spec.argv[0]
    if os.path.dirname(program):
        path = os.path.join(spec.cwd, program)
        return path if os.path.exists(path) else None
    return shutil.which(program, os.F_OK, spec.env.get("PATH", os.defpath))
