"""Readiness of real servers: redis, Rserve, Python's http.server, ZeroMQ."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from probe_kit import HOST, Servers, free_port, never, passed, servers, under_way
from process_kit import PROGRAMS
from solvisor.errors import NotReady
from solvisor.kinds import HttpReady, TcpReady, ZmqReady
from solvisor.probe import check, until_listening, until_ready
from waiting import eventually, wait_until

if sys.platform == "win32":
    pytest.skip("servers of Linux", allow_module_level=True)

LOOPS = "uvloop"

PONG = TcpReady(send="PING\r\n", expect=r"^\+PONG")
GREETING = TcpReady(expect="^Rsrv")
ASK = ZmqReady(send="getVersion()", expect="^ready$")


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Servers]:
    async with servers(tmp_path) as some:
        yield some


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")


# redis


async def test_redis(bench: Servers) -> None:
    needs("redis-server")
    server = await bench.program("redis-server", "--port", "PORT", "--bind", HOST, "--save", "")
    with anyio.fail_after(60):
        await server.until_ready(PONG)()
    await check(PONG, HOST, server.port)


async def test_redis_that_is_loading(bench: Servers, tmp_path: Path) -> None:
    """It accepts, answers that it is loading, and keeps the connection open."""
    needs("redis-server")
    data = ("--dir", str(tmp_path), "--save", "")
    # Written as it would write it itself: an entry of its log of commands for each key.
    entries = (b"*3\r\n$3\r\nSET\r\n$6\r\n%06d\r\n$1000\r\n%s\r\n" % (key, b"x" * 1000) for key in range(5000))
    (tmp_path / "appendonly.aof").write_bytes(b"".join(entries))
    slowly = ("--appendonly", "yes", "--key-load-delay", "300", "--loading-process-events-interval-bytes", "1024")
    server = await bench.program("redis-server", "--port", "PORT", "--bind", HOST, *data, *slowly)
    with anyio.fail_after(60):
        await server.until_ready(PONG)()
    assert any("LOADING" in note for note in server.notes)
    await check(PONG, HOST, server.port)


async def test_redis_that_wants_a_password(bench: Servers) -> None:
    needs("redis-server")
    server = await bench.program(
        "redis-server", "--port", "PORT", "--bind", HOST, "--save", "", "--requirepass", "secret"
    )
    async with never(server.until_ready(PONG)):
        await server.noted('it answered "-NOAUTH Authentication required.\\r\\n", and what is expected did not follow')


async def test_redis_that_cannot_bind(bench: Servers) -> None:
    """Its process is gone, and what has its port is the other one."""
    needs("redis-server")
    first = await bench.program("redis-server", "--port", "PORT", "--bind", HOST, "--save", "")
    with anyio.fail_after(60):
        await first.until_ready(PONG)()
    second = await bench.program("redis-server", "--port", str(first.port), "--bind", HOST, "--save", "")
    words = rf"^redis-server \(pid {first.up.pid}\) listens on port {first.port} of {HOST}$"
    with anyio.fail_after(60), pytest.raises(NotReady, match=words):
        await until_ready(PONG, second.up, HOST, first.port, second.notes.append)


# Rserve


async def test_rserve_forks_one_child(bench: Servers) -> None:
    needs("Rscript")
    here = ["Rscript", "-e", 'cat(nzchar(system.file(package = "Rserve")))']
    if subprocess.run(here, capture_output=True, text=True).stdout != "TRUE":  # noqa: ASYNC221
        pytest.skip("needs the package Rserve of R")
    server = await bench.program("Rscript", "-e", "Rserve::run.Rserve(port = PORT, remote = FALSE)")
    with anyio.fail_after(60):
        await server.until_ready(GREETING)()
    await check(GREETING, HOST, server.port)


# HTTP


PAGES = """
import http.server, os, sys, time
class Page(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        with open("requests", "a") as file:
            print(self.path, self.headers["Host"], file=file)
        status, body = (200, b"up: yes") if os.path.exists("go") else (503, b"loading")
        kind = self.path.partition("?")[0]
        if kind == "/hangs-up":
            return
        self.send_response(status)
        if kind == "/chunked":
            self.send_header("Transfer-Encoding", "chunked")
            body = b"".join(b"%x\\r\\n%c\\r\\n" % (1, each) for each in body) + b"0\\r\\n\\r\\n"
        elif kind != "/endless":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        if kind != "/close":  # as if it kept the connection whatever it was asked
            time.sleep(1000)
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer.daemon_threads = True
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


@pytest.mark.parametrize("path", ["/", "/chunked", "/close", "/endless"])
async def test_a_page(bench: Servers, path: str) -> None:
    server = await bench.program(sys.executable, "-c", PAGES, "PORT")
    ready = HttpReady(path=f"{path}?a=b c\r\nX: y", expect="^up: yes$")
    async with under_way(server.until_ready(ready)) as done:
        await server.noted('it answered 503 "Service Unavailable" to GET')
        assert not done.is_set()
        server.write("go")
    last = server.requests()[-1]
    assert last == f"{path}?a=b%20c%0D%0AX:%20y {HOST}:{server.port}"
    asked = len(server.requests())
    await check(ready, HOST, server.port)
    await check(HttpReady(path=path), HOST, server.port)
    assert len(server.requests()) == asked + 2


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/", r'"maybe" is not found in its answer to GET "/": "up: yes"'),
        ("/chunked", r'"maybe" is not found in its answer to GET "/chunked": "up: yes"'),
        ("/close", r'"maybe" is not found in its answer to GET "/close": "up: yes"'),
        ("/hangs-up", r"it accepted the connection and closed it without an answer"),
    ],
)
async def test_another_page(bench: Servers, path: str, words: str) -> None:
    server = await bench.program(sys.executable, "-c", PAGES, "PORT")
    server.write("go")
    with anyio.fail_after(60):
        await server.until_ready(HttpReady())()
        with pytest.raises(NotReady, match=f"^{re.escape(words)}$"):
            await check(HttpReady(path=path, expect="maybe"), HOST, server.port)


