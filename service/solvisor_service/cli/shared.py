"""What verbs have in common: where the home is, the options that many take, how a verb is declared."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

SYSTEM_HOME = Path("/var/lib/solvisor")
SYSTEM_CONFIG = Path("/etc/solvisor/solvisor.toml")

Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What ``add_subparsers`` returns."""


def add_verb(
    verbs: Verbs,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    help: str,
    examples: str = "",
    with_home: bool = True,
    with_config: bool = False,
    with_json: bool = False,
) -> argparse.ArgumentParser:
    """Declare a verb: ``run`` gets its arguments and returns the exit status; ``examples`` end its ``--help``."""
    parents = [_home_options()] if with_home else []
    epilog = f"examples:\n{examples}" if examples else None
    verb = verbs.add_parser(
        name,
        parents=parents,
        help=help,
        description=help[:1].upper() + help[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if with_config:
        verb.add_argument("--config", metavar="FILE", help="the configuration (default: solvisor.toml in the home)")
    if with_json:
        verb.add_argument("--json", action="store_true", help="print JSON, for programs")
    verb.set_defaults(run=run)
    return verb


def _home_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--home", metavar="DIR", help="the home directory (default: $SOLVISOR_HOME, else your own)")
    return options


def home_of(arguments: argparse.Namespace) -> Path:
    """The home: ``--home``, else ``SOLVISOR_HOME``, else the user's own, else the system's if it exists."""
    if arguments.home is not None:
        return Path(arguments.home).absolute()
    named = os.environ.get("SOLVISOR_HOME")
    if named:
        return Path(named).absolute()
    own = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "solvisor"
    return SYSTEM_HOME if SYSTEM_HOME.exists() and not own.exists() else own


def config_of(arguments: argparse.Namespace) -> Path:
    """The configuration: ``--config``, else the home's, else the system's for the system's home."""
    named = getattr(arguments, "config", None)
    if named is not None:
        return Path(named).absolute()
    home = home_of(arguments)
    inside = home / "solvisor.toml"
    return SYSTEM_CONFIG if home == SYSTEM_HOME and not inside.exists() else inside
