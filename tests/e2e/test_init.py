"""``solvisor init``: on every PATH a configuration that loads; what an operator wrote is never changed."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from solvisor import config
from solvisor.errors import ConfigError
from solvisor.kinds import AnySolver, OmcSolver, programs
from solvisor_service.profiles import About, Profile, VersionQuery, compose, place, profiles, search
from waiting import wait_until

ROOT = Path(__file__).parents[2]
AS_ROOT = os.geteuid() == 0

OWN = """\
# mine, with care
[solver.fem]   # ccx by another name
accept = ["*.fem"]
command = ["/opt/site/ccx", "{stem}"]
"""


class Machine:
    """A machine of fake programs: a PATH with nothing else on it, and a home."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.home = folder / "home"
        self.config = self.home / "solvisor.toml"

    def program(self, name: str, script: str = "exit 0", folder: str | None = None) -> Path:
        place = self.bin / name if folder is None else self.bin.parent / folder / name
        place.parent.mkdir(exist_ok=True)
        place.write_text(f"#!/bin/sh\n{script}\n")
        place.chmod(0o755)
        return place

    def init(
        self, *options: str, path: str | None = None, home: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "solvisor_service.cli", "init", "--home", str(home or self.home), *options],
            env={**os.environ, "HOME": str(self.home.parent), "PATH": str(self.bin) if path is None else path},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def good(self, *options: str, path: str | None = None) -> str:
        done = self.init(*options, path=path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def facts(self, *options: str) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(self.good("--json", *options))
        return facts

    def loaded(self) -> config.Config:
        return config.load(self.config)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


CCX = "echo; echo 'This is Version 2.20'; exit 201"
CBC = "echo 'Version: 2.10.8 '"
GLPSOL = "echo 'GLPSOL--GLPK LP/MIP Solver 5.0'"


def program(solver: AnySolver) -> str:
    return next(iter(programs(solver).values()))[0]


# --- a new configuration ----------------------------------------------------------------------------------------------


def test_on_an_empty_path_it_is_a_sample_to_start_from(machine: Machine) -> None:
    said = machine.good()
    assert machine.loaded().solver == {}
    text = machine.config.read_text()
    assert "No solver that Solvisor has a table for" in said
    assert "not found: ccx, cbc, glpsol, ngspice" in said
    sample = text[text.index("# [solver.mine]") :]
    config.parse("".join(f"{line.removeprefix('# ')}\n" for line in sample.splitlines()), Path("sample.toml"))


def test_found_programs_get_their_tables_with_version_and_standing(machine: Machine) -> None:
    machine.program("ccx", CCX)
    machine.program("ngspice", "echo '** ngspice-99 : Circuit level simulation program'")
    said = machine.good()
    text = machine.config.read_text()
    assert f"# Found: {machine.bin}/ccx, version 2.20. Seen to judge" in text
    assert (
        f"# Found: {machine.bin}/ngspice, version 99. Seen to judge good and bad inputs rightly with version 39."
        in text
    )
    solvers = machine.loaded().solver
    assert list(solvers) == ["ccx", "ngspice"]
    assert program(solvers["ccx"]) == str(machine.bin / "ccx"), "no daemon looks for programs there"
    row = next(line for line in said.splitlines() if line.startswith("ngspice")).split()
    assert row[:3] == ["ngspice", "99", "39"]
    for command in ("config check", "serve"):
        assert f"  solvisor {command} --home {machine.home}\n" in said
    assert "[daemon]\n# max_jobs" in text


def test_a_program_where_every_daemon_looks_is_called_by_its_name(tmp_path: Path) -> None:
    (gmsh,) = [profile for profile in profiles() if profile.name == "gmsh"]
    text = compose.section(search.Found(gmsh, "/usr/bin/gmsh", "4.8.4", by_name=True), {})
    assert 'command = ["gmsh", ' in text
    odd = compose.section(search.Found(gmsh, '/opt/{a} "b"/gmsh', None, by_name=False), {})
    loaded = config.parse(odd, tmp_path / "solvisor.toml")
    assert program(loaded.solver["gmsh"]) == '/opt/{{a}} "b"/gmsh'


def test_of_two_that_take_the_same_files_the_second_takes_none_by_name(machine: Machine) -> None:
    machine.program("glpsol", GLPSOL)
    machine.program("cbc", CBC)
    said = machine.good()
    loaded = machine.loaded()
    assert loaded.warnings == ()
    assert loaded.solver["cbc"].accept == ("*.lp", "*.mps")
    assert loaded.solver["glpsol-lp"].accept == ()
    text = machine.config.read_text()
    assert '# accept  = ["*.lp"]\n# cbc takes "*.lp" already' in text
    assert "inbox/glpsol-lp/, or name glpsol-lp in a job file" in text
    assert "*.lp goes to another solver; drop its files in inbox/glpsol-lp/" in said


def test_every_known_program_at_once_makes_a_configuration_without_warnings(machine: Machine) -> None:
    for profile in profiles():
        for program in profile.about.programs[:1]:
            machine.program(program)
    facts = machine.facts()
    known = [profile for profile in profiles() if profile.about.programs]
    assert [row["solver"] for row in facts["solvers"]] == [profile.name for profile in known]
    assert facts["missing"] == []
    assert (facts["written"], facts["examples"], facts["config"]) == (True, None, str(machine.config))
    loaded = machine.loaded()
    assert list(loaded.solver) == [profile.name for profile in known]
    assert loaded.warnings == ()


def test_omc_gets_the_models_and_the_servers(machine: Machine) -> None:
    machine.program("omc", "echo 'OpenModelica 1.26.9'")
    (row,) = machine.facts()["solvers"]
    assert (row["solver"], row["version"], row["tested"], row["status"]) == ("omc", "1.26.9", None, "added")
    omc = machine.loaded().solver["omc"]
    assert isinstance(omc, OmcSolver)
    assert (omc.accept, omc.servers.recycle_jobs) == (("*.mos", "*.mo"), 200)
    assert omc.omc == str(machine.bin / "omc"), "no daemon looks for programs there"
    machine.program("omc", "echo 'OpenModelica 2.0.0'", "other")
    assert "Nothing to add" in machine.good("--update")


def test_a_program_that_is_no_command_line_keeps_its_braces(tmp_path: Path) -> None:
    (known,) = [profile for profile in profiles() if profile.name == "omc"]
    text = compose.section(search.Found(known, "/opt/{a}/omc", None, by_name=False), {})
    omc = config.parse(text, tmp_path / "solvisor.toml").solver["omc"]
    assert isinstance(omc, OmcSolver)
    assert omc.omc == "/opt/{a}/omc"


def test_models_that_somebody_takes_already_stay_with_them(machine: Machine) -> None:
    machine.home.mkdir()
    machine.config.write_text("[solver.rumoca]\naccept = ['*.mo']\ncommand = ['/opt/rumoca/run', '{input}']\n")
    machine.program("omc")
    machine.good("--update")
    assert machine.loaded().solver["omc"].accept == ()


def test_an_untested_profile_is_labelled(machine: Machine) -> None:
    known = Profile("abaqus", About(title="Abaqus", programs=("abaqus",)))
    text = compose.section(search.Found(known, "/opt/abaqus", None, by_name=False), {})
    assert "# Found: /opt/abaqus, version unknown. UNTESTED: " in text


# --- versions ---------------------------------------------------------------------------------------------------------

ANY = VersionQuery(("--version",), r"^v(\S+)")


@pytest.mark.parametrize(
    ("script", "version"),
    [
        ("echo v1.2", "1.2"),
        ("echo v1.2 >&2", "1.2"),
        ("echo v1.2; exit 1", None),
        ("exit 1", None),
        ("kill -9 $$", None),
        ("echo no idea", None),
        ("printf 'v\\033[31m7\\n'", None),
        ("printf '\\377\\376v\\0'", None),
        ("echo v1.2; head -c 100000 /dev/zero", None),
        ("echo v1.2; exec cat /dev/zero", None),
        ("cat; echo v1.2", "1.2"),
        ("echo v1.2 > left-behind; cat left-behind", "1.2"),
    ],
)
def test_a_version_is_what_a_program_says_when_it_ends_well(machine: Machine, script: str, version: str | None) -> None:
    assert search.version_of(str(machine.program("x", script)), ANY) == version


@pytest.mark.parametrize("script", ["echo v1.2; exec sleep 600", "exec sleep 600 >&- 2>&-", "sleep 600 & echo v1.2"])
def test_a_program_that_hangs_has_no_version_and_is_ended(machine: Machine, script: str) -> None:
    mark = machine.bin.parent / "pid"
    program = machine.program("x", f"echo $$ > {mark}; {script}")
    started = time.monotonic()
    assert search.version_of(str(program), ANY, 0.5) is None
    assert time.monotonic() - started < 20
    group = int(mark.read_text())
    wait_until(lambda: not _lives(group), "nothing left of its group")


def _lives(group: int) -> bool:
    """Whether a process of the group is left that is more than a zombie for init to reap."""
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = entry.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            return True
    return False


def test_a_program_that_cannot_be_run_has_no_version(machine: Machine) -> None:
    broken = machine.bin / "x"
    broken.write_text("#!/nowhere/interpreter\n")
    broken.chmod(0o755)
    assert search.version_of(str(broken), ANY) is None


def test_one_bad_program_does_not_keep_the_others_out(machine: Machine) -> None:
    machine.program("ccx", "exec sleep 600")
    machine.program("cbc", CBC)
    machine.program("glpsol", "exit 1")
    versions = {row["solver"]: row["version"] for row in machine.facts()["solvers"]}
    assert versions == {"ccx": None, "cbc": "2.10.8", "glpsol": None, "glpsol-lp": None}


def test_only_whole_readable_places_of_the_path_are_searched(machine: Machine, tmp_path: Path) -> None:
    machine.program("ccx", CCX, "odd\n[solver.evil]")
    machine.program("cbc", CBC, "second")
    machine.good(path=f"{tmp_path}/odd\n[solver.evil]:bin:.::{tmp_path}/second")
    assert list(machine.loaded().solver) == ["cbc"]


def test_one_that_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "solvisor.toml"
    target.write_text(OWN)
    with pytest.raises(place.Exists, match="appeared meanwhile"):
        place.create(target, "[daemon]\n")
    assert target.read_text() == OWN
    assert list(tmp_path.iterdir()) == [target]


def test_what_the_daemon_would_refuse_is_not_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such key"):
        place.create(tmp_path / "solvisor.toml", "[daemon]\ncores = 1\n")
    with pytest.raises(ConfigError, match="that jobs may use together"):
        place.create(tmp_path / "solvisor.toml", "[solver.x]\ncommand = ['x']\ncpus = 99999\n")
    assert list(tmp_path.iterdir()) == []


# --- updates ----------------------------------------------------------------------------------------------------------


def test_an_existing_configuration_is_never_overwritten(machine: Machine) -> None:
    machine.home.mkdir()
    machine.config.write_text(OWN)
    done = machine.init()
    assert done.returncode == 2
    assert f"; to add solvers installed since, type: solvisor init --update --home {machine.home}" in done.stderr
    done = machine.init("--examples")
    assert done.returncode == 2
    assert "stays as it is, and no examples were written; for examples, and to add" in done.stderr
    assert f"type: solvisor init --update --examples --home {machine.home}" in done.stderr
    assert machine.config.read_text() == OWN
    assert [path.name for path in machine.home.iterdir()] == ["solvisor.toml"]


def test_an_update_appends_what_is_new_once_and_changes_nothing(machine: Machine) -> None:
    machine.home.mkdir()
    machine.config.write_text(OWN)
    machine.config.chmod(0o600)
    machine.program("ccx", CCX)
    assert "Nothing to add" in machine.good("--update"), "fem calls ccx"
    assert machine.config.read_text() == OWN
    machine.program("cbc", CBC)
    said = machine.good("--update")
    assert f"Added to {machine.config}: cbc." in said
    assert "declared already, as fem" in said
    first = machine.config.read_text()
    assert first.startswith(OWN)
    assert list(machine.loaded().solver) == ["fem", "cbc"]
    assert stat.S_IMODE(machine.config.stat().st_mode) == 0o600
    facts = machine.facts("--update")
    assert facts["written"] is False
    assert machine.config.read_text() == first
    assert [path.name for path in machine.home.iterdir()] == ["solvisor.toml"]


@pytest.mark.parametrize(
    ("pattern", "empty"),
    [("*.LP", True), ("*", True), ("deck-?.lp", True), ("*.mps", True), ("*p", True), ("x.lp", True), ("*.[li]p", True),
     ("*.alp", False), ("lp", False), ("*.lpx", False)],
)  # fmt: skip
def test_an_update_leaves_the_operators_patterns_to_their_solver(machine: Machine, pattern: str, empty: bool) -> None:
    machine.home.mkdir()
    machine.config.write_text(f"[solver.mine]\naccept = ['{pattern}']\ncommand = ['mine']\n")
    machine.program("cbc", CBC)
    machine.good("--update")
    assert (machine.loaded().solver["cbc"].accept == ()) is empty


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("finished", [True, False])
def test_an_update_keeps_the_way_lines_end(machine: Machine, end: str, finished: bool) -> None:
    machine.home.mkdir()
    before = f"\ufeff# mine{end}[inbox]{end * finished}".encode()
    machine.config.write_bytes(before)
    machine.program("ccx", CCX)
    machine.good("--update")
    data = machine.config.read_bytes()
    assert data.startswith(before)
    assert data.count(b"\r\n") == (data.count(b"\n") if end == "\r\n" else 0)
    assert list(machine.loaded().solver) == ["ccx"]


def test_an_update_follows_a_link_and_keeps_it(machine: Machine, tmp_path: Path) -> None:
    machine.home.mkdir()
    real = tmp_path / "real.toml"
    real.write_text(OWN)
    machine.config.symlink_to(real)
    machine.program("cbc", CBC)
    machine.good("--update")
    assert machine.config.is_symlink()
    assert list(config.load(real).solver) == ["fem", "cbc"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[solver.fem]\ncomand = []\n", 'did you mean "command"'),
        ("solver = { fem = { command = ['fem'] } }\n", "nothing was changed"),
        ("[daemon]\ncpus = 1\n[solver.big]\ncommand = ['big']\ncpus = 9\n", "more than the 1"),
    ],
)
def test_a_configuration_that_cannot_be_updated_stays_as_it_is(machine: Machine, text: str, said: str) -> None:
    machine.home.mkdir()
    machine.config.write_text(text)
    machine.program("cbc", CBC)
    done = machine.init("--update")
    assert done.returncode == 2
    assert said in done.stderr
    assert machine.config.read_text() == text
    assert [path.name for path in machine.home.iterdir()] == ["solvisor.toml"]


