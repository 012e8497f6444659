"""Stopping a piece of code at its n-th change to the disk, as a crash would.

Rules: every call that changes something on the disk is counted, whoever makes it; the n-th does not happen. What is
raised is no ``Exception``, so no handler of the code under test can tidy up after it, as none could after ``kill -9``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import fsync_kit

CHANGES = ("mkdir", "rename", "replace", "link", "symlink", "unlink", "rmdir", "write", "utime", "chmod", "fsync")


class Crash(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def at_call(n: int, stop: Callable[[str], None]) -> Iterator[None]:
    """Call ``stop`` with the name of the n-th (from 0) change within the block, before it happens."""
    count = 0

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*args: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == n + 1:
                stop(name)
            return real(*args, **named)

        return call

    with contextlib.ExitStack() as stack:
        stack.enter_context(fsync_kit.one_by_one())
        for name in CHANGES:
            stack.enter_context(mock.patch.object(os, name, counted(name)))
        yield


def crashed_at(n: int, action: Callable[[], object]) -> bool:
    """Run ``action`` but crash at its n-th change; ``False`` once there are fewer changes than that."""

    def stop(name: str) -> None:
        raise Crash(name)

    try:
        with at_call(n, stop):
            action()
    except Crash:
        return True
    return False
