"""Every client verb against a daemon that says what the test tells it to: words, JSON, exit codes, requests."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cli_kit import Result, Run
from fake_daemon import BEAM, FakeDaemon, Raw, Request, explanation, fake_daemon, row, status, view
from solvisor.model import Check
from solvisor.views import (
    Explanation,
    Holder,
    InboxWait,
    JobPage,
    JobView,
    LastDay,
    Level,
    Pause,
    Problem,
    Status,
    Submitted,
    Waiting,
)
from solvisor_service import cli
from solvisor_service.cli import main, shared

RISER = "riser-018-1jl9v2k4a0b1c2d"
BAD = "beam-bad-1jl9v2k4a0b1c2d"
REASON = "no elastic constants were assigned to any material in a (thermo)mechanical calculation"
HOSTILE = "a\x1b[31mb\u202ec\r\n"
CHECKS = (
    Check("exit", "0", "201", ok=False),
    Check("output beam_bad.frd", "not empty", "missing", ok=False),
    Check(r"no \*ERROR in logs", "not found", "stdout.log:54", ok=False),
)


def refuse(code: str, detail: str = "it may not be", **more: Any) -> Problem:
    return Problem(title="refused", status=409, detail=detail, code=code, **more)


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_reads_like_a_colleagues_answer(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/status"] = status(
        running=1,
        waiting=34,
        last_day=LastDay(211, 2, rejected=1),
        jobs=Level(1, 15),
        cpus=Level(14, 16),
        memory_bytes=Level(71 << 30, 128 << 30),
        licenses={"orcaflex": Level(2, 2)},
        waiting_for=(Waiting("license", "orcaflex", 31), Waiting("order", None, 3)),  # type: ignore[arg-type]
        inbox=(InboxWait("big.sim", "settling", "still growing"),),
        inbox_total=3,
        running_jobs=(row(tries=2),),
        last_failed=(row(id=BAD, name="beam_bad.inp", state="failed", run_seconds=0.1, message=REASON),),
    )
    result = run("status")
    assert result.status == 0
    assert result.lines == [
        "ws04: healthy, up 6 d      running 1   waiting 34   24 h: 211 ok, 2 failed, 1 rejected",
        "jobs 1/15   cores 14/16   memory 71/128 GiB   disk 412 GiB free   license orcaflex 2/2",
        "WAITING  31 for license orcaflex   3 for a turn   1 settling (big.sim, still growing)   2 more in the inbox",
        "RUNNING  beam-1jl9v2k4a  ann  ccx  1 h 12 m  try 2",
        f"FAILED   beam-bad-1jl9v2k4a  ann  ccx  0.1 s  {REASON}",
        "         and 1 more",
    ]


def test_status_tells_the_name_of_a_job_where_its_id_does_not(fake: FakeDaemon, run: Run) -> None:
    jobs = (row(name="Beam.inp"), row(id="x-1jl9v2k4b0b1c2d", name=f"梁 7{HOSTILE}"))
    fake.answers["GET", "/v1/status"] = status(running=2, running_jobs=jobs)
    first, second = run("status").lines[-2:]
    assert first.split() == ["RUNNING", "beam-1jl9v2k4a", "ann", "ccx", "1", "h", "12", "m"]
    assert second.split()[:4] == ["x-1jl9v2k4b", "梁", "7a[31mbc", "ann"]
    assert first.index(" ann") == second.index(" ann") + 1, "the name is as wide as it is shown"


def test_status_says_what_is_wrong_and_what_is_paused(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/status"] = status(
        health="degraded",
        problems=("the disk is full; free some space",),
        paused=(Pause("orcaflex", "ann", "2020-02-01T10:00:00Z", f"server down {HOSTILE}"),),
        waiting=1,
        escaped=2,
    )
    result = run("status")
    assert result.lines[0].startswith("ws04: degraded, ")
    assert "   escaped processes killed: 2   " in result.lines[0]
    assert result.lines[2] == "PROBLEM  the disk is full; free some space"
    assert result.lines[3] == "PAUSED   orcaflex, since 1 Feb 2020 by ann: server down a[31mbc"


def test_each_fault_of_a_configuration_has_a_line_of_the_status(fake: FakeDaemon, run: Run) -> None:
    told = "x.toml cannot be used; a restart would fail:\nline 3: jbos: no such key\nline 4: \x1b[31m: no duration"
    fake.answers["GET", "/v1/status"] = status(health="degraded", problems=(told, "the disk is full"))
    assert run("status").lines[2:6] == [
        "PROBLEM  x.toml cannot be used; a restart would fail:",
        "           line 3: jbos: no such key",
        "           line 4: [31m: no duration",
        "PROBLEM  the disk is full",
    ]


def test_status_tells_of_a_daemon_that_was_held_up_and_of_lines_that_were_lost(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/status"] = status(loop_lag_seconds=0.31, log_lines_lost=1200)
    assert run("status").lines[1].endswith("1,200 lines of the log lost   answers late by up to 0.31 s")
    fake.answers["GET", "/v1/status"] = status(loop_lag_seconds=0.1, loop_lag_worst_seconds=3.0)
    assert " late " not in run("status").out


def test_status_tells_what_the_inbox_holds_back_in_one_phrase_a_kind(fake: FakeDaemon, run: Run) -> None:
    folders = [InboxWait(f"case{n}", "folder", "holds no job.toml and not exactly one input; waits") for n in range(4)]
    fake.answers["GET", "/v1/status"] = status(
        inbox=(
            *folders,
            InboxWait(f"readme{HOSTILE}.txt", "job_file", "waits for a job file that names it"),
            InboxWait("a.job.toml", "companion", "waits for mesh.inc, which it names"),
            InboxWait("big.sim", "settling", "still growing"),
            InboxWait("big2.sim", "settling", "still growing"),
            InboxWait("x", "other", "is new"),
        ),
        inbox_total=9,
    )
    (line,) = (line for line in run("status").lines if line.startswith("WAITING"))
    assert line.removeprefix("WAITING  ").split("   ") == [
        "4 folders without a job.toml (case0, ...)",
        "1 waits for a job file that names it (readmea[31mbc .txt)",
        "1 job file whose inputs are not all there (a.job.toml)",
        "2 settling (big.sim, ...)",
        "1 other (x)",
    ]


def test_every_way_to_wait_in_the_inbox_has_its_words() -> None:
    from typing import get_args

    from solvisor.inbox.sorting import Why
    from solvisor_service.cli.verbs.status import DROPS

    assert set(DROPS) == set(get_args(Why))


def test_status_of_an_idle_daemon_says_how_to_begin(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/status"] = status()
    assert run("status").lines[-1] == "Nothing to do. Drop an input in /srv/solvisor/inbox, or: solvisor submit FILE"


# --- explain --------------------------------------------------------------------------------------------------------


def test_explain_says_who_holds_what_a_job_waits_for(fake: FakeDaemon, run: Run) -> None:
    held = [
        Holder("riser-017-1jl9v2k4a0b1c2d", "user1", 4320.0),
        Holder("mooring-3-1jl9v2k4a0b1c2d", None, 1320.0),
    ]
    numbers = {"need": 1, "used": 2, "total": 2}
    fake.answers["GET", "/v1/jobs/riser/explain"] = explanation(
        "waits for a license. Nothing is wrong.",
        job=row(id=RISER, user="user1", solver="orcaflex", state="queued", reason="license"),
        findings=[
            {
                "reason": "license",
                "label": "license",
                "holds": True,
                "text": "orcaflex: needs 1, 2 of 2 in use",
                "what": "orcaflex",
                "holders": held,
                **numbers,
            },
            {"reason": "memory", "label": "memory", "holds": False, "text": "needs 6 GiB, 57 GiB free", **numbers},
            {"reason": "order", "label": "order", "holds": False, "text": "2nd of 31"},
        ],
    )
    result = run("explain", "riser")
    assert result.status == 0
    assert result.lines == [
        f"{RISER} (user1, orcaflex) waits for a license. Nothing is wrong.",
        "  license  orcaflex: needs 1, 2 of 2 in use: riser-017-1jl9v2k4a (user1) 1 h 12 m, mooring-3-1jl9v2k4a 22 m",
        "  memory   needs 6 GiB, 57 GiB free: ok",
        "  order    2nd of 31",
    ]


def test_explain_gives_the_solvers_own_sentence_first(fake: FakeDaemon, run: Run) -> None:
    job = row(id=BAD, state="failed", message=REASON, folder=f"failed/{BAD}")
    fake.answers["GET", "/v1/jobs/last/explain"] = explanation(
        "FAILED after 0.1 s, try 1 of 1", job=job, checks=CHECKS, next="correct the deck and drop it again"
    )
    result = run("explain", "last")
    assert result.status == 0
    assert result.lines == [
        f"{BAD} (ann, ccx) FAILED after 0.1 s, try 1 of 1",
        f"  {REASON}",
        "  checks   exit 201, allowed 0                              failed",
        "           output beam_bad.frd: missing, wanted: not empty  failed",
        r"           no \*ERROR in logs: stdout.log:54                failed",
        f"  files    failed/{BAD}/",
        "  next     correct the deck and drop it again",
    ]


def test_explain_of_a_running_job_says_since_when(fake: FakeDaemon, run: Run) -> None:
    job = row(started="2020-02-01T10:00:00Z")
    fake.answers["GET", "/v1/jobs/last/explain"] = explanation("runs: try 1 of 1.", job=job)
    assert run("explain", "last").lines == [
        f"{BEAM} (ann, ccx) runs: try 1 of 1.",
        "  since    1 Feb 2020, 1 h 12 m so far",
    ]


# --- list and show ----------------------------------------------------------------------------------------------------


def test_list_gives_one_job_a_line(fake: FakeDaemon, run: Run) -> None:
    old = "2020-02-01T10:00:00Z"
    fake.answers["GET", "/v1/jobs"] = JobPage(
        (
            row(submitted=old),
            row(id=BAD, name=f"bad{HOSTILE}", state="failed", message=REASON, run_seconds=0.1, submitted=old),
            row(id=RISER, state="queued", reason="license", waits_for="orcaflex", run_seconds=None, submitted=old),
        ),
        None,
    )
    result = run("list")
    assert (result.status, result.err) == (0, "")
    assert result.lines == [
        "ID                         STATE    SOLVER  USER  SUBMITTED       TOOK  NAME",
        "beam-1jl9v2k4a0b1c2d       running  ccx     ann   1 Feb 2020  1 h 12 m  beam.inp",
        f"{BAD}   failed   ccx     ann   1 Feb 2020     0.1 s  bada[31mbc : {REASON}",
        f"{RISER}  queued   ccx     ann   1 Feb 2020            beam.inp (waits: license orcaflex)",
    ]


def test_list_asks_for_what_is_wanted(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/jobs"] = JobPage((), None)
    result = run("list", "--state", "failed", "--state", "queued", "--project", "riser", "--since", "2026-11-01T00:00Z")
    assert (result.status, result.out, result.err) == (0, "", "no such jobs\n")
    asked = fake.requests[-1].query
    assert asked == {
        "limit": ["20"],
        "state": ["failed", "queued"],
        "project": ["riser"],
        "since": ["1793491200000000"],
    }
    assert "submit" in run("list").err


def test_list_searches_by_cause_time_and_words(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/jobs"] = JobPage((), None)
    words = ["--cause", "timeout", "--cause", "oom", "--search", "100 %", "--until", "2026-11-01T00:00Z"]
    assert run("list", *words).err == "no such jobs\n"
    assert fake.requests[-1].query == {
        "limit": ["20"],
        "cause": ["timeout", "oom"],
        "q": ["100 %"],
        "until": ["1793491200000000"],
    }


def test_list_takes_pages_until_it_has_enough(fake: FakeDaemon, run: Run) -> None:
    jobs = [row(id=f"j{n}-1jl9v2k4a0b1c2d") for n in range(1200)]

    def page(request: Request) -> JobPage:
        first = int(request.query.get("cursor", ["0"])[0])
        last = first + int(request.query["limit"][0])
        return JobPage(tuple(jobs[first:last]), str(last) if last < len(jobs) else None)

    fake.answers["GET", "/v1/jobs"] = page
    every = run("list", "--all")
    assert (len(every.lines), every.err) == (1201, "")
    some = run("list", "--limit", "700")
    assert (len(some.lines), some.err) == (701, "(700 shown; more with --limit N or --all)\n")
    found = json.loads(run("list", "--limit", "700", "--json").out)
    assert (len(found["jobs"]), found["next"]) == (700, "700")


@pytest.mark.parametrize(
    "words",
    [["--since", "soon"], ["--limit", "0"], ["--state", "happy"], ["--limit", "5", "--all"], ["--cause", "bad luck"]],
)
def test_list_refuses_what_it_cannot_ask(run: Run, words: list[str]) -> None:
    result = run("list", *words)
    assert result.status == 2
    assert words[0] in result.err


def finished(**changes: Any) -> JobView:
    return view(state="succeeded", folder=f"done/{BEAM}", run_seconds=12.0, **changes)


def manifest(files: dict[str, bytes], **changes: Any) -> dict[str, Any]:
    """A manifest of ``beam`` with these outputs."""
    sample: dict[str, Any] = json.loads(
        (Path(__file__).parents[1] / "data" / "manifests" / "succeeded.json").read_text()
    )
    facts = [
        {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()} for path, data in files.items()
    ]
    inputs = [fact for fact in facts if str(fact["path"]).startswith("input/")]
    outputs = [fact for fact in facts if fact not in inputs]
    return sample | {"id": BEAM, "inputs": inputs, "outputs": outputs, "more_outputs": None} | changes


def publish(fake: FakeDaemon, files: dict[str, bytes], **changes: Any) -> None:
    """Let ``fake`` have a finished job with these files."""
    fake.know(finished(), "last")
    fake.answers["GET", f"/v1/jobs/{BEAM}/manifest"] = json.dumps(manifest(files, **changes)).encode()
    for path, data in files.items():
        fake.answers["GET", f"/v1/jobs/{BEAM}/files/{path}"] = Raw(data, {})


FILES = {"input/beam.inp": b"deck", "output/beam.frd": b"result" * 1000, "stdout.log": b"", "output/mesh/a.vtk": b"v"}


def test_show_tells_all_and_lists_the_files(fake: FakeDaemon, run: Run) -> None:
    publish(fake, FILES)
    attempt = {
        **json.loads((Path(__file__).parents[1] / "data" / "manifests" / "succeeded.json").read_text())["attempts"][0],
        "started": "2026-11-02T10:00:00Z",
        "finished": "2026-11-02T10:00:12Z",
        "exit_code": 0,
        "signal": None,
        "cpu_user_seconds": 10.0,
        "cpu_system_seconds": 1.0,
        "max_rss_bytes": 48 << 20,
    }
    job = finished(
        attempts=[attempt],
        params={"load": 3.5},
        project=f"riser{HOSTILE}",
        licenses={"orcaflex": 1},
        tries_max=3,
        checks=[Check("exit", "0", "0", ok=True)],
    )
    fake.know(job, "last")
    result = run("show", "last")
    assert result.status == 0
    said = {line.split()[0]: " ".join(line.split()[1:]) for line in result.lines}
    assert said[BEAM] == "(ann, ccx) succeeded in 12 s"
    assert said["project"] == "risera[31mbc"
    assert said["command"] == "/usr/bin/ccx -i beam"
    assert said["limits"] == "2 cores, memory 2 GiB, timeout 2 h, license orcaflex 1"
    assert said["params"] == "load = 3.5"
    assert said["tries"] == "1 exit 0 12 s cpu 11 s memory 48 MiB"
    assert said["tried"] == "1 of at most 3"
    assert said["checks"] == "exit 0, allowed 0 ok"
    assert said["files"] == "output/beam.frd 5.9 KiB"
    assert said["folder"] == f"done/{BEAM}/"
    assert "input/beam.inp" not in result.out


def test_show_names_the_first_of_many_files(fake: FakeDaemon, run: Run) -> None:
    publish(fake, {f"output/{n:03}": b"x" for n in range(1000)})
    lines = run("show", "last").lines
    assert sum("output/" in line for line in lines) == 20
    assert sum("... and 980 more, listed in manifest.json" in line for line in lines) == 1


def test_show_of_a_job_whose_folder_is_gone_shows_the_rest(fake: FakeDaemon, run: Run) -> None:
    fake.know(finished(), "last")
    result = run("show", "last")
    assert (result.status, result.err) == (0, "")
    assert "files" not in result.out


# --- which job --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["show", "explain", "logs", "get", "wait", "cancel", "retry"])
def test_a_job_that_nobody_knows_is_exit_4(fake: FakeDaemon, run: Run, verb: str) -> None:
    result = run(verb, "gone")
    assert (result.status, result.out) == (4, "")
    assert "gone" in result.err


def test_an_ambiguous_name_lists_what_it_could_mean(fake: FakeDaemon, run: Run) -> None:
    ids = ("beam-1", "beam-2", "beam-3")
    fake.answers["GET", "/v1/jobs/beam"] = refuse("ambiguous_job", "'beam' could be beam-1, ...", candidates=ids)
    result = run("show", "beam")
    assert result.status == 2
    assert result.err.splitlines() == ["solvisor: 'beam' could be beam-1, ...", "  beam-2", "  beam-3"]


@pytest.mark.parametrize(("code", "status"), [("unavailable", 75), ("not_permitted", 77), ("usage", 2), ("else", 1)])
def test_a_refusal_ends_with_the_status_of_its_code(fake: FakeDaemon, run: Run, code: str, status: int) -> None:
    fake.answers["GET", "/v1/status"] = refuse(code, f"not now {HOSTILE}")
    result = run("status")
    assert (result.status, result.err) == (status, "solvisor: not now a[31mbc\n\n")


def test_where_no_daemon_runs_it_says_how_to_start_one(run: Run, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    result = run("status")
    assert result.status == 3
    assert f"solvisor serve --home {tmp_path / 'home'}" in result.err


AS_ANOTHER_USER = """
import os, pathlib, sys
import solvisor_service.cli.text, solvisor_service.client  # that user may not be able to read them
from solvisor_service import cli
cli.parser()
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
cli.shared.SYSTEM_HOME = pathlib.Path(sys.argv[1])
sys.exit(cli.main(["status"]))
"""


def test_who_may_not_use_the_systems_socket_is_told_so_and_not_that_nothing_runs() -> None:
    with tempfile.TemporaryDirectory() as folder, fake_daemon(Path(folder) / "home") as fake:
        fake.answers["GET", "/v1/status"] = status()
        run_folder = fake.home / "run"
        (Path(folder) / "own" / "solvisor").mkdir(parents=True)
        Path(folder).chmod(0o755)
        run_folder.chmod(0o750 if os.geteuid() == 0 else 0)
        command = [sys.executable, "-c", AS_ANOTHER_USER, str(fake.home)]
        env = {name: value for name, value in os.environ.items() if name != "SOLVISOR_HOME"}
        env["XDG_DATA_HOME"] = f"{folder}/own"
        result = subprocess.run(command, capture_output=True, text=True, env=env)
        run_folder.chmod(0o750)
    assert (result.returncode, result.stdout) == (77, "")
    assert "add you to that group" in result.stderr
    assert fake.requests == []


# --- wait -------------------------------------------------------------------------------------------------------------


def test_wait_prints_each_job_as_it_ends_and_tells_if_one_failed(fake: FakeDaemon, run: Run) -> None:
    other = view(id=BAD, state="failed", message=f"no{HOSTILE}", run_seconds=0.1)
    polls = 0

    def beam(request: Request) -> JobView:
        nonlocal polls
        polls += 1
        return view(state="succeeded" if polls > 2 else "running", run_seconds=2.0)

    fake.know(other, "bad")
    fake.answers["GET", f"/v1/jobs/{BEAM}"] = fake.answers["GET", "/v1/jobs/last"] = beam
    result = run("wait", "last", "bad")
    assert (result.status, result.err) == (1, "")
    assert result.lines == [f"{BAD}  FAILED after 0.1 s: noa[31mbc", f"{BEAM}  succeeded in 2 s"]
    assert len(fake.asked("GET", "/v1/jobs/last")) == 1, "last may be another job by now"
    assert not any("wait" in asked.query for asked in fake.asked("GET", f"/v1/jobs/{BAD}")), (
        "one is waited for at a time"
    )


def test_wait_is_0_if_all_succeeded(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(state="succeeded"), "last")
    assert run("wait", "last", BEAM).lines == [f"{BEAM}  succeeded in 1 h 12 m"]
    assert run("wait", "last").status == 0


@pytest.mark.parametrize("state", ["failed", "cancelled", "rejected", "skipped"])
def test_wait_is_1_for_every_other_end(fake: FakeDaemon, run: Run, state: str) -> None:
    fake.know(view(state=state))
    assert run("wait", BEAM).status == 1


def test_wait_gives_up_after_its_timeout(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(state="queued"))
    fake.know(view(id=BAD, state="succeeded"))
    result = run("wait", "--timeout", "0.2s", BEAM, BAD)
    assert (result.status, result.lines) == (124, [f"{BAD}  succeeded in 1 h 12 m"])
    assert result.err == f"solvisor: not finished in time: {BEAM}; see: solvisor explain {BEAM}\n"


# --- cancel, retry, pause, resume -------------------------------------------------------------------------------------


def test_cancel_does_what_it_can_and_says_what_it_could_not(fake: FakeDaemon, run: Run) -> None:
    fake.answers["POST", "/v1/jobs/a/cancel"] = view(id=RISER, state="cancelled")
    fake.answers["POST", "/v1/jobs/b/cancel"] = refuse("finished", "b is finished")
    fake.answers["POST", "/v1/jobs/c/cancel"] = view(state="running", cancel=True)
    result = run("cancel", "a", "b", "nope", "c")
    assert result.status == 1, "that of the first refusal"
    assert result.lines == [f"{RISER}  cancelled", f"{BEAM}  is being stopped"]
    assert [line.split()[1] for line in result.err.splitlines()] == ["b", "no"]


def test_retry_names_the_new_job(fake: FakeDaemon, run: Run) -> None:
    fake.answers["POST", "/v1/jobs/last/retry"] = Submitted(BEAM, f"beam{HOSTILE}", "ccx")
    assert run("retry", "last") == Result(0, f"{BEAM}  ccx  beama[31mbc\n", "")


def test_pause_and_resume_of_a_solver_and_of_all(fake: FakeDaemon, run: Run) -> None:
    fake.answers["POST", "/v1/pause"] = status()
    fake.answers["POST", "/v1/resume"] = status(paused=(Pause(None, None, "2026-11-02T10:00:00Z", "lunch"),))
    assert run("pause", "ccx", "--note", "license server") == Result(
        0, "paused: nothing of ccx is started until: solvisor resume ccx\n", ""
    )
    assert run("pause") == Result(0, "paused: nothing is started until: solvisor resume\n", "")
    assert run("resume", "ccx") == Result(0, "resumed: ccx\nstill paused: everything: lunch\n", "")
    bodies = [json.loads(request.body) for request in fake.requests]
    assert [(body["solver"], body.get("note")) for body in bodies] == [
        ("ccx", "license server"),
        (None, None),
        ("ccx", None),
    ]


# --- submit -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def beam(tmp_path: Path) -> Path:
    path = tmp_path / "beam.inp"
    path.write_bytes(b"deck of beam")
    return path


def test_submit_sends_files_and_wishes(fake: FakeDaemon, run: Run, beam: Path) -> None:
    fake.answers["POST", "/v1/jobs"] = Submitted(BEAM, "beam.inp", "ccx")
    fake.know(view(id=RISER), "riser")
    (beam.parent / "mesh.inc").write_bytes(b"a mesh")
    words = "--solver ccx --with mesh.inc --param load=3.5 --param fine=true --name B --project P --priority 3"
    more = "--after riser --key k --timeout 30m --cpus 4 --memory 4GiB --license orcaflex=2 --license other --retry 2"
    result = run("submit", "beam.inp", *words.split(), *more.split(), "--retry-on", "signal", "--retry-on", "timeout")
    assert result == Result(0, f"{BEAM}  ccx  beam.inp\n", "")
    (request,) = fake.asked("POST", "/v1/jobs")
    _, job, first, second, _ = request.body.split(b"--" + request.headers["Content-Type"].split("=")[1].encode())
    assert json.loads(job.split(b"\r\n\r\n")[1]) == {
        "solver": "ccx",
        "params": {"load": 3.5, "fine": True},
        "name": "B",
        "project": "P",
        "priority": 3,
        "key": "k",
        "after": [RISER],
        "timeout": "30m",
        "cpus": 4,
        "memory": "4GiB",
        "licenses": {"orcaflex": 2, "other": 1},
        "retry": {"max": 2, "on": ["signal", "timeout"]},
    }
    assert b"beam.inp" in first
    assert first.endswith(b"deck of beam\r\n")
    assert second.endswith(b"a mesh\r\n")


def test_submit_goes_on_after_a_target_that_is_refused(fake: FakeDaemon, run: Run, beam: Path) -> None:
    def answer(request: Request) -> Submitted | Problem:
        return refuse("no_solver", "nobody accepts it") if b"odd.xyz" in request.body else Submitted(BEAM, "b", "ccx")

    fake.answers["POST", "/v1/jobs"] = answer
    (beam.parent / "odd.xyz").write_text("?")
    (beam.parent / "bad.job.toml").write_text("cpu = 1\n")
    result = run("submit", "odd.xyz", "gone.inp", "bad.job.toml", "beam.inp")
    assert (result.status, result.out) == (1, f"{BEAM}  ccx  b\n")
    first, second, third = result.err.splitlines()
    assert first == "solvisor: odd.xyz: nobody accepts it: --solver NAME"
    assert second == "solvisor: gone.inp does not exist; check the name and the folder"
    assert third.startswith('solvisor: bad.job.toml: line 1: cpu: no such key; did you mean "cpus"?')


def test_submit_tells_of_a_job_that_has_the_key_already(fake: FakeDaemon, run: Run, beam: Path) -> None:
    fake.answers["POST", "/v1/jobs"] = Submitted(BEAM, "beam.inp", "ccx", existing=True)
    assert (
        run("submit", "beam.inp", "--key", "k").out == f"{BEAM}  ccx  beam.inp  (was there already: it has this key)\n"
    )


def test_options_may_stand_between_the_names(fake: FakeDaemon, run: Run, beam: Path) -> None:
    fake.answers["POST", "/v1/jobs"] = Submitted(BEAM, "beam.inp", "ccx")
    assert run("submit", "beam.inp", "--cpus", "2", str(beam)).status == 0
    assert [b'"cpus":2' in request.body for request in fake.requests] == [True, True]


def test_submit_can_wait_for_the_end(fake: FakeDaemon, run: Run, beam: Path) -> None:
    fake.answers["POST", "/v1/jobs"] = Submitted(BEAM, "beam.inp", "ccx")
    fake.know(view(state="failed", message="no", run_seconds=1.0))
    result = run("submit", "beam.inp", "--wait")
    assert result == Result(1, f"{BEAM}  ccx  beam.inp\n{BEAM}  FAILED after 1 s: no\n", "")


@pytest.mark.parametrize(
    "words",
    [
        ["--timeout", "5"],
        ["--timeout", "soon"],
        ["--memory", "lots"],
        ["--license", "=2"],
        ["--license", "a=b"],
        ["--param", "load"],
        ["--cpus", "two"],
        ["--key", "k", "other.inp"],
    ],
)
def test_submit_refuses_a_wrong_option_before_anything_is_sent(
    fake: FakeDaemon, run: Run, beam: Path, words: list[str]
) -> None:
    result = run("submit", "beam.inp", *words)
    assert (result.status, result.out, fake.requests) == (2, "", [])
    assert words[0] in result.err


# --- get --------------------------------------------------------------------------------------------------------------


def test_get_brings_outputs_logs_and_manifest(fake: FakeDaemon, run: Run, tmp_path: Path) -> None:
    publish(fake, FILES)
    result = run("get", "last", "--out", "results")
    assert result == Result(0, f"results/{BEAM}/  3 files and manifest.json (succeeded)\n", "")
    folder = tmp_path / "results" / BEAM
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert found.pop("manifest.json") == json.dumps(manifest(FILES)).encode()
    assert found == {path: data for path, data in FILES.items() if not path.startswith("input/")}


def test_get_brings_what_is_named_and_inputs_when_asked(fake: FakeDaemon, run: Run, tmp_path: Path) -> None:
    publish(fake, FILES)

    def files(*words: str) -> list[str]:
        return sorted(json.loads(run("get", "last", "--json", *words).out)["files"])

    assert files("beam.frd") == ["output/beam.frd"]
    assert files("*.vtk", "stdout.log") == ["output/mesh/a.vtk", "stdout.log"]
    assert files("input/beam.inp") == ["input/beam.inp"]
    assert files("--inputs") == sorted(FILES)
    assert (tmp_path / BEAM / "input" / "beam.inp").read_bytes() == b"deck"
    missing = run("get", "last", "beam.frd", "beam.dat")
    assert missing.status == 1
    assert f"{BEAM} has no file beam.dat" in missing.err


def test_get_leaves_nothing_that_is_not_as_the_manifest_says(fake: FakeDaemon, run: Run, tmp_path: Path) -> None:
    publish(fake, FILES)
    fake.answers["GET", f"/v1/jobs/{BEAM}/files/output/beam.frd"] = Raw(b"changed", {})
    result = run("get", "last")
    assert result.status == 1
    assert "output/beam.frd" in result.err
    left = [p.name for p in (tmp_path / BEAM).rglob("*") if p.is_file()]
    assert not {"beam.frd", "manifest.json"} & set(left)
    assert not [name for name in left if name.endswith(".part")]


@pytest.mark.parametrize("path", ["../evil", "output/../../evil", "/tmp/evil", r"output/\x2e\x2e/\x2e\x2e/evil"])
def test_get_writes_nothing_outside_its_folder(fake: FakeDaemon, run: Run, tmp_path: Path, path: str) -> None:
    publish(fake, {path: b"evil"})
    assert run("get", "last", "--out", "a/b").status == 1
    assert not list(tmp_path.rglob("evil"))
    assert not Path("/tmp/evil").exists()


# --- logs -------------------------------------------------------------------------------------------------------------


class Log:
    """A log that ``fake`` serves."""

    def __init__(self, fake: FakeDaemon, job: str = BEAM, which: str = "stdout") -> None:
        self.tries: dict[int, bytes] = {1: b""}
        fake.answers["GET", f"/v1/jobs/{job}/logs/{which}"] = self.answer

    def answer(self, request: Request) -> Raw:
        number = int(request.query.get("try", [str(max(self.tries))])[0])
        if number not in self.tries:
            return Raw(b"", {"Solvisor-Offset": "0", "Solvisor-Try": "0"})
        data = self.tries[number]
        if "follow" in request.query:
            begin = int(request.query["offset"][0])
            return Raw(data[begin:], {"Solvisor-Offset": str(begin), "Solvisor-Try": str(number)})
        if "offset" in request.query:
            begin = int(request.query["offset"][0])
        else:
            begin = max(0, len(data) - int(request.query["tail"][0]))
        piece = data[begin : begin + 1000]
        return Raw(piece, {"Solvisor-Offset": str(begin + len(piece))})


def test_logs_are_piped_byte_by_byte(
    fake: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    fake.know(view(), "last")
    log = Log(fake, which="stderr")
    log.tries[1] = bytes(range(256)) * 20
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.FileIO(1, "wb", closefd=False)))
    assert main(["logs", "last", "--stderr", "--home", str(tmp_path / "home")]) == 0
    assert capfdbinary.readouterr().out == log.tries[1]


@pytest.mark.parametrize(
    ("tail", "shown"),
    [("0", ""), ("1", "c"), ("2", "b\nc"), ("9", "a\nb\nc")],
)
def test_the_tail_of_a_log_is_counted_in_lines(fake: FakeDaemon, run: Run, tail: str, shown: str) -> None:
    fake.know(view(), "last")
    log = Log(fake)
    log.tries[1] = b"a\nb\nc"
    assert run("logs", "last", "--tail", tail).out == shown
    log.tries[1] += b"\n"
    assert run("logs", "last", "--tail", tail).out == (shown and shown + "\n")


def test_the_log_of_an_earlier_try(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(tries=2), "last")
    Log(fake).tries = {1: b"first", 2: b"second"}
    assert run("logs", "last").out == "second"
    assert run("logs", "last", "--try", "1").out == "first"


def test_following_a_log_ends_with_the_job_and_misses_nothing(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(state="queued", tries=0, tries_max=2), "last")

    def log(request: Request) -> Raw:
        number = int(request.query["try"][0])
        assert request.query["offset"] == ["0"]
        return Raw(tries[number - 1](), {"Solvisor-Offset": "0", "Solvisor-Try": "0"})

    def first() -> Iterator[bytes]:
        yield b"one "
        fake.know(view(tries=1, tries_max=2))
        yield b"two "
        fake.know(view(state="queued", tries=1, tries_max=2))  # it rests

    def second() -> Iterator[bytes]:
        fake.know(view(tries=2, tries_max=2))
        yield b"three "
        fake.know(view(state="succeeded", tries=2, tries_max=2))
        yield b"four"

    tries = [first, second]
    fake.answers["GET", f"/v1/jobs/{BEAM}/logs/stdout"] = log
    result = run("logs", "last", "-f")
    assert result.status == 0
    assert result.out == "one two three four"
    assert result.err.splitlines() == [
        f"solvisor: {BEAM} waits to be started; see: solvisor explain {BEAM}",
        "solvisor: waits for try 2 of 2",
    ]


def test_a_followed_log_goes_on_with_a_try_that_began_meanwhile(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(tries=1, tries_max=3), "last")

    def log(request: Request) -> Raw:
        number = int(request.query["try"][0])
        fake.know(view(tries=3, tries_max=3, state="failed"))
        return Raw(f"{number} ".encode(), {"Solvisor-Offset": "0", "Solvisor-Try": str(number)})

    fake.answers["GET", f"/v1/jobs/{BEAM}/logs/stdout"] = log
    result = run("logs", "last", "-f")
    assert (result.status, result.out) == (0, "1 2 3 ")
    assert result.err.splitlines() == ["solvisor: try 2 of 3", "solvisor: try 3 of 3"]
    assert run("logs", "last", "-f", "--try", "2").out == "2 "


def test_following_the_tail_of_a_log_goes_on_from_there(fake: FakeDaemon, run: Run) -> None:
    log = Log(fake)
    log.tries[1] = b"one\ntwo\n"
    states = iter(["running", "running", "succeeded"])

    def job(_: Request) -> JobView:
        log.tries[1] += b"three\n" * (len(fake.asked("GET", f"/v1/jobs/{BEAM}")) == 1)
        return view(state=next(states))

    fake.answers["GET", "/v1/jobs/last"] = fake.answers["GET", f"/v1/jobs/{BEAM}"] = job
    assert run("logs", "last", "-f", "--tail", "1") == Result(0, "two\nthree\n", "")


# --- JSON, help, homes ------------------------------------------------------------------------------------------------

DOCUMENTS: list[tuple[list[str], tuple[str, str], Any, Any]] = [
    (["status"], ("GET", "/v1/status"), status(), Status),
    (["list"], ("GET", "/v1/jobs"), JobPage((row(),), None), JobPage),
    (["show", BEAM], ("GET", f"/v1/jobs/{BEAM}"), view(), JobView),
    (["explain", BEAM], ("GET", f"/v1/jobs/{BEAM}/explain"), explanation("waits."), Explanation),
    (["wait", BEAM], ("GET", f"/v1/jobs/{BEAM}"), view(state="succeeded"), JobView),
    (["cancel", BEAM], ("POST", f"/v1/jobs/{BEAM}/cancel"), view(), JobView),
    (["retry", BEAM], ("POST", f"/v1/jobs/{BEAM}/retry"), Submitted(BEAM, "b", "ccx"), Submitted),
    (["submit", "beam.inp"], ("POST", "/v1/jobs"), Submitted(BEAM, "b", "ccx"), Submitted),
    (["pause"], ("POST", "/v1/pause"), status(), Status),
    (["resume"], ("POST", "/v1/resume"), status(), Status),
]


@pytest.mark.parametrize(("words", "route", "answer", "kind"), DOCUMENTS, ids=[words[0] for words, *_ in DOCUMENTS])
def test_json_is_the_answer_as_it_is(
    fake: FakeDaemon, run: Run, beam: Path, words: Sequence[str], route: tuple[str, str], answer: Any, kind: Any
) -> None:
    fake.answers[route] = answer
    result = run(*words, "--json")
    assert (result.status, result.err) == (0, "")
    assert msgspec.json.decode(result.out.encode(), type=kind) == answer


def test_verbs_for_several_jobs_give_one_json_document_a_line(fake: FakeDaemon, run: Run) -> None:
    for name in ("a", "b"):
        fake.know(view(id=f"{name}-1", state="succeeded"), name)
        fake.answers["POST", f"/v1/jobs/{name}/cancel"] = view(id=f"{name}-1")
    for verb in ("wait", "cancel"):
        assert sorted(json.loads(line)["id"] for line in run(verb, "a", "b", "--json").lines) == ["a-1", "b-1"]


def test_json_of_logs_says_where_to_go_on(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(), "last")
    Log(fake).tries[1] = "é".encode() * 700  # a piece ends in the middle of a character
    pieces = [json.loads(line) for line in run("logs", "last", "--json").lines]
    assert "".join(piece["text"] for piece in pieces) == "é" * 700
    assert [(piece["id"], piece["stream"], piece["offset"]) for piece in pieces][-1] == (BEAM, "stdout", 1400)


CLIENT_VERBS = [
    *("submit", "status", "list", "show", "logs", "get", "wait"),
    *("cancel", "retry", "pause", "resume", "servers", "explain", "completion"),
]


@pytest.mark.parametrize("verb", CLIENT_VERBS)
def test_every_verb_helps_with_examples(run: Run, verb: str) -> None:
    result = run(verb, "--help")
    assert result.status == 0
    assert f"examples:\n  solvisor {verb}" in result.out


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_every_verb(run: Run, shell: str) -> None:
    result = run("completion", shell)
    assert (result.status, result.err) == (0, "")
    for verb in CLIENT_VERBS:
        assert verb in result.out
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} to read the script")
    assert subprocess.run([program, "-n"], input=result.out, capture_output=True, text=True).stderr == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["sub"], "submit"),
        (["get", "last", "--inp"], "--inputs"),
        (["list", "--state", "coll"], "collecting"),
        (["submit", "--with", "bea"], "beam.inp"),
        (["submit", "--cpus", "2", "bea"], "beam.inp"),
    ],
)
def test_bash_completes_verbs_options_and_files(run: Run, beam: Path, words: list[str], completed: str) -> None:
    script = run("completion", "bash").out
    line = " ".join(["solvisor", *words])
    ask = f'COMP_WORDS=({line}); COMP_CWORD={len(words)}; _shtab_solvisor; echo "${{COMPREPLY[*]}}"'
    answer = subprocess.run(["bash", "-c", f"{script}\n{ask}"], capture_output=True, text=True, cwd=beam.parent)
    assert answer.stdout.split() == [completed]


@pytest.fixture
def two_homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The user's own home and the system's, none of them named."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(shared, "SYSTEM_HOME", tmp_path / "system")
    return tmp_path / "data" / "solvisor", tmp_path / "system"


@pytest.mark.parametrize(
    ("own_lives", "system_lives", "asked"),
    [(True, True, "own"), (True, False, "own"), (False, True, "system"), (False, False, None)],
)
def test_the_daemon_that_lives_is_asked(
    run: Run,
    two_homes: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    own_lives: bool,
    system_lives: bool,
    asked: str | None,
) -> None:
    monkeypatch.delenv("SOLVISOR_HOME")
    own, system = two_homes
    own.mkdir(parents=True)
    with contextlib.ExitStack() as daemons:
        for home, lives, name in ((own, own_lives, "own"), (system, system_lives, "system")):
            if lives:
                fake = daemons.enter_context(fake_daemon(home))
                fake.answers["GET", "/v1/status"] = status(host=name)
        result = run("status")
    assert (result.lines[0].split(":")[0] if result.lines else None) == asked
    said_which = f"solvisor: asking your own daemon, on {own}; the system's: --home {system}\n"
    if asked is None:
        assert (result.status, f"--home {own}" in result.err) == (3, True)
    else:
        assert result.err == (said_which if own_lives and system_lives else "")


def test_a_home_that_is_named_is_asked_whoever_else_lives(
    run: Run, two_homes: tuple[Path, Path], tmp_path: Path
) -> None:
    with fake_daemon(two_homes[0]), fake_daemon(two_homes[1]):
        result = run("status")
    assert (result.status, str(tmp_path / "home") in result.err) == (3, True)


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path, fake: FakeDaemon) -> None:
    fake.answers["GET", "/v1/jobs"] = JobPage(tuple(row(id=f"j{n}-1jl9v2k4a0b1c2d") for n in range(500)), None)
    command = [sys.executable, "-m", "solvisor_service.cli", "list", "--home", str(tmp_path / "home")]
    reader, writer = socket.socketpair()
    with reader, writer, subprocess.Popen(command, stdout=writer.fileno(), stderr=subprocess.PIPE) as process:
        reader.shutdown(socket.SHUT_RDWR)
        reader.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)


HEAVY = {
    *("anyio", "starlette", "uvicorn", "structlog", "sqlite3", "shtab", "asyncio", "http", "email", "ssl", "secrets"),
    *("tomllib", "tomli_w", "logging", "subprocess", "tempfile", "hashlib"),
}
"""What no verb needs that only asks the daemon."""

OF_A_CLIENT = {
    "solvisor": {"errors", "model", "manifest", "views", "names"},
    "solvisor_service": {"cli", "cli.shared", "cli.verbs", "client", "wire"},
}


def imported(home: Path, *words: str) -> set[str]:
    """The modules that a process has imported once it has done the verb."""
    program = (
        "import sys; from solvisor_service.cli import main; main(sys.argv[1:]);"
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    command = [sys.executable, "-c", program, *words, "--home", str(home)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stderr.split())


@pytest.mark.parametrize(
    ("words", "own"),
    [
        (["status", "--json"], ["cli.verbs.status"]),
        (["status"], ["cli.verbs.status", "cli.jobtext", "cli.text"]),
        (["list"], ["cli.verbs.list_", "cli.jobtext", "cli.text"]),
    ],
    ids=" ".join,
)
def test_a_verb_starts_without_what_others_need(
    tmp_path: Path, fake: FakeDaemon, words: list[str], own: list[str]
) -> None:
    fake.answers["GET", "/v1/status"] = status()
    fake.answers["GET", "/v1/jobs"] = JobPage((row(),), None)
    modules = imported(tmp_path / "home", *words)
    assert modules & HEAVY == set()
    assert ("rich" in modules) == ("--json" not in words)
    wanted = {f"{tree}.{name}" for tree, names in OF_A_CLIENT.items() for name in names}
    ours = {name for name in modules if name.startswith(("solvisor.", "solvisor_service."))}
    assert ours == wanted | {f"solvisor_service.{name}" for name in own}


def test_each_verb_is_declared_by_the_module_that_its_table_names() -> None:
    for verb in cli.VERBS:
        actions = [a for a in cli.parser(verb)._actions if isinstance(a, argparse._SubParsersAction)]
        assert verb in actions[0].choices
        assert len(actions[0].choices) < 3, "and few others with it"
    whole = [a for a in cli.parser()._actions if isinstance(a, argparse._SubParsersAction)]
    assert list(whole[0].choices) == list(cli.VERBS)
