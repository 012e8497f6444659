"""Who listens on a port: real sockets, asked of the kernel in both ways, and whose they are."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from process_kit import ENVIRONMENT, PROGRAMS, Attempt, Attempts
from solvisor.backends.local import LocalBackend, LocalHandle
from waiting import eventually, wait_until

if sys.platform == "win32":
    pytest.skip("sockets of Linux", allow_module_level=True)

from solvisor.process import listeners, proc
from solvisor.process.listeners import Lookout, facing, held_by, on_port, owner


@pytest.fixture(params=["sock_diag", "table"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the kernel is asked; a kernel without ``sock_diag`` refuses it just as it refuses this odd protocol."""
    if request.param == "table":
        monkeypatch.setattr(listeners, "_NETLINK_SOCK_DIAG", 31)
    return str(request.param)


@pytest.fixture
def sockets() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listen(sockets: ExitStack, address: str, port: int = 0, *, v6only: bool = False) -> socket.socket:
    made = sockets.enter_context(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET))
    if ":" in address:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
    made.bind((address, port))
    made.listen()
    return made


def inode(made: socket.socket) -> int:
    return os.fstat(made.fileno()).st_ino


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.2", "127.0.0.2"),
        ("0.0.0.0", "0.0.0.0"),
        ("::1", "::1"),
        ("::", "::"),
        ("::ffff:127.0.0.1", "127.0.0.1"),
    ],
)
def test_who_listens(way: str, sockets: ExitStack, address: str, shown: str) -> None:
    made = listen(sockets, address)
    (found,) = on_port(made.getsockname()[1])
    assert found[:3] == (shown, inode(made), os.getuid())


def test_an_ipv6_listener_that_takes_no_ipv4(sockets: ExitStack) -> None:
    made = listen(sockets, "::", v6only=True)
    assert [listener.v6only for listener in on_port(made.getsockname()[1])] == [True]


def test_only_what_listens_and_only_on_that_port(way: str, sockets: ExitStack) -> None:
    made = listen(sockets, "127.0.0.1")
    port = made.getsockname()[1]
    for _ in range(3):  # connected sockets have that number on one side or the other
        sockets.enter_context(socket.create_connection(("127.0.0.1", port)))
        sockets.enter_context(made.accept()[0])
    bound = sockets.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    others = [listen(sockets, "127.0.0.1") for _ in range(300)]
    assert [listener.inode for listener in on_port(port)] == [inode(made)]
    assert on_port(bound.getsockname()[1]) == []
    assert [listener.inode for listener in on_port(others[-1].getsockname()[1])] == [inode(others[-1])]
    made.close()
    assert on_port(port) == []


def test_many_on_one_port(way: str, sockets: ExitStack) -> None:
    port = listen(sockets, "127.0.0.1").getsockname()[1]
    for last in range(2, 250):
        listen(sockets, f"127.0.0.{last}", port)
    assert len(on_port(port)) == 249


