"""Attempts through ``LocalBackend`` on both event loops: real programs, real signals, real trees."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from msgspec.structs import replace

from process_kit import (
    ENVIRONMENT,
    HOME_ID,
    PATH,
    PROGRAMS,
    WITHOUT_A_CLUE,
    Attempts,
    given,
    is_alive,
    is_gone,
    orphans,
)
from solvisor.backends.local import LocalBackend, LocalHandle
from solvisor.errors import SpawnError
from solvisor.interfaces import AttemptSpec
from solvisor.process import proc
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)


LOOPS = "both"
STARTERS = "both"

# For a shell that the test process started; it ends with that, too.
WAIT_FOR_GO = "until test -e go || ! kill -0 $PPID; do sleep 0.01; done"


@pytest.fixture
async def backend() -> AsyncIterator[LocalBackend]:
    async with LocalBackend(HOME_ID, kill_wait_seconds=20) as backend:
        yield backend
        assert orphans() == [], "every test ends with nothing left, not even a zombie"


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


# How it ended


async def test_exit_code(backend: LocalBackend, attempts: Attempts) -> None:
    handle = await backend.launch(attempts.shell("exit 3").ready)
    facts = await handle.wait()
    assert (facts.exit_code, facts.signal) == (3, None)
    assert (facts.stopped, facts.unkillable, facts.log_cut_bytes) == (False, False, 0)
    assert abs(facts.finished_us - time.time_ns() // 1000) < 60_000_000


async def test_fault_03_a_crash_is_a_signal(backend: LocalBackend, attempts: Attempts) -> None:
    facts = await (await backend.launch(attempts.shell("kill -SEGV $$").ready)).wait()
    assert (facts.exit_code, facts.signal, facts.stopped) == (None, signal.SIGSEGV, False)


async def test_handle_names_the_leader(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell("echo $$ > pid; sleep 1000")
    handle = await backend.launch(attempt.ready)
    leader = proc.read_process(attempt.pid())
    assert leader is not None
    assert (handle.pid, handle.pid_start) == (leader.pid, leader.start)
    assert leader.pid == leader.group == leader.session
    handle.stop(now=True)
    await handle.wait()
    assert is_gone(handle.pid)


async def test_logs_are_appended_to(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell("echo out; echo err >&2")
    Path(attempt.spec.stdout).write_text("before\n")
    await (await backend.launch(attempt.ready)).wait()
    assert attempt.stdout == "before\nout\n"
    assert Path(attempt.spec.stderr).read_text() == "err\n"
    assert Path(attempt.spec.stderr).stat().st_mode & 0o007 == 0


async def test_stdin_is_empty(backend: LocalBackend, attempts: Attempts) -> None:
    assert (await (await backend.launch(attempts("cat").ready)).wait()).exit_code == 0


async def test_argv_reaches_no_shell(backend: LocalBackend, attempts: Attempts) -> None:
    hostile = ["; rm -rf x", "two words", "two\nlines", "$HOME", "`id`", "*", "", "-n", "'", "ä\udcff"]
    attempt = attempts.python("show_argv.py", *hostile)
    assert (await (await backend.launch(attempt.ready)).wait()).exit_code == 0
    assert json.loads(attempt.stdout) == hostile


async def test_environment_is_exact(backend: LocalBackend, attempts: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "1")
    attempt = attempts("env", env={"PATH": PATH, "OMP_NUM_THREADS": "2"})
    await (await backend.launch(attempt.ready)).wait()
    assert sorted(attempt.stdout.splitlines()) == [
        "OMP_NUM_THREADS=2",
        f"PATH={PATH}",
        f"SOLVISOR_ATTEMPT={attempt.spec.token}",
    ]


async def test_no_file_and_no_ignored_signal_is_inherited(backend: LocalBackend, attempts: Attempts) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        attempt = attempts.shell("ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status")
        await (await backend.launch(attempt.ready)).wait()
    finally:
        os.close(read_end)
        os.close(write_end)
    *fds, blocked, ignored = attempt.stdout.splitlines()
    assert fds == ["0", "1", "2", "3"]  # 3 is the listing itself
    assert int(blocked.split()[1], 16) == 0
    assert int(ignored.split()[1], 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0


# What cannot be started


async def test_fault_01_what_cannot_be_started(backend: LocalBackend, attempts: Attempts, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("no program")
    headless = tmp_path / "headless"
    headless.write_text("echo\n")
    headless.chmod(0o755)
    orphaned = tmp_path / "orphaned"
    orphaned.write_text("#!/no/such/interpreter\n")
    orphaned.chmod(0o755)
    good = attempts("true").spec
    cases = [
        (attempts("no-such-solver").spec, "program_missing", f"not found in PATH ({PATH})"),
        (attempts("/no/such/solver").spec, "program_missing", "/no/such/solver does not exist"),
        (attempts(str(orphaned)).spec, "program_missing", "interpreter"),
        (attempts(str(plain)).spec, "not_executable", "chmod +x"),
        (attempts(str(headless)).spec, "not_executable", "#!/bin/sh"),
        (attempts(str(tmp_path)).spec, "not_executable", str(tmp_path)),
        (replace(good, cwd=str(tmp_path / "nowhere")), "no_folder", str(tmp_path / "nowhere")),
        (replace(good, stderr=str(tmp_path / "nowhere" / "log")), "no_folder", str(tmp_path / "nowhere")),
        (replace(good, stdout=str(tmp_path)), "spawn", str(tmp_path)),
        (attempts("true", "a\0b").spec, "spawn", "'true'"),
        (attempts("true", "x" * 10_000_000).spec, "spawn", "too long"),
        (replace(good, argv=()), "spawn", "command"),
    ]
    for spec, reason, words in cases:
        with pytest.raises(SpawnError) as caught:
            await backend.launch(given(spec))
        assert (caught.value.reason, words in str(caught.value)) == (reason, True), str(caught.value)
    assert (await (await backend.launch(lambda: good)).wait()).exit_code == 0


async def test_what_cannot_be_prepared_is_not_started(backend: LocalBackend, attempts: Attempts) -> None:
    def prepare(error: Exception) -> AttemptSpec:
        assert threading.current_thread().name == "solvisor-launcher"
        raise error

    disk_full = OSError(errno.ENOSPC, "No space left on device", "beam.inp")
    with pytest.raises(SpawnError, match=r"its files could not be staged: .*No space left.*beam\.inp") as caught:
        await backend.launch(lambda: prepare(disk_full))
    assert (caught.value.reason, caught.value.__cause__) == ("staging", disk_full)
    with pytest.raises(SpawnError, match="no such model") as caught:
        await backend.launch(lambda: prepare(SpawnError("program_missing", "no such model")))
    assert caught.value.reason == "program_missing"
    with pytest.raises(RuntimeError) as broken:
        await backend.launch(lambda: prepare(ValueError("a defect")))
    assert isinstance(broken.value.__cause__, ValueError)
    assert (await (await backend.launch(attempts("true").ready)).wait()).exit_code == 0


async def test_one_token_runs_once(backend: LocalBackend, attempts: Attempts) -> None:
    spec = attempts("sleep", "1000").spec
    handle = await backend.launch(lambda: spec)
    with pytest.raises(SpawnError, match="runs already"):
        await backend.launch(lambda: spec)
    handle.stop(now=True)
    await handle.wait()


@pytest.fixture
def hanging_program(tmp_path: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """A program whose loading hangs, as on a dead network disk, until the function is called.

    A write lease makes the kernel hold whoever opens the file until the lease is given back.
    """
    program = tmp_path / "program"
    shutil.copy("/bin/sh", program)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    lease = os.open(program, os.O_RDONLY)
    fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    given_back = False

    def give_back() -> None:
        nonlocal given_back
        if not given_back:
            given_back = True
            fcntl.fcntl(lease, fcntl.F_SETLEASE, fcntl.F_UNLCK)
            os.close(lease)

    yield str(program), give_back
    give_back()
    signal.signal(signal.SIGIO, before)


async def test_a_hung_start_holds_up_nothing_else(
    backend: LocalBackend, attempts: Attempts, hanging_program: tuple[str, Callable[[], None]]
) -> None:
    program, let_it_load = hanging_program
    running = attempts.shell(f"{WAIT_FOR_GO}; setsid sleep 1000 & exit 4")
    handle = await backend.launch(running.ready)
    # In the folder of another attempt: a clue that must not be followed while the program is not loaded.
    hung = replace(attempts(program, "-c", "exit 5").spec, cwd=running.spec.cwd)
    started: list[LocalHandle] = []

    async def launch() -> None:
        started.append(await backend.launch(lambda: hung))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(launch)
        await eventually(lambda: [p for p in orphans() if p.pid != handle.pid], "the start to hang")
        (running.folder / "go").touch()
        assert (await handle.wait()).exit_code == 4
        assert not started
        let_it_load()
    assert (await started[0].wait()).exit_code == 5


async def test_an_abandoned_start_leaves_nothing(
    backend: LocalBackend, attempts: Attempts, hanging_program: tuple[str, Callable[[], None]]
) -> None:
    program, let_it_load = hanging_program
    hung = attempts(program, "-c", "sleep 1000; exit")
    with anyio.move_on_after(0.1) as scope:
        await backend.launch(hung.ready)
    assert scope.cancelled_caught
    let_it_load()
    assert (await (await backend.launch(attempts("true").ready)).wait()).exit_code == 0
    await eventually(lambda: orphans() == [], "the abandoned start to be killed")


# One after another


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_dropped_popens_do_not_steal_exits(backend: LocalBackend, attempts: Attempts) -> None:
    """A new Popen reaps every Popen that was dropped unreaped: ours must never be among these."""
    enough = threading.Event()

    def start_and_drop() -> None:
        while not enough.is_set():
            subprocess.Popen(["true"])

    droppers = [threading.Thread(target=start_and_drop) for _ in range(2)]
    for dropper in droppers:
        dropper.start()
    try:
        for code in range(60):
            facts = await (await backend.launch(attempts.shell(f"exit {code}").ready)).wait()
            assert facts.exit_code == code
    finally:
        enough.set()
        for dropper in droppers:
            dropper.join()
        await eventually(lambda: (subprocess._cleanup(), subprocess._active == [])[1], "the dropped ones reaped")  # type: ignore[attr-defined]


async def test_many_launches_leave_no_files_and_no_threads(backend: LocalBackend, attempts: Attempts) -> None:
    async def launch_all(count: int) -> None:
        for number in range(count):
            if number % 4 == 0:
                with pytest.raises(SpawnError):
                    await backend.launch(attempts("no-such-solver").ready)
                continue
            handle = await backend.launch(attempts("sleep", "1000" if number % 4 == 1 else "0").ready)
            if number % 4 == 1:
                handle.stop(now=True)
            await handle.wait()

    await launch_all(4)
    # What an earlier test left may still be ending, so there may be fewer of either; never more.
    files, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    await launch_all(200)
    assert len(os.listdir("/proc/self/fd")) <= files
    assert set(threading.enumerate()) <= threads


# Stopping


async def stop_and_wait(handle: LocalHandle, *, now: bool = False) -> tuple[int | None, int | None]:
    handle.stop(now=now)
    with anyio.fail_after(60):
        facts = await handle.wait()
    assert facts.stopped
    return facts.exit_code, facts.signal


async def test_stop_is_polite(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell("trap 'exit 5' TERM; echo $$ > pid; while kill -0 $PPID; do sleep 0.01; done", grace=1000)
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    assert await stop_and_wait(handle) == (5, None)


async def test_fault_04_grace_ends_in_a_kill(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell("trap '' TERM; echo $$ > pid; while kill -0 $PPID; do sleep 0.01; done", grace=0.4)
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    begun = time.monotonic()
    assert await stop_and_wait(handle) == (None, signal.SIGKILL)
    assert time.monotonic() - begun >= 0.4


async def test_now_overtakes_the_grace(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell("trap '' TERM; echo $$ > pid; while kill -0 $PPID; do sleep 0.01; done", grace=1000)
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    handle.stop()
    handle.stop()
    with anyio.move_on_after(0.2):
        await handle.wait()
    assert is_alive(handle.pid)
    assert await stop_and_wait(handle, now=True) == (None, signal.SIGKILL)


async def test_the_grace_is_the_whole_trees(backend: LocalBackend, attempts: Attempts) -> None:
    """A wrapping shell dies of SIGTERM at once; the solver below it still gets the time to save its state."""
    saver = f"{sys.executable} -S {PROGRAMS / 'save_on_term.py'}"
    attempt = attempts.shell(
        f"(cd . && mkdir -p away && cd away && exec setsid {saver}) & {saver}; sleep 1000", grace=1000
    )
    handle = await backend.launch(attempt.ready)
    for folder in (attempt.folder, attempt.folder / "away"):
        await eventually((folder / "ready").exists, "the solver to be ready")
    assert await stop_and_wait(handle) == (None, signal.SIGTERM)
    assert (attempt.folder / "saved").exists()
    assert (attempt.folder / "away" / "saved").exists(), "it had left the group"


async def test_the_grace_of_what_is_left_ends_too(backend: LocalBackend, attempts: Attempts) -> None:
    stubborn = "sh -c 'trap \"\" TERM; echo $$ > pid; while kill -0 $1; do sleep 0.01; done' sh $PPID"
    attempt = attempts.shell(f"{stubborn}; sleep 1000", grace=0.3)
    handle = await backend.launch(attempt.ready)
    left = attempt.pid()
    assert await stop_and_wait(handle) == (None, signal.SIGTERM)
    assert is_gone(left)


@pytest.mark.parametrize("now", [False, True])
async def test_fault_08_a_stopped_tree_still_ends(backend: LocalBackend, attempts: Attempts, now: bool) -> None:
    attempt = attempts.shell("echo $$ > pid; kill -STOP $$; sleep 1000", grace=1000)
    handle = await backend.launch(attempt.ready)
    await eventually(lambda: (leader := proc.read_process(handle.pid)) and leader.state == "T", "the leader stopped")
    assert await stop_and_wait(handle, now=now) == (None, signal.SIGKILL if now else signal.SIGTERM)


async def test_stop_after_the_end_is_nothing(backend: LocalBackend, attempts: Attempts) -> None:
    handle = await backend.launch(attempts("true").ready)
    facts = await handle.wait()
    handle.stop()
    handle.stop(now=True)
    assert await handle.wait() == facts
    await handle.wait_gone()
    assert not facts.stopped


# Waiting


async def test_a_cancelled_wait_touches_nothing(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell(f"echo $$ > pid; {WAIT_FOR_GO}; exit 6")
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    for _ in range(3):
        with anyio.move_on_after(0.05) as scope:
            await handle.wait()
        assert scope.cancelled_caught
    assert is_alive(handle.pid)
    (attempt.folder / "go").touch()
    codes: list[int | None] = []

    async def wait() -> None:
        codes.append((await handle.wait()).exit_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        tasks.start_soon(wait)
    assert codes == [6, 6]


async def test_closing_kills_whatever_still_runs(attempts: Attempts) -> None:
    scripts = [
        "echo $$ > pid; sleep 1000",
        "trap '' TERM; setsid sh -c 'echo $$ > pid; exec sleep 1000' & sleep 1000",
        f"{WITHOUT_A_CLUE} & sleep 1000",
        f"({WITHOUT_A_CLUE} &); sleep 1000",
    ]
    pids = []
    async with LocalBackend() as backend:
        for script in scripts:
            attempt = attempts.shell(script, grace=1000)
            pids.append((handle := await backend.launch(attempt.ready)).pid)
            pids.append(attempt.pid())
    assert [pid for pid in pids if not is_gone(pid)] == []
    assert orphans() == []
    handle.stop(now=True)
    with pytest.raises(SpawnError, match="not open"):
        await backend.launch(attempts("true").ready)


async def test_closing_kills_a_program_that_hangs_while_it_is_loaded(
    attempts: Attempts, hanging_program: tuple[str, Callable[[], None]]
) -> None:
    program, _ = hanging_program
    async with LocalBackend() as backend, anyio.create_task_group() as tasks:
        tasks.start_soon(backend.launch, attempts(program, "-c", "sleep 1000; exit").ready)
        await eventually(orphans, "it hangs")
        tasks.cancel_scope.cancel()
    assert tasks.cancel_scope.cancelled_caught
    assert orphans() == []


# What it used


async def test_processor_time_is_of_the_whole_tree(backend: LocalBackend, attempts: Attempts) -> None:
    burn = f"{sys.executable} -S {PROGRAMS / 'burn.py'} 0.3"
    attempt = attempts.shell(
        f"{burn}; mkdir away; (cd away && setsid {burn} &); until test -e away/burnt; do sleep 0.01; done"
    )
    usage = (await (await backend.launch(attempt.ready)).wait()).usage
    assert usage.cpu_user_seconds is not None
    assert usage.cpu_system_seconds is not None
    assert usage.cpu_user_seconds + usage.cpu_system_seconds >= 0.6, "the waited-for child and the orphan"


@pytest.mark.parametrize(
    ("peak", "size", "looks", "source"),
    [(300, 1, 0, None), (300, 60, 1, "sampled"), (1, 150, 0, "wait4")],
    ids=["tiny child of a big daemon", "seen while it ran", "big child of a small daemon"],
)
async def test_memory_is_never_the_daemons_own(peak: int, size: int, looks: int, source: str | None) -> None:
    done = await anyio.run_process(
        [sys.executable, str(PROGRAMS / "memory_daemon.py"), str(peak), str(size), str(looks)],
        env=ENVIRONMENT,
        stderr=None,
    )
    usage = json.loads(done.stdout)
    assert usage["max_rss_source"] == source
    if source is None:
        assert usage["max_rss_bytes"] is None
    else:
        assert size << 20 <= usage["max_rss_bytes"] < (size + 50) << 20


# Logs


async def test_fault_12_a_log_loses_its_middle(backend: LocalBackend, attempts: Attempts) -> None:
    size = 200_000_000
    attempt = attempts.shell(f"echo BEGIN; yes | head -c {size}; echo END; exit 2", log_max=1 << 20)
    facts = await (await backend.launch(attempt.ready)).wait()
    text = attempt.stdout
    head, cut, tail = text.partition("[solvisor: ")
    assert facts.exit_code == 2
    assert len(text) <= 1 << 20
    assert head.startswith("BEGIN\ny\ny\n")
    assert tail.endswith("y\nEND\n")
    assert cut
    assert f"{facts.log_cut_bytes} bytes cut" in text
    marker = len(text) - len(head.removesuffix("\n")) - len(tail.split("\n", 1)[1])
    assert facts.log_cut_bytes + len(text) - marker == size + len("BEGIN\nEND\n")
    assert sorted(os.listdir(attempt.folder.parent)) == ["output", "stderr.log", "stdout.log"]


async def test_fault_12_a_log_without_a_single_line(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell("head -c 50000000 /dev/zero", log_max=1 << 20)
    facts = await (await backend.launch(attempt.ready)).wait()
    size = Path(attempt.spec.stdout).stat().st_size
    assert size <= 1 << 20
    assert facts.log_cut_bytes >= 50_000_000 - size


async def test_fault_12_a_log_is_bounded_while_its_program_runs(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell(
        f"yes | head -c 30000000; echo $$ > pid; {WAIT_FOR_GO}",
        log_max=1 << 20,
    )
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    log = Path(attempt.spec.stdout)
    assert log.stat().st_size == 30_000_000
    await eventually(lambda: log.stat().st_blocks * 512 <= 3 << 19, "the middle to be a hole")
    assert log.stat().st_size == 30_000_000
    (attempt.folder / "go").touch()
    await handle.wait()
    assert log.stat().st_size <= 1 << 20


@pytest.mark.parametrize(
    "obstacle",
    [
        "mkdir ../stdout.log.part",
        "ln -s /etc/passwd ../stdout.log.part",
        "mv ../stdout.log old; ln -s old ../stdout.log",
        "mv ../stdout.log old; mkfifo ../stdout.log",
        "mv ../stdout.log old; mkdir ../stdout.log",
        "mv ../stdout.log old; head -c 2000000 /dev/zero > ../stdout.log; mkdir ../stdout.log.part",
    ],
)
async def test_nothing_done_to_its_log_keeps_an_end_from_being_told(
    backend: LocalBackend, attempts: Attempts, obstacle: str
) -> None:
    attempt = attempts.shell(f"yes | head -c 3000000; {obstacle}; exit 4", log_max=1 << 20)
    handle = await backend.launch(attempt.ready)
    with anyio.fail_after(30):
        facts = await handle.wait()
    assert facts.exit_code == 4
    log = Path(attempt.spec.stdout)
    is_cut = log.is_file() and not log.is_symlink()
    assert (facts.log_cut_bytes > 0) == is_cut
    assert not is_cut or log.stat().st_size <= 1 << 20
