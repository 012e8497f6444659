"""An inbox that somebody abuses: links, devices, swaps under our eyes, archives. Nothing but what was read is run."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import tempfile
import threading
import zipfile
from pathlib import Path
from typing import IO

import pytest

from inbox_kit import Running, a_config, running
from solvisor.model import Intake
from solvisor.spool import files, ignore_lease_breaks
from waiting import eventually

if sys.platform != "linux":
    pytest.skip("devices, FIFOs and /proc", allow_module_level=True)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: devices, files of another owner")
NOBODY = 65534
SECRET = b"the secret of somebody else\n"

# Puts one thing after another under two names, a file and a folder, as fast as it can, until its stdin is closed.
SWAPPER = """
import itertools, os, select, shutil, sys
inbox, aside, secret = sys.argv[1:4]
os.chdir(aside)

def file(n):
    with open("x", "x") as out:
        out.write(f"mine {n}\\n" * 50)

def lay(what, n):
    if what == "file":
        file(n)
    elif what == "symbolic link":
        os.symlink(secret, "x")
    elif what == "hard link":
        os.link(secret, "x")
    elif what == "fifo":
        os.mkfifo("x")

def put(place):
    os.rename("x", os.path.join(inbox, place))
    if os.path.lexists("x"):  # both were names of one file: then neither goes
        os.unlink("x")

print("on", flush=True)
for n in itertools.count():
    what = ("file", "symbolic link", "file", "hard link", "file", "fifo")[n % 6]
    lay(what, n)
    if n % 3 == 2:
        os.makedirs("case", exist_ok=True)
        os.rename("x", "case/a.inp")
        try:
            os.rename("case", os.path.join(inbox, "case"))
        except OSError:
            os.rename("case/a.inp", "x")
    if os.path.lexists("x"):
        put("a.inp")
    lay(what, n)
    try:
        put("case/a.inp")
    except OSError:
        os.unlink("x")
    if n % 10 == 0 and select.select([sys.stdin], [], [], 0)[0]:
        break
"""


def content(run: Running, intake: Intake) -> dict[str, bytes]:
    """What was claimed, by path, as it lies there now."""
    root = run.home.work / intake.id / "input"
    return {str(p.relative_to(root.parent)): p.read_bytes() for p in root.rglob("*") if stat.S_ISREG(p.lstat().st_mode)}


def check_claimed(run: Running) -> None:
    """Every file is what was hashed, and none holds the secret."""
    for intake in run.intakes:
        found = content(run, intake)
        hashed = {fact.path: fact.sha256 for fact in intake.spec.inputs if fact.sha256}
        assert {path: hashlib.sha256(data).hexdigest() for path, data in found.items()} == hashed
        for path, data in found.items():
            assert SECRET not in data or intake.refusal, path


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return path


async def test_fault_73_what_is_swapped_all_the_time_is_run_as_it_was_read(tmp_path: Path, secret: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    async with running(tmp_path, a_config(settle="20ms", rescan="20ms", orphan_after="300ms")) as run:
        argv = [sys.executable, "-c", SWAPPER, str(run.folder), str(aside), str(secret)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as swapper:  # noqa: ASYNC220
            assert swapper.stdin is not None
            assert swapper.stdout is not None
            assert swapper.stdout.readline() == b"on\n"
            await eventually(lambda: len(run.intakes) >= 60, "claims in the midst of it", 60)
            swapper.stdin.write(b"enough")
            swapper.stdin.close()
            await eventually(lambda: swapper.poll() is not None, "the swapper ends")
        await run.wait_scans()
        assert run.jobs, "some of it were ordinary files"
        check_claimed(run)
    assert secret.read_bytes() == SECRET


@needs_root
@pytest.mark.parametrize("put_back", [True, False])
async def test_fault_73_another_file_put_into_a_folder_while_it_is_copied_is_not_taken(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, put_back: bool
) -> None:
    """The secret is there only between the two looks at the folder; the copy itself must see it."""
    real = files.copy_tree
    inbox = tmp_path / "home" / "inbox"
    swaps: list[int] = []

    def swapped(*args: object, **named: object) -> None:
        victim = inbox / "case" / "a.inp"
        if not swaps:
            victim.rename(tmp_path / "kept")
            os.link(secret, victim)
        try:
            real(*args, **named)  # type: ignore[arg-type]
        finally:
            if not swaps:
                swaps.append(1)
                if put_back:
                    (tmp_path / "kept").rename(victim)

    monkeypatch.setattr(files, "copy_tree", swapped)
    async with running(tmp_path, a_config(orphan_after="500ms")) as run:
        case = run.home.root / "case"
        case.mkdir()
        (case / "a.inp").write_text("mine")
        for path in (case, case / "a.inp"):
            os.chown(path, NOBODY, NOBODY)
        case.rename(run.folder / "case")
        await run.wait_intakes(1)
        assert swaps
        (intake,) = run.intakes
        if put_back:
            assert intake.refusal is None
            assert run.claimed(intake, "a.inp") == b"mine"
        else:
            assert intake.refusal is not None
            assert intake.refusal[0] == "hard_link"
        check_claimed(run)


async def test_fault_37_a_program_that_came_in_at_the_moment_of_the_claim_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It found the file by its old name, was held up by our lease, and writes where the file lies now."""
    ignore_lease_breaks()
    real_rename, real_hash = os.rename, files.hash_fd
    came: list[IO[bytes]] = []

    def come_in() -> None:
        (path,) = (tmp_path / "home" / "work").glob("*/input/a.inp")
        came.append(path.open("ab"))

    others: list[threading.Thread] = []

    def rename(src: str, dst: str, **fds: int) -> None:
        real_rename(src, dst, **fds)
        if src == "a.inp" and not others:
            others.append(threading.Thread(target=come_in))
            others[0].start()

    def hash_fd(fd: int, expected: int) -> tuple[int, str]:
        others[0].join()
        return real_hash(fd, expected)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(files, "hash_fd", hash_fd)
    async with running(tmp_path) as run:
        (run.folder / "a.inp").write_bytes(b"first, ")
        await eventually(lambda: [w.why for _, w in run.inbox.waiting] == ["claim"], "the claim was given up")
        assert (run.folder / "a.inp").read_bytes() == b"first, "
        came[0].write(b"second")
        came[0].close()
        intake = await run.wait_job()
        assert run.claimed(intake, "a.inp") == b"first, second"
        check_claimed(run)


