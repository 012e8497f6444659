"""Runners beside one another: round by round each has its turn, and in each turn the floor is measured anew.

A ratio is to the floor of the same turn, seconds before, so what else the machine does meets both. What is measured in
a turn is a ``Measure``: ``Rates`` here, another in ``latency.py``.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import tree
from bench_kit import late_ms
from figures import fitting, percentile, shown, spread, table
from runners import Failed, Floor, Runner

WARM_UP = (20, 50)
"""So many jobs before those that count; the second time tells how many fit."""

FLOOR_JOBS = 500
LATE_SAMPLES = 10

RESTLESS = 1.5
"""A floor that swings by more tells of other load, and ratios to it are no figures to quote."""


class Measure(Protocol):
    """What is measured in a turn, and how it is told."""

    head: tuple[str, ...]
    """Of the columns that ``row`` makes."""

    def take(self, floor: Runner, runner: Runner, way: str) -> Any:
        """One turn, with a runner that was started just now; ``way`` is the kind of its jobs."""

    def figures(self, turns: Sequence[Any]) -> dict[str, Any]:
        """For the JSON line, of all turns of one runner."""

    def row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        """For the table."""

    def floor(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        """What the floor reached in all turns (``median``, ``min``, ``max``), and its row."""

    def swing(self) -> float:
        """By which factor the floor swung, where nothing but the machine can be the reason."""


@dataclass
class Entry:
    """One runner in a race: its turns, or why it has none."""

    runner: type[Runner]
    way: str = "spawn"
    turns: list[Any] = field(default_factory=list)
    release: str = ""
    left_out: str | None = None

    @property
    def name(self) -> str:
        return self.runner.name


class Race:
    """Interleaved rounds of ``entries`` in ``base``."""

    def __init__(self, base: Path, entries: Sequence[Entry], measure: Measure) -> None:
        self.entries = list(entries)
        self._base = base
        self._measure = measure
        self._late: list[float] = []
        self._number = 0
        for entry in self.entries:
            self._leave_out(entry, entry.runner.why_not())

    def run(self, rounds: int) -> None:
        """All rounds. A runner that fails is left out from then on."""
        reason = Floor.why_not()
        if reason is not None:
            sys.exit(f"there is no floor: {reason}")
        with Floor(self._base / "floor") as floor:
            for number in range(rounds):
                first = number % len(self.entries)  # whoever comes first pays for nobody
                for entry in self.entries[first:] + self.entries[:first]:
                    if entry.left_out is None:
                        print(f"round {number + 1} of {rounds}: {entry.name}", file=sys.stderr, flush=True)
                        try:
                            self._turn(floor, entry)
                        except Failed as error:
                            self._leave_out(entry, str(error))

    def _turn(self, floor: Runner, entry: Entry) -> None:
        self._late += [late_ms() for _ in range(LATE_SAMPLES)]
        self._number += 1
        with tree.alone(), entry.runner(self._base / f"turn-{self._number}") as runner:
            entry.turns.append(self._measure.take(floor, runner, entry.way))
            entry.release = runner.release

    def _leave_out(self, entry: Entry, reason: str | None) -> None:
        entry.left_out = reason
        if reason is not None:
            print(f"{entry.name} is left out: {reason}", file=sys.stderr, flush=True)

    def report(self) -> dict[str, Any]:
        """For the JSON line."""
        runners: dict[str, Any] = {}
        for entry in self.entries:
            if entry.left_out is not None:
                runners[entry.name] = {"left_out": entry.left_out}
            else:
                about = {"release": entry.release, "loses": entry.runner.loses}
                runners[entry.name] = about | self._measure.figures(entry.turns)
        late = {"p50": statistics.median(self._late), "p95": percentile(self._late, 0.95)}
        noise = {"floor_swing": self._measure.swing(), "late_ms": late}
        return {"floor": self._measure.floor()[0], **noise, "runners": runners}

    def print(self) -> None:
        """A table in the order of the entries, and what is to be known about it."""
        report = self.report()
        rows = [(Floor.name, *self._measure.floor()[1], Floor.loses)]
        for name, figures in report["runners"].items():
            if "left_out" not in figures:
                rows.append((name, *self._measure.row(figures), figures["loses"]))
        print(table(("runner", *self._measure.head, "kill -9 loses"), rows))
        swing, late = report["floor_swing"], report["late_ms"]
        print(
            f"noise: the floor itself swung by a factor of {swing:.2f}; a sleep of 1 ms ended {late['p50']:.2f} ms "
            f"late in the middle, {late['p95']:.2f} ms at the 95th percentile"
        )
        if swing > RESTLESS:
            print("THE MACHINE WAS RESTLESS: something else ran. Take these figures for a hint, and measure again.")
        for name, figures in report["runners"].items():
            if "left_out" in figures:
                print(f"left out: {name}: {figures['left_out']}")


class Turn(NamedTuple):
    """How fast a runner was in one round."""

    per_second: float
    floor: float
    """What the floor reached, right before and right after."""

    cpu_ms: float
    """Of all its processes, a job's own among them, per job."""

    mib: float
    """Of all its processes, after the jobs."""

    jobs: int


class Rates:
    """Jobs a second, as many at once as fit into so many ``seconds``, at most ``jobs``; what one costs, and memory."""

    head = ("jobs/s (min to max)", "of the floor", "CPU ms a job", "MiB", "jobs")

    def __init__(self, jobs: int, seconds: float) -> None:
        self._jobs = jobs
        self._seconds = seconds
        self._floors: list[float] = []
        self._floor_cpu: list[float] = []

    def take(self, floor: Runner, runner: Runner, way: str) -> Turn:
        for count in (min(count, self._jobs) for count in WARM_UP):
            rate = count / runner.carry_out(way, count)
        count = fitting(rate, self._seconds, self._jobs)
        least = [self._floor(floor)]
        before = tree.cpu_seconds()
        took = runner.carry_out(way, count)
        used, mib = tree.cpu_seconds() - before, tree.pss_mib()
        least.append(self._floor(floor))
        self._floors += least
        return Turn(count / took, statistics.mean(least), 1000 * used / count, mib, count)

    def swing(self) -> float:
        return max(self._floors) / min(self._floors)

    def _floor(self, floor: Runner) -> float:
        before = tree.cpu_seconds()
        took = floor.carry_out("spawn", FLOOR_JOBS)
        self._floor_cpu.append(1000 * (tree.cpu_seconds() - before) / FLOOR_JOBS)
        return FLOOR_JOBS / took

    def figures(self, turns: Sequence[Turn]) -> dict[str, Any]:
        return {
            "per_second": spread(turn.per_second for turn in turns),
            "ratio": spread(turn.per_second / turn.floor for turn in turns),
            "cpu_ms": spread(turn.cpu_ms for turn in turns),
            "mib": spread(turn.mib for turn in turns),
            "jobs": max(turn.jobs for turn in turns),
        }

    def row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        mib = figures["mib"]["median"]
        return (
            shown(figures["per_second"]),
            shown(figures["ratio"], 2),
            shown(figures["cpu_ms"], 2),
            f"{mib:.0f}" if mib >= 1 else "",  # what ended with its jobs has none
            str(figures["jobs"]),
        )

    def floor(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        floors, cpu = spread(self._floors), spread(self._floor_cpu)
        return {**floors, "cpu_ms": cpu}, (shown(floors), "1.00", shown(cpu, 2), "", str(FLOOR_JOBS))
