"""Files of finished jobs over the socket: ranges, hashes, types, and what keeps them harmless in a browser."""

from __future__ import annotations

import hashlib

import pytest

from socket_kit import Answer, Http, file

SCRIPT = rb"""
for i in 0 1 2 3 4 5 6 7 8 9; do printf '0123456789abcdef'; done > data.bin
printf '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>' > plot.svg
printf '<script>alert(1)</script>' > page.html
printf '' > empty.txt
mkdir sub; printf 'deep' > 'sub/a b.csv'
ln -s /etc/passwd link.txt
exit 0
"""
WHOLE = b"0123456789abcdef" * 10


@pytest.fixture(scope="module")
def job(http: Http) -> str:
    job_id = str(http.send(file("files.sh", SCRIPT)).json["id"])
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
    return job_id


def get(http: Http, target: str, method: str = "GET", **headers: str) -> Answer:
    return http.ask(method, target, headers={name.replace("_", "-"): value for name, value in headers.items()})


def test_a_file_has_the_hash_of_the_manifest_and_is_given_once(http: Http, job: str) -> None:
    answer = get(http, f"/v1/jobs/{job}/output/data.bin")
    tag = f'"{hashlib.sha256(WHOLE).hexdigest()}"'
    assert (answer.status, answer.body, answer.headers["etag"]) == (200, WHOLE, tag)
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == "160"
    for tags in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = get(http, f"/v1/jobs/{job}/output/data.bin", If_None_Match=tags)
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert get(http, f"/v1/jobs/{job}/output/data.bin", If_None_Match='"other"').status == 200
    assert get(http, f"/v1/jobs/{job}/files/output/data.bin").headers["etag"] == tag
    assert "etag" in get(http, f"/v1/jobs/{job}/files/stdout.log").headers
    assert "etag" not in get(http, f"/v1/jobs/{job}/manifest").headers


@pytest.mark.parametrize(
    ("wanted", "part", "told"),
    [("bytes=16-19", b"0123", "bytes 16-19/160"), ("bytes=-4", b"cdef", "bytes 156-159/160")],
)
def test_a_range_is_given(http: Http, job: str, wanted: str, part: bytes, told: str) -> None:
    answer = get(http, f"/v1/jobs/{job}/output/data.bin", Range=wanted)
    assert (answer.status, answer.body, answer.headers["content-range"]) == (206, part, told)
    assert answer.headers["content-length"] == "4"
    head = get(http, f"/v1/jobs/{job}/output/data.bin", "HEAD", Range=wanted)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "160"), "a range is for GET alone"


def test_a_range_of_another_file_is_not_given(http: Http, job: str) -> None:
    tag = get(http, f"/v1/jobs/{job}/output/data.bin").headers["etag"]
    for condition, status in ((tag, 206), ('"other"', 200), ("Sat, 31 Jan 2026 12:00:00 GMT", 200)):
        answer = get(http, f"/v1/jobs/{job}/output/data.bin", Range="bytes=0-0", If_Range=condition)
        assert (answer.status, len(answer.body)) == (status, 1 if status == 206 else 160)


@pytest.mark.parametrize(("path", "wanted", "size"), [("data.bin", "bytes=160-", 160), ("empty.txt", "bytes=0-", 0)])
def test_a_range_behind_the_end_is_refused(http: Http, job: str, path: str, wanted: str, size: int) -> None:
    answer = get(http, f"/v1/jobs/{job}/output/{path}", Range=wanted)
    assert (answer.status, answer.code, answer.headers["content-range"]) == (416, "range", f"bytes */{size}")
    assert get(http, f"/v1/jobs/{job}/output/{path}").status == 200


def test_whoever_asks_for_the_head_gets_that_alone(http: Http, job: str) -> None:
    whole = get(http, f"/v1/jobs/{job}/output/data.bin")
    head = get(http, f"/v1/jobs/{job}/output/data.bin", "HEAD")
    assert (head.status, head.body) == (200, b"")
    left_out = {"date"}
    assert {k: v for k, v in head.headers.items() if k not in left_out} == {
        k: v for k, v in whole.headers.items() if k not in left_out
    }


@pytest.mark.parametrize(
    ("path", "kind", "shown"),
    [
        ("plot.svg", "image/svg+xml", "inline"),
        ("page.html", "text/html; charset=utf-8", "attachment"),
        ("sub/a%20b.csv", "text/csv; charset=utf-8", "inline"),
        ("data.bin", "application/octet-stream", "attachment"),
    ],
)
def test_fault_76_what_solvers_write_runs_in_no_browser(http: Http, job: str, path: str, kind: str, shown: str) -> None:
    for query, how in (("", "attachment"), ("?inline=true", shown)):
        answer = get(http, f"/v1/jobs/{job}/output/{path}{query}")
        assert (answer.status, answer.headers["content-type"]) == (200, kind)
        assert answer.headers["content-disposition"].startswith(f"{how}; ")
        assert answer.headers["x-content-type-options"] == "nosniff"
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("sandbox; default-src 'none';")
        assert "script" not in policy


@pytest.mark.parametrize(
    "path",
    [
        "link.txt",
        "../manifest.json",
        "..%2fmanifest.json",
        "%2e%2e/manifest.json",
        "sub",
        "",
        "no.txt",
        "a\\x00",
        "//x",
    ],
)
def test_a_path_leads_nowhere_else(http: Http, job: str, path: str) -> None:
    answer = get(http, f"/v1/jobs/{job}/output/{path}")
    assert (answer.status, answer.code) in [(404, "no_such_file"), (404, "no_such_route")]


def test_a_job_that_is_not_finished_has_no_files(http: Http) -> None:
    job_id = http.send(file("long.sh", b"sleep 60\n")).json["id"]
    assert get(http, f"/v1/jobs/{job_id}/output/data.bin").code == "not_finished"
    http.post(f"/v1/jobs/{job_id}/cancel")
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "cancelled"
