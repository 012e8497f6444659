"""What a request asks: its query, its body, its job, read into records; and records as answers.

Rules: whatever comes from outside is bounded in size and time, and what is not understood is refused by its name.
This module must not know routes.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, Final, TypeVar, get_args, get_origin

import anyio
import msgspec
from msgspec import Meta, Struct
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from solvisor.errors import Refused
from solvisor.model import Cause, Job, State
from solvisor.pile import unless
from solvisor.questions import Questions

from .listening import user_of

T = TypeVar("T")
Q = TypeVar("Q", bound=Struct)

BODY_MAX: Final = 64 << 10
BODY_SECONDS: Final = 5.0
"""How long the small body of an order may take."""
STALLED_SECONDS: Final = 30.0
"""How long a submission may rest in its middle."""

WAIT_MAX_SECONDS: Final = 60.0

Whole = Annotated[int, Meta(ge=0, le=10**18 - 1)]
Thousand = Annotated[int, Meta(ge=1, le=1000)]
"""How many of something, where each costs something."""
Seconds = Annotated[float, Meta(ge=0, le=1e9)]

Moment = Annotated[
    str,
    Meta(
        description="RFC 3339, or UTC microseconds since 1970; without an offset it is UTC",
        extra_json_schema={"pattern": r"^([0-9]{1,16}|[0-9]{4}-[0-9]{2}-[0-9]{2}([T ][0-9:.]+(Z|[+ -][0-9:]+)?)?)$"},
    ),
]
"""A time in a query; ``us_of`` reads it."""

_EARLIEST_US: Final = 0
_LATEST_US: Final = 32_503_680_000_000_000
"""The year 3000: a typing error, and nothing that a clock says."""

Key = Annotated[str, Meta(pattern=r"\A[^\x00-\x1f\x7f-\x9f]{1,200}\Z")]


class WaitQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """``wait``: how many seconds the answer may wait for what is asked for (at most 60)."""

    wait: Seconds = 0.0

    @property
    def seconds(self) -> float:
        """The wait that is kept."""
        return min(self.wait, WAIT_MAX_SECONDS)


def query_of(request: Request, kind: type[Q]) -> Q:
    """The query as ``kind``. It may have no other keys: one that is misspelt would be ignored silently."""
    hints = _types_of(kind)
    values: dict[str, Any] = {}
    for name in request.query_params:
        if name not in hints:
            known = ", ".join(hints) or "none"
            raise Refused("usage", f"there is no {name!r} to ask for here; there are: {known}")
        given = request.query_params.getlist(name)
        values[name] = given if get_origin(hints[name]) is tuple else given[-1]
    try:
        return msgspec.convert(values, kind, strict=False)
    except msgspec.ValidationError as error:
        found = re.search(r" - at `\$\.(\w+)", str(error))
        name = found[1] if found else ""
        text = request.query_params.get(name, "")
        raise Refused("usage", f"{name}={text!r} is not {_wanted(hints.get(name))}") from None


@cache
def _types_of(kind: type[Struct]) -> dict[str, Any]:
    """What each key of a query takes. Kept, for finding it out costs a third of a short answer."""
    return {field.encode_name: field.type for field in msgspec.structs.fields(kind)}


def us_of(name: str, moment: str) -> int:
    """A ``Moment`` as UTC microseconds; ``name`` is the key it came with. Raises ``Refused``."""
    try:
        if moment.isascii() and moment.isdigit() and len(moment) < 20:
            found = int(moment)
        else:
            then = datetime.fromisoformat(moment[:11] + moment[11:].replace(" ", "+"))  # what + is in a query
            found = ((then if then.tzinfo else then.replace(tzinfo=UTC)) - _EPOCH) // timedelta(microseconds=1)
    except (ValueError, OverflowError):
        found = -1
    if not _EARLIEST_US <= found <= _LATEST_US:
        raise Refused("usage", f"{name}={moment!r} is not a time; write it like 2026-11-01T08:00:00Z")
    return found


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _wanted(hint: object) -> str:
    """What a field takes, in words."""
    parts = [hint]
    for part in parts:  # it grows: what a type is made of comes after it
        parts += get_args(part)
        if part is State:
            return f"a state; there are: {', '.join(State)}"
        if part is Cause:
            return f"a cause; there are: {', '.join(Cause)}"
        if part == Thousand:
            return "a whole number from 1 to 1000"
        if part is int:
            return "a whole number from 0"
        if part is float:
            return "a number of seconds"
    return "understood here"


async def body_of(request: Request, kind: type[T]) -> T:
    """The JSON body as ``kind``; an empty one is that with its defaults."""
    data = bytearray()
    with anyio.move_on_after(BODY_SECONDS) as clock:
        async for chunk in request.stream():
            data += chunk
            if len(data) > BODY_MAX:
                raise Refused("too_large", f"the body is larger than {BODY_MAX >> 10} KiB")
    if clock.cancelled_caught:
        raise Refused("slow", f"the body was not there after {BODY_SECONDS:g} s")
    try:
        return msgspec.json.decode(bytes(data) or b"{}", type=kind)
    except msgspec.DecodeError as error:
        raise Refused("usage", f"the body is not what is expected here: {error}") from None


async def lively(stream: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces; raises ``Refused`` once none has come for a while."""
    while True:
        chunk: bytes | None = None
        with anyio.move_on_after(STALLED_SECONDS) as clock:
            chunk = await anext(stream, None)
        if clock.cancelled_caught:
            raise Refused("slow", f"nothing more of it came for {STALLED_SECONDS:g} s; nothing was taken in")
        if chunk is None:
            return
        yield chunk


def key_of(request: Request) -> str | None:
    """The idempotency key of a submission, under the rule that holds for one in a job file."""
    text = request.headers.get("idempotency-key")
    if text is None:
        return None
    try:
        return msgspec.convert(text.encode("latin-1").decode(), Key)
    except (UnicodeDecodeError, msgspec.ValidationError):
        raise Refused("usage", "the Idempotency-Key is not a text of 1 to 200 characters") from None


async def job_of(request: Request, questions: Questions) -> Job:
    """The job that the path names."""
    return await questions.find(request.path_params["job"], await user_of(request.scope))


def has_already(request: Request, tag: str) -> bool:
    """Whether who asks has what ``tag`` is the ETag of (``If-None-Match``); a weak one means the same here."""
    known = [each.strip().removeprefix("W/") for each in request.headers.get("if-none-match", "").split(",")]
    return tag in known or known == ["*"]


async def while_awaited(request: Request, work: Callable[[], Awaitable[T]]) -> T:
    """What ``work`` gives; given up once nobody waits for the answer: raises ``ClientDisconnect`` then.

    The body of the request, if it has one, must have been read.
    """

    async def hung_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    found = await unless(hung_up, work)
    if found is None:
        raise ClientDisconnect
    return found


def json_of(value: object, status: int = 200) -> Response:
    """A record as an answer."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")
