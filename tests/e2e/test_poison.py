"""One job that ends the daemon, or every start of it: after three tries it is set aside with its story.

A hook of the tests (``sitecustomize``, which only this interpreter loads) makes the daemon kill itself, or meet a
defect, whenever it comes to a file called so in one phase.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from daemon import Daemon
from socket_kit import Http
from waiting import wait_until

Make = Callable[..., Daemon]

CONFIG = """
[daemon]
max_jobs = 2
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""

HOOK = """
import os, signal
import solvisor.collector, solvisor.config, solvisor.intake, solvisor.spool.results

def die():
    if {dies}:
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("a defect of the tests")

def wrapped(real, is_poison):
    def call(*args, **named):
        if is_poison(args):
            die()
        return real(*args, **named)
    return call

def decide(args):
    return any("poison" in fact.path for fact in args[0]._taken.files)

def judge(args):
    return "poison" in args[1].name

def publish(args):
    return "poison" in args[1].publication.id

def dispatch(args):
    return "poison" in args[1].name

def stage(args):
    return "poison" in args[1]

if "{phase}" == "dispatch":
    solvisor.config.Config.settings = wrapped(solvisor.config.Config.settings, dispatch)
elif "{phase}" == "decide":
    solvisor.intake._Judge.judge = wrapped(solvisor.intake._Judge.judge, decide)
elif "{phase}" == "judge":
    solvisor.collector.judge = wrapped(solvisor.collector.judge, judge)
elif "{phase}" == "publish":
    solvisor.spool.results._Batch._write = wrapped(solvisor.spool.results._Batch._write, publish)
elif "{phase}" == "stage":
    solvisor.spool.results.Results.stage = wrapped(solvisor.spool.results.Results.stage, stage)
"""


def hooked(folder: Path, phase: str, *, dies: bool) -> dict[str, str]:
    """The environment of a daemon that meets its end, or a defect, in ``phase``."""
    (folder / "sitecustomize.py").write_text(HOOK.format(phase=phase, dies=dies))
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))}


def lives(daemon: Daemon, env: dict[str, str], done: Callable[[], bool]) -> int:
    """Start the daemon again and again until ``done``; how many lives ended."""
    ended = 0
    while True:
        daemon.start(ready=False, env=env)
        wait_until(lambda: daemon.running.poll() is not None or done(), "it ends, or all is done", 60)
        if daemon.running.poll() is None:
            return ended
        assert daemon.running.returncode == -9, daemon.console()[-3000:]
        ended += 1
        assert ended < 9


def drop_among_others(daemon: Daemon) -> None:
    for name in ("a.sh", "b.sh", "poison.sh", "y.sh", "z.sh"):
        daemon.drop(name, "exit 0\n")


def others_succeeded(daemon: Daemon) -> bool:
    found = [m for m in daemon.manifests().values() if "poison" not in m["id"]]
    assert {m["state"] for m in found} <= {"succeeded"}
    return len(found) == 4


def the_poison(daemon: Daemon) -> list[dict[str, object]]:
    return [m for m in daemon.manifests().values() if "poison" in m["id"]]


def over(rows: list[dict[str, str]]) -> dict[str, str]:
    """The states of jobs by their names, once all are finished."""
    states = {row["name"]: row["state"] for row in rows}
    return states if not {"queued", "running", "collecting"} & set(states.values()) else {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("phase", "deaths", "state", "code", "story"),
    [
        ("decide", 4, "rejected", "poison", "3 starts of the daemon ended while they took this drop up"),
        ("stage", 3, "failed", None, "interrupted 3 times in a row by the end of the daemon"),
        ("judge", 4, "failed", "collecting", "ended 3 times in a row while its results were collected"),
    ],
)
def test_fault_68_what_ends_every_start_is_set_aside_and_the_others_go_on(
    make_daemon: Make, tmp_path: Path, phase: str, deaths: int, state: str, code: str | None, story: str
) -> None:
    """``deaths``: where the start tries on its own, its three tries come after the end of the first daemon."""
    daemon = make_daemon(CONFIG)
    (daemon.home / "inbox").mkdir(parents=True, exist_ok=True)
    drop_among_others(daemon)
    env = hooked(tmp_path, phase, dies=True)
    assert lives(daemon, env, lambda: bool(the_poison(daemon)) and others_succeeded(daemon)) == deaths
    (poison,) = the_poison(daemon)
    assert (poison["state"], poison["code"]) == (state, code)
    assert story in str(poison["message"])
    folder = daemon.home / ("rejected" if state == "rejected" else "failed") / str(poison["id"])
    assert (folder / "input" / "poison.sh").read_text() == "exit 0\n"
    assert daemon.stop() == 0
    assert not list((daemon.home / "work").iterdir())


