"""What other people wrote reaches no terminal unescaped, whatever verb shows it (fault 76).

Every text of every answer holds sequences that would move the cursor, fill the clipboard, make a link, turn the
direction of writing or hide what follows; so does what the solver printed, and why a request is refused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from fake_daemon import BEAM, FakeDaemon, Raw, explanation, fake_daemon, row, status, view
from solvisor.model import Reason, ServerState
from solvisor.views import (
    Holder,
    InboxWait,
    JobPage,
    LastDay,
    Level,
    Limit,
    Limits,
    Me,
    Pause,
    PoolRow,
    Pools,
    PoolView,
    Problem,
    ServerRow,
    Submitted,
    Waiting,
)
from top_kit import Screen, Top

T = TypeVar("T")

HOSTILE = (
    "evil\x1b]0;title\x07\x1b]52;c;aGFjaw==\x07\x1b]8;;http://evil\x1b\\link\x1b[2J\x1b[1;1H\x1bc\x1bP1$q\x1b\\"
    "\x9b31m\x9d0;t\x9c\x85\u2028\u202e\u2066\u200f\u061c\u200b\ufeff\x00\x07\x08\r\n\t\x7fbad"
)
"""CSI, OSC 0, 8 and 52, DCS, a reset, the same in C1, and what turns, hides or ends a line."""
STYLE = re.compile(r"\x1b\[[0-9;]*m")
KEPT = {
    *("id", "job", "state", "health", "reason", "cause", "submitted", "started", "finished", "removed", "since", "now"),
    *("unit", "role", "via", "folder", "batch", "retry_of", "on_error"),
}
"""Fields whose texts the daemon makes from closed sets."""
NAMED = {"licenses", "params"}
"""Fields whose keys are names from outside."""
BAD = Problem(title=HOSTILE, status=409, detail=HOSTILE, code="finished", candidates=(HOSTILE,))
CHECK = {"check": "output", "want": "x", "got": "y", "ok": False}
TIMES = {"since": "2026-11-02T10:00:00Z"}


def poisoned(record: T) -> T:
    """The same record with ``HOSTILE`` in every text that comes from outside."""

    def walk(value: Any, name: str) -> Any:
        if isinstance(value, Mapping):
            return {HOSTILE if name in NAMED else key: walk(each, key) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [walk(each, name) for each in value]
        return HOSTILE if isinstance(value, str) and name not in KEPT else value

    return msgspec.convert(walk(msgspec.to_builtins(record), ""), type(record))


def answers(fake: FakeDaemon) -> None:
    """A daemon with something in every field."""
    pool: dict[str, Any] = {
        "solver": "r", "state": "failed", "wanted": 1, "starting": 0, "up": 1, "ready": 0, "busy": 0, "most": 4,
        "waiting": 3, "failures": 6, "error": "x",
    }  # fmt: skip
    server = ServerRow(
        name="r-1", solver="r", state=ServerState.DRAINING, port=1, pid=2, job=BEAM, rss_bytes=1, jobs=1,
        started=TIMES["since"], why="x", age_seconds=1.0, in_state_seconds=1.0, ready_seconds=0.1,
    )  # fmt: skip
    of_job: dict[str, Any] = {"id": BEAM, "project": "x", "message": "x", "code": "x", "finished": TIMES["since"]}
    failed, queued = row(**of_job, state="failed"), row(**of_job, state="queued", reason="license", run_seconds=None)
    limit = Limit(name="x", unit="jobs", value=1, configured=2, used=1, by="x", since=TIMES["since"], note="x")
    told = status(
        health="degraded", problems=("x", "y"), running=1, waiting=1, licenses={"x": Level(1, 2)},
        last_day=LastDay(1, 1),
        waiting_for=(Waiting(Reason.LICENSE, "x", 1),), inbox=(InboxWait("x", "settling", "x"),), inbox_total=1,
        servers=(PoolRow(**pool),), running_jobs=(row(),), waiting_jobs=(queued,), last_failed=(failed,),
        paused=(Pause("x", "x", TIMES["since"], "x"),), limits_set=(limit,), page="x",
    )  # fmt: skip
    more: dict[str, Any] = {"min": 0, "max": 4, "scale": 2, "rests_seconds": 1.0, "licenses": {"x": 1}}
    one = view(
        **of_job, state="failed", checks=[CHECK], command=["x", "y"], params={"x": "y"}, licenses={"x": 1}, key="x",
        after=["x"], result={"x": "y"}, source="inbox: x", batch=BEAM,
    )  # fmt: skip
    finding = {
        "reason": "license",
        "label": "x",
        "holds": True,
        "text": "x",
        "what": "x",
        "holders": [Holder(BEAM, "x", 1.0)],
    }
    log = Raw(f"{HOSTILE}\nlast line {HOSTILE}".encode(), {"Solvisor-Offset": "1", "Solvisor-Try": "1"})
    given: dict[tuple[str, str], Any] = {
        ("GET", "/v1/status"): poisoned(told),
        ("GET", "/v1/me"): Me(user=HOSTILE, uid=0, role="administer", via="socket"),
        ("GET", "/v1/jobs"): poisoned(JobPage((failed, queued, row()), None)),
        ("GET", "/v1/servers"): poisoned(Pools(pools=(PoolView(**pool, **more, servers=(server,)),), note="x")),
        ("GET", "/v1/limits"): poisoned(Limits((limit,))),
        ("POST", "/v1/limits"): poisoned(Limits((limit,))),
        ("POST", "/v1/jobs"): Submitted(BEAM, HOSTILE, HOSTILE),
        ("POST", "/v1/pause"): poisoned(told),
        ("POST", "/v1/resume"): poisoned(told),
    }
    fake.answers.update(given)
    fake.know(poisoned(one), "last")
    for name in (BEAM, "last"):
        fake.answers["GET", f"/v1/jobs/{name}/explain"] = poisoned(
            explanation("x", job=failed, findings=[finding], checks=[CHECK], next="x")
        )
        for stream in ("stdout", "stderr"):
            fake.answers["GET", f"/v1/jobs/{name}/logs/{stream}"] = lambda request: (
                log if request.query.get("offset", ["0"])[0] == "0" else Raw(b"", log.headers)
            )
        fake.answers["POST", f"/v1/jobs/{name}/retry"] = Submitted(BEAM, HOSTILE, HOSTILE)
        fake.answers["POST", f"/v1/jobs/{name}/cancel"] = BAD
        fake.answers["POST", f"/v1/jobs/{name}/priority"] = BAD


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    with fake_daemon(tmp_path / "home") as fake:
        answers(fake)
        yield tmp_path / "home"


def on_terminal(home: Path, *words: str) -> str:
    """What a verb shows on a terminal, stderr too."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))
    command = [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(home)]
    env = {**os.environ, "TERM": "xterm-256color", "PYTHONUTF8": "1"}
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, cwd=home, env=env)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):
        while data := os.read(master, 1 << 16):
            shown += data
    os.close(master)
    process.wait(30)
    return shown.decode().replace("\r\n", "\n")


