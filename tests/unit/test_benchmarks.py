"""The benchmarks' own arithmetic, their rounds and their picture. That they run at all is seen in tests/e2e."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SVG = "{http://www.w3.org/2000/svg}"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the benchmarks measure on Linux")


class Benchmarks:
    """They are scripts in a folder, not a package; a module of theirs is known only while a test uses it."""

    def __getattr__(self, name: str) -> Any:
        return importlib.import_module(name)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Benchmarks]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield Benchmarks()
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


# --- figures ----------------------------------------------------------------------------------------------------------


def test_a_spread_is_the_middle_and_the_ends(benchmarks: Benchmarks) -> None:
    assert benchmarks.figures.spread([5.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 5.0}
    assert benchmarks.figures.shown({"median": 2.04, "min": 1.0, "max": 5.06}, 1) == "2.0 (1.0 to 5.1)"


def test_a_percentile_is_one_of_the_values(benchmarks: Benchmarks) -> None:
    values = list(range(1, 101))
    assert [benchmarks.figures.percentile(values, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert benchmarks.figures.percentile([7.0], 0.01) == 7.0


def test_ratios_are_taken_within_a_round(benchmarks: Benchmarks) -> None:
    """A machine that was three times as slow in one round changes no ratio."""
    series = {"one": [100.0, 30.0, 90.0], "other": [200.0, 60.0, 180.0]}
    assert benchmarks.figures.ratios(series, "one", "other") == {"median": 0.5, "min": 0.5, "max": 0.5}
    with pytest.raises(ValueError, match="zip"):
        benchmarks.figures.ratios({"one": [1.0], "other": [1.0, 2.0]}, "one", "other")


@pytest.mark.parametrize(("rate", "count"), [(2000.0, 1000), (100.0, 300), (0.5, 20)])
def test_a_slow_runner_gets_fewer_jobs(benchmarks: Benchmarks, rate: float, count: int) -> None:
    assert benchmarks.figures.fitting(rate, 3.0, 1000) == count


def test_a_table_has_straight_columns(benchmarks: Benchmarks) -> None:
    lines = benchmarks.figures.table(("what", "much"), [("a", "1"), ("longer", "12345")]).splitlines()
    assert lines == ["what     much", "a           1", "longer  12345"]


# --- rounds -----------------------------------------------------------------------------------------------------------


class Machine:
    """A machine whose speed the test sets; whatever runs on it takes so long as it says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, benchmarks: Benchmarks) -> None:
        self.speed = 1.0
        self.turns: list[str] = []
        self.slower_each_turn = 1.0
        self._runners = benchmarks.runners
        monkeypatch.setattr(benchmarks.race, "Floor", self.runner("floor", 1000.0))
        monkeypatch.setattr(benchmarks.tree, "alone", lambda: pytest.MonkeyPatch.context())  # nothing is started

    def runner(self, called: str, per_second: float, fails_in: int | None = None) -> Any:
        machine = self

        class Scripted(self._runners.Runner):  # type: ignore[name-defined,misc]
            name, loses, release = called, "all", "1.0"

            def start(self) -> None:
                machine.turns.append(called)
                if called != "floor":
                    machine.speed /= machine.slower_each_turn
                if machine.turns.count(called) == fails_in:
                    raise machine._runners.Failed("it would not")

            def carry_out(self, way: str, count: int) -> float:
                return count / (per_second * machine.speed)

        return Scripted


