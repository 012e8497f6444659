"""The built wheel in a clean environment, driven as people and scripts drive it: every verb, by its exit code and JSON.

What each verb says is tested beside it; here it is proven that what is shipped has all its parts. The environment gets
its requirements from the package index, as a user's would.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from solvisor.manifest import Manifest
from solvisor.views import Explanation, JobPage, JobView, Status, Submitted
from waiting import wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

CONFIG = """
[daemon]
max_jobs = 2
stop_timeout = "1s"
[solver.copy]
accept = ["*.txt"]
command = ["cp", "{input}", "{stem}.out"]
params = { colour = { type = "str", default = "red" } }
success = { outputs = ["{stem}.out"], log_forbid = ["never"] }
[solver.fail]
accept = ["*.bad"]
command = ["sh", "-c", "echo 'Error: no such mesh'; exit 3"]
success = { error_pattern = "Error: (.*)" }
[solver.hold]
accept = ["*.hold"]
command = ["sleep", "600"]
"""


class Installed(NamedTuple):
    """A clean environment with the wheel, and a home."""

    program: Path
    home: Path

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home.parent), "SOLVISOR_HOME": str(self.home)}
        return subprocess.run(
            [self.program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=env,
            cwd=self.home.parent,
            stdin=subprocess.DEVNULL,
        )

    def ok(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def answer(self, kind: Any, *arguments: str, status: int = 0) -> Any:
        """What ``--json`` printed, as the documented shape."""
        done = self.run(*arguments, "--json")
        assert done.returncode == status, done
        return msgspec.json.decode(done.stdout, type=kind, strict=True)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``solvisor``, from a wheel built of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "demo-home")
    shutil.copytree(ROOT, source, ignore=ignored)  # hatchling leaves no trace in the checkout
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder / "dist")]
    subprocess.run(build, cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv = folder / "venv"
    uv = shutil.which("uv")
    install: list[str | Path]
    if uv:
        subprocess.run([uv, "venv", "-q", "--python", sys.executable, venv], check=True, timeout=120)
        install = [uv, "pip", "install", "-q", "--python", venv / "bin" / "python", wheel]
    else:
        subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=120)
        install = [venv / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True, timeout=300, stdin=subprocess.DEVNULL)
    return venv / "bin" / "solvisor"


@pytest.fixture
def installed(program: Path, tmp_path: Path) -> Installed:
    home = tmp_path / "home"
    home.mkdir()
    (home / "solvisor.toml").write_text(CONFIG)
    for name in ("a.txt", "b.txt", "c.bad", "d.hold"):
        (tmp_path / name).write_text("input\n")
    return Installed(program, home)


def test_the_starter_is_in_it_where_it_could_be_compiled(program: Path) -> None:
    ask = "from solvisor.process.native import Starter; print(Starter().works)"
    python = program.with_name("python")
    said = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=True, cwd="/", timeout=60).stdout
    assert said == f"{shutil.which('cc') is not None}\n"


@pytest.fixture
def served(installed: Installed) -> Iterator[Installed]:
    """With a daemon that was started as a user starts it."""
    with (installed.home / "console.log").open("wb") as console:
        daemon = subprocess.Popen(
            [installed.program, "serve", "--home", installed.home],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
    try:
        wait_until(lambda: installed.run("status").returncode == 0, "the daemon answers", 30)
        yield installed
    finally:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0


def test_without_a_daemon(installed: Installed) -> None:
    assert installed.run("--version").stdout.startswith("solvisor ")
    assert installed.run("frobnicate").returncode == 2
    for verb in ("status", "list", "last"):
        arguments = ("show", verb) if verb == "last" else (verb,)
        done = installed.run(*arguments)
        assert done.returncode == 3
        assert "solvisor serve" in done.stderr
    assert "good; solvers: copy, fail, hold" in installed.ok("config", "check")
    assert json.loads(installed.ok("config", "schema", "manifest"))["$schema"]
    assert "[solver.copy]" in installed.ok("config", "show")
    assert "_solvisor" in installed.ok("completion", "bash")
    assert installed.run("try", "copy", "a.txt").returncode == 0
    assert installed.run("try", "fail", "c.bad").returncode == 1
    assert installed.run("doctor").returncode in {0, 1}  # what it finds is the machine's
    assert {"check", "level", "found", "mend"} <= set(
        json.loads(installed.run("doctor", "--json").stdout)["findings"][0]
    )
    (installed.home / "solvisor.toml").write_text("[solver.x]\ncomand = []\n")
    done = installed.run("config", "check")
    assert done.returncode == 2
    assert 'did you mean "command"' in done.stderr


def test_init_makes_a_home(program: Path, tmp_path: Path) -> None:
    fresh = Installed(program, tmp_path / "fresh")
    assert fresh.run("init", "--examples").returncode == 0
    assert fresh.run("config", "check").returncode == 0
    assert (fresh.home / "examples").is_dir()
    again = fresh.run("init")
    assert again.returncode == 2
    assert "--update" in again.stderr


def test_a_batch_without_a_daemon(installed: Installed) -> None:
    done = installed.run("run", "copy", "a.txt", "b.txt", "--out", "results", "--json")
    assert done.returncode == 0, done
    summary = json.loads(done.stdout)
    assert [row["state"] for row in summary["rows"]] == ["succeeded", "succeeded"]
    assert (installed.home.parent / "results" / "1-a" / "output" / "a.out").read_text() == "input\n"
    failed = installed.run("run", "fail", "c.bad")
    assert failed.returncode == 1
    assert "no such mesh" in failed.stdout
    assert installed.run("status").returncode == 3, "its daemon went with it"


def test_every_verb_of_a_life(served: Installed) -> None:
    lines = served.ok("submit", "a.txt", "c.bad", "--json")
    submitted = msgspec.json.Decoder(Submitted).decode_lines(lines)
    page = served.answer(JobPage, "list")
    bad, good = page.jobs  # newest first
    assert [answer.id for answer in submitted] == [good.id, bad.id]
    assert served.run("wait", good.id).returncode == 0
    assert served.run("wait", bad.id).returncode == 1
    view = served.answer(JobView, "show", good.id)
    assert (view.state, view.solver, view.folder) == ("succeeded", "copy", f"done/{good.id}")
    why = served.answer(Explanation, "explain", bad.id[:-3])
    assert (why.job.message, why.job.code) == ("no such mesh", "exit_3")
    assert "Error: no such mesh" in served.ok("logs", bad.id)
    served.ok("get", good.id, "--out", "fetched")
    (manifest,) = served.home.parent.glob("fetched/**/manifest.json")
    assert msgspec.json.decode(manifest.read_bytes(), type=Manifest).id == good.id
    assert served.run("retry", bad.id).returncode == 0
    assert served.run("show", "nobody-has-this").returncode == 4
    assert served.run("submit", "nothing.here").returncode in {1, 2}

    served.answer(Submitted, "submit", "d.hold")
    assert served.run("wait", "last", "--timeout", "0.5s").returncode == 124
    assert served.run("cancel", "last").returncode == 0
    assert served.run("wait", "last").returncode == 1
    assert served.answer(JobView, "show", "last").state == "cancelled"

    assert served.run("pause", "copy", "--note", "new version").returncode == 0
    status = served.answer(Status, "status")
    assert [(pause.solver, pause.note) for pause in status.paused] == [("copy", "new version")]
    assert served.run("submit", "b.txt").returncode == 0
    assert "new version" in served.ok("explain", "last")
    assert served.run("resume", "copy").returncode == 0
    assert served.run("wait", "last").returncode == 0
    assert served.run("run", "copy", "a.txt", "b.txt").returncode == 0

    second = served.run("serve", "--home", str(served.home))
    assert second.returncode == 100
    assert "held by" in second.stderr
