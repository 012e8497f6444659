"""Power cuts: whatever a user was told stays true, and every file that a manifest names has the bytes it names.

A life (``crash.life``) runs on a disk whose power is cut at one moment; a second life then finishes what is left. The
same cuts must notice each step of the disk order that is left out: otherwise they would prove nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from crash.life import MUTANTS, ROUTE, STEPS, Life, Manifest
from crash.power import Disk, why_not
from solvisor.model import FileFact, State
from solvisor.store import Store

TARGETS = ("done", "failed", "rejected")


@pytest.fixture(scope="module", autouse=True)
def _power() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


class Seen(NamedTuple):
    """What a user saw of a life before its power was cut. ``held`` is empty if it ended by itself."""

    held: str
    accepted: dict[str, str]
    manifests: dict[str, str]


def drop_all(inbox: Path) -> dict[str, dict[str, bytes]]:
    """Drop files, a folder, and a group with a route, as users do: without fsync.

    Returns for each source what its ``input/`` must hold: path and bytes.
    """
    dropped = {f"beam{i}.inp": {f"beam{i}.inp": b"*NODE %d\n" % i * (10 + 3000 * i)} for i in range(5)}
    dropped["case"] = {"a.inp": b"main\n" * 700, "mesh/b.inc": b"mesh\n" * 9000}
    group = {"plate.inp": b"plate\n" * 800, "plate.job.toml": b'inputs = ["plate.inp"]\n'}
    for source, files in dropped.items():
        for name, data in files.items():
            path = inbox / source / name if source == "case" else inbox / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    for name, data in group.items():
        (inbox / ROUTE).mkdir(exist_ok=True)
        (inbox / ROUTE / name).write_bytes(data)
    return dropped | {f"{ROUTE}/plate.inp": group}


def live_until(disk: Disk, *options: str) -> Seen:
    """A life on ``disk`` that is held where ``options`` say, then loses its power."""
    path = os.pathsep.join(sys.path)
    life = subprocess.Popen(
        [sys.executable, "-m", "crash.life", str(disk.root / "home"), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    held = ""
    accepted: dict[str, str] = {}
    manifests: dict[str, str] = {}
    assert life.stdin is not None
    assert life.stdout is not None
    for line in life.stdout:
        told = json.loads(line)
        accepted |= told.get("accepted", {})
        manifests |= told.get("ended", {}) | told.get("published", {})
        if "held" in told:
            held = told["held"]["at"]
            break
    if held:
        disk.cut_power()
    life.kill()
    life.communicate()
    return Seen(held, accepted, manifests)


# --- what must hold ------------------------------------------------------------------------------------------------


def broken_promises(root: Path, dropped: dict[str, dict[str, bytes]], seen: Seen) -> list[str]:
    """Every promise broken on the disk after the cut, and after a second life has finished what was left."""
    home = root / "home"
    at_once = dict(visible_manifests(home))
    problems = list(torn(home))
    Life(home).live()
    problems += torn(home)
    at_last = dict(visible_manifests(home))
    problems += [f"{name} changed or went" for name, data in at_once.items() if at_last.get(name) != data]
    problems += jobs_broken(home, dropped, seen)
    problems += [f"work/{name} was left" for name in os.listdir(home / "work")]
    return problems


def visible_manifests(home: Path) -> Iterator[tuple[str, bytes]]:
    for target in TARGETS:
        for path in (home / target).glob("*/manifest.json"):
            yield str(path.relative_to(home)), path.read_bytes()


def torn(home: Path) -> Iterator[str]:
    """Manifests that cannot be read, and files that are not as their manifest says."""
    for name, data in visible_manifests(home):
        try:
            manifest = msgspec.json.decode(data, type=Manifest)
        except msgspec.DecodeError as error:
            yield f"{name} is torn: {error}"
            continue
        for fact in (*manifest.inputs, *manifest.outputs):
            if not holds((home / name).parent, fact):
                yield f"{name}: {fact.path} has not the bytes it names"


def holds(folder: Path, fact: FileFact) -> bool:
    try:
        data = (folder / fact.path).read_bytes()
    except OSError:
        return False
    return (len(data), hashlib.sha256(data).hexdigest()) == (fact.size, fact.sha256)


def jobs_broken(home: Path, dropped: dict[str, dict[str, bytes]], seen: Seen) -> Iterator[str]:
    folders: dict[str, list[Path]] = {}
    sources: list[str] = []
    for name, data in visible_manifests(home):
        folders.setdefault(Path(name).parent.name, []).append((home / name).parent)
        try:
            sources.append(msgspec.json.decode(data, type=Manifest).source)
        except msgspec.DecodeError:
            continue  # told by torn()
    yield from (f"{source} became two jobs" for source in set(sources) if sources.count(source) > 1)
    store = Store.open(home / "state" / "solvisor.db")
    states = store.states(seen.accepted)
    store.close()
    for job_id, source in seen.accepted.items():
        if len(folders.get(job_id, ())) != 1:
            yield f"{job_id} was accepted and has {len(folders.get(job_id, ()))} manifests"
        elif states.get(job_id) is not State.SUCCEEDED:
            yield f"{job_id} was accepted and its row says {states.get(job_id)}"
        else:
            (folder,) = folders[job_id]
            found = {name: FileFact(name, len(d), hashlib.sha256(d).hexdigest()) for name, d in dropped[source].items()}
            yield from (f"{job_id} lost input {name}" for name, f in found.items() if not holds(folder / "input", f))
    for job_id, digest in seen.manifests.items():
        for folder in folders.get(job_id, ()):
            if hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest() != digest:
                yield f"{job_id} has another manifest than was told"


# --- the cuts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cut(tmp_path: Path) -> Callable[..., tuple[Seen, list[str]]]:
    """Drop, live until the cut that the options say, and look at what a second life makes of it."""

    def cut(*options: str) -> tuple[Seen, list[str]]:
        folder = tmp_path / "-".join(options).replace(" ", "_")
        folder.mkdir()
        with Disk(folder) as disk:
            dropped = drop_all(disk.root / "home" / "inbox")
            seen = live_until(disk, *options)
            disk.start_again()
            return seen, broken_promises(disk.root, dropped, seen)

    return cut


@pytest.mark.parametrize("step", STEPS)
def test_what_was_told_survives_a_cut_after_each_step(cut: Callable[..., tuple[Seen, list[str]]], step: str) -> None:
    seen, problems = cut("--step", step)
    assert seen.held == step
    assert problems == []
    assert len(seen.accepted) == (7 if STEPS.index(step) >= STEPS.index("accepted") else 0)
    assert len(seen.manifests) == (7 if STEPS.index(step) >= STEPS.index("ended") else 0)


@pytest.mark.slow
def test_what_was_told_survives_a_cut_between_any_two_changes_of_the_disk(
    cut: Callable[..., tuple[Seen, list[str]]],
) -> None:
    for call in range(2, 1000, 11):
        seen, problems = cut("--call", str(call))
        assert problems == [], f"before change {call} of the disk ({seen.held})"
        if not seen.held:
            break
    assert call > 200


CAUGHT_AT = {
    "claimed files not synced": "accepted",
    "outputs not synced": "ended",
    "manifest not synced": "published",
    "rows not hardened": "ended",
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_cuts_notice_every_step_that_is_left_out(cut: Callable[..., tuple[Seen, list[str]]], mutant: str) -> None:
    step = CAUGHT_AT[mutant]
    seen, problems = cut("--step", step, "--mutant", mutant)
    assert seen.held == step
    assert problems, f"{mutant}: a cut at {step} broke nothing"
