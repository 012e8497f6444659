"""Who a process is, and how to signal exactly that one.

Rules: a process is its pid *and* its start time, never the number alone. A single process is signalled only through a
pidfd that was open before its identity was read again. "Gone" and "may not look" are ``None``; every other failure
(such as no free file descriptor) raises ``OSError``, because "I could not look" must never be taken for "nothing is
there". This module must not know attempts or solvers.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import NamedTuple

from solvisor.errors import SolvisorError

if sys.platform == "win32":
    raise ImportError("solvisor.process.proc reads Linux's /proc and cannot be used on Windows")

TOKEN_VARIABLE = "SOLVISOR_ATTEMPT"  # noqa: S105  the name of a variable
WALK_LIMIT = 1024  # processes looked at in one walk through a tree: a fork bomb must not hold up the daemon
FILES_LIMIT = 1024  # open files looked at per process

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PF_EXITING = 0x4  # linux/sched.h
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_OUT_OF_SIGHT = (FileNotFoundError, ProcessLookupError, PermissionError)


def become_subreaper() -> None:
    """Make every orphan below this process its child. Once per process; its threads share it."""
    children = f"/proc/self/task/{threading.get_native_id()}/children"
    if not os.path.exists(children):
        raise SolvisorError(
            f"{children} is missing: Solvisor needs a kernel with CONFIG_PROC_CHILDREN and /proc mounted"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise SolvisorError(f"cannot adopt orphaned processes: {os.strerror(ctypes.get_errno())}")


class Process(NamedTuple):
    """One process as ``/proc/PID/stat`` shows it; ``start`` is in clock ticks since boot.

    ``exiting``: it has let go of its memory and files, or is about to, though it may not be a zombie yet.
    """

    pid: int
    state: str
    parent: int
    group: int
    session: int
    start: int
    exiting: bool


def read_process(pid: int) -> Process | None:
    """The process that has this number now, a zombie included; ``None`` if there is none."""
    try:
        stat = read_page(f"/proc/{pid}/stat")
    except _OUT_OF_SIGHT:
        return None
    # The program's name, in brackets, may itself hold blanks and brackets.
    state, parent, group, session, _, _, flags, *more = stat[stat.rindex(b")") + 2 :].split(None, 20)
    exiting = bool(int(flags) & _PF_EXITING)
    return Process(pid, state.decode(), int(parent), int(group), int(session), int(more[12]), exiting)


def is_same(process: Process) -> bool:
    """Whether this very process still exists, if only as a zombie."""
    now = read_process(process.pid)
    return now is not None and now.start == process.start


class ThreadChildren:
    """The children that hang on one thread of this process. Raises ``OSError`` if the kernel does not tell.

    Held open: a look costs one system call or two, and needs no free file descriptor.
    """

    def __init__(self, thread: int) -> None:
        self._fd = os.open(f"/proc/self/task/{thread}/children", os.O_RDONLY | os.O_CLOEXEC)

    def pids(self) -> list[int]:
        """What ``children`` says, of this thread alone; none of a thread that has ended."""
        data = b""
        while chunk := os.pread(self._fd, 65536, len(data)):
            data += chunk
        return [int(pid) for pid in data.split()]

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def children(pid: int) -> list[tuple[int, int]]:
    """The children of a process as pairs: the thread they hang on, and their pid.

    A child hangs on the thread that started it; an adopted orphan on the first live thread, the main one. The kernel
    may skip entries while children are being reaped, so who wants certainty about its own must not reap meanwhile.
    """
    found: list[tuple[int, int]] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except _OUT_OF_SIGHT:
        return found
    for thread in threads:
        listed = (_read(f"/proc/{pid}/task/{thread}/children") or b"").split()
        found += [(int(thread), int(child)) for child in listed]
    return found


def descendants(root: Process) -> list[Process]:
    """All processes below ``root``, itself not included; at most ``WALK_LIMIT``."""
    found: list[Process] = []
    frontier = [root]
    while frontier and len(found) < WALK_LIMIT:
        parent = frontier.pop()
        read = (read_process(pid) for _, pid in children(parent.pid))
        below = [child for child in read if child is not None and child.parent == parent.pid]
        # The parent may have ended and its number be another's by now: then so are these children.
        if below and is_same(parent):
            found += below
            frontier += below
    return found


def token(pid: int) -> str | None:
    """The attempt named in a process's environment. A process that is between two programs shows none."""
    prefix = f"{TOKEN_VARIABLE}=".encode()
    for entry in (_read(f"/proc/{pid}/environ") or b"").split(b"\0"):
        if entry.startswith(prefix):
            return os.fsdecode(entry[len(prefix) :])
    return None


def program(pid: int) -> str:
    """The name the kernel has for the program of a process, at most 15 bytes of it; empty if it is gone."""
    return os.fsdecode((_read(f"/proc/{pid}/comm") or b"").rstrip(b"\n"))


def paths_in_use(pid: int) -> list[str]:
    """The working folder and the open files of a process, as far as we may look; at most ``FILES_LIMIT``."""
    links = [f"/proc/{pid}/cwd"]
    with suppress(*_OUT_OF_SIGHT):
        links += [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")[:FILES_LIMIT]]
    paths = []
    for link in links:
        with suppress(*_OUT_OF_SIGHT):
            paths.append(os.readlink(link).removesuffix(" (deleted)"))
    return paths


def peak_rss_bytes(pid: int) -> int | None:
    """The most memory the program that runs now as ``pid`` ever held; ``None`` for a zombie."""
    status = _read(f"/proc/{pid}/status") or b""
    at = status.find(b"VmHWM:")
    return int(status[at + 6 :].split(None, 1)[0]) * 1024 if at >= 0 else None


def tree_rss_bytes(pid: int) -> int | None:
    """The memory that a process and all below it hold now, pages they share counted once for each."""
    root = read_process(pid)
    if root is None:
        return None
    total = 0
    for process in [root, *descendants(root)]:
        pages = (_read(f"/proc/{process.pid}/statm") or b"0 0").split()
        total += int(pages[1]) * _PAGE_BYTES
    return total


def send_signal(target: int, signum: int, *, group: bool) -> None:
    """Signal the process behind the pidfd ``target``, or the group of that number. The one place that signals.

    A group's number may be used only while its leader is a child of ours that nobody has reaped. What is gone already,
    or may not be signalled (a set-uid program), is passed over: the proof that the tree is empty tells.
    """
    with suppress(ProcessLookupError, PermissionError):
        if group:
            os.killpg(target, signum)
        else:
            signal.pidfd_send_signal(target, signum)


def open_process(process: Process) -> int | None:
    """A pidfd of exactly this process, or ``None`` if it is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # If the number is still this process's after the opening, it was so at the opening.
    if is_same(process):
        return pidfd
    os.close(pidfd)
    return None


def read_page(path: str) -> bytes:
    """A file of the kernel that is less than a page: one read gets it whole. Raises ``OSError``."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096)
    finally:
        os.close(fd)


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except _OUT_OF_SIGHT:
        return None
    try:
        data = b""
        while chunk := os.read(fd, 65536):
            data += chunk
        return data
    except _OUT_OF_SIGHT:
        return None
    finally:
        os.close(fd)


def open_beneath(folder: str) -> set[str]:
    """What processes have open or work in beneath ``folder``, as absolute paths; those of others only as root."""
    found: set[str] = set()
    prefix = folder.rstrip("/") + "/"
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(*_OUT_OF_SIGHT):
            links = [f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))]
            for link in links:
                with suppress(*_OUT_OF_SIGHT):
                    path = os.readlink(link)
                    if path.startswith(prefix):
                        found.add(path)
    return found