@pytest.mark.parametrize(
    ("phase", "state", "code"),
    [("decide", "rejected", "defect"), ("dispatch", "failed", "defect"), ("judge", "failed", "defect")],
)
def test_fault_68_a_defect_that_one_job_meets_ends_no_daemon(
    make_daemon: Make, tmp_path: Path, phase: str, state: str, code: str
) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start(env=hooked(tmp_path, phase, dies=False))
    drop_among_others(daemon)
    wait_until(lambda: bool(the_poison(daemon)) and others_succeeded(daemon), "all are done")
    (poison,) = the_poison(daemon)
    assert (poison["state"], poison["code"]) == (state, code)
    assert "by a defect of Solvisor: RuntimeError: a defect of the tests" in str(poison["message"])
    assert daemon.stop() == 0


def test_fault_68_a_job_that_cannot_be_published_holds_up_nobody(make_daemon: Make, tmp_path: Path) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start(env=hooked(tmp_path, "publish", dies=False))
    drop_among_others(daemon)
    wait_until(lambda: others_succeeded(daemon), "the others are done")
    http = Http(daemon.home)
    wait_until(lambda: "cannot be put in its place" in str(http.get("/v1/status").json["problems"]), "it is told")
    daemon.kill()
    daemon.start()
    wait_until(lambda: bool(the_poison(daemon)), "it is published once it can be")
    assert daemon.stop() == 0


def test_fault_68_rows_that_cannot_be_read_are_set_aside_and_kept(make_daemon: Make) -> None:
    daemon = make_daemon(CONFIG)
    daemon.start()
    http = Http(daemon.home)
    daemon.drop("torn.sh", "sleep 600\n")
    daemon.wait_event("attempt.started", 1)
    http.post("/v1/pause")
    drop_among_others(daemon)
    daemon.wait_event("job.accepted", 6)  # which is told once it is durable; the status counts them before that
    daemon.kill()
    with sqlite3.connect(daemon.home / "state" / "solvisor.db") as database:
        assert database.execute("UPDATE jobs SET spec = ? WHERE name = 'poison.sh'", (b'{"name": 1\xff',)).rowcount == 1
        assert database.execute("UPDATE attempts SET settings = ?", (b"{}",)).rowcount == 1
    database.close()
    daemon.start()
    http.post("/v1/resume")
    wait_until(lambda: len(daemon.manifests()) == 6, "all are done")
    told = {m["name"]: (m["state"], m["cause"], m["code"]) for m in daemon.manifests().values()}
    aside = ("failed", "poison", "row")
    assert told == dict.fromkeys(("a.sh", "b.sh", "y.sh", "z.sh"), ("succeeded", None, None)) | {
        "poison.sh": aside,
        "torn.sh": aside,
    }
    for job in the_poison(daemon):
        assert "its row in the database cannot be read (what it asks for: " in str(job["message"])
        assert (daemon.home / "failed" / str(job["id"]) / "input" / "poison.sh").exists()
    # A job is shown as finished a moment after its manifest lies in its place.
    states = wait_until(lambda: over(http.get("/v1/jobs").json["jobs"]), "all are shown as finished")
    assert states == {name: told[name][0] for name in told}
    assert daemon.solver_processes() == []
    assert daemon.stop() == 0
