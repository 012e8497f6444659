"""Submissions: files and wishes that become one job, or nothing.

Rules: nothing is held in memory but what is short; whoever breaks off leaves nothing.
"""

from __future__ import annotations

import json
from typing import Any, Final

import anyio
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor import model
from solvisor.desk import Desk
from solvisor.errors import Refused
from solvisor.names import FOLDER_JOB_FILE, is_job_file
from solvisor.submission import Submission
from solvisor.views import Submitted
from solvisor_service.api.asking import json_of, key_of, lively, query_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.multipart import receive
from solvisor_service.api.ways import Role, Way


class SubmitQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """``batch``: the id of an open batch that the job joins."""

    batch: str | None = None


async def _submit(request: Request, desk: Desk) -> Response:
    query = query_of(request, SubmitQuery)
    key = key_of(request)
    incoming = _Incoming(desk)
    try:
        job = await receive(
            lively(request.stream()),
            request.headers.get("content-type", ""),
            incoming.begin,
            incoming.write,
            incoming.end,
        )
        if incoming.submission is None:
            raise Refused("usage", "no file came; send at least one, as curl -F file=@beam.inp does")
        wishes = _wishes(job)
        asked = model.Request("socket", await user_of(request.scope), query.batch, key)
    except BaseException:
        if incoming.submission is not None:
            with anyio.CancelScope(shield=True):
                await incoming.submission.discard()
        raise
    submitted = await desk.submit(incoming.submission, wishes, asked)
    return json_of(submitted, 200 if submitted.existing else 201)


class _Incoming:
    """The files of one submission on their way in."""

    def __init__(self, desk: Desk) -> None:
        self.submission: Submission | None = None
        self._desk = desk

    async def begin(self, name: str) -> None:
        sent = [] if self.submission is None else self.submission.names
        if is_job_file(name) and "/" not in name and FOLDER_JOB_FILE not in sent:
            name = FOLDER_JOB_FILE
        self.submission = self.submission or self._desk.begin(name)
        await self.submission.begin(name)

    async def write(self, data: bytes) -> None:
        self._desk.must_have_room()
        assert self.submission is not None  # noqa: S101  begin made it
        await self.submission.write(data)

    async def end(self) -> None:
        assert self.submission is not None  # noqa: S101  begin made it
        await self.submission.end()


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


ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way(
        "POST",
        "/v1/jobs",
        _submit,
        "submit files and wishes as one job",
        Submitted,
        Role.OPERATE,
        query=SubmitQuery,
        body="multipart/form-data",
        status=201,
        also=(200,),
        headers=(("Idempotency-Key", "the same submission sent again with the same key is the same job, and 200"),),
    ),
)
