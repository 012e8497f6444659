"""The demo, as `make demo` runs it: its exit status is the test, since it checks every end itself."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from waiting import wait_until

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "demo.py"

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _installed() -> None:
    if not Path(sys.executable).with_name("solvisor").exists():
        pytest.skip("no solvisor program beside this Python: `make venv` installs it")
    if not (importlib.util.find_spec("pulp") and importlib.util.find_spec("rumoca")):
        pytest.skip("the demo's solvers are not installed (extra: demo)")


def start_demo(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(DEMO), "--home", str(home)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def lives_with(home: Path) -> list[str]:
    """Command lines that name this home: the daemon, and solvers of its jobs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(os.fsencode(home)) for word in words):
            found.append(b" ".join(words).decode(errors="replace"))
    return found


def test_every_input_ends_as_expected_in_a_table_of_100_columns(tmp_path: Path) -> None:
    demo = start_demo(tmp_path / "home")
    output, _ = demo.communicate(timeout=150)
    assert demo.returncode == 0, output
    assert "NOT AS EXPECTED" not in output
    table = output[output.index("\njob ") :].partition("\n\n")[0].splitlines()[1:]
    assert len(table) >= 13  # a heading and the dozen jobs that need nothing from outside the package index
    assert max(map(len, table)) <= 100
    assert lives_with(tmp_path) == []


def test_ctrl_c_stops_the_daemon(tmp_path: Path) -> None:
    home = tmp_path / "home"
    demo = start_demo(home)
    wait_until(lambda: any(home.glob("work/*")), "a job in work", 60)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=90)
    assert demo.returncode == 130, output
    assert "interrupted" in output
    assert lives_with(tmp_path) == []


def test_a_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    demo = start_demo(tmp_path)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "choose another place" in output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
