"""The composition root: puts the parts together for one life of a daemon, on a home that is open.

Rules: each part is made once, and given what it needs and no more; the order is told in ``main``. Nothing here decides
about jobs.
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import anyio
import structlog
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync as in_thread
from msgspec.structs import replace

from solvisor import config as configuration
from solvisor import failpoint, overrides
from solvisor import home as homes
from solvisor.backends.local import LocalBackend
from solvisor.collector import Collector
from solvisor.config import Config
from solvisor.desk import Desk
from solvisor.diskwatch import DiskWatch, look
from solvisor.engine import Engine
from solvisor.errors import SolvisorError
from solvisor.events import Event, ServerEvent
from solvisor.hand import Hand
from solvisor.heartbeat import Heartbeat
from solvisor.home import Home, IdMaker
from solvisor.inbox import Inbox
from solvisor.intake import decide
from solvisor.interfaces import WarmKind
from solvisor.leases import Leases, ephemeral_range, overlap_warning
from solvisor.meter import Meter
from solvisor.model import Batch, Intake, Job, Limits
from solvisor.names import age
from solvisor.noted import noted_servers, remove_servers
from solvisor.notifier import Notifier
from solvisor.pool import Pool
from solvisor.process import posix
from solvisor.process.proc import open_beneath
from solvisor.processors import gather_threads
from solvisor.rebuild import newer_result
from solvisor.reload import Reload, Setup, Stamp, stamp
from solvisor.retention import Retention
from solvisor.rows import damaged
from solvisor.runner import Runner
from solvisor.solvers.command import source_environments
from solvisor.solvers.warm import omc_caches, warm_kinds, warm_solvers
from solvisor.spool import Claims, NotDurable, Results, Taken, discard_unfinished
from solvisor.spool.reading import JobFolder
from solvisor.suspects import TRIES_MAX, Suspects
from solvisor.trouble import RETRY_SECONDS, is_passing

from .api.app import make_app
from .api.doors import Doors
from .notify import EXTEND_SECONDS, extend_timeout, notify
from .opening import Opened
from .signals import drain_at_eof, feed_watchdog, obey_signals

KILL_SECONDS = 10.0
"""How long processes of an earlier life may take to die before their jobs are set aside as unkillable."""

STARTING_SECONDS = 3600.0
"""How long systemd is kept waiting for a start at most: a home with many jobs takes its time."""

NEWS_SECONDS = 10.0
"""How long the end waits for the last notifications."""

SOCKET = "solvisor.sock"
"""The name of the status socket in ``run/``."""

log = structlog.get_logger()


class _Earlier(NamedTuple):
    """What an earlier life left: its processes of this boot, those that would not die, its claims without a row."""

    noted: Mapping[tuple[int, int], str]
    alive: Collection[str]
    adopted: list[Intake]


class Daemon:
    """One life on a home that is open: ``live`` recovers, serves, and stops.

    ``as_read`` is the stamp of the file before ``config`` was read from it, ``scripts`` what each ``env_script`` made
    of the environment.
    """

    def __init__(
        self,
        held: Opened,
        config: Config,
        as_read: Stamp,
        scripts: Mapping[str, Mapping[str, str]],
        *,
        until_eof: bool,
        batch: str | None,
    ) -> None:
        self._held = held
        self._home = held.home
        self._config = config
        self._as_read = as_read
        self._scripts = scripts
        self._until_eof = until_eof
        self._batch = batch
        self._limits = _limits(config, until_eof)
        self._claims = Claims(self._home)
        self._results = Results(self._home)
        self._files = Hand("solvisor-files", stands_back=True)
        self._folders = JobFolder(self._home)
        self._ids = IdMaker(held.store.last_id())
        self._host = socket.gethostname()
        self._trouble: dict[str, str] = {}
        self._unenforced: Sequence[str] = ()
        self._leases = Leases(config.daemon.ports)
        self._caches = omc_caches(self._home.cache)
        self._heartbeat = Heartbeat()
        self._doors = Doors(self._home.run / SOCKET, self._home.token, config.api, self._trouble)

        self._home_id: str
        self._reach: Limits
        self._backend: LocalBackend
        self._telling: TaskGroup
        self._kinds: Mapping[str, WarmKind]
        self._engine: Engine
        self._inbox: Inbox
        self._desk: Desk
        self._notifier: Notifier
        self._retention: Retention
        self._meter: Meter

    async def live(self) -> None:
        """One life."""
        posix.become_subreaper()
        gather_threads()
        self._home_id = homes.home_id(self._home)
        log.info("daemon.starting", home=str(self._home.root), pid=os.getpid())
        async with LocalBackend(self._home_id) as self._backend, anyio.create_task_group() as tasks:
            tasks.start_soon(feed_watchdog)
            tasks.start_soon(extend_timeout, STARTING_SECONDS)
            self._kinds = self._warm_kinds(self._config, self._scripts)
            self._warn()
            earlier = await self._take_over()
            await self._assemble()
            await self._serve(earlier, tasks)
            tasks.cancel_scope.cancel()
        log.info("daemon.stopped", home=str(self._home.root))

    def _warn(self) -> None:
        """Tell what the configuration asks for and this machine does not give."""
        overlap = overlap_warning(self._config.daemon.ports, ephemeral_range())
        if overlap is not None and any(kind.wants_port for kind in self._kinds.values()):
            log.warning("config.warning", text=overlap)
        self._tell_unenforced(self._config)

    def _tell_unenforced(self, config: Config) -> None:
        for told in self._unenforced:
            del self._trouble[told]
        self._unenforced = config.unenforced(self._backend.limited)
        for text in self._unenforced:
            log.warning("config.warning", text=text)
            self._trouble[text] = text

    async def _take_over(self) -> _Earlier:
        """End the processes of an earlier life; complete its claims, or hand them back."""
        boot_id = posix.boot_id()
        noted = await in_thread(lambda: noted_servers(self._home, boot_id) | self._held.store.noted(boot_id))
        failpoint.reach("start.noted_read")
        alive = await in_thread(posix.kill_earlier_life, self._home_id, KILL_SECONDS, noted)
        self._backend.know_unkillable(alive)
        failpoint.reach("start.earlier_killed")
        for name in await in_thread(remove_servers, self._home, alive):
            log.error("server.unkillable", server=name)
            self._trouble[f"server {name}"] = (
                f"{name}, a warm server of an earlier life, would not die; it may hold a license"
            )
        failpoint.reach("start.servers_removed")
        set_by_people = await in_thread(self._held.store.overrides)
        self._reach = overrides.widest(self._limits, overrides.in_force(self._limits, set_by_people))
        adopted = await self._left_behind()
        if self._until_eof:
            adopted = [each for each in adopted if each.spec.batch is not None and each.spec.batch == self._batch]
        return _Earlier(noted, alive, adopted)

    async def _left_behind(self) -> list[Intake]:
        """The claims of an earlier life without a row."""
        suspects = Suspects(self._home.suspects("claims"))
        portions, out = suspects.sorted_out(await in_thread(self._unfinished_ids))
        intakes = await self._adopt(suspects, portions)
        failpoint.reach("start.claims_completed")
        text = (
            f"{TRIES_MAX} starts of the daemon ended while they took this drop up, so it was not looked into again; it "
            "is kept beside this manifest: please report it"
        )
        for job_id in out:
            log.error("inbox.poison", id=job_id, text=text)
            intakes.append(self._decide(self._claims.set_aside(job_id, "poison", text)))
        return sorted(intakes, key=lambda intake: age(intake.id))

    def _unfinished_ids(self) -> list[str]:
        """The folders in ``work/`` without a row. Blocks."""
        store = self._held.store
        discard_unfinished(self._home)
        failpoint.reach("start.uploads_discarded")
        result = newer_result(self._home, store.unfinished(), store.last_id())
        if result is not None:
            raise damaged(self._home.db, f"it is older than the results: {result} is not finished in it, or not in it")
        return self._claims.unfinished_ids(set(store.live().values()))

    async def _adopt(self, suspects: Suspects, portions: list[list[str]]) -> list[Intake]:
        """Take claims up, a portion at a time; trouble of the machine is waited out, as by a daemon that runs."""
        intakes: list[Intake] = []
        told = False
        waiting = deque(portions)
        while waiting:
            portion = waiting.popleft()
            try:
                intakes += await in_thread(self._take_up, suspects, portion)
            except (OSError, MemoryError) as error:
                if self._until_eof or not _may_pass_by_itself(error):
                    raise
                if not told:
                    text = "drops that an earlier life had taken wait in work/, and the start for them; free some space"
                    log.error("start.delayed", id=portion[0], error=str(error) or "no memory", text=text)
                told = True
                notify(f"EXTEND_TIMEOUT_USEC={round(EXTEND_SECONDS * 1e6)}")
                waiting.extendleft([job_id] for job_id in reversed(portion))  # alone: what goes through is done
                await anyio.sleep(RETRY_SECONDS)
        return intakes

    def _take_up(self, suspects: Suspects, portion: list[str]) -> list[Intake]:
        """Blocks. Raises ``NotDurable``, and ``OSError``, ``MemoryError``: the machine is in trouble, it may be tried
        again.
        """
        suspects.begin(portion)
        try:
            intakes = [self._decide(taken) for taken in self._claims.adopt(portion)]
        except (OSError, MemoryError) as error:
            if isinstance(error, NotDurable | MemoryError) or is_passing(error):
                suspects.forgive(portion)
            raise
        suspects.clear(portion)
        return intakes

    def _decide(self, taken: Taken) -> Intake:
        return decide(self._config, self._reach, self._home, taken)

    async def _assemble(self) -> None:
        self._notifier = Notifier(
            self._config.notify,
            home=self._home,
            home_id=self._home_id,
            backend=self._backend,
            environ=os.environ,
            config_dir=self._config.path.parent,
            trouble=self._trouble,
        )
        engine = self._engine = Engine(
            config=self._config,
            limits=self._limits,
            host=self._host,
            store=self._held.store,
            results=self._results,
            files=self._files,
            collector=Collector(self._home, self._results, self._files),
            make_pool=self._make_pool,
            make_runner=self._make_runner,
            suspects=Suspects(self._home.suspects("collecting")),
            trouble=self._trouble,
            parks=self._until_eof,
            parks_not=self._batch,
            published=self._published,
            batch_over=self._batch_over,
        )
        self._inbox = Inbox(
            self._home,
            lambda: engine.config,
            lambda: engine.reach,
            self._claims,
            self._ids,
            await in_thread(self._held.store.originals),
            lambda: engine.world.no_intake,
        )
        self._desk = Desk(
            engine=engine,
            inbox=self._inbox,
            home=self._home,
            history=self._held.history,
            ids=self._ids,
            host=self._host,
            heartbeat=self._heartbeat,
            escaped=lambda: self._backend.escaped,
            lost_lines=self._held.lines.lost,
            page=lambda: self._doors.page,
            present=lambda: self._meter.present,
        )
        self._retention = Retention(
            lambda: engine.config.retention,
            home=self._home,
            history=self._held.old,
            folders=self._folders,
            in_store=engine.in_store,
            in_use=partial(_in_use, self._home),
            trouble=self._trouble,
        )
        self._meter = Meter(engine.world, lambda: engine.limits, engine.bell, engine.in_store)
        await self._desk.prepare()
        # Before the first job may start.
        engine.see_disk(await in_thread(look, self._home.root, self._config.daemon.disk_reserve))

    def _make_pool(self, post: Callable[[ServerEvent], None]) -> Pool:
        return Pool(
            home=self._home,
            home_id=self._home_id,
            boot_id=posix.boot_id(),
            backend=self._backend,
            leases=self._leases,
            solvers=warm_solvers(self._config),
            kinds=self._kinds,
            post=post,
        )

    def _make_runner(self, post: Callable[[Event], None], pool: Pool) -> Runner:
        return Runner(
            home=self._home,
            home_id=self._home_id,
            boot_id=posix.boot_id(),
            results=self._results,
            backend=self._backend,
            pool=pool,
            environ=dict(os.environ),
            script_environ=self._scripts,
            config_dir=self._config.path.parent,
            post=post,
        )

    def _warm_kinds(self, config: Config, scripts: Mapping[str, Mapping[str, str]]) -> Mapping[str, WarmKind]:
        return warm_kinds(config, self._backend, os.environ, scripts, self._caches)

    async def _serve(self, earlier: _Earlier, tasks: TaskGroup) -> None:
        """Recover, serve until told to stop, and tell the last news."""
        engine = self._engine
        setup = Setup(self._config, self._limits, self._scripts, self._kinds, self._as_read)
        reload = Reload(engine, setup, self._read_again, self._use, f"kill -HUP {os.getpid()} has it read")
        watch = DiskWatch(self._home.root, lambda: engine.config.daemon.disk_reserve, engine.see_disk, self._trouble)
        tasks.start_soon(self._heartbeat.run)
        tasks.start_soon(watch.run)
        # It is not waited until all is ready: on a full disk that may need the room that this makes. What is not marked
        # as published it leaves alone, and recovery needs nothing else.
        tasks.start_soon(self._retention.run)
        tasks.start_soon(self._meter.run)
        tasks.start_soon(self._notifier.run)
        tasks.start_soon(reload.run)
        tasks.start_soon(self._desk.readers.run)
        tasks.start_soon(obey_signals, engine, reload.ask)
        if self._until_eof:
            tasks.start_soon(drain_at_eof, engine)
        await self._doors.prepare()
        with self._doors.opened() as sock:
            async with anyio.create_task_group() as talking:
                async with anyio.create_task_group() as self._telling:

                    def ready() -> None:
                        app = make_app(self._desk, self._folders, lambda: self._doors.policy)
                        talking.start_soon(self._doors.serve, app, sock, app.state.streams.review)
                        solvers = sorted(self._config.solver)
                        log.info(
                            "daemon.ready", home=str(self._home.root), inbox=str(self._home.inbox), solvers=solvers
                        )
                        notify("READY=1")

                    await engine.run(
                        adopted=earlier.adopted,
                        alive=earlier.alive,
                        survivors=partial(posix.survivors, self._home_id, earlier.noted),
                        intake=anyio.sleep_forever if self._until_eof else partial(self._inbox.run, engine.accept),
                        ready=ready,
                    )
                await self._meter.finish()
                with anyio.move_on_after(NEWS_SECONDS):
                    await self._notifier.finish()
                talking.cancel_scope.cancel()

    # --- what happens meanwhile -------------------------------------------------------------------------------------

    def _published(self, job: Job) -> None:
        self._desk.published(job)
        self._notifier.job(job)
        self._retention.published()

    def _batch_over(self, over: Batch) -> None:
        if self._engine.config.notify is not None:
            self._telling.start_soon(self._tell_batch, over)

    async def _tell_batch(self, over: Batch) -> None:
        try:
            self._notifier.batch(over, await self._desk.finished_of_batch(over))
        except SolvisorError as error:  # a courtesy must not end what runs jobs
            log.warning("notify.failed", id=over.id, on="batch", error=str(error))

    def _read_again(self) -> Setup:
        """The configuration as its file says now. Blocks. Raises ``ConfigError``."""
        as_read = stamp(self._config.path)
        config = configuration.load(self._config.path)
        scripts = source_environments(config, os.environ)
        return Setup(config, _limits(config, self._until_eof), scripts, self._warm_kinds(config, scripts), as_read)

    def _use(self, setup: Setup) -> None:
        self._leases.use(setup.config.daemon.ports)
        self._notifier.use(setup.config.notify)
        self._doors.use(setup.config.api)
        self._tell_unenforced(setup.config)
        self._retention.reconsider()


def _may_pass_by_itself(error: OSError | MemoryError) -> bool:
    if isinstance(error, NotDurable):
        return False
    lasting = errno.EIO, errno.EROFS  # somebody has to mend the disk, and to mount it anew
    return isinstance(error, MemoryError) or (is_passing(error) and error.errno not in lasting)


def _limits(config: Config, until_eof: bool) -> Limits:
    """What may run at once on this machine. Raises ``ConfigError``."""
    limits = config.limits(posix.usable_cpus(), posix.total_memory_bytes())
    if until_eof:  # no servers but for the jobs that are sent
        limits = replace(limits, pools={name: replace(rule, min=0) for name, rule in limits.pools.items()})
    return limits


def _in_use(home: Home) -> set[str]:
    """The ids of jobs of which a process has something open. Blocks."""
    root = os.path.realpath(home.root)
    places = (os.path.relpath(path, root).split(os.sep) for path in open_beneath(root))
    return {place[1] for place in places if len(place) > 1}
