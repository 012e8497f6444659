"""The home: folders, checks, lock, identity, ids."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvisor.errors import AlreadyRunning, HomeError
from solvisor.home import Home, IdMaker, filesystem_type, home_id, lock

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts, other users")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.prepare()
    return home


# --- folders and checks --------------------------------------------------------------------------------------------


def test_a_home_is_at_an_absolute_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Solvers are told of folders in it, and work elsewhere."""
    monkeypatch.chdir(tmp_path)
    assert Home.at(Path("home"), Path("in")) == Home(tmp_path / "home", tmp_path / "in")


def test_all_folders_are_made_with_their_modes(home: Home) -> None:
    names = {"inbox", "work", "done", "failed", "rejected", "run", "state"}
    assert {path.name for path in home.root.iterdir()} == names
    modes = {folder: stat.S_IMODE(folder.stat().st_mode) for folder in (home.work, home.run, home.state, home.log_dir)}
    assert modes == {home.work: 0o750, home.run: 0o750, home.state: 0o700, home.log_dir: 0o700}
    home.prepare()
    assert list(home.work.iterdir()) == [], "the probes are gone"
    assert list(home.inbox.iterdir()) == []


def test_a_private_folder_that_is_open_is_closed_again(home: Home) -> None:
    home.state.chmod(0o755)
    home.prepare()
    assert stat.S_IMODE(home.state.stat().st_mode) == 0o700


