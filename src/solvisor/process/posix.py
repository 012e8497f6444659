"""Solver processes on Linux: start them, know when they end, and prove that nothing of them is left.

The theory. This process is a child subreaper: whoever in an attempt's tree loses its parent becomes our child. So once
the leader is dead and no child of ours belongs to the attempt, nothing of it is left anywhere, whatever it did with
sessions, groups and environments. Where it has a cgroup, that must be empty as well. Two threads do the work. The
*launcher* only starts programs; one that hangs on a dead disk holds up nothing else. The *reaper* does everything that
signals, reaps or looks at trees, so that none of it needs a lock: a number it sees cannot be reaped and given to a
stranger behind its back. The janitor's thread (``janitor.py``) looks and kills beside it, but reaps nobody.

Rules:
- After the leader's exit its group is killed *first*, while the unreaped leader still holds the number; then the
  leader is reaped. Where the tree has a cgroup, that is killed instead, if anything is left in it, and needs no number.
- Only named pids are reaped. Children in our own session belong to other code of this process (``aside.py``) and are
  left alone; nothing else in this process may start children with a session of their own.
- An orphan without any clue whose it is (``books.py``) is killed as soon as no attempt that could have started it is
  left running.

This module must not know event loops, jobs or the store. Its listeners are called on its threads and must not block.
One file, if a long one: what one thread may do relies on what the other never does.
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
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from solvisor import failpoint
from solvisor.errors import SpawnError
from solvisor.interfaces import AttemptSpec

from . import proc
from .books import Books
from .cgroups import Cgroup, Cgroups
from .earlier import kill, kill_earlier_life, survivors
from .host import boot_id, total_memory_bytes, usable_cpus
from .native import Starter
from .proc import become_subreaper
from .spawn import Leader, spawn
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
CLOSE_SECONDS = 2.0  # how long closing waits at most for what still runs to be gone


class Processes:
    """Owner of all solver processes of this daemon; at most one in a process.

    ``kill_wait_seconds`` is how long after SIGKILL a tree may take to be gone before it counts as unkillable.
    ``cgroups`` are those of the daemon, if it can have some. ``send_signal`` stands in for ``proc.send_signal`` where a
    test wants signals that do not work.
    """

    def __init__(
        self,
        *,
        kill_wait_seconds: float = 10.0,
        cgroups: Cgroups | None = None,
        send_signal: SendSignal = proc.send_signal,
    ) -> None:
        become_subreaper()
        self._starter = Starter()
        self._cgroups = cgroups
        self._kill_wait = kill_wait_seconds
        self._send_signal = send_signal
        self._pid = os.getpid()
        self._own_peak = 0

        self._requests: queue.SimpleQueue[tuple[Callable[[], AttemptSpec], Listener] | None] = queue.SimpleQueue()
        launcher = threading.Thread(target=self._launch_all, name="solvisor-launcher", daemon=True)
        launcher.start()
        self._books = Books(cgroups, launcher.native_id or 0)
        self._lock = self._books.lock  # guards this block, which the launcher and the callers share with the reaper
        self._arrivals: list[Tree] = []
        self._orders: list[tuple[Tree, bool]] = []
        self._sleeps_until = math.inf
        self._closing = False

        self._failure: Exception | None = None
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._bell, select.EPOLLIN)

        self._ending: set[Tree] = set()  # trees whose leader exited
        self._timers: list[tuple[float, int, Tree, Callable[[], None]]] = []
        self._timer_numbers = itertools.count()
        self._sweep_at = math.inf
        self._sweep_pause = SWEEP_SECONDS[0]
        self._tidied_at = 0.0

        reaper = threading.Thread(target=self._reap_all, name="solvisor-reaper", daemon=True)
        reaper.start()
        self._threads = launcher, reaper

    # Called from any thread

    def start(self, prepare: Callable[[], AttemptSpec], listener: Listener) -> None:
        """Start what ``prepare`` says; ``listener`` hears how it went. Returns at once.

        ``prepare`` is called on the launcher's thread, right before the start, and may stage files: short work only,
        every other start waits for it. It may raise ``SpawnError`` and ``OSError``: nothing is started then.
        """
        self._requests.put((prepare, listener))

    def stop(self, tree: Tree, *, now: bool) -> None:
        """SIGTERM, the attempt's grace, SIGKILL; with ``now`` SIGKILL at once. Returns at once; may be repeated."""
        with self._lock:
            self._orders.append((tree, now))
            self._ring()

    def lives(self, token: str) -> bool:
        """Whether the tree of a token is being started, runs, or is not proven empty yet."""
        return self._books.lives(token)

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
        for tree in self._books.all():
            self._forget(tree)
        self._epoll.close()
        os.close(self._bell)
        if not reaper.is_alive():
            self._books.close()

    def _kill_what_is_left(self, *, reap: bool) -> bool:
        """SIGKILL every child with a session of its own, and all below it; whether there was any.

        With or without a clue, each belongs to an attempt: also one whose program hangs while it is being loaded, and
        all that a reaper which ended by a defect left. ``reap`` only if no other thread does.
        """
        try:
            confined = self._cgroups is not None and self._cgroups.kill_all()
            left = self._books.strangers()
            alive = [process for _, process in left if process.state not in "ZX"]
            kill(alive + [below for process in alive for below in proc.descendants(process)], self._send_signal)
        except OSError:  # no file descriptor to look with or to hold them by
            return True
        for starting, process in left:
            if reap and process.state == "Z" and not starting:
                with suppress(ChildProcessError):
                    os.waitpid(process.pid, os.WNOHANG)
        return confined or bool(left)

    def _ring(self) -> None:
        """Wake the reaper; the caller holds the lock, which keeps the bell from being closed meanwhile."""
        if not self._closing:
            os.eventfd_write(self._bell, 1)

    # The launcher

    def _launch_all(self) -> None:
        while (request := self._requests.get()) is not None:
            prepare, listener = request
            try:
                self._launch(prepare, listener)
            except SpawnError as error:
                listener.refused(error)
            except Exception as error:  # noqa: BLE001  a defect must not end the launcher and leave the rest waiting
                listener.broken(error)
            del request, prepare, listener  # nothing of it is held while there is nothing to do

    def _launch(self, prepare: Callable[[], AttemptSpec], listener: Listener) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise SpawnError("spawn", "the attempt was not started: the daemon is closing")
        spec = _prepared(prepare)
        begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME) * _TICKS // 1_000_000_000
        if not self._books.start(spec.token, begun):
            raise SpawnError("spawn", f"attempt {spec.token} was not started: it runs already")
        try:
            tree = self._start(spec, listener, begun)
        finally:
            self._books.end_start()
        listener.started(tree)
        # Only now may its end be noticed, and once: a child that hangs before its exec may hold the pidfd open.
        self._epoll.modify(tree.pidfd, select.EPOLLIN | select.EPOLLONESHOT)
        with self._lock:
            self._arrivals.append(tree)
            # Mostly it is awake before the first sample is due anyway, and a start costs no wake-up of its own.
            if time.monotonic() + SAMPLE_SECONDS[0] < self._sleeps_until:
                self._ring()
            failure = self._failure
        if failure is not None:  # it may have come too late into the books to be told by the reaper
            listener.broken(failure)

    def _start(self, spec: AttemptSpec, listener: Listener, begun: int) -> Tree:
        """Start the leader in a cgroup of its own, if it can have one. If that fails, nothing is left of it."""
        cgroup: Cgroup | None = None
        leader: Leader | None = None
        try:
            if self._cgroups is not None:
                cgroup = self._cgroups.make(spec)
            born = time.monotonic()
            leader = spawn(spec, self._starter) if cgroup is None else self._start_in(cgroup, spec)
            failpoint.reach("attempt.spawned")
            return self._watch(leader, spec, listener, begun, born, cgroup)
        except Exception as error:
            if leader is not None:
                self._send_signal(leader.pid, signal.SIGKILL, group=True)
                with suppress(ChildProcessError):
                    os.waitpid(leader.pid, 0)
                os.close(leader.pidfd)
            if cgroup is not None:
                cgroup.discard()
            if not isinstance(error, OSError):
                raise
            where = f"{error.filename}: " if error.filename else ""
            program = spec.argv[0] if spec.argv else "it"
            raise SpawnError("spawn", f"{program} cannot be started and watched: {where}{error.strerror}") from error

    def _start_in(self, cgroup: Cgroup, spec: AttemptSpec) -> Leader:
        try:
            cgroup.step_in()
            return spawn(spec, self._starter, cgroup.unified)
        finally:
            cgroup.step_out()

    def _watch(
        self,
        leader: Leader,
        spec: AttemptSpec,
        listener: Listener,
        begun: int,
        born: float,
        cgroup: Cgroup | None,
    ) -> Tree:
        """Take a started leader into its cgroup and the books. Raises ``OSError`` if it cannot be watched."""
        if self._closing:
            raise OSError(errno.ECANCELED, "the daemon closed meanwhile")
        if cgroup is not None and not leader.inside:
            cgroup.take_in(leader.pid if leader.start is not None else None, begun)
        self._epoll.register(leader.pidfd, 0)
        tree = Tree(spec, listener, leader, begun=begun, born=born, cgroup=cgroup)
        self._books.add(tree)
        return tree

    # The reaper

    def _reap_all(self) -> None:
        try:
            while not self._closing:
                self._look(self._next_pause())
                if self._orders:
                    self._take_orders()
                now = time.monotonic()
                if self._timers and self._timers[0][0] <= now:
                    self._run_timers(now)
                if now >= self._sweep_at:
                    self._sweep()
        except Exception as error:  # noqa: BLE001  whatever it is: everyone who waits must hear of it
            with self._lock:
                self._failure = error
                waiting = self._books.all()
            for tree in waiting:
                tree.listener.broken(error)

    def _look(self, pause: float) -> None:
        """See which leaders exited; wait so many seconds for the first of them, or for the bell."""
        for fd, _ in self._epoll.poll(pause):
            if fd == self._bell:
                os.eventfd_read(fd)
            else:
                self._leader_exited(self._books.of_pidfd(fd))

    def _next_pause(self) -> float:
        with self._lock:
            arrivals, self._arrivals = self._arrivals, []
            for tree in arrivals:
                self._sample_after(tree, SAMPLE_SECONDS[0])
            while self._timers and self._is_over(self._timers[0][2]):
                heapq.heappop(self._timers)
            until = 0.0 if self._orders else min(self._sweep_at, self._timers[0][0] if self._timers else math.inf)
            self._sleeps_until = until
        return -1 if until == math.inf else max(0.0, until - time.monotonic())

    def _after(self, seconds: float, tree: Tree, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._timer_numbers), tree, action))

    def _run_timers(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[3]()

    def _take_orders(self) -> None:
        with self._lock:
            orders, self._orders = self._orders, []
        # What ended before its order ended by itself. The look before may be old by now; and it saw nothing at all if a
        # SIGSTOP outlasted its pause.
        self._look(0)
        for tree, now in orders:
            if now or tree.spec.grace_seconds <= 0:
                self._kill(tree)
            elif self._runs(tree) and not tree.stopping:
                tree.stopping = True
                # A stopped process takes its SIGTERM only once it goes on.
                self._signal_tree(tree, signal.SIGTERM, signal.SIGCONT)
                self._after(tree.spec.grace_seconds, tree, partial(self._kill, tree))

    # Running trees

    def _runs(self, tree: Tree) -> bool:
        return tree not in self._ending and not self._is_over(tree)

    def _is_over(self, tree: Tree) -> bool:
        return not self._books.holds(tree)

    def _sample_after(self, tree: Tree, pause: float) -> None:
        self._after(pause, tree, partial(self._sample, tree, pause))

    def _sample(self, tree: Tree, pause: float) -> None:
        """Look at the memory and the logs of a tree, and come back after twice the pause."""
        if not self._runs(tree):
            return
        grows_fast = False
        with suppress(OSError):  # no file descriptor to look with: the next sample will
            counted = tree.cgroup is not None and tree.cgroup.measures
            leader = proc.read_process(tree.pid) if not counted else None
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
            self._sweep_now()
        else:
            tree.stopping = True
            self._signal_tree(tree, signal.SIGKILL)
            self._after(self._kill_wait, tree, partial(self._give_up, tree))

    def _leader_exited(self, tree: Tree) -> None:
        tree.saw_exit()
        self._ending.add(tree)
        if tree.killed:
            self._reap_leader(tree)
        elif not tree.stopping:
            self._kill(tree)
        self._sweep_now()

    def _reap_leader(self, tree: Tree) -> None:
        if not tree.confined:
            self._signal_group(tree, signal.SIGKILL)
        pid, status, usage = os.wait4(tree.pid, os.WNOHANG)
        if not pid:  # a debugger or strace has it; the next sweep tries again
            return
        tree.status = status
        self._books.reaped(tree)
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
            orphans = self._books.orphans()
            self._books.forget_all_but(orphans)
            for orphan in orphans:
                trees, is_sure = self._books.trees_of(orphan)
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
            for tree in self._ending:
                # It may be over only with its leader reaped.
                if tree in held or (tree.populated if tree.status is None else not tree.left_cgroup()):
                    held.add(tree)
                    if not tree.has_mercy:  # all at once: one by one, those that start others all the time get away
                        self._kill_cgroup(tree)
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
        if self._ending or waits:
            now = time.monotonic()
            for tree in self._ending:
                if tree.kill_deadline <= now:
                    self._give_up(tree)
            self._sweep_at = 0.0 if again else now + self._sweep_pause
            hopeless = all(tree.given_up for tree in self._ending)
            self._sweep_pause = min(2 * self._sweep_pause, SWEEP_SECONDS[2 if hopeless else 1])
        else:
            self._sweep_at = math.inf

    def _conclude(self, tree: Tree) -> None:
        """The tree is proven empty, and its cgroup is left."""
        failpoint.reach("attempt.empty")
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
        self._books.remove(tree)
        os.close(tree.pidfd)

    def _reap_orphan(self, orphan: proc.Process, trees: set[Tree | None]) -> bool:
        pid, _, usage = os.wait4(orphan.pid, os.WNOHANG)
        tree = next(iter(trees)) if pid and len(trees) == 1 else None
        if tree is not None:
            tree.saw_usage(usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024)
        return pid != 0

    # Signals

    def _signal_tree(self, tree: Tree, *signums: int) -> None:
        """Signal the group, and all we can find of the tree outside it."""
        outside: list[proc.Process] = []
        with suppress(OSError):  # no file descriptor to look with: the group at least
            roots = [orphan for orphan in self._books.orphans() if self._books.trees_of(orphan)[0] == {tree}]
            leader = proc.read_process(tree.pid)
            outside = roots + [below for root in roots for below in proc.descendants(root)]
            outside += proc.descendants(leader) if leader is not None else []
            outside += tree.cgroup.members() if tree.cgroup is not None else []
        for signum in signums:
            if signum == signal.SIGKILL:
                self._kill_cgroup(tree)
            self._signal_group(tree, signum)
            for process in dict.fromkeys(outside):
                if process.group != tree.pid:
                    self._signal_process(process, signum)

    def _kill_cgroup(self, tree: Tree) -> None:
        if tree.cgroup is not None:
            with suppress(OSError):  # no file descriptor to do it with: the next sweep tries again
                tree.cgroup.kill()

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


def _prepared(prepare: Callable[[], AttemptSpec]) -> AttemptSpec:
    try:
        return prepare()
    except OSError as error:
        raise SpawnError("staging", f"its files could not be staged: {error}") from error
