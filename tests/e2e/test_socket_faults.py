"""Clients of the status socket that do harm, on purpose or not: too many, too slow, too large, ambiguous, or gone."""

from __future__ import annotations

import contextlib
import resource
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio.abc import ByteStream
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from daemon import Daemon
from socket_kit import BOUNDARY, MULTIPART, Http, TcpHttp, connected, file, multipart
from solvisor.model import Address
from solvisor.submission import SHORT_BYTES
from solvisor_service.api import asking, connection, problems
from solvisor_service.api.connection import PeerProtocol, TcpProtocol
from solvisor_service.api.listening import listening, serve
from solvisor_service.api.tcp import listen
from waiting import eventually, wait_until

STATUS = b"GET /v1/status HTTP/1.1\r\nHost: x\r\n"
POST = b"POST /v1/pause HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def in_work(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in (daemon.home / "work").iterdir())


# --- a server of its own, with little patience ----------------------------------------------------------------------


async def _large(_: Request) -> Response:
    async def content() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 100_000

    return StreamingResponse(content())


async def _body(request: Request) -> Response:
    return PlainTextResponse(repr(await asking.body_of(request, dict)))


async def _pieces(request: Request) -> Response:
    return PlainTextResponse(str(sum([len(chunk) async for chunk in asking.lively(request.stream())])))


def _posted(handler: problems.Answerer) -> Callable[[Request], Awaitable[Response]]:
    return partial(problems.answer, {"POST": handler})


@pytest.fixture(params=["socket", "tcp"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """Where the socket of a server shall be that waits for nobody longer than moments; ``None``: over TCP."""
    for module, name in [(connection, "HEAD_SECONDS"), (connection, "LINGER_SECONDS"), (asking, "BODY_SECONDS")]:
        monkeypatch.setattr(module, name, 0.3)
    for module in (connection, asking):
        monkeypatch.setattr(module, "STALLED_SECONDS", 0.3)
    return tmp_path / "s.sock" if request.param == "socket" else None


@contextlib.asynccontextmanager
async def _serving(path: Path | None) -> AsyncIterator[tuple[str, int] | str]:
    """Such a server; where it is."""
    app = Starlette(
        routes=[
            Route("/large", _large),
            Route("/body", _posted(_body), methods=["POST"]),
            Route("/pieces", _posted(_pieces), methods=["POST"]),
        ]
    )
    protocol: type[PeerProtocol] = PeerProtocol if path else TcpProtocol
    with contextlib.ExitStack() as stack:
        if path is None:
            sock = stack.enter_context(listen(Address("127.0.0.1", 0)))
        else:
            sock = stack.enter_context(listening(path))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, app, sock, protocol)
            yield sock.getsockname() if path is None else str(path)
            tasks.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def _connection(path: Path | None) -> AsyncIterator[ByteStream]:
    """To such a server."""
    async with _serving(path) as place:
        connecting = anyio.connect_unix(place) if isinstance(place, str) else anyio.connect_tcp(*place)
        async with await connecting as stream:
            yield stream


async def _not_found(stream: ByteStream) -> None:
    """Read the whole answer of a route that is not there."""
    answer = b""
    with anyio.fail_after(20):
        while not answer.endswith(b"\r\n\r\nNot Found"):
            answer += await stream.receive()
    assert answer.startswith(b"HTTP/1.1 404 "), answer


async def _answer(stream: ByteStream, seconds: float = 20) -> bytes:
    """All that comes until the other side closes."""
    answer = b""
    with anyio.fail_after(seconds), contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError):
        while True:
            answer += await stream.receive()
    return answer


async def _drip(stream: ByteStream, data: bytes, rest: float = 0.02) -> bytes:
    """Send byte by byte, the next ``rest`` seconds after the last, until all is sent or an answer begins; what came.

    Raises what the connection ended with, if nothing came.
    """
    answer, ended = b"", []
    over = anyio.Event()

    async def receive() -> None:
        nonlocal answer
        try:
            answer = await stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError) as error:
            ended.append(error)
        over.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        with contextlib.suppress(anyio.BrokenResourceError):  # it was closed: what came before is received
            for byte in data:
                await stream.send(bytes([byte]))
                with anyio.move_on_after(rest):
                    await over.wait()
                if over.is_set():
                    break
            else:
                tasks.cancel_scope.cancel()
        await over.wait()
    if ended:
        raise ended[0]
    return answer


async def test_fault_52_a_head_that_comes_byte_by_byte_has_a_deadline(path: Path | None) -> None:
    began = time.monotonic()
    async with _connection(path) as stream:
        answer = await _drip(stream, STATUS * 20)
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert 0.3 <= time.monotonic() - began < 10
        assert await _answer(stream) == b""  # and it is closed


