"""Whether a warm server is ready: proven, not guessed from its age or from a connection that was accepted.

Rules: a server is asked only once the socket that listens on its port belongs to its own process tree, so neither a
stranger nor a dead port is ever talked to. A request is sent once per connection and its answer awaited until the
caller cancels: a server that is still loading may take long, and one that was asked twice may never recover. If it
refuses, hangs up or says something else, there is another connection after a pause. Pauses grow with the time waited,
so that what is late is late by a small part of it. Start timeouts and the death of the process are the caller's
business: what tries here does so until it is cancelled, and tells ``note`` what was wrong last, in words that follow
``not ready:``.

On Windows nobody can be asked yet who listens: there the port is taken for the server's own. This module must not know
how servers are started, leased ports or replaced. One file, if a long one: the ways of asking share how long they rest,
whom they believe and what they tell.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from http.client import HTTPException, HTTPResponse, IncompleteRead
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, Self, TypeVar, cast
from urllib.parse import quote
from uuid import uuid4

import anyio
from anyio import to_thread

from .errors import NotReady, PortTaken
from .filetext import OVERLAP, WINDOW, open_regular
from .interfaces import Up
from .kinds import FileReady, HttpReady, LineReady, Ready, ReportedPort, TcpReady, ZmqReady
from .signs import Signs
from .tables import show

if sys.platform != "win32":
    from .process import listeners

Note = Callable[[str], None]
T = TypeVar("T")

ANSWER_MOST: Final = 64 << 10
"""Bytes of an answer that are kept, and looked at."""

PAUSE_SECONDS: Final = (0.001, 0.1)
"""The shortest and the longest pause between two looks or tries."""

LOOK_SHARE: Final = 0.01
TRY_SHARE: Final = 0.1
"""A pause is such a part of the time waited so far; tries cost the server a connection, looks cost it nothing."""

GLANCE_SHARE: Final = 0.004
GLANCE_SECONDS: Final = (0.001, 0.005)
"""The same while nothing listens where it should, which a glance tells for a microsecond: the waking costs more."""

QUIET_SHARE: Final = 0.05
QUIET_SECONDS: Final = (0.1, 1.0)
"""The same for looks that something else spares: they may tell no more than that it listens elsewhere, or nothing."""

PATIENCE_SECONDS: Final = 0.2
"""What was said over TCP is taken for all after so long a silence, or ``TRY_SHARE`` of the time waited if longer: what
still loads often says so, and then nothing more."""

STRANGER_SECONDS: Final = 0.2
"""A stranger is one for so long: a process of ours shows no clue while it changes its program or is being orphaned."""

_NEVER_MS: Final = 2**31 - 1
_MUTE: Final = "it accepted the connection and answered nothing"


def pauses(share: float = LOOK_SHARE, bounds: tuple[float, float] = PAUSE_SECONDS) -> Iterator[float]:
    """The pauses between looks, in seconds, without end: ``share`` of what was waited so far, within ``bounds``."""
    shortest, longest = bounds
    waited = 0.0
    while True:
        pause = min(max(shortest, waited * share), longest)
        yield pause
        waited += pause


def pauses_with(signs: Signs) -> Iterator[float]:
    """The pauses between looks at what nothing can happen to without a sign."""
    return pauses(QUIET_SHARE, QUIET_SECONDS) if signs.are_told else pauses()


async def until_ready(ready: Ready, up: Up, host: str, port: int | None, note: Note) -> None:
    """Return once the server ``up`` is ready as its configuration says, and listens on ``port`` if it has one.

    Tries until cancelled. Raises ``PortTaken`` if a stranger has its port, and ``NotReady`` if it can never be found
    ready: there is no port to ask on, or no pyzmq to ask with.
    """
    if isinstance(ready, LineReady | FileReady):
        await _until_told(ready, up, note)
        if port is not None:
            await until_listening(up, host, port, note)
        return
    port, began = _port_to_ask(ready, port), time.monotonic()
    for pause in pauses(TRY_SHARE):
        await until_listening(up, host, port, note)
        patience = max(PATIENCE_SECONDS, TRY_SHARE * (time.monotonic() - began))
        try:
            await _ask(ready, host, port, note, patience)
        except NotReady as error:
            note(str(error))
        else:
            return
        await anyio.sleep(pause)


async def until_listening(up: Up, host: str, port: int, note: Note) -> None:
    """Return once the process tree of ``up`` listens where ``host`` and ``port`` lead to. Connects to nothing.

    Tries until cancelled. Raises ``PortTaken`` if a stranger listens there.
    """
    with _Watch(up, host, port) as watch:
        await _until(watch.look, note, watch.rest)


async def until_port(reported: ReportedPort, up: Up, note: Note) -> int:
    """Return the port, 1 to 65535, that the server says it picked. Tries until cancelled.

    A number at the very end of a text may be the beginning of a longer one, of which the rest is not written yet: it
    counts once more text follows, or once the server listens on that port.
    """
    if reported.line is not None:
        texts, pattern = _printed(up), _compiled(reported.line)
    else:
        texts, pattern = [_file(up, reported.file or "")], _compiled(reported.match)
    with Signs(text.path for text in texts) as signs:
        return await _until(lambda: _told_port(texts, pattern, up), note, signs.rest)


async def check(ready: Ready, host: str, port: int | None) -> None:
    """Ask a server that was ready once more: one request, one answer, for which the caller bounds the time.

    Raises ``NotReady`` if it refuses, hangs up or says something else. One that tells by a line or a file cannot be
    asked, and passes: a connection that it accepts would prove nothing.
    """
    if not isinstance(ready, LineReady | FileReady):
        await _ask(ready, host, _port_to_ask(ready, port), lambda _: None, math.inf)


async def _until(
    look: Callable[[], T], note: Note, rest: Callable[[float], Awaitable[None]], breaks: Iterable[float] | None = None
) -> T:
    """What ``look`` finds once it raises no ``NotReady``; it reads files, and so has a thread of its own.

    ``rest`` is what is done before another look, for so many seconds as ``breaks`` say, or ``pauses()``.
    """
    turn = anyio.CapacityLimiter(1)
    for pause in breaks or pauses():
        try:
            return await to_thread.run_sync(look, limiter=turn)
        except PortTaken:
            raise
        except NotReady as error:
            note(str(error))
        except OSError as error:  # such as no file descriptor to look with
            note(f"it cannot be looked at: {error.strerror}")
        await rest(pause)
    raise AssertionError("pauses never end")


# --- who listens ------------------------------------------------------------------------------------------------------


class _Watch:
    """Looks for whoever listens where a server should."""

    def __init__(self, up: Up, host: str, port: int) -> None:
        self._up = up
        self._host = host
        self._port = port
        self._strange_since: float | None = None
        self._began = time.monotonic()
        self._glance: Callable[[], bool] | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if sys.platform != "win32":
            with suppress(OSError, ValueError):  # without it there are looks alone
                lookout = listeners.Lookout(self._host, self._port)
                self._stack.callback(lookout.close)
                self._glance = lookout.sees
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    async def rest(self, seconds: float) -> None:
        """Rest for so long; while nobody listens there, until somebody does, or a look may have more to say."""
        if not self._is_quiet():
            await anyio.sleep(seconds)
            return
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        end = time.monotonic() + self._part(QUIET_SHARE, QUIET_SECONDS)

        timer: asyncio.TimerHandle

        def glance() -> None:  # called by the loop: for who sleeps in between each one costs twice as much
            nonlocal timer
            if time.monotonic() < end and self._is_quiet():
                timer = loop.call_later(self._part(GLANCE_SHARE, GLANCE_SECONDS), glance)
            elif not over.done():
                over.set_result(None)

        timer = loop.call_later(self._part(GLANCE_SHARE, GLANCE_SECONDS), glance)
        try:
            await over
        finally:
            timer.cancel()

    def _part(self, share: float, bounds: tuple[float, float]) -> float:
        """Such a part of the time waited so far."""
        shortest, longest = bounds
        return min(max(shortest, share * (time.monotonic() - self._began)), longest)

    def _is_quiet(self) -> bool:
        """Whether it is sure that nobody listens there."""
        try:
            return self._glance is not None and not self._glance()
        except OSError:
            return False

    def look(self) -> None:
        """Look once. Raises ``NotReady`` or, about a stranger that stays, ``PortTaken``; and ``OSError``."""
        if sys.platform != "win32":
            there = listeners.on_port(self._port)
            held = listeners.held_by(self._up.pid, self._up.token, {listener.inode for listener in there})
            facing = listeners.facing(self._host, there)
            stranger = next((listener for listener in facing if listener.inode not in held), None)
            if stranger is not None:
                self._saw(stranger)
            self._strange_since = None
            if not facing:
                elsewhere = sorted({listener.address for listener in there if listener.inode in held})
                where = f"port {self._port} of {self._host}"
                but = f", it listens on {' and '.join(elsewhere)} instead" if elsewhere else ""
                raise NotReady(f"nothing listens on {where}{but}")

    if sys.platform != "win32":

        def _saw(self, stranger: listeners.Listener) -> NoReturn:
            where = f"port {self._port} of {self._host}"
            self._strange_since = self._strange_since or time.monotonic()
            if time.monotonic() - self._strange_since < STRANGER_SECONDS:
                raise NotReady(f"another program listens on {where}")
            owner = listeners.owner(stranger.inode) or f"a program of the user with number {stranger.uid}"
            raise PortTaken(f"{owner} listens on {where}")


def _listens_on(up: Up, port: int) -> bool:
    """Whether the server listens on a port, at whatever address."""
    if sys.platform != "win32":
        return bool(listeners.held_by(up.pid, up.token, {listener.inode for listener in listeners.on_port(port)}))
    return False


# --- what it wrote ----------------------------------------------------------------------------------------------------


class _Text:
    """A file of a server, looked at again and again while it is written: its last ``WINDOW`` bytes at most.

    Of one that only ``grows``, each look takes what is new and a little before it.
    """

    def __init__(self, path: Path, name: str, *, grows: bool) -> None:
        self.path = path
        self._name = name
        self._grows = grows
        self._seen = 0

    def matches(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """Where the pattern matches now. Raises ``NotReady`` if the file is not there, and ``OSError``."""
        try:
            file = open_regular(self.path)
        except FileNotFoundError:
            raise NotReady(f"there is no {self._name} yet") from None
        with file:
            size = file.seek(0, os.SEEK_END)
            start = max(0, size - WINDOW, self._seen - OVERLAP if self._grows else 0)
            before = min(start, 1)  # a byte for ^ and \b to look at
            file.seek(start - before)
            text = file.read(size - start + before).decode(errors="replace")
        self._seen = size
        return pattern.finditer(_lines(text), before)


def _printed(up: Up) -> list[_Text]:
    return [_Text(Path(path), "log", grows=True) for path in dict.fromkeys((up.stdout, up.stderr))]


def _file(up: Up, name: str) -> _Text:
    return _Text(Path(up.place.folder, name), f"file {show(name)}", grows=False)


async def _until_told(ready: LineReady | FileReady, up: Up, note: Note) -> None:
    pattern = _compiled(ready.match)
    if isinstance(ready, LineReady):
        texts, where = _printed(up), "what it printed"
    else:
        texts, where = [_file(up, ready.path)], f"its file {show(ready.path)}"

    def look() -> None:
        if not any(match for text in texts for match in text.matches(pattern)):
            raise NotReady(f"{show(ready.match)} is not found in {where}")

    with Signs(text.path for text in texts) as signs:
        await _until(look, note, signs.rest, pauses_with(signs))


def _told_port(texts: list[_Text], pattern: re.Pattern[str], up: Up) -> int:
    """The first port that is told. Raises ``NotReady``, ``OSError``."""
    problem = f"it has not told its port: {show(pattern.pattern)} is not found"
    for match in (match for text in texts for match in text.matches(pattern)):
        group = min(pattern.groups, 1)
        told = match[group] or ""
        port = int(told) if re.fullmatch(r"[0-9]{1,5}", told) else 0
        if not 1 <= port <= 65535:
            problem = f"it told {show(told)}, which is no port"
        elif match.end(group) < len(match.string) or _listens_on(up, port):
            return port
        else:
            problem = f"it told port {port}, or the beginning of a longer number, and does not listen on it"
    raise NotReady(problem)


# --- what it answers --------------------------------------------------------------------------------------------------


def _port_to_ask(ready: Ready, port: int | None) -> int:
    """The port, if there is all that asking takes. Raises ``NotReady``."""
    if port is None:
        raise NotReady("it has no port on which it could be asked")
    if isinstance(ready, ZmqReady):
        try:
            import zmq  # noqa: F401  an optional extra
        except ImportError:
            raise NotReady('asking it needs pyzmq: pip install "solvisor[omc]"') from None
    return port


async def _ask(ready: Ready, host: str, port: int, note: Note, patience: float) -> None:
    """One request over one connection, and its answer. Raises ``NotReady``.

    Only the end of what is said over plain TCP cannot be known: it is taken for the end after ``patience`` seconds of
    silence. Until something is said there is no end.
    """
    if isinstance(ready, ZmqReady):
        await _ask_zmq(ready, host, port, note)
    elif isinstance(ready, HttpReady):
        at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        path = quote(ready.path, safe="/?&=%:;,@!$'()*+~#[]")
        request = f"GET {path} HTTP/1.1\r\nHost: {at}\r\nUser-Agent: solvisor\r\nConnection: close\r\n\r\n"
        await _exchange(
            host, port, request.encode(), lambda said, whole: _is_good_page(ready, said, whole), note, math.inf
        )
    elif isinstance(ready, TcpReady):
        expect = ready.expect
        await _exchange(
            host, port, (ready.send or "").encode(), lambda said, _: _is_found(expect, said), note, patience
        )


async def _exchange(
    host: str, port: int, request: bytes, is_good: Callable[[bytes, bool], bool], note: Note, patience: float
) -> None:
    """Send ``request`` and listen until ``is_good`` of what was said so far, and whether that was all.

    Raises ``NotReady`` if all was said and it is not good, or ``is_good`` raises it before.
    """
    async with _connected(host, port, note) as (reader, writer):
        writer.write(request)
        note(_MUTE)
        said, whole = b"", False
        while not is_good(said, whole):
            if whole:
                ends = "it accepted the connection and closed it without an answer"
                raise NotReady(f"it answered {_shown(said)}, which is not what is expected" if said else ends)
            piece = b""
            with anyio.move_on_after(patience if said else math.inf), suppress(OSError):  # the connection was reset
                piece = await reader.read(ANSWER_MOST - len(said))  # nothing if that is 0
            said += piece
            whole = not piece
            if said:
                note(f"it answered {_shown(said)}, and what is expected did not follow")


@asynccontextmanager
async def _connected(
    host: str, port: int, note: Note
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection. Raises ``NotReady``."""
    note(f"it does not accept connections to {host}, port {port}")
    try:
        reader, writer = await asyncio.open_connection(host, port, limit=ANSWER_MOST)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise NotReady(f"no connection to {host}, port {port}: {why}") from error
    try:
        if writer.get_extra_info("sockname") == writer.get_extra_info("peername"):
            raise NotReady(f"nothing listens on port {port} of {host}: the connection led to its own beginning")
        yield reader, writer
    finally:
        writer.close()


