"""Named moments at which a test may end this process: every step of the disk order, and of taking up an earlier life.

Where nothing is armed, which is everywhere but in the crash sweeps, passing a point is one comparison. Rules: nothing
in the program arms a point, no configuration, environment or request does; only a program that imports this module
(``tests/crash/zygote.py``) can. A point's name is a literal, and occurs once in the code: so the sweeps find them all
by reading it. This module must not know what happens at a point.
"""

from __future__ import annotations

from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def reach(name: str) -> None:
    """The step called ``name`` is done, and the next one is not begun. Any thread may call it."""
    if _hook is not None:
        _hook(name)


def arm(hook: Callable[[str], None]) -> None:
    """Have ``hook`` called, on the thread that comes by, with the name of every point from now on."""
    global _hook
    _hook = hook
