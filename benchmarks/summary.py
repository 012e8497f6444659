"""The figures that matter most, in one table, from what the benchmarks kept: what was aimed at, and what was reached.

python benchmarks/summary.py [FOLDER]
"""

from __future__ import annotations

import json
import operator
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from figures import table
from race import RESTLESS
from record import RESULTS
from runners import Solvisor, WarmSolvisor


class Aim(NamedTuple):
    """``must`` is to be reached, ``goal`` is hoped for; which one is better tells ``above``."""

    what: str
    question: str
    value: Callable[[dict[str, Any]], float]
    must: float
    goal: float
    above: bool = False

    def verdict(self, value: float) -> str:
        better = operator.ge if self.above else operator.le
        return "goal reached" if better(value, self.goal) else "ok" if better(value, self.must) else "MISSED"


def _own(figure: str) -> Callable[[dict[str, Any]], float]:
    """The middle of a figure of Solvisor itself."""
    return lambda report: float(report["runners"][Solvisor.name][figure]["median"])


AIMS = (
    Aim("no-op jobs, share of the floor", "throughput", _own("ratio"), 0.30, 0.45, above=True),
    Aim("CPU of a no-op job, its own included, ms", "throughput", _own("cpu_ms"), 2.4, 1.8),
    Aim("one job on an idle system, ms", "latency", _own("ms"), 8, 4),
    Aim("long queue to short, jobs/s", "load", lambda r: float(r["ratio"]["median"]), 0.9, 1.0, above=True),
    Aim("memory with the long queue, MiB", "load", lambda r: float(r["rss_mib"]["many"]), 300, 150),
    Aim("warm calls to no-op programs", "warm", lambda r: float(r["to_noop"][WarmSolvisor.name]["median"]), 1.5, 3,
        above=True),
    Aim("readiness seen late, worst kind, 95 %, ms", "readiness",
        lambda r: max(told["p95"] for name, told in r["seen_later_ms"].items() if not name.startswith("bare")), 10, 2),
    Aim("idle, % of a core", "idle", lambda r: float(r["runners"][Solvisor.name]["cpu_percent"]), 0.2, 0.05),
    Aim("idle, memory (RSS), MiB", "idle", lambda r: float(r["runners"][Solvisor.name]["daemon_rss_mib"]), 60, 45),
    Aim("solvisor status, ms", "status",
        lambda r: float(r["ways"]["solvisor status, a daemon runs"]["ms"]["median"]), 200, 80),
)  # fmt: skip


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    """What was kept there, by question."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def show(folder: Path) -> None:
    """The table, of those figures that are there."""
    there = reports(folder)
    rows = []
    for aim in AIMS:
        if aim.question in there:
            value = aim.value(there[aim.question])
            quick = " (quick)" if there[aim.question]["quick"] else ""
            rows.append((aim.what, f"{aim.must:g}", f"{aim.goal:g}", f"{value:.3g}", aim.verdict(value) + quick))
    restless = [name for name, report in there.items() if report.get("floor_swing", 1.0) > RESTLESS]
    print()
    print(table(("figure", "must", "goal", "reached", ""), rows))
    if restless:
        print(f"the machine was restless while this was measured: {', '.join(restless)}")


if __name__ == "__main__":
    show(Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS)
