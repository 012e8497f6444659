"""What keys of ``solvisor top`` do: bytes become keys, keys become orders, nothing is ordered unless it is meant."""

from __future__ import annotations

import pytest

from fake_daemon import explanation, row, status
from solvisor.views import LastDay, Pause
from solvisor_service.cli.top.model import NOTE_SECONDS, Gone, Look, Model, Order
from solvisor_service.cli.top.terminal import Keys

RUNNING = tuple(row(id=f"runs-{n}-1jl9v2k4a0b1c2d", name=f"r{n}.inp") for n in range(3))
FAILED = row(id="fails-1jl9v2k4a0b1c2d", state="failed", message="no material", solver="orcaflex")


def model_of(**changes: object) -> Model:
    model = Model()
    model.take_status(
        status(running=3, running_jobs=RUNNING, last_failed=(FAILED,), last_day=LastDay(0, 1), **changes), 0.0
    )
    return model


def pressed(model: Model, *keys: str) -> Order | None:
    order = None
    for key in keys:
        order = model.press(key, 0.0)
    return order


# --- bytes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"q", ["q"]),
        (b"\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        (b"\x1b[5~\x1b[6~\x1b[H\x1b[F\x1b[1~\x1b[4~", ["pageup", "pagedown", "home", "end", "home", "end"]),
        (b"\r\n\x7f\x08\x0c", ["enter", "enter", "backspace", "backspace", "redraw"]),
        ("梁é".encode(), ["梁", "é"]),
        (b"\x1b[1;5C\x1b[200~ab\x1b[201~", ["a", "b"]),
        (b"\x00\x01\xff", ["�"]),
        (b"\x1b\x1b[A", ["esc", "up"]),
        (b"\x1b[" + b"9" * 5000, ["esc", "[", *"9" * 5000]),
    ],
)
def test_keys_are_told_from_bytes_however_they_come(data: bytes, keys: list[str]) -> None:
    reader = Keys()
    found = list(reader.fed(data))
    while reader.waits:
        found += reader.fed(b"")
    assert found == keys
    if len(data) < 100:
        reader = Keys()
        found = [key for at in range(len(data)) for key in reader.fed(data[at : at + 1])]
        assert [*found, *reader.fed(b"")] == keys


def test_an_escape_alone_is_the_key_once_nothing_follows() -> None:
    reader = Keys()
    assert list(reader.fed(b"\x1b")) == []
    assert reader.waits
    assert list(reader.fed(b"")) == ["esc"]
    assert not reader.waits


# --- orders ---------------------------------------------------------------------------------------------------------


def test_a_job_is_cancelled_once_that_is_meant() -> None:
    model = model_of()
    assert pressed(model, "c") is None
    assert model.note is not None
    assert "choose a job" in model.note.text
    for key in ("n", "enter", "esc", "c", "q"):
        assert pressed(model, "down", "c", key) is None, key
        assert model.choice is None
        model.chosen = None
    assert pressed(model, "down", "down", "c", "y") == Order("cancel", RUNNING[1].id)


def test_the_job_that_was_asked_about_is_the_one_that_is_cancelled() -> None:
    model = model_of()
    pressed(model, "down", "c")
    model.take_status(status(running=1, running_jobs=RUNNING[2:]), 1.0)
    assert model.chosen == RUNNING[2].id
    assert pressed(model, "y") == Order("cancel", RUNNING[0].id)


def test_only_what_can_be_done_is_done() -> None:
    model = model_of()
    assert pressed(model, "down", "r") is None
    assert model.note is not None
    assert model.note.text.endswith("is running; only a finished job can be run again")
    assert pressed(model, "end", "r") == Order("retry", FAILED.id)
    assert pressed(model, "c", "y") is None
    assert pressed(model, "x", "", "\0") is None


def test_pausing_asks_what_and_names_what_is_paused() -> None:
    model = model_of(paused=(Pause("omc", None, "2026-11-02T10:00:00Z", None),))
    assert pressed(model, "end", "p") is None
    assert model.choice is not None
    assert model.choice.text == "1 pause everything   2 pause orcaflex   3 resume omc   any other key: nothing"
    assert pressed(model, "3") == Order("resume", "omc")
    assert pressed(model, "p", "1") == Order("pause", None)
    assert pressed(model, "p", "9") is None


def test_who_may_only_look_orders_nothing() -> None:
    model = model_of()
    model.may_operate = False
    for key, yes in (("c", "y"), ("r", "r"), ("p", "1")):
        assert pressed(model, "end", key) is None, key
        assert model.choice is None
        assert model.note is not None
        assert model.note.text.startswith("you may look")
        assert pressed(model, yes) is None


def test_a_daemon_that_is_gone_is_asked_nothing() -> None:
    model = model_of()
    pressed(model, "down", "c")
    model.lose(Gone("NO DAEMON", "14:05:12", 1.0, "no daemon"))
    assert pressed(model, "y") is None
    for key in ("c", "r", "p"):
        assert pressed(model, "end", key) is None
        assert model.note is not None
        assert model.note.text == "the daemon is not there"
        assert model.choice is None


# --- looking --------------------------------------------------------------------------------------------------------


def test_a_job_is_looked_at_and_left_again() -> None:
    model = model_of()
    assert pressed(model, "enter") is None
    assert pressed(model, "down", "enter") == Order("look", RUNNING[0].id)
    look = Look(explanation("runs", job=RUNNING[0]), "stdout", tuple(map(str, range(50))))
    model.take_look(look._replace(stream="stderr"))
    assert model.look is None
    model.take_look(look)
    assert model.look is look
    pressed(model, "up", "pageup")
    assert model.back == 1 + model.page_lines
    pressed(model, "home")
    assert model.back == 49
    pressed(model, "end")
    assert model.back == 0
    assert pressed(model, "s") == Order("look", RUNNING[0].id)
    assert model.stream == "stderr"
    model.take_status(status(), 1.0)
    assert model.chosen == RUNNING[0].id, "it is over, and still looked at"
    pressed(model, "esc")
    assert (model.page, model.look, model.chosen) == ("jobs", None, None)
    model.take_look(look)
    assert model.look is None


def test_a_filter_finds_by_any_word_and_keeps_what_it_was_given() -> None:
    model = model_of()
    pressed(model, "/", *"MATERI")
    assert model.jobs == [FAILED]
    pressed(model, "backspace", "q", "c")
    assert (model.found, model.jobs) == ("MATERqc", [])
    pressed(model, "esc")
    assert (model.found, model.typing) == ("", False)
    pressed(model, "/", *"r1.inp", "enter")
    assert model.jobs == [RUNNING[1]]
    pressed(model, "esc")
    assert len(model.jobs) == 4
    pressed(model, "/", *"x" * 500)
    assert len(model.found) < 100


def test_a_note_is_there_for_a_while() -> None:
    model = model_of()
    model.tell("done", 10.0)
    model.forget(10.0 + NOTE_SECONDS / 2)
    assert model.note is not None
    model.forget(10.0 + NOTE_SECONDS)
    assert model.note is None
    assert pressed(model, "?", "?", "q") == Order("quit")
