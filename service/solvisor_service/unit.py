"""The unit file of systemd: one template, as text for the system's manager or for a user's.

Rules: ``unit.template`` is the only place where a unit is written down; ``systemd/solvisor.service`` is what it gives
for a usual installation. A line that begins with ``system:`` or ``user:`` stands only in such a unit. Paths may hold
anything that a unit can name: what it could misread is escaped, the rest refused. No systemd is needed here; nothing
here writes.
"""

from __future__ import annotations

import json
import os
import re
import sys
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Final

from msgspec import Struct

from solvisor.errors import SolvisorError
from solvisor.names import is_plain_name

_PLAIN_WORD: Final = re.compile(r"[A-Za-z0-9_@+=:,./-]+")
_UNIT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_ACCOUNT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@$-]{0,63}")
_HOME_LINE: Final = re.compile(r"^\[X-Solvisor\]\nHome=(.+)$", re.MULTILINE)


class ServiceError(SolvisorError):
    """The service cannot be installed, removed or looked at."""

    code = "service"


class UnitUnusable(ServiceError):
    """What was asked for cannot stand in a unit."""

    code = "unit"
    exit_status = 2


class NotPermitted(ServiceError):
    """Only root may do this."""

    code = "not_permitted"
    exit_status = 77


class Scope(StrEnum):
    """Whose manager runs the unit."""

    SYSTEM = "system"
    USER = "user"


class Unit(Struct, frozen=True):
    """What a unit is made of: ``name`` without ``.service``, paths absolute, ``program`` with its first arguments.

    ``account`` is who runs a unit of the system, ``user_home`` what ``%h`` stands for in one of a user.
    """

    scope: Scope
    name: str
    program: tuple[str, ...]
    home: Path
    config: Path
    account: str = ""
    user_home: Path | None = None

    def text(self) -> str:
        """The unit file. Raises ``UnitUnusable``."""
        if not _UNIT_NAME.fullmatch(self.name) or self.name.endswith(".service"):
            raise UnitUnusable(
                f"{self.name!r} cannot name a service: use at most 64 letters, digits and _ . -, without .service"
            )
        if self.scope is Scope.SYSTEM and not _ACCOUNT.fullmatch(self.account):
            raise UnitUnusable(f"{self.account!r} cannot be the account of a unit; name another one with --as")
        for path in (*self.program, self.home, self.config):
            if not is_plain_name(str(path)):
                raise UnitUnusable(
                    f"{str(path)!r} cannot stand in a unit: it holds control characters, backslashes or bytes that are "
                    "not UTF-8; choose another path"
                )
        places = [self._place(self.home), self._place(self.config)]
        program, *arguments = self.program
        # What stands for a variable in an argument is not looked at in the program's own path.
        command = [_word(_percent(program)), *(_word(_argument(argument)) for argument in arguments)]
        command += ["serve", "--home", _word(places[0]), "--config", _word(places[1])]
        values = {
            "OPTION": "--user " if self.scope is Scope.USER else "",
            "NAME": self.name,
            "ACCOUNT": self.account,
            "COMMAND": " ".join(command),
            "HOME": _percent(str(self.home)),
            "HOME_AS_JSON": json.dumps(str(self.home)),
        }
        return re.sub(r"@([A-Z_]+)@", lambda field: values[field[1]], self._template())

    def _place(self, path: Path) -> str:
        """A path for an argument; below the user's own folder in terms of it, wherever that lies later."""
        if self.user_home is not None and path.is_relative_to(self.user_home):
            return os.path.join("%h", _argument(str(path.relative_to(self.user_home))))
        return _argument(str(path))

    def _template(self) -> str:
        lines = []
        for line in resources.files(__package__).joinpath("unit.template").read_text(encoding="utf-8").splitlines():
            scope, marked, rest = line.partition(":")
            if not marked or scope not in list(Scope):
                lines.append(line)
            elif scope == self.scope:
                lines.append(rest.removeprefix(" "))
        return "\n".join(lines) + "\n"


def _percent(text: str) -> str:
    return text.replace("%", "%%")


def _argument(text: str) -> str:
    return _percent(text).replace("$", "$$")


def _word(text: str) -> str:
    """One word of a command line, its specifiers (``%h``) already as they shall be."""
    if _PLAIN_WORD.fullmatch(text.replace("%h/", "", 1)):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def home_in(text: str) -> Path | None:
    """The home that a unit file serves; ``None`` if it was not written by us."""
    found = _HOME_LINE.search(text)
    try:
        home = json.loads(found[1]) if found else None
    except ValueError:
        return None
    return Path(home) if isinstance(home, str) else None


def own_program() -> tuple[str, ...]:
    """How to call this very installation, whatever the PATH says: its script, or its interpreter and module."""
    script = Path(sys.executable).with_name("solvisor")
    if sys.prefix != sys.base_prefix and os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-P", "-m", "solvisor_service.cli")


_BY_HAND: Final = """\
# What "solvisor service install --system" writes for a program in /opt/solvisor. It does the rest as well; by hand:
#   useradd --system --user-group --home-dir /var/lib/solvisor --no-create-home --shell /usr/sbin/nologin solvisor
#   install -d -o solvisor -g solvisor -m 0750 /var/lib/solvisor
#   install -d -o solvisor -g solvisor -m 3770 /var/lib/solvisor/inbox
#   install -m 0644 solvisor.service /etc/systemd/system && systemctl daemon-reload && systemctl enable --now solvisor

"""


def shipped() -> str:
    """``systemd/solvisor.service``: an installation in /opt, for those who make account and home themselves."""
    usual = Unit(
        scope=Scope.SYSTEM,
        name="solvisor",
        program=("/opt/solvisor/bin/solvisor",),
        home=Path("/var/lib/solvisor"),
        config=Path("/etc/solvisor/solvisor.toml"),
        account="solvisor",
    )
    return _BY_HAND + usual.text()
