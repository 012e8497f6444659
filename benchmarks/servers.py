"""What do warm servers cost, and what do they save? Four parts, in interleaved rounds beside peers of the same run.

``trips``   round trips per second through one warm Python worker and one ZeroMQ server, beside bare client loops
``ready``   how much later than a server is ready that is seen, beside bare polling
``jobs``    jobs through a real daemon, from rename into the inbox to visible manifest, warm beside cold: a function
            called in a warm worker, the same function in a new interpreter, and the no-op command
``idle``    memory and processor time of a daemon with many idle workers, beside one with none

Prints a table for each and a JSON line. The first two parts are in ``channels.py``.

    python benchmarks/servers.py [PART ...] [--rounds 5] [--trips 2000] [--starts 20] [--jobs 500] [--cold 100]
                                 [--idle 64] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import uvloop
from channels import PEERS, PROGRAMS, PYTHON, Series, readiness, trips

TRUE = shutil.which("true") or "/bin/true"
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE_SECONDS = 600

Report = dict[str, Any]


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(share * len(values)), len(values) - 1)]


def ratios(series: Series, name: str, to: str) -> list[float]:
    """Round by round."""
    return [one / other for one, other in zip(series[name], series[to], strict=True)]


def print_rates(title: str, series: Series, peers: Mapping[str, str]) -> Report:
    """A table of rates, each with its ratio to its peer; the same for the JSON line."""
    print(f"\n{title:<44} {'per second':>10} {'(min to max)':>18}   ratio")
    report: Report = {}
    for name, values in series.items():
        report[name] = {"per_second": spread(values)}
        line = f"{name:<44} {statistics.median(values):10.0f} {f'{min(values):.0f} to {max(values):.0f}':>18}"
        if name in peers:
            shares = spread(ratios(series, name, peers[name]))
            report[name] |= {"ratio": shares, "to": peers[name]}
            line += f"   {shares['median']:.2f} ({shares['min']:.2f} to {shares['max']:.2f}) of {peers[name]}"
        print(line)
    return report


def print_lateness(took: Series, late: Series) -> Report:
    head = f"{'ready after':>12} {'seen later: p50':>16} {'p95':>7} {'max':>7}"
    print(f"\n{'readiness, ms':<44} {head}")
    report: Report = {}
    for name, values in late.items():
        told = {"p50": percentile(values, 0.5), "p95": percentile(values, 0.95), "max": max(values)}
        report[name] = {"ready_after_ms": spread(took[name]), "seen_later_ms": told, "starts": len(values)}
        shown = f"{told['p50']:16.2f} {told['p95']:7.2f} {told['max']:7.2f}"
        print(f"{name:<44} {statistics.median(took[name]):12.1f} {shown}")
    return report


# --- jobs through a daemon --------------------------------------------------------------------------------------------


HEAD = """
[daemon]
max_jobs = 2
"""
JOBS = f"""{HEAD}
[solver.noop]
accept = ["*.noop"]
command = ["{TRUE}"]
[solver.nothing]
kind = "python"
accept = ["*.nothing"]
call = "work.py:nothing"
python = "{PYTHON}"
[solver.cold]
accept = ["*.cold"]
command = ["{PYTHON}", "{PROGRAMS / "work.py"}", "{{input}}"]
[solver.warm]
kind = "python"
accept = ["*.warm"]
call = "work.py:process"
python = "{PYTHON}"
"""


class Daemon:
    """A daemon on a fresh home at ``home``, in which the function of ``work.py`` lies."""

    def __init__(self, home: Path, config: str) -> None:
        self.home = home
        self.home.mkdir(parents=True)
        (home / "solvisor.toml").write_text(config)
        shutil.copy(PROGRAMS / "work.py", home)
        command = [PYTHON, "-m", "solvisor_service.cli", "serve", "--home", str(home)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._log = home / "state" / "log" / "solvisor.jsonl"
        self._scratch = home.with_name(f"{home.name}-scratch")
        self._scratch.mkdir()
        self._number = 0

    def wait_log(self, event: str, count: int) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not (self._log.exists() and self._log.read_text().count(f'"{event}"') >= count):
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"the daemon did not log {event}")
            time.sleep(0.05)

    def drop(self, solver: str, count: int) -> float:
        """Seconds from the first rename into the inbox until ``count`` manifests are visible."""
        pairs = []
        rows = "".join(f"{n},{n * n % 97}.5,{n % 7}\n" for n in range(50))
        for _ in range(count):
            self._number += 1
            name = f"job{self._number:06}.{solver}"
            (self._scratch / name).write_text(rows)
            pairs.append((self._scratch / name, self.home / "inbox" / name))
        pause = 0.01 if count > 1 else 0.0002
        end = time.monotonic() + PATIENCE_SECONDS
        start = time.perf_counter()
        for source, target in pairs:
            source.rename(target)
        while len(os.listdir(self.home / "done")) < count:
            if time.monotonic() > end or any(os.listdir(self.home / bad) for bad in ("failed", "rejected")):
                sys.exit(f"a job of {solver} did not succeed")
            time.sleep(pause)
        seconds = time.perf_counter() - start
        for folder in (self.home / "done").iterdir():  # a long folder would take long to look at
            shutil.rmtree(folder)
        return seconds

    def cpu_seconds(self) -> tuple[float, float]:
        """Processor time of the daemon itself, and of its children, alive and ended."""
        own, ended = cpu_times(self.process.pid)
        return own, ended + sum(sum(cpu_times(pid)) for pid in children(self.process.pid))

    def rss_bytes(self) -> int:
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * PAGE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.process.terminate()  # so that its workers end, too
        if self.process.wait(60) != 0 and kind is None:
            sys.exit(f"the daemon ended with {self.process.returncode}")


def cpu_times(pid: int) -> tuple[float, float]:
    """Processor seconds of a process, and of those of its children that it reaped."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    times = [int(field) / TICK for field in fields[11:15]]
    return times[0] + times[1], times[2] + times[3]


