"""The state table, pair by pair, and what each transition writes into the job.

``EXAMPLES`` says, for one job in every situation, what each event makes of it. What is not named there must be refused
and leave the world exactly as it was.
"""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from builders import (
    BAD,
    NOON_US,
    OK,
    WARM,
    Story,
    make_demand,
    make_facts,
    make_intake,
    make_settings,
    snapshot,
)
from solvisor import events, machine
from solvisor.errors import IllegalEvent
from solvisor.events import (
    Accept,
    BackoffOver,
    Cancel,
    Collect,
    DeadlinePassed,
    DependencyOver,
    Discarded,
    Dispatch,
    Event,
    Exited,
    Fenced,
    Gone,
    Judged,
    Launched,
    Lost,
    Prioritize,
    Publish,
    Published,
    Resumed,
    ServerLost,
    SetAside,
    Skip,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
)
from solvisor.machine import HANDLERS, TABLE
from solvisor.model import TERMINAL, Batch, Cause, Job, Retry, ServerState, State, Verdict
from solvisor.recovery import restore
from solvisor.world import Queue, World

RETRYING = make_settings(Retry(max=1, on=(Cause.EXIT, Cause.SPAWN, Cause.TIMEOUT), delay_seconds=10.0))
AT_ONCE = make_settings(Retry(max=1, on=(Cause.EXIT,), delay_seconds=0.0))
TIMED = make_settings(timeout_seconds=60.0)


# --- situations: every state, and within `queued`, `running` and `failed` everything that matters --------------------


def unknown(story: Story) -> None:
    pass


def ready(story: Story) -> None:
    story.accept("job")


def waiting(story: Story) -> None:
    story.accept("other")
    story.accept("job", after=["other"])


def resting(story: Story) -> None:
    story.accept("job")
    story.run("job", BAD, RETRYING)


def staging(story: Story) -> None:
    story.accept("job")
    story.dispatch("job")


def staging_with_retry(story: Story) -> None:
    story.accept("job")
    story.dispatch("job", RETRYING)


def staging_cancelled(story: Story) -> None:
    staging(story)
    story.cancel("job")


def up(story: Story) -> None:
    story.accept("job")
    story.start("job", TIMED)


def timed_out(story: Story) -> None:
    up(story)
    story.deadline_passed("job")


def up_cancelled(story: Story) -> None:
    up(story)
    story.cancel("job")


def collecting(story: Story) -> None:
    up(story)
    story.exited("job")


def collecting_with_retry(story: Story) -> None:
    story.accept("job")
    story.start("job", RETRYING)
    story.exited("job")


def collecting_cancelled(story: Story) -> None:
    up_cancelled(story)
    story.exited("job", make_facts(stopped=True))


def ready_for_a_server(story: Story) -> None:
    story.accept("job", WARM)
    story.start_server()


def ready_without_a_server(story: Story) -> None:
    story.accept("job", WARM)
    story.want_server()
    story.start_server("post")


def lent(story: Story) -> None:
    story.accept("job", WARM)
    story.start_server()
    story.dispatch("job", TIMED)


def served(story: Story) -> None:
    lent(story)
    story.spawned("job")


def served_cancelled(story: Story) -> None:
    served(story)
    story.cancel("job")


def served_for_the_third_time(story: Story) -> None:
    """Two servers died of it."""
    served(story)
    for _ in range(2):
        story.lose_server("job")
        story.server_ended(story.job("job").current.server or "")
        story.start_server()
        story.start("job", TIMED)


def succeeded(story: Story) -> None:
    story.accept("job")
    story.run("job")


def failed(story: Story) -> None:
    story.accept("job")
    story.run("job", BAD)


def unkillable(story: Story) -> None:
    up(story)
    story.exited("job", make_facts(unkillable=True))


def cancelled(story: Story) -> None:
    story.accept("job")
    story.cancel("job")


def rejected(story: Story) -> None:
    intake = make_intake("job", ("solver", "fits ccx and abaqus"))
    machine.apply(story.world, Accept("job", intake, make_demand(), frozenset(), None, NOON_US))


def skipped(story: Story) -> None:
    story.accept("job", failed_dependency="other")


Situation = Callable[[Story], None]

SITUATIONS: list[Situation] = [
    unknown,
    ready,
    waiting,
    resting,
    staging,
    staging_with_retry,
    staging_cancelled,
    up,
    timed_out,
    up_cancelled,
    collecting,
    collecting_with_retry,
    collecting_cancelled,
    ready_for_a_server,
    ready_without_a_server,
    lent,
    served,
    served_cancelled,
    served_for_the_third_time,
    succeeded,
    failed,
    unkillable,
    cancelled,
    rejected,
    skipped,
]


# --- one example of every event, for the job named `job`; `token` is that of its current attempt --------------------

