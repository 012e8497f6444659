"""What lies in a home over the years: results that go, folders that somebody cleared, a database that broke."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from builders import OK, Story
from cli_kit import Run, command_line
from daemon import Daemon
from solvisor.store import Store
from waiting import wait_until

Make = Callable[..., Daemon]

DATA = Path(__file__).parents[1] / "data"
SHELL = """
[daemon]
max_jobs = 2
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""


@pytest.fixture
def run(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line on the home of the daemon."""
    return command_line(tmp_path, capfdbinary, monkeypatch)


def refused(daemon: Daemon) -> str:
    """What a start says that ends at once, with exit status 2."""
    command = [sys.executable, "-m", "solvisor_service.cli", "serve", "--home", str(daemon.home)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2, result.stderr
    return result.stderr


def test_of_what_was_removed_everybody_is_told_so(make_daemon: Make, run: Run) -> None:
    daemon = make_daemon(SHELL + '[retention]\nkeep_failed_for = "1s"\n')
    daemon.start()
    daemon.drop("good.sh", "echo fine > out.txt\n")
    daemon.drop("bad.sh", "echo bad\nexit 3\n")
    daemon.wait_event("job.succeeded")
    (removed,) = daemon.wait_event("result.removed")
    bad = removed["id"]
    assert bad.startswith("bad-")
    assert removed["bytes"] > 0
    assert removed["why"] == "older than 1 s"
    wait_until(lambda: not any(daemon.home.glob("work/*")), "nothing of it is left")
    assert [name.split("-")[0] for name in daemon.manifests()] == ["good"]
    told = "as [retention] says"
    assert told in run("show", bad).out
    assert told in run("explain", bad).out
    assert "bad.sh (files removed): exited with 3" in run("list").out
    for words in (["get", bad], ["retry", bad], ["logs", bad]):
        result = run(*words)
        assert result.status == (0 if words[0] == "logs" else 1)
        assert result.out == ""
        assert told in result.err or "submit them again" in result.err
    assert daemon.stop() == 0


def test_fault_35_results_that_somebody_cleared_away(make_daemon: Make, run: Run) -> None:
    """The folders come again, beneath a daemon and at its start; of a result that is gone everybody is told so."""
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("one.sh", "echo one > out.txt\n")
    one = daemon.wait_one()["id"]
    shutil.rmtree(daemon.home / "done")
    daemon.drop("two.sh", "echo two > out.txt\n")
    two = daemon.wait_one()["id"]
    assert two.startswith("two-")
    shown = run("show", one)
    assert f"done/{one}/ is gone: somebody removed it" in shown.out
    got = run("get", one)
    assert got.status == 1
    assert f"the results of {one} are gone from the home: somebody removed its folder" in got.err
    assert run("get", two).status == 0
    assert daemon.stop() == 0
    for folder in ("done", "failed", "rejected", "work", "run"):
        shutil.rmtree(daemon.home / folder)
    daemon.start()
    daemon.drop("three.sh", "true\n")
    assert daemon.wait_one()["id"].startswith("three-")
    listed = [line.split("-")[0] for line in run("list").out.splitlines()[1:]]
    assert listed == ["three", "two", "one"], "the rows know them all"
    assert daemon.stop() == 0


def test_fault_32_damage_that_is_met_while_it_runs_ends_the_daemon(make_daemon: Make, run: Run) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    assert daemon.stop() == 0
    database = daemon.home / "state" / "solvisor.db"
    with contextlib.closing(Store.open(database)) as store:
        story = Story()
        for n in range(600):
            story.accept(f"beam-{n:015d}", key=None)
            story.run(f"beam-{n:015d}", OK)
        jobs = list(story.world.jobs.values())
        store.record([replace(job, seq=n) for n, job in enumerate(jobs, 1)], [job.id for job in jobs])
    daemon.start()
    with database.open("r+b") as file:
        pages = database.stat().st_size // 4096
        file.seek(4096)  # all but the first, wherever the rows stand
        file.write(b"\xa5" * 4096 * (pages - 1))
    asked = run("list", "--all")
    assert asked.status != 0
    assert daemon.running.wait(30) == 2
    (last,) = daemon.events("daemon.failed")
    assert last["code"] == "store_damaged"
    assert "without one:    solvisor rebuild" in last["error"]
    harmed = database.read_bytes()
    said = refused(daemon)
    assert f"{database} is damaged" in said
    assert f"with a backup:  solvisor rebuild --home {daemon.home} --backup FILE" in said
    assert f"without one:    solvisor rebuild --home {daemon.home}\n" in said
    assert database.read_bytes() == harmed


def test_fault_32_a_home_whose_database_is_gone_is_made_anew(make_daemon: Make, run: Run) -> None:
    """Its results are told of as before, can be run again, and what ran is run; nothing has two manifests."""
    daemon = make_daemon(SHELL)
    daemon.start()
    (daemon.home / "inbox" / "sh").mkdir(exist_ok=True)
    daemon.drop("routed.sh", "echo routed > out.txt\n", folder="sh")
    daemon.drop("plain.sh", "echo plain > out.txt\n")
    folder = daemon.home / "case"
    folder.mkdir()
    (folder / "job.toml").write_text('solver = "sh"\ninputs = ["a.sh"]\nname = "of a folder"\n')
    (folder / "a.sh").write_text("echo folder > out.txt\n")
    folder.rename(daemon.home / "inbox" / "case")
    before = daemon.wait_for(3)
    daemon.drop("long.sh", f"until [ -e '{daemon.home}/gate' ]; do sleep 0.02; done\n")
    daemon.wait_event("attempt.started", 4)
    daemon.kill()
    database = daemon.home / "state" / "solvisor.db"
    for path in database.parent.glob("solvisor.db*"):
        path.unlink()
    assert "there are results" in refused(daemon)
    said = run("rebuild")
    assert said.status == 0, said.err
    assert "0 were known, 3 added" in said.out
    assert "usage      how busy it was is in no manifest" in said.out
    assert "orders     so it is with pauses, limits and priorities that people set" in said.out
    assert "1 without a row; the next start queues them again" in said.out
    (daemon.home / "gate").touch()
    daemon.start()
    after = daemon.wait_for(4)
    assert {job_id: after[job_id] for job_id in before} == before
    second = run("rebuild")
    assert second.status == 100, "never beneath a daemon"
    for job_id in before:
        again = run("retry", job_id)
        assert again.status == 0, again.err
    daemon.wait_for(7)
    assert {manifest["state"] for manifest in daemon.manifests().values()} == {"succeeded"}
    assert daemon.stop() == 0


def test_fault_32_a_copy_put_back_by_hand_runs_nothing_twice(make_daemon: Make, run: Run) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("one.sh", f"until [ -e '{daemon.home}/gate' ]; do sleep 0.02; done\n")
    daemon.wait_event("attempt.started")
    saved = daemon.home / "saved.db"
    assert run("backup", str(saved)).status == 0
    (daemon.home / "gate").touch()
    before = daemon.wait_for(1)
    assert daemon.stop() == 0
    database = daemon.home / "state" / "solvisor.db"
    shutil.copy(saved, database)
    daemon.start(ready=False)
    assert daemon.running.wait(30) == 2
    assert "is older than the results" in daemon.events("daemon.failed")[-1]["error"]
    assert "1 finished as they say" in run("rebuild", "--backup", str(saved)).out
    daemon.start()
    assert daemon.stop() == 0
    assert daemon.manifests() == before


def test_fault_67_a_daemon_brings_an_old_home_up_to_date_and_says_the_way_back(make_daemon: Make, run: Run) -> None:
    daemon = make_daemon(SHELL)
    state = daemon.home / "state"
    state.mkdir(mode=0o700)
    with contextlib.closing(sqlite3.connect(state / "solvisor.db")) as connection:
        connection.executescript((DATA / "db" / "schema-3.sql").read_text())
    daemon.start()
    (said,) = daemon.events("store.migrated")
    assert said["version"] == 3
    (backup,) = (state / "backup").iterdir()
    assert f"cp {backup} {state}/solvisor.db" in said["text"]
    assert len(run("list", "--all").out.splitlines()) == 26
    assert daemon.stop() == 0
    for path in state.glob("solvisor.db*"):
        path.unlink()
    shutil.copy(backup, state / "solvisor.db")
    with contextlib.closing(sqlite3.connect(state / "solvisor.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,), "the way back leads where it began"
        connection.execute("PRAGMA user_version = 99")
    assert "has schema version 99" in refused(daemon)


def test_what_a_daemon_began_to_remove_is_ended_by_the_next(make_daemon: Make, run: Run) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("one.sh", "true\n")
    one = daemon.wait_one()["id"]
    assert daemon.stop() == 0
    (daemon.home / "done" / one).rename(daemon.home / "work" / f"{one}.doomed")
    daemon.start()
    wait_until(lambda: not any(daemon.home.glob("work/*")), "nothing of it is left")
    assert "as [retention] says" in run("show", one).out
    assert daemon.stop() == 0


def test_fault_32_what_was_sent_and_acknowledged_is_kept_whatever_became_of_its_row(
    make_daemon: Make, run: Run, tmp_path: Path
) -> None:
    """Nobody knows any more what was acknowledged: jobs find those they wait for, and what is refused now is kept."""
    daemon = make_daemon(
        SHELL.replace("max_jobs = 2", "max_jobs = 1")
        + SHELL[SHELL.index("[solver.sh]") :].replace("sh]", "old]").replace("*.sh", "*.old")
    )
    daemon.start()
    for name in ("long.sh", "zfirst.sh", "after.sh", "gone.old"):
        (tmp_path / name).write_text("sleep 600\n" if name == "long.sh" else "echo fine > out.txt\n")
    assert run("submit", str(tmp_path / "long.sh")).status == 0
    first = run("submit", str(tmp_path / "zfirst.sh")).out.split()[0]
    assert run("submit", "--after", first, str(tmp_path / "after.sh")).status == 0
    assert run("submit", str(tmp_path / "gone.old")).status == 0
    daemon.kill()
    (daemon.home / "solvisor.toml").write_text(SHELL)
    for path in (daemon.home / "state").glob("solvisor.db*"):
        path.unlink()
    (next((daemon.home / "work").glob("long-*")) / "input" / "long.sh").write_text("true\n")
    assert run("rebuild").status == 0
    daemon.start()
    wait_until(lambda: len(daemon.manifests()) == 4, "each has its manifest")
    states = {manifest["name"]: (manifest["state"], manifest["code"]) for manifest in daemon.manifests().values()}
    assert states["zfirst.sh"] == states["after.sh"] == ("succeeded", None)
    assert states["gone.old"] == ("rejected", "no_solver")
    (kept,) = (daemon.home / "rejected").glob("gone-*")
    assert (kept / "input" / "gone.old").exists()
    assert daemon.stop() == 0


def test_fault_32_a_copy_of_the_database_put_back_is_refused_also_if_all_in_it_is_finished(
    make_daemon: Make, run: Run, tmp_path: Path
) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("early.sh", "true\n")
    daemon.wait_one()
    backup = tmp_path / "saved.db"
    wait_until(lambda: run("backup", str(backup), "--force").status == 0, "a copy")
    daemon.drop("late.sh", "true\n")
    wait_until(lambda: len(daemon.manifests()) == 2, "both are done")
    (late,) = (job_id for job_id in daemon.manifests() if job_id.startswith("late-"))
    assert daemon.stop() == 0
    for path in (daemon.home / "state").glob("solvisor.db*"):
        path.unlink()
    shutil.copy(backup, daemon.home / "state" / "solvisor.db")
    assert f"it is older than the results: done/{late} is not finished in it, or not in it" in refused(daemon)
    assert run("rebuild").status == 0
    daemon.start()
    assert late in run("list").out
    assert daemon.stop() == 0
