"""``solvisor run`` as a person meets it: with a daemon and without, interrupted, killed, never without summary."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pytest

from daemon import Daemon, processes_of
from solvisor_service.client import Client, NotRunning
from waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the status socket is not there on Windows yet")

Make = Callable[..., Daemon]

SHELL = """
[daemon]
max_jobs = 3
stop_timeout = "1s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.5s"
[solver.sh.params]
load = { type = "float", default = 1.0 }
[solver.sh.success]
error_pattern = 'ERROR: (.*)'
"""
GOOD = "echo result of $0 > out.txt\n"
BAD = "echo 'ERROR: no material'; exit 3\n"
VERB = [sys.executable, "-m", "solvisor_service.cli", "run", "sh"]


class Place:
    """A home without a daemon, and inputs."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir()
        (self.home / "solvisor.toml").write_text(SHELL)
        self.out = folder / "out"
        self.gate = folder / "gate"
        self.clients: list[subprocess.Popen[str]] = []
        self._inputs = folder / "in"
        self._inputs.mkdir()

    def input(self, name: str, text: str = GOOD) -> str:
        (self._inputs / name).write_text(text)
        return str(self._inputs / name)

    def ten_with_two_bad(self) -> list[str]:
        return [self.input(f"case-{n}.sh", BAD if n in (3, 7) else GOOD) for n in range(1, 11)]

    def gated(self, name: str) -> str:
        """An input that says it runs, and ends when the gate is open (or after a minute)."""
        wait = f"n=0; while [ ! -e {self.gate} ] && [ $n -lt 600 ]; do n=$((n+1)); sleep 0.1; done"
        return self.input(name, f"touch {self.gate}.{name}\n{wait}\n{GOOD}")

    def started(self) -> list[str]:
        return sorted(path.suffixes[-2] for path in self.gate.parent.glob("gate.*"))

    def wait_started(self, count: int) -> None:
        wait_until(lambda: len(self.started()) >= count, f"{count} jobs run", 60)

    def command(self, *arguments: str) -> list[str]:
        return [*VERB, "--home", str(self.home), "--out", str(self.out), *arguments]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(*arguments), capture_output=True, text=True, timeout=120)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        command = self.command(*arguments)
        client = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.clients.append(client)
        return client

    def terminal(self, *arguments: str) -> Any:
        program, *rest = self.command(*arguments)
        env = {**os.environ, "TERM": "xterm"}
        return pexpect.spawn(program, rest, encoding="utf-8", timeout=60, dimensions=(24, 80), env=env)

    def summary(self) -> dict[str, Any]:
        summary: dict[str, Any] = json.loads((self.out / "summary.json").read_bytes())
        with (self.out / "summary.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(row["index"], row["state"], row["id"]) for row in rows] == [
            (str(row["index"]), row["state"], row["id"] or "") for row in summary["rows"]
        ], "the two files tell the same"
        return summary

    def states(self) -> list[str]:
        return [row["state"] for row in self.summary()["rows"]]

    def manifests(self) -> dict[str, dict[str, Any]]:
        found = [p for folder in ("done", "failed", "rejected") for p in self.home.glob(f"{folder}/*/manifest.json")]
        assert len({path.parent.name for path in found}) == len(found), "one manifest each"
        return {path.parent.name: json.loads(path.read_bytes()) for path in found}

    def daemons(self) -> list[int]:
        """Processes whose command line names this home."""
        return [pid for pid in all_pids() if os.fsencode(self.home) in command_line(pid)]

    def wait_empty(self) -> None:
        """Until no daemon and no solver of this home is left."""
        identity = (self.home / "state" / "home-id").read_text().split('"')[1]
        wait_until(lambda: not self.daemons() and not list(processes_of(identity)), "no process is left", 60)


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for client in made.clients:
        client.kill()
        client.communicate()
    for pid in made.daemons():
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def live(place: Place, make_daemon: Make) -> Daemon:
    """A daemon on the home of ``place``."""
    daemon = make_daemon(SHELL)
    daemon.start()
    return daemon


# --- without a daemon -------------------------------------------------------------------------------------------------


