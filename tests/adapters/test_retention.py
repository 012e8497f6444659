"""What is removed, what is not, and that a crash at any point leaves a result whole or gone."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import anyio
import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from builders import make_spec
from crash.points import crashed_at
from disk_kit import mount, umount
from solvisor import retention as retention_module
from solvisor.clock import now_us
from solvisor.config import Retention as Rules
from solvisor.errors import StoreUnavailable
from solvisor.history import Filters, History
from solvisor.home import Home
from solvisor.model import TARGETS, TERMINAL, Cause, Job, State
from solvisor.process.proc import open_beneath
from solvisor.retention import YOUNGEST_SECONDS, Retention
from solvisor.spool import removal
from solvisor.spool.reading import MOMENT_SECONDS, JobFolder
from solvisor.store import Store

T = TypeVar("T")

DAY = 86_400.0
MIB = 1 << 20


class Bench:
    """A home with results, and who removes them."""

    def __init__(self, root: Path) -> None:
        self.home = Home.at(root)
        self.home.prepare()
        self.store = Store.open(self.home.db)
        self.history = History.open(self.home.db)
        self.folders = JobFolder(self.home)
        self.trouble: dict[str, str] = {}
        self.seq = 0

    def close(self) -> None:
        self.history.close()
        self.store.close()

    def result(self, age: float, state: State = State.SUCCEEDED, size: int = 0) -> str:
        """A published job that finished so many seconds ago, with outputs of so many bytes; its id."""
        self.seq += 1
        job_id = f"beam-{self.seq:015d}"
        finished = now_us() - int(age * 1e6)
        cause = Cause.EXIT if state is State.FAILED else None
        job = Job(
            job_id, self.seq, state, make_spec(job_id), finished, cause=cause, finished_us=finished, manifest=b"{}"
        )
        self.store.record([job], [job_id])
        folder = self.folder(job_id, state)
        (folder / "output" / "deep").mkdir(parents=True)
        with (folder / "output" / "deep" / "beam.frd").open("wb") as file:
            file.write(b"x" * size)
            file.flush()
            os.fsync(file.fileno())  # what is not on the disk yet takes no room there
        (folder / "stdout.log").write_text("hello\n")
        (folder / "manifest.json").write_text("{}")
        return job_id

    def folder(self, job_id: str, state: State = State.SUCCEEDED) -> Path:
        return self.home.root / TARGETS[state] / job_id

    def waiting(self, after: Collection[str]) -> Job:
        self.seq += 1
        job_id = f"next-{self.seq:015d}"
        job = Job(job_id, self.seq, State.QUEUED, make_spec(job_id, after=tuple(after)), now_us())
        self.store.record([job])
        return job

    async def in_store(self, work: Callable[[Store], T]) -> T:
        while True:
            try:
                return await anyio.to_thread.run_sync(work, self.store)
            except StoreUnavailable:
                await anyio.sleep(0.01)  # noqa: TID251  as the engine does

    def in_use(self) -> set[str]:
        return {Path(path).relative_to(self.home.root).parts[1] for path in open_beneath(f"{self.home.root}/done")}

    def retention(self, **rules: Any) -> Retention:
        return Retention(
            lambda: Rules(**rules),
            home=self.home,
            history=self.history,
            folders=self.folders,
            in_store=self.in_store,
            in_use=self.in_use,
            trouble=self.trouble,
        )

    def removed(self) -> set[str]:
        return {job.id for job in self.history.page(Filters(), None, 1000).jobs if job.removed_us is not None}

    def there(self) -> set[str]:
        return {p.name for t in ("done", "failed", "rejected") for p in (self.home.root / t).iterdir()}

    def is_tidy(self) -> bool:
        return os.listdir(self.home.work) == []


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "home")
    yield bench
    bench.close()


# --- what goes ------------------------------------------------------------------------------------------------------


async def test_without_a_rule_everything_is_kept_for_ever(bench: Bench) -> None:
    old = bench.result(9999 * DAY)
    await bench.retention().look()
    assert bench.there() == {old}
    assert bench.removed() == set()


async def test_what_is_older_than_it_is_to_be_kept_goes_and_is_logged(bench: Bench) -> None:
    old = [bench.result(91 * DAY, state) for state in sorted(TERMINAL)]
    young = [bench.result(89 * DAY, state) for state in sorted(TERMINAL)]
    with capture_logs() as logs:
        rest = await bench.retention(keep_for=90 * DAY).look()
    assert bench.there() == set(young)
    assert bench.removed() == set(old)
    assert bench.is_tidy()
    told = [entry for entry in logs if entry["event"] == "result.removed"]
    assert {entry["id"] for entry in told} == set(old)
    assert len(told) == len(old)
    assert all(entry["bytes"] > 0 and entry["why"] == "older than 90 d" for entry in told)
    assert rest == 60.0
    assert bench.history.job(old[0]) is not None, "its row stays"


async def test_what_did_not_succeed_can_go_sooner(bench: Bench) -> None:
    bad = [bench.result(2 * DAY, state) for state in sorted(TERMINAL - {State.SUCCEEDED})]
    good = bench.result(2 * DAY)
    await bench.retention(keep_failed_for=DAY).look()
    assert bench.there() == {good}
    assert bench.removed() == set(bad)


async def test_the_next_look_is_when_the_next_one_comes_of_age(bench: Bench) -> None:
    bench.result(90.0)
    assert 9 < await bench.retention(keep_for=100.0).look() <= 10


async def test_beyond_the_room_the_oldest_go_first_and_no_more_than_needed(bench: Bench) -> None:
    ids = [bench.result(age * DAY, size=MIB) for age in (5, 9, 2, 7, 3)]
    await bench.retention(keep_at_most=3 * MIB + MIB // 2).look()
    assert bench.removed() == {ids[1], ids[3]}
    assert bench.there() == set(ids) - {ids[1], ids[3]}
    await bench.retention(keep_at_most=3 * MIB + MIB // 2).look()
    assert len(bench.there()) == 3
    bench.result(DAY, size=2 * MIB)
    await bench.retention(keep_at_most=3 * MIB + MIB // 2).look()
    assert bench.removed() == {ids[1], ids[3], ids[0], ids[4]}


def test_room_is_what_they_take_on_the_disk(bench: Bench) -> None:
    job_id = bench.result(DAY, size=3 * MIB)
    with (bench.folder(job_id) / "output" / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    du = subprocess.run(["du", "-s", "--block-size=1", bench.folder(job_id)], capture_output=True, check=True)
    own = bench.folder(job_id).stat().st_blocks * 512
    assert removal.measure(bench.home, "done", job_id) == int(du.stdout.split()[0]) - own


async def test_what_just_finished_does_not_go_for_the_sake_of_room(bench: Bench) -> None:
    young = bench.result(YOUNGEST_SECONDS - 60, size=MIB)
    await bench.retention(keep_at_most=0).look()
    assert bench.there() == {young}


async def test_very_many_go_in_their_order(bench: Bench) -> None:
    ids = [bench.result((100 - n) * DAY) for n in range(50)]
    with capture_logs() as logs:
        await bench.retention(keep_for=60.5 * DAY).look()
    assert [entry["id"] for entry in logs if entry["event"] == "result.removed"] == ids[:40]
    assert bench.there() == set(ids[40:])


async def test_nothing_outside_goes_along(bench: Bench, tmp_path: Path) -> None:
    job_id = bench.result(2 * DAY)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (bench.folder(job_id) / "output" / "link").symlink_to(outside)
    (bench.folder(job_id) / "output" / "deep" / "file").symlink_to(outside / "kept")
    await bench.retention(keep_for=DAY).look()
    assert bench.is_tidy()
    assert (outside / "kept").exists()


async def test_fault_48_a_clock_that_is_set_forward_removes_nothing(bench: Bench) -> None:
    job_id = bench.result(0)
    retention = bench.retention(keep_for=3600.0)
    began_us, began = retention._began
    retention._began = began_us - int(7200e6), began  # two hours have passed by the wall, and none by the other clock
    kept = bench.store
    with contextlib.closing(Store.open(bench.home.db)):
        kept._connection.execute("UPDATE jobs SET finished_us = finished_us - ?", (int(7200e6),))
    await retention.look()
    assert bench.there() == {job_id}
    await bench.retention(keep_for=3600.0).look()
    assert bench.there() == set()


# --- what does not --------------------------------------------------------------------------------------------------


async def test_what_a_client_reads_stays_until_a_moment_after(bench: Bench) -> None:
    job_id, other = bench.result(2 * DAY), bench.result(2 * DAY)
    retention = bench.retention(keep_for=DAY)
    with bench.folders.reading(job_id):
        await retention.look()
        assert bench.there() == {job_id}
        assert bench.removed() == {other}
    await retention.look()
    assert bench.there() == {job_id}, "its next file may be about to be fetched"
    bench.folders._read_at[job_id] -= MOMENT_SECONDS
    await retention.look()
    assert bench.there() == set()


async def test_nobody_begins_to_read_what_is_on_its_way_out(bench: Bench) -> None:
    job_id = bench.result(2 * DAY)
    assert bench.folders.shut([job_id]) == {job_id}
    assert bench.folders.open(job_id, "stdout.log") is None
    bench.folders.open_again([job_id])
    file = bench.folders.open(job_id, "stdout.log")
    assert file is not None
    file.close()


@pytest.mark.parametrize("how", ["a file", "a folder it works in"])
def test_what_a_process_has_open_stays(bench: Bench, how: str) -> None:
    job_id, other = bench.result(3 * DAY), bench.result(2 * DAY)
    place = bench.folder(job_id) / "output" / "deep"
    has_file = how == "a file"
    script = f"{f'exec < {place}/beam.frd;' if has_file else ''} echo; exec sleep 600"
    viewer = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, cwd=None if has_file else place)
    assert viewer.stdout is not None
    try:
        viewer.stdout.readline()
        anyio.run(bench.retention(keep_for=DAY).look)
        assert bench.there() == {job_id}
        assert bench.removed() == {other}
    finally:
        viewer.kill()
        viewer.wait()
        viewer.stdout.close()
    anyio.run(bench.retention(keep_for=DAY).look)
    assert bench.there() == set()


async def test_what_an_unfinished_job_waits_for_stays(bench: Bench) -> None:
    needed, other = bench.result(3 * DAY), bench.result(2 * DAY)
    waits = bench.waiting([needed])
    await bench.retention(keep_for=DAY).look()
    assert bench.there() == {needed}
    assert bench.removed() == {other}
    over = replace(waits, state=State.CANCELLED, finished_us=now_us(), manifest=b"{}")
    bench.store.record([over], [over.id])
    await bench.retention(keep_for=DAY).look()
    assert bench.there() == set()


async def test_what_a_job_names_that_came_meanwhile_stays(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [bench.result((100 - n) * DAY) for n in range(40)]
    take_away = Retention._take_away

    async def and_one_comes(retention: Retention, going: Any, why: str) -> int:
        if bench.seq == len(ids):
            bench.waiting([ids[30]])
        return await take_away(retention, going, why)

    monkeypatch.setattr(Retention, "_take_away", and_one_comes)
    await bench.retention(keep_for=DAY).look()
    assert bench.there() == {ids[30]}


async def test_processes_are_looked_at_once_and_waiting_jobs_are_asked_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "OPEN_SECONDS", 600.0)
    asked: list[int] = []
    looked: list[None] = []
    depended_on, in_use = bench.history.depended_on, bench.in_use

    def ask(after_seq: int) -> tuple[set[str], int]:
        asked.append(after_seq)
        return depended_on(after_seq)

    def look() -> set[str]:
        looked.append(None)
        return in_use()

    monkeypatch.setattr(bench.history, "depended_on", ask)
    monkeypatch.setattr(bench, "in_use", look)
    for _ in range(50):
        bench.result(2 * DAY)
    last = bench.waiting([]).seq
    retention = bench.retention(keep_for=DAY)
    await retention.look()
    assert bench.there() == set()
    assert (asked, len(looked)) == ([0, last, last, last], 1)
    bench.result(2 * DAY)
    await retention.look()
    assert (asked[4:], len(looked)) == ([0], 2), "each look looks anew"


@pytest.mark.parametrize("spec", [b"\x00", b"{", b'{"after": 5}', b'{"after": ["\xff"]}', b"\xff", b"[]"], ids=repr)
async def test_a_row_that_cannot_be_read_ends_nothing(bench: Bench, spec: bytes) -> None:
    needed, other = bench.result(3 * DAY), bench.result(2 * DAY)
    bench.waiting([needed])
    bad = bench.waiting([other])
    bench.store._connection.execute("UPDATE jobs SET spec = ? WHERE id = ?", (spec, bad.id))
    await bench.retention(keep_for=DAY).look()
    assert bench.there() == {needed}
    assert bench.trouble == {}


# --- trouble --------------------------------------------------------------------------------------------------------


async def test_what_somebody_removed_already_is_not_looked_for_again(bench: Bench) -> None:
    job_id = bench.result(2 * DAY)
    removal.destroy(bench.home, job_id, 10)
    bench.folder(job_id).rename(bench.home.root / "taken")
    with capture_logs() as logs:
        await bench.retention(keep_for=DAY).look()
        await bench.retention(keep_for=DAY).look()
    assert [entry["event"] for entry in logs] == ["result.gone"]
    assert bench.removed() == {job_id}


async def test_one_that_cannot_be_moved_stays_readable_and_keeps_no_other(bench: Bench) -> None:
    stuck, other = bench.result(3 * DAY), bench.result(2 * DAY)
    retention = bench.retention(keep_for=DAY, keep_at_most=1 << 50)
    retention._doomed = []
    (bench.home.work / f"{stuck}.doomed").touch()
    await retention.look()
    assert bench.removed() == {other}
    assert bench.there() == {stuck}
    assert stuck in bench.trouble["retention"]
    file = bench.folders.open(stuck, "stdout.log")
    assert file is not None
    file.close()


async def test_on_a_disk_too_full_to_record_anything_room_is_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    monkeypatch.setattr(retention_module, "PATIENCE_SECONDS", 0.1)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", small], check=True)  # noqa: ASYNC221
    try:
        bench = Bench(small / "home")
        old = bench.result(2 * DAY, size=4 * MIB)
        bench.close()
        bench.store, bench.history = Store.open(bench.home.db), History.open(bench.home.db)
        with contextlib.suppress(OSError), (small / "filling").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        with pytest.raises(StoreUnavailable):
            bench.store.remove([old], now_us())
        retention = bench.retention(keep_for=DAY)
        await retention.look()
        assert bench.is_tidy()
        await retention.look()
        assert bench.removed() == {old}
        bench.close()
    finally:
        subprocess.run(["umount", small], check=True)  # noqa: ASYNC221


def test_a_crash_at_any_change_leaves_a_result_whole_or_gone(tmp_path: Path) -> None:
    """Mutants: mark the row before the rename, or destroy before the row says so; both are caught."""
    n = 0
    while True:
        bench = Bench(tmp_path / str(n))
        ids = [bench.result(2 * DAY), bench.result(2 * DAY, State.FAILED)]
        crashed = crashed_at(n, lambda bench=bench: anyio.run(bench.retention(keep_for=DAY).look))  # type: ignore[misc]
        bench.close()
        removed_before = _seen_after_crash(bench, ids)
        bench.store, bench.history = Store.open(bench.home.db), History.open(bench.home.db)
        with capture_logs():
            anyio.run(bench.retention().look)  # the rule may be gone by then: what was begun is ended
        assert bench.is_tidy(), f"after a crash at change {n}"
        assert bench.removed() == set(ids) - bench.there(), f"after a crash at change {n}"
        assert removed_before <= bench.removed()
        bench.close()
        if not crashed:
            break
        n += 1
    assert n > 8
    assert bench.there() == set()


def _seen_after_crash(bench: Bench, ids: list[str]) -> set[str]:
    """What is seen of each is whole, and none that the rows call removed is seen; those that they do."""
    with contextlib.closing(Store.open(bench.home.db)), contextlib.closing(History.open(bench.home.db)) as history:
        removed = {job.id for job in history.page(Filters(), None, 10).jobs if job.removed_us is not None}
    for job_id, state in zip(ids, (State.SUCCEEDED, State.FAILED), strict=True):
        folder = bench.folder(job_id, state)
        if folder.exists():
            assert len(list(folder.rglob("*"))) == 5, "a result that is seen is whole"
            assert job_id not in removed
    return removed


def test_what_has_many_files_is_destroyed_in_pieces(bench: Bench) -> None:
    job_id = bench.result(2 * DAY)
    for n in range(300):
        (bench.folder(job_id) / "output" / f"{n}.vtk").touch()
    removal.doom(bench.home, [("done", job_id)])
    assert not removal.destroy(bench.home, job_id, 100)[1]
    assert not bench.is_tidy(), "the rest waits its turn"
    assert any(removal.destroy(bench.home, job_id, 100)[1] for _ in range(10))
    assert bench.is_tidy()


def test_what_lies_in_one_folder_is_destroyed_in_pieces_too_and_never_in_vain(bench: Bench) -> None:
    job_id = bench.result(2 * DAY)
    for n in range(250):
        (bench.folder(job_id) / "output" / f"{n}").mkdir()
    removal.doom(bench.home, [("done", job_id)])
    left = [sum(1 for _ in bench.home.work.rglob("*"))]
    while not removal.destroy(bench.home, job_id, 100)[1]:
        left.append(sum(1 for _ in bench.home.work.rglob("*")))
    assert [before - after for before, after in pairwise(left)] == [100, 100]
    assert bench.is_tidy()


def test_what_is_very_deep_is_destroyed(bench: Bench) -> None:
    job_id = bench.result(2 * DAY)
    subprocess.run(["mkdir", "-p", "/".join("d" * 1500)], cwd=bench.folder(job_id), check=True)
    removal.doom(bench.home, [("done", job_id)])
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
    try:
        assert removal.destroy(bench.home, job_id, 10_000)[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        subprocess.run(["rm", "-rf", *bench.home.work.iterdir()], check=True)  # pytest could not


def test_what_cannot_be_removed_keeps_nothing_else(bench: Bench) -> None:
    job_id = bench.result(2 * DAY, size=MIB)
    held = bench.folder(job_id) / "output" / "held"
    held.mkdir()
    mount("-t", "tmpfs", "tmpfs", str(held))
    try:
        removal.doom(bench.home, [("done", job_id)])
        with pytest.raises(OSError, match="busy"):
            removal.destroy(bench.home, job_id, 100)
        assert [path.name for path in bench.home.work.rglob("*")] == [f"{job_id}.doomed", "output", "held"]
    finally:
        umount(bench.home.work / f"{job_id}.doomed" / "output" / "held")
    assert removal.destroy(bench.home, job_id, 100)[1]
    assert bench.is_tidy()


CLOSED = """
import os, sys
from pathlib import Path
from solvisor.home import Home
from solvisor.spool import removal
root, job_id, uid = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
if uid:
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
home = Home.at(root)
removal.doom(home, [("done", job_id)])
for _ in range(20):
    if removal.destroy(home, job_id, 3)[1]:
        sys.exit(0)
sys.exit("something is left")
"""


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=oct)
def test_what_is_closed_to_an_ordinary_user_is_destroyed(mode: int) -> None:
    uid = 12345 if os.geteuid() == 0 else 0  # root may do anything
    with tempfile.TemporaryDirectory() as folder:  # not pytest's, which is root's alone
        bench = Bench(Path(folder) / "home")
        job_id = bench.result(2 * DAY)
        bench.close()
        places = (bench.folder(job_id), *(p for p in bench.folder(job_id).rglob("*") if p.is_dir()))
        if uid:
            for place in (Path(folder), *Path(folder).rglob("*")):
                os.chown(place, uid, uid)
        for place in reversed(places):
            place.chmod(mode)
        done = subprocess.run([sys.executable, "-c", CLOSED, str(bench.home.root), job_id, str(uid)], check=False)
        assert done.returncode == 0
        assert bench.is_tidy()
