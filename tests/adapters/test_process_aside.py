"""What the daemon runs for itself while solvers come and go: an ``env_script`` at a reload."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from process_kit import HOME_ID, Attempts, is_alive, is_gone
from solvisor.backends.local import LocalBackend
from solvisor.process.posix import Processes
from solvisor.process.tree import Tree
from solvisor.solvers.command import source_environment
from waiting import wait_until

if sys.platform == "win32":
    pytest.skip("needs a POSIX shell", allow_module_level=True)

STARTERS = "both"

ENVIRON = {"PATH": os.environ.get("PATH", os.defpath)}


def script(folder: Path, text: str) -> Path:
    path = folder / "env.sh"
    path.write_text(f"cd '{folder}'\n{text}")
    return path


@pytest.mark.parametrize("home_id", [HOME_ID, None], ids=["with cgroups", "without"])
async def test_a_slow_script_is_no_solvers_whatever_begins_and_ends_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home_id: str | None
) -> None:
    attempts = Attempts(tmp_path)
    path = script(tmp_path, "echo $$ > pid\nuntil test -e go; do sleep 0.01; done\nexport A=1\n")
    real, begin, begun = Processes._watch, threading.Event(), tmp_path / "pid"

    def late(processes: Processes, *arguments: Any) -> Tree:
        """A program was started, and is not in its cgroup nor in the books yet: then the script begins."""
        begin.set()
        wait_until(lambda: begun.exists() and begun.read_text(), "the script to have begun")
        return real(processes, *arguments)

    def sourced() -> dict[str, str]:
        assert begin.wait(20)
        return source_environment(path, ENVIRON)

    monkeypatch.setattr(Processes, "_watch", late)
    with ThreadPoolExecutor(1) as thread:
        async with LocalBackend(home_id, kill_wait_seconds=20) as backend:
            try:
                found = thread.submit(sourced)
                older = await backend.launch(attempts("sleep", "1000").ready)
                pid = int(begun.read_text())
                ours, its = (Path(f"/proc/{of}/cgroup").read_text() for of in (os.getpid(), pid))
                assert its == ours, "it was not taken for what a program had started"
                assert (await (await backend.launch(attempts("true").ready)).wait()).exit_code == 0
                older.stop(now=True)
                await older.wait()
                assert (await (await backend.launch(attempts("true").ready)).wait()).exit_code == 0
                assert is_alive(pid)
            finally:
                (tmp_path / "go").touch()
            assert found.result(20)["A"] == "1"


async def test_nothing_is_left_of_a_script_not_even_a_zombie(tmp_path: Path) -> None:
    path = script(tmp_path, "sleep 600 & echo $! > child\n(sleep 600 & echo $! > orphan)\nexport A=1\n")
    async with LocalBackend(HOME_ID, kill_wait_seconds=20):
        assert source_environment(path, ENVIRON)["A"] == "1"
        for name in ("child", "orphan"):
            pid = int((tmp_path / name).read_text())
            assert is_gone(pid), name
