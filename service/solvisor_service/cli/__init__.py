"""The command line: what every verb shares, and the parser made of them.

Each verb is one module in ``verbs`` with a function ``add(verbs)`` that declares its arguments and names the function
to run. Rules: data goes to stdout, everything else to stderr; errors are one paragraph that says what to do; heavy
modules are imported by the function that needs them, for ``--help`` and the client verbs must be quick.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from solvisor import __version__
from solvisor.errors import SolvisorError
from solvisor_service.cli.shared import complain

VERBS = (
    "init",
    "serve",
    "run",
    "submit",
    "status",
    "list_",
    "show",
    "logs",
    "get",
    "wait",
    "cancel",
    "pause",
    "explain",
    "trial",
    "doctor",
    "config",
    "service",
    "completion",
)
"""Modules in ``verbs``, in the order of ``--help``."""

EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``solvisor``; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that lacks a character is no reason to fail
    try:
        arguments = parser().parse_args(argv)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except SolvisorError as error:
        complain(error)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        complain(f"{os.fsdecode(error.filename)}: {error.strerror}")
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
    verbs = whole.add_subparsers(metavar="VERB", required=True, parser_class=_VerbParser)
    for name in VERBS:
        importlib.import_module(f".verbs.{name}", __package__).add(verbs)
    return whole


class _VerbParser(argparse.ArgumentParser):
    """A parser that lets options stand between names: ``submit a.inp --cpus 2 b.inp``."""

    _mixing = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # overloads in its base
        has_actions = any(action.nargs == argparse.PARSER for action in self._actions)
        if self._mixing or has_actions:
            return super().parse_known_args(args, namespace)
        self._mixing = True  # for the intermixed parser calls this method in its turn
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False
