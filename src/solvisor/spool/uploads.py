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

from solvisor import failpoint
from solvisor.errors import Refused
from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.names import escape_name, is_plain_name

from . import files
from .claims import Taken
from .drops import FILES_MAX, Take, entry_problem, our_uid, tree_problem
from .move import PLAN, UPLOAD, Plan, discard_claim

_INPUT = "input"
_NAME_MAX = 255
"""Bytes in a file name."""


class Upload:
    """One submission. Its methods block and are called one after the other; end with ``finish`` or ``discard``."""

    def __init__(self, home: Home, job_id: str) -> None:
        self.job_id = job_id
        self._work = str(home.work)
        self._folder = job_id + UPLOAD
        self._entries = 0
        self._fd = -1
        self._fds = contextlib.ExitStack()
        with contextlib.ExitStack() as on_failure:
            on_failure.callback(self._fds.close)
            self._work_fd = self._opened(self._work)
            os.mkdir(self._folder, 0o750, dir_fd=self._work_fd)
            failpoint.reach("upload.begun")
            on_failure.callback(files.discard, self._folder, self._work_fd)
            self._job_fd = self._opened(self._folder, self._work_fd)
            os.mkdir(_INPUT, 0o750, dir_fd=self._job_fd)
            self._input_fd = self._opened(_INPUT, self._job_fd)
            on_failure.pop_all()

    def _opened(self, name: str, folder_fd: int | None = None) -> int:
        fd = files.open_folder(name, folder_fd)
        self._fds.callback(os.close, fd)
        return fd

    def begin(self, name: str) -> None:
        """Begin a file; ``/`` in its name makes folders. Raises ``Refused``, ``OSError``."""
        check_name(name)
        *parents, last = name.split("/")
        folder_fd = self._input_fd
        try:
            for parent in parents:
                if files.lstat(parent, folder_fd) is None:
                    self._count()
                    os.mkdir(parent, 0o750, dir_fd=folder_fd)
                above, folder_fd = folder_fd, files.open_folder(parent, folder_fd)
                if above != self._input_fd:
                    os.close(above)
            self._count()
            self._fd = files.new_file(last, folder_fd)
        except (FileExistsError, NotADirectoryError):
            raise Refused("name", f"the name {name!r} was sent twice, or is a file and a folder; rename one") from None
        finally:
            if folder_fd != self._input_fd:
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
        failpoint.reach("upload.file_written")

    def copy_inputs(self, home: Home, target: Literal["done", "failed", "rejected"], job_id: str) -> None:
        """Take the inputs of a finished job again, sharing blocks where the disk can.

        Raises ``Refused`` if they are gone or could not be inputs, ``OSError``.
        """
        place = home.root / target
        text = f"the inputs of {job_id} are not in {target}/{job_id}/input any more; submit them again"
        gone = Refused("inputs_gone", text)
        try:
            with files.in_folder(place) as fd, files.in_folder(job_id, fd) as fd, files.in_folder(_INPUT, fd) as fd:
                problem = tree_problem(fd, job_id)
                if problem is None:
                    files.copy_tree(fd, self._input_fd)
        except (FileNotFoundError, NotADirectoryError):
            raise gone from None
        except files.Replaced:
            if (place / job_id).is_dir():
                raise
            raise gone from None
        if not (place / job_id).is_dir():  # taken from view meanwhile, so not all that was seen may be all there was
            raise gone
        if problem is not None:
            raise Refused(*problem)
        failpoint.reach("upload.copied")

    def finish(self, take: Take, expected: Sequence[FileFact] | None = None) -> Taken:
        """Make it a claim, durably. ``expected`` is what the files must be, where that is known.

        Raises ``Refused`` if they are not, or if what is here could not be inputs, ``NotDurable``, ``OSError``.
        """
        request = take.request
        assert request is not None, "an upload comes with its request"  # noqa: S101  a defect, not a user's mistake
        plan = Plan(tuple(map(escape_name, take.sources)), take.route, take.folder, (), request)
        with files.Syncs() as syncs:
            facts = self._described(syncs)
            if expected is not None and sorted(facts, key=_path) != sorted(expected, key=_path):
                text = f"the inputs of {request.retry_of} were changed since; submit them again"
                raise Refused("inputs_changed", text)
            files.write_file(PLAN, self._job_fd, msgspec.json.encode(plan))
            failpoint.reach("upload.planned")
            syncs.add([(PLAN, self._job_fd)])
            syncs.add_open(self._input_fd)
            syncs.add_open(self._job_fd)
        failpoint.reach("upload.durable")
        os.rename(self._folder, self.job_id, src_dir_fd=self._work_fd, dst_dir_fd=self._work_fd)
        self._folder = self.job_id
        failpoint.reach("upload.named")
        files.durable([(".", self._work_fd)])
        failpoint.reach("upload.claimed")
        self.close()
        return Taken(take, facts, our_uid())

    def _described(self, syncs: files.Syncs) -> tuple[FileFact, ...]:
        """What is here, as it will be durable with ``syncs``. Raises ``Refused`` if it could not be inputs."""
        facts: list[FileFact] = []
        for count, entry in enumerate(files.walk(self._input_fd)):
            problem = entry_problem(entry, count, self.job_id)
            if problem is not None:
                raise Refused(*problem)
            if entry.is_file:
                facts.append(files.describe(entry, f"{_INPUT}/"))
            syncs.add([(entry.name, entry.folder_fd)])
        return tuple(facts)

    def discard(self) -> None:
        """Leave nothing of it."""
        try:
            if self._fd >= 0:
                self.end()
            with files.in_folder(self._work) as work_fd:
                if self._folder == self.job_id:
                    discard_claim(self.job_id, work_fd)
                else:
                    files.discard(self._folder, work_fd)
        finally:
            self.close()

    def close(self) -> None:
        """Close its folders; what is there stays."""
        self._fds.close()


def check_name(name: str) -> None:
    """Raise ``Refused`` for what no file of a submission can be called."""
    parts = name.split("/")
    if len(parts) > files.DEPTH_MAX or not all(map(_is_good, parts)):
        shown = escape_name(name)
        raise Refused("name", f"the name {shown!r} cannot be used for a file of a job; rename it")


def discard_unfinished(home: Home) -> list[str]:
    """Clear away what an earlier life did not finish; returns the ids that will never be. Call it at start."""
    with os.scandir(home.work) as entries:
        left = [entry.name for entry in entries if entry.name.endswith(UPLOAD)]
    work_fd = files.open_folder(str(home.work))
    try:
        for name in left:
            files.discard(name, work_fd)
    finally:
        os.close(work_fd)
    return [name.removesuffix(UPLOAD) for name in left]


def _is_good(part: str) -> bool:
    return part not in {"", ".", ".."} and is_plain_name(part) and len(os.fsencode(part)) <= _NAME_MAX


def _path(fact: FileFact) -> str:
    return fact.path
