"""The sweeps notice every rule of the disk order that is left out: otherwise they would prove nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from crash import power
from crash.mutants import MUTANTS
from crash.sweep import Outcome
from crash.sweeps import Task, mutants
from crash.table import PAGE, page_with_table

Sweep = Callable[[Sequence[Task]], list[Outcome]]


@pytest.mark.slow
def test_every_mutant_is_noticed(sweep: Sweep) -> None:
    sweep(mutants())
    left_out = {
        f"{name}: {reason}"
        for name, mutant in MUTANTS.items()
        if mutant.disk is not None and (reason := power.why_not(mutant.disk))
    }
    if left_out:
        pytest.skip("; ".join(sorted(left_out)))


def test_the_docs_list_the_mutants_as_they_are() -> None:
    assert PAGE.read_text() == page_with_table(PAGE.read_text()), "run: cd tests && python -m crash.table"