def test_a_batch_runs_without_a_daemon_and_leaves_none(place: Place) -> None:
    done = place.run("--name", "night", "--project", "riser", "--max-jobs", "2", *place.ten_with_two_bad())
    assert done.returncode == 1, done.stderr
    summary = place.summary()
    assert place.states() == ["failed" if n in (3, 7) else "succeeded" for n in range(1, 11)]
    assert (summary["total"], summary["succeeded"], summary["failed"], summary["unfinished"]) == (10, 8, 2, 0)
    assert (summary["name"], summary["solver"], summary["max_jobs"]) == ("night", "sh", 2)
    assert [row["input"].rpartition("/")[2] for row in summary["rows"]] == [f"case-{n}.sh" for n in range(1, 11)]
    assert summary["rows"][2]["message"] == "no material"
    assert done.stderr.splitlines()[-2:] == ["Processing: 10/10 [0 active, 2 failed]", "Fetching: 10/10"]
    assert "10 jobs in" in done.stdout
    assert "no material" in done.stdout
    manifests = place.manifests()
    assert {row["id"] for row in summary["rows"]} == set(manifests)
    assert {(m["batch"], m["project"]) for m in manifests.values()} == {(summary["batch"], "riser")}
    place.wait_empty()


def test_results_are_brought_as_their_manifests_name_them(place: Place) -> None:
    place.run(*place.ten_with_two_bad())
    for row in place.summary()["rows"]:
        folder = place.out / f"{row['index']:02}-case-{row['index']}"
        manifest = json.loads((folder / "manifest.json").read_bytes())
        assert manifest == place.manifests()[row["id"]]
        for fact in manifest["outputs"]:
            assert hashlib.sha256((folder / fact["path"]).read_bytes()).hexdigest() == fact["sha256"]
    assert (place.out / "05-case-5" / "output" / "out.txt").read_text() == "result of case-5.sh\n"
    assert not list(place.out.rglob("*.part"))


