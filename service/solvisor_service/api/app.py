"""The application: every route of the tables in ``routes``, and nothing else.

Rules: everything outside the tables and the files of the page is 404; every refusal is a problem document. This is the
only place where a role is asked for. Nothing is decided here about jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeVar

import anyio
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from solvisor.desk import Desk
from solvisor.questions import Questions
from solvisor.spool.reading import JobFolder

from . import access
from .access import NOBODY, Policy, who_of
from .assets import Asset, asset_answer, assets
from .listening import uid_of, user_of
from .problems import Answerer, Refusal, answer, answered, not_allowed, not_found
from .routes import ORDERS, QUESTIONS
from .streams import Streams
from .ways import Way

T = TypeVar("T")

log = structlog.get_logger()

FILE_THREADS: Final = 8
"""Threads that read and write files for clients."""


def make_app(desk: Desk, folders: JobFolder, policy: Callable[[], Policy] = Policy) -> Starlette:
    """The application that answers for ``desk``; ``folders`` reads what jobs left, ``policy`` is who may do what."""
    routes = [
        *((way.method, way.path, _permitting(way, desk, policy)) for way in QUESTIONS),
        *((way.method, way.path, _permitting(way, desk, policy)) for way in ORDERS),
        *(("GET", path, _showing(asset)) for path, asset in assets().items()),
    ]
    app = _application(routes, folders)
    app.state.policy = policy
    return app


def make_reader(questions: Questions, folders: JobFolder) -> Starlette:
    """The application that answers questions about jobs and takes no orders; who calls it may read the home anyway."""
    return _application([(way.method, way.path, _asking(way, questions)) for way in QUESTIONS], folders)


def _asking(way: Way[T], asked: T) -> Answerer:
    async def respond(request: Request) -> Response:
        return await way.handler(request, asked)

    return respond


def _permitting(way: Way[T], asked: T, policy: Callable[[], Policy]) -> Answerer:
    """What answers those who may take this way, and no others; every order leaves a line in the log."""

    async def respond(request: Request) -> Response:
        state = request.scope.setdefault("state", {})
        who = who_of(request.scope)
        if who is None:
            uid = uid_of(request.scope)
            who = NOBODY if uid is None else access.peer(policy(), uid, state.get("groups", frozenset()))
            state["who"] = who
        if who.role < way.role:
            access.permit(policy(), who, await user_of(request.scope), way.role)
        return await way.handler(request, asked)

    async def respond_and_log(request: Request) -> Response:
        response = await answered(respond, request)
        who = who_of(request.scope)
        if who is not None and who is not NOBODY:
            log.info(
                "api.order",
                method=way.method,
                path=request.scope["path"],
                uid=who.uid,
                user=await user_of(request.scope),
                role=who.role.name.lower(),
                via=who.via,
                status=response.status_code,
                code=response.code if isinstance(response, Refusal) else None,
            )
        return response

    return respond if way.method == "GET" else respond_and_log


def _showing(asset: Asset) -> Answerer:
    async def respond(request: Request) -> Response:
        return asset_answer(asset, request)

    return respond


def _application(routes: Iterable[tuple[str, str, Answerer]], folders: JobFolder) -> Starlette:
    by_path: dict[str, dict[str, Answerer]] = {}
    for method, path, answerer in routes:
        by_path.setdefault(path, {})[method] = answerer
    app = Starlette(
        routes=[Route(path, partial(answer, answerers), methods=[*answerers]) for path, answerers in by_path.items()],
        exception_handlers={404: not_found, 405: not_allowed},
    )
    app.router.redirect_slashes = False
    app.state.folders = folders
    app.state.streams = Streams()
    app.state.files = anyio.CapacityLimiter(FILE_THREADS)
    return app
