"""What became of the jobs of a period, counted by SQLite: the same as counted by hand, and only of that period."""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest

from builders import NOON_US, SECOND_US
from report_kit import make_past
from solvisor import tallies
from solvisor.errors import StoreFailed
from solvisor.figures import RUN_EDGES, Spread
from solvisor.model import State
from solvisor.report import Ended

ALL = (0, 1 << 60)
JOBS = 1500


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Path:
    db = tmp_path_factory.mktemp("past") / "solvisor.db"
    make_past(db, JOBS, NOON_US)
    return db


@pytest.fixture(scope="module")
def ended(db: Path) -> Ended:
    return tallies.ended(db, *ALL)


class Tried:
    """One try, read by hand."""

    def __init__(self, row: sqlite3.Row) -> None:
        self.row = row
        self.solver, self.state, self.cause = row["solver"], row["state"], row["try_cause"]
        self.last = row["n"] == row["tries"]
        settings, facts = json.loads(row["settings"]), json.loads(row["facts"] or "{}")
        self.cpus, self.memory = settings.get("cpus", 1), settings.get("memory_bytes", 0)
        self.ran = facts.get("seconds")
        usage = facts.get("usage", {})
        self.busy = usage and usage["cpu_user_seconds"] + usage["cpu_system_seconds"]
        self.rss, self.source = usage.get("max_rss_bytes"), usage.get("max_rss_source")


@pytest.fixture(scope="module")
def tries(db: Path) -> list[Tried]:
    with closing(sqlite3.connect(db)) as connection:
        connection.row_factory = sqlite3.Row
        query = "SELECT *, attempts.cause AS try_cause FROM jobs JOIN attempts ON job = seq"
        return [Tried(row) for row in connection.execute(query)]


