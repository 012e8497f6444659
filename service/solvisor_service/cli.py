"""The command line: one function per verb.

Rules: data goes to stdout, everything else to stderr; errors are one paragraph that says what to do; heavy modules are
imported by the verb that needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from solvisor import __version__
from solvisor.errors import SolvisorError

SYSTEM_HOME = Path("/var/lib/solvisor")
SYSTEM_CONFIG = Path("/etc/solvisor/solvisor.toml")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``solvisor``; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        status: int = arguments.verb(arguments)
    except SolvisorError as error:
        print(f"solvisor: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _serve(arguments: argparse.Namespace) -> int:
    from . import main as root

    return root.serve(_home(arguments), _config(arguments))


def _config_check(arguments: argparse.Namespace) -> int:
    from solvisor import config
    from solvisor.errors import SpawnError
    from solvisor.process import host
    from solvisor.solvers import command

    loaded = config.load(_config(arguments))
    loaded.limits(host.usable_cpus(), host.total_memory_bytes())
    command.source_environments(loaded, os.environ)
    warnings = list(loaded.warnings)
    here, path = loaded.path.parent, os.environ.get("PATH", os.defpath)
    for name, solver in loaded.solver.items():
        try:
            command.find_program(solver.command[0], name, here, solver.env.get("PATH", path))
        except SpawnError as error:
            warnings.append(str(error))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    names = ", ".join(sorted(loaded.solver)) or "none"
    print(f"{loaded.path}: good; solvers: {names}")
    return 0


def _config_show(arguments: argparse.Namespace) -> int:
    from solvisor import config

    print(config.to_toml(config.load(_config(arguments))), end="")
    return 0


def _config_schema(arguments: argparse.Namespace) -> int:
    from solvisor import schemas

    print(json.dumps(schemas.schema(arguments.of), indent=2))
    return 0


def _home(arguments: argparse.Namespace) -> Path:
    """The home: ``--home``, else ``SOLVISOR_HOME``, else the user's own, else the system's if it exists."""
    if arguments.home is not None:
        return Path(arguments.home).absolute()
    named = os.environ.get("SOLVISOR_HOME")
    if named:
        return Path(named).absolute()
    own = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "solvisor"
    return SYSTEM_HOME if SYSTEM_HOME.exists() and not own.exists() else own


def _config(arguments: argparse.Namespace) -> Path:
    """The configuration: ``--config``, else the home's, else the system's for the system's home."""
    if arguments.config is not None:
        return Path(arguments.config).absolute()
    home = _home(arguments)
    inside = home / "solvisor.toml"
    return SYSTEM_CONFIG if home == SYSTEM_HOME and not inside.exists() else inside


def _parser() -> argparse.ArgumentParser:
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--home", metavar="DIR", help="the home directory (default: $SOLVISOR_HOME, else your own)")
    where.add_argument("--config", metavar="FILE", help="the configuration (default: solvisor.toml in the home)")
    parser = argparse.ArgumentParser(
        prog="solvisor", description="A supervisor for simulation solvers: drop an input, find a finished result."
    )
    parser.add_argument("--version", action="version", version=f"solvisor {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    serve = verbs.add_parser("serve", parents=[where], help="run the daemon in the foreground")
    serve.set_defaults(verb=_serve)
    config = verbs.add_parser("config", help="check or show the configuration, print its JSON Schema")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    check = actions.add_parser("check", parents=[where], help="name every fault of the configuration")
    check.set_defaults(verb=_config_check)
    show = actions.add_parser("show", parents=[where], help="print the configuration in force, defaults included")
    show.set_defaults(verb=_config_show)
    schema = actions.add_parser("schema", help="print a JSON Schema for editors")
    schema.add_argument("of", nargs="?", default="solvisor", choices=["solvisor", "job", "manifest"])
    schema.set_defaults(verb=_config_schema)
    return parser


if __name__ == "__main__":
    sys.exit(main())
