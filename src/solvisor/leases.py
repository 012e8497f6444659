"""Which warm server gets which TCP port, from a configured range.

Rules: a port has one lease, among all daemons of a machine. A lease is a bound abstract Unix socket
``\\0solvisor-port-N``: all users and daemons of the network namespace see the name, and the kernel frees it with its
holder, however that ends. Where there are none (not on Linux) it is a locked file, which only the daemons of one user
share. A name keeps no other program from a port, so before it is given away the port is also bound for a moment, on
exactly the server's address and without ``SO_REUSEADDR``: then any server can bind it. A program that takes it after
that wins the race, and the server's start fails as any start may.

This module never blocks. It must not know servers, pools or the configuration.
"""

from __future__ import annotations

import contextlib
import errno
import getpass
import ipaddress
import math
import os
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from enum import StrEnum
from typing import BinaryIO

from .errors import SolvisorError
from .model import PortRange

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

REST_SECONDS = 60.0
"""How long a port rests after use: as long as Linux keeps a closed connection in TIME_WAIT."""

_EPHEMERAL = "/proc/sys/net/ipv4/ip_local_port_range"  # also of IPv6
_RESERVED = "/proc/sys/net/ipv4/ip_local_reserved_ports"

_Holder = socket.socket | BinaryIO


class NoSuchAddress(SolvisorError):
    """No server can listen on an address, whatever the port: this machine does not have it."""

    code = "no_such_address"
    exit_status = 2

    def __init__(self, host: str) -> None:
        hint = "is IPv6 switched off?" if ":" in host else "is its network interface up?"
        super().__init__(
            f"no server can listen on {host}: this machine does not have that address ({hint}); "
            "configure it, or choose another host for the solver"
        )


class Lease:
    """The exclusive right to ``port``, until it is given back or this process ends."""

    def __init__(self, port: int, holder: _Holder) -> None:
        self.port = port
        self._holder = holder

    def _close(self) -> None:
        self._holder.close()


class _Why(StrEnum):
    """Why a port was passed over."""

    OURS = "in use by servers of this daemon"
    OTHERS = "in use by other Solvisor daemons"
    BOUND = "bound by other programs or by connections that just ended"
    FORBIDDEN = "forbidden to this user (ports below 1024 usually are)"
    RESTING = "resting after use"


