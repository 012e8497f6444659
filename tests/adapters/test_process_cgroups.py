"""Control groups of real processes, of version 2 and, for limits, of version 1, as this machine has them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from msgspec.structs import replace

from process_kit import ANOTHER_ID, ENVIRONMENT, HOME_ID, PROGRAMS, WITHOUT_A_CLUE, Attempts, is_alive, is_gone, orphans
from solvisor.backends.local import LocalBackend
from solvisor.errors import SpawnError
from solvisor.process import cgroups
from solvisor.process.cgroups import Cgroup, Cgroups, name_of
from solvisor.process.host import own_cgroup
from solvisor.process.posix import Listener, Processes, Tree, kill_earlier_life, survivors
from solvisor.process.spawn import Leader
from waiting import eventually, wait_until

if sys.platform == "win32":
    pytest.skip("cgroups are of Linux", allow_module_level=True)

STARTERS = "both"

EAT = (sys.executable, "-S", str(PROGRAMS / "eat_memory.py"))
MIB = 1 << 20
SCRIPT = f"({WITHOUT_A_CLUE} &); until test -s pid; do sleep 0.01; done; exec sleep 1000"


@pytest.fixture
async def backend() -> AsyncIterator[LocalBackend]:
    before = own_cgroup("")
    async with LocalBackend(HOME_ID, kill_wait_seconds=20) as backend:
        if not backend.confines:
            pytest.skip("no cgroups can be made here")
        yield backend
        assert orphans() == []
    assert own_cgroup("") == before
    assert folders() == []


@pytest.fixture
def attempts(tmp_path: Path) -> Attempts:
    return Attempts(tmp_path)


def folders() -> list[str]:
    """The cgroups of this home, in every hierarchy."""
    return [folder for top in cgroups._tops_of(HOME_ID) for folder, _, _ in os.walk(top)]


def of_trees() -> list[str]:
    return [folder for folder in folders() if os.path.basename(folder).startswith("t-")]


def must_limit(backend: LocalBackend, controller: str) -> None:
    if controller not in backend.limited:
        pytest.skip(f"no cgroup with the controller {controller} can be made here")


async def test_one_for_each_tree_and_none_afterwards(backend: LocalBackend, attempts: Attempts) -> None:
    attempt = attempts.shell("cat /proc/self/cgroup; echo $$ > pid; sleep 1000")
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    # What it printed first it may have printed before it was moved.
    text = Path(f"/proc/{handle.pid}/cgroup").read_text()
    name = name_of(attempt.spec.token)
    assert f"/solvisor-{HOME_ID}/{name}\n" in text
    ours = own_cgroup("")
    assert ours is not None
    assert os.path.basename(ours).startswith("daemon-")
    assert {os.path.basename(folder) for folder in folders()} == {f"solvisor-{HOME_ID}", os.path.basename(ours), name}
    handle.stop(now=True)
    await handle.wait()
    assert not any(folder.endswith(name) for folder in folders())


async def test_fault_05_what_was_started_before_the_program_was_moved(
    backend: LocalBackend, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program has a moment before it is in its cgroup; what it put out of all sight by then is in it, too."""
    real = Cgroup.take_in
    other = attempts.shell("echo $$ > pid; sleep 1000")
    other_handle = await backend.launch(other.ready)
    attempt = attempts.shell(f"({WITHOUT_A_CLUE} &); sleep 1000")

    def late(cgroup: Cgroup, *arguments: object) -> None:
        attempt.pid()
        real(cgroup, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Cgroup, "take_in", late)
    handle = await backend.launch(attempt.ready)
    escaped = attempt.pid()
    assert Path(f"/proc/{escaped}/cgroup").read_text() == Path(f"/proc/{handle.pid}/cgroup").read_text()
    handle.stop(now=True)
    await handle.wait()
    assert is_gone(escaped), "although the other one, which is older, still runs"
    assert is_alive(other_handle.pid)
    other_handle.stop(now=True)
    await other_handle.wait()


