"""Who listens on a TCP port of this machine, and whether a process tree of ours does.

Rules: a listener is its socket's inode, and belongs to a tree if a process of that tree holds it open; whose open files
we may not see belongs to a stranger. Nothing is ever connected to. The kernel is asked through ``sock_diag(7)`` for one
port, which costs the same however many sockets there are; where that is not to be had (gVisor, a unit with
``RestrictAddressFamilies=``), the tables in ``/proc/net`` are read. Only our own network namespace is seen.

As everywhere here, "I could not look" (no free file descriptor) is an ``OSError``. This module must not know solvers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

from solvisor.names import escape_name

from . import proc

if sys.platform == "win32":
    raise ImportError("solvisor.process.listeners asks the Linux kernel and cannot be used on Windows")

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 0x1
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_STATE_LISTEN: Final = 10
_INET_DIAG_SKV6ONLY: Final = 11
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_MESSAGE_SIZE: Final = 72
_NO_COOKIE: Final = (0xFFFFFFFF, 0xFFFFFFFF)


class Listener(NamedTuple):
    """A listening socket: its address in the usual short form, and the user who made it.

    ``v6only``: no IPv4 connections, although its address may be ``::``; ``False`` also where that cannot be told.
    """

    address: str
    inode: int
    uid: int
    v6only: bool


def on_port(port: int) -> list[Listener]:
    """All sockets that listen on a port, whatever their address. Raises ``OSError``."""
    try:
        return [*_from_kernel(socket.AF_INET, port), *_from_kernel(socket.AF_INET6, port)]
    except OSError:
        return [*_from_table(socket.AF_INET, port), *_from_table(socket.AF_INET6, port)]


class Lookout:
    """Whether a connection to one address and port would reach any socket, for a microsecond and without a connection.

    It is a hint, for whoever would look too often otherwise. Raises ``OSError`` where the kernel does not tell, and
    ``ValueError`` if ``host`` is no address.
    """

    def __init__(self, host: str, port: int) -> None:
        address = ip_address(host)
        family = socket.AF_INET6 if isinstance(address, IPv6Address) else socket.AF_INET
        request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 1 << _STATE_LISTEN)
        request += struct.pack("!H2x16s16s", port, address.packed, b"") + struct.pack("=III", 0, *_NO_COOKIE)
        self._request = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0) + request
        self._kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        self._kernel.setblocking(False)  # what is asked is answered before ``send`` returns

    def sees(self) -> bool:
        """Whether anybody listens there now."""
        self._kernel.send(self._request)
        data = self._kernel.recv(4096)
        if _HEADER.unpack_from(data)[1] != _NLMSG_ERROR:
            return True
        error = -struct.unpack_from("=i", data, _HEADER.size)[0]
        if error != errno.ENOENT:
            raise OSError(error, "the kernel does not tell who listens")
        return False

    def close(self) -> None:
        """Ask no more."""
        self._kernel.close()


def facing(host: str, listeners: Iterable[Listener]) -> list[Listener]:
    """Those to which the kernel gives a connection to the address ``host``: the most exact ones.

    Several share it only by ``SO_REUSEPORT``.
    """
    wildcards = ("::",) if ":" in host else ("0.0.0.0", "::")  # noqa: S104  looked for, not bound
    able = [listener for listener in listeners if ":" in host or not listener.v6only]
    for address in (host, *wildcards):
        if found := [listener for listener in able if listener.address == address]:
            return found
    return []


def held_by(leader: int, token: str, inodes: Collection[int]) -> set[int]:
    """Those of the sockets that a process tree holds open: the tree of the child ``leader`` of ours.

    ``token`` is the value of ``SOLVISOR_ATTEMPT`` in its environment. Raises ``OSError``.
    """
    missing = {f"socket:[{inode}]": inode for inode in inodes}
    members = _tree(leader, token)
    while missing and (member := next(members, None)) is not None:
        for path in proc.paths_in_use(member):
            missing.pop(path, None)
    return set(inodes) - set(missing.values())


def owner(inode: int) -> str | None:
    """A process that holds the socket, such as ``redis-server (pid 123)``; ``None`` if we may not see any.

    Looks at every process there is. Raises ``OSError``.
    """
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if f"socket:[{inode}]" in proc.paths_in_use(pid):
            with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/comm", "rb") as file:
                return f"{escape_name(os.fsdecode(file.read().rstrip()))} (pid {pid})"
    return None


def _tree(leader: int, token: str) -> Iterator[int]:
    """The leader, all below it, and all below those that were orphaned and so became our children."""
    ours = os.getpid()
    first = proc.read_process(leader)
    if first is not None and first.parent == ours:
        yield leader
        yield from (below.pid for below in proc.descendants(first))
    for _, pid in proc.children(ours):
        orphan = proc.read_process(pid) if pid != leader else None
        if orphan is None or orphan.parent != ours:
            continue
        if orphan.session == leader or proc.token(pid) == token:
            yield pid
            yield from (below.pid for below in proc.descendants(orphan))


def _from_kernel(family: int, port: int) -> Iterator[Listener]:
    """As ``sock_diag`` tells. Raises ``OSError``."""
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, 1 << _STATE_LISTEN)
    request += struct.pack("!H38xII", port, *_NO_COOKIE)  # the port, and no cookie
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(
            _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 1, 0) + request
        )
        while True:
            data = kernel.recv(65536)
            while data:
                length, kind, _, _, _ = _HEADER.unpack_from(data)
                message, data = data[_HEADER.size : length], data[_aligned(length) :]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", message)[0], "the kernel does not tell who listens")
                yield _read_message(message)


def _read_message(message: bytes) -> Listener:
    """``struct inet_diag_msg`` and the attributes that follow it."""
    packed = message[8:24] if message[0] == socket.AF_INET6 else message[8:12]
    uid, inode = struct.unpack_from("=II", message, _MESSAGE_SIZE - 8)
    v6only, attributes = False, message[_MESSAGE_SIZE:]
    while attributes:
        length, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _INET_DIAG_SKV6ONLY:
            v6only = attributes[_ATTRIBUTE.size] != 0
        attributes = attributes[_aligned(length) :]
    return Listener(_address(packed), inode, uid, v6only)


def _from_table(family: int, port: int) -> Iterator[Listener]:
    """As ``/proc/net`` tells, where all that listen stand first (``proc_net_tcp.rst`` of the kernel)."""
    name = "tcp6" if family == socket.AF_INET6 else "tcp"
    with suppress(FileNotFoundError), open(f"/proc/net/{name}") as table:  # without IPv6 there is no tcp6
        next(table)
        for row in table:
            _, local, _, state, _, _, _, uid, _, inode, *_ = row.split()
            if int(state, 16) != _STATE_LISTEN:
                return
            address, number = local.split(":")
            if int(number, 16) == port:
                words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
                packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
                yield Listener(_address(packed), int(inode), int(uid), v6only=False)


def _address(packed: bytes) -> str:
    address = ip_address(packed)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


def _aligned(length: int) -> int:
    return (length + 3) & ~3
