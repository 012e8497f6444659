"""The lives of warm servers: started, proven ready, lent to one job at a time, checked, ended, and nothing left.

One task per server. It leases a port where the kind wants one, starts the program in a folder of its own, and waits
until the kind's ``connect`` says that it answers; a start that fails is tried again on other ports before it counts.
Then the server waits for jobs; one that does not answer between jobs is replaced, and one whose job was stopped is
killed, since nobody knows what it is still doing. It is asked to quit, then signalled, then killed as a whole tree, and
only when that is proven empty are its port and its folder given back.

Rules: which servers there are is the engine's to decide; what happens to them is posted, and no state is kept here that
the world does not have, beside the processes themselves. This module must not know jobs, states or how a kind talks.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import structlog
from anyio.abc import TaskGroup
from msgspec import Struct
from msgspec.structs import replace

from .clock import now_us
from .errand import Errand
from .errors import NotReady, PortTaken, ServerBroken, SolvisorError, SpawnError, Unreached
from .events import Condemn, ServerEnded, ServerEvent, ServerFree, ServerReady, ServerSeen, ServerStuck, ServerUp
from .filetext import one_line, tail
from .home import Home
from .interfaces import AttemptSpec, Backend, Channel, Handle, Place, Up, WarmKind
from .kinds import WarmSolver
from .leases import Lease, Leases
from .model import ExitFacts, Server
from .names import printable
from .trouble import is_passing
from .units import describe_duration

if sys.platform != "win32":
    from .process.proc import tree_rss_bytes

PORT_TRIES = 5
"""Starts on different ports that may fail before one failure is counted."""

DEATH_SECONDS = 0.25
"""How long after a bad end of a job its server's death may take to show: the two are one event."""

FRESH_SECONDS = 1.0
"""A server that answered so recently is not asked again after a job."""

SERVERS = "servers"
"""The folder in ``run/`` with a folder for each server."""

KILLED = 9
"""SIGKILL, which not every platform has a name for."""

LAST_LINES = 3
LONGEST_ERROR = 800

log = structlog.get_logger()


NOTED = "process.json"
"""The file in a server's folder that names its leader."""


class NotedProcess(Struct, frozen=True):
    """The leader of a server: ``start`` in clock ticks since the boot ``boot_id``; ``token`` without the home's id."""

    pid: int
    start: int
    boot_id: str
    token: str


def noted_servers(home: Home, boot_id: str) -> dict[tuple[int, int], str]:
    """The servers that an earlier life had in this boot: (pid, start) and token. Blocks."""
    found = []
    for path in (home.run / SERVERS).glob(f"*/{NOTED}"):
        with suppress(OSError, msgspec.DecodeError):  # killed while it wrote
            found.append(msgspec.json.decode(path.read_bytes(), type=NotedProcess))
    return {(one.pid, one.start): one.token for one in found if one.boot_id == boot_id}


def remove_servers(home: Home) -> None:
    """Remove what servers of an earlier life left. Blocks; their processes must be gone."""
    _remove(home.run / SERVERS)


class _End(NamedTuple):
    """How one try to have a server ended. ``error`` is ``None`` if it was asked to end."""

    error: str | None = None
    blameless: bool = False
    other_port: bool = False
    denied: bool = False


