"""Claims by copy: files of another owner, an inbox on another file system, folders that resist."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from solvisor.home import Home
from solvisor.spool import Claims, Taken
from spool_kit import NOBODY, a_home, contents, drop, fact, lay_deep, needs_root, one, take


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return a_home(tmp_path)


@pytest.fixture
def claims(home: Home) -> Claims:
    return Claims(home)


@needs_root
def test_a_file_of_another_owner_is_copied_and_removed_after_the_commit(home: Home, claims: Claims) -> None:
    path = drop(home, "beam.inp", b"abc")
    os.chown(path, NOBODY, NOBODY)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    held_open = path.open("rb")
    wish = take("beam.inp")
    taken = one(claims.claim_round([wish]))
    claimed = home.work / wish.id / "input" / "beam.inp"
    assert taken.uid == NOBODY
    assert claimed.stat().st_uid == os.geteuid()
    assert claimed.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert path.exists(), "the original stays until the job is durable"
    assert claims.remove_original(taken.originals[0])
    assert not path.exists()
    assert not claims.remove_original(taken.originals[0])
    held_open.close()


@needs_root
@pytest.mark.parametrize("change", ["contents", "replaced"])
def test_an_original_that_is_no_longer_the_same_is_not_removed(home: Home, claims: Claims, change: str) -> None:
    path = drop(home, "beam.inp", b"abc")
    os.chown(path, NOBODY, NOBODY)
    taken = one(claims.claim_round([take("beam.inp")]))
    if change == "replaced":
        path.rename(home.root / "kept")
    path.write_bytes(b"xyz")
    assert not claims.remove_original(taken.originals[0])
    assert path.read_bytes() == b"xyz"


@needs_root
def test_a_folder_of_another_owner_is_copied_and_removed_bit_by_bit(home: Home, claims: Claims) -> None:
    drop(home, "ccx/case/a.inp", b"1")
    drop(home, "ccx/case/mesh/b.inc", b"2")
    for path in (home.inbox / "ccx" / "case").rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    wish = take("ccx/case", route="ccx", folder=True)
    taken = one(claims.claim_round([wish]))
    assert contents(home.work / wish.id / "input") == {"a.inp": b"1", "mesh/b.inc": b"2"}
    assert {p.stat().st_uid for p in (home.work / wish.id).rglob("*")} == {os.geteuid()}
    assert contents(home.inbox).keys() == {"ccx/case/a.inp", "ccx/case/mesh/b.inc"}
    assert [claims.remove_original(original) for original in taken.originals] == [True] * 4
    assert os.listdir(home.inbox / "ccx") == []


@needs_root
def test_something_new_in_the_original_folder_is_kept(home: Home, claims: Claims) -> None:
    path = drop(home, "case/a.inp")
    os.chown(path, NOBODY, NOBODY)
    taken = one(claims.claim_round([take("case", folder=True)]))
    drop(home, "case/new.inp", b"new")
    for original in taken.originals:
        claims.remove_original(original)
    assert contents(home.inbox) == {"case/new.inp": b"new"}


@needs_root
def test_a_foreign_folder_with_a_link_in_it_leaves_the_inbox_too(home: Home, claims: Claims) -> None:
    path = drop(home, "case/a.inp")
    (home.inbox / "case" / "link").symlink_to("/etc/passwd")
    os.mkfifo(home.inbox / "case" / "fifo")
    os.chown(path, NOBODY, NOBODY)
    taken = one(claims.claim_round([take("case", folder=True)]))
    assert taken.problem is not None
    assert taken.problem[0] == "not_a_file"
    for original in taken.originals:
        assert claims.remove_original(original)
    assert os.listdir(home.inbox) == []


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    where = tmp_path / "share"
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", where], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_an_inbox_on_another_file_system_is_claimed_by_copy(tmp_path: Path, tmpfs: Path) -> None:
    home = Home.at(tmp_path / "home", tmpfs / "inbox")
    home.inbox.mkdir()
    home.prepare()
    claims = Claims(home)
    drop(home, "beam.inp", b"abc")
    drop(home, "case/sub/a.inp", b"1")
    (home.inbox / "link.inp").symlink_to("/etc/passwd")
    wishes = [take("beam.inp"), take("case", folder=True), take("link.inp")]
    answers = claims.claim_round(wishes)
    taken = [answer for answer in answers if isinstance(answer, Taken)]
    assert len(taken) == 3, answers
    assert contents(home.work / wishes[0].id / "input") == {"beam.inp": b"abc"}
    assert contents(home.work / wishes[1].id / "input") == {"sub/a.inp": b"1"}
    assert taken[2].files[0].link == "/etc/passwd"
    for answer in taken:
        assert {claims.remove_original(original) for original in answer.originals} == {True}
    assert os.listdir(home.inbox) == []


def test_a_mounted_route_is_claimed_by_copy(home: Home, claims: Claims, tmpfs: Path, tmp_path: Path) -> None:
    """A bind mount within one file system: the device number is the same and only the rename tells."""
    (tmp_path / "real").mkdir()
    (home.inbox / "ccx").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "real", home.inbox / "ccx"], check=True)
    try:
        drop(home, "ccx/beam.inp", b"abc")
        wish = take("ccx/beam.inp", route="ccx")
        taken = one(claims.claim_round([wish]))
        assert contents(home.work / wish.id / "input") == {"beam.inp": b"abc"}
        assert claims.remove_original(taken.originals[0])
    finally:
        subprocess.run(["umount", home.inbox / "ccx"], check=True)


@needs_root
def test_what_an_ordinary_user_may_take() -> None:
    """Without CAP_LEASE no lease can be had on the file of another owner; a read-only folder resists its renaming."""
    script = """
import os, sys
from pathlib import Path
from solvisor.home import Home
from solvisor.spool import Claims, Take
os.setgroups([]); os.setgid(65534); os.setuid(65534)
home = Home.at(Path(sys.argv[1]))
claims = Claims(home)
for name, quiet in (("a.inp", False), ("a.inp", True), ("case", True), ("own", True)):
    take = Take(f"x-{len(os.listdir(home.work)):015d}", (name,), quiet=quiet, folder=name in ("case", "own"))
    (answer,) = claims.claim_round([take])
    print(type(answer).__name__, getattr(answer, "reason", ""), getattr(answer, "text", ""))
"""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o755)
        home = Home.at(Path(folder) / "home")
        home.prepare()
        drop(home, "own/a.inp")
        for path in (home.root, *home.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        (home.inbox / "own").chmod(0o555)
        drop(home, "a.inp").chmod(0o644)
        drop(home, "case/b.inp").chmod(0o644)
        command = [sys.executable, "-c", script, str(home.root)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
    foreign, quiet, unremovable, read_only = out.stdout.splitlines()
    assert foreign.startswith("NotYet no_lease")
    assert quiet.startswith("Taken")
    assert unremovable.startswith("NotYet error")
    assert "not removed by the daemon" in unremovable, "it could be copied but would come back for ever"
    assert read_only.startswith("Taken"), "our own folder, though it is read-only"


@needs_root
def test_a_foreign_folder_with_long_paths_is_copied_and_removed(home: Home, claims: Claims) -> None:
    (home.inbox / "case").mkdir()
    path = lay_deep(home.inbox / "case")
    os.chown(home.inbox / "case", NOBODY, NOBODY)
    taken = one(claims.claim_round([take("case", folder=True)]))
    assert taken.files == (fact(f"input/{path}", b"deep"),)
    for original in taken.originals:
        assert claims.remove_original(original)
    assert os.listdir(home.inbox) == []
