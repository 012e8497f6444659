"""The command line: what every verb shares, and the parser made of them.

Each verb is one module in ``verbs`` with a function ``add(verbs)`` that declares its arguments and names the function
to run. Rules: data goes to stdout, everything else to stderr; errors are one paragraph that says what to do; heavy
modules are imported by the function that needs them, and of the verbs only the one that is meant, for it must be quick.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from solvisor import __version__
from solvisor.errors import SolvisorError
from solvisor_service.cli.shared import complain

VERBS: Final[Mapping[str, str]] = {
    "init": "init",
    "serve": "serve",
    "run": "run",
    "submit": "submit",
    "status": "status",
    "top": "top",
    "list": "list_",
    "show": "show",
    "logs": "logs",
    "get": "get",
    "wait": "wait",
    "cancel": "cancel",
    "retry": "cancel",
    "priority": "priority",
    "pause": "pause",
    "resume": "pause",
    "limit": "limit",
    "servers": "servers",
    "explain": "explain",
    "report": "report",
    "page": "page",
    "try": "trial",
    "doctor": "doctor",
    "backup": "backup",
    "rebuild": "rebuild",
    "config": "config",
    "service": "service",
    "completion": "completion",
}
"""The module in ``verbs`` that declares each verb, in the order of ``--help``."""

EXIT_INTERRUPTED = 130

_OUTPUT_LOST = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What writing to stdout or stderr may end with, where these lie on a disk or a terminal."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``solvisor``; returns the exit status."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # whoever started this closed it
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  until the end of the program
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a locale that lacks a character is no reason to fail
    words = sys.argv[1:] if argv is None else argv
    arguments = argparse.Namespace()
    try:
        parser(*words[:1]).parse_args(words, arguments)
        status: int = arguments.run(arguments)
        sys.stdout.flush()
    except SolvisorError as error:
        return _failed(error, error.exit_status, arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is not None:
            return _failed(f"{os.fsdecode(error.filename)}: {error.strerror}", 1, arguments)
        if error.errno not in _OUTPUT_LOST:
            raise
        return _failed(f"what is to be printed cannot be written: {error.strerror}", 1, arguments)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return status


def _failed(error: SolvisorError | str, status: int, arguments: argparse.Namespace) -> int:
    """Say it; where that cannot be written either, the exit status is all that is left to say."""
    with contextlib.suppress(OSError):
        complain(error, arguments)
    return status


def parser(verb: str = "") -> argparse.ArgumentParser:
    """The parser of ``verb`` alone, for the others would take longer than its work; of all where it is none."""
    whole = _Parser(
        prog="solvisor", description="A supervisor for simulation solvers: drop an input, find a finished result."
    )
    whole.add_argument("--version", action="version", version=f"solvisor {__version__}")
    verbs = whole.add_subparsers(metavar="VERB", required=True)
    for name in dict.fromkeys([VERBS[verb]] if verb in VERBS else VERBS.values()):
        importlib.import_module(f".verbs.{name}", __package__).add(verbs)
    return whole


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong itself, with its own usage, and lets options stand between names.

    Of ``submit a.inp --cpus 2 b.inp -- -c.inp`` the names are a.inp, b.inp and -c.inp.
    """

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # overloads in its base
        """Parse all of them: nothing is left unknown."""
        words = sys.argv[1:] if args is None else list(args)
        verbs = next((action for action in self._actions if action.nargs == argparse.PARSER), None)
        if verbs is None:
            words = self._options_first(words)
        elif self._means_first(words, verbs):
            words = [next(iter(verbs.choices or ())), *words]
        elif words:
            self._check_verb(words[0], verbs)
        namespace, unknown = super().parse_known_args(words, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(word for word in unknown if word != '--')}")
        return namespace, unknown

    def _means_first(self, words: Sequence[str], verbs: argparse.Action) -> bool:
        """Whether the first action is meant: none has to be named, and what stands there are only its options."""
        if verbs.required or set(words) & set(verbs.choices or ()):
            return False
        own = [option for action in self._actions for option in action.option_strings]
        return not words or (words[0].startswith("-") and not any(option.startswith(words[0]) for option in own))

    def _options_first(self, words: Sequence[str]) -> list[str]:
        """The same words as options with their values, ``--``, names: the one order that every argparse reads alike."""
        options: list[str] = []
        names: list[str] = []
        left = iter(words)
        for word in left:
            if word == "--":
                names += left
            elif word.startswith("-") and word != "-" and not word[1:].isdecimal():  # no option is a number
                options.append(word)
                if self._takes_next(word):
                    options += [value for value in [next(left, None)] if value is not None]
            else:
                names.append(word)
        return [*options, "--", *names] if names else options

    def _takes_next(self, word: str) -> bool:
        """Whether the value of this option is the next word; argparse also takes the beginning of a long option."""
        if not word.startswith("--"):
            return any(a.nargs is None and word in a.option_strings for a in self._actions)
        meant = [a for a in self._actions if any(option == word for option in a.option_strings)]
        meant = meant or [a for a in self._actions if any(option.startswith(word) for option in a.option_strings)]
        return any(action.nargs is None for action in meant)

    def _check_verb(self, word: str, verbs: argparse.Action) -> None:
        """Say what can be meant by a first word that is neither a verb nor an option that stands before it."""
        known = list(verbs.choices or ())
        if word.startswith("-"):
            own = [option for action in self._actions for option in action.option_strings]
            if not any(option.startswith(word) for option in own):
                self.error(f"{word} stands after what is to be done: {self.prog} {verbs.metavar} {word} ...")
        elif word not in known:
            import difflib

            near = difflib.get_close_matches(word, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
            self.error(f"no such {str(verbs.metavar).lower()}: {word!r}; {hint}")

    def error(self, message: str) -> NoReturn:
        """End with status 2, as every wrong use."""
        from solvisor_service.cli.text import harmless

        super().error(harmless(message))
