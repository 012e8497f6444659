"""What the world looks like from outside: states shown, headlines, counts, times."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from builders import BAD, NOON_US, SECOND_US, Story, make_demand, make_facts, make_intake, make_limits, make_settings
from solvisor import answers, machine
from solvisor.events import Accept, SetAside
from solvisor.manifest import Manifest
from solvisor.model import LICENSE_DENIED, TERMINAL, Batch, Cause, Job, Pause, Reason, Retry, State, Verdict
from solvisor.recovery import restore
from solvisor.usual import Usual
from solvisor.views import Explanation
from solvisor.world import World

LIMITS = make_limits(max_jobs=2, licenses={"orcaflex": 2}, solver_jobs={"ccx": None, "post": 1})
LATER_US = NOON_US + 100 * SECOND_US


def look(story: Story, job_id: str, now_us: int = LATER_US) -> Any:
    return answers.row(story.world, LIMITS, Usual(), story.job(job_id), now_us)


def gone(story: Story, job_id: str) -> Job:
    """The row of a job once it is published and has left the world."""
    job = story.job(job_id)
    story.published(job_id)
    return replace(job, manifest=None)


def explain(story: Story, job: Job) -> Explanation:
    view = answers.view(story.world, LIMITS, Usual(), job, make_settings(), None, LATER_US)
    return answers.explanation(story.world, LIMITS, view, story.now, LATER_US)


# --- states and places ----------------------------------------------------------------------------------------------


def test_what_ended_is_collecting_until_its_result_lies_in_its_place() -> None:
    story = Story()
    story.accept("a")
    assert (look(story, "a").state, look(story, "a").folder) == ("queued", "work/a")
    story.start("a")
    assert look(story, "a").state == "running"
    story.exited("a")
    assert look(story, "a").state == "collecting"
    story.judged("a", BAD)
    row = look(story, "a")
    assert (row.state, row.cause, row.code, row.message, row.finished) == ("collecting", None, None, None, None)
    assert row.folder == "work/a"
    row = answers.row(story.world, LIMITS, Usual(), gone(story, "a"), LATER_US)
    assert (row.state, row.cause, row.code, row.message) == ("failed", "exit", "exit_3", BAD.message)
    assert (row.finished, row.folder) == ("2026-01-31T12:00:05.000000Z", "failed/a")


def test_what_would_not_die_is_shown_as_failed_although_its_folder_stays() -> None:
    story = Story()
    story.accept("a")
    story.start("a")
    story.exited("a", replace(make_facts(), exit_code=None, unkillable=True))
    row = look(story, "a")
    assert (row.state, row.cause, row.folder) == ("failed", "unkillable", "work/a")
    (problem,) = answers.unkillable_problems(story.world)
    assert problem.startswith(f"the processes of a (pid {story.job('a').current.pid}) would not die; its room stays")
    assert explain(story, story.job("a")).next == answers.NEXT[Cause.UNKILLABLE]


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_every_end_has_its_folder(state: State) -> None:
    job = Job("a", 1, state, make_intake("a").spec, NOON_US, finished_us=NOON_US)
    assert answers.folder_of(job, live=False).split("/")[0] in {"done", "failed", "rejected"}


# --- times ----------------------------------------------------------------------------------------------------------


def test_the_times_of_a_job_are_of_its_wait_and_of_its_last_try() -> None:
    story = Story()
    story.accept("a")
    assert (look(story, "a").queue_seconds, look(story, "a").run_seconds) == (100, None)
    story.now_us += 10 * SECOND_US
    retry = make_settings(Retry(1, (Cause.EXIT,), 5.0))
    story.start("a", retry)
    assert (look(story, "a").queue_seconds, look(story, "a").run_seconds) == (10, 90)
    assert look(story, "a").started == "2026-01-31T12:00:10.000000Z"
    story.exited("a", replace(make_facts(), exit_code=3, finished_us=NOON_US + 15 * SECOND_US))
    assert look(story, "a").run_seconds == 5  # judging it is no running
    story.judged("a", BAD)
    row = look(story, "a")
    assert (row.state, row.reason, row.run_seconds, row.tries, row.message) == ("queued", "backoff", None, 1, None)
    story.backoff_over("a")
    story.now_us = NOON_US + 60 * SECOND_US
    story.start("a", retry)
    row = look(story, "a")
    assert (row.queue_seconds, row.run_seconds, row.tries) == (10, 40, 2)
    story.exited("a", replace(make_facts(), finished_us=NOON_US + 63 * SECOND_US))
    story.judged("a")
    row = answers.row(story.world, LIMITS, Usual(), gone(story, "a"), LATER_US)
    assert (row.state, row.run_seconds, row.queue_seconds) == ("succeeded", 3, 10)


def test_fault_48_a_job_that_never_ran_has_no_run_time_and_a_clock_set_back_gives_no_negative_ones() -> None:
    story = Story()
    story.accept("a")
    story.accept("b")
    story.now_us += 7 * SECOND_US
    story.cancel("a")
    row = answers.row(story.world, LIMITS, Usual(), gone(story, "a"), LATER_US)
    assert (row.state, row.queue_seconds, row.run_seconds, row.started) == ("cancelled", 7, None, None)
    story.start("b")
    row = look(story, "b", NOON_US - SECOND_US)
    assert (row.run_seconds, row.queue_seconds) == (0, 7)


# --- headlines ------------------------------------------------------------------------------------------------------


def test_headlines_of_waiting_jobs() -> None:
    story = Story()
    licensed = make_demand(licenses=(("orcaflex", 2),))
    story.accept("a", licensed)
    assert explain(story, story.job("a")).headline == "starts now."
    story.start("a")
    story.accept("b", licensed)
    found = explain(story, story.job("b"))
    assert found.headline == "waits for a license. Nothing is wrong."
    assert [holder.id for holder in found.findings[0].holders] == ["a"]
    story.accept("c", make_demand(licenses=(("orcaflex", 3),)))
    assert explain(story, story.job("c")).headline == "can never start as things are."
    story.accept("d", after=["a"])
    assert explain(story, story.job("d")).headline == "waits for another job. Nothing is wrong."
    story.world.set_pause(Pause("ccx", "ann", NOON_US, "licenses are moved"))
    found = explain(story, story.job("b"))
    assert found.headline == "waits because it was paused."
    assert "ann: licenses are moved; solvisor resume ccx" in found.findings[0].text


def refuse(story: Story, job_id: str, *, times: int) -> None:
    """The license server refuses the job a seat, so many times."""
    for _ in range(times):
        story.start(job_id)
        story.exited(job_id)
        story.judged(job_id, Verdict(Cause.EXIT, LICENSE_DENIED, "no seat is free"))


def test_a_license_that_is_refused_is_not_said_to_be_all_right() -> None:
    story = Story()
    licensed = make_demand(licenses=(("orcaflex", 1),))
    story.accept("a", licensed)
    story.accept("b", licensed)
    refuse(story, "a", times=1)
    found = explain(story, story.job("a"))
    assert found.headline == "waits for a license that its license server refuses; it is tried again by itself."
    assert "its last try got no license (no seat is free); rests " in found.findings[0].text
    assert explain(story, story.job("b")).headline == "starts now."
    assert answers.license_problems(story.world, story.now) == []
    story.backoff_over("a")
    refuse(story, "a", times=1)
    story.backoff_over("a")
    refuse(story, "a", times=1)
    found = explain(story, story.job("b"))
    assert found.headline == answers.REFUSED
    view = answers.view(story.world, LIMITS, Usual(), story.job("a"), None, None, LATER_US)
    assert (view.tries, view.tries_charged) == (3, 0)
    told = "orcaflex was refused 3 times in a row and rests 5 s more; the last time: no seat is free"
    assert found.findings[0].text == told
    assert answers.license_problems(story.world, story.now) == [f"license {told}"]
    assert "rests 1 s more" in answers.license_problems(story.world, story.now + 4)[0]


def test_headlines_of_started_and_ended_jobs() -> None:
    story = Story()
    for job_id in ("a", "b", "c"):
        story.accept(job_id)
    settings = make_settings(Retry(2, (Cause.SIGNAL,)), timeout_seconds=90)
    story.start("a", settings)
    assert explain(story, story.job("a")).headline == "runs: try 1 of 3, at most 90 s."
    story.cancel("a")
    assert explain(story, story.job("a")).headline == "is being stopped: it was cancelled."
    story.run("b", BAD)
    assert explain(story, story.job("b")).headline == "has ended; its results are being judged and made safe."
    found = explain(story, gone(story, "b"))
    assert (found.headline, found.next) == ("FAILED after 5.0 s, try 1 of 1", answers.NEXT_ELSE.format(id="b"))
    story.start("c")
    assert explain(story, story.job("c")).headline == "runs: try 1 of 1, without a limit."
    story.exited("c")
    story.judged("c")
    assert explain(story, gone(story, "c")).headline == "SUCCEEDED in 5.0 s."
    story.accept("d")
    story.cancel("d")
    found = explain(story, gone(story, "d"))
    assert (found.headline, found.next) == ("CANCELLED", "to run it after all: solvisor retry d")


@pytest.mark.parametrize(
    ("ran", "words"), [(0.0002, "1 ms"), (0.004, "4 ms"), (0.099, "99 ms"), (0.12, "0.12 s"), (5.0, "5.0 s")]
)
def test_a_job_of_a_moment_is_told_in_milliseconds(ran: float, words: str) -> None:
    story = Story()
    story.accept("a")
    story.start("a")
    story.exited("a")
    story.judged("a")
    job = gone(story, "a")
    last = job.attempts[-1]
    assert last.facts is not None
    job = replace(job, attempts=(replace(last, facts=replace(last.facts, seconds=ran)),))
    assert explain(story, job).headline == f"SUCCEEDED in {words}."


def test_tries_that_are_not_charged_are_told_apart() -> None:
    story = Story()
    story.accept("a")
    story.start("a")
    story.lost("a")
    assert explain(story, story.job("a")).headline == "starts now."
    story.start("a", make_settings(Retry(1, (Cause.EXIT,))))
    view = answers.view(story.world, LIMITS, Usual(), story.job("a"), None, None, LATER_US)
    assert (view.tries, view.tries_charged, view.tries_max) == (2, 1, 2)
    assert explain(story, story.job("a")).headline == "runs: try 2 (1 charged of 2), without a limit."
    story.exited("a")
    story.judged("a", Verdict(Cause.CHECK, message="no"))
    assert explain(story, gone(story, "a")).headline == "FAILED after 5.0 s, try 2 (1 charged of 2)"


def test_what_broke_servers_is_not_to_be_corrected_blindly() -> None:
    story = Story()
    story.accept("a")
    story.run("a", Verdict(Cause.POISON, "server_died", "3 warm servers broke down over it"))
    told = explain(story, gone(story, "a")).next
    assert told is not None
    assert "solvisor logs a shows" in told
    assert "solvisor try ccx beam.inp shows" in told
    assert "correct the input" not in told


@pytest.mark.parametrize("code", ["row", "defect"])
def test_what_was_set_aside_is_no_fault_of_its_input(code: str) -> None:
    story = Story()
    story.accept("a")
    machine.apply(story.world, SetAside("a", code, "it could not be started, by a defect of Solvisor", NOON_US))
    told = explain(story, gone(story, "a")).next
    assert told == "this is a defect of Solvisor or of its database: submit the input again, and please report it"


def test_the_manifest_has_checks_result_and_whether_the_log_was_cut() -> None:
    story = Story()
    story.accept("a")
    story.run("a")
    sample = (Path(__file__).parents[1] / "data" / "manifests" / "succeeded.json").read_bytes()
    manifest = replace(msgspec.json.decode(sample, type=Manifest), result={"peak": 1}, log_truncated=True)
    view = answers.view(story.world, LIMITS, Usual(), story.job("a"), None, manifest, LATER_US)
    assert (view.checks, view.result, view.log_truncated) == (manifest.checks, {"peak": 1}, True)


@pytest.mark.parametrize("cause", list(Cause))
def test_every_failure_says_what_to_do_next(cause: Cause) -> None:
    story = Story()
    story.accept("a")
    story.run("a", Verdict(cause, message="no"))
    found = explain(story, gone(story, "a"))
    assert found.next
    assert "{" not in found.next


def test_every_reason_to_wait_has_a_headline() -> None:
    assert set(answers.REASONS) == set(Reason)


# --- counts ---------------------------------------------------------------------------------------------------------


def counted(story: Story) -> dict[tuple[str, str | None], int]:
    found = answers.waiting_for(story.world, LIMITS)
    assert [waiting.jobs for waiting in found] == sorted((waiting.jobs for waiting in found), reverse=True)
    return {(waiting.reason.value, waiting.what): waiting.jobs for waiting in found}


def crowd() -> Story:
    """One of every kind of waiting: 3 license, 1 solver, 2 dependency, 1 backoff; two run."""
    story = Story()
    licensed = make_demand(licenses=(("orcaflex", 2),))
    story.accept("runs", licensed)
    story.start("runs")
    story.accept("post", make_demand("post"))
    story.start("post")
    for n in range(3):
        story.accept(f"license-{n}", licensed)
    story.accept("post-2", make_demand("post"))
    story.accept("after-1", after=["runs"])
    story.accept("after-2", make_demand("post"), after=["post", "runs"])
    story.accept("rests")
    story.run("rests", BAD, make_settings(Retry(1, (Cause.EXIT,), 5.0)))
    story.world.sanity_check()
    return story


def test_the_first_that_wait_come_in_their_order_and_those_that_cannot_start_yet_last() -> None:
    story = crowd()
    found = answers.first_waiting(story.world, 20)
    assert found == ["license-0", "license-1", "license-2", "post-2", "rests", "after-1", "after-2"]
    assert answers.first_waiting(story.world, 2) == found[:2]
    story.accept("first", make_demand("ccx"), priority=5)
    story.cancel("license-0")
    story.cancel("rests")
    assert answers.first_waiting(story.world, 20) == ["first", "license-1", "license-2", "post-2", "after-1", "after-2"]


def test_waiting_jobs_are_counted_by_what_they_wait_for_as_their_rows_say() -> None:
    story = crowd()
    found = counted(story)
    assert found == {
        ("license", "orcaflex"): 3,
        ("solver", "post"): 1,
        ("dependency", None): 2,
        ("backoff", None): 1,
    }
    rows = [look(story, job_id) for job_id, job in story.world.jobs.items() if job.state is State.QUEUED]
    assert Counter(row.reason.value for row in rows) == {"license": 3, "solver": 1, "dependency": 2, "backoff": 1}
    story.backoff_over("rests")
    story.cancel("after-1")
    assert counted(story) == {("license", "orcaflex"): 3, ("solver", "post"): 1, ("dependency", None): 1} | {
        ("jobs", None): 1
    }


def test_a_pause_is_what_its_jobs_wait_for() -> None:
    story = crowd()
    story.world.set_pause(Pause("post", None, NOON_US, None))
    assert counted(story)["paused", "post"] == 1
    story.world.set_pause(Pause(None, None, NOON_US, None))
    assert counted(story) == {("paused", None): 7}
    assert {look(story, job_id).reason for job_id in ("license-0", "after-2", "rests")} == {"paused"}
    story.world.end_pause(None)
    story.world.draining = True
    assert counted(story) == {("paused", None): 7}
    assert counted(Story()) == {}


class Closed:
    """Only its length may be asked."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


