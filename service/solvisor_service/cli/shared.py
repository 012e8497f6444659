"""What verbs have in common: where the home is, who answers for it, how a verb is declared, how JSON is printed.

Also how what a user typed is read, and how a hint is told so that it can be typed again.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from solvisor.errors import HomeError, SolvisorError

if TYPE_CHECKING:
    from solvisor_service.client import Client

SYSTEM_HOME = Path("/var/lib/solvisor")
SYSTEM_CONFIG = Path("/etc/solvisor/solvisor.toml")

EXIT_JOB_FAILED: Final = 1
EXIT_TIMEOUT: Final = 124

FILES: Final[Mapping[str, str]] = {"bash": "_shtab_compgen_files", "zsh": "_files"}
FOLDERS: Final[Mapping[str, str]] = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}
"""How a shell completes an argument (``action.complete``); spelled out, for importing shtab costs every verb."""

_COMMAND: Final = (
    r"(?<!\")\bsolvisor ((?:config (?:check|show)|servers(?: (?:list|scale|recycle|restart))?|service install"
    r"|init|serve|run|submit|status|top|list|show|logs|get|wait|cancel|retry|priority|pause|resume|limit|explain|page|try"
    r"|report|doctor|backup|rebuild)\b)"
    r"(?![\w-])(?![^;\n]* --(?:home|help)\b)"
)
"""A command in a text, of a verb that takes ``--home`` and is told without it; it ends with a semicolon at the latest.

In double quotes it is what somebody did, and nothing to paste.
"""

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
        completed(verb.add_argument("--config", metavar="FILE", type=given, help=config), FILES)
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
    completed(options.add_argument("--home", metavar="DIR", type=given, help=home), FOLDERS)
    return options


def home_of(arguments: argparse.Namespace) -> Path:
    """The home: ``--home``, else ``SOLVISOR_HOME``, else the user's own, else the system's if it exists.

    Raises ``HomeError`` if that is something else than a folder.
    """
    home = _named_home(arguments)
    if home is None:
        own = _own_home()
        home = SYSTEM_HOME if SYSTEM_HOME.exists() and not own.exists() else own
    if os.path.exists(home) and not os.path.isdir(home):
        raise HomeError(f"{home} is not a folder, so it cannot be a home; name another one: --home DIR")
    return home


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

    return Client(live_home(arguments), tell)


def tell(text: str) -> None:
    """Say on stderr what happens meanwhile; from any thread."""
    from solvisor_service.cli.text import harmless

    print(harmless(f"solvisor: {text}"), file=sys.stderr, flush=True)


def reader_of(arguments: argparse.Namespace) -> Client:
    """A client for questions about jobs: where no daemon runs, the home itself is read, and that is said."""
    from solvisor_service.client import Busy, Client, NotRunning

    home = live_home(arguments)
    client = Client(home, tell)
    try:
        client.must_run()
    except NotRunning as error:
        if not os.access(home / "state" / "solvisor.db", os.R_OK):
            raise
        from solvisor_service.cli.text import harmless
        from solvisor_service.offline import OfflineClient

        what = "a daemon is starting or ending" if isinstance(error, Busy) else "no daemon is running"
        print(harmless(f"solvisor: {what} on {home}; this is what its home says"), file=sys.stderr)
        return OfflineClient(home, config_of(arguments))
    return client


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


def homed(text: str, arguments: argparse.Namespace) -> str:
    """``text`` with the ``--home`` that was given in every command that it tells, so that it can be pasted."""
    home = getattr(arguments, "home", None)
    if home is None or "solvisor " not in text:
        return text
    import shlex

    option = shlex.quote(home)
    return re.sub(_COMMAND, lambda command: f"{command[0]} --home {option}", text)


def given(text: str) -> str:
    """The value of an option or a name, for argparse: an empty one is most likely a variable that is not set."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; is a variable not set?")
    return text


def text_given(text: str) -> str:
    """The same, for what is no name of a file: text that can be sent."""
    try:
        given(text).encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8") from None
    return text


def path_given(text: str) -> Path:
    """A path, for argparse; an empty one is not the working folder."""
    return Path(given(text))


def whole_number(least: int) -> Callable[[str], int]:
    """What reads a whole number from ``least`` (0 or more) on, for argparse."""

    def read(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r}: write a whole number from {least} on")
        return int(text)

    return read


def seconds(text: str) -> float:
    """The value of an option that is a duration (``10m``), for argparse."""
    from solvisor.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        reason = str(error) or "it is no duration"
        raise argparse.ArgumentTypeError(f"{text!r}: {reason}; write it like 30s, 10m, 2h or 1d") from None


def moment(text: str) -> str:
    """A time (``2h`` ago, a date, a date and time) as the daemon wants it, UTC microseconds; for argparse."""
    from datetime import UTC, datetime, timedelta

    from solvisor.units import parse_duration

    try:
        then = datetime.now(UTC) - timedelta(seconds=parse_duration(text))
    except (ValueError, OverflowError):
        try:
            then = datetime.fromisoformat(text).astimezone(UTC)
        except (ValueError, OverflowError):
            wanted = "2h, 7d, 2026-11-01 or 2026-11-01T08:00"
            raise argparse.ArgumentTypeError(f"{text!r}: write it like {wanted}") from None
    return str(int(then.timestamp() * 1e6))


def for_each(arguments: argparse.Namespace, act: Callable[[str], None]) -> int:
    """Do the same to every one of ``arguments.jobs``; what is refused of one keeps no other from its turn.

    Returns the exit status of the first that was refused, 0 if none was.
    """
    from solvisor_service.client import RequestRefused

    status = 0
    for name in dict.fromkeys(arguments.jobs):
        try:
            act(name)
        except RequestRefused as refused:
            complain(refused, arguments)
            status = status or refused.exit_status
    return status


def complain(error: SolvisorError | str, arguments: argparse.Namespace, *, about: str = "", more: str = "") -> None:
    """Say on stderr what went wrong, and which jobs could have been meant.

    ``about`` is what it was about (left out where the error says so), ``more`` what the command line can add.
    """
    from solvisor_service.cli.text import harmless

    sys.stdout.flush()  # what was said before this stands before it where both go to one place
    text = homed(f"{error}{more}", arguments)
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
