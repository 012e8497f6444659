"""The composition root: takes the home, puts the parts together, runs the engine until it is told to stop.

Order of start: configuration, home, lock, database, end of every process of an earlier life, claims without a row, the
engine's own recovery, READY, status socket, inbox. Order of stop: the reverse. Nothing here decides about jobs.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import structlog
from msgspec.structs import replace

from solvisor import config as configuration
from solvisor import home as homes
from solvisor import log as logs
from solvisor.backends.local import LocalBackend
from solvisor.collector import Collector
from solvisor.config import Config
from solvisor.desk import Desk
from solvisor.engine import Engine
from solvisor.errors import SolvisorError
from solvisor.history import History
from solvisor.home import Home, IdMaker
from solvisor.inbox import Inbox
from solvisor.intake import decide
from solvisor.leases import Leases, ephemeral_range, overlap_warning
from solvisor.model import Batch, Intake, Job, Limits
from solvisor.noted import noted_servers, remove_servers
from solvisor.notifier import Notifier
from solvisor.pool import Pool
from solvisor.process import posix
from solvisor.runner import Runner
from solvisor.solvers.command import source_environments
from solvisor.solvers.warm import warm_kinds, warm_solvers
from solvisor.spool import Claims, NotDurable, Results, discard_unfinished, ignore_lease_breaks
from solvisor.spool.reading import JobFolder
from solvisor.store import Store

from .api.app import make_app
from .api.listening import listening, serve
from .notify import extend_timeout, notify
from .signals import EXIT_NOT_DURABLE, drain_at_eof, feed_watchdog, obey_signals

KILL_SECONDS = 10.0
"""How long processes of an earlier life may take to die before their jobs are set aside as unkillable."""

STARTING_SECONDS = 3600.0
"""How long systemd is kept waiting for a start at most: a home with many jobs takes its time."""

NEWS_SECONDS = 10.0
"""How long the end waits for the last notifications."""

SOCKET = "solvisor.sock"
"""The name of the status socket in ``run/``."""

log = structlog.get_logger()


def run(home_path: Path, config_path: Path, *, until_eof: bool = False, batch: str | None = None) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; returns the exit status.

    ``until_eof``: it serves whoever started it. The end of the standard input is like SIGTERM, so that it does not
    outlive them; the inbox and what waits from earlier lives are left for a daemon that stays, but for ``batch``.
    """
    config = configuration.load(config_path)
    inbox = Path(config.inbox.path) if config.inbox.path else None
    home = Home.at(home_path, inbox)
    home.prepare()
    with ExitStack() as stack:
        stack.callback(homes.lock(home).close)
        stack.callback(logs.configure(sys.stderr, file=home.log_dir / "solvisor.jsonl").close)
        for warning in config.warnings:
            log.warning("config.warning", text=warning)
        store = Store.open(home.db)
        stack.callback(store.close)
        history = History.open(home.db)
        stack.callback(history.close)
        scripts = source_environments(config, os.environ)
        ignore_lease_breaks()
        life = partial(_run, config, home, store, history, scripts, until_eof, batch)
        try:
            anyio.run(life, backend_options={"use_uvloop": _has_uvloop()})
        except (BaseExceptionGroup, OSError, SolvisorError) as error:
            return _report(error)
    return 0


