"""What happens to jobs and why servers end, as lines of the log that people follow: stable event names, ids as values.

Rules: only what happened is told, once it is applied; acceptance once it is durable.
"""

from __future__ import annotations

import structlog

from . import events
from .events import Accept, Event, Retire, ServerEvent

log = structlog.get_logger()


def log_event(event: Event) -> None:
    """One line for what people want to follow."""
    match event:
        case events.Spawned():
            log.info("attempt.started", id=event.id, pid=event.pid)
        case events.SpawnFailed():
            log.warning("attempt.not_started", id=event.id, code=event.reason, message=event.message)
        case events.Exited():
            facts = event.facts
            log.info("attempt.exited", id=event.id, exit_code=facts.exit_code, signal=facts.signal)
        case events.DeadlinePassed():
            log.warning("attempt.timeout", id=event.id)
        case events.Lost():
            log.warning("attempt.interrupted", id=event.id)
        case events.ServerLost():
            log.warning("attempt.server_lost", id=event.id, reached=event.reached, message=event.message)
        case events.BackoffOver():
            log.info("job.retry", id=event.id)
        case _:
            pass


def log_server_event(event: ServerEvent) -> None:
    """Why a server is to end; the rest of its life is told by itself."""
    if isinstance(event, Retire):
        log.info("server.retired", server=event.name, why=event.why)


def log_accepted(event: Accept) -> None:
    """A job is durable."""
    spec = event.intake.spec
    log.info("job.accepted", id=event.id, solver=spec.solver, source=spec.source.path, user=spec.user)
