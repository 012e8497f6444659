"""Taking drops out of the inbox into ``work/<id>/input``, durably.

A claim is made in this order, for a whole round at a time: look; make the folders; where more than one name is
involved write the plan and make it durable; rename (or copy) in; make durable the files, their folders, ``work/`` and
the folders they came from. Folders are looked at once more when they are durable. Only then may a row be committed. A
crash at any point leaves either the drop in the inbox or a folder in ``work/`` without a row, which ``adopt`` adopts or
hands back at the next start.

Rules: nothing is ever replaced, and no drop is removed that we do not hold elsewhere. This module must not know
solvers, job files or rows: the caller says what belongs together and under which id.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Sequence

import structlog
from msgspec import Struct

from solvisor import failpoint
from solvisor.home import Home
from solvisor.model import FileFact, Original
from solvisor.names import escape_name, is_job_id, unescape_name
from solvisor.trouble import is_passing

from . import files
from .drops import Held, Problem, Rules, Take, Waiting
from .move import Move, is_original, resume

log = structlog.get_logger()

_ROUND_MAX = 64
"""Drops claimed under one set of fsyncs; each holds three descriptors meanwhile."""


class Taken(Struct, frozen=True):
    """A drop that is now durably in ``work/<id>/input``: each source by its last part, or what the folder held.

    ``files`` have paths like ``input/beam.inp``, escaped. ``uid`` owned the drop (its first source). ``originals`` were
    copied and are removed once the job is durable. ``problem`` (code, message) means: it can only be rejected.
    """

    take: Take
    files: tuple[FileFact, ...]
    uid: int
    originals: tuple[Original, ...] = ()
    problem: Problem | None = None


class NotYet(Struct, frozen=True):
    """A drop left in the inbox, untouched, because of ``source``; ``text`` says why in words, for ``status``."""

    id: str
    source: str
    reason: Waiting
    text: str


class Claims:
    """Takes drops out of one home's inbox. Not for two threads at once."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._places = str(home.inbox), str(home.work)
        self._leases = home.inbox_sees_all_writers()

    def claim_round(self, takes: Sequence[Take]) -> list[Taken | NotYet]:
        """Claim every drop that can be claimed now; the answers are in the order of ``takes``.

        On return every ``Taken`` is durable. Raises ``NotDurable`` if an fsync fails; any other error concerns one drop
        and becomes its ``NotYet``.
        """
        answers: list[Taken | NotYet] = []
        for start in range(0, len(takes), _ROUND_MAX):
            with _Round(*self._places, self._leases) as claims:
                answers += claims.claim(takes[start : start + _ROUND_MAX])
        return answers

    def unfinished_ids(self, known_ids: Collection[str]) -> list[str]:
        """The folders of ``work/`` that have no row: half-made claims, at start, before any scan."""
        names = sorted(os.listdir(self._home.work))
        return [name for name in names if is_job_id(name) and name not in known_ids]

    def adopt(self, ids: Sequence[str]) -> list[Taken]:
        """Adopt or hand back some of them. What comes back is durable and waits for its row.

        Raises ``NotDurable``, and ``OSError``, ``MemoryError`` for trouble of the machine: then it may be tried again.
        """
        taken: list[Taken] = []
        for start in range(0, len(ids), _ROUND_MAX):
            with _Round(*self._places, self._leases) as claims:
                taken += claims.recover(ids[start : start + _ROUND_MAX])
        return taken

    def set_aside(self, job_id: str, code: str, text: str) -> Taken:
        """One of them as it is, not looked into, to be rejected; ``text`` says why."""
        found = os.lstat(self._home.work / job_id)
        return Taken(Take(job_id, (job_id,), folder=True), (), found.st_uid, problem=(code, text))

    def remove_original(self, original: Original) -> bool:
        """Remove a file, or emptied folder, that was claimed by copy; ``False`` if it is no longer there as it was.

        Call it only after the job is durable. Raises ``OSError`` if it is that very file but cannot be removed.
        """
        *parents, name = unescape_name(original.path).split("/")
        with contextlib.ExitStack() as fds:
            folder_fd = files.open_folder(str(self._home.inbox))
            fds.callback(os.close, folder_fd)
            for parent in parents:
                if files.lstat(parent, folder_fd) is None:
                    return False
                folder_fd = files.open_folder(parent, folder_fd)
                fds.callback(os.close, folder_fd)
            there = files.lstat(name, folder_fd)
            if there is None or not is_original(original, there):
                return False
            if not stat.S_ISDIR(there.st_mode):
                os.unlink(name, dir_fd=folder_fd)
                failpoint.reach("original.removed")
                return True
            try:
                os.rmdir(name, dir_fd=folder_fd)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                return False  # something was dropped into it meanwhile: a drop of its own
            return True


