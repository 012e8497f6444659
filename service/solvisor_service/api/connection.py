"""One connection, to the status socket or over TCP: whose it is, and how long it may keep others waiting.

Rules: whoever connects is bounded in number (by user, and by the descriptors the daemon may have, most of which are for
jobs) and in time: a request's head by a deadline from its first byte, an answer that nobody reads by a rest without
progress. What is no good HTTP is answered with a problem document and closed. This module must not know routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import http
import socket
import struct
import sys

import h11
import msgspec
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from solvisor.views import Problem

CONNECTIONS_MAX = 128
"""Connections at once; more are answered with 503. Each may hold five descriptors, and there may be but 1,024."""

CONNECTIONS_OF_USER = 64
"""Of these, so many of one user: one who asks too much leaves room for the others."""

CONNECTIONS_OF_TCP = 48
"""Connections over TCP at once, of all users: nobody says whose they are before their first request."""

DESCRIPTORS_SHARE = 8
DESCRIPTORS_SHARE_OF_TCP = 20
"""There is at most one connection for so many descriptors that the daemon may have."""

HEAD_SECONDS = 5.0
"""How long the head of a request may take from its first byte on, however slowly it comes."""

STALLED_SECONDS = 30.0
"""How long an answer may wait for its reader to take more of it."""

HEAD_MAX = 64 << 10
"""Bytes in the head of a request."""

AT_ONCE = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""For SO_LINGER: a close forgets what was not sent."""

SO_PEERGROUPS = 59
GROUPS_AT_ONCE, GROUPS_MAX = 256, 65536
"""Linux: asm-generic/socket.h, and NGROUPS_MAX of linux/limits.h."""


PAGE_RULES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
)
"""What a browser lets the page do (its Content-Security-Policy): nothing from elsewhere, and nothing within it."""

HEADERS = {
    "Content-Security-Policy": PAGE_RULES,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
"""In every answer that does not say otherwise."""

LINGER_SECONDS = 5.0
"""How long the rest of a request may take that is answered already: it is read, so that its sender sees the answer."""


def problem_bytes(status: int, text: str, code: str) -> bytes:
    """A whole answer, which closes the connection."""
    phrase = http.HTTPStatus(status).phrase
    body = msgspec.json.encode(Problem(title=phrase.lower(), status=status, detail=text, code=code))
    head = f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class PeerProtocol(H11Protocol):
    """HTTP whose ``client`` is the uid of the peer instead of an address that Unix sockets do not have.

    A connection that asks nothing is closed like one that has nothing more to ask.
    """

    _head_deadline: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None
    _lingering: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in its base
        """Find out who it is, and whether there is room."""
        super().connection_made(transport)
        self._know(transport.get_extra_info("socket"))
        crowd = self._crowd()
        if crowd:
            transport.write(problem_bytes(503, f"{crowd} are open already; try again in a moment", "unavailable"))
            transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _know(self, peer: socket.socket | None) -> None:
        """Ask the kernel who connected: that user and their groups at that moment, whatever they became since."""
        if sys.platform == "linux" and peer is not None:
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            _, uid, gid = struct.unpack("3i", credentials)
            self.client = ("uid", uid)
            self.app_state = {"groups": frozenset({gid, *peer_groups(peer)})}

    def _crowd(self) -> str:
        """Which connections are too many with this one, in words."""
        most = most_connections()
        if len(self.connections) > most:
            return f"{most} connections"
        if sum(getattr(other, "client", None) == self.client for other in self.connections) > CONNECTIONS_OF_USER:
            return f"{CONNECTIONS_OF_USER} connections of this user"
        return ""

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything that waits for it."""
        for timer in (self._head_deadline, self._stalled, self._lingering):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        """Take more of a request; the clock of its head runs from its first byte."""
        super().data_received(data)
        if self._lingering is not None and not self._lingers():
            self._lingering.cancel()
            self._lingering = None
        if self.conn.their_state is not h11.IDLE:
            if self._head_deadline is not None:
                self._head_deadline.cancel()
                self._head_deadline = None
        elif self._head_deadline is None:
            self._head_deadline = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        self._head_deadline = None
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            text = f"the head of the request was not there after {HEAD_SECONDS:g} s"
            self.transport.write(problem_bytes(408, text, "slow"))
            self.transport.close()

    def on_response_complete(self) -> None:
        """The answer is given; what is left of its request is not waited for without end, however it trickles in."""
        super().on_response_complete()
        if self._lingers() and not self.transport.is_closing():
            self._lingering = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _lingers(self) -> bool:
        """Whether a request is answered that is still coming."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def pause_writing(self) -> None:
        """The reader takes nothing just now."""
        super().pause_writing()
        self._stalled = self.loop.call_later(STALLED_SECONDS, self._give_up)

    def _give_up(self) -> None:
        """Cut the connection; over TCP the kernel would go on holding, for minutes, what nobody takes."""
        self._forget_unsent()
        self.transport.abort()

    def _forget_unsent(self) -> None:
        """Nothing of it is kept on a Unix socket."""

    def resume_writing(self) -> None:
        """The reader took something."""
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        """Nothing more was asked; whoever did not read the last answer by now will not."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self._give_up()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no good HTTP, and close."""
        error = sys.exc_info()[1]  # it is called where that is handled
        what = str(error).partition(": b")[0]  # a line that is no header may hold a token
        status, text, code = 400, f"{msg} {what}", "usage"
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            status, text, code = 431, f"the head of a request has at most {HEAD_MAX >> 10} KiB", "too_large"
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer is under way
            self.transport.write(problem_bytes(status, text, code))
        if self.cycle is not None:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()


class TcpProtocol(PeerProtocol):
    """The same over TCP, where the kernel does not say who connected."""

    def _know(self, peer: socket.socket | None) -> None:
        """Nothing: a bearer tells, request by request."""

    def _forget_unsent(self) -> None:
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):  # it is gone already
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)

    def _crowd(self) -> str:
        most = most_over_tcp()
        return f"{most} connections over TCP" if len(self.connections) > most else ""