async def _run(
    config: Config,
    home: Home,
    store: Store,
    history: History,
    scripts: Mapping[str, Mapping[str, str]],
    until_eof: bool,
    batch: str | None,
) -> None:
    """One life: recover, serve, stop."""
    posix.become_subreaper()
    home_id = homes.home_id(home)
    log.info("daemon.starting", home=str(home.root), pid=os.getpid())
    limits = config.limits(posix.usable_cpus(), posix.total_memory_bytes())
    if until_eof:  # no servers but for the jobs that are sent
        limits = replace(limits, pools={name: replace(rule, min=0) for name, rule in limits.pools.items()})
    claims, results, ids = Claims(home), Results(home), IdMaker(store.last_id())
    host = socket.gethostname()
    trouble: dict[str, str] = {}
    leases = Leases(config.daemon.ports)
    async with LocalBackend() as backend, anyio.create_task_group() as tasks:
        kinds = warm_kinds(config, backend, os.environ, scripts, home.cache)
        warning = overlap_warning(config.daemon.ports, ephemeral_range())
        if warning is not None and any(kind.wants_port for kind in kinds.values()):
            log.warning("config.warning", text=warning)
        tasks.start_soon(feed_watchdog)
        tasks.start_soon(extend_timeout, STARTING_SECONDS)
        noted = await anyio.to_thread.run_sync(_noted, home, store)
        alive = await anyio.to_thread.run_sync(posix.kill_earlier_life, home_id, KILL_SECONDS, noted)
        for name in await anyio.to_thread.run_sync(remove_servers, home, alive):
            log.error("server.unkillable", server=name)
            trouble[f"server {name}"] = (
                f"{name}, a warm server of an earlier life, would not die; it may hold a license"
            )
        live, adopted = await anyio.to_thread.run_sync(_left_behind, config, limits, home, store, claims)
        if until_eof:
            adopted = [intake for intake in adopted if intake.spec.batch is not None and intake.spec.batch == batch]
        notifier = Notifier(
            config.notify,
            home=home,
            home_id=home_id,
            backend=backend,
            environ=os.environ,
            config_dir=config.path.parent,
            trouble=trouble,
        )

        def published(job: Job) -> None:
            desk.published(job)
            notifier.job(job)

        def batch_over(over: Batch) -> None:
            if config.notify is not None:
                telling.start_soon(tell_batch, over)

        async def tell_batch(over: Batch) -> None:
            try:
                notifier.batch(over, await desk.finished_of_batch(over))
            except SolvisorError as error:  # a courtesy must not end what runs jobs
                log.warning("notify.failed", id=over.id, on="batch", error=str(error))

        engine = Engine(
            config=config,
            limits=limits,
            host=host,
            store=store,
            results=results,
            collector=Collector(home, results),
            make_pool=lambda post: Pool(
                home=home,
                home_id=home_id,
                boot_id=posix.boot_id(),
                backend=backend,
                leases=leases,
                solvers=warm_solvers(config),
                kinds=kinds,
                post=post,
            ),
            make_runner=lambda post, pool: Runner(
                home=home,
                home_id=home_id,
                boot_id=posix.boot_id(),
                results=results,
                backend=backend,
                pool=pool,
                environ=dict(os.environ),
                script_environ=scripts,
                config_dir=config.path.parent,
                post=post,
            ),
            trouble=trouble,
            parks=until_eof,
            parks_not=batch,
            published=published,
            batch_over=batch_over,
        )
        originals = [original for job in live for original in job.spec.originals] + store.recent_originals()
        inbox = Inbox(home, lambda: config, lambda: limits, claims, ids, originals)
        desk = Desk(engine=engine, inbox=inbox, home=home, history=history, ids=ids, host=host)
        await desk.prepare()
        for task in (desk.look_around, notifier.run, partial(obey_signals, engine, config.daemon.stop_timeout)):
            tasks.start_soon(task)
        if until_eof:
            tasks.start_soon(drain_at_eof, engine)
        with listening(home.run / SOCKET) as sock:
            async with anyio.create_task_group() as talking:
                async with anyio.create_task_group() as telling:

                    def ready() -> None:
                        talking.start_soon(serve, make_app(desk, JobFolder(home)), sock)
                        log.info(
                            "daemon.ready", home=str(home.root), inbox=str(home.inbox), solvers=sorted(config.solver)
                        )
                        notify("READY=1")

                    await engine.run(
                        jobs=live,
                        adopted=adopted,
                        alive=alive,
                        survivors=partial(posix.survivors, home_id, noted),
                        intake=anyio.sleep_forever if until_eof else partial(inbox.run, engine.accept),
                        ready=ready,
                    )
                with anyio.move_on_after(NEWS_SECONDS):
                    await notifier.finish()
                talking.cancel_scope.cancel()
        tasks.cancel_scope.cancel()
    log.info("daemon.stopped", home=str(home.root))


def _noted(home: Home, store: Store) -> dict[tuple[int, int], str]:
    """The processes of this boot that the earlier life wrote down, with their tokens. Blocks."""
    boot_id = posix.boot_id()
    noted = noted_servers(home, boot_id)
    for job in store.live_jobs():
        for attempt in job.attempts:
            if attempt.pid is not None and attempt.pid_start is not None and attempt.boot_id == boot_id:
                noted[attempt.pid, attempt.pid_start] = attempt.token
    return noted


def _left_behind(
    config: Config, limits: Limits, home: Home, store: Store, claims: Claims
) -> tuple[list[Job], list[Intake]]:
    """What an earlier life left: the jobs it did not publish, and its claims without a row. Blocks."""
    discard_unfinished(home)
    live = store.live_jobs()
    unfinished = claims.unfinished_claims({job.id for job in live})
    return live, [decide(config, limits, home, taken) for taken in unfinished]


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
    return 1


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _has_uvloop() -> bool:
    return importlib.util.find_spec("uvloop") is not None
