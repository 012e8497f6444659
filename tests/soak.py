"""A long life under fire: thousands of tiny jobs of all kinds, while solvers, servers and the daemon are killed.

Run as a program it prints what it does, ending with a JSON line; ``tests/e2e/test_soak.py`` runs a small one. The seed
makes the same drops and the same choices, not the same moments. What is asserted: each drop has exactly one manifest,
which names the bytes that were dropped and bytes that are there; whatever did not succeed was killed by us; memory and
descriptors do not grow in the last stretch, in which the daemon itself is left alone; nothing is left at the end.

    python tests/soak.py [--jobs 20000] [--kills 20] [--seed N] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import servers_kit
from daemon import Daemon, processes_of
from servers_kit import assert_clean

PORTS = (28600, 28999)

CONFIG = """
[daemon]
max_jobs = 4
cpus = 4
ports = "{ports[0]}-{ports[1]}"
stop_timeout = "20s"
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{{input}}"]
retry = {{ max = 20, on = ["signal", "exit"], delay = "0s" }}
[solver.noop]
accept = ["*.noop"]
command = ["/bin/true"]
retry = {{ max = 20, on = ["signal", "exit"], delay = "0s" }}
[solver.post]
kind = "python"
accept = ["*.txt"]
call = "post.py:process"
python = "{python}"
servers = {{ max = 2, restarts = 100000, restarts_within = "1s" }}
[solver.s]
kind = "server"
accept = ["*.s"]
start = ["{python}", "-S", "-E", "{server}", "{{host}}", "{{port}}", "{marks}"]
ready = {{ kind = "tcp", send = "ping\\n", expect = "^pong" }}
talk = "json"
servers = {{ max = 2, restarts = 100000, restarts_within = "1s" }}
"""

POST = """
def process(job):
    text = job.input.read_text()
    (job.output / "copy.txt").write_text(text * 3)
    return {"length": len(text)}
