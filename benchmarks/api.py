"""What does it cost to watch? No-op jobs at full speed, with and without somebody who looks, turn by turn.

- ``nobody``: jobs alone.
- ``bare``: jobs alone, on a daemon that does not record what happens (the feed of events is patched out).
- ``client``: one reader of events, and a client that asks status, jobs, one job, metrics and solvers 20 times a second.
- ``page``: three readers of events that ask for the status once a second when something happened, as the page does.

Each way has a daemon of its own, and each round is one burst in each of them, in turn, so that what else the machine
does meets all alike. Ratios are of bursts in one round; what a daemon spends of the processor on a job is shown as
well, for it depends less on what else runs. Latencies are those of the client, from its request to the last byte; the
``first`` answer of each route loads what it needs, and is shown by itself.

    python benchmarks/api.py [--jobs 500] [--rounds 7] [--rate 20] [--quick]
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_kit import NOISE, Asker, Connection, Daemon, ask_ms
from figures import answers, ratios, spread
from record import Options, keep, scratch

BARE = """
import sys
if "serve" in sys.argv:
    from solvisor.engine import Engine
    async def tell(self):
        self._world.take_moved()
    assert callable(Engine._tell)
    Engine._tell = tell
"""
"""What is put before the program of the daemon that does not record."""

LATENCY_MS, RATIO, BARE_RATIO = 50.0, 0.9, 0.97
"""What is wanted: latency at the 99th percentile, throughput watched to unwatched, and recording to not recording."""

PAGE_READERS = 3


class Watched(Daemon):
    """A daemon on a fresh home, to which bursts of jobs are dropped."""

    def __init__(self, base: Path, name: str, *, bare: bool = False) -> None:
        env = {}
        if bare:
            patch = base / f"{name}-patch"
            patch.mkdir()
            (patch / "sitecustomize.py").write_text(BARE)
            env["PYTHONPATH"] = str(patch)
        super().__init__(base / name, env=env)

    def burst(self, count: int) -> tuple[float, float]:
        """Jobs a second, from the first rename into the inbox to the last manifest in its place; processor ms a job."""
        pairs, before = self.prepare(count), sum(self.cpu())
        rate = count / self.carry_out(pairs)
        return rate, 1000 * (sum(self.cpu()) - before) / count

    def lag_ms(self) -> float:
        """How late its event loop was at worst."""
        return 1000 * float(self.ask("/v1/status")["loop_lag_worst_seconds"])


class Reader(threading.Thread):
    """Reads events; with ``asks`` it asks for the status at most once a second when there were some."""

    def __init__(self, daemon: Watched, *, asks: bool) -> None:
        super().__init__(daemon=True)
        self._stream = Connection(daemon.home)
        self._stream.request("GET", "/v1/events")
        self._answer = self._stream.getresponse()
        self._asking = Connection(daemon.home) if asks else None
        self._asked = 0.0
        self.events = 0
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, AttributeError):
            while data := self._answer.read1(1 << 16):
                self.events += data.count(b"\nevent: job")
                if self._asking is not None and time.monotonic() - self._asked >= 1:
                    self._asked = time.monotonic()
                    self._asking.ask("/v1/status")

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.sock.shutdown(socket.SHUT_RDWR)
        self.join(10)
        self._stream.close()


def routes(daemon: Daemon) -> dict[str, str]:
    """What a client asks, by name."""
    return {
        "status": "/v1/status",
        "jobs": "/v1/jobs?limit=100",
        "job": f"/v1/jobs/{daemon.ask('/v1/jobs?limit=1')['jobs'][0]['id']}",
        "metrics": "/metrics",
        "solvers": "/v1/solvers",
    }


@contextlib.contextmanager
def watched(daemon: Watched, way: str, rate: float, told: dict[str, list[float]]) -> Iterator[None]:
    """With somebody who watches in this way."""
    watchers: list[Reader | Asker] = []
    if way == "client":
        watchers = [Reader(daemon, asks=False), Asker(daemon.home, routes(daemon), 1 / rate, told)]
    elif way == "page":
        watchers = [Reader(daemon, asks=True) for _ in range(PAGE_READERS)]
    try:
        yield
    finally:
        for each in watchers:
            each.stop()


def main() -> None:
    parser = Options(__doc__)
    parser.count("jobs", 500, 200, "in each burst")
    parser.count("rounds", 7, 1)
    parser.add_argument("--rate", type=float, default=20.0, help="questions a second of the client (%(default)s)")
    arguments = parser.asked()
    jobs, rounds = arguments.jobs, arguments.rounds
    ways = ("nobody", "bare", "client", "page")
    rates: dict[str, list[float]] = {way: [] for way in ways}
    cpu_ms: dict[str, list[float]] = {way: [] for way in ways}
    told: dict[str, list[float]] = {}
    with scratch(arguments) as base:
        daemons = {way: Watched(base, way, bare=way == "bare") for way in ways}  # all of the same age
        for daemon in daemons.values():
            daemon.burst(50)
        with contextlib.closing(Connection(daemons["client"].home)) as connection:
            first = {name: ask_ms(connection, target) for name, target in routes(daemons["client"]).items()}
        for number in range(rounds):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:  # whoever is first pays for nobody
                with watched(daemons[way], way, arguments.rate, told):
                    rate, cpu = daemons[way].burst(jobs)
                rates[way].append(rate)
                cpu_ms[way].append(cpu)
        lags = {way: daemon.lag_ms() for way, daemon in daemons.items()}
        for daemon in daemons.values():
            daemon.stop()

    report: dict[str, Any] = {
        "jobs": jobs,
        "rounds": rounds,
        "rate": arguments.rate,
        "jobs_per_second": {way: spread(values) for way, values in rates.items()},
        "loop_lag_worst_ms": lags,
        "cpu_ms_per_job": {way: spread(values) for way, values in cpu_ms.items()},
        "client_to_nobody": ratios(rates, "client", "nobody"),
        "page_to_nobody": ratios(rates, "page", "nobody"),
        "nobody_to_bare": ratios(rates, "nobody", "bare"),
        "cpu_bare_to_nobody": ratios(cpu_ms, "bare", "nobody"),
        "first_ms": first,
        "latency_ms": {name: answers(ms) for name, ms in told.items()},
    }
    print(f"{'watched by':<12} {'jobs/s':>8} {'(min to max)':>16} {'CPU ms/job':>11} {'loop late, ms':>14}")
    for way, values in rates.items():
        least_to_most = f"{min(values):.0f} to {max(values):.0f}"
        cpu = statistics.median(cpu_ms[way])
        print(f"{way:<12} {statistics.median(values):8.0f} {least_to_most:>16} {cpu:11.2f} {lags[way]:14.0f}")
    bounds = {
        "client_to_nobody": RATIO, "page_to_nobody": RATIO, "nobody_to_bare": BARE_RATIO,
        "cpu_bare_to_nobody": BARE_RATIO,
    }  # fmt: skip
    for name, wanted in bounds.items():
        ratio = report[name]
        verdict = "ok" if ratio["median"] >= wanted else f"WANTED {wanted}"
        words = name.replace("_", " ")
        print(f"{words:<18} {ratio['median']:.3f} ({ratio['min']:.3f} to {ratio['max']:.3f})  {verdict}")
    print(f"{'answer, ms':<16} {'p50':>7} {'p99':>7} {'max':>7} {'n':>6} {'first':>7}")
    for name, ms in report["latency_ms"].items():
        verdict = "ok" if ms["p99"] < LATENCY_MS else f"WANTED below {LATENCY_MS:g} at p99"
        if name == NOISE:
            verdict = "(how late a sleep of 1 ms ends)"
        once = f"{first[name]:7.1f}" if name in first else f"{'':7}"
        print(f"{name:<16} {ms['p50']:7.1f} {ms['p99']:7.1f} {ms['max']:7.1f} {ms['n']:6} {once}  {verdict}")
    keep("api", report, arguments)


if __name__ == "__main__":
    main()
