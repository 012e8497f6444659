"""``solvisor report``: what became of the jobs of a period, how busy it was, and what to change."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from solvisor_service.cli.shared import (
    FILES,
    Verbs,
    add_verb,
    completed,
    homed,
    moment,
    path_given,
    print_json,
    reader_of,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from solvisor.figures import Report, SolverFigures
    from solvisor_service.cli.text import Cell

_EXAMPLES = """\
  solvisor report
  solvisor report --since 30d --html report.html
  solvisor report --since 2026-11-01 --until 2026-12-01
  solvisor report --json | jq -r '.advice[].text'"""

_BLOCKS: Final = " ▁▂▃▄▅▆▇█"
_BAR: Final = 20
_WAITS_TOLD: Final = 6
_PEOPLE_TOLD: Final = 10
_NARROW: Final = 110
"""Columns of a terminal that has room for all of a solver in one line."""


def add(verbs: Verbs) -> None:
    """Declare the verb."""
    verb = add_verb(
        verbs,
        "report",
        _report,
        help="report a period: its jobs, how busy it was, and what to change",
        examples=_EXAMPLES,
    )
    when = "7d ago, or 2026-11-01, or 2026-11-01T08:00"
    verb.add_argument("--since", metavar="WHEN", type=moment, help=f"from then on: {when} (default: 7d)")
    verb.add_argument("--until", metavar="WHEN", type=moment, help="until then (default: now)")
    form = verb.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON, for programs")
    html = "write one HTML file with plots, which needs nothing else"
    completed(form.add_argument("--html", metavar="FILE", type=path_given, help=html), FILES)


def _report(arguments: argparse.Namespace) -> int:
    report = reader_of(arguments).report(since=arguments.since, until=arguments.until)
    if arguments.json:
        print_json(report)
    elif arguments.html is not None:
        _write(report, arguments.html)
    else:
        _show(report, arguments)
    return 0


def _write(report: Report, path: Path) -> None:
    from solvisor_service.cli.text import harmless
    from solvisor_service.reporting.page import page

    path.write_text(page(report), "utf-8", "backslashreplace")
    print(harmless(f"solvisor: wrote {path}"), file=sys.stderr)


def _show(report: Report, arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.reporting import words

    out = text.console()
    host = f"{text.clean(report.host)}: " if report.host else ""
    head = Text.assemble((host, "bold"), (words.title_of(report), "bold"), f"; {words.presence(report)}")
    text.table(out, [[head]])
    ends = ", ".join(f"{number:,} {word}" for word, number in words.ends(report))
    told = f"{report.jobs:,} ended: {ends}; {words.core_hours(report.core_seconds)} core-hours"
    text.table(out, [(_label("JOBS"), told)])
    _put_levels(out, report)
    _put_waits(out, report)
    if report.solvers:
        out.print()
        _put_solvers(out, report)
        _put_failures(out, report)
    if report.people:
        out.print()
        _put_people(out, report)
    _put_advice(out, report, arguments)


def _label(words: str) -> Text:
    from rich.text import Text

    return Text(words.ljust(7), "bold")


def _draws(out: Console) -> bool:
    """Whether blocks can be shown."""
    return out.is_terminal and (out.encoding or "").lower().startswith("utf")


def _put_levels(out: Console, report: Report) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.reporting import words

    rows: list[tuple[Cell, ...]] = []
    for at, stretch in enumerate(words.stretches(report)):
        bar: Cell = Text(_bar(stretch.share), "cyan") if _draws(out) else ""
        rows.append(
            (_label("BUSY" if at == 0 else ""), stretch.title, bar, words.percent(stretch.share), stretch.words)
        )
    text.table(out, rows, right={3})
    if any(hour.cpus for hour in report.hours) and _draws(out):
        most = max(hour.cpus or 0.0 for hour in report.hours)
        line = "".join(_BLOCKS[min(8, round(8 * (hour.cpus or 0.0) / most))] for hour in report.hours)
        text.table(out, [(_label(""), Text.assemble("00 ", (line, "cyan"), " 24   cores by the hour of the day"))])


def _bar(share: float) -> str:
    """A bar of blocks, to an eighth."""
    eighths = round(min(1.0, max(0.0, share)) * _BAR * 8)
    whole, part = divmod(eighths, 8)
    return ("█" * whole + ("▏▎▍▌▋▊▉"[part - 1] if part else "")).ljust(_BAR, "·")


def _put_waits(out: Console, report: Report) -> None:
    from solvisor.views import waited_for
    from solvisor_service.cli import text
    from solvisor_service.reporting import words

    rows: list[tuple[Cell, ...]] = []
    for at, wait in enumerate(report.waits[:_WAITS_TOLD]):
        told = f"{words.hours(wait.job_seconds)} of jobs in {words.hours(wait.seconds)}"
        idle = f"{wait.idle_cores:.1f} cores idle meanwhile" if wait.idle_cores >= 0.05 else ""
        rows.append(
            (
                _label("WAITED" if at == 0 else ""),
                waited_for(wait.reason, wait.what),
                words.percent(wait.share),
                told,
                idle,
            )
        )
    text.table(out, rows, right={2})


def _put_solvers(out: Console, report: Report) -> None:
    from solvisor_service.cli import text

    if not out.is_terminal or out.width >= _NARROW:
        titles = ["SOLVER", "JOBS", "FAILED", "RAN p50", "p95", "max", "WAITED p50", "p95", "CORES", "MEMORY"]
        text.table(out, [_solver(solver) for solver in report.solvers], titles=titles, right=set(range(1, 10)))
        return
    first = [_solver(solver)[:6] for solver in report.solvers]
    text.table(out, first, titles=["SOLVER", "JOBS", "FAILED", "RAN p50", "p95", "max"], right=set(range(1, 6)))
    second = [(_solver(solver)[0], *_solver(solver)[6:]) for solver in report.solvers]
    text.table(out, second, titles=["SOLVER", "WAITED p50", "p95", "CORES", "MEMORY"], right=set(range(1, 5)))


def _solver(solver: SolverFigures) -> tuple[Cell, ...]:
    from rich.text import Text

    from solvisor_service.reporting import words

    failed = Text(f"{solver.failed:,}", "bold red" if solver.failed else "")
    name = solver.name or "(none)"
    spans = (*words.span(solver.run), *words.span(solver.queue)[:2])
    return (name, f"{solver.jobs:,}", failed, *spans, words.cores_used(solver), words.memory_used(solver))


def _put_failures(out: Console, report: Report) -> None:
    from rich.text import Text

    from solvisor_service.cli import text
    from solvisor_service.reporting import words

    rows: list[tuple[Cell, ...]] = []
    for solver in report.solvers:
        for at, failure in enumerate(solver.failures):
            head = Text("FAILED ", "bold red") if not rows else _label("")
            what = failure.message or failure.code or ""
            rows.append((head, solver.name if at == 0 else "", f"{failure.jobs:,}", failure.cause, what))
    if rows:
        out.print()
    text.table(out, rows, right={2}, cut=True)
    notes = [(_label(""), solver.name, ", ".join(told)) for solver in report.solvers if (told := words.remarks(solver))]
    text.table(out, notes)


def _put_people(out: Console, report: Report) -> None:
    from solvisor_service.cli import text
    from solvisor_service.reporting import words

    rows: list[tuple[Cell, ...]] = [
        (
            person.user or "unknown",
            person.project or "",
            f"{person.jobs:,}",
            f"{person.failed:,}",
            words.core_hours(person.core_seconds),
        )
        for person in report.people[:_PEOPLE_TOLD]
    ]
    text.table(out, rows, titles=["USER", "PROJECT", "JOBS", "FAILED", "CORE-HOURS"], right={2, 3, 4})
    more = len(report.people) - len(rows) + report.people_more
    if more:
        text.table(out, [[f"and {more:,} more"]])


def _put_advice(out: Console, report: Report, arguments: argparse.Namespace) -> None:
    from rich.text import Text

    from solvisor_service.cli import text

    if not report.advice:
        return
    out.print()
    rows: list[tuple[Cell, ...]] = []
    for at, advice in enumerate(report.advice):
        rows.append((_label("CHANGE" if at == 0 else ""), f"{at + 1}.", homed(advice.text, arguments)))
        if advice.section is not None and advice.line is not None:
            rows.append((_label(""), "", Text(text.clean(f"[{advice.section}]  {advice.line}"), "cyan")))
    text.table(out, rows)