async def test_a_polite_stop_reaches_all_of_it(backend: LocalBackend, attempts: Attempts) -> None:
    saver = f"{sys.executable} -S {PROGRAMS / 'save_on_term.py'}"
    away = f'mkdir away; cd away; exec env -i setsid sh -c "(exec {saver} &)" > /dev/null 2>&1'
    attempt = attempts.shell(f"({away}); until test -e away/ready; do sleep 0.01; done; echo $$ > pid; sleep 1000")
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    handle.stop()
    await handle.wait()
    assert (attempt.folder / "away" / "saved").exists()


@pytest.mark.parametrize("how", ["asked", "killed", "by itself"])
async def test_what_is_in_its_cgroup_is_of_it_whoever_started_it(
    backend: LocalBackend, attempts: Attempts, tmp_path: Path, how: str
) -> None:
    """As a container's daemon does on behalf of a solver: never below us, with nothing of ours in its environment."""
    attempt = attempts.shell("echo $$ > pid; until test -e go || ! kill -0 $PPID; do sleep 0.01; done", grace=1000)
    handle = await backend.launch(attempt.ready)
    attempt.pid()
    saver = "trap 'echo > saved; exit' TERM; echo > ready; while :; do sleep 0.01; done"
    with subprocess.Popen(["sh", "-c", saver], cwd=tmp_path, env={}) as guest:  # noqa: ASYNC220  it returns at once
        try:
            await eventually((tmp_path / "ready").exists, "the guest to be ready")
            (folder,) = (place for place in folders() if place.endswith(name_of(attempt.spec.token)))
            Path(folder, "cgroup.procs").write_text(str(guest.pid))
            if how == "by itself":
                (attempt.folder / "go").touch()
            else:
                handle.stop(now=how == "killed")
            with anyio.fail_after(30):
                await handle.wait()
            assert not is_alive(guest.pid)
            assert (tmp_path / "saved").exists() == (how == "asked")
        finally:
            guest.kill()


async def test_what_outruns_each_single_signal_ends_with_its_cgroup(backend: LocalBackend, attempts: Attempts) -> None:
    def misses(target: int, signum: int, *, group: bool) -> None:
        """What starts another process and ends, again and again, is gone when its signal comes."""

    assert backend._processes is not None
    backend._processes._send_signal = misses
    handle = await backend.launch(attempts.shell("sleep 1000 &\nexit 3").ready)
    with anyio.fail_after(10):
        facts = await handle.wait()
    assert (facts.exit_code, facts.unkillable) == (3, False)


async def test_cgroups_that_a_solver_makes_itself(backend: LocalBackend, attempts: Attempts) -> None:
    mounted = str(own_cgroup("")).removesuffix(Path("/proc/self/cgroup").read_text().split("0::")[1].strip())
    attempt = attempts.shell(
        f"""
        until own=$(sed -n s,^0::,,p /proc/self/cgroup); case "$own" in */t-*) ;; *) false ;; esac; do sleep 0.01; done
        inner="{mounted}$own/inner"
        mkdir "$inner"
        sh -c 'echo $$ > "$0/cgroup.procs"; echo $$ > pid; exec sleep 1000' "$inner" & wait"""
    )
    handle = await backend.launch(attempt.ready)
    inner = attempt.pid()
    handle.stop(now=True)
    await handle.wait()
    assert is_gone(inner)


async def test_what_leaves_its_cgroup_ends_with_the_leader_all_the_same(
    backend: LocalBackend, attempts: Attempts
) -> None:
    """As what a container's runtime puts elsewhere: nobody signals the group of a tree with a cgroup."""
    mounted = str(own_cgroup("")).removesuffix(Path("/proc/self/cgroup").read_text().split("0::")[1].strip())
    if not os.access(f"{mounted}/cgroup.procs", os.W_OK):
        pytest.skip("who runs this may not move processes there")
    leave = f'echo $$ > "{mounted}/cgroup.procs"; echo $$ > pid; exec sleep 1000'
    attempt = attempts.shell(f"sh -c '{leave}' & until test -s pid; do sleep 0.01; done; exit 3")
    handle = await backend.launch(attempt.ready)
    with anyio.fail_after(30):
        assert (await handle.wait()).exit_code == 3
    assert is_gone(attempt.pid())


