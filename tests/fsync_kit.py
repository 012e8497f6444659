"""A stand-in for ``os.fsync`` that sees every sync: the kernel, which else takes many at once, refuses that."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from unittest import mock

import pytest

from solvisor.spool import flush


def refused() -> None:
    """What a kernel answers that has no io_setup."""
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@contextlib.contextmanager
def one_by_one() -> Iterator[None]:
    """For a block: each file is synced by a call of its own, in some thread."""
    with mock.patch.object(flush, "_Ring", refused), mock.patch.object(flush, "_idle", []):
        yield


def fsync_by(patch: pytest.MonkeyPatch, fsync: Callable[[int], None]) -> None:
    """Have every file and folder synced by ``fsync``."""
    patch.setattr(flush, "_Ring", refused)
    patch.setattr(flush, "_idle", [])
    patch.setattr(os, "fsync", fsync)
