"""Drops of every shape, in a real folder under real inotify, become the right intakes."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import anyio
import pytest

from inbox_kit import Running, a_config, running
from solvisor.home import Home
from solvisor.inbox.hints import Hints
from solvisor.inbox.scan import Scanner
from waiting import eventually


def rename_in(run: Running, name: str, text: str = "x") -> None:
    """Drop a file as a careful user would."""
    staged = run.home.root / "staged"
    staged.write_text(text)
    staged.rename(run.folder / name)


def sources(run: Running) -> list[str]:
    return sorted(intake.spec.source.path for intake in run.intakes)


def test_first_come_first(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.prepare()
    scanner, config = Scanner(home, Hints()), a_config()

    def scan(now: float) -> list[str]:
        survey = scanner.scan(config, lambda *_: None, lambda *_: False, now)
        return [f"{drop.folder}/{drop.pick.names[0]}" for drop in survey.drops]

    assert not scan(0.0)
    for now, name in enumerate(("c.inp", "ccx/a.inp", "b.inp")):
        (home.inbox / name).touch()
        scan(0.01 * now)
    assert scan(1.0) == ["/c.inp", "ccx/a.inp", "/b.inp"]


class TestBareFiles:
    async def test_written_and_closed(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            (run.folder / "beam.inp").write_text("*NODE\n")
            intake = await run.wait_job()
            assert (intake.spec.solver, intake.spec.primary) == ("ccx", "beam.inp")
            assert intake.id.startswith("beam-")
            assert run.claimed(intake, "beam.inp") == b"*NODE\n"
            assert not (run.folder / "beam.inp").exists()

    async def test_renamed_into_place_needs_no_settling(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(settle="1h", rescan="1h")) as run:
            rename_in(run, "beam.inp")
            await run.wait_job()

    async def test_fault_42_the_same_name_twice_is_two_jobs(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "beam.inp", "one")
            await run.wait_intakes(1)
            rename_in(run, "beam.inp", "two")
            first, second = await run.wait_intakes(2)
            assert first.id != second.id
            assert (run.claimed(first, "beam.inp"), run.claimed(second, "beam.inp")) == (b"one", b"two")

    async def test_fault_50_a_time_in_the_future_settles_like_any_other(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            (run.folder / "beam.inp").write_text("x")
            os.utime(run.folder / "beam.inp", (2_208_988_800, 2_208_988_800))
            await run.wait_job()

    async def test_fault_46_no_bytes_at_all_settle_like_any_other(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            (run.folder / "beam.inp").touch()
            await run.wait_job()

    async def test_the_ready_marker_means_now_and_goes_away(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(settle="1h")) as run:
            (run.folder / "beam.inp").write_text("x")
            await run.wait_scans()
            assert not run.intakes
            (run.folder / "beam.inp.ready").touch()
            await run.wait_job()
            await eventually(lambda: not (run.folder / "beam.inp.ready").exists(), "the marker goes")
            await run.wait_scans()
            assert len(run.intakes) == 1

    async def test_fitting_two_solvers_is_rejected_at_once(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "a.inq")
            code, text = await run.wait_refusal()
            assert code == "ambiguous"
            assert "inbox/abaqus or inbox/nastran" in text

    async def test_fitting_nobody_waits_for_its_job_file_then_is_rejected(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(orphan_after="1500ms")) as run:
            rename_in(run, "notes.txt")
            await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["job_file"], "it waits visibly")
            assert not run.intakes
            assert (await run.wait_refusal())[0] == "no_solver"

    async def test_of_a_solver_that_demands_a_job_file_waits_for_it(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "a.dat")
            await run.wait_scans()
            assert not run.intakes
            rename_in(run, "a.job.toml", 'inputs = ["a.dat"]')
            assert (await run.wait_job()).spec.solver == "careful"

    @pytest.mark.parametrize("name", ["a.job.part", "a.TMP", "~$a.msh", ".b.job.toml.Ab12Cd", "a.filepart"])
    async def test_beside_a_live_temporary_name_waits(self, tmp_path: Path, name: str) -> None:
        async with running(tmp_path) as run:
            (run.folder / name).touch()
            rename_in(run, "a.inp")
            await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["held"], "it is held back")
            await run.wait_scans()
            assert not run.intakes
            (run.folder / name).rename(run.folder / "b.inp")
            await run.wait_intakes(2)
            assert sources(run) == ["a.inp", "b.inp"]

    @pytest.mark.parametrize("name", [".hidden", "Thumbs.db", "desktop.ini"])
    async def test_beside_ignored_names_does_not_wait(self, tmp_path: Path, name: str) -> None:
        async with running(tmp_path) as run:
            (run.folder / name).touch()
            rename_in(run, "a.inp")
            await run.wait_job()
            await run.wait_scans()
            assert (run.folder / name).exists()

    async def test_fault_69_a_link_is_rejected_and_not_followed(self, tmp_path: Path) -> None:
        secret = tmp_path / "secret.inp"
        secret.write_text("secret")
        async with running(tmp_path) as run:
            (run.folder / "a.inp").symlink_to(secret)
            assert (await run.wait_refusal())[0] == "not_a_file"
            assert secret.read_text() == "secret"

    async def test_fault_45_a_name_that_is_not_utf8_is_rejected(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            (run.folder / os.fsdecode(b"a\xff\n.inp")).touch()
            code, text = await run.wait_refusal()
            assert code == "name"
            assert "a\\xff\\x0a.inp" in text


class TestRoutes:
    async def test_a_route_decides_for_its_solver(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "nastran/a.inq")
            rename_in(run, "any/what.ever")
            await run.wait_intakes(2)
            assert {i.spec.solver: i.spec.source.path for i in run.jobs} == {
                "nastran": "nastran/a.inq",
                "any": "any/what.ever",
            }

    async def test_a_job_file_in_a_route(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "any/a.job.toml", 'inputs = ["a.b"]')
            rename_in(run, "any/a.b")
            assert (await run.wait_job()).spec.solver == "any"

    async def test_a_marker_in_a_route(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(settle="1h")) as run:
            (run.folder / "ccx" / "a.inp").touch()
            (run.folder / "ccx" / "a.inp.ready").touch()
            await run.wait_job()
            await eventually(lambda: not (run.folder / "ccx" / "a.inp.ready").exists(), "the marker goes")

    async def test_a_folder_in_a_route(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            folder = run.home.root / "case"
            folder.mkdir()
            (folder / "a.inq").touch()
            folder.rename(run.folder / "nastran" / "case")
            assert (await run.wait_job()).spec.solver == "nastran"

    async def test_routes_are_made_anew(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            (run.folder / "ccx").rmdir()
            await eventually(lambda: (run.folder / "ccx").is_dir(), "the route is back")
            rename_in(run, "ccx/a.xyz.inp")
            await run.wait_job()

    async def test_one_folder_does_not_hold_back_another(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            (run.folder / "x.part").touch()
            rename_in(run, "ccx/a.inp")
            await run.wait_job()


class TestJobFiles:
    async def test_takes_its_companions_in_any_order_of_arrival(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "mesh.inc", "mesh")
            rename_in(run, "j.job.toml", 'inputs = ["a.inp", "mesh.inc"]')
            await run.wait_scans()
            assert not run.intakes
            rename_in(run, "a.inp")
            intake = await run.wait_job()
            assert [fact.path for fact in intake.spec.inputs] == [
                "input/a.inp",
                "input/j.job.toml",
                "input/mesh.inc",
            ]
            assert intake.spec.primary == "a.inp"
            assert intake.id.startswith("j-")

    @pytest.mark.parametrize("job_file_first", [True, False])
    async def test_copied_in_either_order_it_is_always_one_job(self, tmp_path: Path, job_file_first: bool) -> None:
        async def lane(run: Running, first: int) -> None:
            pause = random.Random(first)
            for n in range(first, 50, 5):
                drops = [(f"{n}.inp", "x"), (f"{n}.job.toml", f'inputs = ["{n}.inp"]\npriority = {n}')]
                for name, text in drops[::-1] if job_file_first else drops:
                    (run.folder / name).write_text(text)
                    go_on = time.monotonic() + pause.uniform(0, 0.05)
                    await eventually(lambda go_on=go_on: time.monotonic() >= go_on, "a moment")  # type: ignore[misc]

        async with running(tmp_path, a_config(settle="0.5s")) as run:
            async with anyio.create_task_group() as lanes:
                for first in range(5):
                    lanes.start_soon(lane, run, first)
            await run.wait_intakes(50)
            await run.wait_scans()
            assert sorted(intake.spec.priority for intake in run.jobs) == list(range(50))

    async def test_too_late_it_names_the_job_that_took_its_input(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "a.inp")
            first = await run.wait_job()
            rename_in(run, "a.job.toml", 'inputs = ["a.inp"]')
            _, late = await run.wait_intakes(2)
            assert late.refusal is not None
            assert late.refusal[0] == "missing_input"
            assert f"a.inp: job {first.id} took it" in late.refusal[1]

    async def test_two_that_name_one_file(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "b.job.toml", 'inputs = ["m.inp"]')
            rename_in(run, "a.job.toml", 'inputs = ["m.inp"]')
            await run.wait_scans()
            rename_in(run, "m.inp")
            first, second = await run.wait_intakes(2)
            assert (first.spec.source.path, first.refusal) == ("a.job.toml", None)
            assert second.refusal is not None
            assert first.id in second.refusal[1]

    async def test_fault_46_that_cannot_be_read_is_rejected_alone(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "a.job.toml", "inputs = [")
            assert (await run.wait_refusal())[0] == "job_file_syntax"

    async def test_whose_companion_never_comes_is_rejected_with_what_came(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(orphan_after="1s")) as run:
            rename_in(run, "a.inp")
            rename_in(run, "j.job.toml", 'inputs = ["a.inp", "gone.inc"]')
            code, text = await run.wait_refusal()
            assert code == "missing_input"
            assert "gone.inc: no such file came within 1 s" in text
            assert not (run.folder / "a.inp").exists()

    async def test_a_waiting_one_holds_back_only_what_it_names(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            rename_in(run, "j.job.toml", 'inputs = ["mine.inp", "to-come.inp"]')
            rename_in(run, "mine.inp")
            rename_in(run, "other.inp")
            assert (await run.wait_job()).spec.source.path == "other.inp"
            await run.wait_scans()
            assert len(run.intakes) == 1
            rename_in(run, "to-come.inp")
            await run.wait_intakes(2)
            assert [fact.path for fact in run.intakes[1].spec.inputs] == [
                "input/j.job.toml",
                "input/mine.inp",
                "input/to-come.inp",
            ]

    @pytest.mark.parametrize("order", [("p.job.toml", "p.inp"), ("p.inp", "p.job.toml")])
    async def test_a_faulty_one_takes_its_inputs_along(self, tmp_path: Path, order: tuple[str, str]) -> None:
        """They must not run without what it asked for."""
        texts = {"p.job.toml": 'inputs = ["p.inp"]\nprioritiy = 3\n', "p.inp": "x"}
        async with running(tmp_path) as run:
            for name in order:
                (run.folder / name).write_text(texts[name])
            await run.wait_intakes(1)
            await run.wait_scans()
            (intake,) = run.intakes
            assert intake.refusal is not None
            assert intake.refusal[0] == "job_file_key"
            assert len(intake.spec.inputs) == 2


class TestFolders:
    async def test_with_one_input_goes_in_as_a_whole(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            case = run.folder / "case"
            (case / "sub").mkdir(parents=True)
            (case / "sub" / "mesh.inc").write_text("mesh")
            (case / "a.inp").write_text("x")
            intake = await run.wait_job()
            assert [fact.path for fact in intake.spec.inputs] == ["input/a.inp", "input/sub/mesh.inc"]
            assert run.claimed(intake, "sub/mesh.inc") == b"mesh"
            assert not case.exists()

    async def test_renamed_in_needs_no_settling(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(settle="1h", rescan="1h")) as run:
            case = run.home.root / "case"
            case.mkdir()
            (case / "job.toml").write_text('inputs = ["b.inp"]\nname = "second"')
            (case / "a.inp").touch()
            (case / "b.inp").touch()
            case.rename(run.folder / "case")
            intake = await run.wait_job()
            assert (intake.spec.primary, intake.spec.name) == ("b.inp", "second")

    @pytest.mark.parametrize(("names", "says"), [((), "holds no input"), (("a.inp", "b.inp"), "holds a.inp, b.inp")])
    async def test_renamed_in_that_is_no_job_is_rejected_at_once(
        self, tmp_path: Path, names: tuple[str, ...], says: str
    ) -> None:
        async with running(tmp_path) as run:
            case = run.home.root / "case"
            case.mkdir()
            for name in names:
                (case / name).touch()
            case.rename(run.folder / "case")
            assert says in (await run.wait_refusal())[1]

    async def test_made_in_place_that_is_no_job_yet_is_not_snatched_away(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            case = run.folder / "case"
            case.mkdir()
            await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["folder"], "it waits")
            await run.wait_scans()
            (case / "a.inp").write_text("x")
            await run.wait_job()

    async def test_whose_job_file_names_what_has_not_come_is_not_snatched_away(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            case = run.folder / "case"
            case.mkdir()
            (case / "job.toml").write_text('inputs = ["a.inp", "mesh.inc"]')
            (case / "a.inp").touch()
            await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["folder"], "it waits")
            assert not run.intakes
            (case / "mesh.inc").touch()
            await run.wait_job()

    async def test_made_in_place_that_stays_no_job_is_rejected(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(orphan_after="1s")) as run:
            (run.folder / "case").mkdir()
            assert (await run.wait_refusal())[0] == "inputs"

    async def test_still_being_written_is_left_alone(self, tmp_path: Path) -> None:
        async with running(tmp_path, a_config(settle="0.3s", rescan="0.1s")) as run:
            case = run.folder / "case"
            case.mkdir()
            (case / "a.inp").write_text("x")
            with (case / "mesh.inc").open("w") as mesh:
                await run.wait_scans(10)
                assert not run.intakes
                mesh.write("all of it")
            intake = await run.wait_job()
            assert run.claimed(intake, "mesh.inc") == b"all of it"

    async def test_fault_70_with_a_link_in_it_is_rejected(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            case = run.home.root / "case"
            case.mkdir()
            (case / "a.inp").touch()
            (case / "passwd").symlink_to("/etc/passwd")
            case.rename(run.folder / "case")
            assert (await run.wait_refusal())[0] == "not_a_file"

    async def test_with_a_temporary_name_in_it_is_not_finished(self, tmp_path: Path) -> None:
        async with running(tmp_path) as run:
            case = run.folder / "case"
            case.mkdir()
            (case / ".mesh.inc.Ab12Cd").touch()
            (case / "a.inp").touch()
            await run.wait_scans(4)
            assert not run.intakes
            (case / ".mesh.inc.Ab12Cd").rename(case / "mesh.inc")
            intake = await run.wait_job()
            assert len(intake.spec.inputs) == 2
