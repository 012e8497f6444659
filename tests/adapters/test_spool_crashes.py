"""Claims: a crash at every change to the disk, and what the next life makes of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from crash.points import Crash, crashed_at
from solvisor import failpoint
from solvisor.home import Home
from solvisor.spool import Claims, Take, Taken, files, flush
from spool_kit import NOBODY, a_home, contents, drop, fact, held, lay, needs_root, new_id, one, take, taken_up


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return a_home(tmp_path)


@pytest.fixture
def claims(home: Home) -> Claims:
    return Claims(home)


KINDS = ["file", "several", "folder"]
KINDS += [pytest.param(f"foreign {kind}", marks=needs_root) for kind in ("file", "several", "folder")]  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_at_any_point_leaves_the_drop_whole_in_one_place(tmp_path: Path, kind: str) -> None:
    for n in range(200):
        home = Home.at(tmp_path / str(n))
        home.prepare()
        wish = lay(home, kind)
        before = contents(home.inbox)
        crashed = crashed_at(n, lambda: Claims(home).claim_round([wish]))  # noqa: B023  called at once
        if not crashed:
            break
        taken = taken_up(Claims(home))
        folder = f"{wish.sources[0]}/" if wish.folder else f"{os.path.dirname(wish.sources[0])}/".lstrip("/")
        if not taken:
            assert contents(home.inbox) == before, n
            assert os.listdir(home.work) == [], n
            continue
        (answer,) = taken
        assert answer.problem is None, (n, answer)
        assert (answer.take.id, answer.take.sources) == (wish.id, wish.sources), n
        inside = contents(home.work / wish.id / "input")
        assert {folder + name: data for name, data in inside.items()} == before, n
        left = contents(home.inbox)
        assert not answer.originals
        assert left == {}, n
    else:
        pytest.fail("it never got through")
    assert n > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_during_recovery_is_recovered_from(tmp_path: Path, kind: str) -> None:
    """Crash at the m-th change of the recovery after a crash at the n-th of the claim."""
    step = 3
    for n in range(0, 200, step):
        home = Home.at(tmp_path / f"{n}")
        home.prepare()
        wish = lay(home, kind)
        if not crashed_at(n, lambda: Claims(home).claim_round([wish])):  # noqa: B023
            break
        for m in range(100):
            home = Home.at(tmp_path / f"{n}-{m}")
            home.prepare()
            wish = lay(home, kind)
            before = contents(home.inbox)
            assert crashed_at(n, lambda: Claims(home).claim_round([wish]))  # noqa: B023
            if not crashed_at(m, lambda: taken_up(Claims(home))):  # noqa: B023
                break
            taken = taken_up(Claims(home))
            assert all(answer.problem is None for answer in taken), (n, m, taken)
            inside = contents(home.work / wish.id / "input") if taken else {}
            assert sorted([*contents(home.inbox).values(), *inside.values()]) == sorted(before.values()), (n, m)
            assert len(os.listdir(home.work)) == len(taken), (n, m)


def test_a_half_made_claim_whose_name_is_taken_again_is_kept_to_be_rejected(home: Home, claims: Claims) -> None:
    wish = lay(home, "several")
    fired = False
    for n in range(100):
        if not (home.inbox / "ccx" / "a.job.toml").exists():
            break
        fired = crashed_at(n, lambda: Claims(home).claim_round([wish]))
        if (home.inbox / "ccx" / "a.job.toml").exists():
            taken_up(claims)
    assert fired
    drop(home, "ccx/a.job.toml", b"dropped again")
    (answer,) = taken_up(claims)
    assert answer.problem is not None
    assert answer.problem[0] == "claim_interrupted"
    assert (home.work / wish.id / "input" / "a.job.toml").read_bytes() == b"a.job.toml"
    assert (home.inbox / "ccx" / "a.job.toml").read_bytes() == b"dropped again"


@pytest.mark.parametrize("kind", ["file", "several"])
def test_a_renaming_that_is_on_the_disk_by_half_is_taken_back(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Btrfs can keep the new name without the old one being gone, if the power fails between the two folders."""
    wish = lay(home, kind)
    before = contents(home.inbox)

    def cut(point: str) -> None:
        if point == "claim.moved_in":
            raise Crash(point)

    monkeypatch.setattr(failpoint, "_hook", cut)
    with pytest.raises(Crash):
        claims.claim_round([wish])
    monkeypatch.setattr(failpoint, "_hook", None)
    for source in wish.sources:
        os.link(home.work / wish.id / "input" / Path(source).name, home.inbox / source)
    assert taken_up(claims) == []
    assert contents(home.inbox) == before
    assert os.listdir(home.work) == []
    assert one(claims.claim_round([wish])).problem is None


