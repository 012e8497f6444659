"""The daemon for Prometheus: every number is read when it is scraped, from what the daemon knows anyway.

Rules: a name says its base unit (seconds, bytes), and counters end in ``_total``. Labels are bounded by the
configuration: solvers, licenses, states, reasons; never a job, a user or a file. This module is imported at the first
scrape: its library takes a tenth of a second.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final, get_args

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from solvisor.counters import Histogram
from solvisor.desk import Desk
from solvisor.model import TERMINAL, Reason, ServerState, State
from solvisor.views import Health, Status

MEDIA_TYPE: Final = CONTENT_TYPE_LATEST
if sys.platform == "win32":
    raise ImportError("solvisor_service.api.metrics reads Linux kernel files and cannot be used on Windows")

_LIVE: Final = ("queued", "running", "collecting")
_OF_SERVERS: Final = [state for state in ServerState if state not in (ServerState.BACKOFF, ServerState.FAILED)]


def exposition(desk: Desk, database_bytes: int | None) -> bytes:
    """All of it as text."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Reading(desk, database_bytes))
    return generate_latest(registry)


class _Reading(Collector):
    """One look at the daemon."""

    def __init__(self, desk: Desk, database_bytes: int | None) -> None:
        self._desk = desk
        self._database_bytes = database_bytes

    def describe(self) -> Iterator[Metric]:
        """Nothing: it is registered for one reading."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Every number there is."""
        status = self._desk.status()
        yield from self._daemon(status)
        yield from self._jobs(status)
        yield from _room(status)
        yield from self._solvers()
        yield from self._licenses()
        yield from _process()

    def _daemon(self, status: Status) -> Iterator[Metric]:
        info = GaugeMetricFamily("solvisor_info", "The version that runs.", labels=("version",))
        info.add_metric((status.version,), 1)
        yield info
        health = GaugeMetricFamily("solvisor_health", "1 for how the daemon is, 0 for the others.", labels=("state",))
        for state in get_args(Health):
            health.add_metric((state,), state == status.health)
        yield health
        yield _gauge("solvisor_problems", "Sentences in the status about what is wrong.", len(status.problems))
        yield _gauge("solvisor_up_seconds", "How long the daemon has been up.", status.up_seconds)
        yield _gauge(
            "solvisor_loop_lag_seconds",
            "How late the event loop was at worst within the last minute.",
            status.loop_lag_seconds,
        )
        yield _counter(
            "solvisor_log_lines_lost",
            "Lines of the daemon's log that a full disk or a closed console did not take.",
            status.log_lines_lost,
        )
        yield _counter(
            "solvisor_escaped_processes",
            "Processes that outlived their job's attempt or their server, and were found and killed.",
            status.escaped,
        )
        if self._database_bytes is not None:
            yield _gauge("solvisor_database_bytes", "What the database takes of the disk.", self._database_bytes)

    def _jobs(self, status: Status) -> Iterator[Metric]:
        live = GaugeMetricFamily("solvisor_jobs", "Jobs that are not finished, by state.", labels=("state",))
        for state, jobs in zip(_LIVE, (status.waiting, status.running, status.collecting), strict=True):
            live.add_metric((state,), jobs)
        yield live
        queue = GaugeMetricFamily("solvisor_queue_jobs", "Queued jobs, by what they wait for.", labels=("reason",))
        waiting: Counter[Reason] = Counter()
        for line in status.waiting_for:
            waiting[line.reason] += line.jobs
        for reason in Reason:
            queue.add_metric((reason.value,), waiting[reason])
        yield queue
        yield _gauge("solvisor_inbox_drops", "Drops in the inbox that are not taken yet.", status.inbox_total)
        yield _gauge("solvisor_pauses", "Pauses in force.", len(status.paused))
        counters = self._desk.counters
        ended = CounterMetricFamily(
            "solvisor_jobs_finished",
            "Jobs that finished since the daemon started, by solver and state.",
            labels=("solver", "state"),
        )
        for solver in sorted({*status.solvers, *(solver for solver, _ in counters.ended)}):
            for state in State:
                if state in TERMINAL:
                    ended.add_metric((solver, state.value), counters.ended[solver, state])
        yield ended
        yield _histogram("solvisor_job_run_seconds", "How long the last tries of finished jobs ran.", counters.ran)
        yield _histogram(
            "solvisor_job_queue_seconds", "How long finished jobs waited for their first try.", counters.waited
        )

    def _solvers(self) -> Iterator[Metric]:
        running = GaugeMetricFamily("solvisor_solver_running_jobs", "Jobs that have a place.", labels=("solver",))
        waiting = GaugeMetricFamily("solvisor_solver_waiting_jobs", "Queued jobs.", labels=("solver",))
        for solver in self._desk.solvers().solvers:
            running.add_metric((solver.name,), solver.running)
            waiting.add_metric((solver.name,), solver.waiting)
        servers = GaugeMetricFamily("solvisor_servers", "Warm servers, by state.", labels=("solver", "state"))
        failed = GaugeMetricFamily(
            "solvisor_server_pool_failed",
            "1 where no more servers are started until a person says so.",
            labels=("solver",),
        )
        for pool in self._desk.servers().pools:
            states = Counter(server.state for server in pool.servers)
            for state in _OF_SERVERS:
                servers.add_metric((pool.solver, state.value), states[state])
            failed.add_metric((pool.solver,), pool.state == "failed")
        yield from (running, waiting, servers, failed)

    def _licenses(self) -> Iterator[Metric]:
        used = GaugeMetricFamily("solvisor_licenses_used", "Licenses that jobs and servers hold.", labels=("license",))
        limit = GaugeMetricFamily("solvisor_licenses_limit", "Licenses there are.", labels=("license",))
        waiting = GaugeMetricFamily(
            "solvisor_license_waiting_jobs", "Queued jobs that want it first of all.", labels=("license",)
        )
        resting = GaugeMetricFamily(
            "solvisor_license_resting", "1 while nobody tries it, for it was refused.", labels=("license",)
        )
        for found in self._desk.licenses().licenses:
            used.add_metric((found.name,), found.used)
            limit.add_metric((found.name,), found.total)
            waiting.add_metric((found.name,), found.waiting)
            resting.add_metric((found.name,), found.rests_seconds is not None)
        yield from (used, limit, waiting, resting)


