"""Warm servers of real programs behind a real daemon: redis, Rserve with its forks, Python workers, rumoca in one."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from socket_kit import Http
from waiting import wait_until

needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")


def has_rserve() -> bool:
    return shutil.which("R") is not None and any(
        Path(library, "Rserve").is_dir() for library in ("/usr/lib/R/site-library", "/usr/local/lib/R/site-library")
    )


needs_rserve = pytest.mark.skipif(not has_rserve(), reason="R with the package Rserve is not installed")
needs_rumoca = pytest.mark.skipif(importlib.util.find_spec("rumoca") is None, reason="rumoca is not installed")

HEAD = """
[daemon]
max_jobs = 2
stop_timeout = "1s"
[inbox]
settle = "0.1s"
"""

REDIS = """
[solver.redis]
kind = "server"
accept = ["*.redis"]
start = ["redis-server", "--port", "{port}", "--bind", "{host}", "--save", "", "--dir", "{server_dir}"]
ready = { kind = "tcp", send = "PING\\r\\n", expect = '^\\+PONG' }
command = ["redis-cli", "-h", "{host}", "-p", "{port}", "-x", "SET", "{stem}"]
quit = ["redis-cli", "-h", "{host}", "-p", "{port}", "SHUTDOWN", "NOSAVE"]
servers = { max = 2, stop_grace = "2s" }
"""

RSERVE = f"""
[solver.rserve]
kind = "server"
accept = ["*.R"]
start = ["R", "--vanilla", "--slave", "-e", "Rserve::run.Rserve(port={{port}}, remote=FALSE, daemon=FALSE)"]
ready = {{ kind = "tcp", expect = '^Rsrv' }}
command = ["{sys.executable}", "-W", "ignore", "client.py", "{{host}}", "{{port}}", "{{input}}"]
servers = {{ max = 2, start_timeout = "60s", stop_grace = "1s" }}
timeout = "60s"
[solver.rserve.success]
error_pattern = '^REvalError: (.*)'
"""

CLIENT = """\
import sys
import pyRserve
try:
    with open(sys.argv[3]) as script:
        print(pyRserve.connect(sys.argv[1], int(sys.argv[2])).eval(script.read()))
except pyRserve.rexceptions.REvalError as error:
    sys.exit(f"REvalError: {error}")
"""

POST = """
import os
import sys
import subprocess


def process(job):
    text = job.input.read_text()
    print("working on", job.name, flush=True)
    if "boom" in text:
        raise ValueError("bad rows in " + job.name)
    if "die" in text:
        os._exit(9)
    if "hang" in text:
        subprocess.run(["sleep", "600"])
    numbers = [float(word) for word in text.split()]
    (job.output / "total.txt").write_text(str(sum(numbers)))
    return {"total": sum(numbers), "pid": os.getpid(), "factor": job.params["factor"]}
"""

PYTHON = f"""
[solver.post]
kind = "python"
accept = ["*.txt"]
call = "post.py:process"
python = "{sys.executable}"
servers = {{ max = 2 }}
[solver.post.params]
factor = {{ type = "float", default = 2.0 }}
[solver.post.success]
outputs = ["total.txt"]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def started(home: Path, config: str, **files: str) -> Daemon:
    daemon = Daemon(home, HEAD + config)
    for name, text in files.items():
        (home / name.replace("_py", ".py")).write_text(text)
    daemon.start()
    return daemon


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    """Daemons that a test starts; each is ended, and nothing of it may be left."""
    made: list[Daemon] = []
    yield made
    for daemon in made:
        if daemon.process is not None and daemon.process.poll() is None:
            assert daemon.stop() == 0
        assert daemon.solver_processes() == []
        assert not any((daemon.home / "run").glob("servers/*")), "a server's folder was left"


