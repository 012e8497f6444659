"""The warm Python worker: real interpreters of several versions, asked over their sockets by a plain client."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from waiting import wait_until
from worker_kit import JobFolder, RunningWorker, exchange, pythons

Start = Callable[..., RunningWorker]
every_python = pytest.mark.parametrize("python", pythons().values(), ids=pythons().keys())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Workers of ``worker_functions.py``; those that still run at the end of the test are killed."""
    made: list[RunningWorker] = []

    def start(call: str = "process", **how: Any) -> RunningWorker:
        call = call if ":" in call else f"worker_functions.py:{call}"
        made.append(RunningWorker(tmp_path / f"server-{len(made)}", call, **how))
        return made[-1]

    yield start
    for worker in made:
        worker.stop()


@pytest.fixture
def new_job(tmp_path: Path) -> Callable[..., JobFolder]:
    made: list[JobFolder] = []

    def new_job(**params: Any) -> JobFolder:
        made.append(JobFolder(tmp_path / f"job-{len(made)}", **params))
        return made[-1]

    return new_job


NewJob = Callable[..., JobFolder]


# --- the function and its job -----------------------------------------------------------------------------------------


@every_python
def test_a_function_gets_its_job_in_its_folder_and_its_result_comes_back(
    python: str, start: Start, new_job: NewJob
) -> None:
    worker = start(python=python)
    for served in (1, 2):
        job = new_job(load=3.5, fine=True)
        answer = worker.ask(job.request)
        assert answer.pop("usage")["cpu_user_seconds"] >= 0
        assert answer == {
            "ok": True,
            "result": {
                "served": served,
                "id": job.folder.name,
                "name": "rows",
                "attempt": 2,
                "input": "1,2\n",
                "inputs": ["rows.csv", "mesh.inc"],
                "output": str(job.output),
                "job_dir": str(job.folder),
                "params": {"load": 3.5, "fine": True},
                "cpus": 3,
                "stdin": "",
                "repr": f"<job {job.folder.name}>",
            },
        }
        assert (job.output / "left.txt").read_text() == "here"


@every_python
def test_whatever_is_printed_is_in_the_logs_of_its_own_job(python: str, start: Start, new_job: NewJob) -> None:
    worker = start("chat", python=python)
    for who in ("one", "two"):
        job = new_job(who=who)
        assert worker.ask(job.request)["ok"]
        assert sorted(job.stdout.split(";")) == ["", f"C {who}", f"child {who}", f"print {who}"]
        assert sorted(re.split(r";|\n", job.stderr)) == ["", f"child {who}", f"logging {who}", f"stderr {who}"]
    assert worker.log.read_text() == "imported\n"


@pytest.mark.parametrize(
    "deed",
    [
        "sys.stdout.close(); sys.stderr.close(); sys.stdin.close()",
        "import io; print('kept', end=''); sys.stdout = sys.stderr = sys.stdin = io.StringIO()",
        "sys.stdout = sys.stderr = sys.stdin = None",
        "os.close(1); os.close(2)",
        "os.chdir('/')",
    ],
)
def test_streams_and_folder_are_mended_after_a_function_that_broke_them(
    deed: str, start: Start, new_job: NewJob
) -> None:
    worker = start("execute")
    first = new_job(text=deed)
    assert worker.ask(first.request)["ok"]
    second = new_job(text="print('out', os.getcwd()); print('err', file=sys.stderr); assert sys.stdin.read() == ''")
    assert worker.ask(second.request)["ok"]
    assert second.stdout == f"out {second.output}\n"
    assert second.stderr == "err\n"
    assert "kept" not in second.stdout
    assert first.stdout == ("kept" if "kept" in deed else "")
    assert os.readlink(f"/proc/{worker.process.pid}/cwd") == str(worker.home)


