"""The page, looked at in a browser: what it answers, how it follows, what may be done on it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon, living
from page_kit import NARROW, Site, focus_by_keys, keep_picture, keep_pictures, place
from socket_kit import Http, file, job
from waiting import wait_until

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
expect = sync_api.expect

pytestmark = pytest.mark.slow

SAMPLES = Path(__file__).parents[1] / "data" / "samples"
CONFIG = """
[daemon]
max_jobs = 3
stop_timeout = "1s"
[inbox]
settle = "0.1s"
[api]
listen = "127.0.0.1:{port}"
[licenses]
orcaflex = 1
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{{input}}"]
stop_grace = "0.5s"
[solver.sh.success]
error_pattern = 'ERROR: (.*)'
[solver.moor]
accept = ["*.moor"]
command = ["/bin/sh", "{{input}}"]
licenses = {{ orcaflex = 1 }}
[solver.ccx]
accept = ["*.inp"]
command = ["ccx", "-i", "{{stem}}"]
[solver.ccx.success]
error_pattern = '\\*ERROR(?:[^:\\n]*:)?\\s*(.+(?:\\n.+)*)'
"""

SOONER_MS = 8000
"""The page asks by itself every 10 s: what is there sooner was told."""

PLOTS = b"""
cat > curve.svg <<'END'
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 30 20" width="30" height="20">
<script>parent.document.title = "taken over"; fetch("/v1/pause", {method: "POST"})</script>
<rect width="30" height="20" fill="#eee"/><path d="M2,18 L10,8 L18,12 L28,3" fill="none" stroke="#06c"/></svg>
END
echo iVBORw0KGgoAAAANSUhEUgAAAAoAAAAKCAIAAAACUFjqAAAAEklEQVR4nGP4z8CAB+GTG8HSALfKY52fTcuYAAAAAElFTkSuQmCC |
base64 -d > dot.png
echo 42 > table.csv
printf 'first\\n\\033[31mred\\033[0m \\033]0;title\\007after\\n10 %%\\r20 %%\\n'
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, port: int) -> Iterator[Daemon]:
    with living(tmp_path_factory.mktemp("page") / "home", CONFIG.format(port=port)) as daemon:
        yield daemon


def submit(http: Http, filename: str, script: bytes, **wishes: object) -> str:
    answer = http.send(file(filename, script), job(wishes))
    assert answer.status == 201, answer
    return str(answer.json["id"])


def finished(http: Http, filename: str, script: bytes, **wishes: object) -> str:
    job_id = submit(http, filename, script, **wishes)
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["finished"]
    return job_id


def clear(http: Http) -> None:
    """End what a test has left."""
    for pause in http.get("/v1/status").json["paused"]:
        http.post("/v1/resume", {"solver": pause["solver"]})
    http.post("/v1/limits", {"name": "max_jobs", "value": None})
    for state in ("queued", "running"):
        for row in http.get(f"/v1/jobs?state={state}").json["jobs"]:
            http.post(f"/v1/jobs/{row['id']}/cancel")
            assert http.get(f"/v1/jobs/{row['id']}?wait=30").json["finished"]


@pytest.fixture(autouse=True)
def tidy(http: Http) -> Iterator[None]:
    yield
    clear(http)


# --- what it answers -------------------------------------------------------------------------------------------------


