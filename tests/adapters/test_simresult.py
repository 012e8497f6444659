"""Judging result files: whole, with rows, finite, up to the stop time."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from solvisor.solvers import simresult
from solvisor.solvers.simresult import Findings, examine

HEAD = '"time","x","der(x)","a[1,2]"\n'
GOOD = HEAD + "0,1,2,3\n0.5,1.5,2,3\n1,2,-2e-3,3\n"


def bad(found: Findings) -> list[tuple[str, str]]:
    return [(check.want, check.got) for check in found.checks if not check.ok]


def csv(folder: Path, text: str) -> Path:
    path = folder / "M_res.csv"
    path.write_text(text)
    return path


def test_a_good_csv(tmp_path: Path) -> None:
    found = examine(csv(tmp_path, GOOD), "csv", 0.0, 1.0)
    assert bad(found) == []
    assert [check.got for check in found.checks] == ["3 rows", "all finite", "ends at time 1"]
    assert (found.rows, found.columns) == (3, 4)
    assert found.final == {"x": 2.0, "der(x)": -0.002, "a[1,2]": 3.0}


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_pieces_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(simresult, "_PIECE", piece)
    assert examine(csv(tmp_path, GOOD), "csv", 0.0, 1.0).rows == 3
    odd = GOOD.replace("1.5", "-nan")
    assert bad(examine(csv(tmp_path, odd), "csv", 0.0, 1.0)) == [("only finite numbers", "x is nan at time 0.5")]


@pytest.mark.parametrize(
    ("text", "want", "got"),
    [
        ("", "not empty", "empty"),
        (HEAD, "rows", "0 rows"),
        (HEAD[:-1], "rows", "0 rows"),
        (GOOD[:-1], "whole", "its last line is cut off"),
        (GOOD + "2,1\n", "whole", "its last line is cut off"),
        ("x,y\n1,2\n", "whole", "its first line does not begin with the name time"),
        (HEAD + "0,nan,x,3\n1,2,3,4\n", "whole", "could not convert string to float: 'x'"),
        (HEAD + "0,1,2,3\n1,2,x,4\n", "whole", "its last line is cut off"),
        (HEAD + "0,1,2,3\n0.9,1,2,3\n", "reaches time 1", "ends at time 0.9"),
        (GOOD + "1,inf,2,3\n", "only finite numbers", "x is inf at time 1.0"),
        (GOOD + "nan,1,2,3\n", "only finite numbers", "time is nan at time nan"),
        (GOOD + "1,2,3,-INF\n", "only finite numbers", "a[1,2] is -inf at time 1.0"),
    ],
)
def test_bad_csv(tmp_path: Path, text: str, want: str, got: str) -> None:
    assert (want, got) in bad(examine(csv(tmp_path, text), "csv", 0.0, 1.0))


def test_texts_may_look_like_numbers_that_are_none(tmp_path: Path) -> None:
    text = '"time","inf","s"\n0,1,"nan,nan"\n1,2,"inf"\n'
    found = examine(csv(tmp_path, text), "csv", 0.0, 1.0)
    assert bad(found) == []
    assert found.final == {"inf": 2.0}


def test_nearly_the_stop_time_is_good(tmp_path: Path) -> None:
    path = csv(tmp_path, HEAD + "0,1,2,3\n0.9999999999,1,2,3\n")
    assert bad(examine(path, "csv", 0.0, 1.0)) == []
    assert bad(examine(path, "csv", 0.0, 1.01)) == [("reaches time 1.01", "ends at time 1")]


def test_what_is_not_there(tmp_path: Path) -> None:
    assert bad(examine(tmp_path / "none.csv", "csv", 0.0, 1.0)) == [("exists", "missing")]
    (tmp_path / "link.csv").symlink_to(csv(tmp_path, GOOD))
    assert [want for want, _ in bad(examine(tmp_path / "link.csv", "csv", 0.0, 1.0))] == ["can be read"]


def test_of_a_plot_file_only_the_size_is_looked_at(tmp_path: Path) -> None:
    found = examine(csv(tmp_path, "DataSet: time\n"), "plt", 0.0, 1.0)
    assert bad(found) == []
    assert "nothing else is looked at" in found.checks[0].got


def matrix(name: bytes, kind: int, rows: int, columns: int, data: bytes) -> bytes:
    return struct.pack("<5I", kind, rows, columns, 0, len(name) + 1) + name + b"\0" + data


def mat(folder: Path, *points: tuple[float, ...], single: bool = False, columns: int | None = None) -> Path:
    path = folder / "M_res.mat"
    numbers = [number for point in points for number in point]
    data = struct.pack(f"<{len(numbers)}{'f' if single else 'd'}", *numbers)
    count = len(points) if columns is None else columns
    path.write_bytes(
        matrix(b"Aclass", 51, 4, 11, b"A" * 44)
        + matrix(b"dataInfo", 20, 4, 2, b"\0" * 32)
        + matrix(b"data_1", 0, 1, 2, b"\0" * 16)
        + matrix(b"data_2", 10 if single else 0, 2, count, data)
    )
    return path


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("piece", [8, 40, 1 << 20])
def test_mat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, single: bool, piece: int) -> None:
    monkeypatch.setattr(simresult, "_PIECE", piece)
    nan, inf = float("nan"), float("inf")
    found = examine(mat(tmp_path, (0, 5), (0.5, 6), (1, 7), single=single), "mat", 0.0, 1.0)
    assert bad(found) == []
    assert (found.rows, found.columns) == (3, 2)
    assert bad(examine(mat(tmp_path, single=single), "mat", 0.0, 1.0)) == [("rows", "0 rows")]
    short = examine(mat(tmp_path, (0, 5), (0.5, 6), single=single), "mat", 0.0, 1.0)
    assert bad(short) == [("reaches time 1", "ends at time 0.5")]
    odd = examine(mat(tmp_path, (0, 5), (0.5, inf), (1, nan), single=single), "mat", 0.0, 1.0)
    assert bad(odd) == [("only finite numbers", "inf at time 0.5")]


def test_large_numbers_are_numbers(tmp_path: Path) -> None:
    assert bad(examine(mat(tmp_path, (0, 1.7e308), (1, 1.7e308)), "mat", 0.0, 1.0)) == []


def test_torn_mat(tmp_path: Path) -> None:
    assert bad(examine(mat(tmp_path, (0, 5), columns=3), "mat", 0.0, 1.0)) == [
        ("whole", "it ends in the middle of data_2")
    ]
    path = tmp_path / "M_res.mat"
    path.write_bytes(matrix(b"Aclass", 51, 4, 11, b"A" * 44))
    assert bad(examine(path, "mat", 0.0, 1.0)) == [("whole", "it has no data_2")]
    path.write_bytes(b"MATLAB 5.0 MAT-file, and so on, for more than twenty bytes")
    assert "version 4" in bad(examine(path, "mat", 0.0, 1.0))[0][1]
    path.write_bytes(matrix(b"data_2", 0, 0, 5, b""))
    assert bad(examine(path, "mat", 0.0, 1.0)) == [("whole", "it has no data_2")]
    path.write_bytes(b"short")
    assert bad(examine(path, "mat", 0.0, 1.0)) == [("whole", "it has no data_2")]
