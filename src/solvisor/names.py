"""Names of files: fit to print, and what a name says of a drop.

A name is any bytes but ``/`` and NUL; rows, manifests and logs hold text. Rules: what is shown of a name can always be
encoded as UTF-8 and read back. No I/O.
"""

from __future__ import annotations

import os
import re

SOCKET_PATH_MAX = 107
"""Bytes in the path of a Unix socket; a longer one is reached through its folder."""

JOB_FILE_SUFFIX = ".job.toml"

READY_SUFFIX = ".ready"
"""What the name of a drop ends with, once more, in a marker that says that it is complete."""

FOLDER_JOB_FILE = "job.toml"
"""The job file of a dropped folder."""

_TEMPORARY = re.compile(
    r".*\.(part|tmp|partial|filepart|crdownload)|~\$.*|\..+\.[a-z0-9]{6}", re.DOTALL | re.IGNORECASE
)
_LITTER = frozenset({"thumbs.db", "desktop.ini"})
_JOB_ID = re.compile(r"[a-z0-9-]+-[0-9a-v]{15}")
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
    if "\\" not in text:
        return text
    parts = _ESCAPED.split(text)  # text, hex, text, hex, ..., text
    return os.fsdecode(b"".join(bytes.fromhex(part) if i % 2 else part.encode("utf-8") for i, part in enumerate(parts)))


def printable(text: str) -> str:
    """Any text so that it can be encoded: bytes of it that are not UTF-8 appear as ``\\udcNN``."""
    return text.encode(errors="backslashreplace").decode()


def is_temporary(name: str) -> bool:
    """Whether a program uses such a name while it writes; rsync's ``.NAME.XXXXXX`` is one."""
    return _TEMPORARY.fullmatch(name) is not None


def stem(path: str) -> str:
    """The last part of a path, with ``/``, without its last suffix."""
    name = path.rpartition("/")[2]
    dot = name.rfind(".")
    return name[:dot] if 0 < dot < len(name) - 1 else name


AGE_CHARACTERS = 15
"""What an id ends in: the time of its claim, which sorts as a text does, and what tells it from others of that time."""


def age(job_id: str) -> str:
    """What job ids are sorted by, the oldest first."""
    return job_id[-AGE_CHARACTERS:]


def is_job_id(name: str) -> bool:
    """Whether a folder of that name can be a job's."""
    return _JOB_ID.fullmatch(name) is not None


def is_ignored(name: str) -> bool:
    """Whether a name is nobody's drop: hidden, litter of a desktop, or temporary."""
    return is_hidden(name) or is_temporary(name)


def is_hidden(name: str) -> bool:
    """Whether a name is not for people to see: hidden, or litter of a desktop."""
    return name.startswith(".") or name.lower() in _LITTER


def is_job_file(name: str) -> bool:
    """Whether a name dropped beside its inputs is a job file; in a dropped folder it is ``job.toml``."""
    return name.lower().endswith(JOB_FILE_SUFFIX) and not is_ignored(name)


def may_be_input(name: str) -> bool:
    """Whether a name says nothing else of a file: that it is nobody's drop, or that it speaks of others."""
    return name != FOLDER_JOB_FILE and not name.lower().endswith(JOB_FILE_SUFFIX) and not is_ignored(name)


def speaks_to_solvisor(path: str) -> bool:
    """Whether an input, by its path below ``input/``, is a job file, and so nothing for the solver."""
    return path == FOLDER_JOB_FILE or ("/" not in path and is_job_file(path))
