"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon import Daemon
from waiting import wait_until

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # What a shell script starts in the background has it ignored, and would hand that on to all that is started here.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A failure is shown when it happens, and not only at the end of a run that may not come to it."""
    if report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        print(f"\nFAILED {report.nodeid} ({report.when})\n{report.longreprtext}", file=sys.__stdout__, flush=True)


@pytest.fixture
def make_daemon(tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Daemons on throw-away homes; whatever still runs at the end of the test is killed."""
    made: list[Daemon] = []

    def make(config: str, name: str = "home") -> Daemon:
        made.append(Daemon(tmp_path / name, config))
        return made[-1]

    yield make
    for daemon in made:
        daemon.clear_away()


@pytest.fixture
def freezer() -> Iterator[Path]:
    """A cgroup of version 1 whose frozen processes take no signal, as if they waited for a dead disk."""
    folder = Path(f"/sys/fs/cgroup/freezer/solvisor-{os.getpid()}")
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no freezer of cgroups version 1: {error}")
    yield folder
    (folder / "freezer.state").write_text("THAWED")
    wait_until(lambda: (folder / "cgroup.procs").read_text() == "", "the frozen ones are gone")
    folder.rmdir()
