"""A claimed drop is judged by its bytes: what becomes of it, and in which words it is refused."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox_kit import LIMITS, a_config
from solvisor.config import Config, parse
from solvisor.home import Home
from solvisor.intake import candidates, decide
from solvisor.model import Cause, FileFact, Intake, Original, Request, Retry, Source
from solvisor.spool import Take, Taken

CONFIG = a_config()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path)


def judged(
    home: Home,
    *names: str,
    job: str | None = None,
    route: str | None = None,
    folder: str | None = None,
    problem: tuple[str, str] | None = None,
    lost: dict[str, str] | None = None,
    uid: int = 0,
    config: Config = CONFIG,
    request: Request | None = None,
) -> Intake:
    """Judge a drop of empty files; ``job`` is the text of the first of ``names``."""
    place = home.work / "j-1" / "input"
    for at, name in enumerate(names):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(job if at == 0 and job is not None else "")
    sources = (folder,) if folder is not None else names
    prefix = f"{route}/" if route else ""
    take = Take("j-1", tuple(prefix + source for source in sources), route, folder is not None, request=request)
    taken = Taken(take, tuple(FileFact(f"input/{name}", 0, "") for name in names), uid, (), problem)
    return decide(config, LIMITS, home, taken, lost or {})


def refusal(intake: Intake) -> tuple[str, str]:
    assert intake.refusal is not None
    return intake.refusal


def accepted(intake: Intake) -> Intake:
    assert intake.refusal is None, intake.refusal
    return intake


class TestBare:
    def test_becomes_a_job_of_the_one_solver_that_accepts_it(self, home: Home) -> None:
        spec = accepted(judged(home, "Beam.INP")).spec
        assert (spec.name, spec.solver, spec.primary) == ("Beam.INP", "ccx", "Beam.INP")
        assert spec.source == Source("inbox", "Beam.INP")
        assert spec.inputs == (FileFact("input/Beam.INP", 0, ""),)
        assert (spec.cpus, spec.timeout_seconds, spec.licenses, spec.retry) == (None, None, None, None)

    @pytest.mark.skipif(sys.platform == "win32", reason="no pwd module")
    def test_belongs_to_the_owner_of_the_file(self, home: Home) -> None:
        assert judged(home, "a.inp", uid=0).spec.user == "root"
        assert judged(home, "a.inp", uid=3_999_999_999).spec.user == "3999999999"

    def test_that_several_accept_is_told_where_to_go(self, home: Home) -> None:
        code, text = refusal(judged(home, "a.inq"))
        assert code == "ambiguous"
        assert text == "a.inq fits abaqus and nastran; drop it in inbox/abaqus or inbox/nastran"

    def test_that_nobody_accepts_is_told_what_would_be(self, home: Home) -> None:
        code, text = refusal(judged(home, "notes.txt"))
        assert code == "no_solver"
        assert text == (
            "no solver accepts notes.txt (ccx accepts *.inp; abaqus accepts *.inq *.odb; nastran accepts *.inq; "
            "careful accepts *.dat): rename it, or drop it again with a job file notes.job.toml"
        )

    def test_that_needs_a_job_file_is_told_so(self, home: Home) -> None:
        intake = judged(home, "a.dat")
        assert refusal(intake) == (
            "job_file",
            "careful takes a.dat only with a job file: add a.job.toml and drop both again",
        )
        assert intake.spec.solver == "careful"

    def test_in_a_route_only_that_solver_counts(self, home: Home) -> None:
        intake = accepted(judged(home, "a.inq", route="nastran"))
        assert intake.spec.solver == "nastran"
        assert intake.spec.source.path == "nastran/a.inq"
        assert refusal(judged(home, "a.inp", route="nastran")) == (
            "no_solver",
            "no solver accepts a.inp (nastran accepts *.inq): rename it, or drop it again with a job file a.job.toml",
        )

    def test_in_the_route_of_a_solver_without_patterns_any_file_is_taken(self, home: Home) -> None:
        assert accepted(judged(home, "what.ever", route="any")).spec.solver == "any"

    def test_keeps_the_problem_that_the_claim_found(self, home: Home) -> None:
        intake = judged(home, "a.inp", problem=("hard_link", "a.inp has 2 names"))
        assert refusal(intake) == ("hard_link", "a.inp has 2 names")
        assert intake.spec.solver == ""
        assert intake.spec.name == "a.inp"

    def test_remembers_what_was_copied(self, home: Home) -> None:
        original = Original("a.inp", 1, 2, 3, 4)
        place = home.work / "j-1" / "input"
        place.mkdir(parents=True)
        taken = Taken(Take("j-1", ("a.inp",)), (FileFact("input/a.inp", 0, ""),), 0, (original,))
        assert decide(CONFIG, LIMITS, home, taken).spec.originals == (original,)

    def test_may_start_with_a_dash(self, home: Home) -> None:
        assert accepted(judged(home, "-rf.inp")).spec.primary == "-rf.inp"


FULL = """
solver = "ccx"
inputs = ["a.inp", "m.inc"]
name = "beam, fine mesh"
project = "riser-2026"
priority = 10
params = { load = 3.5 }
after = ["beam-0123456789abcde"]
key = "k"
timeout = "30m"
cpus = 2
memory = "1GiB"
licenses = { orcaflex = 1 }
retry = { max = 2, on = ["signal"] }
"""


class TestJobFile:
    def test_says_all_that_a_job_can_be(self, home: Home) -> None:
        spec = accepted(judged(home, "j.job.toml", "a.inp", "m.inc", job=FULL)).spec
        assert (spec.name, spec.solver, spec.primary) == ("beam, fine mesh", "ccx", "a.inp")
        assert (spec.project, spec.priority, spec.params) == ("riser-2026", 10, {"load": 3.5})
        assert (spec.after, spec.key) == (("beam-0123456789abcde",), "k")
        assert (spec.timeout_seconds, spec.cpus, spec.memory_bytes) == (1800.0, 2, 1 << 30)
        assert spec.licenses == {"orcaflex": 1}
        assert spec.retry == Retry(max=2, on=(Cause.SIGNAL,))

    def test_may_leave_the_solver_to_the_name_of_the_input(self, home: Home) -> None:
        assert accepted(judged(home, "j.job.toml", "a.inp", job='inputs = ["a.inp"]')).spec.solver == "ccx"

    def test_may_leave_the_solver_to_the_route(self, home: Home) -> None:
        assert (
            accepted(judged(home, "j.job.toml", "x.y", job='inputs = ["x.y"]', route="nastran")).spec.solver
            == "nastran"
        )

    def test_asks_for_a_solver_whatever_that_accepts(self, home: Home) -> None:
        text = 'solver = "ccx"\ninputs = ["x.y"]'
        assert accepted(judged(home, "j.job.toml", "x.y", job=text)).spec.solver == "ccx"

    def test_serves_a_solver_that_demands_one(self, home: Home) -> None:
        assert accepted(judged(home, "j.job.toml", "a.dat", job='inputs = ["a.dat"]')).spec.solver == "careful"

    @pytest.mark.parametrize(
        ("text", "code", "says"),
        [
            ("inputs = [", "job_file_syntax", "j.job.toml: "),
            ('inputs = ["a.inp"]\nsolvr = "ccx"', "job_file_key", 'did you mean "solver"'),
            ('inputs = ["../a.inp"]', "job_file_value", "without a folder"),
            ("x = '" + "y" * 70_000 + "'", "job_file_too_large", "64 KiB"),
            ('inputs = ["a.inp"]\nsolver = "cxc"', "solver", 'did you mean "ccx"'),
            ('inputs = ["a.inp"]\nparams = { laod = 1.0 }', "param", 'did you mean "load"'),
            ('inputs = ["a.inp"]\nparams = { load = -1.0 }', "param", "less than 0"),
            ('inputs = ["a.inp"]\ncpus = 5', "resources", "cpus: 5 are more than the 4 there are"),
            ('inputs = ["a.inp"]\nmemory = "9GiB"', "resources", "memory: 9 GiB is more than the 8 GiB there is"),
            ('inputs = ["a.inp"]\nlicenses = { orcaflex = 3 }', "resources", "3 are more than the 2 there are"),
            ('inputs = ["a.inp"]\nlicenses = { orcflex = 1 }', "resources", 'did you mean "orcaflex"'),
            ("name = 'x'", "inputs", 'j.job.toml names no inputs: add inputs = ["FILE"]'),
        ],
    )
    def test_that_cannot_be_is_told_why(self, home: Home, text: str, code: str, says: str) -> None:
        found, message = refusal(judged(home, "j.job.toml", "a.inp", job=text))
        assert found == code
        assert "j.job.toml" in message
        assert says in message
        assert "drop" in message
        assert "again" in message

    def test_that_is_refused_keeps_what_it_said(self, home: Home) -> None:
        spec = judged(home, "j.job.toml", "a.inp", job='inputs = ["a.inp"]\nsolver = "cxc"\nproject = "p"').spec
        assert (spec.solver, spec.primary, spec.project) == ("cxc", "a.inp", "p")

    def test_late_names_the_job_that_took_its_input(self, home: Home) -> None:
        lost = {"a.inp": "job a-000000000abcdef took it"}
        code, text = refusal(judged(home, "j.job.toml", job='inputs = ["a.inp"]', lost=lost))
        assert code == "missing_input"
        assert text == (
            "j.job.toml names inputs that are not there (a.inp: job a-000000000abcdef took it); "
            "drop all of them again, the job file first or all in one folder"
        )

    def test_in_the_route_of_another_solver_is_refused(self, home: Home) -> None:
        text = 'solver = "ccx"\ninputs = ["a.inp"]'
        assert refusal(judged(home, "j.job.toml", "a.inp", job=text, route="nastran")) == (
            "solver",
            "j.job.toml asks for ccx but was dropped in inbox/nastran; "
            "drop all again in inbox/ccx, or take the solver key out",
        )

    def test_without_a_solver_for_its_input_is_refused(self, home: Home) -> None:
        code, text = refusal(judged(home, "j.job.toml", "x.y", job='inputs = ["x.y"]'))
        assert code == "no_solver"
        assert text.endswith('add solver = "NAME" to j.job.toml and drop all again')


class TestModel:
    CONFIG = parse('[solver.omc]\nkind = "omc"\naccept = ["*.mo"]\n[solver.ccx]\ncommand = ["ccx"]', Path("c"))
    JOB = 'inputs = ["a.mo"]\nsimulate = { stop = 5 }\noverrides = { k = 2 }'

    @pytest.mark.parametrize("request_", [None, Request("socket", "ann"), Request("retry", "ann", retry_of="a-1")])
    def test_is_simulated_as_its_job_file_says_whichever_way_it_came(
        self, home: Home, request_: Request | None
    ) -> None:
        intake = judged(home, "job.toml", "a.mo", job=self.JOB, folder="a", config=self.CONFIG, request=request_)
        want = {"simulate": {"stop": 5, "output": "csv"}, "overrides": {"k": 2}}
        assert accepted(intake).spec.options == want

    def test_of_another_kind_of_solver_is_refused(self, home: Home) -> None:
        job = f'solver = "ccx"\n{self.JOB}'
        code, text = refusal(judged(home, "a.job.toml", "a.mo", job=job, config=self.CONFIG))
        assert code == "param"
        assert text == (
            'a.job.toml: simulate and overrides: only for solvers of kind "omc", and ccx is of kind "command"; '
            "correct it and drop all again"
        )

    def test_without_a_job_file_has_no_options(self, home: Home) -> None:
        assert accepted(judged(home, "a.mo", config=self.CONFIG)).spec.options == {}


_WORDS = [
    "solver",
    "inputs",
    "params",
    "retry",
    "licenses",
    "after",
    "=",
    "[",
    "]",
    "{",
    "}",
    "'a.inp'",
    '"ccx"',
    "1",
    "-1e999",
    "nan",
    "'",
    ".",
    "\n",
]
_TEXTS = st.lists(st.sampled_from(_WORDS), max_size=30).map(lambda words: " ".join(words).encode())


@given(st.one_of(st.binary(max_size=200), _TEXTS))
def test_no_job_file_does_more_than_be_refused(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as root:
        home = Home.at(Path(root))
        place = home.work / "j-1" / "input"
        place.mkdir(parents=True)
        (place / "j.job.toml").write_bytes(data)
        facts = (FileFact("input/j.job.toml", len(data), ""), FileFact("input/a.inp", 0, ""))
        intake = decide(CONFIG, LIMITS, home, Taken(Take("j-1", ("j.job.toml", "a.inp")), facts, 0))
        if intake.refusal is not None:
            "".join(intake.refusal).encode()


class TestFolder:
    def test_with_one_input_is_a_job_and_all_else_goes_along(self, home: Home) -> None:
        spec = accepted(judged(home, "a.inp", "mesh/m.inp", "notes.txt", folder="case")).spec
        assert (spec.name, spec.primary, spec.solver) == ("a.inp", "a.inp", "ccx")
        assert len(spec.inputs) == 3
        assert spec.source.path == "case"

    @pytest.mark.parametrize(
        ("names", "says"),
        [
            (("notes.txt",), "case holds no input that a solver accepts (ccx accepts *.inp;"),
            (("a.inp", "b.inp"), "case holds a.inp, b.inp, and each could be the input ("),
            (("sub/a.inp",), "case holds no input that a solver accepts ("),
            ((".a.inp", "b.inp.tmp"), "case holds no input that a solver accepts ("),
        ],
    )
    def test_with_none_or_several_is_refused(self, home: Home, names: tuple[str, ...], says: str) -> None:
        code, text = refusal(judged(home, *names, folder="case"))
        assert code == "inputs"
        assert text.startswith(says)
        assert text.endswith('add a job.toml with inputs = ["FILE"] and drop the folder again')

    def test_that_two_solvers_fit_is_refused(self, home: Home) -> None:
        assert refusal(judged(home, "a.inq", folder="case"))[0] == "ambiguous"

    def test_with_a_job_file_obeys_it(self, home: Home) -> None:
        text = 'solver = "ccx"\ninputs = ["b.inp", "a.inp"]'
        assert accepted(judged(home, "job.toml", "a.inp", "b.inp", job=text, folder="case")).spec.primary == "b.inp"

    def test_with_a_job_file_that_names_none_takes_the_one_that_its_solver_accepts(self, home: Home) -> None:
        spec = accepted(judged(home, "job.toml", "a.inp", "b.odb", job='solver = "abaqus"', folder="case")).spec
        assert (spec.primary, spec.solver) == ("b.odb", "abaqus")

    def test_whose_job_file_names_what_is_not_there_is_refused(self, home: Home) -> None:
        code, text = refusal(judged(home, "job.toml", "a.inp", job='inputs = ["b.inp"]', folder="case"))
        assert code == "missing_input"
        assert text == (
            "job.toml names b.inp, not among the files beside it in case; add what is missing and drop the folder again"
        )

    def test_whose_job_file_has_another_name_is_refused(self, home: Home) -> None:
        code, text = refusal(judged(home, "a.job.toml", "a.inp", job='inputs = ["a.inp"]', folder="case"))
        assert code == "job_file"
        assert "called job.toml" in text

    def test_for_a_solver_that_demands_a_job_file_is_told_so(self, home: Home) -> None:
        assert refusal(judged(home, "a.dat", folder="case"))[1] == (
            "careful takes a.dat only with a job file: add a job.toml in case and drop the folder again"
        )

    def test_in_a_route_is_for_that_solver(self, home: Home) -> None:
        assert accepted(judged(home, "a.inq", "a.inp", folder="case", route="nastran")).spec.solver == "nastran"


def test_patterns_ignore_case_and_hidden_names() -> None:
    assert candidates(CONFIG, "A.Inp", None) == ("ccx",)
    assert candidates(CONFIG, ".a.inp", None) == ()
    assert candidates(CONFIG, "a.job.toml", "any") == ()
    assert candidates(CONFIG, "a.inp", "gone") == ()
