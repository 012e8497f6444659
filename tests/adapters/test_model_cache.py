"""Compiled models are there or not, made by one at a time, and never taken from under a user."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from solvisor.solvers.modelcache import Built, ModelCache, ModelCaches
from waiting import eventually

BUILT = Built("M", "M_init.xml")


class Compiler:
    """Writes a program of ``size`` bytes, and what a compiler leaves beside it."""

    def __init__(self, size: int = 1000) -> None:
        self.size = size
        self.folders: list[Path] = []
        self.gate = anyio.Event()
        self.gate.set()

    async def __call__(self, folder: Path) -> Built:
        self.folders.append(folder)
        assert os.listdir(folder) == []
        for name in ("M.c", "M.o", "M.makefile", "M.log", "M_init.xml", "M_JacA.bin"):
            (folder / name).write_text("x")
        await self.gate.wait()
        (folder / "M").write_bytes(b"\0" * self.size)
        (folder / "M").chmod(0o755)
        return BUILT


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache"


async def use(cache: ModelCache, key: str, compiler: Callable[[Path], Awaitable[Built]]) -> bool:
    """Use a model for a moment; whether it was compiled for that."""
    async with cache.model(key, compiler) as model:
        assert (model.folder / model.built.program).exists()
        return model.fresh


async def test_compiled_once(place: Path) -> None:
    cache, compiler = ModelCache(place, 1 << 20), Compiler()
    assert [await use(cache, "a", compiler) for _ in range(3)] == [True, False, False]
    assert not await use(ModelCache(place, 1 << 20), "a", compiler)
    assert await use(cache, "b", compiler)
    assert sorted(os.listdir(place)) == ["a", "b"]
    assert len(compiler.folders) == 2


async def test_only_what_is_needed_is_kept_and_cannot_be_written(place: Path) -> None:
    await use(ModelCache(place, 1 << 20), "a", Compiler())
    assert sorted(os.listdir(place / "a")) == ["M", "M_JacA.bin", "M_init.xml", "model.json"]
    for name in os.listdir(place / "a"):
        assert not stat.S_IMODE((place / "a" / name).stat().st_mode) & 0o222
    assert stat.S_IMODE((place / "a" / "M").stat().st_mode) == 0o555


async def test_it_comes_to_be_in_one_step(place: Path) -> None:
    cache, compiler = ModelCache(place, 1 << 20), Compiler()
    compiler.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use, cache, "a", compiler)
        await eventually(lambda: compiler.folders, "the compiler")
        assert [name.startswith("a.tmp-") for name in os.listdir(place)] == [True]
        compiler.gate.set()
    assert os.listdir(place) == ["a"]


async def test_users_of_the_same_model_wait_for_one_another(place: Path) -> None:
    cache, compiler = ModelCache(place, 1 << 20), Compiler()
    compiler.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(use, cache, "a", compiler)
        await eventually(lambda: compiler.folders, "the compiler")
        tasks.start_soon(use, cache, "b", compiler)
        await eventually(lambda: len(compiler.folders) == 2, "the compiler of another model")
        compiler.gate.set()
    assert len(compiler.folders) == 2


async def test_a_failure_is_not_kept(place: Path) -> None:
    cache, compiler = ModelCache(place, 1 << 20), Compiler()

    async def fail(folder: Path) -> Built:
        await compiler(folder)
        raise LookupError("no equation")

    for _ in range(2):
        with pytest.raises(LookupError):
            await use(cache, "a", fail)
        assert os.listdir(place) == []
    assert await use(cache, "a", compiler)


async def test_who_waits_compiles_after_one_who_was_stopped(place: Path) -> None:
    cache, compiler = ModelCache(place, 1 << 20), Compiler()
    compiler.gate = anyio.Event()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(use, cache, "a", compiler)
            await eventually(lambda: compiler.folders, "the compiler")
            scope.cancel()
    assert os.listdir(place) == []
    compiler.gate.set()
    assert await use(cache, "a", compiler)


async def test_what_a_crash_left_is_removed(place: Path) -> None:
    for name in ("a.tmp-1", "b.tmp-2"):
        (place / name).mkdir(parents=True)
        (place / name / "M.c").write_text("x")
    (place / "a").mkdir()
    (place / "a" / "M").write_text("half a program")
    assert await use(ModelCache(place, 1 << 20), "a", Compiler())
    assert os.listdir(place) == ["a"]


async def test_later_only_what_is_left_of_the_same_model_is_removed(place: Path) -> None:
    cache, compiler = ModelCache(place, 1 << 20), Compiler()
    await use(cache, "a", compiler)
    (place / "b.tmp-1").mkdir()
    (place / "c.tmp-1").mkdir()
    await use(cache, "b", compiler)
    assert sorted(os.listdir(place)) == ["a", "b", "c.tmp-1"]


async def test_the_longest_unused_go_first(place: Path) -> None:
    cache, compiler = ModelCache(place, 3500), Compiler()
    for at, key in enumerate("abc"):
        await use(cache, key, compiler)
        os.utime(place / key / "model.json", (at + 1, at + 1))
    assert not await use(cache, "a", compiler)
    await use(cache, "d", compiler)
    assert sorted(os.listdir(place)) == ["a", "c", "d"]


async def test_one_is_taken_away_in_one_step(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, compiler = ModelCache(place, 10), Compiler()
    await use(cache, "a", compiler)
    monkeypatch.setattr("solvisor.solvers.modelcache._remove", lambda place: None)  # a crash in the middle
    await use(cache, "b", compiler)
    left = sorted(os.listdir(place))
    assert left[0].startswith("a.tmp-")
    assert left[1:] == ["b"]


async def test_what_is_in_use_stays(place: Path) -> None:
    cache, compiler = ModelCache(place, 2500), Compiler()
    async with cache.model("a", compiler) as model:
        os.utime(place / "a" / "model.json", (1, 1))
        await use(cache, "b", compiler)
        await use(cache, "c", compiler)
        assert (model.folder / "M").exists()
        assert sorted(os.listdir(place)) == ["a", "c"]
    await use(cache, "d", compiler)
    assert sorted(os.listdir(place)) in (["c", "d"], ["a", "d"])


async def test_one_that_is_too_large_serves_its_user(place: Path) -> None:
    cache, compiler = ModelCache(place, 10), Compiler()
    assert await use(cache, "a", compiler)
    assert await use(cache, "b", compiler)
    assert os.listdir(place) == ["b"]


async def test_a_damaged_note_means_compiling_again(place: Path) -> None:
    cache, compiler = ModelCache(place, 1 << 20), Compiler()
    await use(cache, "a", compiler)
    (place / "a" / "model.json").chmod(0o600)
    (place / "a" / "model.json").write_text("{")
    assert await use(cache, "a", compiler)
    assert not await use(cache, "a", compiler)


async def test_fault_87_a_solver_configured_anew_keeps_the_cache_in_which_others_still_compile(place: Path) -> None:
    caches, compiler = ModelCaches(place), Compiler()
    compiler.gate = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use, caches.of("omc", 1 << 20), "a", compiler)
        await eventually(lambda: compiler.folders, "it is being compiled")
        after = caches.of("omc", 3500)
        await use(after, "b", Compiler())
        assert compiler.folders[0].exists(), "it was taken for what a crash left"
        compiler.gate.set()
    assert not await use(after, "a", Compiler())
    assert after.limit == 3500
    assert caches.of("other", 1) is not after