class _Life:
    """One server. ``news`` is set when there is nothing more to be had of it: it ended, or is to be ended."""

    def __init__(self, server: Server, solver: WarmSolver, kind: WarmKind) -> None:
        self.name = server.name
        self.solver_name = server.solver
        self.solver = solver
        self.kind = kind
        self.turn = anyio.Lock()  # of the channel: one job, or one check
        self.news = anyio.Event()
        self.ended = anyio.Event()  # its processes are gone, or would not die
        self.over = anyio.Event()  # and all that was its own is given back
        self.at_once = False
        self.problem: str | None = None  # why it was ended, if that was its own fault
        self.handle: Handle | None = None
        self.facts: ExitFacts | None = None
        self.channel: Channel | None = None
        self.answered_at = 0.0

    def end(self, *, now: bool = False) -> None:
        """Ask for its end; ``now`` without manners."""
        self.at_once = self.at_once or now
        self.news.set()
        if self.at_once and self.handle is not None:
            self.handle.stop(now=True)


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
        self._folder = home.run / SERVERS
        self._home_id = home_id
        self._boot_id = boot_id
        self._backend = backend
        self._leases = leases
        self._solvers = solvers
        self._kinds = kinds
        self._post = post
        self._lives: dict[str, _Life] = {}
        self._stops_all: bool | None = None
        self._files = anyio.CapacityLimiter(2)

    @property
    def busy(self) -> bool:
        """Whether a server is there that can still be ended."""
        return any(not life.ended.is_set() for life in self._lives.values())

    # --- what the engine wants --------------------------------------------------------------------------------------

    def start(self, tasks: TaskGroup, server: Server) -> None:
        """Start and watch a server in a task of its own; what becomes of it is posted."""
        life = _Life(server, self._solvers[server.solver], self._kinds[server.solver])
        self._lives[server.name] = life
        if self._stops_all is not None:
            life.end(now=self._stops_all)
        tasks.start_soon(self._live, life)

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

    async def carry_out(self, name: str, errand: Errand) -> ExitFacts:
        """Have a server do a job; when it was stopped, its server is gone as well.

        Raises ``Unreached`` if the server was gone before it heard of it, ``ServerBroken`` if it died of it or broke
        (then it is gone, too), ``SpawnError`` if a process of the job could not be started.
        """
        life = self._lives.get(name)
        if life is None:
            raise Unreached(f"{name} was gone before it heard of the job")
        async with life.turn:
            if life.news.is_set() or life.channel is None:
                raise Unreached(f"{name} was gone before it heard of the job")
            if errand.stopped:  # before its server heard of it
                return ExitFacts(None, KILLED, now_us(), stopped=True)
            errand.begun(life.handle.pid if life.handle is not None else 0)
            facts, error = await self._race(life, life.channel, errand)
            if errand.stopped:
                await self._kill(life, "its job was stopped")
                usage = facts or ExitFacts(None, KILLED, now_us())
                return replace(usage, stopped=True)
            if facts is not None and facts.exit_code == 0 and not errand.server_died:
                life.answered_at = time.monotonic()
                return facts
            with anyio.move_on_after(DEATH_SECONDS):
                await life.ended.wait()
            if life.ended.is_set():
                if isinstance(error, Unreached):
                    raise error
                raise ServerBroken(_died(life))
            if isinstance(error, Unreached | ServerBroken):
                if not life.news.is_set():
                    life.problem = f"{name}: {error}"
                await self._kill(life, str(error))
                raise error
            if error is not None:
                raise error
            if facts is None:
                raise AssertionError(f"{name} said nothing of its job")
            return facts

    async def _race(
        self, life: _Life, channel: Channel, errand: Errand
    ) -> tuple[ExitFacts | None, SolvisorError | None]:
        """The job against the death of its server."""
        facts: ExitFacts | None = None
        error: SolvisorError | None = None

        async def watch() -> None:
            await life.ended.wait()
            errand.lose_server()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            with errand.scope:
                try:
                    facts = await channel.run(errand)
                except (Unreached, ServerBroken, SpawnError) as caught:
                    error = caught
                except Exception as caught:
                    log.exception("server.talk_failed", server=life.name, id=errand.job.id)
                    text = f"the talk with {life.name} failed: {type(caught).__name__}: {caught}"
                    error = SpawnError("talk", text)
            tasks.cancel_scope.cancel()
        return facts, error

    async def _kill(self, life: _Life, why: str) -> None:
        if not life.news.is_set():
            self._post(Condemn(life.name, one_line(why, LONGEST_ERROR), time.monotonic()))
        life.end(now=True)
        await life.ended.wait()

    async def give_back(self, name: str, *, served: bool) -> None:
        """A job is over: its server is free for the next one, once it has answered, or it is replaced.

        ``served``: it has carried the job out.
        """
        life = self._lives.get(name)
        if life is None or life.news.is_set() or life.channel is None:
            return
        if time.monotonic() - life.answered_at > FRESH_SECONDS:
            problem = await self._ask(life, life.channel)
            if life.news.is_set():
                return
            if problem is not None:
                self._condemn(life, problem)
                return
        self._post(ServerFree(name, served, life.channel.spent, time.monotonic()))

    # --- a life -----------------------------------------------------------------------------------------------------

    async def _live(self, life: _Life) -> None:
        tries = PORT_TRIES if life.kind.wants_port else 1
        end = _End()
        for _ in range(tries):
            latest = await self._try(life)
            if end.error is not None and latest.blameless:  # such as no port left: what went wrong before says more
                end = end._replace(blameless=True)
                break
            end = latest
            if not end.other_port or end.denied or life.news.is_set():
                break
            log.warning("server.start_failed", server=life.name, error=end.error, text="trying another port")
        error = None if end.error is None else one_line(printable(end.error), LONGEST_ERROR)
        del self._lives[life.name]
        self._post(ServerEnded(life.name, error, end.blameless or end.denied, time.monotonic(), end.denied))
        life.ended.set()
        life.over.set()
        if error is None:
            log.info("server.stopped", server=life.name)
        else:
            log.warning("server.failed", server=life.name, error=error)

    async def _try(self, life: _Life) -> _End:
        """One start, and all that follows; when it returns, nothing is left."""
        lease: Lease | None = None
        if life.kind.wants_port:
            try:
                lease = self._leases.take(life.kind.host)
            except SolvisorError as error:  # this machine does not have that address
                return _End(str(error))
            except OSError as error:
                return _End(f"no port could be leased: {error}", blameless=True)
            if lease is None:
                return _End(self._leases.why_none(life.kind.host), blameless=True)
            log.info("port.leased", server=life.name, port=lease.port)
        folder = self._folder / life.name
        place = Place(life.name, str(folder), str(folder / "tmp"), lease.port if lease is not None else None)
        token = f"{self._home_id}/{life.name}.{secrets.token_hex(8)}"
        started = False
        try:
            try:
                spec = await anyio.to_thread.run_sync(self._prepare, life, place, token, limiter=self._files)
                life.handle = handle = await self._backend.launch(spec)
            except (OSError, SpawnError) as error:
                cause = error if isinstance(error, OSError) else error.__cause__
                return _End(f"{life.name} could not be started: {error}", blameless=is_passing(cause))
            started = True
            await anyio.to_thread.run_sync(self._note, place, handle, token, limiter=self._files)
            return await self._supervise(life, handle, Up(place, token, handle.pid, spec.stdout, spec.stderr))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(_remove, folder, limiter=self._files)
            if lease is not None:
                log.info("port.released", server=life.name, port=lease.port)  # first: then any daemon may have it
                self._leases.give_back(lease, rests=started)

    def _prepare(self, life: _Life, place: Place, token: str) -> AttemptSpec:
        _remove(Path(place.folder))
        self._folder.mkdir(mode=0o700, exist_ok=True)
        os.makedirs(place.tmp, mode=0o700)
        program = life.kind.program(place)
        return AttemptSpec(
            token=token,
            argv=program.argv,
            cwd=place.folder,
            env=program.env,
            stdout=os.path.join(place.folder, "stdout.log"),
            stderr=os.path.join(place.folder, "stderr.log"),
            grace_seconds=life.solver.servers.stop_grace,
            log_max_bytes=life.solver.log_max,
        )

    def _note(self, place: Place, handle: Handle, token: str) -> None:
        """Write down who the leader is, for the next life, should this one be killed."""
        if handle.pid_start is not None:
            noted = NotedProcess(handle.pid, handle.pid_start, self._boot_id, token.partition("/")[2])
            with suppress(OSError):  # its environment says it as well, unless it wipes that out
                Path(place.folder, NOTED).write_bytes(msgspec.json.encode(noted))

    async def _supervise(self, life: _Life, handle: Handle, up: Up) -> _End:
        began = time.monotonic()
        log.info("server.started", server=life.name, pid=up.pid, port=up.place.port)
        self._post(ServerUp(life.name, up.pid, up.place.port))
        died = anyio.Event()  # the processes of this try

        async def reap() -> None:
            life.facts = await handle.wait()
            died.set()
            if life.channel is not None or life.facts.unkillable:
                self._lose(life)
            if life.facts.unkillable:
                log.error("server.unkillable", server=life.name, pid=up.pid)
                self._post(ServerStuck(life.name))
                await handle.wait_gone()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reap)
            channel, end = await self._connected(life, up, died)
            if channel is not None:
                seconds = time.monotonic() - began
                life.channel, life.answered_at = channel, time.monotonic()
                log.info("server.ready", server=life.name, port=channel.port, seconds=round(seconds, 4))
                self._post(ServerReady(life.name, channel.port, seconds, time.monotonic()))
                if died.is_set():  # in this very moment
                    self._lose(life)
                end = await self._serve(life, channel, up)
            await self._finish(life, handle, died)
            if channel is not None:
                channel.close()
        return end

    def _lose(self, life: _Life) -> None:
        """The processes of a server in service are gone, or those of any server would not die."""
        self._post(Condemn(life.name, "its process ended", time.monotonic()))
        life.ended.set()
        life.news.set()

    async def _connected(self, life: _Life, up: Up, died: anyio.Event) -> tuple[Channel | None, _End]:
        """The way to talk to a server that answers; or why there is none."""
        channel: Channel | None = None
        failure: NotReady | None = None
        note = "nothing of it was seen"

        def take_note(text: str) -> None:
            nonlocal note
            note = text

        async def connect() -> None:
            nonlocal channel, failure
            try:
                channel = await life.kind.connect(up, take_note)
            except NotReady as error:
                failure = error
            except Exception as error:
                log.exception("server.connect_failed", server=life.name)
                failure = NotReady(f"it could not be reached: {type(error).__name__}: {error}")
            tasks.cancel_scope.cancel()

        async def watch(event: anyio.Event) -> None:
            await event.wait()
            tasks.cancel_scope.cancel()

        seconds = life.solver.servers.start_timeout
        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connect)
                tasks.start_soon(watch, died)
                tasks.start_soon(watch, life.news)
        if channel is not None:
            return channel, _End()
        if life.news.is_set() and not life.ended.is_set():
            return None, _End()
        wants_port = life.kind.wants_port
        if died.is_set():
            denied = _is_denied(life.solver, up)
            return None, _End(f"{_died(life, up)}; it was not ready yet", other_port=wants_port, denied=denied)
        if failure is not None:
            return None, _End(f"{life.name}: {failure}", other_port=wants_port and isinstance(failure, PortTaken))
        return None, _End(f"{life.name} was not ready in {describe_duration(seconds)}: {note}{_said(up)}")

    async def _serve(self, life: _Life, channel: Channel, up: Up) -> _End:
        """Until it ends, is to end, or does not answer any more."""
        while True:
            with anyio.move_on_after(life.solver.servers.heartbeat):
                await life.news.wait()
            if life.ended.is_set():
                return _End(life.problem) if life.at_once else _End(_died(life, up))
            if life.news.is_set():
                return _End(life.problem)
            if not life.turn.locked():
                problem = await self._ask(life, channel)
                if problem is not None and not life.news.is_set():
                    self._condemn(life, problem)

    async def _ask(self, life: _Life, channel: Channel) -> str | None:
        """What is wrong with a live server that has no job; ``None`` if it answers."""
        seconds = life.solver.servers.heartbeat_timeout
        async with life.turn:
            try:
                with anyio.fail_after(seconds):
                    await channel.check()
            except TimeoutError:
                return f"{life.name} did not answer within {describe_duration(seconds)}"
            except Exception as error:
                if not isinstance(error, SolvisorError | OSError):
                    log.exception("server.check_failed", server=life.name)
                return f"{life.name} did not answer as it should: {error}"
            life.answered_at = time.monotonic()
        if sys.platform != "win32" and life.handle is not None:
            self._post(ServerSeen(life.name, tree_rss_bytes(life.handle.pid)))
        return None

    def _condemn(self, life: _Life, problem: str) -> None:
        log.warning("server.mute", server=life.name, error=problem)
        life.problem = problem
        self._post(Condemn(life.name, problem, time.monotonic()))
        life.end(now=True)

    async def _finish(self, life: _Life, handle: Handle, died: anyio.Event) -> None:
        """Its own quit, SIGTERM, SIGKILL; until its processes are gone, or would not die."""
        if died.is_set():
            return
        if life.at_once or life.channel is None:
            handle.stop(now=True)
        else:
            with anyio.move_on_after(life.solver.servers.stop_grace):
                await self._quit(life, life.channel, died)
            if not died.is_set():
                life.channel.close()  # who hangs up first keeps the connection in TIME_WAIT: not the server's port
                handle.stop(now=life.at_once)
        await died.wait()

    async def _quit(self, life: _Life, channel: Channel, died: anyio.Event) -> None:
        """Ask it to end, and wait for that if it could be asked; ended at once, it is not waited for who asks."""

        async def watch() -> None:
            await died.wait()
            if life.at_once:
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            asked = False
            with suppress(SolvisorError, OSError):
                asked = await channel.quit()
            if not asked:
                tasks.cancel_scope.cancel()