def peer_groups(peer: socket.socket) -> tuple[int, ...]:
    """The supplementary groups that the peer of a Unix socket had when it connected."""
    size = struct.calcsize("I")
    try:
        data = peer.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, GROUPS_AT_ONCE * size)
    except OSError as error:
        if error.errno != errno.ERANGE:
            return ()
        data = _many_groups(peer, size)
    return struct.unpack(f"{len(data) // size}I", data)


def _many_groups(peer: socket.socket, size: int) -> bytes:
    """The same for somebody in more groups than Python asks for at once."""
    buffer = ctypes.create_string_buffer(GROUPS_MAX * size)
    length = ctypes.c_uint(len(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    refused = libc.getsockopt(peer.fileno(), socket.SOL_SOCKET, SO_PEERGROUPS, buffer, ctypes.byref(length))
    return b"" if refused else buffer.raw[: length.value]


def most_connections(most: int = CONNECTIONS_MAX, share: int = DESCRIPTORS_SHARE) -> int:
    """How many connections there may be, so that jobs do not lack descriptors."""
    if sys.platform == "win32":
        return most
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // share))


def most_over_tcp() -> int:
    """The same for the TCP listener."""
    return most_connections(CONNECTIONS_OF_TCP, DESCRIPTORS_SHARE_OF_TCP)


def unambiguous(app: ASGIApp) -> ASGIApp:
    """The same application, but that a request which others may read otherwise than we do gets 400 and is closed.

    Who stands between may have believed the other length, and see two requests where we see one (RFC 9112, 6.1); or may
    have believed the host in the target, which goes before that in the header (3.2.2).
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        text = ""
        if {name for name, _ in scope.get("headers", ())} >= {b"content-length", b"transfer-encoding"}:
            text = "Content-Length and Transfer-Encoding exclude each other"
        elif not scope.get("raw_path", b"/").startswith(b"/"):
            text = "the target of a request begins with a slash"
        if not text:
            await app(scope, receive, send)
            return
        body = msgspec.json.encode(Problem(title="bad request", status=400, detail=text, code="usage"))
        headers = [(b"content-type", b"application/problem+json"), (b"connection", b"close")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return answer
