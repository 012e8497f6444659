"""The rows of a batch: one per input in its order, in two files that say the same, harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from fake_daemon import row as job_row
from solvisor.views import BatchRule
from solvisor_service.batch import report, summary
from solvisor_service.batch.ledger import Item, Ledger
from solvisor_service.batch.summary import Row, Summary
from solvisor_service.targets import Prepared

NOTHING = Prepared((), None)
HEADER = "index,input,id,state,cause,tries,start,end,queue_seconds,run_seconds,message"


def ledger(*items: Item, on_error: str = "skip", max_jobs: int | None = None) -> Ledger:
    rule = BatchRule(name="night", on_error=on_error, max_jobs=max_jobs)  # type: ignore[arg-type]
    return Ledger("ccx", rule, items, batch="batch-1", began=100.0, ended=110.0)


def item(index: int, **known: object) -> Item:
    return Item(index, f"case-{index}.inp", NOTHING, **known)  # type: ignore[arg-type]


def full() -> Ledger:
    """One input of every kind, and jobs that are listed in another order than the inputs."""
    book = ledger(
        item(1, sent=True, id="a-1"),
        item(2, sent=True, id="b-2"),
        item(3, sent=True, refusal="no such parameter"),
        item(4, sent=True, id="d-4"),
        item(5, sent=True, id="e-5"),
        item(6, sent=True),
        item(7),
    )
    finished = {"finished": "2026-11-02T10:01:00.000000Z", "tries": 1}
    book.jobs = {
        "d-4": job_row(id="d-4", state="failed", cause="timeout", run_seconds=9.0, message="ran longer", **finished),
        "b-2": job_row(id="b-2", state="failed", cause="exit", run_seconds=2.0, message="no material", **finished),
        "a-1": job_row(id="a-1", state="succeeded", run_seconds=4.0, **finished),
        "e-5": job_row(id="e-5", state="running", run_seconds=1.0),
    }
    return book


def read_csv(made: Summary) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(summary.csv_text(made))))


def test_every_input_has_one_row_in_the_order_of_the_command_line() -> None:
    made = full().summary()
    assert [(r.index, r.input, r.id, r.state) for r in made.rows] == [
        (1, "case-1.inp", "a-1", "succeeded"),
        (2, "case-2.inp", "b-2", "failed"),
        (3, "case-3.inp", None, "rejected"),
        (4, "case-4.inp", "d-4", "failed"),
        (5, "case-5.inp", "e-5", "running"),
        (6, "case-6.inp", None, "unknown"),
        (7, "case-7.inp", None, "cancelled"),
    ]
    assert made.rows[2].message == "no such parameter"


def test_the_sums_fit_the_rows() -> None:
    made = full().summary()
    ends = (made.succeeded, made.failed, made.cancelled, made.rejected, made.skipped, made.unfinished)
    assert ends == (1, 2, 1, 1, 0, 2)
    assert sum(ends) == made.total == 7
    assert made.timeout == 1
    assert (made.seconds, made.job_seconds, made.parallel_gain) == (10.0, 16.0, 1.6)


@pytest.mark.parametrize(
    ("wish", "stopped", "state", "why"),
    [
        (0, "beam-1 was failed", "skipped", "not sent: beam-1 was failed"),
        (1, None, "cancelled", "not sent: the batch was interrupted"),
        (0, None, "cancelled", "not sent: the daemon did not answer"),
    ],
)
def test_what_was_not_sent_says_why(wish: int, stopped: str | None, state: str, why: str) -> None:
    book = ledger(item(1))
    book.wish, book.stopped = wish, stopped
    made = book.summary()
    assert (made.rows[0].state, made.rows[0].message) == (state, why)
    assert (made.interrupted, made.stopped_early) == (wish > 0, stopped is not None)


def test_an_accepted_job_that_was_never_looked_up_is_unknown_and_keeps_its_id() -> None:
    (only,) = ledger(item(1, sent=True, id="a-1")).summary().rows
    assert (only.id, only.state) == ("a-1", "unknown")


def test_the_two_files_hold_the_same_rows(tmp_path: Path) -> None:
    made = full().summary()
    summary.write(made, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["summary.csv", "summary.json"]
    with (tmp_path / "summary.csv").open(newline="") as file:
        from_csv = list(csv.DictReader(file))
    document = json.loads((tmp_path / "summary.json").read_bytes())
    as_text = [{k: "" if v is None else str(v) for k, v in entry.items()} for entry in document["rows"]]
    assert from_csv == as_text
    assert (document["batch"], document["name"], document["solver"]) == ("batch-1", "night", "ccx")


def test_the_columns_are_those_that_are_promised() -> None:
    assert summary.csv_text(full().summary()).splitlines()[0] == HEADER


@pytest.mark.parametrize("text", ["=cmd|' /C calc'!A0", "+1", "-2+3", "@SUM(A1)", "\t=1", "\n=1", "\x00=1", " =1"])
def test_no_cell_is_a_formula(text: str) -> None:
    made = ledger(item(1, refusal=text)).summary()
    (only,) = read_csv(made)
    assert only["message"].startswith("'")
    assert made.rows[0].message == text, "programs that read JSON get it as it was"


def test_a_message_of_many_lines_is_one_line_of_the_table() -> None:
    made = ledger(item(1, refusal='first\nsecond\r\nthird, "quoted"'), item(2, refusal="x")).summary()
    text = summary.csv_text(made)
    assert len(text.splitlines()) == 3
    assert read_csv(made)[0]["message"] == 'first second third, "quoted"'


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    book = ledger(Item(1, "caf\udce9.inp", NOTHING, refusal="x\udce9"))
    summary.write(book.summary(), tmp_path)
    assert json.loads((tmp_path / "summary.json").read_bytes())["rows"][0]["input"] == "caf\\xe9.inp"


def test_a_summary_that_cannot_be_written_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").mkdir()
    with pytest.raises(IsADirectoryError):
        summary.write(full().summary(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["summary.csv"]


# --- on the terminal --------------------------------------------------------------------------------------------------


def shown(made: Summary, width: int = 80, *, folder: Path | None = None, brought: int = 0) -> str:
    text = io.StringIO()
    out = Console(file=text, width=width, force_terminal=True, color_system=None, markup=False, highlight=False)
    report.show(made, report.lines(made, home=Path("/srv/h"), folder=folder, brought=brought), out)
    return text.getvalue()


def many(count: int, failing: int) -> Summary:
    rows = [Row(index=i, input=f"c{i}.inp", id=f"c-{i}", state="succeeded", run_seconds=1.0) for i in range(1, count)]
    rows[10:10] = [Row(index=0, input=f"bad{n}", id=f"bad-{n}", state="failed", message="no") for n in range(failing)]
    return summary.summarise(
        rows,
        batch="b",
        name="",
        solver="ccx",
        seconds=5.0,
        max_jobs=None,
        on_error="skip",
        stopped_early=False,
        interrupted=False,
    )


def test_a_small_batch_is_shown_whole_and_fits_80_columns() -> None:
    text = shown(full().summary())
    table, _, hints = text.partition("\n\n")
    assert all(len(line) <= 80 for line in table.splitlines())
    for index in range(1, 8):
        assert f"case-{index}.inp" in table
    assert "no material" in table
    assert "7 jobs in 10 s: 1 succeeded, 2 failed (1 out of time), 1 cancelled, 1 rejected, 2 unfinished" in hints
    assert "solvisor explain b-2\n" in hints


def test_of_a_large_batch_only_what_failed_is_shown() -> None:
    text = shown(many(300, 3))
    assert "c7.inp" not in text
    assert all(f"bad{n}" in text for n in range(3))
    assert "more that did not" not in text
    crowded = shown(many(300, 100))
    assert "... and 60 more that did not succeed" in crowded
    assert len(crowded.splitlines()) < 60


def test_what_solvers_say_cannot_move_the_cursor_of_the_terminal() -> None:
    text = shown(ledger(Item(1, "a\x1b[2J\u202e.inp", NOTHING, refusal="\x1b]0;owned\x07\u2066no")).summary())
    assert not set(text) & set("\x1b\x07\u202e\u2066")


def test_with_a_folder_for_results_the_table_says_so() -> None:
    whole = shown(full().summary(), folder=Path("/out"), brought=4)
    assert "/out/: summary.csv, summary.json and a folder for each job\n" in whole


def test_what_was_not_brought_is_told_where_it_lies() -> None:
    some = shown(full().summary(), width=200, folder=Path("/out"), brought=3)
    assert "/out/: summary.csv, summary.json and a folder for 3 of 4 jobs\n" in some
    assert "the others: /srv/h/done/ID/ and /srv/h/failed/ID/" in some
    none = shown(full().summary(), width=200, folder=Path("/out"))
    assert "/out/: summary.csv and summary.json; /srv/h/done/ID/ and /srv/h/failed/ID/" in none


def test_of_a_batch_without_a_job_no_folder_is_named() -> None:
    text = shown(ledger(item(1, refusal="no"), item(2, refusal="no")).summary())
    assert "no input became a job" in text
    assert "/srv/h/done" not in text
    assert "/srv/h/done" in shown(ledger(item(1, sent=True)).summary()), "it may have become one"


def test_only_a_batch_that_came_to_its_end_is_said_to_be_faster() -> None:
    book = ledger(*(item(n, sent=True, id=f"a-{n}") for n in (1, 2)))
    book.jobs = {f"a-{n}": job_row(id=f"a-{n}", state="succeeded", run_seconds=10.0) for n in (1, 2)}
    assert "2.0 times as fast" in shown(book.summary())
    book.jobs = {f"a-{n}": job_row(id=f"a-{n}", state="cancelled", run_seconds=10.0) for n in (1, 2)}
    assert "as fast" not in shown(book.summary())
