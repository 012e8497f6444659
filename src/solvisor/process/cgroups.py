"""A control group for each process tree: who is in it is known exactly, it dies at one word, and it can be limited.

The theory. Whatever a process does with sessions, parents and environments, it and all that it starts stay in its
cgroup. So where we may make some (as root, or where systemd delegated its unit's to us), ``cgroup.kill`` ends a whole
tree, and ``populated 0``, or that it could be removed, proves that nothing of it is left. Below the cgroup that the
daemon was started in:

    solvisor-<home id>/daemon-<random>    the daemon; a cgroup with limits for others may hold no process itself
    solvisor-<home id>/t-<token>          one tree each

The compiled starter has a program born in its cgroup (decision 11). Elsewhere it is born in its parent's and moved
right after it was loaded (decision 8); what it started in between was born beside us, in a cgroup that holds nobody but
the daemon, so it is found there and moved as well. With cgroups of version 1, which only limit here, the launching
thread steps into the tree's for the time of the start, and nothing is born outside.

Rules: the names carry the home's id, so a later life finds all that is left of an earlier one wherever it lay, and may
kill it: none of that is a stranger's. Processes are moved or killed nowhere else. Formats: ``cgroup-v2.rst`` and
``cgroup-v1/`` of the kernel. This module must not know how a tree is judged to be over.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import sys
import time
from contextlib import suppress
from typing import Final, NamedTuple

from solvisor.interfaces import AttemptSpec

from . import proc
from .host import own_cgroup, read_text

if sys.platform == "win32":
    raise ImportError("solvisor.process.cgroups needs Linux; Windows has job objects")

CONTROLLERS: Final = ("memory", "pids")
STRAGGLER_LOOKS: Final = 1000
"""Looks for what a program started before it was moved; each moves all it finds, so only a fork bomb takes more."""
LEAVE_SECONDS: Final = 1.0
PAUSE_SECONDS: Final = 0.005

_GONE: Final = (FileNotFoundError, ProcessLookupError)
_LONGEST_NAME: Final = 100
_NOT_PLAIN: Final = re.compile(r"[^A-Za-z0-9._-]")


class Told(NamedTuple):
    """What the kernel noted of a tree. ``None``: it did not look.

    ``oom_kills`` are processes killed for want of memory, within the limit or in the machine; ``refused_forks`` are
    processes and threads it did not get because of its limit.
    """

    peak_bytes: int | None = None
    oom_kills: int = 0
    refused_forks: int = 0


_NOTHING_TOLD: Final = Told()


class Cgroup:
    """That of one tree. ``unified`` is its folder of version 2, ``limits`` its folder for each controller it has.

    ``bounded``: it may have only so many processes.
    """

    def __init__(
        self, name: str, daemon: str | None, unified: str | None, limits: dict[str, str], *, bounded: bool
    ) -> None:
        self.name = name
        self._bounded = bounded
        self.unified = unified
        self._daemon = daemon
        self._limits = limits
        self._old = [folder for folder in limits.values() if folder != unified]  # of version 1
        self.folders = [*self._old, unified] if unified is not None else self._old

    @property
    def measures(self) -> bool:
        """Whether its memory is counted."""
        return "memory" in self._limits

    def step_in(self) -> None:
        """What this thread starts until it steps out is born with the limits of version 1, if it has such."""
        for folder in self._old:
            _write(f"{folder}/tasks", "0")

    def step_out(self) -> None:
        """Go back to where this thread came from, however far it had stepped in."""
        for folder in self._old:
            _write(f"{os.path.dirname(os.path.dirname(folder))}/tasks", "0")

    def take_in(self, leader: int | None, begun: int) -> None:
        """Move a child of ours in, if there still is one, and what it has started by now, at or after ``begun``.

        That is in ticks since boot. Must be called by the thread that starts programs: no other one is being started
        meanwhile. Raises ``OSError``.
        """
        if self.unified is None or self._daemon is None:
            return
        if leader is not None:
            self._move(leader)
        ours, session = os.getpid(), os.getsid(0)
        for _ in range(STRAGGLER_LOOKS):
            beside = [proc.read_process(pid) for pid in _pids(self._daemon) if pid != ours]
            born = [p for p in beside if p is not None and p.session != session and p.start >= begun]
            if not born:
                return
            for process in born:
                self._move(process.pid)
        raise OSError(errno.EAGAIN, "it starts processes faster than they can be put into their cgroup")

    def _move(self, pid: int) -> None:
        with suppress(ProcessLookupError):  # it is over
            _write(f"{self.unified}/cgroup.procs", str(pid))

    def members(self) -> list[proc.Process]:
        """All that live in it now, as far as they can be held by a number: it may change while one looks."""
        found = [proc.read_process(pid) for pid in self._pids()]
        still = set(self._pids())  # a number read twice, with the same process behind it, is a member's
        return [p for p in found if p is not None and p.pid in still and proc.is_same(p)]

    def _pids(self) -> list[int]:
        return [pid for folder in self._all_folders() for pid in _pids(folder)]

    def _all_folders(self) -> list[str]:
        return [folder for folder, _, _ in os.walk(self.unified)] if self.unified else []

    def populated(self) -> bool:
        """Whether anything lives in it or below. Raises ``OSError`` if that cannot be seen."""
        with suppress(*_GONE):
            return self.unified is not None and is_populated(self.unified)
        return False

    def kill(self) -> None:
        """SIGKILL all in it, and all that it is starting, also with other users' rights."""
        if self.unified is not None:
            kill(self.unified)

    def leave(self) -> Told | None:
        """Remove it, and say what the kernel noted of it; ``None`` as long as anything lives in it.

        What is empty and cannot be removed is left to the next start of the home. Raises ``OSError`` if it cannot be
        seen whether it is empty.
        """
        if not self._limits and self.unified is not None:
            # To remove it is to prove that nothing lives in it; refused also where it is divided.
            with suppress(OSError):
                os.rmdir(self.unified)
                return _NOTHING_TOLD
        if self.populated():
            return None
        told = self._told()
        self.remove()
        return told

    def _told(self) -> Told:
        memory, pids = self._limits.get("memory"), self._limits.get("pids")
        refused = _figure(f"{pids}/pids.events", b"max") if pids is not None and self._bounded else 0
        if memory is None:
            return Told(refused_forks=refused)
        unified = memory == self.unified
        peak = _page(f"{memory}/{'memory.peak' if unified else 'memory.max_usage_in_bytes'}").strip()
        kills = _figure(f"{memory}/{'memory.events' if unified else 'memory.oom_control'}", b"oom_kill")
        return Told(int(peak) if peak.isdigit() else None, kills, refused)

    def discard(self) -> None:
        """Kill what is in it and remove it, after a start that failed; what cannot be is left to the next start."""
        with suppress(OSError):
            self.kill()
        self.remove()

    def remove(self) -> bool:
        """Remove what is empty; whether all of it is gone. What is not is left to the next start of the home."""
        return all([remove(folder) for folder in self.folders])  # noqa: C419  each of them