def test_it_says_what_runs_what_waits_and_why_and_what_failed(site: Site, http: Http, tmp_path: Path) -> None:
    if shutil.which("ccx"):
        said = "no elastic constants were assigned to any material"
        finished(http, "bad.inp", (SAMPLES / "ccx" / "beam_bad.inp").read_bytes(), solver="ccx")
    else:
        said = "no material"
        finished(http, "bad.sh", b"echo 'ERROR: no material'; exit 1", solver="sh")
    for n in range(4):
        finished(http, "mesh.sh", b"exit 0", solver="sh", name=f"mesh-{n}")
    submit(http, "a.moor", b"sleep 600", name="riser-017", solver="moor")
    submit(http, "b.moor", b"sleep 600", name="riser-018", solver="moor")
    for n in range(3):
        submit(http, "b.moor", b"sleep 600", name=f"later-{n}", solver="moor")
    with site.visit() as page:
        expect(page.locator("#health")).to_have_text("healthy")
        expect(page).to_have_title(re.compile("1 failed, 1 running, 4 waiting"))
        running, waiting, failed = (page.get_by_role("region", name=name) for name in ("Running", "Waiting", "Failed"))
        expect(running.get_by_role("link", name="riser-017")).to_be_visible()
        expect(waiting).to_contain_text("license orcaflex")
        expect(waiting.locator(".names")).to_have_text("riser-018, later-0, later-1, ...")
        expect(page.get_by_role("row", name="riser-018")).to_contain_text("waits for license orcaflex")
        last = http.get("/v1/jobs?state=queued&limit=1").json["jobs"][0]
        http.post(f"/v1/jobs/{last['id']}/priority", {"priority": 5})
        expect(waiting.locator(".names")).to_have_text("later-2, riser-018, later-0, ...", timeout=SOONER_MS)
        expect(failed).to_contain_text(said)
        expect(page.get_by_role("list", name="What is taken")).to_contain_text("license orcaflex1/1")
        keep_pictures(page, "overview-1280", tmp_path)
        (left, top), (right, beside) = place(running), place(waiting)
        assert top == beside, "two columns at 1280"
        assert left < right
    with site.visit(size=NARROW) as page:
        running, waiting = (page.get_by_role("region", name=name) for name in ("Running", "Waiting"))
        expect(waiting).to_contain_text("license orcaflex")
        assert place(running)[0] == place(waiting)[0], "one column at 390"
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "nothing sticks out"
        keep_pictures(page, "overview-390", tmp_path)


def test_it_says_when_a_job_ends_where_others_of_its_kind_tell(site: Site, http: Http) -> None:
    job_id = submit(http, "mesh.sh", b"sleep 600", solver="sh", name="mesh-9")
    with site.visit() as page:
        running = page.get_by_role("region", name="Running")
        expect(running.get_by_role("link", name="mesh-9")).to_be_visible()
        expect(running).not_to_contain_text("ends about")
        assert running.locator(".meter").count() == 0, "no bar where nothing is known"
        known = {"usual_seconds": 3600.0}
        status = http.get("/v1/status").json
        status["running_jobs"][0] |= known
        status["now"] = (
            datetime.now(UTC).astimezone().replace(hour=12).isoformat()
        )  # of tomorrow it tells the date, too
        page.route("**/v1/status", lambda route: route.fulfill(json=status))
        page.reload()
        expect(running).to_contain_text(re.compile(r"ends about \d\d:\d\d"))
        expect(running.locator(".meter")).to_have_count(1)
        status["running_jobs"][0]["run_seconds"] = 7200.0
        page.reload()
        expect(running).to_contain_text("longer than usual (1 h)")
        view = http.get(f"/v1/jobs/{job_id}").json | known
        page.route(f"**/v1/jobs/{job_id}", lambda route: route.fulfill(json=view))
        page.goto(f"{site.origin}/#/job/{job_id}")
        expect(page.locator("#standing")).to_contain_text("ends about")


def test_it_follows_what_happens_without_being_loaded_again(site: Site, http: Http, daemon: Daemon) -> None:
    with site.visit() as page:
        expect(page.get_by_role("region", name="Running")).to_contain_text("Nothing")
        page.evaluate("window.here = true")
        daemon.drop("dropped.sh", "echo it runs; sleep 600")
        link = page.get_by_role("region", name="Running").get_by_role("link", name="dropped.sh")
        expect(link).to_be_visible(timeout=SOONER_MS)
        expect(page.get_by_role("table").get_by_role("link", name="dropped.sh")).to_be_visible()
        clear(http)
        expect(link).to_have_count(0, timeout=SOONER_MS)
        page.evaluate("performance.clearResourceTimings()")
        for n in range(40):
            submit(http, "many.sh", b"exit 0", solver="sh", name=f"many-{n}")
        expect(page.get_by_role("table").get_by_role("row").nth(1)).to_contain_text("succeeded")
        expect(page.get_by_role("table")).to_contain_text("many-39")
        submit(http, "one.sh", b"sleep 600", solver="sh", name="one-more")
        expect(page.get_by_role("region", name="Running")).to_contain_text("one-more")
        asked = page.evaluate(
            "performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/v1/status'))"
            ".map((one) => one.startTime)"
        )
        assert len(asked) > 1
        assert all(later - earlier > 990 for earlier, later in pairwise(asked)), "asked more than once a second"
        assert page.evaluate("window.here")


