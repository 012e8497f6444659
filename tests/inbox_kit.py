"""An inbox on a real home, with an ``accept`` that records what it is given."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from solvisor.config import Config, parse
from solvisor.home import Home, IdMaker
from solvisor.inbox import Inbox
from solvisor.inbox.scan import Scanner, Survey
from solvisor.model import Intake, Limits, Original
from solvisor.spool import Claims, ignore_lease_breaks
from waiting import eventually

SOLVERS = """
[solver.ccx]
accept = ["*.inp"]
command = ["true", "{input}"]
[solver.ccx.params]
load = { type = "float", default = 1.0, min = 0 }
[solver.abaqus]
accept = ["*.inq", "*.odb"]
command = ["true", "{input}"]
[solver.nastran]
accept = ["*.inq"]
command = ["true", "{input}"]
[solver.careful]
accept = ["*.dat"]
alone = false
command = ["true", "{input}"]
[solver.any]
command = ["true", "{input}"]
"""

LIMITS = Limits(
    max_jobs=2,
    cpus=4,
    memory_bytes=8 << 30,
    interruptions_max=3,
    licenses={"orcaflex": 2},
    solver_jobs={},
)


def a_config(settle: str = "0.1s", rescan: str = "0.15s", orphan_after: str = "10m") -> Config:
    text = f'[inbox]\nsettle = "{settle}"\nrescan = "{rescan}"\norphan_after = "{orphan_after}"\n{SOLVERS}'
    return parse(text, Path("solvisor.toml"))


class CountingInbox(Inbox):
    """An inbox that counts its scans, ``spared`` those that it saw to be needless, and ``looks`` both."""

    scans = 0
    spared = 0

    @property
    def looks(self) -> int:
        return self.scans + self.spared

    def _is_same(self, scanner: Scanner) -> bool:
        same = super()._is_same(scanner)
        self.spared += same
        return same

    def _look(self, scanner: Scanner) -> Survey:
        self.scans += 1
        return super()._look(scanner)


@dataclass
class Running:
    """An inbox at work: ``intakes`` in the order of their handing over, ``rounds`` their numbers."""

    home: Home
    inbox: CountingInbox
    tasks: TaskGroup
    intakes: list[Intake] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    before_accept: Callable[[], object] = lambda: None

    async def accept(self, intakes: Sequence[Intake]) -> None:
        await anyio.lowlevel.checkpoint()
        self.before_accept()
        self.rounds.append(len(intakes))
        self.intakes.extend(intakes)

    @property
    def folder(self) -> Path:
        return self.home.inbox

    @property
    def has_routes(self) -> bool:
        return {"ccx", "abaqus", "nastran", "careful", "any"} <= {path.name for path in self.folder.glob("*/")}

    @property
    def jobs(self) -> list[Intake]:
        return [intake for intake in self.intakes if intake.refusal is None]

    @property
    def refused(self) -> list[Intake]:
        return [intake for intake in self.intakes if intake.refusal is not None]

    async def wait_intakes(self, count: int, deadline: float = 30.0) -> list[Intake]:
        await eventually(lambda: len(self.intakes) >= count, f"{count} intakes", deadline)
        assert len(self.intakes) == count, [i.spec.source.path for i in self.intakes]
        return self.intakes

    async def wait_job(self) -> Intake:
        (intake,) = await self.wait_intakes(1)
        assert intake.refusal is None, intake.refusal
        return intake

    async def wait_refusal(self) -> tuple[str, str]:
        (intake,) = await self.wait_intakes(1)
        assert intake.refusal is not None
        return intake.refusal

    async def wait_scans(self, count: int = 2) -> None:
        """Until so many more looks are over: what was going to happen at once has happened."""
        end = self.inbox.looks + count + 1
        await eventually(lambda: self.inbox.looks >= end, "scans of the inbox")

    def claimed(self, intake: Intake, name: str) -> bytes:
        return (self.home.work / intake.id / "input" / name).read_bytes()


@contextlib.asynccontextmanager
async def running(
    root: Path, config: Config | None = None, pending: Sequence[Original] = (), inbox: Path | None = None
) -> AsyncIterator[Running]:
    ignore_lease_breaks()  # as every daemon does
    home = Home.at(root / "home", inbox)
    home.prepare()
    settings = config or a_config()
    works = CountingInbox(home, lambda: settings, lambda: LIMITS, Claims(home), IdMaker(), pending)
    async with anyio.create_task_group() as tasks:
        run = Running(home, works, tasks)
        tasks.start_soon(works.run, run.accept)
        await eventually(lambda: run.has_routes, "the first scan")
        yield run
        tasks.cancel_scope.cancel()


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
