"""Claims: every kind of drop, real folders, real writers, and a crash at every change to the disk."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crash.points import crashed_at
from solvisor.home import Home, IdMaker
from solvisor.model import FileFact
from solvisor.spool import (
    Claims,
    NotDurable,
    NotYet,
    Take,
    Taken,
    escape_name,
    files,
    ignore_lease_breaks,
    unescape_name,
)
from waiting import wait_until

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: files of another owner, mounts")
NOBODY = 65534
MAKER = IdMaker()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.prepare()
    return home


@pytest.fixture
def claims(home: Home) -> Claims:
    return Claims(home)


def new_id(name: str = "beam") -> str:
    return MAKER.new_id(name, 1_700_000_000_000_000)


def drop(home: Home, name: str, data: bytes = b"*HEADING\nbeam\n") -> Path:
    path = home.inbox / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def take(
    *sources: str, route: str | None = None, folder: bool = False, quiet: bool = False, force: bool = False
) -> Take:
    return Take(new_id(), sources, route, folder, quiet, force)


def one(answers: list[Taken | NotYet]) -> Taken:
    (answer,) = answers
    assert isinstance(answer, Taken), answer
    return answer


def held(answers: list[Taken | NotYet]) -> NotYet:
    (answer,) = answers
    assert isinstance(answer, NotYet), answer
    return answer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()}


def fact(path: str, data: bytes) -> FileFact:
    return FileFact(path, len(data), hashlib.sha256(data).hexdigest())


# --- what can be taken ---------------------------------------------------------------------------------------------


def test_one_file_becomes_the_input_of_a_job(home: Home, claims: Claims) -> None:
    path = drop(home, "beam.inp", b"abc")
    inode = path.stat().st_ino
    wish = take("beam.inp")
    taken = one(claims.claim_round([wish]))
    assert taken == Taken(wish, (fact("input/beam.inp", b"abc"),), os.geteuid())
    claimed = home.work / wish.id / "input" / "beam.inp"
    assert claimed.read_bytes() == b"abc"
    assert claimed.stat().st_ino == inode, "our own file is renamed, not copied"
    assert stat.S_IMODE((home.work / wish.id).stat().st_mode) & 0o027 == 0o000
    assert os.listdir(home.inbox) == []
    assert os.listdir(home.work / wish.id) == ["input"], "one name needs no plan"


def test_a_job_file_and_its_inputs_from_a_route_come_together(home: Home, claims: Claims) -> None:
    for name in ("beam.job.toml", "beam.inp", "mesh.inc"):
        drop(home, f"ccx/{name}", name.encode())
    wish = take("ccx/beam.job.toml", "ccx/beam.inp", "ccx/mesh.inc", route="ccx")
    taken = one(claims.claim_round([wish]))
    assert {f.path for f in taken.files} == {"input/beam.job.toml", "input/beam.inp", "input/mesh.inc"}
    assert contents(home.work / wish.id / "input")["mesh.inc"] == b"mesh.inc"
    assert os.listdir(home.inbox / "ccx") == []


def test_a_folder_becomes_the_input_folder_itself(home: Home, claims: Claims) -> None:
    drop(home, "case/beam.inp", b"1")
    drop(home, "case/mesh/fine/a.inc", b"2")
    wish = take("case", folder=True)
    taken = one(claims.claim_round([wish]))
    assert {f.path for f in taken.files} == {"input/beam.inp", "input/mesh/fine/a.inc"}
    assert taken.problem is None
    assert taken.originals == ()
    assert contents(home.work / wish.id / "input") == {"beam.inp": b"1", "mesh/fine/a.inc": b"2"}
    assert os.listdir(home.inbox) == []


def test_an_empty_file_and_an_empty_folder_are_drops_too(home: Home, claims: Claims) -> None:
    drop(home, "empty.inp", b"")
    (home.inbox / "nothing").mkdir()
    answers = claims.claim_round([take("empty.inp"), take("nothing", folder=True)])
    assert [a.files for a in answers if isinstance(a, Taken)] == [(fact("input/empty.inp", b""),), ()]


def test_a_round_answers_in_order_and_holds_back_only_what_must_wait(home: Home, claims: Claims) -> None:
    wishes = []
    for i in range(150):  # more than one set of fsyncs
        if i % 10:
            drop(home, f"{i}.inp", str(i).encode())
        wishes.append(take(f"{i}.inp"))
    answers = claims.claim_round(wishes)
    for i, (wish, answer) in enumerate(zip(wishes, answers, strict=True)):
        if i % 10:
            assert isinstance(answer, Taken)
            assert answer.take is wish
            assert (home.work / wish.id / "input" / f"{i}.inp").read_bytes() == str(i).encode()
        else:
            assert isinstance(answer, NotYet)
            assert (answer.id, answer.reason) == (wish.id, "gone")
            assert not (home.work / wish.id).exists(), "what is not taken leaves no trace"


def test_the_same_name_twice_is_two_jobs(home: Home, claims: Claims) -> None:
    ids = []
    for data in (b"first", b"second"):
        drop(home, "beam.inp", data)
        ids.append(one(claims.claim_round([take("beam.inp")])).take.id)
    assert [(home.work / i / "input/beam.inp").read_bytes() for i in ids] == [b"first", b"second"]


def test_no_descriptor_is_left_open(home: Home, claims: Claims) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for i in range(5):
        drop(home, f"{i}.inp")
        drop(home, f"case{i}/a.inp")
    claims.claim_round([take(f"{i}.inp") for i in range(6)] + [take(f"case{i}", folder=True) for i in range(6)])
    claims.unfinished_claims(())
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_vanishes_from_the_inbox_before_it_is_durable_elsewhere(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of a claim with a plan, as the disk sees it."""
    steps: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(fd: int) -> None:
        steps.append(os.readlink(f"/proc/self/fd/{fd}").removeprefix(f"{home.root}/"))
        real_fsync(fd)

    def rename(src: str, dst: str, **fds: int) -> None:
        steps.append(f"rename {src}")
        real_rename(src, dst, **fds)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    wish = lay(home, "several")
    one(claims.claim_round([wish]))
    job = f"work/{wish.id}"
    assert set(steps[:3]) == {f"{job}/claim.json", job, "work"}, "the plan, before anything moves"
    assert steps[3:6] == ["rename a.job.toml", "rename b.inp", "rename c.inc"]
    names = {f"{job}/input/{name}" for name in ("a.job.toml", "b.inp", "c.inc")}
    assert set(steps[6:-1]) == names | {f"{job}/input", job, "work"}
    assert steps[-1] == "inbox/ccx", "the folder it came from, last"


