"""What happens, as it happens: server-sent events.

Rules: a stream is a place in one ring and holds nothing; there are but so many at once. It ends with the daemon.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor.errors import Refused
from solvisor.feed import Filter, is_cursor
from solvisor_service.api.asking import query_of
from solvisor_service.api.listening import user_of
from solvisor_service.api.streams import Stream
from solvisor_service.api.ways import Way


class EventsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """``since``: what came after this cursor, too; ``job``, ``batch``: what happens to this job, or to jobs of this
    batch, and nothing else.
    """

    since: str | None = None
    job: str | None = None
    batch: str | None = None


async def _events(request: Request, desk: Desk) -> Response:
    query = query_of(request, EventsQuery)
    since = request.headers.get("last-event-id") or query.since
    if since is not None and not is_cursor(since):
        raise Refused("usage", f"{since!r} is no cursor; pass on the last id of the stream before")
    user = await user_of(request.scope)
    job = query.job if query.job is None else (await desk.find(query.job, user)).id
    if query.batch is not None:
        await desk.batch(query.batch)
    content = desk.events(since, Filter(job, query.batch))
    return Stream(request, content, user, "text/event-stream; charset=utf-8", {"Cache-Control": "no-store"})


ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way(
        "GET",
        "/v1/events",
        _events,
        "what happens, as it happens",
        "text/event-stream",
        query=EventsQuery,
        headers=(("Last-Event-ID", "the id of the last event that came; it wins over since"),),
    ),
)
