"""One step of a sweep: a home full of drops, some lives that are crashed, one that is not, and what became of it all.

Rules: a life is the real daemon in its own process, ended by SIGKILL or with the power of its disk where the step says;
the step knows by the track that it was there. The last life must come to rest by itself, and end when it is told to.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crash import power, tracing
from crash.failpoints import At, InCall
from crash.mutants import MUTANTS
from crash.observer import TARGETS, Observer
from crash.workload import ROUTES, Workload
from crash.zygote import Order
from daemon import processes_of
from solvisor.suspects import TRIES_MAX
from waiting import wait_until

KEPT = {"servers", "solvisor.db", "solvisor.db-wal", "solvisor.db-shm", "lock", "home-id", "log", "cache"}
"""What may lie in ``run/`` and ``state/`` between two lives."""

END_SECONDS = 20.0
"""How long the end of a life may take."""

PATIENCE_SECONDS = 15.0
"""How long a life may do nothing at all before it comes to rest; on a busy machine a start takes its time."""

MUTANT_PATIENCE_SECONDS = 2.5

READY = "start.ready"
"""The point that tells a whole start, after which SIGTERM is obeyed."""

GATED = ("gated-", "stopped-")
"""The jobs that wait at the gate."""

LOOK_SECONDS = 0.01

LULL_SECONDS = 0.3
"""How long nothing may have happened where the inbox does not tell whether more is to come."""


@dataclass
class Outcome:
    """``passed``: the points each life passed, in order; ``problems``: the promises broken."""

    crashes: tuple[At | InCall, ...]
    passed: list[list[str]] = field(default_factory=list)
    reached: list[bool] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    manifests: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0


class Zygote:
    """The process that forks the lives. One life at a time."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crash.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._said = b""

    def start(self, order: Order) -> Life:
        """Begin a life."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Life(self, int(self._line(60)))

    def ended(self, seconds: float) -> int | None:
        """The status of the life, if it ends within ``seconds``."""
        line = self._line(seconds, must=False)
        return int(line) if line else None

    def _line(self, seconds: float, *, must: bool = True) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        until = time.monotonic() + seconds
        while b"\n" not in self._said:
            ready, _, _ = select.select([fd], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                if must:
                    raise AssertionError(f"the zygote said nothing within {seconds} s")
                return b""
            said = os.read(fd, 4096)
            if not said:
                raise AssertionError(f"the zygote ended with {self._process.wait()}")
            self._said += said
        line, _, self._said = self._said.partition(b"\n")
        return line

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Life:
    """One process of the daemon. ``status`` is set once it ended."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self.pid = pid
        self.status: int | None = None
        self._zygote = zygote

    def lives(self, seconds: float = 0.0) -> bool:
        """Whether it still lives after at most ``seconds``."""
        if self.status is None:
            self.status = self._zygote.ended(seconds)
        return self.status is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Signal it."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended by itself, and the zygote reaped it
                os.kill(self.pid, number)


