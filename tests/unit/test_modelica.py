"""The words of OpenModelica, read from what was recorded of it; and what a job file may say of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from builders import make_spec
from solvisor.model import FileFact
from solvisor.modeljob import ModelJob, Simulate, check_model_job, model_job, override_text
from solvisor.solvers import modelica
from solvisor.solvers.modelica import BadOverride, BadReply, Setup, Variable
from solvisor.solvers.modelrun import sources
from solvisor.tables import Faults, read

TRANSCRIPT = Path(__file__).parents[1] / "data" / "omc" / "transcript.jsonl"


def recorded(request: str, nth: int = 0) -> str:
    """What omc answered to a request."""
    exchanges = (json.loads(line) for line in TRANSCRIPT.read_text().splitlines())
    return str([exchange["reply"] for exchange in exchanges if exchange["request"] == request][nth])


def errors_after(request: str) -> str:
    """What omc's buffer of errors held after a request."""
    exchanges = [json.loads(line) for line in TRANSCRIPT.read_text().splitlines()]
    at = next(at for at, exchange in enumerate(exchanges) if exchange["request"].startswith(request))
    assert exchanges[at + 1]["request"] == "getErrorString()"
    return modelica.as_text(exchanges[at + 1]["reply"])


# --- replies ----------------------------------------------------------------------------------------------------------


def test_texts() -> None:
    assert modelica.as_text(recorded("getVersion()")) == "v1.26.9-cmake"
    assert modelica.as_text(recorded(r'"a\"b"')) == 'a"b'
    assert modelica.as_text('"two\nlines and a \\\\ \n"\n') == "two\nlines and a \\ \n"
    assert 'setCommandLineOptions("-d=initialization")' in errors_after("simulate(Warn")
    for text in ('plain "quoted" \\ text', "a\nb", ""):
        assert modelica.as_text(modelica.quote(text) + "\n") == text


@pytest.mark.parametrize("reply", ["", "\n", "Ok\n", '"open', '"a" "b"\n', "true\n"])
def test_what_is_no_text(reply: str) -> None:
    with pytest.raises(BadReply, match="a text in quotes was expected"):
        modelica.as_text(reply)


def test_booleans() -> None:
    assert modelica.as_bool(recorded("isModel(M)"))
    assert not modelica.as_bool(recorded("isModel(Zzz)"))
    with pytest.raises(BadReply, match="true or false was expected"):
        modelica.as_bool(recorded("nosuchvariable"))


def test_lists() -> None:
    assert modelica.as_names(recorded("getClassNames()")) == ["P", "N", "M"]
    assert modelica.as_names(recorded("getClassNames()", 1)) == []
    assert modelica.as_texts(recorded("buildModel(M)")) == ["/tmp/omctr/M", "M_init.xml"]
    assert modelica.as_texts(recorded("buildModel(Zzz)")) == ["", ""]
    assert modelica.as_texts('{"a, b", "}"}\n') == ["a, b", "}"]
    for reply in ("true\n", "{1, 2}\n", "\n"):
        with pytest.raises(BadReply):
            modelica.as_texts(reply)


# --- what went wrong --------------------------------------------------------------------------------------------------


def test_errors() -> None:
    bad = errors_after('loadFile("Bad.mo")')
    assert modelica.first_error(bad, "/tmp/omctr") == "Bad.mo, line 3: Missing token: SEMICOLON"
    assert modelica.first_error(bad, "/tmp") == "omctr/Bad.mo, line 3: Missing token: SEMICOLON"
    assert modelica.first_error(errors_after("nosuchvariable"), "/") == (
        "Variable nosuchvariable not found in scope <global scope>."
    )
    unbalanced = errors_after("simulate(Unbal)")
    assert str(modelica.first_error(unbalanced, "/")).startswith("Too few equations, under-determined system.")
    assert modelica.first_error(errors_after("simulate(Warn"), "/") is None
    assert modelica.first_error("", "/") is None
    offline = errors_after("buildModel(Zzz)")
    assert str(modelica.first_error(offline, "/")).startswith("Failed to load package Zzz (default)")


