"""All routes: what can be asked of a home, with or without a daemon, and what only a daemon does.

A route is one function and one line in the table of its module; a new module is named here.
"""

from __future__ import annotations

from typing import Final

from solvisor.desk import Desk
from solvisor.questions import Questions
from solvisor_service.api.ways import Way

from . import (
    access,
    batches,
    daemon,
    description,
    events,
    figures,
    files,
    jobs,
    limits,
    logs,
    monitoring,
    offers,
    servers,
    submitting,
)

QUESTIONS: Final[tuple[Way[Questions], ...]] = (
    *jobs.QUESTIONS,
    *files.QUESTIONS,
    *logs.QUESTIONS,
    *batches.QUESTIONS,
    *servers.QUESTIONS,
    *limits.QUESTIONS,
    *offers.QUESTIONS,
    *figures.QUESTIONS,
)
"""What can be asked of a home, also where no daemon runs: all are GET."""

ORDERS: Final[tuple[Way[Desk], ...]] = (
    *access.ORDERS,
    *daemon.ORDERS,
    *monitoring.ORDERS,
    *description.ORDERS,
    *events.ORDERS,
    *submitting.ORDERS,
    *jobs.ORDERS,
    *servers.ORDERS,
    *batches.ORDERS,
    *limits.ORDERS,
)
"""What only a daemon knows or does."""
