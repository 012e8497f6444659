"""Fixtures of the engine tests: homes with an engine around a scripted backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripted import CONFIG, Bench


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[[str], Bench]]:
    """Benches with a configuration of their own."""
    made: list[Bench] = []

    def make(config: str) -> Bench:
        made.append(Bench(tmp_path / f"home-{len(made)}", config))
        return made[-1]

    yield make
    for bench in made:
        bench.close()


@pytest.fixture
def bench(make_bench: Callable[[str], Bench]) -> Bench:
    return make_bench(CONFIG)