@pytest.mark.parametrize(
    ("request_text", "fault"),
    [
        ("simulate(M)", None),
        ('simulate(M, outputFormat="csv")', None),
        ("buildModel(M)", None),
        ("getErrorString()", "Variable nosuchvariable not found in scope <global scope>."),
        ("buildModel(Zzz)", "a model could not be built"),
        ("simulate(Unbal)", "Failed to build model: Unbal"),
        ('simulate(M, outputFormat="csv", simflags="-nosuchflag")', "invalid command line option: -nosuchflag"),
        ('simulate(M, method="nosuchmethod", outputFormat="csv")', "unrecognized option -s nosuchmethod"),
        (
            'simulate(Boom, stopTime=5, outputFormat="csv")',
            "x too large: the assertion (x < 10.0) was violated at time 0.900000",
        ),
    ],
)
def test_scripts_that_said_this(request_text: str, fault: str | None) -> None:
    reply = recorded(request_text)
    if "nosuch" in request_text and "simulate" in request_text:  # kept short in the record
        reply += '",\n'
    assert modelica.script_fault(f"true\n{reply}1\n", "", "/tmp/omctr") == fault


def test_a_script_that_could_not_be_read() -> None:
    errors = "[/srv/omc/run.mos:2:4-2:4:writable] Error: Missing token: SEMICOLON\n"
    assert modelica.script_fault("Failed", errors, "/srv/omc") == "run.mos, line 2: Missing token: SEMICOLON"
    assert modelica.script_fault("Failed", "", "/srv/omc") == "omc could not read the script"
    assert modelica.script_fault("Failed to think\n", "", "/srv/omc") is None


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("simulate(M);\nquit();", ("quit()", 2)),
        ("exit( 3 )", ("exit()", 1)),
        ("a:=1; /* x\n\n*/ quit ()", ("quit()", 3)),
        ("// quit()\n/* exit(0) */", None),
        ('print("exit(1)"); "a\\" quit()";', None),
        ("M.exit(1); myquit(); quitter();", None),
        ("/* never closed quit()", None),
    ],
)
def test_scripts_that_end_their_server(script: str, found: tuple[str, int] | None) -> None:
    assert modelica.quitting_line(script) == found


def test_why_a_simulation_failed() -> None:
    assert modelica.failure_sentence("") is None
    assert modelica.failure_sentence("LOG_SUCCESS       | info    | The simulation finished successfully.\n") is None
    warning = "LOG_STDOUT        | warning | first\n"
    error = "LOG_STDOUT        | error   | it broke\n|                 | |       | here"
    assert modelica.failure_sentence(warning + error) == "it broke here"
    assert modelica.failure_sentence(warning) == "first"


@pytest.mark.parametrize(
    ("said", "code", "signal", "words"),
    [
        ("Error: You are trying to run OpenModelica as a server using the root user.", 1, None, "an ordinary user"),
        ("Error creating ZeroMQ Server. zmq_bind failed: Permission denied\nusage", 0, None, "Permission denied"),
        ("", None, 11, "its port file"),
        ("Dumped server port in file: /tmp/x", 5, None, "ended itself with exit code 5"),
        ("Dumped server port in file: /tmp/x", None, 11, None),
        ("", 0, None, None),
        ("Invalid type of flag", 1, None, None),
        ("", None, 9, None),
    ],
)
def test_ends_that_nobody_asked_for(said: str, code: int | None, signal: int | None, words: str | None) -> None:
    found = modelica.explained_end(said, code, signal)
    assert found is None if words is None else words in str(found)


# --- compiled models --------------------------------------------------------------------------------------------------

