"""What a warm server said before it ended, for people: its logs vanish with its folder.

Rules: only the end of each log is looked at; what cannot be read was not said.
"""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Final

from .filetext import tail
from .interfaces import Up, WarmKind
from .model import ExitFacts

LAST_LINES: Final = 3

_IN_USE: Final = re.compile(r"in use|EADDRINUSE|(cannot|could not|failed to|unable to) bind", re.IGNORECASE)


def end_of(name: str, kind: WarmKind, facts: ExitFacts, words: str) -> str:
    """How the processes of the server ``name`` ended, with its last ``words`` or what they mean."""
    meaning = kind.explain(words, facts)
    if meaning is not None:
        return f"{name}: {meaning}"
    if facts.unkillable:
        how = "is gone"
    elif facts.oom_kills:
        how = "ran out of memory and was killed by the kernel"
    elif facts.signal is not None:
        how = f"was ended by {_signal_name(facts.signal)}"
    elif facts.exit_code == 0:
        how = "ended with exit code 0 (a server must stay in the foreground)"
    else:
        how = f"ended with exit code {facts.exit_code}"
    return f"{name} {how}{said(words)}"


def said(words: str) -> str:
    """The last lines of ``words``, in brackets; empty if nothing was said."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    return f" (it said: {' | '.join(lines[-LAST_LINES:])})" if lines else ""


def last_words(up: Up) -> str:
    """The end of its stderr, or of its stdout if it said nothing there."""
    words = _tail(up.stderr)
    return words if words.strip() else _tail(up.stdout)


def is_denied(pattern: str | None, up: Up) -> bool:
    """Whether it said, as ``pattern`` has it, that it got no license."""
    return pattern is not None and any(re.search(pattern, _tail(log), re.MULTILINE) for log in (up.stdout, up.stderr))


def says_port_taken(up: Up) -> bool:
    """Whether it said that somebody else has its port."""
    return any(_IN_USE.search(_tail(log)) for log in (up.stdout, up.stderr))


def _tail(log_path: str) -> str:
    try:
        return tail(Path(log_path))
    except OSError:
        return ""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names of their own
        return f"signal {number}"
