"""``solvisor serve``: the daemon in the foreground."""

from __future__ import annotations

import argparse

from solvisor_service.cli.shared import Verbs, add_verb, config_of, home_of


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    serve = add_verb(
        verbs,
        "serve",
        _serve,
        help="run the daemon in the foreground",
        with_config=True,
        examples="  solvisor serve --home ~/solvisor",
    )
    serve.add_argument(
        "--until-eof",
        action="store_true",
        help="serve who holds the standard input: start only what is sent, stop when that comes to its end",
    )
    serve.add_argument("--batch", metavar="ID", help="with --until-eof: take this batch of an earlier life up as well")


def _serve(arguments: argparse.Namespace) -> int:
    from solvisor_service import main

    return main.run(home_of(arguments), config_of(arguments), until_eof=arguments.until_eof, batch=arguments.batch)
