"""Folders of results on their way out: measured, taken from view by one rename, then destroyed piece by piece.

A result that is to go is renamed to ``work/<id>.doomed``, durably, before its row says so and before anything of it is
destroyed. So nobody ever sees half a result, and what a crash left is found by its name. Rules: every function blocks
and may be repeated after a crash at any point. This module must not know which results are to go, nor why.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

from solvisor.home import Home
from solvisor.model import TARGETS, Target
from solvisor.names import is_job_id

from . import files

_SUFFIX = ".doomed"
"""Bytes in a block of ``st_blocks``, whatever the file system uses."""


class Doomed(NamedTuple):
    """What became of some results: out of view, gone already (somebody removed them), not to be moved and why."""

    ids: tuple[str, ...]
    gone: tuple[str, ...]
    errors: dict[str, OSError]


def holds_results(home: Home) -> bool:
    """Whether there is a folder of a finished job."""
    for target in dict.fromkeys(TARGETS.values()):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(home.root / target) as entries:
            if any(is_job_id(entry.name) for entry in entries):
                return True
    return False


def measure(home: Home, target: Target, job_id: str) -> int:
    """Bytes on the disk that the folder of a job takes; 0 if it is gone. Raises ``OSError``."""
    try:
        with files.in_folder(home.root / target) as target_fd, files.in_folder(job_id, target_fd) as fd:
            return sum(files.room_of(entry.stat) for entry in files.walk(fd, ours=True))
    except (FileNotFoundError, NotADirectoryError):
        return 0


def doom(home: Home, places: Sequence[tuple[Target, str]]) -> Doomed:
    """Take the folders of these jobs from view; those that were are durably so. Raises ``NotDurable``."""
    doomed: list[str] = []
    gone: list[str] = []
    errors: dict[str, OSError] = {}
    with contextlib.ExitStack() as fds:
        work_fd = fds.enter_context(files.in_folder(home.work))
        targets: dict[Target, int] = {}
        for target, job_id in places:
            try:
                if target not in targets:
                    targets[target] = fds.enter_context(files.in_folder(home.root / target))
                files.move_folder(job_id, targets[target], job_id + _SUFFIX, work_fd)
            except FileNotFoundError:
                gone.append(job_id)
            except OSError as error:
                errors[job_id] = error
            else:
                doomed.append(job_id)
        # First where they can be found again: a folder must not vanish from both.
        files.durable([(".", work_fd)])
        files.durable((".", fd) for fd in targets.values())
    return Doomed(tuple(doomed), tuple(gone), errors)


def doomed(home: Home) -> list[str]:
    """The ids of those that are out of view and not destroyed yet."""
    return [name.removesuffix(_SUFFIX) for name in os.listdir(home.work) if name.endswith(_SUFFIX)]


def destroy(home: Home, job_id: str, most: int) -> tuple[int, bool]:
    """Destroy at most ``most`` files and folders of one that is out of view: the bytes freed, and if nothing is left.

    What cannot be removed keeps nothing else: the ``OSError`` is raised when only such is left.
    """
    name = job_id + _SUFFIX
    errors: list[OSError] = []
    with files.in_folder(home.work) as work_fd:
        with contextlib.closing(_removed(name, work_fd, most, errors)) as removed:
            freed = list(itertools.islice(removed, most))
        if errors and len(freed) < most:
            raise errors[0]
        return sum(freed), files.lstat(name, work_fd) is None


class _Entered(NamedTuple):
    """A folder that is being emptied: its name, what it was, itself open, and names in it."""

    name: str
    stat: os.stat_result
    fd: int
    names: list[str]


def _removed(name: str, folder_fd: int, most: int, errors: list[OSError]) -> Generator[int, None, None]:
    """Remove it, what a folder holds before the folder; the bytes freed by each thing that went.

    Links are not followed. Of a folder at most ``most`` names are read: it may have millions.
    """
    path: list[_Entered] = []
    todo = [name]
    try:
        while todo or path:
            parent_fd = path[-1].fd if path else folder_fd
            if todo:
                name = todo.pop()
                found = files.lstat(name, parent_fd)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    with _told(errors):
                        if len(path) > files.DEPTH_MAX:  # nothing bounds how deep a solver leaves its folders
                            lifted = secrets.token_hex(16)
                            files.move_folder(name, parent_fd, lifted, path[0].fd)
                            path[0].names.append(lifted)
                        else:
                            path.append(_enter(name, found, parent_fd, most))
                            todo = path[-1].names
                    continue
                remove = os.unlink
            else:
                name, found, fd, _ = path.pop()
                os.close(fd)
                todo = path[-1].names if path else []
                parent_fd = path[-1].fd if path else folder_fd
                remove = os.rmdir
            if found is not None:
                with _told(errors):
                    remove(name, dir_fd=parent_fd)
                    yield files.room_of(found)
    finally:
        for entered in path:
            os.close(entered.fd)


def _enter(name: str, found: os.stat_result, folder_fd: int, most: int) -> _Entered:
    fd = files.open_folder_of_ours(name, folder_fd)
    try:
        with os.scandir(fd) as entries:
            return _Entered(name, found, fd, [entry.name for entry in itertools.islice(entries, most)])
    except BaseException:
        os.close(fd)
        raise


@contextlib.contextmanager
def _told(errors: list[OSError]) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        errors.append(error)
