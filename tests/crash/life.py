"""One life of a home without an engine: the disk order, step by step, with real Claims, Results and Store.

Run as a program it tells on stdout, one JSON object a line, what a user could have seen by then (``accepted``,
``ended``, ``published``), and can be held at one moment for its power to be cut. Rules: nothing is told before it is
durable; every life first finishes what earlier lives left. The solver is a few lines of Python: the disk is tested.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from unittest import mock

import msgspec
from msgspec.structs import replace

from crash.points import at_call
from solvisor.home import Home, IdMaker, lock
from solvisor.model import TERMINAL, Attempt, ExitFacts, FileFact, Job, JobSpec, Settings, Source, State
from solvisor.spool import Claims, NotYet, Publication, Results, Take, Taken, files
from solvisor.store import Store

STEPS = ("claimed", "recorded", "accepted", "staged", "solved", "collecting", "collected", "ended", "published", "over")
"""The moments at which a life can be held."""

ROUTE = "ccx"


class Manifest(msgspec.Struct, frozen=True):
    """What this life writes as ``manifest.json``."""

    id: str
    state: State
    source: str
    inputs: tuple[FileFact, ...]
    outputs: tuple[FileFact, ...] = ()


def _say_nothing(_what: str, _told: dict[str, str]) -> None:
    pass


def _never_hold(_step: str) -> None:
    pass


class Life:
    """``live`` takes all drops to their end. ``tell`` gets what a user may see, ``hold`` each of ``STEPS``."""

    def __init__(
        self,
        root: Path,
        tell: Callable[[str, dict[str, str]], None] = _say_nothing,
        hold: Callable[[str], None] = _never_hold,
    ) -> None:
        self._home = Home.at(root)
        self._tell = tell
        self._hold = hold

    def live(self) -> None:
        """Recover, then do everything that lies in the inbox."""
        self._home.prepare()
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.closing(lock(self._home)))
            self._store = stack.enter_context(contextlib.closing(Store.open(self._home.db)))
            self._claims, self._results = Claims(self._home), Results(self._home)
            self._jobs = {job.id: job for job in self._store.live_jobs()}
            self._seq = self._store.last_seq()
            taken = self._claims.unfinished_claims(self._jobs)
            taken += _only_taken(self._claims.claim_round(list(self._drops())))
            self._hold("claimed")
            self._accept(taken)
            self._attempt()
            self._collect()
            self._publish()
            self._hold("over")

    def _drops(self) -> Iterator[Take]:
        """Each file and folder is a drop; all files in the folder of the route are one."""
        maker = IdMaker(self._store.last_id())
        for path in sorted(self._home.inbox.iterdir()):
            job_id = maker.new_id(path.name, time.time_ns() // 1000)
            if path.name != ROUTE:
                yield Take(job_id, (path.name,), folder=path.is_dir())
            elif names := sorted(f"{ROUTE}/{part.name}" for part in path.iterdir()):
                yield Take(job_id, tuple(names), route=ROUTE)

    def _accept(self, taken: Iterable[Taken]) -> None:
        self._change(self._job(answer) for answer in taken)
        self._hold("recorded")
        self._store.harden()
        self._tell("accepted", {job.id: job.spec.source.path for job in self._jobs.values()})
        for job in self._jobs.values():
            for original in job.spec.originals:
                self._claims.remove_original(original)
        self._hold("accepted")

    def _job(self, taken: Taken) -> Job:
        self._seq += 1
        source = taken.take.sources[0]
        spec = JobSpec(source, "copy", source, taken.files, Source("inbox", source), originals=taken.originals)
        job = Job(taken.take.id, self._seq, State.QUEUED, spec, time.time_ns() // 1000)
        return job if taken.problem is None else _ended(job, State.REJECTED, ())

    def _attempt(self) -> None:
        again = [job for job in self._jobs.values() if job.state in (State.QUEUED, State.RUNNING)]
        self._change(map(_tried, again))
        for job in again:
            self._results.stage(job.id, self._jobs[job.id].current.n)
        self._hold("staged")
        for job in again:
            _solve(self._home.work / job.id)
        self._hold("solved")
        facts = ExitFacts(0, None, time.time_ns() // 1000)
        tried = [self._jobs[job.id] for job in again]
        self._change(
            replace(job, state=State.COLLECTING, attempts=(*job.attempts[:-1], replace(job.current, facts=facts)))
            for job in tried
        )
        self._hold("collecting")

    def _collect(self) -> None:
        collecting = [job for job in self._jobs.values() if job.state is State.COLLECTING]
        surveys = [(job.id, self._results.survey(job.id, job.spec.inputs)) for job in collecting]
        for error in filter(None, self._results.keep(surveys)):
            raise error
        ended = [
            _ended(job, State.SUCCEEDED, survey.outputs) for job, (_, survey) in zip(collecting, surveys, strict=True)
        ]
        self._hold("collected")
        self._change(ended)
        self._store.harden()
        self._tell("ended", {job.id: _sha256(job.manifest) for job in self._jobs.values() if job.manifest})
        self._hold("ended")

    def _publish(self) -> None:
        batch = [
            Publication(job.id, "done" if job.state is State.SUCCEEDED else "rejected", job.manifest)
            for job in self._jobs.values()
            if job.manifest is not None
        ]
        published, refused = self._results.publish(batch)
        if refused:
            raise AssertionError(f"not published: {refused}")
        self._tell("published", {item.id: _sha256(item.manifest) for item in batch})
        self._hold("published")
        self._store.record([], published)

    def _change(self, jobs: Iterable[Job]) -> None:
        changed = {job.id: job for job in jobs}
        self._jobs |= changed
        self._store.record(changed.values())


def _only_taken(answers: Iterable[Taken | NotYet]) -> list[Taken]:
    taken = []
    for answer in answers:
        if isinstance(answer, NotYet):
            raise AssertionError(f"nobody holds this drop back: {answer}")
        taken.append(answer)
    return taken


def _tried(job: Job) -> Job:
    settings = Settings("command", {"command": ["copy"]})
    attempt = Attempt(len(job.attempts) + 1, secrets.token_hex(16), "host", time.time_ns() // 1000, settings)
    return replace(job, state=State.RUNNING, attempts=(*job.attempts, attempt))


def _ended(job: Job, state: State, outputs: tuple[FileFact, ...]) -> Job:
    if state not in TERMINAL:
        raise AssertionError(f"{state} is no end")
    manifest = Manifest(job.id, state, job.spec.source.path, job.spec.inputs, outputs)
    return replace(job, state=state, finished_us=time.time_ns() // 1000, manifest=msgspec.json.encode(manifest))


def _solve(folder: Path) -> None:
    """Write, without any fsync as solvers do, results that depend on every input; like most, no run is like another."""
    output = folder / "output"
    seen = b"".join(path.read_bytes() for path in sorted((folder / "input").rglob("*")) if path.is_file())
    (output / "fields").mkdir()
    (output / "result.frd").write_bytes(seen * 20)
    (output / "fields" / "u.dat").write_bytes(seen[::-1])
    (folder / "stdout.log").write_text(f"solved {len(seen)} bytes, run {secrets.token_hex(4)}\n")
    (folder / "stderr.log").write_bytes(b"")


def _sha256(data: bytes | None) -> str:
    return hashlib.sha256(data or b"").hexdigest()


def _nothing(*_: object) -> tuple[()]:
    return ()


def _sync_no_manifest(fd: int, name: str, sync: Callable[[int, str], None] = files._sync) -> None:
    if name != "manifest.tmp":
        sync(fd, name)


MUTANTS: dict[str, dict[str, Callable[..., object]]] = {
    "claimed files not synced": {
        "solvisor.spool.move.Move.spots": _nothing,
        "solvisor.spool.files.start_writeback": _nothing,
    },
    "outputs not synced": {
        "solvisor.spool.results._spots": _nothing,
        "solvisor.spool.files.start_writeback": _nothing,
    },
    "manifest not synced": {"solvisor.spool.files._sync": _sync_no_manifest},
    "rows not hardened": {"solvisor.store.Store.harden": _nothing},
}
"""Promises that the power cuts must miss when they are not kept: what stands in for which functions.

Starting the writeback promises nothing, but is early enough to hide that the promise itself is missing.
"""


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("--step", choices=STEPS, help="hold at this step")
    parser.add_argument("--call", type=int, help="hold before the n-th change to the disk")
    parser.add_argument("--mutant", choices=MUTANTS)
    options = parser.parse_args()

    def tell(what: str, told: dict[str, str]) -> None:
        print(json.dumps({what: told}), flush=True)

    def hold(step: str) -> None:
        tell("held", {"at": step})
        sys.stdin.read()  # the power is cut meanwhile

    life = Life(options.root, tell, lambda step: hold(step) if step == options.step else None)
    with contextlib.ExitStack() as stack:
        for name, stand_in in MUTANTS.get(options.mutant, {}).items():
            stack.enter_context(mock.patch(name, stand_in))
        if options.call is not None:
            stack.enter_context(at_call(options.call, hold))
        life.live()


if __name__ == "__main__":
    _main()
