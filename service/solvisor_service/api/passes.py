"""The token of the TCP listener, and passes: bearers with a name, a role and an end, signed with that token.

Rules: a token is compared in constant time and never shown: not in a log, an error or a ``repr``. A new token ends all
passes. This module opens only the token's file, and knows no HTTP.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import hmac
import os
import re
import secrets
import stat
import sys
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from solvisor.errors import SolvisorError

from .ways import Role

LARGEST_TOKEN_FILE: Final = 1024
LONGEST_BEARER: Final = 4096
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{32,256}")
_KIND: Final = "pass1"
_ITSELF: Final = "token"
"""What stands for the token where the content of a pass is asked for."""


class TokenError(SolvisorError):
    """The token's file cannot be used: its text says why, and what to do."""

    code = "token"


class Holder(Struct, frozen=True):
    """Whom a pass is for; ``expires`` are seconds UTC, ``group`` the one that they were let in as a member of."""

    uid: int | None
    user: str | None
    role: Role
    group: str | None
    expires: float


_decode = msgspec.json.Decoder(Holder).decode


class Keys:
    """What tells good bearers from others: the token, and what signs passes."""

    def __init__(self, token: str) -> None:
        self._token = hashlib.sha256(token.encode()).digest()
        self._signing = hmac.digest(token.encode(), b"solvisor passes", "sha256")
        self._proving = hmac.digest(token.encode(), b"solvisor proof", "sha256")

    def is_token(self, text: str) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(hashlib.sha256(text.encode("utf-8", "replace")).digest(), self._token)

    def sign(self, holder: Holder) -> str:
        """A pass for ``holder``."""
        content = _text(msgspec.json.encode(holder))
        return f"{_KIND}.{content}.{_text(self._signature(content))}"

    def holder(self, text: str, now: float) -> Holder | None:
        """Whom a pass is for at ``now``; ``None`` if it is none of ours, or has expired."""
        kind, _, rest = text.partition(".")
        content, _, signature = rest.partition(".")
        if kind != _KIND or len(text) > LONGEST_BEARER:
            return None
        if not hmac.compare_digest(_text(self._signature(content)).encode(), signature.encode("utf-8", "replace")):
            return None
        try:
            holder = _decode(base64.urlsafe_b64decode(content + "=" * (-len(content) % 4)))
        except (binascii.Error, ValueError):  # signed by us, in a form of another version
            return None
        return holder if now < holder.expires else None

    def proof(self, of: str, nonce: str, host: str) -> str:
        """What shows whoever holds a bearer that we know it, before they send it: an HMAC of ``nonce`` and the ``host``
        they asked, under the signature of the pass with the content ``of``; or of the token, under a key made of it.

        One is given for any content: it says neither whether there is such a pass, nor anything of its signature.
        With ``host`` in it, nobody can pass on at their own address what was asked of us.
        """
        key = self._proving if of == _ITSELF else _text(self._signature(of)).encode()
        return hmac.digest(key, f"{nonce}\n{host.lower()}".encode("utf-8", "replace"), "sha256").hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and hmac.compare_digest(self._token, other._token)

    __hash__ = None  # type: ignore[assignment]  # nothing keeps it in a set

    def _signature(self, content: str) -> bytes:
        return hmac.digest(self._signing, content.encode("utf-8", "replace"), "sha256")


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def keys_in(path: Path) -> Keys:
    """Those of the token in ``path``, which is made if there is none. Blocks. Raises ``TokenError``, ``OSError``."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError:
        return Keys(_make(path))
    except OSError as error:
        raise _unusable(path, f"it cannot be opened as a file: {error.strerror}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise _unusable(path, "it is not a regular file of one name")
        if sys.platform != "win32" and (found.st_uid != os.geteuid() or found.st_mode & 0o077):
            whose = f"it has mode {found.st_mode & 0o777:04o} and owner {found.st_uid}"
            raise _unusable(path, f"{whose}, so others may know it")
        text = os.read(fd, LARGEST_TOKEN_FILE).decode("ascii", "replace").strip()
    finally:
        os.close(fd)
    if not _TOKEN.fullmatch(text):
        raise _unusable(path, "it holds no token of at least 32 letters, digits, - and _ on one line")
    return Keys(text)


def _unusable(path: Path, why: str) -> TokenError:
    return TokenError(f"the token in {path} is not used: {why}; remove it, and a new one is made")


def _make(path: Path) -> str:
    """A new token, whole or not at all."""
    token = secrets.token_urlsafe(32)
    part = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(token.encode() + b"\n")
        file.flush()
        os.fsync(fd)
    part.rename(path)
    if sys.platform != "win32":
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return token
