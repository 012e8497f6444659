"""The daemon's end of a warm server that takes jobs as lines of JSON: over a Unix socket, or over TCP.

Rules: the protocol is told in ``worker.py``. One question at a time; what breaks the order (a question given up, a word
unasked) breaks the talk, and the next question says why it was not sent. It is decided here whether a server can have
heard of a job. This module must not know how servers are started.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import Annotated, Any, Final

import anyio
import anyio.to_thread
import msgspec
from msgspec import Meta, Struct

from .clock import now_us
from .errors import NotReady, ServerBroken, SolvisorError, SpawnError, Unreached
from .interfaces import Work
from .kinds import WarmSolver
from .model import ExitFacts, Report, Usage
from .names import SOCKET_PATH_MAX, speaks_to_solvisor
from .params import Param
from .records import converter
from .tables import show

if sys.platform != "win32":
    from .process.logcap import CappedLog

LINE_MAX: Final = 16 << 20
"""Bytes of a question and of an answer."""

MESSAGE_MAX: Final = 4_000
"""Characters of the message of a failed job; the rest belongs in its logs."""

LOG_SECONDS: Final = (0.05, 1.0)
"""The first pause between two looks at the logs of a job, and the longest."""

_SECONDS = Annotated[float, Meta(ge=0)] | None


class Talk:
    """A connection to a server. Made by ``unix`` or ``tcp``."""

    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    @classmethod
    async def unix(cls, folder: str, name: str) -> Talk:
        """Connect to the socket ``name`` in ``folder``, whose path may be of any length. Raises ``Unreached``."""
        if sys.platform == "win32":
            raise Unreached(f"{folder}: there are no Unix sockets on Windows")
        loop = asyncio.get_running_loop()
        path = os.path.join(folder, name)
        try:
            if len(os.fsencode(path)) <= SOCKET_PATH_MAX:
                _, wire = await loop.create_unix_connection(lambda: _Wire(unix=True), path)
                return cls(wire)
            folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                path = f"/proc/self/fd/{folder_fd}/{name}"
                _, wire = await loop.create_unix_connection(lambda: _Wire(unix=True), path)
                return cls(wire)
            finally:
                os.close(folder_fd)
        except OSError as error:
            raise Unreached(f"nobody answers on {name} in {folder}: {error.strerror or error}") from error

    @classmethod
    async def tcp(cls, host: str, port: int) -> Talk:
        """Connect to a port. Raises ``Unreached``."""
        try:
            _, wire = await asyncio.get_running_loop().create_connection(lambda: _Wire(unix=False), host, port)
        except OSError as error:
            raise Unreached(f"nobody answers on port {port} of {host}: {error.strerror or error}") from error
        return cls(wire)

    async def ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Send a question and return the answer, whatever it says. Cancelled, it leaves the talk broken.

        Raises ``Unreached`` if the server cannot have heard the whole question, ``ServerBroken`` if it hung up on it or
        said what is no JSON object, ``SpawnError`` if the question is too long to be sent at all.
        """
        try:
            text = msgspec.json.encode(question)
        except UnicodeEncodeError:  # a folder whose name is not UTF-8
            text = json.dumps(question).encode()
        if len(text) >= LINE_MAX:
            raise SpawnError("request", f"the names of the job's files make {len(text) >> 20} MiB; give it fewer files")
        line = await self._wire.exchange(text + b"\n")
        try:
            return _decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            said = show(line[:200].decode(errors="replace").strip())
            self._wire.end(f"the server had answered {said}")
            raise ServerBroken(f"the server answered {said}, which is not an object of JSON") from None

    def close(self) -> None:
        """Hang up; idempotent."""
        self._wire.end("the connection to the server was closed")


_decoder: Final = msgspec.json.Decoder(dict[str, Any])


