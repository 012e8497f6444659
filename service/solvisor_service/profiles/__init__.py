"""What Solvisor knows of solvers that people have: how each is found, and the table that judges it rightly.

Rules: the one place where a ready table is written is ``tables/<solver>.toml``, text with its comments; the pages of
``docs/solvers``, ``examples/solvers.toml`` and what ``solvisor init`` writes are made from it. ``about.toml`` says what
else is known. A new solver is an entry there, a table and its example inputs. This module reads data; it must not know
what is installed here or what is being written.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any, Final

import msgspec
from msgspec import Struct

DATA: Final = resources.files(__name__)


class VersionQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How a program is asked for its version: with ``arguments`` it exits ``exit``; ``pattern``'s group 1 is it."""

    arguments: tuple[str, ...]
    pattern: str
    exit: int = 0


class Example(Struct, frozen=True, forbid_unknown_fields=True):
    """An input to try: a file or folder. Good without ``says``; else it must fail, with that in its message."""

    file: str
    says: str = ""
    shows: str = ""

    @property
    def good(self) -> bool:
        """Whether the job must succeed."""
        return not self.says


class About(Struct, frozen=True, forbid_unknown_fields=True):
    """One entry of ``about.toml``, which explains the keys."""

    title: str
    programs: tuple[str, ...] = ()
    version: VersionQuery | None = None
    tested: str | None = None
    examples: tuple[Example, ...] = ()
    notes: str = ""


class Profile(Struct, frozen=True):
    """A solver that is known, by the name of its table."""

    name: str
    about: About

    @property
    def table(self) -> str:
        """The table's text, comments in front."""
        return read(f"tables/{self.name}.toml")

    @property
    def accept(self) -> tuple[str, ...]:
        """The patterns of the table as it stands."""
        return tuple(self._solver["accept"])

    @property
    def kind(self) -> str:
        """How the table drives it."""
        return str(self._solver.get("kind", "command"))

    @property
    def _solver(self) -> dict[str, Any]:
        table: dict[str, Any] = tomllib.loads(self.table)["solver"][self.name]
        return table

    def example(self, example: Example) -> Traversable:
        """The file or folder itself."""
        return DATA / "examples" / self.name / example.file


@cache
def profiles() -> tuple[Profile, ...]:
    """All of them, in the order in which a configuration lists them."""
    about = msgspec.convert(tomllib.loads(read("about.toml")), dict[str, About])
    return tuple(Profile(name, entry) for name, entry in about.items())


def read(name: str) -> str:
    """A text of the package's data."""
    return (DATA / name).read_text(encoding="utf-8")
