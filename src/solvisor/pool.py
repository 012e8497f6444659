"""The warm servers of a daemon: started and ended as the engine wants, each lent to one job at a time.

A job and the death of its server run against each other: whoever comes first says how the job ended. A server whose
job was stopped is ended, since nobody knows what it is still doing; one whose last answer is old is asked again before
the next job may have it.

Rules: which servers there are is the engine's to decide; what happens to one is in ``life``, and posted. This module
must not know states or how a kind talks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import anyio
import structlog
from anyio.abc import TaskGroup
from msgspec.structs import replace

from .clock import now_us
from .errand import Errand
from .errors import ServerBroken, SolvisorError, SpawnError, Unreached
from .events import Retire, ServerEvent, ServerFree
from .home import Home
from .interfaces import Backend, Channel, WarmKind
from .kinds import WarmSolver
from .leases import Leases
from .life import Ground, Life
from .model import ExitFacts, Server
from .noted import SERVERS

DEATH_SECONDS = 0.25
"""How long after a bad end of a job its server's death may take to show: the two are one event."""

FRESH_SECONDS = 1.0
"""A server that answered so recently is not asked again after a job."""

LOOKED_SECONDS = 0.005
"""After so short a job it is not looked again whether a server is spent: the next job has it looked anyway."""

KILLED = 9
"""SIGKILL, which not every platform has a name for."""

log = structlog.get_logger()


class Pool:
    """All warm servers of a daemon.

    ``solvers`` and ``kinds`` go by the solver's name; ``post`` hands an event to the engine.
    """

    def __init__(
        self,
        *,
        home: Home,
        home_id: str,
        boot_id: str,
        backend: Backend,
        leases: Leases,
        solvers: Mapping[str, WarmSolver],
        kinds: Mapping[str, WarmKind],
        post: Callable[[ServerEvent], None],
    ) -> None:
        files = anyio.CapacityLimiter(2)
        self._ground = Ground(home.run / SERVERS, home_id, boot_id, backend, leases, post, files)
        self._solvers = solvers
        self._kinds = kinds
        self._post = post
        self._lives: dict[str, Life] = {}
        self._stops_all: bool | None = None

    @property
    def busy(self) -> bool:
        """Whether a server is there, or something of it; what would not die holds up nobody."""
        return any(not life.stuck for life in self._lives.values())

    # --- what the engine wants --------------------------------------------------------------------------------------

    def use(self, solvers: Mapping[str, WarmSolver], kinds: Mapping[str, WarmKind]) -> None:
        """Start servers by another configuration from now on; those that are there end as they were started."""
        self._solvers, self._kinds = solvers, kinds

    def start(self, tasks: TaskGroup, server: Server) -> None:
        """Start and watch a server in a task of its own; what becomes of it is posted."""
        life = Life(server, self._solvers[server.solver], self._kinds[server.solver], self._ground)
        self._lives[server.name] = life
        if self._stops_all is not None:
            life.end(now=self._stops_all)
        tasks.start_soon(self._live, life)

    async def _live(self, life: Life) -> None:
        await life.run()
        del self._lives[life.name]

    def stop(self, name: str) -> None:
        """End a server that has no job; unknown ones are gone already."""
        life = self._lives.get(name)
        if life is not None:
            life.end()

    def stop_all(self, *, now: bool = False) -> None:
        """End every server, also those that are still to be started."""
        self._stops_all = now or bool(self._stops_all)
        for life in self._lives.values():
            life.end(now=now)

    # --- what a job wants -------------------------------------------------------------------------------------------

    async def prepare(self, name: str, stage: Callable[[], object]) -> None:
        """Do what is to be done before a server may have a job; a thread of its own does that, and nothing else waits.

        Raises as ``stage``, and ``Unreached`` if the server was gone.
        """
        await self._reached(name).prepare(stage)

    async def carry_out(self, name: str, errand: Errand) -> ExitFacts:
        """Have a server do a job; when it was stopped, its server is gone as well.

        Raises ``Unreached`` if the server was gone before it heard of it or must not have another job, ``ServerBroken``
        if it died of it or broke (then it is gone, too), ``SpawnError`` if a process of the job could not be started.
        """
        life = self._reached(name)
        async with life.turn:
            why = await life.spent(since=errand.since)
            if why is not None:
                await self._retire_spent()
                raise Unreached(f"{name} is to be replaced: {why}")
            if life.news.is_set() or life.channel is None or life.handle is None:
                raise Unreached(f"{name} was gone before it heard of the job")
            if errand.stopped:  # before its server heard of it
                return ExitFacts(None, KILLED, now_us(), stopped=True)
            log.info("server.lent", server=name, id=errand.job.id)
            errand.begun(life.handle.pid)
            life.over_job = True
            facts, error = await self._race(life, life.channel, errand)
            went_well = facts is not None and facts.exit_code == 0
            life.over_job = not went_well and not isinstance(error, Unreached | SpawnError)
        if errand.stopped:
            life.condemn("its job was stopped", its_fault=False)
            await life.ended.wait()
            return replace(facts or ExitFacts(None, KILLED, now_us()), stopped=True)
        if facts is not None and facts.exit_code == 0 and not errand.server_died:
            life.answered_at = time.monotonic()
            return facts
        if facts is None or facts.report is None:  # else the server itself said so, and lives
            with anyio.move_on_after(DEATH_SECONDS):
                await life.ended.wait()
        if life.ended.is_set():
            if isinstance(error, Unreached):
                raise error
            await errand.note(f"{name}, the warm server of this job, ended. The last it said:", life.last_words)
            raise ServerBroken(life.epitaph)
        if isinstance(error, Unreached | ServerBroken):
            life.condemn(f"{name}: {error}", its_fault=True)
            await life.ended.wait()
        if error is not None:
            raise error
        if facts is None:
            raise AssertionError(f"{name} said nothing of its job")
        life.over_job = False
        return facts

    def _reached(self, name: str) -> Life:
        life = self._lives.get(name)
        if life is None:
            raise Unreached(f"{name} was gone before it heard of the job")
        return life

    async def _retire_spent(self) -> None:
        """End all servers that must not have another job, once they have none: else one of them would be lent next."""
        for life in list(self._lives.values()):
            why = await life.spent()
            if why is not None:
                self._post(Retire(life.name, why, time.monotonic()))

    async def _race(
        self, life: Life, channel: Channel, errand: Errand
    ) -> tuple[ExitFacts | None, SolvisorError | None]:
        """The job against the death of its server."""
        facts: ExitFacts | None = None
        error: SolvisorError | None = None

        life.lend(errand)
        with errand.scope:
            try:
                facts = await channel.run(errand)
            except (Unreached, ServerBroken, SpawnError) as caught:
                error = caught
            except Exception as caught:
                log.exception("server.talk_failed", server=life.name, id=errand.job.id)
                text = f"the talk with {life.name} failed: {type(caught).__name__}: {caught}"
                error = SpawnError("talk", text)
            finally:
                life.lend(None)
        return facts, error

    async def give_back(self, name: str, *, served: bool) -> None:
        """A job is over: its server is free for the next one, once it has answered, or it is replaced.

        ``served``: it has carried the job out.
        """
        life = self._lives.get(name)
        if life is None or life.news.is_set() or life.channel is None:
            return
        if time.monotonic() - life.answered_at > FRESH_SECONDS:
            problem = await life.ask()
            if problem is not None:
                life.condemn(problem, its_fault=True)
        spent = await life.spent(since=time.monotonic() - LOOKED_SECONDS)
        if not life.news.is_set():
            self._post(ServerFree(name, served, spent, time.monotonic()))
