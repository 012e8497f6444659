"""What does it cost while nothing happens? Share of a core and memory, after a few jobs and a rest.

Solvisor alone, and with many idle warm workers; its peers; and as the floor a Python interpreter that sleeps. One after
the other, each with all of its processes. What they share of their memory is counted once (PSS).

    python benchmarks/idle.py [--seconds 30] [--workers 64] [--no-peers] [--quick]
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import install
import tree
from bench_kit import NOOP, late_ms, warm
from figures import percentile, table
from record import Options, keep, scratch
from runners import PYTHON, Celery, Dask, Failed, Huey, Pool, Runner, Solvisor, TaskSpooler

SETTLE_SECONDS = 10.0
JOBS = 20


class Sleeper(Runner):
    """The floor: an interpreter that does nothing."""

    name = "a sleeping interpreter"
    loses = "all"

    def start(self) -> None:
        self._process = subprocess.Popen([PYTHON, "-c", "import time; time.sleep(1e6)"])

    def carry_out(self, way: str, count: int) -> float:
        return 0.0

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


class PatientHuey(Huey):
    """With the poll that it comes with; elsewhere it looks every millisecond."""

    arguments = ("--delay", "0.1")


PEERS: tuple[type[Runner], ...] = (TaskSpooler, PatientHuey, Celery, Dask, Pool)


def keeping(workers: int) -> type[Solvisor]:
    """With so many warm workers."""

    class Keeper(Solvisor):
        name = f"Solvisor, {workers} idle workers"
        config = NOOP + warm("idle", "nothing", workers)

        def start(self) -> None:
            super().start()
            self.daemon.until_logged("server.ready", workers)

    return Keeper


def rest(runner: Runner, settle: float, seconds: float) -> dict[str, Any]:
    """What it uses while nobody asks anything of it."""
    runner.carry_out("spawn", JOBS)
    time.sleep(settle)
    before, began = tree.cpu_seconds(), time.monotonic()
    own = _own(runner)
    time.sleep(seconds)
    took = time.monotonic() - began
    figures = {"cpu_percent": 100 * (tree.cpu_seconds() - before) / took, "mib": tree.pss_mib()}
    if isinstance(runner, Solvisor):
        figures["daemon_cpu_percent"] = 100 * (_own(runner) - own) / took
        figures["daemon_rss_mib"] = runner.daemon.mib("VmRSS")
        figures["daemon_pss_mib"] = tree.pss_mib_of(runner.daemon.process.pid)
    return figures


def _own(runner: Runner) -> float:
    return tree.own_cpu_seconds(runner.daemon.process.pid) if isinstance(runner, Solvisor) else 0.0


def measured(base: Path, runners: list[type[Runner]], settle: float, seconds: float) -> dict[str, Any]:
    report: dict[str, Any] = {}
    for number, each in enumerate(runners):
        reason = each.why_not()
        if reason is None:
            print(f"{each.name}: {settle + seconds:.0f} s", file=sys.stderr, flush=True)
            try:
                with tree.alone(), each(base / f"idle-{number}") as runner:
                    report[each.name] = rest(runner, settle, seconds)
                continue
            except Failed as error:
                reason = str(error)
        report[each.name] = {"left_out": reason}
    return report


def main() -> None:
    parser = Options(__doc__)
    parser.count("seconds", 30.0, 5.0, "each is watched for so long")
    parser.count("workers", 64, 8, "idle warm workers")
    parser.peers()
    arguments = parser.asked()
    seconds, workers = arguments.seconds, arguments.workers
    runners = [Sleeper, Solvisor, keeping(workers)]
    if not arguments.no_peers:
        install.install()
        runners += PEERS
    with scratch(arguments) as base:
        report = measured(base, runners, 1.0 if arguments.quick else SETTLE_SECONDS, seconds)
        late = [late_ms() for _ in range(100)]
    rows = []
    for name, told in report.items():
        if "left_out" in told:
            print(f"left out: {name}: {told['left_out']}")
            continue
        daemon = ("", "", "")
        if "daemon_rss_mib" in told:
            shares = (told["daemon_pss_mib"], told["daemon_rss_mib"])
            daemon = (f"{told['daemon_cpu_percent']:.3f}", *(f"{mib:.1f}" for mib in shares))
        rows.append((name, f"{told['cpu_percent']:.3f}", f"{told['mib']:.1f}", *daemon))
    head = ("idle", "% of a core", "MiB (PSS)", "the daemon's own %", "MiB (PSS)", "MiB (RSS)")
    print(table(head, rows))
    print(f"noise: a sleep of 1 ms ended {percentile(late, 0.95):.2f} ms late at the 95th percentile")
    late_told = {"p50": percentile(late, 0.5), "p95": percentile(late, 0.95)}
    keep("idle", {"seconds": seconds, "late_ms": late_told, "runners": report}, arguments)


if __name__ == "__main__":
    main()
