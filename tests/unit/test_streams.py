"""How long an answer that goes on for long is counted."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.types import Message

from solvisor_service.api.streams import Stream, Streams


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_whoever_read_the_last_byte_may_begin_another(method: str) -> None:
    app = Starlette()
    app.state.streams = streams = Streams()
    scope = {"type": "http", "method": method, "app": app, "headers": []}
    closed = False

    async def content() -> AsyncGenerator[bytes, None]:
        nonlocal closed
        try:
            yield b"all"
        finally:
            closed = True

    async def receive() -> Message:
        raise AssertionError("nothing is read")

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body" and not message.get("more_body"):
            seen.append((streams.count, closed))

    seen: list[tuple[int, bool]] = []
    answer = Stream(Request(scope), content(), "member", "text/plain", {})
    assert streams.count == 1
    await answer({**scope, "asgi": {"spec_version": "2.4"}}, receive, send)
    assert seen == [(0, method == "GET")], "a generator that never began has nothing to close"
