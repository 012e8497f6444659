"""A disk without room, or read-only: what was accepted is kept, nothing new is taken, and work goes on by itself."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from disk_kit import Tmpfs, mount, read_only, tmpfs, umount
from socket_kit import Answer, Http, file
from waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")

CONFIG = """
[daemon]
max_jobs = 2
stop_timeout = "10s"
RESERVE
[inbox]
settle = "0.1s"
rescan = "0.5s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""

Make = Callable[..., Daemon]
QUICK = "echo done > result.txt\n"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Tmpfs]:
    with tmpfs(tmp_path / "disk", "size=16m,nr_inodes=2000") as made:
        yield made


@pytest.fixture
def make(disk: Tmpfs, make_daemon: Make, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons on ``disk``; their console lies elsewhere."""
    made: list[Daemon] = []

    def make(reserve: str = "") -> Daemon:
        daemon = make_daemon(CONFIG.replace("RESERVE", reserve), str(disk.path / "home"))
        (daemon.home / "console.log").symlink_to(tmp_path / "console.log")
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()  # before its disk is taken away


def status(daemon: Daemon) -> dict[str, Any]:
    answer: dict[str, Any] = Http(daemon.home).get("/v1/status").json
    return answer


def submit(daemon: Daemon, text: str = QUICK) -> Answer:
    return Http(daemon.home).send(file("a.sh", text.encode()))


def held(daemon: Daemon) -> None:
    """Until the daemon knows that the disk is short."""
    wait_until(lambda: any("no job starts" in text for text in status(daemon)["problems"]), "it is told")


def drop_later(daemon: Daemon, count: int, text: str = QUICK) -> Callable[[], None]:
    """Files that lie ready beside the inbox; what is returned drops them, which takes no room."""
    aside = daemon.home / "aside"
    aside.mkdir()
    for n in range(count):
        (aside / f"{n}.sh").write_text(text)

    def drop() -> None:
        for n in range(count):
            (aside / f"{n}.sh").rename(daemon.home / "inbox" / f"{n}.sh")

    return drop


def all_succeeded(daemon: Daemon, count: int) -> None:
    found = daemon.wait_for(count)
    assert len(found) == count
    assert {(m["state"], len(m["attempts"])) for m in found.values()} == {("succeeded", 1)}


def gone(daemon: Daemon) -> bool:
    return os.listdir(daemon.home / "work") == [] and not any((daemon.home / "inbox").glob("*.sh"))


# --- bytes ----------------------------------------------------------------------------------------------------------


def test_fault_26_below_the_floor_no_job_starts_and_all_is_told(disk: Tmpfs, make: Make) -> None:
    daemon = make('disk_reserve = "4MiB"')
    daemon.start()
    assert status(daemon)["disk_reserve_bytes"] == 4 << 20
    disk.fill(leave=3 << 20)
    held(daemon)
    answer = submit(daemon)
    assert answer.status == 201, "above a quarter of the floor it is taken in"
    job = answer.json["id"]
    now = status(daemon)
    assert (now["health"], now["waiting_for"]) == ("degraded", [{"reason": "disk", "what": None, "jobs": 1}])
    told = Http(daemon.home).get(f"/v1/jobs/{job}/explain").json
    assert told["headline"] == "waits for free disk space."
    finding = told["findings"][0]
    assert (finding["reason"], finding["need"], finding["total"]) == ("disk", 4 << 20, 16 << 20)
    assert " MiB free on the disk, 4 MiB is kept free: remove old results" in finding["text"]
    assert Http(daemon.home).get("/v1/jobs").json["jobs"][0]["reason"] == "disk"
    assert daemon.events("attempt.started") == []
    disk.empty()
    all_succeeded(daemon, 1)
    daemon.wait_event("disk.enough")
    assert [len(daemon.events(name)) for name in ("disk.short", "disk.full", "disk.enough")] == [1, 0, 1]
    assert status(daemon)["health"] == "healthy"


@pytest.mark.parametrize("reserve", ["", "disk_reserve = 0"], ids=["floor", "no floor"])
def test_fault_26_what_is_dropped_on_a_full_disk_is_kept(disk: Tmpfs, make: Make, reserve: str) -> None:
    daemon = make(reserve)
    daemon.start()
    drop = drop_later(daemon, 20)
    disk.fill()
    if not reserve:
        held(daemon)
    drop()
    if reserve:  # it finds out by itself that nothing can be written
        wait_until(lambda: any("nothing can be recorded" in text for text in status(daemon)["problems"]), "told")
    else:
        wait_until(lambda: [drop["why"] for drop in status(daemon)["inbox"]] == 20 * ["disk"], "all 20 wait")
        assert os.listdir(daemon.home / "work") == [], "nothing is claimed"
        refused = submit(daemon)
        assert (refused.status, refused.code) == (507, "unavailable")
        assert "nothing is taken in now: 0 B free on the disk" in refused.json["detail"]
        assert submit(daemon, "").status == 507, "although it takes no room"
        assert os.listdir(daemon.home / "work") == []
    assert daemon.manifests() == {}
    disk.empty()
    all_succeeded(daemon, 20)
    wait_until(lambda: gone(daemon), "nothing is left behind")
    assert daemon.stop() == 0


def test_fault_26_killed_on_a_full_disk_it_finishes_all_in_the_next_life(disk: Tmpfs, make: Make) -> None:
    daemon = make("disk_reserve = 0")
    daemon.start()
    drop = drop_later(daemon, 10)
    disk.fill()
    drop()
    wait_until(lambda: any("nothing can be recorded" in text for text in status(daemon)["problems"]), "told")
    daemon.kill()
    daemon.start(ready=False)
    disk.empty()
    daemon.wait_ready()
    all_succeeded(daemon, 10)
    wait_until(lambda: gone(daemon), "nothing is left behind")


def test_fault_26_a_start_on_a_full_disk_waits_for_room(disk: Tmpfs, make: Make) -> None:
    daemon = make()
    daemon.start()
    drop = drop_later(daemon, 1)
    assert daemon.stop() == 0
    disk.fill()
    drop()
    daemon.start(ready=False)
    wait_until(lambda: "The disk is full; it starts once there is room." in daemon.console(), "it waits")
    disk.empty()
    daemon.wait_ready()
    all_succeeded(daemon, 1)


@pytest.mark.slow
def test_fault_26_a_start_that_waits_for_room_gets_it_from_retention(disk: Tmpfs, make: Make) -> None:
    daemon = make("disk_reserve = 0")
    daemon.start()
    daemon.drop("a.sh", "head -c 4194304 /dev/zero > big\n")
    all_succeeded(daemon, 1)
    daemon.drop("b.sh", "sleep 600\n")
    daemon.wait_event("attempt.started", 2)
    with contextlib.closing(sqlite3.connect(daemon.home / "state" / "solvisor.db")) as rows:
        # What is not recorded as published is left alone, and that is recorded when there is time.
        wait_until(lambda: rows.execute("SELECT count(*) FROM jobs WHERE published").fetchone() == (1,), "recorded")
        daemon.kill()
        config = daemon.home / "solvisor.toml"
        config.write_text(f'{config.read_text()}[retention]\nkeep_for = "1s"\n')
        rows.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # or the start would do so, and have room
        disk.fill()
        daemon.start()
    assert "nothing was changed; free some space" in daemon.console(), "it had to wait"
    assert os.listdir(daemon.home / "done") == []

    def running() -> list[int]:
        return [job["tries"] for job in Http(daemon.home).get("/v1/jobs?state=running").json["jobs"]]

    wait_until(lambda: running() == [2], "what was interrupted runs again")


def test_fault_26_drops_taken_by_an_earlier_life_outlast_many_starts_on_a_full_disk(disk: Tmpfs, make: Make) -> None:
    """To take them up again they are copied, and there is no room for that."""
    daemon = make("disk_reserve = 0")
    daemon.start()
    assert daemon.stop() == 0
    for n in range(3):
        folder = daemon.home / "work" / f"drop-{n:015d}" / "input"
        folder.mkdir(parents=True)
        (folder / "a.sh").write_text(QUICK + "#" * (3 << 20 if n == 1 else 0))
    disk.fill(leave=2 << 20)  # a start that waits for room to begin at all is another story
    for life in range(1, 5):
        daemon.start(ready=False)
        (told,) = daemon.wait_event("start.delayed", life)[life - 1 :]
        assert "No space left on device" in told["error"]
        daemon.kill()
    daemon.start(ready=False)
    daemon.wait_event("start.delayed", 5)
    disk.empty()
    daemon.wait_ready()
    all_succeeded(daemon, 3)
    assert len(daemon.events("start.delayed")) == 5, "it is told once in a life"
    assert not daemon.home.joinpath("state/suspects-claims.json").exists()


# --- inodes ---------------------------------------------------------------------------------------------------------


def test_fault_27_a_manifest_that_cannot_be_written_is_written_later(disk: Tmpfs, make: Make) -> None:
    """The job itself takes the last inode: its row is terminal, its result not yet in its place."""
    daemon = make("disk_reserve = 0")
    daemon.start()
    disk.fill_files(leave=300)
    greedy = "i=0; while true 2>/dev/null >$i; do i=$((i + 1)); done; exit 0"
    daemon.drop("a.sh", f"rm *.sh; exec sh -c '{greedy}'\n")  # nothing of it is left to give an inode back
    job = daemon.wait_event("job.not_published")[0]["id"]
    with sqlite3.connect(f"file:{daemon.home}/state/solvisor.db?mode=ro", uri=True) as rows:
        query = "SELECT state, published, body FROM jobs JOIN manifests USING (seq)"
        state, published, manifest = rows.execute(query).fetchone()
    rows.close()
    assert (state, published, daemon.manifests()) == ("succeeded", 0, {})
    now = status(daemon)
    assert (now["health"], now["collecting"]) == ("degraded", 1)
    assert any(f"{job} is finished but cannot be put in its place" in text for text in now["problems"])
    mount("-o", "remount,nr_inodes=4000", str(disk.path))
    all_succeeded(daemon, 1)
    assert (daemon.home / "done" / job / "manifest.json").read_bytes() == manifest
    wait_until(lambda: status(daemon)["health"] == "healthy", "all is well again")


def test_fault_28_without_inodes_nothing_is_taken_and_nothing_lost(disk: Tmpfs, make: Make) -> None:
    daemon = make()
    daemon.start()
    drop = drop_later(daemon, 5)
    disk.fill_files(leave=15)  # of 2,000 in all, 20 are kept
    held(daemon)
    job = submit(daemon).json["id"]
    (finding, *_) = Http(daemon.home).get(f"/v1/jobs/{job}/explain").json["findings"]
    assert finding["reason"] == "disk"
    assert "more files fit on the disk, room for 20 is kept: remove old results" in finding["text"]
    disk.fill_files()
    drop()
    wait_until(lambda: status(daemon)["inbox_total"] == 5, "all 5 wait")
    refused = submit(daemon)
    assert (refused.status, refused.code) == (507, "unavailable")
    assert os.listdir(daemon.home / "work") == [job]
    assert daemon.stop() == 0
    disk.fill_files()
    daemon.start(ready=False)
    wait_until(lambda: "The disk is full; it starts once there is room." in daemon.console(), "it waits")
    disk.empty()
    daemon.wait_ready()
    all_succeeded(daemon, 6)
    wait_until(lambda: gone(daemon), "nothing is left behind")


# --- read-only ------------------------------------------------------------------------------------------------------


def test_fault_30_a_read_only_home_takes_nothing_and_answers(disk: Tmpfs, make: Make, tmp_path: Path) -> None:
    daemon = make()
    daemon.start()
    back = tmp_path / "back"
    back.mkdir()
    mount("--bind", str(disk.path), str(back))
    try:
        gate = daemon.home / "gate"
        running = submit(daemon, f"until [ -e {gate} ]; do sleep 0.05; done; {QUICK}").json["id"]
        daemon.wait_event("attempt.started")
        with read_only(daemon.home):
            (back / "home" / "gate").touch()  # it ends now, and cannot be collected
            daemon.wait_event("job.collection_delayed")
            held(daemon)
            (back / "home" / "inbox" / "b.sh").write_text(QUICK)
            wait_until(lambda: status(daemon)["inbox_total"] == 1, "the drop waits")
            refused = submit(daemon)
            assert (refused.status, refused.code) == (507, "unavailable")
            assert "the file system of the home is read-only" in refused.json["detail"]
            assert os.listdir(back / "home" / "work") == [running]
            assert daemon.manifests() == {}
        all_succeeded(daemon, 2)
        wait_until(lambda: gone(daemon), "nothing is left behind")
        assert daemon.stop() == 0
    finally:
        umount(back)


def test_fault_30_what_the_kernel_made_read_only_ends_the_daemon_and_loses_nothing(
    make_daemon: Make, tmp_path: Path
) -> None:
    """As after an error of the disk: nothing reaches it any more, not even the database. Mounted anew, all goes on."""
    image, place = tmp_path / "image", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as made:
        made.truncate(32 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(image)], check=True)
    mount("-o", "loop,errors=remount-ro", str(image), str(place))
    daemon = None
    try:
        daemon = make_daemon(CONFIG.replace("RESERVE", ""), str(place / "home"))
        (daemon.home / "console.log").symlink_to(tmp_path / "console.log")
        daemon.start()
        os.sync()
        gate = tmp_path / "gate"
        job = submit(daemon, f"until [ -e {gate} ]; do sleep 0.02; done\n{QUICK}").json["id"]
        daemon.wait_event("attempt.started")
        mount("-o", "remount,abort", str(place))
        gate.touch()
        assert daemon.running.wait(30) == 75
        daemon.start(ready=False)
        assert daemon.running.wait(30) == 75, "a supervisor tries again"
        assert "Read-only file system; mend the disk, then start again" in daemon.console()
        umount(place)
        mount("-o", "loop", str(image), str(place))
        daemon.start()
        (found,) = daemon.wait_for(1).items()
        assert (found[0], found[1]["state"]) == (job, "succeeded")
        assert daemon.stop() == 0
    finally:
        if daemon is not None and daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
        umount(place)


def test_fault_31_folders_on_two_file_systems_are_refused(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG.replace("RESERVE", ""))
    with tmpfs(daemon.home / "work", "size=1m"):
        daemon.start(ready=False)
        assert daemon.running.wait(30) == 2
    assert "lie on different file systems (or one is a mount)" in daemon.console()
