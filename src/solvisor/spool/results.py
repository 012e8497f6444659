"""The folder of a job from staging to publishing: ``work/<id>`` until its manifest is written, then its target.

Rules: every method may be repeated after a crash at any point. A manifest gets its name only when its bytes are
durable, and never changes after that. This module must not know how outputs are judged or what a manifest says.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from msgspec import Struct

from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.names import unescape_name

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


_CLOCK_GRAIN_US = 10_000
"""File times come from a coarse clock, up to a tick behind."""


class Survey(NamedTuple):
    """What a try left.

    ``outputs`` are files and links: ``output/...``, ``stdout.log``, ``stderr.log``. ``unchanged`` are the inputs, by
    their names in ``output/``, of which nothing new lies there: the staged copy as it was, or none. Both count the
    same, so that the answer does not change when the copies are removed.
    """

    outputs: tuple[FileFact, ...]
    unchanged: frozenset[str]


class Results:
    """The job folders of one home. Its methods may run in several threads, but only one at a time for one job."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @contextlib.contextmanager
    def _job_folder(self, job_id: str) -> Iterator[int]:
        with _folder(self._home.work) as work_fd:
            job_fd = files.open_folder_of_ours(job_id, work_fd)
        try:
            yield job_fd
        finally:
            os.close(job_fd)

    def stage(self, job_id: str, attempt_n: int, skip: Collection[str] = ()) -> None:
        """Make a fresh ``output/`` for try ``attempt_n`` (from 1): a copy of every file of ``input/`` but ``skip``.

        ``skip`` are names relative to ``input/``. What an earlier try left (``output/``, logs) moves to
        ``attempt-<n-1>/``. Raises ``OSError``.
        """
        with self._job_folder(job_id) as job_fd:
            files.discard(_STAGING, job_fd)
            if attempt_n > 1:
                _put_aside(job_fd, f"attempt-{attempt_n - 1}")
            for left in (_OUTPUT, *_LOGS):
                files.discard(left, job_fd)
            os.mkdir(_STAGING, 0o750, dir_fd=job_fd)
            try:
                with _folder("input", job_fd) as input_fd, _folder(_STAGING, job_fd) as output_fd:
                    files.copy_tree(input_fd, output_fd, skip)
            except OSError:
                with contextlib.suppress(OSError):  # a full disk is not to be kept full by half a copy
                    files.discard(_STAGING, job_fd)
                raise
            os.rename(_STAGING, _OUTPUT, src_dir_fd=job_fd, dst_dir_fd=job_fd)

    def survey(self, job_id: str, inputs: Sequence[FileFact]) -> Survey:
        """Read what a try left; its inputs were ``inputs``. Only what was made unreadable is changed: it is readable.

        Links are listed, not followed; what lies deeper than ``files.DEPTH_MAX`` folders or is neither file nor link is
        not listed. Call it when no process of the job is left. Raises ``OSError``.
        """
        staged = {fact.path.removeprefix("input/"): fact for fact in inputs}
        listed: list[FileFact] = []
        with self._job_folder(job_id) as job_fd:
            with _output(job_fd) as output_fd:
                for entry in files.walk(output_fd, ours=True) if output_fd is not None else ():
                    if entry.is_folder or not _is_listed(entry):
                        staged.pop(entry.path, None)
                        continue
                    fact = files.describe(entry, "output/")
                    source = staged.get(entry.path)
                    if source is None or not _is_copy(source, fact):
                        staged.pop(entry.path, None)
                        listed.append(fact)
            listed += _others(job_fd)
        return Survey(tuple(listed), frozenset(staged))

    def altered_inputs(self, job_id: str, inputs: Sequence[FileFact], since_us: int) -> list[str]:
        """Those of ``inputs``, by their paths, that are not in ``input/`` any more as they were dropped.

        Only files that were touched since ``since_us`` (UTC microseconds) are read again. Raises ``OSError``.
        """
        with self._job_folder(job_id) as job_fd:
            return [fact.path for fact in inputs if _is_altered(fact, job_fd, since_us)]

    def keep(self, batch: Sequence[tuple[str, Survey]]) -> list[OSError | None]:
        """Make durable what was surveyed, under one set of fsyncs, without the inputs that were only staged.

        Those are removed from ``output/`` with the folders that held nothing else. For each job the error is returned
        that kept it from being done. Raises ``NotDurable``.
        """
        errors: list[OSError | None] = []
        with files.Syncs() as syncs:
            for job_id, survey in batch:
                try:
                    with self._job_folder(job_id) as job_fd:
                        with _output(job_fd) as output_fd:
                            if output_fd is not None:
                                _remove(output_fd, [name.split("/") for name in survey.unchanged])
                        syncs.add(_spots(job_fd))
                    errors.append(None)
                except OSError as error:
                    errors.append(error)
        return errors

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


def _is_altered(fact: FileFact, job_fd: int, since_us: int) -> bool:
    path = unescape_name(fact.path)
    found = files.lstat(path, job_fd)
    if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != fact.size:
        return True
    touched = found.st_ctime_ns // 1000 >= since_us - _CLOCK_GRAIN_US
    return touched and files.hash_file(path, job_fd) != (fact.size, fact.sha256)