# --- what must wait ------------------------------------------------------------------------------------------------


@pytest.fixture
def writer(home: Home) -> Iterator[Callable[[Path], subprocess.Popen[bytes]]]:
    """Another program that has a file open for writing until its stdin is closed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(path: Path) -> subprocess.Popen[bytes]:
        code = "import sys; f = open(sys.argv[1], 'ab'); print('open', flush=True); sys.stdin.read()"
        child = subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        return child

    yield start
    for child in started:
        child.communicate()


@pytest.mark.parametrize("quiet", [False, True])
def test_a_file_somebody_still_writes_stays_until_it_is_closed(
    home: Home, claims: Claims, writer: Callable[[Path], subprocess.Popen[bytes]], quiet: bool
) -> None:
    path = drop(home, "beam.inp", b"half")
    child = writer(path)
    answer = held(claims.claim_round([take("beam.inp", quiet=quiet)]))
    assert (answer.source, answer.reason) == ("beam.inp", "writer")
    assert path.read_bytes() == b"half"
    assert os.listdir(home.work) == []
    child.communicate()
    one(claims.claim_round([take("beam.inp")]))


def test_one_unfinished_source_holds_back_the_whole_job(
    home: Home, claims: Claims, writer: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    drop(home, "ccx/beam.job.toml")
    writer(drop(home, "ccx/beam.inp"))
    answer = held(claims.claim_round([take("ccx/beam.job.toml", "ccx/beam.inp", route="ccx")]))
    assert (answer.source, answer.reason) == ("ccx/beam.inp", "writer")
    assert sorted(os.listdir(home.inbox / "ccx")) == ["beam.inp", "beam.job.toml"]
    assert os.listdir(home.work) == []


def test_one_unfinished_file_holds_back_a_folder(
    home: Home, claims: Claims, writer: Callable[[Path], subprocess.Popen[bytes]]
) -> None:
    drop(home, "case/a.inp")
    writer(drop(home, "case/mesh/b.inc"))
    answer = held(claims.claim_round([take("case", folder=True)]))
    assert (answer.source, answer.reason) == ("case/mesh/b.inc", "writer")
    assert contents(home.inbox).keys() == {"case/a.inp", "case/mesh/b.inc"}
    assert os.listdir(home.work) == []


def test_a_source_that_comes_late_is_taken_back_with_the_others(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second source vanishes after it was looked at: the first is already in and goes back."""
    drop(home, "a.job.toml", b"job")
    drop(home, "b.inp")
    real = os.rename

    def rename(src: str, dst: str, **fds: int) -> None:
        if src == "b.inp":
            os.unlink(home.inbox / "b.inp")
        real(src, dst, **fds)

    monkeypatch.setattr(os, "rename", rename)
    answer = held(claims.claim_round([take("a.job.toml", "b.inp")]))
    assert answer.reason == "gone"
    assert contents(home.inbox) == {"a.job.toml": b"job"}
    assert os.listdir(home.work) == []


