"""Verdicts: real solvers on good and bad inputs, and every check on its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import pytest

from solvisor import config
from solvisor.filetext import OVERLAP, WINDOW, search
from solvisor.judge import LOGS, judge
from solvisor.kinds import CommandSolver
from solvisor.model import Cause, Check, ExitFacts, JobSpec, Source, Verdict
from solvisor.solvers.command import Command, prepare

DATA = Path(__file__).parent.parent / "data"
PROFILES = config.load(DATA / "profiles.toml")


def spec(primary: str, solver: str = "x", **rest: Any) -> JobSpec:
    return JobSpec(name=primary, solver=solver, primary=primary, inputs=(), source=Source("inbox", primary), **rest)


def make_pipe(path: Path) -> None:
    if sys.platform != "win32":
        os.mkfifo(path)


# --- real solvers -----------------------------------------------------------------------------------------------------


def program_folders(program: str) -> list[str]:
    """Where to look for a solver: the PATH, and for CBC the wheel that carries one."""
    folders = os.environ["PATH"].split(os.pathsep)
    if program == "cbc":
        pulp = pytest.importorskip("pulp", reason="PuLP, which carries the CBC program, is not installed")
        folders.insert(0, str(Path(pulp.apis.PULP_CBC_CMD.pulp_cbc_path).parent))
    return folders


def run(tmp_path: Path, solver_name: str, sample: str, params: dict[str, Any] | None = None) -> Verdict:
    """Run a sample as a job would be run, and judge it."""
    solver = PROFILES.solver[solver_name]
    assert isinstance(solver, CommandSolver)
    program = solver.command[0]
    environ = {**os.environ, "PATH": os.pathsep.join(program_folders(program))}
    if shutil.which(program, path=environ["PATH"]) is None:
        pytest.skip(f"{program} is not installed")
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        shutil.copy(DATA / "samples" / sample, tmp_path / name)
    job = spec(Path(sample).name, solver_name, params=params or {})
    command = Command("command", solver.command, solver, solver_name, environ, DATA, {})
    prepared = prepare(command, job, str(tmp_path))
    timed_out = False
    with (tmp_path / "stdout.log").open("ab") as stdout, (tmp_path / "stderr.log").open("ab") as stderr:
        process = subprocess.Popen(
            prepared.argv,
            env=prepared.env,
            cwd=tmp_path / "output",
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
        )
        try:
            process.wait(solver.timeout)
        except subprocess.TimeoutExpired:
            timed_out = True
            process.kill()
            process.wait()
    code = process.returncode
    facts = ExitFacts(code if code >= 0 else None, -code if code < 0 else None, 0, stopped=timed_out)
    return judge(solver, job, tmp_path, facts, timed_out=timed_out)


GOOD = [
    ("ccx", "ccx/beam.inp"),
    ("glpsol", "glpk/diet.mod"),
    ("ngspice", "ngspice/rc_batch.cir"),
    ("ngspice", "ngspice/rc.cir"),
    ("mkvmerge", "mkv/in.mp4"),
    ("mkvmerge", "mkv/sub.srt"),
    ("cbc", "glpk/knapsack.lp"),
]

BAD = [
    (
        "ccx",
        "ccx/beam_bad.inp",
        (Cause.EXIT, "exit_201"),
        "no elastic constants were assigned to any material in a (thermo)mechanical calculation",
    ),
    ("ccx", "ccx/beam_garbage.inp", (Cause.CHECK, "output_small"), "C3D99 is an unknown element type"),
    ("ccx", "ccx/no_include.inp", (Cause.CHECK, "output_missing"), "cannot open file missing.inc"),
    ("glpsol", "glpk/bad.mod", (Cause.EXIT, "exit_1"), "bad.mod:1: syntax error in expression"),
    ("glpsol-lp", "glpk/infeasible.lp", (Cause.CHECK, "output_match"), "LP HAS NO PRIMAL FEASIBLE SOLUTION"),
    ("glpsol-lp", "glpk/hard.lp", (Cause.TIMEOUT, "timeout"), "ran longer than 2 s and was stopped"),
    (
        "ngspice",
        "ngspice/bad.cir",
        (Cause.EXIT, "exit_1"),
        "Error on line 3 or its substitute: q1 a b nosuchmodel could not find a valid modelname",
    ),
    (
        "ngspice",
        "ngspice/singular.cir",
        (Cause.EXIT, "exit_1"),
        "Error: Transient op failed, timestep too small",
    ),
    (
        "mkvmerge",
        "mkv/notvideo.mp4",
        (Cause.EXIT, "exit_2"),
        "The type of file 'notvideo.mp4' could not be recognized.",
    ),
    (
        "mkvmerge",
        "mkv/truncated.mp4",
        (Cause.EXIT, "exit_2"),
        "Quicktime/MP4 reader: Have not found any header atoms.",
    ),
    ("cbc", "glpk/infeasible.lp", (Cause.CHECK, "output_match"), "Linear relaxation infeasible"),
    ("cbc", "glpk/garbage.lp", (Cause.CHECK, "output_missing"), "Unable to locate objective function"),
    ("cbc", "glpk/crash.lp", (Cause.SIGNAL, "SIGSEGV"), "killed by SIGSEGV"),
    ("cbc", "glpk/hard.lp", (Cause.CHECK, "output_match"), "Stopped on time limit"),
]


@pytest.mark.parametrize(("solver", "sample"), GOOD, ids=[sample for _, sample in GOOD])
def test_a_good_input_succeeds(solver: str, sample: str, tmp_path: Path) -> None:
    verdict = run(tmp_path, solver, sample)
    assert (verdict.cause, verdict.code, verdict.message) == (None, None, None), verdict
    assert all(check.ok for check in verdict.checks)
    assert verdict.log_tail


@pytest.mark.parametrize(
    ("solver", "sample", "why", "message"), BAD, ids=[f"{solver}:{sample}" for solver, sample, *_ in BAD]
)
def test_a_bad_input_fails_with_the_sentence_of_its_solver(
    solver: str, sample: str, why: tuple[Cause, str], message: str, tmp_path: Path
) -> None:
    params = {"seconds": 1} if solver == "cbc" else None
    verdict = run(tmp_path, solver, sample, params)
    assert (verdict.cause, verdict.code) == why, verdict
    assert verdict.message == message


def test_every_check_is_listed_whatever_failed_first(tmp_path: Path) -> None:
    verdict = run(tmp_path, "ccx", "ccx/beam_bad.inp")
    assert verdict.checks[:4] == (
        Check("exit", "0", "201", ok=False),
        Check("output beam_bad.frd", "at least 1kB", "missing", ok=False),
        Check("output beam_bad.sta", "not empty", "98 bytes", ok=True),
        Check("output beam_bad.sta", r"matches ^\s+[0-9]+\s+[0-9]", "no match", ok=False),
    )
    last = verdict.checks[4]
    assert (last.check, last.want, last.ok) == (r"no \*ERROR in logs", "not found", False)
    line = int(last.got.removeprefix("stdout.log:"))
    assert "*ERROR" in (tmp_path / "stdout.log").read_text().splitlines()[line - 1]
    assert "*ERROR in calinput" in verdict.log_tail


# --- single checks ----------------------------------------------------------------------------------------------------


class Attempt:
    """The folder of a job whose solver has ended, and its verdict under a ``success`` table given as TOML."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.output.mkdir()
        self.logs("", "")

    def logs(self, stdout: str, stderr: str) -> None:
        (self.folder / "stdout.log").write_text(stdout, newline="")
        (self.folder / "stderr.log").write_text(stderr, newline="")

    def judge(
        self,
        success: str,
        *,
        exit_code: int | None = 0,
        signal: int | None = None,
        more: str = "",
        primary: str = "beam.inp",
        params: dict[str, Any] | None = None,
        timed_out: bool = False,
        unchanged: Collection[str] = (),
        silent: Collection[str] = (),
        **facts: Any,
    ) -> Verdict:
        text = f'[solver.x]\ncommand = ["x"]\n{more}\n[solver.x.success]\n{success}\n'
        solver = config.parse(text, Path("solvisor.toml")).solver["x"]
        if signal is not None:
            exit_code = None
        ended = ExitFacts(exit_code, signal, 0, **facts)
        job = spec(primary, params=params or {})
        return judge(solver, job, self.folder, ended, timed_out=timed_out, unchanged=unchanged, silent=silent)


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    return Attempt(tmp_path)


