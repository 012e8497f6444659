"""What the machine grants: limits, ports, the clock, control groups.

Rules: plain readings of the kernel; a running daemon's limits count, not those of the shell that asks. This module must
not know the configuration or what lies in the home.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import solvisor
from solvisor.process import cgroups
from solvisor_service.doctor.finding import Finding, Subject, note, ok, warning

FILES_ENOUGH: Final = 1024
PROCESSES_ENOUGH: Final = 1024
INSTANCES_ENOUGH: Final = 64
WATCHES_ENOUGH: Final = 8192
PORTS_ENOUGH: Final = 1000

_FIRST_PORT, _LAST_PORT = 1024, 65535
_TIMEX_BYTES: Final = 512
"""More than ``struct timex`` has on any architecture."""
_CLOCK_UNSYNCHRONISED: Final = 5


def limits(subject: Subject) -> Iterator[Finding]:
    """Open files and processes of the daemon, or of this shell; what inotify grants this user."""
    whose, process = _process(subject)
    text = (process / "limits").read_text()
    files, processes = _soft_limit(text, "open files"), _soft_limit(text, "processes")
    instances, watches = _kernel("fs/inotify/max_user_instances"), _kernel("fs/inotify/max_user_watches")
    enough = True
    if files < FILES_ENOUGH:
        enough = False
        text = f"{whose} may open {files:.0f} files, few for many jobs at once"
        yield warning(text, "raise LimitNOFILE in the unit, or ulimit -n")
    if processes < PROCESSES_ENOUGH:
        enough = False
        text = f"{whose} may have {processes:.0f} processes, few for solvers with threads"
        yield warning(text, "raise LimitNPROC and TasksMax in the unit, or ulimit -u")
    if instances < INSTANCES_ENOUGH or watches < WATCHES_ENOUGH:
        enough = False
        yield warning(
            f"inotify grants all programs of a user {instances} instances and {watches} watches; a daemon that gets "
            "none reads its inbox every [inbox] rescan only",
            f"sysctl fs.inotify.max_user_instances={2 * INSTANCES_ENOUGH} fs.inotify.max_user_watches={WATCHES_ENOUGH}",
        )
    if enough:
        granted = f"{_count(files)} open files, {_count(processes)} processes"
        yield ok(f"{whose} may have {granted}; inotify: {instances} instances, {watches} watches")


def _process(subject: Subject) -> tuple[str, Path]:
    """The daemon if it can be told, else this process: what to call it, and where the kernel describes it."""
    with contextlib.suppress(OSError):
        if subject.holder is not None:
            return "the daemon", Path(f"/proc/{subject.holder.pid}")
    return "this shell", Path("/proc/self")


def _soft_limit(text: str, name: str) -> float:
    found = re.search(rf"^Max {name} +([0-9]+)", text, re.MULTILINE)
    return int(found[1]) if found else math.inf


def _count(limit: float) -> str:
    return "any number of" if limit == math.inf else f"{limit:.0f}"


def _kernel(name: str) -> int:
    return int(Path("/proc/sys", name).read_text())


def ports(_: Subject) -> Iterator[Finding]:
    """Ports that the kernel does not hand out by itself: those that warm servers can be given."""
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    free = max(0, low - _FIRST_PORT) + max(0, _LAST_PORT - high)
    text = f"the kernel hands out {low}-{high} by itself; {free} others are left for servers"
    if free < PORTS_ENOUGH:
        yield warning(text, 'sysctl net.ipv4.ip_local_port_range="32768 60999"')
    else:
        yield ok(text)


def clock(_: Subject) -> Iterator[Finding]:
    """Whether the time of day can be believed. What drives the daemon is the monotonic clock, which sleeps with it."""
    now = datetime.now(UTC)
    installed = datetime.fromtimestamp(Path(solvisor.__file__).stat().st_mtime, UTC)
    if now < installed:
        yield warning(
            f"it is {now:%Y-%m-%d} by the clock, before this program was installed ({installed:%Y-%m-%d}); "
            "jobs would carry wrong times",
            "set the clock: timedatectl set-ntp true",
        )
    state = _kernel_clock_state()
    if state == _CLOCK_UNSYNCHRONISED:
        yield note(f"{now:%Y-%m-%d %H:%M} UTC, not synchronised; times of jobs may be off", "timedatectl set-ntp true")
    else:
        yield ok(f"{now:%Y-%m-%d %H:%M} UTC" + ("" if state is None else ", synchronised"))
    if sys.platform == "linux":
        slept = time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()
        if slept > 1:
            yield note(
                f"asleep for {slept / 60:.0f} min since this machine was booted; timeouts of jobs do not count that"
            )


def _kernel_clock_state() -> int | None:
    """What adjtimex(2) returns without changing anything; ``None`` where it may not be asked."""
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))
    except (OSError, AttributeError):
        return None
    return state if state >= 0 else None


def cgroup(subject: Subject) -> Iterator[Finding]:
    """Whether the daemon, or this shell, could keep solvers in control groups of their own."""
    whose, process = _process(subject)
    if subject.holder is None:
        confines = cgroups.can_be_made()
    else:
        confines = (
            re.search(r"^0::.*/solvisor-[^/]+/daemon-", (process / "cgroup").read_text(), re.MULTILINE) is not None
        )
    who = "the daemon" if subject.holder is not None else f"a daemon started from {whose}"
    if confines:
        yield ok(f"{who} keeps each solver and all it starts in a cgroup of its own")
    else:
        yield note(
            f"{who} cannot make cgroups; it tells processes apart by session and environment",
            "run it as a service of systemd, whose unit says Delegate=yes: solvisor service install",
        )
