"""How long does one job take on an idle system? From rename into the inbox to visible result in ``done/``.

Beside Solvisor, turn by turn in the same run: its peers, from handing in a no-op job until its end is known; and the
floor, a spawn and wait in C. One job at a time, with a rest before each.

    python benchmarks/latency.py [--jobs 20] [--rounds 5] [--no-peers] [--quick]
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import install
from figures import percentile, shown, spread
from race import Entry, Race
from record import Options, keep, scratch
from runners import Celery, Dask, Huey, Pool, Runner, Solvisor, TaskSpooler

PEERS: tuple[type[Runner], ...] = (TaskSpooler, Huey, Celery, Dask, Pool)
"""Those that one can give a job while they wait for one."""

WARM_UP = 20
REST_SECONDS = 0.1


class Turn(NamedTuple):
    """Milliseconds of each job, and of each spawn of the floor right before."""

    took: list[float]
    floor: list[float]


class Single:
    """``jobs`` jobs, one at a time."""

    head = ("median ms (min to max)", "95 %", "of the floor")

    def __init__(self, jobs: int) -> None:
        self._jobs = jobs
        self._floors: list[float] = []
        self._middles: list[float] = []

    def take(self, floor: Runner, runner: Runner, way: str) -> Turn:
        runner.carry_out(way, WARM_UP)
        took, least = [], []
        for _ in range(self._jobs):
            least.append(self._one(floor, "spawn"))
            took.append(self._one(runner, way))
        self._floors += least
        self._middles.append(statistics.median(least))
        return Turn(took, least)

    def _one(self, runner: Runner, way: str) -> float:
        time.sleep(REST_SECONDS)
        return 1000 * runner.carry_out(way, 1)

    def swing(self) -> float:
        """Between the rounds; that of single spawns is theirs on a machine at rest, too."""
        return max(self._middles) / min(self._middles)

    def figures(self, turns: Sequence[Turn]) -> dict[str, Any]:
        every = [ms for turn in turns for ms in turn.took]
        return {
            "ms": spread(every),
            "round_ms": spread(statistics.median(turn.took) for turn in turns),
            "p95": percentile(every, 0.95),
            "ratio": spread(statistics.median(turn.took) / statistics.median(turn.floor) for turn in turns),
        }

    def row(self, figures: Mapping[str, Any]) -> tuple[str, ...]:
        return shown(figures["ms"], 1), f"{figures['p95']:.1f}", shown(figures["ratio"], 1)

    def floor(self) -> tuple[dict[str, Any], tuple[str, ...]]:
        floors = spread(self._floors)
        row = (shown(floors, 1), f"{percentile(self._floors, 0.95):.1f}", "1.0")
        return {**floors, "round_ms": spread(self._middles)}, row


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 20, 5, "in each turn")
    parser.count("rounds", 5, 1)
    parser.peers()
    arguments = parser.asked()
    jobs, rounds = arguments.jobs, arguments.rounds
    peers: tuple[type[Runner], ...] = () if arguments.no_peers else PEERS
    if peers:
        install.install()
    with scratch(arguments) as base:
        race = Race(base, [Entry(runner) for runner in (Solvisor, *peers)], Single(jobs))
        race.run(rounds)
    race.print()
    keep("latency", {"jobs": jobs, "rounds": rounds, **race.report()}, arguments)


if __name__ == "__main__":
    main()