def wait_rested(daemon: Daemon) -> None:
    """Until each server is free: after a job it is asked first whether it still answers."""

    def are_ready() -> bool:
        pools = Http(daemon.home).get("/v1/servers").json["pools"]
        return all(server["state"] == "ready" for pool in pools for server in pool["servers"])

    wait_until(are_ready, "the servers are free")


def ports(daemon: Daemon) -> list[int]:
    return [event["port"] for event in daemon.wait_event("server.ready")]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def is_free(port: int) -> bool:
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def of(manifests: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests.values() if manifest["name"] == name]
    assert isinstance(found, dict)
    return found


@needs_redis
def test_a_client_command_talks_to_a_warm_server_that_is_used_again(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, REDIS))
    daemon.drop("first.redis", "hello")
    first = daemon.wait_one()
    assert first["state"] == "succeeded", first
    wait_rested(daemon)
    daemon.drop("second.redis", "again")
    second = of(daemon.wait_for(2), "second.redis")
    attempts = [first["attempts"][0], second["attempts"][0]]
    assert [attempt["server"] for attempt in attempts] == ["redis-1", "redis-1"]
    (port,) = ports(daemon)
    assert [attempt["port"] for attempt in attempts] == [port, port]
    assert first["solver"]["command"][1:] == ["-h", "127.0.0.1", "-p", str(port), "-x", "SET", "first"]
    assert daemon.stop() == 0
    assert is_free(port)
    assert [event["server"] for event in daemon.events("server.stopped")] == ["redis-1"], "it was asked to quit"


@needs_redis
def test_nothing_of_a_killed_daemon_is_left_once_it_is_back(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, REDIS.replace("max = 2", "min = 2")))
    before = daemon.wait_event("server.ready", 2)
    pids = [event["pid"] for event in daemon.events("server.started")]
    daemon.kill()
    assert all(is_alive(pid) for pid in pids), "kill -9 of the daemon alone does not end its servers"
    daemon.start()
    assert not any(is_alive(pid) for pid in pids), "redis wipes out its environment, and is found nevertheless"
    daemon.wait_event("server.ready", 4)
    daemon.drop("after.redis", "x")
    assert daemon.wait_one()["state"] == "succeeded"
    assert daemon.stop() == 0
    assert daemon.solver_processes() == []
    assert all(is_free(event["port"]) for event in before)


@needs_redis
def test_a_server_that_is_killed_is_replaced_and_no_job_fails(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, REDIS.replace("max = 2", "min = 1, max = 1")))
    daemon.wait_event("server.ready")
    (up,) = daemon.events("server.started")
    os.kill(up["pid"], signal.SIGKILL)
    daemon.wait_event("server.ready", 2)
    daemon.drop("a.redis", "x")
    manifest = daemon.wait_one()
    assert (manifest["state"], manifest["attempts"][0]["server"]) == ("succeeded", "redis-2")
    (failed,) = daemon.events("server.failed")
    assert "redis-1 was ended by SIGKILL" in failed["error"]


@needs_rserve
def test_rserve_with_its_forks_serves_and_is_gone_afterwards(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, RSERVE))
    for name, script in (("good", "paste('sum', sum(1:10))"), ("bad", "stop('no such column')")):
        folder = home / f"drop-{name}"
        folder.mkdir()
        (folder / f"{name}.R").write_text(script)
        (folder / "client.py").write_text(CLIENT)
        (folder / "job.toml").write_text(f'solver = "rserve"\ninputs = ["{name}.R", "client.py"]\n')
        folder.rename(home / "inbox" / name)
    manifests = daemon.wait_for(2, 120)
    assert of(manifests, "good.R")["state"] == "succeeded", of(manifests, "good.R")
    assert "sum 55" in of(manifests, "good.R")["log_tail"]
    assert (of(manifests, "bad.R")["state"], of(manifests, "bad.R")["cause"]) == ("failed", "exit")
    assert "no such column" in of(manifests, "bad.R")["message"]
    assert daemon.stop() == 0
    assert daemon.solver_processes() == []


