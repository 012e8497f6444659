"""The modules of the page by themselves, in a browser without a daemon: words, logs, events, charts, colours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import solvisor_service
from page_kit import chromium
from solvisor_service.cli import text

pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")

WEB = Path(solvisor_service.__file__).parent / "web"
ORIGIN = "http://page.test"
KINDS = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs a function body with the exports of a module and ``given``."""
    with chromium() as browser:
        page = browser.new_page()

        def serve(route: Any) -> None:
            path = WEB / route.request.url.removeprefix(f"{ORIGIN}/assets/")
            if path.is_file():
                route.fulfill(body=path.read_bytes(), content_type=KINDS[path.suffix])
            else:
                route.fulfill(body="", content_type="text/html")

        page.route("**/*", serve)
        page.goto(f"{ORIGIN}/")

        def call(module: str, body: str, given: Any = None) -> Any:
            return page.evaluate(f"async (given) => {{ const page = await import('/assets/{module}'); {body} }}", given)

        yield call


# --- words -----------------------------------------------------------------------------------------------------------


def test_durations_and_sizes_are_told_as_on_the_command_line(run: Run) -> None:
    seconds = [
        0,
        0.0001,
        0.004,
        0.06,
        0.0994,
        0.0996,
        0.1,
        0.123,
        0.994,
        0.996,
        5,
        9.94,
        9.96,
        34.4,
        59.7,
        60,
        250,
        599,
        601,
        1320,
        3599,
        4320,
    ]
    seconds += [86399, 86400, 100000, 518400.0, 3e6, -1]
    told = run("format.js", "return given.map(page.duration)", seconds)
    assert told == [text.duration(each) for each in seconds]
    sizes = [0, 1, 512, 999, 1000, 1023, 1024, 1_572_864, 10_000_000, 57 << 30, 128 << 30, 1 << 50]
    assert run("format.js", "return given.map(page.size)", sizes) == [text.size(each) for each in sizes]
    pairs = [[71 << 30, 128 << 30], [0, 1 << 20], [5, 100]]
    told = run("format.js", "return given.map(([used, total]) => page.share(used, total))", pairs)
    assert told == [text.share(used, total) for used, total in pairs]


def test_times_are_told_by_how_long_ago_they_are(run: Run) -> None:
    body = "const at = (...when) => new Date(...when).toISOString();"
    body += "const now = Date.parse(at(2026, 10, 23, 12, 0));"
    body += "return given.map((when) => page.clock(at(...when), now))"
    given = [[2026, 10, 23, 9, 5], [2026, 10, 2, 14, 5], [2025, 0, 2, 14, 5]]
    assert run("format.js", body, given) == ["09:05", "2 Nov 14:05", "2 Jan 2025"]


# --- what solvers print ----------------------------------------------------------------------------------------------

PRINTED = (
    "plain\n\x1b[1;31mred\x1b[0m\n\x1b]0;a title\x07titled\n\x1b]8;;http://evil.test\x1b\\link\x1b]8;;\x1b\\\n"
    "10 %\r20 %\r\n\x1b[2J\x1b[Hcleared\n\x9b31mc1\n\x1bPdevice\x1b\\after\nb\x08ell\x07\n"
    "\u202egpj\u2069.exe\n\x1b(Bset\n"
    "t\tab é 漢\nhalf \x1b["
)
SHOWN = "plain\nred\ntitled\nlink\n20 %\ncleared\nc1\nafter\nbell\ngpj.exe\nset\nt\tab é 漢\nhalf "


def test_fault_76_what_moves_a_cursor_is_taken_out_of_logs_wherever_it_is_cut(run: Run) -> None:
    body = "return given.cuts.map((cut) => { const log = new page.LogText();"
    body += "const bytes = new Uint8Array(given.bytes);"
    body += "log.feed(bytes.slice(0, cut)); log.feed(bytes.slice(cut)); return log.text; })"
    data = PRINTED.encode()
    shown = run("logtext.js", body, {"bytes": list(data), "cuts": list(range(len(data) + 1))})
    assert set(shown) == {SHOWN}


