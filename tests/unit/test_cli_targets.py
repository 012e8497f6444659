"""What is sent for a file, a job file and a folder."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from solvisor.errors import Refused
from solvisor_service.targets import Prepared, UsageError, param, prepare

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A file with its folders."""

    def write(name: str, content: str = "x") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    return write


def names(prepared: Prepared) -> list[str]:
    return [upload.name for upload in prepared.uploads]


def keys(prepared: Prepared) -> dict[str, Any]:
    """What is asked for, whichever way it is sent."""
    return tomllib.loads(prepared.job.decode()) if isinstance(prepared.job, bytes) else prepared.job or {}


def test_a_file_goes_with_its_companions_and_speaks_for_itself(make: Make) -> None:
    beam, mesh = make("beam.inp"), make("lib/mesh.inc")
    prepared = prepare(beam, [mesh], {})
    assert [(upload.name, upload.path) for upload in prepared.uploads] == [("beam.inp", beam), ("mesh.inc", mesh)]
    assert prepared.job is None
    assert prepare(beam, [], {"cpus": 2}).job == {"cpus": 2}


def test_a_file_is_called_by_its_own_name_wherever_one_stands(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make("sub/beam.inp").parent)
    assert names(prepare(Path("../sub/./beam.inp"), [], {})) == ["beam.inp"]


def test_a_job_file_brings_what_it_names_and_is_sent_as_it_stands(make: Make) -> None:
    text = 'inputs = ["beam.inp", "mesh.inc"]  # a comment\n'
    job = make("beam.job.toml", text)
    make("beam.inp"), make("mesh.inc"), make("other.inp")
    prepared = prepare(job, [], {})
    assert names(prepared) == ["beam.inp", "mesh.inc"]
    assert prepared.job == text.encode()


def test_options_are_laid_over_the_job_file_table_by_table(make: Make) -> None:
    job = make(
        "beam.job.toml",
        'inputs = ["beam.inp"]\nname = "fine"\ntimeout = "1h"\nparams = { load = 1.0, n = 3 }\n'
        'retry = { max = 1, on = ["signal"] }\n',
    )
    make("beam.inp")
    wishes = {"timeout": "30m", "params": {"load": 3.5}, "retry": {"max": 4}}
    assert keys(prepare(job, [], wishes)) == {
        "inputs": ["beam.inp"],
        "name": "fine",
        "timeout": "30m",
        "params": {"load": 3.5, "n": 3},
        "retry": {"max": 4, "on": ["signal"]},
    }