def test_what_a_start_gives_back_is_durable_there_before_its_claim_goes(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    wish = lay(home, "several")
    before = contents(home.inbox)

    def cut(point: str) -> None:
        if point == "claim.file_moved":
            raise Crash(point)

    monkeypatch.setattr(failpoint, "_hook", cut)
    with pytest.raises(Crash):
        claims.claim_round([wish])
    monkeypatch.setattr(failpoint, "_hook", None)
    synced: list[int] = []
    flush_ = flush.flush

    def seen(fds: Sequence[int]) -> list[BaseException | None]:
        synced.extend(os.fstat(fd).st_ino for fd in fds)
        return flush_(fds)

    monkeypatch.setattr(flush, "flush", seen)
    assert taken_up(claims) == []
    assert contents(home.inbox) == before
    place = (home.inbox / wish.sources[0]).parent.stat().st_ino
    assert place in synced[: synced.index(home.work.stat().st_ino)]


def test_a_claim_that_lost_its_bytes_is_not_run(home: Home, claims: Claims) -> None:
    """After a power cut the names may be there and the contents not: the plan knows what they were."""
    wish = lay(home, "several")
    one(claims.claim_round([wish]))
    os.truncate(home.work / wish.id / "input" / "b.inp", 0)
    drop(home, "ccx/a.job.toml", b"so that it cannot go back")
    (answer,) = taken_up(claims)
    assert answer.problem is not None
    assert answer.problem[0] == "claim_interrupted"


@needs_root
@pytest.mark.parametrize("kind", ["file", "several", "folder"])
def test_a_copy_that_is_not_what_was_copied_is_neither_run_nor_thrown_away(
    home: Home, claims: Claims, kind: str
) -> None:
    """It was not durable when the power went, and may be all there is: its original is gone."""
    wish = lay(home, f"foreign {kind}")
    taken = one(claims.claim_round([wish]))
    assert claims.remove_original(taken.originals[0])
    path = home.work / wish.id / taken.files[0].path
    os.truncate(path, 0)
    (answer,) = taken_up(claims)
    assert answer.problem is not None
    assert answer.problem[0] == "claim_interrupted"
    assert path.exists()


@needs_root
@pytest.mark.parametrize("kind", ["file", "several", "folder"])
def test_a_copied_drop_whose_row_was_lost_is_taken_up_again(tmp_path: Path, kind: str) -> None:
    """The daemon removes originals once there is a row; it may have been interrupted over any of them."""
    removed = 1
    while True:
        home = Home.at(tmp_path / str(removed))
        home.prepare()
        claims = Claims(home)
        taken = one(claims.claim_round([lay(home, f"foreign {kind}")]))
        if removed > len(taken.originals):
            break
        for original in taken.originals[:removed]:
            assert claims.remove_original(original)
        before = contents(home.work / taken.take.id / "input")
        for _ in range(2):  # the second time what is there are copies of copies
            (again,) = taken_up(claims)
            assert again.problem is None
            assert (again.uid, again.files) == (NOBODY, taken.files)
            assert set(again.originals) == set(taken.originals[removed:])
            assert contents(home.work / taken.take.id / "input") == before
        for original in again.originals:
            assert claims.remove_original(original)
        assert not any(path.is_file() for path in home.inbox.rglob("*"))
        removed += 1
    assert removed > 1


@needs_root
def test_a_name_that_is_dropped_again_is_another_drop(home: Home, claims: Claims) -> None:
    wish = lay(home, "foreign file")
    taken = one(claims.claim_round([wish]))
    with (home.inbox / "beam.inp").open():  # so that nobody is given its inode, whoever makes files meanwhile
        assert claims.remove_original(taken.originals[0])
        drop(home, "beam.inp", b"another")
        (again,) = taken_up(claims)
    assert (again.problem, again.originals) == (None, ())
    assert contents(home.inbox) == {"beam.inp": b"another"}


def test_folders_with_a_row_and_folders_that_are_none_of_ours_are_left_alone(home: Home, claims: Claims) -> None:
    drop(home, "beam.inp")
    known = one(claims.claim_round([take("beam.inp")])).take.id
    (home.work / "notes").mkdir()
    assert taken_up(claims, {known}) == []
    assert sorted(os.listdir(home.work)) == sorted([known, "notes"])


def test_a_claim_of_an_earlier_life_is_given_with_its_route(home: Home, claims: Claims) -> None:
    wish = lay(home, "several")
    first = one(claims.claim_round([wish]))
    assert taken_up(claims) == [first]
    assert taken_up(claims) == [first], "asked again before its row was there"


def test_a_claim_that_cannot_be_read_is_set_aside_and_holds_up_no_other(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good, not_a_folder = sorted(new_id() for _ in range(3))
    for job_id in (bad, good):
        (home.work / job_id / "input").mkdir(parents=True)
        (home.work / job_id / "input" / "beam.inp").write_bytes(b"1")
    (home.work / not_a_folder).mkdir()
    (home.work / not_a_folder / "input").write_bytes(b"no folder")
    victim = (home.work / bad / "input" / "beam.inp").stat().st_ino
    real = files.open_file

    def refused(name: str, folder_fd: int) -> int:
        if os.stat(name, dir_fd=folder_fd).st_ino == victim:
            raise OSError(5, "Input/output error", name)
        return real(name, folder_fd)

    monkeypatch.setattr(files, "open_file", refused)
    before = len(os.listdir("/proc/self/fd"))
    first, second, third = taken_up(claims)
    assert len(os.listdir("/proc/self/fd")) == before
    for aside, job_id in ((first, bad), (third, not_a_folder)):
        assert aside.take.id == job_id
        assert aside.uid == os.geteuid()
        assert aside.problem is not None
        assert aside.problem[0] == "unreadable"
    assert first.problem is not None
    assert "beam.inp: Input/output error" in first.problem[1]
    assert second == Taken(Take(good, ("beam.inp",)), (fact("input/beam.inp", b"1"),), os.geteuid())


def test_a_drop_that_cannot_be_opened_to_be_synced_goes_back(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "a/a.inp", b"a")
    drop(home, "b.inp", b"b")
    real = files.Syncs.add

    def refused(self: files.Syncs, spots: Iterator[files.Spot]) -> None:
        found = list(spots)
        if any(name == "a.inp" for name, _ in found):
            raise OSError(24, "Too many open files")
        real(self, found)

    monkeypatch.setattr(files.Syncs, "add", refused)
    first, second = claims.claim_round([take("a", folder=True), take("b.inp")])
    assert held([first]).reason == "error"
    assert one([second]).files == (fact("input/b.inp", b"b"),)
    assert contents(home.inbox) == {"a/a.inp": b"a"}
    assert os.listdir(home.work) == [second.take.id if isinstance(second, Taken) else ""]


def test_a_file_that_came_back_under_both_names_is_one_drop(home: Home) -> None:
    """As Btrfs does it where the power fails between the fsyncs of a renaming: it is as if that had not begun."""
    drop(home, "beam.inp", b"1")
    drop(home, "beam.inp.ready", b"")
    before = contents(home.inbox)
    folder = home.work / take("beam.inp").id / "input"
    folder.mkdir(parents=True)
    os.link(home.inbox / "beam.inp", folder / "beam.inp")
    assert taken_up(Claims(home)) == []
    assert contents(home.inbox) == before
    assert (home.inbox / "beam.inp").stat().st_nlink == 1
    assert os.listdir(home.work) == []


def test_another_file_of_that_name_is_a_drop_of_its_own(home: Home) -> None:
    drop(home, "beam.inp", b"1")
    wish = take("beam.inp")
    folder = home.work / wish.id / "input"
    folder.mkdir(parents=True)
    (folder / "beam.inp").write_bytes(b"1")
    (answer,) = taken_up(Claims(home))
    assert answer.problem is None
    assert contents(home.inbox) == {"beam.inp": b"1"}
