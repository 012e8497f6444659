"""A file on its way to a client keeps its job from being removed, for as long as it takes and a moment longer."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from scripted import Bench, finish
from solvisor.model import Job
from solvisor.spool import reading
from solvisor.spool.reading import JobFolder
from solvisor.views import Submitted
from solvisor_service.api.app import make_app
from solvisor_service.api.delivery import CHUNK


async def test_nothing_is_removed_under_a_client_that_reads(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOMENT_SECONDS", 0.0)
    folders = JobFolder(bench.home)
    async with bench.running(), anyio.create_task_group() as tasks:
        (job_id,) = await finish(bench, 1)
        data = b"x" * (3 * CHUNK)
        (bench.home.done / job_id / "output" / "big.frd").write_bytes(data)
        app = make_app(bench.desk, folders)
        stalled, go_on, over = anyio.Event(), anyio.Event(), anyio.Event()
        received = bytearray()

        async def receive() -> Any:
            await anyio.sleep_forever()

        async def send(message: Any) -> None:
            received.extend(message.get("body", b""))
            if message.get("body"):
                stalled.set()
                await go_on.wait()

        async def fetch() -> None:
            path = f"/v1/jobs/{job_id}/files/output/big.frd"
            scope: dict[str, Any] = {
                "type": "http",
                "method": "GET",
                "path": path,
                "raw_path": path.encode(),
                "query_string": b"",
            }
            scope |= {
                "headers": [],
                "client": ("uid", 0),
                "server": ("solvisor", None),
                "scheme": "http",
                "root_path": "",
            }
            await app(scope, receive, send)
            over.set()

        assert folders.shut([job_id]) == {job_id}
        folders.open_again([job_id])
        tasks.start_soon(fetch)
        with anyio.fail_after(20):
            await stalled.wait()
            assert folders.shut([job_id]) == set(), "somebody reads it"
            go_on.set()
            await over.wait()
        assert bytes(received) == data
        assert folders.shut([job_id]) == {job_id}


async def test_nothing_is_removed_that_is_about_to_run_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = JobFolder(bench.home)
    free: list[set[str]] = []
    async with bench.running():
        (job_id,) = await finish(bench, 1)
        retry = bench.desk.retry

        async def looked_at(job: Job, user: str | None) -> Submitted:
            free.append(folders.shut([job_id]))
            return await retry(job, user)

        monkeypatch.setattr(bench.desk, "retry", looked_at)
        path = f"/v1/jobs/{job_id}/retry"
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": path, "query_string": b"", "headers": []}
        status: list[int] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            status.extend([message["status"]] if "status" in message else [])

        await make_app(bench.desk, folders)(scope | {"client": ("uid", 0)}, receive, send)
    assert (status, free) == ([201], [set()])