def test_a_job_file_without_inputs_takes_its_companions(make: Make) -> None:
    prepared = prepare(make("beam.job.toml", "cpus = 2\n"), [make("beam.inp")], {})
    assert names(prepared) == ["beam.inp"]
    assert prepared.job == {"cpus": 2}, "as keys, for then all files sent are inputs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cpus = 2\n", "names no inputs"),
        ('inputs = ["gone.inp"]\n', "not beside it: gone.inp"),
    ],
)
def test_a_job_file_must_bring_its_inputs(make: Make, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(make("beam.job.toml", text), [], {})


def test_a_faulty_job_file_is_refused_in_its_own_words(make: Make) -> None:
    with pytest.raises(Refused, match=r'beam.job.toml: line 1: prioritiy: .*did you mean "priority"'):
        prepare(make("beam.job.toml", "prioritiy = 2\n"), [], {})


def test_a_folder_is_sent_whole_the_top_first(make: Make, tmp_path: Path) -> None:
    below = [f"{folder}/{name}" for folder in ("a", "b", "mesh", "y", "z") for name in ("p.inc", "q.inc")]
    for name in (*reversed(below), "beam.inp", ".spiceinit"):
        make(f"case/{name}")
    prepared = prepare(tmp_path / "case", [], {})
    assert names(prepared) == [".spiceinit", "beam.inp", *below]
    assert prepared.job == b"", "an empty job file: the daemon finds the input that a solver accepts"
    assert keys(prepare(tmp_path / "case", [], {"cpus": 2})) == {"cpus": 2}


def test_the_job_file_of_a_folder_is_not_one_of_its_inputs(make: Make, tmp_path: Path) -> None:
    make("case/beam.inp")
    make("case/job.toml", 'inputs = ["beam.inp"]\n')
    prepared = prepare(tmp_path / "case", [], {})
    assert names(prepared) == ["beam.inp"]
    assert prepared.job == b'inputs = ["beam.inp"]\n'
    assert keys(prepare(tmp_path / "case", [], {"priority": 5})) == {"inputs": ["beam.inp"], "priority": 5}
    make("case/job.toml", 'inputs = ["gone.inp"]\n')
    with pytest.raises(UsageError, match=r"gone\.inp"):
        prepare(tmp_path / "case", [], {})


def test_what_cannot_be_sent_is_named(make: Make, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.inp")
    os.mkfifo(tmp_path / "pipe.job.toml")
    make("linked/beam.inp")
    (tmp_path / "linked" / "below").symlink_to(tmp_path / "empty")
    for name, message in [
        ("gone.inp", "does not exist"),
        ("empty", "holds no file"),
        ("pipe.inp", "not a regular file"),
        ("pipe.job.toml", "not a regular file"),
        ("linked", "below is a link to a folder"),
    ]:
        with pytest.raises(UsageError, match=message):
            prepare(tmp_path / name, [], {})
    with pytest.raises(UsageError, match="not a regular file"):
        prepare(make("beam.inp"), [tmp_path / "empty"], {})


@pytest.mark.parametrize("odd", [b"caf\xe9.inp", b"caf\xe9/beam.inp"])
def test_a_name_below_a_folder_that_cannot_be_sent_is_named(make: Make, tmp_path: Path, odd: bytes) -> None:
    make("case/beam.inp")
    path = tmp_path / "case" / os.fsdecode(odd)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(UsageError, match=r"caf\\xe9.*not UTF-8") as caught:
        prepare(tmp_path / "case", [], {})
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("odd", "shown"), [(b"new\nline.inp", r"new\x0aline.inp"), (b"a\\b.inp", r"a\x5cb.inp"), (b"\xe9.inp", r"\xe9.inp")]
)
def test_a_name_that_rows_cannot_hold_is_refused_whichever_way_it_comes(
    make: Make, tmp_path: Path, odd: bytes, shown: str
) -> None:
    path = tmp_path / os.fsdecode(odd)
    path.touch()
    for target, companions in ((path, []), (make("beam.inp"), [path])):
        with pytest.raises(UsageError, match=re.escape(f"{shown}: this file name")) as caught:
            prepare(target, companions, {})
        assert "inbox" not in str(caught.value), "it would be rejected there as well"


@pytest.mark.parametrize("other", ["job.toml", "beam.inp"])
def test_in_a_folder_a_job_file_has_one_name(make: Make, tmp_path: Path, other: str) -> None:
    make(f"case/{other}", "")
    make("case/x.job.toml", "")
    with pytest.raises(UsageError, match=r"holds x\.job\.toml: in a folder the job file is called job\.toml; "):
        prepare(tmp_path / "case", [], {})
    (tmp_path / "case" / "x.job.toml").rename(tmp_path / "case" / ".x.job.toml")
    make("case/below/x.job.toml", "")
    make("case/a.inp", "")
    assert "below/x.job.toml" in names(prepare(tmp_path / "case", [], {})), "there it is a file like any other"


def test_a_job_file_is_no_companion_and_that_of_a_folder_no_target(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"x\.job\.toml is a job file, which cannot go along"):
        prepare(make("beam.inp"), [make("x.job.toml")], {})
    with pytest.raises(UsageError, match=re.escape(f"name the folder: {tmp_path}/case")):
        prepare(make("case/job.toml"), [], {})


def test_the_key_of_a_job_file_is_known(make: Make, tmp_path: Path) -> None:
    job = make("case/job.toml", 'inputs = ["beam.inp"]\nkey = "k1"\n')
    make("case/beam.inp")
    assert prepare(tmp_path / "case", [], {}).key == "k1"
    job = job.rename(job.with_name("beam.job.toml"))
    assert prepare(job, [], {"solver": "ccx"}).key == "k1"
    assert prepare(job, [], {"key": "k2"}).key == "k2"
    assert keys(prepare(job, [], {"key": "k2"}))["key"] == "k2", "options are laid over the job file"
    assert prepare(job.with_name("beam.inp"), [], {"cpus": 1}).key is None


def test_a_link_to_a_file_is_the_users_own_way_to_name_it(make: Make, tmp_path: Path) -> None:
    link = tmp_path / "case.inp"
    link.symlink_to(make("store/beam.inp"))
    assert names(prepare(link, [], {})) == ["case.inp"]


def test_two_files_of_one_name_are_a_mistake_and_one_named_twice_is_not(make: Make) -> None:
    beam = make("beam.inp")
    with pytest.raises(UsageError, match="have one name"):
        prepare(beam, [make("other/beam.inp")], {})
    assert names(prepare(beam, [beam], {})) == ["beam.inp"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(make: Make) -> None:
    beam = make("beam.inp")
    beam.chmod(0)
    with pytest.raises(UsageError, match=r"beam\.inp cannot be read"):
        prepare(beam, [], {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("load=3.5", 3.5),
        ("load=2", 2),
        ("load=-2", -2),
        ("load=1e3", 1000.0),
        ("load=true", True),
        ("load=True", "True"),
        ("load=1_000", "1_000"),
        ("load=nan", "nan"),
        ("load=1e999", "1e999"),
        ("load= 5", " 5"),
        ("load=a=b", "a=b"),
        ("load=", ""),
        ('load="42"', "42"),
        ('load="', '"'),
    ],
)
def test_values_of_parameters_are_typed_as_they_are_written(text: str, value: object) -> None:
    name, read = param(text)
    assert (name, read, type(read)) == ("load", value, type(value))


@pytest.mark.parametrize("text", ["load", "=3", " =3"])
def test_a_parameter_without_a_name_is_a_mistake(text: str) -> None:
    with pytest.raises(UsageError, match="NAME=VALUE"):
        param(text)
