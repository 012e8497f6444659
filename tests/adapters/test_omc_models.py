"""Models as jobs of the kind ``omc``, against the double of omc: compiled once, run often, judged by their results."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec.structs import replace

from doubles.omc_kit import BALL, BOOM, DECAY, Lab
from solvisor.kinds import OmcSolver
from solvisor.model import FileFact
from waiting import eventually

pytest.importorskip("zmq", reason="needs pyzmq")
LOOPS = "uvloop"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


async def test_a_model_is_compiled_once_and_run_often(lab: Lab) -> None:
    kind = lab.kind()
    channel, other = await lab.connect(kind), await lab.connect(kind)
    facts, report = await lab.run(channel, {"Decay.mo": DECAY})
    assert facts.exit_code == 0
    assert all(check.ok for check in report.checks)
    assert report.result["built"] is True
    assert report.result["model"] == "Decay"
    assert report.result["final"]["x"] == pytest.approx(math.exp(-2), rel=1e-6)
    assert sorted(os.listdir(lab.last.folder / "output")) == ["Decay.mo", "Decay_res.csv"]
    for stop in (1, 3):
        options = {"simulate": {"stop": stop, "intervals": 10}, "overrides": {"k": 0.5, "n": 4, "on": False}}
        _, report = await lab.run(other, {"Decay.mo": DECAY}, options)
        assert report.result["built"] is False
        assert report.result["rows"] == 11
        assert report.result["final"]["x"] == pytest.approx(math.exp(-0.5 * stop), rel=1e-4)
    assert lab.compiled() == ["Decay"]
    assert channel.spent is None
    assert os.readlink(f"/proc/{lab.servers[0].process.pid}/cwd") == str(lab.servers[0].stdout.parent)
    await lab.run(channel, {"Decay.mo": DECAY.replace("2.0", "3.0")})
    assert lab.compiled() == ["Decay", "Decay"]


async def test_the_same_model_at_the_same_time_is_compiled_once(lab: Lab) -> None:
    kind = lab.kind()
    channels = [await lab.connect(kind) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for channel in channels:
            tasks.start_soon(lab.run, channel, {"Ball.mo": BALL})
    assert lab.compiled() == ["Ball"]


async def test_what_else_goes_into_a_model_makes_it_another(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    for table in ("1 2", "1 3", "1 2"):
        await lab.run(channel, {"Ball.mo": BALL, "table.txt": table})
    assert len(lab.compiled()) == 2
    with_options = OmcSolver(pass_env=("OMC_*",), options=("-d=initialization",))
    await lab.run(await lab.connect(lab.kind(with_options)), {"Ball.mo": BALL, "table.txt": "1 2"})
    assert len(lab.compiled()) == 3
    with_libraries = OmcSolver(pass_env=("OMC_*",), env={"OPENMODELICALIBRARY": "/opt/libraries"})
    await lab.run(await lab.connect(lab.kind(with_libraries)), {"Ball.mo": BALL, "table.txt": "1 2"})
    assert len(lab.compiled()) == 4


@pytest.mark.parametrize("form", ["csv", "mat", "plt"])
async def test_settings(lab: Lab, form: str) -> None:
    channel = await lab.connect(lab.kind())
    simulate = {"start": 1, "stop": 2.5, "intervals": 30, "tolerance": 1e-8, "method": "euler", "output": form}
    facts, report = await lab.run(channel, {"Ball.mo": BALL}, {"simulate": simulate})
    assert facts.exit_code == 0
    assert all(check.ok for check in report.checks)
    assert report.result["rows"] == (None if form == "plt" else 31)
    (argument,) = [word for word in lab.last.launched[0].argv if word.startswith("-override=")]
    assert argument == (
        f"-override=startTime=1.0,stopTime=2.5,stepSize=0.05,tolerance=1e-08,solver=euler,outputFormat={form}"
    )
    assert (lab.last.folder / "output" / f"Ball_res.{form}").exists()


async def test_dependencies_are_loaded_first(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    _, report = await lab.run(channel, {"Decay.mo": DECAY, "Ball.mo": BALL})
    assert report.result["model"] == "Decay"
    _, report = await lab.run(channel, {"Ball.mo": BALL, "Decay.mo": DECAY})
    assert report.result["model"] == "Ball"
    _, report = await lab.run(channel, {"Ball.mo": BALL, "Decay.mo": DECAY}, {"simulate": {"model": "Decay"}})
    assert report.result["model"] == "Decay"
    assert set(report.result["final"]) == {"x", "der(x)"}


PACKAGE = f"package P\n{BALL}\n{DECAY}\nend P;"


@pytest.mark.parametrize(
    ("text", "options", "code", "message"),
    [
        (f"{DECAY}\n{BALL}", {}, "model", "holds Ball and Decay; say which to simulate"),
        (PACKAGE, {}, "model", "holds no model at its top level"),
        (PACKAGE, {"simulate": {"model": "P.Bal"}}, "model", "there is no model P.Bal in X.mo; there are P"),
        ("model Bad\n  Real x\nend Bad;\n", {}, "load_failed", "X.mo, line 3: Missing token: SEMICOLON"),
        ("model U Real x; Real y; equation der(x)=-x; end U;", {}, "build_failed", "U could not be compiled: Too few"),
        (DECAY, {"simulate": {"stpo": 1}}, "options", "stpo"),
        (DECAY, {"simulate": {"stop": -1}}, "override", "the stop time -1 is before the start time 0"),
        (DECAY, {"overrides": {"kk": 1}}, "override", 'the model has no parameter kk; did you mean "k"?'),
        (DECAY, {"overrides": {"x": 1}}, "override", "x is a variable of the model"),
        (DECAY, {"overrides": {"half": 1}}, "override", "the parameter half cannot be changed"),
        (DECAY, {"overrides": {"n": 1.5}}, "override", "overrides.n is 1.5, but the parameter is a whole number"),
        (DECAY, {"overrides": {"on": 1}}, "override", "overrides.on is 1, but the parameter is true or false"),
        (DECAY, {"overrides": {"k": "1,stopTime=9"}}, "options", "comma"),
        (DECAY, {"overrides": {"stopTime": 9}}, "override", "taken for a setting"),
    ],
)
async def test_a_model_job_that_cannot_be(
    lab: Lab, text: str, options: dict[str, Any], code: str, message: str
) -> None:
    channel = await lab.connect(lab.kind())
    facts, report = await lab.run(channel, {"X.mo": text}, options)
    assert (facts.exit_code, report.code) == (1, code)
    assert message in str(report.message)
    assert not lab.last.launched
    facts, _ = await lab.run(channel, {"Ball.mo": BALL})
    assert facts.exit_code == 0


async def test_a_model_in_a_package(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    facts, report = await lab.run(channel, {"P.mo": PACKAGE}, {"simulate": {"model": "P.Ball"}})
    assert facts.exit_code == 0
    assert report.result["result"] == "P.Ball_res.csv"


async def test_errors_of_a_compilation_are_told_and_not_kept(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    bad = "model U Real x; Real y; equation der(x)=-x; end U;"
    for _ in range(2):
        _, report = await lab.run(channel, {"U.mo": bad})
        assert report.code == "build_failed"
        assert "Too few equations" in lab.last.read("stderr.log")
    assert lab.compiled() == ["U", "U"]
    assert os.listdir(lab.folder / "cache" / "omc") == []


async def test_warnings_go_to_the_log(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    facts, _ = await lab.run(channel, {"W.mo": "model W Real x; equation der(x)=-x; end W;"})
    assert facts.exit_code == 0
    assert "initial conditions are not fully specified" in lab.last.read("stderr.log")


async def test_a_simulation_that_fails_keeps_its_exit_code(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    facts, report = await lab.run(channel, {"Boom.mo": BOOM}, {"simulate": {"stop": 5}})
    assert facts.exit_code == 255
    assert report.code == "simulation"
    assert "x too large: the assertion (x < 10.0) was violated at time 0.9" in str(report.message)
    facts, report = await lab.run(channel, {"Ball.mo": BALL}, {"simulate": {"method": "nosuch"}})
    assert facts.exit_code == 255
    assert report.message == "unrecognized option -s nosuch"
    assert channel.spent is None


async def test_a_result_must_reach_its_stop_time(lab: Lab) -> None:
    channel = await lab.connect(lab.kind(STOP_SHORT=1))
    for form in ("csv", "mat"):
        facts, report = await lab.run(channel, {"Ball.mo": BALL}, {"simulate": {"output": form}})
        assert facts.exit_code == 0
        assert [(check.want, check.got) for check in report.checks if not check.ok] == [
            ("reaches time 1", "ends at time 0.5")
        ]


async def test_a_result_must_be_finite(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    model = "model I Real x(start=1,fixed=true); equation der(x)=x*1e308*1e308; end I;"
    for form in ("csv", "mat"):
        facts, report = await lab.run(channel, {"I.mo": model}, {"simulate": {"output": form}})
        assert facts.exit_code == 0
        assert [check.want for check in report.checks if not check.ok] == ["only finite numbers"]


async def test_a_result_must_be_of_this_run(lab: Lab) -> None:
    channel = await lab.connect(lab.kind(NO_RESULT=1))
    facts, report = await lab.run(channel, {"Ball.mo": BALL, "Ball_res.csv": '"time"\n0\n1\n'})
    assert facts.exit_code == 0
    assert [(check.want, check.got) for check in report.checks] == [("exists", "missing")]


async def test_a_job_file_is_no_part_of_the_model(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    for name in ("one.job.toml", "two.job.toml"):
        task = lab.task({"Ball.mo": BALL})
        inputs = (*task.job.spec.inputs, FileFact(f"input/{name}", 1, "ab" * 32))
        task.job = replace(task.job, asked=replace(task.job.spec, inputs=inputs))
        assert (await channel.run(task)).exit_code == 0
    assert lab.compiled() == ["Ball"]


async def test_a_stopped_simulation(lab: Lab) -> None:
    channel = await lab.connect(lab.kind(RUN_SECONDS=1000))
    task = lab.task({"Ball.mo": BALL})

    async def stop() -> None:
        handle = await eventually(lambda: task.handle, "the simulation")
        assert handle is not None
        handle.stop()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop)
        facts = await channel.run(task)
    assert (facts.signal, facts.stopped, facts.report) == (signal.SIGTERM, True, None)
    await channel.check()
