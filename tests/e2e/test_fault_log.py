"""Log lines that cannot be written disturb no job, and are counted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import Daemon
from disk_kit import tmpfs
from socket_kit import Http, file
from waiting import wait_until

CONFIG = """
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""

Make = Callable[..., Daemon]


def start(daemon: Daemon, stderr: int | None) -> None:
    """A life whose standard error is ``stderr``, or closed."""
    words = [sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(daemon.home)]
    if stderr is None:
        words = ["/bin/sh", "-c", 'exec "$@" 2>&-', "sh", *words]
    daemon.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr)
    wait_until(lambda: (daemon.home / "run" / "solvisor.sock").exists(), "daemon ready")
    if stderr is not None:
        os.close(stderr)


def runs_a_job(daemon: Daemon) -> None:
    answer = Http(daemon.home).send(file("a.sh", b"exit 0\n"))
    assert answer.status == 201
    job = answer.json["id"]
    wait_until(lambda: (daemon.home / "done" / job / "manifest.json").exists(), "its result")


def lost(daemon: Daemon) -> int:
    return int(Http(daemon.home).get("/v1/status").json["log_lines_lost"])


@pytest.mark.parametrize("where", ["full device", "closed pipe", "closed"])
def test_fault_57_a_console_that_takes_nothing_disturbs_no_job(make_daemon: Make, where: str) -> None:
    daemon = make_daemon(CONFIG)
    if where == "full device":
        stderr: int | None = os.open("/dev/full", os.O_WRONLY)
    elif where == "closed pipe":
        reader, stderr = os.pipe()
        os.close(reader)
    else:
        stderr = None
    start(daemon, stderr)
    runs_a_job(daemon)
    if where == "closed":
        assert lost(daemon) == 0, "nobody wants them"
    else:
        wait_until(lambda: lost(daemon) >= len(daemon.events("job.accepted")) + 2, "they are counted")
        assert Http(daemon.home).get("/v1/status").json["health"] == "healthy"
        shown = subprocess.run(
            [sys.executable, "-m", "solvisor_service.cli", "status", "--home", str(daemon.home)],
            capture_output=True,
            text=True,
        )
        assert " lines of the log lost" in shown.stdout
    assert len(daemon.wait_event("job.succeeded")) == 1, "the file has them all"
    assert daemon.stop() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_fault_57_a_log_file_on_a_full_disk_disturbs_no_job(make_daemon: Make, tmp_path: Path) -> None:
    daemon = make_daemon(CONFIG)
    folder = daemon.home / "state" / "log"
    folder.mkdir(parents=True)
    with tmpfs(folder, "size=64k") as disk:
        daemon.start()
        disk.fill()
        for _ in range(30):  # what is left of its last page is used up
            runs_a_job(daemon)
            if lost(daemon):
                break
        counted = wait_until(lambda: lost(daemon), "lines are lost")
        assert Http(daemon.home).get("/v1/status").json["health"] == "healthy"
        disk.empty()
        runs_a_job(daemon)
        (told,) = daemon.wait_event("log.dropped")
        assert told["count"] >= counted
        assert daemon.stop() == 0
