"""An fsync that fails ends the daemon, and the next life recovers; one that is slow holds up nobody."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from disk_kit import mount, strace, tampered, tmpfs, umount
from socket_kit import Http, file
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 3
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""

Make = Callable[..., Daemon]

SCRIPT = "echo done > result.txt; echo said\n"

FSYNC_SECONDS = 0.3
"""What every fsync takes of a disk that is slow."""


def hashes_hold(daemon: Daemon) -> None:
    """Every file that a manifest names has the bytes it names."""
    for job, manifest in daemon.manifests().items():
        for fact in [*manifest["inputs"], *manifest["outputs"]]:
            data = (daemon.home / "done" / job / fact["path"]).read_bytes()
            assert hashlib.sha256(data).hexdigest() == fact["sha256"], fact


EIO = {
    "the folder of claims": ("work", 1),
    "the rows": ("state/solvisor.db-wal", 1),
    "the folder of results": ("done", 1),
    "any file": ("", 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("where", EIO)
def test_fault_29_an_fsync_that_fails_ends_the_daemon_and_nothing_is_lost(make_daemon: Make, where: str) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start()
    name, when = EIO[where]
    inject = ["-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:error=EIO:when={when}"]
    with tampered(daemon.running.pid, [*inject, *(["-P", str(daemon.home / name)] if name else [])]):
        for n in range(4):
            daemon.drop(f"{n}.sh", SCRIPT)
        assert daemon.running.wait(30) == 75
    last = daemon.events()[-1]
    assert last["event"] in ("daemon.not_durable", "daemon.failed"), last
    before = daemon.manifests()
    daemon.start()
    found = daemon.wait_for(4)
    assert before.items() <= found.items(), "what was published does not change"
    assert sorted(manifest["source"]["path"] for manifest in found.values()) == [f"{n}.sh" for n in range(4)]
    assert {manifest["state"] for manifest in found.values()} == {"succeeded"}
    hashes_hold(daemon)
    wait_until(lambda: os.listdir(daemon.home / "work") == [], "nothing is left")
    assert daemon.stop() == 0


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("lost", ["input", "output"])
def test_fault_29_what_a_failing_disk_did_not_take_is_written_again(
    make_daemon: Make, tmp_path: Path, lost: str
) -> None:
    """A disk that takes no more blocks for a while, as a thin one. What the kernel then remembers and the disk does not
    hold looks safe to the next life; only when the disk is read again it is missing.
    """
    place = tmp_path / "place"
    place.mkdir()
    gate = tmp_path / "gate"
    with tmpfs(tmp_path / "thin", "size=24m") as thin, contextlib.ExitStack() as stack:
        image = thin.path / "image"
        with image.open("wb") as made:
            made.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-O", "^has_journal", str(image)], check=True)
        mounting = ("-o", "loop,errors=continue", str(image), str(place))
        mount(*mounting)
        stack.callback(umount, place)
        daemon = make_daemon(CONFIG, str(place / "home"))
        stack.callback(lambda: daemon.kill() if daemon.running.poll() is None else None)
        (daemon.home / "console.log").symlink_to(tmp_path / "console.log")
        daemon.start()
        os.sync()
        if lost == "input":
            thin.fill()
            daemon.drop("a.sh", b"exit 0\n# " + os.urandom(400_000).hex().encode())
        else:
            daemon.drop("a.sh", f"head -c 1500000 /dev/urandom > big; until [ -e {gate} ]; do sleep 0.05; done\n")
            daemon.wait_event("attempt.started")
            wait_until(lambda: [*daemon.home.glob("work/*/output/big")], "it writes")
            thin.fill()
            gate.touch()
        assert daemon.running.wait(30) == 75
        thin.empty()
        daemon.start()
        assert daemon.wait_one()["state"] == "succeeded"
        assert daemon.stop() == 0
        umount(place)
        mount(*mounting)
        assert len(daemon.manifests()) == 1
        hashes_hold(daemon)


@pytest.mark.slow
def test_fault_33_the_loop_does_not_wait_for_a_slow_disk(make_daemon: Make) -> None:
    """Jobs are dropped, sent, run and asked for meanwhile."""
    daemon = make_daemon(CONFIG)
    slow = ["-e", "trace=fsync,fdatasync", "-e", f"inject=fsync,fdatasync:delay_enter={FSYNC_SECONDS * 1e6:.0f}"]
    daemon.start(through=strace("--seccomp-bpf", "-D", *slow))
    hurry(daemon.running.pid)
    http = Http(daemon.home)
    over = threading.Event()
    took: list[float] = []

    def ask() -> None:
        hurry(threading.get_native_id())
        while not over.is_set():
            begun = time.monotonic()
            assert http.get("/v1/status").status == 200
            took.append(time.monotonic() - begun)
            over.wait(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for n in range(4):
            daemon.drop(f"{n}.sh", SCRIPT)
        begun = time.monotonic()
        assert http.send(file("a.sh", SCRIPT.encode())).status == 201
        assert time.monotonic() - begun > 0.6, "the disk is slow: it waited for several fsyncs"
        daemon.wait_for(5)
    finally:
        over.set()
        asking.join()
    status: dict[str, Any] = http.get("/v1/status").json
    assert 0 < status["loop_lag_worst_seconds"] < 0.1 + kept_waiting(daemon.running.pid), status
    assert status["loop_lag_seconds"] == status["loop_lag_worst_seconds"]
    assert sorted(took)[len(took) * 95 // 100] < FSYNC_SECONDS, "nobody who asks waits for the disk"


def hurry(thread: int) -> None:
    """The disk is tested, not who else computes here."""
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, thread, -10)


def kept_waiting(pid: int) -> float:
    """For how many seconds in all the loop of a daemon could have run and got no processor."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
