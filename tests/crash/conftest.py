"""One sweeper for all tests of crashes, and what they ask of it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from crash.sweep import Outcome
from crash.sweeps import Sweeper, Task, failure, fast_folder

Sweep = Callable[[Sequence[Task]], list[Outcome]]


@pytest.fixture(scope="session")
def sweeper() -> Iterator[Sweeper]:
    with (
        tempfile.TemporaryDirectory(prefix="solvisor-crash-", dir=fast_folder()) as folder,
        contextlib.closing(Sweeper(Path(folder))) as sweeper,
    ):
        yield sweeper


@pytest.fixture(scope="session")
def sweep(sweeper: Sweeper) -> Sweep:
    """Runs tasks; none may fail."""

    def run(tasks: Sequence[Task]) -> list[Outcome]:
        assert tasks, "a sweep of nothing shows nothing"
        results = sweeper.run(tasks)
        failures = [text for task, outcome in results if (text := failure(task, outcome))]
        assert not failures, "\n".join(failures)
        return [outcome for _, outcome in results]

    return run
