"""The socket and the server on it: who may connect, and who is asking.

Rules: the socket appears under its name only when it is ready, with its mode, in a folder that is ours; what lies there
and is no socket is never removed. It is open to its owner alone, and to the members of one group where one is given.
Every request carries the uid and the groups of its peer, told by the kernel. This module must not know routes.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog
import uvicorn
from starlette.types import ASGIApp

from solvisor.errors import SolvisorError
from solvisor.names import SOCKET_PATH_MAX

from .access import who_of
from .connection import HEAD_MAX, PeerProtocol, unambiguous
from .gate import dressed

BACKLOG = 128
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
def listening(path: Path, gid: int | None = None) -> Iterator[socket.socket]:
    """A listening socket at ``path``, open to its owner and the group ``gid``; its name goes with it.

    Raises ``SocketError``.

    One whose path is too long for a socket is made through its folder; programs that cannot do so use a relative path.
    """
    if sys.platform == "win32":
        raise SocketError("the status socket is not there on Windows yet")
    from .modes import open_socket

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
            with contextlib.suppress(PermissionError):  # told by ``modes.admit``
                open_socket(temporary, folder_fd, gid)
            sock.listen(BACKLOG)
            os.rename(temporary, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
        except OSError as error:
            raise SocketError(f"the status socket {path} cannot be made: {error.strerror or error}") from error
        cleanup.callback(_let_go, path.name, folder_fd, path.parent)
        if len(os.fsencode(path)) > SOCKET_PATH_MAX:
            log.warning(
                "socket.long_path",
                path=str(path),
                text=f"longer than {SOCKET_PATH_MAX} bytes: solvisor reaches it all the same, "
                "other programs from its folder",
            )
        yield sock


def _address(path: Path, folder_fd: int) -> str:
    return str(path) if len(os.fsencode(path)) <= SOCKET_PATH_MAX else f"/proc/self/fd/{folder_fd}/{path.name}"


def _remove_socket(name: str, folder_fd: int, folder: Path) -> None:
    """Remove what an earlier life left: the lock of the home says that nobody listens there."""
    try:
        found = os.stat(name, dir_fd=folder_fd, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise SocketError(f"{folder / name} is in the way of the status socket and is no socket; remove it")
    os.unlink(name, dir_fd=folder_fd)


def _let_go(name: str, folder_fd: int, folder: Path) -> None:
    """Remove our own; where that cannot be, the next life will, and what ended this one is told."""
    with contextlib.suppress(OSError, SocketError):
        _remove_socket(name, folder_fd, folder)


async def user_of(scope: Any) -> str | None:
    """The name of the user who asks (the uid where it has none); ``None`` where nobody tells."""
    who = who_of(scope)
    if who is not None and who.user is not None:
        return who.user
    uid = who.uid if who is not None else uid_of(scope)
    if uid is None:
        return None
    name = _names.get(uid) or await anyio.to_thread.run_sync(name_of, uid)  # it may have to ask a server
    if name is None:
        return str(uid)
    _names[uid] = name
    return name


def uid_of(scope: Any) -> int | None:
    """The uid of the peer, where it is known: over TCP it is not."""
    client = scope.get("client")
    return int(client[1]) if client is not None and client[0] == "uid" else None


_names: dict[int, str] = {}


def name_of(uid: int) -> str | None:
    """The name of a user, if there is one. Blocks."""
    if sys.platform != "win32":
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(uid).pw_name
    return None


class _Server(uvicorn.Server):
    """A server that leaves the signals to the daemon, and ends with it: answers under way are still given.

    It does not wake ten times a second to look at the time, as its base does: whoever answers looks then.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do nothing."""
        yield

    async def main_loop(self) -> None:
        """Serve until cancelled."""
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.shutdown()
            raise


async def serve(app: ASGIApp, sock: socket.socket, protocol: type[PeerProtocol] = PeerProtocol) -> None:
    """Answer on ``sock`` until cancelled. Whoever connects here is counted apart from those elsewhere."""
    config = uvicorn.Config(
        dressed(unambiguous(app)),
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",  # what is no good HTTP is told to who sent it
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        h11_max_incomplete_event_size=HEAD_MAX,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    await _Server(config).serve(sockets=[sock])
