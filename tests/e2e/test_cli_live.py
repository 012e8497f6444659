"""The client verbs against a real daemon: what a user does from the first input to the last result."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from daemon import Daemon
from solvisor.questions import NO_SERVERS
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 4
[inbox]
settle = "0.1s"
[licenses]
token = 1
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}", "{params.word}"]
stop_grace = "1s"
[solver.sh.params]
word = { type = "str", default = "plain" }
[solver.sh.success]
error_pattern = 'ERROR: (.*)'
[solver.other]
accept = ["*.both"]
command = ["/bin/sh", "{input}"]
[solver.another]
accept = ["*.both"]
command = ["/bin/sh", "{input}"]
"""

GATE = 'while [ ! -e "$(dirname "$0")/../../../gate" ]; do sleep 0.05; done\n'
"""A solver's input that runs until the test opens the gate in the home."""


class Result(NamedTuple):
    status: int
    out: str
    err: str


class Shell:
    """A user's shell in a folder of its own, and the daemon it talks to."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder
        self._opened: list[subprocess.Popen[str]] = []

    def write(self, name: str, text: str) -> str:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return name

    def start(self, *words: str) -> subprocess.Popen[str]:
        self._opened.append(
            subprocess.Popen(
                [sys.executable, "-m", "solvisor_service.cli", *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=self.folder,
                env={**os.environ, "SOLVISOR_HOME": str(self.daemon.home)},
            )
        )
        return self._opened[-1]

    def run(self, *words: str) -> Result:
        process = self.start(*words)
        out, err = process.communicate(timeout=60)
        return Result(process.returncode, out, err)

    def json(self, *words: str) -> Any:
        result = self.run(*words, "--json")
        assert result.status == 0, result
        return json.loads(result.out)

    def submit(self, *words: str) -> str:
        """Submit one target; its id."""
        return str(self.json("submit", *words)["id"])

    def until(self, job: str, state: str) -> None:
        wait_until(lambda: self.json("show", job)["state"] == state, f"{job} is {state}", 60)

    def close(self) -> None:
        for process in self._opened:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def shell(make_daemon: Callable[..., Daemon], tmp_path: Path) -> Iterator[Shell]:
    daemon = make_daemon(CONFIG)
    daemon.start()
    (tmp_path / "user").mkdir()
    opened = Shell(daemon, tmp_path / "user")
    wait_until(lambda: opened.run("status").status == 0, "the socket answers", 30)
    yield opened
    opened.close()


def test_from_an_input_to_its_result(shell: Shell) -> None:
    shell.write("answer.sh", "echo computing; echo $1 > answer.txt; mkdir mesh; echo m > mesh/a.vtk\n")
    submitted = shell.run("submit", "answer.sh", "--param", 'word="42"', "--wait")
    assert submitted.status == 0, submitted
    first, last = submitted.out.splitlines()
    job_id, solver, name = first.split()
    assert (solver, name) == ("sh", "answer.sh")
    assert last.startswith(f"{job_id}  succeeded in ")

    brought = shell.run("get", "last", "--inputs", "--out", "results")
    assert brought.status == 0, brought
    folder = shell.folder / "results" / job_id
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert manifest["params"] == {"word": "42"}
    named = {fact["path"]: fact for fact in manifest["inputs"] + manifest["outputs"]}
    assert {"input/answer.sh", "output/answer.txt", "output/mesh/a.vtk", "stdout.log"} <= set(named)
    for path, fact in named.items():
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == fact["sha256"], path
    assert (folder / "output" / "answer.txt").read_text() == "42\n"
    assert shell.run("logs", "last").out == "computing\n"
    assert "output/mesh/a.vtk" in shell.run("show", job_id[:-3]).out
    assert shell.run("explain", job_id).out.startswith(f"{job_id} (")


def test_a_failed_job_says_why_and_can_be_tried_again(shell: Shell) -> None:
    job = shell.submit(shell.write("bad.sh", "echo 'ERROR: no material'; exit 3\n"))
    waited = shell.run("wait", "last")
    assert waited.status == 1
    assert waited.out.startswith(f"{job}  FAILED after ")
    assert waited.out.endswith(": no material\n")
    headline, reason, check, *rest = shell.run("explain", "bad").out.splitlines()
    assert "FAILED" in headline
    assert reason == "  no material"
    assert check.split() == ["checks", "exit", "3,", "allowed", "0", "failed"]
    assert rest[0].split() == ["files", f"failed/{job}/"]
    again = shell.json("retry", job)["id"]
    assert again != job
    assert shell.run("wait", again).status == 1
    assert [row["id"] for row in shell.json("list", "--state", "failed", "--all")["jobs"]] == [again, job]
    assert shell.run("show", "bad").status == 2
    assert "no material" in shell.run("status").out


def test_a_job_that_waits_says_for_whom(shell: Shell) -> None:
    holder = shell.submit(shell.write("holder.sh", GATE), "--license", "token=1")
    shell.until(holder, "running")
    job = shell.submit(shell.write("waiter.sh", "true\n"), "--license", "token=1")
    told = shell.run("explain", "waiter").out.splitlines()
    assert told[0].endswith("waits for a license. Nothing is wrong.")
    assert told[1].split()[:2] == ["license", "token:"]
    assert holder[:-6] in told[1]
    assert "1 for license token" in shell.run("status").out
    assert shell.run("wait", "--timeout", "0.1s", job).status == 124
    assert shell.run("explain", holder).out.splitlines()[-1].endswith(" so far")
    (shell.daemon.home / "gate").touch()
    assert shell.run("wait", job, holder).status == 0


def test_a_log_is_followed_while_it_is_written(shell: Shell) -> None:
    job = shell.submit(shell.write("talk.sh", f"echo first\n{GATE}echo last\n"))
    process = shell.start("logs", "-f", job)
    assert process.stdout is not None
    assert process.stdout.readline() == "first\n"
    (shell.daemon.home / "gate").touch()
    assert process.stdout.read() == "last\n"
    assert process.wait(60) == 0


def test_cancel_ends_a_running_job_and_a_queued_one(shell: Shell) -> None:
    running = shell.submit(shell.write("endless.sh", GATE), "--license", "token=1")
    shell.until(running, "running")
    queued = shell.submit(shell.write("never.sh", "true\n"), "--license", "token=1")
    assert shell.run("cancel", queued, running).status == 0
    waited = shell.run("wait", running, queued)
    assert waited.status == 1
    assert sorted(line.split()[1].rstrip(":") for line in waited.out.splitlines()) == ["cancelled", "cancelled"]
    assert shell.run("cancel", running).status == 1, "it is over already"


def test_nothing_is_started_while_paused(shell: Shell) -> None:
    assert shell.run("pause", "sh", "--note", "machine is needed").status == 0
    job = shell.submit(shell.write("later.sh", "true\n"))
    assert shell.json("show", job)["reason"] == "paused"
    assert "machine is needed" in shell.run("explain", job).out
    assert "machine is needed" in shell.run("status").out
    assert shell.run("resume", "sh").status == 0
    assert shell.run("wait", job).status == 0
    assert shell.run("pause", "nosuch").status in (1, 2)


def test_a_folder_a_job_file_and_companions(shell: Shell) -> None:
    shell.write("case/run.sh", "cat mesh/part.inc > seen.txt\n")
    shell.write("case/mesh/part.inc", "a part")
    shell.write("named.job.toml", 'inputs = ["main.sh", "side.txt"]\nname = "named"\npriority = 3\n')
    shell.write("main.sh", "cat side.txt > seen.txt\n")
    shell.write("side.txt", "a side")
    shell.write("lone.sh", "cat side.txt > seen.txt\n")
    for words, seen in [
        (["case"], "a part"),
        (["named.job.toml", "--priority", "7"], "a side"),
        (["lone.sh", "--with", "side.txt"], "a side"),
    ]:
        job = shell.submit(*words)
        assert shell.run("wait", job).status == 0, shell.run("show", job).out
        assert shell.run("get", job, "seen.txt").status == 0
        assert (shell.folder / job / "output" / "seen.txt").read_text() == seen
    named = next(row for row in shell.json("list")["jobs"] if row["name"] == "named")
    assert shell.json("show", named["id"])["priority"] == 7


def test_one_refused_target_keeps_no_other_from_its_turn(shell: Shell) -> None:
    shell.write("good.sh", "true\n")
    shell.write("unknown.xyz", "?")
    shell.write("two.both", "true\n")
    result = shell.run("submit", "unknown.xyz", "two.both", "good.sh")
    assert result.status == 1
    assert [line.split()[2] for line in result.out.splitlines()] == ["good.sh"]
    unknown, two = result.err.splitlines()
    assert "no solver accepts unknown.xyz" in unknown
    assert "another" in two
    assert "other" in two
    assert shell.run("submit", "two.both", "--solver", "other", "--wait").status == 0


def test_a_key_makes_one_job_of_two_submissions(shell: Shell) -> None:
    shell.write("once.sh", "true\n")
    first, second = (shell.json("submit", "once.sh", "--key", "k1") for _ in range(2))
    assert (second["id"], first["existing"], second["existing"]) == (first["id"], False, True)


def test_since_tells_earlier_jobs_from_later_ones(shell: Shell) -> None:
    job = shell.submit(shell.write("now.sh", "true\n"))
    assert [row["id"] for row in shell.json("list", "--since", "1h")["jobs"]] == [job]
    assert (
        shell.json("list", "--since", time.strftime("%Y-12-31T23:59:59", time.localtime(time.time() + 4e7)))["jobs"]
        == []
    )


def test_what_jobs_and_logs_say_does_not_reach_the_terminal_as_it_is(shell: Shell) -> None:
    shell.write("odd.sh", "printf 'ERROR: red \\033[31m and \\302\\2332J\\n'; exit 1\n")
    job = shell.submit("odd.sh", "--name", "na\u202eme")
    assert shell.run("wait", job).status == 1
    for verb in ("explain", "show"):
        said = shell.run(verb, job).out
        assert all(line.isprintable() for line in said.splitlines()), said
    assert "\x1b[31m" in shell.run("logs", job).out, "piped bytes are the solver's own"


def test_without_its_daemon_a_verb_says_how_to_start_it(shell: Shell) -> None:
    assert shell.daemon.stop() == 0
    for words in (
        ["status"],
        ["cancel", "last"],
        ["servers", "restart", "x"],
        ["submit", shell.write("a.sh", "true\n")],
    ):
        result = shell.run(*words)
        assert (result.status, result.out) == (3, "")
        assert f"solvisor serve --home {shell.daemon.home}" in result.err


def test_what_was_can_be_asked_without_a_daemon(shell: Shell) -> None:
    job = shell.submit(shell.write("bad.sh", "echo computing; echo 'ERROR: no material' >&2; exit 3\n"))
    assert shell.run("wait", job).status == 1
    assert shell.run("pause").status == 0
    later = shell.submit(shell.write("later.sh", "true\n"))
    verbs = [["list"], ["show", job], ["explain", job], ["logs", job], ["wait", job]]
    before = [shell.run(*words) for words in verbs]
    assert shell.daemon.stop() == 0
    told = f"solvisor: no daemon is running on {shell.daemon.home}; this is what its home says\n"
    held = shell.run("explain", later).out
    assert "waits for a daemon: solvisor serve starts one." in held
    assert "everything was paused" in held
    for words, live in zip(verbs[1:], before[1:], strict=True):
        assert shell.run(*words) == Result(live.status, live.out, told), words
    assert [row["id"] for row in shell.json("list", "--all")["jobs"]] == [later, job]
    assert shell.run("servers") == Result(0, "", f"{told}{NO_SERVERS}\n")
    assert shell.run("get", job, "--out", "results").status == 0
    assert (shell.folder / "results" / job / "stdout.log").read_text() == "computing\n"
    assert shell.run("show", "gone").status == 4
    for words in (["wait", later], ["logs", "-f", later]):
        result = shell.run(*words)
        assert (result.status, result.out) == (3, ""), "nobody goes on with it"
        assert result.err.splitlines()[-1].endswith(f"solvisor serve --home {shell.daemon.home}")


def test_a_home_without_a_database_has_nothing_to_say(shell: Shell) -> None:
    assert shell.daemon.stop() == 0
    (shell.daemon.home / "state" / "solvisor.db").rename(shell.folder / "aside.db")
    result = shell.run("list")
    assert (result.status, result.out) == (3, "")
    assert "solvisor serve" in result.err
