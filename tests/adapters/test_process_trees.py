"""Whole trees, with a cgroup for each and without: whatever a solver's processes do, all of them end with it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from process_kit import HOME_ID, PROGRAMS, WITHOUT_A_CLUE, Attempts, is_alive, is_gone, orphans, ticks_passed
from solvisor.backends.local import LocalBackend
from solvisor.process import proc
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

LOOPS = "both"
STARTERS = "both"

# For a shell that the test process started; it ends with that, too.
WAIT_FOR_GO = "until test -e go || ! kill -0 $PPID; do sleep 0.01; done"


@pytest.fixture(params=["cgroups", "no cgroups"])
async def backend(request: pytest.FixtureRequest) -> AsyncIterator[LocalBackend]:
    home_id = HOME_ID if request.param == "cgroups" else None
    async with LocalBackend(home_id, kill_wait_seconds=20) as backend:
        if home_id is not None and not backend.confines:
            pytest.skip("no cgroups can be made here")
        yield backend
        assert orphans() == [], "every test ends with nothing left, not even a zombie"


@pytest.fixture
async def bare() -> AsyncIterator[LocalBackend]:
    """Without cgroups: who belongs to what must be found out."""
    async with LocalBackend(kill_wait_seconds=20) as backend:
        yield backend
        assert orphans() == []


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


@pytest.mark.parametrize(
    "script",
    [
        "sh -c 'echo $$ > pid; exec sleep 1000' &",
        "(sh -c 'echo $$ > pid; exec sleep 1000' &)",
        "setsid sh -c 'echo $$ > pid; exec sleep 1000' &",
        "setsid sh -c 'setsid sh -c \"echo \\$\\$ > pid; exec sleep 1000\" & sleep 1000' &",
        "env -i setsid sh -c 'echo $$ > pid; exec sleep 1000' > /dev/null 2>&1 &",
        'env -i setsid sh -c \'cd /; echo $$ > "$0"; exec sleep 1000\' "$PWD/pid" &',
        'setsid sh -c \'cd /; echo $$ > "$0"; exec sleep 1000\' "$PWD/pid" > /dev/null 2>&1 &',
        f"env -i {sys.executable} -S {PROGRAMS / 'own_group.py'} $PWD/pid > /dev/null 2>&1 &",
        "setsid sh -c 'trap \"\" TERM HUP; echo $$ > pid; kill -STOP $$' &",
    ],
    ids=[
        "group",
        "double fork",
        "setsid",
        "setsid twice",
        "folder only",
        "log only",
        "token only",
        "session only",
        "stopped",
    ],
)
async def test_fault_05_nothing_outlives_the_leader(backend: LocalBackend, attempts: Attempts, script: str) -> None:
    """Also beside another attempt, where it takes a clue to know whose the orphan is."""
    older = attempts.shell(f"echo $$ > pid; {WAIT_FOR_GO}")
    older_handle = await backend.launch(older.ready)
    older.pid()
    attempt = attempts.shell(f"{script}\nuntil test -s pid; do :; done; exit 3")
    handle = await backend.launch(attempt.ready)
    with anyio.fail_after(30):
        facts = await handle.wait()
    assert (facts.exit_code, facts.stopped) == (3, False)
    assert is_gone(attempt.pid())
    (older.folder / "go").touch()
    assert (await older_handle.wait()).exit_code == 0


async def test_fault_06_a_grandchild_that_holds_stdout_holds_up_nothing(
    backend: LocalBackend, attempts: Attempts
) -> None:
    attempt = attempts.shell("sleep 1000 & echo $! > pid; exit 0")
    handle = await backend.launch(attempt.ready)
    with anyio.fail_after(30):
        assert (await handle.wait()).exit_code == 0
    assert is_gone(attempt.pid())


async def test_fault_05_a_lonely_orphan_without_a_clue(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell(f"{WITHOUT_A_CLUE} & until test -s pid; do :; done; exit 3")
    handle = await backend.launch(attempt.ready)
    assert (await handle.wait()).exit_code == 3
    assert is_gone(attempt.pid())


# Start the program given as a child of one's own parent (clone(2), CLONE_PARENT), and write its number to the file pid.
SIBLING = """
import ctypes, os, sys
number = {"x86_64": 56, "aarch64": 220}[os.uname().machine]
if ctypes.CDLL(None).syscall(number, 0x8000 | 17, None, None, None, None) == 0:
    os.setsid()
    os.chdir("/")
    with open(sys.argv[1], "w") as file:
        print(os.getpid(), file=file)
    os.dup2(0, 1), os.dup2(0, 2)
    os.execve("/bin/sleep", ["sleep", "1000"], {})
