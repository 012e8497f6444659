"""The kind ``omc`` against the double of omc: real processes, a real socket, real files."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from doubles.omc_kit import BALL, BOOM, DECAY, Lab, Task
from solvisor.errors import NotReady, ServerBroken, SpawnError, Unreached
from solvisor.interfaces import Channel, Site
from solvisor.kinds import OmcSolver
from solvisor.model import ExitFacts, Report
from solvisor.solvers.modelcache import ModelCache
from solvisor.solvers.omc import OmcKind
from waiting import eventually

pytest.importorskip("zmq", reason="needs pyzmq")
LOOPS = "uvloop"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


# --- a server ---------------------------------------------------------------------------------------------------------


async def test_starts_answers_and_quits(lab: Lab) -> None:
    kind = lab.kind()
    channel = await lab.connect(kind)
    await channel.check()
    (server,) = lab.servers
    assert server.endpoint() == f"tcp://127.0.0.1:{channel.port}"
    assert server.port_file().parent == Path(server.stdout.parent / "tmp")
    assert channel.spent is None
    assert await channel.quit()
    await eventually(lambda: server.process.poll() == 0, "its end")
    assert not server.port_file().exists()
    assert not await channel.quit()


async def test_a_lost_reply_to_quit_is_not_waited_for(lab: Lab) -> None:
    channel = await lab.connect(lab.kind(LOSE_QUIT=1))
    with anyio.fail_after(20):
        assert await channel.quit()
    await eventually(lambda: lab.servers[0].process.poll() == 0, "its end")


async def test_a_slow_start_is_waited_for_and_explained(lab: Lab) -> None:
    notes: list[str] = []
    kind = lab.kind(SLOW_BIND=0.3, SLOW_FILE=0.3)
    up = lab.start(kind)
    with anyio.fail_after(30):
        channel = await kind.connect(up, notes.append)
    lab.channels.append(channel)
    assert notes[0] == "it did not print where its port is"
    assert notes[-1] == f"it listens on port {channel.port} and does not answer"


async def test_an_empty_port_file_is_not_believed(lab: Lab) -> None:
    notes: list[str] = []
    kind = lab.kind(SLOW_BIND=1000)
    up = lab.start(kind)
    port_file = Path(up.place.tmp, f"openmodelica.tester.port.{_suffix(lab)}")
    port_file.write_text("")
    said = f"Created ZeroMQ Server.\nDumped server port in file: {port_file}"
    Path(up.stdout).write_text(f"{said}what it prints next\n")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kind.connect, up, notes.append)
        await eventually(lambda: 'its port file holds ""' in notes, "a look at the file")
        port_file.write_text("tcp://127.0.0.1:1 and more")
        await eventually(lambda: 'its port file holds "tcp://127.0.0.1:1 and more"' in notes, "another look")
        port_file.write_text("tcp://127.0.0.1:1")
        await eventually(lambda: "nothing listens on port 1 of 127.0.0.1" in notes, "a look at the port")
        tasks.cancel_scope.cancel()


def _suffix(lab: Lab) -> str:
    args = lab.servers[-1].process.args
    assert isinstance(args, list)
    return next(str(word).removeprefix("-z=") for word in args if str(word).startswith("-z="))


async def test_a_mute_server_is_given_up(lab: Lab) -> None:
    channel = await lab.connect(lab.kind(MUTE_AT=3))
    with anyio.move_on_after(0.3) as scope:
        await channel.check()
    assert scope.cancelled_caught
    with pytest.raises(NotReady, match="given up"):
        await channel.check()
    with pytest.raises(Unreached, match="given up"):
        await channel.run(lab.task({"Decay.mo": DECAY}))


async def test_options_are_set_or_named(lab: Lab) -> None:
    await lab.connect(lab.kind(OmcSolver(pass_env=("OMC_*",), options=("-d=initialization",))))
    with pytest.raises(NotReady, match=r'option "--nosuchflag=1": Unknown option --nosuchflag\.; correct options'):
        await lab.connect(lab.kind(OmcSolver(pass_env=("OMC_*",), options=("--nosuchflag=1",))))


def test_the_program(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Site("omc.1", str(lab.folder / "a"), str(lab.folder / "a" / "tmp"), None)
    kind = lab.kind(OmcSolver(env={"TMPDIR": "/somewhere", "WHERE": "{server_dir}"}))
    program = kind.program(place)
    assert program.argv[:2] == (str(lab.folder / "bin" / "omc"), "--interactive=zmq")
    assert program.argv[3] == "--locale=C"
    assert program.env["TMPDIR"] == place.tmp
    assert program.env["WHERE"] == place.folder
    assert program.env["USER"] == "tester"
    other = kind.program(Site("omc.2", str(lab.folder / "b"), str(lab.folder / "b" / "tmp"), None))
    assert other.argv[2] != program.argv[2]
    cache = ModelCache(lab.folder / "cache", 1 << 20)
    nobody = OmcKind(OmcSolver(), "omc", lab.folder, {"PATH": str(lab.folder / "bin")}, {}, cache)
    assert nobody.program(place).env["USER"]
    with pytest.raises(SpawnError, match='the program "nosuchomc" of solver omc is not on the PATH'):
        lab.kind(OmcSolver(omc="nosuchomc")).program(place)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpawnError, match=r'pip install "solvisor\[omc\]"'):
        kind.program(place)


def test_a_failed_start_is_explained(lab: Lab) -> None:
    kind = lab.kind(ROOT_OK=None if os.geteuid() == 0 else 1)
    if os.geteuid() == 0:
        up = lab.start(kind)
        assert lab.servers[0].process.wait(20) == 1
        said = Path(up.stdout).read_text()
        assert "as an ordinary user" in str(kind.explain(said, ExitFacts(1, None, 0)))
    busy = "Error creating ZeroMQ Server. zmq_bind failed: Address already in use\nusage"
    assert "Address already in use" in str(kind.explain(busy, ExitFacts(0, None, 0)))
    assert "port file" in str(kind.explain("", ExitFacts(None, signal.SIGSEGV, 0)))
    assert kind.explain("Invalid type of flag", ExitFacts(1, None, 0)) is None


# --- scripts ----------------------------------------------------------------------------------------------------------


async def test_a_script(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    script = 'print("said aloud\\n"); loadFile("Decay.mo"); simulate(Decay, outputFormat="csv"); getErrorString();'
    facts, report = await lab.run(channel, {"run.mos": script, "Decay.mo": DECAY})
    assert (facts.exit_code, report) == (0, Report())
    assert (lab.last.folder / "output" / "Decay_res.csv").stat().st_size > 0
    assert lab.last.read("stdout.log").startswith("said aloud\n")
    assert "resultFile = " in lab.last.read("stdout.log")
    assert channel.spent == "it carried out the script run.mos"
    await channel.check()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("nosuch(1);\n1+1;", "Class nosuch not found in scope <global scope> (looking for a function or record)."),
        ('loadFile("none.mo"); simulate(Zzz);', "Simulation Failed. Model: Zzz does not exist!"),
        ('loadFile("Bad.mo");', "Bad.mo, line 3: Missing token: SEMICOLON"),
        ('loadFile("Bad.mo"); getErrorString();', "Bad.mo, line 3: Missing token: SEMICOLON"),
        (
            'loadFile("Boom.mo"); simulate(Boom, stopTime=5);',
            "x too large: the assertion (x < 10.0) was violated at time",
        ),
        ('loadFile("Boom.mo"); buildModel(Zzz);', "Failed to load package Zzz (default) using MODELICAPATH"),
        ("1+(;", "run.mos, line 1: Parser error: Unexpected token near: 1 (IDENT)"),
        ('echo(false); loadFile("Bad.mo");', "Bad.mo, line 3: Missing token: SEMICOLON"),
    ],
)
async def test_a_script_that_fails(lab: Lab, script: str, message: str) -> None:
    channel = await lab.connect(lab.kind())
    files = {"run.mos": script, "Bad.mo": "model Bad\n  Real x\nend Bad;\n", "Boom.mo": BOOM}
    facts, report = await lab.run(channel, files)
    assert facts.exit_code == 1
    assert report.code == "script"
    assert message in str(report.message)
    await channel.check()


async def test_a_script_that_ends_its_server_is_refused(lab: Lab) -> None:
    channel = await lab.connect(lab.kind())
    facts, report = await lab.run(channel, {"run.mos": '// quit()\nprint("quit()");\nexit(0);\n'})
    assert (facts.exit_code, report.code) == (1, "quits")
    assert report.message is not None
    assert "exit() in line 3" in report.message
    assert channel.spent is None
    await channel.check()


# --- faults -----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def under_way(channel: Channel, task: Task) -> AsyncIterator[Callable[[], None]]:
    """A job that is being carried out; the value gives it up, as the pool does when its server died."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(channel.run, task)
        yield tasks.cancel_scope.cancel