def test_what_the_kernel_told_is_kept_until_it_is_told(attempts: Attempts) -> None:
    """A cgroup is left once; the tree may be looked at again, where a look at another one failed."""
    claimed = Cgroups.claim(HOME_ID)
    try:
        if not (claimed.exact and "memory" in claimed.limited):
            pytest.skip("no cgroups with the controller memory can be made here")
        spec = attempts("true", memory_limit=64 * MIB).spec
        leader = Leader(os.getpid(), -1, None, inside=True)
        tree = Tree(spec, cast("Listener", None), leader, begun=0, born=0.0, cgroup=claimed.make(spec))
        assert tree.left_cgroup()
        assert tree.told.peak_bytes is not None
        told = tree.told
        assert tree.left_cgroup()
        assert tree.told is told
    finally:
        claimed.release()
    assert folders() == []


async def test_fault_07_a_fork_bomb_gets_no_more_than_its_limit(backend: LocalBackend, attempts: Attempts) -> None:
    must_limit(backend, "pids")
    bomb = attempts.shell("bomb() { bomb | bomb & bomb; }; bomb & exec sleep 1000", processes_limit=20)
    handle = await backend.launch(bomb.ready)
    (limited,) = (place for place in folders() if place.endswith(name_of(bomb.spec.token)) and has_limit(place))
    await eventually(lambda: "max 0\n" not in Path(limited, "pids.events").read_text(), "it wants more")
    assert int(Path(limited, "pids.current").read_text()) <= 20
    assert (await (await backend.launch(attempts.shell("true & wait; exit 3").ready)).wait()).exit_code == 3
    handle.stop(now=True)
    with anyio.fail_after(60):
        facts = await handle.wait()
    assert facts.refused_forks > 0


def has_limit(folder: str) -> bool:
    return Path(folder, "pids.events").exists()


async def test_fault_10_a_tree_over_its_memory_is_killed_and_the_kernel_says_so(
    backend: LocalBackend, attempts: Attempts
) -> None:
    must_limit(backend, "memory")
    greedy = attempts(*EAT, "400", memory_limit=64 * MIB)
    facts = await (await backend.launch(greedy.ready)).wait()
    assert (facts.exit_code, facts.signal, facts.stopped) == (None, signal.SIGKILL, False)
    assert facts.oom_kills >= 1
    assert facts.usage.max_rss_source == "cgroup"
    assert 32 * MIB < (facts.usage.max_rss_bytes or 0) <= 64 * MIB

    assert of_trees() == [], "nobody is left in it, the launching thread neither"

    # Of two processes, each well within it, the sum counts.
    eat = " ".join(EAT)
    script = f"({eat} 50; touch a) & ({eat} 50; touch b) & until test -e a -o -e b; do sleep 0.01; done; exit 9"
    facts = await (await backend.launch(attempts.shell(script, memory_limit=64 * MIB).ready)).wait()
    assert facts.oom_kills >= 1
    assert facts.exit_code == 9 or facts.signal == signal.SIGKILL, "one of it was killed, or all at once"


async def test_a_sigkill_alone_is_no_evidence(backend: LocalBackend, attempts: Attempts) -> None:
    must_limit(backend, "memory")
    facts = await (await backend.launch(attempts.shell("kill -KILL $$", memory_limit=256 * MIB).ready)).wait()
    assert (facts.signal, facts.oom_kills) == (signal.SIGKILL, 0)


async def test_the_peak_is_of_the_whole_tree(backend: LocalBackend, attempts: Attempts) -> None:
    must_limit(backend, "memory")
    eat = " ".join(EAT)
    both = "until test -e a/held -a -e b/held; do sleep 0.01; done; touch a/go b/go; wait"
    attempt = attempts.shell(f"mkdir a b; (cd a; {eat} 60) & (cd b; {eat} 60) & {both}", memory_limit=1024 * MIB)
    usage = (await (await backend.launch(attempt.ready)).wait()).usage
    assert usage.max_rss_source == "cgroup"
    assert 110 * MIB < (usage.max_rss_bytes or 0) < 300 * MIB


