"""What happens to jobs is told in lines whose names and fields do not change: people search for them."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from builders import BAD, OK, Story, make_demand, make_facts, make_intake
from solvisor.chronicle import Chronicle
from solvisor.events import (
    Accept,
    BackoffOver,
    DeadlinePassed,
    Event,
    Exited,
    Lost,
    Published,
    Retire,
    ServerLost,
    ServerWanted,
    SetAside,
    Spawned,
    SpawnFailed,
)


def line(log_level: str, event: str, **fields: Any) -> dict[str, Any]:
    return {"log_level": log_level, "event": event, **fields}


TOLD = [
    (Spawned("a", "t", ("ccx",), 42, 99, "boot", 0.0), line("info", "attempt.started", id="a", pid=42)),
    (
        Exited("a", "t", make_facts(stopped=True), 0),
        line("info", "attempt.exited", id="a", exit_code=None, signal=15),
    ),
    (
        SpawnFailed("a", "t", "no_program", "gone", 0.0, 0),
        line("warning", "attempt.not_started", id="a", code="no_program", message="gone"),
    ),
    (DeadlinePassed("a", "t"), line("warning", "attempt.timeout", id="a")),
    (Lost("a", "t", None, 0), line("warning", "attempt.interrupted", id="a")),
    (
        ServerLost("a", "t", True, "gone", 0.0, 0),
        line("warning", "attempt.server_lost", id="a", reached=True, message="gone"),
    ),
    (BackoffOver("a"), line("info", "job.retry", id="a")),
    (SetAside("a", "row", "odd", 0), line("error", "job.set_aside", id="a", code="row", message="odd")),
]


@pytest.mark.parametrize(("event", "told"), TOLD, ids=[type(event).__name__ for event, _ in TOLD])
def test_an_event_is_one_line(event: Event, told: dict[str, Any]) -> None:
    chronicle = Chronicle()
    with capture_logs() as lines:
        chronicle.tell(event)
        chronicle.tell(Published("a"))
    assert lines == [told]


def test_what_is_durable_is_told() -> None:
    chronicle, story = Chronicle(), Story()
    for job_id, verdict in (("good", OK), ("bad", BAD)):
        story.accept(job_id)
        story.run(job_id, verdict)
    good, bad = story.job("good"), story.job("bad")
    intake = make_intake("good", user="ann")
    with capture_logs() as lines:
        chronicle.accepted(Accept("good", intake, make_demand(), frozenset(), None, 0))
        chronicle.ended(good)
        chronicle.ended(bad)
    assert bad.cause is not None
    assert lines == [
        line("info", "job.accepted", id="good", solver="ccx", source=intake.spec.source.path, user="ann"),
        line("info", "job.succeeded", id="good", solver="ccx", cause=None, message=None),
        line("warning", "job.failed", id="bad", solver="ccx", cause=bad.cause, message=bad.message),
    ]


def test_of_servers_it_is_told_why_they_end() -> None:
    chronicle = Chronicle()
    with capture_logs() as lines:
        chronicle.tell_server(Retire("omc-1", "recycled by ann", 0.0))
        chronicle.tell_server(ServerWanted("omc-2", "omc", (), 0.0, 0))
    assert lines == [line("info", "server.retired", server="omc-1", why="recycled by ann")]
