"""An inbox without events, without its folder, without luck: nothing is lost, nothing is taken twice."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import anyio
import pytest
from structlog.testing import capture_logs

from inbox_kit import LIMITS, a_config, running
from solvisor.home import Home, IdMaker
from solvisor.inbox import Inbox, hints
from solvisor.model import Intake, Original
from solvisor.spool import Claims, NotDurable, NotYet, Take, Taken, files
from waiting import eventually

if sys.platform != "linux":
    pytest.skip("inotify is Linux", allow_module_level=True)

from solvisor import inotify


def refusing(code: int) -> Callable[..., int]:
    """A call to the kernel that it refuses."""

    def call(*_arguments: object) -> int:
        raise OSError(code, os.strerror(code))

    return call


class TestWithoutEvents:
    @pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSYS])
    async def test_fault_40_no_inotify_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        monkeypatch.setattr(inotify, "init", refusing(code))
        with capture_logs() as logs:
            async with running(tmp_path) as run:
                (run.folder / "a.inp").touch()
                await run.wait_job()
        assert [line["error"] for line in logs if line["event"] == "inbox.no_inotify"] == [os.strerror(code)]

    async def test_fault_40_no_watch_left(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(inotify, "add_watch", refusing(errno.ENOSPC))
        with capture_logs() as logs:
            async with running(tmp_path) as run:
                (run.folder / "ccx" / "a.inp").touch()
                await run.wait_job()
        told = [line for line in logs if line["event"] == "inbox.no_inotify"]
        assert {line["raise_limit"] for line in told} == {"fs.inotify.max_user_watches"}

    async def test_fault_39_events_that_never_come(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hints, "_MASK", inotify.DELETE_SELF | inotify.ONLYDIR)
        async with running(tmp_path) as run:
            await run.wait_scans()
            for n in range(50):
                (run.folder / f"{n}.inp").touch()
            await run.wait_intakes(50)

    async def test_watchfiles_in_place_of_inotify(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("watchfiles")
        monkeypatch.setattr("solvisor.inbox.open_hints", hints.watchfiles_hints)
        async with running(tmp_path, a_config(rescan="1h")) as run:
            (run.folder / "a.inp").touch()
            await run.wait_job()


class TestHints:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Iterator[tuple[Path, int]]:
        fd = os.open(tmp_path, os.O_RDONLY)
        yield tmp_path, fd
        os.close(fd)

    async def test_a_rename_is_told_from_a_write(self, folder: tuple[Path, int]) -> None:
        place, fd = folder
        async with hints.open_hints(place) as told:
            told.follow("r", fd)
            (place / "x.part").touch()
            (place / "x.part").rename(place / "renamed")
            (place / "written").write_text("x")
            assert told.drain()
            assert told.renamed == {("r", "renamed")}
            assert ("r", "written") in told.closed
            told.forget()
            assert not told.renamed

    @pytest.mark.parametrize("touch", ["append", "truncate", "replace"])
    async def test_a_rename_that_is_written_to_is_none(self, folder: tuple[Path, int], touch: str) -> None:
        place, fd = folder
        async with hints.open_hints(place) as told:
            told.follow("", fd)
            (place / "x.part").write_text("x")
            (place / "x.part").rename(place / "a")
            if touch == "append":
                with (place / "a").open("a") as file:
                    file.write("more")
            elif touch == "truncate":
                (place / "a").write_text("")
            else:
                (place / "a").unlink()
                (place / "a").touch()
            told.drain()
            assert not told.renamed

    async def test_mere_writing_is_not_worth_a_scan(self, folder: tuple[Path, int]) -> None:
        place, fd = folder
        with (place / "a").open("wb", buffering=0) as file:
            async with hints.open_hints(place) as told:
                told.follow("", fd)
                file.write(b"x")
                with anyio.fail_after(20):
                    await told.wait()
                assert not told.drain()

    async def test_fault_38_an_overflow_makes_no_rename_of_a_write(self, folder: tuple[Path, int]) -> None:
        place, fd = folder
        room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        if room > 100_000:
            pytest.skip(f"the queue of this kernel holds {room} events")
        async with hints.open_hints(place) as told:
            told.follow("", fd)
            (place / "x.part").touch()
            (place / "x.part").rename(place / "a")
            for n in range(room // 2 + 10):
                (place / str(n)).touch()
            assert told.drain()
            assert not told.renamed

    async def test_another_folder_of_the_name_is_followed(self, tmp_path: Path) -> None:
        async with hints.open_hints(tmp_path) as told:
            for name in ("one", "two"):
                (tmp_path / name).mkdir()
                fd = os.open(tmp_path / name, os.O_RDONLY)
                told.follow("r", fd)
                os.close(fd)
                told.drain()
            (tmp_path / "x").touch()
            (tmp_path / "x").rename(tmp_path / "one" / "a")
            (tmp_path / "y").touch()
            (tmp_path / "y").rename(tmp_path / "two" / "b")
            told.drain()
            assert told.renamed == {("r", "b")}

    async def test_a_drop_that_no_event_told_of_is_followed_by_another_look(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inotify, "init", refusing(errno.EMFILE))
        inbox = tmp_path / "home" / "inbox"
        inbox.mkdir(parents=True)
        (inbox / "a.inp").touch()
        async with running(tmp_path, a_config(rescan="1h")) as run:
            run.before_accept = (inbox / "b.inp").touch
            await eventually(lambda: len(run.intakes) >= 2, "the one that came meanwhile", 10.0)


class TestTheFolder:
    async def test_fault_44_renamed_away_it_is_made_anew_and_watched(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            run.folder.rename(tmp_path / "away")
            await eventually(lambda: run.has_routes, "the inbox is back")
            (run.folder / "a.inp").touch()
            (tmp_path / "away" / "b.inp").touch()
            assert (await run.wait_job()).spec.primary == "a.inp"

    async def test_fault_44_a_folder_made_anew_is_watched_though_it_has_the_inode_number_of_the_old_one(
        self, tmp_path: Path
    ) -> None:
        async with hints.open_hints(tmp_path) as told:
            with files.in_folder(tmp_path) as fd:
                told.follow("ccx", fd)
                ((_, watch),) = told._watches.values()  # type: ignore[attr-defined]
                inotify.remove_watch(told._fd, watch)  # type: ignore[attr-defined]  # as when a folder goes
                assert told.drain(), "that is news, too"
                told.forget()
                told.follow("ccx", fd)
                (tmp_path / "a.inp").touch()
                assert told.drain()
                assert told.closed == {("ccx", "a.inp")}

    async def test_a_share_that_is_not_mounted_is_not_papered_over(self, tmp_path: Path) -> None:
        share = tmp_path / "share"
        share.mkdir()
        async with running(tmp_path, a_config(rescan="50ms"), inbox=share) as run:
            share.rename(tmp_path / "away")
            await run.wait_scans(3)
            assert not share.exists()
            (tmp_path / "away").rename(share)
            (share / "a.inp").touch()
            await run.wait_job()

    async def test_a_share_that_goes_away_with_a_drop_is_not_looked_for_without_rest(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No event told of the drop, so that another look follows at once: that one alone."""
        monkeypatch.setattr(inotify, "init", refusing(errno.EMFILE))
        share = tmp_path / "share"
        share.mkdir()
        async with running(tmp_path, a_config(rescan="50ms"), inbox=share) as run:
            run.before_accept = partial(share.rename, tmp_path / "away")
            (share / "a.inp").touch()
            await run.wait_job()
            await eventually(lambda: "cannot be read" in (run.inbox.trouble or ""), "it is gone")
            before = run.inbox.scans
            for _ in range(100):
                await run.inbox._hand.do(lambda: None)
            assert run.inbox.scans < before + 20

    async def test_fault_44_replaced_by_another_it_is_that_one_that_counts(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(rescan="1h")) as run:
            other = tmp_path / "other"
            other.mkdir()
            run.folder.rename(tmp_path / "away")
            other.rename(run.folder)
            await eventually(lambda: run.has_routes, "the new inbox was seen")
            (run.home.root / "staged").touch()
            (run.home.root / "staged").rename(run.folder / "a.inp")
            await run.wait_job()

    async def test_unreadable_it_is_told_once_and_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with capture_logs() as logs:
            async with running(tmp_path, a_config(rescan="50ms")) as run:
                broken = threading.Event()
                real = files.open_folder
                failures = []

                def refusing(name: str, folder_fd: int | None = None) -> int:
                    if broken.is_set() and name == str(run.folder):
                        failures.append(name)
                        raise PermissionError(errno.EACCES, "no")
                    return real(name, folder_fd)

                monkeypatch.setattr(files, "open_folder", refusing)
                broken.set()
                (run.folder / "a.inp").touch()
                await eventually(lambda: len(failures) > 3, "it is tried again")
                assert not run.intakes
                broken.clear()
                await run.wait_job()
        assert len([line for line in logs if line["event"] == "inbox.unreadable"]) == 1


