"""Requests that nobody thought of, made from the API's description: no answer is a defect, and each is as described."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from daemon import Daemon
from socket_kit import Http, TcpHttp, file, job, own_address
from solvisor_service.api.openapi import describe
from solvisor_service.api.routes import ORDERS, QUESTIONS
from waiting import wait_until

ADDRESS = own_address()
CONFIG = f"""
[daemon]
max_jobs = 2
stop_timeout = "5s"
[api]
listen = "{ADDRESS}"
[licenses]
seat = 2
[solver.cat]
accept = ["*.txt"]
command = ["/bin/cat", "{{input}}"]
licenses = {{ seat = 1 }}
[solver.cat.params]
load = {{ type = "float", default = 1.0 }}
[solver.fails]
accept = ["*.bad"]
command = ["/bin/false", "{{input}}"]
[solver.held]
accept = ["*.held"]
command = ["/bin/cat", "{{input}}"]
[solver.post]
kind = "python"
call = "json:loads"
"""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 20
"""Requests of each operation; they are the same in every run."""

schema = schemathesis.openapi.from_dict(json.loads(json.dumps(describe([*QUESTIONS, *ORDERS]))))


@pytest.fixture(scope="module")
def known(daemon: Daemon) -> dict[str, list[str]]:
    """Jobs in many states, a batch, servers: what a request may name that is there."""
    http = Http(daemon.home)
    http.post("/v1/pause", {"solver": "held"})
    batch = http.post("/v1/batches", {"name": "sweep"}).json["id"]
    good = http.send(file("a.txt", b"1"), file("sub/b.inc", b"2"), job({"project": "riser"})).json["id"]
    bad = http.send(file("b.bad", b"1"), query=f"?batch={batch}").json["id"]
    held = [http.send(file("c.held", b"1")).json["id"] for _ in range(6)]
    for job_id in (good, bad):
        http.get(f"/v1/jobs/{job_id}?wait=30")
    http.post(f"/v1/jobs/{held[1]}/cancel")
    http.get(f"/v1/jobs/{held[1]}?wait=30")
    return {
        "job": [good, bad, *held, "last", good[:4], "b-"],
        "batch": [batch],
        "server": ["post", "cat"],
        "path": ["input/a.txt", "a.txt", "stdout.log", "../manifest.json"],
        "solver": ["cat", "held"],
    }


@pytest.fixture(scope="module")
def token(daemon: Daemon) -> str:
    http = Http(daemon.home)
    wait_until(lambda: http.get("/v1/status").json["page"], "it listens on TCP")
    return TcpHttp(daemon.home, ADDRESS).token


def made_known(case: Case[Any], known: dict[str, list[str]]) -> None:
    """Have most requests name what is there, and none wait for long."""
    for parts in (case.path_parameters, case.query):
        for name in parts:
            if name in known:
                options = known[name]
                chosen = zlib.crc32(repr((name, parts[name], case.query, case.body)).encode()) % (len(options) + 1)
                parts[name] = options[chosen] if chosen < len(options) else parts[name]
    case.query.pop("follow", None)  # of a job that waits it has no end
    if "wait" in case.query:
        case.query["wait"] = 0.01


@pytest.mark.slow
@schema.exclude(path="/v1/events").parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_meets_a_defect_and_every_answer_is_as_described(
    case: Case[Any], known: dict[str, list[str]], token: str
) -> None:
    made_known(case, known)
    answer = case.call(base_url=f"http://{ADDRESS}", headers={"Authorization": f"Bearer {token}"}, timeout=30)
    if answer.status_code not in (503, 507):
        case.validate_response(answer, checks=CHECKS)