def test_counting_does_not_look_at_single_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand may wait, and the status is asked every second."""
    story = crowd()
    expected = counted(story)
    for name in ("jobs", "unmet", "backoff", "demands"):
        monkeypatch.setattr(story.world, name, Closed(len(getattr(story.world, name))))
    closed = {demand: Closed(len(queue)) for demand, queue in story.world.ready.items()}
    monkeypatch.setattr(story.world, "ready", closed)
    assert counted(story) == expected
    answers.levels(story.world, LIMITS)


def test_levels_tell_what_is_taken() -> None:
    levels = answers.levels(crowd().world, LIMITS)
    assert (levels["jobs"].used, levels["jobs"].total, levels["cpus"].used) == (2, 2, 2)
    assert {name: (level.used, level.total) for name, level in levels["licenses"].items()} == {"orcaflex": (2, 2)}


# --- batches --------------------------------------------------------------------------------------------------------


def join(story: Story, batch: Batch, *job_ids: str) -> None:
    for job_id in job_ids:
        current = story.world.batches.get(batch.id, batch)
        intake = make_intake(job_id, batch=batch.id)
        machine.apply(story.world, Accept(job_id, intake, make_demand(), frozenset(), None, NOON_US, current))


def test_a_batch_counts_every_job_once_wherever_it_is() -> None:
    story, batch = Story(), Batch("sweep", "sweep", "ann", "skip", None, NOON_US)
    story.world.put_batch(batch)
    join(story, batch, *"abcdef")
    story.accept("stranger")

    def view(**finished: int) -> dict[str, int]:
        counts = Counter({State(state): count for state, count in finished.items()})
        found = answers.batch_view(story.world, story.world.batches["sweep"], counts)
        assert found.over is False
        return {state.value: count for state in State if (count := getattr(found, state.value))}

    assert view() == {"queued": 6}
    story.start("a")
    story.start("b")
    story.exited("b")
    story.run("c", BAD)
    story.cancel("d")
    assert view() == {"queued": 2, "running": 1, "collecting": 3}
    story.published("c")
    story.world.sanity_check()
    assert view(failed=1) == {"queued": 2, "running": 1, "collecting": 2, "failed": 1}
    story.exited("a", replace(make_facts(), exit_code=None, unkillable=True))
    assert view(failed=1) == {"queued": 2, "collecting": 2, "failed": 2}
    story.world.sanity_check()


def test_a_batch_is_over_when_it_is_closed_and_empty() -> None:
    story, batch = Story(), Batch("sweep", "sweep", "ann", "skip", None, NOON_US, closed=True)
    join(story, batch, "a")
    assert answers.batch_view(story.world, batch, Counter()).over is False
    story.run("a")
    story.published("a")
    assert answers.batch_view(story.world, batch, Counter({State.SUCCEEDED: 1})).over is True


def test_a_world_that_is_restored_counts_its_batches_alike() -> None:
    story, batch = Story(), Batch("sweep", "sweep", None, "skip", None, NOON_US)
    join(story, batch, "a", "b")
    story.start("a")
    again = World()
    for job in story.world.jobs.values():
        restore(again, job, make_demand(), frozenset(), 0.0, batch=batch)
    again.sanity_check()
    assert answers.batch_view(again, batch, Counter()) == answers.batch_view(story.world, batch, Counter())


def test_what_is_waited_for_is_named_where_it_is_one_of_several() -> None:
    story = Story()
    story.accept("holds", demand=make_demand(cpus=1, licenses=(("orcaflex", 2),)))
    story.start("holds")
    story.accept("license", demand=make_demand(cpus=1, licenses=(("orcaflex", 1),)))
    story.accept("cores", demand=make_demand(cpus=99))
    told = {job_id: look(story, job_id) for job_id in ("holds", "license", "cores")}
    assert {job_id: (row.reason, row.waits_for) for job_id, row in told.items()} == {
        "holds": (None, None),
        "license": ("license", "orcaflex"),
        "cores": ("cpus", None),
    }
    story.world.set_pause(Pause("ccx", None, NOON_US, None))
    assert (look(story, "license").reason, look(story, "license").waits_for) == ("paused", "ccx")
