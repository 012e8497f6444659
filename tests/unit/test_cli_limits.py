"""``solvisor limit`` and ``solvisor priority``: what they print, what they ask for, how they end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from cli_kit import Run
from fake_daemon import BEAM, FakeDaemon, fake_daemon, no_such_job, status, view
from solvisor.views import Limit, Limits, Problem

GIB = 1 << 30
JOBS = Limit(name="max_jobs", unit="jobs", value=15, configured=15, used=3)
MEMORY = Limit(name="memory", unit="bytes", value=126 * GIB, configured=126 * GIB, used=71 * GIB)
SEATS = Limit(
    name="license.orcaflex",
    unit="licenses",
    value=1,
    configured=2,
    used=2,
    by="ann",
    since="2025-11-02T10:00:00.000000Z",
    note="gui\x1b[2J work",
)
OWN = Limit(name="solver.ccx", unit="jobs", value=None, configured=None, used=3)
GONE = replace(SEATS, name="license.gone", configured=None, used=0, by=None, note=None, known=False)
ALL = Limits((JOBS, MEMORY, SEATS, OWN, GONE))


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeDaemon]:
    with fake_daemon(tmp_path / "home") as daemon:
        daemon.answers["GET", "/v1/limits"] = ALL
        yield daemon


def sent(fake: FakeDaemon, path: str = "/v1/limits") -> Any:
    (request,) = fake.asked("POST", path)
    return json.loads(request.body)


# --- limit ----------------------------------------------------------------------------------------------------------


def test_each_limit_has_a_line(fake: FakeDaemon, run: Run) -> None:
    result = run("limit")
    assert (result.status, result.err) == (0, "")
    assert result.lines == [
        "NAME              IN USE    LIMIT      CONFIGURED  SET BY",
        "max_jobs               3       15              15",
        "memory            71 GiB  126 GiB         126 GiB",
        "license.orcaflex       2        1               2  ann, since 2 Nov 2025: gui[2J work",
        "solver.ccx             3     none            none",
        "license.gone           0        1  not configured  since 2 Nov 2025",
    ]


def test_one_of_them_can_be_asked_for(fake: FakeDaemon, run: Run) -> None:
    assert run("limit", "memory").lines == [
        "NAME    IN USE    LIMIT  CONFIGURED",
        "memory  71 GiB  126 GiB     126 GiB",
    ]
    assert json.loads(run("limit", "memory", "--json").out)["used"] == 71 * GIB
    assert len(json.loads(run("limit", "--json").out)["limits"]) == 5
    result = run("limit", "licence.orcaflex")
    assert (result.status, result.out) == (2, "")
    assert "there is no limit 'licence.orcaflex'; did you mean license.orcaflex?" in result.err
    assert "there are: max_jobs, memory" in run("limit", "zzz").err


def test_memory_is_not_taken_for_bytes_where_a_unit_was_forgotten(fake: FakeDaemon, run: Run) -> None:
    result = run("limit", "memory", "64")
    assert (result.status, result.out) == (2, "")
    assert "memory: 64 would be 64 bytes; write it like 64GiB" in result.err
    assert fake.asked("POST", "/v1/limits") == []


@pytest.mark.parametrize(
    ("name", "enough", "more", "told"),
    [("cpus", "2", "3", "this machine has 2 cores"), ("memory", "23GiB", "64GiB", "this machine has 23 GiB")],
)
def test_more_than_the_machine_has_is_taken_and_told(
    fake: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, enough: str, more: str, told: str
) -> None:
    monkeypatch.setattr("solvisor.process.host.usable_cpus", lambda: 2)
    monkeypatch.setattr("solvisor.process.host.total_memory_bytes", lambda: 23 * GIB)
    fake.answers["POST", "/v1/limits"] = ALL
    assert run("limit", name, enough).err == ""
    result = run("limit", name, more)
    assert (result.status, result.err) == (0, f"solvisor: {name}: {told}\n")


def test_a_limit_is_set_and_its_end_is_told(fake: FakeDaemon, run: Run) -> None:
    fake.answers["POST", "/v1/limits"] = ALL
    result = run("limit", "license.orcaflex", "1", "--note", "gui work")
    assert sent(fake) == {"name": "license.orcaflex", "value": 1, "note": "gui work"}
    assert result.lines == [
        "license.orcaflex: 1 (gui[2J work), until: solvisor limit license.orcaflex auto",
        "2 in use now; what runs goes on, and nothing more starts until it fits",
    ]
    assert json.loads(run("limit", "license.orcaflex", "1", "--json").out)["limits"]
    home = str(fake.home)
    assert (
        run("limit", "license.orcaflex", "1", "--home", home)
        .lines[0]
        .endswith(f"until: solvisor limit --home {home} license.orcaflex auto")
    )


def test_a_limit_is_taken_back(fake: FakeDaemon, run: Run) -> None:
    fake.answers["POST", "/v1/limits"] = ALL
    assert run("limit", "max_jobs", "auto").lines == ["max_jobs: 15, as the configuration says"]
    assert sent(fake) == {"name": "max_jobs", "value": None, "note": None}
    fake.answers["POST", "/v1/limits"] = Limits((JOBS,))
    assert run("limit", "license.gone", "auto").lines == ["license.gone: forgotten; it is not configured"]


@pytest.mark.parametrize(
    ("text", "value"), [("64GiB", 64 * GIB), ("1.5 GiB", 3 * GIB // 2), ("500MB", 500_000_000), ("1048576", 1 << 20)]
)
def test_memory_is_a_size(fake: FakeDaemon, run: Run, text: str, value: int) -> None:
    fake.answers["POST", "/v1/limits"] = Limits((replace(MEMORY, value=value, since=SEATS.since),))
    assert run("limit", "memory", text).status == 0
    assert sent(fake)["value"] == value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cpus", "many"], "cpus: 'many' is no whole number; write one, or auto"),
        (["cpus", "1.5"], "cpus: '1.5' is no whole number"),
        (["cpus", "-1"], "cpus: '-1' is no whole number"),
        (["max_jobs", "64GiB"], "max_jobs: '64GiB' is no whole number"),
        (["memory", "64 gib"], "memory: '64 gib': it is no size; write it like 64GiB, 500MB, or auto"),
        (["memory", "9999999TiB"], "memory: '9999999TiB': it is larger than any disk"),
        (["memory", ""], "it is empty; is a variable not set?"),
        (["memory", "--note", "x"], "a note goes with a value"),
    ],
)
def test_what_is_no_value_is_not_sent(fake: FakeDaemon, run: Run, words: list[str], said: str) -> None:
    result = run("limit", *words)
    assert (result.status, result.out) == (2, "")
    assert said in result.err
    assert fake.asked("POST", "/v1/limits") == []


def test_what_the_daemon_refuses_is_told(fake: FakeDaemon, run: Run) -> None:
    text = "max_jobs=0 is not from 1 to 1,000,000; solvisor pause starts nothing more"
    fake.answers["POST", "/v1/limits"] = Problem(title="refused", status=400, detail=text, code="usage")
    result = run("limit", "max_jobs", "0")
    assert (result.status, result.err) == (2, f"solvisor: {text}\n")


def test_the_status_has_a_line_for_each_limit_that_somebody_set(fake: FakeDaemon, run: Run) -> None:
    memory = replace(MEMORY, value=64 * GIB, by="bob", since="2025-11-02T10:00:00.000000Z")
    fake.answers["GET", "/v1/status"] = status(limits_set=(memory, SEATS, GONE))
    assert [line for line in run("status").lines if "LIMITED" in line] == [
        "LIMITED  memory to 64 GiB (configured: 126 GiB), since 2 Nov 2025 by bob",
        "LIMITED  license.orcaflex to 1 (configured: 2), since 2 Nov 2025 by ann: gui[2J work",
    ]


# --- priority -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ["7", "-5", "+3", "0", "-1000"])
def test_a_job_is_moved(fake: FakeDaemon, run: Run, number: str) -> None:
    fake.answers["POST", f"/v1/jobs/{BEAM}/priority"] = view(state="queued", priority=int(number))
    result = run("priority", BEAM, number)
    assert (result.status, result.err) == (0, "")
    assert result.lines == [f"{BEAM}  priority {int(number)}"]
    assert sent(fake, f"/v1/jobs/{BEAM}/priority") == {"priority": int(number)}
    assert json.loads(run("priority", "--json", BEAM, number).out)["priority"] == int(number)


def test_what_is_refused_of_one_keeps_no_other_from_its_turn(fake: FakeDaemon, run: Run) -> None:
    started = Problem(title="conflict", status=409, detail="beam-1 is running; only ...", code="started")
    fake.answers["POST", "/v1/jobs/beam-1/priority"] = started
    fake.answers["POST", "/v1/jobs/beam-2/priority"] = view(priority=-5)
    fake.answers["POST", "/v1/jobs/beam-3/priority"] = no_such_job("beam-3")
    result = run("priority", "beam-1", "beam-2", "beam-3", "-5")
    assert result.status == 1
    assert result.lines == [f"{BEAM}  priority -5"]
    assert result.err.splitlines() == [
        "solvisor: beam-1 is running; only ...",
        "solvisor: no job is called beam-3; see: solvisor list",
    ]


@pytest.mark.parametrize("number", ["high", "1001", "-1001", "1.5", "+-5", "٣"])
def test_what_is_no_priority_is_not_sent(fake: FakeDaemon, run: Run, number: str) -> None:
    result = run("priority", "last", number)
    assert result.status == 2
    assert "the priority comes last, a whole number from -1000 to 1000" in result.err
    assert fake.requests == []
    assert run("priority", "7").status == 2, "of which job?"
