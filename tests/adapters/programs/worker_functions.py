"""Functions for warm workers. What depends on the job is in its ``params``."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

print("imported")
logging.basicConfig(level=logging.INFO, format="%(message)s")
served = 0


class Scalar:
    """Like an element of numpy."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def item(self) -> Any:
        return self._value


class Array(Scalar):
    """Like an array of numpy."""

    def tolist(self) -> Any:
        return self._value

    def item(self) -> Any:
        raise ValueError("can only convert an array of size 1")


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Tools:
    @staticmethod
    def process(job: Any) -> Any:
        return "by a tool"


number = 7


def process(job: Any) -> Any:
    """Leave a file in the working folder, and tell what the job is."""
    global served
    served += 1
    Path("left.txt").write_text("here")
    return {
        "served": served,
        "id": job.id,
        "name": job.name,
        "attempt": job.attempt,
        "input": job.input.read_text(),
        "inputs": [path.name for path in job.inputs],
        "output": job.output,
        "job_dir": job.job_dir,
        "params": job.params,
        "cpus": job.cpus,
        "stdin": sys.stdin.read(),
        "repr": repr(job),
    }


def evaluate(job: Any) -> Any:
    """Return what an expression is."""
    return eval(job.params["text"])


def execute(job: Any) -> Any:
    """Do what a text says."""
    exec(job.params["text"], globals())


def chat(job: Any) -> None:
    """Print in every way, no line of it ended but by the last."""
    who = job.params["who"]
    print(f"print {who}", end=";")
    print(f"stderr {who}", end=";", file=sys.stderr)
    logging.info("logging %s", who)
    ctypes.CDLL(None).printf(f"C {who};".encode())
    subprocess.run(["sh", "-c", f"printf 'child {who};'; printf 'child {who};' >&2"], check=True)


def hang(job: Any) -> None:
    """Say so, and do nothing for long."""
    print("hanging", flush=True)
    time.sleep(1000)  # noqa: TID251  it is to be ended from outside


def crash(job: Any) -> None:
    """End the process in the middle."""
    print("crashing")
    if job.params["how"] == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGSEGV)


def fork_and_return(job: Any) -> Any:
    """Fork, and let both return."""
    if os.fork() == 0:
        return "from the child"
    os.wait()
    return "from the parent"


def shout(job: Any) -> Any:
    """Print lines of 100 bytes, and wait for the file ``go on`` after half of them."""
    lines, half = job.params["lines"], job.params["lines"] // 2
    for at in range(lines):
        if at == half:
            while not (job.job_dir / "go on").exists():
                time.sleep(0.01)  # noqa: TID251  a gate, as a program has it
        print(f"{at:99}")
