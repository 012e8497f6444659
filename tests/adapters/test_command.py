"""The kind ``command``: what is executed, with which environment; programs and scripts are real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from solvisor import config
from solvisor.backends.local import LocalBackend
from solvisor.errors import ConfigError, SpawnError
from solvisor.interfaces import Program, Site
from solvisor.kinds import CommandSolver, LineReady, ServerSolver
from solvisor.model import JobSpec, Source
from solvisor.names import stem
from solvisor.solvers import command
from solvisor.solvers.command import Command, prepare, source_environment
from solvisor.solvers.server import ServerKind
from waiting import wait_until

PARAMS = """
[solver.x.params]
load = { type = "float", default = 3.5 }
n    = { type = "int", default = -2 }
fine = { type = "bool", default = true }
note = { type = "str", default = "" }
"""


def spec(primary: str = "beam.inp", **rest: Any) -> JobSpec:
    return JobSpec(name="n", solver="x", primary=primary, inputs=(), source=Source("inbox", primary), **rest)


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A program that prints its arguments as JSON."""
    program = tmp_path / "echo args"
    program.write_text(f"#!{sys.executable} -I\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    program.chmod(0o755)
    return program


def prepared(
    arguments: list[str],
    job: JobSpec,
    folder: Path,
    *,
    program: str = sys.executable,
    more: str = "",
    params: str = PARAMS,
    environ: Mapping[str, str] | None = None,
    script_env: Mapping[str, str] | None = None,
    config_dir: Path = Path("/"),
) -> Program:
    text = f"[solver.x]\ncommand = {json.dumps([program, *arguments])}\n{more}\n{params}"
    solver = config.parse(text, Path("solvisor.toml")).solver["x"]
    assert isinstance(solver, CommandSolver)
    command = Command("command", solver.command, solver, "x", environ or {}, config_dir, script_env or {})
    return prepare(command, job, str(folder))


def arguments(template: list[str], job: JobSpec, folder: Path = Path("/srv/fem/jobs/j"), **how: Any) -> list[str]:
    return list(prepared(template, job, folder, **how).argv[1:])


# --- arguments --------------------------------------------------------------------------------------------------------


def test_what_the_placeholders_stand_for(tmp_path: Path) -> None:
    every = ["-i", "{input}", "{stem}", "{output}/{stem}.log", "{job_dir}", "-n{cpus}", "{{{cpus}}}"]
    assert arguments(every, spec("beam v2.inp", cpus=3), tmp_path) == [
        "-i",
        "beam v2.inp",
        "beam v2",
        f"{tmp_path}/output/beam v2.log",
        str(tmp_path),
        "-n3",
        "{3}",
    ]


def test_the_stem_of_an_input_in_a_folder() -> None:
    assert arguments(["{stem}", "{input}"], spec("mesh/beam.tar.gz")) == ["beam.tar", "mesh/beam.tar.gz"]


@given(st.text(alphabet="ab.", min_size=1, max_size=6).filter(lambda name: name.strip(".")))
@example("a.")
@example(".a")
@example("..a")
@example("a..b")
def test_the_stem_is_what_comes_before_the_last_suffix(name: str) -> None:
    known = PurePosixPath(name).stem
    assert stem(name) == stem(f"mesh/{name}") == (name if name.endswith(".") else known)


def test_params() -> None:
    every = ["{params.load}", "{params.n}", "{params.fine}", "[{params.note}]"]
    assert arguments(every, spec()) == ["3.5", "-2", "true", "[]"]
    given = {"load": 2.0, "n": 7, "fine": False, "note": "a b"}
    assert arguments(every, spec(params=given)) == ["2.0", "7", "false", "[a b]"]


def test_a_param_without_value_names_itself() -> None:
    with pytest.raises(SpawnError, match=r"solver x needs a value for params\.a; give it in a job file") as caught:
        arguments(["{params.a}"], spec(), params='params.a = { type = "int" }')
    assert caught.value.reason == "param"


def test_a_param_that_a_reload_made_illegal_is_not_passed_on() -> None:
    with pytest.raises(SpawnError, match=r'does not allow params\.note any more: "-rf" starts with -') as caught:
        arguments(["{params.note}"], spec(params={"note": "-rf"}))
    assert caught.value.reason == "param"


def test_fault_81_an_input_never_looks_like_an_option() -> None:
    assert arguments(["{input}", "-f={input}"], spec("-rf.inp")) == ["./-rf.inp", "-f=./-rf.inp"]
    assert arguments(["-j", "x{stem}"], spec("-rf.inp")) == ["-j", "x-rf"]
    with pytest.raises(SpawnError) as caught:
        arguments(["-i", "{stem}"], spec("-rf.inp"))
    assert caught.value.reason == "name"
    assert str(caught.value) == '"-rf" would be taken for an option of x; rename -rf.inp and drop it again'


HOSTILE = st.text(alphabet=st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40) | st.sampled_from(
    ["a b", "{input}", "{{stem}}", "$(touch x)", "`x`", "a;b", "'", '"', "a\\ b", "*", "~", "${HOME}", "%s"]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(value=HOSTILE.filter(lambda text: not text.startswith("-")))
def test_fault_81_a_value_stays_one_element_and_reaches_the_program_as_it_is(
    value: str, echo: Path, tmp_path: Path
) -> None:
    """Through a real exec: no shell, no splitting, no second expansion."""
    template = ["{params.note}", "--note={params.note}"]
    prepared_ = prepared(template, spec(params={"note": value}), tmp_path, program=str(echo))
    assert prepared_.argv[1:] == (value, f"--note={value}")
    done = subprocess.run(prepared_.argv, env={"PYTHONUTF8": "1"}, stdout=subprocess.PIPE, check=True)
    assert json.loads(done.stdout) == [value, f"--note={value}"]


# --- program ----------------------------------------------------------------------------------------------------------


def program_fault(program: str, tmp_path: Path, path: str = "/nowhere:/usr/bin") -> str:
    with pytest.raises(SpawnError) as caught:
        prepared([], spec(), tmp_path, program=program, environ={"PATH": path}, config_dir=tmp_path)
    assert caught.value.reason == "program_missing"
    return str(caught.value)


def test_where_a_program_is_looked_for(tmp_path: Path, echo: Path) -> None:
    def found(program: str, **how: Any) -> str:
        return prepared([], spec(), tmp_path, program=program, config_dir=tmp_path, **how).argv[0]

    assert found(str(echo)) == str(echo)
    assert found("./echo args") == str(echo)
    assert found("echo args", environ={"PATH": f"/nowhere:{tmp_path}"}) == str(echo)
    assert found("echo args", environ={"PATH": "/nowhere"}, script_env={"PATH": str(tmp_path)}) == str(echo)
    assert found("echo args", environ={"PATH": "/nowhere"}, more=f'env = {{ PATH = "{tmp_path}" }}') == str(echo)


@pytest.mark.parametrize("key", ["start", "command", "quit"])
def test_the_missing_program_of_a_server_is_told_by_its_key(key: str, tmp_path: Path) -> None:
    commands: dict[str, Any] = {"start": ("sh",), "command": ("sh",), "quit": ("sh",)}
    solver = ServerSolver(ready=LineReady(match="up"), **(commands | {key: ("/no/such/program",)}))
    kind = ServerKind(solver, "x", LocalBackend(), tmp_path, {"PATH": "/bin"}, {})
    with pytest.raises(SpawnError, match=f"install it, or correct {key}$"):
        kind.expanded(key, Site("x-1", "/f", "/f/tmp", None), None, {})


def test_a_missing_program_is_told_with_what_to_do(tmp_path: Path) -> None:
    assert program_fault("ccxx", tmp_path) == (
        'the program "ccxx" of solver x is not on the PATH /nowhere:/usr/bin; '
        "install it, or set command to its full path"
    )
    assert program_fault("/opt/ccx", tmp_path) == (
        "the program /opt/ccx of solver x cannot be found: No such file or directory; install it, or correct command"
    )
    assert program_fault("bin/ccx", tmp_path) == (
        f"the program {tmp_path}/bin/ccx of solver x cannot be found: No such file or directory; "
        "install it, or correct command"
    )
    plain = tmp_path / "plain"
    plain.write_text("x")
    plain.chmod(0o644)
    assert program_fault("./plain", tmp_path) == (
        f"the program {plain} of solver x is not executable; chmod +x {plain}"
    )
    assert "is not on the PATH" in program_fault("plain", tmp_path, path=str(tmp_path))


def executable(path: Path) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def command_of(environ: Mapping[str, str], env: Mapping[str, str] | None = None) -> Command:
    solver = CommandSolver(command=("prog",), env=dict(env or {}))
    return Command("command", solver.command, solver, "x", environ, Path("/"), {})


def test_a_program_is_searched_for_anew_after_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = executable(tmp_path / "b" / "prog")
    made = command_of({"PATH": f"{tmp_path}/a:{tmp_path}/b"})
    assert made.expanded({}).argv == (second,)
    first = executable(tmp_path / "a" / "prog")
    now = time.monotonic()
    monkeypatch.setattr(command.time, "monotonic", lambda: now)  # type: ignore[attr-defined]  # the module as it sees it
    assert made.expanded({}).argv == (second,), "not for each attempt"
    now += command.SEARCH_SECONDS + 1
    assert made.expanded({}).argv == (first,)
    Path(first).unlink()
    Path(second).unlink()
    now += command.SEARCH_SECONDS
    for _ in range(2):
        with pytest.raises(SpawnError, match="is not on the PATH"):
            made.expanded({})
    executable(tmp_path / "b" / "prog")
    assert made.expanded({}).argv == (second,), "what is missing is searched for each time"


def test_a_path_of_its_own_is_searched_for_each_job(tmp_path: Path) -> None:
    made = command_of({}, {"PATH": "{job_dir}/bin"})
    for job in ("one", "two"):
        (tmp_path / job).mkdir()
        wanted = executable(tmp_path / job / "bin" / "prog")
        assert made.expanded({"job_dir": str(tmp_path / job)}).argv == (wanted,)


def test_jobs_share_an_environment_that_depends_on_none(tmp_path: Path) -> None:
    executable(tmp_path / "prog")
    made = command_of({"PATH": str(tmp_path)}, {"A": "{{1}}"})
    assert made.expanded({"cpus": "1"}).env is made.expanded({"cpus": "2"}).env
    assert made.expanded({}).env == {"PATH": str(tmp_path), "A": "{1}"}
    other = command_of({"PATH": str(tmp_path)}, {"A": "{cpus}"})
    assert [other.expanded({"cpus": n}).env["A"] for n in "12"] == ["1", "2"]


# --- environment ------------------------------------------------------------------------------------------------------


def test_fault_81_the_environment_holds_what_is_named_and_nothing_else(tmp_path: Path) -> None:
    environ = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LD_PRELOAD": "/evil.so",
        "SECRET": "1",
        "A_LICENSE_FILE": "27000@a",
        "SOLVISOR_ATTEMPT": "another's",
    }
    done = prepared(
        [],
        spec(cpus=4),
        tmp_path,
        more='pass_env = ["*_LICENSE_FILE"]\nenv = { OMP_NUM_THREADS = "{cpus}", OUT = "{output}", HOME = "/tmp" }',
        environ=environ,
        script_env={"FOAM": "yes", "PATH": "/foam:/bin"},
    )
    assert done.env == {
        "PATH": "/foam:/bin",
        "HOME": "/tmp",
        "A_LICENSE_FILE": "27000@a",
        "FOAM": "yes",
        "OMP_NUM_THREADS": "4",
        "OUT": f"{tmp_path}/output",
    }


def alive(pid: int) -> bool:
    """Whether a process runs: one that only waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def script(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "env script.sh"
    path.write_text(text)
    path.chmod(0o644)
    return path


ENVIRON = {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/home/me", "SECRET": "1"}
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


@posix_only
def test_a_script_gives_its_environment(tmp_path: Path) -> None:
    path = script(tmp_path, 'echo loud\nexport A="one\ntwo" B=$HOME/x\nexport PATH=/foam:$PATH\nC=unexported\n')
    found = source_environment(path, ENVIRON)
    assert found == {"A": "one\ntwo", "B": "/home/me/x", "PATH": f"/foam:{ENVIRON['PATH']}", "HOME": "/home/me"}


@posix_only
@pytest.mark.parametrize(
    ("text", "want"),
    [
        (
            "echo starting\necho no license >&2\nreturn 3\n",
            'it ended with exit status 3; the last it said: "no license"',
        ),
        ("exit 0\n", "it left its shell by exit, and so no environment; let it end without exit"),
        ("false\n", "it ended with exit status 1; the last it said: nothing"),
        ("if\n", "the last it said: "),
    ],
)
def test_a_script_that_fails_is_a_fault_of_the_configuration(tmp_path: Path, text: str, want: str) -> None:
    path = script(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        source_environment(path, ENVIRON)
    assert caught.value.path == str(path)
    assert want in caught.value.problems[0]


@pytest.mark.skipif(sys.platform != "linux", reason="looks for the process in /proc")
def test_a_script_that_does_not_end_is_ended_with_all_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "SCRIPT_SECONDS", 3.0)
    path = script(tmp_path, f"echo waiting for a server\nsleep 600 & echo $! > '{tmp_path}/pid'\nwait\n")
    with pytest.raises(ConfigError, match=r'it did not end within 3 s; the last it said: "waiting for a server"'):
        source_environment(path, ENVIRON)
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(pid), "the end of what the script had started")


@posix_only
def test_what_a_script_leaves_in_the_background_does_not_hold_us_and_is_ended(tmp_path: Path) -> None:
    path = script(tmp_path, f"sleep 600 & echo $! > '{tmp_path}/pid'\nexport A=1\n")
    assert source_environment(path, ENVIRON)["A"] == "1"
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: not alive(pid), "the end of what it left")


@posix_only
def test_a_script_that_is_missing_or_open_to_all_is_not_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it cannot be read: No such file"):
        source_environment(tmp_path / "none.sh", ENVIRON)
    path = script(tmp_path, f"touch '{tmp_path}/ran'\n")
    path.chmod(0o646)
    with pytest.raises(ConfigError, match="everyone may change it"):
        source_environment(path, ENVIRON)
    assert not (tmp_path / "ran").exists()
