"""Submissions on their way into ``work/<id>``: files that are sent, or taken again from a finished job.

They grow in ``work/<id>.upload`` and get the name of a claim by one rename, when every byte is durable and beside them
stands who sent them. So a crash leaves either nothing that counts, which ``discard_unfinished`` clears away, or a whole
claim without a row, which is adopted at the next start like any other.

Rules: a name that is sent never leaves the folder of its upload. This module must not know solvers, job files or rows.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Literal

import msgspec

from solvisor.errors import Refused
from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.names import escape_name, is_plain_name

from . import files
from .claims import Taken
from .drops import FILES_MAX, Take, our_uid, tree_problem
from .move import PLAN, Plan

_SUFFIX = ".upload"
_INPUT = "input"
_NAME_MAX = 255
"""Bytes in a file name."""


class Upload:
    """One submission. Its methods block and are called one after the other; end with ``finish`` or ``discard``."""

    def __init__(self, home: Home, job_id: str) -> None:
        self.job_id = job_id
        self._folder = job_id + _SUFFIX
        self._entries = 0
        self._fd = -1
        with contextlib.ExitStack() as on_failure:
            self._work_fd = _opened(files.open_folder(str(home.work)), on_failure)
            os.mkdir(self._folder, 0o750, dir_fd=self._work_fd)
            on_failure.callback(files.discard, self._folder, self._work_fd)
            self._job_fd = _opened(files.open_folder(self._folder, self._work_fd), on_failure)
            os.mkdir(_INPUT, 0o750, dir_fd=self._job_fd)
            self._input_fd = _opened(files.open_folder(_INPUT, self._job_fd), on_failure)
            on_failure.pop_all()
        self._fds = contextlib.ExitStack()
        for fd in (self._work_fd, self._job_fd, self._input_fd):
            self._fds.callback(os.close, fd)

    def begin(self, name: str) -> None:
        """Begin a file; ``/`` in its name makes folders. Raises ``Refused``, ``OSError``."""
        parts = name.split("/")
        if len(parts) > files.DEPTH_MAX or not all(map(_is_good, parts)):
            shown = escape_name(name)
            raise Refused("name", f"the name {shown!r} cannot be used for a file of a job; rename it")
        folder_fd = os.dup(self._input_fd)
        try:
            for part in parts[:-1]:
                if files.lstat(part, folder_fd) is None:
                    self._count()
                    os.mkdir(part, 0o750, dir_fd=folder_fd)
                below = files.open_folder(part, folder_fd)
                os.close(folder_fd)
                folder_fd = below
            self._count()
            self._fd = files.new_file(parts[-1], folder_fd)
        except (FileExistsError, NotADirectoryError):
            raise Refused("name", f"the name {name!r} was sent twice, or is a file and a folder; rename one") from None
        finally:
            os.close(folder_fd)

    def _count(self) -> None:
        """One more file or folder: as many as a dropped folder may hold."""
        self._entries += 1
        if self._entries > FILES_MAX:
            text = f"more than {FILES_MAX:,} files and folders; send one archive that your solver can open"
            raise Refused("too_many_files", text)

    def write(self, data: bytes) -> None:
        """Append to the file that was begun. Raises ``OSError``."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]

    def end(self) -> None:
        """End the file that was begun."""
        fd, self._fd = self._fd, -1
        os.close(fd)

    def copy_inputs(self, home: Home, target: Literal["done", "failed", "rejected"], job_id: str) -> None:
        """Take the inputs of a finished job again, sharing blocks where the disk can.

        Raises ``Refused`` if they are gone or could not be inputs, ``OSError``.
        """
        with contextlib.ExitStack() as opened:
            fd = _opened(files.open_folder(str(home.root / target)), opened)
            try:
                for name in (job_id, _INPUT):
                    fd = _opened(files.open_folder(name, fd), opened)
            except (FileNotFoundError, NotADirectoryError):
                text = f"the inputs of {job_id} are not in {target}/{job_id}/input any more; submit them again"
                raise Refused("inputs_gone", text) from None
            problem = tree_problem(fd, job_id, copied=True)
            if problem is not None:
                raise Refused(*problem)
            files.copy_tree(fd, self._input_fd)

    def finish(self, take: Take, expected: Sequence[FileFact] | None = None) -> Taken:
        """Make it a claim, durably. ``expected`` is what the files must be, where that is known.

        Raises ``Refused`` if they are not, or if what is here could not be inputs, ``NotDurable``, ``OSError``.
        """
        request = take.request
        assert request is not None, "an upload comes with its request"  # noqa: S101  a defect, not a user's mistake
        problem = tree_problem(self._input_fd, self.job_id)
        if problem is not None:
            raise Refused(*problem)
        facts = tuple(files.describe(e, "input/") for e in files.walk(self._input_fd) if not e.is_folder)
        if expected is not None and sorted(facts, key=_path) != sorted(expected, key=_path):
            raise Refused("inputs_changed", f"the inputs of {request.retry_of} were changed since; submit them again")
        plan = Plan(tuple(map(escape_name, take.sources)), take.route, take.folder, (), request)
        files.write_file(PLAN, self._job_fd, msgspec.json.encode(plan))
        with files.Syncs() as syncs:
            syncs.add(files.spots_in(self._input_fd))
            syncs.add([(".", self._input_fd), (PLAN, self._job_fd), (".", self._job_fd)])
        os.rename(self._folder, self.job_id, src_dir_fd=self._work_fd, dst_dir_fd=self._work_fd)
        self._folder = self.job_id
        files.durable([(".", self._work_fd)])
        return Taken(take, facts, our_uid())

    def discard(self) -> None:
        """Leave nothing of it."""
        if self._fd >= 0:
            self.end()
        files.discard(self._folder, self._work_fd)

    def close(self) -> None:
        """Close its folders; the claim stays."""
        self._fds.close()


def discard_unfinished(home: Home) -> list[str]:
    """Clear away what an earlier life did not finish; returns the ids that will never be. Call it at start."""
    with os.scandir(home.work) as entries:
        left = [entry.name for entry in entries if entry.name.endswith(_SUFFIX)]
    work_fd = files.open_folder(str(home.work))
    try:
        for name in left:
            files.discard(name, work_fd)
    finally:
        os.close(work_fd)
    return [name.removesuffix(_SUFFIX) for name in left]


def _opened(fd: int, cleanup: contextlib.ExitStack) -> int:
    cleanup.callback(os.close, fd)
    return fd


def _is_good(part: str) -> bool:
    return part not in {"", ".", ".."} and is_plain_name(part) and len(os.fsencode(part)) <= _NAME_MAX


def _path(fact: FileFact) -> str:
    return fact.path
