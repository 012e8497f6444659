"""Readiness of servers and of decoys: when it is seen, what is said until then, and who is never talked to."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from itertools import accumulate, islice, takewhile
from pathlib import Path
from typing import Any

import anyio
import pytest

from probe_kit import HOST, PING, Server, Servers, free_port, never, passed, servers, under_way
from solvisor import probe
from solvisor.errors import NotReady, PortTaken
from solvisor.filetext import OVERLAP
from solvisor.kinds import FileReady, LineReady, ReportedPort, TcpReady
from solvisor.probe import ANSWER_MOST, check, pauses, until_listening, until_port, until_ready
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("servers of Linux", allow_module_level=True)

from solvisor.process import listeners

LOOPS = "uvloop"

MUTE = "it accepted the connection and answered nothing"


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Servers]:
    async with servers(tmp_path) as some:
        yield some


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """A listener of this process, which is no server's tree."""
    with socket.socket() as made:
        made.bind((HOST, free_port()))
        made.listen()
        made.setblocking(False)
        yield made


def assert_untouched(listener: socket.socket) -> None:
    """Nobody ever connected."""
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_pauses_grow_with_the_time_waited() -> None:
    some = list(islice(pauses(), 2000))
    assert (min(some), max(some)) == probe.PAUSE_SECONDS
    waited = 0.0
    for pause in some:
        assert pause <= max(0.001, probe.LOOK_SHARE * waited + 1e-9)
        waited += pause
    assert sum(pause < 0.1 for pause in some) < 600, "what a slow start costs is bounded"


