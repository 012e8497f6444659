"""The end of a batch on a terminal: what became of the inputs, the sums, where the results are, what to do next.

Rules: a small batch is shown whole; of a large one only what did not succeed, for the rest is in the files. It prints
to the console it is given and decides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from solvisor_service.batch.summary import Row, Summary
from solvisor_service.cli.text import clean, duration, table

if TYPE_CHECKING:
    from rich.console import Console

ROWS_MAX: Final = 40
INPUT_MAX: Final = 40
"""Columns for the name of an input; of a longer one the end is shown, where the names differ."""

_STYLES: Final = {"succeeded": "green", "failed": "bold red", "rejected": "red", "cancelled": "yellow"}


def show(summary: Summary, below: Sequence[tuple[str, str]], out: Console) -> None:
    """Print the rows and, ``below`` them, what ``lines`` says."""
    rows = shown_rows(summary)
    _print_rows(rows, out)
    left_out = sum(row.state != "succeeded" for row in summary.rows) - len(rows) if len(rows) < summary.total else 0
    if left_out > 0:
        out.print(f"... and {left_out} more that did not succeed", soft_wrap=True)
    if rows:
        out.print()
    for label, text in below:
        out.print(f"{label:<9}{clean(text)}", soft_wrap=True)  # the terminal wraps it, so that it can be copied whole


def lines(summary: Summary, *, home: Path, folder: Path | None, brought: int) -> Sequence[tuple[str, str]]:
    """Labels and texts: the sums, where results are, what to do next.

    ``folder`` is where the summary was written, with the results of ``brought`` jobs.
    """
    found = [("batch", sums(summary))]
    jobs = sum(row.id is not None for row in summary.rows)
    kept = f"{home}/done/ID/ and {home}/failed/ID/, ids: solvisor list --batch {summary.batch}"
    if not jobs and not summary.unfinished:
        kept = "no input became a job, and of what is refused nothing is kept"
    if folder is None:
        found.append(("results", kept))
    elif jobs and brought == jobs:
        found.append(("results", f"{folder}/: summary.csv, summary.json and a folder for each job"))
    elif brought:
        found.append(("results", f"{folder}/: summary.csv, summary.json and a folder for {brought} of {jobs} jobs"))
        found.append(("", f"the others: {kept}"))
    else:
        found.append(("results", f"{folder}/: summary.csv and summary.json; {kept}"))
    failed = next((row.id for row in summary.rows if row.state == "failed" and row.id is not None), None)
    if failed is not None:
        found.append(("next", f"solvisor explain {failed}"))
    if summary.unfinished:
        text = f"{summary.unfinished} are not finished: what was accepted stays in {home} and goes on with its daemon"
        found.append(("open", text))
    return found


def shown_rows(summary: Summary) -> Sequence[Row]:
    """The rows that are printed: all of a small batch, else at most ``ROWS_MAX`` that did not succeed."""
    if summary.total <= ROWS_MAX:
        return summary.rows
    return [row for row in summary.rows if row.state != "succeeded"][:ROWS_MAX]


def sums(summary: Summary) -> str:
    """``10 jobs in 12 s: 8 succeeded, 2 failed (1 out of time); 1.9 times as fast as one after the other``."""
    names = ("succeeded", "failed", "cancelled", "rejected", "skipped", "unfinished")
    counts = [f"{count} {name}" for name in names if (count := getattr(summary, name))]
    if summary.timeout:
        counts = [f"{text} ({summary.timeout} out of time)" if text.endswith("failed") else text for text in counts]
    jobs = "1 job" if summary.total == 1 else f"{summary.total} jobs"
    text = f"{jobs} in {duration(summary.seconds)}: {', '.join(counts)}"
    whole = not (summary.interrupted or summary.cancelled or summary.unfinished)
    if whole and summary.parallel_gain is not None and summary.parallel_gain >= 1.1:
        text += f"; {summary.parallel_gain:.1f} times as fast as one after the other"
    if summary.stopped_early:
        failed = summary.on_error == "fail" and (summary.failed or summary.rejected)
        text += "; stopped at the first failure" if failed else "; stopped early"
    return f"{text}; interrupted" if summary.interrupted else text


def _print_rows(rows: Sequence[Row], out: Console) -> None:
    from rich.text import Text

    cells = [
        (
            str(row.index),
            _shortened(clean(row.input)),
            Text(row.state, style=_STYLES.get(row.state, "")),
            "" if row.run_seconds is None else duration(row.run_seconds),
            row.message or "",
        )
        for row in rows
    ]
    if cells:
        table(out, cells, titles=("", "input", "state", "took", "message"), right=(0, 3))


def _shortened(name: str) -> str:
    return name if len(name) <= INPUT_MAX else f"...{name[3 - INPUT_MAX :]}"