def harm_in(shown: str) -> set[str]:
    """The characters of ``shown`` that could do something, styles and line ends aside."""
    return {char for char in STYLE.sub("", shown) if not char.isprintable() and char not in "\n\t"}


VERBS = [
    ("status",),
    ("list",),
    ("show", "last"),
    ("explain", "last"),
    ("logs", "last"),
    ("logs", "-f", "last"),
    ("logs", "--stderr", "--tail", "1", "last"),
    ("wait", "last"),
    ("servers",),
    ("limit",),
    ("limit", "max_jobs", "1"),
    ("submit", "x.inp"),
    ("retry", "last"),
    ("cancel", "last"),
    ("priority", "last", "1"),
    ("pause",),
    ("resume",),
]


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_fault_76_no_verb_shows_what_moves_turns_or_hides(home: Path, words: tuple[str, ...]) -> None:
    (home / "x.inp").write_text("x")
    shown = on_terminal(home, *words)
    assert "Traceback" not in shown
    assert harm_in(shown) == set()
    if words[0] not in ("pause", "resume") and words != ("limit", "max_jobs", "1"):
        assert "bad" in shown, "it is shown, and harmless"


@pytest.mark.parametrize(
    "words", [("status",), ("list",), ("show", "last"), ("explain", "last"), ("servers",)], ids=" ".join
)
def test_fault_76_what_is_piped_is_harmless_too(home: Path, words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(home)]
    shown = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert harm_in(shown) == set()
    assert "\x1b" not in shown
    assert "evil" in shown


@pytest.mark.parametrize(
    "words",
    [("show", HOSTILE), ("cancel", HOSTILE), ("submit", HOSTILE), ("pause", HOSTILE), (HOSTILE,), ("list", HOSTILE)],
)
def test_fault_76_what_was_typed_is_told_harmlessly(home: Path, words: tuple[str, ...]) -> None:
    typed = tuple(word.replace("\0", "") for word in words)
    shown = on_terminal(home, *typed)
    assert harm_in(shown) == set()


def test_fault_76_the_live_view_shows_nothing_that_moves_turns_or_hides(home: Path) -> None:
    """On all its pages; the screen of the test knows only what the view itself needs, and no other sequence."""
    shown = Top(home, 120, 40)
    try:
        shown.shows("RUNNING 1", "WAITING 1", "FAILED 1", "evil")
        for keys, words in (
            ("\x1b[B", "▸"),
            ("\r", "last line evil"),
            ("s", "stderr, the end of it"),
            ("c", "finished"),
            ("\x1b", "RUNNING 1"),
            ("p", "1 pause everything"),
            ("\x1b", "? help"),
            ("/evil\r", "FILTER   evil"),
        ):
            shown.press(keys)
            shown.shows(words)
        shown.press("q")
        assert shown.wait() == 0
        assert shown.screen.forbidden == []
    finally:
        shown.close()


def test_the_screen_of_the_tests_notices_what_it_should() -> None:
    for bad in ("\x1b]52;c;aGk=\x07", "\x9b31m", "a\u202eb", "a\nb", "\x1b[5;5H", "\x1bc" + "x" * 20):
        screen = Screen()
        screen.feed("\x1b[?1049h\x1b[1;1H\x1b[K\x1b[1mgood\x1b[0m")
        assert screen.forbidden == []
        screen.feed(bad + " " * 20)
        assert screen.forbidden != [], bad
