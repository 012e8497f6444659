"""What a page of somebody else's, a name that points here, and odd requests can do to the TCP listener: nothing."""

from __future__ import annotations

import hmac
import random
import subprocess

import pytest

from daemon import Daemon
from socket_kit import BOUNDARY, Http, TcpHttp, file, multipart

EVIL = {"Origin": "http://evil.example"}


def status(raw: bytes) -> int:
    assert raw.count(b"HTTP/1.1 ") == 1, raw
    assert b"access-control" not in raw.lower()
    return int(raw.split()[1])


# --- 77: a name of an attacker's that leads here --------------------------------------------------------------------


@pytest.mark.parametrize("target", ["/", "/v1/status", "/v1/jobs", "/assets/x.js", "/nothing"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "localhost.evil.example", "", "127.0.0.1:1"])
def test_fault_77_a_name_that_leads_here_is_no_name_of_ours(tcp: TcpHttp, target: str, host: str) -> None:
    """Even with the token: who came by such a name is a page of the attacker's, or was led astray by one."""
    for method in ("GET", "POST", "OPTIONS"):
        answer = tcp.ask(method, target, headers={"Host": host})
        assert (answer.status, answer.code) == (403, "host")
    assert tcp.get("/v1/status").status == 200


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (b"GET /v1/status HTTP/1.1\r\n", 400),
        (b"GET /v1/status HTTP/1.0\r\n", 403),
        (b"GET /v1/status HTTP/1.1\r\nHost: OWN\r\nHost: OWN\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nHost: OWN\r\nHost: evil\r\n", 400),
        (b"GET http://evil/v1/status HTTP/1.1\r\nHost: OWN\r\n", 400),
        (b"GET http://OWN/v1/status HTTP/1.1\r\nHost: OWN\r\n", 400),
        (b"GET evil HTTP/1.1\r\nHost: OWN\r\n", 400),
        (b"CONNECT evil:443 HTTP/1.1\r\nHost: OWN\r\n", 400),
        (b"OPTIONS * HTTP/1.1\r\nHost: OWN\r\n", 400),
        (b"GET /v1/status HTTP/1.1\r\nHost: OWN\r\nX-Forwarded-Host: evil\r\nForwarded: host=evil\r\n", 200),
        (b"GET /v1/status HTTP/1.1\r\nHost: OWN \r\n", 200),
        (b"GET /v1/status HTTP/1.1\r\nHost: OWN,OWN\r\n", 403),
        (b"GET /v1/status HTTP/1.1\r\nHost: OWN\r\n evil\r\n", 403),
    ],
    ids=lambda value: value.decode().partition("\r\n")[2].replace("\r\n", " ") if isinstance(value, bytes) else None,
)
def test_fault_77_a_request_has_one_host_and_a_path(tcp: TcpHttp, head: bytes, wanted: int) -> None:
    head = head.replace(b"OWN", tcp.address.encode())
    auth = f"Authorization: Bearer {tcp.token}\r\nConnection: close\r\n\r\n".encode()
    assert status(tcp.raw(head + auth)) == wanted


# --- 78: requests that another page makes a browser send ------------------------------------------------------------

FORMS = {
    "form": ("application/x-www-form-urlencoded", b"solver=sh"),
    "text": ("text/plain", b'{"solver": "sh", "note": "="}'),
    "file": (f"multipart/form-data; boundary={BOUNDARY}", multipart(file("evil.sh", b"exit 0\n"))),
}


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("target", ["/v1/pause", "/v1/jobs", "/v1/jobs/last/cancel", "/v1/passes"])
def test_fault_78_a_form_of_another_page_does_nothing(
    daemon: Daemon, tcp: TcpHttp, http: Http, kind: str, target: str
) -> None:
    """A browser sends these unasked; it sends their origin, no token, and no header that a page could not set."""
    stranger = TcpHttp(daemon.home, tcp.address, "")
    before = http.get("/v1/jobs?limit=1").json["jobs"]
    content, body = FORMS[kind]
    for origin in ("http://evil.example", "null", f"http://{tcp.host}", f"https://{tcp.address}"):
        answer = stranger.ask("POST", target, body, {"Content-Type": content, "Origin": origin})
        assert (answer.status, answer.code) == (403, "origin")
    answer = stranger.ask("POST", target, body, {"Content-Type": content})  # an old one sends no origin
    assert (answer.status, answer.code) in [(401, "token"), (415, "content_type")]
    assert http.get("/v1/status").json["paused"] == []
    assert http.get("/v1/jobs?limit=1").json["jobs"] == before


def test_fault_78_another_page_may_not_even_ask(daemon: Daemon, tcp: TcpHttp) -> None:
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    for token in ("", None):
        door = TcpHttp(daemon.home, tcp.address, token)
        for method, more in (("OPTIONS", wanted), ("GET", {}), ("HEAD", {}), ("POST", {})):
            answer = door.ask(method, "/v1/status", headers={**EVIL, **more})
            assert answer.status == 403, (method, token)
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert tcp.ask("GET", "/v1/status", headers={"Origin": f"http://{tcp.address}"}).status == 200


def test_fault_78_what_only_asks_changes_nothing(tcp: TcpHttp, http: Http) -> None:
    for target in ("/v1/pause", "/v1/resume", "/v1/passes", "/v1/batches", "/v1/jobs/last/cancel"):
        for method in ("GET", "HEAD"):
            assert tcp.ask(method, target).status == 405
    assert http.get("/v1/status").json["paused"] == []


