"""What watches over the daemon asks: whether it lives, whether it takes work, and its numbers.

Rules: whether it lives is answered to anybody, with a proof that it is the daemon whose pass one holds: a page asks for
that before it sends the pass. Over the Unix socket there is none, for who could ask there could pass it on.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Final

import anyio
import anyio.to_thread
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from solvisor.desk import Desk
from solvisor_service.api.asking import query_of
from solvisor_service.api.passes import Keys
from solvisor_service.api.problems import Unready
from solvisor_service.api.ways import Role, Way

SIZE_SECONDS: Final = 1.0
"""How long a scrape waits for the size of the database: a disk may hang, and just then one wants to see the rest."""


PROOF: Final = "Solvisor-Proof"


class ProofQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """``nonce`` and ``of``: over TCP, prove it with the header Solvisor-Proof: the HMAC-SHA256, in hex, of the nonce, a
    line end and the Host of the request, under the signature of a pass of which ``of`` is the middle part. ``token``
    stands for the token itself; the key then is HMAC-SHA256 of the text "solvisor proof" under it.
    """

    nonce: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32,64}\Z")] | None = None
    of: Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,2000}\Z")] | None = None


async def _healthz(request: Request, _: Desk) -> Response:
    query = query_of(request, ProofQuery)
    keys: Keys | None = request.scope["state"].get("keys")
    headers = {}
    if keys is not None and query.nonce is not None and query.of is not None:
        headers[PROOF] = keys.proof(query.of, query.nonce, request.headers.get("host", ""))
    return Response("ok\n", media_type="text/plain", headers=headers)


async def _readyz(_: Request, desk: Desk) -> Response:
    why = desk.not_ready()
    if why is not None:
        raise Unready(why)
    return Response("ready\n", media_type="text/plain")


async def _metrics(request: Request, desk: Desk) -> Response:
    size: int | None = None
    metrics = await anyio.to_thread.run_sync(importlib.import_module, "solvisor_service.api.metrics")
    with anyio.move_on_after(SIZE_SECONDS):
        size = await anyio.to_thread.run_sync(
            desk.database_bytes, limiter=request.app.state.files, abandon_on_cancel=True
        )
    return Response(metrics.exposition(desk, size), media_type=metrics.MEDIA_TYPE)


ORDERS: Final[tuple[Way[Desk], ...]] = (
    Way("GET", "/healthz", _healthz, "whether the daemon lives", "text/plain", Role.ANYONE, query=ProofQuery),
    Way("GET", "/readyz", _readyz, "whether it takes work; 503 says why not", "text/plain", Role.ANYONE),
    Way("GET", "/metrics", _metrics, "its numbers, for Prometheus", "text/plain"),
)
