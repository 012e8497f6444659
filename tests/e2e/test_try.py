"""``solvisor try``: what it says is what the daemon would say, and nothing of it stays."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon import Daemon
from waiting import wait_until

Make = Callable[..., Daemon]
SAMPLES = Path(__file__).parents[1] / "data" / "samples"
PROFILES = Path(__file__).parents[1] / "data" / "profiles.toml"

SHELL = """
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}", "{params.load}"]
params = { load = { type = "float", default = 1.0, min = 0 } }
env = { ONLY_HERE = "{stem}" }
pass_env = ["*_LICENSE_FILE"]
timeout = "30s"
stop_grace = "1s"
[solver.sh.success]
outputs = ["{stem}.out"]
error_pattern = 'ERROR: (.*)'
log_forbid = ['FORBIDDEN']
[solver.patient]
command = ["/bin/sh", "{input}"]
stop_grace = "300s"
[solver.hasty]
command = ["/bin/sh", "{input}"]
timeout = "0.5s"
stop_grace = "0.2s"
[solver.absent]
command = ["solvisor-no-such-program", "{input}"]
[solver.elsewhere]
command = ["only-in-the-shell", "{input}"]
env = { PATH = "/nowhere" }
[solver.bare]
command = ["/bin/sh", "{input}"]
"""


def write_home(folder: Path, config: str = SHELL) -> Path:
    folder.mkdir()
    (folder / "solvisor.toml").write_text(textwrap.dedent(config))
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return write_home(tmp_path / "home")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Files of a user, outside the home."""
    (tmp_path / "mine").mkdir()

    def write(name: str, content: str) -> Path:
        path = tmp_path / "mine" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        return path

    return write


Write = Callable[[str, str], Path]


def command(home: Path, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "solvisor_service.cli", "try", "--home", str(home), *map(str, arguments)]


def run(home: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(home, *arguments), capture_output=True, text=True, timeout=100, env={**os.environ, **(env or {})}
    )


