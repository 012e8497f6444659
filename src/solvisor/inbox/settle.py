"""When something in the inbox is complete: what successive scans saw of it, and the rules of settling.

Rules: pure, and ``now`` is monotonic seconds passed in. Age is observed change, never a file's own times: a date in the
future settles like any other. Whether somebody still has a file open is asked at the claim, not here. What there is
once for every name has ``gc=False``: of 100,000 names, each full collection would hold all threads for 200 ms. This
module must not know job files, solvers or the file system.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable
from types import EllipsisType

from msgspec import Struct

QUIET_SECONDS = 5.0
"""For how long a file must not have changed before it may be taken although no lease can be had on it."""


class Sight(Struct, frozen=True, gc=False):
    """One name as a scan saw it.

    ``ident`` is device and inode. ``mark`` differs whenever anything of it (of a folder: of anything in it) changed.
    ``single``: no file of it has a second name.
    """

    name: str
    ident: tuple[int, int]
    mark: Hashable
    single: bool = True


class Seen(Struct, gc=False):
    """What is remembered of one name, in monotonic seconds.

    ``appeared`` is when this very file was first seen, ``since`` when it was first seen as it is now, ``scans`` how
    often it was seen so. ``whole``: it was renamed into place, or its ``.ready`` marker says that it is complete.
    ``not_before`` puts the next claim off, after one that failed; ``held`` says why the last one failed. ``wants`` is
    for readers: the names they found in it as it is now, ``None`` if it cannot be read, ``...`` before anybody read it.
    So are ``fits``, the solvers that accept it.
    """

    ident: tuple[int, int]
    mark: Hashable
    single: bool
    appeared: float
    since: float
    scans: int = 1
    whole: bool = False
    not_before: float = -math.inf
    held: str = ""
    wants: tuple[str, ...] | EllipsisType | None = ...
    fits: tuple[str, ...] | EllipsisType = ...


class Memory:
    """What the scans have seen, by folder and name. Only what the last scan of a folder saw is kept."""

    def __init__(self) -> None:
        self._folders: dict[str, dict[str, Seen]] = {}

    def look(self, folder: str, sights: Iterable[Sight], whole: Collection[str], now: float) -> dict[str, Seen]:
        """Enter a scan of ``folder``; ``whole`` are names known to be complete. Returns what is known of each name."""
        before = self._folders.get(folder, {})
        after: dict[str, Seen] = {}
        for sight in sights:
            seen = before.get(sight.name)
            if seen is None or seen.ident != sight.ident:
                seen = Seen(sight.ident, sight.mark, sight.single, appeared=now, since=now)
            elif seen.mark == sight.mark:
                seen.scans += 1
            else:
                seen = Seen(sight.ident, sight.mark, sight.single, seen.appeared, since=now, held=seen.held)
            if sight.name in whole:
                seen.whole = True
            after[sight.name] = seen
        self._folders[folder] = after
        return after

    def keep(self, folders: Collection[str]) -> None:
        """Forget every folder that is not one of ``folders``."""
        for folder in self._folders.keys() - set(folders):
            del self._folders[folder]

    def forget_fits(self) -> None:
        """Let it be asked anew which solvers accept what: they are others now."""
        for folder in self._folders.values():
            for seen in folder.values():
                seen.fits = ...

    def put_off(self, folder: str, names: Iterable[str], until: float, why: str) -> None:
        """Claim nothing of ``names`` before ``until``; ``why`` in words."""
        for name in names:
            seen = self._folders.get(folder, {}).get(name)
            if seen is not None:
                seen.not_before, seen.held = until, why

    def closed(self, folder: str, name: str) -> None:
        """A writer closed it: a claim that was put off may be tried again."""
        seen = self._folders.get(folder, {}).get(name)
        if seen is not None:
            seen.not_before = -math.inf


def due(seen: Seen, settle: float) -> float:
    """When it will be settled if nothing more happens; infinite while a file of it has a second name."""
    if not seen.single:
        return math.inf
    return max(seen.not_before, seen.since if seen.whole else seen.since + settle)


def settled(seen: Seen, settle: float, now: float) -> bool:
    """Whether it is complete as far as can be seen from outside: the claim still asks for open writers."""
    return due(seen, settle) <= now


def quiet(seen: Seen, now: float) -> bool:
    """Whether it may be taken even where no lease can be had."""
    return seen.scans >= 2 and seen.since + QUIET_SECONDS <= now
