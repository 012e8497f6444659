"""The page when things are not as they should be: no pass, hostile names, a daemon that dies."""

from __future__ import annotations

import http.server as http_server
import re
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pytest

from daemon import Daemon, living
from page_kit import NARROW, Site, keep_picture
from socket_kit import Http, file, job
from waiting import wait_until

if TYPE_CHECKING:
    from playwright.sync_api import Page

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
expect = sync_api.expect

pytestmark = pytest.mark.slow

CONFIG = """
[daemon]
max_jobs = 2
stop_timeout = "1s"
[api]
listen = "127.0.0.1:{port}"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{{input}}"]
stop_grace = "0.5s"
[solver.sh.success]
error_pattern = 'ERROR: (.*)'
"""

UNREACHED = ("Failed to load resource: net::ERR_",)
MISSING = ("Failed to load resource: the server responded with a status of 404",)
REFUSED = ("Failed to load resource: the server responded with a status of 401",)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Daemon]:
    with living(tmp_path_factory.mktemp("page") / "home", CONFIG.format(port=port)) as daemon:
        yield daemon


# --- who looks -------------------------------------------------------------------------------------------------------


def test_without_a_pass_it_says_what_to_do_and_keeps_where_one_wanted_to_go(site: Site, tmp_path: Path) -> None:
    with site.visit("#/jobs?state=failed", token="", size=NARROW, allowed=REFUSED) as page:
        expect(page.get_by_role("heading", name="This page needs a pass")).to_be_visible()
        expect(page.locator("main")).to_contain_text("solvisor page")
        keep_picture(page, "no-pass-390", tmp_path)
        page.get_by_label("Link or pass").fill("nonsense")
        page.get_by_role("button", name="Go").click()
        expect(page.get_by_role("alert")).to_contain_text("does not know this pass")
        page.get_by_label("Link or pass").fill(f"{site.origin}/#token={site.token}")
        page.get_by_role("button", name="Go").click()
        expect(page.get_by_label("State")).to_have_value("failed")


def test_the_token_leaves_the_address_and_stays_in_the_tab(site: Site, http: Http) -> None:
    with site.visit("#/jobs", token=http.post("/v1/passes").json["token"]) as page:
        expect(page.get_by_role("region", name="Jobs")).to_be_visible()
        assert page.evaluate("location.href") == f"{site.origin}/#/jobs"
        assert page.evaluate("localStorage.length") == 0
        page.reload()
        expect(page.get_by_role("region", name="Jobs")).to_be_visible()
        another = page.context.new_page()
        another.goto(f"{site.origin}/#/machine")
        expect(another.get_by_role("region", name="Limits")).to_be_visible()
        assert http.get("/v1/status").status == 200


def test_a_link_with_a_pass_of_another_name_is_asked_about(site: Site, http: Http) -> None:
    own = http.post("/v1/passes").json
    with site.visit("#/jobs", token=own["token"]) as page:
        expect(page.locator("#live")).to_have_text(f"live, as {own['user']}")
        page.goto(f"{site.origin}/#token={http.post('/v1/passes').json['token']}&view=/machine")  # one's own, renewed
        expect(page.get_by_role("region", name="Limits")).to_be_visible()
        for answer, kept in {"Back": False, "Use that pass": True}.items():
            page.goto(f"{site.origin}/#token={site.token}")
            page.get_by_role("dialog").get_by_role("button", name=answer).click()
            expect(page.get_by_role("dialog")).to_have_count(0)
            page.reload()
            expect(page.locator("#live")).to_be_visible()
            assert (page.evaluate("sessionStorage['solvisor.token']") == site.token) is kept
            assert "token" not in page.evaluate("location.href")


@pytest.mark.parametrize("address", ["#token=%", "#token=%E0%A4%A&view=%", "#/job/%"])
def test_an_address_that_is_cut_off_leaves_no_blank_page(site: Site, address: str) -> None:
    with site.visit(token="", allowed=REFUSED) as page:
        page.goto("about:blank")
        page.goto(f"{site.origin}/{address}")
        expect(page.get_by_role("heading", level=1)).to_contain_text("This page")


def test_a_wrong_pass_is_told_as_the_daemon_tells_it(site: Site) -> None:
    with site.visit(token="wrong", allowed=REFUSED) as page:
        expect(page.get_by_role("heading", name="may not look any more")).to_be_visible()
        expect(page.locator("main")).to_contain_text("solvisor page")
        assert page.evaluate("sessionStorage.length") == 0


# --- what comes from outside -----------------------------------------------------------------------------------------