class _Wire(asyncio.Protocol):
    """Lines out and in. A future of our own is several times faster than streams."""

    def __init__(self, *, unix: bool) -> None:
        self._unix = unix
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._over: str | None = None  # why nothing can be asked any more
        self._waiter: asyncio.Future[bytes] | None = None
        self._chunks: list[bytes] = []
        self._size = 0

    async def exchange(self, line: bytes) -> bytes:
        """Send a line, return the one that comes back. Raises ``Unreached``, ``ServerBroken``."""
        if self._waiter is not None:
            raise RuntimeError("a question before the last one was answered")
        if self._over is not None or self._transport is None:
            raise Unreached(f"nothing was sent: {self._over}")
        self._waiter = self._loop.create_future()
        self._transport.write(line)
        try:
            return await self._waiter
        except asyncio.CancelledError:
            self.end("an earlier question to the server was given up")
            raise
        finally:
            self._waiter = None

    def end(self, why: str) -> None:
        """Hang up. ``why`` follows "nothing was sent:"; the first reason stays."""
        self._over = self._over or why
        self._chunks.clear()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = transport  # type: ignore[assignment]  # of a stream, so a whole Transport

    def data_received(self, data: bytes) -> None:
        """Called by the loop."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            self.end("the server had spoken without being asked")
            return
        end = data.find(b"\n")
        self._size += len(data) if end < 0 else end
        if self._size > LINE_MAX:
            waiter.set_exception(ServerBroken(f"result larger than {LINE_MAX >> 20} MiB; write it to a file"))
            self.end("the last answer of the server was too long")
        elif end < 0:
            self._chunks.append(data)
        else:
            waiter.set_result(b"".join([*self._chunks, data[:end]]))
            self._chunks.clear()
            self._size = 0
            if end + 1 < len(data):
                self.end("the server had said more than was asked")

    def eof_received(self) -> None:
        """Called by the loop. What is not sent by now never is: the loop would wait with it for a reader."""
        self._lost(unheard=self._transport is not None and self._transport.get_write_buffer_size() > 0)
        self.end("the server had hung up")

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        # The kernel refused the line, or says that it was never read to its end. On TCP a reset says less: a server
        # that crashed over the job may have sent it.
        self._lost(isinstance(error, BrokenPipeError) or (self._unix and isinstance(error, ConnectionResetError)))

    def _lost(self, unheard: bool) -> None:
        self._over = self._over or "the server had hung up"
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if unheard:
            waiter.set_exception(Unreached("the server hung up before it read what was sent"))
        else:
            waiter.set_exception(ServerBroken("the server hung up before it answered"))


# --- jobs -------------------------------------------------------------------------------------------------------------


class TalkChannel:
    """A ``Channel`` over a ``Talk``: pings, jobs as lines, quit. ``port`` is the one it listens on, if it does.

    ``version`` is of what carries jobs out, if that is known.
    """

    spent: str | None = None
    look: Callable[[], object] | None = None

    def __init__(self, talk: Talk, solver: WarmSolver, port: int | None = None, version: str | None = None) -> None:
        self.port = port
        self._talk = talk
        self._solver = solver
        self._version = version

    async def check(self) -> None:
        """Return once a ping was answered. Raises ``NotReady``."""
        try:
            answer = await self._talk.ask({"ping": 1})
        except (Unreached, ServerBroken) as error:
            raise NotReady(str(error)) from error
        if answer.get("ok") is not True:
            raise NotReady('the server answered a ping with something else than {"ok": true}')

    async def run(self, work: Work) -> ExitFacts:
        """Send a job, keep its logs below their cap, and return what the server says of it.

        Raises ``Unreached``, ``ServerBroken``, and ``SpawnError`` for a job that cannot be sent. Where it raises or is
        cancelled, the logs are not cut yet: do that when the server is gone.
        """
        question = job_request(work, self._solver.params)
        if sys.platform != "win32":
            async with LogWatch((question["stdout"], question["stderr"]), self._solver.log_max) as watch:
                facts = facts_of(await self._talk.ask(question), now_us(), self._version)
            cut = await watch.finish()
            return msgspec.structs.replace(facts, log_cut_bytes=cut) if cut else facts
        return facts_of(await self._talk.ask(question), now_us(), self._version)

    async def quit(self) -> bool:
        """Ask it to end."""
        with suppress(SolvisorError):
            await self._talk.ask({"quit": 1})
            return True
        return False

    def close(self) -> None:
        """Hang up; idempotent."""
        self._talk.close()


def job_request(work: Work, params: Mapping[str, Param]) -> dict[str, Any]:
    """The question that is a job. ``params`` are those its solver declares. Raises ``SpawnError``: ``param``."""
    job = work.job
    folder = os.path.abspath(work.folder)
    output = os.path.join(folder, "output")
    spec, attempt = job.spec, job.current
    names = [fact.path.removeprefix("input/") for fact in spec.inputs]
    return {
        "id": job.id,
        "name": spec.name,
        "attempt": attempt.n,
        "input": os.path.join(output, spec.primary),
        "inputs": [os.path.join(output, name) for name in names if not speaks_to_solvisor(name)],
        "output": output,
        "job_dir": folder,
        "stdout": os.path.join(folder, "stdout.log"),
        "stderr": os.path.join(folder, "stderr.log"),
        "params": _values(spec.solver, spec.params, params),
        "cpus": attempt.settings.cpus,
    }


def _values(solver: str, given: Mapping[str, Any], declared: Mapping[str, Param]) -> dict[str, Any]:
    """The parameters with a value, of the job or by default."""
    values = {}
    for name, param in declared.items():
        value = given.get(name, param.default)
        if value is None:
            continue
        try:
            # Checked when the job was accepted; the declaration may have changed since.
            values[name] = param.check(value)
        except ValueError as error:
            raise SpawnError("param", f"solver {solver} does not allow params.{name} any more: {error}") from None
    return values


class _Used(Struct, frozen=True, forbid_unknown_fields=True):
    cpu_user_seconds: _SECONDS = None
    cpu_system_seconds: _SECONDS = None
    max_rss_bytes: Annotated[int, Meta(ge=0)] | None = None


class _Answer(Struct, frozen=True, forbid_unknown_fields=True):
    ok: bool
    result: Any = None
    code: Annotated[str, Meta(min_length=1, max_length=100)] | None = None
    message: str | None = None
    traceback: str | None = None  # for who reads the wire; it is in the job's log
    usage: _Used = _Used()


_to_answer = converter(_Answer)


def facts_of(answer: Mapping[str, Any], finished_us: int, version: str | None = None) -> ExitFacts:
    """The end of a job as a server told it; ``version`` is of what it runs.

    Raises ``ServerBroken`` if that is not what the protocol says.
    """
    try:
        said: _Answer = _to_answer(answer)
        msgspec.json.encode(said.result)  # as the row and the manifest will have to
    except (msgspec.ValidationError, ValueError, RecursionError) as error:
        raise ServerBroken(f"the server's answer to a job is not as the protocol says: {error}") from None
    failed = said.code is not None and said.message is not None
    if failed == said.ok:
        raise ServerBroken("the server's answer to a job is not as the protocol says: ok, or else a code and a message")
    message = said.message if said.message is None else said.message[:MESSAGE_MAX]
    peak = said.usage.max_rss_bytes
    return ExitFacts(
        exit_code=0 if said.ok else 1,
        signal=None,
        finished_us=finished_us,
        usage=Usage(said.usage.cpu_user_seconds, said.usage.cpu_system_seconds, peak, "server" if peak else None),
        report=Report(result=said.result, code=said.code, message=message, version=version),
    )


if sys.platform != "win32":

    class LogWatch:
        """Keeps the logs of a job below their cap while its server writes them.

        Within ``async with`` they are looked at, in a thread; that a job is over before the first look costs next to
        nothing. ``finish`` comes after it.
        """

        def __init__(self, paths: tuple[str, ...], cap: int) -> None:
            self._logs = [CappedLog(path, cap) for path in paths]
            self._task: asyncio.Task[None] | None = None

        async def __aenter__(self) -> LogWatch:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LOG_SECONDS[0], self._begin)
            return self

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            self._timer.cancel()
            if self._task is not None:
                self._task.cancel()
                with anyio.CancelScope(shield=True):  # a look that is under way must be over before the logs are cut
                    await asyncio.wait([self._task])

        async def finish(self) -> int:
            """Cut the logs that grew over their cap; how many bytes they have lost."""
            if not any(log.needs_finish() for log in self._logs):
                return 0
            return await anyio.to_thread.run_sync(lambda: sum(log.finish() for log in self._logs))

        def _begin(self) -> None:
            self._task = asyncio.ensure_future(self._look())

        async def _look(self) -> None:
            pause = LOG_SECONDS[0]
            while True:
                grows_fast = await anyio.to_thread.run_sync(lambda: sum(log.trim() for log in self._logs) > 0)
                pause = LOG_SECONDS[0] if grows_fast else min(2 * pause, LOG_SECONDS[1])
                await anyio.sleep(pause)