async def test_what_is_not_http(bench: Servers) -> None:
    server = await bench.start("--say", "+PONG\r\n\r\n")
    with anyio.fail_after(60):
        await server.until_ready(TcpReady(send="x\n", expect="PONG"))()
        with pytest.raises(NotReady, match="which is not HTTP"):
            await check(HttpReady(), HOST, server.port)


async def test_http_server_of_python(bench: Servers) -> None:
    server = await bench.program(sys.executable, "-m", "http.server", "--bind", "::1", "PORT")
    server.write("here.txt")
    ready = HttpReady(expect=r">here\.txt<")
    with anyio.fail_after(60):
        await server.until_ready(ready, "::1")()
    await check(ready, "::1", server.port)
    with pytest.raises(NotReady, match=r'it answered 404 "File not found" to GET "/nowhere"'):
        await check(HttpReady(path="/nowhere"), "::1", server.port)
    await check(HttpReady(path="/nowhere", status=(200, 404)), "::1", server.port)


# ZeroMQ


@pytest.mark.parametrize("host", [HOST, "::1"])
async def test_zmq_that_binds_late_gets_one_request(bench: Servers, host: str) -> None:
    pytest.importorskip("zmq")
    at = f"[{host}]" if ":" in host else host
    server = await bench.program(sys.executable, str(PROGRAMS / "probe_zmq.py"), at, "PORT")
    async with under_way(server.until_ready(ASK, host)) as done:
        await server.noted("nothing listens")
        await eventually(passed(1.0), "a second without a listener")
        assert not done.is_set()
        server.write("go")
    assert server.requests() == ["getVersion()"]
    await check(ASK, host, server.port)
    with pytest.raises(NotReady, match='it answered "ready", which is not what is expected'):
        await check(ZmqReady(send="x", expect="OMCompiler"), host, server.port)


async def test_zmq_that_is_stopped_for_a_while(bench: Servers) -> None:
    """Who asks a REP socket twice over one REQ socket is never answered again."""
    pytest.importorskip("zmq")
    server = await bench.program(sys.executable, str(PROGRAMS / "probe_zmq.py"), HOST, "PORT", "answer")
    server.write("go")
    async with under_way(server.until_ready(ASK)) as done:
        await server.noted("it accepted the connection and answered nothing")
        await eventually(server.requests, "the request")
        await eventually(passed(1.0), "a second of silence")
        assert not done.is_set()
        server.write("answer")
    assert server.requests() == ["getVersion()"]


async def test_zmq_and_a_server_that_hangs_up_at_first(bench: Servers) -> None:
    pytest.importorskip("zmq")
    server = await bench.start("--drop-until", "go")
    async with never(server.until_ready(ASK)):
        await server.noted("it closed the connection without a ZeroMQ answer")
        await eventually(lambda: len(server.requests()) > 3, "new connections")
    for number in range(300):  # however it is timed, and whoever gave up before, nothing hangs
        with anyio.move_on_after(0.0002 * (number % 9)), suppress(NotReady):
            await check(ASK, HOST, server.port)
        with anyio.fail_after(60), pytest.raises(NotReady, match="without a ZeroMQ answer"):
            await check(ASK, HOST, server.port)


async def test_zmq_connects_once_however_busy_the_daemon_is(bench: Servers) -> None:
    """Left to itself it would connect again every 100 ms, to whoever has the port by then."""
    pytest.importorskip("zmq")
    server = await bench.start("--drop-until", "never")
    await until_listening(server.up, HOST, server.port, server.notes.append)

    async def ask() -> None:
        with pytest.raises(NotReady, match="without a ZeroMQ answer"):
            await check(ASK, HOST, server.port)

    async with under_way(ask):
        for _ in range(3):  # it is under way, and has not heard yet what became of it
            await anyio.lowlevel.checkpoint()
        wait_until(passed(0.5), "half a second in which the event loop stands still")
    assert server.requests() == ["1 connected"]


async def test_zmq_and_a_server_that_is_none(bench: Servers) -> None:
    pytest.importorskip("zmq")
    needs("redis-server")
    server = await bench.program("redis-server", "--port", "PORT", "--bind", HOST, "--save", "")
    async with never(server.until_ready(ASK)):
        await server.noted("it accepted the connection and answered nothing")
        await eventually(passed(0.5), "half a second of silence")


async def test_zmq_and_nobody() -> None:
    pytest.importorskip("zmq")
    with anyio.fail_after(60), pytest.raises(NotReady, match="without a ZeroMQ answer"):
        await check(ASK, HOST, free_port())


async def test_without_pyzmq(bench: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zmq", None)
    server = await bench.start()
    for what in (server.until_ready(ASK), partial(check, ASK, HOST, server.port)):
        with anyio.fail_after(60), pytest.raises(NotReady, match=r'pip install "solvisor\[omc\]"'):
            await what()
