"""What the tests of warm Python workers share: the interpreters there are, workers, and jobs for them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import solvisor
from waiting import wait_until

WORKER = Path(solvisor.__file__).parent / "worker.py"
PROGRAMS = Path(__file__).parent / "adapters" / "programs"


@cache
def pythons() -> dict[str, str]:
    """Interpreters from 3.8 on by their version: the one of the tests, and what the PATH has beside it."""
    found: dict[str, str] = {}
    for name in (sys.executable, *(f"python3.{minor}" for minor in range(8, 14))):
        path = shutil.which(name)
        if path is not None:
            told = subprocess.run(
                [path, "-c", "import sys; print(*sys.version_info[:2], sep='.')"], capture_output=True
            )
            if told.returncode == 0:  # the name may be a stand-in for one that is not installed
                found.setdefault(told.stdout.decode().strip(), path)
    return found


class RunningWorker:
    """A worker in ``home``, and one client of it."""

    def __init__(
        self,
        home: Path,
        call: str = "worker_functions.py:process",
        *,
        python: str = sys.executable,
        folder: Path = PROGRAMS,
        tcp: bool = False,
        env: dict[str, str] | None = None,
    ) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.log = home / "worker.log"
        door = ["--token-file", "worker.token"] if tcp else ["--socket", "worker.sock"]
        argv = [python, str(WORKER), "--call", call, "--folder", str(folder), *door]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                cwd=home,
                env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._client: socket.socket | None = None
        self._tcp = tcp

    def door(self) -> dict[str, Any]:
        """The port and the token of a worker on TCP."""
        told = self.home / "worker.token"
        wait_until(lambda: told.exists() or self.process.poll() is not None, "the worker tells its port")
        found: dict[str, Any] = json.loads(told.read_text())
        return found

    def connect(self) -> socket.socket:
        """A new client of a worker that is up."""
        if self._tcp:
            return socket.create_connection(("127.0.0.1", self.door()["port"]), 20)
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(20)
        here = os.open(self.home, os.O_PATH)
        try:
            wait_until(
                lambda: self.process.poll() is not None or not client.connect_ex(f"/proc/self/fd/{here}/worker.sock"),
                "the worker listens",
            )
        finally:
            os.close(here)
        return client

    def ask(self, question: Any) -> dict[str, Any]:
        """The answer to a question; fails if the worker hangs up."""
        self._client = self._client or self.connect()
        return exchange(self._client, json.dumps(question).encode() + b"\n")

    def hang_up(self) -> None:
        """Close the connection; the next question makes a new one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def ended(self) -> int:
        """Its exit status, once it ended."""
        return self.process.wait(20)

    def stop(self) -> None:
        """End it, however it is."""
        self.hang_up()
        self.process.kill()
        self.process.wait()


def exchange(client: socket.socket, line: bytes) -> dict[str, Any]:
    """Send a line and return the answer; ``EOFError`` if there is none."""
    client.sendall(line)
    said = b""
    while not said.endswith(b"\n"):
        chunk = client.recv(1 << 20)
        if not chunk:
            raise EOFError("the worker hung up")
        said += chunk
    answer: dict[str, Any] = json.loads(said)
    return answer


class JobFolder:
    """The folder of a job, staged, and the request for it."""

    def __init__(self, folder: Path, **params: Any) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.output.mkdir(parents=True)
        (self.output / "rows.csv").write_text("1,2\n")
        self.request = {
            "id": folder.name,
            "name": "rows",
            "attempt": 2,
            "input": str(self.output / "rows.csv"),
            "inputs": [str(self.output / "rows.csv"), str(self.output / "mesh.inc")],
            "output": str(self.output),
            "job_dir": str(folder),
            "stdout": str(folder / "stdout.log"),
            "stderr": str(folder / "stderr.log"),
            "params": params,
            "cpus": 3,
        }

    @property
    def stdout(self) -> str:
        return (self.folder / "stdout.log").read_text()

    def stdout_so_far(self) -> str:
        """What was printed, also before the log is there."""
        log = self.folder / "stdout.log"
        return log.read_text() if log.exists() else ""

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.log").read_text()
