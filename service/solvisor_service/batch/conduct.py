"""The main thread of a batch: reads the mailbox, keeps the meter, turns interrupts into wishes.

Rules: it never blocks on the daemon, so it can always leave. What it wishes stands in the ledger; the threads obey.
"""

from __future__ import annotations

import signal
import threading
import time
from queue import Empty
from typing import Final

from solvisor_service.batch.ledger import DRAIN, LEAVE, STOP, Ledger
from solvisor_service.batch.life import Life
from solvisor_service.batch.link import Link
from solvisor_service.batch.mail import Mailbox, Over, Said
from solvisor_service.batch.progress import Meter, Progress

STOP_SECONDS: Final = 60.0
"""How long jobs may take to end once they are stopped, before the batch is left."""

TICK_SECONDS: Final = 0.5

_ANSWERS: Final = {
    DRAIN: "interrupted: nothing more is started, what runs may finish; Ctrl-C again stops it",
    STOP: "stopping what runs; Ctrl-C again leaves at once",
    LEAVE: "left; what was not stopped yet stays with the daemon: solvisor list",
}


def conduct(life: Life, ledger: Ledger, link: Link, mailbox: Mailbox, meter: Meter) -> Exception | None:
    """Let the batch live to its end, or until the user leaves it; returns what went wrong, if something did.

    For the main thread, within ``signals_into`` of the same mailbox.
    """
    threading.Thread(target=life.run, daemon=True).start()
    meter.show(ledger.progress())
    deadline: float | None = None
    while True:
        try:
            mail = mailbox.get(timeout=TICK_SECONDS)
        except Empty:
            meter.tick()
        else:
            if isinstance(mail, Over):
                meter.end()
                return mail.error
            if isinstance(mail, Progress):
                meter.show(mail)
            elif isinstance(mail, Said):
                meter.say(mail.text)
            else:
                # Only Ctrl-C counts up: who closes a terminal or stops a service may send the same signal twice.
                ledger.wish = ledger.wish + 1 if mail is signal.SIGINT else max(ledger.wish, STOP)
                meter.say(_ANSWERS[min(ledger.wish, LEAVE)])
                if ledger.batch is None:  # nothing was accepted yet, so there is nothing to wait for
                    link.leave()
        if ledger.wish >= STOP and deadline is None:
            deadline = time.monotonic() + STOP_SECONDS
        late = deadline is not None and time.monotonic() > deadline
        if late:
            meter.say(f"what was stopped {STOP_SECONDS:g} s ago has not ended; left")
        if late or ledger.wish >= LEAVE:
            link.leave()
            meter.end()
            return None
