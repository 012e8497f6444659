"""HTTP/1.1 over a Unix socket, as a client speaks it: one request at a time, an answer that can be waited for.

Rules: only the standard library, and little of it, for every client verb pays for what is imported here (that of
``http.client`` is mostly for mail). What is no good answer is a ``BrokenAnswer``. It must not know routes.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from solvisor.names import SOCKET_PATH_MAX

CROWD_SECONDS = 30.0
"""How long it is tried to be let in, where too many others try."""
CROWDED_SECONDS = 0.02
"""The rest before another try."""

KEPT_SECONDS: Final = 2.0
"""How long a connection is good for another request; the daemon closes those that rest for 5 s."""

_KEPT_MAX: Final = 2

_PIECE: Final = 1 << 16
_LINE_MAX: Final = 1 << 16
_HEADERS_MAX: Final = 100
_HEX: Final = frozenset("0123456789abcdefABCDEF")


class BrokenAnswer(ConnectionError):
    """What came is no answer, or the end of one did not come."""


class Answer(Protocol):
    """What came back: a status, headers by their names in lower case, and a body to be read."""

    @property
    def status(self) -> int:
        """The number: 200, 404, ..."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers; of one that came twice the last."""
        ...

    def read(self, amount: int | None = None, /) -> bytes:
        """The rest of the body, or at most ``amount`` bytes of it; fewer only at its end."""
        ...

    def read1(self, amount: int, /) -> bytes:
        """What is there of the body, at most ``amount`` bytes; waits until something is, nothing at its end."""
        ...

    def may_rest(self, seconds: float | None) -> None:
        """How long a read may wait before it raises ``TimeoutError``; ``None``: for ever."""
        ...

    def comes(self, seconds: float) -> bool:
        """Whether there is more to be read, or the end, within so long; nothing is read."""
        ...