async def test_what_cannot_have_its_limits_is_not_started(backend: LocalBackend, attempts: Attempts) -> None:
    must_limit(backend, "pids")
    spec = replace(attempts("true").spec, processes_limit=1 << 70)  # more than the kernel takes
    with pytest.raises(SpawnError, match=r"/t-.*/pids\.max: "):
        await backend.launch(lambda: spec)
    assert (await (await backend.launch(attempts("true").ready)).wait()).exit_code == 0


# What an earlier life left


def test_fault_63_nothing_of_a_life_that_was_killed_escapes_the_next(tmp_path: Path) -> None:
    """Out of its session, its parents gone, its environment cleared: without a cgroup nobody could tell whose it is."""
    daemon = subprocess.Popen(
        [sys.executable, str(PROGRAMS / "lonely_daemon.py"), HOME_ID, str(tmp_path), SCRIPT],
        env=ENVIRONMENT,
    )
    try:
        wait_until((tmp_path / "started").exists, "the daemon to have started its solvers", 60)
        left = [int(path.read_text()) for path in tmp_path.glob("job-*/output/pid")]
        inside = Path(f"/proc/{daemon.pid}/cgroup").read_text()
    finally:
        daemon.kill()
        daemon.wait()
    if f"/solvisor-{HOME_ID}/" not in inside:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        pytest.skip("no cgroups can be made here")
    assert all(is_alive(pid) for pid in left)
    assert survivors(ANOTHER_ID) == set()
    assert kill_earlier_life(ANOTHER_ID, 1) == set()
    assert all(is_alive(pid) for pid in left), "they are another home's"
    assert survivors(HOME_ID) == {f"{tmp_path.name}-1"}

    assert kill_earlier_life(HOME_ID, 20) == set()

    assert not any(is_alive(pid) for pid in left)
    assert folders() == []


async def test_what_is_left_of_the_callers_own_is_not_the_caller(backend: LocalBackend, attempts: Attempts) -> None:
    """At its start a daemon already has a cgroup of this home."""
    assert await anyio.to_thread.run_sync(kill_earlier_life, HOME_ID, 20) == set()
    assert (await (await backend.launch(attempts("true").ready)).wait()).exit_code == 0


async def test_a_look_for_survivors_takes_nothing_away(
    backend: LocalBackend, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done again and again while jobs run; the cgroup of one that is just being started is still empty."""
    real = Processes._watch

    def late(processes: Processes, leader: Leader, *rest: Any) -> Tree:
        wait_until(lambda: not is_alive(leader.pid), "it has ended")
        assert survivors(HOME_ID) == set()
        return real(processes, leader, *rest)

    monkeypatch.setattr(Processes, "_watch", late)
    assert (await (await backend.launch(attempts("true", env={}).ready)).wait()).exit_code == 0


def test_a_controller_that_cannot_be_switched_off_keeps_nobody(tmp_path: Path) -> None:
    before, claimed = own_cgroup(""), Cgroups.claim(HOME_ID)
    if not claimed.exact:
        pytest.skip("no cgroups can be made here")
    claimed._switched_on.insert(0, (str(tmp_path / "gone"), "memory"))
    claimed._switched_on.append((str(tmp_path / "gone"), "pids"))
    claimed.release()
    assert own_cgroup("") == before
    assert folders() == []


@pytest.mark.parametrize(
    ("token", "name"),
    [
        ("home/0123abc", "t-0123abc"),
        ("home/omc-1.0123abc", "t-omc-1.0123abc"),
        ("home/second/odd", "t-second_odd."),
        ("home/" + "x" * 300, "t-" + "x" * 100 + "."),
        ("home/ä\n", "t-__."),
    ],
)
def test_names_are_bounded_and_are_the_tokens_where_they_can_be(token: str, name: str) -> None:
    found = name_of(token)
    assert found.startswith(name)
    assert (found == name) == (not name.endswith("."))
    assert len(found) <= 120
    assert "/" not in found


async def test_many_at_once_leave_nothing(backend: LocalBackend, attempts: Attempts) -> None:
    async def one(script: str) -> None:
        assert (await (await backend.launch(attempts.shell(script).ready)).wait()).exit_code == 0

    async with anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(one, "setsid sleep 1000 &" if number % 2 else "true")
    assert of_trees() == []
