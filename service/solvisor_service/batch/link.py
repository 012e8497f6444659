"""Asking a daemon that may go away and come back, or that has to be started for the time of the batch.

Rules: a daemon that lives is used; else one is started here, and ended with ``close``. A daemon that an operator runs
is waited for when it goes away, and never replaced: it would find its home taken. What is asked while it is away is
asked again for a bounded time, so only what may be asked twice is asked through ``ask``. Any thread may ask. It knows
no jobs and no signals; ``leave`` is how waiting is broken off.
"""

from __future__ import annotations

import os
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from solvisor.errors import SolvisorError
from solvisor.views import Status
from solvisor_service.cli.text import duration
from solvisor_service.client import Client, NotRunning, RequestRefused
from solvisor_service.embedded import EXIT_ALREADY_RUNNING, Embedded, ends_with_its_client
from solvisor_service.targets import UsageError

T = TypeVar("T")

PATIENCE_SECONDS: Final = 120.0
"""How long a daemon may be away, or starting, before the batch gives up."""

CLOSE_SECONDS: Final = 15.0
"""How long the daemon started here may take to end before it is left to end by itself."""

RESTARTS_MAX: Final = 3

_EXIT_TRY_LATER: Final = 75
_PAUSE_SECONDS: Final = 0.1
_START_AGAIN_SECONDS: Final = 2.0


class Away(SolvisorError):
    """The daemon did not come back in time."""

    code = "not_running"
    exit_status = 3


class Left(Exception):
    """Waiting was broken off by ``leave``."""


class Link:
    """The daemon of ``home``. ``tell`` gets sentences for the user.

    ``config`` is for a daemon that is started here; ``chosen``: the user named it, and hears if it is not used.
    """

    def __init__(
        self,
        home: Path,
        config: Path,
        tell: Callable[[str], None],
        patience: float = PATIENCE_SECONDS,
        *,
        chosen: bool = False,
    ) -> None:
        self._home = home
        self._option = f"--home {shlex.quote(os.fspath(home))}"
        self._config = config
        self._tell = tell
        self._patience = patience
        self._chosen = chosen
        self.batch: str | None = None  # what a daemon that is started again has to take up
        self._client = Client(home)
        self._child: Embedded | None = None
        self._restarts = 0
        self._start_after = 0.0
        self._attached = False
        self._may_start = True
        self._left = threading.Event()
        self._lock = threading.Lock()  # over the child and over what was told
        self._told: str | None = None

    @property
    def unattended(self) -> bool:
        """Whether the daemon is there for batches alone: no operator will mend what is wrong with it."""
        return self._may_start

    def attach(self) -> Status:
        """Find the daemon, or start one.

        Raises ``UsageError`` (no configuration), ``DaemonEnded`` (it would not start), ``NotPermitted``, ``Left``,
        ``Away``.
        """
        deadline = time.monotonic() + self._patience
        while True:
            try:
                status = self._client.status()
            except NotRunning:
                self._start_or_check()
                trouble = f"the daemon on {self._home} did not get ready within {duration(self._patience)}"
            else:
                if status.health != "stopping":
                    self._attached = True
                    self._may_start = ends_with_its_client(status.pid)
                    self._recovered()
                    if self._chosen and (self._child is None or self._child.pid != status.pid):
                        own = f"the daemon that runs on {self._home} has read its own configuration"
                        self._tell(f"{own}; --config {self._config} is not used")
                    return status
                self._trouble(f"the daemon on {self._home} is stopping; waiting for its end")
                trouble = f"the daemon on {self._home} was still stopping after {duration(self._patience)}"
            self._pause(deadline, trouble)

    def ask(self, request: Callable[[Client], T]) -> T:
        """The answer to ``request``, which is made again while the daemon is away or cannot take it just now.

        Raises ``Away``, ``Left``, ``DaemonEnded``, and what else the client raises.
        """
        deadline: float | None = None
        while True:
            try:
                answer = request(self._client)
            except NotRunning:
                trouble = f"the daemon on {self._home} does not answer"
                self._start_or_check()
            except RequestRefused as refused:
                if refused.exit_status != _EXIT_TRY_LATER:
                    raise
                trouble = str(refused)
            else:
                if deadline is not None:
                    self._recovered()
                return answer
            if deadline is None:
                deadline = time.monotonic() + self._patience
            self._trouble(f"{trouble}; asking again for up to {duration(self._patience)}")
            self._pause(deadline, f"{trouble}, for {duration(self._patience)} now")

    def ask_once(self, request: Callable[[Client], T]) -> T:
        """The answer to ``request``, which is not to be made twice. Raises what the client raises."""
        return request(self._client)

    def rest(self, seconds: float) -> None:
        """Do nothing for a while. Raises ``Left``."""
        if self._left.wait(max(0.0, seconds)):
            raise Left

    def leave(self) -> None:
        """Break off all waiting, now and later."""
        self._left.set()

    def close(self, seconds: float = CLOSE_SECONDS) -> int | None:
        """End the daemon that was started here, if one was. Returns its pid if it takes longer than ``seconds``."""
        self._left.set()
        with self._lock:
            child, self._child = self._child, None
        return None if child is None or child.close(seconds) else child.pid

    def _start_or_check(self) -> None:
        """Start a daemon where none lives, unless one was there that will come back by itself."""
        with self._lock:
            if self._left.is_set():
                raise Left
            child = self._child
            if child is not None:
                status = child.ended()
                if status is None:
                    return
                self._child = None
                if status == EXIT_ALREADY_RUNNING:  # another came first: that one is used, once it answers
                    self._start_after = time.monotonic() + _START_AGAIN_SECONDS
                    return
                if not self._attached or self._restarts == RESTARTS_MAX:
                    raise child.failure()
                self._restarts += 1
                self._tell(f"{child.failure()}; starting it again")
            if self._may_start and time.monotonic() >= self._start_after:
                if not self._config.exists():
                    how = f"make one with: solvisor init {self._option}"
                    raise UsageError(f"there is no configuration {self._config}; {how}")
                self._child = Embedded(self._home, self._config, self.batch)

    def _pause(self, deadline: float, trouble: str) -> None:
        self.rest(_PAUSE_SECONDS)
        if time.monotonic() > deadline:
            raise Away(f"{trouble}; what it has accepted stays in its home: solvisor status {self._option}")

    def _trouble(self, text: str) -> None:
        """Tell it once, whichever thread meets it first."""
        with self._lock:
            new, self._told = text != self._told, text
        if new:
            self._tell(text)

    def _recovered(self) -> None:
        with self._lock:
            told, self._told = self._told, None
        if told is not None and self._attached:
            self._tell(f"the daemon on {self._home} answers again")
