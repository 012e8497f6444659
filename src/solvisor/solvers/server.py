"""The kind ``server``: any program that serves on a port, talked to by a client command or by lines of JSON.

Rules: nothing here knows a particular server; the operator says how it is started, how it is seen to be ready, and what
talks to it. A server that picks its own port is believed only where a listener of its own tree has that port. One that
knows a single port is its solver's only one.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
from msgspec.structs import replace

from solvisor import probe
from solvisor.errors import SpawnError, Unreached
from solvisor.interfaces import AttemptSpec, Backend, Channel, Program, Site, Up, Work
from solvisor.kinds import ReportedPort, ServerSolver, programs
from solvisor.model import ExitFacts
from solvisor.talk import Talk, TalkChannel

from .command import Command, job_values

RETRY_SECONDS = 0.1
"""The pause after a connection for the talk that was refused."""


class ServerKind:
    """How the servers of one ``kind = "server"`` solver are started and talked to; a ``WarmKind``.

    ``environ`` is the daemon's environment, ``script_env`` what the solver's ``env_script`` made of it.
    """

    def __init__(
        self,
        solver: ServerSolver,
        name: str,
        backend: Backend,
        config_dir: Path,
        environ: Mapping[str, str],
        script_env: Mapping[str, str],
    ) -> None:
        self.host: str = solver.host
        self.wants_port = solver.port is None and solver.is_given_port
        self._fixed_port = solver.port if isinstance(solver.port, int) else None
        self._solver = solver
        self._name = name
        self._backend = backend
        self._commands = {
            key: Command(key, command, solver, name, environ, config_dir, script_env)
            for key, command in programs(solver).items()
        }

    def program(self, place: Site) -> Program:
        """What starts a server. Blocks. Raises ``SpawnError``."""
        return self.expanded("start", place, place.port or self._fixed_port, {})

    def expanded(self, key: str, place: Site, port: int | None, values: Mapping[str, str]) -> Program:
        """The command ``key`` about the server in ``place``, or of a job for it. Raises ``SpawnError``."""
        own = {"host": self.host, "server_dir": place.folder, "cpus": str(self._solver.cpus)}
        if port is not None:
            own["port"] = str(port)
        program = self._commands[key].expanded({**values, **own})
        return program if values else replace(program, env={**program.env, "TMPDIR": place.tmp})

    async def connect(self, up: Up, note: Callable[[str], None]) -> Channel:
        """Return once it answered the probe of its configuration; tries until cancelled."""
        port = up.place.port or self._fixed_port
        if isinstance(self._solver.port, ReportedPort):
            port = await probe.until_port(self._solver.port, up, note)
        while True:
            await probe.until_ready(self._solver.ready, up, self.host, port, note)
            try:
                lines = await self._lines(port)
            except Unreached as error:  # it was there a moment ago
                note(str(error))
                await anyio.sleep(RETRY_SECONDS)
                continue
            return ServerChannel(self, self._solver, self._name, self._backend, up, port, lines)

    async def _lines(self, port: int | None) -> TalkChannel | None:
        if self._solver.talk is None or port is None:
            return None
        return TalkChannel(await Talk.tcp(self.host, port), self._solver, port)

    def explain(self, said: str, facts: ExitFacts) -> str | None:  # noqa: ARG002  of other kinds more is known
        """Nothing is known of its words."""
        return None


class ServerChannel:
    """A ready server; a ``Channel``."""

    spent: str | None = None
    look: Callable[[], object] | None = None

    def __init__(
        self,
        kind: ServerKind,
        solver: ServerSolver,
        name: str,
        backend: Backend,
        up: Up,
        port: int | None,
        lines: TalkChannel | None,
    ) -> None:
        self.port = port
        self._kind = kind
        self._solver = solver
        self._name = name
        self._backend = backend
        self._up = up
        self._lines = lines

    async def check(self) -> None:
        """Return once it answered again: a ping on the line that jobs take, else the probe. Raises ``NotReady``."""
        if self._lines is not None:
            await self._lines.check()
            return
        if self.port is not None:
            await probe.until_listening(self._up, self._kind.host, self.port, lambda _: None)
        await probe.check(self._solver.ready, self._kind.host, self.port)

    async def run(self, work: Work) -> ExitFacts:
        """Run the client command of a job, or send the job as a line of JSON."""
        if self._lines is not None:
            return await self._lines.run(work)
        values = job_values(self._solver, self._name, work.job.spec, str(work.folder))
        program = await anyio.to_thread.run_sync(self._kind.expanded, "command", self._up.place, self.port, values)
        handle = await work.launch(program)
        return await handle.wait()

    async def quit(self) -> bool:
        """Run the configured ``quit`` command, if there is one."""
        if not self._solver.quit:
            return False
        try:
            program = await anyio.to_thread.run_sync(self._kind.expanded, "quit", self._up.place, self.port, {})
            spec = AttemptSpec(
                token=f"{self._up.token}.{secrets.token_hex(4)}",
                argv=program.argv,
                cwd=self._up.place.folder,
                env=program.env,
                stdout=self._up.stdout,
                stderr=self._up.stderr,
                grace_seconds=0.0,
                log_max_bytes=self._solver.log_max,
            )
            handle = await self._backend.launch(lambda: spec)
        except SpawnError:
            return False
        try:
            await handle.wait()
        finally:
            handle.stop(now=True)
            with anyio.CancelScope(shield=True):
                await handle.wait()
        return True

    def close(self) -> None:
        """Hang up."""
        if self._lines is not None:
            self._lines.close()
