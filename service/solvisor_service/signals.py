"""Who tells the daemon to stop or to read its configuration again: signals, the end of its standard input; and
systemd, which hears that it lives.

Rules: a stop is asked for here and carried out by the engine; only the last resort, after a second signal, ends the
process by itself. Nothing here knows jobs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable

import anyio
import structlog

from solvisor.engine import Engine

from .notify import extend_timeout, notify

STOP_NOW_SECONDS = 30.0
"""How long stopping at once may take, before the process just ends."""

LAST_LINE_SECONDS = 0.1
"""How long the line that says so has to be written."""

STOPPING_SECONDS = 600.0
"""How long systemd is kept waiting beyond ``stop_timeout``, for results to be judged and published."""

EXIT_NOT_DURABLE = 75
"""A disk refused to keep what was written: restart and recover."""

if sys.platform == "win32":
    _HANGUPS: tuple[signal.Signals, ...] = ()
else:
    _HANGUPS = (signal.SIGHUP,)

log = structlog.get_logger()


async def drain_at_eof(engine: Engine) -> None:
    """Drain when whoever holds the other end of the standard input is gone; what comes from there means nothing."""
    while True:
        await anyio.wait_readable(sys.stdin.fileno())
        if not os.read(sys.stdin.fileno(), 1 << 12):
            log.info("daemon.draining", signal="end of the standard input")
            engine.drain()
            return


def hold_hangups() -> None:
    """Let SIGHUP do nothing until there is somebody to obey it. What is started gets its own default back."""
    for number in _HANGUPS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, lambda _number, _frame: None)


async def obey_signals(engine: Engine, read_again: Callable[[], None]) -> None:
    """SIGTERM or SIGINT drains, which may take ``stop_timeout``; a second one stops what runs now.

    SIGHUP has the configuration read again by ``read_again``; but where it says that the terminal is gone, it drains.
    """
    ignored = any(signal.getsignal(number) is signal.SIG_IGN for number in _HANGUPS)  # it is to outlive its terminal
    terminal = os.isatty(0) and not ignored
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, *_HANGUPS) as received:
            asked = False
            async for number in received:
                name = signal.Signals(number).name
                if number in _HANGUPS and (asked or not terminal or os.isatty(0)):
                    read_again()
                    continue
                if asked:
                    log.warning("daemon.stopping_now", signal=name)
                    engine.stop_now()
                    _give_up_later()
                else:
                    log.info("daemon.draining", signal=name)
                    notify("STOPPING=1")
                    tasks.start_soon(extend_timeout, engine.config.daemon.stop_timeout + STOPPING_SECONDS)
                    engine.drain()
                asked = True


def _give_up_later() -> None:
    """End the process if stopping hangs (a dead disk, a full one): the next start recovers from any moment."""

    def give_up() -> None:
        log.critical("daemon.gave_up", seconds=STOP_NOW_SECONDS, text="stopping hangs; what is open is taken up later")
        time.sleep(LAST_LINE_SECONDS)
        os._exit(EXIT_NOT_DURABLE)

    timer = threading.Timer(STOP_NOW_SECONDS, give_up)
    timer.daemon = True
    timer.start()


async def feed_watchdog() -> None:
    """Tell systemd that the loop turns, twice as often as it asks for; without systemd there is nothing to do."""
    micros = int(os.environ.get("WATCHDOG_USEC", "0"))
    while micros:
        notify("WATCHDOG=1")
        await anyio.sleep(micros / 2e6)
