"""How fast are jobs that are calls of a Python function in warm workers? Beside no-op programs, and beside peers.

A job goes all the way in both: inbox, row, attempt, manifest, result. The function does nothing, two workers serve. The
peers call the same function; only huey and Celery keep what waits on the disk.

    python benchmarks/warm.py [--jobs 1000] [--rounds 5] [--no-peers] [--quick]
"""

from __future__ import annotations

import install
from figures import ratios, shown
from race import Entry, Race, Rates
from record import Options, keep, scratch
from runners import Celery, Dask, Huey, Pool, Runner, Solvisor, WarmSolvisor

PEERS: tuple[type[Runner], ...] = (Huey, Celery, Dask, Pool)


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 1000, 200, "at most, in each turn")
    parser.count("rounds", 5, 1)
    parser.peers()
    arguments = parser.asked()
    jobs, rounds = arguments.jobs, arguments.rounds
    entries = [Entry(Solvisor), Entry(WarmSolvisor, "call")]
    if not arguments.no_peers:
        install.install()
        entries += [Entry(peer, "call") for peer in PEERS]
    with scratch(arguments) as base:
        race = Race(base, entries, Rates(jobs, 3.0))
        race.run(rounds)
    race.print()
    report = {"jobs": jobs, "rounds": rounds, **race.report(), "to_noop": {}}
    rates = {entry.name: [turn.per_second for turn in entry.turns] for entry in entries}
    for entry in entries[1:]:
        if entry.left_out is None:
            report["to_noop"][entry.name] = ratios(rates, entry.name, Solvisor.name)
            print(f"{entry.name}: {shown(report['to_noop'][entry.name], 2)} times {Solvisor.name}'s no-op programs")
    keep("warm", report, arguments)


if __name__ == "__main__":
    main()
