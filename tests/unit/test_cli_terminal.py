"""The client verbs on a real terminal: what fits, what is coloured, what cannot do harm, what appears in time."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pexpect.fdpexpect
import pytest
from rich.cells import cell_len

from fake_daemon import BEAM, FakeDaemon, Raw, Request, explanation, row, status, view
from solvisor.model import ServerState
from solvisor.views import (
    Holder,
    InboxWait,
    JobPage,
    JobRow,
    JobView,
    Level,
    PoolRow,
    Pools,
    PoolView,
    ServerRow,
    Waiting,
)
from waiting import wait_until

REASON = "no elastic constants were assigned to any material in a (thermo)mechanical calculation"
STYLE = re.compile(r"\x1b\[[0-9;]*m")
HOSTILE = "\x1b]0;title\x07\x1b[2Jevil\u202e\x9b31m"


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, words: tuple[str, ...], home: Path, columns: int, env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        inherited = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(home)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            env={**inherited, "TERM": "xterm-256color", **env},
        )
        os.close(slave)
        self.screen = pexpect.fdpexpect.fdspawn(self._master, timeout=15, encoding="utf-8")

    def rest(self) -> str:
        """What is shown until the command ends."""
        return str(self.screen.read()).replace("\r\n", "\n")

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.screen.close()


Open = Callable[..., Terminal]

LONG = "rserve-7 ended with exit code 1 (it said: " + "no license file, " * 20 + ")"
POOL = PoolRow(
    solver="rserve", state="backoff", wanted=1, starting=0, up=0, ready=0, busy=0, most=4, waiting=1, failures=2,
    error=LONG,
)  # fmt: skip


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    opened: list[Terminal] = []

    def run(*words: str, columns: int = 80, **env: str) -> Terminal:
        opened.append(Terminal(words, tmp_path / "home", columns, env))
        return opened[-1]

    yield run
    for each in opened:
        each.close()


def plain(text: str) -> list[str]:
    """The lines of ``text`` without its styles; it holds no other control characters."""
    lines = STYLE.sub("", text).splitlines()
    assert all(line.isprintable() for line in lines), lines
    return lines


def busy(fake: FakeDaemon) -> None:
    """A daemon with much to tell, in long words."""
    ids = [f"riser-with-a-name-of-many-letters-1jl9v2k4a0b1c{n:02d}" for n in range(3)]
    failed = row(id=ids[0], state="failed", message=REASON + HOSTILE, run_seconds=0.1, name="n" * 60)
    waiting = row(id=ids[1], state="queued", reason="license", run_seconds=None, name="梁" * 40)
    fake.answers["GET", "/v1/status"] = status(
        running=2,
        waiting=34,
        health="degraded",
        problems=("the disk of the home is nearly full; remove results that nobody needs from done/ and failed/",),
        licenses={f"license-{n}": Level(n, 9) for n in range(6)},
        waiting_for=tuple(Waiting("license", f"license-{n}", 31) for n in range(6)),  # type: ignore[arg-type]
        inbox=(InboxWait("x" * 70 + HOSTILE, "settling", "still growing"),),
        inbox_total=1,
        servers=(msgspec.convert(servers(BEAM).pools[0], PoolRow, from_attributes=True),),
        running_jobs=(row(id=ids[2], user="u" * 20, solver="s" * 20), row()),
        last_failed=(failed,),
    )
    fake.answers["GET", "/v1/jobs"] = JobPage((failed, waiting, row(name=HOSTILE)), None)
    fake.answers["GET", "/v1/servers"] = servers(ids[0])
    holders = [Holder(job_id, "user", 4320.0) for job_id in ids]
    finding = {"reason": "license", "label": "license", "holds": True, "text": "orcaflex: needs 1, 2 of 2 in use"}
    fake.answers["GET", "/v1/jobs/last/explain"] = explanation(
        "waits.", job=waiting, findings=[finding | {"holders": holders}]
    )
    checks = [
        {
            "check": r"no ^\s+(?:[A-Z]+ ){3}ERROR.*(?:fatal|severe|stop).* in logs",
            "want": "",
            "got": "x" * 50,
            "ok": False,
        }
    ]
    job = view(id=ids[0], state="failed", message=REASON, checks=checks, command=["/opt/ccx", *["-option"] * 30])
    fake.know(job, "last")


def servers(job: str) -> Pools:
    """A solver with long names and a long error, and its server that has a job."""
    times = {"age_seconds": 4300.0, "in_state_seconds": 3.0, "ready_seconds": 0.1}
    server = ServerRow(
        name=f"{'r' * 20}-117", solver="r" * 20, state=ServerState.DRAINING, port=23600, pid=4194304, job=job,
        rss_bytes=51 << 20, jobs=12,
        started="2026-11-02T10:00:00.000000Z", why="recycled by ann" + HOSTILE, **times,
    )  # fmt: skip
    pool = PoolView(
        solver=server.solver, state="failed", wanted=1, starting=0, up=1, ready=0, busy=0, most=4, waiting=3,
        failures=6, error=REASON + HOSTILE, min=0, max=4, scale=2, rests_seconds=None, licenses={}, servers=(server,),
    )  # fmt: skip
    return Pools(pools=(pool,))


def listed(fake: FakeDaemon) -> tuple[JobRow, ...]:
    page = fake.answers["GET", "/v1/jobs"]
    assert isinstance(page, JobPage)
    return page.jobs


VERBS = [("status",), ("list",), ("servers",), ("explain", "last"), ("show", "last")]


@pytest.mark.parametrize("words", VERBS, ids=[words[0] for words in VERBS])
@pytest.mark.parametrize("columns", [80, 120])
def test_what_is_shown_fits_the_terminal(
    fake: FakeDaemon, terminal: Open, words: tuple[str, ...], columns: int
) -> None:
    busy(fake)
    lines = plain(terminal(*words, columns=columns).rest())
    assert len(lines) > 3
    assert [line for line in lines if cell_len(line) > columns] == []


def test_on_a_very_narrow_terminal_nothing_is_lost(fake: FakeDaemon, terminal: Open) -> None:
    busy(fake)
    for words in VERBS:
        lines = plain(terminal(*words, columns=24).rest())
        assert [line for line in lines if cell_len(line) > 24] == [], words
    squeezed = "".join("".join(lines).split())
    assert "".join(REASON.split()) in squeezed
    assert listed(fake)[0].id in squeezed


def test_ids_that_are_cut_still_name_their_job(fake: FakeDaemon, terminal: Open) -> None:
    busy(fake)
    shown = [line.split()[0] for line in plain(terminal("list").rest()) if line.startswith("riser-")]
    assert len(shown) == 2
    for job_id in shown:
        assert sum(job.id.startswith(job_id) for job in listed(fake)) == 1


@pytest.mark.parametrize(
    ("env", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True), ({"TERM": "dumb"}, False)],
)
def test_colour_is_for_terminals_that_want_it(
    fake: FakeDaemon, terminal: Open, env: dict[str, str], coloured: bool
) -> None:
    busy(fake)
    for words in VERBS:
        assert ("\x1b" in terminal(*words, **env).rest()) == coloured, words


def test_json_on_a_terminal_cannot_turn_or_hide_it(fake: FakeDaemon, terminal: Open) -> None:
    busy(fake)
    shown = terminal("list", "--json").rest()
    assert shown.isascii()
    assert "\x1b" not in shown


class GrowingLog:
    """The log of a running job that a test writes as it goes on."""

    def __init__(self, fake: FakeDaemon) -> None:
        self.data = b""
        self.over = threading.Event()
        fake.answers["GET", f"/v1/jobs/{BEAM}"] = fake.answers["GET", "/v1/jobs/last"] = self._job
        fake.answers["GET", f"/v1/jobs/{BEAM}/logs/stdout"] = self._log

    def _job(self, request: Request) -> JobView:
        self.over.wait(float(request.query.get("wait", ["0"])[0]))
        return view(state="succeeded" if self.over.is_set() else "running")

    def _log(self, request: Request) -> Raw:
        offset = int(request.query["offset"][0])
        if "follow" in request.query:
            return Raw(self._growth(offset), {"Solvisor-Offset": str(offset), "Solvisor-Try": "1"})
        data = self.data[offset:]
        return Raw(data, {"Solvisor-Offset": str(offset + len(data))})

    def _growth(self, offset: int) -> Iterator[bytes]:
        while True:
            over = self.over.wait(0.02)
            data = self.data[offset:]
            if data:
                yield data
                offset += len(data)
            elif over:
                return


def test_a_followed_log_appears_as_it_is_written_and_cannot_do_harm(fake: FakeDaemon, terminal: Open) -> None:
    log = GrowingLog(fake)
    log.data = b"step 1\r\nstep \x1b[3"
    shown = terminal("logs", "-f", "last")
    shown.screen.expect_exact("step 1\r\nstep ")
    log.data += b"1m2\x1b[0m\x1b]0;ti"
    shown.screen.expect_exact("2")
    assert shown.screen.before == "", "half a sequence was held back"
    log.data += "tle\x07 10%\r 20%\x1b(B\x1b7\u202e\x9b2J\x08\x00\tend\n".encode()
    shown.screen.expect_exact("20%")
    assert shown.screen.before == " 10%\r\n "
    assert shown.process.poll() is None
    log.over.set()
    assert STYLE.sub("", shown.rest()) == "2J\tend\n"
    assert shown.process.wait() == 0


def test_half_a_control_sequence_at_the_end_is_shown_as_text(fake: FakeDaemon, terminal: Open) -> None:
    log = GrowingLog(fake)
    log.over.set()
    log.data = b"end \x1b[3"
    assert terminal("logs", "last").rest() == "end [3\n"


@pytest.mark.parametrize(("data", "shown"), [(b"", ""), (b"cut off", "cut off\n"), (b"whole\n", "whole\n")])
def test_a_log_on_a_terminal_ends_with_its_line(fake: FakeDaemon, terminal: Open, data: bytes, shown: str) -> None:
    """The prompt does not stick to a line that was cut."""
    log = GrowingLog(fake)
    log.over.set()
    log.data = data
    assert terminal("logs", "last").rest() == shown


def test_what_only_looks_like_a_control_string_does_not_hold_the_log_back(fake: FakeDaemon, terminal: Open) -> None:
    log = GrowingLog(fake)
    log.data = b"\x1b]" + b"x" * 5000 + b"last words"
    shown = terminal("logs", "-f", "last", columns=200)
    shown.screen.expect_exact("last words")
    log.over.set()
    shown.rest()


@pytest.mark.parametrize("words", [("wait", "last"), ("logs", "-f", "last")], ids=["wait", "logs"])
def test_ctrl_c_ends_waiting_with_130_and_no_traceback(
    fake: FakeDaemon, terminal: Open, words: tuple[str, ...]
) -> None:
    log = GrowingLog(fake)
    shown = terminal(*words)
    wait_until(lambda: len(fake.requests) > 1, "the command waits")
    shown.process.send_signal(signal.SIGINT)
    assert shown.rest() == ""
    log.over.set()
    assert shown.process.wait() == 130


def test_the_tables_of_a_terminal_are_piped_whole(fake: FakeDaemon, tmp_path: Path) -> None:
    busy(fake)
    command = [sys.executable, "-m", "solvisor_service.cli", "list", "--home", str(tmp_path / "home")]
    env: dict[str, Any] = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": "40"}
    out = subprocess.run(command, env=env, capture_output=True, check=True).stdout.decode()
    lines = plain(out)
    assert out.count("\x1b") == 0
    assert len(lines) == 4
    assert REASON in lines[1]
    assert lines[1].split()[0] == listed(fake)[0].id


@pytest.mark.parametrize("columns", [80, 120])
def test_a_long_error_of_a_server_is_cut(fake: FakeDaemon, terminal: Open, columns: int) -> None:
    fake.answers["GET", "/v1/status"] = status(servers=(POOL,), waiting=1)
    lines = STYLE.sub("", terminal("status", columns=columns).rest()).splitlines()
    (told,) = (line for line in lines if "rserve" in line)
    assert told.startswith("SERVERS  rserve  none of 4, backoff: rserve-7 ended")
    assert cell_len(told) <= columns
    assert not [line for line in lines if line.startswith(" ") and "license" in line]
    more: dict[str, Any] = {"min": 0, "max": 4, "scale": None, "rests_seconds": 3.0, "licenses": {}, "servers": ()}
    fake.answers["GET", "/v1/servers"] = Pools(pools=(PoolView(**msgspec.structs.asdict(POOL), **more),))
    lines = STYLE.sub("", terminal("servers", columns=columns).rest()).splitlines()
    told = " ".join(line.strip() for line in lines)
    assert "..." in told
    assert len(told) < columns + 100, "a line of the terminal, and what is said around it"
    server = ServerRow(
        name="rserve-1", solver="rserve", state=ServerState.STOPPING, port=23600, pid=77, jobs=1, job=None,
        rss_bytes=1 << 20, started="2026-11-02T10:00:00Z", ready_seconds=0.1, age_seconds=3.0, in_state_seconds=1.0,
        why=LONG,
    )  # fmt: skip
    row = PoolView(**msgspec.structs.asdict(POOL) | {"state": "ok", "error": None}, **more | {"servers": (server,)})
    fake.answers["GET", "/v1/servers"] = Pools(pools=(row,))
    lines = STYLE.sub("", terminal("servers", columns=columns).rest()).splitlines()
    assert [line.split()[0] for line in lines] == ["SERVER", "rserve-1", "rserve"], "one line a server"
    assert all(cell_len(line) <= columns for line in lines)