class _Round:
    """Some drops on their way under one set of fsyncs."""

    def __init__(self, inbox: str, work: str, leases: bool) -> None:
        self._inbox = inbox
        self._work = work
        self._leases = leases
        self._fds: list[int] = []
        self._moves: list[Move] = []
        self._kept: list[Move] = []
        self._folders: dict[str, int] = {}

    def __enter__(self) -> _Round:
        try:
            self._inbox_fd = self._folders[""] = self._opened(self._inbox)
            self._work_fd = self._opened(self._work)
        except OSError:
            self.__exit__()
            raise
        self._rules = Rules(os.fstat(self._work_fd).st_dev, self._leases)
        return self

    def __exit__(self, *_: object) -> None:
        for move in self._moves:
            move.close()
        for fd in self._fds:
            os.close(fd)

    def claim(self, takes: Sequence[Take]) -> list[Taken | NotYet]:
        answers: dict[str, Taken | NotYet] = {}
        moves: list[Move] = []
        for take in takes:
            try:
                moves.append(self._move(take))
            except OSError as error:
                answers[take.id] = _not_yet(take, error)
        moves = self._each(moves, Move.begin, answers)
        if any(move.planned for move in moves):
            with files.Syncs() as syncs:
                moves = self._each(moves, lambda move: syncs.add(move.plan_spots()), answers)
                syncs.add_open(self._work_fd)
            failpoint.reach("claim.plans_durable")
        moves = self._each(moves, Move.move_in, answers)
        failpoint.reach("claim.moved_in")
        moves = self._each(moves, Move.hash, answers)
        failpoint.reach("claim.hashed")
        with files.Syncs() as syncs:
            moves = self._each(moves, lambda move: move.sync(syncs), answers)
            for move in self._kept:
                try:
                    move.hash()
                    move.sync(syncs)
                except files.NotDurable:
                    raise
                except (Held, OSError) as error:  # it stays in work/ without a row, for the next start
                    answers[move.take.id] = _not_yet(move.take, error)
                else:
                    moves.append(move)
            syncs.add_open(self._work_fd)
        failpoint.reach("claim.durable")
        moves = self._each(moves, Move.look_again, answers)
        for move in self._kept:  # what changed so late and cannot go back is for the next start, too
            name = os.path.basename(move.take.sources[0])
            answers.setdefault(move.take.id, _not_yet(move.take, Held(name, "error", "it changed while it was taken")))
        self._let_go(moves)
        failpoint.reach("claim.let_go")
        answers |= {move.take.id: _taken(move) for move in moves}
        return [answers[take.id] for take in takes]

    def recover(self, ids: Sequence[str]) -> list[Taken]:
        """Adopt claims of an earlier life; one that cannot be read is set aside, to be rejected.

        Trouble of the machine is raised, and nothing is lost by it: they can be adopted again.
        """
        moves: list[Move] = []
        unreadable: list[Taken] = []
        with files.Syncs() as syncs:
            for job_id in ids:
                try:
                    move = resume(job_id, self._work_fd, self._source_folder_again, self._rules)
                    if move is not None:
                        self._moves.append(move)
                        move.write_anew()
                        move.hash()
                        move.sync(syncs)
                        moves.append(move)
                except (files.NotDurable, MemoryError):
                    raise
                except Exception as error:  # a defect that one of them meets must not end every start
                    if not isinstance(error, Held | OSError):
                        log.exception("inbox.not_adopted", id=job_id)
                    if is_passing(error) and isinstance(error, OSError) and error.errno != errno.EIO:
                        raise  # of the machine, and no reason to reject a drop
                    unreadable.append(self._set_aside(job_id, error))
            syncs.add_open(self._work_fd)
        failpoint.reach("claim.adopted")
        self._let_go(moves)
        return sorted([*map(_taken, moves), *unreadable], key=lambda taken: taken.take.id)

    def _set_aside(self, job_id: str, error: Exception) -> Taken:
        found = files.lstat(job_id, self._work_fd)
        text = (
            f"the daemon was stopped while it took this drop, and what it holds of it cannot be read: {_text(error)}; "
            "it is kept beside this manifest; drop the input again"
        )
        take = Take(job_id, (job_id,), folder=True)
        return Taken(take, (), found.st_uid if found else 0, problem=("unreadable", text))

    def _each(self, moves: list[Move], step: Callable[[Move], None], answers: dict[str, Taken | NotYet]) -> list[Move]:
        """Take one step with each; what cannot go on is given back, or kept to be rejected. The others are returned."""
        good: list[Move] = []
        for move in moves:
            try:
                step(move)
            except files.NotDurable:
                raise
            except (Held, OSError) as error:
                if move.undo():
                    answers[move.take.id] = _not_yet(move.take, error)
                else:
                    self._kept.append(move)
            else:
                good.append(move)
        return good

    def _let_go(self, moves: list[Move]) -> None:
        """Make durable that names left the inbox, only now: none may vanish there before it is safe here."""
        files.durable([(".", source_fd) for source_fd in {move.source_fd for move in moves}])

    def _move(self, take: Take) -> Move:
        folder = take.sources[0].rpartition("/")[0]
        if folder not in self._folders:
            self._folders[folder] = self._opened(folder, self._inbox_fd)
        move = Move(take, self._folders[folder], self._work_fd, self._rules)
        self._moves.append(move)
        return move

    def _source_folder_again(self, folder: str) -> int:
        """The folder of the inbox a claim came from, made anew if it is gone: something may have to go back there."""
        if folder not in self._folders:
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder, dir_fd=self._inbox_fd)
            self._folders[folder] = self._opened(folder, self._inbox_fd)
        return self._folders[folder]

    def _opened(self, name: str, folder_fd: int | None = None) -> int:
        fd = files.open_folder(name, folder_fd)
        self._fds.append(fd)
        return fd


def _taken(move: Move) -> Taken:
    return Taken(move.take, move.files, move.uid, move.originals, move.problem)


def _text(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error) if isinstance(error, Held) else f"a defect of Solvisor: {type(error).__name__}: {error}"
    about = f"{escape_name(os.fsdecode(error.filename))}: " if isinstance(error.filename, (str, bytes)) else ""
    return f"{about}{error.strerror or error}"


def _not_yet(take: Take, error: Held | OSError) -> NotYet:
    if isinstance(error, Held):
        source = os.path.join(os.path.dirname(take.sources[0]), error.source)
        return NotYet(take.id, source, error.reason, str(error))
    source = take.sources[0]
    text = f"{escape_name(source)}: {error.strerror or error}"
    if error.errno == errno.ENOENT:
        return NotYet(take.id, source, "gone", f"{escape_name(source)} is no longer there")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NotYet(take.id, source, "disk", f"{text}; free some space, then it goes on by itself")
    if error.errno == errno.EROFS:
        return NotYet(take.id, source, "disk", f"{text}; mount it writable, then it goes on by itself")
    return NotYet(take.id, source, "error", text)
