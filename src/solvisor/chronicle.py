"""What happens to jobs and why servers end, as lines of the log that people follow: stable event names, ids as values.

Rules: only what happened is told, once it is applied; acceptance and ends once they are durable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import structlog
from structlog.typing import FilteringBoundLogger

from .events import (
    Accept,
    BackoffOver,
    DeadlinePassed,
    Event,
    Exited,
    Lost,
    Retire,
    ServerEvent,
    ServerLost,
    SetAside,
    Spawned,
    SpawnFailed,
)
from .model import Job, State

_LINES: Final[Mapping[type[Event], Callable[[FilteringBoundLogger, Any], None]]] = {
    Spawned: lambda log, it: log.info("attempt.started", id=it.id, pid=it.pid),
    Exited: lambda log, it: log.info("attempt.exited", id=it.id, exit_code=it.facts.exit_code, signal=it.facts.signal),
    SpawnFailed: lambda log, it: log.warning("attempt.not_started", id=it.id, code=it.reason, message=it.message),
    DeadlinePassed: lambda log, it: log.warning("attempt.timeout", id=it.id),
    Lost: lambda log, it: log.warning("attempt.interrupted", id=it.id),
    ServerLost: lambda log, it: log.warning("attempt.server_lost", id=it.id, reached=it.reached, message=it.message),
    BackoffOver: lambda log, it: log.info("job.retry", id=it.id),
    SetAside: lambda log, it: log.error("job.set_aside", id=it.id, code=it.code, message=it.message),
}
"""What is told of an event; of those that are not here, nothing."""


class Chronicle:
    """Tells by the log as it is configured now."""

    def __init__(self) -> None:
        self._log: FilteringBoundLogger = structlog.get_logger().bind()  # once: nobody has more to say

    def tell(self, event: Event) -> None:
        """One line for what people want to follow."""
        line = _LINES.get(type(event))
        if line is not None:
            line(self._log, event)

    def tell_server(self, event: ServerEvent) -> None:
        """Why a server is to end; the rest of its life is told by itself."""
        if isinstance(event, Retire):
            self._log.info("server.retired", server=event.name, why=event.why)

    def accepted(self, event: Accept) -> None:
        """A job is durable."""
        spec = event.intake.spec
        self._log.info("job.accepted", id=event.id, solver=spec.solver, source=spec.source.path, user=spec.user)

    def ended(self, job: Job) -> None:
        """Its end is durable."""
        tell = self._log.info if job.state is State.SUCCEEDED else self._log.warning
        tell(f"job.{job.state}", id=job.id, solver=job.spec.solver, cause=job.cause, message=job.message)
