"""Logs followed over the socket: byte by byte as a real solver writes them, from one end of a try to the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import Daemon
from socket_kit import Connection, Http, file
from solvisor.filetext import cut_line
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 4
stop_timeout = "1s"
[inbox]
settle = "0.1s"
[licenses]
seat = 1
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.5s"
log_max = "64KiB"
[solver.one]
accept = ["*.one"]
command = ["/bin/sh", "{input}"]
licenses = { seat = 1 }
[solver.twice]
accept = ["*.twice"]
command = ["/bin/sh", "{input}"]
[solver.twice.retry]
max = 1
on = ["exit"]
delay = "0.3s"
"""

STEP = 'step() { while [ ! -e "$(dirname "$0")/../../../$1" ]; do sleep 0.02; done; }\n'
"""A solver's input that waits until the test opens a gate in the home."""


@pytest.fixture
def open_gate(daemon: Daemon) -> Iterator[Callable[[str], None]]:
    opened: list[Path] = []

    def open_it(name: str) -> None:
        opened.append(daemon.home / name)
        opened[-1].touch()

    yield open_it
    for gate in opened:
        gate.unlink()


class Stream:
    """An answer that is still coming."""

    def __init__(self, home: Http, target: str) -> None:
        self._connection = Connection(home.path)
        self._connection.request("GET", target)
        self.answer = self._connection.getresponse()
        self.data = b""

    def until(self, text: bytes) -> bytes:
        while text not in self.data:
            piece = self.answer.read1(1 << 16)
            assert piece, f"it ended with {self.data[-100:]!r}"
            self.data += piece
        return self.data

    def rest(self) -> bytes:
        self.data += self.answer.read()
        return self.data

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def follow(http: Http) -> Iterator[Callable[[str], Stream]]:
    with contextlib.ExitStack() as stack:

        def open_it(target: str) -> Stream:
            stream = Stream(http, target)
            stack.callback(stream.close)
            return stream

        yield open_it


def send(http: Http, script: str, name: str = "a.sh") -> str:
    return str(http.send(file(name, (STEP + script).encode())).json["id"])


