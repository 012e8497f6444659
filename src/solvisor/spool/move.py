"""One drop on its way from the inbox into ``work/<id>/input``, and back if it cannot go through.

Rules: every step may be the last one before a crash. Nothing is replaced; the only copy of a file is never removed; a
copy gets its name only when it is whole. This module decides nothing about rounds and rows. One file, if a long one:
each step forth stands beside the one that takes it back.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from solvisor import failpoint
from solvisor.model import FileFact, Original, Request
from solvisor.names import escape_name, unescape_name
from solvisor.trouble import is_passing

from . import anew, files
from .drops import (
    FILES_MAX,
    Found,
    Held,
    Problem,
    Rules,
    Take,
    check_hashed,
    check_settled,
    look_at_file,
    look_at_folder,
    name_problem,
    open_settled,
    parts,
    release_lease,
    unchanged,
)

PLAN = "claim.json"
INTERRUPTED: Problem = (
    "claim_interrupted",
    "the daemon was stopped while it took this drop, and its files changed meanwhile; drop all of them again",
)
UPLOAD = ".upload"
"""What the name of a folder in ``work/`` ends with that is no claim, and is cleared away at the next start."""
_COPY = "copy.tmp"
_INPUT = "input"


class Plan(Struct, frozen=True):
    """``claim.json``: what the drop consists of, so that half a claim can be told from a whole one. Names are escaped.

    ``originals`` are the sources as they were when looked at; of a folder everything in it, and only if it is copied.
    With a ``request`` the drop was whole before it got its id, and nothing of it ever lay in the inbox. ``adopted``: it
    was found whole by a life that then replaced its files by copies, so it is not compared with them any more. ``uid``
    owned the drop: its copies do not tell.
    """

    sources: tuple[str, ...]
    route: str | None
    folder: bool
    originals: tuple[Original, ...]
    request: Request | None = None
    adopted: bool = False
    uid: int | None = None


_decode_plan = msgspec.json.Decoder(Plan).decode


class Move:
    """The claim of one ``Take``.

    ``begin``, ``move_in``, ``hash``, in this order; ``undo`` after one failed. What must be durable before ``move_in``
    and at the end, the caller makes so. ``source_fd`` is the folder the drop lies in, and stays the caller's.

    What most drops are, one file that is renamed in, is opened once, by ``move_in``, and stays open until it is
    durable.
    """

    def __init__(self, take: Take, source_fd: int, work_fd: int, rules: Rules) -> None:
        self.take = take
        self.source_fd = source_fd
        self.files: tuple[FileFact, ...] = ()
        self.originals: tuple[Original, ...] = ()
        self.problem: Problem | None = None
        self.uid = 0
        self.planned = False
        self._work_fd = work_fd
        self._rules = rules._replace(quiet=take.quiet, force=take.force) if take.quiet or take.force else rules
        self._found: list[Found] = []
        self._copied: set[str] = set()
        self._plan: Plan | None = None
        self._job_fd = -1
        self._input_fd = -1
        self._file_fd = -1
        self._file: files.Entry | None = None

    def close(self) -> None:
        """Close what it has open."""
        self._close_file()
        for fd in (self._input_fd, self._job_fd):
            if fd >= 0:
                os.close(fd)
        self._input_fd = self._job_fd = -1

    def _close_file(self) -> None:
        """Close it, and with that give up its lease; it is found by its name from now on."""
        if self._file_fd >= 0:
            os.close(self._file_fd)
        self._file_fd, self._file = -1, None

    @cached_property
    def _seen(self) -> dict[str, Original]:
        """The sources by their names, as they were when looked at."""
        return {found.name: self._original(found.name, found.stat) for found in self._found}

    def begin(self) -> None:
        """Look at the sources; make the folders of the job and write its plan, if it needs one. Raises ``Held``."""
        look = look_at_folder if self.take.folder else look_at_file
        self._found = [look(os.path.basename(source), self.source_fd, self._rules) for source in self.take.sources]
        self._judge()
        several = len(self.take.sources) > 1 or "/" in self.take.sources[0]
        if self.take.folder or several or self._found[0].copy:
            for found in self._found:
                if found.is_file:
                    check_settled(found.name, self.source_fd, found.stat, self._rules)
            self._make_folders()
            self._write_plan()

    def _make_folders(self) -> None:
        os.mkdir(self.take.id, 0o750, dir_fd=self._work_fd)
        failpoint.reach("claim.folder_made")
        self._job_fd = files.open_folder(self.take.id, self._work_fd)
        if not self.take.folder:
            os.mkdir(_INPUT, 0o750, dir_fd=self._job_fd)
            self._input_fd = files.open_folder(_INPUT, self._job_fd)

    def plan_spots(self) -> Iterator[files.Spot]:
        """What must be durable before anything is moved, lest half a claim look whole after a crash."""
        if self.planned:
            yield PLAN, self._job_fd
            yield ".", self._job_fd

    def move_in(self) -> None:
        """Bring the drop into ``input/``. Raises ``Held``."""
        if not self.planned:
            self._move_alone(self._found[0])
        elif self.take.folder:
            self._move_folder(self._found[0])
            self._input_fd = files.open_folder(_INPUT, self._job_fd)
        else:
            for found in self._found:
                self._move_file(found)

    def _move_alone(self, found: Found) -> None:
        """Bring in what needs no plan. Its folders are made only now: no sync of others may find it half renamed."""
        if found.is_file:
            self._file_fd = open_settled(found.name, self.source_fd, found.stat, self._rules)
        self._make_folders()
        self._rename_in(found)
        if found.is_file:
            release_lease(self._file_fd)

    def write_anew(self) -> None:
        """Bring what an earlier life took in on its way to the disk once more: an fsync of it may have failed."""
        plan = self._plan
        if plan is not None and not (plan.folder or plan.adopted or plan.request or self.problem):
            files.discard(anew.ANEW, self._job_fd)
            with files.writing(PLAN):
                files.write_file(anew.ANEW, self._job_fd, msgspec.json.encode(replace(plan, adopted=True)))
            files.durable([(anew.ANEW, self._job_fd)])
            with files.writing(PLAN):
                os.rename(anew.ANEW, PLAN, src_dir_fd=self._job_fd, dst_dir_fd=self._job_fd)
            files.durable([(".", self._job_fd)])
        anew.write_anew(self._job_fd)

    def hash(self) -> None:
        """Read all files, note what they are, and start them on their way to the disk. Raises ``Held``."""
        if self._file is not None:
            files.start_writeback(self._file_fd)
            size, digest = files.hash_fd(self._file_fd, self._file.stat.st_size)
            check_hashed(self._file, self._file_fd, self._rules)
            release_lease(self._file_fd)
            self.files = (FileFact(f"{_INPUT}/{escape_name(self._file.name)}", size, digest),)
        else:
            entries = itertools.islice(files.walk(self._input_fd), FILES_MAX)
            self.files = tuple(self._describe(entry) for entry in entries if not entry.is_folder)

    def _describe(self, entry: files.Entry) -> FileFact:
        return files.describe(entry, f"{_INPUT}/", lambda fd: check_hashed(entry, fd, self._rules))

    def sync(self, syncs: files.Syncs) -> None:
        """Have synced what must be durable before the drop may have a row; until then this must not be closed.

        Of a drop too large to be a job that is what ``hash`` read.
        """
        if self._file is not None:
            syncs.add_open(self._file_fd, self._file.name)
        else:
            syncs.add(itertools.islice(files.spots_in(self._input_fd), FILES_MAX))
        syncs.add_open(self._input_fd)
        syncs.add_open(self._job_fd)

    def look_again(self) -> None:
        """See whether a folder is still as it was read, as late as can be. Raises ``Held``.

        A program may have begun to rename something into it before it was taken, and have waited for the disk since.
        What changed before that, and could not go back, is to be rejected as it was read then.
        """
        if self.take.folder and not self._found[0].copy and self.problem is not INTERRUPTED:
            self._must_be_unchanged(self._found[0])

    def undo(self) -> bool:
        """Give everything back and leave no trace. ``False`` if that cannot be: then all that is here stays here."""
        self._close_file()
        if self._job_fd < 0:
            return True
        try:
            given_back = self._give_back()
        except OSError:
            given_back = False
        if not given_back:
            self._keep_to_be_rejected()
        return given_back

    def _undo_again(self) -> bool:
        """``undo`` of an earlier life's claim. Trouble of the machine is raised: no reason to reject a drop."""
        try:
            with files.writing(self.take.id):
                given_back = self._give_back()
            if given_back:  # it must not vanish from work/ before it is safe there
                files.durable([(".", self.source_fd)])
        except OSError as error:
            if isinstance(error, files.NotDurable) or is_passing(error):
                raise
            given_back = False
        if not given_back:
            self._keep_to_be_rejected()
        return given_back

    def _give_back(self) -> bool:
        files.discard(_COPY, self._job_fd)
        given_back = self._give_back_folder() if self.take.folder else self._give_back_files()
        if given_back:
            failpoint.reach("claim.given_back")
            files.discard(PLAN, self._job_fd)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(_INPUT, dir_fd=self._job_fd)
            os.rmdir(self.take.id, dir_fd=self._work_fd)
        return given_back

    def _keep_to_be_rejected(self) -> None:
        self.problem = INTERRUPTED
        if self._input_fd < 0:
            with contextlib.suppress(OSError):  # whoever reads it next gets the error, and can name the job
                self._input_fd = files.open_folder(_INPUT, self._job_fd)

    def resume(self, plan: Plan | None) -> bool:
        """Go on with a claim left by an earlier life; ``False`` if the drop is back in the inbox and no trace remains.

        ``plan`` is ``None`` for what needs none: one file, brought in by one rename.
        """
        self._plan = plan
        self._job_fd = files.open_folder(self.take.id, self._work_fd)
        files.discard(_COPY, self._job_fd)
        if not self.take.folder:
            with contextlib.suppress(FileExistsError), files.writing(_INPUT):  # there it is, as it should
                os.mkdir(_INPUT, 0o750, dir_fd=self._job_fd)
        if files.lstat(_INPUT, self._job_fd) is not None:
            self._input_fd = files.open_folder(_INPUT, self._job_fd)
        if not self._may_stay(plan) and self._undo_again():
            failpoint.reach("claim.undone")
            return False
        self._rules = self._rules._replace(leases=False, quiet=True, force=True)
        if self.take.folder:
            self._found = [look_at_folder(_INPUT, self._job_fd, self._rules)]
        else:
            self._found = [look_at_file(name, self._input_fd, self._rules) for name in files.names_in(self._input_fd)]
        self._judge()
        if plan is not None and plan.uid is not None:
            self.uid = plan.uid
        return True

    def _may_stay(self, plan: Plan | None) -> bool:
        """Whether what is here is the drop; else it is to go back."""
        if plan is not None:
            return plan.request is not None or self._is_whole(plan)
        here = {name: files.lstat(name, self._input_fd) for name in self.take.sources}
        self._seen = {name: self._original(name, found) for name, found in here.items() if found is not None}
        return self.problem is not None or not any(map(self._is_in_both, self._seen))

    def _is_in_both(self, name: str) -> bool:
        """Whether a file has its name in the inbox as well: its renaming is on the disk by half.

        Btrfs may bring it back so where the power failed between the fsyncs. Who has it by that name may write to it.
        """
        here, there = files.lstat(name, self._input_fd), files.lstat(name, self.source_fd)
        return here is not None and there is not None and _same_inode(here, there)

    def _is_whole(self, plan: Plan) -> bool:
        """Whether the plan was carried out; ``originals`` are then what is still to be removed from the inbox.

        A copy may not have been durable, and is believed only if an original is gone: the daemon removes them once the
        job has a row. It had one that was lost, and what is here may be all there is.
        """
        if plan.folder:
            self.originals = plan.originals
            if self._input_fd < 0 or not plan.originals:
                return self._input_fd >= 0
            return self._are_copies(self.originals)
        self._seen = {os.path.basename(unescape_name(seen.path)): seen for seen in plan.originals}
        here = {name: files.lstat(name, self._input_fd) for name in self._seen}
        self._copied = {name for name, found in here.items() if found and found.st_ino != self._seen[name].ino}
        copied = [seen for name, seen in self._seen.items() if name in self._copied]
        if plan.adopted:
            self.originals = tuple(seen for seen in copied if self._is_still_there(seen))
            return True
        renamed = [name for name in self._seen if name not in self._copied]
        if not all((found := here[name]) is not None and is_original(self._seen[name], found) for name in renamed):
            return False
        if any(map(self._is_in_both, renamed)):
            return False
        return not copied or self._are_copies(copied)

    def _are_copies(self, originals: Sequence[Original]) -> bool:
        """Whether all these were copied as they were, and some are gone from the inbox since, none was changed."""
        left = []
        for original in originals:
            here = self._lstat(self._path_within(original), self._input_fd)
            if here is None or not _is_copy(original, here):
                return False
            there = self._lstat(self._path_there(original), self.source_fd)
            if there is not None and there.st_ino == original.ino:
                if not is_original(original, there):
                    return False
                left.append(original)
        if len(left) == len(originals):
            return False
        self.originals = tuple(left)
        return True

    def _is_still_there(self, original: Original) -> bool:
        there = self._lstat(self._path_there(original), self.source_fd)
        return there is not None and is_original(original, there)

    def _path_there(self, original: Original) -> str:
        """Where it lies, from the folder of the drop on."""
        folder = os.path.dirname(self.take.sources[0])
        return unescape_name(original.path).removeprefix(f"{folder}/" if folder else "")

    def _path_within(self, original: Original) -> str:
        """Where its copy lies, from ``input/`` on; "." is that folder itself."""
        path = self._path_there(original)
        return (path.partition("/")[2] or ".") if self.take.folder else path

    def _lstat(self, path: str, folder_fd: int) -> os.stat_result | None:
        try:
            with files.folder_of(path, folder_fd) as (name, parent_fd):
                return files.lstat(name, parent_fd)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _judge(self) -> None:
        for problem in [*map(name_problem, self.take.sources), *[found.problem for found in self._found]]:
            self.problem = self.problem or problem
        if self._found:
            self.uid = self._found[0].stat.st_uid

    def _write_plan(self) -> None:
        take = self.take
        originals = tuple(self._seen.values())
        if take.folder:
            originals = self._tree_originals() if self._found[0].copy else ()
        plan = Plan(tuple(map(escape_name, take.sources)), take.route, take.folder, originals, uid=self.uid)
        files.write_file(PLAN, self._job_fd, msgspec.json.encode(plan))
        self.planned = True
        failpoint.reach("claim.planned")

    def _move_file(self, found: Found) -> None:
        if found.copy:
            self._copy_file(found)
            return
        fd = open_settled(found.name, self.source_fd, found.stat, self._rules) if found.is_file else None
        try:
            self._rename_in(found)
        finally:
            if fd is not None:
                os.close(fd)

    def _rename_in(self, found: Found) -> None:
        """Rename what is open, with a lease on it, and look at it once more: another may have had its name by now."""
        name = found.name
        try:
            os.rename(name, name, src_dir_fd=self.source_fd, dst_dir_fd=self._input_fd)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            self._copy_file(found)
            return
        failpoint.reach("claim.file_moved")
        there = files.lstat(name, self._input_fd)
        if there is None or not files.same_file(found.stat, there):
            raise Held(name, "writer", f"{escape_name(name)} was replaced at this moment")
        if self._file_fd >= 0:
            self._file = files.Entry(name, name, self._input_fd, there, 1)

    def _copy_file(self, found: Found) -> None:
        name = found.name
        if not self.planned:
            self._write_plan()
            files.durable([*self.plan_spots(), (".", self._work_fd)])
        if stat.S_ISREG(found.stat.st_mode):
            fd = open_settled(name, self.source_fd, found.stat, self._rules)
            try:
                release_lease(fd)  # a long copy must not make a writer wait for us; the check afterwards sees it
                files.copy_file(fd, found.stat, _COPY, self._job_fd)
            finally:
                os.close(fd)
            check_settled(name, self.source_fd, found.stat, self._rules)
            failpoint.reach("claim.file_copied")
            os.rename(_COPY, name, src_dir_fd=self._job_fd, dst_dir_fd=self._input_fd)
        elif stat.S_ISLNK(found.stat.st_mode):
            os.symlink(os.readlink(name, dir_fd=self.source_fd), name, dir_fd=self._input_fd)
        failpoint.reach("claim.copy_named")
        self._copied.add(name)
        self.originals += (self._seen[name],)

    def _move_folder(self, found: Found) -> None:
        if found.copy:
            self._copy_folder(found)
            return
        files.move_folder(found.name, self.source_fd, _INPUT, self._job_fd)
        failpoint.reach("claim.tree_moved")
        # From here on only a program that already worked inside the folder can reach it; this second look sees it.
        self._must_be_unchanged(found)

    def _must_be_unchanged(self, found: Found) -> None:
        if not unchanged(found, look_at_folder(_INPUT, self._job_fd, self._rules)):
            raise Held(found.name, "writer", f"{escape_name(found.name)} changed at this moment")

    def _copy_folder(self, found: Found) -> None:
        os.mkdir(_COPY, 0o750, dir_fd=self._job_fd)
        with contextlib.ExitStack() as fds:
            source_fd = files.open_folder(found.name, self.source_fd)
            fds.callback(os.close, source_fd)
            target_fd = files.open_folder(_COPY, self._job_fd)
            fds.callback(os.close, target_fd)
            try:
                files.copy_tree(source_fd, target_fd, looked_at=dict(found.tree))
            except files.Replaced:
                raise Held(found.name, "writer", f"{escape_name(found.name)} changed while it was copied") from None
        if not unchanged(found, look_at_folder(found.name, self.source_fd, self._rules)):
            raise Held(found.name, "writer", f"{escape_name(found.name)} changed while it was copied")
        failpoint.reach("claim.tree_copied")
        os.rename(_COPY, _INPUT, src_dir_fd=self._job_fd, dst_dir_fd=self._job_fd)
        failpoint.reach("claim.tree_named")
        self.originals = self._tree_originals()

    def _give_back_files(self) -> bool:
        here = {name: found for name in self._seen if (found := files.lstat(name, self._input_fd)) is not None}
        there = {name: files.lstat(name, self.source_fd) for name in here}
        for name, ours in here.items():
            other = there[name]
            if other is None and name in self._copied:
                return False
            if other is not None and not (_same_inode(ours, other) or is_original(self._seen[name], other)):
                return False
        for name in here:
            if there[name] is None:
                files.move_without_replacing(name, self._input_fd, name, self.source_fd)
            else:
                os.unlink(name, dir_fd=self._input_fd)
        return True

    def _give_back_folder(self) -> bool:
        if files.lstat(_INPUT, self._job_fd) is None:
            return True
        name = os.path.basename(self.take.sources[0])
        there = files.lstat(name, self.source_fd)
        if self.originals:
            if there is None or not is_original(self.originals[-1], there):
                return False
            if any(self._lstat(self._path_there(original), self.source_fd) is None for original in self.originals):
                return False  # the copy may be all there is
            files.discard(_INPUT, self._job_fd)
        elif there is not None:
            return False
        else:
            files.move_folder(_INPUT, self._job_fd, name, self.source_fd)
        return True

    def _tree_originals(self) -> tuple[Original, ...]:
        return tuple(self._original(path, seen) for path, seen in parts(self._found[0]))

    def _original(self, path: str, seen: os.stat_result) -> Original:
        prefix = os.path.dirname(self.take.sources[0])
        shown = escape_name(os.path.join(prefix, path))
        return Original(shown, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns)