def test_without_any_check_exit_code_0_is_success(attempt: Attempt) -> None:
    verdict = attempt.judge("")
    assert verdict == Verdict(cause=None, checks=(Check("exit", "0", "0", ok=True),))


def test_an_exit_code_that_is_not_allowed(attempt: Attempt) -> None:
    attempt.logs("computing\n", "\x1b[31mno license\x1b[0m\n\n")
    verdict = attempt.judge("exit = [0, 1]", exit_code=3)
    assert (verdict.cause, verdict.code) == (Cause.EXIT, "exit_3")
    assert verdict.message == r"exited with 3, allowed: 0 or 1; last line of stderr: \x1b[31mno license\x1b[0m"
    assert verdict.log_tail == r"\x1b[31mno license\x1b[0m"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize(("number", "name"), [(11, "SIGSEGV"), (9, "SIGKILL"), (40, "signal 40")])
def test_a_signal_is_named(attempt: Attempt, number: int, name: str) -> None:
    verdict = attempt.judge("", signal=number)
    assert (verdict.cause, verdict.code, verdict.message) == (Cause.SIGNAL, name, f"killed by {name}")
    assert verdict.checks == (Check("exit", "0", name, ok=False),)


def test_the_first_that_applies_is_the_cause(attempt: Attempt) -> None:
    attempt.logs("boom\n", "")
    success = 'outputs = ["gone"]\nlog_forbid = ["boom"]'

    def cause(**how: Any) -> tuple[Cause | None, str | None]:
        verdict = attempt.judge(success, **how)
        assert [check.ok for check in verdict.checks[-2:]] == [False, False], "every check is listed"
        return verdict.cause, verdict.code

    assert cause(unkillable=True, exit_code=None, timed_out=True) == (Cause.UNKILLABLE, "unkillable")
    assert cause(signal=15, timed_out=True) == (Cause.TIMEOUT, "timeout")
    assert cause(exit_code=0, timed_out=True) == (Cause.TIMEOUT, "timeout")
    assert cause(signal=6) == (Cause.SIGNAL, "SIGABRT")
    assert cause(exit_code=2) == (Cause.EXIT, "exit_2")
    assert cause(exit_code=0) == (Cause.CHECK, "output_missing")
    (attempt.output / "gone").write_text("here")
    assert attempt.judge(success).code == "log_forbid"


