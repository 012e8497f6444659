"""The backend of this machine: the engine's view of ``process/posix.py``.

Rules: only a bridge. What the process threads tell is handed to the event loop here, and nothing is decided; whoever
cancels a wait leaves the processes as they are and may wait again. This module must not know jobs.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
from anyio import to_thread

from solvisor.errors import SolvisorError, SpawnError
from solvisor.interfaces import AttemptSpec, Handle
from solvisor.model import ExitFacts

if sys.platform == "win32":

    class LocalBackend:
        """Not there yet on Windows."""

        def __init__(self, *, kill_wait_seconds: float = 10.0) -> None:  # noqa: ARG002  the same for both
            raise SolvisorError("this release runs solvers on Linux only; on Windows it cannot start them yet")

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None:
            return None

        async def launch(self, spec: AttemptSpec) -> Handle:
            """Never reached."""
            raise NotImplementedError

else:
    from solvisor.process.posix import Processes, Tree

    _DEFECT = "process supervision ended by a defect; restart the daemon"

    class LocalHandle:
        """A process tree of this machine; made by ``LocalBackend.launch``."""

        def __init__(self, processes: Processes) -> None:
            self._processes = processes
            self._loop = asyncio.get_running_loop()
            self._launch: asyncio.Future[Tree] = self._loop.create_future()
            self._facts: ExitFacts | None = None
            self._defect: BaseException | None = None
            self._over = anyio.Event()
            self._gone: anyio.Event | None = None  # made by an unkillable exit

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
            if not self._tell(lambda: self._on_started(tree)):
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

        def _tell(self, news: Callable[[], None]) -> bool:
            try:
                self._loop.call_soon_threadsafe(news)
            except RuntimeError:  # the loop is closed: nobody is left to hear it
                return False
            return True

        # On the loop

        def _on_started(self, tree: Tree) -> None:
            if self._launch.done():  # cancelled or broken
                self._processes.stop(tree, now=True)
            else:
                self._launch.set_result(tree)

        def _on_refused(self, error: SpawnError) -> None:
            if not self._launch.cancelled():
                self._launch.set_exception(error)

        def _on_exited(self, facts: ExitFacts) -> None:
            self._facts = facts
            if facts.unkillable:
                self._gone = anyio.Event()
            self._over.set()

        def _on_gone(self) -> None:
            if self._gone is not None:
                self._gone.set()

        def _on_broken(self, error: BaseException) -> None:
            self._defect = error
            if not self._launch.done():
                defect = RuntimeError(_DEFECT)
                defect.__cause__ = error
                self._launch.set_exception(defect)
            self._over.set()
            self._on_gone()

    class LocalBackend:
        """Runs solvers as child processes of the daemon: ``async with LocalBackend() as backend``.

        ``kill_wait_seconds`` is how long after SIGKILL a tree may take before it counts as unkillable. Leaving the
        context kills whatever still runs; only what would not die is left to the next start of the home.
        """

        def __init__(self, *, kill_wait_seconds: float = 10.0) -> None:
            self._kill_wait_seconds = kill_wait_seconds
            self._processes: Processes | None = None

        async def __aenter__(self) -> Self:
            self._processes = Processes(kill_wait_seconds=self._kill_wait_seconds)
            return self

        async def __aexit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            processes, self._processes = self._processes, None
            if processes is not None:
                with anyio.CancelScope(shield=True):
                    await to_thread.run_sync(processes.close)

        async def launch(self, spec: AttemptSpec) -> LocalHandle:
            """Start the process tree. If cancelled, what was started is killed.

            Raises ``SpawnError``, and ``RuntimeError`` if a defect ended the supervision of processes.
            """
            if self._processes is None:
                raise SpawnError("spawn", f"attempt {spec.token} was not started: the backend is not open")
            handle = LocalHandle(self._processes)
            self._processes.start(spec, handle)
            await handle.launched()
            return handle
