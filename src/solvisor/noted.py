"""Who the leaders of warm servers are, written down for the next life, should this one be killed.

Programs that write a title over their arguments wipe out the environment by which a process of an earlier life is
found; its number and start time in this boot name it as well. Rules: a note lies in its server's folder and goes with
it. Not durable: what a power cut takes, it takes with the processes. Everything here blocks.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from . import failpoint
from .home import Home

SERVERS = "servers"
"""The folder in ``run/`` with a folder for each server."""

NOTE = "process.json"


class NotedProcess(Struct, frozen=True):
    """The leader of a server: ``start`` in clock ticks since the boot ``boot_id``; ``token`` without the home's id."""

    pid: int
    start: int
    boot_id: str
    token: str


_decode_note = msgspec.json.Decoder(NotedProcess).decode


def note(folder: Path, process: NotedProcess) -> None:
    """Write down the leader of the server in ``folder``."""
    with suppress(OSError):  # its environment says it as well, unless it wipes that out
        failpoint.reach("server.started")
        (folder / NOTE).write_bytes(msgspec.json.encode(process))
        failpoint.reach("server.noted")


def noted_servers(home: Home, boot_id: str) -> dict[tuple[int, int], str]:
    """The servers that an earlier life had in this boot: (pid, start) and token."""
    found = [noted for path in (home.run / SERVERS).glob("*") if (noted := _read(path)) is not None]
    return {(one.pid, one.start): one.token for one in found if one.boot_id == boot_id}


def remove_servers(home: Home, alive: Collection[str]) -> list[str]:
    """Remove what servers of an earlier life left, but not what would not die; returns the names of those.

    ``alive`` are the tokens of what would not.
    """
    kept = []
    for folder in sorted((home.run / SERVERS).glob("*")):
        noted = _read(folder)
        if noted is not None and noted.token in alive:
            kept.append(folder.name)
        else:
            remove(folder)
    return kept


def remove(folder: Path) -> None:
    """Remove a server's folder, whatever is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> NotedProcess | None:
    try:
        return _decode_note((folder / NOTE).read_bytes())
    except (OSError, msgspec.DecodeError):  # killed before or while it wrote
        return None
