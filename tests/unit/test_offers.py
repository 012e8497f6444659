"""What is told of solvers and licenses: what they are by the configuration, who has them, who waits."""

from __future__ import annotations

from pathlib import Path

import pytest

from builders import NOON_US, SECOND_US, Story, make_demand
from solvisor import config, offers
from solvisor.model import Pause, Server, ServerState
from solvisor.views import LicenseView, SolverView

CONFIG = config.parse(
    """
    [licenses]
    orcaflex = 2
    spare = 1
    [solver.ccx]
    accept = ["*.inp"]
    command = ["ccx", "-i", "{stem}"]
    timeout = "2h"
    cpus = 2
    memory = "2GiB"
    max_jobs = 3
    [solver.ccx.params]
    load = { type = "float", default = 1.0, min = 0, help = "in kN" }
    mesh = { type = "str", choices = ["fine", "coarse"] }
    [solver.post]
    kind = "python"
    call = "post.py:process"
    alone = false
    licenses = { orcaflex = 1 }
    """,
    Path("/srv/solvisor/solvisor.toml"),
)
LIMITS = CONFIG.limits(16, 128 << 30)
CCX = make_demand(solver="ccx")
LICENSED = make_demand(solver="ccx", licenses=(("orcaflex", 1),))


def solver(story: Story, name: str, *, over: bool = False) -> SolverView:
    found = offers.solvers(story.world, LIMITS, CONFIG.solver, story.now, over=over)
    assert [each.name for each in found] == ["ccx", "post"]
    return next(each for each in found if each.name == name)


def license_of(story: Story, name: str = "orcaflex") -> LicenseView:
    found = offers.licenses(story.world, LIMITS, story.now, story.now_us)
    assert [each.name for each in found] == ["orcaflex", "spare"]
    return next(each for each in found if each.name == name)


def test_a_solver_is_told_as_it_is_configured() -> None:
    ccx = solver(Story(), "ccx")
    assert (ccx.kind, ccx.accept, ccx.alone, ccx.command) == ("command", ("*.inp",), True, ("ccx", "-i", "{stem}"))
    assert (ccx.cpus, ccx.memory_bytes, ccx.timeout_seconds, ccx.max_jobs) == (2, 2 << 30, 7200, 3)
    assert (ccx.running, ccx.waiting, ccx.paused, ccx.pool) == (0, 0, None, None)
    load, mesh = ccx.params["load"], ccx.params["mesh"]
    assert (load.type, load.default, load.min, load.max, load.choices, load.help) == (
        "float",
        1.0,
        0,
        None,
        (),
        "in kN",
    )
    assert (mesh.type, mesh.default, mesh.choices, mesh.help) == ("str", None, ("fine", "coarse"), None)
    post = solver(Story(), "post")
    assert (post.kind, post.alone, post.licenses) == ("python", False, {"orcaflex": 1})
    assert post.command == ("python3", "post.py:process")


def test_only_a_daemon_has_warm_servers() -> None:
    pool = solver(Story(), "post").pool
    assert pool is not None
    assert (pool.solver, pool.most) == ("post", 2)
    assert solver(Story(), "post", over=True).pool is None


def test_whoever_has_a_place_runs_and_whoever_is_queued_waits_whatever_for() -> None:
    story = Story()
    for name in ("runs", "collects", "ready", "first"):
        story.accept(name, CCX)
    story.accept("after", CCX, after=["first"])
    story.start("runs")
    story.start("collects")
    story.exited("collects")
    assert (solver(story, "ccx").running, solver(story, "ccx").waiting) == (1, 3)
    story.cancel("ready")
    assert solver(story, "ccx").waiting == 2
    assert (solver(story, "post").running, solver(story, "post").waiting) == (0, 0)
    story.world.sanity_check()


@pytest.mark.parametrize(("paused", "told"), [((None,), None), (("ccx",), "ccx"), ((None, "ccx"), "ccx")])
def test_a_solver_is_held_by_its_own_pause_or_by_that_of_everything(
    paused: tuple[str | None, ...], told: str | None
) -> None:
    story = Story()
    for name in paused:
        story.world.set_pause(Pause(name, "ann", NOON_US, "upgrade"))
    pause = solver(story, "ccx").paused
    assert pause is not None
    assert (pause.solver, pause.by, pause.note) == (told, "ann", "upgrade")
    other = solver(story, "post").paused
    assert (other is None) == (None not in paused)


def test_a_license_names_the_jobs_and_servers_that_have_it_and_counts_who_waits_for_it() -> None:
    story = Story()
    story.accept("a", LICENSED, user="ann")
    story.accept("b", LICENSED)
    story.start("a")
    story.world.put_server(
        Server("post-1", "post", ServerState.READY, (("orcaflex", 1),), story.now, story.now, started_us=NOON_US)
    )
    story.now_us += 7 * SECOND_US
    found = license_of(story)
    assert (found.used, found.total, found.waiting, found.servers) == (2, 2, 1, ("post-1",))
    assert [(holder.id, holder.user, holder.seconds) for holder in found.holders] == [("a", "ann", 7)]
    assert (found.rests_seconds, found.error) == (None, None)
    spare = license_of(story, "spare")
    assert (spare.used, spare.total, spare.waiting, spare.holders, spare.servers) == (0, 1, 0, (), ())


def test_a_license_that_was_refused_says_so_and_how_long_it_rests() -> None:
    story = Story()
    refusals, seats = story.world.refusals, (("orcaflex", 1),)
    refusals.refuse(seats, "no seat: -4,132", story.now)
    assert (license_of(story).error, license_of(story).rests_seconds) == ("no seat: -4,132", None)
    refusals.refuse(seats, "no seat: -4,132", story.now)
    refusals.refuse(seats, "no seat: -5,357", story.now)
    assert (license_of(story).error, license_of(story).rests_seconds) == ("no seat: -5,357", 5)
    story.now += 6
    refusals.pass_time(story.now)
    refusals.begin(seats, "a", story.now)
    assert license_of(story).rests_seconds is None  # one tries it: nobody knows for how long