def test_a_timeout_says_how_long_and_what_the_solver_had_said(attempt: Attempt) -> None:
    more, pattern = 'timeout = "30m"', "error_pattern = '^ERROR: (.*)'"
    stopped = attempt.judge(pattern, more=more, signal=9, timed_out=True, stopped=True)
    assert stopped.message == "ran longer than 30 min and was stopped"
    attempt.logs("ERROR: license server silent\n", "")
    stopped = attempt.judge(pattern, more=more, signal=9, timed_out=True, stopped=True)
    assert stopped.message == "ran longer than 30 min and was stopped; it had said: license server silent"


def test_the_job_s_own_timeout_is_the_one_that_is_named(attempt: Attempt) -> None:
    solver = config.parse('[solver.x]\ncommand = ["x"]\ntimeout = "30m"', Path("c")).solver["x"]
    job = spec("beam.inp", timeout_seconds=90.0)
    verdict = judge(solver, job, attempt.folder, ExitFacts(None, 9, 0), timed_out=True)
    assert verdict.message == "ran longer than 90 s and was stopped"


class TestOutputs:
    def check(self, attempt: Attempt, success: str, **how: Any) -> tuple[str | None, list[Check], str | None]:
        verdict = attempt.judge(success, **how)
        return verdict.code, list(verdict.checks[1:]), verdict.message

    def test_missing(self, attempt: Attempt) -> None:
        code, checks, message = self.check(attempt, 'outputs = ["{stem}.frd"]')
        assert code == "output_missing"
        assert checks == [Check("output beam.frd", "not empty", "missing", ok=False)]
        assert message == "output beam.frd is missing"

    def test_empty(self, attempt: Attempt) -> None:
        (attempt.output / "beam.frd").touch()
        code, checks, message = self.check(attempt, 'outputs = ["{stem}.frd"]')
        assert code == "output_empty"
        assert checks == [Check("output beam.frd", "not empty", "empty", ok=False)]
        assert message == "output beam.frd is empty"

    def test_too_small(self, attempt: Attempt) -> None:
        (attempt.output / "beam.frd").write_text(" 9999\n")
        code, checks, message = self.check(attempt, 'outputs = [{ path = "{stem}.frd", min_bytes = "1kB" }]')
        assert code == "output_small"
        assert checks == [Check("output beam.frd", "at least 1kB", "6 bytes", ok=False)]
        assert message == "output beam.frd has 6 bytes, wanted at least 1kB"

    def test_match(self, attempt: Attempt) -> None:
        (attempt.output / "beam.sta").write_text("STEP INC\n")
        success = "outputs = [{ path = '{stem}.sta', match = '^ +1 ' }]"
        code, checks, message = self.check(attempt, success)
        assert code == "output_match"
        assert checks[1] == Check("output beam.sta", "matches ^ +1 ", "no match", ok=False)
        assert message == "output beam.sta does not match ^ +1"
        (attempt.output / "beam.sta").write_text("STEP INC\n  1  1\n")
        code, checks, _ = self.check(attempt, success)
        assert (code, checks[1].got) == (None, "line 2")

    def test_a_good_one_among_several_is_enough(self, attempt: Attempt) -> None:
        (attempt.output / "part").mkdir()
        (attempt.output / "part" / "a.csv").touch()
        success = 'outputs = ["part/*.csv"]'
        assert self.check(attempt, success)[1] == [
            Check("output part/*.csv", "not empty", "part/a.csv: empty", ok=False)
        ]
        (attempt.output / "part" / "b.csv").write_text("1,2\n")
        code, checks, _ = self.check(attempt, success)
        assert (code, checks[0].got) == (None, "part/b.csv: 4 bytes")
        (attempt.output / "part" / "b.csv").unlink()
        (attempt.output / "part" / "a.csv").unlink()
        assert self.check(attempt, success)[1][0].got == "missing"

    def test_one_file_must_be_large_enough_and_match(self, attempt: Attempt) -> None:
        (attempt.output / "a.out").write_text("done")
        (attempt.output / "b.out").write_text("x" * 100)
        success = "outputs = [{ path = '*.out', min_bytes = 50, match = 'done' }]"
        assert self.check(attempt, success)[0] in ("output_small", "output_match")
        (attempt.output / "c.out").write_text("x" * 100 + "done")
        assert self.check(attempt, success)[0] is None

    def test_a_name_with_pattern_characters_means_itself(self, attempt: Attempt) -> None:
        (attempt.output / "a1.frd").write_text("data")
        success = 'outputs = ["{stem}.frd"]'
        assert self.check(attempt, success, primary="a[1].inp")[0] == "output_missing"
        (attempt.output / "a[1].frd").write_text("data")
        assert self.check(attempt, success, primary="a[1].inp")[0] is None

    def test_links_are_not_followed(self, attempt: Attempt, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "beam.frd").write_text("data of someone else")
        (attempt.output / "beam.frd").symlink_to(outside / "beam.frd")
        (attempt.output / "sub").symlink_to(outside)
        code, checks, message = self.check(attempt, 'outputs = ["{stem}.frd", "sub/beam.frd"]')
        assert code == "output_missing"
        assert [check.got for check in checks] == ["a symbolic link", "missing"]
        assert message == "output beam.frd is a symbolic link"

    @pytest.mark.parametrize("pattern", ["{stem}.frd", "*.frd"])
    def test_an_unchanged_input_is_no_output_whether_its_copy_is_still_there_or_not(
        self, attempt: Attempt, pattern: str
    ) -> None:
        success = f"outputs = [{{ path = '{pattern}', match = 'result' }}]"
        (attempt.output / "beam.frd").write_text("result of last week")
        assert attempt.judge(success).cause is None
        before = attempt.judge(success, unchanged={"beam.frd", "beam.inp"})
        assert (before.cause, before.code) == (Cause.CHECK, "output_missing")
        assert before.message == "output beam.frd is only the input of that name, unchanged"
        assert before.checks[1].got.endswith("only the input of that name, unchanged")
        (attempt.output / "beam.frd").unlink()
        assert attempt.judge(success, unchanged={"beam.frd", "beam.inp"}) == before
        (attempt.output / "other.frd").write_text("result")
        expected = None if pattern == "*.frd" else Cause.CHECK
        assert attempt.judge(success, unchanged={"beam.frd", "beam.inp"}).cause is expected

    def test_an_unchanged_input_in_a_folder_is_no_output(self, attempt: Attempt) -> None:
        (attempt.output / "mesh").mkdir()
        (attempt.output / "mesh" / "a.csv").write_text("1")
        verdict = attempt.judge('outputs = ["*/*.csv"]', unchanged={"mesh/a.csv"})
        assert verdict.checks[1].got == "mesh/a.csv: only the input of that name, unchanged"
        assert attempt.judge('outputs = ["*/*.csv"]', unchanged={"a.csv"}).cause is None

    @pytest.mark.skipif(sys.platform == "win32", reason="names are not bytes here")
    @pytest.mark.parametrize("good", [True, False])
    def test_odd_names_are_escaped(self, attempt: Attempt, good: bool) -> None:
        (attempt.output / os.fsdecode(b"b\xe4r\n.frd")).write_text("data" if good else "")
        verdict = attempt.judge("outputs = ['*.frd']")
        assert verdict.checks[1].got == "b\\xe4r\\x0a.frd: " + ("4 bytes" if good else "empty")
        assert verdict.message == (None if good else "output b\\xe4r\\x0a.frd is empty")
        msgspec.json.encode(verdict)

    def test_a_folder_on_the_way_is_no_link_whether_it_is_named_or_fits_a_pattern(
        self, attempt: Attempt, tmp_path: Path
    ) -> None:
        (tmp_path / "others").mkdir()
        (tmp_path / "others" / "beam.frd").write_text("data of someone else")
        (attempt.output / "sub").symlink_to(tmp_path / "others")
        (attempt.output / "real").mkdir()
        (attempt.output / "real" / "beam.frd").write_text("data")
        (attempt.output / "file").write_text("data")
        for path in ("sub/beam.frd", "s*/beam.frd", "sub/*", "file/beam.frd", "f*/*"):
            assert self.check(attempt, f"outputs = ['{path}']")[0] == "output_missing", path
        for path in ("real/beam.frd", "r*/beam.frd", "real/*", "r*/*", "./real/beam.frd"):
            assert self.check(attempt, f"outputs = ['{path}']")[0] is None, path

    def test_an_output_folder_that_is_a_link_has_nothing_in_it(self, attempt: Attempt, tmp_path: Path) -> None:
        attempt.output.rmdir()
        (tmp_path / "others").mkdir()
        (tmp_path / "others" / "beam.frd").write_text("data of someone else")
        attempt.output.symlink_to(tmp_path / "others")
        assert self.check(attempt, "outputs = ['{stem}.frd']")[0] == "output_missing"

    @pytest.mark.skipif(sys.platform == "win32", reason="a limit of another kind")
    def test_a_path_longer_than_the_kernel_takes_is_no_output(self, attempt: Attempt) -> None:
        depth = 16
        fd = os.open(attempt.output, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d" * 250, dir_fd=fd)
            below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("x" * 250, os.O_WRONLY | os.O_CREAT, dir_fd=fd))
        os.close(fd)
        assert self.check(attempt, f"outputs = ['{'*/' * depth}*']")[0] == "output_missing"

    def test_a_parameter_cannot_lead_outside(self, attempt: Attempt, tmp_path: Path) -> None:
        (tmp_path / "secret").write_text("data")
        (attempt.output / "here").write_text("data")
        more = 'params = { where = { type = "str" } }'
        success = 'outputs = ["{params.where}"]'
        (attempt.output / "sub").mkdir()
        for where in ("../secret", "sub/../../secret", "sub/../here", str(tmp_path / "secret"), "..", ""):
            assert self.check(attempt, success, more=more, params={"where": where})[0] == "output_missing"
            assert self.check(attempt, success, more=more, params={"where": f"{where}*"})[0] == "output_missing"
        assert self.check(attempt, success, more=more, params={"where": "here"})[0] is None

    def test_a_parameter_without_value_fails_the_check(self, attempt: Attempt) -> None:
        code, checks, _ = self.check(
            attempt, 'outputs = ["{params.where}"]', more='params = { where = { type = "str" } }'
        )
        assert code == "output_missing"
        assert checks[0].got == "no value for params.where"

    @pytest.mark.skipif(sys.platform == "win32", reason="no named pipes here")
    def test_a_pipe_or_folder_is_no_output(self, attempt: Attempt) -> None:
        make_pipe(attempt.output / "beam.frd")
        (attempt.output / "beam.dat").mkdir()
        success = "outputs = [{ path = '{stem}.frd', match = 'x' }, '{stem}.dat']"
        _, checks, _ = self.check(attempt, success)
        assert [check.got for check in checks] == ["not a regular file", "not a regular file", "a folder"]