def test_any_text_can_be_printed_in_any_locale(start: Start, new_job: NewJob) -> None:
    worker = start("execute", env={"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"})
    job = new_job(text=r"print('\u00fc \u2713 \udc80')")
    assert worker.ask(job.request)["ok"]
    assert job.stdout == "\u00fc \u2713 \\udc80\n"


def test_a_line_is_in_the_log_as_soon_as_it_is_printed(start: Start, new_job: NewJob) -> None:
    worker = start("execute")
    job = new_job(text="import time\nprint('half way')\nwhile not os.path.exists('go on'): time.sleep(0.01)")
    client = worker.connect()
    client.sendall(json.dumps(job.request).encode() + b"\n")
    wait_until(lambda: job.stdout_so_far() == "half way\n", "the line while the function runs")
    (job.output / "go on").touch()
    assert b'"ok": true' in client.recv(1 << 16)
    client.close()


def test_logs_are_appended_to_and_never_reached_through_a_link(start: Start, new_job: NewJob, tmp_path: Path) -> None:
    worker = start("execute")
    job = new_job(text="print('more')")
    (job.folder / "stdout.log").write_text("before\n")
    assert worker.ask(job.request)["ok"]
    assert job.stdout == "before\nmore\n"
    victim = tmp_path / "victim"
    victim.touch()
    linked = new_job(text="print('more')")
    (linked.folder / "stdout.log").symlink_to(victim)
    assert worker.ask(linked.request)["code"] == "OSError"
    assert victim.read_text() == ""
    assert worker.ask(new_job(text="pass").request)["ok"]


def test_solvisors_own_modules_do_not_stand_in_for_those_of_the_interpreter(start: Start, new_job: NewJob) -> None:
    answer = start("evaluate").ask(new_job(text="__import__('template')").request)
    assert answer["code"] == "ModuleNotFoundError"


def test_what_was_used_is_of_the_job_alone(start: Start, new_job: NewJob) -> None:
    burn = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass"
    worker = start("execute")
    # A new process inherits the peak of the one that started it: more than that.
    grow = "import resource\nlen(b'x' * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + (50 << 20)))"
    busy = new_job(text=f"{burn}\nsubprocess.run([sys.executable, '-c', {burn!r}])\n{grow}")
    usage = worker.ask(busy.request)["usage"]
    assert usage["cpu_user_seconds"] + usage["cpu_system_seconds"] >= 0.38
    assert usage["max_rss_bytes"] > 50 << 20
    usage = worker.ask(new_job(text="pass").request)["usage"]
    assert usage["cpu_user_seconds"] + usage["cpu_system_seconds"] < 0.2
    assert "max_rss_bytes" not in usage


# --- failures ---------------------------------------------------------------------------------------------------------


@every_python
def test_an_exception_fails_the_job_with_its_words_and_its_own_traceback(
    python: str, start: Start, new_job: NewJob
) -> None:
    worker = start("execute", python=python)
    job = new_job(text="print('so far')\nraise ValueError('bad rows')")
    answer = worker.ask(job.request)
    del answer["usage"]
    assert answer.pop("traceback") == job.stderr
    assert answer == {"ok": False, "code": "ValueError", "message": "ValueError: bad rows"}
    assert job.stderr.startswith("Traceback (most recent call last):\n")
    assert job.stderr.endswith("ValueError: bad rows\n")
    assert "worker_functions.py" in job.stderr
    assert "worker.py" not in job.stderr
    assert job.stdout == "so far\n"
    assert worker.ask(new_job(text="pass").request)["ok"]


