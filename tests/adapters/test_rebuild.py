"""A history made anew: from the results alone, on a backup, and again after a crash at any point."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from builders import BAD, OK, SECOND_US, Story
from crash.points import crashed_at
from solvisor.backup import back_up
from solvisor.errors import StoreDamaged, StoreError
from solvisor.history import Filters, History
from solvisor.home import Home
from solvisor.manifest import attempt_facts
from solvisor.model import TARGETS, Job, State
from solvisor.rebuild import newer_result, rebuild
from solvisor.spool import Claims
from solvisor.store import Store
from solvisor.world import World
from spool_kit import lay, needs_root, one, taken_up


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return made(tmp_path / "home")


def made(root: Path) -> Home:
    home = Home.at(root)
    home.prepare()
    return home


def lived(count: int = 4, first: int = 1, **changes: Any) -> list[Job]:
    """Jobs that ended one way or another: well, badly, after an interruption, cancelled."""
    story = Story(World(first))
    for n in range(first, first + count):
        job_id = f"beam-{n:015d}"
        story.now_us += n * SECOND_US
        story.accept(job_id, **({"key": f"key-{n}", "user": "ann", "params": {"load": 2.5}} | changes))
        if n % 4 == 0:
            story.cancel(job_id)
            continue
        story.start(job_id)
        if n % 4 == 3:
            story.lost(job_id)
            story.start(job_id)
        story.exited(job_id)
        story.judged(job_id, BAD if n % 4 == 2 else OK)
    return list(story.world.jobs.values())


def place(home: Home, job: Job) -> Path:
    """Put the result of a job in its place."""
    assert job.manifest is not None
    folder = home.root / TARGETS[job.state] / job.id
    folder.mkdir()
    (folder / "manifest.json").write_bytes(job.manifest)
    return folder


def record(home: Home, jobs: list[Job], *, published: bool = True) -> None:
    with contextlib.closing(Store.open(home.db)) as store:
        store.record(jobs, [job.id for job in jobs] if published else [])


def known(home: Home) -> dict[str, Job]:
    """All finished jobs and what is told of them, in their order."""
    with contextlib.closing(History.open(home.db)) as history:
        return {job.id: job for job in reversed(history.page(Filters(), None, 1000).jobs)}


def told(job: Job) -> dict[str, Any]:
    """What a manifest tells of a job, without the priority and limits that it asked for."""
    spec = job.spec
    same = {name: getattr(job, name) for name in ("id", "state", "cause", "code", "message", "submitted_us")}
    same |= {name: getattr(job, name) for name in ("started_us", "finished_us")}
    same |= {name: getattr(spec, name) for name in ("name", "solver", "primary", "inputs", "source", "user", "project")}
    same |= {name: getattr(spec, name) for name in ("params", "key", "batch", "retry_of", "route", "folder", "options")}
    return same | {"attempts": [attempt_facts(attempt) for attempt in job.attempts]}


@pytest.mark.parametrize("left", ["damaged", "empty", "missing"])
def test_fault_32_of_every_result_is_told_what_was_told_before(home: Home, left: str) -> None:
    jobs = lived(9)
    record(home, jobs)
    before = [told(job) for job in known(home).values()]
    for job in jobs:
        place(home, job)
    match left:
        case "damaged":
            home.db.write_bytes(b"\xa5" * 9000)
        case "empty":
            home.db.write_bytes(b"")
        case "missing":
            home.db.unlink()
    log = home.db.with_name(f"{home.db.name}-wal")
    log.write_bytes(b"of the former")
    done = rebuild(home)
    assert not log.exists(), "the log of one database beside another would be carried over into it"
    assert (done.known, done.ended, done.added) == (0, 0, 9)
    assert [told(job) for job in known(home).values()] == before
    if left == "damaged":
        assert done.aside is not None
        assert done.aside.read_bytes() == b"\xa5" * 9000
    with contextlib.closing(Store.open(home.db, expected=True)) as store:
        assert store.live_jobs() == []
        assert store.last_seq() == 9
    left_over = {name for name in os.listdir(home.state) if ".aside-" not in name}
    assert left_over == {"log", home.db.name}


def test_results_are_put_in_the_order_in_which_their_jobs_came_in(home: Home) -> None:
    first, second = (
        replace(job, id=f"{name}-00000000{n}abcdef") for n, (name, job) in enumerate(zip("zb", lived(2), strict=True))
    )
    for job in (second, first):
        manifest = json.loads(job.manifest or b"") | {"id": job.id}
        place(home, replace(job, manifest=json.dumps(manifest).encode()))
    rebuild(home)
    assert list(known(home)) == [first.id, second.id]


def test_fault_32_from_a_backup_nothing_that_finished_since_runs_again(home: Home, tmp_path: Path) -> None:
    old, new = lived(4), lived(4, first=5)
    early = [replace(job, state=State.QUEUED, attempts=(), cause=None, code=None, message=None) for job in new[:2]]
    early = [replace(job, started_us=None, finished_us=None, manifest=None) for job in early]
    record(home, old)
    record(home, [replace(early[0], asked=replace(early[0].spec, priority=7)), early[1]], published=False)
    backup = back_up(home.db, tmp_path / "saved.db").path
    record(home, new)
    before = {job_id: told(job) for job_id, job in known(home).items()}
    for job in old + new:
        place(home, job)
    shutil.copy(backup, home.db)
    with contextlib.closing(Store.open(home.db)) as store:
        live = store.live_jobs()
        assert [job.id for job in live] == [job.id for job in early]
        assert newer_result(home, store.unfinished(), store.last_id()) in {
            f"{TARGETS[job.state]}/{job.id}" for job in new
        }
        assert newer_result(home, store.unfinished(), new[-1].id) == f"{TARGETS[new[0].state]}/{new[0].id}"
    home.db.write_bytes(b"no database")
    done = rebuild(home, backup)
    assert (done.known, done.ended, done.added) == (4, 2, 2)
    after = known(home)
    assert {job_id: told(job) for job_id, job in after.items()} == before
    assert after[early[0].id].spec.priority == 7, "what the backup knows more is kept"
    with contextlib.closing(Store.open(home.db)) as store:
        assert newer_result(home, store.unfinished(), store.last_id()) is None


def test_a_database_that_is_whole_is_gone_on_with(home: Home) -> None:
    jobs = lived(4)
    record(home, jobs[:2])
    for job in jobs:
        place(home, job)
    assert rebuild(home)[:4] == (None, 2, 0, 2)
    assert rebuild(home)[:4] == (None, 4, 0, 0)
    assert list(known(home)) == [job.id for job in jobs]


def test_a_newer_database_is_not_put_aside_unless_a_backup_is_named(home: Home, tmp_path: Path) -> None:
    record(home, lived(2))
    backup = back_up(home.db, tmp_path / "saved.db").path
    with contextlib.closing(Store.open(home.db)) as store:
        store._connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="schema version 99"):
        rebuild(home)
    assert rebuild(home, backup).aside is not None
    assert len(known(home)) == 2


def test_what_waits_in_work_and_what_is_nowhere_is_counted(home: Home) -> None:
    jobs = lived(3, key=None)
    waiting = [replace(job, state=State.QUEUED, attempts=(), cause=None, code=None, message=None) for job in jobs]
    waiting = [replace(job, started_us=None, finished_us=None, manifest=None) for job in waiting]
    record(home, waiting, published=False)
    (home.work / waiting[0].id / "input").mkdir(parents=True)
    (home.work / "other-0123456789abcde" / "input").mkdir(parents=True)
    (home.work / "other-0123456789abcdf.upload").mkdir()
    place(home, jobs[2])
    done = rebuild(home)
    assert done.claims == 1
    assert done.lost == (waiting[1].id,)
    assert done.ended == 1


@needs_root
@pytest.mark.parametrize("kind", ["foreign file", "foreign several", "foreign folder"])
def test_fault_32_a_job_that_was_claimed_by_copy_waits_on_without_its_row(home: Home, kind: str) -> None:
    claims = Claims(home)
    taken = one(claims.claim_round([lay(home, kind)]))
    for original in taken.originals:
        assert claims.remove_original(original)
    home.db.write_bytes(b"")
    assert rebuild(home).claims == 1
    (again,) = taken_up(claims)
    assert (again.problem, again.files, again.uid) == (None, taken.files, taken.uid)


def test_a_manifest_that_makes_no_row_is_named_and_left(home: Home) -> None:
    jobs = lived(4, key=None)
    places = [place(home, job) for job in jobs]
    (places[0] / "manifest.json").write_bytes(b"{")
    (places[1] / "manifest.json").unlink()
    places[2].rename(home.failed / jobs[2].id)
    other = json.loads(jobs[3].manifest or b"") | {"id": jobs[0].id}
    (places[3] / "manifest.json").write_text(json.dumps(other))
    (home.done / "not a job").mkdir()
    (home.done / "notes.txt").touch()
    done = rebuild(home)
    assert {path.split("/")[1] for path, _ in done.unread} == {job.id for job in jobs}
    assert done.added == 0
    assert "does not belong here" in dict(done.unread)[f"failed/{jobs[2].id}/manifest.json"]


def test_a_key_and_a_batch_are_what_they_were(home: Home) -> None:
    batch = "night-0123456789abcde"
    jobs = lived(3, key="the same", batch=batch)
    for job in jobs:
        place(home, job)
    rebuild(home)
    assert [job.spec.key for job in known(home).values()] == ["the same", None, None], "a key is of one job"
    with contextlib.closing(History.open(home.db)) as history:
        finished, ended = history.finished_of_batch(batch)
        assert finished.total() == 3
        assert ended == {}
        found = history.batch(batch)
        assert found is not None
        assert found.closed


@pytest.mark.parametrize("on", ["nothing", "a backup"])
def test_a_crash_at_any_change_can_be_gone_on_from(tmp_path: Path, on: str) -> None:
    """Until it is done no daemon begins with half a history: what is there is refused, or it is whole."""
    jobs = lived(4)
    for n in range(1000):
        home = made(tmp_path / f"home-{n}")
        record(home, jobs[:2])
        backup = back_up(home.db, tmp_path / f"{n}.db").path if on == "a backup" else None
        for job in jobs:
            place(home, job)
        for suffix in ("", "-wal"):
            Path(f"{home.db}{suffix}").write_bytes(b"\xa5" * 9000)
        crashed = crashed_at(n, lambda home=home, backup=backup: rebuild(home, backup))  # type: ignore[misc]
        try:
            Store.open(home.db, expected=True).close()
        except StoreDamaged:
            assert crashed
            rebuild(home, backup)
        assert [told(job) for job in known(home).values()] == [told(job) for job in jobs], f"crash at change {n}"
        asides = [path for path in home.state.glob("solvisor.db.aside-*") if not path.name.endswith("-wal")]
        assert b"\xa5" * 9000 in [path.read_bytes() for path in asides], "it is kept"
        if not crashed:
            assert n > 3
            return