def test_a_log_without_end_takes_no_memory_without_end(run: Run) -> None:
    body = "const log = new page.LogText(); const line = new TextEncoder().encode('x'.repeat(999) + '\\n');"
    body += "for (let n = 0; n < 2000; n += 1) log.feed(line);"
    body += "const endless = new TextEncoder().encode('y'.repeat(100000));"
    body += "for (let n = 0; n < 20; n += 1) log.feed(endless);"
    body += "return [log.text.length, log.cut]"
    length, cut = run("logtext.js", body)
    assert cut
    assert 300_000 < length < 500_000


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_are_read_wherever_the_stream_is_cut(run: Run) -> None:
    stream = 'id: a-1\nevent: hello\ndata: {"cursor":"a-1"}\n\n: still there\n\n'
    stream += "id: a-2\r\nevent: job\r\ndata: [1,\r\ndata: 2]\r\n\r\n"
    body = "return given.cuts.map((cut) => { const heard = [];"
    body += "const parser = new page.EventParser((name, data) => heard.push([name, JSON.parse(data), parser.lastId]));"
    body += "parser.feed(given.stream.slice(0, cut)); parser.feed(given.stream.slice(cut)); return heard; })"
    heard = run("events.js", body, {"stream": stream, "cuts": list(range(len(stream) + 1))})
    assert {json.dumps(each) for each in heard} == {
        json.dumps([["hello", {"cursor": "a-1"}, "a-1"], ["job", [1, 2], "a-2"]])
    }


# --- charts ---------------------------------------------------------------------------------------------------------


def test_where_no_daemon_ran_a_chart_has_a_gap(run: Run) -> None:
    body = "return [page.areas(given, 4, 40, 100), page.mean(given), page.mean([null])]"
    assert run("chart.js", body, [1, None, 4, 9]) == [
        ["M0.0,100L0.0,75.0L10.0,75.0L10.0,100Z", "M20.0,100L20.0,0.0L30.0,0.0L30.0,0.0L40.0,0.0L40.0,100Z"],
        14 / 3,
        None,
    ]


def test_a_resource_is_told_as_not_used_only_where_there_is_evidence(run: Run) -> None:
    body = "const usage = { step_seconds: 900 };"
    body += "return given.map(([name, values, status]) => page.isUnknown(usage, { name, values }, status))"
    idle = {"up_seconds": 102.0, "cpus": {"used": 0}, "memory_bytes": {"used": 0}, "licenses": {"a": {"used": 0}}}
    old = idle | {"up_seconds": 7200.0}
    young = [None] * 95 + [0]
    cases = [
        ("license.a", young, idle, True),  # only just begun
        ("license.a", young, old, False),
        ("license.a", [None] * 90 + [0] * 6, idle, False),  # an earlier life has seen it
        ("license.a", [0] * 96, old | {"licenses": {"a": {"used": 2}}}, True),  # taken within this minute
        ("memory", [0] * 96, old | {"memory_bytes": {"used": 1}}, True),
        ("license.memory", [0] * 96, old | {"memory_bytes": {"used": 1}}, False),  # is not the memory
        ("license.gone", [0] * 96, old, False),  # not configured any more
    ]
    assert run("busy.js", body, [case[:3] for case in cases]) == [case[3] for case in cases]


def test_times_without_a_daemon_are_bands(run: Run) -> None:
    given = [None, None, 1, None, 0, None]
    assert run("chart.js", "return page.gaps(given)", given) == [[0, 2], [3, 4], [5, 6]]


def test_elements_stay_where_they_are_when_what_is_shown_changes(run: Run) -> None:
    body = """
      const { h, lay } = page;
      const root = document.body.appendChild(document.createElement("div"));
      const show = (...keys) => lay(root, keys.map((key) => h("a", { key, href: `#${key}` }, key)));
      show("a", "b", "c");
      const b = root.children[1];
      b.focus();
      show("new", "b", "c", "d");
      const kept = [root.children[1] === b, document.activeElement === b, root.textContent];
      lay(root, h("p", { onclick: () => {}, title: "x" }, "<b>text</b>\\u202e", null, false, 0));
      const p = root.firstChild;
      lay(root, h("p", {}, "other"));
      return [...kept, p === root.firstChild, p.onclick, p.title, p.outerHTML];
    """
    assert run("dom.js", body) == [True, True, "newbcd", True, None, "", "<p>other</p>"]


# --- colours ---------------------------------------------------------------------------------------------------------

TEXT_ON = {
    "ink": ("back", "panel", "quiet-back", "busy-back", "good-back", "warn-back", "bad-back"),
    "dim": ("back", "panel", "quiet-back"),
    "accent": ("panel", "back", "busy-back"),
    "good": ("panel", "back", "good-back"),
    "warn": ("panel", "back", "warn-back"),
    "bad": ("panel", "back", "bad-back"),
    "on-accent": ("accent",),
    "on-bad": ("bad",),
    "panel": ("ink",),
}


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_every_text_has_enough_contrast(scheme: int) -> None:
    css = (WEB / "page.css").read_text()
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", css.split(":root {")[1 + scheme].split("}")[0]))
    poor = {
        f"{front} on {back}": round(found, 2)
        for front, backs in TEXT_ON.items()
        for back in backs
        if (found := contrast(colours[front], colours[back])) < 4.5
    }
    assert poor == {}


def contrast(one: str, other: str) -> float:
    """As WCAG 2.2 defines it."""
    low, high = sorted(map(luminance, (one, other)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
