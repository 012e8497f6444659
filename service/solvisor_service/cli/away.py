"""A daemon that goes while a verb waits for what it does: that is told once, and it is waited for.

Rules: only a daemon that answered before is waited for, for as long as the verb may take. Only what may be asked twice
is asked through it. Any thread may ask; it knows no jobs.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Final, TypeVar

from solvisor.errors import SolvisorError
from solvisor_service.cli.shared import EXIT_TIMEOUT
from solvisor_service.client import BrokenOff, NotRunning, Silent

if TYPE_CHECKING:
    from solvisor_service.client import Client

T = TypeVar("T")

AGAIN_SECONDS: Final = 0.5
"""The rest before a daemon that is gone is looked for again: a connection that nobody takes costs nothing."""

BROKEN_MAX: Final = 5
"""So many bad answers in a row are not those of a daemon that ends: it speaks of things this client does not know."""


class StillAway(SolvisorError):
    """The daemon did not come back in time."""

    code = "timeout"
    exit_status = EXIT_TIMEOUT


class Patience:
    """Asks again while the daemon is away, until then at most (``time.monotonic``). ``tell`` hears that it is gone."""

    def __init__(self, client: Client, tell: Callable[[str], None], until: float = math.inf) -> None:
        self._client = client
        self._tell = tell
        self._until = until
        self._since: str | None = None
        self._broken = 0
        self._lock = threading.Lock()

    def ask(self, question: Callable[[], T]) -> T:
        """The answer to ``question``. Raises ``StillAway``, and what the client raises of a daemon that is there."""
        while True:
            try:
                answer = question()
            except NotRunning as error:
                self.bear(error)
            else:
                self._answered()
                return answer

    def bear(self, error: NotRunning) -> None:
        """Rest before what ``error`` ended is tried again; raises it where there is nothing to wait for."""
        with self._lock:
            hangs = isinstance(error, Silent) and self._since is None
            self._broken = self._broken + 1 if isinstance(error, BrokenOff) else 0
            if hangs or not self._client.of_daemon or self._broken > BROKEN_MAX:
                raise error
            if self._since is None:
                self._since = f"{datetime.now().astimezone():%H:%M:%S}"
                self._tell(f"the daemon is gone since {self._since}; waiting for it (Ctrl-C ends)")
            if time.monotonic() >= self._until:
                raise StillAway(f"the daemon is gone since {self._since}, and did not come back in time") from error
        time.sleep(max(0.0, min(AGAIN_SECONDS, self._until - time.monotonic())))

    def _answered(self) -> None:
        with self._lock:
            self._broken = 0
            if self._since is not None:
                self._since = None
                self._tell("the daemon is there again")
