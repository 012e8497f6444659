"""Processes that were never below the daemon, and so outlive their attempt, are found and killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from process_kit import ANOTHER_ID, HOME_ID, Attempts, is_alive
from solvisor.backends.local import LocalBackend
from solvisor.process.janitor import Escaped, Janitor
from solvisor.process.posix import Processes
from solvisor.process.tree import Tree
from waiting import eventually, wait_until

if sys.platform == "win32":
    pytest.skip("Linux's /proc", allow_module_level=True)

STARTERS = "both"


class Starter:
    """Starts sleepers in our own session, as somebody would whom a solver asked to."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def __call__(self, token: str | None) -> int:
        env = {"PATH": os.environ["PATH"]} | ({"SOLVISOR_ATTEMPT": token} if token is not None else {})
        self.started.append(subprocess.Popen(["sleep", "1000"], env=env))
        return self.started[-1].pid


@pytest.fixture
def start() -> Iterator[Starter]:
    starter = Starter()
    yield starter
    for process in starter.started:
        process.kill()
        process.wait()


async def test_fault_05_what_outlives_its_attempt_is_killed_and_told(tmp_path: Path, start: Starter) -> None:
    attempts = Attempts(tmp_path)
    with capture_logs() as lines:
        async with LocalBackend(HOME_ID, kill_wait_seconds=20, patrol_seconds=0.05) as backend:
            running = attempts("sleep", "1000").spec
            handle = await backend.launch(lambda: running)
            ended = attempts("true").spec
            await (await backend.launch(lambda: ended)).wait()
            spared = [start(None), start(running.token), start(f"{ANOTHER_ID}/1"), start(f"{HOME_ID}x/1")]
            escaped = start(ended.token)
            await eventually(lambda: not is_alive(escaped), "the escaped one killed")
            await eventually(lambda: backend.escaped == 1, "it is counted")
            assert all(is_alive(pid) for pid in [*spared, handle.pid])
            handle.stop(now=True)
            await handle.wait()
            await eventually(lambda: backend.escaped == 2, "what is left of the other one is found once that ended")
    told = [line for line in lines if line["event"] == "process.escaped"]
    assert [(line["pid"], line["program"], line["attempt"]) for line in told] == [
        (escaped, "sleep", ended.token.partition("/")[2]),
        (spared[1], "sleep", running.token.partition("/")[2]),
    ]


async def test_what_is_just_being_started_has_not_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Processes._watch
    patrols = 0

    def late(processes: Processes, *arguments: Any) -> Tree:
        before = patrols
        wait_until(lambda: patrols >= before + 3, "three patrols")
        return real(processes, *arguments)

    def patrol(janitor: Janitor) -> None:
        nonlocal patrols
        real_patrol(janitor)
        patrols += 1

    real_patrol = Janitor._patrol
    monkeypatch.setattr(Processes, "_watch", late)
    monkeypatch.setattr(Janitor, "_patrol", patrol)
    async with LocalBackend(HOME_ID, kill_wait_seconds=20, patrol_seconds=0.01) as backend:
        handle = await backend.launch(Attempts(tmp_path)("sleep", "1000").ready)
        assert is_alive(handle.pid)
        assert backend.escaped == 0


def test_fault_05_what_would_not_die_is_told_once_and_tried_again(start: Starter) -> None:
    told: list[Escaped] = []
    tries: list[int] = []

    def lost(target: int, signum: int, *, group: bool) -> None:
        tries.append(signum)

    pid = start(f"{HOME_ID}/gone")
    janitor = Janitor(HOME_ID, lambda _: False, told.append, patrol_seconds=0.01, send_signal=lost)
    wait_until(lambda: len(tries) >= 3, "three tries")
    janitor.close()
    assert told == [Escaped(pid, "gone", "sleep")]
    assert is_alive(pid)


async def test_what_would_not_die_at_the_start_has_not_escaped_but_is_tried_again(start: Starter) -> None:
    async with LocalBackend(HOME_ID, patrol_seconds=0.05) as backend:
        backend.know_unkillable({"stuck"})
        stuck = start(f"{HOME_ID}/stuck")
        await eventually(lambda: not is_alive(stuck), "it can be killed by now")
        assert backend.escaped == 0
        start(f"{HOME_ID}/other")
        await eventually(lambda: backend.escaped == 1, "another one has escaped")
