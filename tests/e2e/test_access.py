"""Who may do what, of a real daemon: users and groups at its socket, tokens and passes over TCP, and what is logged."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from cli_kit import Run, command_line
from daemon import Daemon, living
from socket_kit import Answer, Http, TcpHttp, connected, file, own_address
from solvisor.views import Status
from solvisor_service.client import Client, NotPermitted
from waiting import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: to be other users")

NOBODY = 65534
STRANGER = 61234
"""A uid that no account has."""
GROUP = next(each for each in grp.getgrall() if each.gr_gid not in {0, NOBODY, *os.getgroups()})
OTHER = next(each for each in grp.getgrall() if each.gr_gid not in {0, NOBODY, GROUP.gr_gid, *os.getgroups()})
ADDRESS = own_address()
SOLVER = """
[daemon]
stop_timeout = "5s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""
CONFIG = f"""{SOLVER}
[api]
group = "{GROUP.gr_name}"
listen = "{ADDRESS}"
hosts = ["ws04.example"]
"""


@contextlib.contextmanager
def open_folder() -> Iterator[Path]:
    """A folder that every user may pass through; those of pytest are closed."""
    folder = Path(tempfile.mkdtemp(prefix="solvisor-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with open_folder() as folder, living(folder / "home", CONFIG) as daemon:
        yield daemon


@contextlib.contextmanager
def acting_as(uid: int, *groups: int, gid: int | None = None) -> Iterator[None]:
    """For the kernel this process is somebody else."""
    before = os.getgroups()
    os.setgroups(groups)
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(before)


def mode(path: Path) -> tuple[int, int]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), found.st_gid


def given(http: Http, **body: Any) -> Answer:
    return http.post("/v1/passes", body)


# --- at the Unix socket ---------------------------------------------------------------------------------------------


def test_fault_79_a_member_operates_and_is_known_by_name(http: Http, daemon: Daemon) -> None:
    assert mode(http.path) == (0o660, GROUP.gr_gid)
    assert mode(http.path.parent) == (0o750, GROUP.gr_gid)
    with acting_as(NOBODY, GROUP.gr_gid):
        me = http.get("/v1/me").json
        sent = http.send(file("a.sh", b"exit 0\n"))
        assert http.post("/v1/pause", {"solver": "sh"}).status == 200
        assert http.post("/v1/resume", {"solver": "sh"}).status == 200
        refused = http.post("/v1/servers/sh/scale", {"count": 1})
    assert me == {"user": "nobody", "uid": NOBODY, "role": "operate", "via": "socket"}
    assert sent.status == 201, sent
    assert (refused.status, refused.code) == (403, "not_permitted")
    assert refused.json["detail"] == "this needs the role administer, held by root; yours (nobody) is operate"
    assert http.get(f"/v1/jobs/{sent.json['id']}?wait=30").json["user"] == "nobody"
    assert http.post("/v1/servers/sh/scale", {"count": 1}).code == "usage", "root may, but there are no servers"


@pytest.mark.parametrize("many", [0, 300])
def test_fault_79_a_group_counts_however_many_somebody_is_in(http: Http, many: int) -> None:
    others = [1_000_000 + number for number in range(many)]
    with acting_as(STRANGER, *others, GROUP.gr_gid):
        assert http.get("/v1/me").json == {"user": str(STRANGER), "uid": STRANGER, "role": "operate", "via": "socket"}
    with acting_as(STRANGER, *others, gid=GROUP.gr_gid):
        assert http.get("/v1/me").json["role"] == "operate", "the primary group counts as well"


def test_fault_79_others_cannot_connect_and_if_they_could_they_may_do_nothing(http: Http, daemon: Daemon) -> None:
    with acting_as(STRANGER, OTHER.gr_gid):
        with pytest.raises(PermissionError):
            connected(http.path)
        with pytest.raises(NotPermitted, match="ask its operator to add you to that group"):
            Client(daemon.home).status()
    http.path.parent.chmod(0o755)
    http.path.chmod(0o666)
    try:
        with acting_as(STRANGER, OTHER.gr_gid):
            answers = [http.get(target) for target in ("/v1/status", "/v1/jobs", "/v1/me", "/v1/jobs/last")]
            answers += [http.send(file("a.sh")), http.post("/v1/pause"), given(http)]
        assert {(answer.status, answer.code) for answer in answers} == {(403, "not_permitted")}
        assert "held by root and members of the group" in answers[0].json["detail"]
        with acting_as(STRANGER, NOBODY, gid=OTHER.gr_gid):
            assert http.get("/v1/me").status == 403
    finally:
        http.path.chmod(0o660)
        http.path.parent.chmod(0o750)


def test_fault_79_who_asks_is_who_connected(http: Http) -> None:
    """A connection that somebody hands on stays theirs, as the file system would have it."""
    with acting_as(NOBODY, GROUP.gr_gid):
        sock = http.connected()
    with sock:
        sock.sendall(b"GET /v1/me HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while piece := sock.recv(1 << 16):
            answer += piece
    assert b'"uid":65534,"role":"operate"' in answer


def test_every_order_leaves_a_line_with_who_gave_it(http: Http, tcp: TcpHttp, daemon: Daemon) -> None:
    with acting_as(NOBODY, GROUP.gr_gid):
        http.post("/v1/jobs/no-such-job/cancel")
        http.post("/v1/servers/sh/scale", {"count": 1})
        token = given(http).json["token"]
        http.get("/v1/status")
    TcpHttp(daemon.home, ADDRESS, token).post("/v1/resume")
    TcpHttp(daemon.home, ADDRESS, "").post("/v1/resume")
    keys = ("method", "path", "uid", "user", "role", "via", "status", "code")

    def lines() -> list[tuple[Any, ...]]:
        return [tuple(line[key] for key in keys) for line in daemon.events("api.order")][-4:]

    who = (NOBODY, "nobody", "operate")
    wait_until(lambda: [line[1:6:4] for line in lines()[-1:]] == [("/v1/resume", "tcp")], "the last line is written")
    assert lines() == [
        ("POST", "/v1/jobs/no-such-job/cancel", *who, "socket", 404, "no_such_job"),
        ("POST", "/v1/servers/sh/scale", *who, "socket", 403, "not_permitted"),
        ("POST", "/v1/passes", *who, "socket", 201, None),
        ("POST", "/v1/resume", *who, "tcp", 409, "not_paused"),
    ]


# --- over TCP -------------------------------------------------------------------------------------------------------


def test_the_token_is_the_owner_and_stands_nowhere_but_in_its_file(tcp: TcpHttp, http: Http, daemon: Daemon) -> None:
    assert tcp.get("/v1/me").json == {"user": "root", "uid": 0, "role": "administer", "via": "tcp"}
    assert mode(daemon.home / "state" / "token") == (0o600, 0)
    assert (
        tcp.raw(b"GET / HTTP/1.1\r\nAuthorization : Bearer " + tcp.token.encode() + b"\r\n\r\n").count(b"\r\n\r\n") == 1
    )
    secrets = [tcp.token]
    for asked in (http, tcp):
        answer = given(asked)
        secrets += [answer.json["token"]] if answer.status == 201 else []
    process = Path(f"/proc/{daemon.running.pid}")
    shown = [daemon.console(), daemon.log.read_text()]
    shown += [(process / name).read_text(errors="replace") for name in ("cmdline", "environ")]
    shown += [json.dumps(http.get("/v1/status").json)]
    shown.append(tcp.raw(b"GET / HTTP/1.1\r\nAuthorization : Bearer " + tcp.token.encode() + b"\r\n\r\n").decode())
    assert not [text for text in shown if any(secret in text for secret in secrets)]


def test_a_pass_has_the_name_and_the_role_of_who_asked_and_lives_on(http: Http, daemon: Daemon, tcp: TcpHttp) -> None:
    with acting_as(NOBODY, GROUP.gr_gid):
        found = given(http).json
    assert (found["role"], found["user"]) == ("operate", "nobody")
    assert found["url"] == f"http://{ADDRESS}/#token={found['token']}"
    assert http.get("/v1/status").json["page"] == f"http://{ADDRESS}/"
    member = TcpHttp(daemon.home, ADDRESS, found["token"])
    assert member.get("/v1/me").json == {"user": "nobody", "uid": NOBODY, "role": "operate", "via": "tcp"}
    sent = member.send(file("b.sh", b"exit 0\n"))
    assert http.get(f"/v1/jobs/{sent.json['id']}?wait=30").json["user"] == "nobody"
    refused = [member.post("/v1/servers/sh/scale", {"count": 1}), given(member), given(tcp)]
    assert {(answer.status, answer.code) for answer in refused} == {(403, "not_permitted")}


def test_a_pass_may_be_less_than_its_giver_and_never_more(http: Http, daemon: Daemon) -> None:
    with acting_as(NOBODY, GROUP.gr_gid):
        looking = TcpHttp(daemon.home, ADDRESS, given(http, role="look").json["token"])
        more = given(http, role="administer")
    assert (more.status, more.code) == (403, "not_permitted")
    assert looking.get("/v1/me").json["role"] == "look"
    assert looking.get("/v1/status").status == 200
    refused = [looking.post("/v1/pause"), looking.send(file("c.sh", b"exit 0\n")), looking.post("/v1/jobs/last/cancel")]
    assert {(answer.status, answer.code) for answer in refused} == {(403, "not_permitted")}
    assert "held by root and members of the group" in refused[0].json["detail"]
    with acting_as(NOBODY, GROUP.gr_gid):
        assert given(http, seconds=7 * 86400).status == 201
        assert given(http, seconds=7 * 86400 + 1).code == "usage", "one may be taken out of the group"
    assert given(http, seconds=90 * 86400).status == 201
    assert given(http, role="operate").json["role"] == "operate"
    assert given(http, role="king").code == "usage"


@contextlib.contextmanager
def followed(http: Http, target: str) -> Iterator[HTTPResponse]:
    """An answer that goes on, at its beginning."""
    connection = http.connection()
    headers = http.bearer if isinstance(http, TcpHttp) else {}
    try:
        connection.request("GET", target, headers=headers)
        answer = connection.getresponse()
        assert answer.status == 200
        yield answer
    finally:
        connection.close()


def test_a_stream_ends_with_its_pass(http: Http, daemon: Daemon) -> None:
    """Though nothing comes any more: the log of a job that waits, events amid nothing."""
    job_id = http.send(file("long.sh", b"sleep 600\n")).json["id"]
    token = given(http, seconds=1).json["token"]
    for target in ("/v1/events", f"/v1/jobs/{job_id}/logs/stdout?follow=true"):
        with followed(TcpHttp(daemon.home, ADDRESS, token), target) as stream:
            stream.read()  # to its end, which is a good one: a broken one raises
        token = given(http, seconds=1).json["token"]
    http.post(f"/v1/jobs/{job_id}/cancel")


def test_a_pass_ends(http: Http, daemon: Daemon) -> None:
    short = TcpHttp(daemon.home, ADDRESS, given(http, seconds=1).json["token"])
    assert short.get("/v1/me").status == 200
    wait_until(lambda: short.get("/v1/me").status == 401, "it has expired")
    for seconds in (0, -1, 90 * 86400 + 1, 1.5, "1"):
        assert given(http, seconds=seconds).code == "usage"


@pytest.mark.parametrize(
    "target",
    [
        *("/v1/status", "/v1/me", "/v1/jobs", "/v1/jobs/last", "/v1/jobs/last/manifest", "/v1/jobs/last/logs/stdout"),
        *("/metrics", "/v1", "/v1/", "/v1/nothing", "/v1/jobs/", "/v1%2fnothing", "/v1/passes"),
        *("/v1/jobs/last/files/manifest.json", "/v1/servers", "/v1/status?token=TOKEN", "/v1/me?access_token=TOKEN"),
    ],
)
def test_nothing_is_told_without_a_token(daemon: Daemon, tcp: TcpHttp, target: str) -> None:
    for token in ("", "x" * 43, tcp.token.swapcase()):
        answer = TcpHttp(daemon.home, ADDRESS, token).get(target.replace("TOKEN", tcp.token))
        assert (answer.status, answer.code) == (401, "token")
        assert answer.headers["www-authenticate"] == 'Bearer realm="solvisor"'
    cookie = TcpHttp(daemon.home, ADDRESS, "").ask("GET", target, headers={"Cookie": f"token={tcp.token}"})
    assert cookie.status == 401


def test_nothing_is_done_without_a_token(daemon: Daemon, http: Http) -> None:
    stranger = TcpHttp(daemon.home, ADDRESS, "")
    answers = [stranger.post("/v1/pause"), stranger.send(file("a.sh")), given(stranger)]
    assert {(answer.status, answer.code) for answer in answers} == {(401, "token")}
    assert http.get("/v1/status").json["paused"] == []


# --- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_there_for_whoever_can_connect(daemon: Daemon, http: Http) -> None:
    for door in (http, TcpHttp(daemon.home, ADDRESS, "")):
        page = door.get("/")
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert page.headers["cache-control"] == "no-cache"
        again = door.ask("GET", "/", headers={"If-None-Match": f'"other", W/{page.headers["etag"]}'})
        assert (again.status, again.body) == (304, b"")
        head = door.ask("HEAD", "/")
        assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(page.body)))
        assert door.post("/").code == "method"
        for name in ("index.html", "../web/index.html", "%2e%2e/app.py", "", "nothing.js", "__init__.py", "."):
            assert door.get(f"/assets/{name}").code == "no_such_route", name