while not os.path.exists(sys.argv[1]) or not os.path.getsize(sys.argv[1]):
    pass
"""


async def test_fault_05_a_sibling_without_a_clue(bare: LocalBackend, attempts: Attempts) -> None:
    """It hangs not on the main thread, where orphans do, but where its maker does, on the launcher."""
    make = shlex.join([sys.executable, "-S", "-c", SIBLING])
    attempt = attempts.shell(f"exec {make} $PWD/pid")
    handle = await bare.launch(attempt.ready)
    assert (await handle.wait()).exit_code == 0
    assert is_gone(attempt.pid())


async def test_orphan_without_a_clue_waits_for_all_that_may_own_it(bare: LocalBackend, attempts: Attempts) -> None:
    idle = f"echo $$ > pid; {WAIT_FOR_GO}"
    older = attempts.shell(idle)
    older_handle = await bare.launch(older.ready)
    older.pid()
    # It stays a child of its maker until that ends: had it been an orphan before, it might have been seen with a clue.
    maker = attempts.shell(f"{WITHOUT_A_CLUE} & {WAIT_FOR_GO}")
    maker_handle = await bare.launch(maker.ready)
    orphan = proc.read_process(maker.pid())
    assert orphan is not None
    await eventually(ticks_passed(orphan), "a later tick")
    younger = attempts.shell(idle)
    younger_handle = await bare.launch(younger.ready)
    younger.pid()

    (maker.folder / "go").touch()
    assert (await maker_handle.wait()).exit_code == 0
    assert is_alive(orphan.pid), "it may be the older one's, which still runs"

    (older.folder / "go").touch()
    assert (await older_handle.wait()).exit_code == 0
    assert is_gone(orphan.pid), "the one that still runs is younger than the orphan"

    assert is_alive(younger_handle.pid)
    (younger.folder / "go").touch()
    assert (await younger_handle.wait()).exit_code == 0


async def test_an_end_hurts_nobody_else(backend: LocalBackend, attempts: Attempts) -> None:
    """What other attempts put in the background, and what other code of this process started, lives on."""
    with subprocess.Popen(["sleep", "1000"]) as own:  # noqa: ASYNC220  it returns at once
        other = attempts.shell(f"setsid sh -c 'echo $$ > pid; exec sleep 1000' & {WAIT_FOR_GO}")
        other_handle = await backend.launch(other.ready)
        other_pid = other.pid()
        for _ in range(5):
            leaver = await backend.launch(attempts.shell("setsid sleep 1000 & exit 0").ready)
            assert (await leaver.wait()).exit_code == 0
        assert own.poll() is None
        assert is_alive(other_pid)
        assert is_alive(other_handle.pid)
        (other.folder / "go").touch()
        assert (await other_handle.wait()).exit_code == 0
        assert is_gone(other_pid)
        assert own.poll() is None
        own.kill()


async def test_orphans_of_a_long_run_leave_no_zombies(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell(f"(setsid true &) ; (true &); echo $$ > pid; {WAIT_FOR_GO}")
    handle = await backend.launch(attempt.ready)
    attempt.pid()

    def started() -> list[int]:
        """Our children, but what shares our session: that is no solver's."""
        found = [proc.read_process(pid) for _, pid in proc.children(os.getpid())]
        return [process.pid for process in found if process is not None and process.session != os.getsid(0)]

    await eventually(lambda: started() == [handle.pid], "all but the leader reaped")
    assert is_alive(handle.pid)
    (attempt.folder / "go").touch()
    assert (await handle.wait()).exit_code == 0