def test_a_job_is_shown_with_its_log_as_it_is_written(site: Site, http: Http, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = f"echo begun; while [ ! -e {gate} ]; do sleep 0.05; done; echo 'ERROR: singular matrix'; exit 3"
    job_id = submit(http, "long.sh", script.encode(), solver="sh", project="riser")
    with site.visit(f"#/job/{job_id}") as page:
        log = page.get_by_role("region", name="Log, stdout")
        expect(log).to_have_text("begun")
        expect(page.locator("#standing")).to_contain_text("for ")
        gate.touch()
        expect(log).to_contain_text("singular matrix")
        expect(page.get_by_role("region", name="Job")).to_contain_text("singular matrix")
        expect(page.get_by_role("region", name="Checks")).to_contain_text("exit 3, allowed 0")
        expect(page.get_by_role("region", name="Try")).to_contain_text("exit 3")
        expect(page.get_by_role("region", name="Inputs")).to_contain_text("long.sh")
        expect(page).to_have_title(re.compile("long.sh: failed"))
        keep_picture(page, "job-failed-1280", tmp_path)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_of_a_failed_job_stderr_is_shown_first_if_stdout_is_empty(site: Site, http: Http, name: str) -> None:
    """Which is known once that was read, however long it takes."""
    job_id = finished(http, "bad.sh", f"echo why >/dev/{name}; exit 1".encode(), solver="sh")
    held: list[Any] = []
    with site.visit() as page:
        page.route("**/logs/stdout*", lambda route: held.append(route))
        page.goto(f"{site.origin}/#/job/{job_id}")
        expect(page.get_by_role("button", name="stdout", exact=True)).to_have_attribute("aria-pressed", "true")
        page.wait_for_timeout(500)  # nothing is concluded from nothing
        held[0].continue_()
        expect(page.get_by_role("region", name=f"Log, {name}")).to_have_text("why")


def test_pictures_are_shown_and_files_come_down(site: Site, http: Http, tmp_path: Path) -> None:
    job_id = finished(http, "plots.sh", PLOTS, solver="sh")
    with site.visit(f"#/job/{job_id}") as page:
        for name in ("curve.svg", "dot.png"):
            image = page.get_by_role("img", name=name)
            expect(image).to_be_visible()
            wait_until(partial(image.evaluate, "image => image.complete && image.naturalWidth > 0"), f"{name} is drawn")
            assert str(image.get_attribute("src")).startswith("blob:")
        log = page.get_by_role("region", name="Log, stdout")
        expect(log).to_contain_text("20 %")
        assert log.inner_text().split("\n") == ["first", "red after", "20 %"]
        with page.expect_download() as coming:
            page.get_by_role("button", name="Download table.csv").click()
        assert coming.value.suggested_filename == "table.csv"
        assert Path(coming.value.path()).read_text() == "42\n"
        page.get_by_role("button", name="Enlarge curve.svg").click()
        expect(page.get_by_role("dialog").get_by_role("img", name="curve.svg")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.get_by_role("dialog")).to_have_count(0)
        expect(page).to_have_title(re.compile("plots.sh: succeeded"))
        keep_picture(page, "job-pictures-1280", tmp_path)
    assert http.get("/v1/status").json["paused"] == []


def test_leaving_a_job_ends_what_it_downloads(site: Site, http: Http) -> None:
    job_id = finished(http, "big.sh", b"echo 42 > big.bin", solver="sh")
    with site.visit(f"#/job/{job_id}", allowed=("Failed to load resource: net::ERR_",)) as page:
        page.route("**/files/output/big.bin", lambda _: None)  # it never comes
        with page.expect_request("**/big.bin"):
            page.get_by_role("button", name="Download big.bin").click()
        with page.expect_event("requestfailed", lambda request: request.url.endswith("big.bin")):
            page.get_by_role("link", name="Overview").click()
        expect(page.locator("#notes > *")).to_have_count(0)


def test_how_busy_it_was_is_drawn_and_read_by_keys(site: Site) -> None:
    values = [None] * 24 + [4.0] * 24 + [16.0] * 24 + [8.0] * 24
    series = [
        {"name": "cpus", "unit": "cores", "total": 16.0, "values": values},
        {"name": "license.orcaflex", "unit": "licenses", "total": 2.0, "values": [0.0] * 96},
        {"name": "waiting", "unit": "jobs", "total": None, "values": [2.0] * 96},
    ]
    until = datetime.now(UTC)
    since = until - timedelta(days=1)
    usage = {"since": since.isoformat(), "until": until.isoformat(), "step_seconds": 900.0, "series": series}
    with site.visit() as page:
        page.route("**/v1/usage?*", lambda route: route.fulfill(json=usage))
        page.reload()
        busy = page.get_by_role("region", name="Busy")
        cores = busy.get_by_role("slider", name="cores: 58 %")
        expect(cores.locator("path.area")).to_have_count(1)  # one piece: before it no daemon ran
        expect(busy.get_by_role("slider", name="waiting: 2 on average")).to_be_visible()
        expect(cores.locator("rect.gap")).to_have_count(1)
        expect(busy).to_contain_text("no daemon ran")
        expect(busy).to_contain_text("not used: license orcaflex")
        cores.focus()
        for key, told in {"Home": "no daemon ran", "End": "8 of 16", "ArrowLeft": "8 of 16"}.items():
            page.keyboard.press(key)
            expect(cores).to_have_attribute("aria-valuetext", re.compile(f": {told}$"))
            expect(busy).to_contain_text(told)
        page.keyboard.press("Escape")
        expect(busy).to_contain_text("58 %")
        expect(page.locator("#health")).to_be_visible()


def test_what_failed_has_the_width_it_needs(site: Site, http: Http) -> None:
    reason = "the largest residual is 1200 kN, " * 4
    finished(http, "bad.sh", f"echo 'ERROR: {reason}'; exit 1".encode(), solver="sh", name="wide-1")
    with site.visit() as page:
        panels = [page.get_by_role("region", name=name) for name in ("Running", "Waiting", "Failed")]
        expect(panels[2]).to_contain_text("the largest residual")
        running, waiting, failed = (place(panel) for panel in panels)
        assert running[1] == waiting[1] < failed[1]
        assert running[0] == failed[0] < waiting[0]
        page.goto(f"{site.origin}/#/jobs?q=wide-1")
        table = page.get_by_role("table", name="Jobs")
        expect(table.get_by_role("columnheader", name="Project")).to_have_count(0)
        box = table.get_by_role("cell", name="the largest residual").bounding_box()
        assert box is not None
        assert box["width"] > 350


def test_a_long_message_begins_folded(site: Site, http: Http, tmp_path: Path) -> None:
    script = f"echo 'ERROR: {'nothing converged at node 117; ' * 16}the end'; exit 1".encode()
    job_id = finished(http, "bad.sh", script, solver="sh")
    with site.visit(f"#/job/{job_id}", size=NARROW) as page:
        message, more = page.locator("#message"), page.get_by_role("button", name="more")
        expect(more).to_have_attribute("aria-expanded", "false")
        keep_pictures(page, "job-folded-390", tmp_path)
        folded = message.bounding_box()
        more.focus()
        page.keyboard.press("Enter")
        less = page.get_by_role("button", name="less")
        expect(less).to_be_focused()
        expect(less).to_have_attribute("aria-expanded", "true")
        whole = message.bounding_box()
        assert folded is not None
        assert whole is not None
        assert folded["height"] < 100 < whole["height"]


def test_nothing_sticks_out_of_a_phone(site: Site, http: Http, tmp_path: Path) -> None:
    long = "a-name-without-any-blank-that-goes-on-and-on-" * 4
    script = f"echo 'ERROR: {long}'; echo > {long}; exit 1".encode()
    job_id = finished(http, f"{long}.sh", script, solver="sh", project=long)
    with site.visit(size=NARROW) as page:
        for name, view in {"jobs": "jobs", "job": f"job/{job_id}", "machine": "machine"}.items():
            page.goto(f"{site.origin}/#/{view}")
            expect(page.get_by_role("region", name={"machine": "Limits"}.get(name, name.title()))).to_be_visible()
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
            keep_pictures(page, f"{name}-390", tmp_path)


# --- what may be done ------------------------------------------------------------------------------------------------


def test_a_job_is_cancelled_after_a_question_and_run_again(site: Site, http: Http) -> None:
    job_id = submit(http, "endless.sh", b"sleep 600", solver="sh")
    with site.visit(f"#/job/{job_id}") as page:
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Back").click()
        assert http.get(f"/v1/jobs/{job_id}").json["cancel"] is False
        page.get_by_role("button", name="Cancel").click()
        page.get_by_role("dialog").get_by_role("button", name="Cancel the job").click()
        expect(page.get_by_role("region", name="Job")).to_contain_text("cancelled")
        page.get_by_role("button", name="Retry").click()
        expect(page.get_by_role("region", name="About it")).to_contain_text(f"run again of{job_id}")
        expect(page.get_by_role("region", name="Job")).to_contain_text("running")
        page.go_back()
        expect(page.get_by_role("region", name="Job")).to_contain_text(job_id)


def test_pauses_limits_and_priorities_are_set_and_taken_back(site: Site, http: Http, tmp_path: Path) -> None:
    with site.visit() as page:
        page.get_by_role("button", name="Pause ...").click()
        page.get_by_label("Note for the others").fill("a new license file")
        page.get_by_role("dialog").get_by_role("button", name="Pause").click()
        known = page.get_by_role("list", name="To know")
        expect(known).to_contain_text("everything, since")
        expect(known).to_contain_text("a new license file")
        job_id = submit(http, "later.sh", b"exit 0", solver="sh")
        page.goto(f"{site.origin}/#/job/{job_id}")
        expect(page.get_by_role("region", name="Why it waits")).to_contain_text("paused")
        page.get_by_role("button", name="Priority ...").click()
        page.get_by_role("spinbutton", name="Priority").fill("7")
        page.get_by_role("dialog").get_by_role("button", name="Set").click()
        expect(page.get_by_role("region", name="About it")).to_contain_text("priority7")
        page.goto(f"{site.origin}/#/machine")
        page.get_by_role("button", name="Set the limit of max_jobs").click()
        page.get_by_label("At most (jobs)").fill("1")
        page.get_by_role("dialog").get_by_role("button", name="Set").click()
        expect(page.get_by_role("row", name=re.compile("^max_jobs"))).to_contain_text("by ")
        keep_picture(page, "machine-1280", tmp_path)
        page.get_by_role("button", name="Set the limit of memory").click()
        page.get_by_label("At most (GiB)").fill("0.25")
        page.get_by_role("dialog").get_by_role("button", name="Set").click()
        expect(page.get_by_role("row", name=re.compile("^memory"))).to_contain_text("256 MiB")
        page.get_by_role("button", name="memory as configured").first.click()
        page.get_by_role("link", name="Overview").click()
        expect(known).to_contain_text("max_jobs 1 (configured: 3)")
        known.get_by_role("button", name="max_jobs as configured").click()
        known.get_by_role("button", name="Resume everything").click()
        for name in ("max_jobs as configured", "Resume everything"):
            expect(page.get_by_role("button", name=name)).to_have_count(0)
    assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"


@pytest.mark.parametrize(
    ("role", "offered"),
    [("look", []), ("operate", ["Pause ...", "Retry shown"]), ("administer", ["Pause ...", "Retry shown", "Set ..."])],
)
def test_only_what_the_role_allows_is_offered(site: Site, http: Http, role: str, offered: list[str]) -> None:
    finished(http, "bad.sh", b"exit 1", solver="sh", name="shown")
    with site.visit() as page:
        page.route("**/v1/me", lambda route: route.fulfill(json={"user": "eve", "uid": 4, "role": role, "via": "tcp"}))
        page.reload()
        expect(page.get_by_role("region", name="Failed in 24 h")).to_contain_text("shown")
        found = [name for name in ("Pause ...", "Retry shown") if page.get_by_role("button", name=name).count()]
        page.goto(f"{site.origin}/#/machine")
        expect(page.get_by_role("table", name="Solvers")).to_be_visible()
        found += ["Set ..."] * bool(page.get_by_role("button", name="Set the limit").count())
        assert found == offered


# --- finding one's way -----------------------------------------------------------------------------------------------


def test_filters_stand_in_the_address_and_back_leads_back(site: Site, http: Http, tmp_path: Path) -> None:
    for n in range(3):
        finished(http, "good.sh", b"exit 0", solver="sh", name=f"anchor-{n}", project="anchors")
    finished(http, "bad.sh", b"exit 1", solver="sh", name="anchor-bad", project="anchors")
    with site.visit("#/jobs") as page:
        table = page.get_by_role("table", name="Jobs")
        page.get_by_label("Search").fill("ANCHOR-")
        rows = table.get_by_role("row")
        expect(rows).to_have_count(1 + 4)
        wait_until(lambda: page.evaluate("location.hash") == "#/jobs?q=ANCHOR-", "what was typed to be looked for")
        page.get_by_label("State").select_option("failed")
        expect(rows).to_have_count(1 + 1)
        assert page.evaluate("location.hash") == "#/jobs?q=ANCHOR-&state=failed"
        table.get_by_role("link", name="anchor-bad").click()
        expect(page.get_by_role("heading", name="anchor-bad")).to_be_visible()
        page.go_back()
        expect(rows).to_have_count(1 + 1)
        expect(page.get_by_label("Search")).to_have_value("ANCHOR-")
        page.go_back()
        expect(rows).to_have_count(1 + 4)
        keep_picture(page, "jobs-1280", tmp_path)
        page.get_by_label("Search").fill("nothing is called so")
        expect(page.get_by_text("No job is like that.")).to_be_visible()


def test_what_is_rare_in_a_long_history_is_found_again_when_it_changes(site: Site, http: Http) -> None:
    finished(http, "rare.sh", b"exit 0", solver="sh", name="rare-0")
    before = {**http.get("/v1/jobs?limit=1").json["jobs"][0], "id": "old-1", "name": "found-before"}
    asked: list[str] = []

    def looked_at_in_parts(route: Any) -> None:
        """As of a history of which one question looks only at a part: the second finds one, the third none."""
        asked.append(route.request.url)
        further = re.search(r"cursor=(\d)", route.request.url)
        rows = ([before] if further[1] == "1" else []) if further else route.fetch().json()["jobs"]
        route.fulfill(json={"jobs": rows, "next": str(int(further[1]) + 1) if further else "1"})

    with site.visit() as page:
        page.route("**/v1/jobs?q=rare*", looked_at_in_parts)
        page.goto(f"{site.origin}/#/jobs?q=rare")
        table = page.get_by_role("table", name="Jobs")
        expect(table).to_contain_text("found-before")
        expect(page.get_by_role("button", name="Search further")).to_be_visible()
        asked.clear()
        finished(http, "rare.sh", b"exit 0", solver="sh", name="rare-1")
        expect(table.get_by_role("row").nth(1)).to_contain_text("rare-1", timeout=SOONER_MS)
        expect(table.get_by_role("row").nth(1)).to_contain_text("succeeded")
        expect(table).to_contain_text("found-before")
        assert not [url for url in asked if "cursor=" in url], "only the first page is asked for again"


def test_everything_is_reached_by_keys_and_has_a_name(site: Site, http: Http) -> None:
    finished(http, "good.sh", b"exit 0", solver="sh")
    finished(http, "bad.sh", b"echo 'ERROR: by keys'; exit 1", solver="sh", name="by-keys")
    with site.visit() as page:
        expect(page.get_by_role("table").get_by_role("link", name="by-keys")).to_be_visible()
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="To the content")).to_be_focused()
        focus_by_keys(page, "Retry by-keys")
        page.keyboard.press("/")
        expect(page.get_by_label("Search")).to_be_focused()
        page.keyboard.press("Escape")
        first, second = (page.get_by_role("table").get_by_role("link").nth(n) for n in (0, 1))
        first.focus()
        page.keyboard.press("ArrowDown")
        expect(second).to_be_focused()
        page.keyboard.press("ArrowUp")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", name="by-keys")).to_be_visible()
        for landmark in ("banner", "main", "navigation"):
            expect(page.get_by_role(landmark)).to_have_count(1)
        page.keyboard.press("Escape")
        expect(page.locator("#health")).to_be_visible()
        nameless = page.evaluate(
            """[...document.querySelectorAll("a, button, input, select, [tabindex='0'], img")].filter(
              (one) => !(one.innerText || "").trim() && !one.ariaLabel && !one.labels?.length && one.alt === undefined
            ).map((one) => one.outerHTML)"""
        )
        assert nameless == []
