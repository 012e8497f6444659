"""The words for a job that waits for a warm server, or for the license that one would hold."""

from __future__ import annotations

from typing import Any

from builders import SECOND_US, WARM, Story, make_demand, make_limits, make_pool
from solvisor import fleet
from solvisor.events import Condemn, ServerStuck
from solvisor.model import Limits, PoolRule, Reason
from solvisor.scheduler import explain, reason, reason_of_demand
from solvisor.views import Finding, Holder

SEAT = (("seat", 1),)
SEATED = make_demand("ccx", licenses=SEAT)
LIMITS = make_limits(licenses={"seat": 1}, pools={"omc": make_pool(max=2)})


def seated(**changes: Any) -> Limits:
    """One seat, which every server of omc holds."""
    return make_limits(licenses={"seat": 1}, pools={"omc": make_pool(licenses=SEAT, **changes)})


def findings(story: Story, job_id: str = "job", limits: Limits = LIMITS) -> list[Finding]:
    return explain(story.world, limits, job_id, story.now, story.now_us)


def first(story: Story, job_id: str = "job", limits: Limits = LIMITS) -> Finding:
    """What holds it back in the first place, of which the one word of a list must say the same."""
    finding = findings(story, job_id, limits)[0]
    assert finding.holds
    assert reason(story.world, limits, story.job(job_id)) == (finding.reason, finding.what)
    assert reason_of_demand(story.world, limits, story.world.demands[job_id]) == (finding.reason, finding.what)
    return finding


def serve(story: Story, job_id: str, **changes: Any) -> None:
    story.accept(job_id, WARM, **changes)
    story.start(job_id)


def fail(story: Story, times: int, rule: PoolRule | None = None) -> None:
    for _ in range(times):
        story.now = max(story.now, story.world.pool("omc").rests_until or 0.0)
        story.server_ended(story.start_server(), "omc-1 ended with exit code 3", rule=rule)


def test_no_server_is_up() -> None:
    story = Story()
    story.accept("job", WARM)
    finding = first(story)
    assert (finding.reason, finding.what, finding.label) == (Reason.SERVER, "omc", "server")
    assert finding.text == "no server of omc is up"
    assert (finding.need, finding.used, finding.total, finding.holders) == (1, 0, 2, ())


def test_one_is_starting() -> None:
    story = Story()
    story.want_server()
    story.now += 2.5
    story.accept("job", WARM)
    assert first(story).text == "no server of omc is up; omc-1 is starting, 2.5 s so far"


def test_all_are_busy_and_who_has_them() -> None:
    story = Story()
    for name in ("riser-1", "riser-2"):
        story.start_server()
        serve(story, name, user="user1")
        story.now_us += 60 * SECOND_US
    story.accept("job", WARM)
    finding = first(story)
    assert finding.text == "2 of at most 2 servers of omc are busy"
    assert finding.holders == (Holder("riser-1", "user1", 120.0), Holder("riser-2", "user1", 60.0))
    assert (finding.used, finding.total) == (2, 2)


def test_the_rest_are_busy_and_one_is_starting() -> None:
    story = Story()
    story.start_server()
    serve(story, "riser-1")
    story.want_server()
    story.accept("job", WARM)
    assert first(story).text == "1 of at most 2 servers of omc are busy; omc-2 is starting, 0.0 s so far"


def test_the_servers_of_others_are_not_its_own() -> None:
    story = Story()
    story.start_server("post")
    story.accept("other", make_demand("post", warm=True))
    story.start("other")
    story.want_server("post")
    story.accept("job", WARM)
    assert first(story).text == "no server of omc is up"


def test_at_most_five_holders_are_named() -> None:
    story = Story()
    for n in range(7):
        story.start_server()
        serve(story, f"riser-{n}")
    story.accept("job", WARM)
    limits = make_limits(max_jobs=9, pools={"omc": make_pool(max=7)})
    assert [holder.id for holder in first(story, limits=limits).holders] == [f"riser-{n}" for n in range(5)]


