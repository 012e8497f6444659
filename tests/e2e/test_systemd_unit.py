"""The unit file, as far as systemd can judge it without running it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "solvisor.service"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    text = UNIT.read_text()
    program = "/opt/solvisor/bin/solvisor"
    assert program in text
    (tmp_path / UNIT.name).write_text(text.replace(program, "/bin/true"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", tmp_path / UNIT.name], capture_output=True, text=True, check=False
    )
    # It exits 0 on unknown keys: what counts is that it has nothing to say.
    assert (verified.returncode, verified.stderr) == (0, "")
