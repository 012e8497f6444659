"""An inbox with very much in it: what waits costs next to nothing, a burst overflows the queue of events, no stall."""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from inbox_kit import a_config, running
from solvisor.config import Config
from solvisor.home import Home
from solvisor.inbox.hints import Hints
from solvisor.inbox.scan import SURE_SECONDS, Scanner, Survey
from solvisor.spool import files
from waiting import eventually


class Idle:
    """A scanner and its clock, on an inbox in which things wait."""

    def __init__(self, root: Path) -> None:
        self.home = Home.at(root / "home")
        self.home.prepare()
        self.inbox = self.home.inbox
        self.config = a_config()
        self.hints = Hints()
        self.scanner = Scanner(self.home, self.hints)
        self.now = 0.0

    def scan(self) -> Survey:
        return self.scanner.scan(self.config, lambda *_: None, lambda *_: False, self.now)

    def is_same(self, config: Config | None = None) -> bool:
        return self.scanner.is_same(config or self.config, self.now)

    def settle(self) -> Survey:
        """Scan until nothing but time is waited for."""
        for _ in range(4):
            self.scan()
            self.now += 2.0
        survey = self.scan()
        self.now += 2.0
        return survey


@pytest.fixture
def idle(tmp_path: Path) -> Idle:
    idle = Idle(tmp_path)
    idle.scan()
    for n in range(3):
        (idle.inbox / f"{n}.txt").touch()
        (idle.inbox / "ccx" / f"{n}.inp.part").touch()
        (idle.inbox / "ccx" / f"{n}.inp").touch()
    survey = idle.settle()
    assert {wait.why for _, wait in survey.waits} == {"job_file", "held"}
    assert idle.is_same()
    return idle


CHANGES: dict[str, Callable[[Idle], object]] = {
    "a new file": lambda idle: (idle.inbox / "new.inp").touch(),
    "a new file in a route": lambda idle: (idle.inbox / "ccx" / "new.inp").touch(),
    "a new name": lambda idle: (idle.inbox / "0.txt").rename(idle.inbox / "0.inp"),
    "one less": lambda idle: (idle.inbox / "ccx" / "0.inp.part").unlink(),
    "another file of the name": lambda idle: (idle.inbox / "0.txt").replace(idle.inbox / "1.txt"),
    "a route less": lambda idle: (idle.inbox / "any").rmdir(),
    "a route replaced": lambda idle: (idle.inbox / "any").rename(idle.inbox / "many"),
    "the inbox renamed": lambda idle: idle.inbox.rename(idle.home.root / "away"),
}


