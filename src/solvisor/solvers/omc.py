"""The kind ``omc``: OpenModelica's compiler as a warm server.

A job is a script, which its server carries out, or a model, which is compiled once and then run as a program of the
job's own as often as is wanted. Rules: what omc says is judged, never taken for success; what it says of errors goes to
the job's ``stderr.log``; a server that carried out a script is used up, since a script can leave anything behind. This
module must not know states, retries or how processes are started.
"""

from __future__ import annotations

import getpass
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final

from anyio import to_thread

from solvisor import probe
from solvisor.clock import now_us
from solvisor.errors import NotReady, ServerBroken, SpawnError
from solvisor.filetext import open_regular
from solvisor.interfaces import Channel, Program, Site, Up, Work
from solvisor.kinds import OmcSolver
from solvisor.model import ExitFacts, Report
from solvisor.names import printable, unescape_name

from . import modelica
from .command import find_program
from .environment import server_environment
from .modelcache import ModelCache
from .modelica import BadReply, JobFailed
from .modelrun import ModelRun, Models
from .omcwire import HOST, Session, Wire, find_port, need_zmq

LARGEST_SCRIPT: Final = 16 << 20
PRINTED_MOST: Final = 64 << 20
"""Bytes of what a script printed that its job gets to see."""


class OmcKind:
    """How the servers of one ``kind = "omc"`` solver are started and talked to; a ``WarmKind``.

    ``environ`` is the daemon's environment, ``script_env`` what the solver's ``env_script`` made of it; ``cache``
    keeps compiled models.
    """

    wants_port = False
    host = HOST

    def __init__(
        self,
        solver: OmcSolver,
        name: str,
        config_dir: Path,
        environ: Mapping[str, str],
        script_env: Mapping[str, str],
        cache: ModelCache,
    ) -> None:
        self._solver = solver
        self._name = name
        self._config_dir = config_dir
        self._environ = environ
        self._script_env = script_env
        self._models = Models(cache, solver.options, self.environment)

    def program(self, place: Site) -> Program:
        """What starts a server. Blocks. Raises ``SpawnError``."""
        need_zmq()
        env = self.environment(place)
        omc = find_program(
            self._solver.omc, f"solver {self._name}", self._config_dir, env.get("PATH", os.defpath), "omc"
        )
        return Program((omc, "--interactive=zmq", f"-z={_suffix(place)}", "--locale=C"), env)

    def environment(self, place: Site) -> dict[str, str]:
        """The environment of the server in ``place`` and of the models it compiles. Raises ``SpawnError``."""
        values = {"server_dir": place.folder, "cpus": str(self._solver.cpus)}
        env = server_environment(self._solver, place, values, self._environ, self._script_env)
        env["TMPDIR"] = place.tmp  # there its port file is to be, whatever the operator set
        if "USER" not in env:
            try:
                env["USER"] = getpass.getuser()
            except (KeyError, OSError):  # a user without an entry, as in many containers
                env["USER"] = "solvisor"
        return env

    async def connect(self, up: Up, note: Callable[[str], None]) -> Channel:
        """Return once a started server answers; tries until cancelled. Raises ``PortTaken`` and ``NotReady``."""
        port = await find_port(up, _suffix(up.place), note)
        await probe.until_listening(up, HOST, port, note)
        note(f"it listens on port {port} and does not answer")
        try:
            session = Session(Wire(port), self._solver.log_max)
            try:
                await session.greet(self._solver.options)
            except BaseException:
                session.wire.close()
                raise
        except (BadReply, ServerBroken) as error:
            raise NotReady(f"omc does not answer as it should: {error}") from None
        return OmcChannel(up, port, session, self._models)

    def explain(self, said: str, facts: ExitFacts) -> str | None:
        """What it means that a start ended so with these last words; ``None`` if the words speak for themselves."""
        return modelica.explained_end(said, facts.exit_code, facts.signal)


