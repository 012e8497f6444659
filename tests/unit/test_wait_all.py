"""``wait --all`` where the daemon has too many readers already: it asks instead, and seldom."""

from __future__ import annotations

import pytest

from cli_kit import Run
from fake_daemon import BEAM, FakeDaemon, row, status, view
from solvisor.views import JobPage, Problem
from solvisor_service.cli import waitall

CROWDED = Problem(title="unavailable", status=503, detail="24 streams are open already", code="unavailable")
LATER = "2027-01-01T00:00:00.000000Z"


def test_a_daemon_that_is_crowded_is_asked_instead(fake: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waitall, "DEAF_SECONDS", 0.02)
    fake.answers["GET", "/v1/events"] = CROWDED
    pages = iter([JobPage((row(),), None)] * 3)
    left = [status(running=1, waiting=0, inbox=(), inbox_total=0)]

    def jobs(_: object) -> JobPage:
        page = next(pages, None)
        if page is None:
            left.append(status(running=0, waiting=0, collecting=0, inbox=(), inbox_total=0, inbox_looked=LATER))
        return page or JobPage((), None)

    fake.answers["GET", "/v1/jobs"] = jobs
    fake.answers["GET", "/v1/status"] = lambda _: left[-1]
    fake.know(view(state="failed", cause="exit", message="exited with 3"))
    result = run("wait", "--all")
    assert result.status == 1, result
    assert result.out.count(BEAM) == 1
    assert len(fake.asked("GET", "/v1/events")) < 10


def test_another_refusal_is_one(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/events"] = CROWDED.__class__(title="x", status=403, detail="no", code="not_permitted")
    assert run("wait", "--all").status == 77