async def test_fault_52_the_clock_of_each_head_begins_with_its_first_byte(
    path: Path | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", 1.5)
    async with _connection(path) as stream:
        for _ in range(3):  # together they take longer than one may, however quick the machine is
            assert await _drip(stream, b"GET / HT", 0.07) == b""
            await stream.send(b"TP/1.1\r\nHost: x\r\n\r\n")
            await _not_found(stream)


@pytest.mark.parametrize("target", ["/body", "/pieces"])
async def test_fault_52_a_body_that_does_not_come_has_a_deadline(path: Path | None, target: str) -> None:
    async with _connection(path) as stream:
        await stream.send(f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{{".encode())
        with anyio.fail_after(20):
            assert (await stream.receive()).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("length", [b"Content-Length: 100000\r\n", CHUNKED])
async def test_fault_52_the_rest_of_a_request_that_was_refused_is_not_waited_for(
    path: Path | None, length: bytes
) -> None:
    async with _connection(path) as stream:
        await stream.send(b"POST /nothing HTTP/1.1\r\nHost: x\r\n" + length + b"\r\n")
        await _not_found(stream)
        with anyio.fail_after(10), contextlib.suppress(anyio.BrokenResourceError, anyio.EndOfStream):
            while await _drip(stream, b"1\r\nx\r\n" if length == CHUNKED else b"x" * 10) == b"":
                pass


async def test_fault_52_what_comes_of_it_in_time_leaves_the_connection_open(path: Path | None) -> None:
    async with _connection(path) as stream:
        began = time.monotonic()
        while time.monotonic() < began + 2 * connection.LINGER_SECONDS:
            await stream.send(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            await _not_found(stream)
            await stream.send(b"{}")


async def test_fault_52_an_upload_may_take_long_as_long_as_it_goes_on(path: Path | None) -> None:
    async with _connection(path) as stream:
        await stream.send(b"POST /pieces HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n")
        answer = await _drip(stream, b"x" * 40)
        with anyio.fail_after(20):
            answer = answer or await stream.receive()
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_fault_53_an_answer_that_nobody_reads_is_given_up_and_bounded(path: Path | None) -> None:
    async with _serving(path) as place:
        with socket.socket(socket.AF_UNIX if isinstance(place, str) else socket.AF_INET) as sock:
            sock.connect(place)
            sock.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(lambda: _is_hung_up(sock), "it is cut off while nothing is read")
            size = 0
            with contextlib.suppress(ConnectionResetError):
                while piece := sock.recv(1 << 16):
                    size += len(piece)
        assert size < 10_000_000, "what the kernel took, and no more"


def _is_hung_up(sock: socket.socket) -> bool:
    import select

    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)  # an error is told unasked
    return bool(poll.poll(0))


# --- the real one ---------------------------------------------------------------------------------------------------


def test_fault_51_a_flood_of_connections_leaves_descriptors_for_jobs(
    door: Http, http: Http, tcp: TcpHttp, daemon: Daemon
) -> None:
    other = tcp if door is http else http
    pid = daemon.running.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    fds = Path(f"/proc/{pid}/fd")
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (64, before[1]))
    try:
        with contextlib.ExitStack() as flood:
            for _ in range(200):
                sock = flood.enter_context(door.connected())
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    sock.sendall(STATUS)  # its head never ends
            assert door.get("/v1/status").status == 503
            assert other.get("/v1/status").status == 200, "nobody is shut out who comes another way"
            found = len(daemon.manifests())
            daemon.drop("amid.sh", "exit 0\n")
            wait_until(lambda: len(daemon.manifests()) > found, "the job is done amid the flood")
            assert len(list(fds.iterdir())) < 64
        wait_until(lambda: door.get("/v1/status").status == 200, "room again")
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_fault_51_streams_leave_room_for_questions(door: Http, http: Http, tcp: TcpHttp) -> None:
    """At the door by which they came, and at the other."""
    other = tcp if door is http else http
    with contextlib.ExitStack() as flood:
        for _ in range(connection.CONNECTIONS_OF_USER // 2 if door is http else connection.CONNECTIONS_OF_TCP // 2):
            sock = flood.enter_context(door.connected())
            sock.sendall(b"GET /v1/events HTTP/1.1\r\n" + door.head + b"\r\n")
            assert sock.recv(15) == b"HTTP/1.1 200 OK"
        for _ in range(10):
            refused = door.get("/v1/events")
            assert (refused.status, refused.code) == (503, "unavailable")
        assert "streams" in refused.json["detail"]
        assert door.get("/v1/status").status == 200
        with other.connected() as sock:
            sock.sendall(b"GET /v1/events HTTP/1.1\r\n" + other.head + b"\r\n")
            assert sock.recv(15) == b"HTTP/1.1 200 OK"


def test_fault_51_one_user_leaves_room_for_others(http: Http) -> None:
    with contextlib.ExitStack() as flood:
        for _ in range(connection.CONNECTIONS_OF_USER):
            flood.enter_context(connected(http.path)).sendall(STATUS)
        answer = http.get("/v1/status")
        assert (answer.status, answer.code) == (503, "unavailable")
        assert "of this user" in answer.json["detail"]
    wait_until(lambda: http.get("/v1/status").status == 200, "room again")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (STATUS + b"X: " + b"x" * (16 << 20) + b"\r\n\r\n", 431),
        (b"GET /" + b"x" * (1 << 20) + b" HTTP/1.1\r\n\r\n", 431),
        (POST + b"Content-Length: 16777216\r\n\r\n" + b" " * (16 << 20), 413),
        (POST + CHUNKED + b"\r\n100000\r\n" + b" " * (1 << 20), 413),
    ],
    ids=["header", "target", "body", "chunked body"],
)
def test_fault_54_what_is_too_large_is_refused_and_not_held(
    door: Http, daemon: Daemon, data: bytes, status: int
) -> None:
    def peak() -> int:
        return int(Path(f"/proc/{daemon.running.pid}/status").read_text().split("VmHWM:")[1].split()[0]) << 10

    before = peak()
    data = data.replace(b"Host: x\r\n", door.head)
    with door.connected() as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is refused before all of it was read
            sock.sendall(data)
        answer = sock.recv(1000)
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
    assert peak() - before < 8 << 20
    assert door.get("/v1/status").status == 200


PAUSE = POST


@pytest.mark.parametrize(
    "data",
    [
        PAUSE + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
        PAUSE + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
        PAUSE + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
        PAUSE + b"Content-Length: 2, 3\r\n\r\n{} ",
        PAUSE + b"Content-Length: +2\r\n\r\n{}",
        PAUSE + b"Content-Length: 0x2\r\n\r\n{}",
        PAUSE + b"Content-Length : 2\r\n\r\n{}",
        PAUSE + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        PAUSE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        PAUSE + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
        PAUSE + CHUNKED + b"\r\n-1\r\n\r\n",
        PAUSE + CHUNKED + b"\r\nfffffffffffffffffffffff\r\n",
    ],
    ids=lambda data: data[len(PAUSE) :].replace(b"\r\n", b" ").decode(),
)
def test_fault_55_a_request_with_two_lengths_is_refused_and_closed(door: Http, data: bytes) -> None:
    """What follows may be a second request for one reader and the body of the first for another: nobody answers it."""
    answer = door.raw((data + STATUS + b"\r\n").replace(b"Host: x\r\n", door.head), end=False)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 ")), answer
    assert answer.count(b"HTTP/1.1 ") == 1, answer
    assert door.get("/v1/status").json["paused"] == []


def test_fault_56_a_client_that_dies_at_any_byte_has_its_job_or_none(door: Http, http: Http, daemon: Daemon) -> None:
    """With the last byte it may be a job; sent again with its key it is that very job."""
    way = "unix" if door is http else "tcp"
    short = multipart(file(f"{way}.sh", b"exit 0\n"))
    long = multipart(file(f"{way}.sh", b"exit 0\n" + b"#" * 2 * SHORT_BYTES))

    def request(key: str, body: bytes = short) -> bytes:
        head = f"POST /v1/jobs HTTP/1.1\r\n{door.head.decode()}Content-Type: {MULTIPART['Content-Type']}\r\n"
        return f"{head}Idempotency-Key: {key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body

    def begun(body: bytes, cuts: Sequence[int]) -> int:
        """How many got as far as the disk, of requests that end after so many bytes."""
        with contextlib.ExitStack() as half:
            for cut in cuts:
                half.enter_context(door.connected()).sendall(request(f"{way}-{cut:03}", body)[:cut])
            for _ in range(5):  # by then they are being taken in
                door.get("/v1/status")
            return len(in_work(daemon))

    whole = request(f"{way}-000")
    assert BOUNDARY.encode() in whole
    wait_until(lambda: not in_work(daemon), "nothing is under way")
    for start in range(0, len(whole), 40):
        assert begun(short, range(start, min(start + 40, len(whole)))) == 0
    assert begun(long, range(SHORT_BYTES // 2, len(long), len(long) // 20)) > 0
    wait_until(lambda: not in_work(daemon), "all of them are cleared away")
    assert not [row for row in http.get("/v1/jobs?limit=1000").json["jobs"] if row["name"].startswith(f"{way}")]
    for _ in range(5):
        with door.connected() as sock:
            sock.sendall(whole)
    answer = door.send(file(f"{way}.sh", b"exit 0\n"), key=f"{way}-000")
    assert answer.status in (200, 201), answer
    assert http.get(f"/v1/jobs/{answer.json['id']}?wait=30").json["state"] == "succeeded"
    made = [row["id"] for row in http.get("/v1/jobs?limit=1000").json["jobs"] if row["name"].startswith(f"{way}")]
    assert made == [answer.json["id"]]