def test_every_answer_tells_browsers_to_be_careful(tcp: TcpHttp, http: Http) -> None:
    for door in (tcp, http):
        for answer in (door.get("/"), door.get("/v1/status"), door.get("/v1/jobs/nothing"), door.get("/nothing")):
            assert "default-src 'none'; script-src 'self'" in answer.headers["content-security-policy"]
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert not [name for name in answer.headers if name.startswith("access-control")]
        for target in ("/v1/status", "/metrics", "/readyz", "/nothing"):
            assert door.get(target).headers["cache-control"] == "no-store"
        assert door.get("/").headers["cache-control"] == "no-cache"
        raw = door.raw(b"nonsense\r\n\r\n")
        assert b"\r\nX-Content-Type-Options: nosniff\r\n" in raw


@pytest.fixture
def run(daemon: Daemon, tmp_path: Path, capfdbinary: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    called = command_line(tmp_path, capfdbinary, monkeypatch)
    monkeypatch.setenv("SOLVISOR_HOME", str(daemon.home))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return called


def test_solvisor_page_prints_an_address_that_lets_in(run: Run, daemon: Daemon, tcp: TcpHttp) -> None:
    result = run("page", "--for", "1h")
    assert (result.status, len(result.lines)) == (0, 1)
    url, _, token = result.lines[0].partition("#token=")
    assert url == f"http://{ADDRESS}/"
    assert TcpHttp(daemon.home, ADDRESS, token).get("/v1/me").json["role"] == "administer"
    assert "who has it may administer as root" in result.err
    found = json.loads(run("page", "--json", "--look", "--for", "1h").out)
    assert found["role"] == "look"
    ends = time.time() + 3600
    assert abs(time.mktime(time.strptime(found["expires"][:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone - ends) < 60


def test_solvisor_page_shows_no_token_to_who_lists_processes(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def opening(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", opening)
    for _ in range(2):
        result = run("page", "--open")
        assert (result.status, result.out) == (0, "")
    path = tmp_path / "cache" / "solvisor" / "page.html"
    assert opened == [path.as_uri()] * 2
    assert mode(path)[0] == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert f'content="0; url=http://{ADDRESS}/#token=pass1.' in path.read_text()
    monkeypatch.setattr("webbrowser.open", lambda _: False)
    assert run("page", "--open").status == 1


# --- what changes ---------------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[Callable[[str], Daemon]]:
    """Makes daemons that a test has for itself."""
    with open_folder() as folder, contextlib.ExitStack() as stack:

        def make(config: str) -> Daemon:
            daemon = Daemon(folder / "home", config)
            stack.callback(daemon.clear_away)
            return daemon

        yield make


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What is open is closed after a test."""
    with contextlib.ExitStack() as stack:
        yield stack


def reload(daemon: Daemon, api: str) -> None:
    daemon.config.write_text(f"{SOLVER}\n[api]\n{api}\n")
    before = len(daemon.events("config.reloaded"))
    daemon.signal(signal.SIGHUP)
    daemon.wait_event("config.reloaded", before + 1)


def test_without_a_word_only_the_owner_and_root_come_in_and_nobody_listens(alone: Callable[[str], Daemon]) -> None:
    daemon = alone(SOLVER)
    daemon.start()
    http = Http(daemon.home)
    wait_until(http.path.exists, "the socket is there")
    assert mode(http.path)[0] == 0o600
    assert mode(http.path.parent)[0] == 0o700
    assert http.get("/v1/status").json["page"] is None
    assert not (daemon.home / "state" / "token").exists()
    answer = given(http)
    assert (answer.status, answer.code) == (409, "no_page")
    assert 'listen = "127.0.0.1:8642"' in answer.json["detail"]
    assert daemon.stop() == 0


def test_groups_addresses_and_tokens_change_by_a_reload(
    alone: Callable[[str], Daemon], stack: contextlib.ExitStack
) -> None:
    first, second = own_address(), own_address()
    daemon = alone(f'{SOLVER}\n[api]\ngroup = "{GROUP.gr_name}"\nlisten = "{first}"\n')
    daemon.start()
    http = Http(daemon.home)

    def page_is(url: str | None) -> Callable[[], bool]:
        return lambda: http.path.exists() and http.get("/v1/status").json["page"] == url

    wait_until(page_is(f"http://{first}/"), "it listens")
    with acting_as(NOBODY, GROUP.gr_gid):
        token = given(http).json["token"]
        looking = given(http, role="look").json["token"]
    owner = TcpHttp(daemon.home, first)
    assert TcpHttp(daemon.home, first, token).get("/v1/me").status == 200

    with acting_as(NOBODY, GROUP.gr_gid):
        members = stack.enter_context(followed(http, "/v1/events"))
    passed = stack.enter_context(followed(TcpHttp(daemon.home, first, token), "/v1/events"))
    owners = stack.enter_context(followed(http, "/v1/events"))
    reload(daemon, f'group = "{OTHER.gr_name}"\nlisten = "{first}"')
    members.read()
    passed.read()
    assert b"hello" in owners.read1(), "whom it does not concern reads on"
    reload(daemon, f'group = "{OTHER.gr_name}"\nlisten = "{second}"')
    wait_until(page_is(f"http://{second}/"), "it listens elsewhere")
    with pytest.raises(ConnectionRefusedError):
        owner.get("/v1/me")
    assert mode(http.path) == (0o660, OTHER.gr_gid)
    with acting_as(NOBODY, GROUP.gr_gid), pytest.raises(PermissionError):
        http.get("/v1/me")
    with acting_as(NOBODY, OTHER.gr_gid):
        assert http.get("/v1/me").json["role"] == "operate"
    for ended in (token, looking):
        assert TcpHttp(daemon.home, second, ended).get("/v1/me").status == 401, "their group lets nobody in any more"
    assert TcpHttp(daemon.home, second).get("/v1/me").status == 200

    (daemon.home / "state" / "token").unlink()
    reload(daemon, f'listen = "{second}"')
    daemon.wait_event("api.listening", 3)
    assert (daemon.home / "state" / "token").read_text().strip() != owner.token
    assert TcpHttp(daemon.home, second, owner.token).get("/v1/me").status == 401
    assert TcpHttp(daemon.home, second).get("/v1/me").status == 200
    assert mode(http.path)[0] == 0o600

    reload(daemon, "")
    wait_until(page_is(None), "it listens no more")
    with pytest.raises(ConnectionRefusedError):
        TcpHttp(daemon.home, second).get("/v1/me")
    assert daemon.stop() == 0


def test_a_port_that_is_taken_is_told_and_had_once_it_is_free(alone: Callable[[str], Daemon]) -> None:
    address = own_address()
    host, _, port = address.rpartition(":")
    with socket.create_server((host, int(port))):
        daemon = alone(f'{SOLVER}\n[api]\nlisten = "{address}"\n')
        daemon.start()
        daemon.wait_event("api.not_listening")
        status: Status = Client(daemon.home).status()
        assert (status.health, status.page) == ("degraded", None)
        assert status.problems == (
            f"[api] listen: nobody listens on {address}: Address already in use; free it, or choose another port; "
            "it is tried again every 2 s",
        )
        assert given(Http(daemon.home)).code == "no_page"
        for _ in range(2):
            reload(daemon, f'listen = "{address}"')  # it is tried at once, and told no more
    wait_until(lambda: Client(daemon.home).status().page, "it listens now")
    assert Client(daemon.home).status().health == "healthy"
    assert len(daemon.events("api.not_listening")) == 1
    assert daemon.stop() == 0


def test_fault_80_a_token_that_others_may_read_opens_nothing(alone: Callable[[str], Daemon]) -> None:
    address = own_address()
    daemon = alone(f'{SOLVER}\n[api]\nlisten = "{address}"\ngroup = "no-such-group"\n')
    path = daemon.home / "state" / "token"
    path.parent.mkdir(mode=0o700)
    path.write_text("k" * 43)
    path.chmod(0o644)
    daemon.start()
    daemon.wait_event("api.not_listening")
    problems = " ".join(Client(daemon.home).status().problems)
    assert f"the token in {path} is not used: it has mode 0644 and owner 0" in problems
    assert "[api] group: there is no group no-such-group on this machine" in problems
    with pytest.raises(ConnectionRefusedError):
        TcpHttp(daemon.home, address).get("/")
    path.unlink()
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: Client(daemon.home).status().page, "it listens with a new token")
    assert daemon.stop() == 0


def test_a_daemon_that_is_none_of_the_group_says_so_and_lets_nobody_in(alone: Callable[[str], Daemon]) -> None:
    daemon = alone(f'{SOLVER}\n[api]\ngroup = "{GROUP.gr_name}"\n')
    for path in (daemon.home, daemon.config):
        os.chown(path, NOBODY, NOBODY)
    assert pwd.getpwuid(NOBODY).pw_name == "nobody"
    if subprocess.run(["setpriv", "--version"], capture_output=True).returncode:
        pytest.skip("setpriv is not installed")
    daemon.start(through=["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"])
    http = Http(daemon.home)
    wait_until(http.path.exists, "the socket is there")
    (problem,) = http.get("/v1/status").json["problems"]
    assert f"[api] group: the daemon cannot let members of {GROUP.gr_name} in, for it is not one of them" in problem
    assert mode(http.path)[0] == 0o600
    assert http.get("/v1/me").json["role"] == "administer"
    with acting_as(NOBODY):
        assert http.get("/v1/me").json == {"user": "nobody", "uid": NOBODY, "role": "administer", "via": "socket"}
    assert daemon.stop() == 0


def test_a_way_that_is_closed_to_the_group_is_told(alone: Callable[[str], Daemon]) -> None:
    daemon = alone(f'{SOLVER}\n[api]\ngroup = "{GROUP.gr_name}"\n')
    daemon.home.chmod(0o700)
    daemon.start()
    wait_until(Http(daemon.home).path.exists, "the socket is there")
    (problem,) = Client(daemon.home).status().problems
    assert f"cannot reach {daemon.home}/run/solvisor.sock, for {daemon.home} is closed to them" in problem
    assert f"chgrp {GROUP.gr_name} {daemon.home} and chmod g+x {daemon.home}" in problem
    os.chown(daemon.home, -1, GROUP.gr_gid)
    daemon.home.chmod(0o750)
    daemon.signal(signal.SIGHUP)
    wait_until(lambda: Client(daemon.home).status().health == "healthy", "it is open now")
    assert daemon.stop() == 0