EVENTS: dict[str, Callable[[str], Event]] = {
    "accept": lambda token: Accept("job", make_intake("job"), make_demand(), frozenset(), None, NOON_US),
    "accept, refused": lambda token: Accept(
        "job", make_intake("job", ("solver", "fits nothing")), make_demand(), frozenset(), None, NOON_US
    ),
    "accept, broken": lambda token: Accept("job", make_intake("job"), make_demand(), frozenset(), "dead", NOON_US),
    "accept, after unknown": lambda token: Accept(
        "job", make_intake("job"), make_demand(), frozenset({"nobody"}), None, NOON_US
    ),
    "dispatch": lambda token: Dispatch("job", "job#new", "ws1", TIMED, NOON_US),
    "dispatch to a server": lambda token: Dispatch("job", "job#new", "ws1", TIMED, NOON_US, "omc-1", 5.0),
    "dispatch to another": lambda token: Dispatch("job", "job#new", "ws1", TIMED, NOON_US, "post-1", 5.0),
    "dispatch to none": lambda token: Dispatch("job", "job#new", "ws1", TIMED, NOON_US, "omc-7", 5.0),
    "spawned": lambda token: Spawned("job", token, ("ccx",), 77, 1, "boot", 5.0),
    "launched": lambda token: Launched("job", token, ("client",), 78, 2),
    "server lost": lambda token: ServerLost("job", token, True, "it was ended by SIGSEGV", 1000.0, NOON_US),
    "server lost unreached": lambda token: ServerLost("job", token, False, "it was gone", 1000.0, NOON_US),
    "spawn failed": lambda token: SpawnFailed("job", token, "no_program", "ccx is not there", 5.0, NOON_US),
    "deadline passed": lambda token: DeadlinePassed("job", token),
    "exited": lambda token: Exited("job", token, make_facts(), NOON_US),
    "exited, stopped": lambda token: Exited("job", token, make_facts(stopped=True), NOON_US),
    "exited, unkillable": lambda token: Exited("job", token, make_facts(unkillable=True), NOON_US),
    "judged good": lambda token: Judged("job", token, Verdict(None), 5.0, NOON_US),
    "judged bad": lambda token: Judged("job", token, BAD, 5.0, NOON_US),
    "lost": lambda token: Lost("job", token, 3, NOON_US),
    "stopped before it began": lambda token: Lost("job", token, None, NOON_US),
    "lost too often": lambda token: Lost("job", token, 1, NOON_US),
    "resumed": lambda token: Resumed("job", token, 0, NOON_US),
    "resumed too often": lambda token: Resumed("job", token, 3, NOON_US),
    "set aside": lambda token: SetAside("job", "row", "its row cannot be read", NOON_US),
    "gone": lambda token: Gone("job", token),
    "backoff over": lambda token: BackoffOver("job"),
    "cancel": lambda token: Cancel("job", NOON_US),
    "prioritize": lambda token: Prioritize("job", 7),
    "batch stopped": lambda token: Skip("job", "its batch was cancelled", NOON_US),
    "other succeeded": lambda token: DependencyOver("job", "other", True, NOON_US),
    "other failed": lambda token: DependencyOver("job", "other", False, NOON_US),
    "published": lambda token: Published("job"),
}

Q, R, C = State.QUEUED, State.RUNNING, State.COLLECTING
S, F, X, J, K = State.SUCCEEDED, State.FAILED, State.CANCELLED, State.REJECTED, State.SKIPPED
GONE = None

_LOSSES = {"lost": Q, "lost too often": F, "stopped before it began": Q}
_LOSSES_CANCELLED = {"lost": X, "lost too often": X, "stopped before it began": X}
_RESUMPTIONS = {"resumed": C, "resumed too often": F}
_EXITS = {"exited": C, "exited, stopped": Q, "exited, unkillable": F}
_EXITS_ASKED_FOR = {"exited": C, "exited, stopped": C, "exited, unkillable": F}

_SERVER_LOSSES = {"server lost": Q, "server lost unreached": Q}
_SERVED = {"launched": R, "spawn failed": F, "deadline passed": R, "cancel": R, **_EXITS, **_LOSSES}