def test_a_function_is_imported_once_and_its_result_is_in_the_manifest(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, PYTHON, post_py=POST))
    daemon.drop("a.txt", "1 2 3")
    first = daemon.wait_one()
    assert first["state"] == "succeeded", first
    assert (first["result"]["total"], first["result"]["factor"]) == (6.0, 2.0)
    assert "working on a.txt" in first["log_tail"]
    assert "output/total.txt" in [output["path"] for output in first["outputs"]]
    wait_rested(daemon)
    daemon.drop("b.txt", "4")
    second = of(daemon.wait_for(2), "b.txt")
    assert second["result"]["pid"] == first["result"]["pid"], "the interpreter was not used again"
    wait_rested(daemon)
    daemon.drop("c.txt", "boom")
    failed = of(daemon.wait_for(3), "c.txt")
    assert (failed["state"], failed["cause"], failed["code"]) == ("failed", "exit", "ValueError")
    assert failed["message"] == "ValueError: bad rows in c.txt"
    assert "Traceback" in failed["log_tail"]
    assert "post.py" in failed["log_tail"]
    assert [event["server"] for event in daemon.wait_event("server.lent", 3)] == ["post-1"] * 3
    assert len(daemon.events("server.ready")) == 1, "an exception is no reason for another interpreter"
    assert daemon.stop() == 0
    assert [(event["server"], event["why"]) for event in daemon.events("server.retired")] == [
        ("post-1", "the daemon stops")
    ]


def test_fault_17_a_job_that_kills_three_servers_is_poison_and_alone(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, PYTHON, post_py=POST))
    daemon.drop("bad.txt", "die")
    bad = daemon.wait_one()
    assert (bad["state"], bad["cause"], bad["code"]) == ("failed", "poison", "server_died")
    assert [attempt["cause"] for attempt in bad["attempts"]] == ["server"] * 3
    assert len({attempt["server"] for attempt in bad["attempts"]}) == 3
    assert "ended with exit code 9" in bad["message"]
    daemon.drop("good.txt", "1")
    assert of(daemon.wait_for(2), "good.txt")["state"] == "succeeded"


def test_a_timeout_ends_the_worker_with_all_its_children(home: Path, daemons: list[Daemon]) -> None:
    config = PYTHON.replace('accept = ["*.txt"]', 'accept = ["*.txt"]\ntimeout = "2s"')
    daemons.append(daemon := started(home, config, post_py=POST))
    daemon.drop("slow.txt", "hang")
    manifest = daemon.wait_one()
    assert (manifest["state"], manifest["cause"]) == ("failed", "timeout")
    wait_until(lambda: daemon.solver_processes() == [], "the worker and its child are gone")
    daemon.drop("next.txt", "5")
    following = of(daemon.wait_for(2), "next.txt")
    assert (following["state"], following["attempts"][0]["server"]) == ("succeeded", "post-2")


def test_kill_9_of_the_daemon_in_the_middle_of_a_job(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, PYTHON, post_py=POST))
    daemon.drop("long.txt", "hang")
    daemon.wait_event("attempt.started")
    wait_until(lambda: len(daemon.solver_processes()) >= 2, "the worker has its child")
    daemon.kill()
    daemon.start()
    daemon.wait_event("attempt.started", 2)
    assert len(daemon.events("attempt.interrupted")) == 1
    assert daemon.stop(40) == 0
    assert daemon.manifests() == {}, "it waits for the next life"


def test_a_function_that_cannot_be_imported_fails_the_pool_and_keeps_the_jobs(
    home: Path, daemons: list[Daemon]
) -> None:
    config = PYTHON.replace("max = 2", 'max = 1, restarts = 1, restarts_within = "60s"')
    daemons.append(daemon := started(home, config, post_py="import no_such_module\n"))
    daemon.drop("a.txt", "1")
    failed = daemon.wait_event("server.failed", 2)
    assert "No module named 'no_such_module'" in failed[0]["error"]
    assert daemon.manifests() == {}


