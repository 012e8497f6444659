"""The page: a closed table of files that are read once, at the start, and served as they are.

Rules: what a request names is looked up, never opened. The files tell nothing of anybody's jobs, so they need no role.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response

from .asking import has_already

_KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "svg": "image/svg+xml",
}
"""What is served, by the ending of its name; anything else in the folder (licenses, notes) is not."""


class Asset(NamedTuple):
    """One file of the page."""

    data: bytes
    kind: str
    etag: str


def assets() -> Mapping[str, Asset]:
    """The files of the page, by the paths they are served under. Blocks."""
    table = {}
    for file in resources.files("solvisor_service").joinpath("web").iterdir():
        kind = _KINDS.get(file.name.rpartition(".")[2])
        if kind is not None and file.is_file():
            data = file.read_bytes()
            path = "/" if file.name == "index.html" else f"/assets/{file.name}"
            table[path] = Asset(data, kind, f'"{hashlib.sha256(data).hexdigest()[:32]}"')
    return table


def asset_answer(asset: Asset, request: Request) -> Response:
    """The file, or 304 for who has it."""
    headers = {"ETag": asset.etag, "Cache-Control": "no-cache"}
    if has_already(request, asset.etag):
        return Response(status_code=304, headers=headers)
    return Response(asset.data, media_type=asset.kind, headers=headers)
