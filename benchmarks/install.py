"""Get the peers for the benchmarks: Python packages into an environment of their own, programs from Debian.

Rules: nothing goes into the environment of the product; nobody but root on Debian is helped with programs. What cannot
be had is told, and its peers are left out. redis comes from ``redis-tools``, which has the server's program and starts
no service.

    python benchmarks/install.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

from record import BUILD

ENVIRONMENT = BUILD / "bench-peers"
PYTHON = ENVIRONMENT / "bin" / "python"
STAMP = ENVIRONMENT / "complete"
PACKAGES = ("celery", "redis", "huey", "distributed")
PROGRAMS = {"tsp": "task-spooler", "parallel": "parallel", "redis-check-rdb": "redis-tools"}
"""The Debian package of each program."""

INSTALL_SECONDS = 900


def install() -> None:
    """What is there already is left as it is. Prints what it does, and what cannot be had."""
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        _carry_out(["apt-get", "install", "--yes", "--no-install-recommends", *missing])
    if not STAMP.exists():
        made = _carry_out([sys.executable, "-m", "venv", "--clear", str(ENVIRONMENT)])
        if made and _carry_out([str(PYTHON), "-m", "pip", "install", "--no-input", *PACKAGES]):
            STAMP.touch()


def why_not(program: str) -> str | None:
    """Why a program cannot be had; None if it is there."""
    if shutil.which(program) is not None:
        return None
    return f"{program} is not installed (apt-get install {PROGRAMS.get(program, program)})"


def why_no_python() -> str | None:
    """Why the peers written in Python cannot be had; None if they are there."""
    return None if STAMP.exists() else f"{', '.join(PACKAGES)} could not be installed into {ENVIRONMENT}"


def _carry_out(command: list[str]) -> bool:
    print(f"$ {' '.join(command)}", file=sys.stderr, flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"  {error}", file=sys.stderr)
        return False
    if done.returncode != 0:
        print("\n".join(f"  {line}" for line in (done.stdout + done.stderr).splitlines()[-5:]), file=sys.stderr)
    return done.returncode == 0


if __name__ == "__main__":
    install()
    for reason in filter(None, [*map(why_not, PROGRAMS), why_no_python()]):
        print(reason)