@pytest.mark.parametrize(
    ("deed", "code", "message"),
    [
        ("sys.exit()", "SystemExit", "SystemExit: None; a function that is done returns"),
        ("sys.exit(0)", "SystemExit", "SystemExit: 0; a function that is done returns"),
        ("sys.exit('no license')", "SystemExit", "SystemExit: no license"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("signal.raise_signal(signal.SIGINT)", "KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit", "GeneratorExit"),
        ("raise Silent", "Silent", "Silent: (its text cannot be had)"),
        ("open('no such file')", "FileNotFoundError", None),
        ("raise ValueError('\\udc80')", "ValueError", "ValueError: \\udc80"),
        ("raise ValueError('x' * 10_000)", "ValueError", "ValueError: " + "x" * 3985 + "..."),
        ("sys.setrecursionlimit(200)\ndef f(): f()\nf()", "RecursionError", None),
    ],
)
def test_however_a_function_ends_the_worker_goes_on(
    deed: str, code: str, message: str | None, start: Start, new_job: NewJob
) -> None:
    worker = start("execute")
    answer = worker.ask(new_job(text=deed).request)
    assert (answer["ok"], answer["code"]) == (False, code)
    assert message in (None, answer["message"])
    assert worker.ask(new_job(text="pass").request)["ok"]
    assert worker.process.poll() is None


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("None", None),
        ("(1, [2.5, True], {'a': 'ü', 3: None})", [1, [2.5, True], {"a": "ü", "3": None}]),
        ("Path('a') / 'b'", "a/b"),
        ("{'mean': Scalar(1.5), 'at': Scalar(7)}", {"mean": 1.5, "at": 7}),
        ("Array([1.5, Array([2])])", [1.5, [2]]),
        ("logging.INFO", 20),
        ("type('Level', (int,), {'__repr__': lambda self: 'high'})(3)", 3),
        ("type('Name', (str,), {'__str__': lambda self: 'x'})('name')", "name"),
        ("2 ** 70", 2**70),
    ],
)
def test_a_result_comes_back_as_json(text: str, result: Any, start: Start, new_job: NewJob) -> None:
    answer = start("evaluate").ask(new_job(text=text).request)
    assert answer["result"] == result
    assert answer["ok"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("float('nan')", "result is nan, which JSON cannot hold; return None instead, or text"),
        ("{'rows': [0, 1, 2, -float('inf')]}", 'result["rows"][3] is -inf'),
        ("{'rows': (Scalar(float('nan')),)}", 'result["rows"][0] is nan'),
        ("[{1, 2}]", "result[0] is a set, which JSON cannot hold"),
        ("{'a': b'x'}", 'result["a"] is a bytes'),
        ("object()", "result is an object"),
        ("Scalar", "result is a type"),
        ("{(1, 2): 3}", "result has the key (1, 2), a tuple; the keys of JSON are text"),
        ("{True: 3}", "result has the key True, a bool"),
        ("{1: 3, '1': 4}", 'result has the key "1" twice'),
        ("{'\\udc80': 1}", "a key of result is text with bytes that are not UTF-8"),
        ("['\\udc80']", "result[0] is text with bytes that are not UTF-8: '\\udc80'"),
        ("Scalar(Scalar(object()))", "result is a Scalar, which JSON cannot hold"),
        ("[globals().__setitem__('own', []), own.append(own), own][2]", "more than 100 lists and dicts within"),
        ("10 ** 5000", "result is an integer of 16610 bits"),
    ],
)
def test_a_result_that_json_cannot_hold_fails_the_job_and_says_where(
    text: str, words: str, start: Start, new_job: NewJob
) -> None:
    worker = start("evaluate")
    answer = worker.ask(new_job(text=text).request)
    assert (answer["ok"], answer["code"]) == (False, "result_not_json")
    assert words in answer["message"]
    assert worker.ask({"ping": 1}) == {"ok": True}


def test_a_result_that_is_too_long_fails_the_job(start: Start, new_job: NewJob) -> None:
    worker = start("evaluate")
    answer = worker.ask(new_job(text="'x' * (17 << 20)").request)
    assert (answer["ok"], answer["code"]) == (False, "result_too_large")
    assert answer["message"].startswith("the result is 17 MiB long; write it to a file")
    assert len(worker.ask(new_job(text="'x' * (15 << 20)").request)["result"]) == 15 << 20


