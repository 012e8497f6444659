"""What a try left in the folder of its job: told apart from its inputs, read once, and made durable.

Theory: what nobody touched need not be read again. A file is as it was staged if inode, size and times are what they
were then; times come from a coarse clock, so what was touched too close to that moment is read all the same.

Rules: links are listed and not followed; what a solver made unreadable becomes readable and is not changed otherwise.
This module must not know how outputs are judged.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct

from solvisor import failpoint
from solvisor.model import FileFact
from solvisor.names import escape_name, unescape_name

from . import files

OUTPUT: Final = "output"
_INPUT: Final = "input"
_BELOW: Final = "input/"
LOGS: Final = ("stdout.log", "stderr.log")

CLOCK_GRAIN_NS: Final = 10_000_000
"""File times come from a coarse clock, up to a tick behind: a change so soon after another may not show in them."""

_LOOK: Final = 4 << 10
"""To look at a file at all takes as long as to read so many bytes."""

_NOTHING: Final = hashlib.sha256().hexdigest()


class TooMuch(Exception):
    """There is more to read than was asked for."""


class Survey(Struct, frozen=True):
    """What a try left.

    ``outputs`` are files and links: ``output/...``, ``stdout.log``, ``stderr.log``. ``unchanged`` are the inputs, by
    their names in ``output/``, of which nothing new lies there: the staged copy as it was, or none. Both count the
    same, so that the answer does not change when the copies are removed. ``silent`` are the logs that are empty.
    ``unread`` is a folder in ``output/`` that holds something and lies too deep to be listed, if there is one.
    """

    outputs: tuple[FileFact, ...]
    unchanged: frozenset[str]
    silent: frozenset[str] = frozenset()
    unread: str | None = None


class Sight(Struct, frozen=True, gc=False):
    """A file as it was seen. As long as all of it is the same, so is the file."""

    ino: int
    size: int
    ctime_ns: int
    mtime_ns: int


def sight(found: os.stat_result) -> Sight:
    """What is to be compared of a file."""
    return Sight(found.st_ino, found.st_size, found.st_ctime_ns, found.st_mtime_ns)


def _is_exact(found: os.stat_result) -> bool:
    """Whether a file's times are more exact than to a second, which they are not on every disk."""
    return found.st_ctime_ns % 1_000_000_000 != 0


class Staged(Struct, frozen=True, gc=False):
    """An input when it was staged, and its copy then; ``None`` if a later change of it might not show."""

    source: Sight | None
    copy: Sight | None

    @classmethod
    def seen(cls, source: os.stat_result, copy: os.stat_result, now_ns: int) -> Staged:
        """What was copied just now. The copy has the time of its source, which no change of it would leave it."""
        lately = now_ns - CLOCK_GRAIN_NS if _is_exact(copy) else 0
        return cls(
            sight(source) if source.st_ctime_ns < lately else None, sight(copy) if source.st_mtime_ns < lately else None
        )