@needs_rumoca
def test_rumoca_stays_warm_in_a_worker(home: Path, daemons: list[Daemon]) -> None:
    function = """
import rumoca
SESSION = rumoca.Session()
def simulate(job):
    result = SESSION.load(job.input).simulate(t=(0.0, job.params["stop"]))
    return {"model": result.model, "points": len(result.time), "end": float(result.time[-1])}
"""
    config = f"""
[solver.modelica]
kind = "python"
accept = ["*.mo"]
call = "model.py:simulate"
python = "{sys.executable}"
[solver.modelica.params]
stop = {{ type = "float", default = 2.0 }}
"""
    daemons.append(daemon := started(home, config, model_py=function))
    samples = Path(__file__).parents[2] / "examples" / "inputs" / "modelica"
    decay = samples / "Decay.mo"
    bad = samples / "Bad.mo"
    daemon.drop("Decay.mo", decay.read_text())
    daemon.drop("Bad.mo", bad.read_text())
    manifests = daemon.wait_for(2, 120)
    good = of(manifests, "Decay.mo")
    assert good["state"] == "succeeded", good
    assert good["result"]["end"] == pytest.approx(2.0)
    assert of(manifests, "Bad.mo")["state"] == "failed"


def test_bad_inputs_in_a_row_do_not_stop_the_good_ones(home: Path, daemons: list[Daemon]) -> None:
    daemons.append(daemon := started(home, PYTHON.replace("max = 2", "max = 1"), post_py=POST))
    for n in range(7):
        daemon.drop(f"bad-{n}.txt", "die")
    daemon.wait_event("job.accepted", 7)
    for n in range(3):
        daemon.drop(f"good-{n}.txt", "1")
    manifests = daemon.wait_for(10, 120)
    assert {m["name"] for m in manifests.values() if m["state"] == "succeeded"} == {f"good-{n}.txt" for n in range(3)}
    assert {m["cause"] for m in manifests.values() if m["state"] == "failed"} == {"poison"}


def test_what_a_server_said_when_it_died_of_a_job_is_in_the_log_of_the_job(home: Path, daemons: list[Daemon]) -> None:
    server = """
import json, os, socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    lines = listener.accept()[0].makefile("rw")
    for line in lines:
        if "ping" not in json.loads(line):
            sys.exit("FATAL: mesh exploded at node 7")
        lines.write('{"ok": true}\\n')
        lines.flush()
"""
    config = f"""
[solver.mesh]
kind = "server"
accept = ["*.mesh"]
start = ["{sys.executable}", "{home}/mesh.py", "{{port}}"]
ready = {{ kind = "tcp", send = "{{\\"ping\\": 1}}\\n", expect = "ok" }}
talk = "json"
"""
    daemons.append(daemon := started(home, config, mesh_py=server))
    daemon.drop("a.mesh", "x")
    manifest = daemon.wait_one()
    assert (manifest["cause"], manifest["code"]) == ("poison", "server_died")
    log = (home / "failed" / manifest["id"] / "stderr.log").read_text()
    assert "the warm server of this job, ended" in log
    assert "FATAL: mesh exploded at node 7" in log
    assert "mesh exploded" in manifest["message"]


@needs_redis
def test_a_client_that_ends_well_with_its_server_has_done_its_job(home: Path, daemons: list[Daemon]) -> None:
    config = REDIS.replace('"-x", "SET", "{stem}"]', '"SHUTDOWN", "NOSAVE"]')
    daemons.append(daemon := started(home, config))
    for n in range(3):
        daemon.drop(f"{n}.redis", "x")
    manifests = daemon.wait_for(3)
    assert {manifest["state"] for manifest in manifests.values()} == {"succeeded"}, "each time the same"
