"""SIGHUP: a daemon reads its configuration again, or ends with its terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from daemon import Daemon
from pool_kit import spare_range
from servers_kit import assert_clean, config
from waiting import wait_until

Make = Callable[..., Daemon]

SHELL = """
[daemon]
max_jobs = 1
cpus = 4
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
env_script = "setup.sh"
command = ["/bin/sh", "{input}"]
[notify]
command = ["/bin/sh", "-c", "echo $0 >>told", "{name}"]
on = ["failed"]
"""


def hup(daemon: Daemon, event: str = "config.reloaded") -> dict[str, Any]:
    """Have the configuration read again; the line of the log about that."""
    count = len(daemon.events(event))
    daemon.signal(signal.SIGHUP)
    return daemon.wait_event(event, count + 1)[-1]


def status(daemon: Daemon) -> dict[str, Any]:
    argv = [sys.executable, "-m", "solvisor_service.cli", "status", "--json", "--home", str(daemon.home)]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=True)
    loaded: dict[str, Any] = json.loads(done.stdout)
    return loaded


def test_fault_87_sighup_reads_the_configuration_again_and_a_bad_one_changes_nothing(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    (daemon.home / "setup.sh").write_text("export WHO=one\n")
    daemon.start()
    go = daemon.home / "go"
    wait_for_go = f"echo $WHO; until test -e {go}; do sleep 0.02; done\n"
    daemon.drop("first.sh", wait_for_go)
    daemon.wait_event("attempt.started")
    # A bad file: what was before goes on, and says so.
    good = daemon.config.read_text()
    daemon.config.write_text(good.replace("max_jobs = 1", "max_jobz = 2").replace("20s", "20 apples"))
    refused = hup(daemon, "config.refused")
    assert [fault.partition(": ")[2].partition(":")[0] for fault in refused["faults"]] == [
        "daemon.max_jobz",
        "daemon.stop_timeout",
    ]
    told = status(daemon)
    assert told["health"] == "degraded"
    assert "the configuration of before holds" in told["problems"][0]
    assert "20 apples" in told["problems"][0]
    # A script that fails is a fault of the file.
    daemon.config.write_text(good)
    (daemon.home / "setup.sh").write_text("echo no license >&2; exit 1\n")
    assert "no license" in hup(daemon, "config.refused")["faults"][0]
    # A good one: a place more, another solver, another inbox rule, and what the script says now.
    (daemon.home / "setup.sh").write_text("export WHO=two\n")
    more = '[solver.cat]\naccept = ["*.txt"]\ncommand = ["/bin/cat", "{input}"]\n'
    daemon.config.write_text(good.replace("max_jobs = 1", "max_jobs = 3").replace('["failed"]', '["succeeded"]') + more)
    read = hup(daemon)
    assert (read["solvers"], read["changed"], read["restart"]) == (["cat", "sh"], ["cat", "sh"], [])
    assert status(daemon)["problems"] == []
    daemon.drop("second.sh", wait_for_go)
    daemon.drop("third.txt", "third\n")
    daemon.wait_event("attempt.started", 3)
    go.touch()
    manifests = {manifest["name"]: manifest for manifest in daemon.wait_for(3).values()}
    logs = {name: (daemon.home / "done" / m["id"] / "stdout.log").read_text() for name, m in manifests.items()}
    assert logs == {"first.sh": "one\n", "second.sh": "two\n", "third.txt": "third\n"}
    daemon.wait_event("notify.sent", 3)
    # A solver that is gone: what waits for it waits on.
    daemon.config.write_text(good.replace("max_jobs = 1", "max_jobs = 3"))
    hup(daemon)
    daemon.drop("fourth.job.toml", 'solver = "cat"\ninputs = ["fourth.txt"]\n')
    daemon.drop("fourth.txt", "x")
    (rejected,) = (m for m in daemon.wait_for(4).values() if m["state"] == "rejected")
    assert "cat" in rejected["message"]
    assert daemon.stop() == 0


def test_fault_87_warm_servers_are_replaced_under_load_and_no_job_notices(make_daemon: Make, tmp_path: Path) -> None:
    ranges = [spare_range(20) for _ in range(5)]
    daemon = make_daemon(config(tmp_path / "marks", ranges[0], "max = 2"))
    daemon.start()
    for round_, ports in enumerate(ranges[1:]):
        for n in range(6):
            daemon.drop(f"{round_}-{n}.s", "go")
        daemon.wait_for(6 * round_ + 1)
        text = config(tmp_path / "marks", ports, "max = 2")
        daemon.config.write_text(f"{text}env = {{ ROUND = '{round_}' }}\n")
        hup(daemon)
    daemon.wait_for(24)
    daemon.drop("last.s", "go")
    manifests = daemon.wait_for(25)
    (last,) = (m for m in manifests.values() if m["source"]["path"] == "last.s")
    assert ranges[-1].first <= last["result"]["port"] <= ranges[-1].last
    assert b"ROUND=3" in Path(f"/proc/{last['result']['pid']}/environ").read_bytes()
    assert {m["state"] for m in manifests.values()} == {"succeeded"}
    assert daemon.events("request.defect") == daemon.events("server.illegal_event") == []
    wait_until(lambda: len(daemon.events("server.started")) - len(daemon.events("server.stopped")) <= 2, "old ones end")
    assert daemon.stop() == 0
    assert_clean(daemon)


def test_fault_65_sighup_during_a_stop_is_no_second_stop(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL.replace('env_script = "setup.sh"\n', ""))
    daemon.start()
    go = daemon.home / "go"
    daemon.drop("slow.sh", f"until test -e {go}; do sleep 0.02; done; echo done > out\n")
    daemon.wait_event("attempt.started")
    daemon.signal(signal.SIGTERM)
    daemon.wait_event("daemon.draining")
    hup(daemon, "config.not_read")
    go.touch()
    assert daemon.running.wait(30) == 0
    assert [manifest["state"] for manifest in daemon.manifests().values()] == ["succeeded"]
    assert daemon.events("daemon.stopping_now") == []


def test_fault_65_a_terminal_that_closes_drains_the_daemon_in_it(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL.replace('env_script = "setup.sh"\n', ""))
    master, terminal = pty.openpty()
    argv = [sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(daemon.home)]
    daemon.process = subprocess.Popen(
        argv, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True, preexec_fn=_take_terminal
    )
    os.close(terminal)
    daemon.wait_event("daemon.ready")
    hup(daemon)  # the terminal is there: somebody means the configuration
    daemon.drop("quick.sh", "sleep 0.3; echo done > out\n")
    daemon.wait_event("attempt.started")
    os.close(master)
    assert daemon.running.wait(30) == 0
    assert [manifest["state"] for manifest in daemon.manifests().values()] == ["succeeded"]
    assert daemon.events("daemon.draining")[0]["signal"] == "SIGHUP"


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
