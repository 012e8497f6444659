"""What is sent becomes a whole claim or nothing, in spite of crashes; what jobs left is read. In real folders."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fsync_kit import fsync_by
from solvisor import config as configuration
from solvisor.config import Config
from solvisor.errors import Refused
from solvisor.home import Home, IdMaker
from solvisor.intake import decide
from solvisor.model import FileFact, Intake, Request
from solvisor.spool import Claims, NotDurable, Take, Taken, Upload, discard_unfinished, files, removal, uploads
from solvisor.spool.reading import JobFolder
from spool_kit import taken_up

ASKED = Request("socket", "ann", batch="sweep-1", key="k-1")
CONFIG = '[solver.x]\naccept = ["*.x"]\ncommand = ["/bin/true"]\n'
MAKER = IdMaker()

Make = Callable[[], Upload]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.prepare()
    return home


@pytest.fixture
def make(home: Home) -> Iterator[Make]:
    """Uploads whose folders are closed at the end of the test."""
    made: list[Upload] = []

    def make() -> Upload:
        made.append(Upload(home, new_id()))
        return made[-1]

    yield make
    for upload in made:
        upload.close()


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return configuration.parse(CONFIG, tmp_path / "solvisor.toml")


def new_id() -> str:
    return MAKER.new_id("beam", 1_700_000_000_000_000)


def send(upload: Upload, name: str, data: bytes = b"input\n") -> None:
    upload.begin(name)
    upload.write(data)
    upload.end()


def taken(upload: Upload, request: Request = ASKED, *, folder: bool = True, expected: Any = None) -> Taken:
    return upload.finish(Take(upload.job_id, ("a.x",), folder=folder, request=request), expected)


def refusal(act: Callable[[], object]) -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        act()
    return caught.value.refusal, str(caught.value)


def left_in_work(home: Home) -> list[str]:
    return sorted(path.name for path in home.work.iterdir())


def adopted(home: Home, config: Config) -> list[Intake]:
    """What the next life makes of the claims that have no row."""
    discard_unfinished(home)
    limits = config.limits(4, 8 << 30)
    return [decide(config, limits, home, found) for found in taken_up(Claims(home))]


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../up.x", "a/../b.x", "/etc/passwd", "a//b.x", "a/", "a\x00b", "a\nb.x", "a\x7fb", "a\\b.x"),
        *("\udcff.x", "\u2028.x", "n" * 256, "ä" * 128, "a/" + "n" * 256, "d/" * 32 + "a.x"),
    ],
)
def test_a_name_that_could_leave_or_spoil_the_folder_is_refused(home: Home, make: Make, name: str) -> None:
    upload = make()
    code, text = refusal(lambda: upload.begin(name))
    assert code == "name"
    assert "\n" not in text
    text.encode()
    assert list((home.work / f"{upload.job_id}.upload" / "input").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["a.x", "sub/deeper/a.x", "n" * 255, "ä" * 127, "d/" * 31 + "a.x", " .x", "-rf", "..x"]
)
def test_any_other_name_is_kept_as_it_is(home: Home, make: Make, name: str) -> None:
    upload = make()
    send(upload, name)
    found = taken(upload)
    assert [fact.path for fact in found.files] == [f"input/{name}"]
    assert (home.work / upload.job_id / "input" / name).read_bytes() == b"input\n"


@pytest.mark.parametrize(("first", "second"), [("a.x", "a.x"), ("a", "a/b.x"), ("a/b.x", "a"), ("a/b.x", "a/b.x")])
def test_one_name_for_two_things_is_refused(make: Make, first: str, second: str) -> None:
    upload = make()
    send(upload, first)
    code, text = refusal(lambda: upload.begin(second))
    assert (code, repr(second) in text) == ("name", True)


def test_files_and_folders_are_counted_like_those_of_a_dropped_folder(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "FILES_MAX", 6)
    upload = make()
    send(upload, "a/b/c/1.x")  # four of six
    send(upload, "a/b/2.x")
    send(upload, "3.x")
    assert refusal(lambda: upload.begin("4.x"))[0] == "too_many_files"
    upload = make()
    assert refusal(lambda: upload.begin("a/b/c/d/e/f/1.x"))[0] == "too_many_files"


def test_ten_thousand_files_may_come_and_no_more(home: Home, make: Make) -> None:
    upload = make()
    for n in range(10_000):
        upload.begin(f"{n}.dat")
        upload.end()
    assert refusal(lambda: upload.begin("one-more.dat"))[0] == "too_many_files"
    upload.discard()
    assert left_in_work(home) == []


# --- whole, or nothing ----------------------------------------------------------------------------------------------


def test_a_finished_upload_is_a_claim_of_its_own(home: Home, make: Make) -> None:
    upload = make()
    send(upload, "a.x", b"x" * 100_000)
    assert left_in_work(home) == [f"{upload.job_id}.upload"]
    found = taken(upload)
    assert left_in_work(home) == [upload.job_id]
    assert (found.problem, found.originals, [fact.size for fact in found.files]) == (None, (), [100_000])


def test_discarding_leaves_nothing_at_any_stage(home: Home, make: Make) -> None:
    make().discard()
    begun = make()
    begun.begin("a.x")
    begun.write(b"half")
    begun.discard()
    whole = make()
    send(whole, "sub/a.x")
    taken(whole)
    whole.discard()
    assert left_in_work(home) == []


def test_nothing_of_a_claim_or_of_what_was_discarded_is_still_open(home: Home) -> None:
    before = len(os.listdir("/proc/self/fd"))
    whole, half = Upload(home, new_id()), Upload(home, new_id())
    send(whole, "sub/a.x")
    taken(whole)
    half.begin("a.x")
    half.discard()
    assert len(os.listdir("/proc/self/fd")) == before
    whole.discard()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_folder_that_cannot_be_made_leaves_nothing(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    mkdir = os.mkdir

    def full(path: str, *args: Any, **more: Any) -> None:
        if path == "input":
            raise OSError(errno.ENOSPC, "no space")
        mkdir(path, *args, **more)

    before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(os, "mkdir", full)
        with pytest.raises(OSError, match="no space"):
            Upload(home, new_id())
    assert left_in_work(home) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_nothing_is_claimed_before_every_byte_is_durable(
    home: Home, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files, folders, the plan and the folder of the job are synced before the rename, ``work/`` after it."""
    synced: list[tuple[str, bool]] = []
    fsync = os.fsync
    upload = make()
    send(upload, "sub/a.x")

    def watched(fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}").replace(str(home.work), "").replace(upload.job_id, "ID")
        synced.append((path, (home.work / upload.job_id).exists()))
        fsync(fd)

    fsync_by(monkeypatch, watched)
    taken(upload)
    before = {path for path, renamed in synced if not renamed}
    work = "/ID.upload"
    assert before == {work, f"{work}/claim.json", f"{work}/input", f"{work}/input/sub", f"{work}/input/sub/a.x"}
    assert [path for path, renamed in synced if renamed] == [""]


