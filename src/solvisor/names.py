"""Names of files, fit to print.

A name is any bytes but ``/`` and NUL; rows, manifests and logs hold text. Rules: what is shown of a name can always be
encoded as UTF-8 and read back. No I/O.
"""

from __future__ import annotations

import os
import re

_ODD = re.compile("[\x00-\x1f\x7f-\x9f\\\\\u2028\u2029\udc80-\udcff]")
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")


def is_plain_name(name: str) -> bool:
    """Whether a name is UTF-8 without control characters, line separators and backslashes: fit for rows and logs."""
    return _ODD.search(name) is None


def escape_name(name: str) -> str:
    """A name as it may appear in rows, manifests and logs: each odd byte as ``\\xNN``. Always encodable as UTF-8."""
    return _ODD.sub(lambda odd: "".join(f"\\x{byte:02x}" for byte in os.fsencode(odd[0])), name)


def unescape_name(text: str) -> str:
    """The inverse of ``escape_name``: the name as the file system has it (``os.fsdecode``)."""
    parts = _ESCAPED.split(text)  # text, hex, text, hex, ..., text
    return os.fsdecode(b"".join(bytes.fromhex(part) if i % 2 else part.encode("utf-8") for i, part in enumerate(parts)))


def printable(text: str) -> str:
    """Any text so that it can be encoded: bytes of it that are not UTF-8 appear as ``\\udcNN``."""
    return text.encode(errors="backslashreplace").decode()