EXAMPLES: dict[Situation, dict[str, State | None]] = {
    unknown: {"accept": Q, "accept, refused": J, "accept, broken": K},
    ready: {"dispatch": R, "cancel": X, "batch stopped": K},
    waiting: {"other succeeded": Q, "other failed": K, "cancel": X, "batch stopped": K},
    resting: {"backoff over": Q, "cancel": X, "batch stopped": K},
    staging: {"spawned": R, "spawn failed": F, "deadline passed": R, "cancel": R, **_EXITS, **_LOSSES},
    staging_with_retry: {"spawned": R, "spawn failed": Q, "deadline passed": R, "cancel": R, **_EXITS, **_LOSSES},
    staging_cancelled: {
        "spawned": R,
        "spawn failed": X,
        "deadline passed": R,
        "cancel": R,
        **_EXITS_ASKED_FOR,
        **_LOSSES_CANCELLED,
    },
    up: {"deadline passed": R, "cancel": R, **_EXITS, **_LOSSES},
    timed_out: {"deadline passed": R, "cancel": R, **_EXITS_ASKED_FOR, **_LOSSES},
    up_cancelled: {"deadline passed": R, "cancel": R, **_EXITS_ASKED_FOR, **_LOSSES_CANCELLED},
    collecting: {"judged good": S, "judged bad": F, "cancel": C, **_RESUMPTIONS},
    collecting_with_retry: {"judged good": S, "judged bad": Q, "cancel": C, **_RESUMPTIONS},
    collecting_cancelled: {"judged good": X, "judged bad": X, "cancel": C, **_RESUMPTIONS},
    ready_for_a_server: {"dispatch to a server": R, "cancel": X, "batch stopped": K},
    ready_without_a_server: {"cancel": X, "batch stopped": K},
    lent: {
        "spawned": R,
        "spawn failed": F,
        "deadline passed": R,
        "cancel": R,
        **_SERVER_LOSSES,
        **_EXITS,
        **_LOSSES,
    },
    served: {**_SERVED, **_SERVER_LOSSES},
    served_cancelled: {
        "launched": R,
        "server lost": X,
        "server lost unreached": X,
        "spawn failed": X,
        "deadline passed": R,
        "cancel": R,
        **_EXITS_ASKED_FOR,
        **_LOSSES_CANCELLED,
    },
    served_for_the_third_time: {**_SERVED, **_SERVER_LOSSES, "server lost": F},
    succeeded: {"published": GONE},
    failed: {"published": GONE},
    unkillable: {"gone": F},
    cancelled: {"published": GONE},
    rejected: {"published": GONE},
    skipped: {"published": GONE},
}
for _outcomes in EXAMPLES.values():
    if "cancel" in _outcomes:
        _outcomes["set aside"] = F  # whatever it was about to become
    if "batch stopped" in _outcomes:
        _outcomes["prioritize"] = Q  # whatever it waits for


def in_situation(situation: Situation) -> Story:
    """A world with the job ``job`` in it, all recorded so far."""
    story = Story()
    situation(story)
    story.world.sanity_check()
    story.world.take_changes()
    return story


def current_token(world: World) -> str:
    job = world.jobs.get("job")
    return job.attempt.token if job and job.attempt else "none yet"


def state_of(world: World) -> State | None:
    return world.jobs["job"].state if "job" in world.jobs else None


def name_of(value: object) -> str:
    return getattr(value, "__name__", str(value))


@pytest.mark.parametrize("event_name", EVENTS)
@pytest.mark.parametrize("situation", SITUATIONS, ids=name_of)
def test_every_event_in_every_situation(situation: Situation, event_name: str) -> None:
    world = in_situation(situation).world
    event = EVENTS[event_name](current_token(world))
    before = snapshot(world)

    if event_name in EXAMPLES[situation]:
        state = state_of(world)
        machine.apply(world, event)
        world.sanity_check()
        assert state_of(world) == EXAMPLES[situation][event_name]
        assert state_of(world) in TABLE[state, type(event)]
    elif isinstance(event, Fenced) and current_token(world) == "none yet":
        assert machine.apply(world, event) == [Discarded("job", type(event).__name__, event.token)]
        assert snapshot(world) == before
    else:
        with pytest.raises(IllegalEvent, match=rf"{type(event).__name__} cannot happen to job"):
            machine.apply(world, event)
        assert snapshot(world) == before


def test_the_examples_reach_everything_that_the_table_allows() -> None:
    reached: dict[tuple[State | None, type[Event]], set[State | None]] = {}
    for situation, row in EXAMPLES.items():
        state = state_of(in_situation(situation).world)
        for event_name, after in row.items():
            reached.setdefault((state, type(EVENTS[event_name](""))), set()).add(after)
    assert reached == {pair: set(states) for pair, states in TABLE.items()}


def test_every_event_has_a_handler_and_a_row() -> None:
    events = {type(make("")) for make in EVENTS.values()}
    assert set(HANDLERS) == events == {event for _, event in TABLE}


def test_terminal_states_have_no_exit_but_publication() -> None:
    exits = {(event, after) for (state, event), states in TABLE.items() if state in TERMINAL for after in states}
    assert exits == {(Published, None), (Gone, F)}


FENCED = [name for name, make in EVENTS.items() if isinstance(make(""), Fenced)]


@pytest.mark.parametrize("event_name", FENCED)
@pytest.mark.parametrize("situation", SITUATIONS, ids=name_of)
def test_a_superseded_attempt_changes_nothing(situation: Situation, event_name: str) -> None:
    world = in_situation(situation).world
    before = snapshot(world)
    event = EVENTS[event_name]("job#0")
    assert machine.apply(world, event) == [Discarded("job", type(event).__name__, "job#0")]
    assert snapshot(world) == before


def test_the_result_of_an_earlier_attempt_is_discarded_while_the_next_runs() -> None:
    story = in_situation(up)
    story.lost("job")
    story.start("job")
    before = snapshot(story.world)
    late = Exited("job", "job#1", make_facts(), NOON_US)
    assert machine.apply(story.world, late) == [Discarded("job", "Exited", "job#1")]
    assert snapshot(story.world) == before


# --- effects --------------------------------------------------------------------------------------------------------


