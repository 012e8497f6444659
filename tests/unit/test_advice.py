"""What a period says should be changed: each sentence on its evidence, and silence without it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from builders import GIB, make_limits, make_pool
from solvisor.advice import Declared, advice, at_once
from solvisor.config import parse
from solvisor.figures import Advice, CoreFigures, LevelFigures, MemoryFigures, SolverFigures, Spread, WaitFigure

HOUR = 3600.0
WEEK = 168 * HOUR
LIMITS = make_limits(max_jobs=16, cpus=16, memory_bytes=16 * GIB, licenses={"orca": 2}, solver_jobs={"ccx": None})
CCX = Declared(cpus=1, memory_bytes=2 * GIB, licenses={})


def spread(p50: float, p95: float, most: float, count: int = 100) -> Spread:
    return Spread(count, p50, p95, most, p50 * count)


def memory(most: float, count: int = 100, reserved: int = 2 * GIB, *, whole_tree: bool = True) -> MemoryFigures:
    return MemoryFigures(reserved, spread(most * 0.8, most * 0.9, most, count), whole_tree)


def cores(p95: float, count: int = 100, reserved: int = 4, p50: float | None = None) -> CoreFigures:
    return CoreFigures(1.0, 1.0, reserved, spread(p95 if p50 is None else p50, p95, p95, count))


def ccx(**known: Any) -> SolverFigures:
    return SolverFigures(name="ccx", jobs=100, **({"tries": 100} | known))


def waits(reason: str, hours: float = 20, idle: float = 6, what: str | None = None) -> WaitFigure:
    return WaitFigure(reason, what, hours * HOUR * 3, 1.0, hours * HOUR, idle)


def told(
    *solvers: SolverFigures, declared: Declared = CCX, limits: Any = LIMITS, waited: tuple[WaitFigure, ...] = ()
) -> list[Advice]:
    levels = [LevelFigures("license.orca", "licenses", 2, 1.5, 2, 100, 12)]
    return advice(solvers, waited, levels, WEEK, limits, {"ccx": declared})


def one(*solvers: SolverFigures, **known: Any) -> Advice:
    (found,) = told(*solvers, **known)
    return found


# --- memory ---------------------------------------------------------------------------------------------------------


def test_memory_that_is_not_used_is_told_with_how_many_more_would_fit() -> None:
    found = one(ccx(memory=memory(0.8 * GIB)))
    assert (found.code, found.section, found.line) == ("memory_unused", "solver.ccx", 'memory = "1GiB"')
    assert found.text == (
        "jobs of ccx use at most 0.4 of the 2 GiB of memory that they reserve (p95 737 MiB, 100 tries): with 1 GiB "
        "there is room for 8 more of them at once"
    )


def test_what_is_to_be_reserved_keeps_a_margin_over_the_largest_peak() -> None:
    assert one(ccx(memory=memory(0.81 * GIB))).line == 'memory = "1536MiB"'
    assert told(ccx(memory=memory(1.3 * GIB))) == [], "1.3 GiB with its margin is no saving"


def test_memory_that_bounds_nothing_is_left_alone() -> None:
    few = make_limits(max_jobs=4, cpus=16, memory_bytes=16 * GIB)
    assert told(ccx(memory=memory(0.5 * GIB)), limits=few) == []
    found = one(ccx(memory=memory(0.5 * GIB)), limits=few, waited=(waits("memory"),))
    assert found.text.endswith("with 768 MiB there is room for others that wait for memory")


@pytest.mark.parametrize(
    "figures",
    [
        pytest.param(memory(0.5 * GIB, count=19), id="too few"),
        pytest.param(memory(0.5 * GIB, whole_tree=False), id="of the largest process only"),
        pytest.param(memory(0.5 * GIB, reserved=4 * GIB), id="it is configured otherwise by now"),
    ],
)
def test_without_evidence_nothing_is_said_of_memory(figures: MemoryFigures) -> None:
    assert told(ccx(memory=figures)) == []
    assert told(replace(ccx(memory=memory(0.5 * GIB)), name="gone")) == [], "it is not configured any more"


def test_more_than_was_reserved_is_told() -> None:
    found = one(ccx(memory=memory(3 * GIB)))
    assert (found.code, found.line) == ("memory_short", 'memory = "4GiB"')
    assert "take up to 3 GiB" in found.text
    assert "reserve 2 GiB" in found.text


def test_who_reserves_nothing_is_told_only_where_all_together_need_too_much() -> None:
    none = CCX._replace(memory_bytes=0)
    assert told(ccx(memory=memory(0.1 * GIB, reserved=0)), declared=none) == []
    assert one(ccx(memory=memory(2 * GIB, reserved=0)), declared=none).code == "memory_none"


# --- cores ----------------------------------------------------------------------------------------------------------


def test_cores_that_are_not_used_are_told() -> None:
    found = one(ccx(cores=cores(1.1)), declared=CCX._replace(cpus=4, memory_bytes=0))
    assert (found.code, found.line) == ("cores_unused", "cpus = 1")
    assert "reserve 4 cores and keep fewer busy (half of them at most 1.1, p95 1.1, 100 tries)" in found.text
    assert "with 1 there is room for 12 more of them at once" in found.text


def test_of_cores_that_are_configured_otherwise_by_now_nothing_is_said() -> None:
    assert told(ccx(cores=cores(1.1)), declared=CCX._replace(cpus=2)) == []


@pytest.mark.parametrize(("p95", "line"), [(1.3, "cpus = 2"), (2.1, "cpus = 2"), (2.2, "cpus = 3"), (3.2, None)])
def test_cores_are_rounded_so_that_nobody_gets_too_few(p95: float, line: str | None) -> None:
    found = told(ccx(cores=cores(p95)), declared=CCX._replace(cpus=4, memory_bytes=0))
    assert [each.line for each in found] == ([] if line is None else [line])


def test_more_cores_than_reserved_are_told() -> None:
    found = one(ccx(cores=cores(3.9, reserved=1, p50=3.8)))
    assert (found.code, found.line) == ("cores_short", "cpus = 4")
    assert told(ccx(cores=cores(1.4, reserved=1, p50=1.3))) == []
    assert told(ccx(cores=cores(3.9, reserved=1, p50=3.8, count=19))) == []


# --- timeouts and servers -------------------------------------------------------------------------------------------


def timed(cut: int, p95: float, most: float, tries: int = 100) -> list[Advice]:
    known = ccx(tries=tries, timeouts=cut, run_succeeded=spread(p95 / 2, p95, most, tries - cut))
    return told(known, declared=CCX._replace(timeout_seconds=7200))


def test_a_timeout_that_cuts_what_needs_a_little_more_is_told() -> None:
    (found,) = timed(10, 6500, 7100)
    assert (found.code, found.line) == ("timeout_short", 'timeout = "3h"')
    assert "10 of 100 tries of ccx were cut at their timeout of 2 h" in found.text


def test_a_timeout_that_is_far_longer_than_any_good_run_is_told() -> None:
    (found,) = timed(10, 300, 600)
    assert (found.code, found.line) == ("timeout_late", 'timeout = "30m"')


def test_few_timeouts_or_doubtful_ones_are_no_advice() -> None:
    assert timed(4, 6500, 7100) == []
    assert timed(10, 6500, 7100, tries=1000) == []
    assert timed(10, 2500, 3000) == [], "neither nearly enough nor far too long"
    assert told(ccx(timeouts=50, run_succeeded=spread(1, 2, 3))) == [], "there is no timeout any more"


def test_servers_that_break_down_and_servers_that_are_started_for_each_job() -> None:
    warm = CCX._replace(memory_bytes=0, idle_seconds=600.0)
    lost = one(ccx(server_losses=10, servers_started=30), declared=warm)
    assert (lost.code, lost.section, lost.line) == ("servers_lost", "solver.ccx.servers", "recycle_jobs = 5")
    often = one(ccx(servers_started=60), declared=warm)
    assert (often.code, often.line) == ("servers_restarted", 'idle = "30m"')
    assert told(ccx(servers_started=30), declared=warm) == [], "three jobs each are well enough"
    assert told(ccx(servers_started=60), declared=CCX) == []


# --- what was waited for --------------------------------------------------------------------------------------------


def test_a_license_that_is_scarce_while_cores_are_idle_is_told() -> None:
    found = one(waited=(waits("license", what="orca"),))
    assert (found.code, found.section, found.line) == ("license_scarce", "licenses", "orca = 3")
    assert "license orca (all 2 taken for 12 h) for 20 h of 168 h, 3.0 at a time, while 6.0 of 16 cores" in found.text


@pytest.mark.parametrize(
    "wait",
    [
        pytest.param(waits("license", what="orca", idle=2), id="the cores were busy too"),
        pytest.param(waits("license", what="orca", hours=3), id="it was rare"),
        pytest.param(waits("license", what="gone"), id="it is not configured any more"),
        pytest.param(waits("jobs"), id="max_jobs is as many as there are cores"),
        pytest.param(waits("dependency", hours=100), id="that is what they were told to do"),
        pytest.param(waits("solver", what="ccx"), id="it has no limit any more"),
    ],
)
def test_waiting_that_nobody_could_shorten_is_no_advice(wait: WaitFigure) -> None:
    assert told(waited=(wait,)) == []


def test_limits_that_are_too_low_are_told() -> None:
    low = make_limits(max_jobs=8, cpus=16, solver_jobs={"ccx": 2})
    assert one(waited=(waits("jobs"),), limits=low).line == "max_jobs = 14"
    found = one(waited=(waits("solver", what="ccx"),), limits=low)
    assert (found.section, found.line) == ("solver.ccx", "max_jobs = 3")
    assert one(waited=(waits("disk", idle=0),)).code == "disk_short"


def test_what_held_up_most_comes_first() -> None:
    found = told(
        ccx(memory=memory(0.8 * GIB)),
        waited=(waits("license", what="orca", hours=30), waits("disk", hours=60), waits("memory", hours=40)),
    )
    assert [each.code for each in found] == ["disk_short", "memory_unused", "license_scarce"]


# --- all of it ------------------------------------------------------------------------------------------------------


def test_how_many_fit_at_once_is_bounded_by_whatever_is_least() -> None:
    limits = make_limits(max_jobs=12, cpus=16, memory_bytes=16 * GIB, licenses={"orca": 3}, solver_jobs={"ccx": 9})
    assert at_once(CCX._replace(memory_bytes=0), limits, "ccx") == 9
    assert at_once(CCX, limits, "ccx") == 8
    assert at_once(CCX._replace(cpus=4), limits, "ccx") == 4
    assert at_once(CCX._replace(licenses={"orca": 1}), limits, "ccx") == 3
    assert at_once(CCX, make_limits(max_jobs=9, pools={"ccx": make_pool(max=2)}), "ccx") == 2


def test_every_line_is_good_configuration(tmp_path: Any) -> None:
    quoted = make_limits(max_jobs=8, cpus=16, licenses={"orca.flex": 2}, solver_jobs={"ccx": 2})
    found = [
        *told(ccx(memory=memory(0.8 * GIB), cores=cores(3.9, reserved=1, p50=3.8))),
        *told(waited=(waits("license", what="orca.flex"), waits("disk"), waits("jobs")), limits=quoted),
        *timed(10, 300, 600),
    ]
    assert len(found) == 6
    solver = '[solver.ccx]\naccept = ["*.inp"]\ncommand = ["ccx"]\n'
    for each in found:
        text = f"{solver}{each.line}\n" if each.section == "solver.ccx" else f"[{each.section}]\n{each.line}\n{solver}"
        parse(text, tmp_path / "solvisor.toml")
