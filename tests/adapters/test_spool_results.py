"""Staging, collecting, publishing: real folders, and a crash at every change to the disk."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pytest

from crash.points import crashed_at
from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.spool import NotDurable, Publication, Results, files
from solvisor.spool import results as results_module

JOB = "beam-0123456789abcde"
MANIFEST = b'{"id":"beam-0123456789abcde","state":"succeeded"}\n'


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return prepared(tmp_path / "home")


def prepared(path: Path) -> Home:
    home = Home.at(path)
    home.prepare()
    return home


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def claimed(home: Home, inputs: dict[str, bytes]) -> tuple[FileFact, ...]:
    (home.work / JOB / "input").mkdir(parents=True)
    for name, data in inputs.items():
        write(home.work / JOB / "input" / name, data)
    return tuple(fact(f"input/{name}", data) for name, data in inputs.items())


def fact(path: str, data: bytes) -> FileFact:
    return FileFact(path, len(data), hashlib.sha256(data).hexdigest())


def collect(home: Home, inputs: tuple[FileFact, ...] = ()) -> tuple[FileFact, ...]:
    (listed,) = Results(home).collect([(JOB, inputs)])
    if isinstance(listed, OSError):
        raise listed
    return listed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


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
from solvisor.spool import Results
os.setgroups([]); os.setgid(65534); os.setuid(65534)
with tempfile.TemporaryDirectory() as folder:
    home = Home.at(pathlib.Path(folder) / "home")
    home.prepare()
    output = home.work / "j" / "output"
    (output / "sub").mkdir(parents=True)
    (output / "sub" / "a").write_text("1")
    (output / "b").write_text("2")
    (output / "sub" / "a").chmod(0); (output / "b").chmod(0o200); (output / "sub").chmod(0)
    print(sorted((fact.path, fact.size) for fact in Results(home).collect([("j", ())])[0]))
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd="/")
    assert out.stdout == "[('output/b', 1), ('output/sub/a', 1)]\n"


def test_collecting_makes_every_file_durable_and_does_not_survive_a_failure(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(home, {})
    solve(home, b"x")
    write(home.work / JOB / "output" / "sub" / "deep.dat", b"y")
    synced: set[int] = set()
    monkeypatch.setattr(os, "fsync", lambda fd: synced.add(os.fstat(fd).st_ino))
    collect(home)
    for name in ("output/beam.frd", "output/sub/deep.dat", "output/sub", "output", "stdout.log", "stderr.log", "."):
        assert (home.work / JOB / name).stat().st_ino in synced, name

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(NotDurable):
        collect(home)


@pytest.mark.parametrize("fails", ["_outputs", "_spots"])
def test_one_job_that_cannot_be_collected_holds_up_no_other(
    home: Home, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    ids = [f"j{i}-0123456789abcde" for i in range(3)]
    for job_id in ids:
        write(home.work / job_id / "output" / "a.frd", job_id.encode())
    real = getattr(results_module, fails)

    def broken(job_fd: int, *rest: Any) -> Any:
        if os.fstat(job_fd).st_ino == (home.work / ids[1]).stat().st_ino:
            raise OSError(5, "Input/output error")
        return real(job_fd, *rest)

    monkeypatch.setattr(results_module, fails, broken)
    first, second, third = Results(home).collect([(job_id, ()) for job_id in ids])
    assert isinstance(second, OSError)
    assert first == (fact("output/a.frd", ids[0].encode()),)
    assert third == (fact("output/a.frd", ids[2].encode()),)


# --- publishing ----------------------------------------------------------------------------------------------------


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


def test_a_failed_fsync_while_publishing_is_never_survived(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    (home.work / JOB).mkdir()

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(NotDurable):
        Results(home).publish([Publication(JOB, "done", MANIFEST)])


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
