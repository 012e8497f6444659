"""Limits and the order of jobs, changed while the real daemon runs, killed and started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from daemon import Daemon
from socket_kit import Http, file, job
from solvisor.clock import now_us
from solvisor.home import Home, IdMaker
from solvisor.model import Request
from solvisor.spool import Take, Upload
from solvisor.views import JobView, Limits
from waiting import wait_until

SEATS = """
[daemon]
max_jobs = 3
cpus = 4
memory = "4GiB"
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[licenses]
seat = 2
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.5s"
licenses = { seat = 1 }
"""

GATE = b'while [ ! -e "$(dirname "$0")/../../../gate" ]; do sleep 0.05; done\n'


def solvisor(daemon: Daemon, *words: str, status: int = 0) -> str:
    argv = [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(daemon.home)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status, done
    return done.stdout if status == 0 else done.stderr


def send(http: Http, script: bytes = GATE, **wishes: Any) -> str:
    answer = http.send(file("a.sh", script), job(wishes))
    assert answer.status == 201, answer
    return str(answer.json["id"])


def claimed(daemon: Daemon, job_file: bytes) -> str:
    """What a daemon leaves that is killed after the claim of a submission and before its row: its id."""
    upload = Upload(Home.at(daemon.home), IdMaker().new_id("a.sh", now_us()))
    for name, data in (("a.sh", b"exit 0\n"), ("job.toml", job_file)):
        upload.begin(name)
        upload.write(data)
        upload.end()
    upload.finish(Take(upload.job_id, ("a.sh",), folder=True, request=Request("socket", "ann")))
    return upload.job_id


def test_what_was_ordered_is_there_after_kill_9_and_holds_before_anything_starts(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon(SEATS)
    daemon.start()
    http = Http(daemon.home)
    first, second, third, fourth = (send(http) for _ in range(4))
    wait_until(lambda: http.get("/v1/status").json["running"] == 2, "two run, for there are two seats")
    assert "seat: needs 1, 2 of 2 in use" in solvisor(daemon, "explain", third)

    told = solvisor(daemon, "limit", "license.seat", "1", "--note", "the workshop")
    assert told.startswith("license.seat: 1 (the workshop), until: solvisor limit --home ")
    solvisor(daemon, "limit", "memory", "3GiB")
    solvisor(daemon, "limit", "cpus", "8")
    assert solvisor(daemon, "priority", fourth, "5") == f"{fourth}  priority 5\n"
    solvisor(daemon, "priority", third, "-5")
    assert http.get("/v1/status").json["running"] == 2, "what runs goes on"
    assert "(limited to 1 by " in solvisor(daemon, "explain", third)
    assert f"2nd of 2; first is {fourth}" in solvisor(daemon, "explain", third)
    assert f"{first} is running; only a job that waits" in solvisor(daemon, "priority", first, "1", status=1)
    daemon.kill()
    wide = claimed(daemon, b'inputs = ["a.sh"]\ncpus = 8\npriority = -9\n')

    limits = json.loads(solvisor(daemon, "limit", "--json"))["limits"]
    assert {each["name"]: each["value"] for each in limits if each["since"]} == {
        "license.seat": 1,
        "memory": 3 << 30,
        "cpus": 8,
    }
    assert "0 of 1 in use" in solvisor(daemon, "explain", third)
    assert f"2nd of 4; first is {fourth}" in solvisor(daemon, "explain", first)
    daemon.config.write_text(SEATS.replace("cpus = 4", "cpus = 0"))
    assert "daemon.cpus" in solvisor(daemon, "limit", status=2), "it does not make limits up"
    daemon.config.write_text(SEATS)
    assert "no daemon is running" in solvisor(daemon, "limit", "license.seat", "auto", status=3)

    daemon.start()
    wait_until(lambda: http.get("/v1/status").json["running"] == 1, "one runs, for there is one seat")
    status = http.get("/v1/status").json
    assert [(each["name"], each["value"], each["note"]) for each in status["limits_set"]] == [
        ("cpus", 8, None),
        ("memory", 3 << 30, None),
        ("license.seat", 1, "the workshop"),
    ]
    assert "LIMITED  license.seat to 1 (configured: 2), since " in solvisor(daemon, "status")
    assert http.get(f"/v1/jobs/{fourth}").json["state"] == "running"
    assert http.get(f"/v1/jobs/{third}").json["priority"] == -5
    assert http.get(f"/v1/jobs/{wide}").json["state"] == "queued", "by the configuration it could never start"

    daemon.config.write_text(SEATS.replace("seat = 2", "seat = 3"))
    daemon.signal(signal.SIGHUP)
    daemon.wait_event("config.reloaded")
    seat = json.loads(solvisor(daemon, "limit", "license.seat", "--json"))
    assert (seat["value"], seat["configured"], seat["used"]) == (1, 3, 1)
    solvisor(daemon, "limit", "license.seat", "auto")
    wait_until(lambda: http.get("/v1/status").json["running"] == 3, "there are three seats")
    assert http.get(f"/v1/jobs/{third}").json["state"] == "queued"
    (daemon.home / "gate").touch()
    assert {manifest["state"] for manifest in daemon.wait_for(5).values()} == {"succeeded"}
    daemon.wait_event("job.succeeded", 5)
    started = [entry["id"] for entry in daemon.events("attempt.started")[-5:]]
    assert (started[0], {*started[1:3]}, *started[3:]) == (fourth, {first, second}, third, wide)
    moved = daemon.events("job.priority")
    assert [(e["id"], e["before"], e["priority"]) for e in moved] == [(fourth, 0, 5), (third, 0, -5)]
    assert all(entry["by"] for entry in moved + daemon.events("limit.set"))
    assert daemon.stop() == 0


def test_limits_over_the_socket(http: Http) -> None:
    found = msgspec.json.decode(http.get("/v1/limits").body, type=Limits)
    assert [limit.name for limit in found.limits] == ["max_jobs", "cpus", "memory", "solver.sh", "solver.twice"]
    answer = http.post("/v1/limits", {"name": "solver.sh", "value": 2, "note": "slow"})
    sh = next(limit for limit in msgspec.json.decode(answer.body, type=Limits).limits if limit.name == "solver.sh")
    assert (answer.status, sh.value, sh.configured, sh.note, bool(sh.by)) == (200, 2, None, "slow", True)
    assert http.get("/v1/status").json["limits_set"] == [msgspec.to_builtins(sh)]
    http.post("/v1/limits", {"name": "solver.sh", "value": None})
    assert http.get("/v1/status").json["limits_set"] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "cpus"},
        {"name": "cpus", "value": 0},
        {"name": "cpus", "value": -1},
        {"name": "cpus", "value": 1.5},
        {"name": "cpus", "value": "4"},
        {"name": "cpus", "value": True},
        {"name": "cpus", "value": 10**30},
        {"name": "core", "value": 1},
        {"name": "x" * 200, "value": 1},
        {"name": "cpus", "value": 1, "note": "x" * 501},
        {"name": "cpus", "value": 1, "until": "tomorrow"},
    ],
)
def test_a_limit_that_cannot_be_is_refused(http: Http, body: dict[str, Any]) -> None:
    answer = http.post("/v1/limits", body)
    assert (answer.status, answer.code) == (400, "usage")
    assert http.get("/v1/status").json["limits_set"] == []


def test_priorities_over_the_socket(http: Http) -> None:
    http.post("/v1/pause")
    try:
        waiting = send(http, b"exit 0\n")
        moved = msgspec.json.decode(http.post(f"/v1/jobs/{waiting}/priority", {"priority": 7}).body, type=JobView)
        assert (moved.id, moved.priority, moved.state) == (waiting, 7, "queued")
        for body in ({}, {"priority": 1001}, {"priority": -1001}, {"priority": "high"}, {"priority": None}):
            assert http.post(f"/v1/jobs/{waiting}/priority", body).code == "usage"
        assert http.get(f"/v1/jobs/{waiting}").json["priority"] == 7
        assert http.post("/v1/jobs/nobody/priority", {"priority": 1}).code == "no_such_job"
    finally:
        http.post("/v1/resume")
    http.get(f"/v1/jobs/{waiting}?wait=30")
    refused = http.post(f"/v1/jobs/{waiting}/priority", {"priority": 1})
    assert (refused.status, refused.code) == (409, "finished")
    http.post("/v1/limits", {"name": "max_jobs", "value": 1})
    running = send(http, b"sleep 600\n")
    wait_until(lambda: http.get(f"/v1/jobs/{running}").json["state"] == "running", "it runs")
    assert http.post(f"/v1/jobs/{running}/priority", {"priority": 1}).code == "started"
    http.post(f"/v1/jobs/{running}/cancel")
    http.post("/v1/limits", {"name": "max_jobs", "value": None})