def test_a_file_replaced_at_the_moment_of_the_claim_goes_back(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "beam.inp", b"old")
    real = os.rename

    def rename(src: str, dst: str, **fds: int) -> None:
        if src == "beam.inp":
            monkeypatch.setattr(os, "rename", real)
            (home.inbox / ".new").write_bytes(b"new one")
            os.rename(home.inbox / ".new", home.inbox / "beam.inp")
        real(src, dst, **fds)

    monkeypatch.setattr(os, "rename", rename)
    assert held(claims.claim_round([take("beam.inp")])).reason == "writer"
    assert contents(home.inbox) == {"beam.inp": b"new one"}
    assert os.listdir(home.work) == []


def test_a_second_name_holds_a_file_back_unless_forced(home: Home, claims: Claims) -> None:
    path = drop(home, "beam.inp", b"abc")
    os.link(path, home.root / "other-name")
    assert held(claims.claim_round([take("beam.inp")])).reason == "hard_link"
    wish = take("beam.inp", force=True)
    taken = one(claims.claim_round([wish]))
    assert taken.problem is not None
    assert taken.problem[0] == "hard_link"
    (home.root / "other-name").write_bytes(b"changed through the other name")
    assert (home.work / wish.id / "input" / "beam.inp").read_bytes() == b"abc", "what is claimed can no longer change"


def test_a_folder_is_not_taken_for_a_file(home: Home, claims: Claims) -> None:
    drop(home, "case/a.inp")
    assert held(claims.claim_round([take("case")])).reason == "folder"


def test_a_full_disk_holds_the_drop_back_and_says_so(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "beam.inp")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "mkdir", full)
        answer = held(claims.claim_round([take("beam.inp")]))
    assert answer.reason == "disk"
    assert "free some space" in answer.text
    one(claims.claim_round([take("beam.inp")]))


