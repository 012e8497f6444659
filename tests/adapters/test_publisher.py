"""Results that pile up before the thread that publishes them, and what comes of them when it fails or is to end."""

from __future__ import annotations

import errno
import threading
from collections.abc import Sequence
from typing import cast

import anyio
import pytest

from solvisor import publisher
from solvisor.hand import Hand
from solvisor.publisher import Publisher
from solvisor.spool import NotDurable, Publication, Results
from waiting import eventually


class Slow:
    """Stands in for ``Results``: it publishes one after the other, each when ``gate`` is open, or raises ``error``."""

    def __init__(self, error: Exception | None = None) -> None:
        self.gate = threading.Event()
        self.begun: list[str] = []
        self._error = error

    def publish(self, batch: Sequence[Publication]) -> tuple[list[str], dict[str, OSError]]:
        self.begun += [publication.id for publication in batch]
        assert self.gate.wait(60)
        if self._error is not None:
            raise self._error
        return [publication.id for publication in batch], {}


@pytest.fixture(autouse=True)
def _one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "PUBLISH_MAX", 1)


def of(*job_ids: str) -> list[Publication]:
    return [Publication(job_id, "done", b"{}") for job_id in job_ids]


async def test_after_a_sync_that_failed_nothing_more_is_published() -> None:
    results, told, hand = Slow(NotDurable(errno.EIO, "fsync failed")), list[str](), Hand("files")
    results.gate.set()
    publishing = Publisher(cast(Results, results), hand, {}, told.append)
    publishing.add(*of("one", "two", "three"))
    with anyio.fail_after(60), pytest.RaisesGroup(NotDurable):
        await publishing.run()
    for _ in range(3):
        await hand.do(lambda: None)
    assert (results.begun, told) == (["one"], [])


async def test_what_is_under_way_comes_to_its_end_and_nothing_is_begun() -> None:
    results, told, hand = Slow(), list[str](), Hand("files")
    publishing = Publisher(cast(Results, results), hand, {}, told.append)
    publishing.add(*of("one", "two"))
    await eventually(lambda: results.begun == ["one"], "the first")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publishing.settle)
        await anyio.wait_all_tasks_blocked()
        assert told == []
        results.gate.set()
    assert told == ["one"]
    publishing.add(*of("three"))
    for _ in range(3):
        await hand.do(lambda: None)
    assert results.begun == ["one"]


async def test_an_error_is_not_lost_with_who_waited_for_it() -> None:
    results, hand = Slow(NotDurable(errno.EIO, "fsync failed")), Hand("files")
    publishing = Publisher(cast(Results, results), hand, {}, list[str]().append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(publishing.run)
        publishing.add(*of("one"))
        await eventually(lambda: results.begun == ["one"], "the first")
        tasks.cancel_scope.cancel()
    results.gate.set()
    with pytest.raises(NotDurable):
        await publishing.settle()
    await publishing.settle()
