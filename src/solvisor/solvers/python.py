"""The kind ``python``: warm interpreters that import a function once and call it for each job.

Rules: the interpreter is the operator's and need not contain Solvisor; it runs ``worker.py`` by its path, in the folder
of its server, on a Unix socket there (where there are none: on 127.0.0.1, behind a token). The socket appears when the
function was imported. This module does not know when servers are started or replaced.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import anyio
import msgspec
from msgspec import Struct

from solvisor import probe
from solvisor.errors import NotReady, ServerBroken, Unreached
from solvisor.interfaces import Place, Program, Up
from solvisor.kinds import PythonSolver
from solvisor.model import ExitFacts
from solvisor.talk import Talk, TalkChannel

from .command import find_program
from .environment import server_environment

WORKER: Final = Path(__file__).parents[1] / "worker.py"
SOCKET: Final = "worker.sock"
TOKEN_FILE: Final = "worker.token"  # noqa: S105  the name of a file
UNIX_SOCKETS = sys.platform != "win32"


class _Door(Struct, frozen=True):
    """What a worker without a Unix socket tells of itself."""

    port: int
    token: str


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

    def program(self, place: Place) -> Program:
        """The interpreter with the worker. Raises ``SpawnError`` if there is no such interpreter."""
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
        for pause in probe.pauses():
            try:
                talk, port = await self._reach(up.place.folder)
                break
            except (Unreached, FileNotFoundError):
                await anyio.sleep(pause)
        note(f"{self._solver.call} was imported, but its worker does not answer")
        channel = TalkChannel(talk, self._solver, port)
        try:
            await channel.check()
        except BaseException:
            channel.close()
            raise
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
        door = msgspec.json.decode(Path(folder, TOKEN_FILE).read_bytes(), type=_Door)
        talk = await Talk.tcp("127.0.0.1", door.port)
        try:
            await talk.ask({"token": door.token})
        except BaseException as error:
            talk.close()
            if isinstance(error, ServerBroken):
                raise NotReady(f"somebody else listens on port {door.port}: {error}") from error
            raise
        return talk, door.port
