"""The double of omc does what OpenModelica 1.26.9 was recorded to do; and so does a real one, where there is one."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from doubles.omc_kit import Server, ask, client, environment, install
from process_kit import is_alive
from waiting import wait_until

pytest.importorskip("zmq", reason="needs pyzmq")
TRANSCRIPT = Path(__file__).parents[1] / "data" / "omc" / "transcript.jsonl"
MODEL = """model M
  parameter Real k = 1;
  Real x(start = 1, fixed = true);
  output Real y;
equation
  der(x) = -k*x;
  y = 2*x;
end M;
"""
OF_THIS_MACHINE = ("getVersion()", 'getEnvironmentVar("HOME")', "getTempDirectoryPath()", "getModelicaPath()")
Start = Callable[..., Server]


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in TRANSCRIPT.read_text().splitlines()]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts doubles, each with its own folder and TMPDIR."""
    started: list[Server] = []
    install(tmp_path / "bin")

    def starts(*flags: str, folder: str | None = None, tmp: str | None = None, **knobs: object) -> Server:
        place = tmp_path / (folder or f"server-{len(started)}")
        (place / "tmp").mkdir(parents=True, exist_ok=True)
        env = environment(tmp_path / "bin", **knobs) | {"TMPDIR": tmp or str(place / "tmp")}
        argv = ["omc", "--interactive=zmq", f"-z=test{len(started)}", "--locale=C", *flags]
        argv[0] = str(tmp_path / "bin" / "omc")
        started.append(Server(argv, place, env))
        return started[-1]

    yield starts
    for server in started:
        server.kill()


@pytest.fixture(params=["double", "real"])
def subject(request: pytest.FixtureRequest, start: Start, tmp_path: Path) -> Iterator[Server]:
    """The double; then a real omc, if one is on the PATH and we are no root."""
    if request.param == "double":
        yield start(folder="omctr")
        return
    program = shutil.which("omc")
    if program is None or os.geteuid() == 0:
        pytest.skip("needs OpenModelica's omc on the PATH, and a user that is not root")
    place = tmp_path / "omctr"
    (place / "tmp").mkdir(parents=True)
    argv = [program, "--interactive=zmq", "-z=test", "--locale=C"]
    server = Server(argv, place, os.environ | {"TMPDIR": str(place / "tmp")})
    yield server
    server.kill()


def plain(text: str, folder: Path) -> str:
    """A reply without what differs from machine to machine and from run to run."""
    text = text.replace(str(folder), "/tmp/omctr")
    text = re.sub(r"time(Frontend|Backend|SimCode|Templates|Compile|Simulation|Total) = [-\d.e]+", r"time\1", text)
    text = re.sub(r"violated at time [\d.]+", "violated at time T", text)
    return re.sub(r"(Error: (Curl error|Failed to download package index)[^\n]*\n)+", "", text)


def test_replays_what_was_recorded(subject: Server) -> None:
    folder = subject.stdout.parent
    (folder / "M.mo").write_text(MODEL)
    (folder / "Bad.mo").write_text("model Bad\n  Real x\nend Bad;\n")
    print(f"replayed against {subject.process.args!r}")
    with client(subject.endpoint(), patience=120) as wire:
        for exchange in recorded():
            request = exchange["request"].replace("/tmp/omctr", str(folder))
            if exchange["reply"] is None:
                wire.send_string(request)
                assert subject.process.wait(20) == 5
                continue
            reply = plain(ask(wire, request), folder)
            wanted = plain(exchange["reply"], folder)
            if wanted and request in OF_THIS_MACHINE:
                assert re.fullmatch(r'"[^"]+"\n', reply)
            elif "cut" in exchange:
                assert reply.startswith(wanted), request
            else:
                assert reply == wanted, request
    assert subject.port_file().exists()


def test_listens_then_writes_the_port_file_then_prints_its_line(start: Start) -> None:
    server = start("--interactivePort=0")
    endpoint = server.endpoint()
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+", endpoint)
    assert server.printed() == f"Created ZeroMQ Server.\nDumped server port in file: {server.port_file()}"
    assert server.port_file().name == "openmodelica.tester.port.test0"
    with client(endpoint) as wire:
        assert ask(wire, "1+1") == "2\n"


