"""Limits that people set: their names and ranges, what is in force with them, and how they are told."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from builders import GIB, NOON_US, Story, make_demand, make_limits, make_pool, make_settings
from solvisor import answers, fleetview, overrides
from solvisor.changeover import surplus
from solvisor.errors import Refused
from solvisor.model import Limits, Override, Reason
from solvisor.scheduler import explain, plan
from solvisor.usual import Usual
from solvisor.views import Explanation

SEAT = (("orcaflex", 1),)
LICENSED = make_demand("orcaflex", licenses=SEAT)
CONFIGURED = make_limits(
    max_jobs=4,
    cpus=8,
    memory_bytes=16 * GIB,
    licenses={"orcaflex": 2, "a.b": 1},
    solver_jobs={"ccx": None, "orcaflex": 3, "omc": None},
    pools={"omc": make_pool(max=4, licenses=SEAT, auto=True)},
)
WHEN = "since 2026-01-31 12:00 UTC"


def made(name: str, value: int, by: str | None = "ann", note: str | None = None) -> Override:
    return Override(name, value, by, NOON_US, note)


def limited(*overridden: Override, story: Story | None = None) -> tuple[Story, Limits]:
    """A world in which these were set, and what is in force there."""
    story = story or Story()
    for override in overridden:
        story.world.set_override(override)
    return story, overrides.in_force(CONFIGURED, story.world.overrides.values())


# --- what is in force -----------------------------------------------------------------------------------------------


def test_each_override_holds_in_place_of_its_limit_and_of_no_other() -> None:
    before = overrides.values(CONFIGURED)
    assert list(before) == [
        *("max_jobs", "cpus", "memory", "license.a.b", "license.orcaflex", "solver.ccx", "solver.omc"),
        "solver.orcaflex",
    ]
    for name in before:
        after = overrides.values(overrides.in_force(CONFIGURED, [made(name, 7)]))
        assert after == before | {name: 7}
    assert overrides.in_force(CONFIGURED, []) == CONFIGURED


def test_what_is_not_configured_has_no_effect() -> None:
    gone = [made("license.mapdl", 3), made("solver.abaqus", 3)]
    assert overrides.in_force(CONFIGURED, gone) == CONFIGURED


@pytest.mark.parametrize(
    ("name", "value", "most"),
    [("max_jobs", 2, 2), ("max_jobs", 9, 9), ("solver.omc", 3, 3), ("solver.omc", 9, 4), ("cpus", 1, 4)],
)
def test_servers_are_as_many_as_can_have_a_job(name: str, value: int, most: int) -> None:
    assert overrides.in_force(CONFIGURED, [made(name, value)]).pools["omc"].max == most


def test_servers_of_a_number_that_is_configured_stay_as_many() -> None:
    rule = make_pool(min=2, max=3)
    configured = replace(CONFIGURED, pools={"omc": rule})
    assert overrides.in_force(configured, [made("max_jobs", 1)]).pools["omc"] == rule
    assert replace(rule, auto=True).within(1, None).max == 2, "never fewer than min"


def test_a_job_is_taken_in_that_could_start_by_either() -> None:
    low = overrides.in_force(CONFIGURED, [made("cpus", 2), made("memory", GIB), made("license.orcaflex", 0)])
    high = overrides.in_force(CONFIGURED, [made("cpus", 9), made("memory", 99 * GIB), made("license.orcaflex", 5)])
    widest = overrides.widest(CONFIGURED, low)
    assert (widest.cpus, widest.memory_bytes, widest.licenses["orcaflex"]) == (8, 16 * GIB, 2)
    widest = overrides.widest(CONFIGURED, high)
    assert (widest.cpus, widest.memory_bytes, widest.licenses["orcaflex"]) == (9, 99 * GIB, 5)


# --- what can be set ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_jobs", 1), ("max_jobs", 1_000_000), ("cpus", 1), ("memory", 0), ("memory", (1 << 63) - 1)),
        *(("license.orcaflex", 0), ("license.a.b", 1_000_000), ("solver.ccx", 1)),
    ],
)
def test_what_the_configuration_could_say_can_be_set(name: str, value: int) -> None:
    overrides.check(name, value, overrides.values(CONFIGURED))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_jobs", 0, "max_jobs=0 is not from 1 to 1,000,000; solvisor pause starts nothing more"),
        ("max_jobs", 1_000_001, "max_jobs=1000001 is not from 1 to 1,000,000"),
        ("cpus", 0, "cpus=0 is not from 1 to 1,000,000"),
        ("cpus", -1, "cpus=-1 is not from 1 to 1,000,000"),
        ("memory", -1, "memory=-1 is not a number of bytes, less than 8 EiB"),
        ("memory", 1 << 63, "memory=9223372036854775808 is not a number of bytes, less than 8 EiB"),
        ("license.orcaflex", -1, "license.orcaflex=-1 is not from 0 to 1,000,000"),
        (
            *("solver.ccx", 0),
            "solver.ccx=0 is not from 1 to 1,000,000; solvisor pause ccx starts nothing more of it",
        ),
        ("license.orcflex", 1, "there is no limit 'license.orcflex'; did you mean \"license.orcaflex\"?"),
        ("orcaflex", 1, "there is no limit 'orcaflex'; did you mean \"solver.orcaflex\"?"),
        ("", 1, "there is no limit ''; known: max_jobs, cpus, memory, license.a.b"),
        ("license.", 1, "there is no limit 'license.'; did you mean"),
    ],
)
def test_what_cannot_be_set_is_refused_with_what_to_do(name: str, value: int, said: str) -> None:
    with pytest.raises(Refused) as refused:
        overrides.check(name, value, overrides.values(CONFIGURED))
    assert refused.value.refusal == "usage"
    assert str(refused.value).startswith(said)


# --- jobs under a limit ---------------------------------------------------------------------------------------------


def told(story: Story, limits: Limits, job_id: str) -> list[str]:
    findings = explain(story.world, limits, job_id, story.now, story.now_us)
    assert (job_id in plan(story.world, limits, story.now).starts) == (not any(f.holds for f in findings))
    return [finding.text for finding in findings if finding.holds]


def test_lowered_below_what_is_in_use_nothing_more_starts_until_it_fits() -> None:
    story = Story()
    for job_id in "abc":
        story.accept(job_id, LICENSED)
    for job_id in "ab":
        story.start(job_id)
    story, limits = limited(made("license.orcaflex", 1, note="the workshop"), story=story)
    assert told(story, limits, "c") == [f"orcaflex: needs 1, 2 of 1 in use (limited to 1 by ann {WHEN}, the workshop)"]
    story.exited("a")
    assert told(story, limits, "c") == [f"orcaflex: needs 1, 1 of 1 in use (limited to 1 by ann {WHEN}, the workshop)"]
    story.exited("b")
    assert told(story, limits, "c") == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (made("max_jobs", 1), f"1 of at most 1 jobs are running (limited to 1 by ann {WHEN})"),
        (made("max_jobs", 1, by=None), f"1 of at most 1 jobs are running (limited to 1 {WHEN})"),
        (made("cpus", 4), f"needs 2, 1 of 4 free (limited to 4 by ann {WHEN})"),
        (made("memory", 3 * GIB), f"needs 2 GiB, 1 GiB of 3 GiB free (limited to 3 GiB by ann {WHEN})"),
        (made("solver.ccx", 1), f"1 of at most 1 jobs of ccx are running (limited to 1 by ann {WHEN})"),
    ],
)
def test_who_set_the_limit_that_holds_a_job_back_is_told(override: Override, said: str) -> None:
    story = Story()
    story.accept("first", make_demand(cpus=3, memory_bytes=2 * GIB))
    story.start("first")
    story.accept("second", make_demand(cpus=2, memory_bytes=2 * GIB))
    story, limits = limited(override, story=story)
    assert told(story, limits, "second") == [said]
    story.world.end_override(override.name)
    assert told(story, CONFIGURED, "second") == []


def test_a_limit_that_does_not_hold_a_job_back_is_not_told() -> None:
    story = Story()
    story.accept("job", make_demand(cpus=2))
    story, limits = limited(made("cpus", 2), made("max_jobs", 1), made("solver.ccx", 1), story=story)
    assert told(story, limits, "job") == []
    assert not any("limited" in f.text for f in explain(story.world, limits, "job", story.now, story.now_us))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (made("cpus", 1), f"needs 2, 1 of 1 free (limited to 1 by ann {WHEN})"),
        (made("license.orcaflex", 0), f"orcaflex: needs 1, 0 of 0 in use (limited to 0 by ann {WHEN})"),
    ],
)
def test_a_job_that_can_never_start_so_is_told_so_and_waits(override: Override, said: str) -> None:
    story = Story()
    story.accept("job", make_demand("orcaflex", cpus=2, licenses=SEAT))
    story.accept("other", make_demand("ccx", cpus=1))
    story, limits = limited(override, story=story)
    back = f"raise the limit (solvisor limit {override.name} auto takes it back)"
    assert told(story, limits, "job") == [f"{said}; it can never start so: {back}, or cancel it and ask for less"]
    view = answers.view(story.world, limits, Usual(), story.job("job"), make_settings(), None, NOON_US)
    found: Explanation = answers.explanation(story.world, limits, view, story.now, NOON_US)
    assert found.headline == "can never start as things are."
    assert plan(story.world, limits, story.now).starts == ("other",), "it holds up nobody"
    assert plan(story.world, CONFIGURED, story.now).starts == ("job", "other")


# --- warm servers ---------------------------------------------------------------------------------------------------


def test_idle_servers_that_hold_more_than_there_are_end_and_busy_ones_once_they_are_free() -> None:
    story = Story()
    for _ in range(2):
        story.start_server("omc", SEAT)
    story.accept("job", make_demand("omc", warm=True))
    story.start("job")
    assert [s.state.value for s in story.world.servers.values()] == ["ready", "busy"]
    _, limits = limited(made("license.orcaflex", 1), story=story)
    assert surplus(story.world, limits) == {"omc-1": "there are 1 of the license orcaflex now"}
    _, limits = limited(made("license.orcaflex", 0), story=story)
    assert surplus(story.world, limits).keys() == {"omc-1", "omc-2"}
    story.retire("omc-2")
    assert (story.job("job").state.value, story.server("omc-2").state.value) == ("running", "draining")


def test_as_many_servers_are_told_as_there_may_be() -> None:
    story, limits = limited()
    (row,) = fleetview.pool_rows(story.world, limits, story.now)
    (view,) = fleetview.servers(story.world, limits, story.now)
    assert (row.most, view.most, view.max) == (2, 2, 4), "there are two licenses"
    story, limits = limited(made("license.orcaflex", 1))
    (row,) = fleetview.pool_rows(story.world, limits, story.now)
    (view,) = fleetview.servers(story.world, limits, story.now)
    assert (row.most, view.most) == (1, 1)
    story, limits = limited(made("max_jobs", 1))
    (row,) = fleetview.pool_rows(story.world, limits, story.now)
    assert row.most == 1
    story.accept("first", make_demand("omc", warm=True))
    story.start_server("omc", SEAT)
    story.start("first")
    story.accept("second", make_demand("omc", warm=True))
    texts = [f.text for f in explain(story.world, limits, "second", story.now, story.now_us) if f.holds]
    assert "1 of at most 1 servers of omc are busy" in texts


def test_no_more_are_wanted_than_there_are_licenses_for() -> None:
    configured = replace(CONFIGURED, pools={"omc": make_pool(min=2, max=4, licenses=SEAT)})
    limits = overrides.in_force(configured, [made("license.orcaflex", 1)])
    (row,) = fleetview.pool_rows(Story().world, limits, 0.0)
    assert (row.wanted, row.most) == (1, 1)
    assert plan(Story().world, limits, 0.0).servers == ("omc",)


def test_a_job_that_waits_for_a_server_is_told_who_limited_its_license() -> None:
    story, limits = limited(made("license.orcaflex", 0))
    story.accept("job", make_demand("omc", warm=True))
    texts = told(story, limits, "job")
    assert texts[0].startswith(f"orcaflex: needs 1, 0 of 0 in use (limited to 0 by ann {WHEN}); it can never start so")
    assert texts[1] == "no server of omc is up"
    assert plan(story.world, limits, story.now).servers == ()


# --- how they are told ----------------------------------------------------------------------------------------------


def test_limits_are_told_with_what_is_in_use_and_who_set_them() -> None:
    story = Story()
    story.accept("job", make_demand("orcaflex", cpus=3, memory_bytes=GIB, licenses=SEAT))
    story.start("job")
    story.start_server("omc", SEAT)
    story, limits = limited(made("license.orcaflex", 1, note="gui"), made("solver.gone", 5), story=story)
    found = {limit.name: limit for limit in answers.limits_told(story.world, CONFIGURED, limits)}
    assert list(found) == [*overrides.values(CONFIGURED), "solver.gone"]
    numbers = {name: (each.unit, each.used, each.value, each.configured) for name, each in found.items()}
    assert numbers == {
        "max_jobs": ("jobs", 1, 4, 4),
        "cpus": ("cores", 3, 8, 8),
        "memory": ("bytes", GIB, 16 * GIB, 16 * GIB),
        "license.a.b": ("licenses", 0, 1, 1),
        "license.orcaflex": ("licenses", 2, 1, 2),
        "solver.ccx": ("jobs", 0, None, None),
        "solver.omc": ("jobs", 0, None, None),
        "solver.orcaflex": ("jobs", 1, 3, 3),
        "solver.gone": ("jobs", 0, 5, None),
    }
    own = found["license.orcaflex"]
    assert (own.by, own.since, own.note, own.known) == ("ann", "2026-01-31T12:00:00.000000Z", "gui", True)
    assert (found["cpus"].by, found["cpus"].since, found["cpus"].note) == (None, None, None)
    assert not found["solver.gone"].known
    by_people = answers.limits_set(story.world, CONFIGURED, limits)
    assert [limit.name for limit in by_people] == ["license.orcaflex", "solver.gone"]
    assert answers.limit_notes(story.world, CONFIGURED) == [
        "the limit solver.gone, set to 5 by ann, has no effect: nothing of that name is configured; "
        "solvisor limit solver.gone auto forgets it"
    ]


def test_a_limit_that_has_no_effect_is_not_what_a_job_waits_for() -> None:
    story = Story()
    story.accept("job", make_demand("orcaflex", licenses=(("mapdl", 1),)))
    story, limits = limited(made("license.mapdl", 2), story=story)
    assert told(story, limits, "job") == [
        "mapdl: needs 1, 0 of 0 in use; it can never start so: raise the limit, or cancel it and ask for less"
    ]


def test_what_was_set_and_what_was_taken_back_is_to_be_recorded() -> None:
    world = Story().world
    assert not world.is_changed()
    world.set_override(made("cpus", 2))
    assert world.is_changed()
    assert world.take_changes().overrides == [made("cpus", 2)]
    assert not world.is_changed()
    world.end_override("cpus")
    assert world.is_changed()
    assert world.take_changes().overrides == []
    world.end_override("cpus")
    assert not world.is_changed()
    assert world.take_changes().overrides is None


def test_a_limit_of_one_license_says_nothing_of_another() -> None:
    story = Story()
    story.accept("job", make_demand("orcaflex", licenses=(("a.b", 2),)))
    story, limits = limited(made("license.orcaflex", 1), story=story)
    findings = explain(story.world, limits, "job", story.now, story.now_us)
    assert [f.reason for f in findings if f.holds] == [Reason.LICENSE]
    assert "limited" not in findings[0].text