def test_a_batch_of_good_inputs_ends_with_0_and_needs_no_folder(place: Place) -> None:
    command = [*VERB, "--home", str(place.home), place.input("a.sh"), place.input("b.sh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, place.out.exists()) == (0, False), done.stderr
    assert f"{place.home}/done/ID/" in done.stdout


def test_a_configuration_that_is_named_is_that_of_its_own_daemon(place: Place) -> None:
    named = (place.home / "solvisor.toml").rename(place.home.parent / "named.toml")
    done = place.run("--config", str(named), place.input("a.sh"))
    assert done.returncode == 0, done.stderr
    assert "is not used" not in done.stderr


def test_json_is_the_summary_alone(place: Place) -> None:
    done = place.run("--json", place.input("a.sh"), place.input("b.sh", BAD))
    assert done.returncode == 1
    assert json.loads(done.stdout) == place.summary()
    assert done.stderr == ""


def test_after_a_batch_without_a_daemon_the_next_step_can_be_pasted(place: Place) -> None:
    folder = place.home.parent / "my home"
    place.home = place.home.rename(folder)
    command = [*VERB, "--home", str(place.home), place.input("bad.sh", BAD)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    (following,) = (line for line in done.stdout.splitlines() if line.startswith("next"))
    assert f"--home '{folder}'" in following
    words = shlex.split(following.removeprefix("next"))
    told = subprocess.run([*VERB[:-2], *words[1:]], capture_output=True, text=True, timeout=120)
    assert (told.returncode, "no material" in told.stdout) == (0, True), told


def test_a_job_file_may_have_a_key_of_its_own(place: Place, live: Daemon) -> None:
    place.input("deck.sh")
    wish = place.input("wish.job.toml", 'inputs = ["deck.sh"]\nkey = "k1"\n')
    done = place.run(wish)
    assert done.returncode == 0, done.stdout
    (manifest,) = place.manifests().values()
    assert manifest["key"] == "k1"


def test_a_paused_batch_says_so(place: Place, live: Daemon) -> None:
    Client(place.home).pause("sh", "lunch")
    client = place.start(place.input("a.sh"))
    assert client.stderr is not None
    said = next(line for line in client.stderr if "nothing of the batch" in line)
    assert "sh was paused" in said
    assert f"lunch; solvisor resume --home {place.home} sh lets it go on" in said
    assert f"see: solvisor explain --home {place.home} a-" in said
    Client(place.home).resume("sh")
    client.communicate(timeout=120)
    assert client.returncode == 0


def test_kill_9_of_the_client_leaves_no_process(place: Place) -> None:
    client = place.start(*[place.gated(f"g{n}.sh") for n in range(5)])
    place.wait_started(1)
    client.kill()
    client.communicate()
    place.wait_empty()


def test_a_daemon_of_its_own_that_dies_is_started_again(place: Place) -> None:
    client = place.start(*[place.gated(f"g{n}.sh") for n in range(5)])
    place.wait_started(1)
    pid = Client(place.home).status().pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: another_answers(place.home, pid), "another daemon answers", 60)
    place.gate.touch()
    _, said = client.communicate(timeout=120)
    assert client.returncode == 0, said
    assert "was killed by signal 9" in said
    assert place.states() == ["succeeded"] * 5
    assert len(place.manifests()) == 5
    place.wait_empty()


def another_answers(home: Path, pid: int) -> bool:
    try:
        return Client(home).status().pid != pid
    except NotRunning:
        return False


def test_two_batches_at_once_without_a_daemon_both_end_well(place: Place, tmp_path: Path) -> None:
    first = place.start(*[place.input(f"a{n}.sh") for n in range(5)])
    place.out = tmp_path / "out2"
    second = place.start(*[place.input(f"b{n}.sh") for n in range(5)])
    ends = [client.communicate(timeout=120)[1] for client in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), ends
    assert place.states() == ["succeeded"] * 5
    assert len(place.manifests()) == 10
    place.wait_empty()


# --- through a live daemon --------------------------------------------------------------------------------------------


def test_a_live_daemon_is_used_and_goes_on_afterwards(place: Place, live: Daemon) -> None:
    done = place.run(*place.ten_with_two_bad())
    assert done.returncode == 1, done.stderr
    assert place.states().count("succeeded") == 8
    assert live.running.poll() is None
    assert Client(place.home).status().pid == live.running.pid
    assert len(live.events("daemon.ready")) == 1


def test_no_more_jobs_run_at_once_than_asked(place: Place, live: Daemon) -> None:
    lock = place.gate.parent / "lock"
    alone = f"mkdir {lock} || exit 9\nsleep 0.05\nrmdir {lock}\n"
    done = place.run("--max-jobs", "1", *[place.input(f"c{n}.sh", alone) for n in range(6)])
    assert done.returncode == 0, done.stdout


def test_on_error_fail_starts_nothing_more(place: Place, live: Daemon) -> None:
    bad, rest = place.input("a.sh", BAD), [place.gated(f"b{n}.sh") for n in range(5)]
    client = place.start("--on-error", "fail", "--max-jobs", "1", bad, *rest)
    wait_until(place.manifests, "the first one is judged", 60)
    place.gate.touch()
    shown, _ = client.communicate(timeout=120)
    assert client.returncode == 1
    states = place.states()
    assert states == ["failed", *["skipped"] * 5], "the next one waits for the verdict"
    assert (place.summary()["stopped_early"], place.summary()["interrupted"]) == (True, False)
    assert "stopped at the first failure" in shown


def test_wishes_go_with_every_job(place: Place, live: Daemon) -> None:
    along = place.input("along.txt", "hello\n")
    reads = place.input("r.sh", "cat along.txt; sleep 60\n")
    done = place.run("--timeout", "0.5s", "--param", "load=3.5", "--priority", "7", "--with", along, reads)
    assert done.returncode == 1
    summary = place.summary()
    assert (summary["failed"], summary["timeout"], summary["rows"][0]["cause"]) == (1, 1, "timeout")
    (manifest,) = place.manifests().values()
    assert manifest["params"] == {"load": 3.5}
    assert (place.out / "1-r" / "stdout.log").read_text() == "hello\n"


def test_job_files_and_folders_are_inputs_and_a_faulty_one_is_a_row(place: Place, live: Daemon) -> None:
    place.input("deck.sh")
    wish = place.input("wish.job.toml", 'inputs = ["deck.sh"]\nname = "the deck"\n')
    bad = place.input("bad.job.toml", 'inputs = ["deck.sh"]\nprioritiy = 3\n')
    folder = place.home.parent / "case"
    folder.mkdir()
    (folder / "main.sh").write_text("cat part.inc\n")
    (folder / "part.inc").write_text("part\n")
    (folder / "job.toml").write_text('inputs = ["main.sh"]\n')
    undeclared = place.input("undeclared.job.toml", 'inputs = ["deck.sh"]\nparams = { loat = 1.0 }\n')
    done = place.run(wish, bad, str(folder), undeclared)
    assert place.states() == ["succeeded", "rejected", "succeeded", "rejected"], done.stdout
    rows = place.summary()["rows"]
    assert "prioritiy" in rows[1]["message"]
    assert "loat" in rows[3]["message"]
    assert done.returncode == 1
    assert (place.out / "3-case" / "stdout.log").read_text() == "part\n"
    assert {m["name"] for m in place.manifests().values()} >= {"the deck"}


def test_kill_9_of_the_daemon_and_a_restart_lose_nothing(place: Place, live: Daemon) -> None:
    client = place.start(*[place.gated(f"g{n}.sh") for n in range(8)])
    place.wait_started(1)
    live.kill()
    live.start()
    place.gate.touch()
    _, said = client.communicate(timeout=120)
    assert client.returncode == 0, said
    assert place.states() == ["succeeded"] * 8
    manifests = place.manifests()
    assert len(manifests) == 8
    assert {row["id"] for row in place.summary()["rows"]} == set(manifests)


def test_kill_9_while_inputs_are_being_sent_makes_no_job_twice(place: Place, live: Daemon) -> None:
    count = 60
    client = place.start(*[place.input(f"c{n}.sh") for n in range(count)])
    wait_until(lambda: len(list((place.home / "work").iterdir())) + len(place.manifests()) > 5, "some are sent")
    live.kill()
    live.start()
    _, said = client.communicate(timeout=120)
    assert client.returncode == 0, said
    assert place.states() == ["succeeded"] * count
    assert len(place.manifests()) == count


# --- interrupts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_daemon", [True, False], ids=["live", "own"])
def test_ctrl_c_lets_running_jobs_finish_and_cancels_the_rest(
    place: Place, with_daemon: bool, request: pytest.FixtureRequest
) -> None:
    if with_daemon:
        request.getfixturevalue("live")
    terminal = place.terminal("--max-jobs", "1", *[place.gated(f"g{n}.sh") for n in range(5)])
    place.wait_started(1)
    terminal.expect(r"Processing: 0/5 \[1 active, 0 failed\]")
    terminal.sendintr()
    terminal.expect("Ctrl-C again stops it")
    terminal.expect("4 cancelled")
    place.gate.touch()
    terminal.expect("5 jobs in")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    assert place.states() == ["succeeded", "cancelled", "cancelled", "cancelled", "cancelled"]
    assert place.summary()["interrupted"]
    assert place.started() == [".g0"]
    assert (place.out / "1-g0" / "manifest.json").exists(), "what finished is brought"
    if not with_daemon:
        place.wait_empty()


def test_a_second_ctrl_c_stops_running_jobs(place: Place) -> None:
    terminal = place.terminal(*[place.gated(f"g{n}.sh") for n in range(4)])
    place.wait_started(1)
    terminal.sendintr()
    terminal.expect("Ctrl-C again stops it")
    terminal.sendintr()
    terminal.expect("leaves at once")
    terminal.expect_exact("summary.csv and summary.json; ")  # the results of jobs stay where they are
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    assert place.states() == ["cancelled"] * 4
    assert sorted(path.name for path in place.out.iterdir()) == ["summary.csv", "summary.json"]
    place.wait_empty()


def test_a_third_ctrl_c_leaves_with_a_summary_of_what_is_known(place: Place) -> None:
    stubborn = "trap '' TERM INT\n" + Path(place.gated("s.sh")).read_text()
    (place.home / "solvisor.toml").write_text(SHELL.replace('stop_grace = "0.5s"', 'stop_grace = "20s"'))
    terminal = place.terminal(place.input("s.sh", stubborn))
    place.wait_started(1)
    for said in ("Ctrl-C again stops it", "leaves at once", "left"):
        terminal.sendintr()
        terminal.expect(said)
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    summary = place.summary()
    assert (summary["interrupted"], summary["unfinished"], len(summary["rows"])) == (True, 1, 1)
    place.gate.touch()
    place.wait_empty()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_stops_running_jobs_and_writes_the_summary(place: Place, number: signal.Signals) -> None:
    client = place.start(*[place.gated(f"g{n}.sh") for n in range(5)])
    place.wait_started(1)
    client.send_signal(number)
    client.communicate(timeout=120)
    assert client.returncode == 130
    assert place.states() == ["cancelled"] * 5
    place.wait_empty()


def test_a_terminal_that_is_closed_ends_it_like_a_termination(place: Place) -> None:
    terminal = place.terminal(*[place.gated(f"g{n}.sh") for n in range(2)])
    place.wait_started(1)
    os.close(terminal.child_fd)
    wait_until(lambda: (place.out / "summary.json").exists(), "the summary", 60)
    assert place.states() == ["cancelled"] * 2
    place.wait_empty()
    os.waitpid(terminal.pid, 0)


def test_an_interrupt_while_its_daemon_starts_ends_it_with_a_summary(place: Place) -> None:
    slow = place.home.parent / "slow.sh"
    slow.write_text(f"touch {place.gate}.env.sh\nsleep 2\n")
    config = SHELL.replace("[solver.sh]\n", f'[solver.sh]\nenv_script = "{slow}"\n')
    (place.home / "solvisor.toml").write_text(config)
    client = place.start(place.input("a.sh"), place.input("b.sh"))
    place.wait_started(1)
    client.send_signal(signal.SIGINT)
    client.communicate(timeout=120)
    assert client.returncode == 130
    assert place.states() == ["cancelled", "cancelled"]
    wait_until(lambda: not place.daemons(), "no daemon is left", 60)


# --- what cannot be ---------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_told_before_anything_starts(place: Place) -> None:
    good = place.input("a.sh")

    def says(*arguments: str, status: int = 2) -> str:
        done = place.run(*arguments)
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert not (place.home / "state").exists() or not place.manifests()
        return done.stderr

    assert "does not exist" in says(good, str(place.home / "missing.sh"))
    assert "--param load" in says("--param", "load", good)
    assert "from 1 on" in says("--max-jobs", "0", good)
    assert "--timeout" in says("--timeout", "soon", good)
    place.out.mkdir()
    (place.out / "old").touch()
    assert "is not empty" in says(good)
    (place.out / "old").unlink()
    (place.home / "solvisor.toml").write_text("[solver.sh]\ncomand = []\n")
    assert 'did you mean "command"' in says(good)
    (place.home / "solvisor.toml").unlink()
    assert f"solvisor init --home {place.home}" in says(good)


def test_an_unknown_solver_is_told_with_those_there_are(place: Place) -> None:
    command = [*VERB[:-1], "shh", "--home", str(place.home), place.input("a.sh")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "there is no solver shh" in done.stderr
    assert "there are: sh" in done.stderr
    place.wait_empty()


def test_modules_in_the_working_folder_are_not_run(place: Place) -> None:
    trap = place.home.parent / "trap"
    trap.mkdir()
    (trap / "anyio.py").write_text("raise SystemExit('the wrong module')\n")
    program = "import sys; from solvisor_service.cli import main; sys.exit(main())"
    command = [sys.executable, "-P", "-c", program, "run", "sh", "--home", str(place.home), place.input("a.sh")]
    done = subprocess.run(command, cwd=trap, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_progress_comes_now_and_then_where_there_is_no_terminal(place: Place, live: Daemon) -> None:
    client = place.start(place.gated("g.sh"))
    assert client.stderr is not None
    first = client.stderr.readline()
    assert first == "Processing: 0/1 [1 active, 0 failed]\n"
    place.gate.touch()
    _, rest = client.communicate(timeout=120)
    assert rest.splitlines() == ["Processing: 1/1 [0 active, 0 failed]", "Fetching: 1/1"]


NO_SERVER = """
[solver.f]
kind = "server"
accept = ["*.txt"]
start = ["/bin/sh", "-c", "echo no seat at {port} >&2; exit 3"]
ready = { kind = "tcp", expect = "hello" }
command = ["/bin/cat", "{input}"]
servers = { max = 1, restarts = 2, restarts_within = "60s" }
"""


def test_servers_that_fail_for_good_end_a_batch_without_a_daemon(place: Place) -> None:
    (place.home / "solvisor.toml").write_text(NO_SERVER)
    command = [*VERB[:-1], "f", "--home", str(place.home), "--out", str(place.out)]
    files = [place.input("a.txt", "1"), place.input("b.txt", "2")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stderr
    assert place.states() == ["cancelled", "cancelled"]
    assert "the servers of f failed 3 times in a row: f-" in done.stderr
    assert "no seat at " in done.stderr
    assert "2 cancelled; stopped early" in done.stdout
    place.wait_empty()
