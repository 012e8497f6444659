"""Draw ``docs/images/speed.svg`` from what the benchmarks kept: Solvisor beside its peers, by what each would lose.

Three figures side by side, a row for each runner: no-op jobs a second as a share of the floor, one job on an idle
system, processor time. Rules: written by hand as text, nothing is needed to draw or to see it; light and dark; every
figure has its spread, and at the foot stands on which machine and when it was taken.

    python benchmarks/plot.py [FOLDER [PICTURE]]
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from race import RESTLESS
from record import RESULTS, ROOT
from runners import Floor, Solvisor

PICTURE = ROOT / "docs" / "images" / "speed.svg"

WIDTH = 960
EDGE = 28
NAMES_AT, PANELS_AT = EDGE, 236
PANEL_GAP = 34
HEAD, ROW, BAR, BETWEEN, FOOT = 124, 27, 13, 38, 62
VALUE_ROOM, BEYOND = 48, 12
"""Right of the longest bar: for its figure, and for the end of its spread."""

NONE = "\N{EN DASH}"

GROUPS = {
    "nothing": "kill -9 loses nothing",
    "what runs": "kill -9 loses what runs",
    "all": "kill -9 loses everything",
}

STYLE = """
  text { font: 13px system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
  .card { fill: #ffffff; stroke: #dde2e8; } .ink { fill: #1b2027; } .dim { fill: #56606b; } .line { stroke: #dde2e8; }
  .bar { fill: #a9b7c6; } .own { fill: #0b5cad; } .spread { stroke: #1b2027; stroke-width: 1.2; fill: none; }
  .title { font-size: 21px; font-weight: 650; } .bold { font-weight: 650; } .small { font-size: 12px; }
  .end { text-anchor: end; }
  .group { font-size: 11.5px; font-weight: 650; letter-spacing: 0.04em; } .ours { fill: #0b5cad; font-weight: 650; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #181d24; stroke: #2c343e; } .ink { fill: #e4e9ee; } .dim { fill: #9ba7b4; } .line { stroke: #2c343e; }
    .bar { fill: #566574; } .own { fill: #4b9be8; } .spread { stroke: #e4e9ee; } .ours { fill: #78b7f5; }
  }
"""


class Value(NamedTuple):
    """One figure, and how far it went either way."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, spread: Mapping[str, float]) -> Value:
        return cls(spread["median"], spread["min"], spread["max"])


class Panel(NamedTuple):
    """One kind of figure; runners that have none are not in ``values``."""

    title: str
    better: str
    note: str
    values: Mapping[str, Value]
    digits: int


class Plot(NamedTuple):
    """All that is drawn. ``groups``: names of runners below the head of each, in their order."""

    title: str
    note: str
    groups: Mapping[str, Sequence[str]]
    panels: Sequence[Panel]
    own: str
    foot: Sequence[str]


def plot_of(throughput: Mapping[str, Any], latency: Mapping[str, Any]) -> Plot:
    """What is drawn of the two questions' reports."""
    ran = {name: told for name, told in throughput["runners"].items() if "left_out" not in told}
    single = {name: told for name, told in latency["runners"].items() if "left_out" not in told}
    one = Value.of({"median": 1.0, "min": 1.0, "max": 1.0})
    rates = {name: Value.of(told["ratio"]) for name, told in ran.items()} | {Floor.name: one}
    groups = {
        head: sorted(
            (name for name in rates if (ran[name]["loses"] if name in ran else Floor.loses) == loses),
            key=lambda name: -rates[name].median,
        )
        for loses, head in GROUPS.items()
    }
    milliseconds = {name: Value.of(told["round_ms"]) for name, told in single.items()}
    milliseconds[Floor.name] = Value.of(latency["floor"]["round_ms"])
    cpu = {name: Value.of(told["cpu_ms"]) for name, told in ran.items()}
    cpu[Floor.name] = Value.of(throughput["floor"]["cpu_ms"])
    panels = (
        Panel("jobs a second", "more is better", "share of the bare spawn loop", rates, 2),
        Panel("one job alone", "less is better", "ms from handing in to result", milliseconds, 1),
        Panel("processor time", "less is better", "ms a job, its own included", cpu, 1),
    )
    machine = throughput["machine"]
    floor = throughput["floor"]
    swings = (throughput["floor_swing"], latency["floor_swing"])
    restless = "  ·  A restless machine: a hint only." if max(swings) > RESTLESS else ""
    foot = (
        f"{throughput['when'][:10]}  ·  {machine['cores']} cores, {machine['cpu']}  ·  {machine['system']}, "
        f"{machine['disk']}, Python {machine['python']}  ·  Solvisor {machine['solvisor']}",
        f"Medians of {throughput['rounds']} rounds, in turns; lines from the least to the most. The bare spawn loop: "
        f"{floor['median']:,.0f} jobs a second ({floor['min']:,.0f} to {floor['max']:,.0f}).{restless}",
    )
    return Plot(
        "What a job costs",
        "Jobs that do nothing, two at a time. Solvisor keeps every job, result and measurement durably.",
        {head: names for head, names in groups.items() if names},
        panels,
        Solvisor.name,
        foot,
    )


def svg(plot: Plot) -> str:
    """The picture."""
    rows = sum(map(len, plot.groups.values()))
    height = HEAD + rows * ROW + len(plot.groups) * BETWEEN + FOOT
    width = (WIDTH - EDGE - PANELS_AT - PANEL_GAP * (len(plot.panels) - 1)) / len(plot.panels)
    at = [PANELS_AT + number * (width + PANEL_GAP) for number in range(len(plot.panels))]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-labelledby="speed-title speed-says">',
        f'<title id="speed-title">{escape(plot.title)}</title>',
        f'<desc id="speed-says">{escape(_says(plot))}</desc>',
        f"<style>{STYLE}</style>",
        f'<rect class="card" x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="10"/>',
        _text(EDGE, 42, plot.title, "ink title"),
        _text(EDGE, 64, plot.note, "dim"),
    ]
    for panel, x in zip(plot.panels, at, strict=True):
        parts += [
            _text(x, 98, panel.title, "ink bold"),
            _text(x + width, 98, panel.better, "dim small end"),
            _text(x, 114, panel.note, "dim small"),
        ]
    y: float = HEAD
    for head, names in plot.groups.items():
        y += BETWEEN
        parts.append(f'<path class="line" d="M{EDGE} {y - 24:g}H{WIDTH - EDGE}"/>')
        parts.append(_text(NAMES_AT, y - 7, head, "dim group"))
        for name in names:
            parts.append(_text(NAMES_AT, y + BAR + 4, name, "ours" if name == plot.own else "ink"))
            for panel, x in zip(plot.panels, at, strict=True):
                parts += _bar(panel, name, x, y + 6, width, "own" if name == plot.own else "bar")
            y += ROW
    parts += [_text(EDGE, height - 34 + 18 * number, line, "dim small") for number, line in enumerate(plot.foot)]
    return "\n".join([*parts, "</svg>", ""])


def _bar(panel: Panel, name: str, x: float, y: float, width: float, colour: str) -> Iterator[str]:
    value = panel.values.get(name)
    if value is None:
        yield _text(x + width, y + BAR - 2, NONE, "dim small end")
        return
    scale = (width - VALUE_ROOM) / max(each.median for each in panel.values.values())
    end = x + max(1.0, value.median * scale)
    furthest = x + width - VALUE_ROOM + BEYOND
    least, most = x + value.least * scale, min(x + value.most * scale, furthest)
    words = f"{name}: {value.median:.{panel.digits}f} ({value.least:.{panel.digits}f} to {value.most:.{panel.digits}f})"
    yield f'<rect class="{colour}" x="{x:.1f}" y="{y:g}" width="{end - x:.1f}" height="{BAR}" rx="2">'
    yield f"<title>{escape(words)}</title></rect>"
    if not math.isclose(least, most):
        further = "m-4 -3l4 3l-4 3" if most == furthest else ""  # an arrow: it goes on
        yield f'<path class="spread" d="M{least:.1f} {y + BAR / 2:g}H{most:.1f}{further}"/>'
    figure = f"{value.median:.{panel.digits}f}"
    yield _text(x + width, y + BAR - 2, figure, "ours small end" if colour == "own" else "ink small end")


def _text(x: float, y: float, words: str, colour: str) -> str:
    return f'<text class="{colour}" x="{x:.1f}" y="{y:g}">{escape(words)}</text>'


def _says(plot: Plot) -> str:
    """For who cannot see it."""
    parts = []
    for panel in plot.panels:
        figures = ", ".join(f"{name} {value.median:.{panel.digits}f}" for name, value in panel.values.items())
        parts.append(f"{panel.title} ({panel.note}): {figures}.")
    return " ".join(parts)


def draw(results: Path, picture: Path) -> None:
    """From ``throughput.json`` and ``latency.json`` in ``results``."""
    throughput, latency = (json.loads((results / f"{name}.json").read_text()) for name in ("throughput", "latency"))
    picture.write_text(svg(plot_of(throughput, latency)))


if __name__ == "__main__":
    results, picture = [*map(Path, sys.argv[1:]), *(RESULTS, PICTURE)[len(sys.argv) - 1 :]][:2]
    draw(results, picture)
