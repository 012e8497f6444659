"""Attempts whose watcher hears of them on the loop, through ``LocalBackend``: real programs, and nobody who waits."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from process_kit import HOME_ID, Attempts
from solvisor.backends import local
from solvisor.backends.local import LocalBackend
from solvisor.errors import SpawnError
from solvisor.interfaces import AttemptSpec, Handle
from solvisor.model import ExitFacts
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)


class Heard:
    """A watcher that keeps what it hears; at ``raises`` it has a defect."""

    def __init__(self, raises: str = "") -> None:
        self.all: list[str] = []
        self._raises = raises

    def started(self, handle: Handle) -> None:
        self._hear("started")

    def refused(self, error: SpawnError) -> None:
        self._hear(f"refused: {error.reason}")

    def exited(self, facts: ExitFacts) -> None:
        self._hear(f"exited: {facts.exit_code}")

    def gone(self) -> None:
        self._hear("gone")

    def broken(self, error: Exception) -> None:
        self._hear(f"broken: {error}")

    def _hear(self, what: str) -> None:
        self.all.append(what)
        if what.startswith(self._raises) and self._raises:
            raise KeyError("a defect")


@pytest.fixture
async def backend() -> AsyncIterator[LocalBackend]:
    async with LocalBackend(HOME_ID, kill_wait_seconds=20) as backend:
        yield backend


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


async def test_it_hears_of_the_start_and_then_of_the_end(backend: LocalBackend, attempts: Attempts) -> None:
    heard = Heard()
    backend.start(attempts.shell("exit 3").ready, heard)
    await eventually(lambda: len(heard.all) == 2, "the end")
    assert heard.all == ["started", "exited: 3"]


async def test_it_hears_of_a_long_run_while_it_lasts(backend: LocalBackend, attempts: Attempts) -> None:
    heard = Heard()
    backend.start(attempts.shell("sleep 999").ready, heard)
    await eventually(lambda: heard.all == ["started"], "the start")


async def test_a_start_wakes_nobody_and_is_told_with_what_does(
    backend: LocalBackend, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "STARTED_SECONDS", 3600.0)
    long, short = Heard(), Heard()
    backend.start(attempts.shell("sleep 999").ready, long)
    backend.start(attempts.shell("exit 3").ready, short)
    assert long.all == []
    await eventually(lambda: len(short.all) == 2, "the end")
    assert long.all == ["started"]


async def test_it_hears_of_a_refusal_alone(backend: LocalBackend, attempts: Attempts) -> None:
    heard = Heard()
    backend.start(attempts("/no/such/program").ready, heard)
    await eventually(lambda: heard.all, "the refusal")
    assert heard.all == ["refused: program_missing"]


async def test_a_defect_while_it_prepares_is_told(backend: LocalBackend) -> None:
    def prepare() -> AttemptSpec:
        raise KeyError("a defect")

    heard = Heard()
    backend.start(prepare, heard)
    await eventually(lambda: heard.all, "the defect")
    assert [text.partition(":")[0] for text in heard.all] == ["broken"]


@pytest.mark.parametrize("raises", ["started", "exited"])
async def test_a_defect_of_its_own_is_told_and_not_lost(backend: LocalBackend, attempts: Attempts, raises: str) -> None:
    heard = Heard(raises)
    backend.start(attempts.shell("exit 3").ready, heard)
    await eventually(lambda: "broken: 'a defect'" in heard.all, "the defect")
