"""Answers that go on for long: how many there may be, for how long, and what they leave behind.

Rules: a stream counts until its last byte is sent, however it ends, and what it read from is closed by then: whoever
read that byte may begin another. Streams take at most half of the connections of the door they came by, so whoever
follows leaves room for questions. One ends, and well, once who follows would not be let in any more. This module must
not know routes.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping
from typing import Final

import anyio
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from . import access, connection
from .access import Policy, Via, who_of
from .problems import Crowded

STREAMS_SHARE: Final = 2
"""There is at most one stream for so many connections, in all and of one user."""


class Streams:
    """The streams there are now, by door and user."""

    def __init__(self) -> None:
        self._of: Counter[tuple[Via, str | None]] = Counter()
        self._open: set[Stream] = set()

    @property
    def count(self) -> int:
        """How many there are."""
        return self._of.total()

    def join(self, via: Via, user: str | None) -> None:
        """Count one more. Raises ``Crowded``."""
        most, of_user = _most(via)
        if sum(count for (door, _), count in self._of.items() if door == via) >= most:
            raise Crowded(f"{most} streams are open already; try again when one has ended")
        if self._of[via, user] >= of_user:
            raise Crowded(f"{of_user} streams of this user are open already; end one of them")
        self._of[via, user] += 1

    def leave(self, via: Via, user: str | None) -> None:
        """One is over."""
        self._of[via, user] -= 1
        if not self._of[via, user]:
            del self._of[via, user]

    def opened(self, stream: Stream) -> None:
        """It is being sent."""
        self._open.add(stream)

    def closed(self, stream: Stream) -> None:
        """It is sent, or its reader is gone."""
        self._open.discard(stream)

    def review(self) -> None:
        """The policy may be another: end the streams of those whom it does not let in."""
        for stream in self._open:
            stream.review()


def _most(via: Via) -> tuple[int, int]:
    """How many streams there may be at a door, and how many of one user; over TCP users share one number anyway."""
    if via == "tcp":
        most = max(1, connection.most_over_tcp() // STREAMS_SHARE)
        return most, most
    most = max(1, connection.most_connections() // STREAMS_SHARE)
    return most, max(1, min(most, connection.CONNECTIONS_OF_USER // STREAMS_SHARE))


class Stream(StreamingResponse):
    """An answer made of ``content``, which is closed at its end. Whoever asks for its head alone gets that.

    Raises ``Crowded``.
    """

    def __init__(
        self,
        request: Request,
        content: AsyncGenerator[bytes, None],
        user: str | None,
        media_type: str,
        headers: Mapping[str, str],
    ) -> None:
        self._pieces = self._while_let_in(content)
        super().__init__(self._pieces, media_type=media_type, headers=dict(headers))
        self._content = content
        self._user = user
        self._who = who_of(request.scope)
        self._via: Via = "socket" if self._who is None else self._who.via
        self._app = request.app
        self._waiting: anyio.CancelScope | None = None
        self._streams: Streams = request.app.state.streams
        self._streams.join(self._via, user)
        self._is_over = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        self._streams.opened(self)

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                await self._end()
            await send(message)

        try:
            if scope["method"] == "HEAD":
                await Response(headers=self.headers)(scope, receive, send_on)
            else:
                await super().__call__(scope, receive, send_on)
        finally:
            await self._end()

    async def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._streams.closed(self)
            self._streams.leave(self._via, self._user)
            with anyio.CancelScope(shield=True):
                await self._pieces.aclose()
                await self._content.aclose()

    def review(self) -> None:
        """End it if who follows is not let in any more."""
        if self._waiting is not None and self._rest() <= 0:
            self._waiting.cancel()

    async def _while_let_in(self, content: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
        while (rest := self._rest()) > 0:
            piece: bytes | None = None
            with anyio.move_on_after(rest) as self._waiting:
                piece = await anext(content, None)
            self._waiting = None
            if piece is None:
                return
            yield piece

    def _rest(self) -> float:
        """How many seconds it may go on."""
        if self._who is None:
            return math.inf
        policy: Policy = self._app.state.policy()
        return access.rest(policy, self._who, time.time())
