"""The client of the events, against a daemon that says odd things and breaks off."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fake_daemon import FakeDaemon, Raw, Request, fake_daemon
from solvisor.feed import Changed, Hello, Reset
from solvisor_service import told as module
from solvisor_service.client import Client
from solvisor_service.told import Told

HELLO = b'id: a-0\nevent: hello\ndata: {"cursor":"a-0","host":"ws04","version":"1"}\n\n'


def changed(number: int, what: str = "health") -> bytes:
    return f'id: a-{number}\nevent: changed\ndata: {{"what":["{what}"]}}\n\n'.encode()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDaemon]:
    monkeypatch.setattr(module, "AGAIN_SECONDS", (0.001, 0.001))
    with fake_daemon(tmp_path / "home") as fake:
        yield fake


def read(fake: FakeDaemon, count: int, *streams: list[bytes]) -> list[Told | None]:
    """The first events that a client gets of these streams, one connection after the other."""
    coming = iter(streams)

    def stream(_: Request) -> Raw:
        return Raw(iter(next(coming, [])), {"Content-Type": "text/event-stream"})

    fake.answers["GET", "/v1/events"] = stream
    with Client(fake.home).events() as events:
        return [events.next(time.monotonic() + 20) for _ in range(count)]


def test_pieces_are_put_together_however_they_come(fake: FakeDaemon) -> None:
    whole = HELLO + b": still here\n\n" + changed(1) + changed(2, "limits")
    found = read(fake, 3, [whole[n : n + 1] for n in range(len(whole))])
    assert found == [Hello("a-0", "ws04", "1"), Changed(("health",)), Changed(("limits",))]


def test_what_a_later_version_tells_is_passed_over(fake: FakeDaemon) -> None:
    odd = b"id: a-1\nevent: party\ndata: {}\n\nretry: 5\n\ndata: x\n\nid: a-7\nevent: changed\ndata: {\ndata: "
    odd += b'"what": ["health"], "new": 1}\n\n'
    odd = b'id: a-1\nevent: job\ndata: {"id":"x","state":"asleep"}\n\n' + changed(2, "moods") + odd
    assert read(fake, 2, [HELLO + odd])[1:] == [Changed(("health",))]


def test_a_connection_that_breaks_goes_on_where_it_was(fake: FakeDaemon) -> None:
    half = changed(2)
    found = read(fake, 3, [HELLO + changed(1) + half[:20]], [HELLO, half])
    assert found[1:] == [Changed(("health",)), Changed(("health",))]
    asked = [request.query.get("since") for request in fake.asked("GET", "/v1/events")]
    assert asked == [None, ["a-1"]]


def test_a_reset_is_told(fake: FakeDaemon) -> None:
    reset = b'id: b-4\nevent: reset\ndata: {"why":"another life"}\n\n'
    assert read(fake, 2, [HELLO], [HELLO.replace(b"a-0", b"b-4") + reset])[1:] == [Reset("another life")]


def test_waiting_has_an_end_and_the_stream_goes_on_after_it(fake: FakeDaemon) -> None:
    gate = threading.Event()

    def slow() -> Iterator[bytes]:
        yield HELLO
        assert gate.wait(20)  # the daemon has nothing to tell

    streams = iter([slow(), iter([HELLO, changed(1)])])
    fake.answers["GET", "/v1/events"] = lambda _: Raw(next(streams), {})
    with Client(fake.home).events() as events:
        assert isinstance(events.next(), Hello)
        assert events.next(time.monotonic() + 0.05) is None
        gate.set()
        assert events.next() == Changed(("health",))
        assert len(fake.asked("GET", "/v1/events")) == 2, "not one for each wait"


def test_a_wait_that_was_in_vain_keeps_the_stream(fake: FakeDaemon) -> None:
    """Also if it was in the middle of an event."""
    gates = [threading.Event(), threading.Event()]

    def slow() -> Iterator[bytes]:
        yield HELLO
        assert gates[0].wait(20)
        yield changed(1)[:20]
        assert gates[1].wait(20)
        yield changed(1)[20:] + changed(2, "limits")

    fake.answers["GET", "/v1/events"] = Raw(slow(), {})
    with Client(fake.home).events() as events:
        assert isinstance(events.next(), Hello)
        for gate in gates:
            for _ in range(3):
                assert events.next(time.monotonic() + 0.01) is None
            gate.set()
        assert [events.next(), events.next()] == [Changed(("health",)), Changed(("limits",))]
        assert len(fake.asked("GET", "/v1/events")) == 1


def test_a_stream_that_says_nothing_for_long_is_dead(fake: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.05)

    def dead() -> Iterator[bytes]:
        yield HELLO
        time.sleep(0.5)  # noqa: TID251  it hangs

    streams = iter([dead(), iter([HELLO, changed(1)])])
    fake.answers["GET", "/v1/events"] = lambda _: Raw(next(streams), {})
    with Client(fake.home).events() as events:
        events.next()
        assert events.next() == Changed(("health",))
