"""``solvisor top`` on a terminal, over a real daemon: what it shows, what its keys do, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import Daemon
from socket_kit import Http, file
from top_kit import MODES, Top, widest
from waiting import wait_until

Open = Callable[..., Top]
CRASHES = """
import solvisor_service.cli.top.loop as loop
real, calls = loop.frame, []
def frame(*args):
    calls.append(1)
    if len(calls) > 2:
        raise RuntimeError("a defect of the tests")
    return real(*args)
loop.frame = frame
"""


@pytest.fixture
def top(daemon: Daemon, http: Http) -> Iterator[Open]:
    opened: list[Top] = []

    def run(columns: int = 80, lines: int = 24, **env: str) -> Top:
        opened.append(Top(daemon.home, columns, lines, env))
        return opened[-1]

    yield run
    for each in opened:
        each.close()
    for job in http.get("/v1/jobs?state=running&state=queued").json["jobs"]:
        http.post(f"/v1/jobs/{job['id']}/cancel")
    wait_until(lambda: is_idle(http.get("/v1/status").json), "all is over")


def is_idle(status: dict[str, int]) -> bool:
    return status["running"] + status["collecting"] + status["waiting"] == 0


def has_ended(http: Http, job: str) -> bool:
    return http.get(f"/v1/jobs/{job}").json["state"] not in ("queued", "running", "collecting")


def test_what_runs_waits_and_failed_is_shown_and_can_be_dealt_with(daemon: Daemon, http: Http, top: Open) -> None:
    shown = top(100, 30)
    shown.shows("healthy", "Nothing to do. Drop an input in")
    daemon.drop("fails.sh", "echo 'no elastic constants' >&2; exit 3\n")
    shown.shows("FAILED 1 in 24 h", "fails-")
    for name in ("one", "two", "three"):
        daemon.drop(f"{name}.sh", "echo step 1 of many; echo 'a warning' >&2; sleep 600\n")
    shown.shows("RUNNING 2", "WAITING 1", "jobs ━━━━━━━━━━ 2/2")

    one, other = (job["id"] for job in http.get("/v1/status").json["running_jobs"])
    shown.choose(one[:-6])
    shown.press("\r")
    shown.shows("stdout, the end of it", "step 1 of many", "runs: try 1 of 1")
    shown.press("s")
    shown.shows("stderr, the end of it", "a warning")
    shown.press("\x1b")
    shown.shows("RUNNING 2")

    shown.press("c")
    shown.shows(f"cancel {one[:-6]} of", "y yes")
    shown.press("n")
    shown.shows("c cancel")
    assert http.get(f"/v1/jobs/{one}").json["cancel"] is False
    shown.press("cy")
    wait_until(lambda: has_ended(http, one), "it is cancelled")
    shown.shows("RUNNING 2", "1 cancelled")
    assert "WAITING" not in shown.text

    shown.choose("fails-")
    shown.press("r")
    shown.shows("runs again as fails-", "WAITING 1")

    shown.press("p")
    shown.shows("1 pause everything   2 pause sh")
    shown.press("2")
    shown.shows("PAUSED   sh, since")
    shown.press("p")
    shown.shows("2 resume sh")
    shown.press("2")
    wait_until(lambda: http.get("/v1/status").json["paused"] == [], "it is resumed")
    shown.press(f"/{other[:5]}\r")
    shown.shows(f"FILTER   {other[:5]}", "1 found")
    shown.press("q")
    assert shown.wait() == 0
    wait_until(shown.is_given_back, "the terminal is given back")
    assert shown.screen.forbidden == []


def test_it_takes_any_size_and_follows_the_terminal(top: Open) -> None:
    shown = top(200, 60)
    shown.shows("up ")
    for columns, lines in ((80, 24), (60, 15), (120, 40)):
        shown.resize(columns, lines)
        wait_until(lambda lines=lines: shown.last == lines, "the last line is the terminal's")  # type: ignore[misc]
        assert widest(shown.rows) <= columns
        shown.shows("q quit")
    shown.resize(59, 14)
    shown.shows("too small: 59x14; at least 60x15")
    shown.resize(80, 24)
    shown.shows("q quit")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, -signal.SIGHUP)]
)
def test_whatever_ends_it_the_terminal_is_given_back(top: Open, number: signal.Signals, status: int) -> None:
    shown = top()
    shown.shows("q quit")
    assert shown.screen.modes == MODES
    shown.process.send_signal(number)
    assert shown.wait() == status
    wait_until(shown.is_given_back, "the terminal is given back")


def test_ctrl_c_is_typed(top: Open) -> None:
    shown = top()
    shown.shows("q quit")
    shown.press("\x03")
    assert shown.wait() == 130
    wait_until(shown.is_given_back, "the terminal is given back")


def test_a_defect_gives_the_terminal_back_and_is_told(top: Open, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CRASHES)
    shown = top(PYTHONPATH=str(tmp_path))
    assert shown.wait() == 1
    shown.shows("RuntimeError: a defect of the tests")
    wait_until(shown.is_given_back, "the terminal is given back")


def test_it_ends_when_its_terminal_is_gone(top: Open) -> None:
    shown = top()
    shown.shows("q quit")
    os.close(shown.slave)
    os.close(shown.master)
    shown.slave = shown.master = -1
    assert shown.wait() in (1, -signal.SIGHUP)


def test_ctrl_z_stops_it_and_it_comes_back(top: Open) -> None:
    shown = top()
    shown.shows("q quit")
    shown.press("\x1a")
    wait_until(lambda: _state(shown.process.pid) == "T", "it is stopped")
    wait_until(shown.is_given_back, "the terminal is given back")
    shown.process.send_signal(signal.SIGCONT)
    wait_until(lambda: shown.screen.modes == MODES, "it is back")
    shown.shows("q quit")


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def test_a_daemon_that_hangs_holds_up_no_key(top: Open, daemon: Daemon) -> None:
    shown = top()
    shown.shows("q quit", "healthy")
    daemon.signal(signal.SIGSTOP)
    try:
        shown.shows("no answer for 3")
        shown.press("?")
        shown.shows("draw the screen anew")
        shown.press("?")
        shown.shows("no answer for 7")
    finally:
        daemon.signal(signal.SIGCONT)
    wait_until(lambda: "no answer" not in shown.text, "it answers again")
    shown.press("q")
    assert shown.wait() == 0
    assert shown.screen.forbidden == []


def test_without_a_terminal_it_says_what_to_use(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "solvisor_service.cli", "top", "--home", str(daemon.home)]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "use: solvisor status --home" in ended.stderr


def test_a_daemon_that_goes_and_comes_back(make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    own = make_daemon('[solver.sh]\naccept = ["*.sh"]\ncommand = ["/bin/sh", "{input}"]\n')
    own.start()
    shown = Top(own.home, 80, 24, None, "--interval", "1h")
    try:
        shown.shows("healthy", "running 0")
        own.kill()
        shown.shows("NO DAEMON  since ", "no daemon is running on", "this goes on by itself")
        assert re.search(r"since \d\d:\d\d:\d\d", shown.text)
        shown.press("p")
        shown.shows("the daemon is not there")
        own.start()
        shown.shows("healthy", "running 0")
        assert "NO DAEMON" not in shown.text
        shown.press("q")
        assert shown.wait() == 0
        assert own.stop() == 0
    finally:
        shown.close()
    gone = Top(own.home)
    try:
        assert gone.wait() == 3
        gone.shows("no daemon is running on")
        assert gone.screen.modes == {}
    finally:
        gone.close()


def test_the_first_that_wait_are_in_the_status(daemon: Daemon, http: Http) -> None:
    http.post("/v1/pause")
    for name in ("b.sh", "a.sh"):
        assert http.send(file(name, b"true\n")).status < 300
    status = http.get("/v1/status").json
    assert [job["name"] for job in status["waiting_jobs"]] == ["b.sh", "a.sh"]
    assert {job["reason"] for job in status["waiting_jobs"]} == {"paused"}
    http.post("/v1/resume")
    wait_until(lambda: http.get("/v1/status").json["waiting_jobs"] == [], "they ran")
