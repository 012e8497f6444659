"""The folder of a job from staging to publishing: ``work/<id>`` until its manifest is written, then its target.

Rules: every method may be repeated after a crash at any point. A manifest gets its name only when its bytes are
durable, and never changes after that. This module must not know how outputs are judged or what a manifest says.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from solvisor.home import Home
from solvisor.model import FileFact

from . import files
from .move import PLAN

_MANIFEST = "manifest.json"
_TEMPORARY = "manifest.tmp"
_STAGING = "staging.tmp"
_OUTPUT = "output"
_LOGS = ("stdout.log", "stderr.log")
_BATCH_MAX = 128
"""Folders published under one set of fsyncs; each holds a descriptor meanwhile."""


class Publication(Struct, frozen=True):
    """One finished job: where its folder goes and the exact bytes of its manifest."""

    id: str
    target: Literal["done", "failed", "rejected"]
    manifest: bytes


class Results:
    """The job folders of one home. Its methods may run in several threads, but only one at a time for one job."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def stage(self, job_id: str, attempt_n: int, skip: Collection[str] = ()) -> None:
        """Make a fresh ``output/`` for try ``attempt_n`` (from 1): a copy of every file of ``input/`` but ``skip``.

        ``skip`` are names relative to ``input/``. What an earlier try left (``output/``, logs) moves to
        ``attempt-<n-1>/``. Raises ``OSError``.
        """
        with _folder(self._home.work / job_id) as job_fd:
            files.discard(_STAGING, job_fd)
            if attempt_n > 1:
                _put_aside(job_fd, f"attempt-{attempt_n - 1}")
            for left in (_OUTPUT, *_LOGS):
                files.discard(left, job_fd)
            os.mkdir(_STAGING, 0o750, dir_fd=job_fd)
            with _folder("input", job_fd) as input_fd, _folder(_STAGING, job_fd) as output_fd:
                files.copy_tree(input_fd, output_fd, skip)
            os.rename(_STAGING, _OUTPUT, src_dir_fd=job_fd, dst_dir_fd=job_fd)

    def collect(self, batch: Sequence[tuple[str, Sequence[FileFact]]]) -> list[tuple[FileFact, ...] | OSError]:
        """Make what tries left durable and list it: ``output/...``, ``stdout.log``, ``stderr.log``.

        ``batch`` holds job ids with their inputs; for each the list is returned, or the error that kept it from being
        made. Staged inputs that did not change are removed from ``output/`` and not listed; links are listed, not
        followed; what lies deeper than ``files.DEPTH_MAX`` folders or is neither file nor link is left alone. Call it
        when no process of these jobs is left. Raises ``NotDurable``.
        """
        lists: list[tuple[FileFact, ...] | OSError] = []
        spots: list[files.Spot] = []
        with contextlib.ExitStack() as folders:
            for job_id, inputs in batch:
                try:
                    job_fd = folders.enter_context(_folder(self._home.work / job_id))
                    staged = {fact.path.removeprefix("input/"): fact for fact in inputs}
                    listed = (*_outputs(job_fd, staged), *_logs(job_fd))
                    spots += _spots(job_fd, folders)
                    lists.append(listed)
                except OSError as error:
                    lists.append(error)
            files.durable(spots)
        return lists

    def write_durably(self, path: Path, data: bytes) -> None:
        """Write a file that exists either whole and durable or not at all. Raises ``NotDurable``, ``OSError``."""
        with _folder(path.parent) as folder_fd:
            files.discard(_TEMPORARY, folder_fd)
            files.write_file(_TEMPORARY, folder_fd, data)
            files.durable([(_TEMPORARY, folder_fd)])
            os.rename(_TEMPORARY, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            files.durable([(".", folder_fd)])

    def publish(self, batch: Sequence[Publication]) -> tuple[list[str], dict[str, OSError]]:
        """Write each manifest and move each folder to its target, durably.

        Returns the ids that are published now and, for each of the others, the error to tell and to try again after.
        A folder that is gone is made anew. Raises ``NotDurable`` if an fsync fails.
        """
        published: list[str] = []
        errors: dict[str, OSError] = {}
        for start in range(0, len(batch), _BATCH_MAX):
            with _Batch(self._home) as part:
                published += part.publish(batch[start : start + _BATCH_MAX], errors)
        return published, errors


def _put_aside(job_fd: int, name: str) -> None:
    """Keep what an earlier try left. What is there already was put aside before a crash; the rest is half a staging."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o750, dir_fd=job_fd)
    with _folder(name, job_fd) as aside_fd:
        for left in (_OUTPUT, *_LOGS):
            if files.lstat(left, aside_fd) is None and files.lstat(left, job_fd) is not None:
                files.move_folder(left, job_fd, left, aside_fd)


def _outputs(job_fd: int, staged: dict[str, FileFact]) -> Iterator[FileFact]:
    if files.lstat(_OUTPUT, job_fd) is None:
        return
    with _folder(_OUTPUT, job_fd) as output_fd:
        for entry in files.walk(output_fd, ours=True):
            if not (entry.is_file or stat.S_ISLNK(entry.stat.st_mode)):
                continue
            fact = files.describe(entry, "output/")
            source = staged.get(files.escape_name(entry.path))
            if source and (source.size, source.sha256) == (fact.size, fact.sha256) and entry.is_file:
                os.unlink(entry.name, dir_fd=entry.folder_fd)
            else:
                yield fact
        _remove_emptied(output_fd, staged)


def _remove_emptied(output_fd: int, staged: Collection[str]) -> None:
    """Remove the folders that held nothing but unchanged inputs."""
    folders = {str(parent) for path in staged for parent in Path(path).parents} - {"."}
    for folder in sorted(folders, key=len, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(files.unescape_name(folder), dir_fd=output_fd)


def _logs(job_fd: int) -> Iterator[FileFact]:
    for name in _LOGS:
        found = files.lstat(name, job_fd)
        if found is not None and stat.S_ISREG(found.st_mode):
            yield files.describe(files.Entry(name, name, job_fd, found, 1), "")


def _spots(job_fd: int, folders: contextlib.ExitStack) -> Iterator[files.Spot]:
    """What of a job's folder must be durable before its row may say that it is."""
    for name in _LOGS:
        if files.lstat(name, job_fd) is not None:
            yield name, job_fd
    if files.lstat(_OUTPUT, job_fd) is not None:
        output_fd = folders.enter_context(_folder(_OUTPUT, job_fd))
        yield from files.spots_in(output_fd)
        yield ".", output_fd
    yield ".", job_fd


class _Item:
    """One publication on its way; ``waiting``: its folder still lies in ``work/``."""

    def __init__(self, publication: Publication, work_fd: int, target_fd: int) -> None:
        self.publication = publication
        self.work_fd = work_fd
        self.target_fd = target_fd
        self.waiting = True
        self.written = False
        self.fd = -1


class _Batch:
    """Some publications under one set of fsyncs."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._fds = contextlib.ExitStack()
        self._work_fd = self._opened(files.open_folder(str(home.work)))
        self._targets: dict[str, int] = {}

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self._fds.close()

    def publish(self, batch: Sequence[Publication], errors: dict[str, OSError]) -> list[str]:
        items = [_Item(publication, self._work_fd, self._target(publication.target)) for publication in batch]
        items = _each(items, self._write, errors)
        files.durable((_TEMPORARY, item.fd) for item in items if item.written)
        items = _each(items, _name_manifest, errors)
        files.durable((".", item.fd) for item in items)
        items = _each(items, _move, errors)
        if items:
            files.durable((".", target_fd) for target_fd in self._targets.values())
            files.durable([(".", self._work_fd)])
        return [item.publication.id for item in items]

    def _write(self, item: _Item) -> None:
        job_id = item.publication.id
        if files.lstat(job_id, item.work_fd) is None:
            item.waiting = files.lstat(job_id, item.target_fd) is None
            if item.waiting:
                os.mkdir(job_id, 0o750, dir_fd=item.work_fd)  # somebody removed it; its manifest appears all the same
        item.fd = self._opened(files.open_folder(job_id, item.work_fd if item.waiting else item.target_fd))
        there = os.listdir(item.fd)
        for litter in {PLAN, _TEMPORARY, _STAGING}.intersection(there):
            files.discard(litter, item.fd)
        if _MANIFEST in there:
            if not item.waiting or _holds(item.fd, item.publication.manifest):
                return
            files.discard(_MANIFEST, item.fd)  # a solver's work, not ours
        files.write_file(_TEMPORARY, item.fd, item.publication.manifest)
        item.written = True

    def _target(self, name: str) -> int:
        if name not in self._targets:
            with contextlib.suppress(FileExistsError):
                os.mkdir(self._home.root / name)  # somebody cleared the results away, with their folder
            self._targets[name] = self._opened(files.open_folder(str(self._home.root / name)))
        return self._targets[name]

    def _opened(self, fd: int) -> int:
        self._fds.callback(os.close, fd)
        return fd


def _each(items: list[_Item], step: Callable[[_Item], None], errors: dict[str, OSError]) -> list[_Item]:
    """Take one step with each; the error of those that fail is noted, the others are returned."""
    good: list[_Item] = []
    for item in items:
        try:
            step(item)
        except OSError as error:
            errors[item.publication.id] = error
        else:
            good.append(item)
    return good


def _name_manifest(item: _Item) -> None:
    if item.written:
        os.rename(_TEMPORARY, _MANIFEST, src_dir_fd=item.fd, dst_dir_fd=item.fd)


def _move(item: _Item) -> None:
    if item.waiting:
        job_id = item.publication.id
        files.move_folder(job_id, item.work_fd, job_id, item.target_fd)


def _holds(folder_fd: int, manifest: bytes) -> bool:
    found = files.lstat(_MANIFEST, folder_fd)
    regular = found is not None and stat.S_ISREG(found.st_mode) and found.st_size == len(manifest)
    return regular and files.read_file(_MANIFEST, folder_fd) == manifest


@contextlib.contextmanager
def _folder(name: str | Path, folder_fd: int | None = None) -> Iterator[int]:
    fd = files.open_folder(str(name), folder_fd)
    try:
        yield fd
    finally:
        os.close(fd)
