"""Programs that misbehave under a real daemon: each job ends as it should, nothing is left of it, the next one runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from process_kit import WITHOUT_A_CLUE, is_alive
from socket_kit import Http
from solvisor.process.cgroups import left_behind, remove_left_behind
from waiting import wait_until

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

CONFIG = """
[daemon]
max_jobs = 4
cpus = 4
stop_timeout = "0.2s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.3s"
retry = { max = 1, on = ["signal"], delay = "0.05s" }
[solver.brief]
accept = ["*.brief"]
command = ["/bin/sh", "{input}"]
stop_grace = "0.3s"
timeout = "2s"
[solver.tight]
accept = ["*.tight"]
command = ["/bin/sh", "{input}"]
memory_limit = "64MiB"
processes_limit = 20
retry = { max = 1, on = ["oom"], delay = "0.05s" }
"""

EAT = f"exec {sys.executable} -S -c 'x = b\"x\" * (400 << 20)'\n"
JOBS = {
    "fault 2.sh": "echo working; exit 3\n",
    "fault 3.sh": "kill -SEGV $$\n",
    "fault 4.brief": "trap '' TERM; while :; do sleep 0.05; done\n",
    "fault 5.sh": f"(setsid sleep 1000 &); ({WITHOUT_A_CLUE} &); until test -s pid; do sleep 0.01; done\n",
    "fault 6.sh": "sleep 1000 & exit 0\n",
    "fault 7.tight": "bomb() { bomb | bomb & bomb; }; bomb\n",
    "fault 8.brief": "kill -STOP $$\n",
    "fault 10.tight": EAT,
    "fault 11 time.brief": "ulimit -t 1; kill -XCPU $$\n",
    "fault 11 size.brief": "ulimit -f 1; exec head -c 1000000 /dev/zero > big\n",
    "mpirun.sh": "setsid sh -c 'sleep 1000 & sleep 1000 & wait' & env -i setsid setsid sleep 1000 & exit 0\n",
}


@pytest.fixture(scope="module")
def ends(daemon: Daemon) -> dict[str, Any]:
    """The manifests of all the jobs, which run side by side, by name."""
    # Without limits a fork bomb would be one.
    jobs = {name: script for name, script in JOBS.items() if limits(daemon) or not name.endswith(".tight")}
    for name, script in jobs.items():
        daemon.drop(name, script)
    found = {manifest["source"]["path"]: manifest for manifest in daemon.wait_for(len(jobs)).values()}
    assert daemon.solver_processes() == []
    return found


def end(manifest: dict[str, Any]) -> tuple[str, str | None, str | None]:
    return manifest["state"], manifest["cause"], manifest["code"]


def limits(daemon: Daemon) -> bool:
    return not [line for line in daemon.events("config.warning") if "not enforced" in line["text"]]


def test_fault_02_an_exit_code_and_the_end_of_the_log(ends: dict[str, Any]) -> None:
    manifest = ends["fault 2.sh"]
    assert end(manifest) == ("failed", "exit", "exit_3")
    assert (manifest["attempts"][0]["exit_code"], manifest["log_tail"]) == (3, "working")


def test_fault_03_a_crash_is_tried_again_where_that_is_wanted(ends: dict[str, Any]) -> None:
    manifest = ends["fault 3.sh"]
    assert end(manifest) == ("failed", "signal", "SIGSEGV")
    assert [attempt["signal"] for attempt in manifest["attempts"]] == [11, 11]


def test_fault_04_sigterm_ignored(ends: dict[str, Any]) -> None:
    assert end(ends["fault 4.brief"]) == ("failed", "timeout", "timeout")


def test_fault_05_escaped_from_session_parent_and_environment(daemon: Daemon, ends: dict[str, Any]) -> None:
    manifest = ends["fault 5.sh"]
    assert manifest["state"] == "succeeded"
    escaped = int((daemon.home / "done" / manifest["id"] / "output" / "pid").read_text())
    assert not is_alive(escaped)


def test_fault_05_groups_and_sessions_as_mpirun_makes_them(ends: dict[str, Any]) -> None:
    assert ends["mpirun.sh"]["state"] == "succeeded"


def test_fault_06_a_grandchild_that_holds_stdout(ends: dict[str, Any]) -> None:
    assert ends["fault 6.sh"]["state"] == "succeeded"


def test_fault_07_a_fork_bomb(daemon: Daemon, ends: dict[str, Any]) -> None:
    if not limits(daemon):
        pytest.skip("no cgroups with limits can be made here")
    manifest = ends["fault 7.tight"]
    assert manifest["state"] == "failed"
    assert "more processes and threads than processes_limit, 20" in manifest["message"]


def test_fault_08_a_stopped_program_has_its_timeout(ends: dict[str, Any]) -> None:
    assert end(ends["fault 8.brief"]) == ("failed", "timeout", "timeout")


def test_fault_10_too_much_memory(daemon: Daemon, ends: dict[str, Any]) -> None:
    if not limits(daemon):
        pytest.skip("no cgroups with limits can be made here")
    manifest = ends["fault 10.tight"]
    assert end(manifest) == ("failed", "oom", "oom")
    assert manifest["message"] == "it needed more memory than memory_limit, 64MiB, and the kernel killed it"
    assert [attempt["cause"] for attempt in manifest["attempts"]] == ["oom", "oom"], "it was tried again"
    for attempt in manifest["attempts"]:
        assert attempt["max_rss_source"] == "cgroup"
        assert attempt["max_rss_bytes"] <= 64 << 20


def test_fault_10_a_limit_that_nothing_enforces_is_told(daemon: Daemon) -> None:
    """In a place without any cgroups, as some containers are."""
    check = f"{sys.executable} -m solvisor_service.cli config check --home {daemon.home}"
    without = ["unshare", "--mount", "sh", "-c", f"umount --recursive /sys/fs/cgroup && exec {check}"]
    done = subprocess.run(without, capture_output=True, text=True, check=False, timeout=60)
    if "unshare" in done.stderr or "umount" in done.stderr:
        pytest.skip(f"cgroups cannot be taken away: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stderr.splitlines() if "not enforced" in line]
    assert [line.partition(" not enforced: ")[0] for line in told] == [
        "warning: memory_limit and processes_limit of solver tight are"
    ]


def test_fault_11_limits_of_time_and_size_are_named(ends: dict[str, Any]) -> None:
    assert ends["fault 11 time.brief"]["message"].startswith("killed by SIGXCPU: it used more processor time")
    assert ends["fault 11 size.brief"]["message"].startswith("killed by SIGXFSZ: a file grew over its limit")


def test_fault_63_kill_9_of_the_daemon_while_something_has_escaped(daemon: Daemon, ends: dict[str, Any]) -> None:
    daemon.drop("last.sh", f"({WITHOUT_A_CLUE} &); until test -s pid; do sleep 0.01; done; sleep 1000\n")

    def written() -> int:
        texts = [path.read_text() for path in daemon.home.glob("work/last-*/output/pid")]
        return int(texts[0]) if texts and texts[0].endswith("\n") else 0

    escaped = wait_until(written, "something has escaped")
    confined = "/solvisor-" in Path(f"/proc/{daemon.running.pid}/cgroup").read_text()
    daemon.kill()
    try:
        assert is_alive(escaped)
        daemon.start()
        if not confined:
            pytest.skip("no cgroups can be made here")
        assert not is_alive(escaped), "before the daemon is ready"
    finally:
        if is_alive(escaped):
            os.kill(escaped, signal.SIGKILL)


@pytest.mark.slow  # SIGKILL is given ten seconds before it counts as useless
def test_fault_09_what_takes_no_signal(make_daemon: Callable[..., Daemon], freezer: Path) -> None:
    daemon = make_daemon(CONFIG.replace("max_jobs = 4", "max_jobs = 2"))
    daemon.start()
    daemon.drop("stuck.sh", "echo $$ > pid; exec sleep 1000\n")
    daemon.wait_event("attempt.started")
    (written,) = wait_until(lambda: list(daemon.home.glob("work/stuck-*/output/pid")), "it runs")
    pid = int(wait_until(written.read_text, "its number"))
    (freezer / "cgroup.procs").write_text(str(pid))
    (freezer / "freezer.state").write_text("FROZEN")
    wait_until(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n", "it is frozen")
    http, job = Http(daemon.home), written.parts[-3]
    assert http.ask("POST", f"/v1/jobs/{job}/cancel").status == 200
    wait_until(lambda: http.ask("GET", "/v1/status").json["problems"], "the status names it")
    status = http.ask("GET", "/v1/status").json
    assert status["problems"] == [
        f"the processes of {job} (pid {pid}) would not die; its room stays taken until they do or the machine is "
        "started again"
    ]
    assert (status["jobs"]["used"], status["health"]) == (1, "degraded")
    daemon.drop("other.sh", "exit 0\n")
    wait_until(lambda: daemon.manifests("done"), "others are served")
    daemon.signal(signal.SIGTERM)
    assert daemon.running.wait(30) == 0, "a stop stays bounded"
    assert is_alive(pid)
    (freezer / "freezer.state").write_text("THAWED")
    home_id = tomllib.loads((daemon.home / "state" / "home-id").read_text())["id"]
    wait_until(lambda: not left_behind(home_id), "it is gone")
    remove_left_behind(home_id)