async def test_a_slow_start_is_seen_by_glances_and_hardly_a_look(
    bench: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, glances = 0, 0
    on_port, sees = listeners.on_port, listeners.Lookout.sees

    def counted(port: int) -> list[listeners.Listener]:
        nonlocal looks
        looks += 1
        return on_port(port)

    def glanced(lookout: listeners.Lookout) -> bool:
        nonlocal glances
        glances += 1
        return sees(lookout)

    monkeypatch.setattr(listeners, "on_port", counted)
    monkeypatch.setattr(listeners.Lookout, "sees", glanced)
    server, began = await bench.start("--after", "go"), time.monotonic()
    async with under_way(server.until_ready()):
        await eventually(passed(1.0), "a second in which nothing listens")
        waited = time.monotonic() - began
        assert looks <= 2 + waited / probe.PAUSE_SECONDS[1]
        assert glances > looks
        server.write("go")
    assert server.requests() == ["1 connected", "1 ping"]


# Ready


@pytest.mark.parametrize("options", [(), ("--fork", "once"), ("--fork", "twice")], ids=["leader", "child", "orphan"])
async def test_ready_when_it_answers(bench: Servers, options: tuple[str, ...]) -> None:
    server = await bench.start("--after", "go", *options)
    async with under_way(server.until_ready()) as done:
        await server.noted(f"nothing listens on port {server.port} of {HOST}")
        assert not done.is_set()
        server.write("go")
    assert server.requests() == ["1 connected", "1 ping"]
    await check(PING, HOST, server.port)
    assert server.requests()[2:] == ["2 connected", "2 ping"]


@pytest.mark.parametrize(("address", "host"), [("0.0.0.0", HOST), ("::", HOST), ("::", "::1"), ("::1", "::1")])
async def test_wildcards_and_ipv6(bench: Servers, address: str, host: str) -> None:
    server = await bench.start(address=address)
    with anyio.fail_after(60):
        await server.until_ready(host=host)()
    await check(PING, host, server.port)


async def test_a_listener_that_is_seconds_late(bench: Servers) -> None:
    server = await bench.start("--late", "2")
    with anyio.fail_after(60):
        await server.until_ready()()
    assert server.requests() == ["1 connected", "1 ping"]


async def test_fault_24_an_accepted_connection_is_not_enough_and_a_request_is_sent_once(bench: Servers) -> None:
    server = await bench.start("--answer-after", "go")
    async with under_way(server.until_ready()) as done:
        await server.noted(MUTE)
        await eventually(passed(1.0), "a second of silence")
        assert not done.is_set()
        assert server.requests() == ["1 connected", "1 ping"]
        server.write("go")
    assert server.requests() == ["1 connected", "1 ping"]


async def test_without_a_request_nothing_is_sent(bench: Servers) -> None:
    server = await bench.start()
    async with never(server.until_ready(TcpReady(expect="^pong$"))):
        await server.noted(MUTE)
        await eventually(server.requests, "the connection")
    assert server.requests() == ["1 connected"]


async def test_one_that_hangs_up_at_first_gets_another_connection(bench: Servers) -> None:
    server, began = await bench.start("--drop-until", "go"), time.monotonic()

    def tried() -> int:
        return sum(line.endswith("connected") for line in server.requests())

    async with under_way(server.until_ready()) as done:
        await server.noted("it accepted the connection and closed it without an answer")
        await eventually(passed(0.5), "half a second of tries")
        await eventually(lambda: tried() > 3, "more than three")
        assert not done.is_set()
        tries = tried()
        waits = takewhile(lambda waited: waited <= time.monotonic() - began, accumulate(pauses(probe.TRY_SHARE)))
        assert tries <= 2 + sum(1 for _ in waits)
        server.write("go")
    *_, connected, ping = server.requests()
    assert (connected.split()[1], ping.split()[1]) == ("connected", "ping")
    assert sum(line.endswith(" ping") for line in server.requests()) == 1


async def test_one_that_says_it_is_loading_is_asked_again_over_another_connection(bench: Servers) -> None:
    server = await bench.start("--bad-until", "go")
    async with under_way(server.until_ready()) as done:
        await server.noted('it answered "LOADING\\r\\n", which is not what is expected')
        await eventually(lambda: "3 ping" in server.requests(), "some tries")
        assert not done.is_set()
        server.write("go")
    each = [int(line.split()[0]) for line in server.requests() if line.endswith(" ping")]
    assert each == list(range(1, len(each) + 1)), "one request per connection"


async def test_an_answer_in_pieces(bench: Servers) -> None:
    """The rest may be long in coming, if the server was long in starting."""
    server = await bench.start("--say", "po", "--then", "ng\r\n", "--then-late", "0.3")
    with anyio.fail_after(60):
        await server.until_ready()()
        await check(PING, HOST, server.port)


async def test_an_answer_is_kept_up_to_a_bound(bench: Servers) -> None:
    server = await bench.start("--say", "x" * (ANSWER_MOST // 2))
    endless = TcpReady(send="1\n2\n3\n4\n", expect="pong")
    with anyio.fail_after(60):
        await until_listening(server.up, HOST, server.port, server.notes.append)
        with pytest.raises(NotReady, match=r'^it answered "x+\.\.\., which is not what is expected$') as raised:
            await check(endless, HOST, server.port)
    assert len(str(raised.value)) < 200


async def test_line_ends_of_the_network(bench: Servers) -> None:
    server = await bench.start()
    with anyio.fail_after(60):
        for expect in ("^pong$", r"^pong\r\n", r"\Apong\s*\Z"):
            await server.until_ready(TcpReady(send="ping\n", expect=expect))()


async def test_no_port_to_ask_on(bench: Servers) -> None:
    server = await bench.shell("sleep 1000")
    with pytest.raises(NotReady, match="it has no port on which it could be asked"):
        await until_ready(PING, server.up, HOST, None, server.notes.append)
    with pytest.raises(NotReady, match="no port"):
        await check(PING, HOST, None)


# Whom it never talks to


async def test_fault_19_a_stranger_is_named_and_not_talked_to(bench: Servers, stranger: socket.socket) -> None:
    port = stranger.getsockname()[1]
    server = await bench.start("--after", "go", port=port)
    with anyio.fail_after(60), pytest.raises(PortTaken, match=rf"\(pid \d+\) listens on port {port} of {HOST}$"):
        await server.until_ready()()
    assert server.notes[0] == f"another program listens on port {port} of {HOST}"
    assert_untouched(stranger)


async def test_fault_19_another_server_of_ours_is_a_stranger(bench: Servers) -> None:
    other = await bench.start()
    with anyio.fail_after(60):
        await other.until_ready()()
        server = await bench.start("--after", "go", port=other.port)
        with pytest.raises(PortTaken, match=rf"^python.* \(pid {other.up.pid}\) listens on port {other.port}"):
            await server.until_ready()()
    assert other.requests() == ["1 connected", "1 ping"]


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::"])
async def test_a_stranger_on_a_wildcard(bench: Servers, wildcard: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in wildcard else socket.AF_INET) as made:
        made.bind((wildcard, free_port()))
        made.listen()
        server = await bench.start("--after", "go", port=made.getsockname()[1])
        with anyio.fail_after(60), pytest.raises(PortTaken):
            await until_listening(server.up, HOST, server.port, server.notes.append)


async def test_a_stranger_on_another_address_does_not_matter(bench: Servers) -> None:
    with socket.socket() as made, socket.socket(socket.AF_INET6) as v6only:
        made.bind(("127.0.0.2", free_port()))
        made.listen()
        v6only.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        v6only.bind(("::", made.getsockname()[1]))
        v6only.listen()
        server = await bench.start(port=made.getsockname()[1])
        with anyio.fail_after(60):
            await server.until_ready()()


async def test_a_stranger_for_a_moment_is_none(bench: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process of ours that changes its program shows no clue for a moment."""
    server = await bench.start()
    real, looks = listeners.held_by, iter(range(3))
    monkeypatch.setattr(listeners, "held_by", lambda *args: real(*args) if next(looks, None) is None else set())
    with anyio.fail_after(60):
        await server.until_ready()()


@pytest.mark.parametrize(("address", "options"), [("::1", ()), ("127.0.0.2", ()), ("::", ("--v6only",))])
async def test_fault_23_a_server_on_another_address_only(
    bench: Servers, address: str, options: tuple[str, ...]
) -> None:
    server = await bench.start(*options, address=address)
    async with never(server.until_ready()):
        await server.noted(f"nothing listens on port {server.port} of {HOST}, it listens on {address} instead")
    assert server.requests() == []


async def test_fault_20_no_connection_is_made_to_a_dead_port(bench: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who keeps connecting to a dead port of the ephemeral range is connected to itself one day."""
    connections: list[Any] = []
    monkeypatch.setattr(asyncio, "open_connection", lambda *args, **_: connections.append(args))
    with socket.socket() as bound:  # it does not listen, and so refuses
        bound.bind((HOST, 0))
        server = await bench.start("--after", "go", port=bound.getsockname()[1])
        async with never(server.until_ready()):
            await eventually(lambda: len(server.notes) > 20, "twenty looks")
    assert set(server.notes) == {f"nothing listens on port {server.port} of {HOST}"}
    assert connections == []


async def test_fault_20_a_connection_to_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    port, real = free_port(), asyncio.open_connection

    async def from_the_same_port(host: str, port: int, **how: Any) -> Any:
        one = socket.socket()
        one.bind((host, port))
        one.connect((host, port))
        return await real(sock=one, **how)

    monkeypatch.setattr(asyncio, "open_connection", from_the_same_port)
    with anyio.fail_after(60), pytest.raises(NotReady, match="the connection led to its own beginning"):
        await check(TcpReady(send="pong\n", expect="pong"), HOST, port)


async def test_a_dead_server_fails_its_check() -> None:
    with pytest.raises(NotReady, match=r"^no connection to 127.0.0.1, port \d+: Connection refused$"):
        await check(PING, HOST, free_port())


async def test_not_to_be_able_to_look_is_waited_out(bench: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    server, real = await bench.start(), listeners.on_port

    def look(port: int) -> list[listeners.Listener]:
        if not (server.attempt.folder / "go").exists():
            raise OSError(errno.EMFILE, "Too many open files")
        return real(port)

    monkeypatch.setattr(listeners, "on_port", look)
    async with under_way(server.until_ready()):
        await server.noted("it cannot be looked at: Too many open files")
        server.write("go")


# A line or a file


@pytest.mark.parametrize("log", ["stdout", "stderr"])
async def test_a_printed_line(bench: Servers, log: str) -> None:
    server = await bench.shell("sleep 1000")
    line = LineReady(match=r"^serving\b")
    async with under_way(lambda: until_ready(line, server.up, HOST, None, server.notes.append)) as done:
        await server.noted('"^serving\\\\b" is not found in what it printed')
        server.say("not serving\nser", log)
        await server.more_notes()
        assert not done.is_set()
        server.say("ving", log)  # and no line end
    await check(line, HOST, None)


async def test_a_line_far_into_a_large_log(bench: Servers) -> None:
    server = await bench.shell("sleep 1000")
    line = LineReady(match=r"^serving$")
    # Each look but the first begins in the middle of this line.
    server.say("x" * (5 << 20) + "serving\n" + "x" * (OVERLAP - len("serving\n")))
    async with under_way(lambda: until_ready(line, server.up, HOST, None, server.notes.append)) as done:
        await server.noted("not found")
        await server.more_notes()
        assert not done.is_set()
        server.say("x" * 300_000 + "\nserving\r\n" + "x" * 30_000)


async def test_a_written_file(bench: Servers) -> None:
    server = await bench.shell("sleep 1000")
    ready = FileReady(path="state", match="^up$")
    async with under_way(lambda: until_ready(ready, server.up, HOST, None, server.notes.append)):
        await server.noted('there is no file "state" yet')
        server.write("state")
        await server.noted('"^up$" is not found in its file "state"')
        server.write("state", "down\n")
        await server.noted("is not found")
        padding = "x" * 3 * OVERLAP
        server.write("state", f"UP\n{padding}")
        await server.more_notes()
        server.write("state", f"up\n{padding}")  # written anew, as long as before
    await check(ready, HOST, None)


async def test_after_the_line_the_port_must_be_its_own(bench: Servers, stranger: socket.socket) -> None:
    server = await bench.start("--after", "go")
    server.say("serving\n")
    async with under_way(server.until_ready(LineReady(match="serving"))) as done:
        await server.noted("nothing listens")
        assert not done.is_set()
        server.write("go")
    assert server.requests() == [], "a line is proof enough, and it was not asked"
    other = await bench.shell("echo serving; sleep 1000")
    port = stranger.getsockname()[1]
    with anyio.fail_after(60), pytest.raises(PortTaken):
        await until_ready(LineReady(match="serving"), other.up, HOST, port, other.notes.append)
    assert_untouched(stranger)


# A reported port


async def told_port(server: Server, reported: ReportedPort) -> int:
    with anyio.fail_after(60):
        return await until_port(reported, server.up, server.notes.append)


async def test_a_port_in_a_line_without_end(bench: Servers) -> None:
    server = await bench.start("--print", "Created server on port PORT", port=0)
    port = await told_port(server, ReportedPort(line=r"on port (\d+)"))
    assert port == int(server.attempt.read("listening").split()[1])


async def test_half_a_number_is_no_port(bench: Servers) -> None:
    server = await bench.shell("sleep 1000")
    found: list[int] = []

    async def until() -> None:
        found.append(await told_port(server, ReportedPort(line=r"port (\d+)")))

    async with under_way(until) as done:
        await server.noted('it has not told its port: "port (\\\\d+)" is not found')
        server.say("the port ")
        server.say("12")
        await server.noted("it told port 12, or the beginning of a longer number, and does not listen on it")
        await eventually(passed(0.5), "half a second in which nothing more is written")
        assert not done.is_set()
        server.say("345\n")
    assert found == [12345]


@pytest.mark.parametrize("text", ["0", "65536", "123456", "1" * 5000, "٣٣٣٣"])
async def test_what_is_no_port(bench: Servers, text: str) -> None:
    server = await bench.shell("sleep 1000")
    server.say(f"port {text}\n", "stderr")
    async with under_way(lambda: told_port(server, ReportedPort(line=r"port (\d+)"))):
        await server.noted("which is no port")
        server.say("port 65535\n", "stderr")


async def test_a_port_in_a_file_that_is_empty_at_first(bench: Servers) -> None:
    server = await bench.start("--after", "go", port=0)
    found: list[int] = []

    async def until() -> None:
        found.append(await told_port(server, ReportedPort(file="omc.port")))

    async with under_way(until) as done:
        await server.noted('there is no file "omc.port" yet')
        server.write("omc.port")
        await server.noted('it has not told its port: "(\\\\d+)\\\\s*$" is not found')
        server.write("go")
        await eventually(lambda: server.attempt.read("listening").endswith("\n"), "a server that listens")
        port = server.attempt.read("listening").split()[1]
        server.write("omc.port", f"tcp://127.0.0.1:{port[:-1]}")
        await server.noted("or the beginning of a longer number")
        assert not done.is_set()
        server.write("omc.port", port[-1], more=True)
    assert found == [int(port)]


async def test_a_file_that_is_a_link_is_not_read(bench: Servers, tmp_path: Path) -> None:
    server = await bench.shell("sleep 1000")
    (tmp_path / "elsewhere").write_text("5000\n")
    (server.attempt.folder / "port").symlink_to(tmp_path / "elsewhere")
    async with never(lambda: told_port(server, ReportedPort(file="port"))):
        await server.noted("it cannot be looked at: Too many levels of symbolic links")
