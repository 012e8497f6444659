"""The TCP listener: open while it is configured, its port can be had and its token is good; if not, why is told.

Rules: it listens on a loopback address only. What keeps it closed is a problem of the status and is tried again; it
never keeps the daemon from running, nor takes connections from the Unix socket. This module must not know routes.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync as in_thread
from starlette.types import ASGIApp

from solvisor.model import Address

from .connection import TcpProtocol
from .listening import BACKLOG, serve
from .passes import Keys, TokenError, keys_in

TROUBLE: Final = "api: listen"
"""What the sentence about a listener that is closed is called among the troubles."""

RETRY_SECONDS: Final = 2.0

log = structlog.get_logger()


class Listener:
    """Serves on ``address`` with the token in ``token`` while both can be had.

    ``use`` tells it another address, or that the token may be another; ``opened`` is called whenever it is open with
    new keys, or closed.
    """

    def __init__(
        self, token: Path, trouble: dict[str, str], opened: Callable[[Address | None, Keys | None], None]
    ) -> None:
        self._token = token
        self._trouble = trouble
        self._opened = opened
        self._address: Address | None = None
        self._changed = anyio.Event()

    def use(self, address: Address | None) -> None:
        """Listen there from now on; ``None``: nowhere. The token is read again."""
        self._address = address
        self._changed.set()

    async def run(self, app: ASGIApp) -> None:
        """Serve until cancelled; ``app`` knows who asks by ``over_tcp``."""
        while True:
            self._changed = anyio.Event()
            address = self._address
            if address is None:
                self._trouble.pop(TROUBLE, None)
                await self._changed.wait()
                continue
            try:
                keys = await in_thread(keys_in, self._token)
                sock = listen(address)
            except (TokenError, OSError) as error:
                self._tell(address, error)
                with anyio.move_on_after(RETRY_SECONDS):
                    await self._changed.wait()
                continue
            self._trouble.pop(TROUBLE, None)
            await self._serve(app, sock, address, keys)

    async def _serve(self, app: ASGIApp, sock: socket.socket, address: Address, keys: Keys) -> None:
        """Until another address or another token holds: who came with the old one is cut off."""
        log.info("api.listening", address=address.authority)
        self._opened(address, keys)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(serve, app, sock, TcpProtocol)
                while address == self._address and await self._is_still(keys):
                    await self._changed.wait()
                    self._changed = anyio.Event()
                tasks.cancel_scope.cancel()
        finally:
            self._opened(None, None)
            sock.close()

    async def _is_still(self, keys: Keys) -> bool:
        try:
            return await in_thread(keys_in, self._token) == keys
        except (TokenError, OSError):
            return False

    def _tell(self, address: Address, error: TokenError | OSError) -> None:
        why = str(error)
        if isinstance(error, OSError):
            why = f"{error.strerror or error}; free it, or choose another port"
        where = address.authority
        text = f"[api] listen: nobody listens on {where}: {why}; it is tried again every {RETRY_SECONDS:g} s"
        if self._trouble.get(TROUBLE) != text:
            log.error("api.not_listening", address=where, text=text)
        self._trouble[TROUBLE] = text


def listen(address: Address) -> socket.socket:
    """A listening socket. Raises ``OSError``."""
    sock = socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        if sys.platform == "win32":  # what SO_REUSEADDR says there is that others may take the port over
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setblocking(False)
        sock.bind((address.host, address.port))
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
