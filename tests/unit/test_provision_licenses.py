"""Licenses between jobs and warm servers: kept for who comes first, and given up by servers that have nothing to do."""

from __future__ import annotations

from typing import Any

import pytest

from builders import WARM, Story, make_demand, make_pool
from provision_kit import (
    POST,
    SEAT,
    SEATED,
    SEATED_POOL,
    TWO_SEATS,
    decide,
    lend,
    limits_of,
    queue,
    retires,
    serve,
    starts,
)
from solvisor import fleet
from solvisor.events import Condemn, ServerStuck
from solvisor.model import Demand, Limits
from solvisor.scheduler import Plan

# --- kept -----------------------------------------------------------------------------------------------------------


def test_a_license_kept_for_a_server_goes_to_no_later_job_and_no_later_server() -> None:
    limits = limits_of(2, omc=make_pool(licenses=(("seat", 2),)), post=SEATED_POOL)
    story = Story()
    story.accept("running", SEATED)
    story.start("running")
    queue(story, [WARM, SEATED, POST, make_demand()])
    decided = decide(story, limits)
    assert (decided.starts, decided.servers) == (("d",), ())
    story.exited("running")
    decided = decide(story, limits)
    assert (decided.starts, decided.servers) == (("d",), ("omc",))


def test_a_license_kept_for_a_job_goes_to_no_later_server() -> None:
    limits = limits_of(2, omc=make_pool(min=1, licenses=SEAT))
    story = Story()
    story.accept("running", SEATED)
    story.start("running")
    queue(story, [TWO_SEATS, WARM])
    decided = decide(story, limits)
    assert (decided.starts, decided.servers) == ((), ())
    story.cancel("a")
    assert starts(story, limits) == "o"


def test_a_server_that_can_never_have_its_licenses_keeps_them_from_nobody() -> None:
    limits = limits_of(1, omc=make_pool(min=1, licenses=(("seat", 2),)), post=make_pool(min=1, licenses=SEAT))
    story = Story()
    queue(story, [WARM])
    assert starts(story, limits) == "p"
    story.accept("b", SEATED)
    decided = decide(story, limits)
    assert (decided.starts, decided.servers) == (("b",), ())


# --- given up -------------------------------------------------------------------------------------------------------

WAITED_FOR = "another job waits for the license seat"


def idle_since(story: Story, *solvers: str) -> list[str]:
    """Servers that hold a seat each, the longest idle first."""
    names = []
    for solver in solvers:
        names.append(story.start_server(solver, SEAT))
        story.now += 1.0
    return names


def two_pools(seats: int, **changes: Any) -> Limits:
    rule = make_pool(max=4, licenses=SEAT, **changes)
    return limits_of(seats, omc=rule, post=rule)


def test_an_idle_server_gives_way_to_a_job_that_waits_for_its_license() -> None:
    story, limits = Story(), two_pools(1, min=1)
    idle_since(story, "omc")
    assert decide(story, limits) == Plan((), None), "nobody waits"
    queue(story, [make_demand(), SEATED])
    decided = decide(story, limits)
    assert decided.starts == ("a",)
    assert dict(decided.retire) == {"omc-1": WAITED_FOR}, "min is no reason to keep a job waiting"
    story.retire("omc-1")
    assert decide(story, limits).retire == ()
    story.server_ended("omc-1")
    assert decide(story, limits).starts == ("a", "b")


def test_an_idle_server_gives_way_to_a_server_for_a_job() -> None:
    story, limits = Story(), two_pools(1)
    idle_since(story, "omc")
    queue(story, [POST])
    assert retires(story, limits) == {"omc-1": WAITED_FOR}
    story.retire("omc-1")
    story.server_ended("omc-1")
    assert starts(story, limits) == "p"


def test_it_does_not_give_way_to_a_server_that_nobody_waits_for() -> None:
    story, limits = Story(), limits_of(1, omc=SEATED_POOL, post=make_pool(min=1, licenses=SEAT))
    idle_since(story, "omc")
    assert decide(story, limits) == Plan((), None)