def test_the_effects_of_a_plain_success() -> None:
    story = Story()
    assert story.accept("job") == []
    assert story.dispatch("job") == [Start("job", "job#1")]
    assert story.spawned("job") == []
    assert story.exited("job") == [Collect("job", "job#1")]
    assert story.judged("job") == [Publish("job")]
    assert story.published("job") == []
    assert story.world.jobs == {}


def test_cancelling_stops_what_runs_or_is_about_to() -> None:
    assert in_situation(staging).cancel("job") == [Stop("job", "job#1")]
    assert in_situation(up).cancel("job") == [Stop("job", "job#1")]
    assert in_situation(collecting).cancel("job") == []


def test_a_deadline_stops_the_process() -> None:
    assert in_situation(up).deadline_passed("job") == [Stop("job", "job#1")]


# --- room -----------------------------------------------------------------------------------------------------------


def test_room_is_taken_from_dispatch_until_the_tree_is_proven_empty() -> None:
    story = Story()
    story.accept("job", make_demand(cpus=2, licenses=(("orcaflex", 1),)))
    assert story.world.used.jobs == 0
    story.dispatch("job")
    assert (story.world.used.jobs, story.world.used.cpus, story.world.used.licenses["orcaflex"]) == (1, 2, 1)
    story.spawned("job")
    story.exited("job")
    assert (story.world.used.jobs, story.world.used.cpus, story.world.used.licenses["orcaflex"]) == (0, 0, 0)


def test_what_would_not_die_keeps_its_room_and_its_folder_until_it_is_gone() -> None:
    story = in_situation(up)
    assert story.exited("job", make_facts(unkillable=True)) == []
    assert (story.job("job").state, story.job("job").cause) == (F, Cause.UNKILLABLE)
    assert story.world.used.jobs == 1
    assert story.gone("job") == [Publish("job")]
    assert story.world.used.jobs == 0


def test_a_manifest_is_announced_only_after_it_was_recorded() -> None:
    story = Story()
    story.accept("job")
    story.cancel("job")
    with pytest.raises(IllegalEvent, match="not recorded"):
        machine.apply(story.world, Published("job"))
    assert [job.state for job in story.world.take_changes().jobs] == [X]
    machine.apply(story.world, Published("job"))
    assert story.world.take_changes()[:2] == ([], ["job"])


# --- retries, backoff, interruptions --------------------------------------------------------------------------------


def test_a_retry_rests_twice_as_long_each_time_and_then_no_longer_than_the_longest_rest() -> None:
    story = Story()
    story.accept("job")
    rests = []
    for _ in range(8):
        story.run("job", BAD, make_settings(Retry(max=9, on=(Cause.EXIT,), delay_seconds=5.0)))
        rests.append(story.job("job").backoff_seconds)
        story.backoff_over("job")
    assert rests == [5, 10, 20, 40, 80, 160, 300, 300]


def test_thousands_of_retries_overflow_nothing() -> None:
    story = Story()
    story.accept("job")
    for _ in range(1100):
        story.run("job", BAD, make_settings(Retry(max=5000, on=(Cause.EXIT,), delay_seconds=0.0)))
    assert story.job("job").state is Q


def test_a_retry_without_delay_waits_only_for_room() -> None:
    story = Story()
    story.accept("job")
    story.run("job", BAD, AT_ONCE)
    assert story.world.is_ready(story.job("job"))


def test_tries_are_counted_and_the_last_verdict_stands() -> None:
    story = in_situation(resting)
    job = story.job("job")
    assert (job.cause, job.code, job.message) == (None, None, None), "a job that waits has not failed"
    story.backoff_over("job")
    story.run("job", BAD, RETRYING)
    job = story.job("job")
    assert (job.state, job.cause, job.code, job.message) == (F, Cause.EXIT, "exit_3", "the matrix is singular")
    assert [(a.n, a.token, a.cause, a.code) for a in job.attempts] == [
        (1, "job#1", Cause.EXIT, "exit_3"),
        (2, "job#2", Cause.EXIT, "exit_3"),
    ]


def test_a_success_after_a_failed_try_shows_nothing_of_it_but_the_attempt() -> None:
    story = in_situation(resting)
    story.backoff_over("job")
    story.run("job", settings=RETRYING)
    job = story.job("job")
    assert (job.state, job.cause, job.code, job.message) == (S, None, None, None)
    assert [a.cause for a in job.attempts] == [Cause.EXIT, None]


def test_a_cause_that_is_not_listed_is_not_tried_again() -> None:
    story = Story()
    story.accept("job")
    story.run("job", Verdict(Cause.SIGNAL), RETRYING)
    assert story.job("job").state is F


def test_interruptions_are_not_charged_and_their_row_ends_with_an_attempt_that_ended_by_itself() -> None:
    story = Story()
    story.accept("job")
    for _ in range(2):
        story.start("job", AT_ONCE)
        story.lost("job")
    assert story.job("job").interruptions == 2
    story.run("job", BAD, AT_ONCE)
    assert (story.job("job").state, story.job("job").interruptions) == (Q, 0)
    for _ in range(2):
        story.start("job", AT_ONCE)
        story.exited("job", make_facts(stopped=True))
    assert story.job("job").state is Q
    story.run("job", BAD, AT_ONCE)
    assert story.job("job").state is F


