"""Compiled models: compiled once, run many times.

Each lies in a folder of its own, under a key that stands for all that went into it. Rules: a folder is complete or not
there: it is made under a temporary name, made durable, then renamed, and taken away by a rename as well; what a crash
leaves bears a temporary name and is removed at the next use. A failed compilation leaves nothing. The same model is
compiled by one at a time; the others wait for it. What is in use is never removed; of the rest the longest unused goes
first once all together are too large. This module must not know what a compiler is.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

import anyio
import msgspec
from anyio import to_thread
from msgspec import Struct

_NOTE: Final = "model.json"
"""Written last into a folder; its age says when the model was last used."""
_TEMPORARY: Final = ".tmp-"
_NOT_NEEDED: Final = (".c", ".h", ".o", ".makefile", ".log")
"""What only the compiler needed: most of the room."""


class Built(Struct, frozen=True):
    """What a compilation left in its folder: the names of the program and of its setup file."""

    program: str
    setup: str


_decode_built = msgspec.json.Decoder(Built).decode


class Model(Struct, frozen=True):
    """A compiled model: its folder with what is in it; ``fresh`` says that it was compiled just now."""

    folder: Path
    built: Built
    fresh: bool


class _Key:
    """What is known of a key while somebody uses it."""

    def __init__(self) -> None:
        self.turn = anyio.Lock()
        self.uses = 0


class ModelCache:
    """The compiled models in ``folder``, together at most ``limit`` bytes, but for what is in use."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.limit = limit
        self._folder = folder
        self._keys: dict[str, _Key] = {}
        self._swept = False

    @asynccontextmanager
    async def model(self, key: str, compile_in: Callable[[Path], Awaitable[Built]]) -> AsyncIterator[Model]:
        """The model ``key``, which stays as long as the context lasts; ``compile_in`` makes it in an empty folder.

        What ``compile_in`` raises is passed on. Raises ``OSError``.
        """
        used = self._keys.setdefault(key, _Key())
        used.uses += 1
        try:
            async with used.turn:
                built = await to_thread.run_sync(self._find, key)
                if fresh := built is None:
                    built = await self._make(key, compile_in)
            if fresh:
                with suppress(OSError):  # it only costs room, and is tried again
                    await self._trim()
            assert built is not None  # noqa: S101  for the type checker
            yield Model(self._folder / key, built, fresh)
        finally:
            self._leave(key, used)

    def _leave(self, key: str, used: _Key) -> None:
        used.uses -= 1
        if used.uses == 0 and self._keys.get(key) is used:
            del self._keys[key]

    async def _make(self, key: str, compile_in: Callable[[Path], Awaitable[Built]]) -> Built:
        sweep, self._swept = not self._swept, True
        place = await to_thread.run_sync(self._new_place, key, sweep)
        try:
            built = await compile_in(place)
            await to_thread.run_sync(self._keep, place, key, built)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(_remove, place)
            raise
        return built

    async def _trim(self) -> None:
        """Remove the longest unused until the rest is small enough."""
        found = await to_thread.run_sync(self._list)
        total = sum(size for _, size, _ in found)
        for _, size, key in sorted(found):
            if total <= self.limit:
                return
            if key in self._keys:
                continue
            # While it is being removed, whoever wants it waits, and then finds nothing.
            used = self._keys[key] = _Key()
            used.uses += 1
            try:
                async with used.turn:
                    await to_thread.run_sync(self._take_away, key)
            finally:
                self._leave(key, used)
            total -= size

    # --- in threads -------------------------------------------------------------------------------------------------

    def _find(self, key: str) -> Built | None:
        note = self._folder / key / _NOTE
        try:
            built = _decode_built(note.read_bytes())
            os.utime(note)
        except (OSError, msgspec.DecodeError):
            return None
        return built

    def _new_place(self, key: str, sweep: bool) -> Path:
        """An empty folder; leftovers of the same key go, and on the first occasion those of an earlier life."""
        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        for name in os.listdir(self._folder):
            if _TEMPORARY in name and (sweep or name.startswith(key)):
                _remove(self._folder / name)
        if os.path.lexists(self._folder / key):  # damaged: what is whole was found
            self._take_away(key)
        place = self._temporary(key)
        os.mkdir(place, mode=0o700)
        return place

    def _temporary(self, key: str) -> Path:
        return self._folder / f"{key}{_TEMPORARY}{secrets.token_hex(8)}"

    def _keep(self, place: Path, key: str, built: Built) -> None:
        (place / _NOTE).write_bytes(msgspec.json.encode(built))
        for folder, _, names in os.walk(place):
            for name in names:
                path = os.path.join(folder, name)
                if name.endswith(_NOT_NEEDED):
                    os.unlink(path)
                elif not os.path.islink(path):
                    _sync(path)
                    _protect(path)
            _sync(folder)
        os.rename(place, self._folder / key)
        _sync(str(self._folder))

    def _take_away(self, key: str) -> None:
        place = self._temporary(key)
        os.rename(self._folder / key, place)
        _remove(place)

    def _list(self) -> list[tuple[float, int, str]]:
        """When each was last used, its bytes, its key."""
        found = []
        for key in os.listdir(self._folder):
            if _TEMPORARY in key:
                continue
            size, used = 0, 0.0
            for folder, _, names in os.walk(self._folder / key):
                for name in names:
                    status = os.lstat(os.path.join(folder, name))
                    size += status.st_size
                    used = status.st_mtime if name == _NOTE else used
            found.append((used, size, key))
        return found


class ModelCaches:
    """The caches of all solvers, each in its own folder below ``folder``. A solver that is configured anew keeps its
    cache: servers of before may still be compiling.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._caches: dict[str, ModelCache] = {}

    def of(self, solver: str, limit: int) -> ModelCache:
        """The cache of ``solver``, from now on of at most ``limit`` bytes."""
        cache = self._caches.setdefault(solver, ModelCache(self._folder / solver, limit))
        cache.limit = limit
        return cache


def _remove(place: Path) -> None:
    """What is still being written to, by a compiler that is about to be killed, goes at the next use."""
    shutil.rmtree(place, ignore_errors=True)


def _sync(path: str) -> None:
    if sys.platform == "win32":
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _protect(path: str) -> None:
    if sys.platform != "win32":  # where nobody could remove it then
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) & ~0o222)
