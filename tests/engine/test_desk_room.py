"""The disk runs low: it is told, with what can be done, and is no fault."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from scripted import CONFIG, Bench
from solvisor.disk import Disk

LOW = Disk(total_bytes=1 << 40, free_bytes=4 << 30, reserve_bytes=1 << 30)
ENOUGH = Disk(total_bytes=1 << 40, free_bytes=6 << 30, reserve_bytes=1 << 30)
SHORT = Disk(total_bytes=1 << 40, free_bytes=1 << 29, reserve_bytes=1 << 30)


@pytest.mark.parametrize("rule", ["", '[retention]\nkeep_for = "90d"\n'], ids=["kept for ever", "with a rule"])
async def test_a_disk_that_runs_low_is_told_while_it_does(tmp_path: Path, rule: str) -> None:
    bench = Bench(tmp_path / "home", CONFIG + rule)
    try:
        with capture_logs() as logs:
            async with bench.running():
                for _ in range(2):
                    bench.engine.see_disk(LOW)
                    (told,) = bench.desk.status().problems
                    assert told.startswith("only 4 GiB are free on the disk of the home; ")
                    assert told.endswith("results are kept as [retention] says" if rule else "has old ones go")
                    assert bench.desk.status().health == "healthy", "jobs run as before"
                bench.engine.see_disk(SHORT)
                (told,) = bench.desk.status().problems
                assert told.startswith("no job starts: "), "and no note beside it"
                assert bench.desk.status().health == "degraded"
                bench.engine.see_disk(ENOUGH)
                assert bench.desk.status().problems == ()
        assert [entry["event"] for entry in logs].count("disk.low") == 1, "told once"
    finally:
        bench.close()
