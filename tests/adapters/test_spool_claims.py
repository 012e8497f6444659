"""Claims: every kind of drop, real folders, real writers: what is taken, and what must wait."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fsync_kit import fsync_by
from solvisor import failpoint
from solvisor.home import Home
from solvisor.spool import Claims, NotDurable, NotYet, Take, Taken, flush, ignore_lease_breaks
from spool_kit import a_home, contents, drop, fact, held, lay, one, take, taken_up
from waiting import wait_until


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return a_home(tmp_path)


@pytest.fixture
def claims(home: Home) -> Claims:
    return Claims(home)


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


def test_fault_42_the_same_name_twice_is_two_jobs(home: Home, claims: Claims) -> None:
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
    taken_up(claims)
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

    fsync_by(monkeypatch, fsync)
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


@pytest.mark.parametrize("kind", ["file", "several", "folder"])
def test_all_that_a_claim_consists_of_is_synced(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    synced: set[int] = set()
    flush_ = flush.flush

    def seen(fds: Sequence[int]) -> list[BaseException | None]:
        synced.update(os.fstat(fd).st_ino for fd in fds)
        return flush_(fds)

    monkeypatch.setattr(flush, "flush", seen)
    wish = lay(home, kind)
    came_from = (home.inbox / wish.sources[0]).parent
    one(claims.claim_round([wish]))
    folder = home.work / wish.id
    left_out = [path for path in (came_from, home.work, folder, *folder.rglob("*")) if path.stat().st_ino not in synced]
    assert not left_out


def test_nothing_moves_before_the_plans_of_its_round_are_durable(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what needs none: syncing their folders may put half of a renaming on the disk."""
    wishes = [take("z.inp"), lay(home, "several")]
    drop(home, "z.inp")
    before = contents(home.inbox)
    there: list[dict[str, bytes]] = []
    flush_ = flush.flush

    def looked(fds: Sequence[int]) -> list[BaseException | None]:
        there.append(contents(home.inbox))
        return flush_(fds)

    monkeypatch.setattr(flush, "flush", looked)
    assert all(isinstance(answer, Taken) for answer in claims.claim_round(wishes))
    assert there[0] == before


def test_a_folder_that_changed_and_whose_name_is_taken_again_is_rejected_at_once(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(home, "case/a.inp", b"1")
    wish = take("case", folder=True)

    def changed(point: str) -> None:
        if point == "claim.tree_moved":
            (home.work / wish.id / "input" / "late.inc").write_bytes(b"late")
            (home.inbox / "case").mkdir()

    monkeypatch.setattr(failpoint, "_hook", changed)
    taken = one(claims.claim_round([wish]))
    assert taken.problem is not None
    assert taken.problem[0] == "claim_interrupted"
    assert {each.path for each in taken.files} == {"input/a.inp", "input/late.inc"}


@pytest.mark.parametrize("quiet", [False, True])
def test_fault_37_a_file_somebody_still_writes_stays_until_it_is_closed(
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


def test_fault_73_a_file_replaced_at_the_moment_of_the_claim_goes_back(
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


def test_fault_72_a_second_name_holds_a_file_back_unless_forced(home: Home, claims: Claims) -> None:
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


def test_fault_26_a_full_disk_holds_the_drop_back_and_says_so(
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
        fsync_by(patch, broken)
        with pytest.raises(NotDurable):
            claims.claim_round([take("beam.inp")])
    (taken,) = taken_up(claims)
    assert taken.problem is None


@pytest.mark.parametrize(
    "sources", [("../etc/passwd",), ("a/b/c.inp",), ("a/x.inp", "b/y.inp"), ("",), ("..",), ("/etc/passwd",)]
)
def test_fault_70_sources_can_only_be_names_in_one_folder_of_the_inbox(sources: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="plain names"):
        Take("beam-000000000000000", sources)


def test_fault_70_a_route_that_is_a_symbolic_link_is_not_followed(home: Home, claims: Claims, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret.inp").write_text("secret")
    (home.inbox / "ccx").symlink_to(tmp_path / "elsewhere")
    assert held(claims.claim_round([take("ccx/secret.inp", route="ccx")])).reason == "error"
    assert (tmp_path / "elsewhere" / "secret.inp").exists()


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


def test_what_is_given_back_is_free_at_once(home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when its round is over: whoever opens it for writing would wait for the lease as long."""
    ignore_lease_breaks()
    path = drop(home, "a.inp")
    drop(home, "b.inp")
    rename, flush_ = os.rename, flush.flush
    opened: list[int] = []

    def refused(src: str, dst: str, **fds: int) -> None:
        if src == "a.inp":
            with pytest.raises(BlockingIOError):
                os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            raise PermissionError(errno.EACCES, "Permission denied")
        rename(src, dst, **fds)

    def looked(fds: Sequence[int]) -> list[BaseException | None]:
        opened.append(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
        return flush_(fds)

    monkeypatch.setattr(os, "rename", refused)
    monkeypatch.setattr(flush, "flush", looked)
    first, second = claims.claim_round([take("a.inp"), take("b.inp")])
    assert held([first]).reason == "error"
    one([second])
    assert opened
    for fd in opened:
        os.close(fd)


@pytest.mark.parametrize("taken_again", [False, True])
def test_a_renaming_into_a_folder_that_took_until_it_was_durable_is_seen(
    home: Home, claims: Claims, monkeypatch: pytest.MonkeyPatch, taken_again: bool
) -> None:
    """It began before the claim, found the folder by its old name, and had to wait for the disk."""
    drop(home, "case/a.inp", b"read")
    drop(home, "other", b"not read")
    wish = take("case", folder=True)
    flush_ = flush.flush

    def renamed(fds: Sequence[int]) -> list[BaseException | None]:
        if (home.work / wish.id / "input").exists() and (home.inbox / "other").exists():
            (home.inbox / "other").rename(home.work / wish.id / "input" / "a.inp")
            if taken_again:
                (home.inbox / "case").mkdir()
        return flush_(fds)

    monkeypatch.setattr(flush, "flush", renamed)
    answer = held(claims.claim_round([wish]))
    if not taken_again:
        assert answer.reason == "writer"
        assert contents(home.inbox) == {"case/a.inp": b"not read"}
        assert os.listdir(home.work) == []
    else:
        assert answer.reason == "error", "it cannot go back, and is taken as it is then by the next start"
        (adopted,) = taken_up(claims)
        assert adopted.files == (fact("input/a.inp", b"not read"),)


@pytest.mark.parametrize(
    "sources",
    [(), ("",), (".",), ("..",), ("/a",), ("a/b/c",), ("a/",), ("a/..",), ("x/a", "y/b"), ("a", "x/b")],
)
def test_a_claim_is_of_plain_names_in_one_folder(sources: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="plain names in one folder"):
        Take("a-1", sources)


def test_a_dropped_folder_is_claimed_alone() -> None:
    assert Take("a-1", ("x/a",), folder=True).folder
    with pytest.raises(ValueError, match="alone"):
        Take("a-1", ("a", "b"), folder=True)
