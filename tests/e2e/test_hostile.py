"""Solvers and users that mean harm, as far as that is promised: a manifest is the daemon's own word."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from socket_kit import Http
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 2
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
[solver.sh.success]
outputs = ["out.txt"]
"""


def outcome(daemon: Daemon, name: str, script: str) -> tuple[Path, dict[str, Any]]:
    """The folder and the manifest of a job with this script."""
    before = daemon.manifests()
    daemon.drop(name, script)
    (job_id,) = daemon.wait_for(len(before) + 1).keys() - before.keys()
    (path,) = daemon.home.glob(f"*/{job_id}/manifest.json")
    return path.parent, json.loads(path.read_bytes())


def test_fault_83_a_manifest_that_a_solver_wrote_itself_is_not_believed(daemon: Daemon) -> None:
    forged = '{"state": "succeeded", "forged": true}'
    folder, manifest = outcome(daemon, "forge.sh", f"echo '{forged}' | tee manifest.json >../manifest.json; exit 3\n")
    assert (folder.parent.name, manifest["state"], manifest["cause"]) == ("failed", "failed", "exit")
    assert "forged" not in manifest
    assert (folder / "output" / "manifest.json").read_text() == f"{forged}\n"  # a file as any other


@pytest.mark.parametrize(
    "what", ["mkdir ../manifest.json", "ln -s /etc/passwd ../manifest.json", "mkfifo ../manifest.json"]
)
def test_fault_83_what_a_solver_put_in_the_place_of_the_manifest_gives_way(daemon: Daemon, what: str) -> None:
    before = Path("/etc/passwd").read_bytes()
    folder, manifest = outcome(daemon, "squat.sh", f"{what}; echo 42 >out.txt\n")
    assert (folder.parent.name, manifest["state"]) == ("done", "succeeded")
    assert (folder / "manifest.json").is_file()
    assert not (folder / "manifest.json").is_symlink()
    assert Path("/etc/passwd").read_bytes() == before


def test_fault_83_what_a_manifest_names_has_the_bytes_it_names(daemon: Daemon) -> None:
    late = "(trap '' TERM; exec >/dev/null 2>&1; while :; do echo late >>out.txt; echo late >>../input/good.sh; done) &"
    folder, manifest = outcome(daemon, "good.sh", f"echo 42 >out.txt\n{late}\nsleep 0.2\n")
    assert manifest["state"] == "failed"  # it reached back and changed its input as it was dropped
    for fact in manifest["outputs"]:
        content = (folder / fact["path"]).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (fact["size"], fact["sha256"]), fact["path"]
    wait_until(lambda: daemon.solver_processes() == [], "nobody is left who could write")


@pytest.mark.parametrize(
    "target",
    [
        "/RPC2",
        "/v1/supervisor.supervisord.options.warnings.linecache.os.system",
        "/v1/jobs.__class__",
        "/v1/__init__",
        "/v1/_status",
        "/v1/status.__globals__",
        "/v1/jobs/last/__class__",
        "/v1/jobs/last/manifest.__class__",
        "/v1/servers/sh/__init__",
        "/v1/..%2fv1%2fstatus",
    ],
)
def test_fault_82_only_the_routes_of_the_table_are_there(daemon: Daemon, target: str) -> None:
    http = Http(daemon.home)
    for method in ("GET", "POST"):
        answer = http.ask(method, target)
        assert (answer.status, answer.code) == (404, "no_such_route"), method
