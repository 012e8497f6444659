"""Everything that can carry out no-op jobs, two at a time: the floor, Solvisor and its peers, as their users run them.

Rules: a runner is started, warmed up, measured and ended within one turn, so it never has to share the machine with
another, and everything that lives meanwhile is its own. It works in a folder of its own, which stays until the end of
all: who comes next must not pay for its removal. What a ``kill -9`` of it loses is said beside its figures.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar, Self

import install
from bench_kit import NOOP, TRUE, Daemon, warm

HERE = Path(__file__).resolve().parent
PYTHON = sys.executable

START_SECONDS = 60.0
RUN_SECONDS = 180.0
END_SECONDS = 15.0


class Failed(Exception):
    """A runner did not do what it was asked; the benchmark goes on without it."""


class Runner:
    """Carries out jobs in ``folder``. A context: it lives from its entry to its exit."""

    name: ClassVar[str]
    loses: ClassVar[str]
    """What is gone after ``kill -9`` of it: ``all``, ``what runs`` (what waits is kept), or ``nothing``."""

    ways: ClassVar[frozenset[str]] = frozenset({"spawn"})
    """``spawn``: a job is a program. ``call``: a job is a function that does nothing."""

    release = ""
    """Which version of it this is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def why_not(cls) -> str | None:
        """Why it cannot be had here; None if it can."""
        return None

    def start(self) -> None:
        """Once this returns it can be asked."""

    def carry_out(self, way: str, count: int) -> float:
        """Seconds from handing in the first of so many jobs until the last one's end is known."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it."""

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def timed(command: list[str], folder: Path, given: bytes | None = None, **environment: str) -> float:
    """Seconds that a command takes. Raises ``Failed`` if it does not end well."""
    begin = time.perf_counter()
    try:
        done = subprocess.run(
            command, cwd=folder, input=given, env=os.environ | environment, timeout=RUN_SECONDS, check=False,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} took longer than {RUN_SECONDS:.0f} s") from error
    if done.returncode != 0:
        raise Failed(f"{command[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace')[-500:]}")
    return time.perf_counter() - begin


def release_of(*command: str) -> str:
    """The last word of the first line that a program says of itself."""
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    words = (told.stdout or told.stderr).partition("\n")[0].split()
    return words[-1].strip("()v") if words else ""


# --- without a queue --------------------------------------------------------------------------------------------------


class Floor(Runner):
    """The least that it can cost: ``posix_spawn`` and ``wait`` in C."""

    name = "C posix_spawn loop"
    loses = "all"

    def start(self) -> None:
        timed(["cc", "-O2", "-o", str(self.folder / "spawnloop"), str(HERE / "spawnloop.c")], self.folder)

    @classmethod
    def why_not(cls) -> str | None:
        return None if shutil.which("cc") else "there is no C compiler (cc)"

    def carry_out(self, way: str, count: int) -> float:
        return float(subprocess.check_output([self.folder / "spawnloop", str(count), "2", TRUE]))


class Xargs(Runner):
    name = "xargs -P2"
    loses = "all"

    def start(self) -> None:
        self.release = release_of("xargs", "--version")

    def carry_out(self, way: str, count: int) -> float:
        return timed(["xargs", "-P2", "-n1", TRUE], self.folder, _numbers(count))


class Parallel(Runner):
    """GNU parallel, with a home of its own: it leaves files in it."""

    name = "GNU parallel"
    loses = "all"

    @classmethod
    def why_not(cls) -> str | None:
        reason = install.why_not("parallel")
        if reason is None and b"GNU" not in subprocess.run(["parallel", "--version"], capture_output=True).stdout:
            return "parallel is another program of that name"
        return reason

    def start(self) -> None:
        self.release = release_of("parallel", "--version")

    def carry_out(self, way: str, count: int) -> float:
        home = str(self.folder)
        return timed(
            ["parallel", "-j2", TRUE], self.folder, _numbers(count), HOME=home, TMPDIR=home, PARALLEL_HOME=home
        )


def _numbers(count: int) -> bytes:
    return "".join(f"{number}\n" for number in range(count)).encode()


