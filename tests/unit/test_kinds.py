"""The kinds of solver: what a table of each means, and what a person reads who made a mistake in one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from solvisor import config, kinds
from solvisor.config import Config
from solvisor.errors import ConfigError
from solvisor.kinds import (
    AnySolver,
    CommandSolver,
    FileReady,
    HttpReady,
    LineReady,
    OmcSolver,
    PythonSolver,
    ReportedPort,
    ServerSolver,
    TcpReady,
    WarmSolver,
    ZmqReady,
)
from solvisor.model import Demand, JobSpec, PoolRule, Source

HERE = Path("solvisor.toml")

SERVER = """\
[solver.x]
kind  = "server"
start = ["redis-server", "--port", "{port}"]
ready = { kind = "tcp", send = "PING\\r\\n", expect = "PONG" }
"""
CLIENT = SERVER + 'command = ["redis-cli", "-p", "{port}", "{input}"]\n'
OMC = '[solver.x]\nkind = "omc"\n'
PYTHON = '[solver.x]\nkind = "python"\ncall = "package.module:process"\n'
LICENSES = "[licenses]\na = 4\nb = 2\n"


def parse(text: str) -> Config:
    return config.parse(text, HERE)


def solver(text: str) -> AnySolver:
    return parse(text).solver["x"]


def server(text: str) -> ServerSolver:
    found = solver(text)
    assert isinstance(found, ServerSolver)
    return found


def spec(**rest: Any) -> JobSpec:
    return JobSpec(name="n", solver="x", primary="a", inputs=(), source=Source("inbox", "a"), **rest)


# --- what it means ----------------------------------------------------------------------------------------------------


def test_the_kind_chooses_the_record() -> None:
    assert isinstance(solver('[solver.x]\ncommand = ["x"]'), CommandSolver)
    assert isinstance(solver('[solver.x]\nkind = "command"\ncommand = ["x"]'), CommandSolver)
    assert isinstance(solver(CLIENT), ServerSolver)
    assert isinstance(solver(OMC), OmcSolver)
    assert isinstance(solver(PYTHON), PythonSolver)
    assert [solver(text).kind for text in (CLIENT, OMC, PYTHON)] == ["server", "omc", "python"]


def test_the_documented_servers() -> None:
    redis = server(CLIENT)
    assert redis.ready == TcpReady(send="PING\r\n", expect="PONG")
    assert (redis.host, redis.port, redis.talk, redis.quit, redis.is_given_port) == ("127.0.0.1", None, None, (), True)
    text = (
        '[solver.x]\nkind = "omc"\nservers = { max = "auto", idle = "10m", recycle_jobs = 200, start_timeout = "60s" }'
    )
    omc = solver(text)
    assert isinstance(omc, OmcSolver)
    assert (omc.servers.max, omc.servers.idle, omc.servers.recycle_jobs, omc.omc) == ("auto", 600.0, 200, "omc")
    post = solver('[solver.x]\nkind = "python"\ncall = "post.py:process"\npython = "~/envs/opp/bin/python"')
    assert isinstance(post, PythonSolver)
    assert (post.call, post.python) == ("post.py:process", "~/envs/opp/bin/python")


@pytest.mark.parametrize(
    ("table", "want"),
    [
        ("{ kind = 'http' }", HttpReady(path="/", status=(200,), expect=None)),
        ("{ kind = 'http', path = '/a?b', status = [200, 204] }", HttpReady(path="/a?b", status=(200, 204))),
        ("{ kind = 'line', match = 'up' }", LineReady(match="up")),
        ("{ kind = 'file', path = 'f', match = 'up' }", FileReady(path="f", match="up")),
        ("{ kind = 'zmq', send = '1+1', expect = '2' }", ZmqReady(send="1+1", expect="2")),
    ],
)
def test_the_ways_to_be_ready(table: str, want: object) -> None:
    text = f"[solver.x]\nkind = 'server'\nstart = ['s', '{{port}}']\nready = {table}\ntalk = 'json'"
    assert server(text).ready == want


@pytest.mark.parametrize(
    ("keys", "given"),
    [
        ("start = ['s', '--port={port}']\ncommand = ['c']", True),
        ("start = ['s']\nenv = { PORT = '{port}' }\ncommand = ['c', '{port}']", True),
        ("start = ['s', '{{port}}']\ncommand = ['c', '{server_dir}/socket']", False),
        ("start = ['s', '{host}', '{server_dir}', '{cpus}']\ncommand = ['c']\nquit = ['q', '{server_dir}']", False),
    ],
)
def test_a_server_that_is_not_talked_to_over_a_port_may_do_without(keys: str, given: bool) -> None:
    found = server(f"[solver.x]\nkind = 'server'\n{keys}\nready = {{ kind = 'line', match = 'up' }}")
    assert found.is_given_port is given


def test_a_server_may_tell_the_port_it_picked() -> None:
    head = SERVER.replace('"{port}"', '"0"') + "talk = 'json'\nquit = ['q', '{port}']\n"
    assert server(head + "port = { line = 'port (\\d+)' }").port == ReportedPort(line=r"port (\d+)")
    assert server(head + "port = { file = 'port' }").port == ReportedPort(file="port", match=r"(\d+)\s*$")


def test_a_server_may_know_a_single_port() -> None:
    table = CLIENT.replace('"{port}"]', '"6379"]', 1) + "port = 6379\n"
    assert server(table).port == 6379
    assert pools(table)["x"].max == 1, "of what is automatic"
    assert pools(table + "servers = { min = 1, max = 1 }")["x"].min == 1
    assert server(CLIENT + "port = 6379").is_given_port, "it may be told it as well"
    assert server(table.replace("6379", "24000")).port == 24000, "beside those that are leased"


@pytest.mark.parametrize("text", [CLIENT, CLIENT + "port = 6379\n", OMC, PYTHON, '[solver.x]\ncommand = ["x"]\n'])
def test_show_reads_back_to_the_same_and_json_does(text: str) -> None:
    first = parse(text + "licenses = { a = 1 }\n" + LICENSES)
    shown = config.to_toml(first)
    assert f'kind = "{first.solver["x"].kind}"' in shown
    assert parse(shown) == first
    table = first.settings(spec()).table
    assert msgspec.convert(json.loads(msgspec.json.encode(table)), AnySolver) == first.solver["x"]


def test_what_a_solver_runs() -> None:
    assert kinds.programs(solver('[solver.x]\ncommand = ["x", "y"]')) == {"command": ("x", "y")}
    assert list(kinds.programs(solver(CLIENT))) == ["start", "command"]
    assert list(kinds.programs(solver(SERVER + "talk = 'json'\nquit = ['q']"))) == ["start", "quit"]
    assert kinds.programs(solver(OMC + "options = ['-d=x']")) == {"omc": ("omc", "-d=x")}
    assert kinds.programs(solver(PYTHON)) == {"python": ("python3",)}


# --- limits and demand ------------------------------------------------------------------------------------------------


def pools(text: str, cpus: int = 8) -> dict[str, PoolRule]:
    return parse(text).limits(cpus, 16 << 30).pools


def test_the_rule_of_a_pool() -> None:
    text = OMC + (
        "licenses = { b = 1, a = 2 }\nservers = { min = 1, max = 2, idle = '1m', recycle_jobs = 3, "
        "recycle_age = '1h', recycle_rss = '1GiB', restarts = 4, restarts_within = '2m' }\n"
    )
    rule = PoolRule(1, 2, 60.0, 3, 3600.0, 1 << 30, (("a", 2), ("b", 1)), 4, 120.0)
    assert pools(text + LICENSES) == {"x": rule}
    assert pools('[solver.x]\ncommand = ["x"]') == {}
    default = pools(PYTHON)["x"]
    assert (default.min, default.max, default.idle_seconds, default.licenses) == (0, 7, 600.0, ())
    assert (default.recycle_jobs, default.recycle_age_seconds, default.recycle_rss_bytes) == (None, None, None)
    assert (default.restarts, default.restarts_within_seconds) == (5, 300.0)


@pytest.mark.parametrize(
    ("keys", "want"),
    [
        ("", 7),
        ("max_jobs = 3", 3),
        ("max_jobs = 30", 7),
        ("servers = { min = 9 }", 9),
        ("servers = { min = 2, max = 2 }", 2),
        ("max_jobs = 3\nservers = { max = 5 }", 5),
    ],
)
def test_as_many_servers_as_jobs_of_the_solver_may_run_unless_it_says(keys: str, want: int) -> None:
    assert pools(OMC + keys)["x"].max == want


def test_a_job_asks_for_what_its_server_does_not_hold() -> None:
    loaded = parse(OMC + "licenses = { a = 2 }\ncpus = 2\nmemory = 7\n" + LICENSES)
    assert loaded.demand(spec()) == Demand("x", 2, 7, (), warm=True)
    asked = {"a": 3, "b": 1, "c": 0}
    assert loaded.demand(spec(licenses=asked)) == Demand("x", 2, 7, (("a", 1), ("b", 1)), warm=True)
    assert loaded.demand(spec(licenses={"a": 1})) == Demand("x", 2, 7, (), warm=True)
    assert loaded.settings(spec(licenses=asked)).licenses == {"a": 1, "b": 1}
    assert loaded.settings(spec()).licenses == {}
    assert loaded.settings(spec()).kind == "omc"
    command = parse('[solver.x]\ncommand = ["x"]').demand(spec())
    assert command is not None
    assert not command.warm


def test_a_function_whose_file_is_not_there_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PYTHON.replace("package.module", "scripts/post.py")
    path = tmp_path / "solvisor.toml"
    assert config.parse(text, path).warnings == (
        f"solver x calls scripts/post.py:process, but there is no file {tmp_path}/scripts/post.py",
    )
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "post.py").touch()
    assert config.parse(text, path).warnings == ()
    monkeypatch.setenv("HOME", str(tmp_path))
    text = text.replace("scripts/post.py", "~/scripts/post.py")
    assert config.parse(text, tmp_path / "elsewhere" / "solvisor.toml").warnings == ()
    assert config.parse(PYTHON, path).warnings == (), "a module is looked for by its interpreter"


# --- mistakes ---------------------------------------------------------------------------------------------------------

NO_CLIENT = "[solver.x]\nkind = 'server'\nready = { kind = 'line', match = 'up' }\n"

MISTAKES = {
    "no such kind": (
        "[solver.x]\nkind = 'sever'",
        'line 2: solver.x.kind: "sever" is not one of "command", "server", "omc", "python"; did you mean "server"?',
    ),
    "a kind far from all": ("[solver.x]\nkind = 'fmu'", '"fmu" is not one of "command", "server", "omc", "python"'),
    "a kind that is no text": ("[solver.x]\nkind = 1", 'solver.x.kind: 1 is not one of "command", "server"'),
    "a kind that is a list": ("[solver.x]\nkind = ['omc']", "solver.x.kind: a list is not one of"),
    "a solver that is no table": ("[solver]\nx = 'omc'", 'line 2: solver.x: "omc" is not a table of keys'),
    "a key of another kind": (
        OMC + "call = 'a:b'",
        'line 3: solver.x.call: no such key; "call" is a key of kind = "python"',
    ),
    "a key of two other kinds": (
        PYTHON + "command = ['x']",
        'line 4: solver.x.command: no such key; "command" is a key of kind = "command" or "server"',
    ),
    "no kind, but a key of one": (
        "[solver.x]\ncall = 'a:b'",
        'line 2: solver.x.call: no such key; "call" is a key of kind = "python"',
    ),
    "a misspelt kind": ("[solver.x]\nkimd = 'omc'", 'line 2: solver.x.kimd: no such key; did you mean "kind"?'),
    "a misspelt key of the kind": (OMC + "cach = '1GiB'", 'solver.x.cach: no such key; did you mean "cache"?'),
    "a key one table too high": (OMC + "idle = '1m'", 'solver.x.idle: no such key; it belongs in "servers"'),
    "a key of a table that has kinds itself": (CLIENT + "expect = 'x'", 'expect: no such key; it belongs in "ready"'),
    "no way to be ready": (
        "[solver.x]\nkind = 'server'\nstart = ['s']\ncommand = ['c']",
        'line 1: solver.x.ready: is missing; it must be a table of keys with kind = "tcp", "http", "line", "file" or '
        '"zmq"; for example ready = { kind = "tcp", expect = "^Rsrv" }',
    ),
    "ready that is no table": (
        SERVER.replace('{ kind = "tcp", send = "PING\\r\\n", expect = "PONG" }', "'^Rsrv'") + "talk = 'json'",
        'line 4: solver.x.ready: "^Rsrv" is not a table of keys with kind = "tcp", "http", "line", "file" or "zmq"; '
        "for example ready = ",
    ),
    "ready of no kind": (
        SERVER.replace('kind = "tcp", ', "") + "talk = 'json'",
        'line 4: solver.x.ready.kind: is missing; it must be one of "tcp", "http", "line", "file", "zmq"',
    ),
    "ready of another kind": (
        CLIENT.replace('"tcp"', '"http"'),
        'line 4: solver.x.ready.send: no such key; "send" is a key of kind = "tcp" or "zmq"',
    ),
    "ready without an answer": (
        CLIENT.replace(', expect = "PONG"', ""),
        "line 4: solver.x.ready.expect: is missing; it must be a regular expression in quotes",
    ),
    "a path that is none": (
        CLIENT.replace('kind = "tcp", send = "PING\\r\\n", expect = "PONG"', "kind = 'http', path = 'status'"),
        'line 4: solver.x.ready.path: "status" does not begin with "/"',
    ),
    "a ready file elsewhere": (
        NO_CLIENT.replace("'line'", "'file', path = '../up'") + "start = ['s']\ncommand = ['c']",
        'solver.x.ready.path: "../up" is not the name of a file, without a folder',
    ),
    "neither client nor talk": (SERVER, "line 1: solver.x.command: is missing: name the client that carries out a job"),
    "both client and talk": (CLIENT + "talk = 'json'", "line 6: solver.x.talk: a job is either a command or talk"),
    "another way to talk": (SERVER + "talk = 'xml'", 'solver.x.talk: "xml" is not "json"'),
    "an address of others": (CLIENT + "host = '0.0.0.0'", '"0.0.0.0" is not one of "127.0.0.1", "::1"'),
    "an empty start": (NO_CLIENT + "start = []\ncommand = ['c']", "line 4: solver.x.start: is empty; name the program"),
    "an empty quit": (CLIENT + "quit = ['']", "line 6: solver.x.quit: is empty; name the program"),
    "a faulty quit": (CLIENT + "quit = 'q'", 'solver.x.quit: "q" is not a list; write ["q"]'),
    "an empty client": (SERVER + "command = []", "line 5: solver.x.command: is missing: name the client"),
    "a client of no program": (SERVER + "command = ['']", "line 5: solver.x.command: is empty; name the program"),
    "a faulty client": (SERVER + "command = 'c'", 'line 5: solver.x.command: "c" is not a list; write ["c"]'),
    "a program chosen by the job": (
        SERVER + "command = ['{input}']",
        'solver.x.command[0]: "{input}": which program runs is not for a job to say',
    ),
    "a shell line for the client": (
        SERVER + "command = ['sh', '-c', 'nc {host} {port} < {input}']",
        'solver.x.command[2]: {input} would be run as shell text; write "$1" here',
    ),
    "a job in start": (
        NO_CLIENT + "start = ['s', '{input}']\ncommand = ['c']",
        'line 4: solver.x.start[1]: "{input}" has {input}, which is no placeholder here: a warm server outlives '
        "jobs, so it is told nothing of one; known: {host}, {port}, {server_dir}, {cpus}",
    ),
    "a parameter in the environment of a server": (
        OMC + "env = { LOAD = '{params.load}' }\nparams.load = { type = 'int' }",
        'line 3: solver.x.env.LOAD: "{params.load}" has {params.load}, which is no placeholder here: a warm server '
        "outlives jobs, so it is told nothing of one; known: {server_dir}, {cpus}",
    ),
    "a job in quit": (CLIENT + "quit = ['q', '{stem}']", "a warm server outlives jobs"),
    "a misspelt placeholder in start": (
        CLIENT.replace("{port}", "{prot}", 1),
        'line 3: solver.x.start[2]: "{prot}" has {prot}, which is no placeholder here; did you mean "{port}"?',
    ),
    "a brace in start": (CLIENT.replace('{port}"', '{port"', 1), "has a single {; write {{ or }} for a literal brace"),
    "a port in a command": (
        '[solver.x]\ncommand = ["x", "{port}"]',
        'solver.x.command[1]: "{port}" has {port}, which is no placeholder here; did you mean "{input}"?',
    ),
    "nothing tells the server its port": (
        CLIENT.replace('"{port}"]', '"6379"]', 1),
        'line 3: solver.x.start: nothing tells the server its port, and ready of kind "tcp" needs one: write {port} '
        "where it takes it, say how it tells the one it picked: port = { line = '...' }, or which one it always has: "
        "port = 6379",
    ),
    "nothing tells the server the port of its status page": (
        CLIENT.replace('"{port}"]', '"80"]', 1).replace(
            'kind = "tcp", send = "PING\\r\\n", expect = "PONG"', "kind = 'http'"
        ),
        'nothing tells the server its port, and ready of kind "http" needs one',
    ),
    "nothing tells the server the port of its questions": (
        CLIENT.replace('"{port}"]', '"80"]', 1).replace('"tcp"', '"zmq"'),
        'nothing tells the server its port, and ready of kind "zmq" needs one',
    ),
    "nothing tells the server the port of its end": (
        NO_CLIENT + "start = ['s']\ncommand = ['c']\nquit = ['q', '{port}']",
        "nothing tells the server its port, and {port} stands in command or quit",
    ),
    "nothing tells the server the port to talk on": (
        NO_CLIENT + "start = ['s']\ntalk = 'json'",
        "line 4: solver.x.start: nothing tells the server its port, and talk needs one",
    ),
    "nothing tells the server the port of its client": (
        NO_CLIENT + "start = ['s']\ncommand = ['c', '{port}']",
        "line 4: solver.x.start: nothing tells the server its port, and {port} stands in command or quit",
    ),
    "a port before it is picked": (
        CLIENT + "port = { file = 'port' }",
        'line 3: solver.x.start[2]: "{port}" has {port}, which is no placeholder here: with port = ... it picks its '
        "own, which nobody knows before it started; known: {host}, {server_dir}, {cpus}",
    ),
    "a port told nowhere": (
        CLIENT.replace('"{port}"]', '"0"]', 1) + "port = {}",
        "line 6: solver.x.port: neither line nor file is given",
    ),
    "a port told twice": (
        CLIENT.replace('"{port}"]', '"0"]', 1) + "port = { line = '(1)', file = 'f' }",
        "line 6: solver.x.port: both line and file are given",
    ),
    "a port that no group finds": (
        CLIENT.replace('"{port}"]', '"0"]', 1) + "port = { line = 'port \\d+' }",
        'solver.x.port.line: "port \\\\d+" has no group for the port, such as ([0-9]+)',
    ),
    "a port in a file that no group finds": (
        CLIENT.replace('"{port}"]', '"0"]', 1) + "port = { file = 'f', match = '\\d+' }",
        'solver.x.port.match: "\\\\d+" has no group for the port',
    ),
    "no way at all to tell the port": (
        CLIENT.replace('"{port}"]', '"0"]', 1) + "port = 'auto'",
        'line 6: solver.x.port: "auto" is not a table of keys or a whole number from 1024 to 65535; without this key '
        "it is given a port as {port}; if it picks its own: port = { line = 'port ([0-9]+)' }",
    ),
    "a port for the privileged": (CLIENT + "port = 80", "solver.x.port: 80 is not a table of keys or a whole number"),
    "several servers on one port": (
        CLIENT + "port = 6379\nservers = { max = 2 }",
        "line 7: solver.x.servers.max: 2 servers cannot share the port 6379; write 1",
    ),
    "several servers kept on one port": (
        CLIENT + "port = 6379\nservers = { min = 2 }",
        "line 7: solver.x.servers.min: 2 servers cannot share the port 6379; write 1",
    ),
    "two solvers on one port": (
        CLIENT + "port = 6379\n" + CLIENT.replace("solver.x", "solver.y") + "port = 6379",
        "line 12: solver.y.port: 6379 is the port of solver x as well; two servers cannot share one",
    ),
    "a port that others may be given": (
        CLIENT + "port = 23999\n",
        "line 6: solver.x.port: 23999 lies in [daemon] ports, so another server may be given it; choose a range "
        "without it: they are 23600-23999",
    ),
    "braces that are meant so": (
        SERVER + "command = ['awk', '{print $1}']",
        '"{print $1}" has {print $1}, which is no placeholder here; did you mean "{port}"? (literal braces are written '
        "{{ and }})",
    ),
    "a faulty way to tell the port": (
        CLIENT.replace('"{port}"]', '"0"]', 1) + "port = { line = '(' }",
        'solver.x.port.line: "(" is not a regular expression',
    ),
    "more servers kept than allowed": (
        OMC + "servers = { min = 3, max = 2 }",
        "line 3: solver.x.servers.min: 3 is more than max, 2",
    ),
    "no servers at all": (OMC + "servers = { max = 0 }", "solver.x.servers.max: 0 is not a whole number from 1 to"),
    "no function": ('[solver.x]\nkind = "python"', "line 1: solver.x.call: is missing; it must be a function such as"),
    "a function without a name": (
        PYTHON.replace(":process", ""),
        'line 3: solver.x.call: "package.module" is not a function such as "post.py:process" or "package.module:proc',
    ),
    "a function in a file of another sort": (PYTHON.replace("package.module", "post-it"), "is not a function such as"),
    "a function that is called already": (PYTHON.replace('process"', 'process()"'), "is not a function such as"),
    "no interpreter": (
        PYTHON + "python = ''",
        'solver.x.python: "" is not a program: its name on the PATH, or its path',
    ),
    "no omc": (OMC + "omc = ''", 'solver.x.omc: "" is not a program'),
    "a denial of no license": (
        '[solver.x]\ncommand = ["x"]\nlicense_denied = "denied"',
        "line 3: solver.x.license_denied: no license could be denied: name those that it takes in licenses",
    ),
    "a denial of a faulty license": (
        OMC + 'license_denied = "denied"\nlicenses = { a = 0 }\n' + LICENSES,
        "solver.x.licenses.a: 0 is not a whole number from 1",
    ),
    "more licenses kept than there are": (
        OMC + "licenses = { a = 2 }\nservers = { min = 3 }\n" + LICENSES,
        "line 4: solver.x.servers.min: 3 servers always hold 6 a; there are 4 in [licenses]",
    ),
    "more licenses kept by two than there are": (
        OMC + "licenses = { b = 1 }\nservers = { min = 2 }\n[solver.y]\nkind = 'omc'\nlicenses = { b = 1 }\n"
        "servers.min = 1\n" + LICENSES,
        "line 8: solver.y.servers.min: 1 server always holds 1 b, and the solvers above keep 2; there are 2 in",
    ),
    "one server with more licenses than there are": (
        OMC + "licenses = { b = 3 }\nservers = { min = 2 }\n" + LICENSES,
        "line 3: solver.x.licenses.b: 3 is more than the 2 in [licenses]",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_plain_words(mistake: str) -> None:
    text, want = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert [problem for problem in caught.value.problems if want in problem], caught.value
    assert len(caught.value.problems) == 1, caught.value


def test_a_choice_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[solver.x]\nkind = 'fmu'\n[solver.y]\nkind = 'server'\nstart = ['s']\ncommand = ['c']")
    assert caught.value.problems == (
        'line 2: solver.x.kind: "fmu" is not one of "command", "server", "omc", "python"',
        'line 3: solver.y.ready: is missing; it must be a table of keys with kind = "tcp", "http", "line", "file" or '
        '"zmq"; for example ready = { kind = "tcp", expect = "^Rsrv" }',
    )


def test_what_is_missing_is_told_where_the_kind_is_certain() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[solver.x]\nkind = 'python'\nstart = ['s']\n[solver.y]\nzzzz = 1\n")
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "solver.x.call",
        "solver.x.start",
        "solver.y.command",
        "solver.y.zzzz",
    ]


# --- the schema -------------------------------------------------------------------------------------------------------


def test_the_schema_offers_every_kind_and_needs_kind_where_the_file_does() -> None:
    schema = config.config_schema()
    defs = schema["$defs"]
    offered = schema["properties"]["solver"]["additionalProperties"]["oneOf"]
    records = [member["$ref"].rpartition("/")[2] for member in offered]
    assert records == [member.__name__ for member in get_args(AnySolver)]
    for member in get_args(AnySolver):
        definition = defs[member.__name__]
        tag = member.__struct_config__.tag
        assert definition["properties"]["kind"]["enum"] == [tag]
        assert ("kind" in definition["required"]) is (tag != "command")
        assert definition["additionalProperties"] is False
    assert defs["CommandSolver"]["properties"]["kind"]["default"] == "command"
    ready = defs["ServerSolver"]["properties"]["ready"]
    assert [member["$ref"] for member in ready["oneOf"]][:2] == ["#/$defs/TcpReady", "#/$defs/HttpReady"]
    assert "kind" in defs["TcpReady"]["required"]
    assert defs["Daemon"]["properties"]["ports"]["default"] == "23600-23999"
    assert "discriminator" not in json.dumps(schema)
    assert "PortRange" not in defs, "it is written as a text"


def test_every_kind_with_servers_is_one() -> None:
    warm = {member for member in get_args(AnySolver) if issubclass(member, WarmSolver)}
    assert warm == {ServerSolver, OmcSolver, PythonSolver}
