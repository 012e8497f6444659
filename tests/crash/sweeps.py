"""The sweeps: which crashes there are, run side by side, and told in a table. ``make sweep`` runs them all.

Rules: the points are read from the code, and one that no life passed is told as a failure. ``make test`` takes its
samples from here.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from crash import failpoints, power, tracing
from crash.failpoints import At, InCall
from crash.mutants import MUTANTS
from crash.sweep import Outcome, Step, Zygote

WORKERS = 2
PORTS_EACH = 100

RECOVERY = (
    *("start.probe_made", "start.probe_moved", "start.prepared", "start.locked", "start.checked", "start.noted_read"),
    *("start.earlier_killed", "start.servers_removed", "start.uploads_discarded", "claim.given_back", "claim.undone"),
    *("sync.done", "claim.adopted", "start.claims_completed", "start.taken_up", "store.written", "store.recorded"),
    *("start.taken_up_recorded", "start.recovered", "upload.withdrawn", "start.adopted", "start.ready"),
)
"""The points of a start over an earlier life, in their order. Some are passed only where there is something to do."""

BEFORE_RECOVERY = (
    *(At("claim.planned", 3), At("claim.file_moved", 2), At("claim.file_copied"), At("claim.durable")),
    *(At("upload.file_written"), At("upload.claimed", 2), At("inbox.accepted"), At("attempt.started", 7)),
    *(At("exit.recorded", 2), At("end.recorded", 2), At("publish.named", 2), At("publish.moved", 2)),
)
"""Where a life is crashed to give the next one every kind of work."""

CALLS = (
    *("fsync", "fdatasync", "io_submit", "io_getevents", "rename", "renameat", "mkdir", "mkdirat"),
    *("unlink", "unlinkat", "pwrite64", "ftruncate"),
)
"""System calls that change what is on the disk."""


class Task(NamedTuple):
    """One step of a sweep."""

    sweep: str
    crashes: tuple[At | InCall, ...] = ()
    kind: str | None = None
    synced: bool = True
    mutant: str | None = None
    must_reach: bool = True
    removes: tuple[str, ...] = ()

    def __str__(self) -> str:
        at = ", then ".join(map(str, self.crashes)) or "nowhere"
        with_what = [self.kind or "", "" if self.synced else "drops not synced", self.mutant or ""]
        return f"{self.sweep}: {at} ({', '.join(filter(None, with_what))})".replace(" ()", "")


class Sweeper:
    """Runs tasks, ``WORKERS`` side by side, in throw-away folders; what failed is kept there."""

    def __init__(self, folder: Path, workers: int = WORKERS) -> None:
        self._folder = folder
        self._workers = workers
        self._zygotes: list[Zygote | None] = [None] * workers
        self._numbers = itertools.count()

    def run(self, tasks: Iterable[Task]) -> list[tuple[Task, Outcome]]:
        """Each task with what became of it, in their order."""
        waiting: queue.SimpleQueue[tuple[int, Task]] = queue.SimpleQueue()
        for item in enumerate(tasks):
            waiting.put(item)
        done: dict[int, tuple[Task, Outcome]] = {}
        threads = [threading.Thread(target=self._work, args=(n, waiting, done)) for n in range(self._workers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [done[at] for at in sorted(done)]

    def _work(
        self, number: int, waiting: queue.SimpleQueue[tuple[int, Task]], done: dict[int, tuple[Task, Outcome]]
    ) -> None:
        while True:
            try:
                at, task = waiting.get_nowait()
            except queue.Empty:
                return
            folder = self._folder / f"step-{next(self._numbers)}"
            try:
                outcome = self._step(number, folder, task).run(task.crashes)
            except Exception as error:
                outcome = Outcome(task.crashes, problems=[f"broke off: {type(error).__name__}: {error}"])
                self._end(number)
            done[at] = task, outcome
            if not failure(task, outcome):
                shutil.rmtree(folder, ignore_errors=True)

    def _step(self, number: int, folder: Path, task: Task) -> Step:
        zygote = self._zygotes[number]
        if zygote is None:
            zygote = self._zygotes[number] = Zygote()
        first = 23600 + number * PORTS_EACH
        return Step(
            zygote,
            folder,
            kind=task.kind,
            mutant=task.mutant,
            synced=task.synced,
            removes=task.removes,
            ports=f"{first}-{first + PORTS_EACH - 1}",
        )

    def _end(self, number: int) -> None:
        zygote, self._zygotes[number] = self._zygotes[number], None
        if zygote is not None:
            zygote.close()

    def close(self) -> None:
        """End the zygotes."""
        for number in range(self._workers):
            self._end(number)


def failure(task: Task, outcome: Outcome) -> str | None:
    """Why a step did not show what it should, or ``None``."""
    if task.must_reach and not all(outcome.reached):
        return f"{task}: it never came to {task.crashes[outcome.reached.index(False)]}"
    if task.mutant is not None:
        notices = MUTANTS[task.mutant].notices
        if not any(re.search(notices, problem) for problem in outcome.problems):
            return f"{task}: the mutant was not noticed by {notices!r}, but {outcome.problems[:5]}"
        return None
    return f"{task}: " + "; ".join(outcome.problems[:8]) if outcome.problems else None


# --- which there are ------------------------------------------------------------------------------------------------


def passed_by(outcomes: Iterable[Outcome]) -> set[str]:
    """All points that any life passed."""
    return {point for outcome in outcomes for life in outcome.passed for point in life}


def kills(points: Iterable[str], hits: Sequence[int] = (1,)) -> list[Task]:
    """SIGKILL at each of these points; only the first passing must come."""
    return [Task("SIGKILL", (At(point, hit),), must_reach=hit == 1) for point in points for hit in hits]


def chains() -> list[Task]:
    """A crash in the work, then one at each point of recovery in turn, every life over what the last one left."""
    return [
        Task("SIGKILL in recovery, again and again", (at, *map(At, RECOVERY)), must_reach=False)
        for at in BEFORE_RECOVERY
    ]


def pairs(kind: str | None = None) -> list[Task]:
    """A crash in the work, then one at one point of recovery."""
    name = "power cut in recovery" if kind else "SIGKILL in recovery"
    return [Task(name, (at, At(point)), kind, must_reach=False) for at in BEFORE_RECOVERY for point in RECOVERY]


def cuts(points: Iterable[str], kind: str, *, synced: bool = True) -> list[Task]:
    """The power fails at each of these points."""
    return [Task("power cut", (At(point),), kind, synced) for point in points]


def in_calls(whens: Iterable[int]) -> list[Task]:
    """Killed inside each system call that changes the disk."""
    return [Task("SIGKILL in a system call", (InCall(call, n),), must_reach=False) for call in CALLS for n in whens]


def mutants(names: Iterable[str] = MUTANTS) -> list[Task]:
    """The mutants that can be tried on this machine."""
    tried = ((name, MUTANTS[name]) for name in names)
    return [
        Task("mutant", mutant.at, mutant.disk, mutant.synced, name)
        for name, mutant in tried
        if mutant.disk is None or power.why_not(mutant.disk) is None
    ]


def points_of_first_life(sweeper: Sweeper) -> list[str]:
    """Those that a life passes which has no earlier one: recovery's own are left out."""
    ((_, outcome),) = sweeper.run([Task("no crash")])
    return sorted(passed_by([outcome]) & set(failpoints.in_code()))


