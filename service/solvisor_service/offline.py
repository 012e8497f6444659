"""Answers without a daemon: what a home says of its jobs, read from its database and folders.

Rules: nothing is written, no lock is taken, nothing is promised about tomorrow: a daemon that starts meanwhile finds
everything as it left it. The same questions are answered by the same code as on the socket, in this process. Orders are
for a daemon.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import anyio
from starlette.types import Message, Scope

from solvisor import config as configurations
from solvisor import machine, overrides
from solvisor.clock import now_us
from solvisor.config import Config
from solvisor.errors import ConfigError
from solvisor.events import Lost
from solvisor.history import History
from solvisor.home import Home
from solvisor.model import TERMINAL, Demand, Limits, State
from solvisor.pile import Bell
from solvisor.process import host
from solvisor.questions import Questions
from solvisor.recovery import restore
from solvisor.spool.reading import JobFolder
from solvisor.world import World

from .api.app import make_reader
from .client import Asked, Client
from .wire import Answer

_IN_MEMORY = 16 << 20
"""Bytes of an answer that are held in memory; more goes to a temporary file."""


class OfflineClient(Client):
    """Asks the home instead of its daemon; the configuration is needed for what is in force."""

    of_daemon = False

    def __init__(self, home: Path, config: Path) -> None:
        super().__init__(home)
        self._config = config

    @contextlib.contextmanager
    def _answered(self, asked: Asked) -> Iterator[Answer]:
        if asked.method != "GET" or asked.target.startswith(("/v1/status", "/v1/events")):
            raise self._not_running()
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as content:
            status, found = anyio.run(_ask, self._home, self._config, asked.target, content)
            content.seek(0)
            yield _Answer(status, found, content)


class _Answer:
    """The shape of an answer from a socket."""

    def __init__(self, status: int, headers: Mapping[str, str], content: IO[bytes]) -> None:
        self.status = status
        self.headers = headers
        self._content = content

    def read(self, amount: int | None = None, /) -> bytes:
        """As of a file."""
        return self._content.read() if amount is None else self._content.read(amount)

    def read1(self, amount: int, /) -> bytes:
        """As ``read``."""
        return self._content.read(amount)

    def may_rest(self, seconds: float | None) -> None:
        """It is all there."""

    def comes(self, _: float) -> bool:
        """It is all there."""
        return True


class _Still:
    """What questions need to know of an engine, where there is none: everything waits."""

    def __init__(self, config: Config, limits: Limits, history: History) -> None:
        self.config = config
        self.configured = limits
        self.bell = Bell()
        self.over = True
        self.world = World()
        jobs = history.live_jobs()
        batches = {name: history.batch(name) for job in jobs if (name := job.spec.batch) is not None}
        self.world.pauses = {pause.solver: pause for pause in history.pauses()}
        self.world.overrides = {override.name: override for override in history.overrides()}
        self.limits = overrides.in_force(limits, self.world.overrides.values())
        open_ids = {job.id for job in jobs if job.state not in TERMINAL}
        for job in jobs:
            demand = config.demand(job.spec) or Demand(job.spec.solver, 1, 0)
            unmet = frozenset(job.spec.after) & open_ids if job.state is State.QUEUED else frozenset()
            batch = batches.get(job.spec.batch or "")
            restore(self.world, job, demand, unmet, time.monotonic(), batch=batch)
        for job in jobs:
            if job.state is State.RUNNING and job.attempt is not None:  # its daemon died; the next one runs it again
                machine.apply(self.world, Lost(job.id, job.current.token, None, now_us()))


async def _ask(home_path: Path, config_path: Path, target: str, content: IO[bytes]) -> tuple[int, dict[str, str]]:
    """One GET, answered into ``content``; returns the status and the headers."""
    home = Home.at(home_path)
    try:
        config = configurations.load(config_path)
        limits = config.limits(host.usable_cpus(), host.total_memory_bytes())
    except ConfigError:  # what was can be read all the same, but limits are nothing else than what it says
        if target == "/v1/limits":
            raise
        config = Config(path=config_path)
        limits = config.limits(1, 0)
    with contextlib.closing(History.open(home.db)) as history:
        known = _Still(config, limits, history)
        questions = Questions(known=known, home=home, history=history)
        return await _call(make_reader(questions, JobFolder(home)), target, content)


async def _call(app: Any, target: str, content: IO[bytes]) -> tuple[int, dict[str, str]]:
    """Call an ASGI application as a server would."""
    path, _, query = target.partition("?")
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [],
        "client": _peer(),
        "server": ("solvisor", None),
    }
    status = 500
    headers: dict[str, str] = {}

    came = False

    async def receive() -> Message:
        nonlocal came
        if came:
            await anyio.sleep_forever()  # nobody goes away
        came = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
            for name, value in message["headers"]:
                headers[name.decode("latin-1").lower()] = value.decode("latin-1")
        else:
            content.write(message.get("body", b""))

    await app(scope, receive, send)
    return status, headers


def _peer() -> tuple[str, int] | None:
    """Who asks, as the socket would tell it."""
    if sys.platform == "win32":
        return None
    return "uid", os.getuid()
