"""What the benchmarks share: a real daemon on a throw-away home, and questions to it.

Rules: a daemon is started, fed and asked as its users do it, and what it costs is read from ``/proc``. This module must
not know what is measured.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import tree

TRUE = shutil.which("true") or "/bin/true"
NOOP = f"""
[daemon]
max_jobs = 2
[solver.noop]
accept = ["*.noop"]
command = ["{TRUE}"]
"""
"""A configuration whose jobs do nothing."""


def warm(solver: str, function: str, workers: int) -> str:
    """The table of a solver with so many warm workers, whose jobs are calls of a function of ``work.py``."""
    return f"""
[solver.{solver}]
kind = "python"
accept = ["*.{solver}"]
call = "work.py:{function}"
python = "{sys.executable}"
servers = {{ min = {workers}, max = {workers} }}
"""


START_SECONDS = 600.0
END_SECONDS = 120.0
ANSWER_SECONDS = 120.0
PATIENCE_SECONDS = 600.0
LOOKS = 20  # so often the results are looked at before what failed is


class Connection(http.client.HTTPConnection):
    """HTTP over the status socket of a home."""

    def __init__(self, home: Path) -> None:
        super().__init__("solvisor", timeout=ANSWER_SECONDS)
        self._path = home / "run" / "solvisor.sock"

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(ANSWER_SECONDS)
        self.sock.connect(str(self._path))

    def ask(self, target: str, method: str = "GET", fine: tuple[int, ...] = (200,), body: bytes = b"{}") -> bytes:
        """The whole answer. Raises ``RuntimeError`` if its status is none of those that are ``fine``."""
        self.request(method, target, body if method == "POST" else None)
        answer = self.getresponse()
        body = answer.read()
        if answer.status not in fine:
            raise RuntimeError(f"{method} {target} was answered with {answer.status}: {body[:500]!r}")
        return body


class Cpu(NamedTuple):
    """Processor seconds of the daemon itself, and of all children that it reaped."""

    own: float
    children: float


class Daemon:
    """A daemon on ``home``, which may hold something already. Once this is made it answers."""

    def __init__(self, home: Path, config: str = NOOP, env: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.inbox = home / "inbox"
        home.mkdir(parents=True, exist_ok=True)
        (home / "solvisor.toml").write_text(config)
        self._scratch = home.with_name(f"{home.name}-scratch")
        self._scratch.mkdir()
        self._number = 0
        command = [sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(home)]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
            start_new_session=True,  # Ctrl-C is for the benchmark, which ends it in order
        )
        while not self._answers():
            if self.process.poll() is not None or time.monotonic() > self.began + START_SECONDS:
                sys.exit(f"the daemon did not become ready:\n{self.log()[-3000:]}")
            time.sleep(0.01)
        self.start_seconds = time.monotonic() - self.began

    def _answers(self) -> bool:
        try:
            self.ask("/v1/status")
        except OSError:
            return False
        return True

    def ask(self, target: str, method: str = "GET", body: bytes = b"{}") -> Any:
        """The answer, over a connection of its own."""
        connection = Connection(self.home)
        try:
            return json.loads(connection.ask(target, method, body=body))
        finally:
            connection.close()

    def log(self) -> str:
        """What it logged in all its lives."""
        path = self.home / "state" / "log" / "solvisor.jsonl"
        return path.read_text() if path.exists() else ""

    def prepare(self, count: int, suffix: str = "noop", text: str = "nothing\n") -> list[tuple[Path, Path]]:
        """So many files outside the inbox, with the places in it where they belong."""
        pairs = []
        for _ in range(count):
            self._number += 1
            name = f"job{self._number:06}.{suffix}"
            (self._scratch / name).write_text(text)
            pairs.append((self._scratch / name, self.inbox / name))
        return pairs

    def done(self) -> int:
        """How many jobs have their result in its place.

        As many as the folder has links besides its own two, where the file system counts them. To list it would take
        longer with each result, and keep the next one out meanwhile.
        """
        links = os.stat(self.home / "done").st_nlink
        return links - 2 if links > 2 else len(os.listdir(self.home / "done"))

    def carry_out(self, files: Iterable[tuple[Path, Path]]) -> float:
        """Seconds from the first rename into the inbox until all of these are done."""
        files = list(files)
        wanted = self.done() + len(files)
        pause = 0.01 if len(files) > 1 else 0.0002
        begin = time.perf_counter()
        for source, target in files:
            source.rename(target)
        self.until(wanted, pause)
        return time.perf_counter() - begin

    def until(self, wanted: int, pause: float = 0.01) -> None:
        """Wait until so many are done; the benchmark ends if one did not succeed."""
        looks, end = 0, time.monotonic() + PATIENCE_SECONDS
        while self.done() < wanted:
            looks += 1
            if time.monotonic() > end:
                sys.exit(f"after {PATIENCE_SECONDS:.0f} s {self.done()} of {wanted} jobs are done")
            if looks % LOOKS == 0 and any(os.listdir(self.home / bad) for bad in ("failed", "rejected")):
                sys.exit("a job did not succeed")
            time.sleep(pause)

    def until_logged(self, event: str, count: int) -> None:
        """Wait until it logged so many of them in all its lives; the benchmark ends if that does not come."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.log().count(f'"{event}"') < count:
            if self.process.poll() is not None or time.monotonic() > end:
                sys.exit(f"the daemon did not log {event} {count} times:\n{self.log()[-3000:]}")
            time.sleep(0.02)

    def cpu(self) -> Cpu:
        """What it used so far."""
        return cpu_of(self.process.pid)

    def mib(self, field: str) -> float:
        """``VmRSS``, its memory now; ``VmHWM``, at most so far."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    def stop(self) -> None:
        """End it; the benchmark ends if it does not end well."""
        self.process.terminate()
        if self.process.wait(END_SECONDS) != 0:
            sys.exit(f"the daemon ended with {self.process.returncode}")

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.stop()
        else:
            self.process.terminate()  # so that what it started ends, too
            self.process.wait(END_SECONDS)


NOISE = "other load"
"""What an ``Asker`` was told by a sleep."""


class Asker(threading.Thread):
    """Asks one of the ``questions`` (targets, by name) after the other until it is stopped, one each ``pause`` seconds.

    ``told`` gets the milliseconds from each request to the last byte of its answer, by name, and how late a sleep of
    1 ms ended between them. Each is asked at least once.
    """

    def __init__(self, home: Path, questions: Mapping[str, str], pause: float, told: dict[str, list[float]]) -> None:
        super().__init__(daemon=True)
        self._connection = Connection(home)
        self._questions = questions
        self._pause = pause
        self._told = told
        self._over = threading.Event()
        self.start()

    def run(self) -> None:
        due = time.monotonic()
        while True:
            for name, target in self._questions.items():
                due = max(due + self._pause, time.monotonic())
                if self._over.wait(due - time.monotonic()) and name in self._told:
                    self._connection.close()
                    return
                self._told.setdefault(name, []).append(ask_ms(self._connection, target))
                self._told.setdefault(NOISE, []).append(late_ms())

    def stop(self) -> None:
        """Return once it asks no more."""
        self._over.set()
        self.join(ANSWER_SECONDS)


def ask_ms(connection: Connection, target: str) -> float:
    """Milliseconds until the last byte."""
    begin = time.perf_counter()
    connection.ask(target)
    return 1000 * (time.perf_counter() - begin)


def cpu_of(pid: int) -> Cpu:
    """What a process and the children that it reaped used so far."""
    return Cpu(tree.own_cpu_seconds(pid), tree.reaped_cpu_seconds(pid))


def late_ms() -> float:
    """How much later than it should a sleep of 1 ms ends: the other load of the machine."""
    begin = time.perf_counter()
    time.sleep(0.001)
    return 1000 * (time.perf_counter() - begin) - 1
