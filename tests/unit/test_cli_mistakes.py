"""What people type wrong, and what they are told: by the verb they meant, with words they can paste."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli_kit import Run
from fake_daemon import BEAM, FakeDaemon, Raw, Request, explanation, fake_daemon, no_such_job, row, status, view
from solvisor.views import JobPage, Pause, Problem, Submitted
from solvisor_service import client
from solvisor_service.cli import parser

JOB_VERBS = ["show", "explain", "logs", "get", "wait", "cancel", "retry"]
RETRY = "correct the input and submit it again; run it unchanged: solvisor retry beam-1"


def refused(code: str, detail: str) -> Problem:
    return Problem(title="refused", status=409, detail=detail, code=code)


# --- words, options, names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "usage", "said"),
    [
        (["status", "extra"], "solvisor status", "unrecognized arguments: extra"),
        (["submit", "x", "--foo"], "solvisor submit", "unrecognized arguments: --foo"),
        (["config", "check", "extra"], "solvisor config check", "unrecognized arguments: extra"),
        (["run", "ccx", "a", "--max-jobs", "x"], "solvisor run", "--max-jobs: 'x': write a whole number from 1 on"),
        (["run", "ccx", "a", "--max-jobs", "0"], "solvisor run", "--max-jobs: '0': write a whole number from 1 on"),
        (["list", "--limit", "0"], "solvisor list", "--limit: '0': write a whole number from 1 on"),
        (["logs", "last", "--tail", "x"], "solvisor logs", "--tail: 'x': write a whole number from 0 on"),
        (["logs", "last", "--try", "0"], "solvisor logs", "--try: '0': write a whole number from 1 on"),
        (["--home", "x", "status"], "solvisor", "--home stands after what is to be done: solvisor VERB --home ..."),
        (["config", "--json", "check"], "solvisor config", "solvisor config ACTION --json ..."),
        (["staus"], "solvisor", "no such verb: 'staus'; did you mean status?"),
        (["config", "shwo"], "solvisor config", "no such action: 'shwo'; did you mean show?"),
        (["frobnicate"], "solvisor", "no such verb: 'frobnicate'; there are: init, serve, run, "),
        (["a\x1b[2J\u202e"], "solvisor", "no such verb: "),
        (["submit", "x", "--a\x1b[2J\u202e"], "solvisor submit", "unrecognized arguments: --a[2J"),
        (["show"], "solvisor show", "the following arguments are required: JOB"),
        (["submit", "x", "--cpus", "--", "y"], "solvisor submit", "argument --cpus: expected one argument"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_a_mistake_is_told_by_the_verb_that_was_meant(run: Run, words: list[str], usage: str, said: str) -> None:
    result = run(*words)
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith(f"usage: {usage} [-h]")
    assert said in result.err
    assert all(line.isprintable() for line in result.err.splitlines())


def test_options_of_the_command_itself_stand_before_the_verb(run: Run) -> None:
    assert run("--version").out.startswith("solvisor ")
    assert run("--vers").out.startswith("solvisor "), "as argparse takes the beginning of an option"
    assert "VERB" in run("-h").out


@pytest.mark.parametrize(
    ("words", "names", "cpus"),
    [
        (["--", "-rf.pen"], ["-rf.pen"], None),
        (["--", "--damp.pen"], ["--damp.pen"], None),
        (["--", "a.inp", "-b.inp", "--cpus"], ["a.inp", "-b.inp", "--cpus"], None),
        (["a.inp", "--cpus", "2", "b.inp", "--", "-c.inp"], ["a.inp", "b.inp", "-c.inp"], 2),
        (["a.inp", "--cpu", "2", "b.inp"], ["a.inp", "b.inp"], 2),
        (["a.inp", "--cpus=2", "b.inp"], ["a.inp", "b.inp"], 2),
        (["--wait", "a.inp", "--json"], ["a.inp"], None),
    ],
)
def test_two_dashes_protect_names(words: list[str], names: list[str], cpus: int | None) -> None:
    read = parser().parse_args(["submit", *words])
    assert ([str(target) for target in read.targets], read.cpus) == (names, cpus)


def test_two_dashes_protect_the_files_of_a_batch_too() -> None:
    read = parser().parse_args(["run", "ccx", "--param", "load=-3", "--priority", "-5", "--", "-a.inp", "--out"])
    assert (read.solver, read.files, read.params) == ("ccx", ["-a.inp", "--out"], ["load=-3"])
    assert (read.priority, read.out) == (-5, None)


@pytest.mark.parametrize(
    "words",
    [
        *([verb, ""] for verb in JOB_VERBS),
        *([verb, "last", "--home", ""] for verb in JOB_VERBS),
        ["submit", ""],
        ["submit", "beam.inp", "--with", ""],
        ["submit", "beam.inp", "--solver", ""],
        ["submit", "beam.inp", "--after", ""],
        ["run", "ccx", ""],
        ["run", "", "beam.inp"],
        ["run", "ccx", "beam.inp", "--out", ""],
        ["get", "last", "--out", ""],
        ["try", "ccx", ""],
        ["config", "check", "--config", ""],
        ["pause", ""],
    ],
    ids=" ".join,
)
def test_an_empty_argument_is_a_mistake(fake: FakeDaemon, run: Run, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "beam.inp").write_text("deck")
    result = run(*words)
    assert (result.status, result.out, fake.requests) == (2, "", [])
    assert "it is empty" in result.err


@pytest.mark.parametrize("verb", JOB_VERBS)
@pytest.mark.parametrize("name", ["../x", "a/b", "/", "bäm"])
def test_what_no_id_can_begin_with_is_no_such_job(fake: FakeDaemon, run: Run, verb: str, name: str) -> None:
    result = run(verb, name)
    assert (result.status, result.out, fake.requests) == (4, "", [])
    assert f"no job's id begins with {name!r}" in result.err


def test_text_that_cannot_be_sent_is_a_mistake(fake: FakeDaemon, run: Run) -> None:
    for words in (["show", "\udcff"], ["pause", "--note", "\udcff"], ["list", "--user", "\udcff"]):
        result = run(*words)
        assert (result.status, fake.requests) == (2, [])
        assert "is not UTF-8" in result.err


def test_a_key_may_be_any_text(fake: FakeDaemon, run: Run, tmp_path: Path) -> None:
    fake.answers["POST", "/v1/jobs"] = Submitted(BEAM, "beam.inp", "ccx")
    (tmp_path / "beam.inp").write_text("deck")
    assert run("submit", "beam.inp", "--key", "Ω-3").status == 0
    assert '"key":"Ω-3"'.encode() in fake.requests[0].body


# --- homes that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        *(["status"], ["list"], ["show", "x"], ["submit", "beam.inp"], ["run", "ccx", "beam.inp"], ["doctor"]),
        *(["init"], ["serve"], ["config", "check"], ["try", "ccx", "beam.inp"]),
    ],
    ids=" ".join,
)
@pytest.mark.skipif(sys.platform == "win32", reason="what is not there on Windows yet says so first")
def test_a_home_that_is_a_file_is_told(run: Run, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "beam.inp").write_text("deck")
    for home in ("/dev/null", "beam.inp"):
        result = run(*words, "--home", home)
        assert (result.status, result.out) == (2, "")
        assert f"{Path(home).absolute()} is not a folder" in result.err
        assert "Traceback" not in result.err


@pytest.mark.parametrize("words", [["status"], ["list"], ["run", "ccx", "beam.inp"]], ids=" ".join)
def test_a_home_that_can_never_be_is_told(run: Run, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "beam.inp").write_text("deck")
    result = run(*words, "--home", "beam.inp/home")
    assert result.status == 2
    assert f"{tmp_path}/beam.inp/home is not a folder" in result.err


@pytest.mark.skipif(sys.platform != "linux", reason="the doctor knows Linux only")
def test_the_doctor_has_nothing_to_report_about_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = run("doctor", "--home", "file/home")
    assert "there is no" in result.out
    assert "please report it" not in result.out


# --- output that cannot be written --------------------------------------------------------------------------------

FULL = Path("/dev/full")


def redirected(words: list[str], home: Path, *, out: str, err: str | None = None) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "solvisor_service.cli", *words, "--home", str(home)]
    shell = f"{shlex.join(command)} {out} {err or ''}"
    return subprocess.run(["/bin/sh", "-c", shell], stderr=subprocess.PIPE, check=False)


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["list"], ["explain", "last"]], ids=" ".join)
def test_a_full_disk_behind_stdout_is_told(fake: FakeDaemon, words: list[str]) -> None:
    fake.answers["GET", "/v1/status"] = status()
    fake.answers["GET", "/v1/jobs/last/explain"] = explanation("waits.")
    fake.answers["GET", "/v1/jobs"] = JobPage((row(),), None)
    done = redirected(words, fake.home, out="> /dev/full")
    assert done.returncode == 1
    assert done.stderr == b"solvisor: what is to be printed cannot be written: No space left on device\n"


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")
def test_where_nothing_can_be_said_the_status_says_it(fake: FakeDaemon) -> None:
    assert redirected(["show", "gone"], fake.home, out="> /dev/null", err="2> /dev/full").returncode == 4
    assert redirected(["show", "gone"], fake.home, out="> /dev/full", err="2> /dev/full").returncode == 4


def test_a_stdout_that_is_closed_is_no_error(fake: FakeDaemon) -> None:
    fake.answers["GET", "/v1/status"] = status()
    done = redirected(["status"], fake.home, out=">&-")
    assert (done.returncode, done.stderr) == (0, b"")


# --- hints that can be pasted -------------------------------------------------------------------------------------


@pytest.fixture
def odd_home(tmp_path: Path) -> Iterator[FakeDaemon]:
    """A home with a name that a shell would split."""
    with fake_daemon(tmp_path / "my home") as daemon:
        yield daemon


OPTION = "--home 'my home'"


def test_commands_of_the_daemon_get_the_home_that_was_given(odd_home: FakeDaemon, run: Run) -> None:
    failed = row(state="failed")
    paused = {"reason": "paused", "label": "paused", "holds": True, "text": "paused; solvisor resume ccx lets it go on"}
    odd_home.answers["GET", "/v1/jobs/last/explain"] = explanation("FAILED", job=failed, next=RETRY, findings=[paused])
    told = run("explain", "last", "--home", "my home").out
    assert f"run it unchanged: solvisor retry {OPTION} beam-1" in told
    assert f"paused; solvisor resume {OPTION} ccx lets it go on" in told
    odd_home.answers["GET", "/v1/status"] = status(problems=("look: solvisor doctor",), home="my home")
    told = run("status", "--home", "my home").out
    assert f"look: solvisor doctor {OPTION}\n" in told
    assert f"or: solvisor submit {OPTION} FILE\n" in told
    assert f"see: solvisor list {OPTION}\n" in run("show", "gone", "--home", "my home").err
    assert f"see: solvisor list {OPTION}\n" in run("cancel", "gone", "--home", "my home").err
    odd_home.answers["POST", "/v1/pause"] = status()
    assert run("pause", "--home", "my home").out.endswith(f"until: solvisor resume {OPTION}\n")
    odd_home.know(view(state="queued", tries=0), "last")
    late = run("wait", "last", "--timeout", "0s", "--home", "my home").err
    assert f"see: solvisor explain {OPTION} {BEAM}\n" in late
    odd_home.answers["GET", f"/v1/jobs/{BEAM}/logs/stdout"] = Raw(b"", {"Solvisor-Offset": "0"})
    assert f"see: solvisor explain {OPTION} {BEAM}\n" in run("logs", "last", "--home", "my home").err


def test_where_no_home_was_given_commands_stay_as_they_are(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/jobs/last/explain"] = explanation("FAILED", job=row(state="failed"), next=RETRY)
    assert f"{RETRY}\n" in run("explain", "last").out


@pytest.mark.parametrize(
    "text",
    [
        "a defect of solvisor",
        "solvisor --home x list",
        "solvisor list --home y",
        "solvisor init --update --home y, or so",
        "solvisor run --help",
        "solvisor runs",
        "no-solvisor run-time",
    ],
)
def test_what_is_no_command_or_has_its_home_stays_as_it_is(odd_home: FakeDaemon, run: Run, text: str) -> None:
    odd_home.answers["GET", "/v1/status"] = status(problems=(text,))
    assert f"PROBLEM  {text}\n" in run("status", "--home", "my home").out


def test_each_command_of_a_text_gets_its_home(odd_home: FakeDaemon, run: Run) -> None:
    text = "first: solvisor resume ccx; then solvisor list --home y; solvisor config check"
    odd_home.answers["GET", "/v1/status"] = status(problems=(text,))
    told = f"first: solvisor resume {OPTION} ccx; then solvisor list --home y; solvisor config check {OPTION}"
    assert f"PROBLEM  {told}\n" in run("status", "--home", "my home").out


def test_how_to_start_a_daemon_can_be_pasted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    started = run("status", "--home", "a b").err
    assert f"solvisor serve --home '{tmp_path}/a b'\n" in started
    made = run("status", "--home", "c d").err
    assert f"solvisor init --home '{tmp_path}/c d'\n" in made


# --- what the daemon's answer leaves unsaid -----------------------------------------------------------------------

CHANGED = "the configuration was changed since this daemon read it; restart it"


_HOLDS = """
import sys
from pathlib import Path
from solvisor import home as homes
lock = homes.lock(homes.Home.at(Path(sys.argv[1])))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_daemon_that_is_starting_is_not_said_to_be_missing(run: Run, tmp_path: Path) -> None:
    (tmp_path / "home" / "state").mkdir(parents=True)
    command = [sys.executable, "-c", _HOLDS, str(tmp_path / "home")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        for words in (["status"], ["list"]):
            result = run(*words)
            assert (result.status, result.out) == (75, "")
            assert result.err.startswith(f"solvisor: pid {holder.pid} holds {tmp_path}/home and does not answer yet: ")
            assert "a daemon is starting" in result.err
            assert "try again soon" in result.err
    result = run("status")
    assert result.status == 3
    assert "no daemon is running" in result.err


@pytest.mark.parametrize("words", [["status"], ["list"], ["submit", "a.inp"]])
def test_a_daemon_that_answers_nothing_is_told_while_it_is_waited_for(
    fake: FakeDaemon, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    for name, seconds in {"QUIET": 0.1, "PROBE": 0.2, "ANSWER": 1.0, "SAFE": 0.0}.items():
        monkeypatch.setattr(client, f"{name}_SECONDS", seconds)
    (tmp_path / "a.inp").write_text("x")
    ended = threading.Event()

    def nothing(_: Request) -> Any:
        ended.wait(30)
        return no_such_job("")

    for asked in [("GET", "/v1/status"), ("GET", "/v1/jobs"), ("POST", "/v1/jobs")]:
        fake.answers[asked] = nothing
    try:
        result = run(*words)
    finally:
        ended.set()
    late, gave_up = result.err.splitlines()
    assert late.startswith(
        f"solvisor: the daemon on {tmp_path}/home has not answered for 0.3 s: it hangs or is stopped"
    )
    assert late.endswith("waiting up to 1 s, Ctrl-C gives up")
    assert "has not answered within 1 s: it hangs or is stopped; read state/log" in gave_up
    assert result.status == 75


def test_a_slow_answer_of_a_daemon_that_lives_is_waited_for_in_silence(
    fake: FakeDaemon, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "QUIET_SECONDS", 0.05)
    probed = threading.Event()

    def says(_: Request) -> Any:
        probed.set()
        return status()

    def late(_: Request) -> Any:
        assert probed.wait(30)
        return JobPage((), None)

    fake.answers["GET", "/v1/status"] = says
    fake.answers["GET", "/v1/jobs"] = late
    result = run("list")
    assert (result.status, "answered" in result.err) == (0, False)


def test_a_refused_submission_tells_the_option_and_a_stale_configuration(
    fake: FakeDaemon, run: Run, tmp_path: Path
) -> None:
    (tmp_path / "odd.xyz").write_text("?")
    fake.answers["POST", "/v1/jobs"] = refused("no_solver", "no solver accepts odd.xyz: say which solver it is for")
    fake.answers["GET", "/v1/status"] = status()
    said = "solvisor: odd.xyz: no solver accepts odd.xyz: say which solver it is for"
    assert run("submit", "odd.xyz").err == f"{said}: --solver NAME\n"
    fake.answers["GET", "/v1/status"] = status(problems=("the disk is full", CHANGED))
    assert run("submit", "odd.xyz").err == f"{said}: --solver NAME; {CHANGED}\n"
    fake.answers["POST", "/v1/jobs"] = refused("solver", 'asks for the solver "new", which does not exist')
    assert run("submit", "odd.xyz", "--solver", "new").err.endswith(f"does not exist; {CHANGED}\n")
    fake.answers["POST", "/v1/jobs"] = refused("missing_input", "it is not there")
    assert run("submit", "odd.xyz").err == "solvisor: odd.xyz: it is not there\n"


def test_resuming_what_is_not_paused_says_what_is(fake: FakeDaemon, run: Run) -> None:
    fake.answers["POST", "/v1/resume"] = refused("not_paused", "not everything is paused; paused: nothing")
    fake.answers["GET", "/v1/status"] = status()
    assert run("resume").err == "solvisor: nothing is paused\n"
    assert run("resume", "ccx").err == "solvisor: ccx is not paused, nor is anything else\n"
    fake.answers["GET", "/v1/status"] = status(paused=(Pause("ccx", None, "2026-11-02T10:00:00Z", None),))
    result = run("resume")
    assert result.status == 1
    assert result.err == "solvisor: no pause of everything is in force; paused: ccx; see: solvisor resume ccx\n"


@pytest.mark.parametrize("follow", [[], ["-f"]])
@pytest.mark.parametrize(
    ("state", "said"),
    [("rejected", "was rejected before it was started"), ("cancelled", "was cancelled before it was started")],
)
def test_a_log_that_was_never_written_is_told(
    fake: FakeDaemon, run: Run, state: str, said: str, follow: list[str]
) -> None:
    fake.know(view(state=state, tries=0, started=None, run_seconds=None), "last")
    fake.answers["GET", f"/v1/jobs/{BEAM}/logs/stdout"] = Raw(b"", {"Solvisor-Offset": "0"})
    result = run("logs", "last", *follow)
    assert (result.status, result.out) == (0, "")
    assert result.err == f"solvisor: {BEAM} {said}, so it wrote nothing; see: solvisor explain {BEAM}\n"


def test_results_that_somebody_removed_are_said_to_be_gone(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(state="succeeded"), "last")
    detail = f"{BEAM} has no file 'manifest.json'; its manifest lists what it has"
    fake.answers["GET", f"/v1/jobs/{BEAM}/manifest"] = refused("no_such_file", detail)
    result = run("get", "last")
    assert result.status == 1
    assert f"the results of {BEAM} are gone from the home" in result.err
    assert "manifest" not in result.err


# --- configuration as JSON ----------------------------------------------------------------------------------------


def test_the_configuration_is_checked_and_shown_for_programs(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "home" / "solvisor.toml"
    config.parent.mkdir()
    config.write_text('[solver.b]\ncommand = ["true"]\n[solver.a]\ncommand = ["no-such-program"]\n')
    checked = run("config", "check", "--json")
    answer = json.loads(checked.out)
    assert (checked.status, checked.err) == (0, "")
    assert (answer["path"], answer["solvers"], answer["faults"]) == (str(config), ["a", "b"], [])
    assert ["no-such-program" in warning for warning in answer["warnings"]] == [True]
    shown = json.loads(run("config", "show", "--json").out)
    assert shown["solver"]["b"]["command"] == ["true"]
    assert "max_jobs" in shown["daemon"], "defaults included"


def test_a_faulty_configuration_is_told_to_programs(run: Run, tmp_path: Path) -> None:
    config = tmp_path / "home" / "solvisor.toml"
    config.parent.mkdir()
    config.write_text("[solver.x]\ncomand = []\ntimeuot = 3\n")
    checked = run("config", "check", "--json")
    answer = json.loads(checked.out)
    assert (checked.status, checked.err) == (2, "")
    assert answer == {"path": str(config), "solvers": [], "warnings": [], "faults": answer["faults"]}
    assert any('did you mean "command"' in fault for fault in answer["faults"])
    assert any('did you mean "timeout"' in fault for fault in answer["faults"])
    config.unlink()
    assert "cannot be read" in json.loads(run("config", "check", "--json").out)["faults"][0]