class Remains:
    """What a try of one job left, no process of which runs any more; ``job_fd`` is its open folder, closed in the end.

    ``inputs`` were known for what they are at ``since_us``, UTC microseconds. ``staged`` is what is known of them, by
    their paths, from when they were staged; nothing if that was in an earlier life. ``TooMuch`` is raised before more
    than ``most`` bytes are read.
    """

    def __init__(
        self,
        job_fd: int,
        inputs: Sequence[FileFact],
        since_us: int,
        staged: Mapping[str, Staged],
        most: float = math.inf,
    ) -> None:
        self._job_fd = job_fd
        self._inputs = inputs
        self._known_ns = since_us * 1000 - CLOCK_GRAIN_NS
        self._staged = staged
        self._most = most
        self._beside: list[str] = []  # files beside output/ that are to be kept
        self._within: dict[str, list[str]] = {}  # files in output/, by their folder there: "" or "mesh/"
        self._fds = [job_fd]
        try:
            self._output_fd = _open_output(job_fd)
        except BaseException:
            self.close()
            raise
        if self._output_fd is not None:
            self._fds.append(self._output_fd)

    def __enter__(self) -> Remains:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what was opened here."""
        while self._fds:
            os.close(self._fds.pop())

    def survey(self) -> Survey:
        """Look at all of it. Raises ``OSError``.

        What lies deeper than ``files.DEPTH_MAX`` folders or is neither file nor link is not listed.
        """
        sources = {fact.path.removeprefix(_BELOW): fact for fact in self._inputs}
        listed: list[FileFact] = []
        unread = None if self._output_fd is None else self._survey_output(self._output_fd, sources, listed)
        silent = self._survey_beside(listed)
        return Survey(tuple(listed), frozenset(sources), frozenset(silent), unread)

    def altered(self) -> list[str]:
        """Those inputs, by their paths, that are not in ``input/`` any more as they were known to be.

        Only files that were touched since, or that look other than when they were staged (the clock may have been set),
        are read again; all are, if they were staged in an earlier life. Raises ``OSError``.
        """
        try:
            input_fd = files.open_folder(_INPUT, self._job_fd)
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
            return [fact.path for fact in self._inputs]
        try:
            return [fact.path for fact in self._inputs if self._is_altered(fact, input_fd)]
        finally:
            os.close(input_fd)

    def keep(self, survey: Survey, syncs: files.Syncs) -> None:
        """Have what was surveyed made durable by ``syncs``, without the inputs that were only staged.

        Those are removed from ``output/`` with the folders that held nothing else. Nothing else is to be done with this
        after that. Raises ``OSError``.
        """
        if self._output_fd is not None:
            _remove(self._output_fd, [name.split("/") for name in survey.unchanged])
        failpoint.reach("collect.tidied")
        syncs.add(self._spots())
        while self._fds:
            syncs.take(self._fds.pop())

    def _spots(self) -> Iterator[files.Spot]:
        """What of a job's folder must be durable before its row may say that it is, but itself and ``output/``."""
        for name in self._beside:
            yield name, self._job_fd
        if self._output_fd is None:
            return
        for path, names in self._within.items():
            try:
                with files.folder_of(path + ".", self._output_fd) as (itself, fd):
                    for name in names:
                        yield name, fd
                    if path:
                        yield itself, fd
            except FileNotFoundError:
                continue  # it went with the inputs in it

    def _survey_output(self, output_fd: int, sources: dict[str, FileFact], listed: list[FileFact]) -> str | None:
        """List what lies there; what is not as it was staged leaves ``sources``. Returns a folder that is too deep."""
        unread: str | None = None
        for entry in files.walk(output_fd, ours=True):
            self._spend(_LOOK)
            mode = entry.stat.st_mode
            is_file, path = stat.S_ISREG(mode), entry.path
            if stat.S_ISDIR(mode):
                if entry.depth < files.DEPTH_MAX:
                    self._within[path + "/"] = []
                elif unread is None and _holds_anything(entry):
                    unread = escape_name(path)
            source = sources.get(path)
            if source is not None and self._is_as_staged(source, entry.stat):
                continue
            kept = source is None or entry.stat.st_size != source.size  # and not a copy, as a rule, which is removed
            fact = self._describe(entry, "output/", kept=kept) if is_file or stat.S_ISLNK(mode) else None
            if source is None or fact is None or not _is_copy(source, fact):
                sources.pop(path, None)
                if fact is not None:
                    listed.append(fact)
                if is_file:
                    self._within.setdefault(path.removesuffix(entry.name), []).append(entry.name)
        return unread

    def _survey_beside(self, listed: list[FileFact]) -> list[str]:
        """List the logs, and whatever a solver put in the place of ``output/``; which logs are empty."""
        silent: list[str] = []
        for name in LOGS if self._output_fd is not None else (OUTPUT, *LOGS):
            found = files.lstat(name, self._job_fd)
            if found is None:
                continue
            is_file = stat.S_ISREG(found.st_mode)
            if is_file:
                self._beside.append(name)
            if is_file and found.st_size == 0 and name in LOGS:
                listed.append(FileFact(name, 0, _NOTHING))
                silent.append(name)
            elif is_file or (name == OUTPUT and stat.S_ISLNK(found.st_mode)):
                listed.append(self._describe(files.Entry(name, name, self._job_fd, found, 1), ""))
        return silent

    def _describe(self, entry: files.Entry, prefix: str, *, kept: bool = True) -> FileFact:
        self._spend(entry.stat.st_size)
        return files.describe(entry, prefix, kept=kept)

    def _spend(self, size: int) -> None:
        self._most -= size
        if self._most < 0:
            raise TooMuch

    def _is_as_staged(self, source: FileFact, found: os.stat_result) -> bool:
        """Whether it is seen without reading it that the copy of an input is what the input was known to be."""
        staged = self._staged.get(source.path)
        if staged is None or staged.source is None or staged.copy is None:
            return False
        return staged.source.ctime_ns < self._known_ns and staged.copy == sight(found)

    def _is_altered(self, fact: FileFact, input_fd: int) -> bool:
        self._spend(_LOOK)
        path = unescape_name(fact.path.removeprefix(_BELOW))
        try:
            found = files.lstat_beneath(path, input_fd)
            if found is None or not stat.S_ISREG(found.st_mode) or found.st_size != fact.size:
                return True
            staged = self._staged.get(fact.path)
            if found.st_ctime_ns < self._known_ns and staged is not None and staged.source == sight(found):
                return False
            self._spend(fact.size)
            with files.folder_of(path, input_fd) as (name, folder_fd):
                return files.hash_file(name, folder_fd, expected=fact.size, kept=False) != (fact.size, fact.sha256)
        except OSError as error:
            if error.errno not in _ELSEWHERE:
                raise
            return True  # a folder on the way is gone, or something else lies there


_ELSEWHERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def _open_output(job_fd: int) -> int | None:
    """The open ``output/``; ``None`` if a solver removed it or put something else in its place."""
    try:
        return files.open_folder_of_ours(OUTPUT, job_fd)
    except OSError as error:
        if error.errno not in _ELSEWHERE:
            raise
        return None


def _holds_anything(entry: files.Entry) -> bool:
    fd = files.open_folder_of_ours(entry.name, entry.folder_fd)
    try:
        return bool(files.names_in(fd))
    finally:
        os.close(fd)


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
            with files.in_folder(name, folder_fd) as fd:
                _remove(fd, rests)
        except (FileNotFoundError, NotADirectoryError):  # removed, or replaced, by the solver
            continue
        try:
            os.rmdir(name, dir_fd=folder_fd)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