def test_only_as_many_give_way_as_are_needed_the_longest_idle_first() -> None:
    story, limits = Story(), two_pools(4)
    idle_since(story, "omc", "post", "omc", "post")
    queue(story, [TWO_SEATS])
    assert list(retires(story, limits)) == ["omc-1", "post-1"]


def test_a_free_license_is_counted_before_anybody_gives_way() -> None:
    story, limits = Story(), two_pools(4)
    idle_since(story, "omc", "post", "omc")
    queue(story, [TWO_SEATS])
    assert list(retires(story, limits)) == ["omc-1"]


def test_those_that_end_already_are_counted() -> None:
    story, limits = Story(), two_pools(3)
    idle_since(story, "omc", "post", "omc")
    story.retire("post-1")
    queue(story, [SEATED])
    assert decide(story, limits).retire == ()
    story.accept("b", TWO_SEATS, priority=1)
    assert list(retires(story, limits)) == ["omc-1"]


def test_so_are_those_that_end_in_this_plan_for_another_reason() -> None:
    story, limits = Story(), two_pools(2, recycle_age_seconds=50.0)
    story.start_server("omc", SEAT)
    story.now += 10.0
    story.start_server("post", SEAT)
    story.now = 1050.0
    queue(story, [SEATED])
    assert retires(story, limits) == {"omc-1": "recycled for its age"}


def test_one_that_would_not_die_is_not_counted() -> None:
    story, limits = Story(), two_pools(2)
    idle_since(story, "omc", "omc")
    fleet.apply(story.world, {}, Condemn("omc-1", "it did not answer", story.now))
    queue(story, [SEATED])
    assert decide(story, limits).retire == ()
    fleet.apply(story.world, {}, ServerStuck("omc-1"))
    assert retires(story, limits) == {"omc-2": WAITED_FOR}


def test_one_that_a_job_of_this_plan_takes_does_not_give_way() -> None:
    story, limits = Story(), two_pools(2)
    idle_since(story, "omc", "omc")
    queue(story, [WARM, SEATED])
    decided = decide(story, limits)
    assert decided.starts == ("a",)
    assert dict(decided.retire) == {"omc-1": WAITED_FOR}
    assert lend(story, "a") == "omc-2"


@pytest.mark.parametrize("waiting", [SEATED, POST])
def test_a_job_that_waits_for_a_license_is_not_overtaken_by_those_that_its_holder_serves(waiting: Demand) -> None:
    """However many of them there are: a server that is never idle would never give way."""
    story, limits = Story(), two_pools(1)
    idle_since(story, "omc")
    serve(story, "early")
    queue(story, [waiting, WARM, make_demand()])
    assert decide(story, limits).starts == ("c",)
    story.exited("early")
    story.free("omc-1")
    decided = decide(story, limits)
    assert decided.starts == ("c",)
    assert dict(decided.retire) == {"omc-1": WAITED_FOR}


def test_one_without_the_license_does_not_give_way() -> None:
    story = Story()
    limits = limits_of(1, omc=SEATED_POOL, post=make_pool())
    story.start_server("post")
    story.now += 1.0
    story.accept("running", SEATED)
    story.start("running")
    queue(story, [SEATED, WARM])
    assert decide(story, limits) == Plan((), None)


def test_a_license_given_up_goes_to_whom_it_was_given_up_for() -> None:
    """Otherwise min would take it back at once, for ever."""
    story, limits = Story(), limits_of(1, omc=make_pool(min=1, licenses=SEAT), post=SEATED_POOL)
    idle_since(story, "omc")
    queue(story, [POST])
    story.retire("omc-1", WAITED_FOR)
    assert starts(story, limits) == ""
    story.server_ended("omc-1")
    assert starts(story, limits) == "p"
    story.cancel("a")
    assert starts(story, limits) == "o"
