"""``solvisor report`` of a home without a daemon: what is printed, what programs get, and the page it writes."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from cli_kit import Run, command_line
from report_kit import CONFIG, make_past
from solvisor.clock import now_us
from solvisor.figures import Report

JOBS = 600
HOSTILE = (
    "</title><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">",
    "\"'><svg onload=document.title='owned'>&lt;b&gt;",
    "]]></style><iframe src=javascript:alert(1)>\x1b[2Jred\u202eevil",
)


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("past") / "solvisor.db"
    make_past(db, JOBS, now_us())
    return db


@pytest.fixture
def home(past: Path, tmp_path: Path) -> Path:
    home = tmp_path / "home"
    (home / "state").mkdir(parents=True)
    (home / "solvisor.toml").write_text(CONFIG)
    shutil.copy(past, home / "state" / "solvisor.db")
    return home


@pytest.fixture
def run(home: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("TZ", "UTC")
    return command_line(tmp_path, capfdbinary, monkeypatch)


def test_the_text_tells_all_of_it_and_is_plain_where_it_is_piped(run: Run) -> None:
    told = run("report")
    assert told.status == 0
    assert f"JOBS     {JOBS} ended: " in told.out
    heads = [line.split()[0] for line in told.lines if line and not line.startswith(" ")]
    for word in ("BUSY", "WAITED", "SOLVER", "FAILED", "USER", "CHANGE"):
        assert word in heads
    assert re.search(r"^ccx +\d+ +\d+ +.* 1\.1 of 4 +2\.\d GiB of 8 GiB$", told.out, re.MULTILINE)
    assert re.search(r"^ +\[solver\.ccx\] cpus = [12]$", told.out, re.MULTILINE)
    assert "\x1b" not in told.out
    assert "█" not in told.out


def test_programs_get_the_documented_record(run: Run) -> None:
    told = run("report", "--json", "--since", "30d")
    report = msgspec.json.decode(told.out.encode(), type=Report)
    assert report.jobs == JOBS == sum(solver.jobs for solver in report.solvers)
    assert {solver.name for solver in report.solvers} == {"ccx", "orcaflex", "modelica", "ffmpeg"}
    assert report.kept_since is not None
    assert report.kept_since > report.since, "a month ago nothing was kept"
    assert len(report.usage.series[0].values) == 168


def test_a_period_without_jobs_is_told_so(run: Run) -> None:
    told = run("report", "--since", "2020-01-01", "--until", "2020-02-01")
    assert told.status == 0
    assert "0 ended" in told.out
    assert "how busy it was is not known" in told.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--since", "last week"], "'last week': write it like 2h, 7d, 2026-11-01 or 2026-11-01T08:00"),
        (["--until", "9999-01-01"], "is not a time; write it like 2026-11-01T08:00:00Z"),
        (["--since", "1h", "--until", "2h"], "since is not before until"),
        (["--json", "--html", "x"], "not allowed with"),
        (["--html", "no/such/folder/x.html"], "no/such/folder/x.html: No such file or directory"),
    ],
)
def test_what_makes_no_sense_is_refused(run: Run, arguments: list[str], said: str) -> None:
    told = run("report", *arguments)
    assert told.status in (1, 2)
    assert said in told.err


# --- the page -------------------------------------------------------------------------------------------------------

OURS = {
    *("html", "head", "meta", "title", "style", "body", "main", "header", "section", "article", "footer", "div"),
    *("h1", "h2", "h3", "p", "span", "b", "i", "pre", "ol", "ul", "li", "table", "thead", "tbody", "tr", "th", "td"),
    *("figure", "figcaption", "svg", "rect", "line", "path", "text"),
}


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(run: Run, tmp_path: Path) -> str:
    told = run("report", "--html", "report.html")
    assert (told.status, told.out) == (0, "")
    assert "wrote report.html" in told.err
    return (tmp_path / "report.html").read_text()


def make_hostile(home: Path) -> None:
    """Everything that people and solvers say is made to look like something else."""
    with closing(sqlite3.connect(home / "state" / "solvisor.db", isolation_level=None)) as connection:
        connection.execute("UPDATE jobs SET user = ?, project = ?", HOSTILE[:2])
        connection.execute("UPDATE jobs SET message = ?, code = ? WHERE message IS NOT NULL", HOSTILE[:0:-1])
        connection.execute("UPDATE jobs SET solver = ? WHERE solver = 'ffmpeg'", (HOSTILE[0],))
        connection.execute(
            "UPDATE usage SET sums = CAST(replace(CAST(sums AS TEXT), 'orcaflex', 'orca<b>flex</b>') AS BLOB)"
        )


def test_the_page_is_one_file_that_asks_for_nothing(run: Run, tmp_path: Path) -> None:
    page = page_of(run, tmp_path)
    found = Page(page)
    assert found.open == [], "all that was opened is closed"
    assert found.tags <= OURS
    assert not {"href", "src", "style", "xlink:href"} & found.attributes
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r"https?://|url\(|@import", page)
    assert {"Solvers", "What to change", "How busy it was", "What jobs waited for", "Who"} <= set(found.words)
    assert page.count("<figure>") == 4, "cores, memory, one license, waiting"
    assert len(page) < 300_000


def test_fault_76_hostile_names_and_messages_are_text_on_the_page(run: Run, home: Path, tmp_path: Path) -> None:
    make_hostile(home)
    page = page_of(run, tmp_path)
    found = Page(page)
    assert found.open == []
    assert found.tags <= OURS
    assert not any(name.startswith("on") for name in found.attributes)
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page)
    for text in HOSTILE[:2]:
        assert text in found.words, "and it is shown as it is"
    assert "License orca<b>flex</b>" in found.words


def test_fault_76_hostile_names_and_messages_do_nothing_to_a_terminal(run: Run, home: Path) -> None:
    make_hostile(home)
    told = run("report")
    assert told.status == 0
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", told.out)
    assert HOSTILE[0] in told.out


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no chromium")
def test_fault_76_a_browser_runs_nothing_of_it(run: Run, home: Path, tmp_path: Path) -> None:
    make_hostile(home)
    page_of(run, tmp_path)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    url = f"file://{tmp_path}/report.html"
    done = subprocess.run([*command, "--dump-dom", url], capture_output=True, text=True, timeout=120, check=True)
    dom = Page(done.stdout)
    assert dom.tags <= OURS
    assert "owned" not in re.findall("<title>(.*?)</title>", done.stdout)[0]
