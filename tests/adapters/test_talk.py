"""The daemon's end of a talk: real sockets, with a peer that says exactly what the test says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from builders import make_settings, make_spec
from solvisor.errors import NotReady, ServerBroken, SpawnError, Unreached
from solvisor.interfaces import Handle, Program
from solvisor.kinds import PythonSolver
from solvisor.model import Attempt, ExitFacts, FileFact, Job, Report, State, Usage
from solvisor.params import Param
from solvisor.talk import LINE_MAX, Talk, TalkChannel, facts_of, job_request
from waiting import eventually

LOOPS = "both"

PING = {"ping": 1}
PONG = b'{"ok": true}\n'


class Peer:
    """A listening socket, and the side of the server of one connection to it."""

    def __init__(self, folder: Path, *, tcp: bool) -> None:
        self.folder = folder
        if tcp:
            self._listener = socket.create_server(("127.0.0.1", 0))
        else:
            folder.mkdir(parents=True)
            here = os.open(folder, os.O_PATH)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(f"/proc/self/fd/{here}/s")
            self._listener.listen()
            os.close(here)
        self._tcp = tcp
        self._cleanup = contextlib.ExitStack()
        self._cleanup.callback(self._listener.close)

    async def talk(self) -> Talk:
        """A talk with this peer."""
        if self._tcp:
            talk = await Talk.tcp("127.0.0.1", self._listener.getsockname()[1])
        else:
            talk = await Talk.unix(str(self.folder), "s")
        self.sock, _ = self._listener.accept()
        self._cleanup.callback(self.sock.close)
        self.sock.setblocking(False)
        return talk

    def said(self) -> bytes:
        """What the other side has sent since."""
        try:
            return self.sock.recv(1 << 20)
        except BlockingIOError:
            return b""

    async def asked(self, talk: Talk, question: dict[str, Any]) -> asyncio.Task[dict[str, Any]]:
        """A question that has arrived, and its answer to be."""
        task = asyncio.ensure_future(talk.ask(question))
        line = await eventually(self.said, "the question arrives")
        assert json.loads(line) == question
        return task

    def close(self) -> None:
        self._cleanup.close()


@pytest.fixture(params=["unix", "tcp", "deep"])
def peer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Peer]:
    folder = tmp_path / ("d" * 100) / ("e" * 100) if request.param == "deep" else tmp_path / "server"
    peer = Peer(folder, tcp=request.param == "tcp")
    yield peer
    peer.close()


@pytest.fixture
def unix_peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "server", tcp=False)
    yield peer
    peer.close()


# --- questions and answers --------------------------------------------------------------------------------------------


async def test_one_question_after_the_other(peer: Peer) -> None:
    talk = await peer.talk()
    for number in range(3):
        task = await peer.asked(talk, {"number": number})
        peer.sock.send(json.dumps({"answer": number}).encode() + b"\n")
        assert await task == {"answer": number}
    talk.close()
    talk.close()
    with pytest.raises(Unreached, match="nothing was sent: the connection to the server was closed"):
        await talk.ask(PING)


async def test_an_answer_may_come_in_pieces(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    for _ in range(2):
        task = await unix_peer.asked(talk, PING)
        for piece in (b'{"o', b'k": ', b"true}\n"):
            unix_peer.sock.send(piece)
            await asyncio.wait([task], timeout=0.01)
        assert await task == {"ok": True}
    talk.close()


async def test_long_answers_do_not_add_up(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    for _ in range(2):
        task = await unix_peer.asked(talk, PING)
        unix_peer.sock.setblocking(True)
        await asyncio.to_thread(unix_peer.sock.sendall, b'{"result": "' + b"x" * (LINE_MAX * 2 // 3) + b'"}\n')
        assert len((await task)["result"]) == LINE_MAX * 2 // 3
        unix_peer.sock.setblocking(False)
    talk.close()


async def test_a_folder_whose_name_is_not_utf_8_can_be_told(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = await unix_peer.asked(talk, {"output": "/\udc80"})
    unix_peer.sock.send(PONG)
    await task
    talk.close()


async def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(Unreached, match=r"nobody answers on s in .*: No such file or directory"):
        await Talk.unix(str(tmp_path), "s")
    with pytest.raises(Unreached):
        await Talk.unix(str(tmp_path / ("d" * 200)), "s")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unreached, match=f"nobody answers on port {port} of 127.0.0.1: "):
        await Talk.tcp("127.0.0.1", port)


async def test_no_descriptor_is_left(peer: Peer) -> None:
    (await peer.talk()).close()
    peer.sock.close()
    await asyncio.to_thread(lambda: None)  # what the loop itself opens is open
    before = len(os.listdir("/proc/self/fd"))
    (await peer.talk()).close()
    peer.sock.close()
    await eventually(lambda: len(os.listdir("/proc/self/fd")) <= before, "all is closed")


# --- a server that is gone --------------------------------------------------------------------------------------------


async def test_a_server_that_hung_up_before_was_not_reached(peer: Peer) -> None:
    talk = await peer.talk()
    peer.sock.close()
    await eventually(lambda: talk._wire._over is not None, "the loop has noticed")
    with pytest.raises(Unreached, match="nothing was sent: the server had hung up"):
        await talk.ask(PING)


async def test_a_server_that_hung_up_unnoticed_was_not_reached(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    unix_peer.sock.close()
    with pytest.raises(Unreached):
        await talk.ask(PING)
    talk.close()


async def test_a_server_that_died_before_it_read_the_question_was_not_reached(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = asyncio.ensure_future(talk.ask(PING))
    await eventually(lambda: _waits(unix_peer.sock), "the question arrives")
    unix_peer.sock.close()
    with pytest.raises(Unreached, match="hung up before it read what was sent"):
        await task


async def test_a_server_that_died_in_the_middle_of_a_long_question_was_not_reached(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = asyncio.ensure_future(talk.ask({"long": "x" * (4 << 20)}))
    await eventually(unix_peer.said, "the question begins")
    unix_peer.sock.shutdown(socket.SHUT_WR)
    with pytest.raises(Unreached):
        await task


async def test_a_server_that_hung_up_on_a_question_is_broken(peer: Peer) -> None:
    talk = await peer.talk()
    task = await peer.asked(talk, PING)
    peer.sock.close()
    with pytest.raises(ServerBroken, match="the server hung up before it answered"):
        await task
    with pytest.raises(Unreached, match="the server had hung up"):
        await talk.ask(PING)


async def test_a_reset_over_tcp_does_not_clear_the_job(tmp_path: Path) -> None:
    peer = Peer(tmp_path, tcp=True)
    talk = await peer.talk()
    task = await peer.asked(talk, PING)
    peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.sock.close()
    with pytest.raises(ServerBroken):
        await task
    peer.close()


# --- a server that talks nonsense -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (b"Segmentation fault", '"Segmentation fault"'),
        (b'{"ok": true', r'"{\"ok\": true"'),
        (b"[1]", '"[1]"'),
        (b'{"result": NaN}', "NaN"),
        (b"\xff\x1b[31m", r"\u001b[31m"),
        (b'{"\xff": 1}', "which is not an object of JSON"),
        (b"", '""'),
        (b'{"a":' * 100_000, "which is not an object of JSON"),
    ],
)
async def test_an_answer_that_is_no_json_object_breaks_the_talk(line: bytes, shown: str, unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = await unix_peer.asked(talk, PING)
    unix_peer.sock.setblocking(True)
    await asyncio.to_thread(unix_peer.sock.sendall, line + b"\n")
    with pytest.raises(ServerBroken, match=re.escape(shown)):
        await task
    with pytest.raises(Unreached, match="the server had answered"):
        await talk.ask(PING)


@pytest.mark.parametrize("end", [b"", b'"}\n'])
async def test_an_answer_that_is_too_long_is_not_kept(end: bytes, unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = await unix_peer.asked(talk, PING)
    unix_peer.sock.setblocking(True)

    def send() -> None:
        with contextlib.suppress(ConnectionError):  # it hangs up
            unix_peer.sock.sendall(b'{"result": "' + b"x" * (LINE_MAX + 1) + end)

    sending = asyncio.ensure_future(asyncio.to_thread(send))
    with pytest.raises(ServerBroken, match="result larger than 16 MiB; write it to a file"):
        await task
    await sending
    with pytest.raises(Unreached, match="too long"):
        await talk.ask(PING)


async def test_a_word_too_much_breaks_the_talk_after_a_good_answer(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = await unix_peer.asked(talk, PING)
    unix_peer.sock.send(PONG + PONG)
    assert await task == {"ok": True}
    with pytest.raises(Unreached, match="the server had said more than was asked"):
        await talk.ask(PING)


async def test_a_word_unasked_breaks_the_talk(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    unix_peer.sock.send(PONG)
    await eventually(lambda: talk._wire._over is not None, "the loop has heard it")
    with pytest.raises(Unreached, match="the server had spoken without being asked"):
        await talk.ask(PING)


# --- order ------------------------------------------------------------------------------------------------------------


async def test_a_question_given_up_breaks_the_talk(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = await unix_peer.asked(talk, {"first": 1})
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(Unreached, match="an earlier question to the server was given up"):
        await talk.ask({"second": 2})
    assert unix_peer.sock.recv(100) == b""


async def test_two_questions_at_once_are_a_defect(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    task = await unix_peer.asked(talk, PING)
    with pytest.raises(RuntimeError, match="a question before the last one was answered"):
        await talk.ask(PING)
    unix_peer.sock.send(PONG)
    assert await task == {"ok": True}
    talk.close()


async def test_a_question_that_is_too_long_is_not_begun(unix_peer: Peer) -> None:
    talk = await unix_peer.talk()
    with pytest.raises(SpawnError, match="the names of the job's files make 16 MiB; give it fewer files"):
        await talk.ask({"inputs": "x" * LINE_MAX})
    assert unix_peer.said() == b""
    talk.close()


# --- jobs -------------------------------------------------------------------------------------------------------------


class Task:
    """A job as the kind of a server sees it."""

    def __init__(self, folder: Path, **spec: Any) -> None:
        attempt = Attempt(2, "token", "host", 0, msgspec.structs.replace(make_settings(), cpus=3))
        self.job = Job("beam-1", 1, State.RUNNING, make_spec("beam", **spec), 0, (attempt,))
        self.folder = folder

    async def launch(self, program: Program, cwd: Path | None = None) -> Handle:
        raise NotImplementedError


def test_the_request_of_a_job() -> None:
    names = ("rows.csv", "mesh/part.inc", "job.toml", "a.job.toml", "A.JOB.TOML", "mesh/a.job.toml")
    inputs = tuple(FileFact(f"input/{name}", 1, "") for name in names)
    params = {
        "load": Param(type="float", default=1.5),
        "turns": Param(type="float"),
        "fine": Param(type="bool", default=False),
        "unset": Param(type="str"),
    }
    work = Task(Path("/srv/fem/jobs/beam-1"), inputs=inputs, primary="rows.csv", params={"turns": 2, "fine": True})
    assert job_request(work, params) == {
        "id": "beam-1",
        "name": "beam",
        "attempt": 2,
        "input": "/srv/fem/jobs/beam-1/output/rows.csv",
        "inputs": [f"/srv/fem/jobs/beam-1/output/{name}" for name in ("rows.csv", "mesh/part.inc", "mesh/a.job.toml")],
        "output": "/srv/fem/jobs/beam-1/output",
        "job_dir": "/srv/fem/jobs/beam-1",
        "stdout": "/srv/fem/jobs/beam-1/stdout.log",
        "stderr": "/srv/fem/jobs/beam-1/stderr.log",
        "params": {"load": 1.5, "turns": 2.0, "fine": True},
        "cpus": 3,
    }
    assert type(job_request(work, params)["params"]["turns"]) is float
    with pytest.raises(SpawnError, match=r"solver ccx does not allow params.turns any more: 2.0 is less than 3"):
        job_request(work, {"turns": Param(type="float", min=3)})


def test_the_end_of_a_job_as_its_server_told_it() -> None:
    usage = {"cpu_user_seconds": 0.5, "cpu_system_seconds": 0.25, "max_rss_bytes": 4096}
    good = ExitFacts(0, None, 7, Usage(0.5, 0.25, 4096, "server"), report=Report(result={"n": [1]}))
    assert facts_of({"ok": True, "result": {"n": [1]}, "usage": usage}, 7) == good
    assert facts_of({"ok": True}, 7) == ExitFacts(0, None, 7, report=Report())
    bad = {"ok": False, "code": "ValueError", "message": "ValueError: bad rows", "traceback": "..."}
    report = Report(code="ValueError", message="ValueError: bad rows")
    assert facts_of(bad, 7) == ExitFacts(1, None, 7, report=report)
    told = facts_of({**bad, "message": "x" * 10_000}, 7).report
    assert told == Report(code="ValueError", message="x" * 4000)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({}, "missing required field `ok`"),
        ({"ok": 1}, "Expected `bool`, got `int`"),
        ({"ok": False}, "ok, or else a code and a message"),
        ({"ok": False, "code": "x"}, "ok, or else a code and a message"),
        ({"ok": False, "message": "x"}, "ok, or else a code and a message"),
        ({"ok": True, "code": "x", "message": "y"}, "ok, or else a code and a message"),
        ({"ok": False, "code": "", "message": "y"}, "length"),
        ({"ok": False, "code": "x" * 101, "message": "y"}, "length"),
        ({"ok": True, "results": 1}, "unknown field `results`"),
        ({"ok": True, "usage": {"cpu_user_seconds": -1}}, "usage"),
        ({"ok": True, "usage": {"cpu_seconds": 1}}, "unknown field `cpu_seconds`"),
        ({"ok": True, "usage": None}, "usage"),
        ({"ok": True, "result": 10**5000}, "as the protocol says"),
    ],
)
def test_an_answer_of_another_shape_is_of_a_broken_server(answer: dict[str, Any], words: str) -> None:
    with pytest.raises(ServerBroken, match="the server's answer to a job is not as the protocol says: ") as raised:
        facts_of(answer, 7)
    assert words in str(raised.value)


async def test_a_channel_asks_and_carries_out(unix_peer: Peer, tmp_path: Path) -> None:
    solver = PythonSolver(call="post.py:process")
    channel = TalkChannel(await unix_peer.talk(), solver, 1234)
    assert channel.port == 1234
    work = Task(tmp_path / "work")

    async def answered(answer: bytes, action: Callable[[], Any]) -> Any:
        task = asyncio.ensure_future(action())
        await eventually(unix_peer.said, "the question arrives")
        unix_peer.sock.send(answer)
        return await task

    await answered(PONG, channel.check)
    facts = await answered(b'{"ok": true, "result": 3}\n', lambda: channel.run(work))
    assert facts == ExitFacts(0, None, facts.finished_us, report=Report(result=3))
    assert await answered(PONG, channel.quit) is True
    with pytest.raises(NotReady, match="something else"):
        await answered(b'{"ok": 1}\n', channel.check)
    channel.close()
    with pytest.raises(NotReady, match="nothing was sent"):
        await channel.check()
    assert await channel.quit() is False
    assert channel.spent is None
    with pytest.raises(Unreached):
        await channel.run(work)


def _waits(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
