"""Every error Solvisor raises on purpose, in one hierarchy.

Rules: an error carries a stable ``code`` (for programs), says whether trying again can help, and the exit status a
command line should end with. Its text says what happened, to which file or job, and what to do next. Foreign
exceptions are translated once, where they enter. This module knows nothing else of Solvisor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class SolvisorError(Exception):
    """Base of all errors raised on purpose."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    exit_status: ClassVar[int] = 1


class ConfigError(SolvisorError):
    """The configuration cannot be used; ``problems`` lists every fault found, one line each."""

    code = "config"
    exit_status = 2

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        count = "1 fault" if len(self.problems) == 1 else f"{len(self.problems)} faults"
        super().__init__("\n".join([f"{path}: {count}", *(f"  {p}" for p in self.problems)]))


class HomeError(SolvisorError):
    """The home directory cannot be used (permissions, network file system, folders on different file systems)."""

    code = "home"
    exit_status = 2


class HomeUnavailable(HomeError):
    """The home cannot be used now, for trouble of the machine (a full or read-only disk): later it may."""

    code = "home_unavailable"
    retryable = True
    exit_status = 75


class AlreadyRunning(SolvisorError):
    """Another daemon holds this home."""

    code = "already_running"
    exit_status = 100


class StoreError(SolvisorError):
    """The database cannot be used, as a newer Solvisor wrote it; the file is kept as it is."""

    code = "store"
    exit_status = 2


class StoreDamaged(StoreError):
    """The database cannot be read, or is not there although there are results: its text says how to go on."""

    code = "store_damaged"


class StoreUnavailable(StoreError):
    """The transaction was rolled back and can be tried again: disk full, read-only, or locked by another program."""

    code = "store_unavailable"
    retryable = True
    exit_status = 75


class StoreFailed(StoreError):
    """The disk failed under the database: what was written last may be gone. Restart and recover from what is there."""

    code = "store_failed"
    exit_status = 75


class NoRoom(SolvisorError):
    """The disk has no room for anything new: nothing was taken in, and it can be tried again."""

    code = "unavailable"
    retryable = True
    exit_status = 75


class Refused(SolvisorError):
    """A drop cannot become a job. ``code`` is per instance and ends in the manifest of the rejected job."""

    def __init__(self, code: str, message: str) -> None:
        self.refusal = code
        super().__init__(message)


class SpawnError(SolvisorError):
    """A solver process could not be started. ``reason`` is the open code beside the cause ``spawn``."""

    code = "spawn"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


class NotReady(SolvisorError):
    """A warm server does not answer as it should."""

    code = "not_ready"


class PortTaken(NotReady):
    """Somebody else listens on the port of a warm server: an ordinary lost race, another port will do."""

    code = "port_taken"


class Unreached(SolvisorError):
    """A warm server was gone before it could hear of a job: the job cannot be the reason."""

    code = "server_gone"


class ServerBroken(SolvisorError):
    """A warm server failed while it had a job: it hung up, or said what nobody understands."""

    code = "server_broken"


class IllegalEvent(SolvisorError):
    """An event that the state table does not allow: a defect of Solvisor. Nothing was changed."""

    code = "illegal_event"