def test_an_fsync_that_fails_is_not_taken_for_a_claim(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = make()
    send(upload, "a.x")

    def broken(fd: int) -> None:
        raise OSError(errno.EIO, "i/o error")

    with monkeypatch.context() as patched:
        fsync_by(patched, broken)
        with pytest.raises(NotDurable):
            taken(upload)


# --- crashes --------------------------------------------------------------------------------------------------------


def test_what_was_not_finished_is_cleared_and_never_adopted(home: Home, make: Make, config: Config) -> None:
    half, whole = make(), make()
    send(half, "a.x")
    half.begin("b.x")
    send(whole, "a.x")
    files.write_file("claim.json", whole._job_fd, b"{}")  # a crash just before the rename
    assert taken_up(Claims(home)) == []
    assert sorted(discard_unfinished(home)) == sorted([half.job_id, whole.job_id])
    assert left_in_work(home) == []
    assert adopted(home, config) == []


@pytest.mark.parametrize(
    ("names", "job_file"),
    [
        (["a.x"], None),
        (["a.x", "sub/mesh.inc"], None),
        (["a.x", "b.x", "job.toml"], b'inputs = ["b.x"]\npriority = 7\n'),
    ],
)
def test_a_finished_upload_without_a_row_is_adopted_with_its_request_and_decided_alike(
    home: Home, make: Make, config: Config, names: list[str], job_file: bytes | None
) -> None:
    upload = make()
    for name in names:
        send(upload, name, job_file if job_file is not None and name == "job.toml" else b"input\n")
    now = decide(config, config.limits(4, 8 << 30), home, taken(upload))
    (later,) = adopted(home, config)
    assert later == now
    assert (later.id, later.refusal) == (upload.job_id, None)
    spec = later.spec
    assert (spec.source.via, spec.user, spec.batch, spec.key) == ("socket", "ann", "sweep-1", "k-1")


def test_a_retry_is_adopted_as_one(home: Home, make: Make, config: Config) -> None:
    upload = make()
    send(upload, "a.x")
    now = decide(config, config.limits(4, 8 << 30), home, taken(upload, Request("retry", "bob", retry_of="a-1")))
    (later,) = adopted(home, config)
    assert later == now
    assert (later.spec.source.via, later.spec.user, later.spec.retry_of) == ("retry", "bob", "a-1")


def test_a_retry_of_bare_files_is_adopted_as_those(home: Home, make: Make, config: Config) -> None:
    upload = make()
    send(upload, "a.x")
    request = Request("retry", "bob", retry_of="a-1")
    now = decide(config, config.limits(4, 8 << 30), home, taken(upload, request, folder=False))
    (later,) = adopted(home, config)
    assert later == now
    assert (later.refusal, later.spec.folder, later.spec.primary) == (None, False, "a.x")


# --- running again --------------------------------------------------------------------------------------------------


def finished(home: Home, target: str = "done", **contents: bytes) -> tuple[str, tuple[FileFact, ...]]:
    """A finished job with these inputs, and what its row says of them."""
    job_id = new_id()
    folder = home.root / target / job_id / "input"
    folder.mkdir(parents=True)
    for name, data in contents.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    fd = files.open_folder(str(folder))
    try:
        return job_id, tuple(files.describe(e, "input/") for e in files.walk(fd) if not e.is_folder)
    finally:
        os.close(fd)


def test_inputs_are_taken_again_with_their_folders_and_modes(home: Home, make: Make) -> None:
    job_id, facts = finished(home, a_x=b"1", sub__b_x=b"2")
    (home.done / job_id / "input" / "a.x").chmod(0o755)
    upload = make()
    upload.copy_inputs(home, "done", job_id)
    assert taken(upload, expected=facts).files == facts
    assert (home.work / upload.job_id / "input" / "a.x").stat().st_mode & 0o777 == 0o755
    assert (home.done / job_id / "input" / "a.x").read_bytes() == b"1"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a.x").write_bytes(b"2"),
        lambda folder: (folder / "a.x").unlink(),
        lambda folder: (folder / "more.x").touch(),
        lambda folder: (folder / "a.x").rename(folder / "b.x"),
    ],
    ids=["edited", "removed", "added", "renamed"],
)
def test_changed_inputs_are_not_run_again(home: Home, make: Make, change: Callable[[Path], object]) -> None:
    job_id, facts = finished(home, a_x=b"1")
    change(home.done / job_id / "input")
    upload = make()
    upload.copy_inputs(home, "done", job_id)
    code, _ = refusal(lambda: taken(upload, Request("retry", retry_of=job_id), expected=facts))
    assert code == "inputs_changed"


