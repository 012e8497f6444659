"""Batches: jobs that are submitted together."""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor.questions import Questions
from solvisor.views import BatchRule, BatchView
from solvisor_service.api.asking import WaitQuery, body_of, json_of, query_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.ways import Role, Way


class CancelBody(Struct, forbid_unknown_fields=True):
    """``running``: also what runs."""

    running: bool = False


async def _open_batch(request: Request, desk: Desk) -> Response:
    return json_of(await desk.open_batch(await body_of(request, BatchRule), await user_of(request.scope)), 201)


async def _batch(request: Request, questions: Questions) -> Response:
    seconds = query_of(request, WaitQuery).seconds
    return json_of(await questions.batch(request.path_params["batch"], seconds))


async def _close_batch(request: Request, desk: Desk) -> Response:
    return json_of(await desk.close_batch(request.path_params["batch"]))


async def _cancel_batch(request: Request, desk: Desk) -> Response:
    body = await body_of(request, CancelBody)
    user = await user_of(request.scope)
    return json_of(await desk.cancel_batch(request.path_params["batch"], user, running=body.running))


_ONE = "/v1/batches/{batch}"

QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    Way("GET", _ONE, _batch, "how far it is; with wait once another job is finished", BatchView, query=WaitQuery),
)

ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("POST", "/v1/batches", _open_batch, "a new batch", BatchView, Role.OPERATE, body=BatchRule, status=201),
    Way("POST", f"{_ONE}/close", _close_batch, "no more jobs come", BatchView, Role.OPERATE),
    Way("POST", f"{_ONE}/cancel", _cancel_batch, "cancel what is queued", BatchView, Role.OPERATE, body=CancelBody),
)