def test_a_failed_start_ends_the_row_of_interruptions_too() -> None:
    story = Story()
    story.accept("job")
    story.start("job", RETRYING)
    story.lost("job")
    story.dispatch("job", RETRYING)
    story.spawn_failed("job")
    assert story.job("job").interruptions == 0


def test_interrupted_too_often_in_a_row_is_lost() -> None:
    story = Story()
    story.accept("job")
    for _ in range(3):
        story.start("job")
        story.lost("job")
    job = story.job("job")
    assert (job.state, job.cause) == (F, Cause.LOST)
    assert job.message is not None
    assert "3 times in a row" in job.message


def test_a_timeout_is_a_timeout_only_if_we_ended_it() -> None:
    ended_by_us = in_situation(timed_out)
    ended_by_us.exited("job", make_facts(stopped=True))
    assert ended_by_us.job("job").current.cause is Cause.TIMEOUT
    ended_by_itself = in_situation(timed_out)
    ended_by_itself.exited("job", make_facts(0))
    assert ended_by_itself.job("job").current.cause is None


# --- warm servers ---------------------------------------------------------------------------------------------------


def test_a_job_is_lent_a_server_and_the_attempt_says_which() -> None:
    story = in_situation(ready_for_a_server)
    story.now += 3.0
    assert story.dispatch("job") == [Start("job", "job#1")]
    attempt, server = story.job("job").current, story.server("omc-1")
    assert (attempt.server, attempt.port, attempt.pid) == ("omc-1", 27501, None)
    assert (server.state, server.job, server.since) == (ServerState.BUSY, "job", story.now)


def test_a_process_of_the_job_takes_the_place_of_its_server_in_the_attempt() -> None:
    story = in_situation(served)
    deadlines = list(story.world.deadlines)
    assert (story.job("job").current.pid, deadlines) == (4242, [(story.now + 60.0, "job#1", "job")])
    assert story.launched("job") == []
    attempt = story.job("job").current
    assert (attempt.argv, attempt.pid, attempt.pid_start) == (("client", "beam"), 4343, 100)
    assert (attempt.server, attempt.boot_id) == ("omc-1", "boot")
    assert story.world.deadlines == deadlines, "its time runs from when the server took it"


@pytest.mark.parametrize(
    ("reached", "cause", "code", "rest"),
    [(True, Cause.SERVER, "server_died", 0.5), (False, Cause.LOST, "server_gone", 0.0)],
)
def test_a_job_whose_server_is_gone_waits_for_another_at_its_old_place(
    reached: bool, cause: Cause, code: str, rest: float
) -> None:
    story = in_situation(served)
    story.accept("later", WARM)
    assert story.server_lost("job", reached=reached) == []
    job = story.job("job")
    assert (job.state, job.cause, job.code, job.message, job.backoff_seconds) == (Q, None, None, None, rest)
    if reached:
        assert [place[2] for place in story.world.ready[WARM]] == ["later"], "others have their turn first"
        story.backoff_over("job")
    assert (job.current.cause, job.current.code, job.current.message) == (cause, code, "omc-1 was ended by SIGSEGV")
    assert [place[2] for place in story.world.ready[WARM]] == ["job", "later"]
    assert story.world.used.jobs == 0
    assert story.server("omc-1").job == "job", "what becomes of the server is its own news"


def test_three_servers_that_died_of_a_job_are_enough() -> None:
    story = in_situation(served_for_the_third_time)
    assert story.server_lost("job") == [Publish("job")]
    job = story.job("job")
    assert (job.state, job.cause, job.code) == (F, Cause.POISON, "server_died")
    assert job.message == "3 warm servers broke down over it; the last: omc-1 was ended by SIGSEGV"
    assert [attempt.cause for attempt in job.attempts] == [Cause.SERVER] * 3


def test_a_job_whose_server_died_rests_longer_each_time() -> None:
    story = Story()
    story.accept("job", WARM)
    rests = []
    for _ in range(2):
        story.start_server()
        story.start("job")
        story.server_lost("job")
        rests.append(story.job("job").backoff_seconds)
        story.backoff_over("job")
    assert rests == [0.5, 2.0]


def test_servers_that_never_heard_of_it_poison_nothing() -> None:
    story = in_situation(served_for_the_third_time)
    for _ in range(5):
        story.server_lost("job", reached=False)
        story.start_server()
        story.start("job")
    assert story.job("job").state is R
    story.server_lost("job")
    assert story.job("job").cause is Cause.POISON


def test_in_a_stopped_batch_a_lost_server_ends_the_job_as_what_it_was() -> None:
    story = Story()
    batch = make_batch()
    for job_id in ("a", "b"):
        machine.apply(
            story.world, Accept(job_id, make_intake(job_id, batch="sweep"), WARM, frozenset(), None, NOON_US, batch)
        )
        story.start_server()
        story.start(job_id)
    story.exited("a")
    story.judged("a", BAD)
    assert Publish("b") in story.server_lost("b")
    job = story.job("b")
    assert (job.state, job.cause, job.message) == (F, Cause.SERVER, "omc-1 was ended by SIGSEGV")
    story.world.sanity_check()


