"""Trouble of the machine, as opposed to faults of a job: what is waited out and never charged to anybody."""

from __future__ import annotations

import errno

PASSING = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EINTR}
    | {errno.EIO}
)
"""Errors that say nothing about a job: a full or read-only disk, no memory, no descriptors."""

RETRY_SECONDS = 1.0
"""The rest before what met one is tried again."""


def is_passing(error: BaseException | None) -> bool:
    """Whether an error is trouble of the machine that may pass."""
    return isinstance(error, OSError) and error.errno in PASSING
