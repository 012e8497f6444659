"""The configuration file and the one in force: reading it again, refusing a bad one, telling that it was changed.

A bad file changes nothing; all its faults are told. A good one holds for what is done from then on: attempts that run
keep what they were started with, and warm servers that would have been started otherwise are replaced, each once it has
no job. Where the inbox lies is settled at the start, so a change of that waits for a restart and is told.

Rules: files are read in threads; what changes is changed by the engine, within one pass. This module must not know
signals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import anyio
import structlog
from msgspec.structs import replace

from .config import Config
from .engine import Engine
from .errors import ConfigError
from .interfaces import WarmKind
from .kinds import WarmSolver, serves_on
from .model import Limits
from .orders import Stopping, Unsure

LOOK_SECONDS = 10.0
"""How often the file is looked at."""

FAULTS_SHOWN = 20

CHANGED, RESTART, REFUSED = "configuration", "configuration: restart", "configuration: refused"
"""What sentences about the configuration are called among the troubles."""

NOTES = frozenset({CHANGED, RESTART})
"""Those of them that are notes: nothing is wrong."""

Stamp = tuple[int, int, int] | None
"""What changes with a file; ``None`` where there is none to be seen."""

log = structlog.get_logger()


class Setup(NamedTuple):
    """A configuration with all that was made of it.

    ``script_environ`` is what each solver's ``env_script`` made of the environment, by the solver's name; ``kinds`` are
    those with warm servers. ``stamp`` is that of the file before it was read.
    """

    config: Config
    limits: Limits
    script_environ: Mapping[str, Mapping[str, str]]
    kinds: Mapping[str, WarmKind]
    stamp: Stamp


class Reload:
    """The setup in force, which ``read`` (blocking) made of the file; ``use`` is called when another one holds.

    ``how`` says to people what has the file read again.
    """

    def __init__(
        self, engine: Engine, setup: Setup, read: Callable[[], Setup], use: Callable[[Setup], None], how: str
    ) -> None:
        self._engine = engine
        self.setup = setup
        self._read = read
        self._use = use
        self._how = how
        self._seen = setup.stamp
        self._path = setup.config.path
        self._wanted = anyio.Event()

    def ask(self) -> None:
        """Have the file read again soon; what was asked while it is being read is done after that."""
        self._wanted.set()

    async def run(self) -> None:
        """Read the file whenever that is asked, and look now and then whether it was changed, until cancelled."""
        while True:
            await self.look()
            with anyio.move_on_after(LOOK_SECONDS):
                await self._wanted.wait()
            if self._wanted.is_set():
                self._wanted = anyio.Event()
                await self._reload()

    async def look(self) -> None:
        """Tell whether the file is another than the one that was read last."""
        if await anyio.to_thread.run_sync(stamp, self._path) == self._seen:
            self._engine.trouble.pop(CHANGED, None)
            return
        self._engine.trouble[CHANGED] = (
            f"the configuration {self._path} was changed after the daemon had read it: {self._how}; until then the one "
            "of before holds"
        )

    async def _reload(self) -> None:
        if self._engine.world.draining:
            log.warning("config.not_read", path=str(self._path), text="the daemon is stopping")
            return
        self._seen = await anyio.to_thread.run_sync(stamp, self._path)
        self._engine.trouble.pop(CHANGED, None)
        try:
            setup = await anyio.to_thread.run_sync(self._read)
        except ConfigError as error:
            self._refuse(error)
            return
        except OSError as error:  # no room for a script's output, no descriptor, no process
            self._refuse(ConfigError(str(self._path), [f"it could not be read: {error}; have it read again later"]))
            return
        self._seen = setup.stamp
        before, asked = self.setup, setup.config.inbox.path
        in_force = before.config.inbox.path
        setup = setup._replace(config=replace(setup.config, inbox=replace(setup.config.inbox, path=in_force)))
        changed = _changed(before, setup)
        try:
            await self._engine.reconfigure(
                setup.config,
                setup.limits,
                setup.kinds,
                setup.script_environ,
                changed=changed,
                outdated=_outdated(before, setup),
                use=lambda: self._use(setup),
            )
        except (Stopping, Unsure):
            return
        self.setup = setup
        self._engine.trouble.pop(REFUSED, None)
        self._engine.trouble.pop(RESTART, None)
        if asked != in_force:
            self._engine.trouble[RESTART] = (
                f"[inbox] path in {self._path} holds once the daemon is started again; until then users drop files in "
                f"{in_force or 'inbox/ of the home'}"
            )
        for warning in setup.config.warnings:
            log.warning("config.warning", text=warning)
        log.info(
            "config.reloaded",
            path=str(self._path),
            solvers=sorted(setup.config.solver),
            changed=sorted(changed),
            restart=["inbox.path"] if asked != in_force else [],
        )

    def _refuse(self, error: ConfigError) -> None:
        log.error("config.refused", path=error.path, faults=error.problems, text="the configuration of before holds")
        shown = list(error.problems[:FAULTS_SHOWN])
        more = len(error.problems) - FAULTS_SHOWN
        if more > 0:
            shown.append(f"{more} more, which solvisor config check shows")
        told = f"{error.path} cannot be used, so the configuration of before holds; a restart would fail:"
        self._engine.trouble[REFUSED] = "\n".join([told, *shown])


def stamp(path: Path) -> Stamp:
    """What changes with the file ``path``. Blocks."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _changed(before: Setup, after: Setup) -> frozenset[str]:
    """The solvers that are not configured as before, also those that came or went."""
    old, new = before.config.solver, after.config.solver
    scripts = before.script_environ, after.script_environ
    return frozenset(
        name for name in old | new if (old.get(name), scripts[0].get(name)) != (new.get(name), scripts[1].get(name))
    )


def _outdated(before: Setup, after: Setup) -> frozenset[str]:
    """The solvers whose warm servers would be started otherwise now, or not at all."""
    return frozenset(
        name
        for name, solver in before.config.solver.items()
        if isinstance(solver, WarmSolver)
        and not (
            serves_on(solver, after.config.solver.get(name))
            and before.script_environ.get(name) == after.script_environ.get(name)
        )
    )
