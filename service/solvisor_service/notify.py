"""sd_notify: tell systemd how we are. Protocol: one datagram to ``$NOTIFY_SOCKET`` (see sd_notify(3))."""

from __future__ import annotations

import os
import socket
import sys
import time

import anyio

EXTEND_SECONDS = 30.0
"""How long systemd goes on waiting after each word of ours."""


def notify(state: str) -> None:
    """Send ``state`` (``READY=1``, ``STOPPING=1``, ``WATCHDOG=1``) if systemd listens; never fails."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address or sys.platform == "win32":
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.sendto(state.encode(), address)
    except OSError:
        return


async def extend_timeout(most_seconds: float) -> None:
    """Keep systemd waiting while the daemon starts or stops: run it as a task, and cancel it once that is done.

    It speaks only while the event loop turns, and for at most ``most_seconds``: then the unit's own timeout holds.
    """
    end = time.monotonic() + most_seconds
    while (left := end - time.monotonic()) > 0:
        notify(f"EXTEND_TIMEOUT_USEC={round(min(left, EXTEND_SECONDS) * 1e6)}")
        await anyio.sleep(min(left, EXTEND_SECONDS / 3))