class TestLogs:
    def test_a_forbidden_line_is_named(self, attempt: Attempt) -> None:
        attempt.logs("one\ntwo\n *ERROR in calinput\n", "")
        verdict = attempt.judge(r"log_forbid = ['\*ERROR', 'NaN']")
        assert (verdict.cause, verdict.code) == (Cause.CHECK, "log_forbid")
        assert verdict.checks[1:] == (
            Check(r"no \*ERROR in logs", "not found", "stdout.log:3", ok=False),
            Check("no NaN in logs", "not found", "not found", ok=True),
        )
        assert verdict.message == "stdout.log:3: *ERROR in calinput"

    def test_stderr_is_searched_too(self, attempt: Attempt) -> None:
        attempt.logs("fine\n", "a\nb NaN\n")
        assert attempt.judge("log_forbid = ['NaN']").checks[1].got == "stderr.log:2"

    def test_the_message_is_the_first_match_in_stdout_then_stderr(self, attempt: Attempt) -> None:
        attempt.logs("ok\n", "Error: from stderr\n")
        pattern = "error_pattern = '^Error: (.*)'"
        assert attempt.judge(pattern, exit_code=1).message == "from stderr"
        attempt.logs("Error:   from\tstdout \x1b\u202e\nError: second\n", "Error: from stderr\n")
        assert attempt.judge(pattern, exit_code=1).message == "from stdout"
        assert attempt.judge("error_pattern = '^Error: .*'", exit_code=1).message == "Error: from stdout"

    def test_a_success_has_no_message(self, attempt: Attempt) -> None:
        attempt.logs("Error: but it recovered\n", "")
        assert attempt.judge("error_pattern = '^Error: (.*)'").message is None

    def test_an_alternative_without_the_group_gives_the_whole_match(self, attempt: Attempt) -> None:
        attempt.logs("Unable to open file\n", "")
        verdict = attempt.judge("error_pattern = '^Error: (.*)|^Unable.*'", exit_code=1)
        assert verdict.message == "Unable to open file"

    def test_a_long_message_is_cut(self, attempt: Attempt) -> None:
        attempt.logs("Error: " + "x" * 5000, "")
        message = attempt.judge("error_pattern = '^Error: (.*)'", exit_code=1).message
        assert message == "x" * 1997 + "..."

    def test_a_cut_log_is_never_success_where_it_had_to_be_searched(self, attempt: Attempt) -> None:
        verdict = attempt.judge("log_forbid = ['NaN']", log_cut_bytes=10 << 20)
        assert (verdict.cause, verdict.code, verdict.log_truncated) == (Cause.CHECK, "log_cut", True)
        assert verdict.checks[-1] == Check("logs complete", "nothing cut", "10MiB cut", ok=False)
        assert (
            verdict.message == "10MiB of its log were cut out before they could be searched for errors; raise log_max"
        )
        verdict = attempt.judge("", log_cut_bytes=10 << 20)
        assert (verdict.cause, verdict.log_truncated) == (None, True)

    @pytest.mark.skipif(sys.platform == "win32", reason="no named pipes here")
    @pytest.mark.parametrize("how", ["removed", "link", "folder", "pipe"])
    def test_a_log_that_cannot_be_searched_is_no_success(self, attempt: Attempt, how: str, tmp_path: Path) -> None:
        log = attempt.folder / "stdout.log"
        log.unlink()
        if how == "link":
            (tmp_path / "clean").write_text("fine")
            log.symlink_to(tmp_path / "clean")
        elif how == "folder":
            log.mkdir()
        elif how == "pipe":
            make_pipe(log)
        verdict = attempt.judge("log_forbid = ['NaN']")
        assert (verdict.cause, verdict.code) == (Cause.CHECK, "log_unreadable")
        assert verdict.checks[1].got.startswith("stdout.log cannot be read: ")
        assert attempt.judge("").cause is None

    def test_the_tail_is_short_and_printable(self, attempt: Attempt) -> None:
        attempt.logs("".join(f"line {n}\n" for n in range(100)), "")
        assert attempt.judge("").log_tail == "\n".join(f"line {n}" for n in range(80, 100))
        (attempt.folder / "stdout.log").write_bytes(b"x" * 9000 + b"\n\xff\x1b]0;t\x07\tend\n")
        assert attempt.judge("").log_tail == "\ufffd\\x1b]0;t\\x07\tend"
        attempt.logs("Progress: 5%\rProgress: 100%\rdone\r\n", "")
        assert attempt.judge("").log_tail == "done"
        attempt.logs("y" * 9000, "")
        assert attempt.judge("").log_tail == "y" * 4096

    @pytest.mark.parametrize("success", ["", "log_forbid = ['^$']", "log_forbid = ['NaN']", "error_pattern = '^$'"])
    @pytest.mark.parametrize("exit_code", [0, 1])
    def test_what_is_known_to_be_empty_need_not_be_read(self, attempt: Attempt, success: str, exit_code: int) -> None:
        attempt.logs("", "")
        read = attempt.judge(success, exit_code=exit_code)
        for log in LOGS:
            (attempt.folder / log).unlink()
        assert attempt.judge(success, exit_code=exit_code, silent=LOGS) == read
        attempt.logs("the end", "")
        assert attempt.judge("", exit_code=exit_code, silent={"stderr.log"}).log_tail == "the end"

    def test_the_tail_is_of_the_log_that_tells_more(self, attempt: Attempt) -> None:
        attempt.logs("all went well\n", "a warning\n")
        assert attempt.judge("").log_tail == "all went well"
        assert attempt.judge("", exit_code=1).log_tail == "a warning"
        assert attempt.judge("error_pattern = 'went'", exit_code=1).log_tail == "all went well"
        attempt.logs("", "only this\n")
        assert attempt.judge("").log_tail == "only this"