@pytest.mark.parametrize("missing", ["input", ""])
def test_inputs_that_are_gone_are_named(home: Home, make: Make, missing: str) -> None:
    job_id, _ = finished(home)
    (home.done / job_id / "input").rmdir()
    if not missing:
        (home.done / job_id).rmdir()
    code, text = refusal(lambda: make().copy_inputs(home, "done", job_id))
    assert (code, f"done/{job_id}/input" in text) == ("inputs_gone", True)


@pytest.mark.parametrize("when", ["before", "between", "within", "after"])
def test_inputs_that_retention_takes_meanwhile_are_gone(
    home: Home, make: Make, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    job_id, _ = finished(home, a_x=b"1", b_x=b"2", c__d_x=b"3")
    copy_tree, copy_file = files.copy_tree, files.copy_file

    def take() -> None:
        if (home.done / job_id).exists():
            removal.doom(home, [("done", job_id)])
            removal.destroy(home, job_id, 100)

    def copied_tree(*args: Any) -> None:
        if when == "before":
            take()
        copy_tree(*args)
        if when == "after":
            take()

    def copied_file(*args: Any) -> None:
        if when == "within":
            take()
        copy_file(*args)
        if when == "between":
            take()

    monkeypatch.setattr(files, "copy_tree", copied_tree)
    monkeypatch.setattr(files, "copy_file", copied_file)
    assert refusal(lambda: make().copy_inputs(home, "done", job_id))[0] == "inputs_gone"


def test_a_link_in_place_of_the_inputs_is_not_followed(home: Home, make: Make, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    (secrets / "input").mkdir(parents=True)
    (secrets / "input" / "a.x").write_text("secret")
    job_id, _ = finished(home)
    (home.done / job_id / "input").rmdir()
    (home.done / job_id / "input").symlink_to(secrets / "input")
    assert refusal(lambda: make().copy_inputs(home, "done", job_id))[0] == "inputs_gone"
    other = new_id()
    (home.done / other).symlink_to(secrets)
    assert refusal(lambda: make().copy_inputs(home, "done", other))[0] == "inputs_gone"


@pytest.mark.parametrize(
    ("spoil", "code"),
    [
        (lambda folder: (folder / "l.x").symlink_to("/etc/passwd"), "not_a_file"),
        (lambda folder: (folder / "sub").symlink_to("/etc"), "not_a_file"),
        (lambda folder: os.mkfifo(folder / "pipe"), "not_a_file"),
        (lambda folder: (folder / "new\nline").touch(), "name"),
        (lambda folder: (folder.joinpath(*"d" * 32)).mkdir(parents=True), "too_deep"),
    ],
    ids=["link", "link to a folder", "fifo", "name", "deep"],
)
def test_what_could_not_be_dropped_cannot_be_run_again(
    home: Home, make: Make, spoil: Callable[[Path], object], code: str
) -> None:
    job_id, _ = finished(home, "rejected", a_x=b"1")
    spoil(home.root / "rejected" / job_id / "input")
    upload = make()
    assert refusal(lambda: upload.copy_inputs(home, "rejected", job_id))[0] == code


def test_a_link_in_an_upload_is_no_claim(make: Make) -> None:
    """Whatever brought it there: the last look before the claim finds it."""
    upload = make()
    send(upload, "a.x")
    os.symlink("/etc/passwd", "l.x", dir_fd=upload._input_fd)
    assert refusal(lambda: taken(upload))[0] == "not_a_file"


def test_inputs_with_a_second_name_can_be_run_again(home: Home, make: Make, tmp_path: Path) -> None:
    """A backup by hard links must not forbid it: the copy has one name."""
    job_id, facts = finished(home, a_x=b"1")
    os.link(home.done / job_id / "input" / "a.x", tmp_path / "backup")
    upload = make()
    upload.copy_inputs(home, "done", job_id)
    assert taken(upload, expected=facts).files == facts


# --- reading what jobs left -----------------------------------------------------------------------------------------


@pytest.fixture
def job(home: Home) -> str:
    job_id = new_id()
    output = home.done / job_id / "output"
    output.mkdir(parents=True)
    (output / "a b.txt").write_text("text")
    (output / os.fsdecode(b"\xff.txt")).write_text("odd")
    (home.done / job_id / "stdout.log").write_text("0123456789")
    return job_id


@pytest.mark.parametrize(
    ("path", "text"), [("output/a b.txt", "text"), ("output/\\xff.txt", "odd"), ("stdout.log", "0")]
)
def test_files_are_read_by_the_paths_of_the_manifest(home: Home, job: str, path: str, text: str) -> None:
    file = JobFolder(home).open(job, path)
    assert file is not None
    with file:
        assert file.read().decode().startswith(text)


def test_only_regular_files_of_the_job_are_read(home: Home, job: str) -> None:
    output = home.done / job / "output"
    (output / "link").symlink_to("/etc/passwd")
    (output / "out").symlink_to("/etc")
    os.mkfifo(output / "fifo")
    (home.done / "other").mkdir()
    (home.done / "other" / "f").touch()
    before = len(os.listdir("/proc/self/fd"))
    folders = JobFolder(home)
    paths = ["", ".", "..", "../other/f", "output/../../other/f", "/etc/passwd", "output/link", "output/out/passwd"]
    paths += [
        "output",
        "output/fifo",
        "output/none",
        "output//a b.txt",
        "output/a b.txt/x",
        "output/\\x2e\\x2e/stdout.log",
    ]
    paths += ["output/a\\x2f..\\x2fa b.txt", "\\x00", "n" * 5000]
    assert {path: folders.open(job, path) for path in paths} == dict.fromkeys(paths)
    assert folders.open("..", "state/solvisor.db") is None
    assert folders.open(f"{job}/output", "a b.txt") is None
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("offset", "tail", "most", "want"),
    [
        (None, None, 100, (b"0123456789", 10)),
        (None, 3, 100, (b"789", 10)),
        (None, 0, 100, (b"", 10)),
        (None, None, 4, (b"6789", 10)),
        (None, 50, 4, (b"6789", 10)),
        (2, None, 3, (b"234", 5)),
        (8, None, 100, (b"89", 10)),
        (99, None, 100, (b"", 10)),
        (2, 1, 3, (b"234", 5)),
    ],
)
def test_pieces_of_a_log(
    home: Home, job: str, offset: int | None, tail: int | None, most: int, want: tuple[bytes, int]
) -> None:
    last = most if tail is None else min(tail, most)
    log = JobFolder(home).open_log(job, "stdout", 1, newest=True, offset=offset, tail=last)
    assert log is not None
    assert (log.read(most), log.offset) == want
    log.close()


def test_a_log_that_is_not_there_yet_is_none(home: Home, job: str) -> None:
    assert JobFolder(home).open_log(job, "stderr", 1, newest=True) is None
