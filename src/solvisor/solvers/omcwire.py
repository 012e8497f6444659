"""The line to one ``omc``: where it listens, what is asked, what it answers, and what of that the logs of a job get.

Rules: one request at a time, sent once and its answer awaited to the end; a wait that was cancelled leaves the line
useless, since the next answer would be that of the last request. A socket never connects again, lest it talk to
whoever has the port next. After every call for a job the buffer of errors is read, which empties it. pyzmq is imported
only when it is needed. This module must not know what a job is to do.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from anyio import to_thread

from solvisor import probe
from solvisor.errors import NotReady, ServerBroken, SpawnError, Unreached
from solvisor.filetext import open_regular
from solvisor.interfaces import Up, Work
from solvisor.signs import Signs
from solvisor.tables import show

from . import modelica

HOST: Final = "127.0.0.1"
"""omc listens nowhere else."""

_SAID_BYTES: Final = 64 << 10
_ENDPOINT: Final = re.compile(rb"tcp://127\.0\.0\.1:([0-9]{1,5})")


def need_zmq() -> None:
    """Raise ``SpawnError`` if pyzmq is not installed."""
    if importlib.util.find_spec("zmq") is None:
        text = 'omc is talked to with pyzmq, which is not installed; install it with pip install "solvisor[omc]"'
        raise SpawnError("pyzmq_missing", text)


async def find_port(up: Up, suffix: str, note: Callable[[str], None]) -> int:
    """The port that omc picked. It prints the name of a file, which ends in ``suffix``, and that holds the port.

    Tries until cancelled. The file comes to be before it is written, the printed line only after it.
    """
    said = Path(up.stdout)
    signs = Signs([said])
    for pause in probe.pauses():
        found = await to_thread.run_sync(_look, said, suffix)
        if isinstance(found, int):
            return found
        note(found)
        await signs.rest(pause)
    raise AssertionError("pauses never end")


def _look(stdout: Path, suffix: str) -> int | str:
    """The port, or what is missing."""
    try:
        with open_regular(stdout) as file:
            said = file.read(_SAID_BYTES)
        line = re.search(rb"Dumped server port in file: (.*\.port\." + re.escape(suffix.encode()) + rb")", said)
        if line is None:
            return "it did not print where its port is"
        with open_regular(Path(line[1].decode())) as file:
            text = file.read(100)
    except (OSError, UnicodeDecodeError) as error:
        return f"its port cannot be read: {error}"
    endpoint = _ENDPOINT.fullmatch(text)
    return int(endpoint[1]) if endpoint else f"its port file holds {show(text.decode(errors='replace'))}"


class Wire:
    """A connection to the omc that listens on ``port``. Raises ``ServerBroken``."""

    def __init__(self, port: int) -> None:
        import zmq
        import zmq.asyncio

        self._fault: type[Exception] = zmq.ZMQError
        self._context = zmq.asyncio.Context()
        try:
            self._socket: Any = self._context.socket(zmq.REQ)
            self._socket.setsockopt(zmq.LINGER, 0)
            self._socket.setsockopt(zmq.RECONNECT_IVL, -1)
            self._socket.connect(f"tcp://{HOST}:{port}")
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise ServerBroken(f"there is no connecting to omc: {error}") from None
        self._useless = False

    def need(self) -> None:
        """Raise ``Unreached`` if nothing can be asked any more."""
        if self._useless:
            raise Unreached("the connection to omc was given up when an earlier request was not answered")

    async def ask(self, request: str) -> str:
        """The answer to a request. Raises ``Unreached`` if an earlier one was never answered, and ``ServerBroken``."""
        self.need()
        self._useless = True
        try:
            await self._socket.send(request.encode(errors="surrogateescape"))
            reply: bytes = await self._socket.recv()
        except self._fault as error:
            raise ServerBroken(f"the connection to omc failed: {error}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._context.closed and (task is None or not task.cancelling()):
                raise ServerBroken("the connection to omc was closed meanwhile") from None  # who closed it cancelled us
            raise
        self._useless = False
        return reply.decode(errors="replace")

    async def quit(self) -> bool:
        """Ask omc to end. Whether that could be sent: the answer may never come."""
        if self._useless:
            return False
        self._useless = True
        with suppress(self._fault):
            await self._socket.send(b"quit()")
            return True
        return False

    def close(self) -> None:
        """Let go of the connection; idempotent."""
        self._useless = True
        self._context.destroy(linger=0)


class Session:
    """What is said to one omc, and where the logs of the job are that it is said for."""

    def __init__(self, wire: Wire, log_max: int) -> None:
        self.wire = wire
        self.version = ""
        self.libraries = ""
        """Where it looks for libraries."""
        self._log_max = log_max

    async def greet(self, options: Sequence[str]) -> None:
        """The first exchange with a new server. Raises ``NotReady``, ``BadReply``, ``ServerBroken``."""
        self.version = await self.asked_version()
        self.libraries = modelica.as_text(await self.wire.ask("getModelicaPath()"))
        for option in options:
            if not modelica.as_bool(await self.wire.ask(f"setCommandLineOptions({modelica.quote(option)})")):
                reason = modelica.first_error(await self.errors(), "") or "it did not say why"
                raise NotReady(f"omc does not take the option {show(option)}: {reason}; correct options")

    async def asked_version(self) -> str:
        """Its version. Raises ``NotReady`` if that is not what it answers."""
        try:
            return modelica.as_text(await self.wire.ask("getVersion()"))
        except (modelica.BadReply, ServerBroken, Unreached) as error:
            raise NotReady(str(error)) from None

    async def errors(self) -> str:
        """The errors and warnings since the last time."""
        return modelica.as_text(await self.wire.ask("getErrorString()"))

    async def told(self, request: str, work: Work) -> tuple[str, str]:
        """The answer to a request for a job, and the errors it left, which go to its log."""
        reply = await self.wire.ask(request)
        errors = await self.errors()
        await self.log(work, "stderr.log", errors)
        return reply, errors

    async def go_to(self, folder: Path, work: Work) -> None:
        """Make ``folder`` the working folder of the server. Raises ``ServerBroken``."""
        reply, errors = await self.told(f"cd({modelica.quote(str(folder))})", work)
        if errors or modelica.as_text(reply).startswith("Error, "):
            raise ServerBroken(f"omc cannot work in {folder}: {errors.strip() or reply.strip()}")

    async def log(self, work: Work, name: str, text: str) -> int:
        """Append to a log of the job; how many bytes of a text that is too long were left out of its middle."""
        if not text:
            return 0
        data = text.encode(errors="replace")
        cut = len(data) - self._log_max
        if cut > 0:
            kept = self._log_max // 2
            data = data[:kept] + f"\n... {cut} bytes were left out here ...\n".encode() + data[kept + cut :]
        await to_thread.run_sync(_append, work.folder / name, data)
        return max(0, cut)


def _append(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    with os.fdopen(os.open(path, flags, 0o640), "ab") as file:
        file.write(data)
