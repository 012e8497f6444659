"""Results brought from a daemon: whole, proven by their hashes, inside the folder, the manifest last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fake_daemon import FakeDaemon, Raw, fake_daemon
from solvisor.manifest import Manifest, SolverFacts
from solvisor.model import FileFact, Source
from solvisor_service.client import Client, NotRunning
from solvisor_service.download import DownloadFailed, fetch

JOB = "beam-1jl9v2k4a0b1c2d"


class Store:
    """One finished job on a daemon that plays. ``files`` are its contents by path."""

    def __init__(self, fake: FakeDaemon) -> None:
        self.fake = fake
        self.client = Client(fake.home)

    def hold(self, files: dict[str, bytes], **changes: Any) -> None:
        facts = tuple(fact(path, data) for path, data in files.items())
        whole: dict[str, Any] = {
            "inputs": tuple(f for f in facts if f.path.startswith("input/")),
            "outputs": tuple(f for f in facts if not f.path.startswith("input/")),
            **changes,
        }
        self.manifest = msgspec.json.encode(manifest(**whole))
        self.fake.answers["GET", f"/v1/jobs/{JOB}/manifest"] = Raw(self.manifest, {})
        for path, data in files.items():
            self.serve(path, data)

    def serve(self, path: str, data: bytes) -> None:
        self.fake.answers["GET", f"/v1/jobs/{JOB}/files/{path}"] = Raw(data, {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with fake_daemon(tmp_path / "home") as fake:
        yield Store(fake)


@pytest.fixture
def into(tmp_path: Path) -> Path:
    return tmp_path / "results"


def fact(path: str, data: bytes) -> FileFact:
    return FileFact(path, len(data), hashlib.sha256(data).hexdigest())


def manifest(**changes: Any) -> Manifest:
    known: dict[str, Any] = dict.fromkeys(Manifest.__struct_fields__)
    known |= {
        "schema": 1,
        "id": JOB,
        "name": "beam.inp",
        "source": Source("socket", "beam.inp"),
        "solver": SolverFacts("ccx"),
        "state": "succeeded",
        "checks": (),
        "submitted": "2026-11-02T10:00:00Z",
        "finished": "2026-11-02T10:00:09Z",
        "attempts": (),
        "params": {},
        "options": {},
        "inputs": (),
        "outputs": (),
        "log_tail": "",
        "log_truncated": False,
        "solvisor_version": "0.1.0",
    }
    return Manifest(**known | changes)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_outputs_and_logs_come_with_the_manifest_and_inputs_stay(store: Store, into: Path) -> None:
    files = {"output/beam.frd": b"x" * 3_000_000, "output/sub dir/ü.txt": b"", "stdout.log": b"hi\n"}
    store.hold({"input/beam.inp": b"deck", **files})
    assert fetch(store.client, JOB, into).id == JOB
    assert tree(into) == {**files, "manifest.json": store.manifest}


def test_what_is_wanted_is_for_the_caller_to_say(store: Store, into: Path) -> None:
    store.hold({"input/beam.inp": b"deck", "output/a": b"a", "output/b": b"b"})
    fetch(store.client, JOB, into, lambda path: path in ("input/beam.inp", "output/b"))
    assert set(tree(into)) == {"input/beam.inp", "output/b", "manifest.json"}


@pytest.mark.parametrize("came", [b"", b"oth", b"other", b"right and more"])
def test_other_bytes_than_the_manifest_names_are_not_kept(store: Store, into: Path, came: bytes) -> None:
    store.hold({"output/a": b"good", "output/b": b"right"})
    store.serve("output/b", came)
    with pytest.raises(DownloadFailed, match="output/b of beam"):
        fetch(store.client, JOB, into)
    assert tree(into) == {"output/a": b"good"}, "no manifest: it is not complete"


def test_a_file_brought_again_replaces_the_old_one_and_a_failure_takes_the_mark_away(store: Store, into: Path) -> None:
    store.hold({"output/a": b"one"})
    fetch(store.client, JOB, into)
    store.hold({"output/a": b"two"})
    fetch(store.client, JOB, into)
    assert tree(into)["output/a"] == b"two"
    store.serve("output/a", b"???")
    with pytest.raises(DownloadFailed):
        fetch(store.client, JOB, into)
    assert tree(into) == {"output/a": b"two"}


@pytest.mark.parametrize(
    "path",
    [
        "../evil",
        "/etc/evil",
        "output/../../evil",
        "output//evil",
        ".",
        "",
        "output/\\x2e\\x2e/evil",
        "\\x2fevil",
        "a\\x00b",
    ],
)
def test_no_name_leaves_the_folder(store: Store, into: Path, path: str) -> None:
    store.hold({path: b"evil"})
    with pytest.raises(DownloadFailed, match="cannot be written inside"):
        fetch(store.client, JOB, into)
    assert tree(into.parent / "results") == {}
    assert not list(into.parent.rglob("*evil*"))


def test_links_are_listed_and_never_made(store: Store, into: Path) -> None:
    link = FileFact("output/link", 0, "", link="/etc/passwd")
    store.hold({"output/a": b"a"}, outputs=(link, fact("output/a", b"a")))
    fetch(store.client, JOB, into)
    assert set(tree(into)) == {"output/a", "manifest.json"}
    assert not (into / "output" / "link").is_symlink()


def test_of_very_many_outputs_the_list_comes_first_and_then_all_of_them(store: Store, into: Path) -> None:
    files = {f"output/{n}": str(n).encode() for n in range(30)}
    listed = b"".join(msgspec.json.encode(fact(path, data)) + b"\n" for path, data in files.items())
    some = tuple(fact(path, data) for path, data in list(files.items())[:3])
    store.hold(files, outputs=some, more_outputs=fact("outputs.jsonl", listed))
    store.serve("outputs.jsonl", listed)
    fetch(store.client, JOB, into)
    assert tree(into) == {**files, "outputs.jsonl": listed, "manifest.json": store.manifest}


def test_a_name_with_odd_bytes_comes_as_it_was(store: Store, into: Path) -> None:
    store.hold({"output/caf\\xe9": b"au lait"})
    fetch(store.client, JOB, into)
    assert (into / "output" / "caf\udce9").read_bytes() == b"au lait"


def test_a_daemon_that_breaks_off_leaves_no_half_file(store: Store, into: Path) -> None:
    store.hold({"output/a": b"abcdef"})
    store.fake.answers["GET", f"/v1/jobs/{JOB}/files/output/a"] = Raw(b"abc", {"Content-Length": "6"})
    with pytest.raises(NotRunning):
        fetch(store.client, JOB, into)
    assert tree(into) == {}


def test_a_folder_that_cannot_be_made_is_no_daemon_that_is_away(store: Store, into: Path) -> None:
    store.hold({"output/a": b"a"})
    into.mkdir()
    (into / "output").write_text("a file where a folder should be")
    with pytest.raises(FileExistsError):
        fetch(store.client, JOB, into)