def test_the_next_one_rests_after_an_error() -> None:
    story = Story()
    fail(story, 5)
    story.accept("job", WARM)
    text = "no server of omc is up; the next one starts in 1.6 s, after: omc-1 ended with exit code 3"
    assert first(story).text == text
    story.now += 1.6
    assert first(story).text == "no server of omc is up", "its rest is over"


def test_they_failed_too_often() -> None:
    story = Story()
    fail(story, 2, make_pool(restarts=1))
    story.accept("job", WARM)
    text = "the servers of omc failed too often: omc-1 ended with exit code 3; "
    assert first(story).text == text + "solvisor servers restart omc tries again"


def test_it_was_scaled_to_none() -> None:
    story = Story()
    story.start_server()
    serve(story, "riser-1")
    story.world.set_scale("omc", 0)
    story.accept("job", WARM)
    finding = first(story)
    text = "1 of at most 0 servers of omc are busy; it was scaled to 0; "
    text += "solvisor servers scale omc auto gives it servers again"
    assert (finding.text, finding.total) == (text, 0)
    assert finding.holders == (), "the last job of the last server is nothing to wait for"


def test_one_would_not_die() -> None:
    story = Story()
    story.start_server()
    fleet.apply(story.world, {}, Condemn("omc-1", "it did not answer", story.now))
    fleet.apply(story.world, {}, ServerStuck("omc-1"))
    story.accept("job", WARM)
    assert first(story).text == "no server of omc is up; omc-1 would not die"


def test_a_ready_server_holds_nobody_back() -> None:
    story = Story()
    story.start_server()
    story.accept("job", WARM)
    story.accept("next", WARM)
    servers = [finding for finding in findings(story) if finding.reason is Reason.SERVER]
    assert [(finding.holds, finding.text, finding.holders) for finding in servers] == [
        (False, "a server of omc is ready", ())
    ]
    assert not any(finding.holds for finding in findings(story))
    finding = findings(story, "next")[0]
    assert (finding.reason, finding.text) == (Reason.ORDER, "2nd of 2; first is job")


def test_a_solver_without_warm_servers_says_nothing_of_servers() -> None:
    story = Story()
    story.accept("job")
    assert all(finding.reason is not Reason.SERVER for finding in findings(story))


def test_the_license_is_missing_for_a_server_and_a_job_has_it() -> None:
    story = Story()
    story.accept("running", SEATED, user="user1")
    story.start("running")
    story.accept("job", WARM)
    limits = seated()
    finding, server = findings(story, limits=limits)[:2]
    assert first(story, limits=limits) == finding
    assert (finding.reason, finding.what, finding.text) == (Reason.LICENSE, "seat", "seat: needs 1, 1 of 1 in use")
    assert finding.holders == (Holder("running", "user1", 0.0),)
    assert (server.reason, server.text) == (Reason.SERVER, "no server of omc is up")


def test_a_server_that_holds_the_license_is_named() -> None:
    story = Story()
    story.start_server("omc", SEAT)
    story.start_server("post")
    story.now += 30.0
    story.accept("job", SEATED)
    finding = first(story, limits=seated())
    assert (finding.reason, finding.what, finding.holders) == (Reason.LICENSE, "seat", (Holder("omc-1", None, 30.0),))


def test_with_a_server_on_its_way_or_no_other_allowed_it_is_the_server_that_is_waited_for() -> None:
    story = Story()
    story.want_server("omc", SEAT)
    story.accept("job", WARM)
    assert first(story, limits=seated()).reason is Reason.SERVER
    story = Story()
    story.start_server("omc", SEAT)
    serve(story, "riser-1")
    story.accept("job", WARM)
    assert first(story, limits=seated(max=1)).reason is Reason.SERVER
    assert first(story, limits=seated(max=2)).reason is Reason.LICENSE


def test_more_of_a_license_than_there_is_can_never_be_had() -> None:
    story = Story()
    story.accept("job", WARM)
    limits = make_limits(licenses={"seat": 1}, pools={"omc": make_pool(licenses=(("seat", 2),))})
    finding = first(story, limits=limits)
    assert finding.reason is Reason.LICENSE
    assert finding.text.startswith("seat: needs 2, 0 of 1 in use; it can never start so")