class TestClaims:
    async def test_fault_43_deleted_before_the_claim_it_is_ignored(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Claims.claim_round
        rounds: list[list[Taken | NotYet]] = []

        def too_late(claims: Claims, takes: Sequence[Take]) -> list[Taken | NotYet]:
            if not rounds:
                (tmp_path / "home" / "inbox" / "a.inp").unlink()
            rounds.append(real(claims, takes))
            return rounds[-1]

        monkeypatch.setattr(Claims, "claim_round", too_late)
        async with running(tmp_path) as run:
            (run.folder / "a.inp").write_text("first")
            await eventually(lambda: rounds, "a claim was tried")
            assert [answer.reason for answer in rounds[0] if isinstance(answer, NotYet)] == ["gone"]
            await run.wait_scans()
            assert not run.intakes
            (run.folder / "a.inp").write_text("second")
            assert run.claimed(await run.wait_job(), "a.inp") == b"second"

    async def test_cancelled_it_hands_over_the_round_that_is_under_way(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Claims.claim_round
        claiming, go_on = threading.Event(), threading.Event()

        def slow(claims: Claims, takes: Sequence[Take]) -> list[Taken | NotYet]:
            claiming.set()
            assert go_on.wait(20)
            return real(claims, takes)

        monkeypatch.setattr(Claims, "claim_round", slow)
        async with running(tmp_path) as run:
            (run.folder / "a.inp").touch()
            await eventually(claiming.is_set, "the claim is under way")
            run.tasks.cancel_scope.cancel()
            go_on.set()
        assert [intake.spec.primary for intake in run.jobs] == ["a.inp"]
        assert os.listdir(run.home.work) == [run.jobs[0].id]

    async def test_cancelled_it_claims_no_further_round(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("solvisor.inbox.ROUND_MAX", 2)
        async with running(tmp_path, a_config(settle="1h")) as run:
            run.before_accept = run.tasks.cancel_scope.cancel
            aside = run.home.root / "aside"
            aside.mkdir()
            for n in range(10):
                (aside / f"{n}.inp").touch()
                (run.folder / f"{n}.inp.ready").touch()
            aside_names = sorted(os.listdir(aside))
            for name in aside_names:
                (aside / name).rename(run.folder / name)
            await eventually(lambda: run.intakes, "the first round")
        assert 1 <= len(run.intakes) <= 2
        assert len(os.listdir(run.home.work)) == len(run.intakes)

    async def test_fault_29_a_disk_that_fails_ends_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def failing(*_: object) -> None:
            raise NotDurable(errno.EIO, "fsync failed")

        monkeypatch.setattr(Claims, "claim_round", failing)
        home = Home.at(tmp_path / "home")
        home.prepare()
        (home.inbox / "a.inp").touch()
        config = a_config()
        inbox = Inbox(home, lambda: config, lambda: LIMITS, Claims(home), IdMaker())

        async def accept(_: Sequence[Intake]) -> None:
            raise AssertionError("nothing was claimed")

        with pytest.raises(NotDurable):
            await inbox.run(accept)

    async def test_fault_26_a_full_disk_is_waited_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        real = Claims.claim_round
        tries: list[None] = []

        def full_at_first(claims: Claims, takes: Sequence[Take]) -> list[Taken | NotYet]:
            tries.append(None)
            if len(tries) < 3:
                return [NotYet(take.id, take.sources[0], "disk", "the disk is full") for take in takes]
            return real(claims, takes)

        monkeypatch.setattr(Claims, "claim_round", full_at_first)
        monkeypatch.setattr("solvisor.inbox._DISK_SECONDS", 0.2)
        with capture_logs() as logs:
            async with running(tmp_path) as run:
                (run.folder / "a.inp").touch()
                await run.wait_job()
        told = [line for line in logs if line["event"] == "inbox.waiting"]
        assert [line["on"] for line in told] == ["the disk is full"]


class TestOriginals:
    @pytest.fixture
    def elsewhere(self, tmp_path: Path) -> Iterator[Path]:
        """A folder on another file system, so that claims must copy."""
        shm = Path("/dev/shm")
        if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("no second file system at /dev/shm")
        folder = Path(tempfile.mkdtemp(dir=shm))
        (folder / "inbox").mkdir()
        yield folder / "inbox"
        shutil.rmtree(folder)

    async def test_copied_then_removed(self, tmp_path: Path, elsewhere: Path) -> None:
        async with running(tmp_path, inbox=elsewhere) as run:
            (run.folder / "a.inp").write_text("x")
            intake = await run.wait_job()
            assert [original.path for original in intake.spec.originals] == ["a.inp"]
            await eventually(lambda: not (run.folder / "a.inp").exists(), "the original is removed", 30)

    async def test_removed_only_once_the_job_is_durable(self, tmp_path: Path, elsewhere: Path) -> None:
        async with running(tmp_path, inbox=elsewhere) as run:
            there = []
            run.before_accept = lambda: there.append((run.folder / "a.inp").exists())
            (run.folder / "a.inp").write_text("x")
            await run.wait_job()
            assert there == [True]

    @pytest.mark.parametrize("shape", ["file", "folder"])
    async def test_that_cannot_be_removed_is_not_taken_again(
        self, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, shape: str
    ) -> None:
        real = Claims.remove_original
        tries = []

        def stubborn(claims: Claims, original: Original) -> bool:
            tries.append(original.path)
            if len(tries) < 4 and original.path.endswith("a.inp"):
                raise PermissionError(errno.EACCES, "no")
            return real(claims, original)

        monkeypatch.setattr(Claims, "remove_original", stubborn)
        with capture_logs() as logs:
            async with running(tmp_path, a_config(rescan="100ms"), inbox=elsewhere) as run:
                drop = run.folder / ("a.inp" if shape == "file" else "case")
                if shape == "folder":
                    (drop / "sub").mkdir(parents=True)
                    (drop / "sub" / "b.inc").touch()
                    (drop / "a.inp").touch()
                else:
                    drop.write_text("x")
                await run.wait_intakes(1)
                await eventually(lambda: not drop.exists(), "it is removed in the end", 30)
                await run.wait_scans()
                assert len(run.intakes) == 1
        assert len([line for line in logs if line["event"] == "inbox.not_removed"]) == 1

    async def test_changed_by_its_user_it_is_a_new_drop(
        self, tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = Claims.remove_original
        stuck = threading.Event()
        stuck.set()

        def stubborn(claims: Claims, original: Original) -> bool:
            if stuck.is_set():
                raise PermissionError(errno.EACCES, "no")
            return real(claims, original)

        monkeypatch.setattr(Claims, "remove_original", stubborn)
        async with running(tmp_path, inbox=elsewhere) as run:
            (run.folder / "a.inp").write_text("one")
            await run.wait_intakes(1)
            (run.folder / "a.inp").write_text("another")
            stuck.clear()
            _, second = await run.wait_intakes(2)
            assert run.claimed(second, "a.inp") == b"another"

    async def test_left_by_an_earlier_life_is_removed_before_the_first_scan(self, tmp_path: Path) -> None:
        home = Home.at(tmp_path / "home")
        home.prepare()
        (home.inbox / "a.inp").touch()
        found = (home.inbox / "a.inp").stat()
        pending = [Original("a.inp", found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)]
        async with running(tmp_path, pending=pending) as run:
            assert not (home.inbox / "a.inp").exists()
            await run.wait_scans()
            assert not run.intakes


async def test_what_waits_is_told_once(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with running(tmp_path, a_config(rescan="50ms")) as run:
            for name in ("b.txt", "a.txt"):
                (run.folder / name).touch()
            await eventually(lambda: len(run.inbox.waiting) == 2, "both wait")
            await run.wait_scans(5)
    told = [line for line in logs if line["event"] == "inbox.waiting"]
    assert sorted(name for line in told for name in line["names"]) == ["a.txt", "b.txt"]
    assert {line["why"] for line in told} == {"job_file"}
