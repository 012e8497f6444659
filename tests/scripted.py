"""A backend whose processes do what the test says; around it an engine and a desk, a real store and real folders."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from solvisor import config as configuration
from solvisor.clock import now_us
from solvisor.collector import Collector
from solvisor.config import Config
from solvisor.desk import Desk
from solvisor.engine import Engine
from solvisor.errors import SpawnError
from solvisor.hand import Hand
from solvisor.heartbeat import Heartbeat
from solvisor.history import History
from solvisor.home import Home, IdMaker
from solvisor.inbox import Inbox
from solvisor.intake import decide
from solvisor.interfaces import AttemptSpec, WarmKind, Watcher
from solvisor.leases import Leases
from solvisor.model import Batch, ExitFacts, FileFact, Intake, Job, JobSpec, Request, Source, Usage
from solvisor.pool import Pool
from solvisor.reload import Reload, Setup, stamp
from solvisor.runner import Runner
from solvisor.solvers.warm import warm_solvers
from solvisor.spool import Claims, Results, discard_unfinished
from solvisor.store import Store
from solvisor.suspects import Suspects
from solvisor.views import Submitted
from spool_kit import taken_up
from waiting import eventually

HOME_ID = "f" * 32

CONFIG = """
[daemon]
max_jobs = 2
cpus = 4
stop_timeout = "0.1s"
[solver.x]
accept = ["*.x"]
command = ["/bin/true"]
"""


class ScriptedHandle:
    """A process that ends when the test calls ``end``, or when it is stopped."""

    def __init__(self, spec: AttemptSpec, pid: int) -> None:
        self.spec = spec
        self.pid = pid
        self.pid_start: int | None = 1
        self.job_id = Path(spec.cwd).parent.name
        self.stops: list[bool] = []
        self.obedient = True
        self._ended = anyio.Event()
        self._gone = anyio.Event()
        self._facts: ExitFacts | None = None

    def end(self, exit_code: int | None = 0, *, signal: int | None = None, stopped: bool = False) -> None:
        self._facts = ExitFacts(exit_code, signal, now_us(), Usage(0.1, 0.1, 4096, "sampled"), stopped=stopped)
        self._ended.set()

    def refuse_to_die(self) -> None:
        self._facts = ExitFacts(None, None, now_us(), stopped=True, unkillable=True)
        self._ended.set()

    def vanish(self) -> None:
        self._gone.set()

    async def wait(self) -> ExitFacts:
        await self._ended.wait()
        assert self._facts is not None
        return self._facts

    def stop(self, *, now: bool = False) -> None:
        self.stops.append(now)
        if self.obedient and not self._ended.is_set():
            self.end(None, signal=15, stopped=True)

    async def wait_gone(self) -> None:
        await self._gone.wait()


class ScriptedBackend:
    """Hands out scripted processes; ``refuse`` makes the next launch fail."""

    def __init__(self) -> None:
        self.handles: list[ScriptedHandle] = []
        self.refuse: SpawnError | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.on_launch: Callable[[AttemptSpec], None] = lambda spec: None

    def start(self, prepare: Callable[[], AttemptSpec], watcher: Watcher) -> None:
        task = asyncio.get_running_loop().create_task(self._watched(prepare, watcher))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _watched(self, prepare: Callable[[], AttemptSpec], watcher: Watcher) -> None:
        try:
            handle = await self.launch(prepare)
        except SpawnError as error:
            watcher.refused(error)
            return
        except Exception as error:
            watcher.broken(error)
            return
        watcher.started(handle)
        facts = await handle.wait()
        watcher.exited(facts)
        if facts.unkillable:
            await handle.wait_gone()
            watcher.gone()

    async def launch(self, prepare: Callable[[], AttemptSpec]) -> ScriptedHandle:
        try:
            spec = await anyio.to_thread.run_sync(prepare)
        except OSError as error:
            raise SpawnError("staging", f"its files could not be staged: {error}") from error
        self.on_launch(spec)
        Path(spec.stdout).touch()
        Path(spec.stderr).touch()
        if self.refuse is not None:
            raise self.refuse
        self.handles.append(ScriptedHandle(spec, 100_000 + len(self.handles)))
        return self.handles[-1]


class Bench:
    """One home with its store; engines come and go on it as daemons would."""

    def __init__(self, root: Path, config: str) -> None:
        self.home = Home.at(root)
        self.home.prepare()
        self.config: Config = configuration.parse(config, root / "solvisor.toml")
        self.store = Store.open(self.home.db)
        self.history = History.open(self.home.db)
        self.ids = IdMaker()
        self.backend = ScriptedBackend()
        self.results = Results(self.home)
        self.files = Hand("files")
        self.survivors: set[str] = set()
        self.over: list[str] = []
        self.kinds: dict[str, WarmKind] = {}
        self.scripts: dict[str, dict[str, str]] = {}
        self.intake_task: Callable[[], Awaitable[None]] = anyio.sleep_forever
        self.engine: Engine
        self.desk: Desk
        self.reload: Reload

    @asynccontextmanager
    async def running(self, adopted: Sequence[Intake] = (), alive: Sequence[str] = ()) -> AsyncIterator[Engine]:
        """A life of an engine; at the end it is dropped as by ``kill -9`` unless it drained by itself."""
        ready = anyio.Event()

        def published(job: Job) -> None:
            self.desk.published(job)

        def batch_over(batch: Batch) -> None:
            self.over.append(batch.id)

        self.backend = ScriptedBackend()
        self.engine = Engine(
            config=self.config,
            limits=self.config.limits(4, 8 << 30),
            host=socket.gethostname(),
            store=self.store,
            results=self.results,
            files=self.files,
            collector=Collector(self.home, self.results, self.files),
            make_pool=lambda post: Pool(
                home=self.home,
                home_id=HOME_ID,
                boot_id="boot",
                backend=self.backend,
                leases=Leases(self.config.daemon.ports),
                solvers=warm_solvers(self.config),
                kinds=self.kinds,
                post=post,
            ),
            make_runner=lambda post, pool: Runner(
                home=self.home,
                home_id=HOME_ID,
                boot_id="boot",
                results=self.results,
                backend=self.backend,
                pool=pool,
                environ={"PATH": "/usr/bin:/bin"},
                script_environ={},
                config_dir=self.home.root,
                post=post,
            ),
            suspects=Suspects(self.home.suspects("collecting")),
            published=published,
            batch_over=batch_over,
        )
        engine = self.engine
        inbox = Inbox(self.home, lambda: engine.config, lambda: engine.reach, Claims(self.home), self.ids)
        desk = self.desk = Desk(
            engine=self.engine,
            inbox=inbox,
            home=self.home,
            history=self.history,
            ids=self.ids,
            host="ws04",
            heartbeat=Heartbeat(),
        )
        await desk.prepare()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._reload().run)
            self.stopped = anyio.Event()

            async def live() -> None:
                await self.engine.run(
                    adopted=adopted,
                    alive=alive,
                    survivors=lambda: self.survivors,
                    intake=self.intake_task,
                    ready=ready.set,
                )
                self.stopped.set()

            tasks.start_soon(live)
            await ready.wait()
            yield self.engine
            tasks.cancel_scope.cancel()
        self.files.let_go()

    def _reload(self) -> Reload:
        """What ``reload.ask`` does: the file is read again."""

        def setup(config: Config) -> Setup:
            return Setup(config, config.limits(4, 8 << 30), dict(self.scripts), self.kinds, stamp(config.path))

        def read() -> Setup:
            return setup(configuration.load(self.config.path))

        self.reload = Reload(self.engine, setup(self.config), read, lambda setup: None, "reload has it read")
        return self.reload

    def close(self) -> None:
        """Close the database."""
        self.history.close()
        self.store.close()

    def adopt(self) -> list[Intake]:
        """What an earlier life left without a row, as the next one takes it up."""
        discard_unfinished(self.home)
        known = {job.id for job in self.store.live_jobs()}
        found = taken_up(Claims(self.home), known)
        return [decide(self.config, self.config.limits(4, 8 << 30), self.home, taken) for taken in found]

    async def send(
        self,
        name: str = "a.x",
        data: bytes = b"input\n",
        job: dict[str, Any] | bytes | None = None,
        *,
        user: str | None = "ann",
        batch: str | None = None,
        key: str | None = None,
    ) -> Submitted:
        """A submission of one file."""
        submission = self.desk.begin(name)
        await submission.begin(name)
        await submission.write(data)
        await submission.end()
        return await self.desk.submit(submission, job, Request("socket", user, batch, key))

    def intake(self, name: str = "a.x", refusal: tuple[str, str] | None = None, **wishes: object) -> Intake:
        """A claimed drop: the folder is there, as the spool would have left it."""
        job_id = self.ids.new_id(name, now_us())
        folder = self.home.work / job_id / "input"
        folder.mkdir(parents=True)
        (folder / name).write_text("input\n")
        fact = FileFact(f"input/{name}", 6, hashlib.sha256(b"input\n").hexdigest())
        spec = JobSpec(name=name, solver="x", primary=name, inputs=(fact,), source=Source("inbox", name), **wishes)  # type: ignore[arg-type]  # the wishes of a test
        return Intake(job_id, spec, refusal)


def manifest(bench: Bench, job_id: str) -> dict[str, Any]:
    (path,) = bench.home.root.glob(f"*/{job_id}/manifest.json")
    loaded: dict[str, Any] = json.loads(path.read_bytes())
    return loaded


async def published(bench: Bench, job_id: str) -> dict[str, Any]:
    await eventually(lambda: list(bench.home.root.glob(f"[dfr]*/{job_id}/manifest.json")), f"{job_id} published")
    return manifest(bench, job_id)


async def launched(bench: Bench, count: int) -> None:
    await eventually(lambda: len(bench.backend.handles) >= count, f"{count} launches")


async def run_to_end(bench: Bench, job_id: str, exit_code: int = 0) -> None:
    """Let the process of a job end, and wait until its result lies in its place."""
    await eventually(lambda: [h for h in bench.backend.handles if h.job_id == job_id], f"{job_id} launched")
    next(h for h in reversed(bench.backend.handles) if h.job_id == job_id).end(exit_code)
    with anyio.fail_after(20):
        await bench.desk.wait_finished(job_id, 99)


async def finish(bench: Bench, count: int, exit_code: int = 0, **wishes: Any) -> list[str]:
    """The ids of so many new jobs that ran one after the other."""
    ids = []
    for _ in range(count):
        ids.append((await bench.send(**wishes)).id)
        await run_to_end(bench, ids[-1], exit_code)
    return ids
