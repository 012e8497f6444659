"""What the tests of warm servers with real daemons share: small servers, their ports, and what a log says of these."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from daemon import Daemon
from solvisor.model import PortRange
from waiting import wait_until

PROGRAMS = Path(__file__).parent / "e2e" / "programs"
PYTHON = f'"{sys.executable}", "-S", "-E"'

# A solver ``s`` whose jobs are lines of JSON; to be formatted with more of its table.
SOLVER = """
[daemon]
max_jobs = {max_jobs}
cpus = {max_jobs}
ports = "{first}-{last}"
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.s]
kind = "server"
accept = ["*.s"]
start = [{python}, "{server}", "{{host}}", "{{port}}", "{marks}"]
ready = {{ kind = "tcp", send = "ping\\n", expect = "^pong" }}
talk = "json"
servers = {{ {servers} }}
"""


def config(marks: Path, ports: PortRange, servers: str, *, max_jobs: int = 2, more: str = "") -> str:
    """A configuration with the solver ``s``; ``more`` follows its table."""
    marks.mkdir(exist_ok=True)
    return (
        SOLVER.format(
            python=PYTHON,
            server=PROGRAMS / "json_server.py",
            first=ports.first,
            last=ports.last,
            marks=marks,
            servers=servers,
            max_jobs=max_jobs,
        )
        + more
    )


def drop_all(daemon: Daemon, names: Iterable[str], text: str = "go") -> None:
    """One file per name, each a job."""
    for name in names:
        daemon.drop(name, text)


class Held(NamedTuple):
    """A port that a server had, from the log."""

    since: datetime
    until: datetime
    port: int
    server: str


def leases(daemon: Daemon) -> list[Held]:
    """Every lease that was given back, in the order of the log."""
    begun: dict[tuple[str, int], datetime] = {}
    held = []
    for event in daemon.events():
        key = (event.get("server", ""), event.get("port", 0))
        at = datetime.fromisoformat(event["timestamp"]) if "timestamp" in event else None
        if event["event"] == "port.leased" and at is not None:
            assert key not in begun
            begun[key] = at
        elif event["event"] == "port.released" and at is not None:
            held.append(Held(begun.pop(key), at, key[1], key[0]))
    assert not begun, "leases that were never given back"
    return held


def assert_apart(held: list[Held]) -> None:
    """No two leases of one port overlap."""
    last: dict[int, Held] = {}
    for lease in sorted(held):
        before = last.get(lease.port)
        assert before is None or before.until <= lease.since, (before, lease)
        last[lease.port] = lease


def listeners() -> dict[int, set[int]]:
    """The TCP ports on which somebody listens, each with the inodes of the sockets: ``/proc/net/tcp``."""
    found: dict[int, set[int]] = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            found.setdefault(int(fields[1].rpartition(":")[2], 16), set()).add(int(fields[9]))
    return found


def sockets_of(pid: int) -> set[int]:
    """The inodes of the sockets that a process holds open."""
    names = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return {int(name[8:-1]) for name in names if name.startswith("socket:[")}


def leased_now() -> set[int]:
    """The ports leased by any daemon of this machine: ``/proc/net/unix``."""
    mark = "@solvisor-port-"
    return {int(line.rpartition(mark)[2]) for line in Path("/proc/net/unix").read_text().splitlines() if mark in line}


def assert_clean(daemon: Daemon) -> None:
    """Of a daemon that ended: no process, no folder of a server, no port that is held."""
    assert daemon.solver_processes() == []
    assert not list((daemon.home / "run").glob("servers/*")), "a server's folder was left"
    leased = {event["port"] for event in daemon.events("port.leased")}
    assert leased & listeners().keys() == set()
    assert leased & leased_now() == set()


def server_pid(daemon: Daemon, name: str) -> int:
    """The process of a server that is up, of this life."""

    def pids() -> list[int]:
        return [event["pid"] for event in daemon.events("server.started") if event["server"] == name]

    return wait_until(pids, f"{name} is up")[-1]


def wait_gone(daemon: Daemon) -> None:
    wait_until(lambda: daemon.solver_processes() == [], "no process is left", 60)


def attempts(manifests: dict[str, Any]) -> list[dict[str, Any]]:
    return [attempt for manifest in manifests.values() for attempt in manifest["attempts"]]
