"""The life of one warm server: a port, a folder, a start, the proof that it answers, jobs, its end, and nothing left.

A start whose port somebody else took is tried again on other ports before it counts. In service it waits for jobs and
is asked now and then whether it still answers. It ends asked to quit, then by SIGTERM, then by SIGKILL for its whole
tree; one whose job was stopped, or that does not answer, is not asked. Only when its tree is proven empty are its port
and its folder given back.

Rules: what happens to it is posted; whether there should be such a server is decided elsewhere. Nothing that one server
does, no defect of its kind either, reaches beyond it. This module must not know jobs, states or how a kind talks.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import anyio.to_thread
import structlog
from anyio import CapacityLimiter

from .errand import Errand
from .errors import NotReady, PortTaken, SolvisorError, SpawnError
from .events import Condemn, Retire, ServerEnded, ServerEvent, ServerReady, ServerSeen, ServerStuck, ServerUp
from .filetext import one_line
from .hand import Hand
from .interfaces import AttemptSpec, Backend, Channel, Handle, Site, Up, WarmKind
from .kinds import WarmSolver
from .lastwords import end_of, is_denied, last_words, said, says_port_taken
from .leases import Lease, Leases
from .model import ExitFacts, Server
from .names import printable
from .noted import NotedProcess, note, remove
from .trouble import is_passing
from .units import describe_duration

if sys.platform != "win32":
    from .process.proc import tree_rss_bytes

CLIENT_SECONDS = 1.0
"""How long a client may take to come to its own end once its server is gone: it may have been done with it."""

PORT_TRIES = 5
"""Ports that somebody else may take before a start is given up."""

LONGEST_ERROR = 800

log = structlog.get_logger()


class Ground(NamedTuple):
    """What all servers of a daemon live on. ``folder`` holds a folder for each; ``post`` tells the engine."""

    folder: Path
    home_id: str
    boot_id: str
    backend: Backend
    leases: Leases
    post: Callable[[ServerEvent], None]
    files: CapacityLimiter


class End(NamedTuple):
    """How one try to have a server ended. ``error`` is ``None`` if it was asked to end."""

    error: str | None = None
    blameless: bool = False
    other_port: bool = False
    denied: bool = False


class Life:
    """One server. ``news`` is set when there is nothing more to be had of it: it ended, or is to be ended.

    ``turn`` is of the channel: one job, or one check. ``ended``: its processes are gone, or would not die.
    """

    def __init__(self, server: Server, solver: WarmSolver, kind: WarmKind, ground: Ground) -> None:
        self.name = server.name
        self.turn = asyncio.Lock()
        self.news = anyio.Event()
        self.ended = anyio.Event()
        self._lent: Errand | None = None
        self._hand = Hand("solvisor-serving")  # its own: its files may lie on a share that hangs
        self.channel: Channel | None = None
        self.handle: Handle | None = None
        self.answered_at = 0.0
        self._looked_at = 0.0  # when the last look that is over began
        self.over_job = False  # it has heard of a job that has not gone well yet
        self._solver = solver
        self._kind = kind
        self._ground = ground
        self._up: Up | None = None
        self._facts: ExitFacts | None = None
        self._epitaph = f"{self.name} is gone"
        self._last_words = ""
        self._at_once = False  # SIGKILL, with no manners
        self._asks = True  # before SIGTERM, whether it would quit
        self._problem: str | None = None  # why it is ended, if that is its own fault

    # --- what others want -------------------------------------------------------------------------------------------

    def end(self, *, now: bool = False) -> None:
        """Have it ended; ``now`` by SIGKILL at once."""
        self._at_once = self._at_once or now
        self.news.set()
        if self._at_once and self.handle is not None:
            self.handle.stop(now=True)

    def condemn(self, why: str, *, its_fault: bool) -> None:
        """Have it ended although it may be busy with who knows what: it is not asked."""
        if self.news.is_set():
            return
        why = one_line(why, LONGEST_ERROR)
        if its_fault:
            self._problem = why
            log.warning("server.condemned", server=self.name, error=why)
        self._ground.post(Condemn(self.name, why, time.monotonic()))
        self._asks = False
        self.end()

    @property
    def stuck(self) -> bool:
        """Whether its processes would not die."""
        return self._facts is not None and self._facts.unkillable

    @property
    def epitaph(self) -> str:
        """How it ended, for people."""
        return self._epitaph

    @property
    def last_words(self) -> str:
        """The end of what it said, once it ended."""
        return self._last_words

    async def ask(self) -> str | None:
        """What is wrong with it while it has no job; ``None`` if it answers or ended, or the machine is in trouble."""
        channel, seconds = self.channel, self._solver.servers.heartbeat_timeout
        problem: str | None = f"{self.name} did not answer within {describe_duration(seconds)}"

        async def check(channel: Channel) -> None:
            nonlocal problem
            problem = await self._checked(channel)
            tasks.cancel_scope.cancel()

        async with self.turn:
            with anyio.move_on_after(seconds):
                async with anyio.create_task_group() as tasks:
                    if channel is not None:
                        tasks.start_soon(check, channel)
                    await self.ended.wait()
                    tasks.cancel_scope.cancel()
        return None if self.ended.is_set() else problem

    async def _checked(self, channel: Channel) -> str | None:
        try:
            await channel.check()
        except Exception as error:
            if is_passing(error if isinstance(error, OSError) else error.__cause__):
                log.warning("server.not_asked", server=self.name, error=str(error))
                return None
            if not isinstance(error, SolvisorError | OSError):
                log.exception("server.check_failed", server=self.name)
            return f"{self.name} did not answer as it should: {error}"
        self.answered_at = time.monotonic()
        return None

    async def prepare(self, stage: Callable[[], object]) -> None:
        """Do this for its next job, and look whether it is spent: one hand-over for both. Raises as ``stage``."""

        def work() -> None:
            stage()
            self._look()

        await self._hand.do(work)

    async def spent(self, *, since: float = math.inf) -> str | None:
        """Why it must not have another job, if so; that is looked for where it takes a look.

        Not where the last look was after ``since``, on the monotonic clock.
        """
        channel = self.channel
        if channel is None:
            return None
        if channel.look is not None and self._looked_at <= since:
            await self._hand.do(self._look)
        return channel.spent

    def _look(self) -> None:
        channel = self.channel
        if channel is not None and channel.look is not None:
            began = time.monotonic()
            channel.look()
            self._looked_at = began

    def lend(self, errand: Errand | None) -> None:
        """It has this job, until another or none: that ends where this server does; if by itself, a moment later."""
        self._lent = errand
        if self.ended.is_set():
            self._ended()

    async def weigh(self) -> None:
        """Tell how much memory it holds."""
        if sys.platform != "win32" and self.handle is not None:
            with suppress(OSError):  # no descriptor to look with: the next time
                size = await anyio.to_thread.run_sync(tree_rss_bytes, self.handle.pid, limiter=self._ground.files)
                self._ground.post(ServerSeen(self.name, size))

    # --- from its start to its end ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it; when this returns nothing is left, and it was posted."""
        try:
            end = await self._tries()
        except Exception as error:
            log.exception("server.defect", server=self.name)
            end = End(f"{self.name} ended by a defect of Solvisor: {type(error).__name__}: {error}")
        error_text = None if end.error is None else one_line(printable(end.error), LONGEST_ERROR)
        blameless, now = end.blameless or end.denied, time.monotonic()
        self._ground.post(ServerEnded(self.name, error_text, blameless, now, end.denied, self.over_job))
        self._ended()
        self._hand.let_go()
        if error_text is None:
            log.info("server.stopped", server=self.name)
        else:
            log.warning("server.failed", server=self.name, error=error_text)

    async def _tries(self) -> End:
        end = End()
        for _ in range(PORT_TRIES):
            if self.news.is_set():
                return end
            latest = await self._try()
            if end.error is not None and latest.blameless:  # no port is left: what went wrong before says more
                return end._replace(blameless=True)
            end = latest
            if not end.other_port or end.denied:
                return end
            log.warning("server.port_lost", server=self.name, error=end.error, text="trying another port")
        return end._replace(blameless=True)

    async def _try(self) -> End:
        """One start, and all that follows; when it returns, nothing is left."""
        leases, lease = self._ground.leases, None
        if self._kind.wants_port:
            try:
                lease = leases.take(self._kind.host)
            except SolvisorError as error:  # this machine does not have that address
                return End(str(error))
            except OSError as error:
                return End(f"no port could be leased: {error}", blameless=True)
            if lease is None:
                return End(leases.why_none(self._kind.host), blameless=True)
            log.info("port.leased", server=self.name, port=lease.port)
        self.handle = None
        rests = True
        try:
            end = await self._lived(lease)
            rests = self.handle is not None and not end.other_port  # a port that it never had is not worn out
            return end
        finally:
            if lease is not None:
                log.info("port.released", server=self.name, port=lease.port)  # first: then any daemon may have it
                leases.give_back(lease, rests=rests)

    async def _lived(self, lease: Lease | None) -> End:
        ground, folder = self._ground, self._ground.folder / self.name
        place = Site(self.name, str(folder), str(folder / "tmp"), lease.port if lease is not None else None)
        token = f"{self.name}.{secrets.token_hex(8)}"
        try:
            spec = await anyio.to_thread.run_sync(self._prepare, place, token, limiter=ground.files)
            self.handle = handle = await ground.backend.launch(lambda: spec)
        except (OSError, SpawnError) as error:
            remove(folder)
            cause = error if isinstance(error, OSError) else error.__cause__
            return End(f"{self.name} could not be started: {error}", blameless=is_passing(cause))
        up = self._up = Up(place, spec.token, handle.pid, spec.stdout, spec.stderr)
        try:
            await anyio.to_thread.run_sync(self._note, folder, handle, token, limiter=ground.files)
            end = await self._supervised(handle, up)
        except Exception:
            handle.stop(now=True)
            with anyio.CancelScope(shield=True):
                await handle.wait()
            raise
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(remove, folder, limiter=ground.files)
        return end

    def _prepare(self, place: Site, token: str) -> AttemptSpec:
        remove(Path(place.folder))
        self._ground.folder.mkdir(mode=0o700, exist_ok=True)
        os.makedirs(place.tmp, mode=0o700)
        program = self._kind.program(place)
        return AttemptSpec(
            token=f"{self._ground.home_id}/{token}",
            argv=program.argv,
            cwd=place.folder,
            env=program.env,
            stdout=os.path.join(place.folder, "stdout.log"),
            stderr=os.path.join(place.folder, "stderr.log"),
            grace_seconds=self._solver.servers.stop_grace,
            log_max_bytes=self._solver.log_max,
            memory_limit_bytes=self._solver.memory_limit,
            processes_limit=self._solver.processes_limit,
        )

    def _note(self, folder: Path, handle: Handle, token: str) -> None:
        if handle.pid_start is not None:
            note(folder, NotedProcess(handle.pid, handle.pid_start, self._ground.boot_id, token))

    async def _supervised(self, handle: Handle, up: Up) -> End:
        """From the existence of its process to the proof that nothing of its tree is left."""
        began = time.monotonic()
        log.info("server.started", server=self.name, pid=up.pid, port=up.place.port)
        self._ground.post(ServerUp(self.name, up.pid, up.place.port))
        died = anyio.Event()  # the processes of this try

        async def reap() -> None:
            self._facts = await handle.wait()
            # Now, before its folder goes: whoever had a job for it asks for its last words.
            self._last_words = await anyio.to_thread.run_sync(last_words, up, limiter=self._ground.files)
            self._epitaph = end_of(self.name, self._kind, self._facts, self._last_words)
            died.set()
            if self.channel is not None or self._facts.unkillable:
                self._lose()
            if self._facts.unkillable:
                log.error("server.unkillable", server=self.name, pid=up.pid)
                self._ground.post(ServerStuck(self.name))
                await handle.wait_gone()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reap)
            channel, end = await self._connected(up, died)
            if channel is not None:
                seconds = time.monotonic() - began
                self.channel, self.answered_at = channel, time.monotonic()
                log.info("server.ready", server=self.name, port=channel.port, seconds=round(seconds, 4))
                self._ground.post(ServerReady(self.name, channel.port, seconds, time.monotonic()))
                if died.is_set():  # in this very moment
                    self._lose()
                end = await self._in_service()
            await self._finish(handle, died)
            if channel is not None:
                async with self.turn:  # whoever talks to it hears of its end by himself
                    channel.close()
        return end

    def _lose(self) -> None:
        """The processes of a server in service are gone, or those of any server would not die."""
        self._ground.post(Condemn(self.name, "its process ended", time.monotonic()))
        self._ended()
        self.news.set()

    def _ended(self) -> None:
        self.ended.set()
        if self._lent is not None:
            asyncio.get_running_loop().call_later(CLIENT_SECONDS, self._end_errand, self._lent)

    def _end_errand(self, errand: Errand) -> None:
        if self._lent is errand:
            errand.lose_server()

    async def _connected(self, up: Up, died: anyio.Event) -> tuple[Channel | None, End]:
        """The way to talk to a server that answers; or why there is none."""
        channel: Channel | None = None
        failure: NotReady | None = None
        seen = "nothing of it was seen"

        def take_note(text: str) -> None:
            nonlocal seen
            seen = text

        async def connect() -> None:
            nonlocal channel, failure
            try:
                channel = await self._kind.connect(up, take_note)
            except NotReady as error:
                failure = error
            except Exception as error:
                log.exception("server.connect_failed", server=self.name)
                failure = NotReady(f"it could not be reached: {type(error).__name__}: {error}")
            tasks.cancel_scope.cancel()

        async def watch(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        seconds = self._solver.servers.start_timeout
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connect)
                tasks.start_soon(watch, died)
                tasks.start_soon(watch, self.news)
        if channel is not None:
            return channel, End()
        if self.news.is_set() and not self.ended.is_set():
            return None, End()
        if died.is_set():
            lost = up.place.port is not None and (says_port_taken(up) or self._is_taken(up.place.port))
            denied = is_denied(self._solver.license_denied, up)
            return None, End(f"{self.epitaph}; it was not ready yet", other_port=lost, denied=denied)
        if failure is not None:
            lost = up.place.port is not None and isinstance(failure, PortTaken)
            return None, End(f"{self.name}: {failure}", other_port=lost)
        return None, End(f"{self.name} was not ready in {describe_duration(seconds)}: {seen}{said(last_words(up))}")

    def _is_taken(self, port: int) -> bool:
        with suppress(SolvisorError, OSError):
            return not self._ground.leases.is_free(self._kind.host, port)
        return False

    async def _in_service(self) -> End:
        """Until it ends, is to end, or does not answer any more."""
        while True:
            with anyio.move_on_after(self._solver.servers.heartbeat):
                await self.news.wait()
            if self.news.is_set():
                wanted = self._at_once or not self._asks or not self.ended.is_set()
                return End(self._problem) if wanted else End(self.epitaph)
            await self.weigh()
            if not self.turn.locked():
                problem = await self.ask()
                if problem is not None:
                    self.condemn(problem, its_fault=True)
            why = await self.spent()
            if why is not None:
                self._ground.post(Retire(self.name, why, time.monotonic()))

    async def _finish(self, handle: Handle, died: anyio.Event) -> None:
        """Its own quit, SIGTERM, SIGKILL; until its processes are gone, or would not die."""
        if self.channel is not None and self._asks and not self._at_once and not died.is_set():
            with anyio.move_on_after(self._solver.servers.stop_grace):
                await self._quit(self.channel, died)
            if not died.is_set():
                self.channel.close()  # who hangs up first keeps the connection in TIME_WAIT: not the server's port
        if not died.is_set():
            handle.stop(now=self._at_once)
        await died.wait()

    async def _quit(self, channel: Channel, died: anyio.Event) -> None:
        """Ask it to end, and wait for that if it could be asked; ended at once, it is not waited for who asks."""

        async def watch() -> None:
            await died.wait()
            if self._at_once:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            asked = False
            try:
                asked = await channel.quit()
            except (SolvisorError, OSError) as error:
                log.info("server.quit_failed", server=self.name, error=str(error))
            except Exception:
                log.exception("server.quit_failed", server=self.name)
            if not asked:
                tasks.cancel_scope.cancel()
