"""Submissions over the status socket to a real daemon: whole ones, broken ones, large ones, and those of curl."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from socket_kit import BOUNDARY, MULTIPART, Http, connected, file, job, multipart
from solvisor.submission import SHORT_BYTES
from waiting import wait_until


def in_work(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in (daemon.home / "work").iterdir())


def test_a_submission_of_several_files_keeps_their_names(http: Http, daemon: Daemon) -> None:
    script = b'cat mesh/part.inc; printf "%s\\n" *\n'
    answer = http.send(
        file('käse "1".sh', script, filename='käse \\"1\\".sh'.encode()), file("mesh/part.inc", b"part\n")
    )
    assert answer.status == 201, answer
    job_id = answer.json["id"]
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    assert http.get(f"/v1/jobs/{job_id}/logs/stdout").body == 'part\nkäse "1".sh\nmesh\n'.encode()


def test_wishes_may_be_json_a_job_file_or_a_file_of_that_name(http: Http) -> None:
    script = file("a.sh", b"exit 0\n")
    text = b'name = "asked"\nparams = { load = 2.5 }\n'
    ways = [
        http.send(script, job({"name": "asked", "params": {"load": 2.5}})),
        http.send(job(text), script),
        http.send(script, file("any name", text, field="job")),
        http.send(script, file("a.job.toml", text + b'inputs = ["a.sh"]\n')),
    ]
    for answer in ways:
        assert answer.status == 201, answer
        view = http.get(f"/v1/jobs/{answer.json['id']}").json
        assert (view["name"], view["params"], view["primary"]) == ("asked", {"load": 2.5}, "a.sh")


def test_the_same_key_again_is_the_same_job(http: Http) -> None:
    first = http.send(file("a.sh", b"exit 0\n"), key="schlüssel 1".encode().decode("latin-1"))
    again = http.send(file("a.sh", b"exit 0\n"), key="schlüssel 1".encode().decode("latin-1"))
    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json | {"existing": True}
    assert http.get(f"/v1/jobs/{first.json['id']}").json["key"] == "schlüssel 1"
    other = http.send(file("a.sh", b"exit 1\n"), key="schlüssel 1".encode().decode("latin-1"))
    assert (other.status, other.code) == (409, "key")
    for bad in ("", "k" * 201, "\xff\xfe"):
        assert http.send(file("a.sh"), key=bad).code == "usage"


CUT = multipart(file("a.sh", b"exit 0\n" * 100))[:-30]


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (multipart(), MULTIPART, 400, "usage"),
        (multipart(job({})), MULTIPART, 400, "usage"),
        (b"", MULTIPART, 400, "usage"),
        (b"garbage", MULTIPART, 400, "usage"),
        (CUT, MULTIPART, 400, "usage"),
        (multipart(file("a.sh"))[4:], MULTIPART, 400, "usage"),
        (multipart(file("a.sh")), {}, 400, "usage"),
        (multipart(file("a.sh")), {"Content-Type": "application/json"}, 400, "usage"),
        (multipart(file("a.sh")), {"Content-Type": "multipart/form-data"}, 400, "usage"),
        (multipart(file("a.sh")), {"Content-Type": f"multipart/form-data; boundary={'b' * 300}"}, 400, "usage"),
        (multipart(b'Content-Disposition: form-data; name="x"\r\n\r\n1'), MULTIPART, 400, "usage"),
        (multipart(b"X-Long: " + b"x" * 9000 + b"\r\n" + file("a.sh")), MULTIPART, 400, "usage"),
        (multipart(file("a.sh"), job({}), job({})), MULTIPART, 400, "usage"),
        (multipart(file("a.sh"), job(b"{")), MULTIPART, 400, "usage"),
        (multipart(file("a.sh"), job(b'{"cpus": NaN}')), MULTIPART, 400, "usage"),
        (multipart(file("a.sh"), job(b'{"a":' * 9000)), MULTIPART, 400, "usage"),
        (multipart(file("a.sh"), job(b'{"a":' * 400 + b"1" + b"}" * 400)), MULTIPART, 422, "job_file_syntax"),
        (multipart(file("a.sh"), job(b'{"name": "\\ud800"}')), MULTIPART, 400, "usage"),
        (multipart(file("a.sh"), job(b"x" * 70_000)), MULTIPART, 422, "job_file_too_large"),
        (multipart(file("a.sh"), job({"nmae": "x"})), MULTIPART, 422, "job_file_key"),
        (multipart(file("a.sh"), job({"params": {"load": "much"}})), MULTIPART, 422, "param"),
        (multipart(file("a.sh"), file("job.toml"), job({})), MULTIPART, 400, "usage"),
        (multipart(file("a.unknown")), MULTIPART, 422, "no_solver"),
        (multipart(file("../a.sh")), MULTIPART, 422, "name"),
        (multipart(file("")), MULTIPART, 422, "name"),
        (multipart(file("x", filename=b"\xff.sh")), MULTIPART, 422, "name"),
        (multipart(file("a.sh"), file("a.sh")), MULTIPART, 422, "name"),
        (multipart(file("a"), file("a/b.sh")), MULTIPART, 422, "name"),
        (multipart(*[file(f"{n}.sh") for n in range(10_001)]), MULTIPART, 422, "too_many_files"),
    ],
)  # fmt: skip
def test_a_submission_that_is_refused_leaves_nothing(
    http: Http, daemon: Daemon, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    wait_until(lambda: not in_work(daemon), "nothing is under way")
    answer = http.ask("POST", "/v1/jobs", body, headers)
    assert (answer.status, answer.code) == (status, code), answer
    assert in_work(daemon) == []


def test_whoever_goes_away_in_the_middle_leaves_nothing(http: Http, daemon: Daemon) -> None:
    wait_until(lambda: not in_work(daemon), "nothing is under way")
    head = f"POST /v1/jobs HTTP/1.1\r\nHost: x\r\nContent-Type: {MULTIPART['Content-Type']}\r\n"
    begun = f"--{BOUNDARY}\r\n".encode() + file("a.sh", b"x" * 2 * SHORT_BYTES)
    with connected(http.path) as sock:
        sock.sendall(f"{head}Content-Length: {len(begun) + 99}\r\n\r\n".encode() + begun)
        wait_until(lambda: in_work(daemon), "the upload has begun")
    wait_until(lambda: not in_work(daemon), "the upload is cleared away")


def test_a_refusal_reaches_a_client_that_still_sends_a_lot(http: Http, daemon: Daemon) -> None:
    """Nothing of it is kept, neither on the disk nor in memory."""

    def resident() -> int:
        return int(Path(f"/proc/{daemon.running.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    begin = f"--{BOUNDARY}\r\n".encode()

    def endless() -> Iterator[bytes]:
        yield begin + file("../a.sh")
        for _ in range(1000):
            yield b"x" * 100_000

    answer = http.ask("POST", "/v1/jobs", endless(), MULTIPART)
    assert (answer.status, answer.code) == (422, "name")
    assert resident() - before < 30 << 20


def test_a_large_file_comes_whole_and_is_never_held_in_memory(http: Http, daemon: Daemon) -> None:
    block = os.urandom(1 << 20)
    count = 100

    def peak() -> int:
        text = Path(f"/proc/{daemon.running.pid}/status").read_text()
        return int(text.split("VmHWM:")[1].split()[0]) << 10

    def large() -> Iterator[bytes]:
        yield f"--{BOUNDARY}\r\n".encode() + file("a.sh", b"exit 0\n") + f"\r\n--{BOUNDARY}\r\n".encode() + file("big")
        yield from [block] * count
        yield f"\r\n--{BOUNDARY}--\r\n".encode()

    before = peak()
    answer = http.ask("POST", "/v1/jobs", large(), MULTIPART)
    assert answer.status == 201, answer
    assert peak() - before < 30 << 20
    job_id = answer.json["id"]
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    assert (daemon.home / "done" / job_id / "input" / "big").read_bytes() == block * count


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_one_liners_of_the_readme(http: Http, tmp_path: Path) -> None:
    (tmp_path / "beam.sh").write_text("echo from curl\n")

    def curl(*args: str) -> Any:
        command = ["curl", "-sS", "--unix-socket", str(http.path), *args]
        done = subprocess.run(command, capture_output=True, timeout=60, cwd=tmp_path, check=True)
        return done.stdout

    sent = json.loads(curl("-F", "file=@beam.sh", "-F", 'job={"priority": 5}', "http://localhost/v1/jobs"))
    job_id = sent["id"]
    assert json.loads(curl(f"http://localhost/v1/jobs/{job_id}?wait=30"))["priority"] == 5
    assert curl(f"http://localhost/v1/jobs/{job_id}/logs/stdout") == b"from curl\n"
    assert json.loads(curl("http://localhost/v1/jobs?state=succeeded&limit=1"))["jobs"]
    assert json.loads(curl("-X", "POST", "http://localhost/v1/pause", "-d", '{"note": "lunch"}'))["paused"]
    assert json.loads(curl("-X", "POST", "http://localhost/v1/resume"))["paused"] == []
    text = curl("-F", "file=@beam.sh;filename=beam.unknown", "http://localhost/v1/jobs")
    assert json.loads(text)["code"] == "no_solver"
