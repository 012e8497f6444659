"""The composition root: takes the home, puts the parts together, runs the engine until it is told to stop.

Order of start: configuration, home, lock, database, end of every process of an earlier life, claims without a row, the
engine's own recovery, READY, status socket, inbox. Order of stop: the reverse. Nothing here decides about jobs.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import structlog

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
from solvisor.model import Batch, Job
from solvisor.notifier import Notifier
from solvisor.process import posix
from solvisor.runner import Runner
from solvisor.solvers.command import source_environments
from solvisor.spool import Claims, NotDurable, Results, discard_unfinished, ignore_lease_breaks
from solvisor.spool.reading import JobFolder
from solvisor.store import Store

from .api.app import make_app
from .api.listening import listening, serve
from .notify import notify

KILL_SECONDS = 10.0
"""How long processes of an earlier life may take to die before their jobs are set aside as unkillable."""

STOP_NOW_SECONDS = 30.0
"""How long stopping at once may take, before the process just ends."""

SOCKET = "solvisor.sock"
"""The name of the status socket in ``run/``."""

EXIT_NOT_DURABLE = 75
"""A disk refused to keep what was written: restart and recover."""

log = structlog.get_logger()


def run(home_path: Path, config_path: Path, *, until_eof: bool = False) -> int:
    """Run the daemon in the foreground until SIGTERM or SIGINT; returns the exit status.

    ``until_eof``: the end of the standard input is like SIGTERM, so that the daemon does not outlive who started it.
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
        life = partial(_run, config, home, store, history, scripts, until_eof)
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
) -> None:
    posix.become_subreaper()
    home_id = homes.home_id(home)
    log.info("daemon.starting", home=str(home.root), pid=os.getpid())
    alive = await anyio.to_thread.run_sync(posix.kill_earlier_life, home_id, KILL_SECONDS)
    limits = config.limits(posix.usable_cpus(), posix.total_memory_bytes())
    claims, results = Claims(home), Results(home)
    await anyio.to_thread.run_sync(discard_unfinished, home)
    live = await anyio.to_thread.run_sync(store.live_jobs)
    unfinished = await anyio.to_thread.run_sync(claims.unfinished_claims, {job.id for job in live})
    adopted = [decide(config, limits, home, taken) for taken in unfinished]
    ids = IdMaker(store.last_id())
    host = socket.gethostname()
    async with LocalBackend() as backend, anyio.create_task_group() as tasks:
        notifier = Notifier(
            config.notify,
            home=home,
            home_id=home_id,
            backend=backend,
            environ=os.environ,
            config_dir=config.path.parent,
        )

        def published(job: Job) -> None:
            desk.published(job)
            notifier.job(job)

        def batch_over(batch: Batch) -> None:
            tasks.start_soon(tell_batch, batch)

        async def tell_batch(batch: Batch) -> None:
            notifier.batch(batch, await desk.finished_of_batch(batch))

        engine = Engine(
            config=config,
            limits=limits,
            host=host,
            store=store,
            results=results,
            collector=Collector(home, results),
            make_runner=lambda post: Runner(
                home=home,
                home_id=home_id,
                boot_id=posix.boot_id(),
                results=results,
                backend=backend,
                environ=dict(os.environ),
                script_environ=scripts,
                config_dir=config.path.parent,
                post=post,
            ),
            published=published,
            batch_over=batch_over,
        )
        originals = [original for job in live for original in job.spec.originals] + store.recent_originals()
        inbox = Inbox(home, lambda: config, lambda: limits, claims, ids, originals)
        desk = Desk(engine=engine, inbox=inbox, home=home, history=history, ids=ids, host=host)
        await desk.prepare()
        tasks.start_soon(_obey_signals, engine)
        tasks.start_soon(_feed_watchdog)
        tasks.start_soon(desk.watch_disk)
        tasks.start_soon(notifier.run)
        if until_eof:
            tasks.start_soon(_drain_at_eof, engine)
        with listening(home.run / SOCKET) as sock:

            def ready() -> None:
                tasks.start_soon(serve, make_app(desk, JobFolder(home)), sock)
                log.info("daemon.ready", home=str(home.root), inbox=str(home.inbox), solvers=sorted(config.solver))
                notify("READY=1")

            await engine.run(
                jobs=live,
                adopted=adopted,
                alive=alive,
                survivors=partial(posix.survivors, home_id),
                intake=partial(inbox.run, engine.accept),
                ready=ready,
            )
            tasks.cancel_scope.cancel()
    log.info("daemon.stopped", home=str(home.root))


async def _drain_at_eof(engine: Engine) -> None:
    """Drain when whoever holds the other end of the standard input is gone; what comes from there means nothing."""
    while True:
        await anyio.wait_readable(sys.stdin.fileno())
        if not os.read(sys.stdin.fileno(), 1 << 12):
            log.info("daemon.draining", signal="end of the standard input")
            engine.drain()
            return


async def _obey_signals(engine: Engine) -> None:
    """SIGTERM or SIGINT drains; a second one stops what runs now."""
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
        asked = False
        async for number in received:
            name = signal.Signals(number).name
            if asked:
                log.warning("daemon.stopping_now", signal=name)
                engine.stop_now()
                _give_up_later()
            else:
                log.info("daemon.draining", signal=name)
                notify("STOPPING=1")
                engine.drain()
            asked = True


def _give_up_later() -> None:
    """End the process if stopping hangs (a dead disk, a full one): the next start recovers from any moment."""

    def give_up() -> None:
        log.critical("daemon.gave_up", seconds=STOP_NOW_SECONDS, text="stopping hangs; what is open is taken up later")
        os._exit(EXIT_NOT_DURABLE)

    timer = threading.Timer(STOP_NOW_SECONDS, give_up)
    timer.daemon = True
    timer.start()


async def _feed_watchdog() -> None:
    """Tell systemd that the loop turns, twice as often as it asks for; without systemd there is nothing to do."""
    micros = int(os.environ.get("WATCHDOG_USEC", "0"))
    while micros:
        notify("WATCHDOG=1")
        await anyio.sleep(micros / 2e6)


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
