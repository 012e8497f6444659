"""An inbox on a mount where others write unseen: no event ever comes, no lease can be trusted; claims are copies."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from inbox_kit import a_config, running
from solvisor.inbox import hints
from waiting import eventually, wait_until

if sys.platform != "linux":
    pytest.skip("FUSE is Linux", allow_module_level=True)


class Share(NamedTuple):
    """``mount`` shows what lies in ``source``, where others write."""

    source: Path
    mount: Path


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Share]:
    if os.geteuid() != 0 or shutil.which("bindfs") is None or not Path("/dev/fuse").exists():
        pytest.skip("needs root, bindfs and /dev/fuse; an inbox on /dev/shm and suppressed events stand in for it")
    share = Share(tmp_path / "source", tmp_path / "mount")
    for path in share:
        path.mkdir()
    done = subprocess.run(["bindfs", *share], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"bindfs cannot mount: {done.stderr.strip()}")
    wait_until(lambda: os.path.ismount(share.mount), "the mount")
    monkeypatch.setattr("solvisor.inbox.settle.QUIET_SECONDS", 0.6)
    monkeypatch.setattr("solvisor.inbox.QUIET_SECONDS", 0.6)
    yield share
    subprocess.run(["umount", "-l", share.mount], check=True)


async def test_fault_39_no_event_tells_of_what_is_written_behind_the_mount(share: Share) -> None:
    """What makes the other tests of this file worth anything."""
    fd = os.open(share.mount, os.O_RDONLY)
    try:
        async with hints.open_hints(share.mount) as told:
            told.follow("", fd)
            (share.source / "unseen").touch()
            assert (share.mount / "unseen").exists()
            assert not told.drain()
    finally:
        os.close(fd)


async def test_fault_39_a_file_without_events_is_found_by_the_rescan_and_claimed_by_copy(
    share: Share, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("solvisor.inbox.scan._GRAIN_SECONDS", 0.2)
    async with running(tmp_path, a_config(rescan="0.1s"), inbox=share.mount) as run:
        (share.source / "waits.txt").touch()
        await eventually(lambda: run.inbox.spared > 2, "the inbox is at rest")
        with (share.source / "a.inp").open("wb", buffering=0) as slow:
            for _ in range(5):
                slow.write(b"piece ")
                await run.wait_scans(1)
            assert not run.intakes, "it still grows, though no lease tells so"
        intake = await run.wait_job()
        assert run.claimed(intake, "a.inp") == b"piece " * 5
        assert [original.path for original in intake.spec.originals] == ["a.inp"]
        await eventually(lambda: not (share.source / "a.inp").exists(), "the original is removed")
        assert (run.home.work / intake.id / "input" / "a.inp").stat().st_dev != share.mount.stat().st_dev


async def test_fault_39_a_folder_without_events_is_claimed_whole(share: Share, tmp_path: Path) -> None:
    async with running(tmp_path, a_config(rescan="0.1s"), inbox=share.mount) as run:
        case = share.source / "case"
        (case / "sub").mkdir(parents=True)
        (case / "sub" / "mesh.inc").write_text("mesh")
        (case / "a.inp").write_text("x")
        intake = await run.wait_job()
        assert [fact.path for fact in intake.spec.inputs] == ["input/a.inp", "input/sub/mesh.inc"]
        await eventually(lambda: not case.exists(), "the original is removed")