def test_not_to_be_able_to_look_is_no_answer() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files") as raised:
            on_port(1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert raised.value.errno == errno.EMFILE


# Which of them gets a connection: what is computed is what the kernel does


@pytest.mark.parametrize(
    ("host", "addresses", "want"),
    [
        ("127.0.0.1", ["127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["0.0.0.0"], "0.0.0.0"),
        ("127.0.0.1", ["::"], "::"),
        ("127.0.0.1", ["127.0.0.2"], None),
        ("127.0.0.1", ["::1"], None),
        ("127.0.0.1", ["v6only"], None),
        ("127.0.0.1", ["v6only", "127.0.0.1"], "127.0.0.1"),
        ("127.0.0.1", ["v6only", "0.0.0.0"], "0.0.0.0"),
        ("127.0.0.1", ["127.0.0.2", "127.0.0.1"], "127.0.0.1"),
        ("::1", ["::1"], "::1"),
        ("::1", ["::"], "::"),
        ("::1", ["v6only"], "::"),
        ("::1", ["0.0.0.0"], None),
        ("::1", ["127.0.0.1"], None),
    ],
)
def test_who_gets_a_connection(sockets: ExitStack, host: str, addresses: list[str], want: str | None) -> None:
    made: list[socket.socket] = []
    for address in addresses:
        port = made[0].getsockname()[1] if made else 0
        made.append(listen(sockets, "::" if address == "v6only" else address, port, v6only=address == "v6only"))
    port = made[0].getsockname()[1]
    found = facing(host, on_port(port))
    assert [listener.address for listener in found] == ([want] if want else [])
    with closing(Lookout(host, port)) as lookout:
        assert lookout.sees() == (want is not None)
    # And so it is:
    for each in made:
        each.setblocking(False)
    try:
        sockets.enter_context(socket.create_connection((host, port)))
    except ConnectionRefusedError:
        assert want is None
    else:
        wait_until(lambda: any(accepts(each, sockets) for each in made if inode(each) == found[0].inode), "an accept")


def test_a_glance_sees_what_listens_and_nothing_else(sockets: ExitStack) -> None:
    bound = sockets.enter_context(socket.socket())
    bound.bind(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    lookout = sockets.enter_context(closing(Lookout("127.0.0.1", port)))
    assert not lookout.sees()
    bound.listen()
    assert lookout.sees()
    sockets.enter_context(socket.create_connection(bound.getsockname()))
    accepted = sockets.enter_context(bound.accept()[0])
    bound.close()
    assert accepted.getsockname()[1] == port
    assert not lookout.sees(), "a connection from that port is no listener"


def test_where_the_kernel_tells_nothing_there_is_no_glance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "_NETLINK_SOCK_DIAG", 31)
    with pytest.raises(OSError, match="rotocol"):
        Lookout("127.0.0.1", 1)
    with pytest.raises(ValueError, match="localhost"):
        Lookout("localhost", 1)


def accepts(made: socket.socket, sockets: ExitStack) -> bool:
    try:
        sockets.enter_context(made.accept()[0])
    except BlockingIOError:
        return False
    return True


def test_a_port_that_several_share(sockets: ExitStack) -> None:
    made: list[socket.socket] = []
    for _ in range(2):
        one = sockets.enter_context(socket.socket())
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(("127.0.0.1", made[0].getsockname()[1] if made else 0))
        one.listen()
        made.append(one)
    found = facing("127.0.0.1", on_port(made[0].getsockname()[1]))
    assert {listener.inode for listener in found} == {inode(one) for one in made}


# Whose it is


class Bench:
    """Servers as process trees of their own."""

    def __init__(self, backend: LocalBackend, attempts: Attempts) -> None:
        self._backend = backend
        self.attempts = attempts

    async def start(self, *options: str) -> tuple[Attempt, LocalHandle, int]:
        return await self.listening(self.attempts.python("probe_server.py", "127.0.0.1", "0", *options))

    async def listening(self, attempt: Attempt) -> tuple[Attempt, LocalHandle, int]:
        """A server that listens, and the inode of its socket."""
        handle = await self._backend.launch(attempt.ready)
        await eventually(lambda: attempt.read("listening").endswith("\n"), "a server that listens")
        (listener,) = on_port(int(attempt.read("listening").split()[1]))
        return attempt, handle, listener.inode


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with LocalBackend(kill_wait_seconds=20) as backend:
        yield Bench(backend, Attempts(tmp_path))


@pytest.mark.parametrize("options", [(), ("--fork", "once"), ("--fork", "twice")], ids=["leader", "child", "orphan"])
async def test_the_tree_that_listens(bench: Bench, options: tuple[str, ...]) -> None:
    attempt, handle, socket_inode = await bench.start(*options)
    token = attempt.spec.token
    assert held_by(handle.pid, token, {socket_inode}) == {socket_inode}
    assert held_by(handle.pid, token, {socket_inode, 1}) == {socket_inode}
    assert (attempt.pid() == handle.pid) == (not options)


async def test_an_orphan_in_the_session_without_a_token(bench: Bench) -> None:
    program = PROGRAMS / "probe_server.py"
    orphaned = bench.attempts.shell(f"(env -i {sys.executable} -S -E {program} 127.0.0.1 0 &)\nsleep 1000")
    attempt, handle, socket_inode = await bench.listening(orphaned)
    assert proc.token(attempt.pid()) is None
    assert held_by(handle.pid, attempt.spec.token, {socket_inode}) == {socket_inode}


async def test_another_tree_is_a_stranger(bench: Bench, sockets: ExitStack) -> None:
    first, first_handle, _ = await bench.start("--fork", "twice")
    _, second_handle, second_inode = await bench.start("--fork", "twice")
    assert held_by(first_handle.pid, first.spec.token, {second_inode}) == set()
    assert held_by(second_handle.pid, first.spec.token + "0", {second_inode}) == set()
    own = listen(sockets, "127.0.0.1")
    assert held_by(first_handle.pid, first.spec.token, {inode(own)}) == set()


async def test_a_number_that_is_no_child_of_ours_has_no_tree(sockets: ExitStack) -> None:
    own = listen(sockets, "127.0.0.1")
    assert held_by(os.getpid(), "home/none", {inode(own)}) == set()
    assert held_by(2**22 - 1, "home/none", {inode(own)}) == set()


async def test_the_owner_is_named(bench: Bench, sockets: ExitStack) -> None:
    _, handle, socket_inode = await bench.start()
    named = owner(socket_inode)
    assert named is not None
    assert named.startswith("python")
    assert named.endswith(f"(pid {handle.pid})")
    assert owner(1) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_whose_open_files_may_not_be_seen_is_a_stranger() -> None:
    program = [sys.executable, str(PROGRAMS / "probe_nobody.py")]
    assert subprocess.run(program, env=ENVIRONMENT, check=True, capture_output=True).stdout == b"True True\n"


def test_a_program_with_an_odd_name(tmp_path: Path, sockets: ExitStack) -> None:
    program = tmp_path / "odd\x1b[31m"
    program.symlink_to("/bin/sleep")
    own = listen(sockets, "127.0.0.1")
    process = subprocess.Popen([str(program), "1000"], pass_fds=[own.fileno()])
    number = inode(own)
    own.close()
    try:
        wait_until(lambda: owner(number) == f"odd\\x1b[31m (pid {process.pid})", "the name of the program")
    finally:
        process.kill()
        process.wait()
