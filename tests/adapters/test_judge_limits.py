"""Verdicts on what went over a limit: of memory, of processes, of processor time, of a file's size."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from builders import make_spec
from solvisor import config
from solvisor.judge import judge
from solvisor.model import Cause, ExitFacts, Usage, Verdict

if sys.platform == "win32":
    pytest.skip("Windows has no such signals", allow_module_level=True)

MIB = 1 << 20


def verdict(
    folder: Path, limits: str, code: int | None = None, sign: int | None = None, said: str = "", **facts: Any
) -> Verdict:
    (folder / "output").mkdir(exist_ok=True)
    (folder / "stdout.log").write_text("")
    (folder / "stderr.log").write_text(said)
    text = f"[solver.x]\ncommand = ['x']\n{limits}\nsuccess.error_pattern = 'ERROR: (.*)'\n"
    solver = config.parse(text, Path("solvisor.toml")).solver["x"]
    return judge(solver, make_spec("a"), folder, ExitFacts(code, sign, 0, **facts), timed_out=False)


def usage(peak: int) -> Usage:
    return Usage(max_rss_bytes=peak, max_rss_source="cgroup")


def test_fault_10_oom_is_claimed_with_the_kernels_word_only(tmp_path: Path) -> None:
    limit = 'memory_limit = "64MiB"'
    killed = verdict(tmp_path, limit, sign=signal.SIGKILL, oom_kills=1, usage=usage(64 * MIB))
    assert (killed.cause, killed.code) == (Cause.OOM, "oom")
    assert killed.message == "it needed more memory than memory_limit, 64MiB, and the kernel killed it"
    by_shell = verdict(tmp_path, limit, code=137, oom_kills=2, usage=usage(64 * MIB))
    assert (by_shell.cause, by_shell.message) == (Cause.OOM, killed.message)

    without = verdict(tmp_path, limit, sign=signal.SIGKILL, usage=usage(64 * MIB))
    assert (without.cause, without.message) == (Cause.SIGNAL, "killed by SIGKILL")
    without = verdict(tmp_path, limit, code=137)
    assert (without.cause, without.code) == (Cause.EXIT, "exit_137")
    assert without.message == "exited with 137 (its program was killed by SIGKILL), allowed: 0"


def test_fault_10_what_ended_well_all_the_same_succeeded(tmp_path: Path) -> None:
    assert verdict(tmp_path, "", code=0, oom_kills=1).cause is None


def test_fault_10_the_memory_that_ran_out_may_be_the_machines(tmp_path: Path) -> None:
    none = verdict(tmp_path, "", sign=signal.SIGKILL, oom_kills=1)
    assert (none.cause, none.message) == (Cause.OOM, "the machine ran out of memory, and the kernel killed it")
    far = verdict(tmp_path, 'memory_limit = "1GiB"', sign=signal.SIGKILL, oom_kills=1, usage=usage(64 * MIB))
    assert far.message is not None
    assert far.message.startswith("the machine ran out of memory")


def test_fault_10_what_the_solver_said_comes_after(tmp_path: Path) -> None:
    said = "ERROR: malloc failed\n"
    killed = verdict(tmp_path, 'memory_limit = "64MiB"', code=1, said=said, oom_kills=1, usage=usage(64 * MIB))
    assert killed.message is not None
    assert killed.message.endswith("and the kernel killed it; it had said: malloc failed")


def test_fault_07_processes_it_did_not_get_are_told(tmp_path: Path) -> None:
    refused = verdict(tmp_path, "processes_limit = 20", code=2, said="sh: 0: Cannot fork\n", refused_forks=7)
    assert refused.cause is Cause.EXIT
    assert refused.message == (
        "exited with 2, allowed: 0; it wanted more processes and threads than processes_limit, 20; "
        "last line of stderr: sh: 0: Cannot fork"
    )
    assert verdict(tmp_path, "processes_limit = 20", code=0, refused_forks=7).message is None


@pytest.mark.parametrize(
    ("sign", "meaning"),
    [
        (signal.SIGXCPU, "SIGXCPU: it used more processor time than its limit (ulimit -t)"),
        (signal.SIGXFSZ, "SIGXFSZ: a file grew over its limit (ulimit -f)"),
    ],
)
def test_fault_11_limits_of_processor_time_and_files_are_named(tmp_path: Path, sign: int, meaning: str) -> None:
    by_signal = verdict(tmp_path, "", sign=sign)
    assert (by_signal.cause, by_signal.message) == (Cause.SIGNAL, f"killed by {meaning}")
    by_shell = verdict(tmp_path, "", code=128 + sign)
    assert by_shell.message == f"exited with {128 + sign} (its program was killed by {meaning}), allowed: 0"
