"""Ports: one lease each among all daemons, nothing bound is leased, a rest after use, words when there is none."""

from __future__ import annotations

import errno
import mmap
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from process_kit import ENVIRONMENT, PROGRAMS
from solvisor import leases as module
from solvisor.leases import REST_SECONDS, Lease, Leases, NoSuchAddress, ephemeral_range, overlap_warning
from solvisor.model import PortRange
from waiting import wait_until

HERE = "127.0.0.1"
PRIVILEGED = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
linux = pytest.mark.skipif(sys.platform != "linux", reason="abstract sockets and /proc are of Linux")
as_root = pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="becomes another user: root, Linux")

Start = Callable[..., "subprocess.Popen[str]"]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def bound(address: str, port: int, *, reuse: bool = False) -> socket.socket:
    """A socket that holds a port and does not listen; without ``reuse`` it is as strict as a server can be."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    taken = socket.socket(family)
    try:
        if reuse:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((address, port))
    except BaseException:
        taken.close()
        raise
    return taken


def has_ipv6() -> bool:
    try:
        bound("::1", 0).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


def spare(count: int) -> PortRange:
    """A range of ports that nobody uses: at random, so that two runs of the tests do not meet."""
    while True:
        first = random.randrange(10_000, 30_000)
        try:
            for port in range(first, first + count):
                bound("0.0.0.0", port).close()
        except OSError:
            continue
        return PortRange(first, first + count - 1)


def take(leases: Leases, host: str = HERE) -> Lease:
    lease = leases.take(host)
    assert lease is not None, leases.why_none(host)
    return lease


def take_all(leases: Leases, host: str = HERE) -> list[int]:
    ports = []
    while lease := leases.take(host):
        ports.append(lease.port)
    return ports


@pytest.fixture
def make() -> Iterator[Callable[..., Leases]]:
    """Makes leases that end with the test."""
    made: list[Leases] = []

    def make(ports: PortRange, **how: Callable[[], float]) -> Leases:
        made.append(Leases(ports, **how))
        return made[-1]

    yield make
    for leases in made:
        leases.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts one of the programs with pipes; all are killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(program: str, ports: PortRange, *args: object) -> subprocess.Popen[str]:
        argv = [sys.executable, str(PROGRAMS / program), str(ports.first), str(ports.last), *map(str, args)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(argv, env=ENVIRONMENT, stdin=pipe, stdout=pipe, text=True, bufsize=1))
        return started[-1]

    yield start
    for process in started:
        with process:
            process.kill()


def line(process: subprocess.Popen[str]) -> list[int]:
    """The numbers on the next line it prints."""
    assert process.stdout is not None
    return [int(word) for word in process.stdout.readline().split()]


# --- one daemon -------------------------------------------------------------------------------------------------------


def test_ports_go_round_in_turn_and_need_not_rest_if_nobody_listened(make: Callable[..., Leases]) -> None:
    ports = spare(4)
    leases = make(ports)
    seen = []
    for _ in range(6):
        lease = take(leases)
        seen.append(lease.port - ports.first)
        leases.give_back(lease, rests=False)
    assert seen == [0, 1, 2, 3, 0, 1]
    assert leases.resting == 0


def test_a_server_can_listen_on_a_leased_port(make: Callable[..., Leases]) -> None:
    lease = take(make(spare(3)))
    with bound(HERE, lease.port) as server:
        server.listen()


def test_fault_22_a_range_of_one_is_exhausted_and_says_so(make: Callable[..., Leases]) -> None:
    ports = spare(1)
    clock = Clock()
    leases = make(ports, clock=clock)
    assert leases.why_none(HERE).endswith(": none was looked for")
    lease = take(leases)
    assert leases.taken == 1
    assert leases.take(HERE) is None
    assert leases.why_none(HERE) == f"no port of {ports.first} is free on {HERE}: 1 in use by servers of this daemon"
    leases.give_back(lease)
    assert (leases.taken, leases.resting) == (0, 1)
    clock.now += 17.5
    assert leases.take(HERE) is None
    assert leases.why_none(HERE).endswith(": 1 resting after use, the next one is free in 43 s")
    clock.now += 42.5
    assert take(leases).port == ports.first


def test_a_port_rests_after_use_and_the_first_to_rest_is_the_first_to_be_free(make: Callable[..., Leases]) -> None:
    ports = spare(3)
    clock = Clock()
    leases = make(ports, clock=clock)
    assert leases.free_at() is None
    held = {lease.port: lease for lease in (take(leases), take(leases), take(leases))}
    for port in (ports.last, ports.first):
        leases.give_back(held[port])
        clock.now += 10
    assert leases.take(HERE) is None
    assert leases.free_at() == 1000 + REST_SECONDS
    clock.now = 1000 + REST_SECONDS - 0.001
    assert leases.take(HERE) is None
    clock.now = 1000 + REST_SECONDS
    assert take_all(leases) == [ports.last]
    assert (leases.resting, leases.free_at()) == (1, 1010 + REST_SECONDS)
    clock.now = 1010 + REST_SECONDS
    assert (leases.resting, leases.free_at()) == (0, None)
    assert take_all(leases) == [ports.first]


def test_giving_back_twice_does_not_end_the_next_lease_of_the_port(make: Callable[..., Leases]) -> None:
    ports = spare(1)
    leases, others = make(ports), make(ports)
    first = take(leases)
    leases.give_back(first, rests=False)
    second = take(leases)
    leases.give_back(first)
    assert (leases.taken, leases.resting) == (1, 0)
    assert others.take(HERE) is None
    leases.give_back(second)
    leases.give_back(second)
    assert (leases.taken, leases.resting) == (0, 1)
    assert take(others).port == first.port


def test_close_gives_all_back(make: Callable[..., Leases]) -> None:
    ports = spare(3)
    leases, others = make(ports), make(ports)
    assert len(take_all(leases)) == 3
    assert take_all(others) == []
    leases.close()
    leases.close()
    assert leases.taken == 0
    assert len(take_all(others)) == 3


# --- what other programs do -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reuse", [False, True])
@pytest.mark.parametrize("address", [HERE, "0.0.0.0", pytest.param("::", marks=ipv6)])
def test_what_another_program_bound_is_passed_over(make: Callable[..., Leases], address: str, reuse: bool) -> None:
    ports = spare(3)
    leases = make(ports)
    with bound(address, ports.first + 1, reuse=reuse):
        assert take_all(leases) == [ports.first, ports.last]
        counts = "2 in use by servers of this daemon, 1 bound by other programs or by connections that just ended"
        assert leases.why_none(HERE).endswith(counts)
    assert take_all(leases) == [ports.first + 1]


@ipv6
def test_the_address_of_the_server_is_the_one_that_counts(make: Callable[..., Leases]) -> None:
    ports = spare(1)
    leases, others = make(ports), make(ports)
    with bound("::1", ports.first):
        assert leases.take("::1") is None
        lease = take(leases, HERE)
    assert others.take("::1") is None, "a port has one lease, whatever the address"
    leases.give_back(lease, rests=False)
    with bound(HERE, ports.first):
        assert leases.take(HERE) is None
        assert take(others, "::1").port == ports.first


@linux
def test_fault_21_a_port_whose_connections_just_ended_is_passed_over(make: Callable[..., Leases]) -> None:
    ports = spare(1)
    leases = make(ports)
    lease = take(leases)
    with bound(HERE, lease.port) as server:
        server.listen()
        with socket.create_connection((HERE, lease.port)) as client:
            server.accept()[0].close()  # the server hangs up first: TIME_WAIT stays with its port
            assert client.recv(1) == b""
    leases.give_back(lease, rests=False)
    assert leases.take(HERE) is None
    assert "connections that just ended" in leases.why_none(HERE)


def test_a_program_that_keeps_binding_ports(make: Callable[..., Leases], start: Start, tmp_path: Path) -> None:
    ports = spare(12)
    leases = make(ports)
    (tmp_path / "bound").write_bytes(bytes(8 * 12))
    rogue = start("lease_rogue.py", ports, tmp_path / "bound")
    with (tmp_path / "bound").open("rb") as file:
        shared = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with closing(shared), memoryview(shared) as raw, raw.cast("Q") as since:
        wait_until(lambda: any(since), "the rogue to bind a port")
        taken = dodged = 0
        turn = ports.first
        end = time.monotonic() + 60
        while taken < 2000 or dodged < 100:
            assert rogue.poll() is None
            assert time.monotonic() < end, f"{taken} leases, {dodged} of them past ports that were bound"
            before = list(since)
            lease = leases.take(HERE)
            after = list(since)
            if lease is None:
                continue
            instant = before[lease.port - ports.first]
            assert not instant or instant != after[lease.port - ports.first], "it was bound all the time"
            dodged += lease.port != turn
            turn = lease.port + 1 if lease.port < ports.last else ports.first
            taken += 1
            leases.give_back(lease, rests=False)


@as_root
@pytest.mark.skipif(sys.platform == "linux" and int(PRIVILEGED.read_text()) <= 3, reason=f"{PRIVILEGED} forbids none")
def test_ports_that_only_root_may_bind_are_told_apart(make: Callable[..., Leases]) -> None:
    leases = make(PortRange(1, 3))
    os.seteuid(65534)
    try:
        assert leases.take(HERE) is None
    finally:
        os.seteuid(0)
    assert leases.why_none(HERE).endswith(": 3 forbidden to this user (ports below 1024 usually are)")


@pytest.mark.parametrize(("address", "hint"), [("198.51.100.1", "network interface"), ("2001:db8::1", "IPv6")])
def test_an_address_that_this_machine_does_not_have(make: Callable[..., Leases], address: str, hint: str) -> None:
    ports = spare(1)
    leases = make(ports)
    with pytest.raises(NoSuchAddress, match=rf"no server can listen on {address}: .*{hint}.*choose another host"):
        leases.take(address)
    assert take(leases).port == ports.first, "nothing is held after the failure"


def test_a_machine_without_ipv6(make: Callable[..., Leases], monkeypatch: pytest.MonkeyPatch) -> None:
    class Socket(socket.socket):
        def __init__(self, family: int, kind: int) -> None:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            super().__init__(family, kind)

    leases = make(spare(1))
    monkeypatch.setattr(socket, "socket", Socket)
    with pytest.raises(NoSuchAddress, match="IPv6 switched off"):
        leases.take("::1")


def test_a_name_is_no_address(make: Callable[..., Leases]) -> None:
    with pytest.raises(ValueError, match="localhost"):
        make(spare(1)).take("localhost")


@linux
def test_no_descriptor_left_is_no_port_missing_and_leaks_nothing(make: Callable[..., Leases]) -> None:
    import resource

    ports = spare(1)
    leases, others = make(ports), make(ports)
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for more in (0, 1):  # none for the name; none for the bind check
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                leases.take(HERE)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert take(others).port == ports.first


# --- several daemons --------------------------------------------------------------------------------------------------


def test_fault_25_two_daemons_share_a_range(make: Callable[..., Leases], start: Start) -> None:
    ports = spare(4)
    leases = make(ports)
    mine = [take(leases), take(leases)]
    other = start("lease_holder.py", ports)
    assert line(other) == [ports.first + 2, ports.last]
    leases.give_back(mine[0])
    assert leases.take(HERE) is None
    counts = "1 in use by servers of this daemon, 2 in use by other Solvisor daemons, 1 resting after use, "
    assert counts in leases.why_none(HERE)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_the_leases_of_a_killed_daemon_are_free(make: Callable[..., Leases], start: Start) -> None:
    ports = spare(3)
    other = start("lease_holder.py", ports)
    assert len(line(other)) == 3
    leases = make(ports)
    assert leases.take(HERE) is None
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert wait_until(lambda: take_all(leases), "a port of the killed daemon")
    wait_until(lambda: leases.taken + len(take_all(leases)) == 3, "all its ports")


def test_a_child_does_not_inherit_a_lease(make: Callable[..., Leases]) -> None:
    ports = spare(1)
    leases, others = make(ports), make(ports)
    lease = take(leases)
    argv = [sys.executable, "-S", "-c", "print(flush=True); input()"]
    child = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        leases.give_back(lease)
        assert take(others).port == ports.first
        child.kill()


@as_root
def test_daemons_of_different_users_share_the_names(make: Callable[..., Leases]) -> None:
    ports = spare(2)
    roots, nobodys = make(ports), make(ports)
    take(roots)
    os.seteuid(65534)
    try:
        assert take_all(nobodys) == [ports.last]
    finally:
        os.seteuid(0)
    assert take_all(roots) == []


def race(start: Start, marks: Path, *blind: str) -> tuple[list[list[int]], list[list[int]]]:
    """Two daemons take and give six ports, each at most four at a time.

    Returned for each: what it held at first, and its turns and overlaps. Both are at it until the slower one did 200.
    """
    ports = spare(6)
    marks.mkdir()
    racers = [start("lease_racer.py", ports, 4, 200, marks, *blind) for _ in range(2)]
    first = [line(racer) for racer in racers]
    pipes = [racer.stdin for racer in racers if racer.stdin]
    for pipe in pipes:
        pipe.write("\n")
    assert [line(racer) for racer in racers] == [[200], [200]]
    for pipe in pipes:
        pipe.close()
    return first, [line(racer) for racer in racers]


def test_fault_25_two_daemons_never_have_the_same_port(start: Start, tmp_path: Path) -> None:
    first, results = race(start, tmp_path / "marks")
    assert len(first[0]) + len(first[1]) == len({*first[0], *first[1]}) == 6
    for turns, overlaps in results:
        assert turns >= 200
        assert overlaps == 0


def test_the_race_would_notice(start: Start, tmp_path: Path) -> None:
    first, results = race(start, tmp_path / "marks", "blind")
    common = len({*first[0]} & {*first[1]})
    assert common > 0, "four and four of six"
    assert sum(overlaps for _, overlaps in results) >= common


# --- where there are no abstract sockets ------------------------------------------------------------------------------


def test_locked_files_exclude_as_names_do(
    make: Callable[..., Leases], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_hold", module._lock_file)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    ports = spare(2)
    leases, others = make(ports), make(ports)
    lease = take(leases)
    assert take_all(others) == [ports.last]
    assert "1 in use by other Solvisor daemons" in others.why_none(HERE)
    leases.give_back(lease)
    assert take_all(others) == [ports.first]


# --- the kernel's own ports -------------------------------------------------------------------------------------------


@linux
def test_the_kernel_tells_its_ephemeral_ports() -> None:
    ephemeral = ephemeral_range()
    assert ephemeral is not None
    with bound(HERE, 0) as given:
        assert ephemeral.first <= given.getsockname()[1] <= ephemeral.last


def test_where_the_kernel_does_not_tell_there_is_nothing_to_warn_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_EPHEMERAL", str(tmp_path / "missing"))
    monkeypatch.setattr(module, "_RESERVED", str(tmp_path / "missing"))
    assert ephemeral_range() is None
    assert overlap_warning(PortRange(1, 65535), None) is None
    assert overlap_warning(PortRange(50_000, 50_001), PortRange(32_768, 60_999)) is not None


@pytest.mark.parametrize(
    ("first", "last", "reserved", "spared"),
    [
        (20_000, 32_767, "", None),
        (20_000, 32_768, "", "32768"),
        (61_000, 65_535, "", None),
        (60_999, 65_535, "", "60999"),
        (40_000, 40_099, "", "40000-40099"),
        (1_024, 65_535, "8080,9000-9010", "8080,9000-9010,32768-60999"),
        (40_000, 40_099, "39000-40099", None),
        (40_000, 40_099, "40000-40049,40050-41000", None),
        (32_000, 32_800, "32768-32800", None),
        (40_000, 40_099, "40001-40099", "40001-40099,40000-40099"),
    ],
)
def test_ports_that_the_kernel_gives_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, first: int, last: int, reserved: str, spared: str | None
) -> None:
    (tmp_path / "reserved").write_text(reserved + "\n")
    monkeypatch.setattr(module, "_RESERVED", str(tmp_path / "reserved"))
    warning = overlap_warning(PortRange(first, last), PortRange(32_768, 60_999))
    if spared is None:
        assert warning is None
    else:
        assert warning == (
            f"ports {first}-{last} overlap those the kernel gives to outgoing connections, 32768-60999 "
            "(net.ipv4.ip_local_port_range), so any program may take them by chance: choose a range outside of it, or "
            f"have the kernel spare them: sysctl net.ipv4.ip_local_reserved_ports={spared}"
        )
