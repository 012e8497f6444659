"""Many warm servers at once, many one after the other, and many jobs while servers are killed under them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from daemon import Daemon
from pool_kit import spare_range
from servers_kit import (
    PROGRAMS,
    assert_apart,
    assert_clean,
    attempts,
    config,
    drop_all,
    leases,
    listeners,
    sockets_of,
)
from waiting import wait_until

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

MakeDaemon = Callable[..., Daemon]
MANY = 64


@pytest.mark.slow
def test_fault_18_64_servers_on_64_ports_that_a_stranger_keeps_taking(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    ports = spare_range(MANY)
    servers = f'min = {MANY}, max = {MANY}, start_timeout = "60s"'
    daemon = make_daemon(config(tmp_path / "marks", ports, servers, max_jobs=MANY))
    argv = [sys.executable, "-S", "-E", str(PROGRAMS / "rogue.py"), str(ports.first), str(ports.last), "4"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as rogue:
        daemon.start()
        drop_all(daemon, [f"{n}.s" for n in range(MANY)])
        daemon.wait_for(MANY, 240)

        def up() -> dict[int, int]:
            """The servers that are up, ports by pid."""
            found: dict[str, tuple[int, int]] = {}
            for event in daemon.events():
                match event["event"]:
                    case "server.started":
                        found[event["server"]] = (event["pid"], 0)
                    case "server.ready":
                        found[event["server"]] = (found[event["server"]][0], event["port"])
                    case "server.failed" | "server.stopped":
                        found.pop(event["server"], None)
            return {pid: port for pid, port in found.values() if port}

        told, _ = rogue.communicate()
        wait_until(lambda: len(up()) == MANY, "all servers are ready", 150)
        owners = up()
        assert sorted(owners.values()) == list(range(ports.first, ports.last + 1)), "each port has one server"
        seen = listeners()
        for pid, port in owners.items():
            assert len(seen[port]) == 1
            assert seen[port] <= sockets_of(pid), f"{port} belongs to a stranger"
        assert int(told) > 0, "the stranger never took a port, so nothing was tried"
    manifests = daemon.manifests()
    assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}
    assert daemon.stop() == 0
    assert_apart(leases(daemon))
    assert_clean(daemon)


@pytest.mark.slow
def test_fault_25_two_daemons_never_have_the_same_port(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    each = 200
    marks = tmp_path / "marks"
    text = config(marks, spare_range(each + each // 2), 'max = 4, recycle_jobs = 1, start_timeout = "60s"', max_jobs=4)
    both = [make_daemon(text, name) for name in ("one", "two")]
    for daemon in both:
        daemon.start()
    for daemon in both:
        drop_all(daemon, [f"{n}.s" for n in range(each)])
    for daemon in both:
        manifests = daemon.wait_for(each, 240)
        assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}
        assert len({attempt["server"] for attempt in attempts(manifests)}) == each, "every job had a new server"
    for daemon in both:
        assert daemon.stop() == 0
    for daemon in both:
        assert_clean(daemon)
    held = [leases(daemon) for daemon in both]
    assert all(len(of_one) >= each for of_one in held)
    assert {lease.port for lease in held[0]} & {lease.port for lease in held[1]}, "they never met"
    assert_apart([*held[0], *held[1]])
    assert list(marks.iterdir()) == [], "a server found its port taken"


@pytest.mark.slow
def test_1000_jobs_while_servers_are_killed(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    jobs, every = 1000, 50
    daemon = make_daemon(config(tmp_path / "marks", spare_range(100), "min = 2, max = 2"))
    daemon.start()
    drop_all(daemon, [f"{n}.s" for n in range(jobs)])
    killed = 0
    for done in range(every, jobs, every):
        daemon.wait_event("job.succeeded", done, 120)
        pids = {event["server"]: event["pid"] for event in daemon.events("server.started")}
        for event in daemon.events("server.failed"):
            pids.pop(event["server"], None)
        for pid in list(pids.values())[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
    manifests = daemon.wait_for(jobs, 240)
    assert len(manifests) == jobs
    assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}
    assert len({manifest["name"] for manifest in manifests.values()}) == jobs
    assert killed >= jobs // every // 2, "too few were killed to prove anything"
    charged = [attempt for attempt in attempts(manifests) if attempt["cause"] == "server"]
    assert len(charged) <= killed, "a job was charged for a death that was none"
    assert daemon.stop() == 0
    assert_clean(daemon)
