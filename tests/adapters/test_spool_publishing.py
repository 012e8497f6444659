"""How a result comes into view: real folders, and a crash at every change to the disk."""

from __future__ import annotations

import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Literal

import pytest

from crash.points import crashed_at
from fsync_kit import fsync_by
from results_kit import JOB, MANIFEST, claimed, contents, full, prepared, write
from solvisor.home import Home
from solvisor.spool import NotDurable, Publication, Results, files


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return prepared(tmp_path / "home")


@pytest.mark.parametrize("target", ["done", "failed", "rejected"])
def test_a_folder_moves_to_its_target_with_its_manifest(
    home: Home, target: Literal["done", "failed", "rejected"]
) -> None:
    claimed(home, {"beam.inp": b"1", "claim.json": b"a user's own"})
    write(home.work / JOB / "claim.json", b"{}")
    (home.work / JOB / "staging.tmp").mkdir()
    assert Results(home).publish([Publication(JOB, target, MANIFEST)]) == ([JOB], {})
    assert contents(home.root / target / JOB) == {
        "input/beam.inp": b"1",
        "input/claim.json": b"a user's own",
        "manifest.json": MANIFEST,
    }
    assert not (home.work / JOB).exists()


@pytest.mark.parametrize("fails", [False, True])
def test_no_litter_is_published_whatever_went_wrong_in_this_life(
    home: Home, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    claimed(home, {"beam.inp": b"1"})
    write(home.work / JOB / "claim.json", b"{}")
    write(home.work / JOB / "manifest.tmp", b"a solver's")
    results = Results(home)
    results.stage(JOB, 1)
    if fails:
        with monkeypatch.context() as patch:
            patch.setattr(files, "write_all", full)
            done, refused = results.publish([Publication(JOB, "done", MANIFEST)])
        assert (done, [error.errno for error in refused.values()]) == ([], [errno.ENOSPC])
    assert results.publish([Publication(JOB, "done", MANIFEST)]) == ([JOB], {})
    assert sorted(os.listdir(home.done / JOB)) == ["input", "manifest.json", "output"]


def test_half_a_staging_is_not_published(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(home, {"beam.inp": b"1"})
    results = Results(home)
    results.stage(JOB, 1)
    with monkeypatch.context() as patch:
        patch.setattr(files, "copy_tree", full)
        patch.setattr(files, "discard", lambda *_: None)  # nor could it be removed
        with pytest.raises(OSError, match="No space left"):
            results.stage(JOB, 2)
    assert results.publish([Publication(JOB, "failed", MANIFEST)]) == ([JOB], {})
    assert "staging.tmp" not in os.listdir(home.failed / JOB)


def test_many_are_published_at_once_and_one_that_cannot_be_holds_up_no_other(home: Home) -> None:
    ids = [f"j{i}-0123456789abcde" for i in range(300)]
    for job_id in ids:
        (home.work / job_id / "input").mkdir(parents=True)
    write(home.done / ids[7] / "in the way", b"")
    write(home.done / ids[8], b"not even a folder")
    done, refused = Results(home).publish([Publication(i, "done", MANIFEST) for i in ids])
    assert done == [*ids[:7], *ids[9:]]
    assert refused.keys() == {ids[7], ids[8]}
    assert contents(home.done / ids[7]).keys() == {"in the way"}
    assert all((home.done / i / "manifest.json").read_bytes() == MANIFEST for i in done)
    (home.done / ids[8]).unlink()
    shutil.rmtree(home.done / ids[7])
    assert Results(home).publish([Publication(i, "done", MANIFEST) for i in ids[7:9]]) == (ids[7:9], {})
    assert os.listdir(home.work) == []


def test_a_target_that_is_no_folder_is_an_error_of_its_publications_alone(home: Home) -> None:
    other = "other-0123456789abcde"
    for job_id in (JOB, other):
        (home.work / job_id).mkdir()
    home.done.rmdir()
    home.done.write_bytes(b"in the way")
    batch = [Publication(JOB, "done", MANIFEST), Publication(other, "failed", MANIFEST)]
    published, refused = Results(home).publish(batch)
    assert published == [other]
    assert isinstance(refused[JOB], NotADirectoryError)
    home.done.unlink()
    assert Results(home).publish(batch) == ([JOB, other], {}), "and a target that was removed is made anew"
    assert contents(home.done / JOB) == {"manifest.json": MANIFEST}


def test_a_folder_that_was_removed_is_made_anew(home: Home) -> None:
    assert Results(home).publish([Publication(JOB, "failed", MANIFEST)]) == ([JOB], {})
    assert contents(home.failed / JOB) == {"manifest.json": MANIFEST}


def test_a_manifest_written_by_the_solver_is_replaced(home: Home, tmp_path: Path) -> None:
    for forged in ("file", "link", "folder"):
        shutil.rmtree(home.done / JOB, ignore_errors=True)
        path = home.work / JOB / "manifest.json"
        (home.work / JOB).mkdir()
        if forged == "file":
            path.write_bytes(MANIFEST.replace(b"succeeded", b"succeedxd"))
        elif forged == "link":
            path.symlink_to(write(tmp_path / "elsewhere", b"kept"))
        else:
            write(path / "x", b"")
        assert Results(home).publish([Publication(JOB, "done", MANIFEST)]) == ([JOB], {})
        assert (home.done / JOB / "manifest.json").read_bytes() == MANIFEST
        assert not (home.done / JOB / "manifest.json").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"


def test_a_manifest_that_is_visible_never_changes(home: Home) -> None:
    results = Results(home)
    (home.work / JOB).mkdir()
    results.publish([Publication(JOB, "done", MANIFEST)])
    before = (home.done / JOB / "manifest.json").stat()
    assert results.publish([Publication(JOB, "done", b"something else")]) == ([JOB], {})
    after = (home.done / JOB / "manifest.json").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_publishing_goes_on_after_a_crash_at_any_point(tmp_path: Path) -> None:
    ids = [f"j{i}-0123456789abcde" for i in range(3)]
    for n in range(100):
        home = prepared(tmp_path / str(n))
        for job_id in ids:
            write(home.work / job_id / "input" / "a.inp", b"1")
            write(home.work / job_id / "claim.json", b"{}")
        batch = [Publication(job_id, "done", MANIFEST) for job_id in ids]
        crashed = crashed_at(n, lambda: Results(home).publish(batch))  # noqa: B023  called at once
        for manifest in home.root.glob("*/*/manifest.json"):
            assert manifest.read_bytes() == MANIFEST, "half a manifest never has the name of one"
        assert Results(home).publish(batch) == (ids, {})
        for job_id in ids:
            assert contents(home.done / job_id) == {"input/a.inp": b"1", "manifest.json": MANIFEST}, n
        assert os.listdir(home.work) == []
        if not crashed:
            break
    assert n > 10


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is renamed, by its new name, and synced, by its name at that time, in their order."""
    steps: list[str] = []
    rename = os.rename

    def renamed(name: str, new_name: str, **folders: int) -> None:
        rename(name, new_name, **folders)
        steps.append(f"rename {new_name}")

    monkeypatch.setattr(os, "rename", renamed)
    fsync_by(monkeypatch, lambda fd: steps.append(f"fsync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}"))
    return steps


linux = pytest.mark.skipif(sys.platform != "linux", reason="names of open files are read in /proc")


@linux
def test_a_manifest_comes_into_view_when_its_bytes_and_its_name_are_durable(home: Home, steps: list[str]) -> None:
    (home.work / JOB).mkdir()
    Results(home).publish([Publication(JOB, "done", MANIFEST)])
    both = steps[1:3]
    assert sorted(both) == sorted(["fsync manifest.json", f"fsync {JOB}"])
    assert steps == ["rename manifest.json", *both, f"rename {JOB}", "fsync done", "fsync work"]


@linux
def test_a_manifest_that_is_missing_in_a_folder_in_view_gets_its_name_last(home: Home, steps: list[str]) -> None:
    (home.done / JOB).mkdir()
    Results(home).publish([Publication(JOB, "done", MANIFEST)])
    assert steps[:2] == ["fsync manifest.tmp", "rename manifest.json"]
    assert steps[-2:] == ["fsync done", "fsync work"]
    assert f"fsync {JOB}" in steps[2:-2]


def test_fault_29_a_failed_fsync_of_a_result_is_never_survived(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.work / JOB).mkdir()

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    fsync_by(monkeypatch, broken)
    with pytest.raises(NotDurable):
        Results(home).publish([Publication(JOB, "done", MANIFEST)])


# --- manifests written ahead ---------------------------------------------------------------------------------------


def staged(home: Home) -> Results:
    claimed(home, {"beam.inp": b"1"})
    results = Results(home)
    results.stage(JOB, 1)
    return results


BATCH = [Publication(JOB, "done", MANIFEST)]


@linux
def test_a_manifest_is_written_beside_the_block_and_in_view_only_after_it(home: Home, steps: list[str]) -> None:
    results = staged(home)
    steps.clear()
    with results.writing_ahead(BATCH):
        assert (home.work / JOB / "manifest.json").read_bytes() == MANIFEST
        steps.append("block")
    assert sorted(steps) == sorted(["rename manifest.json", "block", "fsync manifest.json", f"fsync {JOB}"])
    assert os.listdir(home.done) == []
    steps.clear()
    assert results.publish(BATCH) == ([JOB], {})
    assert steps == [f"rename {JOB}", "fsync done", "fsync work"], "nothing else is left to be done"
    assert contents(home.done / JOB).keys() == {"input/beam.inp", "output/beam.inp", "manifest.json"}


@pytest.mark.parametrize("why", ["a plan", "not staged", "too many", "a fault", "a defect"])
def test_what_is_not_written_ahead_is_published_all_the_same(
    home: Home, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    results = staged(home)
    match why:
        case "a plan":  # its removal must not come before its job has a durable row
            write(home.work / JOB / "claim.json", b"{}")
        case "not staged":
            results = Results(home)
        case _:
            pass
    many = [Publication(f"j{n}-0123456789abcde", "done", b"{}") for n in range(32 if why == "too many" else 0)]
    with monkeypatch.context() as patch:
        if why in ("a fault", "a defect"):
            patch.setattr(files, "write_all", full if why == "a fault" else lambda *_: 1 / 0)
        with results.writing_ahead([*many, *BATCH]):
            pass
    assert not (home.work / JOB / "manifest.json").exists()
    assert (home.work / JOB / "claim.json").exists() == (why == "a plan")
    assert results.publish(BATCH) == ([JOB], {})
    assert (home.done / JOB / "manifest.json").read_bytes() == MANIFEST
    assert not (home.done / JOB / "claim.json").exists()


def test_a_folder_that_goes_once_its_manifest_was_written_ahead_is_made_anew(home: Home) -> None:
    results = staged(home)
    with results.writing_ahead(BATCH):
        pass
    shutil.rmtree(home.work / JOB)
    done, refused = results.publish(BATCH)
    assert (done, [type(error) for error in refused.values()]) == ([], [FileNotFoundError])
    assert results.publish(BATCH) == ([JOB], {}), "tried again, it is"
    assert contents(home.done / JOB) == {"manifest.json": MANIFEST}


def test_fault_29_a_manifest_written_ahead_that_cannot_be_synced_is_never_survived(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = staged(home)

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    fsync_by(monkeypatch, broken)
    with pytest.raises(NotDurable, match="Input/output error"), results.writing_ahead(BATCH):
        pass


def test_what_goes_wrong_in_the_block_is_told_and_nothing_stays_open(home: Home) -> None:
    results = staged(home)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ZeroDivisionError), results.writing_ahead(BATCH):
        raise ZeroDivisionError
    assert len(os.listdir("/proc/self/fd")) == before
    assert results.publish(BATCH) == ([JOB], {})


def test_a_manifest_written_ahead_in_a_life_that_ended_is_written_anew(home: Home) -> None:
    """The row was not durable when the power went: the job ran again, and ended otherwise."""
    with staged(home).writing_ahead([Publication(JOB, "failed", b"{}")]):
        pass
    next_life = Results(home)
    next_life.stage(JOB, 2)
    with next_life.writing_ahead(BATCH):
        pass
    assert next_life.publish(BATCH) == ([JOB], {})
    assert (home.done / JOB / "manifest.json").read_bytes() == MANIFEST


# --- long lists of outputs -----------------------------------------------------------------------------------------


def test_a_list_of_outputs_is_written_whole_or_not_at_all(home: Home) -> None:
    path = home.work / JOB / "outputs.jsonl"
    path.parent.mkdir()
    for n in range(20):
        crashed = crashed_at(n, lambda: Results(home).write_durably(path, b"line\n" * 1000))
        assert not path.exists() or path.read_bytes() == b"line\n" * 1000
        if not crashed:
            break
        path.unlink(missing_ok=True)
    assert path.exists()
    assert os.listdir(path.parent) == ["outputs.jsonl"]
