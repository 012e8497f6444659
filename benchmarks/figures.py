"""Figures made of many values, and how they are shown. Pure: it knows neither what is measured nor a clock."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

Spread = dict[str, float]
"""``median``, ``min`` and ``max`` of what was measured in several rounds."""


def spread(values: Iterable[float]) -> Spread:
    """The middle and the ends."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def percentile(values: Iterable[float], share: float) -> float:
    """The least value that this share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def answers(ms: Sequence[float]) -> dict[str, float]:
    """How long answers took, for a report."""
    return {"p50": percentile(ms, 0.5), "p95": percentile(ms, 0.95), "p99": percentile(ms, 0.99), "max": max(ms),
            "n": len(ms)}  # fmt: skip


def ratios(series: Mapping[str, Sequence[float]], name: str, to: str) -> Spread:
    """Of one to the other, round by round: what else the machine did in a round met both."""
    return spread(one / other for one, other in zip(series[name], series[to], strict=True))


def fitting(rate: float, seconds: float, most: int, least: int = 20) -> int:
    """So many that at this rate a second they take about so long, within bounds: a slow one does not take minutes."""
    return max(least, min(most, round(rate * seconds)))


def shown(figures: Mapping[str, float], digits: int = 0) -> str:
    """A spread as people read it."""
    return f"{figures['median']:.{digits}f} ({figures['min']:.{digits}f} to {figures['max']:.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as they must be: the first to the left, all others to the right."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
