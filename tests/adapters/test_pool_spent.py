"""Warm servers that must not have another job: whoever finds it out, no job gets to them, and nothing has failed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from pool_kit import PYTHON, Lab, lab, solver
from solvisor.errors import Unreached
from solvisor.events import Retire, ServerFree
from solvisor.interfaces import Channel, Up
from solvisor.solvers.server import ServerChannel, ServerKind
from waiting import eventually

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

LOOPS = "uvloop"

WHY = "its file was changed"

UNTIL_TOLD = "import os, time\nopen('began', 'w').close()\nwhile not os.path.exists('go on'): time.sleep(0.01)"


channels: dict[str, ServerChannel] = {}


class Aging(ServerKind):
    """Servers that the test may declare spent."""

    async def connect(self, up: Up, note: Callable[[str], None]) -> Channel:
        channel = await super().connect(up, note)
        assert isinstance(channel, ServerChannel)
        channels[up.place.name] = channel
        return channel


def spoil(*names: str) -> None:
    for name in names:
        channels[name].spent = WHY


async def ended_well(pool: Lab, name: str) -> None:
    assert (await pool.ended(name)).error is None
    assert pool.world.pool("s").ends == [], "that is no failure"


async def test_a_job_does_not_reach_a_spent_server_nor_any_of_its_like(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(), kind=Aging) as pool:
        lent, idle, good = [await pool.ready() for _ in range(3)]
        spoil(lent, idle)
        errand = pool.lend(lent)
        with pytest.raises(Unreached, match=f"^{lent} is to be replaced: {WHY}$"):
            await pool.pool.carry_out(lent, errand)
        assert [errand.pids, errand.programs] == [[], []], "the job was begun"
        assert [pool.server(name).state for name in (lent, idle, good)] == ["draining", "stopping", "ready"]
        assert [pool.server(name).why for name in (lent, idle, good)] == [WHY, WHY, None]
        await pool.pool.give_back(lent, served=False)
        await ended_well(pool, lent)
        await ended_well(pool, idle)
        assert pool.of(good) == ["ServerWanted", "ServerUp", "ServerReady"]
        assert (await pool.pool.carry_out(good, pool.lend(good))).exit_code == 0


async def test_a_server_spent_during_its_job_finishes_that_and_is_replaced(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(command=(*PYTHON, "-c", UNTIL_TOLD, "{host}")), kind=Aging) as pool:
        name = await pool.ready()
        errand = pool.lend(name)
        codes = []

        async def work() -> None:
            codes.append((await pool.pool.carry_out(name, errand)).exit_code)
            await pool.pool.give_back(name, served=True)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work)
            await eventually((errand.folder / "output" / "began").exists, "the job runs", 60)
            spoil(name)
            (errand.folder / "output" / "go on").touch()
        await ended_well(pool, name)
        assert codes == [0]
        (free,) = pool.all(ServerFree, name)
        assert (free.served, free.spent) == (True, WHY)


async def test_a_spent_server_that_nobody_wants_is_found(tmp_path: Path) -> None:
    async with lab(tmp_path, solver(servers={"heartbeat": 0.1}), kind=Aging) as pool:
        first, second = await pool.ready(), await pool.ready()
        spoil(first)
        await ended_well(pool, first)
        assert pool.server(second).state == "ready"
        assert {(event.name, event.why) for event in pool.all(Retire)} == {(first, WHY)}


async def test_a_look_that_hangs_holds_up_no_other_server(tmp_path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def look() -> None:
        asked.set()
        go_on.wait(60)

    async with lab(tmp_path, solver(), kind=Aging) as pool, anyio.create_task_group() as tasks:
        hung, other = await pool.ready(), await pool.ready()
        channels[hung].look = look
        tasks.start_soon(pool.pool.carry_out, hung, pool.lend(hung))
        try:
            await eventually(asked.is_set, "the look")
            with anyio.fail_after(20):
                assert (await pool.pool.carry_out(other, pool.lend(other))).exit_code == 0
        finally:
            go_on.set()


async def test_one_look_serves_a_job_and_comes_after_its_staging(tmp_path: Path) -> None:
    done: list[str] = []
    async with lab(tmp_path, solver(), kind=Aging) as pool:
        name = await pool.ready()
        channels[name].look = lambda: done.append("looked")
        errand = pool.lend(name)
        await pool.pool.prepare(name, lambda: done.append("staged"))
        assert (await pool.pool.carry_out(name, errand)).exit_code == 0
    assert done == ["staged", "looked"]


async def test_what_was_seen_before_a_job_set_out_does_not_count(tmp_path: Path) -> None:
    """Somebody changed the file, and then submitted the job."""
    async with lab(tmp_path, solver(), kind=Aging) as pool:
        name = await pool.ready()
        channels[name].look = lambda: None
        await pool.pool.prepare(name, lambda: None)
        channels[name].look = lambda: spoil(name)
        with pytest.raises(Unreached, match=WHY):
            await pool.pool.carry_out(name, pool.lend(name))


async def test_what_cannot_be_staged_is_said_and_nobody_is_blamed(tmp_path: Path) -> None:
    def stage() -> None:
        raise OSError(28, "No space left on device")

    async with lab(tmp_path, solver(), kind=Aging) as pool:
        name = await pool.ready()
        with pytest.raises(OSError, match="No space left"):
            await pool.pool.prepare(name, stage)
        with pytest.raises(Unreached, match=f"^{name}-gone was gone before it heard of the job$"):
            await pool.pool.prepare(f"{name}-gone", stage)
        assert (await pool.pool.carry_out(name, pool.lend(name))).exit_code == 0
