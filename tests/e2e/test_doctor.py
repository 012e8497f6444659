"""``solvisor doctor``: what it finds, what it says to do, and that it disturbs nobody."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from daemon import Daemon
from disk_kit import tmpfs
from fake_daemon import fake_daemon, status
from solvisor_service.doctor import CHECKS, Check, Finding, Level, Subject, examine, running
from solvisor_service.doctor.finding import ok
from solvisor_service.holder import holder_of

Make = Callable[..., Daemon]
Found = dict[str, list[Finding]]

SHELL = """
[inbox]
settle = "0.1s"
[solver.sh]
accept = ["*.sh"]
command = ["/bin/sh", "{input}"]
"""
NOBODY = 65534


def run(home: Path, *options: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "solvisor_service.cli", "doctor", "--home", str(home), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env={**os.environ, **(env or {})})


def looked(home: Path, *names: str, config: Path | None = None, mounts: Path | None = None) -> Found:
    """The findings of some checks, by the name of the check."""
    subject = Subject(home, config or home / "solvisor.toml", *([mounts] if mounts else []))
    found: Found = {name: [] for name in names}
    for name, finding in examine(subject, [check for check in CHECKS if check.name in names]):
        found[name].append(finding)
    return found


def only(found: Found) -> Finding:
    """The one finding of the one check."""
    ((finding,),) = found.values()
    return finding


def write_home(folder: Path, config: str = SHELL) -> Path:
    folder.mkdir()
    (folder / "solvisor.toml").write_text(textwrap.dedent(config))
    return folder


@pytest.fixture
def lived_in(make_daemon: Make) -> Path:
    """The home of a daemon that has run a job and was stopped."""
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.drop("a.sh", "true\n")
    daemon.wait_one()
    assert daemon.stop() == 0
    return daemon.home


_AS_NOBODY = """
import contextlib, io, os, sys
from solvisor_service.cli import main
with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):
    main(sys.argv[1:])  # what is imported is imported: that user may not reach this Python
os.setgroups([]); os.setgid(65534); os.setuid(65534)
sys.exit(main(sys.argv[1:]))
"""


def as_nobody(home: Path) -> list[dict[str, str]]:
    """What the doctor finds as a user who has nothing to do with the home."""
    if os.geteuid() != 0:
        pytest.skip("only root can look as another user")
    command = [sys.executable, "-c", _AS_NOBODY, "doctor", "--json", "--home", str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    findings: list[dict[str, str]] = json.loads(done.stdout)["findings"]
    return findings


@pytest.fixture
def open_path(tmp_path: Path) -> Iterator[Path]:
    """A folder that other users can reach."""
    closed = [folder for folder in (tmp_path, *tmp_path.parents) if not folder.stat().st_mode & 0o001]
    modes = [(folder, folder.stat().st_mode) for folder in closed]
    for folder, mode in modes:
        folder.chmod(mode | 0o055)
    yield tmp_path
    for folder, mode in modes:
        folder.chmod(mode)


# --- a home that is well ----------------------------------------------------------------------------------------------


def test_a_home_that_is_well_has_no_fault_and_is_left_as_it_was(lived_in: Path) -> None:
    before = {path: path.lstat().st_size for path in lived_in.rglob("*")}
    done = run(lived_in, "--json")
    assert done.returncode == 0, done.stdout
    findings = json.loads(done.stdout)["findings"]
    assert {tuple(finding) for finding in findings} == {("check", "level", "found", "mend")}
    assert list(dict.fromkeys(finding["check"] for finding in findings)) == [check.name for check in CHECKS]
    assert [finding for finding in findings if finding["level"] == "fault"] == []
    levels = {finding["check"]: finding["level"] for finding in findings}
    assert [levels[name] for name in ("program", "home", "inbox", "database", "configuration", "solvers")] == ["ok"] * 6
    text = {finding["check"]: finding["found"] for finding in findings}
    assert text["database"].startswith("whole: 1 jobs, 0 of them not finished")
    assert text["home"].endswith("files move between its folders")
    assert {path: path.lstat().st_size for path in lived_in.rglob("*")} == before


def test_every_finding_that_is_not_well_says_how_to_mend_it(tmp_path: Path) -> None:
    subject = Subject(tmp_path / "none", tmp_path / "none" / "solvisor.toml")
    for name, finding in examine(subject):
        assert finding.found
        assert finding.mend or finding.level in (Level.OK, Level.NOTE), f"{name}: {finding.found}"


def test_on_a_terminal_of_80_columns_nothing_is_wider(lived_in: Path) -> None:
    for no_color in ("", "1"):
        environ = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
        command = ["-m", "solvisor_service.cli", "doctor", "--home", str(lived_in)]
        child = pexpect.spawn(sys.executable, command, env=environ, dimensions=(60, 80), encoding="utf-8", timeout=60)
        said = child.read()
        child.close()
        assert child.exitstatus == 0
        assert ("\x1b[3" in said) == (not no_color), "colours, unless they are not wanted"
        assert max(map(len, strip(said).splitlines())) <= 80


def strip(text: str) -> str:
    """Without what moves the cursor or colours."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


