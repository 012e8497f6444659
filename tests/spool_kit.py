"""Drops on a real home, and what a claim answers to them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

import pytest

from solvisor.home import Home, IdMaker
from solvisor.model import FileFact
from solvisor.spool import Claims, NotYet, Take, Taken, files

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of another owner, mounts")
NOBODY = 65534
MAKER = IdMaker()


def a_home(root: Path) -> Home:
    home = Home.at(root / "home")
    home.prepare()
    return home


def new_id(name: str = "beam") -> str:
    return MAKER.new_id(name, 1_700_000_000_000_000)


def drop(home: Home, name: str, data: bytes = b"*HEADING\nbeam\n") -> Path:
    path = home.inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def take(
    *sources: str, route: str | None = None, folder: bool = False, quiet: bool = False, force: bool = False
) -> Take:
    return Take(new_id(), sources, route, folder, quiet, force)


def one(answers: list[Taken | NotYet]) -> Taken:
    (answer,) = answers
    assert isinstance(answer, Taken), answer
    return answer


def held(answers: list[Taken | NotYet]) -> NotYet:
    (answer,) = answers
    assert isinstance(answer, NotYet), answer
    return answer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def fact(path: str, data: bytes) -> FileFact:
    return FileFact(path, len(data), hashlib.sha256(data).hexdigest())


def lay(home: Home, kind: str) -> Take:
    """Drop something of each kind and wish for it."""
    if kind == "file":
        drop(home, "beam.inp", b"1")
        return take("beam.inp")
    if kind == "several":
        for name in ("a.job.toml", "b.inp", "c.inc"):
            drop(home, f"ccx/{name}", name.encode())
        return take("ccx/a.job.toml", "ccx/b.inp", "ccx/c.inc", route="ccx")
    if kind == "folder":
        drop(home, "case/a.inp", b"1")
        drop(home, "case/sub/b.inc", b"2")
        return take("case", folder=True)
    wish = lay(home, kind.removeprefix("foreign "))
    for source in wish.sources:
        path = home.inbox / source
        for part in (path, *path.rglob("*")):
            os.chown(part, NOBODY, NOBODY)
    return wish


def lay_deep(folder: Path) -> str:
    """A file in ``folder`` whose path is longer than the kernel takes at once; its path from there."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    files.write_file("deep.dat", fd, b"deep")
    os.close(fd)
    return "/".join(["d" * 250] * 20) + "/deep.dat"


def taken_up(claims: Claims, known: Collection[str] = ()) -> list[Taken]:
    """What a start makes of the claims that have no row; ``known`` have one."""
    return claims.adopt(claims.unfinished_ids(known))
