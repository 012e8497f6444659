"""What will not die, and what goes wrong in the process threads: signals that do nothing, a reaper that breaks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from process_kit import HOME_ID, ONLY_THE_TOKEN, WITHOUT_A_CLUE, Attempt, Attempts, is_alive, is_gone, orphans
from solvisor.backends.local import LocalBackend, LocalHandle, News
from solvisor.process import proc
from solvisor.process.logcap import CappedLog
from solvisor.process.posix import Processes, Tree
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

LOOPS = "both"
STARTERS = "both"

# For a shell that the test process started; it ends with that, too.
WAIT_FOR_GO = "until test -e go || ! kill -0 $PPID; do sleep 0.01; done"

# Trace the process given (ptrace(2), PTRACE_SEIZE) and never look at it again.
SEIZE = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
print("seized" if libc.ptrace(0x4206, int(sys.argv[1]), None, None) == 0 else ctypes.get_errno(), flush=True)
time.sleep(1000)
"""


class Signals:
    """Signals that work, until ``lost`` is set; none may be sent while ``forbidden`` is."""

    def __init__(self) -> None:
        self.lost = False
        self.forbidden = False

    def __call__(self, target: int, signum: int, *, group: bool) -> None:
        assert not self.forbidden
        if not self.lost:
            proc.send_signal(target, signum, group=group)


@pytest.fixture
def signals() -> Signals:
    return Signals()


@pytest.fixture
async def processes(signals: Signals) -> AsyncIterator[Processes]:
    processes = Processes(kill_wait_seconds=0.3, send_signal=signals)
    yield processes
    processes.close()


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


async def launch(processes: Processes, attempt: Attempt) -> LocalHandle:
    handle = LocalHandle(processes, News())
    processes.start(attempt.ready, handle)
    await handle.launched()
    return handle


async def test_fault_09_a_leader_that_would_not_die(processes: Processes, signals: Signals, attempts: Attempts) -> None:
    attempt = attempts.shell("echo $$ > pid; exec sleep 1000", grace=0.1)
    handle = await launch(processes, attempt)
    attempt.pid()
    signals.lost = True
    handle.stop()
    facts = await handle.wait()
    assert (facts.exit_code, facts.signal, facts.unkillable, facts.stopped) == (None, None, True, True)
    assert is_alive(handle.pid)
    with anyio.move_on_after(0.2) as scope:
        await handle.wait_gone()
    assert scope.cancelled_caught

    # Everybody else is still served.
    other = await launch(processes, attempts.shell("exit 3"))
    signals.lost = False
    assert (await other.wait()).exit_code == 3
    assert is_alive(handle.pid)

    os.kill(handle.pid, signal.SIGKILL)
    with anyio.fail_after(30):
        await handle.wait_gone()
    assert is_gone(handle.pid)
    assert (await handle.wait()).unkillable, "what was told once stays so"


async def test_fault_09_what_is_left_would_not_die(processes: Processes, signals: Signals, attempts: Attempts) -> None:
    signals.lost = True
    attempt = attempts.shell("setsid sh -c 'echo $$ > pid; exec sleep 1000' & until test -s pid; do :; done; exit 3")
    handle = await launch(processes, attempt)
    facts = await handle.wait()
    assert (facts.exit_code, facts.signal, facts.unkillable, facts.stopped) == (None, None, True, False)
    assert is_gone(handle.pid), "the leader itself was reaped"
    assert is_alive(attempt.pid())
    assert (os.getpid(), attempt.pid()) in proc.children(os.getpid()), "orphans hang on the main thread"
    os.kill(attempt.pid(), signal.SIGKILL)
    with anyio.fail_after(30):
        await handle.wait_gone()
    assert is_gone(attempt.pid())


async def test_the_group_is_killed_before_its_number_is_given_back(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str | None]] = []
    real = processes._send_signal

    def look(target: int, signum: int, *, group: bool) -> None:
        if group:
            leader = proc.read_process(target)
            seen.append((signum, leader.state if leader else None))
        real(target, signum, group=group)

    monkeypatch.setattr(processes, "_send_signal", look)
    handle = await launch(processes, attempts.shell("sleep 1000 & exit 3"))
    assert (await handle.wait()).exit_code == 3
    assert seen == [(signal.SIGKILL, "Z")]


