"""A daemon of one's own: ``solvisor serve`` as a child, for as long as this process lives.

Rules: it holds the reading end of a pipe whose writing end is here alone, and ends when that closes; so nothing is left
even of a client that was killed. It lives in a session of its own: Ctrl-C is for the client, which decides. It knows
neither batches nor what is printed.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from pathlib import Path
from typing import IO, Final

import msgspec

from solvisor.errors import SolvisorError

UNTIL_EOF: Final = "--until-eof"
EXIT_ALREADY_RUNNING: Final = 100
_LINES_KEPT: Final = 40
_LONGEST_LINE: Final = 1 << 16
_PLAIN_LINES: Final = 10


class DaemonEnded(SolvisorError):
    """The daemon that was started for this command ended by itself; the status is what it ended with."""

    code = "daemon_ended"

    def __init__(self, message: str, status: int) -> None:
        self.status = status
        super().__init__(message)

    @property
    def exit_status(self) -> int:  # type: ignore[override]  # it is that of the daemon
        """What the command line ends with: the daemon's own status, 1 if it was killed."""
        return self.status if self.status > 0 else 1


class Embedded:
    """``solvisor serve`` on ``home``, started at once; ``close`` ends it, and so does the end of this process.

    It starts what is sent to it, and of what an earlier one left only the jobs of ``batch``.
    """

    def __init__(self, home: Path, config: Path, batch: str | None = None) -> None:
        self._home = home
        self._lines: deque[bytes] = deque(maxlen=_LINES_KEPT)
        # -P: what lies in the user's working folder must not be taken for a module of the daemon.
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "solvisor_service.cli", "serve", UNTIL_EOF),
                *("--home", str(home), "--config", str(config)),
                *(("--batch", batch) if batch is not None else ()),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stderr is not None  # noqa: S101  asked for above
        self._reader = threading.Thread(target=self._read, args=(self._process.stderr,), daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def ended(self) -> int | None:
        """The exit status (negative: the signal that killed it), or ``None`` while it lives."""
        return self._process.poll()

    def failure(self) -> DaemonEnded:
        """Why it ended, in its own words, as an error to raise. Only once it has ended."""
        self._reader.join(1.0)
        status = self._process.wait()
        how = f"ended with status {status}" if status >= 0 else f"was killed by signal {-status}"
        said = _last_words(b"".join(self._lines).decode(errors="replace"))
        text = f"the daemon started for this batch {how}; its log is {self._home / 'state' / 'log' / 'solvisor.jsonl'}"
        return DaemonEnded(f"{said}\n{text}" if said else text, status)

    def close(self, seconds: float) -> bool:
        """Let it drain and end; whether it did within ``seconds``. It goes on ending by itself if not."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _read(self, stream: IO[bytes]) -> None:
        """Keep the last lines it writes; the whole is in its log."""
        with stream:
            while line := stream.readline(_LONGEST_LINE):
                self._lines.append(line)


def ends_with_its_client(pid: int) -> bool:
    """Whether the daemon ``pid`` was started like this one, by whatever client, and will end with that."""
    try:
        return UNTIL_EOF.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def _last_words(text: str) -> str:
    """What the daemon said of its end: the error it printed, else the gravest line of its log, else its last lines."""
    _, mark, printed = f"\n{text}".rpartition("\nsolvisor: ")
    if mark:
        return printed.strip()
    plain = []
    for line in reversed(text.splitlines()):
        entry = _log_entry(line)
        if entry is None:
            plain.append(line)
        elif entry.get("level") == "critical":
            return str(entry.get("error") or entry.get("text") or entry.get("event"))
    return "\n".join(reversed(plain[:_PLAIN_LINES])).strip()


def _log_entry(line: str) -> dict[str, object] | None:
    try:
        return msgspec.json.decode(line, type=dict[str, object])
    except msgspec.DecodeError:
        return None
