"""The daemon itself: how it is, and what it is not to start."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor.views import Status
from solvisor_service.api.asking import body_of, json_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.ways import Role, Way


class PauseBody(Struct, forbid_unknown_fields=True):
    """``solver``: of this one only; ``note`` is shown to whoever asks."""

    solver: str | None = None
    note: Annotated[str, Meta(max_length=500)] | None = None


class ResumeBody(Struct, forbid_unknown_fields=True):
    """``solver``: the pause of this one, else that of everything."""

    solver: str | None = None


async def _status(_: Request, desk: Desk) -> Response:
    return json_of(desk.status())


async def _pause(request: Request, desk: Desk) -> Response:
    body = await body_of(request, PauseBody)
    return json_of(await desk.pause(body.solver, body.note, await user_of(request.scope)))


async def _resume(request: Request, desk: Desk) -> Response:
    body = await body_of(request, ResumeBody)
    return json_of(await desk.resume(body.solver, await user_of(request.scope)))


ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("GET", "/v1/status", _status, "the daemon at this moment, from memory", Status),
    Way("POST", "/v1/pause", _pause, "start nothing more of a solver, or of any", Status, Role.OPERATE, body=PauseBody),
    Way("POST", "/v1/resume", _resume, "take a pause back", Status, Role.OPERATE, body=ResumeBody),
)
