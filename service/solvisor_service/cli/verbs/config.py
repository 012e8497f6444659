"""``solvisor config``: check or show the configuration, print a JSON Schema."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from solvisor_service.cli.shared import Verbs, add_verb, config_of, print_json

if TYPE_CHECKING:
    from pathlib import Path

    from solvisor.config import Config


def add(verbs: Verbs) -> None:
    """Declare the verb and its actions."""
    config = verbs.add_parser("config", help="check or show the configuration, print its JSON Schema")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    text = "name every fault of the configuration; exit 2 if there is one"
    add_verb(actions, "check", _check, help=text, with_config=True, with_json=True)
    text = "print the configuration in force, defaults included"
    add_verb(actions, "show", _show, help=text, with_config=True, with_json=True)
    schema = add_verb(actions, "schema", _schema, help="print a JSON Schema for editors", with_home=False)
    schema.add_argument("of", nargs="?", default="solvisor", choices=["solvisor", "job", "manifest"])


def _check(arguments: argparse.Namespace) -> int:
    from solvisor.errors import ConfigError

    path = config_of(arguments)
    try:
        loaded, warnings = _looked_at(path)
    except ConfigError as error:
        if not arguments.json:
            raise
        print_json({"path": str(path), "solvers": [], "warnings": [], "faults": error.problems})
        return error.exit_status
    if arguments.json:
        print_json({"path": str(path), "solvers": sorted(loaded.solver), "warnings": warnings, "faults": []})
        return 0
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    names = ", ".join(sorted(loaded.solver)) or "none"
    print(f"{loaded.path}: good; solvers: {names}")
    return 0


def _looked_at(config_path: Path) -> tuple[Config, list[str]]:
    """The configuration and what is doubtful about it on this machine. Raises ``ConfigError``."""
    from solvisor import config
    from solvisor.errors import SpawnError
    from solvisor.kinds import programs
    from solvisor.process import host
    from solvisor.solvers import command

    loaded = config.load(config_path)
    loaded.limits(host.usable_cpus(), host.total_memory_bytes())
    command.source_environments(loaded, os.environ)
    warnings = [*loaded.warnings, *_unenforced(loaded)]
    here, path = loaded.path.parent, os.environ.get("PATH", os.defpath)
    for name, solver in loaded.solver.items():
        for key, argv in programs(solver).items():
            try:
                program = os.path.expanduser(argv[0])
                command.find_program(program, f"solver {name}", here, solver.env.get("PATH", path), key)
            except SpawnError as error:
                warnings.append(str(error))
    if loaded.notify is not None:
        try:
            command.find_program(loaded.notify.command[0], "[notify]", here, path)
        except SpawnError as error:
            warnings.append(str(error).replace("of solver [notify]", "of [notify]"))
    return loaded, warnings


def _unenforced(loaded: Config) -> list[str]:
    """Limits that a daemon started here would not enforce."""
    if not loaded.unenforced(()):
        return []
    from solvisor.process import cgroups

    return loaded.unenforced(cgroups.limits_here())


def _show(arguments: argparse.Namespace) -> int:
    from solvisor import config

    text = config.to_toml(config.load(config_of(arguments)))
    if arguments.json:
        import tomllib

        print_json(tomllib.loads(text))
    else:
        print(text, end="")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from solvisor import schemas

    print(json.dumps(schemas.schema(arguments.of), indent=2))
    return 0
