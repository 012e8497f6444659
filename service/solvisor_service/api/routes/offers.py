"""What there is to be had: solvers and licenses."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from solvisor.questions import Questions
from solvisor.views import Licenses, Solvers
from solvisor_service.api.asking import json_of
from solvisor_service.api.ways import Way


async def _solvers(_: Request, questions: Questions) -> Response:
    return json_of(questions.solvers())


async def _licenses(_: Request, questions: Questions) -> Response:
    return json_of(questions.licenses())


QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    Way("GET", "/v1/solvers", _solvers, "the solvers, what they take and how they are", Solvers),
    Way("GET", "/v1/licenses", _licenses, "the licenses, who has them and who waits", Licenses),
)
