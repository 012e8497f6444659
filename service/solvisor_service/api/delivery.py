"""A file as an answer: all of it or one range, by its type, and fit to lie in a browser.

Rules: what solvers and users wrote is never run: it is sandboxed, its type is that of a closed table and not guessed
from its bytes, and it is downloaded unless whoever asks wants to see it and it is a picture, a film or text. This
module must not know routes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncIterator, Mapping
from functools import partial
from io import BufferedReader
from typing import Final, NamedTuple
from urllib.parse import quote

import anyio
import anyio.to_thread
import msgspec
from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from solvisor.model import FileFact
from solvisor.names import unescape_name
from solvisor.spool.reading import JobFolder

from .asking import has_already
from .problems import NoRange, NoSuchFile

CHUNK: Final = 1 << 18

OCTETS: Final = "application/octet-stream"

_TYPES: Final = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "bmp": "image/bmp",
    "mp4": "video/mp4",
    "webm": "video/webm",
    "pdf": "application/pdf",
    "txt": "text/plain; charset=utf-8",
    "log": "text/plain; charset=utf-8",
    "md": "text/plain; charset=utf-8",
    "csv": "text/csv; charset=utf-8",
    "tsv": "text/tab-separated-values; charset=utf-8",
    "json": "application/json",
    "xml": "application/xml",
    "html": "text/html; charset=utf-8",
    "zip": "application/zip",
    "gz": "application/gzip",
}
"""Types by the ends of names; what is none of them are bytes."""

_SHOWN: Final = ("image/", "video/", "text/plain", "text/csv", "text/tab-", "application/pdf", "application/json")
"""What may be shown in a page if that is asked for: what can run nothing."""

_HARMLESS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:",
}

_RANGE: Final = re.compile(r"bytes=[ \t]*(\d{0,18})-(\d{0,18})[ \t]*", re.IGNORECASE | re.ASCII)


class Part(NamedTuple):
    """A piece of a file: from ``begin`` to before ``end``."""

    begin: int
    end: int


def part_of(wanted: str | None, size: int) -> Part | None:
    """The one range that is asked for; ``None`` for all of it: nothing is asked for, several, or in other words.

    Raises ``NoRange`` for one that lies behind the end.
    """
    found = _RANGE.fullmatch(wanted or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        part = Part(max(0, size - int(found[2])), size)
    else:
        part = Part(int(found[1]), min(size, int(found[2]) + 1) if found[2] else size)
        if found[2] and int(found[2]) < int(found[1]):
            return None
    if part.begin >= size or part.begin == part.end:
        raise NoRange(size)
    return part


def type_of(path: str) -> str:
    """The media type of a file by the end of its name."""
    _, dot, end = path.rpartition("/")[2].rpartition(".")
    return _TYPES.get(end.lower(), OCTETS) if dot else OCTETS


def disposition(path: str, kind: str, *, inline: bool) -> str:
    """Whether a browser shows it or saves it, and under which name."""
    how = "inline" if inline and kind.startswith(_SHOWN) else "attachment"
    name = unescape_name(path).rpartition("/")[2].encode("utf-8", "surrogateescape")
    return f"{how}; filename*=UTF-8''{quote(name, safe='')}"


async def deliver(request: Request, job_id: str, path: str, *, inline: bool = False) -> Response:
    """The file ``path`` of a finished job. Raises ``NoSuchFile``, ``NoRange``."""
    folders: JobFolder = request.app.state.folders
    in_thread = partial(anyio.to_thread.run_sync, limiter=request.app.state.files)
    with folders.reading(job_id):
        file = await in_thread(folders.open, job_id, path)
        if file is None:
            raise NoSuchFile(f"{job_id} has no file {path!r}; its manifest lists what it has")
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(file.close)
            size = folders.size(file)
            tag = await in_thread(_tag, folders, job_id, path, size)
            headers = _HARMLESS | {"Accept-Ranges": "bytes"}
            if tag is not None:
                headers["ETag"] = tag
                if has_already(request, tag):
                    return Response(status_code=304, headers=headers)
            kind = type_of(path)
            headers["Content-Disposition"] = disposition(path, kind, inline=inline)
            wanted = request.headers.get("range")
            if request.method != "GET" or request.headers.get("if-range", tag) != tag:  # RFC 9110, 14.2
                wanted = None
            part = part_of(wanted, size)
            if part is not None:
                headers["Content-Range"] = f"bytes {part.begin}-{part.end - 1}/{size}"
            on_failure.pop_all()
    return _FileAnswer(request, job_id, file, part or Part(0, size), 200 if part is None else 206, kind, headers)


class _Listed(Struct, frozen=True):
    """What is read of a manifest here."""

    inputs: tuple[FileFact, ...] = ()
    outputs: tuple[FileFact, ...] = ()


_read_listed: Final = msgspec.json.Decoder(_Listed).decode


def _tag(folders: JobFolder, job_id: str, path: str, size: int) -> str | None:
    """The ETag of a file: the hash that stands in the manifest, while it has the size that stands there."""
    manifest = folders.open(job_id, "manifest.json")
    if manifest is None:
        return None
    with manifest:
        try:
            listed = _read_listed(manifest.read())
        except msgspec.DecodeError:  # of a later version
            return None
    facts = listed.inputs if path.startswith("input/") else listed.outputs
    return next((f'"{fact.sha256}"' for fact in facts if fact.path == path and fact.size == size and fact.sha256), None)


class _FileAnswer(StreamingResponse):
    """A part of an open file, which is closed in the end. Nothing of the job is removed meanwhile."""

    def __init__(
        self,
        request: Request,
        job_id: str,
        file: BufferedReader,
        part: Part,
        status: int,
        kind: str,
        headers: Mapping[str, str],
    ) -> None:
        length = {"Content-Length": str(part.end - part.begin)}
        super().__init__(self._content(), status, {**headers, **length}, kind)
        self._folders: JobFolder = request.app.state.folders
        self._threads: anyio.CapacityLimiter = request.app.state.files
        self._job_id = job_id
        self._file = file
        self._part = part

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        with self._file, self._folders.reading(self._job_id):
            if scope["method"] == "HEAD":
                await Response(status_code=self.status_code, headers=self.headers)(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)

    async def _content(self) -> AsyncIterator[bytes]:
        left = self._part.end - self._part.begin
        self._file.seek(self._part.begin)
        while chunk := await anyio.to_thread.run_sync(self._file.read, min(CHUNK, left), limiter=self._threads):
            yield chunk
            left -= len(chunk)
