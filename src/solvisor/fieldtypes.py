"""The kinds of value that configuration and job files hold, each with its spelling and its limits.

Rules: one type per kind of value, used by every file format; the type is what the code sees (seconds as ``float``,
bytes as ``int``), its ``Rule`` is what people write. This module knows no key of any file.
"""

from __future__ import annotations

import ipaddress
import math
import re
from typing import Annotated, Any, Final

from msgspec import Meta

from .model import Address, PortRange
from .tables import Rule
from .units import DURATION_PATTERN, SIZE_PATTERN, format_duration, format_size, parse_duration, parse_size

SOLVER_NAME: Final = r"[a-z0-9][a-z0-9_-]{0,31}"
LOWEST_PORT: Final = 1024
"""Those below are for privileged users."""
HIGHEST_PORT: Final = 65535
PORTS_PATTERN: Final = r"([0-9]{1,5})-([0-9]{1,5})"
LISTEN_PATTERN: Final = r"([0-9.]{7,15}|\[[0-9A-Fa-f:.]{2,45}\]):([0-9]{1,5})"
HOST_NAME: Final = r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?"


def doc(text: str) -> Meta:
    """What a key is for, shown by editors."""
    return Meta(description=text)


def _text(pattern: str, allowed: str, *, schema: bool = True) -> Rule:
    def parse(value: Any) -> str:
        if not isinstance(value, str) or re.fullmatch(pattern, value) is None:
            raise ValueError
        return value

    return Rule(allowed, parse, {"type": "string", "pattern": f"^{pattern}$"} if schema else {"type": "string"})


def _timeout(value: Any) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("it must be longer than 0")
    return seconds


