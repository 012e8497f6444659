"""A real daemon on a real home, for tests: started as a process, driven by files and signals, read by its folders."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from waiting import wait_until

Manifest = dict[str, Any]


class Daemon:
    """``solvisor serve`` on ``home``, life after life."""

    def __init__(self, home: Path, config: str) -> None:
        self.home = home
        self.home.mkdir(parents=True, exist_ok=True)
        self.config = home / "solvisor.toml"
        self.config.write_text(textwrap.dedent(config))
        self.log = home / "state" / "log" / "solvisor.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        self._ready_before = 0
        self._was_killed = False

    def start(self, *, ready: bool = True, env: dict[str, str] | None = None, through: Sequence[str] = ()) -> None:
        """Start a life and wait until it is ready; ``through`` is a program that becomes the daemon."""
        self._ready_before = len(self.events("daemon.ready"))
        self._was_killed = False
        with (self.home / "console.log").open("ab") as console:
            self.process = subprocess.Popen(
                [*through, sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(self.home)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                env={**os.environ, **(env or {})},
            )
        if ready:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Until this life says so; a death before that fails with what it said."""

        def is_ready() -> bool:
            if self.running.poll() is not None:
                raise AssertionError(f"the daemon ended with {self.running.returncode}:\n{self.console()[-4000:]}")
            return len(self.events("daemon.ready")) > self._ready_before

        wait_until(is_ready, "daemon ready", 60)

    @property
    def running(self) -> subprocess.Popen[bytes]:
        assert self.process is not None
        return self.process

    def console(self) -> str:
        return (self.home / "console.log").read_text(errors="replace")

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        """Lines of the log, of all lives."""
        try:
            lines = self.log.read_text().splitlines()
        except FileNotFoundError:
            return []
        entries = []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):  # kill -9 may leave a torn line
                entries.append(json.loads(line))
        return [e for e in entries if name is None or e["event"] == name]

    def signal(self, number: signal.Signals) -> None:
        self.running.send_signal(number)

    def kill(self) -> None:
        """kill -9 and reap."""
        self._was_killed = True
        self.running.kill()
        self.running.wait()

    def clear_away(self) -> None:
        """After a test: kill it if it lives; end what it left, as its next start would, and remove its cgroups."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        identity = self.home / "state" / "home-id"
        if sys.platform != "win32" and self._was_killed and identity.exists():
            from solvisor.process.posix import kill_earlier_life

            assert kill_earlier_life(tomllib.loads(identity.read_text())["id"], 20) == set()

    def stop(self, deadline: float = 60) -> int:
        """SIGTERM; the exit status."""
        self.running.terminate()
        return self.running.wait(deadline)

    def drop(self, name: str, content: str | bytes, *, folder: str = "") -> Path:
        """Put a file into the inbox by rename, as a careful user would."""
        target = self.home / "inbox" / folder / name
        wait_until(target.parent.is_dir, f"{target.parent}, which the first scan makes")
        scratch = self.home / f"dropping-{name.replace('/', '_')}"
        scratch.write_bytes(content if isinstance(content, bytes) else content.encode())
        wait_until(target.parent.is_dir, f"{target.parent}, which the first look at the inbox makes")
        scratch.rename(target)
        return target

    def manifests(self, *folders: str) -> dict[str, Manifest]:
        """All manifests visible now, by job id."""
        found = {}
        for folder in folders or ("done", "failed", "rejected"):
            for path in (self.home / folder).glob("*/manifest.json"):
                found[path.parent.name] = json.loads(path.read_bytes())
        return found

    def wait_for(self, count: int, deadline: float = 60) -> dict[str, Manifest]:
        """Until ``count`` manifests are visible; they are returned."""

        def enough() -> dict[str, Manifest]:
            assert self.running.poll() is None, f"the daemon ended ({self.running.poll()}):\n{self.console()[-4000:]}"
            found = self.manifests()
            return found if len(found) >= count else {}

        try:
            return wait_until(enough, f"{count} manifests", deadline)
        except AssertionError as error:
            raise AssertionError(f"{error}; {len(self.manifests())} there\n{self.console()[-4000:]}") from None

    def wait_one(self, deadline: float = 60) -> Manifest:
        """The only manifest there is."""
        (manifest,) = self.wait_for(1, deadline).values()
        return manifest

    def wait_event(self, name: str, count: int = 1, deadline: float = 30) -> list[dict[str, Any]]:
        """Until the log holds ``count`` lines of that event."""

        def enough() -> list[dict[str, Any]]:
            found = self.events(name)
            return found if len(found) >= count else []

        return wait_until(enough, f"{count} x {name} in the log", deadline)

    def solver_processes(self) -> list[int]:
        """Pids of all processes on this machine that carry this home's token."""
        identity = tomllib.loads((self.home / "state" / "home-id").read_text())
        return list(processes_of(identity["id"]))


@contextlib.contextmanager
def living(home: Path, config: str) -> Iterator[Daemon]:
    """A daemon that several tests share; after them it must have met no defect, stop well and leave no process."""
    daemon = Daemon(home, config)
    try:
        daemon.start()
        yield daemon
        assert daemon.events("request.defect") == []
        assert daemon.stop() == 0
        assert daemon.solver_processes() == []
    finally:
        daemon.clear_away()


def processes_of(home_id: str) -> Iterator[int]:
    """Pids whose environment says they are an attempt of this home."""
    mark = f"SOLVISOR_ATTEMPT={home_id}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes():
                    yield int(entry.name)
