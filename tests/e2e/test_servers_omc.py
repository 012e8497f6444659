"""OpenModelica behind a real daemon: models compiled once and run many times, scripts, and nothing left.

``omc`` is the double of ``tests/doubles``; where a real one is on the PATH of an ordinary user, it is that.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from doubles.omc_kit import BOOM, DECAY, install
from waiting import wait_until

REAL = shutil.which("omc") if os.geteuid() != 0 else None

CONFIG = """
[daemon]
max_jobs = 4
cpus = 4
stop_timeout = "1s"
[inbox]
settle = "0.1s"
[solver.omc]
kind = "omc"
accept = ["*.mo", "*.mos"]
omc = {omc}
timeout = "60s"
servers = {{ max = 2, start_timeout = "30s", stop_grace = "1s" }}
[solver.omc.env]
{env}
"""


def make(tmp_path: Path, **knobs: object) -> Daemon:
    program = REAL or str(install(tmp_path / "bin"))
    settings = {"ROOT_OK": 1, "JOURNAL": tmp_path / "journal"} | knobs
    env = "" if REAL else "\n".join(f'OMC_DOUBLE_{name} = "{value}"' for name, value in settings.items() if value)
    return Daemon(tmp_path / "home", CONFIG.format(omc=json.dumps(program), env=env))


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    made = make(tmp_path)
    made.start()
    yield made
    end(made)


def end(daemon: Daemon) -> None:
    assert daemon.stop() == 0
    assert daemon.solver_processes() == []
    assert not list((daemon.home / "run" / "servers").glob("*"))


def send(daemon: Daemon, name: str, model: str, table: str = "") -> None:
    """A folder with a model and a job file."""
    folder = daemon.home / f"new-{name}"
    folder.mkdir()
    (folder / "model.mo").write_text(model)
    (folder / "job.toml").write_text(f'solver = "omc"\ninputs = ["model.mo"]\nname = "{name}"\n{table}')
    folder.rename(daemon.home / "inbox" / name)


def of(manifests: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [manifest for manifest in manifests.values() if manifest["name"] == name]
    assert isinstance(found, dict)
    return found


def test_a_model_is_compiled_once_and_run_with_many_parameters(daemon: Daemon, tmp_path: Path) -> None:
    send(daemon, "first", DECAY)
    first = daemon.wait_one()
    assert first["state"] == "succeeded", first
    assert first["result"]["model"] == "Decay"
    assert first["result"]["built"] is True
    assert all(check["ok"] for check in first["checks"])
    for n in range(6):
        send(daemon, f"run-{n}", DECAY, f"[simulate]\nstop = 2.0\n[overrides]\nk = {n + 0.5}\n")
    manifests = daemon.wait_for(7)
    finals = set()
    for n in range(6):
        run = of(manifests, f"run-{n}")
        assert (run["state"], run["result"]["built"], run["result"]["stop"]) == ("succeeded", False, 2.0), run
        assert run["options"]["overrides"] == {"k": n + 0.5}
        finals.add(run["result"]["final"]["x"])
    assert len(finals) == 6, "each ran with its own parameter"
    if REAL is None:
        assert (tmp_path / "journal").read_text().split() == ["Decay"], "compiled once"
    outputs = [output["path"] for output in first["outputs"]]
    assert any(path.endswith("_res.csv") for path in outputs)


def test_faults_of_a_model_are_told_in_its_own_words(daemon: Daemon) -> None:
    send(daemon, "unknown", DECAY, "[overrides]\nkk = 3.0\n")
    send(daemon, "broken", DECAY.replace("end Decay;", "end Dec"))
    send(daemon, "boom", BOOM, "[simulate]\nstop = 5.0\n")
    manifests = daemon.wait_for(3)
    assert {manifest["state"] for manifest in manifests.values()} == {"failed"}
    assert (of(manifests, "unknown")["code"], "k" in of(manifests, "unknown")["message"]) == ("override", True)
    assert of(manifests, "broken")["message"]
    assert "x too large" in of(manifests, "boom")["message"]


def test_a_script_has_its_server_for_itself_and_leaves_nothing_to_the_next(daemon: Daemon) -> None:
    daemon.drop("a.mos", "x := 41;\nx + 1;\n")
    daemon.drop("b.mos", "quit();\n")
    manifests = daemon.wait_for(2)
    assert of(manifests, "a.mos")["state"] == "succeeded", of(manifests, "a.mos")
    assert of(manifests, "b.mos")["state"] == "failed"
    used = of(manifests, "a.mos")["attempts"][0]["server"]
    daemon.drop("c.mos", "1 + 1;\n")
    after = of(daemon.wait_for(3), "c.mos")
    assert after["state"] == "succeeded"
    assert after["attempts"][0]["server"] != used


@pytest.mark.skipif(REAL is not None, reason="a real omc cannot be told to hang")
def test_kill_9_of_the_daemon_while_a_model_is_compiled(tmp_path: Path) -> None:
    daemon = make(tmp_path, HANG_BUILD=1)
    daemon.start()
    daemon.drop("Decay.mo", DECAY)
    wait_until(lambda: len(daemon.solver_processes()) >= 2, "the compiler has its child")
    daemon.kill()
    daemon.config.write_text(daemon.config.read_text().replace('OMC_DOUBLE_HANG_BUILD = "1"', ""))
    daemon.start()
    manifest = daemon.wait_one()
    assert manifest["state"] == "succeeded", manifest
    assert not list((daemon.home / "state" / "cache").rglob("*.tmp*"))
    end(daemon)


@pytest.mark.skipif(REAL is not None or os.geteuid() != 0, reason="only the double, as root, refuses to start here")
def test_as_root_it_says_so_and_keeps_the_job(tmp_path: Path) -> None:
    daemon = make(tmp_path, ROOT_OK=None)
    daemon.start()
    daemon.drop("Decay.mo", DECAY)
    failed = daemon.wait_event("server.failed")
    assert "root" in failed[0]["error"]
    assert "ordinary user" in failed[0]["error"]
    assert daemon.manifests() == {}
    end(daemon)