def rank(values: list[float], percent: int) -> float:
    """The nearest rank, as every textbook has it."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def about(number: float) -> float:
    """Equal to what differs by how it was added up."""
    return cast(float, pytest.approx(number))


def by_hand(tries: list[Tried], value: Callable[[Tried], float | None], test: Callable[[Tried], bool]) -> Any:
    found: defaultdict[str, list[float]] = defaultdict(list)
    for each in tries:
        number = value(each) if test(each) else None
        if number is not None:
            found[each.solver].append(number)
    return {
        solver: Spread(
            len(numbers), rank(numbers, 50), rank(numbers, 95), max(numbers), cast(float, pytest.approx(sum(numbers)))
        )
        for solver, numbers in found.items()
    }


def test_states_and_tries_are_counted(ended: Ended, tries: list[Tried], db: Path) -> None:
    assert sum(sum(states.values()) for states in ended.states.values()) == JOBS
    for solver, counts in ended.states.items():
        own = [each for each in tries if each.solver == solver]
        assert counts == Counter(State(each.state) for each in own if each.last)
        causes = Counter(each.cause for each in own)
        told = ended.tries[solver]
        assert (told.tries, told.jobs) == (len(own), sum(each.last for each in own))
        assert (told.interruptions, told.timeouts, told.server_losses) == (
            causes["lost"],
            causes["timeout"],
            causes["server"],
        )
        assert told.core_seconds == pytest.approx(sum(each.ran * each.cpus for each in own if each.ran is not None))
        assert told.measured_used == pytest.approx(sum(each.busy for each in own if each.busy))
    assert any(told.interruptions for told in ended.tries.values())
    assert any(told.timeouts for told in ended.tries.values())


def test_percentiles_are_exact(ended: Ended, tries: list[Tried]) -> None:
    assert ended.run == by_hand(tries, lambda each: each.ran, lambda each: each.last)
    good = by_hand(tries, lambda each: each.ran, lambda each: each.last and each.state == "succeeded")
    assert ended.run_succeeded == good
    waited = by_hand(
        tries, lambda each: (each.row["started_us"] - each.row["submitted_us"]) / 1e6, lambda each: each.last
    )
    assert ended.queue == waited
    ccx = ended.cores["ccx"]
    assert ccx.reserved == 4
    steady = by_hand(tries, lambda each: each.busy / each.ran, lambda each: each.ran is not None and each.ran >= 10)
    assert ccx.used == steady["ccx"]
    assert (
        ended.memory["ccx"].used == by_hand(tries, lambda each: each.rss, lambda each: each.source == "cgroup")["ccx"]
    )
    assert "modelica" not in ended.memory, "what a warm server says of itself is nobody's reserve"
    assert "modelica" not in ended.memory_largest


def test_runs_are_counted_between_the_edges(ended: Ended, tries: list[Tried]) -> None:
    edges = [0.0, *RUN_EDGES, math.inf]
    for solver, counts in ended.run_counts.items():
        ran = [each.ran for each in tries if each.solver == solver and each.last and each.ran is not None]
        assert counts == tuple(sum(low <= seconds < high for seconds in ran) for low, high in pairwise(edges))


def test_failures_are_told_by_what_they_have_in_common_the_most_frequent_first(
    ended: Ended, tries: list[Tried]
) -> None:
    for solver, failures in ended.failures.items():
        own = (each for each in tries if each.solver == solver and each.last and each.state == "failed")
        alike = Counter(each.row["message"] for each in own)
        assert {failure.message: failure.jobs for failure in failures} == dict(alike)
        assert [failure.jobs for failure in failures] == sorted(alike.values(), reverse=True)


def test_people_are_told_by_what_they_took(ended: Ended, tries: list[Tried]) -> None:
    took: Counter[tuple[Any, Any]] = Counter()
    for each in tries:
        took[each.row["user"], each.row["project"]] += (each.ran or 0) * each.cpus
    most = took.most_common(20)
    assert [(person.user, person.project) for person in ended.people] == [who for who, _ in most]
    assert [person.core_seconds for person in ended.people] == pytest.approx([seconds for _, seconds in most])
    assert ended.people_count == len(took)


def test_only_what_ended_in_the_period_counts(db: Path) -> None:
    with closing(sqlite3.connect(db)) as connection:
        times = [row[0] for row in connection.execute("SELECT finished_us FROM jobs ORDER BY finished_us")]
    found = tallies.ended(db, times[100], times[200])
    assert sum(sum(states.values()) for states in found.states.values()) == 100
    nothing = tallies.ended(db, 0, 1)
    assert nothing == Ended({}, {}, {}, {}, {}, {}, {}, {}, {}, {}, [], 0)


@pytest.fixture
def copy(db: Path, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    path = tmp_path / "copy.db"
    path.write_bytes(db.read_bytes())
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        yield connection


STRANGE = b'{"usage": 3, "cpus": "x", "seconds": {}}'


@pytest.mark.parametrize("broken", [b"", b"{", b"[]", STRANGE, b"\xff\xfe", b"null"])
def test_rows_that_cannot_be_read_count_as_far_as_they_can(
    copy: sqlite3.Connection, tmp_path: Path, broken: bytes
) -> None:
    copy.execute("UPDATE attempts SET facts = ?, settings = ? WHERE n = 1", (broken, broken))
    found = tallies.ended(tmp_path / "copy.db", *ALL)
    assert sum(sum(states.values()) for states in found.states.values()) == JOBS


def test_the_clock_that_was_set_back_makes_no_negative_times(copy: sqlite3.Connection, tmp_path: Path) -> None:
    copy.execute("UPDATE jobs SET submitted_us = finished_us + 5000000")
    without = "json_remove(CAST(facts AS TEXT), '$.seconds')"
    copy.execute(f"UPDATE attempts SET facts = {without}, started_us = started_us * 2")
    found = tallies.ended(tmp_path / "copy.db", *ALL)
    assert {spread.max for spread in (*found.queue.values(), *found.run.values())} == {0}


def test_nobody_waits_for_what_is_given_up(db: Path) -> None:
    over = threading.Event()
    over.set()
    with pytest.raises(StoreFailed, match="interrupted"):
        tallies.ended(db, *ALL, over.is_set)


def test_a_reader_holds_up_no_writer(db: Path, copy: sqlite3.Connection, tmp_path: Path) -> None:
    copy.execute("PRAGMA journal_mode = WAL")
    copy.execute("BEGIN IMMEDIATE")
    copy.execute("UPDATE jobs SET name = 'x'")
    found = tallies.ended(tmp_path / "copy.db", NOON_US - 86400 * SECOND_US, NOON_US)
    copy.execute("COMMIT")
    assert found.states
