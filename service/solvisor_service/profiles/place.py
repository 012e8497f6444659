"""Puts a configuration and example inputs in their places.

Rules: a configuration is read as the daemon will read it before it is in place; it appears by one step, whole; a new
one never takes the place of a file that is there, and an old one only grows at its end, keeping owner and mode. A file
that is there already is no example of ours. This module must not know what the text says.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from solvisor import config
from solvisor.config import Config
from solvisor.errors import ConfigError, SolvisorError
from solvisor.process import host
from solvisor_service.profiles import Profile

_MODE: Final = 0o644
"""Less the umask. Not writable by everyone, as a configuration says what is run."""

_GUIDE: Final = """\
Small inputs to try, written by `solvisor init --examples`. Copy one into the inbox, and look for its folder in done/ or
failed/. Exit codes lie: what a good run looks like stands in each solver's table.

"""


class Exists(SolvisorError):
    """There is a configuration already."""

    code = "exists"
    exit_status = 2


def create(target: Path, text: str) -> Config:
    """Make a new configuration of ``text``. Raises ``Exists``, ``ConfigError`` and ``OSError``."""
    verified = _verified(text, target)
    temporary = _written_beside(target, text.encode(), _MODE)
    try:
        if sys.platform == "win32":
            os.rename(temporary, target)  # here it refuses to replace
        else:
            os.link(temporary, target)
    except FileExistsError:
        raise Exists(f"{target} appeared meanwhile; nothing was changed") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return verified


def append(target: Path, tables: Sequence[str]) -> Config:
    """Add ``tables`` at the end of a configuration. Raises ``ConfigError`` and ``OSError``, with nothing changed."""
    real = Path(os.path.realpath(target))
    before = real.read_bytes()
    addition = "\n" + "\n".join(["# Added by `solvisor init --update`.", *tables])
    if not before.endswith(b"\n"):
        addition = f"\n{addition}"
    if b"\r\n" in before:
        addition = addition.replace("\n", "\r\n")
    data = before + addition.encode()
    try:
        verified = _verified(data.decode("utf-8-sig"), target)
    except ConfigError as error:
        told = [*error.problems, "nothing was changed; docs/solvers has the tables to paste where they fit"]
        raise ConfigError(f"{target}, with what init would append", told) from None
    status = real.stat()
    temporary = _written_beside(real, data, 0o600)  # the old one may hold secrets; its own mode comes below
    try:
        if sys.platform != "win32":
            with contextlib.suppress(PermissionError):  # somebody else's; whoever may change it may own it
                os.chown(temporary, status.st_uid, status.st_gid)
            os.chmod(temporary, status.st_mode & 0o777)
        os.replace(temporary, real)
    except OSError:
        os.unlink(temporary)
        raise
    return verified


def _verified(text: str, target: Path) -> Config:
    """What ``text`` says, if the daemon of this machine could start with it. Raises ``ConfigError``."""
    read = config.parse(text, target)
    read.limits(host.usable_cpus(), host.total_memory_bytes())
    return read


def _written_beside(target: Path, data: bytes, mode: int) -> Path:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    _write(temporary, data, mode)
    return temporary


def _write(path: Path, data: bytes, mode: int = _MODE) -> None:
    """Make a new file, on the disk when this returns. Raises ``FileExistsError``; a part of a file never stays."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        os.unlink(path)
        raise


def put_examples(folder: Path, known: Sequence[Profile]) -> None:
    """Copy the example inputs of solvers to ``folder/<solver>/``, and a guide. Files that are there are kept."""
    for profile in known:
        for example in profile.about.examples:
            _copy(profile.example(example), folder / profile.name / example.file)
    guide = folder / "README.txt"
    os.makedirs(folder, exist_ok=True)
    guide.unlink(missing_ok=True)
    _write(guide, (_GUIDE + "".join(map(_guide_to, known))).encode())


def _copy(source: Traversable, target: Path) -> None:
    if source.is_dir():
        for inner in source.iterdir():
            _copy(inner, target / inner.name)
        return
    os.makedirs(target.parent, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        _write(target, source.read_bytes())


def _guide_to(profile: Profile) -> str:
    lines = []
    for example in profile.about.examples:
        end = "done" if example.good else "failed"
        lines.append(f"  {profile.name + '/' + example.file:32} {end:8}{example.shows}".rstrip() + "\n")
    return "".join(lines)
