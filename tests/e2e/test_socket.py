"""Every route of the status socket, asked of a real daemon over raw HTTP: what is good, and what is refused."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest

from daemon import Daemon
from socket_kit import Http, connected, file, job
from solvisor.manifest import Manifest
from solvisor.views import BatchView, Explanation, JobPage, JobView, Licenses, Solvers, Status, Submitted
from waiting import wait_until

LEAVES = b"""
echo to stdout; echo to stderr >&2
mkdir -p sub; echo 42 > 'sub/a b.txt'; ln -s /etc/passwd link; ln -s / slash; mkfifo pipe; : > empty
"""


def submit(http: Http, script: bytes = b"exit 0\n", name: str = "a.sh", **wishes: Any) -> str:
    answer = http.send(file(name, script), job(wishes))
    assert answer.status == 201, answer
    return str(answer.json["id"])


def run(http: Http, script: bytes = b"exit 0\n", name: str = "a.sh", **wishes: Any) -> str:
    job_id = submit(http, script, name, **wishes)
    answer = http.get(f"/v1/jobs/{job_id}?wait=30")
    assert answer.json["state"] in ("succeeded", "failed"), answer
    return job_id


@pytest.fixture(scope="module")
def left(http: Http) -> str:
    """A job that left files of all kinds."""
    return run(http, LEAVES, "leaves.sh")


# --- questions ------------------------------------------------------------------------------------------------------


def test_status_has_the_shape_that_is_documented(http: Http, daemon: Daemon) -> None:
    answer = http.get("/v1/status")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    status = msgspec.json.decode(answer.body, type=Status)
    assert (status.pid, status.home, status.health) == (daemon.running.pid, str(daemon.home), "healthy")
    assert status.solvers == ("sh", "twice")


def test_a_job_is_told_by_list_view_explanation_and_manifest(http: Http, left: str) -> None:
    page = msgspec.json.decode(http.get("/v1/jobs?limit=1000&state=succeeded&solver=sh").body, type=JobPage)
    assert left in [row.id for row in page.jobs]
    view = msgspec.json.decode(http.get(f"/v1/jobs/{left[:-2]}").body, type=JobView)
    assert (view.id, view.state, view.folder, view.params) == (left, "succeeded", f"done/{left}", {})
    found = msgspec.json.decode(http.get(f"/v1/jobs/{left}/explain").body, type=Explanation)
    assert found.headline.startswith("SUCCEEDED in ")
    manifest = msgspec.json.decode(http.get(f"/v1/jobs/{left}/manifest").body, type=Manifest)
    assert (manifest.id, manifest.source.via, manifest.source.path) == (left, "socket", "leaves.sh")


def test_solvers_and_licenses_are_told(http: Http) -> None:
    solvers = msgspec.json.decode(http.get("/v1/solvers").body, type=Solvers).solvers
    assert [solver.name for solver in solvers] == ["sh", "twice"]
    assert (solvers[0].command, solvers[0].params["load"].default) == (("/bin/sh", "{input}"), 1.0)
    assert msgspec.json.decode(http.get("/v1/licenses").body, type=Licenses) == Licenses(())


def test_pages_follow_their_cursor(http: Http) -> None:
    ids = [run(http, project="paged") for _ in range(3)]
    first = http.get("/v1/jobs?project=paged&limit=2").json
    second = http.get(f"/v1/jobs?project=paged&limit=2&cursor={first['next']}").json
    assert [row["id"] for row in first["jobs"] + second["jobs"]] == ids[::-1]
    assert second["next"] is None


def test_pages_are_of_what_is_searched_for(http: Http) -> None:
    bad = run(http, b"exit 3\n", "Bad_1.sh", project="searched")
    good = run(http, b"exit 0\n", "good.sh", project="searched")
    submitted = http.get(f"/v1/jobs/{good}").json["submitted"]

    def found(query: str) -> list[str]:
        return [row["id"] for row in http.get(f"/v1/jobs?project=searched&{query}").json["jobs"]]

    assert found("cause=exit&cause=oom") == found("q=bAD_") == found(f"until={submitted}") == [bad]
    assert found(f"since={submitted}") == found("q=ood") == [good]
    assert found(f"since={submitted.replace('Z', '')}") == found(f"since={submitted.replace('Z', '+00:00')}") == [good]
    assert found("cause=oom") == found("q=%25") == []


def test_files_are_given_as_they_are(http: Http, daemon: Daemon, left: str) -> None:
    answer = http.get(f"/v1/jobs/{left}/files/output/sub/a%20b.txt")
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"42\n", "text/plain; charset=utf-8")
    assert http.get(f"/v1/jobs/{left}/files/output/empty").body == b""
    assert http.get(f"/v1/jobs/{left}/files/input/leaves.sh").body == LEAVES
    head = http.ask("HEAD", f"/v1/jobs/{left}/files/output/sub/a%20b.txt")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "3")
    big = daemon.home / "done" / left / "output" / "big"
    big.write_bytes(os.urandom(3_000_001))
    assert http.get(f"/v1/jobs/{left}/files/output/big").body == big.read_bytes()


@pytest.mark.parametrize(
    "path",
    [
        *("../../solvisor.toml", "..%2f..%2fsolvisor.toml", "%2e%2e/%2e%2e/solvisor.toml", "/etc/passwd"),
        *("%2fetc%2fpasswd", "output/../../../state/home-id", "output/%5Cx2e%5Cx2e/stdout.log", "output//empty"),
        *("output/link", "output/slash/etc/passwd", "output/pipe", "output", "output/", "output/none"),
        *("", ".", "none", "output/%00", "%ff", "n" * 9999),
    ],
)
def test_files_outside_and_what_is_no_file_are_not_there(http: Http, left: str, path: str) -> None:
    answer = http.get(f"/v1/jobs/{left}/files/{path}")
    assert (answer.status, answer.code) == (404, "no_such_file")


def test_asking_for_folders_and_links_costs_no_descriptors(http: Http, daemon: Daemon, left: str) -> None:
    fds = Path(f"/proc/{daemon.running.pid}/fd")

    def count() -> int:
        return len(os.listdir(fds))

    before = count()
    for path in ["output", "output/link", "output/pipe", "output/sub"] * 10:
        http.get(f"/v1/jobs/{left}/files/{path}")
    wait_until(lambda: count() <= before + 3, f"no more than {before} descriptors")


def test_logs_come_in_pieces_and_by_try(http: Http) -> None:
    job_id = run(http, b"ls ../attempt-1 2>&1 && exit 0\nprintf 0123456789; echo first >&2; exit 1\n", "b.twice")
    first = http.get(f"/v1/jobs/{job_id}/logs/stderr?try=1")
    assert (first.body, first.headers["content-type"]) == (b"first\n", "text/plain; charset=utf-8")
    assert b"stdout.log" in http.get(f"/v1/jobs/{job_id}/logs/stdout?try=2").body
    assert http.get(f"/v1/jobs/{job_id}/logs/stdout?try=2").body == http.get(f"/v1/jobs/{job_id}/logs/stdout").body
    base = f"/v1/jobs/{job_id}/logs/stdout?try=1"
    tail = http.get(f"{base}&tail=4")
    assert tail.body.endswith(b"6789")
    end = int(tail.headers["solvisor-offset"])
    assert http.get(f"{base}&offset={end - 4}").body == b"6789"
    assert (http.get(f"{base}&offset={end}").body, http.get(f"{base}&offset=999999").body) == (b"", b"")
    assert http.get(f"{base}&try=3").code == "no_such_file"
    assert http.get(f"/v1/jobs/{job_id}/logs/stdout?try=0").code == "no_such_file"
    assert http.get(f"/v1/jobs/{job_id}/logs/solvisor").code == "no_such_file"


def test_the_log_of_a_running_job_grows(http: Http, daemon: Daemon) -> None:
    gate = daemon.home / "gate-log"
    job_id = submit(http, f"echo one; until [ -e {gate} ]; do sleep 0.05; done; echo two\n".encode())
    wait_until(lambda: http.get(f"/v1/jobs/{job_id}/logs/stdout").body == b"one\n", "the first line")
    assert http.get(f"/v1/jobs/{job_id}/manifest").code == "not_finished"
    assert http.get(f"/v1/jobs/{job_id}/files/stdout.log").code == "not_finished"
    gate.touch()
    http.get(f"/v1/jobs/{job_id}?wait=30")
    assert http.get(f"/v1/jobs/{job_id}/logs/stdout?offset=4").body == b"two\n"


@pytest.mark.parametrize(
    ("method", "target", "status", "code"),
    [
        ("GET", "/v2/status", 404, "no_such_route"),
        ("GET", "/v1/status/", 404, "no_such_route"),
        ("GET", "/v1/jobs/a/b/c", 404, "no_such_route"),
        ("DELETE", "/v1/jobs", 405, "method"),
        ("POST", "/v1/status", 405, "method"),
        ("GET", "/v1/pause", 405, "method"),
        ("GET", "/v1/jobs/nobody", 404, "no_such_job"),
        ("GET", "/v1/jobs/%2e%2e", 404, "no_such_job"),
        ("GET", "/v1/jobs/%00", 404, "no_such_job"),
        ("GET", "/v1/jobs/%F0%9F", 404, "no_such_job"),
        ("POST", "/v1/jobs/nobody/cancel", 404, "no_such_job"),
        ("POST", "/v1/jobs/nobody/retry", 404, "no_such_job"),
        ("GET", "/v1/batches/nobody", 404, "no_such_batch"),
        ("POST", "/v1/batches/nobody/close", 404, "no_such_batch"),
        ("POST", "/v1/batches/nobody/cancel", 404, "no_such_batch"),
        ("GET", "/v1/servers/sh", 404, "no_such_route"),
        ("GET", "/v1/servers/sh/scale", 405, "method"),
        ("POST", "/v1/servers", 405, "method"),
        ("POST", "/v1/servers/nobody/recycle", 404, "no_such_server"),
        ("POST", "/v1/servers/sh/restart", 404, "no_such_server"),
        ("GET", "/v1/jobs?stat=failed", 400, "usage"),
        ("GET", "/v1/jobs?state=lost", 400, "usage"),
        *(("GET", f"/v1/jobs?limit={limit}", 400, "usage") for limit in (-1, 0, 1001)),
        ("GET", "/v1/jobs?since=yesterday", 400, "usage"),
        ("GET", "/v1/jobs?until=2026-11-31T08:00:00Z", 400, "usage"),
        ("GET", "/v1/jobs?cause=bad", 400, "usage"),
        ("GET", "/v1/jobs?cursor=x", 400, "usage"),
        ("GET", "/v1/jobs?limit=9999999999999999999", 400, "usage"),
        ("GET", "/v1/jobs/last?wait=-1", 400, "usage"),
        ("GET", "/v1/jobs/last?wait=inf", 400, "usage"),
        ("GET", "/v1/jobs/last/logs/stdout?offset=1.5", 400, "usage"),
        ("POST", "/v1/jobs?bach=x", 400, "usage"),
    ],
)
def test_what_cannot_be_asked_is_refused_with_a_code(
    http: Http, left: str, method: str, target: str, status: int, code: str
) -> None:
    answer = http.ask(method, target)
    assert (answer.status, answer.code) == (status, code)


def test_a_refused_method_names_all_that_are_not(http: Http) -> None:
    assert set(http.ask("DELETE", "/v1/jobs").headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}


def test_an_ambiguous_name_is_answered_with_what_it_could_mean(http: Http) -> None:
    ids = [submit(http, name="same.sh") for _ in range(2)]
    answer = http.get("/v1/jobs/same-")
    assert (answer.status, answer.code) == (409, "ambiguous_job")
    assert answer.json["candidates"] == ids[::-1]


# --- orders ---------------------------------------------------------------------------------------------------------


def test_cancel_and_retry(http: Http) -> None:
    job_id = submit(http, b"sleep 600\n")
    assert msgspec.json.decode(http.post(f"/v1/jobs/{job_id}/cancel").body, type=JobView).id == job_id
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "cancelled"
    assert (http.post(f"/v1/jobs/{job_id}/cancel").status, http.post(f"/v1/jobs/{job_id}/cancel").code) == (
        *(409,),
        "finished",
    )
    answer = http.post(f"/v1/jobs/{job_id}/retry")
    again = msgspec.json.decode(answer.body, type=Submitted)
    assert (answer.status, again.existing) == (201, False)
    assert http.post(f"/v1/jobs/{again.id}/retry").code == "not_finished"
    http.post(f"/v1/jobs/{again.id}/cancel")
    assert http.get(f"/v1/jobs/{again.id}?wait=30").json["retry_of"] == job_id


def test_pause_and_resume(http: Http) -> None:
    paused = msgspec.json.decode(http.post("/v1/pause", {"solver": "twice", "note": "moved"}).body, type=Status)
    assert [(pause.solver, pause.note) for pause in paused.paused] == [("twice", "moved")]
    assert http.post("/v1/pause").json["paused"][0]["solver"] is None
    assert http.post("/v1/resume", {}).json["paused"][0]["solver"] == "twice"
    assert http.post("/v1/resume", {"solver": "twice"}).json["paused"] == []
    assert (http.post("/v1/resume").status, http.post("/v1/resume").code) == (409, "not_paused")
    assert http.post("/v1/pause", {"solver": "none"}).code == "usage"


def test_where_no_solver_has_warm_servers_there_are_none(http: Http) -> None:
    assert http.get("/v1/servers").json == {"pools": [], "note": None}
    assert http.get("/v1/status").json["servers"] == []


def test_a_batch_from_beginning_to_end(http: Http) -> None:
    answer = http.post("/v1/batches", {"name": "sweep", "on_error": "fail", "max_jobs": 1})
    batch = msgspec.json.decode(answer.body, type=BatchView)
    assert (answer.status, batch.name, batch.over) == (201, "sweep", False)
    sent = [http.send(file(f"{n}.sh", b"exit 0\n"), query=f"?batch={batch.id}").status for n in range(2)]
    assert sent == [201, 201]
    closed = msgspec.json.decode(http.post(f"/v1/batches/{batch.id}/close").body, type=BatchView)
    assert closed.closed
    wait_until(lambda: http.get(f"/v1/batches/{batch.id}?wait=5").json["over"], "the end of the batch")
    assert http.get(f"/v1/batches/{batch.id}").json["succeeded"] == 2
    assert http.send(file("a.sh"), query=f"?batch={batch.id}").code == "batch_closed"
    assert http.post(f"/v1/batches/{batch.id}/cancel", {"running": True}).json["stopped"] is None


@pytest.mark.parametrize(
    ("target", "body", "code"),
    [
        ("/v1/pause", b"{", "usage"),
        ("/v1/pause", b"[]", "usage"),
        ("/v1/pause", b'{"sover": "sh"}', "usage"),
        ("/v1/pause", b'{"solver": 1}', "usage"),
        ("/v1/pause", b'{"note": "\\ud800"}', "usage"),
        ("/v1/pause", json.dumps({"note": "n" * 501}).encode(), "usage"),
        ("/v1/pause", b" " * 70_000, "too_large"),
        ("/v1/pause", b"\xff", "usage"),
        ("/v1/servers/sh/scale", b'{"count": 1}', "usage"),
        ("/v1/servers/sh/scale", b"", "usage"),
        ("/v1/servers/sh/scale", b'{"count": "auto"}', "usage"),
        ("/v1/servers/sh/scale", b'{"count": 1.5}', "usage"),
        ("/v1/batches", b'{"max_jobs": 0}', "usage"),
        ("/v1/batches", b'{"max_jobs": 1' + b"0" * 40 + b"}", "usage"),
        ("/v1/batches", b'{"on_error": "panic"}', "usage"),
        ("/v1/batches", b'{"name": "\\ud800"}', "usage"),
        ("/v1/batches", b"[" * 60_000, "usage"),
    ],
)
def test_a_bad_body_is_refused_and_harms_nobody(http: Http, target: str, body: bytes, code: str) -> None:
    answer = http.ask("POST", target, body)
    assert (answer.status, answer.code) == (413 if code == "too_large" else 400, code)
    assert http.get("/v1/status").status == 200


# --- bare HTTP ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"garbage\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\n\r\n",
    ],
    ids=["no HTTP", "no host"],
)
def test_what_is_no_http_is_answered_with_400_and_closed(http: Http, data: bytes) -> None:
    assert http.raw(data, end=False).startswith(b"HTTP/1.1 400 ")
    assert http.get("/v1/status").status == 200


def test_one_connection_may_ask_often(http: Http) -> None:
    question = b"GET /v1/jobs/nobody HTTP/1.1\r\nHost: x\r\n\r\n"
    last = b"GET /v1/status HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answers = http.raw(question * 3 + last, end=False)
    assert (answers.count(b"HTTP/1.1 404 "), answers.count(b"HTTP/1.1 200 ")) == (3, 1)


def test_a_connection_too_many_is_answered_and_the_others_live_on(http: Http) -> None:
    with contextlib.ExitStack() as waiting:
        for _ in range(140):
            sock = waiting.enter_context(connected(http.path))
            with contextlib.suppress(BrokenPipeError):  # the last of them are too many already
                sock.sendall(b"GET /v1/status HTTP/1.1\r\nHost: x\r\n")  # its headers never end
        answer = http.get("/v1/status")
        assert (answer.status, answer.code) == (503, "unavailable")
    wait_until(lambda: http.get("/v1/status").status == 200, "room again")


def test_a_client_that_stops_listening_holds_nobody_up(http: Http, daemon: Daemon, left: str) -> None:
    (daemon.home / "done" / left / "output" / "huge").write_bytes(b"x" * (20 << 20))
    with connected(http.path) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.sendall(f"GET /v1/jobs/{left}/files/output/huge HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert sock.recv(1)
        assert http.get("/v1/status").status == 200
