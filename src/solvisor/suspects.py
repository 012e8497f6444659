"""Whom the start was taking up when a daemon ended, so that nobody ends every start.

Whoever is about to be taken up is written down first, and struck out once that went well: what is still written when
the next daemon starts is under suspicion. Those suspected are taken up alone, the least suspected first, and after
``TRIES_MAX`` ends in a row no more. Rules: a note need not survive a power cut, for that ends all daemons alike; one
that cannot be read or written suspects nobody. Everything here blocks. It must not know what is taken up, or how.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

TRIES_MAX = 3
"""A daemon that ended so often over the same thing leaves it aside."""

TOGETHER = 64
"""So many of those that nobody suspects are taken up at once."""

_decode_tries = msgspec.json.Decoder(dict[str, int]).decode


class Suspects:
    """What is written down at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tries: dict[str, int] = {}
        try:
            self._tries = _decode_tries(path.read_bytes())
        except msgspec.MsgspecError:  # a power cut left it so
            self._lessen()
        except OSError:
            pass

    def sorted_out(self, names: Iterable[str]) -> tuple[list[list[str]], list[str]]:
        """These names in portions to be taken up one after the other; and those that are not to be tried again."""
        known = sorted(names)
        there = {name: self._tries[name] for name in known if name in self._tries}
        if there != self._tries:
            self._tries = there
            self._write()
        free = [name for name in known if name not in self._tries]
        portions = [free[start : start + TOGETHER] for start in range(0, len(free), TOGETHER)]
        portions += [[name] for name in sorted(self._tries, key=self._tries.__getitem__) if not self._is_out(name)]
        return portions, [name for name in known if self._is_out(name)]

    def _is_out(self, name: str) -> bool:
        return self._tries.get(name, 0) >= TRIES_MAX

    def suspects(self, names: Sequence[str]) -> bool:
        """Whether a start may have ended because of one of these."""
        return any(name in self._tries for name in names)

    def begin(self, names: Sequence[str]) -> None:
        """These are about to be taken up; should the daemon end meanwhile, the next one suspects them."""
        self._tries |= {name: self._tries.get(name, 0) + 1 for name in names}
        self._write()

    def clear(self, names: Sequence[str]) -> None:
        """That went well."""
        for name in names:
            self._tries.pop(name, None)
        self._lessen()

    def forgive(self, names: Sequence[str]) -> None:
        """What ``begin`` charged these with is taken back: the machine was in trouble, and none of them to blame."""
        for name in names:
            tries = self._tries.pop(name, 0)
            if tries > 1:
                self._tries[name] = tries - 1
        self._lessen()

    def _lessen(self) -> None:
        """Write it down; where there is no room for that, rather suspect nobody than somebody for nothing."""
        if not self._write():
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def _write(self) -> bool:
        temporary = self._path.with_suffix(".new")
        try:
            if self._tries:
                temporary.write_bytes(msgspec.json.encode(self._tries))
                temporary.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            return False
        return True
