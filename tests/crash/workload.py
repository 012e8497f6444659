"""What every home of the sweeps is given: drops of each kind, and somebody who submits, retries and cancels meanwhile.

The solvers are shell scripts. Each run writes its token into a ledger outside the home and holds a lock while anything
of it lives, so that a run nobody recorded, or two at once, are noticed. One job waits at a gate that is opened last.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from servers_kit import PROGRAMS, PYTHON
from socket_kit import Answer, Http, file, job

ROUTES = frozenset({"sh", "twice", "s"})
"""The folders of the inbox that the daemon makes."""

NOBODY = 65534
"""A user whose drops are copied, not renamed."""

_CONFIG = """
[daemon]
max_jobs = 4
cpus = 4
memory_reserve = "64MiB"
interruptions_max = 1000
ports = "{ports}"
stop_timeout = "20s"
[inbox]
settle = "0.05s"
rescan = "0.5s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{side}/solve.sh", "{{input}}"]
stop_grace = "0.2s"
env = {{ SIDE = "{side}" }}
[solver.twice]
command = ["/bin/sh", "{side}/solve.sh", "{{input}}"]
env = {{ SIDE = "{side}" }}
[solver.twice.retry]
max = 1
on = ["exit"]
delay = "0s"
[solver.s]
kind = "server"
accept = ["*.s"]
start = [{python}, "{server}", "{{host}}", "{{port}}", "{side}"]
ready = {{ kind = "tcp", send = "ping\\n", expect = "^pong" }}
talk = "json"
servers = {{ max = 1 }}
"""

_SOLVE = """\
job=$(basename "$(dirname "$PWD")")
exec 9>>"$SIDE/lock-$job"
flock -n 9 || echo "$job runs twice at once" >> "$SIDE/problems"
echo "$SOLVISOR_ATTEMPT" >> "$SIDE/ledger"
. "./$1"
"""

_SOLVED = 'cat "$1" > result.txt; date +%N >> result.txt; mkdir -p more; cp "$1" more/copy.txt\n'
_WAITS = 'setsid sleep 300 & until [ -e "$SIDE/gate" ]; do sleep 0.01; done\n' + _SOLVED


class Drop(NamedTuple):
    """``files`` by their paths in the inbox; together they are one job, which must end in ``state``."""

    files: dict[str, str]
    state: str
    foreign: bool = False
    markers: tuple[str, ...] = ()
    """Files that tell the inbox something and never become inputs."""

    def hashes(self) -> set[str]:
        """The SHA-256 of every input."""
        return {hashlib.sha256(text.encode()).hexdigest() for text in self.files.values()}


def _script(name: str, text: str) -> str:
    return f"# {name}\n{text}"


def _job_file(name: str, more: str = "") -> str:
    return f'# {name}\ninputs = ["{name}.sh", "{name}.inc"]\nsolver = "sh"\n{more}'


DROPS = {
    "bare": Drop({"bare.sh": _script("bare", _SOLVED)}, "succeeded", markers=("bare.sh.ready",)),
    "named": Drop(
        {
            "named.sh": _script("named", _SOLVED),
            "named.inc": "mesh\n" * 3000,
            "named.job.toml": _job_file("named"),
        },
        "succeeded",
    ),
    "folder": Drop({"folder/run.sh": _script("folder", _SOLVED), "folder/mesh/fine.inc": "fine\n" * 2000}, "succeeded"),
    "routed": Drop(
        {"twice/routed.dat": _script("routed", '[ -e "$SIDE/once" ] || { touch "$SIDE/once"; exit 3; }\n' + _SOLVED)},
        "succeeded",
    ),
    "bad": Drop({"bad.sh": _script("bad", "echo no convergence; exit 3\n")}, "failed"),
    "wrong": Drop(
        {
            "wrong.sh": _script("wrong", _SOLVED),
            "wrong.inc": "wrong\n",
            "wrong.job.toml": _job_file("wrong", "cpus = 99\n"),
        },
        "rejected",
    ),
    "foreign": Drop({"foreign.sh": _script("foreign", _SOLVED)}, "succeeded", foreign=True),
    "theirs": Drop(
        {"theirs/run.sh": _script("theirs", _SOLVED), "theirs/mesh/fine.inc": "theirs\n" * 2000},
        "succeeded",
        foreign=True,
    ),
    "many": Drop({"many.sh": _script("many", "for n in 1 2 3 4 5 6; do echo $n > part$n.txt; done\n")}, "succeeded"),
    "served": Drop({"served.s": "go\n"}, "succeeded"),
    "gated": Drop({"gated.sh": _script("gated", _WAITS)}, "succeeded"),
}


@dataclass
class Told:
    """What the daemon acknowledged over its socket: ids with what must become of them."""

    batches: list[str] = field(default_factory=list)
    states: dict[str, str | None] = field(default_factory=dict)
    members: dict[str, str] = field(default_factory=dict)


class Workload:
    """The drops and the asker of one home. ``side`` is a folder outside the home, which no crash harms.

    ``foreign``: with drops of another owner, which are removed once they were copied. Where a disk without a journal
    forgets that they were, it gives their inodes to other files all the same, and both names lead to one file.
    """

    def __init__(self, home: Path, side: Path, ports: str, *, foreign: bool = True) -> None:
        self.home = home
        self.drops = {name: drop for name, drop in DROPS.items() if foreign or not drop.foreign}
        self.told = Told()
        self._side = side
        side.mkdir()
        (side / "solve.sh").write_text(_SOLVE)
        for folder in ("inbox", "inbox/twice"):
            (home / folder).mkdir(parents=True)
        settings = _CONFIG.format(side=side, ports=ports, python=PYTHON, server=PROGRAMS / "json_server.py")
        (home / "solvisor.toml").write_text(settings)
        for drop in self.drops.values():
            self._drop(drop)

    def _drop(self, drop: Drop) -> None:
        """Lay it into the inbox, as users do: without fsync."""
        tops = {name.partition("/")[0] for name in drop.files if not name.startswith("twice/")}
        for name, text in (dict.fromkeys(drop.markers, "") | drop.files).items():
            path = self.home / "inbox" / name
            path.parent.mkdir(exist_ok=True, parents=True)
            path.write_text(text)
            path.chmod(0o644)
        if drop.foreign and os.geteuid() == 0:
            for top in tops:
                path = self.home / "inbox" / top
                for one in (path, *path.rglob("*")):
                    os.chown(one, NOBODY, NOBODY)

    def open_gate(self) -> None:
        """Let the one job go on that waited."""
        (self._side / "gate").touch()

    def runs(self) -> list[str]:
        """The tokens, without the home's id, of all runs of a solver there ever were."""
        with contextlib.suppress(FileNotFoundError):
            return [line.partition("/")[2] for line in (self._side / "ledger").read_text().splitlines()]
        return []

    def solver_problems(self) -> list[str]:
        """What solvers noticed themselves."""
        with contextlib.suppress(FileNotFoundError):
            return (self._side / "problems").read_text().splitlines()
        return []

    def ask_all(self, look: Callable[[], bool]) -> None:
        """Submit, cancel and retry until it is done or the daemon is gone; ``look`` says whether it still lives."""
        for step in (self._batch, self._submit, self._refused, self._cancelled, self._again):
            while look():
                try:
                    if step():
                        break
                except (OSError, _Unavailable):  # not ready yet, or crashed meanwhile
                    continue

    @property
    def _http(self) -> Http:
        return Http(self.home)

    def _batch(self) -> bool:
        answer = self._http.post("/v1/batches", {"name": "sweep"}, **{"Content-Type": "application/json"})
        self.told.batches.append(_answered(answer, 201)["id"])
        return True

    def _submit(self) -> bool:
        batch = self.told.batches[-1]
        text = _script("sent", _SOLVED).encode()
        sent = _answered(self._http.send(file("sent.sh", text), key="sent", query=f"?batch={batch}"), 201, 200)
        self.told.states[sent["id"]] = "succeeded"
        self.told.members[sent["id"]] = batch
        return True

    def _refused(self) -> bool:
        """Twice: its files are in order, and only what is asked of them is not."""
        text = _script("refused", _SOLVED).encode()
        answer = self._http.send(file("refused.sh", text), job({"solver": "sh", "cpus": 99}))
        _answered(answer, 422)
        text = _script("refused key", _SOLVED).encode()
        answer = self._http.send(file("refused.sh", text), key="sent")
        _answered(answer, 409, 422)
        return True

    def _cancelled(self) -> bool:
        text = _script("stopped", _WAITS).encode()
        sent = _answered(self._http.send(file("stopped.sh", text), key="stopped"), 201, 200)
        self.told.states[sent["id"]] = None  # whether it is cancelled is not known yet
        _answered(self._http.post(f"/v1/jobs/{sent['id']}/cancel"), 200)
        self.told.states[sent["id"]] = "cancelled"
        return True

    def _again(self) -> bool:
        done = [path for path in (self.home / "done").glob("folder-*") if path.is_dir()]
        if not done:
            return False
        answer = self._http.post(f"/v1/jobs/{done[0].name}/retry")
        if answer.status == 409:  # its folder lies there, its row does not say so yet
            return False
        sent = _answered(answer, 201)
        self.told.states[sent["id"]] = "succeeded"
        return True


class _Unavailable(Exception):
    """The daemon could not do it: its disk has lost its power. Whoever goes on asking hears nothing more soon."""


def _answered(answer: Answer, *statuses: int) -> Any:
    if answer.status >= 500:
        raise _Unavailable
    if answer.status not in statuses:
        raise AssertionError(f"{answer.status} {answer.body!r}")
    return answer.json
