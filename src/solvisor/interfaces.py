"""The seam between the engine and the place where processes run.

A protocol stands here only because it has two implementations: ``backends/local.py`` and the scripted backend of the
engine tests (later ``dask`` and ``slurm``). Rules: ``AttemptSpec`` is plain JSON; paths are the same on both sides (one
shared file system); nothing here knows jobs, states or the store.
"""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from .model import ExitFacts


class AttemptSpec(Struct, frozen=True):
    """Everything needed to start one solver process tree.

    ``token`` is ``<home-id>/<attempt token>`` and becomes ``SOLVISOR_ATTEMPT`` in the environment. ``argv`` is a list,
    never a shell line; ``env`` is the whole environment. ``stdout`` and ``stderr`` are files to append to.
    ``grace_seconds`` lies between SIGTERM and SIGKILL. A log longer than ``log_max_bytes`` loses its middle.
    """

    token: str
    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    stdout: str
    stderr: str
    grace_seconds: float
    log_max_bytes: int


class Handle(Protocol):
    """A started process tree."""

    @property
    def pid(self) -> int:
        """Process id of the leader, also the number of its group and session."""
        ...

    @property
    def pid_start(self) -> int | None:
        """Start time of ``pid`` in clock ticks since boot: with the boot id it names the process for ever."""
        ...

    async def wait(self) -> ExitFacts:
        """Return once the leader exited and the tree is proven empty, or with ``unkillable`` once it would not die.

        Cancelling the wait does not touch the processes.
        """
        ...

    def stop(self, *, now: bool = False) -> None:
        """Ask the tree to end: SIGTERM, ``grace_seconds``, SIGKILL; with ``now`` SIGKILL at once. Idempotent."""
        ...

    async def wait_gone(self) -> None:
        """After an ``unkillable`` exit: return when the last process of the tree is gone after all."""
        ...


class Backend(Protocol):
    """A place where processes run."""

    async def launch(self, spec: AttemptSpec) -> Handle:
        """Start the process tree. Raises ``SpawnError``."""
        ...
