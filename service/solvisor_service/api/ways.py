"""What a route is: one record says who may take it, what it takes and what it gives. The API's description and its
checks are made from these, so they cannot differ from what is served.

Rules: no route is written down twice. This module must not know which routes there are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, Generic, NamedTuple, TypeVar

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response

A_contra = TypeVar("A_contra", contravariant=True)


class Role(IntEnum):
    """What somebody may do; each may do what those before it may. ``ANYONE`` is whoever can connect."""

    ANYONE = 0
    LOOK = 1
    OPERATE = 2
    ADMINISTER = 3


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """No query at all."""


class Way(NamedTuple, Generic[A_contra]):
    """One route.

    ``handler`` gets the request and who answers (``Questions``, or the whole ``Desk``). ``says`` is one line on what it
    does. ``query`` and ``body`` are the records its query and its JSON body are read as; ``answer`` is the type of what
    it gives as JSON, or the media type of what is no JSON, as is ``body``. ``status`` is the one of success, ``also``
    are others that are no refusals. ``headers`` are those of the request that it looks at, and what they mean;
    ``gives`` those of its answer.
    """

    method: str
    path: str
    handler: Callable[[Request, A_contra], Awaitable[Response]]
    says: str
    answer: Any
    role: Role = Role.LOOK
    query: type[Struct] = NoQuery
    body: type[Struct] | str | None = None
    status: int = 200
    also: tuple[int, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    gives: tuple[tuple[str, str], ...] = ()