class Cgroups:
    """Those of one daemon: made by ``claim``, given back by ``release``. ``lacking`` says what cannot be limited.

    ``exact``: each tree has a cgroup of its own. ``limited`` are the controllers that a tree can be limited by.
    """

    def __init__(self, home_id: str) -> None:
        self._name = f"solvisor-{home_id}"
        self._came_from: str | None = None
        self._top: str | None = None  # of version 2
        self._daemon: str | None = None
        self._counted: set[str] = set()  # controllers of version 2
        self._switched_on: list[tuple[str, str]] = []  # folder and controller
        self._tops: dict[str, str] = {}  # of version 1, by controller

    @classmethod
    def claim(cls, home_id: str) -> Cgroups:
        """Make what can be made here, and move this process into a cgroup of its own. Blocks; never fails."""
        self = cls(home_id)
        with suppress(OSError):
            self._claim_unified()
        for controller in CONTROLLERS:
            folder = own_cgroup(controller)
            if controller not in self._counted and folder is not None and _may_divide(folder):
                top = f"{folder}/{self._name}"
                with suppress(OSError):
                    os.makedirs(top, exist_ok=True)
                    self._tops[controller] = top
        return self

    @property
    def exact(self) -> bool:
        """Whether each tree has a cgroup of its own, so that none of it can escape."""
        return self._daemon is not None

    @property
    def limited(self) -> frozenset[str]:
        """The controllers by which a tree can be limited: ``memory``, ``pids``."""
        return frozenset(self._counted | self._tops.keys())

    def _claim_unified(self) -> None:
        folder = own_cgroup("")
        if folder is None or not _may_divide(folder) or not os.path.exists(f"{folder}/cgroup.stat"):
            return
        top = f"{folder}/{self._name}"
        os.makedirs(top, exist_ok=True)
        daemon = f"{top}/daemon-{secrets.token_hex(4)}"
        os.mkdir(daemon)
        if not os.path.exists(f"{daemon}/cgroup.kill"):  # Linux 5.14
            os.rmdir(daemon)
            return
        _write(f"{daemon}/cgroup.procs", str(os.getpid()))
        self._came_from, self._top, self._daemon = folder, top, daemon
        for controller in CONTROLLERS:
            # Refused where other processes live beside us: then its trees cannot be limited.
            with suppress(OSError):
                for place in (folder, top):
                    if controller not in read_text(f"{place}/cgroup.subtree_control").split():
                        _write(f"{place}/cgroup.subtree_control", f"+{controller}")
                        self._switched_on.append((place, controller))
                self._counted.add(controller)

    def make(self, spec: AttemptSpec) -> Cgroup:
        """A new one for a tree, with the limits it is to have. Raises ``OSError`` if it cannot be made."""
        name = name_of(spec.token)
        wanted = {"memory": spec.memory_limit_bytes, "pids": spec.processes_limit}
        limits = {c: f"{top}/{name}" for c, top in self._tops.items() if wanted[c] is not None}
        unified = None
        if self._top is not None:
            unified = f"{self._top}/{name}"
            for controller in self._counted:
                limits[controller] = unified
        bounded = spec.processes_limit is not None
        cgroup = Cgroup(name, self._daemon, unified, limits, bounded=bounded)
        try:
            for folder in cgroup.folders:
                _make_folder(folder)
            for controller, folder in limits.items():
                limit = wanted[controller]
                if limit is not None:
                    _limit(folder, controller, limit, unified=folder == unified)
        except OSError:
            cgroup.remove()
            raise
        return cgroup

    def name_of(self, process: proc.Process) -> str | None:
        """The name of the tree's cgroup that a process lives in, or died in."""
        if self._top is None:
            return None
        found = re.search(rf"^0::.*/{self._name}/(t-[^/\n ]+)", read_text(f"/proc/{process.pid}/cgroup"), re.MULTILINE)
        return found[1] if found else None

    def kill_all(self) -> bool:
        """SIGKILL every tree; whether anything was left."""
        found = False
        for folder in _below(self._top):
            if folder != self._daemon and is_populated(folder):
                found = True
                kill(folder)
        return found

    def release(self) -> None:
        """Go back to where this process came from, and remove what is empty. Blocks."""
        for place, controller in reversed(self._switched_on):
            with suppress(OSError):  # something else makes use of it by now
                _write(f"{place}/cgroup.subtree_control", f"-{controller}")
        if self._came_from is not None:
            with suppress(OSError):
                _write(f"{self._came_from}/cgroup.procs", str(os.getpid()))
        deadline = time.monotonic() + LEAVE_SECONDS
        for top in filter(None, (self._top, *self._tops.values())):
            while not remove(top) and time.monotonic() < deadline:  # a thread of ours that is just ending stays behind
                time.sleep(PAUSE_SECONDS)


