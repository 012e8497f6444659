"""What every request passes before a route sees it, and every answer on its way out.

Rules: nothing is read of a body here. A request over TCP whose host, origin or token is not good is answered here, and
so is one without a token where one is needed; what a role may do is decided by the application, for it knows the route.
This module knows no route but where those begin that tell something.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import formatdate
from functools import lru_cache
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import access
from .access import Denied, Policy
from .connection import HEADERS
from .problems import problem_of, respond

_DRESS: Final = [
    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
    (b"cache-control", b"no-store"),
]


@lru_cache(maxsize=1)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode()


def dressed(app: ASGIApp) -> ASGIApp:
    """The same application, but that its answers tell browsers to be careful; what a route says itself stands."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_dressed(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                dress = [*_DRESS, (b"date", _date(int(time.time())))]
                message["headers"] = [*message["headers"], *(each for each in dress if each[0] not in own)]
            await send(message)

        await app(scope, receive, send_dressed)

    return answer


def _is_closed(path: str) -> bool:
    """Whether a path may be one of those that tell something; which of them there are, nobody is told either."""
    return path == "/metrics" or path == "/v1" or path.startswith("/v1/")


def over_tcp(app: ASGIApp, policy: Callable[[], Policy]) -> ASGIApp:
    """The same application, for whoever can connect: they are who their token says, and no page of others sent them."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        in_force = policy()
        headers = access.by_name(scope["headers"])
        try:
            access.check_source(in_force, headers)
            scope["state"]["who"] = access.bearer(in_force, headers.get("authorization", ()), time.time())
            scope["state"]["keys"] = in_force.keys
            if scope["state"]["who"] is access.NOBODY and _is_closed(scope["path"]):
                raise access.needs_token()
            access.check_body(scope["method"], headers)
        except Denied as denied:
            await respond(problem_of(denied))(scope, receive, send)
            return
        await app(scope, receive, send)

    return answer