class TestWhatWaitsIsNotLookedAtAgainAndAgain:
    def test_fault_47_a_look_costs_a_few_calls_however_much_waits(
        self, idle: Idle, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real, calls = os.stat, []

        def stat(*args: object, **named: object) -> os.stat_result:
            calls.append(args)
            return real(*args, **named)  # type: ignore[arg-type]

        with monkeypatch.context() as patch:
            patch.setattr(os, "stat", stat)
            patch.setattr(os, "listdir", None)
            patch.setattr(os, "scandir", None)
            assert idle.is_same()
        assert len(calls) == 1 + len(idle.config.solver)

    @pytest.mark.parametrize("change", CHANGES)
    def test_fault_39_whatever_changes_the_names_is_seen_without_events(self, idle: Idle, change: str) -> None:
        CHANGES[change](idle)
        assert not idle.is_same()

    def test_fault_44_another_inbox_of_the_name_is_seen(self, idle: Idle) -> None:
        idle.inbox.rename(idle.home.root / "away")
        idle.inbox.mkdir()
        for solver in idle.config.solver:
            (idle.inbox / solver).mkdir()
        assert not idle.is_same()
        idle.settle()
        assert idle.is_same()

    def test_news_another_configuration_and_time_end_it(self, idle: Idle) -> None:
        assert not idle.is_same(a_config())
        idle.hints.news = True
        assert not idle.is_same()
        idle.hints.news = False
        assert idle.is_same()
        idle.now += SURE_SECONDS
        assert not idle.is_same()

    def test_times_of_folders_are_not_trusted_before_they_can_differ(self, tmp_path: Path) -> None:
        """A share may tell times to 2 s: what comes within them changes none."""
        idle = Idle(tmp_path)
        idle.scan()
        idle.now += 2.0
        idle.scan()
        assert not idle.is_same()
        idle.now += 2.0
        idle.scan()
        assert idle.is_same()

    @pytest.mark.parametrize("kind", ["second name", "named", "folder", "still growing"])
    def test_what_may_change_elsewhere_is_looked_at(self, idle: Idle, kind: str) -> None:
        """A second name goes away in another folder; what a folder holds does not show outside."""
        if kind in ("second name", "named"):
            (idle.home.root / "other").touch()
            (idle.inbox / "a.inp").hardlink_to(idle.home.root / "other")
            if kind == "named":
                (idle.inbox / "a.job.toml").write_text('inputs = ["a.inp"]')
        elif kind == "folder":
            (idle.inbox / "case").mkdir()
        else:
            for _ in range(8):
                (idle.inbox / "0.txt").write_text(f"{idle.now}")
                idle.scan()
                idle.now += 0.05
            assert not idle.is_same()
            return
        idle.settle()
        assert not idle.is_same()

    async def test_fault_47_an_idle_inbox_scans_no_more(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("solvisor.inbox.scan._GRAIN_SECONDS", 0.2)
        async with running(tmp_path, a_config(rescan="20ms")) as run:
            for n in range(500):
                (run.folder / f"{n}.txt").touch()
            await eventually(lambda: run.inbox.spared > 3, "scans are spared")
            scans = run.inbox.scans
            await run.wait_scans(10)
            assert run.inbox.scans == scans
            assert len(run.inbox.waiting) == 500
            (run.folder / "a.inp").touch()
            await run.wait_job()


class Lag:
    """How long the loop was kept from going on at most: processor seconds that the other threads had meanwhile.

    Not by the clock: on a machine with much else to do every program is late.
    """

    worst = 0.0

    async def measure(self) -> None:
        while True:
            began = time.process_time()
            await anyio.sleep(0.005)  # noqa: TID251  what is measured
            self.worst = max(self.worst, time.process_time() - began)


@contextlib.asynccontextmanager
async def lag_measured() -> AsyncIterator[Lag]:
    lag = Lag()
    gc.freeze()  # what earlier tests left is not to be collected now
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lag.measure)
            yield lag
            tasks.cancel_scope.cancel()
    finally:
        gc.unfreeze()


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux")
async def test_fault_38_a_burst_that_overflows_the_queue_of_events_is_taken_whole(tmp_path: Path) -> None:
    """Some hundred files, each touched so often, while the engine is busy, that most of the events are lost."""
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if room > 100_000:
        pytest.skip(f"the queue of this kernel holds {room} events")
    count = 300
    names = [f"{n}.inp" for n in range(count)]
    async with running(tmp_path) as run:

        def burst() -> None:
            """Called in the midst of a round, when nobody reads events."""
            if not run.intakes:
                for name in itertools.islice(itertools.cycle(names), room + count):
                    os.close(os.open(run.folder / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND))

        run.before_accept = burst
        (run.folder / "first.inp").touch()
        await run.wait_intakes(1 + count, 60)
        await run.wait_scans()
        assert sorted(intake.spec.primary for intake in run.jobs) == sorted(["first.inp", *names])
        assert len({intake.id for intake in run.intakes}) == 1 + count
        assert max(run.rounds) <= 512


BOMBS = {
    "dotted": b"a" + b".a" * 32_000 + b" = 1",
    "nested": b"a = " + b"[" * 65_000,
    "lines": b"[" + b"\n" * 65_000,
    "keys": b"\n".join(b"k%d = 1" % n for n in range(8000))[: 64 << 10],
    "tables": b"\n".join(b"[t%d]" % n for n in range(7500))[: 64 << 10],
    "huge": b"#" * (8 << 20),
    "digits": b"a = " + b"9" * 65_000,
    "not TOML": b'{"inputs": ["a.inp"], "depth": ' + b"[" * 100_000,
    "nothing": b"",
    "noise": bytes(range(256)) * 200,
}


async def test_fault_75_parser_bombs_are_rejected_at_once_and_the_loop_is_free(tmp_path: Path) -> None:
    async with running(tmp_path) as run, lag_measured() as lag:
        aside = run.home.root / "aside"
        aside.mkdir()
        for name, data in BOMBS.items():
            (aside / f"{name}.job.toml").write_bytes(data)
        used, lag.worst = time.process_time(), 0.0
        for path in aside.iterdir():
            path.rename(run.folder / path.name)
        for intake in await run.wait_intakes(len(BOMBS)):
            assert intake.refusal is not None
            assert intake.refusal[0].startswith("job_file") or intake.spec.source.path == "nothing.job.toml"
            assert len(intake.refusal[1]) < 12_000
        assert time.process_time() - used < len(BOMBS)
        assert lag.worst < 0.3, "the plain parser holds it for seconds"


async def test_fault_75_only_toml_is_read_and_only_so_much_of_it(tmp_path: Path) -> None:
    """There are no job files in JSON or YAML: such a file is an input like any other, or nobody's."""
    with capture_logs() as logs:
        async with running(tmp_path) as run:
            (run.folder / "a.job.json").write_text('{"inputs": ["a.inp"]}')
            (run.folder / "a.job.yaml").write_text("inputs: [a.inp]")
            await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["job_file"] * 2, "nobody's files")
            (run.folder / "a.inp").touch()
            assert (await run.wait_job()).spec.primary == "a.inp"
    assert not [line for line in logs if line["log_level"] == "error"]