async def test_what_ended_before_it_was_told_to_ended_by_itself(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if whoever is to stop it had other work meanwhile, and did not notice."""
    busy, go_on = threading.Event(), threading.Event()
    real = processes._send_signal

    def slow(target: int, signum: int, *, group: bool) -> None:
        busy.set()
        assert go_on.wait(20)
        real(target, signum, group=group)

    monkeypatch.setattr(processes, "_send_signal", slow)
    attempt = attempts.shell("until test -e go; do sleep 0.01; done; exit 3", grace=0.1)
    handle = await launch(processes, attempt)
    other = await launch(processes, attempts.shell("exit 0"))
    await eventually(busy.is_set, "the reaper is busy with another")
    (attempt.folder / "go").touch()
    await eventually(lambda: not is_alive(handle.pid), "it ended")
    handle.stop()
    go_on.set()
    facts = await handle.wait()
    assert (facts.exit_code, facts.stopped) == (3, False)
    await other.wait()


async def test_no_file_descriptor_left_proves_nothing(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not being able to look must not be taken for an empty tree."""
    real = proc.read_page
    blind = False

    def read_page(path: str) -> bytes:
        if blind and threading.current_thread().name == "solvisor-reaper":
            raise OSError(24, "Too many open files")
        return real(path)

    monkeypatch.setattr(proc, "read_page", read_page)
    attempt = attempts.shell(f"setsid sh -c 'echo $$ > pid; exec sleep 1000' & {WAIT_FOR_GO}; exit 3")
    handle = await launch(processes, attempt)
    left = attempt.pid()
    blind = True
    (attempt.folder / "go").touch()
    await eventually(lambda: is_gone(handle.pid), "the leader reaped")
    assert is_alive(left)
    with anyio.move_on_after(0.1) as scope:
        await handle.wait()
    assert scope.cancelled_caught
    blind = False
    assert (await handle.wait()).exit_code == 3
    assert is_gone(left)


async def test_clues_may_be_hidden_for_a_moment(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that changes its program shows no environment; its attempt must not be taken for empty meanwhile."""
    real = proc.token
    hidden = 3

    def token(pid: int) -> str | None:
        nonlocal hidden
        hidden -= 1
        return None if hidden >= 0 else real(pid)

    monkeypatch.setattr(proc, "token", token)
    older = attempts.shell(WAIT_FOR_GO)
    older_handle = await launch(processes, older)
    attempt = attempts.shell(f"{ONLY_THE_TOKEN} & until test -s pid; do :; done; exit 3")
    handle = await launch(processes, attempt)
    assert (await handle.wait()).exit_code == 3
    assert is_gone(attempt.pid())
    assert hidden < 0
    (older.folder / "go").touch()
    await older_handle.wait()


async def test_a_leader_held_by_a_debugger(processes: Processes, attempts: Attempts) -> None:
    """The zombie of a traced process is not ours to reap before its tracer lets go; nobody else waits for that."""
    attempt = attempts.shell("until test -e go; do :; done; exit 3")
    handle = await launch(processes, attempt)
    tracer = subprocess.Popen([sys.executable, "-c", SEIZE, str(handle.pid)], stdout=subprocess.PIPE)  # noqa: ASYNC220
    with tracer:
        try:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == b"seized\n"
            (attempt.folder / "go").touch()
            await eventually(lambda: (leader := proc.read_process(handle.pid)) and leader.state == "Z", "a zombie")
            assert (await (await launch(processes, attempts("true"))).wait()).exit_code == 0
            assert not is_gone(handle.pid)
        finally:
            tracer.kill()
    facts = await handle.wait()
    if facts.unkillable:  # a slow machine: it was given up before the tracer let go
        await handle.wait_gone()
    else:
        assert facts.exit_code == 3
    assert is_gone(handle.pid)


async def test_an_orphan_made_before_its_attempt_is_in_the_books(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program may lose an orphan before its start was even noted; nobody else's end may take that for its own."""
    real = processes._watch
    noted = threading.Event()

    def watch(*arguments: Any) -> Tree:
        noted.wait()
        return real(*arguments)

    running = attempts.shell(WAIT_FOR_GO)
    running_handle = await launch(processes, running)
    monkeypatch.setattr(processes, "_watch", watch)
    maker = attempts.shell(f"({WITHOUT_A_CLUE} &); {WAIT_FOR_GO}")
    maker_handle = LocalHandle(processes, News())
    processes.start(maker.ready, maker_handle)
    try:
        orphan = maker.pid()
        (running.folder / "go").touch()
        assert (await running_handle.wait()).exit_code == 0
        assert is_alive(orphan)
    finally:
        noted.set()
    await maker_handle.launched()
    (maker.folder / "go").touch()
    assert (await maker_handle.wait()).exit_code == 0
    assert is_gone(orphan)


async def test_a_stolen_exit_is_a_defect_that_everyone_hears_of(
    processes: Processes, signals: Signals, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other code that reaps a leader breaks the proof: a loud end is better than a stranger killed."""
    real = processes._leader_exited

    def steal(tree: Tree) -> None:
        os.waitpid(tree.pid, 0)
        signals.forbidden = True
        real(tree)

    monkeypatch.setattr(processes, "_leader_exited", steal)
    waiting = await launch(processes, attempts("sleep", "1000"))
    victim = await launch(processes, attempts("true"))
    for handle in (victim, waiting):
        with pytest.raises(RuntimeError, match="defect") as caught, anyio.fail_after(30):
            await handle.wait()
        assert "reaped by other code" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="defect") as caught, anyio.fail_after(30):
        await launch(processes, attempts("true"))
    assert "reaped by other code" in str(caught.value.__cause__)
    assert is_alive(waiting.pid)
    signals.forbidden = False
    processes.close()
    assert is_gone(waiting.pid), "closing needs no reaper"


async def test_a_defect_while_starting_is_no_refusal(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(tree: Tree) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as context:
        context.setattr(processes._books, "add", fail)
        with pytest.raises(RuntimeError, match="defect") as caught, anyio.fail_after(30):
            await launch(processes, attempts("sleep", "1000"))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert orphans() == []


async def test_fault_09_closing_does_not_wait_for_ever(
    processes: Processes, signals: Signals, attempts: Attempts
) -> None:
    handle = await launch(processes, attempts("sleep", "1000"))
    signals.lost = True
    begun = time.monotonic()
    await anyio.to_thread.run_sync(processes.close)
    assert time.monotonic() - begun < 10
    assert is_alive(handle.pid), "for the next start"
    os.kill(handle.pid, signal.SIGKILL)
    os.waitpid(handle.pid, 0)  # noqa: ASYNC222  it was killed


async def test_a_defect_in_cutting_a_log_does_not_hide_the_end(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(log: CappedLog) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(CappedLog, "finish", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    handle = await launch(processes, attempts.shell("yes | head -c 100000; exit 4", log_max=4096))
    with anyio.fail_after(30):
        assert (await handle.wait()).exit_code == 4
    await eventually(lambda: "solvisor-logs" not in [t.name for t in threading.enumerate()], "the thread to end")


async def test_no_thread_left_to_cut_a_log(
    processes: Processes, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt = attempts.shell("yes | head -c 100000; until test -e go || ! kill -0 $PPID; do :; done", log_max=4096)
    handle = await launch(processes, attempt)
    real = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "solvisor-logs":
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    (attempt.folder / "go").touch()
    with anyio.fail_after(30):
        assert (await handle.wait()).exit_code == 0


async def test_fault_09_what_takes_no_signal_is_unkillable_until_it_does(attempts: Attempts, freezer: Path) -> None:
    async with LocalBackend(HOME_ID, kill_wait_seconds=0.3) as backend:
        attempt = attempts.shell("(setsid sh -c 'echo $$ > pid; exec sleep 1000' &); until test -s pid; do :; done")
        running = attempts.shell(f"{WAIT_FOR_GO}; (setsid sh -c 'echo $$ > pid; exec sleep 1000' &); sleep 1000")
        handle = await backend.launch(running.ready)
        (running.folder / "go").touch()
        left = running.pid()
        (freezer / "cgroup.procs").write_text(str(left))
        (freezer / "freezer.state").write_text("FROZEN")
        await eventually(lambda: (freezer / "freezer.state").read_text() == "FROZEN\n", "it is frozen")
        handle.stop(now=True)
        facts = await handle.wait()
        assert (facts.exit_code, facts.signal, facts.unkillable) == (None, None, True)
        assert is_alive(left)
        assert (await (await backend.launch(attempt.ready)).wait()).exit_code == 0, "others are served"
        (freezer / "freezer.state").write_text("THAWED")
        with anyio.fail_after(30):
            await handle.wait_gone()
        assert is_gone(left)
