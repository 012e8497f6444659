"""How busy it was: a time line, and the report of a period."""

from __future__ import annotations

from functools import partial
from typing import Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.clock import now_us
from solvisor.errors import Refused
from solvisor.figures import Report, Usage
from solvisor.questions import Questions
from solvisor_service.api.asking import Moment, Thousand, json_of, query_of, us_of, while_awaited
from solvisor_service.api.ways import Way

POINTS: Final = 96
DAY_US: Final = 86_400_000_000


class UsageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """``since`` and ``until`` bound it (default: the last 24 h); ``points`` is how many steps there are between them, 1
    to 1,000; none is shorter than a minute.
    """

    since: Moment | None = None
    until: Moment | None = None
    points: Thousand = POINTS


class PeriodQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """``since`` and ``until`` bound it (default: the last 7 days)."""

    since: Moment | None = None
    until: Moment | None = None


async def _report(request: Request, questions: Questions) -> Response:
    query = query_of(request, PeriodQuery)
    work = partial(questions.report, *period(query.since, query.until, 7 * DAY_US))
    return json_of(await while_awaited(request, work))


async def _usage(request: Request, questions: Questions) -> Response:
    query = query_of(request, UsageQuery)
    since_us, until_us = period(query.since, query.until, DAY_US)
    return json_of(await questions.usage(since_us, until_us, query.points))


def period(since: str | None, until: str | None, length_us: int) -> tuple[int, int]:
    """The period meant, in UTC microseconds; without an end until now, without a beginning so long.

    Raises ``Refused``.
    """
    until_us = now_us() if until is None else us_of("until", until)
    since_us = max(0, until_us - length_us) if since is None else us_of("since", since)
    if since_us >= until_us:
        raise Refused("usage", "since is not before until; give an earlier since, or a later until")
    return since_us, until_us


QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    Way("GET", "/v1/usage", _usage, "how busy it was: cores, memory, licenses, waiting", Usage, query=UsageQuery),
    Way("GET", "/v1/report", _report, "a period: its jobs, how busy it was, what to change", Report, query=PeriodQuery),
)