SETUP_FILE = """<?xml version = "1.0" encoding="UTF-8"?>
<fmiModelDescription modelName = "M">
  <DefaultExperiment
    startTime      = "0.5"
    stopTime       = "2.5"
    stepSize       = "0.004"
    tolerance      = "1e-6"
    solver         = "dassl" />
  <ModelVariables>
  <ScalarVariable
    name = "x"
    variability = "continuous" isDiscrete = "false"
    causality = "local" isValueChangeable = "true"
    alias = "noAlias">
    <Real start="1.0" fixed="true" useNominal="false" />
  </ScalarVariable>
  <ScalarVariable name = "k" variability = "parameter" causality = "parameter" isValueChangeable = "true">
    <Real start="1.0" fixed="true" useNominal="false" unit="&lt;m&gt;" />
  </ScalarVariable>
  <ScalarVariable name = "a[1,2].&quot;b&quot;" variability = "parameter" isValueChangeable = "false">
    <Integer start="3" fixed="true" />
  </ScalarVariable>
  </ModelVariables>
</fmiModelDescription>
"""


def test_setup_files(tmp_path: Path) -> None:
    path = tmp_path / "M_init.xml"
    path.write_text(SETUP_FILE)
    setup = modelica.read_setup(path)
    assert (setup.start, setup.stop) == (0.5, 2.5)
    assert setup.variables == {
        "x": Variable("Real", parameter=False, changeable=True),
        "k": Variable("Real", parameter=True, changeable=True),
        'a[1,2]."b"': Variable("Integer", parameter=True, changeable=False),
    }
    for broken in (SETUP_FILE[:300], SETUP_FILE.replace("0.5", "soon"), "<a/>", ""):
        path.write_text(broken)
        with pytest.raises(BadReply, match=r"M_init\.xml is not the setup file of a model"):
            modelica.read_setup(path)


SETUP = Setup(
    0.0,
    1.0,
    {
        "k": Variable("Real", parameter=True, changeable=True),
        "n": Variable("Integer", parameter=True, changeable=True),
        "on": Variable("Boolean", parameter=True, changeable=True),
        "file": Variable("String", parameter=True, changeable=True),
        "tolerance": Variable("Real", parameter=True, changeable=True),
        "x": Variable("Real", parameter=False, changeable=True),
        "final": Variable("Real", parameter=True, changeable=False),
    },
)


@pytest.mark.parametrize(
    ("simulate", "overrides", "argument", "stop"),
    [
        ({}, {}, "outputFormat=csv", 1.0),
        ({"stop": 5}, {}, "startTime=0.0,stopTime=5.0,stepSize=0.01,outputFormat=csv", 5.0),
        ({"intervals": 4}, {}, "startTime=0.0,stopTime=1.0,stepSize=0.25,outputFormat=csv", 1.0),
        ({"start": 1, "stop": 1}, {}, "startTime=1.0,stopTime=1.0,stepSize=0.0,outputFormat=csv", 1.0),
        ({"method": "ida", "output": "mat"}, {}, "solver=ida,outputFormat=mat", 1.0),
        ({}, {"k": 1e-9, "n": -3, "on": True}, "outputFormat=csv,k=1e-09,n=-3,on=true", 1.0),
        ({}, {"k": 2, "file": "a b=c"}, "outputFormat=csv,k=2,file=a b=c", 1.0),
    ],
)
def test_arguments_of_a_run(simulate: dict[str, Any], overrides: dict[str, Any], argument: str, stop: float) -> None:
    assert modelica.overriding(SETUP, Simulate(**simulate), overrides) == (argument, stop)


@pytest.mark.parametrize(
    ("simulate", "overrides", "words"),
    [
        ({"stop": -1}, {}, "the stop time -1 is before the start time 0"),
        ({"tolerance": 1e-8}, {}, "the model has a variable tolerance"),
        ({}, {"tolerance": 1e-8}, "use [simulate]"),
        ({}, {"kk": 1}, 'no parameter kk; did you mean "k"?'),
        ({}, {"zzzzzz": 1}, "no parameter zzzzzz; known: k, n, on, file, tolerance"),
        ({}, {"x": 1}, "x is a variable of the model, not a parameter"),
        ({}, {"final": 1}, "the parameter final cannot be changed"),
        ({}, {"k": True}, "overrides.k is true, but the parameter is a number"),
        ({}, {"k": "1"}, 'overrides.k is "1", but the parameter is a number'),
        ({}, {"n": 1.0}, "overrides.n is 1.0, but the parameter is a whole number"),
        ({}, {"n": True}, "overrides.n is true"),
        ({}, {"on": 1}, "overrides.on is 1, but the parameter is true or false"),
        ({}, {"file": 1}, "overrides.file is 1, but the parameter is a text"),
    ],
)
def test_what_a_run_cannot_be_told(simulate: dict[str, Any], overrides: dict[str, Any], words: str) -> None:
    with pytest.raises(BadOverride) as caught:
        modelica.overriding(SETUP, Simulate(**simulate), overrides)
    assert words in str(caught.value)
    assert caught.value.reason == "override"