def _died(life: _Life, up: Up | None = None) -> str:
    """How a server's processes ended, with its last words or what they mean."""
    facts = life.facts
    meaning = life.kind.explain(_last_words(up), facts) if up is not None and facts is not None else None
    if meaning is not None:
        return f"{life.name}: {meaning}"
    if facts is None or facts.unkillable:
        how = "is gone"
    elif facts.exit_code == 0 and life.channel is None:
        how = "ended with exit code 0 (a server must stay in the foreground)"
    elif facts.signal is not None:
        how = f"was ended by {_signal_name(facts.signal)}"
    else:
        how = f"ended with exit code {facts.exit_code}"
    return f"{life.name} {how}" + (_said(up) if up is not None else "")


def _is_denied(solver: WarmSolver, up: Up) -> bool:
    """Whether its last words are those of a server that got no license."""
    pattern = solver.license_denied
    return pattern is not None and any(re.search(pattern, _end_of(log), re.MULTILINE) for log in (up.stdout, up.stderr))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no names of their own
        return f"signal {number}"


def _said(up: Up) -> str:
    lines = [line.strip() for line in _last_words(up).splitlines() if line.strip()]
    return f" (it said: {' | '.join(lines[-LAST_LINES:])})" if lines else ""


def _last_words(up: Up) -> str:
    """The end of its stderr, or of its stdout if it said nothing there."""
    said = _end_of(up.stderr)
    return said if said.strip() else _end_of(up.stdout)


def _end_of(log_path: str) -> str:
    try:
        return tail(Path(log_path))
    except OSError:
        return ""


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