def _suffix(place: Site) -> str:
    """What the name of a server's port file ends in: no other server's does."""
    return hashlib.sha256(place.folder.encode()).hexdigest()[:16]


class OmcChannel:
    """A warm omc and the way to talk to it; a ``Channel``."""

    look: Callable[[], object] | None = None

    def __init__(self, up: Up, port: int, session: Session, models: Models) -> None:
        self.port: int | None = port
        self.spent: str | None = None
        self._up = up
        self._session = session
        self._models = models

    async def check(self) -> None:
        """Return once it answered. Raises ``NotReady``; the caller bounds the time."""
        if await self._session.asked_version() != self._session.version:
            raise NotReady("another omc answered than the one that was started")

    async def run(self, work: Work) -> ExitFacts:
        """Carry out a job. Raises ``Unreached``, ``ServerBroken`` and ``SpawnError``."""
        self._session.wire.need()
        try:
            if work.job.spec.primary.lower().endswith(".mos"):
                return await self._run_script(work)
            return await ModelRun(self._session, self._models, self._up, work).run()
        except JobFailed as error:
            return _facts(Report(code=error.reason, message=printable(str(error))))
        except BadReply as error:
            raise ServerBroken(f"omc said what nobody understands: {error}") from None
        except OSError as error:
            raise SpawnError("files", f"the files of the job or of its model cannot be used: {error}") from error

    async def quit(self) -> bool:
        """Ask it to end; whether that could be sent. The caller waits for the end: the answer may never come."""
        return await self._session.wire.quit()

    def close(self) -> None:
        """Let go of the connection; idempotent."""
        self._session.wire.close()

    async def _run_script(self, work: Work) -> ExitFacts:
        output = (work.folder / "output").absolute()
        primary = work.job.spec.primary
        name = unescape_name(primary)
        quits = modelica.quitting_line(await to_thread.run_sync(_read_script, output / name))
        if quits is not None:
            call, line = quits
            text = f"{primary} would end its server by {call} in line {line}; remove that, Solvisor ends servers itself"
            raise JobFailed("quits", text)
        self.spent = f"it carried out the script {primary}"
        await self._session.go_to(output, work)
        before = await to_thread.run_sync(os.path.getsize, self._up.stdout)
        reply = await self._session.wire.ask(f"runScript({modelica.quote(name)})")
        # A script that switched answers off left none, not even its own.
        modelica.as_bool(await self._session.wire.ask("echo(true)"))
        said = modelica.as_text(reply) if reply else ""
        errors = await self._session.errors()
        await self._session.wire.ask('system("")')  # writes out what the script printed
        printed = await to_thread.run_sync(_read_from, self._up.stdout, before)
        cut = await self._session.log(work, "stdout.log", printed + said)
        cut += await self._session.log(work, "stderr.log", errors)
        fault = modelica.script_fault(said, errors, str(output))
        return _facts(Report() if fault is None else Report(code="script", message=printable(fault)), cut)


def _facts(report: Report, cut: int = 0) -> ExitFacts:
    code = 0 if report.code is None else 1
    return ExitFacts(exit_code=code, signal=None, finished_us=now_us(), log_cut_bytes=cut, report=report)


def _read_script(path: Path) -> str:
    with open_regular(path) as file:
        data = _all(file, LARGEST_SCRIPT + 1)
    if len(data) > LARGEST_SCRIPT:
        raise JobFailed("script_too_large", f"{path.name} is larger than {LARGEST_SCRIPT >> 20} MiB")
    return data.decode(errors="replace")


def _read_from(path: str, start: int) -> str:
    """What was written to a file since it had ``start`` bytes; of very much, the beginning."""
    with open_regular(Path(path)) as file:
        file.seek(start)
        return _all(file, PRINTED_MOST).decode(errors="replace")


def _all(file: BinaryIO, most: int) -> bytes:
    data = b""
    while len(data) < most and (piece := file.read(most - len(data))):
        data += piece
    return data
