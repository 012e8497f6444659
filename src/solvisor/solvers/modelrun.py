"""A job of a warm ``omc`` that simulates a model: load it, compile it unless that was done before, run it, judge it.

Rules: a compiled model is used for every job that has the very same inputs, options and compiler, whatever parameters
and times it wants: those are arguments of the run, and are checked before it, because the run itself takes what it does
not understand for nothing. A result is good if its file is. The server is needed only to compile. This module must not
know sockets, scripts or how servers live.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final

from anyio import to_thread
from msgspec.structs import replace

from solvisor.filetext import WINDOW, open_regular
from solvisor.interfaces import Program, Site, Up, Work
from solvisor.model import ExitFacts, JobSpec, Report
from solvisor.modeljob import ModelJob, model_job
from solvisor.names import unescape_name

from . import modelica, simresult
from .modelcache import Built, Model, ModelCache
from .modelica import BadReply, JobFailed
from .omcwire import Session

_REMEMBERED: Final = 1000
_LOG_BYTES: Final = 64 << 10
_HOW: Final = "a job file with model in [simulate]"


class Models:
    """What the servers of one solver share: its compiled models, and what is known of inputs."""

    def __init__(
        self, cache: ModelCache, options: tuple[str, ...], environment: Callable[[Site], dict[str, str]]
    ) -> None:
        self.cache = cache
        self.options = options
        self.environment = environment
        self.only: dict[str, str] = {}
        """The only model in an input, by the digest of all inputs: to load them just to learn it can take long."""

    def remember(self, digest: str, name: str) -> None:
        """Note the only model of an input."""
        if len(self.only) >= _REMEMBERED:
            self.only.clear()
        self.only[digest] = name


class ModelRun:
    """One job that simulates a model."""

    def __init__(self, session: Session, models: Models, up: Up, work: Work) -> None:
        self._session = session
        self._models = models
        self._up = up
        self._work = work
        self._output = (work.folder / "output").absolute()
        self._sources = sources(work.job.spec)
        self._loaded = False

    async def run(self) -> ExitFacts:
        """From the sources to the judged result."""
        try:
            wanted = model_job(self._work.job.spec.options)
        except ValueError as error:
            raise JobFailed("options", f"[simulate] or [overrides] of the job cannot be used: {error}") from None
        digest = await to_thread.run_sync(self._digest)
        name = wanted.simulate.model or self._models.only.get(digest)
        if name is None:
            name = await self._only_model()
            self._models.remember(digest, name)
        key = hashlib.sha256(f"{digest}\n{name}".encode()).hexdigest()
        async with self._models.cache.model(key, lambda folder: self._compile(name, folder)) as model:
            return await self._simulate(name, wanted, model)

    def _digest(self) -> str:
        """Stands for everything that goes into a model but its name: any input may, such as C code and tables."""
        whole = hashlib.sha256()
        for text in (self._session.version, self._session.libraries, *self._models.options, "", *self._sources, ""):
            whole.update(f"{len(text)}:{text}\n".encode(errors="surrogateescape"))
        for name in sorted(_names(self._work.job.spec)):
            path = self._output / name
            if not os.path.lexists(path):  # a job file is not laid out for the run
                continue
            one = hashlib.sha256()
            with open_regular(path) as file:
                while piece := file.read(WINDOW):
                    one.update(piece)
            whole.update(f"{one.hexdigest()} {name}\n".encode(errors="surrogateescape"))
        return whole.hexdigest()

    async def _load(self) -> set[str]:
        """Load all sources into an empty server; the classes that the last of them, the primary, brought."""
        self._loaded = True
        await self._session.told("clear()", self._work)
        before: set[str] = set()
        for source in self._sources:
            reply, _ = await self._session.told("getClassNames()", self._work)
            before = set(modelica.as_names(reply))
            path = str(self._output / source)
            reply, errors = await self._session.told(f"loadFile({modelica.quote(path)})", self._work)
            if not modelica.as_bool(reply):
                reason = modelica.first_error(errors, str(self._output)) or f"omc cannot load {source}"
                raise JobFailed("load_failed", reason)
        reply, _ = await self._session.told("getClassNames()", self._work)
        return set(modelica.as_names(reply)) - before

    async def _only_model(self) -> str:
        models = []
        for name in sorted(await self._load()):
            reply, _ = await self._session.told(f"isModel({name})", self._work)
            models += [name] if modelica.as_bool(reply) else []
        if len(models) == 1:
            return models[0]
        primary = self._work.job.spec.primary
        if not models:
            raise JobFailed("model", f"{primary} holds no model at its top level; say which to simulate: {_HOW}")
        raise JobFailed("model", f"{primary} holds {' and '.join(models)}; say which to simulate: {_HOW}")

    async def _compile(self, name: str, folder: Path) -> Built:
        """Compile the model in ``folder``. Raises ``JobFailed``."""
        if not self._loaded:
            await self._load()
        reply, _ = await self._session.told(f"existClass({name})", self._work)
        if not modelica.as_bool(reply):
            reply, _ = await self._session.told("getClassNames()", self._work)
            there = ", ".join(sorted(modelica.as_names(reply)))
            raise JobFailed("model", f"there is no model {name} in {self._work.job.spec.primary}; there are {there}")
        await self._session.go_to(folder, self._work)
        reply, errors = await self._session.told(f"buildModel({name})", self._work)
        await self._session.go_to(Path(self._up.place.folder), self._work)
        built = modelica.as_texts(reply)
        if built == ["", ""]:
            reason = modelica.first_error(errors, str(self._output)) or "omc did not say why"
            raise JobFailed("build_failed", f"{name} could not be compiled: {reason}")
        if len(built) != 2:
            raise BadReply(f"a program and its setup file were expected, not {reply!r}")
        return Built(PurePosixPath(built[0]).name, PurePosixPath(built[1]).name)

    async def _simulate(self, name: str, wanted: ModelJob, model: Model) -> ExitFacts:
        try:
            setup = await to_thread.run_sync(modelica.read_setup, model.folder / model.built.setup)
        except BadReply as error:
            raise JobFailed("build_failed", f"{name} was compiled, but {error}") from None
        simulate = wanted.simulate
        override, stop = modelica.overriding(setup, simulate, wanted.overrides)
        start = setup.start if simulate.start is None else float(simulate.start)
        result = self._output / f"{name}_res.{simulate.output}"
        await to_thread.run_sync(_discard, result)
        argv = (
            str(model.folder / model.built.program),
            f"-inputPath={model.folder}",
            f"-r={result.name}",
            f"-override={override}",
        )
        handle = await self._work.launch(Program(argv, self._models.environment(self._up.place)))
        facts = await handle.wait()
        if facts.unkillable or facts.stopped:
            return facts
        told: dict[str, Any] = {"model": name, "built": model.fresh, "stop": stop}
        if facts.exit_code != 0:
            said = await to_thread.run_sync(_end_of, self._work.folder / "stdout.log")
            return replace(facts, report=Report(told, "simulation", modelica.failure_sentence(said)))
        found = await to_thread.run_sync(simresult.examine, result, simulate.output, start, stop)
        told |= {"result": result.name, "rows": found.rows, "columns": found.columns, "final": found.final}
        return replace(facts, report=Report(told, checks=found.checks))


def _names(spec: JobSpec) -> list[str]:
    """The inputs of a job as they lie in its output folder."""
    return [unescape_name(fact.path.removeprefix("input/")) for fact in spec.inputs if fact.link is None]


def sources(spec: JobSpec) -> list[str]:
    """What omc is to load: other Modelica files in their order, the primary last.

    What lies beside a ``package.mo`` is loaded with it; a package in a package likewise.
    """
    primary = unescape_name(spec.primary)
    files = [name for name in _names(spec) if name.lower().endswith(".mo") and name != primary]
    packages = {PurePosixPath(name).parent for name in (*files, primary) if PurePosixPath(name).name == "package.mo"}
    alone = []
    for name in files:
        folder = PurePosixPath(name).parent
        is_package = PurePosixPath(name).name == "package.mo"
        above = folder.parent if is_package and folder.name else None if is_package else folder
        if above not in packages:
            alone.append(name)
    return [*alone, primary]


def _discard(path: Path) -> None:
    """An input that bears the name of the result is no result."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def _end_of(path: Path) -> str:
    """The end of a log, far enough back for what a failed simulation says."""
    with open_regular(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LOG_BYTES))
        return file.read(_LOG_BYTES).decode(errors="replace")