def can_be_made() -> bool:
    """Whether a daemon started here could have a cgroup for each tree."""
    folder = own_cgroup("")
    return folder is not None and _may_divide(folder)


def limits_here() -> frozenset[str]:
    """The controllers by which a daemon started here could limit its trees. Tries it; blocks."""
    tried = Cgroups.claim(f"probe-{secrets.token_hex(8)}")
    tried.release()
    return tried.limited


def left_behind(home_id: str) -> dict[str, str]:
    """What of a home lives, wherever it lies: folders of version 2, with their tokens.

    The cgroup of this process, and those around it, are passed over.
    """
    ours = own_cgroup("")
    left: dict[str, str] = {}
    for folder in (folder for top in _tops_of(home_id) for folder in _below(top)):
        with suppress(*_GONE):  # of version 1, or removed
            if is_populated(folder) and not (ours is not None and f"{ours}/".startswith(f"{folder}/")):
                left[folder] = os.path.basename(folder).removeprefix("t-")
    return left


def remove_left_behind(home_id: str) -> None:
    """Remove the empty cgroups of a home. Not while it starts anything: a new one is empty at first."""
    for top in _tops_of(home_id):
        remove(top)


def _tops_of(home_id: str) -> list[str]:
    """The cgroups of a home in every hierarchy that is mounted."""
    name, found = f"solvisor-{home_id}", []
    for controller in ("", *CONTROLLERS):
        folder = own_cgroup(controller)
        root = folder
        while root is not None and os.path.exists(f"{os.path.dirname(root)}/cgroup.procs"):
            root = os.path.dirname(root)
        for place, below, _ in os.walk(root or ""):
            if name in below:
                found.append(f"{place}/{name}")
                below.remove(name)
    return found


