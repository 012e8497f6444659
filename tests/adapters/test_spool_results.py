"""Staging, collecting, publishing: real folders, and a crash at every change to the disk."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from crash.points import crashed_at
from fsync_kit import fsync_by
from results_kit import JOB, MANIFEST, claimed, contents, fact, full, prepared, write
from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.spool import NotDurable, Publication, Results, Survey, Syncs, files


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return prepared(tmp_path / "home")


def surveyed(results: Results, inputs: Sequence[FileFact] = ()) -> Survey:
    with results.remains(JOB, inputs, 0) as remains:
        return remains.survey()


def altered(results: Results, inputs: Sequence[FileFact]) -> list[str]:
    with results.remains(JOB, inputs, 0) as remains:
        return remains.altered()


def kept(results: Results, inputs: Sequence[FileFact] = ()) -> Survey:
    with Syncs() as syncs, results.remains(JOB, inputs, 0) as remains:
        survey = remains.survey()
        remains.keep(survey, syncs)
    return survey


def collect(home: Home, inputs: Sequence[FileFact] = ()) -> tuple[FileFact, ...]:
    return kept(Results(home), inputs).outputs


# --- staging -------------------------------------------------------------------------------------------------------


def test_inputs_are_staged_as_copies_with_their_folders_times_and_modes(home: Home) -> None:
    claimed(home, {"beam.inp": b"1", "mesh/a.inc": b"2", "job.toml": b"for us", "run.sh": b"#!/bin/sh\n"})
    given = home.work / JOB / "input"
    os.utime(given / "beam.inp", ns=(5, 1_234_567_890_123_456_789))
    (given / "run.sh").chmod(0o755)
    Results(home).stage(JOB, 1, skip=["job.toml"])
    output = home.work / JOB / "output"
    assert contents(output) == {"beam.inp": b"1", "mesh/a.inc": b"2", "run.sh": b"#!/bin/sh\n"}
    assert (output / "beam.inp").stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert os.access(output / "run.sh", os.X_OK)
    (output / "beam.inp").write_bytes(b"changed by the solver")
    assert (given / "beam.inp").read_bytes() == b"1"


def test_a_read_only_input_can_be_changed_where_it_is_staged(home: Home) -> None:
    claimed(home, {"beam.inp": b"1"})
    (home.work / JOB / "input" / "beam.inp").chmod(0o444)
    Results(home).stage(JOB, 1)
    assert stat.S_IMODE((home.work / JOB / "output" / "beam.inp").stat().st_mode) & 0o600 == 0o600


def test_a_large_file_is_staged_whole(home: Home) -> None:
    data = os.urandom(3_000_000)
    claimed(home, {"big.inp": data})
    Results(home).stage(JOB, 1)
    assert (home.work / JOB / "output" / "big.inp").read_bytes() == data


def test_a_copy_works_where_the_kernel_cannot_copy(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    data = os.urandom(600_000)
    claimed(home, {"big.inp": data})

    def refused(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refused)
    Results(home).stage(JOB, 1)
    assert (home.work / JOB / "output" / "big.inp").read_bytes() == data


def solve(home: Home, mark: bytes) -> None:
    for name in ("output/beam.frd", "stdout.log", "stderr.log"):
        write(home.work / JOB / name, mark)


def test_each_earlier_try_is_kept_under_its_number(home: Home) -> None:
    claimed(home, {"beam.inp": b"1"})
    results = Results(home)
    for n in (1, 2, 3):
        results.stage(JOB, n)
        solve(home, b"try %d" % n)
    folder = contents(home.work / JOB)
    for n in (1, 2):
        mark = b"try %d" % n
        assert folder[f"attempt-{n}/output/beam.frd"] == mark
        assert folder[f"attempt-{n}/stdout.log"] == mark
        assert folder[f"attempt-{n}/stderr.log"] == mark
    assert folder["output/beam.frd"] == b"try 3"


def test_a_try_that_never_started_leaves_no_logs_of_another(home: Home) -> None:
    """The first try was recorded and staged, but the daemon died before its process was."""
    claimed(home, {"beam.inp": b"1"})
    results = Results(home)
    results.stage(JOB, 1)
    results.stage(JOB, 2)
    solve(home, b"try 2")
    results.stage(JOB, 3)
    folder = contents(home.work / JOB)
    assert "attempt-1/stdout.log" not in folder
    assert folder["attempt-2/stdout.log"] == b"try 2"
    assert "stdout.log" not in folder


@pytest.mark.parametrize("left", ["files", "empty", "file", "folders"])
def test_what_a_try_left_whose_record_was_lost_is_no_part_of_another(home: Home, left: str) -> None:
    """A power cut may take back that there ever was a first try, and leave what it did."""
    claimed(home, {"beam.inp": b"1"})
    folder = home.work / JOB
    if left == "files":
        solve(home, b"forgotten")
        write(folder / "staging.tmp" / "half.inp", b"")
    elif left == "empty":
        (folder / "output").mkdir()
    elif left == "file":
        (folder / "output").write_bytes(b"what")
        (folder / "staging.tmp").write_bytes(b"what")
    else:
        write(folder / "stdout.log" / "x", b"")
        write(folder / "output" / "sub" / "x", b"")
    Results(home).stage(JOB, 1)
    assert contents(folder) == {"input/beam.inp": b"1", "output/beam.inp": b"1"}
    assert sorted(os.listdir(folder)) == ["input", "output"]


def test_staging_goes_on_after_a_crash_at_any_point(tmp_path: Path) -> None:
    for n in range(100):
        home = prepared(tmp_path / str(n))
        claimed(home, {"beam.inp": b"1", "mesh/a.inc": b"2"})
        results = Results(home)
        results.stage(JOB, 1)
        solve(home, b"try 1")
        crashed = crashed_at(n, lambda: results.stage(JOB, 2))  # noqa: B023  called at once
        results.stage(JOB, 2)
        assert contents(home.work / JOB) == {
            "input/beam.inp": b"1",
            "input/mesh/a.inc": b"2",
            "attempt-1/output/beam.inp": b"1",
            "attempt-1/output/mesh/a.inc": b"2",
            "attempt-1/output/beam.frd": b"try 1",
            "attempt-1/stdout.log": b"try 1",
            "attempt-1/stderr.log": b"try 1",
            "output/beam.inp": b"1",
            "output/mesh/a.inc": b"2",
        }, n
        if not crashed:
            break
    assert n > 5


# --- collecting ----------------------------------------------------------------------------------------------------


def test_outputs_and_logs_are_listed_and_unchanged_inputs_are_not(home: Home) -> None:
    inputs = claimed(home, {"beam.inp": b"1", "mesh/a.inc": b"2", "state.dat": b"before"})
    results = Results(home)
    results.stage(JOB, 1)
    output = home.work / JOB / "output"
    write(output / "beam.frd", b"result")
    write(output / "fields" / "u.dat", b"u")
    write(output / "state.dat", b"after!")
    write(home.work / JOB / "stdout.log", b"hello\n")
    write(home.work / JOB / "stderr.log", b"")
    wanted = {
        fact("output/beam.frd", b"result"),
        fact("output/fields/u.dat", b"u"),
        fact("output/state.dat", b"after!"),
        fact("stdout.log", b"hello\n"),
        fact("stderr.log", b""),
    }
    assert set(collect(home, inputs)) == wanted
    assert contents(output).keys() == {"beam.frd", "fields/u.dat", "state.dat"}
    assert not (output / "mesh").exists(), "it held nothing but an unchanged input"
    assert contents(home.work / JOB / "input").keys() == {"beam.inp", "mesh/a.inc", "state.dat"}
    assert set(collect(home, inputs)) == wanted, "asked again after a crash"


def test_links_are_listed_and_never_followed(home: Home, tmp_path: Path) -> None:
    claimed(home, {})
    output = home.work / JOB / "output"
    output.mkdir()
    write(tmp_path / "secret" / "file", b"never read")
    (output / "latest").symlink_to(tmp_path / "secret")
    (output / "nowhere").symlink_to("nothing")
    os.mkfifo(output / "fifo")
    assert collect(home) == (
        FileFact("output/latest", 0, "", link=str(tmp_path / "secret")),
        FileFact("output/nowhere", 0, "", link="nothing"),
    )
    assert (output / "fifo").exists()


def test_a_job_that_left_nothing_has_no_outputs(home: Home) -> None:
    claimed(home, {})
    assert collect(home) == ()


def test_names_of_outputs_are_escaped_and_depth_is_bounded(home: Home) -> None:
    claimed(home, {})
    output = home.work / JOB / "output"
    write(output / os.fsdecode(b"b\xe4r\x1b.frd"), b"1")
    write(output / ("d/" * files.DEPTH_MAX + "deep"), b"2")
    assert collect(home) == (fact("output/b\\xe4r\\x1b.frd", b"1"),)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user whom permissions bind")
def test_what_the_solver_made_unreadable_is_read_all_the_same() -> None:
    script = """
