"""Power cuts: whatever a user was told stays true, and every file that a manifest names has the bytes it names.

The disk keeps only what was written to it by then. On ``ext4`` any fsync writes all that was done before it; Btrfs
keeps little more than was asked for, and so shows a folder that was forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from crash import power
from crash.failpoints import At
from crash.sweep import Outcome
from crash.sweeps import Task, cuts

Sweep = Callable[[Sequence[Task]], list[Outcome]]

SAMPLE = ("claim.moved_in", "inbox.accepted", "collect.kept", "publish.moved")


@pytest.mark.parametrize("kind", [kind for kind in power.KINDS if kind != power.STRICT])
def test_fault_61_what_was_told_survives_a_power_cut(sweep: Sweep, kind: str) -> None:
    reason = power.why_not(kind)
    if reason is not None:
        pytest.skip(reason)
    sweep(cuts(SAMPLE if kind == "ext4" else SAMPLE[1:], kind))


def test_fault_61_files_that_nobody_synced_are_whole_once_they_are_accepted(sweep: Sweep) -> None:
    reason = power.why_not()
    if reason is not None:
        pytest.skip(reason)
    sweep(cuts(("inbox.accepted", "publish.done"), "ext4", synced=False))


def test_fault_61_the_power_fails_again_in_recovery(sweep: Sweep) -> None:
    reason = power.why_not()
    if reason is not None:
        pytest.skip(reason)
    crashes = (
        At("attempt.started", 4),
        At("start.claims_completed"),
        At("start.taken_up_recorded"),
        At("publish.moved"),
    )
    sweep([Task("power cuts", crashes, "ext4", must_reach=False)])
