"""sd_notify: tell systemd how we are. Protocol: one datagram to ``$NOTIFY_SOCKET`` (see sd_notify(3))."""

from __future__ import annotations

import os
import socket
import sys


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
