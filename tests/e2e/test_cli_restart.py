"""Verbs that wait for what a daemon does go on over its death and its next life."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import pytest

from daemon import Daemon
from socket_kit import Http, file
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 4
[inbox]
settle = "0.3s"
rescan = "0.5s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.5s"
"""

SCRIPT = """\
home=$(dirname "$0")/../../..
[ -d "$(dirname "$0")/../attempt-1" ] && { echo again; exit 0; }
echo first
while [ ! -e "$home/more" ]; do sleep 0.02; done
echo more
: > "$home/wrote-$$"
sleep 60
"""
"""Runs on while its daemon is dead; the second try ends at once."""

GONE = re.compile(r"solvisor: the daemon is gone since \d\d:\d\d:\d\d; waiting for it \(Ctrl-C ends\)\n")
HOLDS_SECONDS = 0.4
BACK = "solvisor: the daemon is there again\n"


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Waiting:
    """A verb on the home of ``daemon``, from when it waits."""

    def __init__(self, daemon: Daemon, *words: str) -> None:
        command = [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(daemon.home)]
        log = daemon.home / f"said-{len(list(daemon.home.glob('said-*')))}"
        self._said = log
        with log.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err)

    @property
    def said(self) -> str:
        return self._said.read_text()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode()

    def waits(self) -> None:
        """Until it has a connection that stays for a while: it has asked for what takes time."""
        first: dict[str, float] = {}

        def holds_one() -> bool:
            now = time.monotonic()
            return any(now - first.setdefault(name, now) >= HOLDS_SECONDS for name in self._sockets())

        wait_until(holds_one, "it waits")

    def _sockets(self) -> set[str]:
        fds = f"/proc/{self.process.pid}/fd"
        found = set()
        for fd in os.listdir(fds):
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(f"{fds}/{fd}"))
        return {name for name in found if name.startswith("socket:")}

    def ended(self) -> Ended:
        out, _ = self.process.communicate(timeout=60)
        return Ended(self.process.returncode, out.decode(), self.said)


Begin: TypeAlias = Callable[..., Waiting]


@pytest.fixture
def begin() -> Iterator[Begin]:
    """Begins verbs; what still goes on after the test is ended."""
    begun: list[Waiting] = []

    def start(daemon: Daemon, *words: str) -> Waiting:
        begun.append(Waiting(daemon, *words))
        return begun[-1]

    yield start
    for each in begun:
        each.process.kill()
        each.process.communicate()


def test_what_waits_goes_on_in_the_next_life_of_the_daemon(make_daemon: Callable[..., Daemon], begin: Begin) -> None:
    """A log from where it was and from one try to the next; jobs until they are finished."""
    daemon = make_daemon(CONFIG)
    daemon.start()
    http = Http(daemon.home)
    ids = [str(http.send(file(f"{name}.sh", SCRIPT.encode())).json["id"]) for name in "ab"]
    one, many = begin(daemon, "logs", "-f", ids[0]), begin(daemon, "logs", "-f", *ids)
    waits = [begin(daemon, "wait", *ids), begin(daemon, "wait", "--all")]
    assert one.line() == "first\n"
    assert sorted((many.line().split()[-1], many.line().split()[-1])) == ["first", "first"]
    late = [begin(daemon, "wait", *each, "--timeout", "3s") for each in (ids[:1], ["--all"])]
    for waiting in (*waits, *late):
        waiting.waits()
    daemon.kill()
    for waiting in (one, many, *waits, *late):
        wait_until(lambda each=waiting: GONE.fullmatch(each.said), "it says so, once")  # type: ignore[misc]
    (daemon.home / "more").touch()
    wait_until(lambda: len(list(daemon.home.glob("wrote-*"))) == 2, "both wrote without a daemon")
    for waiting in late:
        ended = waiting.ended()
        assert (ended.status, ended.out) == (124, "")
        assert "not finished in time: " in ended.err
    daemon.start()
    ended = one.ended()
    assert (ended.status, ended.out) == (0, "more\nagain\n")
    assert GONE.sub("", ended.err) == BACK + "solvisor: try 2 of 1\n"
    ended = many.ended()
    assert ended.status == 0
    assert sorted(line.split()[-1] for line in ended.out.splitlines()) == ["again", "again", "more", "more"]
    assert len(GONE.findall(ended.err)) == ended.err.count(BACK) == 1
    for waiting in waits:
        ended = waiting.ended()
        assert ended.status == 0, ended.err
        assert sorted(line.split("-1k")[0] for line in ended.out.splitlines()) == ["a", "b"]
        assert GONE.sub("", ended.err) == BACK


@pytest.mark.parametrize("words", [("wait", "--all"), ("wait", "last"), ("logs", "-f", "last")], ids=" ".join)
def test_a_daemon_that_never_answered_is_not_waited_for(
    make_daemon: Callable[..., Daemon], begin: Begin, words: tuple[str, ...]
) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start()
    http = Http(daemon.home)
    job_id = http.send(file("a.sh", SCRIPT.encode())).json["id"]
    wait_until(lambda: http.get(f"/v1/jobs/{job_id}/logs/stdout").body == b"first\n", "it runs")
    daemon.kill()
    ended = begin(daemon, *words).ended()
    assert ended.status == 3
    assert "gone since" not in ended.err
