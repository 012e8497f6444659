"""The clock of the machine is set, stands in the future, or stands still: deadlines, order and ids do not follow it."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from socket_kit import Http, file
from solvisor.home import _id_ms
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 1
stop_timeout = "20s"
[inbox]
settle = "0.2s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
[solver.short]
accept = ["*.short"]
command = ["/bin/sh", "{input}"]
timeout = "1s"
stop_grace = "0.2s"
"""

HOURS = 2 * 3600

Make = Callable[..., Daemon]


class Clock:
    """What a daemon takes for the time of day. Its files, its timers and its solvers keep to the real one.

    Not by libfaketime: that reads its file at every look at any clock, which costs a daemon ten times its own work.
    """

    def __init__(self, library: Path, path: Path) -> None:
        self._library = library
        self._path = path
        self.set(0)

    def set(self, seconds: int) -> None:
        """So many seconds before or after the real time, at once."""
        with open(os.open(self._path, os.O_WRONLY | os.O_CREAT), "wb", buffering=0) as file:
            file.write(struct.pack("q", seconds))

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "WALLCLOCK_FILE": str(self._path)}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here to make the clock with")
    made = tmp_path_factory.mktemp("clock") / "wallclock.so"
    source = Path(__file__).parent / "programs" / "wallclock.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-o", str(made), str(source)], check=True)
    return made


@pytest.fixture
def clock(library: Path, tmp_path: Path) -> Clock:
    return Clock(library, tmp_path / "clock")


def send(daemon: Daemon, text: str, name: str = "a.sh") -> str:
    answer = Http(daemon.home).send(file(name, text.encode()))
    assert answer.status == 201, answer
    return str(answer.json["id"])


def shown_time(daemon: Daemon) -> float:
    text: str = Http(daemon.home).get("/v1/status").json["now"]
    return datetime.fromisoformat(text).timestamp()


def times(manifest: dict[str, Any]) -> list[str]:
    """As they should follow each other."""
    (attempt,) = manifest["attempts"]
    return [manifest["submitted"], manifest["started"], attempt["started"], attempt["finished"], manifest["finished"]]


@pytest.mark.parametrize("jump", [HOURS, -HOURS], ids=["ahead", "back"])
def test_fault_48_a_clock_that_is_set_changes_no_deadline_order_or_id(
    make_daemon: Make, clock: Clock, tmp_path: Path, jump: int
) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start(env=clock.env)
    gate = tmp_path / "gate"
    jobs = [send(daemon, f"until [ -e {gate} ]; do sleep 0.02; done")]
    daemon.wait_event("attempt.started")
    jobs += [send(daemon, "sleep 60", "a.short"), send(daemon, "exit 0")]
    clock.set(jump)
    assert abs(shown_time(daemon) - time.time() - jump) < 60, "the daemon believes it"
    daemon.drop("dropped.sh", "exit 0\n")  # it settles by what is seen of it
    wait_until(lambda: len(daemon.events("job.accepted")) == 4, "the drop is taken")
    jobs += [entry["id"] for entry in daemon.events("inbox.claimed")]
    changes_its_input = "cd ../input; sed s/aaaa/bbbb/ a.sh > /tmp/$$; cat /tmp/$$ > a.sh; rm /tmp/$$ # aaaa"
    jobs.append(send(daemon, changes_its_input))
    gate.touch()
    began = time.monotonic()
    found = daemon.wait_for(5)
    assert time.monotonic() - began < 50
    first, timed_out, second, dropped, changed = (found[job] for job in jobs)
    assert [m["state"] for m in (first, second, dropped)] == ["succeeded"] * 3
    assert (timed_out["state"], timed_out["cause"]) == ("failed", "timeout")
    assert 0.9 < timed_out["run_seconds"] < 50
    assert (changed["code"], changed["state"]) == ("input_changed", "failed")
    assert [entry["id"] for entry in daemon.wait_event("attempt.started", 5)] == jobs, "first come, first served"
    assert [_id_ms(job) for job in jobs] == sorted(_id_ms(job) for job in jobs), "the time in an id never decreases"
    assert len(set(jobs)) == 5
    for manifest in found.values():
        assert times(manifest) == sorted(times(manifest))
        assert manifest["queue_seconds"] >= 0
        assert 0 <= manifest["run_seconds"] < 60
    clock.set(0)
    daemon.kill()
    daemon.start(env=clock.env)
    again = send(daemon, "exit 0")
    assert _id_ms(again) >= max(map(_id_ms, jobs)), "nor in another life"
    daemon.wait_for(6)
    listed = [row["id"] for row in Http(daemon.home).get("/v1/jobs").json["jobs"]]
    assert listed == [again, *reversed(jobs)]
    assert daemon.stop() == 0


def test_fault_49_a_daemon_that_stood_still_keeps_the_deadlines(make_daemon: Make) -> None:
    """Stopped, it cannot end a job; it does so as soon as it goes on. What ended by itself meanwhile is not charged.

    A machine that sleeps is another matter: then the clock of the deadlines (CLOCK_MONOTONIC) stands still as the
    solvers do, so a job loses nothing of its time.
    """
    daemon = make_daemon(CONFIG.replace("max_jobs = 1", "max_jobs = 2").replace('timeout = "1s"', 'timeout = "4s"'))
    daemon.start()
    gate = daemon.home / "gate"
    late = send(daemon, "sleep 60", "late.short")
    in_time = send(daemon, f"until [ -e {gate} ]; do sleep 0.02; done; echo done > result", "in-time.short")
    pids = {entry["id"]: Path(f"/proc/{entry['pid']}") for entry in daemon.wait_event("attempt.started", 2)}
    daemon.signal(signal.SIGSTOP)
    began = time.monotonic()
    gate.touch()
    wait_until(lambda: (pids[in_time] / "stat").read_text().split()[2] == "Z", "it ended by itself")
    wait_until(lambda: time.monotonic() > began + 4.1, "both deadlines are over")
    assert pids[late].exists()
    daemon.signal(signal.SIGCONT)
    went_on = time.monotonic()
    found = daemon.wait_for(2)
    assert time.monotonic() - went_on < 40
    assert (found[late]["state"], found[late]["cause"]) == ("failed", "timeout")
    assert (found[in_time]["state"], found[in_time]["cause"]) == ("succeeded", None)
    assert Http(daemon.home).get("/v1/status").json["loop_lag_worst_seconds"] > 0.5, "and it tells that it stood still"
    daemon.wait_event("loop.late")
    assert daemon.stop() == 0


def test_fault_50_times_in_the_future_hold_nothing_up(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start()
    future = datetime(2040, 1, 1).timestamp()  # noqa: DTZ001  any time will do
    for name in ("a.sh", "b.job.toml"):
        scratch = daemon.home / name
        scratch.write_text("exit 0\n" if name == "a.sh" else 'solver = "sh"\ninputs = ["c.txt"]\n')
        os.utime(scratch, (future, future))
        scratch.rename(daemon.home / "inbox" / name)
    folder = daemon.home / "case"
    folder.mkdir()
    (folder / "d.sh").write_text("exit 0\n")
    for path in (folder / "d.sh", folder):
        os.utime(path, (future, future))
    folder.rename(daemon.home / "inbox" / "case")
    (daemon.home / "inbox" / "c.txt").write_text("exit 0\n")
    os.utime(daemon.home / "inbox" / "c.txt", (future, future))
    found = daemon.wait_for(3, 20)
    assert {manifest["state"] for manifest in found.values()} == {"succeeded"}