class Connection:
    """A connection to the socket at ``path``, made at once; nothing on it may take longer than ``seconds``.

    Raises ``OSError``, and ``NotImplementedError`` where there are no such sockets.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self._socket = _connected(path, seconds)
        self._stream = self._socket.makefile("rb")
        self._pid = os.getpid()

    def close(self) -> None:
        """Hang up; idempotent."""
        self._stream.close()
        self._socket.close()

    def send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None = None
    ) -> None:
        """Send a request; ``target`` is quoted, a body that is not bytes is sent piece by piece. Raises ``OSError``."""
        told = {"Host": "solvisor", **headers}
        if isinstance(body, bytes):
            told["Content-Length"] = str(len(body))
        elif body is not None:
            told["Transfer-Encoding"] = "chunked"
        if any("\r" in value or "\n" in value for value in told.values()):
            raise ValueError(f"a header of {method} {target} would be several")
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in told.items())]
        head = "".join(f"{line}\r\n" for line in [*lines, ""]).encode()
        if body is None or isinstance(body, bytes):
            self._socket.sendall(head + (body or b""))
            return
        self._socket.sendall(head)
        for piece in filter(None, body):  # an empty one would be the end
            self._socket.sendall(b"%x\r\n%b\r\n" % (len(piece), piece))
        self._socket.sendall(b"0\r\n\r\n")

    def answer(self) -> Response:
        """The answer, once its head is there. Raises ``OSError``, of it ``BrokenAnswer``."""
        return Response(self)

    # --- for the answer ---------------------------------------------------------------------------------------------

    def line(self) -> str:
        """The next line, without its end."""
        line = self._stream.readline(_LINE_MAX)
        if not line.endswith(b"\n"):
            raise BrokenAnswer("a line without end" if len(line) == _LINE_MAX else "the connection was closed")
        return line.rstrip(b"\r\n").decode("latin-1")

    def read1(self, amount: int) -> bytes:
        """What is there, or comes next."""
        return self._stream.read1(amount)

    def may_rest(self, seconds: float | None) -> None:
        """How long a read may wait."""
        self._socket.settimeout(seconds)

    def comes(self, seconds: float) -> bool:
        """Whether there is more within so long. A read that waited in vain could not be tried again."""
        patience = self._socket.gettimeout()
        self._socket.settimeout(0.0)
        try:
            if self._stream.peek(1):
                return True
        finally:
            self._socket.settimeout(patience)
        return bool(select.select([self._socket], [], [], seconds)[0])

    def is_idle(self) -> bool:
        """Whether it may be asked on: it is open, nothing waits on it, and no fork shares it. Say ``may_rest`` then."""
        if self._pid != os.getpid():  # the answers would be those of another process
            return False
        self._socket.settimeout(0.0)
        try:
            if not self._stream.peek(1):
                self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:  # it was reset
            pass
        return False


class Response:
    """An answer from a socket. Its body ends as its length says, after the last chunk, or else with the connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        version, _, rest = connection.line().partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
            raise BrokenAnswer("it is no HTTP")
        self.status = int(rest[:3])
        self.headers = self._fields()
        self._chunked = self.headers.get("transfer-encoding", "").lower() == "chunked"
        length = self.headers.get("content-length", "")
        self._left = 0 if self._chunked or self.status == 204 else int(length) if length.isdecimal() else None
        """Bytes that are missing of the body, or of its chunk; of a body without a length it is not known."""
        self._over = self._left == 0 and not self._chunked

    @property
    def leaves_connection(self) -> bool:
        """Whether it was read to its end, and another request may follow."""
        return self._over and self._left is not None and self.headers.get("connection", "").lower() != "close"

    def read(self, amount: int | None = None, /) -> bytes:
        """The rest of the body, or at most ``amount`` bytes of it."""
        pieces: list[bytes] = []
        count = 0
        while (most := _PIECE if amount is None else amount - count) > 0 and (piece := self.read1(most)):
            pieces.append(piece)
            count += len(piece)
        return b"".join(pieces)

    def read1(self, amount: int, /) -> bytes:
        """What is there of the body."""
        if self._chunked and not self._left and not self._over:
            self._begin_chunk()
        if self._over:
            return b""
        if self._left is None:
            piece = self._connection.read1(amount)
            self._over = not piece
            return piece
        piece = self._connection.read1(min(amount, self._left))
        if not piece:
            raise BrokenAnswer(f"{self._left} bytes of it did not come")
        self._left -= len(piece)
        if not self._left:
            if self._chunked:
                self._connection.line()  # ends the chunk, and comes with it: what is left tells that there is more
            else:
                self._over = True
        return piece

    def may_rest(self, seconds: float | None) -> None:
        """How long a read may wait."""
        self._connection.may_rest(seconds)

    def comes(self, seconds: float) -> bool:
        """Whether there is more within so long."""
        return self._over or self._connection.comes(seconds)

    def _fields(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        for _ in range(_HEADERS_MAX):
            line = self._connection.line()
            if not line:
                return fields
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        raise BrokenAnswer("it has too many headers")

    def _begin_chunk(self) -> None:
        size = self._connection.line().partition(";")[0].strip()
        if not size or not set(size) <= _HEX:
            raise BrokenAnswer(f"a chunk of {size[:20]!r} bytes")
        self._left = int(size, 16)
        if not self._left:
            self._fields()
            self._over = True


class Kept:
    """Connections whose requests were answered, for the next ones. Any thread may use it."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, Connection]] = []

    def put(self, connection: Connection) -> None:
        """Keep one for a while."""
        if len(self._waiting) < _KEPT_MAX:
            self._waiting.append((time.monotonic(), connection))
        else:
            connection.close()

    def take(self, seconds: float) -> Connection | None:
        """One that is still open, on which nothing may take longer than ``seconds``."""
        with contextlib.suppress(IndexError):  # there is none, or another thread took the last one
            while True:
                since, connection = self._waiting.pop()
                if time.monotonic() < since + KEPT_SECONDS and connection.is_idle():
                    connection.may_rest(seconds)
                    return connection
                connection.close()
        return None

    def close(self) -> None:
        """Hang up on all of them."""
        with contextlib.suppress(IndexError):
            while True:
                self._waiting.pop()[1].close()


def _connected(path: Path, seconds: float) -> socket.socket:
    """A socket that is connected; a path that is too long for one is reached through its folder."""
    if sys.platform == "win32":
        raise NotImplementedError("the status socket is not there on Windows yet")
    with contextlib.ExitStack() as cleanup, contextlib.ExitStack() as on_failure:
        address = os.fspath(path)
        if len(os.fsencode(address)) > SOCKET_PATH_MAX:
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            cleanup.callback(os.close, folder)
            address = f"/proc/self/fd/{folder}/{path.name}"
        connection = on_failure.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        connection.settimeout(seconds)
        deadline = time.monotonic() + CROWD_SECONDS
        while True:
            try:
                connection.connect(address)
                break
            except BlockingIOError:  # as many wait to be let in as the kernel lets wait
                if time.monotonic() > deadline:
                    raise ConnectionRefusedError from None
                time.sleep(CROWDED_SECONDS)
        on_failure.pop_all()
        return connection
