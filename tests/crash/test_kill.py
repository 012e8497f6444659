"""``kill -9`` of the real daemon, at samples of all its failpoints; ``make sweep`` takes every one.

What is fixed here is where most can go wrong; the rest is drawn by a seed, which a failure prints.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence

import pytest

from crash import failpoints, tracing
from crash.failpoints import At, InCall
from crash.sweep import Outcome
from crash.sweeps import BEFORE_RECOVERY, RECOVERY, Sweeper, Task, kills, passed_by, points_of_first_life

Sweep = Callable[[Sequence[Task]], list[Outcome]]

SEED = int(os.environ.get("SOLVISOR_SWEEP_SEED") or random.randrange(1 << 30))


def drawn(points: Sequence[str], count: int) -> list[str]:
    print(f"SOLVISOR_SWEEP_SEED={SEED} draws these again")
    return random.Random(SEED).sample(sorted(points), count)


@pytest.fixture(scope="module")
def first_life(sweeper: Sweeper) -> list[str]:
    return points_of_first_life(sweeper)


def of(first_life: Sequence[str], *kinds: str) -> list[str]:
    return [point for point in first_life if point.partition(".")[0] in kinds]


def test_fault_58_killed_around_a_claim_its_row_and_its_originals(sweep: Sweep, first_life: list[str]) -> None:
    points = drawn(of(first_life, "claim", "upload", "submit", "store", "sync"), 4)
    sweep(kills(["claim.file_moved", "claim.durable", "inbox.judged", "upload.withdrawn", *points]))


def test_fault_59_killed_between_the_end_of_a_job_and_its_manifest(sweep: Sweep, first_life: list[str]) -> None:
    points = drawn(of(first_life, "collect", "publish", "outputs", "announce"), 2)
    sweep(kills(["end.recorded", "publish.named", "publish.moved", *points]))


def test_fault_60_no_solver_runs_unrecorded_whenever_the_daemon_is_killed(sweep: Sweep) -> None:
    sweep(kills(["attempt.recorded", "attempt.spawned", "attempt.started", "exit.recorded"]))


@pytest.mark.slow
def test_killed_in_recovery_again_and_again_it_loses_nothing_and_passes_every_point(
    sweep: Sweep, first_life: list[str]
) -> None:
    """With the lives of this module every failpoint there is was passed; but some drops need root."""
    befores = {At("claim.planned", 3), At("claim.durable"), At("upload.claimed", 2), At("attempt.started", 7)}
    chains = [
        Task("SIGKILL in recovery", (at, *map(At, RECOVERY)), must_reach=False)
        for at in BEFORE_RECOVERY
        if at in befores
    ]
    outcomes = sweep(chains)
    assert sum(sum(outcome.reached) for outcome in outcomes) > 12 * len(chains)
    missed = set(failpoints.in_code()) - passed_by(outcomes) - set(first_life)
    if os.geteuid() != 0:  # nobody else's drops can be made here
        missed -= {"claim.file_copied", "claim.copy_named", "claim.tree_copied", "claim.tree_named", "original.removed"}
    assert missed == set()


def test_fault_62_killed_inside_system_calls_with_no_help_from_the_code(sweep: Sweep) -> None:
    reason = tracing.why_not()
    if reason is not None:
        pytest.skip(reason)
    nths = {"fsync": 2, "io_submit": 2, "fdatasync": 3, "renameat": 3, "pwrite64": 5}
    calls = [InCall(call, n) for call, n in nths.items()]
    sweep([Task("SIGKILL in a system call", (call,)) for call in calls])


def test_fault_35_result_folders_that_were_removed_are_made_again(sweep: Sweep) -> None:
    """In the moment in which the first result is about to be put there. What lay in them would be gone with them."""
    sweep([Task("folders removed", (At("end.recorded"),), removes=("done", "failed", "rejected"))])
