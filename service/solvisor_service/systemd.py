"""Putting a unit in force and taking it back: the unit file, and systemd's own word on it.

Rules: every step can be done again and then changes nothing; a unit that somebody else wrote is refused, never written
over. systemd is spoken to by ``systemctl``, whose own words are passed on where it refuses. This module knows no job
and prints nothing.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from msgspec import Struct

from solvisor.clock import now_us
from solvisor.manifest import rfc3339
from solvisor_service import account as accounts
from solvisor_service.account import Account
from solvisor_service.unit import NotPermitted, Scope, ServiceError, Unit, home_in

if sys.platform == "win32":
    raise ImportError("solvisor_service.systemd needs systemd, which Windows has not")

_CALL_SECONDS: Final = 900  # a start lasts until READY, a stop until running jobs had their time
_UNIT_FOLDER: Final = Path("/etc/systemd/system")
_LINGER: Final = Path("/var/lib/systemd/linger")
_MEANINGS: Final = {
    2: "the configuration or the home cannot be used",
    75: "the disk failed, or stopping hung",
    100: "another daemon holds the home",
}
_PROPERTIES: Final = (
    *("ActiveState", "SubState", "UnitFileState", "MainPID", "NRestarts", "Result", "LoadState"),
    *("ActiveEnterTimestampMonotonic", "ExecMainCode", "ExecMainStatus", "ExecMainExitTimestampMonotonic"),
)


class Done(Struct, frozen=True):
    """What was done, and what to type next: sentences for a person."""

    unit: str
    path: str
    home: str | None
    did: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    next: tuple[str, ...] = ()


class State(Struct, frozen=True):
    """What systemd knows of a unit. ``since`` is when it became active; ``last_exit`` tells how it ended, if it did."""

    unit: str
    path: str
    home: str | None
    installed: bool
    enabled: bool
    active: str
    pid: int | None
    since: str | None
    active_seconds: float | None
    restarts: int
    last_exit: str | None


def unit_path(scope: Scope, name: str) -> Path:
    """Where the unit file of ``name`` lies."""
    if scope is Scope.SYSTEM:
        return _UNIT_FOLDER / f"{name}.service"
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return settings / "systemd" / "user" / f"{name}.service"


def default_scope() -> Scope:
    """Whose service a user means who does not say: root the system's, everybody else their own."""
    return Scope.SYSTEM if os.geteuid() == 0 else Scope.USER


def scope_of(name: str) -> Scope:
    """Whose unit ``name`` is, where nobody says: as above, but the system's is meant by those who have none."""
    is_shared = unit_path(Scope.SYSTEM, name).exists() and not unit_path(Scope.USER, name).exists()
    return Scope.SYSTEM if is_shared else default_scope()


