"""The sweep at start: everything of this home's earlier life dies, and nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from process_kit import ANOTHER_ID, ENVIRONMENT, PROGRAMS, is_alive
from solvisor.process import proc
from solvisor.process.posix import kill_earlier_life
from waiting import wait_until

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

HOME = f"home{os.getpid()}"


@pytest.fixture
def sleepers() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that the test started; all are ended after it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def sleeper(sleepers: list[subprocess.Popen[bytes]], env: Mapping[str, str]) -> int:
    process = subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], **env})
    sleepers.append(process)
    return process.pid


def test_all_of_the_earlier_life_and_nobody_else(tmp_path: Path, sleepers: list[subprocess.Popen[bytes]]) -> None:
    strangers = [
        sleeper(sleepers, {}),
        sleeper(sleepers, {"SOLVISOR_ATTEMPT": f"{ANOTHER_ID}/1"}),
        sleeper(sleepers, {"SOLVISOR_ATTEMPT": f"{HOME}x/1"}),
        sleeper(sleepers, {"SOLVISOR_ATTEMPT": HOME}),
        sleeper(sleepers, {"MY_SOLVISOR_ATTEMPT": f"{HOME}/1"}),
        sleeper(sleepers, {"NOTE": f"SOLVISOR_ATTEMPT={HOME}/1"}),
    ]
    daemon = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "lonely_daemon.py"), HOME, str(tmp_path)],
        env=ENVIRONMENT,
    )
    sleepers.append(daemon)
    wait_until((tmp_path / "started").exists, "the daemon to have started its solvers")
    ours = [int(path.read_text()) for path in tmp_path.glob("job-*/output/pid")]
    assert len(ours) == 3
    daemon.kill()
    daemon.wait()
    assert all(is_alive(pid) for pid in ours)

    assert kill_earlier_life(HOME, 20) == set()

    assert not any(is_alive(pid) for pid in ours)
    assert all(is_alive(pid) for pid in strangers)


def test_fault_16_a_number_that_an_earlier_life_noted_may_be_anothers(
    sleepers: list[subprocess.Popen[bytes]],
) -> None:
    process = proc.read_process(sleeper(sleepers, {}))
    assert process is not None
    assert kill_earlier_life(HOME, 20, {(process.pid, process.start - 1): "x"}) == set()
    assert is_alive(process.pid)
    assert kill_earlier_life(HOME, 20, {(process.pid, process.start): "x"}) == set()
    assert not is_alive(process.pid)


def test_what_would_not_die_is_named(sleepers: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper(sleepers, {"SOLVISOR_ATTEMPT": f"{HOME}/first"})
    sleeper(sleepers, {"SOLVISOR_ATTEMPT": f"{HOME}/second/odd"})
    with monkeypatch.context() as context:
        context.setattr(proc, "send_signal", lambda target, signum, *, group: None)
        assert kill_earlier_life(HOME, 0.2) == {"first", "second/odd"}
    assert kill_earlier_life(HOME, 20) == set()


def test_the_caller_itself_is_spared() -> None:
    """A daemon that was itself started by a job of this home does not kill itself."""
    script = f"from solvisor.process.posix import kill_earlier_life; assert kill_earlier_life({HOME!r}, 20) == set()"
    env = {**ENVIRONMENT, "SOLVISOR_ATTEMPT": f"{HOME}/1"}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)


def test_fault_16_a_number_given_to_another_is_not_opened(sleepers: list[subprocess.Popen[bytes]]) -> None:
    pid = sleeper(sleepers, {})
    process = proc.read_process(pid)
    assert process is not None
    assert proc.open_process(process._replace(start=process.start - 1)) is None
    pidfd = proc.open_process(process)
    assert pidfd is not None
    os.close(pidfd)
    assert proc.open_process(process._replace(pid=2**22 - 1)) is None
