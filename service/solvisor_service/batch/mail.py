"""The mailbox of the main thread: what the other threads learn and what signal handlers get, in one queue.

Rules: a handler only puts mail, so an interrupt breaks nothing off halfway and none is lost.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

from solvisor_service.batch.progress import Progress


class Said(NamedTuple):
    """A sentence for the user."""

    text: str


class Over(NamedTuple):
    """Nothing more comes; ``error`` is what ended it, if it was not the end of the batch."""

    error: Exception | None


Mail: TypeAlias = Progress | Said | Over | signal.Signals
Mailbox: TypeAlias = "SimpleQueue[Mail]"
"""A ``SimpleQueue``, for its ``put`` may interrupt itself."""


@contextlib.contextmanager
def signals_into(mailbox: Mailbox) -> Iterator[None]:
    """Signals that would end the program become mail. Those ignored so far (``nohup``) stay so."""
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, lambda received, _: mailbox.put(signal.Signals(received)))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