"""

KINDS = ("sh", "sh", "sh", "noop", "noop", "txt", "s")
"""The endings of drops, as often as they are to come."""

LOOK_SECONDS = 0.1
"""Between two looks, on average."""

AHEAD = 300
"""Drops that wait at most."""

QUIET_SHARE = 0.75
"""The last part of the jobs, in which the daemon is not killed; what it remembers on purpose is full by its middle."""

GROWTH_MAX = 500
"""Bytes of memory for each job in the last third, in which caches still settle; two objects kept are more."""

KILLED = {("failed", "poison"), ("failed", "lost"), ("failed", "server")}
"""How a job may end that was killed, or whose servers or daemons were, again and again."""


class Sample(NamedTuple):
    """The daemon at one moment of its last life: jobs done so far, resident memory, open descriptors."""

    done: int
    rss_kib: int
    fds: int


class Soak:
    """One run on ``home``: ``kills`` of the daemon, and ``victims`` among its solvers and servers."""

    def __init__(self, home: Path, *, jobs: int, kills: int, victims: int, seed: int) -> None:
        self.jobs = jobs
        self.random = random.Random(seed)
        marks = home.parent / "marks"
        marks.mkdir()
        server = servers_kit.PROGRAMS / "json_server.py"
        self.daemon = Daemon(home, CONFIG.format(ports=PORTS, python=sys.executable, server=server, marks=marks))
        (home / "post.py").write_text(POST)
        loud = int(jobs * (1 - QUIET_SHARE))
        self.kills_at = sorted(self.random.sample(range(1, loud), kills))
        self.victims_at = sorted(self.random.sample(range(1, jobs), victims))
        self.kills = kills
        self.ahead = min(AHEAD, max(1, jobs // 20))  # so that there is work left when it is time for a kill
        self.dropped: dict[str, str] = {}
        self.killed: Counter[str] = Counter()
        self.samples: list[Sample] = []
        self.peak_kib = 0
        self.life = 0

    def run(self) -> None:
        """Until every drop has its manifest and the daemon has ended; raises ``AssertionError``."""
        self._start()
        try:
            while (done := self._done()) < self.jobs or self.kills_at:
                assert self.daemon.running.poll() is None, self.daemon.console()[-4000:]
                self._drop(min(self.jobs, done + self.ahead))
                if self.kills_at and done >= self.kills_at[0]:
                    del self.kills_at[0]
                    self.daemon.kill()
                    self.killed["daemon"] += 1
                    self._start()
                elif self.victims_at and done >= self.victims_at[0] and self._kill_somebody():
                    del self.victims_at[0]
                self._sample(done)
                time.sleep(self.random.uniform(0, 2 * LOOK_SECONDS))  # noqa: TID251  the moments of the kills are to be random
            assert self.daemon.stop() == 0
        finally:
            if self.daemon.running.poll() is None:
                self.daemon.kill()
        self._check()

    def _start(self) -> None:
        self.daemon.start()
        self.life += 1
        self.samples.clear()

    def _done(self) -> int:
        return sum(len(os.listdir(self.daemon.home / folder)) for folder in ("done", "failed", "rejected"))

    def _drop(self, until: int) -> None:
        for number in range(len(self.dropped), until):
            ending = self.random.choice(KINDS)
            name = f"job{number:05}.{ending}"
            content = f"# {number}\nset -e\necho {number} > out.txt\nyes {number} | head -n 50 > rows.txt\n"
            self.daemon.drop(name, content if ending == "sh" else f"words {number}\n")
            data = content if ending == "sh" else f"words {number}\n"
            self.dropped[name] = hashlib.sha256(data.encode()).hexdigest()

    def _kill_somebody(self) -> bool:
        """One process of this home, whatever it is; false if there is none, or it ended by itself meanwhile."""
        identity = tomllib.loads((self.daemon.home / "state" / "home-id").read_text())["id"]
        there = [pid for pid in processes_of(identity) if pid != self.daemon.running.pid]
        if not there:
            return False
        pid = self.random.choice(sorted(there))
        try:
            what = Path(f"/proc/{pid}/cmdline").read_bytes()
            os.kill(pid, signal.SIGKILL)
        except OSError:
            return False
        self.killed["server" if b"json_server" in what or b"worker" in what else "solver"] += 1
        return True

    def _sample(self, done: int) -> None:
        pid = self.daemon.running.pid
        status = Path(f"/proc/{pid}/status").read_text()
        rss = int(status.split("VmRSS:")[1].split()[0])
        self.samples.append(Sample(done, rss, len(os.listdir(f"/proc/{pid}/fd"))))
        self.peak_kib = max(self.peak_kib, rss)

    # --- what must be true at the end -------------------------------------------------------------------------------

    def _check(self) -> None:
        manifests = self.daemon.manifests()
        by_name = Counter(manifest["source"]["path"] for manifest in manifests.values())
        assert by_name == Counter(self.dropped.keys()), "each drop has exactly one manifest"
        self.states = Counter((m["state"], m["cause"]) for m in manifests.values())
        assert self.states.keys() - KILLED <= {("succeeded", None)}, self.states
        assert self.states["succeeded", None] >= 0.99 * self.jobs, self.states
        for manifest in manifests.values():
            self._check_files(manifest)
        assert list((self.daemon.home / "work").iterdir()) == []
        assert list((self.daemon.home / "inbox").glob("job*")) == []
        assert self.killed["daemon"] == self.kills
        assert_clean(self.daemon)

    def _check_files(self, manifest: dict[str, Any]) -> None:
        folder = self.daemon.home / ("done" if manifest["state"] == "succeeded" else "failed") / manifest["id"]
        (given,) = manifest["inputs"]
        assert given["sha256"] == self.dropped[manifest["source"]["path"]], manifest["id"]
        for fact in [given, *manifest["outputs"]]:
            data = (folder / fact["path"]).read_bytes()
            assert (len(data), hashlib.sha256(data).hexdigest()) == (fact["size"], fact["sha256"]), fact

    def growth(self) -> tuple[float, int]:
        """Of the last third of the last life: bytes of memory per job; and descriptors from the second to the last
        quarter of it.
        """
        settled = self.samples[2 * len(self.samples) // 3 :]
        slope = statistics.linear_regression([s.done for s in settled], [s.rss_kib for s in settled]).slope * 1024
        quarter = max(1, len(self.samples) // 4)
        early, late = self.samples[quarter : 2 * quarter], self.samples[-quarter:]
        return slope, round(statistics.median(s.fds for s in late) - statistics.median(s.fds for s in early))


def main() -> None:
    """The whole of it, with figures."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--jobs", type=int, default=20_000)
    options.add_argument("--kills", type=int, default=20, help="how often the daemon itself is killed")
    options.add_argument("--victims", type=int, default=100, help="how many solvers and servers are killed")
    options.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options.add_argument("--dir", type=Path, help="where the throw-away home lies (default: the temporary folder)")
    given = options.parse_args()
    print(f"seed {given.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(dir=given.dir, prefix="solvisor-soak-"))
    soak = Soak(folder / "home", jobs=given.jobs, kills=given.kills, victims=given.victims, seed=given.seed)
    began = time.monotonic()
    try:
        soak.run()
    except AssertionError:
        print(f"kept: {folder}", flush=True)
        raise
    seconds = time.monotonic() - began
    slope, fds = soak.growth()
    first, last = soak.samples[2 * len(soak.samples) // 3], soak.samples[-1]
    report = {
        "seed": given.seed,
        "jobs": given.jobs,
        "seconds": seconds,
        "killed": dict(soak.killed),
        "states": {f"{state} {cause or ''}".strip(): count for (state, cause), count in soak.states.items()},
        "rss_mib": {"peak": soak.peak_kib / 1024, "two thirds": first.rss_kib / 1024, "end": last.rss_kib / 1024},
        "bytes_per_job": slope,
        "descriptors": {"end": last.fds, "growth": fds},
    }
    print(json.dumps(report, indent=1))
    assert slope < GROWTH_MAX, f"memory grows by {slope:.0f} bytes with each job"
    assert abs(fds) <= 3, f"descriptors grow by {fds}"
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