def name_of(token: str) -> str:
    """The name of a tree's cgroup: what is after the home's id in its token, if a folder can be called so."""
    own = token.partition("/")[2] or token
    plain = _NOT_PLAIN.sub("_", own)[:_LONGEST_NAME]
    return f"t-{plain}" if plain == own else f"t-{plain}.{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def is_populated(folder: str) -> bool:
    """Whether anything lives in a cgroup of version 2 or below it. Raises ``OSError``."""
    return b"populated 1" in proc.read_page(f"{folder}/cgroup.events")


def kill(folder: str) -> None:
    """SIGKILL all in a cgroup of version 2 and below it."""
    with suppress(*_GONE):
        _write(f"{folder}/cgroup.kill", "1")


def remove(folder: str) -> bool:
    """Remove an empty cgroup and the empty ones below it; whether it is gone."""
    try:
        os.rmdir(folder)
    except FileNotFoundError:
        return True
    except OSError:  # something lives in it, or it is divided
        below = _below(folder)
        if not below or not all([remove(place) for place in below]):  # noqa: C419  each of them
            return False
        with suppress(OSError):
            os.rmdir(folder)
        return not os.path.exists(folder)
    return True


def _limit(folder: str, controller: str, limit: int, *, unified: bool) -> None:
    """Set a limit. What goes over that of memory is killed at once, not moved to the swap first."""
    if controller == "pids":
        _write(f"{folder}/pids.max", str(limit))
    elif unified:
        _write(f"{folder}/memory.max", str(limit))
        with suppress(FileNotFoundError):
            _write(f"{folder}/memory.swap.max", "0")
        _write(f"{folder}/memory.oom.group", "1")
    else:
        _write(f"{folder}/memory.limit_in_bytes", str(limit))
        with suppress(FileNotFoundError):
            _write(f"{folder}/memory.memsw.limit_in_bytes", str(limit))


def _may_divide(folder: str) -> bool:
    """Whether the folder is really that of our cgroup, and we may make others below it."""
    try:
        return (
            os.getpid() in _pids(folder) and os.access(folder, os.W_OK) and os.access(f"{folder}/cgroup.procs", os.W_OK)
        )
    except OSError:
        return False


def _below(folder: str | None) -> list[str]:
    if folder is None:
        return []
    with suppress(*_GONE), os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    return []


def _pids(folder: str) -> list[int]:
    """Live processes of a cgroup; those of another namespace, which show as 0, are left out."""
    try:
        with open(f"{folder}/cgroup.procs") as file:
            return [pid for line in file if (pid := int(line))]
    except _GONE:
        return []


def _figure(path: str, name: bytes) -> int:
    """The number after a name; 0 where the kernel does not offer it."""
    words = _page(path).split()
    return int(words[words.index(name) + 1]) if name in words else 0


def _page(path: str) -> bytes:
    with suppress(OSError):
        return proc.read_page(path)
    return b""


def _make_folder(folder: str) -> None:
    # It may be there of a start that failed; the home's own may be gone with what earlier lives left.
    try:
        os.mkdir(folder)
    except (FileExistsError, FileNotFoundError):
        os.makedirs(folder, exist_ok=True)


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)