@pytest.mark.parametrize("reached", [True, False])
def test_a_cancelled_job_whose_server_is_gone_is_cancelled(reached: bool) -> None:
    story = in_situation(served_cancelled)
    assert story.server_lost("job", reached=reached) == [Publish("job")]
    job = story.job("job")
    assert (job.state, job.cause, job.message, job.current.cause) == (X, None, "cancelled while it ran", Cause.LOST)


def test_lost_servers_are_not_charged_to_the_tries_a_job_has() -> None:
    story = Story()
    story.accept("job", WARM)
    for reached in (True, False, True):
        story.start_server()
        story.start("job", AT_ONCE)
        if reached:
            story.lose_server("job")
        else:
            story.server_lost("job", reached=False)
    for state in (Q, F):
        story.start_server()
        story.run("job", BAD, AT_ONCE)
        assert story.job("job").state is state


def test_a_job_that_killed_its_server_was_not_interrupted() -> None:
    story = Story()
    story.accept("job", WARM)
    for lost in (story.lost, story.lost, story.lose_server, story.lost):
        story.start_server()
        story.start("job")
        lost("job")
    assert (story.job("job").state, story.job("job").interruptions) == (Q, 1)


def test_only_a_job_with_a_server_may_fail_to_start_after_it_began() -> None:
    assert in_situation(served).spawn_failed("job") == [Publish("job")]
    with pytest.raises(IllegalEvent, match="exists already"):
        in_situation(up).spawn_failed("job")


# --- cancelling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        (ready, "cancelled before it started"),
        (waiting, "cancelled before it started"),
        (resting, "cancelled before its next try"),
    ],
    ids=name_of,
)
def test_cancelled_in_the_queue(situation: Situation, message: str) -> None:
    story = in_situation(situation)
    assert story.cancel("job") == [Publish("job")]
    job = story.job("job")
    assert (job.state, job.message, job.cause, job.code, job.backoff_seconds) == (X, message, None, None, 0.0)


def test_a_cancelled_job_keeps_what_was_collected() -> None:
    story = in_situation(collecting_cancelled)
    story.judged("job", Verdict(Cause.SIGNAL, log_tail="the last words"))
    manifest = story.job("job").manifest
    assert story.job("job").state is X
    assert manifest is not None
    assert b"the last words" in manifest


# --- jobs that wait for jobs ----------------------------------------------------------------------------------------


def test_a_job_waits_for_all_the_jobs_it_names() -> None:
    story = Story()
    story.accept("a")
    story.accept("b")
    story.accept("c", after=["a", "b"])
    story.run("a")
    assert story.world.unmet == {"c": {"b"}}
    story.run("b")
    assert story.world.is_ready(story.job("c"))


def test_when_one_fails_all_that_wait_for_it_are_skipped_each_once() -> None:
    story = Story()
    story.accept("a")
    story.accept("b", after=["a"])
    story.accept("c", after=["a", "b"])
    story.accept("d", after=["c", "a"])
    story.accept("e")
    assert story.run("a", BAD) == [Publish("a"), Publish("b"), Publish("c"), Publish("d")]
    assert [story.job(i).state for i in "abcde"] == [F, K, K, K, Q]
    assert story.job("d").code == "dependency"
    story.world.sanity_check()


def test_a_job_that_would_not_die_takes_its_dependents_with_it_at_once() -> None:
    story = Story()
    story.accept("a")
    story.accept("b", after=["a"])
    story.start("a")
    assert story.exited("a", make_facts(unkillable=True)) == [Publish("b")]
    assert story.job("b").state is K


def test_a_chain_may_be_longer_than_the_stack_is_deep() -> None:
    story = Story()
    story.accept("job-0")
    for n in range(1, 3000):
        story.accept(f"job-{n}", after=[f"job-{n - 1}"])
    assert len(story.cancel("job-0")) == 3000
    assert {job.state for job in story.world.jobs.values()} == {X, K}


# --- the earlier life -----------------------------------------------------------------------------------------------


def reborn(story: Story, *, alive: bool = False) -> tuple[Story, list[events.Effect]]:
    """The same jobs in the world of the next life."""
    after = Story(World())
    effects: list[events.Effect] = []
    for job in sorted(story.world.jobs.values(), key=lambda job: job.seq):
        unmet = frozenset(story.world.unmet.get(job.id, ()))
        effects += restore(after.world, job, story.world.demands[job.id], unmet, 50.0, alive=alive)
    after.world.sanity_check()
    assert after.world.changed == {}, "coming back changes nothing"
    assert after.world.next_seq == story.world.next_seq
    return after, effects


def resting_again(story: Story, job: Job) -> bool:
    return story.world.backoff == [(50.0 + job.backoff_seconds, job.seq, job.id)]


