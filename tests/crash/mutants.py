"""The daemon with one promise broken: what the sweeps must notice, or they would prove nothing.

Each mutant is applied to a life before it begins. Rules: it breaks one rule and nothing else, and says where a crash is
to show it.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import anyio
import msgspec

from crash.failpoints import At
from crash.power import STRICT
from solvisor import acceptance, backup, engine, failpoint, recovery, store
from solvisor.events import Publish
from solvisor.model import TARGETS, State
from solvisor.process import posix
from solvisor.spool import Publication, claims, files, move, remains, results, uploads
from solvisor_service import daemon


class Mutant(NamedTuple):
    """``rule``: what it breaks, with the step of the disk order. ``notices``: the broken promise that shows it.

    ``at``: where a life that breaks the rule is crashed; on ``disk`` by a power cut, else by SIGKILL. ``synced`` as for
    a step. ``recovers``: the rule is of recovery, so the last life breaks it as well.
    """

    rule: str
    breaks: Callable[[], None]
    at: tuple[At, ...]
    notices: str
    disk: str | None = None
    synced: bool = True
    recovers: bool = False


def _nothing(*_: object, **__: object) -> tuple[()]:
    return ()


def _replace(owner: Any, **stand_ins: Any) -> None:
    """What a program would do that never had the rule: the process ends with it."""
    for name, stand_in in stand_ins.items():
        if not hasattr(owner, name):
            raise AssertionError(f"{owner} has no {name}: the mutant breaks nothing")
        setattr(owner, name, stand_in)


# --- what must be durable -------------------------------------------------------------------------------------------


def _without_sync(name: str) -> None:
    add_open = files.Syncs.add_open

    def some(self: files.Syncs, fd: int, what: str = ".") -> None:
        if what != name:
            add_open(self, fd, what)

    _replace(files.Syncs, add_open=some)
    _replace(files, start_writeback=_nothing)


def _claims_without_sync() -> None:
    # Starting the writeback promises nothing, but is early enough to hide that the promise is missing.
    _replace(move.Move, sync=_nothing)
    _replace(files, start_writeback=_nothing)


def _outputs_without_sync() -> None:
    class Unsynced(files.Syncs):
        def add_open(self, fd: int, name: str = ".") -> None:
            pass

    keep = remains.Remains.keep

    def tidy(self: remains.Remains, survey: remains.Survey, _syncs: files.Syncs) -> None:
        with Unsynced() as nobody:
            keep(self, survey, nobody)

    _replace(remains.Remains, keep=tidy)
    _replace(files, start_writeback=_nothing)


def _folders_without_sync(module: Any) -> None:
    """Of what this module has synced, only files are."""

    class Syncs(files.Syncs):
        def add_open(self, fd: int, name: str = ".") -> None:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                super().add_open(fd, name)

    stand_in = ModuleType("files")
    stand_in.__dict__.update(files.__dict__, Syncs=Syncs, durable=_nothing, durable_folders=_nothing)
    _replace(module, files=stand_in)


def _syncs_the_database() -> None:
    _replace(store.Store, harden=lambda self: backup.make_durable(self._path))


# --- what must come before what -------------------------------------------------------------------------------------


def _publishes_before_commit() -> None:
    """As soon as it is judged, with the bytes that are about to be recorded."""
    apply, apply_slowly = engine.Engine._apply, engine.Engine._apply_slowly

    def publish(self: Any, effects: Any) -> Any:
        for effect in effects:
            if isinstance(effect, Publish):
                job = self._world.jobs[effect.id]
                self._publisher._results.publish([Publication(job.id, TARGETS[job.state], job.manifest)])
        return effects

    async def slowly(self: Any, event: Any) -> Any:
        return publish(self, await apply_slowly(self, event))

    _replace(engine.Engine, _apply=lambda self, event: publish(self, apply(self, event)), _apply_slowly=slowly)


def _announces_before_durable() -> None:
    def hasty(self: Any, changes: Any, announcements: Any) -> None:
        self._store.record(*changes)
        self._publisher.add(*(each for each in announcements if isinstance(each, Publication)))
        calls = [each for each in announcements if not isinstance(each, Publication)]
        self._loop.call_soon_threadsafe(lambda: self._durable.add(*calls))

    _replace(engine.Engine, _commit=hasty)


def _spawns_before_record() -> None:
    record = engine.Engine._record

    async def late(self: Any, *announcements: Any) -> None:
        if any(self._world.jobs[changed].state is State.RUNNING for changed in self._world.changed):

            async def later() -> None:
                await anyio.sleep(0.5)  # noqa: TID251  slower than a start
                await record(self, *announcements)

            self._tasks.start_soon(later)
        else:
            await record(self, *announcements)

    _replace(engine.Engine, _record=late)


def _removes_originals_at_once() -> None:
    """What was copied goes, durably, before its copy is safe."""
    stepwise = claims._Round._each

    def hasty(self: Any, moves: Any, step: Any, answers: Any) -> Any:
        good = stepwise(self, moves, step, answers)
        if step is move.Move.move_in:
            for original in (original for moved in good for original in moved.originals):
                with contextlib.suppress(IsADirectoryError):
                    os.unlink(original.path, dir_fd=self._inbox_fd)
            self._let_go(good)
        return good

    _replace(claims._Round, _each=hasty)


def _moves_before_manifest() -> None:
    write, move, name_manifest = results._Batch._write, results._Batch._move, results._name_manifest

    def hasty(self: Any, item: Any) -> None:
        write(self, item)
        move(self, item)

    _replace(results._Batch, _write=hasty, _move=lambda _, item: name_manifest(item))
    _replace(results, _name_manifest=_nothing)


def _lets_go_first() -> None:
    """The inbox forgets a drop, durably, before work/ has it."""
    stepwise = claims._Round._each

    def early(self: Any, moves: Any, step: Any, answers: Any) -> Any:
        good = stepwise(self, moves, step, answers)
        if step is move.Move.move_in:
            self._let_go(good)
        return good

    _replace(claims._Round, _each=early)


def _withdraws_piece_by_piece() -> None:
    def discard(job_id: str, work_fd: int) -> None:
        fd = files.open_folder(job_id, work_fd)
        files.discard(move.PLAN, fd)
        os.close(fd)
        failpoint.reach("upload.withdrawn")
        files.discard(job_id, work_fd)

    _replace(uploads, discard_claim=discard)


# --- what recovery must do ------------------------------------------------------------------------------------------


def _recomputes_manifests() -> None:
    """What lies in its place already is written again, from what is known now."""

    def write(self: Any, item: Any) -> None:
        job_id = item.publication.id
        work_fd, target_fd = self._folder("work"), self._folder(item.publication.target)
        item.waiting = files.lstat(job_id, work_fd) is not None
        item.fd = self._opened(files.open_folder_of_ours(job_id, work_fd if item.waiting else target_fd))
        files.discard(results._TEMPORARY, item.fd)
        known = msgspec.json.decode(item.publication.manifest)
        known["published_by"] = os.getpid()
        item.manifest_fd = self._opened(files.new_file(results._TEMPORARY, item.fd))
        files.write_all(item.manifest_fd, msgspec.json.encode(known))

    _replace(results._Batch, _write=write)


def _publishes_nothing_of_old() -> None:
    take_up = recovery.take_up

    def forgetful(*given: Any) -> Any:
        effects, interrupted = take_up(*given)
        return [effect for effect in effects if not isinstance(effect, Publish)], interrupted

    _replace(recovery, take_up=forgetful)


MUTANTS = {
    "claim without a plan": Mutant(
        "1: several names are moved only after claim.json names them all",
        lambda: _replace(move.Move, _write_plan=lambda self: setattr(self, "planned", True)),
        (At("claim.file_moved"),),
        "rejected, not succeeded|did not come to rest",
    ),
    "plan not synced": Mutant(
        "1: claim.json is durable before anything is moved",
        lambda: _replace(move.Move, plan_spots=_nothing),
        (At("claim.let_go"),),
        "rejected, not succeeded: the daemon was stopped while it took this drop",
        STRICT,
    ),
    "claimed files not synced": Mutant(
        "2: claimed files are durable before their row is",
        _claims_without_sync,
        (At("inbox.accepted"),),
        "has not the bytes that its manifest names|has other inputs",
        "ext4",
        synced=False,
    ),
    "claimed folders not synced": Mutant(
        "2: so are their folders, work/ and the inbox",
        lambda: _folders_without_sync(claims),
        (At("inbox.accepted"),),
        "cannot be read: No such file or directory",
        STRICT,
    ),
    "inbox forgets first": Mutant(
        "2: the inbox is synced last: a name vanishes there when it is safe in work/",
        _lets_go_first,
        (At("claim.moved_in"),),
        "the drop .* has 0 manifests",
        STRICT,
    ),
    "rows not hardened": Mutant(
        "3, 7: what is acknowledged and announced was made durable",
        lambda: _replace(store.Store, harden=_nothing),
        (At("inbox.accepted"),),
        "was accepted and is lost|was acknowledged and is lost",
        "ext4",
    ),
    "another file synced": Mutant(
        "3, 7: by a sync of the log that SQLite writes, not of the database beside it",
        _syncs_the_database,
        (At("inbox.accepted"),),
        "was accepted and is lost|was acknowledged and is lost",
        "ext4",
    ),
    "announced when recorded": Mutant(
        "3, 7: recorded by a NORMAL commit is not enough",
        _announces_before_durable,
        (At("publish.moved", 3),),
        "was seen and is gone|was acknowledged and is lost",
        "ext4",
    ),
    "originals removed at once": Mutant(
        "3: a drop that was copied is removed when it is durable elsewhere",
        _removes_originals_at_once,
        (At("claim.moved_in"),),
        "the drop .* has 0 manifests|rejected, not succeeded: the daemon was stopped while it took this drop",
        STRICT,
    ),
    "spawned before recorded": Mutant(
        "4: no process before its attempt is recorded",
        _spawns_before_record,
        (At("attempt.started"),),
        "a solver ran as .*, which nobody recorded",
    ),
    "outputs not synced": Mutant(
        "7: outputs and logs are durable before the row names them",
        _outputs_without_sync,
        (At("publish.done", 3),),
        "has not the bytes that its manifest names",
        "ext4",
    ),
    "published before commit": Mutant(
        "7: the terminal row is committed before its manifest appears",
        _publishes_before_commit,
        (At("publish.work_durable"),),
        "has no row|its manifest changed|cannot be read|it is older than the results",
    ),
    "manifest not synced": Mutant(
        "8: a manifest comes into view when its bytes are durable",
        lambda: _without_sync(results._MANIFEST),
        (At("publish.work_durable"),),
        "its manifest changed|its manifest is torn|is half-published",
        STRICT,
    ),
    "folder moved before its manifest": Mutant(
        "8: a folder moves with its manifest in it", _moves_before_manifest, (At("publish.named"),), "is half-published"
    ),
    "published folders not synced": Mutant(
        "9: the folders are durable before the row says published",
        lambda: _folders_without_sync(results),
        (At("announce.durable", 12),),
        "its manifest changed|cannot be read|is gone",
        STRICT,
    ),
    "manifest written again": Mutant(
        "9: a manifest in its place never changes",
        _recomputes_manifests,
        (At("publish.moved"),),
        "its manifest changed",
        recovers=True,
    ),
    "half a submission under its own name": Mutant(
        "a submission becomes a claim by one rename, when it is whole and durable",
        lambda: _replace(uploads, UPLOAD=""),
        (At("upload.file_written"),),
        "is of no drop",
    ),
    "withdrawn piece by piece": Mutant(
        "a refused submission ceases to be a claim before its files go",
        _withdraws_piece_by_piece,
        (At("upload.withdrawn"),),
        "is of no drop",
    ),
    "earlier life not killed": Mutant(
        "start: nothing is dispatched while a process of the earlier life runs",
        lambda: _replace(posix, kill_earlier_life=lambda *_: set()),
        (At("attempt.started", 9),),
        "runs twice at once|process .* was left",
        recovers=True,
    ),
    "half-sent submissions kept": Mutant(
        "start: what was not sent to its end is cleared away",
        lambda: _replace(daemon, discard_unfinished=_nothing),
        (At("upload.file_written"),),
        "did not come to rest: work: .*upload",
        recovers=True,
    ),
    "claims not completed": Mutant(
        "start: claims without a row are completed or handed back",
        lambda: _replace(claims.Claims, unfinished_ids=lambda *_: []),
        (At("claim.durable"),),
        "did not come to rest: work: ",
        recovers=True,
    ),
    "refused submissions adopted": Mutant(
        "start: a submission that would be refused leaves nothing",
        lambda: _replace(acceptance.Acceptance, adopt=acceptance.Acceptance.accept),
        (At("upload.claimed", 2),),
        "what was sent as refused left",
        recovers=True,
    ),
    "finished jobs not published": Mutant(
        "start: what ended is published",
        _publishes_nothing_of_old,
        (At("publish.written"),),
        "did not come to rest: work: ",
        recovers=True,
    ),
}
