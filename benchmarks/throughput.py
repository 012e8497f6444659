"""How many no-op jobs a second, and what does one cost? From rename into the inbox to visible manifest, two at a time.

Beside Solvisor, turn by turn in the same run: a C ``posix_spawn`` loop (the floor), ``xargs``, GNU parallel,
task-spooler, huey, Celery, dask.distributed and ``ProcessPoolExecutor``. Every promise is kept: contents and folders
fsynced, rows committed, usage and hashes taken, manifests written. Processor time is that of all processes of a
runner, the job's own included.

    python benchmarks/throughput.py [--jobs 1000] [--rounds 5] [--no-peers] [--quick]
"""

from __future__ import annotations

import install
from race import Entry, Race, Rates
from record import Options, keep, scratch
from runners import PEERS, Solvisor


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 1000, 200, "at most, in each turn")
    parser.count("rounds", 5, 1)
    parser.add_argument("--seconds", type=float, default=3.0, help="a turn of a slow runner takes about so long")
    parser.peers()
    arguments = parser.asked()
    jobs, rounds = arguments.jobs, arguments.rounds
    runners = [Solvisor] if arguments.no_peers else [Solvisor, *PEERS]
    if not arguments.no_peers:
        install.install()
    with scratch(arguments) as base:
        race = Race(base, [Entry(runner) for runner in runners], Rates(jobs, arguments.seconds))
        race.run(rounds)
    race.print()
    keep("throughput", {"jobs": jobs, "rounds": rounds, **race.report()}, arguments)


if __name__ == "__main__":
    main()
