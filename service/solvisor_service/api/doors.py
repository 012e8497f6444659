"""Where people come in: the Unix socket, and the TCP listener beside it; whom they let in, as the configuration says.

Rules: whatever the configuration asks for and cannot be had is told among the troubles; the daemon runs all the same,
and nobody is let in who is not meant. This module must not know routes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from socket import socket
from typing import Final

import anyio
import structlog
from anyio.to_thread import run_sync as in_thread
from starlette.types import ASGIApp

from solvisor.config import Api
from solvisor.model import Address

from .access import Policy
from .gate import over_tcp
from .listening import listening, name_of, serve
from .passes import Keys
from .tcp import Listener

LOOK_UP_SECONDS: Final = 3.0
"""How long the start waits to hear who a user or a group is."""

GROUP_TROUBLE: Final = "api: group"
"""What the sentence about a group that cannot be let in is called among the troubles."""

log = structlog.get_logger()


class Doors:
    """The doors of one daemon: ``path`` is its Unix socket, ``token`` the file with the token of the TCP listener.

    ``prepare`` it, have it ``opened``, then ``serve``; ``use`` has another configuration hold.
    """

    def __init__(self, path: Path, token: Path, api: Api, trouble: dict[str, str]) -> None:
        self.policy = Policy()
        self._path = path
        self._api = api
        self._trouble = trouble
        self._listener = Listener(token, trouble, self._listening)
        self._is_open = False
        self._changed = anyio.Event()

    @property
    def page(self) -> str | None:
        """Where browsers find the page; ``None`` while nobody listens there."""
        origin = self.policy.origin
        return None if origin is None else f"{origin}/"

    async def prepare(self) -> None:
        """Find out whom the configuration means; a directory server that hangs is not waited for."""
        if sys.platform != "win32":
            owner = os.geteuid()
            name = None
            with anyio.move_on_after(LOOK_UP_SECONDS):
                name = await in_thread(name_of, owner, abandon_on_cancel=True)
            self.policy = Policy(owner=owner, owner_name=name or str(owner))
        with anyio.move_on_after(LOOK_UP_SECONDS) as looking:
            await self._follow()
        if looking.cancelled_caught:
            group = self._api.group
            text = f"who is in the group {group} was not said within {LOOK_UP_SECONDS:g} s; they are let in once it is"
            self._tell(f"[api] group: {text}")
            self.use(self._api)

    @contextlib.contextmanager
    def opened(self) -> Iterator[socket]:
        """The Unix socket, listening. Raises ``SocketError``."""
        with listening(self._path, self.policy.gid) as sock:
            self._is_open = True
            yield sock

    def use(self, api: Api) -> None:
        """Have ``api`` hold soon, and the group and the token looked up anew."""
        self._api = api
        self._changed.set()

    async def serve(self, app: ASGIApp, sock: socket, reviewed: Callable[[], None]) -> None:
        """Answer at both until cancelled; ``reviewed`` is called whenever others may be let in than before."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve, app, sock)
            tasks.start_soon(self._listener.run, over_tcp(app, lambda: self.policy))
            while True:
                await self._changed.wait()
                self._changed = anyio.Event()
                await self._follow()
                reviewed()

    async def _follow(self) -> None:
        api = self._api
        if api.group != self.policy.group:  # whoever was let in is shut out, however long it takes to hear who is now
            self.policy = self.policy._replace(group=api.group, gid=None)
        self.policy = self.policy._replace(hosts=api.hosts)
        self._listener.use(api.listen)
        gid = None
        if sys.platform != "win32":
            from .modes import group_id

            if api.group is not None:
                gid = await in_thread(group_id, api.group, abandon_on_cancel=True)
            self._tell(await in_thread(self._let_in, api.group, gid))
        self.policy = self.policy._replace(gid=gid)

    def _let_in(self, group: str | None, gid: int | None) -> str | None:
        """Open the Unix socket to the members of ``group``. Returns what keeps them out. Blocks."""
        if sys.platform == "win32":
            return None
        from .modes import admit

        trouble = admit(self._path, gid, group, self._is_open)
        if gid is None and group is not None:
            return f"[api] group: there is no group {group} on this machine; make it, then have this read again"
        return trouble

    def _tell(self, trouble: str | None) -> None:
        self._trouble.pop(GROUP_TROUBLE, None)
        if trouble:
            log.error("api.group", group=self._api.group, text=trouble)
            self._trouble[GROUP_TROUBLE] = trouble

    def _listening(self, address: Address | None, keys: Keys | None) -> None:
        self.policy = self.policy._replace(address=address, keys=keys)
