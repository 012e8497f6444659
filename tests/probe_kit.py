"""What the tests of readiness share: started servers, and a probe beside the test."""

from __future__ import annotations

import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from process_kit import Attempt, Attempts
from solvisor.backends.local import LocalBackend
from solvisor.interfaces import Site, Up
from solvisor.kinds import Ready, TcpReady
from solvisor.probe import until_ready
from waiting import eventually

HOST = "127.0.0.1"
PING = TcpReady(send="ping\n", expect="^pong$")


def free_port() -> int:
    """A port that nobody uses, outside the ranges of the kernel and of a daemon that was told none."""
    while True:
        port = random.randrange(24000, 30000)
        with socket.socket(socket.AF_INET6) as both:
            try:
                both.bind(("::", port))
            except OSError:
                continue
            return port


def passed(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed: for what must not happen meanwhile."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


class Server:
    """A started process tree that is a server, or may become one."""

    def __init__(self, attempt: Attempt, pid: int, port: int) -> None:
        folder = str(attempt.folder)
        place = Site("s-1", folder, folder, port)
        self.up = Up(place, attempt.spec.token, pid, attempt.spec.stdout, attempt.spec.stderr)
        self.port = port
        self.attempt = attempt
        self.notes: list[str] = []
        self._noted = 0

    def write(self, name: str, text: str = "", *, more: bool = False) -> None:
        """Write a file in its folder, as if it had."""
        with open(self.attempt.folder / name, "a" if more else "w") as file:
            file.write(text)

    def say(self, text: str, log: str = "stdout") -> None:
        """Print something, as if it had."""
        with open(getattr(self.up, log), "a") as file:
            file.write(text)

    def requests(self) -> list[str]:
        return self.attempt.read("requests").splitlines()

    async def noted(self, words: str) -> None:
        """Return once ``words`` are noted, after what this has seen before."""
        new = self._noted
        await eventually(lambda: any(words in note for note in self.notes[new:]), f"{words!r} in a note")
        self._noted = len(self.notes)

    async def more_notes(self) -> None:
        """Return after some more looks that found nothing."""
        enough = len(self.notes) + 3
        await eventually(lambda: len(self.notes) >= enough, "more looks")

    def until_ready(self, ready: Ready = PING, host: str = HOST) -> Callable[[], Awaitable[None]]:
        return lambda: until_ready(ready, self.up, host, self.port, self.notes.append)


class Servers:
    """Starts servers; made by ``servers``."""

    def __init__(self, backend: LocalBackend, folder: Path) -> None:
        self._backend = backend
        self._attempts = Attempts(folder)

    async def start(self, *options: str, address: str = HOST, port: int | None = None) -> Server:
        """``probe_server.py``; without ``port`` on a free one."""
        port = free_port() if port is None else port
        return await self._start(self._attempts.python("probe_server.py", address, str(port), *options), port)

    async def shell(self, script: str) -> Server:
        return await self._start(self._attempts.shell(script), 0)

    async def program(self, *argv: str) -> Server:
        """Any program; ``PORT`` in an argument stands for a free one."""
        port = free_port()
        return await self._start(self._attempts(*(element.replace("PORT", str(port)) for element in argv)), port)

    async def _start(self, attempt: Attempt, port: int) -> Server:
        handle = await self._backend.launch(attempt.ready)
        return Server(attempt, handle.pid, port)


@asynccontextmanager
async def servers(folder: Path) -> AsyncIterator[Servers]:
    """At the end all that was started is killed."""
    async with LocalBackend(kill_wait_seconds=20) as backend:
        yield Servers(backend, folder)


@asynccontextmanager
async def under_way(what: Callable[[], Awaitable[object]]) -> AsyncIterator[anyio.Event]:
    """``what`` beside the body, and waited for after it; the event says that it returned."""
    done = anyio.Event()

    async def run() -> None:
        await what()
        done.set()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            yield done


@asynccontextmanager
async def never(what: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """``what`` beside the body; it must not return before the end of that, and is cancelled then."""
    done = anyio.Event()

    async def run() -> None:
        await what()
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield
        assert not done.is_set()
        tasks.cancel_scope.cancel()
