"""What there is to be had: solvers and licenses, with who has them and who waits, in the shapes of ``views``.

Rules: pure functions; ``now_us`` is UTC microseconds, ``now`` monotonic seconds. What is told follows from the numbers
by which jobs are admitted. Cost is that of what is configured and of what runs: no queued job is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

from . import answers, fleetview
from .kinds import AnySolver, CommandSolver, OmcSolver, PythonSolver, ServerSolver
from .model import Limits, Reason
from .params import Param
from .views import Holder, LicenseView, ParamView, SolverView
from .world import World


def solvers(
    world: World, limits: Limits, configured: Mapping[str, AnySolver], now: float, *, over: bool
) -> tuple[SolverView, ...]:
    """The solvers of the configuration, by their names; ``over``: no daemon runs, so there are no warm servers."""
    pauses = {pause.solver: pause for pause in answers.pauses(world)}
    pools = {} if over else {row.solver: row for row in fleetview.pool_rows(world, limits, now)}
    return tuple(
        SolverView(
            name=name,
            kind=solver.kind,
            accept=solver.accept,
            alone=solver.alone,
            command=_command(solver),
            params={key: _param(param) for key, param in solver.params.items()},
            cpus=solver.cpus,
            memory_bytes=solver.memory,
            licenses=solver.licenses,
            timeout_seconds=solver.timeout,
            max_jobs=limits.solver_jobs.get(name),
            running=world.used.solvers[name],
            waiting=world.queued[name],
            paused=pauses.get(name) or pauses.get(None),
            pool=pools.get(name),
        )
        for name, solver in sorted(configured.items())
    )


def _param(param: Param) -> ParamView:
    return ParamView(
        type=param.type,
        default=param.default,
        min=param.min,
        max=param.max,
        choices=param.choices,
        help=param.help,
    )


def _command(solver: AnySolver) -> tuple[str, ...]:
    """What is started, as it is written."""
    match solver:
        case CommandSolver():
            return solver.command
        case ServerSolver():
            return solver.start
        case OmcSolver():
            return (solver.omc, *solver.options)
        case PythonSolver():
            return (solver.python, solver.call)
        case _:
            assert_never(solver)


def licenses(world: World, limits: Limits, now: float, now_us: int) -> tuple[LicenseView, ...]:
    """The licenses there are, and those still held that there are not any more, by their names."""
    holders: dict[str, list[Holder]] = {}
    held = sorted((world.jobs[job_id].current.started_us, job_id) for job_id in world.holding)
    for started_us, job_id in held:
        for name, _ in world.holding[job_id].licenses:
            holder = Holder(job_id, world.jobs[job_id].spec.user, max(0, now_us - started_us) / 1e6)
            holders.setdefault(name, []).append(holder)
    servers: dict[str, list[str]] = {}
    for server in sorted(world.servers.values(), key=lambda server: server.born):
        for name, _ in server.licenses:
            servers.setdefault(name, []).append(server.name)
    waiting = {line.what: line.jobs for line in answers.waiting_for(world, limits) if line.reason is Reason.LICENSE}
    found = []
    for name, level in answers.levels(world, limits)["licenses"].items():
        refused = world.refusals.get(name)
        rests = refused.until if refused is not None and refused.trial is None else None
        found.append(
            LicenseView(
                name=name,
                used=level.used,
                total=level.total,
                waiting=waiting.get(name, 0),
                holders=tuple(holders.get(name, ())),
                servers=tuple(servers.get(name, ())),
                rests_seconds=None if rests is None else max(0.0, rests - now),
                error=None if refused is None else refused.message,
            )
        )
    return tuple(found)
