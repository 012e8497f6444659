"""Every benchmark runs, on next to nothing, prints its line of JSON, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

LEAST = {
    "throughput": "--jobs 20 --rounds 1 --no-peers",
    "latency": "--jobs 2 --rounds 1 --no-peers",
    "submit": "--jobs 4 --rounds 1",
    "warm": "--jobs 20 --rounds 1 --no-peers",
    "cold": "--jobs 4 --rounds 1",
    "load": "--jobs 400 --burst 20 --rounds 1 --accept 20",
    "idle": "--seconds 0.5 --workers 1 --no-peers",
    "readiness": "--starts 1 --rounds 1",
    "status": "--times 1",
    "trips": "--trips 20 --rounds 1",
    "inbox": "burst backlog --burst 50 --backlog 50",
    "api": "--jobs 20 --rounds 1",
    "pages": "--jobs 2000 --asks 2",
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="needs Linux and a C compiler"),
]


def test_none_is_forgotten() -> None:
    helpers = {"all", "bench_kit", "figures", "install", "plot", "race", "record", "runners", "summary", "tree"}
    assert {path.stem for path in BENCHMARKS.glob("*.py")} == {*LEAST, *helpers}


@pytest.mark.parametrize("name", LEAST)
def test_it_runs(name: str, tmp_path: Path) -> None:
    disk, kept = Path("/var/tmp") / f"bench-{tmp_path.name}", tmp_path / "kept.json"
    disk.mkdir()
    try:
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--dir", str(disk), "--json", str(kept)]
        done = subprocess.run(command + LEAST[name].split(), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["question"] == name
        assert told["machine"]["cores"] >= 1
        assert json.loads(kept.read_text()) == told
        assert not list(disk.iterdir())
    finally:
        shutil.rmtree(disk)
