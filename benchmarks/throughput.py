"""How much does Solvisor cost per job? No-op jobs, two at a time, from rename into the inbox to visible manifest.

Beside it, in the same run and interleaved: a C ``posix_spawn`` loop (the floor) and ``xargs -P2``. Every promise is
kept: contents and folders fsynced, rows committed, usage and hashes taken, manifests written. Prints a table and a JSON
line.

    python benchmarks/throughput.py [--jobs 500] [--rounds 5] [--dir FOLDER]
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
from pathlib import Path

HERE = Path(__file__).parent
TRUE = shutil.which("true") or "/bin/true"
CONFIG = f"""
[daemon]
max_jobs = 2
[solver.noop]
accept = ["*.noop"]
command = ["{TRUE}"]
"""


class Daemon:
    """A daemon on a fresh home under ``base``."""

    def __init__(self, base: Path) -> None:
        self.home = base / "home"
        self.home.mkdir()
        (self.home / "solvisor.toml").write_text(CONFIG)
        command = [sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(self.home)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.log = self.home / "state" / "log" / "solvisor.jsonl"
        self.scratch = base / "scratch"
        self.scratch.mkdir()
        self._number = 0
        end = time.monotonic() + 30
        while not (self.log.exists() and '"daemon.ready"' in self.log.read_text()):
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit("the daemon did not become ready")
            time.sleep(0.02)

    def prepare(self, count: int) -> list[tuple[Path, Path]]:
        """Files outside the inbox, with the places they will be renamed to."""
        pairs = []
        for _ in range(count):
            self._number += 1
            name = f"job{self._number:06}.noop"
            (self.scratch / name).write_text("nothing\n")
            pairs.append((self.scratch / name, self.home / "inbox" / name))
        return pairs

    def done(self) -> int:
        return len(os.listdir(self.home / "done"))

    def cpu_seconds(self) -> float:
        """Processor time of the daemon and of every child it reaped."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return sum(int(f) for f in fields[11:15]) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(60) != 0:
            sys.exit(f"the daemon ended with {self.process.returncode}")


def batch(daemon: Daemon, count: int) -> tuple[float, float]:
    """Seconds and processor seconds for ``count`` jobs dropped at once."""
    pairs = daemon.prepare(count)
    before, cpu = daemon.done(), daemon.cpu_seconds()
    start = time.perf_counter()
    for source, target in pairs:
        source.rename(target)
    while daemon.done() < before + count:
        time.sleep(0.01)
    return time.perf_counter() - start, daemon.cpu_seconds() - cpu


def one(daemon: Daemon) -> float:
    """Seconds from rename to visible manifest on an idle daemon."""
    ((source, target),) = daemon.prepare(1)
    before = daemon.done()
    time.sleep(0.1)
    start = time.perf_counter()
    source.rename(target)
    while daemon.done() == before:
        time.sleep(0.0002)
    return time.perf_counter() - start


def floor(program: Path, count: int) -> float:
    return float(subprocess.check_output([program, str(count), "2", TRUE]))


def xargs(count: int) -> float:
    names = "\n".join(str(n) for n in range(count)).encode()
    start = time.perf_counter()
    subprocess.run(["xargs", "-P2", "-n1", TRUE], input=names, check=True)
    return time.perf_counter() - start


def bare() -> float:
    start = time.perf_counter()
    os.waitpid(os.posix_spawn(TRUE, [TRUE], os.environ), 0)
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--jobs", type=int, default=500)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--dir", type=Path, help="where the throw-away home lies (default: the temporary folder)")
    arguments = options.parse_args()
    count = arguments.jobs
    rates: dict[str, list[float]] = {"floor": [], "xargs": [], "solvisor": []}
    cpu_ms: list[float] = []
    with tempfile.TemporaryDirectory(dir=arguments.dir, prefix="solvisor-bench-") as folder:
        base = Path(folder)
        program = base / "spawnloop"
        subprocess.run(["cc", "-O2", "-o", program, HERE / "spawnloop.c"], check=True)
        daemon = Daemon(base)
        batch(daemon, 50)
        for _ in range(arguments.rounds):
            rates["floor"].append(count / floor(program, count))
            rates["xargs"].append(count / xargs(count))
            seconds, cpu = batch(daemon, count)
            rates["solvisor"].append(count / seconds)
            cpu_ms.append(1000 * cpu / count)
        latency = [1000 * one(daemon) for _ in range(30)]
        spawn = [1000 * bare() for _ in range(30)]
        daemon.stop()
    floors = rates["floor"]
    report = {
        "jobs": count,
        "rounds": arguments.rounds,
        "jobs_per_second": {name: spread(values) for name, values in rates.items()},
        "ratio_to_floor": {
            name: spread([v / f for v, f in zip(values, floors, strict=True)]) for name, values in rates.items()
        },
        "solvisor_cpu_ms_per_job": spread(cpu_ms),
        "one_job_ms": spread(latency),
        "bare_spawn_ms": spread(spawn),
    }
    print(f"{'runner':<10} {'jobs/s':>8} {'(min to max)':>18} {'ratio to floor':>15}")
    for name, values in rates.items():
        ratio = report["ratio_to_floor"][name]["median"]
        print(
            f"{name:<10} {statistics.median(values):8.0f} {f'{min(values):.0f} to {max(values):.0f}':>18} {ratio:15.2f}"
        )
    print(f"processor time per job, daemon and child: {statistics.median(cpu_ms):.2f} ms")
    print(f"one job on an idle system: {statistics.median(latency):.1f} ms ({min(latency):.1f} to {max(latency):.1f});")
    print(f"a bare spawn and wait: {statistics.median(spawn):.1f} ms")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
