"""The folder of a job from staging to publishing: ``work/<id>`` until its manifest is written, then its target.

Rules: every method may be repeated after a crash at any point. A manifest has its name only when all its bytes are
written, comes into view only when bytes and name are durable, and never changes after that. In ``work/`` nobody reads
it: what a power cut leaves there is written anew. This module must not know how outputs are judged or what a manifest
says.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

from msgspec import Struct

from solvisor import failpoint
from solvisor.home import Home
from solvisor.model import FileFact
from solvisor.names import escape_name

from . import files
from .anew import ANEW, write_anew
from .files import NotDurable
from .flush import AT_ONCE
from .move import PLAN, discard_claim
from .remains import LOGS, OUTPUT, Remains, Staged

_MANIFEST = "manifest.json"
_TEMPORARY = "manifest.tmp"
_STAGING = "staging.tmp"
_BATCH_MAX = 64
"""Folders published under one set of fsyncs; each holds two descriptors meanwhile."""

_AHEAD_MAX = AT_ONCE // 2
"""Manifests on their way beside one sync of the database: they and their folders are one list for the kernel."""


class Publication(Struct, frozen=True):
    """One finished job: where its folder goes and the exact bytes of its manifest."""

    id: str
    target: Literal["done", "failed", "rejected"]
    manifest: bytes


class Results:
    """The job folders of one home. Its methods may run in several threads, but only one at a time for one job."""

    def __init__(self, home: Home) -> None:
        self._root = str(home.root)
        self._work = str(home.work)
        self._staged: dict[str, dict[str, Staged]] = {}
        self._written: set[str] = set()

    def _open(self, job_id: str) -> int:
        return files.open_folder_of_ours(f"{self._work}/{job_id}")

    def stage(self, job_id: str, attempt_n: int, skip: Collection[str] = ()) -> None:
        """Make a fresh ``output/`` for try ``attempt_n`` (from 1): a copy of every file of ``input/`` but ``skip``.

        ``skip`` are names relative to ``input/``. What an earlier try left (``output/``, logs) moves to
        ``attempt-<n-1>/``. Raises ``OSError``.
        """
        self._staged.pop(job_id, None)
        staged: dict[str, Staged] = {}
        now_ns = time.time_ns()

        def note(path: str, source: os.stat_result, copy: os.stat_result) -> None:
            staged["input/" + escape_name(path)] = Staged.seen(source, copy, now_ns)

        job_fd = self._open(job_id)
        try:
            if attempt_n > 1:
                _put_aside(job_fd, f"attempt-{attempt_n - 1}")
                failpoint.reach("stage.put_aside")
            for log in LOGS:  # of a try whose record was lost, if any
                files.discard(log, job_fd)
            _make_anew(_STAGING, job_fd)
            try:
                with files.in_folder("input", job_fd) as input_fd, files.in_folder(_STAGING, job_fd) as output_fd:
                    files.copy_tree(input_fd, output_fd, skip, copied=note)
            except OSError:
                with contextlib.suppress(OSError):  # a full disk is not to be kept full by half a copy
                    files.discard(_STAGING, job_fd)
                raise
            failpoint.reach("stage.copied")
            _name_output(job_fd)
            failpoint.reach("stage.named")
        finally:
            os.close(job_fd)
        self._staged[job_id] = staged

    def write_anew(self, job_id: str) -> None:
        """Bring what a try left in an earlier life on its way to the disk once more: an fsync of it may have failed."""
        job_fd = self._open(job_id)
        try:
            write_anew(job_fd)
        finally:
            os.close(job_fd)

    def remains(self, job_id: str, inputs: Sequence[FileFact], since_us: int, most: float = math.inf) -> Remains:
        """What the last try of a job left. Call it when no process of the job is left. Raises ``OSError``."""
        return Remains(self._open(job_id), inputs, since_us, self._staged.get(job_id, {}), most)

    def withdraw(self, job_id: str) -> None:
        """Leave nothing of a submission that was claimed and then refused. Raises ``NotDurable``, ``OSError``."""
        with files.in_folder(self._work) as work_fd:
            discard_claim(job_id, work_fd)

    def write_durably(self, path: Path, data: bytes) -> None:
        """Write a file that exists either whole and durable or not at all. Raises ``NotDurable``, ``OSError``."""
        with files.in_folder(path.parent) as folder_fd:
            files.discard(_TEMPORARY, folder_fd)
            files.write_file(_TEMPORARY, folder_fd, data)
            files.durable([(_TEMPORARY, folder_fd)])
            failpoint.reach("outputs.written")
            os.rename(_TEMPORARY, path.name, src_dir_fd=folder_fd, dst_dir_fd=folder_fd)
            failpoint.reach("outputs.named")
            files.durable([(".", folder_fd)])

    @contextlib.contextmanager
    def writing_ahead(self, batch: Sequence[Publication]) -> Iterator[None]:
        """Have manifests on their way to the disk while the block makes the rows of these jobs durable.

        ``publish`` only moves the folders then. That is for the first few of those that are as a rule: whose folder was
        made ready in this life, from a drop that needed no plan. For the others, and where anything goes wrong,
        ``publish`` does all. Raises ``NotDurable`` if an fsync fails.
        """
        if not batch:
            yield
            return
        part = _Batch(self._root)
        try:
            with files.Syncs() as syncs:
                written = self._write_ahead(part, batch[:_AHEAD_MAX], syncs)
                syncs.begin()
                yield
            self._written.update(written)
        finally:
            part.close()

    def _write_ahead(self, part: _Batch, batch: Sequence[Publication], syncs: files.Syncs) -> list[str]:
        """The ids of those that were written."""
        try:
            items = [_Item(publication) for publication in batch if self._is_usual(publication)]
            return [item.publication.id for item in part.write(items, {}, syncs)] if items else []
        except NotDurable:
            raise
        except Exception:  # noqa: BLE001  ``publish`` meets it again, and tells
            return []

    def _is_usual(self, publication: Publication) -> bool:
        """Whether nothing but the manifest is missing in its folder, and nothing there has to go."""
        return publication.id in self._staged and not os.access(f"{self._work}/{publication.id}/{PLAN}", os.F_OK)

    def publish(self, batch: Sequence[Publication]) -> tuple[list[str], dict[str, OSError]]:
        """Write each manifest and move each folder to its target, durably.

        Returns the ids that are published now and, for each of the others, the error to tell and to try again after.
        A folder that is gone is made anew. Raises ``NotDurable`` if an fsync fails.
        """
        published: list[str] = []
        errors: dict[str, OSError] = {}
        for start in range(0, len(batch), _BATCH_MAX):
            part = _Batch(self._root)
            try:
                items = [self._item(publication) for publication in batch[start : start + _BATCH_MAX]]
                with files.Syncs() as syncs:
                    written = part.write([item for item in items if not item.written], errors, syncs)
                published += part.move([*written, *(item for item in items if item.written)], errors)
            finally:
                part.close()
        return published, errors

    def _item(self, publication: Publication) -> _Item:
        item = _Item(publication)
        item.written = publication.id in self._written
        self._written.discard(publication.id)
        # What a crash leaves, a folder that was staged since has not.
        staged = self._staged.pop(publication.id, None) is not None
        item.litter = (PLAN,) if staged else (PLAN, _STAGING, ANEW)
        return item


def _make_anew(name: str, folder_fd: int) -> None:
    """An empty folder, whatever a crash left there."""
    try:
        os.mkdir(name, 0o750, dir_fd=folder_fd)
    except FileExistsError:
        files.discard(name, folder_fd)
        os.mkdir(name, 0o750, dir_fd=folder_fd)


def _name_output(job_fd: int) -> None:
    try:
        os.rename(_STAGING, OUTPUT, src_dir_fd=job_fd, dst_dir_fd=job_fd)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        files.discard(OUTPUT, job_fd)
        os.rename(_STAGING, OUTPUT, src_dir_fd=job_fd, dst_dir_fd=job_fd)


def _put_aside(job_fd: int, name: str) -> None:
    """Keep what an earlier try left. What is there already was put aside before a crash; the rest is half a staging."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o750, dir_fd=job_fd)
    with files.in_folder(name, job_fd) as aside_fd:
        for left in (OUTPUT, *LOGS):
            if files.lstat(left, aside_fd) is None and files.lstat(left, job_fd) is not None:
                files.move_folder(left, job_fd, left, aside_fd)


