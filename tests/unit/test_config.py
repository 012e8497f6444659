"""Configuration files: what they mean, and what a person reads who made a mistake in one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import msgspec
import pytest

from solvisor import config, jobfile
from solvisor.config import Api, Config, Notify, Retention
from solvisor.errors import ConfigError
from solvisor.kinds import AnySolver, CommandSolver, Output
from solvisor.model import Address, Cause, Demand, JobSpec, PortRange, Retry, Settings, Source
from solvisor.schemas import SCHEMAS, path, text

HERE = Path("solvisor.toml")

CCX = """\
[solver.ccx]
accept  = ["*.inp"]
command = ["ccx", "-i", "{stem}"]
timeout = "2h"
cpus    = 2
memory  = "2GiB"
licenses = { orcaflex = 1 }
env     = { OMP_NUM_THREADS = "{cpus}" }
pass_env = ["*_LICENSE_FILE"]
[solver.ccx.params]
load = { type = "float", default = 1.0, min = 0 }
[solver.ccx.success]
exit        = [0]
outputs     = ["{stem}.frd", { path = "{stem}.sta", match = '^\\s+1\\s' }]
log_forbid  = ['\\*ERROR']
error_pattern = '\\*ERROR.*(?:\\n.+)*'
[solver.ccx.retry]
max = 1
on  = ["signal"]
[licenses]
orcaflex = 2
"""


def parse(text: str) -> Config:
    return config.parse(text, HERE)


def spec(**rest: object) -> JobSpec:
    return msgspec.convert(
        {"name": "n", "solver": "ccx", "primary": "beam.inp", "inputs": [], "source": Source("inbox", "beam.inp")}
        | rest,
        JobSpec,
        from_attributes=True,
    )


# --- what it means ----------------------------------------------------------------------------------------------------


def test_the_documented_example() -> None:
    ccx = parse(CCX).solver["ccx"]
    assert isinstance(ccx, CommandSolver)
    assert ccx.command == ("ccx", "-i", "{stem}")
    assert (ccx.timeout, ccx.cpus, ccx.memory) == (7200.0, 2, 2 << 30)
    assert ccx.retry == Retry(max=1, on=(Cause.SIGNAL,), delay_seconds=1.0)
    assert ccx.success.wanted_outputs() == (Output(path="{stem}.frd"), Output(path="{stem}.sta", match=r"^\s+1\s"))


def test_an_empty_file_has_every_default() -> None:
    empty = parse("")
    assert (empty.daemon.max_jobs, empty.daemon.stop_timeout, empty.daemon.interruptions_max) == ("auto", 60.0, 3)
    assert empty.daemon.ports == PortRange(23600, 23999)
    assert (empty.inbox.path, empty.inbox.settle, empty.inbox.rescan, empty.inbox.orphan_after) == (None, 0.5, 2, 600)
    assert (empty.solver, empty.licenses, empty.notify, empty.warnings) == ({}, {}, None, ())


def test_the_defaults_of_a_solver() -> None:
    solver = parse('[solver.x]\ncommand = ["x"]').solver["x"]
    assert (solver.kind, solver.alone, solver.timeout, solver.cpus, solver.memory) == ("command", True, None, 1, 0)
    assert (solver.stop_grace, solver.log_max, solver.max_jobs) == (10.0, 64 << 20, None)
    assert (solver.success.exit, solver.success.outputs, solver.retry.max) == ((0,), (), 0)


def test_limits_of_memory_and_processes() -> None:
    table = '[solver.x]\ncommand = ["x"]\n'
    solver = parse(table).solver["x"]
    assert (solver.memory_limit, solver.processes_limit) == (None, None)
    limited = parse(table + 'memory_limit = "4GiB"\nprocesses_limit = 256\n')
    solver = limited.solver["x"]
    assert (solver.memory_limit, solver.processes_limit) == (4 << 30, 256)
    assert limited.unenforced({"memory", "pids"}) == []
    (memory,) = limited.unenforced({"pids"})
    assert memory.startswith("memory_limit of solver x is not enforced: ")
    (both,) = limited.unenforced(())
    assert both.startswith("memory_limit and processes_limit of solver x are not enforced: ")
    assert parse(table).unenforced(()) == []
    with pytest.raises(ConfigError) as caught:
        parse(table + 'memory = "5GiB"\nmemory_limit = "4GiB"\n')
    (problem,) = caught.value.problems
    assert problem == "line 3: solver.x.memory: 5GiB is more than memory_limit, 4GiB, lets it have"


def test_show_reads_back_to_the_same() -> None:
    more = '[daemon]\nmemory = "2.5GiB"\ncpus = 4\nports = "1024-65535"\n'
    more += '[inbox]\nsettle = "1m"\n[notify]\ncommand = ["x"]\ntimeout = "9s"\n'
    first = parse(CCX + more)
    shown = config.to_toml(first)
    assert 'timeout = "2h"' in shown
    assert 'memory = "2560MiB"' in shown
    assert 'ports = "1024-65535"' in shown
    assert parse(shown) == first


def test_retention() -> None:
    assert not parse("").retention.removes, "results are kept for ever"
    assert not parse("[retention]").retention.removes
    for rule in ('keep_for = "90d"', 'keep_failed_for = "1h"', 'keep_at_most = "500GiB"', "keep_at_most = 0"):
        assert parse(f"[retention]\n{rule}").retention.removes
    whole = parse('[retention]\nkeep_for = "90d"\nkeep_failed_for = "12h"\nkeep_at_most = "500GiB"\n')
    assert whole.retention == Retention(keep_for=7_776_000.0, keep_failed_for=43_200.0, keep_at_most=500 << 30)
    assert parse(config.to_toml(whole)).retention == whole.retention


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8642", Address("127.0.0.1", 8642)),
        ("127.1.2.3:1", Address("127.1.2.3", 1)),
        ("[::1]:65535", Address("::1", 65535)),
        ("[0:0:0:0:0:0:0:1]:80", Address("::1", 80)),
    ],
)
def test_a_listener_is_on_a_loopback_address(text: str, address: Address) -> None:
    whole = parse(f'[api]\nlisten = "{text}"\ngroup = "fem"\nhosts = ["ws04.example"]\n')
    assert whole.api == Api(group="fem", listen=address, hosts=("ws04.example",))
    assert parse(config.to_toml(whole)).api == whole.api
    assert parse("").api == parse("[api]").api == Api(), "nobody but the owner, nowhere but the socket"


def test_notify() -> None:
    command = '["notify-send", "Solvisor", "{name} {state}: {message}"]'
    assert parse(f"[notify]\ncommand = {command}").notify == Notify(
        command=("notify-send", "Solvisor", "{name} {state}: {message}"), on=("failed", "batch"), timeout=30.0
    )


def test_a_solver_survives_the_way_through_json() -> None:
    solver = parse(CCX).solver["ccx"]
    settings = parse(CCX).settings(spec())
    assert msgspec.convert(json.loads(msgspec.json.encode(settings.table)), AnySolver) == solver


def test_what_an_attempt_is_resolved_with() -> None:
    settings = parse(CCX).settings(spec())
    assert (settings.kind, settings.timeout_seconds, settings.cpus, settings.memory_bytes) == (
        "command",
        7200,
        2,
        2 << 30,
    )
    assert (settings.licenses, settings.retry.max) == ({"orcaflex": 1}, 1)
    own = spec(timeout_seconds=5.0, cpus=1, memory_bytes=7, licenses={}, retry={"max": 0})
    settings = parse(CCX).settings(own)
    assert (settings.timeout_seconds, settings.cpus, settings.memory_bytes) == (5.0, 1, 7)
    assert (settings.licenses, settings.retry.max) == ({}, 0)


@pytest.mark.parametrize("wish", ["timeout_seconds", "cpus", "memory_bytes", "licenses", "retry"])
def test_one_wish_is_enough_to_be_resolved_alone(wish: str) -> None:
    loaded, wished = parse(CCX), {} if wish == "licenses" else {"max": 0} if wish == "retry" else 5
    usual, own = loaded.settings(spec()), loaded.settings(spec(**{wish: wished}))
    differs = [name for name in Settings.__struct_fields__ if getattr(own, name) != getattr(usual, name)]
    assert differs == [wish]
    assert loaded.settings(spec()) is usual, "jobs without wishes share one record"
    assert own.table is usual.table


def test_demand() -> None:
    loaded = parse(CCX)
    assert loaded.demand(spec()) == Demand("ccx", 2, 2 << 30, (("orcaflex", 1),))
    assert loaded.demand(spec(cpus=3, memory_bytes=0, licenses={"b": 1, "a": 2, "c": 0})) == Demand(
        "ccx", 3, 0, (("a", 2), ("b", 1))
    )
    assert loaded.demand(spec(licenses={})) == Demand("ccx", 2, 2 << 30, ())
    assert loaded.demand(spec(solver="gone")) is None


@pytest.mark.parametrize(
    ("daemon", "cpus", "want"),
    [
        ("", 8, (7, 8, (16 << 30) - (2 << 30))),
        ("", 1, (1, 1, 14 << 30)),
        ('max_jobs = 3\nmemory_reserve = "20GiB"', 8, (3, 8, 0)),
        ('cpus = 4\nmemory = "1GiB"', 8, (3, 4, 1 << 30)),
    ],
)
def test_limits(daemon: str, cpus: int, want: tuple[int, int, int]) -> None:
    solvers = '[solver.a]\ncommand = ["a"]\nmax_jobs = 2\n[solver.b]\ncommand = ["b"]\n[licenses]\nl = 3'
    limits = parse(f"[daemon]\n{daemon}\n{solvers}").limits(cpus, 16 << 30)
    assert (limits.max_jobs, limits.cpus, limits.memory_bytes) == want
    assert (limits.licenses, limits.solver_jobs, limits.interruptions_max) == ({"l": 3}, {"a": 2, "b": None}, 3)


def test_a_solver_that_never_fits_the_machine_is_a_fault() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(CCX).limits(1, 3 << 30)
    assert caught.value.problems == (
        "solver.ccx.cpus: 2 is more than the 1 that jobs may use together",
        "solver.ccx.memory: 2GiB is more than the 1GiB that jobs may use together",
    )


def test_two_solvers_that_accept_the_same_name_are_warned_of() -> None:
    loaded = parse('[solver.a]\ncommand=["a"]\naccept=["*.INP", "*.inp"]\n[solver.b]\ncommand=["b"]\naccept=["*.inp"]')
    assert loaded.warnings == (
        'solvers a and b both accept "*.inp": such a file is refused unless it is dropped in inbox/a or inbox/b '
        "or named by a job file",
    )


# --- mistakes ---------------------------------------------------------------------------------------------------------

HEAD = '[solver.x]\ncommand = ["x"]\n'

MISTAKES = {
    "unknown section": ("[demon]\n", 'line 1: demon: no such key; did you mean "daemon"?'),
    "unknown key": (
        "[daemon]\nmemory_reserv = 1",
        'line 2: daemon.memory_reserv: no such key; did you mean "memory_reserve"?',
    ),
    "a key far from all": (
        "[inbox]\n\n\nzzz = 1",
        "line 4: inbox.zzz: no such key; known: path, settle, rescan, orphan_after",
    ),
    "a key of what is written as a text": ("[daemon]\nfirst = 1", "daemon.first: no such key; known: max_jobs, cpus"),
    "a key one table too high": (
        HEAD + "error_pattern = 'x'",
        'line 3: solver.x.error_pattern: no such key; it belongs in "success"',
    ),
    "wrong type": (
        '[daemon]\nmax_jobs = "many"',
        'daemon.max_jobs: "many" is not a whole number from 1 to 1000000 or "auto"',
    ),
    "a truth is no number": ("[daemon]\ninterruptions_max = true", "true is not a whole number from 1 to 1000000"),
    "a fraction is no count": (HEAD + "cpus = 1.5", "line 3: solver.x.cpus: 1.5 is not a whole number"),
    "out of range": (HEAD + "cpus = 0", "line 3: solver.x.cpus: 0 is not a whole number from 1 to 1000000"),
    "a table where a value belongs": (HEAD + "timeout = {}", "solver.x.timeout: a table is not a duration"),
    "a value where a table belongs": (HEAD + "success = true", "solver.x.success: true is not a table of keys"),
    "a text where a list belongs": ('[solver.x]\ncommand = "x"', 'solver.x.command: "x" is not a list'),
    "no command": ("[solver.x]\ncpus = 1", "line 1: solver.x.command: is missing; it must be a list"),
    "an empty command": ("[solver.x]\ncommand = []", "line 2: solver.x.command: is empty; name the program"),
    "an empty program": ('[solver.x]\ncommand = [""]', "solver.x.command: is empty"),
    "duration without unit": (
        HEAD + "timeout = 60",
        'solver.x.timeout: 60 is not a duration such as "500ms", "30s", "15m", "2h" or "1d" (it has no unit: "60s" is '
        "seconds)",
    ),
    "unknown unit of time": (HEAD + 'timeout = "2 hours"', 'solver.x.timeout: "2 hours" is not a duration'),
    "no time at all": (HEAD + 'timeout = "0s"', "(it must be longer than 0)"),
    "unknown unit of size": (
        HEAD + 'memory = "2gb"',
        'solver.x.memory: "2gb" is not a size such as "512MiB", "2GB" or 4096',
    ),
    "negative size": (HEAD + "memory = -1", "solver.x.memory: -1 is not a size such as"),
    "a size beyond all": (HEAD + 'log_max = "99999999TiB"', "(it is larger than any disk)"),
    "solver name": (
        '[solver.CCX]\ncommand = ["x"]',
        'line 1: solver.CCX: "CCX" is not a solver name: at most 32 of a-z, 0-9, - and _, the first a letter or digit',
    ),
    "no range of ports": (
        "[daemon]\nports = 23600",
        'line 2: daemon.ports: 23600 is not a range of ports such as "23600-23999"',
    ),
    "ports the wrong way round": ('[daemon]\nports = "3000-2000"', "(the first is above the last)"),
    "ports for privileged users": ('[daemon]\nports = "1023-2000"', "(ports are from 1024 to 65535)"),
    "ports above all": ('[daemon]\nports = "2000-65536"', "(ports are from 1024 to 65535)"),
    "placeholder": (
        '[solver.x]\ncommand = ["x",\n "{stm}"]',
        'line 3: solver.x.command[1]: "{stm}" has {stm}, which is no placeholder here; did you mean "{stem}"?',
    ),
    "placeholder of no parameter": (
        '[solver.x]\ncommand = ["x", "{params.laod}"]\nparams.load = { type = "int" }',
        'did you mean "{params.load}"?',
    ),
    "a lone brace": (
        '[solver.x]\ncommand = ["x", "{a"]',
        'solver.x.command[1]: "{a" has a single {; write {{ or }} for a literal brace',
    ),
    "placeholder in env": (HEAD + 'env = { A = "{cpu}" }', 'line 3: solver.x.env.A: "{cpu}" has {cpu}'),
    "placeholder that an output cannot have": (
        HEAD + 'success.outputs = ["{output}/x"]',
        'line 3: solver.x.success.outputs[0]: "{output}/x" has {output}, which is no placeholder here',
    ),
    "an output elsewhere": (HEAD + 'success.outputs = ["../x"]', '"../x" lies outside the output folder'),
    "a program chosen by the job": (
        '[solver.x]\ncommand = ["{params.p}"]\nparams.p = { type = "str" }',
        'solver.x.command[0]: "{params.p}": which program runs is not for a job to say',
    ),
    "user text in a shell line": (
        '[solver.x]\ncommand = ["/bin/sh", "-c", "ccx {stem} | tee log"]',
        'solver.x.command[2]: {stem} would be run as shell text; write "$1" here, and add "sh", "{stem}" to the list',
    ),
    "regular expression": (
        HEAD + "success.log_forbid = ['(']",
        'solver.x.success.log_forbid[0]: "(" is not a regular expression in quotes (missing ), unterminated subpattern',
    ),
    "regular expression too large": (
        HEAD + "success.error_pattern = 'x{99999999999}'",
        "(the repetition number is too",
    ),
    "regular expression that is found everywhere": (
        HEAD + "success.log_forbid = ['ERROR|']",
        "(it matches the empty text, so it is found everywhere)",
    ),
    "no exit code": (HEAD + "success.exit = []", "solver.x.success.exit: is empty, so no run could succeed"),
    "the same twice": (HEAD + 'accept = ["*.a", "*.b", "*.a"]', 'line 3: solver.x.accept[2]: "*.a" stands here twice'),
    "a pattern with a folder": (
        HEAD + 'accept = ["in/*.a"]',
        'solver.x.accept[0]: "in/*.a" is not a pattern for file names',
    ),
    "undeclared license": (
        HEAD + "licenses = { orcaflx = 1 }\n[licenses]\norcaflex = 1",
        'line 3: solver.x.licenses.orcaflx: no such license in [licenses]; did you mean "orcaflex"?',
    ),
    "more licenses than there are": (
        HEAD + "licenses = { a = 3 }\n[licenses]\na = 2",
        "line 3: solver.x.licenses.a: 3 is more than the 2 in [licenses]",
    ),
    "more cores than the daemon may use": (
        HEAD + "cpus = 5\n[daemon]\ncpus = 4",
        "line 3: solver.x.cpus: 5 is more than the 4 that jobs may use together",
    ),
    "retry after no such cause": (
        HEAD + 'retry = { max = 1, on = ["signl"] }',
        'line 3: solver.x.retry.on[0]: "signl" is not one of "spawn", "exit", "signal"',
    ),
    "retry that never applies": (
        HEAD + "retry = { max = 2 }",
        'solver.x.retry.max: 2 without on has no effect; name the causes, for example on = ["signal"]',
    ),
    "environment variable": (HEAD + 'env = { "A B" = "1" }', '"A B" is not the name of an environment variable'),
    "environment value": (HEAD + "env = { A = 1 }", "solver.x.env.A: 1 is not a text in quotes"),
    "parameter type": (HEAD + 'params.a = { type = "real" }', '"real" is not one of "float", "int", "str", "bool"'),
    "parameter without type": (HEAD + "params.a = {}", "solver.x.params.a.type: is missing; it must be one of"),
    "default of another type": (
        HEAD + 'params.a = { type = "float", default = "1" }',
        'line 3: solver.x.params.a.default: "1" is not a number',
    ),
    "default out of range": (
        HEAD + 'params.a = { type = "int", default = 9, max = 5 }',
        "solver.x.params.a.default: 9 is more than 5, the largest allowed",
    ),
    "default that is no choice": (
        HEAD + 'params.a = { type = "str", default = "c", choices = ["a", "b"] }',
        'solver.x.params.a.default: "c" is not one of "a", "b"',
    ),
    "choice of another type": (
        HEAD + 'params.a = { type = "str", choices = ["a", 1] }',
        "solver.x.params.a.choices[1]: 1 is not a text in quotes",
    ),
    "limits that exclude all": (HEAD + 'params.a = { type = "int", min = 5, max = 1 }', "min: 5 is more than max, 1"),
    "limits of a text": (HEAD + 'params.a = { type = "str", min = 1 }', 'only numbers have limits, and type is "str"'),
    **{
        f"listening on {text}": (f"[api]\nlisten = '{text}'", f"line 2: api.listen: {told}")
        for text, told in {
            "0.0.0.0:8642": '"0.0.0.0:8642" is not a loopback address',
            "192.168.1.4:8642": '"192.168.1.4:8642" is not a loopback address',
            "[::]:8642": '"[::]:8642" is not a loopback address',
            "[::ffff:127.0.0.1]:8642": '"[::ffff:127.0.0.1]:8642" is not a loopback address',
            "127.0.0.1:0": '"127.0.0.1:0" is not',
            "127.0.0.1:65536": '"127.0.0.1:65536" is not',
            "localhost:8642": '"localhost:8642" is not',
            "127.0.0.1": '"127.0.0.1" is not',
            "127.1:8642": '"127.1:8642" is not',
            "127.0.0.999:8642": '"127.0.0.999:8642" is not',
            "127.0.0.1:23700": "23700 lies in [daemon] ports",
        }.items()
    },
    "a host with a port": (
        "[api]\nhosts = ['ws04:80']",
        'line 2: api.hosts[0]: "ws04:80" is not the name of a machine',
    ),
    "a group of two": ("[api]\ngroup = 'a:b'", 'line 2: api.group: "a:b" is not the name of a group'),
    "results kept for no time": ("[retention]\nkeep_for = '0s'", 'line 2: retention.keep_for: "0s" is not'),
    "results kept for a number": ("[retention]\nkeep_for = 90", "line 2: retention.keep_for: 90 is not"),
    "a notification without a command": ("[notify]\non = ['failed']", "line 1: notify.command: is missing"),
    "a notification of an empty command": ("[notify]\ncommand = []", "line 2: notify.command: is empty; name the"),
    "a notification of nothing": (
        "[notify]\ncommand = ['x']\non = []",
        "line 3: notify.on: is empty, so nothing would",
    ),
    "a notification of an unknown event": (
        "[notify]\ncommand = ['x']\non = ['done']",
        'line 3: notify.on[0]: "done" is not one of "succeeded", "failed", "cancelled", "rejected", "skipped", "batch"',
    ),
    "a placeholder of solvers in a notification": (
        "[notify]\ncommand = ['x', '{stem}']",
        'line 2: notify.command[1]: "{stem}" has {stem}, which is no placeholder here',
    ),
    "a notification run by whatever a job is called": ("[notify]\ncommand = ['{name}']", "no placeholders here"),
    "a message as shell text": (
        "[notify]\ncommand = ['sh', '-c', 'echo {message}']",
        '{message} would be run as shell text; write "$1" here, and add "sh", "{message}" to the list',
    ),
    "not TOML": ("[daemon]\nmax_jobs 3", "line 2, column 10: Expected '=' after a key in a key/value pair"),
    "a key set twice": ("[daemon]\ncpus = 1\ncpus = 2\n", "line 3, column 9: this key is already set further up"),
    "brackets without end": ("a = " + "[" * 100, "line 1: brackets nested deeper than 32"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_fault_84_a_mistake_is_told_in_plain_words(mistake: str) -> None:
    text, want = MISTAKES[mistake]
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert [problem for problem in caught.value.problems if want in problem], caught.value
    assert len(caught.value.problems) == 1, "one mistake, one line"


def test_fault_84_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(
            '[daemon]\nmax_jobs = 0\n[solver.x]\ncommand = ["{stem}", "{a}"]\ntimeout = 5\ncolour = 1\n'
            "retry = { max = 1 }\n[solver.y]\nkind = 'phyton'\n[solver.Z]\n"
        )
    where = [problem.split(": ")[:2] for problem in caught.value.problems]
    assert where == [
        ["line 2", "daemon.max_jobs"],
        ["line 4", "solver.x.command[0]"],
        ["line 4", "solver.x.command[1]"],
        ["line 5", "solver.x.timeout"],
        ["line 6", "solver.x.colour"],
        ["line 7", "solver.x.retry.max"],
        ["line 9", "solver.y.kind"],
        ["line 10", "solver.Z"],
        ["line 10", "solver.Z.command"],
    ]
    assert str(caught.value).startswith("solvisor.toml: 9 faults\n  line 2: daemon.max_jobs: 0 is not")


def test_one_mistake_does_not_seem_to_be_two() -> None:
    """What hangs on a faulty value is not reported as missing."""
    with pytest.raises(ConfigError) as caught:
        parse(
            HEAD.replace('"x"]', '"x", "{params.a}"]')
            + 'params.a = { type = "nothing" }\nlicenses = { l = 1 }\nretry = { max = 1, on = ["?"] }\n'
            + "[licenses]\nl = 0"
        )
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "solver.x.params.a.type",
        "solver.x.retry.on[0]",
        "licenses.l",
    ]


def test_noise_is_cut_short() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("\n".join(f"k{n} = 1" for n in range(1000)))
    assert len(caught.value.problems) == 51
    assert caught.value.problems[-1] == "and 950 more"


def test_what_is_shown_of_a_value_is_harmless_and_short() -> None:
    with pytest.raises(ConfigError) as caught:
        parse('"\\u001b[31m" = 1\n[daemon]\nmemory = "\\u001b]0;\\u202e' + "x" * 500 + '"')
    assert all(problem.isprintable() and len(problem) < 200 for problem in caught.value.problems)


# --- the file ---------------------------------------------------------------------------------------------------------


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "solvisor.toml"
    path.write_text(CCX)
    assert config.load(path) == config.parse(CCX, path)


def test_a_mark_in_front_as_editors_on_windows_write_it(tmp_path: Path) -> None:
    path = tmp_path / "solvisor.toml"
    path.write_text(CCX.replace("\n", "\r\n"), encoding="utf-8-sig", newline="")
    assert config.load(path) == config.parse(CCX, path)


def load_fault(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    (problem,) = caught.value.problems
    return problem


def test_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "solvisor.toml"
    assert load_fault(path).startswith("it cannot be read: No such file or directory; ")
    path.write_bytes(b"[daemon]\n# \xff\n")
    assert load_fault(path) == "line 2: not UTF-8; save the file as UTF-8"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    assert load_fault(path) == "it is larger than 1 MiB"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_fault_85_a_file_that_everyone_may_change_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "solvisor.toml"
    path.write_text(CCX)
    os.chmod(path, 0o646)
    assert load_fault(path) == f"everyone may change it, and so what is run; chmod o-w {path}"
    os.chmod(path, 0o664)
    assert config.load(path).solver


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_fault_85_a_file_that_everyone_may_replace_is_refused(tmp_path: Path) -> None:
    """Whoever may rename a folder on the way to it may put another in its place; or the link that leads to it."""
    way = tmp_path / "open" / "folder"
    way.mkdir(parents=True)
    (way / "solvisor.toml").write_text(CCX)
    (tmp_path / "safe.toml").write_text(CCX)
    link, other_link = tmp_path / "link.toml", tmp_path / "open" / "link.toml"
    link.symlink_to(way / "solvisor.toml")
    other_link.symlink_to(tmp_path / "safe.toml")
    (tmp_path / "open").chmod(0o777)
    for file in (way / "solvisor.toml", link, other_link):
        assert load_fault(file).startswith(f"everyone may put another in its place; chmod o-w {tmp_path / 'open'} ")
    (tmp_path / "open").chmod(0o1777)
    for file in (way / "solvisor.toml", link, other_link):
        assert config.load(file).solver


# --- schemas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_shipped_schemas_are_up_to_date(name: str) -> None:
    assert path(name).read_text(encoding="utf-8") == text(name), "run python -m solvisor.schemas"


def test_a_schema_speaks_the_words_of_the_file() -> None:
    defs = config.config_schema()["$defs"]
    solver = defs["CommandSolver"]
    assert solver["required"] == ["command"]
    assert solver["additionalProperties"] is False
    assert solver["properties"]["timeout"]["type"] == "string"
    assert solver["properties"]["retry"]["$ref"] == "#/$defs/RetryTable"
    assert defs["Inbox"]["properties"]["settle"]["default"] == "500ms"
    assert defs["Daemon"]["properties"]["memory_reserve"]["default"] == "2GiB"
    for schema in (config.config_schema(), jobfile.job_schema()):
        assert "null" not in json.dumps(schema)
        for table in (schema, *schema["$defs"].values()):
            assert all("description" in key or "$ref" in key for key in table["properties"].values()), table
