"""``solvisor config``: check or show the configuration, print a JSON Schema."""

from __future__ import annotations

import argparse
import json
import os
import sys

from solvisor_service.cli.shared import Verbs, add_verb, config_of


def add(verbs: Verbs) -> None:
    """Declare the verb and its actions."""
    config = verbs.add_parser("config", help="check or show the configuration, print its JSON Schema")
    actions = config.add_subparsers(metavar="ACTION", required=True)
    add_verb(actions, "check", _check, help="name every fault of the configuration", with_config=True)
    add_verb(actions, "show", _show, help="print the configuration in force, defaults included", with_config=True)
    schema = add_verb(actions, "schema", _schema, help="print a JSON Schema for editors", with_home=False)
    schema.add_argument("of", nargs="?", default="solvisor", choices=["solvisor", "job", "manifest"])


def _check(arguments: argparse.Namespace) -> int:
    from solvisor import config
    from solvisor.errors import SpawnError
    from solvisor.process import host
    from solvisor.solvers import command

    loaded = config.load(config_of(arguments))
    loaded.limits(host.usable_cpus(), host.total_memory_bytes())
    command.source_environments(loaded, os.environ)
    warnings = list(loaded.warnings)
    here, path = loaded.path.parent, os.environ.get("PATH", os.defpath)
    for name, solver in loaded.solver.items():
        try:
            command.find_program(solver.command[0], name, here, solver.env.get("PATH", path))
        except SpawnError as error:
            warnings.append(str(error))
    if loaded.notify is not None:
        try:
            command.find_program(loaded.notify.command[0], "[notify]", here, path)
        except SpawnError as error:
            warnings.append(str(error).replace("of solver [notify]", "of [notify]"))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    names = ", ".join(sorted(loaded.solver)) or "none"
    print(f"{loaded.path}: good; solvers: {names}")
    return 0


def _show(arguments: argparse.Namespace) -> int:
    from solvisor import config

    print(config.to_toml(config.load(config_of(arguments))), end="")
    return 0


def _schema(arguments: argparse.Namespace) -> int:
    from solvisor import schemas

    print(json.dumps(schemas.schema(arguments.of), indent=2))
    return 0
