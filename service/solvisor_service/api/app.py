"""The routes: HTTP in, ``desk`` out. One function per route, and one table of questions and one of the rest.

Rules: everything outside the table is 404; every refusal is a problem document (RFC 9457) with a stable code. Bodies
are bounded. Nothing is decided here about jobs.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final, TypeVar

import anyio
import anyio.to_thread
import msgspec
import structlog
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from solvisor import model
from solvisor.desk import Desk
from solvisor.errors import Refused, SolvisorError, StoreUnavailable
from solvisor.history import Filters
from solvisor.model import Job, State
from solvisor.names import FOLDER_JOB_FILE, is_job_file
from solvisor.orders import Stopping, Unsure
from solvisor.questions import AmbiguousJob, Conflict, NoSuchJob, NoSuchServer, Questions
from solvisor.spool import Upload
from solvisor.spool.reading import JobFolder
from solvisor.views import BatchRule, Problem

from .listening import user_of
from .multipart import receive

T = TypeVar("T")

BODY_MAX: Final = 64 << 10
LOG_MAX: Final = 1 << 20
CHUNK: Final = 1 << 18
FILE_THREADS: Final = 8
"""Threads that read and write files for clients."""

WAIT_MAX_SECONDS: Final = 60.0
PAGE: Final = 100

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

log = structlog.get_logger()

Question = Callable[[Request, Questions], Awaitable[Response]]
Handler = Callable[[Request, Desk], Awaitable[Response]]
Answerer = Callable[[Request], Awaitable[Response]]

Key = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]{1,200}\Z")]


class _PauseBody(msgspec.Struct, forbid_unknown_fields=True):
    solver: str | None = None
    note: Annotated[str, msgspec.Meta(max_length=500)] | None = None


class _ResumeBody(msgspec.Struct, forbid_unknown_fields=True):
    solver: str | None = None


class _ScaleBody(msgspec.Struct, forbid_unknown_fields=True):
    count: int | None


class _CancelBody(msgspec.Struct, forbid_unknown_fields=True):
    running: bool = False


def make_app(desk: Desk, folders: JobFolder) -> Starlette:
    """The application that answers for ``desk``; ``folders`` reads what jobs left."""
    questions = [("GET", path, _asking(handler, desk)) for path, handler in QUESTIONS]
    rest = [(method, path, _asking(handler, desk)) for method, path, handler in ROUTES]
    return _application([*questions, *rest], folders)


def make_reader(questions: Questions, folders: JobFolder) -> Starlette:
    """The application that answers questions about jobs and takes no orders."""
    return _application([("GET", path, _asking(handler, questions)) for path, handler in QUESTIONS], folders)


def _asking(handler: Callable[[Request, T], Awaitable[Response]], asked: T) -> Answerer:
    async def answer(request: Request) -> Response:
        return await handler(request, asked)

    return answer


def _application(routes: Sequence[tuple[str, str, Answerer]], folders: JobFolder) -> Starlette:
    by_path: dict[str, dict[str, Answerer]] = {}
    for method, path, answerer in routes:
        by_path.setdefault(path, {})[method] = answerer
    app = Starlette(
        routes=[Route(path, partial(_answer, answerers), methods=[*answerers]) for path, answerers in by_path.items()],
        exception_handlers={404: _not_found, 405: _not_allowed},
    )
    app.router.redirect_slashes = False
    app.state.folders = folders
    app.state.files = anyio.CapacityLimiter(FILE_THREADS)
    return app


# --- questions ------------------------------------------------------------------------------------------------------


async def _status(_: Request, desk: Desk) -> Response:
    return _json(desk.status())


async def _jobs(request: Request, questions: Questions) -> Response:
    query = _only(request, "state", "solver", "user", "project", "batch", "since", "limit", "cursor")
    filters = Filters(
        states=tuple(_state(text) for text in query.getlist("state")),
        solver=query.get("solver"),
        user=query.get("user"),
        project=query.get("project"),
        batch=query.get("batch"),
        since_us=_number(query.get("since"), "since"),
    )
    limit = _number(query.get("limit"), "limit")
    return _json(await questions.page(filters, query.get("cursor"), PAGE if limit is None else limit))


async def _job(request: Request, questions: Questions) -> Response:
    job = await _found(request, questions)
    seconds = _seconds(request)
    if seconds:
        await questions.wait_finished(job.id, seconds)
        job = await questions.find(job.id, None)
    return _json(await questions.view(job))


async def _explain(request: Request, questions: Questions) -> Response:
    return _json(await questions.explain(await _found(request, questions)))


async def _manifest(request: Request, questions: Questions) -> Response:
    job = await _found(request, questions)
    questions.must_be_published(job)
    return await _file_answer(request, job, "manifest.json", "application/json")


async def _file(request: Request, questions: Questions) -> Response:
    job = await _found(request, questions)
    questions.must_be_published(job)
    return await _file_answer(request, job, request.path_params["path"], "application/octet-stream")


async def _servers(_: Request, questions: Questions) -> Response:
    return _json(questions.servers())


async def _file_answer(request: Request, job: Job, path: str, kind: str) -> Response:
    folders: JobFolder = request.app.state.folders
    in_thread = partial(anyio.to_thread.run_sync, limiter=request.app.state.files)
    file = await in_thread(folders.open, job.id, path)
    if file is None:
        raise NoSuchFile(f"{job.id} has no file {path!r}; its manifest lists what it has")

    size = folders.size(file)

    async def content() -> AsyncIterator[bytes]:
        left = size
        with file:
            while chunk := await in_thread(file.read, min(CHUNK, left)):
                yield chunk
                left -= len(chunk)

    return StreamingResponse(content(), media_type=kind, headers={"Content-Length": str(size)})


async def _log(request: Request, questions: Questions) -> Response:
    job = await _found(request, questions)
    which = request.path_params["which"]
    if which not in ("stdout", "stderr"):
        raise NoSuchFile(f"there is no log {which!r}; there are stdout and stderr")
    query = request.query_params
    offset, tail, attempt = (_number(query.get(name), name) for name in ("offset", "tail", "try"))
    if attempt is not None and not 1 <= attempt <= len(job.attempts):
        raise NoSuchFile(f"{job.id} has no try {attempt}; so far there were {len(job.attempts)}")
    aside = f"attempt-{attempt}/" if attempt is not None and attempt < len(job.attempts) else ""
    read = partial(request.app.state.folders.read, job.id, f"{aside}{which}.log", offset, tail, LOG_MAX)
    data, end = await anyio.to_thread.run_sync(read, limiter=request.app.state.files)
    return Response(data, media_type="text/plain; charset=utf-8", headers={"Solvisor-Offset": str(end)})


# --- orders ---------------------------------------------------------------------------------------------------------


async def _submit(request: Request, desk: Desk) -> Response:
    query = _only(request, "batch")
    key = _key(request)
    incoming = _Incoming(desk, request.app.state.files)
    try:
        job = await receive(
            request.stream(),
            request.headers.get("content-type", ""),
            incoming.begin,
            incoming.write,
            incoming.end,
        )
        if incoming.upload is None:
            raise Refused("usage", "no file came; send at least one, as curl -F file=@beam.inp does")
        wishes = _wishes(job)
        asked = model.Request("socket", await user_of(request.scope), query.get("batch"), key)
    except BaseException:
        if incoming.upload is not None:
            await desk.abandon(incoming.upload)
        raise
    submitted = await desk.submit(incoming.upload, incoming.names, wishes, asked)
    return _json(submitted, 200 if submitted.existing else 201)


class _Incoming:
    """The files of one submission on their way to the disk, each write in a thread."""

    def __init__(self, desk: Desk, threads: anyio.CapacityLimiter) -> None:
        self.upload: Upload | None = None
        self.names: list[str] = []
        self._desk = desk
        self._in_thread = partial(anyio.to_thread.run_sync, limiter=threads)

    async def begin(self, name: str) -> None:
        if is_job_file(name) and "/" not in name and FOLDER_JOB_FILE not in self.names:
            name = FOLDER_JOB_FILE
        self.names.append(name)
        if self.upload is None:
            self.upload = await self._desk.open_upload(name)
        await self._in_thread(self.upload.begin, name)

    async def write(self, data: bytes) -> None:
        assert self.upload is not None  # noqa: S101  begin made it
        await self._in_thread(self.upload.write, data)

    async def end(self) -> None:
        assert self.upload is not None  # noqa: S101  begin made it
        await self._in_thread(self.upload.end)


def _wishes(job: bytes | None) -> dict[str, Any] | bytes | None:
    """The part ``job``: a JSON object, or else the text of a job file."""
    if job is None or not job.lstrip().startswith(b"{"):
        return job
    try:
        wishes = json.loads(job, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refused("usage", f"the job is not good JSON: {error}") from None
    return dict(wishes)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


async def _cancel(request: Request, desk: Desk) -> Response:
    return _json(await desk.cancel(await _found(request, desk), await user_of(request.scope)))


async def _retry(request: Request, desk: Desk) -> Response:
    return _json(await desk.retry(await _found(request, desk), await user_of(request.scope)), 201)


async def _pause(request: Request, desk: Desk) -> Response:
    body = await _body(request, _PauseBody)
    return _json(await desk.pause(body.solver, body.note, await user_of(request.scope)))


async def _resume(request: Request, desk: Desk) -> Response:
    body = await _body(request, _ResumeBody)
    return _json(await desk.resume(body.solver, await user_of(request.scope)))


async def _scale(request: Request, desk: Desk) -> Response:
    body = await _body(request, _ScaleBody)
    return _json(await desk.scale(request.path_params["server"], body.count, await user_of(request.scope)))


async def _recycle(request: Request, desk: Desk) -> Response:
    return _json(await desk.recycle(request.path_params["server"], await user_of(request.scope)))


async def _restart(request: Request, desk: Desk) -> Response:
    return _json(await desk.restart(request.path_params["server"], await user_of(request.scope)))


async def _open_batch(request: Request, desk: Desk) -> Response:
    return _json(await desk.open_batch(await _body(request, BatchRule), await user_of(request.scope)), 201)


async def _batch(request: Request, questions: Questions) -> Response:
    return _json(await questions.batch(request.path_params["batch"], _seconds(request)))


async def _close_batch(request: Request, desk: Desk) -> Response:
    return _json(await desk.close_batch(request.path_params["batch"]))


async def _cancel_batch(request: Request, desk: Desk) -> Response:
    body = await _body(request, _CancelBody)
    user = await user_of(request.scope)
    return _json(await desk.cancel_batch(request.path_params["batch"], user, running=body.running))


QUESTIONS: Final[tuple[tuple[str, Question], ...]] = (
    ("/v1/jobs", _jobs),
    ("/v1/jobs/{job}", _job),
    ("/v1/jobs/{job}/explain", _explain),
    ("/v1/jobs/{job}/manifest", _manifest),
    ("/v1/jobs/{job}/logs/{which}", _log),
    ("/v1/jobs/{job}/files/{path:path}", _file),
    ("/v1/batches/{batch}", _batch),
    ("/v1/servers", _servers),
)
"""What can be asked of a home, also where no daemon runs: all are GET."""

ROUTES: Final[tuple[tuple[str, str, Handler], ...]] = (
    ("GET", "/v1/status", _status),
    ("POST", "/v1/jobs", _submit),
    ("POST", "/v1/jobs/{job}/cancel", _cancel),
    ("POST", "/v1/jobs/{job}/retry", _retry),
    ("POST", "/v1/pause", _pause),
    ("POST", "/v1/resume", _resume),
    ("POST", "/v1/servers/{server}/scale", _scale),
    ("POST", "/v1/servers/{server}/recycle", _recycle),
    ("POST", "/v1/servers/{server}/restart", _restart),
    ("POST", "/v1/batches", _open_batch),
    ("POST", "/v1/batches/{batch}/close", _close_batch),
    ("POST", "/v1/batches/{batch}/cancel", _cancel_batch),
)


# --- helpers --------------------------------------------------------------------------------------------------------


class NoSuchFile(SolvisorError):
    """The job has no such file or log."""

    code = "no_such_file"


async def _answer(answerers: Mapping[str, Answerer], request: Request) -> Response:
    """The answer to the method, or the problem document of what was raised instead."""
    try:
        return await answerers["GET" if request.method == "HEAD" else request.method](request)
    except ClientDisconnect:
        return Response(status_code=499)
    except SolvisorError as error:
        return _problem(_problem_of(error))
    except OSError as error:
        log.error("request.failed", path=request.url.path, error=str(error))
        status = 507 if error.errno in _FULL else 503
        text = f"{error.strerror or error}; nothing was taken in, try again later"
        return _problem(Problem(title="unavailable", status=status, detail=text, code="unavailable"))
    except Exception as error:  # a defect that one request meets must not look like a daemon that is gone
        log.exception("request.defect", path=request.url.path)
        text = f"a defect of Solvisor ({type(error).__name__}); its log says more, please report it"
        return _problem(Problem(title="defect", status=500, detail=text, code="defect"))


def _problem_of(error: SolvisorError) -> Problem:
    text = str(error)
    match error:
        case NoSuchJob() | NoSuchFile() | NoSuchServer():
            return Problem(title="not found", status=404, detail=text, code=error.code)
        case AmbiguousJob():
            return Problem(title="ambiguous", status=409, detail=text, code=error.code, candidates=error.candidates)
        case Conflict():
            return Problem(title="conflict", status=409, detail=text, code=error.reason)
        case Refused():
            status = {"usage": 400, "too_large": 413, "key": 409, "batch_closed": 409}.get(error.refusal, 422)
            return Problem(title="refused", status=status, detail=text, code=error.refusal)
        case Stopping() | Unsure() | StoreUnavailable():
            return Problem(title="unavailable", status=503, detail=text, code="unavailable")
        case _:
            return Problem(title="failed", status=500, detail=text, code=error.code)


def _problem(problem: Problem) -> Response:
    return Response(msgspec.json.encode(problem), problem.status, media_type="application/problem+json")


async def _not_found(request: Request, _: Exception) -> Response:
    text = f"there is no route {request.url.path}"
    return _problem(Problem(title="not found", status=404, detail=text, code="no_such_route"))


async def _not_allowed(request: Request, error: Exception) -> Response:
    text = f"{request.method} is not for {request.url.path}"
    answer = _problem(Problem(title="method not allowed", status=405, detail=text, code="method"))
    answer.headers.update(getattr(error, "headers", None) or {})
    return answer


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _found(request: Request, questions: Questions) -> Job:
    return await questions.find(request.path_params["job"], await user_of(request.scope))


async def _body(request: Request, kind: type[T]) -> T:
    """The JSON body as ``kind``; an empty one is that with its defaults."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > BODY_MAX:
            raise Refused("too_large", f"the body is larger than {BODY_MAX >> 10} KiB")
    try:
        return msgspec.json.decode(bytes(data) or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise Refused("usage", f"the body is not what is expected here: {error}") from None


def _only(request: Request, *known: str) -> QueryParams:
    """The query, which may have no other keys: one that is misspelt would be ignored silently."""
    for name in request.query_params:
        if name not in known:
            raise Refused("usage", f"there is no {name!r} to ask for here; there are: {', '.join(known)}")
    return request.query_params


def _key(request: Request) -> str | None:
    """The idempotency key of a submission, under the rule that holds for one in a job file."""
    text = request.headers.get("idempotency-key")
    if text is None:
        return None
    try:
        return msgspec.convert(text.encode("latin-1").decode(), Key)
    except (UnicodeDecodeError, msgspec.ValidationError):
        raise Refused("usage", "the Idempotency-Key is not a text of 1 to 200 characters") from None


def _state(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise Refused("usage", f"there is no state {text!r}; there are: {', '.join(State)}") from None


def _number(text: str | None, name: str) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise Refused("usage", f"{name}={text!r} is not a whole number from 0")
    return int(text)


def _seconds(request: Request) -> float:
    """How long a question may wait for its answer."""
    text = request.query_params.get("wait", "0")
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,18})?", text):
        raise Refused("usage", f"wait={text!r} is not a number of seconds")
    return min(float(text), WAIT_MAX_SECONDS)
