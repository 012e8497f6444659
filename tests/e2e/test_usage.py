"""How busy it was, asked of a real daemon, of its next life, and of a home without one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from daemon import Daemon
from socket_kit import Http, file
from solvisor.figures import Report, Usage
from solvisor_service.offline import OfflineClient

LICENSED = """
[daemon]
max_jobs = 2
cpus = 4
memory = "8GiB"
[licenses]
orca = 1
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
cpus = 2
memory = "1GiB"
licenses = { orca = 1 }
"""


def test_how_busy_it_was_outlives_the_daemon(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "home", LICENSED)
    http = Http(daemon.home)
    try:
        daemon.start()
        ids = [http.send(file(f"{n}.sh", b"sleep 1.2\n")).json["id"] for n in range(2)]
        for job_id in ids:
            assert http.get(f"/v1/jobs/{job_id}?wait=30").json["state"] == "succeeded"
        at_once = msgspec.json.decode(http.get("/v1/usage").body, type=Usage)
        assert daemon.stop() == 0
        daemon.start()
        online = msgspec.json.decode(http.get("/v1/usage").body, type=Usage)
        reported = msgspec.json.decode(http.get("/v1/report").body, type=Report)
        assert daemon.stop() == 0
        offline = OfflineClient(daemon.home, daemon.config).usage()
    finally:
        daemon.clear_away()
    for told in (at_once, online, offline):
        series = {each.name: each for each in told.series}
        assert list(series) == ["jobs", "cpus", "memory", "license.orca", "waiting"]
        assert [each.total for each in told.series] == [2, 4, 8 << 30, 1, None]
        assert told.step_seconds == 900
        assert all(len(each.values) == 96 for each in told.series)
        assert series["cpus"].values[0] is None, "no daemon ran a day ago"
        busy = [value for value in series["cpus"].values if value]
        assert 1 <= len(busy) <= 2, "a quarter of an hour may just have begun"
        for jobs, cpus, memory in zip(*(series[name].values for name in ("jobs", "cpus", "memory")), strict=True):
            if jobs:
                assert (cpus, memory) == (pytest.approx(2 * jobs, abs=0.01), pytest.approx(jobs * 2**30, rel=0.01))
        assert any(series["waiting"].values), "one waited for the license"
    assert (reported.jobs, reported.succeeded) == (2, 2)
    (sh,) = reported.solvers
    assert sh.run is not None
    assert 1.1 <= sh.run.p50 <= sh.run.max < 30
    assert [(wait.reason, wait.what) for wait in sh.waits][:1] == [("license", "orca")]
    assert reported.core_seconds == pytest.approx(2 * sh.run.total)
    assert reported.advice == (), "two jobs are no evidence"


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("points=0", "points='0' is not a whole number from 1 to 1000"),
        ("points=1001", "points='1001' is not"),
        ("points=x", "points='x' is not a whole number"),
        ("since=yesterday", "since='yesterday' is not a time; write it like 2026-11-01T08:00:00Z"),
        ("until=9999-12-31T00:00:00Z", "until='9999-12-31T00:00:00Z' is not a time"),
        ("until=999999999999999999", "until='999999999999999999' is not a time"),
        ("since=-5", "since='-5' is not a time"),
        ("since=2999-01-01T00:00:00Z", "since is not before until"),
        ("until=0", "since is not before until"),
    ],
)
def test_a_period_that_makes_no_sense_is_refused(http: Http, query: str, said: str) -> None:
    answer = http.get(f"/v1/usage?{query}")
    assert (answer.status, answer.code) == (400, "usage")
    assert answer.json["detail"].startswith(said)


def test_a_report_has_the_same_rules_for_times(http: Http) -> None:
    assert http.get("/v1/report?since=2999-01-01T00:00:00Z").code == "usage"
    assert http.get("/v1/report?points=3").code == "usage"
    told = msgspec.json.decode(
        http.get("/v1/report?since=2020-01-01T00:00:00Z&until=2020-01-02T00:00:00Z").body, type=Report
    )
    assert (told.jobs, told.kept_since) == (0, None)


def test_times_are_rfc_3339_or_microseconds(http: Http) -> None:
    told = http.get("/v1/usage?since=2026-01-31T12:00:00Z&until=1769864400000000&points=1000").json
    assert (told["since"], told["until"]) == ("2026-01-31T12:00:00.000000Z", "2026-01-31T13:00:00.000000Z")
    assert told["step_seconds"] == 60
    assert set(told["series"][0]["values"]) == {None}
    assert http.get("/v1/usage?since=0&until=2999-12-31T00:00:00Z&points=1000").status == 200
