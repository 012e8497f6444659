"""One piece of work for both ways: a function for a warm Python worker, and a program that does the same and prints it.

python work.py FILE
"""

from __future__ import annotations

import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any


def nothing(job: Any) -> None:
    """The least that a function can do."""


def process(job: Any) -> dict[str, float]:
    """A few figures of a file of numbers."""
    return figures(job.input)


def figures(path: Path) -> dict[str, float]:
    with open(path, newline="") as file:
        values = [float(value) for row in csv.reader(file) for value in row]
    return {"mean": statistics.fmean(values), "peak": max(values), "spread": statistics.pstdev(values)}


if __name__ == "__main__":
    print(json.dumps(figures(Path(sys.argv[1]))))
