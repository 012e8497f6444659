"""A program that the daemon runs for itself, beside those of attempts, and whose end it waits for.

Rules: it stays in our session, so whoever looks after attempts leaves it alone (``posix.py``); it has a group of its
own, and with its end that is killed and reaped. What it put into another session is a program's orphan like any other.
This module must not know what is run.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Final

from solvisor.processors import spread_thread

from . import proc

if sys.platform == "win32":
    raise ImportError("solvisor.process.aside reads Linux's /proc and cannot be used on Windows")

REAP_SECONDS: Final = 1.0
"""How long it is waited for what the program left and what does not die."""

_PAUSE_SECONDS: Final = 0.005


def run(
    argv: Sequence[str], env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes], seconds: float
) -> int | None:
    """The exit status of a program, negative if a signal ended it; ``None`` if it had to be killed after ``seconds``.

    Blocks. Raises ``OSError`` if it cannot be started or watched.
    """
    spread_thread()  # and so the program
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, process_group=0)
    ended = False
    try:
        pidfd = os.pidfd_open(process.pid)
        try:
            waiting = select.poll()
            waiting.register(pidfd, select.POLLIN)
            ended = bool(waiting.poll(seconds * 1000))
        finally:
            os.close(pidfd)
    finally:
        # While the leader is not reaped, its number is nobody else's.
        _end_group(process.pid)
        process.wait()
    return process.returncode if ended else None


def _end_group(leader: int) -> None:
    """Kill a group, and reap those of it, but for its leader, that have become our children."""
    deadline = time.monotonic() + REAP_SECONDS
    while True:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, signal.SIGKILL)
        below = [proc.read_process(pid) for _, pid in proc.children(os.getpid()) if pid != leader]
        left = [process.pid for process in below if process is not None and process.group == leader]
        for pid in left:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        leader_state = proc.read_process(leader)
        over = leader_state is None or leader_state.state in "ZX"
        if (over and not left) or time.monotonic() >= deadline:
            return
        time.sleep(_PAUSE_SECONDS)
