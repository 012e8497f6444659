"""The history of a home made anew from the manifests of its results, on an older copy of the database or on nothing.

A result whose job has no row gets one; a job that the database thinks unfinished and whose result lies in its place is
finished as its manifest says. What lies in ``work/`` without a row is queued again by the next start, as any claim that
an earlier life left. Rules: whoever calls holds the lock of the home. What is replaced is kept under another name;
wherever this is broken off, it can be begun again, and no daemon starts on half a history. A manifest is never changed.
All of it blocks.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from .backup import back_up, make_durable
from .errors import StoreDamaged
from .home import Home
from .manifest import AttemptFacts, Manifest
from .model import TARGETS, TERMINAL, Attempt, Batch, ExitFacts, Job, JobSpec, Settings, State, Usage
from .names import FOLDER_JOB_FILE, age, is_job_id, speaks_to_solvisor
from .store import Store

AT_ONCE = 500
"""Jobs recorded in one transaction."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_decode_manifest = msgspec.json.Decoder(Manifest).decode


class Rebuilt(NamedTuple):
    """What was done. ``aside`` is where the former database was put, if it could not be gone on with.

    ``known`` results had a row as it should be, ``ended`` one that was not finished, ``added`` none. ``unread`` are
    manifests of which no row could be made, and why. ``claims`` wait in ``work/`` for the next start; of ``lost`` jobs
    there is neither a result nor a folder. ``anew``: it was begun on a backup or on nothing, so what only the database
    knew is what the backup has.
    """

    aside: Path | None
    known: int
    ended: int
    added: int
    unread: tuple[tuple[str, str], ...]
    claims: int
    lost: tuple[str, ...]
    anew: bool = False


def rebuild(home: Home, backup: Path | None = None, told: Callable[[int], None] = lambda _: None) -> Rebuilt:
    """Bring the database up to what the results say; begin with ``backup``, else with what is there and whole.

    ``told`` hears how many results were read so far. Raises ``StoreError``, ``OSError``.
    """
    if backup is None and _is_whole(home.db):
        with closing(Store.open(home.db)) as store:
            return _Reading(home, store).run(told)
    fresh = home.state / "rebuild"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(mode=0o700)
    new = fresh / home.db.name
    if backup is not None:
        back_up(backup, new)
    with closing(Store.open(new)) as store:
        done = _Reading(home, store).run(told)
        store.harden()
    make_durable(new)
    done = done._replace(aside=_put_aside(home.db), anew=True)
    os.rename(new, home.db)
    make_durable(home.state)
    shutil.rmtree(fresh)
    return done


def newer_result(home: Home, unfinished: Iterable[str], last_id: str | None) -> str | None:
    """A result, as ``done/ID``, that the database cannot know as it is; ``None`` if there is none. Blocks.

    It is of one of the jobs that are ``unfinished`` there, or of one that was claimed after ``last_id``, the last one
    it knows: the database is older than what lies in the home. Somebody put back a copy, or its log was cut.
    """
    there = set(os.listdir(home.work))
    targets = list(dict.fromkeys(TARGETS.values()))
    known = "" if last_id is None else age(last_id)
    for target in targets:
        with suppress(FileNotFoundError):
            later = [name for name in os.listdir(home.root / target) if is_job_id(name) and age(name) > known]
            for name in later:
                if _is_result(home, target, name):
                    return f"{target}/{name}"
    for job_id in unfinished:
        if job_id not in there:
            for target in targets:
                if _is_result(home, target, job_id):
                    return f"{target}/{job_id}"
    return None


def _is_result(home: Home, target: str, job_id: str) -> bool:
    return (home.root / target / job_id / "manifest.json").is_file()


def _is_whole(db: Path) -> bool:
    """Whether there is a database that can be gone on with. Raises ``StoreError`` if another Solvisor wrote it."""
    try:
        Store.open(db, expected=True).close()
    except StoreDamaged:
        return False
    return True


