"""What watches over the daemon: whether it lives, whether it takes work, and its numbers for Prometheus."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from daemon import Daemon, living
from socket_kit import Http, file, job
from solvisor.model import Reason
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 2
stop_timeout = "0s"
disk_reserve = "1MiB"
[inbox]
settle = "0.1s"
[licenses]
seat = 1
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
licenses = { seat = 1 }
stop_grace = "0.5s"
[solver.post]
kind = "python"
call = "json:loads"
"""
LABELS = {"solver", "state", "license", "reason", "le", "version"}
"""All labels there are: none is of a job, a user or a file."""


def families(http: Http) -> dict[str, Metric]:
    answer = http.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(answer.body.decode())}


def value(http: Http, name: str, **labels: str) -> float:
    """The one sample of this name with these labels."""
    found = [
        sample.value for family in families(http).values() for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]  # fmt: skip
    assert len(found) == 1, (name, labels, found)
    return found[0]


def test_a_daemon_that_takes_work_lives_and_is_ready(http: Http) -> None:
    healthy, ready = http.get("/healthz"), http.get("/readyz")
    assert (healthy.status, healthy.body, ready.status, ready.body) == (200, b"ok\n", 200, b"ready\n")
    assert ready.headers["content-type"].startswith("text/plain")


def test_every_number_has_its_words_its_type_and_labels_that_are_bounded(http: Http) -> None:
    http.send(file("no such solver.xyz"), job({"solver": "of my own"}))
    found = families(http)
    assert len(found) > 30
    for family in found.values():
        assert family.name.startswith("solvisor_")
        assert family.documentation.endswith("."), family.name
        assert family.type in ("gauge", "counter", "histogram"), family.name
        assert not re.search(r"milli|minutes|_ms|_kb|percent|_total_", family.name), "base units"
        for sample in family.samples:
            assert sample.labels.keys() <= LABELS, sample
            assert sample.labels.get("solver", "sh") in ("sh", "post"), sample
        lines = [(sample.name, *sorted(sample.labels.items())) for sample in family.samples]
        assert len(lines) == len(set(lines)), "each line once"
    assert {s.labels["reason"] for s in found["solvisor_queue_jobs"].samples} == set(Reason)
    assert found["solvisor_servers"].samples[0].labels["solver"] == "post"


def test_what_runs_waits_and_ended_is_counted(http: Http, daemon: Daemon) -> None:
    gate = daemon.home / "gate"
    script = f"until [ -e {gate} ]; do sleep 0.02; done; [ ! -e fail ]\n".encode()

    def finished() -> list[float]:
        return [
            value(http, "solvisor_jobs_finished_total", solver="sh", state=state) for state in ("succeeded", "failed")
        ]

    before = finished()
    ids = [http.send(file("a.sh", script)).json["id"] for _ in range(2)]
    wait_until(lambda: value(http, "solvisor_jobs", state="running") == 1, "one runs")
    assert value(http, "solvisor_jobs", state="queued") == value(http, "solvisor_queue_jobs", reason="license") == 1
    assert value(http, "solvisor_licenses_used", license="seat") == value(
        http, "solvisor_licenses_limit", license="seat"
    )
    assert value(http, "solvisor_license_waiting_jobs", license="seat") == 1
    assert value(http, "solvisor_solver_running_jobs", solver="sh") == value(http, "solvisor_places_used") == 1
    assert value(http, "solvisor_health", state="healthy") == 1
    gate.touch()
    for job_id in ids:
        assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    bad = http.send(file("b.sh", b"exit 3\n")).json["id"]
    assert http.get(f"/v1/jobs/{bad}?wait=30").json["state"] == "failed"
    now = finished()
    assert now == [before[0] + 2, before[1] + 1]
    assert value(http, "solvisor_job_run_seconds_count", solver="sh") == sum(now)
    assert value(http, "solvisor_job_run_seconds_bucket", solver="sh", le="+Inf") == sum(now)
    assert 0 < value(http, "solvisor_job_queue_seconds_sum", solver="sh") < 60
    assert value(http, "solvisor_jobs", state="queued") == value(http, "solvisor_jobs", state="running") == 0


def test_the_daemon_tells_of_itself(http: Http, daemon: Daemon) -> None:
    pid = daemon.running.pid
    assert value(http, "solvisor_process_resident_memory_bytes") > 10 << 20
    assert 0 < value(http, "solvisor_process_cpu_seconds_total") < 600
    assert 5 < value(http, "solvisor_process_open_fds") < value(http, "solvisor_process_max_fds")
    assert value(http, "solvisor_database_bytes") >= (daemon.home / "state" / "solvisor.db").stat().st_size
    assert value(http, "solvisor_disk_free_bytes") > value(http, "solvisor_disk_reserve_bytes") == 1 << 20
    assert value(http, "solvisor_loop_lag_seconds") < 10
    assert http.get("/v1/status").json["pid"] == pid


def test_a_daemon_that_stops_lives_and_is_not_ready(tmp_path_factory: pytest.TempPathFactory) -> None:
    config = CONFIG.replace('stop_timeout = "0s"', 'stop_timeout = "60s"')
    with living(tmp_path_factory.mktemp("stopping") / "home", config) as daemon:
        http, gate = Http(daemon.home), daemon.home / "gate"
        http.send(file("a.sh", f"until [ -e {gate} ]; do sleep 0.02; done\n".encode()))
        wait_until(lambda: http.get("/v1/status").json["running"] == 1, "it runs")
        daemon.running.terminate()
        wait_until(lambda: http.get("/readyz").status == 503, "no longer ready")
        refusal = http.get("/readyz")
        assert (refusal.code, refusal.json["detail"]) == ("not_ready", "the daemon is stopping")
        assert http.get("/healthz").status == 200
        assert value(http, "solvisor_health", state="stopping") == 1
        gate.touch()


@pytest.mark.parametrize("module", ["solvisor_service.cli", "solvisor_service.client", "solvisor_service.offline"])
def test_nobody_pays_for_what_only_a_scrape_needs(module: str) -> None:
    code = f"import sys, {module}; sys.exit('prometheus_client' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
