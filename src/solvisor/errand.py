"""A job on its way to a warm server and back: what its kind sees of it, and how it is stopped.

Rules: while a process of the job itself runs, stopping the job stops that; otherwise it ends the talk with the server.
It decides nothing about the server, changes no state and posts nothing by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from .interfaces import AttemptSpec, Backend, Handle, Program
from .model import ExitFacts, Job
from .names import printable


class _OwnProcess:
    """The handle of a process whose errand wants to know when it is over."""

    def __init__(self, handle: Handle, ended: Callable[[ExitFacts], None]) -> None:
        self._handle = handle
        self._ended = ended
        self.pid = handle.pid
        self.pid_start = handle.pid_start

    async def wait(self) -> ExitFacts:
        facts = await self._handle.wait()
        self._ended(facts)
        return facts

    def stop(self, *, now: bool = False) -> None:
        self._handle.stop(now=now)

    async def wait_gone(self) -> None:
        await self._handle.wait_gone()


class Errand:
    """One attempt of ``job`` in ``folder``; a ``Work`` for the server's kind and a handle for the runner.

    ``since`` is when it set out, on the monotonic clock: what was seen of its server before may not hold any more.

    ``make_spec`` says how a program is started for it; ``on_begin`` is called with the pid of its server once that has
    it, and ``on_launch`` with the program and its handle.
    """

    def __init__(
        self,
        job: Job,
        folder: Path,
        backend: Backend,
        make_spec: Callable[[Program, Path | None], AttemptSpec],
        on_begin: Callable[[int], None],
        on_launch: Callable[[Program, Handle], None],
    ) -> None:
        self.job = job
        self.folder = folder
        self.since = time.monotonic()
        self.scope = anyio.CancelScope()
        self.stopped = False
        self.server_died = False
        self._backend = backend
        self._make_spec = make_spec
        self._on_begin = on_begin
        self._on_launch = on_launch
        self._handle: Handle | None = None
        self._launching = False

    def begun(self, pid: int) -> None:
        """Its server, whose leader is ``pid``, takes it up."""
        self._on_begin(pid)

    async def launch(self, program: Program, cwd: Path | None = None) -> Handle:
        """Start a process of this attempt. Raises ``SpawnError``."""
        self._launching = True
        try:
            # Not to be cancelled: what was started must be seen to its end.
            with anyio.CancelScope(shield=True):
                self._handle = handle = await self._backend.launch(lambda: self._make_spec(program, cwd))
        finally:
            self._launching = False
        self._on_launch(program, handle)
        if self.stopped or self.server_died:
            handle.stop()
        return _OwnProcess(handle, self._ended)

    def _ended(self, facts: ExitFacts) -> None:
        if not facts.unkillable:
            self._handle = None

    async def note(self, title: str, text: str) -> None:
        """Append a text to the job's ``stderr.log``."""

        def append() -> None:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
            with suppress(OSError), open(os.open(self.folder / "stderr.log", flags, 0o640), "a") as log:
                log.write(printable(f"{title}\n{text.rstrip()}\n"))

        if text.strip():
            await anyio.to_thread.run_sync(append)

    async def wait_gone(self) -> None:
        """After an ``unkillable`` exit of its process: return when that is gone after all."""
        if self._handle is not None:
            await self._handle.wait_gone()

    def stop(self, *, now: bool = False) -> None:
        """Have the job end: its process, or the talk with its server."""
        self.stopped = True
        self._end(now=now)

    def lose_server(self) -> None:
        """Its server is gone: what is left of the job ends as well."""
        self.server_died = True
        self._end(now=False)

    def _end(self, *, now: bool) -> None:
        if self._handle is not None:
            self._handle.stop(now=now)
        elif not self._launching:
            self.scope.cancel()