def test_an_update_of_nothing_is_a_new_configuration(machine: Machine) -> None:
    machine.program("ccx", CCX)
    assert f"Wrote {machine.config}" in machine.good("--update")


@pytest.mark.parametrize(
    ("table", "names"),
    [
        ("kind = 'omc'\nomc = '/opt/om/bin/omc'", ["omc"]),
        ("command = ['/opt/om/bin/omc', '{input}']", []),
        ("kind = 'python'\ncall = 'a:b'\npython = 'python3'", []),
        ("kind = 'server'\nstart = ['Rscript', '-e', 'Rserve::run.Rserve()']\ncommand = ['c']\n"
         "ready = { kind = 'line', match = 'up' }", []),
    ],
)  # fmt: skip
def test_a_program_that_is_driven_another_way_is_another_solver(table: str, names: list[str]) -> None:
    solvers = config.parse(f"[solver.mine]\n{table}", Path("x.toml")).solver
    assert [profile.name for profile in profiles() if compose.declared(profile, solvers)] == names


def test_a_renamed_script_is_known_by_what_it_calls() -> None:
    openfoam = next(profile for profile in profiles() if profile.name == "openfoam")
    text = openfoam.table.replace("[solver.openfoam", "[solver.cfd")
    assert compose.declared(openfoam, config.parse(text, Path("x.toml")).solver) == "cfd"


