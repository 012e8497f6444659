"""Claims of what can only be rejected: links, devices, odd names, too much of anything."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.spool import Claims, escape_name, files, unescape_name
from spool_kit import a_home, drop, fact, lay_deep, one, take, taken_up


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return a_home(tmp_path)


@pytest.fixture
def claims(home: Home) -> Claims:
    return Claims(home)


@pytest.mark.parametrize("kind", ["link", "fifo", "socket"])
def test_fault_71_what_is_not_a_file_is_taken_unopened(home: Home, claims: Claims, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("never read")
    path = home.inbox / "x.inp"
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            fd = os.open(home.inbox, os.O_RDONLY)
            listener.bind(f"/proc/self/fd/{fd}/x.inp")
            os.close(fd)
    wish = take("x.inp")
    taken = one(claims.claim_round([wish]))
    assert taken.problem is not None
    assert taken.problem[0] == "not_a_file"
    assert taken.files == (FileFact("input/x.inp", 0, "", link=str(secret) if kind == "link" else None),)
    assert (home.work / wish.id / "input" / "x.inp").is_symlink() == (kind == "link")


@pytest.mark.parametrize("kind", ["link", "fifo", "hard_link", "name", "too_deep", "too_many_files"])
def test_fault_71_a_folder_with_something_wrong_in_it_is_taken_to_be_rejected(
    home: Home, claims: Claims, kind: str
) -> None:
    good = drop(home, "case/sub/a.inp")
    if kind == "link":
        (good.parent / "b").symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(good.parent / "b")
    elif kind == "hard_link":
        os.link(good, good.parent / "b")
    elif kind == "name":
        (good.parent / "b\n.inp").write_text("")
    elif kind == "too_deep":
        drop(home, "case/" + "d/" * files.DEPTH_MAX + "a.inp")
    else:
        for i in range(10_000):
            os.close(os.open(good.parent / str(i), os.O_CREAT | os.O_WRONLY))
    wish = take("case", folder=True)
    taken = one(claims.claim_round([wish]))
    assert taken.problem is not None
    assert taken.problem[0] == {"link": "not_a_file", "fifo": "not_a_file"}.get(kind, kind)
    assert not (home.inbox / "case").exists()
    assert (home.work / wish.id / "input" / "sub" / "a.inp").exists()


@pytest.mark.parametrize(
    "raw", [b"b\xe4r.inp", b"new\nline.inp", b"esc\x1b[31m.inp", b"back\\slash.inp", "bell\x9b.inp".encode()]
)
def test_fault_45_an_odd_name_is_escaped_and_can_only_be_rejected(home: Home, claims: Claims, raw: bytes) -> None:
    name = os.fsdecode(raw)
    drop(home, name)
    taken = one(claims.claim_round([take(name)]))
    assert taken.problem is not None
    assert taken.problem[0] == "name"
    (found,) = taken.files
    shown = found.path.removeprefix("input/")
    assert shown.encode()
    assert shown.isprintable()
    assert unescape_name(shown) == name


@pytest.mark.parametrize(
    "name", ["beam.inp", "träger & last (1).inp", "日本.inp", "Screen\u202fshot.inp", "a'\"$;b.inp"]
)
def test_fault_45_an_ordinary_name_stays_as_it_is(home: Home, claims: Claims, name: str) -> None:
    drop(home, name)
    taken = one(claims.claim_round([take(name)]))
    assert taken.problem is None
    assert taken.files[0].path == f"input/{name}" == f"input/{escape_name(name)}"


def test_a_folder_with_paths_longer_than_the_kernel_takes_is_claimed_and_recovered(home: Home, claims: Claims) -> None:
    (home.inbox / "case").mkdir()
    path = lay_deep(home.inbox / "case")
    taken = one(claims.claim_round([take("case", folder=True)]))
    assert taken.problem is None
    assert taken.files == (fact(f"input/{path}", b"deep"),)
    assert taken_up(claims) == [taken]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links and pipes")
def test_fault_70_neither_a_file_nor_a_folder_is_opened_through_a_link(tmp_path: Path) -> None:
    """Also where a look before found none: whoever put it there in between gains nothing."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "secret").write_text("x")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file").symlink_to("real/secret")
    os.mkfifo(tmp_path / "fifo")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(OSError, match="symbolic links"):
            files.open_file("file", fd)
        with pytest.raises(NotADirectoryError):
            files.open_folder("folder", fd)
        with pytest.raises(NotADirectoryError), files.folder_of("folder/secret", fd):
            pass
        os.close(files.open_file("fifo", fd))  # at once, though nobody writes to it
    finally:
        os.close(fd)