def everything(sweeper: Sweeper) -> Iterator[tuple[str, list[Task]]]:
    """All sweeps by name; what this machine cannot do is said on stderr."""
    first = points_of_first_life(sweeper)
    yield "SIGKILL at each point", kills(first, (1, 2, 4, 9))
    yield "SIGKILL in recovery", pairs()
    yield "SIGKILL in recovery, again and again", chains()
    for kind in [kind for kind in power.KINDS if kind != power.STRICT]:  # which loses more than a program can help
        reason = power.why_not(kind)
        if reason is not None:
            print(f"left out: power cuts on {kind}: {reason}", file=sys.stderr)
            continue
        yield f"power cut, {kind}", cuts(first, kind)
        if kind == "ext4":
            yield f"power cut, {kind}, drops not synced", cuts(first, kind, synced=False)
            yield f"power cut in recovery, {kind}", pairs(kind)
    reason = tracing.why_not()
    if reason is None:
        yield "SIGKILL in a system call", in_calls((1, 2, 3, 5, 8, 13, 21))
    else:
        print(f"left out: kills in system calls: {reason}", file=sys.stderr)
    yield "mutants", mutants()


# --- telling --------------------------------------------------------------------------------------------------------


def fast_folder() -> str | None:
    """Where throw-away homes lie: in memory, if that may be."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _main() -> int:
    parser = argparse.ArgumentParser(description="Run the crash sweeps.")
    parser.add_argument("--only", default="", help="those whose name holds this")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="solvisor-sweep-", dir=fast_folder()))
    failures: list[str] = []
    rows: list[tuple[str, int, int, int, float]] = []
    passed: set[str] = set()
    with contextlib.closing(Sweeper(folder)) as sweeper:
        for name, tasks in everything(sweeper):
            if options.only not in name:
                continue
            began = time.monotonic()
            results = sweeper.run(tasks)
            broken = [text for task, outcome in results if (text := failure(task, outcome))]
            for text in broken:
                print(f"FAILED {text}", flush=True)
            failures += broken
            outcomes = [outcome for _, outcome in results]
            passed |= passed_by(outcomes)
            crashes = sum(sum(outcome.reached) for outcome in outcomes)
            rows.append((name, len(results), crashes, len(broken), time.monotonic() - began))
            print(_row(rows[-1]), flush=True)
    missed = set() if options.only else set(failpoints.in_code()) - passed
    failures += [f"no life passed {point}" for point in sorted(missed)]
    print(f"\n{'sweep':45} {'steps':>6} {'crashes':>8} {'failed':>7} {'seconds':>8}")
    for row in rows:
        print(_row(row))
    for point in sorted(missed):
        print(f"FAILED no life passed {point}")
    if failures:
        print(f"{len(failures)} failures; what they left is in {folder}")
        return 1
    shutil.rmtree(folder)
    return 0


def _row(row: tuple[str, int, int, int, float]) -> str:
    name, steps, crashes, failed, seconds = row
    return f"{name:45} {steps:6} {crashes:8} {failed:7} {seconds:8.0f}"


if __name__ == "__main__":
    sys.exit(_main())
