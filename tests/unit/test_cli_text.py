"""How things look on a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from fake_daemon import row
from solvisor.model import Check
from solvisor_service.cli import text
from solvisor_service.cli.jobtext import check_words, outcome, short_ids


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (-3, "0 s"),
        (0.0001, "1 ms"),
        (0.0042, "4 ms"),
        (0.04, "40 ms"),
        (0.0994, "99 ms"),
        (0.1, "0.1 s"),
        (0.123, "0.12 s"),
        (0.994, "0.99 s"),
        (0.996, "1 s"),
        (1.0, "1 s"),
        (9.96, "10 s"),
        (34.4, "34 s"),
        (59.7, "1 m"),
        (250, "4 m 10 s"),
        (1320, "22 m"),
        (1330, "22 m"),
        (3599.6, "1 h"),
        (4320, "1 h 12 m"),
        (86399, "1 d"),
        (6 * 86400 + 200, "6 d"),
        (6 * 86400 + 3 * 3600, "6 d 3 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KiB"),
        (1536, "1.5 KiB"),
        (57 << 30, "57 GiB"),
        ((1 << 30) - 1, "1 GiB"),
        (1 << 60, "1 EiB"),
        (1 << 75, "32768 EiB"),
    ],
)
def test_sizes_have_three_figures_at_most(count: int, words: str) -> None:
    assert text.size(count) == words


def test_a_share_is_told_in_the_unit_of_the_whole() -> None:
    assert text.share(71 << 30, 128 << 30) == "71/128 GiB"
    assert text.share(512 << 20, 4 << 30) == "0.5/4 GiB"


@pytest.mark.parametrize(
    "hostile",
    ["a\x1b[31mb", "a\nb", "a\rb", "a\x9b31mb", "a\u202eb", "a\u2066b", "a\u200bb", "a\x00b", "a\udcffb", "a\u2028b"],
)
def test_clean_text_is_one_line_that_cannot_move_anything(hostile: str) -> None:
    shown = text.clean(hostile)
    assert shown.isprintable()
    assert (shown[0], shown[-1]) == ("a", "b")
    assert text.harmless(hostile).replace("\n", "").isprintable()


def test_text_of_several_lines_keeps_them() -> None:
    assert text.harmless("two:\n  a\x1b[2J\n  b") == "two:\n  a[2J\n  b"


def printed(width: int | None, *args: object, **options: object) -> list[str]:
    """The lines of a table, on a terminal of that width or, without one, in a pipe."""
    stream = io.StringIO()
    out = Console(file=stream, width=width or 20, force_terminal=width is not None, color_system=None)
    text.table(out, *args, **options)  # type: ignore[arg-type]
    return stream.getvalue().splitlines()


LONG = "no elastic constants were assigned to any material in a (thermo)mechanical calculation"


def test_the_last_column_wraps_in_the_room_that_is_left() -> None:
    lines = printed(60, [("beam", "ccx", LONG), ("b", "ngspice", "short")], titles=("ID", "SOLVER", "WHY"))
    assert lines[0] == "ID    SOLVER   WHY"
    assert all(len(line) <= 60 for line in lines)
    assert [line[:15] for line in lines[1:4]] == ["beam  ccx      ", " " * 15, "b     ngspice  "]
    assert " ".join(line[15:] for line in lines[1:3]) == LONG


def test_where_too_little_room_is_left_it_goes_below() -> None:
    lines = printed(40, [("beam-with-a-long-name-1jl9v2k4a", "ccx", LONG)])
    assert lines[0] == "beam-with-a-long-name-1jl9v2k4a  ccx"
    assert all(line.startswith("    ") and len(line) <= 40 for line in lines[1:])
    assert " ".join(line.strip() for line in lines[1:]) == LONG


def test_where_too_little_room_is_left_rows_still_belong_to_the_label_above() -> None:
    lines = printed(40, [(Text("FAILED "), "beam-1jl9v2k4a", LONG), (Text(), "mast-1jl9v2k4a", LONG)])
    assert all(len(line) <= 40 for line in lines)
    assert lines[0].startswith("FAILED")
    assert [line for line in lines if line.startswith(("  mast", "mast"))] == ["  mast-1jl9v2k4a"]
    assert {len(line) - len(line.lstrip()) for line in lines} == {0, 2, 4}


def test_no_terminal_is_too_narrow_for_wide_characters() -> None:
    assert "".join(line.strip() for line in printed(3, [("beam", "梁梁梁")])) == "beam梁梁梁"


def test_a_column_in_the_middle_can_be_the_one_that_wraps() -> None:
    lines = printed(50, [("checks", LONG, "failed"), ("", "exit 0", "ok")], wrap=1)
    assert all(len(line) <= 50 for line in lines)
    assert lines[0].endswith("failed")
    assert lines[-1].split() == ["exit", "0", "ok"]
    assert lines[0].index("failed") == lines[-1].index("ok")


def test_in_a_pipe_nothing_is_wrapped_cut_or_padded_at_the_end() -> None:
    assert printed(None, [("beam", LONG), ("b", "")]) == [f"beam  {LONG}", "b"]


def test_columns_without_content_are_left_out_and_numbers_stand_to_the_right() -> None:
    lines = printed(80, [("a", "", "1 s", "x"), ("b", "", "12 s", "y")], titles=("ID", "USER", "TOOK", "N"), right={2})
    assert lines == ["ID  TOOK  N", "a    1 s  x", "b   12 s  y"]


def test_wide_characters_count_twice() -> None:
    assert printed(80, [("梁", "x"), ("beam", "y")]) == ["梁    x", "beam  y"]


def test_strings_are_cleaned_and_styled_text_is_taken_as_it_is() -> None:
    assert printed(80, [("a\x1b[2J\nb", Text("kept  so"))]) == ["a[2J b  kept  so"]


def test_nothing_to_show_prints_nothing() -> None:
    assert printed(80, []) == []
    assert printed(80, [("", "")], titles=("A", "B")) == []


def test_ids_are_cut_only_where_that_still_tells_them_apart() -> None:
    ids = ["beam-1jl9v2k4aAAAAAA", "beam-1jl9v2k4aBBBBBB", "mast-1jl9v2k4aAAAAAA"]
    assert short_ids(ids) == {
        ids[0]: ids[0],
        ids[1]: ids[1],
        ids[2]: "mast-1jl9v2k4a",
    }
    assert short_ids(["beam-1jl9v2k4aAAAAAA"] * 2) == {"beam-1jl9v2k4aAAAAAA": "beam-1jl9v2k4a"}


@pytest.mark.parametrize(
    ("check", "words"),
    [
        (Check("exit", "0", "201", ok=False), "exit 201, allowed 0"),
        (Check("output a.frd", "not empty", "missing", ok=False), "output a.frd: missing, wanted: not empty"),
        (Check("output a.frd", "not empty", "12 bytes", ok=True), "output a.frd: 12 bytes"),
        (Check(r"no \*ERROR in logs", "not found", "stdout.log:54", ok=False), r"no \*ERROR in logs: stdout.log:54"),
        (Check(r"no \*ERROR in logs", "not found", "not found", ok=True), r"no \*ERROR in logs"),
    ],
)
def test_a_check_is_told_by_what_it_found(check: Check, words: str) -> None:
    assert check_words(check) == words


def test_the_end_of_a_job_is_told_with_its_reason() -> None:
    assert outcome(row(state="succeeded", run_seconds=12.0)) == "succeeded in 12 s"
    assert outcome(row(state="failed", run_seconds=0.1, message="no material")) == "FAILED after 0.1 s: no material"
    assert outcome(row(state="cancelled", run_seconds=None)) == "cancelled"
    assert outcome(row(state="skipped", message="beam failed")) == "skipped: beam failed"


def test_piped_output_is_plain_even_where_colour_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("sys.stdout", io.StringIO())
    out = text.console()
    out.print(Text("x", style="red"))
    assert (out.is_terminal, out.width) == (False, text.WIDTH_WITHOUT_TERMINAL)
    assert out.file.getvalue() == "x\n"  # type: ignore[attr-defined]
