"""What a home says of itself where no daemon runs: the same answers, by the same code."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from msgspec.structs import replace

from builders import NOON_US, SECOND_US, make_spec
from solvisor.home import Home
from solvisor.model import Cause, Job, Pause, State
from solvisor.store import Store
from solvisor_service.client import NotRunning
from solvisor_service.offline import OfflineClient

CONFIG = """
[licenses]
orcaflex = 2
[solver.ccx]
accept = ["*.inp"]
command = ["ccx", "-i", "{stem}"]
licenses = { orcaflex = 1 }
[solver.post]
kind = "python"
call = "json:loads"
"""


@pytest.fixture
def client(tmp_path: Path) -> OfflineClient:
    config = tmp_path / "solvisor.toml"
    config.write_text(CONFIG)
    home = Home.at(tmp_path)
    home.prepare()
    queued = [Job(f"beam-{n}", n, State.QUEUED, make_spec(f"beam-{n}"), NOON_US + n * SECOND_US) for n in (1, 2)]
    bad = Job("plate-3", 3, State.FAILED, make_spec("plate-3", name="plate"), NOON_US, cause=Cause.OOM)
    bad = replace(bad, finished_us=NOON_US, manifest=b"")
    with contextlib.closing(Store.open(home.db)) as store:
        store.record([*queued, bad], pauses=[Pause("ccx", "ann", NOON_US, None)])
        store.record([], [bad.id])
    return OfflineClient(tmp_path, config)


def test_solvers_and_licenses_are_those_of_the_configuration(client: OfflineClient) -> None:
    ccx, post = client.solvers().solvers
    assert (ccx.name, ccx.running, ccx.waiting, ccx.pool) == ("ccx", 0, 2, None)
    assert ccx.paused is not None
    assert ccx.paused.by == "ann"
    assert (post.name, post.waiting, post.pool) == ("post", 0, None)
    (orcaflex,) = client.licenses().licenses
    assert (orcaflex.used, orcaflex.total, orcaflex.holders) == (0, 2, ())


def test_jobs_are_searched_for(client: OfflineClient) -> None:
    assert [job.id for job in client.jobs(q="BEAM").jobs] == ["beam-2", "beam-1"]
    assert [job.id for job in client.jobs(cause="oom").jobs] == ["plate-3"]
    assert [job.id for job in client.jobs(until="2026-01-31T12:00:02Z", state=["queued"]).jobs] == ["beam-1"]
    assert client.job("last").id == "plate-3"


def test_what_only_a_daemon_knows_is_not_told(client: OfflineClient) -> None:
    with pytest.raises(NotRunning):
        client.status()
