"""A report that nobody waits for any more is given up, and so is one in the middle of which the daemon ends."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from scripted import Bench
from socket_kit import Http, connected
from solvisor import tallies
from solvisor.errors import StoreError
from solvisor.spool.reading import JobFolder
from solvisor_service.api import listening
from solvisor_service.api.app import make_app
from waiting import eventually

REPORT = b"GET /v1/report HTTP/1.1\r\nHost: x\r\n\r\n"


class Counting:
    """A count of a million jobs, which ends when it is given up."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.given_up = threading.Event()

    def __call__(self, _: object, __: int, ___: int, is_over: Callable[[], bool]) -> Any:
        self.begun.set()
        end = time.monotonic() + 30
        while not is_over() and time.monotonic() < end:
            threading.Event().wait(0.01)
        if is_over():
            self.given_up.set()
        raise StoreError("interrupted")


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting()
    monkeypatch.setattr(tallies, "ended", counting)
    return counting


async def test_a_report_ends_when_its_reader_hangs_up(bench: Bench, counting: Counting) -> None:
    path = bench.home.run / "solvisor.sock"
    with listening.listening(path) as sock:
        async with bench.running(), anyio.create_task_group() as tasks:
            tasks.start_soon(listening.serve, make_app(bench.desk, JobFolder(bench.home)), sock)
            with contextlib.closing(connected(path)) as reader:
                reader.sendall(REPORT)
                await eventually(counting.begun.is_set, "it is being counted")
                assert not counting.given_up.is_set()
            await eventually(counting.given_up.is_set, "nobody waits for it")
            answer = await anyio.to_thread.run_sync(Http(bench.home.root).get, "/v1/report?since=x")
            assert answer.code == "usage"
            tasks.cancel_scope.cancel()


async def test_a_report_ends_with_the_daemon_and_says_so(
    bench: Bench, counting: Counting, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the end does not wait for it, nor is it told as a defect."""
    monkeypatch.setattr(listening, "SHUTDOWN_SECONDS", 30)
    path = bench.home.run / "solvisor.sock"
    http = Http(bench.home.root)
    with listening.listening(path) as sock, caplog.at_level(logging.ERROR):
        async with anyio.create_task_group() as tasks:
            async with bench.running() as engine:
                tasks.start_soon(listening.serve, make_app(bench.desk, JobFolder(bench.home)), sock)
                answers: list[Any] = []

                async def ask() -> None:
                    answers.append(await anyio.to_thread.run_sync(http.get, "/v1/report"))

                tasks.start_soon(ask)
                await eventually(counting.begun.is_set, "it is being counted")
                engine.stop_now()
                await eventually(lambda: answers, "it is refused")
                assert (answers[0].status, answers[0].code) == (503, "unavailable")
            began = time.monotonic()
            tasks.cancel_scope.cancel()
        assert time.monotonic() - began < listening.SHUTDOWN_SECONDS / 2
    assert counting.given_up.is_set()
    assert caplog.records == []
