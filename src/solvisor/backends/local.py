"""The backend of this machine: the engine's view of ``process/posix.py``.

Rules: only a bridge. What the process threads tell is handed to the event loop here, and nothing is decided; whoever
cancels a wait leaves the processes as they are and may wait again. This module must not know jobs.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self

import anyio
import structlog
from anyio import to_thread

from solvisor.errors import SolvisorError, SpawnError
from solvisor.hand import tell
from solvisor.interfaces import AttemptSpec, Handle, Watcher
from solvisor.model import ExitFacts
from solvisor.names import printable

if sys.platform == "win32":

    class LocalBackend:
        """Not there yet on Windows."""

        escaped = 0
        confines = False
        limited: frozenset[str] = frozenset()

        def __init__(self, home_id: str | None = None) -> None:  # noqa: ARG002  the same for both
            raise SolvisorError("this release runs solvers on Linux only; on Windows it cannot start them yet")

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

        def know_unkillable(self, tokens: Collection[str]) -> None:
            """Never reached."""

        async def launch(self, prepare: Callable[[], AttemptSpec]) -> Handle:
            """Never reached."""
            raise NotImplementedError

        def start(self, prepare: Callable[[], AttemptSpec], watcher: Watcher) -> None:
            """Never reached."""
            raise NotImplementedError

else:
    from solvisor.process.cgroups import Cgroups
    from solvisor.process.janitor import PATROL_SECONDS, Escaped, Janitor
    from solvisor.process.posix import Processes, Tree

    _DEFECT = "process supervision ended by a defect; restart the daemon"

    STARTED_SECONDS = 0.02
    """How long the loop may not know that a program was started."""

    log = structlog.get_logger()

    class News:
        """What the process threads tell the event loop, in its order. Each thread wakes the loop at once; but that a
        program was started, with which nobody has anything to do yet, is told with what comes next or a moment later.
        """

        def __init__(self) -> None:
            self._loop = asyncio.get_running_loop()
            self._told: deque[tuple[LocalHandle, Callable[[], None]]] = deque()
            self._starting: set[LocalHandle] = set()
            self._timer: asyncio.TimerHandle | None = None

        # On the loop

        def expect(self, handle: LocalHandle) -> None:
            """A program is to be started, of which nobody needs to hear at once."""
            self._starting.add(handle)
            if self._timer is None:
                self._timer = self._loop.call_later(STARTED_SECONDS, self._look)

        def _look(self) -> None:
            self._timer = None
            self._read()
            if self._starting and self._timer is None:
                self._timer = self._loop.call_later(STARTED_SECONDS, self._look)

        def _read(self) -> None:
            try:
                while self._told:
                    handle, news = self._told.popleft()
                    self._starting.discard(handle)
                    handle.hear(news)
            finally:
                if self._told:  # one of them met a defect
                    self._loop.call_soon(self._read)

        # On the process threads

        def tell(self, handle: LocalHandle, news: Callable[[], None], *, at_once: bool) -> bool:
            """Have ``handle`` hear this; whether anybody is left to."""
            self._told.append((handle, news))
            return tell(self._loop, self._read) if at_once else not self._loop.is_closed()

    class LocalHandle:
        """A process tree of this machine; made by ``LocalBackend``. ``watcher`` hears of it, too."""

        def __init__(self, processes: Processes, news: News, watcher: Watcher | None = None) -> None:
            self._processes = processes
            self._news = news
            self._watcher = watcher
            self._launch: asyncio.Future[Tree] = asyncio.get_running_loop().create_future()
            self._facts: ExitFacts | None = None
            self._defect: BaseException | None = None
            self._over = asyncio.Event()
            self._gone: asyncio.Event | None = None  # made by an unkillable exit

        async def launched(self) -> None:
            """Return once the program was loaded. If cancelled, no process is left behind.

            Raises ``SpawnError``, and ``RuntimeError`` if a defect ended the supervision of processes.
            """
            try:
                await self._launch
            except asyncio.CancelledError:
                if not self._launch.cancelled() and self._launch.exception() is None:  # it was started just before
                    self.stop(now=True)
                raise

        # Handle

        @property
        def pid(self) -> int:
            """Process id of the leader, also the number of its group and session."""
            return self._launch.result().pid

        @property
        def pid_start(self) -> int | None:
            """Start time of the leader in clock ticks since boot."""
            return self._launch.result().pid_start

        async def wait(self) -> ExitFacts:
            """Return once the tree is proven empty, or would not die. May be cancelled and called again."""
            await self._over.wait()
            if self._facts is None:
                raise RuntimeError(_DEFECT) from self._defect
            return self._facts

        def stop(self, *, now: bool = False) -> None:
            """SIGTERM, grace, SIGKILL; with ``now`` SIGKILL at once, also while the polite way is under way."""
            self._processes.stop(self._launch.result(), now=now)

        async def wait_gone(self) -> None:
            """After an ``unkillable`` exit: return when the last process is gone after all."""
            await self._over.wait()
            if self._gone is not None:
                await self._gone.wait()

        # Listener, on the process threads

        def started(self, tree: Tree) -> None:
            """Hand over a loaded program."""
            if not self._tell(lambda: self._on_started(tree), at_once=self._watcher is None):
                self._processes.stop(tree, now=True)

        def refused(self, error: SpawnError) -> None:
            """Hand over a refusal."""
            self._tell(lambda: self._on_refused(error))

        def exited(self, facts: ExitFacts) -> None:
            """Hand over how it ended."""
            self._tell(lambda: self._on_exited(facts))

        def gone(self) -> None:
            """Hand over that nothing is left."""
            self._tell(self._on_gone)

        def broken(self, error: BaseException) -> None:
            """Hand over a defect to whoever launches or waits."""
            self._tell(lambda: self._on_broken(error))

        def _tell(self, news: Callable[[], None], *, at_once: bool = True) -> bool:
            return self._news.tell(self, news, at_once=at_once)

        # On the loop

        def hear(self, news: Callable[[], None]) -> None:
            """What its threads told."""
            try:
                news()
            except Exception as error:
                if self._watcher is None:
                    raise
                self._watcher.broken(error)  # the loop would only log it, and the watcher wait for ever

        def _on_started(self, tree: Tree) -> None:
            if self._launch.done():  # cancelled or broken
                self._processes.stop(tree, now=True)
            else:
                self._launch.set_result(tree)
                if self._watcher is not None:
                    self._watcher.started(self)

        def _on_refused(self, error: SpawnError) -> None:
            if self._watcher is not None:
                self._watcher.refused(error)
            elif not self._launch.cancelled():
                self._launch.set_exception(error)

        def _on_exited(self, facts: ExitFacts) -> None:
            self._facts = facts
            if facts.unkillable:
                self._gone = asyncio.Event()
            self._over.set()
            if self._watcher is not None:
                self._watcher.exited(facts)

        def _on_gone(self) -> None:
            if self._gone is not None:
                self._gone.set()
                if self._watcher is not None:
                    self._watcher.gone()

        def _on_broken(self, error: BaseException) -> None:
            defect = RuntimeError(_DEFECT)
            defect.__cause__ = self._defect = error
            if self._watcher is not None:
                self._watcher.broken(defect)
                return
            if not self._launch.done():
                self._launch.set_exception(defect)
            self._over.set()
            if self._gone is not None:
                self._gone.set()

    class LocalBackend:
        """Runs solvers as child processes of the daemon: ``async with LocalBackend() as backend``.

        For the home ``home_id`` each tree has a cgroup of its own where that can be had, and a janitor looks
        every ``patrol_seconds`` for what escaped nevertheless; without a home there is neither. ``escaped`` counts what
        it found.
        ``kill_wait_seconds`` is how long after SIGKILL a tree may take before it counts as unkillable. Leaving the
        context kills whatever still runs; only what would not die is left to the next start of the home.
        """

        def __init__(
            self,
            home_id: str | None = None,
            *,
            kill_wait_seconds: float = 10.0,
            patrol_seconds: float = PATROL_SECONDS,
        ) -> None:
            self.escaped = 0
            self._home_id = home_id
            self._kill_wait_seconds = kill_wait_seconds
            self._patrol_seconds = patrol_seconds
            self._janitor: Janitor | None = None
            self._cgroups: Cgroups | None = None
            self._processes: Processes | None = None
            self._news: News

        async def __aenter__(self) -> Self:
            if self._home_id is not None:
                self._cgroups = await to_thread.run_sync(Cgroups.claim, self._home_id)
            self._news = News()
            self._processes = Processes(kill_wait_seconds=self._kill_wait_seconds, cgroups=self._cgroups)
            if self._home_id is not None:
                lives, seconds = self._processes.lives, self._patrol_seconds
                self._janitor = Janitor(self._home_id, lives, self._on_escaped, patrol_seconds=seconds)
            return self

        def know_unkillable(self, tokens: Collection[str]) -> None:
            """Of these attempts and servers of an earlier life something would not die; it has not escaped."""
            if self._janitor is not None:
                self._janitor.know(tokens)

        def _on_escaped(self, found: Escaped) -> None:
            self.escaped += 1
            program, token = printable(found.program), printable(found.token)
            log.warning("process.escaped", pid=found.pid, program=program, attempt=token, text="killed")

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            processes, self._processes = self._processes, None
            with anyio.CancelScope(shield=True):
                if self._janitor is not None:
                    await to_thread.run_sync(self._janitor.close)
                if processes is not None:
                    await to_thread.run_sync(processes.close)
                if self._cgroups is not None:
                    await to_thread.run_sync(self._cgroups.release)

        @property
        def confines(self) -> bool:
            """Whether each tree has a cgroup, so that none of it can escape."""
            return self._cgroups is not None and self._cgroups.exact

        @property
        def limited(self) -> frozenset[str]:
            """What the trees can be limited by: ``memory``, ``pids``."""
            return self._cgroups.limited if self._cgroups is not None else frozenset()

        async def launch(self, prepare: Callable[[], AttemptSpec]) -> LocalHandle:
            """Start the process tree that ``prepare`` describes. If cancelled, what was started is killed.

            Raises ``SpawnError``, and ``RuntimeError`` if a defect ended the supervision of processes.
            """
            handle = LocalHandle(self._open, self._news)
            self._open.start(prepare, handle)
            await handle.launched()
            return handle

        def start(self, prepare: Callable[[], AttemptSpec], watcher: Watcher) -> None:
            """As ``launch``, but ``watcher`` hears of it. Raises ``SpawnError`` if this is not open."""
            handle = LocalHandle(self._open, self._news, watcher)
            self._open.start(prepare, handle)
            self._news.expect(handle)

        @property
        def _open(self) -> Processes:
            if self._processes is None:
                raise SpawnError("spawn", "the attempt was not started: the backend is not open")
            return self._processes
