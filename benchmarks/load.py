"""What does a long queue cost? A daemon with 100,000 queued jobs beside one with a few hundred, turn by turn.

Reports how long the start takes, how much memory the daemon has, how many jobs a second it carries out (as a ratio to
the one with few), and how long ``status``, ``list`` and ``explain`` take while it does. The rows and folders are made
by the program's own functions without fsyncs, for taking 100,000 drops in the right way takes minutes; ``--accept``
measures that as well, on fewer. The other load of the machine is shown as how late a sleep of 1 ms ends meanwhile.

    python benchmarks/load.py [--jobs 100000] [--burst 500] [--rounds 5] [--accept 5000] [--quick]
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench_kit import NOISE, NOOP, Asker, Daemon
from figures import answers, percentile, ratios, shown, spread, table
from record import Options, keep, scratch

from solvisor.home import Home, IdMaker
from solvisor.model import Batch, FileFact, Job, JobSpec, Source, State
from solvisor.store import Store

CONFIG = f"""{NOOP}
[solver.noop.params]
load = {{ type = "float", default = 1.0 }}
"""
FEW = 100
"""What is left of the short queue at the end, at least."""

ASK_SECONDS = 0.02
QUESTIONS = {"status": "/v1/status", "list": "/v1/jobs?limit=100", "explain": "/v1/jobs/{job}/explain"}


class Queue(Daemon):
    """A daemon on a home with ``queued`` jobs, which waits."""

    def __init__(self, base: Path, name: str, queued: int) -> None:
        self.name = name
        self._all = queued
        self.seed_seconds = timed(lambda: self._fill(base / name, queued))
        super().__init__(base / name, CONFIG)
        self.ask("/v1/pause", "POST")
        self.start_seconds = time.monotonic() - self.began
        self.settle()

    def _fill(self, root: Path, count: int) -> None:
        home = Home.at(root)
        home.prepare()
        store, ids = Store.open(home.db), IdMaker()
        (home.root / "state" / "made-by").write_text("benchmarks/load.py\n")
        self.last = ""
        self.batch = Batch(ids.new_id("sweep", time.time_ns() // 1000), "sweep", "somebody", "skip", None, 0)
        for start in range(0, count, 1000):
            jobs = []
            for number in range(start, min(start + 1000, count)):
                name = f"riser-{number:06}.noop"
                job_id = ids.new_id(name, time.time_ns() // 1000)
                (home.work / job_id / "input").mkdir(parents=True)
                content = b"%d\n" % number
                (home.work / job_id / "input" / name).write_bytes(content)
                fact = FileFact(f"input/{name}", len(content), hashlib.sha256(content).hexdigest())
                source = Source("inbox", name)
                params = {"load": float(number)}
                spec = JobSpec(
                    name, "noop", name, (fact,), source, "somebody", "riser", params=params, batch=self.batch.id
                )
                jobs.append(Job(job_id, number + 1, State.QUEUED, spec, time.time_ns() // 1000))
                self.last = job_id
            store.record(jobs, batches=[self.batch])
        store.close()

    def settle(self) -> None:
        """Until nothing runs; it is paused."""
        while (status := self.ask("/v1/status"))["running"] or status["collecting"]:
            time.sleep(0.02)

    def burst(self, count: int) -> float:
        """Jobs a second over ``count`` of those that wait."""
        before = self.done()
        wanted = min(before + count, self._all)
        begin = time.perf_counter()
        self.ask("/v1/resume", "POST")
        while (now := self.done()) < wanted:
            time.sleep(0.01)
        rate = (now - before) / (time.perf_counter() - begin)
        self.ask("/v1/pause", "POST")
        self.settle()
        return rate

    def cancel(self) -> float:
        """Seconds until all that waits is cancelled, and that is durable."""
        return timed(lambda: self.ask(f"/v1/batches/{self.batch.id}/cancel", "POST"))


@contextmanager
def asking(daemon: Queue, told: dict[str, list[float]]) -> Iterator[None]:
    """With somebody who asks all the time: milliseconds by question, and how late a sleep of 1 ms ends."""
    questions = {name: target.format(job=daemon.last) for name, target in QUESTIONS.items()}
    asker = Asker(daemon.home, questions, ASK_SECONDS, told)
    try:
        yield
    finally:
        asker.stop()


def acceptance(base: Path, count: int) -> tuple[float, float]:
    """Drops a second that become rows, ``count`` of them renamed into the inbox at once, and MiB of the daemon then."""
    daemon = Queue(base, "accepting", 0)
    files = daemon.prepare(count)
    begin = time.perf_counter()
    for source, target in files:
        source.rename(target)
    while daemon.ask("/v1/status")["waiting"] < count:
        time.sleep(0.1)
    rate, peak = count / (time.perf_counter() - begin), daemon.mib("VmHWM")
    daemon.stop()
    return rate, peak


def timed(action: Any) -> float:
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 100_000, 10_000, "in the long queue")
    parser.count("burst", 500, 200, "carried out in a round")
    parser.count("rounds", 5, 2)
    parser.add_argument("--accept", type=int, default=0, help="measure also how fast so many drops are taken in")
    arguments = parser.asked()
    jobs, burst, rounds = arguments.jobs, arguments.burst, arguments.rounds
    with scratch(arguments) as base:
        few_jobs = FEW + rounds * (burst + burst // 2)  # more than the bursts: some end after they were counted
        few = Queue(base, "few", few_jobs)
        many = Queue(base, "many", jobs)
        ready_mib = {daemon.name: daemon.mib("VmRSS") for daemon in (few, many)}
        rates: dict[str, list[float]] = {"few": [], "many": []}
        told: dict[str, dict[str, list[float]]] = {"few": {}, "many": {}}
        for _ in range(rounds):
            for daemon in (few, many):
                with asking(daemon, told[daemon.name]):
                    rates[daemon.name].append(daemon.burst(burst))
        report: dict[str, Any] = {
            "jobs": jobs,
            "rounds": rounds,
            "seed_seconds": many.seed_seconds,
            "start_seconds": {daemon.name: daemon.start_seconds for daemon in (few, many)},
            "rss_mib": {daemon.name: daemon.mib("VmRSS") for daemon in (few, many)},
            "rss_ready_mib": ready_mib,
            "rss_peak_mib": {daemon.name: daemon.mib("VmHWM") for daemon in (few, many)},
            "bytes_per_queued_job": (ready_mib["many"] - ready_mib["few"]) * (1 << 20) / (jobs - few_jobs),
            "jobs_per_second": {name: spread(values) for name, values in rates.items()},
            "ratio": ratios(rates, "many", "few"),
            "answers_ms": {
                name: {what: answers(ms) for what, ms in by_question.items()} for name, by_question in told.items()
            },
        }
        ending: dict[str, list[float]] = {}
        with asking(many, ending):
            report["cancel_seconds"] = many.cancel()
        report["cancel_status_ms"] = {"p50": percentile(ending["status"], 0.5), "max": max(ending["status"])}
        report["cancel_rss_peak_mib"] = many.mib("VmHWM")
        many.kill()  # it would publish them all first
        few.stop()
        if arguments.accept:
            report["accepted_per_second"], report["accepted_rss_peak_mib"] = acceptance(base, arguments.accept)
    lines = []
    for name in ("few", "many"):
        took = (f"{ms['p50']:.1f}/{ms['p99']:.1f}/{ms['max']:.1f}" for ms in report["answers_ms"][name].values())
        figures = (report["start_seconds"][name], report["rss_mib"][name], report["rss_peak_mib"][name])
        rate = shown(report["jobs_per_second"][name])
        lines.append((name, f"{figures[0]:.1f}", f"{figures[1]:.0f}", f"{figures[2]:.0f}", rate, *took))
    asked = (f"{what} ms" for what in report["answers_ms"]["few"])
    print(table(("queue", "start s", "MiB", "peak", "jobs/s (min to max)", *asked), lines))
    print(f"(answers: median / 99 % / most; {NOISE} is how late a sleep of 1 ms ended)")
    print(f"jobs/s, {jobs} queued to {FEW}: {shown(report['ratio'], 2)}")
    print(f"memory of a queued job: {report['bytes_per_queued_job']:.0f} bytes")
    ms = report["cancel_status_ms"]
    print(
        f"cancelling all: {report['cancel_seconds']:.1f} s, status meanwhile {ms['p50']:.1f}/{ms['max']:.1f} ms "
        f"(p50/max), {report['cancel_rss_peak_mib']:.0f} MiB at most"
    )
    if arguments.accept:
        print(
            f"taken in: {report['accepted_per_second']:.0f} drops/s, {report['accepted_rss_peak_mib']:.0f} MiB at most"
        )
    keep("load", report, arguments)


if __name__ == "__main__":
    main()
