"""The kind ``python``: warm interpreters that import a function once and call it for each job.

Rules: the interpreter is the operator's and need not contain Solvisor; it runs ``worker.py`` by its path, in the folder
of its server, on a Unix socket there (where there are none: on 127.0.0.1, behind a token). The socket appears when the
function was imported. A worker whose file was changed since is spent: it would run the old code beside others that run
the new. Modules that the file imports are not watched. This module does not know when servers are started or replaced.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec
import structlog
from msgspec import Struct

from solvisor import probe
from solvisor.errors import NotReady, ServerBroken, Unreached
from solvisor.filetext import open_regular
from solvisor.interfaces import Program, Site, Up
from solvisor.kindchecks import function_file
from solvisor.kinds import PythonSolver
from solvisor.model import ExitFacts
from solvisor.signs import Signs
from solvisor.talk import Talk, TalkChannel

from .command import find_program
from .environment import server_environment

WORKER: Final = Path(__file__).parents[1] / "worker.py"
SOCKET: Final = "worker.sock"
TOKEN_FILE: Final = "worker.token"  # noqa: S105  the name of a file
UNIX_SOCKETS = sys.platform != "win32"

log = structlog.get_logger()


class _Door(Struct, frozen=True):
    """What a worker without a Unix socket tells of itself."""

    port: int
    token: str


_decode_door = msgspec.json.Decoder(_Door).decode


class _Code(Struct, frozen=True):
    """The file ``path`` with the function, as it was before a worker imported it; in words it is ``name``.

    ``stamp`` is its time, size and inode; ``version`` says what was in it. Neither is there of a file that was not.
    """

    name: str
    path: Path
    stamp: tuple[int, int, int] | None
    version: str | None

    @classmethod
    def of(cls, name: str, path: Path) -> _Code:
        """As it is now. Blocks."""
        stamp = _stamp(path)  # first: a change while it is read shows
        try:
            with open_regular(Path(os.path.realpath(path))) as file:
                version = f"sha256:{hashlib.sha256(file.read()).hexdigest()}"
        except OSError:  # the worker says so when it cannot import it
            version = None
        return cls(name, path, stamp, version)

    @property
    def is_changed(self) -> bool:
        """Whether there is another file now; if it is gone, what was imported is all there is. Blocks."""
        return _stamp(self.path) not in (None, self.stamp)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class _WorkerChannel(TalkChannel):
    """The way to talk to the worker ``name``, which has imported ``code``; ``None`` if that is an installed module."""

    def __init__(self, talk: Talk, solver: PythonSolver, port: int | None, name: str, code: _Code | None) -> None:
        super().__init__(talk, solver, port, code.version if code is not None else None)
        self._name = name
        self._code = code
        self.look = self._look if code is not None else None

    def _look(self) -> None:
        """Whether its file was changed."""
        if self.spent is None and self._code is not None and self._code.is_changed:
            self.spent = f"{self._code.name} was changed"
            log.info("server.outdated", server=self._name, file=str(self._code.path), text="it is replaced")


class PythonKind:
    """Starts and reaches the workers of one solver, called ``name``.

    ``config_dir`` is where ``call`` and ``python`` are looked for, ``environ`` the daemon's environment, ``script_env``
    what ``env_script`` made of it (empty without one).
    """

    wants_port = False
    host = "127.0.0.1"

    def __init__(
        self,
        solver: PythonSolver,
        name: str,
        config_dir: Path,
        environ: Mapping[str, str],
        script_env: Mapping[str, str],
    ) -> None:
        self._solver = solver
        self._name = name
        self._config_dir = config_dir.absolute()
        self._environ = environ
        self._script_env = script_env
        self._file = function_file(solver)
        self._codes: dict[str, _Code] = {}  # what the worker in a folder imports, until it is reached

    def program(self, place: Site) -> Program:
        """The interpreter with the worker. Raises ``SpawnError`` if there is no such interpreter."""
        if self._file is not None:
            path = self._config_dir / os.path.expanduser(self._file)
            self._codes[place.folder] = _Code.of(self._file, path)
        values = {"cpus": str(self._solver.cpus), "server_dir": place.folder}
        env = server_environment(self._solver, place, values, self._environ, self._script_env)
        python = os.path.expanduser(self._solver.python)
        python = find_program(python, f"solver {self._name}", self._config_dir, env.get("PATH", os.defpath), "python")
        door = ("--socket", SOCKET) if UNIX_SOCKETS else ("--token-file", TOKEN_FILE)
        call = (f"--call={self._solver.call}", f"--folder={self._config_dir}")
        return Program((python, str(WORKER), *call, *door), env)

    async def connect(self, up: Up, note: Callable[[str], None]) -> TalkChannel:
        """Return once a worker has imported its function and answers. Raises ``NotReady`` if it hangs up at once."""
        note(f"{self._solver.call} is still being imported")
        with Signs([Path(up.place.folder, SOCKET if UNIX_SOCKETS else TOKEN_FILE)]) as signs:
            for pause in probe.pauses_with(signs):
                try:
                    talk, port = await self._reach(up.place.folder)
                    break
                except (Unreached, FileNotFoundError):
                    await signs.rest(pause)
        note(f"{self._solver.call} was imported, but its worker does not answer")
        channel = _WorkerChannel(talk, self._solver, port, up.place.name, self._codes.get(up.place.folder))
        try:
            await channel.check()
        except BaseException:
            channel.close()
            raise
        self._codes.pop(up.place.folder, None)
        return channel

    def explain(self, said: str, facts: ExitFacts) -> str | None:  # noqa: ARG002  of other kinds more is known
        """A traceback, or one sentence: its words speak for themselves."""
        return None

    @staticmethod
    async def _reach(folder: str) -> tuple[Talk, int | None]:
        """A talk with the worker in ``folder``, and its port. Raises ``Unreached``, ``FileNotFoundError``: not yet."""
        if UNIX_SOCKETS:
            return await Talk.unix(folder, SOCKET), None
        # Written under another name and renamed, so it is whole.
        door = _decode_door(Path(folder, TOKEN_FILE).read_bytes())
        talk = await Talk.tcp("127.0.0.1", door.port)
        try:
            await talk.ask({"token": door.token})
        except BaseException as error:
            talk.close()
            if isinstance(error, ServerBroken):
                raise NotReady(f"somebody else listens on port {door.port}: {error}") from error
            raise
        return talk, door.port
