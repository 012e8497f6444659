"""The life of a daemon as a user sees it: drops become results, signals stop it, nothing is lost or left behind."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import Daemon
from waiting import wait_until

Make = Callable[..., Daemon]

SHELL = """
[daemon]
max_jobs = 2
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "1s"
[solver.sh.success]
error_pattern = 'ERROR: (.*)'
"""


def test_a_good_drop_ends_in_done_with_a_manifest_that_tells_the_truth(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("answer.sh", "echo computing; echo 42 > answer.txt\n")
    manifest = daemon.wait_one()
    folder = daemon.home / "done" / manifest["id"]
    assert (manifest["state"], manifest["cause"], manifest["attempts"][0]["exit_code"]) == ("succeeded", None, 0)
    assert (folder / "output" / "answer.txt").read_text() == "42\n"
    assert (folder / "stdout.log").read_text() == "computing\n"
    assert manifest["solver"]["command"][-1] == "answer.sh"
    named = {f["path"]: f for f in manifest["inputs"] + manifest["outputs"]}
    assert set(named) == {"input/answer.sh", "output/answer.txt", "stdout.log", "stderr.log"}
    for path, fact in named.items():
        content = (folder / path).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (fact["size"], fact["sha256"]), path
    assert not list((daemon.home / "work").iterdir())
    assert not list((daemon.home / "inbox").glob("*.sh"))
    assert daemon.stop() == 0
    assert daemon.solver_processes() == []


def test_fault_02_a_bad_drop_ends_in_failed_with_the_solvers_own_sentence(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("bad.sh", "echo 'ERROR: no material'; exit 3\n")
    manifest = daemon.wait_one()
    assert (manifest["state"], manifest["cause"], manifest["message"]) == ("failed", "exit", "no material")
    assert manifest["checks"][0] == {"check": "exit", "want": "0", "got": "3", "ok": False}
    assert (daemon.home / "failed" / manifest["id"] / "manifest.json").exists()


def test_a_failing_job_is_tried_again_after_a_rest_and_every_try_is_kept(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL + '[solver.sh.retry]\nmax = 2\non = ["exit"]\ndelay = "0.1s"\n')
    daemon.start()
    daemon.drop("flaky.sh", "echo try; ls ../attempt-2 >/dev/null 2>&1 && exit 0; exit 1\n")
    manifest = daemon.wait_one()
    assert manifest["state"] == "succeeded"
    assert [a["exit_code"] for a in manifest["attempts"]] == [1, 1, 0]
    assert len({a["token"] for a in manifest["attempts"]}) == 3
    folder = daemon.home / "done" / manifest["id"]
    assert (folder / "attempt-1" / "stdout.log").read_text() == "try\n"
    assert (folder / "attempt-2" / "stdout.log").read_text() == "try\n"


def test_fault_05_a_job_over_its_timeout_is_stopped_with_its_whole_tree(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL.replace("command =", 'timeout = "0.5s"\ncommand ='))
    daemon.start()
    daemon.drop("slow.sh", "sleep 600 & setsid sleep 600 & sleep 600\n")
    manifest = daemon.wait_one()
    assert (manifest["state"], manifest["cause"]) == ("failed", "timeout")
    assert daemon.solver_processes() == []


def test_fault_01_a_missing_program_is_a_spawn_failure_that_names_it(make_daemon: Make) -> None:
    daemon = make_daemon('[solver.x]\naccept = ["*.x"]\ncommand = ["no-such-solver", "{input}"]\n')
    daemon.start()
    daemon.drop("a.x", "x")
    manifest = daemon.wait_one()
    assert (manifest["state"], manifest["cause"], manifest["code"]) == ("failed", "spawn", "program_missing")
    assert "no-such-solver" in manifest["message"]


def test_jobs_wait_for_the_jobs_they_name(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("mesh.sh", "exit 1\n")
    (first,) = daemon.wait_for(1)
    daemon.drop("solve.sh", "echo solve\n")
    daemon.drop("bad.job.toml", f'solver = "sh"\ninputs = ["late.sh"]\nafter = ["{first}"]\n')
    daemon.drop("late.sh", "echo late\n")
    manifests = daemon.wait_for(3)
    skipped = next(m for m in manifests.values() if m["state"] == "skipped")
    assert first in skipped["message"]
    assert skipped["attempts"] == []
    assert sum(m["state"] == "succeeded" for m in manifests.values()) == 1


def test_a_key_makes_a_drop_idempotent(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    for name in ("one", "two"):
        daemon.drop(f"{name}.job.toml", f'inputs = ["{name}.sh"]\nkey = "same"\n')
        daemon.drop(f"{name}.sh", "echo x\n")
        daemon.wait_for(1 if name == "one" else 2)
    states = sorted(m["state"] for m in daemon.manifests().values())
    assert states == ["rejected", "succeeded"]


def test_sigterm_drains_running_jobs_finish_and_waiting_ones_wait_for_the_next_life(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    gate = daemon.home / "gate"
    for n in range(5):
        daemon.drop(f"job{n}.sh", f"until [ -e '{gate}' ]; do sleep 0.02; done\n")
    daemon.wait_event("job.accepted", 5)
    daemon.wait_event("attempt.started", 2)
    daemon.signal(signal.SIGTERM)
    daemon.wait_event("daemon.draining")
    gate.touch()
    assert daemon.running.wait(60) == 0
    assert len(daemon.manifests("done")) == 2
    daemon.start()
    assert {m["state"] for m in daemon.wait_for(5).values()} == {"succeeded"}
    assert all(len(m["attempts"]) == 1 for m in daemon.manifests().values())


def test_fault_65_a_second_sigterm_stops_now_and_loses_nothing(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    gate = daemon.home / "gate"
    for n in range(3):
        daemon.drop(f"job{n}.sh", f"trap '' TERM; until [ -e '{gate}' ]; do sleep 0.02; done\n")
    daemon.wait_event("attempt.started", 2)
    daemon.signal(signal.SIGTERM)
    daemon.wait_event("daemon.draining")
    daemon.signal(signal.SIGTERM)
    assert daemon.running.wait(30) == 0
    assert daemon.solver_processes() == []
    assert daemon.manifests() == {}
    gate.touch()
    daemon.start()
    manifests = daemon.wait_for(3)
    assert {m["state"] for m in manifests.values()} == {"succeeded"}
    tries = [[a["cause"] for a in m["attempts"]] for m in manifests.values()]
    assert tries.count(["lost", None]) == 2


def test_stop_timeout_ends_what_does_not_finish_and_queues_it_again(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL.replace('"20s"', '"0.2s"'))
    daemon.start()
    gate = daemon.home / "gate"
    daemon.drop("long.sh", f"until [ -e '{gate}' ]; do sleep 0.02; done\n")
    daemon.wait_event("attempt.started")
    assert daemon.stop() == 0
    assert daemon.manifests() == {}
    gate.touch()
    daemon.start()
    assert daemon.wait_one()["state"] == "succeeded"


def test_fault_66_a_second_daemon_on_the_same_home_exits_100_and_says_who_holds_it(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    second = subprocess.run(
        [sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(daemon.home)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert second.returncode == 100
    assert str(daemon.running.pid) in second.stderr
    assert str(daemon.home) in second.stderr


def test_fault_68_interruptions_are_not_charged_but_three_in_a_row_end_the_job(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("forever.sh", "sleep 600\n")
    for life in range(1, 4):
        daemon.wait_event("attempt.started", life)
        daemon.kill()
        daemon.start()
    manifest = daemon.wait_one()
    assert (manifest["state"], manifest["cause"]) == ("failed", "lost")
    assert [a["cause"] for a in manifest["attempts"]] == ["lost"] * 3
    assert daemon.solver_processes() == []


@pytest.mark.slow
def test_kill_9_at_random_moments_loses_nothing_and_leaves_nothing(make_daemon: Make) -> None:
    """Forty jobs, ten at a time; the daemon is killed ten times while they run. `make soak` does it for longer."""
    config = SHELL.replace("max_jobs = 2", "max_jobs = 10\ncpus = 10\ninterruptions_max = 100")
    daemon = make_daemon(config)
    daemon.start()
    seen: dict[str, bytes] = {}
    chance = random.Random(20261122)
    for n in range(40):
        nap = chance.choice(["0.01", "0.1", "0.3", "0.6"])
        daemon.drop(f"job{n:02}.sh", f"sleep 0.3 & setsid sleep 0.4 & sleep {nap}; echo {n} > n.txt\n")
    for _ in range(10):
        moment = chance.uniform(0.0, 0.5)
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.running.wait(moment)
        daemon.kill()
        _remember(daemon, seen)
        daemon.start()
        _remember(daemon, seen)
    manifests = daemon.wait_for(40, 120)
    _remember(daemon, seen)
    assert len(manifests) == 40
    assert sorted(m["source"]["path"] for m in manifests.values()) == [f"job{n:02}.sh" for n in range(40)]
    assert {m["state"] for m in manifests.values()} == {"succeeded"}
    assert daemon.stop() == 0
    assert daemon.solver_processes() == []
    assert list((daemon.home / "work").iterdir()) == []
    _check_every_hash(daemon, manifests)


def _remember(daemon: Daemon, seen: dict[str, bytes]) -> None:
    """A manifest ever seen never changes and never goes away."""
    for job_id in daemon.manifests():
        (path,) = daemon.home.glob(f"*/{job_id}/manifest.json")
        assert seen.setdefault(job_id, path.read_bytes()) == path.read_bytes()
    assert set(seen) <= set(daemon.manifests())


def _check_every_hash(daemon: Daemon, manifests: dict[str, dict[str, object]]) -> None:
    for job_id in manifests:
        (folder,) = daemon.home.glob(f"*/{job_id}")
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for fact in manifest["inputs"] + manifest["outputs"]:
            content = (folder / fact["path"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == fact["sha256"], (job_id, fact["path"])


def test_fault_84_a_fault_in_the_configuration_exits_2_and_names_key_and_line(tmp_path: Path) -> None:
    (tmp_path / "solvisor.toml").write_text("[daemon]\nmax_job = 3\n[solver.a]\ncommand = []\n")
    result = subprocess.run(
        [sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 2
    assert "line 2" in result.stderr
    assert "max_jobs" in result.stderr
    assert "solver.a.command" in result.stderr


def test_a_folder_whose_manifest_is_durable_is_published_by_the_next_life(make_daemon: Make) -> None:
    """Whatever moment the daemon dies at, the result appears once and whole."""
    daemon = make_daemon(SHELL)
    daemon.start()
    for n in range(20):
        daemon.drop(f"quick{n}.sh", f"echo {n}\n")
    wait_until(lambda: len(daemon.manifests()) >= 3, "some results")
    daemon.kill()
    daemon.start()
    manifests = daemon.wait_for(20)
    assert len(manifests) == 20
    assert {m["state"] for m in manifests.values()} == {"succeeded"}
