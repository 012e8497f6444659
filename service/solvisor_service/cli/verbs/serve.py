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
        "--until-eof", action="store_true", help="stop, as on SIGTERM, when the standard input comes to its end"
    )


def _serve(arguments: argparse.Namespace) -> int:
    from solvisor_service import main

    return main.run(home_of(arguments), config_of(arguments), until_eof=arguments.until_eof)
