"""Raw HTTP over a Unix socket, for tests: what any program could send, good or broken."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

BOUNDARY = "a-boundary-of-the-tests"
MULTIPART = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The stable code of a problem document, which this answer must be."""
        assert self.headers["content-type"] == "application/problem+json", self
        problem = self.json
        assert problem["status"] == self.status, self
        assert problem["title"], self
        assert problem["detail"], self
        return str(problem["code"])


class Connection(http.client.HTTPConnection):
    """HTTP over the socket at ``path``."""

    def __init__(self, path: Path) -> None:
        super().__init__("solvisor", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = connected(self._path)


def connected(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
        sock.settimeout(30)
    except BaseException:
        sock.close()
        raise
    return sock


class Http:
    """Asks the daemon of ``home``, a connection for each question."""

    def __init__(self, home: Path) -> None:
        self.path = home / "run" / "solvisor.sock"

    head = b"Host: x\r\n"
    """What every head written by hand needs."""

    def connection(self) -> http.client.HTTPConnection:
        return Connection(self.path)

    def connected(self) -> socket.socket:
        return connected(self.path)

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """The answer; a ``ConnectionError`` if the daemon is gone before all of it is there."""
        connection = self.connection()
        try:
            chunked = not isinstance(body, bytes | None)
            with contextlib.suppress(BrokenPipeError):  # refused before all of it was read: the answer is there
                connection.request(method, target, body, dict(headers or {}), encode_chunked=chunked)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        except http.client.HTTPException as error:
            raise ConnectionResetError(f"the answer broke off: {error}") from error
        finally:
            connection.close()

    def get(self, target: str) -> Answer:
        return self.ask("GET", target)

    def post(self, target: str, value: object = None, **headers: str) -> Answer:
        return self.ask("POST", target, b"" if value is None else json.dumps(value).encode(), headers)

    def send(self, *parts: bytes, key: str | None = None, query: str = "") -> Answer:
        """A submission of these parts."""
        headers = MULTIPART if key is None else MULTIPART | {"Idempotency-Key": key}
        return self.ask("POST", f"/v1/jobs{query}", multipart(*parts), headers)

    def raw(self, data: bytes, *, end: bool = True) -> bytes:
        """Whatever comes back to these very bytes, until the connection is closed."""
        answer = b""
        with self.connected() as sock, contextlib.suppress(ConnectionResetError):
            with contextlib.suppress(BrokenPipeError):  # it may be refused before all of it was read
                sock.sendall(data)
            if end:
                sock.shutdown(socket.SHUT_WR)
            while chunk := sock.recv(1 << 16):
                answer += chunk
        return answer


class TcpHttp(Http):
    """Asks the daemon of ``home`` over TCP at ``address``, with the token in its home or the one given."""

    def __init__(self, home: Path, address: str, token: str | None = None) -> None:
        super().__init__(home)
        self.address = address
        self.host, _, port = address.rpartition(":")
        self.port = int(port)
        self.token = (home / "state" / "token").read_text().strip() if token is None else token

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

    @property
    def head(self) -> bytes:  # type: ignore[override]  # it depends on the token
        lines = {"Host": self.address, **self.bearer}
        return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode()

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=30)

    def connected(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), 30)

    def ask(
        self,
        method: str,
        target: str,
        body: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        kind = {} if method in ("GET", "HEAD") else {"Content-Type": "application/json"}
        return super().ask(method, target, body, {**self.bearer, **kind, **(headers or {})})


def own_address() -> str:
    """A loopback address that no other test listens on, with a port."""
    number = os.getpid() << 6 | next(_addresses)
    return f"127.{number >> 16 & 127 | 128}.{number >> 8 & 255}.{number & 255}:8642"


_addresses = itertools.count(1)


def file(name: str, data: bytes = b"", *, field: str = "file", filename: bytes | None = None) -> bytes:
    """One part that is a file."""
    shown = name.encode() if filename is None else filename
    disposition = f'Content-Disposition: form-data; name="{field}"; filename="'.encode() + shown + b'"'
    return disposition + b"\r\n\r\n" + data


def job(data: bytes | Mapping[str, Any]) -> bytes:
    """The part with the wishes."""
    body = data if isinstance(data, bytes) else json.dumps(data).encode()
    return b'Content-Disposition: form-data; name="job"\r\n\r\n' + body


def multipart(*parts: bytes) -> bytes:
    """A whole body."""
    begin = f"--{BOUNDARY}\r\n".encode()
    return b"".join(begin + part + b"\r\n" for part in parts) + f"--{BOUNDARY}--\r\n".encode()