class _Item:
    """One publication on its way; ``litter`` is what has to go from its folder before.

    ``written``: its manifest is durable. ``waiting``: it still lies in ``work/``. ``fd`` is that folder,
    ``manifest_fd`` the manifest under its temporary name, if it was written.
    """

    __slots__ = ("fd", "litter", "manifest_fd", "publication", "waiting", "written")

    def __init__(self, publication: Publication) -> None:
        self.publication = publication
        self.litter: tuple[str, ...] = ()
        self.written = False
        self.waiting = True
        self.fd = -1
        self.manifest_fd = -1


class _Batch:
    """Some publications under one set of fsyncs, in the home at ``root``."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._fds: list[int] = []
        self._folders: dict[str, int] = {}

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def write(self, items: list[_Item], errors: dict[str, OSError], syncs: files.Syncs) -> list[_Item]:
        """Write their manifests, which ``syncs`` make durable; those of ``items`` that have theirs."""
        items = _each(items, self._write, errors)
        failpoint.reach("publish.written")
        items = _each(items, _name_manifest, errors)
        failpoint.reach("publish.named")
        for item in items:  # both at once, for neither is in view yet: a journal takes them in one commit
            if item.manifest_fd >= 0:
                syncs.add_open(item.manifest_fd, _MANIFEST)
            syncs.add_open(item.fd)
        return items

    def move(self, items: list[_Item], errors: dict[str, OSError]) -> list[str]:
        """Move them, with their durable manifests, to where they are seen; the ids of those that are there."""
        failpoint.reach("publish.durable")
        items = _each(items, self._move, errors)
        failpoint.reach("publish.moved")
        # A folder must not vanish from work/ before its new place is safe.
        files.durable_folders([self._folder(target) for target in {item.publication.target for item in items}])
        failpoint.reach("publish.target_durable")
        if items:
            files.durable_folders([self._folder("work")])
        failpoint.reach("publish.work_durable")
        return [item.publication.id for item in items]

    def _write(self, item: _Item) -> None:
        job_id = item.publication.id
        try:
            item.fd = self._opened(files.open_folder_of_ours(f"{self._root}/work/{job_id}"))
        except FileNotFoundError:
            work_fd, target_fd = self._folder("work"), self._folder(item.publication.target)
            if files.lstat(job_id, target_fd) is not None:
                item.waiting = False
            else:
                os.mkdir(job_id, 0o750, dir_fd=work_fd)  # somebody removed it; its manifest appears all the same
            item.fd = self._opened(files.open_folder_of_ours(job_id, work_fd if item.waiting else target_fd))
        for litter in item.litter:
            files.discard(litter, item.fd)
        if item.waiting or files.lstat(_MANIFEST, item.fd) is None:
            item.manifest_fd = self._opened(_new_manifest(item.fd))
            files.write_all(item.manifest_fd, item.publication.manifest)

    def _move(self, item: _Item) -> None:
        if item.waiting:
            job_id = item.publication.id
            files.move_folder(job_id, self._folder("work"), job_id, self._folder(item.publication.target))

    def _folder(self, name: str) -> int:
        """A folder of the home, made anew if somebody cleared it away."""
        fd = self._folders.get(name)
        if fd is None:
            path = f"{self._root}/{name}"
            try:
                fd = files.open_folder(path)
            except FileNotFoundError:
                os.mkdir(path, 0o750 if name == "work" else 0o777)
                with files.in_folder(self._root) as root_fd:
                    files.durable_folders([root_fd])
                fd = files.open_folder(path)
            self._folders[name] = self._opened(fd)
        return fd

    def _opened(self, fd: int) -> int:
        self._fds.append(fd)
        return fd


def _each(items: list[_Item], step: Callable[[_Item], None], errors: dict[str, OSError]) -> list[_Item]:
    """Take one step with each; the error of those that fail is noted, the others are returned."""
    good: list[_Item] = []
    for item in items:
        try:
            step(item)
        except NotDurable:
            raise
        except OSError as error:
            errors[item.publication.id] = error
        else:
            good.append(item)
    return good


def _new_manifest(folder_fd: int) -> int:
    try:
        return files.new_file(_TEMPORARY, folder_fd)
    except FileExistsError:
        files.discard(_TEMPORARY, folder_fd)
        return files.new_file(_TEMPORARY, folder_fd)


def _name_manifest(item: _Item) -> None:
    if item.manifest_fd >= 0:
        if not item.waiting:  # its folder is in view already
            with files.Syncs() as syncs:
                syncs.add_open(item.manifest_fd, _TEMPORARY)
        try:
            os.rename(_TEMPORARY, _MANIFEST, src_dir_fd=item.fd, dst_dir_fd=item.fd)
        except IsADirectoryError:  # a solver's work, not ours
            files.discard(_MANIFEST, item.fd)
            os.rename(_TEMPORARY, _MANIFEST, src_dir_fd=item.fd, dst_dir_fd=item.fd)