def test_the_port_file_is_empty_for_a_moment(start: Start) -> None:
    server = start(SLOW_FILE=1000)
    file = server.stdout.parent / "tmp" / "openmodelica.tester.port.test0"
    wait_until(file.exists, "the port file")
    assert file.read_bytes() == b""
    assert server.printed() == ""


def test_a_busy_port_ends_it_with_exit_code_0(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = start(f"--interactivePort={taken.getsockname()[1]}")
        assert server.process.wait(20) == 0
    assert server.printed().startswith("Error creating ZeroMQ Server. zmq_bind failed: Address already in use\n")
    assert not list((server.stdout.parent / "tmp").iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_root_is_refused(start: Start) -> None:
    server = start(ROOT_OK=None)
    assert server.process.wait(20) == 1
    assert "using the root user" in server.printed()


def test_a_bad_tmpdir_crashes_it(start: Start, tmp_path: Path) -> None:
    assert start(tmp=str(tmp_path / "nowhere")).process.wait(20) == -signal.SIGSEGV


def test_quit_answers_and_removes_the_port_file(start: Start) -> None:
    server = start()
    with client(server.endpoint()) as wire:
        assert ask(wire, " quit()") == "\n"
        assert ask(wire, "quit()") == "quit requested, shutting server down\n"
    assert server.process.wait(20) == 0
    assert not server.port_file().exists()


def test_the_reply_to_quit_can_be_lost(start: Start) -> None:
    server = start(LOSE_QUIT=1)
    with client(server.endpoint()) as wire:
        wire.send_string("quit()")
        assert server.process.wait(20) == 0
        assert wire.poll(0) == 0


def test_killed_it_leaves_its_port_file_and_its_compiler(start: Start) -> None:
    server = start(HANG_BUILD=1)
    (server.stdout.parent / "M.mo").write_text(MODEL)
    with client(server.endpoint()) as wire:
        ask(wire, 'loadFile("M.mo")')
        wire.send_string("buildModel(M)")
        sessions = f"/proc/{server.process.pid}/task/{server.process.pid}/children"
        child = wait_until(lambda: Path(sessions).read_text().split(), "the compiler")
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait(20)
    assert server.port_file().exists()
    assert is_alive(int(child[0]))
    os.killpg(server.process.pid, signal.SIGKILL)


def test_clients_wait_for_one_another(start: Start) -> None:
    server = start(COMPILE_SECONDS=0.5)
    with client(server.endpoint()) as one, client(server.endpoint()) as other:
        ask(one, f"loadString({json.dumps(MODEL.replace(chr(10), ' '))})")
        one.send_string("buildModel(M)")
        wait_until((server.stdout.parent / "M.c").exists, "the compilation")
        assert ask(other, "existClass(M)") == "true\n"
        assert one.poll(100) != 0  # sent before the other, but a thread of libzmq brings it


def test_faults_on_demand(start: Start) -> None:
    crash, mute = start(CRASH_AT=2), start(MUTE_AT=2)
    with client(crash.endpoint()) as wire:
        assert ask(wire, "1+1") == "2\n"
        wire.send_string("1+1")
        assert crash.process.wait(20) == -signal.SIGSEGV
    with client(mute.endpoint()) as wire:
        assert ask(wire, "1+1") == "2\n"
        wire.send_string("1+1")
        assert wire.poll(200) == 0
        assert mute.process.poll() is None


def test_scripts(start: Start) -> None:
    server = start()
    script = server.stdout.parent / "s.mos"
    script.write_text('// a comment\nloadString("model A end A;"); nosuch(1);\ngetClassNames();\n1+1;')
    with client(server.endpoint()) as wire:
        assert ask(wire, 'runScript("s.mos")') == '"true\n\n{A}\n2\n"\n'
        assert "Class nosuch not found" in ask(wire, "getErrorString()")
        script.write_text("1+(;")
        assert ask(wire, 'runScript("s.mos")') == '"Failed"\n'
        assert ask(wire, 'runScript("none.mos")') == '"Failed"\n'