class _Heard(NamedTuple):
    """What was read from a socket, for ``HTTPResponse``."""

    data: bytes

    def makefile(self, _mode: str) -> BytesIO:
        """As a file."""
        return BytesIO(self.data)


def _is_good_page(ready: HttpReady, said: bytes, whole: bool) -> bool:
    """Whether this is the beginning of the answer that is expected. Raises ``NotReady`` if it cannot become that."""
    if b"\r\n\r\n" not in said:
        return False
    response = HTTPResponse(cast(socket.socket, _Heard(said)))
    try:
        response.begin()
    except HTTPException:
        raise NotReady(f"it answered {_shown(said)}, which is not HTTP") from None
    if response.status not in ready.status:
        raise NotReady(f"it answered {response.status} {show(response.reason)} to GET {show(ready.path)}")
    if ready.expect is None:
        return True
    whole |= response.length is not None or response.chunked
    try:
        body = response.read()
    except IncompleteRead as error:
        body, whole = error.partial, False
    if _is_found(ready.expect, body):
        return True
    if whole:
        raise NotReady(f"{show(ready.expect)} is not found in its answer to GET {show(ready.path)}: {_shown(body)}")
    return False


async def _ask_zmq(ready: ZmqReady, host: str, port: int, note: Note) -> None:
    """One request over a ZeroMQ socket that connects once. Raises ``NotReady``."""
    import zmq
    from zmq.asyncio import Context, Poller

    context = Context.instance()  # never ended: that could wait for a socket
    with context.socket(zmq.REQ) as requester:
        requester.setsockopt(zmq.LINGER, 0)
        requester.setsockopt(zmq.IPV6, ":" in host)
        requester.setsockopt(zmq.MAXMSGSIZE, ANSWER_MOST)
        # Of itself it would connect again, to whoever is there by then, and the request be lost. With -1, which means
        # never, libzmq 4.3.5 hangs when the context ends.
        requester.setsockopt(zmq.RECONNECT_IVL, _NEVER_MS)
        # Left to itself, pyzmq names the monitor after a file descriptor whose last owner may still be closing.
        name = f"inproc://{uuid4()}"
        with requester.get_monitor_socket(zmq.EVENT_CLOSED | zmq.EVENT_DISCONNECTED, name) as ends:
            try:
                note(_MUTE)
                requester.connect(f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}")
                try:  # it may have hung up already: then waiting to send would be waiting for ever
                    await requester.send(ready.send.encode(), zmq.NOBLOCK)
                except zmq.Again:
                    raise NotReady("it closed the connection without a ZeroMQ answer") from None
                poller = Poller()
                poller.register(requester, zmq.POLLIN)
                poller.register(ends, zmq.POLLIN)
                if requester not in dict(await poller.poll()):
                    raise NotReady("it closed the connection without a ZeroMQ answer")
                said = await requester.recv()
            finally:
                # Before its other end is closed: the I/O thread of libzmq, which is the only one there is, would wait
                # for ever to tell of an event that nobody can receive any more, and with it every later request.
                requester.disable_monitor()
    if not _is_found(ready.expect, said):
        raise NotReady(f"it answered {_shown(said)}, which is not what is expected")


def _compiled(expression: str) -> re.Pattern[str]:
    return re.compile(expression, re.MULTILINE)


def _lines(text: str) -> str:
    """For ``^`` and ``$``: what a network or a progress display ends a line with is a line end."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _is_found(expression: str, said: bytes) -> bool:
    """Whether it is in an answer; a pattern may spell out ``\r\n`` or leave line ends to ``$``."""
    pattern, text = _compiled(expression), said.decode(errors="replace")
    return pattern.search(text) is not None or pattern.search(_lines(text)) is not None


def _shown(said: bytes) -> str:
    return show(said[:256].decode(errors="replace"))
