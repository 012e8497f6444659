"""What the process tests share: attempts on throw-away folders, and a look at who is alive."""

from __future__ import annotations

import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import solvisor
from solvisor.interfaces import AttemptSpec
from solvisor.process import proc
from waiting import wait_until

HOME_ID = f"test{secrets.token_hex(14)}"
"""The home of what this test process starts: tests of others on this machine have another."""

ANOTHER_ID = f"other{secrets.token_hex(14)}"
"""A home of somebody else."""

PATH = "/usr/local/bin:/usr/bin:/bin"
PROGRAMS = Path(__file__).parent / "adapters" / "programs"

# For programs that import this file and Solvisor itself.
_IMPORTABLE = [str(Path(solvisor.__file__).parents[1]), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, _IMPORTABLE))}

# A process that left session, environment, folder and logs behind; it writes its number to the file pid.
# Its number is to be seen once that file is closed: until then the file tells whose it is.
TOLD_LATER = 'cd /; echo $$ > "$0.new"; mv "$0.new" "$0"; exec sleep 1000'
ONLY_THE_TOKEN = f"setsid sh -c '{TOLD_LATER}' \"$PWD/pid\" > /dev/null 2>&1"
WITHOUT_A_CLUE = f"env -i {ONLY_THE_TOKEN}"


def given(spec: AttemptSpec) -> Callable[[], AttemptSpec]:
    """What a backend is given to launch just this."""
    return lambda: spec


class Attempt:
    """One attempt in a folder of its own."""

    def __init__(self, folder: Path, spec: AttemptSpec) -> None:
        self.folder = folder
        self.spec = spec

    def ready(self) -> AttemptSpec:
        """What a backend is given to launch it."""
        return self.spec

    @property
    def stdout(self) -> str:
        return Path(self.spec.stdout).read_text()

    def pid(self, name: str = "pid") -> int:
        """The process id that the attempt wrote to the file ``name``, as soon as it is there."""
        text = wait_until(lambda: self.read(name).endswith("\n") and self.read(name), f"{name} in {self.folder}")
        return int(text)

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""


class Attempts:
    """Makes attempts below ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def __call__(
        self,
        *argv: str,
        env: Mapping[str, str] | None = None,
        grace: float = 20.0,
        log_max: int = 1 << 20,
        stdout: Path | None = None,
        memory_limit: int | None = None,
        processes_limit: int | None = None,
    ) -> Attempt:
        self._count += 1
        folder = self._folder / f"job-{self._count}" / "output"
        folder.mkdir(parents=True)
        spec = AttemptSpec(
            token=f"{HOME_ID}/{self._folder.name}-{self._count}",
            argv=argv,
            cwd=str(folder),
            env=dict({"PATH": PATH} if env is None else env),
            stdout=str(stdout or folder.parent / "stdout.log"),
            stderr=str(folder.parent / "stderr.log"),
            grace_seconds=grace,
            log_max_bytes=log_max,
            memory_limit_bytes=memory_limit,
            processes_limit=processes_limit,
        )
        return Attempt(folder, spec)

    def shell(self, script: str, **how: float | int) -> Attempt:
        """An attempt whose program is ``sh``; the script ends in a command of its own, so that sh stays its parent."""
        return self("sh", "-c", f"{script}\nexit $?", **how)  # type: ignore[arg-type]

    def python(self, program: str, *args: str) -> Attempt:
        """An attempt that runs one of ``adapters/programs``."""
        return self(sys.executable, "-S", "-E", str(PROGRAMS / program), *args)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    process = proc.read_process(pid)
    return process is not None and process.state not in "ZX"


def is_gone(pid: int) -> bool:
    """Whether nothing is left of the process, not even a zombie."""
    return proc.read_process(pid) is None


def orphans() -> list[proc.Process]:
    """Children of this process that some solver left, dead or alive: those in a session that is not ours."""
    found = [proc.read_process(pid) for _, pid in proc.children(os.getpid())]
    return [process for process in found if process is not None and process.session != os.getsid(0)]


def ticks_passed(process: proc.Process) -> Callable[[], bool]:
    """Whether whatever starts now has a later start time than ``process``."""
    hertz = os.sysconf("SC_CLK_TCK")
    return lambda: time.clock_gettime(time.CLOCK_BOOTTIME) * hertz > process.start + 2
