"""The sweep at start: no process of an earlier life of this home outlives the start of the next.

Rules: a process is ours only by this home's id in its environment, by being the very one (number and start time, in
this boot) that the earlier life noted, by standing in a session whose leader is such a one (programs that write their
own title over their arguments wipe out their environment as well), or by living in a cgroup of this home. Another
home's processes are never signalled. Limit: where there was no cgroup, a process that left its session *and* cleared
its environment cannot be told from a stranger's once the daemon that had adopted it is dead. This module must not know
jobs.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from . import cgroups, proc
from .tree import SendSignal

if sys.platform == "win32":
    raise ImportError("solvisor.process.earlier reads Linux's /proc and cannot be used on Windows")

CLEAN_SCANS = 2  # one scan can miss a process that is just being born or is between two programs
PAUSE_SECONDS = 0.05


Noted = Mapping[tuple[int, int], str]
"""Processes of this boot that an earlier life wrote down: (pid, start in clock ticks since boot), with their tokens."""


NOBODY: Noted = MappingProxyType({})


def kill_earlier_life(home_id: str, deadline_seconds: float, noted: Noted = NOBODY) -> set[str]:
    """Kill every process that an earlier daemon of this home started; return the attempts that would not die.

    Repeats until nothing of this home is found, or ``deadline_seconds`` have passed. Tokens, given and returned, are
    those of attempts and servers without the home's id. Blocks: call it in a thread.
    """
    deadline = time.monotonic() + deadline_seconds
    clean = 0
    while True:
        confined = cgroups.left_behind(home_id)
        for folder in confined:
            cgroups.kill(folder)
        ours = _scan(home_id, noted)
        found = {*ours.values(), *confined.values()}
        clean = 0 if found else clean + 1
        if clean == CLEAN_SCANS:
            cgroups.remove_left_behind(home_id)
            return set()
        if found and time.monotonic() >= deadline:
            return found
        kill(ours, proc.send_signal)
        if confined and not ours:
            time.sleep(PAUSE_SECONDS)


def survivors(home_id: str, noted: Noted = NOBODY) -> set[str]:
    """The attempts of this home that have a live process now. Signals nobody; takes a look at every process."""
    return {*_scan(home_id, noted).values(), *cgroups.left_behind(home_id).values()}


def _scan(home_id: str, noted: Noted) -> dict[proc.Process, str]:
    """Every live process of this home, and its attempt."""
    tokens: dict[int, str] = {}
    members: list[proc.Process] = []
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) == os.getpid():
            continue
        process = proc.read_process(int(name))
        if process is None or process.state in "ZX":
            continue
        members.append(process)
        home, slash, attempt = (proc.token(process.pid) or "").partition("/")
        if slash and home == home_id:
            tokens[process.pid] = attempt
        elif (process.pid, process.start) in noted:
            tokens[process.pid] = noted[process.pid, process.start]
    # The leader of an attempt made its session, and nobody can enter a session from outside.
    return {
        process: tokens.get(process.pid) or tokens[process.session]
        for process in members
        if process.pid in tokens or process.session in tokens
    }


def kill(processes: Iterable[proc.Process], send_signal: SendSignal) -> None:
    """SIGKILL each, and wait a moment for them to be gone."""
    waiting = select.poll()
    pidfds = []
    try:
        for process in processes:
            pidfd = proc.open_process(process)
            if pidfd is not None:
                pidfds.append(pidfd)
                send_signal(pidfd, signal.SIGKILL, group=False)
                waiting.register(pidfd, select.POLLIN)
        end = time.monotonic() + PAUSE_SECONDS
        left = len(pidfds)
        while left and (pause := end - time.monotonic()) > 0:
            for pidfd, _ in waiting.poll(pause * 1000):
                waiting.unregister(pidfd)
                left -= 1
    finally:
        for pidfd in pidfds:
            os.close(pidfd)
