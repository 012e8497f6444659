"""The logs of a job: a piece of one, or all of it as its solver writes it.

Rules: a log belongs to one try, wherever it lies by now. Whoever follows holds no thread while nothing is written.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Final

import anyio
import anyio.to_thread
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.model import Job
from solvisor.questions import Questions
from solvisor.spool.logs import OpenLog
from solvisor.spool.reading import JobFolder
from solvisor_service.api.asking import Whole, job_of, query_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.problems import NoSuchFile
from solvisor_service.api.streams import Stream
from solvisor_service.api.ways import Way

LOG_MAX: Final = 1 << 20
CHUNK: Final = 1 << 18
LOOK_SECONDS: Final = (0.1, 1.0)
"""The first rest between two looks at a log that is followed, and the longest; it doubles while nothing comes."""
STAGE_SECONDS: Final = 0.2
"""How often it is looked, in memory, whether the try has ended."""
TEXT: Final = "text/plain; charset=utf-8"


class LogQuery(Struct, frozen=True, forbid_unknown_fields=True, rename={"attempt": "try"}):
    """``offset``: where to begin; ``tail``: so many of the last bytes; ``try``: of this one, else the newest.

    ``follow``: from there on until that try has ended; one that did not begin is waited for.
    """

    offset: Whole | None = None
    tail: Whole | None = None
    attempt: Whole | None = None
    follow: bool = False


async def _log(request: Request, questions: Questions) -> Response:
    query = query_of(request, LogQuery)
    job = await job_of(request, questions)
    which = request.path_params["which"]
    if which not in ("stdout", "stderr"):
        raise NoSuchFile(f"there is no log {which!r}; there are stdout and stderr")
    begun = len(job.attempts)
    known = begun + 1 if query.follow else begun  # whether there will be another is known once the job is over
    if query.attempt is not None and not 1 <= query.attempt <= known:
        raise NoSuchFile(f"{job.id} has no try {query.attempt}; so far there were {begun}")
    attempt = query.attempt or max(1, begun)
    log = _Log(request, questions, job, which, attempt)
    if not query.follow:
        tail = LOG_MAX if query.tail is None else min(query.tail, LOG_MAX)
        data, end = await log.piece(query.offset, tail)
        return Response(data, media_type=TEXT, headers={"Solvisor-Offset": str(end)})
    begin = await log.begin(query.offset, query.tail)
    headers = {"Solvisor-Try": str(attempt if attempt <= begun else 0), "Solvisor-Offset": str(begin)}
    return Stream(request, log.follow(begin), await user_of(request.scope), TEXT, headers)


class _Log:
    """One log of one try."""

    def __init__(self, request: Request, questions: Questions, job: Job, which: str, attempt: int) -> None:
        self._folders: JobFolder = request.app.state.folders
        self._in_thread = partial(anyio.to_thread.run_sync, limiter=request.app.state.files)
        self._questions = questions
        self._job = job
        self._which = which
        self._attempt = attempt

    async def _open(self, offset: int | None, tail: int | None) -> OpenLog | None:
        """The log, once its solver was begun."""
        if self._stage() == "waits":
            return None
        job = await self._questions.find(self._job.id, None)  # what was asked may have been long ago
        if self._attempt > len(job.attempts):
            return None
        newest = self._questions.is_newest(job, self._attempt)
        call = partial(self._folders.open_log, self._job.id, self._which, self._attempt, newest=newest)
        return await self._in_thread(partial(call, offset=offset, tail=tail))

    def _stage(self) -> str:
        return self._questions.stage_of(self._job.id, self._attempt)

    async def piece(self, offset: int | None, tail: int) -> tuple[bytes, int]:
        """A piece from ``offset`` on, or of the last ``tail`` bytes, and the offset behind it."""
        with self._folders.reading(self._job.id):
            log = await self._open(offset, tail)
            if log is None:
                return b"", offset or 0
            try:
                return await self._in_thread(log.read_over, LOG_MAX), log.offset
            finally:
                log.close()

    async def begin(self, offset: int | None, tail: int | None) -> int:
        """Where following begins."""
        log = await self._open(offset, tail)
        if log is None:
            return offset or 0
        log.close()
        return log.offset

    async def follow(self, begin: int) -> AsyncGenerator[bytes, None]:
        """All from ``begin`` on until the try has ended."""
        log: OpenLog | None = None
        rest = LOOK_SECONDS[0]
        with self._folders.reading(self._job.id):
            try:
                while True:
                    stage = self._stage()  # before it is read, so nothing is missed at its end
                    log = log or await self._open(begin, None)
                    data = b"" if log is None else await self._in_thread(log.read, CHUNK)
                    if data:
                        yield data
                        rest = LOOK_SECONDS[0]
                    if len(data) == CHUNK:
                        continue
                    if stage == "over" and not data:
                        return
                    if stage != "over":
                        await self._rest(rest, stage)
                        rest = min(2 * rest, LOOK_SECONDS[1])
            finally:
                if log is not None:
                    log.close()

    async def _rest(self, seconds: float, stage: str) -> None:
        """Wait a while, or until the try is at another stage."""
        end = anyio.current_time() + seconds
        while self._stage() == stage and (left := end - anyio.current_time()) > 0:  # noqa: ASYNC110  no bell is for it
            await anyio.sleep(min(left, STAGE_SECONDS))


QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    Way(
        "GET",
        "/v1/jobs/{job}/logs/{which}",
        _log,
        "a piece of stdout or stderr; with follow as it is written",
        "text/plain",
        query=LogQuery,
        gives=(
            ("Solvisor-Offset", "the offset behind this piece; with follow the one at which it begins"),
            ("Solvisor-Try", "with follow: the try whose log it is, 0 for one that was not begun"),
        ),
    ),
)
