"""Folders of jobs on a real home, on their way from staging to publishing."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

from solvisor.home import Home
from solvisor.model import FileFact

JOB = "beam-0123456789abcde"
MANIFEST = b'{"id":"beam-0123456789abcde","state":"succeeded"}\n'


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


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