import os, sys, tempfile, pathlib
from solvisor.home import Home
from solvisor.spool import Publication, Results, Syncs
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with tempfile.TemporaryDirectory() as folder:
    home = Home.at(pathlib.Path(folder) / "home")
    home.prepare()
    output = home.work / "j" / "output"
    (output / "sub").mkdir(parents=True)
    (output / "sub" / "a").write_text("1")
    (output / "b").write_text("2")
    (output.parent / "stdout.log").write_text("3")
    (output.parent / "stdout.log").chmod(0)
    (output / "sub" / "a").chmod(0); (output / "b").chmod(0o200); (output / "sub").chmod(0)
    (output.parent / "manifest.tmp" / "locked" / "x").mkdir(parents=True)
    (output.parent / "manifest.tmp" / "locked").chmod(0)
    output.chmod(0); output.parent.chmod(0)
    results = Results(home)
    with Syncs() as syncs, results.remains("j", (), 0) as remains:
        survey = remains.survey()
        remains.keep(survey, syncs)
    print(sorted((fact.path, fact.size) for fact in survey.outputs))
    print(results.publish([Publication("j", "done", b"{}")]))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout == "[('output/b', 1), ('output/sub/a', 1), ('stdout.log', 1)]\n(['j'], {})\n"


def test_collecting_makes_every_file_durable_and_does_not_survive_a_failure(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(home, {})
    solve(home, b"x")
    write(home.work / JOB / "output" / "sub" / "deep.dat", b"y")
    synced: set[int] = set()
    fsync_by(monkeypatch, lambda fd: synced.add(os.fstat(fd).st_ino))
    collect(home)
    for name in ("output/beam.frd", "output/sub/deep.dat", "output/sub", "output", "stdout.log", "stderr.log", "."):
        assert (home.work / JOB / name).stat().st_ino in synced, name

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    fsync_by(monkeypatch, broken)
    with pytest.raises(NotDurable):
        collect(home)


def test_a_job_whose_folder_is_gone_cannot_be_surveyed(home: Home) -> None:
    with pytest.raises(FileNotFoundError):
        surveyed(Results(home))


def test_a_survey_leaves_everything_where_it_is(home: Home) -> None:
    inputs = claimed(home, {"beam.inp": b"1", "mesh/a.inc": b"2", "mesh/b.inc": b"3", "gone.dat": b"4"})
    Results(home).stage(JOB, 1)
    (home.work / JOB / "output" / "gone.dat").unlink()
    write(home.work / JOB / "output" / "mesh" / "b.inc", b"new")
    before = contents(home.work / JOB)
    survey = surveyed(Results(home), inputs)
    assert survey == Survey((fact("output/mesh/b.inc", b"new"),), frozenset({"beam.inp", "mesh/a.inc", "gone.dat"}))
    assert contents(home.work / JOB) == before
    assert kept(Results(home), inputs) == survey
    assert contents(home.work / JOB / "output") == {"mesh/b.inc": b"new"}
    assert surveyed(Results(home), inputs) == survey, "the same verdict comes out after a crash"


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_an_input_that_became_something_else_is_not_unchanged(home: Home, kind: str) -> None:
    inputs = claimed(home, {"beam.dat": b"", "mesh/a.inc": b"1"})
    Results(home).stage(JOB, 1)
    path = home.work / JOB / "output" / "beam.dat"
    path.unlink()
    if kind == "link":
        path.symlink_to("elsewhere")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert kept(Results(home), inputs).unchanged == {"mesh/a.inc"}
    assert os.path.lexists(path)


def test_what_lies_behind_a_link_is_never_removed(home: Home, tmp_path: Path) -> None:
    inputs = claimed(home, {"mesh/a.inc": b"1"})
    Results(home).stage(JOB, 1)
    shutil.rmtree(home.work / JOB / "output" / "mesh")
    kept = write(tmp_path / "others" / "a.inc", b"1")
    (home.work / JOB / "output" / "mesh").symlink_to(kept.parent)
    collect(home, inputs)
    assert kept.read_bytes() == b"1"


def test_keeping_goes_on_after_a_crash_at_any_point(tmp_path: Path) -> None:
    for n in range(100):
        home = prepared(tmp_path / str(n))
        inputs = claimed(home, {"beam.inp": b"1", "mesh/fine/a.inc": b"2"})
        results = Results(home)
        results.stage(JOB, 1)
        write(home.work / JOB / "output" / "beam.frd", b"result")
        first = surveyed(results, inputs)
        crashed = crashed_at(n, lambda: kept(results, inputs))  # noqa: B023  called at once
        assert kept(results, inputs) == first, n
        assert os.listdir(home.work / JOB / "output") == ["beam.frd"], n
        if not crashed:
            break
    assert n > 4


@pytest.mark.parametrize("log", ["stdout.log", "stderr.log"])
@pytest.mark.parametrize("kind", ["link", "fifo", "folder"])
def test_a_log_replaced_by_something_else_is_left_alone(home: Home, tmp_path: Path, log: str, kind: str) -> None:
    claimed(home, {})
    solve(home, b"x")
    path = home.work / JOB / log
    path.unlink()
    if kind == "link":
        path.symlink_to(tmp_path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    listed = {fact.path for fact in collect(home)}
    assert listed == {"output/beam.frd", "stdout.log", "stderr.log"} - {log}


def test_a_link_in_the_place_of_a_jobs_folder_is_not_followed(home: Home, tmp_path: Path) -> None:
    inputs = claimed(home, {"beam.inp": b"1"})
    (home.work / JOB).rename(tmp_path / "elsewhere")
    (home.work / JOB).symlink_to(tmp_path / "elsewhere")
    for step in (lambda: Results(home).stage(JOB, 1), lambda: collect(home, inputs)):
        with pytest.raises(OSError, match=JOB) as caught:
            step()
        assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    _, refused = Results(home).publish([Publication(JOB, "done", MANIFEST)])
    assert refused.keys() == {JOB}
    assert contents(tmp_path / "elsewhere") == {"input/beam.inp": b"1"}


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
def test_an_output_folder_replaced_by_something_else_is_not_entered(home: Home, tmp_path: Path, kind: str) -> None:
    inputs = claimed(home, {"beam.inp": b"1"})
    path = home.work / JOB / "output"
    others = write(tmp_path / "others" / "beam.inp", b"1")
    wanted: tuple[FileFact, ...] = ()
    if kind == "link":
        path.symlink_to(others.parent)
        wanted = (FileFact("output", 0, "", link=str(others.parent)),)
    elif kind == "file":
        path.write_bytes(b"what")
        wanted = (fact("output", b"what"),)
    else:
        os.mkfifo(path)
    assert collect(home, inputs) == wanted
    assert others.exists()
    Results(home).stage(JOB, 2)
    assert contents(path) == {"beam.inp": b"1"}, "and the next try has one of its own"


@pytest.mark.parametrize("kind", ["as it was", "file changed", "link to another", "link on the way", "removed"])
def test_fault_70_an_input_counts_as_altered_if_it_is_reached_through_a_link(
    home: Home, tmp_path: Path, kind: str
) -> None:
    inputs = claimed(home, {"sub/beam.inp": b"1"})
    sub = home.work / JOB / "input" / "sub"
    if kind == "file changed":
        write(sub / "beam.inp", b"2")
    elif kind != "as it was":
        sub.rename(tmp_path / "sub")
    if kind == "link on the way":
        sub.symlink_to(tmp_path / "sub")
    elif kind == "link to another":
        sub.mkdir()
        (sub / "beam.inp").symlink_to(tmp_path / "sub" / "beam.inp")
    assert altered(Results(home), inputs) == ([] if kind == "as it was" else ["input/sub/beam.inp"])


def deep(folder: Path, data: bytes) -> None:
    """A file whose path is longer than the kernel takes at once."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    files.write_file("deep.dat", fd, data)
    os.close(fd)


DEEP = "/".join(["d" * 250] * 20) + "/deep.dat"


def test_paths_longer_than_the_kernel_takes_are_staged_surveyed_kept_and_published(home: Home) -> None:
    inputs = (*claimed(home, {"beam.inp": b"1"}), fact(f"input/{DEEP}", b"2"))
    deep(home.work / JOB / "input", b"2")
    results = Results(home)
    results.stage(JOB, 1)
    assert altered(results, inputs) == []
    assert kept(results, inputs) == Survey((), frozenset({"beam.inp", DEEP}))
    assert os.listdir(home.work / JOB / "output") == []
    deep(home.work / JOB / "output", b"new")
    assert kept(results, inputs).outputs == (fact(f"output/{DEEP}", b"new"),)
    assert results.publish([Publication(JOB, "done", MANIFEST)]) == ([JOB], {})
    assert shutil.rmtree.avoids_symlink_attacks, "which means: by descriptor, so that this tree can be removed"
    shutil.rmtree(home.done)


def test_no_descriptor_is_left_open_whatever_fails(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = claimed(home, {"a/b/c.inp": b"1", "a/d.inp": b"2", "e.inp": b"3"})
    results = Results(home)
    results.stage(JOB, 1)
    before = len(os.listdir("/proc/self/fd"))
    assert altered(results, inputs) == []
    collect(home, inputs)
    monkeypatch.setattr(files, "copy_file", full)
    with pytest.raises(OSError, match="No space left"):
        results.stage(JOB, 2)
    results.publish([Publication(JOB, "done", MANIFEST)])
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_staging_that_fails_gives_its_space_back(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    claimed(home, {"a.inp": b"1", "b.inp": b"2"})
    real = files.copy_file

    def second_is_too_much(source_fd: int, source: os.stat_result, name: str, folder_fd: int) -> os.stat_result:
        if name == "b.inp":
            full()
        return real(source_fd, source, name, folder_fd)

    monkeypatch.setattr(files, "copy_file", second_is_too_much)
    with pytest.raises(OSError, match="No space left"):
        Results(home).stage(JOB, 1)
    assert os.listdir(home.work / JOB) == ["input"]
