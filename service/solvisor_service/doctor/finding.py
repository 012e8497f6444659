"""The words of the doctor: what is looked at, and what was found.

Rules: a finding is one line of what is so, and where that is not well one line of what to do. This module judges
nothing.
"""

from __future__ import annotations

import shlex
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Final

from msgspec import Struct

from solvisor import config as configuration
from solvisor.config import Config
from solvisor.errors import ConfigError
from solvisor.home import Home
from solvisor_service.holder import Holder, Surroundings, holder_of, surroundings

MOUNTS: Final = Path("/proc/self/mountinfo")


class Level(StrEnum):
    """How much it matters. Only a fault keeps the service from doing its work."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAULT = "fault"


class Finding(Struct, frozen=True):
    """What was found, and how to mend it (empty where there is nothing to mend)."""

    level: Level
    found: str
    mend: str = ""


def ok(found: str) -> Finding:
    """As it should be."""
    return Finding(Level.OK, found)


def note(found: str, mend: str = "") -> Finding:
    """Worth knowing."""
    return Finding(Level.NOTE, found, mend)


def warning(found: str, mend: str) -> Finding:
    """It works, but not well or not for long."""
    return Finding(Level.WARNING, found, mend)


def fault(found: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(Level.FAULT, found, mend)


def from_error(error: Exception) -> Finding:
    """A fault of which an error says what happened and, after a semicolon, what to do."""
    found, _, mend = str(error).partition("; ")
    return fault(found, mend or "see the log of the daemon")


class Subject:
    """The home and the configuration that are looked at, and what several checks want to know of them.

    ``mounts`` is where the kernel lists the mounted file systems. ``deep``: what takes long is looked at too. Checks
    look at the same time; a value that two of them compute at once is the same.
    """

    def __init__(self, home: Path, config: Path, mounts: Path = MOUNTS, *, deep: bool = False) -> None:
        self.home = home
        self.config_path = config
        self.mounts = mounts
        self.deep = deep

    @property
    def option(self) -> str:
        """The home as an option of a command that can be pasted."""
        return f"--home {shlex.quote(str(self.home))}"

    @cached_property
    def config(self) -> Config | None:
        """The configuration, or ``None`` where it cannot be read or has faults: its own check says which."""
        try:
            return configuration.load(self.config_path)
        except ConfigError:
            return None

    @property
    def layout(self) -> Home:
        """Where everything lies."""
        inbox = self.config.inbox.path if self.config is not None else None
        return Home.at(self.home, Path(inbox) if inbox else None)

    @property
    def holder(self) -> Holder | None:
        """The daemon of the home, if one runs. Raises ``OSError`` if this user may not know."""
        return holder_of(self.home)

    @property
    def surroundings(self) -> Surroundings:
        """The environment in which solvers are started."""
        return surroundings(self.home)
