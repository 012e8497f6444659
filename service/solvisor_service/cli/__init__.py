"""The command line: what every verb shares, and the parser made of them.

Each verb is one module in ``verbs`` with a function ``add(verbs)`` that declares its arguments and names the function
to run. Rules: data goes to stdout, everything else to stderr; errors are one paragraph that says what to do; heavy
modules are imported by the function that needs them, for ``--help`` and the client verbs must be quick.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from solvisor import __version__
from solvisor.errors import SolvisorError

VERBS = ("serve", "config")
"""Modules in ``verbs``, in the order of ``--help``."""

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``solvisor``; returns the exit status."""
    arguments = parser().parse_args(argv)
    try:
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except SolvisorError as error:
        print(f"solvisor: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    whole = argparse.ArgumentParser(
        prog="solvisor", description="A supervisor for simulation solvers: drop an input, find a finished result."
    )
    whole.add_argument("--version", action="version", version=f"solvisor {__version__}")
    verbs = whole.add_subparsers(metavar="VERB", required=True)
    for name in VERBS:
        importlib.import_module(f".verbs.{name}", __package__).add(verbs)
    return whole