def _put_aside(db: Path) -> Path | None:
    """Give the former database and what belongs to it another name; the name of the former, if there was one.

    The database first: its log without it harms nobody, but it would be wrong without its log, or beside another's.
    """
    aside = db.with_name(f"{db.name}.aside-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    number = 1
    while os.path.lexists(aside):
        number += 1
        aside = aside.with_name(f"{aside.name.rpartition('Z')[0]}Z-{number}")
    for suffix in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.rename(f"{db}{suffix}", f"{aside}{suffix}")
            make_durable(db.parent)
    return aside if aside.exists() else None


class _Reading:
    """The manifests of one home on their way into a store."""

    def __init__(self, home: Home, store: Store) -> None:
        self._home = home
        self._store = store
        self._seq = store.last_seq()
        self._live = {job.id: job for job in store.live_jobs()}
        self._keys: set[str] = set()
        self._unread: list[tuple[str, str]] = []
        self._known = self._ended = self._added = 0

    def run(self, told: Callable[[int], None]) -> Rebuilt:
        self._store.mark_rebuilt()
        places = list(self._places())
        for start in range(0, len(places), AT_ONCE):
            self._record(places[start : start + AT_ONCE])
            told(min(start + AT_ONCE, len(places)))
        there = {name for name in os.listdir(self._home.work) if is_job_id(name)}
        finished = {job_id for _, job_id in places}
        lost = [i for i, job in self._live.items() if job.state not in TERMINAL and i not in there | finished]
        claims = len(there - self._live.keys())
        counts = (self._known, self._ended, self._added)
        return Rebuilt(None, *counts, tuple(self._unread), claims, tuple(lost))

    def _places(self) -> Iterator[tuple[str, str]]:
        """Every folder of a result, as its target and id, in the order in which the jobs came in."""
        found = []
        for target in dict.fromkeys(TARGETS.values()):
            with suppress(FileNotFoundError):
                found += [(target, name) for name in os.listdir(self._home.root / target) if is_job_id(name)]
        return iter(sorted(found, key=lambda place: (age(place[1]), place)))

    def _record(self, places: Iterable[tuple[str, str]]) -> None:
        states = self._store.states(job_id for _, job_id in places)
        jobs: list[Job] = []
        batches: dict[str, Batch] = {}
        for target, job_id in places:
            live = self._live.get(job_id)
            if job_id in states and (live is None or live.state in TERMINAL):
                self._known += 1  # one that is not marked as published yet is marked by the next start
                continue
            try:
                job = self._job(target, job_id, live)
            except (OSError, ValueError) as error:
                self._unread.append((f"{target}/{job_id}/manifest.json", str(error)))
                continue
            batch = job.spec.batch
            if live is None and batch is not None and self._store.batch(batch) is None:
                batches.setdefault(batch, Batch(batch, "", job.spec.user, "skip", None, job.submitted_us, closed=True))
            jobs.append(job)
            self._ended += live is not None
            self._added += live is None
        self._store.record(jobs, [job.id for job in jobs], batches.values())

    def _job(self, target: str, job_id: str, live: Job | None) -> Job:
        """The finished job of a manifest. Raises ``OSError``, ``ValueError``."""
        data = (self._home.root / target / job_id / "manifest.json").read_bytes()
        manifest = _decode_manifest(data)
        state = State(manifest.state)
        if manifest.id != job_id or TARGETS[state] != target:
            raise ValueError(f"it is of {manifest.id} ({state.value}), which does not belong here")
        if (manifest.cause is not None) != (state is State.FAILED):
            raise ValueError(f"its cause {manifest.cause} does not go with {state.value}")
        attempts = tuple(_attempt(manifest, facts) for facts in manifest.attempts)
        if [attempt.n for attempt in attempts] != list(range(1, len(attempts) + 1)):
            raise ValueError("its tries are not numbered from 1 on")
        if live is None:
            self._seq += 1
            key = manifest.key
            if key is not None and (key in self._keys or self._store.id_of_key(key) is not None):
                key = None  # who has it first, keeps it
            elif key is not None:
                self._keys.add(key)
            live = Job(job_id, self._seq, State.QUEUED, _spec(manifest, key), _us(manifest.submitted))
        return replace(
            live,
            state=state,
            attempts=(*live.attempts, *attempts[len(live.attempts) :]),
            cause=manifest.cause,
            code=manifest.code,
            message=manifest.message,
            started_us=None if manifest.started is None else _us(manifest.started),
            finished_us=_us(manifest.finished),
            manifest=data,
        )


def _spec(manifest: Manifest, key: str | None) -> JobSpec:
    """What the user asked, as far as a manifest tells: enough to show it and to run it again with the same inputs."""
    names = [fact.path.removeprefix("input/") for fact in manifest.inputs]
    place, _, dropped = manifest.source.path.rpartition("/")
    plain = [name for name in names if not speaks_to_solvisor(name)]
    return JobSpec(
        name=manifest.name,
        solver=manifest.solver.name,
        primary=dropped if dropped in plain else next(iter(plain), ""),
        inputs=manifest.inputs,
        source=manifest.source,
        user=manifest.user,
        project=manifest.project,
        params=manifest.params,
        key=key,
        retry=manifest.retry,
        batch=manifest.batch,
        retry_of=manifest.retry_of,
        route=place or None,
        folder=manifest.source.via == "socket" or FOLDER_JOB_FILE in names or dropped not in names,
        options=manifest.options,
    )


def _attempt(manifest: Manifest, told: AttemptFacts) -> Attempt:
    last = told.n == len(manifest.attempts)
    resources = manifest.resources
    settings = Settings(manifest.solver.kind or "", {}, manifest.solver.version)
    if resources is not None:
        held = resources.cpus, resources.memory_bytes, resources.licenses
        settings = replace(settings, cpus=held[0], memory_bytes=held[1], licenses=held[2])
    used = told.cpu_user_seconds, told.cpu_system_seconds, told.max_rss_bytes, told.max_rss_source
    facts = None
    if told.finished is not None:
        facts = ExitFacts(told.exit_code, told.signal, _us(told.finished), Usage(*used))
    return Attempt(
        n=told.n,
        token=told.token,
        host=told.host,
        started_us=_us(told.started),
        settings=settings,
        server=told.server,
        port=told.port,
        argv=manifest.solver.command if last else (),
        pid=told.pid,
        facts=facts,
        cause=told.cause,
        code=told.code,
        message=told.message,
    )


def _us(stamp: str) -> int:
    """UTC microseconds of an RFC 3339 time. Raises ``ValueError``."""
    return (datetime.fromisoformat(stamp) - _EPOCH) // timedelta(microseconds=1)
