"""The file with the token of the TCP listener: made once, whole, for its owner alone, and used only as such."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from solvisor_service.api.passes import Keys, TokenError, keys_in

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: another owner")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "token"


def good(path: Path, text: str = "k" * 43) -> None:
    path.write_text(text)
    path.chmod(0o600)


def test_it_is_made_for_its_owner_alone_and_stays(path: Path) -> None:
    before = os.umask(0)
    try:
        made = keys_in(path)
    finally:
        os.umask(before)
    found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_nlink) == (0o600, os.geteuid(), 1)
    assert len(path.read_text().strip()) == 43
    assert made.is_token(path.read_text().strip())
    assert keys_in(path) == made
    assert list(path.parent.iterdir()) == [path]
    path.unlink()
    assert keys_in(path) != made


def test_what_died_while_it_was_made_does_not_matter(path: Path) -> None:
    path.with_name("token.new").write_text("half")
    assert keys_in(path) == keys_in(path)
    assert list(path.parent.iterdir()) == [path]


def test_it_is_durable_before_it_has_its_name(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noted)
    keys_in(path)
    assert steps == [f"{path}.new", str(path.parent)]


@pytest.mark.parametrize("text", ["k" * 32, "a-B_9" * 10 + "\n", "k" * 256])
def test_one_may_be_chosen(path: Path, text: str) -> None:
    good(path, text)
    assert keys_in(path) == Keys(text.strip())


@pytest.mark.parametrize(
    "text", ["", "\n", "k" * 31, "k" * 257, "k" * 5000, "k" * 40 + " x", "k" * 40 + "\nk", "ä" * 40]
)
def test_what_is_no_token_is_refused(path: Path, text: str) -> None:
    good(path, text)
    with pytest.raises(TokenError, match="holds no token") as caught:
        keys_in(path)
    assert text.strip() == "" or text.strip() not in str(caught.value)
    assert path.read_text() == text


def _open_to(mode: int) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        good(path)
        path.chmod(mode)

    return make


def _link(path: Path) -> None:
    good(path.with_name("other"))
    path.symlink_to("other")


def _dangling(path: Path) -> None:
    path.symlink_to("nothing")


def _second_name(path: Path) -> None:
    good(path)
    path.with_name("other").hardlink_to(path)


@pytest.mark.parametrize(
    "make",
    [*map(_open_to, (0o640, 0o604, 0o620, 0o660, 0o666)), _link, _dangling, _second_name, Path.mkdir, os.mkfifo],
    ids=["group reads", "all read", "group writes", "group", "all", "link", "dangling", "name", "folder", "fifo"],
)
def test_fault_80_a_token_that_others_may_know_or_chose_is_refused(path: Path, make: Callable[[Path], None]) -> None:
    make(path)
    before, fds = path.lstat(), os.listdir("/proc/self/fd")
    with pytest.raises(TokenError, match=f"the token in {path} is not used: .*; remove it, and a new one is made"):
        keys_in(path)
    assert path.lstat() == before
    assert os.listdir("/proc/self/fd") == fds, "it is tried again and again"


@needs_root
def test_fault_80_a_token_of_somebody_else_is_refused(path: Path) -> None:
    good(path)
    os.chown(path, 65534, -1)
    with pytest.raises(TokenError, match="owner 65534, so others may know it"):
        keys_in(path)
