"""A small soak: see ``soak.py``, whose full run is ``make soak``."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from soak import Soak


@pytest.mark.slow
def test_what_is_killed_again_and_again_loses_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    soak = Soak(tmp_path / "home", jobs=300, kills=4, victims=6, seed=seed)
    soak.run()
    assert soak.killed["daemon"] == 4
    assert 0 < soak.killed["solver"] + soak.killed["server"] <= 6, "some ended before they could be killed"
    assert soak.peak_kib < 120 << 10
    assert max(sample.fds for sample in soak.samples) < 100