def children(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in lists for child in path.read_text().split()]


def bare_scripts(base: Path, count: int) -> float:
    """Seconds for as many interpreters as jobs, two at a time, without a daemon."""
    rows = base / "rows.csv"
    rows.write_text("1,2,3\n")
    start = time.perf_counter()
    command = ["xargs", "-P2", "-n1", PYTHON, str(PROGRAMS / "work.py")]
    subprocess.run(command, input=f"{rows}\n".encode() * count, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def jobs(base: Path, rounds: int, count: int, cold: int) -> Report:
    """``count`` trivial jobs each way, and ``cold`` jobs that compute something, in each round."""
    base.mkdir()
    sizes = {"noop": count, "nothing": count, "cold": cold, "warm": cold}
    names = {
        "noop": f"{count} no-op commands",
        "nothing": f"{count} calls of a trivial function, warm",
        "cold": f"{cold} scripts, a new interpreter each",
        "warm": f"{cold} calls of the same function, warm",
    }
    bare = f"{cold} bare scripts, xargs -P2"
    rates: Series = {name: [] for name in (*names.values(), bare)}
    costs: dict[str, list[tuple[float, float]]] = {solver: [] for solver in names}
    with Daemon(base / "home", JOBS) as daemon:
        daemon.wait_log("daemon.ready", 1)
        for solver in names:
            daemon.drop(solver, 20)
        for _ in range(rounds):
            for solver, size in sizes.items():
                before = daemon.cpu_seconds()
                rates[names[solver]].append(size / daemon.drop(solver, size))
                after = daemon.cpu_seconds()
                costs[solver].append((1000 * (after[0] - before[0]) / size, 1000 * (after[1] - before[1]) / size))
            rates[bare].append(cold / bare_scripts(base, cold))
        latency = {solver: spread(_one_by_one(daemon, solver, 20)) for solver in names}
    peers = {names["nothing"]: names["noop"], names["warm"]: names["cold"], names["cold"]: bare}
    report = print_rates("jobs through the daemon, two at a time", rates, peers)
    print(f"\n{'processor time per job, ms':<44} {'daemon':>10} {'its children':>13}   one job on an idle system, ms")
    for solver, name in names.items():
        own = spread(cost for cost, _ in costs[solver])
        others = spread(cost for _, cost in costs[solver])
        one = latency[solver]
        alone = f"{one['median']:.1f} ({one['min']:.1f} to {one['max']:.1f})"
        print(f"{name:<44} {own['median']:10.2f} {others['median']:13.2f}   {alone}")
        report[name] |= {"daemon_cpu_ms": own, "children_cpu_ms": others, "one_job_ms": one}
    return report


def _one_by_one(daemon: Daemon, solver: str, count: int) -> list[float]:
    values = []
    for _ in range(count):
        time.sleep(0.1)
        values.append(1000 * daemon.drop(solver, 1))
    return values


# --- idle workers -----------------------------------------------------------------------------------------------------


SETTLE_SECONDS = 5.0
IDLE_SECONDS = 30.0
"""As long as the default heartbeat: each worker is asked once."""


def idle(base: Path, count: int) -> Report:
    """Two daemons side by side, one of which keeps ``count`` workers."""
    base.mkdir()
    config = f'{HEAD}[solver.idle]\nkind = "python"\naccept = ["*.x"]\ncall = "work.py:nothing"\npython = "{PYTHON}"\n'
    many = f"{config}servers = {{ min = {count}, max = {count} }}\n"
    report: Report = {}
    with Daemon(base / "none", config) as without, Daemon(base / "many", many) as keeper:
        without.wait_log("daemon.ready", 1)
        keeper.wait_log("server.ready", count)
        time.sleep(SETTLE_SECONDS)
        daemons = {"no workers": without, f"{count} idle workers": keeper}
        before = {name: daemon.cpu_seconds()[0] for name, daemon in daemons.items()}
        time.sleep(IDLE_SECONDS)
        print(f"\n{'idle daemon':<44} {'MiB':>10} {'% of a core':>13}")
        for name, daemon in daemons.items():
            share = 100 * (daemon.cpu_seconds()[0] - before[name]) / IDLE_SECONDS
            report[name] = {"rss_mib": daemon.rss_bytes() / (1 << 20), "cpu_percent": share}
            print(f"{name:<44} {report[name]['rss_mib']:10.1f} {share:13.2f}")
    return report


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("trips", "ready", "jobs", "idle")
    options.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all)")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--trips", type=int, default=2000, help="round trips per channel and round")
    options.add_argument("--starts", type=int, default=20, help="starts per kind of server and round")
    options.add_argument("--jobs", type=int, default=500, help="trivial jobs per round")
    options.add_argument("--cold", type=int, default=100, help="jobs per round that compute something")
    options.add_argument("--idle", type=int, default=64, help="idle workers")
    options.add_argument("--dir", type=Path, help="where throw-away homes lie (default: the temporary folder)")
    arguments = options.parse_args()
    chosen = arguments.parts or parts
    if not set(chosen) <= set(parts):
        options.error(f"the parts are {', '.join(parts)}")
    report: Report = {"rounds": arguments.rounds, "load_before": os.getloadavg()}
    print("load of the machine before: {:.2f} {:.2f} {:.2f}".format(*os.getloadavg()))
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="solvisor-bench-") as folder:
        base, rounds = Path(folder), arguments.rounds
        if "trips" in chosen:
            report["trips"] = {
                place: print_rates(f"round trips, client and server {place}", series, PEERS)
                for place, series in trips(base / "trips", rounds, arguments.trips).items()
            }
        if "ready" in chosen:
            report["ready"] = print_lateness(*uvloop.run(readiness(base / "ready", rounds, arguments.starts)))
        if "jobs" in chosen:
            report["jobs"] = jobs(base / "jobs", rounds, arguments.jobs, arguments.cold)
        if "idle" in chosen:
            report["idle"] = idle(base / "idle", arguments.idle)
    print("\nload of the machine after: {:.2f} {:.2f} {:.2f}".format(*os.getloadavg()))
    print(json.dumps(report))


if __name__ == "__main__":
    main()
