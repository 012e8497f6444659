"""A daemon that says what a test tells it to: the status socket of a home, with answers in the shapes of ``views``."""

from __future__ import annotations

import contextlib
import http.server
import os
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from solvisor.views import Explanation, JobRow, JobView, LastDay, Level, Problem, Status


class Request(NamedTuple):
    """What was asked."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


class Raw(NamedTuple):
    """An answer that is no JSON, with its headers; ``data`` that comes in pieces is sent piece by piece."""

    data: bytes | Iterator[bytes]
    headers: dict[str, str]


Answer = Any
"""A record of ``views`` (a ``Problem`` is a refusal), ``Raw``, or bytes."""


class FakeDaemon:
    """Answers by ``(method, path)``: an answer, or a function of the request that makes one."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.answers: dict[tuple[str, str], Answer | Callable[[Request], Answer]] = {}
        self.requests: list[Request] = []

    def answer(self, request: Request) -> Answer:
        self.requests.append(request)
        known = self.answers.get((request.method, request.path))
        if known is None:
            return no_such_job(request.path)
        return known(request) if callable(known) else known

    def asked(self, method: str, path: str) -> list[Request]:
        """The requests so far of that method and path."""
        return [r for r in self.requests if (r.method, r.path) == (method, path)]

    def know(self, job: JobView, *names: str) -> None:
        """Answer for ``job`` by its id and ``names`` (prefixes of it, ``last``)."""
        for name in (job.id, *names):
            self.answers["GET", f"/v1/jobs/{name}"] = job


@contextlib.contextmanager
def fake_daemon(home: Path) -> Iterator[FakeDaemon]:
    """A fake daemon that listens on ``home`` for as long as the context lives."""
    fake = FakeDaemon(home)
    (home / "run").mkdir(parents=True, exist_ok=True)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._reply(b"")

        def do_POST(self) -> None:
            self._reply(self._chunks() if self.headers.get("Transfer-Encoding") else self._counted())

        def _counted(self) -> bytes:
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))

        def _chunks(self) -> bytes:
            body = b""
            while length := int(self.rfile.readline(), 16):
                body += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _reply(self, body: bytes) -> None:
            url = urlsplit(self.path)
            headers = dict(self.headers.items())
            answer = fake.answer(Request(self.command, unquote(url.path), parse_qs(url.query), headers, body))
            status = answer.status if isinstance(answer, Problem) else 200
            data, headers = answer if isinstance(answer, Raw) else (answer, {})
            if isinstance(data, Iterator):
                pieces, length = data, {}
            else:
                data = data if isinstance(data, bytes) else msgspec.json.encode(data)
                pieces, length = iter([data]), {"Content-Length": str(len(data))}
            self.send_response(status)
            for name, value in {**length, "Connection": "close", **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for piece in pieces:
                self.wfile.write(piece)
                self.wfile.flush()

        def address_string(self) -> str:
            return "a Unix socket"

        def log_message(self, *_: Any) -> None:
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        request_queue_size = 64
        daemon_threads = True  # one that a failed test left waiting ends with the run

        def handle_error(self, *_: Any) -> None:
            pass  # a client that goes away in the middle is part of some tests

    path = home / "run" / "solvisor.sock"
    with Server(os.fspath(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield fake
        finally:
            server.shutdown()
            thread.join()
            path.unlink()


# --- recorded answers ---------------------------------------------------------------------------------------------

BEAM = "beam-1jl9v2k4a0b1c2d"
ROW: dict[str, Any] = {
    "id": BEAM,
    "name": "beam.inp",
    "state": "running",
    "solver": "ccx",
    "user": "ann",
    "tries": 1,
    "submitted": "2026-11-02T10:00:00.000000Z",
    "started": "2026-11-02T10:00:01.000000Z",
    "queue_seconds": 1.0,
    "run_seconds": 4320.0,
    "folder": f"work/{BEAM}",
}
VIEW: dict[str, Any] = {
    **ROW,
    "kind": "command",
    "primary": "beam.inp",
    "source": "inbox",
    "priority": 0,
    "key": None,
    "after": [],
    "params": {},
    "timeout_seconds": 7200.0,
    "cpus": 2,
    "memory_bytes": 2 << 30,
    "licenses": {},
    "tries_max": 1,
    "tries_charged": 1,
    "cancel": False,
    "command": ["/usr/bin/ccx", "-i", "beam"],
    "attempts": [],
}


def row(**changes: Any) -> JobRow:
    """A running job of ann's, but for ``changes``."""
    return msgspec.convert(ROW | _placed(changes), JobRow)


def view(**changes: Any) -> JobView:
    """The same job with all that is known of it."""
    return msgspec.convert(VIEW | _placed(changes), JobView)


def explanation(headline: str, **changes: Any) -> Explanation:
    """Why the job ``changes["job"]`` is where it is."""
    return msgspec.convert({"job": row(), "headline": headline} | changes, Explanation, from_attributes=True)


def status(**changes: Any) -> Status:
    """A healthy daemon with nothing to do, but for ``changes``."""
    idle = Status(
        host="ws04",
        version="0.1.0",
        home="/srv/solvisor",
        inbox_path="/srv/solvisor/inbox",
        pid=77,
        health="healthy",
        problems=(),
        up_seconds=6 * 86400.0,
        now="2026-11-02T11:12:01.000000Z",
        running=0,
        collecting=0,
        waiting=0,
        last_day=LastDay(),
        jobs=Level(0, 15),
        cpus=Level(0, 16),
        memory_bytes=Level(0, 128 << 30),
        licenses={},
        disk_free_bytes=412 << 30,
        disk_reserve_bytes=1 << 30,
        loop_lag_seconds=0.002,
        loop_lag_worst_seconds=0.04,
        log_lines_lost=0,
        waiting_for=(),
        inbox=(),
        inbox_total=0,
        paused=(),
        servers=(),
        running_jobs=(),
        last_failed=(),
        solvers=("ccx", "orcaflex"),
    )
    return msgspec.structs.replace(idle, **changes)


def no_such_job(name: str) -> Problem:
    """The refusal for a job that nobody knows."""
    return Problem(
        title="no such job", status=404, detail=f"no job is called {name}; see: solvisor list", code="no_such_job"
    )


def _placed(changes: dict[str, Any]) -> dict[str, Any]:
    """With an id goes a folder."""
    return {"folder": f"work/{changes['id']}", **changes} if "id" in changes else changes