class TaskSpooler(Runner):
    """A server with two places, and a client for each job; ``tsp -f`` is one that waits for its end."""

    name = "task-spooler"
    loses = "all"

    @classmethod
    def why_not(cls) -> str | None:
        return install.why_not("tsp")

    def start(self) -> None:
        self.release = release_of("dpkg-query", "-W", "task-spooler")
        self._spool("tsp -S 2")

    def carry_out(self, way: str, count: int) -> float:
        if count == 1:
            return self._spool(f"tsp -f {TRUE}")
        return self._spool(f"for n in $(seq {count}); do last=$(tsp {TRUE}); done; tsp -w $last; tsp -w $((last - 1))")

    def stop(self) -> None:
        self._spool("tsp -K")

    def _spool(self, script: str) -> float:
        folder = str(self.folder)
        return timed(["sh", "-ec", script], self.folder, TS_SOCKET=f"{folder}/socket", TMPDIR=folder)


# --- peers in Python, in an environment of their own ------------------------------------------------------------------


class Driven(Runner):
    """A program of ``peers/``, which is told what to do on its input, in the environment of the peers."""

    program: ClassVar[str]
    arguments: ClassVar[tuple[str, ...]] = ()
    ways = frozenset({"spawn", "call"})

    @classmethod
    def why_not(cls) -> str | None:
        return install.why_no_python()

    def start(self) -> None:
        command = [str(install.PYTHON), str(HERE / "peers" / self.program), *self.arguments]
        peers, own = str(HERE / "peers"), str(self.folder)  # what they leave in their home and their /tmp goes, too
        environment = {"PYTHONPATH": peers, "PYTHONDONTWRITEBYTECODE": "1", "HOME": own, "TMPDIR": own}
        self._process = subprocess.Popen(
            command, cwd=self.folder, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.release = self._answer(START_SECONDS).removeprefix("ready ")

    def carry_out(self, way: str, count: int) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{way} {count}\n".encode())
        self._process.stdin.flush()
        return float(self._answer(RUN_SECONDS))

    def stop(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def _answer(self, seconds: float) -> str:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise Failed(f"{self.program} did not answer in {seconds:.0f} s")
        line = self._process.stdout.readline().decode().strip()
        if not line:
            raise Failed(f"{self.program} ended")
        return line


class Huey(Driven):
    name = "huey, SQLite with fsync"
    loses = "what runs"
    program = "with_huey.py"


class Celery(Driven):
    name = "Celery, redis with fsync"
    loses = "what runs"
    program = "with_celery.py"

    @classmethod
    def why_not(cls) -> str | None:
        return install.why_not("redis-check-rdb") or super().why_not()


class Dask(Driven):
    name = "dask.distributed"
    loses = "all"
    program = "with_dask.py"


class Pool(Driven):
    name = "ProcessPoolExecutor"
    loses = "all"
    program = "with_pool.py"


PEERS: tuple[type[Runner], ...] = (Xargs, TaskSpooler, Huey, Celery, Dask, Parallel, Pool)


# --- Solvisor ---------------------------------------------------------------------------------------------------------


class Solvisor(Runner):
    """A daemon on a fresh home, jobs renamed into its inbox; done is what has its result and manifest in place."""

    name = "Solvisor"
    loses = "nothing"
    config: ClassVar[str] = NOOP
    suffix: ClassVar[str] = "noop"
    text: ClassVar[str] = "nothing\n"

    def start(self) -> None:
        home = self.folder / "home"
        home.mkdir()
        shutil.copy(HERE / "programs" / "work.py", home)
        self.daemon = Daemon(home, self.config)

    def carry_out(self, way: str, count: int) -> float:
        return self.daemon.carry_out(self.daemon.prepare(count, self.suffix, self.text))

    def stop(self) -> None:
        self.daemon.stop()


class WarmSolvisor(Solvisor):
    """Each job is a call of a function in one of two warm workers; else all is the same."""

    name = "Solvisor, warm Python workers"
    ways = frozenset({"call"})
    suffix = "call"
    config = NOOP + warm("call", "nothing", 2)
