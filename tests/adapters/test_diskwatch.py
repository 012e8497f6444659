"""The look at the disk: what it sees, how often, and that one which hangs holds up nobody."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import anyio
import pytest

from solvisor import diskwatch
from solvisor.disk import Disk
from solvisor.diskwatch import TROUBLE, DiskWatch, look
from waiting import eventually


def test_it_sees_the_file_system_of_the_folder(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    disk = look(tmp_path, "auto")
    assert disk.total_bytes == found.f_blocks * found.f_frsize
    assert disk.free_bytes == pytest.approx(found.f_bavail * found.f_frsize, rel=0.2)
    assert disk.total_files == found.f_files
    assert disk.reserve_bytes == min(1 << 30, disk.total_bytes // 20)
    assert look(tmp_path, 7).reserve_bytes == 7
    assert not disk.read_only


async def test_it_looks_again_and_again_and_survives_a_home_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskwatch, "SOONEST_SECONDS", 0.01)
    monkeypatch.setattr(diskwatch, "LATEST_SECONDS", 0.01)
    folder = tmp_path / "home"
    seen: list[Disk] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(DiskWatch(folder, lambda: "auto", seen.append, {}).run)
        folder.mkdir()
        await eventually(lambda: len(seen) > 2, "several looks")
        tasks.cancel_scope.cancel()


async def test_a_look_that_hangs_is_told_and_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskwatch, "HANGS_SECONDS", 0.02)
    monkeypatch.setattr(diskwatch, "SOONEST_SECONDS", 0.01)
    answers, calls = threading.Event(), threading.Semaphore(0)

    def hangs(folder: Path, setting: int) -> Disk:
        calls.release()
        assert answers.wait(20)
        return Disk(100, 50, 5)

    monkeypatch.setattr(diskwatch, "look", hangs)
    seen: list[Disk] = []
    trouble: dict[str, str] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(DiskWatch(tmp_path, lambda: 0, seen.append, trouble).run)
        await eventually(lambda: TROUBLE in trouble, "it is told")
        assert f"the disk of {tmp_path} does not answer" in trouble[TROUBLE]
        assert calls.acquire(blocking=False)
        another = await anyio.to_thread.run_sync(lambda: calls.acquire(timeout=0.3))
        assert not another, "one look at a time, however long it takes"
        assert seen == []
        answers.set()
        await eventually(lambda: seen, "it answers again")
        assert trouble == {}
        tasks.cancel_scope.cancel()


async def test_a_disk_that_hung_and_now_refuses_has_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diskwatch, "HANGS_SECONDS", 0.02)
    monkeypatch.setattr(diskwatch, "SOONEST_SECONDS", 0.01)
    answers = threading.Event()

    def refuses(folder: Path, setting: int) -> Disk:
        assert answers.wait(20)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(diskwatch, "look", refuses)
    trouble: dict[str, str] = {}
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(DiskWatch(tmp_path, lambda: 0, lambda _: None, trouble).run)
        await eventually(lambda: TROUBLE in trouble, "it is told")
        answers.set()
        await eventually(lambda: trouble == {}, "it is no trouble any more")
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("disk", "rest"),
    [
        (Disk(1 << 40, 1 << 39, 1 << 30), 10.0),
        (Disk(1 << 40, 5 << 30, 1 << 30), 2.0),
        (Disk(1 << 40, 1 << 30, 1 << 30), 0.5),
        (Disk(1 << 40, 0, 1 << 30), 0.5),
        (Disk(1 << 40, 1 << 39, 1 << 30, 10_000_000, 301_000), 3.0),
        (Disk(1 << 40, 1 << 39, 0, 10_000_000, 0), 0.5),
    ],
)
def test_the_less_room_the_sooner_it_looks_again(disk: Disk, rest: float) -> None:
    assert diskwatch._rest(disk) == rest
