"""Events of a real daemon: over connections that break, and lives that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import Daemon
from socket_kit import Connection, Http, file
from solvisor.feed import Changed, Hello, JobChange, Reset
from solvisor.model import TERMINAL
from solvisor_service.client import Client, NotRunning
from solvisor_service.told import Events
from waiting import wait_until

CONFIG = """
[daemon]
max_jobs = 8
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""


@pytest.fixture
def client(daemon: Daemon) -> Client:
    return Client(daemon.home)


def until_over(events: Events, job_id: str) -> list[str]:
    """The states of a job, as they are told until its end."""
    states: list[str] = []
    for told in events:
        if isinstance(told, JobChange) and told.id == job_id:
            states.append(told.state.value)
            if told.state in TERMINAL:
                return states
    raise AssertionError("the events ended")


def submit(http: Http, name: str = "a.sh", script: bytes = b"exit 0\n", query: str = "") -> str:
    return str(http.send(file(name, script), query=query).json["id"])


def test_events_begin_now_and_tell_all_of_a_job(http: Http, client: Client) -> None:
    submit(http)
    status = client.status()
    with client.events() as events:
        hello = events.next()
        assert isinstance(hello, Hello)
        assert (hello.host, hello.version) == (status.host, status.version)
        assert hello.cursor.rpartition("-")[0] == status.cursor.rpartition("-")[0]
        job_id = submit(http)
        assert until_over(events, job_id) == ["queued", "running", "collecting", "succeeded"]
        assert client.job(job_id).state == "succeeded"


def test_the_cursor_of_a_status_has_no_gap(http: Http, client: Client) -> None:
    cursor = client.status().cursor
    job_id = submit(http)
    http.get(f"/v1/jobs/{job_id}?wait=30")
    with client.events(cursor) as events:
        assert until_over(events, job_id) == ["queued", "running", "collecting", "succeeded"]


def test_filters(http: Http, client: Client) -> None:
    cursor = client.status().cursor
    batch = http.post("/v1/batches", {"name": "b"}).json["id"]
    mine, member = submit(http), submit(http, query=f"?batch={batch}")
    http.get(f"/v1/jobs/{mine}?wait=30")
    http.get(f"/v1/jobs/{member}?wait=30")
    for wanted, events in ((mine, client.events(cursor, job=mine)), (member, client.events(cursor, batch=batch))):
        with events:
            events.next()
            told = [events.next() for _ in range(4)]
            assert [(t.id, t.state) for t in told if isinstance(t, JobChange)] == [
                *((wanted, state) for state in ("queued", "running", "collecting", "succeeded"))
            ]
            assert events.next(time.monotonic() + 0.1) is None


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("?since=nonsense", 400, "usage"),
        ("?sinc=a-1", 400, "usage"),
        ("?job=nobody", 404, "no_such_job"),
        ("?batch=none", 404, "no_such_batch"),
    ],
)
def test_what_cannot_be_told_is_refused(http: Http, query: str, status: int, code: str) -> None:
    answer = http.get(f"/v1/events{query}")
    assert (answer.status, answer.code) == (status, code)


def test_the_last_id_of_a_browser_wins(http: Http, client: Client) -> None:
    before = client.status().cursor
    job_id = submit(http)
    http.get(f"/v1/jobs/{job_id}?wait=30")
    connection = Connection(http.path)
    connection.request("GET", "/v1/events?since=other-5", headers={"Last-Event-ID": before})
    answer = connection.getresponse()
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    data = b""
    while b"succeeded" not in data:
        data += answer.read1(1 << 16)
    connection.close()
    assert b"event: reset" not in data
    assert f"id: {before}\nevent: hello\n".encode() in data


def test_nothing_is_lost_or_told_twice_over_connections_that_break(http: Http, client: Client) -> None:
    """A few hundred jobs, told over dozens of connections: as many as the list of jobs has, each with its whole way."""
    count, per_thread = 300, 100
    with client.events() as events:
        events.next()

        def send_some(first: int) -> None:
            for number in range(first, first + per_thread):
                submit(http, f"m{number}.sh", b"exit %d\n" % (number % 2))

        senders = [threading.Thread(target=send_some, args=(first,)) for first in range(0, count, per_thread)]
        for sender in senders:
            sender.start()
        ways: dict[str, list[str]] = {}
        seen = over = 0
        while over < count:
            told = events.next(time.monotonic() + 60)
            assert told is not None, f"{over} of {count} are over"
            assert not isinstance(told, Reset | Hello)
            if isinstance(told, JobChange):
                ways.setdefault(told.id, []).append(told.state.value)
                over += told.state in TERMINAL
                seen += 1
                if seen % 37 == 0:
                    events.close()  # the connection breaks, wherever it is
        for sender in senders:
            sender.join()
    listed = {row.id: row.state.value for row in client.jobs(limit=count).jobs}
    assert {job_id: way[-1] for job_id, way in ways.items()} == listed
    assert {tuple(way[:-1]) for way in ways.values()} == {("queued", "running", "collecting")}


def test_what_changes_beside_jobs_is_told(http: Http, client: Client) -> None:
    with client.events() as events:
        events.next()
        assert http.post("/v1/pause", {"solver": "sh"}).status == 200
        try:
            told = [events.next(time.monotonic() + 10) for _ in range(1)]
            while not (isinstance(told[-1], Changed) and "pauses" in told[-1].what):
                told.append(events.next(time.monotonic() + 10))
                assert told[-1] is not None
        finally:
            http.post("/v1/resume", {"solver": "sh"})


def test_a_home_without_a_daemon_tells_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotRunning), Client(tmp_path).events() as events:
        events.next()


def test_after_the_death_of_the_daemon_a_cursor_is_reset(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start()
    http, client = Http(daemon.home), Client(daemon.home)
    with client.events() as events:
        first = submit(http)
        until_over(events, first)
        submit(http, "long.sh", b"sleep 60\n")
        assert events.next() is not None
        daemon.kill()
        with pytest.raises(NotRunning):
            list(events)
        daemon.start()
        told = events.next()
        assert isinstance(told, Reset), "its hello is not told twice"
        assert "another life" in told.why
        second = submit(http)
        assert until_over(events, second)[-1] == "succeeded"
        for row in client.jobs(state=["queued", "running"]).jobs:
            client.cancel(row.id)
        began = time.monotonic()
        ended: list[float] = []

        def stop() -> None:
            daemon.stop()
            ended.append(time.monotonic() - began)

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(NotRunning):
            list(events)
        stopper.join()
    wait_until(lambda: ended, "it stopped")
    assert ended[0] < 15, "it did not wait for who listens"