def test_a_child_that_returns_from_the_function_too_answers_nothing(start: Start, new_job: NewJob) -> None:
    worker = start("fork_and_return")
    assert worker.ask(new_job().request)["result"] == "from the parent"
    assert worker.ask({"ping": 1}) == {"ok": True}


@pytest.mark.parametrize("how", ["exit", "signal"])
def test_a_crash_hangs_up_and_loses_nothing_that_was_printed(how: str, start: Start, new_job: NewJob) -> None:
    worker = start("crash")
    job = new_job(how=how)
    with pytest.raises(EOFError):
        worker.ask(job.request)
    assert worker.ended() == (3 if how == "exit" else -11)
    assert job.stdout == "crashing\n"
    assert ("Segmentation fault" in job.stderr) == (how == "signal")
    assert ("in crash" in job.stderr) == (how == "signal")


# --- finding the function ---------------------------------------------------------------------------------------------


@every_python
def test_an_import_that_fails_ends_the_worker_with_the_traceback(python: str, start: Start, tmp_path: Path) -> None:
    (tmp_path / "post.py").write_text("print('begin')\nimport no_such_module\n")
    worker = start("post.py:process", python=python, folder=tmp_path)
    assert worker.ended() == 1
    said = worker.log.read_text()
    assert said.startswith("begin\nTraceback (most recent call last):\n")
    assert "post.py" in said
    assert said.endswith("ModuleNotFoundError: No module named 'no_such_module'\n")
    assert "importlib" not in said
    assert "worker.py" not in said
    assert not (worker.home / "worker.sock").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("post.py:proces", "/post.py has no function proces; it has: process, Tools\n"),
        ("post.py:Tools.none", "/post.py has no function Tools.none; it has: process, Tools\n"),
        ("post.py:number", "number in /"),
        ("post.py:number", "/post.py is an int and cannot be called; it has: process, Tools\n"),
        ("empty.py:process", "/empty.py has no function process; it has no functions\n"),
        ("none.py:process", "/none.py is not there\n"),
        ("post.py", 'call = "post.py" is not of the form FILE.py:function or package.module:function\n'),
        ("package.tools:none", "worker: package.tools has no function none; it has: process\n"),
    ],
)
def test_a_function_that_is_not_there_is_told_in_one_sentence(
    call: str, words: str, start: Start, tmp_path: Path
) -> None:
    text = "from pathlib import Path\nnumber = 7\ndef process(job): pass\nclass Tools: pass\ndef _own(): pass\n"
    (tmp_path / "post.py").write_text(text)
    (tmp_path / "empty.py").touch()
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "tools.py").write_text("def process(job): pass\n")
    worker = RunningWorker(tmp_path / "server", call, folder=tmp_path)
    assert worker.ended() == 2
    said = worker.log.read_text()
    assert words in said
    assert said.startswith("worker: ")
    assert said.count("\n") == 1


@every_python
def test_a_function_may_be_in_a_package_or_in_a_class(
    python: str, start: Start, new_job: NewJob, tmp_path: Path
) -> None:
    package = tmp_path / "conf" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "helper.py").write_text("word = 'helped'\n")
    (package / "tools.py").write_text("from .helper import word\ndef process(job): return word\n")
    worker = start("package.tools:process", python=python, folder=tmp_path / "conf")
    assert worker.ask(new_job().request)["result"] == "helped"
    assert start("Tools.process", python=python).ask(new_job().request)["result"] == "by a tool"


def test_a_file_finds_the_modules_beside_it_and_may_be_named_like_another(
    start: Start, new_job: NewJob, tmp_path: Path
) -> None:
    folder = tmp_path / "conf" / "scripts"
    folder.mkdir(parents=True)
    (folder / "beside.py").write_text("word = '\"found\"'\n")
    text = "import json, pickle\nfrom beside import word\nclass Row: pass\n"
    (folder / "json.py").write_text(
        f"{text}def process(job): return [json.loads(word), type(pickle.loads(pickle.dumps(Row()))).__name__]"
    )
    worker = start("scripts/json.py:process", folder=tmp_path / "conf")
    assert worker.ask(new_job().request)["result"] == ["found", "Row"]


