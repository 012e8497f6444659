"""Job files: what they mean, what is refused, and in which words."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvisor import config
from solvisor.errors import Refused
from solvisor.jobfile import LARGEST_FILE, JobFile, check_options, check_params, named_inputs, parse_job_file
from solvisor.model import Cause, Retry
from solvisor.modeljob import ModelJob, Simulate, model_job

NAME = "beam.job.toml"

FULL = """\
solver   = "ccx"
inputs   = ["beam.inp", "mesh.inc"]
name     = "beam, fine mesh"
project  = "riser-2026"
priority = 10
params   = { load = 3.5 }
after    = ["beam-0abc"]
key      = "idempotency key"
timeout  = "30m"
cpus     = 2
memory   = "1GiB"
licenses = { orcaflex = 1 }
retry    = { max = 2, on = ["signal", "timeout"], delay = "2s" }
"""


def refusal(data: str | bytes) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        parse_job_file(data.encode() if isinstance(data, str) else data, NAME)
    return caught.value.refusal, str(caught.value)


def test_the_documented_example() -> None:
    job = parse_job_file(FULL.encode(), NAME)
    assert (job.solver, job.inputs, job.name, job.project) == (
        "ccx",
        ("beam.inp", "mesh.inc"),
        "beam, fine mesh",
        "riser-2026",
    )
    assert (job.priority, job.params, job.after, job.key) == (10, {"load": 3.5}, ("beam-0abc",), "idempotency key")
    assert (job.timeout, job.cpus, job.memory, job.licenses) == (1800.0, 2, 1 << 30, {"orcaflex": 1})
    assert job.retry == Retry(max=2, on=(Cause.SIGNAL, Cause.TIMEOUT), delay_seconds=2.0)


def test_what_is_left_out_is_as_the_solver_says() -> None:
    job = parse_job_file(b'inputs = ["a.inp"]', NAME)
    assert job == JobFile(inputs=("a.inp",))
    assert (job.solver, job.timeout, job.cpus, job.memory, job.licenses, job.retry) == (None,) * 6


def test_a_mark_in_front_as_editors_on_windows_write_it() -> None:
    assert parse_job_file(FULL.replace("\n", "\r\n").encode("utf-8-sig"), NAME) == parse_job_file(FULL.encode(), NAME)


def test_retry_can_be_switched_off() -> None:
    assert parse_job_file(b"retry = { max = 0 }", NAME).retry == Retry()


@pytest.mark.parametrize(
    ("text", "code", "want"),
    [
        ("priorty = 3", "job_file_key", 'line 1: priorty: no such key; did you mean "priority"?'),
        ("\n[job]\nsolver = 'ccx'", "job_file_key", "line 2: job: no such key; known: solver, inputs, name"),
        ("retry = { max = 1, on = ['exit'], wait = '1s' }", "job_file_key", "line 1: retry.wait: no such key"),
        ('solver = "CCX"', "job_file_value", 'solver: "CCX" is not a solver name'),
        ("solver = 1", "job_file_value", "solver: 1 is not a solver name"),
        ('inputs = "a.inp"', "job_file_value", 'inputs: "a.inp" is not a list'),
        (
            'inputs = ["mesh/a.inc"]',
            "job_file_value",
            'inputs[0]: "mesh/a.inc" is not the name of a file beside this one',
        ),
        ('inputs = ["a\\\\b"]', "job_file_value", 'inputs[0]: "a\\\\b" is not the name of a file'),
        ('inputs = [".."]', "job_file_value", 'inputs[0]: ".." is not the name'),
        ('inputs = ["/etc/passwd"]', "job_file_value", 'inputs[0]: "/etc/passwd" is not the name'),
        ('inputs = [""]', "job_file_value", 'inputs[0]: "" is not the name'),
        ('inputs = ["a\\u0000b"]', "job_file_value", 'inputs[0]: "a\\u0000b" is not the name'),
        ('inputs = ["a", "b",\n"a"]', "job_file_value", 'line 2: inputs[2]: "a" stands here twice'),
        ("priority = 1001", "job_file_value", "priority: 1001 is not a whole number from -1000 to 1000"),
        ("priority = true", "job_file_value", "priority: true is not a whole number"),
        ("name = ''", "job_file_value", 'name: "" is not a text in quotes, on one line, of 1 to 200 characters'),
        ('name = "two\\nlines"', "job_file_value", 'name: "two\\nlines" is not a text in quotes, on one line'),
        ("name = 2026-01-02", "job_file_value", "name: 2026-01-02 is not a text in quotes"),
        ("params = { mesh = [1] }", "job_file_value", "params.mesh: a list is not a number, a text in quotes, or true"),
        ("params = { x = nan }", "job_file_value", "params.x: nan is not a number"),
        ("params = { x = 1" + "0" * 30 + " }", "job_file_value", "is not a number, a text in quotes, or true or false"),
        ('timeout = "30"', "job_file_value", 'timeout: "30" is not a duration such as'),
        ("cpus = 0", "job_file_value", "cpus: 0 is not a whole number from 1"),
        ("licenses = { a = -1 }", "job_file_value", "licenses.a: -1 is not a whole number from 0"),
        ("retry = { max = 2 }", "job_file_value", "retry.max: 2 without on has no effect"),
        ("retry = { max = 2, on = ['lost'] }", "job_file_value", 'retry.on[0]: "lost" is not one of "spawn", "exit"'),
        ("simulate = { stp = 1 }", "job_file_key", 'simulate.stp: no such key; did you mean "stop"?'),
        ("stop = 5", "job_file_key", 'stop: no such key; it belongs in "simulate"'),
        ("simulate = { stop = '5s' }", "job_file_value", 'simulate.stop: "5s" is not a number'),
        ("simulate = { start = 3, stop = 2 }", "job_file_value", "simulate.stop: 2 is not after start, 3"),
        ("overrides = { 'a b' = 1 }", "job_file_value", 'overrides."a b": "a b" is not the name of a param'),
        ("overrides = { k = [1, 2] }", "job_file_value", "overrides.k: a list is not a number, true or false, or a"),
        ("solver = ccx", "job_file_syntax", "line 1, column 10: Invalid value"),
        ("x = " + "9" * 190 + "\ny = " + "[" * 40, "job_file_syntax", "line 2: brackets nested deeper than 32"),
    ],
)
def test_what_is_refused(text: str, code: str, want: str) -> None:
    refused, message = refusal(text)
    assert refused == code
    assert message.startswith(f"{NAME}: ")
    assert want in message
    assert message.count("line ") == 1, "one mistake, one fault"


def test_all_faults_are_named_at_once() -> None:
    code, message = refusal('priority = "high"\ncpus = 0\nlisences = {}\n')
    assert code == "job_file_key"
    assert message == (
        'beam.job.toml: line 1: priority: "high" is not a whole number from -1000 to 1000; '
        "line 2: cpus: 0 is not a whole number from 1 to 1000000; "
        'line 3: lisences: no such key; did you mean "licenses"?'
    )


def test_bytes_that_are_no_job_file() -> None:
    assert refusal(b"# \xff") == ("job_file_syntax", "beam.job.toml: line 1: not UTF-8; save the file as UTF-8")
    assert refusal(b"#" * (LARGEST_FILE + 1)) == ("job_file_too_large", "beam.job.toml is larger than 64 KiB")
    assert parse_job_file(b"#" * LARGEST_FILE, NAME) == JobFile()


@pytest.mark.parametrize(
    "text",
    [
        "a." * 30_000 + "b = 1",
        "\n".join(f"unknown{n} = 1" for n in range(5000)),
        "params = {" + ",".join(f"p{n} = 1" for n in range(5000)) + "}",
        "inputs = [" + ",".join(f'"f{n}"' for n in range(6000)) + "]",
        "inputs = [" + ",".join('"f"' for n in range(15000)) + "]",
        "'" + "x" * 65_000 + "' = 1",
        "[" + "\n" * 65_000,
        "[" + " \n" * 32_000,
        "[\ninputs = [" + "'" * 65_000,
        "[\n" + "inputs =\n" * 7_000,
    ],
    ids=["dotted", "unknown keys", "params", "inputs", "the same input", "long key"]
    + [f"broken, {what}" for what in ("lines", "blanks", "quotes", "inputs")],
)
def test_fault_75_no_job_file_is_slow_or_answered_at_length(text: str) -> None:
    """A scan reads it twice, for what it names and for the inputs a faulty one means; one match holds all threads."""
    solver = config.parse('[solver.x]\ncommand = ["x"]\nparams.p = { type = "int" }', Path("c")).solver["x"]
    started = time.process_time()
    answer = ""
    try:
        check_params(solver, parse_job_file(text.encode(), NAME).params)
    except Refused as refused:
        answer = str(refused)
    named_inputs(text.encode())
    assert time.process_time() - started < 1.0
    assert len(answer) < 12_000


@given(st.binary(max_size=300) | st.text(alphabet="ab.=[]{}\"'\n#\\,1 ", max_size=200).map(str.encode))
def test_whatever_the_bytes_only_refused_comes_out(data: bytes) -> None:
    refused: Refused | None = None
    try:
        parse_job_file(data, NAME)
    except Refused as caught:
        refused = caught
    if refused is not None:
        assert refused.refusal.startswith("job_file_")
        assert str(refused).isprintable()


# --- models -----------------------------------------------------------------------------------------------------------

MODEL = """\
[simulate]
model = "Lib.Ball"
stop = 5
tolerance = 1e-8
[overrides]
k = 2.5
"body[2].mass" = 7
damped = true
"""


def test_what_is_asked_of_a_model_comes_as_plain_values_that_the_kind_reads_back() -> None:
    omc = config.parse('[solver.x]\nkind = "omc"', Path("c")).solver["x"]
    options = check_options("x", omc, parse_job_file(MODEL.encode(), NAME))
    assert options == {
        "simulate": {"model": "Lib.Ball", "stop": 5, "tolerance": 1e-8, "output": "csv"},
        "overrides": {"k": 2.5, "body[2].mass": 7, "damped": True},
    }
    settings = Simulate(model="Lib.Ball", stop=5, tolerance=1e-8)
    assert model_job(options) == ModelJob(simulate=settings, overrides=options["overrides"])
    assert check_options("x", omc, JobFile()) == {}


@pytest.mark.parametrize(
    ("text", "tables"),
    [(MODEL, "simulate and overrides"), ("[simulate]", "simulate"), ("[overrides]", "overrides")],
)
def test_only_a_solver_of_the_kind_takes_them(text: str, tables: str) -> None:
    command = config.parse('[solver.ccx]\ncommand = ["x"]', Path("c")).solver["ccx"]
    with pytest.raises(Refused) as caught:
        check_options("ccx", command, parse_job_file(text.encode(), NAME))
    assert caught.value.refusal == "param"
    assert str(caught.value) == f'{tables}: only for solvers of kind "omc", and ccx is of kind "command"'


# --- params -----------------------------------------------------------------------------------------------------------

PARAMS = """\
[solver.x]
command = ["x"]
[solver.x.params]
load = { type = "float", default = 1.0, min = 0, max = 10 }
steps = { type = "int", default = 5, min = 1 }
mode = { type = "str", default = "fast", choices = ["fast", "exact"] }
note = { type = "str", default = "" }
flags = { type = "str", default = "", dash = true }
plot = { type = "bool", default = false }
"""


def check(params: dict[str, Any], more: str = "") -> dict[str, Any]:
    return check_params(config.parse(PARAMS + more, Path("c")).solver["x"], params)


def test_good_values_come_back_typed() -> None:
    good = {"load": 3, "steps": 2, "mode": "exact", "note": "a 'b' {stem} \u00e4", "flags": "-v", "plot": True}
    checked = check(good)
    assert checked == {**good, "load": 3.0}
    assert {type(checked["load"]), type(checked["steps"]), type(checked["plot"])} == {float, int, bool}


def test_defaults_are_applied_later() -> None:
    assert check({}) == {}


@pytest.mark.parametrize(
    ("params", "want"),
    [
        ({"laod": 1.0}, 'params.laod: no such parameter of this solver; did you mean "load"?'),
        ({"load": "3"}, 'params.load: "3" is not a number'),
        ({"load": True}, "params.load: true is not a number"),
        ({"steps": 1.0}, "params.steps: 1.0 is not a whole number"),
        ({"steps": True}, "params.steps: true is not a whole number"),
        ({"plot": 1}, "params.plot: 1 is not true or false"),
        ({"mode": 1}, "params.mode: 1 is not a text in quotes"),
        ({"load": -0.5}, "params.load: -0.5 is less than 0, the smallest allowed"),
        ({"load": 11}, "params.load: 11.0 is more than 10, the largest allowed"),
        ({"mode": "slow"}, 'params.mode: "slow" is not one of "fast", "exact"'),
        ({"note": "-rf"}, 'params.note: "-rf" starts with -, which a program may take for an option'),
        ({"note": "a\x1b[0m"}, 'params.note: "a\\u001b[0m" holds control characters'),
        ({"note": "a\x85"}, "holds control characters"),
        ({"flags": "-a\n"}, "holds control characters"),
        ({"note": "x" * 4097}, "is longer than 4096 characters"),
    ],
)
def test_a_wrong_value_is_refused(params: dict[str, Any], want: str) -> None:
    with pytest.raises(Refused) as caught:
        check(params)
    assert caught.value.refusal == "param"
    assert want in str(caught.value)


def test_a_parameter_without_default_must_be_given() -> None:
    more = 'speed = { type = "int" }\n'
    assert check({"speed": 1}, more) == {"speed": 1}
    with pytest.raises(Refused, match=r"^params\.speed: the solver needs a whole number; give it in a job file$"):
        check({}, more)


def test_all_wrong_values_are_named() -> None:
    with pytest.raises(Refused) as caught:
        check({"load": "x", "nope": 1, "steps": 0})
    assert str(caught.value).count("params.") == 3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('inputs = ["p.num"]\nprioritiy = 3\n', ("p.num",)),
        ('inputs = ["p.num", "q.num", "p.num"]\nretry = { max = 200 }\n', ("p.num", "q.num")),
        ('name = "unclosed\ninputs = [\n  "p.num",  # one\n  \'q.num\',\n]\n', ("p.num", "q.num")),
        ('inputs = "p.num"\n', ("p.num",)),
        ('inputs = ["../p.num", 3, ""]\n', ()),
        ("= broken", ()),
        ("\x00\xff", ()),
    ],
)
def test_a_faulty_job_file_still_tells_which_inputs_are_not_to_run_without_it(
    text: str, names: tuple[str, ...]
) -> None:
    assert named_inputs(text.encode()) == names
