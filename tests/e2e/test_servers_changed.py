"""The file of a warm function is edited while the daemon runs: from then on every job is done by the new code."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from daemon import Daemon, Manifest
from servers_kit import assert_clean, drop_all
from waiting import wait_until

if sys.platform == "win32":
    pytest.skip("a daemon of Linux", allow_module_level=True)

CONFIG = f"""
[daemon]
max_jobs = 2
cpus = 2
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.post]
kind = "python"
accept = ["*.txt"]
call = "post.py:process"
python = "{sys.executable}"
servers = {{ HOW, heartbeat = "1h" }}
"""

# A job whose text is a folder makes "begun" there and waits for "go on".
POST = """
import os
import time
from pathlib import Path

VERSION = "{version}"


def process(job):
    text = job.input.read_text().strip()
    if text != "go":
        Path(text, "begun").touch()
        while not Path(text, "go on").exists():
            time.sleep(0.01)
    return {{"version": VERSION, "pid": os.getpid()}}
"""


def write(daemon: Daemon, version: str) -> str:
    """Put a version of the function in place as an editor does; what a manifest calls it."""
    text = POST.format(version=version)
    scratch = daemon.home / "post.py~"
    scratch.write_text(text)
    scratch.rename(daemon.home / "post.py")
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def started(home: Path, servers: str) -> Daemon:
    daemon = Daemon(home, CONFIG.replace("HOW", servers))
    write(daemon, "old")
    daemon.start()
    return daemon


def by_name(daemon: Daemon, count: int) -> dict[str, Manifest]:
    return {manifest["name"]: manifest for manifest in daemon.wait_for(count).values()}


def test_no_job_is_done_by_old_code_once_the_file_was_changed(tmp_path: Path) -> None:
    daemon = started(tmp_path / "home", "min = 2, max = 2")
    try:
        daemon.wait_event("server.ready", 2)
        drop_all(daemon, ["before.txt"])
        before = daemon.wait_one()
        assert before["result"]["version"] == "old"
        old = before["solver"]["version"]
        new = write(daemon, "newer")
        names = [f"after-{number}.txt" for number in range(12)]
        drop_all(daemon, names)
        manifests = by_name(daemon, 13)
        for name in names:
            manifest = manifests[name]
            assert manifest["state"] == "succeeded", manifest
            assert (manifest["result"]["version"], manifest["solver"]["version"]) == ("newer", new)
            for attempt in manifest["attempts"][:-1]:
                assert (attempt["cause"], attempt["code"]) == ("lost", "server_gone")
                assert attempt["message"].endswith("is to be replaced: post.py was changed")
        assert old not in (None, new)
        lost = sum(len(manifests[name]["attempts"]) - 1 for name in names)
        assert 1 <= lost <= 2, "each old worker was lent once at most"
        outdated = daemon.wait_event("server.outdated", 2)
        assert {event["server"] for event in outdated} == {"post-1", "post-2"}
        assert {event["file"] for event in outdated} == {str(daemon.home / "post.py")}
        assert daemon.events("server.failed") == [], "that is no failure"
    finally:
        assert daemon.stop() == 0
    assert_clean(daemon)


def test_a_job_that_runs_during_the_edit_is_finished_by_what_it_began_with(tmp_path: Path) -> None:
    daemon = started(tmp_path / "home", "max = 1")
    try:
        daemon.drop("during.txt", str(tmp_path))
        wait_until((tmp_path / "begun").exists, "the job runs", 60)
        new = write(daemon, "newer")
        drop_all(daemon, ["after.txt"])
        (tmp_path / "go on").touch()
        manifests = by_name(daemon, 2)
        during, after = manifests["during.txt"], manifests["after.txt"]
        assert (during["result"]["version"], len(during["attempts"])) == ("old", 1)
        assert during["solver"]["version"] != new
        assert (after["result"]["version"], after["solver"]["version"]) == ("newer", new)
        assert len(after["attempts"]) == 1, "the old worker was seen to be old when its job was over"
        assert after["attempts"][0]["server"] == "post-2"
        daemon.wait_event("server.stopped")
    finally:
        assert daemon.stop() == 0
    assert_clean(daemon)
