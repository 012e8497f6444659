"""The API's description of itself."""

from __future__ import annotations

from functools import cache
from typing import Any, Final

import anyio.to_thread
import msgspec
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor_service.api.openapi import describe
from solvisor_service.api.ways import Way


@cache
def document() -> bytes:
    """The OpenAPI document of all routes, this one too. Blocks for some hundredths of a second, once."""
    from solvisor_service.api import routes  # which names this module

    return msgspec.json.encode(describe([*routes.QUESTIONS, *routes.ORDERS]))


async def _openapi(_: Request, __: Desk) -> Response:
    return Response(await anyio.to_thread.run_sync(document), media_type="application/json")


ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("GET", "/v1/openapi.json", _openapi, "this description (OpenAPI 3.1)", dict[str, Any]),
)
