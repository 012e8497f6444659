"""The compiled starter where it does not work, and what it alone does. All else is tested with both (``STARTERS``)."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from process_kit import ENVIRONMENT, HOME_ID, PROGRAMS, Attempts
from solvisor.backends.local import LocalBackend
from solvisor.process import native, proc
from solvisor.process.cgroups import Cgroup
from solvisor.process.spawn import Leader, spawn
from waiting import wait_until

if sys.platform == "win32":
    pytest.skip("Linux's clone3", allow_module_level=True)

needs_starter = pytest.mark.skipif(not native.Starter().works, reason="the starter was not compiled")


def start_one(folder: Path, how: str, script: str) -> tuple[int, bool, bool]:
    """How it ended, and whether the starter was thought to work before and after."""
    program = [sys.executable, str(PROGRAMS / "start_one.py"), str(folder), how, "sh", "-c", script]
    subprocess.run(program, env=ENVIRONMENT, check=True, timeout=60)
    ended, before, after = json.loads((folder / "told").read_text())
    return ended, before, after


@needs_starter
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_where_the_kernel_refuses_it_popen_does_it_from_then_on(tmp_path: Path, error: int) -> None:
    assert start_one(tmp_path, str(error), "exit 3") == (3, True, False)


def test_without_the_library_popen_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARY", str(tmp_path / "_starter.so"))
    assert not native.Starter().works
    (tmp_path / "_starter.so").write_bytes(b"no library")
    assert not native.Starter().works


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_a_library_of_another_version_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARY", str(tmp_path / "_starter.so"))
    source = "int solvisor_starter_version(void) { return 0; } void solvisor_start(void) {}"
    subprocess.run(["cc", "-shared", "-fPIC", "-xc", "-", "-o", native.LIBRARY], input=source, text=True, check=True)
    assert not native.Starter().works


@pytest.mark.parametrize(("error", "works"), [(errno.ENOSYS, False), (errno.ENODEV, True), (errno.EBUSY, True)])
def test_a_refusal_that_is_of_one_cgroup_is_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, error: int, works: bool
) -> None:
    def refused(*arguments: Any) -> None:
        answer = native._Answer.from_address(arguments[-1])
        answer.step, answer.error = native.Step.CLONE, error

    starter = native.Starter()
    monkeypatch.setattr(starter, "_start", refused)
    assert starter.start(("true",), {}, "/", "out", "err", "/sys/fs/cgroup/x") is None
    assert starter.works is works


@needs_starter
def test_a_signal_does_not_end_an_opening(tmp_path: Path) -> None:
    """As everywhere in Python: a log on a slow disk is opened in the end."""
    attempt = Attempts(tmp_path)("true")
    os.mkfifo(attempt.spec.stdout)
    started: list[Leader] = []
    starter = native.Starter()
    thread = threading.Thread(target=lambda: started.append(spawn(attempt.spec, starter)), daemon=True)
    looks = itertools.count()

    def signalled() -> bool:
        signal.pthread_kill(thread.ident or 0, signal.SIGUSR1)
        return next(looks) > 50 or not thread.is_alive()

    before = signal.signal(signal.SIGUSR1, lambda *_: None)
    try:
        thread.start()
        wait_until(signalled, "many signals")
        assert thread.is_alive(), "it waits for a reader"
        reader = os.open(attempt.spec.stdout, os.O_RDONLY)
        thread.join()
        os.close(reader)
    finally:
        signal.signal(signal.SIGUSR1, before)
    (leader,) = started
    assert os.waitstatus_to_exitcode(os.waitpid(leader.pid, 0)[1]) == 0
    os.close(leader.pidfd)


def test_who_it_is_is_asked_again_if_the_starter_could_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That nothing can be looked at must not pass for a program that is gone."""
    starter = native.Starter()
    spec = Attempts(tmp_path)("sleep", "1000").spec
    born = proc.read_process(spawn(spec, starter).pid)
    assert born is not None

    def silent(*arguments: object) -> native.Born:
        return native.Born(born.pid, os.pidfd_open(born.pid), None)

    def no_descriptor(pid: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(starter, "start", silent)
    assert spawn(spec, starter).start == born.start
    monkeypatch.setattr(proc, "read_process", no_descriptor)
    with pytest.raises(OSError, match="Too many"):
        spawn(spec, starter)
    with pytest.raises(ChildProcessError):
        os.waitpid(born.pid, os.WNOHANG)


@needs_starter
@pytest.mark.parametrize(("first", "last", "known"), [(1000, 2000, 1), (20, 170, 0)], ids=["within a tick", "its end"])
def test_when_it_was_started_is_told_as_the_kernel_shows_it_or_not_at_all(first: int, last: int, known: int) -> None:
    """A later life knows a process by it, so there is no nearly. Asked so many microseconds before a tick's end."""
    starter = native.Starter()
    tick = 10**9 // os.sysconf("SC_CLK_TCK")
    told = 0
    for before in range(first * 1000, last * 1000, (last - first) * 10):  # 100 times
        while tick - time.clock_gettime_ns(time.CLOCK_BOOTTIME) % tick > before:
            pass
        born = starter.start(("/bin/true",), {}, "/", os.devnull, os.devnull, None)
        assert born is not None
        shown = proc.read_process(born.pid)
        assert shown is not None
        assert born.start in (None, shown.start)
        told += born.start is not None
        os.waitpid(born.pid, 0)
        os.close(born.pidfd)
    assert told >= known


def test_a_daemon_without_standard_files_starts_programs_with_all_three(tmp_path: Path) -> None:
    script = "cat; echo out; echo err >&2; ls /proc/self/fd"
    assert start_one(tmp_path, "closed", script)[0] == 0
    assert (tmp_path / "job-1" / "stdout.log").read_text() == "out\n0\n1\n2\n3\n"
    assert (tmp_path / "job-1" / "stderr.log").read_text() == "err\n"


@needs_starter
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor")
def test_a_program_is_born_on_its_processors_and_we_stay_on_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted = os.sched_getaffinity(0)
    ours = {max(granted)}
    script = "import os; print(sorted(os.sched_getaffinity(0)))"
    out = str(tmp_path / "out")

    def start(*argv: str) -> None:
        born = native.Starter().start(argv, {}, "/", out, os.devnull, None)
        assert born is not None
        os.waitpid(born.pid, 0)
        os.close(born.pidfd)

    monkeypatch.setattr(native, "granted_cpus", lambda: frozenset(granted))
    os.sched_setaffinity(0, ours)
    try:
        start(sys.executable, "-c", script)
        assert Path(out).read_text() == f"{sorted(granted)}\n"
        assert os.sched_getaffinity(0) == ours
        with pytest.raises(native.Failed):
            start("/no/such/program")
        assert os.sched_getaffinity(0) == ours
    finally:
        os.sched_setaffinity(0, granted)


@needs_starter
async def test_a_program_is_born_in_its_cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not moved there: that would be a grace period of the kernel for a lonely start (decision 11)."""

    def move(*arguments: object) -> None:
        raise AssertionError(arguments)

    monkeypatch.setattr(Cgroup, "take_in", move)
    async with LocalBackend(HOME_ID) as backend:
        if not backend.confines:
            pytest.skip("no cgroups can be made here")
        attempt = Attempts(tmp_path)("cat", "/proc/self/cgroup")
        assert (await (await backend.launch(attempt.ready)).wait()).exit_code == 0
    assert f"/solvisor-{HOME_ID}/t-" in attempt.stdout