async def test_fault_37_what_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.hash_fd
    changed: list[tuple[int, str]] = []

    def late(fd: int, expected: int) -> tuple[int, str]:
        found = real(fd, expected)
        if not changed:
            changed.append(found)
            (path,) = (tmp_path / "home" / "work").glob("*/input/a.inp")
            path.write_bytes(b"other")
        return found

    monkeypatch.setattr(files, "hash_fd", late)
    async with running(tmp_path) as run:
        (run.folder / "a.inp").write_bytes(b"first")
        intake = await run.wait_job()
        assert changed
        assert run.claimed(intake, "a.inp") == b"other"
        check_claimed(run)


@pytest.mark.parametrize("shape", ["file", "folder"])
async def test_fault_73_what_was_claimed_can_be_written_by_nobody_else(tmp_path: Path, shape: str) -> None:
    async with running(tmp_path) as run:
        drop = run.home.root / "a.inp"
        if shape == "folder":
            drop = run.home.root / "case"
            drop.mkdir()
        target = drop / "a.inp" if shape == "folder" else drop
        target.write_text("x")
        target.chmod(0o666)
        drop.rename(run.folder / drop.name)
        intake = await run.wait_job()
        claimed = run.home.work / intake.id / "input" / "a.inp"
        assert stat.S_IMODE(claimed.stat().st_mode) == 0o644


@needs_root
async def test_fault_73_a_file_of_another_user_is_copied_whoever_still_holds_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A real other user, who writes again through a descriptor that was open for reading while the file was claimed."""
    code = """
import os, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
os.umask(0)
with open(".staged", "w") as out:
    out.write("first")
fd = os.open(".staged", os.O_RDONLY)
os.rename(".staged", "a.inp")
print("dropped", flush=True)
sys.stdin.read(1)
with open(f"/proc/self/fd/{fd}", "r+") as again:
    again.write("FORGED")
