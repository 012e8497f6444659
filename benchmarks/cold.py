"""What does a warm server save? One piece of work as a script with a new interpreter each time, and as a warm call.

Both go all the way through Solvisor: inbox, row, attempt, manifest. Beside them, turn by turn in the same run: the same
scripts by ``xargs -P2``, without anything kept.

    python benchmarks/cold.py [--jobs 300] [--rounds 5] [--quick]
"""

from __future__ import annotations

from bench_kit import NOOP, warm
from figures import ratios, shown
from race import Entry, Race, Rates
from record import Options, keep, scratch
from runners import HERE, PYTHON, Runner, Solvisor, timed

ROWS = "".join(f"{n},{n * n % 97}.5,{n % 7}\n" for n in range(50))
WORK = HERE / "programs" / "work.py"


class Scripts(Solvisor):
    name = "Solvisor, a new interpreter each"
    suffix = "cold"
    text = ROWS
    config = f"""{NOOP}
[solver.cold]
accept = ["*.cold"]
command = ["{PYTHON}", "{WORK}", "{{input}}"]
"""


class Calls(Solvisor):
    name = "Solvisor, two warm workers"
    suffix = "warm"
    text = ROWS
    config = NOOP + warm("warm", "process", 2)


class Bare(Runner):
    name = "xargs -P2, a new interpreter each"
    loses = "all"

    def start(self) -> None:
        (self.folder / "rows.csv").write_text(ROWS)

    def carry_out(self, way: str, count: int) -> float:
        return timed(["xargs", "-P2", "-n1", PYTHON, str(WORK)], self.folder, b"rows.csv\n" * count)


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 300, 60, "at most, in each turn")
    parser.count("rounds", 5, 1)
    arguments = parser.asked()
    jobs, rounds = arguments.jobs, arguments.rounds
    entries = [Entry(Bare), Entry(Scripts), Entry(Calls)]
    with scratch(arguments) as base:
        race = Race(base, entries, Rates(jobs, 5.0))
        race.run(rounds)
    race.print()
    rates = {entry.name: [turn.per_second for turn in entry.turns] for entry in entries}
    saved = ratios(rates, Calls.name, Scripts.name)
    kept = ratios(rates, Scripts.name, Bare.name)
    print(f"warm to cold, through Solvisor: {shown(saved, 2)}; cold through Solvisor to bare: {shown(kept, 2)}")
    report = {"jobs": jobs, "rounds": rounds, **race.report(), "warm_to_cold": saved, "cold_to_bare": kept}
    keep("cold", report, arguments)


if __name__ == "__main__":
    main()