def run_json(home: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> dict[str, Any]:
    done = run(home, "--json", *arguments, env=env)
    assert done.stdout, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if answer["state"] == "succeeded" else 1), done.stderr
    return answer


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """All that lies below a folder, with size and time."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


# --- what it says -----------------------------------------------------------------------------------------------------


def test_a_good_input_is_shown_with_all_there_is_to_see_and_leaves_nothing(home: Path, write: Write) -> None:
    file = write("good.sh", 'echo "load $1 here $ONLY_HERE"; echo 42 > good.out\n')
    before = everything(home)
    done = run(home, "sh", file, "--param", "load=2.5", env={"LD_LIBRARY_PATH": "/opt/x/lib"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    said = done.stdout
    assert "/bin/sh good.sh 2.5" in said
    assert f"{home}/.solvisor-try-" in said, "the folder it ran in"
    assert "+ ONLY_HERE=good" in said
    assert "LD_LIBRARY_PATH" in said
    assert "load 2.5 here good" in said, "the solver's own words"
    assert [line.split() for line in said.splitlines() if line.startswith("  ok")] == [
        ["ok", "exit", "0"],
        ["ok", "output", "good.out", "3", "bytes"],
        ["ok", "no", "FORBIDDEN", "in", "logs", "not", "found"],
    ]
    assert "3 B  output/good.out" in said
    assert "as a job it would succeed" in said
    assert f"solvisor submit --home {home} --solver sh {file} --param load=2.5" in said
    assert everything(home) == before
    assert file.read_text().startswith("echo"), "the user's own file stays"


@pytest.mark.parametrize(
    ("solver", "script", "cause", "code", "message", "advice"),
    [
        ("sh", "echo ERROR: no material; exit 3", "exit", "exit_3", "no material", "correct the input"),
        ("sh", "echo x > b.out; exit 3", "exit", "exit_3", "exited with 3", "exits with 3, add it to exit"),
        ("sh", "echo x > other.res", "check", "output_missing", "output b.out is missing", "it wrote other.res; if"),
        ("sh", "true", "check", "output_missing", "output b.out is missing", "it wrote no file"),
        ("sh", "echo x > b.out; echo FORBIDDEN", "check", "log_forbid", "stdout.log:1: FORBIDDEN", "narrow log_forbid"),
        ("bare", "exit 3", "exit", "exit_3", "exited with 3", "error_pattern in [solver.bare.success]"),
        ("hasty", "sleep 300", "timeout", "timeout", "ran longer than 500 ms", "raise timeout in [solver.hasty]"),
        ("absent", "true", "spawn", "program_missing", "is not on the PATH", None),
    ],
)
def test_a_bad_input_says_why_and_what_to_change(
    home: Path, write: Write, solver: str, script: str, cause: str, code: str, message: str, advice: str | None
) -> None:
    answer = run_json(home, solver, write("b.sh", f"{script}\n"))
    manifest = answer["manifest"]
    assert (answer["state"], manifest["cause"], manifest["code"]) == ("failed", cause, code)
    assert message in manifest["message"]
    assert any(advice in line for line in answer["advice"]) if advice else answer["advice"] == []
    assert [path.name for path in home.iterdir()] == ["solvisor.toml"]
    said = run(home, solver, write("b.sh", f"{script}\n")).stdout
    assert f"as a job it would fail ({', '.join(dict.fromkeys((cause, code)))}): " in said
    assert message in said


def test_a_success_that_only_an_exit_code_proves_is_called_so(home: Path, write: Write) -> None:
    answer = run_json(home, "bare", write("b.sh", "true\n"))
    assert answer["state"] == "succeeded"
    assert "name the outputs of a good run in [solver.bare.success]" in answer["advice"][0]


def test_a_failure_names_what_the_shell_has_and_the_solver_lacks(home: Path, write: Write) -> None:
    shell = {"LD_LIBRARY_PATH": "/opt/x/lib", "FLEX_LICENSE_FILE": "1@a", "EDITOR": "vi"}
    advice = run_json(home, "bare", write("b.sh", "exit 3\n"), env=shell)["advice"][-1]
    assert advice.endswith('pass_env = ["FLEX_LICENSE_FILE", "LD_LIBRARY_PATH"]')


def test_there_is_one_try_and_the_others_are_announced(tmp_path: Path, write: Write) -> None:
    config = """
        [solver.x]
        command = ["/bin/sh", "{input}"]
        retry = { max = 2, on = ["exit"], delay = "0s" }
    """
    answer = run_json(write_home(tmp_path / "home", config), "x", write("b.sh", "exit 3\n"))
    assert len(answer["manifest"]["attempts"]) == 1
    assert "the service would try it again up to 2 times, by [solver.x.retry]" in answer["advice"]


def test_a_program_that_only_the_shell_finds_is_named_with_its_path(home: Path, write: Write, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "only-in-the-shell"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    path = f"{program.parent}:{os.environ['PATH']}"
    answer = run_json(home, "elsewhere", write("b.sh", ""), env={"PATH": path})
    assert answer["manifest"]["code"] == "program_missing"
    assert answer["advice"] == [f"your shell finds it as {program}: put that into command"]
    assert answer["argv"] is None


def test_a_parameter_that_is_not_declared_is_refused_with_the_nearest_one(home: Path, write: Write) -> None:
    done = run(home, "sh", write("b.sh", ""), "--param", "laod=3")
    assert done.returncode == 1
    assert 'b.sh: params.laod: no such parameter of this solver; did you mean "load"?' in done.stdout
    assert "REJECTED" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shh", "b.sh"], 'no solver is called "shh"; did you mean "sh"?'),
        (["sh", "gone.sh"], "gone.sh does not exist"),
        (["sh", "b.sh", "--param", "load"], "write it as NAME=VALUE"),
        (["sh", "b.sh", "--keep", "."], "something is there already"),
        (["sh", "other.job.toml"], "asks for the solver bare; run: solvisor try --home {home} bare other.job.toml"),
    ],
)
def test_what_cannot_be_tried_at_all_ends_with_2(
    home: Path, write: Write, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    write("other.job.toml", 'solver = "bare"\ninputs = ["b.sh"]\n')
    monkeypatch.chdir(write("b.sh", "").parent)
    done = run(home, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said.format(home=home) in done.stderr


def test_a_faulty_configuration_is_told_in_the_words_of_the_service(tmp_path: Path, write: Write) -> None:
    home = write_home(tmp_path / "home", '[solver.sh]\ncommand = ["sh"]\ntimeuot = "2h"\n')
    done = run(home, "sh", write("b.sh", ""))
    assert done.returncode == 2
    assert 'line 3: solver.sh.timeuot: no such key; did you mean "timeout"?' in done.stderr


def test_what_a_solver_says_cannot_touch_the_terminal(home: Path, write: Write) -> None:
    script = (
        "printf 'red \\033[31m \\342\\200\\256 turned\\nERROR: \\033]0;title\\007 bad\\n'\n"
        ": > \"$(printf 'a\\033[2J \\342\\200\\256b')\"\n"
        "exit 1\n"
    )
    said = run(home, "sh", write("b.sh", script)).stdout
    assert not [char for char in said if not char.isprintable() and char != "\n"]
    assert "turned" in said


# --- the environment --------------------------------------------------------------------------------------------------


def test_the_environment_differs_from_the_shell_as_the_solver_sees_it(home: Path, write: Write) -> None:
    script = write("b.sh", "env -0 > b.out\n")
    shell = {"LD_LIBRARY_PATH": "/x", "AAA_UNINTERESTING": "1", "ABAQUS_LICENSE_FILE": "1@a", "OMP_NUM_THREADS": "9"}
    answer = run_json(home, "sh", script, "--keep", script.parent / "kept", env=shell)
    told = answer["environment"]
    seen = dict(pair.split("=", 1) for pair in (script.parent / "kept/output/b.out").read_text().split("\0") if pair)
    own = {"PWD", "OLDPWD", "SHLVL", "_", "SOLVISOR_ATTEMPT"}  # of the shell that is this solver, and the token
    alone = seen.keys() - os.environ.keys() - shell.keys() - own
    assert told["added"] == {name: seen[name] for name in alone} == {"ONLY_HERE": "b"}
    assert seen["ABAQUS_LICENSE_FILE"] == "1@a", "passed on, and so no difference"
    missing = told["missing"]
    assert not set(missing) & (seen.keys() - own)
    assert missing[0] == "LD_LIBRARY_PATH", "what solvers ask for most comes first"
    assert missing.index("OMP_NUM_THREADS") < missing.index("AAA_UNINTERESTING")


def test_a_value_that_the_solver_gets_otherwise_is_shown_with_both(tmp_path: Path, write: Write) -> None:
    config = '[solver.x]\ncommand = ["/bin/sh", "{input}"]\nenv = { LANG = "C" }\n'
    answer = run_json(write_home(tmp_path / "home", config), "x", write("b.sh", ""), env={"LANG": "de_DE.UTF-8"})
    assert answer["environment"]["changed"] == {"LANG": {"solver": "C", "here": "de_DE.UTF-8"}}


def test_what_env_script_sets_is_there(tmp_path: Path, write: Write) -> None:
    config = '[solver.x]\ncommand = ["/bin/sh", "{input}"]\nenv_script = "setup.sh"\n'
    home = write_home(tmp_path / "home", config)
    (home / "setup.sh").write_text("export FROM_SCRIPT=yes\n")
    assert run_json(home, "x", write("b.sh", ""))["environment"]["added"] == {"FROM_SCRIPT": "yes"}


def test_beside_a_daemon_the_solver_gets_the_daemons_environment(make_daemon: Make, write: Write) -> None:
    daemon = make_daemon(SHELL)
    daemon.start(env={"FLEX_LICENSE_FILE": "27000@there", "LANG": "C"})
    answer = run_json(daemon.home, "sh", write("b.sh", "echo x > b.out\n"), env={"LANG": "de_DE.UTF-8"})
    told = answer["environment"]
    assert told["daemon_pid"] == daemon.running.pid
    assert told["added"]["FLEX_LICENSE_FILE"] == "27000@there"
    assert told["changed"]["LANG"] == {"solver": "C", "here": "de_DE.UTF-8"}
    assert daemon.manifests() == {}, "its queue is not touched"
    assert daemon.stop() == 0


# --- what can be tried ------------------------------------------------------------------------------------------------


def test_companions_go_along_and_a_name_that_the_solver_does_not_accept_is_taken(home: Path, write: Write) -> None:
    first, second = write("main.txt", "cat mesh.inc > main.out\n"), write("mesh.inc", "nodes\n")
    answer = run_json(home, "sh", first, second)
    assert answer["state"] == "succeeded"
    assert [fact["path"] for fact in answer["manifest"]["inputs"]] == ["input/main.txt", "input/mesh.inc"]


def test_a_job_file_brings_its_inputs_and_wishes(home: Path, write: Write) -> None:
    write("main.sh", 'echo "$1" > main.out; cat mesh.inc\n')
    write("mesh.inc", "nodes\n")
    job_file = write("case.job.toml", 'inputs = ["main.sh", "mesh.inc"]\nname = "a case"\nparams = { load = 7.5 }\n')
    answer = run_json(home, "sh", job_file)
    assert (answer["state"], answer["manifest"]["name"]) == ("succeeded", "a case")
    assert answer["argv"][1:] == ["main.sh", "7.5"]
    assert run_json(home, "sh", job_file, "--param", "load=8")["argv"][1:] == ["main.sh", "8.0"]


def test_a_folder_is_one_job(home: Path, write: Write) -> None:
    folder = write("case/main.sh", "cat sub/mesh.inc > main.out\n").parent
    (folder / "sub").mkdir()
    (folder / "sub" / "mesh.inc").write_text("nodes\n")
    answer = run_json(home, "sh", folder)
    assert (answer["state"], answer["argv"][1]) == ("succeeded", "main.sh")
    (folder / "second.sh").write_text("")
    refused = run_json(home, "sh", folder)
    assert refused["state"] == "rejected"
    assert "main.sh, second.sh, and each could be the input" in refused["message"]


def test_keep_leaves_the_folder_that_the_job_would_have_had(home: Path, write: Write) -> None:
    file = write("b.sh", "echo out; echo x > b.out\n")
    kept = file.parent / "kept"
    kept.mkdir()
    answer = run_json(home, "sh", file, "--keep", kept)
    names = {str(path.relative_to(kept)) for path in kept.rglob("*") if path.is_file()}
    assert names == {"input/b.sh", "output/b.out", "stdout.log", "stderr.log", "manifest.json"}
    assert json.loads((kept / "manifest.json").read_bytes()) == answer["manifest"]
    assert answer["kept"] == str(kept)


def test_without_a_home_it_runs_in_the_temporary_directory(tmp_path: Path, write: Write) -> None:
    config, scratch = tmp_path / "my.toml", tmp_path / "scratch"
    config.write_text(SHELL)
    scratch.mkdir()
    environ = {"TMPDIR": str(scratch)}
    answer = run_json(tmp_path / "none", "bare", write("b.sh", ""), "--config", config, env=environ)
    assert answer["folder"].startswith(f"{scratch}/")
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "none").exists()


# --- the same as the daemon -------------------------------------------------------------------------------------------

_SAME = ("state", "cause", "code", "message", "checks", "inputs", "outputs", "params", "resources", "log_tail")


def assert_same(tried: dict[str, Any], done: dict[str, Any]) -> None:
    for key in _SAME:
        assert tried[key] == done[key], key
    assert tried["solver"] == done["solver"]
    for fact in ("exit_code", "signal", "cause", "code", "message"):
        assert [attempt[fact] for attempt in tried["attempts"]] == [attempt[fact] for attempt in done["attempts"]], fact


def test_the_verdict_is_the_one_of_the_daemon(make_daemon: Make, write: Write) -> None:
    scripts = {
        "good.sh": "echo fine; echo 42 > good.out",
        "exit.sh": "echo ERROR: no material; exit 3",
        "missing.sh": "echo done > elsewhere.txt",
        "empty.sh": ": > empty.out; echo FORBIDDEN",
        "crash.sh": "kill -SEGV $$",
        "changed.sh": "echo 1 > changed.out; echo more >> ../input/changed.sh",
    }
    daemon = make_daemon(SHELL)
    daemon.start()
    for name, script in scripts.items():
        daemon.drop(name, f"{script}\n")
    done = {manifest["name"]: manifest for manifest in daemon.wait_for(len(scripts)).values()}
    assert {manifest["state"] for manifest in done.values()} == {"succeeded", "failed"}
    for name, script in scripts.items():
        assert_same(run_json(daemon.home, "sh", write(name, f"{script}\n"))["manifest"], done[name])
    assert daemon.stop() == 0


@pytest.mark.parametrize(
    ("solver", "program", "samples"),
    [
        ("ccx", "ccx", ["ccx/beam.inp", "ccx/beam_bad.inp", "ccx/beam_garbage.inp"]),
        ("glpsol", "glpsol", ["glpk/diet.mod", "glpk/bad.mod"]),
    ],
)
def test_the_verdict_on_a_real_solver_is_the_one_of_the_daemon(
    make_daemon: Make, tmp_path: Path, solver: str, program: str, samples: list[str]
) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed here")
    daemon = make_daemon(PROFILES.read_text())
    daemon.start()
    for sample in samples:
        daemon.drop(Path(sample).name, (SAMPLES / sample).read_bytes(), folder=solver)
    done = {manifest["name"]: manifest for manifest in daemon.wait_for(len(samples)).values()}
    for sample in samples:
        tried = run_json(daemon.home, solver, SAMPLES / sample)["manifest"]
        theirs = done[Path(sample).name]
        assert [tried[key] for key in ("state", "cause", "code", "message", "checks")] == [
            theirs[key] for key in ("state", "cause", "code", "message", "checks")
        ]
    assert daemon.stop() == 0


# --- the end of it ----------------------------------------------------------------------------------------------------

_TREE = """
trap 'echo asked to end; exit 0' TERM
(trap '' TERM; echo $$ > {pids}/inner; exec sleep 300) &
setsid sleep 300 &
echo $! > {pids}/detached
echo $$ > {pids}/outer
wait
"""


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "pids"
    folder.mkdir()
    yield folder
    for pid in living(folder):
        os.kill(pid, signal.SIGKILL)


def living(folder: Path) -> list[int]:
    found = []
    for file in folder.iterdir():
        try:
            state = Path(f"/proc/{file.read_text().strip()}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            found.append(int(file.read_text()))
    return found


@pytest.fixture
def start(home: Path, pids: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Trials under way, whose solver runs and has written ``outer``."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command(home, *arguments), stdout=pipe, stderr=pipe, text=True))
        wait_until(lambda: (pids / "outer").exists() and (pids / "outer").read_text().strip(), "the solver runs", 60)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


Start = Callable[..., subprocess.Popen[str]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_asks_the_solver_to_end_and_leaves_no_process_and_no_folder(
    home: Path, write: Write, pids: Path, start: Start, number: signal.Signals
) -> None:
    process = start("sh", write("b.sh", _TREE.format(pids=pids)))
    assert len(living(pids)) >= 2
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "asked to end" in out, "SIGTERM first"
    assert "STOPPED" in out
    assert "stopping the solver" in err
    assert living(pids) == []
    assert [path.name for path in home.iterdir()] == ["solvisor.toml"]


def test_a_second_ctrl_c_does_not_wait_for_the_grace(home: Path, write: Write, pids: Path, start: Start) -> None:
    script = write("b.sh", f"trap '' TERM\necho $$ > {pids}/outer\nwhile :; do sleep 300; done\n")
    process = start("patient", script)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "stopping the solver" in process.stderr.readline()
    assert living(pids), "it has a grace of 300 s"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    process.communicate()
    assert living(pids) == []
    assert [path.name for path in home.iterdir()] == ["solvisor.toml"]


def test_what_a_killed_trial_left_is_ended_and_removed_by_the_next(
    home: Path, write: Write, pids: Path, start: Start
) -> None:
    process = start("patient", write("b.sh", f"echo $$ > {pids}/outer\nsleep 300\n"))
    process.kill()
    process.communicate()
    (left,) = home.glob(".solvisor-try-*")
    run_json(home, "bare", write("c.sh", ""))
    assert left.exists(), "one that is young may belong to a trial that only begins"
    os.utime(left, (1e9, 1e9))
    run_json(home, "bare", write("c.sh", ""))
    assert living(pids) == []
    assert [path.name for path in home.iterdir()] == ["solvisor.toml"]


def test_a_trial_under_way_is_nobodys_leftover(home: Path, write: Write, pids: Path, start: Start) -> None:
    process = start("patient", write("b.sh", f"echo $$ > {pids}/outer\nsleep 300\n"))
    (running,) = home.glob(".solvisor-try-*")
    os.utime(running, (1e9, 1e9))
    run_json(home, "bare", write("c.sh", ""))
    assert running.exists()
    assert len(living(pids)) == 1
    process.terminate()
    process.communicate(timeout=60)
    assert living(pids) == []


# --- warm servers -----------------------------------------------------------------------------------------------------

REDIS = """
[solver.redis]
kind = "server"
start = ["redis-server", "--port", "{port}", "--bind", "{host}", "--save", "", "--dir", "{server_dir}"]
ready = { kind = "tcp", send = "PING\\r\\n", expect = '^\\+PONG' }
command = ["redis-cli", "-h", "{host}", "-p", "{port}", "-x", "SET", "{stem}"]
quit = ["redis-cli", "-h", "{host}", "-p", "{port}", "SHUTDOWN", "NOSAVE"]
"""


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_the_programs_around_a_warm_server_are_labelled_and_told_once(tmp_path: Path, write: Write) -> None:
    done = run(write_home(tmp_path / "home", REDIS), "redis", write("a.redis", "1\n"))
    assert done.returncode == 0, done.stdout + done.stderr
    head = done.stdout.split("\n\n")[0].splitlines()
    labels = [line.split()[0] for line in head if not line.startswith(" ")]
    assert labels == ["solver", "server", "folder", "environment", "client", "folder", "quit"]
    programs = {line.split()[0]: line for line in head if not line.startswith(" ")}
    assert "redis-server --port" in programs["server"]
    assert " SET a" in programs["client"]
    assert "SHUTDOWN NOSAVE" in programs["quit"]
    assert len(set(head)) == len(head), "nothing is told twice"