class Leases:
    """Leases of the ports of one range, round-robin. ``clock`` is monotonic, in seconds.

    Its rests are its own: other daemons do not know them. For one thread.
    """

    def __init__(self, ports: PortRange, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._ports = ports
        self._clock = clock
        self._next = ports.first
        self._leased: dict[int, Lease] = {}
        self._resting: dict[int, float] = {}  # until when; the next to be free comes first, as all rest equally long
        self._passed: dict[str, Counter[_Why]] = {}  # at the last search in vain, per host

    def use(self, ports: PortRange) -> None:
        """Lease ports of another range from now on; those that are leased stay so."""
        if ports != self._ports:
            self._ports, self._next = ports, ports.first

    @property
    def taken(self) -> int:
        """How many ports are leased here."""
        return len(self._leased)

    @property
    def resting(self) -> int:
        """How many ports rest."""
        self._wake()
        return len(self._resting)

    def free_at(self) -> float | None:
        """When, by the clock, the next resting port is free; ``None`` if none rests."""
        self._wake()
        return next(iter(self._resting.values()), None)

    def take(self, host: str) -> Lease | None:
        """Lease the next port on which a server can listen at the address ``host``; ``None`` if there is none.

        Raises ``NoSuchAddress``; ``ValueError`` if ``host`` is a name; ``OSError`` if the machine is short of sockets.
        """
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        self._wake()
        passed: Counter[_Why] = Counter()
        for _ in _each(self._ports):
            port = self._next
            self._next = port + 1 if port < self._ports.last else self._ports.first
            found = self._try(family, host, port)
            if isinstance(found, Lease):
                self._leased[port] = found
                return found
            passed[found] += 1
        self._passed[host] = passed
        return None

    def is_free(self, host: str, port: int) -> bool:
        """Whether a server could listen there now, leased or not. Raises ``NoSuchAddress``, ``OSError``."""
        family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        return _obstacle(family, host, port) is None

    def why_none(self, host: str) -> str:
        """What the last ``take`` for ``host`` that gave ``None`` met, in one sentence for people."""
        passed = self._passed.get(host, Counter())
        parts = [f"{passed[why]} {why}" for why in _Why if passed[why]]
        free_at = self.free_at()
        if free_at is not None:
            parts.append(f"the next one is free in {math.ceil(free_at - self._clock())} s")
        return f"no port of {_show(self._ports)} is free on {host}: {', '.join(parts) or 'none was looked for'}"

    def give_back(self, lease: Lease, *, rests: bool = True) -> None:
        """End a lease; idempotent. Its port rests, unless surely nobody ever listened on it."""
        if self._leased.get(lease.port) is not lease:
            return
        del self._leased[lease.port]
        if rests:
            self._resting[lease.port] = self._clock() + REST_SECONDS
        lease._close()

    def close(self) -> None:
        """Give all leases back."""
        for lease in list(self._leased.values()):
            self.give_back(lease)

    def _try(self, family: socket.AddressFamily, host: str, port: int) -> Lease | _Why:
        if port in self._leased:
            return _Why.OURS
        if port in self._resting:
            return _Why.RESTING
        holder = _hold(port)
        if holder is None:
            return _Why.OTHERS
        with contextlib.ExitStack() as undo:
            undo.callback(holder.close)
            obstacle = _obstacle(family, host, port)
            if obstacle is not None:
                return obstacle
            undo.pop_all()
        return Lease(port, holder)

    def _wake(self) -> None:
        now = self._clock()
        while self._resting:
            port, until = next(iter(self._resting.items()))
            if until > now:
                break
            del self._resting[port]


def _obstacle(family: socket.AddressFamily, host: str, port: int) -> _Why | None:
    """What keeps a server from listening there, if anything does."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            if sys.platform == "win32":  # there two programs can bind the same port otherwise
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
            probe.bind((host, port))
    except PermissionError:
        return _Why.FORBIDDEN
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _Why.BOUND
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise NoSuchAddress(host) from None
        raise
    return None


def _lock_file(port: int) -> BinaryIO | None:
    """The port's locked file in a folder of this user's, or ``None`` if somebody holds it. It is never removed."""
    folder = os.path.join(tempfile.gettempdir(), f"solvisor-ports-{getpass.getuser()}")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as undo:
        file = undo.enter_context(open(os.path.join(folder, str(port)), "ab"))
        try:
            if sys.platform == "win32":
                msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            else:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return None
        undo.pop_all()
    return file


if sys.platform == "linux":

    def _hold(port: int) -> _Holder | None:
        """Make the port ours among all daemons: ``None`` if it is another's. Python opens it close-on-exec."""
        name = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            name.bind(f"\0solvisor-port-{port}")
        except OSError as error:
            name.close()
            if error.errno == errno.EADDRINUSE:
                return None
            raise
        return name

else:

    def _hold(port: int) -> _Holder | None:
        """Make the port ours among the daemons of this user: ``None`` if it is another's."""
        return _lock_file(port)


# --- the kernel's own ports -------------------------------------------------------------------------------------------


def ephemeral_range() -> PortRange | None:
    """The ports the kernel gives to outgoing connections; ``None`` where it does not tell (not Linux)."""
    try:
        first, last = _read(_EPHEMERAL).split()
    except (OSError, ValueError):
        return None
    return PortRange(int(first), int(last))


def overlap_warning(ports: PortRange, ephemeral: PortRange | None) -> str | None:
    """A sentence for people if the kernel may give ports of the range to others, and what to do; else ``None``.

    Ports that the kernel was told to spare (``ip_local_reserved_ports``) do no harm.
    """
    if ephemeral is None:
        return None
    overlap = PortRange(max(ports.first, ephemeral.first), min(ports.last, ephemeral.last))
    try:
        reserved = _read(_RESERVED)
    except OSError:
        reserved = ""
    if not set(_each(overlap)).difference(*(_each(_parse(part)) for part in reserved.split(",") if part)):
        return None
    # Setting the list replaces it.
    spared = ",".join(filter(None, (reserved, _show(overlap))))
    return (
        f"ports {_show(ports)} overlap those the kernel gives to outgoing connections, {_show(ephemeral)} "
        "(net.ipv4.ip_local_port_range), so any program may take them by chance: choose a range outside of it, or have "
        f"the kernel spare them: sysctl net.ipv4.ip_local_reserved_ports={spared}"
    )


def _read(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read().strip()


def _parse(text: str) -> PortRange:
    first, _, last = text.partition("-")
    return PortRange(int(first), int(last or first))


def _each(ports: PortRange) -> range:
    return range(ports.first, ports.last + 1)


def _show(ports: PortRange) -> str:
    return str(ports.first) if ports.first == ports.last else f"{ports.first}-{ports.last}"
