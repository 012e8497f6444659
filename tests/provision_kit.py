"""What the tests of plans for warm servers share: solvers that hold seats of one license, and looks at a plan."""

from __future__ import annotations

from builders import WARM, Story, make_demand, make_limits, make_pool, snapshot
from solvisor.model import Demand, Limits, PoolRule
from solvisor.scheduler import Plan, plan

SEAT = (("seat", 1),)
SEATED = make_demand("ccx", licenses=SEAT)
TWO_SEATS = make_demand("ccx", licenses=(("seat", 2),))
POST = make_demand("post", warm=True)
SEATED_POOL = make_pool(licenses=SEAT)


def limits_of(seats: int = 1, max_jobs: int = 4, **pools: PoolRule) -> Limits:
    return make_limits(max_jobs=max_jobs, licenses={"seat": seats}, pools=pools)


def decide(story: Story, limits: Limits) -> Plan:
    """A plan, which changes nothing."""
    for solver in limits.pools:
        story.world.pool(solver)  # what is known of a new one is nothing, and a plan may note that
    before = snapshot(story.world)
    decided = plan(story.world, limits, story.now)
    assert decided == plan(story.world, limits, story.now)
    assert snapshot(story.world) == before
    return decided


def starts(story: Story, limits: Limits) -> str:
    """The solvers of the servers to start, by their first letters."""
    return "".join(solver[0] for solver in decide(story, limits).servers)


def retires(story: Story, limits: Limits) -> dict[str, str]:
    return dict(decide(story, limits).retire)


def queue(story: Story, demands: list[Demand]) -> None:
    for job_id, demand in zip("abcdefgh", demands, strict=False):
        story.accept(job_id, demand)


def serve(story: Story, job_id: str) -> str:
    """Have an idle server take a new job; its name."""
    story.accept(job_id, WARM)
    return lend(story, job_id)


def lend(story: Story, job_id: str) -> str:
    """Have an idle server take a queued job; its name."""
    story.start(job_id)
    return story.job(job_id).current.server or ""