def mounts(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n" + "".join(f"{x}\n" for x in lines))
    return path


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs"])
def test_fault_34_a_home_on_a_network_file_system_is_refused(tmp_path: Path, kind: str) -> None:
    where = str(tmp_path / "my share").replace(" ", "\\040")
    table = mounts(tmp_path, f"30 22 0:40 / {where} rw - {kind} server:/x rw")
    home = Home.at(tmp_path / "my share" / "home")
    with pytest.raises(HomeError, match=rf"network file system \({kind}\).*local disk"):
        home.prepare(table)


def test_a_local_disk_mounted_over_a_share_counts(tmp_path: Path) -> None:
    table = mounts(tmp_path, f"30 22 0:40 / {tmp_path} rw - nfs4 s:/x rw", f"31 22 8:2 / {tmp_path} rw - xfs /dev/b rw")
    assert filesystem_type(tmp_path / "home", table) == "xfs"
    assert filesystem_type(Path("/"), table) == "ext4"


def test_a_lease_is_trusted_only_on_a_local_disk(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    assert home.inbox_sees_all_writers(mounts(tmp_path))
    for kind in ("cifs", "nfs", "fuse.bindfs"):
        assert not home.inbox_sees_all_writers(mounts(tmp_path, f"30 22 0:40 / {home.inbox} rw - {kind} s:/x rw"))
    assert not home.inbox_sees_all_writers(tmp_path / "no list at all")


def test_fault_85_an_inbox_that_anybody_could_replace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "inbox").mkdir()
    (tmp_path / "open").chmod(0o777)
    home = Home.at(tmp_path / "home", tmp_path / "open" / "inbox")
    with pytest.raises(HomeError, match="chmod o-w"):
        home.prepare()
    (tmp_path / "open").chmod(0o1777)
    home.prepare()


@pytest.mark.parametrize("what", ["home", "inbox"])
def test_fault_85_a_home_or_inbox_below_a_folder_that_anybody_could_replace_is_refused(
    tmp_path: Path, what: str
) -> None:
    (tmp_path / "open" / "between").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    below = tmp_path / "open" / "between" / what
    below.mkdir()
    home = Home.at(below) if what == "home" else Home.at(tmp_path / "home", below)
    with pytest.raises(HomeError, match=f"could replace the {what}; run: chmod o-w {tmp_path / 'open'} "):
        home.prepare()
    assert not home.work.exists(), "nothing was made there"
    (tmp_path / "open").chmod(0o1777)
    home.prepare()


def test_an_inbox_elsewhere_must_be_there(tmp_path: Path) -> None:
    """Where a share should be mounted, a folder made by us would hide that it is not."""
    home = Home.at(tmp_path / "home", tmp_path / "share" / "inbox")
    with pytest.raises(HomeError, match="mount it or make it"):
        home.prepare()


@pytest.fixture
def bound(home: Home, tmp_path: Path) -> Iterator[Path]:
    """``done/`` as a bind mount: the same device number, and still no rename goes through."""
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(["mount", "--bind", tmp_path / "elsewhere", home.done], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"nothing can be mounted: {done.stderr.strip()}")
    yield home.done
    subprocess.run(["umount", home.done], check=True)


def test_fault_31_folders_that_cannot_rename_into_each_other_are_refused(home: Home, bound: Path) -> None:
    assert bound.stat().st_dev == home.work.stat().st_dev
    with pytest.raises(HomeError, match=rf"{bound}.*different file systems"):
        home.prepare()
    assert list(home.work.iterdir()) == [], "the probe does not stay"


@needs_root
@pytest.mark.parametrize("what", ["root", "done"])
def test_a_home_that_cannot_be_written_is_refused(what: str) -> None:
    script = """
import os, sys, tempfile
from pathlib import Path
from solvisor.errors import HomeError
from solvisor.home import Home
os.chmod(sys.argv[1], 0o755)
home = Home.at(Path(sys.argv[1]) / "home")
if sys.argv[2] == "done":
    home.prepare()
    for path in (home.root, *home.root.rglob("*")):
        os.chown(path, 65534, 65534)
    os.chown(home.done, 0, 0)
os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    home.prepare()
except HomeError as error:
    print(error)
"""
    folder = subprocess.check_output(["mktemp", "-d"], text=True).strip()
    try:
        out = subprocess.check_output([sys.executable, "-c", script, folder, what], text=True)
    finally:
        shutil.rmtree(folder)
    assert "Permission denied" in out
    assert "choose another home" in out


# --- lock ----------------------------------------------------------------------------------------------------------


def _holder(script: str, home: Home) -> subprocess.Popen[bytes]:
    """A process that has taken the home and waits for the end of its stdin."""
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(home.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_second_holder_is_told_who_the_first_is(home: Home) -> None:
    script = """
    import sys
    from pathlib import Path
    from solvisor.home import Home, lock
    held = lock(Home.at(Path(sys.argv[1])))
    print("held", flush=True)
    sys.stdin.read()
    """
    child = _holder(script, home)
    for _ in range(2):
        with pytest.raises(AlreadyRunning, match=rf"{home.root} is held by pid {child.pid} \(solvisor serve, since 2"):
            lock(home)
    child.kill()
    child.communicate()
    lock(home).close()
    lock(home).close()


def test_a_holder_that_has_not_signed_yet_is_reported_all_the_same(home: Home) -> None:
    script = """
    import sys
    from pathlib import Path
    from solvisor.home import Home, lock
    held = lock(Home.at(Path(sys.argv[1])))
    print("held", flush=True)
    sys.stdin.read()
    """
    child = _holder(script, home)
    os.truncate(home.state / "lock", 0)
    with pytest.raises(AlreadyRunning, match="another process"):
        lock(home)
    child.kill()
    child.communicate()


def test_one_process_holds_a_home_once(home: Home) -> None:
    held = lock(home)
    for _ in range(2):
        with pytest.raises(AlreadyRunning, match="this very process"):
            lock(home)
    held.close()
    lock(home).close()


def test_a_child_between_fork_and_exec_does_not_hold_the_home_of_a_dead_daemon(home: Home) -> None:
    script = """
    import os, sys
    from pathlib import Path
    from solvisor.home import Home, lock
    held = lock(Home.at(Path(sys.argv[1])))
    if os.fork():
        print("held", flush=True)
    sys.stdin.read()
    """
    daemon = _holder(script, home)
    daemon.kill()
    daemon.wait()
    lock(home).close()
    daemon.communicate()


# --- identity ------------------------------------------------------------------------------------------------------


def test_the_identity_stays_as_long_as_the_home_does(home: Home) -> None:
    first = home_id(home)
    assert len(bytes.fromhex(first)) == 16
    assert home_id(home) == first


@pytest.mark.parametrize("how", ["copied", "foreign host", "damaged"])
def test_a_home_that_is_another_one_draws_a_new_identity(
    home: Home, how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = home_id(home)
    if how == "copied":
        shutil.copytree(home.root, tmp_path / "copy")
        home = Home.at(tmp_path / "copy")
    elif how == "foreign host":
        monkeypatch.setattr("solvisor.home._machine", lambda: "another machine")
    else:
        (home.state / "home-id").write_bytes(b"\xff not TOML [")
    second = home_id(home)
    assert second != first
    assert home_id(home) == second


# --- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("beam.inp", "beam"),
        ("Beam, Fine Mesh.inp", "beam-fine-mesh"),
        ("Träger.inp", "trager"),
        ("日本.inp", "job"),
        ("", "job"),
        (".inp", "inp"),
        ("../../etc/passwd", "passwd"),
        ("\x1b[31m\udce4.inp", "31m"),
        ("x" * 300 + ".inp", "x" * 32),
        ("a" * 31 + " b.inp", "a" * 31),
        ("case", "case"),
    ],
)
def test_a_person_recognises_the_id(name: str, slug: str) -> None:
    job_id = IdMaker().new_id(name, 0)
    assert job_id[:-16] == slug
    assert job_id[-16] == "-"


@given(st.text())
def test_no_name_makes_anything_but_a_plain_id(name: str) -> None:
    job_id = IdMaker().new_id(name, 1_700_000_000_000_000)
    assert set(job_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(job_id) <= 48
    assert not job_id.startswith("-")


def test_time_in_ids_never_goes_back(tmp_path: Path) -> None:
    now = 1_700_000_000_000_000
    maker = IdMaker()
    ids = [maker.new_id("a", now + offset) for offset in (0, 5_000, -3_600_000_000, 6_000)]
    times = [job_id[-15:-6] for job_id in ids]
    assert times == sorted(times)
    assert times[1] == times[2] < times[3]
    again = IdMaker(ids[-1])
    assert again.new_id("a", 0)[-15:-6] == times[3], "the clock was set back while the daemon was down"
    assert len(set(ids)) == 4
