"""The report of a period as one HTML file that needs nothing else: to be mailed, printed, put beside the minutes.

Rules: no script, no request to anywhere, and the page forbids both itself; what comes from users, solvers and messages
goes through ``markup`` alone. It is made for a screen of any width, light or dark, and for A4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from solvisor import __version__
from solvisor.figures import Advice, Report, Series, SolverFigures
from solvisor.views import waited_for
from solvisor_service.cli.text import size

from . import plots, words
from .markup import Child, Markup, document, lines, style, tag
from .sheet import SHEET

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_STACKED: Final = ("license", "cpus", "memory", "jobs", "server", "solver", "dependency", "paused", "backoff", "disk")
"""Reasons in the order in which they lie on one another, those with the most to be done about first."""


def page(report: Report) -> str:
    """The whole file."""
    host = f"{report.host}, " if report.host else ""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{host}{words.title_of(report)}: Solvisor"),
        style(SHEET),
    )
    body = tag("body", tag("main", _head(report), _tiles(report), *_sections(report), _foot(report)))
    return document(head, body)


def _head(report: Report) -> Markup:
    name = [report.host, " "] if report.host else []
    period = tag("span", words.title_of(report), class_="period")
    times = f"{words.instant(report.since)} to {words.instant(report.until)}; {words.presence(report)}"
    return tag("header", tag("p", "Solvisor report", class_="brand"), tag("h1", *name, period), tag("p", times))


def _tiles(report: Report) -> Markup:
    ran = report.succeeded + report.failed
    tiles = [
        ("Jobs ended", f"{report.jobs:,}", ", ".join(f"{number:,} {word}" for word, number in words.ends(report))),
        (
            "Succeeded",
            words.percent(report.succeeded / ran) if ran else "none",
            "of those that succeeded or failed" if ran else "nothing ran to its end",
        ),
        ("Core-hours", words.core_hours(report.core_seconds), "reserved by jobs while they ran"),
    ]
    tiles += [
        (stretch.title.capitalize(), words.percent(stretch.share), stretch.words)
        for stretch in words.stretches(report)[:1]
    ]
    waited = sum(wait.job_seconds for wait in report.waits)
    if report.waits:
        most = report.waits[0]
        told = f"{words.percent(most.share)} of it for {waited_for(most.reason, most.what)}"
        tiles.append(("Waited, all jobs", words.hours(waited), told))
    return tag(
        "div",
        [
            tag("div", tag("p", title, class_="what"), tag("p", value, class_="value"), tag("p", said, class_="said"),
                class_="tile")
            for title, value, said in tiles
        ],
        class_="tiles",
    )  # fmt: skip


def _sections(report: Report) -> Iterator[Markup]:
    yield _advice(report.advice, report.jobs)
    yield from _busy(report)
    if report.solvers:
        yield _solvers(report)
    if report.people:
        yield _people(report)


def _section(title: str, *content: Child, class_: str | None = None) -> Markup:
    return tag("section", tag("h2", title), *content, class_=class_)


def _advice(advice: Sequence[Advice], jobs: int) -> Markup:
    if not advice:
        none = "Nothing stands out." if jobs else "No job ended in this period."
        return _section("What to change", tag("p", none, class_="quiet"))
    items = [
        tag(
            "li",
            tag("p", f"{each.text[:1].upper()}{each.text[1:]}."),
            tag("pre", lines(f"[{each.section}]", each.line)) if each.section and each.line else None,
        )
        for each in advice
    ]
    return _section("What to change", tag("ol", items, class_="advice"))


# --- how busy it was ------------------------------------------------------------------------------------------------


def _busy(report: Report) -> Iterator[Markup]:
    series = {each.name: each for each in report.usage.series}
    if report.kept_since is None:
        return
    charts = [_chart(report, series["cpus"], "Cores", "fill-cpus")] if "cpus" in series else []
    memory = next((level for level in report.levels if level.name == "memory"), None)
    if memory is not None and memory.peak and "memory" in series:
        charts.append(_chart(report, series["memory"], "Memory", "fill-memory"))
    charts += [
        _chart(report, each, f"License {name.removeprefix('license.')}", "fill-license")
        for name, each in series.items()
        if name.startswith("license.")
    ]
    yield _section("How busy it was", charts)
    if report.waits:
        yield _section("What jobs waited for", _waiting(report, series), _waits_table(report))
    told = [hour.cpus for hour in report.hours]
    if any(told):
        total = series["cpus"].total or 0.0
        says = "mean cores taken in each hour of the day"
        chart = plots.day(told, total, says=says, tell=_count)
        yield _section(
            "Hours of the day", tag("p", "Mean cores taken, by local time.", class_="quiet"), chart, _most(report)
        )


def _chart(report: Report, series: Series, title: str, colour: str) -> Markup:
    tell = _size if series.unit == "bytes" else _count
    level = next((level for level in report.levels if level.name == series.name), None)
    said = words.stretch(level).words if level is not None else ""
    chart = plots.over_time(
        [plots.Layer(title, series.values, colour)],
        words.local(report.since),
        report.usage.step_seconds,
        total=series.total,
        says=f"{title} over time: {said}",
        tell=tell,
        height=130,
    )
    share = words.percent(words.stretch(level).share) if level is not None and level.total else ""
    caption = tag("figcaption", tag("b", title), " ", tag("span", share, class_="share"), " ", said)
    return tag("figure", caption, tag("div", chart, class_="wide"))


def _waiting(report: Report, series: dict[str, Series]) -> Markup:
    reasons = [wait.reason for wait in report.waits]
    shown = [reason for reason in (*_STACKED, *reasons) if reason in reasons]
    layers = [
        plots.Layer(waited_for(reason, None), series[f"waiting.{reason}"].values, f"why-{reason}")
        for reason in dict.fromkeys(shown)
        if f"waiting.{reason}" in series
    ]
    chart = plots.over_time(
        layers,
        words.local(report.since),
        report.usage.step_seconds,
        total=None,
        says="queued jobs over time, by what they waited for",
        tell=_count,
        height=170,
    )
    legend = [tag("li", tag("i", class_=layer.colour), layer.name) for layer in layers]
    return tag("figure", tag("ul", legend, class_="legend"), tag("div", chart, class_="wide"))


def _waits_table(report: Report) -> Markup:
    rows = [
        (
            _bar(wait.share, f"why-{wait.reason}"),
            waited_for(wait.reason, wait.what),
            words.percent(wait.share),
            words.hours(wait.job_seconds),
            words.hours(wait.seconds),
            f"{wait.idle_cores:.1f}",
        )
        for wait in report.waits
    ]
    titles = ("", "Waited for", "Share", "By all jobs", "By the clock", "Cores idle meanwhile")
    return _table(titles, rows, right={2, 3, 4, 5})


def _most(report: Report) -> Markup | None:
    if not report.busiest:
        return None
    told = [
        tag("li", f"{words.instant(hour.start)}: {hour.cpus:.1f} cores, {words.count(hour.waiting)} waiting")
        for hour in report.busiest
    ]
    return tag("div", tag("h3", "The busiest hours"), tag("ul", told, class_="plain"))


# --- jobs -----------------------------------------------------------------------------------------------------------


def _solvers(report: Report) -> Markup:
    titles = (
        *("Solver", "Jobs", "Failed", "Ran: half within", "95 %", "longest", "Waited: half", "95 %"),
        *("Cores used", "Peak memory"),
    )
    rows = []
    for solver in report.solvers:
        failed = tag("b", f"{solver.failed:,}", class_="bad") if solver.failed else "0"
        rows.append(
            (
                tag("b", _name(solver.name)),
                f"{solver.jobs:,}",
                failed,
                *words.span(solver.run),
                *words.span(solver.queue)[:2],
                words.cores_used(solver),
                words.memory_used(solver),
            )
        )
    largest = any(solver.memory is not None and not solver.memory.whole_tree for solver in report.solvers)
    note = None
    if largest:
        note = tag("p", "> is that of the largest process: all together may have taken more.", class_="quiet")
    cards = tag("div", [_card(solver) for solver in report.solvers if solver.run or solver.failures], class_="cards")
    return _section("Solvers", _table(titles, rows, right=set(range(1, 10))), note, cards)


def _card(solver: SolverFigures) -> Markup:
    parts = [tag("h3", _name(solver.name))]
    remarks = words.remarks(solver)
    if remarks:
        parts.append(tag("p", ", ".join(remarks), class_="quiet"))
    if any(solver.run_counts):
        first = next(at for at, number in enumerate(solver.run_counts) if number)
        last = max(at for at, number in enumerate(solver.run_counts) if number)
        first, last = max(0, first - 1), min(len(solver.run_counts) - 1, last + 1)
        says = f"how many jobs of {solver.name} ran for how long"
        labels = words.EDGES[first:last]
        parts.append(tag("p", "Jobs by how long they ran", class_="caption"))
        parts.append(
            plots.bars(solver.run_counts[first : last + 1], labels, says=says, colour="fill-run", between=True)
        )
    if solver.waits:
        told = [f"{waited_for(wait.reason, wait.what)} {words.percent(wait.share)}" for wait in solver.waits[:3]]
        parts.append(tag("p", tag("b", "Waited for "), ", ".join(told)))
    if solver.failures:
        parts.append(tag("p", tag("b", "Failed by")))
        parts.append(
            tag(
                "ul",
                [
                    tag(
                        "li",
                        tag("b", f"{failure.jobs:,}", class_="bad"),
                        f" {failure.cause} ",
                        tag("span", failure.message or failure.code or ""),
                    )
                    for failure in solver.failures
                ],
                class_="failures",
            )
        )
    return tag("article", parts)


def _people(report: Report) -> Markup:
    most = max(person.core_seconds for person in report.people) or 1.0
    rows = [
        (
            _bar(person.core_seconds / most, "fill-run"),
            person.user or "unknown",
            person.project or "none",
            f"{person.jobs:,}",
            f"{person.failed:,}",
            words.core_hours(person.core_seconds),
        )
        for person in report.people
    ]
    more = tag("p", f"and {report.people_more:,} more", class_="quiet") if report.people_more else None
    return _section("Who", _table(("", "User", "Project", "Jobs", "Failed", "Core-hours"), rows, right={3, 4, 5}), more)


def _foot(report: Report) -> Markup:
    told = (
        "Jobs count in the period in which they ended. Cores, memory and licenses are those that were reserved; how "
        "long, how much and what was waited for are means over the time in which a daemon ran. Percentiles are exact. "
    )
    return tag("footer", tag("p", told), tag("p", f"Solvisor {__version__}, made {words.instant(report.until)}"))


# --- parts ----------------------------------------------------------------------------------------------------------


def _table(titles: Sequence[str], rows: Sequence[Sequence[Child]], right: set[int]) -> Markup:
    """Columns that are empty all the way down are left out."""
    filled = [at for at in range(len(titles)) if any(row[at] for row in rows)]
    head = tag("tr", [tag("th", titles[at], class_="right" if at in right else None) for at in filled])
    body = [tag("tr", [tag("td", row[at], class_="right" if at in right else None) for at in filled]) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="wide")


def _bar(share: float, colour: str) -> Markup:
    width = max(1.0, 100 * min(1.0, share))
    bar = tag("rect", x=0, y=0, width=f"{width:.1f}", height=10, rx=2, class_=colour)
    return tag("svg", bar, viewBox="0 0 100 10", class_="bar", aria_hidden="true", preserveAspectRatio="none")


def _name(solver: str) -> str:
    return solver or "none (refused before)"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def _size(value: float) -> str:
    return size(int(value)) if value else "0"