class TestRoutesThatAreEmpty:
    """A scan asks each for its times, and lists those that changed, or could have."""

    @pytest.fixture
    def listed(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        inodes: list[int] = []
        names_in = files.names_in

        def noted(folder_fd: int) -> list[str]:
            inodes.append(os.fstat(folder_fd).st_ino)
            return names_in(folder_fd)

        monkeypatch.setattr(files, "names_in", noted)
        return inodes

    def test_they_are_not_listed_again(self, idle: Idle, listed: list[int]) -> None:
        idle.scan()
        assert sorted(listed) == sorted(path.stat().st_ino for path in (idle.inbox, idle.inbox / "ccx"))

    @pytest.mark.parametrize("change", [name for name in CHANGES if "route" in name])
    def test_but_when_they_changed(self, idle: Idle, listed: list[int], change: str) -> None:
        CHANGES[change](idle)
        idle.scan()
        assert len(set(listed)) >= 2
        names = {drop.pick.names[0] for drop in idle.settle().drops}
        assert names == ({"new.inp"} if change == "a new file in a route" else set())

    def test_a_file_is_found_in_one_that_was_empty(self, idle: Idle, listed: list[int]) -> None:
        (idle.inbox / "any" / "a.dat").touch()
        assert [(drop.folder, drop.pick.names) for drop in idle.settle().drops] == [("any", ("a.dat",))]
        assert (idle.inbox / "any").stat().st_ino in listed

    def test_times_that_are_young_tell_nothing(self, tmp_path: Path, listed: list[int]) -> None:
        idle = Idle(tmp_path)
        idle.scan()
        for seconds, again in ((2.0, True), (2.0, True), (1.0, False)):
            listed.clear()
            idle.now += seconds
            idle.scan()
            assert (len(listed) > 1) == again

    def test_after_a_while_they_are_listed_all_the_same(self, idle: Idle, listed: list[int]) -> None:
        idle.now += SURE_SECONDS
        idle.scan()
        assert len(listed) == 1 + len(idle.config.solver)
