"""One input, tried exactly as the daemon would run it, without a daemon and without touching the home's queue.

The job lives in a home of its own that is thrown away: claimed, decided, staged, started, watched and judged by the
very parts the daemon is made of, and the state machine turns what happens into the very manifest it would have got.
Only this differs: there is one try, and whoever asked may stop it. Rules: the real home is read and never changed but
for that throw-away folder in it; when it is over, no process is left. Nothing here prints.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import anyio
import msgspec
from msgspec import Struct

from solvisor.config import Config
from solvisor.home import Home
from solvisor.interfaces import AttemptSpec
from solvisor.manifest import Manifest
from solvisor.model import Job
from solvisor.process import host
from solvisor.solvers.command import source_environment
from solvisor.spool import Publication, Results, ignore_lease_breaks
from solvisor.tables import show, suggestion
from solvisor_service.holder import Surroundings
from solvisor_service.targets import UsageError
from solvisor_service.trial.advice import advise
from solvisor_service.trial.away import throw_away_home
from solvisor_service.trial.drop import Order, take_in
from solvisor_service.trial.environment import EnvironmentDifference, differ, telling
from solvisor_service.trial.life import Life, Watcher

if sys.platform == "win32":
    raise ImportError("solvisor_service.trial starts processes as only Linux can and cannot be used on Windows")

__all__ = ["EnvironmentDifference", "Order", "Trial", "Watcher", "telling", "try_out"]


class Trial(Struct, frozen=True):
    """What came of it. ``launched`` is what was executed; ``None`` if it did not come to that.

    ``manifest`` is the one that the job would have got, ``advice`` what to change, one sentence each.
    """

    manifest: Manifest
    launched: AttemptSpec | None
    environment: EnvironmentDifference | None
    interrupted: bool
    advice: tuple[str, ...]


def try_out(
    config: Config, home: Path, order: Order, around: Surroundings, *, keep: Path | None = None, watcher: Watcher
) -> Trial:
    """Run one input as the service of ``home`` would. Blocks until it is over and nothing of it runs; main thread only.

    The job's folder moves to ``keep`` (missing or empty), with its manifest; without it nothing stays. SIGINT and
    SIGTERM stop the solver with its grace, a second one at once. Raises ``UsageError``, ``ConfigError``, ``HomeError``.
    """
    solver = config.solver.get(order.solver)
    if solver is None:
        known = f"; there are {', '.join(config.solver)}" if config.solver else f"; {config.path} declares none"
        hint = suggestion(order.solver, config.solver) or known
        raise UsageError(f"no solver is called {show(order.solver)}{hint}")
    if keep is not None:
        _check_keep(keep)
    limits = config.limits(host.usable_cpus(), host.total_memory_bytes())
    scripts = {}
    if solver.env_script is not None:
        scripts[order.solver] = source_environment(config.path.parent / solver.env_script, around.environ)
    ignore_lease_breaks()
    for number in (signal.SIGTERM, signal.SIGHUP):  # until the loop has its own handlers: end as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    with throw_away_home(home) as away:
        intake = take_in(config, limits, away, order)
        life = Life(config, limits, away, intake, around.environ, scripts, watcher)
        try:
            job = anyio.run(life.run)
        except BaseExceptionGroup as group:
            raise _only_leaf(group) from group
        if keep is not None:
            _keep(away, job, keep)
    manifest = msgspec.json.decode(job.manifest or b"", type=Manifest)
    launched = life.launched
    difference = None if launched is None else differ(launched.env, os.environ)
    return Trial(manifest, launched, difference, life.interrupted, advise(manifest, solver, difference, os.environ))


def _only_leaf(group: BaseExceptionGroup) -> BaseException:
    """The first of the errors that ended a task group, as it was raised."""
    first = group.exceptions[0]
    return _only_leaf(first) if isinstance(first, BaseExceptionGroup) else first


def _keep(away: Home, job: Job, keep: Path) -> None:
    """Publish a finished job as the service does, and move its folder to where it is wanted."""
    assert job.manifest is not None, f"{job.id} is over without a manifest"  # noqa: S101  a defect
    _, errors = Results(away).publish([Publication(job.id, "done", job.manifest)])
    try:
        for error in errors.values():
            raise error
        if keep.exists():
            keep.rmdir()
        shutil.move(away.done / job.id, keep)
    except OSError as error:
        raise UsageError(f"--keep {keep}: the job's folder could not be moved there: {error.strerror}") from error


def _check_keep(keep: Path) -> None:
    try:
        if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
            raise UsageError(f"--keep {keep}: something is there already; name a new folder, or an empty one")
        if not os.access(keep.absolute().parent, os.W_OK | os.X_OK):
            raise UsageError(f"--keep {keep}: {keep.absolute().parent} is missing, or not yours to write to")
    except OSError as error:
        raise UsageError(f"--keep {keep}: {error.strerror}") from None