class TestSearch:
    """Files longer than a window."""

    def find(self, path: Path, pattern: str) -> tuple[str, int] | None:
        (found,) = search(path, [re.compile(pattern, re.MULTILINE)])
        return (found.text, found.line) if found else None

    @pytest.mark.parametrize("before", [0, 1, 17])
    @pytest.mark.parametrize(
        "at", [WINDOW - OVERLAP - 40, WINDOW - OVERLAP, WINDOW - 18, WINDOW, 2 * WINDOW - OVERLAP, 2 * WINDOW + 7]
    )
    def test_a_match_at_any_place_is_found_once_with_its_line(self, tmp_path: Path, at: int, before: int) -> None:
        path = tmp_path / "log"
        filler = "0123456789abcde\n" * (at // 16) + "x" * (at % 16) + "y" * before
        text = filler + "\nERROR: first\nsecond\n\nERROR: other\n" + "tail\n" * 50_000
        path.write_text(text)
        want = filler.count("\n") + 2
        assert self.find(path, r"^ERROR: (.*(?:\n.+)*)") == ("first\nsecond", want)
        assert self.find(path, r"(?<=: )other$") == ("other", want + 3)
        assert self.find(path, "not there") is None

    def test_the_edge_of_a_window_is_no_line_start(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_text("x" * (3 * WINDOW))
        assert self.find(path, "^x{5}") == ("xxxxx", 1)
        path.write_text("a" + "x" * (3 * WINDOW))
        assert self.find(path, "^x") is None
        assert self.find(path, r"\bx") is None

    def test_letters_cut_by_a_window_are_whole(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_text("x" * (WINDOW - 1) + "\u00e4\u20ac\nERROR\n", encoding="utf-8")
        assert self.find(path, "x\u00e4\u20ac$") == ("x\u00e4\u20ac", 1)
        assert self.find(path, "^ERROR") == ("ERROR", 2)

    def test_line_ends_of_windows_and_progress_displays(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_bytes(b"one\r\ntwo\r\n5%\r10%\rERROR: x\r\nlast\r\n")
        assert self.find(path, r"^two$\n") == ("two\n", 2)
        assert self.find(path, "^ERROR: (.*)$") == ("x", 3)
        first = b"\nERROR: one\r"  # the window ends between the two characters of a line end
        path.write_bytes(b"x" * (WINDOW - len(first)) + first + b"\ntwo\r\n")
        assert self.find(path, r"^ERROR: (.*\n.+)$") == ("one\ntwo", 2)

    @pytest.mark.skipif(sys.platform != "linux", reason="holes in files are Linux's here")
    def test_the_hole_of_a_cut_log_costs_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        with path.open("wb") as log:
            log.write(b"head\n")
            log.seek(50 << 30)
            log.write(b"ERROR: at the end\n")
        assert self.find(path, "ERROR: (.*)") == ("at the end", 2)

    def test_memory_stays_bounded(self, tmp_path: Path) -> None:
        path = tmp_path / "log"
        path.write_bytes(b"a line of some length\n" * (32 * WINDOW // 22))
        tracemalloc.start()
        assert self.find(path, "not there") is None
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 12 * WINDOW