# --- the home ---------------------------------------------------------------------------------------------------------


def test_without_a_home_it_says_how_to_make_one(tmp_path: Path) -> None:
    done = run(tmp_path / "none")
    assert done.returncode == 1
    assert f"there is no {tmp_path}/none" in done.stdout
    assert f"> run: solvisor init --home {tmp_path}/none" in done.stdout
    assert not (tmp_path / "none").exists()


def test_a_fresh_home_is_well_and_gets_no_folders_by_being_looked_at(tmp_path: Path) -> None:
    home = write_home(tmp_path / "home")
    assert run(home).returncode == 0
    assert [path.name for path in home.iterdir()] == ["solvisor.toml"]


def test_a_disk_below_the_floor_is_a_fault(tmp_path: Path) -> None:
    home = write_home(tmp_path / "home", SHELL + '[daemon]\ndisk_reserve = "900TiB"\n')
    finding = looked(home, "disk")["disk"][0]
    assert finding.level is Level.FAULT
    assert finding.found.startswith("no job starts: ")
    assert finding.found.endswith(" free on the disk, 900 TiB is kept free")
    assert finding.mend == "remove old results, or set [daemon] disk_reserve"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_fault_26_on_a_full_disk_the_doctor_says_what_cannot_be_measured(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=1m") as disk:
        home = write_home(disk.path / "home")
        disk.fill()
        full, measured = looked(home, "disk")["disk"]
        assert (full.level, measured.level) == (Level.FAULT, Level.NOTE)
        assert full.found.endswith("the disk is full")
        assert measured.found == "how long it takes to make a file durable cannot be measured while the disk is full"


def test_a_network_file_system_is_a_fault(lived_in: Path, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {lived_in} rw - nfs4 server:/home rw\n")
    finding = only(looked(lived_in, "home", mounts=mounts))
    assert finding.level is Level.FAULT
    assert "lies on a network file system (nfs4)" in finding.found
    assert "local disk" in finding.mend


def test_an_inbox_on_a_share_is_only_worth_a_note(lived_in: Path, tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / {lived_in}/inbox rw - cifs //server/x rw\n")
    found = looked(lived_in, "home", "inbox", mounts=mounts)
    assert [finding.level for finding in found["home"]] == [Level.OK]
    assert [finding.level for finding in found["inbox"]] == [Level.NOTE]
    assert "on cifs, where a file counts as complete only after 5 s" in found["inbox"][0].found


def test_an_inbox_elsewhere_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    home = write_home(tmp_path / "home", f'[inbox]\npath = "{tmp_path}/share/inbox"\n')
    finding = only(looked(home, "inbox"))
    assert (finding.level, finding.found) == (
        Level.FAULT,
        f"there is no {tmp_path}/share/inbox, which [inbox] path names",
    )


def test_an_inbox_where_everybody_may_remove_what_others_dropped(lived_in: Path) -> None:
    (lived_in / "inbox").chmod(0o777)
    found = looked(lived_in, "inbox")["inbox"]
    assert [finding.level for finding in found] == [Level.WARNING, Level.OK]
    assert found[0].mend == f"chmod +t {lived_in}/inbox"
    (lived_in / "inbox").chmod(0o1777)
    assert "everybody may drop files" in only(looked(lived_in, "inbox")).found


def test_a_folder_open_to_too_many_is_told_and_not_changed(lived_in: Path) -> None:
    (lived_in / "state").chmod(0o755)
    finding = only(looked(lived_in, "home"))
    assert (finding.level, finding.mend) == (Level.WARNING, f"chmod 700 {lived_in}/state")
    assert (lived_in / "state").stat().st_mode & 0o777 == 0o755


def test_a_folder_of_somebody_else_is_a_fault(lived_in: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    os.chown(lived_in / "done", NOBODY, NOBODY)
    finding = only(looked(lived_in, "home"))
    assert finding.level is Level.FAULT
    assert finding.found.startswith(f"{lived_in}/done belongs to ")
    assert finding.mend == f"chown -R root {lived_in}/done"


def test_folders_that_files_cannot_be_moved_between(lived_in: Path, tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", lived_in / "done"], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        finding = only(looked(lived_in, "home"))
    finally:
        subprocess.run(["umount", lived_in / "done"], check=True)
    assert finding.level is Level.FAULT
    assert "different file systems" in finding.found
    assert "keep all folders of a home on one file system" in finding.mend


def test_fault_32_the_doctor_finds_a_damaged_database_and_says_how_to_go_on(lived_in: Path) -> None:
    database = lived_in / "state" / "solvisor.db"
    assert only(looked(lived_in, "database")).level is Level.OK
    data = bytearray(database.read_bytes())
    data[4096:12288] = b"\xff" * 8192
    database.write_bytes(data)
    finding = only(looked(lived_in, "database"))
    assert finding.level is Level.FAULT
    assert "is damaged" in finding.found
    assert "solvisor rebuild" in finding.mend


def test_fault_32_a_deep_look_reads_every_index_and_compares_rows_with_results(lived_in: Path) -> None:
    def deep() -> list[Finding]:
        subject = Subject(lived_in, lived_in / "solvisor.toml", deep=True)
        return [finding for _, finding in examine(subject, [check for check in CHECKS if check.name == "database"])]

    (well,) = deep()
    assert well.level is Level.OK
    assert "every index too" in well.found
    (results,) = (p for p in (lived_in / "done").iterdir())
    results.rename(results.with_name("stranger-0123456789abcde"))
    found = deep()
    assert [finding.level for finding in found[1:]] == [Level.WARNING, Level.NOTE]
    assert "such as stranger-0123456789abcde" in found[1].found
    assert "solvisor rebuild" in found[1].mend
    assert results.name in found[2].found
    database = lived_in / "state" / "solvisor.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        other = "UPDATE sqlite_schema SET sql = replace(sql, '(finished_us)', '(submitted_us)') WHERE name = ?"
        connection.execute(other, ("jobs_finished",))
        connection.commit()
    assert only(looked(lived_in, "database")).level is Level.OK
    (damaged,) = deep()
    assert damaged.level is Level.FAULT
    assert "jobs_finished" in damaged.found
    database.unlink()
    (gone,) = deep()
    assert gone.level is Level.FAULT
    assert "there are results" in gone.found


def test_another_user_learns_what_is_closed_and_no_fault(lived_in: Path, open_path: Path) -> None:
    lived_in.chmod(0o755)
    findings = as_nobody(lived_in)
    assert [finding for finding in findings if finding["level"] == "fault"] == []
    found = {finding["check"]: finding for finding in findings}
    assert found["database"]["found"] == f"{lived_in}/state/solvisor.db is closed to this user"
    assert found["daemon"]["level"] == "note"
    assert found["daemon"]["mend"] == "look as the daemon's user, or as root"
    assert "only root may drop files" in found["inbox"]["found"]
    lived_in.chmod(0o700)
    findings = as_nobody(lived_in)
    assert [finding for finding in findings if finding["level"] == "fault"] == []
    found = {finding["check"]: finding for finding in findings}
    assert found["home"]["found"] == f"{lived_in} is closed to nobody"


# --- the configuration ------------------------------------------------------------------------------------------------


def test_every_fault_of_the_configuration_is_a_finding(tmp_path: Path) -> None:
    home = write_home(
        tmp_path / "home", '[daemon]\nmax_jbos = 3\n[solver.x]\ncommand = ["/bin/sh"]\ntimeout = "5 apples"\n'
    )
    found = looked(home, "configuration", "solvers")
    assert [finding.level for finding in found["configuration"]] == [Level.FAULT, Level.FAULT]
    assert 'did you mean "max_jobs"?' in found["configuration"][0].found
    assert "5 apples" in found["configuration"][1].found
    assert found["configuration"][0].mend == f"correct {home}/solvisor.toml"
    assert run(home).returncode == 1


def test_solvers_that_fight_over_a_pattern_are_a_warning(tmp_path: Path) -> None:
    table = '[solver.{0}]\naccept = ["*.x"]\ncommand = ["/bin/sh"]\n'
    found = looked(write_home(tmp_path / "home", table.format("a") + table.format("b")), "configuration")
    assert [finding.level for finding in found["configuration"]] == [Level.WARNING, Level.OK]


def test_a_missing_program_and_a_script_that_fails_are_faults(tmp_path: Path) -> None:
    config = """
        [solver.good]
        command = ["sh"]
        [solver.gone]
        command = ["solvisor-no-such-program"]
        [solver.scripted]
        command = ["only-by-script"]
        env_script = "good.sh"
        [solver.broken]
        command = ["sh"]
        env_script = "bad.sh"
    """
    home = write_home(tmp_path / "home", config)
    program = home / "bin" / "only-by-script"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (home / "good.sh").write_text(f"PATH={program.parent}:$PATH\n")
    (home / "bad.sh").write_text("echo no licence server >&2; false\n")
    _, good, gone, scripted, broken = looked(home, "solvers")["solvers"]
    assert (good.level, good.found.split(":")[0]) == (Level.OK, "good")
    assert gone.level is Level.FAULT
    assert 'the program "solvisor-no-such-program" of solver gone is not on the PATH' in gone.found
    assert gone.mend == "install it, or set command to its full path"
    assert scripted == ok(f"scripted: {program}")
    assert (broken.level, "no licence server" in broken.found) == (Level.FAULT, True)


def test_beside_a_daemon_programs_are_looked_for_on_its_path(make_daemon: Make, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "only-for-the-daemon"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    daemon = make_daemon('[solver.x]\ncommand = ["only-for-the-daemon"]\n')
    daemon.start(env={"PATH": f"{program.parent}:{os.environ['PATH']}"})
    assert only(looked(daemon.home, "solvers")) == ok(f"x: {program}")
    assert daemon.stop() == 0


# --- the daemon -------------------------------------------------------------------------------------------------------


def test_a_daemon_is_named_and_not_disturbed(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    found = looked(daemon.home, "daemon", "database", "limits", "home", "socket")
    assert found["socket"][-1].level is Level.OK
    assert f"{daemon.home}/run/solvisor.sock answers: healthy" in found["socket"][-1].found
    assert f"pid {daemon.running.pid} holds the home since 2" in found["daemon"][0].found
    assert "opens beside the daemon" in found["database"][0].found
    assert "the daemon may have" in found["limits"][0].found
    assert found["home"][0].level is Level.OK
    done = run(daemon.home)
    assert done.returncode == 0, done.stdout
    daemon.drop("a.sh", "true\n")
    assert daemon.wait_one()["state"] == "succeeded"
    told = {event["event"] for event in daemon.events() if event["level"] in ("warning", "error", "critical")}
    assert told <= {"loop.late"}, "all is well, but for a machine that may be busy"
    assert daemon.stop() == 0


def test_a_dead_daemon_is_not_taken_for_a_live_one(make_daemon: Make) -> None:
    daemon = make_daemon(SHELL)
    daemon.start()
    assert holder_of(daemon.home) is not None
    daemon.kill()
    assert (daemon.home / "state" / "lock").read_text(), "its signature stays"
    assert holder_of(daemon.home) is None
    found = looked(daemon.home, "daemon", "socket", "database")
    assert (found["daemon"][0].level, found["daemon"][0].found) == (Level.NOTE, "none runs on this home")
    assert found["database"][0].level is Level.OK


_WATCHED = """
import json, sys
from pathlib import Path
from solvisor_service.doctor import Subject, examine

seen = []

def watch(event, arguments):
    if event in ("fcntl.flock", "fcntl.lockf"):
        seen.append(event)
    elif event == "open" and str(arguments[0]).endswith("state/lock"):
        seen.append(arguments[1])

sys.addaudithook(watch)
home = Path(sys.argv[1])
findings = examine(Subject(home, home / "solvisor.toml"))
print(json.dumps([seen, len(findings)]))
"""


def test_the_lock_is_read_and_never_tried(lived_in: Path) -> None:
    """A daemon that starts at that very moment would find its home held, and end with 100."""
    command = [sys.executable, "-c", _WATCHED, str(lived_in)]
    seen, findings = json.loads(subprocess.check_output(command, text=True, timeout=100))
    assert findings >= len(CHECKS)
    assert set(seen) == {"r"}


def test_a_home_whose_socket_has_a_long_path_is_worth_a_note(tmp_path: Path) -> None:
    home = write_home(tmp_path / ("long" * 25))
    found = looked(home, "socket")["socket"]
    assert found[0].level is Level.NOTE
    assert "more than the 107 that fit into the address of a socket" in found[0].found


def test_a_daemon_that_hangs_is_told_from_one_that_is_gone(make_daemon: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "ANSWER_SECONDS", 0.5)
    daemon = make_daemon(SHELL)
    daemon.start()
    daemon.signal(signal.SIGSTOP)
    finding = only(looked(daemon.home, "socket"))
    assert finding.level is Level.WARNING
    assert "does not answer within 0.5 s" in finding.found
    daemon.signal(signal.SIGCONT)
    assert daemon.stop() == 0


def test_the_faults_of_a_configuration_are_told_once(tmp_path: Path) -> None:
    home = write_home(tmp_path / "home", "[daemon]\nmax_jbos = 3\n")
    with fake_daemon(home) as fake:
        told = "solvisor.toml cannot be used, so the one of before holds; a restart would fail:\nline 2: max_jbos"
        fake.answers["GET", "/v1/status"] = status(health="degraded", problems=(told,))
        found = looked(home, "configuration", "socket")
    assert [finding.level for finding in found["configuration"]] == [Level.FAULT]
    assert found["socket"][0] == Finding(Level.WARNING, told.partition(":\n")[0], "see: solvisor status")
    assert "max_jbos" not in "".join(finding.found for finding in found["socket"])


def test_a_socket_that_a_dead_daemon_left(lived_in: Path) -> None:
    (lived_in / "run" / "solvisor.sock").touch()
    finding = only(looked(lived_in, "socket"))
    assert (finding.level, "the next start replaces it" in finding.found) == (Level.NOTE, True)


# --- the unit ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A systemd that says what a test wants it to say."""
    program = tmp_path / "fake" / "systemctl"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    def says(scope: str = "system", **facts: str) -> None:
        lines = "".join(f"{key}={value}\n" for key, value in facts.items())
        (tmp_path / "fake" / "facts").write_text(lines)
        other = "echo LoadState=not-found"
        program.write_text(f'#!/bin/sh\ncase "$1" in --{scope}) cat {tmp_path}/fake/facts;; *) {other};; esac\n')
        program.chmod(0o755)

    return says


def test_a_unit_is_read_as_systemd_tells_it(tmp_path: Path, systemctl: Callable[..., None]) -> None:
    home = write_home(tmp_path / "home")
    starts = f"{{ path={sys.executable} ; argv[]=solvisor serve --home {home} ; }}"
    systemctl(LoadState="loaded", ActiveState="active", UnitFileState="enabled", ExecStart=starts)
    assert only(looked(home, "unit")) == ok("solvisor.service of the system: active, enabled")
    systemctl(LoadState="loaded", ActiveState="failed", UnitFileState="enabled", ExecStart=starts)
    finding = only(looked(home, "unit"))
    assert (finding.level, "journalctl --system -u solvisor.service" in finding.mend) == (Level.WARNING, True)
    systemctl(LoadState="loaded", ActiveState="active", UnitFileState="disabled", ExecStart=starts)
    assert only(looked(home, "unit")).mend == "systemctl --system enable solvisor.service"
    gone = starts.replace(sys.executable, "/opt/gone/solvisor")
    systemctl(LoadState="loaded", ActiveState="active", UnitFileState="enabled", ExecStart=gone)
    assert "starts /opt/gone/solvisor, which cannot be executed" in looked(home, "unit")["unit"][0].found
    systemctl(LoadState="not-found")
    assert only(looked(home, "unit")).mend == "solvisor service install --user"


def test_a_unit_of_a_user_who_does_not_linger_is_a_warning(tmp_path: Path, systemctl: Callable[..., None]) -> None:
    home = write_home(tmp_path / "home")
    starts = f"{{ path={sys.executable} ; argv[]=solvisor serve --home {home} ; }}"
    systemctl("user", LoadState="loaded", ActiveState="active", UnitFileState="enabled", ExecStart=starts)
    found = looked(home, "unit")["unit"]
    assert found[0] == ok("solvisor.service of the user: active, enabled")
    lingers = Path("/var/lib/systemd/linger", subprocess.check_output(["id", "-un"], text=True).strip()).exists()
    assert [finding.level for finding in found[1:]] == ([] if lingers else [Level.WARNING])


# --- the doctor itself ------------------------------------------------------------------------------------------------


def test_a_check_that_hangs_and_one_that_breaks_are_one_line_each(tmp_path: Path) -> None:
    never = threading.Event()

    def hangs(_: Subject) -> Iterator[Finding]:
        never.wait()
        yield ok("never")

    def breaks(_: Subject) -> Iterator[Finding]:
        yield ok("so far")
        raise ZeroDivisionError("a defect")

    checks = [Check("hangs", hangs, 0.2), Check("breaks", breaks), Check("well", lambda _: iter([ok("well")]))]
    try:
        found = examine(Subject(tmp_path, tmp_path / "x.toml"), checks)
    finally:
        never.set()
    assert [(name, finding.level) for name, finding in found] == [
        ("hangs", Level.WARNING),
        ("breaks", Level.OK),
        ("breaks", Level.WARNING),
        ("well", Level.OK),
    ]
    assert "looking took longer than 0.2 s" in found[0][1].found
    assert "ZeroDivisionError: a defect" in found[2][1].found


def test_a_home_of_an_odd_name_cannot_touch_the_terminal(tmp_path: Path) -> None:
    done = run(tmp_path / "a\x1b[31m\u202eb")
    assert done.returncode == 1
    assert not [char for char in done.stdout if not char.isprintable() and char != "\n"]