async def test_a_compilation_that_is_given_up_leaves_nothing(lab: Lab) -> None:
    channel = await lab.connect(lab.kind(HANG_BUILD=1))
    cache = lab.folder / "cache" / "omc"
    async with under_way(channel, lab.task({"Ball.mo": BALL})) as give_up:
        await eventually(lambda: lab.compiled(), "the compilation")
        give_up()
    lab.servers[0].kill()
    assert [name for name in os.listdir(cache) if ".tmp-" not in name] == []
    facts, _ = await lab.run(await lab.connect(lab.kind()), {"Ball.mo": BALL})
    assert facts.exit_code == 0
    assert len(os.listdir(cache)) == 1
    with pytest.raises(Unreached):
        await channel.run(lab.task({"Ball.mo": BALL}))


async def test_a_crash_is_not_mistaken_for_an_answer(lab: Lab) -> None:
    channel = await lab.connect(lab.kind(CRASH_AT=5))
    server = lab.servers[0]
    async with under_way(channel, lab.task({"Ball.mo": BALL})) as give_up:
        await eventually(lambda: server.process.poll() is not None, "its crash")
        assert server.process.returncode == -signal.SIGSEGV
        give_up()
    with pytest.raises(NotReady):
        await channel.check()


async def test_an_answer_that_nobody_understands_breaks_the_server(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    channel = await lab.connect(lab.kind())
    monkeypatch.setattr("solvisor.solvers.omcwire.Wire.ask", _nonsense)
    with pytest.raises(NotReady, match="a text in quotes was expected"):
        await lab.connect(lab.kind())
    with pytest.raises(ServerBroken, match="nobody understands"):
        await channel.run(lab.task({"Ball.mo": BALL}))


async def _nonsense(self: object, request: str) -> str:
    return "Ok"
