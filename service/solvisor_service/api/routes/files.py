"""What a finished job left: its manifest and its files.

Rules: a path leads nowhere but into the job's folder, through no link; what is read is read in threads, in bounded
pieces.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.manifest import Manifest
from solvisor.questions import Questions
from solvisor_service.api.asking import job_of, query_of
from solvisor_service.api.delivery import OCTETS, deliver
from solvisor_service.api.ways import Way


class FileQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """``inline``: to be shown in a page, where it is of a kind that can be; else it is to be saved."""

    inline: bool = False


async def _manifest(request: Request, questions: Questions) -> Response:
    return await _deliver(request, questions, "manifest.json")


async def _file(request: Request, questions: Questions) -> Response:
    return await _deliver(request, questions, request.path_params["path"])


async def _output(request: Request, questions: Questions) -> Response:
    return await _deliver(request, questions, f"output/{request.path_params['path']}")


async def _deliver(request: Request, questions: Questions, path: str) -> Response:
    query = query_of(request, FileQuery)
    job = await job_of(request, questions)
    await questions.must_be_published(job)
    return await deliver(request, job.id, path, inline=query.inline)


_HEADERS: Final = (
    ("Range", "so many bytes of it (one range), as 206"),
    ("If-Range", "the ETag it must still have, or else all of it comes"),
    ("If-None-Match", "the ETag of what is there already: 304 if it is still that"),
)

_GIVES: Final = (
    ("ETag", "the SHA-256 of the manifest, of a file that stands in it"),
    ("Content-Disposition", "whether a browser shows it, and its name"),
    ("Content-Range", "with 206: which bytes of how many"),
)


def _way(
    below: str, handler: Callable[[Request, Questions], Awaitable[Response]], says: str, kind: Any
) -> Way[Questions]:
    path = f"/v1/jobs/{{job}}/{below}"
    return Way("GET", path, handler, says, kind, query=FileQuery, also=(206, 304), headers=_HEADERS, gives=_GIVES)


QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    _way("manifest", _manifest, "the bytes of manifest.json", Manifest),
    _way("files/{path:path}", _file, "a file of a finished job", OCTETS),
    _way("output/{path:path}", _output, "a file of its output folder", OCTETS),
)
