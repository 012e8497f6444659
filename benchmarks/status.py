"""How long does ``solvisor status`` take from the shell? With a daemon and without, beside the bare interpreter.

Each in turn: ``python -c pass`` (the floor), the same without ``site``, the verb on a home whose daemon runs, and on
one that has none. The program is started as its installed script does it.

    python benchmarks/status.py [--times 40] [--quick]
"""

from __future__ import annotations

import subprocess
import time
import tomllib
from pathlib import Path

from bench_kit import NOOP, Daemon, late_ms
from figures import percentile, ratios, shown, spread, table
from record import ROOT, Options, keep, scratch
from runners import PYTHON

FLOOR = "python -c pass"


def script(folder: Path) -> Path:
    """What an installer writes for ``[project.scripts]``."""
    module, _, function = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][
        "solvisor"
    ].partition(":")
    path = folder / "solvisor"
    path.write_text(f"#!{PYTHON}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    path.chmod(0o755)
    return path


def took_ms(command: list[str], status: int) -> float:
    """Raises ``RuntimeError`` if it ends otherwise."""
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, check=False)
    took = 1000 * (time.perf_counter() - begin)
    if done.returncode != status:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr.decode(errors='replace')}")
    return took


def main() -> None:
    parser = Options(__doc__)
    parser.count("times", 40, 8, "each")
    arguments = parser.asked()
    times = arguments.times
    with scratch(arguments) as base:
        solvisor = str(script(base))
        (base / "none").mkdir()
        (base / "none" / "solvisor.toml").write_text(NOOP)
        commands = {
            FLOOR: ([PYTHON, "-c", "pass"], 0),
            "python -S -E -c pass": ([PYTHON, "-S", "-E", "-c", "pass"], 0),
            "solvisor status, a daemon runs": ([solvisor, "status", "--home", str(base / "home")], 0),
            "solvisor status, none runs": ([solvisor, "status", "--home", str(base / "none")], 3),
        }
        series: dict[str, list[float]] = {name: [] for name in commands}
        late = []
        with Daemon(base / "home"):
            for command, status in commands.values():  # so that all is compiled and in memory
                took_ms(command, status)
            for _ in range(times):
                for name, (command, status) in commands.items():
                    late.append(late_ms())
                    series[name].append(took_ms(command, status))
    report = {
        name: {"ms": spread(values), "p95": percentile(values, 0.95), "ratio": ratios(series, name, FLOOR)}
        for name, values in series.items()
    }
    rows = [
        (name, shown(told["ms"]), f"{told['p95']:.0f}", shown(told["ratio"], 1)) for name, told in report.items()
    ]  # fmt: skip
    print(table(("from the shell", "median ms (min to max)", "95 %", f"of {FLOOR}"), rows))
    print(f"noise: a sleep of 1 ms ended {percentile(late, 0.95):.2f} ms late at the 95th percentile")
    late_told = {"p50": percentile(late, 0.5), "p95": percentile(late, 0.95)}
    keep("status", {"times": times, "late_ms": late_told, "ways": report}, arguments)


if __name__ == "__main__":
    main()
