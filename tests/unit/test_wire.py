"""The client's HTTP: how requests are framed, and answers whole, in pieces, broken off or no answers at all."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from solvisor_service import wire
from solvisor_service.wire import BrokenAnswer, Connection, Kept

OK = b"HTTP/1.1 200 OK\r\nX-Thing: a\r\nX-THING:  b \r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@contextlib.contextmanager
def talking() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection and its other end."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = Path(folder) / "s"
        listener.bind(str(path))
        listener.listen()
        with contextlib.closing(Connection(path, 5.0)) as connection:
            other, _ = listener.accept()
            with other:
                yield connection, other


def body_of(data: bytes, *, bytewise: bool = False) -> bytes:
    with talking() as (connection, other):

        def tell() -> None:
            for piece in [byte.to_bytes() for byte in data] if bytewise else [data]:
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=tell)
        thread.start()
        try:
            answer = connection.answer()
            assert (answer.status, answer.headers["x-thing"]) == (200, "b")
            return answer.read(2) + answer.read1(3) + answer.read()
        finally:
            thread.join()


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize(
    ("data", "body"),
    [
        (OK + b"Content-Length: 11\r\n\r\nhello world, and more", b"hello world"),
        (OK + b"Content-Length: 0\r\n\r\nmore", b""),
        (OK + b"\r\nall that comes", b"all that comes"),
        (CHUNKED + b"5\r\nhello\r\n6;x=y\r\n world\r\n0\r\nTrailer: 1\r\n\r\nmore", b"hello world"),
        (CHUNKED + b"0\r\n\r\n", b""),
        (OK.replace(b"\r\n", b"\n") + b"Content-Length: 1\n\n1", b"1"),
        (OK + b"Content-Length: 300000\r\n\r\n" + b"x" * 300_000, b"x" * 300_000),
    ],
    ids=["length", "empty", "to its end", "chunks", "no chunk", "bare line ends", "long"],
)
def test_a_body_ends_where_its_answer_says(data: bytes, body: bytes, bytewise: bool) -> None:
    assert body_of(data, bytewise=bytewise and len(data) < 1000) == body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"HTTP/1.1 20",
        b"220 smtp ESMTP\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        OK,
        OK + b"X-Thing",
        OK + b"A: b\r\n" * 200 + b"\r\n",
        OK + b"A: " + b"b" * 70_000 + b"\r\n\r\n",
        OK + b"Content-Length: 11\r\n\r\nhello",
        CHUNKED + b"5\r\nhello\r\n",
        CHUNKED + b"5\r\nhe",
        CHUNKED + b"5\r\nhello",
        CHUNKED + b"zz\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"-5\r\nhello\r\n0\r\n\r\n",
        CHUNKED + b"0\r\n",
    ],
)
def test_an_answer_whose_end_does_not_come_is_no_answer(data: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        body_of(data)


def test_what_was_read_whole_does_not_look_like_more() -> None:
    """A reader who asks whether something comes, and then reads, must not wait although it was told that it would."""
    with talking() as (connection, other):
        other.sendall(CHUNKED + b"5\r\nhello\r\n")
        answer = connection.answer()
        assert answer.comes(5.0)
        assert answer.read1(1 << 16) == b"hello"
        assert not answer.comes(0.0)
        other.sendall(b"5\r\nworld\r\n")
        assert answer.comes(5.0)
        assert answer.read1(2) == b"wo"
        assert answer.comes(0.0)
        assert answer.read1(10) == b"rld"
        other.sendall(b"0\r\n\r\n")
        assert answer.comes(5.0)
        assert answer.read1(10) == b""
        assert answer.comes(0.0), "its end is there to be read"


def test_a_read_waits_as_long_as_it_may() -> None:
    with talking() as (connection, other):
        other.sendall(CHUNKED)
        answer = connection.answer()
        answer.may_rest(0.01)
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            answer.read1(10)
        assert time.monotonic() - began < 4.0


@pytest.mark.parametrize(
    ("body", "sent"),
    [
        (None, b"\r\n"),
        (b"", b"Content-Length: 0\r\n\r\n"),
        (b"{}", b"Content-Length: 2\r\n\r\n{}"),
        ([b"one", b"", b"three"], b"Transfer-Encoding: chunked\r\n\r\n3\r\none\r\n5\r\nthree\r\n0\r\n\r\n"),
    ],
)
def test_a_request_as_it_is_sent(body: bytes | list[bytes] | None, sent: bytes) -> None:
    with talking() as (connection, other):
        connection.send("POST", "/v1/jobs?a=b", {"Idempotency-Key": "Ω"}, body)
        connection.close()
        with other.makefile("rb") as heard:
            head = "POST /v1/jobs?a=b HTTP/1.1\r\nHost: solvisor\r\nIdempotency-Key: Ω\r\n".encode()
            assert heard.read() == head + sent


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nb", "a\rb"])
def test_a_header_stays_one(value: str) -> None:
    with talking() as (connection, _), pytest.raises(ValueError, match="several"):
        connection.send("GET", "/", {"X": value})


# --- another request on the same connection -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "amount", "stays"),
    [
        (OK + b"Content-Length: 5\r\n\r\nhello", None, True),
        (OK + b"Content-Length: 0\r\n\r\n", None, True),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", None, True),
        (OK + b"Content-Length: 5\r\n\r\nhello", 4, False),
        (CHUNKED + b"5\r\nhello\r\n0\r\n\r\n", 5, False),
        (OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello", None, False),
        (OK + b"\r\nto its end", None, False),
    ],
    ids=["length", "empty", "chunks", "half of it", "without the last chunk", "told to close", "to its end"],
)
def test_a_connection_stays_if_its_answer_was_read_in_full(data: bytes, amount: int | None, stays: bool) -> None:
    with talking() as (connection, other):
        other.sendall(data)
        other.shutdown(socket.SHUT_WR)
        answer = connection.answer()
        answer.read(amount)
        assert answer.leaves_connection is stays


def test_a_kept_connection_is_taken_once() -> None:
    kept = Kept()
    with talking() as (connection, _):
        kept.put(connection)
        assert kept.take(1.0) is connection
        assert kept.take(1.0) is None


@pytest.mark.parametrize("what", ["closed", "more", "old"])
def test_a_connection_that_is_not_good_any_more_is_not_taken(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    with talking() as (connection, other):
        kept.put(connection)
        if what == "closed":
            other.close()
        elif what == "more":
            other.sendall(b"HTTP/1.1 408 Request Timeout\r\n")
        else:
            monkeypatch.setattr(wire, "KEPT_SECONDS", 0.0)
        assert kept.take(1.0) is None


def test_a_connection_that_was_reset_is_not_taken() -> None:
    kept = Kept()
    with talking() as (connection, other):
        connection.send("GET", "/", {})
        kept.put(connection)
        other.close()  # with the request unread
        assert kept.take(1.0) is None


def test_a_fork_does_not_ask_on_the_connections_of_its_parent() -> None:
    """It would get the parent's answers, and the parent its."""
    kept = Kept()
    with talking() as (connection, _):
        kept.put(connection)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if kept.take(1.0) is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert kept.take(1.0) is connection


def test_a_program_with_very_many_files_open_keeps_connections_too() -> None:
    most, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2048, limit), limit))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (most, limit))
        for _ in range(1024):  # more than select(2) can tell of
            stack.callback(os.close, os.open("/", os.O_RDONLY))
        connection, _ = stack.enter_context(talking())
        kept = Kept()
        kept.put(connection)
        assert kept.take(1.0) is connection


def test_no_more_than_a_few_connections_are_kept_and_none_after_the_end() -> None:
    kept = Kept()
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(talking()) for _ in range(4)]
        for connection, _ in ends:
            kept.put(connection)
        for _, other in ends[2:]:
            assert other.recv(1) == b""
        kept.close()
        for _, other in ends[:2]:
            assert other.recv(1) == b""