# --- the wire ---------------------------------------------------------------------------------------------------------


def test_the_next_client_is_served_when_one_has_hung_up(start: Start, new_job: NewJob) -> None:
    worker = start("evaluate")
    for half in (b"", b'{"ping"', json.dumps(new_job(text="'x' * 1000000").request).encode() + b"\n"):
        with worker.connect() as client:
            client.sendall(half)
        assert worker.ask({"ping": 1}) == {"ok": True}
        worker.hang_up()


def test_what_is_no_job_is_refused_and_harms_nothing(start: Start) -> None:
    worker = start()
    with worker.connect() as client:
        for line in (b"garbage", b"[" * 100_000, b"[]", b"{}", b'{"id": 1}', b"\xff", b"", b'{"id": {}}'):
            answer = exchange(client, line + b"\n")
            assert (answer["ok"], answer["code"]) == (False, "bad_request")
            assert answer["message"].startswith("not a job: ")
        assert exchange(client, b'{"ping": 1}\n') == {"ok": True}
        client.sendall(b'{"ping": 1}\n{"ping": 1}\n')
        wait_until(lambda: client.recv(100, socket.MSG_PEEK).count(b"\n") == 2, "both pings answered")


def test_a_long_question_is_heard_and_one_without_end_is_not(start: Start, new_job: NewJob) -> None:
    worker = start("evaluate")
    job = new_job(text="len(job.inputs)")
    assert worker.ask({**job.request, "inputs": ["/" + "x" * 1000] * 10_000})["result"] == 10_000
    worker.hang_up()
    with worker.connect() as client, pytest.raises((EOFError, ConnectionError)):
        exchange(client, b" " * (17 << 20) + b'{"ping": 1}\n')
    assert worker.ask({"ping": 1}) == {"ok": True}


@every_python
def test_quit_ends_it_as_a_program_ends(python: str, start: Start, new_job: NewJob, tmp_path: Path) -> None:
    worker = start("execute", python=python)
    text = f"import atexit; atexit.register(Path({str(tmp_path / 'freed')!r}).touch)"
    assert worker.ask(new_job(text=text).request)["ok"]
    assert worker.ask({"quit": 1}) == {"ok": True}
    assert worker.ended() == 0
    assert (tmp_path / "freed").exists()


def test_only_its_owner_may_connect(start: Start) -> None:
    worker = start()
    assert worker.ask({"ping": 1}) == {"ok": True}
    assert stat.S_IMODE((worker.home / "worker.sock").stat().st_mode) == 0o600


def test_it_removes_nothing_to_make_its_socket(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "server" / "worker.sock").write_text("kept")
    worker = RunningWorker(tmp_path / "server")
    assert worker.ended() == 1
    assert (tmp_path / "server" / "worker.sock").read_text() == "kept"
    assert "worker: it cannot listen on worker.sock: " in worker.log.read_text()


@every_python
def test_over_tcp_only_who_knows_the_token_is_heard(python: str, start: Start, new_job: NewJob) -> None:
    worker = start(python=python, tcp=True)
    door = worker.door()
    assert stat.S_IMODE((worker.home / "worker.token").stat().st_mode) == 0o600
    for line in (b'{"ping": 1}', b'{"token": "x"}', b"garbage", b"[]", json.dumps({"token": [door["token"]]}).encode()):
        with worker.connect() as stranger, pytest.raises((EOFError, ConnectionError)):
            exchange(stranger, line + b"\n")
    assert worker.ask({"token": door["token"]}) == {"ok": True}
    assert worker.ask({"ping": 1}) == {"ok": True}
    assert worker.ask(new_job().request)["result"]["served"] == 1
    assert worker.ask({"quit": 1}) == {"ok": True}
    assert worker.ended() == 0
