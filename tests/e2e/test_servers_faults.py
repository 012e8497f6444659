"""Warm servers that crash, are killed with their daemon or get no license: the queue is whole and nothing is left."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from pool_kit import spare_range
from servers_kit import assert_clean, attempts, config, drop_all, server_pid
from waiting import wait_until

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

MakeDaemon = Callable[..., Daemon]


def told(daemon: Daemon, *words: str) -> str:
    """What the command line says."""
    argv = [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(daemon.home)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def only(manifests: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests.values() if manifest["name"] == name]
    assert isinstance(found, dict)
    return found


def causes(manifest: dict[str, Any]) -> list[str | None]:
    return [attempt["cause"] for attempt in manifest["attempts"]]


def test_fault_13_a_server_that_died_unseen_costs_a_job_nothing(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(config(tmp_path / "marks", spare_range(20), "min = 1, max = 1"))
    daemon.start()
    daemon.wait_event("server.ready")
    daemon.signal(signal.SIGSTOP)  # it learns of both at once
    daemon.drop("a.s", "go")
    os.kill(server_pid(daemon, "s-1"), signal.SIGKILL)
    daemon.signal(signal.SIGCONT)
    manifest = daemon.wait_one()
    assert manifest["state"] == "succeeded"
    assert manifest["attempts"][-1]["server"] != "s-1"
    assert set(causes(manifest)) <= {None, "lost"}, "the job is not to blame"
    assert daemon.stop() == 0
    assert_clean(daemon)


def test_fault_15_a_crash_loop_ends_in_a_pool_that_says_why_and_keeps_the_queue(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    marks = tmp_path / "marks"
    text = config(marks, spare_range(60), "max = 1, restarts = 2")
    script = f'test -e {marks}/repaired || exec sh -c "echo no mesh library >&2; exit 4"; exec "$@"'
    daemon = make_daemon(text.replace("start = [", f"""start = ["/bin/sh", "-c", '''{script}''', "sh", """))
    daemon.start()
    drop_all(daemon, ["a.s", "b.s"])
    daemon.wait_event("server.failed", 3)
    wait_until(lambda: "failed too often" in told(daemon, "explain", "a"), "explain says why")
    said = told(daemon, "explain", "a")
    assert "no mesh library" in said
    assert "servers restart" in said
    assert "failed" in told(daemon, "servers")
    assert len(daemon.events("server.failed")) == 3, "the budget is two restarts"
    assert daemon.manifests() == {}
    daemon.drop("c.s", "go")
    daemon.wait_event("job.accepted", 3)
    (marks / "repaired").touch()
    assert len(daemon.events("server.started")) == 3
    told(daemon, "servers", "restart", "s")
    manifests = daemon.wait_for(3)
    assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}
    assert all(causes(manifest) == [None] for manifest in manifests.values()), "no job was charged"
    assert daemon.stop() == 0
    assert_clean(daemon)


def test_fault_17_jobs_that_kill_their_servers_are_poison_and_the_others_are_served(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(config(tmp_path / "marks", spare_range(60), "max = 2"))
    daemon.start()
    daemon.drop("bad.s", "fork die")
    drop_all(daemon, [f"{n}.s" for n in range(6)])
    manifests = daemon.wait_for(7)
    bad = only(manifests, "bad.s")
    assert (bad["state"], bad["cause"], bad["code"]) == ("failed", "poison", "server_died")
    assert causes(bad) == ["server"] * 3
    assert len({attempt["server"] for attempt in bad["attempts"]}) == 3
    assert "ended with exit code 9" in bad["message"]
    good = [manifest for manifest in manifests.values() if manifest["name"] != "bad.s"]
    assert all((manifest["state"], causes(manifest)) == ("succeeded", [None]) for manifest in good)
    assert daemon.stop() == 0
    assert_clean(daemon)


def test_fault_21_a_server_killed_with_a_job_leaves_its_port_to_rest(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    marks = tmp_path / "marks"
    daemon = make_daemon(config(marks, spare_range(2), "max = 1"))
    daemon.start()
    daemon.drop("a.s", "hold")
    daemon.wait_event("attempt.started")
    os.kill(server_pid(daemon, "s-1"), signal.SIGKILL)
    daemon.wait_event("attempt.started", 2)
    (marks / "a.s.go").touch()
    manifest = daemon.wait_one()
    assert (manifest["state"], causes(manifest)) == ("succeeded", ["server", None])
    ports = [attempt["port"] for attempt in manifest["attempts"]]
    assert len(set(ports)) == 2, "the port of the dead one, where connections linger, was used at once"
    assert list(marks.glob("taken-*")) == []
    os.kill(server_pid(daemon, "s-2"), signal.SIGKILL)
    daemon.wait_event("server.failed", 2)
    daemon.drop("b.s", "go")
    daemon.wait_event("job.accepted", 2)
    wait_until(lambda: "resting after use" in told(daemon, "explain", "b"), "explain says what it waits for")
    assert daemon.stop() == 0
    assert_clean(daemon)


def test_fault_25_two_daemons_on_one_port(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    marks = tmp_path / "marks"
    text = config(marks, spare_range(1), "max = 1")
    one, two = (make_daemon(text, name) for name in ("one", "two"))
    one.start()
    one.drop("a.s", "hold")
    one.wait_event("server.ready")
    two.start()
    two.drop("b.s", "go")
    told_by = two.wait_event("server.failed")[0]["error"]
    assert "1 in use by other Solvisor daemons" in told_by
    wait_until(lambda: "other Solvisor daemons" in told(two, "explain", "b"), "explain says so")
    (marks / "a.s.go").touch()
    assert one.wait_one()["state"] == "succeeded"
    assert two.manifests() == {}
    assert one.stop() == 0
    manifest = two.wait_one(150)
    assert (manifest["state"], causes(manifest)) == ("succeeded", [None])
    assert two.stop() == 0
    for daemon in (one, two):
        assert_clean(daemon)


@pytest.mark.slow
def test_kill_9_of_the_daemon_whatever_its_servers_do(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    chance = random.Random(seed)
    rounds, each = 6, 8
    text = config(tmp_path / "marks", spare_range(390), 'min = 1, max = 4, recycle_jobs = 2, idle = "0.3s"', max_jobs=4)
    daemon = make_daemon(text.replace("[daemon]", "[daemon]\ninterruptions_max = 100"))
    instants = [
        "server.started",
        "server.ready",
        "attempt.started",
        "attempt.exited",
        "job.succeeded",
        "server.stopped",
    ]
    for n in range(rounds):
        daemon.start()
        event = chance.choice(instants)
        reached = len(daemon.events(event)) + chance.randint(1, 4)
        drop_all(daemon, [f"{n}-{k}.s" for k in range(each)], chance.choice(["go", "fork"]))
        daemon.wait_event(event, reached, 60)
        before = daemon.solver_processes()
        daemon.kill()
        left = [*before, *daemon.solver_processes()]
        daemon.start()
        started = {event["pid"] for event in daemon.events("server.started")}
        assert [pid for pid in daemon.solver_processes() if pid in left and pid in started] == []
        daemon.kill()
    daemon.start()
    manifests = daemon.wait_for(rounds * each, 120)
    names = [manifest["name"] for manifest in manifests.values()]
    assert sorted(names) == sorted(f"{n}-{k}.s" for n in range(rounds) for k in range(each)), f"seed {seed}"
    assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}
    assert {cause for attempt in attempts(manifests) if (cause := attempt["cause"])} <= {"lost"}, "a kill was charged"
    wait_until(lambda: len(list((daemon.home / "run" / "servers").iterdir())) == 1, "only the one kept is left")
    assert len(list((daemon.home / "done").iterdir())) == rounds * each
    assert daemon.stop() == 0
    assert_clean(daemon)


# --- licenses ---------------------------------------------------------------------------------------------------------

LICENSED = """
licenses = {{ lic = 1 }}
[licenses]
lic = {seats}
[solver.c]
accept = ["*.sh"]
command = ["/bin/sh", "{{input}}"]
licenses = {{ lic = 1 }}
license_denied = '^no seat$'
stop_grace = "0.5s"
"""


def test_an_idle_server_gives_its_license_to_a_job_and_has_it_back(tmp_path: Path, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(config(tmp_path / "marks", spare_range(30), "min = 1, max = 1", more=LICENSED.format(seats=1)))
    daemon.start()
    daemon.wait_event("server.ready")
    go = tmp_path / "go"
    daemon.drop("c.sh", f"until test -e {go}; do sleep 0.01; done")
    daemon.wait_event("attempt.started")
    assert [event["server"] for event in daemon.events("server.stopped")] == ["s-1"]
    assert daemon.events("server.failed") == []
    daemon.drop("a.s", "go")
    daemon.wait_event("job.accepted", 2)
    assert "lic" in told(daemon, "explain", "a")
    assert len(daemon.events("server.started")) == 1, "the license is taken"
    go.touch()
    manifests = daemon.wait_for(2)
    assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}
    assert only(manifests, "a.s")["attempts"][0]["server"] == "s-2"
    assert daemon.stop() == 0
    assert_clean(daemon)


@pytest.mark.slow
def test_a_license_that_is_refused_three_times_rests_and_is_tried_by_one(
    tmp_path: Path, make_daemon: MakeDaemon
) -> None:
    text = config(tmp_path / "marks", spare_range(30), "max = 1", max_jobs=4, more=LICENSED.format(seats=4))
    daemon = make_daemon(text)
    daemon.start()
    seats = tmp_path / "seats"
    tries = tmp_path / "tries"
    # Three get no seat; whoever tries alone after that waits for one, so that a slow test is not overtaken.
    turn = f"echo $$ >> {tries}; [ $(wc -l < {tries}) -le 3 ] || until test -e {seats}; do sleep 0.02; done"
    script = f"{turn}; test -e {seats} || {{ echo no seat; exit 1; }}"
    drop_all(daemon, [f"{n}.sh" for n in range(3)], script)
    daemon.wait_event("job.accepted", 3)
    wait_until(lambda: len(daemon.events("attempt.exited")) == 3, "three tries")
    refused = "lic was refused 3 times in a row"
    wait_until(lambda: any(refused in told(daemon, "explain", str(n)) for n in range(3)), "it rests")
    assert len(tries.read_text().split()) <= 4
    seats.touch()
    manifests = daemon.wait_for(3, 200)
    assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}
    for manifest in manifests.values():
        assert len(manifest["attempts"]) == 2
        assert manifest["attempts"][0]["code"] == "license_denied"
    ends = sorted(
        (attempt["started"], attempt["finished"])
        for manifest in manifests.values()
        for attempt in manifest["attempts"][1:]
    )
    assert ends[0][1] <= ends[1][0], "one alone tried whether the license is back"
    assert daemon.stop() == 0
    assert_clean(daemon)