def _put_aside(job_fd: int, name: str) -> None:
    """Keep what an earlier try left. What is there already was put aside before a crash; the rest is half a staging."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o750, dir_fd=job_fd)
    with _folder(name, job_fd) as aside_fd:
        for left in (_OUTPUT, *_LOGS):
            if files.lstat(left, aside_fd) is None and files.lstat(left, job_fd) is not None:
                files.move_folder(left, job_fd, left, aside_fd)


@contextlib.contextmanager
def _output(job_fd: int) -> Iterator[int | None]:
    """The open ``output/``; ``None`` if a solver removed it or put something else in its place."""
    found = files.lstat(_OUTPUT, job_fd)
    if found is None or not stat.S_ISDIR(found.st_mode):
        yield None
        return
    fd = files.open_folder_of_ours(_OUTPUT, job_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_listed(entry: files.Entry) -> bool:
    return entry.is_file or stat.S_ISLNK(entry.stat.st_mode)


def _is_copy(source: FileFact, fact: FileFact) -> bool:
    return fact.link is None and (source.size, source.sha256) == (fact.size, fact.sha256)


def _remove(folder_fd: int, names: Sequence[Sequence[str]]) -> None:
    """Remove files, each given by the parts of its path, and the folders emptied by that."""
    below: dict[str, list[Sequence[str]]] = {}
    for name, *rest in names:
        if rest:
            below.setdefault(name, []).append(rest)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=folder_fd)
    for name, rests in below.items():
        try:
            with _folder(name, folder_fd) as fd:
                _remove(fd, rests)
        except (FileNotFoundError, NotADirectoryError):  # removed, or replaced, by the solver
            continue
        try:
            os.rmdir(name, dir_fd=folder_fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _others(job_fd: int) -> Iterator[FileFact]:
    """The logs, and whatever a solver put in the place of ``output/``."""
    for name in (_OUTPUT, *_LOGS):
        found = files.lstat(name, job_fd)
        if found is not None:
            entry = files.Entry(name, name, job_fd, found, 1)
            if entry.is_file or (name == _OUTPUT and _is_listed(entry)):
                yield files.describe(entry, "")


def _spots(job_fd: int) -> Iterator[files.Spot]:
    """What of a job's folder must be durable before its row may say that it is."""
    for name in (_OUTPUT, *_LOGS):
        found = files.lstat(name, job_fd)
        if found is not None and stat.S_ISREG(found.st_mode):
            yield name, job_fd
    with _output(job_fd) as output_fd:
        if output_fd is not None:
            yield from files.spots_in(output_fd)
            yield ".", output_fd
    yield ".", job_fd


class _Item:
    """One publication on its way; ``waiting``: its folder still lies in ``work/``."""

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.work_fd = -1
        self.target_fd = -1
        self.waiting = True
        self.written = False
        self.fd = -1


class _Batch:
    """Some publications under one set of fsyncs."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._fds = contextlib.ExitStack()
        self._folders: dict[str, int] = {}

    def __enter__(self) -> _Batch:
        return self

    def __exit__(self, *_: object) -> None:
        self._fds.close()

    def publish(self, batch: Sequence[Publication], errors: dict[str, OSError]) -> list[str]:
        items = [_Item(publication) for publication in batch]
        items = _each(items, self._open, errors)
        items = _each(items, self._write, errors)
        with files.Syncs() as syncs:
            items = _each(items, lambda item: syncs.add([(_TEMPORARY, item.fd)] if item.written else []), errors)
        items = _each(items, _name_manifest, errors)
        files.durable((".", item.fd) for item in items)
        items = _each(items, _move, errors)
        # A folder must not vanish from work/ before its new place is safe.
        files.durable((".", target_fd) for target_fd in {item.target_fd for item in items})
        files.durable((".", work_fd) for work_fd in {item.work_fd for item in items})
        return [item.publication.id for item in items]

    def _open(self, item: _Item) -> None:
        item.work_fd = self._folder("work")
        item.target_fd = self._folder(item.publication.target)

    def _write(self, item: _Item) -> None:
        job_id = item.publication.id
        if files.lstat(job_id, item.work_fd) is None:
            item.waiting = files.lstat(job_id, item.target_fd) is None
            if item.waiting:
                os.mkdir(job_id, 0o750, dir_fd=item.work_fd)  # somebody removed it; its manifest appears all the same
        item.fd = self._opened(files.open_folder_of_ours(job_id, item.work_fd if item.waiting else item.target_fd))
        there = os.listdir(item.fd)
        for litter in {PLAN, _TEMPORARY, _STAGING}.intersection(there):
            files.discard(litter, item.fd)
        if _MANIFEST in there:
            if not item.waiting or _holds(item.fd, item.publication.manifest):
                return
            files.discard(_MANIFEST, item.fd)  # a solver's work, not ours
        files.write_file(_TEMPORARY, item.fd, item.publication.manifest)
        item.written = True

    def _folder(self, name: str) -> int:
        """A folder of the home, made anew if somebody cleared it away."""
        if name not in self._folders:
            path = self._home.root / name
            try:
                os.mkdir(path, 0o750 if path == self._home.work else 0o777)
            except FileExistsError:
                pass
            else:
                with _folder(self._home.root) as root_fd:
                    files.durable([(".", root_fd)])
            self._folders[name] = self._opened(files.open_folder(str(path)))
        return self._folders[name]

    def _opened(self, fd: int) -> int:
        self._fds.callback(os.close, fd)
        return fd


def _each(items: list[_Item], step: Callable[[_Item], None], errors: dict[str, OSError]) -> list[_Item]:
    """Take one step with each; the error of those that fail is noted, the others are returned."""
    good: list[_Item] = []
    for item in items:
        try:
            step(item)
        except files.NotDurable:
            raise
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
