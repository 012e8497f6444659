"""``solvisor service``: have systemd run the daemon, for the machine or for one user."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, Any

from solvisor_service.cli.shared import SYSTEM_HOME, Verbs, add_verb, config_of, home_of, print_json

if TYPE_CHECKING:
    from solvisor_service.systemd import Done, State
    from solvisor_service.unit import Scope

EXIT_NOT_RUNNING = 3


def add(verbs: Verbs) -> None:
    """Declare the verb and its actions."""
    service = verbs.add_parser("service", help="have systemd run the daemon: install, uninstall, status")
    actions = service.add_subparsers(metavar="ACTION", required=True)
    install = add_verb(
        actions,
        "install",
        _install,
        help="have systemd run the daemon of this home from now on; may be repeated",
        with_config=True,
        with_json=True,
        examples="  solvisor service install --now                          yours, in your own home\n"
        "  sudo solvisor service install --system --now            the machine's, in /var/lib/solvisor\n"
        "  sudo solvisor service install --system --home /data/fem --name fem --as fem",
    )
    install.add_argument("--as", dest="account", metavar="USER", help="who runs it, with --system (default: solvisor)")
    install.add_argument("--now", action="store_true", help="start it, and wait until it is ready")
    uninstall = add_verb(
        actions,
        "uninstall",
        _uninstall,
        help="stop the daemon and remove its unit; the home stays",
        with_home=False,
        with_json=True,
    )
    status = add_verb(
        actions,
        "status",
        _status,
        help="how the unit stands: exit status 0 if it runs, else 3",
        with_home=False,
        with_json=True,
    )
    for action in (install, uninstall, status):
        scope = action.add_mutually_exclusive_group()
        scope.add_argument("--system", dest="scope", action="store_const", const="system", help="a unit of the machine")
        scope.add_argument("--user", dest="scope", action="store_const", const="user", help="a unit of your own")
        action.add_argument("--name", default="solvisor", help="the unit, where there are several homes")


def _install(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from solvisor import config
    from solvisor_service import unit

    _refuse_windows()
    from solvisor_service import systemd

    scope = unit.Scope(arguments.scope) if arguments.scope else systemd.default_scope()
    manager = systemd.Manager(scope)
    manager.need_root("install")
    is_system = scope is unit.Scope.SYSTEM
    if arguments.account is not None and not is_system:
        raise unit.UnitUnusable("--as needs --system: a service of your own runs as yourself")
    if is_system and arguments.home is None and not os.environ.get("SOLVISOR_HOME"):
        arguments.home = str(SYSTEM_HOME)
    home = home_of(arguments)
    if not is_system and arguments.home is None and home == SYSTEM_HOME:
        raise unit.UnitUnusable(
            "you have no home of your own yet; make one with solvisor init, or name one: --home DIR"
        )
    wanted = unit.Unit(
        scope=scope,
        name=arguments.name,
        program=unit.own_program(),
        home=home,
        config=config_of(arguments),
        account=(arguments.account or "solvisor") if is_system else "",
        user_home=None if is_system else Path.home(),
    )
    wanted.text()  # what no unit can hold is refused before anything is looked at by that name
    loaded = config.load(wanted.config)
    own_inbox, group = loaded.inbox.path is None, loaded.api.group
    done = systemd.install(wanted, manager, own_inbox=own_inbox, group=group, start=arguments.now)
    _tell(done, arguments)
    return 0


def _uninstall(arguments: argparse.Namespace) -> int:
    _refuse_windows()
    from solvisor_service import systemd

    _tell(systemd.uninstall(arguments.name, systemd.Manager(_scope(arguments))), arguments)
    return 0


def _status(arguments: argparse.Namespace) -> int:
    _refuse_windows()
    from solvisor_service import systemd

    scope = _scope(arguments)
    state = systemd.state(arguments.name, systemd.Manager(scope))
    answers, why = _socket(state)
    if arguments.json:
        from msgspec import to_builtins

        print_json({**to_builtins(state), "scope": scope.value, "answers": answers, "trouble": why})
    else:
        _show(state, scope, answers, why)
    return 0 if state.pid is not None and state.active.startswith("active ") else EXIT_NOT_RUNNING


def _scope(arguments: argparse.Namespace) -> Scope:
    from solvisor_service import systemd
    from solvisor_service.unit import Scope

    return Scope(arguments.scope) if arguments.scope else systemd.scope_of(arguments.name)


def _refuse_windows() -> None:
    from solvisor_service.unit import ServiceError

    if sys.platform == "win32":
        raise ServiceError("a service of Windows comes with a later version; until then run: solvisor serve")


def _tell(done: Done, arguments: argparse.Namespace) -> None:
    if arguments.json:
        print_json(done)
        return
    from solvisor_service.cli.text import harmless

    for warning in done.warnings:
        print(harmless(f"warning: {warning}"), file=sys.stderr)
    for sentence in done.did:
        print(harmless(sentence))
    if done.next:
        print("next:")
    for step in done.next:
        print(harmless(f"  {step}"))


def _socket(state: State) -> tuple[bool, str | None]:
    """Whether the daemon answers, and why not."""
    from pathlib import Path

    from solvisor.errors import SolvisorError
    from solvisor_service.client import Client

    if state.home is None or state.pid is None:
        return False, None
    try:
        Client(Path(state.home)).status()
    except SolvisorError as error:
        return False, str(error)
    return True, None


def _show(state: State, scope: Scope, answers: bool, why: str | None) -> None:
    from solvisor_service import systemd
    from solvisor_service.cli.text import duration, harmless

    rows: list[tuple[str, Any]] = [
        ("unit", f"{state.unit}, {state.path}" if state.installed else f"{state.path} does not exist"),
        ("home", state.home),
        ("state", f"{state.active}{'' if state.enabled else ', not enabled'}" if state.installed else None),
        ("pid", state.pid),
        ("since", state.since and f"{state.since} ({duration(state.active_seconds or 0)})"),
        ("socket", ("answers" if answers else why) if state.pid else None),
        ("restarts", state.restarts or None),
        ("last exit", state.last_exit),
    ]
    for name, value in rows:
        if value is not None:
            print(harmless(f"{name:10}{value}"))
    if not state.installed:
        print("next:\n  solvisor service install")
    elif state.pid is None and state.last_exit is not None:
        print(f"next:\n  {systemd.journal(scope, state.unit)}   shows what it said")
