"""Refusals: every one is a problem document (RFC 9457) with a stable code and a sentence that says what to do.

Rules: nothing that goes wrong in an answer looks like a daemon that is gone. This module must not know routes.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias

import msgspec
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from solvisor.errors import NoRoom, Refused, SolvisorError, StoreUnavailable
from solvisor.orders import Stopping, Unsure
from solvisor.questions import AmbiguousJob, Conflict, NoSuchJob, NoSuchServer
from solvisor.views import Problem

from .access import Denied

_STATUS_OF_REFUSAL: Final = {"usage": 400, "slow": 408, "too_large": 413, "key": 409, "batch_closed": 409}
_TITLES: Final = {
    401: "not authenticated",
    403: "not permitted",
    408: "too slow",
    409: "conflict",
    413: "too large",
    415: "unsupported media type",
}
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})

log = structlog.get_logger()

Answerer: TypeAlias = Callable[[Request], Awaitable[Response]]


class Crowded(SolvisorError):
    """There are too many streams already."""

    code = "unavailable"
    retryable = True
    exit_status = 75


class NoRange(SolvisorError):
    """What is asked for of a file of ``size`` bytes lies behind its end."""

    code = "range"

    def __init__(self, size: int) -> None:
        self.size = size
        super().__init__(f"the file has {size:,} bytes, and what is asked for lies behind them")


class Unready(SolvisorError):
    """The daemon lives and takes no work."""

    code = "not_ready"
    retryable = True
    exit_status = 75


class NoSuchFile(SolvisorError):
    """The job has no such file or log."""

    code = "no_such_file"


async def answer(answerers: Mapping[str, Answerer], request: Request) -> Response:
    """The answer to the method, or the problem document of what was raised instead."""
    return await answered(answerers["GET" if request.method == "HEAD" else request.method], request)


async def answered(answerer: Answerer, request: Request) -> Response:
    """What ``answerer`` gives, or the problem document of what it raised instead."""
    try:
        return await answerer(request)
    except ClientDisconnect:
        return Response(status_code=499)
    except NoRange as error:
        refusal = respond(Problem(title="no such range", status=416, detail=str(error), code=error.code))
        refusal.headers["Content-Range"] = f"bytes */{error.size}"
        return refusal
    except SolvisorError as error:
        return respond(problem_of(error))
    except OSError as error:
        log.error("request.failed", path=request.url.path, error=str(error))
        status = 507 if error.errno in _FULL else 503
        text = f"{error.strerror or error}; nothing was taken in, try again later"
        return respond(Problem(title="unavailable", status=status, detail=text, code="unavailable"))
    except Exception as error:  # a defect that one request meets must not look like a daemon that is gone
        log.exception("request.defect", path=request.url.path)
        text = f"a defect of Solvisor ({type(error).__name__}); its log says more, please report it"
        return respond(Problem(title="defect", status=500, detail=text, code="defect"))


def problem_of(error: SolvisorError) -> Problem:
    """The document for an error."""
    text = str(error)
    match error:
        case NoSuchJob() | NoSuchFile() | NoSuchServer():
            return Problem(title="not found", status=404, detail=text, code=error.code)
        case AmbiguousJob():
            return Problem(title="ambiguous", status=409, detail=text, code=error.code, candidates=error.candidates)
        case Conflict():
            return Problem(title="conflict", status=409, detail=text, code=error.reason)
        case Denied():
            return Problem(title=_TITLES[error.status], status=error.status, detail=text, code=error.reason)
        case Refused():
            status = _STATUS_OF_REFUSAL.get(error.refusal, 422)
            return Problem(title=_TITLES.get(status, "refused"), status=status, detail=text, code=error.refusal)
        case NoRoom():
            return Problem(title="unavailable", status=507, detail=text, code="unavailable")
        case Unready():
            return Problem(title="not ready", status=503, detail=text, code=error.code)
        case Stopping() | Unsure() | StoreUnavailable() | Crowded():
            return Problem(title="unavailable", status=503, detail=text, code="unavailable")
        case _:
            return Problem(title="failed", status=500, detail=text, code=error.code)


class Refusal(Response):
    """An answer that is a problem document. ``code`` is that of the problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(msgspec.json.encode(problem), problem.status, media_type="application/problem+json")
        self.code = problem.code
        if problem.status == 401:
            self.headers["WWW-Authenticate"] = 'Bearer realm="solvisor"'


def respond(problem: Problem) -> Refusal:
    """The document as an answer."""
    return Refusal(problem)


async def not_found(request: Request, _: Exception) -> Response:
    """What is not in the table of routes."""
    text = f"there is no route {request.url.path}"
    return respond(Problem(title="not found", status=404, detail=text, code="no_such_route"))


async def not_allowed(request: Request, error: Exception) -> Response:
    """A method that a route does not have."""
    text = f"{request.method} is not for {request.url.path}"
    refusal = respond(Problem(title="method not allowed", status=405, detail=text, code="method"))
    refusal.headers.update(getattr(error, "headers", None) or {})
    return refusal
