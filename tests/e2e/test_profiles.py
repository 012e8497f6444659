"""The ready tables: each tested one judges its good and bad inputs rightly, in a real daemon on the real solvers."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from importlib.resources import as_file
from pathlib import Path

import pytest

from daemon import Daemon
from solvisor import config
from solvisor.kinds import PythonSolver
from solvisor.names import escape_name
from solvisor_service.profiles import Profile, compose, profiles, read, search

Make = Callable[..., Daemon]

ROOT = Path(__file__).parents[2]
TRIED = [profile for profile in profiles() if profile.about.examples]


def names(known: list[Profile]) -> list[str]:
    return [profile.name for profile in known]


# --- verdicts ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_tried_table_judges_its_examples_rightly(make_daemon: Make, tmp_path: Path) -> None:
    found = search.search(profiles(), os.environ["PATH"])
    here = [one.profile for one in found if one.profile in TRIED]
    absent = set(names(TRIED)) - set(names(here))
    if not here:
        pytest.skip("none of the solvers is installed")
    daemon = make_daemon("")
    daemon.config.write_text(compose.configuration(found))
    daemon.start()
    settings = config.load(daemon.config)
    expected = {}
    for profile in here:
        for example in profile.about.examples:
            shape = example.file if "." in example.file else f"{example.file}.{profile.accept[0].partition('.')[2]}"
            takers = [
                name
                for name, solver in settings.solver.items()
                if any(fnmatch(shape.lower(), pattern.lower()) for pattern in solver.accept)
            ]
            folder = "" if takers == [profile.name] else profile.name
            drop(daemon, profile, example.file, folder)
            expected[str(Path(folder, example.file))] = (profile, example)
    manifests = daemon.wait_for(len(expected), 120).values()
    ends = {manifest["source"]["path"]: manifest for manifest in manifests}
    wrong = []
    for path, (profile, example) in expected.items():
        manifest = ends[escape_name(path)]
        got = (manifest["solver"]["name"], manifest["state"])
        if got != (profile.name, "succeeded" if example.good else "failed"):
            wrong.append(f"{path}: {got} {manifest['message']!r} {manifest['checks']}")
        elif not example.good and example.says not in manifest["message"]:
            wrong.append(f"{path}: says {manifest['message']!r}, wanted {example.says!r}")
    assert not wrong, "\n".join(wrong)
    assert daemon.stop() == 0
    if absent:
        pytest.skip(f"all others judged rightly; not installed: {', '.join(sorted(absent))}")


def drop(daemon: Daemon, profile: Profile, file: str, folder: str) -> None:
    """By rename, so that the daemon sees it whole."""
    example = next(one for one in profile.about.examples if one.file == file)
    scratch = daemon.home / "scratch" / profile.name / file
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with as_file(profile.example(example)) as source:
        if source.is_dir():
            shutil.copytree(source, scratch)
        else:
            shutil.copyfile(source, scratch)
    target = daemon.home / "inbox" / folder
    target.mkdir(exist_ok=True)
    scratch.rename(target / file)


# --- the data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", profiles(), ids=names(list(profiles())))
def test_every_table_loads_alone_and_init_can_change_its_two_lines(profile: Profile) -> None:
    text = profile.table
    licenses = tomllib.loads(text)["solver"][profile.name].get("licenses", {})
    counts = "".join(f"{name} = {count}\n" for name, count in licenses.items())
    loaded = config.parse(f"[licenses]\n{counts}{text}", Path("table.toml"))
    assert list(loaded.solver) == [profile.name]
    assert text.startswith("# ")
    assert text.endswith("\n")
    assert len(re.findall(r"^accept *= \[.*\]$", text, re.MULTILINE)) == 1
    for pattern in profile.accept:
        assert re.fullmatch(r"\*\.\w+", pattern), "overlap() relies on this form"


@pytest.mark.parametrize("profile", profiles(), ids=names(list(profiles())))
def test_what_is_said_of_a_profile_holds_together(profile: Profile) -> None:
    about = profile.about
    if about.version is not None:
        assert re.compile(about.version.pattern).groups == 1
    assert about.programs or not about.version
    if about.programs and about.tested:
        assert any(example.good for example in about.examples)
        assert any(not example.good for example in about.examples)
    for example in about.examples:
        source = profile.example(example)
        assert source.is_file() or source.is_dir(), f"{source} is missing"


def test_the_commented_function_is_a_table_that_loads() -> None:
    (python,) = [profile for profile in profiles() if profile.name == "python"]
    block = python.table[python.table.index("# [solver.post]") :]
    text = "".join(f"{line.removeprefix('# ')}\n" for line in block.splitlines())
    (post,) = config.parse(text, Path("table.toml")).solver.values()
    assert isinstance(post, PythonSolver)
    assert post.call == "post.py:process"


def test_every_example_file_belongs_to_a_profile() -> None:
    folder = ROOT / "service" / "solvisor_service" / "profiles" / "examples"
    named = {f"{one.name}/{example.file}" for one in profiles() for example in one.about.examples}
    there = {f"{path.parent.name}/{path.name}" for path in folder.glob("*/*") if path.name != "__pycache__"}
    assert there == named


def test_the_head_explains_every_key_with_its_default() -> None:
    """Each commented key, taken alone, is one the format has; the uncommented whole is what holds without it."""
    head = read("head.toml")
    bare = re.sub(r"^# (\[\w+\]|\w+ = .*)$", r"\1", head, flags=re.MULTILINE)
    table = tomllib.loads(bare)
    shown = config.parse(bare, Path("/etc/head.toml"))
    plain = config.parse(head, Path("/etc/head.toml"))
    assert shown.daemon == plain.daemon == config.Daemon()
    assert set(table["daemon"]) == set(config.Daemon.__struct_fields__)
    assert set(table["inbox"]) == set(config.Inbox.__struct_fields__)
    assert table["inbox"].pop("path") == "inbox"
    assert all(getattr(shown.inbox, key) == getattr(config.Inbox(), key) for key in table["inbox"])
    assert plain.notify is None
    assert shown.notify is not None
    assert set(table["notify"]) == set(config.Notify.__struct_fields__)
    assert set(table["retention"]) == set(config.Retention.__struct_fields__)
    assert plain.retention == config.Retention()
    assert set(table["api"]) == set(config.Api.__struct_fields__)
    assert plain.api == config.Api()
    assert (shown.notify.on, shown.notify.timeout) == (("failed", "batch"), 30.0)


def test_the_pages_and_the_examples_file_are_those_of_the_profiles() -> None:
    pages: dict[Path, str] = runpy.run_path(str(ROOT / "docs" / "make_solvers.py"))["pages"]()
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/make_solvers.py"
    folder = ROOT / "docs" / "solvers"
    assert set(folder.iterdir()) == {path for path in pages if path.parent == folder}
