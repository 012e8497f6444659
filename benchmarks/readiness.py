"""How much later than a warm server is ready does the daemon see it? Beside bare loops that poll, in turns.

A server says by its own clock when ``listen()`` returned (a Python worker: when its import ended), about ``--late``
seconds after it was started, half to one and a half; the daemon's log says when it was ready to be used. Three kinds: a
server that is asked over TCP, one that says in a line which port it has, and a Python worker. The log's word comes
after a first request was answered, which the bare loops do as well.

    python benchmarks/readiness.py [--starts 10] [--rounds 5] [--late 0.1] [--quick]
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from bench_kit import Daemon, late_ms
from figures import percentile, table
from record import Options, keep, scratch
from runners import HERE, PYTHON

HOST = "127.0.0.1"
LATE = [PYTHON, "-S", "-E", str(HERE / "programs" / "late_server.py")]
TOLD_SECONDS = 20.0
KINDS = {
    "asked": "a server, asked over TCP",
    "line": "a server, says so in a line",
    "worker": "a Python worker",
}
POLLS = {f"bare, connecting every {1000 * pause:.0f} ms": pause for pause in (0.001, 0.01, 0.1)}


class Servers(Daemon):
    """A daemon with one warm server of each kind; each notes in a file of its own when it was ready."""

    def __init__(self, home: Path, late: float) -> None:
        home.mkdir()
        shutil.copy(HERE / "programs" / "late_import.py", home)
        self._notes = {solver: home / f"{solver}.ready" for solver in KINDS}
        starts = {solver: json.dumps([*LATE, str(late), str(self._notes[solver])]) for solver in ("asked", "line")}
        config = f"""
[solver.asked]
kind = "server"
accept = ["*.asked"]
start = {starts["asked"][:-1]}, "{{host}}", "{{port}}"]
ready = {{ kind = "tcp", send = "ping\\n", expect = "^pong$" }}
command = ["true"]
[solver.line]
kind = "server"
accept = ["*.line"]
start = {starts["line"][:-1]}, "{{host}}", "0"]
port = {{ line = '^port (\\d+)' }}
ready = {{ kind = "line", match = "^port" }}
command = ["true"]
[solver.worker]
kind = "python"
accept = ["*.worker"]
call = "late_import.py:process"
python = "{PYTHON}"
env = {{ LATE_IMPORT = "{self._notes["worker"]}", LATE_SECONDS = "{late}" }}
"""
        super().__init__(home, config)

    def start(self, solver: str) -> float:
        """Milliseconds from when a new server was ready until that was seen."""
        before = self.log().count('"server.ready"')
        self.ask(f"/v1/servers/{solver}/scale", "POST", b'{"count": 1}')
        self.until_logged("server.ready", before + 1)
        seen = [line for line in map(json.loads, self.log().splitlines()) if line["event"] == "server.ready"][-1]
        ready = self._noted(solver)
        self.ask(f"/v1/servers/{solver}/scale", "POST", b'{"count": 0}')
        self.until_logged("server.stopped", before + 1)
        self._notes[solver].unlink()
        return 1000 * (datetime.fromisoformat(seen["timestamp"]).timestamp() - ready)

    def _noted(self, solver: str) -> float:
        return noted(self._notes[solver])


def noted(path: Path) -> float:
    """What a server noted; it does so right after it listens, so perhaps a moment after it was asked."""
    end = time.monotonic() + TOLD_SECONDS
    while time.monotonic() < end:
        with suppress(OSError):
            lines = path.read_text()
            if lines.endswith("\n"):
                return float(lines.splitlines()[-1])
        time.sleep(0.001)
    sys.exit(f"a server that is ready did not note in {path} since when")


def polled(folder: Path, pause: float, ports: Iterator[int], late: float) -> float:
    """The same for a bare loop that connects and asks until it is answered."""
    port, notes = next(ports), folder / "bare.ready"
    command = [*LATE, str(late), str(notes), HOST, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while True:
                with suppress(OSError), socket.create_connection((HOST, port)) as connection:
                    connection.sendall(b"ping\n")
                    if connection.recv(100):
                        seen = time.time()
                        break
                time.sleep(pause)
            ready = noted(notes)
        finally:
            process.kill()
    notes.unlink()
    return 1000 * (seen - ready)


def main() -> None:
    parser = Options(__doc__)
    parser.count("starts", 10, 4, "of each in a round")
    parser.count("rounds", 5, 1)
    parser.add_argument("--late", type=float, default=0.1, help="seconds that a start takes, about (%(default)s)")
    arguments = parser.asked()
    starts, rounds = arguments.starts, arguments.rounds
    ports = iter(range(23000 + os.getpid() % 1000, 30000))
    series: dict[str, list[float]] = {name: [] for name in (*KINDS.values(), *POLLS)}
    late = []
    with scratch(arguments) as base, Servers(base / "home", arguments.late) as daemon:
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
            for _ in range(starts):
                late += [late_ms() for _ in range(5)]
                for solver, name in KINDS.items():
                    series[name].append(daemon.start(solver))
                for name, pause in POLLS.items():
                    series[name].append(polled(base, pause, ports, arguments.late))
    report = {
        name: {"p50": percentile(ms, 0.5), "p95": percentile(ms, 0.95), "max": max(ms), "starts": len(ms)}
        for name, ms in series.items()
    }
    rows = [
        (name, f"{told['p50']:.1f}", f"{told['p95']:.1f}", f"{told['max']:.1f}", str(told["starts"]))
        for name, told in report.items()
    ]
    print(table(("ready, seen later by ms", "median", "95 %", "max", "starts"), rows))
    print(f"noise: a sleep of 1 ms ended {percentile(late, 0.95):.2f} ms late at the 95th percentile")
    late_told = {"p50": percentile(late, 0.5), "p95": percentile(late, 0.95)}
    about = {"rounds": rounds, "start_seconds": arguments.late, "late_ms": late_told}
    keep("readiness", about | {"seen_later_ms": report}, arguments)


if __name__ == "__main__":
    main()