# --- job files --------------------------------------------------------------------------------------------------------


def faults_of(table: dict[str, Any]) -> list[str]:
    faults = Faults()
    job = read(ModelJob, table, faults)
    if job is not None and not faults.found:
        check_model_job((), job, faults)
    return faults.lines({})


def test_a_whole_job() -> None:
    table = {
        "simulate": {"model": "P.Ball", "start": 0, "stop": 2.5, "intervals": 100, "tolerance": 1e-8}
        | {"method": "cvode", "output": "mat"},
        "overrides": {"e": 0.5, "body[1,2].n": 3, "on": False, "file": "a.txt"},
    }
    assert faults_of(table) == []
    assert model_job(table) == read(ModelJob, table, Faults())
    assert model_job({}) == ModelJob()


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"simulate": {"mdel": "A"}}, 'simulate.mdel: no such key; did you mean "model"?'),
        ({"simulate": {"model": "A; quit()"}}, "is not the name of a model"),
        ({"simulate": {"method": "a,b"}}, "is not the name of an integration method"),
        ({"simulate": {"stop": float("inf")}}, "simulate.stop: inf is not a number"),
        ({"simulate": {"stop": "5s"}}, "simulate.stop"),
        ({"simulate": {"tolerance": 0}}, "simulate.tolerance"),
        ({"simulate": {"start": 2, "stop": 2}}, "simulate.stop: 2 is not after start, 2"),
        ({"overrides": {"k=1,stopTime": 9}}, "is not the name of a parameter"),
        ({"overrides": {"k": "a,b"}}, "overrides.k"),
        ({"overrides": {"k": "a\nb"}}, "overrides.k"),
        ({"overrides": {"k": "a[b"}}, "overrides.k"),
        ({"overrides": {"k": "a!b"}}, "overrides.k"),
        ({"overrides": {"k": float("nan")}}, "overrides.k"),
        ({"overrides": {"k": [1]}}, "overrides.k"),
    ],
)
def test_faulty_jobs(table: dict[str, Any], words: str) -> None:
    (line,) = faults_of(table)
    assert words in line


def test_values_are_written_as_a_run_reads_them() -> None:
    assert [override_text(value) for value in (True, False, 3, -2.5, 1e300, "a=b")] == [
        "true",
        "false",
        "3",
        "-2.5",
        "1e+300",
        "a=b",
    ]
    with pytest.raises(ValueError, match="comma"):
        model_job({"overrides": {"k": "1,2"}})


@pytest.mark.parametrize(
    ("primary", "others", "order"),
    [
        ("B.mo", ["A.mo", "t.txt", "C.MO"], ["A.mo", "C.MO", "B.mo"]),
        ("M.mo", ["Lib/A.mo", "Lib/package.mo", "Lib/In/package.mo", "Lib/In/B.mo"], ["Lib/package.mo", "M.mo"]),
        ("package.mo", ["A.mo", "In/package.mo"], ["package.mo"]),
        ("M.mo", ["sub/A.mo"], ["sub/A.mo", "M.mo"]),
    ],
)
def test_what_is_loaded(primary: str, others: list[str], order: list[str]) -> None:
    facts = tuple(FileFact(f"input/{name}", 1, "ab") for name in (primary, *others))
    assert sources(make_spec("j", primary=primary, inputs=facts)) == order
