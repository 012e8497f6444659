"""How the figures of a report are told: numbers, shares, periods, and what is taken or waited for by its name.

Rules: the words are the same in a terminal and on the page. Texts are plain: who shows them cleans or escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from solvisor.figures import LevelFigures, Report, SolverFigures, Spread
from solvisor_service.cli.text import duration, size

HOUR: Final = 3600.0
_LICENSE: Final = "license."

CAUSES: Final = {None: "", "exit": "exit", "oom": "out of memory"}

EDGES: Final = ("1 s", "2", "5", "10", "30", "1 m", "2", "5", "10", "30", "1 h", "2", "4", "8", "1 d")
"""``RUN_EDGES`` as an axis shows them."""


class Stretch(NamedTuple):
    """A level as a bar: what it is called, how full it was on average, and what is to be said of it."""

    title: str
    share: float
    words: str


def count(number: float) -> str:
    """``3,000``; what is no whole number with a digit more: ``9.1``."""
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.1f}"


def percent(share: float) -> str:
    """``57 %``; ``<1 %`` where it is little but not nothing."""
    return "<1 %" if 0 < share < 0.005 else f"{share * 100:.0f} %"


def hours(seconds: float) -> str:
    """So many hours, or less: ``282 h``, ``1.4 h``, ``12 m``."""
    if seconds < HOUR:
        return duration(seconds)
    return f"{seconds / HOUR:,.0f} h" if seconds >= 10 * HOUR else f"{seconds / HOUR:.1f} h"


def core_hours(core_seconds: float) -> str:
    """Core-hours as a number: ``1,861``, ``0.3``."""
    found = core_seconds / HOUR
    return f"{found:,.0f}" if found >= 10 else f"{found:.1f}"


def instant(stamp: str) -> str:
    """``Mon 16 Nov 2026 12:05``, local time."""
    then = local(stamp)
    return f"{then:%a} {then.day} {then:%b %Y %H:%M}"


def local(stamp: str) -> datetime:
    """A time of a report as local time."""
    return datetime.fromisoformat(stamp).astimezone()


def title_of(report: Report) -> str:
    """From when to when, by days where it begins and ends with some."""
    since, until = local(report.since), local(report.until)
    if since.date() == until.date():
        return f"{since.day} {since:%b %Y, %H:%M} to {until:%H:%M}"
    year = "" if since.year == until.year else f"{since: %Y}"
    month = "" if (since.month, since.year) == (until.month, until.year) else f"{since: %b}"
    return f"{since.day}{month}{year} to {until.day} {until:%b %Y}"


def length(report: Report) -> float:
    """How long the period is, in seconds."""
    return (local(report.until) - local(report.since)).total_seconds()


def presence(report: Report) -> str:
    """How long a daemon was there, and from when on it is known."""
    there = f"a daemon ran for {duration(report.up_seconds)} of {duration(length(report))}"
    if report.kept_since is None:
        return "how busy it was is not known: no daemon that keeps it ran in this period"
    if (local(report.kept_since) - local(report.since)).total_seconds() > max(HOUR, 0.02 * length(report)):
        return f"{there}; nothing is known of how busy it was before {instant(report.kept_since)}"
    return there


def stretch(level: LevelFigures) -> Stretch:
    """A level in words."""
    share = level.mean / level.total if level.total else 0.0
    name = level.name
    if name == "memory":
        words = f"{size(int(level.mean))} of {size(int(level.total))} on average, peak {size(int(level.peak))}"
        return Stretch("memory", share, words)
    words = f"{level.mean:.1f} of {count(level.total)} on average, peak {count(level.peak)}"
    if name == "cpus":
        words = f"{words}, {count(level.used_hours)} core-hours"
    if level.full_hours >= 0.05:
        words = f"{words}; all taken for {hours(level.full_hours * HOUR)}"
    return Stretch({"cpus": "cores"}.get(name, name.removeprefix(_LICENSE)), share, words)


def stretches(report: Report) -> list[Stretch]:
    """All levels that are bounded; without memory where nobody reserves any."""
    shown = [level for level in report.levels if level.total and (level.name != "memory" or level.peak)]
    order = {"cpus": 0, "memory": 1, "jobs": 2}
    return [stretch(level) for level in sorted(shown, key=lambda level: order.get(level.name, 3))]


def ends(figures: Report | SolverFigures) -> list[tuple[str, int]]:
    """How jobs ended, and how many; those that succeeded and failed always."""
    told = [("succeeded", figures.succeeded), ("failed", figures.failed)]
    rest = [(name, getattr(figures, name)) for name in ("cancelled", "rejected", "skipped")]
    return told + [(name, number) for name, number in rest if number]


def span(spread: Spread | None) -> Sequence[str]:
    """The median, the 95th percentile and the longest, as durations."""
    if spread is None:
        return ("", "", "")
    return tuple(duration(seconds) for seconds in (spread.p50, spread.p95, spread.max))


def cores_used(solver: SolverFigures) -> str:
    """``1.1 of 4``: what tries kept busy of what they reserved."""
    cores = solver.cores
    if cores is None:
        return ""
    if cores.used is not None:
        return f"{cores.used.p50:.1f} of {cores.reserved}"
    if not cores.reserved_core_seconds:
        return ""
    return percent(cores.used_core_seconds / cores.reserved_core_seconds)


def memory_used(solver: SolverFigures) -> str:
    """``2.4 GiB of 8 GiB``: the largest peak and what was reserved; ``>`` where only the largest process is known."""
    memory = solver.memory
    if memory is None:
        return ""
    peak = f"{'' if memory.whole_tree else '>'}{size(int(memory.peak.max))}"
    return f"{peak} of {size(memory.reserved_bytes)}" if memory.reserved_bytes else peak


def remarks(solver: SolverFigures) -> list[str]:
    """What else there is to be said of a solver's jobs."""
    told = []
    for number, words in (
        (solver.retries, ("retry", "retries")),
        (solver.interruptions, ("interruption", "interruptions")),
        (solver.timeouts, ("cut at the timeout", "cut at the timeout")),
        (solver.server_losses, ("lost its warm server", "lost their warm server")),
        (solver.servers_started, ("warm server started", "warm servers started")),
    ):
        if number:
            told.append(f"{number:,} {words[number != 1]}")
    return told