def test_an_order_over_tcp_says_what_it_sends(tcp: TcpHttp) -> None:
    assert tcp.ask("POST", "/v1/resume", b"{}", {"Content-Type": "text/plain"}).code == "content_type"
    assert tcp.ask("POST", "/v1/resume", b"{}", {"Content-Type": "application/json"}).code == "not_paused"


# --- 82 and other targets -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        *("/RPC2", "/v1/supervisor.supervisord.options.warnings.linecache.os.system", "/v1/__init__", "/v1/_status"),
        *("/v1/status.__globals__", "/v1/jobs/last/__class__", "/v1/..%2fv1%2fstatus", "/%2e%2e/v1/status"),
        *("/v1/../v1/status", "/v1/./status", "//v1/status", "/v1//status", "/v1/status/", "/V1/status", "/v1/Status"),
        *("/v1/status%00", "/%00", "/v1/status%0d%0aSet-Cookie:x=y", "/v1/status;x=y", "/v1\\status", "/assets/..%2f"),
        *("/assets/%2e%2e%2fapp.py", "/assets//etc/passwd", "/assets/", "/static/index.html", "/" + "a" * 60_000),
        *("/" + "a/" * 20_000, "/" + "%2e%2e%2f" * 5_000 + "etc/passwd"),
    ],
    ids=lambda target: target[:40],
)
def test_fault_82_only_the_routes_of_the_table_are_there(door: Http, target: str) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = door.ask(method, target, headers={"Content-Type": "application/json"})
        assert (answer.status, answer.code) == (404, "no_such_route"), method
        assert "set-cookie" not in answer.headers


@pytest.mark.parametrize(
    "name", ["%2e%2e", "..", "%00", "a%00b", "%ff%fe", "%0d%0aX:%20y", "~", "a" * 60_000, "%25", "*"]
)
def test_fault_82_what_names_no_job_is_no_job(door: Http, name: str) -> None:
    for below in ("", "/manifest", "/logs/stdout", f"/files/{name}", "/explain"):
        if len(below) < 1000:
            answer = door.get(f"/v1/jobs/{name}{below}")
            assert answer.status == 404
            assert answer.code in ("no_such_job", "no_such_route")  # in no route there is an end of a line
            assert "x" not in answer.headers


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 100 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.Random(1).randbytes(64) + b"\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: OWN\r\nX: a\x00b\r\n\r\n",
        b"GET /v1/status HTTP/1.1\r\nHost: OWN\r\nX: a\rb\r\n\r\n",
        b"GET /v1/sta\xfftus HTTP/1.1\r\nHost: OWN\r\n\r\n",
        b"GET\t/v1/status\tHTTP/1.1\r\nHost: OWN\r\n\r\n",
        b"GET /v1/status\r\n\r\n",
        b"GE T /v1/status HTTP/1.1\r\nHost: OWN\r\n\r\n",
        b"\r\n" * 20 + b"x\r\n\r\n",
    ],
    ids=lambda data: repr(data[:40]),
)
def test_what_is_no_http_is_refused_and_closed(door: Http, data: bytes) -> None:
    own = door.address if isinstance(door, TcpHttp) else "x"
    raw = door.raw(data.replace(b"OWN", own.encode()), end=False)
    assert status(raw) == 400, raw
    assert door.get("/v1/status").status == 200


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c"])
def test_nothing_else_is_spoken(tcp: TcpHttp, daemon: Daemon, upgrade: bytes) -> None:
    head = b"GET /v1/me HTTP/1.1\r\n" + tcp.head + b"Connection: Upgrade, close\r\nUpgrade: " + upgrade + b"\r\n\r\n"
    assert status(tcp.raw(head)) == 200
    assert "WebSocket" not in daemon.console(), "strangers write no lines of their own into the log"


def test_it_listens_on_loopback_alone_and_no_program_that_is_started_has_it(tcp: TcpHttp, daemon: Daemon) -> None:
    listening = subprocess.run(["ss", "-Htlnp"], capture_output=True, text=True)
    if listening.returncode:
        pytest.skip("ss is not installed")
    own = [line.split()[3] for line in listening.stdout.splitlines() if f"pid={daemon.running.pid}," in line]
    assert own == [tcp.address]
    job = tcp.send(file("fds.sh", b"ls -l /proc/self/fd\n")).json["id"]
    assert tcp.get(f"/v1/jobs/{job}?wait=30").json["state"] == "succeeded"
    assert b"socket:" not in tcp.get(f"/v1/jobs/{job}/logs/stdout").body


def test_who_answers_is_proved_to_browsers_alone(http: Http, tcp: TcpHttp, daemon: Daemon) -> None:
    _, content, signature = http.post("/v1/passes").json["token"].split(".")
    nonce = "0123456789abcdef" * 2
    asked = f"/healthz?nonce={nonce}&of={content}"
    stranger = TcpHttp(daemon.home, tcp.address, token="")
    made = hmac.new(signature.encode(), f"{nonce}\n{tcp.address}".encode(), "sha256").hexdigest()
    assert stranger.get(asked).headers["solvisor-proof"] == made
    assert stranger.get(f"/healthz?nonce={nonce}&of=token").headers["solvisor-proof"] != made
    assert "solvisor-proof" not in http.get(asked).headers, "who may ask here could pass it on"
    assert "solvisor-proof" not in stranger.get("/healthz").headers
    for wrong in ("nonce=0&of=token", f"nonce={nonce.upper()}&of=token", f"nonce={nonce}&of={'x' * 2001}", "other=1"):
        assert stranger.get(f"/healthz?{wrong}").status == 400