def test_fault_76_hostile_names_messages_and_logs_are_text(site: Site, http: Http, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    script = (
        b"printf '\\033]0;gotcha\\007\\033[2J\\033[31mERROR: <script>alert(2)</script>\\342\\200\\256gpj.exe';"
        b'printf x > "<b>out.svg"; printf "<svg onload=alert(3)>" > bad.svg; exit 1'
    )
    wishes = {"solver": "sh", "name": f"{evil}\u202e\u001b[31m", "project": "<script>alert(4)</script>"}
    answer = http.send(file("a.sh", script), job(wishes))
    if answer.status != 201:  # a name with control characters is refused; then without
        answer = http.send(file("a.sh", script), job(wishes | {"name": evil}))
    job_id = str(answer.json["id"])
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "failed"
    with site.visit(allowed=MISSING) as page:
        failed = page.get_by_role("region", name="Failed in 24 h")
        expect(failed).to_contain_text(evil)
        expect(failed).to_contain_text("<script>alert(2)</script>")
        page.goto(f"{site.origin}/#/jobs?project=%3Cscript%3Ealert(4)%3C%2Fscript%3E")
        expect(page.get_by_role("table")).to_contain_text("<script>alert(4)</script>")
        page.goto(f"{site.origin}/#/job/{job_id}")
        log = page.get_by_role("region", name="Log, stdout")
        expect(log).to_have_text("ERROR: <script>alert(2)</script>gpj.exe")
        expect(page.get_by_role("region", name="Outputs")).to_contain_text("<b>out.svg")
        expect(page.get_by_text("bad.svg: no picture")).to_be_visible()
        assert page.evaluate("document.querySelectorAll('main script, main b > b, img[src=x]').length") == 0
        strange = page.evaluate(r"[...document.body.innerText.matchAll(/[\p{C}\p{Zl}\p{Zp}]/gu)].map(([c]) => c)")
        assert set(strange) <= {"\n", "\t"}
        page.goto(f"{site.origin}/#/job/%3Cimg%20src=x%20onerror=alert(5)%3E")
        expect(page.get_by_role("heading", name="No such job")).to_be_visible()


HIDE = """(hidden) => {
  Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_pages_that_nobody_looks_at_hold_no_connection(site: Site, http: Http) -> None:
    job_id = str(http.send(file("a.sh", b"echo begun; sleep 600"), job({"solver": "sh"})).json["id"])
    with site.visit(f"#/job/{job_id}") as page:
        expect(page.get_by_role("region", name="Log, stdout")).to_have_text("begun")
        ended: list[str] = []
        page.on("requestfailed", lambda request: ended.append(request.url.removeprefix(site.origin)))
        page.evaluate(HIDE, True)

        def let_go() -> bool:
            page.evaluate("0")  # what happened meanwhile is told now
            return len(ended) == 2

        wait_until(let_go, "both streams are let go")
        assert sorted(url.split("?")[0] for url in ended) == ["/v1/events", f"/v1/jobs/{job_id}/logs/stdout"]
        http.post(f"/v1/jobs/{job_id}/cancel")
        assert http.get(f"/v1/jobs/{job_id}?wait=30").json["finished"]
        with page.expect_request(re.compile("/logs/stdout")) as again:
            page.evaluate(HIDE, False)
        assert "offset=6&" in again.value.url, "it goes on from where it was"
        expect(page.get_by_role("region", name="Job")).to_contain_text("cancelled")
        expect(page.get_by_role("region", name="Log, stdout")).to_have_text("begun")


def test_many_windows_of_one_browser_leave_each_other_room(site: Site, http: Http, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo begun; while [ ! -e {gate} ]; do sleep 0.1; done; echo ended; exit 1"
    job_id = str(http.send(file("many.sh", script.encode()), job({"solver": "sh"})).json["id"])
    with site.visit(f"#/job/{job_id}") as first:
        windows = [first, *(first.context.new_page() for _ in range(7))]
        for n, page in enumerate(windows[1:]):
            page.goto(f"{site.origin}/#/{'' if n % 2 else f'job/{job_id}'}")
        logs = [page.get_by_role("region", name="Log, stdout") for page in [first, *windows[1::2]]]
        for page in windows:
            expect(page.locator("#live")).to_be_visible()
        for log in logs:
            expect(log).to_have_text("begun")
        gate.touch()
        for log in logs:
            expect(log).to_have_text(re.compile(r"^begun\s+ended$"))
        for page in windows[2::2]:
            expect(page.get_by_role("region", name="Failed in 24 h")).to_contain_text("many.sh")
        taken = [f"solvisor events {n}" for n in range(3)]
        assert held_by_all(first) == taken
        for page in windows:
            expect(page.locator("#live")).to_be_visible()
            expect(page.locator("#notes > *")).to_have_count(0)
        windows[3].goto("about:blank")  # whoever leaves makes room
        windows[4].close()
        wait_until(lambda: held_by_all(first) == taken, "others have their streams")


def held_by_all(page: Page) -> list[str]:
    """The streams that all windows of this browser have."""
    found: list[str] = page.evaluate("navigator.locks.query().then(({held}) => held.map((one) => one.name).sort())")
    return found


# --- a daemon that is not there --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["dark"])
def test_a_daemon_that_was_killed_is_missed_and_found_again(
    site: Site, daemon: Daemon, http: Http, tmp_path: Path, scheme: str
) -> None:
    with site.visit(scheme=scheme, allowed=UNREACHED) as page:
        expect(page.locator("#live")).to_be_visible()
        page.evaluate("window.here = true")
        asked: list[dict[str, str]] = []
        page.on("request", lambda request: asked.extend([request.headers] * request.url.endswith("/v1/events")))
        until_it_follows(page)
        daemon.kill()
        page.evaluate("performance.clearResourceTimings()")
        expect(page.locator("#lost")).to_have_text(re.compile(r"Not connected since \d\d:\d\d:\d\d"))
        expect(page).to_have_title(re.compile(r"\(not connected\)"))
        expect(page.locator("#health")).to_have_text("not connected")
        expect(page.get_by_role("button", name="Pause ...")).to_be_disabled()
        keep_picture(page, "not-connected-1280", tmp_path)

        def asked_seldom() -> bool:
            starts = page.evaluate(_ASKED)
            return any(later - sooner > 3_500 for sooner, later in pairwise(starts))

        wait_until(asked_seldom, "it asks ever less often")
        assert len(page.evaluate(_ASKED)) < 12
        assert len(asked) <= 1, "events are followed once it answers"
        daemon.start()
        expect(page.locator("#live")).to_be_visible()
        daemon.drop("after.sh", "sleep 600")
        expect(page.get_by_role("region", name="Running").get_by_role("link", name="after.sh")).to_be_visible()
        assert page.evaluate("window.here")
        assert asked
        assert all(headers.get("last-event-id") for headers in asked), "it goes on from where it was"
    row = http.get("/v1/jobs?state=running").json["jobs"][0]
    http.post(f"/v1/jobs/{row['id']}/cancel")


_HEARD = """
performance.getEntriesByType("resource").filter((e) => e.name.endsWith("/v1/status")).length > 1
"""
"""The stream of events has begun: its first word makes it ask for the status again."""


def until_it_follows(page: Page) -> None:
    expect(page.locator("#live")).to_be_visible()
    wait_until(lambda: page.evaluate(_HEARD), "it follows events")


_ASKED = """
performance.getEntriesByType("resource").filter((e) => e.name.includes("/healthz")).map((e) => e.startTime)
"""
"""When who answers was asked to prove himself, in ms; nothing else is asked while nobody does."""


class Squatter(http_server.BaseHTTPRequestHandler):
    """Another user's program on the daemon's port: it answers whatever it is asked, and keeps what it saw."""

    seen: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path.split("?")[0], self.headers["Authorization"]))
        body = b'{"jobs": [], "next": null}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Solvisor-Proof", "0" * 64)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("bearer", ["pass", "token"])
def test_fault_78_who_takes_the_daemons_port_is_sent_no_pass(
    site: Site, daemon: Daemon, http: Http, port: int, bearer: str
) -> None:
    Squatter.seen.clear()
    token = http.post("/v1/passes").json["token"] if bearer == "pass" else site.token
    with site.visit(token=token, allowed=UNREACHED) as page:
        until_it_follows(page)  # before that a proof is good for a second
        daemon.kill()
        http_server.ThreadingHTTPServer.daemon_threads = True
        with http_server.ThreadingHTTPServer(("127.0.0.1", port), Squatter) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            expect(page.locator("#lost")).to_contain_text("does not know this pass")
            page.get_by_role("button", name="Try now").click()
            expect(page.get_by_role("button", name="Pause ...")).to_be_disabled()
            server.shutdown()
        daemon.start()
        expect(page.locator("#live")).to_be_visible()
    assert [path for path, _ in Squatter.seen if path == "/healthz"]
    assert {path for path, _ in Squatter.seen} == {"/healthz"}, "nothing else is asked"
    assert {shown for _, shown in Squatter.seen} == {None}


def test_fault_78_what_was_proved_before_a_connection_was_lost_counts_no_more(site: Site) -> None:
    """The daemon may have answered that just before it ended, and another one may listen there now."""
    with site.visit() as page:
        until_it_follows(page)
        asked = page.evaluate(
            """async (bearer) => {
                const proof = await import("/assets/proof.js");
                const really = window.fetch;
                let asked = 0;
                window.fetch = async (...given) => {
                    const answer = await really(...given);
                    if (String(given[0]).startsWith("/healthz") && ++asked === 1) proof.distrust();
                    return answer;
                };
                proof.distrust();
                await proof.prove(bearer);
                window.fetch = really;
                return asked;
            }""",
            site.token,
        )
    assert asked == 2
