"""How does the daemon bear very much in its inbox? Three parts, each on a fresh home, with nothing allowed to start.

``burst``    files written into the inbox of a running daemon as fast as can be, more than the queue of events holds
``backlog``  files that lie there when the daemon starts
``idle``     files that nothing takes, and that wait for their job files: what they cost while nothing happens

Tells how long it took until all were accepted, durably; how long the status took to be answered meanwhile (the loop's
lag is in it), memory and processor time. The floor of the first two is to write the same files, and nothing else.

    python benchmarks/inbox.py [PART ...] [--burst 20000] [--backlog 100000] [--idle 20000] [--quick]
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench_kit import Daemon
from figures import percentile
from record import Options, keep, scratch

SETTLE_SECONDS = 10.0
IDLE_SECONDS = 60.0
QUICK = {"burst": 2000, "backlog": 5000, "idle": 2000}
WHOLE = {"burst": 20_000, "backlog": 100_000, "idle": 20_000}
PATIENCE_SECONDS = 1800.0

Figures = dict[str, float]


class Paused(Daemon):
    """A daemon on a fresh home under ``base``, in which no job starts; ``fill`` fills its inbox before."""

    def __init__(self, base: Path, fill: Callable[[Path], object] = lambda _inbox: None) -> None:
        inbox = base / "home" / "inbox"
        inbox.mkdir(parents=True)
        fill(inbox)
        super().__init__(base / "home")
        self.ask("/v1/pause", "POST")

    def status(self) -> dict[str, Any]:
        """The answer to ``GET /v1/status``."""
        return dict(self.ask("/v1/status"))


def fill(folder: Path, count: int, suffix: str) -> None:
    for n in range(count):
        fd = os.open(folder / f"{n:06}{suffix}", os.O_CREAT | os.O_WRONLY)
        os.write(fd, b"nothing\n")
        os.close(fd)


def accepted(daemon: Paused, count: int, began: float) -> Figures:
    """Until so many jobs wait, asking for the status all the time."""
    answers: list[float] = []
    while True:
        asked = time.monotonic()
        there = daemon.status()
        answers.append(time.monotonic() - asked)
        if there["waiting"] + sum(there["last_day"].values()) >= count:
            break
        if asked > began + PATIENCE_SECONDS:
            sys.exit(f"only {there['waiting']} of {count} were accepted")
        time.sleep(0.02)
    return {
        "seconds": time.monotonic() - began,
        "status_p99_ms": 1000 * percentile(answers, 0.99),
        "status_max_ms": 1000 * max(answers),
        "peak_mib": daemon.mib("VmHWM"),
        "cpu_seconds": daemon.cpu().own,
    }


def burst(base: Path, count: int) -> Figures:
    daemon = Paused(base)
    began = time.monotonic()
    fill(daemon.inbox, count, ".noop")
    written = time.monotonic() - began
    figures = accepted(daemon, count, began)
    daemon.stop()
    return {"files": count, "writing_seconds": written, **figures}


def backlog(base: Path, count: int) -> Figures:
    took: list[float] = []

    def write(inbox: Path) -> None:
        began = time.monotonic()
        fill(inbox, count, ".noop")
        took.append(time.monotonic() - began)

    daemon = Paused(base, write)
    figures = accepted(daemon, count, daemon.began)
    daemon.stop()
    return {"files": count, "writing_seconds": took[0], **figures}


def idle(base: Path, count: int, seconds: float = IDLE_SECONDS) -> Figures:
    daemon = Paused(base, lambda inbox: fill(inbox, count, ".unknown"))
    while daemon.status()["inbox_total"] < count:
        time.sleep(0.1)
    time.sleep(SETTLE_SECONDS)
    before = daemon.cpu().own
    time.sleep(seconds)
    share = (daemon.cpu().own - before) / seconds
    figures = {"files": count, "cpu_percent": 100 * share, "rss_mib": daemon.mib("VmRSS")}
    daemon.stop()
    return figures


def main() -> None:
    parser = Options(__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="burst, backlog, idle (default: all)")
    for part, whole in WHOLE.items():
        parser.count(part, whole, QUICK[part], "files")
    arguments = parser.asked()
    seconds = 5.0 if arguments.quick else IDLE_SECONDS
    parts = {"burst": burst, "backlog": backlog, "idle": partial(idle, seconds=seconds)}
    if not set(arguments.parts) <= set(parts):
        parser.error(f"the parts are {', '.join(parts)}")
    report: dict[str, Figures] = {}
    with scratch(arguments) as base:
        for part in arguments.parts or parts:
            report[part] = parts[part](base / part, getattr(arguments, part))
            print(part)
            for name, value in report[part].items():
                print(f"  {name:<16} {value:12,.1f}", flush=True)
    keep("inbox", {"parts": report}, arguments)


if __name__ == "__main__":
    main()
