"""Who is suspected of having ended earlier starts, and what is done with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from disk_kit import tmpfs
from solvisor.suspects import TOGETHER, Suspects
from spool_kit import needs_root


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "suspects-x.json"


def killer(path: Path, names: list[str], killer: str) -> tuple[list[str], bool]:
    """One start that ends when it comes to ``killer``: who was taken up before, and whether it is left aside."""
    suspects = Suspects(path)
    portions, out = suspects.sorted_out(names)
    done: list[str] = []
    for portion in portions:
        suspects.begin(portion)
        if killer in portion:
            return done, False
        done += portion
        suspects.clear(portion)
    return done, out == [killer]


@pytest.mark.parametrize("at", [0, 5, 99, 199])
def test_fault_68_the_killer_alone_is_left_aside_after_three_tries(path: Path, at: int) -> None:
    names = [f"{n:03}" for n in range(200)]
    starts = [killer(path, names, names[at]) for _ in range(4)]
    assert [out for _, out in starts] == [False, False, False, True]
    for done, _ in starts[2:]:
        assert sorted(done) == [name for name in names if name != names[at]], "an innocent waits behind the killer"


def test_those_that_nobody_suspects_come_many_at_a_time(path: Path) -> None:
    portions, out = Suspects(path).sorted_out([f"{n:03}" for n in range(TOGETHER + 1)])
    assert (list(map(len, portions)), out) == ([TOGETHER, 1], [])
    assert not path.exists()


def test_what_is_gone_or_went_well_is_suspected_no_more(path: Path) -> None:
    first = Suspects(path)
    first.begin(["a", "b"])
    first.clear(["a"])
    second = Suspects(path)
    assert (second.suspects(["a"]), second.suspects(["b"])) == (False, True)
    assert second.sorted_out(["a"]) == ([["a"]], [])
    assert not path.exists()


def test_fault_26_who_is_forgiven_has_no_more_tries_than_before(path: Path) -> None:
    first = Suspects(path)
    first.begin(["a"])
    first.begin(["a", "b"])
    first.forgive(["a", "b"])
    second = Suspects(path)
    assert (second.suspects(["a"]), second.suspects(["b"])) == (True, False)
    second.forgive(["a"])
    assert not path.exists()


@needs_root
def test_fault_26_what_cannot_be_taken_back_on_a_full_disk_suspects_nobody(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m") as disk:
        path = disk.path / "suspects-x.json"
        first = Suspects(path)
        first.begin(["a"])
        first.begin(["b"])
        disk.fill()
        first.forgive(["b"])
        assert not Suspects(path).suspects(["b"])
        assert list(disk.path.iterdir()) == [disk.path / "filler"], "half a note takes room"


@pytest.mark.parametrize("left", [b"", b'{"a": '])
def test_a_note_that_cannot_be_read_suspects_nobody_and_goes(path: Path, left: bytes) -> None:
    path.write_bytes(left)
    assert Suspects(path).sorted_out(["a"]) == ([["a"]], [])
    assert not path.exists()
