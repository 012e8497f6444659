"""``solvisor servers``: what it prints, what it asks for, how it ends; and servers in what other verbs print."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from cli_kit import Run
from fake_daemon import FakeDaemon, fake_daemon, status, view
from solvisor.model import Reason, ServerState
from solvisor.questions import NO_SERVERS
from solvisor.views import PoolRow, Pools, PoolView, Problem, ServerRow, Waiting

JOB = "beam-1jl9v2k4a0b1c2d"
SERVER = ServerRow(
    name="rserve-1",
    solver="rserve",
    state=ServerState.READY,
    port=23600,
    pid=4711,
    jobs=12,
    job=None,
    rss_bytes=51 << 20,
    started="2026-11-02T10:00:00.000000Z",
    ready_seconds=0.2,
    age_seconds=4300.0,
    in_state_seconds=3.0,
    why=None,
)
POOL = PoolView(
    solver="rserve",
    state="ok",
    wanted=1,
    starting=0,
    up=1,
    ready=1,
    busy=0,
    most=4,
    waiting=0,
    failures=0,
    error=None,
    min=0,
    max=4,
    scale=None,
    rests_seconds=None,
    licenses={},
    servers=(SERVER,),
)
EMPTY = replace(POOL, wanted=0, up=0, ready=0, servers=())
HEAD = "SERVER    STATE   PORT   PID  JOBS  MEMORY       AGE"


def line(pool: PoolView) -> PoolRow:
    """The same as the status has it."""
    return msgspec.convert(msgspec.to_builtins(pool), PoolRow)


# --- list -----------------------------------------------------------------------------------------------------------


def test_each_server_has_a_line(fake: FakeDaemon, run: Run) -> None:
    servers = (
        replace(SERVER, name="rserve-1", state=ServerState.DRAINING, job=JOB, why="recycled by a\x1b[2Jnn"),
        replace(SERVER, name="rserve-2", state=ServerState.BUSY, job="fit-1jl9v2k4a0b1c2e"),
        replace(SERVER, name="rserve-3"),
        replace(
            SERVER, name="rserve-4", state=ServerState.STARTING, port=None, pid=None, rss_bytes=None, jobs=0,
            age_seconds=0.4,
        ),
    )  # fmt: skip
    fake.answers["GET", "/v1/servers"] = Pools(pools=(replace(POOL, servers=servers),))
    result = run("servers")
    assert (result.status, result.err) == (0, "")
    assert result.lines == [
        "SERVER    STATE      PORT   PID  JOBS  MEMORY       AGE  JOB / WHY",
        f"rserve-1  draining  23600  4711    12  51 MiB  1 h 12 m  {JOB} 3 s; recycled by a[2Jnn",
        "rserve-2  busy      23600  4711    12  51 MiB  1 h 12 m  fit-1jl9v2k4a0b1c2e 3 s",
        "rserve-3  ready     23600  4711    12  51 MiB  1 h 12 m",
        "rserve-4  starting                  0             0.4 s",
    ]
    assert run("servers", "list").lines == result.lines


def test_a_solver_whose_servers_may_not_start_has_a_line_without_a_server(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/servers"] = Pools(
        pools=(
            replace(EMPTY, solver="a", state="backoff", rests_seconds=3.2, error="a-7 ended", waiting=1),
            replace(EMPTY, solver="b", state="failed", failures=6, error="b-7 ended", waiting=2),
            replace(EMPTY, solver="c", scale=2, error="c-7 ended"),
            replace(EMPTY, solver="d"),
        )
    )
    assert run("servers").lines == [
        "a  backoff  the next one starts in 3.2 s, after: a-7 ended",
        "a           1 job waits for a server",
        "b  failed   6 times in a row: b-7 ended; correct it, then solvisor servers restart b",
        "b           2 jobs wait for a server",
        "c           the last one that failed: c-7 ended",
        "c           scaled to 2 until the daemon ends, or until: solvisor servers scale c auto",
        "d           none now; up to 4 are started when jobs need them",
    ]


def test_where_there_are_none_it_is_said_why(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/servers"] = Pools(pools=())
    result = run("servers")
    assert (result.status, result.out) == (0, "")
    assert result.err == "no solver has warm servers; those of the kinds server, omc and python do\n"
    fake.answers["GET", "/v1/servers"] = Pools(pools=(), note=NO_SERVERS)
    assert run("servers").err == f"{NO_SERVERS}\n"
    assert "those of one that was killed may still run" in NO_SERVERS


def test_an_old_error_is_not_told_of_a_solver_whose_servers_are_up(fake: FakeDaemon, run: Run) -> None:
    fake.answers["GET", "/v1/servers"] = Pools(pools=(replace(POOL, error="long ago"),))
    assert len(run("servers").lines) == 2


@pytest.mark.parametrize("words", [["servers", "--json"], ["servers", "list", "--json"]], ids=" ".join)
def test_json_is_the_answer_as_it_is(fake: FakeDaemon, run: Run, words: list[str]) -> None:
    answer = Pools(pools=(POOL,))
    fake.answers["GET", "/v1/servers"] = answer
    result = run(*words)
    assert (result.status, result.err) == (0, "")
    assert msgspec.json.decode(result.out, type=Pools) == answer


# --- orders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "path", "body", "told"),
    [
        (["scale", "rserve", "1"], "rserve/scale", {"count": 1}, "rserve is scaled to 1 server"),
        (["scale", "rserve", "0"], "rserve/scale", {"count": 0}, "rserve is scaled to 0 servers"),
        (["scale", "rserve", "3"], "rserve/scale", {"count": 3}, "rserve is scaled to 3 servers"),
        (
            ["scale", "rserve", "auto"],
            "rserve/scale",
            {"count": None},
            "rserve has as many servers as the configuration says: 0 to 4",
        ),
        (["recycle", "rserve"], "rserve/recycle", None, "the servers of rserve are replaced, each once it has no job"),
        (["recycle", "rserve-2"], "rserve-2/recycle", None, "rserve-2 is replaced once it has no job"),
        (
            ["restart", "rserve"],
            "rserve/restart",
            None,
            "the servers of rserve are replaced, each once it has no job; what went wrong with the servers of rserve "
            "is forgotten",
        ),
        (
            ["restart", "rserve-2"],
            "rserve-2/restart",
            None,
            "rserve-2 is replaced once it has no job; what went wrong with the servers of rserve is forgotten",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_order_is_sent_and_its_answer_shown(
    fake: FakeDaemon, run: Run, words: list[str], path: str, body: Any, told: str
) -> None:
    scale = body["count"] if body else None
    answer = replace(POOL, scale=scale)
    fake.answers["POST", f"/v1/servers/{path}"] = answer
    result = run("servers", *words)
    (asked,) = fake.asked("POST", f"/v1/servers/{path}")
    assert (json.loads(asked.body) if asked.body else None) == body
    assert (result.status, result.err) == (0, "")
    assert result.lines[:3] == [told, HEAD, "rserve-1  ready  23600  4711    12  51 MiB  1 h 12 m"]
    life = f"scaled to {scale} until the daemon ends, or until: solvisor servers scale rserve auto"
    assert result.lines[3:] == ([] if scale is None else [f"rserve  {life}"])
    printed = run("servers", *words, "--json")
    assert msgspec.json.decode(printed.out, type=PoolView) == answer


@pytest.mark.parametrize(("code", "exit_status"), [("usage", 2), ("no_such_server", 4), ("license", 1)])
def test_what_is_refused_ends_with_its_code(fake: FakeDaemon, run: Run, code: str, exit_status: int) -> None:
    problem = Problem(title="refused", status=400, detail="there is no such thing", code=code)
    for order, words in {"scale": ["x", "1"], "recycle": ["x"], "restart": ["x"]}.items():
        fake.answers["POST", f"/v1/servers/x/{order}"] = problem
        result = run("servers", order, *words)
        assert result == (exit_status, "", "solvisor: there is no such thing\n")


@pytest.mark.parametrize("name", ["a/b", "/", "a/../../pause"])
def test_what_is_no_name_of_a_server_is_not_asked_for(fake: FakeDaemon, run: Run, name: str) -> None:
    result = run("servers", "recycle", name)
    assert (result.status, result.out, fake.requests) == (4, "", [])
    assert "solvisor servers shows them" in result.err


def test_a_name_may_hold_any_character(fake: FakeDaemon, run: Run) -> None:
    fake.answers["POST", "/v1/servers/a?b é/recycle"] = POOL
    assert run("servers", "recycle", "a?b é").status == 0


@pytest.mark.parametrize(
    ("words", "usage", "said"),
    [
        (["foo"], "servers", "no such action: 'foo'; there are: list, scale, recycle, restart"),
        (["restrat", "rserve"], "servers", "no such action: 'restrat'; did you mean restart?"),
        (["--json", "scale", "rserve", "3"], "servers", "--json stands after what is to be done"),
        (["--jsno"], "servers list", "unrecognized arguments: --jsno"),
        (["list", "rserve"], "servers list", "unrecognized arguments: rserve"),
        (["scale", "rserve"], "servers scale", "the following arguments are required: N|auto"),
        (["scale", "rserve", "two"], "servers scale", "'two': write a whole number from 0 on, or auto"),
        (["scale", "rserve", "²"], "servers scale", "write a whole number from 0 on, or auto"),
        (["scale", "rserve", "-1"], "servers scale", ""),
        (["scale", "", "1"], "servers scale", "it is empty; is a variable not set?"),
        (["recycle"], "servers recycle", "the following arguments are required: SOLVER|SERVER"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_mistakes_are_told(fake: FakeDaemon, run: Run, words: list[str], usage: str, said: str) -> None:
    result = run("servers", *words)
    assert (result.status, result.out, fake.requests) == (2, "", [])
    assert result.err.startswith(f"usage: solvisor {usage} [-h]")
    assert said in result.err


def test_only_where_an_action_may_be_left_out_the_first_is_meant(run: Run) -> None:
    assert "the following arguments are required: VERB" in run().err
    assert "the following arguments are required: ACTION" in run("config").err


@pytest.mark.parametrize("action", ["list", "scale", "recycle", "restart"])
def test_every_action_helps_with_examples(run: Run, action: str) -> None:
    assert "examples:\n  solvisor servers" in run("servers", action, "--help").out
    assert "until the daemon ends" in run("servers", "scale", "--help").out


def test_without_a_daemon_orders_are_not_taken(run: Run) -> None:
    for words in (["scale", "rserve", "1"], ["recycle", "rserve"], ["restart", "rserve"], ["list"], []):
        assert run("servers", *words).status == 3


def test_commands_have_the_home_that_was_given(tmp_path: Path, run: Run) -> None:
    with fake_daemon(tmp_path / "my home") as fake:
        fake.answers["GET", "/v1/servers"] = Pools(pools=(replace(EMPTY, state="failed", failures=6, error="x"),))
        told = run("servers", "--home", "my home").out
        assert "correct it, then solvisor servers restart --home 'my home' rserve\n" in told
        assert (
            "solvisor servers --home 'my home' shows them" in run("servers", "recycle", "a/b", "--home", "my home").err
        )


# --- other verbs ----------------------------------------------------------------------------------------------------


def test_status_has_a_line_for_each_solver_with_servers(fake: FakeDaemon, run: Run) -> None:
    pools = (
        replace(POOL, solver="a", ready=3, busy=1, starting=1),
        replace(EMPTY, solver="b", state="backoff", error="b-7 ended"),
        replace(EMPTY, solver="c", state="failed", error="c-7 ended"),
        replace(EMPTY, solver="comes", wanted=1),
        replace(EMPTY, solver="waited", waiting=2),
        replace(EMPTY, solver="unused", most=0, error="long ago"),
    )
    fake.answers["GET", "/v1/status"] = status(
        servers=tuple(map(line, pools)), waiting=3, waiting_for=(Waiting(Reason.SERVER, "a", 3),)
    )
    assert run("status").lines[2:] == [
        "SERVERS  a       2 ready, 1 busy, 1 starting of 4",
        "         b       none of 4, backoff: b-7 ended",
        "         c       none of 4, failed",
        "         comes   none of 4",
        "         waited  none of 4",
        "                 none now, none wanted: 1 other solver",
        "WAITING  3 for a warm server of a",
    ]
    unused = tuple(line(replace(EMPTY, solver=name)) for name in "ab")
    fake.answers["GET", "/v1/status"] = status(servers=unused, waiting=1)
    assert run("status").lines[2:] == ["SERVERS  none now, none wanted: 2 solvers"]


def attempt_of(**changes: Any) -> dict[str, Any]:
    return {
        "n": 1, "token": "t", "host": "ws04", "server": "rserve-2", "port": 23601, "pid": 4711,
        "started": "2026-11-02T10:00:00.000000Z", "finished": None, "exit_code": None, "signal": None, "cause": None,
        "code": None, "message": None, "cpu_user_seconds": None, "cpu_system_seconds": None, "max_rss_bytes": None,
        "max_rss_source": None, **changes,
    }  # fmt: skip


def test_show_names_the_server_of_a_try(fake: FakeDaemon, run: Run) -> None:
    attempt = attempt_of()
    second = attempt | {"n": 2, "server": "post-1", "port": None}
    fake.know(view(attempts=[attempt, second, attempt | {"n": 3, "server": None, "port": None}]), "last")
    lines = run("show", "last").lines
    assert "  tries      1  interrupted  server rserve-2 port 23601" in lines
    assert "             2  interrupted  server post-1" in lines
    assert "             3  running" in lines
    fake.know(view(attempts=[attempt], state="queued"), "last")
    assert "  tries      1  interrupted  server rserve-2 port 23601" in run("show", "last").lines


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"cause": "server", "code": "server_died", "message": "it hung up"}, "server died"),
        ({"cause": "lost", "code": "server_gone"}, "server gone before it began"),
        ({"cause": "lost", "signal": 15}, "interrupted"),
        ({"cause": "lost"}, "interrupted"),
        ({"cause": "spawn", "finished": None}, "did not start"),
        ({"cause": "unkillable"}, "would not die"),
        ({"cause": "timeout", "signal": 9}, "signal 9"),
        ({"cause": "exit", "exit_code": 3}, "exit 3"),
    ],
)
def test_show_says_how_each_try_ended(fake: FakeDaemon, run: Run, changes: dict[str, Any], told: str) -> None:
    first = attempt_of(finished="2026-11-02T10:00:02.000000Z", **changes) if "finished" not in changes else None
    fake.know(view(attempts=[first or attempt_of(**changes), attempt_of(n=2)], tries=2, tries_charged=1), "last")
    first_line, second_line = (text for text in run("show", "last").lines if "rserve-2" in text)
    assert re.split("  +", first_line.strip())[:3] == ["tries", "1", told]
    assert second_line.split()[:2] == ["2", "running"]


@pytest.mark.parametrize(
    ("tries", "charged", "most", "told"),
    [(2, 2, 3, ["2 of at most 3"]), (4, 2, 3, ["4, charged 2 of at most 3"]), (2, 1, 1, [])],
)
def test_show_counts_only_charged_tries(
    fake: FakeDaemon, run: Run, tries: int, charged: int, most: int, told: list[str]
) -> None:
    fake.know(view(tries=tries, tries_charged=charged, tries_max=most), "last")
    lines = run("show", "last").lines
    assert [text.split(maxsplit=1)[1] for text in lines if text.split()[0] == "tried"] == told


def test_show_tells_the_result_and_that_the_log_was_cut(fake: FakeDaemon, run: Run) -> None:
    fake.know(view(result={"peak": 3.5, "word": "a\x1bb"}, log_truncated=True), "last")
    lines = run("show", "last").lines
    assert '  result     {"peak":3.5,"word":"a\\u001bb"}' in lines
    assert "  log        longer than its limit: the middle of it was cut out" in lines
    fake.know(view(result=list(range(1000))), "last")
    (told,) = (text for text in run("show", "last").lines if text.startswith("  result"))
    assert told.endswith(" ... (the rest is in manifest.json)")
    assert len(told) < 400
    fake.know(view(result=0), "last")
    assert "  result     0" in run("show", "last").lines
    fake.know(view(), "last")
    assert not [text for text in run("show", "last").lines if text.split()[0] in {"result", "log"}]
