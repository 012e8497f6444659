"""Readers of events that do not read: what they hold, how long, and that nobody else notices."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from anyio.abc import SocketAttribute, SocketStream
from starlette.applications import Starlette

from scripted import Bench, finish
from socket_kit import Http
from solvisor.feed import Feed
from solvisor.model import Job, State
from solvisor.spool.reading import JobFolder
from solvisor_service.api import connection, listening
from solvisor_service.api.app import make_app
from waiting import eventually

EVENTS = b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n"


@asynccontextmanager
async def served(bench: Bench) -> AsyncIterator[tuple[Starlette, Path]]:
    """The application on the socket of the home."""
    app = make_app(bench.desk, JobFolder(bench.home))
    path = bench.home.run / "solvisor.sock"
    with listening.listening(path) as sock:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listening.serve, app, sock)
            yield app, path
            tasks.cancel_scope.cancel()


def _is_hung_up(stream: SocketStream) -> bool:
    raw: socket.socket = stream.extra_attributes[SocketAttribute.raw_socket]()
    poll = select.poll()
    poll.register(raw, select.POLLRDHUP)
    return bool(poll.poll(0))


async def _rest(stream: SocketStream) -> bytes:
    data = b""
    with anyio.fail_after(20), contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            data += await stream.receive()
    return data


async def _pass_by(bench: Bench, job: Job, count: int) -> None:
    """So many changes happen."""
    feed: Feed = bench.engine.feed
    for number in range(count):
        feed.add_job(job, State.RUNNING, "2026")
        if number % 500 == 0:
            bench.engine.bell.ring()
            await anyio.lowlevel.checkpoint()


async def test_fault_53_a_reader_that_takes_no_event_is_bounded_and_hung_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "STALLED_SECONDS", 1.5)
    async with bench.running(), served(bench) as (app, path):
        job = await bench.desk.find((await finish(bench, 1))[0], None)
        async with await anyio.connect_unix(path) as deaf, await anyio.connect_unix(path) as good:
            await deaf.send(EVENTS)
            await good.send(EVENTS)
            assert b"event: hello" in await good.receive()
            count = 0
            longest = 0.0
            with anyio.fail_after(20):
                while not _is_hung_up(deaf):
                    await _pass_by(bench, job, 1000)
                    count += 1000
                    with anyio.move_on_after(0.05):
                        while True:  # who reads is told all the while
                            await good.receive()
                    began = time.monotonic()
                    answer = await anyio.to_thread.run_sync(Http(bench.home.root).get, "/v1/status")
                    longest = max(longest, time.monotonic() - began)
                    assert answer.status == 200
            got = len(await _rest(deaf))
            assert got < 1_000_000
            assert bench.engine.feed.last * 250 > 2 * got, "more passed by than it could be sent"
            assert longest < 5
            await eventually(lambda: app.state.streams.count == 1, "the one that reads is left")
            assert not _is_hung_up(good)
        await eventually(lambda: app.state.streams.count == 0, "nobody is left")


async def test_fault_53_a_reader_that_was_slow_is_reset_and_goes_on(bench: Bench) -> None:
    async with bench.running(), served(bench) as (_, path):
        job = await bench.desk.find((await finish(bench, 1))[0], None)
        async with await anyio.connect_unix(path) as slow:
            await slow.send(EVENTS)
            await _pass_by(bench, job, 40_000)
            last = bench.engine.feed.cursor(bench.engine.feed.last)
            data = b""
            with anyio.fail_after(20):
                while f"id: {last}\nevent: reset".encode() not in data:
                    data += await slow.receive()
                await finish(bench, 1)
                while b'"state":"succeeded"' not in data:
                    data += await slow.receive()
    assert len(data) < 5_000_000


async def test_streams_are_counted_and_more_are_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "CONNECTIONS_OF_USER", 20)
    async with bench.running(), served(bench) as (app, path), contextlib.AsyncExitStack() as stack:
        http = Http(bench.home.root)
        streams = [await stack.enter_async_context(await anyio.connect_unix(path)) for _ in range(10)]
        for stream in streams:
            await stream.send(EVENTS)
            assert b"HTTP/1.1 200" in await stream.receive()
        refused = await anyio.to_thread.run_sync(http.get, "/v1/events")
        assert (refused.status, refused.code) == (503, "unavailable")
        assert "10 streams of this user" in refused.json["detail"]
        assert (await anyio.to_thread.run_sync(http.get, "/v1/status")).status == 200
        (job_id,) = await finish(bench, 1)
        refused = await anyio.to_thread.run_sync(http.get, f"/v1/jobs/{job_id}/logs/stdout?follow=true")
        assert refused.status == 503
        await streams[3].aclose()
        await eventually(lambda: app.state.streams.count == 9, "one hung up")
        followed = await anyio.to_thread.run_sync(http.get, f"/v1/jobs/{job_id}/logs/stdout?follow=true")
        assert (followed.status, followed.body) == (200, b"")
        await eventually(lambda: app.state.streams.count == 9, "it counts until its last byte is sent")


async def test_whoever_asks_for_the_head_of_a_stream_gets_that_alone(bench: Bench) -> None:
    async with bench.running(), served(bench) as (app, _):
        (job_id,) = await finish(bench, 1)
        for target in ("/v1/events", f"/v1/jobs/{job_id}/logs/stdout?follow=true"):
            answer = await anyio.to_thread.run_sync(Http(bench.home.root).ask, "HEAD", target)
            assert (answer.status, answer.body) == (200, b"")
        assert app.state.streams.count == 0


async def test_the_end_waits_for_no_stream(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for one of events nor for a log that is followed: they end with the engine, and well."""
    monkeypatch.setattr(listening, "SHUTDOWN_SECONDS", 30)
    async with bench.running() as engine:
        async with served(bench) as (app, path), contextlib.AsyncExitStack() as stack:
            job_id = (await bench.send()).id
            targets = "/v1/events", f"/v1/jobs/{job_id}/logs/stdout?follow=true"
            streams = [await stack.enter_async_context(await anyio.connect_unix(path)) for _ in targets]
            for stream, target in zip(streams, targets, strict=True):
                await stream.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                assert b"200 OK" in await stream.receive()
            await eventually(lambda: app.state.streams.count == 2, "both are open")
            engine.stop_now()
            with anyio.fail_after(20):
                await bench.stopped.wait()
                for stream in streams:
                    while not (await stream.receive()).endswith(b"0\r\n\r\n"):
                        pass
            assert app.state.streams.count == 0
            began = time.monotonic()
        assert time.monotonic() - began < listening.SHUTDOWN_SECONDS / 2
