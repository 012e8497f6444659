"""``solvisor serve``: opens the home, lives one life of a daemon, and says by the exit status how it ended.

Order of start: configuration, home, lock, database, end of every process of an earlier life, claims without a row, the
engine's own recovery, READY, status socket, inbox. Order of stop: the reverse. Nothing here decides about jobs.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import anyio
import structlog

from solvisor import config as configuration
from solvisor.errors import SolvisorError
from solvisor.home import Home
from solvisor.reload import stamp
from solvisor.solvers.command import source_environments
from solvisor.spool import NotDurable, ignore_lease_breaks
from solvisor.trouble import is_passing

from .daemon import Daemon
from .opening import opened, opened_patiently
from .signals import EXIT_NOT_DURABLE, hold_hangups

log = structlog.get_logger()


def run(home_path: Path, config_path: Path, *, until_eof: bool = False, batch: str | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; returns the exit status.

    ``until_eof``: it serves whoever started it. The end of the standard input is like SIGTERM, so that it does not
    outlive them; the inbox and what waits from earlier lives are left for a daemon that stays, but for ``batch``.
    """
    as_read = stamp(config_path)
    config = configuration.load(config_path)
    inbox = Path(config.inbox.path) if config.inbox.path else None
    home = Home.at(home_path, inbox)
    with opened(home) if until_eof else opened_patiently(home) as held:
        for warning in config.warnings:
            log.warning("config.warning", text=warning)
        scripts = source_environments(config, os.environ)
        ignore_lease_breaks()
        hold_hangups()
        daemon = Daemon(held, config, as_read, scripts, until_eof=until_eof, batch=batch)
        try:
            anyio.run(daemon.live, backend_options={"use_uvloop": _has_uvloop()})
        except (BaseExceptionGroup, OSError, SolvisorError) as error:
            return _report(error)
    return 0


def _report(failure: BaseException) -> int:
    """Log what ended the daemon and choose the exit status."""
    for error in _leaves(failure):
        if isinstance(error, NotDurable):
            log.critical("daemon.not_durable", error=str(error), text="the disk failed; restart to recover")
            return EXIT_NOT_DURABLE
        if isinstance(error, SolvisorError):
            log.critical("daemon.failed", code=error.code, error=str(error))
            return error.exit_status
    log.critical("daemon.crashed", exc_info=failure)
    return EXIT_NOT_DURABLE if any(map(is_passing, _leaves(failure))) else 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None