class Manager:
    """systemd's manager of the system or of this user. Raises ``ServiceError`` where there is none."""

    def __init__(self, scope: Scope) -> None:
        systemctl = shutil.which("systemctl")
        if systemctl is None or not Path("/run/systemd/system").is_dir():
            raise ServiceError(
                "systemd does not run this machine (/run/systemd/system is missing); have your own supervisor run: "
                "solvisor serve --home DIR"
            )
        self.scope = scope
        self._systemctl = systemctl
        self._environ = {**os.environ, "LC_ALL": "C"}
        if scope is Scope.USER and "XDG_RUNTIME_DIR" not in os.environ:  # after su, or from cron
            self._environ["XDG_RUNTIME_DIR"] = f"/run/user/{os.getuid()}"

    def command(self, *arguments: str) -> str:
        """The same call as a person would type it."""
        words = [argument for argument in arguments if not argument.startswith("--")]
        return " ".join(["systemctl", *(["--user"] if self.scope is Scope.USER else []), *words])

    def call(self, *arguments: str) -> str:
        """What systemctl prints. Raises ``ServiceError`` with its own words."""
        try:
            called = subprocess.run(
                [self._systemctl, f"--{self.scope}", "--no-pager", *arguments],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_CALL_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise ServiceError(f"{self.command(*arguments)} did not end within {_CALL_SECONDS} s") from None
        if called.returncode:
            said = called.stderr.strip() or called.stdout.strip() or f"exit status {called.returncode}"
            raise ServiceError(f"{self.command(*arguments)}: {said}{self._hint(said)}")
        return called.stdout

    def _hint(self, said: str) -> str:
        if self.scope is Scope.USER and "connect to bus" in said:
            return "\nlog in directly instead of by su or sudo, or let root run: solvisor service install --system"
        return ""

    def properties(self, name: str) -> dict[str, str]:
        """What systemd knows of the unit, a few properties only."""
        printed = self.call("show", f"{name}.service", f"--property={','.join(_PROPERTIES)}")
        return dict(line.split("=", 1) for line in printed.splitlines() if "=" in line)

    def search_path(self) -> str:
        """The PATH that the unit will have."""
        lines = self.call("show-environment").splitlines()
        return next((line.removeprefix("PATH=") for line in lines if line.startswith("PATH=")), os.defpath)

    def need_root(self, what: str) -> None:
        """Raises ``NotPermitted`` if this user may not change units of this scope; ``what`` is the verb's action."""
        if self.scope is Scope.SYSTEM and os.geteuid() != 0:
            raise NotPermitted(
                f"only root may {what} a service of the system; run it with sudo, or for yourself: --user"
            )


def install(unit: Unit, manager: Manager, *, own_inbox: bool, group: str | None, start: bool) -> Done:
    """Write, load and enable the unit, and start it if asked to; as root also make the account and the folders.

    ``own_inbox`` says that the inbox lies in the home, ``group`` is the one in ``[api]``. Raises ``ServiceError``.
    """
    manager.need_root("install")
    text = unit.text()
    path = unit_path(unit.scope, unit.name)
    before = _installed_text(path)
    serves = home_in(before) if before is not None else None
    if before is not None and serves != unit.home:
        whose = f"serves the home {serves}" if serves else 'was not written by "solvisor service install"'
        raise ServiceError(f"{path} {whose}; choose another name with --name, or move it away first")
    did: list[str] = []
    is_system = unit.scope is Scope.SYSTEM
    account = accounts.named(unit.account, unit.home, did) if is_system else accounts.own()
    check = ["config", "check", "--home", str(unit.home), "--config", str(unit.config)]
    warnings = accounts.rehearse(account, unit.program, check, manager.search_path())
    if is_system:
        accounts.make_folders(unit.home, account, did, own_inbox=own_inbox)
    if text != before:
        _write(path, text)
        did.append(f"wrote {path}")
    manager.call("daemon-reload")
    if manager.properties(unit.name).get("UnitFileState") != "enabled":
        manager.call("--quiet", "enable", f"{unit.name}.service")
        did.append(f"enabled {unit.name}: it starts with {_start_of(unit.scope)}")
    runs = manager.properties(unit.name).get("ActiveState") in ("active", "reloading", "activating")
    if start and not runs:
        try:
            manager.call("start", f"{unit.name}.service")
        except ServiceError as error:
            raise ServiceError(f"{error}\nwhat it said: {journal(unit.scope, unit.name)}") from None
        did.append(f"started {unit.name}: it is ready")
    return Done(
        unit=unit.name,
        path=str(path),
        home=str(unit.home),
        did=tuple(did or ["everything was there already"]),
        warnings=tuple(warnings),
        next=tuple(_next_steps(unit, manager, account, group, runs=runs, started=start, changed=text != before)),
    )


def uninstall(name: str, manager: Manager) -> Done:
    """Stop, disable and remove the unit; the home stays. Raises ``ServiceError``."""
    manager.need_root("uninstall")
    path = unit_path(manager.scope, name)
    before = _installed_text(path)
    if before is None:
        return Done(name, str(path), None, (f"{path} does not exist: nothing to remove",))
    home = home_in(before)
    if home is None:
        raise ServiceError(f'{path} was not written by "solvisor service install"; remove it yourself')
    manager.call("--quiet", "disable", "--now", f"{name}.service")
    path.unlink()
    manager.call("daemon-reload")
    if manager.properties(name).get("ActiveState") == "failed":
        manager.call("reset-failed", f"{name}.service")
    return Done(
        name,
        str(path),
        str(home),
        (f"stopped and disabled {name}", f"removed {path}", f"left the home {home} with all its results as it is"),
    )


def state(name: str, manager: Manager) -> State:
    """How the unit stands now. Raises ``ServiceError``."""
    path = unit_path(manager.scope, name)
    text = _installed_text(path)
    home = home_in(text) if text is not None else None
    found = manager.properties(name)
    entered = int(found.get("ActiveEnterTimestampMonotonic") or 0)
    is_active = found.get("ActiveState") in ("active", "reloading", "deactivating") and entered
    seconds = max(0.0, time.clock_gettime(time.CLOCK_MONOTONIC) - entered / 1e6) if is_active else None
    return State(
        unit=name,
        path=str(path),
        home=None if home is None else str(home),
        installed=text is not None,
        enabled=found.get("UnitFileState") == "enabled",
        active=f"{found.get('ActiveState', 'unknown')} ({found.get('SubState', 'unknown')})",
        pid=int(found.get("MainPID") or 0) or None,
        since=None if seconds is None else rfc3339(now_us() - round(seconds * 1e6)),
        active_seconds=seconds,
        restarts=int(found.get("NRestarts") or 0),
        last_exit=_last_exit(found),
    )


def _last_exit(found: Mapping[str, str]) -> str | None:
    """How the main process ended; systemd forgets it once another one runs."""
    if not int(found.get("ExecMainExitTimestampMonotonic") or 0):
        return None
    status = int(found.get("ExecMainStatus") or 0)
    code, result = found.get("ExecMainCode", ""), found.get("Result", "success")
    ended = f"exit status {status}" if code == "1" else f"killed by signal {status}"
    if code == "1" and status in _MEANINGS:
        ended += f": {_MEANINGS[status]}"
    return ended if result in ("success", "exit-code", "signal") else f"{ended} ({result})"


def _installed_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServiceError(f"{path} cannot be read: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    """The unit file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o644)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise ServiceError(f"{path} cannot be written: {error.strerror}") from None


def _start_of(scope: Scope) -> str:
    return "the machine" if scope is Scope.SYSTEM else "your session"


def journal(scope: Scope, name: str) -> str:
    """How a person reads the last that the daemon said."""
    return f"journalctl {'--user ' if scope is Scope.USER else ''}-u {name} -n 20"


def _next_steps(
    unit: Unit, manager: Manager, account: Account, group: str | None, *, runs: bool, started: bool, changed: bool
) -> list[str]:
    steps = []
    if runs and changed:
        steps.append(f"{manager.command('restart', unit.name)}   it still runs by the unit as it was before")
    if not runs and not started:
        steps.append(f"{manager.command('start', unit.name)}   starts it now")
    steps.append(f"{journal(unit.scope, unit.name).removesuffix('-n 20')}-f   follows its log")
    if unit.scope is Scope.SYSTEM:
        steps.append(
            f"usermod -aG {account.group} USER   lets USER drop files into the inbox, read results and ask the "
            "daemon, from the next login on"
        )
        if group != account.group:
            asks = f"members of {group}" if group else "nobody but root"
            line = f'[api] group = "{account.group}" in {unit.config}'
            steps.append(f"{line}   lets them ask the daemon; as it stands, {asks} may")
    elif not (_LINGER / account.name).exists():
        steps.append(f"loginctl enable-linger {account.name}   lets it run while you are not logged in")
    return steps