@pytest.mark.parametrize(
    ("situation", "effects"),
    [
        (ready, []),
        (waiting, []),
        (resting, []),
        (staging, []),
        (up, []),
        (collecting, []),
        (lent, []),
        (served, []),
        (succeeded, [Publish("job")]),
        (failed, [Publish("job")]),
        (cancelled, [Publish("job")]),
        (rejected, [Publish("job")]),
        (skipped, [Publish("job")]),
    ],
    ids=name_of,
)
def test_what_follows_from_a_job_of_an_earlier_life(situation: Situation, effects: list[events.Effect]) -> None:
    before = in_situation(situation)
    after, follows = reborn(before)
    assert follows == effects
    assert after.job("job") == before.job("job")
    assert after.world.is_ready(after.job("job")) == (situation is ready)
    assert ("job" in after.world.unmet) == (situation is waiting)
    assert resting_again(after, after.job("job")) == (situation is resting)
    assert ("job" in after.world.holding) == (situation in {staging, up, lent, served})


def test_what_still_would_not_die_keeps_its_room_in_the_next_life() -> None:
    after, effects = reborn(in_situation(unkillable), alive=True)
    assert effects == []
    assert after.world.used.jobs == 1
    assert after.gone("job") == [Publish("job")]


def test_what_died_with_the_machine_is_published_in_the_next_life() -> None:
    after, effects = reborn(in_situation(unkillable))
    assert effects == [Publish("job")]
    assert after.world.used.jobs == 0


# --- the queue and its check ----------------------------------------------------------------------------------------


def test_what_is_recorded_is_each_changed_job_once_in_the_order_of_change() -> None:
    story = Story()
    for job_id in ("b", "a", "c"):
        story.accept(job_id)
    story.cancel("b")
    changed, published, *_ = story.world.take_changes()
    assert [(job.id, job.state) for job in changed] == [("b", X), ("a", Q), ("c", Q)]
    assert published == []
    assert not story.world.take_changes()


def rest_for_ever(world: World) -> None:
    world.dequeue(world.jobs["job"])
    world.put(replace(world.jobs["job"], backoff_seconds=1.0))


BREAKAGES: dict[str, Callable[[World], object]] = {
    "usage drifted": lambda world: world.used.add(make_demand()),
    "a job without a demand": lambda world: world.demands.pop("job"),
    "holding knows unknown jobs": lambda world: world.holding.update(nobody=world.demands["job"]),
    "an empty queue was kept": lambda world: world.ready.update({make_demand("other"): Queue()}),
    "holds a job twice": lambda world: world.enqueue(world.jobs["job"]),
    "stands in the queue of another demand": lambda world: world.ready.update(
        {make_demand("other"): world.ready[make_demand()]}
    ),
    "waits in 0 places": lambda world: world.dequeue(world.jobs["job"]),
    "waits in 2 places": lambda world: world.wait_for(world.jobs["job"], ["other"]),
    "job waits for nobody": lambda world: world.wait_for(world.jobs["job"], []),
    "over or unknown": lambda world: world.wait_for(world.jobs["job"], ["stranger"]),
    "dependents drifted": lambda world: world.dependents.update({"job": {"other"}}),
    "has 0 instants": rest_for_ever,
    "occupies room": lambda world: world.hold("job"),
    "has a seq not yet given out": lambda world: setattr(world, "next_seq", 1),
    "finished": lambda world: world.put(replace(world.jobs["job"], finished_us=1)),
    "manifest": lambda world: world.put(replace(world.jobs["job"], manifest=b"{}")),
}


def test_fault_87_what_runs_ends_as_it_was_started_whatever_its_solver_has_become() -> None:
    story = Story()
    story.start_server()
    for job_id in ("job", "later"):
        story.accept(job_id, WARM)
    story.dispatch("job")
    story.spawned("job")
    cold = make_demand("omc", cpus=4, licenses=(("lic", 1),))
    story.world.set_demands(dict.fromkeys(("job", "later"), cold))
    story.world.sanity_check()
    assert story.world.used.cpus == 1
    assert [place[2] for place in story.world.ready[cold]] == ["later"]
    story.spawn_failed("job")  # the talk with its server broke off
    story.world.sanity_check()
    assert (story.job("job").state, story.world.used.cpus) == (State.FAILED, 0)
    assert story.world.holding == {}


@pytest.mark.parametrize("complaint", BREAKAGES)
def test_the_sanity_check_notices(complaint: str) -> None:
    story = in_situation(ready)
    story.accept("other")
    story.world.sanity_check()
    BREAKAGES[complaint](story.world)
    with pytest.raises(AssertionError, match=complaint):
        story.world.sanity_check()


def test_a_queue_loses_nothing_but_what_it_is_told() -> None:
    story = in_situation(ready)
    queue = story.world.ready[make_demand()]
    assert not queue.discard((0, 99, "nobody"))
    assert len(queue) == 1


def test_an_attempt_of_which_nothing_changed_is_the_same_record() -> None:
    """So it is not written again; see ``Store.record``."""
    story = in_situation(collecting)
    before = story.job("job").current
    story.judged("job", OK)
    assert story.job("job").current is before


