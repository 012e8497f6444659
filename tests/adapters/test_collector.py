"""Verdicts for many jobs at once: little in passing, much aside, and what fails for one is that job's alone."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from builders import NOON_US, make_facts, make_spec
from solvisor import collector
from solvisor import judge as module_judge
from solvisor.collector import SMALL, Collector
from solvisor.hand import Hand
from solvisor.home import Home
from solvisor.model import Attempt, Cause, Job, Settings, State, Verdict
from solvisor.spool import Results, files

TABLE: dict[str, Any] = {"kind": "command", "command": ["ccx"]}
IDS = [f"j{i}-0123456789abcde" for i in range(3)]


class Collected:
    """A home with jobs that ended, their collector, and the thread that judged each."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = Home.at(root / "home")
        self.home.prepare()
        self.collector = Collector(self.home, Results(self.home), Hand("the hand"))
        self.judged_by: dict[str, str] = {}
        self.before_judging: Callable[[str], object] = lambda _: None
        judge = module_judge.judge

        def noted(solver: Any, spec: Any, *args: Any, **more: Any) -> Verdict:
            self.judged_by[spec.name] = threading.current_thread().name
            self.silent = more["silent"]
            self.before_judging(spec.name)
            return judge(solver, spec, *args, **more)

        monkeypatch.setattr(collector, "judge", noted)

    def job(self, job_id: str, output: bytes = b"1", table: dict[str, Any] | None = None, code: int = 0) -> Job:
        path = self.home.work / job_id / "output" / "a.frd"
        path.parent.mkdir(parents=True)
        path.write_bytes(output)
        settings = Settings("command", table or TABLE)
        attempt = Attempt(1, job_id, "host", NOON_US, settings, facts=make_facts(code))
        spec = make_spec(job_id, inputs=())
        return Job(job_id, 1, State.COLLECTING, spec, NOON_US, attempts=(attempt,))


@pytest.fixture
def collected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Collected:
    return Collected(tmp_path, monkeypatch)


def sizes(verdicts: list[Verdict | None]) -> list[int]:
    return [verdict.outputs[0].size if verdict else -1 for verdict in verdicts]


async def test_little_is_judged_in_passing_and_much_aside(collected: Collected) -> None:
    batch = [collected.job(IDS[0]), collected.job(IDS[1], bytes(SMALL + 1)), collected.job(IDS[2], b"22")]
    assert sizes(await collected.collector.collect(batch)) == [1, SMALL + 1, 2]
    assert collected.judged_by[IDS[0]] == collected.judged_by[IDS[2]] == "the hand"
    assert collected.judged_by[IDS[1]] != "the hand"


async def test_much_does_not_hold_up_what_comes_after(collected: Collected) -> None:
    gate = threading.Event()
    collected.before_judging = lambda name: name == IDS[0] and gate.wait(20)
    large, small = collected.job(IDS[0], bytes(SMALL + 1)), collected.job(IDS[1])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(collected.collector.collect, [large])
        assert sizes(await collected.collector.collect([small])) == [1]
        assert not gate.is_set()
        gate.set()


async def test_one_that_cannot_be_kept_holds_up_no_other(collected: Collected, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = [collected.job(job_id, job_id.encode()) for job_id in IDS]
    victim = (collected.home.work / IDS[1] / "output" / "a.frd").stat().st_ino
    opened: list[int] = []
    real = files.open_file

    def refused(name: str, folder_fd: int) -> int:
        inode = os.stat(name, dir_fd=folder_fd).st_ino
        opened.append(inode)
        if inode == victim and opened.count(inode) == 2:  # first to be hashed, then to be synced
            raise OSError(errno.EMFILE, "Too many open files")
        return real(name, folder_fd)

    monkeypatch.setattr(files, "open_file", refused)
    first, second, third = await collected.collector.collect(batch)
    assert opened.count(victim) == 2
    assert first is not None
    assert second is None, "the machine's trouble, so it is tried again"
    assert third is not None


async def test_what_is_in_doubt_is_copied_aside(collected: Collected) -> None:
    path = collected.home.work / IDS[0] / "output" / "a.frd"
    job = collected.job(IDS[0])
    before = path.stat().st_ino
    collected.collector.doubt([IDS[0]])
    assert sizes(await collected.collector.collect([job])) == [1]
    assert path.stat().st_ino != before
    assert collected.judged_by[IDS[0]] != "the hand"
    again = path.stat().st_ino
    await collected.collector.collect([job])
    assert path.stat().st_ino == again, "once"


async def test_an_empty_log_is_not_read_to_judge_by(collected: Collected) -> None:
    job = collected.job(IDS[0])
    (collected.home.work / IDS[0] / "stdout.log").write_bytes(b"said")
    (collected.home.work / IDS[0] / "stderr.log").touch()
    (verdict,) = await collected.collector.collect([job])
    assert verdict is not None
    assert verdict.log_tail == "said"
    assert collected.silent == {"stderr.log"}


async def test_each_is_judged_by_its_own_table(collected: Collected) -> None:
    tables = [TABLE, TABLE | {"success": {"exit": [0, 3]}}, dict(TABLE)]
    batch = [collected.job(job_id, table=table, code=3) for job_id, table in zip(IDS, tables, strict=True)]
    causes = [verdict and verdict.cause for verdict in await collected.collector.collect(batch)]
    assert causes == [Cause.EXIT, None, Cause.EXIT]
