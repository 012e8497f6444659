"""Solver processes on Linux: start them, know when they end, and prove that nothing of them is left.

The theory. This process is a child subreaper: whoever in an attempt's tree loses its parent becomes our child. So once
the leader is dead and no child of ours belongs to the attempt, nothing of it is left anywhere, whatever it did with
sessions, groups and environments. Two threads do the work. The *launcher* only starts programs; one that hangs on a
dead disk holds up nothing else. The *reaper* does everything that signals, reaps or looks at processes, so that none of
it needs a lock: a number it sees cannot be reaped and given to a stranger behind its back.

Rules:
- After the leader's exit its group is killed *first*, while the unreaped leader still holds the number; then the
  leader is reaped.
- Only named pids are reaped. Children in our own session belong to other code of this process and are left alone;
  nothing else in this process may start children with a session of their own.
- A child of the launcher is no orphan while a program is being started: before its exec it looks like ourselves.
- An orphan goes with the attempt whose session, token or files it has. One without any such clue is killed as soon as
  no attempt that could have started it is left running.

One file, if a long one: all these rules guard the same few numbers, and who signals, reaps or looks must see them all.

This module must not know event loops, jobs or the store. Its listeners are called on its threads and must not block.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import math
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from solvisor.clock import now_us
from solvisor.errors import SpawnError
from solvisor.interfaces import AttemptSpec

from . import proc
from .earlier import kill, kill_earlier_life, survivors
from .host import boot_id, total_memory_bytes, usable_cpus
from .proc import become_subreaper
from .spawn import spawn
from .tree import Listener, SendSignal, Tree

if sys.platform == "win32":
    raise ImportError("solvisor.process.posix needs Linux; Windows needs its own")

__all__ = [
    "Listener",
    "Processes",
    "SendSignal",
    "Tree",
    "become_subreaper",
    "boot_id",
    "kill_earlier_life",
    "survivors",
    "total_memory_bytes",
    "usable_cpus",
]

_TICKS = os.sysconf("SC_CLK_TCK")

SAMPLE_SECONDS = (0.005, 1.0)  # first pause between two looks at a running tree, and the longest
SWEEP_SECONDS = (0.001, 0.05, 1.0)  # first pause between two looks for leftovers, the longest, and after giving up
_PEAK_SLACK = 1 << 20  # the kernel counts pages per processor and sums them up only roughly
CLUE_SECONDS = 0.1  # how long an orphan may hide its clues: it shows none while it changes its program
CLOSE_SECONDS = 2.0  # how long closing waits at most for what still runs to be gone


class Processes:
    """Owner of all solver processes of this daemon; at most one in a process.

    ``kill_wait_seconds`` is how long after SIGKILL a tree may take to be gone before it counts as unkillable.
    ``send_signal`` stands in for ``proc.send_signal`` where a test wants signals that do not work.
    """

    def __init__(self, *, kill_wait_seconds: float = 10.0, send_signal: SendSignal = proc.send_signal) -> None:
        become_subreaper()
        self._kill_wait = kill_wait_seconds
        self._send_signal = send_signal
        self._pid = os.getpid()
        self._session = os.getsid(0)
        self._own_peak = 0

        self._lock = threading.Lock()  # guards this block, which the launcher and the callers share with the reaper
        self._trees: dict[str, Tree] = {}  # by token, until proven empty
        self._leaders: dict[int, Tree] = {}  # by pid, until reaped
        self._sessions: dict[int, Tree] = {}  # by the number of the session, until proven empty
        self._by_pidfd: dict[int, Tree] = {}
        self._launcher_thread = 0
        self._spawning: int | None = None  # when the start under way began, in ticks since boot
        self._arrivals: list[Tree] = []
        self._orders: list[tuple[Tree, bool]] = []
        self._sleeps_until = math.inf
        self._closing = False

        self._requests: queue.SimpleQueue[tuple[AttemptSpec, Listener] | None] = queue.SimpleQueue()
        self._failure: Exception | None = None
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)

        self._ending: set[Tree] = set()  # trees whose leader exited
        self._seen: dict[tuple[int, int], tuple[float, Tree | None]] = {}  # orphans: since when, and whose if known
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._sweep_at = math.inf
        self._sweep_pause = SWEEP_SECONDS[0]
        self._tidied_at = 0.0

        self._threads = [
            threading.Thread(target=self._launch_all, name="solvisor-launcher", daemon=True),
            threading.Thread(target=self._reap_all, name="solvisor-reaper", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # Called from any thread

    def start(self, spec: AttemptSpec, listener: Listener) -> None:
        """Start an attempt; ``listener`` hears how it went. Returns at once."""
        self._requests.put((spec, listener))

    def stop(self, tree: Tree, *, now: bool) -> None:
        """SIGTERM, the attempt's grace, SIGKILL; with ``now`` SIGKILL at once. Returns at once; may be repeated."""
        with self._lock:
            self._orders.append((tree, now))
            self._ring()

    def close(self) -> None:
        """SIGKILL all that still runs, wait a bounded time for it to be gone, and end both threads.

        What would not die is left to the next start of the home. Blocks: call it in a thread.
        """
        with self._lock:
            if self._closing:
                return
            self._ring()
            self._closing = True
        self._requests.put(None)
        launcher, reaper = self._threads
        deadline = time.monotonic() + min(self._kill_wait, CLOSE_SECONDS)
        reaper.join(CLOSE_SECONDS)
        while True:
            # What the launcher started hangs on its thread, and moves to another when that ends: only a look that
            # began afterwards sees all.
            settled = not launcher.is_alive()
            if not self._kill_what_is_left(reap=not reaper.is_alive()) and settled:
                break
            if time.monotonic() >= deadline:
                break
            time.sleep(SWEEP_SECONDS[0])
        for tree in list(self._trees.values()):
            self._forget(tree)
        self._epoll.close()
        os.close(self._bell)

    def _kill_what_is_left(self, *, reap: bool) -> bool:
        """SIGKILL every child with a session of its own, and all below it; whether there was any.

        With or without a clue, each belongs to an attempt: also one whose program hangs while it is being loaded, and
        all that a reaper which ended by a defect left. ``reap`` only if no other thread does.
        """
        try:
            found = proc.children(self._pid)
            with self._lock:
                starting = self._launcher_thread if self._spawning is not None else None
            read = [(thread, proc.read_process(pid)) for thread, pid in found]
            left = [(t, p) for t, p in read if p is not None and p.parent == self._pid and p.session != self._session]
            alive = [process for _, process in left if process.state not in "ZX"]
            kill(alive + [below for process in alive for below in proc.descendants(process)], self._send_signal)
        except OSError:  # no file descriptor to look with or to hold them by
            return True
        for thread, process in left:
            if reap and process.state == "Z" and thread != starting:
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        return bool(left)

    def _ring(self) -> None:
        """Wake the reaper; the caller holds the lock, which keeps the bell from being closed meanwhile."""
        if not self._closing:
            os.eventfd_write(self._bell, 1)

    # The launcher

    def _launch_all(self) -> None:
        self._launcher_thread = threading.get_native_id()
        while (request := self._requests.get()) is not None:
            spec, listener = request
            try:
                self._launch(spec, listener)
            except SpawnError as error:
                listener.refused(error)
            except Exception as error:  # noqa: BLE001  a defect must not end the launcher and leave the rest waiting
                listener.broken(error)

    def _launch(self, spec: AttemptSpec, listener: Listener) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing or spec.token in self._trees:
            why = "the daemon is closing" if self._closing else "it runs already"
            raise SpawnError("spawn", f"attempt {spec.token} was not started: {why}")
        begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS // 1_000_000_000
        with self._lock:
            self._spawning = begun
        try:
            popen = spawn(spec)
            tree = self._watch(popen, spec, listener, begun)
        finally:
            with self._lock:
                self._spawning = None
        listener.started(tree)
        self._epoll.modify(tree.pidfd, select.EPOLLIN)  # only now may its end be noticed
        with self._lock:
            self._arrivals.append(tree)
            # Mostly it is awake before the first sample is due anyway, and a start costs no wake-up of its own.
            if time.monotonic() + SAMPLE_SECONDS[0] < self._sleeps_until:
                self._ring()
            failure = self._failure
        if failure is not None:  # it may have come too late into the books to be told by the reaper
            listener.broken(failure)

    def _watch(self, popen: subprocess.Popen[bytes], spec: AttemptSpec, listener: Listener, begun: int) -> Tree:
        """Take a started leader into the books; a process that cannot be watched is ended."""
        try:
            if self._closing:
                raise OSError(errno.ECANCELED, "the daemon closed meanwhile")
            leader = proc.read_process(popen.pid)
            pidfd = os.pidfd_open(popen.pid)
            try:
                self._epoll.register(pidfd, 0)
            except OSError:
                os.close(pidfd)
                raise
        except Exception as error:
            self._send_signal(popen.pid, signal.SIGKILL, group=True)
            popen.wait()
            if not isinstance(error, OSError):
                raise
            raise SpawnError("spawn", f"{spec.argv[0]} was started but cannot be watched: {error.strerror}") from error
        tree = Tree(spec, listener, popen, pidfd, leader.start if leader is not None else begun, begun)
        with self._lock:
            self._trees[spec.token] = self._leaders[tree.pid] = self._sessions[tree.pid] = tree
            self._by_pidfd[pidfd] = tree
        return tree

    # The reaper

    def _reap_all(self) -> None:
        try:
            while not self._closing:
                for fd, _ in self._epoll.poll(self._next_pause()):
                    if fd == self._bell:
                        os.eventfd_read(fd)
                    else:
                        self._leader_exited(self._by_pidfd[fd])
                self._take_orders()
                self._run_timers()
                if time.monotonic() >= self._sweep_at:
                    self._sweep()
        except Exception as error:  # noqa: BLE001  whatever it is: everyone who waits must hear of it
            with self._lock:
                self._failure = error
                waiting = list(self._trees.values())
            for tree in waiting:
                tree.listener.broken(error)

    def _next_pause(self) -> float:
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
            for tree in arrivals:
                self._sample_after(tree, SAMPLE_SECONDS[0])
            until = 0.0 if self._orders else min(self._sweep_at, self._timers[0][0] if self._timers else math.inf)
            self._sleeps_until = until
        return -1 if until == math.inf else max(0.0, until - time.monotonic())

    def _after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), action))

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()

    def _take_orders(self) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        for tree, now in orders:
            if now or tree.spec.grace_seconds <= 0:
                self._kill(tree)
            elif self._runs(tree) and not tree.stopping:
                tree.stopping = True
                # A stopped process takes its SIGTERM only once it goes on.
                self._signal_tree(tree, signal.SIGTERM, signal.SIGCONT)
                self._after(tree.spec.grace_seconds, partial(self._kill, tree))

    # Running trees

    def _runs(self, tree: Tree) -> bool:
        return tree not in self._ending and not self._is_over(tree)

    def _is_over(self, tree: Tree) -> bool:
        return self._trees.get(tree.spec.token) is not tree

    def _sample_after(self, tree: Tree, pause: float) -> None:
        self._after(pause, partial(self._sample, tree, pause))

    def _sample(self, tree: Tree, pause: float) -> None:
        """Look at the memory and the logs of a tree, and come back after twice the pause."""
        if not self._runs(tree):
            return
        grows_fast = False
        with suppress(OSError):  # no file descriptor to look with: the next sample will
            leader = proc.read_process(tree.pid)
            for process in [leader, *proc.descendants(leader)] if leader is not None else []:
                tree.saw_memory(proc.peak_rss_bytes(process.pid) or 0, "sampled")
            grows_fast = sum(log.trim() for log in tree.logs) > 0
        self._sample_after(tree, SAMPLE_SECONDS[0] if grows_fast else min(2 * pause, SAMPLE_SECONDS[1]))
        now = time.monotonic()
        if now - self._tidied_at >= SAMPLE_SECONDS[1]:
            self._tidied_at = now
            self._sweep_at = min(self._sweep_at, now)  # reaps the orphans that a long-running tree makes

    # Ending trees

    def _kill(self, tree: Tree) -> None:
        """SIGKILL all that is known of the tree, once; the sweeps get the rest."""
        if tree.killed or self._is_over(tree):
            return
        tree.kill_deadline = time.monotonic() + self._kill_wait
        if tree in self._ending:
            self._reap_leader(tree)
        else:
            tree.stopping = True
            self._signal_tree(tree, signal.SIGKILL)
            self._after(self._kill_wait, partial(self._give_up, tree))

    def _leader_exited(self, tree: Tree) -> None:
        self._epoll.unregister(tree.pidfd)
        tree.exited_us = now_us()
        self._ending.add(tree)
        if tree.killed:
            self._reap_leader(tree)
        elif not tree.stopping:
            self._kill(tree)
        self._sweep_now()

    def _reap_leader(self, tree: Tree) -> None:
        self._signal_group(tree, signal.SIGKILL)
        pid, status, usage = os.wait4(tree.pid, os.WNOHANG)
        if not pid:  # a debugger or strace has it; the next sweep tries again
            return
        tree.status = status
        tree.popen.returncode = os.waitstatus_to_exitcode(status)
        with self._lock:
            del self._leaders[tree.pid]
        # A child starts with the peak of its parent's memory as its own; only what lies above that is its own.
        size = usage.ru_maxrss * 1024
        if size > self._own_peak:
            with suppress(OSError):
                peak = proc.peak_rss_bytes(self._pid) or 0
                self._own_peak = peak + peak // 16 + _PEAK_SLACK
        tree.saw_usage(usage.ru_utime, usage.ru_stime, size if size > self._own_peak else 0)

    def _sweep_now(self) -> None:
        self._sweep_at = 0.0
        self._sweep_pause = SWEEP_SECONDS[0]

    def _sweep(self) -> None:
        """Look once at all orphans: reap, kill, and conclude which ending trees are empty."""
        again = False
        waits = False
        held: set[Tree | None] = set()  # ending trees of which something is left
        try:
            orphans = self._orphans()
            self._seen = {key: self._seen[key] for o in orphans if (key := (o.pid, o.start)) in self._seen}
            for orphan in orphans:
                trees, is_sure = self._trees_of(orphan)
                if orphan.state == "Z":
                    # What it left became ours before it turned into a zombie, but maybe after we had looked.
                    held |= trees
                    again |= self._reap_orphan(orphan, trees)
                elif trees <= self._ending:
                    held |= trees
                    if not any(tree.has_mercy for tree in self._ending & trees):
                        self._signal_process(orphan, signal.SIGKILL)
                else:
                    waits |= None in trees
                    held |= set() if is_sure else trees
        except OSError:  # no file descriptor or memory to look with: nothing is proven
            held.update(self._ending)
        for tree in self._ending - held:
            if tree.status is not None:
                self._conclude(tree)
            elif tree.killed:
                self._reap_leader(tree)
            else:
                self._kill(tree)  # its grace was for what is gone now
                again = True
        now = time.monotonic()
        for tree in self._ending:
            if tree.kill_deadline <= now:
                self._give_up(tree)
        if self._ending or waits:
            self._sweep_at = 0.0 if again else now + self._sweep_pause
            hopeless = all(tree.given_up for tree in self._ending)
            self._sweep_pause = min(2 * self._sweep_pause, SWEEP_SECONDS[2 if hopeless else 1])
        else:
            self._sweep_at = math.inf

    def _conclude(self, tree: Tree) -> None:
        """The tree is proven empty."""
        self._forget(tree)
        if tree.given_up:
            tree.listener.gone()
        elif any(log.needs_finish() for log in tree.logs):
            # Away from here: many megabytes may have to be copied.
            try:
                threading.Thread(target=tree.finish_logs, name="solvisor-logs", daemon=True).start()
            except RuntimeError:  # no more threads: its log stays as it is
                tree.listener.exited(tree.facts())
        else:
            tree.listener.exited(tree.facts())

    def _give_up(self, tree: Tree) -> None:
        if not tree.given_up and not self._is_over(tree):
            tree.given_up = True
            tree.listener.exited(tree.facts())

    def _forget(self, tree: Tree) -> None:
        self._ending.discard(tree)
        with self._lock:
            del self._trees[tree.spec.token], self._by_pidfd[tree.pidfd]
            self._leaders.pop(tree.pid, None)
            if self._sessions.get(tree.pid) is tree:  # else the number serves a later leader already
                del self._sessions[tree.pid]
        os.close(tree.pidfd)
        if tree.popen.returncode is None:
            tree.popen.returncode = 0  # left alone on purpose: the next Popen must not reap it, nor this one complain

    def _reap_orphan(self, orphan: proc.Process, trees: set[Tree | None]) -> bool:
        pid, _, usage = os.wait4(orphan.pid, os.WNOHANG)
        tree = next(iter(trees)) if pid and len(trees) == 1 else None
        if tree is not None:
            tree.saw_usage(usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)
        return pid != 0

    # Whose an orphan is

    def _orphans(self) -> list[proc.Process]:
        """All children of this process that are neither leaders nor other code's."""
        found = proc.children(self._pid)
        with self._lock:
            starting = self._launcher_thread if self._spawning is not None else None
            unknown = [pid for thread, pid in found if pid not in self._leaders and thread != starting]
        processes = [process for pid in unknown if (process := proc.read_process(pid)) is not None]
        return [p for p in processes if p.parent == self._pid and p.session != self._session]

    def _trees_of(self, orphan: proc.Process) -> tuple[set[Tree | None], bool]:
        """The one tree that a clue leads to; without a clue, every tree that ran when the orphan was started.

        ``None`` among these stands for the attempt that is just being started and is not in the books yet. The second
        part of the answer is false while a clue may be hidden: the orphan may be changing its program, or dying.
        """
        key = orphan.pid, orphan.start
        since, tree = self._seen.get(key, (time.monotonic(), None))
        with self._lock:
            trees = dict(self._trees)
            tree = tree or self._sessions.get(orphan.session)
            spawning = self._spawning
        tree = tree or trees.get(proc.token(orphan.pid) or "") or _only_user(trees, proc.paths_in_use(orphan.pid))
        self._seen[key] = since, tree
        if tree is not None:
            return {tree}, True
        suspects: set[Tree | None] = {tree for tree in trees.values() if tree.begun <= orphan.start}
        if spawning is not None and spawning <= orphan.start:
            suspects.add(None)
        return suspects, not orphan.exiting and time.monotonic() - since >= CLUE_SECONDS

    # Signals

    def _signal_tree(self, tree: Tree, *signums: int) -> None:
        """Signal the group, and all we can find of the tree outside it."""
        outside: list[proc.Process] = []
        with suppress(OSError):  # no file descriptor to look with: the group at least
            roots = [orphan for orphan in self._orphans() if self._trees_of(orphan)[0] == {tree}]
            leader = proc.read_process(tree.pid)
            outside = roots + [below for root in roots for below in proc.descendants(root)]
            outside += proc.descendants(leader) if leader is not None else []
        for signum in signums:
            self._signal_group(tree, signum)
            for process in outside:
                if process.group != tree.pid:
                    self._signal_process(process, signum)

    def _signal_group(self, tree: Tree, signum: int) -> None:
        try:
            os.waitid(os.P_PIDFD, tree.pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError as error:
            raise RuntimeError(f"process {tree.pid} was reaped by other code, its group may be a stranger's") from error
        self._send_signal(tree.pid, signum, group=True)

    def _signal_process(self, process: proc.Process, signum: int) -> None:
        with suppress(OSError):  # no file descriptor to hold it by: it will be found again
            pidfd = proc.open_process(process)
            if pidfd is not None:
                try:
                    self._send_signal(pidfd, signum, group=False)
                finally:
                    os.close(pidfd)


def _only_user(trees: dict[str, Tree], paths: list[str]) -> Tree | None:
    users = [tree for tree in trees.values() if tree.owns_one_of(paths)]
    return users[0] if len(users) == 1 else None
