"""Fixtures for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import Daemon


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons on throw-away homes; whatever still runs at the end of the test is killed."""
    made: list[Daemon] = []

    def make(config: str, name: str = "home") -> Daemon:
        made.append(Daemon(tmp_path / name, config))
        return made[-1]

    yield make
    for daemon in made:
        if daemon.process is not None and daemon.process.poll() is None:
            daemon.kill()
