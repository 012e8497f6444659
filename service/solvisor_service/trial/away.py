"""The throw-away home of a trial: made beside the real one, gone when the trial is over.

Rules: it is locked as long as it is used, so what a killed trial left can be told from one under way; such a leftover
is ended and removed by the next trial. This module must not know what is tried.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from solvisor import home as homes
from solvisor.errors import HomeError, SolvisorError
from solvisor.home import Home
from solvisor.noted import noted_servers
from solvisor.process import posix
from solvisor.spool import files

if sys.platform == "win32":
    raise ImportError("solvisor_service.trial.away does what only Linux can and cannot be used on Windows")

_PREFIX: Final = ".solvisor-try-"
_LEFT_SECONDS: Final = 60.0
"""A home without a lock that is younger may belong to a trial that is about to take it."""
_KILL_SECONDS: Final = 5.0


@contextlib.contextmanager
def throw_away_home(home: Path) -> Iterator[Home]:
    """A home that lives as long as the context: on the disk of ``home`` where that can be, else in ``$TMPDIR``.

    Raises ``HomeError``.
    """
    for parent in (home, Path(tempfile.gettempdir())):
        try:
            root = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        except OSError as error:  # not there yet, or of somebody else
            refusal = error
        else:
            break
    else:
        raise HomeError(f"no folder can be made in {parent}: {refusal.strerror}; set TMPDIR to one that can be used")
    _tidy_up(parent)
    try:
        away = Home.at(root)
        away.prepare()
        with contextlib.closing(homes.lock(away)):
            yield away
    finally:
        _discard(root)


def _tidy_up(parent: Path) -> None:
    """End and remove what a trial left that was killed: such a home is locked by nobody any more."""
    for root in parent.glob(f"{_PREFIX}*"):
        try:
            left = Home.at(root)
            if time.time() - root.stat().st_mtime < _LEFT_SECONDS or not left.state.is_dir():
                continue
            with contextlib.closing(homes.lock(left)):
                noted = noted_servers(left, posix.boot_id())
                posix.kill_earlier_life(homes.home_id(left), _KILL_SECONDS, noted)
            _discard(root)
        except (OSError, SolvisorError):  # in use, or of somebody else
            continue


def _discard(root: Path) -> None:
    fd = files.open_folder(str(root.parent))
    try:
        files.discard(root.name, fd)
    except OSError as error:
        raise HomeError(f"{root} could not be removed: {error.strerror}; remove it by hand") from error
    finally:
        os.close(fd)
