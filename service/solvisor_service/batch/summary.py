"""What became of each input of a batch: the rows, their sums, ``summary.csv`` and ``summary.json``.

Rules: exactly one row per input, in the order of the command line, whatever happened; the two files hold the same rows
and appear by rename. Times are RFC 3339 UTC, durations ``_seconds``. It knows no daemon and prints nothing.
"""

from __future__ import annotations

import csv
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from solvisor.model import TERMINAL, State
from solvisor.views import JobRow
from solvisor_service.cli.text import clean

RowState = Literal[
    "queued", "running", "collecting", "succeeded", "failed", "cancelled", "rejected", "skipped", "unknown"
]
"""The states of a job; ``unknown``: it was sent, and the answer never came."""

_FINISHED: Final = frozenset(state.value for state in TERMINAL)
_FORMULA: Final = ("=", "+", "-", "@")


class Row(Struct, frozen=True, kw_only=True):
    """One input. ``index`` counts from 1; ``id`` is ``None`` for what never became a job.

    ``start`` and ``run_seconds`` are of the job: from its first try, and of its last one.
    """

    index: int
    input: str
    id: str | None = None
    state: RowState
    cause: str | None = None
    tries: int = 0
    start: str | None = None
    end: str | None = None
    queue_seconds: float | None = None
    run_seconds: float | None = None
    message: str | None = None


COLUMNS: Final = Row.__struct_fields__
"""The first line of ``summary.csv``."""


class Summary(Struct, frozen=True, kw_only=True):
    """A batch at its end, or where it was left: the shape of ``summary.json``.

    ``total`` is the sum of ``succeeded``, ``failed``, ``cancelled``, ``rejected``, ``skipped`` and ``unfinished``;
    ``timeout`` counts those of ``failed`` that ran out of time. ``seconds`` is how long the batch took,
    ``job_seconds`` how long its jobs ran, ``parallel_gain`` the second by the first. ``max_jobs`` ``None`` means: no
    limit but the daemon's own.
    """

    batch: str | None
    name: str
    solver: str
    total: int
    succeeded: int
    failed: int
    timeout: int
    cancelled: int
    rejected: int
    skipped: int
    unfinished: int
    seconds: float
    job_seconds: float
    parallel_gain: float | None
    max_jobs: int | None
    on_error: Literal["skip", "fail"]
    stopped_early: bool
    interrupted: bool
    rows: tuple[Row, ...]


def row_of_job(index: int, given: str, job: JobRow) -> Row:
    """The row of an input that became ``job``."""
    return Row(
        index=index,
        input=given,
        id=job.id,
        state=job.state.value,
        cause=job.cause,
        tries=job.tries,
        start=job.started,
        end=job.finished,
        queue_seconds=job.queue_seconds,
        run_seconds=job.run_seconds,
        message=job.message,
    )


def summarise(
    rows: Sequence[Row],
    *,
    batch: str | None,
    name: str,
    solver: str,
    seconds: float,
    max_jobs: int | None,
    on_error: Literal["skip", "fail"],
    stopped_early: bool,
    interrupted: bool,
) -> Summary:
    """Rows and their sums."""
    job_seconds = sum(row.run_seconds or 0.0 for row in rows)

    def count(state: State) -> int:
        return sum(row.state == state for row in rows)

    return Summary(
        batch=batch,
        name=name,
        solver=solver,
        total=len(rows),
        succeeded=count(State.SUCCEEDED),
        failed=count(State.FAILED),
        timeout=sum(row.cause == "timeout" for row in rows),
        cancelled=count(State.CANCELLED),
        rejected=count(State.REJECTED),
        skipped=count(State.SKIPPED),
        unfinished=sum(row.state not in _FINISHED for row in rows),
        seconds=round(seconds, 3),
        job_seconds=round(job_seconds, 3),
        parallel_gain=round(job_seconds / seconds, 2) if seconds > 0 and job_seconds > 0 else None,
        max_jobs=max_jobs,
        on_error=on_error,
        stopped_early=stopped_early,
        interrupted=interrupted,
        rows=tuple(rows),
    )


def csv_text(summary: Summary) -> str:
    """``summary.csv``, one line per row. A text that a spreadsheet would take for a formula gets an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in summary.rows:
        writer.writerow([_cell(getattr(row, column)) for column in COLUMNS])
    return text.getvalue()


def json_bytes(summary: Summary) -> bytes:
    """``summary.json``, and what ``--json`` prints."""
    return msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"


def write(summary: Summary, folder: Path) -> None:
    """Write both files into ``folder``, each by a temporary name. Raises ``OSError``."""
    for name, data in (("summary.csv", csv_text(summary).encode()), ("summary.json", json_bytes(summary))):
        temporary = folder / f".{name}.{secrets.token_hex(4)}.part"
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(folder / name)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _cell(value: str | int | float | None) -> str | int | float:
    """One line of harmless text, or a number."""
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
