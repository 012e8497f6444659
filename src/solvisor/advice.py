"""What a period says should be changed: sentences with their numbers, and the line of the configuration to write.

Rules: pure. Nothing is said on little evidence, nor of what the configuration does not say any more; what is proposed
keeps a margin over the worst that was seen; and what would bring nothing is not proposed. Whoever reads it is to be
able to check it with the numbers of the report.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from .figures import Advice, LevelFigures, SolverFigures, WaitFigure
from .model import Limits, Reason
from .units import describe_duration, describe_size, format_duration, format_size

TRIES_MIN: Final = 20
"""Fewer tries of a solver are no evidence."""

MEMORY_MARGIN: Final = 1.25
"""What is to be reserved, over the largest peak that was seen."""
SAVING_MIN: Final = 0.75
"""A reserve that would not shrink to this share or less is left alone."""
FREED_MIN: Final = 0.05
"""What others would get of all memory; less would not help them."""
CORES_NOISE: Final = 0.15
"""Cores beyond a whole number that are start and end, and not another thread."""

WAITED_HOURS_MIN: Final = 1.0
WAITED_SHARE_MIN: Final = 0.02
"""What held jobs up for less, in hours and of the time there was a daemon, is no trouble."""
IDLE_MIN: Final = 1.0
IDLE_SHARE_MIN: Final = 0.15
"""Fewer cores idle meanwhile, in number and as a share, would not help anybody."""

TIMEOUTS_MIN: Final = 5
TIMEOUTS_SHARE_MIN: Final = 0.05

STARTS_MIN: Final = 10
JOBS_PER_SERVER: Final = 3.0
LOSSES_MIN: Final = 5
LOSSES_SHARE_MIN: Final = 0.05

_SIZES: Final = tuple(int(factor * 2**power) << 20 for power in range(5, 24) for factor in (1, 1.5))
_DURATIONS: Final = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600, 28800, 43200, 86400, 172800, 604800)


class Declared(NamedTuple):
    """What the configuration says of a solver now. ``idle_seconds`` is of its warm servers, if it has some."""

    cpus: int
    memory_bytes: int
    licenses: Mapping[str, int]
    timeout_seconds: float | None = None
    idle_seconds: float | None = None


def advice(
    solvers: Iterable[SolverFigures],
    waits: Sequence[WaitFigure],
    levels: Iterable[LevelFigures],
    up_seconds: float,
    limits: Limits,
    declared: Mapping[str, Declared],
) -> list[Advice]:
    """All that there is to say, what held up most first."""
    found: list[tuple[float, Advice]] = []
    waited = {(wait.reason, wait.what): wait for wait in waits}
    for figures in solvers:
        config = declared.get(figures.name)
        if config is not None:
            of_memory = waited.get((Reason.MEMORY.value, None))
            of_cores = waited.get((Reason.CPUS.value, None))
            found += ((_seconds(of_memory), each) for each in _memory(figures, config, limits, of_memory))
            found += ((_seconds(of_cores), each) for each in _cores(figures, config, limits))
            found += ((0.0, each) for each in _timeouts(figures, config))
            found += ((0.0, each) for each in _servers(figures, config))
    full = {level.name: level for level in levels}
    for wait in waits:
        if _matters(wait, up_seconds):
            found += ((wait.job_seconds, each) for each in _held_up(wait, up_seconds, limits, full))
    found.sort(key=lambda pair: -pair[0])
    return [each for _, each in found]


def at_once(config: Declared, limits: Limits, solver: str) -> int:
    """How many jobs of a solver run at once on a machine that has nothing else to do."""
    rooms = [limits.max_jobs, limits.cpus // max(1, config.cpus)]
    if config.memory_bytes:
        rooms.append(limits.memory_bytes // config.memory_bytes)
    own = limits.solver_jobs.get(solver)
    rooms += [] if own is None else [own]
    rooms += [limits.licenses.get(name, 0) // count for name, count in config.licenses.items() if count]
    pool = limits.pools.get(solver)
    rooms += [] if pool is None else [pool.max]
    return max(0, min(rooms))


# --- one solver -----------------------------------------------------------------------------------------------------


def _memory(figures: SolverFigures, config: Declared, limits: Limits, waited: WaitFigure | None) -> Iterator[Advice]:
    memory = figures.memory
    if memory is None or not memory.whole_tree or memory.peak.count < TRIES_MIN:
        return
    if memory.reserved_bytes != config.memory_bytes:
        return  # it was changed since, or most jobs ask for something else
    name, reserved, peak = figures.name, memory.reserved_bytes, memory.peak
    evidence = f"p95 {describe_size(int(peak.p95))}, {peak.count:,} tries"
    wanted = next((size for size in _SIZES if size >= peak.max * MEMORY_MARGIN), None)
    if wanted is None:
        return
    line = f'memory = "{format_size(wanted)}"'
    section = f"solver.{name}"
    if reserved and peak.p95 > reserved:
        yield Advice(
            code="memory_short",
            solver=name,
            text=(
                f"jobs of {name} take up to {describe_size(int(peak.max))} of memory, with their share of the file "
                f"cache, and reserve {describe_size(reserved)} ({evidence}): reserve more, or the machine may run out "
                "of it"
            ),
            section=section,
            line=line,
        )
    elif not reserved and peak.p95 * limits.max_jobs > limits.memory_bytes:
        yield Advice(
            code="memory_none",
            solver=name,
            text=(
                f"jobs of {name} take up to {describe_size(int(peak.max))} of memory and reserve none ({evidence}): "
                f"{limits.max_jobs} of them at once would need more than the {describe_size(limits.memory_bytes)} "
                "there is for jobs"
            ),
            section=section,
            line=line,
        )
    elif reserved and wanted <= reserved * SAVING_MIN:
        now = at_once(config, limits, name)
        more = at_once(config._replace(memory_bytes=wanted), limits, name) - now
        freed = (reserved - wanted) * now >= FREED_MIN * limits.memory_bytes
        held = freed and waited is not None and waited.job_seconds > WAITED_HOURS_MIN * 3600
        if more <= 0 and not held:
            return
        brings = f"for {more} more of them at once" if more > 0 else "for others that wait for memory"
        yield Advice(
            code="memory_unused",
            solver=name,
            text=(
                f"jobs of {name} use at most {peak.max / reserved:.2g} of the {describe_size(reserved)} of memory that "
                f"they reserve ({evidence}): with {describe_size(wanted)} there is room {brings}"
            ),
            section=section,
            line=line,
        )


def _cores(figures: SolverFigures, config: Declared, limits: Limits) -> Iterator[Advice]:
    cores = figures.cores
    if cores is None or cores.used is None or cores.used.count < TRIES_MIN or cores.reserved != config.cpus:
        return
    name, used = figures.name, cores.used
    evidence = f"half of them at most {used.p50:.1f}, p95 {used.p95:.1f}, {used.count:,} tries"
    plural = "core" if cores.reserved == 1 else "cores"
    less = max(1, math.ceil(used.p95 - CORES_NOISE))
    if less <= cores.reserved * SAVING_MIN:
        more = at_once(config._replace(cpus=less), limits, name) - at_once(config, limits, name)
        brings = f"for {more} more of them at once" if more > 0 else "for other jobs"
        yield Advice(
            code="cores_unused",
            solver=name,
            text=(
                f"jobs of {name} reserve {cores.reserved} {plural} and keep fewer busy ({evidence}): with {less} there "
                f'is room {brings}; or have the solver use them (env = {{ OMP_NUM_THREADS = "{{cpus}}" }})'
            ),
            section=f"solver.{name}",
            line=f"cpus = {less}",
        )
    more_cores = min(limits.cpus, max(1, round(used.p50)))
    if used.p50 > cores.reserved * 1.5 and more_cores > cores.reserved:
        yield Advice(
            code="cores_short",
            solver=name,
            text=(
                f"jobs of {name} reserve {cores.reserved} {plural} and keep more busy ({evidence}): they slow others "
                'down; reserve what they use, or bound them (env = { OMP_NUM_THREADS = "{cpus}" })'
            ),
            section=f"solver.{name}",
            line=f"cpus = {more_cores}",
        )


def _timeouts(figures: SolverFigures, config: Declared) -> Iterator[Advice]:
    limit, cut, name = config.timeout_seconds, figures.timeouts, figures.name
    if limit is None or figures.tries < TRIES_MIN or cut < max(TIMEOUTS_MIN, TIMEOUTS_SHARE_MIN * figures.tries):
        return
    said = f"{cut:,} of {figures.tries:,} tries of {name} were cut at their timeout"
    good = figures.run_succeeded
    if good is None or good.count < TRIES_MIN:
        return
    longest = f"those that succeeded took {_about(good.max)} at the longest (p95 {_about(good.p95)})"
    if good.max < limit / 4:
        shorter = next((time for time in _DURATIONS if time >= good.max * 2), None)
        if shorter is None or shorter > limit / 2:
            return
        yield Advice(
            code="timeout_late",
            solver=name,
            text=(
                f"{said}, and {longest}: what goes on for longer most likely never ends, and holds its room until "
                f"{describe_duration(limit)}; a shorter timeout ends it sooner"
            ),
            section=f"solver.{name}",
            line=f'timeout = "{format_duration(shorter)}"',
        )
    elif good.p95 > limit / 2:
        longer = next((time for time in _DURATIONS if time >= limit * 1.5), None)
        if longer is None:
            return
        yield Advice(
            code="timeout_short",
            solver=name,
            text=f"{said} of {describe_duration(limit)}, and {longest}: many may have needed a little more time",
            section=f"solver.{name}",
            line=f'timeout = "{format_duration(longer)}"',
        )


def _servers(figures: SolverFigures, config: Declared) -> Iterator[Advice]:
    name, starts, tries = figures.name, figures.servers_started, figures.tries
    lost = figures.server_losses
    if tries >= TRIES_MIN and lost >= max(LOSSES_MIN, LOSSES_SHARE_MIN * tries):
        yield Advice(
            code="servers_lost",
            solver=name,
            text=(
                f"{lost:,} of {tries:,} tries of {name} ended with their warm server: solvisor servers {name} says "
                "what went wrong last; if they wear out, replace them before they do"
            ),
            section=f"solver.{name}.servers",
            line=f"recycle_jobs = {max(1, int(tries / lost / 2))}",
        )
    elif config.idle_seconds is not None and starts >= STARTS_MIN and tries >= TRIES_MIN:
        if tries / starts >= JOBS_PER_SERVER:
            return
        longer = next((time for time in _DURATIONS if time >= config.idle_seconds * 3), None)
        if longer is None:
            return
        yield Advice(
            code="servers_restarted",
            solver=name,
            text=(
                f"warm servers of {name} were started {starts:,} times for {tries:,} tries, {tries / starts:.1f} each: "
                f"they end when idle for {describe_duration(config.idle_seconds)}; let them wait longer, or keep one "
                "(min = 1)"
            ),
            section=f"solver.{name}.servers",
            line=f'idle = "{format_duration(longer)}"',
        )


# --- what jobs waited for -------------------------------------------------------------------------------------------


def _matters(wait: WaitFigure, up_seconds: float) -> bool:
    return wait.seconds >= max(WAITED_HOURS_MIN * 3600, WAITED_SHARE_MIN * up_seconds)


def _held_up(
    wait: WaitFigure, up_seconds: float, limits: Limits, levels: Mapping[str, LevelFigures]
) -> Iterator[Advice]:
    idle_much = wait.idle_cores >= max(IDLE_MIN, IDLE_SHARE_MIN * limits.cpus)
    often = f"for {_hours(wait.seconds)} of {_hours(up_seconds)}"
    idle = f"while {wait.idle_cores:.1f} of {limits.cpus} cores were idle on average"
    jobs = f"{wait.job_seconds / max(wait.seconds, 1e-9):.1f} at a time"
    match wait.reason:
        case Reason.LICENSE.value if wait.what in limits.licenses and idle_much:
            count = limits.licenses[wait.what]
            level = levels.get(f"license.{wait.what}")
            taken = "" if level is None else f" (all {count} taken for {level.full_hours:.3g} h)"
            yield Advice(
                code="license_scarce",
                solver=None,
                text=(
                    f"jobs waited for license {wait.what}{taken} {often}, {jobs}, {idle}: one more license would have "
                    "been used; if you have one, say so"
                ),
                section="licenses",
                line=f"{_key(wait.what)} = {count + 1}",
            )
        case Reason.JOBS.value if idle_much and limits.max_jobs < limits.cpus:
            yield Advice(
                code="max_jobs_low",
                solver=None,
                text=f"jobs waited for a free place {often}, {jobs}, {idle}: let more run at once",
                section="daemon",
                line=f"max_jobs = {min(limits.cpus, limits.max_jobs + int(wait.idle_cores))}",
            )
        case Reason.SOLVER.value if wait.what is not None and idle_much and limits.solver_jobs.get(wait.what):
            own = limits.solver_jobs[wait.what] or 0
            yield Advice(
                code="solver_limit_low",
                solver=wait.what,
                text=f"jobs of {wait.what} waited for one of its {own} places {often}, {jobs}, {idle}: let more run",
                section=f"solver.{wait.what}",
                line=f"max_jobs = {own + 1}",
            )
        case Reason.DISK.value:
            yield Advice(
                code="disk_short",
                solver=None,
                text=(
                    f"nothing was started for want of room on the disk {often}, and {jobs} waited: have old results "
                    "removed, or make room"
                ),
                section="retention",
                line='keep_for = "30d"',
            )


def _key(name: str) -> str:
    """A name as TOML takes it as a key."""
    return name if name.isascii() and name.replace("-", "").replace("_", "").isalnum() else f'"{name}"'


def _seconds(wait: WaitFigure | None) -> float:
    return 0.0 if wait is None else wait.job_seconds


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3g} h"


def _about(seconds: float) -> str:
    """A duration for a sentence, to three figures."""
    for length, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
