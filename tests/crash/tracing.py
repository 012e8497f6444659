"""Kills inside system calls, by strace: the code neither knows nor helps."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from crash.failpoints import InCall
from waiting import wait_until


@cache
def why_not() -> str | None:
    """Why nothing can be killed inside a system call here, or ``None``."""
    if shutil.which("strace") is None:
        return "needs strace (apt install strace)"
    victim = subprocess.Popen(["sleep", "60"])
    try:
        with killing(victim.pid, InCall("fsync", 1)):
            return None
    except AssertionError as error:
        return f"strace cannot attach to another process: {error}"
    finally:
        victim.kill()
        victim.wait()


@contextlib.contextmanager
def killing(pid: int, at: InCall) -> Iterator[None]:
    """Within the block, kill the process ``pid`` with all its threads when it comes to that call.

    Its children are followed, and let go at the end of the block.
    """
    inject = f"inject={at.call}:signal=KILL:when={at.when}"
    argv = ["strace", "-f", "-qq", "-o", os.devnull, "-p", str(pid), "-e", f"trace={at.call}", "-e", inject]
    tracer = subprocess.Popen(argv, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: tracer.poll() is not None or _tracer_of(pid) == tracer.pid, "strace to attach")
        if tracer.poll() is not None:
            raise AssertionError(tracer.stderr.read().decode() if tracer.stderr else "")
        yield
    finally:
        tracer.kill()  # the kernel lets go of all; asked to end, strace may wait for ever for one that is just stopped
        tracer.communicate()


def is_stopped(pid: int) -> bool:
    """Whether it waits for SIGCONT."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "Tt"


def _tracer_of(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("TracerPid:"):
                return int(line.split()[1])
    return 0
