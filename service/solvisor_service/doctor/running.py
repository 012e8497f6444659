"""What runs: the daemon, its socket, its unit.

Rules: the daemon is asked for its status and nothing else; systemd is asked and told nothing. This module must not know
the configuration or what lies in the home.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from solvisor.errors import HomeError
from solvisor.names import SOCKET_PATH_MAX
from solvisor.views import LATE_SECONDS
from solvisor_service.cli.shared import SYSTEM_HOME
from solvisor_service.cli.text import duration
from solvisor_service.client import Client, NotPermitted, NotRunning
from solvisor_service.doctor.finding import Finding, Subject, note, ok, warning
from solvisor_service.doctor.places import user_name
from solvisor_service.doctor.threads import in_thread

if sys.platform == "win32":
    raise ImportError("solvisor_service.doctor.running reads what only Linux has and cannot be used on Windows")

UNIT: Final = "solvisor.service"
SYSTEMD_SECONDS: Final = 3.0
ANSWER_SECONDS: Final = 5.0

_LINGER: Final = Path("/var/lib/systemd/linger")
_ASKED: Final = ("LoadState", "ActiveState", "UnitFileState", "ExecStart", "User")


def daemon(subject: Subject) -> Iterator[Finding]:
    """Who holds the home."""
    holder = subject.holder
    if holder is None:
        yield note("none runs on this home", f"solvisor serve {subject.option}, or start its unit")
        return
    since = f" since {holder.since}" if holder.since else ""
    try:
        whose = f", as {user_name(os.stat(f'/proc/{holder.pid}').st_uid)}"
    except OSError:  # it ended meanwhile
        whose = ""
    yield ok(f"pid {holder.pid} holds the home{since}{whose}")


def status_socket(subject: Subject) -> Iterator[Finding]:
    """Does it answer; what stale or unreachable ones mean."""
    path = subject.layout.run / "solvisor.sock"
    length = len(os.fsencode(path))
    if length > SOCKET_PATH_MAX:
        yield note(
            f"{path} has {length} bytes, more than the {SOCKET_PATH_MAX} that fit into the address of a socket; "
            "solvisor goes round that, curl cannot",
            "give the home a shorter path, if other programs are to ask the daemon",
        )
    there = path.exists()
    try:
        status = in_thread(Client(subject.home).status, "doctor-status").result(ANSWER_SECONDS)
    except NotPermitted as error:
        found, _, mend = str(error).partition("; ")
        yield note(found, mend)
    except TimeoutError:
        yield warning(
            f"{path}: the daemon does not answer within {ANSWER_SECONDS:g} s; it hangs or is stopped",
            "read state/log/solvisor.jsonl; restart the daemon, which loses nothing",
        )
    except (HomeError, NotRunning):
        if subject.holder is not None:
            what = "does not answer" if there else "is not there"
            yield warning(f"{path} {what} although a daemon runs", "read state/log/solvisor.jsonl; restart the daemon")
        elif there:
            yield note(f"{path} is left of an earlier daemon; the next start replaces it")
        else:
            yield note("not there, as no daemon runs")
    else:
        for problem in status.problems:  # their first lines: what stands below, its own check or the status tells
            yield warning(problem.partition("\n")[0].removesuffix(":"), "see: solvisor status")
        if status.loop_lag_seconds > LATE_SECONDS:
            yield warning(
                f"the daemon was held up for {status.loop_lag_seconds:.2f} s within the last minute",
                "leave it a core (fewer jobs at once: [daemon] max_jobs); if the machine has time, please report it",
            )
        if status.log_lines_lost:
            yield warning(
                f"{status.log_lines_lost:,} lines of the daemon's log could not be written",
                "make room for state/log, and look where its standard error goes",
            )
        yield ok(f"{path} answers: {status.health}, up {duration(status.up_seconds)}, version {status.version}")


def unit(subject: Subject) -> Iterator[Finding]:
    """Is there a unit of systemd, of the system or of this user, and what does it start."""
    systemctl = shutil.which("systemctl")
    if systemctl is None:
        yield note("systemd is not here; have another supervisor start solvisor serve")
        return
    silent = True
    for scope in ("system", "user"):
        facts = _facts(systemctl, scope)
        silent = silent and facts is None
        if facts and facts.get("LoadState") == "loaded":
            yield from _unit(subject, scope, facts)
            return
    if silent:
        yield note("systemd does not run here; have another supervisor start solvisor serve")
    else:
        scope = "--system" if subject.home == SYSTEM_HOME else "--user"
        yield note(
            f"no {UNIT} is installed: nothing starts the daemon after a reboot", f"solvisor service install {scope}"
        )


def _facts(systemctl: str, scope: str) -> dict[str, str] | None:
    """What systemd says of our unit; ``None`` if it does not answer."""
    asked = [systemctl, f"--{scope}", "show", UNIT, "--no-pager", f"--property={','.join(_ASKED)}"]
    try:
        done = subprocess.run(
            asked, capture_output=True, timeout=SYSTEMD_SECONDS, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    pairs = (line.partition("=") for line in done.stdout.decode(errors="replace").splitlines())
    return {key: value for key, _, value in pairs}


def _unit(subject: Subject, scope: str, facts: dict[str, str]) -> Iterator[Finding]:
    active, enabled, starts = facts.get("ActiveState", ""), facts.get("UnitFileState", ""), facts.get("ExecStart", "")
    systemctl = f"systemctl --{scope}"
    text = f"{UNIT} of the {scope}: {active}, {enabled}"
    if str(subject.home) not in starts:
        yield note(f"{text}; it does not name {subject.home}", f"{systemctl} cat {UNIT}")
        return
    program = _program(starts)
    if program is not None and not os.access(program, os.X_OK):
        yield warning(f"{UNIT} starts {program}, which cannot be executed", "solvisor service install writes it anew")
    if active == "failed":
        yield warning(text, f"journalctl --{scope} -u {UNIT} -n 50; then {systemctl} restart {UNIT}")
    elif active != "active":
        yield note(text, f"{systemctl} start {UNIT}")
    elif enabled != "enabled":
        yield warning(f"{text}: it does not start after a reboot", f"{systemctl} enable {UNIT}")
    else:
        yield ok(text)
    user = user_name(os.geteuid())
    if scope == "user" and not (_LINGER / user).exists():
        yield warning(
            f"the unit of {user} ends when {user} logs out, and its jobs with it", f"loginctl enable-linger {user}"
        )


def _program(exec_start: str) -> str | None:
    """The program in systemd's own rendering: ``{ path=/opt/solvisor/bin/solvisor ; argv[]=... }``."""
    _, _, rest = exec_start.partition("path=")
    return rest.split(" ;", 1)[0].strip() or None
