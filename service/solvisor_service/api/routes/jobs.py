"""Jobs: pages of them, one of them, why it is where it is, its end and its repetition."""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor.fieldtypes import Priority
from solvisor.history import Filters
from solvisor.model import Cause, State
from solvisor.questions import Questions
from solvisor.spool.reading import JobFolder
from solvisor.views import Explanation, JobPage, JobView, Submitted
from solvisor_service.api.asking import Moment, Thousand, WaitQuery, body_of, job_of, json_of, query_of, us_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.ways import Role, Way

PAGE: Final = 100

Searched = Annotated[str, Meta(max_length=200)]


class JobsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Filters; ``since`` and ``until``: submitted then or later, before then; ``q``: a part of the name or of the id.

    ``cursor`` is what ``next`` was in the page before.
    """

    state: tuple[State, ...] = ()
    cause: tuple[Cause, ...] = ()
    solver: str | None = None
    user: str | None = None
    project: str | None = None
    batch: str | None = None
    since: Moment | None = None
    until: Moment | None = None
    q: Searched | None = None
    limit: Thousand = PAGE
    cursor: str | None = None


class PriorityBody(Struct, forbid_unknown_fields=True):
    """``priority``: higher starts first."""

    priority: Priority


async def _jobs(request: Request, questions: Questions) -> Response:
    query = query_of(request, JobsQuery)
    filters = Filters(
        states=query.state,
        causes=query.cause,
        solver=query.solver,
        user=query.user,
        project=query.project,
        batch=query.batch,
        since_us=None if query.since is None else us_of("since", query.since),
        until_us=None if query.until is None else us_of("until", query.until),
        text=query.q,
    )
    return json_of(await questions.page(filters, query.cursor, query.limit))


async def _job(request: Request, questions: Questions) -> Response:
    seconds = query_of(request, WaitQuery).seconds
    job = await job_of(request, questions)
    if seconds:
        await questions.wait_finished(job.id, seconds)
        job = await questions.find(job.id, None)
    return json_of(await questions.view(job))


async def _explain(request: Request, questions: Questions) -> Response:
    return json_of(await questions.explain(await job_of(request, questions)))


async def _cancel(request: Request, desk: Desk) -> Response:
    return json_of(await desk.cancel(await job_of(request, desk), await user_of(request.scope)))


async def _retry(request: Request, desk: Desk) -> Response:
    job = await job_of(request, desk)
    folders: JobFolder = request.app.state.folders
    with folders.reading(job.id):
        return json_of(await desk.retry(job, await user_of(request.scope)), 201)


async def _priority(request: Request, desk: Desk) -> Response:
    body = await body_of(request, PriorityBody)
    job = await job_of(request, desk)
    return json_of(await desk.prioritize(job, body.priority, await user_of(request.scope)))


QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    Way("GET", "/v1/jobs", _jobs, "jobs, newest first", JobPage, query=JobsQuery),
    Way("GET", "/v1/jobs/{job}", _job, "one job; with wait once it is finished", JobView, query=WaitQuery),
    Way("GET", "/v1/jobs/{job}/explain", _explain, "why it is where it is", Explanation),
)

ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("POST", "/v1/jobs/{job}/cancel", _cancel, "end it", JobView, Role.OPERATE),
    Way("POST", "/v1/jobs/{job}/priority", _priority, "move it in the order", JobView, Role.OPERATE, body=PriorityBody),
    Way("POST", "/v1/jobs/{job}/retry", _retry, "a new job with the same inputs", Submitted, Role.OPERATE, status=201),
)
