"""A look now and then at every process of the machine for some that outlived the attempt they belong to.

An attempt is over when nothing of it is left below this process. What it had somebody else start (``at``, a terminal
multiplexer, a container's daemon) was never below: it is known by the token in its environment alone.

Rules: a token is asked about only after it was read, so that of an attempt just being started is known by then; who
has a token of this home that no live attempt has is killed, and told once. It signals single processes, each through a
pidfd, and reaps none, so it needs no word from the reaper of ``posix.py``. This module must not know attempts.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import NamedTuple

from . import proc
from .earlier import kill
from .tree import SendSignal

if sys.platform == "win32":
    raise ImportError("solvisor.process.janitor reads Linux's /proc and cannot be used on Windows")

PATROL_SECONDS = 30.0


class Escaped(NamedTuple):
    """A process that outlived its attempt and was killed."""

    pid: int
    token: str
    program: str


class Janitor:
    """Patrols until ``close``, on a thread of its own.

    ``lives`` says whether the attempt or server of a token has not ended; ``told`` hears of each escaped process.
    """

    def __init__(
        self,
        home_id: str,
        lives: Callable[[str], bool],
        told: Callable[[Escaped], None],
        *,
        patrol_seconds: float = PATROL_SECONDS,
        send_signal: SendSignal = proc.send_signal,
    ) -> None:
        self._home_id = home_id
        self._lives = lives
        self._told = told
        self._patrol_seconds = patrol_seconds
        self._send_signal = send_signal
        self._over = threading.Event()
        self._known: set[proc.Process] = set()  # escaped ones that were told already and would not die
        self._unkillable: frozenset[str] = frozenset()
        self._thread = threading.Thread(target=self._patrol_all, name="solvisor-janitor", daemon=True)
        self._thread.start()

    def know(self, unkillable: Collection[str]) -> None:
        """Of these tokens, without the home's id, something of an earlier life would not die: not told, but tried."""
        self._unkillable = frozenset(unkillable)

    def close(self) -> None:
        """End the patrols. Blocks as long as one takes."""
        self._over.set()
        self._thread.join()

    def _patrol_all(self) -> None:
        while not self._over.wait(self._patrol_seconds):
            with suppress(OSError):  # no file descriptor to look with: the next patrol will
                self._patrol()

    def _patrol(self) -> None:
        escaped: dict[proc.Process, str] = {}
        for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
            process = proc.read_process(pid) if pid != os.getpid() else None
            token = proc.token(pid) if process is not None and process.state not in "ZX" else None
            if process is None or token is None or token.partition("/")[0] != self._home_id:
                continue
            if not self._lives(token) and proc.is_same(process):
                escaped[process._replace(state="", parent=0)] = token  # both may change while it is the same
        for process, token in escaped.items():
            own = token.partition("/")[2]
            if process not in self._known and own not in self._unkillable:
                self._told(Escaped(process.pid, own, proc.program(process.pid)))
        self._known = set(escaped)
        kill(escaped, self._send_signal)
