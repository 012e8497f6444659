"""The socket and the server on it: who may connect, and who is asking.

Rules: the socket appears under its name only when it is ready, with its mode, in a folder that is ours; what lies there
and is no socket is never removed. Every request carries the uid of its peer, told by the kernel. This module must not
know routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import msgspec
import structlog
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from solvisor.errors import SolvisorError
from solvisor.views import Problem

PATH_MAX = 107
"""Bytes in the path of a Unix socket."""

BACKLOG = 128
CONNECTIONS_MAX = 128
"""Connections at once; more are answered with 503. Each may hold five descriptors, and there may be but 1,024."""

KEEP_ALIVE_SECONDS = 5
"""How long a connection may be idle."""

SHUTDOWN_SECONDS = 2
"""How long answers that are under way may take once the daemon ends."""

log = structlog.get_logger()

if sys.platform != "win32":
    import pwd


class SocketError(SolvisorError):
    """The status socket cannot be made."""

    code = "socket"
    exit_status = 2


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listening socket at ``path``, open to its owner and group; its name goes with it. Raises ``SocketError``.

    One whose path is too long for a socket is made through its folder; programs that cannot do so use a relative path.
    """
    if sys.platform == "win32":
        raise SocketError("the status socket is not there on Windows yet")
    folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    temporary = f".{path.name}.new"
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(os.close, folder_fd)
        for name in (path.name, temporary):
            _remove_socket(name, folder_fd, path.parent)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        cleanup.callback(sock.close)
        try:
            sock.bind(_address(path.parent / temporary, folder_fd))
            os.chmod(temporary, 0o660, dir_fd=folder_fd)
            sock.listen(BACKLOG)
            os.rename(temporary, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        except OSError as error:
            raise SocketError(f"the status socket {path} cannot be made: {error.strerror or error}") from error
        cleanup.callback(_remove_socket, path.name, folder_fd, path.parent)
        if len(os.fsencode(path)) > PATH_MAX:
            log.warning(
                "socket.long_path",
                path=str(path),
                text=f"longer than {PATH_MAX} bytes: solvisor reaches it all the same, other programs from its folder",
            )
        yield sock


def _address(path: Path, folder_fd: int) -> str:
    return str(path) if len(os.fsencode(path)) <= PATH_MAX else f"/proc/self/fd/{folder_fd}/{path.name}"


def _remove_socket(name: str, folder_fd: int, folder: Path) -> None:
    """Remove what an earlier life left: the lock of the home says that nobody listens there."""
    try:
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(f"{folder / name} is in the way of the status socket and is no socket; remove it")
    os.unlink(name, dir_fd=folder_fd)


async def user_of(scope: Any) -> str | None:
    """The name of the user who asks (the uid where it has none); ``None`` where the kernel does not tell."""
    client = scope.get("client")
    if client is None:
        return None
    uid = int(client[1])
    name = _names.get(uid) or await anyio.to_thread.run_sync(_name_of, uid)  # it may have to ask a server
    if name is None:
        return str(uid)
    _names[uid] = name
    return name


_names: dict[int, str] = {}


def _name_of(uid: int) -> str | None:
    if sys.platform != "win32":
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
    return None


def _crowded() -> bytes:
    """The whole answer to one connection too many."""
    text = f"{CONNECTIONS_MAX} connections are open already; try again in a moment"
    body = msgspec.json.encode(Problem(title="unavailable", status=503, detail=text, code="unavailable"))
    head = "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class _PeerProtocol(H11Protocol):
    """HTTP whose ``client`` is the uid of the peer instead of an address that Unix sockets do not have.

    A connection that asks nothing is closed like one that has nothing more to ask.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in its base
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if sys.platform == "linux" and peer is not None:
            credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            self.client = ("uid", struct.unpack("3i", credentials)[1])
        if len(self.connections) > CONNECTIONS_MAX:
            transport.write(_crowded())
            transport.close()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE_SECONDS, self.timeout_keep_alive_handler)


class _Server(uvicorn.Server):
    """A server that leaves the signals to the daemon, and ends with it: answers under way are still given."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield

    async def main_loop(self) -> None:
        """Serve until cancelled."""
        try:
            await super().main_loop()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.shutdown()
            raise


async def serve(app: ASGIApp, sock: socket.socket) -> None:
    """Answer on ``sock`` until cancelled."""
    config = uvicorn.Config(
        app,
        http=_PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    await _Server(config).serve(sockets=[sock])
