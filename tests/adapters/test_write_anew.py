"""Files that an earlier life left are replaced by copies that nothing is doubtful about."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from disk_kit import Tmpfs, tmpfs
from solvisor.home import Home
from solvisor.spool import Claims, NotDurable, anew, files, flush
from spool_kit import lay, needs_root, new_id, one, taken_up


def write_anew(folder: Path) -> None:
    fd = files.open_folder(str(folder))
    try:
        anew.write_anew(fd)
    finally:
        os.close(fd)


def test_every_file_is_another_one_with_the_same_bytes_time_and_mode(tmp_path: Path) -> None:
    paths = [tmp_path / "input" / "a.inp", tmp_path / "input" / "mesh" / "b.inc", tmp_path / "claim.json"]
    for n, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(n * 300_000))
        path.chmod(0o440 + n)
        os.utime(path, ns=(n, 10**18 + n))
    (tmp_path / "input" / "link").symlink_to("a.inp")
    (tmp_path / anew.ANEW).write_text("half a copy of a life that was killed")
    before = {path: (path.read_bytes(), path.stat()) for path in paths}
    write_anew(tmp_path)
    for path, (data, was) in before.items():
        now = path.stat()
        assert path.read_bytes() == data
        assert now.st_ino != was.st_ino
        assert (now.st_mtime_ns, stat.S_IMODE(now.st_mode)) == (was.st_mtime_ns, stat.S_IMODE(was.st_mode))
    assert os.readlink(tmp_path / "input" / "link") == "a.inp"
    assert sorted(os.listdir(tmp_path)) == ["claim.json", "input"]


def test_holes_stay_holes(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    write_anew(tmp_path)
    assert path.stat().st_size == 64 << 20
    assert path.stat().st_blocks * 512 < 4 << 20
    data = path.read_bytes()
    assert data[32 << 20 :][:4] == b"data"
    assert data.count(0) == len(data) - 4


# --- trouble of the disk --------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Tmpfs]:
    with tmpfs(tmp_path / "disk", "size=4m,nr_inodes=200") as made:
        yield made


@pytest.fixture
def home(disk: Tmpfs) -> Home:
    home = Home.at(disk.path / "home")
    home.prepare()
    return home


def left_behind(home: Home, size: int) -> Path:
    """The claim of an earlier life: one small file and one of this size; its folder."""
    folder = home.work / new_id() / "input"
    folder.mkdir(parents=True)
    (folder / "a.inp").write_bytes(b"1")
    (folder / "b.dat").write_bytes(b"2" * size)
    return folder.parent


@needs_root
def test_fault_26_without_room_for_the_largest_file_nothing_is_written(disk: Tmpfs, home: Home) -> None:
    folder = left_behind(home, 1 << 20)
    before = (folder / "input" / "a.inp").stat().st_ino
    disk.fill(leave=1 << 19)
    with pytest.raises(OSError, match="No space left"):
        write_anew(folder)
    assert (folder / "input" / "a.inp").stat().st_ino == before
    assert os.listdir(folder) == ["input"]
    disk.empty()
    disk.fill(leave=(1 << 20) + (1 << 16))
    write_anew(folder)
    assert (folder / "input" / "b.dat").read_bytes() == b"2" * (1 << 20)


@needs_root
def test_fault_26_half_a_copy_does_not_keep_the_disk_full(
    disk: Tmpfs, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The room was there when it was asked for, and somebody else took it."""
    folder = left_behind(home, 1 << 20)
    disk.fill(leave=1 << 19)
    monkeypatch.setattr(anew, "_check_room", lambda *_: None)
    for _ in range(2):
        with pytest.raises(OSError, match="No space left"):
            write_anew(folder)
        assert os.listdir(folder) == ["input"]
    assert os.statvfs(disk.path).f_bavail * os.statvfs(disk.path).f_frsize >= 1 << 18
    assert (folder / "input" / "b.dat").read_bytes() == b"2" * (1 << 20)


@needs_root
def test_fault_26_half_a_claim_that_cannot_go_back_yet_is_not_rejected(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To give a file back takes a name, and the folder has no room to grow."""
    claims = Claims(home)
    wish = lay(home, "several")
    one(claims.claim_round([wish]))
    os.rename(home.work / wish.id / "input" / "a.job.toml", home.inbox / "ccx" / "a.job.toml")
    with monkeypatch.context() as patch:
        failing("link", errno.ENOSPC, patch)
        with pytest.raises(OSError, match="No space left"):
            taken_up(claims)
    assert taken_up(claims) == []
    assert sorted(os.listdir(home.inbox / "ccx")) == ["a.job.toml", "b.inp", "c.inc"]
    assert os.listdir(home.work) == []


def failing(call: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``os``'s ``call`` fails with that error."""

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.os, call, fail)  # type: ignore[attr-defined]  # the module as it sees it


@needs_root
@pytest.mark.parametrize("call", ["write", "rename", "utime", "ftruncate"])
def test_fault_29_a_write_that_fails_is_of_the_disk_and_rejects_no_drop(
    home: Home, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    left_behind(home, 10)
    with monkeypatch.context() as patch:
        failing(call, errno.EIO, patch)
        with pytest.raises(NotDurable, match="writing failed: Input/output error"):
            taken_up(Claims(home))
    (taken,) = taken_up(Claims(home))
    assert taken.files


@needs_root
def test_fault_29_a_drop_that_cannot_be_read_is_rejected(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    left_behind(home, 10)
    with monkeypatch.context() as patch:
        failing("read", errno.EIO, patch)
        (taken,) = taken_up(Claims(home))
    assert taken.problem is not None
    assert taken.problem[0] == "unreadable"


def test_no_copy_takes_a_name_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it replaces may be all that the disk holds of it."""
    (tmp_path / "a.inp").write_bytes(b"1")
    synced: set[int] = set()
    flush_, rename = flush.flush, os.rename

    def seen(fds: Sequence[int]) -> list[BaseException | None]:
        synced.update(os.fstat(fd).st_ino for fd in fds)
        return flush_(fds)

    def renamed(src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        assert os.stat(src, dir_fd=src_dir_fd).st_ino in synced
        rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(flush, "flush", seen)
    monkeypatch.setattr(os, "rename", renamed)
    write_anew(tmp_path)
    assert (tmp_path / "a.inp").stat().st_ino in synced
