"""Warm servers: what they do, how many there shall be, their replacement."""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor.questions import Questions
from solvisor.views import Pools, PoolView
from solvisor_service.api.asking import body_of, json_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.ways import Role, Way


class ScaleBody(Struct, forbid_unknown_fields=True):
    """``count``: so many, 0 to 1,000; ``null``: as configured."""

    count: int | None


async def _servers(_: Request, questions: Questions) -> Response:
    return json_of(questions.servers())


async def _scale(request: Request, desk: Desk) -> Response:
    body = await body_of(request, ScaleBody)
    return json_of(await desk.scale(request.path_params["server"], body.count, await user_of(request.scope)))


async def _recycle(request: Request, desk: Desk) -> Response:
    return json_of(await desk.recycle(request.path_params["server"], await user_of(request.scope)))


async def _restart(request: Request, desk: Desk) -> Response:
    return json_of(await desk.restart(request.path_params["server"], await user_of(request.scope)))


QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    Way("GET", "/v1/servers", _servers, "warm servers, by their solvers", Pools),
)

_ONE = "/v1/servers/{server}"

ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("POST", f"{_ONE}/scale", _scale, "exactly so many", PoolView, Role.ADMINISTER, body=ScaleBody),
    Way("POST", f"{_ONE}/recycle", _recycle, "replace them, each once it has no job", PoolView, Role.OPERATE),
    Way("POST", f"{_ONE}/restart", _restart, "the same, and forget what went wrong", PoolView, Role.OPERATE),
)
