"""The books on one attempt's process tree, and who hears of it.

Rules: a tree is changed by the reaper thread of ``posix.py`` alone; everybody else reads ``spec``, ``pid`` and
``pid_start`` and passes it back. This module must not know how processes are signalled or reaped.
"""

from __future__ import annotations

import math
import os
import sys
import time
from typing import Protocol

from solvisor.clock import now_us
from solvisor.errors import SpawnError
from solvisor.interfaces import AttemptSpec
from solvisor.model import ExitFacts, Usage

from .cgroups import Cgroup, Told
from .logcap import CappedLog
from .spawn import Leader

if sys.platform == "win32":
    raise ImportError("solvisor.process.tree describes processes of Linux; Windows needs its own")


class SendSignal(Protocol):
    """The shape of ``proc.send_signal``."""

    def __call__(self, target: int, signum: int, *, group: bool) -> None:
        """Signal the process of a pidfd, or the group of that number."""
        ...


class Listener(Protocol):
    """Who hears of one attempt. Called on this module's threads; ``started`` comes before all but ``refused``."""

    def started(self, tree: Tree) -> None:
        """The program was loaded and runs."""
        ...

    def refused(self, error: SpawnError) -> None:
        """It could not be started; nothing follows."""
        ...

    def exited(self, facts: ExitFacts) -> None:
        """The tree is proven empty, or ``unkillable``: then ``gone`` follows if it ends after all."""
        ...

    def gone(self) -> None:
        """What had been unkillable is gone."""
        ...

    def broken(self, error: BaseException) -> None:
        """A defect, before or after ``started``: nothing more will be heard, nothing more can be started."""
        ...


class Tree:
    """The process tree of one attempt. ``pid`` and ``pid_start`` name its leader; all else belongs to the reaper."""

    def __init__(
        self,
        spec: AttemptSpec,
        listener: Listener,
        leader: Leader,
        *,
        begun: int,
        born: float,
        cgroup: Cgroup | None,
    ) -> None:
        self.spec = spec
        self.pid = leader.pid
        self.pid_start = leader.start if leader.start is not None else begun
        self.listener = listener
        self.pidfd = leader.pidfd
        self.cgroup = cgroup  # until it is left
        self.told = Told()  # by the kernel, of its cgroup, once it is over
        self.begun = begun  # in ticks since boot; the leader started then or a little later
        self.logs = [CappedLog(path, spec.log_max_bytes) for path in {spec.stdout, spec.stderr}]
        self.status: int | None = None  # as wait4 gave it, once the leader is reaped
        self.exited_us = 0
        self._born = born  # on the monotonic clock: right before the start
        self._seconds: float | None = None
        self.stopping = False
        self.kill_deadline = math.inf  # set by the first SIGKILL
        self.given_up = False
        self.cpu_user = self.cpu_system = 0.0
        self.peak: tuple[int, str | None] = (0, None)

    @property
    def killed(self) -> bool:
        """SIGKILL was sent."""
        return self.kill_deadline < math.inf

    @property
    def has_mercy(self) -> bool:
        """What is left still has its grace. A shell dies of SIGTERM at once; its solver may be saving its state."""
        return self.stopping and not self.killed

    def saw_exit(self) -> None:
        """Its leader has ended just now."""
        self.exited_us = now_us()
        self._seconds = time.monotonic() - self._born

    def saw_memory(self, size: int, source: str) -> None:
        """Note how large one process of the tree was; of two equal figures the later, exact one counts."""
        if size and size >= self.peak[0]:
            self.peak = size, source

    def saw_usage(self, cpu_user: float, cpu_system: float, peak: int) -> None:
        """Add what a reaped process used, in seconds; ``peak`` is its largest memory in bytes, 0 if not known."""
        self.cpu_user += cpu_user
        self.cpu_system += cpu_system
        self.saw_memory(peak, "wait4")

    @property
    def confined(self) -> bool:
        """Whether none of it can be where its cgroup's end does not reach it."""
        return self.cgroup is not None and self.cgroup.unified is not None

    @property
    def populated(self) -> bool:
        """Whether its cgroup knows of something that lives. Raises ``OSError``."""
        return self.cgroup is not None and self.cgroup.populated()

    def left_cgroup(self) -> bool:
        """Note what the kernel knows of it and remove its cgroup; not as long as anything lives there.

        Raises ``OSError`` if that cannot be seen.
        """
        if self.cgroup is None:
            return True
        told = self.cgroup.leave()
        if told is None:
            return False
        self.cgroup, self.told = None, told
        if told.peak_bytes is not None:
            self.peak = told.peak_bytes, "cgroup"
        return True

    def owns_one_of(self, paths: list[str]) -> bool:
        """Whether one of these is in this attempt's folder or is one of its logs."""
        folder = os.path.join(os.path.realpath(self.spec.cwd), "")
        logs = {os.path.realpath(self.spec.stdout), os.path.realpath(self.spec.stderr)}
        return any(path in logs or os.path.join(path, "").startswith(folder) for path in paths)

    def finish_logs(self) -> None:
        """Cut oversized logs of a tree that is gone, then tell how it ended, whatever happened to the logs."""
        try:
            for log in self.logs:
                log.finish()
        finally:
            self.listener.exited(self.facts())

    def facts(self) -> ExitFacts:
        """How it ended, as far as it has ended."""
        reaped = self.status is not None
        code = os.waitstatus_to_exitcode(self.status) if self.status is not None and not self.given_up else None
        return ExitFacts(
            exit_code=code if code is not None and code >= 0 else None,
            signal=-code if code is not None and code < 0 else None,
            finished_us=self.exited_us or now_us(),
            usage=Usage(
                cpu_user_seconds=self.cpu_user if reaped else None,
                cpu_system_seconds=self.cpu_system if reaped else None,
                max_rss_bytes=self.peak[0] or None,
                max_rss_source=self.peak[1],
            ),
            stopped=self.stopping,
            unkillable=self.given_up,
            log_cut_bytes=sum([log.cut_bytes for log in self.logs]),
            oom_kills=self.told.oom_kills,
            refused_forks=self.told.refused_forks,
            seconds=self._seconds,
        )