def test_a_ratio_is_to_the_floor_of_its_own_turn(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine = Machine(monkeypatch, benchmarks)
    machine.slower_each_turn = 2.0
    entries = [benchmarks.race.Entry(machine.runner(name, rate)) for name, rate in (("half", 500.0), ("tenth", 100.0))]
    race = benchmarks.race.Race(tmp_path, entries, benchmarks.race.Rates(100, 1.0))
    race.run(3)
    runners = race.report()["runners"]
    assert [round(runners[name]["ratio"][end], 6) for name in ("half", "tenth") for end in ("min", "max")] == [
        0.5, 0.5, 0.1, 0.1
    ]  # fmt: skip
    assert runners["half"]["per_second"]["max"] > 10 * runners["half"]["per_second"]["min"]
    assert machine.turns == ["floor", "half", "tenth", "tenth", "half", "half", "tenth"]


def test_a_runner_that_fails_is_left_out_and_said_so(
    benchmarks: Benchmarks, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = Machine(monkeypatch, benchmarks)
    runners = [machine.runner("good", 500.0), machine.runner("bad", 400.0, fails_in=2)]
    race = benchmarks.race.Race(
        tmp_path, [benchmarks.race.Entry(each) for each in runners], benchmarks.race.Rates(9, 1.0)
    )
    race.run(4)
    race.print()
    assert race.report()["runners"]["bad"] == {"left_out": "it would not"}
    assert "ratio" in race.report()["runners"]["good"]
    assert "left out: bad: it would not" in capsys.readouterr().out
    assert machine.turns.count("bad") == 2
    assert machine.turns.count("good") == 4


def test_an_aim_is_reached_from_its_own_side(benchmarks: Benchmarks) -> None:
    aim = benchmarks.summary.Aim
    more, less = aim("", "", float, 0.3, 0.45, above=True), aim("", "", float, 8, 4)
    assert [more.verdict(value) for value in (0.29, 0.3, 0.45)] == ["MISSED", "ok", "goal reached"]
    assert [less.verdict(value) for value in (8.1, 8, 4)] == ["MISSED", "ok", "goal reached"]


# --- processes --------------------------------------------------------------------------------------------------------


ORPHAN = """
import subprocess, sys, time
import tree
tree.adopt_orphans()
burn = "import time, sys\\nwhile time.process_time() < 0.2: pass\\nprint('burnt', flush=True)\\ntime.sleep(600)"
away = subprocess.Popen(["setsid", "--fork", sys.executable, "-c", burn], stdout=subprocess.PIPE)
away.stdout.readline()
away.wait()
(orphan,) = tree.descendants()
assert orphan != away.pid
assert tree.cpu_seconds() >= 0.2 and tree.pss_mib() > 1, (tree.cpu_seconds(), tree.pss_mib())
tree.end_all()
assert not tree.descendants() and tree.cpu_seconds() >= 0.2
"""


def test_who_makes_himself_a_daemon_is_counted_and_ended() -> None:
    subprocess.run([sys.executable, "-c", ORPHAN], cwd=BENCHMARKS, check=True, timeout=60)


# --- the picture ------------------------------------------------------------------------------------------------------


def spread(median: float, least: float | None = None, most: float | None = None) -> dict[str, float]:
    return {
        "median": median,
        "min": median if least is None else least,
        "max": median if most is None else most,
    }


def reports(folder: Path, swing: float = 1.1) -> None:
    """As the benchmarks keep them; a peer with a name that is no markup, one that was left out, one far out."""
    machine = {"cores": 2, "cpu": "A & B", "system": "Debian", "disk": "ext4", "python": "3.11.7", "solvisor": "abc"}
    about = {"when": "2026-01-02T03:04:05+00:00", "machine": machine, "rounds": 5}
    rates = {
        "Solvisor": {"loses": "nothing", "ratio": spread(0.4, 0.3, 0.5), "cpu_ms": spread(2.0)},
        "huey <fsync>": {"loses": "what runs", "ratio": spread(0.25), "cpu_ms": spread(1.8)},
        "xargs -P2": {"loses": "all", "ratio": spread(0.7), "cpu_ms": spread(1.1)},
        "tsp": {"left_out": "not installed"},
    }
    singles = {"Solvisor": {"round_ms": spread(4.0, 3.0, 400.0)}, "huey <fsync>": {"round_ms": spread(16.0)}}
    floor = spread(2300.0, 2000.0, 2400.0) | {"cpu_ms": spread(0.8)}
    told = {"throughput": (rates, floor), "latency": (singles, {"round_ms": spread(1.0)})}
    for name, (runners, least) in told.items():
        report = about | {"floor": least, "floor_swing": swing, "runners": runners}
        (folder / f"{name}.json").write_text(json.dumps(report))


def test_the_picture_shows_every_runner_that_ran(benchmarks: Benchmarks, tmp_path: Path) -> None:
    reports(tmp_path)
    benchmarks.plot.draw(tmp_path, tmp_path / "speed.svg")
    picture = ElementTree.parse(tmp_path / "speed.svg").getroot()
    words = [text.text for text in picture.iter(f"{SVG}text")]
    names = [word for word in words if word in {"Solvisor", "huey <fsync>", "xargs -P2", "C posix_spawn loop", "tsp"}]
    assert names == ["Solvisor", "huey <fsync>", "C posix_spawn loop", "xargs -P2"]
    heads = [word for word in words if word and word.startswith("kill -9")]
    assert heads == ["kill -9 loses nothing", "kill -9 loses what runs", "kill -9 loses everything"]
    assert {"0.40", "4.0", "2.0", "1.00", "16.0"} <= set(words)
    assert any(word and "2026-01-02" in word and "A & B" in word for word in words)
    assert words.count(benchmarks.plot.NONE) == 1  # xargs has no job alone


def test_nothing_of_the_picture_lies_outside_of_it(benchmarks: Benchmarks, tmp_path: Path) -> None:
    """Also what was ten times as slow as all else once."""
    reports(tmp_path)
    benchmarks.plot.draw(tmp_path, tmp_path / "speed.svg")
    picture = ElementTree.parse(tmp_path / "speed.svg").getroot()
    width, height = (float(picture.attrib[side]) for side in ("width", "height"))
    for text in picture.iter(f"{SVG}text"):
        assert 0 < float(text.attrib["x"]) <= width - benchmarks.plot.EDGE
        assert 0 < float(text.attrib["y"]) < height
    for bar in picture.iter(f"{SVG}rect"):
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
    assert any("l4 3" in path.attrib["d"] for path in picture.iter(f"{SVG}path"))  # the arrow of what goes on


def test_the_picture_says_when_the_machine_was_restless(benchmarks: Benchmarks, tmp_path: Path) -> None:
    for swing, said in ((1.1, False), (2.0, True)):
        reports(tmp_path, swing)
        benchmarks.plot.draw(tmp_path, tmp_path / "speed.svg")
        assert ("restless" in (tmp_path / "speed.svg").read_text()) == said
