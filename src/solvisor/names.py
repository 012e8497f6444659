"""Names of files: fit to print, and what a name says of a drop.

A name is any bytes but ``/`` and NUL; rows, manifests and logs hold text. Rules: what is shown of a name can always be
encoded as UTF-8 and read back. No I/O.
"""

from __future__ import annotations

import os
import re

JOB_FILE_SUFFIX = ".job.toml"

FOLDER_JOB_FILE = "job.toml"
"""The job file of a dropped folder."""

_TEMPORARY = re.compile(
    r".*\.(part|tmp|partial|filepart|crdownload)|~\$.*|\..+\.[a-z0-9]{6}", re.DOTALL | re.IGNORECASE
)
_LITTER = frozenset({"thumbs.db", "desktop.ini"})
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


def is_temporary(name: str) -> bool:
    """Whether a program uses such a name while it writes; rsync's ``.NAME.XXXXXX`` is one."""
    return _TEMPORARY.fullmatch(name) is not None


def is_ignored(name: str) -> bool:
    """Whether a name is nobody's drop: hidden, temporary, or litter of a desktop."""
    return name.startswith(".") or name.lower() in _LITTER or is_temporary(name)


def is_job_file(name: str) -> bool:
    """Whether a name dropped beside its inputs is a job file; in a dropped folder it is ``job.toml``."""
    return name.lower().endswith(JOB_FILE_SUFFIX) and not is_ignored(name)


def speaks_to_solvisor(path: str) -> bool:
    """Whether an input, by its path below ``input/``, is a job file, and so nothing for the solver."""
    return path == FOLDER_JOB_FILE or ("/" not in path and is_job_file(path))
