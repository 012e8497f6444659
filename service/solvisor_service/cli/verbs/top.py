"""``solvisor top``: the daemon at work, live, on a whole terminal."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys

from solvisor.errors import SolvisorError
from solvisor_service.cli.shared import Verbs, add_verb, live_home, seconds

INTERVAL_MIN = 1.0


class NoTerminal(SolvisorError):
    """There is nothing that a live view could be drawn on."""

    code = "no_terminal"
    exit_status = 2


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "top",
        _top,
        help="watch the daemon at work: what runs, what waits and why, warm servers, what failed",
        examples="  solvisor top\n  solvisor top --interval 5s\n\nkeys: ? shows them, q ends",
    )
    verb.add_argument(
        "--interval", metavar="TIME", type=_interval, default=INTERVAL_MIN, help="how often to ask (default: 1s)"
    )


def _interval(text: str) -> float:
    value = seconds(text)
    if not INTERVAL_MIN <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not from 1s to 1h")
    return value


def _top(arguments: argparse.Namespace) -> int:
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or os.environ.get("TERM", "dumb") == "dumb":
        raise NoTerminal("top draws on a whole terminal, and this is none; use: solvisor status")
    if sys.platform == "win32":
        raise NoTerminal("top is not there on Windows yet; use: solvisor status")
    from solvisor_service.cli.top.lines import glyphs
    from solvisor_service.cli.top.loop import Top
    from solvisor_service.cli.top.terminal import Ended, Hangup, Terminal
    from solvisor_service.client import Busy, Client

    client = Client(live_home(arguments))  # what it could tell on its own would stand in the middle of the screen
    with contextlib.suppress(Busy):  # it starts, or it ends: that can be watched
        client.must_run()
    encoding = sys.stdout.encoding
    terminal = Terminal(styled=not os.environ.get("NO_COLOR"), encoding=encoding)
    try:
        with terminal:
            Top(client, terminal, glyphs(encoding), arguments.interval).run()
    except Hangup:
        return 1
    except Ended as ended:
        if ended.number == signal.SIGINT:
            raise KeyboardInterrupt from None
        signal.signal(ended.number, signal.SIG_DFL)
        os.kill(os.getpid(), ended.number)
    return 0
