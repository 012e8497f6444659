"""Limits: what jobs may take together, and what people set in place of the configuration."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor.questions import Questions
from solvisor.views import Limits
from solvisor_service.api.asking import body_of, json_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.ways import Role, Way


class LimitBody(Struct, forbid_unknown_fields=True):
    """``name`` as ``GET /v1/limits`` has it; ``value``: jobs, cores, bytes or licenses, ``null``: as configured.

    ``note`` is shown to whoever asks.
    """

    name: Annotated[str, Meta(max_length=100)]
    value: Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None
    note: Annotated[str, Meta(max_length=500)] | None = None


async def _limits(_: Request, questions: Questions) -> Response:
    return json_of(questions.limits())


async def _limit(request: Request, desk: Desk) -> Response:
    body = await body_of(request, LimitBody)
    return json_of(await desk.limit(body.name, body.value, body.note, await user_of(request.scope)))


QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    Way("GET", "/v1/limits", _limits, "all limits: in force, configured, in use", Limits),
)

ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("POST", "/v1/limits", _limit, "set one until it is taken back", Limits, Role.ADMINISTER, body=LimitBody),
)
