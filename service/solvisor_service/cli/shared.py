"""What verbs have in common: where the home is, who answers for it, how a verb is declared, how JSON is printed."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from solvisor.errors import SolvisorError

if TYPE_CHECKING:
    from solvisor_service.client import Client

SYSTEM_HOME = Path("/var/lib/solvisor")
SYSTEM_CONFIG = Path("/etc/solvisor/solvisor.toml")

EXIT_JOB_FAILED: Final = 1
EXIT_TIMEOUT: Final = 124

FILES: Final[Mapping[str, str]] = {"bash": "_shtab_compgen_files", "zsh": "_files"}
FOLDERS: Final[Mapping[str, str]] = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
"""How a shell completes an argument (``action.complete``); spelled out, for importing shtab costs every verb."""

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
        config = "the configuration (default: solvisor.toml in the home)"
        completed(verb.add_argument("--config", metavar="FILE", help=config), FILES)
    if with_json:
        verb.add_argument("--json", action="store_true", help="print JSON, for programs")
    verb.set_defaults(run=run)
    return verb


def completed(argument: argparse.Action, how: Mapping[str, str]) -> None:
    """Let shells complete ``argument`` with ``FILES`` or ``FOLDERS``."""
    argument.complete = how  # type: ignore[attr-defined]  # read by shtab


def _home_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    home = "the home directory (default: $SOLVISOR_HOME, else your own)"
    completed(options.add_argument("--home", metavar="DIR", help=home), FOLDERS)
    return options


def home_of(arguments: argparse.Namespace) -> Path:
    """The home: ``--home``, else ``SOLVISOR_HOME``, else the user's own, else the system's if it exists."""
    named = _named_home(arguments)
    if named is not None:
        return named
    own = _own_home()
    return SYSTEM_HOME if SYSTEM_HOME.exists() and not own.exists() else own


def _named_home(arguments: argparse.Namespace) -> Path | None:
    named = arguments.home if arguments.home is not None else os.environ.get("SOLVISOR_HOME")
    return Path(named).absolute() if named else None


def _own_home() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "solvisor"


def config_of(arguments: argparse.Namespace) -> Path:
    """The configuration: ``--config``, else the home's, else the system's for the system's home."""
    named = getattr(arguments, "config", None)
    if named is not None:
        return Path(named).absolute()
    home = home_of(arguments)
    inside = home / "solvisor.toml"
    return SYSTEM_CONFIG if home == SYSTEM_HOME and not os.path.exists(inside) else inside


def live_home(arguments: argparse.Namespace) -> Path:
    """The home to ask: where none is named, the one whose daemon lives; of two, the user's own, and that is said."""
    if _named_home(arguments) is not None:
        return home_of(arguments)
    own = _own_home()
    live = [place for place in (own, SYSTEM_HOME) if _answers(place)]
    if len(live) > 1:
        other = f"the system's: --home {SYSTEM_HOME}"
        print(f"solvisor: asking your own daemon, on {own}; {other}", file=sys.stderr)
    return live[0] if live else home_of(arguments)


def client_of(arguments: argparse.Namespace) -> Client:
    """A client of the daemon of ``live_home``."""
    from solvisor_service.client import Client

    return Client(live_home(arguments))


def _answers(home: Path) -> bool:
    """Whether a daemon listens on this home, also one that this user may not talk to."""
    if sys.platform == "win32":
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(home / "run" / "solvisor.sock"))
        except PermissionError:
            return True
        except OSError:
            return False
    return True


def seconds(text: str) -> float:
    """The value of an option that is a duration (``10m``), for argparse."""
    from solvisor.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        reason = str(error) or "it is no duration"
        raise argparse.ArgumentTypeError(f"{text!r}: {reason}; write it like 30s, 10m, 2h or 1d") from None


def for_each(names: Iterable[str], act: Callable[[str], None]) -> int:
    """Do the same to every job that is named; what is refused of one keeps no other from its turn.

    Returns the exit status of the first that was refused, 0 if none was.
    """
    from solvisor_service.client import RequestRefused

    status = 0
    for name in dict.fromkeys(names):
        try:
            act(name)
        except RequestRefused as refused:
            complain(refused)
            status = status or refused.exit_status
    return status


def complain(error: SolvisorError | str, about: str = "") -> None:
    """Say on stderr what went wrong, with what (unless the error says so), and which jobs could have been meant."""
    from solvisor_service.cli.text import harmless

    sys.stdout.flush()  # what was said before this stands before it where both go to one place
    text = str(error)
    if about and not text.startswith((f"{about} ", f"{about}:")):
        text = f"{about}: {text}"
    print(harmless(f"solvisor: {text}"), file=sys.stderr)
    problem = getattr(error, "problem", None)
    for candidate in problem.candidates if problem is not None else ():
        if candidate not in text:
            print(harmless(f"  {candidate}"), file=sys.stderr)


def print_json(answer: Any, *, line: bool = False) -> None:
    """Print an answer as one JSON document; with ``line`` on one line, as one of several."""
    import msgspec

    data = msgspec.json.encode(answer)
    if sys.stdout.isatty():
        import json

        # A terminal shows what other users wrote: what is not ASCII could turn or hide it.
        data = json.dumps(json.loads(data)).encode()
    sys.stdout.flush()
    sys.stdout.buffer.write((data if line else msgspec.json.format(data, indent=2)) + b"\n")
    sys.stdout.buffer.flush()