def test_only_a_job_that_comes_into_another_state_has_moved() -> None:
    story = in_situation(staging)
    story.world.take_moved()
    story.spawned("job")
    assert story.world.take_moved() == []
    story.exited("job")
    assert [(move.before, move.job.state, move.live) for move in story.world.take_moved()] == [(R, C, True)]


def test_an_end_of_its_own_ends_the_row_of_interruptions() -> None:
    story = in_situation(ready)
    story.start("job")
    story.lost("job")
    assert story.job("job").interruptions == 1
    story.start("job")
    story.exited("job")
    assert story.job("job").interruptions == 0


def test_a_job_that_never_ran_does_not_end_before_it_came_either() -> None:
    story = in_situation(ready)
    story.now_us -= 5
    story.cancel("job")
    assert story.job("job").finished_us == story.job("job").submitted_us


def test_what_is_said_of_a_success_is_kept() -> None:
    story = in_situation(collecting)
    story.judged("job", Verdict(None, None, "converged"))
    assert (story.job("job").message, story.job("job").current.message) == ("converged", "converged")


# --- the drawing ----------------------------------------------------------------------------------------------------


def test_the_page_in_the_docs_is_drawn_from_this_table() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = runpy.run_path(str(docs / "make_states.py"))["page"]()
    assert (docs / "states.md").read_text(encoding="utf-8") == page, "run: python docs/make_states.py"


# --- batches --------------------------------------------------------------------------------------------------------


def make_batch(on_error: Literal["skip", "fail"] = "fail", **changes: Any) -> Batch:
    return replace(Batch("sweep", "sweep", "user1", on_error, None, NOON_US), **changes)


def accept_into(story: Story, batch: Batch, *job_ids: str) -> None:
    for job_id in job_ids:
        current = story.world.batches.get(batch.id, batch)
        intake = make_intake(job_id, batch=batch.id)
        machine.apply(story.world, Accept(job_id, intake, make_demand(), frozenset(), None, NOON_US, current))


def states_of(story: Story, *job_ids: str) -> list[State]:
    story.world.sanity_check()
    return [story.job(job_id).state for job_id in job_ids]


def test_a_batch_stops_at_its_first_failure_and_lets_finish_what_runs() -> None:
    story = Story()
    accept_into(story, make_batch(), "a", "b", "c", "d")
    story.start("b")
    effects = story.run("a", BAD)
    assert states_of(story, "a", "b", "c", "d") == [F, R, K, K]
    assert [e.id for e in effects if isinstance(e, Publish)] == ["a", "c", "d"]
    assert story.job("c").message == "a was failed, and its batch stops at the first failure"
    assert story.job("c").code == "batch"
    accept_into(story, make_batch(), "late")
    assert states_of(story, "late") == [K]


def test_a_batch_that_skips_goes_on() -> None:
    story = Story()
    accept_into(story, make_batch("skip"), "a", "b")
    story.run("a", BAD)
    assert states_of(story, "a", "b") == [F, Q]


def test_who_cancels_one_job_does_not_mean_its_batch() -> None:
    story = Story()
    accept_into(story, make_batch(), "a", "b")
    story.cancel("a")
    assert states_of(story, "a", "b") == [X, Q]


def test_what_waits_for_a_skipped_job_is_skipped_too_and_once() -> None:
    story = Story()
    accept_into(story, make_batch(), "a", "b")
    intake = make_intake("c", batch="sweep", after=("b",))
    batch = story.world.batches["sweep"]
    machine.apply(story.world, Accept("c", intake, make_demand(), frozenset({"b"}), None, NOON_US, batch))
    story.run("a", BAD)
    assert states_of(story, "b", "c") == [K, K]


def test_a_batch_is_over_when_it_is_closed_and_its_last_job_is_published() -> None:
    story = Story()
    accept_into(story, make_batch(), "a")
    story.run("a")
    story.published("a")
    assert story.world.take_over() == []
    story.world.put_batch(replace(story.world.batches["sweep"], closed=True))
    assert [batch.id for batch in story.world.take_over()] == ["sweep"]
    assert [batch.closed for batch in story.world.take_changes().batches] == [True]
    assert "sweep" not in story.world.batches


@pytest.mark.parametrize(("on_error", "taken"), [("fail", 1), ("skip", 0)])
def test_a_batch_that_stops_at_a_failure_keeps_the_place_of_a_job_until_its_verdict(
    on_error: Literal["skip", "fail"], taken: int
) -> None:
    story = Story()
    batch = make_batch(on_error, max_jobs=1)
    demand = make_demand(batch="sweep", batch_jobs=1)
    machine.apply(story.world, Accept("a", make_intake("a", batch="sweep"), demand, frozenset(), None, NOON_US, batch))
    story.start("a")
    assert story.world.used.batches["sweep"] == 1
    story.exited("a")
    story.world.sanity_check()
    assert (story.world.used.jobs, story.world.used.batches["sweep"]) == (0, taken)
    story.judged("a")
    story.world.sanity_check()
    assert story.world.used.batches["sweep"] == 0