print("written", flush=True)
"""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        root = Path(folder)
        root.chmod(0o755)
        async with running(root) as run:
            run.folder.chmod(0o1777)
            argv = [sys.executable, "-c", code]
            with subprocess.Popen(  # noqa: ASYNC220  short
                argv,
                cwd=run.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as other:
                assert other.stdout is not None
                assert other.stdin is not None
                assert other.stdout.readline() == b"dropped\n"
                intake = await run.wait_job()
                other.stdin.write(b"x")
                other.stdin.close()
                assert other.stdout.readline() == b"written\n"
            claimed = run.home.work / intake.id / "input" / "a.inp"
            assert claimed.read_text() == "first"
            assert (claimed.stat().st_uid, stat.S_IMODE(claimed.stat().st_mode) & 0o022) == (os.geteuid(), 0)
            assert intake.spec.user == "nobody"
            check_claimed(run)


@needs_root
@pytest.mark.parametrize("where", ["inbox", "folder"])
async def test_fault_71_devices_and_pipes_are_rejected_unopened(tmp_path: Path, where: str) -> None:
    """``/dev/zero`` never ends, a FIFO without a writer never begins."""
    async with running(tmp_path) as run:
        places = {}
        for kind in ("device", "fifo"):
            folder = run.home.root / f"{kind}s"
            folder.mkdir()
            (folder / "b.inp").touch()
            places[kind] = folder / "a.inp"
        try:
            os.mknod(places["device"], 0o666 | stat.S_IFCHR, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("devices cannot be made here")
        os.mkfifo(places["fifo"])
        for kind, path in places.items():
            if where == "folder":
                path.parent.rename(run.folder / path.parent.name)
            else:
                path.rename(run.folder / f"{kind}.inp")
        for intake in await run.wait_intakes(2):
            assert intake.refusal is not None
            assert intake.refusal[0] == "not_a_file"
            assert "a device" in intake.refusal[1] or "a FIFO" in intake.refusal[1]


async def test_fault_73_a_job_file_that_becomes_a_pipe_when_it_is_opened_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe with a writer who writes nothing answers neither bytes nor an end."""
    real = files.open_file
    writers: list[int] = []

    def swapped(name: str, folder_fd: int) -> int:
        path = tmp_path / "home" / "inbox" / "j.job.toml"
        if name == "j.job.toml" and not writers:
            path.unlink()
            os.mkfifo(path)
            writers.append(os.open(path, os.O_RDWR))
        return real(name, folder_fd)

    monkeypatch.setattr(files, "open_file", swapped)
    async with running(tmp_path) as run:
        (run.folder / "j.job.toml").write_text('inputs = ["a.inp"]')
        assert (await run.wait_refusal())[0] == "not_a_file"
        (run.folder / "b.inp").touch()
        await run.wait_intakes(2)
        os.close(writers[0])


@pytest.mark.parametrize("path", ["case", "case/sub", "case/sub/deeper", "ccx"])
async def test_fault_70_a_link_on_the_way_is_not_followed(tmp_path: Path, path: str) -> None:
    """A link to a folder with an input in it, at each depth, and in the place of a route."""
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "a.inp").write_bytes(SECRET)
    async with running(tmp_path) as run:
        if path == "ccx":
            (run.folder / "ccx").rmdir()
            (run.folder / "ccx").symlink_to(target)
        else:
            case = run.home.root / path
            case.parent.mkdir(parents=True, exist_ok=True)
            case.symlink_to(target)
            if path != "case":
                (run.home.root / "case" / "b.inp").touch()
            (run.home.root / "case").rename(run.folder / "case")
            assert (await run.wait_refusal())[0] == "not_a_file"
        await run.wait_scans()
        assert (target / "a.inp").read_bytes() == SECRET
        assert not run.jobs
        for intake in run.intakes:
            assert SECRET not in content(run, intake).values()


async def test_fault_74_an_archive_is_a_file_like_any_other(tmp_path: Path) -> None:
    """Names that climb out and a bomb of 100 MB: nothing is unpacked, ever."""
    archive = tmp_path / "evil.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("../../escaped", "x")
        out.writestr("/tmp/escaped-absolute", "x")
        out.writestr("bomb", bytes(100 << 20))
    data = archive.read_bytes()
    assert len(data) < 1 << 20
    async with running(tmp_path) as run:
        archive.rename(run.folder / "any" / "evil.zip")
        intake = await run.wait_job()
        assert content(run, intake) == {"input/evil.zip": data}
        assert not list(tmp_path.rglob("*escaped*"))
        assert not list(tmp_path.rglob("bomb"))