def _regex(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    try:
        found = re.compile(value, re.MULTILINE).search("x")
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if found and not found.group():
        raise ValueError("it matches the empty text, so it is found everywhere")
    return value


def _storable(value: Any) -> Any:
    """A number that JSON and the database can hold."""
    if isinstance(value, bool | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
        return value
    raise ValueError


def _number(value: Any) -> Any:
    if isinstance(value, bool | str):
        raise ValueError
    return _storable(value)


def _ports(value: Any) -> PortRange:
    found = re.fullmatch(PORTS_PATTERN, value) if isinstance(value, str) else None
    if found is None:
        raise ValueError
    ports = PortRange(int(found[1]), int(found[2]))
    if ports.first > ports.last:
        raise ValueError("the first is above the last")
    if ports.first < LOWEST_PORT or ports.last > HIGHEST_PORT:
        raise ValueError(f"ports are from {LOWEST_PORT} to {HIGHEST_PORT}")
    return ports


def _loopback(value: Any) -> Address:
    found = re.fullmatch(LISTEN_PATTERN, value) if isinstance(value, str) else None
    if found is None:
        raise ValueError
    try:
        address = ipaddress.ip_address(found[1].strip("[]"))
    except ValueError:
        raise ValueError("the part before the port is no IP address") from None
    is_mapped = isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None
    if not address.is_loopback or is_mapped:
        raise ValueError(
            "it can be reached from other machines, and HTTP alone keeps no secret there; listen on 127.0.0.1 and come "
            "from afar through ssh -L 8642:127.0.0.1:8642, or through a reverse proxy with TLS (its name into hosts)"
        )
    if not 1 <= int(found[2]) <= HIGHEST_PORT:
        raise ValueError(f"ports are from 1 to {HIGHEST_PORT}")
    return Address(str(address), int(found[2]))


_FILE_NAME: Final = r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f-\x9f]{1,255}"
_DOTTED: Final = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
_DURATION_SCHEMA: Final = {"type": "string", "pattern": DURATION_PATTERN}
_SIZE_SCHEMA: Final = {"type": ["integer", "string"], "minimum": 0, "pattern": SIZE_PATTERN}
_DURATION_WORDS: Final = 'a duration such as "500ms", "30s", "15m", "2h" or "1d"'

Duration = Annotated[float, Rule(_DURATION_WORDS, parse_duration, _DURATION_SCHEMA, format_duration).meta()]
"""Seconds, 0 or more."""
Timeout = Annotated[float, Rule(_DURATION_WORDS, _timeout, _DURATION_SCHEMA, format_duration).meta()]
"""Seconds, more than 0."""
Size = Annotated[int, Rule('a size such as "512MiB", "2GB" or 4096', parse_size, _SIZE_SCHEMA, format_size).meta()]
"""Bytes, 0 or more."""

Text = Annotated[
    str, _text(r"[^\x00-\x1f\x7f-\x9f]{1,200}", "a text in quotes, on one line, of 1 to 200 characters").meta()
]
Argument = Annotated[str, _text(r"[^\x00]*", "a text in quotes", schema=False).meta()]
Regex = Annotated[str, Rule("a regular expression in quotes", _regex, {"type": "string", "format": "regex"}).meta()]
FileName = Annotated[str, _text(_FILE_NAME, "the name of a file beside this one, without a folder").meta()]
OwnFileName = Annotated[str, _text(_FILE_NAME, "the name of a file, without a folder").meta()]
Program = Annotated[str, _text(r"[^\x00]+", "a program: its name on the PATH, or its path").meta()]
Function = Annotated[
    str,
    _text(
        rf"([^:\x00]+\.py|{_DOTTED}):{_DOTTED}", 'a function such as "post.py:process" or "package.module:process"'
    ).meta(),
]
FileGlob = Annotated[
    str,
    _text(r"[^/\\\x00-\x1f\x7f-\x9f]{1,255}", 'a pattern for file names such as "*.inp", without a folder').meta(),
]
SolverName = Annotated[
    str,
    _text(SOLVER_NAME, "a solver name: at most 32 of a-z, 0-9, - and _, the first a letter or digit").meta(),
]
LicenseName = Annotated[
    str,
    _text(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", "a license name: at most 64 letters, digits and . - _").meta(),
]
ParamName = Annotated[str, _text(r"[A-Za-z_][A-Za-z0-9_]{0,31}", "a parameter name: letters, digits and _").meta()]
EnvName = Annotated[
    str,
    _text(
        r"(?!SOLVISOR_)[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable (SOLVISOR_... are taken)"
    ).meta(),
]
EnvGlob = Annotated[
    str, _text(r"[A-Za-z0-9_*?]+", 'a pattern for environment variables such as "*_LICENSE_FILE"').meta()
]
Number = Annotated[int | float, Rule("a number", _number, {"type": "number"}).meta()]
Scalar = Annotated[
    bool | int | float | str,
    Rule("a number, a text in quotes, or true or false", _storable, {"type": ["boolean", "number", "string"]}).meta(),
]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Priority = Annotated[int, Meta(ge=-1000, le=1000)]
"""Higher starts first."""
Port = Annotated[int, Meta(ge=LOWEST_PORT, le=HIGHEST_PORT)]
Ports = Annotated[
    PortRange,
    Rule(
        'a range of ports such as "23600-23999"',
        _ports,
        {"type": "string", "pattern": f"^{PORTS_PATTERN}$"},
        lambda ports: f"{ports.first}-{ports.last}",
    ).meta(),
]
Listen = Annotated[
    Address,
    Rule(
        'a loopback address with a port, such as "127.0.0.1:8642" or "[::1]:8642"',
        _loopback,
        {"type": "string", "pattern": f"^{LISTEN_PATTERN}$"},
        lambda address: address.authority,
    ).meta(),
]
HostName = Annotated[str, _text(HOST_NAME, 'the name of a machine, without a port, such as "ws04.example"').meta()]
GroupName = Annotated[str, _text(r"[^\x00-\x1f\x7f-\x9f:/]{1,64}", "the name of a group of users").meta()]
