"""Every benchmark, one after the other, then all figures in one table and, of a whole run, the picture of the README.

Each question has a file of its own here; what it found is kept in ``build/bench/NAME.json`` (of a quick run in
``build/bench/quick``). A benchmark that fails does not keep the others from running.

    python benchmarks/all.py [NAME ...] [--quick] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import plot
import summary
import tree
from record import RESULTS, throw_away

HERE = Path(__file__).resolve().parent
QUESTIONS = (
    "throughput", "latency", "submit", "warm", "cold", "load", "idle", "readiness", "status", "trips", "inbox", "api",
    "pages",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(QUESTIONS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small runs: is all well? Figures are rough")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where throw-away homes lie; a real disk")
    arguments = parser.parse_args()
    if not set(arguments.names) <= set(QUESTIONS):
        parser.error(f"the benchmarks are {', '.join(QUESTIONS)}")
    results = RESULTS / "quick" if arguments.quick else RESULTS
    failed = []
    with throw_away(arguments.dir) as folder:
        passed_on = [*(["--quick"] if arguments.quick else []), "--dir", str(folder), "--leave"]
        for name in arguments.names or QUESTIONS:
            kept = results / f"{name}.json"
            kept.unlink(missing_ok=True)  # what an earlier run found must not stand for what this one did not
            if not asked([sys.executable, str(HERE / f"{name}.py"), *passed_on, "--json", str(kept)]):
                failed.append(name)
    summary.show(results)
    if not arguments.quick and not arguments.names and not failed:
        plot.draw(results, plot.PICTURE)
        print(f"drawn: {plot.PICTURE}")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def asked(command: list[str]) -> bool:
    """Whether it ended well. Who asks us to end asks it: it puts everything away, and is waited for."""
    began = time.monotonic()
    name = Path(command[1]).stem
    print(f"\n== {name}", flush=True)
    with subprocess.Popen(command) as process:
        try:
            status = process.wait()
        except SystemExit:
            process.terminate()
            raise
    print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    return status == 0


if __name__ == "__main__":
    tree.adopt_orphans()
    main()
