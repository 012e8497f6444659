"""Rests that end when a file changes: told by the kernel, or glanced at."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from solvisor import signs as module
from solvisor.signs import GLANCE_SECONDS, KEPT_MOST, Signs
from waiting import eventually

LONG = 30.0

Make = Callable[..., Signs]


def grows(path: Path) -> None:
    with path.open("a") as file:
        file.write("more\n")


def is_replaced(path: Path) -> None:
    part = path.with_name("part")
    part.write_text("x")
    part.rename(path)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log"
    path.write_text("a")
    return path


@pytest.fixture(params=["told", "glances"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Signs of some files, of which the kernel tells, or not."""
    with ExitStack() as stack:

        def make(*paths: Path) -> Signs:
            signs = Signs(paths)
            if request.param == "told":
                stack.enter_context(signs)
                assert signs.are_told == (sys.platform == "linux")
            return signs

        yield make


@pytest.fixture
def no_glances(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GLANCE_SECONDS", LONG)


@pytest.mark.parametrize("happens", [grows, is_replaced, Path.unlink])
async def test_a_rest_ends_when_a_file_changes(log: Path, make: Make, happens: Callable[[Path], None]) -> None:
    began, signs = time.monotonic(), make(log.with_name("another"), log)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(signs.rest, LONG)
        await eventually(lambda: time.monotonic() > began + 3 * GLANCE_SECONDS, "it rests")
        happens(log)
    assert time.monotonic() - began < LONG / 2


async def test_one_that_comes_to_be_ends_a_rest(tmp_path: Path, make: Make) -> None:
    began, signs = time.monotonic(), make(tmp_path / "socket")
    (tmp_path / "socket").touch()
    await signs.rest(LONG)
    assert time.monotonic() - began < LONG / 2


async def test_what_was_written_while_it_was_looked_at_ends_the_next_rest_and_only_that(log: Path, make: Make) -> None:
    signs = make(log)
    grows(log)
    await signs.rest(LONG)
    grows(log)
    await signs.rest(LONG)
    with anyio.move_on_after(0.1) as waited:
        await signs.rest(LONG)
    assert waited.cancelled_caught


async def test_where_nothing_changes_a_rest_is_as_long_as_was_asked_for(log: Path, make: Make) -> None:
    signs = make(log, log.with_name("another"))
    for seconds in (GLANCE_SECONDS / 2, 3.5 * GLANCE_SECONDS):
        began = time.monotonic()
        await signs.rest(seconds)
        assert time.monotonic() - began >= seconds


async def test_a_link_is_not_followed(log: Path, make: Make) -> None:
    """It may lead to a share that hangs, and with it would the loop; and nobody reads through one."""
    link = log.with_name("link")
    link.symlink_to(log)
    signs = make(link)
    grows(log)
    with anyio.move_on_after(0.1) as waited:
        await signs.rest(LONG)
    assert waited.cancelled_caught


# --- told -------------------------------------------------------------------------------------------------------------


told = pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux tells")


@told
@pytest.mark.usefixtures("no_glances")
async def test_what_the_kernel_tells_needs_no_glance(log: Path) -> None:
    began = time.monotonic()
    with Signs([log]) as signs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(signs.rest, LONG)
            await eventually(lambda: time.monotonic() > began + 3 * GLANCE_SECONDS, "it rests")
            grows(log)
    assert time.monotonic() - began < LONG / 2


@told
@pytest.mark.parametrize("name", ["log", "another"])
async def test_what_writes_without_end_is_looked_at_no_more_often(
    log: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it the file that matters or one beside it."""
    looks, over = 0, False
    sign = module._sign

    def counted(path: str) -> tuple[int, int] | None:
        nonlocal looks
        looks += 1
        return sign(path)

    async def write() -> None:
        while not over:
            grows(log.with_name(name))
            await anyio.lowlevel.checkpoint()

    with Signs([log]) as signs:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(write)
            monkeypatch.setattr(module, "_sign", counted)
            began = time.monotonic()
            while (waited := time.monotonic() - began) < 0.5:
                await signs.rest(0.5 - waited)
            over = True
    assert looks <= 2 * (waited / GLANCE_SECONDS + 5)


@told
async def test_what_the_kernel_told_of_one_folder_is_not_news_of_the_next(log: Path, tmp_path: Path) -> None:
    """One inotify serves all who come one after the other."""
    for number in range(2 * KEPT_MOST):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        with Signs([folder / "log"]) as signs:
            assert signs.are_told
            with anyio.move_on_after(0.01) as waited:
                await signs.rest(LONG)
            assert waited.cancelled_caught
            grows(folder / "log")
            grows(folder / "another")
        grows(folder / "log")
    assert len(module._kept) <= KEPT_MOST


@told
async def test_where_too_many_are_told_the_others_glance(log: Path) -> None:
    with ExitStack() as stack:
        some = [stack.enter_context(Signs([log])) for _ in range(KEPT_MOST + 1)]
        assert [signs.are_told for signs in some] == [True] * KEPT_MOST + [False]
        grows(log)
        for signs in some:
            await signs.rest(LONG)


@told
async def test_no_folder_or_several_are_glanced_at(tmp_path: Path) -> None:
    with Signs([tmp_path / "no" / "log"]) as none, Signs([tmp_path / "a", tmp_path / "b" / "c"]) as several:
        assert not none.are_told
        assert not several.are_told


@told
async def test_a_folder_may_go_while_it_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    with Signs([folder / "log"]) as signs:
        folder.rmdir()
        await signs.rest(0.01)
    with Signs([tmp_path / "log"]) as another:
        assert another.are_told