def test_a_failed_fsync_is_never_survived(home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(home, "beam.inp")

    def broken(_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(NotDurable):
            claims.claim_round([take("beam.inp")])
    (taken,) = claims.unfinished_claims(())
    assert taken.problem is None


@pytest.mark.parametrize(
    "sources", [("../etc/passwd",), ("a/b/c.inp",), ("a/x.inp", "b/y.inp"), ("",), ("..",), ("/etc/passwd",)]
)
def test_sources_can_only_be_names_in_one_folder_of_the_inbox(sources: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="plain names"):
        Take("beam-000000000000000", sources)


def test_a_route_that_is_a_symbolic_link_is_not_followed(home: Home, claims: Claims, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.inp").write_text("secret")
    (home.inbox / "ccx").symlink_to(tmp_path / "elsewhere")
    assert held(claims.claim_round([take("ccx/secret.inp", route="ccx")])).reason == "error"
    assert (tmp_path / "elsewhere" / "secret.inp").exists()


# --- what can only be rejected -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["link", "fifo", "socket"])
def test_what_is_not_a_file_is_taken_unopened(home: Home, claims: Claims, tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret"
    secret.write_text("never read")
    path = home.inbox / "x.inp"
    if kind == "link":
        path.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as listener:
            fd = os.open(home.inbox, os.O_RDONLY)
            listener.bind(f"/proc/self/fd/{fd}/x.inp")
            os.close(fd)
    wish = take("x.inp")
    taken = one(claims.claim_round([wish]))
    assert taken.problem is not None
    assert taken.problem[0] == "not_a_file"
    assert taken.files == (FileFact("input/x.inp", 0, "", link=str(secret) if kind == "link" else None),)
    assert (home.work / wish.id / "input" / "x.inp").is_symlink() == (kind == "link")


@pytest.mark.parametrize("kind", ["link", "fifo", "hard_link", "name", "too_deep", "too_many_files"])
def test_a_folder_with_something_wrong_in_it_is_taken_to_be_rejected(home: Home, claims: Claims, kind: str) -> None:
    good = drop(home, "case/sub/a.inp")
    if kind == "link":
        (good.parent / "b").symlink_to("/etc/passwd")
    elif kind == "fifo":
        os.mkfifo(good.parent / "b")
    elif kind == "hard_link":
        os.link(good, good.parent / "b")
    elif kind == "name":
        (good.parent / "b\n.inp").write_text("")
    elif kind == "too_deep":
        drop(home, "case/" + "d/" * files.DEPTH_MAX + "a.inp")
    else:
        for i in range(10_000):
            os.close(os.open(good.parent / str(i), os.O_CREAT | os.O_WRONLY))
    wish = take("case", folder=True)
    taken = one(claims.claim_round([wish]))
    assert taken.problem is not None
    assert taken.problem[0] == {"link": "not_a_file", "fifo": "not_a_file"}.get(kind, kind)
    assert not (home.inbox / "case").exists()
    assert (home.work / wish.id / "input" / "sub" / "a.inp").exists()


@pytest.mark.parametrize(
    "raw", [b"b\xe4r.inp", b"new\nline.inp", b"esc\x1b[31m.inp", b"back\\slash.inp", "bell\x9b.inp".encode()]
)
def test_an_odd_name_is_escaped_and_can_only_be_rejected(home: Home, claims: Claims, raw: bytes) -> None:
    name = os.fsdecode(raw)
    drop(home, name)
    taken = one(claims.claim_round([take(name)]))
    assert taken.problem is not None
    assert taken.problem[0] == "name"
    (found,) = taken.files
    shown = found.path.removeprefix("input/")
    assert shown.encode()
    assert shown.isprintable()
    assert unescape_name(shown) == name


@pytest.mark.parametrize(
    "name", ["beam.inp", "träger & last (1).inp", "日本.inp", "Screen\u202fshot.inp", "a'\"$;b.inp"]
)
def test_an_ordinary_name_stays_as_it_is(home: Home, claims: Claims, name: str) -> None:
    drop(home, name)
    taken = one(claims.claim_round([take(name)]))
    assert taken.problem is None
    assert taken.files[0].path == f"input/{name}" == f"input/{escape_name(name)}"


# --- what is claimed by copy ---------------------------------------------------------------------------------------


@needs_root
def test_a_file_of_another_owner_is_copied_and_removed_after_the_commit(home: Home, claims: Claims) -> None:
    path = drop(home, "beam.inp", b"abc")
    os.chown(path, NOBODY, NOBODY)
    os.utime(path, ns=(1, 1_234_567_890_123_456_789))
    held_open = path.open("rb")
    wish = take("beam.inp")
    taken = one(claims.claim_round([wish]))
    claimed = home.work / wish.id / "input" / "beam.inp"
    assert taken.uid == NOBODY
    assert claimed.stat().st_uid == os.geteuid()
    assert claimed.stat().st_mtime_ns == 1_234_567_890_123_456_789
    assert path.exists(), "the original stays until the job is durable"
    assert claims.remove_original(taken.originals[0])
    assert not path.exists()
    assert not claims.remove_original(taken.originals[0])
    held_open.close()


@needs_root
@pytest.mark.parametrize("change", ["contents", "replaced"])
def test_an_original_that_is_no_longer_the_same_is_not_removed(home: Home, claims: Claims, change: str) -> None:
    path = drop(home, "beam.inp", b"abc")
    os.chown(path, NOBODY, NOBODY)
    taken = one(claims.claim_round([take("beam.inp")]))
    if change == "replaced":
        path.rename(home.root / "kept")
    path.write_bytes(b"xyz")
    assert not claims.remove_original(taken.originals[0])
    assert path.read_bytes() == b"xyz"


@needs_root
def test_a_folder_of_another_owner_is_copied_and_removed_bit_by_bit(home: Home, claims: Claims) -> None:
    drop(home, "ccx/case/a.inp", b"1")
    drop(home, "ccx/case/mesh/b.inc", b"2")
    for path in (home.inbox / "ccx" / "case").rglob("*"):
        os.chown(path, NOBODY, NOBODY)
    wish = take("ccx/case", route="ccx", folder=True)
    taken = one(claims.claim_round([wish]))
    assert contents(home.work / wish.id / "input") == {"a.inp": b"1", "mesh/b.inc": b"2"}
    assert {p.stat().st_uid for p in (home.work / wish.id).rglob("*")} == {os.geteuid()}
    assert contents(home.inbox).keys() == {"ccx/case/a.inp", "ccx/case/mesh/b.inc"}
    assert [claims.remove_original(original) for original in taken.originals] == [True] * 4
    assert os.listdir(home.inbox / "ccx") == []


@needs_root
def test_something_new_in_the_original_folder_is_kept(home: Home, claims: Claims) -> None:
    path = drop(home, "case/a.inp")
    os.chown(path, NOBODY, NOBODY)
    taken = one(claims.claim_round([take("case", folder=True)]))
    drop(home, "case/new.inp", b"new")
    for original in taken.originals:
        claims.remove_original(original)
    assert contents(home.inbox) == {"case/new.inp": b"new"}


@needs_root
def test_a_foreign_folder_with_a_link_in_it_leaves_the_inbox_too(home: Home, claims: Claims) -> None:
    path = drop(home, "case/a.inp")
    (home.inbox / "case" / "link").symlink_to("/etc/passwd")
    os.mkfifo(home.inbox / "case" / "fifo")
    os.chown(path, NOBODY, NOBODY)
    taken = one(claims.claim_round([take("case", folder=True)]))
    assert taken.problem is not None
    assert taken.problem[0] == "not_a_file"
    for original in taken.originals:
        assert claims.remove_original(original)
    assert os.listdir(home.inbox) == []


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts")
    where = tmp_path / "share"
    where.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", where], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", where], check=True)


def test_an_inbox_on_another_file_system_is_claimed_by_copy(tmp_path: Path, tmpfs: Path) -> None:
    home = Home.at(tmp_path / "home", tmpfs / "inbox")
    home.inbox.mkdir()
    home.prepare()
    claims = Claims(home)
    drop(home, "beam.inp", b"abc")
    drop(home, "case/sub/a.inp", b"1")
    (home.inbox / "link.inp").symlink_to("/etc/passwd")
    wishes = [take("beam.inp"), take("case", folder=True), take("link.inp")]
    answers = claims.claim_round(wishes)
    taken = [answer for answer in answers if isinstance(answer, Taken)]
    assert len(taken) == 3, answers
    assert contents(home.work / wishes[0].id / "input") == {"beam.inp": b"abc"}
    assert contents(home.work / wishes[1].id / "input") == {"sub/a.inp": b"1"}
    assert taken[2].files[0].link == "/etc/passwd"
    for answer in taken:
        assert {claims.remove_original(original) for original in answer.originals} == {True}
    assert os.listdir(home.inbox) == []


def test_a_mounted_route_is_claimed_by_copy(home: Home, claims: Claims, tmpfs: Path, tmp_path: Path) -> None:
    """A bind mount within one file system: the device number is the same and only the rename tells."""
    (tmp_path / "real").mkdir()
    (home.inbox / "ccx").mkdir()
    subprocess.run(["mount", "--bind", tmp_path / "real", home.inbox / "ccx"], check=True)
    try:
        drop(home, "ccx/beam.inp", b"abc")
        wish = take("ccx/beam.inp", route="ccx")
        taken = one(claims.claim_round([wish]))
        assert contents(home.work / wish.id / "input") == {"beam.inp": b"abc"}
        assert claims.remove_original(taken.originals[0])
    finally:
        subprocess.run(["umount", home.inbox / "ccx"], check=True)


@needs_root
def test_what_an_ordinary_user_may_take() -> None:
    """Without CAP_LEASE no lease can be had on the file of another owner; a read-only folder resists its renaming."""
    script = """
import os, sys
from pathlib import Path
from solvisor.home import Home
from solvisor.spool import Claims, Take
os.setgroups([]); os.setgid(65534); os.setuid(65534)
home = Home.at(Path(sys.argv[1]))
claims = Claims(home)
for name, quiet in (("a.inp", False), ("a.inp", True), ("case", True), ("own", True)):
    take = Take(f"x-{len(os.listdir(home.work)):015d}", (name,), quiet=quiet, folder=name in ("case", "own"))
    (answer,) = claims.claim_round([take])
    print(type(answer).__name__, getattr(answer, "reason", ""), getattr(answer, "text", ""))
"""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        Path(folder).chmod(0o755)
        home = Home.at(Path(folder) / "home")
        home.prepare()
        drop(home, "own/a.inp")
        for path in (home.root, *home.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        (home.inbox / "own").chmod(0o555)
        drop(home, "a.inp").chmod(0o644)
        drop(home, "case/b.inp").chmod(0o644)
        command = [sys.executable, "-c", script, str(home.root)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
    foreign, quiet, unremovable, read_only = out.stdout.splitlines()
    assert foreign.startswith("NotYet no_lease")
    assert quiet.startswith("Taken")
    assert unremovable.startswith("NotYet error")
    assert "not removed by the daemon" in unremovable, "it could be copied but would come back for ever"
    assert read_only.startswith("Taken"), "our own folder, though it is read-only"


# --- leases --------------------------------------------------------------------------------------------------------


def test_a_program_that_opens_a_file_under_our_lease_does_not_kill_us(home: Home) -> None:
    """A lease break sends SIGIO, whose default is death. A claim's own lease is too short to be met by a test."""
    path = drop(home, "beam.inp")
    ignore_lease_breaks()
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    child = subprocess.Popen([sys.executable, "-c", f"open({str(path)!r}, 'ab').close()"])
    wait_until(lambda: fcntl.fcntl(fd, fcntl.F_GETLEASE) == fcntl.F_UNLCK, "the lease is being broken")
    os.close(fd)
    assert child.wait() == 0


# --- crashes -------------------------------------------------------------------------------------------------------


def lay(home: Home, kind: str) -> Take:
    """Drop something of each kind and wish for it."""
    if kind == "file":
        drop(home, "beam.inp", b"1")
        return take("beam.inp")
    if kind == "several":
        for name in ("a.job.toml", "b.inp", "c.inc"):
            drop(home, f"ccx/{name}", name.encode())
        return take("ccx/a.job.toml", "ccx/b.inp", "ccx/c.inc", route="ccx")
    if kind == "folder":
        drop(home, "case/a.inp", b"1")
        drop(home, "case/sub/b.inc", b"2")
        return take("case", folder=True)
    wish = lay(home, kind.removeprefix("foreign "))
    for source in wish.sources:
        path = home.inbox / source
        for part in (path, *path.rglob("*")):
            os.chown(part, NOBODY, NOBODY)
    return wish


KINDS = ["file", "several", "folder"]
KINDS += [pytest.param(f"foreign {kind}", marks=needs_root) for kind in ("file", "several", "folder")]  # type: ignore[misc]


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_at_any_point_leaves_the_drop_whole_in_one_place(tmp_path: Path, kind: str) -> None:
    for n in range(200):
        home = Home.at(tmp_path / str(n))
        home.prepare()
        wish = lay(home, kind)
        before = contents(home.inbox)
        crashed = crashed_at(n, lambda: Claims(home).claim_round([wish]))  # noqa: B023  called at once
        if not crashed:
            break
        taken = Claims(home).unfinished_claims(())
        folder = f"{wish.sources[0]}/" if wish.folder else f"{os.path.dirname(wish.sources[0])}/".lstrip("/")
        if not taken:
            assert contents(home.inbox) == before, n
            assert os.listdir(home.work) == [], n
            continue
        (answer,) = taken
        assert answer.problem is None, (n, answer)
        assert (answer.take.id, answer.take.sources) == (wish.id, wish.sources), n
        inside = contents(home.work / wish.id / "input")
        assert {folder + name: data for name, data in inside.items()} == before, n
        left = contents(home.inbox)
        assert not answer.originals
        assert left == {}, n
    else:
        pytest.fail("it never got through")
    assert n > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_during_recovery_is_recovered_from(tmp_path: Path, kind: str) -> None:
    """Crash at the m-th change of the recovery after a crash at the n-th of the claim."""
    step = 3
    for n in range(0, 200, step):
        home = Home.at(tmp_path / f"{n}")
        home.prepare()
        wish = lay(home, kind)
        if not crashed_at(n, lambda: Claims(home).claim_round([wish])):  # noqa: B023
            break
        for m in range(100):
            home = Home.at(tmp_path / f"{n}-{m}")
            home.prepare()
            wish = lay(home, kind)
            before = contents(home.inbox)
            assert crashed_at(n, lambda: Claims(home).claim_round([wish]))  # noqa: B023
            if not crashed_at(m, lambda: Claims(home).unfinished_claims(())):  # noqa: B023
                break
            taken = Claims(home).unfinished_claims(())
            assert all(answer.problem is None for answer in taken), (n, m, taken)
            inside = contents(home.work / wish.id / "input") if taken else {}
            assert sorted([*contents(home.inbox).values(), *inside.values()]) == sorted(before.values()), (n, m)
            assert len(os.listdir(home.work)) == len(taken), (n, m)


def test_a_half_made_claim_whose_name_is_taken_again_is_kept_to_be_rejected(home: Home, claims: Claims) -> None:
    wish = lay(home, "several")
    fired = False
    for n in range(100):
        if not (home.inbox / "ccx" / "a.job.toml").exists():
            break
        fired = crashed_at(n, lambda: Claims(home).claim_round([wish]))
        if (home.inbox / "ccx" / "a.job.toml").exists():
            claims.unfinished_claims(())
    assert fired
    drop(home, "ccx/a.job.toml", b"dropped again")
    (answer,) = claims.unfinished_claims(())
    assert answer.problem is not None
    assert answer.problem[0] == "claim_interrupted"
    assert (home.work / wish.id / "input" / "a.job.toml").read_bytes() == b"a.job.toml"
    assert (home.inbox / "ccx" / "a.job.toml").read_bytes() == b"dropped again"


def test_a_claim_that_lost_its_bytes_is_not_run(home: Home, claims: Claims) -> None:
    """After a power cut the names may be there and the contents not: the plan knows what they were."""
    wish = lay(home, "several")
    one(claims.claim_round([wish]))
    os.truncate(home.work / wish.id / "input" / "b.inp", 0)
    drop(home, "ccx/a.job.toml", b"so that it cannot go back")
    (answer,) = claims.unfinished_claims(())
    assert answer.problem is not None
    assert answer.problem[0] == "claim_interrupted"


@needs_root
def test_a_copy_whose_original_is_gone_is_not_trusted(home: Home, claims: Claims) -> None:
    """It may not have been durable, and it is all there is: neither run nor thrown away."""
    wish = lay(home, "foreign file")
    one(claims.claim_round([wish]))
    os.unlink(home.inbox / "beam.inp")
    (answer,) = claims.unfinished_claims(())
    assert answer.problem is not None
    assert answer.problem[0] == "claim_interrupted"
    assert (home.work / wish.id / "input" / "beam.inp").read_bytes() == b"1"


def test_folders_with_a_row_and_folders_that_are_none_of_ours_are_left_alone(home: Home, claims: Claims) -> None:
    drop(home, "beam.inp")
    known = one(claims.claim_round([take("beam.inp")])).take.id
    (home.work / "notes").mkdir()
    assert claims.unfinished_claims({known}) == []
    assert sorted(os.listdir(home.work)) == sorted([known, "notes"])


def test_a_claim_of_an_earlier_life_is_given_with_its_route(home: Home, claims: Claims) -> None:
    wish = lay(home, "several")
    first = one(claims.claim_round([wish]))
    assert claims.unfinished_claims(()) == [first]
    assert claims.unfinished_claims(()) == [first], "asked again before its row was there"


def test_a_claim_that_cannot_be_read_is_set_aside_and_holds_up_no_other(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good, not_a_folder = sorted(new_id() for _ in range(3))
    for job_id in (bad, good):
        (home.work / job_id / "input").mkdir(parents=True)
        (home.work / job_id / "input" / "beam.inp").write_bytes(b"1")
    (home.work / not_a_folder).mkdir()
    (home.work / not_a_folder / "input").write_bytes(b"no folder")
    victim = (home.work / bad / "input" / "beam.inp").stat().st_ino
    real = files.open_file

    def refused(name: str, folder_fd: int) -> int:
        if os.stat(name, dir_fd=folder_fd).st_ino == victim:
            raise OSError(5, "Input/output error", name)
        return real(name, folder_fd)

    monkeypatch.setattr(files, "open_file", refused)
    before = len(os.listdir("/proc/self/fd"))
    first, second, third = claims.unfinished_claims(())
    assert len(os.listdir("/proc/self/fd")) == before
    for aside, job_id in ((first, bad), (third, not_a_folder)):
        assert aside.take.id == job_id
        assert aside.uid == os.geteuid()
        assert aside.problem is not None
        assert aside.problem[0] == "unreadable"
    assert first.problem is not None
    assert "beam.inp: Input/output error" in first.problem[1]
    assert second == Taken(Take(good, ("beam.inp",)), (fact("input/beam.inp", b"1"),), os.geteuid())


def test_a_drop_that_cannot_be_opened_to_be_synced_goes_back(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "a.inp", b"a")
    drop(home, "b.inp", b"b")
    real = files.Syncs.add

    def refused(self: files.Syncs, spots: Iterator[files.Spot]) -> None:
        found = list(spots)
        if any(name == "a.inp" for name, _ in found):
            raise OSError(24, "Too many open files")
        real(self, found)

    monkeypatch.setattr(files.Syncs, "add", refused)
    first, second = claims.claim_round([take("a.inp"), take("b.inp")])
    assert held([first]).reason == "error"
    assert one([second]).files == (fact("input/b.inp", b"b"),)
    assert os.listdir(home.inbox) == ["a.inp"]
    assert os.listdir(home.work) == [second.take.id if isinstance(second, Taken) else ""]


def lay_deep(folder: Path) -> str:
    """A file in ``folder`` whose path is longer than the kernel takes at once; its path from there."""
    fd = os.open(folder, os.O_RDONLY)
    for _ in range(20):
        os.mkdir("d" * 250, dir_fd=fd)
        below = os.open("d" * 250, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    files.write_file("deep.dat", fd, b"deep")
    os.close(fd)
    return "/".join(["d" * 250] * 20) + "/deep.dat"


def test_a_folder_with_paths_longer_than_the_kernel_takes_is_claimed_and_recovered(home: Home, claims: Claims) -> None:
    (home.inbox / "case").mkdir()
    path = lay_deep(home.inbox / "case")
    taken = one(claims.claim_round([take("case", folder=True)]))
    assert taken.problem is None
    assert taken.files == (fact(f"input/{path}", b"deep"),)
    assert claims.unfinished_claims(()) == [taken]


@needs_root
def test_a_foreign_folder_with_long_paths_is_copied_and_removed(home: Home, claims: Claims) -> None:
    (home.inbox / "case").mkdir()
    path = lay_deep(home.inbox / "case")
    os.chown(home.inbox / "case", NOBODY, NOBODY)
    taken = one(claims.claim_round([take("case", folder=True)]))
    assert taken.files == (fact(f"input/{path}", b"deep"),)
    for original in taken.originals:
        assert claims.remove_original(original)
    assert os.listdir(home.inbox) == []
