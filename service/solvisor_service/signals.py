"""Who tells the daemon to stop: signals, the end of its standard input; and systemd, which hears that it lives.

Rules: a stop is asked for here and carried out by the engine; only the last resort, after a second signal, ends the
process by itself. Nothing here knows jobs.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

import anyio
import structlog

from solvisor.engine import Engine

from .notify import extend_timeout, notify

STOP_NOW_SECONDS = 30.0
"""How long stopping at once may take, before the process just ends."""

STOPPING_SECONDS = 600.0
"""How long systemd is kept waiting beyond ``stop_timeout``, for results to be judged and published."""

EXIT_NOT_DURABLE = 75
"""A disk refused to keep what was written: restart and recover."""

log = structlog.get_logger()


async def drain_at_eof(engine: Engine) -> None:
    """Drain when whoever holds the other end of the standard input is gone; what comes from there means nothing."""
    while True:
        await anyio.wait_readable(sys.stdin.fileno())
        if not os.read(sys.stdin.fileno(), 1 << 12):
            log.info("daemon.draining", signal="end of the standard input")
            engine.drain()
            return


async def obey_signals(engine: Engine, stop_timeout: float) -> None:
    """SIGTERM or SIGINT drains, which may take ``stop_timeout`` seconds; a second one stops what runs now."""
    async with anyio.create_task_group() as tasks:
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            asked = False
            async for number in received:
                name = signal.Signals(number).name
                if asked:
                    log.warning("daemon.stopping_now", signal=name)
                    engine.stop_now()
                    _give_up_later()
                else:
                    log.info("daemon.draining", signal=name)
                    notify("STOPPING=1")
                    tasks.start_soon(extend_timeout, stop_timeout + STOPPING_SECONDS)
                    engine.drain()
                asked = True


def _give_up_later() -> None:
    """End the process if stopping hangs (a dead disk, a full one): the next start recovers from any moment."""

    def give_up() -> None:
        log.critical("daemon.gave_up", seconds=STOP_NOW_SECONDS, text="stopping hangs; what is open is taken up later")
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
