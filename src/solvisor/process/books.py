"""The books on all trees of a daemon, and whose a process is that lost its parent.

Rules: what the launcher and the callers of ``posix.py`` share with the reaper stands here, behind one lock. An orphan
hangs on the first live thread of its new parent (``find_alive_thread`` in the kernel's ``exit.c``), which is the main
one as long as this process lives; what a leader starts as its sibling (``CLONE_PARENT``) hangs where the leader does,
on the launcher. So these two threads' children are all that a tree can leave; those of others are other code's. A child
of the launcher is no orphan while a program is being started: before its exec it looks like ourselves. An orphan goes
with the tree whose cgroup, session, token or files it has. This module must not know how processes are signalled or
reaped.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable

from . import proc
from .cgroups import Cgroups
from .tree import Tree

if sys.platform == "win32":
    raise ImportError("solvisor.process.books describes processes of Linux; Windows needs its own")

CLUE_SECONDS = 0.1  # how long an orphan may hide its clues: it shows none while it changes its program


class Books:
    """Trees from the start of their leader until they are proven empty."""

    def __init__(self, cgroups: Cgroups | None, launcher_thread: int) -> None:
        self.lock = threading.RLock()
        self._cgroups = cgroups
        self._pid = os.getpid()
        self._launcher_thread = launcher_thread
        self._orphaned = proc.ThreadChildren(self._pid)
        self._launched = proc.ThreadChildren(launcher_thread)
        self._session = os.getsid(0)
        self._trees: dict[str, Tree] = {}  # by token, until proven empty
        self._leaders: dict[int, Tree] = {}  # by pid, until reaped
        self._sessions: dict[int, Tree] = {}  # by the number of the session, until proven empty
        self._by_pidfd: dict[int, Tree] = {}
        self._starting: tuple[str, int] | None = None  # the start under way: its token, its begin in ticks since boot
        self._seen: dict[tuple[int, int], tuple[float, Tree | None]] = {}  # orphans: since when, and whose if known

    def close(self) -> None:
        """Once no thread looks into them any more."""
        self._orphaned.close()
        self._launched.close()

    # Trees

    def start(self, token: str, begun: int) -> bool:
        """For the launcher: a program is being started from now on; not if the tree of this token lives already."""
        with self.lock:
            if token in self._trees:
                return False
            self._starting = token, begun
            return True

    def end_start(self) -> None:
        """It was started, and added, or not."""
        with self.lock:
            self._starting = None

    def add(self, tree: Tree) -> None:
        """Take in a tree whose leader was started."""
        with self.lock:
            self._trees[tree.spec.token] = self._leaders[tree.pid] = self._sessions[tree.pid] = tree
            self._by_pidfd[tree.pidfd] = tree

    def reaped(self, tree: Tree) -> None:
        """The number of its leader can be anybody's from now on."""
        with self.lock:
            del self._leaders[tree.pid]

    def remove(self, tree: Tree) -> None:
        """Strike out a tree that is proven empty."""
        with self.lock:
            del self._trees[tree.spec.token], self._by_pidfd[tree.pidfd]
            self._leaders.pop(tree.pid, None)
            if self._sessions.get(tree.pid) is tree:  # else the number serves a later leader already
                del self._sessions[tree.pid]

    def holds(self, tree: Tree) -> bool:
        """Whether it is not proven empty yet."""
        return self._trees.get(tree.spec.token) is tree

    def lives(self, token: str) -> bool:
        """Whether the tree of a token is being started, runs, or is not proven empty yet."""
        with self.lock:
            return token in self._trees or (self._starting is not None and self._starting[0] == token)

    def of_pidfd(self, pidfd: int) -> Tree:
        """The tree with this pidfd of its leader."""
        return self._by_pidfd[pidfd]

    def all(self) -> list[Tree]:
        """All trees that are not proven empty."""
        with self.lock:
            return list(self._trees.values())

    # Children

    def strangers(self) -> list[tuple[bool, proc.Process]]:
        """All children of this process with a session of their own; and whether each may be one that is just started.

        Raises ``OSError``.
        """
        found = proc.children(self._pid)
        with self.lock:
            starting = self._launcher_thread if self._starting is not None else None
        read = [(thread == starting, proc.read_process(pid)) for thread, pid in found]
        return [(new, p) for new, p in read if p is not None and p.parent == self._pid and p.session != self._session]

    def orphans(self) -> list[proc.Process]:
        """All children of this process that are neither leaders nor other code's. Raises ``OSError``."""
        unknown = self._orphaned.pids()
        if self._starting is None:
            beside = self._launched.pids()
            with self.lock:
                unknown += [pid for pid in beside if pid not in self._leaders] if self._starting is None else []
        if not unknown:
            return []
        processes = [process for pid in unknown if (process := proc.read_process(pid)) is not None]
        return [p for p in processes if p.parent == self._pid and p.session != self._session]

    def forget_all_but(self, orphans: Iterable[proc.Process]) -> None:
        """What is known of orphans is of use as long as there are these."""
        if self._seen:
            self._seen = {key: self._seen[key] for o in orphans if (key := (o.pid, o.start)) in self._seen}

    def trees_of(self, orphan: proc.Process) -> tuple[set[Tree | None], bool]:
        """The one tree that a clue leads to; without a clue, every tree that ran when the orphan was started.

        ``None`` among these stands for the attempt that is just being started and is not in the books yet. The second
        part of the answer is false while a clue may be hidden: the orphan may be changing its program, or dying.
        """
        key = orphan.pid, orphan.start
        since, tree = self._seen.get(key, (time.monotonic(), None))
        with self.lock:
            trees = dict(self._trees)
            tree = tree or self._sessions.get(orphan.session)
            starting = self._starting
        tree = tree or self._of_cgroup(orphan, trees.values()) or trees.get(proc.token(orphan.pid) or "")
        tree = tree or _only_user(trees.values(), proc.paths_in_use(orphan.pid))
        self._seen[key] = since, tree
        if tree is not None:
            return {tree}, True
        suspects: set[Tree | None] = {tree for tree in trees.values() if tree.begun <= orphan.start}
        if starting is not None and starting[1] <= orphan.start:
            suspects.add(None)
        return suspects, not orphan.exiting and time.monotonic() - since >= CLUE_SECONDS

    def _of_cgroup(self, orphan: proc.Process, trees: Iterable[Tree]) -> Tree | None:
        name = self._cgroups.name_of(orphan) if self._cgroups is not None else None
        return next((tree for tree in trees if name and tree.cgroup is not None and tree.cgroup.name == name), None)


def _only_user(trees: Iterable[Tree], paths: list[str]) -> Tree | None:
    users = [tree for tree in trees if tree.owns_one_of(paths)]
    return users[0] if len(users) == 1 else None
