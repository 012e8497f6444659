"""The command line while things go on: the logs of many jobs at once, and waiting for all there is."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from daemon import Daemon
from socket_kit import Http, file
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 4
cpus = 8
[inbox]
settle = "0.3s"
rescan = "0.5s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.5s"
[solver.sh.retry]
max = 1
on = ["exit"]
delay = "0s"
"""

STEP = 'step() { while [ ! -e "$(dirname "$0")/../../../$1" ]; do sleep 0.02; done; }\n'


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Home:
    """A home with a daemon, and the command line on it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.http = Http(daemon.home)
        self.gates: list[Path] = []
        self.begun: list[subprocess.Popen[str]] = []

    def send(self, script: str, name: str = "a.sh") -> str:
        return str(self.http.send(file(name, (STEP + script).encode())).json["id"])

    def open(self, gate: str) -> None:
        self.gates.append(self.daemon.home / gate)
        self.gates[-1].touch()

    def begin(self, *words: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(self.daemon.home)]
        pipe = subprocess.PIPE
        self.begun.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="surrogateescape"))
        return self.begun[-1]

    def wait_all(self) -> subprocess.Popen[str]:
        """``wait --all`` that listens by now."""
        before = self._sockets()
        process = self.begin("wait", "--all")
        wait_until(lambda: self._sockets() - before, "it is connected")
        return process

    def _sockets(self) -> set[str]:
        """Those that the daemon has open, one by one: while it gets another it may close one."""
        found = set()
        for fd in Path(f"/proc/{self.daemon.running.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.add(os.readlink(fd))
        return {link for link in found if link.startswith("socket:")}

    def run(self, *words: str) -> Result:
        return self.end(self.begin(*words))

    def end(self, process: subprocess.Popen[str]) -> Result:
        out, err = process.communicate(timeout=60)
        return Result(process.returncode, out, err)


@pytest.fixture
def home(daemon: Daemon) -> Iterator[Home]:
    home = Home(daemon)
    yield home
    for process in home.begun:
        if process.poll() is None:
            process.kill()
        process.communicate()
    for row in home.http.get("/v1/jobs?state=queued&state=running").json["jobs"]:
        home.http.post(f"/v1/jobs/{row['id']}/cancel")
    wait_until(lambda: home.http.get("/v1/status").json["running"] == 0, "nothing runs")
    for gate in home.gates:
        gate.unlink()


def lines_of(text: str, label: str) -> list[str]:
    return [line[len(label) :].strip() for line in text.splitlines() if line.startswith(label)]


# --- logs -----------------------------------------------------------------------------------------------------------


def test_lines_of_many_jobs_come_whole_each_with_its_job(home: Home) -> None:
    """However they are written: in pieces, at once, without a last line end."""
    script = "printf 'half '; step g1; for i in 1 2 3; do echo {0} $i; done; printf last-{0}"
    ids = [home.send(script.format(name), f"{name}.sh") for name in ("ann", "bob", "eve")]
    shown = home.begin("logs", "-f", *ids)
    wait_until(lambda: all(home.http.get(f"/v1/jobs/{i}/logs/stdout").body == b"half " for i in ids), "they run")
    home.open("g1")
    result = home.end(shown)
    assert (result.status, result.err) == (0, "")
    for job_id, name in zip(ids, ("ann", "bob", "eve"), strict=True):
        want = [f"half {name} 1", f"{name} 2", f"{name} 3", f"last-{name}"]
        assert lines_of(result.out, job_id[:-6]) == want
    assert len(result.out.splitlines()) == 12
    again = home.run("logs", *ids)
    assert sorted(again.out.splitlines()) == sorted(result.out.splitlines())


def test_more_logs_than_are_followed_at_once_are_all_shown(home: Home) -> None:
    ids = [home.send(f"echo {number}", f"n{number}.sh") for number in range(20)]
    result = home.run("logs", "-f", *ids)
    assert result.status == 0
    assert sorted(int(line.split()[-1]) for line in result.out.splitlines()) == list(range(20))


def test_one_log_is_piped_as_it_is_and_goes_on_with_the_next_try(home: Home) -> None:
    script = 'printf "\\377 \\033[31m"; [ -d "$(dirname "$0")/../attempt-1" ] || { step g1; exit 1; }; echo x'
    job_id = home.send(script)
    shown = home.begin("logs", "-f", job_id)
    assert shown.stdout is not None
    first = os.read(shown.stdout.fileno(), 100).decode(errors="surrogateescape")
    home.open("g1")
    result = home.end(shown)
    assert result.status == 0
    assert first + result.out == "\udcff \x1b[31m\udcff \x1b[31mx\n"
    assert "try 2 of 2" in result.err


def test_json_says_which_job_each_piece_is_of(home: Home) -> None:
    ids = [home.send(f"echo {name}", f"{name}.sh") for name in ("ann", "bob")]
    result = home.run("logs", "-f", "--json", *ids)
    found = [json.loads(line) for line in result.out.splitlines()]
    told = {(line["id"], line["text"], line["offset"]) for line in found}
    assert told == {(ids[0], "ann\n", 4), (ids[1], "bob\n", 4)}


def test_a_job_that_nobody_knows_keeps_no_other_from_its_turn(home: Home) -> None:
    job_id, other = home.send("echo here"), home.send("echo there", "b.sh")
    result = home.run("logs", "-f", "nobody", job_id, other)
    assert result.status == 4
    assert "no job's id begins with 'nobody'" in result.err
    assert sorted(line.split()[-1] for line in result.out.splitlines()) == ["here", "there"]


def test_ctrl_c_ends_the_following_of_many(home: Home) -> None:
    ids = [home.send("echo here; step never", f"{n}.sh") for n in "ab"]
    shown = home.begin("logs", "-f", *ids)
    assert shown.stdout is not None
    assert "here" in shown.stdout.readline() + shown.stdout.readline()
    shown.send_signal(signal.SIGINT)
    result = home.end(shown)
    assert (result.status, result.err) == (130, "")


def test_fault_76_many_logs_on_a_terminal_are_coloured_and_harmless(home: Home) -> None:
    ids = [home.send(f"printf 'a\\033[2J{n}\\r10%%\\r20%%\\n\\033]0;title\\007end\\n'", f"{n}.sh") for n in "xy"]
    home.run("wait", *ids)
    screen, end = pty.openpty()
    command = [sys.executable, "-m", "solvisor_service.cli", "logs", *ids, "--home", str(home.daemon.home)]
    env = {**os.environ, "TERM": "xterm", "NO_COLOR": ""}
    process = subprocess.Popen(command, stdin=end, stdout=end, stderr=end, env=env)
    os.close(end)
    shown = b""
    while True:
        try:
            shown += os.read(screen, 1 << 16)
        except OSError:  # whoever had the other end is gone
            break
    os.close(screen)
    assert process.wait(20) == 0
    text = re.sub(r"\x1b\[(36|33|0)m", "", shown.decode())
    assert len(re.findall(r"\x1b\[36m", shown.decode())) == len(re.findall(r"\x1b\[33m", shown.decode())) == 2
    assert "\x1b" not in text
    assert "title" not in text
    assert [line.split("  ", 1)[1] for line in text.split("\r\n") if line.startswith("x-") and "end" in line] == ["end"]


# --- wait --all -----------------------------------------------------------------------------------------------------


def test_waiting_for_all_counts_what_runs_waits_and_settles(home: Home) -> None:
    ids = [home.send("step g1", f"{n}.sh") for n in range(5)]
    waiting = home.wait_all()
    home.daemon.drop("dropped.sh", "exit 0\n")
    growing = home.daemon.home / "inbox" / "growing.sh"
    growing.write_text("exit 0\n")
    home.open("g1")
    for job_id in ids:
        assert home.http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    result = home.end(waiting)
    assert (result.status, result.err) == (0, "")
    names = sorted(line.split("-1k")[0] for line in result.out.splitlines())
    assert names == ["0", "1", "2", "3", "4", "dropped", "growing"]
    assert all("succeeded" in line for line in result.out.splitlines())
    assert home.run("wait", "--all") == Result(0, "", "")


def test_a_drop_is_waited_for_that_was_made_a_moment_before(home: Home) -> None:
    """Though the daemon did not look since."""
    for number in range(3):
        (home.daemon.home / "inbox" / f"d{number}.sh").write_text("exit 0\n")
        assert home.run("wait", "--all").status == 0
        newest = home.http.get("/v1/jobs?limit=1").json["jobs"][0]
        assert (newest["name"], newest["state"]) == (f"d{number}.sh", "succeeded")


def test_a_failure_is_exit_1_and_what_needs_a_person_is_told(home: Home) -> None:
    orphan = home.daemon.drop("orphan.job.toml", 'solver = "sh"\ninputs = ["never.sh"]\n')
    home.send("step g1; exit 3")
    waiting = home.wait_all()
    home.open("g1")
    result = home.end(waiting)
    assert result.status == 1
    assert "FAILED" in result.out
    assert result.err == "solvisor: not waited for: orphan.job.toml: waits for never.sh, which it names\n"
    orphan.unlink()


def test_waiting_for_all_has_an_end(home: Home) -> None:
    home.send("step never")
    result = home.run("wait", "--all", "--timeout", "0.5s")
    assert result.status == 124
    assert result.out == ""
    assert result.err.startswith("solvisor: not finished in time: 1 job; see: solvisor status --home ")


@pytest.mark.parametrize("words", [(), ("--all", "last")], ids=["nothing", "both"])
def test_either_jobs_or_all(home: Home, words: tuple[str, ...]) -> None:
    result = home.run("wait", *words)
    assert (result.status, result.out) == (2, "")
    assert "either the JOBs to wait for, or --all" in result.err
