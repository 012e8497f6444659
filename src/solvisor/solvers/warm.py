"""The kinds with warm servers, by their names in the configuration: the one place where a new one is entered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from solvisor.config import Config
from solvisor.interfaces import Backend, WarmKind
from solvisor.kinds import OmcSolver, PythonSolver, ServerSolver, WarmSolver

from .modelcache import ModelCaches
from .omc import OmcKind
from .python import PythonKind
from .server import ServerKind


def warm_solvers(config: Config) -> dict[str, WarmSolver]:
    """The configured solvers that have warm servers."""
    return {name: solver for name, solver in config.solver.items() if isinstance(solver, WarmSolver)}


def omc_caches(cache_dir: Path) -> ModelCaches:
    """Where compiled models are kept, for the life of a daemon. ``cache_dir`` is for what may be thrown away."""
    return ModelCaches(cache_dir.absolute() / "omc")


def warm_kinds(
    config: Config,
    backend: Backend,
    environ: Mapping[str, str],
    script_environ: Mapping[str, Mapping[str, str]],
    caches: ModelCaches,
) -> dict[str, WarmKind]:
    """How the servers of each of them are started and talked to. ``caches`` keep what was compiled."""
    here = config.path.absolute().parent
    kinds: dict[str, WarmKind] = {}
    for name, solver in warm_solvers(config).items():
        script_env = script_environ.get(name, {})
        match solver:
            case ServerSolver():
                kinds[name] = ServerKind(solver, name, backend, here, environ, script_env)
            case OmcSolver():
                kinds[name] = OmcKind(solver, name, here, environ, script_env, caches.of(name, solver.cache))
            case PythonSolver():
                kinds[name] = PythonKind(solver, name, here, environ, script_env)
    return kinds