def test_a_log_comes_as_it_is_written_and_ends_with_the_try(
    http: Http, follow: Callable[[str], Stream], open_gate: Callable[[str], None]
) -> None:
    job_id = send(http, "printf 'k\\303'; step g1; printf '\\244se\\n\\377'; step g2; echo end; exit 3")
    stream = follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true")
    assert (stream.answer.status, stream.answer.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert stream.until(b"k\xc3") == b"k\xc3"
    late = follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true&offset=1")
    assert (late.answer.headers["Solvisor-Try"], late.answer.headers["Solvisor-Offset"]) == ("1", "1")
    open_gate("g1")
    assert stream.until(b"\xff") == b"k\xc3\xa4se\n\xff"
    tail = follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true&tail=3")
    assert tail.answer.headers["Solvisor-Offset"] == "4"
    other = follow(f"/v1/jobs/{job_id}/logs/stderr?follow=true")
    open_gate("g2")
    assert stream.rest() == b"k\xc3\xa4se\n\xffend\n"
    assert late.rest() == b"\xc3\xa4se\n\xffend\n"
    assert tail.rest() == b"e\n\xffend\n"
    assert other.rest() == b""
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "failed"
    again = follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true")
    assert again.rest() == b"k\xc3\xa4se\n\xffend\n"


def test_a_job_that_waits_is_followed_from_its_beginning(
    http: Http, follow: Callable[[str], Stream], open_gate: Callable[[str], None]
) -> None:
    first = send(http, "step g1", "a.one")
    second = send(http, "echo here; exit 0", "b.one")
    stream = follow(f"/v1/jobs/{second}/logs/stdout?follow=true")
    assert (stream.answer.headers["Solvisor-Try"], stream.answer.headers["Solvisor-Offset"]) == ("0", "0")
    open_gate("g1")
    assert stream.rest() == b"here\n"
    assert http.get(f"/v1/jobs/{first}?wait=30").json["state"] == "succeeded"


def test_a_job_that_never_starts_ends_its_followers(http: Http, follow: Callable[[str], Stream]) -> None:
    first = send(http, "step never", "a.one")
    second = send(http, "", "b.one")
    stream = follow(f"/v1/jobs/{second}/logs/stdout?follow=true")
    for job_id in (second, first):
        http.post(f"/v1/jobs/{job_id}/cancel")
    assert stream.rest() == b""
    assert http.get(f"/v1/jobs/{first}?wait=30").json["state"] == "cancelled"


def test_each_try_has_its_own_log_whenever_it_is_asked_for(
    http: Http, follow: Callable[[str], Stream], open_gate: Callable[[str], None]
) -> None:
    script = '[ -d "$(dirname "$0")/../attempt-1" ] || { echo first; step g1; exit 1; }; echo second; step g2'
    job_id = send(http, script, "a.twice")
    first = follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true&try=1")
    first.until(b"first\n")
    open_gate("g1")
    assert first.rest() == b"first\n"
    second = follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true&try=2")  # it rests, or is being staged
    assert second.until(b"second\n") == b"second\n"
    assert follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true&try=1").rest() == b"first\n"
    assert http.get(f"/v1/jobs/{job_id}/logs/stdout?follow=true&try=4").code == "no_such_file"
    open_gate("g2")
    assert second.rest() == b"second\n"
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    none = http.get(f"/v1/jobs/{job_id}/logs/stdout?follow=true&try=3")
    assert (none.status, none.headers["solvisor-try"], none.body) == (200, "0", b"")


def test_a_log_over_its_cap_is_followed_without_zeros(
    http: Http, daemon: Daemon, follow: Callable[[str], Stream], open_gate: Callable[[str], None]
) -> None:
    script = "seq -f %015g 0 20000; step g1; seq -f %015g 20001 20010; step g2; echo end"
    job_id = send(http, script)
    log = daemon.home / "work" / job_id / "stdout.log"
    wait_until(lambda: log.exists() and log.stat().st_size >= 20001 * 16, "it is written")
    wait_until(lambda: log.stat().st_blocks * 512 < 128 << 10, "its middle is taken out")
    stream = follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true")
    stream.until(b"%015d\n" % 20000)
    assert len(stream.data) < 128 << 10
    open_gate("g1")
    stream.until(b"%015d\n" % 20010)
    piece = http.get(f"/v1/jobs/{job_id}/logs/stdout?offset=0").body
    open_gate("g2")
    assert stream.rest().endswith(b"end\n")
    for data, size in ((stream.data, 20011 * 16 + 4), (piece, 20011 * 16)):
        cut = int(data.partition(b"\n[solvisor: ")[2].split()[0])
        assert b"\x00" not in data
        assert data.startswith(b"%015d\n" % 0)
        assert data.count(cut_line(cut)) == 1
        assert len(data) - len(cut_line(cut)) + cut == size
    http.get(f"/v1/jobs/{job_id}?wait=30")


def test_many_follow_at_once_and_hold_up_nobody(
    http: Http, daemon: Daemon, follow: Callable[[str], Stream], open_gate: Callable[[str], None]
) -> None:
    """More followers than there are threads for files, beside questions and downloads."""
    job_id = send(http, "echo one; step g1; echo two")
    streams = [follow(f"/v1/jobs/{job_id}/logs/stdout?follow=true") for _ in range(30)]
    for stream in streams:
        stream.until(b"one\n")
    began = time.monotonic()
    assert http.get(f"/v1/jobs/{job_id}/logs/stdout").body == b"one\n"
    assert http.get("/v1/status").status == 200
    assert time.monotonic() - began < 10
    for stream in streams[:10]:
        stream.close()
    open_gate("g1")
    for stream in streams[10:]:
        assert stream.rest() == b"one\ntwo\n"
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    fds = Path(f"/proc/{daemon.running.pid}/fd")
    held = [link for link in fds.iterdir() if job_id in str(link.readlink())]
    assert held == []
