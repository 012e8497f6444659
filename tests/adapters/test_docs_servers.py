"""The page about warm servers: what it shows is read as a configuration, and its programs are run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from pool_kit import lab
from solvisor import config
from solvisor.jobfile import parse_job_file
from solvisor.kinds import AnySolver, HttpReady, LineReady, ReportedPort, Servers, ServerSolver, TcpReady, WarmSolver
from solvisor.model import Report
from solvisor.talk import facts_of, job_request

if sys.platform == "win32":
    pytest.skip("processes of Linux", allow_module_level=True)

LOOPS = "uvloop"

PAGE = (Path(__file__).parents[2] / "docs" / "servers.md").read_text(encoding="utf-8")
HEADS = {
    "[solver.post.servers]": '[solver.post]\nkind = "python"\ncall = "m:f"\n',
}
"""What a block that begins so stands below in a whole file."""


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


TABLES = [text for text in blocks("toml") if "[simulate]" not in text]
JOB_FILES = [text for text in blocks("toml") if "[simulate]" in text]
ROWS = "\n".join(line for line in PAGE.splitlines() if line.startswith("|"))
READY = re.findall(r"`(\{ kind = .*?\})`", ROWS)
PORTS = re.findall(r"`(port = .*?)`", ROWS)


def solvers(text: str) -> dict[str, AnySolver]:
    head = HEADS.get(text.splitlines()[0].partition(" ")[0], "")
    return config.parse(head + text, Path("solvisor.toml")).solver


def server(name: str) -> ServerSolver:
    """A solver of the page."""
    (found,) = (solvers(text)[name] for text in TABLES if f"[solver.{name}]" in text)
    assert isinstance(found, ServerSolver)
    return found


def program(words: str) -> str:
    (text,) = (text for text in blocks("python") if words in text)
    return text


def test_nothing_is_missed() -> None:
    assert [list(solvers(text)) for text in TABLES] == [["post"], ["redis"], ["size"], ["omc"], ["post"]]
    assert len(JOB_FILES) == 1
    assert len(blocks("python")) == 2
    assert len(READY) == 6
    assert len(PORTS) == 3


@pytest.mark.parametrize("text", TABLES)
def test_every_table_is_a_configuration(text: str) -> None:
    assert all(isinstance(solver, WarmSolver) for solver in solvers(text).values())


@pytest.mark.parametrize("text", JOB_FILES)
def test_every_job_file_is_one(text: str) -> None:
    assert parse_job_file(text.encode(), "x.job.toml").solver == "omc"


def test_every_ready_and_port_of_the_reference_means_what_it_says() -> None:
    head = '[solver.x]\nkind = "server"\nstart = ["s", "{port}"]\ntalk = "json"\n'
    found = [config.parse(f"{head}ready = {ready}", Path("x")).solver["x"] for ready in READY]
    kinds = [solver.ready for solver in found if isinstance(solver, ServerSolver)]
    assert [ready.__struct_config__.tag for ready in kinds] == ["tcp", "tcp", "http", "line", "file", "zmq"]
    assert kinds[:2] == [TcpReady(expect="^Rsrv"), TcpReady(send="PING\r\n", expect=r"^\+PONG")]
    assert kinds[2] == HttpReady(path="/health", status=(200, 204), expect="up")
    assert kinds[3] == LineReady(match="^listening")
    head = head.replace("{port}", "0") + 'ready = { kind = "line", match = "up" }\n'
    ways = [config.parse(head + port, Path("x")).solver["x"] for port in PORTS]
    ports = [solver.port for solver in ways if isinstance(solver, ServerSolver)]
    assert ports == [ReportedPort(line="listening on ([0-9]+)"), ReportedPort(file="port.txt"), 6379]


def test_the_defaults_it_names_are_those() -> None:
    (text,) = (text for text in TABLES if text.startswith("[solver.post.servers]"))
    lines = [line for line in text.splitlines() if not line.startswith("recycle_")]
    assert solvers("\n".join(lines))["post"] == solvers("[solver.post.servers]")["post"]
    ports = config.parse("", Path("x")).daemon.ports
    assert f"`[daemon] ports` ({ports.first}-{ports.last})" in PAGE


def test_the_function_works(tmp_path: Path) -> None:
    space: dict[str, object] = {}
    exec(program("def process"), space)
    (tmp_path / "a.csv").write_text("1\n3.5\n2\n")
    job = SimpleNamespace(input=tmp_path / "a.csv", output=tmp_path, params={"factor": 2.0})
    process = space["process"]
    assert callable(process)
    assert process(job) == {"peak": 7.0}
    assert (tmp_path / "peak.txt").read_text() == "3.5"


async def test_the_server_that_talks_json_serves_jobs_and_quits_when_asked(tmp_path: Path) -> None:
    (shown,) = (text for text in blocks("console") if text.startswith("> "))
    said = {sign: re.findall(rf"^{sign} (.*(?:\n .*)*)", shown, re.MULTILINE) for sign in "><"}
    requests, answers = ([json.loads(text) for text in said[sign]] for sign in "><")
    assert (requests[0], answers[0]) == ({"ping": 1}, {"ok": True})
    assert [facts_of(answer, 0).exit_code for answer in answers[1:]] == [0, 1]
    size = tmp_path / "size.py"
    size.write_text(program("socketserver"))
    size.chmod(0o755)
    patient = msgspec.structs.replace(server("size"), servers=Servers(stop_grace=3600.0))  # before any signal
    async with lab(tmp_path, patient) as pool:
        name = await pool.ready()
        for content in ("12345", "123"):
            errand = pool.lend(name)
            (errand.folder / "output" / errand.job.spec.primary).write_text(content)
            facts = await pool.pool.carry_out(name, errand)
            assert facts.report == Report(result={"bytes": len(content)})
            assert job_request(errand, {}).keys() == requests[1].keys(), "the page shows all of it"
            await pool.pool.give_back(name, served=True)
        pool.retire(name)
        end = await pool.ended(name)
        assert end.error is None