# --- examples ---------------------------------------------------------------------------------------------------------


def test_examples_come_for_what_is_declared_and_never_over_a_file(machine: Machine) -> None:
    machine.program("ccx", CCX)
    assert f"cp -r {machine.home}/examples/ccx/beam.inp {machine.home}/inbox/" in machine.good("--examples")
    folder = machine.home / "examples"
    assert {path.name for path in folder.iterdir()} == {"README.txt", "ccx"}
    beam = folder / "ccx" / "beam.inp"
    assert "*STATIC" in beam.read_text()
    beam.write_text("mine")
    machine.program("cbc", CBC)
    machine.good("--update", "--examples")
    assert beam.read_text() == "mine"
    assert (folder / "cbc" / "transport" / "transport.mps").is_file()
    guide = (folder / "README.txt").read_text()
    assert "ccx/beam_garbage.inp             failed  an unknown element; exits 0" in guide
    assert "cbc/transport" in guide


# --- places that cannot be used ---------------------------------------------------------------------------------------


def test_a_home_that_is_a_file_is_told(machine: Machine) -> None:
    machine.home.write_text("")
    done = machine.init()
    assert done.returncode == 2
    assert f"{machine.home}" in done.stderr
    assert "is not a folder, so it cannot be a home; name another one: --home DIR" in done.stderr


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc, where nobody may write")
def test_a_place_nobody_may_write_is_told(machine: Machine) -> None:
    done = machine.init(home=Path("/proc/solvisor"))
    assert done.returncode == 2
    assert "/proc/solvisor" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_read_only_home_is_told(machine: Machine) -> None:
    machine.home.mkdir(mode=0o555)
    done = machine.init()
    assert done.returncode == 2
    assert "Permission denied; no configuration was written" in done.stderr


def test_the_file_is_not_for_everyone_to_change_whatever_the_umask(machine: Machine) -> None:
    old = os.umask(0)
    try:
        machine.good()
    finally:
        os.umask(old)
    assert stat.S_IMODE(machine.config.stat().st_mode) == 0o644


def test_a_configuration_elsewhere_is_named_in_the_next_commands(machine: Machine, tmp_path: Path) -> None:
    place = tmp_path / "etc" / "my solvers.toml"
    said = machine.good("--config", str(place))
    assert config.load(place).solver == {}
    assert f"  solvisor serve --home {machine.home} --config '{place}'\n" in said


# --- what ships -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_what_ships_holds_every_table_and_example(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling, which builds the wheel, is not installed here")
    code = f"import hatchling.build as b; print(b.build_{kind}({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    data = (tmp_path / done.stdout.split()[-1]).read_bytes()
    if kind == "wheel":
        inside = set(zipfile.ZipFile(io.BytesIO(data)).namelist())
    else:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            inside = {name.partition("/service/")[2] for name in archive.getnames()}
    folder = ROOT / "service" / "solvisor_service" / "profiles"
    wanted = {
        str(path.relative_to(ROOT / "service"))
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(wanted) > 50
    assert wanted <= inside