class Step:
    """A home and its lives. ``kind`` is a kind of disk whose power is cut instead of a SIGKILL.

    ``synced``: whoever dropped the files made them durable. If not, a power cut takes what was not accepted yet, and
    only what was accepted is asked for. ``removes``: folders of the home that somebody removes after each crash.
    """

    def __init__(
        self,
        zygote: Zygote,
        folder: Path,
        *,
        kind: str | None = None,
        mutant: str | None = None,
        synced: bool = True,
        removes: Sequence[str] = (),
        ports: str = "23600-23799",
    ) -> None:
        self._zygote = zygote
        self._folder = folder
        self._kind = kind
        self._mutant = mutant
        self._patience = PATIENCE_SECONDS if mutant is None else MUTANT_PATIENCE_SECONDS
        self._strict = synced or kind is None
        self._removes = removes
        self._ports = ports
        self._identities: set[str] = set()
        self._crashes = 0
        self._announced: set[str] = set()  # accepted, as a life said that was crashed later
        self._resting_since: dict[tuple[str, ...], float] = {}  # by what may be under way all the same

    def run(self, crashes: Sequence[At | InCall]) -> Outcome:
        """Crash one life after the other, let the last one finish, and look at everything."""
        began = time.monotonic()
        outcome = Outcome(tuple(crashes))
        self._folder.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            self._disk = stack.enter_context(power.Disk(self._folder, self._kind)) if self._kind else None
            self._home = (self._disk.root if self._disk else self._folder) / "home"
            self._home.mkdir()
            stack.callback(self._end_all)
            self._work = Workload(self._home, self._folder / "side", self._ports, foreign=self._kind != power.STRICT)
            self._observer = Observer(self._home)
            _make_durable(self._home, but="" if self._strict else "inbox")
            for number, at in enumerate(crashes):
                self._crashed(number, at, outcome)
            self._last(outcome)
        outcome.problems = [*self._observer.problems, *outcome.problems]
        outcome.seconds = time.monotonic() - began
        return outcome

    # --- lives ------------------------------------------------------------------------------------------------------

    def _crashed(self, number: int, at: At | InCall, outcome: Outcome) -> None:
        order = self._order(number, at)
        life = self._zygote.start(order)
        with self._traced(life, at):
            self._live_until_crashed(number, life, order, outcome)
        passed = _lines(order.track)
        outcome.passed.append(passed)
        was_there = isinstance(at, InCall) or passed.count(at.point) >= at.hit
        outcome.reached.append(was_there and life.status == -signal.SIGKILL)
        self._crashes += life.status == -signal.SIGKILL
        told = Path(order.told)
        if told.exists():
            self._observer.remember(*json.loads(told.read_text()))
        self._after_crash(outcome)

    @contextlib.contextmanager
    def _traced(self, life: Life, at: At | InCall) -> Iterator[None]:
        if isinstance(at, At):
            yield
            return
        wait_until(lambda: tracing.is_stopped(life.pid), "the life to wait for its tracer")
        with tracing.killing(life.pid, at):
            life.kill(signal.SIGCONT)
            yield

    def _live_until_crashed(self, number: int, life: Life, order: Order, outcome: Outcome) -> None:
        if number == 0:
            self._work.ask_all(lambda: self._look(life))
        moves = _Moves(order.track, self._patience)
        stopping = False
        while self._look(life):
            if moves.have_stopped():
                outcome.problems.append(f"life {number + 1} did not come to rest: {self._unfinished()}")
                life.kill()
            elif self._at_rest(but=GATED):
                self._work.open_gate()
                if self._at_rest() and not stopping and READY in _lines(order.track):
                    stopping = True  # it was not crashed by work, perhaps it is by its end
                    life.kill(signal.SIGTERM)

    def _after_crash(self, outcome: Outcome) -> None:
        for name in self._removes:
            shutil.rmtree(self._home / name)
        self._announced |= set(self._log_of("job.accepted"))
        if self._disk is None:
            self._observer.look()
            return
        self._end_all()
        self._disk.start_again()
        self._observer.look()
        if not self._strict:  # what is left may be without its bytes, and is no concern of the daemon yet
            shutil.rmtree(self._home / "inbox")

    def _last(self, outcome: Outcome) -> None:
        order = self._order(len(outcome.crashes), None)
        life = self._zygote.start(order)
        if not outcome.crashes:
            self._work.ask_all(lambda: self._look(life))
        moves = _Moves(order.track, self._patience)
        while self._look(life) and not (READY in _lines(order.track) and self._at_rest()):
            if self._at_rest(but=GATED):
                self._work.open_gate()
            if moves.have_stopped():
                outcome.problems.append(f"it did not come to rest: {self._unfinished()}")
                break
        self._work.open_gate()
        life.kill(signal.SIGTERM)
        if life.lives(END_SECONDS):
            outcome.problems.append("it did not end when it was told to")
            life.kill()
            life.lives(END_SECONDS)
        if life.status:
            outcome.problems.append(f"the last life ended with {life.status}: {self._console()}")
        outcome.passed.append(_lines(order.track))
        self._check(outcome)

    def _order(self, number: int, at: At | InCall | None) -> Order:
        track = str(self._folder / f"track-{number}")
        told = str(self._folder / f"told-{number}")
        point, hit = at if isinstance(at, At) else (None, 1)
        mutant = self._mutant if at is not None or (self._mutant and MUTANTS[self._mutant].recovers) else None
        shuts = self._kind is not None and power.shuts(self._kind)
        return Order(str(self._home), track, told, point, hit, shuts, mutant, isinstance(at, InCall))

    def _look(self, life: Life) -> bool:
        """Look around for a moment; whether that life still lives."""
        lives = life.lives(LOOK_SECONDS)
        self._note_identity()
        if self._disk is None:  # of a disk that lost its power nothing is certain before it is back
            self._observer.look()
        return lives

    def _at_rest(self, but: tuple[str, ...] = ()) -> bool:
        """Whether nothing is under way: nothing waits in the inbox, nothing is in ``work/``."""
        try:
            names = os.listdir(self._home / "work")
            if self._strict:
                names += self._waiting()
        except OSError:  # not made yet; or a disk without power
            return False
        if [name for name in names if not name.startswith(but)]:
            self._resting_since.pop(but, None)
            return False
        since = self._resting_since.setdefault(but, time.monotonic())
        return self._strict or time.monotonic() - since > LULL_SECONDS

    def _waiting(self) -> list[str]:
        """What lies in the inbox, but the folders of its routes and what is about to go."""
        found = {path.name for path in (self._home / "inbox").iterdir()} - ROUTES
        for route in ROUTES:
            with contextlib.suppress(FileNotFoundError):
                found |= {f"{route}/{name}" for name in os.listdir(self._home / "inbox" / route)}
        return sorted(found)

    def _unfinished(self) -> str:
        return f"work: {sorted(os.listdir(self._home / 'work'))}, inbox: {self._waiting()}"

    def _console(self) -> str:
        return (self._folder / "console.log").read_text(errors="replace")[-800:]

    def _log_of(self, event: str) -> list[str]:
        """The ids in the lines of the log, as it was written outside the home."""
        found = []
        for line in (self._folder / "console.log").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError):
                entry = json.loads(line)
                if entry["event"] == event:
                    found.append(entry["id"])
        return found

    def _note_identity(self) -> None:
        """Keep in mind what its processes are known by: a disk without power tells it no more."""
        with contextlib.suppress(OSError, ValueError):
            found = tomllib.loads((self._home / "state" / "home-id").read_text())
            self._identities.add(str(found["id"]))

    def _processes(self) -> set[int]:
        """Of this home, all that still live."""
        return {pid for identity in self._identities for pid in processes_of(identity)}

    def _end_all(self) -> None:
        """Kill them, and what they start meanwhile; one that was born just now may carry no mark yet."""

        def all_gone() -> bool:
            left = self._processes()
            if self._disk is not None:
                left |= power.holders(self._disk.root).keys()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        wait_until(all_gone, f"the end of all processes of {self._home}", END_SECONDS)

    # --- what must hold at the end ----------------------------------------------------------------------------------

    def _check(self, outcome: Outcome) -> None:
        tell = outcome.problems.append
        manifests = outcome.manifests = self._observer.look_again()
        for name in os.listdir(self._home / "work"):
            tell(f"work/{name} was left")
        for name in self._waiting() if self._strict else ():
            tell(f"inbox/{name} was left")
        for target in TARGETS:
            for name in os.listdir(self._home / target):
                if name.startswith("."):
                    tell(f"{target}/{name} was left")
        for name in [*os.listdir(self._home / "run"), *os.listdir(self._home / "state")]:
            if name not in KEPT:
                tell(f"{name} was left in run/ or state/")
        for pid in self._processes():
            tell(f"process {pid} was left")
        self._check_drops(manifests, tell)
        self._check_told(manifests, tell)
        self._check_rows(manifests, tell)
        outcome.problems += self._work.solver_problems()
        if self._disk is None:
            tried = {attempt["token"] for manifest in manifests.values() for attempt in manifest["attempts"]}
            for token in self._work.runs():
                if token not in tried:
                    tell(f"a solver ran as {token}, which nobody recorded")

    def _check_drops(self, manifests: dict[str, dict[str, Any]], tell: Callable[[str], None]) -> None:
        left = {job_id: m for job_id, m in manifests.items() if m["source"]["via"] == "inbox"}
        accepted = self._announced
        for job_id in accepted - manifests.keys():
            tell(f"{job_id} was accepted and is lost")
        for name, drop in self._work.drops.items():
            wanted = drop.hashes()
            mine = [job_id for job_id, m in left.items() if wanted & {fact["sha256"] for fact in m["inputs"]}]
            if len(mine) > 1 or (self._strict and not mine):
                tell(f"the drop {name} has {len(mine)} manifests: {mine}")
            for job_id in mine:
                manifest = left.pop(job_id)
                if not self._strict and job_id not in accepted:
                    continue
                if manifest["state"] != drop.state and not self._was_set_aside(manifest):
                    tell(f"{job_id} {manifest['state']}, not {drop.state}: {manifest['message']}")
                if wanted != {fact["sha256"] for fact in manifest["inputs"]}:
                    tell(f"{job_id} has other inputs than were dropped")
        for job_id in left:
            if self._strict or job_id in accepted:
                tell(f"{job_id} is of no drop")

    def _was_set_aside(self, manifest: dict[str, Any]) -> bool:
        """Whether it was taken up so slowly that as many lives as may ended over it, and that is what it says."""
        return self._crashes >= TRIES_MAX and (manifest["cause"], manifest["code"]) == ("lost", "collecting")

    def _check_told(self, manifests: dict[str, dict[str, Any]], tell: Callable[[str], None]) -> None:
        told = self._work.told
        for job_id, state in told.states.items():
            manifest = manifests.get(job_id)
            if manifest is None:
                tell(f"{job_id} was acknowledged and is lost")
            elif state is not None and manifest["state"] != state and not self._was_set_aside(manifest):
                tell(f"{job_id} {manifest['state']}, and {state} was acknowledged")
            elif manifest["batch"] != told.members.get(job_id):
                tell(f"{job_id} is in the batch {manifest['batch']}")
        sent = [job_id for job_id, m in manifests.items() if m["source"]["via"] != "inbox"]
        for stem in {job_id.rpartition("-")[0] for job_id in sent}:
            mine = [job_id for job_id in sent if job_id.rpartition("-")[0] == stem]
            if len(mine) > 1 or stem == "refused":
                tell(f"what was sent as {stem} left {mine}")

    def _check_rows(self, manifests: dict[str, dict[str, Any]], tell: Callable[[str], None]) -> None:
        with contextlib.closing(sqlite3.connect(self._home / "state" / "solvisor.db")) as rows:
            if rows.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                tell("the database is damaged")
            found = {row[0]: row[1:] for row in rows.execute("SELECT id, state, published FROM jobs")}
            batches = {row[0] for row in rows.execute("SELECT id FROM batches")}
        for job_id, (state, published) in found.items():
            if not published:
                tell(f"{job_id} is {state} and not published")
            if job_id not in manifests:
                tell(f"{job_id} is {state} and has no manifest")
            elif manifests[job_id]["state"] != state:
                tell(f"{job_id} is {state} and its manifest says {manifests[job_id]['state']}")
        for job_id in manifests.keys() - found.keys():
            tell(f"{job_id} has no row")
        for batch in set(self._work.told.batches) - batches:
            tell(f"the batch {batch} was acknowledged and is lost")


class _Moves:
    """Whether a life still passes points; ``patience`` is how many seconds it may pass none."""

    def __init__(self, track: str, patience: float) -> None:
        self._track = Path(track)
        self._patience = patience
        self._size = -1
        self._since = time.monotonic()

    def have_stopped(self) -> bool:
        size = self._track.stat().st_size if self._track.exists() else 0
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since > self._patience


def _make_durable(home: Path, but: str) -> None:
    """fsync everything that lies there, except beneath ``but``."""
    for path in (home.parent, home, *home.rglob("*")):
        if not but or not path.is_relative_to(home / but):
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def _lines(path: str) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return Path(path).read_text().splitlines()
    return []
