"""What ``solvisor top`` looks like: lines for screens of any size, from statuses as the daemon gives them."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import pytest
from rich.cells import cell_len

from fake_daemon import BEAM, explanation, row, status
from solvisor.model import Reason
from solvisor.views import Holder, InboxWait, JobRow, LastDay, Level, Limit, Pause, PoolRow, Status, Waiting
from solvisor_service.cli.top.lines import Line, cut, fit, flow, glyphs, wrapped
from solvisor_service.cli.top.model import Gone, Look, Model
from solvisor_service.cli.top.view import LEAST, frame

UTF8, ASCII = glyphs("utf-8"), glyphs("ascii")
SIZES = [(60, 15), (80, 24), (120, 40), (200, 60), (61, 90), (300, 15)]
HOSTILE = "\x1b]52;c;aGk=\x07\x1b]8;;http://x\x1b\\\x1b[2J\x9b31m\u202eevil\u2066\n\r\tnew\0line\u200b\ud800"
NAMES = [
    "riser-017",
    "a-name-of-many-letters-and-more-of-the-same",
    "梁の解析モデル" * 9,
    "e\u0301" * 40 + "🚀",
    HOSTILE,
]
NOON = 1000.0


def job(number: int, **changes: Any) -> JobRow:
    name = NAMES[number % len(NAMES)]
    return row(id=f"riser-{number:03d}-1jl9v2k4a0b1c2d", name=name, user=name[:32], solver=name[:20], **changes)


def busy(running: int, *, hostile: bool = True) -> Status:
    pool = PoolRow(
        solver="rserve", state="ok", wanted=3, starting=1, up=3, ready=2, busy=1, most=4, waiting=0, failures=0,
        error=HOSTILE if hostile else None,
    )  # fmt: skip
    text = HOSTILE if hostile else "no material"
    waiting = min(20, 4 * running)
    return status(
        host=f"ws04{HOSTILE if hostile else ''}",
        health="degraded",
        problems=(f"the license server of orcaflex refuses {text * 9}", "two\n  lines"),
        running=running,
        waiting=4 * running,
        running_jobs=tuple(job(n, run_seconds=60.0 * n, tries=1 + n % 2) for n in range(min(running, 100))),
        waiting_jobs=tuple(
            job(200 + n, state="queued", reason="license", queue_seconds=9.0 * n) for n in range(waiting)
        ),
        last_failed=tuple(
            job(300 + n, state="failed", message=text, finished="2026-11-02T11:00:00Z") for n in range(3)
        ),
        last_day=LastDay(41, 3, 1, 1, 1),
        cpus=Level(14, 16),
        licenses={f"{text if hostile else 'orcaflex'}-{n}": Level(n, 2) for n in range(3)},
        waiting_for=(Waiting(Reason.LICENSE, text, 31), Waiting(Reason.MEMORY, None, 3)),
        inbox=(InboxWait(text, "settling", text),),
        inbox_total=1,
        paused=(Pause("ccx", text, "2026-11-02T10:00:00Z", text),),
        limits_set=(
            Limit(
                name="cpus",
                unit="cores",
                value=8,
                configured=16,
                used=14,
                by="ann",
                since="2026-11-02T10:00:00Z",
                note=text,
            ),
        ),
        servers=(pool,),
    )


def model_of(shown: Status, **changes: Any) -> Model:
    model = Model(**changes)
    model.take_status(shown, NOON)
    return model


def plain(lines: Sequence[Line]) -> list[str]:
    return ["".join(text for text, _ in line).rstrip() for line in lines]


def drawn(model: Model, size: tuple[int, int] = (100, 40), now: float = NOON) -> str:
    return "\n".join(plain(frame(model, size, UTF8, now)))


def reds(lines: list[Line]) -> str:
    return "".join(text for line in lines for text, style in line if "red" in style)


def looked(**changes: Any) -> Look:
    finding = {
        "reason": "license",
        "label": "license",
        "holds": True,
        "text": HOSTILE,
        "holders": [Holder(BEAM, HOSTILE, 9.0)],
    }
    told = explanation(HOSTILE, job=job(1, **changes), findings=[finding] * 9, next=HOSTILE)
    return Look(told, "stdout", tuple(UTF8.line(HOSTILE * 9) for _ in range(200)))


@pytest.mark.parametrize("drawn_with", [UTF8, ASCII], ids=["utf-8", "ascii"])
@pytest.mark.parametrize("size", SIZES)
def test_fault_76_every_line_fits_and_none_does_harm(size: tuple[int, int], drawn_with: Any) -> None:
    gone = Gone("NO DAEMON", "14:05:12", NOON - 60, HOSTILE)
    pages: list[Model] = []
    for running in (0, 1, 5, 300):
        shown = busy(running)
        pages += [
            model_of(shown),
            model_of(shown, chosen=job(300).id),
            model_of(shown, found=HOSTILE, typing=True),
            model_of(shown, page="help"),
            model_of(shown, page="job", chosen=job(1).id, look=looked()),
            model_of(shown, page="job", chosen=job(1).id),
        ]
        pages += [model_of(shown), model_of(shown)]
        pages[-2].gone = gone
        pages[-1].tell(HOSTILE, NOON, bad=True)
        asks = model_of(shown, chosen=shown.running_jobs[0].id if running else None)
        asks.press("p", NOON)
        pages.append(asks)
    pages.append(Model())
    for model in pages:
        lines = frame(model, size, drawn_with, NOON)
        assert len(lines) == size[1]
        for text in plain(lines):
            assert cell_len(text) <= size[0]
            assert text.isprintable()
            text.encode(drawn_with.encoding)


def test_what_is_shown_of_a_busy_daemon() -> None:
    shown = drawn(model_of(busy(5, hostile=False)), (120, 40), NOON + 10)
    assert "ws04: degraded   up 6 d   running 5   waiting 20   24 h: 41 ok, 3 failed, 1 rejected, 1 cancelled" in shown
    assert "cores ━━━━━━━━━─ 14/16   memory ────────── 0/128 GiB   orcaflex-0 ────────── 0/2" in shown
    assert "PROBLEM  the license server of orcaflex refuses no material" in shown
    assert "PAUSED   ccx, since 2 Nov 10:00 by no material: no material" in shown
    assert "LIMITED  cpus to 8 (configured: 16), since 2 Nov 10:00 by ann" in shown
    assert "RUNNING 5\n" in shown
    assert "riser-001-1jl9v2k4a" in shown
    assert "1 m 10 s  try 2" in shown, "and it goes on between two answers"
    assert "31 for license no material   3 for memory   1 settling" in shown
    assert "rserve 1 ready, 1 busy, 1 starting of 4" in shown
    assert "FAILED 3 in 24 h" in shown


def test_red_is_for_what_needs_a_person() -> None:
    calm = busy(5, hostile=False)
    calm = status(
        **{
            name: getattr(calm, name)
            for name in (
                "running",
                "waiting",
                "running_jobs",
                "waiting_jobs",
                "waiting_for",
                "paused",
                "servers",
                "licenses",
            )
        }
    )
    assert reds(frame(model_of(calm), (120, 40), UTF8, NOON)) == ""
    loud = reds(frame(model_of(busy(5, hostile=False)), (120, 40), UTF8, NOON))
    assert loud.replace(" ", "").startswith("degraded3failedPROBLEM")


@pytest.mark.parametrize("height", [15, 24, 40, 60])
def test_the_chosen_job_is_always_shown(height: int) -> None:
    model = model_of(busy(100, hostile=False))
    seen = set()
    for _ in range(len(model.jobs)):
        model.press("down", NOON)
        (marked,) = [line for line in drawn(model, (100, height)).split("\n") if line.startswith("▸")]
        seen.add(marked.split()[1])
    assert len(seen) == len(model.jobs) == 123


def test_small_and_large_screens_share_their_lines_out() -> None:
    small = drawn(model_of(busy(300, hostile=False)), LEAST)
    assert all(word in small for word in ("RUNNING 300", "WAITING 1200", "FAILED 3"))
    assert "shown" in small
    large = drawn(model_of(busy(5, hostile=False)), (200, 60))
    assert "1 to" not in large
    assert drawn(model_of(busy(5)), (59, 15)).startswith("too small: 59x15; at least 60x15 is needed")


def test_an_estimate_is_shown_where_the_daemon_has_one() -> None:
    def shown(usual_seconds: float | None) -> str:
        runs = job(0, run_seconds=600.0, usual_seconds=usual_seconds)
        return drawn(model_of(status(running=1, running_jobs=(runs,))))

    assert "left" not in shown(None)
    assert "━━━━━───── about 10 m left" in shown(1200.0)
    assert "longer than its usual 1 m" in shown(60.0)


def test_what_a_job_waits_for_is_named() -> None:
    waits = job(0, state="queued", reason="license", waits_for="orcaflex", tries=1)
    model = model_of(status(waiting=1, waiting_jobs=(waits,)))
    assert "license orcaflex  try 2" in drawn(model)
    model.found = "license orca"
    assert "1 found" in drawn(model)


def test_what_the_filter_finds_nothing_in_is_not_shown() -> None:
    model = model_of(busy(5, hostile=False))
    model.found = "riser-203"
    shown = drawn(model, (120, 40))
    assert "WAITING 20   1 found" in shown
    assert "RUNNING" not in shown
    model.found = "nobody"
    shown = drawn(model, (120, 40))
    assert "no job here has that text; Esc: all" in shown
    assert "WAITING" not in shown
    assert "rserve 1 ready" in shown


def test_the_name_of_a_job_stands_beside_an_id_that_does_not_tell_it() -> None:
    wide = "梁の解析モデル" * 9
    ids = ("beam-1jl9v2k4a0b1c2d", "first-try-1jl9v2k4b0b1c2d", "x-1jl9v2k4c0b1c2d")
    names = ("beam.inp", "First try", wide)
    jobs = tuple(row(id=job_id, name=name) for job_id, name in zip(ids, names, strict=True))
    for size in ((60, 15), (80, 24), (120, 40)):
        lines = drawn(model_of(status(running=3, running_jobs=jobs)), size).split("\n")
        rows = [line for line in lines if " ann " in line]
        assert len(rows) == 3
        assert all(cell_len(line) <= size[0] for line in rows)
        assert len({cell_len(line[: line.index(" ann ")]) for line in rows}) == 1, "they line up"
        assert ["beam.inp" in rows[0], "First" in rows[1], wide[:5] in rows[2]] == [False, False, True]
    jobs = (row(id=ids[0], name=f"a{HOSTILE}"),)
    assert "a]52;c;aGk=" in drawn(model_of(status(running=1, running_jobs=jobs)), (120, 40))


def test_a_job_whose_results_are_collected_says_so() -> None:
    model = model_of(
        status(collecting=1, running_jobs=(row(state="collecting", run_seconds=61.0, queue_seconds=9000.0),), running=1)
    )
    shown = drawn(model, now=NOON + 10)
    assert "collecting 1" in shown
    assert "ccx  1 m 1 s  collecting" in shown


def test_without_a_daemon_it_says_since_when_and_time_stands_still() -> None:
    model = model_of(status(running=1, running_jobs=(job(0, run_seconds=600.0),)))
    model.lose(Gone("NO DAEMON", "14:05:12", NOON, "no daemon is running on /srv"))
    model.lose(Gone("NO ANSWER", "14:05:13", NOON + 1, "it hangs"))
    shown = drawn(model, now=NOON + 75)
    assert "NO ANSWER  since 14:05:12, for 1 m 15 s\n  it hangs\n" in shown
    assert "10 m" in shown
    assert "11 m" not in shown
    model.take_status(status(), NOON + 80)
    assert "NO " not in drawn(model)


def test_a_daemon_that_is_silent_is_told() -> None:
    model = model_of(status(), silent_since=NOON)
    assert "no answer" not in drawn(model, now=NOON + 2)
    assert "no answer for 12 s" in drawn(model, now=NOON + 12)


def test_memory_is_flat_over_an_hour() -> None:
    model = model_of(busy(100, hostile=False))
    tracemalloc.start()
    try:
        for second in range(3600):
            if second == 600:
                before, _ = tracemalloc.get_traced_memory()
            if second % 100 == 0:  # other jobs, other words
                model.take_status(busy(1 + second % 90, hostile=False), NOON + second)
                model.tell(f"note {second}", NOON + second)
                model.press("down", NOON + second)
            if second % 20 == 0:
                frame(model, (120, 40), UTF8, NOON + second)
        model.take_status(busy(1 + 600 % 90, hostile=False), NOON + 3600)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200_000


def test_texts_are_cut_by_the_columns_they_take() -> None:
    assert cut("梁梁梁", 5) == "梁梁"
    assert cut("梁梁梁", 5, "…") == "梁梁…"
    assert cut("abc", 3, "…") == "abc"
    assert cut("abcd", 2, "...") == "ab"
    assert fit("梁梁梁", 4, "…") == "梁… "
    assert fit("7 s", 6, right=True) == "   7 s"
    assert len(cut("\u0301" * 100_000, 10)) <= 40
    assert wrapped("one two three", 7) == ["one two", "three"]
    assert wrapped("梁" * 5, 4) == ["梁梁", "梁梁", "梁"]
    parts = [[("abc", "")], [("defg", "bold")], [("h", "")]]
    assert plain(flow(parts, 11, most=2)) == ["abc   defg", "h"]
    assert plain(flow(parts, 11, most=1, more="…")) == ["abc   defg"]
