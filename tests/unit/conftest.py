"""A daemon that says what a test wants, and the command line that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli_kit import Run, command_line
from fake_daemon import FakeDaemon, fake_daemon


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path / "home") as daemon:
        yield daemon


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line on the home of ``fake``."""
    return command_line(tmp_path, capfdbinary, monkeypatch)