def _is_copy(original: Original, here: os.stat_result) -> bool:
    """Whether it has the size and time of the file that was copied; a folder is as good as what lies in it."""
    return stat.S_ISDIR(here.st_mode) or (here.st_size, here.st_mtime_ns) == (original.size, original.mtime_ns)


def _same_inode(a: os.stat_result, b: os.stat_result) -> bool:
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def is_original(original: Original, there: os.stat_result) -> bool:
    """Whether what lies there is the very file that was looked at, unchanged.

    The device number is not compared: it may change when the machine starts again, and the answer must not.
    """
    if stat.S_ISDIR(there.st_mode):
        return there.st_ino == original.ino
    return (there.st_ino, there.st_size, there.st_mtime_ns) == (original.ino, original.size, original.mtime_ns)


def resume(job_id: str, work_fd: int, source_folder: Callable[[str], int], rules: Rules) -> Move | None:
    """The claim that an earlier life left in ``work/<id>``, adopted; ``None`` if nothing of it is to be kept there.

    ``source_folder`` opens the folder of the inbox with that name ("" is the inbox itself).
    """
    try:
        job_fd = files.open_folder(job_id, work_fd)
    except NotADirectoryError:
        return None
    try:
        data = files.read_file(PLAN, job_fd)
        plan = _decode(data)
        names = _names_in(_INPUT, job_fd)
        if plan is None and not names:  # nothing was moved before the plan was durable
            files.discard(_COPY, job_fd)
            files.discard(PLAN, job_fd)
            files.discard(_INPUT, job_fd)
            os.rmdir(job_id, dir_fd=work_fd)
            return None
    finally:
        os.close(job_fd)
    if plan is None:
        take = Take(job_id, tuple(names))
    else:
        sources = tuple(map(unescape_name, plan.sources))
        take = Take(job_id, sources, plan.route, plan.folder, request=plan.request)
    folder = "" if take.request is not None else os.path.dirname(take.sources[0])
    move = Move(take, source_folder(folder), work_fd, rules)
    if plan is None and (data is not None or len(names) > 1):
        move.problem = INTERRUPTED
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(move.close)
        if not move.resume(plan):
            return None
        on_failure.pop_all()
    return move


def discard_claim(job_id: str, work_fd: int) -> None:
    """Leave nothing of a claim that came as a submission and has no row. Raises ``NotDurable``, ``OSError``.

    First it ceases to be a claim, durably: half of one would be taken for a drop at the next start.
    """
    folder = job_id + UPLOAD
    os.rename(job_id, folder, src_dir_fd=work_fd, dst_dir_fd=work_fd)
    files.durable([(".", work_fd)])
    failpoint.reach("upload.withdrawn")
    files.discard(folder, work_fd)


def _decode(data: bytes | None) -> Plan | None:
    try:
        return None if data is None else _decode_plan(data)
    except msgspec.DecodeError:
        return None


def _names_in(name: str, folder_fd: int) -> list[str]:
    try:
        fd = files.open_folder(name, folder_fd)
    except FileNotFoundError:
        return []
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)
