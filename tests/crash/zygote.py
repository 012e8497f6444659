"""Where the lives of the sweeps come from: a process that has loaded the daemon once, and forks for every life.

A life is the real daemon, from ``main.run`` on, in a process of its own. Before that it may be armed: to end at the
n-th passing of a failpoint, by SIGKILL or with the power of its disk; and mutated, to break one promise. Spoken to by
lines of JSON on stdin and stdout: an ``Order`` is answered by the pid, and by the status once that process has ended.
Rules: it never has a second thread, or a fork could stand still for ever.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import NamedTuple

from crash import power
from crash.mutants import MUTANTS
from crash.observer import Observer
from solvisor import collector, failpoint

# The verb imports these late, and a life should not have to.
from solvisor_service import main
from solvisor_service.cli.verbs import serve as _serve  # noqa: F401


class Order(NamedTuple):
    """One life. ``point``: where it ends, at the ``hit``-th passing, or nowhere; ``shuts``: and shuts its disk down.

    ``track`` is the file for the names of all points passed, ``told`` for what could be seen in its last moment.
    ``stopped``: it waits for SIGCONT before it begins.
    """

    home: str
    track: str
    told: str
    point: str | None = None
    hit: int = 1
    shuts: bool = False
    mutant: str | None = None
    stopped: bool = False


class _Trap:
    """The hook of one life."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._left = order.hit
        self._lock = threading.Lock()
        self._track = os.open(order.track, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __call__(self, name: str) -> None:
        os.write(self._track, name.encode() + b"\n")
        if name == self._order.point:
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._end()

    def _end(self) -> None:
        home = Path(self._order.home)
        seen = Observer(home)
        seen.look()
        Path(self._order.told).write_text(json.dumps([seen.seen, seen.problems]))
        if self._order.shuts:
            power.shut_down(home)
        while True:
            os.kill(os.getpid(), signal.SIGKILL)


def _live(order: Order) -> int:
    home = Path(order.home)
    null = os.open(os.devnull, os.O_RDONLY)
    console = os.open(Path(order.track).with_name("console.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for there, here in ((null, 0), (console, 1), (console, 2)):
        os.dup2(there, here)
    collector.OUTPUTS_INLINE = 4  # so that a few files are enough to have the rest listed elsewhere
    faulthandler.enable()
    failpoint.arm(_Trap(order))
    if order.mutant is not None:
        MUTANTS[order.mutant].breaks()
    if order.stopped:
        os.kill(os.getpid(), signal.SIGSTOP)
    return main.run(home, home / "solvisor.toml")


def _serve_orders() -> None:
    for line in sys.stdin:
        order = Order(*json.loads(line))
        pid = os.fork()
        if not pid:
            status = 70
            with contextlib.suppress(SystemExit):
                status = _live(order)
            sys.stderr.flush()
            os._exit(status)
        print(pid, flush=True)
        _, ended = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(ended), flush=True)


if __name__ == "__main__":
    _serve_orders()