def _room(status: Status) -> Iterator[Metric]:
    """What jobs take of what there is, and the disk."""
    yield _gauge("solvisor_places_used", "Jobs that have a place.", status.jobs.used)
    yield _gauge("solvisor_places_limit", "Jobs that may run at once.", status.jobs.total)
    yield _gauge("solvisor_cpus_used", "Cores reserved by running jobs.", status.cpus.used)
    yield _gauge("solvisor_cpus_limit", "Cores there are for jobs.", status.cpus.total)
    yield _gauge("solvisor_memory_used_bytes", "Memory reserved by running jobs.", status.memory_bytes.used)
    yield _gauge("solvisor_memory_limit_bytes", "Memory there is for jobs.", status.memory_bytes.total)
    if status.disk_free_bytes is not None and status.disk_reserve_bytes is not None:
        yield _gauge("solvisor_disk_free_bytes", "Room on the disk of the home.", status.disk_free_bytes)
        yield _gauge("solvisor_disk_reserve_bytes", "With less room no job starts.", status.disk_reserve_bytes)


def _process() -> Iterator[Metric]:
    """The daemon's own process."""
    import resource

    used = resource.getrusage(resource.RUSAGE_SELF)
    yield _counter(
        "solvisor_process_cpu_seconds", "Processor time of the daemon itself.", used.ru_utime + used.ru_stime
    )
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    yield _gauge(
        "solvisor_process_resident_memory_bytes", "Memory of the daemon itself.", pages * os.sysconf("SC_PAGE_SIZE")
    )
    yield _gauge("solvisor_process_open_fds", "Open descriptors of the daemon.", len(os.listdir("/proc/self/fd")))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield _gauge("solvisor_process_max_fds", "Descriptors that it may have.", soft)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, by_solver: Mapping[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("solver",))
    for solver, histogram in sorted(by_solver.items()):
        buckets = [("+Inf" if bound == float("inf") else f"{bound:g}", count) for bound, count in histogram.buckets()]
        family.add_metric((solver,), buckets, histogram.sum)
    return family
